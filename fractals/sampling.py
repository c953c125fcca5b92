"""A genome from a seed and an index.

Drafts are drawn until one passes the statistics of its preview. The kernels for it are compiled
before they are needed in parts that may share the work: each function of `pending()` compiles one,
and may run in a process of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fractals import FAMILIES
from fractals.chaos import Game
from fractals.chaos_kernels import play
from fractals.escape import draw_escape, render_escape
from fractals.escape_kernels import paint_features
from fractals.genome import BLENDS, KINDS, Genome, Layer, game_key, grade, paint, random_key
from fractals.image_kernels import correlation, ring_sums, to_bytes
from fractals.numerics import Draws
from fractals.palettes import draw_background, draw_palette, palette_table
from fractals.statistics import coherence, measure, preview_statistics, reliability
from fractals.systems import PREVIEW_SIZE, quantile, rounded
from pixmix.compiling import is_kept

PREVIEW_SAMPLES = 24
MOST_DRAFTS = 1000
"""One draft in three is kept; a thousand in a row have never been dull."""
_LIGHT_GROUND = 0.65
"""OKLab lightness above which a ground takes dark ink as well as light."""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """What the preview of a draft must reach.

    Each field is the least value of the statistic so named.

    Set so that images at 256x256 meet the medians and 10th percentiles of flames chosen by
    people; preview and image agree with a correlation of .85 to .95. `most_edges`: above it a
    image is dust.
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


def draw_genome(seed: int, index: int, family: str = "mixed") -> Genome:
    """Return image `index` of a set.

    The first draft that passes, a pure function of the arguments.

    seed, index: integers >= 0. family: one of `FAMILIES`. `genome.attempt` says how many drafts
    were rejected before.

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


class Draft(NamedTuple):
    """A genome that nobody has looked at. Games: spread, by number of the layer they exposed."""

    genome: Genome
    games: dict[int, Game]


def draft(seed: int, index: int, family: str, attempt: int) -> Draft | None:
    """Draw a genome, good or dull; None if a layer of it has nothing to show.

    A pure function of its arguments.
    """
    draws = Draws(*random_key(family, seed, index, attempt))
    palette = draw_palette(draws)
    background = draw_background(draws, palette)
    plans, templates = FAMILIES[family]
    plan = [KINDS[name] for name in draws.weighted(list(plans), list(plans.values()))]
    samples = PREVIEW_SAMPLES / max(1, sum(not kind.covers for kind in plan))
    layers: list[Layer] = []
    games: dict[int, Game] = {}
    for number, kind in enumerate(plan):
        drawn = kind.draw(draws, templates, samples, game_key(family, seed, index, attempt, number))
        if drawn is None:
            return None
        fractal, game = drawn
        if game is not None:
            games[number] = game
        blend = "over"
        if not kind.covers:
            light = not layers and background.stops[0][0] > _LIGHT_GROUND
            blend = draws.weighted(BLENDS, (3, 0, 0, 2) if light else (3, 3, 1, 0))
        layers.append(Layer(fractal=fractal, palette=palette, blend=blend))
        if kind.covers or draws.chance(0.4):
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
        black=rounded(max(0.0, quantile(values, 0.02) - 0.02)),
        white=rounded(min(1.0, max(quantile(values, 0.98), 0.1))),
    )


def preview(genome: Genome, stream: int) -> NDArray[np.uint8]:
    """Return a genome's image at 64x64, of one of several independent games.

    (64, 64, 3) uint8.
    """
    return grade(genome, paint(genome, PREVIEW_SIZE, PREVIEW_SIZE, PREVIEW_SAMPLES, stream=stream))


def faults(genome: Genome, image: NDArray[np.uint8]) -> list[str]:
    """Return the statistics in which a preview misses `BARS`, in their order; empty: keep it.

    image: `preview(genome, 0)`. The second game, for reliability, is played only if all else
    passes.
    """
    measured = preview_statistics(image)
    missed = [name for name in _MEASURED if getattr(measured, name) < getattr(BARS, name)]
    if measured.edge_density > BARS.most_edges:
        missed.append("most_edges")
    if coherence(image) < BARS.coherence:
        missed.append("coherence")
    if not missed and reliability(image, preview(genome, 1)) < BARS.reliability:
        missed.append("reliability")
    return missed


_SIZE = 64


def compile_systems() -> None:
    """Compile what draws and renders systems of maps, and what is laid over a ground."""
    drafts = (draft(0, index, "flame", 0) for index in range(1000))
    genome = next(each.genome for each in drafts if each is not None)
    grade(genome, paint(genome, _SIZE, _SIZE, 1.0))


def compile_grounds() -> None:
    """Compile what draws and renders escape-time layers."""
    draws = Draws(0)
    table = palette_table(draw_palette(draws))
    render_escape(draw_escape(draws), table, (_SIZE, _SIZE), 1.0)


def compile_statistics() -> None:
    """Compile what measures images."""
    # Of some variety, for a flat image is not measured in all ways.
    values = np.arange(_SIZE * _SIZE * 3) ** 2 // 50 % 251
    image = values.astype(np.uint8).reshape(_SIZE, _SIZE, 3)
    preview_statistics(image)
    coherence(image)
    measure(image)
    reliability(image, image)


_LAST_KERNELS: dict[Callable[[], None], tuple[Any, ...]] = {
    compile_systems: (play, to_bytes),
    compile_grounds: (paint_features,),
    compile_statistics: (ring_sums, correlation),
}
"""By which it is seen that a part has been compiled."""


def pending() -> list[Callable[[], None]]:
    """Return the parts that have not been compiled on this machine."""
    return _missing(*_LAST_KERNELS)


def pending_for_baselines() -> list[Callable[[], None]]:
    """Return the parts that baselines need and that have not been compiled on this machine."""
    return _missing(compile_statistics)


def _missing(*parts: Callable[[], None]) -> list[Callable[[], None]]:
    return [part for part in parts if not all(map(is_kept, _LAST_KERNELS[part]))]
