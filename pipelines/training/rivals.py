"""Other augmentations in PixMix's place, so that a comparison is one option away."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from pipelines.loading.preparation import Triple


def seed_of(*key: int) -> int:
    """Return a seed for torch of a key of whole numbers, 0 or more; others for other keys."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


class RivalAugment:
    """Applies an augmentation of torchvision to each picture of a batch, then normalizes.

    What is drawn for a picture depends on (seed, step, place in the global batch) alone.
    """

    def __init__(
        self, kind: Literal["augmix", "trivialaugment"], mean: Triple, std: Triple
    ) -> None:
        # The severity is the default of each source.
        self._augment = v2.AugMix() if kind == "augmix" else v2.TrivialAugmentWide()
        self._mean = torch.tensor(mean).view(3, 1, 1)
        self._std = torch.tensor(std).view(3, 1, 1)

    def __call__(
        self, images: Tensor, *, seed: int, step: int, first: int, views: int | None = None
    ) -> Tensor:
        """Augment.

        images: (B, 3, H, W) float32 in 0..1; first: the place of the first of them.
        views: None for one of each; or how many, of which the first is the picture as it is.
        Returns (B, 3, H, W) float32, normalized, or (B, views, 3, H, W).
        """
        pictures = (images * 255).round().to(torch.uint8)
        if views is None:
            augmented = self._augmented(pictures, seed, step, first, 0)
        else:
            others = [
                self._augmented(pictures, seed, step, first, view) for view in range(1, views)
            ]
            augmented = torch.stack([pictures, *others], 1)
        return (augmented.float() / 255 - self._mean) / self._std

    def _augmented(self, pictures: Tensor, seed: int, step: int, first: int, view: int) -> Tensor:
        augmented = []
        with torch.random.fork_rng(devices=[]):
            for place, picture in enumerate(pictures):
                torch.manual_seed(seed_of(seed, step, first + place, view))
                augmented.append(self._augment(picture))
        return torch.stack(augmented)
