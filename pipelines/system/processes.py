"""Worker pools, child processes and kernel compilation; no process outlives the command.

A pool has one process per job, and each process uses one thread. This module imports nothing heavy,
because a worker sets its number of threads before numpy is imported.

When a run is interrupted, each worker finishes its chunk. The compiler delays Python's signals, so
kernels are compiled in separate processes, which Ctrl-C ends at once.
"""

import errno
import gc
import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pipelines
from pipelines.errors import PipelineError

Item = TypeVar("Item")
Result = TypeVar("Result")

ONE_THREAD = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "VECLIB", "NUMEXPR")
}
"""Variables that limit a process to one thread if they are set before numpy is imported."""


_GRACE_S = 5.0
"""Time for an idle worker to end."""

_CONTROL_GROUP = Path("/sys/fs/cgroup")


class RunChunks(Protocol):
    """The signature of `run_chunks`: call a function with chunks in other processes."""

    def __call__(
        self,
        work: Callable[[range], range],
        chunks: Iterable[range],
        *,
        jobs: int,
        finished: Callable[[range], None],
    ) -> None:
        """Call `work` with each chunk, and `finished` with each completed chunk."""
        ...


def available_cores() -> int:
    """Return the number of cores that this process may use.

    A batch job may bind processes to some cores. A container may limit the CPU time, as with
    Docker's --cpus and Kubernetes' limits; a fraction of a core counts as one.
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
    """Return the memory in bytes that this process may use, in its container or machine."""
    limits = [_limit("memory.max"), _limit("memory/memory.limit_in_bytes")]
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *(limit for limit in limits if limit is not None)])


def _limit(name: str, position: int = 0) -> int | None:
    """Return a number in a control group file of this container; None without a limit.

    Version 2 has cpu.max with "400000 100000" or "max 100000"; version 1 has one file for each
    number, with -1 for no limit.
    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/.
    """
    try:
        limit = int((_CONTROL_GROUP / name).read_text().split()[position])
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
    """Run a function over chunks in `jobs` processes, or in fewer if the system limits them.

    If an error or an interruption ends the run early, chunks in progress are finished first, so
    their results are kept.

    Args:
        work: a picklable function that returns its chunk.
        chunks: arguments of `work`, in this order.
        jobs: number of processes, at least 1.
        finished: called in this process with each completed chunk.

    Raises:
        PipelineError: if a worker process is killed, or if none can be started.
        Exception: an exception of `work`.
    """
    # Not a pool of the standard library: where processes or threads are limited, its thread waits
    # forever for workers that could not be started.
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
                    chunk = worker.result()
                except _NotStarted as error:
                    # Other workers, if there are any, do its chunk.
                    workers.pop(connection).end()
                    again.append(worker.chunk)
                    refusal = error
                    continue
                finished(chunk)
                hand_out(worker)
        if again:
            raise _too_few_processes(refusal)
    finally:
        _shut_down(workers)


def prefetch(
    items: Iterator[Item], work: Callable[[Item], Result], depth: int
) -> Generator[Result]:
    """Yield the results of `work` for the items in order, and compute up to `depth` in advance."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="pixmix-loader")
    running: deque[Future[Result]] = deque()
    try:
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) > depth:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _NotStarted(Exception):
    """Raised when a worker process lacks resources, such as threads, to start."""


class _Worker:
    """A process that takes chunks through a pipe, one at a time."""

    def __init__(self, content: bytes) -> None:
        # Not a fork, which would copy held locks of numba's and torch's threads.
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
        """Send a chunk to the worker."""
        self.chunk, self.busy = chunk, True
        with suppress(BrokenPipeError, ConnectionResetError):  # `result` reports these.
            self.connection.send(chunk)

    def result(self) -> range:
        """Return the completed chunk, or raise the worker's exception."""
        self.busy = False
        try:
            result = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            self.process.join(_GRACE_S)
            if not self.has_worked and (self.process.exitcode or 0) >= 0:
                raise _NotStarted(f"exit code {self.process.exitcode}") from error
            raise PipelineError(
                "a worker process was killed, most likely because memory ran out; complete files "
                "are kept: run the same command again, with fewer --jobs if memory is short"
            ) from error
        self.has_worked = True
        if isinstance(result, BaseException):
            raise result
        return result  # type: ignore[no-any-return]

    def end(self) -> None:
        """Close the pipe, which ends the worker, and wait for it."""
        self.connection.close()
        self.process.join(_GRACE_S)


def _start_workers(
    workers: dict[Connection, _Worker], content: bytes, jobs: int
) -> Exception | None:
    """Start up to `jobs` workers; return the error if only some of them can be started."""
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
        + "; the number of processes and threads is limited: raise the limit (ulimit -u, or the "
        "container's pids limit), or end other processes, and run the same command again"
    )


