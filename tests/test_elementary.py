"""The elementary functions: their stated errors, their odd cases, and the same bits everywhere.

All of it is tested compiled. NUMBA_DISABLE_JIT=1 is no way to run these: an intrinsic (`fma`, `floor`,
`nearest`, the two casts of bits) is machine code only and has no Python to fall back to.
"""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import reference
from fingerprints import elementary_fingerprints, every_scale, mapped, on_a_plain_processor
from fractals import elementary

Exact = Callable[[NDArray[np.float64]], NDArray[np.float64]]
FMA = mapped(elementary.fma)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def powers_of_two(low: float, high: float) -> NDArray[np.float64]:
    return 2.0 ** np.linspace(low, high, 400_001)


def error(name: str, exact: Exact, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance from float64's answer at the float32 numbers nearest to x."""
    x = x.astype(np.float32)
    return np.abs(mapped(getattr(elementary, name))(x) - exact(x.astype(np.float64)))


# Each bound is the one that the function's docstring states.
@pytest.mark.parametrize(
    ("name", "exact", "low", "high", "bound"),
    [
        ("sine_of_turns", lambda t: np.sin(2 * np.pi * t), -1, 1, 3e-7),
        ("sine", np.sin, -8, 8, 1e-6),
        ("cosine", np.cos, -8, 8, 1e-6),
        ("logarithm2", np.log2, 0.5, 2, 1e-6),
        ("logarithm", np.log, 0.5, 2, 1e-6),
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
        assert np.abs(mapped(elementary.arctangent2)(y, x) - exact).max() < 5e-7


def test_powers_stay_under_the_stated_bound() -> None:
    random = np.random.default_rng(0)
    base = (2.0 ** random.uniform(-20, 20, 200_000)).astype(np.float32)
    exponent = random.uniform(-3, 3, 200_000).astype(np.float32)
    exact = base.astype(np.float64) ** exponent
    assert (np.abs(mapped(elementary.power)(base, exponent) - exact) / exact).max() < 1e-5


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
    np.testing.assert_array_equal(mapped(elementary.floor)(x), np.floor(x))
    np.testing.assert_array_equal(mapped(elementary.nearest)(x), np.rint(x))


@numba.njit
def round_trip(x: NDArray[np.float32], there: NDArray[np.int32], back: NDArray[np.float32]) -> None:
    for i in range(len(x)):
        there[i] = elementary.float_bits(x[i])
        back[i] = elementary.bits_float(there[i])


def test_floats_and_their_bits_are_two_sides_of_a_coin() -> None:
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
        (0, 0, 0), (-0.0, 0, 0), (0, 1, 0), (0, -1, HALF), (-0.0, -1, HALF), (1, 0, RIGHT), (-1, 0, -RIGHT),
        (np.inf, 1, RIGHT), (-np.inf, 1, -RIGHT), (1, np.inf, 0), (1, -np.inf, HALF), (3e38, 3e38, RIGHT / 2),
        (1e-40, 1e-40, RIGHT / 2),
    ],
)  # fmt: skip
def test_angles_on_the_axes_and_at_the_ends_of_the_range(y: float, x: float, angle: float) -> None:
    assert mapped(elementary.arctangent2)([y], [x])[0] == pytest.approx(angle, abs=5e-7)


@pytest.mark.parametrize(
    ("name", "x", "value"),
    [
        ("sine", 0, 0), ("cosine", 0, 1), ("sine_of_turns", 0.25, 1), ("sine_of_turns", -0.25, -1),
        ("sine_of_turns", 0.5, 0), ("sine_of_turns", 1e30, 0),
        ("exponential2", 0, 1), ("exponential2", 7, 128), ("exponential2", -3, 0.125),
        ("exponential2", np.inf, LARGEST), ("exponential2", -np.inf, SMALLEST),
        ("exponential2", 1e30, LARGEST), ("exponential", 0, 1), ("exponential", 1e30, LARGEST),
        ("logarithm2", 1, 0), ("logarithm2", 1024, 10), ("logarithm2", 0, -126), ("logarithm2", -5, -126),
        ("logarithm2", -np.inf, -126), ("logarithm2", 1e-45, -126), ("logarithm2", np.inf, 128),
        ("logarithm", 1, 0), ("logarithm", 0, np.float32(-126) * np.float32(0.693147181)),
    ],
)  # fmt: skip
def test_odd_cases_give_the_stated_value(name: str, x: float, value: float) -> None:
    assert mapped(getattr(elementary, name))([x])[0] == pytest.approx(value, rel=1e-7, abs=2e-7)


@pytest.mark.parametrize("exponent", [0.5, 1, 3])
def test_a_power_of_nothing_is_nearly_nothing(exponent: float) -> None:
    assert 0 <= mapped(elementary.power)([0], [exponent])[0] < 1e-18


@pytest.mark.parametrize("name", ["sine_of_turns", "sine", "cosine"])
def test_no_finite_number_throws_a_sine_beyond_one(name: str) -> None:
    x = every_scale()
    values = mapped(getattr(elementary, name))(x)
    assert np.abs(values[np.isfinite(x)]).max() <= 1 + 2e-7


def test_a_processor_without_fused_multiply_adds_gives_the_same_bits(tmp_path: Path) -> None:
    assert on_a_plain_processor("elementary", tmp_path) == elementary_fingerprints()
