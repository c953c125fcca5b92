"""Compiled loops of the chaos game: maps and a window -> points a pixel -> light.

2,048 orbits are kept as arrays. A step permutes them by i -> a i + b mod 2,048 (a odd, both
random), cuts the array into one segment a map, as long as the map's weight says, and applies each
map to its segment in loops that vectorise. Each orbit so meets map k with its weight's probability
at every step, as in the one-orbit game (tests/reference.py), to the rounding of a weight to
1/2,048.

One accumulator word a pixel: points << 40 | sum of 16-bit colour coordinates, so that a point costs
one 64-bit addition. A word holds 2^24 points; `play` is called again before that many are plotted.

Light follows Draves & Reckase, "The Fractal Flame Algorithm", sections 4 (log density), 6 (gamma,
vibrancy) and 8 (density estimation). Their kernel's radius falls with the count, one kernel a
pixel; here a pixel's points are shared between the two of a few fixed kernels whose radii enclose
the wanted one.
"""

import numpy as np
from numpy.typing import NDArray

from fractals.numerics import F, cosine, exponential2, floor, logarithm2, next_word, sine
from fractals.variations import add_variation, next_noise, noise_unit
from pixmix.compiling import fma, kernel, merged_kernel

ORBITS = 2048
WARM_UP = 16
"""Steps before the first point is plotted.

A map of contraction 0.7 has then forgotten its start to 3e-3, under a pixel. The maps of a symmetry
forget nothing: there up to 0.4 % of the points, and 0.8 % of the colour, of the first 24 steps are
still the start's (tests/test_chaos_kernels.py).
"""
MOST_STEPS = (1 << 24) // ORBITS - 1
FOLDS = ("none", "mirror", "wrap")
"""What becomes of points outside the window, by the number that `play` takes."""
LEVELS = 4
"""Kernels besides none: B3 splines of standard deviation 1, 2.2, 4.6 and 9.2 pixels."""

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
def turn(angle, out):
    """Write cosine and sine of an angle in radians into out, (2,) float32.

    Alike on every machine.
    """
    out[0], out[1] = cosine(F(angle)), sine(F(angle))


@kernel
def scatter_orbits(state, orbits):
    """Put orbits at random points of [-1, 1]^2 with random colours; advances state, (4,) uint64."""
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
    """Fetch orbits low..high through i -> a i + b and apply map k's affine part and colour.

    x, y, c: (2, ORBITS); row `before` is read, c's other row written; to_x, to_y: (2, ORBITS),
    whose row 1 - before is written. Whole arrays and unsigned indices: a slice or a row costs a
    reference count, 5 to 10 ns, a signed index a test; a loop that gathers does not vectorise
    anyway.
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
def _count_fled(x, y):
    fled = np.int32(0)
    for i in range(len(x)):
        fled += np.int32(0) if abs(x[i]) + abs(y[i]) < _FAR else np.int32(1)
    return fled


@kernel
def _restart_fled(x, y, noise):
    """Restart, at a random point of [-1, 1]^2, orbits that fled or are not numbers."""
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
    """Turn points of the plane into cell numbers (width * height outside) and 16-bit colours."""
    m0, m1, m2, m3, m4, m5 = camera[0], camera[1], camera[2], camera[3], camera[4], camera[5]
    limit_x, limit_y = F(width), F(height)
    stride, outside = np.int32(width), np.int32(width * height)
    for i in range(len(x)):
        u = fma(m0, x[i], fma(m1, y[i], m2))
        v = fma(m3, x[i], fma(m4, y[i], m5))
        inside = (u >= _ZERO) & (u < limit_x) & (v >= _ZERO) & (v < limit_y)
        place = np.int32(np.int32(np.int32(v) * stride) + np.int32(u))
        cell[i] = place if inside else outside
        ink[i] = np.int32(fma(c[i], _COLOUR_STEPS, _HALF))


@kernel
def _project_folded(camera, fold, width, height, x, y, c, cell, ink):
    """As `_project`, points first brought into the window.

    1 reflects at the borders, 2 wraps around.
    """
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
        # A final map may leave the numbers: what is NaN has no place, and must not become an index.
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
    """Apply map k to orbits low..high.

    From row `before` of x, y, c, (2, ORBITS), into the other.
    """
    start, stop = program.first[k], program.first[k + 1]
    affine, keep, pull = program.affine, program.keep, program.pull
    if start == stop:
        _fetch(a, b, affine, keep, pull, k, x, y, c, before, low, high, x, y)
    else:
        _fetch(a, b, affine, keep, pull, k, x, y, c, before, low, high, work_x, work_y)
        in_x, in_y = work_x[1 - before, low:high], work_y[1 - before, low:high]
        out_x, out_y = x[1 - before, low:high], y[1 - before, low:high]
        lane_noise = noise[low:high]
        for i in range(len(out_x)):
            out_x[i] = _ZERO
            out_y[i] = _ZERO
        for j in range(start, stop):
            number, weight = program.numbers[j], program.weights[j]
            add_variation(
                number, in_x, in_y, out_x, out_y, weight, program.parameters[j], lane_noise
            )
    if program.has_post[k]:
        _apply_affine(program.post[k], x[1 - before, low:high], y[1 - before, low:high])


@kernel
def play(state, orbits, program, camera, fold, warm_up, steps, width, height, words, look):
    """Play the game and add each point to its pixel's word.

    state: (4,) uint64 and orbits: advanced in place, their row 0 holds where they stand. camera:
    (6,) float32 of `window`. fold: 0 none, 1 mirror, 2 wrap. warm_up: steps that are not plotted;
    steps: plotted ones, at most MOST_STEPS on words that are zero, ORBITS points each. words:
    (height * width + 1,) uint64, the last takes what falls outside. look: apply the final map once
    more at the end, into row 1 of the orbits. It is a part of this function because a second one
    would have all variations compiled twice.
    """
    if not 0 <= fold <= 2:
        raise ValueError("no fold has this number")
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
        if last and not look:
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
                    if _count_fled(x[now], y[now]) > 0:
                        _restart_fled(x[now], y[now], orbits.noise)
                shown = now
                if not program.has_final or step < warm_up:
                    break
                # The rows before are no longer needed: they take the final map's points.
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
    """Add words, (n + 1,) uint64, to points and colours, (n,) float32, and clear them."""
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
    """Smooth with the B3 spline (1, 4, 6, 4, 1)/16 along both axes, its taps `gap` pixels apart.

    Edges repeated.

    plane, work, out: (H, W) float32, three different arrays.
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
    """Write the level, a float in [0, LEVELS], that each pixel's density asks for.

    All (n,) float32.
    """
    log_softness, top = logarithm2(softness), F(LEVELS)
    for i in range(len(points)):
        level = _HALF * (log_softness - logarithm2(max(_HALF * points[i], nearby[i])))
        levels[i] = min(max(level, _ZERO), top)


