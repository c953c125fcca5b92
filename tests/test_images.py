"""Packed images: order, memory maps, and validation."""

import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pixmix.images import PackedImages, check_crops, too_small
from pixmix.transform import PixMix

MAX = 2**31 - 1
LONGEST = 2**63 - 1


def images(*sizes: tuple[int, int]) -> list[NDArray[np.uint8]]:
    generator = np.random.default_rng(len(sizes))
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def of(n_bytes: int, offset: int, height: int, width: int) -> PackedImages:
    return PackedImages(
        np.zeros(n_bytes, np.uint8),
        np.array([offset], np.int64),
        np.array([height], np.int32),
        np.array([width], np.int32),
    )


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=8))
def test_packed_images_are_returned_in_order(sizes: list[tuple[int, int]]) -> None:
    originals = images(*sizes)
    packed = PackedImages.pack(originals)
    assert len(packed) == len(originals)
    for i, image in enumerate(originals):
        assert np.array_equal(packed[i], image)
        assert np.array_equal(packed[i - len(originals)], image)
    for one, other in zip(packed, originals, strict=True):
        assert np.array_equal(one, other)
    assert len(packed.pixels) == sum(image.size for image in originals)


def test_packed_images_neither_overlap_nor_leave_gaps() -> None:
    packed = PackedImages.pack(images((20, 13), (1, 1), (2, 31), (7, 5)))
    ends = packed.offsets + 3 * packed.heights * packed.widths
    assert packed.offsets.tolist() == [0, *ends[:-1]]
    assert ends[-1] == len(packed.pixels)


def test_an_iterator_is_packed_like_a_list() -> None:
    sizes = [(4, 3), (5, 2)]
    packed = PackedImages.pack(each for each in images(*sizes))
    assert np.array_equal(packed.pixels, PackedImages.pack(images(*sizes)).pixels)


def test_an_array_of_images_is_not_copied() -> None:
    array = np.stack(images(*[(6, 4)] * 5))
    packed = PackedImages.pack(array)
    assert np.shares_memory(packed.pixels, array)
    assert len(packed) == 5
    assert all(np.array_equal(packed[i], array[i]) for i in range(5))


def test_an_array_that_is_not_contiguous_is_copied() -> None:
    array = np.stack(images(*[(6, 4)] * 5))
    for view in (array[:, ::-1], array[::2], array.transpose(0, 2, 1, 3), array[:, :, :, ::-1]):
        packed = PackedImages.pack(view)
        assert all(np.array_equal(one, other) for one, other in zip(packed, view, strict=True))


def test_images_of_a_list_are_copied() -> None:
    originals = images((6, 4), (3, 2))
    packed = PackedImages.pack(originals)
    assert not any(np.shares_memory(packed.pixels, image) for image in originals)


def test_an_image_is_a_view() -> None:
    packed = PackedImages.pack(images((6, 4), (3, 2)))
    assert packed[1].shape == (3, 2, 3)
    assert np.shares_memory(packed[1], packed.pixels)


@pytest.mark.parametrize("empty", [[], (), np.empty((0, 20, 13, 3), np.uint8)])
def test_a_set_may_be_empty(empty: list[NDArray[np.uint8]]) -> None:
    packed = PackedImages.pack(empty)
    assert len(packed) == 0
    assert list(packed) == []
    assert [len(array) for array in packed.layout] == [0, 0, 0, 0]


def test_the_layout_consists_of_the_same_arrays() -> None:
    packed = PackedImages.pack(images((6, 4), (3, 2)))
    pixels, offsets, heights, widths = packed.layout
    assert pixels is packed.pixels
    assert offsets is packed.offsets
    assert heights is packed.heights
    assert widths is packed.widths
    dtypes = [str(array.dtype) for array in packed.layout]
    assert dtypes == ["uint8", "int64", "int32", "int32"]


def mapped(packed: PackedImages, pixels: NDArray[np.uint8]) -> PackedImages:
    return PackedImages(pixels, packed.offsets, packed.heights, packed.widths)


