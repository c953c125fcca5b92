"""Fractal pictures: a genome from a seed and an index, a picture from a genome.

from fractals import draw_genome, render
picture = render(draw_genome(seed=0, index=7), size=256)      # (256, 256, 3) uint8
"""

from fractals.genome import FAMILIES, GENOME_VERSION, Family, Genome
from fractals.render import render
from fractals.sampling import draw_genome
from fractals.statistics import measure

__all__ = ["FAMILIES", "GENOME_VERSION", "Family", "Genome", "draw_genome", "measure", "render"]
