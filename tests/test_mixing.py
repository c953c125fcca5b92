"""The mixings are their float64 formulas within 1e-6, for 8-bit and float32 pictures alike."""

from collections.abc import Callable

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import reference
from pixmix import mixing
from pixmix.settings import MIXINGS

Operand = NDArray[np.float32] | NDArray[np.uint8]

EXTREMES = np.array(
    [0, 1, 0.5, np.nextafter(np.float32(0.5), 0), np.nextafter(np.float32(0.5), 1), 1e-45, 1e-40,
     1e-38, 0.5e-37, 2.0**-62, 1e-20, 1e-6, 1 - 2.0**-24, 1 / 255, 254 / 255],
    np.float32,
)  # fmt: skip
WEIGHTS = [
    (0.0, 1.0), (1.0, 0.0), (0.5, 0.5), (0.93, 0.21), (1e-6, 1 - 1e-6),  # towards y
    (2.0, -1.0), (1.0, -0.5), (1.37, -0.04), (1.9, -0.9), (2.0, -1e-6), (1.0, -1.0),  # away
]  # fmt: skip


def values(seed: int, *shape: int) -> NDArray[np.float32]:
    """Values of [0, 1]: uniform ones, tiny ones, and the extremes."""
    generator = np.random.default_rng(seed)
    uniform = generator.random(shape, np.float32)
    tiny = np.exp(generator.uniform(-100, 0, shape)).astype(np.float32)
    extreme = generator.choice(EXTREMES, shape)
    kind = generator.integers(0, 4, shape)
    return np.select([kind < 2, kind == 2], [uniform, tiny], extreme).astype(np.float32)


def mixed(
    name: str, x: Operand, y: Operand, a: float, b: float, second: tuple[float, float, bool]
) -> NDArray[np.float32]:
    if name == "overlay":
        return mixing.overlay(
            x, y, a, b, second_a=second[0], second_b=second[1], multiply_dark=second[2]
        )
    if name == "darken_or_lighten":
        return mixing.darken_or_lighten(x, y, darken=second[2])
    if name == "swap_channel":
        return mixing.swap_channel(x, y, int(a))
    function: Callable[..., NDArray[np.float32]] = getattr(mixing, name)
    return function(x, y, a, b)


def unit(picture: Operand) -> NDArray[np.float64]:
    """A picture in float64; an 8-bit one as the float32 quotient that counts for it."""
    values = picture / np.float32(255) if picture.dtype == np.uint8 else picture
    return np.asarray(values, np.float64)


@pytest.mark.parametrize("name", MIXINGS)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("coin", [False, True])
def test_a_mixing_is_its_formula_within_a_millionth(
    name: str, weights: tuple[float, float], coin: bool
) -> None:
    a, b = (np.float32(each).item() for each in weights)
    second = (np.float32(1.3).item(), np.float32(-0.4).item(), coin)
    generator = np.random.default_rng(1)
    for kinds in ("ff", "fu", "uf", "uu"):
        x, y = (
            values(seed, 31, 47, 3) if kind == "f"
            else generator.integers(0, 256, (31, 47, 3), dtype=np.uint8)
            for seed, kind in enumerate(kinds)
        )  # fmt: skip
        result = mixed(name, x, y, a, b, second)
        expected = reference.mix(name, unit(x), unit(y), a, b, second)
        assert result.dtype == np.float32
        assert result.shape == x.shape
        assert np.abs(result - expected).max() <= 1e-6, kinds


@given(
    st.sampled_from(MIXINGS), st.floats(0, 2, width=32), st.floats(-1, 1, width=32),
    st.floats(0, 2, width=32), st.floats(-1, 1, width=32), st.booleans(), st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=400)
def test_any_weights_stay_within_a_millionth_and_are_numbers(
    name: str, a: float, b: float, second_a: float, second_b: float, coin: bool, seed: int
) -> None:
    x, y = values(seed, 5, 7, 3), values(seed + 1, 5, 7, 3)
    second = (second_a, second_b, coin)
    result = mixed(name, x, y, a, b, second)
    assert np.isfinite(result).all()
    assert result.min() >= 0
    assert result.max() <= 1
    expected = reference.mix(name, unit(x), unit(y), a, b, second)
    assert np.abs(result - expected).max() <= 1e-6


@pytest.mark.parametrize("name", ["add", "multiply", "screen"])
def test_an_8_bit_operand_is_its_255th(name: str) -> None:
    x = values(3, 19, 23, 3)
    y = np.random.default_rng(4).integers(0, 256, x.shape, dtype=np.uint8)
    for a, b in WEIGHTS:
        second = (1.0, 0.0, True)
        as_float = mixed(name, x, y / np.float32(255), a, b, second)
        assert np.array_equal(mixed(name, x, y, a, b, second), as_float)
        bytes_first = mixed(name, y, x, a, b, second)
        assert np.array_equal(bytes_first, mixed(name, y / np.float32(255), x, a, b, second))


