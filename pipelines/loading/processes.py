"""The processes of a training: how they find each other, and what they tell each other."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed, nn

from pipelines.errors import PipelineError
from pipelines.loading.world import World, find_world


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those of the training. device: that it computes on."""

    world: World
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.world.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Return sums over all processes; every process must call it.

        They go from CPU to CPU: a device is not waited for.
        """
        total = torch.tensor(values, dtype=torch.float64)
        if self.world.size > 1:
            distributed.all_reduce(total)
        return [float(each) for each in total.tolist()]

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the first one's buffers, as running means; all must call it.

        Each process counts its own part of a batch, and the first one's are those that are saved.
        """
        if self.world.size > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def wait(self) -> None:
        """Wait until every process is here."""
        self.sum(0.0)


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the other processes of a launcher such as torchrun, and leave them at the end.

    Args:
        device: "auto", "cpu" or as torch names it; with several processes each has the GPU of its
            LOCAL_RANK.

    Raises:
        PipelineError: if there is no such device here.
    """
    world = find_world()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if device == "cuda":
            local = int(os.environ.get("LOCAL_RANK", "0"))
            device = f"cuda:{local % max(torch.cuda.device_count(), 1)}"
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise PipelineError(
            f"device {device!r} is not here ({str(error).splitlines()[0]}); give auto or cpu"
        ) from error
    if world.size == 1:
        yield Processes(world=world, device=chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    distributed.init_process_group(backend, rank=world.rank, world_size=world.size)
    try:
        yield Processes(world=world, device=chosen)
    finally:
        # What refers to the group in a cycle would keep its threads, and a thread of gloo that
        # meets an interpreter which has ended aborts the process.
        gc.collect()
        distributed.destroy_process_group()
