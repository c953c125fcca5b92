"""Check images, and pack a mixing set into one flat array for the kernels.

The array may be a memory map. A map is pickled as the name of its file, so that worker processes
share its pages.
"""

import errno
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

_MAX_PIXELS = 2**31 - 1


def find_image_key(sample: Sequence[object] | Mapping[object, object]) -> object:
    """Return the index or key of the image in a sample of a dataset, or 0 if it is not found."""
    pairs = sample.items() if isinstance(sample, Mapping) else enumerate(sample)
    # PIL images have no ndim, and a label has no `mode`.
    looks = (
        key for key, value in pairs if getattr(value, "ndim", 0) == 3 or hasattr(value, "mode")
    )
    return next(looks, 0)


def check_image(image: object) -> NDArray[np.uint8]:
    """Return an image as a C-contiguous, writeable array; copy it only if it is not one.

    Args:
        image: (H, W, 3) uint8; H and W at least 1, up to 2^31 - 1 pixels.

    Raises:
        TypeError: if it is not an array, or not uint8.
        ValueError: if it has another shape, or too many pixels.
    """
    if isinstance(image, tuple | list | Mapping):
        raise TypeError(
            f"expected an (H, W, 3) uint8 array, not {type(image).__name__}; convert it with "
            "numpy.asarray, and leave labels out: "
            f"[numpy.asarray(sample[{find_image_key(image)!r}]) for sample in dataset]"
        )
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"expected an (H, W, 3) uint8 array, not {type(image).__name__}; "
            "convert it with numpy.asarray(image)"
        )
    if image.dtype != np.uint8:
        raise TypeError(
            f"expected an image of dtype uint8, 0..255, not {image.dtype}; "
            "round it and convert it with .astype(numpy.uint8)"
        )
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            "expected an image of shape (H, W, 3) with H and W at least 1, not "
            f"{image.shape}; put the channels last, and make three of them "
            "(Pillow: .convert('RGB'))"
        )
    if image.shape[0] * image.shape[1] > _MAX_PIXELS:
        raise ValueError(
            f"an image may have at most {_MAX_PIXELS} pixels, not {image.shape[:2]}; split it"
        )
    image = np.ascontiguousarray(image)
    # numba would compile each kernel again, for seconds, for the type of read-only arrays.
    return image if image.flags.writeable else image.copy()


class Layout(NamedTuple):
    """The arrays of a `PackedImages` in the order in which kernels take them; not validated."""

    pixels: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class PackedImages:
    """Images of any sizes in one flat array: a sequence of (H, W, 3) uint8 views.

    If the pixels are a whole memory map, pickling stores the name of its file, so that the workers
    of a loader share its pages; other pixels are pickled by value.

    Attributes:
        pixels: flat uint8; image i is pixels[offsets[i] : offsets[i] + 3 H W], rows of RGB. Use a
            writeable array (such as a copy-on-write map): numba compiles the kernels again for
            read-only ones. Nothing here writes to it.
        offsets: (M,) int64, in bytes.
        heights: (M,) int32, in pixels, at least 1.
        widths: (M,) int32, in pixels, at least 1.
    """

    pixels: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]

    def __post_init__(self) -> None:
        """Validate the arrays, so that no kernel reads beyond their ends.

        Raises:
            TypeError: if an array has another dtype.
            ValueError: if lengths differ or an image is not inside the pixels.
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
                "widths; pass one of each per image"
            )
        # Compared in pixels, and from the end of the array: three times a product of sides, or its
        # sum with an offset, might overflow 64 bits.
        n_pixels = self.heights.astype(np.int64) * self.widths
        wrong = (self.offsets < 0) | (self.heights < 1) | (self.widths < 1)
        wrong |= n_pixels > (len(self.pixels) - self.offsets) // 3
        if wrong.any():
            i = int(np.argmax(wrong))
            raise ValueError(
                f"image {i}, {self.heights[i]}x{self.widths[i]} at byte {self.offsets[i]}, is "
                f"not inside the {len(self.pixels)} bytes of pixels; pack the set again"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle a memory map as the name of its file, and other pixels by value."""
        pixels = map_name(self.pixels) or self.pixels
        return _rebuild, (pixels, self.offsets, self.heights, self.widths)

    @property
    def layout(self) -> Layout:
        """The arrays, as kernels take them."""
        return Layout(self.pixels, self.offsets, self.heights, self.widths)

    @classmethod
    def pack(cls, images: Iterable[NDArray[np.uint8]]) -> "PackedImages":
        """Return images packed. One (M, H, W, 3) array is not copied; separate images are.

        Args:
            images: (H, W, 3) uint8 arrays, each of its own size, or one (M, H, W, 3) array.

        Raises:
            TypeError: if an image is not a uint8 array.
            ValueError: if an image has another shape.
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
        """Return a SHA-256 of all sizes and 65,536 bytes spread over the pixels, in hexadecimal."""
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
            IndexError: if i is out of range.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"image {i} is out of range for {len(self)} images; count from 0")
        start, height, width = int(self.offsets[i]), int(self.heights[i]), int(self.widths[i])
        return self.pixels[start : start + 3 * height * width].reshape(height, width, 3)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Iterate over the images in order."""
        return (self[i] for i in range(len(self)))


