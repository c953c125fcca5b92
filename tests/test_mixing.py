"""The mixings agree with their formulas in float64, for 8-bit and float images and all edges."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import reference
from pixmix import mixing
from pixmix.mixing import MIXINGS

F = np.float32
Image = NDArray[np.float32] | NDArray[np.uint8]
BOUND = 1e-6
"""The documented error bound. Measured: 1.3e-7 (add), 2.9e-7 (multiply)."""

GRAY = F(0.5)
EDGES = np.array(
    [
        *(0.0, 1.0, 0.5, np.nextafter(GRAY, F(0)), np.nextafter(GRAY, F(1))),
        # The largest value below 1, the least normal number, subnormals, the bound of the power.
        *(np.nextafter(F(1), F(0)), 1.1754944e-38, 1.17e-38, 1e-40, 1.4e-45, 0.5e-37, 1e-37),
        # Values with squares near float32's limit; where a power's scaling starts; 8-bit steps.
        *(1e-30, 1e-20, 1e-19, 2.1e-19, 2.2e-19, 1e-10, 1e-3, 1 / 255, 254 / 255),
    ],
    F,
)
SHAPE = (37, 53, 3)
"""Not square, and with more values than a block of the kernel."""


def floats(seed: int, shape: tuple[int, ...] = SHAPE) -> NDArray[np.float32]:
    """Values in [0, 1]: uniform, edges, 8-bit steps, and all orders of magnitude."""
    generator = np.random.default_rng(seed)
    kind = generator.integers(0, 4, shape)
    kinds = [
        generator.random(shape),
        generator.choice(EDGES, shape),
        generator.integers(0, 256, shape) / 255,
        np.exp(-100 * generator.random(shape)),
    ]
    return np.choose(kind, kinds).astype(F)


def bytes_(seed: int, shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def weights_of(seed: int) -> tuple[float, float]:
    """Weights a and b of either branch and any beta, or at the ends of their ranges."""
    generator = np.random.default_rng([seed, 1])
    ends = [(0, 0), (0, 1), (1, 0), (1, 1), (2, -1), (1, -1), (2, 0), (1e-6, 1 - 1e-6), (2, -1e-6)]
    # Pairs that neither branch draws, but that are valid.
    ends += [(0, -1), (2, 1), (0.5, -0.5), (1.5, 0.5)]
    if seed % 3 == 0:
        return ends[seed // 3 % len(ends)]
    beta = generator.choice([0.001, 0.01, 0.1, 0.5, 1, 3, 4, 20, 1000])
    a, b = generator.random() ** (1 / beta), 1 - generator.random() ** (1 / beta)
    a, b = (a, b) if seed % 3 == 1 else (2 - a, -b)
    return float(F(a)), float(F(b))


def unit(image: Image) -> NDArray[np.float64]:
    """Convert an image to float64 in [0, 1]."""
    return image / 255 if image.dtype == np.uint8 else image.astype(np.float64)


def mixed(
    name: str, x: Image, y: Image, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the result for the weights of a seed, and the clipped formula in float64."""
    # The formula is evaluated for weights rounded to float32.
    a, b = (float(F(number)) for number in weights_of(seed))
    return getattr(mixing, name)(x, y, a, b), reference.mix(name, unit(x), unit(y), a, b)


def formula(name: str, x: Image, y: Image, a: float, b: float) -> NDArray[np.float64]:
    return reference.mix(name, unit(x), unit(y), float(F(a)), float(F(b)))


# --- The formulas --------------------------------------------------------------------------------


@pytest.mark.parametrize("of_x", ["float", "8 bits"])
@pytest.mark.parametrize("of_y", ["float", "8 bits"])
@pytest.mark.parametrize("name", MIXINGS)
def test_a_mixing_is_within_a_millionth_of_its_formula_in_float64(
    name: str, of_x: str, of_y: str
) -> None:
    """Compare 117 pairs of weights, with 5,883 values each."""
    make = {"float": floats, "8 bits": bytes_}
    for seed in range(117):
        x, y = make[of_x](2 * seed), make[of_y](2 * seed + 1)
        if of_y == "float" and seed % 4 == 0:
            # All combinations of edges.
            y = np.roll(np.repeat(EDGES, 300)[: y.size], seed).reshape(y.shape)
        result, expected = mixed(name, x, y, seed)
        assert result.dtype == np.float32
        assert result.shape == x.shape
        assert np.abs(result - expected).max() <= BOUND, seed


