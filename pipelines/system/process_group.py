"""The process group of a distributed run: rendezvous, collectives and the watchdog.

A rank can hang without an error: in a collective with a rank that has stopped, or in a read from a
disk that does not respond. The watchdog thread reports what the process waits for, and ends the
process when the wait exceeds a limit.
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

Describe = Callable[[], str]
"""Returns in words what a process waits for."""


class Watchdog:
    """Reports waits without progress, and ends the process when one exceeds the limit."""

    def __init__(self, *, limit_s: float = 0.0, first_report_s: float = 60.0) -> None:
        """Set the limits; `watching` starts the thread.

        Args:
            limit_s: seconds without progress after which the process exits with code 1; 0 for
                never.
            first_report_s: seconds without progress after which the log reports what the process
                waits for. The report is repeated at twice the time, four times, and so on.
        """
        if limit_s < 0:
            raise ValueError(f"limit_s is {limit_s}; use 0 or more seconds")
        if first_report_s <= 0:
            raise ValueError(f"first_report_s is {first_report_s}; use more than 0 seconds")
        self.limit_s = limit_s
        self._first_report_s = first_report_s
        self._last_reset = time.monotonic()
        self._describe: Describe = lambda: "the start"
        self._limited = True
        self._ended = threading.Event()

    def reset(self) -> None:
        """Restart the time after progress: a step, a batch of an evaluation, a checkpoint."""
        self._last_reset = time.monotonic()

    @contextmanager
    def awaiting(self, what: str | Describe) -> Iterator[None]:
        """Set what the block waits for: a text, or a function that is called for each report."""
        before = self._describe
        self._describe = what if callable(what) else lambda: what
        try:
            yield
        finally:
            self._describe = before

    @contextmanager
    def without_limit(self) -> Iterator[None]:
        """Suspend the limit in the block; waits are still reported."""
        self._limited = False
        try:
            yield
        finally:
            self.reset()
            self._limited = True

    @contextmanager
    def watching(self) -> Iterator["Watchdog"]:
        """Watch while the block runs."""
        self.reset()
        # A daemon, so that the exit of the program does not wait for it.
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()

    def _watch(self) -> None:
        next_report_s = self._first_report_s
        pause_s = min(1.0, self._first_report_s / 4, (self.limit_s or 4.0) / 4)
        while not self._ended.wait(pause_s):
            waited_s = time.monotonic() - self._last_reset
            if waited_s < self._first_report_s:
                next_report_s = self._first_report_s
            elif waited_s >= next_report_s:
                log.warning("no step for %.0f s; waiting for %s", waited_s, self._describe())
                next_report_s = max(2 * next_report_s, 2 * waited_s)
            if self._limited and 0 < self.limit_s <= waited_s:
                self._end(waited_s)

    def _end(self, waited_s: float) -> None:
        """Exit, even if other threads hang."""
        log.critical(
            "Error: no step for %.0f s, waiting for %s; check that, then run the same command "
            "again with --resume, or with a larger --watchdog-timeout",
            waited_s,
            self._describe(),
        )
        logging.shutdown()
        os._exit(1)


_HEARTBEAT_S = 2.0
"""Seconds between two heartbeats: shorter than the idle timeouts of connections."""

_GRACE_S = 60.0
"""A collective may outlast the watchdog's limit by this, because the watchdog's error says more."""

_NEVER = timedelta(days=365)


class LostProcessError(PipelineError):
    """Raised when another process has ended or no longer responds."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those of the training, and its communication with them.

    Attributes:
        world: rank and world size.
        device: the device that it computes on.
        watchdog: reports what it waits for.
        stop_key: key in the store of the process group by which a process announces that it stops.
            It differs between starts, because launchers keep the store over restarts.
    """

    world: World
    device: torch.device
    watchdog: Watchdog = field(default_factory=Watchdog)
    stop_key: str = ""

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes the files of the run."""
        return self.world.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Return sums over all processes; all must call this.

        The values are exchanged between CPUs, so this does not wait for a device.

        Raises:
            LostProcessError: if another process has ended.
        """
        total = torch.tensor(values, dtype=torch.float64)
        if self.world.size > 1:
            with self.watchdog.awaiting("the other processes"), communication_errors():
                distributed.all_reduce(total)
        return [float(each) for each in total.tolist()]

    def gather(self, value: int) -> list[int]:
        """Return an integer below 2^63 of each process, by rank; all must call this.

        Raises:
            LostProcessError: if another process has ended.
        """
        own = torch.tensor([value], dtype=torch.int64)
        if self.world.size == 1:
            return [value]
        gathered = [torch.zeros_like(own) for _ in range(self.world.size)]
        with self.watchdog.awaiting("the other processes"), communication_errors():
            distributed.all_gather(gathered, own)
        return [int(each) for each in gathered]

    def own_cores(self) -> int:
        """Return the number of cores for this process alone, at least 1; all must call this.

        Cores that several processes may use are divided among them: under torchrun all processes of
        a machine share its cores, while srun may bind each to different ones.

        Raises:
            LostProcessError: if another process has ended.
        """
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        digest = hashlib.sha256(f"{_machine()} {cores}".encode()).digest()
        own = int.from_bytes(digest[:7], "big")
        return max(1, available_cores() // self.gather(own).count(own))

    def broadcast(self, content: bytes | None, source: int) -> bytes:
        """Return in every process the bytes of one of them; all must call this.

        Args:
            content: the bytes, in the process of rank `source`; ignored in others.
            source: rank of the process that has the bytes.

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
            with self.watchdog.awaiting("the other processes"), communication_errors():
                distributed.broadcast(held, source)
        return held.numpy().tobytes()

    def check_same(self, what: str, value: str) -> None:
        """Check that all processes have the same value; all must call this.

        Args:
            what: name of the value, for the error.
            value: value of this process.

        Raises:
            PipelineError: in all processes, if the values differ.
        """
        digest = hashlib.sha256(value.encode()).digest()
        found = self.gather(int.from_bytes(digest[:7], "big"))
        different = [rank for rank, each in enumerate(found) if each != found[0]]
        if different:
            raise PipelineError(
                f"{what} differs between process {different[0]} and process 0; use the same on all "
                "hosts"
            )

    def share_buffers(self, module: nn.Module) -> None:
        """Copy the buffers of rank 0, such as running means, to all processes; all must call this.

        Each process computes them from its part of each batch, and those of rank 0 are saved.
        """
        if self.world.size > 1:
            with self.watchdog.awaiting("the other processes"), communication_errors():
                for buffer in module.buffers():
                    distributed.broadcast(buffer, 0)

    def wait(self) -> None:
        """Wait until all processes call this."""
        self.sum(0.0)

    def announce_stop(self) -> None:
        """Announce to the other processes that this one stops; any thread may call this.

        Raises:
            LostProcessError: if the process that hosts the store has ended.
        """
        with communication_errors():
            _get_default_store().set(self.stop_key, "1")

    def is_stop_announced(self) -> bool:
        """Return whether a process has announced that it stops; any thread may call this.

        Raises:
            LostProcessError: if the process that hosts the store has ended.
        """
        with communication_errors():
            return bool(_get_default_store().check([self.stop_key]))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run the block in all processes; if it fails in one, it fails in all.

        The block may take any time: meanwhile the processes exchange heartbeats. The block must not
        call other collectives.

        Raises:
            PipelineError: if the block failed in another process.
            LostProcessError: if another process has ended.
        """
        with self.watchdog.without_limit():
            if self.world.size == 1:
                yield
                return
            heartbeat = _Heartbeat(self.world.size)
            heartbeat.start()
            try:
                yield
            except BaseException:
                heartbeat.end(failed=True)
                raise
            with self.watchdog.awaiting("the other processes to be ready"):
                heartbeat.end(failed=False)
        if heartbeat.error is not None:
            raise heartbeat.error
        if heartbeat.n_failed > 0:
            raise PipelineError("another process failed to start; see its error")


def _machine() -> str:
    """Return an identifier of this machine; host names may not be unique."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else socket.gethostname()


