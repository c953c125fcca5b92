"""Images by number, a batch at a time: from arrays, files, shards, videos and other sources.

Nothing that a file holds is executed, only regular files are opened, and a header's sizes are
compared with the file's before memory is allocated.
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
from pipelines.shards.format import ShardSet
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
    """Images of one size."""

    @property
    def prefetch(self) -> int:
        """Number of batches to prefetch."""
        ...

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def read(self, numbers: Sequence[int]) -> NDArray[np.generic]:
        """Return some of them, (n, H, W, 3) uint8 or float32 in 0..1."""
        ...


@dataclass(frozen=True)
class ResizeCrop:
    """How images of any size become the network's squares: resized, then cropped to the centre.

    side: of the square, pixels. resize: the shorter side before the crop, or None to crop the image
    without resizing.
    """

    side: int
    resize: int | None

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return (side, side, 3) uint8 of (H, W, 3).

        Raises:
            ValueError: if the image is smaller than the crop.
        """
        shorter = min(image.shape[:2])
        if self.resize is None and shorter < self.side:
            raise ValueError(
                f"{image.shape[1]}x{image.shape[0]} pixels, of which the middle "
                f"{self.side}x{self.side} should be taken"
            )
        return resized_center(image, self.resize or shorter, (self.side, self.side))

    def cropping_only(self) -> "ResizeCrop":
        """Return the transform of images that have been resized before, as ImageNet-C's."""
        return ResizeCrop(self.side, None)


@dataclass(frozen=True)
class ArrayImages:
    """Images of an array, (n, H, W, 3), which may be memory-mapped: only what is asked is read."""

    array: NDArray[np.generic]
    prefetch: int = 0

    def __len__(self) -> int:
        return len(self.array)

    def read(self, numbers: Sequence[int]) -> NDArray[np.generic]:
        """Return some of them."""
        if isinstance(numbers, range):
            return self.array[numbers.start : numbers.stop : numbers.step]
        return self.array[np.asarray(numbers, np.int64)]


@dataclass(frozen=True)
class GeneratedImages:
    """n images, each drawn from its own number by `draw`."""

    n: int
    draw: Callable[[int], NDArray[np.generic]]
    prefetch: int = 1

    def __len__(self) -> int:
        return self.n

    def read(self, numbers: Sequence[int]) -> NDArray[np.generic]:
        """Return some of them."""
        return np.stack([self.draw(number) for number in numbers])


@dataclass(frozen=True)
class Subset:
    """Some of other images. numbers: (n,), the chosen ones."""

    images: Images
    numbers: NDArray[np.int64]

    @property
    def prefetch(self) -> int:
        """As the others."""
        return self.images.prefetch

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, numbers: Sequence[int]) -> NDArray[np.generic]:
        """Return some of them."""
        return self.images.read([int(self.numbers[number]) for number in numbers])


