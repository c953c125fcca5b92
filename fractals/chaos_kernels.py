"""Compiled loops of the chaos game: from maps and a window to points per pixel and colours.

2,048 orbits are kept as arrays. A step permutes them by i -> a i + b mod 2,048 (a odd, both
random), divides the array into one segment per map, with lengths proportional to the maps' weights,
and applies each map to its segment in vectorized loops. At every step, each orbit therefore visits
map k with the probability of its weight, as in the one-orbit game (tests/reference.py), up to
rounding of a weight to 1/2,048.

Each pixel has one 64-bit accumulator: points << 40 | sum of 16-bit colour coordinates, so that a
point costs one addition. An accumulator holds 2^24 points; it is flushed before more are plotted.

Tone mapping follows Draves & Reckase, "The Fractal Flame Algorithm", sections 4 (log density), 6
(gamma, vibrancy) and 8 (density estimation). Their kernel's radius shrinks with the count, with one
kernel per pixel. Here a few kernels are fixed, and a pixel's points are divided between the two
whose radii enclose the ideal one.
"""

import numpy as np
from numpy.typing import NDArray

from fractals.numerics import F, cosine, exponential2, floor, logarithm2, next_word, sine
from fractals.variations import add_variation, next_noise, noise_unit
from pixmix.compiling import fma, kernel, merged_kernel

ORBITS = 2048
WARM_UP = 16
"""Steps before the first point is plotted.

A map of contraction 0.7 has then reduced the distance from its start to 3e-3, under a pixel. The
maps of a symmetry do not contract: up to 0.4 % of the points, and 0.8 % of the colour, of the first
24 steps still depend on the start (tests/test_chaos_kernels.py).
"""
MAX_STEPS = (1 << 24) // ORBITS - 1
FOLDS = ("none", "mirror", "wrap")
"""Treatments of points outside the window, by the number that ``play`` expects."""
LEVELS = 4
"""Number of smoothing kernels: B3 splines of standard deviation 1, 2.2, 4.6 and 9.2 pixels."""

_COUNT_SHIFT = np.uint64(40)
_COLOUR_BITS = np.uint64((1 << 40) - 1)
_ONE_POINT = np.uint64(1 << 40)
_COLOUR_STEPS = F(65535.0)
_MASK = np.uint32(ORBITS - 1)
_U0, _U1 = np.uint32(0), np.uint32(1)
_ZERO, _HALF, _ONE, _TWO = F(0), F(0.5), F(1), F(2)
_FAR = F(1e6)
_UNIT_24 = F(2.0**-24)
_LOW_24 = np.uint64(0xFFFFFF)
_CENTRE, _NEAR, _OUTER = F(0.375), F(0.25), F(0.0625)
_ENTRIES = 256
_BLEED = F(0.35)
_LAST_ENTRY = np.int32(_ENTRIES - 1)


@kernel
def write_cosine_sine(angle, out):
    """Write cosine and sine of radians into out, (2,) float32; the same bits on every machine."""
    out[0], out[1] = cosine(F(angle)), sine(F(angle))


@kernel
def scatter_orbits(state, orbits):
    """Place orbits at random points of [-1, 1]^2 with random colours; advances state in place."""
    x, y, colour, noise = orbits.x[0], orbits.y[0], orbits.colour[0], orbits.noise
    for i in range(len(noise)):
        word = next_word(state)
        x[i] = F(np.int64(word & _LOW_24)) * _UNIT_24 * _TWO - _ONE
        y[i] = F(np.int64((word >> np.uint64(24)) & _LOW_24)) * _UNIT_24 * _TWO - _ONE
        word = next_word(state)
        colour[i] = F(np.int64(word & _LOW_24)) * _UNIT_24
        noise[i] = np.uint32((word >> np.uint64(32)) | np.uint64(1))


@merged_kernel
def _fetch(a, b, affine, keep, pull, k, x, y, c, before, low, high, to_x, to_y):
    """Read orbits low..high through i -> a i + b and apply map k's affine part and colour.

    x, y, c: (2, ORBITS); row ``before`` is read, and the other row of c is written. to_x, to_y: (2,
    ORBITS); row 1 - before is written. The function takes whole arrays and unsigned indices: a
    slice or a row costs a reference count (5 to 10 ns), a signed index a test; a loop that gathers
    does not vectorize anyway.
    """
    m0, m1, m2 = affine[k, 0], affine[k, 1], affine[k, 2]
    m3, m4, m5 = affine[k, 3], affine[k, 4], affine[k, 5]
    kept, pulled = keep[k], pull[k]
    old, new = np.uint32(before), np.uint32(1 - before)
    for i in range(np.uint32(low), np.uint32(high)):
        j = np.uint32(np.uint32(np.uint32(a * np.uint32(i)) + b) & _MASK)
        u, v = x[old, j], y[old, j]
        to_x[new, i] = fma(m0, u, fma(m1, v, m2))
        to_y[new, i] = fma(m3, u, fma(m4, v, m5))
        c[new, i] = fma(kept, c[old, j], pulled)


