"""Addresses (http, object stores, commands), and downloads from them into local files.

After a broken or stalled connection, or an error of a busy server, a download is retried after a
random pause and continues after the received bytes. Other failures, such as "not found", are final.
Wrong content is downloaded again, and is an error when it stays wrong.

Example::

    content = Content(sha256="...", n_bytes=1234)
    download("s3://bucket/a.tar", file, content, access=RemoteAccess(), stop=Event())
"""

import logging
import re
import shlex
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from tenacity import (
    RetryCallState,
    Retrying,
    retry_base,
    retry_if_exception,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_after_delay,
    stop_any,
    stop_when_event_set,
    wait_random_exponential,
)
from tenacity.stop import stop_base

from pipelines.errors import PipelineError
from pipelines.system import stores
from pipelines.system.attempts import (
    Content,
    Received,
    StoppedError,
    WrongContentError,
    read_command,
    read_http,
    read_object,
    run_coroutine,
)
from pipelines.system.masking import MASK, bare_address, masked
from pipelines.system.stores import Failure, FailureKind

SCHEMES = ("http", "https", *stores.SCHEMES)

PIPE_PREFIX = "pipe:"

FILE_PLACE = "{file}"
"""Placeholder in the command of a pipe for the name of the requested file."""

WRONG_CONTENTS = 3
"""Downloads until wrong content is an error: the next one repairs a bit flipped in transit."""

MAX_ASKED_PAUSE_S = 600.0
"""The longest Retry-After that is honored where `RemoteAccess.download_timeout_s` is None."""

_REASONS: dict[FailureKind, str] = {
    "busy": "given up after {tries} without new data; the last error: {message}. Run the same "
    "command again, which continues after the received bytes, or check the server",
    "absent": "not found; check the address",
    "denied": "access denied ({message}); set credentials that may read it",
    "certificate": "its certificate is not valid ({message}); check the address",
    "refused": "it cannot be read ({message}); check the address and the credentials",
}

_WHILE_BUSY = retry_if_exception(lambda e: isinstance(e, Failure) and e.kind == "busy")

_log = logging.getLogger(__name__)


class NotFoundError(PipelineError):
    """Raised when an address is not found, or may not be read.

    Object stores without permission to list objects do not distinguish the two.
    """


@dataclass(frozen=True, kw_only=True)
class RemoteAccess:
    """How addresses are read: retries, timeouts, credentials and permissions.

    Attributes:
        attempts: number of consecutive attempts without new data before a download fails.
        download_timeout_s: seconds without new data before a download fails, after any number of
            attempts; None counts attempts instead.
        first_wait_s: seconds. The pause before attempt n + 1 is random, at most
            ``first_wait_s * 2**(n - 1)``.
        longest_wait_s: seconds; the maximum of that pause.
        stall_s: seconds below 1000 bytes per second after which a connection is closed.
        allow_pipe: whether an address "pipe:COMMAND" may run a shell command, which can do whatever
            the user can.
        options: settings by scheme: for "s3", "gs" and "az" the configuration of obstore's store,
            such as ``{"s3": {"skip_signature": True}}``; for "http" and "https" the arguments of
            ``aiohttp.ClientSession``.
    """

    attempts: int = 8
    download_timeout_s: float | None = None
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    stall_s: float = 30.0
    allow_pipe: bool = False
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values."""
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}; use at least 1")
        for name in ("first_wait_s", "longest_wait_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; use 0 or more seconds")
        if not 0 < self.stall_s < float("inf"):
            raise ValueError(f"stall_s is {self.stall_s}; use more than 0 seconds")
        if self.download_timeout_s is not None and not 0 < self.download_timeout_s < float("inf"):
            raise ValueError(
                f"download_timeout_s is {self.download_timeout_s}; use more than 0 seconds, or None"
            )
        unknown = sorted(set(self.options) - set(SCHEMES))
        if unknown:
            raise ValueError(f"options has the scheme {unknown[0]!r}; use {', '.join(SCHEMES)}")

    @property
    def tries(self) -> str:
        """The limit after which a download fails, in words."""
        if self.download_timeout_s is not None:
            return f"{self.download_timeout_s:g} s"
        return f"{self.attempts} attempts in a row" if self.attempts > 1 else "one attempt"


# --- addresses -----------------------------------------------------------------------------------


def is_remote(where: str) -> bool:
    """Return whether this is an address or a pipe, rather than a path or a file:// address."""
    return re.match(r"(?!file:)(pipe:|[A-Za-z][A-Za-z0-9+.-]*:(//|:))", where) is not None


