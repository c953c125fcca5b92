"""Simple mixing sets made by random processes, as baselines for fractals.

* dead-leaves: discs and rectangles of random colours that cover each other; their sizes follow a
  power law. Scale-invariant, with edges.
* spectrum: noise whose power falls with frequency, with separate exponents for the two axes, in
  three mixed colours. Scale-invariant, without edges.
* noise: independent random bytes. Neither scale-invariant nor with edges.

The first two are processes of Baradad et al. 2021, "Learning to See by Looking at Noise" (section
3), with which the PixMix paper compares; the sizes and colours are ours. All arithmetic is exact by
IEEE 754 or comes from ``numerics``, so an image is the same on every machine.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fractals.numerics import (
    F,
    exponential2,
    logarithm2,
    next_unit,
    next_word,
    random_state,
    sine_of_turns,
)
from pixmix.compiling import kernel

BASELINE_VERSION = 1
"""Incremented when a kind, seed, index and size produce a different image."""

_KEY = 0x42415345  # "BASE": keeps these streams apart from those of genomes.

MIN_LEAF_RADIUS, MAX_LEAF_RADIUS = 1 / 96, 0.4
"""Radii of leaves, as a fraction of the shorter side."""

MIN_EXPONENT, MAX_EXPONENT = 0.5, 3.5
"""Exponent of amplitude against frequency, drawn per image and axis; the authors' range."""


