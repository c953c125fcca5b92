"""Datasets of loaders: the samples of shards or of any map-style dataset, as arrays and labels.

Images are decoded to the same pixels as by Pillow, with the fastest decoder that is installed. Gray
and RGB JPEGs are decoded by simplejpeg (pip install pixmix[fast]), or else by torchvision if its
version still has a decoder. Both return the same bytes as Pillow and release the GIL. Pillow
decodes other formats, and files that those decoders reject. The size in the header is checked
first.
"""

import errno
import io
import operator
import os
import resource
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines.errors import PipelineError
from pipelines.shards.format import SAMPLE, ShardSet, read_key
from pipelines.shards.images import DecodeError, decode_errors, open_image, to_rgb
from pipelines.system.files import sha256
from pixmix.images import map_name

Pixels = NDArray[np.uint8]

_FASTER_MODES = frozenset({"L", "RGB"})

_NO_SAMPLES = np.empty(0, SAMPLE)

_ATTEMPTS = 3
"""Attempts to open a shard of the cache that is removed just before it is opened."""

_MAX_OPEN = 64
"""Maximum number of shards that a process keeps open; the limit of open files is often 1024."""

_RESERVED_FILES = 32
"""Files that a worker opens besides shards, for batches in transit and modules."""


def read_size(content: bytes | bytearray) -> tuple[int, int]:
    """Return the height and width in an image's header, in pixels.

    Raises:
        DecodeError: as for `decode_image`, but only for the header.
    """
    with decode_errors(), open_image(io.BytesIO(content)) as image:
        return image.height, image.width


def decode_image(content: bytes | bytearray) -> Pixels:
    """Return the pixels of an image, as `Image.open(...).convert("RGB")`; 16 bits are scaled to 8.

    Args:
        content: bytes of an image file in a format of Pillow.

    Returns:
        (H, W, 3) uint8, contiguous and writeable. The EXIF orientation is ignored, as in
        torchvision's ImageFolder.

    Raises:
        DecodeError: if the file is truncated, damaged, of an unknown format or value range, or
            larger than `MAX_PIXELS`.
    """
    with decode_errors(), open_image(io.BytesIO(content)) as image:
        if image.format == "JPEG" and image.mode in _FASTER_MODES:
            pixels = _decode_jpeg(content)
            if pixels is not None:
                return pixels
        return np.array(to_rgb(image))


def _by_simplejpeg() -> Callable[[bytearray], Pixels] | None:
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    return lambda content: decode_jpeg(content, colorspace="RGB")


def _by_torchvision() -> Callable[[bytearray], Pixels] | None:
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:
        # Deprecated in torchvision 0.29, and removed in a later version.
        return None

    def decode(content: bytearray) -> Pixels:
        file = torch.frombuffer(content, dtype=torch.uint8)
        planes = decode_jpeg(file, mode=ImageReadMode.RGB)
        return np.ascontiguousarray(planes.permute(1, 2, 0).numpy())

    return decode


JPEG_DECODER = _by_simplejpeg() or _by_torchvision()
"""Decodes gray and RGB JPEGs; raises ValueError or RuntimeError for files that it rejects."""


def _decode_jpeg(content: bytes | bytearray) -> Pixels | None:
    """Return the pixels of a JPEG, or None if it must be decoded by Pillow."""
    if JPEG_DECODER is None:
        return None
    try:
        # A bytearray, because torch warns about read-only memory.
        return JPEG_DECODER(content if isinstance(content, bytearray) else bytearray(content))
    # The decoder of torchvision is deprecated, and users may turn warnings into errors.
    except (ValueError, RuntimeError, DeprecationWarning):
        return None


# --- datasets ------------------------------------------------------------------------------------


class SampleError(Exception):
    """Raised for a sample that cannot be read or decoded; it can be pickled.

    Attributes:
        index: index of the sample in its dataset.
        reason: one or two words, by which errors are counted.
        message: description of the error.
        key: key of the sample in its tar, or None.
        shard: file name of the tar, or None.
    """

    def __init__(
        self,
        index: int,
        reason: str,
        message: str,
        key: str | None = None,
        shard: str | None = None,
    ) -> None:
        super().__init__(index, reason, message, key, shard)
        self.index, self.reason, self.message = index, reason, message
        self.key, self.shard = key, shard

    def __str__(self) -> str:
        """Return the error as one line."""
        where = "" if self.shard is None else f", key {self.key} in {self.shard}"
        return f"sample {self.index}{where}: {self.message}"

    def record(self) -> dict[str, int | str | None]:
        """Return the error as plain JSON values."""
        return dict(zip(("index", "reason", "message", "key", "shard"), self.args, strict=True))


