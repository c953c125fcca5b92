"""Report on one set of images, or compare two: contact sheets, statistics, targets, histograms.

The statistics are shown beside those of fractal flames made by people and of photographs, and
beside targets for a good mixing set.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pipelines.report.page import (
    PageImage,
    Section,
    Table,
    Text,
    check_plotting,
    contact_sheet,
    legend_name,
    plot_png,
)
from pipelines.report.set_statistics import N_FOR_DIVERSITY, SetImage, SetStatistics, measure_set
from pipelines.system.progress import Progress
from pipelines.system.ranks import spread
from pipelines.text_table import aligned

SHEET_IMAGES = 64
_GROUPS_SHOWN, _DUPLICATES_SHOWN = 12, 6
_COLUMNS, _BINS = 2, 30


@dataclass(frozen=True, kw_only=True)
class MeasuredSet:
    """The statistics of a set and some of its images.

    Attributes:
        name: name of the set, which is unique in a report.
        where: its path.
        total: number of its images, of which the first ones were measured.
        statistics: statistics of the measured images.
        shown: images for a contact sheet, spread evenly over the measured ones.
        duplicates: the first images of the first groups of near-duplicates.
    """

    name: str
    where: Path
    total: int
    statistics: SetStatistics
    shown: tuple[SetImage, ...]
    duplicates: tuple[tuple[SetImage, ...], ...]

    @property
    def title(self) -> str:
        """The path of the set and how many of its images were measured."""
        return f"{self.where}: {self.statistics.n} of {self.total} images"


def read_set(
    name: str, where: Path, images: Sequence[SetImage], n: int, *, progress: Progress
) -> MeasuredSet:
    """Measure the first n images of a set.

    Args:
        name: name of the set in the report.
        where: path of the set.
        images: all images, as `set_images` returns them.
        n: number of images to measure, at least 1; all if there are fewer.
        progress: called with the number of images done and their total.

    Raises:
        PipelineError: if no image can be read.
        OSError: if the set cannot be read.
    """
    statistics = measure_set(images[:n], progress=progress)
    unreadable = set(statistics.unreadable)
    by_name = {each.name: each for each in images[:n]}
    measured = [each for name, each in by_name.items() if name not in unreadable]
    return MeasuredSet(
        name=name,
        where=where,
        total=len(images),
        statistics=statistics,
        shown=tuple(measured[index] for index in spread(SHEET_IMAGES, len(measured))),
        duplicates=tuple(
            tuple(by_name[name] for name in group[:_DUPLICATES_SHOWN])
            for group in statistics.near_duplicates[:_GROUPS_SHOWN]
        ),
    )


def sheet_of(measured: MeasuredSet) -> Image.Image:
    """Return a contact sheet of 64 images of a set, or of all if there are fewer.

    Raises:
        PipelineError: if an image cannot be read.
    """
    return contact_sheet([image.read() for image in measured.shown])


def histograms_of(sets: Sequence[MeasuredSet]) -> bytes:
    """Draw a histogram of each statistic of one or more sets, and return a PNG file.

    Below each histogram are the references: the median of human-made flames and of photographs, and
    a line from the 10th to the 90th percentile if they are known.

    Raises:
        PipelineError: if the extra `viz` is not installed.
    """
    check_plotting()
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    statistics = {each.name: each.statistics for each in sets}
    n_rows = -(-len(ROWS) // _COLUMNS)
    figure = Figure(figsize=(6.2, 2 * n_rows + 0.5), layout="constrained")
    axes = figure.subplots(n_rows, _COLUMNS, squeeze=False).ravel()
    for axis in axes[len(ROWS) :]:
        axis.set_axis_off()
    for axis, row in zip(axes, ROWS, strict=False):
        references = ((_FLAMES, row.flames), (_PHOTOGRAPHS, row.photographs))
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
        for position, (name, column) in enumerate(values.items()):
            share = np.histogram(column, edges)[0] / len(column)
            highest = max(highest, float(share.max()))
            axis.stairs(
                share,
                edges,
                fill=True,
                alpha=0.5,
                color=f"C{position % 10}",
                label=legend_name(name),
            )
        for position, (name, reference) in enumerate(known):
            height = -0.1 * (position + 1) * highest
            colour = "grey" if name == _PHOTOGRAPHS else "black"
            if reference.p10 is not None and reference.p90 is not None:
                axis.plot([reference.p10, reference.p90], [height, height], color=colour, lw=2)
            axis.plot([reference.median], [height], "|", color=colour, ms=9, mew=2, label=name)
        axis.axhline(0, color="black", lw=0.6)
        axis.set_ylim(-0.34 * highest, 1.06 * highest)
        axis.set_title(row.label, fontsize="medium")
        axis.set_yticks([])
        axis.xaxis.set_major_locator(MaxNLocator(5))
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False
    )
    return plot_png(figure, dpi=110)


def text_of(sets: Sequence[MeasuredSet]) -> str:
    """Return one set with its targets, or several sets in comparison, as lines of aligned text."""
    titles = [each.title for each in sets]
    if len(sets) == 1:
        return f"{titles[0]}\n\n{table(sets[0].statistics)}"
    rows = comparison({each.name: each.statistics for each in sets})
    notes = [f"{each.name}: {summary(each.statistics)}" for each in sets]
    return "\n".join([*titles, "", *aligned(rows), "", *notes])


def document_of(measured: MeasuredSet) -> dict[str, Any]:
    """Return a measured set as JSON values."""
    return {
        "folder": str(measured.where),
        "images": measured.total,
        **document(measured.statistics),
    }


def sections_of(sets: Sequence[MeasuredSet]) -> list[Section]:
    """Return sets as sections of a page: contact sheets, statistics, histograms.

    Raises:
        PipelineError: if the extra `viz` is not installed, or an image cannot be read.
    """
    sheets = [
        PageImage(
            data=_jpeg(sheet_of(each)),
            description=f"Contact sheet of {len(each.shown)} images of {each.name}",
            caption=f"{each.title} measured; {len(each.shown)} of them are shown, spread evenly.",
        )
        for each in sets
    ]
    if len(sets) == 1:
        header, *rows = judged(sets[0].statistics)
        caption = "Median, 10th and 90th percentile over the images, and their targets"
    else:
        header, *rows = comparison({each.name: each.statistics for each in sets})
        caption = "Median [10th, 90th percentile]"
    table = Table(header=header, rows=tuple(rows), caption=caption)
    near_duplicates = [_near_duplicates(each) for each in sets if each.duplicates]
    notes = [Text(text=f"{each.name}: {summary(each.statistics)}") for each in sets]
    return [
        Section(title="Images", parts=tuple(sheets)),
        Section(title="Statistics", parts=(table, *notes)),
        *near_duplicates,
        Section(
            title="Distributions",
            parts=(
                PageImage(
                    data=histograms_of(sets),
                    description="A histogram of each statistic, with references",
                    caption="Below each histogram: the median and, if known, the 10th to 90th "
                    "percentile of human-made flames and of photographs.",
                ),
            ),
        ),
    ]


def _near_duplicates(measured: MeasuredSet) -> Section:
    """Return a section with a contact sheet for each group of near-duplicates."""
    groups = measured.statistics.near_duplicates
    count = measured.statistics.n_superfluous
    text = f"{count} of {measured.statistics.n} images could be removed because another image is "
    text += f"nearly the same; there are {len(groups)} group{'' if len(groups) == 1 else 's'}"
    if len(groups) > len(measured.duplicates):
        text += f", of which the first {len(measured.duplicates)} are shown"
    sheets = [
        PageImage(
            data=_jpeg(contact_sheet([each.read() for each in shown], columns=len(shown))),
            description=f"{len(shown)} near-duplicates",
            caption=_named_group(group),
        )
        for group, shown in zip(groups, measured.duplicates, strict=False)
    ]
    return Section(
        title=f"Near-duplicates of {measured.name}", parts=(Text(text=f"{text}."), *sheets)
    )


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


class Reference(NamedTuple):
    """A published statistic: its median and, if known, its 10th and 90th percentile."""

    median: float
    p10: float | None = None
    p90: float | None = None


class Target(NamedTuple):
    """The values that a statistic should have: `at_least`, and `at_most` if more is not better."""

    at_least: float
    at_most: float | None = None

    def is_met_by(self, value: float) -> bool:
        """Return whether a value is within the target."""
        return self.at_least <= value and (self.at_most is None or value <= self.at_most)


class Row(NamedTuple):
    """A statistic of the table: its label and decimals, its references, its targets."""

    name: str
    label: str
    decimals: int
    flames: Reference | None = None
    photographs: Reference | None = None
    median_target: Target | None = None
    p10_target: Target | None = None


class Verdict(NamedTuple):
    """Whether one value of a set meets its target; `met` is None if the set is too small."""

    statistic: str
    measure: str
    value: float
    target: Target
    met: bool | None


_MAX_NAMED = 3

_FLAMES, _PHOTOGRAPHS = "human-made flames", "photographs"

# Medians, 10th and 90th percentiles. Flames: 200 fractal flames that people designed or bred
# (Electric Sheep), 256x256, of which the first 64 for the Vendi scores. Photographs: 256x256. The
# targets are ours: a mixing set that meets them trains better than noise does.
ROWS = (
    # name, label, decimals, flames, photographs, targets of median and 10th percentile
    Row("coverage", "coverage", 3,
        Reference(0.985, 0.57, 1.0), Reference(1.0, 0.97, 1.0), Target(0.99), Target(0.75)),
    Row("edge_density", "edge density", 3,
        Reference(0.43, 0.15, 0.67), Reference(0.401, 0.21, 0.85),
        Target(0.38, 0.60), Target(0.20)),
    Row("textured_blocks", "textured blocks", 3,
        Reference(0.67, 0.28, 0.92), Reference(0.60, 0.36, 1.0), Target(0.65), Target(0.40)),
    Row("edges_at_32", "edges at 32 px", 3,
        Reference(0.70, 0.35, 0.86), Reference(0.69, 0.29, 0.81), Target(0.70), Target(0.48)),
    Row("luma_std_at_32", "luma std at 32 px", 3,
        Reference(0.144, 0.07, 0.21), Reference(0.117), Target(0.13), Target(0.08)),
    Row("spectral_slope", "spectral slope", 2,
        Reference(2.57, 1.86, 3.02), Reference(2.33), Target(1.9, 2.7)),
    Row("spectral_r2", "spectral fit R2", 3, None, None, Target(0.96)),
    Row("rgb_entropy", "RGB entropy, bits", 2,
        Reference(4.23, 2.48, 5.80), Reference(4.28), Target(4.5), Target(3.2)),
    Row("luma_entropy", "luma entropy, bits", 2, Reference(7.0, 5.5, 7.6), Reference(6.94)),
    Row("colourfulness", "colourfulness", 1,
        Reference(43, 19, 77), Reference(40), Target(55), Target(25)),
    Row("jpeg_bits_per_pixel", "JPEG q75, bits/pixel", 2,
        Reference(1.67, 1.00, 2.28), Reference(1.57), Target(1.3, 2.3)),
    Row("edge_box_dimension", "edge box dimension", 2, Reference(1.83), Reference(1.81)),
)  # fmt: skip
_DIVERSITY_ROWS = (
    Row("colour_vendi", "colour Vendi score", 1, Reference(4.7), Reference(4.3), Target(9)),
    Row("hog_vendi", "HOG Vendi score", 1, Reference(7.4), Reference(7.6), Target(7.4)),
)
_COUNT_ROWS = (
    Row("dead_images", "dead images", 0, None, None, Target(0, 0)),
    Row("near_duplicates", "near-duplicates", 0, None, None, Target(0, 0)),
)
_ALL_ROWS = (*ROWS, *_DIVERSITY_ROWS, *_COUNT_ROWS)


def _values(row: Row, statistics: SetStatistics) -> tuple[float, ...]:
    """Return the median, 10th and 90th percentile of a per-image statistic, or a single value."""
    if row in ROWS:
        values = statistics.per_image[row.name]
        return values.median, values.p10, values.p90
    if row in _DIVERSITY_ROWS:
        return (getattr(statistics, row.name),)
    counts = {"dead_images": len(statistics.dead), "near_duplicates": statistics.n_superfluous}
    return (counts[row.name],)


def _is_comparable(row: Row, statistics: SetStatistics) -> bool:
    return row not in _DIVERSITY_ROWS or statistics.n_for_diversity == N_FOR_DIVERSITY


_TOO_FEW = f"needs {N_FOR_DIVERSITY} images"


def verdicts(statistics: SetStatistics) -> list[Verdict]:
    """Return a verdict for every value that has a target, in the order of the table.

    A mixing set that trains better than noise covers its images with light, keeps edges at 32
    pixels, has many colours and a spectrum as photographs have, and has no near-duplicates.
    """
    found = []
    for row in _ALL_ROWS:
        names = ("median", "p10") if row in ROWS else ("count",)
        names = ("score",) if row in _DIVERSITY_ROWS else names
        known = _is_comparable(row, statistics)
        targets = (row.median_target, row.p10_target)
        for name, target, value in zip(names, targets, _values(row, statistics), strict=False):
            if target is not None:
                met = target.is_met_by(value) if known else None
                found.append(Verdict(row.name, name, value, target, met))
    return found


def table(statistics: SetStatistics) -> str:
    """Return the statistics of a set as lines of aligned text, for a terminal of 120 columns."""
    lines = aligned(judged(statistics), right=(1, 2, 3))
    return "\n".join([*lines, "", summary(statistics)])


def judged(statistics: SetStatistics) -> list[tuple[str, ...]]:
    """Return the table of one set: a header, then a row for each statistic.

    A row has the median and percentiles, whether they meet their targets, and the references.
    """
    header = ("", "median", "10th", "90th", "median target", "10th target", _FLAMES, _PHOTOGRAPHS)
    lines: list[tuple[str, ...]] = [header]
    for row in _ALL_ROWS:
        values = _values(row, statistics)
        cells = [f"{value:.{row.decimals}f}" for value in values]
        known = _is_comparable(row, statistics)
        lines.append(
            (
                row.label,
                *(cells if len(cells) == 3 else [*cells, "", ""]),
                _judged(row.median_target, values[0]) if known else _TOO_FEW,
                _judged(row.p10_target, values[1]) if len(cells) == 3 else "",
                _reference(row.flames),
                _reference(row.photographs),
            )
        )
    return lines


def comparison(sets: Mapping[str, SetStatistics]) -> list[tuple[str, ...]]:
    """Return the table of several sets: a header, then a row for each statistic.

    A cell has the median [10th, 90th percentile] of a set or of a reference.

    Args:
        sets: name -> statistics.
    """
    rows: list[tuple[str, ...]] = [("", *sets, _FLAMES, _PHOTOGRAPHS)]
    for row in _ALL_ROWS:
        cells = [
            _with_percentiles(row, _values(row, each)) if _is_comparable(row, each) else _TOO_FEW
            for each in sets.values()
        ]
        rows.append((row.label, *cells, _reference(row.flames), _reference(row.photographs)))
    return rows


def _with_percentiles(row: Row, values: tuple[float, ...]) -> str:
    first, *percentiles = (f"{value:.{row.decimals}f}" for value in values)
    return f"{first} [{', '.join(percentiles)}]" if percentiles else first


def document(statistics: SetStatistics) -> dict[str, Any]:
    """Return the statistics, without those of each image, and the verdicts as JSON values."""
    whole = asdict(statistics)
    del whole["values"]
    return {
        **whole,
        "targets": [
            {
                "statistic": each.statistic,
                "measure": each.measure,
                "value": each.value,
                **each.target._asdict(),
                "met": each.met,
            }
            for each in verdicts(statistics)
        ],
    }


def _judged(target: Target | None, value: float) -> str:
    if target is None:
        return ""
    if target.at_most is None:
        rule = f">= {target.at_least:g}"
    elif target.at_most == target.at_least:
        rule = f"{target.at_least:g}"
    else:
        rule = f"{target.at_least:g}-{target.at_most:g}"
    return f"{rule} {'met' if target.is_met_by(value) else 'NOT MET'}"


def _reference(reference: Reference | None) -> str:
    if reference is None:
        return ""
    if reference.p10 is None:
        return f"{reference.median:g}"
    return f"{reference.median:g} [{reference.p10:g}, {reference.p90:g}]"


def summary(statistics: SetStatistics) -> str:
    """Return a line with the number of targets met, and the unreadable, dead and similar images."""
    judged = [verdict for verdict in verdicts(statistics) if verdict.met is not None]
    met = sum(verdict.met is True for verdict in judged)
    text = f"{met} of {len(judged)} targets met"
    if statistics.n_resized:
        text += f"; {statistics.n_resized} images were resized to 256x256 before measuring"
    if statistics.unreadable:
        n = len(statistics.unreadable)
        skipped = "1 unreadable image was" if n == 1 else f"{n} unreadable images were"
        text += f"; {skipped} skipped: {_some(statistics.unreadable)}"
    if statistics.dead:
        text += f"; dead images: {_some(statistics.dead)}"
    if statistics.near_duplicates:
        groups = [_named_group(group) for group in statistics.near_duplicates]
        text += f"; near-duplicates: {_some(groups, '; ')}"
    return text


def _named_group(group: Sequence[str]) -> str:
    """Return the names of near-duplicates as words; only the first ones of many."""
    if len(group) == 2:
        return " and ".join(group)
    return f"{len(group)} images, {_some(group)}"


def _some(names: Sequence[str], between: str = ", ") -> str:
    more = [] if len(names) <= _MAX_NAMED else ["..."]
    return between.join([*names[:_MAX_NAMED], *more])
