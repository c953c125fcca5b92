"""The pictures of a source as lines on disk, of which any process reads those that it needs."""

import hashlib
import json
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from pipelines.shards.sources import Item
from pipelines.system.files import new_file, open_regular

STARTS_SUFFIX = ".starts.npy"


class Listing:
    """The items of a source by number; lines of JSON and where each begins, both memory-mapped."""

    def __init__(self, path: Path) -> None:
        self._starts = np.load(path.with_name(path.name + STARTS_SUFFIX))
        self._lines: mmap.mmap | bytes
        with open_regular(path) as file:
            try:
                self._lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError:
                # A file system without shared mappings.
                self._lines = file.read()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Item:
        return Item(**json.loads(self._line(index)))

    def _line(self, index: int) -> bytes:
        return self._lines[int(self._starts[index]) : int(self._starts[index + 1])]

    def fingerprint(self, indices: Iterable[int]) -> str:
        """Return a hash of some items: their numbers, names, sizes and when they were changed.

        What was made from them is to be made again when it differs.
        """
        digest = hashlib.sha256()
        for index in indices:
            digest.update(b"%d " % index + self._line(index))
        return digest.hexdigest()


@dataclass(frozen=True)
class Listed:
    """What was listed.

    n: how many items there are.
    sha256: of all that the shards depend on but the files' contents: names, sizes, labels.
    dated_sha256: of that and the times when contents were changed.
    """

    n: int
    sha256: str
    dated_sha256: str


def write_listing(path: Path, items: Iterable[Item]) -> Listed:
    """Write the items of a source, at least one.

    Raises:
        OSError: if the disk is full.
    """
    lengths: list[int] = []
    undated, dated = hashlib.sha256(), hashlib.sha256()

    def lines() -> Iterator[bytes]:
        for item in items:
            document = asdict(item)
            changed = document.pop("changed")
            same = json.dumps(document, separators=(",", ":")).encode()
            undated.update(same + b"\n")
            dated.update(same + b" %d\n" % changed[0])
            line = b'%s,"changed":[%d,%d]}\n' % (same[:-1], *changed)
            lengths.append(len(line))
            yield line

    with new_file(path) as file:
        file.writelines(lines())
    starts = np.fromiter(accumulate(lengths, initial=0), np.int64, len(lengths) + 1)
    with new_file(path.with_name(path.name + STARTS_SUFFIX)) as file:
        np.save(file, starts)
    return Listed(len(lengths), undated.hexdigest(), dated.hexdigest())


def first_difference(before: Listing, now: Listing) -> str | None:
    """Return the name of the first item that was changed, added or removed, or None."""
    for index in range(min(len(before), len(now))):
        one, other = before[index], now[index]
        # Of the times only that of the content: another link to a file changes the other, too.
        if (one.name, one.size, one.changed[0]) != (other.name, other.size, other.changed[0]):
            return one.name
    if len(before) == len(now):
        return None
    longer = max(before, now, key=len)
    return longer[min(len(before), len(now))].name