@kernel
def _apply_affine(m, x, y):
    m0, m1, m2, m3, m4, m5 = m[0], m[1], m[2], m[3], m[4], m[5]
    for i in range(len(x)):
        u, v = x[i], y[i]
        x[i] = fma(m0, u, fma(m1, v, m2))
        y[i] = fma(m3, u, fma(m4, v, m5))


@kernel
def _count_diverged(x, y):
    diverged = np.int32(0)
    for i in range(len(x)):
        diverged += np.int32(0) if abs(x[i]) + abs(y[i]) < _FAR else np.int32(1)
    return diverged


@kernel
def _restart_diverged(x, y, noise):
    """Restart diverged and NaN orbits at random points of [-1, 1]^2."""
    for i in range(len(x)):
        u, v = x[i], y[i]
        good = abs(u) + abs(v) < _FAR
        first = next_noise(noise[i])
        second = next_noise(first)
        noise[i] = noise[i] if good else second
        x[i] = u if good else noise_unit(first) * _TWO - _ONE
        y[i] = v if good else noise_unit(second) * _TWO - _ONE


@kernel
def _project(camera, width, height, x, y, c, cell, ink):
    """Convert plane points to cell indices (width * height if outside) and 16-bit colours."""
    m0, m1, m2, m3, m4, m5 = camera[0], camera[1], camera[2], camera[3], camera[4], camera[5]
    limit_x, limit_y = F(width), F(height)
    stride, outside = np.int32(width), np.int32(width * height)
    for i in range(len(x)):
        u = fma(m0, x[i], fma(m1, y[i], m2))
        v = fma(m3, x[i], fma(m4, y[i], m5))
        inside = (u >= _ZERO) & (u < limit_x) & (v >= _ZERO) & (v < limit_y)
        index = np.int32(np.int32(np.int32(v) * stride) + np.int32(u))
        cell[i] = index if inside else outside
        ink[i] = np.int32(fma(c[i], _COLOUR_STEPS, _HALF))


@kernel
def _project_folded(camera, fold, width, height, x, y, c, cell, ink):
    """Convert plane points like ``_project``, after folding: 1 reflects, 2 wraps around."""
    m0, m1, m2, m3, m4, m5 = camera[0], camera[1], camera[2], camera[3], camera[4], camera[5]
    per_x, per_y = _ONE / F(width), _ONE / F(height)
    last_x, last_y, stride = np.int32(width - 1), np.int32(height - 1), np.int32(width)
    outside = np.int32(width * height)
    for i in range(len(x)):
        u = fma(m0, x[i], fma(m1, y[i], m2)) * per_x
        v = fma(m3, x[i], fma(m4, y[i], m5)) * per_y
        if fold == 1:
            u = abs(u - _TWO * floor(fma(u, _HALF, _HALF)))
            v = abs(v - _TWO * floor(fma(v, _HALF, _HALF)))
        else:
            u = u - floor(u)
            v = v - floor(v)
        # A final map may produce NaN, which must not become an index.
        inside = (u >= _ZERO) & (v >= _ZERO)
        column = min(np.int32(u * F(width)), last_x)
        row = min(np.int32(v * F(height)), last_y)
        cell[i] = np.int32(np.int32(row * stride) + column) if inside else outside
        ink[i] = np.int32(fma(c[i], _COLOUR_STEPS, _HALF))


@kernel
def _plot(cell, ink, words):
    for i in range(len(cell)):
        words[np.uint32(cell[i])] += _ONE_POINT + np.uint64(np.uint32(ink[i]))


@merged_kernel
def _step(a, b, program, k, x, y, c, before, low, high, work_x, work_y, noise):
    """Apply map k to orbits low..high of x, y, c, (2, ORBITS), from row ``before`` to the other."""
    start, stop = program.first[k], program.first[k + 1]
    affine, keep, pull = program.affine, program.keep, program.pull
    if start == stop:
        _fetch(a, b, affine, keep, pull, k, x, y, c, before, low, high, x, y)
    else:
        _fetch(a, b, affine, keep, pull, k, x, y, c, before, low, high, work_x, work_y)
        in_x, in_y = work_x[1 - before, low:high], work_y[1 - before, low:high]
        out_x, out_y = x[1 - before, low:high], y[1 - before, low:high]
        segment_noise = noise[low:high]
        for i in range(len(out_x)):
            out_x[i] = _ZERO
            out_y[i] = _ZERO
        for j in range(start, stop):
            number, weight = program.numbers[j], program.weights[j]
            add_variation(
                number, in_x, in_y, out_x, out_y, weight, program.parameters[j], segment_noise
            )
    if program.has_post[k]:
        _apply_affine(program.post[k], x[1 - before, low:high], y[1 - before, low:high])


