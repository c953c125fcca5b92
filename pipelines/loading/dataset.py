"""What loaders read: the samples of shards, or of any map-style dataset, as arrays and labels.

A file becomes the pixels that Pillow gives, by the fastest decoder that is installed: JPEGs in grey
or colour are decoded by simplejpeg (pip install pixmix[fast]), or else by torchvision as long as it
can; both give Pillow's bytes and release the interpreter's lock. Pillow decodes all else, and what
they refuse. Nothing is decoded before its header says how large it is.
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
from pixmix.packed import map_name

Pixels = NDArray[np.uint8]

_FASTER_MODES = frozenset({"L", "RGB"})

_NO_SAMPLES = np.empty(0, SAMPLE)

_ATTEMPTS = 3
"""How often a shard is opened that is removed between its naming and its opening."""

_MOST_OPEN = 64
"""Shards that a process keeps open: systems often allow it 1024 files in all."""

_RESERVED_FILES = 32
"""What a worker opens besides shards: for batches in transit, and for modules."""


def read_size(content: bytes | bytearray) -> tuple[int, int]:
    """Return the height and width in an image's header, pixels.

    Raises:
        DecodeError: as `decode_image`, but damage after the header is not seen.
    """
    with decode_errors(), open_image(io.BytesIO(content)) as image:
        return image.height, image.width


def decode_image(content: bytes | bytearray) -> Pixels:
    """Return an image's pixels as `Image.open(...).convert("RGB")` gives them, 16 bits scaled.

    Args:
        content: bytes of a file that Pillow reads.

    Returns:
        (H, W, 3) uint8, contiguous and writeable. The EXIF orientation is ignored, as by
        torchvision's ImageFolder.

    Raises:
        DecodeError: if it is cut short, damaged, of an unknown format, larger than
            `MOST_PIXELS`, or of numbers whose white is not known.
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
        # Deprecated since 0.29, to be removed.
        return None

    def decode(content: bytearray) -> Pixels:
        file = torch.frombuffer(content, dtype=torch.uint8)
        planes = decode_jpeg(file, mode=ImageReadMode.RGB)
        return np.ascontiguousarray(planes.permute(1, 2, 0).numpy())

    return decode


JPEG_DECODER = _by_simplejpeg() or _by_torchvision()
"""Decodes grey and colour JPEGs; raises ValueError or RuntimeError for what it cannot read."""


def _decode_jpeg(content: bytes | bytearray) -> Pixels | None:
    """Return a JPEG's pixels, or None where the faster decoder refuses it and Pillow says why."""
    if JPEG_DECODER is None:
        return None
    try:
        # A bytearray, for torch warns of memory that cannot be written.
        return JPEG_DECODER(content if isinstance(content, bytearray) else bytearray(content))
    # Torchvision's is deprecated, which may be made an error.
    except (ValueError, RuntimeError, DeprecationWarning):
        return None


# --- datasets ------------------------------------------------------------------------------------


class SampleError(Exception):
    """A sample that cannot be read or decoded; it can be pickled.

    Attributes:
        index: of the sample in its dataset.
        reason: one or two words to count it by.
        message: what is wrong.
        key: of the sample in its tar, or None.
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
        """Return it as a line."""
        where = "" if self.shard is None else f", key {self.key} in {self.shard}"
        return f"sample {self.index}{where}: {self.message}"

    def record(self) -> dict[str, int | str | None]:
        """Return it as plain JSON values."""
        return dict(zip(("index", "reason", "message", "key", "shard"), self.args, strict=True))


class MapStyle(Protocol):
    """Any map-style dataset: `dataset[i]` is an image and a label.

    The image is a PIL image, an (H, W, 3) uint8 array or a (3, H, W) uint8 tensor, before any
    augmentation that loaders do; the label is a whole number. `dataset[i]` must depend on i alone.
    """

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, i: int, /) -> Any:  # noqa: ANN401  datasets do not type their pairs
        """Return the image and the label of a sample."""
        ...


class Samples(Protocol):
    """What loaders read: a map-style dataset of arrays that also identifies itself."""

    @property
    def name(self) -> str:
        """What to call it in messages."""
        ...

    @property
    def hash(self) -> str:
        """What tells it from other datasets, for the state of a loader."""
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
    """The samples of a map-style dataset of the user's.

    Its hash is of its class and length alone: its images have none.
    """

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
            PipelineError: if it gives something else than an image and a label.
        """
        try:
            sample = self._dataset[i]
        except Exception as error:  # a user's code may raise anything
            if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
                raise PipelineError(too_many_files()) from error
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise SampleError(
                i,
                type(error).__name__,
                f"{self.name}[{i}] raised {type(error).__name__}: {error} "
                f"({Path(place.filename).name}:{place.lineno})",
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
                "uint8 tensor: remove ToTensor, Normalize and the like from its transform"
            )
        try:
            return np.ascontiguousarray(image), int(np.int64(operator.index(label)))
        except (TypeError, OverflowError) as error:
            raise PipelineError(
                f"the label of {self.name}[{i}] is {label!r:.80}; expected a whole number (int64)"
            ) from error


class ShardDataset:
    """The samples of a set of shards, in any thread; each process opens the shards for itself.

    Attributes:
        shards: the set.
    """

    def __init__(self, shards: ShardSet, path_of: Callable[[int], Path] | None = None) -> None:
        """Open a set.

        Args:
            shards: the set.
            path_of: returns a shard as a local file that was compared with the manifest; it may
                download it. None takes local shards as they are.
        """
        self.shards = shards
        self._path_of = path_of
        self._open: OrderedDict[int, int] = OrderedDict()
        self._most_open: int | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out descriptors, which belong to a process, and a mapped index."""
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
        """Return the image, (H, W, 3) uint8, and the label of a sample, -1 for none.

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
            # Locked while it is read, or another thread may close the shard meanwhile.
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
        """Return a sample's key as its tar has it."""
        row = self.shards.samples[i]
        return read_key(self._path(int(row["shard"])), int(row["offset"]))

    def close(self) -> None:
        """Close the shards."""
        self._close_down_to(0)

    def _path(self, shard: int) -> Path:
        return (self._path_of or self.shards.path)(shard)

    def _close_down_to(self, n: int) -> None:
        """Close the shards that were used least recently, until n are open."""
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
                # A file of the cache, which was emptied at this moment, is downloaded again.
                if self._path_of is None or attempt == _ATTEMPTS - 1:
                    raise
            except OSError as error:
                if error.errno != errno.EMFILE or not self._open:
                    raise
                # Others opened more files than was reckoned with.
                self._most_open = max(1, len(self._open) // 2)
                self._close_down_to(self._most_open - 1)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def most_open_shards() -> int:
    """Return how many shards this process may keep open, by the limit of open files; at least 1."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return _MOST_OPEN
    listed = next((each for each in ("/proc/self/fd", "/dev/fd") if Path(each).is_dir()), None)
    in_use = len(os.listdir(listed)) if listed else _MOST_OPEN  # noqa: PTH208, names alone
    return max(1, min(_MOST_OPEN, limit - in_use - _RESERVED_FILES))


def too_many_files() -> str:
    """Return the error of a process that may open no more files."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        f"too many open files: this process may open {limit}; raise the limit (ulimit -n 4096), or "
        "use fewer --workers"
    )
