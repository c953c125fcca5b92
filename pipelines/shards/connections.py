"""One attempt to read an address, and which of its errors may pass.

fsspec opens the connections, so its settings (credentials, proxies, endpoints) hold here too. Each
attempt has an event loop of its own, of which nothing stays: a process may fork at any time after.
"""

import asyncio
import re
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import fsspec

from pipelines.errors import PipelineError
from pipelines.shards.cache import StoppedError
from pipelines.shards.received import LEAST_RATE, Received, WrongContentError
from pipelines.shards.shell import PIPE_PREFIX, CommandError, read_command

if TYPE_CHECKING:
    from aiohttp import ClientResponse

EXTRAS = {"http": "http", "https": "http", "s3": "s3", "gs": "gcs"}
"""Scheme of an address -> what it needs: `pip install pixmix[...]`. http is always installed."""

_PIECE_BYTES = 4 * 2**20
"""What an object store is asked for at once: large against a round trip, small against a stall."""

_POLL_S = 0.05

_SHOWN_PIPE = f"{PIPE_PREFIX}***"

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers after which the same question may find another: RFC 9110 sections 15.5 and 15.6, RFC 6585
section 4, RFC 8470 section 5.2."""

# Errors of the object stores' clients, which are no OSError; a subclass of a passing one passes.
_PASSING = (
    ("botocore.exceptions", "ConnectionError"),
    ("botocore.exceptions", "HTTPClientError"),
    ("gcsfs.retry", "ChecksumError"),
    ("google.auth.exceptions", "TransportError"),
)
_FINAL = (
    ("botocore.exceptions", "BotoCoreError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
)


class RefusedError(OSError):
    """Raised where an object store's client says by a ValueError that a store refuses."""


@contextmanager
def refusals() -> Iterator[None]:
    """Take a ValueError of a store's client for the store's refusal, which gcsfs says by it.

    Raises:
        RefusedError: in its place.
    """
    try:
        yield
    except ValueError as error:
        raise RefusedError(" ".join(str(error).split())) from error


class NotThereError(PipelineError):
    """Raised where an address leads to nothing, or to nothing that may be read.

    One kind: an object store that may not be listed answers alike for both.
    """


@dataclass(frozen=True, kw_only=True)
class RemoteAccess:
    """How addresses are read, and how long a server is borne with.

    attempts: in a row that bring nothing new, until a server is given up.
    patience_s: seconds in which nothing new comes, until a server is given up, after any number of
        attempts; None goes by the attempts.
    first_wait_s, longest_wait_s: seconds; before attempt n + 1 a random time passes of at most
        first_wait_s * 2**(n - 1) and longest_wait_s.
    stall_s: seconds after which a connection is given up in which it brought less than
        `LEAST_RATE` bytes a second; of an object store, for a piece of 4 MiB.
    allow_pipe: whether "pipe:COMMAND" may run a shell, which can do whatever the user can.
    options: of fsspec's file system, by scheme, as in {"s3": {"anon": True}}.
    """

    attempts: int = 8
    patience_s: float | None = None
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    stall_s: float = 30.0
    allow_pipe: bool = False
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}; give at least 1")
        for name in ("first_wait_s", "longest_wait_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or more seconds")
        if not 0 < self.stall_s < float("inf"):
            raise ValueError(f"stall_s is {self.stall_s}; give more than 0 seconds")
        if self.patience_s is not None and not 0 < self.patience_s < float("inf"):
            raise ValueError(f"patience_s is {self.patience_s}; give more than 0 seconds, or None")
        unknown = sorted(set(self.options) - set(EXTRAS))
        if unknown:
            raise ValueError(f"options has {unknown[0]!r}; give schemes of {', '.join(EXTRAS)}")


def is_remote(where: str) -> bool:
    """Return whether this is an address or a pipe, and not a path or a file:// address."""
    return re.match(r"(?!file:)(pipe:|[A-Za-z][A-Za-z0-9+.-]*:(//|:))", where) is not None