@pytest.mark.parametrize("name", ["add", "multiply", "screen"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_grey_is_neutral(name: str, weights: tuple[float, float]) -> None:
    """Grey y leaves what a alone makes of x, and a = 1 leaves x."""
    x, grey = values(5, 9, 11, 3), np.full((9, 11, 3), 0.5, np.float32)
    second = (1.0, 0.0, True)
    one_sided = mixed(name, x, grey, weights[0], 0.0, second)
    assert np.abs(mixed(name, x, grey, *weights, second) - one_sided).max() <= 1e-6
    assert np.abs(mixed(name, x, grey, 1.0, weights[1], second) - x).max() <= 1e-6


def test_add_has_numpy_s_float32_step_by_step() -> None:
    x, y = values(6, 40, 41, 3), values(7, 40, 41, 3)
    one, two = np.float32(1), np.float32(2)
    for weights in WEIGHTS:
        a, b = np.float32(weights[0]), np.float32(weights[1])
        expected = np.clip((a * (two * x - one) + b * (two * y - one) + one) / two, 0, 1)
        assert np.array_equal(mixing.add(x, y, float(a), float(b)), expected)


@pytest.mark.parametrize("name", MIXINGS)
def test_neither_picture_is_written(name: str) -> None:
    """The released code's swap_channel writes into its first."""
    pictures = [values(8, 6, 5, 3), np.random.default_rng(9).integers(0, 256, (6, 5, 3), np.uint8)]
    for x, y in (pictures, pictures[::-1]):
        before = x.copy(), y.copy()
        result = mixed(name, x, y, 1.0, 0.5, (1.5, -0.5, True))
        assert np.array_equal(x, before[0])
        assert np.array_equal(y, before[1])
        assert not np.shares_memory(result, x)
        assert not np.shares_memory(result, y)


@pytest.mark.parametrize("shape", [(3,), (1, 1, 3), (1, 4099, 3), (5000, 3), (2, 41, 67, 3)])
def test_any_shape_and_length_of_blocks(shape: tuple[int, ...]) -> None:
    x, y = values(10, *shape), values(11, *shape)
    for name in MIXINGS:
        second = (1.2, -0.3, False)
        expected = reference.mix(name, unit(x), unit(y), 1.0, 0.25, second)
        assert np.abs(mixed(name, x, y, 1.0, 0.25, second) - expected).max() <= 1e-6


Floats = NDArray[np.float32]


@numba.njit
def _doubled_powers(bases: Floats, exponents: Floats, out: Floats) -> None:
    for i in range(len(bases)):
        out[i] = mixing.scaled_power(bases[i], exponents[i], np.float32(0))


def test_a_power_s_relative_error_is_under_three_ten_millionths() -> None:
    generator = np.random.default_rng(12)
    n = 400_000
    bases = np.exp(generator.uniform(-87, 87, n)).astype(np.float32)
    near_one = (0.5 + generator.uniform(-1e-3, 1e-3, n)).astype(np.float32)
    subnormal = (generator.random(n) * 1e-38).astype(np.float32)
    bases = np.concatenate([bases, near_one, np.maximum(subnormal, np.float32(3e-45))])
    exponents = generator.uniform(-2, 2, 3 * n).astype(np.float32)
    out = np.empty(3 * n, np.float32)
    _doubled_powers(bases, exponents, out)
    exact = (2 * bases.astype(np.float64)) ** exponents.astype(np.float64)
    # Nearer to the ends of float32 the exponent is clamped.
    inside = (exact > 2.4e-38) & (exact < 1.7e38)
    assert inside.mean() > 0.6
    assert np.abs(out[inside] / exact[inside] - 1).max() < 3e-7


def test_black_that_is_divided_out_is_bright_and_finite() -> None:
    """A black y and b = -1 are a factor of 1e37; x may be as small."""
    y = np.zeros((1, 3), np.float32)
    x = np.array([[1e-45, 1e-38, 0]], np.float32)
    expected = reference.mix("multiply", unit(x), unit(y), 1.0, -1.0, (1, 0, True))
    result = mixing.multiply(x, y, 1.0, -1.0)
    assert np.abs(result - expected).max() <= 1e-6
    assert result[0, 2] == 0


PICTURE = np.zeros((4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (PICTURE.astype(np.float64), PICTURE, TypeError, "x has dtype float64; give uint8, or"),
        (PICTURE, PICTURE.astype(np.int64), TypeError, "y has dtype int64; give uint8, or"),
        (PICTURE[..., 0], PICTURE[..., 0], ValueError, r"x has shape \(4, 5\); its last axis"),
        (PICTURE, PICTURE[:2], ValueError, r"x has shape \(4, 5, 3\) and y \(2, 5, 3\); crop"),
    ],
)
@pytest.mark.parametrize("name", MIXINGS)
def test_pictures_that_do_not_fit_are_refused(
    name: str, x: Operand, y: Operand, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        mixed(name, x, y, 1.0, 0.0, (1.0, 0.0, True))


def test_numbers_out_of_range_are_refused() -> None:
    for name in ("multiply", "screen"):
        with pytest.raises(ValueError, match=r"a is -0\.1; an exponent"):
            mixed(name, PICTURE, PICTURE, -0.1, 0.0, (1.0, 0.0, True))
    with pytest.raises(ValueError, match="second_a is -1; an exponent"):
        mixed("overlay", PICTURE, PICTURE, 1.0, 0.0, (-1, 0.0, True))
    with pytest.raises(ValueError, match="channel is 3; give 0"):
        mixing.swap_channel(PICTURE, PICTURE, 3)
