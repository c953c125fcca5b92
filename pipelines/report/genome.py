"""Explain a fractal: read its genome from a file or a dataset, and show it as a figure or page."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fractals import Genome, render
from fractals.chaos import Camera, ChaosLayer, Map, Tone
from fractals.escape import EscapeLayer
from fractals.genome import MIN_SIDE, Layer
from fractals.palettes import Palette, palette_table
from fractals.variations import VARIATION_NUMBER, VARIATIONS
from pipelines.errors import PipelineError
from pipelines.report.page import (
    FRAME,
    INK,
    LINE,
    PAPER,
    SOFT,
    TEXT,
    PageImage,
    Section,
    Table,
    as_png,
    shortened,
)
from pipelines.shards.format import FORMAT
from pipelines.system.files import open_regular, read_json, read_regular

SQUARE = (1, 1)

_LARGEST_FILE = 2**28
_LONGEST_LINE = 2**24
"""Maximum bytes of a record; a genome has some thousands."""

_REMEDY = "use a genome file, or a dataset of pixmix-gen fractals"


@dataclass(frozen=True, kw_only=True)
class ReadGenome:
    """A genome, and the height and width of its image; (1, 1) for a genome file."""

    genome: Genome
    shape: tuple[int, int]


def read_genome(path: Path, index: int | None) -> ReadGenome:
    """Read a genome from a genome file or from the records of a dataset.

    Args:
        path: JSON file of `Genome.to_json`, or folder of a dataset of pixmix-gen fractals.
        index: index of the image in the dataset; None for a file.

    Raises:
        PipelineError: if the file or the dataset has no such genome.
        OSError: if it cannot be read.
    """
    if path.is_dir():
        if index is None:
            raise PipelineError(f"{path} has many images; choose one with --index")
        manifest = _manifest(path)
        _check_not_shards(manifest, path)
        record = _record(path / "metadata.jsonl", index)
        genome = _genome_of_record(record, f"image {index} of {path}", manifest.get("kind"))
        return ReadGenome(genome=genome, shape=_shape(manifest))
    document = read_json(read_regular(path, max_bytes=_LARGEST_FILE), Any, str(path), _REMEDY)
    _check_not_shards(document, path)
    if isinstance(document, dict) and {"kind", "status", "settings"} <= document.keys():
        raise PipelineError(
            f"{path} is the manifest of a dataset, not a genome; use its folder, and choose an "
            "image with --index"
        )
    if index is not None:
        raise PipelineError(f"{path} has a single genome; omit --index")
    return ReadGenome(genome=_genome_of_record(document, str(path), None), shape=SQUARE)


def _check_not_shards(manifest: Any, path: Path) -> None:  # noqa: ANN401
    if isinstance(manifest, dict) and manifest.get("format") == FORMAT:
        raise PipelineError(
            f"{path} is a dataset of shards; use the dataset of image files that the shards were "
            "written from, or a genome file"
        )


def _manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a dataset; empty if it has none."""
    path = folder / "manifest.json"
    try:
        content = read_regular(path, max_bytes=_LARGEST_FILE)
    except FileNotFoundError:
        return {}
    document = read_json(content, Any, str(path), "use another dataset")
    return document if isinstance(document, dict) else {}


def _shape(manifest: dict[str, Any]) -> tuple[int, int]:
    settings = manifest.get("settings")
    if isinstance(settings, dict):
        height, width = settings.get("height"), settings.get("width")
        if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
            return height, width
    return SQUARE


def _record(path: Path, index: int) -> Any:  # noqa: ANN401
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise PipelineError(
            f"{path} not found: {path.parent} is not a complete dataset of pixmix-gen fractals; "
            "use one, or a genome file"
        ) from error
    with file:
        for number in range(index + 1):
            line = file.readline(_LONGEST_LINE + 1)
            if not line:
                break
            if len(line) > _LONGEST_LINE:
                raise PipelineError(
                    f"{path}, line {number + 1} has more than {_LONGEST_LINE:,} bytes; {_REMEDY}"
                )
    if not line:
        raise PipelineError(f"{path} has no image {index}; indices start at 0")
    return read_json(line, Any, f"{path}, line {index + 1}", _REMEDY)


