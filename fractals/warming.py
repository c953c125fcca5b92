"""Compile the kernels of fractals before they are needed: parts that may share the work.

Each function of `pending()` compiles a part, and may run in a process of its own.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from fractals.escape import render_escape
from fractals.escape_kernels import paint_features
from fractals.escape_places import draw_escape
from fractals.kernels import play
from fractals.palettes import draw_palette, palette_table
from fractals.picture_kernels import correlation, ring_sums
from fractals.random import Draws
from fractals.render import grade, paint
from fractals.sampling import draft
from fractals.statistics import coherence, measure, preview_statistics, reliability
from fractals.tone import to_bytes
from pixmix.compiling import is_kept

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
    """Compile what measures pictures."""
    # Of some variety, for a flat picture is not measured in all ways.
    values = np.arange(_SIZE * _SIZE * 3) ** 2 // 50 % 251
    picture = values.astype(np.uint8).reshape(_SIZE, _SIZE, 3)
    preview_statistics(picture)
    coherence(picture)
    measure(picture)
    reliability(picture, picture)


_LAST_KERNELS: dict[Callable[[], None], tuple[Any, ...]] = {
    compile_systems: (play, to_bytes),
    compile_grounds: (paint_features,),
    compile_statistics: (ring_sums, correlation),
}
"""By which it is seen that a part has been compiled."""


def pending() -> list[Callable[[], None]]:
    """Return the parts that have not been compiled on this machine."""
    return _missing(*_LAST_KERNELS)


def pending_of_baselines() -> list[Callable[[], None]]:
    """Return the parts that baselines need and that have not been compiled on this machine."""
    return _missing(compile_statistics)


def _missing(*parts: Callable[[], None]) -> list[Callable[[], None]]:
    return [part for part in parts if not all(map(is_kept, _LAST_KERNELS[part]))]
