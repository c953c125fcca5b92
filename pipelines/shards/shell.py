"""Shards that a command of the user's writes to its standard output: "pipe:COMMAND".

A shell can do whatever the user can, so nothing comes here that the caller did not allow by name.
"""

import os
import select
import signal
import subprocess
import tempfile
import threading
import time

from pipelines.shards.cache import StoppedError
from pipelines.shards.received import LEAST_RATE, Received

PIPE_PREFIX = "pipe:"

_POLL_S = 0.05
_CHUNK_BYTES = 2**20


class CommandError(Exception):
    """Raised where a command ended with an error or fell silent."""


def read_command(
    command: str, received: Received, *, stall_s: float, stop: threading.Event
) -> None:
    """Run a shell command and receive what it writes, from the beginning.

    Its processes end with this call, whatever ends it.

    Raises:
        CommandError: if it exits with another status than 0, or writes less than `LEAST_RATE`
            bytes a second for `stall_s` seconds.
        StoppedError: if `stop` is set.
        WrongContentError: if it writes more than may come.
    """
    received.restart()
    with (
        tempfile.TemporaryFile() as messages,
        subprocess.Popen(
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=messages,
            start_new_session=True,
        ) as process,
    ):
        try:
            _receive(process, received, stall_s, stop)
            status = process.wait(stall_s)
        except subprocess.TimeoutExpired as error:
            raise CommandError(f"it closed its output and ran on for {stall_s} s") from error
        finally:
            _end(process)
        if status != 0:
            messages.seek(0)
            lines = messages.read().decode(errors="replace").strip().splitlines()
            said = f": {lines[-1]}" if lines else ""
            raise CommandError(f"exit status {status}{said}")


def _receive(
    process: "subprocess.Popen[bytes]", received: Received, stall_s: float, stop: threading.Event
) -> None:
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    counted, since = received.position, time.monotonic()
    while True:
        if stop.is_set():
            raise StoppedError
        if select.select([descriptor], [], [], _POLL_S)[0]:
            chunk = os.read(descriptor, _CHUNK_BYTES)
            if not chunk:
                return
            received.write(chunk)
            if received.position - counted >= LEAST_RATE * stall_s:
                counted, since = received.position, time.monotonic()
        if time.monotonic() - since > stall_s:
            raise CommandError(f"less than {LEAST_RATE} bytes a second for {stall_s:g} s")


def _end(process: "subprocess.Popen[bytes]") -> None:
    # The whole session: the shell's own children would write on.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
