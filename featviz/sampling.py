"""Recipes: the content and style of image i of a set, drawn from a seed and the index alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from featviz.canvas import COLOURS, Canvas, Size, random_generator
from featviz.objectives import Objective, channel, direction, draw_direction

GROUP = 8
"""Consecutive images that share a layer, so that they can be optimized together."""

_SAME_TARGET = 2
"""Attempts at a channel before a direction replaces it."""

_DRAWS, _ORDER, _DIRECTION, _IMAGE = 1, 2, 3, 4
"""Stream numbers in random keys; see ``featviz.canvas.random_generator``."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Parameters of an image, besides the network, the size and the number of steps.

    Attributes:
        seed: Argument of ``draw_recipe``.
        index: Argument of ``draw_recipe``.
        attempt: From 0; a dead image is generated again with the next one.
        layer: Layer whose activations are maximized.
        channel: Channel of it, or None for a random direction, which follows from seed, index and
            attempt.
        decay: Exponent of the spectrum; see ``Canvas``.
        chroma: Factor of the two colour axes.
        hue: Rotation of the colour axes, in degrees.
        tint: Logits of red, green and blue.
        contrast: Factor of all colours.
        scale: Magnification of the patterns.
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
        """Return the recipe written by ``to_json``."""
        return cls(**{**values, "tint": tuple(values["tint"])})


def draw_recipe(seed: int, index: int, layers: Mapping[str, int], *, attempt: int = 0) -> Recipe:
    """Draw the recipe of an image.

    Groups of ``GROUP`` images visit the layers in rounds, each round in its own order. The images
    of a layer visit all its channels in a random order, followed by an unlimited number of random
    directions. A channel that prefers one flat colour yields a dead image at every attempt, so from
    the third attempt on a direction replaces it.

    Args:
        seed: At least 0.
        index: At least 0.
        layers: Names -> numbers of channels, in order.
        attempt: At least 0.
    """
    names = list(layers)
    group, offset = divmod(index, GROUP)
    round_number, position = divmod(group, len(names))
    order = random_generator(_ORDER, seed, 0, round_number).permutation(len(names))
    number = int(order[position])
    layer = names[number]
    # Each layer has one group per round, so this is the image's position among those of its layer.
    nth = round_number * GROUP + offset
    channels = layers[layer]
    chosen = None
    if nth < channels and attempt < _SAME_TARGET:
        chosen = int(random_generator(_ORDER, seed, 1, number).permutation(channels)[nth])
    unit = random_generator(_DRAWS, seed, index, attempt).random(8)
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
    """Draw a colour as logits: a brightness plus a saturated hue."""
    brightness = 1.6 * (2 * unit[0] - 1)
    strength, angle = 1.5 * unit[1], 2 * math.pi * unit[2]
    red, green, blue = (
        _rounded(brightness + strength * math.cos(angle + turn * 2 * math.pi / 3))
        for turn in range(3)
    )
    return red, green, blue


def _rounded(value: float) -> float:
    """Round to four decimals, which JSON keeps exactly."""
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
    """Return the objective of images of one layer, each with its own channel or direction.

    Args:
        recipes: Recipes of one layer.
        channels: Number of channels of the layer.

    Raises:
        ValueError: If the recipes have different layers.
    """
    layers = {recipe.layer for recipe in recipes}
    if len(layers) != 1:
        raise ValueError(
            f"recipes of different layers: {', '.join(sorted(layers))}; pass those of one layer"
        )
    (layer,) = layers
    directions = torch.stack([recipe_direction(recipe, channels) for recipe in recipes])
    has_channel = torch.tensor([float(recipe.channel is not None) for recipe in recipes])
    chosen = [recipe.channel or 0 for recipe in recipes]
    if bool(has_channel.all()):
        return channel(layer, chosen)
    if not bool(has_channel.any()):
        return direction(layer, directions)
    return has_channel * channel(layer, chosen) + (1 - has_channel) * direction(layer, directions)


def recipe_direction(recipe: Recipe, channels: int) -> torch.Tensor:
    """Return the direction that an image maximizes, (channels,) float32 of length 1."""
    if recipe.channel is None:
        key = (_DIRECTION, recipe.seed, recipe.index, recipe.attempt)
        return draw_direction(random_generator(*key), channels)
    return torch.eye(channels)[recipe.channel]
