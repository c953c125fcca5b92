"""Benchmark PixMix on batches, as a transform and on torch devices, with plain alternatives."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipelines.bench.references import plain_add, plain_multiply, plain_pixmix
from pipelines.bench.timing import (
    OURS,
    Comparison,
    Contender,
    Row,
    Target,
    one_thread,
    run_comparisons,
)
from pipelines.system.progress import Progress, no_progress
from pixmix.batch import BatchPixMix
from pixmix.fused import mix_batch
from pixmix.images import PackedImages
from pixmix.mixing import add, multiply
from pixmix.settings import PixMixSettings
from pixmix.transform import PixMix

PACKAGES = ("numpy", "numba", "pillow", "torch")

_PLAIN = "plain Pillow + numpy"
_BATCHES = 4
"""Batches per round, so that a round is long enough to time."""
_PLAIN_SHARE = 6
"""The plain implementation mixes one sample in this many."""


@dataclass(frozen=True, kw_only=True)
class _Case:
    """Images, mixing set and settings. padding: of the random crop, 0 for none.

    microseconds: target and aim per sample. times: target ratio to the plain implementation.
    """

    name: str
    images: NDArray[np.uint8]
    mixing_set: PackedImages
    settings: PixMixSettings
    padding: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    microseconds: tuple[float, float]
    times: float

    @property
    def n(self) -> int:
        return len(self.images)


def bench_pixmix(
    rounds: int,
    progress: Progress = no_progress,
    *,
    small_batch: int = 512,
    large_batch: int = 48,
) -> list[Row]:
    """Time PixMix on one thread, with all images in memory.

    Args:
        rounds: number of counted rounds of each comparison.
        progress: called with the number of finished runs and of all runs.
        small_batch: batch size of 32x32 images.
        large_batch: batch size of 224x224 images.
    """
    cases = (
        _Case(
            name="32x32, k 4, beta 3, severity 3, all ops",
            images=_images(small_batch, 32, 0),
            mixing_set=PackedImages.pack(_images(1000, 36, 1)),
            settings=PixMixSettings(k=4, beta=3, severity=3, all_ops=True),
            padding=4,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            microseconds=(40, 20),
            times=6,
        ),
        _Case(
            name="224x224, k 4, beta 4, severity 1, all ops",
            images=_images(large_batch, 224, 2),
            mixing_set=PackedImages.pack(_images(200, 256, 3)),
            settings=PixMixSettings(k=4, beta=4, severity=1, all_ops=True),
            padding=0,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            microseconds=(900, 600),
            times=2.5,
        ),
    )
    with one_thread():
        comparisons = [
            *map(_batches, cases),
            _operands("add", add, plain_add, (0.4, 0.4)),
            _operands("multiply", multiply, plain_multiply, (1.5, 1.5)),
            *map(_transform, cases),
            *map(_device, cases),
        ]
        return run_comparisons(comparisons, rounds, progress)


def _images(n: int, side: int, seed: int) -> NDArray[np.uint8]:
    """Return (n, side, side, 3) smooth random images with grain, similar to photographs."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
    smooth = [
        np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.BICUBIC))
        for each in coarse
    ]
    grain = generator.integers(-9, 10, (n, side, side, 3))
    return np.clip(np.stack(smooth) + grain, 0, 255).astype(np.uint8)


def _kernel(case: _Case) -> Callable[[int], float]:
    """Return a run of some batches into the same memory, as in a loader."""
    out = torch.empty((case.n, 3, *case.images.shape[1:3]))

    def run(round_index: int) -> float:
        for batch in range(_BATCHES):
            mix_batch(
                case.images, case.mixing_set, range(case.n), seed=round_index, epoch=batch,
                settings=case.settings, flip=case.padding > 0, padding=case.padding,
                mean=case.mean, std=case.std, out=out,
            )  # fmt: skip
        return _BATCHES * case.n

    return run


