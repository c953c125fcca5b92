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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fractals.elementary import exponential2, floor, kernel, logarithm2, sine_of_turns
from fractals.random import Draws

FORMULAS = ("power", "ship", "tricorn", "celtic", "phoenix", "rings", "newton")
PLANES = ("julia", "parameter")
TRAPS = ("point", "circle", "line", "cross", "parabola", "hyperbola")
# 2^-7: a 2048-sample row then still has 60 float32 steps between neighbours.
SINGLE_WIDTH = 0.0078125

_F = np.float32
_LANES = 64
_TILE = 8
_STRIDE = 4
_ESCAPED_SQUARE = 1e4
_CAUGHT = 1e18
_FAMILY = {"power": 0, "ship": 0, "tricorn": 0, "celtic": 0, "phoenix": 1, "rings": 2, "newton": 3}
# How x, y before the power and the real part after it are folded: (|x|, x, |y|, y, |re|, re).
_FOLDS = {
    "power": (0, 1, 0, 1, 0, 1),
    "ship": (1, 0, 1, 0, 0, 1),
    "tricorn": (0, 1, 0, -1, 0, 1),
    "celtic": (0, 1, 0, 1, 1, 0),
}
_BAND_SAMPLES = 32768
# Keeps the logarithm of the trap from falling into pits narrower than a pixel.
_TRAP_FLOOR = _F(0.003)


