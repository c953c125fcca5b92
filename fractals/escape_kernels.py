"""Compiled loops of the escape-time images: orbits, their features, colours, and window statistics.

Sixty-four orbits, an 8 x 8 tile of samples, advance together in one flat array, with the fields at
constant offsets. This layout lets the compiler vectorize the loops: with one array per field it
would have to prove that the arrays do not overlap.
"""

# numba's scalar types are finer than Python's annotations can express.
# mypy: disable-error-code="return-value, assignment, no-any-return, call-arg"

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fractals.numerics import exponential2, floor, logarithm2, sine_of_turns
from pixmix.compiling import kernel

_F = np.float32
TILE_ORBITS = 64
FIELDS = 12
TILE = 8
# Steps between checks whether a tile has finished.
CHECK_INTERVAL = 4
# Costs at most one step more than the smallest valid radius, and smooths the count's bands.
ESCAPED_SQUARE = 1e4
# Newton's orbits have settled when a step is shorter than 1/1000.
SETTLED_SQUARE = 1e-6
# An orbit that returns this close to its reference point (squared distance) is in a cycle; it is
# moved to CAUGHT, which no orbit reaches otherwise: one step from inside the limit reaches 100^5.
CAUGHT_SQUARE = 1e-11
CAUGHT = 1e18
# A Newton step of squared length s counts as s / (s + rate): a smooth count without a threshold.
NEWTON_RATE = 0.02
# Added to |z|^2 before dividing by it; powers up to the fourth must stay finite in float32.
NEWTON_POLE, POLE = 1e-6, 1e-12
# Limits the logarithm of the trap, whose minima are otherwise narrower than a pixel.
TRAP_FLOOR = _F(0.003)
# Vertical component of the light's direction; _LIGHT_SLANT in escape.py is the horizontal one.
_LIGHT_HEIGHT = _F(0.66)
_GLOSS = _F(0.4)
# Rate at which colour fades to the edge tone, per squared palette turn between samples.
_FADE_RATE = _F(12.0)
# Windows wider than 2^-7 are computed in float32, three times as fast as float64: a row of 2048
# samples then still has 30 float32 steps between neighbours at |z| = 1.
FLOAT32_WIDTH = 0.0078125

POWER, PHOENIX, RINGS, NEWTON = 0, 1, 2, 3

# Neighbours on the grid whose counts differ by less are calm: three counts per window.
_CALM_CHANGE = 0.2
# Fraction of a feature's range by which it may change within a 256th of the window.
_DUSTY_CHANGE = 0.4
# Lower bound of a feature's range, which limits the magnification of flat features.
_MIN_SPREAD = 0.02


class Orbits(NamedTuple):
    """Parameters of a layer's orbits, as numbers only, independent of the window."""

    family: int
    power: int
    parameters: NDArray[np.float64]
    start: NDArray[np.float64]
    wave: NDArray[np.float32]
    max_iterations: int


class WindowStatistics(NamedTuple):
    """Statistics of a window, in the order of ``measure_window``."""

    outside: float
    calm: float
    dusty: float
    striped: float
    median_count: float
    high_count: float
    smooth_spread: float
    trap_spread: float
    wave_spread: float
    inner_trap_spread: float
    inner_wave_spread: float


