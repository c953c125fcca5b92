"""`pixmix-bench`: speed relative to reference implementations, measured within one run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.cli.help_pages import Decorated, command_group, example, option
from pipelines.cli.options import (
    command_options,
    jobs_option,
    one_line_errors,
    progress_bar,
    say,
)

if TYPE_CHECKING:
    from pipelines.bench.timing import Row

    Found = tuple[Sequence[Row], tuple[str, ...], list[str]]
    """Rows, packages whose versions are listed, and notes."""

ROUNDS = {"fractals": 7, "pixmix": 9, "loader": 7, "featviz": 5, "train": 3}
"""Default number of rounds of each benchmark."""

_INTERRUPTED = "interrupted; nothing was written"

IMAGES = 200
MODEL = "wrn_40_4"


@command_group("pixmix-bench fractals", "pixmix-bench pixmix")
def main() -> None:
    """Measure the speed of pixmix relative to reference implementations.

    The implementations run interleaved, on one thread each, so that ratios hold on a busy machine,
    too. A calibration loop detects whether the machine was busy.
    """


def _rounds_option(default: int) -> Callable[[Decorated], Decorated]:
    return option(
        "--rounds",
        type=click.IntRange(1),
        default=default,
        help="Number of timed runs of each implementation.",
    )


def _show(found: "Sequence[Found]", *, as_json: bool) -> None:
    """Print rows as one table or one document, with the machine."""
    from pipelines.bench.timing import document, machine, table

    rows = [row for part, _, _ in found for row in part]
    where = machine(list(dict.fromkeys(name for _, names, _ in found for name in names)))
    notes = [note for _, _, part in found for note in part]
    say(table(rows, where, notes), document(rows, where, notes), as_json=as_json)


@main.command(epilog=example("pixmix-bench fractals", "pixmix-bench fractals --json > bench.json"))
@_rounds_option(ROUNDS["fractals"])
@option(
    "--n",
    type=click.IntRange(2),
    default=IMAGES,
    help="Number of images that pixmix-gen generates. With 64 or more per job, the time of 14,000 "
    "images is predicted, too.",
)
@jobs_option
@command_options
def fractals(*, rounds: int, n: int, jobs: int | None, as_json: bool) -> None:
    """Benchmark fractals: chaos games, flames, images and pixmix-gen.

    Takes about two minutes. Includes flam3 if it is installed (Debian: flam3-utils).
    """
    with one_line_errors(_INTERRUPTED):
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
    """Benchmark PixMix against Pillow and numpy.

    Measures batches and single images. Takes about a minute, on one thread, with all images in
    memory.
    """
    with one_line_errors(_INTERRUPTED):
        _show([_pixmix(rounds)], as_json=as_json)


def _pixmix(rounds: int) -> "Found":
    from pipelines.bench.pixmix import PACKAGES, bench_pixmix

    with progress_bar("runs") as progress:
        return bench_pixmix(rounds, progress), PACKAGES, []


@main.command(
    epilog=example("pixmix-bench loader", "pixmix-bench loader --images imagenet-0000.tar")
)
@_rounds_option(ROUNDS["loader"])
@option(
    "--images",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    show_default="random images",
    help="A tar of JPEG images to load.",
)
@command_options
def loader(*, rounds: int, images: Path | None, as_json: bool) -> None:
    """Benchmark the loaders against torchvision datasets.

    Measures the whole way from shards to batches. Takes about two minutes. Shards are written to
    the temporary folder of the system.
    """
    with one_line_errors(_INTERRUPTED):
        _show([_loader(rounds, images)], as_json=as_json)


def _loader(rounds: int, images: Path | None) -> "Found":
    from pipelines.bench.loader import PACKAGES, bench_loader

    with progress_bar("runs") as progress:
        return bench_loader(rounds, progress, images=images), PACKAGES, []


@main.command(epilog=example("pixmix-bench featviz", "pixmix-bench featviz --json > bench.json"))
@_rounds_option(ROUNDS["featviz"])
@command_options
def featviz(*, rounds: int, as_json: bool) -> None:
    """Benchmark feature visualization against a common implementation.

    Takes about four minutes, on one thread of the CPU. Needs pip install 'pixmix[featviz]'.
    """
    with one_line_errors(_INTERRUPTED):
        _show([_featviz(rounds)], as_json=as_json)


def _featviz(rounds: int) -> "Found":
    from pipelines.bench.featviz import PACKAGES, bench_featviz

    with progress_bar("runs") as progress:
        return bench_featviz(rounds, progress), PACKAGES, []


@main.command(epilog=example("pixmix-bench train", "pixmix-bench train --model wrn_16_2"))
@_rounds_option(ROUNDS["train"])
@option("--model", metavar="NAME", default=MODEL, help="Network for CIFAR.")
@command_options
def train(*, rounds: int, model: str, as_json: bool) -> None:
    """Benchmark training steps on the CPU.

    Also measures how long they wait for data. Takes about five minutes with WRN-40-4, on all cores.
    """
    with one_line_errors(_INTERRUPTED):
        _show([_train(rounds, model)], as_json=as_json)


def _train(rounds: int, model: str) -> "Found":
    from pipelines.bench.train import PACKAGES, bench_train

    with progress_bar("runs") as progress:
        return bench_train(rounds, progress, model=model), PACKAGES, []


@main.command(name="all", epilog=example("pixmix-bench all --json > bench.json"))
@option(
    "--rounds",
    type=click.IntRange(1),
    show_default=", ".join(f"{count} for {name}" for name, count in ROUNDS.items()),
    help="Number of timed runs of each implementation.",
)
@command_options
def everything(*, rounds: int | None, as_json: bool) -> None:
    """Run all benchmarks one after the other, and print one table.

    Takes about 15 minutes.
    """
    with one_line_errors(_INTERRUPTED):
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
