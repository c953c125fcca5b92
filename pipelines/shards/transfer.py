"""From an address to a local file: resumed, tried again after random pauses, and checked.

What may pass is tried again: a broken or silent connection, a busy server. What is there already is
kept and the rest asked for. Other answers, such as "not found", are final. Content that is wrong is
fetched anew, and refused when it is wrong again.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

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
from pipelines.shards.cache import StoppedError
from pipelines.shards.connections import (
    NotThereError,
    RemoteAccess,
    asked_pause_s,
    attempt,
    check_address,
    is_absent,
    may_pass,
    reason,
    remote_errors,
    said,
    shown,
)
from pipelines.shards.received import Content, Received, WrongContentError

WRONG_CONTENTS = 3
"""So often content may be wrong: a bit that flipped on the way is mended by the next transfer."""

MOST_ASKED_PAUSE_S = 600.0
"""As long a server is waited for that says how long, where there is no patience in seconds."""

_log = logging.getLogger(__name__)


def download(
    url: str, file: BinaryIO, content: Content, *, access: RemoteAccess, stop: threading.Event
) -> None:
    """Bring what an address names into a file, and see that it is the right content.

    Args:
        url: an address, or "pipe:COMMAND".
        file: open for reading and writing; what it holds is taken for the beginning.
        content: what is to come.
        access: how, and how patiently.
        stop: ends the transfer within a moment; what has come stays in the file.

    Raises:
        PipelineError: if the address cannot be read (its subclass `NotThereError` where there is
            nothing), the server is given up, or the content is wrong again and again; in the last
            case the file is empty.
        StoppedError: if `stop` is set.
    """
    check_address(url, access)
    received = Received(file, content)

    def count_anew(state: RetryCallState) -> None:
        if received.went_on():
            state.attempt_number = 0
            state.start_time = time.monotonic()

    attempts = retrying(
        url,
        access,
        stop,
        retry=retry_if_exception(may_pass),
        given_up=patience_ends(access),
        after=count_anew,
    )
    transfers = retrying(
        url,
        access,
        stop,
        retry=retry_if_exception_type(WrongContentError),
        given_up=stop_after_attempt(WRONG_CONTENTS),
        # Or what is wrong would be resumed.
        after=lambda _state: received.restart(),
    )

    def transfer() -> None:
        if not received.whole:
            attempts(attempt, url, received, access=access, stop=stop)
        received.check()

    try:
        transfers(transfer)
    except WrongContentError as error:
        if stop.is_set():
            raise StoppedError from error
        raise PipelineError(
            f"{shown(url)}: {content} were to come, and {error} came, {WRONG_CONTENTS} times; put "
            "the right file there, or, if it was changed on purpose, run pixmix-shard index again"
        ) from error
    except remote_errors() as error:
        if stop.is_set():
            raise StoppedError from error
        kind = NotThereError if is_absent(error) else PipelineError
        raise kind(f"{shown(url)}: {reason(error, access)}") from error


def patience_ends(access: RemoteAccess) -> stop_base:
    """Return when what may pass is given up: after so many attempts, or after a time."""
    if access.patience_s is None:
        return stop_after_attempt(access.attempts)
    return stop_after_delay(access.patience_s)


def retrying(
    url: str,
    access: RemoteAccess,
    stop: threading.Event,
    *,
    retry: retry_base,
    given_up: stop_base,
    after: Callable[[RetryCallState], None] = lambda _: None,
) -> Retrying:
    """Return how one kind of failure is met: random pauses, each of which is told of, and an end.

    given_up: when; `after` is called after each call that failed and may count anew. A server that
    says how long to wait is left alone so long, but not beyond the patience.
    """
    at_random = wait_random_exponential(multiplier=access.first_wait_s, max=access.longest_wait_s)
    longest_s = MOST_ASKED_PAUSE_S if access.patience_s is None else access.patience_s

    def pause(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(at_random(state), min(asked_pause_s(error), longest_s))

    def say(state: RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        if isinstance(error, Exception):
            wait_s = state.upcoming_sleep
            _log.warning("%s: %s; trying again in %.1f s", shown(url), said(error), wait_s)

    return Retrying(
        retry=retry,
        after=after,
        stop=stop_any(given_up, stop_when_event_set(stop)),
        wait=pause,
        sleep=sleep_using_event(stop),
        before_sleep=say,
        reraise=True,
    )