@functools.cache
def orbit_kernel(family: int, power: int) -> Callable[..., Any]:
    """Compile the orbit loop of one formula and power; cached on disk like every kernel.

    The formula is a constant of the loop, because a branch inside would prevent vectorization.

    Raises:
        ValueError: If the family or power is unknown.
    """
    if family not in (POWER, PHOENIX, RINGS, NEWTON) or power not in (2, 3, 4, 5):
        raise ValueError(f"family {family!r} with power {power!r} is not supported")

    @kernel
    def advance(tiles: NDArray[Any], p: NDArray[Any], max_iterations: int) -> None:
        """Advance orbits until each has escaped, settled, entered a cycle, or reached the limit.

        tiles: (n, 12 * 64) float32 or float64, 64 orbits per row, fields x y cx cy count trap sum
        last, previous x y, reference x y; changed in place. p: see ``escape.orbit_parameters``,
        with the dtype of tiles.
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
            next_reference = CHECK_INTERVAL
            while n < max_iterations:
                for _ in range(CHECK_INTERVAL):
                    for i in range(TILE_ORBITS):
                        x, y = s[i], s[i + 64]
                        cx, cy = s[i + 128], s[i + 192]
                        xx, yy = x * x, y * y
                        square = xx + yy
                        trap = abs(x * (txx * x + txy * y + tx) + y * (tyy * y + ty) + t0)
                        if family == NEWTON:
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
                            if family == POWER:
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
                            if family == POWER:
                                new_x, new_y = fold_re * abs(re) + keep_re * re + cx, im + cy
                            elif family == PHOENIX:
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
                n += CHECK_INTERVAL
                left = 0
                if family == NEWTON:
                    for i in range(TILE_ORBITS):
                        left += 1 if s[i + 448] > settled else 0
                else:
                    for i in range(TILE_ORBITS):
                        x, y = s[i], s[i + 64]
                        dx, dy = x - s[i + 640], y - s[i + 704]
                        back = dx * dx + dy * dy < back_square
                        s[i] = caught if (back and x * x + y * y <= limit) else x
                        left += 1 if (x * x + y * y <= limit and not back) else 0
                    if n == next_reference:
                        next_reference = 2 * n
                        for i in range(TILE_ORBITS):
                            s[i + 640], s[i + 704] = s[i], s[i + 64]
                if left == 0:
                    break

    return advance


@kernel
def start_tiles(
    tiles: NDArray[Any],
    frame: NDArray[np.float64],
    start: NDArray[np.float64],
    first_row: int,
    rows: int,
    columns: int,
) -> None:
    """Set up the orbits of a band of samples, 8 x 8 samples per tile, tiles in reading order.

    Args:
        tiles: (n, 12 * 64) to fill.
        frame: (6,) float64: the plane point of sample (0, 0), the step of a column, the step of a
            row.
        start: (4,) float64, z_fixed, c_fixed, a, b; a flag of 1 sets the first z, or c, of all
            orbits to (a, b), and 0 to each orbit's own sample.
        first_row: Row of the band in the window.
        rows: Rows of the band.
        columns: Columns of the band.
    """
    across = (columns + TILE - 1) // TILE
    for tile in range(len(tiles)):
        s = tiles[tile]
        top, left = tile // across * TILE, tile % across * TILE
        s[256:640] = 0.0
        s[640:768] = 1e9
        for i in range(TILE_ORBITS):
            # Tiles beyond the edge repeat its samples.
            row = first_row + min(top + i // TILE, rows - 1)
            column = min(left + i % TILE, columns - 1)
            x = frame[0] + column * frame[2] + row * frame[4]
            y = frame[1] + column * frame[3] + row * frame[5]
            s[i], s[i + 64] = (start[2], start[3]) if start[0] > 0.0 else (x, y)
            s[i + 128], s[i + 192] = (start[2], start[3]) if start[1] > 0.0 else (x, y)
            s[i + 320], s[i + 448] = 1e9, 1.0


@kernel
def fill_escape_features(
    tiles: NDArray[Any], power: np.float32, wave: NDArray[np.float32], features: NDArray[np.float32]
) -> None:
    """Convert finished orbits into features.

    Args:
        tiles: (n, 12 * 64).
        power: float32; its logarithm is the rate of escape.
        wave: (2,) float32, the weights of sine and cosine of twice the last angle in the cells.
        features: (4, rows, columns) float32 to fill: log2(1 + smooth count), or -1 if the orbit
            never escaped; log2 of the trap's minimum; the mean wave, in about [-1, 1]; the cells,
            in [-1, 1].
    """
    rows, columns = features.shape[1], features.shape[2]
    across = (columns + TILE - 1) // TILE
    log_limit = logarithm2(_F(ESCAPED_SQUARE))
    per_power = _F(1.0) / logarithm2(power)
    zero, one = _F(0.0), _F(1.0)
    for tile in range(len(tiles)):
        s = tiles[tile]
        top, left = tile // across * TILE, tile % across * TILE
        for i in range(TILE_ORBITS):
            row, column = top + i // TILE, left + i % TILE
            if row >= rows or column >= columns:
                continue
            x, y, count = _F(s[i]), _F(s[i + 64]), _F(s[i + 256])
            total, last = _F(s[i + 384]), _F(s[i + 448])
            square = x * x + y * y
            mean = total / max(count, one)
            features[1, row, column] = logarithm2(_F(s[i + 320]) + TRAP_FLOOR)
            if square <= _F(ESCAPED_SQUARE) or x == _F(CAUGHT):
                features[0, row, column] = -one
                features[2, row, column] = mean
                features[3, row, column] = zero
            else:
                over = logarithm2(max(logarithm2(square) / log_limit, one)) * per_power
                part = min(max(one - over, zero), one)
                before = (total - last) / max(count - one, one)
                features[0, row, column] = logarithm2(one + count + part)
                features[2, row, column] = before + (mean - before) * part
                # Cells vanish at whole counts, where the angle doubles and they would break.
                swell = _F(4.0) * part * (one - part)
                angle = (wave[0] * _F(2.0) * x * y + wave[1] * (x * x - y * y)) / square
                features[3, row, column] = swell * swell * angle


@kernel
def fill_newton_features(
    tiles: NDArray[Any], wave: NDArray[np.float32], features: NDArray[np.float32]
) -> None:
    """Convert finished Newton orbits into features; the wave is that of the last point.

    Orbits that never settle count as settled, and the cells are 0. wave: (2,) float32, the weights
    of sine and cosine of the last point's angle. For the other arguments see
    ``fill_escape_features``.
    """
    rows, columns = features.shape[1], features.shape[2]
    across = (columns + TILE - 1) // TILE
    for tile in range(len(tiles)):
        s = tiles[tile]
        top, left = tile // across * TILE, tile % across * TILE
        for i in range(TILE_ORBITS):
            row, column = top + i // TILE, left + i % TILE
            if row >= rows or column >= columns:
                continue
            x, y = _F(s[i]), _F(s[i + 64])
            radius = np.sqrt(x * x + y * y + _F(1e-12))
            features[0, row, column] = logarithm2(_F(1.0) + _F(s[i + 256]))
            features[1, row, column] = logarithm2(_F(s[i + 320]) + TRAP_FLOOR)
            features[2, row, column] = (wave[0] * y + wave[1] * x) / radius
            features[3, row, column] = _F(0.0)


@kernel
def shade_features(
    features: NDArray[np.float32],
    palette: NDArray[np.float32],
    style: NDArray[np.float32],
    side: int,
    image: NDArray[np.float32],
) -> None:
    """Colour a band of samples and average it into pixels, in display space.

    Args:
        features: (4, rows + 1, columns + 1) float32; the first row and column belong to the samples
            above and to the left; feature 0 is overwritten.
        palette: (256, 3) float32.
        style: (16,) float32, see ``escape._style_parameters``.
        side: Samples along a pixel's side.
        image: (rows / side, columns / side, 3) float32 to fill.
    """
    zero, one = _F(0.0), _F(1.0)
    smooth_turns, trap_turns, wave_turns, cell_turns = style[0], style[1], style[2], style[3]
    phase = style[4]
    inner_trap_turns, inner_wave_turns, inner_phase = style[5], style[6], style[7]
    relief, light_x, light_y, height_per_turn = style[8], style[9], style[10], style[11]
    glow, glow_reach, edge, edge_phase = style[12], style[13], style[14], style[15]
    height, width = image.shape[0], image.shape[1]
    share = one / _F(side * side)
    tone = palette[np.int64((edge_phase - floor(edge_phase)) * _F(256.0)) & 255].copy()
    for channel in range(3):
        lighter = (one - tone[channel]) * max(edge, zero)
        tone[channel] = tone[channel] * (one + min(edge, zero)) + lighter
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
            # Unresolved changes of the palette fade to one colour, and the relief flattens.
            keep = one / (one + _FADE_RATE * share * turns)
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
                write_light = max(facing, zero)
                write_light = write_light * write_light * write_light * write_light
                write_light = relief * _GLOSS * write_light * write_light
                near = glow_reach / (glow_reach + exponential2(features[1, row, column]))
                bright = glow * near * near + write_light
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
            image[pixel_row, pixel_column, 0] = red * share
            image[pixel_row, pixel_column, 1] = green * share
            image[pixel_row, pixel_column, 2] = blue * share


def cosine_and_sine(turns: float) -> tuple[float, float]:
    """Return cosine and sine of an angle in turns; the same bits on every machine."""
    return float(sine_of_turns(_F(turns + 0.25))), float(sine_of_turns(_F(turns)))


def window_frame(
    centre: tuple[float, float], span: float, rotation: float, rows: int, columns: int
) -> NDArray[np.float64]:
    """Return the positions of a window's samples.

    Args:
        centre: Plane point.
        span: Plane units across the shorter side.
        rotation: Turns.
        rows: Samples along the height.
        columns: Samples along the width.

    Returns:
        (6,) float64: the plane point of sample (0, 0), the step of a column, the step of a row.
    """
    step = span / min(rows, columns)
    cosine, sine = cosine_and_sine(rotation)
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

    Args:
        orbits: See ``escape.orbit_parameters``.
        frame: See ``window_frame``.
        span: Plane units across the whole window, which decides the precision.
        first_row: Row of the band in the window.
        rows: Rows of the band.
        columns: Columns of the band.

    Returns:
        (4, rows, columns) float32; see ``fill_escape_features``.
    """
    precision = np.float32 if span > FLOAT32_WIDTH else np.float64
    tiles = np.empty(
        (-(-rows // TILE) * -(-columns // TILE), FIELDS * TILE_ORBITS),
        precision,
    )
    start_tiles(tiles, frame, orbits.start, first_row, rows, columns)
    advance = orbit_kernel(orbits.family, orbits.power)
    advance(tiles, orbits.parameters.astype(precision), orbits.max_iterations)
    features = np.empty((4, rows, columns), np.float32)
    if orbits.family == NEWTON:
        fill_newton_features(tiles, orbits.wave, features)
    else:
        fill_escape_features(tiles, _F(orbits.power), orbits.wave, features)
    return features


@kernel
def choose_border_sample(features: NDArray[np.float32], unit: float) -> tuple[int, int]:
    """Choose a sample near the border of the set, weighted by how fast the count changes there.

    features: (4, rows, columns) float32. unit: random number in [0, 1). Returns (row, column), the
    middle if nothing changes.
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
def _spread(values: NDArray[np.float32], n: int) -> tuple[float, float, float]:
    """Return the 10th, 50th and 90th percentile of values[:n], or 0 if n is below 8."""
    if n < 8:
        return 0.0, 0.0, 0.0
    ordered = np.sort(values[:n])
    return ordered[n // 10], ordered[n // 2], ordered[n * 9 // 10]


@kernel
def coherence(values: NDArray[np.float32]) -> float:
    """Return how parallel the lines of a window are, 0 to 1: the coherence of its structure tensor.

    values: (rows, columns) float32; values below 0 are ignored.
    """
    xx, xy, yy = 0.0, 0.0, 0.0
    for row in range(1, values.shape[0]):
        for column in range(1, values.shape[1]):
            here, left, above = (
                values[row, column],
                values[row, column - 1],
                values[row - 1, column],
            )
            if here >= 0.0 and left >= 0.0 and above >= 0.0:
                # Slopes are limited, so that the set's border does not dominate.
                dx = min(max(here - left, -0.25), 0.25)
                dy = min(max(here - above, -0.25), 0.25)
                xx += dx * dx
                xy += dx * dy
                yy += dy * dy
    return np.sqrt((xx - yy) * (xx - yy) + 4.0 * xy * xy) / (xx + yy + 1e-9)


@kernel
def _calm_and_dusty(
    features: NDArray[np.float32],
    shifted: NDArray[np.float32],
    smooth_spread: float,
    trap_spread: float,
    inner_trap_spread: float,
) -> tuple[float, float]:
    """Return the fractions of calm neighbours and of dusty samples.

    Neighbours are calm if their counts are similar; a sample is dusty if it differs from the
    shifted one. features, shifted: (4, rows, columns) float32. Spreads: ranges of the features.
    """
    rows, columns = features.shape[1], features.shape[2]
    calm, dusty, pairs = 0, 0, 0
    for row in range(rows):
        for column in range(columns - 1):
            here, there = features[0, row, column], features[0, row, column + 1]
            if here >= 0.0 and there >= 0.0:
                pairs += 1
                calm += 1 if abs(exponential2(here) - exponential2(there)) < _CALM_CHANGE else 0
            there = shifted[0, row, column]
            trap_change = abs(features[1, row, column] - shifted[1, row, column])
            if here >= 0.0:
                unlike = there < 0.0 or abs(there - here) > _DUSTY_CHANGE * smooth_spread
                unlike = unlike or trap_change > _DUSTY_CHANGE * trap_spread
            else:
                unlike = there >= 0.0 or trap_change > _DUSTY_CHANGE * inner_trap_spread
            dusty += 1 if unlike else 0
    return calm / max(pairs, 1), dusty / (rows * (columns - 1))


@kernel
def measure_window(
    features: NDArray[np.float32], shifted: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the statistics of a window.

    Args:
        features: (4, rows, columns) float32.
        shifted: The same window, shifted by less than a sample.

    Returns:
        (11,) float64: the fractions of samples that escaped, of neighbours whose counts hardly
            differ, and of samples whose features differ from the shifted ones; the coherence of the
            lines; median and 90th percentile of the count; the ranges (10th to 90th percentile) of
            log count, trap and wave outside the set, and of trap and wave inside.
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
    result = np.zeros(11)
    for k in range(5):
        low, middle, high = _spread(values[k], outside if k < 3 else inside)
        result[6 + k] = max(high - low, _MIN_SPREAD)
        if k == 0:
            result[4], result[5] = exponential2(_F(middle)) - 1.0, exponential2(_F(high)) - 1.0
    result[0] = outside / (rows * columns)
    result[1], result[2] = _calm_and_dusty(features, shifted, result[6], result[7], result[9])
    result[3] = coherence(smooth)
    return result
