"""Points and colours -> light: density estimation, logarithm, gamma, vibrancy, and the layers' blending.

Draves & Reckase, "The Fractal Flame Algorithm", sections 4 (log density), 6 (gamma, vibrancy) and 8
(density estimation). Their kernel's radius falls with the count, one kernel a pixel; here a pixel's
points are shared between the two of a few fixed kernels whose radii enclose the wanted one.
"""

import numpy as np
from numpy.typing import NDArray

from fractals.elementary import F, exponential2, floor, fma, kernel, logarithm2
from fractals.genome import Tone

LEVELS = 4
"""Kernels besides none: B3 splines of standard deviation 1, 2.2, 4.6 and 9.2 pixels."""

_ZERO, _HALF, _ONE, _TWO = F(0), F(0.5), F(1), F(2)
_CENTRE, _NEAR, _OUTER = F(0.375), F(0.25), F(0.0625)
_ENTRIES = 256


@kernel
def _weigh_rows(a, b, c, d, e, out):
    for i in range(len(out)):
        out[i] = _OUTER * (a[i] + e[i]) + (_NEAR * (b[i] + d[i]) + _CENTRE * c[i])


@kernel
def smooth(plane, gap, work, out):
    """Smooth with the B3 spline (1, 4, 6, 4, 1)/16 along both axes, its taps `gap` pixels apart, edges repeated.

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
                row[3 * gap : 3 * gap + inner], row[4 * gap : 4 * gap + inner], to[border : border + inner],
            )  # fmt: skip


@kernel
def _split(softness, points, colours, nearby, point_levels, colour_levels):
    """Share each pixel's points and colours among the levels, (L, n) float32, its density asks for."""
    top = F(len(point_levels) - 1)
    log_softness = logarithm2(softness)
    for i in range(len(points)):
        n = points[i]
        if n <= _ZERO:
            continue
        level = _HALF * (log_softness - logarithm2(max(_HALF * n, nearby[i])))
        level = min(max(level, _ZERO), top - F(1e-3))
        base = int(floor(level))
        upper = level - F(base)
        lower = _ONE - upper
        point_levels[base, i] = lower * n
        point_levels[base + 1, i] = upper * n
        colour_levels[base, i] = lower * colours[i]
        colour_levels[base + 1, i] = upper * colours[i]


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
    """Spread the points of sparse pixels over their surroundings and leave dense ones sharp; keeps the sums.

    points, colours: (H, W) float32. softness: points a pixel from which on nothing is spread; pixels with
    a quarter of them are spread by the first level's kernel, and so on. 0: no smoothing.
    Returns two (H, W) float32 arrays.
    """
    if softness <= 0:
        return points, colours
    shape = points.shape
    nearby, work = np.empty(shape, np.float32), np.empty(shape, np.float32)
    coarse = np.empty(shape, np.float32)
    smooth(points, 1, work, coarse)
    smooth(coarse, 2, work, nearby)
    _take_less(coarse.reshape(-1), nearby.reshape(-1))
    stacks = np.zeros((2, LEVELS + 1, *shape), np.float32)
    flat = stacks.reshape(2, LEVELS + 1, -1)
    _split(F(softness), points.reshape(-1), colours.reshape(-1), nearby.reshape(-1), flat[0], flat[1])
    for stack in stacks:
        # What is smoothed most goes through every kernel: convolutions commute, so one pass a level is enough.
        for level in range(LEVELS, 0, -1):
            smooth(stack[level], 1 << (level - 1), work, coarse)
            _add_into(coarse.reshape(-1), stack[level - 1].reshape(-1))
    return stacks[0, 0], stacks[1, 0]


@kernel
def _divide(part, whole, out):
    for i in range(len(out)):
        out[i] = part[i] / max(whole[i], F(1e-9))


