"""Run chunks of work on a Ray cluster instead of processes of this machine.

    with joined_cluster(address) as cluster:
        versions = partial(versions_of, generator, format)
        run_job(job, run=cluster.runner(versions, folder))

Ray finds machines, starts processes on them, and restarts a task elsewhere when its machine is
lost. Each task commits its own output, so this process receives no data.
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

from pipelines.errors import PipelineError, install_extra
from pipelines.system.processes import ONE_THREAD, RunChunks

_MAX_RETRIES = 16
"""How often a task may lose its process or machine; a task that kills them itself must end."""

_TASKS_PER_SLOT = 2
"""Tasks that run or are queued: no slot waits for this process, and an interruption drops few."""

_POLL_S = 2.0
"""Time between two queries of the cluster's resources, because machines join and leave it."""

_CONNECT_TIMEOUT_S = 10.0

_Result = TypeVar("_Result")
_Versions = Callable[[], Mapping[str, Any]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """A cluster that this process has joined. num_gpus: share of a GPU that each task uses."""

    num_gpus: float

    def call(self, function: Callable[[], _Result]) -> _Result:
        """Call a function once as a task, with the resources that all tasks have.

        Raises:
            PipelineError: if the machine is lost repeatedly.
            Exception: what the function raises.
        """
        result: _Result = _result_of(self._task().remote(function))
        return result

    def runner(self, versions: _Versions, folder: Path | None) -> RunChunks:
        """Return a function that runs each chunk as a task.

        Args:
            versions: returns the versions of the code that the work depends on, which must be the
                same on all machines.
            folder: output folder, which all machines must share; None for an object store.
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
        """Run a function over chunks; see `processes.RunChunks`. jobs: maximum number of tasks."""
        import ray

        waiting = iter(chunks)
        running: list[Any] = []
        with _probe_file(folder) as probe:
            checked = ray.put(partial(_checked, work, versions, dict(versions()), probe))
            task = self._task()
            slots = _Slots(self.num_gpus)
            # Tasks are not cancelled after an error or Ctrl-C: `ray.cancel` of a task that ends at
            # that moment aborts this process. The cluster ends the tasks of a lost driver.
            while True:
                room = min(jobs, _TASKS_PER_SLOT * slots.now()) - len(running)
                chosen = islice(waiting, max(room, 0))
                running += [task.remote(checked, chunk) for chunk in chosen]
                if not running:
                    return
                done, running = ray.wait(running, timeout=_POLL_S)
                for each in done:
                    finished(_result_of(each))

    def _task(self) -> Any:  # noqa: ANN401, ray's decorator has no types
        import ray

        resources = {"num_cpus": 1, "num_gpus": self.num_gpus}
        return ray.remote(**resources, max_retries=_MAX_RETRIES, retry_exceptions=False)(_call)


@contextmanager
def joined_cluster(
    address: str | None, *, gpus_per_task: float = 0.0, jobs: int | None = None
) -> Iterator[RayCluster]:
    """Join a Ray cluster, or start one on this machine, for the duration of the block.

    Args:
        address: address of the cluster. None joins the cluster at RAY_ADDRESS or one that runs on
            this machine; without either it starts a cluster that ends with the block.
        gpus_per_task: share of a GPU for each task, if the cluster has GPUs.
        jobs: number of processes of a cluster that is started here; None for one per core.

    Raises:
        PipelineError: if ray is not installed, or no cluster responds.
    """
    ray = _import_ray()
    named = address or os.environ.get("RAY_ADDRESS") or None
    if named is not None:
        _check_connection(named)
    elif (local := _local_address()) is not None:
        # Ray would wait for minutes for a cluster that was killed.
        with suppress(PipelineError):
            _check_connection(local)
            address = local
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
    """Redirect what Ray prints on stdout, from Python and from C++, to stderr."""
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
        # Ray raises ValueError if it joins a cluster that is running, where num_cpus is fixed.
        with suppress(ValueError):
            ray.init(num_cpus=jobs, **settings)
            return
    ray.init(**settings)


def _local_address() -> str | None:
    """Return the address that `ray start` last wrote on this machine; None without one.

    `ray.init` reads the same file.
    """
    file = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    try:
        return file.read_text().strip() or None
    except OSError:
        return None


def _check_connection(address: str) -> None:
    """Check that an address accepts connections; Ray would wait for minutes.

    Raises:
        PipelineError: if it does not.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if not (host and port.isdecimal()):
            raise ValueError("expected HOST:PORT")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> PipelineError:
    return PipelineError(
        f"--ray: no cluster found at {address} ({_first_line(error)}); pass the address that "
        "ray start printed, or --ray alone for a cluster on this machine"
    )


def _import_ray() -> Any:  # noqa: ANN401, an untyped and optional module
    # Ray reads this when it is imported, and in the cluster that it may start.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise PipelineError(
            f"--ray needs Ray, which is not installed; run {install_extra('cluster')}"
        ) from error
    return ray


