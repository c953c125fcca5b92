"""What is drawn for a sample, as plain numbers: a function of (seed, epoch, index, view) alone.

Each number has its own word of the counter (see `pixmix.philox`), drawn or not: nothing shifts when
another is not needed. Blocks of four words:

    stream CROP, view 0 (all views share the crop)
      0       flip, top, left, -
    stream RESIZED_CROP, view 0
      t       area, ratio, top, left                      (of try t, 0 to 9)
    stream PIXMIX, a view
      0       start (operation or image), operation, level, sign
      1       rounds, mixing image, its top, its left
      2 + 3r  source of round r (operation or mixing image), operation, level, sign
      3 + 3r  mixing, branch, u, v                        (of a and b: see `pixmix.mixing`)
      4 + 3r  not used

These are public interface: a change of what a seed draws raises `DRAWS_VERSION`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixmix.arguments import seed_of, whole
from pixmix.compiling import inlined_kernel, kernel
from pixmix.mixing import power
from pixmix.operations import draw_argument
from pixmix.philox import INDEX_LIMIT, VIEW_LIMIT, Stream, below, coin, philox, unit
from pixmix.settings import MINIMAL_LEVEL, PixMixSettings

DRAWS_VERSION = 1

NO_OPERATION = -1
"""Where a code of an operation is expected: the image itself, or the mixing image."""

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
"""A view of a sample: flip and crop; what it starts from, `NO_OPERATION` for the image itself;
how many rounds; which mixing image, and the words that place its crop (`draw_corner`)."""

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
"""A round: its operation (`NO_OPERATION`: the mixing image), its mixing, and that one's weights."""


class Plan(NamedTuple):
    """All that is drawn for some samples.

    samples: (N,) of `SAMPLE`, N samples by V views, the views of a sample side by side.
    rounds: (N, k) of `ROUND`; those from `samples["rounds"]` on are drawn too, and not used.
    """

    samples: NDArray[np.void]
    rounds: NDArray[np.void]

    def needs_mixing_image(self) -> NDArray[np.bool_]:
        """Return (N,) bool: which rows mix with their mixing image in any round."""
        places = np.arange(self.rounds.shape[1])
        used = places < self.samples["rounds"][:, None]
        needed: NDArray[np.bool_] = np.any(
            used & (self.rounds["operation"] == NO_OPERATION), axis=1
        )
        return needed


_CROP, _PIXMIX = int(Stream.CROP), int(Stream.PIXMIX)
_RESIZED_CROP = int(Stream.RESIZED_CROP)
_STREAM = VIEW_LIMIT
_ONE, _TWO = np.float32(1), np.float32(2)
_LEAST_LEVEL = MINIMAL_LEVEL


@inlined_kernel
def _draw_level(word, severity):
    return _LEAST_LEVEL + (severity - _LEAST_LEVEL) * unit(word)


@inlined_kernel
def _root(word, inverse_beta):
    """Return U^(1/beta) ~ Beta(beta, 1), float32; U has 23 bits, is neither 0 nor 1."""
    u = (np.float32(np.int32(np.uint32(word) >> np.uint32(9))) + np.float32(0.5)) * np.float32(
        1.1920928955078125e-07
    )
    return min(power(u, inverse_beta), _ONE)


@inlined_kernel
def draw_weights(branch, u, v, inverse_beta):
    """Return a and b of a mixing, float32, from three words: see `pixmix.mixing`."""
    root, shortfall = _root(u, inverse_beta), _ONE - _root(v, inverse_beta)
    if coin(branch):
        return root, shortfall
    return _TWO - root, -shortfall


@inlined_kernel
def draw_corner(word, image_side, side):
    """Return the first row or column of a crop of `side` from an image's side, from a word."""
    return below(word, image_side - side + 1)


