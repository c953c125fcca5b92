"""Pictures that are nearly the same: compressed again, scaled, a little lighter or darker.

A difference hash (N. Krawetz, "Kind of like that", 2013): which of two neighbours in a row is the
brighter, on a small grey picture. It does not change with size, compression or brightness, and no
turn or flip goes unseen.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 16
"""Rows of the small picture, and pairs of neighbours in each: 256 bits."""

CLOSE = 32
"""Bits in which near-duplicates differ at most. Of 768 fractals and feature visualizations that
were halved, compressed at quality 30 and made lighter by a sixth, 99 % differ from themselves in 31
or fewer; no two different ones differ in fewer than 62."""


def difference_hash(picture: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return which of two neighbours is brighter, as (4,) uint64.

    Args:
        picture: (H, W, 3) uint8 of any size; its aspect is not kept.
    """
    image = Image.fromarray(picture).convert("L")
    small = np.asarray(image.resize((SIDE + 1, SIDE), Image.Resampling.BOX, reducing_gap=None))
    bits = small[:, 1:] > small[:, :-1]
    return np.packbits(bits).view(np.uint64)


def near_duplicates(hashes: NDArray[np.uint64]) -> list[list[int]]:
    """Return the groups of pictures that are nearly the same, ascending, each of two or more.

    Two pictures are in a group if their hashes differ in at most `CLOSE` bits, or if others of the
    group lead from the one to the other in such steps. Each picture is compared once with those
    that are in no group yet: many equal ones take no longer than as many different ones.

    Args:
        hashes: (n, 4) uint64, of `difference_hash`.
    """
    groups = []
    # A row a word: numpy adds long rows faster than short ones.
    words = np.ascontiguousarray(hashes.T)
    left, rest = np.arange(len(hashes)), words
    while len(left):
        group, left, rest = [int(left[0])], left[1:], rest[:, 1:]
        for each in group:  # It grows meanwhile.
            differing = np.bitwise_count(rest ^ words[:, each, None]).sum(axis=0, dtype=np.uint16)
            close = differing <= CLOSE
            if close.any():
                group += left[close].tolist()
                left, rest = left[~close], rest[:, ~close]
        if len(group) > 1:
            groups.append(sorted(group))
    return groups
