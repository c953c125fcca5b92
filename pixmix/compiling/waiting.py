"""One line on stderr while a person waits for the compiler.

    compiling kernels (once per machine, about 30 s): 12 s

A terminal shows the seconds as they pass; a file gets one line at the beginning and one at the
end. Only the first process of a command speaks: its workers would say the same.
"""

import multiprocessing
import sys
import threading
import time
from typing import Any

from numba.core import event

LINE = "compiling kernels (once per machine, about 30 s)"
_AFTER_S = 1.0
"""A compiler that is done within this time is not worth a line."""
_IDLE_S = 1.0
"""Without a kernel to compile for this time, the compiler is done."""


class Timer:
    """Shows how long something has taken, on stderr: one line, kept up to date on a terminal."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self._shown = -1

    def show(self) -> None:
        """Show the line, once it is worth one; call it several times a second."""
        seconds = int(time.monotonic() - self.began)
        if sys.stderr is None or seconds < _AFTER_S or seconds == self._shown:
            return
        if sys.stderr.isatty():
            print(f"\r{LINE}: {seconds} s", end="", file=sys.stderr, flush=True)  # noqa: T201
        elif self._shown < 0:
            print(LINE, file=sys.stderr, flush=True)  # noqa: T201
        self._shown = seconds

    def end(self, ended: float) -> None:
        """Say how long it took, if anything was said."""
        if self._shown >= 0:
            start = "\r\033[K" if sys.stderr.isatty() else ""
            seconds = ended - self.began
            print(f"{start}kernels compiled in {seconds:.0f} s", file=sys.stderr, flush=True)  # noqa: T201


class _Compilations(event.Listener):
    """Counts the kernels in the compiler, and has a thread show the time while there are any."""

    def __init__(self) -> None:
        self.depth = 0
        self.ended = 0.0
        self.thread: threading.Thread | None = None

    def on_start(self, event: Any) -> None:  # noqa: ANN401
        """Note that a kernel is being compiled."""
        if not _is_kernel(event):
            return
        self.depth += 1
        if self.thread is None and multiprocessing.parent_process() is None:
            self.thread = threading.Thread(target=self._show, daemon=True)
            try:
                self.thread.start()
            except RuntimeError:  # No more threads: then without a word.
                self.thread = None

    def on_end(self, event: Any) -> None:  # noqa: ANN401
        """Note that a kernel was compiled, or could not be."""
        if _is_kernel(event):
            self.ended = time.monotonic()
            self.depth -= 1

    def _show(self) -> None:
        timer = Timer()
        while self.depth > 0 or time.monotonic() - self.ended < _IDLE_S:
            timer.show()
            time.sleep(0.1)
        timer.end(self.ended)
        self.thread = None


def _is_kernel(event: Any) -> bool:  # noqa: ANN401
    """See whether a function is one of ours; the user may compile others in this process."""
    module: str = event.data["dispatcher"].py_func.__module__
    return module.startswith(("fractals.", "pixmix."))


_compilations = _Compilations()
_listening: list[bool] = []


def listen() -> None:
    """Show the time while kernels are compiled, from now on."""
    if not _listening:
        _listening.append(True)
        event.register("numba:compile", _compilations)
