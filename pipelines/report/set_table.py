"""A set's statistics beside those of flames and photographs, and what a good set should reach."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from pipelines.report.set_statistics import N_OF_DIVERSITY, SetStatistics
from pipelines.text_table import aligned


class Reference(NamedTuple):
    """A published statistic: a median, and where known the 10th and 90th percentile."""

    median: float
    p10: float | None = None
    p90: float | None = None


class Bar(NamedTuple):
    """What a statistic should reach: `at_least` and, where more is not better, `at_most`."""

    at_least: float
    at_most: float | None = None

    def is_met_by(self, value: float) -> bool:
        """Return whether the value lies within the bar."""
        return self.at_least <= value and (self.at_most is None or value <= self.at_most)


class Row(NamedTuple):
    """One statistic of the table: its label and decimals, its references, its bars."""

    name: str
    label: str
    decimals: int
    flames: Reference | None = None
    photographs: Reference | None = None
    median_bar: Bar | None = None
    p10_bar: Bar | None = None


class Verdict(NamedTuple):
    """Whether one figure of a set meets its bar; None where the set is too small to tell."""

    statistic: str
    figure: str
    value: float
    bar: Bar
    met: bool | None


_MOST_NAMED = 3

# Flames: 200 fractal flames designed or bred by people (Electric Sheep), 256x256, and the first 64
# of them for the Vendi scores. Photographs: at 256x256. Medians, 10th and 90th percentiles. The
# bars are ours: what a set needs that is to mix better than noise does.
ROWS = (
    # name, label, decimals, flames, photographs, bar of the median, bar of the 10th percentile
    Row("coverage", "coverage", 3,
        Reference(0.985, 0.57, 1.0), Reference(1.0, 0.97, 1.0), Bar(0.99), Bar(0.75)),
    Row("edge_density", "edge density", 3,
        Reference(0.43, 0.15, 0.67), Reference(0.401, 0.21, 0.85), Bar(0.38, 0.60), Bar(0.20)),
    Row("textured_blocks", "textured blocks", 3,
        Reference(0.67, 0.28, 0.92), Reference(0.60, 0.36, 1.0), Bar(0.65), Bar(0.40)),
    Row("edges_at_32", "edges at 32 px", 3,
        Reference(0.70, 0.35, 0.86), Reference(0.69, 0.29, 0.81), Bar(0.70), Bar(0.48)),
    Row("luma_std_at_32", "luma std at 32 px", 3,
        Reference(0.144, 0.07, 0.21), Reference(0.117), Bar(0.13), Bar(0.08)),
    Row("spectral_slope", "spectral slope", 2,
        Reference(2.57, 1.86, 3.02), Reference(2.33), Bar(1.9, 2.7)),
    Row("spectral_r2", "its R2", 3, None, None, Bar(0.96)),
    Row("rgb_entropy", "RGB entropy, bits", 2,
        Reference(4.23, 2.48, 5.80), Reference(4.28), Bar(4.5), Bar(3.2)),
    Row("luma_entropy", "luma entropy, bits", 2, Reference(7.0, 5.5, 7.6), Reference(6.94)),
    Row("colourfulness", "colourfulness", 1,
        Reference(43, 19, 77), Reference(40), Bar(55), Bar(25)),
    Row("jpeg_bits_per_pixel", "JPEG q75, bits/pixel", 2,
        Reference(1.67, 1.00, 2.28), Reference(1.57), Bar(1.3, 2.3)),
    Row("edge_box_dimension", "edge box dimension", 2, Reference(1.83), Reference(1.81)),
)  # fmt: skip
_DIVERSITY_ROWS = (
    Row("colour_vendi", "colour Vendi of 64", 1, Reference(4.7), Reference(4.3), Bar(9)),
    Row("hog_vendi", "HOG Vendi of 64", 1, Reference(7.4), Reference(7.6), Bar(7.4)),
)
_COUNT_ROWS = (
    Row("dead_images", "dead images", 0, None, None, Bar(0, 0)),
    Row("near_duplicates", "near-duplicates", 0, None, None, Bar(0, 0)),
)
_ALL_ROWS = (*ROWS, *_DIVERSITY_ROWS, *_COUNT_ROWS)


def _values(row: Row, statistics: SetStatistics) -> tuple[float, ...]:
    """Return median, 10th and 90th percentile of a statistic of each image; else one value."""
    if row in ROWS:
        values = statistics.per_image[row.name]
        return values.median, values.p10, values.p90
    if row in _DIVERSITY_ROWS:
        return (getattr(statistics, row.name),)
    counts = {"dead_images": len(statistics.dead), "near_duplicates": statistics.n_superfluous}
    return (counts[row.name],)


def _is_comparable(row: Row, statistics: SetStatistics) -> bool:
    return row not in _DIVERSITY_ROWS or statistics.n_of_diversity == N_OF_DIVERSITY


_TOO_FEW = f"needs {N_OF_DIVERSITY} images"


def verdicts(statistics: SetStatistics) -> list[Verdict]:
    """Judge every figure that has a bar, in the order of the table.

    The bars are what a mixing set needs to train better than noise does: light everywhere, edges
    left at 32 pixels, many colours, a spectrum like nature's, no two images alike.
    """
    found = []
    for row in _ALL_ROWS:
        names = ("median", "p10") if row in ROWS else ("count",)
        names = ("score",) if row in _DIVERSITY_ROWS else names
        known = _is_comparable(row, statistics)
        bars = (row.median_bar, row.p10_bar)
        for name, bar, value in zip(names, bars, _values(row, statistics), strict=False):
            if bar is not None:
                met = bar.is_met_by(value) if known else None
                found.append(Verdict(row.name, name, value, bar, met))
    return found


def table(statistics: SetStatistics) -> str:
    """Return the statistics as lines of aligned text, for a terminal of 120 columns."""
    lines = aligned(judged(statistics), right=(1, 2, 3))
    return "\n".join([*lines, "", summary(statistics)])


def judged(statistics: SetStatistics) -> list[tuple[str, ...]]:
    """Return a row a statistic: its figures, their bars and whether met, and the references.

    The first row holds the names of the columns.
    """
    header = ("", "median", "10th", "90th", "median bar", "10th bar", "people's flames", "photos")
    lines: list[tuple[str, ...]] = [header]
    for row in _ALL_ROWS:
        values = _values(row, statistics)
        cells = [f"{value:.{row.decimals}f}" for value in values]
        known = _is_comparable(row, statistics)
        lines.append(
            (
                row.label,
                *(cells if len(cells) == 3 else [*cells, "", ""]),
                _judged(row.median_bar, values[0]) if known else _TOO_FEW,
                _judged(row.p10_bar, values[1]) if len(cells) == 3 else "",
                _reference(row.flames),
                _reference(row.photographs),
            )
        )
    return lines


def comparison(sets: Mapping[str, SetStatistics]) -> list[tuple[str, ...]]:
    """Return a row a statistic: median [10th, 90th percentile] of each set, and the references.

    Args:
        sets: name -> statistics; the first row holds the names.
    """
    rows: list[tuple[str, ...]] = [("", *sets, "people's flames", "photos")]
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
    """Return the statistics, without those of each image, and the verdicts as plain JSON values."""
    whole = asdict(statistics)
    del whole["values"]
    return {
        **whole,
        "bars": [
            {
                "statistic": each.statistic,
                "figure": each.figure,
                "value": each.value,
                **each.bar._asdict(),
                "met": each.met,
            }
            for each in verdicts(statistics)
        ],
    }


def _judged(bar: Bar | None, value: float) -> str:
    if bar is None:
        return ""
    if bar.at_most is None:
        rule = f">= {bar.at_least:g}"
    elif bar.at_most == bar.at_least:
        rule = f"{bar.at_least:g}"
    else:
        rule = f"{bar.at_least:g}-{bar.at_most:g}"
    return f"{rule} {'met' if bar.is_met_by(value) else 'NOT MET'}"


def _reference(reference: Reference | None) -> str:
    if reference is None:
        return ""
    if reference.p10 is None:
        return f"{reference.median:g}"
    return f"{reference.median:g} [{reference.p10:g}, {reference.p90:g}]"


def summary(statistics: SetStatistics) -> str:
    """Return a sentence: how many bars are met, and which images fail."""
    judged = [verdict for verdict in verdicts(statistics) if verdict.met is not None]
    met = sum(verdict.met is True for verdict in judged)
    text = f"{met} of {len(judged)} bars met"
    if statistics.n_resized:
        text += f"; {statistics.n_resized} images were resized to 256x256 before measuring"
    if statistics.unreadable:
        n = len(statistics.unreadable)
        skipped = "1 unreadable image was" if n == 1 else f"{n} unreadable images were"
        text += f"; {skipped} skipped: {_some(statistics.unreadable)}"
    if statistics.dead:
        text += f"; dead: {_some(statistics.dead)}"
    if statistics.near_duplicates:
        groups = [alike(group) for group in statistics.near_duplicates]
        text += f"; nearly the same: {_some(groups, '; ')}"
    return text


def alike(group: Sequence[str]) -> str:
    """Return the names of images that are nearly the same, of many the first, as words."""
    if len(group) == 2:
        return " and ".join(group)
    return f"{len(group)} images, {_some(group)}"


def _some(names: Sequence[str], between: str = ", ") -> str:
    more = [] if len(names) <= _MOST_NAMED else ["..."]
    return between.join([*names[:_MOST_NAMED], *more])
