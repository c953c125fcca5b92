"""Decoded images in one memory map a node: built once, whole or absent, shared by all processes.

    CACHE/maps/KEY/record.json    what it is, counts, hashes; written last
                   pixels         all images, rows of RGB, one after another
                   table.npy      offset, height and width of each
    CACHE/maps/KEY.lock

KEY is a hash of the sources, of the size, of Pillow's version and of the format's: a map of images
that have changed since is another map, and the old one is not opened. It is not removed either, for
workers of a run that uses it may still open it by its name. A process that opens a map for the
first time hashes it; one that is damaged is built again. The map of another user is not used, for
its hashes are his own, too: KEY-UID is built beside it. Whole maps are opened without the lock, so
a cache may be read-only.
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
from pipelines.shards.images import MOST_PIXELS, DecodeError
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
from pixmix.packed import PackedImages, open_map
from pixmix.resizing import resize_part, resized_shape

log = logging.getLogger(__name__)

OnMixingDecodeError = Literal["raise", "skip"]

FORMAT_VERSION = 3
_TABLE = np.dtype([("offset", "<i8"), ("height", "<i4"), ("width", "<i4")])
_RECORD, _PIXELS, _TABLE_FILE = "record.json", "pixels", "table.npy"
_BUNCH = 64
"""Images that a thread gets at a time."""
_PIECE = 1 << 26
"""Bytes that are hashed together, so that threads can share a file; one hashes 2.8 GB in 2 s."""

_MOST_RECORD_BYTES = 2**30

_seen_whole: dict[Path, tuple[int, ...]] = {}
"""Files that this process has hashed, and their state then; a forked one inherits it."""


class _RecordedFile(msgspec.Struct, frozen=True):
    """A file of a map. sha256: of each `_PIECE`."""

    bytes: Count
    sha256: list[Sha256]


class _Record(msgspec.Struct, frozen=True):
    """What is read of a map's record. n: images; left_out: why others are not in it."""

    n: Count
    left_out: list[str]
    files: dict[str, _RecordedFile]


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Image files, in an order that depends on their names alone.

    Attributes:
        n: number of images.
        name: returns what to call image i in messages.
        read: returns the bytes of image i; raises DecodeError.
        identity: returns what tells these images from others, as plain JSON values.
        check: compares the files with the identity before a map is built; raises PipelineError.
    """

    n: int
    name: Callable[[int], str]
    read: Callable[[int], bytearray]
    identity: Callable[[], dict[str, Any]]
    check: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return self.n


def join_sources(sources: Sequence[ImageSource]) -> ImageSource:
    """Return several sources as one, one after another."""
    if len(sources) == 1:
        return sources[0]
    ends = np.cumsum([source.n for source in sources])

    def place(i: int) -> tuple[ImageSource, int]:
        number = int(np.searchsorted(ends, i, side="right"))
        return sources[number], i - int(ends[number]) + sources[number].n

    def name(i: int) -> str:
        source, k = place(i)
        return source.name(k)

    def read(i: int) -> bytearray:
        source, k = place(i)
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
        size: of the shorter side, pixels, as torchvision's Resize(size) has it; None keeps sizes.
        cache: the node's cache folder, made if absent.
        jobs: threads that build.
        on_decode_error: "raise", or "skip" with a line in the log; None raises where no image can
            be left out.
        progress: called with images done and images in all, while building.

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
        log.warning("%s belongs to another user; %s is used instead", maps / key, maps / own)
        key = own
    folder = maps / key
    with _disk_errors(maps):
        images = _open_whole(folder, jobs)
        if images is None:
            maps.mkdir(parents=True, exist_ok=True)
            with folder_lock(maps / f"{key}.lock"):
                # Another process may have built it meanwhile.
                images = _open_whole(folder, jobs)
                if images is None:
                    if folder.exists():
                        log.warning("%s is damaged; it is built again", folder)
                    for old in [folder, *maps.glob(f".{key}.*{PARTIAL_SUFFIX}")]:
                        shutil.rmtree(old, ignore_errors=True)
                    _build(source, identity, folder, jobs, on_decode_error, progress)
                    images = _open(folder)
        _check_left_out(_read_record(folder), on_decode_error)
        return images


def _check_left_out(record: "_Record", on_decode_error: OnMixingDecodeError | None) -> None:
    """Refuse a map that lacks images, or log that it does."""
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
        ", or skip such images by on_decode_error='skip' (train_loader: on_mixing_decode_error; "
        "pixmix-train: --on-mixing-decode-error skip)"
    )
    return (
        f"{message}; remove it or put a whole image in its place"
        f"{choice if on_decode_error == 'raise' else ''}"
    )


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space, or set cache_dir or PIXMIX_CACHE to another folder"
        else:
            remedy = "set cache_dir or PIXMIX_CACHE to a folder that can be written"
        where = error.filename or folder
        raise PipelineError(f"{where}: {error.strerror or error}; {remedy}") from error


@contextmanager
def _source_errors(name: str) -> Iterator[None]:
    """Tell errors of the images' own disk from those of the cache, which `_disk_errors` takes."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            # Reading needs no room, but for what is downloaded into a cache.
            raise
        raise PipelineError(
            f"{error.filename or name}: {error.strerror or error}; check its disk and its "
            "permissions, or copy it again"
        ) from error


