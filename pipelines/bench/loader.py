"""The loaders: pictures a second from shards to batches, beside a plain data set of torchvision."""

import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

from pipelines.bench.comparison import (
    OURS,
    Comparison,
    Findings,
    Ticks,
    count_runs,
    run_comparisons,
)
from pipelines.bench.plain_loader import PlainCifar, PlainImageNet
from pipelines.bench.results import Goal, Rival, Row
from pipelines.bench.startup import measure_startup
from pipelines.bench.threads import one_thread
from pipelines.bench.timing import Clock, Contender, Spread
from pipelines.errors import PipelineError
from pipelines.loading.decode import UnreadablePictureError, decode_picture
from pipelines.loading.loaders import train_loader
from pipelines.loading.preparation import CIFAR, IMAGENET
from pipelines.shards.index import SAMPLE, write_index
from pipelines.shards.tars import NoTarError, end_tar, scan_tar, write_member
from pipelines.shards.verify import describe_tar
from pipelines.system.progress import Progress, no_progress
from pixmix.draws import draw_resized_crop
from pixmix.packed import PackedPictures
from pixmix.resizing import resized_crop

PLAIN = "plain torchvision + Pillow"
PLAIN_IN_MEMORY = "plain torchvision + Pillow, mixing set in memory"
DECODE = "decoding alone"
ONE_WORKER = "one worker"
PACKAGES = ("numpy", "numba", "pillow", "torch", "torchvision", "simplejpeg")

_BATCH = 50
_CIFAR_BATCH = 500
_TIMES_FOR_WORKERS = 6
_PLAIN_CIFAR_SAMPLES = 1000
_MILLION = 1e6


@dataclass(frozen=True, kw_only=True)
class LoaderBenchSettings:
    """How much is run.

    rounds: that count, of each comparison. pictures: a tar of JPEGs to load; None to draw some.
    n_drawn: how many are drawn. n_small: samples of the CIFAR-like set. n_index: samples of the
    set whose start is timed.
    """

    rounds: int = 7
    pictures: Path | None = None
    n_drawn: int = 100
    n_small: int = 50_000
    n_index: int = 1_281_167

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        for name in ("rounds", "n_drawn", "n_small", "n_index"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")


def bench_loader(
    settings: LoaderBenchSettings,
    *,
    progress: Progress = no_progress,
    clock: Clock = time.perf_counter,
) -> list[Row]:
    """Run all benchmarks of the loaders, one thread each, and return a row for each.

    Args:
        settings: how much is run.
        progress: called with how many runs of a contender are done and how many there are.
        clock: what the comparisons are timed with.

    Raises:
        PipelineError: if the pictures cannot be read.
    """
    with (
        one_thread(),
        tempfile.TemporaryDirectory(prefix="pixmix-bench-") as folder,
        _case(settings, Path(folder)) as case,
    ):
        comparisons = [
            _decode_comparison(case),
            _crop_comparison(case),
            _whole_comparison(case),
            _workers_comparison(case),
            _small_comparison(case, settings.n_small),
        ]
        ticks = Ticks(total=count_runs(comparisons, settings.rounds), progress=progress)
        rows = run_comparisons(comparisons, settings.rounds, clock, ticks)
        return [*rows, measure_startup(case.contents[0], settings.n_index, Path(folder))]


# --- what is loaded ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Case:
    """JPEGs, the same as shards, and a mixing set as files and in memory."""

    contents: list[bytes]
    shards: Path
    mixing_files: list[bytes]
    mixing_set: PackedPictures
    cache: Path

    @property
    def n(self) -> int:
        return len(self.contents) // _BATCH * _BATCH or len(self.contents)

    @property
    def batch(self) -> int:
        return min(_BATCH, len(self.contents))


@contextmanager
def _case(settings: LoaderBenchSettings, folder: Path) -> Iterator[_Case]:
    contents = (
        _drawn_jpegs(settings.n_drawn, (375, 500), 0)
        if settings.pictures is None
        else _jpegs_of(settings.pictures)
    )
    mixing_files = _drawn_jpegs(40, (512, 512), 1)
    resized = [
        np.asarray(Image.open(io.BytesIO(content)).resize((256, 256), Image.Resampling.BILINEAR))
        for content in mixing_files
    ]
    yield _Case(
        contents=contents,
        shards=write_plain_shards(folder / "shards", contents),
        mixing_files=mixing_files,
        mixing_set=PackedPictures.pack(resized),
        cache=folder / "cache",
    )


def _jpegs_of(tar_file: Path) -> list[bytes]:
    """Return the JPEGs of a tar, each of them whole.

    Raises:
        PipelineError: if it is no tar, holds none, or one is damaged.
        OSError: if it cannot be read.
    """
    jpegs = []
    try:
        members = list(scan_tar(tar_file))
    except NoTarError as error:
        raise PipelineError(f"{tar_file} is no tar of pictures; give one") from error
    with tar_file.open("rb") as file:
        for member in members:
            file.seek(member.offset)
            content = file.read(member.size)
            if not content.startswith(b"\xff\xd8"):
                continue
            try:
                decode_picture(content)
            except UnreadablePictureError as error:
                raise PipelineError(
                    f"{member.name} in {tar_file} is no readable picture ({error}); write the tar "
                    "again without it, or name another"
                ) from error
            jpegs.append(content)
    if not jpegs:
        raise PipelineError(f"{tar_file} holds no JPEG; give a tar of some")
    return jpegs


def _drawn_jpegs(n: int, size: tuple[int, int], seed: int) -> list[bytes]:
    """Return JPEGs of about the bytes of photographs: smooth forms with grain."""
    generator = np.random.default_rng(seed)
    contents = []
    for _ in range(n):
        coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC), np.int16)
        grain = generator.integers(-16, 17, (*size, 3))
        file = io.BytesIO()
        picture = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(file, "JPEG", quality=90)
        contents.append(file.getvalue())
    return contents


