"""What a benchmark found, as a table for people and as a document for machines."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipelines.bench.machine import in_words
from pipelines.bench.timing import BUSY_VARIATION, Spread
from pipelines.text_table import aligned

_MEDIANS = "median [quartiles] of rounds taken in turn; one thread where nothing else is said"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a figure must reach (bar) and, where that is more, should reach (aim).

    figure: what it is, as "ratio" or "memory"; unit: as written behind a number.
    """

    figure: str
    unit: str
    value: float
    rule: Literal["at least", "at most"]
    bar: float
    aim: float

    @property
    def verdict(self) -> Literal["aim met", "met", "NOT MET"]:
        """How far the figure came."""
        if self.aim != self.bar and self._reaches(self.aim):
            return "aim met"
        return "met" if self._reaches(self.bar) else "NOT MET"

    def _reaches(self, mark: float) -> bool:
        return self.value >= mark if self.rule == "at least" else self.value <= mark


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A rival's rate in the same rounds, and how many times faster ours is."""

    name: str
    rate: Spread
    ratio: Spread


@dataclass(frozen=True, kw_only=True)
class Row:
    """One benchmark.

    rate: ours, in units a second. calibration_variation: see `timing.Measurement`.
    details: further figures by name; remarks: the same, as sentences.
    """

    name: str
    unit: str
    rate: Spread
    rivals: tuple[Rival, ...] = ()
    goals: tuple[Goal, ...] = ()
    calibration_variation: float
    details: Mapping[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def busy(self) -> bool:
        """Whether others used the machine meanwhile, so that the figures are to be doubted."""
        return self.calibration_variation > BUSY_VARIATION


def document(
    rows: Sequence[Row], machine: Mapping[str, Any], notes: Sequence[str]
) -> dict[str, Any]:
    """Return everything as plain JSON values."""
    return {
        "machine": dict(machine),
        "rows": [
            {
                **asdict(row),
                "busy": row.busy,
                "goals": [{**asdict(goal), "verdict": goal.verdict} for goal in row.goals],
            }
            for row in rows
        ],
        "notes": list(notes),
    }


def table(rows: Sequence[Row], machine: Mapping[str, Any], notes: Sequence[str]) -> str:
    """Return everything as lines of aligned text, for a terminal of 120 columns."""
    lines: list[tuple[str, ...]] = [("", "ours", "rival", "its rate", "ours / rival", "wanted")]
    for row in rows:
        lines.extend(_lines_of(row))
    remarks = [f"{row.name}: {remark}" for row in rows for remark in row.remarks]
    warnings = [
        f"machine busy: calibration varied by {row.calibration_variation:.0%} during {row.name!r}"
        for row in rows
        if row.busy
    ]
    parts = [aligned(lines), remarks, [*warnings, *notes], [_MEDIANS, in_words(machine)]]
    return "\n\n".join("\n".join(part) for part in parts if part)


def number(value: float) -> str:
    """Write a number with three digits that count, and no exponent."""
    if value == 0:
        return "0"
    decimals = next((places for places, size in ((0, 100), (1, 10)) if abs(value) >= size), 2)
    return f"{value:,.{decimals}f}"


def _lines_of(row: Row) -> list[tuple[str, ...]]:
    """Return a row's lines: a rival and a goal on each, as long as there are any."""
    lines: list[tuple[str, ...]] = []
    for place in range(max(len(row.rivals), len(row.goals), 1)):
        head = (f"{row.name}, {row.unit}", _spread(row.rate)) if place == 0 else ("", "")
        rival = ("", "", "")
        if place < len(row.rivals):
            known = row.rivals[place]
            rival = (known.name, _spread(known.rate), f"{_spread(known.ratio)} x")
        goal = _goal(row.goals[place]) if place < len(row.goals) else ""
        lines.append((*head, *rival, goal))
    return lines


def _spread(spread: Spread) -> str:
    if spread.n == 1:
        return number(spread.median)
    return f"{number(spread.median)} [{number(spread.low)}, {number(spread.high)}]"


def _goal(goal: Goal) -> str:
    sign = ">=" if goal.rule == "at least" else "<="
    aim = "" if goal.aim == goal.bar else f", aim {goal.aim:g}"
    return f"{goal.figure} {sign} {goal.bar:g}{aim} {goal.unit}: {goal.verdict}"
