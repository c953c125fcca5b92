"""One of several processes of a training: python training_process.py FOLDER OUT EPOCHS [WHEN].

RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say which. Prints the indices of all batches and a
hash of the final weights and running means, and names the threads that are left. WHEN: the first
process gets a SIGTERM while it shows a step, or saves a checkpoint.
"""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipelines.system.process_group import joined
from pipelines.training import train as training_module
from pipelines.training.stopping import Stopping
from pipelines.training.train import _Run
from training_sets import training


def main() -> None:
    """Train, and tell."""
    torch.set_num_threads(1)
    folder, out, epochs = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    with joined("cpu") as processes:
        run = _Run(
            training(folder, out, epochs=epochs, resume=True),
            processes,
            show=lambda _: None,
            show_epoch=lambda _: None,
            stopping=Stopping(),
        )
        seen: list[list[int]] = []
        take = run._take_step

        def step(images: torch.Tensor, labels: torch.Tensor) -> None:
            seen.append(run.loader.last_indices.tolist())
            take(images, labels)

        run._take_step = step  # type: ignore[method-assign]
        if processes.first and sys.argv[4:] == ["show"]:
            run.show = lambda _: os.kill(os.getpid(), signal.SIGTERM)
        if processes.first and sys.argv[4:] == ["save"]:
            save = training_module.save_checkpoint

            def interrupted(path: Path, content: Mapping[str, Any]) -> None:
                os.kill(os.getpid(), signal.SIGTERM)
                save(path, content)

            training_module.save_checkpoint = interrupted
        trained = run.run()
        state = hashlib.sha256()
        for value in run.module.state_dict().values():
            state.update(value.numpy().tobytes())
    print(  # noqa: T201
        json.dumps(
            {
                "seen": seen,
                "state": state.hexdigest(),
                "finished": trained.finished,
                "step": trained.step,
                "history": trained.history,
                "threads": sorted(
                    path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")
                ),
            }
        )
    )


if __name__ == "__main__":
    main()
