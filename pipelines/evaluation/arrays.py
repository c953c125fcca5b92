"""NumPy arrays and text files of evaluation sets, read without trusting them.

Nothing that a file holds is executed, only regular files are opened, and a header's sizes are
compared with the file's before memory is asked for.
"""

import math
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.system.files import open_regular, read_regular

GET_AGAIN = "get it again"
"""What to do about a damaged file that others distribute."""

_MOST_HEADER = 10_000
"""Bytes of a header: that of an array of pixels or of labels has about a hundred."""
_MOST_LABELS = 1 << 30
_MOST_TEXT = 1 << 24


class _Header(NamedTuple):
    """What a .npy file says of its array, and where that begins, bytes."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran: bool
    offset: int


def open_array(path: Path, remedy: str = GET_AGAIN) -> NDArray[np.generic]:
    """Map an array of a .npy file into memory, read-only, without reading it.

    Args:
        path: the file, of which symbolic links are followed.
        remedy: what to do about another file, for the end of the error.

    Raises:
        PipelineError: if it is not a regular file that holds one whole array of plain numbers.
    """
    try:
        with open_regular(path) as file:
            header = _read_header(file, path, remedy)
            if math.prod(header.shape) == 0:
                return np.empty(header.shape, header.dtype)
            return np.memmap(
                file, header.dtype, "r", header.offset, header.shape,
                order="F" if header.fortran else "C",
            )  # fmt: skip
    except OSError as error:
        raise PipelineError(
            f"{path} cannot be read: {error.strerror or error}; {remedy}"
        ) from error


def read_labels(path: Path, remedy: str = GET_AGAIN) -> NDArray[np.int64]:
    """Return the whole numbers of a .npy file, (n,) int64; see `open_array`.

    Raises:
        PipelineError: if it holds anything else.
    """
    labels = open_array(path, remedy)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.nbytes > _MOST_LABELS:
        raise PipelineError(
            f"{path} is {labels.dtype} of shape {labels.shape}; labels are whole numbers in one "
            f"dimension; {remedy}"
        )
    if labels.dtype.kind == "u" and len(labels) and int(labels.max()) > np.iinfo(np.int64).max:
        raise PipelineError(f"{path} has a label {labels.max()}; {remedy}")
    return np.array(labels, np.int64)


def read_names(path: Path, remedy: str) -> list[str]:
    """Return the lines of a text file in UTF-8, whatever the locale is.

    Raises:
        PipelineError: if it is not a regular file of UTF-8, or too large.
    """
    try:
        return read_regular(path, max_bytes=_MOST_TEXT).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise PipelineError(
            f"{path} cannot be read: {error.strerror or error}; {remedy}"
        ) from error
    except UnicodeDecodeError as error:
        raise PipelineError(
            f"{path} is not text in UTF-8 (byte {error.start}); {remedy}"
        ) from error


def _read_header(file: BinaryIO, path: Path, remedy: str) -> _Header:
    """Read the header of a .npy file and see that its array is all there."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise ValueError(f"version {version} of the format is not read here")
        shape, fortran, dtype = readers[version](file, max_header_size=_MOST_HEADER)
    except Exception as error:
        # NumPy parses the header as a Python literal, which fails in many ways.
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise PipelineError(f"{path} is no whole array ({reason:.200}); {remedy}") from error
    if dtype.hasobject:
        raise PipelineError(
            f"{path} is no whole array (it holds pickled objects, which are not executed); {remedy}"
        )
    offset = file.tell()
    wanted = math.prod(shape) * dtype.itemsize
    there = file.seek(0, 2) - offset
    if min(shape, default=1) < 0 or there < wanted:
        raise PipelineError(
            f"{path} is no whole array (shape {shape} of {dtype} needs {wanted:,} bytes, and "
            f"{there:,} are there); {remedy}"
        )
    return _Header(dtype, shape, fortran, offset)
