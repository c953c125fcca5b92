"""Compare training runs: results, learning curves, settings that differ, evaluations, and CSV."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import msgspec

from pipelines.errors import PipelineError
from pipelines.evaluation.metrics import HEADLINES
from pipelines.provenance import RunRecord, Session, read_run_record
from pipelines.report.evaluations import (
    Results,
    notes_of,
    radar,
    read_evaluation,
    rows_of,
    shared_metrics,
)
from pipelines.report.page import (
    PageImage,
    Section,
    Table,
    Text,
    check_plotting,
    legend_name,
    plot_png,
    short_names,
)
from pipelines.system.files import printable, read_json, read_regular, write_file
from pipelines.system.progress import in_words
from pipelines.text_table import BEST_NOTE, aligned, has_best_mark, with_best_marked

METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"

_MAX_BYTES = 2**28

_Number = (
    Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
    | Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]
    | None
)

_TRAIN_AGAIN = "run the training command again with --resume, which writes the file again"

_HASH_DIGITS = 12
"""Digits of a hash that are shown."""

UNKNOWN = "-"
"""The cell of an unknown setting."""

_LAST_EPOCH = (
    ("epoch", "epochs"),
    ("step", "steps"),
    ("train_loss", "training loss"),
    ("train_error", "training error"),
    ("validation_error", "validation error"),
    ("test_error", "test error"),
)


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One training run.

    Attributes:
        name: name of the run, which is unique in a report.
        history: a record for each epoch, as in metrics.jsonl.
        evaluation: results of pixmix-eval; empty without an evaluation.
        record: content of run.json; None without the file.
    """

    name: str
    history: tuple[Mapping[str, Any], ...]
    evaluation: Results
    record: RunRecord | None = None


def read_runs(folders: Sequence[Path]) -> list[TrainingRun]:
    """Read the metrics, run.json and evaluation of training runs.

    Args:
        folders: output folders of pixmix-train with a metrics.jsonl. run.json is optional, and so
            is evaluation.json, the output of `pixmix-eval --json`, of which the first network is
            used.

    Raises:
        PipelineError: if a folder has no metrics, or a file is damaged.
        OSError: if a file cannot be read, or is not a regular file.
    """
    whole = [folder.resolve() for folder in folders]
    repeated = [folders[i] for i, each in enumerate(whole) if each in whole[:i]]
    if repeated:
        raise PipelineError(f"{repeated[0]} is passed twice; pass each run once")
    return [
        TrainingRun(
            name=name,
            history=_history(folder / METRICS),
            evaluation=read_evaluation(folder / EVALUATION),
            record=read_run_record(folder),
        )
        for name, folder in zip(short_names(folders), folders, strict=True)
    ]


def files_read(folder: Path) -> list[Path]:
    """Return the files of a run's folder that a report must not overwrite."""
    names = (METRICS, EVALUATION, "run.json", "metrics.csv")
    return [folder / name for name in names]


def _history(path: Path) -> tuple[Mapping[str, Any], ...]:
    try:
        content = read_regular(path, max_bytes=_MAX_BYTES)
    except FileNotFoundError as error:
        raise PipelineError(
            f"{path} not found: {path.parent} is not an output folder of pixmix-train, or its "
            "first epoch has not ended"
        ) from error
    records = []
    for number, line in enumerate(content.splitlines(), 1):
        where = f"{path}, line {number}"
        record = read_json(line, dict[str, _Number], where, _TRAIN_AGAIN)
        wrong = [name for name in ("epoch", "step") if not isinstance(record.get(name), int)]
        wrong += [] if record.get("train_loss") is not None else ["train_loss"]
        if wrong:
            raise PipelineError(f"{where} is damaged: it has no {wrong[0]}; {_TRAIN_AGAIN}")
        records.append(record)
    if not records:
        raise PipelineError(f"{path} is empty; its first epoch has not ended")
    return tuple(records)


# --- Tables --------------------------------------------------------------------------------------


def last_rows(runs: Sequence[TrainingRun]) -> list[tuple[str, ...]]:
    """Return the table of the runs' last epochs: their names, then a row for each metric.

    A star marks the smallest validation and test error.
    """
    rows = [("", *(run.name for run in runs))]
    for key, label in _LAST_EPOCH:
        values = [run.history[-1].get(key) for run in runs]
        cells = [_cell(key, value) for value in values]
        if key in ("validation_error", "test_error"):
            cells = with_best_marked(cells, [value and -value for value in values])
        if any(value is not None for value in values):
            rows.append((label, *cells))
    records = [run.record for run in runs]
    if any(records):
        times = (in_words(each.seconds) if each else "-" for each in records)
        rows += [("time", *times), ("status", *(each.status if each else "-" for each in records))]
    return rows


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key.endswith("_error"):
        return f"{100 * value:.2f} %"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def table(runs: Sequence[TrainingRun]) -> str:
    """Return the runs, the settings that differ and the evaluations as lines of aligned text."""
    rows = last_rows(runs)
    blocks = [[*aligned(rows), *([BEST_NOTE] if has_best_mark(rows) else [])]]
    if len(runs) > 1:
        rows, note = _differences(runs)
        shown = ["Settings that differ:", *aligned(rows)] if rows else []
        blocks.append([*shown, *([note] if note else [])])
    evaluated = {run.name: run.evaluation for run in runs if run.evaluation}
    if evaluated:
        blocks.append([*aligned(rows_of(evaluated)), *notes_of(evaluated)])
    return "\n\n".join("\n".join(block) for block in blocks)


