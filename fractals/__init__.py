"""Fractal images: draw a genome from a seed and an index, and render it.

Example::

    from fractals import draw_genome, render

    image = render(draw_genome(seed=0, index=7), size=256)  # (256, 256, 3) uint8
"""

from typing import TYPE_CHECKING, NamedTuple

__all__ = [
    "BASELINE_DESCRIPTIONS",
    "BASELINE_KINDS",
    "BASELINE_VERSION",
    "FAMILIES",
    "GENOME_VERSION",
    "Family",
    "Genome",
    "draw_genome",
    "measure",
    "render",
    "render_baseline",
]


class Family(NamedTuple):
    """A family of genomes: which layers its images have, and which systems they show.

    Attributes:
        plans: Kinds of layers (keys of ``genome.LAYER_KINDS``) from the bottom up -> relative
            frequency.
        templates: Keys of ``systems.TEMPLATES`` -> relative frequency with which a chaos game uses
            them.
        about: A phrase for the help of ``pixmix-gen``.
    """

    plans: dict[tuple[str, ...], float]
    templates: dict[str, float]
    about: str = ""


_FLAMES = {"mixture": 5.0, "inversion": 4.0, "roots": 3.0, "bent_ifs": 2.0, "rosette": 3.0}
_CHAOS, _ESCAPE = "chaos", "escape"

FAMILIES: dict[str, Family] = {
    "mixed": Family(
        {
            (_CHAOS,): 0.5,
            (_CHAOS, _CHAOS): 0.22,
            (_ESCAPE,): 0.15,
            (_ESCAPE, _CHAOS): 0.1,
            (_ESCAPE, _CHAOS, _CHAOS): 0.03,
        },
        _FLAMES | {"ifs": 1.0},
        "all families, in one to three layers",
    ),
    "flame": Family(
        {(_CHAOS,): 0.65, (_CHAOS, _CHAOS): 0.35},
        _FLAMES,
        "fractal flames",
    ),
    "ifs": Family(
        {(_CHAOS,): 0.7, (_CHAOS, _CHAOS): 0.3},
        {"ifs": 1.0},
        "affine iterated function systems",
    ),
    "escape": Family({(_ESCAPE,): 1.0}, {}, "escape-time fractals such as Julia sets"),
}
"""Append new rows at the end: the position of a family is part of its random keys."""

BASELINE_DESCRIPTIONS = {
    "dead-leaves": "overlapping discs and rectangles",
    "spectrum": "noise with a falling power spectrum",
    "noise": "white noise",
}
"""The names of `BASELINE_KINDS`, each with a phrase for the help of `pixmix-gen`."""

if TYPE_CHECKING:
    from fractals.baselines import BASELINE_KINDS, BASELINE_VERSION, render_baseline
    from fractals.genome import GENOME_VERSION, Genome, render
    from fractals.sampling import draw_genome
    from fractals.statistics import measure
else:
    _MODULES = {
        "BASELINE_KINDS": "baselines",
        "BASELINE_VERSION": "baselines",
        "GENOME_VERSION": "genome",
        "Genome": "genome",
        "draw_genome": "sampling",
        "measure": "statistics",
        "render_baseline": "baselines",
        "render": "genome",
    }

    def __getattr__(name: str) -> object:
        """Import a public name on first use, because the family names alone need no compiler."""
        if name not in _MODULES:
            raise AttributeError(f"module 'fractals' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"fractals.{_MODULES[name]}"), name)