ALL_PAIRS = [
    np.repeat(levels[..., None], 3, axis=2).astype(np.uint8)
    for levels in np.meshgrid(np.arange(256), np.arange(256))
]


@pytest.mark.parametrize("name", MIXINGS)
def test_all_pairs_of_8_bit_values_are_within_a_millionth_of_the_formula(name: str) -> None:
    x, y = ALL_PAIRS
    for a in (0, 0.3, 1, 1.5, 2):
        for b in (-1, -0.7, -0.01, 0.3, 1):
            result = getattr(mixing, name)(x, y, a, b)
            assert np.abs(result - formula(name, x, y, a, b)).max() <= BOUND, (a, b)


@given(
    x=st.floats(0, 1, width=32),
    y=st.floats(0, 1, width=32),
    weights=st.tuples(st.floats(0, 2, width=32), st.floats(-1, 1, width=32)),
)
@example(x=float(F(1e-30)), y=0.0, weights=(2.0, -1.0))
@example(x=0.0, y=0.0, weights=(0.0, -1.0))
@settings(max_examples=1000)
def test_any_value_and_weights_are_within_a_millionth_of_the_formula(
    x: float, y: float, weights: tuple[float, float]
) -> None:
    own, other = np.full(3, x, F), np.full(3, y, F)
    for name in MIXINGS:
        result = getattr(mixing, name)(own, other, *weights)
        assert np.abs(result - formula(name, own, other, *weights)).max() <= BOUND, name


@pytest.mark.parametrize("name", MIXINGS)
def test_8_bit_images_equal_float_images_of_their_values_over_255(name: str) -> None:
    for seed in range(30):
        x, y = bytes_(2 * seed), bytes_(2 * seed + 1)
        as_floats, _ = mixed(name, x / F(255), y / F(255), seed)
        for one, other in ((x, y), (x / F(255), y), (x, y / F(255))):
            assert np.array_equal(mixed(name, one, other, seed)[0], as_floats)


def test_add_equals_its_formula_in_float32() -> None:
    for seed in range(30):
        x, y = floats(2 * seed), floats(2 * seed + 1)
        a, b = (F(number) for number in weights_of(seed))
        expected = (a * (2 * x - 1) + b * (2 * y - 1) + 1) * GRAY
        assert expected.dtype == np.float32
        assert np.array_equal(mixing.add(x, y, a, b), expected.clip(0, 1))


# --- Neutral and extreme values ------------------------------------------------------------------


@pytest.mark.parametrize("name", MIXINGS)
@pytest.mark.parametrize(("a", "b"), [(0.3, 0.7), (1.7, -0.7), (2, -1), (0, 1), (1, 0)])
def test_two_gray_images_mix_to_gray_for_any_weights(name: str, a: float, b: float) -> None:
    gray = np.full((4, 7, 3), GRAY)
    assert np.array_equal(getattr(mixing, name)(gray, gray, a, b), gray)


@pytest.mark.parametrize("name", MIXINGS)
@pytest.mark.parametrize("b", [-1, -0.3, 0.4, 1])
def test_a_gray_image_changes_nothing(name: str, b: float) -> None:
    x, mix = floats(3), getattr(mixing, name)
    gray = np.full_like(x, GRAY)
    assert np.abs(mix(x, gray, 1, b) - x).max() <= BOUND
    for a in (0, 0.4, 1.7, 2):
        # The result only depends on x and a.
        assert np.abs(mix(x, gray, a, b) - mix(x, x, a, 0)).max() <= BOUND


@pytest.mark.parametrize("name", MIXINGS)
def test_an_image_with_weight_0_does_not_matter(name: str) -> None:
    x, y, z = floats(4), floats(5), floats(6)
    mix = getattr(mixing, name)
    for a in (0.2, 1, 1.9):
        assert np.array_equal(mix(x, y, a, 0), mix(x, z, a, 0))
    for b in (-1, 0.2, 1):
        assert np.array_equal(mix(x, y, 0, b), mix(z, y, 0, b))


def row(*values: float) -> NDArray[np.float32]:
    """A row of gray pixels."""
    return np.repeat(np.array(values, F)[:, None], 3, axis=1)


