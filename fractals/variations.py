"""The variations of Draves & Reckase: plane maps applied to arrays of orbits.

To add a variation, write a function and a row of ``VARIATIONS``, the only list of them.

Every loop runs over slices of structure-of-arrays orbits, so that it vectorizes. Formulas: S.
Draves and E. Reckase, "The Fractal Flame Algorithm" (2003, revised 2008), appendix, with its theta
= atan2(x, y) and phi = atan2(y, x). Formulas that use the map's own affine coefficients (waves,
popcorn, rings, fan) have parameters instead, so that a variation is a function of the point alone.

Arguments of the functions:

* x, y: (n,) float32, the point after the map's affine part
* out_x, out_y: (n,) float32, the sums to which the variation is added
* w: float32, the variation's weight
* p: (4,) float32, its parameters
* noise: (n,) uint32, one xorshift state per orbit, advanced in place; only if it branches at random
"""

import inspect
from typing import Any, NamedTuple

import numpy as np

from fractals.numerics import PI, TURN, F, arctangent2, cosine, exponential, floor, power, sine
from pixmix.compiling import kernel, merged_kernel

_ZERO, _HALF, _ONE, _TWO, _THREE, _FOUR = F(0), F(0.5), F(1), F(2), F(3), F(4)
_EPSILON = F(1e-10)
_PER_PI = F(0.318309886)
_PER_2_24 = F(5.9604645e-8)
_U5, _U8, _U13, _U17 = np.uint32(5), np.uint32(8), np.uint32(13), np.uint32(17)


@kernel
def _inverse_square(x, y):
    return _ONE / (x * x + y * y + _EPSILON)


@kernel
def _radius(x, y):
    return np.sqrt(x * x + y * y + _EPSILON)


@kernel
def next_noise(state):
    """Return the next xorshift32 state (Marsaglia 2003), uint32; 0 stays 0."""
    state = np.uint32(state ^ np.uint32(state << _U13))
    state = np.uint32(state ^ np.uint32(state >> _U17))
    return np.uint32(state ^ np.uint32(state << _U5))


@kernel
def noise_unit(state):
    """Return the upper 24 bits of a noise state as a float32 in [0, 1)."""
    return F(np.int32(state >> _U8)) * _PER_2_24


@merged_kernel
def linear(x, y, out_x, out_y, w):
    """V0: (x, y)."""
    for i in range(len(x)):
        out_x[i] += w * x[i]
        out_y[i] += w * y[i]


@merged_kernel
def sinusoidal(x, y, out_x, out_y, w):
    """V1: (sin x, sin y)."""
    for i in range(len(x)):
        out_x[i] += w * sine(x[i])
        out_y[i] += w * sine(y[i])


@merged_kernel
def spherical(x, y, out_x, out_y, w):
    """V2: (x, y) / r^2, the inversion in the unit circle."""
    for i in range(len(x)):
        q = w * _inverse_square(x[i], y[i])
        out_x[i] += q * x[i]
        out_y[i] += q * y[i]


@merged_kernel
def swirl(x, y, out_x, out_y, w):
    """V3: the point turned by r^2."""
    for i in range(len(x)):
        u, v = x[i], y[i]
        square = u * u + v * v
        s, c = sine(square), cosine(square)
        out_x[i] += w * (u * s - v * c)
        out_y[i] += w * (u * c + v * s)


@merged_kernel
def horseshoe(x, y, out_x, out_y, w):
    """V4: ((x - y)(x + y), 2 x y) / r, the angle doubled."""
    for i in range(len(x)):
        u, v = x[i], y[i]
        q = w / _radius(u, v)
        out_x[i] += q * (u - v) * (u + v)
        out_y[i] += q * _TWO * u * v


@merged_kernel
def polar(x, y, out_x, out_y, w):
    """V5: (theta / pi, r - 1)."""
    for i in range(len(x)):
        u, v = x[i], y[i]
        out_x[i] += w * arctangent2(u, v) * _PER_PI
        out_y[i] += w * (_radius(u, v) - _ONE)


