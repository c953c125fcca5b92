"""Statistics that characterize a good mixing image: eleven per image, two per set.

The definitions reproduce the published medians and percentiles over 200 fractal flames chosen by
people (256x256 JPEG). Luma is Rec. 601, 0.299 R + 0.587 G + 0.114 B, on the 8-bit values without
gamma correction. Every function accepts an image (H, W, 3) uint8 with sides of at least 16 pixels,
does not modify it, and raises TypeError or ValueError for other input.

Read the statistics together: a high diversity alone favours empty images, and noise raises edge
density and entropy.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fractals import image_kernels as kernels

Image = NDArray[np.uint8]

MINIMUM_SIDE = 16
"""Pixels; a smaller image has fewer than two rings for the spectral slope."""
SMALL_SIDE = 32
"""Side in pixels of the centre crop for the small statistics, the size that CIFAR training uses."""
_RESIZE_SIDE = 36  # PixMix scales mixing images to 36 for CIFAR before it crops 32
_SLOPE_FIRST = 4  # cycles an image
_SLOPE_END = 100  # cycles an image of 256 pixels, not included
_SLOPE_SIDE = 256
_BOX_SIZES = 5  # 2, 4, 8, 16, 32 pixels
_HOG_SIDE = 64
_HOG_CELL = 8
_HOG_ORIENTATIONS = 8


class PreviewStatistics(NamedTuple):
    """Cheap statistics that decide whether a draft is accepted; the same on every machine."""

    coverage: float
    edge_density: float
    textured_blocks: float
    edges_at_32: float
    luma_std_at_32: float
    rgb_entropy: float
    colourfulness: float


def preview_statistics(image: Image) -> PreviewStatistics:
    """Return the statistics that decide whether a draft is accepted.

    They use only integer sums and IEEE products, quotients and square roots, in a fixed order, so
    that two machines always agree on a draft.

    Args:
        image: (H, W, 3) uint8 of any shape with sides of at least 16; 64 to 128 pixels are enough.
    """
    luma = _checked_luma(image)
    counts, sums = kernels.colour_counts(image)
    return PreviewStatistics(
        coverage=_coverage(luma),
        edge_density=_share(kernels.edge_mask(luma)),
        textured_blocks=_textured_blocks(luma),
        **_small_statistics(luma),
        rgb_entropy=_entropy(counts),
        colourfulness=_colourfulness(sums, image.shape[0] * image.shape[1]),
    )


def measure(image: Image) -> dict[str, float]:
    """Return all statistics of an image by name.

    In brackets: median, 10th and 90th percentile over the 200 flames chosen by people with these
    definitions, and the published figures where they differ.

    * coverage: fraction of pixels with luma above 8/255. [.985, .570, 1.0]
    * edge_density: fraction of pixels whose luma gradient, the 3x3 Sobel response divided by 4 with
      the border repeated, is above 0.05 of full scale per pixel. [.430, .152, .668]
    * textured_blocks: fraction of complete 8x8 blocks whose luma has a standard deviation above
      0.03 of full scale. [.673, .280, .919]
    * edges_at_32: edge_density at the size that CIFAR training uses: the luma's shorter side is
      scaled to 36 by PixMix's bilinear filter, and the centre 32x32 is cropped.
      [.693, .312, .874; published, by a box filter: .70, .35, .86]
    * luma_std_at_32: standard deviation of luma in that crop, full scale 1. [.138, .071, .200;
      published: .144, .07, .21]
    * spectral_slope: minus the slope of log radial power against log frequency; 2 is 1/f noise. The
      luma minus its mean is multiplied by a Hann window, power is averaged over rings one cycle
      per shorter side wide, from 4 cycles up to 100/256 of a cycle per pixel, and a line is
      fitted by least squares. 0 for a flat image. [2.574, 1.857, 3.021]
    * spectral_r2: R^2 of that line; low if a few frequencies dominate. [.961, .844, .987]
    * rgb_entropy: entropy of the colours in 8x8x8 bins, bits. [4.230, 2.476, 5.797]
    * luma_entropy: entropy of luma rounded to 256 levels, bits. [7.023, 5.537, 7.565]
    * colourfulness: sqrt(var(rg) + var(yb)) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2), rg = R - G, yb =
      (R + G)/2 - B, in 8-bit levels (Hasler & Suesstrunk, "Measuring colourfulness in natural
      images", 2003, section 6). [42.8, 19.1, 76.8]
    * edge_box_dimension: box-counting dimension of the edges, minus the least-squares slope of log2
      count against log2 side over 2, 4, 8, 16, 32 pixels; 0 without edges. [1.817, 1.549, 1.941]

    Args:
        image: (H, W, 3) uint8, both sides at least 16. The reference images have 256x256 pixels.
    """
    luma = _checked_luma(image)
    mask = kernels.edge_mask(luma)
    counts, sums = kernels.colour_counts(image)
    slope, r2 = _spectral_fit(luma)
    return {
        "coverage": _coverage(luma),
        "edge_density": _share(mask),
        "textured_blocks": _textured_blocks(luma),
        **_small_statistics(luma),
        "spectral_slope": slope,
        "spectral_r2": r2,
        "rgb_entropy": _entropy(counts),
        "luma_entropy": _entropy(kernels.luma_counts(luma)),
        "colourfulness": _colourfulness(sums, mask.size),
        "edge_box_dimension": _box_dimension(mask),
    }


# A dead image has no effect when it is mixed: it is nearly black, nearly flat, or without contours
# at 32 pixels. Six of the 200 flames chosen by people are: five black ones and a flat brown one.
_DEAD_BELOW = {"coverage": 0.05, "luma_std_at_32": 0.02, "edges_at_32": 0.02}


def is_dead(values: dict[str, float]) -> bool:
    """Return whether an image is dead according to its statistics: mixing it has no effect."""
    return any(values[name] < limit for name, limit in _DEAD_BELOW.items())


def coherence(image: Image) -> float:
    """Return how far neighbouring edges agree in direction, 0..1: long contours high, noise low.

    The structure tensor's anisotropy over 5x5 windows, weighted by gradient energy (J. Bigun and G.
    Granlund, "Optimal orientation detection of linear symmetry", ICCV 1987). At 64 pixels a side,
    flames chosen by people have .56 [.38, .71] and white noise .26.
    """
    return float(kernels.gradient_coherence(_checked_luma(image)))


def reliability(first: Image, second: Image) -> float:
    """Return how much fine detail two renderings of one genome share, -1..1.

    The value is the correlation of luma minus its 5x5 mean. Two chaos games of one genome differ
    only in their random points, so the detail that they do not share is sampling noise. Noise
    raises edge density and entropy, but not this value.

    Args:
        first: (H, W, 3) uint8.
        second: An image of the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"images of shapes {first.shape} and {second.shape} cannot be compared; "
            "render both at the same size"
        )
    details = (kernels.fine_detail(_checked_luma(image)) for image in (first, second))
    return float(kernels.correlation(*details))