def quick_png(picture: NDArray[np.uint8]) -> bytes:
    """Return a picture as a PNG file, quickly packed, as benchmarks need it by the thousand."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    return file.getvalue()


def write_plain_shards(
    folder: Path, contents: Sequence[bytes], *, extension: str = "jpg", kind: str = "imagefolder"
) -> Path:
    """Write pictures as a set of one shard, their numbers as labels, and return its folder."""
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
        folder, name="bench", kind=kind, shards=[describe_tar(path, samples)], samples=samples,
        classes=[], extensions=[extension], settings={}, versions={},
    )  # fmt: skip
    return folder


# --- comparisons ---------------------------------------------------------------------------------


def _decode_comparison(case: _Case) -> Comparison:
    """Compare decoding by the loader's way with Pillow."""

    def ours(_number: int) -> float:
        for content in case.contents[: case.n]:
            decode_picture(content)
        return case.n

    def pillow(_number: int) -> float:
        for content in case.contents[: case.n]:
            with Image.open(io.BytesIO(content)) as image:
                np.asarray(image.convert("RGB"))
        return case.n

    return _stage("decode a JPEG", ours, Contender(name="Pillow", run=pillow))


def _crop_comparison(case: _Case) -> Comparison:
    """Compare the random resized crop of pictures in memory with Pillow's."""
    pictures = [decode_picture(content) for content in case.contents[:_BATCH]]
    images = [Image.fromarray(picture) for picture in pictures]

    def part(number: int, i: int) -> tuple[int, int, int, int]:
        return draw_resized_crop(
            i, seed=0, epoch=number, size=(pictures[i].shape[0], pictures[i].shape[1]),
            scale=IMAGENET.scale, ratio=IMAGENET.ratio,
        )  # fmt: skip

    def ours(number: int) -> float:
        for i, picture in enumerate(pictures):
            resized_crop(picture, *part(number, i), (224, 224))
        return len(pictures)

    def pillow(number: int) -> float:
        for i, image in enumerate(images):
            top, left, height, width = part(number, i)
            cut = image.crop((left, top, left + width, top + height))
            np.asarray(cut.resize((224, 224), Image.Resampling.BILINEAR))
        return len(images)

    return _stage("random resized crop to 224x224", ours, Contender(name="Pillow", run=pillow))


def _stage(name: str, ours: Callable[[int], float], rival: Contender) -> Comparison:
    def finish(rate: Spread, _rivals: tuple[Rival, ...]) -> Findings:
        milliseconds = 1000 / rate.median
        return Findings(
            goals=(), details={"milliseconds": milliseconds},
            remarks=(f"{milliseconds:.2f} ms a picture",),
        )  # fmt: skip

    return Comparison(
        name=name,
        unit="pictures/s",
        scale=1.0,
        contenders=(Contender(name=OURS, run=ours), rival),
        finish=finish,
    )


def _whole_comparison(case: _Case) -> Comparison:
    """Compare a whole epoch, from shards to batches, with decoding alone and plain data sets."""
    loader = train_loader(
        case.shards, case.mixing_set, batch_size=case.batch, preparation=IMAGENET,
        cache_dir=case.cache,
    )  # fmt: skip

    def ours(_number: int) -> float:
        return sum(len(images) for images, _ in loader)

    def decode(_number: int) -> float:
        for content in case.contents[: case.n]:
            decode_picture(content)
        return case.n

    def finish(rate: Spread, rivals: tuple[Rival, ...]) -> Findings:
        alone, plain = rivals[0], rivals[1]
        times = 1 / alone.ratio.median
        return Findings(
            goals=(
                Goal(
                    figure="of decoding alone", unit="x", value=times, rule="at most", bar=2.2,
                    aim=2.2,
                ),
                Goal(
                    figure="plain", unit="x", value=plain.ratio.median, rule="at least", bar=4,
                    aim=4,
                ),
            ),
            details={"milliseconds": 1000 / rate.median},
            remarks=(
                f"{1000 / rate.median:.2f} ms a sample; decoding alone "
                f"{1000 / alone.rate.median:.2f}, plain {1000 / plain.rate.median:.2f}",
            ),
        )  # fmt: skip

    return Comparison(
        name="ImageNet, shards to batches of 224x224",
        unit="samples/s",
        scale=1.0,
        contenders=(
            Contender(name=OURS, run=ours),
            Contender(name=DECODE, run=decode),
            Contender(name=PLAIN, run=_plain_imagenet(case, in_memory=False)),
            Contender(name=PLAIN_IN_MEMORY, run=_plain_imagenet(case, in_memory=True)),
        ),
        finish=finish,
    )


