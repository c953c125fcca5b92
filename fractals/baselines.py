"""Images of random processes: what fractals are to be measured against as a mixing set.

* dead-leaves: discs and rectangles of random colours, whose sizes follow a power law, over each
  other until nothing is left bare. Scale-invariant, with edges.
* spectrum: noise whose power falls with frequency, by other exponents across than down, in three
  mixed colours. Scale-invariant, without edges.
* noise: each byte on its own. Neither.

The first two are processes of Baradad et al. 2021, "Learning to See by Looking at Noise" (section
3), which the PixMix paper mixes with for comparison; sizes and colours here are our own.
All arithmetic is exact by IEEE 754, or of `numerics`, so an image is the same on every machine.
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
"""Raised when the same kind, seed, index and size give another image."""

_KEY = 0x42415345  # "BASE": keeps these streams apart from those of genomes.

SMALLEST_LEAF, LARGEST_LEAF = 1 / 96, 0.4
"""Radius of leaves, in shorter sides of the image."""

SMALLEST_EXPONENT, LARGEST_EXPONENT = 0.5, 3.5
"""Of amplitude against frequency, drawn for each image and each axis; the authors' range."""


def render_baseline(kind: str, seed: int, index: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Paint an image, a function of its arguments alone.

    Args:
        kind: one of `BASELINE_KINDS`.
        seed: any whole number.
        index: of the image, 0 or more.
        size: (height, width) in pixels.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ValueError: for another kind, a negative index, or a size below 1.
    """
    if kind not in BASELINE_KINDS:
        raise ValueError(f"kind is {kind!r}; give one of {', '.join(BASELINE_KINDS)}")
    height, width = size
    if index < 0 or height < 1 or width < 1:
        raise ValueError(
            f"index is {index} and size {height}x{width} (height x width); give an index from "
            "0 and sides from 1"
        )
    state = random_state(_KEY, list(BASELINE_KINDS).index(kind), seed, index)
    image = np.empty((height, width, 3), np.uint8)
    BASELINE_KINDS[kind](state, image)
    return image


@kernel
def _fill_with_noise(state, image):
    """Fill (height, width, 3) uint8 with random bytes, eight of each word, the lowest first."""
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


def _cover_with_leaves(state: NDArray[np.uint64], image: NDArray[np.uint8]) -> None:
    shorter = min(image.shape[:2])
    # A leaf of less than half a pixel would cover none for ever.
    smallest = max(0.75, SMALLEST_LEAF * shorter)
    _lay_leaves(state, image, smallest, max(2 * smallest, LARGEST_LEAF * shorter))


@kernel
def _lay_leaves(state, image, smallest, largest):
    """Cover (height, width, 3) uint8 with leaves, each beneath those before.

    From above, for then whatever is bare at last is covered once, and the pattern is the same that
    leaves falling for ever would make. smallest, largest: radii in pixels; the density of a radius
    r falls as r^-3.
    """
    height, width = image.shape[:2]
    bare = np.ones((height, width), np.bool_)
    n_bare = height * width
    most, least = 1.0 / (smallest * smallest), 1.0 / (largest * largest)
    # The reach of a rectangle: its half diagonal.
    margin = 1.5 * largest
    while n_bare > 0:
        radius = 1.0 / np.sqrt(most - next_unit(state) * (most - least))
        centre_x = next_unit(state) * (width + 2.0 * margin) - margin
        centre_y = next_unit(state) * (height + 2.0 * margin) - margin
        # A direction: of a point in the unit disc.
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
                if not bare[y, x]:
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
                    bare[y, x] = False
                    n_bare -= 1
                    for c in range(3):
                        image[y, x, c] = np.uint8((colour >> np.uint64(8 * c)) & np.uint64(255))


@kernel
def _fill_with_spectrum(state, image):
    """Fill (height, width, 3) uint8 with coloured noise of a falling spectrum.

    Three fields of amplitude 1 / (|kx|^a + |ky|^b) and random phases are mixed by a random matrix,
    and brought to a mean of 64 to 192 and a deviation of 32 to 72 by channel. They are computed on
    a square whose side is a power of two, from which the image is cut.
    """
    height, width = image.shape[:2]
    side = 1
    while side < max(height, width):
        side *= 2
    span = LARGEST_EXPONENT - SMALLEST_EXPONENT
    exponent_x = F(SMALLEST_EXPONENT + span * next_unit(state))
    exponent_y = F(SMALLEST_EXPONENT + span * next_unit(state))
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
            _transform(spectrum[ky])
        for x in range(width):
            _transform(spectrum[:, x])
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
def _transform(values):
    """Transform (n,) complex in place, n a power of two: sum over k of v[k] e^(2 pi i k x / n).

    The algorithm of Cooley and Tukey 1965, radix 2, in place. numpy's transform may round
    otherwise on another machine.
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
    "dead-leaves": _cover_with_leaves,
    "spectrum": _fill_with_spectrum,
    "noise": _fill_with_noise,
}
"""Functions of a state and an image to fill. Append new rows: a place is a part of random keys."""