def _genome_of_record(document: Any, where: str, kind: object) -> Genome:  # noqa: ANN401
    if isinstance(document, dict) and "genome" in document:
        document = document["genome"]
    elif kind not in (None, "fractals"):
        raise PipelineError(
            f"{where} is of kind {json.dumps(kind)}, which has no genomes; use a dataset of "
            "pixmix-gen fractals"
        )
    if not isinstance(document, dict):
        raise PipelineError(f"{where} has no genome; use one of a dataset of pixmix-gen fractals")
    try:
        return Genome.from_json(document)
    except ValueError as error:
        raise PipelineError(f"{where}: {error}") from error
    except RecursionError as error:
        raise PipelineError(f"{where} has no genome (nested too deeply); {_REMEDY}") from error


def described(layer: Layer) -> list[str]:
    """Describe a layer, one line for each property."""
    head = f"{layer.blend}, opacity {layer.opacity:.2f}"
    facts = _FACTS.get(type(layer.fractal), lambda _: [layer.kind])
    first, *others = facts(layer.fractal)
    return [first, head, *others]


def _formula_facts(fractal: EscapeLayer) -> list[str]:
    return [
        f"escape: {fractal.formula} of power {fractal.power}, {fractal.plane} plane",
        f"c {fractal.constant[0]:.4g} {fractal.constant[1]:+.4g} i, "
        f"at {fractal.centre[0]:.4g} {fractal.centre[1]:+.4g} i, width {fractal.width:.3g}",
        f"{fractal.max_iterations} iterations, trap {fractal.trap}, relief {fractal.relief:.2f}",
        f"palette turns: smooth {fractal.smooth_turns:.2f}, trap {fractal.trap_turns:.2f}, "
        f"wave {fractal.wave_turns:.2f}",
    ]


def _system_facts(fractal: ChaosLayer) -> list[str]:
    bent = any(each.variations for each in fractal.maps)
    total = sum(each.weight for each in fractal.maps)
    return [
        f"{'flame' if bent else 'affine system'}: {len(fractal.maps)} "
        f"map{'' if len(fractal.maps) == 1 else 's'}, {_symmetry(fractal.symmetry)}",
        f"at {fractal.camera.centre[0]:.3g}, {fractal.camera.centre[1]:.3g}, "
        f"width {fractal.camera.width:.3g}, {_fold(fractal.camera.fold)}",
        *(
            f"{n}  {each.weight / total:.0%}  {_bends(each)}"
            for n, each in enumerate(fractal.maps, 1)
        ),
        *([] if fractal.final is None else [f"final  {_bends(fractal.final)}"]),
    ]


_FACTS: dict[type, Callable[[Any], list[str]]] = {
    ChaosLayer: _system_facts,
    EscapeLayer: _formula_facts,
}
"""Type of fractal -> a function that describes it; the first line names it."""


def _symmetry(symmetry: int) -> str:
    if symmetry == 1:
        return "no symmetry"
    mirrored = " with mirror" if symmetry < 0 else ""
    return f"{abs(symmetry)}-fold symmetry{mirrored}"


def _fold(fold: str) -> str:
    return {"none": "not folded", "mirror": "mirrored at its borders", "wrap": "wrapped"}[fold]


def _bends(each: Map) -> str:
    if not each.variations:
        return "affine"
    return ", ".join(f"{term.name} {term.weight:.2f}" for term in each.variations)


# --- Tables of a page ----------------------------------------------------------------------------


def background_tables(genome: Genome) -> tuple[Table, ...]:
    """Return the properties of an image besides its layers: tone limits and background."""
    rows = (
        ("black", _number(genome.black)),
        ("white", _number(genome.white)),
        ("rejected drafts", str(genome.attempt)),
    )
    caption = "Background, in OKLab: a gradient between the first and the middle colour of the ring"
    return (
        Table(header=("", "value"), rows=rows, caption="Image"),
        _palette_table(genome.background, caption),
    )


