"""How batches are made of samples, and the settings of preprocessing and of loaders."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.datasets import dataset_of_kind
from pipelines.errors import PipelineError
from pipelines.loading.dataset import (
    MapSamples,
    MapStyle,
    Pixels,
    SampleError,
    Samples,
    ShardDataset,
)
from pipelines.loading.image_map import OnMixingDecodeError
from pipelines.loading.mixing_set import open_images, open_mixing_set, uniform_view
from pipelines.loading.order import EpochOrder, Request, batch_positions, positions_after
from pipelines.shards.format import ShardSet
from pipelines.shards.remote import Remote, RemoteFiles, RemoteShards, open_set
from pixmix.draws import draw_resized_crop
from pixmix.fused import mix_batch
from pixmix.images import PackedImages
from pixmix.resizing import resize_part, resized_center
from pixmix.settings import PixMixSettings

Triple = tuple[float, float, float]

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]

MixingSet = PackedImages | str | Path | Sequence[str | Path]
"""What `open_mixing_set` opens, or images that are packed."""

Data = str | Path | ShardSet | RemoteShards | MapStyle
"""Shards (a folder, tars as a pattern with {0000..1023}, either at an address, or an open set), or
a map-style dataset."""

OnDecodeError = Literal["raise", "substitute", "skip"]
ON_DECODE_ERROR: tuple[OnDecodeError, ...] = ("raise", "substitute", "skip")

_SMALL_SIDE = 64
"""Pixels. Images up to this size are cropped as CIFAR's, if no preprocessing is passed."""


_IMAGENET_PIXMIX = PixMixSettings(k=4, beta=4, severity=1)


def _check_least(config: object, name: str, least: int, what: str) -> None:
    value = getattr(config, name)
    if value is not None and value < least:
        raise ValueError(f"{name} is {value}; use {what}, {least} or more")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How images are cropped, mixed and normalized; sizes in pixels.

    Attributes:
        crop: "resized": a random part of each image, resized (ImageNet); images of any size are
            decoded when they are needed. "padded": images of one size, padded with black and
            cropped to their size again (CIFAR); those of shards are held in memory.
        image_size: side of the square that the network gets; None: that of the images ("padded").
        padding: of "padded"; None: an eighth of the side, 4 for CIFAR.
        scale: of "resized": the least and the largest share of the area that is cropped.
        ratio: of "resized": the least and the largest width over height.
        evaluation_resize: the shorter side before the center crop of evaluation ("resized").
        mixing_size: the shorter side of the mixing images; None: image_size plus its padding, or
            8/7 of it for "resized" (36 for 32, 256 for 224).
        plain_first: whether the first of several views is the image unmixed, as in AugMix.
        flip: whether half of the training images are flipped.
        pixmix: the settings of PixMix, or None to train without it.
        mean: of red, green and blue, in [0, 1]; subtracted first.
        std: divides after that.
        dtype: of the batches, float32, float16 or bfloat16.

    Source of the defaults: the released code, github.com/andyzoujm/pixmix at f867e87.
    """

    crop: Literal["resized", "padded"] = "resized"
    image_size: int | None = 224
    padding: int | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    evaluation_resize: int | None = None
    mixing_size: int | None = None
    plain_first: bool = False
    flip: bool = True
    pixmix: PixMixSettings | None = _IMAGENET_PIXMIX
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Refuse nonsense.

        Raises:
            ValueError: if a value is outside its range.
        """
        if self.crop not in ("resized", "padded"):
            raise ValueError(f"crop is {self.crop!r}; use 'resized' or 'padded'")
        if self.image_size is None and self.crop == "resized":
            raise ValueError("image_size is None; use a side in pixels, as 224, to resize to")
        for name in ("image_size", "evaluation_resize", "mixing_size"):
            _check_least(self, name, 1, "a number of pixels")
        _check_least(self, "padding", 0, "a number of pixels")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"scale is {self.scale}; use the least and the largest share of an image's area, "
                "above 0 and up to 1"
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(
                f"ratio is {self.ratio}; use the least and the largest width over height"
            )
        if self.crop == "resized" and self.resized_side < (self.image_size or 0):
            raise ValueError(
                f"evaluation_resize is {self.evaluation_resize} and image_size {self.image_size}; "
                "the center is cropped from the resized image: use at least image_size"
            )

    @property
    def resized_side(self) -> int:
        """The shorter side of an evaluation image before its center crop ("resized")."""
        return self.evaluation_resize or (self.image_size or 0) * 8 // 7

    def padding_of(self, side: int) -> int:
        """Return the padding of images of a side ("padded")."""
        return side // 8 if self.padding is None else self.padding

    def mixing_side(self, side: int) -> int:
        """Return the shorter side of mixing images for images of a side."""
        if self.mixing_size is not None:
            return self.mixing_size
        return side * 8 // 7 if self.crop == "resized" else side + self.padding_of(side)