def render_baseline(kind: str, seed: int, index: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Render one image of a baseline mixing set, a pure function of the arguments.

    Args:
        kind: One of ``BASELINE_KINDS``.
        seed: Any integer.
        index: Index of the image, at least 0.
        size: (height, width) in pixels, each at least 1.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ValueError: If the kind is unknown, the index is negative, or a side is below 1.
    """
    if kind not in BASELINE_KINDS:
        raise ValueError(f"kind is {kind!r}; use one of {', '.join(BASELINE_KINDS)}")
    height, width = size
    if index < 0 or height < 1 or width < 1:
        raise ValueError(
            f"index {index} and size {height}x{width} (height x width): the index must be at least "
            "0 and each side at least 1"
        )
    state = random_state(_KEY, list(BASELINE_KINDS).index(kind), seed, index)
    image = np.empty((height, width, 3), np.uint8)
    BASELINE_KINDS[kind](state, image)
    return image


@kernel
def _fill_noise(state, image):
    """Fill (height, width, 3) uint8 with random bytes: eight from each word, the lowest first."""
    height, width, channels = image.shape
    word = np.uint64(0)
    left = 0
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                if left == 0:
                    word = next_word(state)
                    left = 8
                image[y, x, c] = np.uint8(word & np.uint64(255))
                word >>= np.uint64(8)
                left -= 1


def _fill_dead_leaves(state: NDArray[np.uint64], image: NDArray[np.uint8]) -> None:
    """Fill (height, width, 3) uint8 with leaves."""
    shorter = min(image.shape[:2])
    # A leaf smaller than half a pixel may cover no pixel, and the loop would not end.
    smallest = max(0.75, MIN_LEAF_RADIUS * shorter)
    _draw_leaves(state, image, smallest, max(2 * smallest, MAX_LEAF_RADIUS * shorter))


@kernel
def _draw_leaves(state, image, smallest, largest):
    """Cover (height, width, 3) uint8 with leaves, each below those drawn before it.

    Drawing from the top down covers every pixel exactly once, and the pattern equals that of leaves
    that fall forever. The density of a radius r is proportional to r^-3.

    Args:
        state: (4,) uint64, advanced in place.
        image: (height, width, 3) uint8 to fill.
        smallest: Minimum radius in pixels.
        largest: Maximum radius in pixels.
    """
    height, width = image.shape[:2]
    uncovered = np.ones((height, width), np.bool_)
    n_uncovered = height * width
    high, low = 1.0 / (smallest * smallest), 1.0 / (largest * largest)
    # Half the diagonal of a rectangle bounds its extent.
    margin = 1.5 * largest
    while n_uncovered > 0:
        radius = 1.0 / np.sqrt(high - next_unit(state) * (high - low))
        centre_x = next_unit(state) * (width + 2.0 * margin) - margin
        centre_y = next_unit(state) * (height + 2.0 * margin) - margin
        # A random direction, by rejection sampling in the unit disc.
        along_x, along_y, square = 0.0, 0.0, 0.0
        while square <= 1e-6 or square > 1.0:
            along_x, along_y = 2.0 * next_unit(state) - 1.0, 2.0 * next_unit(state) - 1.0
            square = along_x * along_x + along_y * along_y
        length = np.sqrt(square)
        along_x, along_y = along_x / length, along_y / length
        is_disc = next_unit(state) < 0.5
        across = radius * (0.25 + 0.75 * next_unit(state))
        colour = next_word(state)
        reach = radius if is_disc else np.sqrt(radius * radius + across * across)
        for y in range(
            max(0, int(np.floor(centre_y - reach))), min(height, int(np.ceil(centre_y + reach)) + 1)
        ):
            for x in range(
                max(0, int(np.floor(centre_x - reach))),
                min(width, int(np.ceil(centre_x + reach)) + 1),
            ):
                if not uncovered[y, x]:
                    continue
                dx, dy = x - centre_x, y - centre_y
                if is_disc:
                    inside = dx * dx + dy * dy <= radius * radius
                else:
                    inside = (
                        abs(dx * along_x + dy * along_y) <= radius
                        and abs(dy * along_x - dx * along_y) <= across
                    )
                if inside:
                    uncovered[y, x] = False
                    n_uncovered -= 1
                    for c in range(3):
                        image[y, x, c] = np.uint8((colour >> np.uint64(8 * c)) & np.uint64(255))


@kernel
def _fill_spectrum(state, image):
    """Fill (height, width, 3) uint8 with coloured noise whose spectrum falls with frequency.

    Three fields with amplitude ``1 / (|kx|^a + |ky|^b)`` and random phases are mixed by a random
    matrix. Each channel is then scaled to a mean of 64 to 192 and a standard deviation of 32 to 72.
    The fields are computed on a square whose side is a power of two, and the image is cropped from
    it.
    """
    height, width = image.shape[:2]
    side = 1
    while side < max(height, width):
        side *= 2
    span = MAX_EXPONENT - MIN_EXPONENT
    exponent_x = F(MIN_EXPONENT + span * next_unit(state))
    exponent_y = F(MIN_EXPONENT + span * next_unit(state))
    fields = np.empty((3, height, width), np.float64)
    for c in range(3):
        spectrum = np.zeros((side, side), np.complex128)
        for ky in range(side):
            for kx in range(side):
                turn = F(next_unit(state))
                if kx == 0 and ky == 0:
                    continue
                size = 0.0
                if kx > 0:
                    size += exponential2(exponent_x * logarithm2(F(min(kx, side - kx))))
                if ky > 0:
                    size += exponential2(exponent_y * logarithm2(F(min(ky, side - ky))))
                spectrum[ky, kx] = (
                    complex(sine_of_turns(turn + F(0.25)), sine_of_turns(turn)) / size
                )
        for ky in range(side):
            _inverse_fft(spectrum[ky])
        for x in range(width):
            _inverse_fft(spectrum[:, x])
        fields[c] = spectrum[:height, :width].real
    for c in range(3):
        red, green, blue = (
            2.0 * next_unit(state) - 1.0,
            2.0 * next_unit(state) - 1.0,
            2.0 * next_unit(state) - 1.0,
        )
        mean = 64.0 + 128.0 * next_unit(state)
        deviation = 32.0 + 40.0 * next_unit(state)
        field = red * fields[0] + green * fields[1] + blue * fields[2]
        total, squares = 0.0, 0.0
        for y in range(height):
            for x in range(width):
                total += field[y, x]
        middle = total / (height * width)
        for y in range(height):
            for x in range(width):
                squares += (field[y, x] - middle) * (field[y, x] - middle)
        spread = max(np.sqrt(squares / (height * width)), 1e-30)
        for y in range(height):
            for x in range(width):
                value = mean + deviation * (field[y, x] - middle) / spread
                image[y, x, c] = np.uint8(min(max(np.floor(value + 0.5), 0.0), 255.0))


@kernel
def _inverse_fft(values):
    """Transform (n,) complex in place, n a power of two: sum over k of v[k] e^(2 pi i k x / n).

    Radix-2 algorithm of Cooley and Tukey (1965). numpy's FFT may round differently on another
    machine.
    """
    n = len(values)
    j = 0
    for i in range(1, n):
        bit = n >> 1
        while j & bit:
            j ^= bit
            bit >>= 1
        j ^= bit
        if i < j:
            values[i], values[j] = values[j], values[i]
    length = 2
    while length <= n:
        half = length // 2
        for k in range(half):
            turn = F(k) / F(length)
            turned = complex(sine_of_turns(turn + F(0.25)), sine_of_turns(turn))
            for start in range(k, n, length):
                other = values[start + half] * turned
                values[start + half] = values[start] - other
                values[start] = values[start] + other
        length *= 2


BASELINE_KINDS: dict[str, Callable[..., None]] = {
    "dead-leaves": _fill_dead_leaves,
    "spectrum": _fill_spectrum,
    "noise": _fill_noise,
}
"""Functions that fill an image. Append new rows at the end: the position is part of random keys."""
