"""The compiled kernels of PixMix's operations, equal to Pillow 13.0 byte for byte.

A kernel takes (image, argument, out, scratch). `image` and `out` are two different (H, W, 3)
C-contiguous uint8 arrays of the same shape, from 1x1 to 2^31 - 1 pixels. The argument is a float64
with a descriptive name. `scratch` is (SCRATCH_LENGTH,) int64 with arbitrary content. A kernel
writes every byte of `out`, never writes to `image` and allocates nothing. The functions at the end
convert a level to an argument. `pixmix.operations` is the table of all operations.

Where Pillow computes in floating point, the kernels compute the same sums in the same order and
precision, and no product is fused with a sum. Source: https://github.com/python-pillow/Pillow,
src/PIL/{Image,ImageOps,ImageEnhance}.py and src/libImaging/{Geometry,Blend,Filter,Convert}.c.
"""

# mypy does not know the integer types of compiled code.
# mypy: disable-error-code="arg-type, assignment, call-overload, operator"

import math

import numpy as np
from numpy import float32, float64, int32, int64, intp, uint8, uint16, uint32

from pixmix.compiling import inlined_kernel, kernel, long_word_at, set_long_word, word_at

SCRATCH_LENGTH = 1024
"""Length of a kernel's scratch memory, in int64."""


def _rotation_entries(degrees: int) -> tuple[float, float]:
    angle = -math.radians(degrees)
    return round(math.cos(angle), 15), round(math.sin(angle), 15)


ROTATIONS = np.array([_rotation_entries(degrees) for degrees in range(360)])
"""(360, 2): cosine and sine in the matrix of Pillow's Image.rotate, for whole degrees; a table,
because numba does not support Python's rounding to 15 digits."""