@kernel
def _take_share(level, levels, plane, out):
    """Write the part of a plane that belongs to one level: linear between the two nearest."""
    for i in range(len(plane)):
        out[i] = plane[i] * max(_ONE - abs(levels[i] - level), _ZERO)


@kernel
def _take_less(plane, out):
    for i in range(len(out)):
        out[i] = min(out[i], plane[i])


@kernel
def _add_into(plane, out):
    for i in range(len(out)):
        out[i] += plane[i]


def estimate_density(
    points: NDArray[np.float32], colours: NDArray[np.float32], softness: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Spread the points of sparse pixels over their surroundings and leave dense ones sharp.

    Keeps the sums.

    points, colours: (H, W) float32. softness: points a pixel from which on nothing is spread;
    pixels with a quarter of them are spread by the first level's kernel, and so on. 0: no
    smoothing. Returns two (H, W) float32 arrays.
    """
    if softness <= 0:
        return points, colours
    shape = points.shape
    nearby, work = np.empty(shape, np.float32), np.empty(shape, np.float32)
    coarse = np.empty(shape, np.float32)
    smooth(points, 1, work, coarse)
    smooth(coarse, 2, work, nearby)
    _take_less(coarse.reshape(-1), nearby.reshape(-1))
    levels = np.empty(points.size, np.float32)
    _choose_levels(F(softness), points.reshape(-1), nearby.reshape(-1), levels)
    spread = []
    for plane in (points, colours):
        # What is smoothed most goes through every kernel: convolutions commute, so one pass a level
        # does.
        out, share = np.empty(shape, np.float32), np.empty(shape, np.float32)
        _take_share(F(LEVELS), levels, plane.reshape(-1), out.reshape(-1))
        for level in range(LEVELS - 1, -1, -1):
            smooth(out, 1 << level, work, share)
            _take_share(F(level), levels, plane.reshape(-1), out.reshape(-1))
            _add_into(share.reshape(-1), out.reshape(-1))
        spread.append(out)
    return spread[0], spread[1]


@kernel
def divide(part, whole, out):
    """Write part / whole, (n,) float32 each; 0 where both are."""
    for i in range(len(out)):
        out[i] = part[i] / max(whole[i], F(1e-9))


@kernel
def shine(points, scale, contrast, per_light, gamma, light, value, cover):
    """Write light = log(1 + contrast d) / log(1 + contrast exposure).

    Value = light^gamma and cover.
    """
    for i in range(len(points)):
        here = logarithm2(fma(contrast, points[i] * scale, _ONE)) * per_light
        light[i] = here
        value[i] = exponential2(gamma * logarithm2(here))
        cover[i] = min(value[i], _ONE)


@kernel
def look_up(shares, start, stretch, table, out):
    """Write one channel's ink, (n,) float32.

    Table: (257,) float32, the palette's ring, its first entry again.

    A loop of its own: the look-up cannot be vectorised, and would keep `develop` from it (5 times
    slower).
    """
    for i in range(len(out)):
        place = fma(stretch, shares[i], start)
        place = (place - floor(place)) * F(_ENTRIES)
        left = np.int32(place) & _LAST_ENTRY
        low = table[np.uint32(left)]
        out[i] = fma(place - floor(place), table[np.uint32(left + np.int32(1))] - low, low)


@kernel
def ink_to_light(light, value, gamma, vibrancy, out):
    """Turn one channel's ink, (n,) float32, into its light, in place."""
    for i in range(len(out)):
        ink = out[i]
        kept = value[i] * ink
        flat = exponential2(gamma * logarithm2(light[i] * ink))
        # What is brighter than white bleeds into the other channels, so that cores glow.
        over = max(value[i] - _ONE, _ZERO) * _BLEED
        out[i] = min(fma(vibrancy, kept - flat, flat) + over, _ONE)


@kernel
def light_of(contrast, density, out):
    """Write log2(1 + contrast density) into out, (1,) float32."""
    out[0] = logarithm2(_ONE + contrast * density)
