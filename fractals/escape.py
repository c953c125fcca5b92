"""Escape-time layers: Julia, Mandelbrot, burning ship, Newton and their relatives.

A sample of the image is a point of the plane; its orbit is followed until it escapes (Newton:
settles), is caught in a cycle, or `max_iterations` is reached. Three features of an orbit are kept:

* the smooth count of iterations (Härkönen 2007, "On smooth fractal coloring techniques",
  http://jussiharkonen.com/files/on_fractal_coloring_techniques%28lo-res%29.pdf, section 3),
* its closest approach to a conic: an orbit trap (Pickover's stalks are the cross; section 4),
* the mean of a wave of its angle: the stripe average (section 4). For Newton, whose orbits settle,
  the wave at the end instead, which tells the roots apart.

A weighted sum of the three is the coordinate in a cyclic palette, so that smooth colouring, traps
and stripes are one path. The slope of that coordinate lights the image as a relief.

A window to look at is found by zooming in on places where the iteration count changes fast, on
grids of 16 x 16 orbits. What a last grid shows of the window decides whether it is kept, how many
iterations it has before its detail is finer than a pixel, and how many palette turns each feature
gets.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fractals import escape_kernels as kernels
from fractals.escape_kernels import Look, Orbits, measure_orbits, turn, window_frame
from fractals.numerics import Draws

PLANES = ("julia", "parameter")


class Formula(NamedTuple):
    """A row of `FORMULAS`.

    family: the loop of the kernels; powers: that it takes. ground: the window that a search starts
    from in the plane of its parameter: x, y, width. share: of the layers that are drawn. fold: how
    x, y before the power and the real part after it are folded: (|x|, x, |y|, y, |re|, re).
    """

    family: int
    powers: tuple[int, ...]
    ground: tuple[float, float, float]
    share: float
    fold: tuple[float, ...] = (0.0, 1.0, 0.0, 1.0, 0.0, 1.0)


_UP_TO_5 = (2, 3, 4, 5)
FORMULAS = {
    "power": Formula(kernels.POWER, _UP_TO_5, (-0.3, 0.0, 2.6), 0.42),
    "ship": Formula(
        kernels.POWER, _UP_TO_5, (-0.5, -0.4, 3.0), 0.12, (1.0, 0.0, 1.0, 0.0, 0.0, 1.0)
    ),
    "tricorn": Formula(
        kernels.POWER, _UP_TO_5, (-0.2, 0.0, 3.4), 0.08, (0.0, 1.0, 0.0, -1.0, 0.0, 1.0)
    ),
    "celtic": Formula(
        kernels.POWER, _UP_TO_5, (-0.6, 0.0, 3.2), 0.08, (0.0, 1.0, 0.0, 1.0, 1.0, 0.0)
    ),
    "phoenix": Formula(kernels.PHOENIX, (2,), (0.0, 0.0, 2.6), 0.08),
    "rings": Formula(kernels.RINGS, (2, 3), (0.0, 0.0, 2.6), 0.1),
    "newton": Formula(kernels.NEWTON, (3, 4, 5), (0.0, 0.0, 2.0), 0.12),
}

TRAPS: dict[str, Callable[[float], tuple[float, ...]]] = {
    "point": lambda _: (1.0, 0.0, 1.0, 0.0, 0.0, 0.0),
    "circle": lambda size: (1.0, 0.0, 1.0, 0.0, 0.0, -size * size),
    "line": lambda _: (0.0, 0.0, 0.0, 1.0, 0.0, 0.0),
    "cross": lambda _: (0.0, 1.0, 0.0, 0.0, 0.0, 0.0),
    "parabola": lambda size: (1.0, 0.0, 0.0, 0.0, -size, 0.0),
    "hyperbola": lambda size: (1.0, 0.0, -1.0, 0.0, 0.0, -size * size),
}
"""Conics of a size, in a frame of their own: the coefficients of u^2, u v, v^2, u, v and 1."""

# The share of the light that comes aslant; see _LIGHT_HEIGHT in escape_kernels.py.
_LIGHT_SLANT = 0.75
# A band's orbits and features then stay in the second-level cache.
_BAND_SAMPLES = 32768


@dataclass(frozen=True, kw_only=True)
class EscapeLayer:
    """All that an escape-time image needs besides a palette, in plain JSON values.

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
        known: dict[str, Collection[str]] = {"formula": FORMULAS, "plane": PLANES, "trap": TRAPS}
        for name, allowed in known.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} {value!r} is unknown; use one of {', '.join(allowed)}")
        powers = FORMULAS[self.formula].powers
        if self.power not in powers:
            raise ValueError(
                f"power {self.power} does not suit {self.formula}; use one of "
                f"{', '.join(map(str, powers))}"
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
        (name, -1e3, 1e3)
        for name in (
            *("smooth_turns", "trap_turns", "wave_turns", "cell_turns", "inner_trap_turns"),
            *("inner_wave_turns", "rotation", "trap_rotation", "wave_phase", "phase"),
            *("inner_phase", "light_rotation", "edge_phase"),
        )
    ),
)


