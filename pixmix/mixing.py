"""The two mixings of PixMix: add and multiply.

A mixing combines the image so far, x, with another image, y, both in [0, 1], by two weights a and
b. The result is clipped to [0, 1].

**add** is a weighted sum around mid-gray. Values are mapped to [-1, 1], where gray is 0; the sum
a x + b y is mapped back::

    add(x, y) = (a (2x - 1) + b (2y - 1) + 1) / 2

In [-1, 1] the sum has no bias: a gray pixel of y changes nothing, a bright one brightens and a dark
one darkens. On [0, 1], every b > 0 would brighten the image, and a + b > 1 would saturate it.

**multiply** is a weighted product around mid-gray. Values are mapped to [0, 2], where gray is 1,
the neutral factor; the weights are exponents; and the product is mapped back::

    multiply(x, y) = (2x)^a max(2y, 1e-37)^b / 2

The bound keeps the result finite for a black pixel of y and b < 0. This is not a geometric mean,
whose exponents sum to 1 and which is between the two images: here a + b need not be 1, a may exceed
1, b may be negative, the neutral value is gray instead of white, and the result may be brighter or
darker than both images.

**The weights.** A coin selects one of two branches. U and V are uniform on (0, 1), so that
U^(1/beta) ~ Beta(beta, 1) and 1 - V^(1/beta) ~ Beta(1, beta)::

    a = U^(1/beta)         b =   1 - V^(1/beta)       toward y:     a <= 1, b >= 0
    a = 2 - U^(1/beta)     b = -(1 - V^(1/beta))      away from y:  a >= 1, b <= 0

The first branch interpolates from x toward y. The second one extrapolates: it amplifies x and
subtracts y or divides by it. Over both branches the mean of a is 1, images become fainter as often
as more vivid, and y leaves positive and negative traces. A large beta keeps a near 1 and b near 0:
the mean of abs(b) is 1 / (beta + 1), so beta = 3 mixes in a quarter of y, and beta = 4 a fifth.

All functions take float32 or uint8 images (a byte v stands for v / 255), do not modify them, and
are within 1e-6 of these formulas in float64 for a and b rounded to float32. For a uint8 y, the
powers are looked up in a table of 256 entries.

Source: Hendrycks et al., "PixMix", CVPR 2022, section 3 and appendix; formulas as in
github.com/andyzoujm/pixmix at f867e87.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixmix.compiling import fma, inlined_kernel, kernel

F = np.float32
Image = NDArray[np.float32] | NDArray[np.uint8]

MIXINGS = ("add", "multiply")
"""The names of the mixings; the position of a name is its code."""
ADD, MULTIPLY = range(len(MIXINGS))

LEVELS = 256
_ZERO, _HALF, _ONE, _TWO = F(0), F(0.5), F(1), F(2)
_WHITE = F(255)
_MIN_FACTOR = F(0.5e-37)
"""Half of 1e-37: the power's base is twice its argument."""

# --- powers --------------------------------------------------------------------------------------

_MAGNIFY = F(2.0**64)
_NORMAL = F(2.0**-62)
_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_MANTISSA_BITS = np.int32(23)
_BIAS = np.int32(127)
# Adding and subtracting 3 * 2^22 rounds to a whole number; the sum's low bits hold it.
_ROUND = F(12582912.0)
_LOWEST, _HIGHEST = F(-126), F(127)
# log2(1 + f) = f * P(f) on [sqrt(1/2) - 1, sqrt(2) - 1], fitted by weighted least squares to an
# absolute error of 5e-8; 9e-8 with coefficients and steps in float32.
_L0, _L1, _L2 = F(1.4426947832107544), F(-0.7213571667671204), F(0.48093944787979126)
_L3, _L4, _L5 = F(-0.36008718609809875), F(0.2867075502872467), F(-0.2500692903995514)
_L6, _L7 = F(0.2368897795677185), F(-0.14574295282363892)
# 2^f on [-1/2, 1/2], relative error 2e-9, fitted in the same way.
_E0, _E1, _E2 = F(1.0), F(0.6931471824645996), F(0.24022646248340607)
_E3, _E4 = F(0.05550328642129898), F(0.009618489071726799)
_E5, _E6 = F(0.0013399930903688073), F(0.0001534580806037411)


