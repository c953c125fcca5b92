"""Read batches of images by index from arrays, files, shards, videos and other sources.

Nothing in a file is executed, only regular files are opened, and the sizes in a header are checked
against the size of the file before memory is allocated.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError, install_extra
from pipelines.evaluation.folders import Notices, unreadable
from pipelines.loading.dataset import SampleError, ShardDataset, decode_image
from pipelines.shards.images import (
    MAX_FILE_BYTES,
    MAX_PIXELS,
    DecodeError,
    image_files,
    read_image_file,
)
from pipelines.shards.sources import Source
from pipelines.system.files import open_regular, printable, read_regular
from pipelines.system.processes import available_cores
from pipelines.system.untrusted import open_array
from pixmix.resizing import resized_center


class Images(Protocol):
    """A sequence of images of one size."""

    @property
    def prefetch(self) -> int:
        """Number of batches to prefetch."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def read(self, indices: Sequence[int]) -> NDArray[np.generic]:
        """Return the images at some indices, (n, H, W, 3) uint8, or float32 in 0..1."""
        ...


@dataclass(frozen=True)
class ResizeCrop:
    """Resize and centre-crop images of any size to squares.

    Attributes:
        side: height and width after the crop, pixels.
        resize: shorter side after the resize, pixels; None to crop without resizing.
    """

    side: int
    resize: int | None

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return (side, side, 3) uint8 for an image (H, W, 3) uint8.

        Raises:
            ValueError: if the image is smaller than a crop without resize.
        """
        shorter = min(image.shape[:2])
        if self.resize is None and shorter < self.side:
            raise ValueError(
                f"{image.shape[1]}x{image.shape[0]} pixels, smaller than the centre crop of "
                f"{self.side}x{self.side}"
            )
        return resized_center(image, self.resize or shorter, (self.side, self.side))

    def cropping_only(self) -> "ResizeCrop":
        """Return the crop for images that are already resized, as ImageNet-C's."""
        return ResizeCrop(self.side, None)


@dataclass(frozen=True)
class ArrayImages:
    """Images in an array (n, H, W, 3), which may be memory-mapped."""

    array: NDArray[np.generic]
    prefetch: int = 0

    def __len__(self) -> int:
        return len(self.array)

    def read(self, indices: Sequence[int]) -> NDArray[np.generic]:
        """Return the images at some indices."""
        if isinstance(indices, range):
            return self.array[indices.start : indices.stop : indices.step]
        return self.array[np.asarray(indices, np.int64)]


@dataclass(frozen=True)
class GeneratedImages:
    """Synthetic images. n: number of images; draw: returns the image at an index."""

    n: int
    draw: Callable[[int], NDArray[np.generic]]
    prefetch: int = 1

    def __len__(self) -> int:
        return self.n

    def read(self, indices: Sequence[int]) -> NDArray[np.generic]:
        """Return the images at some indices."""
        return np.stack([self.draw(index) for index in indices])


@dataclass(frozen=True)
class Subset:
    """A subset of other images. indices: (n,) int64, those of the subset."""

    images: Images
    indices: NDArray[np.int64]

    @property
    def prefetch(self) -> int:
        """Number of batches to prefetch."""
        return self.images.prefetch

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: Sequence[int]) -> NDArray[np.generic]:
        """Return the images at some indices."""
        return self.images.read([int(self.indices[index]) for index in indices])


