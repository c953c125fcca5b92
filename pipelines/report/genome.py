"""How a fractal is made: its layers one by one, their maps as parallelograms, their numbers."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fractals import Genome, render
from fractals.escape import EscapeLayer
from fractals.genome import ChaosLayer, Layer, Map
from fractals.palettes import palette_table
from pipelines.errors import PipelineError

Points = NDArray[np.float64]


def read_genome(place: Path, index: int | None) -> Genome:
    """Read a genome from a file of its own or from the records of a set.

    Args:
        place: JSON as `Genome.to_json` gives it, or a folder of pixmix-gen fractals.
        index: which picture of a folder; None for a file.

    Raises:
        PipelineError: if there is none.
        OSError: if it cannot be read.
    """
    if place.is_dir():
        if index is None:
            raise PipelineError(f"{place} has many pictures; name one by --index")
        return _of_record(_record(place / "metadata.jsonl", index), f"picture {index} of {place}")
    if index is not None:
        raise PipelineError(f"{place} is one genome; leave --index out")
    return _of_record(_document(place.read_text(errors="replace"), str(place)), str(place))


def _record(path: Path, index: int) -> Any:  # noqa: ANN401
    if not path.is_file():
        raise PipelineError(
            f"{path} is not there: {path.parent} is no finished set of pixmix-gen fractals; name "
            "one, or a genome's file"
        )
    with path.open(errors="replace") as lines:
        for number, line in enumerate(lines):
            if number == index:
                return _document(line, f"{path}, line {number + 1}")
    raise PipelineError(f"{path} has no picture {index}; its pictures are counted from 0")


def _document(text: str, where: str) -> Any:  # noqa: ANN401
    try:
        return json.loads(text)
    except ValueError as error:
        raise PipelineError(f"{where} is no JSON ({error}); name a genome") from error


def _of_record(document: Any, where: str) -> Genome:  # noqa: ANN401
    if isinstance(document, dict) and "genome" in document:
        document = document["genome"]
    if not isinstance(document, dict):
        raise PipelineError(f"{where} holds no genome; give one of a set of pixmix-gen fractals")
    try:
        return Genome.from_json(document)
    except ValueError as error:
        raise PipelineError(f"{where}: {error}") from error


# --- what is drawn -------------------------------------------------------------------------------


def alone(genome: Genome, number: int) -> Genome:
    """Return the genome of one layer, laid on the same ground as if it were the only one."""
    layer = replace(genome.layers[number], blend="over", opacity=1.0)
    return replace(genome, layers=(layer,))


def parallelograms(layer: ChaosLayer) -> list[Points]:
    """Return what each map's affine parts make of the window, (4, 2) corners in plane units.

    First the window itself, then a map each: `affine`, then `post`; variations, which bend, are
    left out.
    """
    camera = layer.camera
    half = camera.width / 2
    square = np.array([(-half, -half), (half, -half), (half, half), (-half, half)])
    cosine, sine = math.cos(camera.rotation), math.sin(camera.rotation)
    window = square @ np.array([(cosine, sine), (-sine, cosine)]) + np.array(camera.centre)
    return [window, *(_image(each, window) for each in layer.maps)]


def _image(each: Map, points: Points) -> Points:
    for affine in (each.affine, each.post):
        if affine is not None:
            a, b, c, d, e, f = affine
            points = points @ np.array([(a, d), (b, e)]) + np.array((c, f))
    return points


def described(layer: Layer) -> list[str]:
    """Return what a layer is, a line a fact."""
    head = f"{layer.blend}, opacity {layer.opacity:.2f}"
    fractal = layer.fractal
    if isinstance(fractal, EscapeLayer):
        return [
            f"escape: {fractal.formula} of power {fractal.power}, {fractal.plane} plane",
            head,
            f"c {fractal.constant[0]:.4g} {fractal.constant[1]:+.4g} i, "
            f"at {fractal.centre[0]:.4g} {fractal.centre[1]:+.4g} i, width {fractal.width:.3g}",
            f"{fractal.max_iterations} iterations, trap {fractal.trap}, "
            f"relief {fractal.relief:.2f}",
            f"turns: smooth {fractal.smooth_turns:.2f}, trap {fractal.trap_turns:.2f}, "
            f"wave {fractal.wave_turns:.2f}",
        ]
    bent = any(each.variations for each in fractal.maps)
    lines = [
        f"{'flame' if bent else 'affine system'}: {len(fractal.maps)} "
        f"map{'' if len(fractal.maps) == 1 else 's'}, {_symmetry(fractal.symmetry)}",
        head,
        f"at {fractal.camera.centre[0]:.3g}, {fractal.camera.centre[1]:.3g}, "
        f"width {fractal.camera.width:.3g}, {_fold(fractal.camera.fold)}",
    ]
    total = sum(each.weight for each in fractal.maps)
    for number, each in enumerate(fractal.maps, 1):
        lines.append(f"{number}  {each.weight / total:.0%}  {_bends(each)}")
    if fractal.final is not None:
        lines.append(f"last  {_bends(fractal.final)}")
    return lines


def _symmetry(symmetry: int) -> str:
    if symmetry == 1:
        return "no symmetry"
    mirrored = " and a mirror" if symmetry < 0 else ""
    return f"{abs(symmetry)} turns{mirrored}"


def _fold(fold: str) -> str:
    return {"none": "cut off", "mirror": "mirrored at its borders", "wrap": "repeated"}[fold]


def _bends(each: Map) -> str:
    if not each.variations:
        return "affine"
    return ", ".join(f"{term.name} {term.weight:.2f}" for term in each.variations)


# --- the figure ----------------------------------------------------------------------------------

_MARGIN, _GAP = 24, 24
_SMALL = 200
_TEXT, _LINE = 14, 19
_COLUMN = 300
_PAPER, _INK, _SOFT, _LINE_COLOUR = (255, 255, 255), (28, 28, 30), (110, 110, 118), (200, 200, 206)


def figure(genome: Genome, side: int = 640) -> Image.Image:
    """Draw a genome: the picture, and for each layer itself, its maps, palette and numbers.

    Args:
        genome: of the picture.
        side: of the picture, pixels.
    """
    panels = [_panel(genome, number) for number in range(len(genome.layers))]
    beside = sum(panel.height for panel in panels) + _GAP * (len(panels) - 1)
    top = _MARGIN + 34
    width = 2 * _MARGIN + side + _GAP + panels[0].width
    canvas = Image.new("RGB", (width, top + max(side, beside) + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(canvas)
    title = f"{genome.family}, seed {genome.seed}, picture {genome.index}"
    pen.text((_MARGIN, _MARGIN - 4), title, fill=_INK, font=ImageFont.load_default(_TEXT + 5))
    tries = f"the {_ordinal(genome.attempt + 1)} draft, from the ground up:"
    left = _MARGIN + side + _GAP
    pen.text((left, _MARGIN), tries, fill=_SOFT, font=ImageFont.load_default(_TEXT))
    canvas.paste(Image.fromarray(render(genome, size=side)), (_MARGIN, top))
    for panel in panels:
        canvas.paste(panel, (left, top))
        top += panel.height + _GAP
    return canvas


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if 10 <= number % 100 <= 20 else ending}"


def _panel(genome: Genome, number: int) -> Image.Image:
    """Draw a layer: itself, its maps where it has any, its palette and its numbers."""
    layer = genome.layers[number]
    lines = described(layer)
    height = max(_SMALL + 8 + 12, len(lines) * _LINE)
    panel = Image.new("RGB", (2 * (_SMALL + 12) + _COLUMN, height), _PAPER)
    pen = ImageDraw.Draw(panel)
    panel.paste(Image.fromarray(render(alone(genome, number), size=_SMALL)), (0, 0))
    colours = _colours(layer)
    strip = Image.fromarray(colours[None]).resize((2 * _SMALL + 12, 12), Image.Resampling.BILINEAR)
    panel.paste(strip, (0, _SMALL + 8))
    if isinstance(layer.fractal, ChaosLayer):
        panel.paste(_diagram(layer.fractal, colours), (_SMALL + 12, 0))
    else:
        box = (_SMALL + 12, 0, 2 * _SMALL + 11, _SMALL - 1)
        pen.rectangle(box, outline=_LINE_COLOUR)
        note = "no maps: each point\nof the plane has an\norbit of its own"
        pen.text((_SMALL + 30, 70), note, fill=_SOFT, font=ImageFont.load_default(_TEXT))
    font = ImageFont.load_default(_TEXT)
    for place, line in enumerate(lines):
        fill = _INK if place == 0 else _SOFT
        left = 2 * (_SMALL + 12)
        pen.text((left, place * _LINE), _cut(line, font, _COLUMN), fill=fill, font=font)
    return panel


def _colours(layer: Layer) -> NDArray[np.uint8]:
    """Return the palette as (256, 3) uint8."""
    return np.rint(np.clip(palette_table(layer.palette), 0, 1) * 255).astype(np.uint8)


def _cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    text = line
    while font.getlength(text) > room and len(text) > 1:
        text = f"{text.rstrip('…')[:-1]}…"
    return text


def _diagram(layer: ChaosLayer, colours: NDArray[np.uint8]) -> Image.Image:
    """Draw what each map makes of the window, twice as large and shrunk, for smooth lines."""
    shapes = parallelograms(layer)
    points = np.concatenate(shapes)
    # A map may throw the window far away; what is that far is cut off.
    window = shapes[0]
    centre, reach = window.mean(axis=0), float(np.ptp(window, axis=0).max())
    spread = float(np.abs(points - centre).max())
    scale = 2 * _SMALL * 0.46 / min(max(spread, reach / 2), 2.5 * reach)
    image = Image.new("RGB", (2 * _SMALL, 2 * _SMALL), _PAPER)
    pen = ImageDraw.Draw(image, "RGBA")
    for number, shape in enumerate(shapes):
        # Row 0 of a picture is at the top of the window.
        corners = [(float(x), float(y)) for x, y in (shape - centre) * scale + _SMALL]
        if number == 0:
            pen.polygon(corners, outline=_SOFT, width=3)
            continue
        colour = colours[int(layer.maps[number - 1].colour * 255)].tolist()
        dark = tuple(int(level * 0.6) for level in colour)
        pen.polygon(corners, fill=(*colour, 90))
        pen.polygon(corners, outline=dark, width=4)
        # The corner that the window's first one goes to, so that turns and mirrors can be seen.
        x, y = corners[0]
        pen.ellipse((x - 7, y - 7, x + 7, y + 7), fill=dark)
    small = image.resize((_SMALL, _SMALL), Image.Resampling.LANCZOS)
    ImageDraw.Draw(small).rectangle((0, 0, _SMALL - 1, _SMALL - 1), outline=_LINE_COLOUR)
    return small
