"""Elementary functions and random streams: stated errors, special cases, the same bits everywhere.

Everything is tested compiled. NUMBA_DISABLE_JIT=1 cannot run these tests: an intrinsic (``fma``,
``floor``, ``nearest``, the two bit casts) exists only as machine code.
"""

import math
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

import reference
from fingerprints import (
    apply_elementwise,
    elementary_fingerprints,
    every_scale,
    fingerprints_without_fma,
)
from fractals import numerics
from fractals.numerics import Draws, fill_units, next_unit, next_word, random_state

Exact = Callable[[NDArray[np.float64]], NDArray[np.float64]]
FMA = apply_elementwise(numerics.fma)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def powers_of_two(low: float, high: float) -> NDArray[np.float64]:
    return 2.0 ** np.linspace(low, high, 400_001)


def error(name: str, exact: Exact, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the error against float64 at the float32 numbers nearest to x."""
    x = x.astype(np.float32)
    return np.abs(apply_elementwise(getattr(numerics, name))(x) - exact(x.astype(np.float64)))


# The bounds are those of the docstrings.
@pytest.mark.parametrize(
    ("name", "exact", "low", "high", "bound"),
    [
        ("sine_of_turns", lambda t: np.sin(2 * np.pi * t), -1, 1, 3e-7),
        ("sine", np.sin, -8, 8, 1e-6),
        ("cosine", np.cos, -8, 8, 1e-6),
        ("logarithm2", np.log2, 0.5, 2, 1e-6),
    ],
)
def test_absolute_errors_stay_under_the_stated_bound(
    name: str, exact: Exact, low: float, high: float, bound: float
) -> None:
    assert error(name, exact, np.linspace(low, high, 400_001)).max() < bound


@pytest.mark.parametrize(
    ("name", "exact", "x", "bound"),
    [
        ("exponential2", np.exp2, np.linspace(-126, 126, 400_001), 4e-7),
        ("exponential", np.exp, np.linspace(-80, 80, 400_001), 1e-5),
        ("logarithm2", np.log2, powers_of_two(-126, -1), 2e-7),
        ("logarithm2", np.log2, powers_of_two(1, 127.9), 2e-7),
    ],
)
def test_relative_errors_stay_under_the_stated_bound(
    name: str, exact: Exact, x: NDArray[np.float64], bound: float
) -> None:
    assert (
        error(name, exact, x) / np.abs(exact(x.astype(np.float32).astype(np.float64)))
    ).max() < bound


def test_arctangents_stay_under_the_stated_bound_at_every_angle_and_scale() -> None:
    angle = np.linspace(-np.pi, np.pi, 200_001)[1:]  # (-pi, pi]
    for scale in (1e-30, 1.0, 1e30):
        y, x = ((scale * each).astype(np.float32) for each in (np.sin(angle), np.cos(angle)))
        exact = np.arctan2(y.astype(np.float64), x.astype(np.float64))
        assert np.abs(apply_elementwise(numerics.arctangent2)(y, x) - exact).max() < 5e-7


def test_powers_stay_under_the_stated_bound() -> None:
    random = np.random.default_rng(0)
    base = (2.0 ** random.uniform(-20, 20, 200_000)).astype(np.float32)
    exponent = random.uniform(-3, 3, 200_000).astype(np.float32)
    exact = base.astype(np.float64) ** exponent
    assert (np.abs(apply_elementwise(numerics.power)(base, exponent) - exact) / exact).max() < 1e-5


@given(st.lists(st.tuples(floats, floats, floats), min_size=1, max_size=20))
def test_a_fused_multiply_add_rounds_once(triples: list[tuple[float, float, float]]) -> None:
    a, b, c = (np.array(column, np.float32) for column in zip(*triples, strict=True))
    for found, x, y, z in zip(FMA(a, b, c), a, b, c, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        if abs(exact) < Fraction(2) ** 127:
            assert found == reference.nearest_float32(exact)


def test_a_fused_multiply_add_keeps_what_two_roundings_lose() -> None:
    x = np.float32(1 + 2.0**-12)
    assert FMA([x], [x], [-(x * x)])[0] == np.float32(2.0**-24)


def test_floor_and_nearest_equal_numpys_at_every_scale() -> None:
    x = every_scale()
    np.testing.assert_array_equal(apply_elementwise(numerics.floor)(x), np.floor(x))
    np.testing.assert_array_equal(apply_elementwise(numerics.nearest)(x), np.rint(x))


@numba.njit
def round_trip(x: NDArray[np.float32], there: NDArray[np.int32], back: NDArray[np.float32]) -> None:
    for i in range(len(x)):
        there[i] = numerics.float_bits(x[i])
        back[i] = numerics.bits_float(there[i])


def test_floats_and_their_bits_are_inverses() -> None:
    x = every_scale()
    there = np.empty(len(x), np.int32)
    back = np.empty_like(x)
    round_trip(x, there, back)
    np.testing.assert_array_equal(there, x.view(np.int32))
    np.testing.assert_array_equal(back.view(np.int32), x.view(np.int32))


HALF, RIGHT, LARGEST, SMALLEST = np.float32(3.14159265), np.float32(1.57079633), 2.0**126, 2.0**-126


@pytest.mark.parametrize(
    ("y", "x", "angle"),
    [
        (0, 0, 0), (-0.0, 0, 0), (0, 1, 0), (0, -1, HALF), (-0.0, -1, HALF), (1, 0, RIGHT),
        (-1, 0, -RIGHT), (np.inf, 1, RIGHT), (-np.inf, 1, -RIGHT), (1, np.inf, 0),
        (1, -np.inf, HALF), (3e38, 3e38, RIGHT / 2), (1e-40, 1e-40, RIGHT / 2),
    ],
)  # fmt: skip
def test_angles_on_the_axes_and_at_the_ends_of_the_range(y: float, x: float, angle: float) -> None:
    assert apply_elementwise(numerics.arctangent2)([y], [x])[0] == pytest.approx(angle, abs=5e-7)


@pytest.mark.parametrize(
    ("name", "x", "value"),
    [
        ("sine", 0, 0), ("cosine", 0, 1), ("sine_of_turns", 0.25, 1), ("sine_of_turns", -0.25, -1),
        ("sine_of_turns", 0.5, 0), ("sine_of_turns", 1e30, 0),
        ("exponential2", 0, 1), ("exponential2", 7, 128), ("exponential2", -3, 0.125),
        ("exponential2", np.inf, LARGEST), ("exponential2", -np.inf, SMALLEST),
        ("exponential2", 1e30, LARGEST), ("exponential", 0, 1), ("exponential", 1e30, LARGEST),
        ("logarithm2", 1, 0), ("logarithm2", 1024, 10), ("logarithm2", 0, -126),
        ("logarithm2", -5, -126),
        ("logarithm2", -np.inf, -126), ("logarithm2", 1e-45, -126), ("logarithm2", np.inf, 128),
        ],
)  # fmt: skip
def test_special_cases_have_the_stated_value(name: str, x: float, value: float) -> None:
    assert apply_elementwise(getattr(numerics, name))([x])[0] == pytest.approx(
        value, rel=1e-7, abs=2e-7
    )


@pytest.mark.parametrize("exponent", [0.5, 1, 3])
def test_a_power_of_zero_is_almost_zero(exponent: float) -> None:
    assert 0 <= apply_elementwise(numerics.power)([0], [exponent])[0] < 1e-18


@pytest.mark.parametrize("name", ["sine_of_turns", "sine", "cosine"])
def test_sines_of_finite_numbers_are_at_most_one(name: str) -> None:
    x = every_scale()
    values = apply_elementwise(getattr(numerics, name))(x)
    assert np.abs(values[np.isfinite(x)]).max() <= 1 + 2e-7


def test_a_processor_without_fma_computes_the_same_bits(tmp_path: Path) -> None:
    assert fingerprints_without_fma("elementary", tmp_path) == elementary_fingerprints()


# --- random streams -------------------------------------------------------------------------------

# All seeds are fixed, so a test passes always or never; a p-value below this is a bug.
IMPROBABLE = 1e-4
words = st.integers(0, 2**64 - 1)


@given(st.lists(words, min_size=4, max_size=4).filter(any))
def test_words_match_the_reference(state: list[int]) -> None:
    array = np.array(state, np.uint64)
    found = [int(next_word(array)) for _ in range(20)]
    assert found == list(islice(reference.xoshiro256plusplus(state), 20))


def test_the_first_words_of_the_state_1_2_3_4_are_the_published_ones() -> None:
    # The first outputs of https://prng.di.unimi.it/xoshiro256plusplus.c from s = {1, 2, 3, 4}, as
    # the rand_xoshiro crate's tests also list them.
    state = np.array([1, 2, 3, 4], np.uint64)
    assert [int(next_word(state)) for _ in range(5)] == [
        41943041, 58720359, 3588806011781223, 3591011842654386, 9228616714210784205,
    ]  # fmt: skip


def test_units_are_the_upper_53_bits_of_the_words() -> None:
    state, same = random_state(3, 1), random_state(3, 1)
    filled = np.empty(50)
    fill_units(random_state(3, 1), filled)
    for value in filled:
        assert value == next_unit(state) == (int(next_word(same)) >> 11) / 2**53


def test_draws_continue_across_buffer_refills() -> None:
    filled, draws = np.empty(400), Draws(9, 9)
    fill_units(random_state(9, 9), filled)
    assert [draws.unit() for _ in range(400)] == filled.tolist()


# What a seed produces is a public interface: these numbers change only with GENOME_VERSION.
GOLDEN = {
    (0,): (0xEEB43BB1EEDD88FA, (0.9324376401335625, 0.9759038159075504, 0.33623019982131697)),
    (1, 2): (0x1D382FEE158B43C7, (0.11413859903909174, 0.4202471926120446, 0.09305246761543573)),
    (12,): (0xE153E0FBCAB6C618, (0.8801861395574759, 0.06650777428937604, 0.5283979678104539)),
    (-1, 18446744073709551616, 7): (
        0x25A1B08A6FB6B8FD,
        (0.14699843768877485, 0.6528745501538142, 0.7632873396239839),
    ),
    (1, 0, 0, 7, 0): (
        0x99DE17866DC9E9FE,
        (0.6010451033778633, 0.865606865454154, 0.8498981870689984),
    ),
}


@pytest.mark.parametrize("key", list(GOLDEN))
def test_the_streams_of_some_keys_never_change(key: tuple[int, ...]) -> None:
    word, units = GOLDEN[key]
    draws = Draws(*key)
    assert int(next_word(random_state(*key))) == word
    assert tuple(draws.unit() for _ in range(3)) == units


def test_keys_with_equal_concatenation_or_sum_differ() -> None:
    keys = [
        (1, 2),
        (12,),
        (2, 1),
        (3,),
        (1, 2, 0),
        (0, 1, 2),
        (-1, 2),
        (1, -2),
        (),
        (2**70,),
        (2**70 + 1,),
    ]
    assert len({random_state(*key).tobytes() for key in keys}) == len(keys)


def test_numpy_integers_make_the_same_key() -> None:
    np.testing.assert_array_equal(random_state(np.int64(5), np.uint8(7)), random_state(5, 7))


def test_streams_of_neighbouring_keys_are_uncorrelated() -> None:
    n, streams = 4096, np.empty((64, 4096))
    for index, stream in enumerate(streams):
        fill_units(random_state(0, index), stream)
    correlation = np.corrcoef(streams)[np.triu_indices(64, 1)]
    assert stats.kstest(correlation * math.sqrt(n), "norm").pvalue > IMPROBABLE
    # The first numbers of many streams, from which genomes are drawn, are uncorrelated as well.
    firsts = np.array([Draws(0, index).unit() for index in range(4096)])
    assert stats.kstest(firsts, "uniform").pvalue > IMPROBABLE
    assert abs(np.corrcoef(firsts[:-1], firsts[1:])[0, 1]) * math.sqrt(n) < 4


def test_units_and_uniforms_are_uniform_and_their_ranges_half_open() -> None:
    draws = Draws(4, 2)
    units = np.array([draws.unit() for _ in range(50_000)])
    uniforms = np.array([draws.uniform(-3.0, 5.0) for _ in range(50_000)])
    assert stats.kstest(units, "uniform").pvalue > IMPROBABLE
    assert stats.kstest(uniforms, "uniform", args=(-3, 8)).pvalue > IMPROBABLE
    assert units.min() >= 0
    assert units.max() < 1
    assert uniforms.min() >= -3
    assert uniforms.max() < 5


class Fixed(Draws):
    """Draws with a fixed unit: the ends of [0, 1)."""

    def __init__(self, unit: float) -> None:
        """Set the unit."""
        self.only = unit

    def unit(self) -> float:
        """Return the unit."""
        return self.only


def test_draws_stay_in_range_at_the_ends_of_the_unit_interval() -> None:
    low, high = Fixed(0.0), Fixed(1 - 2.0**-53)
    assert (low.integer(-2, 6), high.integer(-2, 6)) == (-2, 6)
    assert (low.choice("abc"), high.choice("abc")) == ("a", "c")
    assert (low.weighted("abc", (0, 2, 1)), high.weighted("abc", (1, 2, 0))) == ("b", "b")
    assert (low.sign(), high.sign()) == (-1.0, 1.0)
    assert (low.chance(0.0), high.chance(1.0)) == (False, True)
    assert (low.uniform(2, 3), high.uniform(0, 1)) == (2, 1 - 2.0**-53)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 6), (-4, 8), (3, 3)])
def test_integers_are_uniform_and_include_both_ends(low: int, high: int) -> None:
    draws = Draws(7, low, high)
    counts = Counter(draws.integer(low, high) for _ in range(20_000))
    assert sorted(counts) == list(range(low, high + 1))
    assert low == high or stats.chisquare(list(counts.values())).pvalue > IMPROBABLE


def test_choices_are_uniform_or_follow_their_weights() -> None:
    draws, n = Draws(8), 40_000
    even = Counter(draws.choice("abcde") for _ in range(n))
    assert sorted(even) == list("abcde")
    assert stats.chisquare(list(even.values())).pvalue > IMPROBABLE
    weights = (0.5, 0.0, 6.0, 1.5, 2.0)
    found = Counter(draws.weighted("abcde", weights) for _ in range(n))
    assert found["b"] == 0
    expected = [n * weight / sum(weights) for weight in weights if weight]
    assert stats.chisquare([found[item] for item in "acde"], expected).pvalue > IMPROBABLE


def test_signs_and_chances_have_the_stated_probabilities() -> None:
    draws, n = Draws(11), 40_000
    signs = Counter(draws.sign() for _ in range(n))
    assert sorted(signs) == [-1.0, 1.0]
    assert stats.binomtest(signs[1.0], n, 0.5).pvalue > IMPROBABLE
    assert stats.binomtest(sum(draws.chance(0.15) for _ in range(n)), n, 0.15).pvalue > IMPROBABLE
