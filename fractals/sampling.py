"""A genome from a seed and an index.

Drafts are drawn until one passes the statistics of its preview.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fractals.escape_places import draw_escape
from fractals.genome import (
    BLENDS,
    FAMILIES,
    GENOME_VERSION,
    Camera,
    ChaosLayer,
    Family,
    Fold,
    Genome,
    Layer,
    Tone,
)
from fractals.kernels import Game, Program, compile_layer, play_program, sample_points
from fractals.palettes import draw_background, draw_palette
from fractals.random import Draws
from fractals.render import game_key, grade, paint
from fractals.statistics import coherence, preview_statistics, reliability
from fractals.systems import ANY_TONE, TEMPLATES, rounded
from fractals.tone import estimate_density

PREVIEW_SIZE = 64
PREVIEW_SAMPLES = 24
MOST_DRAFTS = 1000
"""One draft in three is kept; a thousand in a row have never been dull."""
_FRAMING = 1
_FRAME_STEPS = 1

_FLAMES = {"mixture": 5.0, "inversion": 4.0, "roots": 3.0, "bent_ifs": 2.0, "rosette": 3.0}
_WEIGHTS: dict[Family, dict[str, float]] = {
    "mixed": _FLAMES | {"ifs": 1.0},
    "flame": _FLAMES,
    "ifs": {"ifs": 1.0},
}
_PLANS: dict[Family, dict[tuple[int, int], float]] = {
    "mixed": {(0, 1): 0.5, (0, 2): 0.22, (1, 0): 0.15, (1, 1): 0.1, (1, 2): 0.03},
    "flame": {(0, 1): 0.65, (0, 2): 0.35},
    "ifs": {(0, 1): 0.7, (0, 2): 0.3},
    "escape": {(1, 0): 1.0},
}
"""What a picture is made of: escape-time layers below, systems above, and how often so."""
_LIGHT_GROUND = 0.65
"""OKLab lightness above which a ground takes dark ink as well as light."""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """What the preview of a draft must reach.

    Each field is the least value of the statistic so named.

    Set so that pictures at 256x256 meet the medians and 10th percentiles of flames chosen by
    people; preview and picture agree with a correlation of .85 to .95. `most_edges`: above it a
    picture is dust.
    """

    coverage: float = 0.9
    edge_density: float = 0.3
    textured_blocks: float = 0.6
    edges_at_32: float = 0.55
    luma_std_at_32: float = 0.11
    rgb_entropy: float = 3.4
    colourfulness: float = 30.0
    coherence: float = 0.52
    reliability: float = 0.82
    most_edges: float = 0.88


BARS = Bars()
_MEASURED = tuple(
    field.name
    for field in fields(Bars)
    if field.name not in ("coherence", "reliability", "most_edges")
)


def frame(program: Program, symmetric: bool, draws: Draws, key: tuple[int, ...]) -> Camera | None:
    """Place a camera where the points are; None if the attractor is a point or has no bounds.

    Between 35 and 92 % of the points come to lie in the window, so that it is filled and few are
    wasted. symmetric: the system has a centre, worth looking at. key: integers of the game's random
    stream.
    """
    x, y = sample_points(program, _FRAME_STEPS, *key)
    good = np.maximum(np.abs(x), np.abs(y)) < 1e3
    n_good = np.count_nonzero(good)
    if n_good < 0.9 * len(x):
        return None
    if n_good < len(x):
        x, y = x[good], y[good]
    if symmetric and draws.chance(0.7):
        centre_x, centre_y = 0.0, 0.0
    else:
        pick, pull = int(draws.unit() * len(x)), draws.uniform(0.0, 0.7)
        middle_x, middle_y = _quantile(x, 0.5), _quantile(y, 0.5)
        centre_x = middle_x + pull * (float(x[pick]) - middle_x)
        centre_y = middle_y + pull * (float(y[pick]) - middle_y)
    reach = np.maximum(np.abs(x - np.float32(centre_x)), np.abs(y - np.float32(centre_y)))
    half = _quantile(reach, draws.uniform(0.35, 0.92))
    if not 1e-3 < half < 50:
        return None
    folds: tuple[Fold, ...] = ("none", "mirror", "wrap")
    fold = draws.weighted(folds, (0.8, 0.17, 0.03))
    angle = draws.uniform(-math.pi, math.pi)
    return Camera(
        centre=(rounded(centre_x), rounded(centre_y)),
        width=rounded(2 * half),
        rotation=0.0 if fold != "none" or draws.chance(0.5) else rounded(angle),
        fold=fold,
    )


def _quantile(values: NDArray[np.float32], share: float) -> float:
    """Return the value that `share` of them do not exceed.

    One of the values, never a mean of two.
    """
    place = int(share * (len(values) - 1))
    return float(np.partition(values, place)[place])


def expose(game: Game, draws: Draws) -> Tone | None:
    """Set light and colour by a small first game, already spread.

    None if next to nothing lies in the window.

    2 to 15 % of the window are at full light; the colours seen span 0.35 to 1.1 turns of the
    palette.
    """
    points, colours = game.points.ravel(), game.colours.ravel()
    bright = _quantile(points, 1 - draws.uniform(0.02, 0.15))
    density = bright * PREVIEW_SIZE**2 / game.played
    if density < 0.02:
        return None
    lit = points > np.float32(0.2 * bright)
    seen = colours[lit] / points[lit]
    span = max(_quantile(seen, 0.95) - _quantile(seen, 0.05), 0.01)
    return Tone(
        # A wider stretch than 2.5 would show the sampling noise of nearly equal colours as
        # blotches.
        colour_start=rounded(draws.unit()),
        colour_stretch=rounded(min(draws.uniform(0.35, 1.1) / span, 2.5)),
        exposure=float(f"{density:.4g}"),
        contrast=float(f"{10 ** draws.uniform(0.3, 2.0) / density:.4g}"),
        gamma=rounded(draws.uniform(0.55, 1.0)),
        vibrancy=rounded(draws.uniform(0.6, 1.0)),
    )


def draw_chaos(
    draws: Draws, weights: dict[str, float], samples_per_pixel: float, key: tuple[int, ...]
) -> tuple[ChaosLayer, Game] | None:
    """Draw a system of one of the templates, framed and exposed; None if it has nothing to show.

    weights: relative frequency of each of `TEMPLATES`. samples_per_pixel: of the game that it is
    exposed by, at PREVIEW_SIZE. key: integers of that game's random stream.
    """
    template = draws.weighted(list(weights), list(weights.values()))
    layer = TEMPLATES[template](draws)
    program = compile_layer(layer)
    symmetric = template == "rosette" or (abs(layer.symmetry) > 1 and layer.final is None)
    camera = frame(program, symmetric, draws, (*key, _FRAMING))
    if camera is None:
        return None
    game = play_program(program, camera, PREVIEW_SIZE, PREVIEW_SIZE, samples_per_pixel, *key)
    game = Game(*estimate_density(game.points, game.colours, ANY_TONE.softness), game.played)
    tone = expose(game, draws)
    return None if tone is None else (replace(layer, camera=camera, tone=tone), game)


class Draft(NamedTuple):
    """A genome that nobody has looked at. Games: spread, by number of the layer they exposed."""

    genome: Genome
    games: dict[int, Game]


def draft(seed: int, index: int, family: Family, attempt: int) -> Draft | None:
    """Draw a genome, good or dull; None if a system of it has nothing to show.

    A pure function of its arguments.
    """
    draws = Draws(GENOME_VERSION, FAMILIES.index(family), seed, index, attempt)
    palette = draw_palette(draws)
    background = draw_background(draws, palette)
    plans = _PLANS[family]
    grounds, systems = draws.weighted(list(plans), list(plans.values()))
    layers: list[Layer] = []
    games: dict[int, Game] = {}
    for _ in range(grounds):
        layers.append(Layer(fractal=draw_escape(draws), palette=palette))
        palette = draw_palette(draws)
    for _ in range(systems):
        key = game_key(family, seed, index, attempt, len(layers))
        drawn = draw_chaos(draws, _WEIGHTS[family], PREVIEW_SAMPLES / systems, key)
        if drawn is None:
            return None
        fractal, games[len(layers)] = drawn
        light = not layers and background.stops[0][0] > _LIGHT_GROUND
        blend = draws.weighted(BLENDS, (3, 0, 0, 2) if light else (3, 3, 1, 0))
        layers.append(Layer(fractal=fractal, palette=palette, blend=blend))
        if draws.chance(0.4):
            palette = draw_palette(draws)
    genome = Genome(
        family=family,
        seed=seed,
        index=index,
        attempt=attempt,
        background=background,
        layers=tuple(layers),
    )
    return Draft(genome, games)


def stretched(genome: Genome, painted: NDArray[np.float32]) -> Genome:
    """Return the genome with black and white at the ends of what a preview uses, 2 % left out.

    painted: (H, W, 3) float32 of `paint`.
    """
    values = painted.reshape(-1)
    return replace(
        genome,
        black=rounded(max(0.0, _quantile(values, 0.02) - 0.02)),
        white=rounded(min(1.0, max(_quantile(values, 0.98), 0.1))),
    )


def preview(genome: Genome, stream: int) -> NDArray[np.uint8]:
    """Return a genome's picture at 64x64, of one of several independent games.

    (64, 64, 3) uint8.
    """
    return grade(genome, paint(genome, PREVIEW_SIZE, PREVIEW_SIZE, PREVIEW_SAMPLES, stream=stream))


def faults(genome: Genome, picture: NDArray[np.uint8]) -> list[str]:
    """Return the statistics in which a preview misses `BARS`, in their order; empty: keep it.

    picture: `preview(genome, 0)`. The second game, for reliability, is played only if all else
    passes.
    """
    measured = preview_statistics(picture)
    missed = [name for name in _MEASURED if getattr(measured, name) < getattr(BARS, name)]
    if measured.edge_density > BARS.most_edges:
        missed.append("most_edges")
    if coherence(picture) < BARS.coherence:
        missed.append("coherence")
    if not missed and reliability(picture, preview(genome, 1)) < BARS.reliability:
        missed.append("reliability")
    return missed


def draw_genome(seed: int, index: int, family: Family = "mixed") -> Genome:
    """Return picture `index` of a set.

    The first draft that passes, a pure function of the arguments.

    seed, index: integers >= 0. family: "mixed", "flame", "ifs" or "escape". `genome.attempt` says
    how many drafts were rejected before.

    Raises:
        ValueError: a negative seed or index, or an unknown family.
        RuntimeError: a thousand drafts in a row were dull.
    """
    for name, value in (("seed", seed), ("index", index)):
        if value < 0:
            raise ValueError(f"{name} {value}: must not be negative; count from 0")
    if family not in FAMILIES:
        raise ValueError(f"{family!r}: is no family; use one of {', '.join(FAMILIES)}")
    for attempt in range(MOST_DRAFTS):
        drawn = draft(seed, index, family, attempt)
        if drawn is None:
            continue
        painted = paint(
            drawn.genome, PREVIEW_SIZE, PREVIEW_SIZE, PREVIEW_SAMPLES, games=drawn.games
        )
        genome = stretched(drawn.genome, painted)
        if not faults(genome, grade(genome, painted)):
            return genome
    raise RuntimeError(
        f"seed {seed}, index {index}, family {family}: {MOST_DRAFTS} drafts in a row were dull; "
        "use another seed"
    )
