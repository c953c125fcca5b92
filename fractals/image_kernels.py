"""Compiled passes over images: blending of layers, and the sums behind image statistics.

Statistics use integers, or float64 values that stay integers below 2^53, so that results have the
same bits on every CPU and in every order of summation: the acceptance of a draft depends on
them and must not depend on the machine. Luma is Rec. 601 (299, 587, 114) in thousandths of an 8-bit
level, 0..255000.
"""

# numba's scalar types are finer than Python's annotations can express.
# mypy: disable-error-code="return-value, assignment, no-any-return"

import numpy as np
from numpy.typing import NDArray

from fractals.numerics import F
from pixmix.compiling import kernel

FULL_SCALE = 255000
"""Luma of white."""
BLOCK = 8
"""Side of a textured block, in pixels."""
COLOUR_BINS = 8
"""Bins per channel of the colour histogram."""
FRACTION_BITS = 14
"""The weights of a resize are integers that sum to 2^14."""

# 0.05 of full scale, on a Sobel response divided by 4; compared as squares.
_EDGE_LIMIT = float((FULL_SCALE // 20 * 4) ** 2)
# 0.03 of full scale: n * sum(x^2) - sum(x)^2 > (n * limit)^2 is std > limit without a division.
_TEXTURE_LIMIT = (BLOCK * BLOCK * FULL_SCALE * 3 // 100) ** 2
_ONE_TWICE = 1.0 / float(1 << (2 * FRACTION_BITS))
_LOG2_E = 1.4426950408889634
_SQRT_2 = 1.4142135623730951
_ZERO, _HALF, _ONE = F(0), F(0.5), F(1)


@kernel
def padded_luma(image: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return the luma of an image with a border of repeated edge pixels.

    image: (H, W, 3) uint8. Returns (H + 2, W + 2) int32, thousandths of a level, 0..255000.
    """
    height, width = image.shape[0], image.shape[1]
    luma = np.empty((height + 2, width + 2), np.int32)
    for i in range(height):
        source, row = image[i], luma[i + 1]
        for j in range(width):
            red, green = np.int32(source[j, 0]), np.int32(source[j, 1])
            blue = np.int32(source[j, 2])
            row[j + 1] = np.int32(299) * red + np.int32(587) * green + np.int32(114) * blue
    repeat_border(luma)
    return luma


@kernel
def repeat_border(padded: NDArray[np.int32]) -> None:
    """Fill the border of (H + 2, W + 2) int32 with the adjacent pixels, in place."""
    for i in range(1, padded.shape[0] - 1):
        padded[i, 0] = padded[i, 1]
        padded[i, -1] = padded[i, -2]
    for j in range(padded.shape[1]):
        padded[0, j] = padded[1, j]
        padded[-1, j] = padded[-2, j]


@kernel
def luma_moments(luma: NDArray[np.int32]) -> tuple[int, int, int]:
    """Return the sum, the sum of squares, and the number of pixels above 8 of 255 levels.

    luma: (H + 2, W + 2) int32, padded. Returns three int64; exact up to 10^8 pixels.
    """
    total, squares, lit = np.int64(0), np.int64(0), np.int64(0)
    for i in range(1, luma.shape[0] - 1):
        row = luma[i, 1:-1]
        for j in range(len(row)):
            value = np.int64(row[j])
            total += value
            squares += value * value
            lit += np.int64(value > 8000)
    return total, squares, lit


@kernel
def edge_mask(luma: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Mark the pixels whose Sobel response, divided by 4, is above 0.05 of full scale.

    luma: (H + 2, W + 2) int32, padded. Returns (H, W) uint8, 1 where the gradient's length is above
    the limit; it compares squares of integers under 2^53, which are exact in float64.
    """
    height, width = luma.shape[0] - 2, luma.shape[1] - 2
    mask = np.empty((height, width), np.uint8)
    for i in range(height):
        above, here, below, marks = luma[i], luma[i + 1], luma[i + 2], mask[i]
        for j in range(width):
            left = above[j] + np.int32(2) * here[j] + below[j]
            right = above[j + 2] + np.int32(2) * here[j + 2] + below[j + 2]
            top = above[j] + np.int32(2) * above[j + 1] + above[j + 2]
            bottom = below[j] + np.int32(2) * below[j + 1] + below[j + 2]
            x, y = np.float64(right - left), np.float64(bottom - top)
            marks[j] = np.uint8(x * x + y * y > _EDGE_LIMIT)
    return mask


@kernel
def count_textured_blocks(luma: NDArray[np.int32]) -> int:
    """Count the complete 8x8 blocks whose luma has a standard deviation above 0.03 of full scale.

    luma: (H + 2, W + 2) int32, padded; incomplete blocks at the right and bottom are ignored.
    """
    count = 0
    for top in range(1, luma.shape[0] - 1 - BLOCK + 1, BLOCK):
        for left in range(1, luma.shape[1] - 1 - BLOCK + 1, BLOCK):
            total, squares = np.int64(0), np.int64(0)
            for i in range(top, top + BLOCK):
                for j in range(left, left + BLOCK):
                    value = np.int64(luma[i, j])
                    total += value
                    squares += value * value
            count += BLOCK * BLOCK * squares - total * total > _TEXTURE_LIMIT
    return count


@kernel
def colour_counts(image: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the colour histogram and the sums for colourfulness, in one pass.

    image: (H, W, 3) uint8. Returns (512,) int64 counts, red bin slowest, 32 levels per bin, and
    (4,) int64: sum and sum of squares of R - G, then of R + G - 2 B.
    """
    counts = np.zeros(COLOUR_BINS**3, np.int64)
    sums = np.zeros(4, np.int64)
    for i in range(image.shape[0]):
        row = image[i]
        for j in range(row.shape[0]):
            red, green, blue = np.int64(row[j, 0]), np.int64(row[j, 1]), np.int64(row[j, 2])
            counts[((red >> 5) << 6) | ((green >> 5) << 3) | (blue >> 5)] += 1
            red_green, yellow_blue = red - green, red + green - 2 * blue
            sums[0] += red_green
            sums[1] += red_green * red_green
            sums[2] += yellow_blue
            sums[3] += yellow_blue * yellow_blue
    return counts, sums


@kernel
def luma_counts(luma: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the histogram of a padded luma, rounded to 256 levels: (256,) int64."""
    counts = np.zeros(256, np.int64)
    for i in range(1, luma.shape[0] - 1):
        for j in range(1, luma.shape[1] - 1):
            counts[(luma[i, j] + 500) // 1000] += 1
    return counts


@kernel
def resized(
    luma: NDArray[np.int32],
    row_starts: NDArray[np.int64],
    row_weights: NDArray[np.float64],
    column_starts: NDArray[np.int64],
    column_weights: NDArray[np.float64],
) -> NDArray[np.int32]:
    """Return a padded luma, resized by separable weights and padded again.

    luma: (H + 2, W + 2) int32. row_starts: (h,) int64, first source row of each output row;
    row_weights: (h, k) float64, integers that sum to 2^14; the same for columns, (w,) and (w, l).
    Returns (h + 2, w + 2) int32, rounded to the nearest thousandth of a level.
    """
    height, width = len(row_starts), len(column_starts)
    small = np.empty((height + 2, width + 2), np.int32)
    source_width = luma.shape[1] - 2
    for i in range(height):
        gathered = np.zeros(source_width)
        for k in range(row_weights.shape[1]):
            weight = row_weights[i, k]
            if weight != 0.0:
                row = luma[row_starts[i] + k + 1, 1:-1]
                for j in range(source_width):
                    gathered[j] += weight * row[j]
        for j in range(width):
            total = 0.0
            for k in range(column_weights.shape[1]):
                weight = column_weights[j, k]
                if weight != 0.0:
                    total += weight * gathered[column_starts[j] + k]
            small[i + 1, j + 1] = np.int32(np.floor(total * _ONE_TWICE + 0.5))
    repeat_border(small)
    return small


@kernel
def logarithm2_of_integer(number: int) -> float:
    """Return log2 of an integer from 1 to 2^52, float64; absolute error under 1e-14.

    2 atanh(z) / ln 2 with z = (m - 1) / (m + 1) and m the number scaled into [sqrt(1/2), sqrt(2)];
    twelve terms of the series leave an error of 1e-18. It uses no maths library, and so gives the
    same bits everywhere.
    """
    mantissa, exponent = np.float64(number), 0
    while mantissa > _SQRT_2:
        mantissa *= 0.5
        exponent += 1
    z = (mantissa - 1.0) / (mantissa + 1.0)
    square = z * z
    series = 0.0
    for odd in range(23, 0, -2):
        series = series * square + 1.0 / odd
    return exponent + 2.0 * z * series * _LOG2_E


@kernel
def entropy_of_counts(counts: NDArray[np.int64]) -> float:
    """Return the entropy in bits of a histogram: (n,) int64 counts, at least one above 0."""
    total, weighted = np.int64(0), 0.0
    for i in range(len(counts)):
        if counts[i] > 0:
            total += counts[i]
            weighted += counts[i] * logarithm2_of_integer(counts[i])
    return max(0.0, logarithm2_of_integer(total) - weighted / total)


@kernel
def box_counts(mask: NDArray[np.uint8], n_sizes: int) -> NDArray[np.int64]:
    """Count the boxes of side 2, 4, 8, ... pixels that contain a mark.

    mask: (H, W) uint8, 0 or 1. Boxes start at the upper left corner; boxes cut by the border count.
    Returns (n_sizes,) int64.
    """
    counts = np.zeros(n_sizes, np.int64)
    fine = mask
    for level in range(n_sizes):
        height, width = (fine.shape[0] + 1) // 2, (fine.shape[1] + 1) // 2
        coarse = np.zeros((height, width), np.uint8)
        for i in range(fine.shape[0]):
            row, boxes = fine[i], coarse[i // 2]
            for j in range(len(row)):
                boxes[j // 2] |= row[j]
        for i in range(height):
            for j in range(width):
                counts[level] += coarse[i, j]
        fine = coarse
    return counts


@kernel
def ring_sums(
    power: NDArray[np.float64], rings: NDArray[np.int64], weights: NDArray[np.float64], n_rings: int
) -> NDArray[np.float64]:
    """Sum a power spectrum over rings.

    power, weights: (H, W) float64; rings: (H, W) int64 in 0..n_rings - 1. Returns (n_rings,).
    """
    sums = np.zeros(n_rings)
    for i in range(power.shape[0]):
        for j in range(power.shape[1]):
            sums[rings[i, j]] += power[i, j] * weights[i, j]
    return sums


@kernel
def gradient_coherence(luma: NDArray[np.int32]) -> float:
    """Return how far gradients within 5x5 windows agree in direction, weighted by their energy.

    luma: (H + 2, W + 2) int32, padded. The structure tensor J of central differences is summed over
    each window; the result is the sum of (l1 - l2) over the sum of (l1 + l2), with l1 >= l2 the
    eigenvalues of J; 0..1, and 0 for a flat image. Sequential float64 loops yield the same bits on
    every machine.
    """
    height, width = luma.shape[0] - 2, luma.shape[1] - 2
    rows = np.zeros((3, height, width))
    for i in range(height):
        for j in range(width):
            across = np.float64(luma[i + 1, j + 2]) - np.float64(luma[i + 1, j])
            down = np.float64(luma[i + 2, j + 1]) - np.float64(luma[i, j + 1])
            rows[0, i, j], rows[1, i, j], rows[2, i, j] = (
                across * across,
                down * down,
                across * down,
            )
    agreeing, energy = 0.0, 0.0
    sums = np.zeros((3, width))
    for i in range(2, height - 2):
        for part in range(3):
            for j in range(width):
                sums[part, j] = 0.0
            for k in range(i - 2, i + 3):
                for j in range(width):
                    sums[part, j] += rows[part, k, j]
        for j in range(2, width - 2):
            a, b, c = 0.0, 0.0, 0.0
            for k in range(j - 2, j + 3):
                a += sums[0, k]
                b += sums[1, k]
                c += sums[2, k]
            agreeing += np.sqrt((a - b) * (a - b) + 4.0 * c * c)
            energy += a + b
    return agreeing / energy if energy > 0.0 else 0.0


@kernel
def fine_detail(luma: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return each pixel minus the mean of its 5x5 window, times 25, without a border of 2 pixels.

    luma: (H + 2, W + 2) int32, padded. Returns ((H - 4) * (W - 4),) float64 integers.
    """
    height, width = luma.shape[0] - 2, luma.shape[1] - 2
    out = np.empty((height - 4) * (width - 4))
    columns = np.zeros(width, np.int64)
    n = 0
    for i in range(2, height - 2):
        for j in range(width):
            columns[j] = 0
            for k in range(i - 2, i + 3):
                columns[j] += luma[k + 1, j + 1]
        for j in range(2, width - 2):
            total = columns[j - 2] + columns[j - 1] + columns[j] + columns[j + 1] + columns[j + 2]
            out[n] = np.float64(25 * np.int64(luma[i + 1, j + 1]) - total)
            n += 1
    return out


@kernel
def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return sum(a b) / sqrt(sum(a^2) sum(b^2)) of two (n,) float64; 0 if either is zero."""
    ab, aa, bb = 0.0, 0.0, 0.0
    for i in range(len(a)):
        ab += a[i] * b[i]
        aa += a[i] * a[i]
        bb += b[i] * b[i]
    return ab / np.sqrt(aa * bb) if aa > 0.0 and bb > 0.0 else 0.0


@kernel
def blend_layer(below, light, cover, blend, opacity):
    """Blend a layer into the image below, in place; all values are display values.

    Args:
        below: (n, 3) float32 in [0, 1].
        light: (3, n) float32 in [0, 1], the layer's colours, premultiplied by cover.
        cover: (n,) float32 in [0, 1].
        blend: Position in ``genome.BLENDS``.
        opacity: float32 in [0, 1].
    """
    if not 0 <= blend <= 3:
        raise ValueError("blend must be 0 to 3")
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
def fill_gradient(first, second, out):
    """Fill out, (H, W, 3) float32, with a vertical gradient between two (3,) float32 colours."""
    height, width, _ = out.shape
    for y in range(height):
        t = (F(y) + _HALF) / F(height)
        for x in range(width):
            for channel in range(3):
                out[y, x, channel] = first[channel] + t * (second[channel] - first[channel])


@kernel
def to_bytes(values, black, white, out):
    """Stretch (n,) float32 from [black, white] to [0, 255], clamp and round into (n,) uint8."""
    scale = F(255) / (white - black)
    for i in range(len(out)):
        value = min(max((values[i] - black) * scale, _ZERO), F(255))
        out[i] = np.uint8(np.int32(value + _HALF))
