"""Variations: each matches the paper's formula and the assumptions of the kernels."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

import reference
from fractals.variations import (
    VARIATION_NUMBER,
    VARIATIONS,
    Variation,
    add_variation,
    next_noise,
    noise_unit,
)

Floats = NDArray[np.float32]
NAMES = [variation.name for variation in VARIATIONS]
# Random numbers per point that a variation uses.
NOISE = {"julia": 1, "julian": 1, "juliascope": 1, "blur": 2, "square": 2}

every_variation = pytest.mark.parametrize("variation", VARIATIONS, ids=NAMES)
weights = st.floats(-2, 2, width=32).filter(lambda w: w == 0 or abs(w) > 1e-3)
seeds = st.integers(0, 2**32 - 1)


def drawn_parameters(variation: Variation, random: np.random.Generator) -> Floats:
    """Draw (4,) float32 parameters from the variation's ranges."""
    p = np.zeros(4, np.float32)
    for i, (_, low, high, integer) in enumerate(variation.parameters):
        value = random.uniform(low, high)
        p[i] = np.floor(value) if integer else value
    return p


def add(
    variation: Variation, x: Floats, y: Floats, w: float, p: Floats, noise: NDArray[np.uint32],
    start: tuple[float, float] = (0, 0),
) -> tuple[Floats, Floats]:  # fmt: skip
    """Return the sums after the kernel has added to two arrays of ``start``; advances noise."""
    out_x, out_y = (np.full(len(x), each, np.float32) for each in start)
    add_variation(VARIATION_NUMBER[variation.name], x, y, out_x, out_y, np.float32(w), p, noise)
    return out_x, out_y


def noise_states(n: int, seed: int) -> NDArray[np.uint32]:
    return np.random.default_rng(seed).integers(1, 2**32, n, dtype=np.uint32)


def uniforms_of(noise: NDArray[np.uint32]) -> tuple[NDArray[np.float64], ...]:
    """Return the two uniforms that each orbit's noise state produces."""
    states = [int(state) for state in noise]
    units = []
    for _ in range(2):
        states = [reference.xorshift32(state) for state in states]
        units.append(np.array([(state >> 8) / 2**24 for state in states]))
    return units[0], units[1]


def away_from_poles(
    name: str, x: NDArray[np.float64], y: NDArray[np.float64], p: Floats
) -> NDArray[np.bool_]:
    """Mark the points that no clamp or epsilon of the kernel affects."""
    fair = np.hypot(x, y) > 0.1
    if name == "popcorn":
        fair &= (abs(np.cos(3 * x)) > 0.01) & (abs(np.cos(3 * y)) > 0.01)
    if name == "tangent":
        fair &= abs(np.cos(y)) > 0.01
    if name == "perspective":
        fair &= abs(p[1] - y * np.sin(p[0])) > 0.01
    if name == "cross":
        # The kernel's 1e-6 next to |x^2 - y^2|.
        fair &= abs(x * x - y * y) > 0.2
    if name == "curl":
        z = x + 1j * y
        fair &= abs(1 + p[0] * z + p[1] * z**2) > 0.1
    return fair


@every_variation
@given(seed=seeds, w=weights)
def test_a_variation_equals_the_papers_formula(variation: Variation, seed: int, w: float) -> None:
    random = np.random.default_rng(seed)
    p = drawn_parameters(variation, random)
    x, y = random.uniform(-3, 3, (2, 57)).astype(np.float32)
    noise = noise_states(57, seed)
    first, second = uniforms_of(noise)
    found = add(variation, x, y, w, p, noise, start=(0.5, -0.25))

    def formula(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
        at = x.astype(np.float64), y.astype(np.float64)
        return np.array(reference.vary(variation.name, *at, tuple(p.tolist()), first, second))

    exact = formula(x, y)
    # float32 resolves a point, and its angle, to a few parts in 10^7. The result may therefore
    # differ by 1e-5 relative, plus the formula's change when the point moves by 3e-6, which also
    # allows either side of a branch cut.
    nudges = [
        3e-6 * np.array(d)
        for d in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1))
    ]
    moved = np.max(
        [
            abs(formula(x + 0.0 + dx * (1 + abs(x)), y + 0.0 + dy * (1 + abs(y))) - exact)
            for dx, dy in nudges
        ],
        axis=0,
    )
    allowed = 1e-6 + abs(w) * (1e-5 * (1 + abs(exact)) + 2 * moved)
    difference = abs(np.array(found) - (np.array([[0.5], [-0.25]]) + w * exact))
    fair = away_from_poles(variation.name, x.astype(np.float64), y.astype(np.float64), p)
    assert fair.sum() > 25
    assert (difference / allowed)[:, fair].max() <= 1


