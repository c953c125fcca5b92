"""The shard cache of a node, with a size limit, and the hashes of files that were verified.

    CACHE/shards/SHA256                 a complete file; its name is the SHA-256 of its content
                 SHA256.BYTES.partial   a download that is running, or can be resumed
          used/SHA256                   empty; its modification time is the last use of the file
          verified/KEY.json             hash of the file of a path, and its size and times
                   XX.lock              held to hash files whose keys begin with XX

A process that uses a file holds a shared lock on it; one that downloads it holds an exclusive lock
on the partial file. The system frees both when the process ends. Other users may be able to write
to the folder, so links are never followed, and only regular files are opened.

Local shards and the files of the cache are hashed once per node, and again only when the file or
its inode changes. Read errors of the disk later on are found by `pixmix-shard verify`, which hashes
files again.
"""

import errno
import fcntl
import logging
import os
import re
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import msgspec

from pipelines.errors import PipelineError
from pipelines.system.attempts import StoppedError
from pipelines.system.files import (
    PARTIAL_SUFFIX,
    Sha256,
    file_sha256,
    flush_folder,
    flush_to_disk,
    folder_lock,
    has_name,
    is_regular,
    open_no_link,
    read_regular,
    sha256,
    try_lock,
    unlock_and_close,
    write_file,
)

_POLL_S = 0.05
"""Time between two attempts to lock: a blocking wait could not be stopped."""

_OWN_NAME = re.compile(rf"[0-9a-f]{{64}}(?:\.(\d+){re.escape(PARTIAL_SUFFIX)})?")

_MAX_RESERVE_BYTES = 10 * 10**9
_RESERVE_SHARE = 0.05

_MAX_STAMP_BYTES = 2**16

_ELSEWHERE = "set PIXMIX_CACHE or --cache-dir to a folder of your own"

_Status = tuple[int, int, int, int, int]
"""Device, inode, bytes, and the times of the last change of a file and of its inode, ns."""

_verified: dict[_Status, str] = {}
"""The SHA-256 of files that this process has verified; forked processes inherit it."""

_log = logging.getLogger(__name__)


class CacheFullError(PipelineError):
    """Raised if the cache has no room for a file in addition to those in use."""


def cache_folder(given: Path | None = None) -> Path:
    """Return the cache folder of this node, which may not exist yet.

    Args:
        given: a folder chosen by the user; None uses $PIXMIX_CACHE, or else $XDG_CACHE_HOME/pixmix,
            or else ~/.cache/pixmix. An empty variable counts as not set.
    """
    if given is not None:
        return given
    if own := os.environ.get("PIXMIX_CACHE"):
        return Path(own)
    # The XDG specification requires that a relative path is ignored.
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "pixmix"


class HeldFile:
    """A file that is not removed while it is held; a context manager releases it."""

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        """Hold a file; `descriptor` has a lock on a file of the cache, and is None elsewhere."""
        self.path = path
        self._descriptor = descriptor
        # Runs once, also if this object is dropped without a release.
        self._release = (
            None
            if descriptor is None
            else weakref.finalize(self, _release, path, descriptor, os.getpid())
        )

    def release(self) -> None:
        """Release the file; a second call does nothing."""
        if self._release is not None:
            self._release()

    def discard(self) -> None:
        """Remove a damaged file and release it; do nothing if it is released."""
        if self._release is not None and self._release.alive:
            assert self._descriptor is not None
            if has_name(self._descriptor, self.path):
                self.path.unlink(missing_ok=True)
            self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.release()


class Download:
    """A partial file that this process alone can write; it may already hold the beginning."""

    def __init__(self, partial: Path, final: Path, descriptor: int) -> None:
        # Unbuffered, so that closing the file does not write again what a full disk refused.
        self.file: BinaryIO = os.fdopen(descriptor, "r+b", buffering=0)
        self._partial = partial
        self.final = final

    def finish(self) -> None:
        """Rename the verified file to its final name, and unlock it."""
        flush_to_disk(self.file)
        self._partial.replace(self.final)
        flush_folder(self.final.parent)
        self._unlock()

    def leave(self, *, keep: bool) -> None:
        """Unlock the file, and remove it if it is empty or not `keep`, which lets others resume."""
        if not keep or os.fstat(self.file.fileno()).st_size == 0:
            self._partial.unlink(missing_ok=True)
        self._unlock()

    def _unlock(self) -> None:
        with self.file:
            fcntl.flock(self.file, fcntl.LOCK_UN)


