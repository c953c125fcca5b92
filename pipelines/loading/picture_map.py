"""Decoded pictures in one memory map a node: built once, whole or absent, shared by all processes.

    CACHE/maps/KEY/record.json    what it is, counts, hashes; written last
                   pixels         all pictures, rows of RGB, one after another
                   table.npy      offset, height and width of each
    CACHE/maps/KEY.lock

KEY is a hash of what the sources are, of the size, of Pillow's version and of the format's: a map
of pictures that have changed since is another map, and the old one is not opened. Nor is it
removed, for workers of a run that uses it may yet open it by its name. A process that opens a map
for the first time hashes it; one that is not as it was built is built anew. One of another user is
not used, for its hashes are his own, too: KEY-UID is built beside it. Whole maps are opened
without the lock, so a cache may be one that can only be read.
"""

import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
import PIL
from numpy.typing import NDArray

from pipelines import __version__
from pipelines.errors import PipelineError
from pipelines.loading.decode import UnreadablePictureError, decode_picture, read_size
from pipelines.shards.images import MOST_PIXELS
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
from pixmix.packed import PackedPictures, open_map
from pixmix.resizing import resize_part, resized_shape

log = logging.getLogger(__name__)

BadPictures = Literal["raise", "skip", "refuse"]
"""As a map's user chose; "refuse" raises without naming a choice that its user does not have."""

FORMAT_VERSION = 3
_TABLE = np.dtype([("offset", "<i8"), ("height", "<i4"), ("width", "<i4")])
_RECORD, _PIXELS, _TABLE_FILE = "record.json", "pixels", "table.npy"
_BUNCH = 64
"""Pictures that a thread is given at a time."""
_PIECE = 1 << 26
"""Bytes that are hashed together, so that threads can share a file; one hashes 2.8 GB in 2 s."""

_MOST_RECORD_BYTES = 2**30

_seen_whole: dict[Path, tuple[int, ...]] = {}
"""Files that this process has hashed, and what they were like then; a forked one knows of them."""


class _Recorded(msgspec.Struct, frozen=True):
    """A file of a map. sha256: of each `_PIECE`."""

    bytes: Count
    sha256: list[Sha256]


class _Record(msgspec.Struct, frozen=True):
    """What is read of a map's record. n: pictures; left_out: why others are not in it."""

    n: Count
    left_out: list[str]
    files: dict[str, _Recorded]


class PictureSource(Protocol):
    """Pictures as files' bytes, in an order that depends on names alone."""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells these pictures from others, as plain JSON values."""

    def check(self) -> None:
        """Read what it can be held to; called before a map is built.

        Raises:
            PipelineError: if the files are not those that the identity names.
        """

    def __len__(self) -> int:
        """Return the number of pictures."""

    def name(self, i: int) -> str:
        """Return what to call a picture in messages."""

    def read(self, i: int) -> bytearray:
        """Return the bytes of a picture's file.

        Raises:
            UnreadablePictureError: if they cannot be read.
        """


def open_picture_map(
    source: PictureSource,
    size: int | None,
    *,
    cache: Path,
    jobs: int,
    bad_pictures: BadPictures,
    progress: Progress,
) -> PackedPictures:
    """Return decoded pictures, building their map if this node has none.

    Args:
        source: the pictures.
        size: of the shorter side, pixels, as torchvision's Resize(size) has it; None leaves sizes.
        cache: the node's cache folder, made if absent.
        jobs: threads that build.
        bad_pictures: "raise" or "refuse", or "skip" with a line in the log.
        progress: called with pictures done and pictures in all, while building.

    Raises:
        PipelineError: if a picture cannot be read, no picture is left, or the disk is full or not
            writable.
    """
    identity = {
        "format": FORMAT_VERSION,
        "size": size,
        "pillow": PIL.__version__,
        "source": source.identity,
    }
    key = sha256(json.dumps(identity, sort_keys=True).encode())[:32]
    maps = cache / "maps"
    if _is_of_another_user(maps / key):
        own = f"{key}-{os.geteuid()}"
        log.warning("%s belongs to another user; %s is used instead", maps / key, maps / own)
        key = own
    folder = maps / key
    with _disk_errors(maps):
        pictures = _open_whole(folder, jobs)
        if pictures is None:
            maps.mkdir(parents=True, exist_ok=True)
            with folder_lock(maps / f"{key}.lock"):
                # Another process may have built it meanwhile.
                pictures = _open_whole(folder, jobs)
                if pictures is None:
                    if folder.exists():
                        log.warning("%s is not as it was written; it is built again", folder)
                    for old in [folder, *maps.glob(f".{key}.*{PARTIAL_SUFFIX}")]:
                        shutil.rmtree(old, ignore_errors=True)
                    _build(source, size, folder, jobs, bad_pictures, progress)
                    pictures = _open(folder)
        _heed_left_out(folder, bad_pictures)
        return pictures


def _heed_left_out(folder: Path, bad_pictures: BadPictures) -> None:
    """Refuse a map that lacks pictures, or say that it does."""
    record = _read_record(folder)
    left_out = record.left_out
    if not left_out:
        return
    if bad_pictures != "skip":
        raise PipelineError(_cannot_be_read(left_out[0], bad_pictures))
    log.warning(
        "%d of %d pictures cannot be read and are left out; the first: %s",
        len(left_out), record.n + len(left_out), left_out[0],
    )  # fmt: skip


def _cannot_be_read(message: str, bad_pictures: BadPictures) -> str:
    choice = ", or leave such out by bad_pictures='skip' (pixmix-train: --bad-pictures skip)"
    return (
        f"{message}; remove it or put a whole picture in its place"
        f"{choice if bad_pictures == 'raise' else ''}"
    )


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space, or name another folder as cache_dir or in PIXMIX_CACHE"
        else:
            remedy = "name a folder that can be written as cache_dir or in PIXMIX_CACHE"
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


def _open_whole(folder: Path, jobs: int) -> PackedPictures | None:
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
    """Return whether somebody else, who is not root, could have chosen what a map holds."""
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
        # What is missing makes it no map.
        return False


def _read_record(folder: Path) -> "_Record":
    content = read_regular(folder / _RECORD, max_bytes=_MOST_RECORD_BYTES)
    return read_json(content, _Record, str(folder / _RECORD), f"remove {folder}")


def _state(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is replaced or written to, whatever its times are set to."""
    status = path.stat()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _is_as_recorded(path: Path, recorded: "_Recorded", jobs: int) -> bool:
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


