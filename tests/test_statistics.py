"""Image statistics: references, known values, and the published figures."""

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import reference
from fractals import image_kernels as kernels
from fractals import statistics
from fractals.statistics import (
    colour_features,
    hog_features,
    measure,
    preview_statistics,
    vendi_score,
)

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@st.composite
def images(draw: st.DrawFn) -> NDArray[np.uint8]:
    """Draw non-square images from flat to high-contrast, on both sides of every threshold."""
    height, width = draw(
        st.tuples(st.integers(16, 75), st.integers(16, 75)).filter(lambda side: side[0] != side[1])
    )
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    contrast = draw(st.sampled_from([1, 2, 12, 24, 40, 256]))
    base = draw(st.integers(0, 256 - contrast))
    grain = draw(st.sampled_from([1, 3, 9]))
    coarse = generator.integers(base, base + contrast, (height, width, 3), dtype=np.uint8)
    return coarse.repeat(grain, 0).repeat(grain, 1)[:height, :width]


def padded(image: NDArray[np.uint8]) -> NDArray[np.int32]:
    return kernels.padded_luma(image)


def flat(red: int, green: int, blue: int, shape: tuple[int, int] = (40, 72)) -> NDArray[np.uint8]:
    return np.full((*shape, 3), (red, green, blue), np.uint8)


def luma_at_32(image: NDArray[np.uint8]) -> NDArray[np.int32]:
    return statistics._padded_luma_at_32(padded(image))[1:-1, 1:-1]


def colour_vendi(images: list[NDArray[np.uint8]]) -> float:
    return vendi_score(np.array([colour_features(image) for image in images]))


def hog_vendi(images: list[NDArray[np.uint8]]) -> float:
    return vendi_score(np.array([hog_features(image) for image in images]))


