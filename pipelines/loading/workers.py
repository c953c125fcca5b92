"""Batches made by a thread (images in memory) or by the workers of a torch `DataLoader`.

Workers return batches in shared memory, which is fast, but needs space in /dev/shm and open files.
If /dev/shm is too small, as in a container with the default of 64 MiB, batches are sent through the
pipes of the workers.
"""

import atexit
import errno
import logging
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from itertools import tee
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from pipelines.errors import PipelineError
from pipelines.loading.batches import Batch, BatchMaker
from pipelines.loading.dataset import SampleError, ShardDataset, too_many_files
from pipelines.loading.order import Request, Requests, ShardUses, default_prefetch
from pipelines.shards.cache import HeldFile
from pipelines.shards.prefetch import Prefetch
from pipelines.shards.remote import Remote, RemoteFiles
from pipelines.system.objects import is_remote, shown
from pipelines.system.processes import prefetch

SHARED_MEMORY = Path("/dev/shm")
"""The file system of shared memory."""

_JOIN_TIMEOUT_S = 1.0
"""Time for all workers together to end by themselves."""

_PREFETCHED_BATCHES = 2
"""Batches of images in memory that are made in advance."""

_SPARE_FILES = 8
"""Free file descriptors required to send a batch; without them torch loses it silently."""

_SMALL_BYTES = 2**16
"""Up to this size a pipe is cheaper for a tensor than a new block of shared memory."""

_log = logging.getLogger(__name__)
_main_hidden = threading.Lock()


def open_batches(
    maker: BatchMaker, files: RemoteFiles | None, world_size: int
) -> "MemoryBatches | WorkerBatches":
    """Return the batches of one of `world_size` processes.

    files: the files of the dataset, if it has shards.
    """
    pin_memory = maker.config.pin_memory
    if pin_memory is None:
        pin_memory = torch.cuda.is_available()
    if maker.in_memory is not None:
        return MemoryBatches(maker, pin_memory=pin_memory)
    return WorkerBatches(maker, files=files, world_size=world_size, pin_memory=pin_memory)


class MemoryBatches:
    """Batches of images in memory: a thread makes each with one call of a kernel."""

    def __init__(self, maker: BatchMaker, *, pin_memory: bool) -> None:
        self._maker, self._pin_memory = maker, pin_memory

    def run(self, requests: Requests) -> Generator[Batch]:
        """Yield a batch for each request."""
        make = partial(self._maker.make, allocate=partial(_new_tensor, pin_memory=self._pin_memory))
        return prefetch(iter(requests), make, _PREFETCHED_BATCHES)

    def waiting_for(self) -> str:
        """Describe what the next batch waits for."""
        return "a batch of images in memory"


def _new_tensor(shape: tuple[int, ...], dtype: torch.dtype, *, pin_memory: bool) -> Tensor:
    return torch.empty(shape, dtype=dtype, pin_memory=pin_memory)


# --- workers -------------------------------------------------------------------------------------


