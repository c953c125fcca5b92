"""`pixmix-train` whose main thread blocks at some point, as in a read from an unresponsive disk.

$HANG names the point: data, mixing, batch or validation; empty for none. $HANG_FILE is created when
the thread blocks. If $HANG_RANK is set, only the process of that rank blocks.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from pipelines.cli.train import main
from pipelines.loading import batches
from pipelines.loading.loader import EvalLoader, TrainLoader
from pipelines.training import data

BATCHES = 3
"""Number of batches before the process blocks at "batch"."""


def hang(*_: object, **__: object) -> Any:  # noqa: ANN401
    """Block the main thread and its signals forever."""
    if os.environ.get("HANG_RANK") not in (None, os.environ.get("RANK")):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
    Path(os.environ["HANG_FILE"]).touch()
    while True:
        time.sleep(1000)


def hanging(iterate: Callable[[Any], Iterator[Any]], n: int) -> Callable[[Any], Iterator[Any]]:
    """Return an `__iter__` that blocks after n batches."""

    def batches(self: object) -> Iterator[Any]:
        for i, batch in enumerate(iterate(self)):
            if i == n:
                hang()
            yield batch

    return batches


def block_at(point: str) -> None:
    """Make the process block at a point."""
    if point == "data":
        data.open_training_data = hang  # type: ignore[assignment]
    elif point == "mixing":
        batches.open_mixing_set = hang
    elif point == "batch":
        TrainLoader.__iter__ = hanging(TrainLoader.__iter__, BATCHES)  # type: ignore[method-assign]
    elif point == "validation":
        EvalLoader.__iter__ = hanging(EvalLoader.__iter__, 0)  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    block_at(os.environ.get("HANG", ""))
    main()
