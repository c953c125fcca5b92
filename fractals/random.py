"""Random numbers as arguments: a key of integers gives a state, and a state gives a stream.

The streams are public interface: blake2b of the key seeds xoshiro256++ (Blackman & Vigna 2021,
https://prng.di.unimi.it/xoshiro256plusplus.c, public domain). No numpy distribution is used,
because numpy may change those between versions.
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pixmix.compiling import kernel

Item = TypeVar("Item")

_WORD = np.uint64
_TO_UNIT = 1.0 / 9007199254740992.0  # 2^-53


def random_state(*key: int) -> NDArray[np.uint64]:
    """Return the generator state of a key; different keys give independent streams.

    key: integers of any size and sign; (1, 2) and (12,) differ.
    Returns (4,) uint64, never all zero.
    """
    text = ",".join(str(int(part)) for part in key).encode()
    words = struct.unpack(
        "<4Q", hashlib.blake2b(text, digest_size=32, person=b"pixmix-fractals").digest()
    )
    return np.array(words, dtype=np.uint64)


@kernel
def _rotate_left(x, k):
    return (x << _WORD(k)) | (x >> _WORD(64 - k))


@kernel
def next_word(state):
    """Advance the state and return 64 random bits (xoshiro256++).

    state: (4,) uint64, changed in place. Returns uint64.
    """
    result = _rotate_left(state[0] + state[3], 23) + state[0]
    t = state[1] << _WORD(17)
    state[2] ^= state[0]
    state[3] ^= state[1]
    state[1] ^= state[2]
    state[0] ^= state[3]
    state[2] ^= t
    state[3] = _rotate_left(state[3], 45)
    return result


@kernel
def next_unit(state):
    """Return a float64 uniform in [0, 1), a multiple of 2^-53; advances the state in place."""
    return (next_word(state) >> _WORD(11)) * _TO_UNIT


@kernel
def fill_units(state, out):
    """Fill out, (n,) float64, with uniforms in [0, 1); advances the state in place."""
    for i in range(len(out)):
        out[i] = next_unit(state)


class Draws:
    """A stream of numbers for drawing a genome: plain Python values, one stream a key.

    key: integers, as for `random_state`.
    """

    def __init__(self, *key: int) -> None:
        """Start the stream of a key."""
        self._state = random_state(*key)
        self._buffer = np.empty(128)
        self._units: list[float] = []

    def unit(self) -> float:
        """Return a uniform in [0, 1)."""
        if not self._units:
            fill_units(self._state, self._buffer)
            self._units = self._buffer[::-1].tolist()
        return self._units.pop()

    def uniform(self, low: float, high: float) -> float:
        """Return a uniform in [low, high)."""
        return low + (high - low) * self.unit()

    def whole(self, low: int, high: int) -> int:
        """Return a uniform integer from low to high, both included."""
        return low + int((high - low + 1) * self.unit())

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self.unit() < probability

    def choice(self, items: Sequence[Item]) -> Item:
        """Return one of the items, uniformly."""
        return items[int(len(items) * self.unit())]

    def weighted(self, items: Sequence[Item], weights: Sequence[float]) -> Item:
        """Return one of the items, with probability proportional to its weight (>= 0.

        Not all 0).
        """
        mark = self.unit() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            mark -= weight
            if mark < 0:
                return item
        return items[-1]

    def sign(self) -> float:
        """Return -1.0 or 1.0, evenly."""
        return -1.0 if self.unit() < 0.5 else 1.0

    def distinct(self, items: Sequence[Item], n: int) -> list[Item]:
        """Return n different items in random order."""
        pool = list(items)
        return [pool.pop(int(len(pool) * self.unit())) for _ in range(n)]
