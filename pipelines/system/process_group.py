"""The process group of a distributed run: rendezvous, collectives and the watchdog.

A rank can hang where no error reaches it: in a collective with a rank that stopped, or in a read
from a disk that does not respond. The watchdog thread reports what the process waits for, and ends
the process when the wait exceeds the limit.
"""

import gc
import hashlib
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import _get_default_store

from pipelines.errors import PipelineError
from pipelines.system.processes import available_cores
from pipelines.system.ranks import World, find_world, local_gpu

log = logging.getLogger(__name__)

Awaited = Callable[[], str]


class Watchdog:
    """What this process waits for, and since when.

    limit_s: seconds without a move after which the process ends with code 1; 0 for never.
    first_word_s: seconds after which a line in the log says what is awaited, then again after
        twice as long, and so on.
    """

    def __init__(self, *, limit_s: float = 0.0, first_word_s: float = 60.0) -> None:
        if limit_s < 0:
            raise ValueError(f"limit_s is {limit_s}; give 0 or more seconds")
        if first_word_s <= 0:
            raise ValueError(f"first_word_s is {first_word_s}; give more than 0 seconds")
        self.limit_s = limit_s
        self._first_word_s = first_word_s
        self._moved = time.monotonic()
        self._awaited: Awaited = lambda: "the beginning"
        self._limited = True
        self._ended = threading.Event()

    def moved(self) -> None:
        """Say that something was finished: a step, a part of an evaluation, a checkpoint."""
        self._moved = time.monotonic()

    @contextmanager
    def awaiting(self, what: str | Awaited) -> Iterator[None]:
        """Say what the block waits for; a function is asked when it is to be told."""
        before = self._awaited
        self._awaited = what if callable(what) else lambda: what
        try:
            yield
        finally:
            self._awaited = before

    @contextmanager
    def without_limit(self) -> Iterator[None]:
        """Let the block take as long as it takes; what it waits for is told all the same."""
        self._limited = False
        try:
            yield
        finally:
            self.moved()
            self._limited = True

    @contextmanager
    def watching(self) -> Iterator["Watchdog"]:
        """Watch while the block runs."""
        self.moved()
        # A daemon: the program's end does not wait for it.
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()

    def _watch(self) -> None:
        next_word_s = self._first_word_s
        pause_s = min(1.0, self._first_word_s / 4, (self.limit_s or 4.0) / 4)
        while not self._ended.wait(pause_s):
            still_s = time.monotonic() - self._moved
            if still_s < self._first_word_s:
                next_word_s = self._first_word_s
            elif still_s >= next_word_s:
                log.warning("no step for %.0f s; waiting for %s", still_s, self._awaited())
                next_word_s = max(2 * next_word_s, 2 * still_s)
            if self._limited and 0 < self.limit_s <= still_s:
                self._end(still_s)

    def _end(self, still_s: float) -> None:
        """End the process, whatever its other threads hang in."""
        log.critical(
            "Error: no step for %.0f s, waiting for %s; see to that, then give the same command "
            "again with --resume auto, or a larger --watchdog-timeout",
            still_s,
            self._awaited(),
        )
        logging.shutdown()
        os._exit(1)


_BEAT_S = 2.0
"""Between two words of processes that get ready: short against what disconnects the idle."""

_GRACE_S = 60.0
"""By which an exchange may outlast the watchdog's limit: the watchdog has the better words."""

_NEVER = timedelta(days=365)


