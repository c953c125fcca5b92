"""Draw the random numbers of a sample: a function of (seed, epoch, index, view) alone.

The generator is Philox 4x32-10, which is based on counters: a counter of four 32-bit words and a
key of two give four random words, by ten rounds of two multiplications each (Salmon, Moraes, Dror &
Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 3.3 and table 2). It has no
state, so word n of sample i needs no word before it::

    key      seed modulo 2^64: its lower word, its upper word
    counter  block, index, epoch, stream * 2^24 + view

A block is four words, and each random number has a fixed word, whether it is used or not. So a
setting that makes one number unnecessary does not change any other::

    stream CROP, view 0 (all views share the crop)
      0       flip, top, left, -
    stream RESIZED_CROP, view 0
      t       area, ratio, top, left                      (of attempt t, 0 to 9)
    stream PIXMIX, a view
      0       start (operation or image), operation, level, sign
      1       rounds, mixing image, its top, its left
      2 + 3r  source of round r (operation or mixing image), operation, level, sign
      3 + 3r  mixing, branch, u, v                        (of a and b: see `pixmix.mixing`)
      4 + 3r  not used

These draws are public interface: a change of what a seed draws increments `DRAWS_VERSION`.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixmix.compiling import inlined_kernel, kernel
from pixmix.mixing import power
from pixmix.operations import draw_argument
from pixmix.settings import (
    INDEX_LIMIT,
    MIN_LEVEL,
    VIEW_LIMIT,
    PixMixSettings,
    check_integer,
    check_seed,
)

DRAWS_VERSION = 1

NO_OPERATION = -1
"""In place of an operation's code: the image itself, or the mixing image."""

SAMPLE = np.dtype(
    [
        ("flip", np.int32),
        ("crop_top", np.int32),
        ("crop_left", np.int32),
        ("operation", np.int32),
        ("argument", np.float64),
        ("rounds", np.int32),
        ("mixing_image", np.int64),
        ("top_word", np.uint32),
        ("left_word", np.uint32),
    ],
    align=True,
)
"""The draws of a view of a sample: flip and crop; the operation that the first image comes from
(`NO_OPERATION`: the image itself); the number of rounds; the index of the mixing image, and the
words for the corner of its crop (see `draw_corner`)."""

ROUND = np.dtype(
    [
        ("operation", np.int32),
        ("mixing", np.int32),
        ("argument", np.float64),
        ("a", np.float32),
        ("b", np.float32),
    ],
    align=True,
)
"""The draws of a round: its operation (`NO_OPERATION`: the mixing image), its mixing, and the
weights of that mixing."""


class Plan(NamedTuple):
    """All draws for some samples.

    Attributes:
        samples: (N,) of `SAMPLE`; N is samples x views, the views of a sample side by side.
        rounds: (N, k) of `ROUND`; those from ``samples["rounds"]`` on are not used.
    """

    samples: NDArray[np.void]
    rounds: NDArray[np.void]

    def needs_mixing_image(self) -> NDArray[np.bool_]:
        """Return (N,) bool: whether any round of a row uses the mixing image."""
        numbers = np.arange(self.rounds.shape[1])
        used = numbers < self.samples["rounds"][:, None]
        needed: NDArray[np.bool_] = np.any(
            used & (self.rounds["operation"] == NO_OPERATION), axis=1
        )
        return needed


class Stream(IntEnum):
    """Streams of independent random numbers for the same sample."""

    CROP = 0
    PIXMIX = 1
    RESIZED_CROP = 2
    ORDER = 3


# --- Random words --------------------------------------------------------------------------------

_U32 = np.uint32
_U64 = np.uint64
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
# Weyl increments of the key: the golden ratio and sqrt(3) - 1.
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_ROUNDS = 10
_ORDER_STREAM = Stream.ORDER * VIEW_LIMIT


