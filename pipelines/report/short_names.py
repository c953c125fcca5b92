"""Short names that tell files or folders from each other."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.system.files import printable


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of paths, as few of them as tell the paths from each other.

    A path is named by where it leads: "." by the name of its folder. Bytes that are not UTF-8 are
    escaped: names are drawn, and written into files.
    """
    whole = [Path(printable(str(path.resolve()))) for path in paths]
    for parts in range(1, 8):
        names = [printable("/".join(path.parts[-parts:])) for path in whole]
        if len(set(names)) == len(names):
            return names
    return [printable(str(path)) for path in paths]
