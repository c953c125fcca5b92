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

Sixty-four orbits advance together in one flat array, fields at constant offsets, which is what the
compiler needs to turn the loops into vector instructions. Windows wider than `SINGLE_WIDTH` are
computed in float32, three times as fast; narrower ones need float64 to tell pixels apart.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fractals.elementary import exponential2, floor, kernel, logarithm2, sine_of_turns

FORMULAS = ("power", "ship", "tricorn", "celtic", "phoenix", "rings", "newton")
PLANES = ("julia", "parameter")
TRAPS = ("point", "circle", "line", "cross", "parabola", "hyperbola")
# 2^-7: a row of 2048 samples then still has 30 float32 steps between neighbours at |z| = 1.
SINGLE_WIDTH = 0.0078125

_F = np.float32
_LANES = 64
_FIELDS = 12
_TILE = 8
# Steps between looks at whether a tile is done.
_STRIDE = 4
# A power of 2 costs at most one step more than the least radius, and smooths the count's bands.
_ESCAPED_SQUARE = 1e4
# Newton's orbits have settled when a step is shorter than 1/1000.
_SETTLED_SQUARE = 1e-6
# An orbit that comes back this close to where it was (squared) is in a cycle; it goes to _CAUGHT,
# where no orbit gets by itself: one step from inside the limit reaches 100^5.
_CAUGHT_SQUARE = 1e-11
_CAUGHT = 1e18
# Newton counts a step of squared length s as s / (s + rate): a smooth count without a threshold.
_NEWTON_RATE = 0.02
# Added to |z|^2 before dividing by it; powers up to the fourth must stay finite in float32.
_NEWTON_POLE, _POLE = 1e-6, 1e-12
# Keeps the logarithm of the trap from falling into pits narrower than a pixel.
_TRAP_FLOOR = _F(0.003)
# The light's share along the picture's plane, and upright.
_LIGHT_SLANT, _LIGHT_HEIGHT = 0.75, _F(0.66)
_GLOSS = _F(0.4)
# How fast colour fades to the edge tone, against squared palette turns a sample.
_FADE = _F(12.0)
# A band's orbits and features then stay in the second-level cache.
_BAND_SAMPLES = 32768
# Where orbits start: at their own c, at the sample with a common c, at a common point.
_AT_C, _AT_SAMPLE, _AT_POINT = 0.0, 1.0, 2.0

_POWER, _PHOENIX, _RINGS, _NEWTON = 0, 1, 2, 3
_FAMILY = {
    "power": _POWER,
    "ship": _POWER,
    "tricorn": _POWER,
    "celtic": _POWER,
    "phoenix": _PHOENIX,
    "rings": _RINGS,
    "newton": _NEWTON,
}
# How x, y before the power and the real part after it are folded: (|x|, x, |y|, y, |re|, re).
_FOLDS = {
    "power": (0.0, 1.0, 0.0, 1.0, 0.0, 1.0),
    "ship": (1.0, 0.0, 1.0, 0.0, 0.0, 1.0),
    "tricorn": (0.0, 1.0, 0.0, -1.0, 0.0, 1.0),
    "celtic": (0.0, 1.0, 0.0, 1.0, 1.0, 0.0),
}


