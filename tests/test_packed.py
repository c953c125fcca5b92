"""Pictures of any sizes in one piece of memory, and the numbers that PixMix is given."""

import pickle
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pixmix.packed import PackedPictures, check_crops
from pixmix.settings import MIXINGS, PixMixSettings


def pictures_of(sizes: list[tuple[int, int]]) -> list[NDArray[np.uint8]]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=8))
def test_pictures_come_back_as_they_were_packed(sizes: list[tuple[int, int]]) -> None:
    pictures = pictures_of(sizes)
    packed = PackedPictures.pack(pictures)
    assert len(packed) == len(pictures)
    assert all(np.array_equal(a, b) for a, b in zip(packed, pictures, strict=True))
    assert all(np.array_equal(packed[i], pictures[i]) for i in range(-len(sizes), len(sizes)))
    assert len(packed.pixels) == sum(3 * height * width for height, width in sizes)


def test_one_array_is_packed_without_a_copy() -> None:
    array = np.stack(pictures_of([(4, 5)] * 3))
    packed = PackedPictures.pack(array)
    assert np.shares_memory(packed.pixels, array)
    assert all(np.array_equal(packed[i], array[i]) for i in range(3))


def test_a_picture_is_a_view() -> None:
    packed = PackedPictures.pack(pictures_of([(2, 3), (4, 5)]))
    assert np.shares_memory(packed[1], packed.pixels)


def test_it_survives_pickle() -> None:
    packed = PackedPictures.pack(pictures_of([(2, 3), (4, 5)]))
    again = pickle.loads(pickle.dumps(packed))
    assert all(np.array_equal(a, b) for a, b in zip(again, packed, strict=True))


@pytest.mark.parametrize("i", [2, -3])
def test_a_picture_that_is_not_there_is_refused(i: int) -> None:
    with pytest.raises(IndexError, match=f"picture {i} of a set of 2; count from 0"):
        PackedPictures.pack(pictures_of([(2, 3), (4, 5)]))[i]


PACKED = PackedPictures.pack(pictures_of([(2, 3), (4, 5)]))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"pixels": PACKED.pixels.astype(np.int8)}, TypeError, "pixels is int8; give uint8"),
        ({"offsets": PACKED.offsets.astype(np.int32)}, TypeError, "offsets is int32; give int64"),
        ({"widths": PACKED.widths[::2]}, ValueError, "widths has shape|2 offsets, 2 heights and 1"),
        ({"pixels": PACKED.pixels.reshape(2, -1)}, ValueError, "give a flat, contiguous array"),
        ({"heights": PACKED.heights[:1]}, ValueError, "2 offsets, 1 heights and 2 widths"),
        ({"pixels": PACKED.pixels[:-1]}, ValueError, "picture 1, 4x5 at byte 18, is not inside"),
        ({"offsets": np.array([-1, 18])}, ValueError, "picture 0, 2x3 at byte -1, is not inside"),
        ({"heights": np.array([0, 4], np.int32)}, ValueError, "picture 0, 0x3 at byte 0"),
        ({"widths": np.array([3, 2**31 - 1], np.int32)}, ValueError, "picture 1, .* is not inside"),
    ],
)
def test_what_would_be_read_past_its_end_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        replace(PACKED, **changes)


def test_the_first_picture_smaller_than_the_crop_is_named() -> None:
    check_crops(PACKED.heights, PACKED.widths, 2, 3)
    for crop in ((3, 3), (2, 4)):
        with pytest.raises(ValueError, match=r"mixing picture 0 is 2x3 \(height x width\) and the"):
            check_crops(PACKED.heights, PACKED.widths, *crop)


# --- settings ------------------------------------------------------------------------------------


def test_the_defaults_are_the_paper_s_for_cifar() -> None:
    settings = PixMixSettings()
    assert (settings.k, settings.beta, settings.severity, settings.all_ops) == (4, 3.0, 3.0, False)
    assert settings.mixings == ("add", "multiply")


def test_mixings_are_their_places() -> None:
    settings = PixMixSettings(mixings=("overlay", "add", "overlay"))
    assert settings.mixing_codes.tolist() == [MIXINGS.index("overlay"), 0, MIXINGS.index("overlay")]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"k": True}, TypeError, "k is True; give a whole number"),
        ({"k": "4"}, TypeError, "k is '4'; give"),
        ({"k": -1}, ValueError, "k is -1; give a whole number of 0 or more"),
        ({"beta": 0}, ValueError, "beta is 0; give a number above 0"),
        ({"beta": -1.0}, ValueError, "beta is -1; give"),
        ({"beta": float("nan")}, ValueError, "beta is nan; give"),
        ({"beta": float("inf")}, ValueError, "beta is inf; give"),
        ({"severity": 0}, ValueError, "severity is 0; give a number from 0.1 to 10"),
        ({"severity": float("nan")}, ValueError, "severity is nan; give"),
        ({"beta": "3"}, TypeError, "beta is '3'; give a number"),
        ({"beta": 1e-39}, ValueError, "beta is 1e-39; give a number above 0, 0.001 or more"),
        ({"severity": None}, TypeError, "severity is None; give a number"),
        ({"all_ops": "no"}, TypeError, "all_ops is 'no'; give True or False"),
        ({"mixings": ("add", "blend")}, ValueError, "there is no mixing 'blend'; choose from add"),
        ({"mixings": ()}, ValueError, "give a tuple of one or more of add"),
        ({"mixings": ["add"]}, ValueError, "give a tuple"),
    ],
)
def test_settings_refuse_nonsense(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PixMixSettings(**changes)


def test_settings_stay_as_they_are() -> None:
    with pytest.raises(FrozenInstanceError):
        PixMixSettings().k = 5  # type: ignore[misc]