# Gathering pixels does not vectorize, but the arithmetic on them does. So a piece of a row is
# gathered into scratch, processed in whole vectors, and written out. The rest of the last vector is
# processed too, but never written. All slots of a piece have 8 bytes, as float64 has: for slots of
# two sizes the compiler cannot prove that they do not overlap.
_PIECE = 128
_VECTOR = 16
# Used by shear_x: the center of the pixel to which a byte of a row belongs.
_STRETCH = 256
_CENTERS = (np.arange(3 * _STRETCH) // 3) + 0.5
# Bytes of a row that sharpness sums at a time: two bytes each fill the scratch memory.
_SUMS = 4 * SCRATCH_LENGTH
# Bytes in which the extremes are searched at a time: a multiple of the three channels.
_PERIOD = 192

# --- Pixels as words -----------------------------------------------------------------------------


@inlined_kernel
def _byte(word, shift):
    """Return eight bits of an int32 as int32, from bit `shift` up."""
    return int32(int32(word >> int32(shift)) & int32(255))


@inlined_kernel
def _joined(red, green, blue):
    """Join three int32 of 0..255 into one, the first in the lowest byte."""
    return int32(int32(red | int32(green << int32(8))) | int32(blue << int32(16)))


@inlined_kernel
def _whole_pairs(count):
    """Return how many pairs of pixels have a pixel after them: their 6 bytes are moved as 8."""
    return (count - 1) // 2


@inlined_kernel
def _read_pixels(source, first, count, scratch, words):
    """Read `count` pixels of flat bytes, the first at pixel `first`, into int32 words.

    scratch: the memory of `words` as int64, two words each. Highest bytes are undefined.
    """
    for i in range(_whole_pairs(count)):
        both = long_word_at(source, 3 * first + 6 * i)
        scratch[i] = (both & int64(0xFFFFFFFF)) | ((both >> int64(24)) << int64(32))
    for i in range(2 * _whole_pairs(count), count):
        place = 3 * (first + i)
        words[i] = _joined(int32(source[place]), int32(source[place + 1]), int32(source[place + 2]))


@inlined_kernel
def _write_pixel(target, pixel, word):
    """Write the three lower bytes of a word."""
    target[3 * pixel] = uint8(_byte(int32(word), 0))
    target[3 * pixel + 1] = uint8(_byte(int32(word), 8))
    target[3 * pixel + 2] = uint8(_byte(int32(word), 16))


@inlined_kernel
def _write_words(target, first, count, scratch, words):
    """Write `count` int32 words to flat bytes from pixel `first` on, and no other byte.

    scratch: the memory of `words` as int64.
    """
    for i in range(_whole_pairs(count)):
        both = scratch[i]
        # The two highest bytes belong to the next pixel, which is written later.
        pair = (both & int64(0xFFFFFF)) | ((both >> int64(32)) << int64(24))
        set_long_word(target, 3 * first + 6 * i, pair)
    for i in range(2 * _whole_pairs(count), count):
        _write_pixel(target, first + i, words[i])


@inlined_kernel
def _write_slots(target, first, count, slots):
    """Write `count` int64 of 24 bits to flat bytes from pixel `first` on, and no other byte."""
    for i in range(_whole_pairs(count)):
        pair = slots[2 * i] | (slots[2 * i + 1] << int64(24))
        set_long_word(target, 3 * first + 6 * i, pair)
    for i in range(2 * _whole_pairs(count), count):
        _write_pixel(target, first + i, slots[i])


@inlined_kernel
def _blacken(target, start, end):
    """Set the bytes of [start, end) to 0."""
    part = target[start:end]
    for i in range(len(part)):
        part[i] = uint8(0)


@inlined_kernel
def _copy_bytes(source, source_start, target, start, end):
    """Copy bytes from source_start on to [start, end) of target."""
    ours, theirs = target[start:end], source[source_start : source_start + end - start]
    for i in range(len(ours)):
        ours[i] = theirs[i]


@inlined_kernel
def _copy(image, out):
    """Copy an image."""
    source, target = image.reshape(-1), out.reshape(-1)
    for i in range(len(source)):
        target[i] = source[i]


@inlined_kernel
def _whole_vectors(count):
    """Round a number of pixels up to whole vectors, so that no scalar remainder loop is needed."""
    return (count + _VECTOR - 1) // _VECTOR * _VECTOR


# --- Tables --------------------------------------------------------------------------------------


@inlined_kernel
def _look_up(source, tables, target):
    """Map each flat byte through the table of its channel; tables: (768,) uint8."""
    whole = len(source) // 24 * 24
    for start in range(0, whole, 24):
        for part in range(3):
            values = long_word_at(source, start + 8 * part)
            found = int64(0)
            for place in range(8):
                table = 256 * ((8 * part + place) % 3)
                value = (values >> int64(8 * place)) & int64(255)
                found |= int64(tables[table + value]) << int64(8 * place)
            set_long_word(target, start + 8 * part, found)
    for i in range(whole, len(source)):
        target[i] = tables[256 * (i % 3) + int64(source[i])]


@inlined_kernel
def _count(source, counts):
    """Count flat bytes by channel and value; counts: (1536,) uint32, of which 768 are the result.

    There are two sets of counters because equal neighbors would wait for each other at one.
    """
    for i in range(1536):
        counts[i] = uint32(0)
    whole = len(source) // 24 * 24
    for start in range(0, whole, 24):
        for part in range(3):
            values = long_word_at(source, start + 8 * part)
            for place in range(8):
                value = (values >> int64(8 * place)) & int64(255)
                counts[256 * ((8 * part + place) % 6) + value] += uint32(1)
    for i in range(whole, len(source)):
        counts[256 * (i % 3) + int64(source[i])] += uint32(1)
    for i in range(768):
        counts[i] += counts[i + 768]


@inlined_kernel
def _extremes(source, extremes):
    """Find the minimum and maximum of each channel; extremes: (2 * _PERIOD,) uint8.

    Entries 0, 1, 2 become the minima, _PERIOD + 0, 1, 2 the maxima.
    """
    for i in range(_PERIOD):
        extremes[i], extremes[_PERIOD + i] = uint8(255), uint8(0)
    for start in range(0, len(source), _PERIOD):
        piece = source[start : start + _PERIOD]
        for i in range(len(piece)):
            value = piece[i]
            extremes[i] = min(extremes[i], value)
            extremes[_PERIOD + i] = max(extremes[_PERIOD + i], value)
    for i in range(3, _PERIOD):
        low, high = i % 3, _PERIOD + i % 3
        extremes[low] = min(extremes[low], extremes[i])
        extremes[high] = max(extremes[high], extremes[_PERIOD + i])


@kernel
def autocontrast(image, argument, out, scratch):
    """Stretch each channel to 0..255 linearly; a channel with a single value stays."""
    source, target = image.reshape(-1), out.reshape(-1)
    memory = scratch.view(uint8)
    extremes, tables = memory[: 2 * _PERIOD], memory[2 * _PERIOD : 2 * _PERIOD + 768]
    _extremes(source, extremes)
    stays = True
    for channel in range(3):
        low, high = int64(extremes[channel]), int64(extremes[_PERIOD + channel])
        stays &= high <= low or high - low == 255
    if stays:
        _copy(image, out)
        return
    for channel in range(3):
        low, high = int64(extremes[channel]), int64(extremes[_PERIOD + channel])
        scale, offset = 1.0, 0.0
        if high > low:
            scale = 255.0 / float64(high - low)
            offset = -float64(low) * scale
        table = tables[256 * channel : 256 * channel + 256]
        for value in range(256):
            # Values that do not occur may be outside 0..255; int32 holds 255 * 255.
            stretched = int32(float64(value) * scale + offset)
            table[value] = uint8(min(max(stretched, int32(0)), int32(255)))
    _look_up(source, tables, target)


@kernel
def equalize(image, argument, out, scratch):
    """Equalize the histogram of each channel; a channel with a single value stays."""
    source, target = image.reshape(-1), out.reshape(-1)
    counts, tables = scratch[:768].view(uint32), scratch[768:864].view(uint8)
    _count(source, counts)
    n_pixels = int64(image.shape[0] * image.shape[1])
    for channel in range(3):
        last = 255
        while counts[256 * channel + last] == 0:
            last -= 1
        # A single value has a step of 0, too.
        step = (n_pixels - int64(counts[256 * channel + last])) // 255
        table, reached = tables[256 * channel : 256 * channel + 256], step // 2
        if step == 0:
            for value in range(256):
                table[value] = uint8(value)
            continue
        below = counts[256 * channel : 256 * channel + 256]
        for value in range(256):
            here = below[value]
            below[value] = uint32(reached)
            reached += int64(here)
        # Below 2^53 a float64 quotient never rounds up to the next whole number.
        for value in range(256):
            table[value] = uint8(int32(min(float64(below[value]) / float64(step), 255.0)))
    _look_up(source, tables, target)


@kernel
def posterize(image, bits, out, scratch):
    """Keep the upper bits of each byte; bits: whole, 0..8."""
    mask = uint8((0xFF00 >> int64(bits)) & 0xFF)
    source, target = image.reshape(-1), out.reshape(-1)
    for i in range(len(source)):
        target[i] = source[i] & mask


@kernel
def solarize(image, threshold, out, scratch):
    """Invert every byte from the threshold up; threshold: whole, 0..256."""
    source, target = image.reshape(-1), out.reshape(-1)
    if threshold > 255:
        _copy(image, out)
        return
    first = uint8(int64(threshold))
    for i in range(len(source)):
        value = source[i]
        target[i] = value if value < first else ~value


# --- Geometry ------------------------------------------------------------------------------------
# An output pixel with its center at (x, y), 0.5 for the first, is sampled at the position
# (a x + b y + c, d x + e y + f). Every sum is rounded as Pillow rounds it. Rounding is monotone, so
# the position is monotone along a row, and the pixels of a row inside the image are contiguous.


@inlined_kernel
def _crossing(slope, shift, constant, limit, width):
    """Return the first column, 0..width, whose position has crossed a limit.

    The position of column x is slope * (x + 0.5) + shift + constant. It has crossed if it is
    >= limit for slope >= 0, and < limit for slope < 0. The first guess may be off by a rounding, or
    for a slope near 0 by the whole width, so it is corrected column by column.
    """
    guess = (limit - constant - shift) / slope - 0.5
    column = intp(0)
    if guess > 0.0:
        column = intp(min(guess, float64(width)))
    while column > 0 and ((slope * (column - 0.5) + shift + constant >= limit) == (slope >= 0.0)):
        column -= 1
    while column < width and (
        (slope * (column + 0.5) + shift + constant >= limit) != (slope >= 0.0)
    ):
        column += 1
    return column


@inlined_kernel
def _span(slope, shift, constant, low, high, width):
    """Return the range of columns whose position is in [low, high): the first, and last + 1."""
    start = _crossing(slope, shift, constant, low if slope >= 0.0 else high, width)
    end = _crossing(slope, shift, constant, high if slope >= 0.0 else low, width)
    return start, end


@inlined_kernel
def _pixel_beside_the_edge(source, x, y, height, width, target, place):
    """Sample at (x, y), in units in which pixel centers are whole, with taps clamped."""
    left, top = intp(math.floor(x)), intp(math.floor(y))
    dx, dy = x - float64(left), y - float64(top)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    left, top = max(left, 0), max(top, 0)
    for channel in range(3):
        p = float64(source[(top * width + left) * 3 + channel])
        q = float64(source[(top * width + right) * 3 + channel])
        r = float64(source[(bottom * width + left) * 3 + channel])
        s = float64(source[(bottom * width + right) * 3 + channel])
        upper = p + (q - p) * dx
        lower = r + (s - r) * dx
        target[place + channel] = uint8(int32(upper + (lower - upper) * dy))


@inlined_kernel
def _between(words, lower_words, shift, dx, dy):
    """Interpolate one channel of four taps, int32; a word holds the left and the right tap."""
    p = float64(int32((words >> int64(shift)) & int64(255)))
    q = float64(int32((words >> int64(shift + 24)) & int64(255)))
    r = float64(int32((lower_words >> int64(shift)) & int64(255)))
    s = float64(int32((lower_words >> int64(shift + 24)) & int64(255)))
    upper = p + (q - p) * dx
    lower = r + (s - r) * dx
    return int32(upper + (lower - upper) * dy)


@inlined_kernel
def _sample_piece(source, a, across, c, d, down, f, width, column, count, scratch, weights):
    """Sample `count` <= _PIECE pixels whose taps are inside, at least a column from the right."""
    wide = float64(width)
    for i in range(_whole_vectors(count)):
        center = float64(column + i) + 0.5
        x = a * center + across + c - 0.5
        y = d * center + down + f - 0.5
        left, top = float64(int32(x)), float64(int32(y))
        weights[i] = x - left
        weights[_PIECE + i] = y - top
        scratch[2 * _PIECE + i] = int64(int32(top * wide + left))
    for i in range(count):
        offset = 3 * scratch[2 * _PIECE + i]
        # Six bytes of eight: the pixel and its right neighbor.
        scratch[2 * _PIECE + i] = long_word_at(source, offset)
        scratch[3 * _PIECE + i] = long_word_at(source, offset + 3 * width)
    for i in range(_whole_vectors(count)):
        upper, lower = scratch[2 * _PIECE + i], scratch[3 * _PIECE + i]
        dx, dy = weights[i], weights[_PIECE + i]
        scratch[2 * _PIECE + i] = _joined(
            _between(upper, lower, 0, dx, dy),
            _between(upper, lower, 8, dx, dy),
            _between(upper, lower, 16, dx, dy),
        )


@kernel
def rotate(image, degrees, out, scratch):
    """Rotate counterclockwise about the center; degrees: whole.

    Pillow copies or transposes for multiples of 90 degrees. There the matrix entries are whole and
    all weights 0, so the result is the same.
    """
    height, width = intp(image.shape[0]), intp(image.shape[1])
    source, target = image.reshape(-1), out.reshape(-1)
    weights, results = scratch.view(float64), scratch[2 * _PIECE : 3 * _PIECE]
    angle = int64(degrees) % 360
    cosine, sine = ROTATIONS[angle, 0], ROTATIONS[angle, 1]
    x, y = width / 2, height / 2
    a, b, d, e = cosine, sine, -sine, cosine
    c = a * -x + b * -y + x
    f = d * -x + e * -y + y
    # A cosine rounds to 1 before its sine rounds to 0.
    if cosine == 1.0 and sine == 0.0:
        _copy(image, out)
        return
    for row in range(height):
        across, down = b * (row + 0.5), e * (row + 0.5)
        start, end = _span(a, across, c, 0.0, float64(width), width)
        first, last = _span(d, down, f, 0.0, float64(height), width)
        start, end = max(start, first), min(end, last)
        end = max(start, end)
        # Where no tap is clamped, and the two bytes after the right tap are in the image.
        first, last = _span(a, across, c, 0.5, width - 1.5, width)
        inner_start, inner_end = max(start, first), min(end, last)
        first, last = _span(d, down, f, 0.5, height - 0.5, width)
        inner_start, inner_end = max(inner_start, first), min(inner_end, last)
        if inner_start >= inner_end:
            inner_start, inner_end = end, end
        base = row * width
        for column in range(inner_start, inner_end, _PIECE):
            count = min(_PIECE, inner_end - column)
            _sample_piece(source, a, across, c, d, down, f, width, column, count, scratch, weights)
            _write_slots(target, base + column, count, results)
        _blacken(target, 3 * base, 3 * (base + start))
        _blacken(target, 3 * (base + end), 3 * (base + width))
        for side in range(2):
            first, last = (start, inner_start) if side == 0 else (inner_end, end)
            for column in range(first, last):
                x = a * (column + 0.5) + across + c - 0.5
                y = d * (column + 0.5) + down + f - 0.5
                _pixel_beside_the_edge(source, x, y, height, width, target, 3 * (base + column))


@kernel
def shear_x(image, factor, out, scratch):
    """Move each row left by factor * its center's height; factor: finite float64.

    The vertical weight is 0, and the position in the row is x + 0.5 + factor * (y + 0.5), rounded,
    minus 0.5. With k the floor of the shift, it is in [x + k, x + k + 1]. So the left tap is always
    x + k: where the floor of the position is x + k + 1, the weight is 1, which gives the right tap
    exactly.
    """
    height, width = intp(image.shape[0]), intp(image.shape[1])
    source, target = image.reshape(-1), out.reshape(-1)
    for row in range(height):
        shift = factor * (row + 0.5)
        start, end = _span(1.0, shift, 0.0, 0.0, float64(width), width)
        end = max(start, end)
        base = row * width
        _blacken(target, 3 * base, 3 * (base + start))
        _blacken(target, 3 * (base + end), 3 * (base + width))
        if start == end:
            continue
        step = intp(math.floor(shift))
        inner_start, inner_end = max(start, -step), min(end, width - 1 - step)
        if inner_start >= inner_end:
            inner_start, inner_end = end, end
        for column in range(inner_start, inner_end, _STRETCH):
            n_bytes = 3 * min(_STRETCH, inner_end - column)
            place = 3 * (base + column)
            results = target[place : place + n_bytes]
            taps = source[place + 3 * step : place + 3 * step + n_bytes + 3]
            before, left = float64(column), float64(column + step) - 0.5
            for i in range(n_bytes):
                weight = before + _CENTERS[i] + shift - 0.5 - (left + _CENTERS[i])
                tap, right = float64(taps[i]), float64(taps[i + 3])
                results[i] = uint8(int32(tap + (right - tap) * weight))
        for side in range(2):
            first, last = (start, inner_start) if side == 0 else (inner_end, end)
            for column in range(first, last):
                x = (column + 0.5) + shift - 0.5
                place = 3 * (base + column)
                _pixel_beside_the_edge(source, x, float64(row), height, width, target, place)


@inlined_kernel
def _between_rows(words, shift, weight):
    """Interpolate one channel of two taps, int32; the upper one is in the low half of a word."""
    tap = float64(int32((words >> int64(shift)) & int64(255)))
    lower = float64(int32((words >> int64(shift + 32)) & int64(255)))
    return int32(tap + (lower - tap) * weight)


@kernel
def shear_y(image, factor, out, scratch):
    """Move each column up by factor * its center's distance from the left; factor: finite float64.

    The horizontal weight is 0.
    """
    height, width = intp(image.shape[0]), intp(image.shape[1])
    source, target = image.reshape(-1), out.reshape(-1)
    weights, results = scratch.view(float64), scratch[_PIECE : 2 * _PIECE]
    wide = float64(width)
    for row in range(height):
        down, base = row + 0.5, row * width
        start, end = _span(factor, down, 0.0, 0.0, float64(height), width)
        end = max(start, end)
        first, last = _span(factor, down, 0.0, 0.5, height - 0.5, width)
        # A word at the last pixel would extend beyond the image.
        inner_start, inner_end = max(start, first), min(end, last, width - 1)
        if inner_start >= inner_end:
            inner_start, inner_end = end, end
        for column in range(inner_start, inner_end, _PIECE):
            count = min(_PIECE, inner_end - column)
            for i in range(_whole_vectors(count)):
                x = float64(column + i)
                y = factor * (x + 0.5) + down - 0.5
                top = float64(int32(y))
                weights[i] = y - top
                scratch[_PIECE + i] = int64(int32(top * wide + x))
            for i in range(count):
                offset = 3 * scratch[_PIECE + i]
                upper = int64(word_at(source, offset)) & int64(0xFFFFFFFF)
                lower = int64(word_at(source, offset + 3 * width))
                scratch[_PIECE + i] = upper | (lower << int64(32))
            for i in range(_whole_vectors(count)):
                both, weight = scratch[_PIECE + i], weights[i]
                scratch[_PIECE + i] = _joined(
                    _between_rows(both, 0, weight),
                    _between_rows(both, 8, weight),
                    _between_rows(both, 16, weight),
                )
            _write_slots(target, base + column, count, results)
        _blacken(target, 3 * base, 3 * (base + start))
        _blacken(target, 3 * (base + end), 3 * (base + width))
        for side in range(2):
            first, last = (start, inner_start) if side == 0 else (inner_end, end)
            for column in range(first, last):
                y = factor * (column + 0.5) + down - 0.5
                place = 3 * (base + column)
                _pixel_beside_the_edge(source, float64(column), y, height, width, target, place)


@kernel
def translate_x(image, pixels, out, scratch):
    """Move the image left by a whole number of pixels; fill with black."""
    height, width = intp(image.shape[0]), intp(image.shape[1])
    source, target = image.reshape(-1), out.reshape(-1)
    shift = 3 * intp(min(max(pixels, -width), width))
    size, stride = 3 * height * width, 3 * width
    start, end = max(-shift, 0), stride - max(shift, 0)
    # All rows at once; then the pixels that came from a neighboring row are set to black.
    _copy_bytes(source, start + shift, target, start, size - stride + end)
    for row in range(height):
        _blacken(target, row * stride, row * stride + start)
        _blacken(target, row * stride + end, (row + 1) * stride)


@kernel
def translate_y(image, pixels, out, scratch):
    """Move the image up by a whole number of pixels; fill with black."""
    height, width = intp(image.shape[0]), intp(image.shape[1])
    source, target = image.reshape(-1), out.reshape(-1)
    shift = 3 * width * intp(min(max(pixels, -height), height))
    size = 3 * width * height
    start, end = max(-shift, 0), size - max(shift, 0)
    _blacken(target, 0, start)
    _copy_bytes(source, start + shift, target, start, end)
    _blacken(target, end, size)


# --- Enhancement ---------------------------------------------------------------------------------


@inlined_kernel
def _as_factor(factor):
    """Return a factor in float32, at most 512.

    From 256 on, every nonzero difference of two bytes leads outside 0..255. So the limit does not
    change the result, and the value before clipping fits an int32.
    """
    return float32(min(factor, 512.0))


@inlined_kernel
def _blended(degenerate, value, factor):
    """Return degenerate + factor * (value - degenerate), clipped to 0..255: float32 to int32.

    For a factor in 0..1 the result is between the two, so Pillow's unclipped case is the same.
    """
    blend = int32(degenerate + factor * (value - degenerate))
    blend = blend if blend > int32(0) else int32(0)
    return blend if blend < int32(255) else int32(255)


@inlined_kernel
def _gray(word):
    """Return Pillow's luma of a pixel in a word, int32: Rec. 601 in 65536ths, rounded."""
    red, green = int32(int32(19595) * _byte(word, 0)), int32(int32(38470) * _byte(word, 8))
    blue = int32(int32(7471) * _byte(word, 16))
    return int32(int32(int32(int32(red + green) + blue) + int32(32768)) >> int32(16))


@kernel
def color(image, factor, out, scratch):
    """Blend each pixel with its gray; factor: float64 >= 0, 1 keeps the image."""
    factor32 = _as_factor(factor)
    source, target, words = image.reshape(-1), out.reshape(-1), scratch.view(int32)
    n_pixels = intp(image.shape[0] * image.shape[1])
    for first in range(0, n_pixels, _PIECE):
        count = min(_PIECE, n_pixels - first)
        _read_pixels(source, first, count, scratch, words)
        for i in range(_PIECE):
            word = words[i]
            gray = float32(_gray(word))
            words[i] = _joined(
                _blended(gray, float32(_byte(word, 0)), factor32),
                _blended(gray, float32(_byte(word, 8)), factor32),
                _blended(gray, float32(_byte(word, 16)), factor32),
            )
        _write_words(target, first, count, scratch, words)


@kernel
def contrast(image, factor, out, scratch):
    """Blend each pixel with the mean gray of the image; factor: float64 >= 0."""
    factor32 = _as_factor(factor)
    source, target, words = image.reshape(-1), out.reshape(-1), scratch.view(int32)
    n_pixels = intp(image.shape[0] * image.shape[1])
    total = int64(0)
    for first in range(0, n_pixels, _PIECE):
        count = min(_PIECE, n_pixels - first)
        _read_pixels(source, first, count, scratch, words)
        for i in range(count, _PIECE):
            words[i] = int32(0)
        part = int32(0)
        for i in range(_PIECE):
            part = int32(part + _gray(words[i]))
        total += int64(part)
    gray = float32(int32(float64(total) / float64(n_pixels) + 0.5))
    for i in range(len(source)):
        target[i] = uint8(_blended(gray, float32(source[i]), factor32))


@kernel
def brightness(image, factor, out, scratch):
    """Blend each pixel with black; factor: float64 >= 0, 1 keeps the image."""
    factor32 = _as_factor(factor)
    source, target = image.reshape(-1), out.reshape(-1)
    for i in range(len(source)):
        target[i] = uint8(_blended(float32(0.0), float32(source[i]), factor32))


@inlined_kernel
def smoothed(window):
    """Divide a weighted sum of 3x3 bytes by 13 and round: int32, 0..3315, to int32, 0..255.

    This is (2 n + 13) // 26 as a product and a shift, which is exact for all 3316 sums.
    """
    twice = int32(int32(int32(2) * int32(window)) + int32(13))
    return int32(int32(twice * int32(20165)) >> int32(19))


@kernel
def sharpness(image, factor, out, scratch):
    """Blend each pixel with the weighted mean of its 3x3 window (center 5); factor >= 0.

    Border pixels stay, so an image of fewer than 3 rows or columns is copied.
    """
    factor32 = _as_factor(factor)
    height, width = intp(image.shape[0]), intp(image.shape[1])
    source, target, sums = image.reshape(-1), out.reshape(-1), scratch.view(uint16)
    stride = 3 * width
    if height < 3 or width < 3:
        _copy(image, out)
        return
    _copy_bytes(source, 0, target, 0, stride)
    _copy_bytes(source, (height - 1) * stride, target, (height - 1) * stride, height * stride)
    for row in range(1, height - 1):
        base = row * stride
        _copy_bytes(source, base, target, base, base + 3)
        _copy_bytes(source, base + stride - 3, target, base + stride - 3, base + stride)
        # Windows start at `start`; their centers are three bytes later.
        for start in range(base, base + stride - 6, _SUMS - 6):
            count = min(_SUMS - 6, base + stride - 6 - start)
            here = source[start : start + count + 6]
            above = source[start - stride : start - stride + count + 6]
            below = source[start + stride : start + stride + count + 6]
            results = target[start + 3 : start + 3 + count]
            for i in range(count + 6):
                sums[i] = uint16(uint16(uint16(above[i]) + uint16(here[i])) + uint16(below[i]))
            for i in range(count):
                window = int32(uint16(uint16(sums[i] + sums[i + 3]) + sums[i + 6]))
                window = int32(window + int32(int32(4) * int32(here[i + 3])))
                middle = float32(here[i + 3])
                results[i] = uint8(_blended(float32(smoothed(window)), middle, factor32))


# --- Severity to argument ------------------------------------------------------------------------
# All functions take level, float64 in [0.1, 10]; negative, the sign of signed arguments; height and
# width, int, in pixels; and return float64. The constants are those of AugMix and PixMix, where the
# maximum level is 10.


@inlined_kernel
def _signed(number, negative):
    """Return the number, or its opposite if negative."""
    return -number if negative else number


@inlined_kernel
def no_argument(level, negative, height, width):
    """Return 0, which is ignored."""
    return 0.0


@inlined_kernel
def posterize_bits(level, negative, height, width):
    """Return 4 - int(level * 4 / 10), 0..4."""
    return float64(4 - int64(level * 4 / 10))


@inlined_kernel
def solarize_threshold(level, negative, height, width):
    """Return 256 - int(level * 256 / 10), 0..254."""
    return float64(256 - int64(level * 256 / 10))


@inlined_kernel
def rotate_degrees(level, negative, height, width):
    """Return int(level * 30 / 10), whole degrees, -30..30."""
    return float64(_signed(int64(level * 30 / 10), negative))


@inlined_kernel
def shear_factor(level, negative, height, width):
    """Return level * 0.3 / 10, -0.3..0.3."""
    return _signed(level * 0.3 / 10, negative)


@inlined_kernel
def translate_columns(level, negative, height, width):
    """Return int(level * (width / 3) / 10), pixels."""
    return float64(_signed(int64(level * (width / 3) / 10), negative))


@inlined_kernel
def translate_rows(level, negative, height, width):
    """Return int(level * (height / 3) / 10), pixels."""
    return float64(_signed(int64(level * (height / 3) / 10), negative))


@inlined_kernel
def enhancement_factor(level, negative, height, width):
    """Return level * 1.8 / 10 + 0.1, 0.118..1.9."""
    return level * 1.8 / 10 + 0.1
