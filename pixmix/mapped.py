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
    """Return the name of the memory map that an array is all of, or None where it is none.

    A map of a file without a name counts as none.
    """
    base: Any = array
    # To the map itself: a part of one is a np.memmap, too, and has the offset of the whole.
    while isinstance(base, np.ndarray) and isinstance(base.base, np.ndarray):
        base = base.base
    if not isinstance(base, np.memmap) or base.filename is None or base.nbytes != array.nbytes:
        return None
    return MapName(str(base.filename), base.offset, array.dtype, array.shape)
