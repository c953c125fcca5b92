"""Commands run as children of this process, which do not outlive what ends it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pipelines

_HANDED_ON = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


PYTHON_MODULE = (sys.executable, "-P", "-m")
"""Begins a command that runs a module; `-P` keeps the working folder off Python's path."""


def child_environment() -> dict[str, str]:
    """Return the environment in which a child imports the packages that this process has."""
    root = Path(pipelines.__file__).absolute().parent.parent
    if root.name in ("site-packages", "dist-packages"):
        # Found there anyway, and no place to put before the standard library.
        return {**os.environ}
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:  # noqa: ANN401
    """Start a command for the time of the block, and wait for its end.

    Ctrl-C, SIGTERM and SIGHUP are handed on to it, each once, so that it can leave what it makes
    in order. They take effect here when it has ended. Those that this process ignores, as nohup and
    a shell's & have it, stay ignored in both.

    Args:
        command: program and arguments.
        options: as those of `subprocess.Popen`.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
        OSError: if the program cannot be started.
    """
    received: list[int] = []
    started: list[subprocess.Popen[Any]] = []

    def hand_on(number: int, _frame: object) -> None:
        received.append(number)
        for process in started:
            process.send_signal(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {
            number: signal.signal(number, hand_on)
            for number in _HANDED_ON
            if signal.getsignal(number) is not signal.SIG_IGN
        }
    try:
        # In a group of its own: a terminal sends Ctrl-C to all of a group, and it would come twice.
        with subprocess.Popen(command, process_group=0, **options) as process:
            started.append(process)
            for number in received:
                process.send_signal(number)
            yield process
            process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])
