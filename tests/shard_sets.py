"""Small sharded datasets for tests, written with plain tarfile."""

import io
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.shards.format import SAMPLE, Shard, write_index
from pipelines.system.files import file_sha256


def encoded(image: NDArray[np.uint8], extension: str = "png") -> bytes:
    """Return an image as a lossless PNG, or as a JPEG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG" if extension == "png" else "JPEG", quality=95)
    return file.getvalue()


def drawn_images(
    n: int, seed: int = 0, size: tuple[int, int] | None = None
) -> list[NDArray[np.uint8]]:
    """Return images of a gradient and noise; without `size` each has its own size."""
    generator = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        height, width = size or generator.integers(20, 60, 2)
        ramp = np.linspace(0, 200, height)[:, None, None] + np.linspace(0, 50, width)[:, None]
        noise = generator.integers(-20, 20, (height, width, 3))
        images.append(np.clip(ramp * generator.random(3) + noise, 0, 255).astype(np.uint8))
    return images


def write_shards(
    folder: Path,
    contents: Sequence[bytes],
    *,
    sizes: Sequence[int],
    kind: str = "imagefolder",
    extension: str = "png",
) -> Path:
    """Write a set whose sample i has label i % 7; `sizes` are the numbers of samples per shard."""
    assert sum(sizes) == len(contents)
    folder.mkdir(parents=True, exist_ok=True)
    rows, shards, i = [], [], 0
    for number, size in enumerate(sizes):
        path = folder / f"set-{number:04}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for _ in range(size):
                info = tarfile.TarInfo(f"{i:08}.{extension}")
                info.size = len(contents[i])
                rows.append((number, info.size, tar.offset + 512, i % 7))
                tar.addfile(info, io.BytesIO(contents[i]))
                label = tarfile.TarInfo(f"{i:08}.cls")
                label.size = 1
                tar.addfile(label, io.BytesIO(str(i % 7).encode()))
                i += 1
        shards.append(
            Shard(
                file=path.name,
                n_samples=size,
                n_bytes=path.stat().st_size,
                sha256=file_sha256(path),
            )
        )
    write_index(
        folder,
        name="set",
        kind=kind,
        shards=shards,
        samples=np.array(rows, SAMPLE),
        classes=[f"class {label}" for label in range(7)],
        extensions=[extension],
        settings={},
        versions={},
    )
    return folder


def run_here(
    work: Callable[[range], range],
    chunks: Iterable[range],
    *,
    jobs: int,  # noqa: ARG001  one process for any number of jobs
    finished: Callable[[range], None],
) -> None:
    """Run chunks of work in this process, as `run_chunks` does in other processes."""
    for chunk in chunks:
        finished(work(chunk))
