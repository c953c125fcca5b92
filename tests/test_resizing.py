"""Crops and resized images equal those of Pillow and torchvision byte for byte."""

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import CenterCrop, Resize
from torchvision.transforms import functional as F

import reference
from pixmix.resizing import resize_part, resized_center, resized_crop, resized_shape

needs_pillow_13 = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="older Pillow always filters rows first"
)


def drawn(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Noise, or only 0 and 255, whose sums reach both ends."""
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return noise if seed % 2 else noise // 128 * 255


@st.composite
def parts(draw: st.DrawFn, most: int) -> tuple[NDArray[np.uint8], tuple[int, int, int, int]]:
    height, width = draw(st.integers(1, most)), draw(st.integers(1, most))
    part_height, part_width = draw(st.integers(1, height)), draw(st.integers(1, width))
    top = draw(st.integers(0, height - part_height))
    left = draw(st.integers(0, width - part_width))
    image = drawn(draw(st.integers(0, 99)), height, width)
    return image, (top, left, part_height, part_width)


@needs_pillow_13
@given(parts(130), st.tuples(st.integers(1, 90), st.integers(1, 90)))
@settings(max_examples=3000)
def test_a_resized_crop_equals_torchvisions(
    part: tuple[NDArray[np.uint8], tuple[int, int, int, int]], size: tuple[int, int]
) -> None:
    image, box = part
    expected = np.asarray(F.resized_crop(Image.fromarray(image), *box, list(size)))
    assert np.array_equal(resized_crop(image, *box, size), expected)


@needs_pillow_13
def test_two_thousand_crops_of_a_large_image_equal_torchvisions() -> None:
    generator = np.random.default_rng(0)
    image = drawn(1, 375, 500)
    pil_image = Image.fromarray(image)
    orders = set()
    for _ in range(2000):
        height, width = (int(v) for v in generator.integers(60, (376, 501)))
        top, left = (int(v) for v in generator.integers(0, (376 - height, 501 - width)))
        orders.add(height > 224 and height - 224 > 2 * (width - 224))
        expected = np.asarray(F.resized_crop(pil_image, top, left, height, width, [224, 224]))
        result = resized_crop(image, top, left, height, width, (224, 224))
        assert np.array_equal(result, expected), (top, left, height, width)
    assert orders == {False, True}


@needs_pillow_13
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 70), st.data(), st.integers(0, 99))
@settings(max_examples=1000)
def test_a_resized_center_equals_torchvisions(
    height: int, width: int, shorter_side: int, data: st.DataObject, seed: int
) -> None:
    size = (data.draw(st.integers(1, shorter_side)), data.draw(st.integers(1, shorter_side)))
    image = drawn(seed, height, width)
    resized = Resize(shorter_side)(Image.fromarray(image))
    assert resized_shape(height, width, shorter_side) == (resized.height, resized.width)
    expected = np.asarray(CenterCrop(size)(resized))
    assert np.array_equal(resized_center(image, shorter_side, size), expected)


@given(parts(24), st.tuples(st.integers(1, 24), st.integers(1, 24)))
@settings(max_examples=150)
def test_the_kernel_equals_its_reference_implementation(
    part: tuple[NDArray[np.uint8], tuple[int, int, int, int]], size: tuple[int, int]
) -> None:
    image, (top, left, height, width) = part
    expected = reference.resized_bilinearly(image[top : top + height, left : left + width], size)
    assert np.array_equal(resized_crop(image, top, left, height, width, size), expected)


def test_a_window_equals_that_part_of_the_whole_result() -> None:
    image = drawn(3, 41, 57)
    for full in ((20, 90), (90, 20), (33, 34)):
        whole = resized_crop(image, 2, 3, 37, 50, full)
        out = np.empty((11, 13, 3), np.uint8)
        resize_part(image, 2, 3, 37, 50, *full, 5, 6, out)
        assert np.array_equal(out, whole[5:16, 6:19])


def test_pixels_outside_the_region_do_not_matter() -> None:
    image = drawn(5, 60, 70)
    other = np.full_like(image, 77)
    other[10:40, 20:55] = image[10:40, 20:55]
    part = (10, 20, 30, 35)
    for size in ((9, 11), (80, 90)):
        result = resized_crop(image, *part, size)
        assert np.array_equal(resized_crop(other, *part, size), result)


def test_the_image_is_not_modified_and_need_not_be_contiguous() -> None:
    image = drawn(7, 30, 40)
    before = image.copy()
    result = resized_crop(image, 0, 0, 30, 40, (9, 9))
    assert np.array_equal(image, before)
    assert np.array_equal(resized_crop(np.asfortranarray(image), 0, 0, 30, 40, (9, 9)), result)


@pytest.mark.parametrize(
    "part",
    [(-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 31, 5), (0, 0, 5, 41), (26, 0, 5, 5), (0, 0, 0, 5)],
)
def test_a_region_outside_the_image_is_rejected(part: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"is not inside an image of 30x40 .*use a smaller"):
        resized_crop(drawn(1, 30, 40), *part, (8, 8))


def test_a_size_that_does_not_fit_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least 1 pixel"):
        resized_crop(drawn(1, 30, 40), 0, 0, 30, 40, (0, 8))
    with pytest.raises(ValueError, match="shorter side of 8 pixels; use a larger"):
        resized_center(drawn(1, 30, 40), 8, (9, 8))