@inlined_kernel
def philox(c0, c1, c2, c3, k0, k1):
    """Return the four random uint32 words of a counter and a key (Philox 4x32-10).

    c0 to c3, k0, k1: integers, taken modulo 2^32.
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
    """Map a word to an integer in 0 .. n-1; the bias is at most n / 2^32."""
    return np.int64((_U64(word) * _U64(n)) >> _SHIFT)


@inlined_kernel
def coin(word):
    """Return the highest bit of a word as a bool: True for half of all words."""
    return (_U32(word) >> _U32(31)) == _U32(1)


@inlined_kernel
def unit(word):
    """Map a word to a float64 strictly between 0 and 1: (word + 1/2) / 2^32."""
    return (np.float64(word) + 0.5) * 2.3283064365386963e-10


@kernel
def shuffle(items, first, seed, epoch, kind):
    """Shuffle int64 items in place (Fisher-Yates), the same on every machine.

    first: number of the first item in the epoch; each item uses the words of its own number.
    kind: number of the shuffle, to make several in an epoch independent. A 64-bit word w selects an
    item below n as w n / 2^64; the bias is at most n / 2^64.
    """
    k0, k1 = seed & _LOW, seed >> _SHIFT
    for i in range(len(items) - 1, 0, -1):
        place = np.uint64(first + i)
        low, high, _, _ = philox(place & _LOW, place >> _SHIFT, epoch, _ORDER_STREAM + kind, k0, k1)
        n = np.uint64(i + 1)
        # The upper half of the 96-bit product of the 64-bit word and n, which has 32 bits.
        j = np.int64((np.uint64(high) * n + ((np.uint64(low) * n) >> _SHIFT)) >> _SHIFT)
        items[i], items[j] = items[j], items[i]


# --- Samples -------------------------------------------------------------------------------------

_CROP_STREAM = Stream.CROP * VIEW_LIMIT
_PIXMIX_STREAM = Stream.PIXMIX * VIEW_LIMIT
_RESIZED_CROP_STREAM = Stream.RESIZED_CROP * VIEW_LIMIT
_ONE, _TWO = np.float32(1), np.float32(2)


@inlined_kernel
def _draw_level(word, severity):
    return MIN_LEVEL + (severity - MIN_LEVEL) * unit(word)


@inlined_kernel
def _root(word, inverse_beta):
    """Return U^(1/beta) ~ Beta(beta, 1), float32; U has 23 bits and is never 0 or 1."""
    u = (np.float32(np.int32(np.uint32(word) >> np.uint32(9))) + np.float32(0.5)) * np.float32(
        1.1920928955078125e-07
    )
    return min(power(u, inverse_beta), _ONE)


@inlined_kernel
def draw_weights(branch, u, v, inverse_beta):
    """Return the weights a and b of a mixing, float32, from three words; see `pixmix.mixing`."""
    root, shortfall = _root(u, inverse_beta), _ONE - _root(v, inverse_beta)
    if coin(branch):
        return root, shortfall
    return _TWO - root, -shortfall


@inlined_kernel
def draw_corner(word, image_side, side):
    """Map a word to the first row or column of a crop of `side` pixels of an image's side."""
    return below(word, image_side - side + 1)


@kernel
def _draw(
    samples, rounds, indices, seed, epoch, views, operations, severity, inverse_beta, mixings,
    height, width, source_height, source_width, flips, n_mixing_images,
):  # fmt: skip
    """Fill a plan (see `draw_plan`); return the position of an index out of range, or -1.

    indices: (N,) int64. seed: uint64. operations, mixings: (M,) int32 codes to draw from. height,
    width: of the crop; source_height, source_width: of the padded image that it is taken from.
    """
    k0, k1 = seed & np.uint64(0xFFFFFFFF), seed >> np.uint64(32)
    for n in range(len(indices)):
        index = indices[n]
        if index < 0 or index >= INDEX_LIMIT:
            return n
        flip, top, left, _ = philox(0, index, epoch, _CROP_STREAM, k0, k1)
        for view in range(views):
            row = n * views + view
            stream = _PIXMIX_STREAM + view
            sample = samples[row]
            sample.flip = 1 if flips and coin(flip) else 0
            sample.crop_top = draw_corner(top, source_height, height)
            sample.crop_left = draw_corner(left, source_width, width)
            w0, w1, w2, w3 = philox(0, index, epoch, stream, k0, k1)
            code = operations[below(w1, len(operations))]
            sample.operation = code if coin(w0) else NO_OPERATION
            sample.argument = draw_argument(
                code, _draw_level(w2, severity), coin(w3), height, width
            )
            w0, w1, w2, w3 = philox(1, index, epoch, stream, k0, k1)
            sample.rounds = below(w0, rounds.shape[1] + 1)
            sample.mixing_image = below(w1, n_mixing_images)
            sample.top_word = w2
            sample.left_word = w3
            for r in range(rounds.shape[1]):
                item = rounds[row, r]
                w0, w1, w2, w3 = philox(2 + 3 * r, index, epoch, stream, k0, k1)
                code = operations[below(w1, len(operations))]
                item.operation = code if coin(w0) or n_mixing_images == 0 else NO_OPERATION
                item.argument = draw_argument(
                    code, _draw_level(w2, severity), coin(w3), height, width
                )
                w0, w1, w2, w3 = philox(3 + 3 * r, index, epoch, stream, k0, k1)
                item.mixing = mixings[below(w0, len(mixings))]
                item.a, item.b = draw_weights(w1, w2, w3, inverse_beta)
    return -1


