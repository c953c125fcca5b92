"""Pictures of any sizes side by side in one flat array, which kernels and memory maps can hold."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixmix.mapped import MapName, map_name
from pixmix.pictures import check_picture


class Layout(NamedTuple):
    """The arrays of a `PackedPictures`, as kernels take them; nothing is checked."""

    pixels: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class PackedPictures:
    """A mixing set in one piece of memory: a sequence of (H, W, 3) uint8 views.

    Pixels that are all of a memory map are pickled as the name of its file, so that the workers of
    a loader share the pages; others as they are.

    Attributes:
        pixels: flat uint8; picture i is pixels[offsets[i] : offsets[i] + 3 H W], rows of RGB. Give
            a writeable array (a map opened copy-on-write is one): for others a kernel is compiled
            once more. Nothing here writes to it.
        offsets: (M,) int64, in bytes.
        heights: (M,) int32, pixels, at least 1.
        widths: (M,) int32, pixels, at least 1.
    """

    pixels: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]

    def __post_init__(self) -> None:
        """Refuse what would be read past its end.

        Raises:
            TypeError: for an array of another dtype.
            ValueError: if lengths differ or a picture lies outside the pixels.
        """
        for name, array, dtype in (
            ("pixels", self.pixels, np.uint8),
            ("offsets", self.offsets, np.int64),
            ("heights", self.heights, np.int32),
            ("widths", self.widths, np.int32),
        ):
            if array.dtype != dtype:
                raise TypeError(f"{name} is {array.dtype}; give {np.dtype(dtype)}")
            if array.ndim != 1 or not array.flags.c_contiguous:
                raise ValueError(f"{name} has shape {array.shape}; give a flat, contiguous array")
        if not len(self.offsets) == len(self.heights) == len(self.widths):
            raise ValueError(
                f"{len(self.offsets)} offsets, {len(self.heights)} heights and {len(self.widths)} "
                "widths; give one of each for a picture"
            )
        # Of whole pixels, and from the end: three times a product of sides, or its sum with an
        # offset, might leave 64 bits and come out small.
        n_pixels = self.heights.astype(np.int64) * self.widths
        wrong = (self.offsets < 0) | (self.heights < 1) | (self.widths < 1)
        wrong |= n_pixels > (len(self.pixels) - self.offsets) // 3
        if wrong.any():
            i = int(np.argmax(wrong))
            raise ValueError(
                f"picture {i}, {self.heights[i]}x{self.widths[i]} at byte {self.offsets[i]}, is "
                f"not inside the {len(self.pixels)} bytes of pixels; pack the set anew"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how another process makes it again: a memory map from its file, which it sees."""
        pixels = map_name(self.pixels) or self.pixels
        return _made_again, (pixels, self.offsets, self.heights, self.widths)

    @property
    def layout(self) -> Layout:
        """The arrays, for a kernel."""
        return Layout(self.pixels, self.offsets, self.heights, self.widths)

    @classmethod
    def pack(cls, pictures: Iterable[NDArray[np.uint8]]) -> "PackedPictures":
        """Return pictures packed; an (M, H, W, 3) array as it is, others copied.

        Args:
            pictures: (H, W, 3) uint8 arrays, each of its own size, or one (M, H, W, 3) array.

        Raises:
            TypeError: for a picture that is not uint8 or no array.
            ValueError: for a picture of another shape.
        """
        if isinstance(pictures, np.ndarray) and pictures.ndim == 4 and len(pictures) > 0:
            check_picture(pictures[0])
            n, height, width, _ = pictures.shape
            offsets = np.arange(n, dtype=np.int64) * (3 * height * width)
            return cls(
                np.ascontiguousarray(pictures).reshape(-1),
                offsets,
                np.full(n, height, np.int32),
                np.full(n, width, np.int32),
            )
        checked = [check_picture(picture) for picture in pictures]
        lengths = [picture.size for picture in checked]
        pixels = (
            np.concatenate([picture.reshape(-1) for picture in checked])
            if checked
            else np.empty(0, np.uint8)
        )
        return cls(
            pixels,
            np.cumsum([0, *lengths[:-1]], dtype=np.int64)[: len(checked)],
            np.array([picture.shape[0] for picture in checked], np.int32),
            np.array([picture.shape[1] for picture in checked], np.int32),
        )

    def fingerprint(self) -> str:
        """Return what tells this set from others, at a glance: a hash of all sizes and some pixels.

        64 hexadecimal digits: SHA-256 of heights, widths and 65,536 bytes spread over the pixels.
        """
        found = hashlib.sha256(self.heights.tobytes() + self.widths.tobytes())
        places = np.linspace(0, max(len(self.pixels) - 1, 0), 65_536).astype(np.int64)
        found.update(self.pixels[places].tobytes() if len(self.pixels) else b"")
        return found.hexdigest()

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.offsets)

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        """Return picture i as an (H, W, 3) view.

        Raises:
            IndexError: if there is none.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"picture {i} of a set of {len(self)}; count from 0")
        start, height, width = int(self.offsets[i]), int(self.heights[i]), int(self.widths[i])
        return self.pixels[start : start + 3 * height * width].reshape(height, width, 3)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Return the pictures in their order."""
        return (self[i] for i in range(len(self)))


def _made_again(
    pixels: MapName | NDArray[np.uint8],
    offsets: NDArray[np.int64],
    heights: NDArray[np.int32],
    widths: NDArray[np.int32],
) -> PackedPictures:
    # Copy on write: kernels are compiled for arrays that may be written; nobody writes.
    mapped = pixels.open("c") if isinstance(pixels, MapName) else pixels
    return PackedPictures(mapped, offsets, heights, widths)


def check_crops(
    heights: NDArray[np.int32], widths: NDArray[np.int32], height: int, width: int
) -> None:
    """Refuse crops of height x width that do not fit into every picture.

    Raises:
        ValueError: naming the first picture that is smaller.
    """
    smaller = (heights < height) | (widths < width)
    if smaller.any():
        i = int(np.argmax(smaller))
        raise ValueError(too_small(i, heights[i], widths[i], height, width))


def too_small(i: int, picture_height: int, picture_width: int, height: int, width: int) -> str:
    """Return what to say of mixing picture i where a crop does not fit into it."""
    return (
        f"mixing picture {i} is {picture_height}x{picture_width} (height x width) and the crop "
        f"{height}x{width}; resize the mixing set so that each shorter side is at least "
        f"{max(height, width)}"
    )
