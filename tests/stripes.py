"""A fast generator for tests of jobs, which can fail at a given image."""

import errno
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipelines.generate.generators import Generated
from pipelines.generate.products import image_job, shard_job
from pipelines.shards.job import Job, run_job
from pipelines.shards.output import OutputStore
from pipelines.system.processes import RunChunks, run_chunks
from pipelines.system.ranks import Task


@dataclass(frozen=True, kw_only=True)
class Stripes:
    """Generates stripes with an angle and colour for each seed and number.

    offset: changes the images without changing the settings, like a bug in a renderer. version: the
    recorded version. pause: seconds per image. journal: a folder for a note (the process id) per
    image. trouble, trouble_at: what fails at which image, as long as the file ``until`` does not
    exist.
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

    def generate(self, numbers: range) -> Iterator[Generated]:
        return map(self._generate, numbers)

    def _generate(self, number: int) -> Generated:
        if number == self.trouble_at and not (self.until and self.until.exists()):
            self._run_into_trouble()
        if self.journal is not None:
            with (self.journal / f"{number}").open("a") as note:
                note.write(f"{os.getpid()}\n")
        time.sleep(self.pause)
        record = {"seed": self.seed, "angle": number}
        return Generated(self.regenerate(record), record, 1 + number % 3)

    def image(self, number: int) -> np.ndarray:
        return self._generate(number).image

    def regenerate(self, record: Mapping[str, Any]) -> np.ndarray:
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

    def chunk_size(self) -> int:
        return 4

    def _run_into_trouble(self) -> None:
        if self.trouble == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trouble == "memory":
            raise MemoryError
        if self.trouble == "disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise ValueError("a mistake in the generator")


class RunResult(NamedTuple):
    """The result of a run. generated: number of images of this run; missing: numbers of items."""

    n: int
    generated: int
    n_finished: int
    missing: tuple[int, ...]
    complete: bool


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """A small dataset of stripes: 10 images, in chunks of 4, or shards of at most 3.

    where: a folder for image files, or the store of shards.
    """

    where: Path | OutputStore
    generator: Stripes = field(default_factory=Stripes)
    n: int = 10
    chunk: int = 4
    shard_size: int = 3
    name: str = "stripes"
    format: str = "png"
    jobs: int = 1
    task_index: int = 0
    num_tasks: int = 1

    def job(self) -> Job:
        settings: dict[str, Any] = {"n": self.n, "chunk": self.chunk, "format": self.format}
        if isinstance(self.where, Path):
            return image_job(self.where, self.generator, **settings)
        settings |= {"name": self.name, "shard_size": self.shard_size}
        return shard_job(self.where, self.generator, **settings)

    @property
    def folder(self) -> Path:
        assert isinstance(self.where, Path)
        return self.where

    @property
    def metadata(self) -> Path:
        return self.folder / "metadata.jsonl"

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def work(self) -> Path:
        return self.folder / ".work"

    @property
    def done(self) -> Path:
        return self.work / "done"


def make(asked: JobSpec, *, run: RunChunks = run_chunks, **options: Any) -> RunResult:  # noqa: ANN401
    """Run the job of a dataset."""
    job = asked.job()
    task = Task(asked.task_index, asked.num_tasks)
    result = run_job(job, task, jobs=asked.jobs, run=run, **options)
    return RunResult(
        n=result.n,
        generated=sum(map(job.product.weight, result.made)),
        n_finished=result.n_finished,
        missing=tuple(item for items in result.missing for item in items),
        complete=result.complete,
    )


def image_set(folder: Path, generator: Stripes | None = None, **changes: Any) -> JobSpec:  # noqa: ANN401
    """Describe a dataset of image files."""
    return JobSpec(where=folder, generator=generator or Stripes(), **changes)


def sharded(store: OutputStore, generator: Stripes | None = None, **changes: Any) -> JobSpec:  # noqa: ANN401
    """Describe a sharded dataset."""
    return JobSpec(where=store, generator=generator or Stripes(), **changes)


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file under a folder: relative path -> bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
