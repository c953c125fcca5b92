"""`pixmix-eval`: robustness, calibration and OOD detection of trained networks."""

import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.help_pages import Group, command_group, example, option
from pipelines.cli.options import (
    CACHE_OPTIONS,
    DATA,
    LARGEST_SIDE,
    MODEL,
    LocalPath,
    PathOrUrl,
    WeightsPath,
    command_options,
    device_option,
    download_timeout_option,
    file_option,
    finite,
    in_order,
    one_line_errors,
    progress_bar,
    say,
    seed_option,
)
from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from torch import nn

    from pipelines.evaluation.predictions import Evaluation
    from pipelines.evaluation.suites import EvaluationResults
    from pipelines.shards.remote import RemoteShards
    from pipelines.system.process_group import Processes

# A copy of evaluation.suites.SUITES, whose import would take seconds; a test compares them.
SUITES = ("clean", "calibration", "c", "c-bar", "p", "adversarial", "ood", "r", "a", "o")


class _RunByDefault(Group):
    """A group that runs `run` if options come without a command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `run` before the options."""
        if args and args[0].startswith("-") and args[0] not in ("-h", "--help", "--version"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@command_group(
    "pixmix-eval --checkpoint runs/digits --data runs/digits",
    "pixmix-eval make-c --data runs/digits",
    cls=_RunByDefault,
)
def main() -> None:
    """Evaluate the robustness, calibration and OOD detection of trained networks.

    `pixmix-eval --checkpoint FILE --data DIR` is short for `pixmix-eval run`. Supports CIFAR,
    ImageNet, digits and your own datasets.
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


_data_option = partial(option, "--data", group=DATA, required=True)
_FOLDER_HELP = (
    "Folder that contains the test set (test, val or validation) and the benchmark datasets, "
    "such as CIFAR-10-C, imagenet-r or outliers"
)

_ATTACK, _SUITES = "Adversarial attack", "Suites"


@main.command(
    epilog=example(
        "pixmix-eval --checkpoint runs/digits --data runs/digits",
        "pixmix-eval --checkpoint ours.pt --against theirs.pt --data shards/cifar10 "
        "--plot radar.png",
        "pixmix-eval --checkpoint ours.pt --data imagenet --suite clean,c,r,a,o",
        "pixmix-eval --checkpoint ours.pt --data s3://bucket/imagenet --suite clean,calibration",
    )
)
@option(
    "--checkpoint",
    group=MODEL,
    type=WeightsPath(),
    required=True,
    help="Checkpoint of pixmix-train, the output folder of a run (its best or else its latest "
    "checkpoint), a checkpoint of the PixMix authors' code, or any other state dict.",
)
@option(
    "--against",
    group=MODEL,
    type=WeightsPath(),
    help="A second checkpoint, to compare with the first. --model applies to both.",
)
@_data_option(type=PathOrUrl(), help=f"{_FOLDER_HELP}; or the URL of a test set of shards alone.")
@option(
    "--suite",
    "suites",
    group=_SUITES,
    callback=_suites,
    metavar="NAMES",
    show_default="all; r, a and o only for ImageNet",
    help=f"Test suites to run, separated by commas: {', '.join(SUITES)}.",
)
@option(
    "--model",
    group=MODEL,
    metavar="NAME",
    help="Network, if the checkpoint does not name it: resnet50, wrn_40_4, timm/NAME or "
    "module:function.",
)
@option(
    "--mean",
    group=MODEL,
    common=False,
    type=click.FloatRange(0, 1),
    nargs=3,
    callback=_all_finite,
    metavar="R G B",
    show_default="0.5 0.5 0.5 for small images, else that of the torchvision weights or ImageNet's",
    help="Mean for input normalization of images in [0, 1], if the checkpoint has no preprocessing "
    "metadata. Use 0 0 0 if the network normalizes its input itself.",
)
@option(
    "--std",
    group=MODEL,
    common=False,
    type=click.FloatRange(0, 1, min_open=True),
    nargs=3,
    callback=_all_finite,
    metavar="R G B",
    show_default="like --mean",
    help="Standard deviation for input normalization. Use 1 1 1 if the network normalizes its "
    "input itself.",
)
@option(
    "--image-size",
    group=MODEL,
    common=False,
    type=click.IntRange(1, LARGEST_SIDE),
    show_default="no resizing up to 64 pixels, else that of the torchvision weights or 224",
    help="Input size of the network in pixels, if the checkpoint has no preprocessing metadata.",
)
@option(
    "--resize",
    group=MODEL,
    common=False,
    type=click.IntRange(1, LARGEST_SIDE),
    show_default="8/7 of --image-size, or --image-size for images up to 64 pixels",
    help="Resize the shorter side to this many pixels before the center crop of --image-size.",
)
@option(
    "--epsilon",
    group=_ATTACK,
    common=False,
    type=click.FloatRange(0, 255, min_open=True),
    callback=finite,
    default=2.0,
    help="Maximum perturbation (L-infinity) by the PGD attack, in units of 1/255. The attack makes "
    "20 steps of a quarter of it from a random start.",
)
@option(
    "--adversarial-images",
    group=_ATTACK,
    common=False,
    type=click.IntRange(1),
    metavar="N",
    show_default="all",
    help="Number of test images to attack, spread evenly. An image costs 20 forward and backward "
    "passes, so all of CIFAR-10 takes hours on a CPU.",
)
@option(
    "--pgd-reference-quirk",
    group=_ATTACK,
    common=False,
    is_flag=True,
    help="Let the perturbation reach up to twice epsilon, as the PixMix authors' code does.",
)
@option(
    "--tenth-perturbation",
    group=_SUITES,
    common=False,
    type=click.Choice(["spatter", "snow"]),
    default="spatter",
    help="Tenth perturbation of CIFAR-P. The scoring script of its authors uses spatter, their "
    "generator lists snow.",
)
@option(
    "--batch-size",
    group=DATA,
    type=click.IntRange(1),
    show_default="500 for small images, 100 for larger ones",
    help="Batch size per process.",
)
@device_option("auto, cpu, cuda or cuda:1.", group=MODEL)
@seed_option(
    "Random seed of the starting points of attacks and of synthetic OOD datasets.",
    group=_SUITES,
    common=False,
)
@in_order(*CACHE_OPTIONS, download_timeout_option)
@file_option(
    "--plot",
    metavar="RADAR.png",
    text="Also draw a radar plot of the results. Needs pip install 'pixmix[viz]'.",
)
@command_options
def run(
    *,
    checkpoint: Path,
    against: Path | None,
    data: Path | str,
    suites: tuple[str, ...] | None,
    model: str | None,
    device: str,
    plot: Path | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Evaluate a network on the datasets in DATA.

    Suites whose data are missing are reported, and the others still run. If --suite names such a
    suite, the exit code is 1. The preprocessing that is used is printed on stderr.
    """
    overrides = _overrides(options)
    started = time.monotonic()
    with one_line_errors("interrupted; nothing was written"):
        from pipelines.evaluation.predictions import (
            describe_preprocessing,
            preprocessing_json,
            with_overrides,
        )
        from pipelines.evaluation.suites import evaluation_provenance, missing_inputs
        from pipelines.models.checkpoints import open_checkpoint
        from pipelines.report.evaluations import VERSION, overlaps_of, radar, table
        from pipelines.report.page import check_plotting, short_names, write_image
        from pipelines.system.objects import shown
        from pipelines.system.process_group import join_processes

        if plot is not None:
            # A missing library is reported before the long work.
            check_plotting()
        paths = [checkpoint] if against is None else [checkpoint, against]
        with join_processes(device) as processes:
            # Missing data are reported before a network is loaded.
            with processes.together():
                root = _open_data(data, options)
            absent = missing_inputs(root, suites)
            if suites and absent.keys() == set(suites):
                raise PipelineError("; ".join(_by_reason(absent)))
            if processes.first:
                _print_lines(_by_reason(absent))
            # Both networks are opened before the first is evaluated, which may take long.
            opened = [open_checkpoint(path, model) for path in paths]
            metadata = with_overrides(
                {str(path): each for path, (_, each) in zip(paths, opened, strict=True)}, overrides
            )
            evaluations = [
                _evaluation(path, module, metadata[str(path)], root, processes, options)
                for path, (module, _) in zip(paths, opened, strict=True)
            ]
            names = short_names(paths)
            preprocessing = {
                name: preprocessing_json(evaluation, metadata[str(path)])
                for name, path, evaluation in zip(names, paths, evaluations, strict=True)
            }
            notices = evaluations[0].data.notices
            if processes.first:
                # A wrong guess can be noticed before the long work.
                _print_lines(
                    f"{name}: {describe_preprocessing(each)}"
                    for name, each in preprocessing.items()
                )
                _print_lines(notices.take())
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
                seconds=time.monotonic() - started,
            )
        values = {name: each.values for name, each in found.items()}
        missing = next(iter(found.values())).missing
        # Both networks may fail on the same dataset.
        failed = {suite: why for each in found.values() for suite, why in each.failed.items()}
        # Suites that --suite does not name may lack their data, but not all of them.
        unmeasured = {**missing, **failed} if suites or not any(values.values()) else failed
        document: dict[str, Any] = {
            "version": VERSION,
            "data": shown(data) if isinstance(data, str) else str(data),
            "test": evaluations[0].data.name,
            "checkpoints": {name: str(path) for name, path in zip(names, paths, strict=True)},
            "provenance": origin,
            "preprocessing": preprocessing,
            "networks": {name: {**each} for name, each in values.items()},
            "missing": dict(missing),
            "failed": failed,
        }
        ignored = notices.ignored_line()
        _print_lines([*notices.take(), *overlaps_of(values), *([ignored] if ignored else [])])
        # Printed before what may fail, so that no result is lost.
        say(table(values, missing), document, as_json=as_json)
        if plot is not None:
            write_image(radar(values), plot)
        if unmeasured:
            raise PipelineError("; ".join(_by_reason(unmeasured)))


