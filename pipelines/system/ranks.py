"""How work is divided: ranks, tasks, and ranges of item numbers.

Rank and world size are read from the environment of torchrun, srun, mpirun or a batch system. Ranks
train together (`find_world`); tasks share work without communication (`find_task`).
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipelines.errors import PipelineError

TORCHRUN = ("RANK", "WORLD_SIZE")  # and launchers that set the same variables
SRUN = ("SLURM_PROCID", "SLURM_NTASKS")
MPIRUN = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")  # of Open MPI

_LOCAL_RANKS = {
    TORCHRUN: "LOCAL_RANK",
    SRUN: "SLURM_LOCALID",
    MPIRUN: "OMPI_COMM_WORLD_LOCAL_RANK",
}

_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""Slurm numbers the steps of srun from 0. Numbers from here on stand for the batch script and
interactive shells (slurm/slurm.h, SLURM_INTERACTIVE_STEP 0xfffffffa and its neighbors)."""


def find_launcher() -> tuple[str, str] | None:
    """Return the variables of rank and world size that the launcher of this process has set.

    None if no launcher started this process. The batch script of a Slurm job also has both
    variables, but it runs only once; only the steps of srun count.
    """
    for names in (TORCHRUN, SRUN, MPIRUN):
        if all(name in os.environ for name in names) and (names != SRUN or _is_step()):
            return names
    return None


def local_gpu(n_gpus: int) -> int:
    """Return the GPU index of this process: its local rank modulo the number of GPUs.

    The local rank is LOCAL_RANK, or the launcher's variable of the same meaning.

    Args:
        n_gpus: number of GPUs visible to this process, which is 1 where a batch system assigns one
            GPU to each process.

    Raises:
        PipelineError: if the local rank in the environment is not a number.
    """
    names = find_launcher()
    name = "LOCAL_RANK" if names is None or "LOCAL_RANK" in os.environ else _LOCAL_RANKS[names]
    text = os.environ.get(name, "0")
    if not (text.isascii() and text.isdigit()):
        raise PipelineError(
            f"{name}={text!r} in the environment is not a local rank; correct it, or set the "
            "device, for example cuda:0"
        )
    return int(text) % max(n_gpus, 1)


def _is_step() -> bool:
    step = os.environ.get("SLURM_STEP_ID", "")
    return step.isdigit() and int(step) < _FIRST_SPECIAL_STEP


_ARRAY = "SLURM_ARRAY_TASK_ID"
_INDEXED_JOB = "JOB_COMPLETION_INDEX"


@dataclass(frozen=True, kw_only=True)
class World:
    """The rank of a process, 0 .. size - 1, and the number of processes that train together."""

    rank: int
    size: int

    def __post_init__(self) -> None:
        """Check the rank.

        Raises:
            ValueError: if rank is outside 0 .. size - 1.
        """
        if not 0 <= self.rank < self.size:
            raise ValueError(
                f"rank is {self.rank} with {self.size} processes; use 0 to world_size - 1"
            )


def find_world(rank: int | None = None, world_size: int | None = None) -> World:
    """Return rank and world size.

    They are those of the arguments, or else of torch.distributed, or else of the launcher's
    environment variables. Without any of these the process is alone.

    Args:
        rank: rank of this process; None to detect it.
        world_size: number of processes; None to detect it.

    Raises:
        ValueError: if only one of both is set, or rank is outside 0 .. world_size - 1.
    """
    if (rank is None) != (world_size is None):
        raise ValueError(
            f"rank is {rank} and world_size is {world_size}; set both, or neither to detect them"
        )
    if rank is not None and world_size is not None:
        return World(rank=rank, size=world_size)
    import torch.distributed as distributed

    if distributed.is_available() and distributed.is_initialized():
        return World(rank=distributed.get_rank(), size=distributed.get_world_size())
    names = find_launcher()
    return _world_of(*names) if names else World(rank=0, size=1)


def _world_of(rank_name: str, size_name: str) -> World:
    """Return the world of two environment variables."""
    try:
        return World(rank=int(os.environ[rank_name]), size=int(os.environ[size_name]))
    except ValueError as error:
        raise ValueError(
            f"{rank_name}={os.environ[rank_name]!r} and {size_name}={os.environ[size_name]!r} in "
            "the environment are not a rank and a world size; correct them, or set rank and "
            "world_size"
        ) from error