@functools.cache
def _orbit_kernel(family: int, power: int) -> Callable[..., Any]:
    """Compile the orbit loop of one formula and power; cached on disk like every kernel.

    One loop with the formula as a constant: a branch inside the loop would keep it from vectorising.
    """

    @kernel
    def advance(tiles, p, max_iterations):
        """Advance orbits until each has escaped, settled, been caught, or the limit is reached.

        tiles: (n, 12 * 64) float32 or float64, 64 orbits a row, fields x y cx cy count trap sum
        last, previous x y, reference x y; changed in place. p: see `orbits_of`, dtype of tiles.
        """
        # Numbers come from p, not from literals: a literal is float64 and would widen float32.
        one, two, three, zero = p[0], p[1], p[2], p[3]
        limit, settled, back_square, caught, rate, pole = p[4], p[5], p[6], p[7], p[8], p[9]
        fold_x, keep_x, fold_y, keep_y, fold_re, keep_re = p[10], p[11], p[12], p[13], p[14], p[15]
        txx, txy, tyy, tx, ty, t0 = p[16], p[17], p[18], p[19], p[20], p[21]
        wave_2, wave_4, k_re, k_im = p[22], p[23], p[24], p[25]
        for tile in range(len(tiles)):
            s = tiles[tile]
            n = 0
            next_reference = _STRIDE
            while n < max_iterations:
                for _ in range(_STRIDE):
                    for i in range(_LANES):
                        x, y = s[i], s[i + 64]
                        cx, cy = s[i + 128], s[i + 192]
                        xx, yy = x * x, y * y
                        square = xx + yy
                        trap = abs(x * (txx * x + txy * y + tx) + y * (tyy * y + ty) + t0)
                        if family == _NEWTON:
                            alive = s[i + 448] > settled
                            inverse = one / (square + pole)
                            # (u, v) is z^(1 - p).
                            u, v = x * inverse, -y * inverse
                            if power == 4:
                                uu, vv = u * u, v * v
                                u, v = u * (uu - three * vv), v * (three * uu - vv)
                            else:
                                u, v = u * u - v * v, two * u * v
                                if power == 5:
                                    u, v = u * u - v * v, two * u * v
                            step_x, step_y = x - u, y - v
                            new_x = x - (k_re * step_x - k_im * step_y) + cx
                            new_y = y - (k_re * step_y + k_im * step_x) + cy
                            dx, dy = new_x - x, new_y - y
                            moved = dx * dx + dy * dy
                            s[i + 256] += moved / (moved + rate) if alive else zero
                            s[i + 448] = moved if alive else s[i + 448]
                        else:
                            alive = square <= limit
                            inverse = one / (square + pole)
                            cosine, sine = (xx - yy) * inverse, two * x * y * inverse
                            wave = sine * (wave_2 + wave_4 * cosine)
                            s[i + 256] += one if alive else zero
                            s[i + 384] += wave if alive else zero
                            s[i + 448] = wave if alive else s[i + 448]
                            if family == _POWER:
                                u, v = fold_x * abs(x) + keep_x * x, fold_y * abs(y) + keep_y * y
                            else:
                                u, v = x, y
                            if power == 2 or power == 4 or power == 5:
                                re, im = u * u - v * v, two * u * v
                            else:
                                uu, vv = u * u, v * v
                                re, im = u * (uu - three * vv), v * (three * uu - vv)
                            if power == 4 or power == 5:
                                re, im = re * re - im * im, two * re * im
                            if power == 5:
                                re, im = re * u - im * v, re * v + im * u
                            if family == _POWER:
                                new_x, new_y = fold_re * abs(re) + keep_re * re + cx, im + cy
                            elif family == _PHOENIX:
                                px, py = s[i + 512], s[i + 576]
                                new_x = re + cx + (k_re * px - k_im * py)
                                new_y = im + cy + (k_re * py + k_im * px)
                                s[i + 512] = x if alive else px
                                s[i + 576] = y if alive else py
                            else:
                                scale = inverse * inverse
                                if power == 3:
                                    scale = scale * inverse
                                new_x = re + (cx * re + cy * im) * scale
                                new_y = im + (cy * re - cx * im) * scale
                        s[i + 320] = trap if (alive and trap < s[i + 320]) else s[i + 320]
                        s[i] = new_x if alive else x
                        s[i + 64] = new_y if alive else y
                n += _STRIDE
                left = 0
                if family == _NEWTON:
                    for i in range(_LANES):
                        left += 1 if s[i + 448] > settled else 0
                else:
                    for i in range(_LANES):
                        x, y = s[i], s[i + 64]
                        dx, dy = x - s[i + 640], y - s[i + 704]
                        back = dx * dx + dy * dy < back_square
                        s[i] = caught if (back and x * x + y * y <= limit) else x
                        left += 1 if (x * x + y * y <= limit and not back) else 0
                    if n == next_reference:
                        next_reference = 2 * n
                        for i in range(_LANES):
                            s[i + 640], s[i + 704] = s[i], s[i + 64]
                if left == 0:
                    break

    return advance