@dataclass(frozen=True, kw_only=True)
class DecodedImages:
    """Encoded images, decoded by several threads when they are read.

    Attributes:
        n: number of images.
        content: returns the bytes of the image at an index.
        name: returns its name for errors.
        transform: resize and crop.
        remedy: what to do about an unreadable image, for the end of the error.
        prefetch: number of batches to prefetch.
    """

    n: int
    content: Callable[[int], bytes | bytearray]
    name: Callable[[int], str]
    transform: ResizeCrop
    remedy: str = "replace it with an undamaged file, or remove it"
    prefetch: int = 1

    def __len__(self) -> int:
        return self.n

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Return the images at some indices.

        Raises:
            PipelineError: if an image cannot be read.
        """
        side = self.transform.side
        out = np.empty((len(indices), side, side, 3), np.uint8)

        def fill(row: int) -> None:
            index = indices[row]
            try:
                out[row] = self.transform(decode_image(self.content(index)))
            except SampleError as error:
                raise PipelineError(f"{error}; run pixmix-shard verify") from error
            except OSError as error:
                raise unreadable(self.name(index), error, self.remedy) from error
            except (DecodeError, ValueError) as error:
                raise PipelineError(
                    f"{self.name(index)} cannot be evaluated: {error}; {self.remedy}"
                ) from error

        with ThreadPoolExecutor(available_cores()) as pool:
            for _ in pool.map(fill, range(len(indices))):
                pass
        return out


def shard_images(shards: ShardDataset, transform: ResizeCrop) -> DecodedImages:
    """Return the images of shards, in the order of the shards."""
    return DecodedImages(n=len(shards), content=shards.read, name=shards.key, transform=transform)


def file_images(
    files: Sequence[Path], transform: ResizeCrop, *, remedy: str = DecodedImages.remedy
) -> DecodedImages:
    """Return the images of files; see `DecodedImages` for the remedy."""
    return DecodedImages(
        n=len(files),
        content=lambda index: read_image_file(files[index]),
        name=lambda index: printable(str(files[index])),
        transform=transform,
        remedy=remedy,
    )


def folder_images(
    folder: Path, transform: ResizeCrop, notices: Notices | None = None
) -> DecodedImages:
    """Return the images of a folder and its subfolders; notices collect ignored paths.

    Raises:
        PipelineError: if no image is found.
        OSError: if a folder cannot be read.
    """
    return file_images(image_files(folder, ignored=(notices or Notices()).ignored), transform)


def source_images(source: Source, transform: ResizeCrop) -> DecodedImages:
    """Return the images of a source that `pixmix-shard` can read.

    Raises:
        PipelineError: if no image is found.
    """
    items = [(item.place, item.name) for item in source.items()]
    return DecodedImages(
        n=len(items),
        content=lambda index: source.read(items[index][0]),
        name=lambda index: items[index][1],
        transform=transform,
    )


# --- Videos --------------------------------------------------------------------------------------

_MAX_FRAMES = 10_000


def read_frames(path: Path, transform: ResizeCrop) -> NDArray[np.uint8]:
    """Return all frames of a video, (frames, side, side, 3) uint8.

    Raises:
        PipelineError: if the extra ``video`` is not installed, or the file is not a complete video
            of at least two frames that are as large as the crop.
    """
    try:
        import av
    except ImportError as error:
        raise PipelineError(
            f"videos need PyAV, which is not installed; run {install_extra('video')}"
        ) from error
    frames: list[NDArray[np.uint8]] = []
    try:
        with (
            open_regular(path, max_bytes=MAX_FILE_BYTES) as file,
            av.open(file, mode="r", format="mp4") as container,
        ):
            for frame in container.decode(video=0):
                if frame.width * frame.height > MAX_PIXELS or len(frames) == _MAX_FRAMES:
                    raise ValueError(
                        f"over {MAX_PIXELS:,} pixels in a frame, or over {_MAX_FRAMES:,} frames"
                    )
                frames.append(transform(frame.to_ndarray(format="rgb24").astype(np.uint8)))
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise PipelineError(
            f"{path} is not a complete video ({error}); unpack the dataset again"
        ) from error
    except OSError as error:
        raise unreadable(path, error, "unpack the dataset again") from error
    if len(frames) < 2:
        raise PipelineError(
            f"{path} has {len(frames)} frame, expected at least 2; unpack the dataset again"
        )
    return np.stack(frames)


# --- Arrays and text -----------------------------------------------------------------------------

DOWNLOAD_AGAIN = "download it again"
"""Remedy for a damaged file of a published dataset."""

_MAX_LABELS = 1 << 30
_MAX_TEXT = 1 << 24


def read_labels(path: Path, remedy: str = DOWNLOAD_AGAIN) -> NDArray[np.int64]:
    """Return the labels in a .npy file, (n,) int64; see `open_array`.

    Raises:
        PipelineError: if the file holds anything but integers in one dimension.
    """
    labels = open_array(path, remedy)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.nbytes > _MAX_LABELS:
        raise PipelineError(
            f"{path} is {labels.dtype} of shape {labels.shape}; expected integers in one "
            f"dimension; {remedy}"
        )
    if labels.dtype.kind == "u" and len(labels) and int(labels.max()) > np.iinfo(np.int64).max:
        raise PipelineError(f"{path} has a label {labels.max()}; {remedy}")
    return np.array(labels, np.int64)


def read_names(path: Path, remedy: str) -> list[str]:
    """Return the lines of a text file in UTF-8, independent of the locale.

    Raises:
        PipelineError: if the file is not UTF-8, not a regular file, or too large.
    """
    try:
        return read_regular(path, max_bytes=_MAX_TEXT).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise unreadable(path, error, remedy) from error
    except UnicodeDecodeError as error:
        raise PipelineError(
            f"{path} is not text in UTF-8 (byte {error.start}); {remedy}"
        ) from error
