"""Slow, obvious twins of the compiled kernels: what the fast ones must equal."""

import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from fractals.genome import Tone

# --- fractals/picture_kernels.py -----------------------------------------------------------------


def luma(picture: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Rec. 601 in thousandths of a level."""
    return picture.astype(np.int64) @ np.array([299, 587, 114])


def edge_mask(luma: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Sobel over 4 above 0.05 of 255000, the border repeated, in whole numbers."""
    height, width = luma.shape
    padded = np.pad(luma, 1, mode="edge").tolist()
    kernel = ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))
    mask = np.zeros((height, width), np.uint8)
    for i in range(height):
        for j in range(width):
            x = y = 0
            for di in range(3):
                for dj in range(3):
                    x += kernel[di][dj] * padded[i + di][j + dj]
                    y += kernel[dj][di] * padded[i + di][j + dj]
            mask[i, j] = x * x + y * y > (4 * 12750) ** 2
    return mask


def count_textured_blocks(luma: NDArray[np.int64]) -> int:
    """Whole 8x8 blocks with a variance above (0.03 * 255000)^2."""
    count = 0
    for top in range(0, luma.shape[0] - 7, 8):
        for left in range(0, luma.shape[1] - 7, 8):
            block = luma[top : top + 8, left : left + 8]
            count += bool(((64 * block - block.sum()) ** 2).sum() > 64**3 * 7650**2)
    return count


