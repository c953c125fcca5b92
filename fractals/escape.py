"""Escape-time layers: Julia, Mandelbrot, burning ship, Newton and related fractals.

A sample of the image is a point of the plane. Its orbit is iterated until it escapes (Newton:
settles), enters a cycle, or reaches ``max_iterations``. An orbit has three features:

* the smooth iteration count (Härkönen 2007, "On smooth fractal coloring techniques",
  http://jussiharkonen.com/files/on_fractal_coloring_techniques%28lo-res%29.pdf, section 3),
* the smallest value of a conic along the orbit, an orbit trap (section 4; the cross gives
  Pickover's stalks),
* the mean of a wave of the angle, the stripe average (section 4). Newton orbits settle, so the wave
  at their end is used instead, which separates the roots.

A weighted sum of the three is the coordinate in a cyclic palette, so that smooth colouring, traps
and stripes share one code path. The slope of that coordinate shades the image as a relief.

A window is found by repeatedly zooming in on places where the iteration count changes fast, on
grids of 16 x 16 orbits. The last grid decides whether the window is kept, how many iterations it
gets before detail becomes finer than a pixel, and how many palette turns each feature gets.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fractals import escape_kernels as kernels
from fractals.escape_kernels import (
    Orbits,
    WindowStatistics,
    cosine_and_sine,
    measure_orbits,
    window_frame,
)
from fractals.numerics import Draws

PLANES = ("julia", "parameter")


class Formula(NamedTuple):
    """A formula of the iteration.

    Attributes:
        family: The loop of the kernels.
        powers: Powers that the formula supports.
        search_window: (x, y, width) in the parameter plane, where a search starts.
        probability: Probability that a layer uses the formula.
        fold: Weights of (abs(x), x, abs(y), y) before the power and of (abs(re), re) after it.
    """

    family: int
    powers: tuple[int, ...]
    search_window: tuple[float, float, float]
    probability: float
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
"""Conics of a given size, in their own frame: the coefficients of u^2, u v, v^2, u, v and 1."""

# Horizontal component of the light's direction; see _LIGHT_HEIGHT in escape_kernels.py.
_LIGHT_SLANT = 0.75
# At this size, a band's orbits and features stay in the L2 cache.
_BAND_SAMPLES = 32768


@dataclass(frozen=True, kw_only=True)
class EscapeLayer:
    """Parameters of an escape-time image except the palette, as plain JSON values.

    With z the current point, k the ``coefficient`` and p the power, one step is:

    * power: z^p + c
    * ship: (``|x| + i|y|``)^p + c
    * tricorn: conj(z)^p + c
    * celtic: as power, with the absolute real part of z^p
    * phoenix: z^2 + c + k times the previous z
    * rings: z^p + c / z^p (McMullen 1988)
    * newton: z - k (z^p - 1) / (p z^(p-1)) + c; relaxed by k, a nova fractal if c != 0

    Attributes:
        formula: One of ``FORMULAS``.
        power: 2 to 5 (phoenix 2; rings 2, 3; newton 3 to 5).
        plane: "julia" (the sample is the first z, c is ``constant``) or "parameter" (the sample is
            c).
        constant: c of a Julia set, as (re, im).
        coefficient: k, as (re, im).
        centre: (x, y) of the window in plane units.
        width: Plane units across the shorter side, 1e-6 to 100.
        rotation: Turns.
        max_iterations: Orbits that last longer count as inside; 4 to 4096, a multiple of 4.
        trap: One of ``TRAPS``.
        trap_centre: (x, y) in plane units.
        trap_rotation: Turns.
        trap_size: Plane units.
        smooth_turns: Palette turns per doubling of the iteration count.
        trap_turns: Palette turns per doubling of the trap's value.
        wave_turns: Palette turns per unit of the wave.
        wave_phase: Turns.
        wave_detail: Weight in [0, 1] of waves with four periods per turn, against two.
        cell_turns: Palette turns per cell of the binary decomposition.
        inner_trap_turns: As trap_turns, for orbits that do not escape.
        inner_wave_turns: As wave_turns, for orbits that do not escape.
        phase: Palette turns at coordinate 0 outside the set.
        inner_phase: Palette turns at coordinate 0 inside the set.
        relief: Strength of the directional light, in [0, 1].
        light_rotation: Direction of the light, in turns.
        steepness: Height of the relief, in window widths per palette turn.
        edge: Tone of detail finer than a pixel: the palette at edge_phase, from black (-1) to its
            complement (1).
        edge_phase: Turns.
        glow: Strength in [0, 1] of the light around the trap.
        glow_reach: Trap value at which the glow has fallen to a quarter.
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
        """Reject values outside these ranges; pairs may be lists, as in JSON."""
        for name in ("constant", "coefficient", "centre", "trap_centre"):
            pair = tuple(getattr(self, name))
            if len(pair) != 2 or not all(abs(value) <= _MAX_COORDINATE for value in pair):
                raise ValueError(
                    f"{name} is {pair}; use two numbers, x and y, from {-_MAX_COORDINATE:g} to "
                    f"{_MAX_COORDINATE:g}"
                )
            object.__setattr__(self, name, tuple(map(float, pair)))
        known: dict[str, Collection[str]] = {"formula": FORMULAS, "plane": PLANES, "trap": TRAPS}
        for name, allowed in known.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} {value!r} is unknown; use one of {', '.join(allowed)}")
        powers = FORMULAS[self.formula].powers
        if self.power not in powers:
            raise ValueError(
                f"power {self.power} is not supported by {self.formula}; use one of "
                f"{', '.join(map(str, powers))}"
            )
        if self.formula == "rings" and self.plane == "parameter":
            raise ValueError(
                'rings does not support plane "parameter": its orbits start at 1/0; use "julia"'
            )
        if (
            self.max_iterations % kernels.CHECK_INTERVAL
            or not kernels.CHECK_INTERVAL <= self.max_iterations <= 4096
        ):
            raise ValueError(
                f"max_iterations is {self.max_iterations}; "
                f"use a multiple of {kernels.CHECK_INTERVAL} up to 4096"
            )
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; use a number from {low} to {high}")


