"""Elementary functions and random streams with the same bits on every CPU.

A chaos game magnifies the last bit of every step, so an image is reproducible on another machine
only if every operation is. Additions, products, quotients, square roots and fused multiply-adds are
exact by IEEE 754. Sines, logarithms and powers of a maths library are not, nor is code that the
compiler may contract or reorder. This package therefore uses its own polynomials, explicit ``fma``,
and no fast-math flags. These polynomials also vectorize, which library calls do not.

The elementary functions accept and return float32 scalars, and are inlined into the loops that call
them. The stated errors are the largest on a dense grid against float64; tests/test_numerics.py
checks them.

Randomness is an argument: a key of integers determines a state, and a state a stream. The streams
are a public interface: blake2b of the key seeds xoshiro256++ (Blackman & Vigna 2021,
https://prng.di.unimi.it/xoshiro256plusplus.c, public domain). numpy's distributions are not used,
because they may change between versions.
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from pixmix.compiling import fma, kernel

F = np.float32


def _floating_intrinsic(name: str, arguments: int) -> Any:
    """Expose the LLVM intrinsic ``llvm.<name>`` for equal floating-point arguments."""

    def typed(context: Any, *operands: Any) -> Any:
        if any(
            operand != operands[0] or operand not in (types.float32, types.float64)
            for operand in operands
        ):
            return None
        signature = operands[0](*operands)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            llvm_type = values[0].type
            function = builder.module.declare_intrinsic(
                f"llvm.{name}", [llvm_type], ir.FunctionType(llvm_type, [llvm_type] * arguments)
            )
            return builder.call(function, values)

        return signature, generate

    return typed


@intrinsic
def floor(typing_context: Any, x: Any) -> Any:
    """Return the largest integer that is at most x, as a float of the same type."""
    return _floating_intrinsic("floor", 1)(typing_context, x)


@intrinsic
def nearest(typing_context: Any, x: Any) -> Any:
    """Return the integer nearest to x (ties to even), as a float of the same type."""
    return _floating_intrinsic("rint", 1)(typing_context, x)


@intrinsic
def float_bits(typing_context: Any, x: Any) -> Any:
    """Return the bits of a float32 as int32."""
    if x != types.float32:
        return None

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def bits_float(typing_context: Any, bits: Any) -> Any:
    """Return the float32 with the given int32 bits."""
    if bits != types.int32:
        return None

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.int32), generate


PI = F(3.14159265)
HALF_PI = F(1.57079633)
TURN = F(6.28318531)
PER_TURN = F(0.159154943)
_HALF, _QUARTER, _ONE, _ZERO, _TWO = F(0.5), F(0.25), F(1.0), F(0.0), F(2.0)
# sin(2 pi u) = u * P(u^2) for |u| <= 1/4: Taylor to u^11, error 6e-8 at the end of the range.
_S0, _S1, _S2 = F(6.28318531), F(-41.3417023), F(81.6052493)
_S3, _S4, _S5 = F(-76.7058597), F(42.0586939), F(-15.0946426)


@kernel
def sine_of_turns(t):
    """Return sin(2 pi t), float32; absolute error under 3e-7 for abs(t) <= 1."""
    t = t - nearest(t)
    u = _QUARTER - abs(abs(t) - _QUARTER)
    square = u * u
    p = fma(_S5, square, _S4)
    p = fma(p, square, _S3)
    p = fma(p, square, _S2)
    p = fma(p, square, _S1)
    p = fma(p, square, _S0) * u
    return p if t >= _ZERO else -p


@kernel
def sine(x):
    """Return sin(x), x in radians, float32; absolute error under 1e-6 for abs(x) <= 8."""
    return sine_of_turns(x * PER_TURN)


@kernel
def cosine(x):
    """Return cos(x), x in radians, float32; absolute error under 1e-6 for abs(x) <= 8."""
    return sine_of_turns(fma(x, PER_TURN, _QUARTER))


# atan(q) = q * P(q^2) on [0, 1]: least-squares fit at Chebyshev nodes.
_ATAN = tuple(
    F(c)
    for c in (
        0.999999249,
        -0.33329538,
        0.199430812,
        -0.138920412,
        0.096016564,
        -0.0553816979,
        0.0215092542,
        -0.00396025723,
    )
)
_A0, _A1, _A2, _A3, _A4, _A5, _A6, _A7 = _ATAN


@kernel
def arctangent2(y, x):
    """Return atan2(y, x) in radians, (-pi, pi], float32; absolute error under 5e-7; 0 at (0, 0)."""
    ax, ay = abs(x), abs(y)
    low, high = min(ax, ay), max(ax, ay)
    q = low / (high if high > _ZERO else _ONE)
    s = q * q
    p = fma(_A7, s, _A6)
    p = fma(p, s, _A5)
    p = fma(p, s, _A4)
    p = fma(p, s, _A3)
    p = fma(p, s, _A2)
    p = fma(p, s, _A1)
    p = fma(p, s, _A0) * q
    p = HALF_PI - p if ay > ax else p
    p = PI - p if x < _ZERO else p
    return -p if y < _ZERO else p


# 2^f on [-1/2, 1/2]: Taylor in f ln 2 to the sixth power, relative error 2e-7.
_E1, _E2, _E3 = F(0.693147181), F(0.240226507), F(0.0555041087)
_E4, _E5, _E6 = F(0.00961812911), F(0.00133335581), F(0.000154035304)
_EXPONENT_LIMIT = F(126.0)
_LOG2_E = F(1.44269504)
_LN_2 = F(0.693147181)


@kernel
def exponential2(x):
    """Return 2^x, float32; relative error under 4e-7; x is clamped to [-126, 126]."""
    x = min(max(x, -_EXPONENT_LIMIT), _EXPONENT_LIMIT)
    whole = nearest(x)
    f = x - whole
    p = fma(_E6, f, _E5)
    p = fma(p, f, _E4)
    p = fma(p, f, _E3)
    p = fma(p, f, _E2)
    p = fma(p, f, _E1)
    p = fma(p, f, _ONE)
    return p * bits_float(np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)))


@kernel
def exponential(x):
    """Return e^x, float32; relative error under 1e-5 for abs(x) <= 80."""
    return exponential2(x * _LOG2_E)


_TINY = F(1.17549435e-38)
_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_MANTISSA = np.int32(0x007FFFFF)
# log2(m) = z * P(z^2), m in [sqrt(1/2), sqrt(2)], z = (m-1)/(m+1): the series of 2 atanh(z) / ln 2.
_L0, _L1, _L2, _L3, _L4 = (
    F(2.88539008),
    F(0.961796694),
    F(0.577078016),
    F(0.412198583),
    F(0.320598898),
)


@kernel
def logarithm2(x):
    """Return log2(x), float32; absolute error under 1e-6 near 1, relative error 2e-7 elsewhere.

    The result is -126 for x <= 0.
    """
    bits = float_bits(max(x, _TINY))
    shifted = np.int32(bits - _SQRT_HALF_BITS)
    exponent = np.int32(shifted >> np.int32(23))
    m = bits_float(np.int32(bits - np.int32(exponent << np.int32(23))))
    z = (m - _ONE) / (m + _ONE)
    s = z * z
    p = fma(_L4, s, _L3)
    p = fma(p, s, _L2)
    p = fma(p, s, _L1)
    p = fma(p, s, _L0)
    return fma(p, z, F(exponent))


@kernel
def power(base, exponent):
    """Return base^exponent for base >= 0, float32; relative error under 1e-5; 0 gives about 0."""
    return exponential2(logarithm2(base) * exponent)


MAX_FLOAT32 = (2 - 2**-23) * 2.0**127


def fits_float32(value: float) -> bool:
    """Return whether a number is finite in float32; False for NaN."""
    return abs(value) <= MAX_FLOAT32


Item = TypeVar("Item")

_WORD = np.uint64
_TO_UNIT = 1.0 / 9007199254740992.0  # 2^-53


def random_state(*key: int) -> NDArray[np.uint64]:
    """Return the generator state of a key; different keys give independent streams.

    Args:
        key: Integers of any size and sign; (1, 2) and (12,) differ.

    Returns:
        (4,) uint64, never all zero.
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
    """Advance the state, (4,) uint64, in place, and return 64 random bits (xoshiro256++)."""
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
    """A random stream for drawing a genome, as plain Python numbers.

    Args:
        key: Integers, as for ``random_state``.
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

    def integer(self, low: int, high: int) -> int:
        """Return a uniform integer from low to high, inclusive."""
        return low + int((high - low + 1) * self.unit())

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self.unit() < probability

    def choice(self, items: Sequence[Item]) -> Item:
        """Return one of the items, uniformly."""
        return items[int(len(items) * self.unit())]

    def weighted(self, items: Sequence[Item], weights: Sequence[float]) -> Item:
        """Return an item with probability proportional to its weight (>= 0, not all 0)."""
        mark = self.unit() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            mark -= weight
            if mark < 0:
                return item
        return items[-1]

    def sign(self) -> float:
        """Return -1.0 or 1.0 with equal probability."""
        return -1.0 if self.unit() < 0.5 else 1.0