def is_http(url: str) -> bool:
    """Return whether an address is a URL, with quoting; keys of stores may have any characters."""
    return scheme_of(url) in {"http", "https"}


def scheme_of(url: str) -> str:
    """Return the scheme of an address in lower case."""
    return url.partition(":")[0].lower()


def shown(url: str) -> str:
    """Return an address for messages: without user, query and command, which may be secret."""
    if url.startswith(PIPE_PREFIX):
        return f"{PIPE_PREFIX}{MASK}"
    return url if scheme_of(url) in stores.SCHEMES else bare_address(url)


def check_address(url: str, access: RemoteAccess) -> None:
    """Check that an address can be read.

    Raises:
        PipelineError: for an unknown scheme, and for a pipe unless `access` allows it.
    """
    if url == f"{PIPE_PREFIX}{MASK}":
        raise PipelineError(
            f"{url} is the masked form of a command, as in messages; pass the result of open_set, "
            "not its shards"
        )
    if url.startswith(PIPE_PREFIX):
        if not access.allow_pipe:
            raise PipelineError(
                f"{shown(url)} would run a shell command, which can do whatever you can; use an "
                "address, or allow_pipe=True if you trust the author of the command"
            )
    elif scheme_of(url) not in SCHEMES or "::" in url or not urlsplit(url).netloc:
        raise PipelineError(
            f"{shown(url)} is not a supported address; use a path, or an address with "
            f"{', '.join(f'{scheme}://' for scheme in SCHEMES)}"
        )


def local_path(where: str) -> Path:
    """Return the local path of a path or a file:// address.

    Raises:
        PipelineError: if the address has the name of another machine.
    """
    if not where.startswith("file:"):
        return Path(where)
    parts = urlsplit(where)
    if parts.netloc not in {"", "localhost"}:
        raise PipelineError(f"{where} is on another machine; use file:///PATH, or a path")
    return Path(unquote(parts.path))


def path_of(url: str) -> str:
    """Return the path of an http address; return other addresses unchanged."""
    return urlsplit(url).path if is_http(url) else url


def with_path(url: str, path: str) -> str:
    """Return an address with its `path_of` replaced; the query of an http address is kept."""
    return urlunsplit(urlsplit(url)._replace(path=path)) if is_http(url) else path


def address_inside(folder: str, name: str) -> str:
    """Return the address of a file in a folder.

    Args:
        folder: an address, with or without a slash at its end; a pipe with {file} in its command;
            or a path.
        name: name of the file.
    """
    if folder.startswith(PIPE_PREFIX):
        # Quoted, because the name comes from a manifest, which must not inject commands.
        return folder.replace(FILE_PLACE, shlex.quote(name))
    if not is_remote(folder):
        return str(Path(folder) / name)
    path = path_of(folder).rstrip("/")
    return with_path(folder, f"{path}/{quote(name) if is_http(folder) else name}")


# --- transfers -----------------------------------------------------------------------------------