class MapStyle(Protocol):
    """Any map-style dataset: `dataset[i]` is a pair of an image and a label.

    The image is a PIL image, an (H, W, 3) uint8 array or a (3, H, W) uint8 tensor, without the
    augmentation of loaders; the label is an integer. `dataset[i]` must depend only on i.
    """

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, i: int, /) -> Any:  # noqa: ANN401  datasets do not type their pairs
        """Return the image and the label of a sample."""
        ...


class Samples(Protocol):
    """The dataset of a loader: a map-style dataset of arrays with a name and a hash."""

    @property
    def name(self) -> str:
        """Name of the dataset in messages."""
        ...

    @property
    def hash(self) -> str:
        """Identifies the dataset in the state of a loader."""
        ...

    @property
    def shard_sizes(self) -> Sequence[int] | None:
        """The number of samples of each shard, in order; None for a dataset without shards."""
        ...

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, i: int, /) -> tuple[Pixels, int]:
        """Return the image, (H, W, 3) uint8, and the label of a sample.

        Raises:
            SampleError: if it cannot be read or decoded.
        """
        ...


class MapSamples:
    """The samples of a user's map-style dataset; its hash covers only its class and length."""

    shard_sizes: Sequence[int] | None = None

    def __init__(self, dataset: MapStyle) -> None:
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise PipelineError(
                f"data is a {type(dataset).__qualname__}; expected shards (a folder, a pattern or "
                "an address) or a map-style dataset with __len__ and __getitem__"
            )
        kind = type(dataset)
        self._dataset = dataset
        self.name = kind.__qualname__
        self.hash = sha256(f"{kind.__module__}.{kind.__qualname__} {len(dataset)}".encode())

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._dataset)

    def __getitem__(self, i: int, /) -> tuple[Pixels, int]:
        """Return the image, (H, W, 3) uint8, and the label of a sample.

        Raises:
            SampleError: if the dataset raises an error.
            PipelineError: if the item is not a pair of an image and a label.
        """
        try:
            sample = self._dataset[i]
        except Exception as error:  # The code of a user may raise anything.
            if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
                raise PipelineError(too_many_files()) from error
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise SampleError(
                i,
                type(error).__name__,
                f"{self.name}[{i}] raised {type(error).__name__}: {error} "
                f"({Path(frame.filename).name}:{frame.lineno})",
            ) from error
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise PipelineError(
                f"{self.name}[{i}] is a {type(sample).__qualname__}; expected a pair of an image "
                "and a label"
            )
        image, label = sample
        if isinstance(image, Image.Image):
            try:
                with decode_errors():
                    image = np.array(to_rgb(image))
            except DecodeError as error:
                raise SampleError(i, error.reason, f"{self.name}[{i}]: {error}") from error
        elif isinstance(image, Tensor):
            image = image.detach().cpu()
            image = image.movedim(0, -1).numpy() if image.ndim == 3 else image.numpy()
        shape: tuple[int, ...] = tuple(getattr(image, "shape", ()))
        dtype = getattr(image, "dtype", None)
        if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != np.uint8:
            raise PipelineError(
                f"the image of {self.name}[{i}] is a {type(image).__qualname__} of {dtype}, shape "
                f"{shape}; expected a PIL image, an (H, W, 3) uint8 array or a (3, H, W) "
                "uint8 tensor: remove ToTensor, Normalize and similar steps from its transform"
            )
        try:
            return np.ascontiguousarray(image), int(np.int64(operator.index(label)))
        except (TypeError, OverflowError) as error:
            raise PipelineError(
                f"the label of {self.name}[{i}] is {label!r:.80}; expected an integer (int64)"
            ) from error


