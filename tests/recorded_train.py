"""`pixmix-train` that records the samples of each step.

Each step appends a line of JSON to the file $RECORD: step, rank, world size, process, indices.
After each step the process sleeps for $PAUSE seconds, so that a test can stop it between steps.
"""

import json
import os
import time
from pathlib import Path

import torch
from torch import Tensor

from pipelines.cli.train import main
from pipelines.training.step import Trainer


def record() -> None:
    """Make each step write its line before it is taken."""
    take = Trainer.take_step

    def step(trainer: Trainer, images: Tensor, labels: Tensor) -> None:
        world = trainer.processes.world
        line = {
            "step": trainer.state.step,
            "rank": world.rank,
            "size": world.size,
            "process": os.getpid(),
            "indices": trainer.state.loader.last_indices.tolist(),
        }
        with Path(os.environ["RECORD"]).open("a") as file:
            file.write(json.dumps(line) + "\n")
        take(trainer, images, labels)
        time.sleep(float(os.environ.get("PAUSE", "0")))

    Trainer.take_step = step  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    record()
    main()
