"""Progress callbacks, and their display on stderr as a bar or as lines of a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

Progress = Callable[[int, int], None]
"""Called with the number of items done and the total number."""

_SHORTEST_S, _LONGEST_S = 10.0, 60.0
"""Seconds between two lines: a run of minutes has some lines, a run of days not too many."""


def no_progress(_done: int, _total: int) -> None:
    """Show nothing."""


class ShowProgress(Protocol):
    """Shows the number of items done, the total and a note."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show the number of items done.

        Items done at the first call do not count for the rate. A smaller count or another total
        starts a new bar.
        """

    def line(self, text: str) -> None:
        """Print a permanent line above the bar."""


@contextmanager
def progress_bar(unit: str) -> Iterator[ShowProgress]:
    """Show progress on stderr, with the rate and the time left.

    A terminal shows a bar. A file or a pipe gets plain lines: the first after ten seconds, and one
    at the end.

    Args:
        unit: name of the items, in the plural.
    """
    shown = _Bars(unit) if sys.stderr.isatty() else PlainLines(unit, sys.stderr)
    try:
        yield shown
    finally:
        shown.close()


class PlainLines:
    """Progress as lines of a log, without bars and carriage returns."""

    def __init__(
        self, unit: str, stream: TextIO, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Prepare the display.

        Args:
            unit: name of the items, in the plural.
            stream: output of the lines.
            clock: returns the time in seconds, from any origin.
        """
        self._unit, self._stream, self._clock = unit, stream, clock
        self._total = -1
        self._first = self._done = self._written = 0
        self._begun = self._last = 0.0
        self._note = ""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Print a line if all items are done, or enough time has passed since the last line."""
        now = self._clock()
        if self._total < 0 or done < self._done or total != self._total:
            self._total, self._begun, self._last = total, now, now
            self._first, self._written = done, -1
        self._done, self._note = done, note
        spent = now - self._begun
        if done >= total or now - self._last >= min(max(_SHORTEST_S, spent / 20), _LONGEST_S):
            self._last = now
            self._write(spent)

    def line(self, text: str) -> None:
        """Print any other line."""
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Print a last line if the work ended early."""
        if self._total > self._done > self._written:
            self._write(self._clock() - self._begun)

    def _write(self, spent: float) -> None:
        if self._written == self._done:
            return
        self._written = self._done
        parts = [f"{self._done:,} of {self._total:,} {self._unit}"]
        rate = (self._done - self._first) / max(spent, 1e-9)
        if self._done < self._total:
            parts[0] += f" ({100 * self._done // self._total} %)"
            if rate > 0:
                parts.append(f"{_rate_in_words(rate)}")
                parts.append(f"{in_words((self._total - self._done) / rate)} left")
        else:
            parts.append(f"took {in_words(spent)}")
        self.line(", ".join([*parts, *([self._note] if self._note else [])]))


class _Bars:
    """Progress as a bar in a terminal."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._bar: Any = None

    def __call__(self, done: int, total: int, note: str = "") -> None:
        from tqdm import tqdm

        if self._bar is not None and (done < self._bar.n or total != self._bar.total):
            self.close()
        if self._bar is None:
            self._bar = tqdm(
                total=total,
                initial=done,
                unit=f" {self._unit}",
                mininterval=0.2,
                dynamic_ncols=True,
                file=sys.stderr,
            )
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)

    def line(self, text: str) -> None:
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def in_words(seconds: float) -> str:
    """Return a duration as "8 s", "12 min" or "3 h 20 min"."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} days {hours} h" if hours else f"{days} days"


def _rate_in_words(rate: float) -> str:
    return f"{rate:,.0f} per s" if rate >= 10 else f"{rate:.2g} per s"