def test_dividing_by_black_gives_white_except_for_black() -> None:
    x, black = row(0, 1e-40, 1e-30, 0.004, 0.5, 1), row(*[0.0] * 6)
    result = mixing.multiply(x, black, 1, -1)[:, 0]
    # (2x) 1e37 / 2: only 0 and values close to 0 stay below 1.
    assert result[0] == 0
    assert abs(result[1] - 1e-3) < 1e-6
    assert (result[2:] == 1).all()


def test_the_square_of_a_tiny_value_times_a_huge_power_does_not_overflow() -> None:
    """(2x)^2 and 1e-37^-1 are outside the range of float32, but their product is not."""
    tiny = (1e-30, 1e-20, 1e-19, 2e-19, 3e-19, 1e-38)
    result = mixing.multiply(row(*tiny), row(*[0.0] * 6), 2, -1)[:, 0]
    expected = [min((2 * float(F(x))) ** 2 * 1e37 / 2, 1) for x in tiny]
    assert np.abs(result - expected).max() <= BOUND
    assert 0.1 < expected[2] < expected[3] < 1


def test_zero_to_the_power_of_zero_is_one() -> None:
    """This is numpy's convention."""
    assert np.array_equal(mixing.multiply(row(0, 0), row(0.5, 0), 0, 0), row(0.5, 0.5))


@pytest.mark.parametrize("name", MIXINGS)
def test_results_are_in_the_unit_interval_and_never_nan(name: str) -> None:
    x, y = (np.repeat(each[..., None], 3, axis=2) for each in np.meshgrid(EDGES, EDGES))
    for seed in range(60):
        result, expected = mixed(name, x, y, seed)
        assert ((result >= 0) & (result <= 1)).all(), weights_of(seed)
        assert np.abs(result - expected).max() <= BOUND, weights_of(seed)


@pytest.mark.parametrize("name", MIXINGS)
def test_values_out_of_range_are_clipped_to_black_and_white(name: str) -> None:
    ends = set()
    for seed in range(30):
        result, _ = mixed(name, floats(2 * seed), floats(2 * seed + 1), seed)
        ends |= {float(result.min()), float(result.max())}
    assert min(ends) == 0
    assert max(ends) == 1


# --- Images ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MIXINGS)
@pytest.mark.parametrize("make", [floats, bytes_])
def test_inputs_are_not_modified_and_the_result_is_new(
    name: str, make: Callable[[int], Image]
) -> None:
    x, y = make(14), make(15)
    before = x.copy(), y.copy()
    expected, _ = mixed(name, x, y, 4)
    expected = expected.copy()
    assert np.array_equal(x, before[0])
    assert np.array_equal(y, before[1])
    # Read-only images are accepted.
    x.flags.writeable = y.flags.writeable = False
    result, _ = mixed(name, x, y, 4)
    assert np.array_equal(result, expected)
    assert result.flags.writeable
    assert not np.shares_memory(result, x)
    assert not np.shares_memory(result, y)


@pytest.mark.parametrize("name", MIXINGS)
def test_an_image_mixes_with_itself(name: str) -> None:
    for x in (floats(16), bytes_(16)):
        before = x.copy()
        assert np.array_equal(mixed(name, x, x, 5)[0], mixed(name, before, before.copy(), 5)[0])
        assert np.array_equal(x, before)


@pytest.mark.parametrize("name", MIXINGS)
@pytest.mark.parametrize(
    "shape", [(3,), (0, 7, 3), (1, 1, 3), (5, 1, 3), (1, 9, 3), (2, 4, 5, 3), (683, 2, 3)]
)
def test_images_of_any_shape_are_mixed_value_by_value(name: str, shape: tuple[int, ...]) -> None:
    for x, y in ((floats(17, shape), floats(18, shape)), (bytes_(17, shape), bytes_(18, shape))):
        result, expected = mixed(name, x, y, 7)
        assert result.shape == shape
        assert np.abs(result - expected).max(initial=0) <= BOUND


