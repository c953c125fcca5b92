"""Escape-time pictures: Julia, Mandelbrot, burning ship, Newton and their relatives.

A sample of the picture is a point of the plane; its orbit is followed until it escapes (Newton:
settles), is caught in a cycle, or `max_iterations` is reached. Three features of an orbit are kept:

* the smooth count of iterations (Härkönen 2007, "On smooth fractal coloring techniques",
  http://jussiharkonen.com/files/on_fractal_coloring_techniques%28lo-res%29.pdf, section 3),
* its closest approach to a conic: an orbit trap (Pickover's stalks are the cross; section 4),
* the mean of a wave of its angle: the stripe average (section 4). For Newton, whose orbits settle,
  the wave at the end instead, which tells the roots apart.

A weighted sum of the three is the coordinate in a cyclic palette, so that smooth colouring, traps
and stripes are one path. The slope of that coordinate lights the picture as a relief.

Windows wider than `SINGLE_WIDTH` are computed in float32, three times as fast as float64, which
narrower ones need to tell pixels apart.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fractals import escape_kernels as kernels
from fractals.elementary import sine_of_turns

FORMULAS = ("power", "ship", "tricorn", "celtic", "phoenix", "rings", "newton")
PLANES = ("julia", "parameter")
TRAPS = ("point", "circle", "line", "cross", "parabola", "hyperbola")
# 2^-7: a row of 2048 samples then still has 30 float32 steps between neighbours at |z| = 1.
SINGLE_WIDTH = 0.0078125

_F = np.float32
# The share of the light that comes aslant; see _LIGHT_HEIGHT in escape_kernels.py.
_LIGHT_SLANT = 0.75
# A band's orbits and features then stay in the second-level cache.
_BAND_SAMPLES = 32768
_FAMILY = {
    "power": kernels.POWER,
    "ship": kernels.POWER,
    "tricorn": kernels.POWER,
    "celtic": kernels.POWER,
    "phoenix": kernels.PHOENIX,
    "rings": kernels.RINGS,
    "newton": kernels.NEWTON,
}
# How x, y before the power and the real part after it are folded: (|x|, x, |y|, y, |re|, re).
_FOLDS = {
    "power": (0.0, 1.0, 0.0, 1.0, 0.0, 1.0),
    "ship": (1.0, 0.0, 1.0, 0.0, 0.0, 1.0),
    "tricorn": (0.0, 1.0, 0.0, -1.0, 0.0, 1.0),
    "celtic": (0.0, 1.0, 0.0, 1.0, 1.0, 0.0),
}
_POWERS = {
    "power": (2, 3, 4, 5),
    "ship": (2, 3, 4, 5),
    "tricorn": (2, 3, 4, 5),
    "celtic": (2, 3, 4, 5),
    "phoenix": (2,),
    "rings": (2, 3),
    "newton": (3, 4, 5),
}


@dataclass(frozen=True, kw_only=True)
class EscapeLayer:
    """All that an escape-time picture needs besides a palette, in plain JSON values.

    formula: one of `FORMULAS`; power: 2 to 5 (phoenix 2; rings 2, 3; newton 3 to 5). With z the
        running point, k the `coefficient` and p the power, a step is:
        power z^p + c; ship (|x| + i|y|)^p + c; tricorn conj(z)^p + c; celtic as power, with the
        absolute real part of z^p; phoenix z^2 + c + k z_before; rings z^p + c / z^p (McMullen
        1988); newton z - k (z^p - 1) / (p z^(p-1)) + c, relaxed by k, a nova fractal where c != 0.
    plane: "julia" (the sample is the first z, c is `constant`) or "parameter" (the sample is c).
    centre, width: of the window, in plane units; width spans the shorter side, 1e-6 to 100.
        rotation: turns.
    max_iterations: orbits that last longer count as inside. 4 to 4096, a multiple of 4.
    trap: one of `TRAPS`, at trap_centre, turned by trap_rotation turns, of trap_size plane units.
    smooth_turns, trap_turns, wave_turns, cell_turns: palette turns, for each doubling of the
        iteration count, each doubling of the trap's value, each unit of the wave, and each cell of
        the binary decomposition. wave_phase: turns; wave_detail: weight in [0, 1] of waves of four
        periods a turn against two.
    inner_trap_turns, inner_wave_turns: the same where orbits do not escape.
    phase, inner_phase: palette turns at zero, outside and inside.
    relief: strength in [0, 1] of the light, which comes from light_rotation (turns).
        steepness: height of the relief, window widths a palette turn.
    edge: tone of detail finer than a pixel: the palette at edge_phase (turns), darkened to black
        (-1) or turned to its complement (1).
    glow: strength in [0, 1] of the light around the trap; glow_reach: the trap's value where it
        has fallen to a quarter.
    """

    formula: str
    power: int
    plane: str
    constant: tuple[float, float] = (0.0, 0.0)
    coefficient: tuple[float, float] = (0.0, 0.0)
    centre: tuple[float, float]
    width: float
    rotation: float = 0.0
    max_iterations: int
    trap: str = "point"
    trap_centre: tuple[float, float] = (0.0, 0.0)
    trap_rotation: float = 0.0
    trap_size: float = 0.5
    smooth_turns: float = 0.5
    trap_turns: float = 0.0
    wave_turns: float = 0.0
    wave_phase: float = 0.0
    wave_detail: float = 0.0
    cell_turns: float = 0.0
    inner_trap_turns: float = 0.0
    inner_wave_turns: float = 0.0
    phase: float = 0.0
    inner_phase: float = 0.0
    relief: float = 0.0
    light_rotation: float = 0.0
    steepness: float = 0.1
    edge: float = 0.0
    edge_phase: float = 0.0
    glow: float = 0.0
    glow_reach: float = 0.01

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn; pairs may come as lists, as JSON has them."""
        for name in ("constant", "coefficient", "centre", "trap_centre"):
            given = tuple(getattr(self, name))
            if len(given) != 2 or not all(abs(value) <= _FARTHEST for value in given):
                raise ValueError(
                    f"{name} is {given}; give two numbers, x and y, from {-_FARTHEST:g} to "
                    f"{_FARTHEST:g}"
                )
            object.__setattr__(self, name, tuple(map(float, given)))
        _require_one_of("formula", self.formula, FORMULAS)
        _require_one_of("plane", self.plane, PLANES)
        _require_one_of("trap", self.trap, TRAPS)
        if self.power not in _POWERS[self.formula]:
            allowed = ", ".join(str(power) for power in _POWERS[self.formula])
            raise ValueError(
                f"power {self.power} does not suit {self.formula}; use one of {allowed}"
            )
        if self.formula == "rings" and self.plane == "parameter":
            raise ValueError(
                'rings has no plane "parameter": its orbits would start at 1/0; use "julia"'
            )
        if (
            self.max_iterations % kernels.STRIDE
            or not kernels.STRIDE <= self.max_iterations <= 4096
        ):
            raise ValueError(
                f"max_iterations is {self.max_iterations}; "
                f"use a multiple of {kernels.STRIDE} up to 4096"
            )
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; use a number from {low} to {high}")