def shown(url: str) -> str:
    """Return an address for messages: without password, query and command, where secrets stand."""
    if url.startswith(PIPE_PREFIX):
        return _SHOWN_PIPE
    # A key of an object store may hold ? and #, which mean nothing there.
    if EXTRAS.get(_scheme(url)) in {"s3", "gcs"}:
        return url
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def check_address(url: str, access: RemoteAccess) -> None:
    """Refuse what is never read, before anything is done.

    Raises:
        PipelineError: for a scheme that is not read, and for a pipe unless the caller allows it.
    """
    if url == _SHOWN_PIPE:
        raise PipelineError(
            f"{url} is only what messages call a command; pass what open_remote_shards returned, "
            "and not its shards"
        )
    if url.startswith(PIPE_PREFIX):
        if not access.allow_pipe:
            raise PipelineError(
                f"{shown(url)} would run a shell command, which can do whatever you can; give an "
                "address, or allow_pipe=True if you trust whoever wrote the command"
            )
    elif _scheme(url) not in EXTRAS or "::" in url or not urlsplit(url).netloc:
        raise PipelineError(
            f"{shown(url)} is no address that shards are read from; give one that begins with "
            f"{', '.join(f'{scheme}://' for scheme in EXTRAS)}, or a path"
        )


def attempt(url: str, received: Received, *, access: RemoteAccess, stop: threading.Event) -> None:
    """Read an address once, from where the received bytes end.

    A server that knows no ranges, and a command, begin anew.

    Raises:
        PipelineError: if what reads this scheme is not installed, or the disk is full.
        WrongContentError: if the server says another length, or sends more than may come.
        StoppedError: if `stop` is set.
        Exception: one of `remote_errors()`; `may_pass` says whether to try again.
    """
    # It may have been set in a pause between two attempts.
    if stop.is_set():
        raise StoppedError
    if url.startswith(PIPE_PREFIX):
        command = url.removeprefix(PIPE_PREFIX)
        read_command(command, received, stall_s=access.stall_s, stop=stop)
    elif EXTRAS[_scheme(url)] == "http":
        _in_own_loop(lambda: _read_http(url, received, access), stop)
    else:
        _in_own_loop(lambda: _read_pieces(url, received, access), stop)


def remote_errors() -> tuple[type[Exception], ...]:
    """Return the errors by which an attempt says that a server or a command failed."""
    import aiohttp

    return (
        OSError,
        CommandError,
        aiohttp.ClientError,
        *_of_backends(_PASSING),
        *_of_backends(_FINAL),
    )


def may_pass(error: BaseException) -> bool:
    """Return whether the same attempt may succeed a little later."""
    import aiohttp

    status = _status(error)
    if status is not None:
        # 401 and these words: a token that has run out, in whose place another is had.
        return status in _BUSY or (status == 401 and "Invalid Credentials" in str(error))
    if isinstance(error, aiohttp.ClientConnectorError):
        # No such name, as in a slip; a name server that does not answer has another number.
        found = error.os_error
        if isinstance(found, socket.gaierror) and found.errno == socket.EAI_NONAME:
            return False
    final = (
        FileNotFoundError,
        PermissionError,
        RefusedError,
        aiohttp.InvalidURL,
        aiohttp.ClientConnectorCertificateError,
    )
    passing: tuple[type[Exception], ...] = (
        OSError,
        aiohttp.ClientError,
        CommandError,
        *_of_backends(_PASSING),
    )
    return isinstance(error, passing) and not isinstance(error, final)


def asked_pause_s(error: BaseException | None) -> float:
    """Return the seconds that a server asks to wait before the next attempt, 0 where it does not.

    So does an answer 429 or 503 with Retry-After, as seconds or as a date: RFC 9110, section
    10.2.3.
    """
    import aiohttp

    if not isinstance(error, aiohttp.ClientResponseError) or error.status not in {429, 503}:
        return 0.0
    asked = error.headers.get("Retry-After", "").strip() if error.headers else ""
    if re.fullmatch(r"[0-9]{1,9}", asked):
        return float(asked)
    try:
        until = parsedate_to_datetime(asked)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    # A date without a zone is in UTC, as all of HTTP.
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def is_absent(error: BaseException) -> bool:
    """Return whether a server says that there is nothing, or nothing that may be read."""
    return _status(error) in {404, 410} or isinstance(error, FileNotFoundError) or is_denied(error)


