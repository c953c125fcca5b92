"""How a fractal is made, drawn: its layers one by one and their maps as parallelograms."""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fractals import Genome, render
from fractals.chaos import ChaosLayer, Map
from fractals.genome import SMALLEST, Layer
from fractals.palettes import palette_table
from pipelines.report.figures import FRAME, INK, LINE, PAPER, SOFT, TEXT, shortened
from pipelines.report.genome_files import SQUARE
from pipelines.report.genome_tables import described

Points = NDArray[np.float64]

_MARGIN, _GAP = 24, 24
_SMALL = 200
_COLUMN = 300
_FAR = 1e6


def alone(genome: Genome, number: int) -> Genome:
    """Return the genome of one layer, laid on the same ground as if it were the only one."""
    layer = replace(genome.layers[number], blend="over", opacity=1.0)
    return replace(genome, layers=(layer,))


def parallelograms(layer: ChaosLayer, shape: tuple[int, int] = SQUARE) -> list[Points]:
    """Return what each map's affine parts make of the window, (4, 2) corners in plane units.

    First the window itself, then a map each: `affine`, then `post`; variations, which bend, are
    left out.

    Args:
        layer: of maps.
        shape: height and width of the picture, of which the camera's width is the shorter.
    """
    camera = layer.camera
    height, width = (camera.width / 2 * side / min(shape) for side in shape)
    square = np.array([(-width, -height), (width, -height), (width, height), (-width, height)])
    cosine, sine = math.cos(camera.rotation), math.sin(camera.rotation)
    window = square @ np.array([(cosine, sine), (-sine, cosine)]) + np.array(camera.centre)
    return [window, *(_image(each, window) for each in layer.maps)]


def _image(each: Map, points: Points) -> Points:
    for affine in (each.affine, each.post):
        if affine is not None:
            a, b, c, d, e, f = affine
            points = points @ np.array([(a, d), (b, e)]) + np.array((c, f))
    return points


def figure(genome: Genome, side: int = 640, shape: tuple[int, int] = SQUARE) -> Image.Image:
    """Draw a genome: the picture, and for each layer itself, its maps, palette and numbers.

    Args:
        genome: of the picture.
        side: of the picture, the longer one, pixels.
        shape: height and width of the picture in its set, which tell its form.
    """
    panels = [_panel(genome, number, shape) for number in range(len(genome.layers))]
    picture = picture_of(genome, side, shape)
    beside = sum(panel.height for panel in panels) + _GAP * (len(panels) - 1)
    top = _MARGIN + 34
    width = 2 * _MARGIN + picture.width + _GAP + panels[0].width
    canvas = Image.new("RGB", (width, top + max(picture.height, beside) + _MARGIN), PAPER)
    pen = ImageDraw.Draw(canvas)
    title = f"{genome.family}, seed {genome.seed}, picture {genome.index}"
    room = picture.width + _GAP // 2
    large, font = ImageFont.load_default(TEXT + 5), ImageFont.load_default(TEXT)
    pen.text((_MARGIN, _MARGIN - 4), shortened(title, large, room), fill=INK, font=large)
    tries = f"the {_ordinal(genome.attempt + 1)} draft, from the ground up:"
    left = _MARGIN + picture.width + _GAP
    pen.text((left, _MARGIN), tries, fill=SOFT, font=font)
    canvas.paste(picture, (_MARGIN, top))
    for panel in panels:
        canvas.paste(panel, (left, top))
        top += panel.height + _GAP
    return canvas


def picture_of(genome: Genome, side: int, shape: tuple[int, int]) -> Image.Image:
    """Return the picture of a genome in the form of `shape`, its longer side of `side` pixels."""
    height, width = (max(SMALLEST, round(side * each / max(shape))) for each in shape)
    return Image.fromarray(render(genome, size=(height, width)))


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if 10 <= number % 100 <= 20 else ending}"