def layer_tables(layer: Layer) -> tuple[Table, ...]:
    """Return all parameters of a layer: maps, variations, window and tone, or formula; palette."""
    fractal = layer.fractal
    palette = _palette_table(layer.palette, "Palette: colours in OKLab, around a ring")
    blending = Table(
        header=("", "value"),
        rows=(("blend", layer.blend), ("opacity", _number(layer.opacity))),
        caption="Blending with the layers below",
    )
    if not isinstance(fractal, ChaosLayer):
        return _facts("Formula", fractal), palette, blending
    variations = tuple(_variation_rows(fractal))
    header = ("map", "variation", "weight", "parameters")
    shown = [Table(header=header, rows=variations, caption="Variations")] if variations else []
    window, tone = _facts("Window", fractal.camera), _facts("Tone", fractal.tone)
    return _map_table(fractal), *shown, window, tone, palette, blending


def _named_maps(layer: ChaosLayer) -> list[tuple[str, Map]]:
    named = [(f"{number}", each) for number, each in enumerate(layer.maps, 1)]
    return named if layer.final is None else [*named, ("final", layer.final)]


def _map_table(layer: ChaosLayer) -> Table:
    total = sum(each.weight for each in layer.maps)
    rows = []
    for name, each in _named_maps(layer):
        # The final map is not chosen at random: every point goes through it.
        share = "always" if name == "final" else f"{each.weight / total:.1%}"
        rows.append(
            (name, *map(_number, each.affine), share, _number(each.colour), _number(each.speed))
        )
        if each.post is not None:
            rows.append((f"{name}, post", *map(_number, each.post), "", "", ""))
    return Table(
        header=("map", *"abcdef", "probability", "colour", "speed"),
        rows=tuple(rows),
        caption="Maps: x' = a x + b y + c, y' = d x + e y + f",
    )


def _variation_rows(layer: ChaosLayer) -> Iterator[tuple[str, ...]]:
    for name, each in _named_maps(layer):
        for term in each.variations:
            known = VARIATIONS[VARIATION_NUMBER[term.name]].parameters
            parameters = ", ".join(
                f"{parameter} {_number(value)}"
                for (parameter, *_), value in zip(known, term.parameters, strict=True)
            )
            yield name, term.name, _number(term.weight), parameters or "-"


def _palette_table(palette: Palette, caption: str) -> Table:
    return Table(
        header=("colour", "lightness", "a", "b"),
        rows=tuple(
            (f"{number}", *map(_number, stop)) for number, stop in enumerate(palette.stops, 1)
        ),
        caption=caption,
    )


def _facts(caption: str, of: EscapeLayer | Camera | Tone) -> Table:
    """Return a table of a dataclass with a row for each field."""
    return Table(
        header=("", "value"),
        rows=tuple(
            (field.name.replace("_", " "), _value(getattr(of, field.name))) for field in fields(of)
        ),
        caption=caption,
    )


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_value, value))
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return f"{value:.4g}"


# --- Figures --------------------------------------------------------------------------------------

Points = NDArray[np.float64]

_MARGIN, _GAP = 24, 24
_SMALL = 200
_COLUMN = 300
_FAR = 1e6


def alone(genome: Genome, number: int) -> Genome:
    """Return a genome with only one layer of another, on the same background."""
    layer = replace(genome.layers[number], blend="over", opacity=1.0)
    return replace(genome, layers=(layer,))