def colour_counts(picture: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels in each of 8x8x8 boxes of colour."""
    counts = np.zeros((8, 8, 8), np.int64)
    for pixel in picture.reshape(-1, 3) // 32:
        counts[tuple(pixel)] += 1
    return counts.ravel()


def entropy_of_counts(counts: NDArray[np.int64]) -> float:
    """The sum of -p log2 p."""
    total = int(counts.sum())
    return -sum(int(n) / total * math.log2(int(n) / total) for n in counts if n)


def box_counts(mask: NDArray[np.uint8], n_sizes: int) -> list[int]:
    """How many squares of side 2, 4, 8, ... hold a mark."""
    marks = np.argwhere(mask)
    return [len(Counter(map(tuple, marks // 2**size))) for size in range(1, n_sizes + 1)]


def ring_sums(
    power: NDArray[np.float64], rings: NDArray[np.int64], weights: NDArray[np.float64], n_rings: int
) -> NDArray[np.float64]:
    """The weighted power of each ring."""
    return np.array([(power * weights)[rings == ring].sum() for ring in range(n_rings)])


def resized(
    luma: NDArray[np.int64],
    row_starts: NDArray[np.int64],
    row_weights: NDArray[np.float64],
    column_starts: NDArray[np.int64],
    column_weights: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Both weightings as matrices, rounded half up once at the end."""

    def matrix(
        starts: NDArray[np.int64], weights: NDArray[np.float64], side: int
    ) -> NDArray[np.int64]:
        full = np.zeros((len(starts), side + weights.shape[1]), np.int64)
        for row, start, taps in zip(full, starts, weights, strict=True):
            row[start : start + len(taps)] = taps
        return full[:, :side]

    rows = matrix(row_starts, row_weights, luma.shape[0])
    columns = matrix(column_starts, column_weights, luma.shape[1])
    return (rows @ luma @ columns.T + (1 << 27)) >> 28


# --- fractals/tone.py ----------------------------------------------------------------------------


def b3_matrix(side: int, gap: int) -> NDArray[np.float64]:
    """(1, 4, 6, 4, 1)/16 with taps `gap` apart as a matrix; a tap outside reads the edge."""
    matrix = np.zeros((side, side))
    for here in range(side):
        for tap, weight in zip((-2, -1, 0, 1, 2), (1, 4, 6, 4, 1), strict=True):
            matrix[here, min(max(here + tap * gap, 0), side - 1)] += weight / 16
    return matrix


def smooth(plane: NDArray[np.floating], gap: int) -> NDArray[np.float64]:
    """Rows and columns weighted alike."""
    rows, columns = (b3_matrix(side, gap) for side in plane.shape)
    smoothed: NDArray[np.float64] = rows @ plane.astype(np.float64) @ columns.T
    return smoothed


def density_levels(
    points: NDArray[np.floating], softness: float, n_levels: int
) -> NDArray[np.float64]:
    """How wide a kernel each pixel asks for: one level more for a quarter of the points."""
    once = smooth(points, 1)
    surroundings = np.minimum(once, smooth(once, 2))
    density = np.maximum(np.maximum(0.5 * points, surroundings), 1e-37)
    levels: NDArray[np.float64] = np.clip(0.5 * np.log2(softness / density), 0, n_levels)
    return levels


def spread(
    plane: NDArray[np.floating], levels: NDArray[np.float64], n_levels: int
) -> NDArray[np.float64]:
    """Each level's share of the plane through its own kernels, the widest first.

    Away from the edges the order is indifferent; where edges are repeated it is not.
    """
    total = np.zeros(plane.shape)
    for level in range(n_levels + 1):
        share = plane * np.maximum(1 - np.abs(levels - level), 0)
        for exponent in reversed(range(level)):
            share = smooth(share, 2**exponent)
        total += share
    return total


def develop(
    points: NDArray[np.floating],
    colours: NDArray[np.floating],
    played: int,
    tone: Tone,
    table: NDArray[np.floating],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithm, palette, gamma with vibrancy, and what is over white bled into all channels."""
    density = points.astype(np.float64) * min(points.shape) ** 2 / played
    light = np.log1p(tone.contrast * density) / np.log1p(tone.contrast * tone.exposure)
    value = light**tone.gamma
    share = smooth(colours, 1) / np.maximum(smooth(points, 1), 1e-9)
    place = (tone.colour_start + tone.colour_stretch * share) % 1.0 * 256
    left = place.astype(int) % 256
    part = (place % 1.0)[..., None]
    ink = (1 - part) * table[left] + part * table[(left + 1) % 256]
    kept, flat = value[..., None] * ink, (light[..., None] * ink) ** tone.gamma
    mixed = tone.vibrancy * kept + (1 - tone.vibrancy) * flat
    bled = mixed + 0.35 * np.maximum(value - 1, 0)[..., None]
    return np.minimum(bled, 1).transpose(2, 0, 1), np.minimum(value, 1)


def laid_over(
    below: NDArray[np.floating],
    light: NDArray[np.floating],
    cover: NDArray[np.floating],
    blend: str,
    opacity: float,
) -> NDArray[np.float64]:
    """What is seen from above; below (n, 3), light (3, n) premultiplied, cover (n,)."""
    base, ink = below.astype(np.float64), opacity * light.T.astype(np.float64)
    hidden = opacity * cover.astype(np.float64)[:, None]
    if blend == "over":
        seen = (1 - hidden) * base + ink
    elif blend == "screen":
        seen = base + ink - base * ink
    elif blend == "lighten":
        seen = np.maximum(base, ink)
    else:
        # The ink of the covered part multiplies; the rest of the pixel lets the base through.
        seen = (1 - hidden) * base + ink * base
    return np.minimum(seen, 1)


def shaded_ground(
    first: NDArray[np.floating], second: NDArray[np.floating], height: int, width: int
) -> NDArray[np.float64]:
    """Straight from one colour to the other, at the middles of the rows."""
    share = ((np.arange(height) + 0.5) / height)[:, None, None]
    ground = (1 - share) * first.astype(np.float64) + share * second.astype(np.float64)
    return np.repeat(ground, width, axis=1)


# --- fractals/palettes.py ------------------------------------------------------------------------

# The two matrices of https://bottosson.github.io/posts/oklab/, rows as printed there.
_LMS_OF_LAB = np.array(
    [
        [1.0, +0.3963377774, +0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_RGB_OF_LMS = np.array(
    [
        [+4.0767416621, -3.3077115913, +0.2309699292],
        [-1.2684380046, +2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, +1.7076147010],
    ]
)


def linear_rgb(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """OKLab (3,) to linear RGB (3,), which may lie outside the gamut [0, 1]."""
    rgb: NDArray[np.float64] = _RGB_OF_LMS @ (_LMS_OF_LAB @ lab) ** 3
    return rgb


def oklab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Display RGB (3,) in [0, 1] to OKLab: the matrices solved backwards."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lab: NDArray[np.float64] = np.linalg.solve(
        _LMS_OF_LAB, np.cbrt(np.linalg.solve(_RGB_OF_LMS, linear))
    )
    return lab


def palette_ring(
    stops: tuple[tuple[float, float, float], ...], margin: float
) -> NDArray[np.float64]:
    """Display RGB (256, 3) of a ring of stops; margin: how far outside [0, 1] counts as inside."""
    ring = np.empty((256, 3))
    for entry in range(256):
        left, part = divmod(entry * len(stops) / 256, 1)
        ease = part * part * (3 - 2 * part)
        one, other = (np.array(stops[int(left + side) % len(stops)]) for side in (0, 1))
        lab = (1 - ease) * one + ease * other
        for sixteenths in range(16, -1, -1):
            rgb = linear_rgb(lab * np.array([1, sixteenths / 16, sixteenths / 16]))
            if rgb.min() >= -margin and rgb.max() <= 1 + margin:
                break
        rgb = rgb.clip(0, 1)
        ring[entry] = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)
    return ring
