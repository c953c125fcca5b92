"""Benchmark the loaders, from shards to batches, with plain torchvision datasets."""

import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

from pipelines.bench.references import PlainDataset, imagenet_images, mixing_images_of
from pipelines.bench.timing import (
    OURS,
    Comparison,
    Contender,
    Row,
    Spread,
    Target,
    calibrate,
    one_thread,
    run_comparisons,
    variation,
    with_verdicts,
)
from pipelines.errors import PipelineError
from pipelines.loading.config import CIFAR, IMAGENET
from pipelines.loading.dataset import decode_image
from pipelines.loading.loader import train_loader
from pipelines.shards.format import BLOCK, SAMPLE, write_index
from pipelines.shards.images import DecodeError
from pipelines.shards.tar import NotATarError, end_tar, scan_tar, write_member
from pipelines.shards.verify import describe_tar
from pipelines.system.progress import Progress, no_progress
from pixmix.draws import draw_resized_crop
from pixmix.images import PackedImages
from pixmix.resizing import resized_crop

PACKAGES = ("numpy", "numba", "pillow", "torch", "torchvision", "simplejpeg")

_PLAIN = "plain torchvision + Pillow"
_PLAIN_IN_MEMORY = "plain torchvision + Pillow, mixing set in memory"
_BATCH = 50
_CIFAR_BATCH = 500
_PLAIN_CIFAR_SAMPLES = 1000
_EPOCHS_FOR_WORKERS = 6
"""Workers are idle at the end of each epoch, so it is made longer."""
_STARTS = 3
_START_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class _Case:
    """JPEGs, shards of them, and a mixing set as files and in memory."""

    contents: list[bytes]
    shards: Path
    mixing_files: list[bytes]
    mixing_set: PackedImages
    cache: Path

    @property
    def n(self) -> int:
        """Number of samples in whole batches."""
        return len(self.contents) // _BATCH * _BATCH or len(self.contents)

    @property
    def batch(self) -> int:
        return min(_BATCH, len(self.contents))


def bench_loader(
    rounds: int,
    progress: Progress = no_progress,
    *,
    images: Path | None = None,
    n_drawn: int = 100,
    n_small: int = 50_000,
    n_index: int = 1_281_167,
) -> list[Row]:
    """Time the loaders, one thread each.

    Args:
        rounds: number of counted rounds of each comparison.
        progress: called with the number of finished runs and of all runs.
        images: a tar of JPEGs to load; None for random ones.
        n_drawn: number of random JPEGs.
        n_small: size of the CIFAR-like dataset.
        n_index: size of the dataset whose first batch is timed.

    Raises:
        PipelineError: if the tar cannot be used.
    """
    with one_thread(), tempfile.TemporaryDirectory(prefix="pixmix-bench-") as name:
        folder = Path(name)
        contents = _drawn_jpegs(n_drawn, (375, 500), 0) if images is None else _jpegs_of(images)
        mixing_files = _drawn_jpegs(40, (512, 512), 1)
        small = [
            np.asarray(Image.open(io.BytesIO(each)).resize((256, 256), Image.Resampling.BILINEAR))
            for each in mixing_files
        ]
        case = _Case(
            contents=contents,
            shards=write_plain_shards(folder / "shards", contents),
            mixing_files=mixing_files,
            mixing_set=PackedImages.pack(small),
            cache=folder / "cache",
        )
        comparisons = [
            _decode_comparison(case),
            _crop_comparison(case),
            _whole_comparison(case),
            _workers_comparison(case),
            _small_comparison(case, n_small),
        ]
        rows = run_comparisons(comparisons, rounds, progress, more=1)
        return [*rows, _measure_start(case.contents[0], n_index, folder)]