def _differences(runs: Sequence[TrainingRun]) -> tuple[list[tuple[str, ...]], str]:
    """Return the rows of the settings that differ, with a header, and a note.

    The rows are empty if no setting differs.
    """
    unknown = [run.name for run in runs if run.record is None]
    rows = differing_rows(runs)
    rows = rows if len(rows) > 1 else []
    if unknown:
        return rows, f"The settings of {', '.join(unknown)} are unknown: run.json not found."
    return rows, "" if rows else "No setting differs."


def document(runs: Sequence[TrainingRun]) -> dict[str, Any]:
    """Return the runs and the settings that differ between them as JSON values."""
    (_, *names), *rows = differing_rows(runs)
    return {
        "runs": {
            run.name: {
                "history": [dict(record) for record in run.history],
                "evaluation": run.evaluation,
                "record": msgspec.to_builtins(run.record),
            }
            for run in runs
        },
        "differences": {name: dict(zip(names, cells, strict=True)) for name, *cells in rows},
    }


# --- Settings ------------------------------------------------------------------------------------


def differing_rows(runs: Sequence[TrainingRun]) -> list[tuple[str, ...]]:
    """Return the settings that differ between runs: the runs' names, then a row for each setting.

    Datasets and mixing sets are compared by their hashes, not by their folders. Versions, code and
    machine are compared for all sessions. Runs without run.json are not compared.
    """
    settings = [dict(_settings(run.record)) if run.record else {} for run in runs]
    known = [each for each in settings if each]
    names = dict.fromkeys(name for each in settings for name in each)
    differing = [name for name in names if len({each.get(name) for each in known}) > 1]
    header = ("", *(run.name for run in runs))
    return [
        header,
        *((name, *(each.get(name, UNKNOWN) for each in settings)) for name in differing),
    ]


def _settings(record: RunRecord) -> Iterator[tuple[str, str]]:
    """Yield the name and text of each setting of a run, in the order of the table."""
    yield from ((name, _text(value) or "none") for name, value in _flat(record.settings.recipe))
    for use, data in record.settings.data.items():
        yield f"{use} data", f"{data.name} {data.sha256[:_HASH_DIGITS]}"
    mixing = record.settings.mixing_set
    yield "mixing set", "none" if mixing is None else mixing.fingerprint[:_HASH_DIGITS]
    weights = record.settings.weights
    if weights is None:
        yield "initial weights", "random"
    else:
        digits = weights.sha256 and weights.sha256[:_HASH_DIGITS]
        yield "initial weights", digits or weights.location
    for name in dict.fromkeys(name for each in record.sessions for name in each.versions):
        yield name, _changes_of(record, partial(_version, name))
    yield "git commit", _changes_of(record, _commit)
    yield "CPU", _changes_of(record, lambda session: session.hardware.cpu)
    yield "cores", _changes_of(record, lambda session: str(session.hardware.cores))
    yield "GPUs", _changes_of(record, lambda session: _gpus(session.hardware.gpus))
    yield "processes", _changes_of(record, lambda session: str(session.hardware.world_size))


def _changes_of(record: RunRecord, of: Callable[[Session], str]) -> str:
    """Return a property of a run's sessions, with each change of it."""
    return ", then ".join(text for text, _ in groupby(map(of, record.sessions)))


def _version(package: str, session: Session) -> str:
    return session.versions.get(package, UNKNOWN)


def _commit(session: Session) -> str:
    if session.git is None:
        return "none"
    changed = {True: " with changes", False: "", None: " (changes unknown)"}[session.git.dirty]
    return f"{session.git.commit[:_HASH_DIGITS]}{changed}"


def _gpus(names: Sequence[str]) -> str:
    return ", ".join(f"{len(list(same))} x {name}" for name, same in groupby(names)) or "none"


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings with names such as "pixmix.k"."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _text(value: object) -> str:
    """Return a JSON value as a cell, which is empty for null."""
    if isinstance(value, list | tuple):
        return "; ".join(map(_text, value))
    return "" if value is None else str(value)


def write_csv(runs: Sequence[TrainingRun], path: Path) -> None:
    """Write a CSV file with a row for each run: its last epoch, its settings and its evaluation.

    Columns are named by their keys in metrics.jsonl, run.json and evaluation.json, such as
    ``test_error``, ``recipe.pixmix.k``, ``git.commit`` and ``evaluation.c.mean_error``.

    Args:
        runs: the runs.
        path: the file, which is written atomically; its folder is created if absent.

    Raises:
        OSError: if the file cannot be written.
    """
    rows = [dict(_columns(run)) for run in runs]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, printable(text.getvalue()).encode())


