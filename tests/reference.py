"""Slow, obvious twins of the compiled kernels: what the fast ones must equal."""

import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray

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
