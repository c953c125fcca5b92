"""A shuffle by counter: the same permutation on every machine, whatever was drawn before."""

import numpy as np

from pixmix.compiling import kernel
from pixmix.philox import VIEW_LIMIT, Stream, philox

_ORDER = int(Stream.ORDER)
_STREAM = VIEW_LIMIT
_SHIFT = np.uint64(32)


@kernel
def shuffle(items, first, seed, epoch, kind):
    """Shuffle int64 items in place (Fisher and Yates), with the words of places from `first` on.

    kind: told apart from other shuffles of the epoch. A word w gives a place below n by
    w n / 2^64: uniform but for n / 2^64.
    """
    k0, k1 = seed & np.uint64(0xFFFFFFFF), seed >> _SHIFT
    for i in range(len(items) - 1, 0, -1):
        place = np.uint64(first + i)
        low, high, _, _ = philox(
            place & np.uint64(0xFFFFFFFF), place >> _SHIFT, epoch, _ORDER * _STREAM + kind, k0, k1
        )
        n = np.uint64(i + 1)
        # The upper half of the product of 64 bits with n, which has 32.
        j = np.int64((np.uint64(high) * n + ((np.uint64(low) * n) >> _SHIFT)) >> _SHIFT)
        items[i], items[j] = items[j], items[i]