# --- opening -------------------------------------------------------------------------------------


def _open_whole(folder: Path, jobs: int) -> PackedImages | None:
    """Return the images of a map; None if it is not as it was built, or another user's."""
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
    """Return whether somebody else, who is not root, could have chosen the content of a map."""
    pixels = folder / _PIXELS
    try:
        # A file system may give what this process has written to another owner.
        if pixels in _seen_whole and _seen_whole[pixels] == _state(pixels):
            return False
        return any(
            path.stat().st_uid not in {os.geteuid(), 0}
            for path in (folder, folder / _RECORD, pixels, folder / _TABLE_FILE)
        )
    except OSError:
        # Without one of its files it is not a map.
        return False


def _read_record(folder: Path) -> "_Record":
    content = read_regular(folder / _RECORD, max_bytes=_MOST_RECORD_BYTES)
    return read_json(content, _Record, str(folder / _RECORD), f"remove {folder}")


def _state(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is replaced or written to, whatever its times are set to."""
    status = path.stat()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _is_as_recorded(path: Path, recorded: "_RecordedFile", jobs: int) -> bool:
    now = _state(path)
    if _seen_whole.get(path) == now:
        return True
    if path.stat().st_size != recorded.bytes or _hashes(path, jobs) != recorded.sha256:
        return False
    _seen_whole[path] = now
    return True


def _hashes(path: Path, jobs: int) -> list[str]:
    """Return the SHA-256 of each `_PIECE` of a file."""

    def hashed(start: int) -> str:
        digest = hashlib.sha256()
        with open_regular(path) as file:
            file.seek(start)
            # By and by, for a piece a thread would be much memory with many threads.
            for _ in range(_PIECE >> 20):
                digest.update(file.read(1 << 20))
        return digest.hexdigest()

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(hashed, range(0, path.stat().st_size, _PIECE)))


def _open(folder: Path) -> PackedImages:
    remedy = f"remove {folder}"
    table = open_array(folder / _TABLE_FILE, remedy)
    try:
        # Copy on write: kernels are compiled for writeable arrays, and nobody writes, so that all
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
            raise PipelineError("no image of the mixing set can be decoded; use whole images")
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
        # Hashed a moment ago.
        for name in (_PIXELS, _TABLE_FILE):
            _seen_whole[folder / name] = _state(folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _reserve(descriptor: int, n_bytes: int) -> None:
    """Take the room on the disk: a full one is reported now, not after minutes of decoding."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, n_bytes)
    except OSError as error:
        # Of file systems that cannot.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


class _Build:
    """The work on each image: first its size, for its place in the map; then its pixels.

    table: (n,) where each image will be; kept: (n,) bool, which ones can be decoded.
    """

    def __init__(
        self, source: ImageSource, on_decode_error: OnMixingDecodeError | None, jobs: int
    ) -> None:
        self.table = np.zeros(len(source), _TABLE)
        self.kept = np.ones(len(source), np.bool_)
        self._source, self._on_decode_error, self._jobs = source, on_decode_error, jobs
        self._reasons: dict[int, str] = {}

    def messages(self) -> list[str]:
        """Return why images are left out, in their order, whichever thread came first."""
        return [message for _, message in sorted(self._reasons.items())]

    def plan(self, size: int | None) -> int:
        """Plan where each image will be, from the headers of the files; return all their bytes."""

        def measure(i: int) -> None:
            height, width = read_size(self._read(i))
            if size is not None:
                height, width = resized_shape(height, width, size)
            if height * width > MOST_PIXELS:
                raise DecodeError(
                    "too large",
                    f"{width}x{height} are more than {MOST_PIXELS:,} pixels once resized; crop it",
                )
            self.table["height"][i], self.table["width"][i] = height, width

        self._for_each(measure)
        lengths = 3 * self.table["height"].astype(np.int64) * self.table["width"]
        ends = np.cumsum(lengths)
        self.table["offset"] = ends - lengths
        return max(1, int(ends[-1])) if len(ends) else 1

    def fill(self, descriptor: int, progress: Progress) -> None:
        """Decode and resize each image and write it to its place."""

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
        """Call work of each image in threads; decoding and resizing release the lock."""
        n = len(self._source)

        def bunch(start: int) -> int:
            stop = min(n, start + _BUNCH)
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
            for count in pool.map(bunch, range(0, n, _BUNCH)):
                done += count
                if progress is not None:
                    progress(done, n)
        finally:
            # After an error the rest is not begun.
            pool.shutdown(wait=True, cancel_futures=True)


def _write_all(descriptor: int, image: NDArray[np.uint8], offset: int) -> None:
    content = memoryview(image.reshape(-1).data)
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written
