"""Make batches from the samples of a dataset."""

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.datasets import dataset_of_kind
from pipelines.errors import PipelineError
from pipelines.loading.config import (
    CIFAR,
    IMAGENET,
    DataSource,
    LoaderConfig,
    MixingSet,
    PreprocessConfig,
)
from pipelines.loading.dataset import (
    MapSamples,
    Pixels,
    SampleError,
    Samples,
    ShardDataset,
)
from pipelines.loading.mixing_set import open_images, open_mixing_set, uniform_view
from pipelines.loading.order import EpochOrder, Request, positions_after
from pipelines.shards.format import ShardSet
from pipelines.shards.remote import RemoteFiles, RemoteShards, open_set
from pixmix.draws import draw_resized_crop
from pixmix.fused import mix_batch
from pixmix.images import PackedImages
from pixmix.resizing import resize_part, resized_center

_log = logging.getLogger(__name__)

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]

_SMALL_SIDE = 64
"""Pixels. Images up to this side get the recipe of CIFAR if no preprocessing is set."""


class Batch(NamedTuple):
    """A batch as a worker returns it.

    Attributes:
        images: (n, 3, H, W), or (n, views, 3, H, W).
        labels: (n,) int64.
        present: (n,) bool, whether a row holds a sample.
        errors: decode errors of the batch.
        fault: error message in place of a batch; None for a valid batch.
    """

    images: Tensor
    labels: Tensor
    present: NDArray[np.bool_]
    errors: tuple[SampleError, ...] = ()
    fault: str | None = None


class DecodeErrorCounter:
    """Counts and logs samples that cannot be decoded, and raises an error above a limit."""

    def __init__(self, config: LoaderConfig) -> None:
        """Start with no errors."""
        self.counts: Counter[str] = Counter()
        self._limit, self._file = config.max_decode_errors, config.decode_error_log

    def check(self, batch: Batch) -> None:
        """Count the errors of a batch.

        Raises:
            PipelineError: if the batch has a fault, or there are too many errors.
        """
        if batch.fault is not None:
            raise PipelineError(batch.fault)
        for error in batch.errors:
            self._add(error)

    def _add(self, error: SampleError) -> None:
        if not self.counts:
            _log.warning("%s; continuing without this sample, and counting further ones", error)
        self.counts[error.reason] += 1
        if self._file is not None:
            with Path(self._file).open("a", encoding="utf-8") as file:
                file.write(json.dumps(error.record()) + "\n")
        total = self.counts.total()
        if total > self._limit:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.counts.most_common())
            raise PipelineError(
                f"{total} samples cannot be decoded ({reasons}), more than max_decode_errors "
                f"{self._limit} (pixmix-train: --max-decode-errors); the last one: {error}. Run "
                "pixmix-shard verify"
            )


@dataclass(kw_only=True)
class BatchMaker:
    """Makes batches of a dataset in any process; it can be pickled.

    Attributes:
        samples: the dataset.
        config: settings of the loader.
        preprocess: preprocessing of the images.
        size: height and width of a sample in a batch, in pixels.
        mixing_set: the mixing images, or None.
        training: whether images are cropped at random, flipped and mixed; otherwise their center is
            cropped.
        in_memory: all images, (N, H, W, 3) uint8, and labels, (N,) int64, if they are in memory.
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
        """Leave out the order, which is computed again."""
        return self.__dict__ | {"_order": None}

    def make(self, request: Request, allocate: Allocate | None = None) -> Batch:
        """Return a batch.

        Args:
            request: the samples.
            allocate: returns a tensor of a shape and dtype for the images; None for a new tensor.

        Raises:
            SampleError: if a sample cannot be decoded and on_decode_error is "raise".
            PipelineError: for any other error.
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
        """Mix and normalize cropped images; see `mix_batch`."""
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
        """Write the crop of a sample to `out`, (H, W, 3) uint8, and return its label.

        The crop is random in training, and the center otherwise.
        """
        image, label = self.samples[i]
        if self.preprocess.crop == "padded":
            if image.shape != out.shape:
                raise PipelineError(
                    f"sample {i} of {self.samples.name} is {image.shape[1]}x{image.shape[0]} "
                    f"(width x height), and the first sample {out.shape[1]}x{out.shape[0]}; "
                    "crop='padded' needs images of one size: use a PreprocessConfig with "
                    "crop='resized'"
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
        """Write the next sample of the order that can be decoded; return its index and label.

        It is of the same partition, if possible, because its shards are on this node.
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
        raise PipelineError("no sample of the dataset can be decoded; run pixmix-shard verify")

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


def open_batch_maker(
    data: DataSource, mixing_set: MixingSet | None, config: LoaderConfig, *, training: bool
) -> tuple[BatchMaker, RemoteFiles | None]:
    """Open dataset and mixing set; return the batch maker, and the files of a dataset of shards.

    Raises:
        PipelineError: if dataset or mixing set cannot be read, or do not fit the settings.
        ValueError: if settings do not fit the dataset.
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
            f"the images of {samples.name} are {size[0]}x{size[1]} (height x width), but "
            f"image_size is {side}; leave it out, or use a PreprocessConfig with crop='resized'"
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
    """Return `CIFAR` for a dataset of small images, and `IMAGENET` for any other."""
    if isinstance(samples, ShardDataset):
        dataset = dataset_of_kind(samples.shards.kind)
        return CIFAR if dataset is not None and dataset.images == "small" else IMAGENET
    return CIFAR if max(_first_size(samples)) <= _SMALL_SIDE else IMAGENET


def _first_size(samples: Samples) -> tuple[int, int]:
    """Return the height and width of the first image, in pixels."""
    try:
        height, width, _ = samples[0][0].shape
    except SampleError as error:
        raise PipelineError(
            f"{error}; the loader reads the size of this image, so replace it"
        ) from error
    return height, width


def _decode_all(opened: RemoteShards, config: LoaderConfig) -> tuple[Pixels, NDArray[np.int64]]:
    """Return all images and labels of shards; the images are one memory map per node."""
    if config.on_decode_error != "raise":
        raise ValueError(
            f"on_decode_error is {config.on_decode_error!r}, but crop='padded' decodes all images "
            "before the first batch; use 'raise', or a PreprocessConfig with crop='resized'"
        )
    images = uniform_view(open_images(opened, cache_dir=config.cache_dir))
    if images is None:
        raise PipelineError(
            f"the images of {opened.shards.location} differ in size, but crop='padded' needs one "
            "size; use a PreprocessConfig with crop='resized', such as IMAGENET"
        )
    return images, opened.shards.samples["label"].astype(np.int64)