def _plain_imagenet(case: _Case, *, in_memory: bool) -> "_PlainRun":
    assert IMAGENET.pixmix is not None
    return _PlainRun(
        PlainImageNet(
            case.contents[: case.batch],
            case.mixing_files,
            list(case.mixing_set) if in_memory else None,
            IMAGENET.pixmix,
            size=224,
            mean=IMAGENET.mean,
            std=IMAGENET.std,
        ),
        case.batch,
    )


class _PlainRun:
    """An epoch of a plain data set by torch's own loader, in this process."""

    def __init__(self, dataset: PlainImageNet | PlainCifar, batch_size: int) -> None:
        self._loader = DataLoader(dataset, batch_size=batch_size, shuffle=True)
        self._n = len(dataset)

    def __call__(self, _number: int) -> float:
        for _ in self._loader:
            pass
        return self._n


def _workers_comparison(case: _Case) -> Comparison:
    """Compare two worker processes with one."""
    # Long epochs, for workers stand still at the end of each.
    contents = case.contents * _TIMES_FOR_WORKERS
    shards = write_plain_shards(case.shards.parent / "longer", contents)

    def epochs(num_workers: int) -> Callable[[int], float]:
        loader = train_loader(
            shards, case.mixing_set, batch_size=case.batch // 2 or 1, preparation=IMAGENET,
            num_workers=num_workers,
            cache_dir=case.cache,
        )  # fmt: skip

        def run(_number: int) -> float:
            return sum(len(images) for images, _ in loader)

        return run

    def finish(_rate: Spread, rivals: tuple[Rival, ...]) -> Findings:
        value = rivals[0].ratio.median
        goal = Goal(figure="scaling", unit="x", value=value, rule="at least", bar=1.6, aim=1.6)
        return Findings(goals=(goal,))

    return Comparison(
        name="ImageNet, two workers",
        unit="samples/s",
        scale=1.0,
        contenders=(
            Contender(name=OURS, run=epochs(2)),
            Contender(name=ONE_WORKER, run=epochs(1)),
        ),
        finish=finish,
    )


def _small_comparison(case: _Case, n: int) -> Comparison:
    """Compare an epoch of a CIFAR-like set with a plain data set, all pictures in memory."""
    generator = np.random.default_rng(2)
    coarse = generator.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    grain = generator.integers(0, 16, (n, 32, 32, 3), dtype=np.uint8)
    images: NDArray[np.uint8] = (coarse[np.arange(n) % 64] // 2 + grain).astype(np.uint8)
    mixing_set = PackedPictures.pack(
        [np.asarray(Image.fromarray(each).resize((36, 36))) for each in case.mixing_set]
    )
    batch = min(_CIFAR_BATCH, n)
    shards = write_plain_shards(
        case.shards.parent / "small", [quick_png(image) for image in images], extension="png",
        kind="cifar10",
    )  # fmt: skip
    loader = train_loader(
        shards, mixing_set, batch_size=batch, preparation=CIFAR, cache_dir=case.cache
    )
    assert CIFAR.pixmix is not None
    plain = PlainCifar(images[:_PLAIN_CIFAR_SAMPLES], list(mixing_set), CIFAR.pixmix)

    def ours(_number: int) -> float:
        return sum(len(images) for images, _ in loader)

    def finish(rate: Spread, rivals: tuple[Rival, ...]) -> Findings:
        microseconds = _MILLION / rate.median
        plain_microseconds = _MILLION / rivals[0].rate.median
        return Findings(
            goals=(
                Goal(
                    figure="a sample", unit="us", value=microseconds, rule="at most", bar=45,
                    aim=45,
                ),
                Goal(
                    figure="50,000 samples", unit="s", value=microseconds / 20, rule="at most",
                    bar=2.3, aim=2.3,
                ),
            ),
            details={"microseconds": microseconds},
            remarks=(f"{microseconds:.1f} us a sample, plain {plain_microseconds:.0f} us",),
        )  # fmt: skip

    return Comparison(
        name="CIFAR, flip, padded crop, PixMix, in batches",
        unit="samples/s",
        scale=1.0,
        contenders=(
            Contender(name=OURS, run=ours),
            Contender(name=PLAIN_IN_MEMORY, run=_PlainRun(plain, batch)),
        ),
        finish=finish,
    )