@kernel
def _place(tiles, frame, start, first_row, rows, columns):
    """Set up the orbits of a band of samples, 8 x 8 samples a tile, tiles in reading order.

    tiles: (n, 12 * 64) to fill. frame: (6,) float64, the plane point of sample (0, 0), the step of
    a column, the step of a row. start: (3,) float64: 0, a, b: every orbit starts at its own c;
    1, a, b: at its sample, c = (a, b); 2, a, b: at (a, b), c is the sample.
    """
    across = (columns + _TILE - 1) // _TILE
    for tile in range(len(tiles)):
        s = tiles[tile]
        top, left = tile // across * _TILE, tile % across * _TILE
        s[256:640] = 0.0
        s[640:768] = 1e9
        for i in range(_LANES):
            # Tiles that hang over the edge repeat its samples.
            row = first_row + min(top + i // _TILE, rows - 1)
            column = min(left + i % _TILE, columns - 1)
            x = frame[0] + column * frame[2] + row * frame[4]
            y = frame[1] + column * frame[3] + row * frame[5]
            s[i], s[i + 64] = (start[1], start[2]) if start[0] == 2.0 else (x, y)
            s[i + 128], s[i + 192] = (start[1], start[2]) if start[0] == 1.0 else (x, y)
            s[i + 320], s[i + 448] = 1e9, 1.0


@kernel
def _read_escaping(tiles, power, wave, features):
    """Turn finished orbits into features.

    tiles: (n, 12 * 64). power: float32, the rate of escape is its logarithm. wave: not used.
    features: (3, rows, columns) float32 to fill: log2(1 + smooth count), -1 where the orbit never
    escaped; log2 of the trap's least value; the mean wave, in about [-1, 1].
    """
    rows, columns = features.shape[1], features.shape[2]
    across = (columns + _TILE - 1) // _TILE
    log_limit = logarithm2(_F(_ESCAPED_SQUARE))
    per_power = _F(1.0) / logarithm2(power)
    zero, one = _F(0.0), _F(1.0)
    for tile in range(len(tiles)):
        s = tiles[tile]
        top, left = tile // across * _TILE, tile % across * _TILE
        for i in range(_LANES):
            row, column = top + i // _TILE, left + i % _TILE
            if row >= rows or column >= columns:
                continue
            x, y, count = _F(s[i]), _F(s[i + 64]), _F(s[i + 256])
            total, last = _F(s[i + 384]), _F(s[i + 448])
            square = x * x + y * y
            mean = total / max(count, one)
            features[1, row, column] = logarithm2(_F(s[i + 320]) + _TRAP_FLOOR)
            if square <= _F(_ESCAPED_SQUARE) or x == _F(_CAUGHT):
                features[0, row, column] = -one
                features[2, row, column] = mean
                features[3, row, column] = zero
            else:
                over = logarithm2(max(logarithm2(square) / log_limit, one)) * per_power
                part = min(max(one - over, zero), one)
                before = (total - last) / max(count - one, one)
                features[0, row, column] = logarithm2(one + count + part)
                features[2, row, column] = before + (mean - before) * part
                # No angle where the count is whole: there the angle doubles, and cells would break.
                swell = _F(4.0) * part * (one - part)
                angle = (wave[0] * _F(2.0) * x * y + wave[1] * (x * x - y * y)) / square
                features[3, row, column] = swell * swell * angle


@kernel
def _read_settling(tiles, power, wave, features):
    """Turn finished Newton orbits into features; as `_read_escaping`, the wave taken at the end.

    wave: (2,) float32, the weights of the sine and the cosine of the last point's angle.
    """
    rows, columns = features.shape[1], features.shape[2]
    across = (columns + _TILE - 1) // _TILE
    for tile in range(len(tiles)):
        s = tiles[tile]
        top, left = tile // across * _TILE, tile % across * _TILE
        for i in range(_LANES):
            row, column = top + i // _TILE, left + i % _TILE
            if row >= rows or column >= columns:
                continue
            x, y = _F(s[i]), _F(s[i + 64])
            radius = np.sqrt(x * x + y * y + _F(1e-12))
            features[0, row, column] = logarithm2(_F(1.0) + _F(s[i + 256]))
            features[1, row, column] = logarithm2(_F(s[i + 320]) + _TRAP_FLOOR)
            features[2, row, column] = (wave[0] * y + wave[1] * x) / radius
            features[3, row, column] = _F(0.0)


@kernel
def _paint(features, palette, look, side, picture):
    """Colour a band of samples and average it into pixels, in display space.

    features: (4, rows + 1, columns + 1) float32, the first row and column belong to the samples
    above and to the left; feature 0 is overwritten. palette: (256, 3) float32. look: see `_look`.
    side: samples along a pixel's side. picture: (rows / side, columns / side, 3) float32 to fill.
    """
    zero, one = _F(0.0), _F(1.0)
    smooth_turns, trap_turns, wave_turns, cell_turns, phase = (
        look[0],
        look[1],
        look[2],
        look[3],
        look[4],
    )
    inner_trap_turns, inner_wave_turns, inner_phase = look[5], look[6], look[7]
    relief, light_x, light_y, height_per_turn = look[8], look[9], look[10], look[11]
    glow, glow_reach, edge, edge_phase = look[12], look[13], look[14], look[15]
    height, width = picture.shape[0], picture.shape[1]
    share = one / _F(side * side)
    tone = palette[np.int64((edge_phase - floor(edge_phase)) * _F(256.0)) & 255].copy()
    for channel in range(3):
        tone[channel] = tone[channel] * (one + min(edge, zero)) + (one - tone[channel]) * max(
            edge, zero
        )
    coordinates = features[0]
    for row in range(coordinates.shape[0]):
        smooth, trap = coordinates[row], features[1, row]
        wave, cell = features[2, row], features[3, row]
        for i in range(len(smooth)):
            outer = (
                phase
                + smooth_turns * smooth[i]
                + trap_turns * trap[i]
                + wave_turns * wave[i]
                + cell_turns * cell[i]
            )
            inner = inner_phase + inner_trap_turns * trap[i] + inner_wave_turns * wave[i]
            smooth[i] = outer if smooth[i] >= zero else inner
    for pixel_row in range(height):
        for pixel_column in range(width):
            red, green, blue = zero, zero, zero
            turns = zero
            for sub in range(side * side):
                row = 1 + pixel_row * side + sub // side
                column = 1 + pixel_column * side + sub % side
                across = coordinates[row, column] - coordinates[row, column - 1]
                down = coordinates[row, column] - coordinates[row - 1, column]
                turns += across * across + down * down
            # A palette passing faster than samples can follow fades to one colour, lies flat.
            keep = one / (one + _FADE * share * turns)
            for sub in range(side * side):
                row = 1 + pixel_row * side + sub // side
                column = 1 + pixel_column * side + sub % side
                t = coordinates[row, column]
                across, down = t - coordinates[row, column - 1], t - coordinates[row - 1, column]
                slope_x, slope_y = across * height_per_turn * keep, down * height_per_turn * keep
                facing = (_LIGHT_HEIGHT - slope_x * light_x - slope_y * light_y) / np.sqrt(
                    one + slope_x * slope_x + slope_y * slope_y
                )
                lit = one + relief * (_F(1.3) * facing - _F(0.8))
                shine = max(facing, zero)
                shine = shine * shine * shine * shine
                shine = relief * _GLOSS * shine * shine
                near = glow_reach / (glow_reach + exponential2(features[1, row, column]))
                bright = glow * near * near + shine
                position = (t - floor(t)) * _F(256.0)
                whole = np.int64(position)
                part = position - _F(whole)
                first, second = whole & 255, (whole + 1) & 255
                r = palette[first, 0] + (palette[second, 0] - palette[first, 0]) * part
                g = palette[first, 1] + (palette[second, 1] - palette[first, 1]) * part
                b = palette[first, 2] + (palette[second, 2] - palette[first, 2]) * part
                r = (tone[0] + (r - tone[0]) * keep) * lit
                g = (tone[1] + (g - tone[1]) * keep) * lit
                b = (tone[2] + (b - tone[2]) * keep) * lit
                bright = min(bright, one)
                red += min(max(r + (one - r) * bright, zero), one)
                green += min(max(g + (one - g) * bright, zero), one)
                blue += min(max(b + (one - b) * bright, zero), one)
            picture[pixel_row, pixel_column, 0] = red * share
            picture[pixel_row, pixel_column, 1] = green * share
            picture[pixel_row, pixel_column, 2] = blue * share


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
        absolute real part of z^p; phoenix z^2 + c + k z_before; rings z^p + c / z^p (McMullen 1988);
        newton z - k (z^p - 1) / (p z^(p-1)) + c, relaxed by k, a nova fractal where c is not 0.
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
            pair = tuple(float(value) for value in getattr(self, name))
            if len(pair) != 2:
                raise ValueError(f"{name} has {len(pair)} numbers; give two, x and y")
            object.__setattr__(self, name, pair)
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
        if self.max_iterations % _STRIDE or not _STRIDE <= self.max_iterations <= 4096:
            raise ValueError(
                f"max_iterations is {self.max_iterations}; use a multiple of {_STRIDE} up to 4096"
            )
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; use a number from {low} to {high}")


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
    if family == _NEWTON:
        k_re, k_im = k_re / layer.power, k_im / layer.power
    parameters = (
        *(1.0, 2.0, 3.0, 0.0),
        *(_ESCAPED_SQUARE, _SETTLED_SQUARE, _CAUGHT_SQUARE, _CAUGHT),
        *(_NEWTON_RATE, _NEWTON_POLE if family == _NEWTON else _POLE),
        *_FOLDS.get(layer.formula, _FOLDS["power"]),
        *_conic(layer),
        *(1.0 - layer.wave_detail, 2.0 * layer.wave_detail),
        *(k_re, k_im),
    )
    if layer.plane == "julia":
        start = (_AT_SAMPLE, *layer.constant)
    else:
        start = (_AT_POINT, 1.0, 0.0) if family == _NEWTON else (_AT_C, 0.0, 0.0)
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
    tiles = np.empty((-(-rows // _TILE) * -(-columns // _TILE), _FIELDS * _LANES), precision)
    _place(tiles, frame, orbits.start, first_row, rows, columns)
    advance = _orbit_kernel(orbits.family, orbits.power)
    advance(tiles, orbits.parameters.astype(precision), orbits.max_iterations)
    features = np.empty((4, rows, columns), np.float32)
    read = _read_settling if orbits.family == _NEWTON else _read_escaping
    read(tiles, _F(orbits.power), orbits.wave, features)
    return features


def _look(layer: EscapeLayer, samples: int) -> NDArray[np.float32]:
    """Return the numbers that `_paint` reads. samples: along the window's shorter side."""
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
        _paint(features, palette, look, side, part)
    return picture