class _Slots:
    """How many tasks the cluster can run at once, queried every two seconds."""

    def __init__(self, num_gpus: float) -> None:
        self.num_gpus = num_gpus
        self._queried = float("-inf")
        self._slots = 1
        self._warned = False

    def now(self) -> int:
        """Return the slots, at least 1: a cluster may grow when tasks are queued."""
        if time.monotonic() - self._queried >= _POLL_S:
            import ray

            resources = ray.cluster_resources()
            slots = resources.get("CPU", 0.0)
            if self.num_gpus:
                slots = min(slots, resources.get("GPU", 0.0) / self.num_gpus)
            if slots < 1 and not self._warned:
                _log.warning("the cluster has no free CPU or GPU for a task; waiting for one")
                self._warned = True
            self._slots = max(1, int(slots))
            self._queried = time.monotonic()
        return self._slots


def _call(function: Callable[..., _Result], *arguments: object) -> _Result:
    return function(*arguments)


def _checked(
    work: Callable[[range], range],
    versions: _Versions,
    expected: Mapping[str, Any],
    probe: Path | None,
    chunk: range,
) -> range:
    """Run a chunk if this machine has the code versions and the folder of the driver's machine."""
    for name, here in versions().items():
        if here != expected.get(name):
            raise PipelineError(
                f"{name}: {socket.gethostname()} has {here}, but the machine of this command has "
                f"{expected.get(name)}; install the same version on all machines of the cluster"
            )
    if probe is not None and not probe.exists():
        raise PipelineError(
            f"{socket.gethostname()} does not share the folder {probe.parent.parent} with the "
            "machine of this command; use an --out on a file system that all machines share, or "
            "--to-shards and s3://"
        )
    return work(chunk)


@contextmanager
def _probe_file(folder: Path | None) -> Iterator[Path | None]:
    """Create a file in a folder, by which other machines check that they share the folder."""
    if folder is None:
        yield None
        return
    # A new name each time, because another machine may have cached an old one.
    probe = folder.absolute() / ".work" / f"probe-{secrets.token_hex(8)}"
    probe.touch()
    try:
        yield probe
    finally:
        probe.unlink(missing_ok=True)


def _result_of(task: Any) -> Any:  # noqa: ANN401, an object reference of ray
    """Return the result of a task.

    Raises:
        PipelineError: if its process or machine was lost repeatedly, or cannot run it.
        Exception: what the task raised.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(task)
    except RayError as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, MemoryError):
            raise PipelineError(
                "a machine of the cluster ran out of memory; complete files are kept: run the "
                "same command again with fewer --jobs, or a smaller --size"
            ) from error
        if not isinstance(cause, RayError):
            # From None: the traceback inside ray does not help.
            raise cause from None
        raise PipelineError(
            f"the cluster could not run a task ({_first_line(cause)}); all finished files are "
            "kept: check that all machines have the same pixmix and enough memory, then run the "
            "same command again"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