def _conic(layer: EscapeLayer) -> tuple[float, ...]:
    """Return the coefficients of xx xy yy x y 1 of the trap's conic."""
    a, b, c, d, e, f = TRAPS[layer.trap](layer.trap_size)
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


def orbits_of(layer: EscapeLayer) -> Orbits:
    """Return the numbers that the orbits of a layer depend on."""
    family, fold = FORMULAS[layer.formula].family, FORMULAS[layer.formula].fold
    k_re, k_im = layer.coefficient
    if family == kernels.NEWTON:
        k_re, k_im = k_re / layer.power, k_im / layer.power
    parameters = (
        *(1.0, 2.0, 3.0, 0.0),
        *(kernels.ESCAPED_SQUARE, kernels.SETTLED_SQUARE, kernels.CAUGHT_SQUARE, kernels.CAUGHT),
        *(kernels.NEWTON_RATE, kernels.NEWTON_POLE if family == kernels.NEWTON else kernels.POLE),
        *fold,
        *_conic(layer),
        *(1.0 - layer.wave_detail, 2.0 * layer.wave_detail),
        *(k_re, k_im),
    )
    # Whether the first z, and c, are one point for all orbits instead of each one's sample.
    if layer.plane == "julia":
        start = (0.0, 1.0, *layer.constant)
    elif family == kernels.NEWTON:
        start = (1.0, 0.0, 1.0, 0.0)
    else:
        start = (0.0, 0.0, 0.0, 0.0)
    return Orbits(
        family=family,
        power=layer.power,
        parameters=np.array(parameters),
        start=np.array(start),
        wave=np.array(turn(layer.wave_phase), np.float32),
        max_iterations=layer.max_iterations,
    )


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

    samples_per_pixel: the chaos game's measure of effort. An image of smooth functions needs only
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
    image = np.empty((height, width, 3), np.float32)
    for top in range(0, height, band):
        part = image[top : top + band]
        rows = len(part) * side + 1
        features = measure_orbits(orbits, frame, layer.width, top * side, rows, columns)
        kernels.paint_features(features, palette, look, side, part)
    return image