def vendi_score(features: NDArray[np.float64]) -> float:
    """Return the effective number of different rows, 1..n (Friedman & Dieng, arXiv 2210.02410).

    The exponential of the entropy of the eigenvalues of K / n, with K the cosine kernel of the
    rows. Rows of zeros count as equal to each other and orthogonal to all other rows.

    Args:
        features: (n, d) float64, n >= 1.

    Raises:
        ValueError: If features has no rows.
    """
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(
            f"features of shape {features.shape} have no Vendi score; pass (n, d) with n >= 1"
        )
    lengths = np.sqrt(np.sum(np.square(features), axis=1, keepdims=True))
    unit = np.hstack([features / np.where(lengths > 0, lengths, 1), lengths == 0])
    eigenvalues = np.linalg.eigvalsh(unit @ unit.T / len(unit))
    kept = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-np.sum(kept * np.log(kept))))


def colour_features(image: Image) -> NDArray[np.float64]:
    """Return the square roots of the colour fractions in 4x4x4 bins: (64,) float64 of length 1.

    Their cosine is the Bhattacharyya coefficient of two histograms. The Vendi score of the first 64
    reference flames is 4.69 (published: 4.7); scores are only comparable for the same number of
    images.
    """
    _check(image)
    fine = kernels.colour_counts(image)[0].reshape(4, 2, 4, 2, 4, 2)
    shares: NDArray[np.float64] = fine.sum(axis=(1, 3, 5)).ravel() / fine.sum()
    return np.sqrt(shares)