# Of places in the plane: their squares and products are still numbers of float32.
_FARTHEST = 1e6

# Beyond these the arithmetic has no pixels left to show, or the number has no meaning.
_RANGES = (
    ("width", 1e-6, 100.0),
    ("trap_size", 0.0, 100.0),
    ("wave_detail", 0.0, 1.0),
    ("relief", 0.0, 1.0),
    ("steepness", 0.0, 100.0),
    ("edge", -1.0, 1.0),
    ("glow", 0.0, 1.0),
    ("glow_reach", 1e-6, 100.0),
    *(
        (f"{name}_turns", -1e3, 1e3)
        for name in ("smooth", "trap", "wave", "cell", "inner_trap", "inner_wave")
    ),
    *(
        (name, -1e3, 1e3)
        for name in ("rotation", "trap_rotation", "wave_phase", "phase", "inner_phase")
    ),
    *((name, -1e3, 1e3) for name in ("light_rotation", "edge_phase")),
)


def _require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} {value!r} is unknown; use one of {', '.join(allowed)}")


def turn(turns: float) -> tuple[float, float]:
    """Return cosine and sine of an angle in turns, the same bits everywhere."""
    return float(sine_of_turns(_F(turns + 0.25))), float(sine_of_turns(_F(turns)))


def _conic(layer: EscapeLayer) -> tuple[float, ...]:
    """Return the coefficients of xx xy yy x y 1 of the trap's conic."""
    size = layer.trap_size
    # a u^2 + b u v + c v^2 + d u + e v + f in the trap's own frame.
    a, b, c, d, e, f = {
        "point": (1.0, 0.0, 1.0, 0.0, 0.0, 0.0),
        "circle": (1.0, 0.0, 1.0, 0.0, 0.0, -size * size),
        "line": (0.0, 0.0, 0.0, 1.0, 0.0, 0.0),
        "cross": (0.0, 1.0, 0.0, 0.0, 0.0, 0.0),
        "parabola": (1.0, 0.0, 0.0, 0.0, -size, 0.0),
        "hyperbola": (1.0, 0.0, -1.0, 0.0, 0.0, -size * size),
    }[layer.trap]
    # u = cosine x + sine y - u0, v = -sine x + cosine y - v0.
    cosine, sine = turn(layer.trap_rotation)
    u0 = cosine * layer.trap_centre[0] + sine * layer.trap_centre[1]
    v0 = cosine * layer.trap_centre[1] - sine * layer.trap_centre[0]
    d, e, f = (
        d - 2 * a * u0 - b * v0,
        e - 2 * c * v0 - b * u0,
        f + a * u0 * u0 + b * u0 * v0 + c * v0 * v0 - d * u0 - e * v0,
    )
    return (
        a * cosine * cosine - b * cosine * sine + c * sine * sine,
        2 * (a - c) * cosine * sine + b * (cosine * cosine - sine * sine),
        a * sine * sine + b * cosine * sine + c * cosine * cosine,
        d * cosine - e * sine,
        d * sine + e * cosine,
        f,
    )


