"""Draws the pictures of the README and of the page on mixing.

python docs/figures.py SETS FOLDER

SETS has the first 8 pictures of the default set of fractals and the first 4 of that of feature
visualizations, as folders `fractals` and `featviz`; see `make figures`.
"""

import itertools
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

from pipelines.report.mixing_steps import MixingPictures, mix, square
from pipelines.report.sheet import contact_sheet, write_sheet
from pixmix import PixMixSettings
from pixmix.mixing import add, multiply

SIDE = 144
BETA = 3.0


def overview(sets: Path) -> Image.Image:
    """Return 8 fractals above 4 feature visualizations and 4 photographs mixed twice or more."""
    places = sets / "fractals", sets / "featviz"
    mixing_set = MixingPictures(places, SIDE)
    pictures = [square(mixing_set[i], SIDE) for i in range(len(mixing_set))]
    photographs = ("china.jpg", "flower.jpg")
    for key in itertools.count():
        photograph = square(load_sample_image(photographs[len(pictures) % 2]), SIDE)
        draw = mix(photograph, mixing_set, PixMixSettings(), (0, 0, key))
        if len(draw.rounds) >= 2:
            pictures.append(draw.result)
        if len(pictures) == 16:
            break
    return contact_sheet(pictures, columns=8, cell=SIDE)


def weights(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return n draws of (a, b) of each branch, (2, n) each."""
    generator = np.random.default_rng(0)
    u, v = (generator.random((2, n)) ** (1 / BETA) for _ in range(2))
    return np.stack([u[0], 2 - u[1]]), np.stack([1 - v[0], v[1] - 1])


def mixing() -> Figure:
    """Return a plot of where a and b lie, and of what add and multiply make of values with them."""
    figure, axes = plt.subplot_mosaic(
        [["weights", "add towards", "multiply towards"], ["weights", "add away", "multiply away"]],
        figsize=(11, 6),
        layout="constrained",
    )
    place = axes["weights"]
    colours, names = ("#1f77b4", "#d62728"), ("towards y", "away from y")
    for a, b, colour, name in zip(*weights(1500), colours, names, strict=True):
        place.plot(a, b, ".", color=colour, markersize=2, alpha=0.5, label=name)
    place.set(
        title="(a, b) for beta = 3", xlabel="a, of the picture x", ylabel="b, of the other, y"
    )
    place.legend(markerscale=6)
    x = np.linspace(0, 1, 256, dtype=np.float32)
    greys = np.stack([x] * 3, axis=-1)
    for name, a, b in (("towards", 0.75, 0.25), ("away", 1.25, -0.25)):
        for kind, function in (("add", add), ("multiply", multiply)):
            place = axes[f"{kind} {name}"]
            for y in (0, 0.25, 0.5, 0.75, 1):
                mixed = function(greys, np.full_like(greys, y), a, b)[:, 0]
                colour = matplotlib.colormaps["viridis"](0.9 * y)
                place.plot(x, mixed, color=colour, label=f"y = {y}")
            place.plot([0, 1], [0, 1], ":", color="grey")
            place.set(title=f"{kind}, a = {a}, b = {b}", xlabel="x", ylim=(-0.02, 1.02))
    axes["add towards"].legend()
    return figure


if __name__ == "__main__":
    sets, folder = map(Path, sys.argv[1:])
    write_sheet(overview(sets), folder / "overview.jpg")
    mixing().savefig(folder / "mixing.png", dpi=90)