@functools.cache
def _orbit_kernel(family: int, power: int) -> Callable[..., Any]:
    """Compile the orbit loop of one formula and power; cached on disk like every kernel.

    One loop with the formula as a constant: a branch inside the loop would keep it from vectorising.
    """

    @kernel
    def advance(tiles, p, max_iterations):
        """Advance orbits until each has escaped, settled, been caught, or the limit is reached.

        tiles: (n, 12 * 64) float32 or float64, 64 orbits a row, fields x y cx cy count trap sum
        last, previous x y, reference x y; changed in place. p: see `_parameters`, dtype of tiles.
        """
        one, two, three, zero = p[0], p[1], p[2], p[3]
        limit, settled, tolerance, caught, tiny = p[4], p[5], p[6], p[7], p[8]
        fold_x, keep_x, fold_y, keep_y, fold_re, keep_re = p[9], p[10], p[11], p[12], p[13], p[14]
        txx, txy, tyy, tx, ty, t0 = p[15], p[16], p[17], p[18], p[19], p[20]
        wave_2, wave_4, k_re, k_im = p[21], p[22], p[23], p[24]
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
                        if family == 3:
                            alive = s[i + 448] > settled
                            inverse = one / (square + tiny)
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
                            s[i + 256] += moved / (moved + tolerance) if alive else zero
                            s[i + 448] = moved if alive else s[i + 448]
                        else:
                            alive = square <= limit
                            inverse = one / (square + tiny)
                            cosine, sine = (xx - yy) * inverse, two * x * y * inverse
                            wave = sine * (wave_2 + wave_4 * cosine)
                            s[i + 256] += one if alive else zero
                            s[i + 384] += wave if alive else zero
                            s[i + 448] = wave if alive else s[i + 448]
                            if family == 0:
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
                            if family == 0:
                                new_x, new_y = fold_re * abs(re) + keep_re * re + cx, im + cy
                            elif family == 1:
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
                if family == 3:
                    for i in range(_LANES):
                        left += 1 if s[i + 448] > settled else 0
                else:
                    for i in range(_LANES):
                        x, y = s[i], s[i + 64]
                        dx, dy = x - s[i + 640], y - s[i + 704]
                        back = dx * dx + dy * dy < tolerance
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

    features: (3, rows + 1, columns + 1) float32, the first row and column belong to the samples
    above and to the left; feature 0 is overwritten. palette: (256, 3) float32. look: see `_look`.
    side: samples along a pixel's side. picture: (rows / side, columns / side, 3) float32 to fill.
    """
    zero, one, two = _F(0.0), _F(1.0), _F(2.0)
    smooth_turns, trap_turns, wave_turns, phase, inner_phase = look[0], look[1], look[2], look[3], look[4]
    relief, light_x, light_y, light_z, steepness = look[5], look[6], look[7], look[8], look[9]
    glow, glow_reach, per_window = look[10], look[11], look[12]
    edge, edge_phase, cell_turns = look[13], look[14], look[15]
    inner_trap_turns, inner_wave_turns = look[16], look[17]
    height, width = picture.shape[0], picture.shape[1]
    share = one / _F(side * side)
    mean = palette[np.int64((edge_phase - floor(edge_phase)) * _F(256.0)) & 255].copy()
    for channel in range(3):
        mean[channel] = mean[channel] * (one + min(edge, zero)) + (one - mean[channel]) * max(edge, zero)
    coordinates = features[0]
    for row in range(coordinates.shape[0]):
        smooth, trap = coordinates[row], features[1, row]
        wave, cell = features[2, row], features[3, row]
        for i in range(len(smooth)):
            outer = phase + smooth_turns * smooth[i] + trap_turns * trap[i] + wave_turns * wave[i] + cell_turns * cell[i]
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
            keep = one / (one + _F(12.0) * share * turns)
            for sub in range(side * side):
                row = 1 + pixel_row * side + sub // side
                column = 1 + pixel_column * side + sub % side
                t = coordinates[row, column]
                across, down = t - coordinates[row, column - 1], t - coordinates[row - 1, column]
                slope_x, slope_y = across * per_window * keep, down * per_window * keep
                facing = (light_z - slope_x * light_x - slope_y * light_y) / np.sqrt(
                    one + slope_x * slope_x + slope_y * slope_y
                )
                lit = one + relief * (_F(1.3) * facing - _F(0.8))
                shine = max(facing, zero)
                shine = shine * shine * shine * shine
                shine = relief * steepness * shine * shine
                near = glow_reach / (glow_reach + exponential2(features[1, row, column]))
                bright = glow * near * near + shine
                position = (t - floor(t)) * _F(256.0)
                whole = np.int64(position)
                part = position - _F(whole)
                first, second = whole & 255, (whole + 1) & 255
                r = palette[first, 0] + (palette[second, 0] - palette[first, 0]) * part
                g = palette[first, 1] + (palette[second, 1] - palette[first, 1]) * part
                b = palette[first, 2] + (palette[second, 2] - palette[first, 2]) * part
                r = (mean[0] + (r - mean[0]) * keep) * lit
                g = (mean[1] + (g - mean[1]) * keep) * lit
                b = (mean[2] + (b - mean[2]) * keep) * lit
                bright = min(bright, one)
                red += min(max(r + (one - r) * bright, zero), one)
                green += min(max(g + (one - g) * bright, zero), one)
                blue += min(max(b + (one - b) * bright, zero), one)
            picture[pixel_row, pixel_column, 0] = red * share
            picture[pixel_row, pixel_column, 1] = green * share
            picture[pixel_row, pixel_column, 2] = blue * share


@dataclass(frozen=True, kw_only=True)
class EscapeLayer:
    """All that an escape-time picture needs, in plain JSON values.

    formula: one of `FORMULAS`; power: 2 to 5 (phoenix 2; rings 2, 3; newton 3 to 5).
        z is the running point, k the `coefficient`, p the power:
        power z^p + c; ship (|x| + i|y|)^p + c; tricorn conj(z)^p + c; celtic the same as power
        with |real part of z^p|; phoenix z^2 + c + k z_before; rings z^p + c / z^p;
        newton z - k (z^p - 1) / (p z^(p-1)) + c.
    plane: "julia" (the sample is the first z, c = `constant`) or "parameter" (the sample is c).
    centre, width: of the window, in plane units; `width` spans the shorter side. rotation: turns.
    max_iterations: orbits that last longer count as inside. 8 to 4096, a multiple of 8.
    trap: one of `TRAPS`, at trap_centre, turned by trap_rotation turns, of trap_size plane units.
    smooth_turns, trap_turns, wave_turns: palette turns for each doubling of the iteration count,
        for each doubling of the trap's value, for each unit of the wave. wave_phase: turns;
        wave_detail: weight in [0, 1] of waves of four periods against two.
    phase, inner_phase: palette turns at zero, outside and inside.
    relief: strength in [0, 1] of the light, from light_rotation (turns); steepness: height of the
        relief, a palette turn in window widths.
    edge: where detail is finer than a pixel, the palette's mean, darkened (-1) to lightened (1).
    glow: strength in [0, 1] of the light around the trap; glow_reach: trap value of half of it.
    """

    formula: str
    power: int
    plane: str
    constant: tuple[float, float]
    coefficient: tuple[float, float]
    centre: tuple[float, float]
    width: float
    rotation: float
    max_iterations: int
    trap: str
    trap_centre: tuple[float, float]
    trap_rotation: float
    trap_size: float
    smooth_turns: float
    trap_turns: float
    wave_turns: float
    wave_phase: float
    wave_detail: float
    phase: float
    inner_phase: float
    relief: float
    light_rotation: float
    steepness: float
    glow: float
    glow_reach: float
    edge: float
    edge_phase: float
    cell_turns: float
    inner_trap_turns: float
    inner_wave_turns: float

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""


_POWERS = {"phoenix": (2,), "rings": (2, 3), "newton": (3, 4, 5)}


def _turn(turns: float) -> tuple[float, float]:
    """Return cosine and sine of an angle in turns, the same bits everywhere."""
    return float(sine_of_turns(_F(turns + 0.25))), float(sine_of_turns(_F(turns)))


def _conic(layer: EscapeLayer) -> tuple[float, ...]:
    """Return the coefficients of xx xy yy x y 1 of the trap's conic."""
    cosine, sine = _turn(layer.trap_rotation)
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


