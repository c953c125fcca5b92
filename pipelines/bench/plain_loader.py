"""A training set as most people write it: an ImageFolder's Pillow, torchvision and PixMix a sample.

The mixing picture is opened, resized and cropped for each sample, whether a round needs it or not,
as the method's own code does; or it lies in memory already, which is what a careful user makes.
"""

import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import RandomHorizontalFlip, RandomResizedCrop, Resize

from pipelines.bench.plain_pixmix import plain_pixmix
from pixmix.settings import PixMixSettings


def _opened(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")


class PlainImageNet(Dataset[tuple[Tensor, int]]):
    """Decode, random resized crop, flip and PixMix, a sample at a time."""

    def __init__(
        self,
        contents: Sequence[bytes],
        mixing_files: Sequence[bytes],
        mixing_set: list[NDArray[np.uint8]] | None,
        settings: PixMixSettings,
        *,
        size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        self._contents, self._mixing_files, self._mixing_set = contents, mixing_files, mixing_set
        self._settings = settings
        self._crop, self._flip = RandomResizedCrop(size), RandomHorizontalFlip()
        self._resize = Resize(size * 8 // 7)
        self._mean, self._std = np.array(mean, np.float32), np.array(std, np.float32)
        self._generator: Generator = np.random.default_rng(0)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._contents)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """Return a sample's pixels, (3, size, size) float32, and its label."""
        image = self._flip(self._crop(_opened(self._contents[i])))
        mixing_set = self._mixing_set
        if mixing_set is None:
            which = int(self._generator.integers(len(self._mixing_files)))
            mixing_set = [np.asarray(self._resize(_opened(self._mixing_files[which])))]
        mixed = plain_pixmix(
            np.asarray(image),
            mixing_set,
            self._settings,
            self._generator,
            padding=0,
            mean=self._mean,
            std=self._std,
        )
        return torch.from_numpy(mixed), i


class PlainCifar(Dataset[tuple[Tensor, int]]):
    """Flip, padded crop and PixMix, a sample at a time; all pictures lie in memory."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        mixing_set: list[NDArray[np.uint8]],
        settings: PixMixSettings,
    ) -> None:
        self._images, self._mixing_set, self._settings = images, mixing_set, settings
        self._half = np.full(3, 0.5, np.float32)
        self._generator: Generator = np.random.default_rng(0)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """Return a sample's pixels, (3, 32, 32) float32, and its label."""
        mixed = plain_pixmix(
            self._images[i],
            self._mixing_set,
            self._settings,
            self._generator,
            padding=4,
            mean=self._half,
            std=self._half,
        )
        return torch.from_numpy(mixed), i