@kernel
def play(state, orbits, program, camera, fold, warm_up, steps, width, height, words, sample):
    """Play the game and add each point to its pixel's accumulator.

    Sampling is part of this function because a second one would compile all variations twice.

    Args:
        state: (4,) uint64, advanced in place.
        orbits: Advanced in place; row 0 holds the current points.
        program: The compiled system.
        camera: (6,) float32, see ``chaos.camera_matrix``.
        fold: Position in FOLDS: 0 none, 1 mirror, 2 wrap.
        warm_up: Steps that are not plotted.
        steps: Plotted steps of ORBITS points each, at most MAX_STEPS if words are zero.
        width: Pixels.
        height: Pixels.
        words: (height * width + 1,) uint64 accumulators; the last one counts points outside.
        sample: Apply the final map once more at the end, into row 1 of the orbits.
    """
    if not 0 <= fold <= 2:
        raise ValueError("fold must be 0, 1 or 2")
    n = len(program.bounds) - 1
    x, y, c = orbits.x, orbits.y, orbits.colour
    work_x, work_y = np.empty((2, ORBITS), F), np.empty((2, ORBITS), F)
    cell, ink = np.empty(ORBITS, np.int32), np.empty(ORBITS, np.int32)
    now = 0
    for step in range(warm_up + steps + 1):
        last = step == warm_up + steps
        if last and now == 1:
            for i in range(ORBITS):
                x[0, i], y[0, i], c[0, i] = x[1, i], y[1, i], c[1, i]
            now = 0
        if last and not sample:
            break
        shown = now
        if not last:
            shuffle = next_word(state)
            a, b = np.uint32(shuffle | np.uint64(1)), np.uint32(shuffle >> np.uint64(32))
        for k in range(n if last else 0, n + 1):
            if k < n:
                low, high = program.bounds[k], program.bounds[k + 1]
            else:
                if not last:
                    now = 1 - now
                    if _count_diverged(x[now], y[now]) > 0:
                        _restart_diverged(x[now], y[now], orbits.noise)
                shown = now
                if not program.has_final or step < warm_up:
                    break
                # The previous rows are free and receive the final map's points.
                a, b, low, high, shown = _U1, _U0, 0, ORBITS, 1 - now
            _step(a, b, program, k, x, y, c, now, low, high, work_x, work_y, orbits.noise)
        if last or step < warm_up:
            continue
        if fold == 0:
            _project(camera, width, height, x[shown], y[shown], c[shown], cell, ink)
        else:
            _project_folded(camera, fold, width, height, x[shown], y[shown], c[shown], cell, ink)
        _plot(cell, ink, words)


@kernel
def flush_words(words, points, colours):
    """Add accumulators, (n + 1,) uint64, to points and colours, (n,) float32, and clear them."""
    scale = _ONE / _COLOUR_STEPS
    for i in range(len(points)):
        word = words[i]
        points[i] += F(np.int64(word >> _COUNT_SHIFT))
        colours[i] += F(np.int64(word & _COLOUR_BITS)) * scale
        words[i] = np.uint64(0)


@kernel
def _weigh_rows(a, b, c, d, e, out):
    for i in range(len(out)):
        out[i] = _OUTER * (a[i] + e[i]) + (_NEAR * (b[i] + d[i]) + _CENTRE * c[i])


@kernel
def smooth(plane, gap, work, out):
    """Smooth with the B3 spline (1, 4, 6, 4, 1)/16 along both axes, ``gap`` pixels between taps.

    Edge pixels are repeated. plane, work, out: (H, W) float32, three different arrays.
    """
    height, width = plane.shape
    for y in range(height):
        _weigh_rows(
            plane[max(y - 2 * gap, 0)], plane[max(y - gap, 0)], plane[y],
            plane[min(y + gap, height - 1)], plane[min(y + 2 * gap, height - 1)], work[y],
        )  # fmt: skip
    last = width - 1
    border = min(2 * gap, width)
    for y in range(height):
        row, to = work[y], out[y]
        for x in range(width):
            if x >= border and x < width - border:
                continue
            to[x] = _OUTER * (row[max(x - 2 * gap, 0)] + row[min(x + 2 * gap, last)]) + (
                _NEAR * (row[max(x - gap, 0)] + row[min(x + gap, last)]) + _CENTRE * row[x]
            )
        inner = width - 2 * border
        if inner > 0:
            _weigh_rows(
                row[:inner], row[gap : gap + inner], row[2 * gap : 2 * gap + inner],
                row[3 * gap : 3 * gap + inner], row[4 * gap : 4 * gap + inner],
                to[border : border + inner],
            )  # fmt: skip


