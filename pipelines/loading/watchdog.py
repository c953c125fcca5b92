"""Tells what a process waits for when nothing moves, and ends it when that lasts too long.

A process of many can hang where no error reaches it: in an exchange with one that is stopped, or in
a read of a disk that does not answer. A thread looks at the clock, whatever the others hang in.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

Awaited = Callable[[], str]


class Watchdog:
    """What this process waits for, and since when.

    limit_s: seconds without a move after which the process ends with code 1; 0 for never.
    first_word_s: seconds after which a line in the log says what is awaited, then again after
        twice as long, and so on.
    """

    def __init__(self, *, limit_s: float = 0.0, first_word_s: float = 60.0) -> None:
        if limit_s < 0:
            raise ValueError(f"limit_s is {limit_s}; give 0 or more seconds")
        if first_word_s <= 0:
            raise ValueError(f"first_word_s is {first_word_s}; give more than 0 seconds")
        self.limit_s = limit_s
        self._first_word_s = first_word_s
        self._moved = time.monotonic()
        self._awaited: Awaited = lambda: "the beginning"
        self._limited = True
        self._ended = threading.Event()

    def moved(self) -> None:
        """Say that something was finished: a step, a part of an evaluation, a checkpoint."""
        self._moved = time.monotonic()

    @contextmanager
    def awaiting(self, what: str | Awaited) -> Iterator[None]:
        """Say what the block waits for; a function is asked when it is to be told."""
        before = self._awaited
        self._awaited = what if callable(what) else lambda: what
        try:
            yield
        finally:
            self._awaited = before

    @contextmanager
    def without_limit(self) -> Iterator[None]:
        """Let the block take as long as it takes; what it waits for is told all the same."""
        self._limited = False
        try:
            yield
        finally:
            self.moved()
            self._limited = True

    @contextmanager
    def watching(self) -> Iterator["Watchdog"]:
        """Watch while the block runs."""
        self.moved()
        # A daemon: the program's end does not wait for it.
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()

    def _watch(self) -> None:
        next_word_s = self._first_word_s
        pause_s = min(1.0, self._first_word_s / 4, (self.limit_s or 4.0) / 4)
        while not self._ended.wait(pause_s):
            still_s = time.monotonic() - self._moved
            if still_s < self._first_word_s:
                next_word_s = self._first_word_s
            elif still_s >= next_word_s:
                log.warning("no step for %.0f s; waiting for %s", still_s, self._awaited())
                next_word_s = max(2 * next_word_s, 2 * still_s)
            if self._limited and 0 < self.limit_s <= still_s:
                self._end(still_s)

    def _end(self, still_s: float) -> None:
        """End the process, whatever its other threads hang in."""
        log.critical(
            "Error: no step for %.0f s, waiting for %s; see to that, then give the same command "
            "again with --resume auto, or a larger --stall-limit",
            still_s,
            self._awaited(),
        )
        logging.shutdown()
        os._exit(1)