def _jpegs_of(tar_file: Path) -> list[bytes]:
    """Return the JPEGs of a tar.

    Raises:
        PipelineError: if it is not a tar, contains no JPEG, or one is damaged.
        OSError: if it cannot be read.
    """
    jpegs = []
    try:
        members = list(scan_tar(tar_file))
    except NotATarError as error:
        raise PipelineError(f"{tar_file} is not a tar; pass a tar of JPEGs") from error
    with tar_file.open("rb") as file:
        for member in members:
            file.seek(member.offset)
            content = file.read(member.size)
            if not content.startswith(b"\xff\xd8"):
                continue
            try:
                decode_image(content)
            except DecodeError as error:
                raise PipelineError(
                    f"{member.name} in {tar_file} cannot be decoded ({error}); remove it from "
                    "the tar or pass another tar"
                ) from error
            jpegs.append(content)
    if not jpegs:
        raise PipelineError(f"{tar_file} contains no JPEG; pass a tar of JPEGs")
    return jpegs


def _drawn_jpegs(n: int, size: tuple[int, int], seed: int) -> list[bytes]:
    """Return JPEGs about as large as photographs: smooth shapes with grain."""
    generator = np.random.default_rng(seed)
    contents = []
    for _ in range(n):
        coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC), np.int16)
        grain = generator.integers(-16, 17, (*size, 3))
        file = io.BytesIO()
        image = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(file, "JPEG", quality=90)
        contents.append(file.getvalue())
    return contents


def quick_png(image: NDArray[np.uint8]) -> bytes:
    """Encode an image as PNG with fast compression."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def write_plain_shards(
    folder: Path, contents: Sequence[bytes], *, extension: str = "jpg", kind: str = "imagefolder"
) -> Path:
    """Write a dataset of one shard, with the numbers of images as labels; return its folder."""
    folder.mkdir(parents=True)
    rows = []
    path = folder / "bench-0000.tar"
    with path.open("xb") as tar:
        for i, content in enumerate(contents):
            offset = write_member(tar, f"{i:08}.{extension}", content)
            rows.append((0, len(content), offset, i % 1000))
        end_tar(tar)
    samples = np.array(rows, SAMPLE)
    write_index(
        folder, name="bench", kind=kind, shards=[describe_tar(path, len(samples))], samples=samples,
        classes=[], extensions=[extension], settings={}, versions={},
    )  # fmt: skip
    return folder


# --- Comparisons ---------------------------------------------------------------------------------


def _decode_comparison(case: _Case) -> Comparison:
    """Compare the loader's decoder with Pillow."""

    def pillow(_round: int) -> float:
        for content in case.contents[: case.n]:
            with Image.open(io.BytesIO(content)) as image:
                np.asarray(image.convert("RGB"))
        return case.n

    return Comparison(
        name="decode a JPEG",
        unit="images/s",
        contenders=(
            Contender(name=OURS, run=_decoding(case)),
            Contender(name="Pillow", run=pillow),
        ),
    )


def _decoding(case: _Case) -> Callable[[int], float]:
    def decode(_round: int) -> float:
        for content in case.contents[: case.n]:
            decode_image(content)
        return case.n

    return decode


def _crop_comparison(case: _Case) -> Comparison:
    """Compare random resized crops of images in memory with Pillow."""
    arrays = [decode_image(content) for content in case.contents[:_BATCH]]
    images = [Image.fromarray(array) for array in arrays]

    def region(round_index: int, i: int) -> tuple[int, int, int, int]:
        return draw_resized_crop(
            i, seed=0, epoch=round_index, size=(arrays[i].shape[0], arrays[i].shape[1]),
            scale=IMAGENET.scale, ratio=IMAGENET.ratio,
        )  # fmt: skip

    def ours(round_index: int) -> float:
        for i, array in enumerate(arrays):
            resized_crop(array, *region(round_index, i), (224, 224))
        return len(arrays)

    def pillow(round_index: int) -> float:
        for i, image in enumerate(images):
            top, left, height, width = region(round_index, i)
            crop = image.crop((left, top, left + width, top + height))
            np.asarray(crop.resize((224, 224), Image.Resampling.BILINEAR))
        return len(images)

    return Comparison(
        name="random resized crop to 224x224",
        unit="images/s",
        contenders=(Contender(name=OURS, run=ours), Contender(name="Pillow", run=pillow)),
    )


