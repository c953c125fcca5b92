"""Tone mapping: kernels match the references; properties of softness, blends and levels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import reference
from fractals.chaos import Tone, tone_map
from fractals.chaos_kernels import LEVELS, estimate_density, smooth
from fractals.genome import BLENDS
from fractals.image_kernels import blend_layer, fill_gradient, to_bytes

Plane = NDArray[np.float32]
REACH = sum(2 * 2**level for level in range(LEVELS))
"""Radius in pixels of the widest kernel: two taps of each gap."""


@st.composite
def histograms(draw: st.DrawFn) -> tuple[Plane, Plane]:
    """Draw points and sums of colours: non-square, down to sides smaller than any kernel."""
    height, width = draw(
        st.sampled_from([(3, 5), (1, 7), (2, 1), (17, 40), (33, 9), (48, 70), (90, 64)])
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Log-uniform from almost 0 to far above any softness, with empty pixels: covers every level.
    points = np.floor(2.0 ** rng.uniform(-3, 14, (height, width)))
    points *= rng.random((height, width)) < draw(st.sampled_from([0.02, 0.5, 1.0]))
    colours = points * rng.random((height, width))
    return points.astype(np.float32), colours.astype(np.float32)


@st.composite
def tones(draw: st.DrawFn) -> Tone:
    exposure = draw(st.floats(0.1, 20))
    return Tone(
        exposure=exposure,
        colour_start=draw(st.floats(0, 1)),
        colour_stretch=draw(st.floats(0.1, 2.5)),
        contrast=draw(st.floats(2, 100)) / exposure,
        gamma=draw(st.floats(0.5, 1.5)),
        vibrancy=draw(st.floats(0, 1)),
    )


def random_table(seed: int) -> Plane:
    return np.random.default_rng(seed).random((256, 3), np.float32)


def smoothed(plane: Plane, gap: int) -> Plane:
    out = np.full_like(plane, np.nan)
    smooth(plane, gap, np.full_like(plane, np.nan), out)
    return out


# --- smooth --------------------------------------------------------------------------------------


@given(histograms(), st.sampled_from([1, 2, 4, 8]))
def test_smooth_matches_the_reference_and_does_not_modify_its_input(
    planes: tuple[Plane, Plane], gap: int
) -> None:
    plane = planes[0]
    before = plane.copy()
    # Ten float32 roundings, relative to the largest neighbour.
    np.testing.assert_allclose(
        smoothed(plane, gap), reference.smooth(plane, gap), rtol=1e-6, atol=1e-6 * plane.max()
    )
    np.testing.assert_array_equal(plane, before)


@pytest.mark.parametrize("gap", [1, 2, 4, 8])
def test_smoothing_a_point_yields_products_of_1_4_6_4_1(gap: int) -> None:
    plane = np.zeros((41, 37), np.float32)
    plane[20, 18] = 256
    out = smoothed(plane, gap)
    square = out[20 - 2 * gap : 21 + 2 * gap : gap, 18 - 2 * gap : 19 + 2 * gap : gap]
    np.testing.assert_array_equal(square, np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]))
    assert out.sum() == 256


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (20, 34)])
def test_smoothing_keeps_a_flat_plane_up_to_the_corners(shape: tuple[int, int]) -> None:
    for gap in (1, 2, 4, 8):
        np.testing.assert_array_equal(smoothed(np.full(shape, 7, np.float32), gap), 7)


# --- estimate_density ----------------------------------------------------------------------------


@given(histograms(), st.sampled_from([0.5, 10.0, 48.0, 4000.0]))
def test_density_estimation_matches_the_reference_and_does_not_modify_its_input(
    planes: tuple[Plane, Plane], softness: float
) -> None:
    points, colours = planes
    before = points.copy(), colours.copy()
    levels = reference.density_levels(points, softness, LEVELS)
    for plane, out in zip(planes, estimate_density(points, colours, softness), strict=True):
        assert out.dtype == np.float32
        # A level is a logarithm with error 1e-6; the rest is about fifty float32 roundings.
        np.testing.assert_allclose(
            out, reference.spread(plane, levels, LEVELS), rtol=1e-5, atol=1e-5 * plane.max()
        )
    np.testing.assert_array_equal(points, before[0])
    np.testing.assert_array_equal(colours, before[1])


@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 48.0, 4000.0]))
def test_density_estimation_preserves_sums_away_from_the_edges(seed: int, softness: float) -> None:
    rng = np.random.default_rng(seed)
    points, colours = np.zeros((2, 2 * REACH + 9, 2 * REACH + 14), np.float32)
    points[REACH:-REACH, REACH:-REACH] = np.floor(2.0 ** rng.uniform(-3, 12, (9, 14)))
    colours[REACH:-REACH, REACH:-REACH] = points[REACH:-REACH, REACH:-REACH] * rng.random((9, 14))
    for plane, out in zip(
        (points, colours), estimate_density(points, colours, softness), strict=True
    ):
        assert out.sum(dtype=np.float64) == pytest.approx(plane.sum(dtype=np.float64), rel=1e-5)


def test_density_estimation_spreads_points_as_far_as_reach() -> None:
    points = np.zeros((2 * REACH + 1, 2 * REACH + 1), np.float32)
    points[REACH, REACH] = 1e-3
    out, _ = estimate_density(points, points, 48.0)
    assert out[0, REACH] > 0
    assert out[REACH, -1] > 0


@given(histograms())
def test_softness_0_changes_nothing(planes: tuple[Plane, Plane]) -> None:
    for plane, out in zip(planes, estimate_density(*planes, 0.0), strict=True):
        np.testing.assert_array_equal(out, plane)


def test_density_estimation_keeps_pixels_of_twice_the_softness() -> None:
    rng = np.random.default_rng(3)
    points = rng.uniform(96, 190, (23, 31)).astype(np.float32)
    colours = (points * rng.random((23, 31))).astype(np.float32)
    for plane, out in zip((points, colours), estimate_density(points, colours, 48.0), strict=True):
        np.testing.assert_array_equal(out, plane)
    # The limit is tight: a quarter of these points is blurred.
    assert not np.array_equal(estimate_density(points / 4, colours / 4, 48.0)[0], points / 4)


@pytest.mark.parametrize("level", range(LEVELS + 1))
def test_a_quarter_of_the_density_blurs_one_level_more(
    level: int,
) -> None:
    points = np.zeros((2 * REACH + 5, 2 * REACH + 2), np.float32)
    points[REACH, REACH] = 2 * 48 / 4**level
    expected = points.astype(np.float64)
    for exponent in range(level):
        expected = reference.smooth(expected, 2**exponent)
    out, _ = estimate_density(points, points, 48.0)
    np.testing.assert_allclose(out, expected, atol=1e-6 * points.max())


# --- tone_map ------------------------------------------------------------------------------------


@given(histograms(), tones(), st.integers(0, 2**32 - 1))
def test_tone_map_matches_the_reference_and_does_not_modify_its_input(
    planes: tuple[Plane, Plane], tone: Tone, seed: int
) -> None:
    points, colours = planes
    before = points.copy(), colours.copy()
    table, played = random_table(seed), 50 * points.size
    light, cover = tone_map(points, colours, played, tone, table)
    wanted_light, wanted_cover = reference.tone_map(points, colours, played, tone, table)
    height, width = points.shape
    assert light.shape == (3, height, width)
    assert cover.shape == (height, width)
    assert light.dtype == cover.dtype == np.float32
    # A palette position has error 1e-6 turns; times 256 random entries, that is 3e-4 of colour.
    np.testing.assert_allclose(light, wanted_light, atol=1e-3)
    # A logarithm has error 1e-6, which the root of 1e-4, the lowest brightness here, makes 5e-5.
    np.testing.assert_allclose(cover, wanted_cover, atol=1e-4)
    assert light.min() >= 0
    assert light.max() <= 1
    assert cover.max() <= 1
    np.testing.assert_array_equal(points, before[0])
    np.testing.assert_array_equal(colours, before[1])


def test_a_density_equal_to_the_exposure_is_fully_opaque() -> None:
    tone = Tone(exposure=2.0, gamma=0.7)
    played = 7 * 11 * 50
    density = np.full((7, 11), 2.0) * np.linspace(0.1, 1, 11)
    points = (density * played / 7**2).astype(np.float32)
    _, cover = tone_map(points, points / 2, played, tone, random_table(0))
    np.testing.assert_allclose(cover[:, -1], 1, atol=1e-5)
    assert (np.diff(cover, axis=1) > 0).all()


def test_pixels_without_points_are_black_and_transparent() -> None:
    points = np.zeros((6, 9), np.float32)
    light, cover = tone_map(points, points, 1000, Tone(exposure=1.0), random_table(0))
    assert np.abs(light).max() < 1e-12
    assert np.abs(cover).max() < 1e-12


def test_a_tone_does_not_depend_on_size_or_quality() -> None:
    """Four times the pixels or points gives the same brightness at the same density."""
    tone, table = Tone(exposure=3.0, colour_start=0.2), random_table(1)
    points = np.full((10, 15), 40, np.float32)
    base = tone_map(points, points / 3, 6000, tone, table)
    larger = np.full((20, 30), 40, np.float32)
    for planes, played in (((4 * points, 4 * points / 3), 24000), ((larger, larger / 3), 24000)):
        light, cover = tone_map(*planes, played, tone, table)
        np.testing.assert_allclose(light[:, 0, 0], base[0][:, 0, 0], atol=1e-4)
        np.testing.assert_allclose(cover[0, 0], base[1][0, 0], atol=1e-5)


# --- blend_layer ---------------------------------------------------------------------------------


@st.composite
def layer_pairs(draw: st.DrawFn) -> tuple[Plane, Plane, Plane, np.float32]:
    """Draw an image and a layer whose colours are premultiplied and thus never exceed its cover."""
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    below, cover = rng.random((n, 3), np.float32), rng.random(n, np.float32)
    light = rng.random((3, n), np.float32) * cover
    return below, light, cover, np.float32(draw(st.sampled_from([0.0, 0.3, 1.0])))


def blended(
    below: Plane, light: Plane, cover: Plane, blend: str, opacity: float | np.float32
) -> Plane:
    out = below.copy()
    blend_layer(out, light, cover, BLENDS.index(blend), np.float32(opacity))
    return out


@pytest.mark.parametrize("number", [-1, len(BLENDS)])
def test_the_kernel_rejects_an_unknown_blend(number: int) -> None:
    layer = np.zeros((3, 4), np.float32), np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="blend"):
        blend_layer(np.zeros((4, 3), np.float32), *layer, number, np.float32(1))


@pytest.mark.parametrize("blend", BLENDS)
@given(layer_pairs())
def test_blend_layer_matches_the_reference_and_does_not_modify_the_layer(
    blend: str, pair: tuple[Plane, Plane, Plane, np.float32]
) -> None:
    below, light, cover, opacity = pair
    before = light.copy(), cover.copy()
    out = blended(below, light, cover, blend, opacity)
    expected = reference.blended_layer(below, light, cover, blend, float(opacity))
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert out.min() >= 0
    assert out.max() <= 1
    np.testing.assert_array_equal(light, before[0])
    np.testing.assert_array_equal(cover, before[1])


@pytest.mark.parametrize("blend", BLENDS)
@given(layer_pairs())
def test_a_transparent_layer_changes_nothing(
    blend: str, pair: tuple[Plane, Plane, Plane, np.float32]
) -> None:
    below, light, cover, _ = pair
    nothing = np.zeros_like(light), np.zeros_like(cover)
    # Screen computes 1 - (1 - base), which rounds once.
    tolerance = 1e-7 if blend == "screen" else 0
    np.testing.assert_allclose(blended(below, *nothing, blend, 1), below, atol=tolerance)
    np.testing.assert_allclose(blended(below, light, cover, blend, 0), below, atol=tolerance)


@given(layer_pairs())
def test_over_with_full_cover_replaces_the_image(
    pair: tuple[Plane, Plane, Plane, np.float32],
) -> None:
    below, light, cover, _ = pair
    np.testing.assert_array_equal(blended(below, light, np.ones_like(cover), "over", 1), light.T)


@pytest.mark.parametrize("blend", ["screen", "lighten"])
@given(layer_pairs())
def test_screen_and_lighten_never_darken(
    blend: str, pair: tuple[Plane, Plane, Plane, np.float32]
) -> None:
    below = pair[0]
    assert (blended(*pair[:3], blend, pair[3]) >= below - 1e-7).all()


@given(layer_pairs())
def test_multiply_never_brightens(pair: tuple[Plane, Plane, Plane, np.float32]) -> None:
    below = pair[0]
    assert (blended(*pair[:3], "multiply", pair[3]) <= below + 1e-7).all()


# --- fill_gradient, to_bytes ----------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(1, 4), (5, 3), (64, 48)])
def test_the_background_is_a_linear_vertical_gradient(height: int, width: int) -> None:
    first, second = np.random.default_rng(height).random((2, 3), np.float32)
    out = np.full((height, width, 3), np.nan, np.float32)
    fill_gradient(first, second, out)
    np.testing.assert_allclose(out, reference.gradient(first, second, height, width), atol=1e-6)


def test_to_bytes_stretches_clamps_and_rounds() -> None:
    black, white = np.float32(0.25), np.float32(0.75)
    values = np.array([0, 0.25, 0.5, 0.75, 1, 0.25 + 0.5 * 10.4 / 255, 0.25 + 0.5 * 10.6 / 255])
    out = np.empty(len(values), np.uint8)
    to_bytes(values.astype(np.float32), black, white, out)
    assert out.tolist() == [0, 0, 128, 255, 255, 10, 11]


def test_every_byte_survives_the_round_trip() -> None:
    """Black 0 and white 1 change none of the 256 levels."""
    levels = np.arange(256)
    values, out = (levels / 255).astype(np.float32), np.empty(256, np.uint8)
    before = values.copy()
    to_bytes(values, np.float32(0), np.float32(1), out)
    np.testing.assert_array_equal(out, levels)
    np.testing.assert_array_equal(values, before)
