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
"""Ends the name of every file that is still being written; no image reader takes it."""

_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})
"""What flock says where a file system has no locks, or its lock service does not answer."""


_NO_FOLDER_FSYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF})
"""What fsync of a folder raises on CIFS, DrvFs and some FUSE file systems, which cannot do it."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path, *, max_bytes: int | None = None) -> io.BufferedReader:
    """Open a regular file for reading, and nothing else: a named pipe would block for ever.

    The type and the size are those of the opened file, so a file that is swapped in between is
    seen, too. Links are followed.

    Args:
        path: the file.
        max_bytes: the size that is accepted, in bytes; None for any.

    Returns:
        The file, at its beginning.

    Raises:
        OSError: if it cannot be opened, is not a regular file (EINVAL), or is larger than
            `max_bytes` (EFBIG); `filename` and `strerror` say which and why.
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
                f"it has {status.st_size:,} bytes, more than the {max_bytes:,} that are accepted "
                "here; remove it",
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
    if len(content) > max_bytes:  # It grew, or its file system does not know its size.
        raise OSError(
            errno.EFBIG, f"it has more than the {max_bytes:,} bytes accepted here", str(path)
        )
    return content


def printable(name: str) -> str:
    r"""Return a file's name as text that JSON can hold: a byte that is no UTF-8 becomes \udcNN."""
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
    """Write several files of one folder so that each is whole or absent, at any moment.

    All are written under temporary names and flushed to the disk before the first gets its name,
    and the folder is flushed once at the end: after the return, all of them survive a power cut.

    Args:
        folder: an existing folder.
        contents: file name -> bytes; an existing file of that name is replaced.

    Raises:
        OSError: if the disk is full or the folder cannot be written; no temporary file stays.
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
    """Write one file so that it is whole or absent at any moment; see `write_files`."""
    write_files(path.parent, {path.name: content})


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write in pieces, which gets its name when the block ends without an error.

    Raises:
        OSError: if the disk is full or the folder cannot be written; no temporary file stays.
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
    """Refuse a folder that is to be written, by the option of that name, and is or lies in a file.

    Raises:
        PipelineError: if there is a file in its place or on the way to it.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise PipelineError(f"{there} is a file; choose a folder for {option}")


def check_writable(folder: Path, option: str) -> None:
    """Refuse a folder in which nothing can be made, before hours of work are to be put there.

    Raises:
        PipelineError: if it, or the folder that it would be made in, cannot be written.
    """
    check_no_file(folder, option)
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise PipelineError(f"{there} cannot be written; choose another folder for {option}")


def remove_partial_files(folder: Path) -> None:
    """Remove what killed writers left in a folder that nobody is writing to now."""
    for partial in folder.glob(f".*{PARTIAL_SUFFIX}"):
        partial.unlink(missing_ok=True)


@contextmanager
def folder_lock(path: Path, *, busy: str | None = None, patience_s: float = 0.0) -> Iterator[None]:
    """Hold a lock file; the system frees it when the process ends, however it ends.

    Args:
        path: the lock file, made where it is absent and left behind.
        busy: the message of the error when another process holds it; None waits instead.
        patience_s: seconds to wait before that error: a server of files may take a minute to notice
            that a machine, and the process on it, are gone.

    Raises:
        PipelineError: if another process holds the lock and `busy` is given, if the lock file is
            another user's, or if the file system has no locks.
        OSError: if the lock file cannot be made.
    """
    # A soft lock, a file whose presence is the lock, would outlive a machine that dies.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=-1 if busy is None else patience_s)
    except Timeout as error:
        raise PipelineError(busy) from error
    except PermissionError as error:
        if not path.exists():
            raise
        raise PipelineError(
            f"the lock file {path} belongs to another user and cannot be locked "
            f"({error.strerror}); have it removed, or use a folder of your own (for the cache: "
            "PIXMIX_CACHE)"
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
    """Lock an open file, and return whether that was possible at once.

    Args:
        descriptor: of the file.
        kind: fcntl.LOCK_SH or LOCK_EX.
        path: its name, for the error.

    Raises:
        PipelineError: if the file system has no locks.
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
    """Free a lock and close its file, also where a forked process has a copy of the descriptor."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def open_no_link(path: Path, flags: int) -> int | None:
    """Open a regular file; a link or whatever else has its name is removed, and None returned.

    Raises:
        OSError: if that cannot be removed, or the file cannot be opened.
    """
    try:
        # O_NONBLOCK: the opening of a named pipe would wait for ever.
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o644)
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


