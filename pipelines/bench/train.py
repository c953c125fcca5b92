"""Training: a step of WRN-40-4, and how much of it is spent waiting for data."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.bench.comparison import (
    OURS,
    Comparison,
    Findings,
    Ticks,
    count_runs,
    run_comparisons,
)
from pipelines.bench.loader import quick_png, write_plain_shards
from pipelines.bench.results import Goal, Rival, Row
from pipelines.bench.timing import Clock, Contender, Spread
from pipelines.loading.cursors import TrainLoader
from pipelines.loading.loaders import train_loader
from pipelines.loading.preparation import CIFAR
from pipelines.models.registry import open_model
from pipelines.system.progress import Progress, no_progress
from pixmix.packed import PackedPictures

PACKAGES = ("numpy", "numba", "torch")
IN_HAND = "the step alone, its batch in hand"
OTHER_PRECISION = "ours in bfloat16, the step alone"

_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class TrainBenchSettings:
    """How much is run. rounds: that count; steps: of the network a round; model: which one."""

    rounds: int = 3
    steps: int = 2
    n: int = 5_000
    model: str = "wrn_40_4"

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        for name in ("rounds", "steps", "n"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")


def bench_train(
    settings: TrainBenchSettings,
    *,
    progress: Progress = no_progress,
    clock: Clock = time.perf_counter,
) -> list[Row]:
    """Run the benchmarks of training on the CPU, with all its cores, and return a row for each.

    Args:
        settings: how much is run.
        progress: called with how many runs of a contender are done and how many there are.
        clock: what the comparisons are timed with.
    """
    with tempfile.TemporaryDirectory(prefix="pixmix-bench-") as folder:
        loader = _loader(settings, Path(folder))
        comparisons = [_step_comparison(settings, loader, clock), _loader_comparison(loader)]
        ticks = Ticks(total=count_runs(comparisons, settings.rounds), progress=progress)
        return run_comparisons(comparisons, settings.rounds, clock, ticks)


def _loader(settings: TrainBenchSettings, folder: Path) -> TrainLoader:
    """Return a loader of CIFAR-like pictures, with a mixing set."""
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, (settings.n, 32, 32, 3), dtype=np.uint8)
    mixing_set = PackedPictures.pack(generator.integers(0, 256, (200, 36, 36, 3), dtype=np.uint8))
    shards = write_plain_shards(
        folder / "shards", [quick_png(each) for each in pictures], extension="png", kind="cifar10"
    )
    return train_loader(
        shards, mixing_set, batch_size=_BATCH, preparation=CIFAR, cache_dir=folder / "cache"
    )


class _Trainer:
    """A network in training."""

    def __init__(self, model: str, *, bfloat16: bool) -> None:
        self.module: nn.Module = open_model(model, 10, dropout=0.3).to(
            memory_format=torch.channels_last
        )
        self.module.train()
        self.optimizer = torch.optim.SGD(self.module.parameters(), 0.1, momentum=0.9, nesterov=True)
        self.bfloat16 = bfloat16

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Take a step."""
        self.optimizer.zero_grad(set_to_none=True)
        precise = torch.autocast("cpu", torch.bfloat16) if self.bfloat16 else nullcontext()
        with precise:
            logits = self.module(images.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits.float(), labels % 10)
        loss.backward()
        self.optimizer.step()


def _endless(loader: TrainLoader) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def _step_comparison(settings: TrainBenchSettings, loader: TrainLoader, clock: Clock) -> Comparison:
    """Compare training from shards with the step alone, and with the other precision."""
    batches = _endless(loader)
    held = next(batches)
    full, half = (_Trainer(settings.model, bfloat16=each) for each in (False, True))
    waits: list[float] = []
    times: list[float] = []

    def ours(_number: int) -> float:
        for _ in range(settings.steps):
            begin = clock()
            images, labels = next(batches)
            waits.append(clock() - begin)
            full.step(images, labels)
            times.append(clock() - begin)
        return float(settings.steps * _BATCH)

    def alone(trainer: _Trainer) -> Callable[[int], float]:
        def run(_number: int) -> float:
            for _ in range(settings.steps):
                trainer.step(*held)
            return float(settings.steps * _BATCH)

        return run

    def finish(rate: Spread, rivals: tuple[Rival, ...]) -> Findings:
        waited = 100 * sum(waits) / sum(times)
        return Findings(
            goals=(
                Goal(
                    figure="waiting for data", unit="%", value=waited, rule="at most", bar=3, aim=3
                ),
            ),
            details={"waited_percent": waited, "step_seconds": _BATCH / rate.median},
            remarks=(
                f"{_BATCH / rate.median:.2f} s a step of {_BATCH}, {waited:.2f} % of it waiting; "
                f"{rate.median:.1f} samples/s in float32, {rivals[1].rate.median:.1f} in bfloat16",
            ),
        )

    return Comparison(
        name=f"training, {settings.model}, batch {_BATCH}, all cores",
        unit="samples/s",
        scale=1.0,
        contenders=(
            Contender(name=OURS, run=ours),
            Contender(name=IN_HAND, run=alone(full)),
            Contender(name=OTHER_PRECISION, run=alone(half)),
        ),
        finish=finish,
    )


def _loader_comparison(loader: TrainLoader) -> Comparison:
    """Time the loader alone."""

    def ours(_number: int) -> float:
        return float(sum(len(images) for images, _ in loader))

    def finish(rate: Spread, _rivals: tuple[Rival, ...]) -> Findings:
        goal = Goal(
            figure="rate", unit="samples/s", value=rate.median, rule="at least", bar=20_000,
            aim=20_000,
        )  # fmt: skip
        return Findings(goals=(goal,))

    return Comparison(
        name="training, the loader alone",
        unit="samples/s",
        scale=1.0,
        contenders=(Contender(name=OURS, run=ours),),
        finish=finish,
    )
