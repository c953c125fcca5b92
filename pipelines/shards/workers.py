"""One process a job, each with one thread, none of which outlives the command.

This module imports nothing heavy: a worker sets the number of its threads before numpy is loaded.
"""

import errno
import math
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

from pipelines.errors import PipelineError

ONE_THREAD = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "VECLIB", "NUMEXPR")
}
"""Variables by which a process has one thread, where they are set before numpy is loaded."""


_GRACE_S = 5.0
"""For a worker without work to end."""

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
    """Run a function over chunks in `jobs` processes, or in as many as the machine allows.

    Whatever ends it early, the chunks that have begun are let to their end first, so what they
    painted is kept.

    Args:
        work: a picklable function that returns its chunk.
        chunks: what it is called with, in this order.
        jobs: number of processes, at least 1.
        finished: called here, in this process, with each chunk that is done.

    Raises:
        PipelineError: if a worker process is killed, or if none can be started.
        Exception: what `work` raises.
    """
    # No pool of the standard library: with a limit on processes or threads, its own thread waits
    # for ever for workers that could not be started.
    waiting = iter(chunks)
    content = pickle.dumps(work)
    workers: dict[Connection, _Worker] = {}
    again: list[range] = []

    def hand_out(worker: _Worker) -> None:
        chunk = again.pop() if again else next(waiting, None)
        if chunk is None:
            workers.pop(worker.connection).end()
        else:
            worker.begin(chunk)

    try:
        refusal = _start_workers(workers, content, jobs)
        for worker in [*workers.values()]:
            hand_out(worker)
        while workers:
            ready = wait([*workers])
            for connection, worker in [*workers.items()]:
                if connection not in ready:
                    continue
                try:
                    answer = worker.answer()
                except _NotStarted as error:
                    # Others do its work, if there are any.
                    workers.pop(connection).end()
                    again.append(worker.chunk)
                    refusal = error
                    continue
                finished(answer)
                hand_out(worker)
        if again:
            raise _too_few_processes(refusal)
    finally:
        _shut_down(workers)


class _NotStarted(Exception):
    """A worker process that cannot have what it needs."""


class _Worker:
    """A process that takes chunks through a pipe, one at a time."""

    def __init__(self, content: bytes) -> None:
        # A fork would copy the threads' locks of a process that has run numba or torch.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.chunk = range(0)
        self.busy = self.has_worked = False
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        try:
            with interrupts_held():
                self.process.start()
                self.connection.send_bytes(content)
        finally:
            theirs.close()

    def begin(self, chunk: range) -> None:
        """Hand out a chunk."""
        self.chunk, self.busy = chunk, True
        with suppress(BrokenPipeError, ConnectionResetError):  # Seen when its answer is awaited.
            self.connection.send(chunk)

    def answer(self) -> range:
        """Return the chunk that is done, or raise what ended it."""
        self.busy = False
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            self.process.join(_GRACE_S)
            if not self.has_worked and (self.process.exitcode or 0) >= 0:
                raise _NotStarted(f"exit code {self.process.exitcode}") from error
            raise PipelineError(
                "a worker process was killed, most often because memory ran out; what is whole is "
                "kept: run the same command again, with fewer --jobs if memory is short"
            ) from error
        self.has_worked = True
        if isinstance(answer, BaseException):
            raise answer
        return answer  # type: ignore[no-any-return]

    def end(self) -> None:
        """Let it end, which it does when its pipe is closed."""
        self.connection.close()
        self.process.join(_GRACE_S)


def _start_workers(
    workers: dict[Connection, _Worker], content: bytes, jobs: int
) -> Exception | None:
    """Start as many workers as are allowed, and return why they are fewer, if they are."""
    for _ in range(jobs):
        try:
            worker = _Worker(content)
        except BrokenPipeError:
            continue
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}:
                raise
            if not workers:
                raise _too_few_processes(error) from error
            return error
        workers[worker.connection] = worker
    return None


def _too_few_processes(reason: Exception | None) -> PipelineError:
    return PipelineError(
        "no worker process can be started"
        + (f" ({reason})" if reason else "")
        + "; the number of processes and threads is limited here: raise the limit (ulimit -u, or "
        "the container's pids limit), or end other processes, and run the same command again"
    )


def _shut_down(workers: dict[Connection, _Worker]) -> None:
    try:
        for worker in workers.values():
            # What they return is in the books on the disk.
            with suppress(Exception):
                if worker.busy:
                    worker.answer()
    except KeyboardInterrupt:
        # Asked twice: then at once. Nothing half-written can stay, whenever a worker ends.
        for worker in workers.values():
            worker.process.kill()
        raise
    finally:
        for worker in workers.values():
            worker.end()


def _serve(connection: Connection) -> None:
    """Do the work of a worker process, until the pipe is closed."""
    try:
        prepare_worker()
        work = pickle.loads(connection.recv_bytes())
        while True:
            chunk = connection.recv()
            connection.send(_done(work, chunk))
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        pass


def _done(work: Callable[[range], range], chunk: range) -> range | BaseException:
    """Return what comes of a chunk: the chunk, or the exception that ended it."""
    try:
        return work(chunk)
    except RuntimeError as error:
        if "can't start new thread" in str(error):
            return _NotStarted(str(error))
        return _picklable(error)
    except Exception as error:  # noqa: BLE001 - raised again where the work is handed out
        return _picklable(error)


def _picklable(error: Exception) -> Exception:
    text = "".join(traceback.format_exception(error))
    try:
        error.add_note(text)
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever a foreign exception does when it is pickled
        return RuntimeError(text)
    return error


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
    # Where no thread is allowed, it ends with its piece of work, when nobody takes what it returns.
    with suppress(RuntimeError):
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A killed parent (kill -9) tells nobody, and workers would go on with their work.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
