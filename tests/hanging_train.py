"""`pixmix-train` whose main thread hangs in a place, as in a read of a disk that does not answer.

$HANG names the place: data, mixing, batch, validation, or none of them. $HANG_FILE is made when it
hangs. Only the process of $HANG_RANK hangs, where it is set.
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
"""That are given before it hangs."""


def hang(*_: object, **__: object) -> Any:  # noqa: ANN401
    """Let the main thread see no signal, for ever."""
    if os.environ.get("HANG_RANK") not in (None, os.environ.get("RANK")):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
    Path(os.environ["HANG_FILE"]).touch()
    while True:
        time.sleep(1000)


def hanging(iterate: Callable[[Any], Iterator[Any]], n: int) -> Callable[[Any], Iterator[Any]]:
    """Return an `__iter__` that hangs after some batches."""

    def batches(self: object) -> Iterator[Any]:
        for i, batch in enumerate(iterate(self)):
            if i == n:
                hang()
            yield batch

    return batches


def wait_in(place: str) -> None:
    """Have the place hang."""
    if place == "data":
        data.open_training_data = hang  # type: ignore[assignment]
    elif place == "mixing":
        batches.open_mixing_set = hang
    elif place == "batch":
        TrainLoader.__iter__ = hanging(TrainLoader.__iter__, BATCHES)  # type: ignore[method-assign]
    elif place == "validation":
        EvalLoader.__iter__ = hanging(EvalLoader.__iter__, 0)  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    wait_in(os.environ.get("HANG", ""))
    main()
