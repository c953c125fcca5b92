"""Draw the images of the README and of the page on mixing.

    python docs/figures.py SETS FOLDER

SETS holds datasets that `make figures` generates with the default settings:

    SETS/fractals             32 fractals
         featviz              256 feature visualizations
         overview/fractals    8 fractals
                  featviz     4 feature visualizations
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_image

from pipelines.generate.generators import decode
from pipelines.report.mixing import Draw, MixingImages, mix, square
from pipelines.report.page import contact_sheet
from pixmix import PixMixSettings
from pixmix.draws import draw_plan
from pixmix.mixing import add, multiply

BETA = 3.0
QUALITY = 85
"""JPEG quality of all figures."""


def sheet(folder: Path, each: int) -> Image.Image:
    """Return a contact sheet of 32 images of a dataset: the first of every `each` images."""
    paths = sorted((folder / "images").glob("*.jpg"))[::each]
    if len(paths) != 32:
        raise ValueError(f"{folder} has {len(paths)} images to show, expected 32; see make figures")
    return contact_sheet([decode(path.read_bytes()) for path in paths], columns=8, cell=120)


def overview(sets: Path) -> Image.Image:
    """Return two rows of labelled images: a training image, a mixing image and their mix.

    The first row mixes with fractals and the second with feature visualizations. Each shows the
    first key whose draw has at least two rounds and uses the mixing image.
    """
    labels = "training image", "mixing image", "after PixMix"
    cell, gap, title = 224, 8, 34
    canvas = Image.new("RGB", (3 * cell + 2 * gap, title + 2 * cell + gap), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(24)
    for column, label in enumerate(labels):
        pen.text((column * (cell + gap) + cell / 2, 2), label, "black", font, "ma")
    settings = PixMixSettings(k=4, beta=4, severity=1)  # the paper's for ImageNet
    photographs = ("china.jpg", "fractals"), ("flower.jpg", "featviz")
    for row, (photograph, folder) in enumerate(photographs):
        mixing_set = MixingImages([sets / folder], cell)
        image = square(load_sample_image(photograph), cell)
        for key in itertools.count():
            draw = mix(image, mixing_set, settings, (0, row, key))
            mixed_in = [each.other for each in draw.rounds if each.operation is None]
            if len(draw.rounds) >= 2 and mixed_in:
                break
        for column, pixels in enumerate((image, mixed_in[0], draw.result)):
            corner = (column * (cell + gap), title + row * (cell + gap))
            canvas.paste(Image.fromarray(pixels), corner)
    return canvas


def gallery(sets: Path) -> Image.Image:
    """Return rows of one photograph mixed with growing k, beta and severity.

    The draws of a row are those of one key, so only the parameter changes: the first key with as
    many rounds as each k allows; for beta the first with two rounds that mix in both kinds of
    image; for severity the first with two rounds of operations alone.
    """
    cell, gap, title = 150, 6, 28
    image = square(load_sample_image("china.jpg"), cell)
    mixing_set = MixingImages([sets / "fractals"], cell)

    def results(name: str, values: Sequence[float], key: int) -> list[Draw]:
        base = {"k": 4, "beta": 3.0, "severity": 3.0}
        every = (PixMixSettings(**{**base, name: value}) for value in values)  # type: ignore[arg-type]
        return [mix(image, mixing_set, settings, (0, 0, key)) for settings in every]

    def rounds_grow(draws: list[Draw]) -> bool:
        return [len(draw.rounds) for draw in draws] == [0, 1, 2, 3, 4]

    def mixes_both(draws: list[Draw]) -> bool:
        mixed_in = [each.operation is None for each in draws[0].rounds]
        return sorted(mixed_in) == [False, True]

    def operates_alone(draws: list[Draw]) -> bool:
        operations = [each.operation for each in draws[0].rounds]
        return len(operations) == 2 and None not in operations and draws[0].start is not None

    rows = (
        ("k", (0, 1, 2, 3, 4), rounds_grow),
        ("beta", (1, 2, 3, 4, 8), mixes_both),
        ("severity", (1, 2, 3, 5, 10), operates_alone),
    )
    canvas = Image.new("RGB", (5 * (cell + gap) - gap, 3 * (title + cell + gap) - gap), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(21)
    for row, (name, values, fits) in enumerate(rows):
        draws = next(
            found for key in itertools.count() if fits(found := results(name, values, key))
        )
        top = row * (title + cell + gap)
        for column, (value, draw) in enumerate(zip(values, draws, strict=True)):
            left = column * (cell + gap)
            pen.text((left + cell / 2, top + 1), f"{name} = {value}", "black", font, "ma")
            canvas.paste(Image.fromarray(draw.result), (left, top + title))
    return canvas


def weights(n: int) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Return (a, b) of the first n draws towards the other image, and of the first n away."""
    plan = draw_plan(
        np.arange(4 * n), seed=0, epoch=0, settings=PixMixSettings(k=1, beta=BETA), size=(1, 1),
        source_size=(1, 1), flip=False, views=1, n_mixing_images=1,
    )  # fmt: skip
    a, b = plan.rounds["a"][:, 0], plan.rounds["b"][:, 0]
    return [(a[each][:n], b[each][:n]) for each in (a <= 1, a > 1)]


def mixing() -> Figure:
    """Return a plot of the distribution of a and b, and of the results of add and multiply."""
    figure, axes = plt.subplot_mosaic(
        [["weights", "add towards", "multiply towards"], ["weights", "add away", "multiply away"]],
        figsize=(11, 6),
        layout="constrained",
    )
    axis = axes["weights"]
    colours, names = ("#1f77b4", "#d62728"), ("towards y", "away from y")
    for (a, b), colour, name in zip(weights(1500), colours, names, strict=True):
        axis.plot(a, b, ".", color=colour, markersize=2, alpha=0.5, label=name)
    axis.set(title="(a, b) for beta = 3", xlabel="a, of the image x", ylabel="b, of the other, y")
    axis.legend(markerscale=6)
    x = np.linspace(0, 1, 256, dtype=np.float32)
    greys = np.stack([x] * 3, axis=-1)
    for name, a, b in (("towards", 0.75, 0.25), ("away", 1.25, -0.25)):
        for kind, function in (("add", add), ("multiply", multiply)):
            axis = axes[f"{kind} {name}"]
            for y in (0, 0.25, 0.5, 0.75, 1):
                mixed = function(greys, np.full_like(greys, y), a, b)[:, 0]
                colour = matplotlib.colormaps["viridis"](0.9 * y)
                axis.plot(x, mixed, color=colour, label=f"y = {y}")
            axis.plot([0, 1], [0, 1], ":", color="grey")
            axis.set(title=f"{kind}, a = {a}, b = {b}", xlabel="x", ylim=(-0.02, 1.02))
    axes["add towards"].legend()
    return figure


if __name__ == "__main__":
    sets, folder = map(Path, sys.argv[1:])
    overview(sets / "overview").save(folder / "overview.jpg", quality=QUALITY)
    gallery(sets / "overview").save(folder / "gallery.jpg", quality=QUALITY)
    sheet(sets / "fractals", each=1).save(folder / "fractals.jpg", quality=QUALITY)
    sheet(sets / "featviz", each=8).save(folder / "featviz.jpg", quality=QUALITY)
    mixing().savefig(folder / "mixing.png", dpi=90)
