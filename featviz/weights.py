"""Files of weights, of torch.save and of safetensors: they are read, and nothing in them is run.

`torch.load(weights_only=True)` runs nothing, but it refuses what honest checkpoints hold beside
their tensors: numpy scalars (a learning rate from `np.cos`), `argparse.Namespace`, paths. Here each
of those has a stand-in of our own, so that numpy's and pathlib's code is never called with values
from a file.

A checkpoint carries its SHA-256 in itself, so that every reader sees a flipped bit: torch writes
zip archives without checking them when it reads them. The digest is the archive's comment, at the
very end of the file: torch and other readers of zip pass over it, and it stays with the file when
the file is copied or renamed.

    ... | PK 5 6, 16 bytes | length of the comment: 71 | "sha256=" and 64 hexadecimal digits

It is that of the archive without a comment, whose length is then 0.
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
        path: a regular file.

    Returns:
        The content, on the CPU: what was saved, or a dict from names to tensors for safetensors.
        numpy arrays and scalars are numpy's own, paths are pure paths.

    Raises:
        ValueError: if the content cannot be read; the message names the file, what it is, and a
            remedy.
        OSError: if it is not there, not a regular file, or the disk fails.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # A named pipe would block for ever.
        raise OSError(errno.EINVAL, "it is not a regular file; name a file of weights", str(path))
    with path.open("rb") as file:
        return load_checkpoint(file, path)


def load_checkpoint(file: BinaryIO, path: Path | str) -> Any:  # noqa: ANN401
    """Read an open file of torch.save or safetensors from its beginning.

    Args:
        file: seekable, such as `io.BytesIO` of its bytes.
        path: what messages call it.

    Returns:
        See `read_checkpoint_file`.

    Raises:
        ValueError: if the content cannot be read; see `read_checkpoint_file`.
        OSError: if the disk fails.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(512)
    file.seek(0)
    _check_head(head, size, path)
    whole = matches_digest(file)
    if whole is False:
        raise ValueError(
            f"{path} is damaged: its content does not match the SHA-256 that it carries; copy it "
            "again from where it came from, or use another checkpoint of that run"
        )
    file.seek(0)
    if _is_safetensors(head, size) or str(path).endswith(".safetensors"):
        return _load_safetensors(file, path)
    if head.startswith(b"PK"):
        _check_zip(file, size, path, compare=whole is None)
        file.seek(0)
    try:
        with _only_harmless_globals(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except _Refused as error:
        raise ValueError(f"{path} holds {error}; {SAVE_AGAIN}") from error
    except Exception as error:
        # Damage shows as errors of many kinds: of zip archives, of pickles, of tensors' sizes.
        raise ValueError(_unreadable(error, file, head, path)) from error


_OTHER_FILES = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull`"),
    (rb"\s*<(!doctype|html|head|\?xml|!--)", f"a page of HTML or XML; {_COPY_AGAIN}"),
    (rb"\x1f\x8b", "packed with gzip; unpack it with gunzip"),
    (rb"\xfd7zXZ", "packed with xz; unpack it with unxz"),
    (rb"\x28\xb5\x2f\xfd", "packed with zstd; unpack it with unzstd"),
    (rb"\x89HDF", f"a file of HDF5, not of torch; {SAVE_AGAIN}"),
    (rb"\x93NUMPY", f"an array of numpy, not a state dict; {SAVE_AGAIN}"),
)
"""How other files begin that are found under the name of one with weights."""


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
        # The library holds the header's length, its offsets and sizes against the bytes there are.
        return safetensors.torch.load(file.read())
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is a damaged file of safetensors ({_first_line(error)}); {_COPY_AGAIN}"
        ) from error


def _check_zip(file: BinaryIO, size: int, path: Path | str, *, compare: bool) -> None:
    """Refuse an archive that is damaged, or would become larger in memory than it is.

    compare: its bytes with its checksums, too, which torch itself does not do.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = [each.filename for each in entries]
            if any(name.endswith("/constants.pkl") for name in names):
                raise ValueError(f"{path} is a TorchScript archive, which is code; {SAVE_AGAIN}")
            if not any(name.endswith("/data.pkl") for name in names):
                raise ValueError(f"{path} is a zip archive, but not of torch.save; {SAVE_AGAIN}")
            packed = any(each.compress_type != zipfile.ZIP_STORED for each in entries)
            if packed or sum(each.file_size for each in entries) > size:
                raise ValueError(
                    f"{path} is a zip archive of more bytes than it has, which torch.save does not "
                    f"write; {SAVE_AGAIN}"
                )
            # torch can write archives without checksums, which are all 0 then.
            if compare and any(each.CRC for each in entries):
                damaged = archive.testzip()
                if damaged is not None:
                    raise ValueError(f"{path} is damaged in its part {damaged}; {_COPY_AGAIN}")
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{path} is cut off or damaged ({_first_line(error)}); {_COPY_AGAIN}"
        ) from error


def _unreadable(error: Exception, file: BinaryIO, head: bytes, path: Path | str) -> str:
    """Return what to say of a file that torch refuses."""
    refused = re.search(r"GLOBAL (\S+)", str(error))
    content = _pickle_in(file)
    wanted = refused[1] if refused else _wanted_global(content)
    if wanted is not None:
        return (
            f"{path} is a pickle that would run {wanted:.80}, and nothing that a file names is run "
            f"here; {SAVE_AGAIN}"
        )
    if isinstance(error, EOFError) or "unexpected EOF" in str(error):
        return f"{path} is cut off; {_COPY_AGAIN}"
    content.seek(0)
    start = content.read(2)
    if len(start) == 2 and start[0] == 0x80 and start[1] > 2:
        return (
            f"{path} is a pickle of protocol {start[1]}, which is not read here; {SAVE_AGAIN}, "
            "which takes protocol 2"
        )
    if head.startswith((b"\x80", b"PK")):
        return f"{path} is damaged ({_first_line(error)}); {_COPY_AGAIN}"
    return f"{path} is neither a file of torch.save nor of safetensors; {SAVE_AGAIN}"


_HARMLESS = re.compile(
    r"torch\._utils\._rebuild\w+|torch\.\w*Storage|torch\.storage\.\w+|collections\.OrderedDict|"
    r"_codecs\.encode|(numpy|argparse|pathlib|types)\..*"
)
"""Names in a pickle that are not what is wrong with it."""


def _pickle_in(file: BinaryIO) -> BinaryIO:
    """Return the pickle in a file of torch.save, which is the file itself where it is no zip."""
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            (name,) = (each for each in archive.namelist() if each.endswith("/data.pkl"))
            return io.BytesIO(archive.read(name))
    except (zipfile.BadZipFile, ValueError):
        return file


def _wanted_global(content: BinaryIO) -> str | None:
    """Return the first name in a pickle of any protocol that is not harmless; nothing is run."""
    content.seek(0)
    texts: list[str] = []
    memo: list[str] = []
    # It ends where the pickle does, or where it is damaged.
    with suppress(ValueError, IndexError, MemoryError, OverflowError):
        for operation, argument, _ in pickletools.genops(content):
            if operation.name == "MEMOIZE":
                memo.append(texts[-1] if texts else "")
            elif operation.name in ("BINGET", "LONG_BINGET"):
                texts.append(memo[int(argument or 0)] if memo else "")
            elif operation.name in ("GLOBAL", "STACK_GLOBAL"):
                name = argument.replace(" ", ".") if argument else ".".join(texts[-2:])
                if not _HARMLESS.fullmatch(name):
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
_PIECE = 1 << 20


def with_digest(archive: bytes) -> bytes:
    """Return an archive of `torch.save` with its SHA-256 as the comment.

    Raises:
        ValueError: if it is not an archive, or has a comment.
    """
    if archive[-22:-18] != _END_OF_ARCHIVE or archive[-2:] != _NO_COMMENT:
        raise ValueError(f"{len(archive)} bytes that are not an archive without a comment")
    digest = hashlib.sha256(archive).hexdigest()
    return archive[:-2] + _LENGTH + _PREFIX + digest.encode()


def matches_digest(file: BinaryIO | bytes) -> bool | None:
    """Return whether a file is as it was written; None if it carries no digest.

    Any single flipped bit gives False, also one in the digest itself.

    Args:
        file: the content, or a seekable file, whose position is at its end afterwards.

    Raises:
        OSError: if it cannot be read.
    """
    if isinstance(file, bytes):
        file = io.BytesIO(file)
    n = file.seek(0, io.SEEK_END)
    if n < _N_END:
        return None
    file.seek(n - _N_END)
    end = file.read(_N_END)
    marks = end[:4] == _END_OF_ARCHIVE, end[20:22] == _LENGTH, end[22:29] == _PREFIX
    if sum(marks) < 2:  # One may be damaged.
        return None
    file.seek(0)
    found = hashlib.sha256()
    left = n - _N_COMMENT - 2
    while left > 0 and (piece := file.read(min(left, _PIECE))):
        found.update(piece)
        left -= len(piece)
    found.update(_NO_COMMENT)
    return all(marks) and end[29:] == found.hexdigest().encode()


# --- Stand-ins for what honest checkpoints hold ---------------------------------------------------


class _Refused(ValueError):
    """Raised by a stand-in; says what the file holds that is not read."""


class NumpyDtype:
    """Stands for a dtype of plain numbers or text, as a pickle builds it."""

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"b1|[iufc]\d{1,2}|[SU]\d{1,6}", code):
            raise _Refused(f"numpy values of dtype {reprlib.repr(code)}, which are not read")
        self._code, self._order = code, "="

    def __setstate__(self, state: object) -> None:
        """Take the byte order."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise _Refused("a damaged numpy dtype")
        self._order = state[1]

    def dtype(self) -> np.dtype[Any]:
        """Return numpy's own dtype."""
        try:
            return np.dtype(self._order + self._code)
        except TypeError as error:
            raise _Refused(f"a numpy dtype {self._code!r}, which does not exist") from error


class NumpyArray(np.ndarray[Any, Any]):
    """An array as a pickle builds it: empty first, then filled from bytes."""

    def __new__(cls, *_: object) -> "NumpyArray":
        """Return an empty array, whatever size a file asks for."""
        return super().__new__(cls, (0,), np.int8)

    def __setstate__(self, state: object) -> None:
        """Take shape, dtype and bytes; an array of objects is refused."""
        if (
            not isinstance(state, tuple)
            or len(state) != 5
            or not isinstance(state[1], tuple)
            or not all(type(side) is int and side >= 0 for side in state[1])
            or not isinstance(state[2], NumpyDtype)
        ):
            raise _Refused("a damaged numpy array")
        _, shape, kind, is_fortran, content = state
        dtype, held = kind.dtype(), _bytes(content)
        if math.prod(shape) * dtype.itemsize != len(held):
            raise _Refused("a numpy array of another size than its bytes")
        super().__setstate__((1, shape, dtype, bool(is_fortran), held))  # type: ignore[arg-type]


def _reconstruct(*_: object) -> NumpyArray:
    return NumpyArray()


def _scalar(kind: object, content: object = b"") -> object:
    if not isinstance(kind, NumpyDtype):
        raise _Refused("a damaged numpy scalar")
    dtype, held = kind.dtype(), _bytes(content)
    if dtype.itemsize != len(held) or not held:
        raise _Refused("a numpy scalar of another size than its bytes")
    values: NDArray[Any] = np.frombuffer(held, dtype)
    return values[0]


def _bytes(content: object) -> bytes:
    if isinstance(content, str):  # As Python 2 wrote them.
        try:
            return content.encode("latin1")
        except UnicodeEncodeError as error:
            raise _Refused("damaged numpy values") from error
    if not isinstance(content, bytes):
        raise _Refused("numpy values that are objects, which are not read")
    return content


def _empty_bytes() -> bytes:
    """Stand for `bytes`, by which protocol 2 writes an empty value; others are text, encoded."""
    return b""


class _Version(str):
    """The version of torch."""

    def __new__(cls, text: object = "") -> "_Version":
        if not isinstance(text, str):
            raise _Refused("a damaged version of torch")
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
def _only_harmless_globals() -> Iterator[None]:
    """Let `torch.load` take the stand-ins, and nothing that other libraries allowed it."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        torch.serialization.add_safe_globals(list(_stand_ins()))
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)