@merged_kernel
def handkerchief(x, y, out_x, out_y, w):
    """V6: r (sin(theta + r), cos(theta - r))."""
    for i in range(len(x)):
        u, v = x[i], y[i]
        r, t = _radius(u, v), arctangent2(u, v)
        out_x[i] += w * r * sine(t + r)
        out_y[i] += w * r * cosine(t - r)


@merged_kernel
def heart(x, y, out_x, out_y, w):
    """V7: r (sin(theta r), -cos(theta r))."""
    for i in range(len(x)):
        u, v = x[i], y[i]
        r = _radius(u, v)
        t = arctangent2(u, v) * r
        out_x[i] += w * r * sine(t)
        out_y[i] -= w * r * cosine(t)


@merged_kernel
def disc(x, y, out_x, out_y, w):
    """V8: theta / pi (sin(pi r), cos(pi r))."""
    for i in range(len(x)):
        u, v = x[i], y[i]
        r, t = PI * _radius(u, v), w * arctangent2(u, v) * _PER_PI
        out_x[i] += t * sine(r)
        out_y[i] += t * cosine(r)


@merged_kernel
def spiral(x, y, out_x, out_y, w):
    """V9: (cos theta + sin r, sin theta - cos r) / r."""
    for i in range(len(x)):
        u, v = x[i], y[i]
        r = _radius(u, v)
        q = _ONE / r
        out_x[i] += w * q * (v * q + sine(r))
        out_y[i] += w * q * (u * q - cosine(r))


@merged_kernel
def hyperbolic(x, y, out_x, out_y, w):
    """V10: (sin theta / r, r cos theta) = (x / r^2, y)."""
    for i in range(len(x)):
        u, v = x[i], y[i]
        out_x[i] += w * u * _inverse_square(u, v)
        out_y[i] += w * v


@merged_kernel
def diamond(x, y, out_x, out_y, w):
    """V11: (sin theta cos r, cos theta sin r)."""
    for i in range(len(x)):
        u, v = x[i], y[i]
        r = _radius(u, v)
        q = w / r
        out_x[i] += q * u * cosine(r)
        out_y[i] += q * v * sine(r)


@merged_kernel
def ex(x, y, out_x, out_y, w):
    """V12: r (a^3 + b^3, a^3 - b^3), a = sin(theta + r), b = cos(theta - r)."""
    for i in range(len(x)):
        u, v = x[i], y[i]
        r, t = _radius(u, v), arctangent2(u, v)
        a, b = sine(t + r), cosine(t - r)
        a, b = a * a * a * r, b * b * b * r
        out_x[i] += w * (a + b)
        out_y[i] += w * (a - b)


@merged_kernel
def julia(x, y, out_x, out_y, w, noise):
    """V13: a complex square root, one of two at random (of (y, x): theta is atan2(x, y))."""
    for i in range(len(x)):
        u, v = x[i], y[i]
        r = _radius(u, v)
        # sqrt of v + iu without an angle: the half-angle formula gives the larger part, and
        # 2 a b = u the smaller one, because r - |v| would cancel near the axis.
        larger = np.sqrt((r + abs(v)) * _HALF)
        smaller = _HALF * abs(u) / larger
        a = larger if v >= _ZERO else smaller
        b = smaller if v >= _ZERO else larger
        b = -b if u < _ZERO else b
        noise[i] = next_noise(noise[i])
        side = w if noise_unit(noise[i]) < _HALF else -w
        out_x[i] += side * a
        out_y[i] += side * b


@merged_kernel
def bent(x, y, out_x, out_y, w):
    """V14: x doubled where negative, y halved where negative."""
    for i in range(len(x)):
        u, v = x[i], y[i]
        out_x[i] += w * (u if u >= _ZERO else _TWO * u)
        out_y[i] += w * (v if v >= _ZERO else _HALF * v)


