"""Genome -> picture."""

import numpy as np
from numpy.typing import NDArray

from fractals.escape import render_escape
from fractals.genome import FAMILIES, ChaosLayer, Genome
from fractals.kernels import accumulate
from fractals.elementary import F
from fractals.palettes import ENTRIES, palette_table
from fractals.tone import BLEND_NUMBERS, develop, lay_over, shade_ground, to_bytes

SMALLEST, LARGEST = 16, 16384
_GAME = 1
"""The stage of a picture's random key that its chaos games draw from."""


def render(genome: Genome, size: int | tuple[int, int] = 256, samples_per_pixel: float = 50) -> NDArray[np.uint8]:
    """Return the picture of a genome, the same on every machine.

    size: side in pixels, or (height, width), each in 16..16384; the window's shorter side is the genome's,
    so a larger picture shows the same in more detail, and a wider one more at the sides.
    samples_per_pixel: chaos-game points played a pixel, shared by the layers; > 0. Escape layers turn it
    into sub-samples a pixel.
    Returns (H, W, 3) uint8, display RGB.

    Raises:
        ValueError: a size or a quality outside these ranges.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if not (SMALLEST <= height <= LARGEST and SMALLEST <= width <= LARGEST):
        raise ValueError(
            f"size {height}x{width}: each side must lie in {SMALLEST}..{LARGEST} pixels; use 256 for a mixing set"
        )
    if not 0 < samples_per_pixel < float("inf"):
        raise ValueError(f"samples_per_pixel {samples_per_pixel}: must be above 0; use 50 for a mixing set")
    return grade(genome, paint(genome, height, width, samples_per_pixel))


def paint(
    genome: Genome, height: int, width: int, samples_per_pixel: float, stream: int = 0
) -> NDArray[np.float32]:
    """Return all layers laid on the ground, before `grade`.

    height, width: pixels; samples_per_pixel: as for `render`. stream: which of many independent games is
    played, 0 for the picture itself. Returns (H, W, 3) float32 display values in [0, 1].
    """
    picture = np.empty((height, width, 3), np.float32)
    ground = palette_table(genome.background)
    shade_ground(ground[0], ground[ENTRIES // 2], picture)
    family = FAMILIES.index(genome.family)
    games = sum(isinstance(layer.fractal, ChaosLayer) for layer in genome.layers)
    for number, layer in enumerate(genome.layers):
        table = palette_table(layer.palette)
        if isinstance(layer.fractal, ChaosLayer):
            key = (genome.version, family, genome.seed, genome.index, genome.attempt, number, _GAME, stream)
            points, colours, played = accumulate(layer.fractal, height, width, samples_per_pixel / games, *key)
            light, cover = develop(points, colours, played, layer.fractal.tone, table)
        else:
            light = render_escape(layer.fractal, table, (height, width), samples_per_pixel)
            cover = np.ones((height, width), np.float32)
        lay_over(
            picture.reshape(-1, 3), light.reshape(-1, 3), cover.reshape(-1),
            BLEND_NUMBERS[layer.blend], F(layer.opacity),
        )  # fmt: skip
    return picture


def grade(genome: Genome, picture: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Stretch a painted picture, (H, W, 3) float32, from the genome's black and white to (H, W, 3) uint8."""
    out = np.empty(picture.shape, np.uint8)
    to_bytes(picture.reshape(-1), F(genome.black), F(genome.white), out.reshape(-1))
    return out
