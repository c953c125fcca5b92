"""`pixmix-gen`: make sets of pictures to mix with, and verify them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.options import (
    SHEET_PICTURES,
    Size,
    chosen_task,
    command_options,
    example,
    finite,
    jobs_option,
    one_line_errors,
    picture_path,
    progress_bar,
    say,
    seed_option,
    task_options,
)
from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from featviz import Precision
    from fractals import Baseline, Family
    from pipelines.generate.painted_shards import ShardedResult
    from pipelines.generate.painting import Painter
    from pipelines.generate.sets import SetRequest, SetResult

# As in fractals.FAMILIES and BASELINES and encoding.ENCODERS, which would take half a second to
# import for the help; a test holds them equal.
FAMILIES = ("mixed", "flame", "ifs", "escape")
BASELINES = ("dead-leaves", "spectrum", "noise")
FORMATS = ("jpg", "png", "webp")
PRECISIONS = ("float32", "bfloat16")

_CONTINUES = "interrupted; the same command continues this set"

SHARD_SIZE = 1000


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example(
        "pixmix-gen fractals --n 14000 --sheet sheet.png",
        "pixmix-gen verify mixing-set/fractals",
    ),
)
@click.version_option(package_name="pixmix", message="%(version)s")
def main() -> None:
    """Make sets of pictures to mix with, and verify them."""


def _set_options(
    pictures: int, name: str
) -> "Callable[[Callable[..., None]], Callable[..., None]]":
    """Add the options that every kind of set has: how many, where, how large, which files."""

    def add(command: "Callable[..., None]") -> "Callable[..., None]":
        # The last is shown first.
        for option in (
            click.option(
                "--sheet",
                type=click.Path(path_type=Path, dir_okay=False),
                callback=picture_path,
                metavar="SHEET.png",
                help=f"Also write a sheet of {SHEET_PICTURES} pictures.",
            ),
            jobs_option,
            click.option(
                "--format",
                type=click.Choice(FORMATS),
                default=FORMATS[0],
                show_default=True,
                help="jpg has quality 95 and 4:4:4; png and webp are lossless.",
            ),
            seed_option("Another seed gives other pictures."),
            click.option(
                "--size",
                type=Size(),
                default="256",
                show_default=True,
                metavar="PIXELS|WIDTHxHEIGHT",
                help="Of each picture, pixels; one number for a square.",
            ),
            click.option(
                "--shard-size",
                type=click.IntRange(1, 10**8),
                help="Pictures a shard, at most, which a process makes in one go.  [default: "
                f"{SHARD_SIZE}]",
            ),
            click.option(
                "--to-shards",
                is_flag=True,
                help="Write WebDataset tars, as pixmix-shard mixing makes of pictures, and no "
                "files of pictures. Several tasks are closed by pixmix-gen merge.",
            ),
            click.option(
                "--out",
                metavar="DIR|URL",
                help="Folder of the set; with --to-shards also s3://... or gs://... The same "
                f"command continues what is there.  [default: mixing-set/{name}, or shards/{name}]",
            ),
            click.option(
                "--n",
                type=click.IntRange(1, 10**8),
                default=pictures,
                show_default=True,
                help="Pictures. A larger n later makes the same set grow.",
            ),
        ):
            command = option(command)
        return command

    return add


@main.command(
    epilog=example(
        "pixmix-gen fractals --n 14000 --sheet sheet.png",
        "pixmix-gen fractals --n 14000 --task-index 3 --num-tasks 8",
        "pixmix-gen fractals --n 1000000 --to-shards --out s3://bucket/fractals",
    )
)
@_set_options(14_000, "fractals")
@click.option(
    "--family",
    type=click.Choice(FAMILIES),
    default=FAMILIES[0],
    show_default=True,
    help="Fractal flames, affine systems, escape-time sets, or all of them in layers.",
)
@click.option(
    "--samples-per-pixel",
    type=click.FloatRange(0, 1e6, min_open=True),
    callback=finite,
    default=50.0,
    show_default=True,
    help="Points for each pixel: more are smoother and slower.",
)
@task_options
@command_options
def fractals(
    *,
    n: int,
    out: str | None,
    to_shards: bool,
    shard_size: int | None,
    family: "Family",
    size: tuple[int, int],
    samples_per_pixel: float,
    seed: int,
    format: str,
    jobs: int | None,
    sheet: Path | None,
    task_index: int | None,
    num_tasks: int | None,
    as_json: bool,
) -> None:
    """Make a set of fractals.

    Picture i depends on seed, family, size and samples alone: any number of jobs or tasks and any
    interruption give the same set, bit for bit. The pictures are free for any use (CC0-1.0).
    """
    target = _target("fractals", out, shard_size, sheet, to_shards=to_shards)
    with one_line_errors(_CONTINUES):
        from pipelines.generate.fractals import FractalPainter, chunk_size
        from pipelines.shards.workers import available_cores

        task = chosen_task(task_index, num_tasks)
        height, width = size
        painter = FractalPainter(
            seed=seed,
            family=family,
            height=height,
            width=width,
            samples_per_pixel=samples_per_pixel,
        )
        _make(
            target,
            painter,
            n=n,
            format=format,
            chunk=chunk_size(height, width, samples_per_pixel),
            jobs=jobs or available_cores(),
            task=task,
            as_json=as_json,
        )


@main.command(
    epilog=example(
        "pixmix-gen featviz --n 4700 --sheet sheet.png",
        "pixmix-gen featviz --n 500 --model resnet50 --layer layer1.2 --layer layer2.3",
        "torchrun --nproc-per-node 4 -m -- pipelines.cli.gen featviz --n 4700",
    )
)
@_set_options(4_700, "featviz")
@click.option(
    "--model",
    default="efficientnet_lite0",
    show_default=True,
    metavar="NAME",
    help="Network: of torchvision, for CIFAR (wrn_40_4), or module:function.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File of its state dict.  [default: its trained weights, downloaded where need be]",
)
@click.option(
    "--allow-random",
    is_flag=True,
    help="Take the network untrained: its pictures are all alike, for tests only.",
)
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="NAME",
    help="Layer to look into; may be repeated.  [default: early and middle blocks]",
)
@click.option(
    "--steps",
    type=click.IntRange(1, 100_000),
    default=128,
    show_default=True,
    help="Steps of the optimization: more are stronger and slower.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda, cuda:1 or mps; under torchrun or srun each process has a GPU.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Of the network.  [default: that of the set so far, or the faster one here]",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 4096),
    help="Pictures at once in a process.  [default: that of the set so far, or by memory]",
)
@task_options
@command_options
def featviz(
    *,
    n: int,
    out: str | None,
    to_shards: bool,
    shard_size: int | None,
    model: str,
    weights: Path | None,
    allow_random: bool,
    layers: tuple[str, ...],
    size: tuple[int, int],
    steps: int,
    seed: int,
    format: str,
    device: str,
    precision: "Precision | None",
    batch_size: int | None,
    jobs: int | None,
    sheet: Path | None,
    task_index: int | None,
    num_tasks: int | None,
    as_json: bool,
) -> None:
    """Make a set of feature visualizations: pictures that excite parts of a trained network.

    Pictures are spread evenly over layers and their channels, then over random directions. On one
    kind of machine any interruption, and any number of jobs or tasks, give the same set. The
    default network is on the disk after `pip install 'pixmix[featviz]'`.
    """
    target = _target("featviz", out, shard_size, sheet, to_shards=to_shards)
    with one_line_errors(_CONTINUES):
        from pipelines.generate.featviz import chunk_size, find_device, plan_painter
        from pipelines.shards.workers import available_cores

        task = chosen_task(task_index, num_tasks)
        if jobs is None:
            # Processes share a CPU well, and a GPU badly.
            jobs = available_cores() if find_device(device).type == "cpu" else 1
        painter = plan_painter(
            model=model,
            weights=weights,
            allow_random=allow_random,
            layers=layers,
            seed=seed,
            size=size,
            steps=steps,
            device=device,
            precision=precision,
            batch=batch_size,
            jobs=jobs,
            earlier=_settings_so_far(target),
        )
        _make(
            target,
            painter,
            n=n,
            format=format,
            chunk=chunk_size(painter),
            jobs=jobs,
            task=task,
            as_json=as_json,
        )


@main.command(epilog=example("pixmix-gen baseline --kind dead-leaves --n 14000"))
@_set_options(14_000, "KIND")
@click.option(
    "--kind",
    type=click.Choice(BASELINES),
    required=True,
    help="Discs and rectangles over each other, noise of a falling spectrum, or of a flat one.",
)
@task_options
@command_options
def baseline(
    *,
    n: int,
    out: str | None,
    to_shards: bool,
    shard_size: int | None,
    kind: "Baseline",
    size: tuple[int, int],
    seed: int,
    format: str,
    jobs: int | None,
    sheet: Path | None,
    task_index: int | None,
    num_tasks: int | None,
    as_json: bool,
) -> None:
    """Make a simple set, to see what fractals are worth beside it.

    Picture i depends on kind, seed and size alone. The pictures are free for any use (CC0-1.0).
    """
    # Kinds lie beside each other, and none is taken for another.
    target = _target(kind, out, shard_size, sheet, to_shards=to_shards)
    with one_line_errors(_CONTINUES):
        from pipelines.generate.baselines import BaselinePainter
        from pipelines.generate.fractals import chunk_size
        from pipelines.shards.workers import available_cores

        task = chosen_task(task_index, num_tasks)
        height, width = size
        _make(
            target,
            BaselinePainter(process=kind, seed=seed, height=height, width=width),
            n=n,
            format=format,
            # They take a fraction of a fractal's time.
            chunk=chunk_size(height, width, 50),
            jobs=jobs or available_cores(),
            task=task,
            as_json=as_json,
        )


@dataclass(frozen=True, kw_only=True)
class _Target:
    """Where a set goes. shard_size: None for files of pictures."""

    name: str
    out: str
    shard_size: int | None
    sheet: Path | None


def _target(
    name: str, out: str | None, shard_size: int | None, sheet: Path | None, *, to_shards: bool
) -> _Target:
    """Return where a set goes.

    Raises:
        click.UsageError: if the options do not go together.
    """
    from pipelines.shards.connections import is_remote, shown

    if not to_shards:
        if shard_size is not None:
            raise click.UsageError("--shard-size is of shards; give --to-shards too")
        out = out or f"mixing-set/{name}"
        if is_remote(out):
            raise click.UsageError(
                f"--out {shown(out)} is an address, to which pictures go in shards; give "
                "--to-shards too, or a folder"
            )
        _check_sheet(sheet, Path(out))
        return _Target(name=name, out=out, shard_size=None, sheet=sheet)
    if sheet is not None:
        raise click.UsageError(
            "--sheet draws files of pictures; leave it out with --to-shards, and draw the shards "
            f"afterwards: pixmix-show set DIR --sheet {sheet}"
        )
    return _Target(
        name=name, out=out or f"shards/{name}", shard_size=shard_size or SHARD_SIZE, sheet=None
    )


def _settings_so_far(target: _Target) -> dict[str, Any]:
    from pipelines.generate.painted_shards import settings_so_far
    from pipelines.generate.sets import earlier_settings
    from pipelines.shards.places import open_place

    if target.shard_size is None:
        return earlier_settings(Path(target.out))
    return settings_so_far(open_place(target.out))


def _make(
    target: _Target,
    painter: "Painter",
    *,
    n: int,
    format: str,
    chunk: int,
    jobs: int,
    task: tuple[int, int],
    as_json: bool,
) -> None:
    """Make the set, show it and say so."""
    task_index, num_tasks = task
    if target.shard_size is not None:
        from pipelines.generate.painted_shards import ShardedRequest, paint_set
        from pipelines.shards.places import open_place

        sharded = ShardedRequest(
            place=open_place(target.out),
            painter=painter,
            n=n,
            name=target.name,
            format=format,
            shard_size=target.shard_size,
            chunk=chunk,
            jobs=jobs,
            task_index=task_index,
            num_tasks=num_tasks,
        )
        with progress_bar("pictures") as progress:
            made = paint_set(sharded, progress=progress)
        say(_sharded_summary(made), _sharded_document(made), as_json=as_json)
        return
    from pipelines.generate.sets import SetRequest, generate_set

    request = SetRequest(
        folder=Path(target.out),
        painter=painter,
        n=n,
        format=format,
        chunk=chunk,
        jobs=jobs,
        task_index=task_index,
        num_tasks=num_tasks,
    )
    with progress_bar("pictures") as progress:
        result = generate_set(request, progress=progress)
    if target.sheet is not None:
        _write_sheet(target.sheet, request)
    say(
        _summary(request, result, target.sheet),
        _document(request, result, target.sheet),
        as_json=as_json,
    )


@main.command(
    epilog=example("pixmix-gen merge shards/fractals", "pixmix-gen merge s3://bucket/fractals")
)
@click.argument("place", metavar="DIR|URL")
@command_options
def merge(*, place: str, as_json: bool) -> None:
    """Close a set of shards that several tasks made: write its index and its manifest.

    Exit code 0 says that the set is complete, 1 that shards are missing, and which.
    """
    with one_line_errors("interrupted; the same command closes the set"):
        from pipelines.generate.painted_shards import merge_shards
        from pipelines.shards.places import open_place

        result = merge_shards(open_place(place))
        say(_sharded_summary(result), _sharded_document(result), as_json=as_json)
    if not result.complete:
        raise click.exceptions.Exit(1)


def _sharded_summary(result: "ShardedResult") -> str:
    from pipelines.generate.painted_shards import missing_ranges

    if result.complete:
        shards = "1 shard" if result.n_shards == 1 else f"{result.n_shards:,} shards"
        return f"{result.place}: complete; {result.n:,} pictures in {shards}"
    whole = result.n_shards - len(result.missing)
    text = f"{result.place}: {whole:,} of {result.n_shards:,} shards"
    if not result.missing:
        return f"{text}; pixmix-gen merge {result.place} closes the set"
    return (
        f"{text}; missing are {missing_ranges(result.missing)}: give again the command that began "
        "the set, as any tasks or as one, which makes these alone, then pixmix-gen merge "
        f"{result.place}"
    )


def _sharded_document(result: "ShardedResult") -> dict[str, Any]:
    from pipelines.generate.plan import ranges_of

    return {
        "place": result.place,
        "pictures": result.n,
        "painted": result.painted,
        "shards": result.n_shards,
        "missing": [[each.start, each.stop - 1] for each in ranges_of(result.missing)],
        "complete": result.complete,
    }


@main.command(epilog=example("pixmix-gen verify mixing-set/fractals --sample 100"))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--sample",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    help="Pictures to paint again, spread over the set.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File of the network's weights, for feature visualizations made with such.",
)
@click.option(
    "--model",
    metavar="MODULE:FUNCTION",
    help="Repeats that of the set, where it is one, for it to be imported and run.",
)
@command_options
def verify(
    *, folder: Path, sample: int, weights: Path | None, model: str | None, as_json: bool
) -> None:
    """Check every file of a set, and paint a sample of it again.

    Exit code 0 says that the set is complete and each file is as it was written, 1 that not.
    Feature visualizations are painted again only on a machine like that which made them.
    """
    with one_line_errors("interrupted"):
        from pipelines.generate.sets import read_manifest
        from pipelines.generate.verify import verify_set

        manifest = read_manifest(folder)
        painter = _painter_of(manifest, folder, weights, model)
        with progress_bar("pictures") as progress:
            verdict = verify_set(folder, manifest, painter, sample=sample, progress=progress)
        if not verdict.complete:
            text = f"{folder}: partial; the command that began it makes it complete"
        elif verdict.faults:
            faults = "1 fault" if len(verdict.faults) == 1 else f"{len(verdict.faults)} faults"
            text = f"{folder}: {faults}; {verdict.faults[0]}"
        else:
            text = (
                f"{folder}: good; {verdict.pictures} pictures as written, "
                f"{verdict.sampled} painted again alike"
            )
        document = {
            "folder": str(folder),
            "good": verdict.good,
            "complete": verdict.complete,
            "pictures": verdict.pictures,
            "sampled": verdict.sampled,
            "faults": verdict.faults,
        }
        say(text, document, as_json=as_json)
    if not verdict.good:
        raise click.exceptions.Exit(1)


def _painter_of(
    manifest: dict[str, Any], folder: Path, weights: Path | None, model: str | None
) -> "Painter":
    """Return the painter of a set on the disk."""
    settings = manifest["settings"]
    if manifest["kind"] == "fractals":
        from pipelines.generate.fractals import FractalPainter

        return FractalPainter.from_settings(settings)
    if manifest["kind"] in BASELINES:
        from pipelines.generate.baselines import BaselinePainter

        return BaselinePainter.from_settings(manifest["kind"], settings)
    from pipelines.generate.featviz import KIND, FeatvizPainter

    if manifest["kind"] == KIND:
        return FeatvizPainter.from_settings(settings, weights=weights, model=model)
    raise PipelineError(f"{folder} holds {manifest['kind']}; give a set made by pixmix-gen")


def _check_sheet(sheet: Path | None, out: Path) -> None:
    if sheet is not None and sheet.resolve().is_relative_to(out.resolve()):
        raise click.BadParameter(
            f"{sheet} lies inside the set, where it would be taken for one of its pictures; "
            "put it elsewhere",
            param_hint="'--sheet'",
        )


def _write_sheet(sheet: Path, request: "SetRequest") -> None:
    """Write a contact sheet of pictures spread over those that are whole."""
    from pipelines.generate.encoding import decode
    from pipelines.generate.plan import spread
    from pipelines.report.sheet import contact_sheet, write_sheet

    names = sorted(path for path in request.images.glob(f"[0-9]*.{request.format}"))
    chosen = [names[position] for position in spread(SHEET_PICTURES, len(names))]
    write_sheet(contact_sheet([decode(path.read_bytes()) for path in chosen]), sheet)


def _summary(request: "SetRequest", result: "SetResult", sheet: Path | None) -> str:
    if result.complete:
        text = (
            f"{result.n} pictures in {request.images} ({result.painted} of them new); "
            f"{result.manifest['acceptance_rate']:.0%} of the drafts were kept"
        )
    else:
        text = (
            f"{result.whole} of {result.n} pictures in {request.images} "
            f"({result.painted} of them new); the other tasks make it complete"
        )
    return text if sheet is None else f"{text}\na sheet of them in {sheet}"


def _document(request: "SetRequest", result: "SetResult", sheet: Path | None) -> dict[str, Any]:
    return {
        "folder": str(request.folder),
        "images": str(request.images),
        "pictures": result.n,
        "whole": result.whole,
        "painted": result.painted,
        "complete": result.complete,
        "acceptance_rate": result.manifest.get("acceptance_rate"),
        "sheet": None if sheet is None else str(sheet),
    }


if __name__ == "__main__":
    main()