@merged_kernel
def waves(x, y, out_x, out_y, w, p):
    """V15: (x + p0 sin(y p1), y + p2 sin(x p3))."""
    p0, p1, p2, p3 = p[0], p[1], p[2], p[3]
    for i in range(len(x)):
        u, v = x[i], y[i]
        out_x[i] += w * (u + p0 * sine(v * p1))
        out_y[i] += w * (v + p2 * sine(u * p3))


@merged_kernel
def fisheye(x, y, out_x, out_y, w):
    """V16: 2 (y, x) / (r + 1)."""
    for i in range(len(x)):
        u, v = x[i], y[i]
        q = w * _TWO / (_radius(u, v) + _ONE)
        out_x[i] += q * v
        out_y[i] += q * u


@merged_kernel
def popcorn(x, y, out_x, out_y, w, p):
    """V17: (x + p0 sin(tan 3y), y + p1 sin(tan 3x))."""
    p0, p1 = p[0], p[1]
    for i in range(len(x)):
        u, v = x[i], y[i]
        out_x[i] += w * (u + p0 * sine(_tangent(_THREE * v)))
        out_y[i] += w * (v + p1 * sine(_tangent(_THREE * u)))


@kernel
def _tangent(t):
    c = cosine(t)
    c = c if abs(c) > F(1e-3) else F(1e-3)
    return sine(t) / c


@merged_kernel
def exponential_variation(x, y, out_x, out_y, w):
    """V18: exp(x - 1) (cos(pi y), sin(pi y))."""
    for i in range(len(x)):
        e, t = w * exponential(min(x[i] - _ONE, F(10))), PI * y[i]
        out_x[i] += e * cosine(t)
        out_y[i] += e * sine(t)


@merged_kernel
def power_variation(x, y, out_x, out_y, w):
    """V19: r^(sin theta) (cos theta, sin theta)."""
    for i in range(len(x)):
        u, v = x[i], y[i]
        r = _radius(u, v)
        q = _ONE / r
        e = w * power(r, u * q)
        out_x[i] += e * v * q
        out_y[i] += e * u * q


@merged_kernel
def cosine_variation(x, y, out_x, out_y, w):
    """V20: the complex cosine, (cos(pi x) cosh y, -sin(pi x) sinh y)."""
    for i in range(len(x)):
        t = PI * x[i]
        e = exponential(min(max(y[i], F(-10)), F(10)))
        inverse = _ONE / e
        out_x[i] += w * cosine(t) * _HALF * (e + inverse)
        out_y[i] -= w * sine(t) * _HALF * (e - inverse)


@merged_kernel
def rings(x, y, out_x, out_y, w, p):
    """V21: ((r + q) mod 2q - q + r (1 - q)) (cos theta, sin theta), q = p0 > 0."""
    q = p[0]
    twice = _TWO * q
    per_twice = _ONE / twice
    for i in range(len(x)):
        u, v = x[i], y[i]
        r = _radius(u, v)
        shifted = r + q
        folded = shifted - twice * floor(shifted * per_twice)
        e = w * (folded - q + r * (_ONE - q)) / r
        out_x[i] += e * v
        out_y[i] += e * u


@merged_kernel
def fan(x, y, out_x, out_y, w, p):
    """V22: rotated by half a blade, alternately left and right; blade width p0 > 0, offset p1."""
    blade, offset = p[0], p[1]
    per_blade, half = _ONE / p[0], _HALF * p[0]
    c, s = cosine(half), sine(half)
    for i in range(len(x)):
        u, v = x[i], y[i]
        t = arctangent2(u, v) + offset
        t = t - blade * floor(t * per_blade)
        turned = -s if t > half else s
        # r (cos(theta +- half), sin(theta +- half)), by the addition theorems.
        out_x[i] += w * (v * c - u * turned)
        out_y[i] += w * (u * c + v * turned)


