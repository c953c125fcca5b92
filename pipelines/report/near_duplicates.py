"""Pictures that are nearly the same: compressed again, scaled, a little lighter or darker.

A difference hash (N. Krawetz, "Kind of like that", 2013): which of two neighbours in a row is the
brighter, on a small grey picture. It does not change with size, compression or brightness, and no
turn or flip goes unseen.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 16
"""Rows of the small picture, and pairs of neighbours in each: 256 bits."""

CLOSE = 32
"""Bits in which near-duplicates differ at most. Of 768 fractals and feature visualizations that
were halved, compressed at quality 30 and made lighter by a sixth, 99 % differ from themselves in 31
or fewer; no two different ones differ in fewer than 62."""

_ROWS_AT_ONCE = 256


def difference_hash(picture: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return which of two neighbours is brighter, as (4,) uint64.

    Args:
        picture: (H, W, 3) uint8 of any size; its aspect is not kept.
    """
    image = Image.fromarray(picture).convert("L")
    small = np.asarray(image.resize((SIDE + 1, SIDE), Image.Resampling.BOX, reducing_gap=None))
    bits = small[:, 1:] > small[:, :-1]
    return np.packbits(bits).view(np.uint64)


def near_duplicates(hashes: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Give the pairs of pictures whose hashes differ in at most `CLOSE` bits, in order.

    Args:
        hashes: (n, 4) uint64, of `difference_hash`.
    """
    for begin in range(0, len(hashes), _ROWS_AT_ONCE):
        some = hashes[begin : begin + _ROWS_AT_ONCE]
        bits = np.bitwise_count(some[:, None] ^ hashes[None, begin:])
        differing = bits.sum(axis=2, dtype=np.int64)
        for row, column in np.argwhere(differing <= CLOSE).tolist():
            if column > row:
                yield begin + row, begin + column