def hog_features(image: Image) -> NDArray[np.float64]:
    """Return a histogram of oriented gradients: (512,) float64, 8x8 cells of 8 orientations.

    The luma is resized to 64x64 (triangle filter, for any aspect ratio). Gradients are central
    differences, 0 across the border. Each pixel adds its gradient's length to one of 8 unsigned
    orientations of its cell of 8x8 pixels. Each cell is scaled to length 1; flat cells stay 0. The
    Vendi score of the first 64 reference flames is 7.39 (published: 7.4).
    """
    luma = _checked_luma(image)
    rows = _resize_weights(luma.shape[0] - 2, _HOG_SIDE, 0, _HOG_SIDE)
    columns = _resize_weights(luma.shape[1] - 2, _HOG_SIDE, 0, _HOG_SIDE)
    small = kernels.resized(luma, *rows, *columns)[1:-1, 1:-1] / kernels.FULL_SCALE
    x, y = np.zeros_like(small), np.zeros_like(small)
    x[:, 1:-1] = small[:, 2:] - small[:, :-2]
    y[1:-1] = small[2:] - small[:-2]
    turns = np.arctan2(y, x) / np.pi % 1.0
    orientation = (turns * _HOG_ORIENTATIONS).astype(np.int64) % _HOG_ORIENTATIONS
    side = _HOG_SIDE // _HOG_CELL
    cell = np.arange(_HOG_SIDE) // _HOG_CELL
    index = (cell[:, None] * side + cell) * _HOG_ORIENTATIONS + orientation
    votes = np.bincount(index.ravel(), np.hypot(x, y).ravel(), side * side * _HOG_ORIENTATIONS)
    cells = votes.reshape(-1, _HOG_ORIENTATIONS)
    # Prevents 0 / 0; 1e-6 of full scale is far below one level over a cell.
    lengths = np.sqrt(np.sum(np.square(cells), axis=1, keepdims=True)) + 1e-6
    scaled: NDArray[np.float64] = cells / lengths
    return scaled.ravel()


def _check(image: Image) -> None:
    if image.dtype != np.uint8:
        raise TypeError(f"image dtype is {image.dtype}; pass uint8 values from 0 to 255")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image shape is {image.shape}; expected (height, width, 3)")
    if min(image.shape[:2]) < MINIMUM_SIDE:
        raise ValueError(
            f"an image of {image.shape[0]}x{image.shape[1]} pixels is too small; "
            f"use at least {MINIMUM_SIDE} pixels per side"
        )


def _checked_luma(image: Image) -> NDArray[np.int32]:
    _check(image)
    luma: NDArray[np.int32] = kernels.padded_luma(image)
    return luma


def _share(mask: NDArray[np.uint8]) -> float:
    return int(np.count_nonzero(mask)) / mask.size


def _entropy(counts: NDArray[np.int64]) -> float:
    return float(kernels.entropy_of_counts(counts))


def _n_pixels(luma: NDArray[np.int32]) -> int:
    height, width = luma.shape[0] - 2, luma.shape[1] - 2
    return int(height * width)


def _coverage(luma: NDArray[np.int32]) -> float:
    return int(kernels.luma_moments(luma)[2]) / _n_pixels(luma)