@merged_kernel
def blob(x, y, out_x, out_y, w, p):
    """V23: the radius scaled by p0 to p1, in p2 lobes."""
    low, span, lobes = p[0], (p[1] - p[0]) * _HALF, p[2]
    for i in range(len(x)):
        u, v = x[i], y[i]
        e = w * (low + span * (sine(lobes * arctangent2(u, v)) + _ONE))
        out_x[i] += e * v
        out_y[i] += e * u


@merged_kernel
def pdj(x, y, out_x, out_y, w, p):
    """V24 (Peter de Jong): (sin(p0 y) - cos(p1 x), sin(p2 x) - cos(p3 y))."""
    p0, p1, p2, p3 = p[0], p[1], p[2], p[3]
    for i in range(len(x)):
        u, v = x[i], y[i]
        out_x[i] += w * (sine(p0 * v) - cosine(p1 * u))
        out_y[i] += w * (sine(p2 * u) - cosine(p3 * v))


@merged_kernel
def eyefish(x, y, out_x, out_y, w):
    """V27: 2 (x, y) / (r + 1)."""
    for i in range(len(x)):
        u, v = x[i], y[i]
        q = w * _TWO / (_radius(u, v) + _ONE)
        out_x[i] += q * u
        out_y[i] += q * v


@merged_kernel
def bubble(x, y, out_x, out_y, w):
    """V28: 4 (x, y) / (r^2 + 4)."""
    for i in range(len(x)):
        u, v = x[i], y[i]
        q = w * _FOUR / (u * u + v * v + _FOUR)
        out_x[i] += q * u
        out_y[i] += q * v


@merged_kernel
def cylinder(x, y, out_x, out_y, w):
    """V29: (sin x, y)."""
    for i in range(len(x)):
        out_x[i] += w * sine(x[i])
        out_y[i] += w * y[i]


@merged_kernel
def perspective(x, y, out_x, out_y, w, p):
    """V30: p1 / (p1 - y sin p0) (x, y cos p0)."""
    s, c, distance = sine(p[0]), cosine(p[0]), p[1]
    for i in range(len(x)):
        below = distance - y[i] * s
        q = w * distance / (below if abs(below) > F(1e-3) else F(1e-3))
        out_x[i] += q * x[i]
        out_y[i] += q * y[i] * c


@merged_kernel
def julian(x, y, out_x, out_y, w, p, noise):
    """V32: one of p0 complex p0-th roots, at random; radius to the p1 / p0."""
    roots, exponent, per_root = abs(p[0]), _HALF * p[1] / p[0], _ONE / p[0]
    for i in range(len(x)):
        u, v = x[i], y[i]
        noise[i] = next_noise(noise[i])
        turn = TURN * floor(roots * noise_unit(noise[i]))
        t = (arctangent2(v, u) + turn) * per_root
        e = w * power(u * u + v * v + _EPSILON, exponent)
        out_x[i] += e * cosine(t)
        out_y[i] += e * sine(t)


@merged_kernel
def juliascope(x, y, out_x, out_y, w, p, noise):
    """V33: like julian, with every other root mirrored."""
    roots, exponent, per_root = abs(p[0]), _HALF * p[1] / p[0], _ONE / p[0]
    for i in range(len(x)):
        u, v = x[i], y[i]
        noise[i] = next_noise(noise[i])
        root = floor(roots * noise_unit(noise[i]))
        odd = root - _TWO * floor(root * _HALF)
        angle = arctangent2(v, u)
        t = ((angle if odd < _HALF else -angle) + TURN * root) * per_root
        e = w * power(u * u + v * v + _EPSILON, exponent)
        out_x[i] += e * cosine(t)
        out_y[i] += e * sine(t)


@merged_kernel
def blur(x, y, out_x, out_y, w, noise):
    """V34: a point of the unit disc at random, dense at its centre."""
    for i in range(len(x)):
        first = next_noise(noise[i])
        noise[i] = next_noise(first)
        e, t = w * noise_unit(first), TURN * noise_unit(noise[i])
        out_x[i] += e * cosine(t)
        out_y[i] += e * sine(t)