@pytest.mark.parametrize("name", MIXINGS)
@pytest.mark.parametrize("make", [floats, bytes_])
def test_images_need_not_be_contiguous(
    name: str, make: Callable[[int, tuple[int, ...]], Image]
) -> None:
    x, y = make(19, (24, 26, 3)), make(20, (24, 26, 3))
    views: list[Callable[[Image], Image]] = [
        lambda each: each[::-1],
        lambda each: each[:, ::2],
        lambda each: each.transpose(1, 0, 2),
        lambda each: each[3:-2, 1:-4],
        np.asfortranarray,
    ]
    for view in views:
        expected, _ = mixed(name, np.ascontiguousarray(view(x)), np.ascontiguousarray(view(y)), 8)
        assert np.array_equal(mixed(name, view(x), view(y), 8)[0], expected)


# --- Powers and tables ---------------------------------------------------------------------------

Floats = NDArray[np.float32]


@numba.njit
def scaled_powers(x: Floats, exponents: Floats, shifts: Floats) -> Floats:
    out = np.empty(len(x), np.float32)
    for i in range(len(x)):
        out[i] = mixing.scaled_power(x[i], exponents[i], shifts[i])
    return out


@numba.njit
def plain_powers(bases: Floats, exponents: Floats) -> Floats:
    out = np.empty(len(bases), np.float32)
    for i in range(len(bases)):
        out[i] = mixing.power(bases[i], exponents[i])
    return out


def positive(seed: int, n: int, below: float) -> Floats:
    """Positive float32 below a bound, of all exponents equally often, with subnormals."""
    bits = np.random.default_rng(seed).integers(1, F(below).view(np.int32), n, dtype=np.int32)
    return np.concatenate([bits.view(F), np.geomspace(1.4e-45, float(F(1.4e-42)), 99).astype(F)])


def test_a_scaled_power_has_a_relative_error_below_3e_7() -> None:
    """Tested on a million bases of all sizes, and a million near 1/2; measured: 1.7e-7."""
    near_half = np.random.default_rng(7).uniform(0.499, 0.501, 1_000_000).astype(F)
    x = np.concatenate([positive(0, 1_000_000, 1.7e38), near_half])
    generator = np.random.default_rng(1)
    exponents = generator.uniform(-2, 2, len(x)).astype(F)
    shifts = generator.choice([-64, 0, 64], len(x)).astype(F)
    exact = exponents * (np.log2(x.astype(np.float64)) + 1) + shifts
    inside = (exact > -125) & (exact < 127)
    assert inside.mean() > 0.5
    relative = scaled_powers(x, exponents, shifts) / np.exp2(exact.clip(-200, 200)) - 1
    assert np.abs(relative[inside]).max() < 3e-7


def test_a_scaled_power_out_of_range_is_clamped() -> None:
    x = positive(2, 100_000, 1.7e38)
    exponents = np.random.default_rng(3).choice([-2, -1.5, 1.5, 2], len(x)).astype(F)
    shifts = np.full(len(x), 64, F)
    exact = exponents * (np.log2(x.astype(np.float64)) + 1) + shifts
    result = scaled_powers(x, exponents, shifts)
    assert np.isfinite(result).all()
    assert (exact < -127).sum() > 1000
    assert (result[exact < -127] <= 2.0**-125).all()
    assert (exact > 129).sum() > 1000
    assert (result[exact > 129] >= 2.0**126).all()
    assert (result >= 2.0**-127).all()


def test_a_power_has_a_relative_error_below_3e_7() -> None:
    bases = positive(4, 300_000, 3e38)
    exponents = np.random.default_rng(5).uniform(-2, 2, len(bases)).astype(F)
    exact = exponents * np.log2(bases.astype(np.float64))
    # Only normal bases: halving a subnormal one may lose its last bit.
    inside = (np.abs(exact) < 125) & (bases > 2.4e-38)
    relative = plain_powers(bases, exponents) / np.exp2(exact.clip(-200, 200)) - 1
    assert inside.mean() > 0.4
    assert np.abs(relative[inside]).max() < 3e-7


def test_powers_of_one_and_with_exponent_zero_are_exact() -> None:
    exponents = np.linspace(-2, 2, 999).astype(F)
    assert (plain_powers(np.ones(999, F), exponents) == 1).all()
    bases = positive(6, 999, 3e38)
    assert (plain_powers(bases, np.zeros(len(bases), F)) == 1).all()


