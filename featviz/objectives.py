"""Objectives: functions of a network's activations, which can be added and scaled.

Olah et al., "Feature Visualization", Distill 2017; lucid, optvis/objectives.py.

An objective receives activations as (B, channels, ...positions), whatever the network's own layout,
and returns one value per image; higher is better. Values of different images are independent,
except for ``diversity``, which compares the images of a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Activations = Mapping[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """A function of activations, and the layers that it reads.

    Objectives can be combined: ``channel("layer3", 5) + 0.1 * channel("layer3", 7)``. A factor is a
    number or a tensor (B,), one per image. ``-objective`` minimizes.
    """

    layers: frozenset[str]
    evaluate: Callable[[Activations], Tensor]

    # Makes numpy defer: an array times an objective is one objective.
    __array_ufunc__ = None

    def __call__(self, activations: Activations) -> Tensor:
        """Return one value per image, (B,) float32."""
        return self.evaluate(activations)

    def __add__(self, other: "Objective") -> "Objective":
        """Add two objectives, image by image."""
        return Objective(
            self.layers | other.layers, lambda activations: self(activations) + other(activations)
        )

    def __mul__(self, factor: float | Tensor | NDArray[Any]) -> "Objective":
        """Scale an objective by a number, or by one number per image, on any device."""

        def evaluate(activations: Activations) -> Tensor:
            values = self(activations)
            return values * torch.as_tensor(factor, dtype=values.dtype, device=values.device)

        return Objective(self.layers, evaluate)

    __rmul__ = __mul__

    def __neg__(self) -> "Objective":
        """Minimize instead of maximize."""
        return -1.0 * self

    def __sub__(self, other: "Objective") -> "Objective":
        """Maximize one objective and minimize the other."""
        return self + -other


def channel(layer: str, channels: int | Sequence[int]) -> Objective:
    """Return the mean activation of a channel over all positions.

    Args:
        layer: Name of the layer.
        channels: One for all images, or one per image.
    """

    def evaluate(activations: Activations) -> Tensor:
        return _select_channels(activations[layer], channels, layer).float().flatten(1).mean(1)

    return Objective(frozenset({layer}), evaluate)


def neuron(layer: str, channels: int | Sequence[int]) -> Objective:
    """Return the activation of a channel at the centre position; for tokens, the middle one.

    Args:
        layer: Name of the layer.
        channels: One for all images, or one per image.
    """

    def evaluate(activations: Activations) -> Tensor:
        chosen = _select_channels(activations[layer], channels, layer).float()
        for _ in range(chosen.ndim - 1):
            chosen = chosen.select(1, chosen.shape[1] // 2)
        return chosen

    return Objective(frozenset({layer}), evaluate)


def direction(layer: str, directions: Tensor, *, cosine_power: float = 2.0) -> Objective:
    """Return the mean of dot * max(cosine, 0.1) ** cosine_power with a direction.

    dot and cosine compare the activations at each position with the direction. The cosine favours
    activations in exactly this direction over merely large ones (lucid, ``direction``).

    Args:
        layer: Name of the layer.
        directions: (channels,) float for all images, or (B, channels), one per image.
        cosine_power: Exponent of the cosine.
    """

    def evaluate(activations: Activations) -> Tensor:
        features = activations[layer].float().flatten(2)
        target = directions.to(features.device, torch.float32)
        if target.shape not in {(features.shape[1],), tuple(features.shape[:2])}:
            raise ValueError(
                f"directions have shape {tuple(directions.shape)}; {layer} has {features.shape[1]} "
                f"channels, and there are {len(features)} images"
            )
        dot = (features * target.expand(len(features), -1)[:, :, None]).sum(1)
        lengths = features.norm(dim=1) * target.expand(len(features), -1).norm(dim=1)[:, None]
        cosine = dot / (lengths + 1e-4)
        favoured: Tensor = dot * cosine.clamp(min=0.1) ** cosine_power
        return favoured.mean(1)

    return Objective(frozenset({layer}), evaluate)


def draw_direction(generator: np.random.Generator, channels: int) -> Tensor:
    """Draw a direction in a layer, uniform on the sphere: (channels,) float32 of length 1."""
    drawn = torch.from_numpy(generator.standard_normal(channels).astype(np.float32))
    return functional.normalize(drawn, dim=0)


def deepdream(layer: str) -> Objective:
    """Return the mean square of all activations of a layer (Mordvintsev et al. 2015)."""

    def evaluate(activations: Activations) -> Tensor:
        return activations[layer].float().flatten(1).square().mean(1)

    return Objective(frozenset({layer}), evaluate)


def diversity(layer: str) -> Objective:
    """Return how much an image's texture differs from those of the other images of the batch.

    Minus the mean cosine between the Gram matrices of their channels (lucid, ``diversity``). This
    is the only objective by which an image depends on its batch; it is 0 for a single image.
    """

    def evaluate(activations: Activations) -> Tensor:
        features = activations[layer].float().flatten(2)
        grams = functional.normalize(
            torch.einsum("bcp,bdp->bcd", features, features).flatten(1), dim=1
        )
        cosines = grams @ grams.T
        others = max(len(grams) - 1, 1)
        return -(cosines.sum(1) - cosines.diagonal()) / others

    return Objective(frozenset({layer}), evaluate)


def _select_channels(activations: Tensor, channels: int | Sequence[int], layer: str) -> Tensor:
    """Return (B, ...positions), the selected channel of each image."""
    n, available = activations.shape[:2]
    each_channel = [channels] * n if isinstance(channels, int | np.integer) else list(channels)
    if len(each_channel) != n:
        raise ValueError(f"{len(each_channel)} channels for {n} images; pass one, or one per image")
    for each in each_channel:
        if not 0 <= each < available:
            raise ValueError(f"channel {each} of {layer} does not exist; use 0 to {available - 1}")
    indices = torch.tensor([int(each) for each in each_channel], device=activations.device)
    return activations[torch.arange(n, device=activations.device), indices]
