"""Prefetch shards to the node before they are needed."""

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
"""Time between two attempts to find room in the cache, which other processes release silently."""


class Prefetch:
    """Returns shards in order as held files, while threads fetch the next ones.

    Example::

        with Prefetch(remote.files.hold, order, n_shards=4) as shards:
            for shard, held in zip(order, shards):
                with held: ...

    A shard is held until the consumer releases it. Shards take room in the cache in order: without
    room, a shard waits until an earlier one is released. Fetching fails only if the consumer waits
    for this shard, has taken all earlier ones, and there is still no room.

    Args:
        hold: fetches a shard, as `RemoteFiles.hold` does.
        order: shard numbers in the order of use; it may be endless and repeat shards.
        n_shards: maximum number of shards that are fetched before they are taken.
        threads: number of concurrent downloads.
    """

    def __init__(
        self,
        hold: Callable[..., HeldFile],
        order: Iterable[int],
        *,
        n_shards: int = 4,
        threads: int = 4,
    ) -> None:
        for name, value in (("n_shards", n_shards), ("threads", threads)):
            if value < 1:
                raise ValueError(f"{name} is {value}; use at least 1")
        self._hold = hold
        self._order = iter(order)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._pending: deque[_Job] = deque()
        self._turn = threading.Lock()
        self._stop = threading.Event()
        # Stop at the end of the program, so that running downloads do not report failures.
        weakref.finalize(self, self._stop.set)
        self._submit(n_shards)
        # Daemon threads: a program that ends without closing this does not wait for downloads.
        self._threads = [
            threading.Thread(target=self._work, name=f"prefetch-{number}", daemon=True)
            for number in range(min(threads, n_shards))
        ]
        for thread in self._threads:
            thread.start()

    def take(self) -> HeldFile:
        """Wait for the next shard and return it; the caller must release it.

        Raises:
            StopIteration: if the order has ended.
            PipelineError: if this shard cannot be fetched.
            RuntimeError: if the prefetch is closed.
        """
        if self._stop.is_set():
            raise RuntimeError("this prefetch is closed")
        if not self._pending:
            raise StopIteration
        job = self._pending.popleft()
        self._submit(1)
        job.taken.set()
        try:
            return job.future.result()
        except CancelledError as error:
            raise RuntimeError("this prefetch was closed while a shard was fetched") from error

    def __iter__(self) -> Iterator[HeldFile]:
        return self

    __next__ = take

    def close(self) -> None:
        """Stop the threads and their downloads, and release the shards that were not taken."""
        self._stop.set()
        for _ in self._threads:
            self._jobs.put(None)
        if not sys.is_finalizing():  # Threads have stopped then.
            for thread in self._threads:
                thread.join()
        while self._pending:
            future = self._pending.popleft().future
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _submit(self, count: int) -> None:
        for shard in islice(self._order, count):
            job = _Job(shard)
            self._pending.append(job)
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
                taken = job.taken.is_set()
                try:
                    held = self._hold(job.shard, stop=self._stop, reserved=turn.end)
                    return job.future.set_result(held)
                except CacheFullError:
                    # If the consumer already waited, it will not release earlier shards.
                    if taken:
                        raise
                job.taken.wait(_POLL_S)
                if self._stop.is_set():
                    raise StoppedError
        except StoppedError:
            job.future.cancel()
        # The future raises any error where the shard is taken.
        except Exception as error:  # noqa: BLE001
            job.future.set_exception(error)


class _Job:
    """A shard to fetch. taken: set when the consumer waits for it."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.future: Future[HeldFile] = Future()
        self.taken = threading.Event()


class _Turn:
    """A lock that is acquired at once, and released by the first call of `end`."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._held = lock.acquire()

    def end(self) -> None:
        if self._held:
            self._held = False
            self._lock.release()