def draw_plan(
    indices: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    settings: PixMixSettings | None,
    size: tuple[int, int],
    source_size: tuple[int, int],
    flip: bool,
    views: int,
    n_mixing_images: int,
) -> Plan:
    """Draw all random numbers for some samples; the draws of a sample depend on no other.

    Args:
        indices: (N,) dataset indices of the samples, 0 .. 2^32 - 1.
        seed: any integer; taken modulo 2^64.
        epoch: 0 .. 2^32 - 1.
        settings: parameters of PixMix; None for flip and crop only.
        size: (height, width) of the crop, in pixels.
        source_size: (height, width) of the padded image that the crop is taken from.
        flip: whether to flip each sample with probability 1/2.
        views: number of independent PixMix views per sample; they share flip and crop.
        n_mixing_images: size of the mixing set; 0 makes every round mix with an augmented copy of
            the image.

    Raises:
        TypeError: if seed, epoch or views is not an integer.
        ValueError: if an index, the epoch or the number of views is out of range.
    """
    seed = check_seed(seed)
    epoch = check_integer("epoch", epoch, 0, INDEX_LIMIT - 1)
    views = check_integer("views", views, 1, VIEW_LIMIT)
    n = len(indices) * views
    mixes = settings is not None
    settings = settings or PixMixSettings(k=0)
    plan = Plan(np.empty(n, SAMPLE), np.empty((n, settings.k), ROUND))
    wrong = _draw(
        plan.samples,
        plan.rounds,
        indices,
        np.uint64(seed),
        epoch,
        views,
        settings.operation_codes,
        float(settings.severity),
        np.float32(1 / settings.beta),
        settings.mixing_codes,
        *size,
        *source_size,
        flip,
        n_mixing_images,
    )
    if wrong >= 0:
        check_integer(f"index {wrong} of the batch", indices[wrong], 0, INDEX_LIMIT - 1)
    if not mixes:
        plan.samples["operation"] = NO_OPERATION
    return plan


_CROP_ATTEMPTS = 10
"""As in torchvision; after these, the largest center crop of an allowed ratio is taken."""


@kernel
def _draw_resized_crop(
    index, seed, epoch, height, width, min_scale, max_scale, min_ratio, max_ratio, out
):  # fmt: skip
    """Write top, left, height and width of a random resized crop into out, (4,) int64."""
    k0, k1 = seed & np.uint64(0xFFFFFFFF), seed >> np.uint64(32)
    area = np.float64(height * width)
    spread = np.float32(max_ratio / min_ratio)
    for attempt in range(_CROP_ATTEMPTS):
        w0, w1, w2, w3 = philox(attempt, index, epoch, _RESIZED_CROP_STREAM, k0, k1)
        target = area * (min_scale + (max_scale - min_scale) * unit(w0))
        # The logarithm of the ratio is uniform. Unlike pow, `power` is the same on every machine.
        ratio = min_ratio * np.float64(power(spread, np.float32(unit(w1))))
        its_width = np.int64(np.rint(np.sqrt(target * ratio)))
        its_height = np.int64(np.rint(np.sqrt(target / ratio)))
        if 0 < its_width <= width and 0 < its_height <= height:
            out[0] = draw_corner(w2, height, its_height)
            out[1] = draw_corner(w3, width, its_width)
            out[2], out[3] = its_height, its_width
            return
    ratio = width / height
    its_height, its_width = height, width
    if ratio < min_ratio:
        its_height = min(height, max(np.int64(1), np.int64(np.rint(width / min_ratio))))
    elif ratio > max_ratio:
        its_width = min(width, max(np.int64(1), np.int64(np.rint(height * max_ratio))))
    out[0], out[1] = (height - its_height) // 2, (width - its_width) // 2
    out[2], out[3] = its_height, its_width


def draw_resized_crop(
    index: int,
    *,
    seed: int,
    epoch: int,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Draw the region of a random resized crop, distributed as torchvision's.

    Args:
        index: dataset index of the sample, 0 .. 2^32 - 1.
        seed: any integer; taken modulo 2^64.
        epoch: 0 .. 2^32 - 1.
        size: (height, width) of the image, in pixels.
        scale: minimum and maximum share of the image's area, above 0 and up to 1.
        ratio: minimum and maximum width over height.

    Returns:
        (top, left, height, width) in pixels, inside the image.
    """
    out = np.empty(4, np.int64)
    _draw_resized_crop(index, np.uint64(check_seed(seed)), epoch, *size, *scale, *ratio, out)
    top, left, height, width = out.tolist()
    return top, left, height, width
