"""The files that a node keeps, within a limit, and the hashes of files that were checked.

    CACHE/shards/SHA256                 a whole file; its name is the SHA-256 of its content
                 SHA256.BYTES.partial   one that is being downloaded, or waits to be resumed
          used/SHA256                   empty; its modification time is when the file was last used
          verified/KEY.json             what was found of one path, and what the file was like then
                   XX.lock              who computes a hash; of the keys that begin with XX

Whoever uses a file holds a shared lock on it, whoever downloads one an exclusive lock on the
partial file; the system frees both when a process ends. Other users may be able to write to the
folder, so no link is ever followed here, and only regular files are opened.

Local shards and the files in the cache are hashed once a node, and again only when a file changes,
of which the time of the last change of its inode tells. What the disk itself returns wrong shows
only where the file is hashed again: `pixmix-shard verify`.
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
"""Between two tries of a lock: one that is waited for in the system cannot be given up."""

_OWN_NAME = re.compile(rf"[0-9a-f]{{64}}(?:\.(\d+){re.escape(PARTIAL_SUFFIX)})?")

_MOST_RESERVE_BYTES = 10 * 10**9
_RESERVE_SHARE = 0.05

_MOST_STAMP_BYTES = 2**16

_ELSEWHERE = "set PIXMIX_CACHE or --cache-dir to a folder of your own"

_Look = tuple[int, int, int, int, int]
"""Device, inode, bytes, ns of the last modification and of the inode's last change of a file."""

_found: dict[_Look, str] = {}
"""The SHA-256 of the files that this process has checked; a forked one inherits them."""

_log = logging.getLogger(__name__)


class CacheFullError(PipelineError):
    """Raised where a file finds no room beside those that are in use."""


def cache_folder(given: Path | None = None) -> Path:
    """Return the folder of what this node keeps, which need not exist yet.

    Args:
        given: a folder that the user chose; None takes $PIXMIX_CACHE, else $XDG_CACHE_HOME/pixmix,
            else ~/.cache/pixmix. A variable that is set but empty counts as not set.
    """
    if given is not None:
        return given
    if own := os.environ.get("PIXMIX_CACHE"):
        return Path(own)
    # The XDG rules say that a relative path is to be ignored.
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "pixmix"


class HeldFile:
    """A file that stays where it is while it is held; a context that releases it at its end.

    path: the file; descriptor: of a file of the cache, on which this holds a lock, else None.
    """

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        self.path = path
        self._descriptor = descriptor
        # Also when this is dropped without a release, and once only.
        self._release = (
            None
            if descriptor is None
            else weakref.finalize(self, _release, path, descriptor, os.getpid())
        )

    def release(self) -> None:
        """Release the file; a second time does nothing."""
        if self._release is not None:
            self._release()

    def discard(self) -> None:
        """Remove the file, whose content is damaged, and release it; once released, do nothing."""
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
    """A file that is being downloaded, which nobody else can write meanwhile.

    file: open for reading and writing; it may hold the beginning already. whole: what it becomes.
    """

    def __init__(self, partial: Path, whole: Path, descriptor: int) -> None:
        # Unbuffered: what a full disk refused is not tried again when the file is closed.
        self.file: BinaryIO = os.fdopen(descriptor, "r+b", buffering=0)
        self._partial = partial
        self.whole = whole

    def finish(self) -> None:
        """Give the file its name, now that its content is checked, and unlock it."""
        flush_to_disk(self.file)
        self._partial.replace(self.whole)
        flush_folder(self.whole.parent)
        self._unlock()

    def leave(self, *, keep: bool) -> None:
        """Unlock the file; keep: for others to resume, unless it is empty."""
        if not keep or os.fstat(self.file.fileno()).st_size == 0:
            self._partial.unlink(missing_ok=True)
        self._unlock()

    def _unlock(self) -> None:
        with self.file:
            fcntl.flock(self.file, fcntl.LOCK_UN)


