"""Draw a genome from a seed and an index.

Drafts are drawn until the preview of one passes the thresholds. The required kernels can be
compiled beforehand: each function of ``pending`` compiles some of them, and may run in a process of
its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fractals import FAMILIES
from fractals.chaos import Histogram
from fractals.chaos_kernels import play
from fractals.escape import draw_escape, render_escape
from fractals.escape_kernels import shade_features
from fractals.genome import (
    BLENDS,
    LAYER_KINDS,
    Genome,
    Layer,
    apply_levels,
    composite,
    game_key,
    random_key,
)
from fractals.image_kernels import correlation, ring_sums, to_bytes
from fractals.numerics import Draws
from fractals.palettes import draw_background, draw_palette, palette_table
from fractals.statistics import coherence, measure, preview_statistics, reliability
from fractals.systems import PREVIEW_SIZE, quantile, rounded
from pixmix.compiling import is_cached

PREVIEW_SAMPLES = 24
MAX_DRAFTS = 1000
"""One draft in three is accepted; a thousand rejections in a row have never occurred."""
_LIGHT_BACKGROUND = 0.65
"""OKLab lightness of a background above which a layer may also darken it."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Acceptance thresholds of a draft's preview.

    Each field is the minimum of the statistic of that name, except ``most_edges``, the maximum edge
    density, above which an image is dust. The values are set so that images at 256x256 reach the
    medians and 10th percentiles of flames chosen by people; the statistics of previews and images
    correlate at .85 to .95.
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


THRESHOLDS = Thresholds()
_MEASURED = tuple(
    field.name
    for field in fields(Thresholds)
    if field.name not in ("coherence", "reliability", "most_edges")
)


def draw_genome(seed: int, index: int, family: str = "mixed") -> Genome:
    """Return the genome of image ``index`` of a set, a pure function of the arguments.

    Args:
        seed: At least 0.
        index: At least 0.
        family: One of ``FAMILIES``.

    Returns:
        The first draft that passes; ``Genome.attempt`` is the number of drafts rejected before it.

    Raises:
        ValueError: If the seed or index is negative, or the family is unknown.
        RuntimeError: If a thousand drafts in a row are rejected.
    """
    for name, value in (("seed", seed), ("index", index)):
        if value < 0:
            raise ValueError(f"{name} is {value}; use 0 or more")
    if family not in FAMILIES:
        raise ValueError(f"family is {family!r}; use one of {', '.join(FAMILIES)}")
    for attempt in range(MAX_DRAFTS):
        drawn = draft(seed, index, family, attempt)
        if drawn is None:
            continue
        values = composite(
            drawn.genome, PREVIEW_SIZE, PREVIEW_SIZE, PREVIEW_SAMPLES, histograms=drawn.histograms
        )
        genome = with_levels(drawn.genome, values)
        if not missed_thresholds(genome, apply_levels(genome, values)):
            return genome
    raise RuntimeError(
        f"seed {seed}, index {index}, family {family}: {MAX_DRAFTS} drafts in a row were rejected; "
        "use another seed"
    )


class Draft(NamedTuple):
    """A genome that has not been accepted yet, and its smoothed histograms by layer number."""

    genome: Genome
    histograms: dict[int, Histogram]


def draft(seed: int, index: int, family: str, attempt: int) -> Draft | None:
    """Draw one draft, a pure function of the arguments; None if one of its layers shows nothing."""
    draws = Draws(*random_key(family, seed, index, attempt))
    palette = draw_palette(draws)
    background = draw_background(draws, palette)
    plans, templates, _ = FAMILIES[family]
    plan = [LAYER_KINDS[name] for name in draws.weighted(list(plans), list(plans.values()))]
    samples = PREVIEW_SAMPLES / max(1, sum(not kind.covers for kind in plan))
    layers: list[Layer] = []
    histograms: dict[int, Histogram] = {}
    for number, kind in enumerate(plan):
        drawn = kind.draw(draws, templates, samples, game_key(family, seed, index, attempt, number))
        if drawn is None:
            return None
        fractal, histogram = drawn
        if histogram is not None:
            histograms[number] = histogram
        blend = "over"
        if not kind.covers:
            is_light = not layers and background.stops[0][0] > _LIGHT_BACKGROUND
            blend = draws.weighted(BLENDS, (3, 0, 0, 2) if is_light else (3, 3, 1, 0))
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
    return Draft(genome, histograms)


