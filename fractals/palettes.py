"""Procedural palettes: a few colours in OKLab, interpolated to a smooth ring of 256 entries.

OKLab: B. Ottosson, "A perceptual color space for image processing" (2020),
https://bottosson.github.io/posts/oklab/ ; matrices as given there (public domain).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fractals.numerics import Draws, F, fits_float32, floor, power
from pixmix.compiling import kernel

ENTRIES = 256


@dataclass(frozen=True, kw_only=True)
class Palette:
    """A cyclic palette.

    Attributes:
        stops: OKLab colours (lightness in [0, 1], a, b), evenly spaced; the last one joins the
            first.
    """

    stops: tuple[tuple[float, float, float], ...]

    def __post_init__(self) -> None:
        """Reject fewer than two stops, infinite numbers and lightness outside [0, 1]."""
        if len(self.stops) < 2:
            raise ValueError(f"{len(self.stops)} stops: a palette needs at least 2; add colours")
        for stop in self.stops:
            if len(stop) != 3 or not (0 <= stop[0] <= 1 and all(map(fits_float32, stop))):
                raise ValueError(
                    f"{stop}: a stop must be three numbers that are finite in float32: lightness "
                    "in [0, 1], a and b; correct it"
                )


_THIRD = F(1 / 2.4)


@kernel
def _gamma(value):
    """Return the sRGB transfer of a linear value, clamped to [0, 1]; IEC 61966-2-1."""
    value = min(max(value, F(0)), F(1))
    return F(12.92) * value if value <= F(0.0031308) else F(1.055) * power(value, _THIRD) - F(0.055)


@kernel
def _linear_rgb(lightness, a, b):
    long = lightness + F(0.3963377774) * a + F(0.2158037573) * b
    medium = lightness - F(0.1055613458) * a - F(0.0638541728) * b
    short = lightness - F(0.0894841775) * a - F(1.2914855480) * b
    long, medium, short = long * long * long, medium * medium * medium, short * short * short
    red = F(4.0767416621) * long - F(3.3077115913) * medium + F(0.2309699292) * short
    green = F(-1.2684380046) * long + F(2.6097574011) * medium - F(0.3413193965) * short
    blue = F(-0.0041960863) * long - F(0.7034186147) * medium + F(1.7076147010) * short
    return red, green, blue


@kernel
def _ring(stops, out):
    """Interpolate stops, (n, 3) float32 OKLab, around the ring into (m, 3) float32 display RGB.

    Smoothstep between neighbours is monotone, so no stop is overshot. A colour outside the gamut
    loses chroma in steps of 1/16 until it fits; its hue and lightness stay.
    """
    n, m = len(stops), len(out)
    for i in range(m):
        position = F(i) * F(n) / F(m)
        left = int(floor(position))
        t = position - F(left)
        t = t * t * (F(3) - F(2) * t)
        right = (left + 1) % n
        lightness = stops[left, 0] + t * (stops[right, 0] - stops[left, 0])
        a = stops[left, 1] + t * (stops[right, 1] - stops[left, 1])
        b = stops[left, 2] + t * (stops[right, 2] - stops[left, 2])
        for step in range(17):
            keep = F(1) - F(step) * F(0.0625)
            red, green, blue = _linear_rgb(lightness, a * keep, b * keep)
            if min(red, green, blue) >= F(-0.002) and max(red, green, blue) <= F(1.002):
                break
        out[i, 0], out[i, 1], out[i, 2] = _gamma(red), _gamma(green), _gamma(blue)


@lru_cache(maxsize=64)
def palette_table(palette: Palette) -> NDArray[np.float32]:
    """Return the palette's lookup table, read-only.

    Returns:
        (256, 3) float32 display RGB in [0, 1]; entry 255 neighbours entry 0.
    """
    out = np.empty((ENTRIES, 3), np.float32)
    _ring(np.array(palette.stops, np.float32), out)
    out.setflags(write=False)
    return out


def _stop(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    lightness = min(max(lightness, 0.0), 1.0)
    return round(lightness, 4), round(chroma * math.cos(hue), 4), round(chroma * math.sin(hue), 4)


def _near(draws: Draws, first: float, n: int) -> list[float]:
    return [first + draws.uniform(-0.6, 0.6) for _ in range(n)]


def _opposite(draws: Draws, first: float, n: int) -> list[float]:
    second = first + math.pi + draws.uniform(-0.7, 0.7)
    return [draws.choice((first, second)) + draws.uniform(-0.35, 0.35) for _ in range(n)]


def _triad(draws: Draws, first: float, n: int) -> list[float]:
    return [
        first + draws.integer(0, 2) * 2 * math.pi / 3 + draws.uniform(-0.3, 0.3) for _ in range(n)
    ]


def _circle(draws: Draws, first: float, n: int) -> list[float]:
    step = draws.sign() * 2 * math.pi / n
    return [first + i * step + draws.uniform(-0.2, 0.2) for i in range(n)]


class Scheme(NamedTuple):
    """A colour scheme.

    Attributes:
        probability: Probability that a palette uses this scheme.
        draw_hues: Takes draws, the first hue in radians and the number of hues; returns the hues.
    """

    probability: float
    draw_hues: Callable[[Draws, float, int], list[float]]


SCHEMES = {
    "near": Scheme(0.4, _near),
    "opposite": Scheme(0.32, _opposite),
    "triad": Scheme(0.18, _triad),
    "circle": Scheme(0.1, _circle),
}


def draw_palette(draws: Draws) -> Palette:
    """Draw a palette of 3 to 8 strong colours that alternate between dark and light.

    The hues follow one of ``SCHEMES``. Because lightness alternates, neighbouring values of the
    coordinate can also be told apart in greyscale.
    """
    n = draws.integer(3, 8)
    first = draws.uniform(0, 2 * math.pi)
    scheme = draws.weighted(list(SCHEMES), [scheme.probability for scheme in SCHEMES.values()])
    hues = SCHEMES[scheme].draw_hues(draws, first, n)
    dark, light = draws.weighted(((0.04, 0.65), (0.2, 0.9), (0.45, 0.98)), (1, 1.7, 1.7))
    strength = draws.uniform(0.07, 0.26)
    stops = []
    for i, hue in enumerate(hues):
        swing = draws.uniform(0.0, 0.45)
        lightness = dark + (light - dark) * (swing if i % 2 == 0 else 1 - swing)
        chroma = strength * draws.uniform(0.6, 1.25) * (0.35 if draws.chance(0.12) else 1.0)
        stops.append(_stop(lightness, chroma, hue))
    return Palette(stops=tuple(stops))


def draw_background(draws: Draws, palette: Palette) -> Palette:
    """Draw the ends of the background gradient: near two of the palette's stops, mostly dark."""
    low, high = draws.weighted(((0.06, 0.3), (0.3, 0.6), (0.7, 0.95)), (5, 2, 2))
    ends = []
    for stop in (draws.choice(palette.stops), draws.choice(palette.stops)):
        keep = draws.uniform(0.5, 1.0)
        ends.append(
            (round(draws.uniform(low, high), 4), round(stop[1] * keep, 4), round(stop[2] * keep, 4))
        )
    return Palette(stops=tuple(ends))