# Largest plane coordinate whose squares and products are finite in float32.
_MAX_COORDINATE = 1e6

# Outside these ranges, float64 cannot resolve pixels, or the value has no meaning.
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
    """Return the coefficients of xx xy yy x y 1 of the trap's conic, in plane coordinates."""
    a, b, c, d, e, f = TRAPS[layer.trap](layer.trap_size)
    # u = cosine x + sine y - u0, v = -sine x + cosine y - v0.
    cosine, sine = cosine_and_sine(layer.trap_rotation)
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


def orbit_parameters(layer: EscapeLayer) -> Orbits:
    """Return the parameters that a layer's orbits depend on."""
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
    # Flags: all orbits share the first z, or c; then the shared point.
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
        wave=np.array(cosine_and_sine(layer.wave_phase), np.float32),
        max_iterations=layer.max_iterations,
    )


def _style_parameters(layer: EscapeLayer, samples: int) -> NDArray[np.float32]:
    """Return the ``style`` of ``shade_features``; samples: number along the shorter side."""
    light_x, light_y = cosine_and_sine(layer.light_rotation)
    numbers = (
        *(layer.smooth_turns, layer.trap_turns, layer.wave_turns, layer.cell_turns, layer.phase),
        *(layer.inner_trap_turns, layer.inner_wave_turns, layer.inner_phase),
        *(layer.relief, _LIGHT_SLANT * light_x, _LIGHT_SLANT * light_y, layer.steepness * samples),
        *(layer.glow, layer.glow_reach, layer.edge, layer.edge_phase),
    )
    return np.array(numbers, np.float32)


def samples_along_pixel(samples_per_pixel: float) -> int:
    """Return the number of samples along a pixel's side.

    The fourth root of samples_per_pixel, which is meant for chaos games, is enough for an image of
    smooth functions: 50 gives 2, 200 gives 3, 10 gives 1.
    """
    return max(1, round(0.75 * math.sqrt(math.sqrt(samples_per_pixel))))