def test_a_memory_mapped_set_is_pickled_as_the_name_of_its_file(tmp_path: Path) -> None:
    packed = PackedImages.pack(images((60, 40), (30, 20)))
    file = tmp_path / "pixels"
    file.write_bytes(b"before" + packed.pixels.tobytes())
    pixels = np.asarray(np.memmap(file, np.uint8, "c", offset=6))
    for holder in (mapped(packed, pixels), PixMix(mapped(packed, pixels))):
        assert len(pickle.dumps(holder)) < 2000
    again = pickle.loads(pickle.dumps(PixMix(mapped(packed, pixels)))).mixing_set
    assert all(np.array_equal(one, other) for one, other in zip(again, packed, strict=True))
    assert again.pixels.flags.writeable
    again.pixels[:] = 0
    assert file.read_bytes() == b"before" + packed.pixels.tobytes()


def test_slices_of_maps_and_unnamed_maps_are_pickled_by_value(tmp_path: Path) -> None:
    packed = PackedImages.pack(images((60, 40), (30, 20)))
    file = tmp_path / "pixels"
    file.write_bytes(b"before" + packed.pixels.tobytes())
    with tempfile.TemporaryFile() as nameless:
        nameless.write(packed.pixels.tobytes())
        nameless.flush()
        for pixels in (np.memmap(file, np.uint8, "c")[6:], np.memmap(nameless, np.uint8, "r")):
            again = pickle.loads(pickle.dumps(mapped(packed, pixels)))
            assert all(np.array_equal(one, other) for one, other in zip(again, packed, strict=True))


def test_a_set_can_be_pickled() -> None:
    packed = PackedImages.pack(images((6, 4), (3, 2)))
    again = pickle.loads(pickle.dumps(packed))
    assert all(np.array_equal(one, other) for one, other in zip(again, packed, strict=True))


def test_pixels_may_be_a_memory_map(tmp_path: Path) -> None:
    packed = PackedImages.pack(images((6, 4), (3, 2)))
    packed.pixels.tofile(tmp_path / "pixels")
    pixels = np.memmap(tmp_path / "pixels", np.uint8, "r")
    mapped = PackedImages(pixels, packed.offsets, packed.heights, packed.widths)
    assert all(np.array_equal(one, other) for one, other in zip(mapped, packed, strict=True))
    assert np.shares_memory(mapped[0], pixels)


