"""Weights files of torch.save and safetensors, read without executing anything in them.

``torch.load(weights_only=True)`` executes nothing, but it rejects what harmless checkpoints contain
beside their tensors: numpy scalars (a learning rate from ``np.cos``), ``argparse.Namespace``,
paths. Here each of those has a stand-in, so that the code of numpy and pathlib is never called with
values from a file.

A checkpoint contains its own SHA-256, so that every reader detects a flipped bit: torch writes zip
archives, but does not verify their checksums when it reads them. The digest is the archive comment,
at the very end of the file: torch and other zip readers ignore it, and it stays with the file when
the file is copied or renamed::

    ... | PK 5 6, 16 bytes | length of the comment: 71 | "sha256=" and 64 hexadecimal digits

The digest is that of the archive without a comment, whose comment length is 0.
"""

import argparse
import errno
import hashlib
import io
import math
import pathlib
import pickletools
import re
import reprlib
import stat
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

SAVE_AGAIN = "save module.state_dict() with torch.save or safetensors where it was written"
_COPY_AGAIN = "copy or download it again"


def read_checkpoint_file(path: Path) -> Any:  # noqa: ANN401
    """Read a file of torch.save or safetensors; nothing in it is executed.

    Args:
        path: A regular file.

    Returns:
        The saved object, on the CPU; for safetensors, a dict from names to tensors. numpy arrays
        and scalars are numpy's own types, and paths are pure paths.

    Raises:
        ValueError: If the content cannot be read; the message states the file, what it is, and a
            remedy.
        OSError: If it does not exist, is not a regular file, or the disk fails.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # Opening a named pipe could block forever.
        raise OSError(errno.EINVAL, "not a regular file; pass a weights file", str(path))
    with path.open("rb") as file:
        return load_checkpoint(file, path)


def load_checkpoint(file: BinaryIO, path: Path | str) -> Any:  # noqa: ANN401
    """Read an open file of torch.save or safetensors from its beginning.

    Args:
        file: Seekable, such as ``io.BytesIO`` of its bytes.
        path: Its name in messages.

    Returns:
        See ``read_checkpoint_file``.

    Raises:
        ValueError: If the content cannot be read; see ``read_checkpoint_file``.
        OSError: If the disk fails.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(512)
    file.seek(0)
    _check_head(head, size, path)
    is_intact = matches_digest(file)
    if is_intact is False:
        raise ValueError(
            f"{path} is damaged: its content does not match the SHA-256 stored in it; copy it "
            "again from its source, or use another checkpoint of that run"
        )
    file.seek(0)
    if _is_safetensors(head, size) or str(path).endswith(".safetensors"):
        return _load_safetensors(file, path)
    if head.startswith(b"PK"):
        _check_zip(file, size, path, compare=is_intact is None)
        file.seek(0)
    try:
        with _safe_globals_only(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except _UnsupportedContent as error:
        raise ValueError(f"{path} contains {error}; {SAVE_AGAIN}") from error
    except Exception as error:
        # A damaged file raises errors of many types: from zip archives, pickles and tensor sizes.
        raise ValueError(_unreadable(error, file, head, path)) from error


_OTHER_FILES = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull`"),
    (rb"\s*<(!doctype|html|head|\?xml|!--)", f"an HTML or XML page; {_COPY_AGAIN}"),
    (rb"\x1f\x8b", "compressed with gzip; decompress it with gunzip"),
    (rb"\xfd7zXZ", "compressed with xz; decompress it with unxz"),
    (rb"\x28\xb5\x2f\xfd", "compressed with zstd; decompress it with unzstd"),
    (rb"\x89HDF", f"an HDF5 file, not a torch file; {SAVE_AGAIN}"),
    (rb"\x93NUMPY", f"a numpy array, not a state dict; {SAVE_AGAIN}"),
)
"""First bytes of other files that are mistaken for weights, and the message for each."""


def _check_head(head: bytes, size: int, path: Path | str) -> None:
    if size == 0:
        raise ValueError(f"{path} is empty; {_COPY_AGAIN}")
    for pattern, kind in _OTHER_FILES:
        if re.match(pattern, head, re.IGNORECASE):
            raise ValueError(f"{path} is {kind}")
    if not any(head):
        raise ValueError(f"{path} begins with zeros, as after a power cut; {_COPY_AGAIN}")


def _is_safetensors(head: bytes, size: int) -> bool:
    header = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= header <= size - 8


def _load_safetensors(file: BinaryIO, path: Path | str) -> dict[str, Tensor]:
    try:
        # The library checks the header's length, offsets and sizes against the number of bytes.
        return safetensors.torch.load(file.read())
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is a damaged safetensors file ({_first_line(error)}); {_COPY_AGAIN}"
        ) from error


def _check_zip(file: BinaryIO, size: int, path: Path | str, *, compare: bool) -> None:
    """Reject an archive that is damaged or expands in memory.

    compare: Also verify its checksums, which torch does not do.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = [each.filename for each in entries]
            if any(name.endswith("/constants.pkl") for name in names):
                raise ValueError(
                    f"{path} is a TorchScript archive, which contains code; {SAVE_AGAIN}"
                )
            if not any(name.endswith("/data.pkl") for name in names):
                raise ValueError(f"{path} is a zip archive, but not of torch.save; {SAVE_AGAIN}")
            is_compressed = any(each.compress_type != zipfile.ZIP_STORED for each in entries)
            if is_compressed or sum(each.file_size for each in entries) > size:
                raise ValueError(
                    f"{path} expands when it is unpacked, which files of torch.save do not; "
                    f"{SAVE_AGAIN}"
                )
            # torch can write archives without checksums; all checksums are then 0.
            if compare and any(each.CRC for each in entries):
                damaged = archive.testzip()
                if damaged is not None:
                    raise ValueError(f"{path} is damaged in its member {damaged}; {_COPY_AGAIN}")
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{path} is truncated or damaged ({_first_line(error)}); {_COPY_AGAIN}"
        ) from error


def _unreadable(error: Exception, file: BinaryIO, head: bytes, path: Path | str) -> str:
    """Return the error message for a file that torch rejects."""
    refused = re.search(r"GLOBAL (\S+)", str(error))
    content = _pickle_in(file)
    unsafe = refused[1] if refused else _first_unsafe_global(content)
    if unsafe is not None:
        return (
            f"{path} is a pickle that would execute {unsafe:.80}; code in files is not executed; "
            f"{SAVE_AGAIN}"
        )
    if isinstance(error, EOFError) or "unexpected EOF" in str(error):
        return f"{path} is truncated; {_COPY_AGAIN}"
    content.seek(0)
    start = content.read(2)
    if len(start) == 2 and start[0] == 0x80 and start[1] > 2:
        return (
            f"{path} is a pickle of protocol {start[1]}, which is not supported; {SAVE_AGAIN}, "
            "which uses protocol 2"
        )
    if head.startswith((b"\x80", b"PK")):
        return f"{path} is damaged ({_first_line(error)}); {_COPY_AGAIN}"
    return f"{path} is neither a torch.save nor a safetensors file; {SAVE_AGAIN}"


_SAFE_NAMES = re.compile(
    r"torch\._utils\._rebuild\w+|torch\.\w*Storage|torch\.storage\.\w+|collections\.OrderedDict|"
    r"_codecs\.encode|(numpy|argparse|pathlib|types)\..*"
)
"""Names in a pickle that cannot be the reason for its rejection."""


def _pickle_in(file: BinaryIO) -> BinaryIO:
    """Return the pickle in a file of torch.save: the file itself unless it is a zip archive."""
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            (name,) = (each for each in archive.namelist() if each.endswith("/data.pkl"))
            return io.BytesIO(archive.read(name))
    except (zipfile.BadZipFile, ValueError):
        return file


def _first_unsafe_global(content: BinaryIO) -> str | None:
    """Return the first name in a pickle that is not in ``_SAFE_NAMES``; nothing is executed."""
    content.seek(0)
    texts: list[str] = []
    memo: list[str] = []
    # Iteration ends with the pickle, or at damaged bytes.
    with suppress(ValueError, IndexError, MemoryError, OverflowError):
        for operation, argument, _ in pickletools.genops(content):
            if operation.name == "MEMOIZE":
                memo.append(texts[-1] if texts else "")
            elif operation.name in ("BINGET", "LONG_BINGET"):
                texts.append(memo[int(argument or 0)] if memo else "")
            elif operation.name in ("GLOBAL", "STACK_GLOBAL"):
                name = argument.replace(" ", ".") if argument else ".".join(texts[-2:])
                if not _SAFE_NAMES.fullmatch(name):
                    return name
                texts.append("")
            elif operation.name not in ("PROTO", "FRAME", "MARK"):
                texts.append(argument if isinstance(argument, str) else "")
            del texts[:-4]
    return None


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return f"{text.splitlines()[0]:.160}"


# --- The digest ----------------------------------------------------------------------------------

_END_OF_ARCHIVE = b"PK\x05\x06"
_PREFIX = b"sha256="
_N_COMMENT = len(_PREFIX) + 64
_LENGTH = _N_COMMENT.to_bytes(2, "little")
_NO_COMMENT = b"\x00\x00"
_N_END = 22 + _N_COMMENT
_BLOCK_BYTES = 1 << 20


def with_digest(archive: bytes) -> bytes:
    """Return an archive of ``torch.save`` with its SHA-256 as the comment.

    Raises:
        ValueError: If it is not an archive, or already has a comment.
    """
    if archive[-22:-18] != _END_OF_ARCHIVE or archive[-2:] != _NO_COMMENT:
        raise ValueError(
            f"expected a zip archive without a comment, got {len(archive)} other bytes"
        )
    digest = hashlib.sha256(archive).hexdigest()
    return archive[:-2] + _LENGTH + _PREFIX + digest.encode()


def matches_digest(file: BinaryIO | bytes) -> bool | None:
    """Return whether a file is unchanged since it was written; None if it contains no digest.

    Any single flipped bit gives False, including one in the digest itself.

    Args:
        file: The content, or a seekable file, whose position is at its end afterwards.

    Raises:
        OSError: If it cannot be read.
    """
    if isinstance(file, bytes):
        file = io.BytesIO(file)
    n = file.seek(0, io.SEEK_END)
    if n < _N_END:
        return None
    file.seek(n - _N_END)
    end = file.read(_N_END)
    marks = end[:4] == _END_OF_ARCHIVE, end[20:22] == _LENGTH, end[22:29] == _PREFIX
    if sum(marks) < 2:  # One of them may be damaged.
        return None
    file.seek(0)
    digest = hashlib.sha256()
    remaining = n - _N_COMMENT - 2
    while remaining > 0 and (block := file.read(min(remaining, _BLOCK_BYTES))):
        digest.update(block)
        remaining -= len(block)
    digest.update(_NO_COMMENT)
    return all(marks) and end[29:] == digest.hexdigest().encode()


# --- Stand-ins for what harmless checkpoints contain ----------------------------------------------


class _UnsupportedContent(ValueError):
    """Raised by a stand-in; its message names the unsupported content."""


class NumpyDtype:
    """Stand-in for a dtype of plain numbers or text, as a pickle builds it."""

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"b1|[iufc]\d{1,2}|[SU]\d{1,6}", code):
            raise _UnsupportedContent(
                f"numpy values of dtype {reprlib.repr(code)}, which are not read"
            )
        self._code, self._order = code, "="

    def __setstate__(self, state: object) -> None:
        """Set the byte order."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise _UnsupportedContent("a damaged numpy dtype")
        self._order = state[1]

    def dtype(self) -> np.dtype[Any]:
        """Return the numpy dtype."""
        try:
            return np.dtype(self._order + self._code)
        except TypeError as error:
            raise _UnsupportedContent(
                f"a numpy dtype {self._code!r}, which does not exist"
            ) from error


class NumpyArray(np.ndarray[Any, Any]):
    """Stand-in for an array as a pickle builds it: empty first, then filled from bytes."""

    def __new__(cls, *_: object) -> "NumpyArray":
        """Return an empty array, whatever size a file requests."""
        return super().__new__(cls, (0,), np.int8)

    def __setstate__(self, state: object) -> None:
        """Set shape, dtype and bytes; an array of objects is rejected."""
        if (
            not isinstance(state, tuple)
            or len(state) != 5
            or not isinstance(state[1], tuple)
            or not all(type(side) is int and side >= 0 for side in state[1])
            or not isinstance(state[2], NumpyDtype)
        ):
            raise _UnsupportedContent("a damaged numpy array")
        _, shape, kind, is_fortran, content = state
        dtype, data = kind.dtype(), _bytes(content)
        if math.prod(shape) * dtype.itemsize != len(data):
            raise _UnsupportedContent("a numpy array whose shape does not match its bytes")
        super().__setstate__((1, shape, dtype, bool(is_fortran), data))  # type: ignore[arg-type]


def _reconstruct(*_: object) -> NumpyArray:
    return NumpyArray()


def _scalar(kind: object, content: object = b"") -> object:
    if not isinstance(kind, NumpyDtype):
        raise _UnsupportedContent("a damaged numpy scalar")
    dtype, data = kind.dtype(), _bytes(content)
    if dtype.itemsize != len(data) or not data:
        raise _UnsupportedContent("a numpy scalar whose dtype does not match its bytes")
    values: NDArray[Any] = np.frombuffer(data, dtype)
    return values[0]


def _bytes(content: object) -> bytes:
    if isinstance(content, str):  # Written by Python 2.
        try:
            return content.encode("latin1")
        except UnicodeEncodeError as error:
            raise _UnsupportedContent("damaged numpy values") from error
    if not isinstance(content, bytes):
        raise _UnsupportedContent("numpy values that are objects, which are not supported")
    return content


def _empty_bytes() -> bytes:
    """Stand in for ``bytes``, with which protocol 2 writes an empty value."""
    return b""


class _Version(str):
    """Stand-in for the version of torch."""

    def __new__(cls, text: object = "") -> "_Version":
        if not isinstance(text, str):
            raise _UnsupportedContent("a damaged version of torch")
        return super().__new__(cls, text)


def _posix_path(*parts: str) -> pathlib.PurePosixPath:
    return pathlib.PurePosixPath(*parts)


def _windows_path(*parts: str) -> pathlib.PureWindowsPath:
    return pathlib.PureWindowsPath(*parts)


def _stand_ins() -> Iterator[tuple[Callable[..., Any], str]]:
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        yield _scalar, f"{module}.scalar"
        yield _reconstruct, f"{module}._reconstruct"
    yield _empty_bytes, "builtins.bytes"
    yield NumpyDtype, "numpy.dtype"
    yield NumpyArray, "numpy.ndarray"
    yield argparse.Namespace, "argparse.Namespace"
    yield types.SimpleNamespace, "types.SimpleNamespace"
    for module in ("pathlib", "pathlib._local"):  # The second is Python 3.13's.
        for name in ("PosixPath", "PurePosixPath"):
            yield _posix_path, f"{module}.{name}"
        for name in ("WindowsPath", "PureWindowsPath"):
            yield _windows_path, f"{module}.{name}"
    yield _Version, "torch.torch_version.TorchVersion"


@contextmanager
def _safe_globals_only() -> Iterator[None]:
    """Make ``torch.load`` accept the stand-ins only, not what other libraries have allowed."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        torch.serialization.add_safe_globals(list(_stand_ins()))
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)
