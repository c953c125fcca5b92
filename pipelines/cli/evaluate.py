"""`pixmix-eval`: metrics of a network besides its accuracy."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.options import (
    LARGEST_SIDE,
    LocalPath,
    WeightsPath,
    command_options,
    example,
    file_option,
    finite,
    one_line_errors,
    progress_bar,
    say,
    seed_option,
)
from pipelines.cli.suggestions import SuggestingGroup
from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from torch import nn

    from pipelines.evaluation.predictions import Evaluation
    from pipelines.evaluation.suites import EvaluationResults
    from pipelines.system.process_group import Processes

# As in evaluation.suites, which would take seconds to import for the help; a test holds them equal.
SUITES = ("clean", "calibration", "c", "c-bar", "p", "adversarial", "ood", "r", "a", "o")


class _RunUnlessNamed(SuggestingGroup):
    """Runs `run` if options come without a command."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Put `run` before the options."""
        if args and args[0].startswith("-") and args[0] not in ("-h", "--help", "--version"):
            args = ["run", *args]
        return super().parse_args(context, args)


@click.group(
    cls=_RunUnlessNamed,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example(
        "pixmix-eval --checkpoint runs/digits/checkpoints/step-00000880.pt --data runs/digits",
        "pixmix-eval make-c --data runs/digits",
    ),
)
@click.version_option(package_name="pixmix", message="%(version)s")
def main() -> None:
    """Measure robustness, consistency, adversaries, calibration and OOD detection.

    Without a command, `pixmix-eval --checkpoint F --data ROOT` is `pixmix-eval run`.

    Supports CIFAR, ImageNet, digits and your own datasets.
    """