@kernel
def _choose_levels(softness, points, nearby, levels):
    """Write each pixel's smoothing level, in [0, LEVELS], from its density; all (n,) float32."""
    log_softness, top = logarithm2(softness), F(LEVELS)
    for i in range(len(points)):
        level = _HALF * (log_softness - logarithm2(max(_HALF * points[i], nearby[i])))
        levels[i] = min(max(level, _ZERO), top)


@kernel
def _take_share(level, levels, plane, out):
    """Write the part of a plane that belongs to one level, linear between the nearest two."""
    for i in range(len(plane)):
        out[i] = plane[i] * max(_ONE - abs(levels[i] - level), _ZERO)


@kernel
def _take_minimum(plane, out):
    for i in range(len(out)):
        out[i] = min(out[i], plane[i])


@kernel
def _add_into(plane, out):
    for i in range(len(out)):
        out[i] += plane[i]


def estimate_density(
    points: NDArray[np.float32], colours: NDArray[np.float32], softness: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Blur sparse pixels and keep dense ones sharp; sums are preserved.

    Args:
        points: (H, W) float32.
        colours: (H, W) float32.
        softness: Points per pixel above which nothing is blurred; pixels with a quarter of it get
            the first level's kernel, and so on. 0 disables smoothing.

    Returns:
        Two (H, W) float32 arrays.
    """
    if softness <= 0:
        return points, colours
    shape = points.shape
    nearby, work = np.empty(shape, np.float32), np.empty(shape, np.float32)
    coarse = np.empty(shape, np.float32)
    smooth(points, 1, work, coarse)
    smooth(coarse, 2, work, nearby)
    _take_minimum(coarse.reshape(-1), nearby.reshape(-1))
    levels = np.empty(points.size, np.float32)
    _choose_levels(F(softness), points.reshape(-1), nearby.reshape(-1), levels)
    smoothed = []
    for plane in (points, colours):
        # The smoothest part passes through every kernel. Convolutions commute, so that one pass per
        # level is enough.
        out, share = np.empty(shape, np.float32), np.empty(shape, np.float32)
        _take_share(F(LEVELS), levels, plane.reshape(-1), out.reshape(-1))
        for level in range(LEVELS - 1, -1, -1):
            smooth(out, 1 << level, work, share)
            _take_share(F(level), levels, plane.reshape(-1), out.reshape(-1))
            _add_into(share.reshape(-1), out.reshape(-1))
        smoothed.append(out)
    return smoothed[0], smoothed[1]


@kernel
def divide(part, whole, out):
    """Write part / whole, (n,) float32 each; 0 where both are 0."""
    for i in range(len(out)):
        out[i] = part[i] / max(whole[i], F(1e-9))


@kernel
def write_light(points, scale, contrast, per_light, gamma, light, value, cover):
    """Write the brightness of (n,) float32 points.

    light = log(1 + contrast d) / log(1 + contrast exposure), value = light^gamma, cover =
    min(value, 1).
    """
    for i in range(len(points)):
        here = logarithm2(fma(contrast, points[i] * scale, _ONE)) * per_light
        light[i] = here
        value[i] = exponential2(gamma * logarithm2(here))
        cover[i] = min(value[i], _ONE)


@kernel
def look_up_palette(shares, start, stretch, table, out):
    """Write one channel's palette colour, (n,) float32.

    table: (257,) float32, the palette's ring with its first entry repeated. This is a loop of its
    own because the lookup cannot be vectorized, and would prevent it for the loops of ``tone_map``
    (5 times slower).
    """
    for i in range(len(out)):
        position = fma(stretch, shares[i], start)
        position = (position - floor(position)) * F(_ENTRIES)
        left = np.int32(position) & _LAST_ENTRY
        low = table[np.uint32(left)]
        out[i] = fma(position - floor(position), table[np.uint32(left + np.int32(1))] - low, low)


@kernel
def apply_gamma(light, value, gamma, vibrancy, out):
    """Multiply one channel's palette colour, (n,) float32, by the pixel's brightness, in place."""
    for i in range(len(out)):
        ink = out[i]
        kept = value[i] * ink
        flat = exponential2(gamma * logarithm2(light[i] * ink))
        # Excess brightness bleeds into the other channels, so that bright cores turn white.
        over = max(value[i] - _ONE, _ZERO) * _BLEED
        out[i] = min(fma(vibrancy, kept - flat, flat) + over, _ONE)


@kernel
def log_density(contrast, density, out):
    """Write log2(1 + contrast density) into out, (1,) float32."""
    out[0] = logarithm2(_ONE + contrast * density)