def download(
    url: str, file: BinaryIO, content: Content, *, access: RemoteAccess, stop: threading.Event
) -> None:
    """Download an address into a file, and verify the content.

    Args:
        url: an address, or "pipe:COMMAND".
        file: open for reading and writing; its content is the beginning, received earlier.
        content: the expected content.
        access: retries, timeouts and options.
        stop: ends the download at once; the received bytes stay in the file.

    Raises:
        NotFoundError: if the address is not found, or may not be read.
        PipelineError: if the address cannot be read, the server fails for too long, the disk is
            full, or the content is wrong `WRONG_CONTENTS` times; the file is then empty.
        StoppedError: if `stop` is set.
    """
    check_address(url, access)
    received = Received(file, content)

    def reset_count(state: RetryCallState) -> None:
        if received.advanced():
            state.attempt_number = 0
            state.start_time = time.monotonic()

    transfers = retrying(
        url,
        access,
        stop,
        retry=retry_if_exception_type(WrongContentError),
        ends=stop_after_attempt(WRONG_CONTENTS),
        # Otherwise the next attempt would continue after the wrong content.
        after=lambda _state: received.restart(),
    )

    def transfer() -> None:
        if not received.is_complete:
            retrying(url, access, stop, after=reset_count)(_attempt, url, received, access, stop)
        received.check()

    try:
        transfers(transfer)
    except (WrongContentError, Failure) as error:
        if stop.is_set():
            raise StoppedError from error
        if isinstance(error, WrongContentError):
            raise PipelineError(
                f"{shown(url)}: expected {content}, got {error}, {WRONG_CONTENTS} times; restore "
                "the file, or, if it was changed on purpose, run pixmix-shard index again"
            ) from error
        kind = NotFoundError if error.kind in {"absent", "denied"} else PipelineError
        reason = _REASONS[error.kind].format(tries=access.tries, message=masked(str(error)))
        raise kind(f"{shown(url)}: {reason}") from error


def retrying(
    url: str,
    access: RemoteAccess,
    stop: threading.Event,
    *,
    retry: retry_base = _WHILE_BUSY,
    ends: stop_base | None = None,
    after: Callable[[RetryCallState], None] = lambda _: None,
) -> Retrying:
    """Return a retrying caller, which logs each error and pauses for a random time after it.

    A pause is at least as long as the server asks for, up to the timeout.

    Args:
        url: address for the log.
        access: the pauses, and the default of `ends`.
        stop: ends a pause at once.
        retry: condition for a retry; by default a busy server.
        ends: condition under which the last error is raised.
        after: called after each failed call; it may reset the count.
    """
    timeout_s = access.download_timeout_s
    if ends is None:
        ends = stop_after_delay(timeout_s) if timeout_s else stop_after_attempt(access.attempts)
    at_random = wait_random_exponential(multiplier=access.first_wait_s, max=access.longest_wait_s)
    longest_s = timeout_s or MAX_ASKED_PAUSE_S

    def pause(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked_s = error.pause_s if isinstance(error, Failure) else 0.0
        return max(at_random(state), min(asked_s, longest_s))

    def report(state: RetryCallState) -> None:
        message = masked(str(state.outcome and state.outcome.exception()))
        _log.warning("%s: %s; retrying in %.1f s", shown(url), message, state.upcoming_sleep)

    return Retrying(
        retry=retry,
        after=after,
        stop=stop_any(ends, stop_when_event_set(stop)),
        wait=pause,
        sleep=sleep_using_event(stop),
        before_sleep=report,
        reraise=True,
    )


def _attempt(url: str, received: Received, access: RemoteAccess, stop: threading.Event) -> None:
    """Read an address once, continuing after the received bytes where that is possible."""
    # `stop` may have been set in a pause between two attempts.
    if stop.is_set():
        raise StoppedError
    options, stall_s = access.options.get(scheme_of(url), {}), access.stall_s
    try:
        if url.startswith(PIPE_PREFIX):
            read_command(url.removeprefix(PIPE_PREFIX), received, stall_s, stop)
        elif is_http(url):
            run_coroutine(lambda: read_http(url, received, options, stall_s), stop)
        else:
            read_object(url, received, options, stall_s, stop)
    except Failure as failure:
        if failure.kind != "short":
            raise
        raise WrongContentError(f"fewer than {received.position + 1} bytes") from failure