@dataclass(frozen=True, kw_only=True)
class ShardCache:
    """The files of a node, named by the SHA-256 of their content.

    Attributes:
        folder: a folder of this node, on a file system with locks; see `cache_folder`.
        limit_bytes: maximum size of all files, including downloads. None uses the disk except for
            5 % of it, at most 10 GB, which stay free.
    """

    folder: Path = field(default_factory=cache_folder)
    limit_bytes: int | None = None

    def __post_init__(self) -> None:
        """Check the limit."""
        if self.limit_bytes is not None and self.limit_bytes < 1:
            raise ValueError(f"limit_bytes is {self.limit_bytes}; use at least 1, or None")

    @property
    def files(self) -> Path:
        """The folder of the files."""
        return self.folder / "shards"

    def hold(self, sha256: str, n_bytes: int | None = None) -> HeldFile | None:
        """Return the file with this hash, or None; a file of another size is removed."""
        path = self.files / sha256
        while True:
            descriptor = open_no_link(path, os.O_RDONLY)
            if descriptor is None:
                return None
            held = HeldFile(path, descriptor)
            # Processes hold an exclusive lock only for a moment, to rename or remove the file.
            while not try_lock(descriptor, fcntl.LOCK_SH, path):
                time.sleep(_POLL_S)
            if has_name(descriptor, path):
                if n_bytes is not None and os.fstat(descriptor).st_size != n_bytes:
                    held.discard()
                    return None
                _touch(path)
                return held
            held.release()

    def has(self, sha256: str) -> bool:
        """Return whether the cache has the file now; another process may remove it at any time."""
        return is_regular(self.files / sha256)

    def begin(
        self,
        sha256: str,
        n_bytes: int | None,
        stop: threading.Event,
        *,
        max_bytes: int | None = None,
    ) -> HeldFile | Download:
        """Return the file with this hash, or a download that the caller must finish or leave.

        While another process downloads the file, this waits.

        Args:
            sha256: hash of the content.
            n_bytes: size of the file, None if it is unknown; the cache makes room for it.
            stop: ends the waiting.
            max_bytes: room to make if the size is unknown.

        Raises:
            CacheFullError: if the cache has no room for it in addition to the files in use.
            PipelineError: if the file system has no locks, or the folder cannot be written.
            StoppedError: if `stop` is set.
        """
        room = max_bytes or 0 if n_bytes is None else n_bytes
        final = self.files / sha256
        partial = self.files / f"{sha256}.{room}{PARTIAL_SUFFIX}"
        while True:
            held = self.hold(sha256, n_bytes)
            if held is not None:
                return held
            if stop.is_set():
                raise StoppedError
            descriptor = self._open_partial(partial)
            if not try_lock(descriptor, fcntl.LOCK_EX, partial):
                os.close(descriptor)
                stop.wait(_POLL_S)
                continue
            if not has_name(descriptor, partial):
                # Another process finished or removed it before this one got the lock.
                unlock_and_close(descriptor)
                continue
            download = Download(partial, final, descriptor)
            if is_regular(final):
                # Another process finished it, and this partial file is new.
                download.leave(keep=False)
                continue
            try:
                self._make_room(room)
            except CacheFullError:
                download.leave(keep=True)
                raise
            return download

    def _open_partial(self, path: Path) -> int:
        """Open or create the partial file of a download; refuse a file of another user."""
        try:
            descriptor = None
            while descriptor is None:
                self.files.mkdir(parents=True, exist_ok=True)
                # This removes what is not a regular file.
                descriptor = open_no_link(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR}:
                raise
            raise PipelineError(
                f"{error.filename or path}: {error.strerror}, so this cache cannot be used for "
                f"downloads; {_ELSEWHERE}"
            ) from error
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_nlink > 1:
            os.close(descriptor)
            raise PipelineError(
                f"{path} belongs to another user or has other hard links, so it is not written; "
                f"remove it, or {_ELSEWHERE}"
            )
        return descriptor

    def _make_room(self, n_bytes: int) -> None:
        """Remove the least recently used files until a new file has room.

        Its partial file is in the folder already, and its name holds `n_bytes`, so it is counted.
        """
        if self.limit_bytes is not None and n_bytes > self.limit_bytes:
            raise CacheFullError(
                f"the limit of the cache {self.folder} is {self.limit_bytes} bytes, too small for "
                f"a file of {n_bytes} bytes; raise --cache-limit"
            )
        with folder_lock(self.files / "room.lock"):
            entries = sorted(_entries(self.files), key=lambda entry: entry.used_ns)
            in_use = sum(entry.size for entry in entries)
            # The reserve stays free, but is used before a file is refused.
            reserve = 0
            if self.limit_bytes is not None:
                excess = in_use - self.limit_bytes
            else:
                disk = shutil.disk_usage(self.files)
                reserve = min(int(_RESERVE_SHARE * disk.total), _MAX_RESERVE_BYTES)
                to_come = sum(entry.size - entry.written for entry in entries)
                excess = to_come - (disk.free - reserve)
            for entry in entries:
                if excess <= 0:
                    return
                if _remove_unused(entry.path):
                    excess -= entry.size
                    in_use -= entry.size
        if excess <= reserve:
            return
        if self.limit_bytes is not None:
            raise CacheFullError(
                f"the limit of the cache {self.folder} is {self.limit_bytes} bytes, and "
                f"{in_use - n_bytes} are in use, too many for a file of {n_bytes} bytes; raise "
                "--cache-limit, or read fewer shards at a time"
            )
        raise CacheFullError(
            f"the disk of {self.folder} has no room for {n_bytes} bytes; free some space, or set "
            "PIXMIX_CACHE to a folder on a larger disk"
        )


