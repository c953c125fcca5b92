"""Genome -> picture."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fractals.elementary import F
from fractals.escape import render_escape
from fractals.genome import FAMILIES, GENOME_VERSION, ChaosLayer, Family, Genome
from fractals.kernels import Game, accumulate
from fractals.palettes import ENTRIES, palette_table
from fractals.tone import BLEND_NUMBERS, develop, estimate_density, lay_over, shade_ground, to_bytes

SMALLEST, LARGEST = 16, 16384
_GAME = 1
"""The stage of a picture's random key that its chaos games draw from."""


def render(
    genome: Genome, size: int | tuple[int, int] = 256, samples_per_pixel: float = 50
) -> NDArray[np.uint8]:
    """Return the picture of a genome, the same on every machine.

    size: side in pixels, or (height, width), each in 16..16384; the window's shorter side is the
    genome's, so a larger picture shows the same in more detail, and a wider one more at the sides.
    samples_per_pixel: chaos-game points played a pixel, shared by the layers; > 0. Escape layers
    turn it into sub-samples a pixel. Returns (H, W, 3) uint8, display RGB.

    Raises:
        ValueError: a size or a quality outside these ranges.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if not (SMALLEST <= height <= LARGEST and SMALLEST <= width <= LARGEST):
        raise ValueError(
            f"size {height}x{width}: each side must lie in {SMALLEST}..{LARGEST} pixels; "
            "use 256 for a mixing set"
        )
    if not 0 < samples_per_pixel < float("inf"):
        raise ValueError(
            f"samples_per_pixel {samples_per_pixel}: must be above 0; use 50 for a mixing set"
        )
    return grade(genome, paint(genome, height, width, samples_per_pixel))


def game_key(
    family: Family, seed: int, index: int, attempt: int, number: int, stream: int = 0
) -> tuple[int, ...]:
    """Return the random key of the game that layer `number` of a draft is played with.

    stream: which of many independent games, 0 for the picture itself.
    """
    return GENOME_VERSION, FAMILIES.index(family), seed, index, attempt, number, _GAME, stream


def paint(
    genome: Genome,
    height: int,
    width: int,
    samples_per_pixel: float,
    *,
    stream: int = 0,
    games: Mapping[int, Game] | None = None,
) -> NDArray[np.float32]:
    """Return all layers laid on the ground, before `grade`.

    height, width: pixels; samples_per_pixel: as for `render`. stream: as for `game_key`. games: of
    the layers of these numbers, already played with the same size, quality and key, and spread.
    Returns (H, W, 3) float32 display values in [0, 1].
    """
    picture = np.empty((height, width, 3), np.float32)
    ground = palette_table(genome.background)
    shade_ground(ground[0], ground[ENTRIES // 2], picture)
    systems = sum(isinstance(layer.fractal, ChaosLayer) for layer in genome.layers)
    for number, layer in enumerate(genome.layers):
        table = palette_table(layer.palette)
        if isinstance(layer.fractal, ChaosLayer):
            game = games.get(number) if games else None
            if game is None:
                key = game_key(
                    genome.family, genome.seed, genome.index, genome.attempt, number, stream
                )
                game = accumulate(layer.fractal, height, width, samples_per_pixel / systems, *key)
                spread = estimate_density(game.points, game.colours, layer.fractal.tone.softness)
                game = Game(*spread, game.played)
            light, cover = develop(*game, layer.fractal.tone, table)
        else:
            picked = render_escape(layer.fractal, table, (height, width), samples_per_pixel)
            light = np.ascontiguousarray(picked.transpose(2, 0, 1))
            cover = np.ones((height, width), np.float32)
        lay_over(
            picture.reshape(-1, 3), light.reshape(3, -1), cover.reshape(-1),
            BLEND_NUMBERS[layer.blend], F(layer.opacity),
        )  # fmt: skip
    return picture


def grade(genome: Genome, picture: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Stretch a painted picture, (H, W, 3) float32, from the genome's black and white to (H, W.

    3) uint8.
    """
    out = np.empty(picture.shape, np.uint8)
    to_bytes(picture.reshape(-1), F(genome.black), F(genome.white), out.reshape(-1))
    return out
