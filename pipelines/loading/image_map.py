"""Memory maps of decoded images: built once per node, atomically, and shared by all processes.

    CACHE/maps/KEY/record.json    description, counts and hashes; written last
                   pixels         the RGB pixels of all images, one image after another
                   table.npy      offset, height and width of each image
    CACHE/maps/KEY.lock

KEY is a hash of the sources, the size, Pillow's version and the format version, so changed images
get a new map. The old map is not removed, because workers of a running training may still open it.
A process verifies the hashes of a map when it first opens it, and builds a damaged map again. A map
of another user is not trusted, since that user could have written its hashes: KEY-UID is built
instead. Complete maps are opened without the lock, so a cache may be read-only.
"""

import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import PIL
from numpy.typing import NDArray

from pipelines import __version__
from pipelines.errors import PipelineError
from pipelines.loading.dataset import decode_image, read_size
from pipelines.shards.images import MAX_PIXELS, DecodeError
from pipelines.system.files import (
    PARTIAL_SUFFIX,
    Count,
    Sha256,
    folder_lock,
    open_regular,
    read_json,
    read_regular,
    sha256,
    write_file,
)
from pipelines.system.progress import Progress
from pipelines.system.untrusted import open_array
from pixmix.images import PackedImages, open_map
from pixmix.resizing import resize_part, resized_shape

log = logging.getLogger(__name__)

OnMixingDecodeError = Literal["raise", "skip"]

FORMAT_VERSION = 3
_TABLE = np.dtype([("offset", "<i8"), ("height", "<i4"), ("width", "<i4")])
_RECORD, _PIXELS, _TABLE_FILE = "record.json", "pixels", "table.npy"
_CHUNK = 64
"""Images that a thread processes at a time."""
_PIECE = 1 << 26
"""Bytes per hash, so that threads can share a file; one thread hashes 2.8 GB in 2 s."""

_MAX_RECORD_BYTES = 2**30

_verified: dict[Path, tuple[int, ...]] = {}
"""Files that this process has verified, and their state then; inherited by forked processes."""


class _RecordedFile(msgspec.Struct, frozen=True):
    """A file of a map. sha256: the hash of each `_PIECE`."""

    bytes: Count
    sha256: list[Sha256]


