"""Fractal pictures: a genome from a seed and an index, a picture from a genome.

from fractals import draw_genome, render
picture = render(draw_genome(seed=0, index=7), size=256)      # (256, 256, 3) uint8
"""

from fractals.baselines import BASELINE_VERSION, BASELINES, Baseline, paint_baseline
from fractals.genome import FAMILIES, GENOME_VERSION, Family, Genome
from fractals.render import render
from fractals.sampling import draw_genome
from fractals.statistics import measure

__all__ = [
    "BASELINES",
    "BASELINE_VERSION",
    "FAMILIES",
    "GENOME_VERSION",
    "Baseline",
    "Family",
    "Genome",
    "draw_genome",
    "measure",
    "paint_baseline",
    "render",
]