def _epoch(loader: Iterable[Any]) -> Callable[[int], float]:
    """Return a run of an epoch of any loader."""

    def run(_round: int) -> float:
        return sum(len(images) for images, _ in loader)

    return run


def _whole_comparison(case: _Case) -> Comparison:
    """Compare an epoch, from shards to batches, with decoding alone and plain datasets."""
    settings = IMAGENET.pixmix
    assert settings is not None
    loader = train_loader(
        case.shards, case.mixing_set, batch_size=case.batch, preprocess=IMAGENET,
        cache_dir=case.cache,
    )  # fmt: skip

    def plain(mixing_set: Sequence[bytes] | Sequence[NDArray[np.uint8]]) -> Callable[[int], float]:
        dataset = PlainDataset(
            imagenet_images(case.contents, 224), case.batch, mixing_images_of(mixing_set, 256),
            settings, padding=0, mean=IMAGENET.mean, std=IMAGENET.std,
        )  # fmt: skip
        return _epoch(DataLoader(dataset, batch_size=case.batch, shuffle=True))

    return Comparison(
        name="ImageNet, shards to batches of 224x224",
        unit="samples/s",
        contenders=(
            Contender(name=OURS, run=_epoch(loader)),
            Contender(name="decoding alone", run=_decoding(case)),
            Contender(name=_PLAIN, run=plain(case.mixing_files)),
            Contender(name=_PLAIN_IN_MEMORY, run=plain(list(case.mixing_set))),
        ),
        targets=(
            Target(figure="of decoding alone", unit="x", rule="at most", bar=2.2,
                   value=lambda row: 1 / row.alternatives[0].ratio.median),
            Target(figure="plain", unit="x", rule="at least", bar=4,
                   value=lambda row: row.alternatives[1].ratio.median),
        ),
    )  # fmt: skip


def _workers_comparison(case: _Case) -> Comparison:
    """Compare two worker processes with one."""
    shards = write_plain_shards(case.shards.parent / "longer", case.contents * _EPOCHS_FOR_WORKERS)

    def epochs(num_workers: int) -> Callable[[int], float]:
        return _epoch(
            train_loader(
                shards, case.mixing_set, batch_size=case.batch // 2 or 1, preprocess=IMAGENET,
                num_workers=num_workers, cache_dir=case.cache,
            )
        )  # fmt: skip

    return Comparison(
        name="ImageNet, two workers",
        unit="samples/s",
        contenders=(
            Contender(name=OURS, run=epochs(2)),
            Contender(name="one worker", run=epochs(1)),
        ),
        targets=(
            Target(figure="scaling", unit="x", rule="at least", bar=1.6,
                   value=lambda row: row.alternatives[0].ratio.median),
        ),
    )  # fmt: skip