@dataclass(frozen=True)
class Task:
    """One of several runs that share a job.

    The share of a task depends neither on the number of items nor on those already finished, so
    tasks agree without communication.

    Attributes:
        index: 0 .. count - 1.
        count: number of tasks.
        variables: the environment variables that index and count come from.

    Raises:
        ValueError: if index is outside 0 .. count - 1.
    """

    index: int = 0
    count: int = 1
    variables: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the index."""
        if not 0 <= self.index < self.count:
            source = f" (from {' and '.join(self.variables)})" if self.variables else ""
            raise ValueError(
                f"the task index is {self.index}{source}, and there are {self.count} tasks; number "
                "the tasks from 0, or use --task-index and --num-tasks"
            )

    def has(self, item: int, chunk: int) -> bool:
        """Return whether an item belongs to this task, which has every count-th chunk."""
        return item // chunk % self.count == self.index

    def share(self, ranges: Iterable[range], chunk: int) -> list[range]:
        """Return the parts of ranges that belong to this task, cut into chunks."""
        return [piece for piece in cut(ranges, chunk) if self.has(piece.start, chunk)]


def find_task(num_tasks: int | None = None) -> Task | None:
    """Return the task of this process from the variables of a batch system and a launcher.

    A batch system numbers its elements: Slurm those of an array job, Kubernetes those of an indexed
    Job. In each element a launcher (torchrun, srun or mpirun) may start several processes. The
    ranks of torchrun already count through all elements of an indexed Job.

    Example: with `--array=0-3` and `srun -n 8` in each element, rank 5 of array element 2 is task
    21 of 32.

    Args:
        num_tasks: number of tasks that the user has set; the numbers of elements then count from 0.
            None to read it from the environment.

    Returns:
        The task, or None if no variable is set.

    Raises:
        ValueError: if a variable is not a number, the number of tasks is unknown, or the index is
            not below it.
    """
    names = find_launcher()
    inner = _world_of(*names) if names else World(rank=0, size=1)
    variables = names[:1] if names else ()
    if _ARRAY in os.environ:
        element, n_elements = (_number(_ARRAY), 1) if num_tasks else _array_element()
        variables = (_ARRAY, *variables)
    elif _INDEXED_JOB in os.environ and names != TORCHRUN:
        element, n_elements = _number(_INDEXED_JOB), 1
        variables = (_INDEXED_JOB, *variables)
        if num_tasks is None:
            raise ValueError(
                f"{_INDEXED_JOB}={element} is the index of a Kubernetes Job, whose number of "
                "tasks is not in the environment; set --num-tasks to the Job's completions"
            )
    elif names:
        element, n_elements = 0, 1
    else:
        return None
    index = element * inner.size + inner.rank
    return Task(index=index, count=num_tasks or n_elements * inner.size, variables=variables)


def _array_element() -> tuple[int, int]:
    """Return the position of this element in the array job, from 0, and the number of elements."""
    first, last, step, count = (
        _number(f"SLURM_ARRAY_TASK_{name}") for name in ("MIN", "MAX", "STEP", "COUNT")
    )
    own = _number(_ARRAY)
    if step < 1 or (last - first) // step + 1 != count:
        raise ValueError(
            f"the {count} elements of this array job, from {first} to {last}, are not evenly "
            f"spaced, so the position of {_ARRAY}={own} is unknown; set --num-tasks, and "
            f"{own} is used as the task index"
        )
    return (own - first) // step, count


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not (text.isascii() and text.isdigit()):
        raise ValueError(
            f"{name}={text!r} in the environment is not a number; correct it, or pass "
            "--task-index and --num-tasks"
        )
    return int(text)


# --- Ranges of item numbers ---------------------------------------------------------------------


def subtract(whole: range, taken: Iterable[range]) -> list[range]:
    """Return the rest of a range without other ranges, as ascending ranges.

    Example: subtract(range(10), [range(2, 4), range(3, 5)]) -> [range(0, 2), range(5, 10)]
    """
    left = []
    start = whole.start
    for other in sorted(filter(len, taken), key=lambda items: items.start):
        if start < min(other.start, whole.stop):
            left.append(range(start, min(other.start, whole.stop)))
        start = max(start, other.stop)
    if start < whole.stop:
        left.append(range(start, whole.stop))
    return left


def cut(ranges: Iterable[range], chunk: int) -> Iterator[range]:
    """Cut ranges at the multiples of `chunk`, so that each piece is within one chunk.

    Example: cut([range(30, 70)], 32) -> range(30, 32), range(32, 64), range(64, 70)
    """
    for items in ranges:
        start = items.start
        while start < items.stop:
            stop = min((start // chunk + 1) * chunk, items.stop)
            yield range(start, stop)
            start = stop


def ranges_of(items: Iterable[int]) -> list[range]:
    """Join ascending numbers into ranges.

    Example: ranges_of([1, 2, 3, 7]) -> [range(1, 4), range(7, 8)]
    """
    joined: list[range] = []
    for item in items:
        if joined and joined[-1].stop == item:
            joined[-1] = range(joined[-1].start, item + 1)
        else:
            joined.append(range(item, item + 1))
    return joined


def spread(count: int, n: int) -> Sequence[int]:
    """Return `count` numbers spread evenly over 0 .. n - 1, ascending; all n if n is smaller.

    Example: spread(4, 10) -> 0, 2, 5, 7
    """
    count = min(count, n)
    return [position * n // count for position in range(count)]