@pytest.mark.parametrize("i", [2, -3, 99])
def test_an_index_out_of_range_is_an_index_error(i: int) -> None:
    with pytest.raises(IndexError, match=f"image {i} is out of range for 2 images; count from 0"):
        PackedImages.pack(images((6, 4), (3, 2)))[i]


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([np.zeros((4, 3, 3))], TypeError, "not float64"),
        (["cat.jpg"], TypeError, "not str"),
        ([np.zeros((4, 3), np.uint8)], ValueError, r"not \(4, 3\)"),
        ([np.zeros((4, 3, 4), np.uint8)], ValueError, r"not \(4, 3, 4\)"),
        ([np.zeros((0, 3, 3), np.uint8)], ValueError, "at least 1"),
        (np.zeros((2, 4, 3, 3)), TypeError, "not float64"),
        (np.zeros((2, 3, 4, 5), np.uint8), ValueError, r"not \(3, 4, 5\)"),
        (np.zeros((2, 4, 0, 3), np.uint8), ValueError, "at least 1"),
        (np.zeros((4, 3, 3), np.uint8), ValueError, r"not \(3, 3\)"),
    ],
)
def test_invalid_images_are_rejected(
    bad: list[NDArray[np.uint8]], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PackedImages.pack(bad)


@pytest.mark.parametrize(
    ("n_bytes", "offset", "height", "width"),
    [
        (29, 0, 2, 5),
        (30, 1, 2, 5),
        (30, -1, 1, 1),
        (30, 30, 1, 1),
        (30, 0, 0, 5),
        (30, 0, 2, -5),
        (30, 0, -2, -5),
        (0, 0, 1, 1),
        # Positions of the end that overflow 64 bits.
        (30, LONGEST, 1, 1),
        (30, LONGEST - 2, 1, 1),
        (30, 0, MAX, MAX),
        (30, 0, MAX, MAX // 2),
        (30, 0, 1, MAX),
        (30, 30, MAX, MAX),
        (30, -LONGEST - 1, MAX, MAX),
    ],
)
def test_an_image_outside_the_pixels_is_rejected(
    n_bytes: int, offset: int, height: int, width: int
) -> None:
    message = f"image 0, {height}x{width} at byte {offset}, is not inside the {n_bytes} bytes"
    with pytest.raises(ValueError, match=message):
        of(n_bytes, offset, height, width)


def test_an_image_may_end_with_the_pixels() -> None:
    assert of(30, 0, 2, 5)[0].shape == (2, 5, 3)
    assert of(31, 1, 5, 2)[0].shape == (5, 2, 3)
    assert of(30, 27, 1, 1)[0].shape == (1, 1, 3)


def test_the_first_image_outside_is_named() -> None:
    with pytest.raises(ValueError, match=r"image 2, 4x4 at byte 0, .* 30 bytes .*; pack"):
        PackedImages(
            np.zeros(30, np.uint8),
            np.zeros(4, np.int64),
            np.array([2, 3, 4, 5], np.int32),
            np.array([3, 3, 4, 5], np.int32),
        )


ARRAYS: dict[str, NDArray[Any]] = {
    "pixels": np.zeros(30, np.uint8),
    "offsets": np.zeros(2, np.int64),
    "heights": np.full(2, 2, np.int32),
    "widths": np.full(2, 3, np.int32),
}


@pytest.mark.parametrize(
    ("name", "array", "error", "message"),
    [
        ("pixels", np.zeros(30, np.int8), TypeError, "pixels is int8; pass uint8"),
        ("offsets", np.zeros(2, np.int32), TypeError, "offsets is int32; pass int64"),
        ("heights", np.full(2, 2, np.int64), TypeError, "heights is int64; pass int32"),
        ("widths", np.full(2, 3, np.float32), TypeError, "widths is float32; pass int32"),
        ("pixels", np.zeros((3, 10), np.uint8), ValueError, r"shape \(3, 10\); pass a flat"),
        ("pixels", np.zeros(60, np.uint8)[::2], ValueError, r"pixels has .* pass .* contiguous"),
        ("offsets", np.zeros((), np.int64), ValueError, r"offsets has shape \(\); pass a flat"),
        ("widths", np.ones(1, np.int32), ValueError, "2 offsets, 2 heights and 1 widths; pass one"),
        ("offsets", np.zeros(3, np.int64), ValueError, "3 offsets, 2 heights and 2 widths; pass"),
    ],
)
def test_inconsistent_arrays_are_rejected(
    name: str, array: NDArray[Any], error: type[Exception], message: str
) -> None:
    assert len(PackedImages(**ARRAYS)) == 2
    with pytest.raises(error, match=message):
        PackedImages(**(ARRAYS | {name: array}))


def test_crops_that_fit_into_every_image_are_accepted() -> None:
    heights, widths = np.array([20, 33], np.int32), np.array([40, 13], np.int32)
    check_crops(heights, widths, 20, 13)
    check_crops(np.empty(0, np.int32), np.empty(0, np.int32), 20, 13)


@pytest.mark.parametrize(("crop", "first"), [((21, 13), 0), ((20, 14), 1), ((34, 41), 0)])
def test_the_first_image_smaller_than_a_crop_is_named_with_a_remedy(
    crop: tuple[int, int], first: int
) -> None:
    heights, widths = np.array([20, 33, 1], np.int32), np.array([40, 13, 1], np.int32)
    size = f"{heights[first]}x{widths[first]}"
    with pytest.raises(ValueError, match=f"mixing image {first} is {size} ") as caught:
        check_crops(heights, widths, *crop)
    assert str(caught.value) == too_small(first, heights[first], widths[first], *crop)
    assert f"crop {crop[0]}x{crop[1]}; resize" in str(caught.value)
    assert str(caught.value).endswith(f"each shorter side is at least {max(crop)}")


def test_fingerprints_are_equal_only_for_equal_images() -> None:
    draws = np.random.default_rng(0)
    images = [draws.integers(0, 256, (5, 4 + i, 3), dtype=np.uint8) for i in range(3)]
    same = PackedImages.pack(images).fingerprint()
    assert PackedImages.pack([each.copy() for each in images]).fingerprint() == same
    darker = [images[0], images[1] // 2, images[2]]
    others = [images[::-1], images[:2], darker, []]
    found = {PackedImages.pack(each).fingerprint() for each in others}
    assert len(found) == 4
    assert same not in found
