"""Arrays in memory maps, sent to other processes as the name of their file."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class MapName:
    """What another process needs to map an array again; small to pickle."""

    filename: str
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def open(self, mode: Literal["r", "c"]) -> NDArray[Any]:
        """Map the file: "r", read-only, or "c", with writes that nobody else sees.

        Raises:
            OSError: if the file cannot be read any more.
        """
        mapping = np.memmap(self.filename, self.dtype, mode, self.offset, self.shape)
        return np.asarray(mapping)


def map_name(array: NDArray[Any]) -> MapName | None:
    """Return the name of the memory map that an array is all of, or None where it is none."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and base.nbytes == array.nbytes:
            return MapName(str(base.filename), base.offset, array.dtype, array.shape)
        base = base.base
    return None
