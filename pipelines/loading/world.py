"""Which of how many processes this is: the only place that asks the environment."""

import os
from dataclasses import dataclass

# What starts the processes of a job, and how it names rank and number of them.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE"),  # torchrun, and what follows its custom
    ("SLURM_PROCID", "SLURM_NTASKS"),  # srun
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # mpirun of Open MPI
)


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


def find_torchrun() -> World:
    """Return the world that torchrun began, or that of one process.

    For work that needs no word between its processes: a batch system's own variables are there in
    many a job that runs a command once.

    Raises:
        ValueError: if torchrun's variables are no rank and size.
    """
    names = _LAUNCHERS[0]
    return _named(*names) if all(name in os.environ for name in names) else World(rank=0, size=1)


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
    for names in _LAUNCHERS:
        if all(name in os.environ for name in names):
            return _named(*names)
    return World(rank=0, size=1)


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
