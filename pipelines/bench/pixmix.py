"""PixMix: samples a second of batches and of the transform, nanoseconds a value of the mixings."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipelines.bench.comparison import (
    OURS,
    Comparison,
    Findings,
    Ticks,
    count_runs,
    run_comparisons,
)
from pipelines.bench.plain_pixmix import plain_add, plain_multiply, plain_pixmix
from pipelines.bench.results import Goal, Rival, Row
from pipelines.bench.threads import one_thread
from pipelines.bench.timing import Clock, Contender, Spread
from pipelines.system.progress import Progress, no_progress
from pixmix.batch import BatchPixMix
from pixmix.fused import mix_batch
from pixmix.mixing import add, multiply
from pixmix.packed import PackedPictures
from pixmix.settings import PixMixSettings
from pixmix.transform import PixMix

PLAIN = "plain Pillow + numpy"
BATCH = "mix_batch of the same pictures"
PACKAGES = ("numpy", "numba", "pillow", "torch")

_BATCH_TIMES = 4
"""Batches of ours a round: a round of them should not be over at once."""
_PLAIN_SAMPLES = 6
"""A plain twin does one sample in so many of a batch."""
_MILLION = 1e6


@dataclass(frozen=True, kw_only=True)
class PixMixBenchSettings:
    """How much is run: rounds that count, of each comparison, and samples of the two sizes."""

    rounds: int = 9
    small_batch: int = 512
    large_batch: int = 48

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        for name in self.__dataclass_fields__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A recipe: pictures, mixing set and what is done to them."""

    name: str
    images: NDArray[np.uint8]
    mixing_set: PackedPictures
    settings: PixMixSettings
    padding: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    microseconds: tuple[float, float]
    times: float

    @property
    def loaded(self) -> str:
        """What `_kernel` runs, in words."""
        cut = "flip, padded crop and " if self.padding else ""
        return f"mix_batch as loaders call it, with {cut}normalization"


def bench_pixmix(
    settings: PixMixBenchSettings,
    *,
    progress: Progress = no_progress,
    clock: Clock = time.perf_counter,
) -> list[Row]:
    """Run all benchmarks of PixMix on one thread and return a row for each.

    Args:
        settings: how much is run.
        progress: called with how many runs of a contender are done and how many there are.
        clock: what the comparisons are timed with.
    """
    with one_thread():
        small, large = _small_case(settings), _large_case(settings)
        comparisons = [
            _batch_comparison(small),
            _batch_comparison(large),
            _mixing_comparison("add", add, plain_add, (0.4, 0.4)),
            _mixing_comparison("multiply", multiply, plain_multiply, (1.5, 1.5)),
            _transform_comparison(small),
            _transform_comparison(large),
            _device_comparison(small),
            _device_comparison(large),
        ]
        ticks = Ticks(total=count_runs(comparisons, settings.rounds), progress=progress)
        return run_comparisons(comparisons, settings.rounds, clock, ticks)


# --- what is mixed -------------------------------------------------------------------------------


