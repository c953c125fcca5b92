"""PixMix's thirteen operations on pictures, byte for byte what Pillow makes of them.

Every function takes an (H, W, 3) uint8 array of any size from 1x1, contiguous or not, and returns a
new one of the same shape; the array given is never written. Each docstring names the Pillow call
that it equals, `picture` being Image.fromarray(image).

The equality was tested against Pillow 13.0 of the x86-64 wheels. Its limits: a release of Pillow
may change its arithmetic, and a compiler that fuses a * b + c, as those of other architectures do,
can move the bytes of Pillow's own bilinear sampling and blending. These functions do not fuse: they
give the same bytes on every machine.

Errors: TypeError and ValueError as `check_picture` raises them, ValueError for an argument outside
its range.
"""

import math
from operator import index

import numpy as np
from numpy.typing import NDArray

from pixmix import op_kernels
from pixmix.op_kernels import (
    GEOMETRIC_OPERATIONS,
    OPERATIONS,
    SCRATCH_LENGTH,
    STANDARD_OPERATIONS,
    draw_argument,
    enhancement_factor,
    posterize_bits,
    rotate_degrees,
    rotation_entries,
    shear_factor,
    solarize_threshold,
    translate_pixels,
)
from pixmix.pictures import check_picture

__all__ = [
    "GEOMETRIC_OPERATIONS",
    "OPERATIONS",
    "STANDARD_OPERATIONS",
    "autocontrast",
    "brightness",
    "color",
    "contrast",
    "draw_argument",
    "enhancement_factor",
    "equalize",
    "posterize",
    "posterize_bits",
    "rotate",
    "rotate_degrees",
    "sharpness",
    "shear_factor",
    "shear_x",
    "shear_y",
    "solarize",
    "solarize_threshold",
    "translate_pixels",
    "translate_x",
    "translate_y",
]

Picture = NDArray[np.uint8]

_FACTOR_LIMIT = float(np.finfo(np.float32).max)


def autocontrast(image: Picture) -> Picture:
    """Stretch each channel to 0..255: ImageOps.autocontrast(picture)."""
    picture, out, scratch = _buffers(image)
    op_kernels.autocontrast(picture, out, scratch)
    return out


def equalize(image: Picture) -> Picture:
    """Make each channel's histogram even: ImageOps.equalize(picture)."""
    picture, out, scratch = _buffers(image)
    op_kernels.equalize(picture, out, scratch)
    return out


def posterize(image: Picture, bits: int) -> Picture:
    """Keep the upper bits of each byte: ImageOps.posterize(picture, bits).

    bits: 0..8. Pillow 13.0 refuses 0, which PixMix draws at level 10; it leaves black.
    """
    picture, out, scratch = _buffers(image)
    op_kernels.posterize(picture, _whole("bits", bits, 0, 8), out, scratch)
    return out


def rotate(image: Picture, degrees: float) -> Picture:
    """Turn counterclockwise about the centre: picture.rotate(degrees, Image.BILINEAR).

    degrees: any finite float. What was outside is black.
    """
    picture, out, scratch = _buffers(image)
    cosine, sine = rotation_entries(_finite("degrees", degrees))
    op_kernels.rotate(picture, cosine, sine, out, scratch)
    return out


def solarize(image: Picture, threshold: int) -> Picture:
    """Invert the bytes from a threshold up: ImageOps.solarize(picture, threshold).

    threshold: 0..256; 256 leaves the picture.
    """
    picture, out, scratch = _buffers(image)
    op_kernels.solarize(picture, _whole("threshold", threshold, 0, 256), out, scratch)
    return out


def shear_x(image: Picture, factor: float) -> Picture:
    """Move each row left by factor times its place, the black outside coming in.

    Equals picture.transform(picture.size, Image.AFFINE, (1, factor, 0, 0, 1, 0), Image.BILINEAR);
    factor: any finite float, pixels a row.
    """
    picture, out, scratch = _buffers(image)
    op_kernels.shear_x(picture, _finite("factor", factor), out, scratch)
    return out