def _small_comparison(case: _Case, n: int) -> Comparison:
    """Compare an epoch of a CIFAR-like dataset with a plain dataset, all images in memory."""
    settings = CIFAR.pixmix
    assert settings is not None
    generator = np.random.default_rng(2)
    coarse = generator.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    grain = generator.integers(0, 16, (n, 32, 32, 3), dtype=np.uint8)
    images: NDArray[np.uint8] = (coarse[np.arange(n) % 64] // 2 + grain).astype(np.uint8)
    mixing_set = PackedImages.pack(
        [np.asarray(Image.fromarray(each).resize((36, 36))) for each in case.mixing_set]
    )
    batch = min(_CIFAR_BATCH, n)
    shards = write_plain_shards(
        case.shards.parent / "small", [quick_png(image) for image in images], extension="png",
        kind="cifar10",
    )  # fmt: skip
    loader = train_loader(
        shards, mixing_set, batch_size=batch, preprocess=CIFAR, cache_dir=case.cache
    )
    plain = PlainDataset(
        images.__getitem__, min(_PLAIN_CIFAR_SAMPLES, n), mixing_images_of(list(mixing_set), 36),
        settings, padding=4, mean=(0.5,) * 3, std=(0.5,) * 3,
    )  # fmt: skip
    return Comparison(
        name="CIFAR, flip, padded crop, PixMix, in batches",
        unit="samples/s",
        contenders=(
            Contender(name=OURS, run=_epoch(loader)),
            Contender(
                name=_PLAIN_IN_MEMORY,
                run=_epoch(DataLoader(plain, batch_size=batch, shuffle=True)),
            ),
        ),
        targets=(
            Target(figure="a sample", unit="us", rule="at most", bar=45,
                   value=lambda row: 1e6 / row.rate.median),
        ),
    )  # fmt: skip


# --- The first batch of a large dataset ----------------------------------------------------------

# Runs in a new process, and prints one line of JSON.
_PROGRAM = """
import json, os, sys, time
start = time.perf_counter()
import torch
torch.set_num_threads(1)
imported = time.perf_counter()
def private():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_")) / 1024
before = private() if sys.platform == "linux" else 0.0
from pipelines.loading.loader import train_loader
loader = train_loader(sys.argv[1], batch_size=int(sys.argv[2]), cache_dir=sys.argv[3])
images, labels = next(iter(loader))
first = time.perf_counter()
after = private() if sys.platform == "linux" else 0.0
print(json.dumps({"torch": imported - start, "first": first - imported, "memory": after - before}))
"""


def _write_large_index(folder: Path, content: bytes, n: int) -> Path:
    """Write a dataset of n samples that are all the same image in a shard; return its folder."""
    folder.mkdir(parents=True)
    path = folder / "large-0000.tar"
    with path.open("xb") as tar:
        offset = write_member(tar, "00000000.jpg", content)
        end_tar(tar)
        # A hole of the size of so many headers.
        tar.truncate(max(tar.tell(), BLOCK * n))
    samples = np.zeros(n, SAMPLE)
    samples["size"], samples["offset"] = len(content), offset
    samples["label"] = np.arange(n) % 1000
    write_index(
        folder, name="large", kind="imagefolder", shards=[describe_tar(path, len(samples))],
        samples=samples, classes=[], extensions=["jpg"], settings={}, versions={},
    )  # fmt: skip
    return folder


def _measure_start(content: bytes, n: int, folder: Path) -> Row:
    """Time the start of a loader of n samples, with compiled kernels and cached files.

    A start is from the end of `import torch` to the first batch of 16.
    """
    shards = _write_large_index(folder / "large", content, n)
    calibrations, found = [calibrate()], []
    for _ in range(_STARTS + 1):
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, shards, str(_START_BATCH), folder / "cache"],
            check=True,
            capture_output=True,
        )
        found.append(json.loads(done.stdout))
        calibrations.append(calibrate())
    # The first run is a warm-up.
    median = {key: Spread.of([run[key] for run in found[1:]]).median for key in found[0]}
    row = Row(
        name=f"first batch of {n:,} samples",
        unit="starts/s",
        rate=Spread.of([1 / run["first"] for run in found[1:]]),
        calibration_variation=variation(calibrations),
        details={
            "seconds": median["first"],
            "megabytes": median["memory"],
            "import_torch_seconds": median["torch"],
        },
    )
    targets = (
        Target(figure="first batch", unit="s", rule="at most", bar=3,
               value=lambda row: row.details["seconds"]),
        Target(figure="memory above torch", unit="MB", rule="at most", bar=200,
               value=lambda row: row.details["megabytes"]),
    )  # fmt: skip
    return with_verdicts(row, targets)
