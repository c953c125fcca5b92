"""Fractal pictures: a genome from a seed and an index, a picture from a genome."""
