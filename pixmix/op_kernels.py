"""The compiled kernels of PixMix's thirteen operations, byte for byte those of Pillow 13.0.

A kernel takes `image` and `out`, two different (H, W, 3) C-contiguous uint8 arrays of the same
shape, any size from 1x1, and `scratch`, (SCRATCH_LENGTH,) int64, which may hold anything. It writes
every byte of `out`, never writes `image` and allocates nothing.

Where Pillow computes in floating point, the same sums are made here in the same order and
precision; no product is fused with a sum. https://github.com/python-pillow/Pillow, files
src/PIL/{Image,ImageOps,ImageEnhance}.py and src/libImaging/{Geometry,Blend,Filter,Convert}.c.
"""

# Compiled numbers have types of their own, which mypy's picture of numpy cannot tell apart.
# mypy: disable-error-code="arg-type, assignment, operator"

import math

import numpy as np

from pixmix.compiling import inlined_kernel, kernel

OPERATIONS = (
    "autocontrast",
    "equalize",
    "posterize",
    "rotate",
    "solarize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "color",
    "contrast",
    "brightness",
    "sharpness",
)
"""The place of a name is the code of its operation."""
STANDARD_OPERATIONS = 9
"""The first so many are PixMix's own; the last four overlap the corruptions of ImageNet-C."""
SCRATCH_LENGTH = 4096
"""Entries of int64 that a kernel may use."""

(
    AUTOCONTRAST,
    EQUALIZE,
    POSTERIZE,
    ROTATE,
    SOLARIZE,
    SHEAR_X,
    SHEAR_Y,
    TRANSLATE_X,
    TRANSLATE_Y,
    COLOR,
    CONTRAST,
    BRIGHTNESS,
    SHARPNESS,
) = range(len(OPERATIONS))


def rotation_entries(degrees):
    """Return cosine and sine of the matrix that Pillow's Image.rotate makes for an angle.

    degrees: finite float, counterclockwise. Two floats, rounded to 15 digits as Pillow does.
    """
    angle = -math.radians(degrees % 360.0)
    return round(math.cos(angle), 15), round(math.sin(angle), 15)


# Python's own round, which the compiler does not have: a table for the angles that are drawn.
_ROTATIONS = np.array([rotation_entries(float(degrees)) for degrees in range(360)])

# --- Tables --------------------------------------------------------------------------------------


@inlined_kernel
def _look_up(image, tables, out):
    """Replace each byte by its entry in the table of its channel; tables: (768,) uint8."""
    source, target = image.reshape(-1), out.reshape(-1)
    for i in range(0, len(source), 3):
        target[i] = tables[np.intp(source[i])]
        target[i + 1] = tables[np.intp(source[i + 1]) + 256]
        target[i + 2] = tables[np.intp(source[i + 2]) + 512]


@inlined_kernel
def _copy(image, out):
    """Copy all bytes."""
    source, target = image.reshape(-1), out.reshape(-1)
    for i in range(len(source)):
        target[i] = source[i]


@kernel
def autocontrast(image, out, scratch):
    """Stretch each channel to 0..255 linearly; a channel of one value stays."""
    tables = scratch[:96].view(np.uint8)
    low, high = scratch[96:192], scratch[192:288]
    source = image.reshape(-1)
    for channel in range(3):
        low[channel], high[channel] = 255, 0
    for i in range(0, len(source), 3):
        for channel in range(3):
            value = np.int64(source[i + channel])
            low[channel] = min(low[channel], value)
            high[channel] = max(high[channel], value)
    for channel in range(3):
        lowest, highest = low[channel], high[channel]
        if highest <= lowest:
            for value in range(256):
                tables[256 * channel + value] = value
        else:
            scale = 255.0 / np.float64(highest - lowest)
            offset = -np.float64(lowest) * scale
            for value in range(256):
                stretched = np.float64(value) * scale + offset
                tables[256 * channel + value] = np.uint8(min(max(stretched, 0.0), 255.0))
    _look_up(image, tables, out)