def parallelograms(layer: ChaosLayer, shape: tuple[int, int] = SQUARE) -> list[Points]:
    """Return the window and its image under each map, as (4, 2) corners in plane units.

    Only the affine parts of a map are applied, `affine` and then `post`, without variations.

    Args:
        layer: layer of maps.
        shape: height and width of the image; the camera's width is that of the shorter side.
    """
    camera = layer.camera
    height, width = (camera.width / 2 * side / min(shape) for side in shape)
    square = np.array([(-width, -height), (width, -height), (width, height), (-width, height)])
    cosine, sine = math.cos(camera.rotation), math.sin(camera.rotation)
    window = square @ np.array([(cosine, sine), (-sine, cosine)]) + np.array(camera.centre)
    return [window, *(_mapped(each, window) for each in layer.maps)]


def _mapped(each: Map, points: Points) -> Points:
    for affine in (each.affine, each.post):
        if affine is not None:
            a, b, c, d, e, f = affine
            points = points @ np.array([(a, d), (b, e)]) + np.array((c, f))
    return points


def figure(genome: Genome, side: int = 640, shape: tuple[int, int] = SQUARE) -> Image.Image:
    """Draw a genome: the image, and each layer with its maps, palette and parameters.

    Args:
        genome: genome of the image.
        side: longer side of the image in pixels.
        shape: height and width of the image in its dataset, which define its aspect ratio.
    """
    panels = [_panel(genome, number, shape) for number in range(len(genome.layers))]
    image = image_of(genome, side, shape)
    beside = sum(panel.height for panel in panels) + _GAP * (len(panels) - 1)
    top = _MARGIN + 34
    width = 2 * _MARGIN + image.width + _GAP + panels[0].width
    canvas = Image.new("RGB", (width, top + max(image.height, beside) + _MARGIN), PAPER)
    pen = ImageDraw.Draw(canvas)
    title = f"{genome.family}, seed {genome.seed}, image {genome.index}"
    room = image.width + _GAP // 2
    large, font = ImageFont.load_default(TEXT + 5), ImageFont.load_default(TEXT)
    pen.text((_MARGIN, _MARGIN - 4), shortened(title, large, room), fill=INK, font=large)
    heading = "layers, from the bottom to the top"
    left = _MARGIN + image.width + _GAP
    pen.text((left, _MARGIN), heading, fill=SOFT, font=font)
    canvas.paste(image, (_MARGIN, top))
    for panel in panels:
        canvas.paste(panel, (left, top))
        top += panel.height + _GAP
    return canvas


def image_of(genome: Genome, side: int, shape: tuple[int, int]) -> Image.Image:
    """Render a genome with the aspect ratio of `shape` and a longer side of `side` pixels."""
    height, width = (max(MIN_SIDE, round(side * each / max(shape))) for each in shape)
    return Image.fromarray(render(genome, size=(height, width)))


def _panel(genome: Genome, number: int, shape: tuple[int, int]) -> Image.Image:
    """Draw a layer with its maps, palette and parameters."""
    lines = described(genome.layers[number])
    drawn = layer_image(genome, number, shape)
    height = max(drawn.height, len(lines) * LINE)
    panel = Image.new("RGB", (drawn.width + 12 + _COLUMN, height), PAPER)
    panel.paste(drawn, (0, 0))
    pen = ImageDraw.Draw(panel)
    font = ImageFont.load_default(TEXT)
    for position, line in enumerate(lines):
        fill = INK if position == 0 else SOFT
        where = (drawn.width + 12, position * LINE)
        pen.text(where, shortened(line, font, _COLUMN), fill=fill, font=font)
    return panel


