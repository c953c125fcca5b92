"""The fused kernel: flip, crop, operations, mixing and normalisation of a sample in one pass.

A sample's pictures (its crop, what the operations make of it, the crop of its mixing picture) stay
8-bit. Only then are they mixed, a block of rows at a time through all rounds, so that no float
picture is ever made: a block stays in a core's nearest memory until it is written, normalised and
channel by channel.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixmix.compiling import inlined_kernel, kernel
from pixmix.draws import NO_OPERATION, draw_corner
from pixmix.mixing import (
    LEVELS,
    OVERLAY,
    fill_powers,
    look_up,
    mix_values,
    reads_negative_powers,
    reads_powers,
    reads_values,
    to_unit,
)
from pixmix.op_kernels import SCRATCH_LENGTH, apply_operation

FLOAT32, FLOAT16, BFLOAT16 = range(3)
"""Codes of what is written."""

_BLOCK = 4096
"""Values of a block, about: five buffers of them stay in a core's nearest memory."""
_ZERO, _ONE = np.float32(0), np.float32(1)


class Scratch(NamedTuple):
    """What one thread scribbles on, for any number of samples of one size; see `scratch_for`."""

    pictures: NDArray[np.uint8]
    operation: NDArray[np.int64]
    tables: NDArray[np.float32]
    blocks: NDArray[np.float32]