class _Heartbeat(threading.Thread):
    """Exchanges heartbeats with the other processes until all are done or one has failed."""

    def __init__(self, size: int) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._size = size
        self._done = threading.Event()
        self._failed = False
        self.n_failed = 0.0
        self.error: LostProcessError | None = None

    def run(self) -> None:
        """Exchange heartbeats."""
        while True:
            done = self._done.wait(_HEARTBEAT_S)
            counts = torch.tensor([float(done), float(done and self._failed)], dtype=torch.float64)
            try:
                with communication_errors():
                    distributed.all_reduce(counts)
            except LostProcessError as error:
                self.error = error
                return
            n_done, self.n_failed = counts.tolist()
            if n_done == self._size or self.n_failed > 0:
                return

    def end(self, *, failed: bool) -> None:
        """Report that this process is done, and wait for the others."""
        self._failed = failed
        self._done.set()
        self.join()


@contextmanager
def communication_errors() -> Iterator[None]:
    """Translate errors of the communication between processes into a LostProcessError.

    Raises:
        LostProcessError: if another process has ended, or does not respond.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_communication_error(error):
            raise
        raise LostProcessError(
            f"another process was lost, or does not respond ({_first_sentence(error)}); run the "
            "same command again with --resume"
        ) from error


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of an error without its source location."""
    words = re.sub(r"^\[\S+\] ", "", (str(error) or type(error).__name__).splitlines()[0])
    return words.partition(". ")[0][:200]