@pytest.mark.parametrize("b", [-1, -0.31, 0, 0.007, 0.5, 1])
def test_the_table_contains_the_power_of_each_8_bit_value(b: float) -> None:
    table = np.full(260, -7, F)
    mixing.fill_powers(table[2:258], F(b))
    # Exactly 256 entries are written.
    assert (table[[0, 1, 258, 259]] == -7).all()
    y = np.arange(256, dtype=F) / F(255)
    assert np.array_equal(table[2:258], [mixing.other_power(each, F(b)) for each in y])
    exact = np.maximum(2 * y.astype(np.float64), 1e-37) ** float(F(b)) * 2.0**-64
    held = exact > 2.0**-126
    assert held.sum() >= 255
    assert np.abs(table[2:258][held] / exact[held] - 1).max() < 3e-7
    assert np.isfinite(table).all()


def test_look_up_maps_values_from_the_start_position_on() -> None:
    table, levels = np.arange(256, dtype=F)[::-1].copy(), bytes_(21, (50,))
    out = np.full(40, -1, F)
    mixing.look_up(table, levels, 7, 33, out)
    assert np.array_equal(out[:33], table[levels[7:40]])
    assert (out[33:] == -1).all()


def test_to_unit_returns_the_float32_nearest_to_each_value_over_255() -> None:
    out = np.empty(256, F)
    mixing.to_unit(np.arange(256, dtype=np.uint8), 0, 256, out)
    assert np.array_equal(out, (np.arange(256) / 255).astype(F))


# --- Errors --------------------------------------------------------------------------------------

X, Y = np.full((4, 7, 3), 0.3, F), np.full((4, 7, 3), 0.6, F)


@pytest.mark.parametrize("name", MIXINGS)
@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (X.astype(np.float64), Y, TypeError, r"x has dtype float64; pass uint8, or .* \(x.astype"),
        (X, Y.astype(np.int64), TypeError, "y has dtype int64"),
        (X.astype(np.float16), Y, TypeError, "x has dtype float16"),
        (X, Y.astype(">f4"), TypeError, "y has dtype >f4"),
        ([0.1, 0.2, 0.3], Y, TypeError, r"x is list; pass an array: numpy.asarray\(x\)"),
        (X, None, TypeError, "y is NoneType; pass an array"),
        (X[..., :2], Y[..., :2], ValueError, r"x has shape \(4, 7, 2\); its last axis must be red"),
        (X, Y[..., 0], ValueError, r"y has shape \(4, 7\); its last axis"),
        (X[0, 0, 0], Y, TypeError, "x is float32; pass an array"),
        (np.array(0.5, F), Y, ValueError, r"x has shape \(\); its last axis"),
        (X, Y[:3], ValueError, r"x has shape \(4, 7, 3\) and y \(3, 7, 3\); crop the larger"),
        (X, Y.transpose(1, 0, 2), ValueError, r"and y \(7, 4, 3\); crop the larger"),
    ],
)
def test_invalid_images_are_rejected_with_a_remedy(
    name: str, x: object, y: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        getattr(mixing, name)(x, y, 1, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": -0.001}, "a is -0.001; pass an exponent from 0 to 2"),
        ({"a": 2.001}, "a is 2.001"),
        ({"a": np.nan}, "a is nan"),
        ({"a": np.inf}, "a is inf"),
        ({"b": 1.001}, "b is 1.001; pass an exponent from -1 to 1"),
        ({"b": -1.001}, "b is -1.001"),
        ({"b": np.nan}, "b is nan"),
        ({"b": -np.inf}, "b is -inf"),
    ],
)
def test_exponents_out_of_range_are_rejected(changes: dict[str, float], message: str) -> None:
    arguments: dict[str, Any] = {"a": 1, "b": 0}
    with pytest.raises(ValueError, match=message):
        mixing.multiply(X, Y, **(arguments | changes))


@pytest.mark.parametrize("weight", [np.nan, np.inf, -np.inf])
def test_weights_of_add_must_be_finite(weight: float) -> None:
    with pytest.raises(ValueError, match=f"a is {weight}; pass a finite weight"):
        mixing.add(X, Y, weight, 0)
    with pytest.raises(ValueError, match=f"b is {weight}; pass a finite weight"):
        mixing.add(X, Y, 1, weight)


def test_an_unknown_code_is_rejected() -> None:
    values = np.zeros(3, F)
    with pytest.raises(ValueError, match="unknown code"):
        mixing._mix(values, bytes_(22, (3,)), values, np.empty(3, F), len(MIXINGS), F(1), F(0))
