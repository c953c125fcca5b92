"""Painters for the tests of sets: quick, and able to run into trouble at a given picture."""

import errno
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.generate.painted_shards import ShardedRequest
from pipelines.generate.painting import Painted
from pipelines.generate.sets import SetRequest
from pipelines.shards.output import OutputStore


@dataclass(frozen=True, kw_only=True)
class Stripes:
    """Paints stripes, another angle and colour for each seed and index.

    offset: changes the pictures without changing the settings, as a bug in a renderer would.
    version: the version that is recorded.
    pause: seconds a picture; journal: a folder for a note (the process id) of each painting.
    trouble, trouble_at: what happens at which picture, as long as the file `until` is absent.
    """

    seed: int = 0
    height: int = 20
    width: int = 36
    offset: int = 0
    version: int = 1
    pause: float = 0.0
    journal: Path | None = None
    trouble: str = ""
    trouble_at: int = -1
    until: Path | None = None

    def paint(self, pictures: range) -> Iterator[Painted]:
        return map(self._paint, pictures)

    def _paint(self, index: int) -> Painted:
        if index == self.trouble_at and not (self.until and self.until.exists()):
            self._run_into_trouble()
        if self.journal is not None:
            with (self.journal / f"{index}").open("a") as note:
                note.write(f"{os.getpid()}\n")
        time.sleep(self.pause)
        record = {"seed": self.seed, "angle": index}
        return Painted(self.repaint(record), record, 1 + index % 3)

    def picture(self, index: int) -> np.ndarray:
        return self._paint(index).picture

    def repaint(self, record: Mapping[str, Any]) -> np.ndarray:
        row, column = np.mgrid[: self.height, : self.width]
        angle = record["angle"]
        wave = np.sin(0.3 * (row * np.cos(angle) + column * np.sin(angle))) * 60
        hue = np.array([angle % 7, angle % 5, self.seed % 3]) * 10 + 70 + self.offset
        return (wave[..., np.newaxis] + hue).astype(np.uint8)

    def kind(self) -> str:
        return "stripes"

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed, "height": self.height, "width": self.width}

    def licence(self) -> str:
        return "CC0-1.0"

    def versions(self) -> dict[str, Any]:
        return {"stripes_version": self.version}

    def _run_into_trouble(self) -> None:
        if self.trouble == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trouble == "memory":
            raise MemoryError
        if self.trouble == "disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise ValueError("a mistake in the painter")


def request(folder: Path, painter: Stripes | None = None, **changes: Any) -> SetRequest:  # noqa: ANN401
    """Return the request for a small set of stripes, 10 pictures in chunks of 4."""
    settings = {"n": 10, "chunk": 4, "format": "png", "jobs": 1} | changes
    return SetRequest(folder=folder, painter=painter or Stripes(), **settings)


def sharded(place: OutputStore, painter: Stripes | None = None, **changes: Any) -> ShardedRequest:  # noqa: ANN401
    """Return the request for a small set of stripes in shards, 10 pictures, 3 a shard at most."""
    settings = {"n": 10, "chunk": 2, "shard_size": 3, "format": "png", "name": "stripes"} | changes
    return ShardedRequest(place=place, painter=painter or Stripes(), **settings)


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file under a folder: relative path -> bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
