"""One attempt to read an address: over http by aiohttp, from a store or a command by a process.

Of an attempt nothing stays in this process, neither a thread nor an event loop: it may fork at any
time after.
"""

import asyncio
import errno
import hashlib
import json
import os
import re
import select
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
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from pipelines.errors import PipelineError
from pipelines.system import stores
from pipelines.system.stores import Failure, status_failure

if TYPE_CHECKING:
    from aiohttp import ClientResponse

LEAST_RATE = 1000
"""Bytes per second: less is not counted as progress, as git's http.lowSpeedLimit."""

_POLL_S = 0.05
_CHUNK_BYTES = 2**20

_Result = TypeVar("_Result")


class StoppedError(Exception):
    """Raised where work was asked to stop; whoever asked drops it."""


class WrongContentError(Exception):
    """Raised where the received content is not the expected one; its text says what was found."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a file has to be.

    sha256, n_bytes: None where not known. most_bytes: more than that is refused; needed where the
    length is not known.
    """

    sha256: str | None = None
    n_bytes: int | None = None
    most_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuse what has no bound."""
        if self.n_bytes is None and self.most_bytes is None:
            raise ValueError("n_bytes and most_bytes are both None; pass one of them")

    @property
    def limit(self) -> int:
        """The most bytes that may come."""
        return (self.most_bytes or 0) if self.n_bytes is None else self.n_bytes

    def __str__(self) -> str:
        length = f"at most {self.limit} bytes" if self.n_bytes is None else f"{self.n_bytes} bytes"
        return length if self.sha256 is None else f"{length} with SHA-256 {self.sha256}"


class Received:
    """What has come of a file: written as it comes, and hashed on the way.

    content: what is expected. position: bytes that are there.
    """

    def __init__(self, file: BinaryIO, content: Content) -> None:
        """Take what the file holds, if that can be it, for the beginning."""
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
    def whole(self) -> bool:
        """Whether as much is there as has to be, if that is known."""
        return self.position == self.content.n_bytes

    def check_length(self, length: int) -> None:
        """Refuse content by the length that a server says before it sends any."""
        content = self.content
        if length != content.n_bytes if content.n_bytes is not None else length > content.limit:
            raise WrongContentError(f"{length} bytes")

    def write(self, piece: bytes) -> None:
        """Add the next bytes; refuse more than may come."""
        if self.position + len(piece) > self.content.limit:
            raise WrongContentError(f"more than {self.content.limit} bytes")
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise PipelineError(
                    "the disk of the cache is full; make room, set a smaller limit of the cache, "
                    "or set PIXMIX_CACHE to a folder on a larger disk"
                ) from error
            raise PipelineError(f"the cache cannot be written: {error}; check its disk") from error
        self._digest.update(piece)
        self.position += len(piece)

    def restart(self) -> None:
        """Drop what is there."""
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self.position = 0

    def advanced(self) -> bool:
        """Return whether more came than ever before, and at `LEAST_RATE` or faster.

        Both count from the last time that this was so.
        """
        now = time.monotonic()
        new_bytes = self.position - self._furthest
        if new_bytes <= 0 or new_bytes < LEAST_RATE * (now - self._since):
            return False
        self._furthest, self._since = self.position, now
        return True

    def check(self) -> None:
        """Raise WrongContentError unless what is there is the content."""
        n_bytes, sha256 = self.content.n_bytes, self.content.sha256
        found = self._digest.hexdigest()
        if n_bytes not in {None, self.position} or sha256 not in {None, found}:
            raise WrongContentError(f"{self.position} bytes with SHA-256 {found}")


# --- http, by aiohttp ----------------------------------------------------------------------------


def run_coroutine(
    work: Callable[[], Coroutine[Any, Any, _Result]], stop: threading.Event
) -> _Result:
    """Run work to its end in an event loop of its own.

    Raises:
        StoppedError: if `stop` is set before it has ended.
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
    # In a notebook this thread has a loop of its own.
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(asyncio.run, supervised()).result()
        finally:
            abandoned.set()


async def read_http(
    url: str, received: Received, options: Mapping[str, Any], stall_s: float
) -> None:
    """Receive what an http server has, from where the received bytes end.

    Args:
        url: the address.
        received: where it goes.
        options: arguments of `aiohttp.ClientSession`.
        stall_s: seconds in which fewer than `LEAST_RATE` bytes per second end it.

    Raises:
        Failure: if the server fails, or is too slow.
        WrongContentError: if it sends another length, or more than may come.
        PipelineError: if the file cannot be written.
    """
    import aiohttp

    # What is encoded on the way has other ranges.
    headers = {"Accept-Encoding": "identity"}
    if received.position:
        headers["Range"] = f"bytes={received.position}-"
    timeout = aiohttp.ClientTimeout(total=None, connect=stall_s, sock_read=stall_s)
    # As curl does: proxies from the environment, passwords from ~/.netrc.
    options = {"trust_env": True, **options}
    now = asyncio.get_running_loop().time
    try:
        # So long at most for the connection, redirections and the head of the answer.
        async with (
            asyncio.timeout(2 * stall_s) as limit,
            aiohttp.ClientSession(**options) as session,
            session.get(url, headers=headers, timeout=timeout) as response,
        ):
            _take_head(response, received)
            counted = received.position
            limit.reschedule(now() + stall_s)
            async for piece in response.content.iter_chunked(_CHUNK_BYTES):
                received.write(piece)
                if received.position - counted >= LEAST_RATE * stall_s:
                    counted = received.position
                    limit.reschedule(now() + stall_s)
    except TimeoutError as error:
        raise _too_slow(stall_s) from error
    except (OSError, aiohttp.ClientError) as error:
        raise _http_failure(error) from error
    if received.content.n_bytes is not None and not received.whole:
        n_bytes = received.content.n_bytes
        raise Failure(f"the response ended after {received.position} of {n_bytes} bytes", "busy")