def _batches(case: _Case) -> Comparison:
    mixing_set, images = list(case.mixing_set), case.images[::_PLAIN_SHARE]
    mean, std = np.array(case.mean, np.float32), np.array(case.std, np.float32)

    def plain(round_index: int) -> float:
        generator = np.random.default_rng(round_index)
        for image in images:
            mixing_image = mixing_set[generator.integers(len(mixing_set))]
            plain_pixmix(
                image, mixing_image, case.settings, generator, padding=case.padding, mean=mean,
                std=std,
            )  # fmt: skip
        return len(images)

    bar, aim = case.microseconds
    return Comparison(
        name=f"PixMix on batches, {case.name}",
        unit="samples/s",
        contenders=(Contender(name=OURS, run=_kernel(case)), Contender(name=_PLAIN, run=plain)),
        targets=(
            Target(figure="a sample", unit="us", rule="at most", bar=bar, aim=aim,
                   value=lambda row: 1e6 / row.rate.median),
            Target(figure="ratio", unit="x", rule="at least", bar=case.times,
                   value=lambda row: row.alternatives[0].ratio.median),
        ),
    )  # fmt: skip


_Mixing = Callable[[NDArray[np.float32], NDArray[np.float32], float, float], NDArray[np.float32]]
_PlainMixing = Callable[
    [NDArray[np.float32], NDArray[np.float32], np.float32, np.float32], NDArray[np.float32]
]


def _operands(
    name: str, ours: _Mixing, plain: _PlainMixing, nanoseconds: tuple[float, float]
) -> Comparison:
    """Compare a mixing of two float32 images of 96x96, which fit into a core's cache."""
    x, y = np.random.default_rng(4).random((2, 96, 96, 3), np.float32)

    def run_ours(_round: int) -> float:
        for _ in range(100):
            ours(x, y, 0.8, 0.3)
        return float(100 * x.size)

    def run_plain(_round: int) -> float:
        for _ in range(10):
            plain(x, y, np.float32(0.8), np.float32(0.3))
        return float(10 * x.size)

    bar, aim = nanoseconds
    return Comparison(
        name=f"{name}, float images",
        unit="M values/s",
        scale=1e6,
        contenders=(Contender(name=OURS, run=run_ours), Contender(name="numpy", run=run_plain)),
        targets=(
            Target(figure="a value", unit="ns", rule="at most", bar=bar, aim=aim,
                   value=lambda row: 1000 / row.rate.median),
        ),
    )  # fmt: skip


def _transform(case: _Case) -> Comparison:
    """Compare the transform, called for single arrays, with the same samples in a batch."""
    settings = case.settings
    transform = PixMix(
        case.mixing_set, k=settings.k, beta=settings.beta, severity=settings.severity, all_ops=True
    )

    def one_by_one(round_index: int) -> float:
        for index, image in enumerate(case.images):
            transform(image, key=(round_index, 0, index))
        return case.n

    def batched(round_index: int) -> float:
        mix_batch(
            case.images,
            case.mixing_set,
            range(case.n),
            seed=round_index,
            epoch=0,
            settings=settings,
        )
        return case.n

    return Comparison(
        name=f"PixMix transform, {case.name}",
        unit="samples/s",
        contenders=(
            Contender(name=OURS, run=one_by_one),
            Contender(name="mix_batch of the same images", run=batched),
        ),
        targets=(
            Target(figure="over the kernel", unit="us", rule="at most", bar=20,
                   value=lambda row: 1e6 / row.rate.median - 1e6 / row.alternatives[0].rate.median),
        ),
    )  # fmt: skip


def _device(case: _Case) -> Comparison:
    """Compare `BatchPixMix` on the CPU with the kernel."""
    settings = case.settings
    module = BatchPixMix(
        case.mixing_set, k=settings.k, beta=settings.beta, severity=settings.severity, all_ops=True
    )
    images = torch.from_numpy(case.images).permute(0, 3, 1, 2).contiguous()
    indices = np.arange(case.n)

    def run(round_index: int) -> float:
        module(images, seed=round_index, epoch=0, indices=indices)
        return case.n

    crop = "flip, crop and " if case.padding else ""
    kernel = f"mix_batch with {crop}normalization"
    return Comparison(
        name=f"BatchPixMix on the CPU, {case.name}",
        unit="samples/s",
        contenders=(Contender(name=OURS, run=run), Contender(name=kernel, run=_kernel(case))),
    )