def _columns(run: TrainingRun) -> Iterator[tuple[str, str]]:
    yield "run", run.name
    yield from ((name, _text(value)) for name, value in run.history[-1].items())
    for metric in HEADLINES:
        value = run.evaluation.get(metric.suite, {}).get(metric.key)
        if value is not None:
            yield f"evaluation.{metric.suite}.{metric.key}", _text(value)
    if run.record is None:
        return
    record = msgspec.to_builtins(run.record)
    last = record["sessions"][-1]
    facts = {
        "status": record["status"],
        "seconds": record["seconds"],
        **record["settings"],
        **{name: last[name] for name in ("git", "versions", "hardware", "command")},
    }
    yield from ((name, _text(value)) for name, value in _flat(facts) if value is not None)


# --- Plots and pages -----------------------------------------------------------------------------


_MEASURES = ("loss", "error")

_STYLES = {
    "train": (":", "dotted", "training"),
    "validation": ("--", "dashed", "validation"),
    "test": ("-", "solid", "test"),
}
"""Split -> the style of its lines in matplotlib, in words, and the split's name."""


def _measured(runs: Sequence[TrainingRun], measure: str) -> list[str]:
    """Return the splits for which any run has a measure, "loss" or "error"."""
    keys = {
        key for run in runs for record in run.history for key in record if record[key] is not None
    }
    return [split for split in _STYLES if f"{split}_{measure}" in keys]


def curves(runs: Sequence[TrainingRun]) -> bytes:
    """Draw the loss and error of runs over their epochs, and return a PNG file.

    Each run has its own colour; training, validation and test differ by the style of the line.

    Raises:
        PipelineError: if the extra `viz` is not installed.
    """
    check_plotting()
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # Narrow, so that the labels are legible on a phone.
    figure = Figure(figsize=(6.2, 6), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for axis, measure, scale in zip(axes, _MEASURES, (1, 100), strict=True):
        measured = _measured(runs, measure)
        for position, run in enumerate(runs):
            for split in measured:
                points = [
                    (record["epoch"], scale * record[f"{split}_{measure}"])
                    for record in run.history
                    if record.get(f"{split}_{measure}") is not None
                ]
                if points:
                    axis.plot(
                        *zip(*points, strict=True),
                        _STYLES[split][0],
                        color=f"C{position % 10}",
                        marker="." if len(points) < 30 else "",
                    )
        axis.set_ylabel(f"{measure}, %" if scale == 100 else measure)
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)
        for split in measured:
            axis.plot([], [], _STYLES[split][0], color="grey", label=_STYLES[split][2])
        if measured:
            axis.legend(frameon=False, fontsize="small")
        else:
            axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color="grey")
    axes[-1].set_xlabel("epoch")
    names = [
        axes[0].plot([], [], color=f"C{position % 10}", label=legend_name(run.name))[0]
        for position, run in enumerate(runs)
    ]
    figure.legend(handles=names, loc="outside upper center", ncols=3, frameon=False)
    return plot_png(figure, dpi=120)


def sections(runs: Sequence[TrainingRun]) -> list[Section]:
    """Return the runs as sections of a page: curves, last epochs, settings, evaluations.

    Raises:
        PipelineError: if the extra `viz` is not installed.
    """
    names = ", ".join(run.name for run in runs)
    measured = {split for measure in _MEASURES for split in _measured(runs, measure)}
    lines = [f"{name} {style}" for split, (_, style, name) in _STYLES.items() if split in measured]
    header, *rows = last_rows(runs)
    parts: list[Section] = [
        Section(
            title="Training",
            parts=(
                PageImage(
                    data=curves(runs),
                    description=f"Loss and error over the epochs of {names}",
                    caption=f"Lines: {', '.join(lines)}.",
                ),
                Table(
                    header=header,
                    rows=tuple(rows),
                    caption=f"Last epoch{f'; {BEST_NOTE}' if has_best_mark(rows) else ''}",
                ),
            ),
        )
    ]
    if len(runs) > 1:
        rows_and_header, note = _differences(runs)
        compared: list[Table | Text] = [Text(text=note)] if note else []
        if rows_and_header:
            header, *rows = rows_and_header
            compared.insert(0, Table(header=header, rows=tuple(rows), caption="Settings"))
        parts.append(Section(title="Settings that differ", parts=tuple(compared)))
    evaluated = {run.name: run.evaluation for run in runs if run.evaluation}
    if evaluated:
        header, *rows = rows_of(evaluated)
        shown: list[PageImage | Table] = [
            Table(
                header=header,
                rows=tuple(rows),
                caption="; ".join(["Metrics", *notes_of(evaluated)]),
            )
        ]
        if len(shared_metrics(evaluated)) >= 3:
            plot = PageImage(
                data=radar(evaluated),
                description=f"Radar plot of the metrics of {', '.join(evaluated)}",
            )
            shown.insert(0, plot)
        parts.append(Section(title="Evaluation", parts=tuple(shown)))
    return parts
