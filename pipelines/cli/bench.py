"""`pixmix-bench`: our code beside plain twins and rivals, as ratios of the same minute."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.options import (
    ByteSize,
    Command,
    command_options,
    example,
    finite,
    jobs_option,
    one_line_errors,
    progress_bar,
    say,
    seed_option,
)
from pipelines.cli.suggestions import SuggestingGroup

if TYPE_CHECKING:
    from pipelines.bench.results import Row

    Rows = Sequence[Row]

ROUNDS = {"fractals": 7, "pixmix": 9, "loader": 7, "featviz": 5, "train": 3}
"""Of each benchmark, where nothing else is said."""

GEN_PICTURES = 200
MODEL = "wrn_40_4"


@click.group(
    cls=SuggestingGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example("pixmix-bench fractals", "pixmix-bench pixmix"),
)
@click.version_option(package_name="pixmix", message="%(version)s")
def main() -> None:
    """Time our code beside plain code that does the same.

    What is compared runs in turn, one thread each, so that a ratio holds on a busy machine too. A
    calibration loop tells when the machine was busy.
    """


def _rounds_option(default: int) -> Callable[[Command], Command]:
    """Return the option --rounds."""
    return click.option(
        "--rounds",
        type=click.IntRange(1),
        default=default,
        show_default=True,
        help="Times that each contender's turn comes.",
    )


def _tell(
    rows: "Rows", packages: tuple[str, ...], notes: "Sequence[str]", *, as_json: bool
) -> None:
    """Print what was found, and where."""
    from pipelines.bench.machine import machine
    from pipelines.bench.results import document, table

    where = machine(packages)
    say(table(rows, where, notes), document(rows, where, notes), as_json=as_json)


@main.command(epilog=example("pixmix-bench fractals", "pixmix-bench fractals --json > bench.json"))
@_rounds_option(ROUNDS["fractals"])
@click.option(
    "--n",
    type=click.IntRange(2),
    default=GEN_PICTURES,
    show_default=True,
    help="Pictures of the run of pixmix-gen; 64 or more a job also tell how long a set would take.",
)
@jobs_option
@command_options
def fractals(*, rounds: int, n: int, jobs: int | None, as_json: bool) -> None:
    """Time chaos games, flames, whole pictures and pixmix-gen.

    Takes about two minutes. flam3 is compared too where it is installed (Debian: flam3-utils).
    """
    with one_line_errors("interrupted; nothing was written"):
        _tell(*_fractals(rounds, n, jobs), as_json=as_json)


def _fractals(
    rounds: int, pictures: int, jobs: int | None
) -> "tuple[Rows, tuple[str, ...], Sequence[str]]":
    from pipelines.bench.flam3 import find_flam3
    from pipelines.bench.fractals import (
        NO_FLAM3,
        PACKAGES,
        FractalBenchSettings,
        bench_fractals,
    )
    from pipelines.system.processes import available_cores

    settings = FractalBenchSettings(
        rounds=rounds, pictures=pictures, jobs=jobs or available_cores()
    )
    flam3 = find_flam3()
    with progress_bar("runs") as progress:
        rows = bench_fractals(settings, flam3, progress=progress)
    return rows, PACKAGES, [] if flam3 is not None else [NO_FLAM3]


@main.command(epilog=example("pixmix-bench pixmix", "pixmix-bench pixmix --json > bench.json"))
@_rounds_option(ROUNDS["pixmix"])
@command_options
def pixmix(*, rounds: int, as_json: bool) -> None:
    """Time PixMix on batches, one by one and value by value, beside Pillow and numpy.

    Takes about a minute, on one thread, with all pictures in memory.
    """
    with one_line_errors("interrupted; nothing was written"):
        _tell(*_pixmix(rounds), as_json=as_json)


def _pixmix(rounds: int) -> "tuple[Rows, tuple[str, ...], Sequence[str]]":
    from pipelines.bench.pixmix import PACKAGES, PixMixBenchSettings, bench_pixmix

    settings = PixMixBenchSettings(rounds=rounds)
    with progress_bar("runs") as progress:
        rows = bench_pixmix(settings, progress=progress)
    return rows, PACKAGES, []


@main.command(
    epilog=example("pixmix-bench loader", "pixmix-bench loader --pictures imagenet-0000.tar")
)
@_rounds_option(ROUNDS["loader"])
@click.option(
    "--pictures",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A tar of JPEGs to load.  [default: some are drawn]",
)
@command_options
def loader(*, rounds: int, pictures: Path | None, as_json: bool) -> None:
    """Time the loaders from shards to batches beside plain data sets of torchvision.

    Takes about two minutes. Shards are written to the system's temporary folder.
    """
    with one_line_errors("interrupted; nothing was written"):
        _tell(*_loader(rounds, pictures), as_json=as_json)


def _loader(rounds: int, pictures: Path | None) -> "tuple[Rows, tuple[str, ...], Sequence[str]]":
    from pipelines.bench.loader import PACKAGES, LoaderBenchSettings, bench_loader

    settings = LoaderBenchSettings(rounds=rounds, pictures=pictures)
    with progress_bar("runs") as progress:
        rows = bench_loader(settings, progress=progress)
    return rows, PACKAGES, []


@main.command(epilog=example("pixmix-bench featviz", "pixmix-bench featviz --json > bench.json"))
@_rounds_option(ROUNDS["featviz"])
@command_options
def featviz(*, rounds: int, as_json: bool) -> None:
    """Time feature visualization beside the plain way, one thread of the CPU.

    Takes about four minutes. Needs the extra `featviz`.
    """
    with one_line_errors("interrupted; nothing was written"):
        _tell(*_featviz(rounds), as_json=as_json)


def _featviz(rounds: int) -> "tuple[Rows, tuple[str, ...], Sequence[str]]":
    from pipelines.bench.featviz import PACKAGES, FeatvizBenchSettings, bench_featviz

    settings = FeatvizBenchSettings(rounds=rounds)
    with progress_bar("runs") as progress:
        rows = bench_featviz(settings, progress=progress)
    return rows, PACKAGES, []


@main.command(epilog=example("pixmix-bench train", "pixmix-bench train --model wrn_16_2"))
@_rounds_option(ROUNDS["train"])
@click.option("--model", default=MODEL, show_default=True, help="Network for CIFAR.")
@command_options
def train(*, rounds: int, model: str, as_json: bool) -> None:
    """Time steps of training on the CPU, and how much of them is spent waiting for data.

    Takes about five minutes with WRN-40-4, on all cores.
    """
    with one_line_errors("interrupted; nothing was written"):
        _tell(*_train(rounds, model), as_json=as_json)


def _train(rounds: int, model: str) -> "tuple[Rows, tuple[str, ...], Sequence[str]]":
    from pipelines.bench.train import PACKAGES, TrainBenchSettings, bench_train

    settings = TrainBenchSettings(rounds=rounds, model=model)
    with progress_bar("runs") as progress:
        rows = bench_train(settings, progress=progress)
    return rows, PACKAGES, []


_POSITIVE = click.FloatRange(0, 1e18, min_open=True)


def _counted(name: str, default: int, text: str, least: int = 1) -> Callable[[Command], Command]:
    """Return an option that is a whole number."""
    return click.option(
        name, type=click.IntRange(least), default=default, show_default=True, help=text
    )


def _measured(name: str, default: float, text: str) -> Callable[[Command], Command]:
    """Return an option that is a number above 0."""
    return click.option(
        name, type=_POSITIVE, default=default, show_default=True, callback=finite, help=text
    )


@main.command(
    epilog=example(
        "pixmix-bench streaming --nodes 8 --window 16",
        "pixmix-bench streaming --nodes 64 --batch-size 16384 --window 2 --cache-limit 20GB",
    )
)
@_counted("--shards", 1024, "Of the training set.")
@_counted("--samples-per-shard", 1251, "In each of them.")
@_measured("--shard-mb", 144.0, "MB of a shard.")
@_counted("--classes", 1000, "Of the set.")
@_counted("--nodes", 1, "Machines that train together.")
@_counted("--ranks", 8, "Processes a node.")
@_counted("--workers", 8, "Processes that decode, of each of those.", least=0)
@_counted("--batch-size", 1024, "Of all processes together.")
@_counted("--window", 64, "Shards of a lane that are mixed at a time.")
@click.option(
    "--lanes",
    type=click.IntRange(1),
    help="Parts that each batch takes equally many samples of.  [default: as many as nodes]",
)
@click.option(
    "--cache-limit",
    type=ByteSize(),
    help="Of the shards that a node keeps, as 200GB.  [default: those in use]",
)
@_measured("--bandwidth", 1250.0, "MB a second that a node downloads.")
@_measured("--step-seconds", 0.1, "Of a step of training, without waiting for data.")
@click.option(
    "--read-ahead",
    "ahead",
    type=click.IntRange(1),
    help="Shards that are downloaded before they are needed.  [default: a window's]",
)
@_measured("--slow", 4.0, "How many times slower the link of one node is, for a column.")
@_measured("--outage", 30.0, "Seconds for which it is broken instead, for another.")
@_counted("--epochs", 10, "For what is kept from one epoch to the next.")
@seed_option("Of the order.")
@command_options
def streaming(*, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Simulate training from shards at an address, without data: what to download, keep and wait.

    Beside the loaders' full shuffle, windows and lanes stands what webdataset's own stages give. Of
    nodes the one that needs most counts. Meetings are those of two samples of one shard, against
    chance; entropy is that of the classes of a batch, in bits; travel is how far samples come from
    where they are stored, against a full shuffle. Takes some seconds.
    """
    with one_line_errors("interrupted; nothing was written"):
        from pipelines.bench.streaming import StreamingSettings, simulate
        from pipelines.bench.streaming_table import streaming_document, streaming_table

        lanes = options.pop("lanes")
        try:
            settings = StreamingSettings(
                lanes=options["nodes"] if lanes is None else lanes,
                shard_bytes=options.pop("shard_mb") * 1e6,
                bandwidth=options.pop("bandwidth") * 1e6,
                outage_seconds=options.pop("outage"),
                cache_bytes=options.pop("cache_limit"),
                **options,
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        with progress_bar("orders") as progress:
            rows = simulate(settings, progress)
        say(streaming_table(settings, rows), streaming_document(settings, rows), as_json=as_json)


@main.command(name="all", epilog=example("pixmix-bench all --json > bench.json"))
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help="Times that each contender's turn comes.  [default: "
    f"{', '.join(f'{count} of {name}' for name, count in ROUNDS.items())}]",
)
@command_options
def everything(*, rounds: int | None, as_json: bool) -> None:
    """Time all of it, one benchmark after the other, into one table.

    Takes about a quarter of an hour.
    """
    with one_line_errors("interrupted; nothing was written"):
        each = ROUNDS if rounds is None else dict.fromkeys(ROUNDS, rounds)
        found = [
            _fractals(each["fractals"], GEN_PICTURES, None),
            _pixmix(each["pixmix"]),
            _loader(each["loader"], None),
            _featviz(each["featviz"]),
            _train(each["train"], MODEL),
        ]
        rows = [row for part, _, _ in found for row in part]
        packages = dict.fromkeys(name for _, names, _ in found for name in names)
        notes = [note for _, _, part in found for note in part]
        _tell(rows, tuple(packages), notes, as_json=as_json)


if __name__ == "__main__":
    main()
