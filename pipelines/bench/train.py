"""Benchmark training on the CPU: steps of a CIFAR network, and the share of data wait."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.bench.loader import quick_png, write_plain_shards
from pipelines.bench.timing import OURS, Comparison, Contender, Row, Target, run_comparisons
from pipelines.loading.config import CIFAR
from pipelines.loading.loader import TrainLoader, train_loader
from pipelines.models.registry import open_model
from pipelines.system.progress import Progress, no_progress
from pixmix.images import PackedImages

PACKAGES = ("numpy", "numba", "torch")

_BATCH = 128


def bench_train(
    rounds: int,
    progress: Progress = no_progress,
    *,
    model: str = "wrn_40_4",
    steps: int = 2,
    n: int = 5_000,
) -> list[Row]:
    """Time training on all cores of the CPU.

    Args:
        rounds: number of counted rounds of each comparison.
        progress: called with the number of finished runs and of all runs.
        model: name of the network.
        steps: training steps per round.
        n: size of the training set.
    """
    with tempfile.TemporaryDirectory(prefix="pixmix-bench-") as folder:
        loader = _loader(n, Path(folder))

        def epoch(_round: int) -> float:
            return float(sum(len(images) for images, _ in loader))

        alone = Comparison(
            name="training, loader alone",
            unit="samples/s",
            contenders=(Contender(name=OURS, run=epoch),),
            targets=(
                Target(figure="rate", unit="samples/s", rule="at least", bar=20_000,
                       value=lambda row: row.rate.median),
            ),
        )  # fmt: skip
        comparisons = [_step_comparison(model, steps, loader), alone]
        return run_comparisons(comparisons, rounds, progress)


def _loader(n: int, folder: Path) -> TrainLoader:
    """Return a loader of CIFAR-like images, with a mixing set."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    mixing_set = PackedImages.pack(generator.integers(0, 256, (200, 36, 36, 3), dtype=np.uint8))
    shards = write_plain_shards(
        folder / "shards", [quick_png(each) for each in images], extension="png", kind="cifar10"
    )
    return train_loader(
        shards, mixing_set, batch_size=_BATCH, preprocess=CIFAR, cache_dir=folder / "cache"
    )


class _Trainer:
    """A network and its optimizer."""

    def __init__(self, model: str, *, bfloat16: bool) -> None:
        self.module: nn.Module = open_model(model, 10, dropout=0.3).to(
            memory_format=torch.channels_last
        )
        self.module.train()
        self.optimizer = torch.optim.SGD(self.module.parameters(), 0.1, momentum=0.9, nesterov=True)
        self.bfloat16 = bfloat16

    def step(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        precision = torch.autocast("cpu", torch.bfloat16) if self.bfloat16 else nullcontext()
        with precision:
            logits = self.module(images.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits.float(), labels % 10)
        loss.backward()
        self.optimizer.step()


def _endless(loader: TrainLoader) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def _step_comparison(model: str, steps: int, loader: TrainLoader) -> Comparison:
    """Compare training from shards with the step alone, also in bfloat16."""
    batches = _endless(loader)
    batch_in_memory = next(batches)
    full, half = (_Trainer(model, bfloat16=each) for each in (False, True))
    waits: list[float] = []
    times: list[float] = []

    def ours(_round: int) -> float:
        for _ in range(steps):
            begin = time.perf_counter()
            images, labels = next(batches)
            waits.append(time.perf_counter() - begin)
            full.step(images, labels)
            times.append(time.perf_counter() - begin)
        return float(steps * _BATCH)

    def alone(trainer: _Trainer) -> Callable[[int], float]:
        def run(_round: int) -> float:
            for _ in range(steps):
                trainer.step(*batch_in_memory)
            return float(steps * _BATCH)

        return run

    return Comparison(
        name=f"training, {model}, batch {_BATCH}, all cores",
        unit="samples/s",
        contenders=(
            Contender(name=OURS, run=ours),
            Contender(name="step alone, batch in memory", run=alone(full)),
            Contender(name="step alone, in bfloat16", run=alone(half)),
        ),
        details=lambda: {"data_wait_percent": 100 * sum(waits) / sum(times)},
        targets=(
            Target(figure="data wait", unit="%", rule="at most", bar=3,
                   value=lambda row: row.details["data_wait_percent"]),
        ),
    )  # fmt: skip