def shear_y(image: Picture, factor: float) -> Picture:
    """Move each column up by factor times its place, the black outside coming in.

    Equals picture.transform(picture.size, Image.AFFINE, (1, 0, 0, factor, 1, 0), Image.BILINEAR);
    factor: any finite float, pixels a column.
    """
    picture, out, scratch = _buffers(image)
    op_kernels.shear_y(picture, _finite("factor", factor), out, scratch)
    return out


def translate_x(image: Picture, pixels: int) -> Picture:
    """Move the picture left by whole pixels, the black outside coming in.

    Equals picture.transform(picture.size, Image.AFFINE, (1, 0, pixels, 0, 1, 0), Image.BILINEAR);
    pixels: any whole number, less than 0 to the right.
    """
    picture, out, scratch = _buffers(image)
    width = picture.shape[1]
    pixels = _whole("pixels", pixels, -math.inf, math.inf)
    op_kernels.translate_x(picture, min(max(pixels, -width), width), out, scratch)
    return out


def translate_y(image: Picture, pixels: int) -> Picture:
    """Move the picture up by whole pixels, the black outside coming in.

    Equals picture.transform(picture.size, Image.AFFINE, (1, 0, 0, 0, 1, pixels), Image.BILINEAR);
    pixels: any whole number, less than 0 downwards.
    """
    picture, out, scratch = _buffers(image)
    height = picture.shape[0]
    pixels = _whole("pixels", pixels, -math.inf, math.inf)
    op_kernels.translate_y(picture, min(max(pixels, -height), height), out, scratch)
    return out


def color(image: Picture, factor: float) -> Picture:
    """Blend each pixel with its grey: ImageEnhance.Color(picture).enhance(factor).

    factor: from 0, grey, over 1, the picture itself, to more colour.
    """
    picture, out, scratch = _buffers(image)
    op_kernels.color(picture, _enhancement(factor), out, scratch)
    return out


def contrast(image: Picture, factor: float) -> Picture:
    """Blend with the picture's mean grey: ImageEnhance.Contrast(picture).enhance(factor).

    factor: from 0, flat grey, over 1, the picture itself, to more contrast.
    """
    picture, out, scratch = _buffers(image)
    op_kernels.contrast(picture, _enhancement(factor), out, scratch)
    return out


def brightness(image: Picture, factor: float) -> Picture:
    """Blend with black: ImageEnhance.Brightness(picture).enhance(factor).

    factor: from 0, black, over 1, the picture itself, to brighter.
    """
    picture, out, scratch = _buffers(image)
    op_kernels.brightness(picture, _enhancement(factor), out, scratch)
    return out


def sharpness(image: Picture, factor: float) -> Picture:
    """Blend with the smoothed picture: ImageEnhance.Sharpness(picture).enhance(factor).

    factor: from 0, smoothed, over 1, the picture itself, to sharper. The outermost pixels stay.
    """
    picture, out, scratch = _buffers(image)
    op_kernels.sharpness(picture, _enhancement(factor), out, scratch)
    return out


def _buffers(image: Picture) -> tuple[Picture, Picture, NDArray[np.int64]]:
    """Return the picture checked, where the result goes, and what the kernel may scribble on."""
    picture = check_picture(image)
    return picture, np.empty_like(picture), np.empty(SCRATCH_LENGTH, np.int64)


def _whole(name: str, value: int, low: float, high: float) -> int:
    try:
        number = index(value)
    except TypeError:
        raise TypeError(
            f"{name} is a whole number, not {value!r}; convert it with int({name})"
        ) from None
    if not low <= number <= high:
        raise ValueError(f"{name} {number} is outside {low}..{high}; cut it to that range")
    return number


def _finite(name: str, value: float) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} {number} is not finite; give a finite number")
    return number


def _enhancement(value: float) -> float:
    number = float(value)
    if not 0.0 <= number <= _FACTOR_LIMIT:
        raise ValueError(
            f"factor {number} is outside 0..{_FACTOR_LIMIT:.3g}; "
            "give 0 for the flat picture, 1 for the picture itself, more to exaggerate"
        )
    return number