class ShardDataset:
    """The samples of shards; usable in any thread and process.

    Each process opens the shards again.

    Attributes:
        shards: the set of shards.
    """

    def __init__(self, shards: ShardSet, path_of: Callable[[int], Path] | None = None) -> None:
        """Open a set of shards.

        Args:
            shards: the set.
            path_of: returns the path of a local, verified copy of a shard, which it may download.
                None uses local shards without verification.
        """
        self.shards = shards
        self._path_of = path_of
        self._open: OrderedDict[int, int] = OrderedDict()
        self._most_open: int | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the descriptors of this process, and an index that is mapped."""
        name = map_name(self.shards.samples)
        shards = self.shards if name is None else replace(self.shards, samples=_NO_SAMPLES)
        return {"shards": shards, "index": name, "path_of": self._path_of}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the index again."""
        shards, index = state["shards"], state["index"]
        self.__init__(  # type: ignore[misc]
            shards if index is None else replace(shards, samples=index.open("r")), state["path_of"]
        )

    @property
    def name(self) -> str:
        """Folder or address of the shards."""
        return self.shards.location

    @property
    def hash(self) -> str:
        """The SHA-256 of the manifest."""
        return self.shards.hash

    @property
    def shard_sizes(self) -> list[int]:
        """The number of samples of each shard, in order."""
        return [shard.n_samples for shard in self.shards.shards]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.shards)

    def __getitem__(self, i: int, /) -> tuple[Pixels, int]:
        """Return the image, (H, W, 3) uint8, and the label of a sample, -1 if it has none.

        Raises:
            SampleError: if it cannot be read or decoded.
        """
        try:
            return decode_image(self.read(i)), int(self.shards.samples["label"][i])
        except DecodeError as error:
            raise self.error(i, error.reason, str(error)) from error

    def read(self, i: int) -> bytearray:
        """Return the bytes of a sample's image.

        Raises:
            SampleError: if its shard cannot be read or ends before it.
        """
        row = self.shards.samples[i]
        size = int(row["size"])
        content = bytearray(size)
        try:
            # Locked during the read, because another thread may close the shard.
            with self._lock:
                descriptor = self._descriptor(int(row["shard"]))
                n_read = os.preadv(descriptor, [content], int(row["offset"]))
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                raise PipelineError(too_many_files()) from error
            raise self.error(i, "unreadable shard", str(error)) from error
        if n_read != size:
            raise self.error(i, "short shard", f"{size - n_read} of {size} bytes are missing")
        return content

    def error(self, i: int, reason: str, message: str) -> SampleError:
        """Return the error of a sample, with its key and shard."""
        return SampleError(i, reason, message, self.key(i), self.file(i))

    def file(self, i: int) -> str:
        """Return the name of the tar of a sample."""
        return self.shards.shards[int(self.shards.samples["shard"][i])].file

    def key(self, i: int) -> str:
        """Return the key of a sample in its tar."""
        row = self.shards.samples[i]
        return read_key(self._path(int(row["shard"])), int(row["offset"]))

    def close(self) -> None:
        """Close the shards."""
        self._close_down_to(0)

    def _path(self, shard: int) -> Path:
        return (self._path_of or self.shards.path)(shard)

    def _close_down_to(self, n: int) -> None:
        """Close the least recently used shards until n are open."""
        while len(self._open) > n:
            os.close(self._open.popitem(last=False)[1])

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            if self._most_open is None:
                self._most_open = most_open_shards()
            self._close_down_to(self._most_open - 1)
            self._open[shard] = self._opened(shard)
        return self._open[shard]

    def _opened(self, shard: int) -> int:
        for attempt in range(_ATTEMPTS):
            try:
                return os.open(self._path(shard), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                # The file was just evicted from the cache; it is downloaded again.
                if self._path_of is None or attempt == _ATTEMPTS - 1:
                    raise
            except OSError as error:
                if error.errno != errno.EMFILE or not self._open:
                    raise
                # Other code has opened more files than expected.
                self._most_open = max(1, len(self._open) // 2)
                self._close_down_to(self._most_open - 1)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def most_open_shards() -> int:
    """Return the number of shards that this process may keep open, at least 1."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return _MAX_OPEN
    listed = next((each for each in ("/proc/self/fd", "/dev/fd") if Path(each).is_dir()), None)
    in_use = len(os.listdir(listed)) if listed else _MAX_OPEN  # noqa: PTH208 - only names
    return max(1, min(_MAX_OPEN, limit - in_use - _RESERVED_FILES))


def too_many_files() -> str:
    """Return the error message for the limit of open files."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        f"too many open files: the limit of this process is {limit}; raise it (ulimit -n 4096), or "
        "use fewer --workers"
    )