def _open(folder: Path) -> PackedPictures:
    try:
        table = np.load(folder / _TABLE_FILE, allow_pickle=False)
        # Copy on write: kernels are compiled for arrays that may be written, and nobody writes, so
        # that all processes share the pages.
        n_bytes = (folder / _PIXELS).stat().st_size
        pixels = open_map(folder / _PIXELS, np.uint8, "c", shape=(n_bytes,))
        return PackedPictures(
            pixels,
            np.ascontiguousarray(table["offset"], np.int64),
            np.ascontiguousarray(table["height"], np.int32),
            np.ascontiguousarray(table["width"], np.int32),
        )
    except (ValueError, TypeError, KeyError, IndexError, OSError) as error:
        raise PipelineError(f"{folder} is damaged ({error}); remove it") from error


# --- building ------------------------------------------------------------------------------------


def _build(
    source: PictureSource,
    size: int | None,
    folder: Path,
    jobs: int,
    bad_pictures: BadPictures,
    progress: Progress,
) -> None:
    """Write a map under a temporary name, flush it, and give it its name."""
    with _source_errors("the mixing set"):
        source.check()
    log.info("building %s from %d pictures", folder, len(source))
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    partial.mkdir()
    try:
        bad = _BadPictures(source, bad_pictures)
        table, n_bytes = _planned(source, size, jobs, bad)
        with (partial / _PIXELS).open("xb") as file:
            _reserve(file.fileno(), n_bytes)
            _fill(source, table, file.fileno(), jobs, bad, progress)
            os.fsync(file.fileno())
        kept = table[bad.kept]
        if len(kept) == 0:
            raise PipelineError("no picture is left of the mixing set; give whole pictures")
        with (partial / _TABLE_FILE).open("xb") as file:
            np.save(file, kept, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        files = {
            name: {
                "bytes": (partial / name).stat().st_size,
                "sha256": _hashes(partial / name, jobs),
            }
            for name in (_PIXELS, _TABLE_FILE)
        }
        record = {
            "n": len(kept),
            "size": size,
            "source": source.identity,
            "versions": {"pixmix": __version__, "pillow": PIL.__version__},
            "left_out": bad.messages,
            "files": files,
        }
        write_file(partial / _RECORD, json.dumps(record, indent=1).encode())
        partial.rename(folder)
        # Hashed a moment ago.
        for name in (_PIXELS, _TABLE_FILE):
            _seen_whole[folder / name] = _state(folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _reserve(descriptor: int, n_bytes: int) -> None:
    """Take the room on the disk: a full one is told of now, not after minutes of decoding."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, n_bytes)
    except OSError as error:
        # Of file systems that cannot.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


class _BadPictures:
    """Raises for a picture that cannot be read, or leaves it out and remembers why."""

    def __init__(self, source: PictureSource, policy: BadPictures) -> None:
        self.kept = np.ones(len(source), np.bool_)
        self._reasons: dict[int, str] = {}
        self._source, self._policy = source, policy

    def add(self, i: int, error: UnreadablePictureError) -> None:
        message = f"{self._source.name(i)}: {error}"
        if self._policy != "skip":
            raise PipelineError(_cannot_be_read(message, self._policy)) from error
        self._reasons[i] = message
        self.kept[i] = False

    @property
    def messages(self) -> list[str]:
        """Of the pictures, in order, whichever thread came first."""
        return [message for _, message in sorted(self._reasons.items())]


def _in_threads(
    n: int, jobs: int, work: Callable[[int], None], progress: Progress | None = None
) -> None:
    """Call work(0) .. work(n - 1) in threads; decoding and resizing release the lock."""

    def bunch(start: int) -> int:
        stop = min(n, start + _BUNCH)
        for i in range(start, stop):
            work(i)
        return stop - start

    done = 0
    pool = ThreadPoolExecutor(jobs)
    try:
        for count in pool.map(bunch, range(0, n, _BUNCH)):
            done += count
            if progress is not None:
                progress(done, n)
    finally:
        # After an error the rest is not begun.
        pool.shutdown(wait=True, cancel_futures=True)


def _read(source: PictureSource, i: int) -> bytearray:
    with _source_errors(source.name(i)):
        return source.read(i)


def _planned(
    source: PictureSource, size: int | None, jobs: int, bad: _BadPictures
) -> tuple[NDArray[np.void], int]:
    """Return where each picture will lie, from the headers of the files, and all their bytes."""
    table = np.zeros(len(source), _TABLE)

    def measure(i: int) -> None:
        try:
            height, width = read_size(_read(source, i))
            if size is not None:
                height, width = resized_shape(height, width, size)
            if height * width > MOST_PIXELS:
                raise UnreadablePictureError(
                    "too large",
                    f"{width}x{height} are more than {MOST_PIXELS:,} pixels once resized; cut it",
                )
            table["height"][i], table["width"][i] = height, width
        except UnreadablePictureError as error:
            bad.add(i, error)

    _in_threads(len(source), jobs, measure)
    lengths = 3 * table["height"].astype(np.int64) * table["width"]
    ends = np.cumsum(lengths)
    table["offset"] = ends - lengths
    return table, max(1, int(ends[-1])) if len(ends) else 1


def _fill(
    source: PictureSource,
    table: NDArray[np.void],
    descriptor: int,
    jobs: int,
    bad: _BadPictures,
    progress: Progress,
) -> None:
    """Decode and resize each picture and write it to its place."""

    def paint(i: int) -> None:
        if not bad.kept[i]:
            return
        try:
            picture = decode_picture(_read(source, i))
        except UnreadablePictureError as error:
            bad.add(i, error)
            return
        height, width = int(table["height"][i]), int(table["width"][i])
        if picture.shape[:2] != (height, width):
            resized = np.empty((height, width, 3), np.uint8)
            whole = (0, 0, picture.shape[0], picture.shape[1])
            resize_part(picture, *whole, height, width, 0, 0, resized)
            picture = resized
        _write_all(descriptor, picture, int(table["offset"][i]))

    progress(0, len(source))
    _in_threads(len(source), jobs, paint, progress)


def _write_all(descriptor: int, picture: NDArray[np.uint8], offset: int) -> None:
    content = memoryview(picture.reshape(-1).data)
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


@dataclass(frozen=True)
class JoinedSources:
    """Several sources, one after another."""

    sources: tuple[PictureSource, ...]

    @property
    def identity(self) -> dict[str, Any]:
        """What tells these pictures from others."""
        return {"joined": [source.identity for source in self.sources]}

    def check(self) -> None:
        """Check each."""
        for source in self.sources:
            source.check()

    def __len__(self) -> int:
        """Return the number of pictures."""
        return sum(len(source) for source in self.sources)

    def _place(self, i: int) -> tuple[PictureSource, int]:
        for source in self.sources:
            if i < len(source):
                return source, i
            i -= len(source)
        raise IndexError(i)

    def name(self, i: int) -> str:
        """Return what to call a picture in messages."""
        source, place = self._place(i)
        return source.name(place)

    def read(self, i: int) -> bytearray:
        """Return the bytes of a picture's file."""
        source, place = self._place(i)
        return source.read(place)
