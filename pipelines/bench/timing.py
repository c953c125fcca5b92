"""How everything here is timed: in turn, warmed up, with a spread, and under watch.

A speed alone says little: another program on the same machine halves it. So what is compared runs
A B A B ... within the same minute, a ratio is taken a round at a time, and a fixed calibration loop
runs before every round and after the last: where its time varies, the machine was busy.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Clock = Callable[[], float]
"""Returns seconds since some moment."""

BUSY_VARIATION = 0.15
"""A calibration that varies by more says that others used the machine: an idle one stays below."""

_CALIBRATION_STEPS = 250_000


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A median with its quartiles. n: how many values they come from."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return median and quartiles (linear between values) of at least one value.

        Raises:
            ValueError: if there is none.
        """
        if not values:
            raise ValueError("no values have no median; time at least one round")
        if len(values) == 1:
            return cls(median=values[0], low=values[0], high=values[0], n=1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, low=low, high=high, n=len(values))


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something to be timed.

    run: does the work of round 0, 1, ... and returns how many units it did.
    start: what `run` does besides, as a program's start; its time is subtracted.
    """

    name: str
    run: Callable[[int], float]
    start: Callable[[int], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What `alternate` saw: units a second of each contender by round, and calibration times."""

    rates: Mapping[str, tuple[float, ...]]
    calibrations: tuple[float, ...]

    def rate(self, name: str) -> Spread:
        """Return the units a second of a contender."""
        return Spread.of(self.rates[name])

    def ratio(self, name: str, rival: str) -> Spread:
        """Return how many times faster a contender is than a rival, compared within each round."""
        pairs = zip(self.rates[name], self.rates[rival], strict=True)
        return Spread.of([ours / theirs for ours, theirs in pairs])

    @property
    def calibration_variation(self) -> float:
        """By what share of its shortest time the calibration varied, 0 on an ideal machine."""
        return variation(self.calibrations)


def variation(seconds: Sequence[float]) -> float:
    """Return by what share of the shortest the longest of some times exceeds it."""
    return max(seconds) / min(seconds) - 1


def calibrate(clock: Clock = time.perf_counter) -> float:
    """Return the seconds that a fixed loop of integer work takes, about 20 ms."""
    start = clock()
    state = 1
    for _ in range(_CALIBRATION_STEPS):
        # Numerical Recipes' generator, modulo 2^32: each step waits for the one before.
        state = (1664525 * state + 1013904223) & 0xFFFFFFFF
    return clock() - start


def alternate(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    clock: Clock = time.perf_counter,
    calibrate: Callable[[Clock], float] = calibrate,
    tick: Callable[[], None] = lambda: None,
) -> Measurement:
    """Run contenders in turn, round by round.

        calibrate  A0 B0  (the warm-up, not counted)  calibrate  A1 B1  calibrate  A2 B2  calibrate

    Args:
        contenders: what to time, in the order of their turns.
        rounds: rounds that count, at least 1.
        clock: read before and after each run.
        calibrate: times the calibration loop with the clock.
        tick: called after each run of a contender, (rounds + 1) * len(contenders) times.

    Raises:
        ValueError: if a run took no longer than its own start.
    """
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    calibrations = []
    for number in range(rounds + 1):
        calibrations.append(calibrate(clock))
        for contender in contenders:
            rate = _time(contender, number, clock)
            if number > 0:
                rates[contender.name].append(rate)
            tick()
    calibrations.append(calibrate(clock))
    return Measurement(
        rates={name: tuple(values) for name, values in rates.items()},
        # The first is the calibration's own warm-up.
        calibrations=tuple(calibrations[1:]),
    )


def _time(contender: Contender, number: int, clock: Clock) -> float:
    """Return the units a second of one run."""
    begin = clock()
    units = contender.run(number)
    seconds = clock() - begin
    if contender.start is not None:
        begin = clock()
        contender.start(number)
        seconds -= clock() - begin
    if seconds <= 0:
        raise ValueError(f"{contender.name}: took no longer than its start; give it more work")
    return units / seconds