IMAGENET = PreprocessConfig()
"""The paper's recipe for ImageNet."""

CIFAR = PreprocessConfig(
    crop="padded",
    image_size=None,
    pixmix=PixMixSettings(k=4, beta=3, severity=3),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
"""The paper's recipe for CIFAR-10 and CIFAR-100."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """The settings of a loader.

    Attributes:
        batch_size: global batch size, summed over all processes; a multiple of world_size.
        seed: any whole number.
        preprocess: crop, PixMix and normalization; None: the paper's recipe for the dataset,
            `CIFAR` for shards of CIFAR and digits and for other datasets whose first image is at
            most 64 pixels a side, `IMAGENET` for all others.
        image_size: side in pixels, in place of that of preprocess.
        views: number of independent views of PixMix of each sample; None for one, without an axis.
        rank: of this process; None: that of torch.distributed, or of the environment.
        world_size: number of processes; None: found in the same way.
        num_workers: processes that decode; shards of small images are held in memory and need none.
        n_threads: threads that mix a batch, in each process that makes batches.
        shuffle_window: number of shards that are shuffled together, in each partition; None for
            all. A node needs about that many shards at a time.
        shard_partitions: parts of the shards of which each batch takes equally many samples, so
            that of as many nodes each downloads its part of the dataset; divides batch_size.
            Batches depend on it, and not on the number of nodes.
        on_decode_error: what to do about a sample that cannot be read or decoded: "raise";
            "substitute" the next sample of the order that can; or "skip" it, which makes a batch
            smaller. Shards that are held in memory are decoded before the first batch and allow
            "raise" alone; evaluation does not allow "substitute".
        max_decode_errors: number of such samples on a rank above which an error is raised.
        decode_error_log: file that gets a line of JSON for each such sample.
        on_mixing_decode_error: the same for the mixing set; see `open_mixing_set`.
        cache_dir: folder of memory maps and remote shards; see `open_mixing_set`.
        remote: how remote shards are read; None for the defaults.
        pin_memory: whether batches are in pinned memory; None: where there is a CUDA device.
        multiprocessing_context: how workers start: "fork", "spawn" or "forkserver"; None: torch's
            default.
    """

    batch_size: int
    seed: int = 0
    preprocess: PreprocessConfig | None = None
    image_size: int | None = None
    views: int | None = None
    rank: int | None = None
    world_size: int | None = None
    num_workers: int = 0
    n_threads: int = 1
    shuffle_window: int | None = None
    shard_partitions: int = 1
    on_decode_error: OnDecodeError = "raise"
    max_decode_errors: int = 100
    decode_error_log: str | Path | None = None
    on_mixing_decode_error: OnMixingDecodeError = "raise"
    cache_dir: str | Path | None = None
    remote: Remote | None = None
    pin_memory: bool | None = None
    multiprocessing_context: str | None = None

    def __post_init__(self) -> None:
        """Refuse nonsense.

        Raises:
            ValueError: if a value is outside its range.
        """
        at_least_1 = ("batch_size", "views", "n_threads", "shuffle_window", "shard_partitions")
        at_least_0 = ("num_workers", "max_decode_errors")
        for name in (*at_least_1, *at_least_0, "seed"):
            # Numbers of numpy become Python's, as which they can be saved.
            if getattr(self, name) is not None:
                object.__setattr__(self, name, operator.index(getattr(self, name)))
        for name in at_least_1:
            _check_least(self, name, 1, "a whole number")
        for name in at_least_0:
            _check_least(self, name, 0, "a whole number")
        batch_positions(
            self.batch_size, rank=0, world_size=1, shard_partitions=self.shard_partitions
        )
        if self.on_decode_error not in ON_DECODE_ERROR:
            raise ValueError(
                f"on_decode_error is {self.on_decode_error!r}; use one of "
                f"{', '.join(ON_DECODE_ERROR)}"
            )


class Batch(NamedTuple):
    """A batch as a worker hands it over.

    images: (n, 3, H, W), or (n, views, 3, H, W); labels: (n,) int64; present: (n,) bool, which
    rows hold a sample. errors: of decoding. fault: why there is no batch, or None.
    """

    images: Tensor
    labels: Tensor
    present: NDArray[np.bool_]
    errors: tuple[SampleError, ...] = ()
    fault: str | None = None


@dataclass(kw_only=True)
class BatchMaker:
    """Makes batches of a dataset, in any process; it can be pickled.

    Attributes:
        samples: the dataset.
        config: of the loader.
        preprocess: of the images.
        size: height and width of a sample in a batch, pixels.
        mixing_set: the mixing images, or None.
        training: whether images are cropped at random, flipped and mixed, or their center cropped.
        in_memory: (images, labels), (N, H, W, 3) uint8 and (N,) int64, where all are in memory.
    """

    samples: Samples
    config: LoaderConfig
    preprocess: PreprocessConfig
    size: tuple[int, int]
    mixing_set: PackedImages | None
    training: bool
    in_memory: tuple[Pixels, NDArray[np.int64]] | None = None
    _order: tuple[int, EpochOrder] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the order, which is made again."""
        return self.__dict__ | {"_order": None}

    def make(self, request: Request, allocate: Allocate | None = None) -> Batch:
        """Return a batch.

        Args:
            request: the samples.
            allocate: returns the tensor of a shape and dtype that the images are written to; None
                for a new tensor.

        Raises:
            SampleError: if a sample cannot be decoded and on_decode_error is "raise".
            PipelineError: if there is no batch for another reason.
        """
        indices = np.array(request.indices, np.int64)
        n = len(indices)
        present = np.ones(n, np.bool_)
        errors: list[SampleError] = []
        if self.in_memory is not None:
            images, all_labels = self.in_memory
            pixels, labels = images[indices], all_labels[indices]
        else:
            pixels, labels = np.empty((n, *self.size, 3), np.uint8), np.zeros(n, np.int64)
            for row in range(n):
                try:
                    labels[row] = self.fill(int(indices[row]), request.epoch, pixels[row])
                except SampleError as error:
                    if self.config.on_decode_error == "raise":
                        raise
                    errors.append(error)
                    if self.config.on_decode_error == "skip":
                        present[row], pixels[row] = False, 0
                    else:
                        indices[row], labels[row] = self._substitute(
                            request, row, pixels[row], errors
                        )
        if self.training and not present.all():
            pixels, indices, labels = pixels[present], indices[present], labels[present]
            present = present[present]
        out = None
        if allocate is not None and len(pixels):
            out = allocate(self.shape(len(pixels)), self.preprocess.dtype)
        batch = self.mix(pixels, indices, request.epoch, out)
        return Batch(batch, torch.from_numpy(labels), present, tuple(errors))

    def mix(
        self, pixels: Pixels, indices: NDArray[np.int64], epoch: int, out: Tensor | None = None
    ) -> Tensor:
        """Return cropped images mixed and normalized; see `mix_batch`."""
        preprocess, training = self.preprocess, self.training
        padded = training and preprocess.crop == "padded"
        return mix_batch(
            pixels,
            self.mixing_set,
            indices,
            seed=self.config.seed,
            epoch=epoch,
            settings=preprocess.pixmix if training else None,
            flip=preprocess.flip and training,
            padding=preprocess.padding_of(max(self.size)) if padded else 0,
            crop=self.size,
            mean=preprocess.mean,
            std=preprocess.std,
            views=self.config.views,
            plain_first=preprocess.plain_first and training,
            dtype=preprocess.dtype,
            n_threads=self.config.n_threads,
            out=out,
        )

    def shape(self, n: int) -> tuple[int, ...]:
        """Return the shape of a batch of n samples."""
        views = () if self.config.views is None else (self.config.views,)
        return (n, *views, 3, *self.size)

    def fill(self, i: int, epoch: int, out: Pixels) -> int:
        """Write the crop of a sample, (H, W, 3) uint8, and return its label.

        The crop is random for training, and of the center otherwise.
        """
        image, label = self.samples[i]
        if self.preprocess.crop == "padded":
            if image.shape != out.shape:
                raise PipelineError(
                    f"sample {i} of {self.samples.name} is {image.shape[1]}x{image.shape[0]} "
                    f"(width x height) and the first {out.shape[1]}x{out.shape[0]}; a 'padded' "
                    "crop needs images of one size: use a PreprocessConfig with crop='resized'"
                )
            out[:] = image
        elif not self.training:
            out[:] = resized_center(image, self.preprocess.resized_side, self.size)
        else:
            part = draw_resized_crop(
                i,
                seed=self.config.seed,
                epoch=epoch,
                size=(image.shape[0], image.shape[1]),
                scale=self.preprocess.scale,
                ratio=self.preprocess.ratio,
            )
            resize_part(image, *part, *self.size, 0, 0, out)
        return label

    def _substitute(
        self, request: Request, row: int, out: Pixels, errors: list[SampleError]
    ) -> tuple[int, int]:
        """Write the next sample of the order that can be decoded, and return index and label.

        It is the next of the same partition, whose shards are on this node.
        """
        if self._order is None or self._order[0] != request.epoch:
            self._order = (request.epoch, self.order(request.epoch))
        order = self._order[1]
        for position in positions_after(
            int(request.positions[row]), len(order), self.config.shard_partitions
        ):
            i = int(order[np.array([position])][0])
            try:
                return i, self.fill(i, request.epoch, out)
            except SampleError as error:
                errors.append(error)
        raise PipelineError("no sample of the set can be decoded; run pixmix-shard verify")

    def order(self, epoch: int) -> EpochOrder:
        """Return the order of an epoch."""
        return EpochOrder(
            len(self.samples),
            seed=self.config.seed,
            epoch=epoch,
            shard_sizes=self.samples.shard_sizes,
            shuffle_window=self.config.shuffle_window,
            shard_partitions=self.config.shard_partitions,
        )


def open_maker(
    data: Data, mixing_set: MixingSet | None, config: LoaderConfig, *, training: bool
) -> tuple[BatchMaker, RemoteFiles | None]:
    """Open dataset and mixing set; return what makes batches, and the files of shards.

    Raises:
        PipelineError: if dataset or mixing set cannot be read or do not fit.
        ValueError: for settings that do not fit the dataset.
    """
    opened: RemoteShards | None = None
    samples: Samples
    if isinstance(data, str | Path | ShardSet | RemoteShards):
        opened = open_set(data, cache_dir=config.cache_dir, remote=config.remote)
        samples = ShardDataset(opened.shards, opened.files.path)
    else:
        samples = MapSamples(data)
    if len(samples) == 0:
        raise PipelineError(f"{samples.name} has no samples; there is nothing to load")
    preprocess = config.preprocess or _default_preprocess(samples)
    if config.image_size is not None:
        preprocess = replace(preprocess, image_size=config.image_size)
    in_memory = None
    if preprocess.crop == "padded" and opened is not None:
        in_memory = _decode_all(opened, config)
        size = in_memory[0].shape[1:3]
    elif preprocess.crop == "padded":
        size = _first_size(samples)
    else:
        size = (preprocess.image_size or 0,) * 2
    side = preprocess.image_size
    if side is not None and size != (side, side):
        raise PipelineError(
            f"the images of {samples.name} are {size[0]}x{size[1]} (height x width) and image_size "
            f"is {side}; leave it out, or pass a PreprocessConfig with "
            "crop='resized', which resizes"
        )
    mixing_images = _open_mixing_set(mixing_set, config, preprocess, size) if training else None
    maker = BatchMaker(
        samples=samples, config=config, preprocess=preprocess, size=size,
        mixing_set=mixing_images, training=training, in_memory=in_memory,
    )  # fmt: skip
    return maker, None if opened is None else opened.files


def _open_mixing_set(
    mixing_set: MixingSet | None,
    config: LoaderConfig,
    preprocess: PreprocessConfig,
    size: tuple[int, int],
) -> PackedImages | None:
    if mixing_set is None or preprocess.pixmix is None:
        return None
    if isinstance(mixing_set, PackedImages):
        return mixing_set
    return open_mixing_set(
        mixing_set,
        preprocess.mixing_side(max(size)),
        cache_dir=config.cache_dir,
        remote=config.remote,
        on_decode_error=config.on_mixing_decode_error,
    )


def _default_preprocess(samples: Samples) -> PreprocessConfig:
    """Return the paper's recipe for small images, or for those of any size."""
    if isinstance(samples, ShardDataset):
        dataset = dataset_of_kind(samples.shards.kind)
        return CIFAR if dataset is not None and dataset.images == "small" else IMAGENET
    return CIFAR if max(_first_size(samples)) <= _SMALL_SIDE else IMAGENET


def _first_size(samples: Samples) -> tuple[int, int]:
    """Return height and width of the first image, pixels."""
    try:
        height, width, _ = samples[0][0].shape
    except SampleError as error:
        raise PipelineError(f"{error}; its size says how images are cropped") from error
    return height, width


def _decode_all(opened: RemoteShards, config: LoaderConfig) -> tuple[Pixels, NDArray[np.int64]]:
    """Return all images and labels of shards, as one memory map a node."""
    if config.on_decode_error != "raise":
        raise ValueError(
            f"on_decode_error is {config.on_decode_error!r}, and a 'padded' crop decodes all "
            "images before the first batch; use 'raise', or a PreprocessConfig with crop='resized'"
        )
    images = uniform_view(open_images(opened, cache_dir=config.cache_dir))
    if images is None:
        raise PipelineError(
            f"the images of {opened.shards.location} have several sizes, and a 'padded' crop needs "
            "one; pass a PreprocessConfig with crop='resized', such as IMAGENET"
        )
    return images, opened.shards.samples["label"].astype(np.int64)
