"""Measure contenders interleaved, with warm-up, quartiles and a check that the machine is idle.

An absolute speed says little, because another program on the same machine can halve it. So
contenders run A B A B ... within one run, ratios are taken round by round, and a fixed calibration
loop runs before every round and after the last. Where its time varies, the machine was busy.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipelines.provenance import processor, system, versions
from pipelines.system.processes import available_cores
from pipelines.system.progress import Progress
from pipelines.text_table import aligned

Clock = Callable[[], float]
"""Returns seconds since some moment."""

OURS = "ours"

BUSY_VARIATION = 0.15
"""On an idle machine the calibration varies by less than this share of its shortest time."""

_CALIBRATION_STEPS = 250_000
_MOST_ROWS_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A median with its quartiles. n: the number of values."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return median and quartiles (linear between values) of at least one value."""
        if len(values) == 1:
            return cls(median=values[0], low=values[0], high=values[0], n=1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, low=low, high=high, n=len(values))

    def __str__(self) -> str:
        """Write the median, and the quartiles if there is more than one value."""
        if self.n == 1:
            return number(self.median)
        return f"{number(self.median)} [{number(self.low)}, {number(self.high)}]"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something to be timed.

    run: does the work of round 0, 1, ... and returns how many units it did.
    start: what `run` does besides, such as starting a program; its time is subtracted.
    """

    name: str
    run: Callable[[int], float]
    start: Callable[[int], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """What developers require of a figure (bar) and hope for (aim), kept in the JSON.

    value: computes the figure from a row without targets.
    """

    figure: str
    unit: str
    rule: Literal["at least", "at most"]
    bar: float
    aim: float | None = None
    value: Callable[["Row"], float]

    def judge(self, row: "Row") -> dict[str, Any]:
        """Return figure, bar, aim and verdict as plain JSON values."""
        value = self.value(row)
        aim = self.bar if self.aim is None else self.aim
        sign = 1 if self.rule == "at least" else -1
        met = [sign * value >= sign * mark for mark in (aim, self.bar)]
        verdict = "aim met" if met[0] and aim != self.bar else "met" if met[1] else "NOT MET"
        return {
            "figure": self.figure, "unit": self.unit, "value": value, "rule": self.rule,
            "bar": self.bar, "aim": aim, "verdict": verdict,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A rival's rate in the same rounds, and how many times faster ours is."""

    name: str
    rate: Spread
    ratio: Spread