class _Record(msgspec.Struct, frozen=True):
    """The record of a map. n: number of images; left_out: errors of the images left out."""

    n: Count
    left_out: list[str]
    files: dict[str, _RecordedFile]


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Image files in an order that depends only on their names.

    Attributes:
        n: number of images.
        name: returns the name of image i in messages.
        read: returns the bytes of image i; raises DecodeError.
        identity: returns plain JSON values that identify the content of these images.
        check: verifies the files before a map is built; raises PipelineError.
    """

    n: int
    name: Callable[[int], str]
    read: Callable[[int], bytearray]
    identity: Callable[[], dict[str, Any]]
    check: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return self.n


def join_sources(sources: Sequence[ImageSource]) -> ImageSource:
    """Return the concatenation of several sources."""
    if len(sources) == 1:
        return sources[0]
    ends = np.cumsum([source.n for source in sources])

    def locate(i: int) -> tuple[ImageSource, int]:
        number = int(np.searchsorted(ends, i, side="right"))
        return sources[number], i - int(ends[number]) + sources[number].n

    def name(i: int) -> str:
        source, k = locate(i)
        return source.name(k)

    def read(i: int) -> bytearray:
        source, k = locate(i)
        return source.read(k)

    def check() -> None:
        for source in sources:
            source.check()

    return ImageSource(
        n=int(ends[-1]),
        name=name,
        read=read,
        identity=lambda: {"joined": [source.identity() for source in sources]},
        check=check,
    )


def open_image_map(
    source: ImageSource,
    size: int | None,
    *,
    cache: Path,
    jobs: int,
    on_decode_error: OnMixingDecodeError | None,
    progress: Progress,
) -> PackedImages:
    """Return decoded images; build their map if this node has none.

    Args:
        source: the images.
        size: length of the shorter side in pixels after resizing, as with torchvision's Resize;
            None keeps the sizes.
        cache: cache folder of the node; created if absent.
        jobs: number of threads that build the map.
        on_decode_error: "raise", or "skip" with a warning in the log; None raises where no image
            may be left out.
        progress: called with the number of images done and the total, while the map is built.

    Raises:
        PipelineError: if an image cannot be decoded, no image is left, or the disk is full or not
            writable.
    """
    identity = {
        "format": FORMAT_VERSION,
        "size": size,
        "pillow": PIL.__version__,
        "source": source.identity(),
    }
    key = sha256(json.dumps(identity, sort_keys=True).encode())[:32]
    maps = cache / "maps"
    if _is_of_another_user(maps / key):
        own = f"{key}-{os.geteuid()}"
        log.warning("%s belongs to another user; using %s instead", maps / key, maps / own)
        key = own
    folder = maps / key
    with _disk_errors(maps):
        images = _open_verified(folder, jobs)
        if images is None:
            maps.mkdir(parents=True, exist_ok=True)
            with folder_lock(maps / f"{key}.lock"):
                # Another process may have built it while this one waited for the lock.
                images = _open_verified(folder, jobs)
                if images is None:
                    if folder.exists():
                        log.warning("%s is damaged; building it again", folder)
                    for old in [folder, *maps.glob(f".{key}.*{PARTIAL_SUFFIX}")]:
                        shutil.rmtree(old, ignore_errors=True)
                    _build(source, identity, folder, jobs, on_decode_error, progress)
                    images = _open(folder)
        _check_left_out(_read_record(folder), on_decode_error)
        return images


def _check_left_out(record: "_Record", on_decode_error: OnMixingDecodeError | None) -> None:
    """Raise an error, or log a warning, if images are left out of a map."""
    left_out = record.left_out
    if left_out and on_decode_error != "skip":
        raise PipelineError(_cannot_be_decoded(left_out[0], on_decode_error))
    if left_out:
        log.warning(
            "%d of %d images cannot be decoded and are skipped; the first: %s",
            len(left_out), record.n + len(left_out), left_out[0],
        )  # fmt: skip


def _cannot_be_decoded(message: str, on_decode_error: OnMixingDecodeError | None) -> str:
    choice = (
        ", or skip such images with on_decode_error='skip' (train_loader: on_mixing_decode_error; "
        "pixmix-train: --on-mixing-decode-error skip)"
    )
    return f"{message}; remove or replace the image{choice if on_decode_error == 'raise' else ''}"


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space, or set cache_dir or PIXMIX_CACHE to another folder"
        else:
            remedy = "set cache_dir or PIXMIX_CACHE to a writable folder"
        where = error.filename or folder
        raise PipelineError(f"{where}: {error.strerror or error}; {remedy}") from error


@contextmanager
def _source_errors(name: str) -> Iterator[None]:
    """Translate disk errors of the images; `_disk_errors` translates those of the cache."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            # Reading fills a disk only by downloads into the cache.
            raise
        raise PipelineError(
            f"{error.filename or name}: {error.strerror or error}; check its disk and its "
            "permissions, or copy it again"
        ) from error


# --- opening -------------------------------------------------------------------------------------


def _open_verified(folder: Path, jobs: int) -> PackedImages | None:
    """Return the images of a map; None if it is damaged or absent, or belongs to another user."""
    if _is_of_another_user(folder):
        return None
    try:
        record = _read_record(folder)
        if not all(
            _is_as_recorded(folder / name, record.files[name], jobs)
            for name in (_PIXELS, _TABLE_FILE)
        ):
            return None
        return _open(folder)
    except (FileNotFoundError, NotADirectoryError, PipelineError, KeyError):
        return None


