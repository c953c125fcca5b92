"""What makes batches of requests: the kernel over pictures in memory, or workers that decode."""

import atexit
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import tee
from multiprocessing.util import Finalize
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from pipelines.loading.preparation import Preparation
from pipelines.loading.samples import PictureDataset, Prepared, Request, Requests
from pipelines.loading.transport import start_method, without_main_module, worker_errors
from pipelines.shards.cache import HeldFile
from pipelines.shards.format import ShardSet
from pipelines.shards.prefetch import Prefetch
from pipelines.shards.remote import RemoteFiles
from pipelines.system.objects import shown
from pixmix.fused import mix_batch
from pixmix.packed import PackedPictures

_LAST_WORD_S = 1.0
"""So long all workers together may take to end by themselves."""

_AHEAD = 2
"""Batches that are made while the network works."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Source(Protocol):
    """Makes batches of requests, in order."""

    @property
    def shards(self) -> ShardSet:
        """The set that indices of requests count in."""

    @property
    def mixing_set(self) -> PackedPictures | None:
        """What pictures are mixed with."""

    def run(self, requests: Requests) -> Generator[Prepared]:
        """Give a batch for each request."""

    def awaited(self) -> str:
        """Return in words what the next batch waits for; from any thread."""


class InMemory:
    """Pictures of one size in memory: a batch is one call of the kernel, made a few ahead."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        shards: ShardSet,
        *,
        preparation: Preparation,
        mixing_set: PackedPictures | None,
        seed: int,
        training: bool,
        views: int | None,
        n_threads: int,
        pin_memory: bool,
    ) -> None:
        self.shards = shards
        self._images = images
        self._labels = torch.from_numpy(shards.samples["label"].astype(np.int64))
        self._preparation = preparation
        self.mixing_set = mixing_set
        self._seed, self._training, self._views = seed, training, views
        self._n_threads, self._pin_memory = n_threads, pin_memory

    def run(self, requests: Requests) -> Generator[Prepared]:
        """Give a batch for each request."""
        return ahead(iter(requests), self._prepare, _AHEAD)

    def awaited(self) -> str:
        """Return in words what the next batch waits for."""
        return "a batch of pictures in memory"

    def _prepare(self, request: Request) -> Prepared:
        preparation, training = self._preparation, self._training
        height, width = self._images.shape[1:3]
        n = len(request.indices)
        views = () if self._views is None else (self._views,)
        out = torch.empty(
            (n, *views, 3, height, width), dtype=preparation.dtype, pin_memory=self._pin_memory
        )
        images = mix_batch(
            self._images[request.indices],
            self.mixing_set,
            request.indices,
            seed=self._seed,
            epoch=request.epoch,
            settings=preparation.pixmix if training else None,
            flip=preparation.flip and training,
            padding=preparation.padding_of(max(height, width)) if training else 0,
            crop=(height, width),
            mean=preparation.mean,
            std=preparation.std,
            views=self._views,
            plain_first=preparation.plain_first and self._training,
            dtype=preparation.dtype,
            n_threads=self._n_threads,
            out=out,
        )
        labels = self._labels[torch.from_numpy(request.indices)]
        return Prepared(images, labels, np.ones(n, np.bool_), ())


