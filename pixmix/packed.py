"""Images of any sizes side by side in one flat array, which kernels and memory maps can hold.

An array in a memory map is sent to other processes as the name of its file.
"""

import errno
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixmix.arguments import check_image


class Layout(NamedTuple):
    """The arrays of a `PackedImages`, as kernels take them; nothing is checked."""

    pixels: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class PackedImages:
    """A mixing set in one piece of memory: a sequence of (H, W, 3) uint8 views.

    Pixels that are all of a memory map are pickled as the name of its file, so that the workers of
    a loader share the pages; others as they are.

    Attributes:
        pixels: flat uint8; image i is pixels[offsets[i] : offsets[i] + 3 H W], rows of RGB. Give
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
            ValueError: if lengths differ or an image lies outside the pixels.
        """
        for name, array, dtype in (
            ("pixels", self.pixels, np.uint8),
            ("offsets", self.offsets, np.int64),
            ("heights", self.heights, np.int32),
            ("widths", self.widths, np.int32),
        ):
            if array.dtype != dtype:
                raise TypeError(f"{name} is {array.dtype}; pass {np.dtype(dtype)}")
            if array.ndim != 1 or not array.flags.c_contiguous:
                raise ValueError(f"{name} has shape {array.shape}; pass a flat, contiguous array")
        if not len(self.offsets) == len(self.heights) == len(self.widths):
            raise ValueError(
                f"{len(self.offsets)} offsets, {len(self.heights)} heights and {len(self.widths)} "
                "widths; pass one of each for an image"
            )
        # Of whole pixels, and from the end: three times a product of sides, or its sum with an
        # offset, might leave 64 bits and come out small.
        n_pixels = self.heights.astype(np.int64) * self.widths
        wrong = (self.offsets < 0) | (self.heights < 1) | (self.widths < 1)
        wrong |= n_pixels > (len(self.pixels) - self.offsets) // 3
        if wrong.any():
            i = int(np.argmax(wrong))
            raise ValueError(
                f"image {i}, {self.heights[i]}x{self.widths[i]} at byte {self.offsets[i]}, is "
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
    def pack(cls, images: Iterable[NDArray[np.uint8]]) -> "PackedImages":
        """Return images packed; an (M, H, W, 3) array as it is, others copied.

        Args:
            images: (H, W, 3) uint8 arrays, each of its own size, or one (M, H, W, 3) array.

        Raises:
            TypeError: for an image that is not uint8 or no array.
            ValueError: for an image of another shape.
        """
        if isinstance(images, np.ndarray) and images.ndim == 4 and len(images) > 0:
            check_image(images[0])
            n, height, width, _ = images.shape
            offsets = np.arange(n, dtype=np.int64) * (3 * height * width)
            return cls(
                np.ascontiguousarray(images).reshape(-1),
                offsets,
                np.full(n, height, np.int32),
                np.full(n, width, np.int32),
            )
        checked = [check_image(image) for image in images]
        lengths = [image.size for image in checked]
        pixels = (
            np.concatenate([image.reshape(-1) for image in checked])
            if checked
            else np.empty(0, np.uint8)
        )
        return cls(
            pixels,
            np.cumsum([0, *lengths[:-1]], dtype=np.int64)[: len(checked)],
            np.array([image.shape[0] for image in checked], np.int32),
            np.array([image.shape[1] for image in checked], np.int32),
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
        """Return the number of images."""
        return len(self.offsets)

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        """Return image i as an (H, W, 3) view.

        Raises:
            IndexError: if there is none.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"image {i} of a set of {len(self)}; count from 0")
        start, height, width = int(self.offsets[i]), int(self.heights[i]), int(self.widths[i])
        return self.pixels[start : start + 3 * height * width].reshape(height, width, 3)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Return the images in their order."""
        return (self[i] for i in range(len(self)))


def _made_again(
    pixels: "MapName | NDArray[np.uint8]",
    offsets: NDArray[np.int64],
    heights: NDArray[np.int32],
    widths: NDArray[np.int32],
) -> PackedImages:
    # Copy on write: kernels are compiled for arrays that may be written; nobody writes.
    mapped = pixels.open("c") if isinstance(pixels, MapName) else pixels
    return PackedImages(mapped, offsets, heights, widths)


def pack_mixing_set(mixing_set: object) -> PackedImages:
    """Return a mixing set packed; one that is packed as it is, None as an empty one.

    Raises:
        TypeError: for what is no sequence of uint8 arrays.
        ValueError: for an image of another shape.
    """
    if isinstance(mixing_set, PackedImages):
        return mixing_set
    if mixing_set is None:
        return PackedImages.pack([])
    if isinstance(mixing_set, Mapping | str) or not isinstance(mixing_set, Iterable):
        raise TypeError(
            f"mixing_set is {type(mixing_set).__name__}; pass what open_mixing_set returns, a list "
            "of uint8 images, or None"
        )
    return PackedImages.pack(mixing_set)


def check_crops(
    heights: NDArray[np.int32], widths: NDArray[np.int32], height: int, width: int
) -> None:
    """Refuse crops of height x width that do not fit into every image.

    Raises:
        ValueError: naming the first image that is smaller.
    """
    smaller = (heights < height) | (widths < width)
    if smaller.any():
        i = int(np.argmax(smaller))
        raise ValueError(too_small(i, heights[i], widths[i], height, width))


def too_small(i: int, image_height: int, image_width: int, height: int, width: int) -> str:
    """Return what to say of mixing image i where a crop does not fit into it."""
    return (
        f"mixing image {i} is {image_height}x{image_width} (height x width) and the crop "
        f"{height}x{width}; resize the mixing set so that each shorter side is at least "
        f"{max(height, width)}"
    )


# --- Memory maps ---------------------------------------------------------------------------------

_NO_MAPS = frozenset({errno.EINVAL, errno.ENODEV, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES})
"""What mmap raises on file systems that cannot do it, as some FUSE, 9p and network shares."""

MOST_BYTES_READ = 2**30
"""A larger file that cannot be mapped is refused: each process would have a copy of its own."""


def open_map(
    path: str | Path,
    dtype: np.dtype[Any] | type[np.generic],
    mode: Literal["r", "c"],
    *,
    offset: int = 0,
    shape: tuple[int, ...],
) -> NDArray[Any]:
    """Return an array in a file, memory-mapped, or read where the file system maps no files.

    Args:
        path: the file.
        dtype: of the array.
        mode: "r", read-only, or "c", with writes that nobody else sees.
        offset: bytes before the array.
        shape: of the array.

    Raises:
        OSError: if the file cannot be read, or can neither be mapped nor is small enough to be
            read; `filename` and `strerror` say which and why.
        ValueError: if the file is shorter.
    """
    dtype = np.dtype(dtype)
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes == 0:  # No mapping has length 0.
        return np.empty(shape, dtype)
    try:
        return np.asarray(np.memmap(path, dtype, mode, offset, shape))
    except OSError as error:
        # An open file is there and may be read, so what failed is the mapping.
        if error.errno not in _NO_MAPS or not os.access(path, os.R_OK):
            raise
        if n_bytes > MOST_BYTES_READ:
            raise OSError(
                error.errno,
                f"its file system cannot map files into memory ({error.strerror}), and its "
                f"{n_bytes:,} bytes are too many to be read by every process; copy it to a local "
                "disk",
                str(path),
            ) from error
    array = np.fromfile(path, dtype, math.prod(shape), offset=offset).reshape(shape)
    array.flags.writeable = mode == "c"
    return array


@dataclass(frozen=True)
class MapName:
    """What another process needs to map an array again; small to pickle."""

    filename: str
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def open(self, mode: Literal["r", "c"]) -> NDArray[Any]:
        """Map the file again; see `open_map`.

        Raises:
            OSError: if the file cannot be read any more.
        """
        return open_map(self.filename, self.dtype, mode, offset=self.offset, shape=self.shape)


def map_name(array: NDArray[Any]) -> MapName | None:
    """Return the name of the memory map that an array is all of, or None where it is none.

    A map of a file without a name counts as none, and so does that of a file that was removed
    since, as where a cache is emptied: what it held is still here.
    """
    base: Any = array
    # To the map itself: a part of one is a np.memmap, too, and has the offset of the whole.
    while isinstance(base, np.ndarray) and isinstance(base.base, np.ndarray):
        base = base.base
    if not isinstance(base, np.memmap) or base.filename is None or base.nbytes != array.nbytes:
        return None
    if not Path(base.filename).exists():
        return None
    return MapName(str(base.filename), base.offset, array.dtype, array.shape)