def _pictures(n: int, side: int, seed: int) -> NDArray[np.uint8]:
    """Return (n, side, side, 3) smooth random pictures with grain, as photographs are."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
    smooth = [
        np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.BICUBIC))
        for each in coarse
    ]
    grain = generator.integers(-9, 10, (n, side, side, 3))
    return np.clip(np.stack(smooth) + grain, 0, 255).astype(np.uint8)


def _small_case(settings: PixMixBenchSettings) -> _Case:
    return _Case(
        name="32x32, k 4, beta 3, severity 3, all ops",
        images=_pictures(settings.small_batch, 32, 0),
        mixing_set=PackedPictures.pack(_pictures(1000, 36, 1)),
        settings=PixMixSettings(k=4, beta=3, severity=3, all_ops=True),
        padding=4,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        microseconds=(40, 20),
        times=6,
    )


def _large_case(settings: PixMixBenchSettings) -> _Case:
    return _Case(
        name="224x224, k 4, beta 4, severity 1, all ops",
        images=_pictures(settings.large_batch, 224, 2),
        mixing_set=PackedPictures.pack(_pictures(200, 256, 3)),
        settings=PixMixSettings(k=4, beta=4, severity=1, all_ops=True),
        padding=0,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        microseconds=(900, 600),
        times=2.5,
    )


# --- comparisons ---------------------------------------------------------------------------------


def _kernel(case: _Case) -> Callable[[int], float]:
    """Return a run of some batches into the same memory, as a loader does it."""
    height, width = case.images.shape[1:3]
    n = len(case.images)
    out = torch.empty((n, 3, height, width))

    def run(number: int) -> float:
        for batch in range(_BATCH_TIMES):
            mix_batch(
                case.images,
                case.mixing_set,
                range(n),
                seed=number,
                epoch=batch,
                settings=case.settings,
                flip=case.padding > 0,
                padding=case.padding,
                mean=case.mean,
                std=case.std,
                out=out,
            )
        return _BATCH_TIMES * n

    return run


def _plain(case: _Case) -> Callable[[int], float]:
    mixing_set = list(case.mixing_set)
    mean, std = np.array(case.mean, np.float32), np.array(case.std, np.float32)
    images = case.images[::_PLAIN_SAMPLES]

    def run(number: int) -> float:
        generator = np.random.default_rng(number)
        for image in images:
            plain_pixmix(
                image,
                mixing_set,
                case.settings,
                generator,
                padding=case.padding,
                mean=mean,
                std=std,
            )
        return len(images)

    return run


def _batch_comparison(case: _Case) -> Comparison:
    def finish(rate: Spread, rivals: tuple[Rival, ...]) -> Findings:
        microseconds, ratio = _MILLION / rate.median, rivals[0].ratio.median
        bar, aim = case.microseconds
        return Findings(
            goals=(
                Goal(
                    figure="a sample", unit="us", value=microseconds, rule="at most", bar=bar,
                    aim=aim,
                ),
                Goal(
                    figure="ratio", unit="x", value=ratio, rule="at least", bar=case.times,
                    aim=case.times,
                ),
            ),
            details={"microseconds": microseconds},
            remarks=(
                f"{microseconds:.1f} us a sample, plain {_MILLION / rivals[0].rate.median:.0f} us",
            ),
        )  # fmt: skip

    return Comparison(
        name=f"PixMix, in batches, {case.name}",
        unit="samples/s",
        scale=1.0,
        contenders=(
            Contender(name=OURS, run=_kernel(case)),
            Contender(name=PLAIN, run=_plain(case)),
        ),
        finish=finish,
    )


_Mixing = Callable[[NDArray[np.float32], NDArray[np.float32], float, float], NDArray[np.float32]]
_PlainMixing = Callable[
    [NDArray[np.float32], NDArray[np.float32], np.float32, np.float32], NDArray[np.float32]
]


def _mixing_comparison(
    name: str, ours: _Mixing, plain: _PlainMixing, nanoseconds: tuple[float, float]
) -> Comparison:
    """Compare a mixing of two float32 pictures of 96x96, which a core's memory holds."""
    generator = np.random.default_rng(4)
    x, y = generator.random((2, 96, 96, 3), np.float32)
    repeats = 100

    def run_ours(_number: int) -> float:
        for _ in range(repeats):
            ours(x, y, 0.8, 0.3)
        return float(repeats * x.size)

    def run_plain(_number: int) -> float:
        a, b = np.float32(0.8), np.float32(0.3)
        for _ in range(repeats // 10):
            plain(x, y, a, b)
        return float(repeats // 10 * x.size)

    def finish(rate: Spread, _rivals: tuple[Rival, ...]) -> Findings:
        # A rate is in millions of values a second.
        value = 1000 / rate.median
        bar, aim = nanoseconds
        goal = Goal(figure="a value", unit="ns", value=value, rule="at most", bar=bar, aim=aim)
        return Findings(
            goals=(goal,), details={"nanoseconds": value}, remarks=(f"{value:.2f} ns a value",)
        )

    return Comparison(
        name=f"{name}, float operands",
        unit="M values/s",
        scale=_MILLION,
        contenders=(Contender(name=OURS, run=run_ours), Contender(name="numpy", run=run_plain)),
        finish=finish,
    )


def _transform_comparison(case: _Case) -> Comparison:
    """Compare the transform, called for arrays one by one, with the same samples in a batch."""
    transform = PixMix(case.mixing_set, k=4, beta=case.settings.beta,
                       severity=case.settings.severity, all_ops=True)  # fmt: skip
    n = len(case.images)

    def one_by_one(number: int) -> float:
        for index, image in enumerate(case.images):
            transform(image, key=(number, 0, index))
        return n

    def batched(number: int) -> float:
        mix_batch(
            case.images, case.mixing_set, range(n), seed=number, epoch=0, settings=case.settings
        )
        return n

    def finish(rate: Spread, rivals: tuple[Rival, ...]) -> Findings:
        ours, kernel = _MILLION / rate.median, _MILLION / rivals[0].rate.median
        goal = Goal(
            figure="over the kernel", unit="us", value=ours - kernel, rule="at most", bar=20, aim=20
        )
        return Findings(
            goals=(goal,),
            details={"microseconds": ours, "kernel_microseconds": kernel},
            remarks=(f"{ours:.1f} us a call, {kernel:.1f} us a sample in a batch",),
        )

    return Comparison(
        name=f"PixMix, one by one, {case.name}",
        unit="samples/s",
        scale=1.0,
        contenders=(
            Contender(name=OURS, run=one_by_one),
            Contender(name=BATCH, run=batched),
        ),
        finish=finish,
    )


def _device_comparison(case: _Case) -> Comparison:
    """Compare the module for torch devices, on the CPU, with the kernel."""
    module = BatchPixMix(case.mixing_set, k=4, beta=case.settings.beta,
                         severity=case.settings.severity, all_ops=True)  # fmt: skip
    images = torch.from_numpy(case.images).permute(0, 3, 1, 2).contiguous()
    indices = np.arange(len(images))

    def run(number: int) -> float:
        module(images, seed=number, epoch=0, indices=indices)
        return len(images)

    def finish(rate: Spread, _rivals: tuple[Rival, ...]) -> Findings:
        microseconds = _MILLION / rate.median
        return Findings(
            goals=(),
            details={"microseconds": microseconds},
            remarks=(f"{microseconds:.0f} us a sample",),
        )

    return Comparison(
        name=f"PixMix, by torch on the CPU, {case.name}",
        unit="samples/s",
        scale=1.0,
        contenders=(Contender(name=OURS, run=run), Contender(name=case.loaded, run=_kernel(case))),
        finish=finish,
    )