def _suites(
    context: click.Context, param: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(dict.fromkeys(part.strip() for part in value.split(",")))
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        raise click.BadParameter(
            f"unknown suite {unknown[0]!r}; use {','.join(SUITES)}", ctx=context, param=param
        )
    return names


def _all_finite(
    context: click.Context, param: click.Parameter, value: tuple[float, float, float] | None
) -> tuple[float, float, float] | None:
    for each in value or ():
        finite(context, param, each)
    return value


_DATA = click.option(
    "--data",
    type=LocalPath(exists=True, file_okay=False),
    required=True,
    help="Folder with the test set and the datasets beside it: CIFAR-10-C, imagenet-r, outliers.",
)


@main.command(
    epilog=example(
        "pixmix-eval --checkpoint runs/digits/checkpoints/step-00000880.pt --data runs/digits",
        "pixmix-eval --checkpoint ours.pt --against theirs.pt --data shards/cifar10 "
        "--plot radar.png",
        "pixmix-eval --checkpoint ours.pt --data imagenet --suite clean,c,r,a,o",
    )
)
@click.option(
    "--checkpoint",
    type=WeightsPath(),
    required=True,
    help="Checkpoint of pixmix-train (or the folder of a run: its best or latest one), of the "
    "PixMix reference implementation, or any other state dict.",
)
@click.option(
    "--against",
    type=WeightsPath(),
    help="A second checkpoint, to compare with the first.",
)
@_DATA
@click.option(
    "--suite",
    "suites",
    callback=_suites,
    metavar="NAMES",
    help=f"Suites to run: {','.join(SUITES)}.  [default: all; r, a and o for ImageNet]",
)
@click.option("--model", metavar="NAME", help="Network, if the checkpoint has no metadata.")
@click.option(
    "--mean",
    type=click.FloatRange(0, 1),
    nargs=3,
    callback=_all_finite,
    metavar="R G B",
    help="Mean of the network's input, for images in 0..1, if its checkpoint has no metadata; a "
    "contradiction is refused. Use 0 0 0 if the network normalizes by itself.  [default: 0.5 0.5 "
    "0.5 for images that are not resized; else of torchvision's weights, or ImageNet's]",
)
@click.option(
    "--std",
    type=click.FloatRange(0, 1, min_open=True),
    nargs=3,
    callback=_all_finite,
    metavar="R G B",
    help="Standard deviation, as --mean; use 1 1 1 if the network normalizes by itself.",
)
@click.option(
    "--image-size",
    type=click.IntRange(1, LARGEST_SIDE),
    help="Side of the network's images in pixels, if its checkpoint has no metadata, as --mean.  "
    "[default: images of up to 64 pixels are not resized; else of torchvision's weights, or 224]",
)
@click.option(
    "--resize",
    type=click.IntRange(1, LARGEST_SIDE),
    help="Shorter side before the centre crop of --image-size.  [default: 8/7 of that, or the same "
    "for images of up to 64 pixels]",
)
@click.option(
    "--epsilon",
    type=click.FloatRange(0, 255, min_open=True),
    callback=finite,
    default=2.0,
    show_default=True,
    help="Largest change by the adversary, in levels of 255.",
)
@click.option(
    "--adversarial-images",
    type=click.IntRange(1),
    help="Number of test images that PGD attacks, spread evenly.  [default: all]",
)
@click.option(
    "--pgd-reference-quirk",
    is_flag=True,
    help="Let the adversary reach up to twice epsilon, as the released code does.",
)
@click.option(
    "--tenth-perturbation",
    type=click.Choice(["spatter", "snow"]),
    default="spatter",
    show_default=True,
    help="Tenth perturbation of CIFAR-P: its authors' script scores spatter, their generator lists "
    "snow.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Batch size per process.  [default: 500 for CIFAR's size, 100 for larger images]",
)
@click.option(
    "--device", default="auto", show_default=True, help="Device: auto, cpu, cuda, cuda:1."
)
@seed_option("Seed of the adversary's starts and of the synthetic OOD datasets.")
@file_option("--plot", metavar="RADAR.png", text="Also draw a radar plot.")
@command_options
def run(
    *,
    checkpoint: Path,
    against: Path | None,
    data: Path,
    suites: tuple[str, ...] | None,
    model: str | None,
    device: str,
    plot: Path | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Evaluate a network on the datasets under DATA.

    A suite without its data is reported in one line, and the others still run. If --suite requested
    it, the command ends with exit code 1, and before a network is loaded if no requested suite has
    its data. The preprocessing is printed on stderr.
    """
    overrides = _overrides(options)
    begun = time.monotonic()
    with one_line_errors("interrupted; nothing was written"):
        from pipelines.evaluation.predictions import (
            describe_preprocessing,
            preprocessing_json,
            with_overrides,
        )
        from pipelines.evaluation.suites import evaluation_provenance, missing_inputs
        from pipelines.models.checkpoints import open_checkpoint
        from pipelines.report.evaluations import VERSION, overlaps_of, radar, table
        from pipelines.report.figures import check_plotting, write_image
        from pipelines.report.page import names_of
        from pipelines.system.process_group import join_processes

        if plot is not None:
            # A missing library is reported before the long work.
            check_plotting()
        paths = [checkpoint] if against is None else [checkpoint, against]
        with join_processes(device) as processes:
            # Missing data are reported before a network is loaded.
            absent = missing_inputs(data, suites)
            if suites and absent.keys() == set(suites):
                raise PipelineError("; ".join(_by_reason(absent)))
            if processes.first:
                _tell(_by_reason(absent))
            # All are opened before the first is evaluated, which may take long.
            opened = [open_checkpoint(path, model) for path in paths]
            metadata = with_overrides(
                {str(path): each for path, (_, each) in zip(paths, opened, strict=True)}, overrides
            )
            evaluations = [
                _evaluation(path, module, metadata[str(path)], data, processes, options)
                for path, (module, _) in zip(paths, opened, strict=True)
            ]
            names = names_of(paths)
            preprocessing = {
                name: preprocessing_json(evaluation, metadata[str(path)])
                for name, path, evaluation in zip(names, paths, evaluations, strict=True)
            }
            notices = evaluations[0].data.notices
            if processes.first:
                # A wrong guess is seen before the long work.
                _tell(
                    f"{name}: {describe_preprocessing(each)}"
                    for name, each in preprocessing.items()
                )
                _tell(notices.take())
            found = {
                name: _evaluate(evaluation, suites)
                for name, evaluation in zip(names, evaluations, strict=True)
            }
            if not processes.first:
                return
            origin = evaluation_provenance(
                dict(zip(names, paths, strict=True)),
                evaluations[0].data,
                world_size=processes.world.size,
                seconds=time.monotonic() - begun,
            )
        values = {name: each.values for name, each in found.items()}
        missing = next(iter(found.values())).missing
        # Each of two networks may fail on the same dataset.
        failed = {suite: why for each in found.values() for suite, why in each.failed.items()}
        # Suites that were not requested by name may lack their data, but not all of them.
        unmeasured = {**missing, **failed} if suites or not any(values.values()) else failed
        document: dict[str, Any] = {
            "version": VERSION,
            "data": str(data),
            "test": evaluations[0].data.name,
            "checkpoints": {name: str(path) for name, path in zip(names, paths, strict=True)},
            "provenance": origin,
            "preprocessing": preprocessing,
            "networks": {name: {**each} for name, each in values.items()},
            "missing": dict(missing),
            "failed": failed,
        }
        ignored = notices.ignored_line()
        _tell([*notices.take(), *overlaps_of(values), *([ignored] if ignored else [])])
        # Printed before what may fail, so that no result is lost.
        say(table(values, missing), document, as_json=as_json)
        if plot is not None:
            write_image(radar(values), plot)
        if unmeasured:
            raise PipelineError("; ".join(_by_reason(unmeasured)))


def _tell(lines: Iterable[str]) -> None:
    """Write lines on stderr."""
    for line in lines:
        click.echo(line, err=True)


def _overrides(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options on preprocessing, by their keys in the metadata of checkpoints."""
    side, resize = options["image_size"], options["resize"]
    if resize is not None and side is None:
        raise click.UsageError(f"--resize {resize} needs --image-size; set both")
    if resize is not None and resize < side:
        raise click.UsageError(
            f"--resize {resize} is below --image-size {side}; use --resize {side} or more"
        )
    overrides = {
        "mean": options["mean"] and list(options["mean"]),
        "std": options["std"] and list(options["std"]),
        "image_size": side,
        "evaluation_resize": resize,
    }
    return {name: value for name, value in overrides.items() if value is not None}


def _by_reason(unmeasured: Mapping[str, str]) -> list[str]:
    """Return a clause for each reason, with the suites that could not be measured."""
    suites: dict[str, list[str]] = {}
    for suite, why in unmeasured.items():
        suites.setdefault(why, []).append(suite)
    return [f"{', '.join(each)} could not be measured: {why}" for why, each in suites.items()]


def _evaluation(
    path: Path,
    module: "nn.Module",
    metadata: dict[str, Any],
    root: Path,
    processes: "Processes",
    options: dict[str, Any],
) -> "Evaluation":
    import torch

    from pipelines.evaluation.corruptions import overlapping_operations
    from pipelines.evaluation.data import normalization, open_evaluation_data
    from pipelines.evaluation.predictions import Classifier, Evaluation

    try:
        data = open_evaluation_data(root, metadata)
    except PipelineError as error:
        raise PipelineError(f"{path}: {error}") from error
    mean, std = normalization(metadata, data)
    classifier = Classifier(
        module=module.to(processes.device).to(memory_format=torch.channels_last),
        mean=mean,
        std=std,
        processes=processes,
        batch_size=options["batch_size"] or (500 if data.transform is None else 100),
    )
    return Evaluation(
        classifier=classifier,
        data=data,
        overlap=overlapping_operations(metadata),
        seed=options["seed"],
        epsilon=options["epsilon"],
        adversarial_images=options["adversarial_images"],
        pgd_reference_quirk=options["pgd_reference_quirk"],
        tenth_perturbation=options["tenth_perturbation"],
    )


def _evaluate(evaluation: "Evaluation", suites: tuple[str, ...] | None) -> "EvaluationResults":
    from pipelines.evaluation.suites import evaluate

    with progress_bar("images") as show:
        return evaluate(
            evaluation, suites, progress=lambda suite, done, total: show(done, total, suite)
        )


@main.command(
    name="make-c",
    epilog=example("pixmix-eval make-c --data shards/cifar10 --n 2000"),
)
@_DATA
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Parent folder of the set.  [default: DATA, where pixmix-eval run finds it]",
)
@click.option(
    "--checkpoint",
    type=WeightsPath(),
    help="Checkpoint of a network whose image size the images get.  [default: unchanged]",
)
@click.option(
    "--n", type=click.IntRange(1), help="Number of images, from the first on.  [default: all]"
)
@seed_option("Seed of the corruptions.")
@command_options
def make_c(
    *,
    data: Path,
    out: Path | None,
    checkpoint: Path | None,
    n: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Make a set like CIFAR-10-C of test images, with the constants of ImageNet-C.

    The set is written to a folder such as DIGITS-C-made. It compares networks with each other, and
    not with published results, and every table says so. Needs the extra `corruptions`. The same
    command resumes a stopped run.
    """
    with one_line_errors("interrupted; run the same command again to resume"):
        from pipelines.evaluation.data import open_evaluation_data
        from pipelines.evaluation.make_corrupted import make_corrupted
        from pipelines.models.checkpoints import read_metadata

        found = open_evaluation_data(data, {} if checkpoint is None else read_metadata(checkpoint))
        with progress_bar("images") as progress:
            folder = make_corrupted(found, out or found.root, n=n, seed=seed, progress=progress)
        ignored = found.notices.ignored_line()
        _tell([*found.notices.take(), *([ignored] if ignored else [])])
        say(f"corrupted images in {folder}", {"folder": str(folder)}, as_json=as_json)


if __name__ == "__main__":
    main()