def scratch_for(height: int, width: int, k: int) -> Scratch:
    """Return scratch for samples of height x width with at most k rounds."""
    rows = max(1, _BLOCK // (3 * width))
    return Scratch(
        # The sample, its mixing picture, and what each operation makes.
        np.empty((k + 3, height, width, 3), np.uint8),
        np.empty(SCRATCH_LENGTH, np.int64),
        np.empty((k, 2, LEVELS), np.float32),
        np.empty((5, 3 * width * rows), np.float32),
    )


_OWN, _MIXING, _START, _FIRST_ROUND = range(4)

# --- Pictures ------------------------------------------------------------------------------------


@inlined_kernel
def _copy_crop(source, offset, stride, target, rows, n_bytes):
    """Copy rows of n_bytes each, the first at offset, each next one stride on."""
    for row in range(rows):
        start = offset + row * stride
        ours = target[row * n_bytes : (row + 1) * n_bytes]
        theirs = source[start : start + n_bytes]
        for i in range(n_bytes):
            ours[i] = theirs[i]


@inlined_kernel
def _crop_and_flip(image, top, left, flip, out):
    """Take a crop of a picture padded with black, and mirror it if `flip`.

    top, left: of the crop in the picture, less than 0 in the padding.
    """
    height, width = out.shape[0], out.shape[1]
    source_height, source_width = image.shape[0], image.shape[1]
    first, end = min(max(-left, 0), width), max(min(source_width - left, width), 0)
    for row in range(height):
        place = top + row
        target = out[row]
        if place < 0 or place >= source_height or end <= first:
            for column in range(width):
                for channel in range(3):
                    target[column, channel] = 0
            continue
        source = image[place]
        for column in range(first):
            black = width - 1 - column if flip else column
            for channel in range(3):
                target[black, channel] = 0
        for column in range(end, width):
            black = width - 1 - column if flip else column
            for channel in range(3):
                target[black, channel] = 0
        if flip:
            for column in range(first, end):
                for channel in range(3):
                    target[width - 1 - column, channel] = source[left + column, channel]
        else:
            ours, theirs = target.reshape(-1)[3 * first :], source.reshape(-1)[3 * (left + first) :]
            for i in range(3 * (end - first)):
                ours[i] = theirs[i]


# --- Numbers written -----------------------------------------------------------------------------

_SIGN, _MAGNITUDE = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
_16, _13 = np.uint32(16), np.uint32(13)
_ODD = np.uint32(1)
# Half of the last kept bit, less one: with the last bit itself, ties go to the even neighbour.
_BELOW_TIE_OF_16, _BELOW_TIE_OF_13 = np.uint32(0x7FFF), np.uint32(0xFFF)
# float16: exponents 112 less; 2^-14 is its least normal number; 65520 rounds to infinity.
_REBIAS = np.uint32(112 << 23)
_LEAST_NORMAL = np.uint32(113 << 23)
_OVERFLOW = np.uint32(0x477FF000)
_INFINITY = np.uint32(0x7C00)
# Adding 1/2 moves the bits of a float16 subnormal to the end of a float32, rounded.
_HALF, _HALF_BITS = np.float32(0.5), np.uint32(0x3F000000)


@inlined_kernel
def bfloat16_bits(value):
    """Return the bits of the nearest bfloat16, ties to even; value: float32, not a NaN."""
    bits = np.float32(value).view(np.uint32)
    last = np.uint32((bits >> _16) & _ODD)
    return np.uint16(np.uint32(bits + _BELOW_TIE_OF_16 + last) >> _16)


@inlined_kernel
def float16_bits(value):
    """Return the bits of the nearest float16, ties to even; value: float32, not a NaN."""
    bits = np.float32(value).view(np.uint32)
    sign = np.uint32((bits & _SIGN) >> _16)
    magnitude = np.uint32(bits & _MAGNITUDE)
    tiny = np.uint32(np.float32(magnitude.view(np.float32) + _HALF).view(np.uint32) - _HALF_BITS)
    last = np.uint32((magnitude >> _13) & _ODD)
    normal = np.uint32(np.uint32(magnitude - _REBIAS + _BELOW_TIE_OF_13 + last) >> _13)
    result = tiny if magnitude < _LEAST_NORMAL else normal
    result = _INFINITY if magnitude >= _OVERFLOW else result
    return np.uint16(result | sign)


@inlined_kernel
def _write(x, n_pixels, first, means, deviations, code, planes, half_planes):
    """Write a block of RGB values, normalised, to three planes from pixel `first` on."""
    for channel in range(3):
        mean, deviation = means[channel], deviations[channel]
        if code == FLOAT32:
            target = planes[channel].reshape(-1)[first : first + n_pixels]
            for i in range(n_pixels):
                target[i] = (x[3 * i + channel] - mean) / deviation
        elif code == FLOAT16:
            halves = half_planes[channel].reshape(-1)[first : first + n_pixels]
            for i in range(n_pixels):
                halves[i] = float16_bits((x[3 * i + channel] - mean) / deviation)
        else:
            halves = half_planes[channel].reshape(-1)[first : first + n_pixels]
            for i in range(n_pixels):
                halves[i] = bfloat16_bits((x[3 * i + channel] - mean) / deviation)


# --- A sample ------------------------------------------------------------------------------------


@kernel
def mix_samples(
    images, pixels, offsets, heights, widths, samples, rounds, first, last, views, padding,
    means, deviations, code, out, half_out, pictures, operation_scratch, tables, blocks,
):  # fmt: skip
    """Make the rows first .. last-1 of a batch, as a plan says.

    images: (N, H, W, 3) uint8; row n is a view of image n // views. pixels, offsets, heights,
    widths: a `PackedPictures`. samples, rounds: a `Plan`. padding: black pixels around an image,
    before its crop. means, deviations: (3,) float32. code: `FLOAT32`, ...;
    out: (N * views, 3, height, width) float32; half_out: likewise, the bits as uint16; the one that
    is not written is anything. The rest: a `Scratch`, for pictures of height x width.
    """
    height, width = pictures.shape[1], pictures.shape[2]
    n_pixels = height * width
    n_values = 3 * n_pixels
    levels = pictures.reshape(-1)
    rows_of_a_block = blocks.shape[1] // (3 * width)
    y, powers, negative_powers = blocks[2], blocks[3], blocks[4]
    for n in range(first, last):
        sample, its_rounds = samples[n], rounds[n]
        n_rounds = sample.rounds
        image = pictures[_OWN]
        _crop_and_flip(
            images[n // views], sample.crop_top - padding, sample.crop_left - padding,
            sample.flip == 1, image,
        )  # fmt: skip
        start = _OWN
        if sample.operation != NO_OPERATION:
            start = _START
            apply_operation(
                sample.operation, sample.argument, image, pictures[_START], operation_scratch
            )
        mixing_picture_is_there = False
        for r in range(n_rounds):
            item = its_rounds[r]
            if item.operation != NO_OPERATION:
                apply_operation(
                    item.operation, item.argument, image, pictures[_FIRST_ROUND + r],
                    operation_scratch,
                )  # fmt: skip
            elif not mixing_picture_is_there:
                mixing_picture_is_there = True
                picture = sample.picture
                stride = 3 * np.int64(widths[picture])
                top = draw_corner(sample.top_word, np.int64(heights[picture]), height)
                left = draw_corner(sample.left_word, np.int64(widths[picture]), width)
                _copy_crop(
                    pixels, offsets[picture] + top * stride + 3 * left, stride,
                    pictures[_MIXING].reshape(-1), height, 3 * width,
                )  # fmt: skip
            if reads_powers(item.mixing):
                fill_powers(tables[r, 0], item.b, False)
            if reads_negative_powers(item.mixing):
                b = item.second_b if item.mixing == OVERLAY else item.b
                fill_powers(tables[r, 1], b, True)
        for row in range(0, height, rows_of_a_block):
            begin = 3 * width * row
            count = 3 * width * min(rows_of_a_block, height - row)
            x, mixed = blocks[0], blocks[1]
            to_unit(levels, start * n_values + begin, count, x)
            for r in range(n_rounds):
                item = its_rounds[r]
                slot = _MIXING if item.operation == NO_OPERATION else _FIRST_ROUND + r
                place = slot * n_values + begin
                if reads_values(item.mixing):
                    to_unit(levels, place, count, y)
                if reads_powers(item.mixing):
                    look_up(tables[r, 0], levels, place, count, powers)
                if reads_negative_powers(item.mixing):
                    look_up(tables[r, 1], levels, place, count, negative_powers)
                mix_values(
                    x, count, item.mixing, item.a, item.b, item.second_a, item.choice,
                    y, powers, negative_powers, mixed,
                )  # fmt: skip
                # Not in place: the compiler would not vectorise a loop that may read what it wrote.
                x, mixed = mixed, x
            planes = out[n] if code == FLOAT32 else out[0]
            half_planes = half_out[0] if code == FLOAT32 else half_out[n]
            _write(x, count // 3, row * width, means, deviations, code, planes, half_planes)
