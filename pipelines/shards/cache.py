"""Where files live that a node keeps, and the shards among them: each once a node, within a limit.

    CACHE/shards/SHA256                 a whole file; its name is the SHA-256 of its content
                 SHA256.BYTES.partial   one that is being downloaded, or waits to be continued

No two files share a name unless they share their content. Whoever uses a file holds a shared lock
on it, whoever downloads one an exclusive lock on the partial file; the system frees both when a
process ends, however it ends, so nothing that a killed process used or began stays locked.
"""

import errno
import fcntl
import os
import re
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from pipelines.errors import PipelineError
from pipelines.shards.files import PARTIAL_SUFFIX, flush_folder, flush_to_disk, folder_lock

_POLL_S = 0.05
"""Between two looks at a lock: a lock that is waited for in the system cannot be given up."""

_OWN_NAME = re.compile(rf"[0-9a-f]{{64}}(?:\.(\d+){re.escape(PARTIAL_SUFFIX)})?")

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
        # Also when this is dropped without a word, and once only.
        self._let_go = (
            None if descriptor is None else weakref.finalize(self, _let_go, descriptor, os.getpid())
        )

    def release(self) -> None:
        """Let the file go; a second time does nothing."""
        if self._let_go is not None:
            self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.release()


class Download:
    """The place of a file that is being downloaded, which nobody else can write meanwhile.

    file: open for reading and writing; it may hold the beginning already.
    """

    def __init__(self, partial: Path, whole: Path, descriptor: int) -> None:
        # Unbuffered: what a full disk refused is not tried again when the file is closed.
        self.file: BinaryIO = os.fdopen(descriptor, "r+b", buffering=0)
        self._partial = partial
        self._whole = whole

    def finish(self) -> None:
        """Give the file its name, now that its content is checked, and let others use it."""
        flush_to_disk(self.file)
        self._partial.replace(self._whole)
        flush_folder(self._whole.parent)
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
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            held = HeldFile(path, descriptor)
            # An exclusive lock is held for moments only: by who names a file or removes it.
            _lock(descriptor, fcntl.LOCK_SH, path)
            if _is_at(descriptor, path):
                if n_bytes is not None and os.fstat(descriptor).st_size != n_bytes:
                    path.unlink(missing_ok=True)
                    held.release()
                    return None
                _touch(descriptor)
                return held
            held.release()

    def has(self, sha256: str) -> bool:
        """Return whether the file of this content is here; in the next moment it may be gone."""
        return (self.files / sha256).exists()

    def begin(self, sha256: str, n_bytes: int | None, stop: threading.Event) -> HeldFile | Download:
        """Return the file of this content, or the place to download it to.

        Waits while another process downloads it. Of all who ask one gets the place.

        Args:
            sha256: of the content.
            n_bytes: its length, for which room is made; None where it is not known.
            stop: ends the waiting.

        Raises:
            CacheFullError: if there is no room for it beside the files that are in use.
            PipelineError: if the file system has no locks.
            StoppedError: if `stop` is set.
            OSError: if the folder cannot be written.
        """
        self.files.mkdir(parents=True, exist_ok=True)
        whole = self.files / sha256
        partial = self.files / f"{sha256}.{n_bytes or 0}{PARTIAL_SUFFIX}"
        while True:
            held = self.hold(sha256, n_bytes)
            if held is not None:
                return held
            if stop.is_set():
                raise StoppedError
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
            if not _try_lock(descriptor, fcntl.LOCK_EX, partial):
                os.close(descriptor)
                stop.wait(_POLL_S)
                continue
            if not _is_at(descriptor, partial):
                # Finished or removed while this was on its way to the lock.
                _unlock_and_close(descriptor)
                continue
            download = Download(partial, whole, descriptor)
            if whole.exists():
                # Finished in between, and this partial file is a new one.
                download.leave(keep=False)
                continue
            try:
                self._make_room(n_bytes or 0)
            except CacheFullError:
                download.leave(keep=True)
                raise
            return download

    def _make_room(self, n_bytes: int) -> None:
        """Remove what was used longest ago until a file that has its place already has room.

        Raises:
            CacheFullError: if those in use leave no room.
        """
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
            status = path.stat()
            size = max(status.st_size, int(match[1] or 0))
            yield _Entry(path, status.st_mtime_ns, size, status.st_size)


def _remove_unused(path: Path) -> bool:
    """Remove a file unless someone uses it; return whether it is gone."""
    try:
        # A lock over the network wants a descriptor that may write.
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    except PermissionError:
        return False
    if not _try_lock(descriptor, fcntl.LOCK_EX, path):
        os.close(descriptor)
        return False
    try:
        if _is_at(descriptor, path):
            path.unlink()
        return True
    finally:
        _unlock_and_close(descriptor)


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
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def _touch(descriptor: int) -> None:
    # Others' files in a shared cache may be read, and their times stay.
    with suppress(PermissionError):
        os.utime(descriptor)


def _unlock_and_close(descriptor: int) -> None:
    # Unlocked by name: a process that was forked meanwhile has a copy of the descriptor, which
    # would keep the lock as long as that process lives.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _let_go(descriptor: int, process: int) -> None:
    if os.getpid() == process:
        _touch(descriptor)
        _unlock_and_close(descriptor)
    else:
        # The lock is the parent's to free.
        os.close(descriptor)