def noise_with_slope(slope: float, shape: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Return grey noise whose power falls as frequency to the power -slope."""
    spectrum = np.fft.rfft2(np.random.default_rng(seed).standard_normal(shape))
    rows, columns = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])
    radius = np.hypot(rows, columns)
    radius[0, 0] = 1
    field = np.fft.irfft2(spectrum * radius ** (-slope / 2), shape)
    levels = np.clip(127.5 + 40 * (field - field.mean()) / field.std(), 0, 255)
    return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=2)


# --- kernels and their references ----------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(images())
def test_luma_matches_the_reference_and_its_border_repeats_the_image(
    image: NDArray[np.uint8],
) -> None:
    assert np.array_equal(padded(image), np.pad(reference.luma(image), 1, mode="edge"))


@settings(deadline=None, max_examples=25)
@given(images())
def test_edges_match_the_reference(image: NDArray[np.uint8]) -> None:
    assert np.array_equal(
        kernels.edge_mask(padded(image)), reference.edge_mask(reference.luma(image))
    )


@settings(deadline=None, max_examples=40)
@given(images())
def test_textured_blocks_match_the_reference(image: NDArray[np.uint8]) -> None:
    expected = reference.count_textured_blocks(reference.luma(image))
    assert kernels.count_textured_blocks(padded(image)) == expected


@settings(deadline=None, max_examples=40)
@given(images())
def test_histograms_and_moments_match_the_reference(image: NDArray[np.uint8]) -> None:
    luma = reference.luma(image)
    counts, sums = kernels.colour_counts(image)
    assert np.array_equal(counts, reference.colour_counts(image))
    red, green, blue = image.astype(np.int64).reshape(-1, 3).T
    first, second = red - green, red + green - 2 * blue
    assert sums.tolist() == [first.sum(), (first**2).sum(), second.sum(), (second**2).sum()]
    levels = np.floor(luma / 1000 + 0.5).astype(np.int64).ravel()
    assert np.array_equal(kernels.luma_counts(padded(image)), np.bincount(levels, minlength=256))
    expected = (luma.sum(), (luma**2).sum(), (luma > 8000).sum())
    assert kernels.luma_moments(padded(image)) == expected


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=40).filter(any))
def test_entropy_matches_the_reference(counts: list[int]) -> None:
    histogram = np.array(counts)
    # 1e-12: both sum at most 40 rounded terms.
    assert kernels.entropy_of_counts(histogram) == pytest.approx(
        reference.entropy_of_counts(histogram), abs=1e-12
    )


@given(st.integers(1, 2**52))
def test_the_logarithm_matches_the_maths_library(number: int) -> None:
    # 1e-14: the result is below 52, whose spacing is 7e-15.
    assert abs(kernels.logarithm2_of_integer(number) - math.log2(number)) < 1e-14


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32), st.sampled_from([0, 0.01, 0.4])
)
def test_box_counts_match_the_reference(height: int, width: int, seed: int, density: float) -> None:
    mask = (np.random.default_rng(seed).random((height, width)) < density).astype(np.uint8)
    assert kernels.box_counts(mask, 5).tolist() == reference.box_counts(mask, 5)


@settings(deadline=None, max_examples=25)
@given(images(), st.integers(20, 90), st.integers(20, 90))
def test_a_resize_matches_the_reference(image: NDArray[np.uint8], height: int, width: int) -> None:
    weights = [
        statistics._resize_weights(side, full, 2, full - 4)
        for side, full in zip(image.shape[:2], (height, width), strict=True)
    ]
    small = kernels.resized(padded(image), *weights[0], *weights[1])
    expected = reference.resized(reference.luma(image), *weights[0], *weights[1])
    assert np.array_equal(small, np.pad(expected, 1, mode="edge"))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32))
def test_ring_sums_match_the_reference(seed: int) -> None:
    generator = np.random.default_rng(seed)
    power, weights = generator.random((2, 13, 9))
    rings = generator.integers(0, 7, (13, 9))
    # 1e-12: sums of about 20 terms in another order.
    assert kernels.ring_sums(power, rings, weights, 7) == pytest.approx(
        reference.ring_sums(power, rings, weights, 7), rel=1e-12
    )


@settings(deadline=None, max_examples=40)
@given(images())
def test_luma_at_32_matches_pillows_bilinear_resize_and_centre_crop(
    image: NDArray[np.uint8],
) -> None:
    height, width = image.shape[:2]
    shorter = min(height, width)
    full = (36 * height // shorter, 36 * width // shorter)
    resized = Image.fromarray(image).resize(full[::-1], Image.Resampling.BILINEAR)
    top, left = (round((side - 32) / 2) for side in full)
    theirs = reference.luma(np.asarray(resized)[top : top + 32, left : left + 32])
    ours = luma_at_32(image)
    assert ours.shape == (32, 32)
    # Pillow rounds each channel to integers twice: at most one level, plus rounding of weights.
    assert np.abs(ours - theirs).max() <= 1100


@settings(deadline=None, max_examples=20)
@given(st.integers(16, 90), st.integers(16, 90), st.integers(0, 255))
def test_resizing_a_flat_image_keeps_its_luma_exactly(height: int, width: int, level: int) -> None:
    assert set(luma_at_32(flat(level, level, level, (height, width))).flat) == {level * 1000}


# --- properties of all statistics ----------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(images())
def test_measure_returns_floats_and_does_not_modify_the_image(image: NDArray[np.uint8]) -> None:
    before = image.copy()
    values = measure(image)
    assert list(values) == list(CALIBRATED)
    assert all(type(value) is float and math.isfinite(value) for value in values.values())
    assert np.array_equal(image, before)


@settings(deadline=None, max_examples=20)
@given(images())
def test_preview_statistics_equal_those_of_measure(image: NDArray[np.uint8]) -> None:
    preview = preview_statistics(image)._asdict()
    assert len(preview) == 7
    values = measure(image)
    assert preview == {name: values[name] for name in preview}


@settings(deadline=None, max_examples=20)
@given(images())
def test_a_view_with_other_strides_measures_the_same(image: NDArray[np.uint8]) -> None:
    mirrored = np.ascontiguousarray(image[:, ::-1])
    assert measure(mirrored[:, ::-1]) == measure(image)


@pytest.mark.parametrize("function", [measure, preview_statistics, colour_features, hog_features])
def test_an_array_that_is_not_an_image_is_rejected_with_its_shape_or_type(
    function: Callable[..., object],
) -> None:
    with pytest.raises(TypeError, match="float64"):
        function(np.zeros((40, 50, 3)))
    with pytest.raises(ValueError, match=r"\(40, 50\)"):
        function(np.zeros((40, 50), np.uint8))
    with pytest.raises(ValueError, match=r"15x50.*at least 16"):
        function(np.zeros((15, 50, 3), np.uint8))


# --- known values --------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "lit"), [(0, 0.0), (8, 0.0), (9, 1.0), (255, 1.0)])
def test_a_flat_image_has_coverage_only(level: int, lit: float) -> None:
    values = measure(flat(level, level, level))
    assert values.pop("coverage") == lit
    assert set(values.values()) == {0.0}


def test_a_checkerboard_of_four_pixels_is_textured_everywhere() -> None:
    rows, columns = np.indices((48, 72))
    board = np.repeat(((rows // 4 + columns // 4) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    assert measure(board)["textured_blocks"] == 1.0
    assert measure(board)["rgb_entropy"] == 1.0
    assert measure(board)["luma_entropy"] == 1.0


def test_a_step_of_one_twentieth_is_the_limit_of_an_edge() -> None:
    # A vertical step of h has a Sobel response of 4 h beside it: h above 12.75 levels is an edge.
    for height, expected in ((12, 0.0), (13, 2 / 60)):
        image = flat(100, 100, 100, (40, 60))
        image[:, 30:] += np.uint8(height)
        assert measure(image)["edge_density"] == expected


def test_a_deviation_of_three_hundredths_is_the_limit_of_texture() -> None:
    # Half the pixels up, half down by h: a standard deviation of h levels, the limit is 7.65.
    for height, expected in ((7, 0.0), (8, 1.0)):
        image = flat(100 - height, 100 - height, 100 - height, (40, 48))
        image[::2] += np.uint8(2 * height)
        assert measure(image)["textured_blocks"] == expected


def test_half_black_half_white_has_a_deviation_of_half_the_scale() -> None:
    image = flat(0, 0, 0, (72, 144))
    image[:, 72:] = 255
    # The resize softens two of the 32 columns.
    assert measure(image)["luma_std_at_32"] == pytest.approx(0.5, abs=0.02)
    assert measure(image)["coverage"] == 0.5


@pytest.mark.parametrize(
    ("slope", "shape"), [(2.0, (256, 256)), (2.0, (192, 300)), (3.0, (256, 320))]
)
def test_noise_has_the_spectral_slope_of_its_synthesis(
    slope: float, shape: tuple[int, int]
) -> None:
    image = noise_with_slope(slope, shape, seed=5)
    # 0.15: twenty seeds scatter by 0.04; the window and 8 bits bend the line by at most 0.1.
    assert measure(image)["spectral_slope"] == pytest.approx(slope, abs=0.15)
    assert measure(image)["spectral_r2"] > 0.97


def test_a_grating_does_not_fit_a_spectral_line() -> None:
    columns = np.arange(256)
    levels = np.rint(127.5 + 100 * np.sin(2 * np.pi * 16 * columns / 256)).astype(np.uint8)
    grating = np.repeat(np.tile(levels, (200, 1))[..., None], 3, axis=2)
    assert measure(grating)["spectral_r2"] < 0.8


def test_colourfulness_matches_the_published_formula() -> None:
    image = flat(255, 0, 0, (40, 60))
    image[:, 30:] = (0, 0, 255)
    # rg is 255 and 0; yb is 127.5 and -255.
    expected = math.hypot(127.5, 191.25) + 0.3 * math.hypot(127.5, -63.75)
    assert measure(image)["colourfulness"] == pytest.approx(expected, rel=1e-12)


def test_eight_equally_frequent_colours_have_three_bits() -> None:
    image = np.zeros((40, 64, 3), np.uint8)
    for k in range(8):
        image[:, 8 * k : 8 * k + 8] = (32 * k, 255 - 32 * k, 100)
    assert measure(image)["rgb_entropy"] == 3.0


def test_the_box_dimension_is_two_for_a_plane_and_one_for_a_line() -> None:
    rows, columns = np.indices((64, 128))
    everywhere = np.repeat(((rows // 2 + columns // 2) % 2 * 255).astype(np.uint8)[..., None], 3, 2)
    assert measure(everywhere)["edge_box_dimension"] == pytest.approx(2.0)
    line = flat(0, 0, 0, (64, 128))
    line[:, 64:] = 255
    # Both sides of the step are marked, in boxes on both sides of it: still 2 n / s boxes.
    assert measure(line)["edge_box_dimension"] == pytest.approx(1.0)


# --- sets ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(0, 2**32))
def test_equal_rows_score_one_and_orthogonal_rows_score_their_number(n: int, seed: int) -> None:
    row = np.random.default_rng(seed).random(30) + 0.1
    assert vendi_score(np.tile(row, (n, 1))) == pytest.approx(1.0)
    assert vendi_score(np.eye(n) * 3) == pytest.approx(n)


def test_rows_of_zeros_equal_only_each_other() -> None:
    assert vendi_score(np.array([[0.0, 0], [0, 0], [1, 0], [2, 0]])) == pytest.approx(2.0)


def test_an_empty_set_has_no_score() -> None:
    with pytest.raises(ValueError, match=r"\(0, 4\)"):
        vendi_score(np.zeros((0, 4)))


def test_equal_images_score_one_and_disjoint_colours_their_number() -> None:
    colours = [
        flat(255 * (k & 1), 255 * (k >> 1 & 1), 255 * (k >> 2), (40, 33 + k)) for k in range(8)
    ]
    assert colour_vendi(colours) == pytest.approx(8.0)
    assert colour_vendi(colours[:1] * 5) == pytest.approx(1.0)
    assert hog_vendi(colours) == pytest.approx(1.0)
    assert np.linalg.norm(colour_features(colours[3])) == pytest.approx(1.0)


def test_horizontal_and_vertical_stripes_share_no_gradient() -> None:
    across = flat(0, 0, 0, (64, 64))
    across[np.arange(64) // 4 % 2 == 0] = 255
    down = across.transpose(1, 0, 2).copy()
    assert hog_features(across).shape == (512,)
    assert hog_features(across) @ hog_features(down) == pytest.approx(0.0, abs=1e-9)
    assert hog_vendi([across, down, across, down]) == pytest.approx(2.0)


# --- the published figures -----------------------------------------------------------------------

# Median, 10th, 90th percentile of 200 images with these definitions. Within rounding they equal
# the published reference, except the two at 32 pixels (.70 [.35, .86] and .144 [.07, .21], by a
# box filter) and the box dimension (1.83).
CALIBRATED = {
    "coverage": (0.985, 0.570, 1.0),
    "edge_density": (0.430, 0.152, 0.668),
    "textured_blocks": (0.673, 0.280, 0.919),
    "edges_at_32": (0.693, 0.312, 0.874),
    "luma_std_at_32": (0.138, 0.071, 0.200),
    "spectral_slope": (2.574, 1.857, 3.021),
    "spectral_r2": (0.961, 0.844, 0.987),
    "rgb_entropy": (4.230, 2.476, 5.797),
    "luma_entropy": (7.023, 5.537, 7.565),
    "colourfulness": (42.79, 19.11, 76.82),
    "edge_box_dimension": (1.817, 1.549, 1.941),
}


def test_the_reference_flames_have_their_published_statistics() -> None:
    paths = sorted((SHARED / "reference_fractals").glob("*.jpg"))
    if not paths:
        pytest.skip("shared/data/reference_fractals not found beside the project")
    assert len(paths) == 200
    flames = [
        np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB")) for path in paths
    ]
    measured = [measure(flame) for flame in flames]
    for name, figures in CALIBRATED.items():
        values = np.percentile([values[name] for values in measured], [50, 10, 90])
        # The last digit, plus a margin for JPEG decoders, which may differ by one level.
        assert values == pytest.approx(figures, rel=2e-3, abs=1e-3), name
    assert colour_vendi(flames[:64]) == pytest.approx(4.69, abs=0.01)
    assert hog_vendi(flames[:64]) == pytest.approx(7.39, abs=0.01)
