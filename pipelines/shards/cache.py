"""Where files live that a node keeps, and the shards among them: each once a node, within a limit.

    CACHE/shards/SHA256                 a whole file; its name is the SHA-256 of its content
                 SHA256.BYTES.partial   one that is being downloaded, or waits to be continued
          used/SHA256                   empty; its modification time is when the file was last used

No two files share a name unless they share their content. Whoever uses a file holds a shared lock
on it, whoever downloads one an exclusive lock on the partial file; the system frees both when a
process ends, however it ends, so nothing that a killed process used or began stays locked.

Other users may be able to write to the folder, and the names in it can be foreseen, so no link is
ever followed here, and only regular files are opened.
"""

import errno
import fcntl
import os
import re
import shutil
import stat
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from pipelines.errors import PipelineError
from pipelines.system.files import PARTIAL_SUFFIX, flush_folder, flush_to_disk, folder_lock

_POLL_S = 0.05
"""Between two looks at a lock: a lock that is waited for in the system cannot be given up."""

_OWN_NAME = re.compile(rf"[0-9a-f]{{64}}(?:\.(\d+){re.escape(PARTIAL_SUFFIX)})?")

_NO_LINK = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""How files are opened: O_NONBLOCK, for the opening of a named pipe would wait for ever."""

_MOST_RESERVE_BYTES = 10 * 10**9
_RESERVE_SHARE = 0.05


class CacheFullError(PipelineError):
    """Raised where a file finds no room beside those that are in use."""


class StoppedError(Exception):
    """Raised where work was asked to stop; whoever asked drops it."""


def cache_folder(given: Path | None = None) -> Path:
    """Return the folder of what this node keeps, which need not exist yet.

    Args:
        given: a folder the user chose; None takes $PIXMIX_CACHE, else $XDG_CACHE_HOME/pixmix,
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
    """A file that stays where it is while it is held; a context that lets it go at its end.

    path: the file. What is not in the cache is held by nobody: then there is nothing to let go.
    """

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        self.path = path
        self._descriptor = descriptor
        # Also when this is dropped without a word, and once only.
        self._let_go = (
            None
            if descriptor is None
            else weakref.finalize(self, _let_go, path, descriptor, os.getpid())
        )

    def release(self) -> None:
        """Let the file go; a second time does nothing."""
        if self._let_go is not None:
            self._let_go()

    def discard(self) -> None:
        """Remove the file, whose content is damaged, and let it go; once let go, do nothing."""
        if self._descriptor is not None and self._let_go is not None and self._let_go.alive:
            if _is_at(self._descriptor, self.path):
                self.path.unlink(missing_ok=True)
            self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.release()


class Download:
    """The place of a file that is being downloaded, which nobody else can write meanwhile.

    file: open for reading and writing; it may hold the beginning already. whole: the path of the
    file that it becomes.
    """

    def __init__(self, partial: Path, whole: Path, descriptor: int) -> None:
        # Unbuffered: what a full disk refused is not tried again when the file is closed.
        self.file: BinaryIO = os.fdopen(descriptor, "r+b", buffering=0)
        self._partial = partial
        self.whole = whole

    def finish(self) -> None:
        """Give the file its name, now that its content is checked, and let others use it."""
        flush_to_disk(self.file)
        self._partial.replace(self.whole)
        flush_folder(self.whole.parent)
        self._unlock()

    def leave(self, *, keep: bool) -> None:
        """Let others go on; keep: with what is there already."""
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
    limit_bytes: that the files may take together, those being downloaded included. None: what the
        disk has, less a twentieth of it, at most 10 GB, which stay free.
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
        """Return the file of this content, or None where it is not in the cache.

        Args:
            sha256: of the content.
            n_bytes: its length; a file of another length is damaged, and removed.
        """
        path = self.files / sha256
        while True:
            descriptor = _open_plain(path, os.O_RDONLY)
            if descriptor is None:
                return None
            held = HeldFile(path, descriptor)
            # An exclusive lock is held for moments only: by who names a file or removes it.
            _lock(descriptor, fcntl.LOCK_SH, path)
            if _is_at(descriptor, path):
                if n_bytes is not None and os.fstat(descriptor).st_size != n_bytes:
                    held.discard()
                    return None
                _touch(path)
                return held
            held.release()

    def has(self, sha256: str) -> bool:
        """Return whether the file of this content is here; in the next moment it may be gone."""
        return _is_plain(self.files / sha256)

    def begin(
        self,
        sha256: str,
        n_bytes: int | None,
        stop: threading.Event,
        *,
        most_bytes: int | None = None,
    ) -> HeldFile | Download:
        """Return the file of this content, or the place to download it to.

        Waits while another process downloads it. Of all who ask one gets the place.

        Args:
            sha256: of the content.
            n_bytes: its length, for which room is made; None where it is not known.
            stop: ends the waiting.
            most_bytes: for which room is made where the length is not known.

        Raises:
            CacheFullError: if there is no room for it beside the files that are in use.
            PipelineError: if the file system has no locks.
            StoppedError: if `stop` is set.
            OSError: if the folder cannot be written.
        """
        room = most_bytes or 0 if n_bytes is None else n_bytes
        whole = self.files / sha256
        partial = self.files / f"{sha256}.{room}{PARTIAL_SUFFIX}"
        while True:
            held = self.hold(sha256, n_bytes)
            if held is not None:
                return held
            if stop.is_set():
                raise StoppedError
            descriptor = self._open_partial(partial)
            if not _try_lock(descriptor, fcntl.LOCK_EX, partial):
                os.close(descriptor)
                stop.wait(_POLL_S)
                continue
            if not _is_at(descriptor, partial):
                # Finished or removed while this was on its way to the lock.
                _unlock_and_close(descriptor)
                continue
            download = Download(partial, whole, descriptor)
            if _is_plain(whole):
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
        """Open the place of a download, made where it is absent, and never what a link names.

        Raises:
            PipelineError: if it belongs to somebody else, or the folder cannot be written.
        """
        elsewhere = "set PIXMIX_CACHE or --cache-dir to a folder of your own"
        try:
            descriptor = None
            while descriptor is None:
                self.files.mkdir(parents=True, exist_ok=True)
                # Removes what is not a plain file.
                descriptor = _open_plain(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR}:
                raise
            raise PipelineError(
                f"{error.filename or path}: {error.strerror}, so nothing can be downloaded to this "
                f"cache; {elsewhere}"
            ) from error
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_nlink > 1:
            os.close(descriptor)
            raise PipelineError(
                f"{path} belongs to another user or has another name elsewhere, so nothing is "
                f"written to it; remove it, or {elsewhere}"
            )
        return descriptor

    def _make_room(self, n_bytes: int) -> None:
        """Remove what was used longest ago until a file that has its place already has room.

        Raises:
            CacheFullError: if those in use leave no room.
        """
        if self.limit_bytes is not None and n_bytes > self.limit_bytes:
            raise CacheFullError(
                f"{self.folder} may hold {self.limit_bytes} bytes, too few for a file of {n_bytes} "
                "bytes; raise the cache's limit (--cache-limit)"
            )
        with folder_lock(self.files / "room.lock"):
            entries = sorted(_entries(self.files), key=lambda entry: entry.used_ns)
            excess, reserve = self._excess(entries)
            in_use = sum(entry.size for entry in entries)
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

    def _excess(self, entries: list["_Entry"]) -> tuple[int, int]:
        """Return how many bytes are too many, and how many of those may be borne."""
        if self.limit_bytes is not None:
            return sum(entry.size for entry in entries) - self.limit_bytes, 0
        disk = shutil.disk_usage(self.files)
        reserve = min(int(_RESERVE_SHARE * disk.total), _MOST_RESERVE_BYTES)
        to_come = sum(entry.size - entry.there for entry in entries)
        return to_come - (disk.free - reserve), reserve


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
            size = max(status.st_size, int(match[1] or 0))
            yield _Entry(path, max(status.st_mtime_ns, _used_ns(path)), size, status.st_size)


