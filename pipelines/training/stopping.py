"""End a training in time after SIGTERM, SIGUSR1 or Ctrl-C, whatever its process waits for.

Batch systems kill a process some 30 s after SIGTERM. The main thread sees a signal between two
instructions of Python alone: not while it waits for a disk, another process or a compiler. So a
thread hears of signals, too: Python writes their numbers into a socket as they come. A main thread
that has not come to its own end after a moment is left where it is: the thread saves a checkpoint
of the last whole step, and ends the process. Several processes tell each other that they stop.
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
"""Exit code of a training that was stopped by a signal: as a shell has it, 128 + SIGTERM."""

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT."""

_NUMBERS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)
_GRACE_S = 1.5
"""For the step in hand, and longer than the others take to hear of it."""

_GRACE_BEFORE_S = 3.0
"""Before the first step: for the processes to tell each other that one cannot begin."""

_LOOK_S = 0.5
"""Between two looks at whether another process stops."""

_POLL_S = 0.05
"""Between two looks at whether this process was signalled, while it waits for that."""

_SAVING_S = 20.0
"""For the checkpoint; a device that waits for another process might never answer."""

_END_S = 1.5
"""For what else there is to do when the checkpoint is written."""


class Stopping:
    """Whether this process is to stop, and how it does.

    Attributes:
        asked: whether it is to stop, by a signal or because another process does.
        interrupted: whether by Ctrl-C.
        whole: is held while weights, counts and records do not belong to one step; and for ever
            once a checkpoint is saved by another thread than the main one.
        rescue: saves a checkpoint of the last whole step, if there is none, and returns how the
            training ended; None while there is nothing to save.
        left: whether the main thread has saved what there is, and is on its way out.
        tell: is called before another thread than the main one ends the process, with what
            `save` returned.
        fault: what kept the checkpoint from being saved.
    """

    def __init__(self) -> None:
        self.asked = self.interrupted = self.left = False
        self.whole = threading.RLock()
        self.rescue: Callable[[], TrainResult] | None = None
        self.tell: Callable[[TrainResult | None], None] = lambda _: None
        self.fault: Exception | None = None
        self._saved: TrainResult | None = None
        self._heard = threading.Event()
        self._over = threading.Event()

    @property
    def code(self) -> int:
        """The exit code of a process that has stopped."""
        return INTERRUPTED if self.interrupted else STOPPED

    @contextmanager
    def rescued_by(self, rescue: Callable[[], TrainResult]) -> Iterator[None]:
        """Have `save` call a function during the block; after it, the main thread has saved."""
        self.rescue = rescue
        try:
            yield
        finally:
            self.left, self.rescue = True, None

    @contextmanager
    def by_signals(self) -> Iterator[None]:
        """Obey SIGTERM, SIGUSR1 and Ctrl-C during the block, but those that are ignored.

        A shell's `&` and nohup have a command ignore some. Signals come to the main thread: in
        another one this does nothing.
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
        # It takes no lock: the next signal may come between any two of its instructions, and an
        # event's lock, once held by this thread, would hold it up for ever. `_listen` sets it.
        self._note(number)
        if self.rescue is None:
            # Nothing is lost: what is open is closed on the way out.
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(STOPPED)

    def _note(self, number: int | None) -> None:
        self.interrupted = self.interrupted or number == signal.SIGINT
        self.asked = True

    @contextmanager
    def in_time(self) -> Iterator[None]:
        """Obey signals during the block; end the process if its main thread does not, from then on.

        For commands: what else the process does is ended, too.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        for work in (lambda: self._listen(receiver), self._leave_in_time):
            threading.Thread(target=work, name="stopping", daemon=True).start()
        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        try:
            with self.by_signals():
                yield
        finally:
            signal.set_wakeup_fd(before)
            sender.close()
            self._over.set()
            self._heard.set()

    @contextmanager
    def with_others(self, processes: Processes) -> Iterator[None]:
        """Stop when another process of the training stops, and have the others stop with this."""
        over = threading.Event()

        def exchange() -> None:
            told = False
            while not over.wait(_LOOK_S):
                try:
                    if self.asked and not told:
                        processes.announce_stop()
                        told = True
                    elif not self.asked and processes.is_stop_announced():
                        told = True
                        self._note(None)
                        self._heard.set()
                except LostProcessError:
                    # The first process has ended, and the training with it.
                    self._note(None)
                    self._heard.set()
                    return
                except ValueError:
                    # The processes have parted while this one was asking.
                    return

        if processes.world.size == 1:
            yield
            return
        thread = threading.Thread(target=exchange, name="stopping", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            # It may hang in the exchange, which must not keep the process.
            thread.join(2 * _LOOK_S)

    def hears_within(self, seconds: float) -> bool:
        """Return whether this process is to stop, or hears of it in some seconds."""
        end = time.monotonic() + seconds
        # By short waits: outside `in_time` no thread wakes this one after a signal.
        while not self.asked and (left := end - time.monotonic()) > 0:
            if self._heard.wait(min(left, _POLL_S)):
                break
        return self.asked

    def save(self) -> TrainResult | None:
        """Save a checkpoint of the last whole step, and let no other step begin.

        Returns:
            How the training ended; None where there is nothing to save, or where that has failed
            or takes too long, as with a device that waits for another process.
        """
        thread = threading.Thread(target=self._rescue, name="saving", daemon=True)
        thread.start()
        thread.join(_SAVING_S)
        return self._saved

    def _rescue(self) -> None:
        self.whole.acquire()
        if self.rescue is None or self.left:
            return
        try:
            self._saved = self.rescue()
        except Exception as error:  # noqa: BLE001 - told where the process ends
            self.fault = error

    def _listen(self, receiver: socket.socket) -> None:
        with receiver:
            while numbers := receiver.recv(64):
                for number in numbers:
                    if number in _NUMBERS:
                        self._note(number)
                        self._heard.set()

    def _leave_in_time(self) -> None:
        self._heard.wait()
        if not self.asked:
            return
        if not self._over.wait(_GRACE_S if self.rescue else _GRACE_BEFORE_S):
            saved = self.save()
            if not (self.left and self._over.wait(_END_S)):
                if not self.left:
                    self.tell(saved)
                _end_process(1 if self.fault else self.code)
        # The main thread is on its way out; stopped workers, or servers, may hang it there.
        threading.main_thread().join()
        time.sleep(_END_S)
        _end_process(self.code)


def _end_process(code: int) -> None:
    """End this process at once, and its children, which may be stopped or hang in a read."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for each in multiprocessing.active_children():
        each.kill()
    os._exit(code)


def _leave_signals_to_the_parent() -> None:
    """Take the handlers of `Stopping` from a forked child, whose signals are not its parent's."""
    ours = [
        number
        for number in _NUMBERS
        if isinstance(getattr(signal.getsignal(number), "__self__", None), Stopping)
    ]
    for number in ours:
        # A terminal sends Ctrl-C to all processes of a command.
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    if ours:
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_signals_to_the_parent)