class Orbits(NamedTuple):
    """What the kernels need to know of a layer: numbers only, wherever its window lies."""

    family: int
    power: int
    parameters: NDArray[np.float64]
    start: NDArray[np.float64]
    wave: NDArray[np.float32]
    max_iterations: int


def orbits_of(layer: EscapeLayer) -> Orbits:
    """Return the numbers that the orbits of a layer depend on."""
    family = _FAMILY[layer.formula]
    k_re, k_im = layer.coefficient
    if family == kernels.NEWTON:
        k_re, k_im = k_re / layer.power, k_im / layer.power
    parameters = (
        *(1.0, 2.0, 3.0, 0.0),
        *(kernels.ESCAPED_SQUARE, kernels.SETTLED_SQUARE, kernels.CAUGHT_SQUARE, kernels.CAUGHT),
        *(kernels.NEWTON_RATE, kernels.NEWTON_POLE if family == kernels.NEWTON else kernels.POLE),
        *_FOLDS.get(layer.formula, _FOLDS["power"]),
        *_conic(layer),
        *(1.0 - layer.wave_detail, 2.0 * layer.wave_detail),
        *(k_re, k_im),
    )
    if layer.plane == "julia":
        start = (kernels.AT_SAMPLE, *layer.constant)
    else:
        start = (
            (kernels.AT_POINT, 1.0, 0.0) if family == kernels.NEWTON else (kernels.AT_C, 0.0, 0.0)
        )
    return Orbits(
        family=family,
        power=layer.power,
        parameters=np.array(parameters),
        start=np.array(start),
        wave=np.array(turn(layer.wave_phase), np.float32),
        max_iterations=layer.max_iterations,
    )


