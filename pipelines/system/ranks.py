"""Rank and world size, read from the environment of torchrun, srun, mpirun or a batch system.

Ranks train together (`find_world`); tasks share work without communication (`find_task`).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.errors import PipelineError
from pipelines.system.ranges import cut

TORCHRUN = ("RANK", "WORLD_SIZE")  # and what follows its custom
SRUN = ("SLURM_PROCID", "SLURM_NTASKS")
MPIRUN = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")  # of Open MPI

_LOCAL_RANKS = {
    TORCHRUN: "LOCAL_RANK",
    SRUN: "SLURM_LOCALID",
    MPIRUN: "OMPI_COMM_WORLD_LOCAL_RANK",
}

_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""Slurm numbers the steps of srun from 0, and from the top those that are none: the batch script,
an interactive shell (slurm/slurm.h, SLURM_INTERACTIVE_STEP 0xfffffffa and its neighbours)."""


def find_launcher() -> tuple[str, str] | None:
    """Return the names of rank and size of the launcher that started this process, if one did.

    In the script of a Slurm job both are set too, though it runs once: srun makes steps.
    """
    for names in (TORCHRUN, SRUN, MPIRUN):
        if all(name in os.environ for name in names) and (names != SRUN or _is_step()):
            return names
    return None


def local_gpu(n_gpus: int) -> int:
    """Return the number of this process's GPU: those of a machine take its GPUs in turn.

    LOCAL_RANK says which process of the machine it is, or what the launcher calls it.

    Args:
        n_gpus: that this process sees: one, where a batch system has given each its own.

    Raises:
        PipelineError: if what is set is not a number.
    """
    names = find_launcher()
    name = "LOCAL_RANK" if names is None or "LOCAL_RANK" in os.environ else _LOCAL_RANKS[names]
    text = os.environ.get(name, "0")
    if not (text.isascii() and text.isdigit()):
        raise PipelineError(
            f"{name}={text!r} in the environment is not the number of a process; mend it, or "
            "name a device, as cuda:0"
        )
    return int(text) % max(n_gpus, 1)


def _is_step() -> bool:
    step = os.environ.get("SLURM_STEP_ID", "")
    return step.isdigit() and int(step) < _FIRST_SPECIAL_STEP


_ARRAY = "SLURM_ARRAY_TASK_ID"
_INDEXED_JOB = "JOB_COMPLETION_INDEX"


@dataclass(frozen=True, kw_only=True)
class World:
    """A process among those that train together. rank: 0 .. size - 1."""

    rank: int
    size: int

    def __post_init__(self) -> None:
        """Refuse a rank that is not in the world.

        Raises:
            ValueError: if it is not.
        """
        if not 0 <= self.rank < self.size:
            raise ValueError(
                f"rank {self.rank} of {self.size} processes; give a rank from 0 to world_size - 1"
            )


def find_world(rank: int | None = None, world_size: int | None = None) -> World:
    """Return the world given, or that of torch.distributed, or that of the launcher, or of one.

    Args:
        rank: of this process; None to find it out.
        world_size: number of processes; None to find it out.

    Raises:
        ValueError: if only one of both is given, or if they do not fit.
    """
    if (rank is None) != (world_size is None):
        raise ValueError(
            f"rank is {rank} and world_size {world_size}; give both, or neither to find them out"
        )
    if rank is not None and world_size is not None:
        return World(rank=rank, size=world_size)
    import torch.distributed as distributed

    if distributed.is_available() and distributed.is_initialized():
        return World(rank=distributed.get_rank(), size=distributed.get_world_size())
    names = find_launcher()
    return _named(*names) if names else World(rank=0, size=1)


def _named(rank_name: str, size_name: str) -> World:
    """Return the world that two variables of the environment tell of."""
    try:
        return World(rank=int(os.environ[rank_name]), size=int(os.environ[size_name]))
    except ValueError as error:
        raise ValueError(
            f"{rank_name}={os.environ[rank_name]!r} and {size_name}={os.environ[size_name]!r} in "
            "the environment are no rank and number of processes; mend them, or give rank and "
            "world_size"
        ) from error


@dataclass(frozen=True)
class Task:
    """A run among those that share a job.

    index: 0 .. count - 1. by: the variables of the environment that say so.

    Its share depends neither on how many items there are nor on what is made already, so tasks
    agree without talking to each other.

    Raises:
        ValueError: if there is no such task.
    """

    index: int = 0
    count: int = 1
    by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an index that is none of the tasks."""
        if not 0 <= self.index < self.count:
            told = f", by {' and '.join(self.by)} in the environment" if self.by else ""
            raise ValueError(
                f"this is task {self.index}{told}, which is not below the {self.count} tasks that "
                "there are; number the tasks from 0, or use --task-index and --num-tasks"
            )

    def has(self, item: int, chunk: int) -> bool:
        """Return whether an item of a job is of this task's share: it has each count-th chunk."""
        return item // chunk % self.count == self.index

    def share(self, ranges: Iterable[range], chunk: int) -> list[range]:
        """Return the parts of ranges that are of this task's share, cut into chunks."""
        return [piece for piece in cut(ranges, chunk) if self.has(piece.start, chunk)]


def find_task(num_tasks: int | None = None) -> Task | None:
    """Return which task of a job this run is, by what a batch system and a launcher have set.

        --array=0-3, each element by srun -n 8      array element 2, rank 5: task 21 of 32

    A batch system numbers its elements: Slurm those of an array job, Kubernetes those of an indexed
    Job. In each of them a launcher may start several processes: torchrun, srun or mpirun. The ranks
    of torchrun count through all elements of an indexed Job.

    Args:
        num_tasks: where the user has given it; then the elements' own numbers count from 0.

    Returns:
        The task, or None where nothing is set.

    Raises:
        ValueError: if what is set is not a number, or does not tell how many tasks there are, or if
            the task is not below their number.
    """
    names = find_launcher()
    inner = _named(*names) if names else World(rank=0, size=1)
    by = names[:1] if names else ()
    if _ARRAY in os.environ:
        element, n_elements = (_number(_ARRAY), 1) if num_tasks else _array_element()
        by = (_ARRAY, *by)
    elif _INDEXED_JOB in os.environ and names != TORCHRUN:
        element, n_elements = _number(_INDEXED_JOB), 1
        by = (_INDEXED_JOB, *by)
        if num_tasks is None:
            raise ValueError(
                f"{_INDEXED_JOB} says that this is task {element} of an indexed Job, and nothing "
                "says of how many; give the Job's completions as --num-tasks"
            )
    elif names:
        element, n_elements = 0, 1
    else:
        return None
    index = element * inner.size + inner.rank
    return Task(index=index, count=num_tasks or n_elements * inner.size, by=by)


def _array_element() -> tuple[int, int]:
    """Return the place of an array job's element among all, counted from 0, and their number."""
    first, last, step, count = (
        _number(f"SLURM_ARRAY_TASK_{name}") for name in ("MIN", "MAX", "STEP", "COUNT")
    )
    own = _number(_ARRAY)
    if step < 1 or (last - first) // step + 1 != count:
        raise ValueError(
            f"the elements of this array job are a list of {count} numbers from {first} to {last}, "
            "which does not tell the place of one; give --num-tasks, of which "
            f"{_ARRAY}={own} is then the index"
        )
    return (own - first) // step, count


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not (text.isascii() and text.isdigit()):
        raise ValueError(
            f"{name}={text!r} in the environment is not a number; mend it, or pass --task-index "
            "and --num-tasks"
        )
    return int(text)
