"""Chunks of work on a Ray cluster, in place of processes of this machine.

    with joined_cluster(address) as cluster:
        versions = partial(versions_of, generator, format)
        run_job(job, run=cluster.runner(versions, folder))

Ray finds machines, starts processes on them and starts a task again elsewhere when its machine is
lost. What a task makes is committed by the task itself, so here nothing has to come back.
"""

import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pipelines.errors import PipelineError
from pipelines.system.processes import ONE_THREAD, RunChunks

_MOST_LOSSES = 16
"""So often a task may lose its process or its machine: one that kills them itself has an end."""

_TASKS_A_SLOT = 2
"""That run or wait: no slot waits for this process, and an interrupted run has few to drop."""

_LOOK_S = 2.0
"""Between two looks at what the cluster has: machines come and go."""

_CONNECT_S = 10.0

_Answer = TypeVar("_Answer")
_Versions = Callable[[], Mapping[str, Any]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """A cluster that this process has joined. num_gpus: of a GPU, that each task takes."""

    num_gpus: float

    def call(self, function: Callable[[], _Answer]) -> _Answer:
        """Call a function once, on a machine and with a GPU such as tasks get.

        Raises:
            PipelineError: if the machine is lost again and again.
            Exception: what the function raises.
        """
        answer: _Answer = _answer(self._task().remote(function))
        return answer

    def runner(self, versions: _Versions, folder: Path | None) -> RunChunks:
        """Return a way to run chunks, each as a task.

        Args:
            versions: tells those of the code that the work depends on; each machine's must be
                those of this one.
            folder: where the work writes, which each machine must see; None if it is a store.
        """
        return partial(self._run, versions, folder)

    def _run(
        self,
        versions: _Versions,
        folder: Path | None,
        work: Callable[[range], range],
        chunks: Iterable[range],
        *,
        jobs: int,
        finished: Callable[[range], None],
    ) -> None:
        """Run a function over chunks; see `RunChunks`. jobs: maximum number of concurrent tasks."""
        import ray

        waiting = iter(chunks)
        running: list[Any] = []
        with _witness(folder) as witness:
            checked = ray.put(partial(_checked, work, versions, dict(versions()), witness))
            task = self._task()
            slots = _Slots(self.num_gpus)
            # What runs after an error or Ctrl-C is not cancelled: `ray.cancel` of a task that ends
            # at that moment aborts this process. The cluster ends what its driver has left.
            while True:
                room = min(jobs, _TASKS_A_SLOT * slots.now()) - len(running)
                chosen = islice(waiting, max(room, 0))
                running += [task.remote(checked, chunk) for chunk in chosen]
                if not running:
                    return
                done, running = ray.wait(running, timeout=_LOOK_S)
                for each in done:
                    finished(_answer(each))

    def _task(self) -> Any:  # noqa: ANN401, ray's decorator has no types
        import ray

        resources = {"num_cpus": 1, "num_gpus": self.num_gpus}
        return ray.remote(**resources, max_retries=_MOST_LOSSES, retry_exceptions=False)(_call)


@contextmanager
def joined_cluster(
    address: str | None, *, gpus_per_task: float = 0.0, jobs: int | None = None
) -> Iterator[RayCluster]:
    """Join a Ray cluster, or start one on this machine, for as long as the block runs.

    Args:
        address: of the cluster; None for that of RAY_ADDRESS or one that runs on this machine, and
            else for one that is started here and ends with the block.
        gpus_per_task: of a GPU, where the cluster has any.
        jobs: processes of a cluster that is started here; None for as many as cores.

    Raises:
        PipelineError: if ray is not installed, or no cluster answers.
    """
    ray = _import_ray()
    named = address or os.environ.get("RAY_ADDRESS") or None
    if named is not None:
        _refuse_silence(named)
    elif (noted := _noted_here()) is not None:
        # Or what a cluster left that was killed would be waited for.
        with suppress(PipelineError):
            _refuse_silence(noted)
            address = noted
        address = address or "local"
    settings: dict[str, Any] = {
        "address": address,
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": dict(ONE_THREAD)},
    }
    with _stdout_to_stderr():
        try:
            _init(ray, settings, jobs)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise _no_cluster(named or "this machine", error) from error
        try:
            has_gpus = ray.cluster_resources().get("GPU", 0) > 0
            yield RayCluster(num_gpus=gpus_per_task if has_gpus else 0.0)
        finally:
            ray.shutdown()


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send what Ray tells of machines on stdout, from Python and from C++, to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _init(ray: Any, settings: Mapping[str, Any], jobs: int | None) -> None:  # noqa: ANN401, as below
    if jobs is not None:
        # Refused where there is a cluster, whose machines have the processes that they have.
        with suppress(ValueError):
            ray.init(num_cpus=jobs, **settings)
            return
    ray.init(**settings)


def _noted_here() -> str | None:
    """Return the address that ray start last noted on this machine, None where there is none.

    `ray.init` looks at the same file.
    """
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    try:
        return note.read_text().strip() or None
    except OSError:
        return None


def _refuse_silence(address: str) -> None:
    """See that something answers at an address, for which Ray would wait for minutes.

    Raises:
        PipelineError: if nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if not (host and port.isdecimal()):
            raise ValueError("it is not HOST:PORT")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> PipelineError:
    return PipelineError(
        f"--ray: no cluster answers at {address} ({_first_line(error)}); give the address that "
        "ray start has printed, or --ray alone for a cluster of this machine"
    )


def _import_ray() -> Any:  # noqa: ANN401, an untyped module, which need not be there
    # Read when ray is imported, and by the cluster that it may start.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise PipelineError(
            "--ray needs pixmix[cluster]; run pip install 'pixmix[cluster]'"
        ) from error
    return ray


class _Slots:
    """How many tasks the cluster can run at once, looked at anew every moment."""

    def __init__(self, num_gpus: float) -> None:
        self.num_gpus = num_gpus
        self._looked = float("-inf")
        self._slots = 1
        self._told = False

    def now(self) -> int:
        """Return the slots, at least 1: a cluster may grow when there is something to do."""
        if time.monotonic() - self._looked >= _LOOK_S:
            import ray

            has = ray.cluster_resources()
            slots = has.get("CPU", 0.0)
            if self.num_gpus:
                slots = min(slots, has.get("GPU", 0.0) / self.num_gpus)
            if slots < 1 and not self._told:
                _log.warning("the cluster has nothing free for a task; waiting until it has")
                self._told = True
            self._slots = max(1, int(slots))
            self._looked = time.monotonic()
        return self._slots


def _call(function: Callable[..., _Answer], *arguments: object) -> _Answer:
    return function(*arguments)


def _checked(
    work: Callable[[range], range],
    versions: _Versions,
    expected: Mapping[str, Any],
    witness: Path | None,
    chunk: range,
) -> range:
    """Do a chunk's work on a machine that is like the one that asks."""
    for name, here in versions().items():
        if here != expected.get(name):
            raise PipelineError(
                f"{name}: {socket.gethostname()} has {here}, the machine of this command "
                f"{expected.get(name)}; install the same on all machines of the cluster"
            )
    if witness is not None and not witness.exists():
        raise PipelineError(
            f"{socket.gethostname()} does not see {witness.parent.parent} as the machine of this "
            "command does; give --out on a file system that all machines share, or --to-shards and "
            "s3://"
        )
    return work(chunk)


@contextmanager
def _witness(folder: Path | None) -> Iterator[Path | None]:
    """Give a file that is in a folder as this machine sees it, for the others to look for."""
    if folder is None:
        yield None
        return
    # A new name each time: what is known of a name on another machine may be old.
    witness = folder.absolute() / ".work" / f"seen-{secrets.token_hex(8)}"
    witness.touch()
    try:
        yield witness
    finally:
        witness.unlink(missing_ok=True)


def _answer(task: Any) -> Any:  # noqa: ANN401, a reference of ray's
    """Return what a task has returned.

    Raises:
        PipelineError: if its process or machine was lost again and again, or cannot run it.
        Exception: what it has raised.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(task)
    except RayError as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, MemoryError):
            raise PipelineError(
                "the memory of a machine of the cluster ran out; what is whole is kept: run the "
                "same command again with fewer --jobs, or a smaller --size"
            ) from error
        if not isinstance(cause, RayError):
            # From None: where in ray it passed says nothing.
            raise cause from None
        raise PipelineError(
            f"the cluster could not do a task ({_first_line(cause)}); what is whole is kept: see "
            "that all its machines have the same pixmix and memory enough, and run the same "
            "command again"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