def _shut_down(workers: dict[Connection, _Worker]) -> None:
    try:
        for worker in workers.values():
            # Their results are recorded on the disk.
            with suppress(Exception):
                if worker.busy:
                    worker.result()
    except KeyboardInterrupt:
        # The second interruption kills them. All writes are atomic, so this leaves no partial file.
        for worker in workers.values():
            worker.process.kill()
        raise
    finally:
        for worker in workers.values():
            worker.end()


def _serve(connection: Connection) -> None:
    """Run a worker process until the pipe is closed."""
    try:
        prepare_worker()
        work = pickle.loads(connection.recv_bytes())
        while True:
            chunk = connection.recv()
            connection.send(_done(work, chunk))
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        pass


def _done(work: Callable[[range], range], chunk: range) -> range | BaseException:
    """Return the completed chunk, or the exception that it raised."""
    try:
        return work(chunk)
    except RuntimeError as error:
        if "can't start new thread" in str(error):
            return _NotStarted(str(error))
        return _picklable(error)
    except Exception as error:  # noqa: BLE001 - raised again in the parent
        return _picklable(error)


def _picklable(error: Exception) -> Exception:
    text = "".join(traceback.format_exception(error))
    try:
        error.add_note(text)
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - pickling a foreign exception may raise anything
        return RuntimeError(text)
    return error


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Block SIGINT for the time of the block.

    Processes that are started in the block inherit it and keep SIGINT blocked: Ctrl-C in a terminal
    reaches every process of the command, and only this one handles it.
    """
    # Otherwise the tracker starts with the first process, and Python 3.11 then unblocks SIGINT.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prepare_worker() -> None:
    """Limit this process to one thread, and end it when its parent ends."""
    os.environ.update(ONE_THREAD)
    # If no thread can be started, it ends after its chunk, when sending the result fails.
    with suppress(RuntimeError):
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # After kill -9 of the parent, workers would continue their work.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


_FORWARDED_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


PYTHON_MODULE = (sys.executable, "-P", "-m")
"""Start of a command that runs a module; `-P` keeps the working folder off Python's path."""


def child_environment() -> dict[str, str]:
    """Return an environment in which a child process imports the packages of this process."""
    root = Path(pipelines.__file__).absolute().parent.parent
    if root.name in ("site-packages", "dist-packages"):
        # On the path anyway, and it must not precede the standard library.
        return {**os.environ}
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:  # noqa: ANN401
    """Start a command, and wait for its end at the end of the block.

    Ctrl-C, SIGTERM and SIGHUP are forwarded to it, each once, so that it can shut down properly.
    They take effect in this process after the command has ended. Signals that this process ignores,
    for example under nohup, stay ignored in both.

    Args:
        command: program and arguments.
        options: arguments of `subprocess.Popen`.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
        OSError: if the program cannot be started.
    """
    received: list[int] = []
    started: list[subprocess.Popen[Any]] = []

    def forward(number: int, _frame: object) -> None:
        received.append(number)
        for process in started:
            process.send_signal(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {
            number: signal.signal(number, forward)
            for number in _FORWARDED_SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN
        }
    try:
        # In a new process group: a terminal sends Ctrl-C to a whole group, so it would come twice.
        with subprocess.Popen(command, process_group=0, **options) as process:
            started.append(process)
            for number in received:
                process.send_signal(number)
            yield process
            process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])


def compile_kernels(pending: Callable[[], Sequence[Callable[[], None]]]) -> None:
    """Compile the kernels that have not been compiled on this machine; show the time on stderr.

    Failures are ignored here: a kernel that is missing is compiled at its first call, which raises
    the error.

    Args:
        pending: returns the compilations to do, for example `fractals.sampling.pending` or
            `pixmix.fused.pending`.

    Raises:
        KeyboardInterrupt: on Ctrl-C, at once; kernels compiled so far are kept.
    """
    parts = pending()
    if not parts:
        return
    from pixmix.compiling import Timer

    context = multiprocessing.get_context("spawn")
    timer = Timer()
    started: list[SpawnProcess] = []
    try:
        for part in parts:
            process = context.Process(target=_compile, args=(part,), daemon=True)
            try:
                with interrupts_held():
                    process.start()
            except (OSError, RuntimeError):
                break  # The number of processes is limited.
            started.append(process)
        while any(process.is_alive() for process in started):
            timer.show()
            time.sleep(0.05)
        timer.end(time.monotonic())
    finally:
        for process in started:
            process.kill()


def _compile(part: Callable[[], None]) -> None:
    prepare_worker()
    # Saves a tenth of the time; the process ends before its memory matters.
    gc.disable()
    with suppress(Exception):
        part()
