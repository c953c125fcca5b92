"""`pixmix-bench`: our code beside plain code and rivals, as ratios within one run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.cli.options import (
    Command,
    command_options,
    example,
    jobs_option,
    one_line_errors,
    progress_bar,
    say,
)
from pipelines.cli.suggestions import SuggestingGroup

if TYPE_CHECKING:
    from pipelines.bench.timing import Row

    Found = tuple[Sequence[Row], tuple[str, ...], list[str]]
    """Rows, packages whose versions are listed, and notes."""

ROUNDS = {"fractals": 7, "pixmix": 9, "loader": 7, "featviz": 5, "train": 3}
"""Default number of rounds of each benchmark."""

IMAGES = 200
MODEL = "wrn_40_4"


@click.group(
    cls=SuggestingGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example("pixmix-bench fractals", "pixmix-bench pixmix"),
)
@click.version_option(package_name="pixmix", message="%(version)s")
def main() -> None:
    """Time our code beside plain code that does the same.

    Contenders run interleaved, on one thread each, so that a ratio holds on a busy machine, too. A
    calibration loop detects when the machine was busy.
    """


def _rounds_option(default: int) -> Callable[[Command], Command]:
    return click.option(
        "--rounds",
        type=click.IntRange(1),
        default=default,
        show_default=True,
        help="Number of timed runs of each contender.",
    )


def _show(found: "Sequence[Found]", *, as_json: bool) -> None:
    """Print rows as one table or document, with the machine."""
    from pipelines.bench.timing import document, machine, table

    rows = [row for part, _, _ in found for row in part]
    where = machine(list(dict.fromkeys(name for _, names, _ in found for name in names)))
    notes = [note for _, _, part in found for note in part]
    say(table(rows, where, notes), document(rows, where, notes), as_json=as_json)


@main.command(epilog=example("pixmix-bench fractals", "pixmix-bench fractals --json > bench.json"))
@_rounds_option(ROUNDS["fractals"])
@click.option(
    "--n",
    type=click.IntRange(2),
    default=IMAGES,
    show_default=True,
    help="Images of the run of pixmix-gen; 64 or more per job also predict the time of 14,000.",
)
@jobs_option
@command_options
def fractals(*, rounds: int, n: int, jobs: int | None, as_json: bool) -> None:
    """Time chaos games, flames, whole images and pixmix-gen.

    Takes about two minutes. flam3 is compared, too, if it is installed (Debian: flam3-utils).
    """
    with one_line_errors("interrupted; nothing was written"):
        _show([_fractals(rounds, n, jobs)], as_json=as_json)


def _fractals(rounds: int, n: int, jobs: int | None) -> "Found":
    from pipelines.bench.fractals import NO_FLAM3, PACKAGES, bench_fractals, find_flam3
    from pipelines.system.processes import available_cores

    flam3 = find_flam3()
    with progress_bar("runs") as progress:
        rows = bench_fractals(
            rounds, progress, images=n, jobs=jobs or available_cores(), flam3=flam3
        )
    return rows, PACKAGES, [] if flam3 else [NO_FLAM3]


@main.command(epilog=example("pixmix-bench pixmix", "pixmix-bench pixmix --json > bench.json"))
@_rounds_option(ROUNDS["pixmix"])
@command_options
def pixmix(*, rounds: int, as_json: bool) -> None:
    """Time PixMix on batches, one by one and value by value, beside Pillow and numpy.

    Takes about a minute, on one thread, with all images in memory.
    """
    with one_line_errors("interrupted; nothing was written"):
        _show([_pixmix(rounds)], as_json=as_json)


def _pixmix(rounds: int) -> "Found":
    from pipelines.bench.pixmix import PACKAGES, bench_pixmix

    with progress_bar("runs") as progress:
        return bench_pixmix(rounds, progress), PACKAGES, []


@main.command(
    epilog=example("pixmix-bench loader", "pixmix-bench loader --images imagenet-0000.tar")
)
@_rounds_option(ROUNDS["loader"])
@click.option(
    "--images",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A tar of JPEGs to load.  [default: drawn images]",
)
@command_options
def loader(*, rounds: int, images: Path | None, as_json: bool) -> None:
    """Time the loaders from shards to batches beside plain torchvision datasets.

    Takes about two minutes. Shards are written to the system's temporary folder.
    """
    with one_line_errors("interrupted; nothing was written"):
        _show([_loader(rounds, images)], as_json=as_json)


def _loader(rounds: int, images: Path | None) -> "Found":
    from pipelines.bench.loader import PACKAGES, bench_loader

    with progress_bar("runs") as progress:
        return bench_loader(rounds, progress, images=images), PACKAGES, []


@main.command(epilog=example("pixmix-bench featviz", "pixmix-bench featviz --json > bench.json"))
@_rounds_option(ROUNDS["featviz"])
@command_options
def featviz(*, rounds: int, as_json: bool) -> None:
    """Time feature visualization beside the common way to write it, on one thread of the CPU.

    Takes about four minutes. Needs the extra `featviz`.
    """
    with one_line_errors("interrupted; nothing was written"):
        _show([_featviz(rounds)], as_json=as_json)


def _featviz(rounds: int) -> "Found":
    from pipelines.bench.featviz import PACKAGES, bench_featviz

    with progress_bar("runs") as progress:
        return bench_featviz(rounds, progress), PACKAGES, []


@main.command(epilog=example("pixmix-bench train", "pixmix-bench train --model wrn_16_2"))
@_rounds_option(ROUNDS["train"])
@click.option("--model", default=MODEL, show_default=True, help="Network for CIFAR.")
@command_options
def train(*, rounds: int, model: str, as_json: bool) -> None:
    """Time training steps on the CPU, and the share of them that waits for data.

    Takes about five minutes with WRN-40-4, on all cores.
    """
    with one_line_errors("interrupted; nothing was written"):
        _show([_train(rounds, model)], as_json=as_json)


def _train(rounds: int, model: str) -> "Found":
    from pipelines.bench.train import PACKAGES, bench_train

    with progress_bar("runs") as progress:
        return bench_train(rounds, progress, model=model), PACKAGES, []


@main.command(name="all", epilog=example("pixmix-bench all --json > bench.json"))
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help="Number of timed runs of each contender.  [default: "
    f"{', '.join(f'{count} of {name}' for name, count in ROUNDS.items())}]",
)
@command_options
def everything(*, rounds: int | None, as_json: bool) -> None:
    """Run all benchmarks, one after another, into one table.

    Takes about a quarter of an hour.
    """
    with one_line_errors("interrupted; nothing was written"):
        each = ROUNDS if rounds is None else dict.fromkeys(ROUNDS, rounds)
        found = [
            _fractals(each["fractals"], IMAGES, None),
            _pixmix(each["pixmix"]),
            _loader(each["loader"], None),
            _featviz(each["featviz"]),
            _train(each["train"], MODEL),
        ]
        _show(found, as_json=as_json)


if __name__ == "__main__":
    main()
