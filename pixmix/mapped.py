"""Arrays in memory maps, sent to other processes as the name of their file."""

import errno
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_NO_MAPS = frozenset({errno.EINVAL, errno.ENODEV, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES})
"""What mmap raises on file systems that cannot do it, as some FUSE, 9p and network shares."""

MOST_BYTES_READ = 2**30
"""A larger file that cannot be mapped is refused: each process would have a copy of its own."""


def open_map(
    path: str | Path,
    dtype: np.dtype[Any] | type[np.generic],
    mode: Literal["r", "c"],
    *,
    offset: int = 0,
    shape: tuple[int, ...],
) -> NDArray[Any]:
    """Return an array in a file, memory-mapped, or read where the file system maps no files.

    Args:
        path: the file.
        dtype: of the array.
        mode: "r", read-only, or "c", with writes that nobody else sees.
        offset: bytes before the array.
        shape: of the array.

    Raises:
        OSError: if the file cannot be read, or can neither be mapped nor is small enough to be
            read; `filename` and `strerror` say which and why.
        ValueError: if the file is shorter.
    """
    dtype = np.dtype(dtype)
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes == 0:  # No mapping has length 0.
        return np.empty(shape, dtype)
    try:
        return np.asarray(np.memmap(path, dtype, mode, offset, shape))
    except OSError as error:
        # An open file is there and may be read, so what failed is the mapping.
        if error.errno not in _NO_MAPS or not os.access(path, os.R_OK):
            raise
        if n_bytes > MOST_BYTES_READ:
            raise OSError(
                error.errno,
                f"its file system cannot map files into memory ({error.strerror}), and its "
                f"{n_bytes:,} bytes are too many to be read by every process; copy it to a local "
                "disk",
                str(path),
            ) from error
    array = np.fromfile(path, dtype, math.prod(shape), offset=offset).reshape(shape)
    array.flags.writeable = mode == "c"
    return array


@dataclass(frozen=True)
class MapName:
    """What another process needs to map an array again; small to pickle."""

    filename: str
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def open(self, mode: Literal["r", "c"]) -> NDArray[Any]:
        """Map the file again; see `open_map`.

        Raises:
            OSError: if the file cannot be read any more.
        """
        return open_map(self.filename, self.dtype, mode, offset=self.offset, shape=self.shape)


def map_name(array: NDArray[Any]) -> MapName | None:
    """Return the name of the memory map that an array is all of, or None where it is none.

    A map of a file without a name counts as none, and so does that of a file that was removed
    since, as where a cache is emptied: what it held is still here.
    """
    base: Any = array
    # To the map itself: a part of one is a np.memmap, too, and has the offset of the whole.
    while isinstance(base, np.ndarray) and isinstance(base.base, np.ndarray):
        base = base.base
    if not isinstance(base, np.memmap) or base.filename is None or base.nbytes != array.nbytes:
        return None
    if not Path(base.filename).exists():
        return None
    return MapName(str(base.filename), base.offset, array.dtype, array.shape)