def _features(
    layer: EscapeLayer, frame: NDArray[np.float64], first_row: int, rows: int, columns: int
) -> NDArray[np.float32]:
    """Return the (3, rows, columns) float32 features of a band of samples."""
    family = _FAMILY[layer.formula]
    single = layer.width > SINGLE_WIDTH
    dtype = np.float32 if single else np.float64
    settling = family == 3
    tolerance = 0.02 if settling else (1e-10 if single else 1e-12)
    k_re, k_im = layer.coefficient
    if settling:
        k_re, k_im = k_re / layer.power, k_im / layer.power
    fold = _FOLDS.get(layer.formula, _FOLDS["power"])
    wave = (1.0 - layer.wave_detail, 2.0 * layer.wave_detail)
    p = np.array(
        (1.0, 2.0, 3.0, 0.0, _ESCAPED_SQUARE, 1e-6, tolerance, _CAUGHT, 1e-6 if settling else 1e-12, *fold, *_conic(layer), *wave, k_re, k_im),
        dtype=dtype,
    )
    julia = layer.plane == "julia"
    start = np.array((1.0, *layer.constant) if julia else ((2.0, 1.0, 0.0) if settling else (0.0, 0.0, 0.0)))
    tiles = np.empty((-(-rows // _TILE) * -(-columns // _TILE), 12 * _LANES), dtype)
    _place(tiles, frame, start, first_row, rows, columns)
    _orbit_kernel(family, layer.power)(tiles, p, layer.max_iterations)
    features = np.empty((4, rows, columns), np.float32)
    read = _read_settling if settling else _read_escaping
    read(tiles, _F(layer.power), np.array(_turn(layer.wave_phase), np.float32), features)
    return features


def _frame(layer: EscapeLayer, height: int, width: int, side: int) -> NDArray[np.float64]:
    """Return the plane point of sample (0, 0) and the steps of a column and of a row."""
    step = layer.width / (min(height, width) * side)
    cosine, sine = _turn(layer.rotation)
    column, row = (step * cosine, step * sine), (-step * sine, step * cosine)
    back_x, back_y = (width * side - 1) / 2, (height * side - 1) / 2
    return np.array(
        (
            layer.centre[0] - back_x * column[0] - back_y * row[0],
            layer.centre[1] - back_x * column[1] - back_y * row[1],
            *column,
            *row,
        )
    )


def _look(layer: EscapeLayer, samples: int) -> NDArray[np.float32]:
    """Return the numbers of `_paint`. samples: along the shorter side."""
    light_x, light_y = _turn(layer.light_rotation)
    return np.array(
        (
            layer.smooth_turns,
            layer.trap_turns,
            layer.wave_turns,
            layer.phase,
            layer.inner_phase,
            layer.relief,
            0.75 * light_x,
            0.75 * light_y,
            0.66,
            0.4,
            layer.glow,
            layer.glow_reach,
            layer.steepness * samples,
            layer.edge,
            layer.edge_phase,
            layer.cell_turns,
            layer.inner_trap_turns,
            layer.inner_wave_turns,
        ),
        np.float32,
    )


def render_escape(
    layer: EscapeLayer, palette: NDArray[np.float32], size: tuple[int, int], samples_per_pixel: float
) -> NDArray[np.float32]:
    """Render a layer; the same bits on every machine.

    palette: (256, 3) float32 in [0, 1], display RGB, cyclic. size: (height, width) in pixels.
    samples_per_pixel: the chaos game's measure of effort; a picture of smooth functions needs its
    fourth root along a pixel's side: 50 gives 2 x 2 samples, 200 3 x 3, 10 one.
    Returns (height, width, 3) float32 in [0, 1], display RGB, every pixel covered.
    """
    height, width = size
    side = max(1, round(0.75 * math.sqrt(math.sqrt(samples_per_pixel))))
    frame = _frame(layer, height, width, side)
    # One more row above and column to the left: slopes are backward differences.
    frame[:2] -= frame[2:4] + frame[4:6]
    look = _look(layer, min(height, width) * side)
    columns = width * side + 1
    band = max(1, _BAND_SAMPLES // (columns * side))
    picture = np.empty((height, width, 3), np.float32)
    for top in range(0, height, band):
        part = picture[top : top + band]
        features = _features(layer, frame, top * side, len(part) * side + 1, columns)
        _paint(features, palette, look, side, part)
    return picture


# Where each formula's first window lies in the plane of its parameter: centre, width.
_GROUNDS = {
    "power": (-0.3, 0.0, 2.6),
    "ship": (-0.5, -0.4, 3.0),
    "tricorn": (-0.2, 0.0, 3.4),
    "celtic": (-0.6, 0.0, 3.2),
    "phoenix": (0.0, 0.0, 2.6),
    "newton": (0.0, 0.0, 2.0),
}
_SURVEY = 16
_TRIES = 8
_LEAST_SPREAD = 0.02
# Palette turns over the window by smooth count, trap, wave and cells.
_RECIPES = ((1.0, 0.0, 0.0, 0.2), (1.2, 0.0, 0.2, 0.0), (0.6, 0.0, 0.4, 0.0), (0.3, 0.8, 0.0, 0.0), (0.6, 0.4, 0.0, 0.15))


@kernel
def _choose(features, unit):
    """Choose a sample near the border of the set, weighted by how fast the count changes there.

    features: (3, rows, columns) float32, of a survey. unit: in [0, 1). Returns (row, column), the
    middle where nothing changes.
    """
    smooth = features[0]
    rows, columns = smooth.shape
    weights = np.zeros((rows, columns))
    total = 0.0
    for row in range(1, rows - 1):
        for column in range(1, columns - 1):
            low, high = 1e9, -1e9
            for i in range(-1, 2):
                for j in range(-1, 2):
                    value = smooth[row + i, column + j]
                    if value >= 0.0:
                        low, high = min(low, value), max(high, value)
            if smooth[row, column] >= 0.0 and high > low:
                total += min(high - low, 2.0) ** 2
            weights[row, column] = total
    mark = unit * total
    for row in range(1, rows - 1):
        for column in range(1, columns - 1):
            if weights[row, column] > mark:
                return row, column
    return rows // 2, columns // 2


@kernel
def _spread(values, n):
    """Return the 10th percentile, median and 90th of values[:n], 0 where there are fewer than 8."""
    if n < 8:
        return 0.0, 0.0, 0.0
    ordered = np.sort(values[:n])
    return ordered[n // 10], ordered[n // 2], ordered[n * 9 // 10]


@kernel
def _appraise(features, shifted):
    """Return what a survey says of a window.

    features: (4, rows, columns) float32; shifted: the same a pixel further. Returns (11,) float64:
    the shares of samples that escaped, of neighbours whose counts hardly differ, of samples whose
    features a pixel further are unlike; median and 90th percentile of the count; then the width of
    the middle eight tenths of log count, trap and wave outside, of trap and wave inside.
    """
    rows, columns = features.shape[1], features.shape[2]
    smooth = features[0]
    values = np.empty((5, rows * columns), np.float32)
    outside, inside = 0, 0
    for row in range(rows):
        for column in range(columns):
            if smooth[row, column] >= 0.0:
                for feature in range(3):
                    values[feature, outside] = features[feature, row, column]
                outside += 1
            else:
                values[3, inside] = features[1, row, column]
                values[4, inside] = features[2, row, column]
                inside += 1
    result = np.zeros(10)
    for k in range(5):
        low, middle, high = _spread(values[k], outside if k < 3 else inside)
        result[5 + k] = max(high - low, _LEAST_SPREAD)
        if k == 0:
            result[3], result[4] = exponential2(_F(middle)) - 1.0, exponential2(_F(high)) - 1.0
    calm, dusty, pairs = 0, 0, 0
    for row in range(rows):
        for column in range(columns - 1):
            here, there = smooth[row, column], smooth[row, column + 1]
            if here >= 0.0 and there >= 0.0:
                pairs += 1
                calm += 1 if abs(exponential2(here) - exponential2(there)) < 0.12 else 0
            there = shifted[0, row, column]
            trap = abs(features[1, row, column] - shifted[1, row, column])
            if here >= 0.0:
                unlike = there < 0.0 or abs(there - here) > 0.4 * result[5] or trap > 0.4 * result[6]
            else:
                unlike = there >= 0.0 or trap > 0.4 * result[8]
            dusty += 1 if unlike else 0
    result[0] = outside / (rows * columns)
    result[1] = calm / max(pairs, 1)
    result[2] = dusty / (rows * (columns - 1))
    return result


def _significant(value: float, digits: int = 5) -> float:
    """Round to a number of significant digits, so that another machine's last bit cannot show."""
    return float(f"{value:.{digits}g}")


def _survey(layer: EscapeLayer) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the features of a coarse grid over a window, and those a 256th of the window aside."""
    frame = _frame(layer, _SURVEY, _SURVEY, 1)
    here = _features(layer, frame, 0, _SURVEY, _SURVEY)
    frame[:2] += frame[2:4] * (_SURVEY / 256)
    return here, _features(layer, frame, 0, _SURVEY, _SURVEY)


def _descend(draws: Draws, layer: EscapeLayer, width: float) -> EscapeLayer:
    """Zoom in on the border of the set until the window is as narrow as asked."""
    while layer.width > 1.01 * width:
        factor = min(draws.uniform(2.5, 5.0), layer.width / width)
        features = _features(layer, _frame(layer, _SURVEY, _SURVEY, 1), 0, _SURVEY, _SURVEY)
        row, column = _choose(features, draws.unit())
        frame = _frame(layer, _SURVEY, _SURVEY, 1)
        x = frame[0] + column * frame[2] + row * frame[4]
        y = frame[1] + column * frame[3] + row * frame[5]
        layer = replace(
            layer,
            centre=(round(float(x), 9), round(float(y), 9)),
            width=_significant(layer.width / factor),
        )
    return layer


def _draw_place(draws: Draws) -> EscapeLayer:
    """Draw a formula and a window, colours still plain."""
    formula = draws.weighted(FORMULAS, (0.42, 0.12, 0.08, 0.08, 0.08, 0.1, 0.12))
    power = {
        "phoenix": 2,
        "rings": draws.choice((2, 3, 3)),
        "newton": draws.choice((3, 4, 5)),
        "power": draws.weighted((2, 3, 4, 5), (0.6, 0.2, 0.12, 0.08)),
    }.get(formula) or draws.weighted((2, 3), (0.75, 0.25))
    coefficient = (0.0, 0.0)
    if formula == "phoenix":
        coefficient = (round(draws.uniform(-0.7, 0.5), 4), round(draws.uniform(-0.2, 0.2), 4))
    if formula == "newton":
        coefficient = (round(draws.uniform(0.7, 1.5), 4), round(draws.uniform(-0.5, 0.5), 4))
    julia = formula == "rings" or draws.chance(0.6)
    x, y, width = _GROUNDS.get(formula, (0.0, 0.0, 2.6))
    layer = EscapeLayer(
        formula=formula,
        power=power,
        plane="parameter",
        constant=(0.0, 0.0),
        coefficient=coefficient,
        centre=(x, y),
        width=width,
        rotation=0.0,
        max_iterations=160,
        trap="point",
        trap_centre=(0.0, 0.0),
        trap_rotation=0.0,
        trap_size=0.5,
        smooth_turns=0.5,
        trap_turns=0.0,
        wave_turns=0.0,
        wave_phase=0.0,
        wave_detail=0.5,
        phase=0.0,
        inner_phase=0.0,
        relief=0.0,
        light_rotation=0.0,
        steepness=0.0,
        glow=0.0,
        glow_reach=0.01,
        edge=0.0,
        edge_phase=0.0,
        cell_turns=0.0,
        inner_trap_turns=0.0,
        inner_wave_turns=0.0,
    )
    if not julia:
        return _descend(draws, layer, width / 2 ** draws.uniform(0.5, 12.0))
    if formula == "rings":
        size, (cosine, sine) = 2 ** draws.uniform(-7.0, -1.5), _turn(draws.unit())
        constant = (_significant(size * cosine), _significant(size * sine))
    elif formula == "newton":
        constant = (round(draws.uniform(-0.3, 0.3), 4), round(draws.uniform(-0.3, 0.3), 4)) if draws.chance(0.6) else (0.0, 0.0)
    else:
        constant = _descend(draws, layer, width / 2 ** draws.uniform(3.0, 7.0)).centre
    layer = replace(layer, plane="julia", constant=constant, centre=(0.0, 0.0), width=2.6)
    if draws.chance(0.35):
        return replace(layer, width=_significant(2 ** draws.uniform(-2.5, 1.2)))
    return _descend(draws, layer, 2.6 / 2 ** draws.uniform(0.3, 8.0))


def draw_escape(draws: Draws) -> EscapeLayer:
    """Draw a layer: an interesting window of a random formula, and colours that suit it.

    draws: the genome's stream; advanced.
    """
    best, least = None, math.inf
    for _ in range(_TRIES):
        layer = _draw_place(draws)
        layer = replace(
            layer,
            rotation=round(draws.unit(), 4),
            max_iterations=512,
            trap=draws.choice(TRAPS),
            trap_centre=(round(draws.uniform(-0.6, 0.6), 3), round(draws.uniform(-0.6, 0.6), 3)),
            trap_rotation=round(draws.unit(), 4),
            trap_size=round(draws.uniform(0.1, 0.9), 3),
            wave_phase=round(draws.unit(), 4),
            wave_detail=round(draws.unit(), 3),
        )
        *_, median, many = _appraise(*_survey(layer)).tolist()[:5]
        limit = median + (many - median) * draws.uniform(0.4, 1.3)
        layer = replace(layer, max_iterations=min(max(4 * int(limit / 4 + 1), 8), 512))
        seen = _appraise(*_survey(layer)).tolist()
        outside, calm, dusty = seen[:3]
        fault = max(0.5 - outside, 0.0) + max(calm - 0.35, 0.0) + 2.0 * max(dusty - 0.15, 0.0)
        if fault < least:
            best, least = (layer, seen), fault
        if fault == 0.0:
            break
    layer, (_, calm, _, _, _, *spreads) = best
    smooth_spread, trap_spread, wave_spread, inner_trap_spread, inner_wave_spread = spreads
    smooth, trap_part, wave, cell = draws.weighted(_RECIPES, (0.22, 0.12, 0.18, 0.28, 0.2))
    inner_trap = draws.unit()
    turns = draws.uniform(0.7, 1.6) * (1.0 + 1.5 * calm)
    return replace(
        layer,
        smooth_turns=_significant(turns * smooth / smooth_spread),
        trap_turns=_significant(turns * trap_part / trap_spread),
        wave_turns=_significant(turns * wave / wave_spread),
        cell_turns=round(turns * cell * draws.uniform(0.5, 1.2), 3),
        inner_trap_turns=_significant(turns * inner_trap / inner_trap_spread),
        inner_wave_turns=_significant(turns * (1.0 - inner_trap) / inner_wave_spread),
        phase=round(draws.unit(), 4),
        inner_phase=round(draws.unit(), 4),
        relief=round(draws.uniform(0.2, 0.8), 3),
        light_rotation=round(draws.unit(), 4),
        steepness=_significant(draws.uniform(0.03, 0.15) / turns),
        glow=round(draws.uniform(0.2, 0.8), 3) if trap_part and draws.chance(0.6) else 0.0,
        glow_reach=_significant(2 ** draws.uniform(-8.0, -4.0)),
        edge=round(draws.uniform(-0.9, 0.7), 3),
        edge_phase=round(draws.unit(), 4),
    )