def with_levels(genome: Genome, image: NDArray[np.float32]) -> Genome:
    """Return the genome with black and white points at the 2nd and 98th percentile of a preview.

    image: (H, W, 3) float32 of ``composite``.
    """
    values = image.reshape(-1)
    return replace(
        genome,
        black=rounded(max(0.0, quantile(values, 0.02) - 0.02)),
        white=rounded(min(1.0, max(quantile(values, 0.98), 0.1))),
    )


def preview(genome: Genome, stream: int) -> NDArray[np.uint8]:
    """Return a genome's (64, 64, 3) uint8 preview; stream: number of the independent chaos game."""
    return apply_levels(
        genome, composite(genome, PREVIEW_SIZE, PREVIEW_SIZE, PREVIEW_SAMPLES, stream=stream)
    )


def missed_thresholds(genome: Genome, image: NDArray[np.uint8]) -> list[str]:
    """Return the names of the thresholds that a preview misses; an empty list accepts it.

    image: ``preview(genome, 0)``. The second game, for reliability, is played only if all other
    statistics pass.
    """
    measured = preview_statistics(image)
    missed = [name for name in _MEASURED if getattr(measured, name) < getattr(THRESHOLDS, name)]
    if measured.edge_density > THRESHOLDS.most_edges:
        missed.append("most_edges")
    if coherence(image) < THRESHOLDS.coherence:
        missed.append("coherence")
    if not missed and reliability(image, preview(genome, 1)) < THRESHOLDS.reliability:
        missed.append("reliability")
    return missed


_SIZE = 64


def compile_chaos_layers() -> None:
    """Compile the kernels that draw, render and blend chaos layers."""
    drafts = (draft(0, index, "flame", 0) for index in range(1000))
    genome = next(each.genome for each in drafts if each is not None)
    apply_levels(genome, composite(genome, _SIZE, _SIZE, 1.0))


def compile_escape_layers() -> None:
    """Compile the kernels that draw and render escape-time layers."""
    draws = Draws(0)
    table = palette_table(draw_palette(draws))
    render_escape(draw_escape(draws), table, (_SIZE, _SIZE), 1.0)


def compile_statistics() -> None:
    """Compile the kernels that measure images."""
    # A textured image, because some statistics return early for a flat one.
    values = np.arange(_SIZE * _SIZE * 3) ** 2 // 50 % 251
    image = values.astype(np.uint8).reshape(_SIZE, _SIZE, 3)
    preview_statistics(image)
    coherence(image)
    measure(image)
    reliability(image, image)


_LAST_KERNELS: dict[Callable[[], None], tuple[Any, ...]] = {
    compile_chaos_layers: (play, to_bytes),
    compile_escape_layers: (shade_features,),
    compile_statistics: (ring_sums, correlation),
}
"""The last kernels that each function compiles, which show whether it has been called."""


def pending() -> list[Callable[[], None]]:
    """Return the functions that compile the kernels that this machine has not cached yet."""
    return _missing(*_LAST_KERNELS)


def pending_for_baselines() -> list[Callable[[], None]]:
    """Return the same functions as ``pending``, but only for kernels that baselines need."""
    return _missing(compile_statistics)


def _missing(*parts: Callable[[], None]) -> list[Callable[[], None]]:
    return [part for part in parts if not all(map(is_cached, _LAST_KERNELS[part]))]
