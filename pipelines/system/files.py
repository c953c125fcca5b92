"""Atomic writes, hashes, locks between processes, and JSON that is read into typed structures."""

import errno
import fcntl
import hashlib
import io
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar, get_args

import msgspec
from filelock import FileLock, Timeout

from pipelines.errors import PipelineError

PARTIAL_SUFFIX = ".partial"
"""Suffix of files that are still being written; no image reader accepts it."""

_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})
"""Errors of flock on a file system without locks, or whose lock service is unreachable."""

_NO_FOLDER_FSYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF})
"""Errors of fsync of a folder on CIFS, DrvFs and some FUSE file systems."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path, *, max_bytes: int | None = None) -> io.BufferedReader:
    """Open a regular file for reading; reject other kinds, as a named pipe would block forever.

    Type and size are checked on the opened file, so a file that is swapped in the meantime is
    detected, too. Links are followed.

    Args:
        path: the file.
        max_bytes: maximum size in bytes; None for no maximum.

    Returns:
        The file, at its beginning.

    Raises:
        OSError: if it cannot be opened, is not a regular file (EINVAL), or is larger than
            `max_bytes` (EFBIG); `filename` and `strerror` hold the path and the reason.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), None)
        if kind is not None:
            raise OSError(errno.EINVAL, f"it is {kind}, not a regular file; remove it", str(path))
        if max_bytes is not None and status.st_size > max_bytes:
            raise OSError(
                errno.EFBIG,
                f"it has {status.st_size:,} bytes, more than the maximum {max_bytes:,}; remove it",
                str(path),
            )
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, *, max_bytes: int) -> bytes:
    """Read a whole regular file of at most `max_bytes` bytes; see `open_regular`."""
    with open_regular(path, max_bytes=max_bytes) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:  # It grew, or its file system reports no size.
        raise OSError(
            errno.EFBIG, f"it has more than the maximum of {max_bytes:,} bytes", str(path)
        )
    return content


def printable(name: str) -> str:
    r"""Return a file's name as valid UTF-8; a byte that is not UTF-8 becomes the text \udcNN."""
    return name.encode("utf-8", "backslashreplace").decode()


def sha256(content: bytes | memoryview) -> str:
    """Return the SHA-256 of the content as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, read in pieces.

    Raises:
        OSError: if the file cannot be read.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write several files to one folder, each atomically: it is complete or absent at any moment.

    All files are written under temporary names and flushed to the disk before the first one is
    renamed, and the folder is flushed once at the end. After the return, all of them survive a
    power failure.

    Args:
        folder: an existing folder.
        contents: file name -> bytes; an existing file of that name is replaced.

    Raises:
        OSError: if the disk is full or the folder cannot be written; temporary files are removed.
    """
    partials = {name: _partial_path(folder / name) for name in contents}
    try:
        for name, content in contents.items():
            with partials[name].open("xb") as file:
                file.write(content)
                flush_to_disk(file)
        for name, partial in partials.items():
            partial.replace(folder / name)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
    flush_folder(folder)


def write_file(path: Path, content: bytes) -> None:
    """Write one file atomically; see `write_files`."""
    write_files(path.parent, {path.name: content})


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file, which is renamed to `path` when the block ends without an error.

    Raises:
        OSError: if the disk is full or the folder cannot be written; the temporary file is removed.
    """
    partial = _partial_path(path)
    try:
        with partial.open("xb") as file:
            yield file
            flush_to_disk(file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    flush_folder(path.parent)


def check_no_file(folder: Path, option: str) -> None:
    """Check that an output folder is not a file and not below one.

    Args:
        folder: the folder; it need not exist.
        option: name of the option that sets it, for the error.

    Raises:
        PipelineError: if the folder or one of its parents is a file.
    """
    existing = _existing_part(folder)
    if not existing.is_dir():
        raise PipelineError(f"{existing} is a file; choose a folder for {option}")


def check_writable(folder: Path, option: str) -> None:
    """Check that an output folder can be written, before hours of work.

    Args:
        folder: the folder; it need not exist.
        option: name of the option that sets it, for the error.

    Raises:
        PipelineError: if the folder, or the parent in which it would be created, cannot be written.
    """
    check_no_file(folder, option)
    existing = _existing_part(folder)
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PipelineError(f"{existing} cannot be written; choose another folder for {option}")


def _existing_part(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def remove_partial_files(folder: Path) -> None:
    """Remove the temporary files of killed writers from a folder that nobody is writing to."""
    for partial in folder.glob(f".*{PARTIAL_SUFFIX}"):
        partial.unlink(missing_ok=True)


@contextmanager
def folder_lock(path: Path, *, busy: str | None = None, timeout_s: float = 0.0) -> Iterator[None]:
    """Hold a lock file; the operating system releases it whenever and however the process ends.

    Args:
        path: the lock file, created if absent and kept afterwards.
        busy: error message if another process holds the lock; None waits instead.
        timeout_s: seconds to wait before that error: a file server may take a minute to notice
            that a machine, and the process on it, are gone.

    Raises:
        PipelineError: if another process holds the lock and `busy` is set, if the lock file belongs
            to another user, or if the file system does not support locks.
        OSError: if the lock file cannot be created.
    """
    # A soft lock, whose mere presence is the lock, would outlive a machine that crashes.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=-1 if busy is None else timeout_s)
    except Timeout as error:
        raise PipelineError(busy) from error
    except PermissionError as error:
        if not path.exists():
            raise
        raise PipelineError(
            f"the lock file {path} belongs to another user and cannot be locked "
            f"({error.strerror}); ask the owner to remove it, or use another folder (for the "
            "cache: set PIXMIX_CACHE)"
        ) from error
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        raise _no_locks(path, error) from error
    try:
        yield
    finally:
        lock.release()


def try_lock(descriptor: int, kind: int, path: Path) -> bool:
    """Try to lock an open file without waiting, and return whether it is locked.

    Args:
        descriptor: the open file.
        kind: fcntl.LOCK_SH or LOCK_EX.
        path: name of the file, for the error.

    Raises:
        PipelineError: if the file system does not support locks.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise _no_locks(path, error) from error
    return True