def _used_ns(path: Path) -> int:
    try:
        return _used(path).lstat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _remove_unused(path: Path) -> bool:
    """Remove a file unless someone uses it; return whether it is gone."""
    try:
        # A lock over the network wants a descriptor that may write.
        descriptor = _open_plain(path, os.O_RDWR)
    except PermissionError:
        return False
    if descriptor is None:
        return True
    if not _try_lock(descriptor, fcntl.LOCK_EX, path):
        os.close(descriptor)
        return False
    try:
        if _is_at(descriptor, path):
            path.unlink()
            _used(path).unlink(missing_ok=True)
        return True
    except PermissionError:
        return False
    finally:
        _unlock_and_close(descriptor)


def _open_plain(path: Path, flags: int) -> int | None:
    """Open a regular file; a link or whatever else has its name is removed, and None returned.

    Raises:
        OSError: if that cannot be removed, or the file cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | _NO_LINK, 0o644)
    except FileNotFoundError:
        return None
    except OSError as error:
        # A link; a pipe or a socket that nobody reads.
        if error.errno not in {errno.ELOOP, errno.ENXIO}:
            raise
    else:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    path.unlink(missing_ok=True)
    return None


def _is_plain(path: Path) -> bool:
    """Return whether a regular file has this name."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _lock(descriptor: int, kind: int, path: Path) -> None:
    while not _try_lock(descriptor, kind, path):
        time.sleep(_POLL_S)


def _try_lock(descriptor: int, kind: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}:
            raise PipelineError(
                f"{path.parent} is on a file system without locks; set PIXMIX_CACHE to a folder on "
                "a local disk"
            ) from error
        raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file still has this name."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def _used(path: Path) -> Path:
    return path.parent.parent / "used" / path.name


def _touch(path: Path) -> None:
    """Say that a file is used now, elsewhere: its own times stay those of its content."""
    # Of a cache that can only be read, or that is being removed, nobody is told.
    with suppress(OSError):
        _used(path).parent.mkdir(exist_ok=True)
        descriptor = _open_plain(_used(path), os.O_WRONLY | os.O_CREAT)
        if descriptor is not None:
            try:
                os.utime(descriptor)
            finally:
                os.close(descriptor)


def _unlock_and_close(descriptor: int) -> None:
    # Unlocked by name: a process that was forked meanwhile has a copy of the descriptor, which
    # would keep the lock as long as that process lives.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _let_go(path: Path, descriptor: int, process: int) -> None:
    if os.getpid() == process:
        if _is_at(descriptor, path):
            _touch(path)
        _unlock_and_close(descriptor)
    else:
        # The lock is the parent's to free.
        os.close(descriptor)