def is_regular(path: Path) -> bool:
    """Return whether a regular file, and no link, has this name."""
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
    """Hold a lock file, as `folder_lock` does, whose folder others may remove with its locks."""
    with ExitStack() as held:
        locked = False
        while not locked:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Removed since.
            with suppress(FileNotFoundError):
                held.enter_context(folder_lock(path, busy=busy))
                locked = True
        yield


def flush_to_disk(file: BinaryIO) -> None:
    """Return when what was written to a file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Return when the names in a folder are on the disk: a new one is there only then.

    File systems that cannot do it are passed over, as git and restic do: there a power cut may
    lose the newest names, never half of a file.
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
def world_errors(
    folder: Path | str, *, jobs: int, elsewhere: str = "", smaller: str = ""
) -> Iterator[None]:
    """Say in one line what disk and memory did not allow to a command that can be given again.

    Args:
        folder: what is written to, as messages name it.
        jobs: processes of the command.
        elsewhere: a remedy for a folder that cannot be written, before the usual one.
        smaller: a remedy for too little memory, after the usual one.

    Raises:
        PipelineError: for an OSError or a MemoryError of the block.
    """
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise PipelineError(
                f"the disk of {folder} is full; what is whole is kept: make room and run the same "
                "command again"
            ) from error
        raise PipelineError(
            f"{error.filename or folder}: {error.strerror or error}; {elsewhere}run the same "
            "command again when this is mended"
        ) from error
    except MemoryError as error:
        raise PipelineError(
            f"memory ran out with {jobs} jobs; what is whole is kept: run the same command again "
            f"with fewer --jobs{smaller}"
        ) from error


def _no_locks(path: Path, error: Exception) -> PipelineError:
    return PipelineError(
        f"{path.parent} lies on a file system with no file locks "
        f"({getattr(error, 'strerror', None) or error}), which processes need that share it; mount "
        "it with them (Lustre: -o flock; NFS: with its lock service), or choose a folder on "
        "another file system (for the cache: PIXMIX_CACHE)"
    )


def _partial_path(path: Path) -> Path:
    # A random part, for two processes may write the same file at once; hidden, and with an
    # extension of its own, so that a folder of images stays one while it is written.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")


Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""64 hexadecimal digits, lower-case."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**48)]
"""A number of samples or of bytes."""

FileName = Annotated[str, msgspec.Meta(pattern=r"\A(?!\.)[^/\\\x00-\x1f\ud800-\udfff]{1,255}\Z")]
"""The name of a file inside a known folder: no path, not hidden, no control characters."""

Label = Annotated[str, msgspec.Meta(pattern=r"\A[^/\x00-\x1f\ud800-\udfff]{0,255}\Z")]
"""A short text that may become a part of a file's name: no path, no control characters."""

_PATTERNS = {
    Sha256: "64 hexadecimal digits",
    FileName: "the name of a file in the folder, without a path",
    Label: "a short name without slashes and control characters",
}
"""What msgspec tells by the pattern, in words."""

T = TypeVar("T")


def read_json(content: bytes | dict[str, Any], kind: type[T], where: str, remedy: str) -> T:
    """Decode JSON into a type, or say which field is wrong.

    Args:
        content: JSON in UTF-8, or an object of it that is decoded already.
        kind: a msgspec.Struct, a dataclass, or another type that msgspec knows.
        where: the name of the file, for the error.
        remedy: what to do about a damaged one, for the end of the error.

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
    said = str(error)
    for kind, words in _PATTERNS.items():
        (rule,) = get_args(kind)[1:]
        said = said.replace(f"`str` matching regex {rule.pattern!r}", words)
    return said