def _is_of_another_user(folder: Path) -> bool:
    """Return whether a user other than this one and root may have written a map."""
    pixels = folder / _PIXELS
    try:
        # Some file systems assign files that this process has written to another owner.
        if pixels in _verified and _verified[pixels] == _state(pixels):
            return False
        return any(
            path.stat().st_uid not in {os.geteuid(), 0}
            for path in (folder, folder / _RECORD, pixels, folder / _TABLE_FILE)
        )
    except OSError:
        # The map is incomplete.
        return False


def _read_record(folder: Path) -> "_Record":
    content = read_regular(folder / _RECORD, max_bytes=_MAX_RECORD_BYTES)
    return read_json(content, _Record, str(folder / _RECORD), f"remove {folder}")


def _state(path: Path) -> tuple[int, ...]:
    """Return values that change when a file is replaced or written, even if mtime is reset."""
    status = path.stat()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _is_as_recorded(path: Path, recorded: "_RecordedFile", jobs: int) -> bool:
    now = _state(path)
    if _verified.get(path) == now:
        return True
    if path.stat().st_size != recorded.bytes or _hashes(path, jobs) != recorded.sha256:
        return False
    _verified[path] = now
    return True


def _hashes(path: Path, jobs: int) -> list[str]:
    """Return the SHA-256 of each `_PIECE` of a file."""

    def hashed(start: int) -> str:
        digest = hashlib.sha256()
        with open_regular(path) as file:
            file.seek(start)
            # In small reads: a piece per thread would use much memory.
            for _ in range(_PIECE >> 20):
                digest.update(file.read(1 << 20))
        return digest.hexdigest()

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(hashed, range(0, path.stat().st_size, _PIECE)))


def _open(folder: Path) -> PackedImages:
    remedy = f"remove {folder}"
    table = open_array(folder / _TABLE_FILE, remedy)
    try:
        # Copy on write, because kernels are compiled for writeable arrays. Nothing writes, so all
        # processes share the pages.
        n_bytes = (folder / _PIXELS).stat().st_size
        pixels = open_map(folder / _PIXELS, np.uint8, "c", shape=(n_bytes,))
        return PackedImages(
            pixels,
            np.ascontiguousarray(table["offset"], np.int64),
            np.ascontiguousarray(table["height"], np.int32),
            np.ascontiguousarray(table["width"], np.int32),
        )
    except (ValueError, TypeError, KeyError, IndexError, OSError) as error:
        raise PipelineError(f"{folder} is damaged ({error}); {remedy}") from error


# --- building ------------------------------------------------------------------------------------


