"""`pixmix-eval`: what a network is worth besides its accuracy."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.options import (
    LocalPath,
    command_options,
    example,
    finite,
    one_line_errors,
    picture_path,
    progress_bar,
    say,
    seed_option,
)
from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from pipelines.evaluation.request import Evaluation
    from pipelines.evaluation.suites import Findings
    from pipelines.loading.processes import Processes

# As in evaluation.suites, which would take seconds to import for the help; a test holds them equal.
SUITES = ("clean", "calibration", "c", "c-bar", "p", "adversarial", "anomaly", "r", "a", "o")


class _RunUnlessNamed(click.Group):
    """Takes options without a command as those of `run`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Put `run` before them."""
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
    """Measure robustness, consistency, adversaries, calibration and anomaly detection.

    Without a command, `pixmix-eval --checkpoint F --data ROOT` is `pixmix-eval run`.

    For CIFAR, ImageNet, digits and sets of your own.
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
            f"{unknown[0]!r} is no suite; give of {','.join(SUITES)}", ctx=context, param=param
        )
    return names


_DATA = click.option(
    "--data",
    type=LocalPath(exists=True, file_okay=False),
    required=True,
    help="Folder with the test set and what lies beside it: CIFAR-10-C, imagenet-r, outliers.",
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
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="Of pixmix-train, of the PixMix reference, or a state dict.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A second one, to be shown beside it.",
)
@_DATA
@click.option(
    "--suite",
    "suites",
    callback=_suites,
    metavar="NAMES",
    help=f"What to measure, of {','.join(SUITES)}.  [default: all; r, a and o of ImageNet]",
)
@click.option("--model", metavar="NAME", help="Network, where a checkpoint does not say it.")
@click.option(
    "--epsilon",
    type=click.FloatRange(0, 255, min_open=True),
    callback=finite,
    default=2.0,
    show_default=True,
    help="Of the adversary, in levels of 255.",
)
@click.option(
    "--pgd-reference-quirk",
    is_flag=True,
    help="Let the adversary go as far as the released code's, up to twice epsilon.",
)
@click.option(
    "--tenth-perturbation",
    type=click.Choice(["spatter", "snow"]),
    default="spatter",
    show_default=True,
    help="Of CIFAR-P's ten: its authors' script scores spatter, their generator lists snow.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Pictures at once in a process.  [default: 500 of CIFAR's size, 100 of larger ones]",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1.")
@seed_option("Of the adversary's starts and of the outliers that are drawn.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=picture_path,
    metavar="RADAR.png",
    help="Also draw a radar plot.",
)
@command_options
def run(
    *,
    checkpoint: Path,
    against: Path | None,
    data: Path,
    suites: tuple[str, ...] | None,
    device: str,
    plot: Path | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Evaluate a network on all there is under DATA.

    A suite without its data is named in one line, and the others still run.
    """
    with one_line_errors("interrupted; nothing was written"):
        from pipelines.loading.processes import joined
        from pipelines.report.headlines import table
        from pipelines.report.plotting import check_plotting
        from pipelines.report.radar import radar
        from pipelines.report.sheet import write_picture
        from pipelines.report.short_names import names_of

        if plot is not None:
            # Before what takes long, and would be lost.
            check_plotting()
        paths = [checkpoint] if against is None else [checkpoint, against]
        with joined(device) as processes:
            # Before the first is evaluated, which may take long.
            evaluations = [_open(path, data, processes, options) for path in paths]
            found = {
                name: _evaluate(evaluation, suites)
                for name, evaluation in zip(names_of(paths), evaluations, strict=True)
            }
            if not processes.first:
                return
        values = {name: each.values for name, each in found.items()}
        missing = next(iter(found.values())).missing
        # Of two networks each may fail at the same set.
        failed = {suite: why for each in found.values() for suite, why in each.failed.items()}
        document: dict[str, Any] = {
            "data": str(data),
            "test": evaluations[0].data.name,
            "networks": {name: {**each} for name, each in values.items()},
            "missing": dict(missing),
            "failed": failed,
        }
        # Before what may fail: nothing that was measured is to be lost.
        say(table(values, missing), document, as_json=as_json)
        if plot is not None:
            write_picture(radar(values), plot)
        if failed:
            raise PipelineError(
                "; ".join(f"{suite} could not be measured: {why}" for suite, why in failed.items())
            )


def _open(path: Path, root: Path, processes: "Processes", options: dict[str, Any]) -> "Evaluation":
    import torch

    from pipelines.evaluation.answers import Classifier
    from pipelines.evaluation.data import find_data
    from pipelines.evaluation.request import Evaluation
    from pipelines.loading.preparation import CIFAR, IMAGENET
    from pipelines.models.opening import open_checkpoint

    module, said = open_checkpoint(path, options["model"])
    try:
        data = find_data(root, said)
    except PipelineError as error:
        raise PipelineError(f"{path}: {error}") from error
    usual = CIFAR if data.view is None else IMAGENET
    mean, std = said.get("mean", usual.mean), said.get("std", usual.std)
    classifier = Classifier(
        module=module.to(processes.device).to(memory_format=torch.channels_last),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        processes=processes,
        batch_size=options["batch_size"] or (500 if data.view is None else 100),
    )
    return Evaluation(
        classifier=classifier,
        data=data,
        seed=options["seed"],
        epsilon=options["epsilon"],
        pgd_reference_quirk=options["pgd_reference_quirk"],
        tenth_perturbation=options["tenth_perturbation"],
    )


def _evaluate(evaluation: "Evaluation", suites: tuple[str, ...] | None) -> "Findings":
    from pipelines.evaluation.suites import evaluate

    with progress_bar("suites") as progress:
        return evaluate(evaluation, suites, progress=progress)


@main.command(
    name="make-c",
    epilog=example("pixmix-eval make-c --data shards/cifar10 --n 2000"),
)
@_DATA
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the set's folder goes.  [default: DATA, where pixmix-eval run finds it]",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Of a network that wants pictures of another size: they become as it has them.",
)
@click.option("--n", type=click.IntRange(1), help="Only the first pictures.  [default: all]")
@seed_option("Of what corruptions draw, as their noise.")
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
    """Make a set like CIFAR-10-C of test pictures, by the constants of ImageNet-C.

    For pictures that have no official one: it compares networks with each other, and not with
    printed figures. Needs the extra `corruptions`. A stopped run is continued by the same command.
    """
    with one_line_errors("interrupted; the same command continues it"):
        from pipelines.evaluation.data import find_data
        from pipelines.evaluation.make_corrupted import make_corrupted
        from pipelines.models.opening import said_of_network

        found = find_data(data, {} if checkpoint is None else said_of_network(checkpoint))
        with progress_bar("pictures") as progress:
            folder = make_corrupted(found, out or data, n=n, seed=seed, progress=progress)
        say(f"corrupted pictures in {folder}", {"folder": str(folder)}, as_json=as_json)


if __name__ == "__main__":
    main()
