"""Fractal images: a genome from a seed and an index, an image from a genome.

from fractals import draw_genome, render
image = render(draw_genome(seed=0, index=7), size=256)      # (256, 256, 3) uint8
"""

from typing import TYPE_CHECKING, NamedTuple

__all__ = [
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
    """A row of `FAMILIES`.

    plans: names of layer kinds (`genome.KINDS`) from the ground up, and how often an image is made
    of these. templates: how often a chaos game is drawn by each of `systems.TEMPLATES`.
    """

    plans: dict[tuple[str, ...], float]
    templates: dict[str, float]


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
    ),
    "flame": Family({(_CHAOS,): 0.65, (_CHAOS, _CHAOS): 0.35}, _FLAMES),
    "ifs": Family({(_CHAOS,): 0.7, (_CHAOS, _CHAOS): 0.3}, {"ifs": 1.0}),
    "escape": Family({(_ESCAPE,): 1.0}, {}),
}
"""Append new rows: a family's place is a part of its random keys."""

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
        """Import a public name when it is first used: the families alone need no compiler."""
        if name not in _MODULES:
            raise AttributeError(f"module 'fractals' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"fractals.{_MODULES[name]}"), name)
