"""One process a job, each with one thread, none of which outlives the command.

This module imports nothing heavy: a worker sets the number of its threads before numpy is loaded.
"""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Protocol

from pipelines.errors import PipelineError

ONE_THREAD = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "VECLIB", "NUMEXPR")
}
"""Variables by which a process has one thread, where they are set before numpy is loaded."""


_CONTROL_GROUP = Path("/sys/fs/cgroup")


class Run(Protocol):
    """Calls a function with chunks, in processes; `run_chunks` is one."""

    def __call__(
        self,
        work: Callable[[range], range],
        chunks: Iterable[range],
        *,
        jobs: int,
        finished: Callable[[range], None],
    ) -> None:
        """Call `work` with each chunk, and `finished` with each that is done."""
        ...


def available_cores() -> int:
    """Return how many cores this process may use, which a container or a batch job may limit.

    A batch job by the cores that it is bound to; a container by the time that it gets of all, as
    Docker's --cpus and the limits of Kubernetes do, of which a part of a core counts as one.
    """
    bound = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if bound else os.cpu_count() or 1
    quota, period = _limit("cpu.max"), _limit("cpu.max", 1)
    if quota is None or period is None:
        quota, period = _limit("cpu/cpu.cfs_quota_us"), _limit("cpu/cpu.cfs_period_us")
    if quota is None or not period:
        return cores
    return max(1, min(cores, math.ceil(quota / period)))


def available_memory() -> int:
    """Return the bytes of memory that this process may use: this machine's, or its container's."""
    limits = [_limit("memory.max"), _limit("memory/memory.limit_in_bytes")]
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *(limit for limit in limits if limit is not None)])


def _limit(name: str, place: int = 0) -> int | None:
    """Return a limit of this container: a word of its file; None where there is none.

    Version 2 has cpu.max, "400000 100000" or "max 100000"; version 1 a file each, -1 for none.
    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/.
    """
    try:
        limit = int((_CONTROL_GROUP / name).read_text().split()[place])
    except (OSError, ValueError, IndexError):
        return None
    return limit if limit > 0 else None


def run_chunks(
    work: Callable[[range], range],
    chunks: Iterable[range],
    *,
    jobs: int,
    finished: Callable[[range], None],
) -> None:
    """Run a function over chunks in `jobs` processes.

    Whatever ends it early, the chunks that have begun are let to their end first, so what they
    painted is kept.

    Args:
        work: a picklable function that returns its chunk.
        chunks: what it is called with, in this order.
        jobs: number of processes, at least 1.
        finished: called here, in this process, with each chunk that is done.

    Raises:
        PipelineError: if a worker process is killed.
        Exception: what `work` raises.
    """
    waiting = iter(chunks)
    pool = ProcessPoolExecutor(
        max_workers=jobs,
        # A fork would copy the threads' locks of a process that has run numba or torch.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=prepare_worker,
    )
    running: set[Future[range]] = set()
    try:
        # One more than jobs, so that no process waits for this one; no more, for an interrupted
        # run has to finish them.
        running.update(_submit(pool, work, islice(waiting, jobs + 1)))
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                finished(future.result())
            running.update(_submit(pool, work, islice(waiting, len(done))))
    except BrokenProcessPool as error:
        raise PipelineError(
            "a worker process was killed, most often because memory ran out; what is whole is "
            "kept: run the same command again, with fewer --jobs if memory is short"
        ) from error
    finally:
        _shut_down(pool)


def _submit(
    pool: ProcessPoolExecutor, work: Callable[[range], range], chunks: Iterable[range]
) -> list[Future[range]]:
    with interrupts_held():
        return [pool.submit(work, chunk) for chunk in chunks]


def _shut_down(pool: ProcessPoolExecutor) -> None:
    try:
        pool.shutdown(wait=True, cancel_futures=True)
    except KeyboardInterrupt:
        # Asked twice: then at once. Nothing half-written can stay, whenever a worker ends.
        for worker in multiprocessing.active_children():
            worker.kill()
        raise


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back for a moment.

    Processes started meanwhile inherit the block and keep it: a Ctrl-C in the terminal reaches
    every process of the command, and only this one is to answer it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prepare_worker() -> None:
    """Give this process one thread, and let it end with the one that started it."""
    os.environ.update(ONE_THREAD)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A killed parent (kill -9) tells nobody, and a pool's workers would wait for work for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
