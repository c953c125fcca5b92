"""Trainings side by side: what they reached, how they got there, and what they are worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import PipelineError
from pipelines.report.headlines import Found, is_found, notes_of, rows_of
from pipelines.report.json_files import is_number, parse, read_text
from pipelines.report.page import Picture, Section, Table
from pipelines.report.plotting import check_plotting, plot_png
from pipelines.report.radar import measures_between, radar
from pipelines.report.short_names import names_of
from pipelines.text_table import aligned

METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"

_LAST = (
    ("epoch", "epochs"),
    ("step", "steps"),
    ("train_loss", "training loss"),
    ("train_error", "training error"),
    ("validation_error", "validation error"),
    ("test_error", "test error"),
)
_NEEDED = {"epoch", "step", "train_loss"}
_NUMBERS = (*(name for name, _ in _LAST), "validation_loss", "test_loss")
_AGAIN = "make it again"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training.

    name: tells it from the others; history: a record an epoch, as pixmix-train writes them;
    found: what pixmix-eval found, suite -> value -> number, or empty.
    """

    name: str
    history: tuple[Mapping[str, Any], ...]
    found: Found


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the metrics of trainings and, where there is one, what an evaluation of each found.

    Args:
        folders: each an --out of pixmix-train: FOLDER/metrics.jsonl, and FOLDER/evaluation.json as
            `pixmix-eval --json` prints it (of its networks the first).

    Raises:
        PipelineError: if a folder holds no metrics, or a file is not what it should be.
        OSError: if a file cannot be read.
    """
    whole = [folder.resolve() for folder in folders]
    doubled = [folders[place] for place, each in enumerate(whole) if each in whole[:place]]
    if doubled:
        raise PipelineError(f"{doubled[0]} is given twice; give each training once")
    names = names_of(folders)
    return [
        Run(name=name, history=_history(folder / METRICS), found=_found(folder / EVALUATION))
        for name, folder in zip(names, folders, strict=True)
    ]


def _history(path: Path) -> tuple[Mapping[str, Any], ...]:
    if not path.is_file():
        raise PipelineError(
            f"{path} is not there: {path.parent} is no folder of pixmix-train, or its first epoch "
            "has not ended"
        )
    records = []
    for number, line in enumerate(read_text(path, _AGAIN).splitlines(), 1):
        record = parse(line, f"{path}, line {number}", _AGAIN)
        if not isinstance(record, dict) or not set(record) >= _NEEDED:
            raise PipelineError(
                f"{path}, line {number} is no record of an epoch; let pixmix-train write it again"
            )
        for name in _NUMBERS:
            value = record.get(name)
            if not is_number(value) and not (value is None and name not in _NEEDED):
                raise PipelineError(
                    f"{path}, line {number} has {name} {value!r}, which is no number; let "
                    "pixmix-train write it again"
                )
        records.append(record)
    if not records:
        raise PipelineError(f"{path} is empty; its first epoch has not ended")
    return tuple(records)


def _found(path: Path) -> Found:
    if not path.is_file():
        return {}
    content = parse(read_text(path, _AGAIN), str(path), _AGAIN)
    networks = content.get("networks") if isinstance(content, dict) else None
    first = next(iter(networks.values()), None) if isinstance(networks, dict) else None
    if not is_found(first):
        raise PipelineError(f"{path} is not what pixmix-eval --json prints; {_AGAIN}")
    return first


def last_rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return what each training came to, a row a measure and a cell a run; first the names."""
    rows = [("", *(run.name for run in runs))]
    for name, what in _LAST:
        cells = [_cell(name, run.history[-1].get(name)) for run in runs]
        if any(cell != "-" for cell in cells):
            rows.append((what, *cells))
    return rows


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name.endswith("_error"):
        return f"{100 * value:.2f} %"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def table(runs: Sequence[Run]) -> str:
    """Return the trainings, and what they are worth, as lines of aligned text."""
    blocks = [aligned(last_rows(runs))]
    found = {run.name: run.found for run in runs if run.found}
    if found:
        blocks.append([*aligned(rows_of(found)), *notes_of(found)])
    return "\n\n".join("\n".join(block) for block in blocks)


def document(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the runs as plain JSON values."""
    return {
        "runs": {
            run.name: {"history": [dict(record) for record in run.history], "found": run.found}
            for run in runs
        }
    }


def curves(runs: Sequence[Run]) -> bytes:
    """Draw the loss and the errors of trainings over their epochs, as a PNG.

    Training is dotted, validation dashed and the test set drawn through; a run has one colour.

    Raises:
        PipelineError: if the extra `viz` is not installed.
    """
    check_plotting()
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    styles = {"train": ":", "validation": "--", "test": "-"}
    for axis, measure, scale in zip(axes, ("loss", "error"), (1, 100), strict=True):
        seen = set()
        for place, run in enumerate(runs):
            for of, style in styles.items():
                points = [
                    (record["epoch"], scale * record[f"{of}_{measure}"])
                    for record in run.history
                    if record.get(f"{of}_{measure}") is not None
                ]
                if points:
                    seen.add(of)
                    axis.plot(
                        *zip(*points, strict=True),
                        style,
                        color=f"C{place % 10}",
                        marker="." if len(points) < 30 else "",
                    )
        axis.set_xlabel("epoch")
        axis.set_ylabel(f"{measure}, %" if scale == 100 else measure)
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)
        for of in (of for of in styles if of in seen):
            axis.plot([], [], styles[of], color="grey", label=of)
        if seen:
            axis.legend(frameon=False, fontsize="small")
        else:
            axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color="grey")
    for place, run in enumerate(runs):
        axes[0].plot([], [], color=f"C{place % 10}", label=run.name)
    names = [line for line in axes[0].lines if line.get_label() in {run.name for run in runs}]
    figure.legend(handles=names, loc="outside upper center", ncols=3, frameon=False)
    return plot_png(figure, dpi=120)


def sections(runs: Sequence[Run]) -> list[Section]:
    """Return the trainings as sections of a page: curves, what they came to, what they are worth.

    Raises:
        PipelineError: if the extra `viz` is not installed.
    """
    names = ", ".join(run.name for run in runs)
    header, *rows = last_rows(runs)
    parts: list[Section] = [
        Section(
            title="Training",
            parts=(
                Picture(
                    data=curves(runs),
                    description=f"Loss and error over the epochs of {names}",
                    caption="Training dotted, validation dashed, test set drawn through.",
                ),
                Table(header=header, rows=tuple(rows)),
            ),
        )
    ]
    found = {run.name: run.found for run in runs if run.found}
    if found:
        header, *rows = rows_of(found)
        shown: list[Picture | Table] = [
            Table(
                header=header,
                rows=tuple(rows),
                caption=". ".join(
                    ["Smaller is better, but for AUROC and AUPR", *notes_of(found), ""]
                ).rstrip(),
            )
        ]
        if len(measures_between(found)) >= 3:
            picture = Picture(
                data=radar(found),
                description=f"Radar plot of the measures of {', '.join(found)}",
            )
            shown.insert(0, picture)
        parts.append(Section(title="Evaluation", parts=tuple(shown)))
    return parts