def is_denied(error: BaseException) -> bool:
    """Return whether a server says that these credentials, or none, are not enough."""
    return _status(error) in {401, 403} or isinstance(error, PermissionError)


def reason(error: Exception, access: RemoteAccess) -> str:
    """Return why an address could not be read and what to do, to follow its name."""
    import aiohttp

    if is_denied(error) and not may_pass(error):
        return f"access denied ({said(error)}); give credentials as fsspec reads them"
    if is_absent(error) and not may_pass(error):
        return "not found; check the address"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not valid ({said(error)}); check the address"
    if may_pass(error):
        return (
            f"given up after {borne(access)} without anything new, the last: {said(error)}; what "
            "has come is kept: see to the server and run the same again"
        )
    return f"it cannot be read ({said(error)}); check the address and the credentials"


def borne(access: RemoteAccess) -> str:
    """Return in words how long a server was borne with."""
    if access.patience_s is not None:
        return f"{access.patience_s:g} s"
    return f"{access.attempts} attempts in a row" if access.attempts > 1 else "one attempt"


def said(error: Exception) -> str:
    """Return an error's own words, without the address, where secrets stand."""
    import aiohttp

    if isinstance(error, aiohttp.ClientResponseError):
        return f"{error.status} {error.message}"
    if isinstance(error, aiohttp.InvalidURL):
        return "no valid address"
    # The first line: some give the whole answer.
    return (str(error) or type(error).__name__).splitlines()[0]


def _of_backends(names: tuple[tuple[str, str], ...]) -> list[type[Exception]]:
    # Of those that are in use: importing them for their errors would want them all.
    return [getattr(sys.modules[module], name) for module, name in names if module in sys.modules]


def _status(error: BaseException) -> int | None:
    """Return the status of the answer that an error tells of, None where it tells of none."""
    import aiohttp

    if isinstance(error, aiohttp.ClientResponseError):
        return error.status
    if "gcsfs.retry" in sys.modules and isinstance(error, sys.modules["gcsfs.retry"].HttpError):
        return int(error.code)
    # So gcsfs says it.
    if type(error) is OSError and error.errno is None and str(error).startswith("Forbidden: "):
        return 403
    return None


def _scheme(url: str) -> str:
    return url.partition(":")[0].lower()


def _in_own_loop(work: Callable[[], Coroutine[Any, Any, None]], stop: threading.Event) -> None:
    """Run work to its end, or until `stop` is set."""
    given_up = threading.Event()

    async def supervised() -> None:
        task = asyncio.ensure_future(work())
        while not task.done():
            await asyncio.wait({task}, timeout=_POLL_S)
            if stop.is_set() or given_up.is_set():
                task.cancel()
        if task.cancelled():
            raise StoppedError
        task.result()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(supervised())
        return
    # In a notebook this thread has a loop of its own.
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(asyncio.run, supervised()).result()
        finally:
            given_up.set()


def open_store(url: str, access: RemoteAccess, **how: bool) -> Any:  # noqa: ANN401, fsspec has no types
    """Return fsspec's file system of an address.

    Args:
        url: an address.
        access: the options of its scheme.
        how: fsspec's own words, as asynchronous=True.

    Raises:
        PipelineError: if what reads this scheme is not installed.
    """
    scheme = _scheme(url)
    try:
        file_system = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise PipelineError(
            f"{shown(url)} needs pixmix[{EXTRAS[scheme]}]; run pip install "
            f"'pixmix[{EXTRAS[scheme]}]'"
        ) from error
    if file_system.__module__.startswith("gcsfs."):
        file_system = _google_file_system()
    return file_system(**how, **access.options.get(scheme, {}))


