"""Addresses: http, object stores and the output of commands; and their transfer into local files.

    content = Content(sha256="...", n_bytes=1234)
    download("s3://bucket/a.tar", file, content, access=RemoteAccess(), stop=Event())

A broken or silent connection and a busy server are tried again after random pauses, from where the
received bytes end. Other failures, such as "not found", are final. Content that is wrong is fetched
anew, and refused when it is wrong again.
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
"""Stands in a pipe's command for the name of the file that it is to write."""

WRONG_CONTENTS = 3
"""Attempts until wrong content is refused: a bit that flipped on the way is mended by the next."""

MOST_ASKED_PAUSE_S = 600.0
"""The longest Retry-After that is honored where `RemoteAccess.download_timeout_s` is None."""

_REASONS: dict[FailureKind, str] = {
    "busy": "given up after {tries} without anything new, the last: {said}; the bytes received so "
    "far are kept: check the server and run the same command again",
    "absent": "not found; check the address",
    "denied": "access denied ({said}); set credentials that may read it",
    "certificate": "its certificate is not valid ({said}); check the address",
    "refused": "it cannot be read ({said}); check the address and the credentials",
}

_WHILE_BUSY = retry_if_exception(lambda e: isinstance(e, Failure) and e.kind == "busy")

_log = logging.getLogger(__name__)


class NotFoundError(PipelineError):
    """Raised where an address leads to nothing, or to nothing that may be read.

    Both in one: an object store that may not be listed answers alike for them.
    """


@dataclass(frozen=True, kw_only=True)
class RemoteAccess:
    """How addresses are read, and when a server is given up.

    Attributes:
        attempts: in a row that bring nothing new, until a server is given up.
        download_timeout_s: seconds without anything new until a server is given up, after any
            number of attempts; None goes by the attempts.
        first_wait_s: seconds; before attempt n + 1 a random time passes of at most
            first_wait_s * 2**(n - 1).
        longest_wait_s: seconds; the most that this may be.
        stall_s: seconds after which a connection is dropped in which fewer than `LEAST_RATE` bytes
            per second came.
        allow_pipe: whether "pipe:COMMAND" may run a shell, which can do whatever the user can.
        options: by scheme; for "s3", "gs" and "az" obstore's configuration of the store, as in
            {"s3": {"skip_signature": True}}; for "http" and "https" the arguments of
            `aiohttp.ClientSession`.
    """

    attempts: int = 8
    download_timeout_s: float | None = None
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    stall_s: float = 30.0
    allow_pipe: bool = False
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse nonsense."""
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
            raise ValueError(f"options has {unknown[0]!r}; use schemes of {', '.join(SCHEMES)}")

    @property
    def tries(self) -> str:
        """Say when a server is given up."""
        if self.download_timeout_s is not None:
            return f"{self.download_timeout_s:g} s"
        return f"{self.attempts} attempts in a row" if self.attempts > 1 else "one attempt"


# --- addresses -----------------------------------------------------------------------------------


def is_remote(where: str) -> bool:
    """Return whether this is an address or a pipe, and not a path or a file:// address."""
    return re.match(r"(?!file:)(pipe:|[A-Za-z][A-Za-z0-9+.-]*:(//|:))", where) is not None


def is_http(url: str) -> bool:
    """Return whether a URL's rules hold for this address; a key of a store may hold any sign."""
    return scheme_of(url) in {"http", "https"}


def scheme_of(url: str) -> str:
    """Return the scheme of an address in small letters."""
    return url.partition(":")[0].lower()


def shown(url: str) -> str:
    """Return an address for messages: without user, query and command, where secrets are."""
    if url.startswith(PIPE_PREFIX):
        return f"{PIPE_PREFIX}{MASK}"
    return url if scheme_of(url) in stores.SCHEMES else bare_address(url)


def check_address(url: str, access: RemoteAccess) -> None:
    """Refuse what is never read, before anything is done.

    Raises:
        PipelineError: for a scheme that is not read, and for a pipe unless the caller allows it.
    """
    if url == f"{PIPE_PREFIX}{MASK}":
        raise PipelineError(
            f"{url} is only what messages show of a command; pass what open_set "
            "returned, and not its shards"
        )
    if url.startswith(PIPE_PREFIX):
        if not access.allow_pipe:
            raise PipelineError(
                f"{shown(url)} would run a shell command, which can do whatever you can; use an "
                "address, or allow_pipe=True if you trust whoever wrote the command"
            )
    elif scheme_of(url) not in SCHEMES or "::" in url or not urlsplit(url).netloc:
        raise PipelineError(
            f"{shown(url)} is no address that shards are read from; use one that begins with "
            f"{', '.join(f'{scheme}://' for scheme in SCHEMES)}, or a path"
        )