class LostProcessError(PipelineError):
    """Raised where another process no longer answers."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those of the training.

    device: that it computes on. watchdog: is told what is awaited.
    stop_key: under which one tells the others that it stops. A launcher keeps what they tell each
    other over its restarts, so that each start of the processes has another.
    """

    world: World
    device: torch.device
    watchdog: Watchdog = field(default_factory=Watchdog)
    stop_key: str = ""

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.world.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Return sums over all processes; every process must call it.

        They go from CPU to CPU: a device is not waited for.

        Raises:
            LostProcessError: if another process has ended.
        """
        total = torch.tensor(values, dtype=torch.float64)
        if self.world.size > 1:
            with self.watchdog.awaiting("the other processes"), lost_are_told():
                distributed.all_reduce(total)
        return [float(each) for each in total.tolist()]

    def gather(self, value: int) -> list[int]:
        """Return a whole number, below 2^63, of every process, by rank; all must call it.

        Raises:
            LostProcessError: if another process has ended.
        """
        own = torch.tensor([value], dtype=torch.int64)
        if self.world.size == 1:
            return [value]
        all_of_them = [torch.zeros_like(own) for _ in range(self.world.size)]
        with self.watchdog.awaiting("the other processes"), lost_are_told():
            distributed.all_gather(all_of_them, own)
        return [int(each) for each in all_of_them]

    def own_cores(self) -> int:
        """Return how many cores this process has to itself, at least 1; all must call it.

        Those that it may use, divided among the processes that may use the same ones: under
        torchrun all of a machine; none where srun has bound each to cores of its own.

        Raises:
            LostProcessError: if another process has ended.
        """
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        used = hashlib.sha256(f"{_machine()} {cores}".encode()).digest()
        own = int.from_bytes(used[:7], "big")
        return max(1, available_cores() // self.gather(own).count(own))

    def broadcast(self, content: bytes | None, source: int) -> bytes:
        """Give every process the bytes that one of them has; all must call it.

        Args:
            content: in the process of rank `source`; elsewhere it is not looked at.
            source: rank of the process that has them.

        Raises:
            LostProcessError: if another process has ended.
        """
        if self.world.size == 1:
            return content or b""
        mine = self.world.rank == source
        (length,) = self.sum(float(len(content or b"")) if mine else 0.0)
        held: Tensor = torch.empty(int(length), dtype=torch.uint8)
        if mine and content:
            held = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        if len(held) > 0:
            with self.watchdog.awaiting("the other processes"), lost_are_told():
                distributed.broadcast(held, source)
        return held.numpy().tobytes()

    def check_same(self, what: str, value: str) -> None:
        """See that all processes were given the same; all must call it.

        Raises:
            PipelineError: if they were not, in all of them.
        """
        digest = hashlib.sha256(value.encode()).digest()
        found = self.gather(int.from_bytes(digest[:7], "big"))
        different = [rank for rank, each in enumerate(found) if each != found[0]]
        if different:
            raise PipelineError(
                f"{what}: process {different[0]} was given another than process 0; give all hosts "
                "the same"
            )

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the first one's buffers, as running means; all must call it.

        Each process counts its own part of a batch, and the first one's are those that are saved.
        """
        if self.world.size > 1:
            with self.watchdog.awaiting("the other processes"), lost_are_told():
                for buffer in module.buffers():
                    distributed.broadcast(buffer, 0)

    def wait(self) -> None:
        """Wait until every process is here."""
        self.sum(0.0)

    def tell_of_stop(self) -> None:
        """Tell the other processes that this one stops, whatever they wait for; from any thread.

        Raises:
            LostProcessError: if the process that passes it on has ended.
        """
        with lost_are_told():
            _get_default_store().set(self.stop_key, "1")

    def is_told_of_stop(self) -> bool:
        """Return whether a process of the training stops; from any thread.

        Raises:
            LostProcessError: if the process that passes it on has ended.
        """
        with lost_are_told():
            return bool(_get_default_store().check([self.stop_key]))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Do the block in every process; if it fails in one, it fails in all.

        It may take as long as it takes in one of them: meanwhile all tell each other, every few
        seconds, that they are there. In the block they can say nothing else to each other.

        Raises:
            PipelineError: if it failed in another process.
            LostProcessError: if another process has ended.
        """
        with self.watchdog.without_limit():
            if self.world.size == 1:
                yield
                return
            meeting = _Meeting(self.world.size)
            meeting.start()
            try:
                yield
            except BaseException:
                meeting.end(failed=True)
                raise
            with self.watchdog.awaiting("the other processes to be ready"):
                meeting.end(failed=False)
        if meeting.error is not None:
            raise meeting.error
        if meeting.n_failed > 0:
            raise PipelineError("another process could not begin; it says why")


def _machine() -> str:
    """Return what tells this machine from others, whose hosts may have the same name."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else socket.gethostname()