@kernel
def _develop(points, shares, table, start, stretch, scale, contrast, per_light, gamma, vibrancy, out, cover):
    for i in range(len(points)):
        n = points[i]
        place = fma(stretch, shares[i], start) * F(_ENTRIES)
        floored = floor(place)
        t = place - floored
        left = int(floored) & (_ENTRIES - 1)
        right = (left + 1) & (_ENTRIES - 1)
        light = logarithm2(_ONE + contrast * (n * scale)) * per_light
        value = exponential2(gamma * logarithm2(light)) if light > _ZERO else _ZERO
        cover[i] = min(value, _ONE)
        for channel in range(3):
            ink = table[left, channel] + t * (table[right, channel] - table[left, channel])
            kept = value * ink
            if vibrancy < _ONE:
                flat = exponential2(gamma * logarithm2(max(light * ink, F(1e-12))))
                kept = flat + vibrancy * (kept - flat)
            # What is brighter than white bleeds into the other channels, so that cores glow.
            out[i, channel] = kept
        over = max(value - _ONE, _ZERO) * F(0.35)
        for channel in range(3):
            out[i, channel] = min(out[i, channel] + over, _ONE)


def develop(
    points: NDArray[np.float32],
    colours: NDArray[np.float32],
    played: int,
    tone: Tone,
    table: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Turn accumulated points into a layer's light and cover.

    points, colours: (H, W) float32 of `accumulate`, played: its number of points; table: (256, 3) float32.
    The colour is the mean of a pixel and its neighbours (standard deviation 1 pixel), the light its own:
    the eye sees speckles of hue and lines of light.
    Returns light (H, W, 3) float32 in [0, 1], already multiplied by cover, and cover (H, W) in [0, 1].
    """
    height, width = points.shape
    points, colours = estimate_density(points, colours, tone.softness)
    shares, work = np.empty_like(points), np.empty_like(points)
    smooth(points, 1, work, shares)
    smoothed = np.empty_like(points)
    smooth(colours, 1, work, smoothed)
    _divide(smoothed.reshape(-1), shares.reshape(-1), shares.reshape(-1))
    scale = F(min(height, width) ** 2 / played)
    full = np.empty(1, np.float32)
    _light_of(F(tone.contrast), F(tone.exposure), full)
    out, cover = np.empty((height * width, 3), np.float32), np.empty(height * width, np.float32)
    _develop(
        points.reshape(-1), shares.reshape(-1), table, F(tone.colour_start), F(tone.colour_stretch), scale, F(tone.contrast), F(1) / full[0],
        F(tone.gamma), F(tone.vibrancy), out, cover,
    )  # fmt: skip
    return out.reshape(height, width, 3), cover.reshape(height, width)


@kernel
def _light_of(contrast, density, out):
    out[0] = logarithm2(_ONE + contrast * density)


BLEND_NUMBERS = {"over": 0, "screen": 1, "lighten": 2, "multiply": 3}


@kernel
def lay_over(below, light, cover, blend, opacity):
    """Lay a layer on what is below, in place; display values throughout.

    below, light: (n, 3) float32 in [0, 1]; cover: (n,) float32 in [0, 1]; blend: of BLEND_NUMBERS;
    opacity: float32 in [0, 1].
    """
    for i in range(len(cover)):
        hidden = opacity * cover[i]
        for channel in range(3):
            base, ink = below[i, channel], opacity * light[i, channel]
            if blend == 0:
                value = base * (_ONE - hidden) + ink
            elif blend == 1:
                value = _ONE - (_ONE - base) * (_ONE - ink)
            elif blend == 2:
                value = max(base, ink)
            else:
                value = base * (_ONE - hidden + ink)
            below[i, channel] = min(value, _ONE)


@kernel
def shade_ground(first, second, out):
    """Fill out, (H, W, 3) float32, with a gradient from `first` at the top to `second`, (3,) float32 each."""
    height, width, _ = out.shape
    for y in range(height):
        t = (F(y) + _HALF) / F(height)
        for x in range(width):
            for channel in range(3):
                out[y, x, channel] = first[channel] + t * (second[channel] - first[channel])


@kernel
def to_bytes(values, black, white, out):
    """Stretch values, (n,) float32, from [black, white] to [0, 255], clamp, and round into out, (n,) uint8."""
    scale = F(255) / (white - black)
    for i in range(len(out)):
        value = min(max((values[i] - black) * scale, _ZERO), F(255))
        out[i] = np.uint8(np.int32(value + _HALF))