@inlined_kernel
def _power_of_bits(bits, offset, exponent, shift):
    """Return (v 2^offset)^exponent * 2^shift for the normal float v > 0 with these bits."""
    shifted = np.int32(bits - _SQRT_HALF_BITS)
    whole_bits = np.int32(shifted >> _MANTISSA_BITS)
    mantissa = np.int32(bits - np.int32(whole_bits << _MANTISSA_BITS)).view(np.float32)
    whole = F(whole_bits) + offset
    f = mantissa - _ONE
    p = fma(_L7, f, _L6)
    p = fma(p, f, _L5)
    p = fma(p, f, _L4)
    p = fma(p, f, _L3)
    p = fma(p, f, _L2)
    p = fma(p, f, _L1)
    p = fma(p, f, _L0) * f
    n = (fma(exponent, whole, exponent * p) + _ROUND) - _ROUND
    g = fma(exponent, p, fma(exponent, whole, -n))
    q = fma(_E6, g, _E5)
    q = fma(q, g, _E4)
    q = fma(q, g, _E3)
    q = fma(q, g, _E2)
    q = fma(q, g, _E1)
    q = fma(q, g, _E0)
    scale = min(max(n + shift, _LOWEST), _HIGHEST)
    bits_of_scale = np.int32(np.int32(scale) + _BIAS) << _MANTISSA_BITS
    return q * np.int32(bits_of_scale).view(np.float32)


@inlined_kernel
def scaled_power(x, exponent, shift):
    """Return (2x)^exponent * 2^shift for x > 0, in float32; relative error below 3e-7.

    x: float32 in (0, 1.7e38), including subnormals. exponent: float32. shift: whole float32. The
    result is clamped to [2^-126, 2^128) by its exponent. The whole part of the logarithm times the
    exponent has a single rounding, by `fma`, so the error does not grow with the logarithm.
    """
    small = x < _NORMAL
    bits = np.float32(x * _MAGNIFY if small else x).view(np.int32)
    # The offset is one more, for 2x instead of x.
    return _power_of_bits(bits, F(-63) if small else _ONE, exponent, shift)


_NO_SHIFT = F(0)


@inlined_kernel
def power(base, exponent):
    """Return base^exponent for 2.4e-38 < base < 3e38, float32; relative error below 3e-7."""
    return scaled_power(base * _HALF, exponent, _NO_SHIFT)


# The power of x may be tiny while that of y is huge, or the reverse. They are scaled by 2^64 and
# 2^-64, so that neither leaves float32 before they are multiplied.
_UP, _DOWN = F(64), F(-64)


@inlined_kernel
def other_power(y, b):
    """Return max(2y, 1e-37)^b * 2^-64 for `times_power`; y in [0, 1], float32."""
    # Never subnormal, so it needs no scaling.
    bits = np.float32(max(y, _MIN_FACTOR)).view(np.int32)
    return _power_of_bits(bits, _ONE, b, _DOWN)


@inlined_kernel
def times_power(x, a, power_of_other):
    """Return (2x)^a * power_of_other * 2^64 / 2, x in [0, 1], a >= 0, float32, not clipped."""
    own = scaled_power(max(x, _MIN_POSITIVE), a, _UP)
    own = _POWER_OF_ZERO if x == _ZERO and a > _ZERO else own
    return own * power_of_other * _HALF


_MIN_POSITIVE = F(1.4e-45)
_POWER_OF_ZERO = F(0)


@inlined_kernel
def clipped(x):
    """Return x within [0, 1]."""
    return min(max(x, _ZERO), _ONE)


@inlined_kernel
def added(x, y, a, b):
    """Return add(x, y) in float32, not clipped, in the order of the formula.

    No step is fused, so that it equals the released code's float32 bit for bit.
    """
    return (a * (_TWO * x - _ONE) + b * (_TWO * y - _ONE) + _ONE) * _HALF


# --- images --------------------------------------------------------------------------------------


@kernel
def fill_powers(table, b):
    """Fill table, (256,) float32, with `other_power` of y = v / 255 and b, float32."""
    for value in range(LEVELS):
        table[value] = other_power(F(value) / _WHITE, b)


@inlined_kernel
def look_up(table, images, start, n, out):
    """Write table[v] of n bytes from `start` on to the beginning of out; images: flat uint8."""
    # Unsigned, because the check for negative indices would prevent vectorization.
    first = np.uint64(start)
    for j in range(np.uint64(n)):
        out[j] = table[images[first + j]]


@inlined_kernel
def to_unit(images, start, n, out):
    """Write v / 255 of n bytes from `start` on to the beginning of out; images: flat uint8."""
    first = np.uint64(start)
    for j in range(np.uint64(n)):
        out[j] = F(images[first + j]) / _WHITE


@inlined_kernel
def mix_values(x, n, mixing, a, b, other, out):
    """Mix y into the first n values of x, and write the clipped result to out.

    x: float32 in [0, 1]. mixing: code; ValueError for an unknown one. a, b: float32. other:
    float32, y in [0, 1] for ADD, `other_power` of y and b for MULTIPLY. out: float32, not the
    memory of x, because in-place loops are not vectorized.
    """
    if mixing == ADD:
        for j in range(n):
            out[j] = clipped(added(x[j], other[j], a, b))
    elif mixing == MULTIPLY:
        for j in range(n):
            out[j] = clipped(times_power(x[j], a, other[j]))
    else:
        raise ValueError("unknown code of a mixing")


_BLOCK = 4098
"""Values mixed at a time; two buffers of them fit into a core's L1 cache."""