@dataclass(frozen=True, kw_only=True)
class ShardCache:
    """The files of a node, named by the SHA-256 of their content.

    folder: of this node, on a file system that has locks; see `cache_folder`.
    limit_bytes: of the files together, those being downloaded included. None: what the disk has,
        less a twentieth of it, at most 10 GB, which stay free.
    """

    folder: Path = field(default_factory=cache_folder)
    limit_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        if self.limit_bytes is not None and self.limit_bytes < 1:
            raise ValueError(f"limit_bytes is {self.limit_bytes}; give at least 1, or None")

    @property
    def files(self) -> Path:
        """The folder of the files."""
        return self.folder / "shards"

    def hold(self, sha256: str, n_bytes: int | None = None) -> HeldFile | None:
        """Return the file of this content, or None; one of another length is removed."""
        path = self.files / sha256
        while True:
            descriptor = open_no_link(path, os.O_RDONLY)
            if descriptor is None:
                return None
            held = HeldFile(path, descriptor)
            # An exclusive lock is held for moments only: by who names a file or removes it.
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
        """Return whether the file of this content is here; in the next moment it may be gone."""
        return is_regular(self.files / sha256)

    def begin(
        self,
        sha256: str,
        n_bytes: int | None,
        stop: threading.Event,
        *,
        max_bytes: int | None = None,
    ) -> HeldFile | Download:
        """Return the file of this content, or, to one of all who ask, the download to fill.

        Waits while another process downloads it.

        Args:
            sha256: of the content.
            n_bytes: its length, for which room is made; None where it is not known.
            stop: ends the waiting.
            max_bytes: for which room is made where the length is not known.

        Raises:
            CacheFullError: if there is no room for it beside the files that are in use.
            PipelineError: if the file system has no locks, or the folder cannot be written.
            StoppedError: if `stop` is set.
        """
        room = max_bytes or 0 if n_bytes is None else n_bytes
        whole = self.files / sha256
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
                # Finished or removed while this was on its way to the lock.
                unlock_and_close(descriptor)
                continue
            download = Download(partial, whole, descriptor)
            if is_regular(whole):
                # Finished in between, and this partial file is a new one.
                download.leave(keep=False)
                continue
            try:
                self._make_room(room)
            except CacheFullError:
                download.leave(keep=True)
                raise
            return download

    def _open_partial(self, path: Path) -> int:
        """Open or create the file of a download; refuse one that belongs to somebody else."""
        try:
            descriptor = None
            while descriptor is None:
                self.files.mkdir(parents=True, exist_ok=True)
                # Removes what is not a plain file.
                descriptor = open_no_link(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR}:
                raise
            raise PipelineError(
                f"{error.filename or path}: {error.strerror}, so nothing can be downloaded to this "
                f"cache; {_ELSEWHERE}"
            ) from error
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_nlink > 1:
            os.close(descriptor)
            raise PipelineError(
                f"{path} belongs to another user or has another name elsewhere, so nothing is "
                f"written to it; remove it, or {_ELSEWHERE}"
            )
        return descriptor

    def _make_room(self, n_bytes: int) -> None:
        """Remove what was used longest ago until a file of `n_bytes`, which is listed, has room."""
        if self.limit_bytes is not None and n_bytes > self.limit_bytes:
            raise CacheFullError(
                f"{self.folder} may hold {self.limit_bytes} bytes, too few for a file of {n_bytes} "
                "bytes; raise the cache's limit (--cache-limit)"
            )
        with folder_lock(self.files / "room.lock"):
            entries = sorted(_entries(self.files), key=lambda entry: entry.used_ns)
            in_use = sum(entry.size for entry in entries)
            # The reserve is kept free, but used before a file is refused.
            reserve = 0
            if self.limit_bytes is not None:
                excess = in_use - self.limit_bytes
            else:
                disk = shutil.disk_usage(self.files)
                reserve = min(int(_RESERVE_SHARE * disk.total), _MOST_RESERVE_BYTES)
                to_come = sum(entry.size - entry.there for entry in entries)
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
                f"{self.folder} may hold {self.limit_bytes} bytes, and of those "
                f"{in_use - n_bytes} are in use, so {n_bytes} more find no room; raise the "
                "cache's limit, or read fewer shards at a time"
            )
        raise CacheFullError(
            f"the disk of {self.folder} has no room for {n_bytes} bytes; make room, or set "
            "PIXMIX_CACHE to a folder on a larger disk"
        )


def verified_once(path: Path, expected_sha256: str, n_bytes: int, cache: ShardCache) -> None:
    """Check that a local file has its content; see `checked_sha256`.

    Raises:
        PipelineError: if it is missing or another one.
    """
    found = checked_sha256(path, n_bytes, cache)
    if found != expected_sha256:
        raise PipelineError(
            f"{path} has SHA-256 {found}, the manifest says {expected_sha256}; copy it again from "
            "where the set was made, or, if it was changed on purpose, run pixmix-shard index again"
        )