def local_path(where: str) -> Path:
    """Return the path that a path or a file:// address names.

    Raises:
        PipelineError: if the address names another machine.
    """
    if not where.startswith("file:"):
        return Path(where)
    parts = urlsplit(where)
    if parts.netloc not in {"", "localhost"}:
        raise PipelineError(f"{where} names another machine; use file:///PATH, or a path")
    return Path(unquote(parts.path))


def path_of(url: str) -> str:
    """Return the path of an http address, and all of another one."""
    return urlsplit(url).path if is_http(url) else url


def with_path(url: str, path: str) -> str:
    """Return an address with another path in place of `path_of`; the query stays."""
    return urlunsplit(urlsplit(url)._replace(path=path)) if is_http(url) else path


def address_inside(folder: str, name: str) -> str:
    """Return where a file of a folder is.

    Args:
        folder: an address, with or without a slash at its end, a pipe's command with {file} in it,
            or a path.
        name: of the file.
    """
    if folder.startswith(PIPE_PREFIX):
        # Quoted: the name comes from a manifest, and no manifest may write commands.
        return folder.replace(FILE_PLACE, shlex.quote(name))
    if not is_remote(folder):
        return str(Path(folder) / name)
    path = path_of(folder).rstrip("/")
    return with_path(folder, f"{path}/{quote(name) if is_http(folder) else name}")


# --- transfers -----------------------------------------------------------------------------------


def download(
    url: str, file: BinaryIO, content: Content, *, access: RemoteAccess, stop: threading.Event
) -> None:
    """Bring what an address names into a file, and check that it is the right content.

    Args:
        url: an address, or "pipe:COMMAND".
        file: open for reading and writing; what it holds is taken for the beginning.
        content: the expected content.
        access: how, and how patiently.
        stop: ends the transfer within a moment; what has come stays in the file.

    Raises:
        NotFoundError: if there is nothing, or nothing that may be read.
        PipelineError: if the address cannot be read, the server is given up, the disk is full, or
            the content is wrong again and again; in the last case the file is empty.
        StoppedError: if `stop` is set.
    """
    check_address(url, access)
    received = Received(file, content)

    def count_anew(state: RetryCallState) -> None:
        if received.advanced():
            state.attempt_number = 0
            state.start_time = time.monotonic()

    transfers = retrying(
        url,
        access,
        stop,
        retry=retry_if_exception_type(WrongContentError),
        ends=stop_after_attempt(WRONG_CONTENTS),
        # Or the wrong content would be resumed.
        after=lambda _state: received.restart(),
    )

    def transfer() -> None:
        if not received.whole:
            retrying(url, access, stop, after=count_anew)(_attempt, url, received, access, stop)
        received.check()

    try:
        transfers(transfer)
    except (WrongContentError, Failure) as error:
        if stop.is_set():
            raise StoppedError from error
        if isinstance(error, WrongContentError):
            raise PipelineError(
                f"{shown(url)}: {content} were expected, and {error} came, {WRONG_CONTENTS} times; "
                "put the right file there, or, if it was changed on purpose, run pixmix-shard "
                "index again"
            ) from error
        kind = NotFoundError if error.kind in {"absent", "denied"} else PipelineError
        said = masked(str(error))
        reason = _REASONS[error.kind].format(tries=access.tries, said=said)
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
    """Return what calls a function again after random pauses, each of which is logged.

    A server that says how long to wait is left alone so long, but not beyond the timeout.

    Args:
        url: for the log.
        access: the pauses, and when it ends by default.
        stop: ends a pause at once.
        retry: after which errors; by default those that may pass.
        ends: when the last error is raised.
        after: called after each call that failed; it may begin the count anew.
    """
    timeout_s = access.download_timeout_s
    if ends is None:
        ends = stop_after_delay(timeout_s) if timeout_s else stop_after_attempt(access.attempts)
    at_random = wait_random_exponential(multiplier=access.first_wait_s, max=access.longest_wait_s)
    longest_s = timeout_s or MOST_ASKED_PAUSE_S

    def pause(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked_s = error.pause_s if isinstance(error, Failure) else 0.0
        return max(at_random(state), min(asked_s, longest_s))

    def report(state: RetryCallState) -> None:
        said = masked(str(state.outcome and state.outcome.exception()))
        _log.warning("%s: %s; trying again in %.1f s", shown(url), said, state.upcoming_sleep)

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
    """Read an address once, from where the received bytes end, or anew where that is not known."""
    # It may have been set in a pause between two attempts.
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