@every_variation
@given(seed=seeds, w=weights)
def test_a_variation_adds_its_weighted_value_and_does_not_modify_the_point(
    variation: Variation, seed: int, w: float
) -> None:
    random = np.random.default_rng(seed)
    p = drawn_parameters(variation, random)
    x, y = random.uniform(-3, 3, (2, 33)).astype(np.float32)
    originals = x.copy(), y.copy(), p.copy()
    noise = noise_states(33, seed)
    once = add(variation, x, y, w, p, noise.copy())
    # Doubling is exact in floating point, so twice the weight is twice the sum to the last bit.
    twice = add(variation, x, y, 2 * w, p, noise.copy())
    np.testing.assert_array_equal(twice, 2 * np.array(once))
    for found, before in zip((x, y, p), originals, strict=True):
        np.testing.assert_array_equal(found, before)
    added_to = add(variation, x, y, w, p, noise.copy(), start=(8, -8))
    np.testing.assert_allclose(added_to, once + np.array([[8], [-8]]), rtol=1e-6, atol=2e-6)
    np.testing.assert_array_equal(
        add(variation, x, y, 0, p, noise, start=(3, 4)), np.full((2, 33), [[3], [4]])
    )


@every_variation
def test_a_point_does_not_depend_on_its_position_in_the_array(variation: Variation) -> None:
    random = np.random.default_rng(1)
    p = drawn_parameters(variation, random)
    x, y = random.uniform(-3, 3, (2, 70)).astype(np.float32)
    noise = noise_states(70, 2)
    whole = np.array(add(variation, x, y, 0.7, p, noise.copy()))
    # Vectors of 16 points and the remainder: the bits are the same wherever the array is cut.
    for low, high in ((0, 1), (3, 20), (17, 70), (69, 70)):
        part = add(variation, x[low:high], y[low:high], 0.7, p, noise[low:high].copy())
        np.testing.assert_array_equal(part, whole[:, low:high])


@every_variation
def test_each_orbit_has_its_own_noise_which_advances_as_used(variation: Variation) -> None:
    noise = noise_states(40, 3)
    expected = [int(state) for state in noise]
    for _ in range(NOISE.get(variation.name, 0)):
        expected = [reference.xorshift32(state) for state in expected]
    x, y = np.random.default_rng(4).uniform(-2, 2, (2, 40)).astype(np.float32)
    add(variation, x, y, 1.0, drawn_parameters(variation, np.random.default_rng(5)), noise)
    assert noise.tolist() == expected


@given(st.integers(0, 2**32 - 1))
def test_noise_matches_the_reference(state: int) -> None:
    assert int(next_noise(np.uint32(state))) == reference.xorshift32(state)
    assert float(noise_unit(np.uint32(state))) == (state >> 8) / 2**24


@every_variation
def test_points_within_bounds_never_yield_nan(variation: Variation) -> None:
    # Orbits beyond 10^6 restart, so these are the most extreme points: the origin, axes,
    # diagonals, poles of the tangent, and the ends of the range.
    half = np.pi / 2
    ends = [
        0.0,
        -0.0,
        1e-30,
        -1e-30,
        1e-6,
        1.0,
        -1.0,
        half,
        -half,
        half / 3,
        3.0,
        1e3,
        999_999.0,
        -999_999.0,
    ]
    x, y = (each.ravel().astype(np.float32) for each in np.meshgrid(ends, ends))
    for seed in range(20):
        p = drawn_parameters(variation, np.random.default_rng(seed))
        if variation.name in ("julian", "juliascope"):
            p[1] *= (-1) ** seed  # The distance may also be negative.
        found = np.array(add(variation, x, y, 1.0, p, noise_states(len(x), seed)))
        assert np.isfinite(found).all()


