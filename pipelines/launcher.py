"""What started this process beside others, as the environment tells: torchrun, srun or mpirun."""

import os

from pipelines.errors import PipelineError

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
        PipelineError: if what is set is no number.
    """
    names = find_launcher()
    name = "LOCAL_RANK" if names is None or "LOCAL_RANK" in os.environ else _LOCAL_RANKS[names]
    text = os.environ.get(name, "0")
    if not (text.isascii() and text.isdigit()):
        raise PipelineError(
            f"{name}={text!r} in the environment is no number of a process; mend it, or name a "
            "device, as cuda:0"
        )
    return int(text) % max(n_gpus, 1)


def _is_step() -> bool:
    step = os.environ.get("SLURM_STEP_ID", "")
    return step.isdigit() and int(step) < _FIRST_SPECIAL_STEP
