"""One attempt to read an address.

http is read with aiohttp; object stores and commands are read by a child process. No thread and no
event loop remains in this process after an attempt, so it may fork at any time.
"""

import asyncio
import errno
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from multiprocessing import connection
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from pipelines.errors import PipelineError
from pipelines.system import stores
from pipelines.system.stores import Failure, status_failure

if TYPE_CHECKING:
    from aiohttp import ClientResponse

MIN_RATE = 1000
"""Bytes per second; a slower transfer counts as stalled, as with git's http.lowSpeedLimit."""

_POLL_S = 0.05
_CHUNK_BYTES = 2**20

_Result = TypeVar("_Result")


class StoppedError(Exception):
    """Raised when a transfer is asked to stop; the caller that asked handles it."""


class WrongContentError(Exception):
    """Raised when the received content is not the expected one; the message describes it."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """The expected content of a file.

    Attributes:
        sha256: its SHA-256; None if unknown.
        n_bytes: its length; None if unknown.
        max_bytes: maximum length; required if `n_bytes` is None.
    """

    sha256: str | None = None
    n_bytes: int | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        """Check that the length has a bound."""
        if self.n_bytes is None and self.max_bytes is None:
            raise ValueError("n_bytes and max_bytes are both None; pass one of them")

    @property
    def limit(self) -> int:
        """The maximum number of bytes to accept."""
        return (self.max_bytes or 0) if self.n_bytes is None else self.n_bytes

    def __str__(self) -> str:
        length = f"at most {self.limit} bytes" if self.n_bytes is None else f"{self.n_bytes} bytes"
        return length if self.sha256 is None else f"{length} with SHA-256 {self.sha256}"


class Received:
    """The received part of a file, written and hashed as it arrives.

    Attributes:
        content: the expected content.
        position: number of bytes received so far.
    """

    def __init__(self, file: BinaryIO, content: Content) -> None:
        """Start with the content of the file, unless it is longer than expected."""
        self.content = content
        self.position = 0
        self._file = file
        self._digest = hashlib.sha256()
        file.seek(0)
        while chunk := file.read(_CHUNK_BYTES):
            self._digest.update(chunk)
            self.position += len(chunk)
        if self.position > content.limit:
            self.restart()
        self._furthest, self._since = self.position, time.monotonic()

    @property
    def is_complete(self) -> bool:
        """Whether the expected length, if it is known, has been received."""
        return self.position == self.content.n_bytes

    def check_length(self, length: int) -> None:
        """Check the length that a server announces before it sends the content."""
        content = self.content
        if length != content.n_bytes if content.n_bytes is not None else length > content.limit:
            raise WrongContentError(f"{length} bytes")

    def write(self, piece: bytes) -> None:
        """Append bytes; raise WrongContentError if the content becomes too long."""
        if self.position + len(piece) > self.content.limit:
            raise WrongContentError(f"more than {self.content.limit} bytes")
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise PipelineError(
                    "the disk of the cache is full; free some space, set a smaller cache limit, or "
                    "set PIXMIX_CACHE to a folder on a larger disk"
                ) from error
            raise PipelineError(f"the cache cannot be written: {error}; check its disk") from error
        self._digest.update(piece)
        self.position += len(piece)

    def restart(self) -> None:
        """Discard the received bytes."""
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self.position = 0

    def advanced(self) -> bool:
        """Return whether new bytes arrived at `MIN_RATE` or faster since this was last True.

        Bytes that are received again after a restart are not new.
        """
        now = time.monotonic()
        new_bytes = self.position - self._furthest
        if new_bytes <= 0 or new_bytes < MIN_RATE * (now - self._since):
            return False
        self._furthest, self._since = self.position, now
        return True

    def check(self) -> None:
        """Raise WrongContentError unless the received bytes are the expected content."""
        n_bytes, sha256 = self.content.n_bytes, self.content.sha256
        found = self._digest.hexdigest()
        if n_bytes not in {None, self.position} or sha256 not in {None, found}:
            raise WrongContentError(f"{self.position} bytes with SHA-256 {found}")


# --- http ----------------------------------------------------------------------------------------


def run_coroutine(
    work: Callable[[], Coroutine[Any, Any, _Result]], stop: threading.Event
) -> _Result:
    """Run a coroutine to its end in a new event loop.

    Raises:
        StoppedError: if `stop` is set before the end.
    """
    abandoned = threading.Event()

    async def supervised() -> _Result:
        task = asyncio.ensure_future(work())
        while not task.done():
            await asyncio.wait({task}, timeout=_POLL_S)
            if stop.is_set() or abandoned.is_set():
                task.cancel()
        if task.cancelled():
            raise StoppedError
        return task.result()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(supervised())
    # In a notebook this thread already runs an event loop.
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(asyncio.run, supervised()).result()
        finally:
            abandoned.set()


async def read_http(
    url: str, received: Received, options: Mapping[str, Any], stall_s: float
) -> None:
    """Download an address from an http server, continuing after the received bytes.

    Args:
        url: the address.
        received: receives the content.
        options: arguments of `aiohttp.ClientSession`.
        stall_s: the attempt fails after this many seconds below `MIN_RATE`.

    Raises:
        Failure: if the server fails or is too slow.
        WrongContentError: if the length is not the expected one.
        PipelineError: if the file cannot be written.
    """
    import aiohttp

    # Ranges of compressed content would count other bytes.
    headers = {"Accept-Encoding": "identity"}
    if received.position:
        headers["Range"] = f"bytes={received.position}-"
    timeout = aiohttp.ClientTimeout(total=None, connect=stall_s, sock_read=stall_s)
    # Like curl: read proxies from the environment, and passwords from ~/.netrc.
    options = {"trust_env": True, **options}
    now = asyncio.get_running_loop().time
    try:
        # The limit for connecting, redirects and the response headers together.
        async with (
            asyncio.timeout(2 * stall_s) as limit,
            aiohttp.ClientSession(**options) as session,
            session.get(url, headers=headers, timeout=timeout) as response,
        ):
            _check_headers(response, received)
            counted = received.position
            limit.reschedule(now() + stall_s)
            async for piece in response.content.iter_chunked(_CHUNK_BYTES):
                received.write(piece)
                if received.position - counted >= MIN_RATE * stall_s:
                    counted = received.position
                    limit.reschedule(now() + stall_s)
    except TimeoutError as error:
        raise _too_slow(stall_s) from error
    except (OSError, aiohttp.ClientError) as error:
        raise _http_failure(error) from error
    if received.content.n_bytes is not None and not received.is_complete:
        n_bytes = received.content.n_bytes
        raise Failure(f"the response ended after {received.position} of {n_bytes} bytes", "busy")


def _check_headers(response: "ClientResponse", received: Received) -> None:
    """Check status and headers; discard the received bytes if the response starts at byte 0."""
    response.raise_for_status()
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if span is None or int(span[1]) != received.position:
            received.restart()
            raise Failure("the server sent another range than requested", "busy")
        length = None if span[2] == "*" else int(span[2])
    else:
        received.restart()
        length = None if "Content-Encoding" in response.headers else response.content_length
    if length is not None:
        received.check_length(length)


def _http_failure(error: Exception) -> Failure:
    """Return the failure that an error of aiohttp stands for."""
    import aiohttp

    if isinstance(error, aiohttp.ClientResponseError):
        retry_after = error.headers.get("Retry-After", "") if error.headers else ""
        pause_s = asked_pause_s(retry_after) if error.status in {429, 503} else 0.0
        return status_failure(error.status, error.message, pause_s)
    if isinstance(error, aiohttp.InvalidURL):
        return Failure("not a valid address", "refused")
    message = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Failure(message, "certificate")
    if isinstance(error, aiohttp.ClientConnectorError):
        # An unknown host name, for example a typo. An unreachable name server has another errno.
        cause = error.os_error
        if isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME:
            return Failure(message, "refused")
    return Failure(message, "busy")


def asked_pause_s(retry_after: str) -> float:
    """Return the seconds that a Retry-After header asks to wait, 0 if it is not valid.

    The header holds seconds or a date: RFC 9110, section 10.2.3.
    """
    value = retry_after.strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    # Dates of HTTP without a time zone are in UTC.
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


# --- object stores and commands, in a child process ----------------------------------------------


def _too_slow(stall_s: float) -> Failure:
    return Failure(f"less than {MIN_RATE} bytes a second for {stall_s:g} s", "busy")


def read_object(
    url: str, received: Received, options: Mapping[str, Any], stall_s: float, stop: threading.Event
) -> None:
    """Download an object of a store, continuing after the received bytes; see `read_http`.

    Args:
        url: "SCHEME://BUCKET/KEY".
        received: receives the content.
        options: obstore's configuration of the store.
        stall_s: the attempt fails after this many seconds below `MIN_RATE`.
        stop: ends the attempt with a StoppedError.
    """
    request = {
        "url": url,
        "offset": received.position,
        "options": dict(options),
        "stall_s": stall_s,
    }
    header: bytearray | None = bytearray()

    def take(chunk: bytes) -> None:
        nonlocal header
        if header is not None:
            header += chunk
            size, newline, chunk = bytes(header).partition(b"\n")
            if not newline:
                return
            received.check_length(int(size))
            header = None
        received.write(chunk)

    # -P: files beside the script must not shadow modules of Python.
    command = [sys.executable, "-P", stores.__file__]
    status, last_line = _run(command, take, stall_s, stop, json.dumps(request).encode())
    if status != 0:
        try:
            failure = json.loads(last_line)
        except ValueError:
            # The process was killed, for example because memory ran out, or raised another error.
            failure = {
                "message": last_line or f"exit status {status}",
                "kind": "busy" if status < 0 else "refused",
            }
        raise Failure(failure["message"], failure["kind"])


def read_command(command: str, received: Received, stall_s: float, stop: threading.Event) -> None:
    """Receive the standard output of a shell command, from the beginning."""
    received.restart()
    status, last_line = _run(command, received.write, stall_s, stop)
    if status != 0:
        raise Failure(f"exit status {status}" + (f": {last_line}" if last_line else ""), "busy")


def _run(
    command: str | Sequence[str],
    take: Callable[[bytes], None],
    stall_s: float,
    stop: threading.Event,
    request: bytes = b"",
) -> tuple[int, str]:
    """Run a process; the process and its children have ended when this call returns or raises.

    Args:
        command: program and arguments, or a command line for a shell.
        take: called with each chunk that the process writes to its standard output.
        stall_s: the process is killed after this many seconds below `MIN_RATE`.
        stop: kills the process at once.
        request: standard input of the process.

    Returns:
        The exit status, and the last line of the standard error.
    """
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as messages:
        stdin.write(request)
        stdin.seek(0)
        with subprocess.Popen(
            command,
            shell=isinstance(command, str),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=messages,
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            output = process.stdout.fileno()
            fresh, since = 0, time.monotonic()
            try:
                while True:
                    if stop.is_set():
                        raise StoppedError
                    # select fails for file descriptors above 1023.
                    if connection.wait([output], _POLL_S):
                        chunk = os.read(output, _CHUNK_BYTES)
                        if not chunk:
                            break
                        take(chunk)
                        fresh += len(chunk)
                        if fresh >= MIN_RATE * stall_s:
                            fresh, since = 0, time.monotonic()
                    if time.monotonic() - since > stall_s:
                        raise _too_slow(stall_s)
                status = process.wait(stall_s)
            except subprocess.TimeoutExpired as error:
                message = f"it closed its output and kept running for {stall_s:g} s"
                raise Failure(message, "busy") from error
            finally:
                # The whole session: children of a shell would keep writing.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        messages.seek(0)
        lines = messages.read().decode(errors="replace").strip().splitlines()
    return status, lines[-1] if lines else ""