def _is_communication_error(error: RuntimeError) -> bool:
    """Return whether an error is one of communication; gloo raises plain RuntimeErrors."""
    words = str(error).lower()
    return isinstance(error, distributed.DistError) or any(
        word in words for word in ("gloo", "nccl", "connection closed by peer", "connection reset")
    )


@contextmanager
def join_processes(device: str, *, watchdog: Watchdog | None = None) -> Iterator[Processes]:
    """Join the process group of a launcher such as torchrun, and leave it at the end of the block.

    Args:
        device: "auto", "cpu", or a device of torch; with "auto" and "cuda" each process of a
            machine uses another GPU, see `local_gpu`.
        watchdog: watches this process; its limit also applies to collectives. None for none, with
            torch's default limit.

    Raises:
        PipelineError: if the device is not available, or the processes cannot connect.
    """
    world = find_world()
    limit = None if watchdog is None else _collective_limit(watchdog)
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
            f"device {device!r} is not available ({str(error).splitlines()[0]}); use auto or cpu"
        ) from error
    processes = Processes(world=world, device=chosen, watchdog=watchdog)
    if world.size == 1:
        yield processes
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    _connect(processes, limit)
    try:
        (number,) = processes.sum(float(secrets.randbelow(2**52)) if processes.first else 0.0)
        yield replace(processes, stop_key=f"pixmix-train {number:.0f} stops")
    finally:
        # Reference cycles would keep the group's threads alive, and a thread of gloo that outlives
        # the interpreter aborts the process.
        gc.collect()
        distributed.destroy_process_group()


def _collective_limit(watchdog: Watchdog) -> timedelta:
    return timedelta(seconds=watchdog.limit_s + _GRACE_S) if watchdog.limit_s else _NEVER


def _connect(processes: Processes, limit: timedelta | None) -> None:
    world = processes.world
    try:
        # init_process_group has its own limit, and its error says how many have joined.
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
            f"the {world.size} processes cannot connect to each other ({_first_sentence(error)}); "
            "start them with torchrun, or check MASTER_ADDR and MASTER_PORT"
        ) from error
