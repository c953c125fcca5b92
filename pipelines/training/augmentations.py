"""Baseline augmentations that replace PixMix: AugMix and TrivialAugment, by their authors' recipes.

AugMix (Hendrycks et al., ICLR 2020, github.com/google-research/augmix): three chains of one to
three of nine operations, mixed with Dirichlet(1, 1, 1) weights, and with the image by a Beta(1, 1)
weight. The severity bounds the level of an operation as in PixMix. torchvision's AugMix differs:
its severity 3 is on another scale, and it draws operations that overlap the corruptions of
ImageNet-C.

TrivialAugment (Mueller and Hutter, ICCV 2021): torchvision's TrivialAugmentWide is the authors'. It
draws brightness, color, contrast and sharpness, which overlap the corruptions of ImageNet-C.

To add one, add a row to `AUGMENTATIONS` and its name to `recipes.Augment`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from pipelines.loading.config import Triple
from pixmix.operations import OPERATIONS, apply, draw_argument
from pixmix.settings import MIN_LEVEL, PixMixSettings

_CHAINS = 3
_LONGEST_CHAIN = 3

Image = NDArray[np.uint8]


def torch_seed(*key: int) -> int:
    """Return a seed for torch from a key of nonnegative integers; different keys differ."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def augmix(
    image: Image, rng: np.random.Generator, *, severity: float, all_ops: bool
) -> NDArray[np.float32]:
    """Apply AugMix to an image, with draws in the order of the authors' code.

    Args:
        image: (H, W, 3) uint8; not modified.
        rng: source of all random numbers.
        severity: maximum level of an operation, 0.1 to 10.
        all_ops: whether to also draw the operations that overlap the corruptions of ImageNet-C.

    Returns:
        (H, W, 3) float32 in 0..255, not rounded.
    """
    codes = PixMixSettings(all_ops=all_ops).operation_codes.tolist()
    weights = rng.dirichlet([1.0] * _CHAINS).astype(np.float32)
    mixed_weight = np.float32(rng.beta(1.0, 1.0))
    mixed = np.zeros(image.shape, np.float32)
    for weight in weights:
        chained = image
        for _ in range(rng.integers(1, _LONGEST_CHAIN + 1)):
            chained = _apply_randomly(chained, codes[rng.integers(len(codes))], rng, severity)
        mixed += weight * chained
    return (1 - mixed_weight) * image + mixed_weight * mixed


def _apply_randomly(image: Image, code: int, rng: np.random.Generator, severity: float) -> Image:
    """Return an image after an operation at a random level."""
    operation = OPERATIONS[code]
    if operation.level is None:
        return apply(operation.name, image)
    level = rng.uniform(MIN_LEVEL, severity)
    negative = bool(operation.geometric and rng.uniform() > 0.5)
    return apply(operation.name, image, draw_argument(code, level, negative, *image.shape[:2]))


@dataclass(frozen=True, kw_only=True)
class _Draw:
    """Everything that determines the augmentation of one image.

    Attributes:
        key: (seed, step, position in the global batch, view), the key of all random numbers.
        severity: see `augmix`.
        all_ops: see `augmix`.
    """

    key: tuple[int, int, int, int]
    severity: float
    all_ops: bool


def _augmix(image: Tensor, draw: _Draw) -> Tensor:
    mixed = augmix(
        np.ascontiguousarray(image.permute(1, 2, 0).numpy()),
        np.random.default_rng(draw.key),
        severity=draw.severity,
        all_ops=draw.all_ops,
    )
    return torch.from_numpy(mixed).permute(2, 0, 1)


def _trivialaugment(image: Tensor, draw: _Draw) -> Tensor:
    torch.manual_seed(torch_seed(*draw.key))
    augmented: Tensor = v2.TrivialAugmentWide()(image)
    return augmented.float()


AUGMENTATIONS: Mapping[str, Callable[[Tensor, _Draw], Tensor]] = {
    "augmix": _augmix,
    "trivialaugment": _trivialaugment,
}
"""Augmentation functions by name, from images (3, H, W) uint8 to float32 in 0..255."""


class BaselineAugmentation:
    """Apply a baseline augmentation to each image of a batch, then normalize.

    The random numbers of an image depend only on the seed, the step, its position in the global
    batch and the view.
    """

    def __init__(
        self, name: str, mean: Triple, std: Triple, *, severity: float = 3.0, all_ops: bool = False
    ) -> None:
        self._augment = AUGMENTATIONS[name]
        self._severity, self._all_ops = severity, all_ops
        self._mean = torch.tensor(mean).view(3, 1, 1)
        self._std = torch.tensor(std).view(3, 1, 1)

    def __call__(
        self, images: Tensor, *, seed: int, step: int, first: int, views: int | None = None
    ) -> Tensor:
        """Augment a batch.

        Args:
            images: (B, 3, H, W) float32 in 0..1.
            seed: seed of the training.
            step: step number.
            first: position of the first image in the global batch.
            views: number of views per image, the first of which is not augmented; None for one
                augmented image.

        Returns:
            (B, 3, H, W), or with views (B, views, 3, H, W), float32, normalized.
        """
        bytes_ = (images * 255).round().to(torch.uint8)

        def augmented(view: int) -> Tensor:
            draws = (
                _Draw(
                    key=(seed, step, first + index, view),
                    severity=self._severity,
                    all_ops=self._all_ops,
                )
                for index in range(len(bytes_))
            )
            with torch.random.fork_rng(devices=[]):
                return torch.stack(
                    [self._augment(image, draw) for image, draw in zip(bytes_, draws, strict=True)]
                )

        if views is None:
            result = augmented(0)
        else:
            result = torch.stack([bytes_.float(), *map(augmented, range(1, views))], 1)
        return (result / 255 - self._mean) / self._std