@dataclass(frozen=True, kw_only=True)
class DecodedImages:
    """Images of files, decoded by several threads when they are asked for.

    n: how many; content: returns the bytes of one; name: what to call it in an error.
    remedy: what to do about one that cannot be read, for the end of the error.
    """

    n: int
    content: Callable[[int], bytes | bytearray]
    name: Callable[[int], str]
    transform: ResizeCrop
    remedy: str = "replace it with a whole file, or remove it"
    prefetch: int = 1

    def __len__(self) -> int:
        return self.n

    def read(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Return some of them.

        Raises:
            PipelineError: if one cannot be read.
        """
        side = self.transform.side
        out = np.empty((len(numbers), side, side, 3), np.uint8)

        def fill(row: int) -> None:
            number = numbers[row]
            try:
                out[row] = self.transform(decode_image(self.content(number)))
            except SampleError as error:
                raise PipelineError(f"{error}; run pixmix-shard verify") from error
            except OSError as error:
                raise unreadable(self.name(number), error, self.remedy) from error
            except (DecodeError, ValueError) as error:
                raise PipelineError(
                    f"{self.name(number)} cannot be evaluated: {error}; {self.remedy}"
                ) from error

        with ThreadPoolExecutor(available_cores()) as pool:
            for _ in pool.map(fill, range(len(numbers))):
                pass
        return out


def shard_images(shards: ShardSet, transform: ResizeCrop) -> DecodedImages:
    """Return the images of shards, in their order."""
    return DecodedImages(
        n=len(shards), content=ShardDataset(shards).read, name=shards.key, transform=transform
    )


def file_images(
    files: Sequence[Path], transform: ResizeCrop, *, remedy: str = DecodedImages.remedy
) -> DecodedImages:
    """Return the images of files, in their order; see `DecodedImages` for the remedy."""
    return DecodedImages(
        n=len(files),
        content=lambda number: read_image_file(files[number]),
        name=lambda number: printable(str(files[number])),
        transform=transform,
        remedy=remedy,
    )


def folder_images(
    folder: Path, transform: ResizeCrop, notices: Notices | None = None
) -> DecodedImages:
    """Return the images of a folder and the folders in it; notices take what is ignored.

    Raises:
        PipelineError: if there is none.
        OSError: if a folder cannot be read.
    """
    return file_images(image_files(folder, ignored=(notices or Notices()).ignored), transform)


def source_images(source: Source, transform: ResizeCrop) -> DecodedImages:
    """Return the images of a source of shards.

    Raises:
        PipelineError: if there is none.
    """
    items = [(item.place, item.name) for item in source.items()]
    return DecodedImages(
        n=len(items),
        content=lambda number: source.read(items[number][0]),
        name=lambda number: items[number][1],
        transform=transform,
    )


# --- Videos --------------------------------------------------------------------------------------

_MOST_FRAMES = 10_000


def read_frames(path: Path, transform: ResizeCrop) -> NDArray[np.uint8]:
    """Return all frames of a video, (frames, side, side, 3) uint8.

    Raises:
        PipelineError: if the extra `video` is not installed, or the file is not a whole video of
            two frames or more that are at least as large as the transform.
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
                if frame.width * frame.height > MAX_PIXELS or len(frames) == _MOST_FRAMES:
                    raise ValueError(
                        f"over {MAX_PIXELS:,} pixels in a frame, or over {_MOST_FRAMES:,} frames"
                    )
                frames.append(transform(frame.to_ndarray(format="rgb24").astype(np.uint8)))
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise PipelineError(f"{path} is no whole video ({error}); unpack the set again") from error
    except OSError as error:
        raise unreadable(path, error, "unpack the set again") from error
    if len(frames) < 2:
        raise PipelineError(f"{path} has {len(frames)} frame; unpack the set again")
    return np.stack(frames)


# --- Arrays and text -----------------------------------------------------------------------------

DOWNLOAD_AGAIN = "download it again"
"""What to do about a damaged file that others distribute."""

_MOST_LABELS = 1 << 30
_MOST_TEXT = 1 << 24


def read_labels(path: Path, remedy: str = DOWNLOAD_AGAIN) -> NDArray[np.int64]:
    """Return the whole numbers of a .npy file, (n,) int64; see `open_array`.

    Raises:
        PipelineError: if it holds anything else.
    """
    labels = open_array(path, remedy)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.nbytes > _MOST_LABELS:
        raise PipelineError(
            f"{path} is {labels.dtype} of shape {labels.shape}; labels are whole numbers in one "
            f"dimension; {remedy}"
        )
    if labels.dtype.kind == "u" and len(labels) and int(labels.max()) > np.iinfo(np.int64).max:
        raise PipelineError(f"{path} has a label {labels.max()}; {remedy}")
    return np.array(labels, np.int64)


def read_names(path: Path, remedy: str) -> list[str]:
    """Return the lines of a text file in UTF-8, whatever the locale is.

    Raises:
        PipelineError: if it is not a regular file of UTF-8, or too large.
    """
    try:
        return read_regular(path, max_bytes=_MOST_TEXT).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise unreadable(path, error, remedy) from error
    except UnicodeDecodeError as error:
        raise PipelineError(
            f"{path} is not text in UTF-8 (byte {error.start}); {remedy}"
        ) from error
