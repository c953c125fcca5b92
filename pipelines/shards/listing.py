"""The pictures of a source as lines on disk, of which any process reads those that it needs."""

import json
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path

import numpy as np

from pipelines.shards.files import new_file
from pipelines.shards.sources import Item

STARTS_SUFFIX = ".starts.npy"


class Listing:
    """The items of a source by number; lines of JSON and where each begins, both memory-mapped."""

    def __init__(self, path: Path) -> None:
        self._starts = np.load(path.with_name(path.name + STARTS_SUFFIX), mmap_mode="r")
        with path.open("rb") as file:
            self._lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Item:
        start, stop = int(self._starts[index]), int(self._starts[index + 1])
        return Item(**json.loads(self._lines[start:stop]))


def write_listing(path: Path, items: Iterable[Item]) -> int:
    """Write the items of a source, at least one.

    Returns:
        How many there are.

    Raises:
        OSError: if the disk is full.
    """
    lengths: list[int] = []

    def lines() -> Iterator[bytes]:
        for item in items:
            line = json.dumps(asdict(item), separators=(",", ":")).encode() + b"\n"
            lengths.append(len(line))
            yield line

    with new_file(path) as file:
        file.writelines(lines())
    starts = np.fromiter(accumulate(lengths, initial=0), np.int64, len(lengths) + 1)
    with new_file(path.with_name(path.name + STARTS_SUFFIX)) as file:
        np.save(file, starts)
    return len(lengths)