class WorkerBatches:
    """Batches of samples that are decoded by workers, or by this process if there are none."""

    def __init__(
        self, maker: BatchMaker, *, files: RemoteFiles | None, world_size: int, pin_memory: bool
    ) -> None:
        """Prepare the workers, which start with the first epoch.

        Args:
            maker: makes the batches.
            files: the files of the dataset, if it has shards.
            world_size: number of processes that share the dataset.
            pin_memory: whether batches are in pinned memory.
        """
        self._arguments = {name: each for name, each in locals().items() if name != "self"}
        self._maker, self._files = maker, files
        config = maker.config
        self._remote = config.remote or Remote()
        self._prefetch = self._remote.prefetch or default_prefetch(
            config.shuffle_window, config.shard_partitions, world_size
        )
        self._requests = _Replaceable()
        self._n_yielded = 0
        n_workers = config.num_workers
        share = min(-(-config.batch_size // world_size), len(maker.samples))
        batch_bytes = math.prod(maker.shape(share)) * maker.preprocess.dtype.itemsize
        through_pipe = not fits_shared_memory(batch_bytes, n_workers)
        self._loader: DataLoader[Batch] = DataLoader(
            _WorkerDataset(maker, through_pipe=through_pipe),
            batch_sampler=self._requests,  # type: ignore[arg-type]
            num_workers=n_workers,
            collate_fn=_unchanged,
            worker_init_fn=_ignore_signals,
            pin_memory=pin_memory,
            persistent_workers=n_workers > 0,
            multiprocessing_context=config.multiprocessing_context if n_workers > 0 else None,
        )
        if n_workers > 0:
            # The callback references the loader, so its queues still exist when the workers are
            # asked to end. It also runs at the exit of this process, however that was started.
            atexit.register(Finalize(self, _end_soon, (self._loader,), exitpriority=100))

    def __getstate__(self) -> dict[str, Any]:
        """Return the arguments; the workers stay with this process."""
        return self._arguments

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        """Prepare new workers."""
        self.__init__(**arguments)  # type: ignore[misc]

    def run(self, requests: Requests) -> Generator[Batch]:
        """Yield a batch for each request."""
        self._requests.requests = requests
        self._n_yielded = 0
        if self._is_remote():
            with closing(self._with_prefetched_shards(requests)) as batches:
                yield from self._counted(batches)
        else:
            yield from self._counted(self._start())

    def waiting_for(self) -> str:
        """Describe what the next batch waits for: the download of a shard, or decoding."""
        decoded = f"a batch of {self._maker.samples.name} to be decoded"
        requests = self._requests.requests
        request = None if requests is None else next(requests.make(self._n_yielded), None)
        if self._files is None or not self._is_remote() or request is None:
            return decoded
        cache, shards = self._files.cache, self._files.shards
        missing = [
            shown(self._files.url(shard))
            for shard in np.unique(self._shard_of()[request.indices]).tolist()
            if not cache.has(shards[shard].sha256)
        ]
        if not missing:
            return decoded
        return missing[0] + (f" and {len(missing) - 1} more shards" if len(missing) > 1 else "")

    def _is_remote(self) -> bool:
        return self._files is not None and is_remote(self._files.location)

    def _shard_of(self) -> NDArray[np.integer]:
        """Return the shard of each sample, (samples,)."""
        assert isinstance(self._maker.samples, ShardDataset)
        return cast("NDArray[np.integer]", self._maker.samples.shards.samples["shard"])

    def _start(self) -> Iterator[Batch]:
        """Start an epoch; the workers start with the first one."""
        # Not called earlier, because the call fixes the default of multiprocessing.
        method = self._maker.config.multiprocessing_context or multiprocessing.get_start_method()
        # The class of a user's dataset may be defined in the main module.
        hides = method != "fork" and isinstance(self._maker.samples, ShardDataset)
        try:
            with (
                worker_errors(),
                without_main_module() if hides else nullcontext(),
                warnings.catch_warnings(),
            ):
                # The error below replaces this warning.
                warnings.filterwarnings("ignore", "Got pickle error")
                return iter(self._loader)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise PipelineError(
                f"{self._maker.samples.name} cannot be sent to workers started by {method!r} "
                f"({error}); define its class and its functions at the top level of a module, or "
                "use multiprocessing_context='fork' or num_workers=0"
            ) from error

    def _counted(self, batches: Iterator[Batch]) -> Generator[Batch]:
        while True:
            with worker_errors():
                batch = next(batches, None)
            if batch is None:
                return
            self._n_yielded += 1
            yield batch

    def _with_prefetched_shards(self, requests: Requests) -> Generator[Batch]:
        """Yield the batches; download the next shards meanwhile, and hold those in use."""
        assert self._files is not None
        uses = ShardUses(self._shard_of(), requests)
        order, ordered = tee(uses.in_order())
        held: dict[int, HeldFile] = {}
        # Workers first: a process forked while another thread writes, for example to the log, would
        # wait forever for the lock of that file.
        batches = self._start()
        with Prefetch(
            self._files.hold,
            order,
            n_shards=self._prefetch,
            threads=self._remote.concurrent_downloads,
        ) as shards:
            try:
                upcoming = next(ordered, None)
                for t, batch in enumerate(batches):
                    yield batch
                    while upcoming is not None and uses.first[upcoming] <= t:
                        held[upcoming] = shards.take()
                        upcoming = next(ordered, None)
                    for shard in [shard for shard in held if uses.are_over(shard, t)]:
                        held.pop(shard).release()
            finally:
                for file in held.values():
                    file.release()


class _WorkerDataset(Dataset[Batch]):
    """A map-style dataset whose indices are requests and whose items are whole batches."""

    def __init__(self, maker: BatchMaker, *, through_pipe: bool) -> None:
        self._maker, self._through_pipe = maker, through_pipe

    def __getitems__(self, request: Request) -> Batch:
        """Return a batch, or a batch with a fault: errors lose their type between processes.

        A worker writes the images directly to shared memory. With two workers on two cores this
        gives 5 to 11 percent more samples per second than a copy; with one worker beside an idle
        core, which would make the copy, 7 percent fewer.
        """
        in_worker = get_worker_info() is not None
        shares = in_worker and not self._through_pipe
        try:
            batch = self._maker.make(request, shared_tensor if shares else None)
            if not in_worker:
                return batch
            check_open_files()
        except SampleError as error:
            return _no_batch(
                f"{error}; run pixmix-shard verify, or pass on_decode_error='substitute' or "
                "'skip' (pixmix-train: --on-decode-error) to continue without such samples"
            )
        except PipelineError as error:
            return _no_batch(str(error))
        # `to_send` returns an object that is unpickled as a tensor.
        images, labels = (
            cast(Tensor, to_send(each, through_pipe=self._through_pipe))
            for each in (batch.images, batch.labels)
        )
        return batch._replace(images=images, labels=labels)


def _no_batch(fault: str) -> Batch:
    return Batch(torch.empty(0), torch.empty(0), np.empty(0, np.bool_), fault=fault)


def _unchanged(batch: object) -> object:
    return batch


class _Replaceable:
    """A batch sampler of a `DataLoader` whose requests are replaced for each epoch."""

    requests: Requests | None = None

    def __iter__(self) -> Iterator[Request]:
        return iter(()) if self.requests is None else iter(self.requests)


def _ignore_signals(_worker: int) -> None:
    """Ignore the signals that terminals and batch systems send to all processes of a job.

    The parent may need its workers until it has written a checkpoint. It ends them with
    `_end_workers`; torch ends workers whose parent has died.
    """
    for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _end_soon(loader: DataLoader[Batch]) -> None:
    """End the workers without torch's wait of 5 s for each that waits for a shard."""
    iterator = loader._iterator
    if isinstance(iterator, _MultiProcessingDataLoaderIter):
        if iterator._worker_pids_set:
            # Otherwise torch raises an error anywhere in this process when a worker ends.
            signal_handling._remove_worker_pids(id(iterator))  # type: ignore[attr-defined]
            iterator._worker_pids_set = False
        iterator._workers_done_event.set()
        if loader.pin_memory:
            # The pinning thread waits for the rest of a batch that a worker has begun to send.
            for jobs in iterator._index_queues:
                jobs.put(None)
            deadline = time.monotonic() + _JOIN_TIMEOUT_S
            for worker in iterator._workers:
                worker.join(max(0.0, deadline - time.monotonic()))
        else:
            # Nothing waits for their batches, and a regular exit may fail or take long.
            for worker in iterator._workers:
                worker.kill()
    _end_workers(loader)


def _end_workers(loader: DataLoader[Batch]) -> None:
    """End the workers of a loader that is no longer used, or whose process exits.

    The workers ignore SIGTERM. torch sends it if a loader is destroyed after its queues, as in a
    reference cycle; multiprocessing sends it at exit, and then waits forever.
    """
    iterator = loader._iterator
    if isinstance(iterator, _MultiProcessingDataLoaderIter):
        for worker in iterator._workers:
            # A stopped process must be continued, or the shutdown waits for it.
            if hasattr(signal, "SIGCONT") and worker.pid is not None and worker.is_alive():
                os.kill(worker.pid, signal.SIGCONT)
        iterator._shutdown_workers()
        for worker in iterator._workers:
            worker.kill()  # In case it was busy for longer than torch waits.


# --- transport -----------------------------------------------------------------------------------


def fits_shared_memory(batch_bytes: int, num_workers: int) -> bool:
    """Return whether batches in transit fit into shared memory; log a warning if they do not.

    Args:
        batch_bytes: size of a batch of this process in bytes.
        num_workers: number of workers of this process; each works on two batches, and two more are
            in use.
    """
    if num_workers == 0 or not SHARED_MEMORY.is_dir():
        return True
    status = os.statvfs(SHARED_MEMORY)
    free = status.f_bavail * status.f_frsize
    needed = (2 * num_workers + 2) * batch_bytes * _processes_here()
    if needed <= free:
        return True
    _log.warning(
        "%s has %d MiB free, but batches of %d workers need up to %d MiB; they are sent through "
        "pipes instead, which is slower. Enlarge it (docker run --shm-size %dm), or use smaller "
        "batches or fewer workers (--workers)",
        SHARED_MEMORY, free >> 20, num_workers, -(-needed >> 20), -(-needed >> 20) + 64,
    )  # fmt: skip
    return False


def shared_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialized tensor in shared memory.

    Raises:
        PipelineError: if shared memory is full, or the limit of open files is reached.
    """
    try:
        # The same call as in torch's collate function.
        storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    except RuntimeError as error:
        message = " ".join(str(error).split())
        if os.strerror(errno.EMFILE) in message:
            raise PipelineError(too_many_files()) from error
        raise PipelineError(_no_shared_memory(message)) from error
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload,no-any-return]


class ByValue:
    """A tensor that is pickled as bytes, and unpickled as a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.contiguous()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the bytes of the tensor."""
        tensor = self._tensor
        content = bytearray(tensor.numel() * tensor.element_size())
        if content:
            torch.frombuffer(content, dtype=torch.uint8).copy_(tensor.reshape(-1).view(torch.uint8))
        return _from_bytes, (content, tensor.dtype, tuple(tensor.shape))


def to_send(tensor: Tensor, *, through_pipe: bool) -> Tensor | ByValue:
    """Return a tensor, or its replacement if it goes through a pipe, for a worker to send."""
    small = tensor.numel() * tensor.element_size() <= _SMALL_BYTES
    return ByValue(tensor) if through_pipe or small else tensor


def check_open_files() -> None:
    """Check that files can be opened for the transfer of a batch.

    Raises:
        PipelineError: if the limit of open files is reached.
    """
    opened: list[int] = []
    try:
        for _ in range(_SPARE_FILES):
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))  # noqa: PERF401
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            raise PipelineError(too_many_files()) from error
        raise
    finally:
        for descriptor in opened:
            os.close(descriptor)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Translate torch's errors about workers into one-line messages.

    Raises:
        PipelineError: if a worker was killed, or a limit of the system was reached.
    """
    try:
        yield
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            raise PipelineError(too_many_files()) from error
        raise
    except RuntimeError as error:
        message = str(error)
        if "Too many open files" in message or "items of ancdata" in message:
            raise PipelineError(too_many_files()) from error
        if "Bus error" in message:
            raise PipelineError(_no_shared_memory("a worker got a bus error")) from error
        if message.startswith("DataLoader worker"):
            raise PipelineError(
                "a worker that decodes images was killed, most likely because memory ran out; run "
                "the same command again (pixmix-train: with --resume), with fewer --workers "
                "if memory is short"
            ) from error
        raise


@contextmanager
def without_main_module() -> Iterator[None]:
    """Keep processes that are started in the block from importing the main module.

    A process that is not forked imports it, and a script without `if __name__ == "__main__":` would
    run its training loop again in each. Workers that read shards do not need the main module.
    """
    main = sys.modules["__main__"]
    with _main_hidden:
        names = [name for name in ("__file__", "__spec__") if hasattr(main, name)]
        kept = {name: getattr(main, name) for name in names}
        for name in names:
            setattr(main, name, None)
        try:
            yield
        finally:
            for name, value in kept.items():
                setattr(main, name, value)


def _from_bytes(content: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not content:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype).reshape(shape)


def _processes_here() -> int:
    """Return the number of training processes on this machine, as set by torchrun."""
    value = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(value)) if value.isascii() and value.isdigit() else 1


def _no_shared_memory(message: str) -> str:
    return (
        f"{SHARED_MEMORY} is too small for the batches of the workers ({message}); enlarge it "
        "(docker run --shm-size 8g), or use a smaller --batch-size or --workers 0"
    )