def verified_once(path: Path, expected_sha256: str, n_bytes: int, cache: ShardCache) -> None:
    """Compare the SHA-256 of a local file; see `checked_sha256`.

    Raises:
        PipelineError: if the file is missing, or its hash differs.
    """
    found = checked_sha256(path, n_bytes, cache)
    if found != expected_sha256:
        raise PipelineError(
            f"{path} has SHA-256 {found}, expected {expected_sha256} by the manifest; copy it "
            "again, or, if it was changed on purpose, run pixmix-shard index on the tars"
        )


def checked_sha256(path: Path, n_bytes: int, cache: ShardCache) -> str:
    """Return the SHA-256 of a local file, which is read only if its hash is not known.

    If several processes call this at once, one reads the file.

    Raises:
        PipelineError: if the file is missing, changes while it is read, or has another size than
            `n_bytes`.
    """
    status = _checked_status(path, n_bytes)
    known = _verified.get(status)
    if known is not None:
        return known
    path = path.resolve()
    stamp = _stamp_path(path, cache)
    found = _read_stamp(stamp, status)
    if found is None:
        with ExitStack() as stack:
            try:
                stamp.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(folder_lock(stamp.with_name(f"{stamp.name[:2]}.lock")))
            except (OSError, PipelineError) as error:
                _log.warning(
                    "%s: %s; the same files may be hashed more than once", stamp.parent, error
                )
            status = _checked_status(path, n_bytes)
            # Another process may have read it in the meantime.
            found = _read_stamp(stamp, status)
            if found is None:
                found = file_sha256(path)
                if _checked_status(path, n_bytes) != status:
                    raise PipelineError(
                        f"{path} changed while it was read; wait until it is written, and run the "
                        "same command again"
                    )
                _write_stamp(stamp, status, found)
    _verified[status] = found
    return found


