"""`pixmix-eval`: what a network is worth besides its accuracy."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.options import (
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
    from pipelines.evaluation.suites import Findings, TestSet
    from pipelines.loading.processes import Processes

# As in evaluation.suites, which would take seconds to import for the help; a test holds them equal.
SUITES = ("clean", "calibration", "c", "c-bar", "p", "adversarial", "anomaly")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pixmix", message="%(version)s")
def main() -> None:
    """Measure robustness, consistency, adversaries, calibration and anomaly detection.

    For pictures of one size, as CIFAR's.
    """


def _suites(context: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in value.split(",")))
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        raise click.BadParameter(
            f"{unknown[0]!r} is no suite; give of {','.join(SUITES)}", ctx=context, param=param
        )
    return names


_DATA = click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder with test shards and, for c, c-bar and p, CIFAR-10-C and its like.",
)


@main.command(
    epilog=example(
        "pixmix-eval run --checkpoint runs/digits/checkpoints/step-00000880.pt --data runs/digits",
        "pixmix-eval run --checkpoint ours.pt --against theirs.pt --data shards/cifar10 "
        "--plot radar.png",
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
    default=",".join(SUITES),
    show_default=True,
    callback=_suites,
    help="What to measure.",
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
@click.option("--batch-size", type=click.IntRange(1), default=500, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1.")
@seed_option
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
    suites: tuple[str, ...],
    model: str | None,
    epsilon: float,
    pgd_reference_quirk: bool,
    batch_size: int,
    device: str,
    seed: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Evaluate a network on all there is under DATA.

    A suite without its data is named in one line, and the others still run.
    """
    with one_line_errors("interrupted; nothing was written"):
        from pipelines.evaluation.data import find_test_set
        from pipelines.evaluation.report import check_plotting, names_of, radar, table
        from pipelines.loading.processes import joined

        if plot is not None:
            # Before what takes long, and would be lost.
            check_plotting()
        test = find_test_set(data)
        paths = [checkpoint] if against is None else [checkpoint, against]
        with joined(device) as processes:
            found = {
                name: _evaluate(
                    path, test, data, suites, processes, model=model, epsilon=epsilon,
                    quirk=pgd_reference_quirk, batch_size=batch_size, seed=seed,
                )
                for name, path in zip(names_of(paths), paths, strict=True)
            }  # fmt: skip
            if not processes.first:
                return
        values = {name: each.values for name, each in found.items()}
        missing = next(iter(found.values())).missing
        text = table(values, missing)
        if plot is not None:
            radar(values, plot)
            text = f"{text}\na plot of them in {plot}"
        document: dict[str, Any] = {
            "data": str(data),
            "test": test.name,
            "networks": {name: {**each} for name, each in values.items()},
            "missing": dict(missing),
        }
        say(text, document, as_json=as_json)


def _evaluate(
    path: Path,
    test: "TestSet",
    root: Path,
    suites: tuple[str, ...],
    processes: "Processes",
    *,
    model: str | None,
    epsilon: float,
    quirk: bool,
    batch_size: int,
    seed: int,
) -> "Findings":
    import torch

    from pipelines.evaluation.answers import Classifier
    from pipelines.evaluation.suites import Evaluation, evaluate
    from pipelines.models.opening import open_checkpoint

    module, said = open_checkpoint(path, model)
    half = [0.5, 0.5, 0.5]
    mean, std = said.get("mean", half), said.get("std", half)
    if said["classes"] <= int(test.labels.max()):
        raise PipelineError(
            f"{path} tells {said['classes']} classes apart, and {test.name} has "
            f"{int(test.labels.max()) + 1}; name the data that it was trained on"
        )
    classifier = Classifier(
        module=module.to(processes.device).to(memory_format=torch.channels_last),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        processes=processes,
        batch_size=batch_size,
    )
    evaluation = Evaluation(
        classifier=classifier, test=test, root=root, seed=seed, epsilon=epsilon,
        pgd_reference_quirk=quirk,
    )  # fmt: skip
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
@click.option("--n", type=click.IntRange(1), help="Only the first pictures.  [default: all]")
@seed_option
@command_options
def make_c(*, data: Path, out: Path | None, n: int | None, seed: int, as_json: bool) -> None:
    """Make a set like CIFAR-10-C of test pictures, by the constants of ImageNet-C.

    For pictures that have no official one: it compares networks with each other, and not with
    printed figures. Needs the extra `corruptions`. A stopped run is continued by the same command.
    """
    with one_line_errors("interrupted; the same command continues it"):
        from pipelines.evaluation.corruptions import make_corrupted
        from pipelines.evaluation.data import find_test_set

        test = find_test_set(data)
        with progress_bar("pictures") as progress:
            folder = make_corrupted(test, out or data, n=n, seed=seed, progress=progress)
        say(f"corrupted pictures in {folder}", {"folder": str(folder)}, as_json=as_json)


if __name__ == "__main__":
    main()