def _textured_blocks(luma: NDArray[np.int32]) -> float:
    n_blocks = ((luma.shape[0] - 2) // kernels.BLOCK) * ((luma.shape[1] - 2) // kernels.BLOCK)
    return int(kernels.count_textured_blocks(luma)) / int(n_blocks)


def _small_statistics(luma: NDArray[np.int32]) -> dict[str, float]:
    small = _padded_luma_at_32(luma)
    total, squares, _ = kernels.luma_moments(small)
    n = _n_pixels(small)
    return {
        "edges_at_32": _share(kernels.edge_mask(small)),
        "luma_std_at_32": _deviation(int(total), int(squares), n) / kernels.FULL_SCALE,
    }


def _deviation(total: int, squares: int, n: int) -> float:
    """Return the population standard deviation from integer sums, rounded once before the root."""
    return math.sqrt((n * squares - total * total) / (n * n))


def _colourfulness(sums: NDArray[np.int64], n: int) -> float:
    # The second pair of sums is of R + G - 2 B, twice the yellow-blue of the definition.
    red_green, red_green_squares, yellow_blue, yellow_blue_squares = (int(value) for value in sums)
    variance = (n * red_green_squares - red_green * red_green) / (n * n)
    variance += (n * yellow_blue_squares - yellow_blue * yellow_blue) / (4 * n * n)
    means = (4 * red_green * red_green + yellow_blue * yellow_blue) / (4 * n * n)
    return math.sqrt(variance) + 0.3 * math.sqrt(means)


def _box_dimension(mask: NDArray[np.uint8]) -> float:
    counts = [int(count) for count in kernels.box_counts(mask, _BOX_SIZES)]
    if counts[0] == 0:
        return 0.0
    middle = (_BOX_SIZES - 1) / 2
    spread = sum((level - middle) ** 2 for level in range(_BOX_SIZES))
    slope = sum((level - middle) * math.log2(count) for level, count in enumerate(counts)) / spread
    return max(0.0, -slope)


def _padded_luma_at_32(luma: NDArray[np.int32]) -> NDArray[np.int32]:
    height, width = luma.shape[0] - 2, luma.shape[1] - 2
    shorter = min(height, width)
    weights = []
    for side in (height, width):
        full = _RESIZE_SIDE * side // shorter
        # torchvision's center_crop rounds half to even, as Python does.
        weights.append(_resize_weights(side, full, round((full - SMALL_SIDE) / 2), SMALL_SIDE))
    small: NDArray[np.int32] = kernels.resized(luma, *weights[0], *weights[1])
    return small


@lru_cache(maxsize=64)
def _resize_weights(
    side: int, full: int, first: int, n: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the taps of outputs first..first + n - 1 of a triangle-filter resize of side to full.

    The triangle is as wide as the reduction, and two pixels wide when enlarging, as in Pillow
    (Resample.c, precompute_coeffs). Returns starts (n,) int64 and weights (n, k) float64: integers
    that sum to 2^14 per row, so that a flat image stays flat.
    """
    scale = side / full
    support = max(scale, 1.0)
    one = 1 << kernels.FRACTION_BITS
    starts: list[int] = []
    rows: list[list[int]] = []
    for output in range(first, first + n):
        centre = (output + 0.5) * scale
        start, end = max(0, int(centre - support + 0.5)), min(side, int(centre + support + 0.5))
        exact = [max(0.0, 1.0 - abs(k + 0.5 - centre) / support) for k in range(start, end)]
        total = sum(exact)
        whole = [int(weight / total * one + 0.5) for weight in exact]
        whole[whole.index(max(whole))] += one - sum(whole)
        starts.append(start)
        rows.append(whole)
    weights = np.zeros((n, max(len(row) for row in rows)))
    for target, row in zip(weights, rows, strict=True):
        target[: len(row)] = row
    return np.array(starts), weights


class _Rings(NamedTuple):
    """The part of a spectral fit that depends only on the shape."""

    window: NDArray[np.float64]
    numbers: NDArray[np.int64]
    weights: NDArray[np.float64]
    sizes: NDArray[np.float64]
    log_frequency: NDArray[np.float64]


@lru_cache(maxsize=8)
def _rings(height: int, width: int) -> _Rings:
    shorter = min(height, width)
    rows = np.fft.fftfreq(height)[:, None] * shorter
    columns = np.fft.rfftfreq(width) * shorter
    end = _SLOPE_END * shorter // _SLOPE_SIDE
    radius = np.floor(np.sqrt(rows * rows + columns * columns)).astype(np.int64)
    numbers = np.minimum(radius, end)
    # The spectrum of a real signal is symmetric; these weights count the half that rfft2 omits.
    weights = np.full(numbers.shape, 2.0)
    weights[:, 0] = 1.0
    if width % 2 == 0:
        weights[:, -1] = 1.0
    sizes = np.bincount(numbers.ravel(), weights.ravel(), end + 1).astype(np.float64)
    return _Rings(
        window=np.outer(np.hanning(height), np.hanning(width)),
        numbers=numbers,
        weights=weights,
        sizes=sizes[_SLOPE_FIRST:end],
        log_frequency=np.log(np.arange(_SLOPE_FIRST, end)),
    )


def _spectral_fit(luma: NDArray[np.int32]) -> tuple[float, float]:
    """Return the slope and R^2 of ``spectral_slope`` and ``spectral_r2``; see ``measure``."""
    inner = luma[1:-1, 1:-1]
    if inner.min() == inner.max():
        return 0.0, 0.0
    rings = _rings(*inner.shape)
    spectrum = np.fft.rfft2((inner - inner.mean()) * rings.window)
    power = spectrum.real**2 + spectrum.imag**2
    sums = kernels.ring_sums(
        power, rings.numbers, rings.weights, len(rings.sizes) + _SLOPE_FIRST + 1
    )
    means = sums[_SLOPE_FIRST:-1] / rings.sizes
    # Rounding leaves a relative 1e-32 in rings that should be 0; the floor is above that.
    log_power = np.log(np.maximum(means, 1e-24 * power.max()))
    x = rings.log_frequency - rings.log_frequency.mean()
    y = log_power - log_power.mean()
    slope = float(x @ y / (x @ x))
    residual = y - slope * x
    total = float(y @ y)
    return -slope, 1.0 - float(residual @ residual) / total if total > 0 else 0.0