def remember(path: Path, its_sha256: str, cache: ShardCache) -> None:
    """Record the hash of a file that was hashed while it was written."""
    status = _status_of(path)
    _verified[status] = its_sha256
    _write_stamp(_stamp_path(path.resolve(), cache), status, its_sha256)


class _Entry(NamedTuple):
    """A file of the cache, its last use, its final size in bytes, and the bytes on the disk."""

    path: Path
    used_ns: int
    size: int
    written: int


def _entries(folder: Path) -> Iterator[_Entry]:
    for path in folder.iterdir():
        match = _OWN_NAME.fullmatch(path.name)
        if match is None:
            continue
        # Another process may remove or rename it.
        with suppress(FileNotFoundError):
            status = path.lstat()
            used_ns = status.st_mtime_ns
            with suppress(FileNotFoundError):
                used_ns = max(used_ns, _used(path).lstat().st_mtime_ns)
            yield _Entry(path, used_ns, max(status.st_size, int(match[1] or 0)), status.st_size)


def _remove_unused(path: Path) -> bool:
    """Remove a file unless a process uses it; return whether it does not exist any more."""
    try:
        # A lock on a network file system needs a writable descriptor.
        descriptor = open_no_link(path, os.O_RDWR)
    except PermissionError:
        return False
    if descriptor is None:
        return True
    if not try_lock(descriptor, fcntl.LOCK_EX, path):
        os.close(descriptor)
        return False
    try:
        if has_name(descriptor, path):
            path.unlink()
            _used(path).unlink(missing_ok=True)
        return True
    except PermissionError:
        return False
    finally:
        unlock_and_close(descriptor)


def _used(path: Path) -> Path:
    return path.parent.parent / "used" / path.name


def _touch(path: Path) -> None:
    """Record that a file is used now, in another file, so that its own times do not change."""
    # The cache may be read-only, or be removed at this moment.
    with suppress(OSError):
        _used(path).parent.mkdir(exist_ok=True)
        descriptor = open_no_link(_used(path), os.O_WRONLY | os.O_CREAT)
        if descriptor is not None:
            with os.fdopen(descriptor, "wb"):
                os.utime(descriptor)


def _release(path: Path, descriptor: int, process: int) -> None:
    if os.getpid() == process:
        if has_name(descriptor, path):
            _touch(path)
        unlock_and_close(descriptor)
    else:
        # The lock belongs to the parent process.
        os.close(descriptor)


class _Stamp(msgspec.Struct, frozen=True, kw_only=True):
    """The hash of a file, and its status when it was hashed."""

    status: _Status
    sha256: Sha256


def _status_of(path: Path) -> _Status:
    found = path.stat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _checked_status(path: Path, n_bytes: int) -> _Status:
    try:
        status = _status_of(path)
    except FileNotFoundError as error:
        raise PipelineError(
            f"{path} is missing; copy it again, or make the dataset again"
        ) from error
    if status[2] == n_bytes:
        return status
    raise PipelineError(
        f"{path} has {status[2]} bytes, expected {n_bytes} by the manifest; copy it again, or make "
        "the dataset again"
    )


def _stamp_path(path: Path, cache: ShardCache) -> Path:
    return cache.folder / "verified" / f"{sha256(os.fsencode(path))}.json"


def _write_stamp(stamp: Path, status: _Status, its_sha256: str) -> None:
    """Write a hash to the cache; if the cache is read-only, other processes hash the file again."""
    try:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        write_file(stamp, msgspec.json.encode(_Stamp(status=status, sha256=its_sha256)))
    except OSError as error:
        _log.warning("%s: %s; its hash will be computed again", stamp.parent, error.strerror)


def _read_stamp(stamp: Path, status: _Status) -> str | None:
    """Return the recorded hash of a file with this status, None if there is none."""
    try:
        # Another user may have written it.
        if stamp.stat().st_uid not in {os.geteuid(), 0}:
            return None
        found = msgspec.json.decode(read_regular(stamp, max_bytes=_MAX_STAMP_BYTES), type=_Stamp)
    except (OSError, msgspec.DecodeError, RecursionError):
        return None
    return found.sha256 if found.status == status else None