@kernel
def _mix(x, levels, y, out, mixing, a, b):
    """Mix two images: out = mixing(x, y), all flat and of the same length.

    x, out: float32. levels: y as uint8, or empty; y: as float32 if levels is empty.
    """
    table, buffer = np.empty(LEVELS, np.float32), np.empty(_BLOCK, np.float32)
    eight_bit = len(levels) > 0
    if eight_bit and mixing == MULTIPLY:
        fill_powers(table, b)
    for start in range(0, len(x), _BLOCK):
        n = min(_BLOCK, len(x) - start)
        source, target = x[start : start + n], out[start : start + n]
        if eight_bit:
            if mixing == MULTIPLY:
                look_up(table, levels, start, n, buffer)
            else:
                to_unit(levels, start, n, buffer)
            mix_values(source, n, mixing, a, b, buffer, target)
        elif mixing == MULTIPLY:
            values = y[start : start + n]
            # Written to the buffer, since the loop is only vectorized if it cannot alias y.
            for j in range(n):
                buffer[j] = other_power(values[j], b)
            mix_values(source, n, mixing, a, b, buffer, target)
        else:
            mix_values(source, n, mixing, a, b, y[start : start + n], target)


_DTYPES = (np.dtype(np.float32), np.dtype(np.uint8))
_NO_LEVELS, _NO_VALUES = np.empty(0, np.uint8), np.empty(0, np.float32)


def _flat(image: NDArray[Any]) -> NDArray[Any]:
    """Flatten an image, and copy it if it is read-only, for which no kernel is compiled."""
    values = image.reshape(-1)
    return values if values.flags.writeable else values.copy()


def _mixed(mixing: int, x: Image, y: Image, a: float, b: float) -> NDArray[np.float32]:
    """Validate two images and mix them."""
    for name, image in (("x", x), ("y", y)):
        if not isinstance(image, np.ndarray):
            raise TypeError(
                f"{name} is {type(image).__name__}; pass an array: numpy.asarray({name})"
            )
        if image.dtype not in _DTYPES:
            raise TypeError(
                f"{name} has dtype {image.dtype}; pass uint8, or float32 in [0, 1] "
                f"({name}.astype(np.float32))"
            )
        if image.ndim == 0 or image.shape[-1] != 3:
            raise ValueError(
                f"{name} has shape {image.shape}; its last axis must be red, green and blue"
            )
    if x.shape != y.shape:
        raise ValueError(
            f"x has shape {x.shape} and y {y.shape}; crop the larger one to the other's shape"
        )
    out = np.empty(x.shape, F)
    eight_bit = y.dtype == _DTYPES[1]
    _mix(
        _flat(x / _WHITE if x.dtype == _DTYPES[1] else x),
        _flat(y) if eight_bit else _NO_LEVELS,
        _NO_VALUES if eight_bit else _flat(y),
        out.reshape(-1),
        mixing,
        F(a),
        F(b),
    )
    return out


def add(x: Image, y: Image, a: float, b: float) -> NDArray[np.float32]:
    """Return (a (2x - 1) + b (2y - 1) + 1) / 2, clipped to [0, 1].

    Args:
        x: (..., 3) float32 in [0, 1], or uint8.
        y: float32 in [0, 1] or uint8, of x's shape.
        a: weight of x; PixMix draws 0 to 2.
        b: weight of y; PixMix draws -1 to 1.

    Returns:
        A new float32 array of x's shape, equal bit for bit to the formula in numpy's float32.

    Raises:
        TypeError: if x or y is not an array of float32 or uint8.
        ValueError: if the shapes differ, the last axis is not 3, or a weight is not finite.
    """
    for name, weight in (("a", a), ("b", b)):
        if not math.isfinite(weight):
            raise ValueError(f"{name} is {weight}; pass a finite weight")
    return _mixed(ADD, x, y, a, b)


def multiply(x: Image, y: Image, a: float, b: float) -> NDArray[np.float32]:
    """Return (2x)^a max(2y, 1e-37)^b / 2, clipped to [0, 1]; within 1e-6 of float64.

    Args:
        x: (..., 3) float32 in [0, 1], or uint8.
        y: float32 in [0, 1] or uint8, of x's shape.
        a: exponent of x, 0 to 2, rounded to float32.
        b: exponent of y, -1 to 1, rounded to float32.

    Returns:
        A new float32 array of x's shape.

    Raises:
        TypeError: if x or y is not an array of float32 or uint8.
        ValueError: if the shapes differ, the last axis is not 3, or an exponent is out of range.
    """
    # Larger exponents could overflow float32 in a product of powers.
    for name, value, minimum, maximum in (("a", a, 0, 2), ("b", b, -1, 1)):
        if not minimum <= value <= maximum:
            raise ValueError(f"{name} is {value}; pass an exponent from {minimum} to {maximum}")
    return _mixed(MULTIPLY, x, y, a, b)
