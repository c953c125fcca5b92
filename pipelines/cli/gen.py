"""`pixmix-gen`: make sets of pictures to mix with, and verify them."""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.options import (
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
    from collections.abc import Callable, Iterator

    from featviz import Precision
    from fractals import Family
    from pipelines.generate.painted_shards import ShardedResult
    from pipelines.generate.painting import Painter
    from pipelines.generate.ray_runs import RayCluster
    from pipelines.generate.sets import SetRequest, SetResult
    from pipelines.shards.workers import Run

# As in fractals.FAMILIES and encoding.ENCODERS, which would take half a second to import for the
# help; a test holds them equal.
FAMILIES = ("mixed", "flame", "ifs", "escape")
FORMATS = ("jpg", "png", "webp")
PRECISIONS = ("float32", "bfloat16")

_CONTINUES = "interrupted; the same command continues this set"

PREVIEW_PICTURES = 64
SHARD_SIZE = 1000

_ALL_OF_A_CLUSTER = 10**9
"""Tasks at once: as many as it can run."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
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
                "--preview",
                type=click.Path(path_type=Path, dir_okay=False),
                callback=picture_path,
                metavar="SHEET.png",
                help=f"Also write a sheet of {PREVIEW_PICTURES} pictures.",
            ),
            click.option(
                "--ray",
                "address",
                is_flag=False,
                flag_value="",
                metavar="[ADDRESS]",
                help="Paint as tasks of a Ray cluster: at an address as ray start prints it, that "
                "of RAY_ADDRESS or of this machine, or else one that is started here. --jobs is "
                "then the tasks at once.  [default: no cluster; all tasks that it can run]",
            ),
            jobs_option,
            click.option(
                "--format",
                type=click.Choice(FORMATS),
                default=FORMATS[0],
                show_default=True,
                help="jpg has quality 95 and 4:4:4; png and webp are lossless.",
            ),
            seed_option,
            click.option(
                "--size",
                type=Size(),
                default="256",
                show_default=True,
                metavar="PIXELS|WIDTHxHEIGHT",
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
        "pixmix-gen fractals --n 14000 --preview sheet.png",
        "pixmix-gen fractals --n 14000 --task-index 3 --num-tasks 8",
        "pixmix-gen fractals --n 1000000 --to-shards --out s3://bucket/fractals",
    )
)
@_set_options(14_000, "fractals")
@click.option("--family", type=click.Choice(FAMILIES), default=FAMILIES[0], show_default=True)
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
    address: str | None,
    family: "Family",
    size: tuple[int, int],
    samples_per_pixel: float,
    seed: int,
    format: str,
    jobs: int | None,
    preview: Path | None,
    task_index: int | None,
    num_tasks: int | None,
    as_json: bool,
) -> None:
    """Make a set of fractals.

    Picture i depends on seed, family, size and samples alone: any number of jobs or tasks and any
    interruption give the same set, bit for bit. The pictures are free for any use (CC0-1.0).
    """
    target = _target(
        "fractals", out, shard_size, preview, to_shards=to_shards, absolute=address is not None
    )
    _check_cluster(address, task_index, num_tasks)
    with one_line_errors(_CONTINUES):
        with _joined(address, jobs=jobs) as cluster:
            from pipelines.generate.fractals import FractalPainter, chunk_size

            task = (0, 1) if cluster else chosen_task(task_index, num_tasks)
            height, width = size
            painter = FractalPainter(
                seed=seed,
                family=family,
                height=height,
                width=width,
                samples_per_pixel=samples_per_pixel,
            )
            text, document = _make(
                target,
                painter,
                n=n,
                format=format,
                chunk=chunk_size(height, width, samples_per_pixel),
                jobs=_n_jobs(jobs, cluster),
                task=task,
                cluster=cluster,
            )
        say(text, document, as_json=as_json)


@main.command(
    epilog=example(
        "pixmix-gen featviz --n 4700 --preview sheet.png",
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
    "--batch",
    type=click.IntRange(1, 4096),
    help="Pictures at once in a process.  [default: that of the set so far, or by memory]",
)
@click.option(
    "--gpus-per-task",
    type=click.FloatRange(0, 1, min_open=True),
    help="Of a GPU of the cluster that --ray names; 0.5 lets two tasks share it.  [default: 1]",
)
@task_options
@command_options
def featviz(
    *,
    gpus_per_task: float | None,
    n: int,
    out: str | None,
    to_shards: bool,
    shard_size: int | None,
    address: str | None,
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
    batch: int | None,
    jobs: int | None,
    preview: Path | None,
    task_index: int | None,
    num_tasks: int | None,
    as_json: bool,
) -> None:
    """Make a set of feature visualizations: pictures that excite parts of a trained network.

    Pictures are spread evenly over layers and their channels, then over random directions. On one
    kind of machine any interruption, and any number of jobs or tasks, give the same set. The
    default network is on the disk after `pip install 'pixmix[featviz]'`.
    """
    target = _target(
        "featviz", out, shard_size, preview, to_shards=to_shards, absolute=address is not None
    )
    _check_cluster(address, task_index, num_tasks, gpus_per_task)
    gpus = 0.0 if device == "cpu" else gpus_per_task or 1.0
    with one_line_errors(_CONTINUES):
        with _joined(address, jobs=jobs, gpus_per_task=gpus) as cluster:
            from pipelines.generate.featviz import chunk_size, find_device, plan_painter

            task = (0, 1) if cluster else chosen_task(task_index, num_tasks)
            n_jobs = _n_jobs(jobs, cluster)
            if not cluster and jobs is None and find_device(device).type != "cpu":
                # Processes share a CPU well, and a GPU badly.
                n_jobs = 1
            plan = partial(
                plan_painter,
                model=model,
                weights=weights and weights.absolute(),
                allow_random=allow_random,
                layers=layers,
                seed=seed,
                size=size,
                steps=steps,
                device=device,
                precision=precision,
                batch=batch,
                jobs=_n_sharing(cluster) if cluster else n_jobs,
                earlier=_settings_so_far(target),
            )
            # Device, precision and batch are decided where the work is done.
            painter = cluster.call(plan) if cluster else plan()
            text, document = _make(
                target,
                painter,
                n=n,
                format=format,
                chunk=chunk_size(painter),
                jobs=n_jobs,
                task=task,
                cluster=cluster,
            )
        say(text, document, as_json=as_json)


@dataclass(frozen=True, kw_only=True)
class _Target:
    """Where a set goes. shard_size: None for files of pictures."""

    name: str
    out: str
    shard_size: int | None
    preview: Path | None


def _target(
    name: str,
    out: str | None,
    shard_size: int | None,
    preview: Path | None,
    *,
    to_shards: bool,
    absolute: bool,
) -> _Target:
    """Return where a set goes.

    absolute: whether a folder is to be named so that other processes find it, too.

    Raises:
        click.UsageError: if the options do not go together.
    """
    from pipelines.shards.connections import is_remote, shown
    from pipelines.shards.remote import local_path

    if not to_shards:
        if shard_size is not None:
            raise click.UsageError("--shard-size is of shards; give --to-shards too")
        out = out or f"mixing-set/{name}"
        if is_remote(out):
            raise click.UsageError(
                f"--out {shown(out)} is an address, to which pictures go in shards; give "
                "--to-shards too, or a folder"
            )
        _check_preview(preview, Path(out))
        return _Target(
            name=name,
            out=str(Path(out).absolute()) if absolute else out,
            shard_size=None,
            preview=preview,
        )
    if preview is not None:
        raise click.UsageError(
            "--preview draws files of pictures; leave it out with --to-shards, and draw the shards "
            f"afterwards: pixmix-show set DIR --sheet {preview}"
        )
    out = out or f"shards/{name}"
    if absolute and not is_remote(out):
        out = str(local_path(out).absolute())
    return _Target(name=name, out=out, shard_size=shard_size or SHARD_SIZE, preview=None)


def _check_cluster(
    address: str | None,
    task_index: int | None,
    num_tasks: int | None,
    gpus_per_task: float | None = None,
) -> None:
    """Refuse options that a cluster of Ray has no use for, or that are of it alone.

    Raises:
        click.UsageError: if there are such.
    """
    if address is None and gpus_per_task is not None:
        raise click.UsageError("--gpus-per-task is of a cluster; give --ray too")
    if address is not None and not (task_index is None and num_tasks is None):
        raise click.UsageError(
            "--ray shares the work among machines itself; leave out --task-index and --num-tasks"
        )


@contextmanager
def _joined(
    address: str | None, *, jobs: int | None, gpus_per_task: float = 0.0
) -> "Iterator[RayCluster | None]":
    """Join the cluster of --ray, if that is given."""
    if address is None:
        yield None
        return
    from pipelines.generate.ray_runs import joined_cluster

    with joined_cluster(address or None, gpus_per_task=gpus_per_task, jobs=jobs) as cluster:
        yield cluster


def _n_jobs(jobs: int | None, cluster: "RayCluster | None") -> int:
    from pipelines.shards.workers import available_cores

    return jobs or (available_cores() if cluster is None else _ALL_OF_A_CLUSTER)


def _n_sharing(cluster: "RayCluster") -> int:
    """Return how many tasks share the memory of a machine, or of a GPU."""
    from pipelines.shards.workers import available_cores

    return max(1, int(1 / cluster.num_gpus)) if cluster.num_gpus else available_cores()


def _settings_so_far(target: _Target) -> dict[str, Any]:
    from pipelines.generate.painted_shards import settings_so_far
    from pipelines.generate.sets import earlier_settings
    from pipelines.shards.places import open_place

    if target.shard_size is None:
        return earlier_settings(Path(target.out))
    return settings_so_far(open_place(target.out))


def _run_on(
    cluster: "RayCluster | None", painter: "Painter", format: str, folder: Path | None
) -> "Run":
    """Return how chunks are run: by processes here, or as tasks of a cluster.

    folder: that the pictures go to; None if it is a store.
    """
    from pipelines.shards.workers import run_chunks

    if cluster is None:
        return run_chunks
    from pipelines.generate.ray_runs import versions_here

    return cluster.runner(partial(versions_here, painter, format), folder)


def _make(
    target: _Target,
    painter: "Painter",
    *,
    n: int,
    format: str,
    chunk: int,
    jobs: int,
    task: tuple[int, int],
    cluster: "RayCluster | None",
) -> tuple[str, dict[str, Any]]:
    """Make the set and show it; return what there is to say of it, as text and for machines."""
    task_index, num_tasks = task
    if target.shard_size is not None:
        from pipelines.generate.painted_shards import ShardedRequest, paint_set
        from pipelines.shards.places import Folder, open_place

        place = open_place(target.out)
        sharded = ShardedRequest(
            place=place,
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
        folder = place.path if isinstance(place, Folder) else None
        run = _run_on(cluster, painter, format, folder)
        with progress_bar("pictures") as progress:
            made = paint_set(sharded, run=run, progress=progress)
        return _sharded_summary(made), _sharded_document(made)
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
    run = _run_on(cluster, painter, format, request.folder)
    with progress_bar("pictures") as progress:
        result = generate_set(request, run=run, progress=progress)
    if target.preview is not None:
        _write_preview(target.preview, request)
    preview = target.preview
    return _summary(request, result, preview), _document(request, result, preview)


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
    from pipelines.generate.featviz import KIND, FeatvizPainter

    if manifest["kind"] == KIND:
        return FeatvizPainter.from_settings(settings, weights=weights, model=model)
    raise PipelineError(f"{folder} holds {manifest['kind']}; give a set made by pixmix-gen")


def _check_preview(preview: Path | None, out: Path) -> None:
    if preview is not None and preview.resolve().is_relative_to(out.resolve()):
        raise click.BadParameter(
            f"{preview} lies inside the set, where it would be taken for one of its pictures; "
            "put it elsewhere",
            param_hint="'--preview'",
        )


def _write_preview(preview: Path, request: "SetRequest") -> None:
    """Write a contact sheet of pictures spread over those that are whole."""
    from pipelines.generate.encoding import decode
    from pipelines.generate.plan import spread
    from pipelines.report.sheet import contact_sheet, write_sheet

    names = sorted(path for path in request.images.glob(f"[0-9]*.{request.format}"))
    chosen = [names[position] for position in spread(PREVIEW_PICTURES, len(names))]
    write_sheet(contact_sheet([decode(path.read_bytes()) for path in chosen]), preview)


def _summary(request: "SetRequest", result: "SetResult", preview: Path | None) -> str:
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
    return text if preview is None else f"{text}\na sheet of them in {preview}"


def _document(request: "SetRequest", result: "SetResult", preview: Path | None) -> dict[str, Any]:
    return {
        "folder": str(request.folder),
        "images": str(request.images),
        "pictures": result.n,
        "whole": result.whole,
        "painted": result.painted,
        "complete": result.complete,
        "acceptance_rate": result.manifest.get("acceptance_rate"),
        "preview": None if preview is None else str(preview),
    }


if __name__ == "__main__":
    main()