@kernel
def _draw(
    samples, rounds, indices, seed, epoch, views, operations, severity, inverse_beta, mixings,
    height, width, source_height, source_width, flips, n_mixing_images,
):  # fmt: skip
    """Fill a plan: see `draw_plan`. Return the place of an index out of range, or -1.

    indices: (N,) int64. seed: uint64. operations, mixings: (M,) int32 codes of those to draw from.
    height, width: of the crop; source_height, source_width: of the padded image it is taken from.
    """
    k0, k1 = seed & np.uint64(0xFFFFFFFF), seed >> np.uint64(32)
    for n in range(len(indices)):
        index = indices[n]
        if index < 0 or index >= INDEX_LIMIT:
            return n
        flip, top, left, _ = philox(0, index, epoch, _CROP * _STREAM, k0, k1)
        for view in range(views):
            row = n * views + view
            stream = _PIXMIX * _STREAM + view
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
    """Draw everything for some samples; what a sample gets depends on no other.

    Args:
        indices: (N,) numbers of the samples, 0 .. 2^32 - 1.
        seed: any whole number; taken modulo 2^64.
        epoch: 0 .. 2^32 - 1.
        settings: of PixMix; None for flip and crop alone.
        size: (height, width) that operations and mixing get.
        source_size: (height, width), padding included, that the crop of `size` is drawn from.
        flip: whether half of the samples are flipped.
        views: independent draws of PixMix a sample; flip and crop are shared by them.
        n_mixing_images: of the mixing set; 0 lets every round mix with the image's own operations.

    Raises:
        TypeError: if seed, epoch or views is no whole number.
        ValueError: if an index, the epoch or the number of views is out of range.
    """
    seed = seed_of(seed)
    epoch = whole("epoch", epoch, 0, INDEX_LIMIT - 1)
    views = whole("views", views, 1, VIEW_LIMIT)
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
        whole(f"index {wrong} of the batch", indices[wrong], 0, INDEX_LIMIT - 1)
    if not mixes:
        plan.samples["operation"] = NO_OPERATION
    return plan


RESIZED_CROP_TRIES = 10
"""As in torchvision: then the largest centre of an allowed ratio is taken."""


@kernel
def _draw_resized_crop(
    index, seed, epoch, height, width, least, most, least_ratio, most_ratio, out
):  # fmt: skip
    """Fill out, (4,) int64: top, left, height and width of a part of an image."""
    k0, k1 = seed & np.uint64(0xFFFFFFFF), seed >> np.uint64(32)
    area = np.float64(height * width)
    spread = np.float32(most_ratio / least_ratio)
    for attempt in range(RESIZED_CROP_TRIES):
        w0, w1, w2, w3 = philox(attempt, index, epoch, _RESIZED_CROP * _STREAM, k0, k1)
        target = area * (least + (most - least) * unit(w0))
        # The logarithm of the ratio is uniform; `power` has the same bits on every machine.
        ratio = least_ratio * np.float64(power(spread, np.float32(unit(w1))))
        its_width = np.int64(np.rint(np.sqrt(target * ratio)))
        its_height = np.int64(np.rint(np.sqrt(target / ratio)))
        if 0 < its_width <= width and 0 < its_height <= height:
            out[0] = draw_corner(w2, height, its_height)
            out[1] = draw_corner(w3, width, its_width)
            out[2], out[3] = its_height, its_width
            return
    ratio = width / height
    its_height, its_width = height, width
    if ratio < least_ratio:
        its_height = min(height, max(np.int64(1), np.int64(np.rint(width / least_ratio))))
    elif ratio > most_ratio:
        its_width = min(width, max(np.int64(1), np.int64(np.rint(height * most_ratio))))
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
    """Draw the part of an image that a random resized crop takes, as torchvision draws it.

    Args:
        index: number of the sample, 0 .. 2^32 - 1.
        seed: any whole number; taken modulo 2^64.
        epoch: 0 .. 2^32 - 1.
        size: (height, width) of the image, pixels.
        scale: the least and the largest share of its area, above 0 and up to 1.
        ratio: the least and the largest width over height.

    Returns:
        (top, left, height, width), pixels, inside the image.
    """
    out = np.empty(4, np.int64)
    _draw_resized_crop(index, np.uint64(seed_of(seed)), epoch, *size, *scale, *ratio, out)
    top, left, height, width = out.tolist()
    return top, left, height, width
