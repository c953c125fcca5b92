"""What an image is to excite, as functions of a network's activations that add and scale.

Olah et al., "Feature Visualization", Distill 2017; lucid, optvis/objectives.py.

An objective sees activations as (B, channels, *positions), whatever the network's own layout, and
gives a value an image, the higher the better. Values of different images are never mixed, but
for `diversity`, which is about a group.
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

    Objectives add: `channel("layer3", 5) + 0.1 * channel("layer3", 7)`. A factor is a number or a
    tensor (B,), one for each image. `-objective` turns one round.
    """

    layers: frozenset[str]
    evaluate: Callable[[Activations], Tensor]

    # An array times an objective is an objective, not an array of them.
    __array_ufunc__ = None

    def __call__(self, activations: Activations) -> Tensor:
        """Return a value an image, (B,) float32."""
        return self.evaluate(activations)

    def __add__(self, other: "Objective") -> "Objective":
        """Sum two objectives, image by image."""
        return Objective(self.layers | other.layers, lambda seen: self(seen) + other(seen))

    def __mul__(self, factor: float | Tensor | NDArray[Any]) -> "Objective":
        """Scale an objective by a number, or by one for each image, on any device."""

        def evaluate(activations: Activations) -> Tensor:
            values = self(activations)
            return values * torch.as_tensor(factor, dtype=values.dtype, device=values.device)

        return Objective(self.layers, evaluate)

    __rmul__ = __mul__

    def __neg__(self) -> "Objective":
        """Look for what excites least."""
        return -1.0 * self

    def __sub__(self, other: "Objective") -> "Objective":
        """Look for what excites one and not the other."""
        return self + -other


def channel(layer: str, channels: int | Sequence[int]) -> Objective:
    """Mean activation of a channel over all positions.

    channels: one for all images, or one for each.
    """

    def evaluate(activations: Activations) -> Tensor:
        return _chosen(activations[layer], channels, layer).float().flatten(1).mean(1)

    return Objective(frozenset({layer}), evaluate)


def neuron(layer: str, channels: int | Sequence[int]) -> Objective:
    """Activation of a channel at the middle position; of tokens, the middle one of their row.

    channels: one for all images, or one for each.
    """

    def evaluate(activations: Activations) -> Tensor:
        chosen = _chosen(activations[layer], channels, layer).float()
        for _ in range(chosen.ndim - 1):
            chosen = chosen.select(1, chosen.shape[1] // 2)
        return chosen

    return Objective(frozenset({layer}), evaluate)


def direction(layer: str, directions: Tensor, *, cosine_power: float = 2.0) -> Objective:
    """Mean of dot * max(cosine, 0.1) ** cosine_power between activations and a direction.

    The cosine favours activations that go this way alone over such as are merely strong (lucid,
    `direction`).

    directions: (channels,) float for all images, or (B, channels), one for each.
    """

    def evaluate(activations: Activations) -> Tensor:
        seen = activations[layer].float().flatten(2)
        towards = directions.to(seen.device, torch.float32)
        if towards.shape not in {(seen.shape[1],), tuple(seen.shape[:2])}:
            raise ValueError(
                f"directions have shape {tuple(directions.shape)}; {layer} has {seen.shape[1]} "
                f"channels, and there are {len(seen)} images"
            )
        dot = (seen * towards.expand(len(seen), -1)[:, :, None]).sum(1)
        lengths = seen.norm(dim=1) * towards.expand(len(seen), -1).norm(dim=1)[:, None]
        cosine = dot / (lengths + 1e-4)
        favoured: Tensor = dot * cosine.clamp(min=0.1) ** cosine_power
        return favoured.mean(1)

    return Objective(frozenset({layer}), evaluate)


def draw_direction(generator: np.random.Generator, channels: int) -> Tensor:
    """Draw a direction in a layer, uniform on the sphere; their number has no end.

    Returns (channels,) float32 of length 1.
    """
    drawn = torch.from_numpy(generator.standard_normal(channels).astype(np.float32))
    return functional.normalize(drawn, dim=0)


def deepdream(layer: str) -> Objective:
    """Mean square of all activations of a layer (Mordvintsev et al. 2015)."""

    def evaluate(activations: Activations) -> Tensor:
        return activations[layer].float().flatten(1).square().mean(1)

    return Objective(frozenset({layer}), evaluate)


def diversity(layer: str) -> Objective:
    """How unlike the textures of the other images of the batch an image's are.

    Minus the mean cosine between its Gram matrix of channels and theirs (lucid, `diversity`); the
    one objective by which an image depends on its batch. 0 for an image alone.
    """

    def evaluate(activations: Activations) -> Tensor:
        seen = activations[layer].float().flatten(2)
        grams = functional.normalize(torch.einsum("bcp,bdp->bcd", seen, seen).flatten(1), dim=1)
        cosines = grams @ grams.T
        others = max(len(grams) - 1, 1)
        return -(cosines.sum(1) - cosines.diagonal()) / others

    return Objective(frozenset({layer}), evaluate)


def _chosen(activations: Tensor, channels: int | Sequence[int], layer: str) -> Tensor:
    """Return (B, *positions), the channel of each image."""
    n, available = activations.shape[:2]
    wanted = [channels] * n if isinstance(channels, int | np.integer) else list(channels)
    if len(wanted) != n:
        raise ValueError(f"{len(wanted)} channels for {n} images; give one, or one for each")
    for each in wanted:
        if not 0 <= each < available:
            raise ValueError(f"channel {each} of {layer}; give 0 to {available - 1}")
    places = torch.tensor([int(each) for each in wanted], device=activations.device)
    return activations[torch.arange(n, device=activations.device), places]
