"""One of several processes of a training: python training_process.py FOLDER OUT EPOCHS [WHEN].

RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT define the process. Prints the indices of all batches,
a hash of the final weights and buffers, and the names of the remaining threads, as JSON. WHEN:
"show" or "save", to send SIGTERM to the first process in on_step or before it writes a checkpoint.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from pipelines.system.process_group import join_processes
from pipelines.training import step as step_module
from pipelines.training.checkpoints import Checkpoint
from pipelines.training.loop import train
from pipelines.training.recipes import StepProgress
from pipelines.training.step import Trainer
from training_sets import training


def main() -> None:
    """Train and print the results."""
    torch.set_num_threads(1)
    folder, out, epochs = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    seen: list[list[int]] = []
    module: list[nn.Module] = []
    take = Trainer.take_step

    def step(self: Trainer, images: torch.Tensor, labels: torch.Tensor) -> None:
        seen.append(self.state.loader.last_indices.tolist())
        module[:] = [self.state.module]
        take(self, images, labels)

    def interrupt(_: StepProgress) -> None:
        if sys.argv[4:] == ["show"]:
            os.kill(os.getpid(), signal.SIGTERM)

    with join_processes("cpu") as processes:
        Trainer.take_step = step  # type: ignore[method-assign]
        if processes.first and sys.argv[4:] == ["save"]:
            save = step_module.save_checkpoint

            def interrupted(path: Path, content: Checkpoint) -> None:
                os.kill(os.getpid(), signal.SIGTERM)
                save(path, content)

            step_module.save_checkpoint = interrupted  # type: ignore[assignment]
        result = train(training(folder, out, epochs=epochs, resume=True), processes, interrupt)
        state = hashlib.sha256()
        for value in module[0].state_dict().values():
            state.update(value.numpy().tobytes())
    print(  # noqa: T201
        json.dumps(
            {
                "seen": seen,
                "state": state.hexdigest(),
                "finished": result.finished,
                "step": result.step,
                "history": result.history,
                "threads": sorted(
                    path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")
                ),
            }
        )
    )


if __name__ == "__main__":
    main()