def layer_image(genome: Genome, number: int, shape: tuple[int, int] = SQUARE) -> Image.Image:
    """Draw a layer alone, with its maps beside it and its palette below.

    Args:
        genome: genome of the image.
        number: index of the layer.
        shape: as for `figure`.
    """
    layer = genome.layers[number]
    drawn = Image.new("RGB", (2 * _SMALL + 12, _SMALL + 8 + 12), PAPER)
    pen = ImageDraw.Draw(drawn)
    alone_ = image_of(alone(genome, number), _SMALL, shape)
    drawn.paste(alone_, ((_SMALL - alone_.width) // 2, (_SMALL - alone_.height) // 2))
    colours = _colours(layer)
    strip = Image.fromarray(colours[None]).resize((drawn.width, 12), Image.Resampling.BILINEAR)
    drawn.paste(strip, (0, _SMALL + 8))
    if isinstance(layer.fractal, ChaosLayer):
        drawn.paste(_diagram(layer.fractal, colours, shape), (_SMALL + 12, 0))
    else:
        box = (_SMALL + 12, 0, 2 * _SMALL + 11, _SMALL - 1)
        pen.rectangle(box, outline=FRAME)
        note = "no maps: an escape-\ntime fractal iterates\na formula per point"
        pen.text((_SMALL + 30, 70), note, fill=SOFT, font=ImageFont.load_default(TEXT))
    return drawn


def _colours(layer: Layer) -> NDArray[np.uint8]:
    """Return the palette as (256, 3) uint8."""
    return np.rint(np.clip(palette_table(layer.palette), 0, 1) * 255).astype(np.uint8)


def _diagram(layer: ChaosLayer, colours: NDArray[np.uint8], shape: tuple[int, int]) -> Image.Image:
    """Draw the window and its image under each map, at twice the size for smooth lines."""
    shapes = parallelograms(layer, shape)
    points = np.concatenate(shapes)
    # A map may move the window far away; what is too far is cut off.
    window = shapes[0]
    centre, reach = window.mean(axis=0), float(np.ptp(window, axis=0).max())
    spread = float(np.abs(points - centre).max())
    scale = 2 * _SMALL * 0.46 / min(max(spread, reach / 2), 2.5 * reach)
    image = Image.new("RGB", (2 * _SMALL, 2 * _SMALL), PAPER)
    pen = ImageDraw.Draw(image, "RGBA")
    for number, each in enumerate(shapes):
        # Row 0 of an image is at the top of the window. Pillow wraps coordinates
        # beyond 2^31 around.
        pixels = np.clip((each - centre) * scale + _SMALL, -_FAR, _FAR)
        corners = [(float(x), float(y)) for x, y in pixels]
        if number == 0:
            pen.polygon(corners, outline=SOFT, width=3)
            continue
        colour = colours[int(layer.maps[number - 1].colour * 255)].tolist()
        dark = tuple(int(level * 0.6) for level in colour)
        pen.polygon(corners, fill=(*colour, 90))
        pen.polygon(corners, outline=dark, width=4)
        # A dot on the image of the first corner shows rotations and reflections.
        x, y = corners[0]
        pen.ellipse((x - 7, y - 7, x + 7, y + 7), fill=dark)
    small = image.resize((_SMALL, _SMALL), Image.Resampling.LANCZOS)
    ImageDraw.Draw(small).rectangle((0, 0, _SMALL - 1, _SMALL - 1), outline=FRAME)
    return small


def sections(genome: Genome, side: int, shape: tuple[int, int]) -> list[Section]:
    """Return a genome as sections of a page: the whole image, then each layer.

    Args:
        genome: genome of the image.
        side: longer side of the image in pixels.
        shape: height and width of the image in its dataset.
    """
    n = len(genome.layers)
    whole = PageImage(
        data=as_png(image_of(genome, side, shape)),
        description="The image",
        caption="One layer, shown below."
        if n == 1
        else f"{n} layers, shown below from the bottom up.",
    )
    return [
        Section(title="The image", parts=(whole, *background_tables(genome))),
        *(
            Section(
                title=f"Layer {number}: {described(layer)[0]}",
                parts=(
                    PageImage(
                        data=as_png(layer_image(genome, number - 1, shape)),
                        description=f"Layer {number} alone",
                        caption="The layer alone, its maps, and below them its palette."
                        if isinstance(layer.fractal, ChaosLayer)
                        else "The layer alone, and below it its palette.",
                    ),
                    *layer_tables(layer),
                ),
            )
            for number, layer in enumerate(genome.layers, 1)
        ),
    ]
