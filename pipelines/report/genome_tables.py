"""How a fractal is made, in words and tables: its layers, their maps and all their numbers."""

from collections.abc import Iterator
from dataclasses import fields

from fractals import Genome
from fractals.chaos import Camera, ChaosLayer, Map, Tone
from fractals.escape import EscapeLayer
from fractals.genome import Layer
from fractals.palettes import Palette
from fractals.variations import VARIATION_NUMBER, VARIATIONS
from pipelines.report.page import Table


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


# --- tables of a page ----------------------------------------------------------------------------


def ground_tables(genome: Genome) -> tuple[Table, ...]:
    """Return what a picture has besides its layers."""
    rows = (
        ("black", _number(genome.black)),
        ("white", _number(genome.white)),
        ("drafts before", str(genome.attempt)),
    )
    ground = "Ground: its first colour and the one in the middle of the ring shade it; OKLab"
    return Table(header=("", "value"), rows=rows), _palette_table(genome.background, ground)


def layer_tables(layer: Layer) -> tuple[Table, ...]:
    """Return all numbers of a layer: maps, variations, window and tone, or its formula; palette."""
    fractal = layer.fractal
    palette = _palette_table(layer.palette, "Palette: colours in OKLab, around a ring")
    lies = Table(
        header=("", "value"),
        rows=(("blend", layer.blend), ("opacity", _number(layer.opacity))),
        caption="How it lies on what is below",
    )
    if isinstance(fractal, EscapeLayer):
        return _facts("Formula", fractal), palette, lies
    variations = tuple(_variation_rows(fractal))
    header = ("map", "variation", "weight", "parameters")
    bends = [Table(header=header, rows=variations, caption="Variations")] if variations else []
    window, tone = _facts("Window", fractal.camera), _facts("Tone", fractal.tone)
    return _map_table(fractal), *bends, window, tone, palette, lies


def _named_maps(layer: ChaosLayer) -> list[tuple[str, Map]]:
    named = [(f"{number}", each) for number, each in enumerate(layer.maps, 1)]
    return named if layer.final is None else [*named, ("last", layer.final)]


def _map_table(layer: ChaosLayer) -> Table:
    total = sum(each.weight for each in layer.maps)
    rows = []
    for name, each in _named_maps(layer):
        # The last map is never chosen: every point goes through it.
        share = "every point" if name == "last" else f"{each.weight / total:.1%}"
        rows.append(
            (name, *map(_number, each.affine), share, _number(each.colour), _number(each.speed))
        )
        if each.post is not None:
            rows.append((f"{name}, after", *map(_number, each.post), "", "", ""))
    return Table(
        header=("map", *"abcdef", "chosen", "colour", "speed"),
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
    """Return a table of a dataclass, a row a field."""
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
