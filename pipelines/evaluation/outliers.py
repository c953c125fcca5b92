"""Pictures of nothing, which a network should not be sure of: they need no download.

Hendrycks, Mazeika & Dietterich, "Deep Anomaly Detection with Outlier Exposure", ICLR 2019,
appendix A; written anew from its description and the facts of the released code.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

_BLOB_SIGMA = 1.5
_BLOB_SHARE = 0.7
_BLOB_LEAST = 0.75


def gaussian(generator: np.random.Generator, n: int, side: int) -> NDArray[np.float32]:
    """Return noise, normal around grey with a quarter of the range as deviation, cut to 0..1.

    Returns (n, side, side, 3) float32.
    """
    noise = generator.standard_normal((n, side, side, 3), np.float32)
    # N(0, 0.5) cut to -1..1, where pictures are from -1 to 1.
    cut: NDArray[np.float32] = np.clip(0.5 + 0.25 * noise, 0, 1)
    return cut


def rademacher(generator: np.random.Generator, n: int, side: int) -> NDArray[np.float32]:
    """Return pictures whose every value is black or white.

    Returns (n, side, side, 3) float32, each 0 or 1.
    """
    return generator.integers(0, 2, (n, side, side, 3)).astype(np.float32)


def blobs(generator: np.random.Generator, n: int, side: int) -> NDArray[np.float32]:
    """Return blurred blobs: noise of zeros and ones, smoothed, of which the faint parts are black.

    The blur goes over the colours too, so blobs are nearly grey, as in the source.

    Returns (n, side, side, 3) float32 in 0..1.
    """
    noise = (generator.random((n, side, side, 3)) < _BLOB_SHARE).astype(np.float64)
    for axis in (1, 2, 3):
        noise = _blurred(noise, axis)
    noise[noise < _BLOB_LEAST] = 0
    return noise.astype(np.float32)


def _blurred(pictures: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Return a Gaussian blur along an axis, the edge repeated, four deviations to either side."""
    radius = math.ceil(4 * _BLOB_SIGMA)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-(offsets**2) / (2 * _BLOB_SIGMA**2))
    weights /= weights.sum()
    places = np.arange(pictures.shape[axis])
    total = np.zeros_like(pictures)
    for offset, weight in zip(offsets, weights, strict=True):
        shifted = np.clip(places + offset, 0, len(places) - 1)
        total += weight * np.take(pictures, shifted, axis)
    return total


SYNTHETIC: Mapping[str, Callable[[np.random.Generator, int, int], NDArray[np.float32]]] = {
    "gaussian": gaussian,
    "rademacher": rademacher,
    "blobs": blobs,
}
