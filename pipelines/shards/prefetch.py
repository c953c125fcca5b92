"""Shards that are on the node before they are needed."""

import queue
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from itertools import islice
from typing import Self

from pipelines.shards.cache import CacheFullError, HeldFile
from pipelines.system.attempts import StoppedError

_POLL_S = 0.1
"""Between two tries for room in the cache: what other processes release is not announced."""


class Prefetch:
    """Returns shards in their order as held files, while threads fetch the next ones.

        with Prefetch(remote.files.hold, order, ahead=4) as shards:
            for shard, held in zip(order, shards):
                with held: ...

    A shard is held from its fetching until whoever takes it releases it. Room in the cache is taken
    in the order of the shards: one that finds none waits for an earlier one to be released, and is
    refused only when all before it were taken, the taker waits for it, and there is still none.

    hold: fetches a shard, as `RemoteFiles.hold` does.
    order: shard numbers as they will be needed; may be endless, and name a shard again.
    ahead: shards that are fetched before they are taken, at most.
    threads: downloads at a time.
    """

    def __init__(
        self,
        hold: Callable[..., HeldFile],
        order: Iterable[int],
        *,
        ahead: int = 4,
        threads: int = 4,
    ) -> None:
        for name, value in (("ahead", ahead), ("threads", threads)):
            if value < 1:
                raise ValueError(f"{name} is {value}; use at least 1")
        self._hold = hold
        self._order = iter(order)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._ahead: deque[_Job] = deque()
        self._turn = threading.Lock()
        self._stop = threading.Event()
        # Also at the end of the program, or what is fetched then is told of as a failure.
        weakref.finalize(self, self._stop.set)
        self._submit(ahead)
        # Daemons: a program that ends without closing this does not wait for its downloads.
        self._threads = [
            threading.Thread(target=self._work, name=f"prefetch-{number}", daemon=True)
            for number in range(min(threads, ahead))
        ]
        for thread in self._threads:
            thread.start()

    def take(self) -> HeldFile:
        """Return the next shard, which is the caller's to release; wait until it is there.

        Raises:
            StopIteration: if the order has ended.
            PipelineError: if this shard cannot be fetched.
            RuntimeError: if this is closed.
        """
        if self._stop.is_set():
            raise RuntimeError("this prefetch is closed")
        if not self._ahead:
            raise StopIteration
        job = self._ahead.popleft()
        self._submit(1)
        job.awaited.set()
        try:
            return job.future.result()
        except CancelledError as error:
            raise RuntimeError("this prefetch was closed meanwhile") from error

    def __iter__(self) -> Iterator[HeldFile]:
        return self

    __next__ = take

    def close(self) -> None:
        """End the threads, with their downloads, and release what was not taken."""
        self._stop.set()
        for _ in self._threads:
            self._jobs.put(None)
        if not sys.is_finalizing():  # Threads do not run any more then.
            for thread in self._threads:
                thread.join()
        while self._ahead:
            future = self._ahead.popleft().future
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _submit(self, count: int) -> None:
        for shard in islice(self._order, count):
            job = _Job(shard)
            self._ahead.append(job)
            self._jobs.put(job)

    def _work(self) -> None:
        while True:
            turn = _Turn(self._turn)
            try:
                job = self._jobs.get()
                if job is None or self._stop.is_set():
                    return
                self._fetch(job, turn)
            finally:
                turn.end()

    def _fetch(self, job: "_Job", turn: "_Turn") -> None:
        try:
            while True:
                awaited = job.awaited.is_set()
                try:
                    held = self._hold(job.shard, stop=self._stop, reserved=turn.end)
                    return job.future.set_result(held)
                except CacheFullError:
                    # Only if it was awaited before: then its taker has released all that it will.
                    if awaited:
                        raise
                job.awaited.wait(_POLL_S)
                if self._stop.is_set():
                    raise StoppedError
        except StoppedError:
            job.future.cancel()
        # Whatever it is, it belongs to whoever takes this shard, as with any future.
        except Exception as error:  # noqa: BLE001
            job.future.set_exception(error)


class _Job:
    """A shard to fetch. awaited: set when its taker waits for it."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.future: Future[HeldFile] = Future()
        self.awaited = threading.Event()


class _Turn:
    """A lock that is taken at once and freed once, by whichever step comes first."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._held = lock.acquire()

    def end(self) -> None:
        if self._held:
            self._held = False
            self._lock.release()