def render_escape(
    layer: EscapeLayer,
    palette: NDArray[np.float32],
    size: tuple[int, int],
    samples_per_pixel: float,
) -> NDArray[np.float32]:
    """Render a layer; the result has the same bits on every machine.

    Args:
        layer: The layer.
        palette: (256, 3) float32 in [0, 1], display RGB, cyclic.
        size: (height, width) in pixels.
        samples_per_pixel: See ``samples_along_pixel``; samples are averaged in display space.

    Returns:
        (height, width, 3) float32 in [0, 1], display RGB; every pixel is covered.
    """
    height, width = size
    side = samples_along_pixel(samples_per_pixel)
    frame = window_frame(layer.centre, layer.width, layer.rotation, height * side, width * side)
    # One more row above and one column to the left, because slopes are backward differences.
    frame[:2] -= frame[2:4] + frame[4:6]
    orbits = orbit_parameters(layer)
    style = _style_parameters(layer, min(height, width) * side)
    columns = width * side + 1
    band = max(1, _BAND_SAMPLES // (columns * side))
    image = np.empty((height, width, 3), np.float32)
    for top in range(0, height, band):
        part = image[top : top + band]
        rows = len(part) * side + 1
        features = measure_orbits(orbits, frame, layer.width, top * side, rows, columns)
        kernels.shade_features(features, palette, style, side, part)
    return image


def render_escape_layer(
    layer: EscapeLayer,
    table: NDArray[np.float32],
    size: tuple[int, int],
    samples_per_pixel: float,
    *_: object,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a layer's colours and coverage; see ``genome.LayerKind``. It needs no random key."""
    image = render_escape(layer, table, size, samples_per_pixel)
    return np.ascontiguousarray(image.transpose(2, 0, 1)), np.ones(size, np.float32)


_JULIA_WIDTH = 2.6
# Palette turns over a window by smooth count, trap, wave and cells; chosen by eye.
_COLOURINGS = (
    (1.0, 0.0, 0.0, 0.2),
    (1.2, 0.0, 0.2, 0.0),
    (0.6, 0.0, 0.4, 0.0),
    (0.3, 0.8, 0.0, 0.0),
    (0.6, 0.4, 0.0, 0.15),
)
_COLOURING_WEIGHTS = (0.2, 0.15, 0.12, 0.37, 0.16)
_GRID = 16
_MAX_WINDOWS = 8
# Iterations during the search for a window, and while its own limit is determined.
_SEARCH_ITERATIONS, _MAX_ITERATIONS = 96, 320
# A window is penalized if less than this fraction escapes, if more than this fraction is calm or
# dusty, or if the coherence of its slopes, 1 for parallel lines, is above this limit.
_MIN_OUTSIDE, _MAX_CALM, _MAX_DUSTY, _MAX_STRIPED = 0.5, 0.45, 0.05, 0.6


def _rounded(value: float) -> float:
    """Round to five significant digits, so that differences in a machine's last bit vanish."""
    return float(f"{value:.5g}")


def _measure(layer: EscapeLayer, offset: int) -> WindowStatistics:
    """Measure a window through a coarse grid of orbits, and through the same grid shifted a little.

    offset: shift between the two grids, in 256ths of the window; 0 uses one grid, which finds no
    dust.
    """
    orbits = orbit_parameters(layer)
    frame = window_frame(layer.centre, layer.width, layer.rotation, _GRID, _GRID)
    here = measure_orbits(orbits, frame, layer.width, 0, _GRID, _GRID)
    shifted = here
    if offset:
        frame[:2] += frame[2:4] * (_GRID * offset / 256)
        shifted = measure_orbits(orbits, frame, layer.width, 0, _GRID, _GRID)
    return WindowStatistics(*kernels.measure_window(here, shifted).tolist())


def _penalty(window: WindowStatistics) -> float:
    """Return how far a window misses the limits on its contents; 0 is good."""
    return (
        max(_MIN_OUTSIDE - window.outside, 0.0)
        + max(window.calm - _MAX_CALM, 0.0)
        + 2.0 * max(window.dusty - _MAX_DUSTY, 0.0)
        + max(window.striped - _MAX_STRIPED, 0.0)
    )


def _zoom_to_border(draws: Draws, layer: EscapeLayer, width: float) -> EscapeLayer:
    """Zoom in on the border of the set until the window is ``width`` plane units wide."""
    orbits = orbit_parameters(layer)
    x, y = layer.centre
    span = layer.width
    while span > 1.01 * width:
        frame = window_frame((x, y), span, 0.0, _GRID, _GRID)
        features = measure_orbits(orbits, frame, span, 0, _GRID, _GRID)
        row, column = kernels.choose_border_sample(features, draws.unit())
        x = round(float(frame[0] + column * frame[2] + row * frame[4]), 9)
        y = round(float(frame[1] + column * frame[3] + row * frame[5]), 9)
        span = _rounded(max(span / draws.uniform(2.5, 5.0), width))
    return replace(layer, centre=(x, y), width=span)


def _draw_formula(draws: Draws) -> EscapeLayer:
    """Draw a formula and its numbers; the window is the whole parameter plane."""
    formula = draws.weighted(list(FORMULAS), [formula.probability for formula in FORMULAS.values()])
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
    x, y, width = FORMULAS[formula].search_window
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
    """Draw the constant of a Julia set, near the border of its formula's parameter set."""
    if layer.formula == "rings":
        size, (cosine, sine) = 2 ** draws.uniform(-7.0, -1.5), cosine_and_sine(draws.unit())
        return _rounded(size * cosine), _rounded(size * sine)
    if layer.formula == "newton":
        if draws.chance(0.4):
            return 0.0, 0.0
        return round(draws.uniform(-0.3, 0.3), 4), round(draws.uniform(-0.3, 0.3), 4)
    return _zoom_to_border(draws, layer, layer.width / 2 ** draws.uniform(3.0, 7.0)).centre


def _draw_window(draws: Draws) -> EscapeLayer:
    """Draw a formula and a window on its border; a third of Julia sets are shown whole."""
    layer = _draw_formula(draws)
    if layer.plane == "parameter" and draws.chance(0.4):
        return _zoom_to_border(draws, layer, layer.width / 2 ** draws.uniform(0.5, 11.0))
    constant = _draw_constant(draws, layer)
    layer = replace(layer, plane="julia", constant=constant, centre=(0.0, 0.0), width=_JULIA_WIDTH)
    if draws.chance(0.35):
        return replace(layer, width=_rounded(2 ** draws.uniform(-2.5, 1.2)))
    return _zoom_to_border(draws, layer, _JULIA_WIDTH / 2 ** draws.uniform(0.3, 6.5))


def _draw_good_window(draws: Draws) -> tuple[EscapeLayer, WindowStatistics]:
    """Draw windows until one has penalty 0, or return the one with the lowest penalty."""
    found: list[tuple[float, EscapeLayer, WindowStatistics]] = []
    for _ in range(_MAX_WINDOWS):
        layer = replace(
            _draw_window(draws),
            rotation=round(draws.unit(), 4),
            max_iterations=_MAX_ITERATIONS,
            trap=draws.choice(list(TRAPS)),
            trap_centre=(round(draws.uniform(-0.6, 0.6), 3), round(draws.uniform(-0.6, 0.6), 3)),
            trap_rotation=round(draws.unit(), 4),
            trap_size=round(draws.uniform(0.1, 0.9), 3),
            wave_phase=round(draws.unit(), 4),
            wave_detail=round(draws.unit(), 3),
        )
        window = _measure(layer, offset=0)
        limit = window.median_count + (window.high_count - window.median_count) * draws.uniform(
            0.2, 1.0
        )
        limit = min(max(4 * int(limit / 4 + 1), 8), _MAX_ITERATIONS)
        layer = replace(layer, max_iterations=limit)
        penalty = _penalty(window)
        if penalty == 0.0:
            window = _measure(layer, offset=1)
            penalty = _penalty(window)
        found.append((penalty, layer, window))
        if penalty == 0.0:
            break
    _, layer, window = min(found, key=lambda item: item[0])
    return layer, window


def draw_escape(draws: Draws) -> EscapeLayer:
    """Draw a layer: an interesting window of a random formula, and colours that suit it.

    draws: The genome's stream; advanced.
    """
    layer, window = _draw_good_window(draws)
    smooth, trap, wave, cell = draws.weighted(_COLOURINGS, _COLOURING_WEIGHTS)
    inner_trap = draws.unit()
    # A calm window gets more palette turns; a busy one has enough detail.
    turns = draws.uniform(0.5, 1.2) * (1.0 + window.calm)
    return replace(
        layer,
        smooth_turns=_rounded(turns * smooth / window.smooth_spread),
        trap_turns=_rounded(turns * trap / window.trap_spread),
        wave_turns=_rounded(turns * wave / window.wave_spread),
        cell_turns=round(turns * cell * draws.uniform(0.5, 1.2), 3),
        inner_trap_turns=_rounded(turns * inner_trap / window.inner_trap_spread),
        inner_wave_turns=_rounded(turns * (1.0 - inner_trap) / window.inner_wave_spread),
        phase=round(draws.unit(), 4),
        inner_phase=round(draws.unit(), 4),
        relief=round(draws.uniform(0.1, 0.6), 3),
        light_rotation=round(draws.unit(), 4),
        steepness=_rounded(draws.uniform(0.02, 0.08) / turns),
        edge=round(draws.uniform(-0.9, 0.7), 3),
        edge_phase=round(draws.unit(), 4),
        glow=round(draws.uniform(0.2, 0.8), 3) if trap and draws.chance(0.6) else 0.0,
        glow_reach=_rounded(2 ** draws.uniform(-8.0, -4.0)),
    )


def draw_escape_layer(draws: Draws, *_: object) -> tuple[EscapeLayer, None]:
    """Draw a layer, which has no histogram; see ``genome.LayerKind``."""
    return draw_escape(draws), None
