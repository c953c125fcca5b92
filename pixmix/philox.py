"""Random words by counter: Philox 4x32-10, so that word n of sample i needs no word before it.

A counter of four 32-bit words and a key of two give four random words, by ten rounds of two
multiplications each (Salmon, Moraes, Dror & Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3",
SC 2011, section 3.3 and table 2 there). Nothing is kept between calls.

How this package uses it:

    key      seed modulo 2^64: its lower word, its upper word
    counter  block, index, epoch, stream * 2^24 + view

A block is four words; which word means what stands in `pixmix.draws`. Streams tell apart what is
drawn independently for the same sample: see `Stream`. `shuffle` is a permutation by these words,
the same on every machine, whatever was drawn before.
"""

from enum import IntEnum

import numpy as np

from pixmix.compiling import inlined_kernel, kernel

_U32 = np.uint32
_U64 = np.uint64
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
# Weyl increments of the key: the golden ratio and sqrt(3) - 1.
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_ROUNDS = 10

INDEX_LIMIT = 2**32
"""Samples and epochs are counted in 32 bits."""
VIEW_LIMIT = 2**24


class Stream(IntEnum):
    """What is drawn independently of the rest for the same sample."""

    CROP = 0
    PIXMIX = 1
    RESIZED_CROP = 2
    ORDER = 3


_ORDER_STREAM = Stream.ORDER * VIEW_LIMIT


@inlined_kernel
def philox(c0, c1, c2, c3, k0, k1):
    """Return four random uint32 words of a counter and a key (Philox 4x32-10).

    c0 to c3, k0, k1: whole numbers, taken modulo 2^32.
    """
    x0, x1, x2, x3 = _U64(c0) & _LOW, _U64(c1) & _LOW, _U64(c2) & _LOW, _U64(c3) & _LOW
    k0, k1 = _U64(k0) & _LOW, _U64(k1) & _LOW
    for _ in range(_ROUNDS):
        p0 = _M0 * x0
        p1 = _M1 * x2
        x0 = (p1 >> _SHIFT) ^ x1 ^ k0
        x1 = p1 & _LOW
        x2 = (p0 >> _SHIFT) ^ x3 ^ k1
        x3 = p0 & _LOW
        k0 = (k0 + _W0) & _LOW
        k1 = (k1 + _W1) & _LOW
    return _U32(x0), _U32(x1), _U32(x2), _U32(x3)


@inlined_kernel
def below(word, n):
    """Return a whole number in 0 .. n-1 from a word; uniform but for n / 2^32."""
    return np.int64((_U64(word) * _U64(n)) >> _SHIFT)


@inlined_kernel
def coin(word):
    """Return True for half of the words: those with the highest bit set."""
    return (_U32(word) >> _U32(31)) == _U32(1)


@inlined_kernel
def unit(word):
    """Return a float64 strictly between 0 and 1: (word + 1/2) / 2^32."""
    return (np.float64(word) + 0.5) * 2.3283064365386963e-10


@kernel
def shuffle(items, first, seed, epoch, kind):
    """Shuffle int64 items in place (Fisher and Yates), with the words of places from `first` on.

    kind: told apart from other shuffles of the epoch. A word w gives a place below n by
    w n / 2^64: uniform but for n / 2^64.
    """
    k0, k1 = seed & _LOW, seed >> _SHIFT
    for i in range(len(items) - 1, 0, -1):
        place = np.uint64(first + i)
        low, high, _, _ = philox(place & _LOW, place >> _SHIFT, epoch, _ORDER_STREAM + kind, k0, k1)
        n = np.uint64(i + 1)
        # The upper half of the product of 64 bits with n, which has 32.
        j = np.int64((np.uint64(high) * n + ((np.uint64(low) * n) >> _SHIFT)) >> _SHIFT)
        items[i], items[j] = items[j], items[i]