@kernel
def equalize(image, out, scratch):
    """Make the histogram of each channel as even as a table can; one value stays."""
    tables = scratch[:96].view(np.uint8)
    counts = scratch[96 : 96 + 768]
    source = image.reshape(-1)
    for i in range(768):
        counts[i] = 0
    for i in range(0, len(source), 3):
        for channel in range(3):
            counts[256 * channel + np.intp(source[i + channel])] += 1
    n_pixels = image.shape[0] * image.shape[1]
    for channel in range(3):
        last = 255
        while counts[256 * channel + last] == 0:
            last -= 1
        step = (n_pixels - counts[256 * channel + last]) // 255
        # A single value leaves nothing below the last: a step of 0 as well.
        reached = step // 2
        for value in range(256):
            place = 256 * channel + value
            tables[place] = np.uint8(value if step == 0 else min(reached // step, 255))
            reached += counts[place]
    _look_up(image, tables, out)


@kernel
def posterize(image, bits, out, scratch):
    """Keep the upper bits of each byte; bits: int, 0..8."""
    mask = np.uint8((0xFF00 >> bits) & 0xFF)
    source, target = image.reshape(-1), out.reshape(-1)
    for i in range(len(source)):
        target[i] = source[i] & mask


@kernel
def solarize(image, threshold, out, scratch):
    """Turn every byte from the threshold up into 255 less it; threshold: int, 0..256."""
    source, target = image.reshape(-1), out.reshape(-1)
    if threshold > 255:
        _copy(image, out)
        return
    first = np.uint8(threshold)
    for i in range(len(source)):
        value = source[i]
        target[i] = value if value < first else ~value


# --- Geometry ------------------------------------------------------------------------------------


@inlined_kernel
def _crossing(slope, shift, constant, limit, width):
    """Return the first column, 0..width, whose place has crossed a limit.

    The place of column x is slope * (x + 0.5) + shift + constant, float64, rounded after each step,
    hence monotone in x. It has crossed where it is >= limit if slope >= 0, where it is < limit if
    slope < 0. The guess may be off: the answer is found by trying.
    """
    guess = (limit - constant - shift) / slope - 0.5
    column = np.intp(0)
    if guess > 0.0:
        column = np.intp(min(guess, np.float64(width)))
    while column > 0 and ((slope * (column - 0.5) + shift + constant >= limit) == (slope >= 0.0)):
        column -= 1
    while column < width and (
        (slope * (column + 0.5) + shift + constant >= limit) != (slope >= 0.0)
    ):
        column += 1
    return column


@inlined_kernel
def _span(slope, shift, constant, low, high, width):
    """Return the first column whose place is in low <= place < high, and the one after the last."""
    if slope >= 0.0:
        start = _crossing(slope, shift, constant, low, width)
        end = _crossing(slope, shift, constant, high, width)
    else:
        start = _crossing(slope, shift, constant, high, width)
        end = _crossing(slope, shift, constant, low, width)
    return start, end


@inlined_kernel
def _affine(image, a, b, c, d, e, f, out):
    """Sample the picture at (a x + b y + c, d x + e y + f) bilinearly; black outside.

    x, y: the centre of an output pixel, 0.5 for the first.
    """
    height, width = np.intp(image.shape[0]), np.intp(image.shape[1])
    source, target = image.reshape(-1), out.reshape(-1)
    for row in range(height):
        across, down = b * (row + 0.5), e * (row + 0.5)
        start, end = _span(a, across, c, 0.0, np.float64(width), width)
        first, last = _span(d, down, f, 0.0, np.float64(height), width)
        start, end = max(start, first), min(end, last)
        end = max(start, end)
        base = row * width * 3
        for i in range(base, base + 3 * start):
            target[i] = 0
        for i in range(base + 3 * end, base + 3 * width):
            target[i] = 0
        for column in range(start, end):
            x = a * (column + 0.5) + across + c - 0.5
            y = d * (column + 0.5) + down + f - 0.5
            left, top = np.intp(math.floor(x)), np.intp(math.floor(y))
            dx, dy = x - left, y - top
            right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
            left, top = max(left, 0), max(top, 0)
            for channel in range(3):
                p = np.float64(source[(top * width + left) * 3 + channel])
                q = np.float64(source[(top * width + right) * 3 + channel])
                r = np.float64(source[(bottom * width + left) * 3 + channel])
                s = np.float64(source[(bottom * width + right) * 3 + channel])
                upper = p + (q - p) * dx
                lower = r + (s - r) * dx
                value = upper + (lower - upper) * dy
                target[base + 3 * column + channel] = np.uint8(np.int32(value))


@kernel
def rotate(image, cosine, sine, out, scratch):
    """Turn the picture about its centre; cosine, sine: `rotation_entries` of the angle.

    Pillow copies or transposes for multiples of 90 degrees. The matrix is whole there, every weight
    0, and the result the same.
    """
    x, y = image.shape[1] / 2, image.shape[0] / 2
    c = cosine * -x + sine * -y + x
    f = -sine * -x + cosine * -y + y
    # A cosine rounds to 1 before its sine rounds to 0.
    if cosine == 1.0 and sine == 0.0:
        _copy(image, out)
    else:
        _affine(image, cosine, sine, c, -sine, cosine, f, out)


@kernel
def shear_x(image, factor, out, scratch):
    """Move each row left by factor * its centre's height; factor: finite float64."""
    _affine(image, 1.0, factor, 0.0, 0.0, 1.0, 0.0, out)


@kernel
def shear_y(image, factor, out, scratch):
    """Move each column up by factor * its centre's place; factor: finite float64."""
    _affine(image, 1.0, 0.0, 0.0, factor, 1.0, 0.0, out)


@kernel
def translate_x(image, pixels, out, scratch):
    """Move the picture left by a whole number of pixels; black where nothing came."""
    height, width = np.intp(image.shape[0]), np.intp(image.shape[1])
    source, target = image.reshape(-1), out.reshape(-1)
    shift = np.intp(min(max(pixels, -width), width))
    stride = 3 * width
    start, end = 3 * max(-shift, 0), stride - 3 * max(shift, 0)
    for row in range(height):
        base = row * stride
        for i in range(base, base + start):
            target[i] = 0
        for i in range(base + start, base + end):
            target[i] = source[i + 3 * shift]
        for i in range(base + end, base + stride):
            target[i] = 0


@kernel
def translate_y(image, pixels, out, scratch):
    """Move the picture up by a whole number of pixels; black where nothing came."""
    height, width = np.intp(image.shape[0]), np.intp(image.shape[1])
    source, target = image.reshape(-1), out.reshape(-1)
    shift = np.intp(min(max(pixels, -height), height))
    stride = 3 * width
    start, end = stride * max(-shift, 0), stride * (height - max(shift, 0))
    for i in range(start):
        target[i] = 0
    for i in range(start, end):
        target[i] = source[i + stride * shift]
    for i in range(end, stride * height):
        target[i] = 0


# --- Enhancement ---------------------------------------------------------------------------------


@inlined_kernel
def _blended(degenerate, value, factor):
    """Return degenerate + factor * (value - degenerate), cut to 0..255: float32 to uint8.

    A factor in 0..1 stays between the two, so that Pillow's two ways of cutting are one here.
    """
    blend = degenerate + factor * (value - degenerate)
    blend = blend if blend > np.float32(0.0) else np.float32(0.0)
    blend = blend if blend < np.float32(255.0) else np.float32(255.0)
    return np.uint8(np.int32(blend))


@inlined_kernel
def _luma(red, green, blue):
    """Return Pillow's luma of three bytes: Rec. 601 in 65536ths, rounded; uint32."""
    return (
        np.uint32(19595) * np.uint32(red)
        + np.uint32(38470) * np.uint32(green)
        + np.uint32(7471) * np.uint32(blue)
        + np.uint32(32768)
    ) >> np.uint32(16)


@kernel
def color(image, factor, out, scratch):
    """Blend each pixel with its grey; factor: float64 >= 0, 1 leaves the picture."""
    factor32 = np.float32(factor)
    source, target = image.reshape(-1), out.reshape(-1)
    for i in range(0, len(source), 3):
        red, green, blue = source[i], source[i + 1], source[i + 2]
        grey = np.float32(np.int32(_luma(red, green, blue)))
        target[i] = _blended(grey, np.float32(red), factor32)
        target[i + 1] = _blended(grey, np.float32(green), factor32)
        target[i + 2] = _blended(grey, np.float32(blue), factor32)


@kernel
def contrast(image, factor, out, scratch):
    """Blend each pixel with the mean grey of the picture; factor: float64 >= 0."""
    factor32 = np.float32(factor)
    source, target = image.reshape(-1), out.reshape(-1)
    total = np.int64(0)
    for i in range(0, len(source), 3):
        total += np.int64(_luma(source[i], source[i + 1], source[i + 2]))
    n_pixels = image.shape[0] * image.shape[1]
    grey = np.float32(np.int32(np.float64(total) / np.float64(n_pixels) + 0.5))
    for i in range(len(source)):
        target[i] = _blended(grey, np.float32(source[i]), factor32)


@kernel
def brightness(image, factor, out, scratch):
    """Blend each pixel with black; factor: float64 >= 0, 1 leaves the picture."""
    factor32 = np.float32(factor)
    source, target = image.reshape(-1), out.reshape(-1)
    for i in range(len(source)):
        target[i] = _blended(np.float32(0.0), np.float32(source[i]), factor32)


@inlined_kernel
def smoothed(window):
    """Return a weighted sum of 3x3 bytes over 13, rounded: uint32, 0..3315, to uint32, 0..255."""
    return (np.uint32(2) * np.uint32(window) + np.uint32(13)) // np.uint32(26)


@kernel
def sharpness(image, factor, out, scratch):
    """Blend each pixel with the mean of its 3x3 window, itself counted 5 times; factor >= 0.

    The outermost pixels stay, so that a picture under 3 pixels in a direction is copied.
    """
    factor32 = np.float32(factor)
    height, width = np.intp(image.shape[0]), np.intp(image.shape[1])
    source, target = image.reshape(-1), out.reshape(-1)
    stride = 3 * width
    if height < 3 or width < 3:
        _copy(image, out)
        return
    for i in range(stride):
        target[i] = source[i]
        target[(height - 1) * stride + i] = source[(height - 1) * stride + i]
    for row in range(1, height - 1):
        base = row * stride
        for i in range(3):
            target[base + i] = source[base + i]
            target[base + stride - 3 + i] = source[base + stride - 3 + i]
        for i in range(base + 3, base + stride - 3):
            window = np.uint32(4) * np.uint32(source[i])
            for place in range(3):
                j = i + (place - 1) * stride
                window += np.uint32(source[j - 3])
                window += np.uint32(source[j])
                window += np.uint32(source[j + 3])
            smooth = np.float32(np.int32(smoothed(window)))
            target[i] = _blended(smooth, np.float32(source[i]), factor32)


# --- All of them ---------------------------------------------------------------------------------


@kernel
def apply_operation(code, argument, image, out, scratch):
    """Write an operation's picture into `out`.

    code: the place in OPERATIONS. argument, float64: posterize bits, 0..8; rotate degrees, whole;
    solarize threshold, 0..256; shear factor; translate pixels, whole; color, contrast, brightness
    and sharpness factor, >= 0. Ignored by autocontrast and equalize.
    """
    if code == AUTOCONTRAST:
        autocontrast(image, out, scratch)
    elif code == EQUALIZE:
        equalize(image, out, scratch)
    elif code == POSTERIZE:
        posterize(image, np.int64(argument), out, scratch)
    elif code == ROTATE:
        degrees = np.int64(argument) % 360
        rotate(image, _ROTATIONS[degrees, 0], _ROTATIONS[degrees, 1], out, scratch)
    elif code == SOLARIZE:
        solarize(image, np.int64(argument), out, scratch)
    elif code == SHEAR_X:
        shear_x(image, argument, out, scratch)
    elif code == SHEAR_Y:
        shear_y(image, argument, out, scratch)
    elif code == TRANSLATE_X:
        translate_x(image, np.int64(argument), out, scratch)
    elif code == TRANSLATE_Y:
        translate_y(image, np.int64(argument), out, scratch)
    elif code == COLOR:
        color(image, argument, out, scratch)
    elif code == CONTRAST:
        contrast(image, argument, out, scratch)
    elif code == BRIGHTNESS:
        brightness(image, argument, out, scratch)
    else:
        sharpness(image, argument, out, scratch)


# --- Severity to argument ------------------------------------------------------------------------
# level: float64 in [0.1, 10]; the constants are those of AugMix and PixMix, whose scale ends at 10.


@kernel
def posterize_bits(level):
    """Return the bits that a level leaves: 4 - int(level * 4 / 10), 0..4."""
    return 4 - np.int64(level * 4 / 10)


@kernel
def rotate_degrees(level, negative):
    """Return int(level * 30 / 10) whole degrees, less than 0 if negative; -30..30."""
    degrees = np.int64(level * 30 / 10)
    return -degrees if negative else degrees


@kernel
def solarize_threshold(level):
    """Return 256 - int(level * 256 / 10), 0..254."""
    return 256 - np.int64(level * 256 / 10)


@kernel
def shear_factor(level, negative):
    """Return level * 0.3 / 10, less than 0 if negative; -0.3..0.3."""
    factor = level * 0.3 / 10
    return -factor if negative else factor


@kernel
def translate_pixels(level, negative, side):
    """Return int(level * (side / 3) / 10) pixels, less than 0 if negative; side: int, pixels."""
    pixels = np.int64(level * (side / 3) / 10)
    return -pixels if negative else pixels


@kernel
def enhancement_factor(level):
    """Return level * 1.8 / 10 + 0.1, 0.118..1.9."""
    return level * 1.8 / 10 + 0.1


@kernel
def draw_argument(code, level, negative, height, width):
    """Return the argument, float64, that an operation takes at a level.

    code: the place in OPERATIONS; level: float64 in [0.1, 10]; negative: bool, the sign of those
    that have one; height, width: int, pixels.
    """
    if code == POSTERIZE:
        return np.float64(posterize_bits(level))
    if code == ROTATE:
        return np.float64(rotate_degrees(level, negative))
    if code == SOLARIZE:
        return np.float64(solarize_threshold(level))
    if code in (SHEAR_X, SHEAR_Y):
        return shear_factor(level, negative)
    if code == TRANSLATE_X:
        return np.float64(translate_pixels(level, negative, width))
    if code == TRANSLATE_Y:
        return np.float64(translate_pixels(level, negative, height))
    if code >= STANDARD_OPERATIONS:
        return enhancement_factor(level)
    return 0.0