def unlock_and_close(descriptor: int) -> None:
    """Release a lock and close its file, even if a forked process has a copy of the descriptor."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def open_no_link(path: Path, flags: int) -> int | None:
    """Open a regular file, not a link; return None if there is none, and remove anything else.

    Raises:
        OSError: if a link or another kind of file cannot be removed, or the file cannot be opened.
    """
    try:
        # O_NONBLOCK: opening a named pipe would otherwise wait forever.
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o644)
    except FileNotFoundError:
        return None
    except OSError as error:
        # ELOOP for a link; ENXIO for a pipe or a socket without a reader.
        if error.errno not in {errno.ELOOP, errno.ENXIO}:
            raise
    else:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    path.unlink(missing_ok=True)
    return None


def is_regular(path: Path) -> bool:
    """Return whether a regular file, not a link, has this name."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def has_name(descriptor: int, path: Path) -> bool:
    """Return whether an open file still has this name."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def removable_lock(path: Path, *, busy: str | None = None) -> Iterator[None]:
    """Hold a lock file like `folder_lock`, in a folder that other processes may remove."""
    with ExitStack() as held:
        locked = False
        while not locked:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The folder may be removed again before the lock file is created.
            with suppress(FileNotFoundError):
                held.enter_context(folder_lock(path, busy=busy))
                locked = True
        yield


def flush_to_disk(file: BinaryIO) -> None:
    """Flush the content of a file to the disk, and wait for it."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Flush the file names of a folder to the disk, and wait for it; a rename is durable only then.

    File systems that do not support this are ignored, as in git and restic: there a power failure
    may lose the newest names, but never half of a file.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FSYNC:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def resource_errors(
    folder: Path | str, *, jobs: int, disk_remedy: str = "", memory_remedy: str = ""
) -> Iterator[None]:
    """Translate disk and memory errors of a resumable command into one-line messages.

    Args:
        folder: output folder, as messages name it.
        jobs: number of processes of the command.
        disk_remedy: further remedy for a folder that cannot be written.
        memory_remedy: further remedy for too little memory.

    Raises:
        PipelineError: for an OSError or a MemoryError of the block.
    """
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise PipelineError(
                f"the disk of {folder} is full; complete files are kept: free some space and run "
                "the same command again"
            ) from error
        raise PipelineError(
            f"{error.filename or folder}: {error.strerror or error}; {disk_remedy}run the same "
            "command again when this is fixed"
        ) from error
    except MemoryError as error:
        raise PipelineError(
            f"memory ran out with {jobs} jobs; complete files are kept: run the same command again "
            f"with fewer --jobs{memory_remedy}"
        ) from error


def _no_locks(path: Path, error: Exception) -> PipelineError:
    return PipelineError(
        f"the file system of {path.parent} does not support file locks "
        f"({getattr(error, 'strerror', None) or error}), which processes that share a folder need; "
        "mount it with locks (Lustre: -o flock; NFS: with its lock service), or choose a folder on "
        "another file system (for the cache: set PIXMIX_CACHE)"
    )


def _partial_path(path: Path) -> Path:
    # Random, because two processes may write the same file at once. Hidden and with a suffix, so
    # that partial images are not read as images.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")


Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""64 lower-case hexadecimal digits."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**48)]
"""A number of samples or of bytes."""

FileName = Annotated[str, msgspec.Meta(pattern=r"\A(?!\.)[^/\\\x00-\x1f\ud800-\udfff]{1,255}\Z")]
"""The name of a file in a known folder: no path, not hidden, no control characters."""

Label = Annotated[str, msgspec.Meta(pattern=r"\A[^/\x00-\x1f\ud800-\udfff]{0,255}\Z")]
"""A short text that may become part of a file name: no path, no control characters."""

_PATTERNS = {
    Sha256: "64 hexadecimal digits",
    FileName: "a file name without a path",
    Label: "a short name without slashes and control characters",
}
"""Descriptions that replace the regular expressions in msgspec's errors."""

T = TypeVar("T")


def read_json(content: bytes | dict[str, Any], kind: type[T], where: str, remedy: str) -> T:
    """Decode JSON into a type; the error names the field that is wrong.

    Args:
        content: JSON in UTF-8, or an object that is decoded already.
        kind: a msgspec.Struct, a dataclass, or another type that msgspec supports.
        where: name of the file, for the error.
        remedy: end of the error message: what to do about a damaged file.

    Raises:
        PipelineError: if it is not JSON, or a field is missing, of another type or out of range.
    """
    try:
        if isinstance(content, dict):
            return msgspec.convert(content, kind)
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # ValidationError is a DecodeError; its message names the field.
        raise PipelineError(f"{where} is damaged: {_in_words(error)}; {remedy}") from error


def _in_words(error: Exception) -> str:
    message = str(error)
    for kind, words in _PATTERNS.items():
        (rule,) = get_args(kind)[1:]
        message = message.replace(f"`str` matching regex {rule.pattern!r}", words)
    return message