def _print_lines(lines: Iterable[str]) -> None:
    """Print lines on stderr."""
    for line in lines:
        click.echo(line, err=True)


def _overrides(options: dict[str, Any]) -> dict[str, Any]:
    """Return the preprocessing options that were passed, by their keys in checkpoint metadata."""
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
    """Return one clause for each reason, with the suites that could not be measured."""
    suites: dict[str, list[str]] = {}
    for suite, why in unmeasured.items():
        suites.setdefault(why, []).append(suite)
    return [f"{', '.join(each)} could not be measured: {why}" for why, each in suites.items()]


def _open_data(data: Path | str, options: dict[str, Any]) -> "Path | RemoteShards":
    """Return a local folder, or open the test set at a URL."""
    from pipelines.evaluation.data import open_remote_test_set
    from pipelines.shards.remote import Remote
    from pipelines.system.objects import RemoteAccess, is_remote, local_path

    if isinstance(data, Path):
        return data
    if not is_remote(data):
        return local_path(data)
    access = RemoteAccess(download_timeout_s=options["download_timeout"])
    return open_remote_test_set(
        data,
        cache_dir=options["cache_dir"],
        remote=Remote(limit_bytes=options["cache_limit"], access=access),
    )


def _evaluation(
    path: Path,
    module: "nn.Module",
    metadata: dict[str, Any],
    root: "Path | RemoteShards",
    processes: "Processes",
    options: dict[str, Any],
) -> "Evaluation":
    import torch

    from pipelines.evaluation.corruptions import overlapping_operations
    from pipelines.evaluation.data import normalization, open_evaluation_data
    from pipelines.evaluation.predictions import Classifier, Evaluation

    try:
        data = open_evaluation_data(root, metadata, cache_dir=options["cache_dir"])
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
@_data_option(type=LocalPath(exists=True, file_okay=False), help=f"{_FOLDER_HELP}.")
@option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    show_default="DATA, where pixmix-eval run looks for it",
    help="Parent folder of the new dataset.",
)
@option(
    "--checkpoint",
    type=WeightsPath(),
    show_default="original size",
    help="Resize the images as the preprocessing of this checkpoint does.",
)
@option(
    "--n",
    type=click.IntRange(1),
    show_default="all",
    help="Number of test images, from the first on.",
)
@seed_option("Random seed of the corruptions.")
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
    """Generate a corrupted copy of a test set, like CIFAR-10-C.

    Uses the corruptions and severities of ImageNet-C. The folder is named like DIGITS-C-made.
    Results on it can be compared between networks, but not with published results. Needs the extra
    corruptions. Run the same command again to resume.
    """
    with one_line_errors("interrupted; run the same command again to resume"):
        from pipelines.evaluation.data import open_evaluation_data
        from pipelines.evaluation.make_corrupted import make_corrupted
        from pipelines.models.checkpoints import read_metadata

        found = open_evaluation_data(data, {} if checkpoint is None else read_metadata(checkpoint))
        with progress_bar("images") as progress:
            folder = make_corrupted(
                found, out or found.root or data, n=n, seed=seed, progress=progress
            )
        ignored = found.notices.ignored_line()
        _print_lines([*found.notices.take(), *([ignored] if ignored else [])])
        say(f"corrupted images in {folder}", {"folder": str(folder)}, as_json=as_json)


if __name__ == "__main__":
    main()
