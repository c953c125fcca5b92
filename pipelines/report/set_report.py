"""All there is to see of one set of images, or of two side by side."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.report import set_table
from pipelines.report.figures import check_plotting, contact_sheet, legend_name, plot_png
from pipelines.report.page import PageImage, Section, Table, Text
from pipelines.report.set_statistics import SetImage, SetStatistics, measure_set
from pipelines.system.progress import Progress
from pipelines.system.ranks import spread
from pipelines.text_table import aligned

SHEET_IMAGES = 64
_GROUPS_SHOWN, _ALIKE_SHOWN = 12, 6
_COLUMNS, _BINS = 3, 30


@dataclass(frozen=True, kw_only=True)
class MeasuredSet:
    """A measured set.

    name: tells it from another; where: its path; total: its images, of which the first were
    measured; shown: those for a sheet, spread evenly over the measured ones; alike: the first
    images of the first groups of near-duplicates.
    """

    name: str
    where: Path
    total: int
    statistics: SetStatistics
    shown: tuple[SetImage, ...]
    alike: tuple[tuple[SetImage, ...], ...]

    @property
    def title(self) -> str:
        """Which images were measured."""
        return f"{self.where}: {self.statistics.n} of {self.total} images"


def read_set(
    name: str, where: Path, images: Sequence[SetImage], n: int, *, progress: Progress
) -> MeasuredSet:
    """Measure the first n images of a set.

    Args:
        name: what to call it.
        where: its path.
        images: all of them, as `set_images` returns them.
        n: 1 or more; a smaller set is measured whole.
        progress: called with images done and to do.

    Raises:
        PipelineError: if there are none, or none can be read.
        OSError: if the set cannot be read.
    """
    statistics = measure_set(images[:n], progress=progress)
    lost = set(statistics.unreadable)
    by_name = {each.name: each for each in images[:n]}
    measured = [each for name, each in by_name.items() if name not in lost]
    return MeasuredSet(
        name=name,
        where=where,
        total=len(images),
        statistics=statistics,
        shown=tuple(measured[place] for place in spread(SHEET_IMAGES, len(measured))),
        alike=tuple(
            tuple(by_name[name] for name in group[:_ALIKE_SHOWN])
            for group in statistics.near_duplicates[:_GROUPS_SHOWN]
        ),
    )


def sheet_of(measured: MeasuredSet) -> Image.Image:
    """Return a sheet of 64 images of a set, or of all where there are fewer.

    Raises:
        PipelineError: if one cannot be read.
    """
    return contact_sheet([image.read() for image in measured.shown])


def histograms_of(sets: Sequence[MeasuredSet]) -> bytes:
    """Draw how each statistic is distributed over the images of one or more sets, as a PNG.

    Below each histogram stand the references: the median of flames that people chose and of
    photographs, and a bar from the 10th to the 90th percentile where that is known.

    Raises:
        PipelineError: if the extra `viz` is not installed.
    """
    check_plotting()
    from matplotlib.figure import Figure

    statistics = {each.name: each.statistics for each in sets}
    n_rows = -(-len(set_table.ROWS) // _COLUMNS)
    figure = Figure(figsize=(9, 2.1 * n_rows + 0.5), layout="constrained")
    axes = figure.subplots(n_rows, _COLUMNS, squeeze=False).ravel()
    for axis in axes[len(set_table.ROWS) :]:
        axis.set_axis_off()
    for axis, row in zip(axes, set_table.ROWS, strict=False):
        references = (("people's flames", row.flames), ("photographs", row.photographs))
        known = [(name, each) for name, each in references if each is not None]
        marks = [
            mark for _, each in known for mark in (each.median, each.p10, each.p90)
            if mark is not None
        ]  # fmt: skip
        values = {name: each.values[row.name] for name, each in statistics.items()}
        ends = np.concatenate([*values.values(), marks])
        low, high = float(ends.min()), float(ends.max())
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
        highest = 0.0
        for place, (name, column) in enumerate(values.items()):
            share = np.histogram(column, edges)[0] / len(column)
            highest = max(highest, float(share.max()))
            axis.stairs(
                share, edges, fill=True, alpha=0.5, color=f"C{place % 10}", label=legend_name(name)
            )
        for place, (name, reference) in enumerate(known):
            height = -0.1 * (place + 1) * highest
            colour = ("black", "grey")[name == "photographs"]
            if reference.p10 is not None and reference.p90 is not None:
                axis.plot([reference.p10, reference.p90], [height, height], color=colour, lw=2)
            axis.plot([reference.median], [height], "|", color=colour, ms=9, mew=2, label=name)
        axis.axhline(0, color="black", lw=0.6)
        axis.set_ylim(-0.34 * highest, 1.06 * highest)
        axis.set_title(row.label, fontsize="medium")
        axis.set_yticks([])
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False
    )
    return plot_png(figure, dpi=110)


def text_of(sets: Sequence[MeasuredSet]) -> str:
    """Return one set with its bars, or several side by side, as lines of aligned text."""
    titles = [each.title for each in sets]
    if len(sets) == 1:
        return f"{titles[0]}\n\n{set_table.table(sets[0].statistics)}"
    rows = set_table.comparison({each.name: each.statistics for each in sets})
    notes = [f"{each.name}: {set_table.summary(each.statistics)}" for each in sets]
    return "\n".join([*titles, "", *aligned(rows), "", *notes])


def document_of(measured: MeasuredSet) -> dict[str, Any]:
    """Return a measured set as plain JSON values."""
    return {
        "folder": str(measured.where),
        "images": measured.total,
        **set_table.document(measured.statistics),
    }


def sections_of(sets: Sequence[MeasuredSet]) -> list[Section]:
    """Return sets as sections of a page: sheets, statistics, histograms.

    Raises:
        PipelineError: if the extra `viz` is not installed, or an image cannot be read.
    """
    sheets = [
        PageImage(
            data=_jpeg(sheet_of(each)),
            description=f"A sheet of {len(each.shown)} images of {each.name}",
            caption=f"{each.title}; {len(each.shown)} of them, spread evenly.",
        )
        for each in sets
    ]
    if len(sets) == 1:
        header, *rows = set_table.judged(sets[0].statistics)
        caption = "Median, 10th and 90th percentile over the images, and what they should reach"
    else:
        header, *rows = set_table.comparison({each.name: each.statistics for each in sets})
        caption = "Median [10th, 90th percentile]"
    table = Table(header=header, rows=tuple(rows), caption=caption)
    near_duplicates = [_near_duplicates(each) for each in sets if each.alike]
    notes = [Text(text=f"{each.name}: {set_table.summary(each.statistics)}") for each in sets]
    return [
        Section(title="Images", parts=tuple(sheets)),
        Section(title="Statistics", parts=(table, *notes)),
        *near_duplicates,
        Section(
            title="Distributions",
            parts=(
                PageImage(
                    data=histograms_of(sets),
                    description="Histograms of each statistic, with references",
                    caption="Below each: median, and where known 10th to 90th percentile, of "
                    "flames that people chose and of photographs.",
                ),
            ),
        ),
    ]


def _near_duplicates(measured: MeasuredSet) -> Section:
    """Show the images that are nearly the same, a sheet a group."""
    groups = measured.statistics.near_duplicates
    count = measured.statistics.n_superfluous
    text = f"{count} of {measured.statistics.n} images could be removed, for another is nearly the "
    text += f"same; they are in {len(groups)} group{'' if len(groups) == 1 else 's'}"
    if len(groups) > len(measured.alike):
        text += f", of which the first {len(measured.alike)} are shown"
    sheets = [
        PageImage(
            data=_jpeg(contact_sheet([each.read() for each in shown], columns=len(shown))),
            description=f"{len(shown)} images that are nearly the same",
            caption=set_table.alike(group),
        )
        for group, shown in zip(groups, measured.alike, strict=False)
    ]
    return Section(
        title=f"Near-duplicates of {measured.name}", parts=(Text(text=f"{text}."), *sheets)
    )


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
