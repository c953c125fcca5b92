"""`pixmix-gen`: generate datasets of mixing images, and verify them."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fractals import BASELINE_DESCRIPTIONS, FAMILIES
from pipelines.cli.generating import Output, Site, describe_shards, generate, output_options
from pipelines.cli.help_pages import command_group, example, option
from pipelines.cli.options import (
    MODEL,
    PARALLEL,
    WeightsPath,
    command_options,
    device_option,
    finite,
    one_line_errors,
    progress_bar,
    say,
)
from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from featviz import Precision
    from pipelines.generate.generators import Generator

# A copy of featviz.Precision, whose import would take seconds; mypy compares them.
PRECISIONS = ("float32", "bfloat16")

_OPTIMIZATION = "Optimization"


@command_group(
    "pixmix-gen fractals --n 14000 --contact-sheet sheet.png",
    "pixmix-gen verify mixing-set/fractals",
)
def main() -> None:
    """Generate datasets of mixing images, and verify them."""


def _list_of(about: dict[str, str]) -> str:
    """Return the choices of an option with what they mean, for its help."""
    return "; ".join(f"{name}: {text}" for name, text in about.items())


@main.command(
    epilog=example(
        "pixmix-gen fractals --n 14000 --contact-sheet sheet.png",
        "pixmix-gen fractals --n 14000 --task-index 3 --num-tasks 8",
        "pixmix-gen fractals --n 14000 --to-shards --out s3://bucket/fractals",
    )
)
@output_options(14_000, "fractals")
@option(
    "--family",
    group="Fractals",
    type=click.Choice(list(FAMILIES)),
    default="mixed",
    help=f"Fractal family ({_list_of({name: each.about for name, each in FAMILIES.items()})}).",
)
@option(
    "--samples-per-pixel",
    group="Fractals",
    type=click.FloatRange(0, 1e6, min_open=True),
    callback=finite,
    default=50.0,
    help="Number of chaos game points per pixel. A larger number is smoother and slower.",
)
def fractals(output: Output, *, family: str, samples_per_pixel: float) -> None:
    """Generate a dataset of fractals.

    Image i depends only on its index and on --seed, --family, --size and --samples-per-pixel. The
    dataset is the same, bit for bit, for any number of jobs or tasks and after any interruption.
    The images are free for any use (CC0-1.0).
    """

    def find_generator(_: Site) -> "Generator":
        from pipelines.generate.generators import FractalGenerator

        height, width = output.size
        return FractalGenerator(
            seed=output.seed,
            family=family,
            height=height,
            width=width,
            samples_per_pixel=samples_per_pixel,
        )

    generate(output, find_generator)


@main.command(epilog=example("pixmix-gen baseline --kind dead-leaves --n 14000"))
@output_options(14_000, None)
@option(
    "--kind",
    group="Images",
    type=click.Choice(list(BASELINE_DESCRIPTIONS)),
    required=True,
    help=f"Kind of images ({_list_of(BASELINE_DESCRIPTIONS)}).",
)
def baseline(output: Output, *, kind: str) -> None:
    """Generate simple images as a baseline mixing set.

    Image i depends only on its index and on --kind, --seed and --size. The images are free for any
    use (CC0-1.0).
    """

    def find_generator(_: Site) -> "Generator":
        from pipelines.generate.generators import BaselineGenerator

        height, width = output.size
        return BaselineGenerator(process=kind, seed=output.seed, height=height, width=width)

    generate(output, find_generator)


@main.command(
    epilog=example(
        "pixmix-gen featviz --n 4700 --contact-sheet sheet.png",
        "pixmix-gen featviz --n 500 --model resnet50 --layer layer1.2 --layer layer2.3",
        "torchrun --nproc-per-node 4 --no-python -- pixmix-gen featviz --n 4700",
    )
)
@output_options(4_700, "featviz")
@option(
    "--model",
    group=MODEL,
    default="efficientnet_lite0",
    metavar="NAME",
    help="Network: of torchvision, wrn_40_4 for CIFAR, timm/NAME, or module:function.",
)
@option(
    "--weights",
    group=MODEL,
    type=WeightsPath(),
    show_default="the published weights, which are downloaded if necessary",
    help="State dict of the network: a file, or the output folder of pixmix-train.",
)
@option(
    "--random-weights",
    group=MODEL,
    common=False,
    is_flag=True,
    help="Use the untrained network. Its images are all alike; only useful for tests.",
)
@option(
    "--layer",
    "layers",
    group=MODEL,
    multiple=True,
    metavar="NAME",
    show_default="early and middle blocks",
    help="Layer to visualize; may be repeated.",
)
@option(
    "--steps",
    group=_OPTIMIZATION,
    type=click.IntRange(1, 100_000),
    default=128,
    help="Number of optimization steps. A larger number makes features stronger and is slower.",
)
@option(
    "--precision",
    group=_OPTIMIZATION,
    common=False,
    type=click.Choice(PRECISIONS),
    show_default="that of the existing dataset, else the faster one on this machine",
    help="Precision of the network.",
)
@option(
    "--batch-size",
    group=_OPTIMIZATION,
    common=False,
    type=click.IntRange(1, 4096),
    show_default="that of the existing dataset, else by memory",
    help="Batch size per process.",
)
@device_option(
    "auto, cpu, cuda, cuda:1 or mps. Under torchrun or srun, each process uses one GPU.",
    group=_OPTIMIZATION,
)
@option(
    "--gpus-per-task",
    group=PARALLEL,
    common=False,
    type=click.FloatRange(0, 1, min_open=True),
    show_default="1",
    help="Share of a GPU that each task of the --ray cluster uses. With 0.5, two tasks share a "
    "GPU.",
)
def featviz(
    output: Output,
    *,
    gpus_per_task: float | None,
    model: str,
    weights: Path | None,
    random_weights: bool,
    layers: tuple[str, ...],
    steps: int,
    device: str,
    precision: "Precision | None",
    batch_size: int | None,
) -> None:
    """Generate feature visualizations of a trained network.

    Each image maximizes a channel of a layer or a random direction; they are spread evenly over
    layers and channels. On one CPU model the dataset is the same for any number of jobs or tasks
    and after any interruption; on GPUs two runs differ slightly. The
    default network needs pip install 'pixmix[featviz]'.
    """
    if gpus_per_task is not None and (output.address is None or device == "cpu"):
        raise click.UsageError(
            "--gpus-per-task applies to the GPUs of a Ray cluster; pass --ray, and not --device cpu"
        )

    def find_generator(site: Site) -> "Generator":
        from pipelines.generate.featviz import find_device, plan_generator
        from pipelines.generate.products import earlier_settings

        if not site.cluster and output.jobs is None and find_device(device).type != "cpu":
            # Several processes on one GPU are slower than one.
            site.jobs = 1
        plan = partial(
            plan_generator,
            model=model,
            weights=weights and weights.absolute(),
            random_weights=random_weights,
            layers=layers,
            seed=output.seed,
            size=output.size,
            steps=steps,
            device=device,
            precision=precision,
            batch=batch_size,
            jobs=site.jobs_that_share(),
            earlier=earlier_settings(site.store),
        )
        # Device, precision and batch size depend on the machine that does the work.
        return site.cluster.call(plan) if site.cluster else plan()

    generate(output, find_generator, gpus_per_task=0.0 if device == "cpu" else gpus_per_task or 1.0)


@main.command(
    epilog=example("pixmix-gen merge shards/fractals", "pixmix-gen merge s3://bucket/fractals")
)
@click.argument("dataset", metavar="DIR|URL", help="A dataset of --to-shards.")
@command_options
def merge(*, dataset: str, as_json: bool) -> None:
    """Complete a sharded dataset of several tasks.

    Writes its index and its manifest. The exit code is 0 if the dataset is complete. If shards are
    missing, they are listed, and the exit code is 1.
    """
    with one_line_errors("interrupted; run the same command again to complete the dataset"):
        from pipelines.generate.products import unmerged_shards
        from pipelines.shards.job import merge
        from pipelines.shards.output import open_output

        job = unmerged_shards(open_output(dataset))
        result = merge(job)
        text, document = describe_shards(job, result, complete_now=True)
        say(text, document, as_json=as_json)
    if not result.complete:
        raise click.exceptions.Exit(1)


@main.command(epilog=example("pixmix-gen verify mixing-set/fractals --regenerate 100"))
@click.argument(
    "folder", metavar="DIR", type=click.Path(path_type=Path), help="A dataset of image files."
)
@option(
    "--regenerate",
    type=click.IntRange(0),
    default=100,
    metavar="N",
    help="Number of images to generate again and compare, spread over the dataset.",
)
@option(
    "--weights",
    type=WeightsPath(),
    help="Weights of the network, if feature visualizations were made with --weights.",
)
@option(
    "--model",
    metavar="MODULE:FUNCTION",
    help="Network, if feature visualizations were made with --model module:function. The dataset "
    "names it too, but its code only runs if you pass it.",
)
@command_options
def verify(
    *, folder: Path, regenerate: int, weights: Path | None, model: str | None, as_json: bool
) -> None:
    """Verify a dataset of image files.

    Compares every file with its record, and generates some images again. The exit code is 0 if the
    dataset is complete and each file is as it was written, else 1. Feature visualizations can only
    be generated again on the CPU model they were made on.
    """
    with one_line_errors("interrupted"):
        from pipelines.generate.verify import verify_images

        find_generator = partial(_generator_of, folder=folder, weights=weights, model=model)
        with progress_bar("images") as progress:
            verdict = verify_images(folder, find_generator, sample=regenerate, progress=progress)
        if not verdict.complete:
            text = (
                f"{folder}: incomplete; repeat the command that started it, with a smaller --n to "
                "end it early"
            )
        elif verdict.faults:
            faults = "1 fault" if len(verdict.faults) == 1 else f"{len(verdict.faults)} faults"
            text = f"{folder}: {faults}; {verdict.faults[0]}"
        else:
            text = (
                f"{folder}: good; {verdict.n} images are as they were written, {verdict.sampled} "
                "were generated again and are the same"
            )
        document = {
            "folder": str(folder),
            "good": verdict.good,
            "complete": verdict.complete,
            "images": verdict.n,
            "sampled": verdict.sampled,
            "faults": verdict.faults,
        }
        say(text, document, as_json=as_json)
    if not verdict.good:
        raise click.exceptions.Exit(1)


def _generator_of(
    manifest: dict[str, Any], *, folder: Path, weights: Path | None, model: str | None
) -> "Generator":
    """Return the generator that a manifest describes."""
    settings, kind = manifest["settings"], manifest["kind"]
    try:
        if kind == "fractals":
            from pipelines.generate.generators import FractalGenerator

            return FractalGenerator.from_settings(settings)
        if kind in BASELINE_DESCRIPTIONS:
            from pipelines.generate.generators import BaselineGenerator

            return BaselineGenerator.from_settings(kind, settings)
        from pipelines.generate.featviz import KIND, FeatvizGenerator

        if kind == KIND:
            return FeatvizGenerator.from_settings(settings, weights=weights, model=model)
    except (KeyError, TypeError, ValueError) as error:
        raise PipelineError(
            f"{folder / 'manifest.json'} is damaged: its settings do not describe {kind} "
            f"({error!r}); copy it from a backup, or remove the folder and generate the dataset "
            "again"
        ) from error
    raise PipelineError(f"{folder} is a dataset of kind {kind!r}; use a dataset of pixmix-gen")


if __name__ == "__main__":
    main()