def window_frame(
    centre: tuple[float, float], span: float, rotation: float, rows: int, columns: int
) -> NDArray[np.float64]:
    """Return where the samples of a window lie.

    centre: plane point. span: plane units across the shorter side. rotation: turns.
    Returns (6,) float64: the plane point of sample (0, 0), the step of a column, of a row.
    """
    step = span / min(rows, columns)
    cosine, sine = turn(rotation)
    column_x, column_y, row_x, row_y = step * cosine, step * sine, -step * sine, step * cosine
    back_x, back_y = (columns - 1) / 2, (rows - 1) / 2
    x = centre[0] - back_x * column_x - back_y * row_x
    y = centre[1] - back_x * column_y - back_y * row_y
    return np.array((x, y, column_x, column_y, row_x, row_y))


def measure_orbits(
    orbits: Orbits,
    frame: NDArray[np.float64],
    span: float,
    first_row: int,
    rows: int,
    columns: int,
) -> NDArray[np.float32]:
    """Return the features of a band of samples.

    frame: of `window_frame`; span: of the whole window, plane units; decides the precision.
    Returns (4, rows, columns) float32: log2(1 + smooth count), -1 where the orbit never escaped;
    log2 of the trap's least value; the wave, in about [-1, 1]; the cell pattern, in [-1, 1].
    """
    precision = np.float32 if span > SINGLE_WIDTH else np.float64
    tiles = np.empty(
        (-(-rows // kernels.TILE) * -(-columns // kernels.TILE), kernels.FIELDS * kernels.LANES),
        precision,
    )
    kernels.place_orbits(tiles, frame, orbits.start, first_row, rows, columns)
    advance = kernels.orbit_kernel(orbits.family, orbits.power)
    advance(tiles, orbits.parameters.astype(precision), orbits.max_iterations)
    features = np.empty((4, rows, columns), np.float32)
    if orbits.family == kernels.NEWTON:
        kernels.read_settling(tiles, orbits.wave, features)
    else:
        kernels.read_escaping(tiles, _F(orbits.power), orbits.wave, features)
    return features


def _look(layer: EscapeLayer, samples: int) -> NDArray[np.float32]:
    """Return the numbers of `paint_features`. samples: along the window's shorter side."""
    light_x, light_y = turn(layer.light_rotation)
    numbers = (
        *(layer.smooth_turns, layer.trap_turns, layer.wave_turns, layer.cell_turns, layer.phase),
        *(layer.inner_trap_turns, layer.inner_wave_turns, layer.inner_phase),
        *(layer.relief, _LIGHT_SLANT * light_x, _LIGHT_SLANT * light_y, layer.steepness * samples),
        *(layer.glow, layer.glow_reach, layer.edge, layer.edge_phase),
    )
    return np.array(numbers, np.float32)


def samples_along_pixel(samples_per_pixel: float) -> int:
    """Return how many samples stand along a pixel's side.

    samples_per_pixel: the chaos game's measure of effort. A picture of smooth functions needs only
    about its fourth root along a side: 50 gives 2, 200 gives 3, 10 gives 1.
    """
    return max(1, round(0.75 * math.sqrt(math.sqrt(samples_per_pixel))))


def render_escape(
    layer: EscapeLayer,
    palette: NDArray[np.float32],
    size: tuple[int, int],
    samples_per_pixel: float,
) -> NDArray[np.float32]:
    """Render a layer; the same bits on every machine.

    palette: (256, 3) float32 in [0, 1], display RGB, cyclic. size: (height, width) in pixels.
    samples_per_pixel: see `samples_along_pixel`; samples are averaged in display space.
    Returns (height, width, 3) float32 in [0, 1], display RGB, every pixel covered.
    """
    height, width = size
    side = samples_along_pixel(samples_per_pixel)
    frame = window_frame(layer.centre, layer.width, layer.rotation, height * side, width * side)
    # One more row above and column to the left: slopes are backward differences.
    frame[:2] -= frame[2:4] + frame[4:6]
    orbits = orbits_of(layer)
    look = _look(layer, min(height, width) * side)
    columns = width * side + 1
    band = max(1, _BAND_SAMPLES // (columns * side))
    picture = np.empty((height, width, 3), np.float32)
    for top in range(0, height, band):
        part = picture[top : top + band]
        rows = len(part) * side + 1
        features = measure_orbits(orbits, frame, layer.width, top * side, rows, columns)
        kernels.paint_features(features, palette, look, side, part)
    return picture