class Workers:
    """Pictures in shards, decoded by the workers of a `DataLoader`."""

    def __init__(
        self,
        dataset: PictureDataset,
        *,
        files: RemoteFiles | None,
        ahead: int,
        downloads: int,
        num_workers: int,
        pin_memory: bool,
        multiprocessing_context: str | None,
    ) -> None:
        self._arguments = {name: each for name, each in locals().items() if name != "self"}
        self.shards = dataset.reader.shards
        self.mixing_set = dataset.mixing_set
        self._start_method = multiprocessing_context
        self._files, self._ahead, self._downloads = files, ahead, downloads
        self._requests = _Replaceable()
        self._given = 0
        self._loader: DataLoader[Prepared] = DataLoader(
            dataset,
            batch_sampler=self._requests,  # type: ignore[arg-type]
            num_workers=num_workers,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_the_end_to_the_parent,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            multiprocessing_context=multiprocessing_context if num_workers > 0 else None,
        )
        if num_workers > 0:
            # What is called holds the loader, so that its queues are whole when its workers are
            # told to end; also at the end of this process, be it one of multiprocessing's or not.
            atexit.register(Finalize(self, _end_soon, (self._loader,), exitpriority=100))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the workers to this process: another has its own."""
        return self._arguments

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        """Begin anew."""
        self.__init__(**arguments)  # type: ignore[misc]

    def run(self, requests: Requests) -> Generator[Prepared]:
        """Give a batch for each request."""
        self._requests.requests = requests
        self._given = 0
        if self._files is None:
            yield from self._counted(self._begin())
        else:
            with closing(self._read_ahead(requests, self._files)) as batches:
                yield from self._counted(batches)

    def _begin(self) -> Iterator[Prepared]:
        """Begin an epoch; the workers start the first time."""
        # Asked now: the answer keeps multiprocessing to its default from then on.
        method = start_method(self._start_method)
        with worker_errors(), without_main_module(method):
            return iter(self._loader)

    def _counted(self, batches: Iterator[Prepared]) -> Generator[Prepared]:
        while True:
            with worker_errors():
                prepared = next(batches, None)
            if prepared is None:
                return
            self._given += 1
            yield prepared

    def awaited(self) -> str:
        """Return in words what the next batch waits for: a shard to come, or its decoding."""
        decoded = f"a batch of {self.shards.location} to be decoded"
        requests = self._requests.requests
        request = None if requests is None else next(requests.make(self._given), None)
        if self._files is None or request is None:
            return decoded
        needed = np.unique(self.shards.samples["shard"][request.indices]).tolist()
        missing = [shown(self._files.url(shard)) for shard in needed if not self._is_here(shard)]
        if not missing:
            return decoded
        return missing[0] + (f" and {len(missing) - 1} shards more" if len(missing) > 1 else "")

    def _is_here(self, shard: int) -> bool:
        assert self._files is not None
        return self._files.cache.has(self.shards.shards[shard].sha256)

    def _read_ahead(self, requests: Requests, files: RemoteFiles) -> Generator[Prepared]:
        """Give the batches, and have the next shards downloaded and held while they are needed."""
        uses = Uses(self.shards.samples["shard"], requests)
        order, ordered = tee(uses.in_order())
        held: dict[int, HeldFile] = {}
        # Workers first: one that is forked while a thread writes, and be it a line of a log, would
        # wait for ever for the lock of that file.
        batches = self._begin()
        with Prefetch(files.hold, order, ahead=self._ahead, threads=self._downloads) as shards:
            try:
                upcoming = next(ordered, None)
                for t, prepared in enumerate(batches):
                    yield prepared
                    while upcoming is not None and uses.first[upcoming] <= t:
                        held[upcoming] = shards.take()
                        upcoming = next(ordered, None)
                    for shard in [shard for shard in held if uses.are_over(shard, t)]:
                        held.pop(shard).release()
            finally:
                for file in held.values():
                    file.release()


def _leave_the_end_to_the_parent(_worker: int) -> None:
    """Ignore the signals that terminals and batch systems send to all processes of a job.

    The parent may have a checkpoint to write, for which it wants its workers alive; torch ends
    those whose parent has ended, and `_end_workers` those of a parent that ends.
    """
    for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _end_soon(loader: DataLoader[Prepared]) -> None:
    """End the workers, of which torch would wait 5 s for each that awaits a shard."""
    iterator = loader._iterator
    if isinstance(iterator, _MultiProcessingDataLoaderIter):
        if iterator._worker_pids_set:
            # Or torch raises an error for a worker that ends, wherever this process is.
            signal_handling._remove_worker_pids(id(iterator))  # type: ignore[attr-defined]
            iterator._worker_pids_set = False
        iterator._workers_done_event.set()
        if loader.pin_memory:
            # A thread that pins memory waits for the rest of what a worker had begun to hand over.
            for jobs in iterator._index_queues:
                jobs.put(None)
            deadline = time.monotonic() + _LAST_WORD_S
            for worker in iterator._workers:
                worker.join(max(0.0, deadline - time.monotonic()))
        else:
            # Nobody waits for what they have begun, and their own way out may fail or take long.
            for worker in iterator._workers:
                worker.kill()
    _end_workers(loader)


def _end_workers(loader: DataLoader[Prepared]) -> None:
    """End the workers of a loader that nobody needs any more, or whose process ends.

    torch and multiprocessing would send them SIGTERM, which they ignore: torch where a loader is
    destroyed after its queues, as in a cycle; multiprocessing at the end, and wait for ever.
    """
    iterator = loader._iterator
    if isinstance(iterator, _MultiProcessingDataLoaderIter):
        for worker in iterator._workers:
            # One that was stopped would be waited for.
            if hasattr(signal, "SIGCONT") and worker.pid is not None and worker.is_alive():
                os.kill(worker.pid, signal.SIGCONT)
        iterator._shutdown_workers()
        for worker in iterator._workers:
            worker.kill()  # one that was busy for longer than torch waits


class _Replaceable:
    """The batch sampler of a `DataLoader` whose batches are given anew for each epoch."""

    requests: Requests | None = None

    def __iter__(self) -> Iterator[Request]:
        return iter(()) if self.requests is None else iter(self.requests)


class Uses:
    """Which request needs a shard first, and which last: looked through as far as is asked.

    first, last: shard -> number of a request, of those that were looked at.
    """

    def __init__(self, shard_of: NDArray[np.integer], requests: Requests) -> None:
        """Begin. shard_of: (samples,) the shard of each."""
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self._shard_of = shard_of
        self._ends = requests.ends
        self._ahead = enumerate(requests)
        self._place: float = 0
        self._found: deque[int] = deque()

    def in_order(self) -> Iterator[int]:
        """Give the shards as they are first needed."""
        while self._found or self._look():
            while self._found:
                yield self._found.popleft()

    def are_over(self, shard: int, t: int) -> bool:
        """Return whether request t, or one before it, was the last that needs a shard."""
        end = math.inf if self._ends is None else int(self._ends[shard])
        while self.last[shard] <= t and self._place < end:
            self._look()
        return self.last[shard] <= t

    def _look(self) -> bool:
        """Look at the next request; return whether there was one."""
        following = next(self._ahead, None)
        if following is None:
            self._place = math.inf
            return False
        t, request = following
        for shard in np.unique(self._shard_of[request.indices]).tolist():
            if shard not in self.first:
                self.first[shard] = t
                self._found.append(shard)
            self.last[shard] = t
        # Places of later requests are all behind it.
        self._place = int(request.places.max()) + 1
        return True


def _as_it_is(prepared: object) -> object:
    return prepared


def ahead(items: Iterator[Item], work: Callable[[Item], Result], depth: int) -> Generator[Result]:
    """Give what work makes of items, in order, made in a thread up to `depth` ahead."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="pixmix-loader")
    running: list[Future[Result]] = []
    try:
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) > depth:
                yield running.pop(0).result()
        while running:
            yield running.pop(0).result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
