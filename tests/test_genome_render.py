"""Rendering of genomes: sizes, determinism, quality, blending, and invalid arguments."""

import pkgutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher
from numpy.typing import NDArray

import fractals
import reference
from fractals import FAMILIES, Genome, draw_genome, render
from fractals.chaos import ChaosLayer, accumulate
from fractals.chaos_kernels import LEVELS
from fractals.genome import MAX_SIDE, MIN_SIDE, Layer, apply_levels, composite, game_key
from fractals.palettes import palette_table
from fractals.statistics import reliability

Image = NDArray[np.uint8]
Values = NDArray[np.float64]


def downscaled(image: Image, times: int) -> Values:
    """Return the means over squares of pixels."""
    height, width, _ = image.shape
    tiles = image.reshape(height // times, times, width // times, times, 3)
    means: Values = tiles.astype(np.float64).mean((1, 3))
    return means


def correlation(one: NDArray[np.generic], other: NDArray[np.generic]) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def difference(one: Values | Image, other: Values | Image) -> float:
    """Return the mean absolute difference, in levels of 255."""
    return float(np.abs(one.astype(np.float64) - other).mean())


def genomes_of(family: str, n: int) -> list[Genome]:
    return [draw_genome(0, index, family) for index in range(n)]


# --- size ----------------------------------------------------------------------------------------

# Brightness is the logarithm of a pixel's points, so the mean of 16 small pixels differs from the
# large one, mostly in fine dust. Measured over 80 genomes of all families at both sizes:
# correlation .75 to .997, difference 1.5 to 29 levels; for different genomes, correlation up to
# .57 and difference of at least 52.
MIN_CORRELATION, MAX_DIFFERENCE = 0.68, 35.0


def shows_the_same(small: Values | Image, large: Values) -> bool:
    return correlation(small, large) > MIN_CORRELATION and difference(small, large) < MAX_DIFFERENCE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("small", "large", "n"), [((72, 96), (288, 384), 8), ((256, 256), (1024, 1024), 2)]
)
def test_a_larger_image_shows_the_same(
    family: str, small: tuple[int, int], large: tuple[int, int], n: int
) -> None:
    genomes = genomes_of(family, n)
    smalls = [render(genome, small) for genome in genomes]
    larges = [downscaled(render(genome, large), 4) for genome in genomes]
    for i in range(n):
        assert smalls[i].shape == larges[i].shape == (*small, 3)
        assert shows_the_same(smalls[i], larges[i])
        # The criterion is specific: another genome's image does not pass.
        assert not shows_the_same(smalls[i], larges[i - 1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_larger_image_is_not_shifted(family: str) -> None:
    """An image moved by one small pixel matches worse: windows agree to half a pixel."""
    for genome in genomes_of(family, 6):
        small = render(genome, (72, 96))[1:-1, 1:-1]
        large = downscaled(render(genome, (288, 384)), 4)
        fit = correlation(small, large[1:-1, 1:-1])
        for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            moved = np.roll(large, (down, right), axis=(0, 1))[1:-1, 1:-1]
            assert correlation(small, moved) < fit


def is_unfolded(genome: Genome) -> bool:
    """Return whether a wider window only adds pixels at its sides."""
    fractals = [layer.fractal for layer in genome.layers]
    return all(each.camera.fold == "none" for each in fractals if isinstance(each, ChaosLayer))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(96, 170), (150, 96)])
def test_the_central_square_of_a_longer_image_is_the_square_image(
    family: str, shape: tuple[int, int]
) -> None:
    """Only random points differ: measured correlations .96 to 1, differences 0 to 12 levels."""
    genomes = [genome for genome in genomes_of(family, 14) if is_unfolded(genome)]
    assert len(genomes) >= 6
    squares = [render(genome, 96) for genome in genomes]
    top, left = ((side - 96) // 2 for side in shape)
    for genome, square, other in zip(genomes, squares, squares[1:] + squares[:1], strict=True):
        image = render(genome, shape)
        assert image.shape == (*shape, 3)
        centre = image[top : top + 96, left : left + 96]
        assert correlation(centre, square) > 0.93
        assert difference(centre, square) < 16
        assert correlation(centre, other) < 0.68
        if family == "escape":  # No random points: only rounding may differ.
            assert difference(centre, square) < 0.1


@pytest.mark.parametrize("shape", [(16, 16), (16, 61), (47, 16), (33, 35)])
@pytest.mark.parametrize("family", FAMILIES)
def test_small_and_nonsquare_sizes_work(family: str, shape: tuple[int, int]) -> None:
    image = render(draw_genome(0, 0, family), shape, 4)
    assert image.shape == (*shape, 3)
    assert image.dtype == np.uint8
    assert image.std() > 5


def test_a_size_is_a_side_or_height_and_width() -> None:
    genome = draw_genome(0, 0, "ifs")
    np.testing.assert_array_equal(render(genome, 40, 4), render(genome, (40, 40), 4))


# --- determinism -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_does_not_depend_on_earlier_images(family: str) -> None:
    genome = draw_genome(2, 5, family)
    first = render(genome, (48, 80), 20)
    for index in range(4):
        render(draw_genome(3, index, list(FAMILIES)[index]), (80, 48), 7)
    np.testing.assert_array_equal(render(genome, (48, 80), 20), first)
    np.testing.assert_array_equal(render(Genome.from_json(genome.to_json()), (48, 80), 20), first)


def test_concurrent_threads_render_the_same_bits() -> None:
    genomes = [genome for family in FAMILIES for genome in genomes_of(family, 4)]
    alone = [render(genome, (60, 90), 30) for genome in genomes]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda genome: render(genome, (60, 90), 30), genomes * 3))
    assert len(together) == 3 * len(alone) == 48
    for image, expected in zip(together, alone * 3, strict=True):
        np.testing.assert_array_equal(image, expected)