@cache
def _google_file_system() -> Any:  # noqa: ANN401, as above
    from gcsfs.core import GCSFileSystem

    # Not gcsfs's own choice: that asks by gRPC first what kind of bucket this is, and what gRPC has
    # begun does not outlive a fork.
    class Asked(GCSFileSystem):  # type: ignore[misc]
        """It asks once: the patience is ours, as with all servers, and so is what is said of it."""

        _request = getattr(GCSFileSystem._request, "__wrapped__", GCSFileSystem._request)

    return Asked


def _open_file_system(url: str, access: RemoteAccess) -> Any:  # noqa: ANN401, as above
    return open_store(url, access, asynchronous=True, skip_instance_cache=True)


async def _read_http(url: str, received: Received, access: RemoteAccess) -> None:
    files = _open_file_system(url, access)
    # As curl does: proxies from the environment, passwords from ~/.netrc.
    files.client_kwargs = {"trust_env": True, **files.client_kwargs}

    import aiohttp

    # What is encoded on the way has other ranges.
    headers = {**files.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
    if received.position:
        headers["Range"] = f"bytes={received.position}-"
    stall_s = access.stall_s
    request = {
        **files.kwargs,
        "headers": headers,
        "timeout": aiohttp.ClientTimeout(total=None, connect=stall_s, sock_read=stall_s),
    }
    session = await files.set_session()
    now = asyncio.get_running_loop().time
    try:
        # So long at most for the connection, redirections and the head of the answer.
        async with (
            asyncio.timeout(2 * stall_s) as limit,
            session.get(files.encode_url(url), **request) as response,
        ):
            _take_answer(response, received)
            counted = received.position
            limit.reschedule(now() + stall_s)
            async for piece in response.content.iter_chunked(2**20):
                received.write(piece)
                if received.position - counted >= LEAST_RATE * stall_s:
                    counted = received.position
                    limit.reschedule(now() + stall_s)
    except TimeoutError as error:
        raise TimeoutError(f"less than {LEAST_RATE} bytes a second for {stall_s:g} s") from error
    finally:
        await session.close()
    if received.content.n_bytes is not None and not received.whole:
        raise ConnectionError(
            f"the answer ended after {received.position} of {received.content.n_bytes} bytes"
        )


def _take_answer(response: "ClientResponse", received: Received) -> None:
    """See from the head of an answer what it holds, and bring what is received in line."""
    if response.status == 416:
        raise WrongContentError(f"fewer than {received.position + 1} bytes")
    response.raise_for_status()
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if span is None or int(span[1]) != received.position:
            received.restart()
            raise ConnectionError("the server gave another range than it was asked for")
        length = None if span[2] == "*" else int(span[2])
    else:
        received.restart()
        length = None if "Content-Encoding" in response.headers else response.content_length
    if length is not None:
        _check_length(length, received)


def _check_length(length: int, received: Received) -> None:
    """Refuse an answer by the length that its head says."""
    content = received.content
    if length != content.n_bytes if content.n_bytes is not None else length > content.limit:
        raise WrongContentError(f"{length} bytes")


async def _read_pieces(url: str, received: Received, access: RemoteAccess) -> None:
    files = _open_file_system(url, access)
    path = files._strip_protocol(url)

    async def within_stall_time(answer: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401, as above
        try:
            with refusals():
                return await asyncio.wait_for(answer, access.stall_s)
        except TimeoutError as error:
            raise TimeoutError(f"no answer for {access.stall_s} s") from error

    session = await (files.set_session if hasattr(files, "set_session") else files._set_session)()
    try:
        size = int((await within_stall_time(files._info(path)))["size"])
        _check_length(size, received)
        while received.position < size:
            end = min(received.position + _PIECE_BYTES, size)
            piece = await within_stall_time(files._cat_file(path, start=received.position, end=end))
            if not piece:
                raise WrongContentError(f"{received.position} bytes")
            received.write(piece)
    finally:
        await session.close()