@dataclass(frozen=True, kw_only=True)
class Row:
    """One benchmark.

    rate: ours, in units per second. calibration_variation: by what share of its shortest time the
    calibration loop varied. details: further figures. targets: judged ones, see `Target.judge`.
    """

    name: str
    unit: str
    rate: Spread
    rivals: tuple[Rival, ...] = ()
    calibration_variation: float
    details: Mapping[str, float] = field(default_factory=dict)
    targets: tuple[Mapping[str, Any], ...] = ()

    @property
    def busy(self) -> bool:
        """Whether other programs used the machine meanwhile."""
        return self.calibration_variation > BUSY_VARIATION


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is timed: ours first, then the rivals.

    scale: units of work in one of the row's units. details: further figures, read at the end.
    """

    name: str
    unit: str
    contenders: tuple[Contender, ...]
    scale: float = 1.0
    targets: tuple[Target, ...] = ()
    details: Callable[[], Mapping[str, float]] = dict

    def run(
        self, rounds: int, clock: Clock = time.perf_counter, tick: Callable[[], None] = lambda: None
    ) -> Row:
        """Run the contenders interleaved and return the row.

            calibrate  A0 B0  (warm-up, not counted)  calibrate  A1 B1  calibrate  A2 B2  calibrate

        Args:
            rounds: rounds that count, at least 1.
            clock: read before and after each run.
            tick: called after each run, (rounds + 1) * len(contenders) times.

        Raises:
            ValueError: if a run took no longer than its own start.
        """
        rates: list[list[float]] = [[] for _ in self.contenders]
        calibrations = []
        for place in range(rounds + 1):
            calibrations.append(calibrate(clock))
            for contender, counted in zip(self.contenders, rates, strict=True):
                rate = _time(contender, place, clock) / self.scale
                if place > 0:
                    counted.append(rate)
                tick()
        calibrations.append(calibrate(clock))
        ours = rates[0]
        rivals = [
            Rival(
                name=contender.name,
                rate=Spread.of(theirs),
                ratio=Spread.of([a / b for a, b in zip(ours, theirs, strict=True)]),
            )
            for contender, theirs in zip(self.contenders[1:], rates[1:], strict=True)
        ]
        row = Row(
            name=self.name,
            unit=self.unit,
            rate=Spread.of(ours),
            rivals=tuple(rivals),
            # The first calibration is its own warm-up.
            calibration_variation=variation(calibrations[1:]),
            details=dict(self.details()),
        )
        return judged(row, self.targets)


def judged(row: Row, targets: Sequence[Target]) -> Row:
    """Return a row with what `Target.judge` says of it."""
    return Row(**{**vars(row), "targets": tuple(target.judge(row) for target in targets)})


def variation(seconds: Sequence[float]) -> float:
    """Return by what share of the shortest time the longest one exceeds it."""
    return max(seconds) / min(seconds) - 1


def calibrate(clock: Clock = time.perf_counter) -> float:
    """Return the seconds that a fixed loop of integer work takes, about 20 ms."""
    start = clock()
    state = 1
    for _ in range(_CALIBRATION_STEPS):
        # The generator of Numerical Recipes, modulo 2^32: each step depends on the one before.
        state = (1664525 * state + 1013904223) & 0xFFFFFFFF
    return clock() - start


def _time(contender: Contender, place: int, clock: Clock) -> float:
    """Return the units per second of one run."""
    begin = clock()
    units = contender.run(place)
    seconds = clock() - begin
    if contender.start is not None:
        begin = clock()
        contender.start(place)
        seconds -= clock() - begin
    if seconds <= 0:
        raise ValueError(f"{contender.name} took no longer than its start; increase its work")
    return units / seconds


def run_comparisons(
    comparisons: Sequence[Comparison], rounds: int, progress: Progress, *, more: int = 0
) -> list[Row]:
    """Return one row per comparison.

    Args:
        comparisons: run one after another.
        rounds: rounds that count, of each.
        progress: called with the number of finished runs and of all runs.
        more: runs that the caller does afterwards.
    """
    total = (rounds + 1) * sum(len(each.contenders) for each in comparisons) + more
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    progress(0, total)
    return [each.run(rounds, tick=tick) for each in comparisons]


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, and restore the number afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- results -------------------------------------------------------------------------------------


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Return CPU model, cores and versions as plain JSON values.

    packages: distributions whose versions are listed besides Python's and ours.
    """
    return {
        "processor": processor(),
        "cores": available_cores(),
        "system": system(),
        "versions": versions(tuple(packages)),
    }


def machine_line(machine: Mapping[str, Any]) -> str:
    """Return what `machine` found as one line."""
    listed = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    cores = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    return f"{machine['processor']}, {cores}, {machine['system']}; {listed}"


def number(value: float) -> str:
    """Write a number with three significant digits and without an exponent."""
    if value == 0:
        return "0"
    decimals = next((places for places, size in ((0, 100), (1, 10)) if abs(value) >= size), 2)
    return f"{value:,.{decimals}f}"


def document(
    rows: Sequence[Row], machine: Mapping[str, Any], notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Return all results as plain JSON values."""
    return {
        "machine": dict(machine),
        "rows": [{**asdict(row), "busy": row.busy} for row in rows],
        "notes": list(notes),
    }


def table(rows: Sequence[Row], machine: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """Return rates and ratios as aligned text."""
    lines: list[tuple[str, ...]] = [("", "ours", "rival's", "ratio", "rival")]
    for row in rows:
        lines.append((f"{row.name}, {row.unit}", number(row.rate.median), "", "", ""))
        lines += [
            ("", "", number(rival.rate.median), f"{rival.ratio} x", rival.name)
            for rival in row.rivals
        ]
    busy = [row.name for row in rows if row.busy]
    told = (
        "Medians [and quartiles] of interleaved rounds; one thread unless the name says otherwise."
    )
    parts = [
        "\n".join(aligned(lines)),
        "\n".join([*notes, told, *busy_note(busy, len(rows)), machine_line(machine)]),
    ]
    return "\n\n".join(parts)


def busy_note(busy: Sequence[str], n_rows: int) -> list[str]:
    """Return a line on the rows that were measured while the machine was busy, if there are any."""
    if not busy:
        return []
    which = f"{len(busy)} of {n_rows} rows" if len(busy) > _MOST_ROWS_NAMED else "; ".join(busy)
    return [
        f"The machine was busy during {which}: trust the ratios more than the rates, or run again."
    ]