def _build(
    source: ImageSource,
    identity: dict[str, Any],
    folder: Path,
    jobs: int,
    on_decode_error: OnMixingDecodeError | None,
    progress: Progress,
) -> None:
    """Write a map under a temporary name, flush it, and rename it."""
    with _source_errors("the mixing set"):
        source.check()
    log.info("building %s from %d images", folder, len(source))
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    partial.mkdir()
    try:
        build = _Build(source, on_decode_error, jobs)
        n_bytes = build.plan(identity["size"])
        with (partial / _PIXELS).open("xb") as file:
            _reserve(file.fileno(), n_bytes)
            build.fill(file.fileno(), progress)
            os.fsync(file.fileno())
        table = build.table[build.kept]
        if len(table) == 0:
            raise PipelineError("no image of the mixing set can be decoded; use intact images")
        with (partial / _TABLE_FILE).open("xb") as file:
            np.save(file, table, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        record = {
            "n": len(table),
            "size": identity["size"],
            "source": identity["source"],
            "versions": {"pixmix": __version__, "pillow": PIL.__version__},
            "left_out": build.messages(),
            "files": {
                name: {
                    "bytes": (partial / name).stat().st_size,
                    "sha256": _hashes(partial / name, jobs),
                }
                for name in (_PIXELS, _TABLE_FILE)
            },
        }
        write_file(partial / _RECORD, json.dumps(record, indent=1).encode())
        partial.rename(folder)
        # The hashes have just been computed.
        for name in (_PIXELS, _TABLE_FILE):
            _verified[folder / name] = _state(folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _reserve(descriptor: int, n_bytes: int) -> None:
    """Reserve the space on the disk, so that a full disk is reported before minutes of decoding."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, n_bytes)
    except OSError as error:
        # Raised by file systems without support.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


class _Build:
    """Builds the pixels of a map in two passes: sizes from the headers, then pixels.

    Attributes:
        table: (n,) offset, height and width of each image.
        kept: (n,) bool, whether an image can be decoded.
    """

    def __init__(
        self, source: ImageSource, on_decode_error: OnMixingDecodeError | None, jobs: int
    ) -> None:
        self.table = np.zeros(len(source), _TABLE)
        self.kept = np.ones(len(source), np.bool_)
        self._source, self._on_decode_error, self._jobs = source, on_decode_error, jobs
        self._reasons: dict[int, str] = {}

    def messages(self) -> list[str]:
        """Return the errors of the images left out, in the order of the images."""
        return [message for _, message in sorted(self._reasons.items())]

    def plan(self, size: int | None) -> int:
        """Fill the table from the headers of the files; return the total size in bytes."""

        def measure(i: int) -> None:
            height, width = read_size(self._read(i))
            if size is not None:
                height, width = resized_shape(height, width, size)
            if height * width > MAX_PIXELS:
                raise DecodeError(
                    "too large",
                    f"{width}x{height} after resizing is more than {MAX_PIXELS:,} pixels; crop it",
                )
            self.table["height"][i], self.table["width"][i] = height, width

        self._for_each(measure)
        lengths = 3 * self.table["height"].astype(np.int64) * self.table["width"]
        ends = np.cumsum(lengths)
        self.table["offset"] = ends - lengths
        return max(1, int(ends[-1])) if len(ends) else 1

    def fill(self, descriptor: int, progress: Progress) -> None:
        """Decode and resize each image, and write it at its offset."""

        def write(i: int) -> None:
            image = decode_image(self._read(i))
            height, width = int(self.table["height"][i]), int(self.table["width"][i])
            if image.shape[:2] != (height, width):
                resized = np.empty((height, width, 3), np.uint8)
                whole = (0, 0, image.shape[0], image.shape[1])
                resize_part(image, *whole, height, width, 0, 0, resized)
                image = resized
            _write_all(descriptor, image, int(self.table["offset"][i]))

        progress(0, len(self._source))
        self._for_each(write, progress)

    def _read(self, i: int) -> bytearray:
        with _source_errors(self._source.name(i)):
            return self._source.read(i)

    def _for_each(self, work: Callable[[int], None], progress: Progress | None = None) -> None:
        """Call `work` for each image, in threads; decoding and resizing release the GIL."""
        n = len(self._source)

        def work_on_chunk(start: int) -> int:
            stop = min(n, start + _CHUNK)
            for i in range(start, stop):
                try:
                    if self.kept[i]:
                        work(i)
                except DecodeError as error:
                    message = f"{self._source.name(i)}: {error}"
                    if self._on_decode_error != "skip":
                        raise PipelineError(
                            _cannot_be_decoded(message, self._on_decode_error)
                        ) from error
                    self._reasons[i] = message
                    self.kept[i] = False
            return stop - start

        done = 0
        pool = ThreadPoolExecutor(self._jobs)
        try:
            for count in pool.map(work_on_chunk, range(0, n, _CHUNK)):
                done += count
                if progress is not None:
                    progress(done, n)
        finally:
            # After an error the remaining images are not started.
            pool.shutdown(wait=True, cancel_futures=True)


def _write_all(descriptor: int, image: NDArray[np.uint8], offset: int) -> None:
    content = memoryview(image.reshape(-1).data)
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written
