"""How batches come from the workers of a loader: in shared memory, or through pipes.

Shared memory is fast, and takes room in /dev/shm and open files. Where the room is too small, as in
a container with its usual 64 MiB, batches go through the pipes that lead to the workers anyway.
"""

import errno
import logging
import math
import multiprocessing
import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from pipelines.errors import PipelineError

SHARED_MEMORY = Path("/dev/shm")
"""Where the system keeps shared memory."""

MOST_OPEN = 64
"""Shards that a process keeps open: systems often allow it 1024 files in all."""

_RESERVED_FILES = 32
"""What a worker opens besides shards: for batches that are on their way, and for modules."""

_SPARE_FILES = 8
"""What must still be free when a batch is handed over: torch loses it without a word otherwise."""

_SMALL_BYTES = 2**16
"""Up to here a tensor is cheaper to send through a pipe than in shared memory of its own."""

_log = logging.getLogger(__name__)
_main_hidden = threading.Lock()


def fits_shared_memory(batch_bytes: int, num_workers: int) -> bool:
    """Return whether the batches that are on their way find room; say so once where they do not.

    Args:
        batch_bytes: bytes of a batch of this process.
        num_workers: of this process; each works on two batches, and two more are in use.
    """
    if num_workers == 0 or not SHARED_MEMORY.is_dir():
        return True
    status = os.statvfs(SHARED_MEMORY)
    free = status.f_bavail * status.f_frsize
    needed = (2 * num_workers + 2) * batch_bytes * _processes_here()
    if needed <= free:
        return True
    _log.warning(
        "%s has %d MiB free, and batches of %d workers take up to %d MiB; they go through pipes "
        "instead, which is slower. Enlarge it (docker run --shm-size %dm), or use smaller batches "
        "or fewer workers (--workers)",
        SHARED_MEMORY,
        free >> 20,
        num_workers,
        -(-needed >> 20),
        -(-needed >> 20) + 64,
    )
    return False


def shared_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor in shared memory, not filled.

    Raises:
        PipelineError: if there is no room for it, or no file can be opened for it.
    """
    try:
        # As torch's own collate function makes it.
        storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        if os.strerror(errno.EMFILE) in said:
            raise PipelineError(too_many_files()) from error
        raise PipelineError(_no_shared_memory(said)) from error
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload,no-any-return]


class ByValue:
    """A tensor that is sent as bytes through a pipe; it arrives as a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.contiguous()

    def __reduce__(self) -> tuple[object, ...]:
        """Send its bytes."""
        tensor = self._tensor
        content = bytearray(tensor.numel() * tensor.element_size())
        if content:
            torch.frombuffer(content, dtype=torch.uint8).copy_(tensor.reshape(-1).view(torch.uint8))
        return _from_bytes, (content, tensor.dtype, tuple(tensor.shape))


def to_send(tensor: Tensor, *, through_pipe: bool) -> Tensor | ByValue:
    """Return what a worker hands over in place of a tensor."""
    small = tensor.numel() * tensor.element_size() <= _SMALL_BYTES
    return ByValue(tensor) if through_pipe or small else tensor


def check_open_files() -> None:
    """See that files can be opened for a batch that is handed over.

    Raises:
        PipelineError: if not.
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


def most_open_shards() -> int:
    """Return how many shards this process may keep open, by the limit of open files; at least 1."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return MOST_OPEN
    listed = next((each for each in ("/proc/self/fd", "/dev/fd") if Path(each).is_dir()), None)
    in_use = len(os.listdir(listed)) if listed else MOST_OPEN  # noqa: PTH208, names alone
    return max(1, min(MOST_OPEN, limit - in_use - _RESERVED_FILES))


@contextmanager
def worker_errors() -> Iterator[None]:
    """Say in one line why batches no longer come from the workers.

    Raises:
        PipelineError: in place of torch's errors.
    """
    try:
        yield
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            raise PipelineError(too_many_files()) from error
        raise
    except RuntimeError as error:
        said = str(error)
        if "Too many open files" in said or "items of ancdata" in said:
            raise PipelineError(too_many_files()) from error
        if "Bus error" in said:
            raise PipelineError(_no_shared_memory("a worker got a bus error")) from error
        if said.startswith("DataLoader worker"):
            raise PipelineError(
                "a process that decodes images was killed, most often because memory ran out; run "
                "the same command again (pixmix-train: with --resume auto), and with fewer "
                "--workers if memory is short"
            ) from error
        raise


@contextmanager
def without_main_module(start_method: str) -> Iterator[None]:
    """Let processes that start in the block not run the script of the user.

    Those that are not forked would: they import the main module, and a script that begins its loop
    without `if __name__ == "__main__":` would begin it again in each. Workers of a loader need
    nothing of it.

    Args:
        start_method: of multiprocessing.
    """
    main = sys.modules.get("__main__")
    if start_method == "fork" or main is None:
        yield
        return
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


def start_method(given: str | None) -> str:
    """Return how workers start: as given, or as multiprocessing would."""
    return given or multiprocessing.get_start_method()


def _from_bytes(content: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not content:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype).reshape(shape)


def _processes_here() -> int:
    """Return how many processes of the training share the machine, as torchrun tells."""
    told = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(told)) if told.isascii() and told.isdigit() else 1


def too_many_files() -> str:
    """Return the error of a process that may open no more files."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        f"too many open files: this process may open {limit}; raise the limit (ulimit -n 4096), or "
        "use fewer --workers"
    )


def _no_shared_memory(said: str) -> str:
    return (
        f"{SHARED_MEMORY} is too small for the batches of the workers ({said}); enlarge it (docker "
        "run --shm-size 8g), or use a smaller --batch-size or --workers 0"
    )