class _Meeting(threading.Thread):
    """Tells the other processes that this one is there, until all are done or one has failed."""

    def __init__(self, size: int) -> None:
        super().__init__(name="meeting", daemon=True)
        self._size = size
        self._done = threading.Event()
        self._failed = False
        self.n_failed = 0.0
        self.error: LostProcessError | None = None

    def run(self) -> None:
        """Tell, and hear what the others tell."""
        while True:
            done = self._done.wait(_BEAT_S)
            told = torch.tensor([float(done), float(done and self._failed)], dtype=torch.float64)
            try:
                with lost_are_told():
                    distributed.all_reduce(told)
            except LostProcessError as error:
                self.error = error
                return
            n_done, self.n_failed = told.tolist()
            if n_done == self._size or self.n_failed > 0:
                return

    def end(self, *, failed: bool) -> None:
        """Say that this process is done, and wait for the others."""
        self._failed = failed
        self._done.set()
        self.join()


@contextmanager
def lost_are_told() -> Iterator[None]:
    """Say in one line that another process has ended, or does not answer.

    Raises:
        LostProcessError: in place of what the exchange between processes raised.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_of_exchange(error):
            raise
        raise LostProcessError(
            f"another process was lost, or does not answer ({_own_words(error)}); give the same "
            "command again with --resume auto"
        ) from error


def _own_words(error: Exception) -> str:
    """Return the first sentence of an error, without the line of the source that raised it."""
    words = re.sub(r"^\[\S+\] ", "", (str(error) or type(error).__name__).splitlines()[0])
    return words.partition(". ")[0][:200]


def _is_of_exchange(error: RuntimeError) -> bool:
    """Return whether an error comes of the exchange between processes: gloo's have no own type."""
    words = str(error).lower()
    return isinstance(error, distributed.DistError) or any(
        word in words for word in ("gloo", "nccl", "connection closed by peer", "connection reset")
    )


@contextmanager
def joined(device: str, *, watchdog: Watchdog | None = None) -> Iterator[Processes]:
    """Join the other processes of a launcher such as torchrun, and leave them at the end.

    Args:
        device: "auto", "cpu" or as torch names it; with several processes each has a GPU of its
            own; see `local_gpu`.
        watchdog: that watches this process, and whose limit holds for an exchange, too; None for
            none, and torch's limit.

    Raises:
        PipelineError: if there is no such device here, or the others are not found.
    """
    world = find_world()
    limit = None if watchdog is None else _exchange_limit(watchdog)
    watchdog = watchdog or Watchdog()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if device == "cuda":
            device = f"cuda:{local_gpu(torch.cuda.device_count())}"
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise PipelineError(
            f"device {device!r} is not here ({str(error).splitlines()[0]}); give auto or cpu"
        ) from error
    processes = Processes(world=world, device=chosen, watchdog=watchdog)
    if world.size == 1:
        yield processes
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    _find_each_other(processes, limit)
    try:
        (number,) = processes.sum(float(secrets.randbelow(2**52)) if processes.first else 0.0)
        yield replace(processes, stop_key=f"pixmix-train {number:.0f} stops")
    finally:
        # What refers to the group in a cycle would keep its threads, and a thread of gloo that
        # meets an interpreter which has ended aborts the process.
        gc.collect()
        distributed.destroy_process_group()


def _exchange_limit(watchdog: Watchdog) -> timedelta:
    return timedelta(seconds=watchdog.limit_s + _GRACE_S) if watchdog.limit_s else _NEVER


def _find_each_other(processes: Processes, limit: timedelta | None) -> None:
    world = processes.world
    try:
        # The exchange has a limit of its own, and its error says how many have joined.
        with (
            processes.watchdog.awaiting("all processes to join"),
            processes.watchdog.without_limit(),
        ):
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if processes.device.type == "cuda" else "gloo",
                rank=world.rank,
                world_size=world.size,
                timeout=limit,
            )
    except (RuntimeError, ValueError) as error:
        raise PipelineError(
            f"the {world.size} processes do not find each other "
            f"({_own_words(error)}); start them by torchrun, or see to MASTER_ADDR and MASTER_PORT"
        ) from error