def checked_sha256(path: Path, n_bytes: int, cache: ShardCache) -> str:
    """Return the SHA-256 of a local file, which is read only if nothing is remembered of it.

    Of many processes that ask at once, one reads it.

    Raises:
        PipelineError: if it is missing, has another length than `n_bytes` or changes meanwhile.
    """
    look = _checked_look(path, n_bytes)
    known = _found.get(look)
    if known is not None:
        return known
    path = path.resolve()
    stamp = _stamp_path(path, cache)
    found = _remembered(stamp, look)
    if found is None:
        with ExitStack() as stack:
            try:
                stamp.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(folder_lock(stamp.with_name(f"{stamp.name[:2]}.lock")))
            except (OSError, PipelineError) as error:
                _log.warning("%s: %s; the same files may be hashed more than once", cache, error)
            look = _checked_look(path, n_bytes)
            # Another process may have read it meanwhile.
            found = _remembered(stamp, look)
            if found is None:
                found = file_sha256(path)
                if _checked_look(path, n_bytes) != look:
                    raise PipelineError(
                        f"{path} changed while it was read; wait until it is written, and run the "
                        "same again"
                    )
                _write_stamp(stamp, look, found)
    _found[look] = found
    return found


def remember(path: Path, its_sha256: str, cache: ShardCache) -> None:
    """Remember the hash of a file that was hashed as it was written."""
    look = _look_of(path)
    _found[look] = its_sha256
    _write_stamp(_stamp_path(path.resolve(), cache), look, its_sha256)


class _Entry(NamedTuple):
    """A file of the cache. used_ns: when last; size: bytes, once it is whole; there: now."""

    path: Path
    used_ns: int
    size: int
    there: int


def _entries(folder: Path) -> Iterator[_Entry]:
    for path in folder.iterdir():
        match = _OWN_NAME.fullmatch(path.name)
        if match is None:
            continue
        # Another process may remove or name one meanwhile.
        with suppress(FileNotFoundError):
            status = path.lstat()
            used_ns = status.st_mtime_ns
            with suppress(FileNotFoundError):
                used_ns = max(used_ns, _used(path).lstat().st_mtime_ns)
            yield _Entry(path, used_ns, max(status.st_size, int(match[1] or 0)), status.st_size)


def _remove_unused(path: Path) -> bool:
    """Remove a file unless someone uses it; return whether it is gone."""
    try:
        # A lock over the network wants a descriptor that may write.
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
    """Say that a file is used now, elsewhere: its own times stay those of its content."""
    # Of a cache that can only be read, or that is being removed, nobody is told.
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
        # The lock is the parent's to free.
        os.close(descriptor)


class _Stamp(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of a file, and what it was like then."""

    look: _Look
    sha256: Sha256


def _look_of(path: Path) -> _Look:
    found = path.stat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _checked_look(path: Path, n_bytes: int) -> _Look:
    try:
        look = _look_of(path)
    except FileNotFoundError as error:
        raise PipelineError(f"{path} is missing; copy it again, or make the set again") from error
    if look[2] == n_bytes:
        return look
    raise PipelineError(
        f"{path} has {look[2]} bytes, the manifest says {n_bytes}; copy it again, or make the set "
        "again"
    )


def _stamp_path(path: Path, cache: ShardCache) -> Path:
    return cache.folder / "verified" / f"{sha256(os.fsencode(path))}.json"


def _write_stamp(stamp: Path, look: _Look, its_sha256: str) -> None:
    """Remember what was found; where the cache cannot be written, this process alone knows it."""
    try:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        write_file(stamp, msgspec.json.encode(_Stamp(look=look, sha256=its_sha256)))
    except OSError as error:
        _log.warning("%s: %s; its hash will be computed again", stamp.parent, error.strerror)


def _remembered(stamp: Path, look: _Look) -> str | None:
    """Return the hash that was found of a file that was like this; None where it is not known."""
    try:
        # Another user could have written anything there.
        if stamp.stat().st_uid not in {os.geteuid(), 0}:
            return None
        found = msgspec.json.decode(read_regular(stamp, max_bytes=_MOST_STAMP_BYTES), type=_Stamp)
    except (OSError, msgspec.DecodeError, RecursionError):
        return None
    return found.sha256 if found.look == look else None
