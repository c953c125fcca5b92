"""Comparisons: contenders that take turns, and what becomes of their rates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipelines.bench.results import Goal, Rival, Row
from pipelines.bench.timing import Clock, Contender, Measurement, Spread, alternate
from pipelines.system.progress import Progress

OURS = "ours"


@dataclass
class Ticks:
    """Counts runs and shows them."""

    total: int
    progress: Progress
    done: int = 0

    def show(self) -> None:
        """Report how many are done."""
        self.progress(self.done, self.total)

    def tick(self) -> None:
        """Count one more."""
        self.done += 1
        self.show()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is to be timed, ours first, and what becomes of it.

    scale: units of work in one of the row's units. finish: adds goals and details to the row.
    """

    name: str
    unit: str
    scale: float
    contenders: tuple[Contender, ...]
    finish: Callable[[Spread, tuple[Rival, ...]], "Findings"]

    def row(self, measurement: Measurement) -> Row:
        """Return the row of a measurement."""
        rate = scaled(measurement.rate(OURS), self.scale)
        rivals = tuple(
            Rival(
                name=rival.name,
                rate=scaled(measurement.rate(rival.name), self.scale),
                ratio=measurement.ratio(OURS, rival.name),
            )
            for rival in self.contenders[1:]
        )
        found = self.finish(rate, rivals)
        return Row(
            name=self.name,
            unit=self.unit,
            rate=rate,
            rivals=rivals,
            goals=found.goals,
            calibration_variation=measurement.calibration_variation,
            details=found.details,
            remarks=found.remarks,
        )


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a measurement means: see `Row`."""

    goals: tuple[Goal, ...]
    details: dict[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def scaled(spread: Spread, scale: float) -> Spread:
    """Return a spread in units of `scale`."""
    return Spread(
        median=spread.median / scale, low=spread.low / scale, high=spread.high / scale, n=spread.n
    )


def count_runs(comparisons: Sequence[Comparison], rounds: int) -> int:
    """Return how many runs of contenders comparisons take, the warm-ups included."""
    return (rounds + 1) * sum(len(each.contenders) for each in comparisons)


def run_comparisons(
    comparisons: Sequence[Comparison], rounds: int, clock: Clock, ticks: Ticks
) -> list[Row]:
    """Return a row for each comparison, one after another."""
    ticks.show()
    return [
        each.row(alternate(each.contenders, rounds=rounds, clock=clock, tick=ticks.tick))
        for each in comparisons
    ]
