"""Worker pools, child processes and compiling processes, none of which outlives the command.

A pool has one process per job, and each process has one thread. This module imports nothing heavy,
because a worker sets the number of its threads before numpy is loaded.

A worker finishes its piece of work when a run is interrupted, and the compiler delays Python's
signals. So kernels are compiled in processes of their own, which Ctrl-C ends at once.
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


def prefetch(
    items: Iterator[Item], work: Callable[[Item], Result], depth: int
) -> Generator[Result]:
    """Give the results of work on items, in order, computed in a thread up to `depth` ahead."""
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
    # It is started with the first process otherwise, and Python 3.11 unblocks SIGINT after that.
    resource_tracker.ensure_running()
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


_HANDED_ON = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


PYTHON_MODULE = (sys.executable, "-P", "-m")
"""Begins a command that runs a module; `-P` keeps the working folder off Python's path."""


def child_environment() -> dict[str, str]:
    """Return the environment in which a child imports the packages that this process has."""
    root = Path(pipelines.__file__).absolute().parent.parent
    if root.name in ("site-packages", "dist-packages"):
        # Found there anyway, and no place to put before the standard library.
        return {**os.environ}
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:  # noqa: ANN401
    """Start a command for the time of the block, and wait for its end.

    Ctrl-C, SIGTERM and SIGHUP are handed on to it, each once, so that it can leave what it makes
    in order. They take effect here when it has ended. Those that this process ignores, as nohup and
    a shell's & have it, stay ignored in both.

    Args:
        command: program and arguments.
        options: as those of `subprocess.Popen`.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
        OSError: if the program cannot be started.
    """
    received: list[int] = []
    started: list[subprocess.Popen[Any]] = []

    def hand_on(number: int, _frame: object) -> None:
        received.append(number)
        for process in started:
            process.send_signal(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {
            number: signal.signal(number, hand_on)
            for number in _HANDED_ON
            if signal.getsignal(number) is not signal.SIG_IGN
        }
    try:
        # In a group of its own: a terminal sends Ctrl-C to all of a group, and it would come twice.
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

    What fails here is no error: the kernels are compiled where they are needed, which says what is
    wrong.

    Args:
        pending: says which parts have not been compiled, as `fractals.sampling.pending` and
            `pixmix.fused.pending` do.

    Raises:
        KeyboardInterrupt: on Ctrl-C, at once; what is compiled so far is kept.
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
                break  # No more processes are allowed.
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
    # A tenth of the time; the process ends before its memory matters.
    gc.disable()
    with suppress(Exception):
        part()