def paint_escape(
    layer: EscapeLayer,
    table: NDArray[np.float32],
    size: tuple[int, int],
    samples_per_pixel: float,
    *_: object,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a layer's light and cover; see `genome.Kind`. It plays no game and needs no key."""
    image = render_escape(layer, table, size, samples_per_pixel)
    return np.ascontiguousarray(image.transpose(2, 0, 1)), np.ones(size, np.float32)


_JULIA_WIDTH = 2.6
# Palette turns over a window by smooth count, trap, wave and cells; chosen by eye from sheets.
_RECIPES = (
    (1.0, 0.0, 0.0, 0.2),
    (1.2, 0.0, 0.2, 0.0),
    (0.6, 0.0, 0.4, 0.0),
    (0.3, 0.8, 0.0, 0.0),
    (0.6, 0.4, 0.0, 0.15),
)
_RECIPE_WEIGHTS = (0.2, 0.15, 0.12, 0.37, 0.16)
_SURVEY = 16
_TRIES = 8
# Iterations while looking for a place, and while its own number of them is being found.
_SEARCH_ITERATIONS, _FINDING_ITERATIONS = 96, 320
# A window is at fault with less than this share escaping, or more than this share calm, or dusty,
# or more than this coherence of its slopes, which is 1 where all lines are parallel.
_LEAST_OUTSIDE, _MOST_CALM, _MOST_DUSTY, _MOST_STRIPED = 0.5, 0.45, 0.05, 0.6


def _significant(value: float) -> float:
    """Round to five significant digits, so that another machine's last bit cannot show."""
    return float(f"{value:.5g}")


def _survey(layer: EscapeLayer, aside: int) -> Look:
    """Look at a window through a coarse grid of orbits, and at the same a little aside.

    aside: 256ths of the window between the two; 0 looks once, and finds nothing dusty.
    """
    orbits = orbits_of(layer)
    frame = window_frame(layer.centre, layer.width, layer.rotation, _SURVEY, _SURVEY)
    here = measure_orbits(orbits, frame, layer.width, 0, _SURVEY, _SURVEY)
    shifted = here
    if aside:
        frame[:2] += frame[2:4] * (_SURVEY * aside / 256)
        shifted = measure_orbits(orbits, frame, layer.width, 0, _SURVEY, _SURVEY)
    return Look(*kernels.appraise(here, shifted).tolist())


def _fault(look: Look) -> float:
    """Return how far a window is from showing something everywhere; 0 is good."""
    return (
        max(_LEAST_OUTSIDE - look.outside, 0.0)
        + max(look.calm - _MOST_CALM, 0.0)
        + 2.0 * max(look.dusty - _MOST_DUSTY, 0.0)
        + max(look.striped - _MOST_STRIPED, 0.0)
    )


def _descend(draws: Draws, layer: EscapeLayer, width: float) -> EscapeLayer:
    """Zoom in on the border of the set until the window is `width` plane units wide."""
    orbits = orbits_of(layer)
    x, y = layer.centre
    span = layer.width
    while span > 1.01 * width:
        frame = window_frame((x, y), span, 0.0, _SURVEY, _SURVEY)
        features = measure_orbits(orbits, frame, span, 0, _SURVEY, _SURVEY)
        row, column = kernels.choose(features, draws.unit())
        x = round(float(frame[0] + column * frame[2] + row * frame[4]), 9)
        y = round(float(frame[1] + column * frame[3] + row * frame[5]), 9)
        span = _significant(max(span / draws.uniform(2.5, 5.0), width))
    return replace(layer, centre=(x, y), width=span)


def _draw_formula(draws: Draws) -> EscapeLayer:
    """Draw a formula with its numbers, looking at the whole plane of its parameter."""
    formula = draws.weighted(list(FORMULAS), [formula.share for formula in FORMULAS.values()])
    power = draws.weighted((2, 3), (0.75, 0.25))
    coefficient = (0.0, 0.0)
    if formula == "power":
        power = draws.weighted((2, 3, 4, 5), (0.6, 0.2, 0.12, 0.08))
    elif formula == "rings":
        power = draws.choice((2, 3, 3))
    elif formula == "phoenix":
        power = 2
        coefficient = (round(draws.uniform(-0.7, 0.5), 4), round(draws.uniform(-0.2, 0.2), 4))
    elif formula == "newton":
        power = draws.choice((3, 4, 5))
        coefficient = (round(draws.uniform(0.7, 1.5), 4), round(draws.uniform(-0.5, 0.5), 4))
    x, y, width = FORMULAS[formula].ground
    return EscapeLayer(
        formula=formula,
        power=power,
        plane="julia" if formula == "rings" else "parameter",
        coefficient=coefficient,
        centre=(x, y),
        width=width,
        max_iterations=_SEARCH_ITERATIONS,
    )


def _draw_constant(draws: Draws, layer: EscapeLayer) -> tuple[float, float]:
    """Draw the constant of a Julia set: near the border of its formula's parameter set."""
    if layer.formula == "rings":
        size, (cosine, sine) = 2 ** draws.uniform(-7.0, -1.5), turn(draws.unit())
        return _significant(size * cosine), _significant(size * sine)
    if layer.formula == "newton":
        if draws.chance(0.4):
            return 0.0, 0.0
        return round(draws.uniform(-0.3, 0.3), 4), round(draws.uniform(-0.3, 0.3), 4)
    return _descend(draws, layer, layer.width / 2 ** draws.uniform(3.0, 7.0)).centre


def _draw_window(draws: Draws) -> EscapeLayer:
    """Draw a formula and a window on its border; a third of Julia sets are shown whole."""
    layer = _draw_formula(draws)
    if layer.plane == "parameter" and draws.chance(0.4):
        return _descend(draws, layer, layer.width / 2 ** draws.uniform(0.5, 11.0))
    constant = _draw_constant(draws, layer)
    layer = replace(layer, plane="julia", constant=constant, centre=(0.0, 0.0), width=_JULIA_WIDTH)
    if draws.chance(0.35):
        return replace(layer, width=_significant(2 ** draws.uniform(-2.5, 1.2)))
    return _descend(draws, layer, _JULIA_WIDTH / 2 ** draws.uniform(0.3, 6.5))


def _draw_place(draws: Draws) -> tuple[EscapeLayer, Look]:
    """Draw windows until one has no fault, or return the least faulty."""
    found: list[tuple[float, EscapeLayer, Look]] = []
    for _ in range(_TRIES):
        layer = replace(
            _draw_window(draws),
            rotation=round(draws.unit(), 4),
            max_iterations=_FINDING_ITERATIONS,
            trap=draws.choice(list(TRAPS)),
            trap_centre=(round(draws.uniform(-0.6, 0.6), 3), round(draws.uniform(-0.6, 0.6), 3)),
            trap_rotation=round(draws.unit(), 4),
            trap_size=round(draws.uniform(0.1, 0.9), 3),
            wave_phase=round(draws.unit(), 4),
            wave_detail=round(draws.unit(), 3),
        )
        look = _survey(layer, aside=0)
        limit = look.median_count + (look.many_count - look.median_count) * draws.uniform(0.2, 1.0)
        limit = min(max(4 * int(limit / 4 + 1), 8), _FINDING_ITERATIONS)
        layer = replace(layer, max_iterations=limit)
        fault = _fault(look)
        if fault == 0.0:
            look = _survey(layer, aside=1)
            fault = _fault(look)
        found.append((fault, layer, look))
        if fault == 0.0:
            break
    _, layer, look = min(found, key=lambda item: item[0])
    return layer, look


def draw_escape(draws: Draws) -> EscapeLayer:
    """Draw a layer: an interesting window of a random formula, and colours that suit it.

    draws: the genome's stream; advanced.
    """
    layer, look = _draw_place(draws)
    smooth, trap, wave, cell = draws.weighted(_RECIPES, _RECIPE_WEIGHTS)
    inner_trap = draws.unit()
    # A calm window gets more turns, a lively one shows enough by itself.
    turns = draws.uniform(0.5, 1.2) * (1.0 + look.calm)
    return replace(
        layer,
        smooth_turns=_significant(turns * smooth / look.smooth_spread),
        trap_turns=_significant(turns * trap / look.trap_spread),
        wave_turns=_significant(turns * wave / look.wave_spread),
        cell_turns=round(turns * cell * draws.uniform(0.5, 1.2), 3),
        inner_trap_turns=_significant(turns * inner_trap / look.inner_trap_spread),
        inner_wave_turns=_significant(turns * (1.0 - inner_trap) / look.inner_wave_spread),
        phase=round(draws.unit(), 4),
        inner_phase=round(draws.unit(), 4),
        relief=round(draws.uniform(0.1, 0.6), 3),
        light_rotation=round(draws.unit(), 4),
        steepness=_significant(draws.uniform(0.02, 0.08) / turns),
        edge=round(draws.uniform(-0.9, 0.7), 3),
        edge_phase=round(draws.unit(), 4),
        glow=round(draws.uniform(0.2, 0.8), 3) if trap and draws.chance(0.6) else 0.0,
        glow_reach=_significant(2 ** draws.uniform(-8.0, -4.0)),
    )


def draw_escape_layer(draws: Draws, *_: object) -> tuple[EscapeLayer, None]:
    """Draw a layer, which has no game; see `genome.Kind`."""
    return draw_escape(draws), None
