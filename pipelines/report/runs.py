"""Trainings side by side: what they reached, how they got there, and what they are worth."""

from collections.abc import Sequence
from typing import Any

import msgspec

from pipelines.report.headlines import notes_of, rows_of
from pipelines.report.page import Picture, Section, Table, Text
from pipelines.report.plotting import check_plotting, legend_name, plot_png
from pipelines.report.radar import measures_between, radar
from pipelines.report.run_files import Run
from pipelines.report.run_settings import differing_rows
from pipelines.system.progress import in_words
from pipelines.text_table import aligned

_LAST = (
    ("epoch", "epochs"),
    ("step", "steps"),
    ("train_loss", "training loss"),
    ("train_error", "training error"),
    ("validation_error", "validation error"),
    ("test_error", "test error"),
)


def last_rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return what each training came to, a row a measure and a cell a run; first the names."""
    rows = [("", *(run.name for run in runs))]
    for name, what in _LAST:
        cells = [_cell(name, run.history[-1].get(name)) for run in runs]
        if any(cell != "-" for cell in cells):
            rows.append((what, *cells))
    records = [run.record for run in runs]
    if any(records):
        times = (in_words(each.seconds) if each else "-" for each in records)
        rows += [("time", *times), ("status", *(each.status if each else "-" for each in records))]
    return rows


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name.endswith("_error"):
        return f"{100 * value:.2f} %"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def table(runs: Sequence[Run]) -> str:
    """Return the trainings, how they differ and what they are worth, as lines of aligned text."""
    blocks = [aligned(last_rows(runs))]
    if len(runs) > 1:
        rows, note = _differences(runs)
        shown = ["Settings that differ:", *aligned(rows)] if rows else []
        blocks.append([*shown, *([note] if note else [])])
    found = {run.name: run.found for run in runs if run.found}
    if found:
        blocks.append([*aligned(rows_of(found)), *notes_of(found)])
    return "\n\n".join("\n".join(block) for block in blocks)


def _differences(runs: Sequence[Run]) -> tuple[list[tuple[str, ...]], str]:
    """Return the rows of the settings that differ, header first, and what is to say of them.

    There are no rows where none differs.
    """
    silent = [run.name for run in runs if run.record is None]
    rows = differing_rows(runs)
    rows = rows if len(rows) > 1 else []
    if silent:
        return rows, f"The settings of {', '.join(silent)} are not known: there is no run.json."
    return rows, "" if rows else "No setting differs."


def document(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the runs, and the settings that differ between them, as plain JSON values."""
    (_, *names), *rows = differing_rows(runs)
    return {
        "runs": {
            run.name: {
                "history": [dict(record) for record in run.history],
                "found": run.found,
                "record": msgspec.to_builtins(run.record),
            }
            for run in runs
        },
        "differences": {name: dict(zip(names, cells, strict=True)) for name, *cells in rows},
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
    names = [
        axes[0].plot([], [], color=f"C{place % 10}", label=legend_name(run.name))[0]
        for place, run in enumerate(runs)
    ]
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
    if len(runs) > 1:
        rows_and_header, note = _differences(runs)
        told: list[Table | Text] = [Text(text=note)] if note else []
        if rows_and_header:
            header, *rows = rows_and_header
            told.insert(0, Table(header=header, rows=tuple(rows)))
        parts.append(Section(title="Settings that differ", parts=tuple(told)))
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