def branches(name: str, p: Floats, x: float, y: float, n: int) -> tuple[Counter[Any], Counter[Any]]:
    """Count the results of n copies of a point, to three decimals, from kernel and reference."""
    variation = VARIATIONS[VARIATION_NUMBER[name]]
    many_x, many_y = np.full(n, x, np.float32), np.full(n, y, np.float32)
    found = add(variation, many_x, many_y, 1.0, p, noise_states(n, 6))
    first, second = np.random.default_rng(7).random((2, n))
    exact = reference.vary(
        name, many_x.astype(float), many_y.astype(float), tuple(p.tolist()), first, second
    )
    return tuple(
        Counter(zip(*(np.round(each, 3).tolist() for each in pair), strict=True))
        for pair in (found, exact)
    )


@pytest.mark.parametrize(
    ("name", "p", "n_branches"),
    [
        ("julia", (), 2), ("julian", (2, 1.3), 2), ("julian", (5, -0.8), 5), ("julian", (6, 1), 6),
        ("juliascope", (2, 1), 2), ("juliascope", (5, 0.7), 5), ("juliascope", (6, -1), 6),
    ],
)  # fmt: skip
def test_roots_match_the_reference_and_are_equally_frequent(
    name: str, p: tuple[float, ...], n_branches: int
) -> None:
    parameters = np.zeros(4, np.float32)
    parameters[: len(p)] = p
    found, exact = branches(name, parameters, 0.7, -1.1, 30_000)
    assert len(found) == n_branches
    nearest = {min(exact, key=lambda at: abs(at[0] - x) + abs(at[1] - y)): (x, y) for x, y in found}
    assert sorted(nearest) == sorted(exact)
    assert all(np.allclose(at, there, atol=0.002) for at, there in nearest.items())
    assert stats.chisquare(list(found.values())).pvalue > 1e-4


def test_blur_is_dense_at_its_centre_and_uniform_in_angle() -> None:
    variation = VARIATIONS[VARIATION_NUMBER["blur"]]
    x, y = add(
        variation,
        *np.zeros((2, 20_000), np.float32),
        1.0,
        np.zeros(4, np.float32),
        noise_states(20_000, 8),
    )
    assert stats.kstest(np.hypot(x, y), "uniform").pvalue > 1e-4
    assert stats.kstest(np.arctan2(y, x), "uniform", args=(-np.pi, 2 * np.pi)).pvalue > 1e-4


def test_square_is_uniform_and_centred() -> None:
    variation = VARIATIONS[VARIATION_NUMBER["square"]]
    found = add(
        variation,
        *np.zeros((2, 20_000), np.float32),
        1.0,
        np.zeros(4, np.float32),
        noise_states(20_000, 9),
    )
    for each in found:
        assert stats.kstest(each, "uniform", args=(-0.5, 1)).pvalue > 1e-4
    assert abs(np.corrcoef(found)[0, 1]) * np.sqrt(20_000) < 4


def test_names_are_unique_and_ranges_are_increasing() -> None:
    assert len(set(NAMES)) == len(NAMES) >= 38
    for variation in VARIATIONS:
        assert len(variation.parameters) <= 4
        assert all(each.low < each.high for each in variation.parameters)


@pytest.mark.parametrize("number", [-1, len(VARIATIONS)])
def test_the_kernel_rejects_an_unknown_number(number: int) -> None:
    x, noise = np.zeros(4, np.float32), noise_states(4, 0)
    with pytest.raises(ValueError, match="variation"):
        add_variation(number, x, x, x.copy(), x.copy(), np.float32(1), x, noise)
