"""The chaos game: the one-orbit game's density, complete counts, and independence of batches.

Distance from the density of the one-orbit game, as total variation (fraction of points that would
have to move), measured once with 2 x 10^8 points of the game and 10^8 of the reference on 24 x 16
pixels: "affine" .0003, "several variations" .0008, "three turns" .0012, "unequal" .0013, "one map
beside a rare one" .0009. Chance alone gives .0002 to .0011; the rest is the rounding of weights to
1/2,048. The transient after a warm-up of 16 steps adds, over the first 24 steps, .0036 ("three
turns", because turns do not contract; .0079 of the colour) or .0022 ("unequal"), and nothing
measurable over 1,600.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import reference
from fractals import chaos
from fractals.chaos import (
    Affine,
    Camera,
    ChaosLayer,
    Map,
    Tone,
    VariationTerm,
    accumulate,
    camera_matrix,
    compile_layer,
    sample_points,
    segment_bounds,
    start_orbits,
)
from fractals.chaos_kernels import FOLDS, MAX_STEPS, ORBITS, WARM_UP, play
from fractals.numerics import random_state

TONE = Tone(exposure=1.0)
IDENTITY: Affine = (1, 0, 0, 0, 1, 0)
CAMERA = Camera(centre=(0.1, -0.2), width=2.5)
SHAPE = (16, 24)


def term(name: str, weight: float, *parameters: float) -> VariationTerm:
    return VariationTerm(name=name, weight=weight, parameters=parameters)


def similar(scale: float, angle: float, x: float, y: float) -> Affine:
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return (float(c), float(-s), x, float(s), float(c), y)


def system(
    *maps: Map, camera: Camera = CAMERA, final: Map | None = None, symmetry: int = 1
) -> ChaosLayer:
    return ChaosLayer(maps=maps, camera=camera, tone=TONE, final=final, symmetry=symmetry)


FERN = (
    Map(affine=similar(0.7, 0.5, 0.6, 0.1), weight=0.9, colour=0.0, speed=0.3),
    Map(affine=similar(0.5, -1.9, -0.7, 0.4), weight=0.05, colour=0.6, speed=0.8),
    Map(affine=(0.3, 0.4, -0.2, -0.5, 0.2, -0.8), weight=0.05, colour=1.0, speed=0.5),
)
EVEN = (
    Map(affine=similar(0.6, 0.3, 0.5, 0.3), colour=0.0),
    Map(affine=similar(0.5, 2.1, -0.6, 0.1), colour=1.0),
)
BENT = (
    Map(
        affine=similar(0.9, 0.4, 0.2, -0.3),
        variations=(term("spherical", 0.6), term("swirl", 0.4)),
        weight=0.6, colour=0.2, speed=0.4,
    ),
    Map(
        affine=similar(0.8, -1.2, 0.5, 0.4),
        variations=(term("sinusoidal", 0.5), term("julian", 0.4, 3, 1.1), term("blur", 0.2)),
        weight=0.4, colour=0.9, speed=0.6,
    ),
)  # fmt: skip
LENS = Map(affine=similar(1.1, 0.7, 0.3, -0.2), variations=(term("spherical", 1.0),), speed=0.0)
COLOURED_LENS = Map(
    affine=similar(0.8, 0.1, 0.1, 0.0), variations=(term("julia", 1.0),), colour=0.9, speed=0.25
)

SYSTEMS = {
    "affine": system(*EVEN),
    "unequal": system(*FERN),
    "one map beside a rare one": system(
        replace(EVEN[0], weight=0.97), replace(EVEN[1], weight=0.03)
    ),
    "one variation": system(
        Map(affine=similar(0.9, 0.4, 0.5, -0.3), variations=(term("eyefish", 0.8),)),
        Map(affine=similar(0.7, 2.0, -0.8, 0.4), variations=(term("bubble", 0.9),), colour=1.0),
    ),
    "several variations": system(*BENT),
    "posts": system(
        replace(BENT[0], post=(0.8, 0.1, 0.3, -0.2, 0.7, 0.1)),
        replace(EVEN[1], post=(0.9, 0, -0.2, 0.1, 1.1, 0.2)),
    ),
    "three turns": system(*FERN, symmetry=3),
    "dihedral": system(*EVEN, symmetry=-4),
    "a mirror": system(*FERN, symmetry=-1),
    "a lens": system(*EVEN, final=LENS),
    "a coloured lens over variations": system(*BENT, final=COLOURED_LENS),
    "mirrored borders": system(*FERN, camera=Camera(centre=(0.6, 0.3), width=1.1, fold="mirror")),
    "wrapped borders": system(*BENT, camera=Camera(centre=(0.6, 0.3), width=0.9, fold="wrap")),
    "a turned camera": system(*EVEN, camera=Camera(centre=(-0.3, 0.2), width=1.6, rotation=0.8)),
    "a turned camera and mirrors": system(
        *BENT, camera=Camera(centre=(0.2, 0.1), width=1.2, rotation=-2.1, fold="mirror")
    ),
}

Planes = NDArray[np.float64]


def games(layer: ChaosLayer, n: int, steps: int, shape: tuple[int, int] = SHAPE) -> Planes:
    """Return n independent games as fractions of all points: (n, 2, H, W), points and colours."""
    samples = steps * ORBITS / (shape[0] * shape[1])
    played = [accumulate(layer, *shape, samples, 7, index) for index in range(n)]
    return np.array([np.array(each[:2], np.float64) / each[2] for each in played])


def reference_games(layer: ChaosLayer, probabilities: list[float], seed: int = 0) -> Planes:
    """Return 40 games of 100,000 points by the reference, like ``games``."""
    planes = reference.chaos_game(
        layer,
        *SHAPE,
        points=4_000_000,
        seed=seed,
        orbits=40_000,
        warm_up=80,
        probabilities=probabilities,
        games=40,
    )
    return planes.swapaxes(0, 1) / 100_000


def excess_difference(some: Planes, others: Planes) -> NDArray[np.float64]:
    """Return the squared difference of points and colours, relative to what chance explains.

    Independent games of one distribution give 1. Chance is estimated from the variance among games,
    because points of one orbit are correlated and a pixel's count is not Poisson.
    """
    explained = some.var(0, ddof=1) / len(some) + others.var(0, ddof=1) / len(others)
    return ((some.mean(0) - others.mean(0)) ** 2).sum((1, 2)) / explained.sum((1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_points_and_colours_match_the_one_orbit_game(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for every transient to vanish, so that only chance is left.
    monkeypatch.setattr(chaos, "WARM_UP", 100)
    layer = SYSTEMS[name]
    probabilities = (np.diff(compile_layer(layer).bounds) / ORBITS).tolist()
    found, exact = games(layer, 24, 300), reference_games(layer, probabilities)
    # Over 60 pairs of games, .1 to 3.5 was measured; moving 2 % of the steps to another map gives
    # at least 17.
    assert excess_difference(found, exact).max() < 8
    probabilities[0], probabilities[1] = probabilities[0] - 0.02, probabilities[1] + 0.02
    assert excess_difference(found, reference_games(layer, probabilities)).min() > 8


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_point_is_counted_and_folded_points_are_inside(name: str) -> None:
    layer = SYSTEMS[name]
    histogram = accumulate(layer, *SHAPE, 200, 1)
    program, state, words = compile_layer(layer), random_state(1), np.zeros(16 * 24 + 1, np.uint64)
    orbits, fold = start_orbits(state), FOLDS.index(layer.camera.fold)
    play(
        state,
        orbits,
        program,
        camera_matrix(layer.camera, *SHAPE),
        fold,
        WARM_UP,
        38,
        24,
        16,
        words,
        False,
    )
    counts = words >> np.uint64(40)
    assert counts.sum() == histogram.played == 38 * ORBITS
    np.testing.assert_array_equal(histogram.points.ravel(), counts[:-1])
    assert (counts[-1] == 0) == (histogram.points.sum() == histogram.played)
    if layer.camera.fold != "none":
        assert counts[-1] == 0
    mean = histogram.colours / np.maximum(histogram.points, 1)
    assert mean.min() >= 0
    assert mean.max() <= 1
    assert (histogram.colours[histogram.points == 0] == 0).all()


@pytest.mark.parametrize(
    "name", ["affine", "a coloured lens over variations", "wrapped borders", "three turns"]
)
@pytest.mark.parametrize("max_steps", [1, 7, 36])
def test_the_result_does_not_depend_on_how_a_game_is_split_into_calls(
    name: str, max_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_one_call = accumulate(SYSTEMS[name], *SHAPE, 197, 5)
    assert in_one_call.played == 37 * ORBITS
    monkeypatch.setattr(chaos, "MAX_STEPS", max_steps)
    in_parts = accumulate(SYSTEMS[name], *SHAPE, 197, 5)
    assert in_parts.played == in_one_call.played
    np.testing.assert_array_equal(in_parts.points, in_one_call.points)
    # Each flush rounds the sum of a pixel's colours to float32.
    np.testing.assert_allclose(in_parts.colours, in_one_call.colours, rtol=37 * 2.0**-24)


def test_an_accumulator_holds_the_points_of_a_call() -> None:
    # All points are in one pixel with the highest colour: neither half of the word overflows.
    still = system(
        Map(affine=(0, 0, 0.5, 0, 0, 0.5), colour=1.0, speed=1.0),
        camera=Camera(centre=(0.5, 0.5), width=1),
    )
    histogram = accumulate(still, 1, 1, MAX_STEPS * ORBITS, 0)
    assert histogram.played == MAX_STEPS * ORBITS
    assert histogram.points[0, 0] == histogram.played
    assert histogram.colours[0, 0] == histogram.played


@given(samples=st.floats(0.01, 500), height=st.integers(1, 40), width=st.integers(1, 40))
def test_samples_per_pixel_are_rounded_up_to_whole_steps(
    samples: float, height: int, width: int
) -> None:
    histogram = accumulate(SYSTEMS["affine"], height, width, samples, 0)
    expected_length = samples * height * width
    assert histogram.points.shape == histogram.colours.shape == (height, width)
    assert histogram.played % ORBITS == 0
    assert (
        expected_length <= histogram.played < expected_length + ORBITS
        or histogram.played == ORBITS > expected_length
    )


def test_a_key_determines_the_game() -> None:
    layer = SYSTEMS["several variations"]
    first, again, other = (accumulate(layer, *SHAPE, 50, *key) for key in ((1, 2), (1, 2), (12,)))
    np.testing.assert_array_equal(first.points, again.points)
    np.testing.assert_array_equal(first.colours, again.colours)
    assert (first.points != other.points).any()


# --- diverging orbits ----------------------------------------------------------------------------


def test_diverged_and_nan_orbits_restart() -> None:
    program, state = compile_layer(SYSTEMS["affine"]), random_state(3)
    orbits, healthy = start_orbits(state), start_orbits(random_state(3))
    before = orbits.noise.copy()
    invalid_values = {5: np.nan, 77: np.inf, 300: -np.inf, 2047: 1e30}
    for at, value in invalid_values.items():
        orbits.x[0, at] = value
    words, same = np.zeros(2, np.uint64), random_state(3)
    start_orbits(same)
    still = np.array([0, 0, -1, 0, 0, -1], np.float32)
    play(state, orbits, program, still, 0, 0, 1, 1, 1, words, False)
    play(same, healthy, program, still, 0, 0, 1, 1, 1, words, False)
    changed = np.flatnonzero((orbits.x[0] != healthy.x[0]) | (orbits.y[0] != healthy.y[0]))
    assert len(changed) == len(invalid_values)
    assert np.isfinite(orbits.x[0]).all()
    assert np.abs(orbits.x[0, changed]).max() <= 1
    assert np.abs(orbits.y[0, changed]).max() <= 1
    assert len(set(orbits.x[0, changed].tolist())) == len(invalid_values)
    # Only these orbits used their noise.
    np.testing.assert_array_equal(np.flatnonzero(orbits.noise != before), changed)


def test_a_system_whose_orbits_all_diverge_terminates() -> None:
    diverging = system(Map(affine=(9e5, 0, 0, 0, 9e5, 0)), Map(affine=(-8e5, 1, 7, 2, 9e5, 0)))
    histogram = accumulate(diverging, *SHAPE, 50, 0)
    assert np.isfinite(histogram.colours).all()
    assert 0 < histogram.points.sum() <= histogram.played
    x, y = sample_points(compile_layer(diverging), 2, 0)
    assert np.isfinite(x).all()
    assert np.isfinite(y).all()


@pytest.mark.parametrize("fold", ["none", "mirror", "wrap"])
def test_a_final_map_that_overflows_plots_nothing(fold: str) -> None:
    # 2e38 + 2e38 overflows float32; the fold of infinity is NaN, which is not a position.
    final = Map(affine=(2e38, 2e38, 3e38, 2e38, 2e38, 3e38), speed=0.0)
    infinite = system(
        Map(affine=(0, 0, 1, 0, 0, 1)),
        camera=Camera(centre=(0.0, 0.0), width=2, fold=fold),
        final=final,
    )
    histogram = accumulate(infinite, *SHAPE, 50, 0)
    assert histogram.points.sum() == 0
    assert histogram.colours.sum() == 0


# --- programs ------------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60))
def test_segments_are_proportional_to_weights_and_never_empty(
    weights: list[float],
) -> None:
    bounds = segment_bounds(weights)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, ORBITS, len(weights) + 1)
    lengths = np.diff(bounds)
    assert lengths.min() >= 1
    expected_length = ORBITS * np.array(weights) / sum(weights)
    # One place for rounding, and those of the lightest maps, which never are empty.
    assert (lengths - expected_length).max() <= 1 + np.count_nonzero(expected_length < 1)
    assert (expected_length - lengths).max() <= 1 + np.count_nonzero(expected_length < 1)


@pytest.mark.parametrize(("symmetry", "n"), [(1, 2), (2, 3), (5, 6), (-1, 3), (-2, 4), (-4, 6)])
def test_symmetry_maps_have_the_total_weight_and_keep_colours(symmetry: int, n: int) -> None:
    program = compile_layer(system(*EVEN, symmetry=symmetry))
    assert len(program.bounds) == n + 1
    expected = reference.symmetry_affines(symmetry)
    np.testing.assert_allclose(program.affine[2:], np.reshape(expected, (-1, 6)), atol=1e-6)
    assert (program.keep[2:] == 1).all()
    assert (program.pull[2:] == 0).all()
    group = np.append(np.diff(program.bounds)[2:], program.bounds[2])
    assert np.ptp(group) <= 1


def test_a_program_represents_its_layer() -> None:
    layer = system(*BENT, final=COLOURED_LENS)
    program = compile_layer(layer)
    maps = [*BENT, COLOURED_LENS]
    assert program.has_final
    assert program.first.tolist() == [0, 2, 5, 6]
    np.testing.assert_array_equal(
        program.affine, np.array([each.affine for each in maps], np.float32)
    )
    terms = [each for one in maps for each in one.variations]
    np.testing.assert_array_equal(
        program.weights, np.array([each.weight for each in terms], np.float32)
    )
    assert program.parameters[3, :2].tolist() == [3.0, np.float32(1.1)]
    np.testing.assert_allclose(program.pull, [0.08, 0.54, 0.225])
    np.testing.assert_allclose(program.keep, [0.6, 0.4, 0.75])
    assert program.has_post.tolist() == [False, False, False]


# --- the camera ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(16, 24), (31, 7), (64, 64)])
@pytest.mark.parametrize("rotation", [0.0, 0.7, -2.5, np.pi])
def test_the_camera_maps_centre_and_width_to_the_image(
    height: int, width: int, rotation: float
) -> None:
    camera = Camera(centre=(0.3, -1.2), width=0.8, rotation=rotation)
    a, b, c, d, e, f = camera_matrix(camera, height, width).astype(float).tolist()

    def pixel(x: float, y: float) -> NDArray[np.float64]:
        return np.array([a * x + b * y + c, d * x + e * y + f])

    middle = pixel(0.3, -1.2)
    np.testing.assert_allclose(middle, [width / 2, height / 2], atol=1e-4)
    along, across = pixel(1.1, -1.2) - middle, pixel(0.3, -0.4) - middle
    # The camera's width, along either axis, is the shorter side in pixels; pixels are square.
    np.testing.assert_allclose(np.hypot(*along), min(height, width), rtol=1e-5)
    np.testing.assert_allclose(np.hypot(*across), min(height, width), rtol=1e-5)
    assert abs(along @ across) < 1e-3 * min(height, width) ** 2
    x, y = np.random.default_rng(0).uniform(-2, 2, (2, 50))
    expected = reference.to_pixels(camera, height, width, x, y)
    np.testing.assert_allclose(pixel(x, y), expected, rtol=1e-5, atol=1e-3)


def test_a_larger_image_shows_the_same() -> None:
    layer = SYSTEMS["a turned camera"]
    small, large = accumulate(layer, 8, 12, 20_000, 1), accumulate(layer, 32, 48, 1_250, 2)
    gathered = large.points.reshape(8, 4, 12, 4).sum((1, 3))
    difference = small.points / small.played - gathered / large.played
    assert np.abs(difference).sum() < 0.01


def test_sampled_points_are_on_the_attractor() -> None:
    layer = replace(SYSTEMS["a lens"], camera=Camera(centre=(0.0, 0.0), width=6.0))
    x, y = sample_points(compile_layer(layer), 40, 3)
    assert x.shape == y.shape == (40 * ORBITS,)
    column, row = reference.to_pixels(layer.camera, *SHAPE, x, y)
    counts, _, _ = np.histogram2d(row, column, (16, 24), ((0, 16), (0, 24)))
    expected = games(layer, 1, 2000)[0, 0]
    assert np.abs(counts / len(x) - expected).sum() / 2 < 0.02


@pytest.mark.parametrize("fold", [-1, len(FOLDS)])
def test_the_kernel_rejects_an_unknown_fold(fold: int) -> None:
    layer, state = system(Map(affine=IDENTITY)), random_state(0)
    words = np.zeros(2, np.uint64)
    with pytest.raises(ValueError, match="fold"):
        play(
            state, start_orbits(state), compile_layer(layer), camera_matrix(CAMERA, 1, 1), fold,
            0, 1, 1, 1, words, False,
        )  # fmt: skip