def _take_head(response: "ClientResponse", received: Received) -> None:
    """Check the head of a response, and drop the received bytes if it begins anew."""
    response.raise_for_status()
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if span is None or int(span[1]) != received.position:
            received.restart()
            raise Failure("the server sent another range than it was asked for", "busy")
        length = None if span[2] == "*" else int(span[2])
    else:
        received.restart()
        length = None if "Content-Encoding" in response.headers else response.content_length
    if length is not None:
        received.check_length(length)


def _http_failure(error: Exception) -> Failure:
    """Return what an error of aiohttp means."""
    import aiohttp

    if isinstance(error, aiohttp.ClientResponseError):
        retry_after = error.headers.get("Retry-After", "") if error.headers else ""
        pause_s = asked_pause_s(retry_after) if error.status in {429, 503} else 0.0
        return status_failure(error.status, error.message, pause_s)
    if isinstance(error, aiohttp.InvalidURL):
        return Failure("no valid address", "refused")
    said = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Failure(said, "certificate")
    if isinstance(error, aiohttp.ClientConnectorError):
        # An unknown name, as after a typo; a name server that does not answer has another number.
        found = error.os_error
        if isinstance(found, socket.gaierror) and found.errno == socket.EAI_NONAME:
            return Failure(said, "refused")
    return Failure(said, "busy")


def asked_pause_s(retry_after: str) -> float:
    """Return the seconds that a Retry-After header asks to wait, 0 where it makes no sense.

    It holds seconds or a date: RFC 9110, section 10.2.3.
    """
    asked = retry_after.strip()
    if re.fullmatch(r"[0-9]{1,9}", asked):
        return float(asked)
    try:
        until = parsedate_to_datetime(asked)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    # A date without a zone is in UTC, as all of HTTP.
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


# --- object stores and commands, by a process ----------------------------------------------------


def _too_slow(stall_s: float) -> Failure:
    return Failure(f"less than {LEAST_RATE} bytes a second for {stall_s:g} s", "busy")


def read_object(
    url: str, received: Received, options: Mapping[str, Any], stall_s: float, stop: threading.Event
) -> None:
    """Receive an object of a store, from where the received bytes end; see `read_http`.

    options: obstore's configuration of the store; stop: raises StoppedError.
    """
    request = {"url": url, "offset": received.position, "options": dict(options)}
    asked = json.dumps(request | {"stall_s": stall_s}).encode()
    head: bytearray | None = bytearray()

    def take(chunk: bytes) -> None:
        nonlocal head
        if head is not None:
            head += chunk
            size, newline, chunk = bytes(head).partition(b"\n")
            if not newline:
                return
            received.check_length(int(size))
            head = None
        received.write(chunk)

    # -P: nothing beside the script may stand for a module of Python's.
    command = [sys.executable, "-P", stores.__file__]
    status, last = _run(command, take, stall_s, stop, asked)
    if status != 0:
        try:
            told = json.loads(last)
        except ValueError:
            # Killed, as for want of memory; or an error that was not foreseen.
            told = {"said": last or f"exit status {status}", "kind": "refused"}
            told |= {"kind": "busy"} if status < 0 else {}
        raise Failure(told["said"], told["kind"])


def read_command(command: str, received: Received, stall_s: float, stop: threading.Event) -> None:
    """Receive what a shell command writes to its standard output, from the beginning."""
    received.restart()
    status, last = _run(command, received.write, stall_s, stop)
    if status != 0:
        raise Failure(f"exit status {status}" + (f": {last}" if last else ""), "busy")


def _run(
    command: str | Sequence[str],
    take: Callable[[bytes], None],
    stall_s: float,
    stop: threading.Event,
    request: bytes = b"",
) -> tuple[int, str]:
    """Run a process to its end; it and its children end with this call, whatever ends it.

    Args:
        command: the words of a command, or a line for a shell.
        take: is called with what the process writes.
        stall_s: seconds in which fewer than `LEAST_RATE` bytes per second end it.
        stop: ends it within a moment.
        request: its input.

    Returns:
        Its exit status, and the last line of its messages.
    """
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as messages:
        asked.write(request)
        asked.seek(0)
        with subprocess.Popen(
            command,
            shell=isinstance(command, str),
            stdin=asked,
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
                    if select.select([output], [], [], _POLL_S)[0]:
                        chunk = os.read(output, _CHUNK_BYTES)
                        if not chunk:
                            break
                        take(chunk)
                        fresh += len(chunk)
                        if fresh >= LEAST_RATE * stall_s:
                            fresh, since = 0, time.monotonic()
                    if time.monotonic() - since > stall_s:
                        raise _too_slow(stall_s)
                status = process.wait(stall_s)
            except subprocess.TimeoutExpired as error:
                said = f"it closed its output and ran on for {stall_s:g} s"
                raise Failure(said, "busy") from error
            finally:
                # The whole session: the children of a shell would write on.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        messages.seek(0)
        lines = messages.read().decode(errors="replace").strip().splitlines()
    return status, lines[-1] if lines else ""
