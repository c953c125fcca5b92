"""A set's statistics beside what people chose, photographs, and what a good set should reach."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.report.set_statistics import N_OF_DIVERSITY, Percentiles, SetStatistics
from pipelines.text_table import aligned


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A published figure: a median, and where known the 10th and 90th percentile."""

    median: float
    p10: float | None = None
    p90: float | None = None


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What a figure should reach: `at_least` and, where more is not better, `at_most`."""

    at_least: float
    at_most: float | None = None

    def is_met_by(self, value: float) -> bool:
        """Return whether the value lies within the bar."""
        return self.at_least <= value and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One statistic of the table: how it is called and written, its references and bars."""

    name: str
    label: str
    decimals: int
    flames: Reference | None = None
    photographs: Reference | None = None
    median_bar: Bar | None = None
    p10_bar: Bar | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether one figure of a set meets its bar; None where the set is too small to tell."""

    statistic: str
    figure: str
    value: float
    bar: Bar
    met: bool | None


_MOST_NAMED = 3

NONE = Bar(at_least=0, at_most=0)
"""Of what there should be none."""

# Flames: 200 fractal flames designed or bred by people (Electric Sheep), 256x256, and the first 64
# of them for the Vendi scores. Photographs: at 256x256. Medians, 10th and 90th percentiles. The
# bars are ours: what a set needs that is to mix better than noise does.
ROWS = (
    Row(
        name="coverage",
        label="coverage",
        decimals=3,
        flames=Reference(median=0.985, p10=0.57, p90=1.0),
        photographs=Reference(median=1.0, p10=0.97, p90=1.0),
        median_bar=Bar(at_least=0.99),
        p10_bar=Bar(at_least=0.75),
    ),
    Row(
        name="edge_density",
        label="edge density",
        decimals=3,
        flames=Reference(median=0.43, p10=0.15, p90=0.67),
        photographs=Reference(median=0.401, p10=0.21, p90=0.85),
        median_bar=Bar(at_least=0.38, at_most=0.60),
        p10_bar=Bar(at_least=0.20),
    ),
    Row(
        name="textured_blocks",
        label="textured blocks",
        decimals=3,
        flames=Reference(median=0.67, p10=0.28, p90=0.92),
        photographs=Reference(median=0.60, p10=0.36, p90=1.0),
        median_bar=Bar(at_least=0.65),
        p10_bar=Bar(at_least=0.40),
    ),
    Row(
        name="edges_at_32",
        label="edges at 32 px",
        decimals=3,
        flames=Reference(median=0.70, p10=0.35, p90=0.86),
        photographs=Reference(median=0.69, p10=0.29, p90=0.81),
        median_bar=Bar(at_least=0.70),
        p10_bar=Bar(at_least=0.48),
    ),
    Row(
        name="luma_std_at_32",
        label="luma std at 32 px",
        decimals=3,
        flames=Reference(median=0.144, p10=0.07, p90=0.21),
        photographs=Reference(median=0.117),
        median_bar=Bar(at_least=0.13),
        p10_bar=Bar(at_least=0.08),
    ),
    Row(
        name="spectral_slope",
        label="spectral slope",
        decimals=2,
        flames=Reference(median=2.57, p10=1.86, p90=3.02),
        photographs=Reference(median=2.33),
        median_bar=Bar(at_least=1.9, at_most=2.7),
    ),
    Row(name="spectral_r2", label="its R2", decimals=3, median_bar=Bar(at_least=0.96)),
    Row(
        name="rgb_entropy",
        label="RGB entropy, bits",
        decimals=2,
        flames=Reference(median=4.23, p10=2.48, p90=5.80),
        photographs=Reference(median=4.28),
        median_bar=Bar(at_least=4.5),
        p10_bar=Bar(at_least=3.2),
    ),
    Row(
        name="luma_entropy",
        label="luma entropy, bits",
        decimals=2,
        flames=Reference(median=7.0, p10=5.5, p90=7.6),
        photographs=Reference(median=6.94),
    ),
    Row(
        name="colourfulness",
        label="colourfulness",
        decimals=1,
        flames=Reference(median=43, p10=19, p90=77),
        photographs=Reference(median=40),
        median_bar=Bar(at_least=55),
        p10_bar=Bar(at_least=25),
    ),
    Row(
        name="jpeg_bits_per_pixel",
        label="JPEG q75, bits/pixel",
        decimals=2,
        flames=Reference(median=1.67, p10=1.00, p90=2.28),
        photographs=Reference(median=1.57),
        median_bar=Bar(at_least=1.3, at_most=2.3),
    ),
    Row(
        name="edge_box_dimension",
        label="edge box dimension",
        decimals=2,
        flames=Reference(median=1.83),
        photographs=Reference(median=1.81),
    ),
)
DIVERSITY_ROWS = (
    Row(
        name="colour_vendi",
        label="colour Vendi of 64",
        decimals=1,
        flames=Reference(median=4.7),
        photographs=Reference(median=4.3),
        median_bar=Bar(at_least=9),
    ),
    Row(
        name="hog_vendi",
        label="HOG Vendi of 64",
        decimals=1,
        flames=Reference(median=7.4),
        photographs=Reference(median=7.6),
        median_bar=Bar(at_least=7.4),
    ),
)


def verdicts(statistics: SetStatistics) -> list[Verdict]:
    """Judge every figure that has a bar, in the order of the table.

    Dead pictures and near-duplicates come last.

    The bars are what a mixing set needs that is to train better than noise: full of light, edges
    left at 32 pixels, many colours, a spectrum like nature's, no two pictures alike.
    """
    found = []
    for row in ROWS:
        values = statistics.per_picture[row.name]
        for figure, bar, value in (
            ("median", row.median_bar, values.median),
            ("p10", row.p10_bar, values.p10),
        ):
            if bar is not None:
                found.append(_verdict(row.name, figure, value, bar))
    enough = statistics.n_of_diversity == N_OF_DIVERSITY
    for row in DIVERSITY_ROWS:
        if row.median_bar is not None:
            value = _score(statistics, row)
            met = row.median_bar.is_met_by(value) if enough else None
            bar = row.median_bar
            found.append(Verdict(statistic=row.name, figure="score", value=value, bar=bar, met=met))
    return [
        *found,
        _verdict("dead_pictures", "count", len(statistics.dead), NONE),
        _verdict("near_duplicates", "count", statistics.n_superfluous, NONE),
    ]


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
    for row in ROWS:
        values = statistics.per_picture[row.name]
        lines.append(
            (
                row.label,
                *(f"{value:.{row.decimals}f}" for value in (values.median, values.p10, values.p90)),
                _judged(row.median_bar, values.median),
                _judged(row.p10_bar, values.p10),
                _reference(row.flames),
                _reference(row.photographs),
            )
        )
    enough = statistics.n_of_diversity == N_OF_DIVERSITY
    for row in DIVERSITY_ROWS:
        value = _score(statistics, row)
        judged = _judged(row.median_bar, value) if enough else f"needs {N_OF_DIVERSITY} pictures"
        references = (_reference(row.flames), _reference(row.photographs))
        lines.append((row.label, f"{value:.{row.decimals}f}", "", "", judged, "", *references))
    for label, count in _counts(statistics):
        lines.append((label, f"{count}", "", "", _judged(NONE, count), "", "", ""))
    return lines


def comparison(sets: Mapping[str, SetStatistics]) -> list[tuple[str, ...]]:
    """Return a row a statistic: median [10th, 90th percentile] of each set, and the references.

    Args:
        sets: name -> statistics; the first row holds the names.
    """
    rows: list[tuple[str, ...]] = [("", *sets, "people's flames", "photos")]
    for row in ROWS:
        cells = [_three(row, each.per_picture[row.name]) for each in sets.values()]
        rows.append((row.label, *cells, _reference(row.flames), _reference(row.photographs)))
    for row in DIVERSITY_ROWS:
        cells = [
            f"{_score(each, row):.{row.decimals}f}"
            if each.n_of_diversity == N_OF_DIVERSITY
            else f"needs {N_OF_DIVERSITY} pictures"
            for each in sets.values()
        ]
        rows.append((row.label, *cells, _reference(row.flames), _reference(row.photographs)))
    counts = [_counts(each) for each in sets.values()]
    for place, (label, _) in enumerate(counts[0]):
        rows.append((label, *(str(each[place][1]) for each in counts), "", ""))
    return rows


def _three(row: Row, values: Percentiles) -> str:
    median, p10, p90 = (
        f"{value:.{row.decimals}f}" for value in (values.median, values.p10, values.p90)
    )
    return f"{median} [{p10}, {p90}]"


def _counts(statistics: SetStatistics) -> list[tuple[str, int]]:
    return [
        ("dead pictures", len(statistics.dead)),
        ("near-duplicates", statistics.n_superfluous),
    ]


def document(statistics: SetStatistics) -> dict[str, Any]:
    """Return the statistics and the verdicts as plain JSON values."""
    return {
        **statistics.document(),
        "bars": [
            {
                "statistic": verdict.statistic,
                "figure": verdict.figure,
                "value": verdict.value,
                "at_least": verdict.bar.at_least,
                "at_most": verdict.bar.at_most,
                "met": verdict.met,
            }
            for verdict in verdicts(statistics)
        ],
    }


def _score(statistics: SetStatistics, row: Row) -> float:
    return statistics.colour_vendi if row.name == "colour_vendi" else statistics.hog_vendi


def _verdict(statistic: str, figure: str, value: float, bar: Bar) -> Verdict:
    met = bar.is_met_by(value)
    return Verdict(statistic=statistic, figure=figure, value=value, bar=bar, met=met)


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
    """Return a sentence: how many bars are met, and which pictures fail."""
    judged = [verdict for verdict in verdicts(statistics) if verdict.met is not None]
    met = sum(verdict.met is True for verdict in judged)
    text = f"{met} of {len(judged)} bars met"
    if statistics.n_resized:
        text += f"; {statistics.n_resized} pictures were brought to 256x256 before measuring"
    if statistics.unreadable:
        n = len(statistics.unreadable)
        left_out = "1 unreadable picture was" if n == 1 else f"{n} unreadable pictures were"
        text += f"; {left_out} left out: {_some(statistics.unreadable)}"
    if statistics.dead:
        text += f"; dead: {_some(statistics.dead)}"
    if statistics.doubled:
        text += f"; nearly the same: {_some([alike(group) for group in statistics.doubled], '; ')}"
    return text


def alike(group: Sequence[str]) -> str:
    """Return the names of pictures that are nearly the same, of many the first, as words."""
    if len(group) == 2:
        return " and ".join(group)
    return f"{len(group)} pictures, {_some(group)}"


def _some(names: Sequence[str], between: str = ", ") -> str:
    more = [] if len(names) <= _MOST_NAMED else ["..."]
    return between.join([*names[:_MOST_NAMED], *more])
