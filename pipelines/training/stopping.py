"""Stop a training in time after SIGTERM, SIGUSR1 or Ctrl-C, even while its main thread is blocked.

Batch systems kill a process about 30 s after SIGTERM. Python handles a signal in the main thread
between two instructions, so not while that thread waits for a disk, another process or a compiler.
A second thread therefore also learns of signals, from a socket to which Python writes their
numbers. If the main thread does not stop within a short time, the second thread saves a checkpoint
of the last complete step and ends the process. Processes announce to each other that they stop.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipelines.system.process_group import LostProcessError, Processes
from pipelines.training.recipes import TrainResult

STOPPED = 143
"""Exit code of a training stopped by a signal: 128 + SIGTERM, the convention of shells."""

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT."""

_NUMBERS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)
_GRACE_S = 1.5
"""Time for the current step; longer than the other processes need to learn of the stop."""

_GRACE_BEFORE_S = 3.0
"""Time before the first step, in which processes tell each other that one cannot start."""

_EXCHANGE_S = 0.5
"""Interval at which processes exchange whether one stops."""

_POLL_S = 0.05
"""Interval at which `requested_within` checks for a signal."""

_SAVING_S = 20.0
"""Time limit for saving; a device that waits for another process may block forever."""

_END_S = 1.5
"""Time for the remaining work after the checkpoint is written."""


class Stopping:
    """Requests to stop this process, and how it stops.

    Attributes:
        requested: whether to stop, because of a signal or because another process stops.
        interrupted: whether Ctrl-C requested the stop.
        consistent: lock that is held while weights, counts and records do not belong to the same
            step, and forever once another thread than the main one saves a checkpoint.
        rescue: saves a checkpoint of the last complete step, if that is not saved yet, and returns
            the result of the training; None while there is nothing to save.
        leaving: whether the main thread has saved the training and is about to exit.
        on_exit: called with the result of `save` before another thread ends the process.
        error: the error because of which no checkpoint was saved.
    """

    def __init__(self) -> None:
        self.requested = self.interrupted = self.leaving = False
        self.consistent = threading.RLock()
        self.rescue: Callable[[], TrainResult] | None = None
        self.on_exit: Callable[[TrainResult | None], None] = lambda _: None
        self.error: Exception | None = None
        self._saved: TrainResult | None = None
        self._wake = threading.Event()
        self._ended = threading.Event()

    @property
    def code(self) -> int:
        """The exit code of a process that has stopped."""
        return INTERRUPTED if self.interrupted else STOPPED

    @contextmanager
    def rescued_by(self, rescue: Callable[[], TrainResult]) -> Iterator[None]:
        """Let `save` call a function in the block, at the end of which the training is saved."""
        self.rescue = rescue
        try:
            yield
        finally:
            self.leaving, self.rescue = True, None

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Handle SIGTERM, SIGUSR1 and Ctrl-C in the block, except ignored ones.

        A shell's ``&`` and nohup make a command ignore some signals. Python delivers signals to the
        main thread; in another thread this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self._handle)
            for number in _NUMBERS
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        # Do not acquire locks here: a second signal may arrive between any two instructions, and
        # waiting for a lock of an event that this thread holds would never end. `_listen` sets it.
        self._request(number)
        if self.rescue is None:
            # Without progress to save, raise, so that open resources are closed.
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(STOPPED)

    def _request(self, number: int | None) -> None:
        self.interrupted = self.interrupted or number == signal.SIGINT
        self.requested = True

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Handle signals in the block, and end the process if its main thread does not.

        This is for commands, because it ends the whole process.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        for work in (lambda: self._listen(receiver), self._end_in_time):
            threading.Thread(target=work, name="stopping", daemon=True).start()
        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        try:
            with self.handle_signals():
                yield
        finally:
            signal.set_wakeup_fd(before)
            sender.close()
            self._ended.set()
            self._wake.set()

    @contextmanager
    def synchronized(self, processes: Processes) -> Iterator[None]:
        """Stop in the block when another process stops, and stop the others with this one."""
        ended = threading.Event()

        def exchange() -> None:
            announced = False
            while not ended.wait(_EXCHANGE_S):
                try:
                    if self.requested and not announced:
                        processes.announce_stop()
                        announced = True
                    elif not self.requested and processes.is_stop_announced():
                        announced = True
                        self._request(None)
                        self._wake.set()
                except LostProcessError:
                    # The first process has ended, and with it the training.
                    self._request(None)
                    self._wake.set()
                    return
                except ValueError:
                    # The process group was closed during the exchange.
                    return

        if processes.world.size == 1:
            yield
            return
        thread = threading.Thread(target=exchange, name="stopping", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            # The exchange may hang, which must not delay the process.
            thread.join(2 * _EXCHANGE_S)

    def requested_within(self, seconds: float) -> bool:
        """Return whether a stop is requested now or within some seconds."""
        end = time.monotonic() + seconds
        # Poll: outside `enforced` no thread sets the event after a signal.
        while not self.requested and (remaining := end - time.monotonic()) > 0:
            if self._wake.wait(min(remaining, _POLL_S)):
                break
        return self.requested

    def save(self) -> TrainResult | None:
        """Save a checkpoint of the last complete step, and prevent further steps.

        Returns:
            The result of the training; None if there is nothing to save, or if saving failed or
            takes too long, for example on a device that waits for another process.
        """
        thread = threading.Thread(target=self._rescue, name="saving", daemon=True)
        thread.start()
        thread.join(_SAVING_S)
        return self._saved

    def _rescue(self) -> None:
        # The lock is never released.
        self.consistent.acquire()
        if self.rescue is None or self.leaving:
            return
        try:
            self._saved = self.rescue()
        except Exception as error:  # noqa: BLE001 - reported when the process ends
            self.error = error

    def _listen(self, receiver: socket.socket) -> None:
        with receiver:
            while numbers := receiver.recv(64):
                for number in numbers:
                    if number in _NUMBERS:
                        self._request(number)
                        self._wake.set()

    def _end_in_time(self) -> None:
        self._wake.wait()
        if not self.requested:
            return
        if not self._ended.wait(_GRACE_S if self.rescue else _GRACE_BEFORE_S):
            saved = self.save()
            if not (self.leaving and self._ended.wait(_END_S)):
                if not self.leaving:
                    self.on_exit(saved)
                _end_process(1 if self.error else self.code)
        # The main thread is exiting, but suspended workers or servers may block it.
        threading.main_thread().join()
        time.sleep(_END_S)
        _end_process(self.code)


def _end_process(code: int) -> None:
    """End this process and its children at once, even if they are suspended or blocked."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for each in multiprocessing.active_children():
        each.kill()
    os._exit(code)


def _reset_signals_in_child() -> None:
    """Remove the handlers of `Stopping` in a forked child."""
    numbers = [
        number
        for number in _NUMBERS
        if isinstance(getattr(signal.getsignal(number), "__self__", None), Stopping)
    ]
    for number in numbers:
        # A terminal sends Ctrl-C to all processes of a command; the parent ends its children.
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    if numbers:
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_signals_in_child)
