"""`pixmix-gen`: make sets of pictures to mix with, and verify them."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fractals import FAMILIES
from pipelines.cli.options import (
    SHEET_IMAGES,
    Size,
    WeightsPath,
    chosen_task,
    command_options,
    example,
    file_option,
    finite,
    jobs_option,
    one_line_errors,
    progress_bar,
    say,
    seed_option,
    task_options,
)
from pipelines.cli.painting import (
    SHARD_SIZE,
    check_cluster,
    earlier_settings_of,
    find_target,
    jobs_at_once,
    jobs_that_share,
    joined,
    make_set,
    sharded_document,
    sharded_summary,
)
from pipelines.cli.suggestions import SuggestingGroup
from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from featviz import Precision
    from pipelines.generate.painting import Painter

# As in fractals.BASELINES and encoding.ENCODERS, which would take half a second to import for the
# help; a test holds them equal.
BASELINES = ("dead-leaves", "spectrum", "noise")
FORMATS = ("jpg", "png", "webp")
PRECISIONS = ("float32", "bfloat16")

_CONTINUES = "interrupted; the same command continues this set"


@click.group(
    cls=SuggestingGroup,
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
            file_option(
                "--sheet",
                metavar="SHEET.png",
                text=f"Also write a sheet of {SHEET_IMAGES} pictures.",
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
                help="Folder of the set; with --to-shards also s3://, gs:// or az://. The same "
                f"command continues what is there.  [default: mixing-set/{name}, or shards/{name}]",
            ),
            click.option(
                "--n",
                type=click.IntRange(1, 10**8),
                default=pictures,
                show_default=True,
                help="Pictures. A larger n later makes a set of files grow; a smaller one closes "
                "a set that is not complete, with the pictures that are whole.",
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
    type=click.Choice(list(FAMILIES)),
    default="mixed",
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
    address: str | None,
    family: str,
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
    target = find_target(
        "fractals", out, shard_size, sheet, to_shards=to_shards, absolute=address is not None
    )
    check_cluster(address, task_index, num_tasks)
    with one_line_errors(_CONTINUES):
        with joined(address, jobs=jobs) as cluster:
            from pipelines.generate.fractals import FractalPainter, fractal_chunk

            task = (0, 1) if cluster else chosen_task(task_index, num_tasks)
            height, width = size
            painter = FractalPainter(
                seed=seed,
                family=family,
                height=height,
                width=width,
                samples_per_pixel=samples_per_pixel,
            )
            text, document = make_set(
                target,
                painter,
                n=n,
                format=format,
                chunk=fractal_chunk(height, width, samples_per_pixel),
                jobs=jobs_at_once(jobs, cluster),
                task=task,
                cluster=cluster,
            )
        say(text, document, as_json=as_json)


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
    address: str | None,
    kind: str,
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
    target = find_target(
        kind, out, shard_size, sheet, to_shards=to_shards, absolute=address is not None
    )
    check_cluster(address, task_index, num_tasks)
    with one_line_errors(_CONTINUES):
        with joined(address, jobs=jobs) as cluster:
            from pipelines.generate.fractals import BaselinePainter, baseline_chunk

            task = (0, 1) if cluster else chosen_task(task_index, num_tasks)
            height, width = size
            text, document = make_set(
                target,
                BaselinePainter(process=kind, seed=seed, height=height, width=width),
                n=n,
                format=format,
                chunk=baseline_chunk(height, width),
                jobs=jobs_at_once(jobs, cluster),
                task=task,
                cluster=cluster,
            )
        say(text, document, as_json=as_json)


@main.command(
    epilog=example(
        "pixmix-gen featviz --n 4700 --sheet sheet.png",
        "pixmix-gen featviz --n 500 --model resnet50 --layer layer1.2 --layer layer2.3",
        "torchrun --nproc-per-node 4 --no-python -- pixmix-gen featviz --n 4700",
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
    type=WeightsPath(),
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
    target = find_target(
        "featviz", out, shard_size, sheet, to_shards=to_shards, absolute=address is not None
    )
    check_cluster(address, task_index, num_tasks)
    if gpus_per_task is not None and (address is None or device == "cpu"):
        raise click.UsageError(
            "--gpus-per-task is of the GPUs of a cluster; give --ray too, and another --device "
            "than cpu"
        )
    gpus = 0.0 if device == "cpu" else gpus_per_task or 1.0
    with one_line_errors(_CONTINUES):
        with joined(address, jobs=jobs, gpus_per_task=gpus) as cluster:
            from pipelines.generate.featviz import chunk_size, find_device, plan_painter

            task = (0, 1) if cluster else chosen_task(task_index, num_tasks)
            n_jobs = jobs_at_once(jobs, cluster)
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
                batch=batch_size,
                jobs=jobs_that_share(cluster) if cluster else n_jobs,
                earlier=earlier_settings_of(target),
            )
            # Device, precision and batch are decided where the work is done.
            painter = cluster.call(plan) if cluster else plan()
            text, document = make_set(
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
        from pipelines.shards.output import open_output

        result = merge_shards(open_output(place))
        say(sharded_summary(result, closing=True), sharded_document(result), as_json=as_json)
    if not result.complete:
        raise click.exceptions.Exit(1)


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
    type=WeightsPath(),
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
            text = (
                f"{folder}: partial; the command that began it makes it complete, and with a "
                "smaller --n closes it"
            )
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
    try:
        return _painter_of_settings(manifest, folder, weights, model)
    except (KeyError, TypeError, ValueError) as error:
        raise PipelineError(
            f"{folder / 'manifest.json'} is damaged, its settings give no painter of "
            f"{manifest['kind']} ({error!r}); copy it from elsewhere, or remove the folder and "
            "make the set again"
        ) from error


def _painter_of_settings(
    manifest: dict[str, Any], folder: Path, weights: Path | None, model: str | None
) -> "Painter":
    settings = manifest["settings"]
    if manifest["kind"] == "fractals":
        from pipelines.generate.fractals import FractalPainter

        return FractalPainter.from_settings(settings)
    if manifest["kind"] in BASELINES:
        from pipelines.generate.fractals import BaselinePainter

        return BaselinePainter.from_settings(manifest["kind"], settings)
    from pipelines.generate.featviz import KIND, FeatvizPainter

    if manifest["kind"] == KIND:
        return FeatvizPainter.from_settings(settings, weights=weights, model=model)
    raise PipelineError(f"{folder} holds {manifest['kind']}; give a set made by pixmix-gen")


if __name__ == "__main__":
    main()