def test_every_kernel_releases_the_gil_and_keeps_ieee_arithmetic() -> None:
    """Threads run in parallel only without the GIL, and fast-math would change bits."""
    modules = [
        import_module(each.name) for each in pkgutil.iter_modules(fractals.__path__, "fractals.")
    ]
    kernels = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, Dispatcher)
    }
    assert len(kernels) > 40
    for kernel in kernels:
        assert kernel.targetoptions["nogil"] is True
        assert not kernel.targetoptions.get("fastmath", False)


def test_another_index_uses_other_random_points() -> None:
    """The same layers under another index yield the same image except for its points."""
    genome = draw_genome(0, 0, "flame")
    other = replace(genome, index=1)
    one, two = render(genome, (64, 96)), render(other, (64, 96))
    assert not np.array_equal(one, two)
    assert correlation(one, two) > 0.93


# --- quality -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["flame", "ifs"])
def test_more_samples_reduce_noise(family: str) -> None:
    """Two games of the same genome agree more if more points are played."""
    rows = []
    for genome in genomes_of(family, 6):
        row = []
        for samples in (12, 50, 200):
            pair = [
                apply_levels(genome, composite(genome, 60, 84, samples, stream=stream))
                for stream in (0, 1)
            ]
            row.append(reliability(*pair))
        assert row[0] < row[2] < 1
        rows.append(row)
    means = np.mean(rows, axis=0)
    assert (np.diff(means) > 0).all()


def test_more_samples_keep_the_image() -> None:
    for family in FAMILIES:
        genome = draw_genome(0, 3, family)
        coarse, fine = render(genome, (64, 96), 50), render(genome, (64, 96), 400)
        assert correlation(coarse, fine) > 0.9
        assert difference(coarse, fine) < 20


# --- layers --------------------------------------------------------------------------------------


def composite_by_reference(genome: Genome, height: int, width: int, samples: float) -> Values:
    """Render the background and each layer's histogram, tone and blending, all in float64."""
    background = palette_table(genome.background)
    image = reference.gradient(background[0], background[128], height, width).reshape(-1, 3)
    for number, layer in enumerate(genome.layers):
        assert isinstance(layer.fractal, ChaosLayer)
        key = game_key(genome.family, genome.seed, genome.index, genome.attempt, number)
        histogram = accumulate(layer.fractal, height, width, samples / len(genome.layers), *key)
        tone = layer.fractal.tone
        levels = reference.density_levels(histogram.points, tone.softness, LEVELS)
        points, colours = (
            reference.spread(plane, levels, LEVELS)
            for plane in (histogram.points, histogram.colours)
        )
        light, cover = reference.tone_map(
            points, colours, histogram.played, tone, palette_table(layer.palette)
        )
        image = reference.blended_layer(
            image, light.reshape(3, -1), cover.ravel(), layer.blend, layer.opacity
        )
    return image.reshape(height, width, 3)


@pytest.mark.parametrize("blend", ["over", "screen", "lighten", "multiply"])
def test_layers_are_tone_mapped_and_blended_in_order(blend: str) -> None:
    first, second, third = (draw_genome(1, index, "flame").layers[0] for index in range(3))
    layers: tuple[Layer, ...] = (
        first,
        replace(second, blend=blend, opacity=0.7),
        replace(third, blend="over", opacity=0.4),
    )
    genome = replace(draw_genome(1, 0, "flame"), layers=layers)
    # Float32 logarithms and a 256-entry palette, through three layers: a quarter of a level of 255.
    np.testing.assert_allclose(
        composite(genome, 40, 56, 30), composite_by_reference(genome, 40, 56, 30), atol=1e-3
    )


def test_a_transparent_layer_leaves_the_background() -> None:
    genome = draw_genome(0, 0, "ifs")
    unseen = replace(genome, layers=(replace(genome.layers[0], blend="over", opacity=0.0),))
    background = palette_table(genome.background)
    np.testing.assert_allclose(
        composite(unseen, 20, 34, 5),
        reference.gradient(background[0], background[128], 20, 34),
        atol=1e-6,
    )


def test_levels_stretch_black_and_white_and_do_not_modify_the_input() -> None:
    genome = replace(draw_genome(0, 0, "ifs"), black=0.25, white=0.75)
    composited = np.tile(np.linspace(0, 1, 9, dtype=np.float32)[:, None, None], (1, 7, 3))
    before = composited.copy()
    levels = apply_levels(genome, composited)
    assert levels.dtype == np.uint8
    assert levels[:, 0, 0].tolist() == [0, 0, 0, 64, 128, 191, 255, 255, 255]
    np.testing.assert_array_equal(composited, before)


# --- invalid arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [0, -5, 3, MIN_SIDE - 1, MAX_SIDE + 1, (MIN_SIDE - 1, 64), (64, MAX_SIDE + 1), (64, 0)]
)
def test_a_size_out_of_range_is_rejected(size: int | tuple[int, int]) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    message = rf"size {height}x{width}: each side must be in 16\.\.16384 pixels; use 256"
    with pytest.raises(ValueError, match=message):
        render(draw_genome(0, 0, "ifs"), size)


@pytest.mark.parametrize("samples", [0, -1, float("nan"), float("inf")])
def test_samples_per_pixel_out_of_range_are_rejected(samples: float) -> None:
    with pytest.raises(ValueError, match=rf"samples_per_pixel {samples}: must be above 0; use 50"):
        render(draw_genome(0, 0, "ifs"), 64, samples)
