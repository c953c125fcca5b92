"""Points and colours -> light.

Density estimation, logarithm, gamma, vibrancy, and the layers' blending.

Draves & Reckase, "The Fractal Flame Algorithm", sections 4 (log density), 6 (gamma, vibrancy) and 8
(density estimation). Their kernel's radius falls with the count, one kernel a pixel; here a pixel's
points are shared between the two of a few fixed kernels whose radii enclose the wanted one.
"""

import numpy as np
from numpy.typing import NDArray

from fractals.elementary import F, exponential2, floor, logarithm2
from fractals.genome import Tone
from pixmix.compiling import fma, kernel

LEVELS = 4
"""Kernels besides none: B3 splines of standard deviation 1, 2.2, 4.6 and 9.2 pixels."""

_ZERO, _HALF, _ONE, _TWO = F(0), F(0.5), F(1), F(2)
_CENTRE, _NEAR, _OUTER = F(0.375), F(0.25), F(0.0625)
_ENTRIES = 256
_BLEED = F(0.35)
_LAST_ENTRY = np.int32(_ENTRIES - 1)


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
def _divide(part, whole, out):
    for i in range(len(out)):
        out[i] = part[i] / max(whole[i], F(1e-9))


@kernel
def _shine(points, scale, contrast, per_light, gamma, light, value, cover):
    """Write light = log(1 + contrast d) / log(1 + contrast exposure).

    Value = light^gamma and cover.
    """
    for i in range(len(points)):
        here = logarithm2(fma(contrast, points[i] * scale, _ONE)) * per_light
        light[i] = here
        value[i] = exponential2(gamma * logarithm2(here))
        cover[i] = min(value[i], _ONE)


@kernel
def _look_up(shares, start, stretch, table, out):
    """Write one channel's ink, (n,) float32.

    Table: (257,) float32, the palette's ring, its first entry again.

    A loop of its own: the look-up cannot be vectorised, and would keep `_develop` from it (5 times
    slower).
    """
    for i in range(len(out)):
        place = fma(stretch, shares[i], start)
        place = (place - floor(place)) * F(_ENTRIES)
        left = np.int32(place) & _LAST_ENTRY
        low = table[np.uint32(left)]
        out[i] = fma(place - floor(place), table[np.uint32(left + np.int32(1))] - low, low)


@kernel
def _develop(light, value, gamma, vibrancy, out):
    """Turn one channel's ink, (n,) float32, into its light, in place."""
    for i in range(len(out)):
        ink = out[i]
        kept = value[i] * ink
        flat = exponential2(gamma * logarithm2(light[i] * ink))
        # What is brighter than white bleeds into the other channels, so that cores glow.
        over = max(value[i] - _ONE, _ZERO) * _BLEED
        out[i] = min(fma(vibrancy, kept - flat, flat) + over, _ONE)


def develop(
    points: NDArray[np.float32],
    colours: NDArray[np.float32],
    played: int,
    tone: Tone,
    table: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Turn points, already spread by `estimate_density`, into a layer's light and cover.

    points, colours: (H, W) float32, played: all points of the game; table: (256, 3) float32. The
    colour is the mean of a pixel and its neighbours (standard deviation 1 pixel), the light its
    own: the eye sees speckles of hue and lines of light. Returns light (3, H, W) float32 in [0, 1],
    already multiplied by cover, and cover (H, W) in [0, 1].
    """
    height, width = points.shape
    shares, work = np.empty_like(points), np.empty_like(points)
    smooth(points, 1, work, shares)
    smoothed = np.empty_like(points)
    smooth(colours, 1, work, smoothed)
    _divide(smoothed.reshape(-1), shares.reshape(-1), shares.reshape(-1))
    full = np.empty(1, np.float32)
    _light_of(F(tone.contrast), F(tone.exposure), full)
    light, value = np.empty(points.size, np.float32), np.empty(points.size, np.float32)
    out, cover = np.empty((3, points.size), np.float32), np.empty(points.size, np.float32)
    scale = F(min(height, width) ** 2 / played)
    _shine(
        points.reshape(-1),
        scale,
        F(tone.contrast),
        F(1) / full[0],
        F(tone.gamma),
        light,
        value,
        cover,
    )
    ring = np.concatenate((table, table[:1])).T.copy()
    for channel in range(3):
        _look_up(
            shares.reshape(-1),
            F(tone.colour_start),
            F(tone.colour_stretch),
            ring[channel],
            out[channel],
        )
        _develop(light, value, F(tone.gamma), F(tone.vibrancy), out[channel])
    return out.reshape(3, height, width), cover.reshape(height, width)


@kernel
def _light_of(contrast, density, out):
    out[0] = logarithm2(_ONE + contrast * density)


BLEND_NUMBERS = {"over": 0, "screen": 1, "lighten": 2, "multiply": 3}


@kernel
def lay_over(below, light, cover, blend, opacity):
    """Lay a layer on what is below, in place; display values throughout.

    below: (n, 3), light: (3, n) float32 in [0, 1]; cover: (n,) float32 in [0, 1]; blend: of
    BLEND_NUMBERS; opacity: float32 in [0, 1].
    """
    for i in range(len(cover)):
        hidden = opacity * cover[i]
        for channel in range(3):
            base, ink = below[i, channel], opacity * light[channel, i]
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
    """Fill out, (H, W, 3) float32, with a gradient from `first` at the top to `second`.

    (3,) float32 each.
    """
    height, width, _ = out.shape
    for y in range(height):
        t = (F(y) + _HALF) / F(height)
        for x in range(width):
            for channel in range(3):
                out[y, x, channel] = first[channel] + t * (second[channel] - first[channel])


@kernel
def to_bytes(values, black, white, out):
    """Stretch values, (n,) float32, from [black, white] to [0, 255], clamp, and round into out.

    (n,) uint8.
    """
    scale = F(255) / (white - black)
    for i in range(len(out)):
        value = min(max((values[i] - black) * scale, _ZERO), F(255))
        out[i] = np.uint8(np.int32(value + _HALF))