def _rebuild(
    pixels: "MapName | NDArray[np.uint8]",
    offsets: NDArray[np.int64],
    heights: NDArray[np.int32],
    widths: NDArray[np.int32],
) -> PackedImages:
    # Copy-on-write, since kernels are compiled for writeable arrays; nothing writes to it.
    mapped = pixels.open("c") if isinstance(pixels, MapName) else pixels
    return PackedImages(mapped, offsets, heights, widths)


def pack_mixing_set(mixing_set: object) -> PackedImages:
    """Return a mixing set as `PackedImages`, empty for None; packed images are not copied.

    Raises:
        TypeError: if it is not an iterable of uint8 arrays.
        ValueError: if an image has another shape.
    """
    if isinstance(mixing_set, PackedImages):
        return mixing_set
    if mixing_set is None:
        return PackedImages.pack([])
    if isinstance(mixing_set, Mapping | str) or not isinstance(mixing_set, Iterable):
        raise TypeError(
            f"mixing_set is {type(mixing_set).__name__}; pass the result of open_mixing_set, a "
            "list of uint8 images, or None"
        )
    return PackedImages.pack(mixing_set)


def check_crops(
    heights: NDArray[np.int32], widths: NDArray[np.int32], height: int, width: int
) -> None:
    """Check that crops of height x width fit into every image.

    Raises:
        ValueError: if one is smaller; names the first.
    """
    smaller = (heights < height) | (widths < width)
    if smaller.any():
        i = int(np.argmax(smaller))
        raise ValueError(too_small(i, heights[i], widths[i], height, width))


def too_small(i: int, image_height: int, image_width: int, height: int, width: int) -> str:
    """Return the error message for a crop that does not fit into mixing image i."""
    return (
        f"mixing image {i} is {image_height}x{image_width} (height x width) and the crop "
        f"{height}x{width}; resize the mixing set so that each shorter side is at least "
        f"{max(height, width)}"
    )


# --- Memory maps ---------------------------------------------------------------------------------

_NO_MAPS = frozenset({errno.EINVAL, errno.ENODEV, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES})
"""Errors of mmap on file systems without support for it: some FUSE, 9p and network mounts."""

MAX_BYTES_READ = 2**30
"""Size limit of files that are read because they cannot be mapped: each process has a copy."""


def open_map(
    path: str | Path,
    dtype: np.dtype[Any] | type[np.generic],
    mode: Literal["r", "c"],
    *,
    offset: int = 0,
    shape: tuple[int, ...],
) -> NDArray[Any]:
    """Return an array in a file, memory-mapped, or read if the file system does not support maps.

    Args:
        path: the file.
        dtype: of the array.
        mode: "r" for read-only, "c" for copy-on-write.
        offset: of the array in the file, in bytes.
        shape: of the array.

    Raises:
        OSError: if the file cannot be read, or can neither be mapped nor is small enough to be
            read; `filename` and `strerror` name the file and the reason.
        ValueError: if the file is too short.
    """
    dtype = np.dtype(dtype)
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes == 0:  # No mapping has length 0.
        return np.empty(shape, dtype)
    try:
        return np.asarray(np.memmap(path, dtype, mode, offset, shape))
    except OSError as error:
        # The file exists and is readable, so the mapping failed.
        if error.errno not in _NO_MAPS or not os.access(path, os.R_OK):
            raise
        if n_bytes > MAX_BYTES_READ:
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
    """A reference by which another process maps an array again; small to pickle."""

    filename: str
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def open(self, mode: Literal["r", "c"]) -> NDArray[Any]:
        """Map the file again; see `open_map`."""
        return open_map(self.filename, self.dtype, mode, offset=self.offset, shape=self.shape)


def map_name(array: NDArray[Any]) -> MapName | None:
    """Return a reference to the file of a memory map, or None if the array is not a whole map.

    Also None if the file has no name or was deleted meanwhile (by emptying a cache, say): the array
    must then be pickled by value.
    """
    base: Any = array
    # Walk up to the map itself: a slice of it is also a np.memmap, with the offset of the whole.
    while isinstance(base, np.ndarray) and isinstance(base.base, np.ndarray):
        base = base.base
    if not isinstance(base, np.memmap) or base.filename is None or base.nbytes != array.nbytes:
        return None
    if not Path(base.filename).exists():
        return None
    return MapName(str(base.filename), base.offset, array.dtype, array.shape)