def _panel(genome: Genome, number: int, shape: tuple[int, int]) -> Image.Image:
    """Draw a layer: itself, its maps where it has any, its palette and its numbers."""
    lines = described(genome.layers[number])
    drawn = layer_picture(genome, number, shape)
    height = max(drawn.height, len(lines) * LINE)
    panel = Image.new("RGB", (drawn.width + 12 + _COLUMN, height), PAPER)
    panel.paste(drawn, (0, 0))
    pen = ImageDraw.Draw(panel)
    font = ImageFont.load_default(TEXT)
    for place, line in enumerate(lines):
        fill = INK if place == 0 else SOFT
        where = (drawn.width + 12, place * LINE)
        pen.text(where, shortened(line, font, _COLUMN), fill=fill, font=font)
    return panel


def layer_picture(genome: Genome, number: int, shape: tuple[int, int] = SQUARE) -> Image.Image:
    """Draw a layer alone, beside it its maps where it has any, and below them its palette.

    Args:
        genome: of the picture.
        number: of the layer, from 0.
        shape: as for `figure`.
    """
    layer = genome.layers[number]
    drawn = Image.new("RGB", (2 * _SMALL + 12, _SMALL + 8 + 12), PAPER)
    pen = ImageDraw.Draw(drawn)
    alone_ = picture_of(alone(genome, number), _SMALL, shape)
    drawn.paste(alone_, ((_SMALL - alone_.width) // 2, (_SMALL - alone_.height) // 2))
    colours = _colours(layer)
    strip = Image.fromarray(colours[None]).resize((drawn.width, 12), Image.Resampling.BILINEAR)
    drawn.paste(strip, (0, _SMALL + 8))
    if isinstance(layer.fractal, ChaosLayer):
        drawn.paste(_diagram(layer.fractal, colours, shape), (_SMALL + 12, 0))
    else:
        box = (_SMALL + 12, 0, 2 * _SMALL + 11, _SMALL - 1)
        pen.rectangle(box, outline=FRAME)
        note = "no maps: each point\nof the plane has an\norbit of its own"
        pen.text((_SMALL + 30, 70), note, fill=SOFT, font=ImageFont.load_default(TEXT))
    return drawn


def _colours(layer: Layer) -> NDArray[np.uint8]:
    """Return the palette as (256, 3) uint8."""
    return np.rint(np.clip(palette_table(layer.palette), 0, 1) * 255).astype(np.uint8)


def _diagram(layer: ChaosLayer, colours: NDArray[np.uint8], shape: tuple[int, int]) -> Image.Image:
    """Draw what each map makes of the window, twice as large and shrunk, for smooth lines."""
    shapes = parallelograms(layer, shape)
    points = np.concatenate(shapes)
    # A map may throw the window far away; what is that far is cut off.
    window = shapes[0]
    centre, reach = window.mean(axis=0), float(np.ptp(window, axis=0).max())
    spread = float(np.abs(points - centre).max())
    scale = 2 * _SMALL * 0.46 / min(max(spread, reach / 2), 2.5 * reach)
    image = Image.new("RGB", (2 * _SMALL, 2 * _SMALL), PAPER)
    pen = ImageDraw.Draw(image, "RGBA")
    for number, each in enumerate(shapes):
        # Row 0 of a picture is at the top of the window. Pillow draws what lies
        # beyond 2^31 on the other side.
        places = np.clip((each - centre) * scale + _SMALL, -_FAR, _FAR)
        corners = [(float(x), float(y)) for x, y in places]
        if number == 0:
            pen.polygon(corners, outline=SOFT, width=3)
            continue
        colour = colours[int(layer.maps[number - 1].colour * 255)].tolist()
        dark = tuple(int(level * 0.6) for level in colour)
        pen.polygon(corners, fill=(*colour, 90))
        pen.polygon(corners, outline=dark, width=4)
        # The corner that the window's first one goes to, so that turns and mirrors can be seen.
        x, y = corners[0]
        pen.ellipse((x - 7, y - 7, x + 7, y + 7), fill=dark)
    small = image.resize((_SMALL, _SMALL), Image.Resampling.LANCZOS)
    ImageDraw.Draw(small).rectangle((0, 0, _SMALL - 1, _SMALL - 1), outline=FRAME)
    return small