@merged_kernel
def ngon(x, y, out_x, out_y, w, p):
    """V38: towards a polygon: p0 power, p1 sector angle, p2 corners, p3 circle."""
    exponent, sector, corners, circle = -_HALF * p[0], p[1], p[2], p[3]
    per_sector = _ONE / sector
    for i in range(len(x)):
        u, v = x[i], y[i]
        angle = arctangent2(v, u)
        t = angle - sector * floor(angle * per_sector)
        t = t if t <= sector * _HALF else t - sector
        c = cosine(t)
        k = corners * (_ONE / (c if abs(c) > F(1e-3) else F(1e-3)) - _ONE) + circle
        e = w * k * power(u * u + v * v + _EPSILON, exponent)
        out_x[i] += e * u
        out_y[i] += e * v


@merged_kernel
def curl(x, y, out_x, out_y, w, p):
    """V39: z / (1 + p0 z + p1 z^2), as complex numbers."""
    p0, p1 = p[0], p[1]
    for i in range(len(x)):
        u, v = x[i], y[i]
        a = _ONE + p0 * u + p1 * (u * u - v * v)
        b = p0 * v + _TWO * p1 * u * v
        q = w * _inverse_square(a, b)
        out_x[i] += q * (u * a + v * b)
        out_y[i] += q * (v * a - u * b)


@merged_kernel
def rectangles(x, y, out_x, out_y, w, p):
    """V40: mirrored within cells of p0 by p1."""
    p0, p1 = p[0], p[1]
    per0, per1 = _ONE / p[0], _ONE / p[1]
    for i in range(len(x)):
        u, v = x[i], y[i]
        out_x[i] += w * ((_TWO * floor(u * per0) + _ONE) * p0 - u)
        out_y[i] += w * ((_TWO * floor(v * per1) + _ONE) * p1 - v)


@merged_kernel
def tangent(x, y, out_x, out_y, w):
    """V42: (sin x / cos y, tan y)."""
    for i in range(len(x)):
        c = cosine(y[i])
        q = w / (c if abs(c) > F(1e-3) else F(1e-3))
        out_x[i] += q * sine(x[i])
        out_y[i] += q * sine(y[i])


@merged_kernel
def square(x, y, out_x, out_y, w, noise):
    """V43: a point of the unit square at random, centred."""
    for i in range(len(x)):
        first = next_noise(noise[i])
        noise[i] = next_noise(first)
        out_x[i] += w * (noise_unit(first) - _HALF)
        out_y[i] += w * (noise_unit(noise[i]) - _HALF)


@merged_kernel
def cross(x, y, out_x, out_y, w):
    """V48: (x, y) / abs(x^2 - y^2)."""
    for i in range(len(x)):
        u, v = x[i], y[i]
        q = w / (abs(u * u - v * v) + F(1e-6))
        out_x[i] += q * u
        out_y[i] += q * v


class Parameter(NamedTuple):
    """A parameter's name and the range it is drawn from; integer: rounded down."""

    name: str
    low: float
    high: float
    integer: bool = False


class Variation(NamedTuple):
    """A variation.

    Attributes:
        name: Name in a genome.
        function: The merged kernel; its arguments are a subset of those of ``add_variation``.
        popularity: Relative frequency in free mixtures; 0 for never.
        parameters: At most 4.
    """

    name: str
    function: Any
    popularity: float
    parameters: tuple[Parameter, ...] = ()


