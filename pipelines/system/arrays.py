"""Arrays in .npy files, memory-mapped, without trusting the files.

Nothing that a file holds is executed, only regular files are opened, and a header's sizes are
compared with the file's before memory is asked for.
"""

import math
from pathlib import Path
from typing import Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.system.files import open_regular
from pixmix.images import open_map

_MOST_HEADER_BYTES = 10_000
"""The header of an array of plain numbers has about a hundred."""

_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def open_array(path: Path, remedy: str, *, name: str | None = None) -> NDArray[Any]:
    """Map the array of a .npy file into memory, read-only.

    It is read where the file system cannot map files, if it is small; see `open_map`.

    Args:
        path: the file; symbolic links are followed.
        remedy: what to do about a damaged file, for the end of the error.
        name: of the file in errors; None for its path.

    Raises:
        PipelineError: if it is not a regular file that holds one whole array of plain numbers.
    """
    name = name or str(path)
    try:
        with open_regular(path) as file:
            try:
                version = npy.read_magic(file)
                if version not in _READERS:
                    raise ValueError(f"version {version} of the format is not read here")
                shape, fortran, dtype = _READERS[version](file, max_header_size=_MOST_HEADER_BYTES)
            except Exception as error:
                # NumPy parses the header as a Python literal, which fails in many ways.
                reason = str(error).strip().split("\n")[0] or type(error).__name__
                raise PipelineError(
                    f"{name} is not a whole array ({reason:.200}); {remedy}"
                ) from error
            if dtype.hasobject:
                raise PipelineError(
                    f"{name} holds pickled objects, which are not executed; {remedy}"
                )
            offset = file.tell()
            n_bytes = file.seek(0, 2) - offset
        expected = math.prod(shape) * dtype.itemsize
        if min(shape, default=1) < 0 or n_bytes != expected:
            raise PipelineError(
                f"{name} is not a whole array (shape {shape} of {dtype} needs {expected:,} bytes, "
                f"and it has {n_bytes:,}); {remedy}"
            )
        # Private: some network file systems have no shared maps, and nothing is written.
        array = open_map(path, dtype, "c", offset=offset, shape=shape[::-1] if fortran else shape)
    except OSError as error:
        raise PipelineError(
            f"{path} cannot be read: {error.strerror or error}; {remedy}"
        ) from error
    array.flags.writeable = False
    return array.T if fortran else array
