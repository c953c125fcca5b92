"""What image i of a set shows, and its look: drawn from a seed and its number alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from featviz.canvas import COLOURS, Canvas, Size, generator
from featviz.objectives import Objective, channel, direction, draw_direction

GROUP = 8
"""Images in a row that share a layer, so that they may be optimized together."""

_SAME_TARGET = 2
"""Attempts at a channel before a direction is taken in its place."""

_DRAWS, _ORDER, _DIRECTION, _IMAGE = 1, 2, 3, 4
"""Streams of random numbers; see `featviz.canvas.generator`."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that makes an image, besides the network, the size and the number of steps.

    layer: whose activations count. channel: of it, or None for a random direction, which follows
    from seed, index and attempt. attempt: from 0; a dead image is tried again with another.
    decay, chroma, hue, tint, contrast: its look; see `canvas`.
    """

    seed: int
    index: int
    attempt: int
    layer: str
    channel: int | None
    decay: float
    chroma: float
    hue: float
    tint: tuple[float, float, float]
    contrast: float
    scale: float

    @property
    def key(self) -> tuple[int, ...]:
        """Return the key of the image's own random numbers."""
        return (_IMAGE, self.seed, self.index, self.attempt)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "tint": list(self.tint)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the recipe that `to_json` wrote."""
        return cls(**{**values, "tint": tuple(values["tint"])})


def draw_recipe(seed: int, index: int, layers: Mapping[str, int], *, attempt: int = 0) -> Recipe:
    """Draw the recipe of an image.

    Groups of `GROUP` images go through the layers in rounds, each round in an order of its own.
    The images of a layer go through all its channels, in a random order, and then on through
    random directions without end. A channel that wants one flat colour gives a dead image at any
    attempt: from the third on, a direction is taken instead.

    seed, index, attempt: 0 or more. layers: their names and numbers of channels, in order.
    """
    names = list(layers)
    group, place = divmod(index, GROUP)
    turn, position = divmod(group, len(names))
    order = generator(_ORDER, seed, 0, turn).permutation(len(names))
    number = int(order[position])
    layer = names[number]
    # Each layer has one group a round, so this is the image's place among those of its layer.
    nth = turn * GROUP + place
    channels = layers[layer]
    chosen = None
    if nth < channels and attempt < _SAME_TARGET:
        chosen = int(generator(_ORDER, seed, 1, number).permutation(channels)[nth])
    unit = generator(_DRAWS, seed, index, attempt).random(8)
    return Recipe(
        seed=seed,
        index=index,
        attempt=attempt,
        layer=layer,
        channel=chosen,
        decay=_rounded(0.8 + 0.6 * unit[0]),
        chroma=_rounded(0.8 * 4.0 ** unit[1]),
        hue=_rounded(360 * unit[2]),
        tint=_draw_tint(unit[3:6]),
        contrast=_rounded(0.8 * 2.0 ** unit[6]),
        scale=_rounded(0.8 * 2.0 ** unit[7]),
    )


def _draw_tint(unit: NDArray[np.float64]) -> tuple[float, float, float]:
    """Draw a colour as logits: a brightness, and a saturated hue that is added to it."""
    brightness = 1.6 * (2 * unit[0] - 1)
    strength, angle = 1.5 * unit[1], 2 * math.pi * unit[2]
    red, green, blue = (
        _rounded(brightness + strength * math.cos(angle + turn * 2 * math.pi / 3))
        for turn in range(3)
    )
    return red, green, blue


def _rounded(value: float) -> float:
    """Return a float that is written in a few digits, and read back as itself."""
    return round(float(value), 4)


def recipe_canvas(recipes: Sequence[Recipe], size: Size, device: torch.device) -> Canvas:
    """Return the canvas of images: each with its own decay, colours and tint."""
    colours = []
    for recipe in recipes:
        turn = math.radians(recipe.hue)
        cos, sin = math.cos(turn), math.sin(turn)
        hue = torch.tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        spread = torch.diag(torch.tensor([1.0, recipe.chroma, recipe.chroma]))
        colours.append(recipe.contrast * COLOURS @ spread @ hue)
    return Canvas(
        size=size,
        decay=torch.tensor([recipe.decay for recipe in recipes], device=device),
        colours=torch.stack(colours).to(device),
        tint=torch.tensor([recipe.tint for recipe in recipes], device=device),
    )


def recipe_objective(recipes: Sequence[Recipe], channels: int) -> Objective:
    """Return the objective of images of one layer: each its own channel or direction.

    channels: of the layer.

    Raises:
        ValueError: if the recipes have different layers.
    """
    layers = {recipe.layer for recipe in recipes}
    if len(layers) != 1:
        raise ValueError(f"recipes of the layers {', '.join(sorted(layers))}; give those of one")
    (layer,) = layers
    along = torch.stack([recipe_direction(recipe, channels) for recipe in recipes])
    named = torch.tensor([float(recipe.channel is not None) for recipe in recipes])
    chosen = [recipe.channel or 0 for recipe in recipes]
    if bool(named.all()):
        return channel(layer, chosen)
    if not bool(named.any()):
        return direction(layer, along)
    return named * channel(layer, chosen) + (1 - named) * direction(layer, along)


def recipe_direction(recipe: Recipe, channels: int) -> torch.Tensor:
    """Return the direction in the layer that an image is to go, (channels,) float32, length 1."""
    if recipe.channel is None:
        key = (_DIRECTION, recipe.seed, recipe.index, recipe.attempt)
        return draw_direction(generator(*key), channels)
    return torch.eye(channels)[recipe.channel]