VARIATIONS: tuple[Variation, ...] = (
    Variation("linear", linear, 6),
    Variation("sinusoidal", sinusoidal, 1),
    Variation("spherical", spherical, 6),
    Variation("swirl", swirl, 4),
    Variation("horseshoe", horseshoe, 2),
    Variation("polar", polar, 2),
    Variation("handkerchief", handkerchief, 2),
    Variation("heart", heart, 2),
    Variation("disc", disc, 4),
    Variation("spiral", spiral, 4),
    Variation("hyperbolic", hyperbolic, 3),
    Variation("diamond", diamond, 3),
    Variation("ex", ex, 1),
    Variation("julia", julia, 3),
    Variation("bent", bent, 3),
    Variation(
        "waves",
        waves,
        2,
        (
            Parameter("height_x", -1, 1),
            Parameter("frequency_x", 1, 8),
            Parameter("height_y", -1, 1),
            Parameter("frequency_y", 1, 8),
        ),
    ),
    Variation("fisheye", fisheye, 4),
    Variation(
        "popcorn", popcorn, 1, (Parameter("height_x", -0.6, 0.6), Parameter("height_y", -0.6, 0.6))
    ),
    Variation("exponential", exponential_variation, 1),
    Variation("power", power_variation, 2),
    Variation("cosine", cosine_variation, 2),
    Variation("rings", rings, 3, (Parameter("width", 0.05, 0.9),)),
    Variation("fan", fan, 1.5, (Parameter("blade", 0.2, 2.2), Parameter("offset", -3, 3))),
    Variation(
        "blob",
        blob,
        2,
        (
            Parameter("low", 0.2, 0.7),
            Parameter("high", 0.8, 1.3),
            Parameter("lobes", 2, 9, integer=True),
        ),
    ),
    Variation(
        "pdj",
        pdj,
        1,
        (
            Parameter("a", -3, 3),
            Parameter("b", -3, 3),
            Parameter("c", -3, 3),
            Parameter("d", -3, 3),
        ),
    ),
    Variation("eyefish", eyefish, 2),
    Variation("bubble", bubble, 2),
    Variation("cylinder", cylinder, 2),
    Variation(
        "perspective", perspective, 2, (Parameter("angle", 0.2, 1.3), Parameter("distance", 1.2, 3))
    ),
    Variation(
        "julian",
        julian,
        3,
        (Parameter("roots", 2, 7, integer=True), Parameter("distance", 0.6, 1.6)),
    ),
    Variation(
        "juliascope",
        juliascope,
        3,
        (Parameter("roots", 2, 7, integer=True), Parameter("distance", 0.6, 1.6)),
    ),
    Variation("blur", blur, 0.5),
    Variation(
        "ngon",
        ngon,
        2,
        (
            Parameter("power", -1, 2.5),
            Parameter("sector", 0.7, 2.1),
            Parameter("corners", 0.2, 1.5),
            Parameter("circle", 0.3, 1.5),
        ),
    ),
    Variation("curl", curl, 2, (Parameter("c1", -1, 1), Parameter("c2", -0.6, 0.6))),
    Variation(
        "rectangles", rectangles, 3, (Parameter("width", 0.2, 1.2), Parameter("height", 0.2, 1.2))
    ),
    Variation("tangent", tangent, 0.7),
    Variation("square", square, 1),
    Variation("cross", cross, 2),
)
"""Append new rows at the end: the position is a variation's number and part of random draws."""

VARIATION_NUMBER = {variation.name: number for number, variation in enumerate(VARIATIONS)}


def _dispatcher() -> Any:
    """Compile the chain of comparisons that calls each variation with its arguments."""
    lines = ["def add_variation(number, x, y, out_x, out_y, w, p, noise):"]
    functions: dict[str, Any] = {"__name__": __name__}
    for number, variation in enumerate(VARIATIONS):
        functions[f"v{number}"] = variation.function
        arguments = ", ".join(inspect.signature(variation.function.py_func).parameters)
        word = "elif" if number else "if"
        lines += [f"    {word} number == {number}:", f"        v{number}({arguments})"]
    lines += ["    else:", "        raise ValueError('unknown variation number')"]
    # Compiled under the name of this file, because kernels are cached beside their source file.
    exec(compile("\n".join(lines), __file__, "exec"), functions)
    return kernel(functions["add_variation"])


add_variation = _dispatcher()
"""Add variation ``number`` of VARIATIONS, times w, to the sums; see the module's docstring."""
