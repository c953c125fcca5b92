"""The batches of a loader as a `webdataset.DataPipeline`, to which users can add stages."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import webdataset
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from pipelines.errors import PipelineError
from pipelines.loading.batches import BatchMaker, open_batch_maker
from pipelines.loading.config import DataSource, LoaderConfig, MixingSet
from pipelines.loading.dataset import SampleError, ShardDataset
from pipelines.loading.order import batch_positions, count_batches, training_batches
from pipelines.system.ranks import find_world

Sample = dict[str, Any]
Stage = Callable[[Iterable[Sample]], Iterator[Sample]]


def pixmix_stream(
    data: DataSource,
    mixing_set: MixingSet | None = None,
    *stages: Stage,
    config: LoaderConfig,
    epoch: int = 0,
    consumed: int = 0,
) -> webdataset.DataPipeline:
    """Return an epoch of PixMix batches as a ``webdataset.DataPipeline``.

    The pipeline decodes and crops samples, passes them through the stages, and then flips, mixes,
    normalizes and batches them. Without stages the batches are those of ``train_loader``. They do
    not depend on the number of workers of
    ``DataLoader(stream, batch_size=None, num_workers=...)``.

    Example::

        def invert(samples):
            for sample in samples:
                yield sample | {"image": 255 - sample["image"]}

        config = LoaderConfig(batch_size=256)
        stream = pixmix_stream("shards/train", "mixing-set", invert, config=config)
        for images, labels in stream:
            ...

    Args:
        data: dataset, as for ``train_loader``.
        mixing_set: mixing images, as for ``train_loader``.
        *stages: functions that map an iterator of samples to an iterator of as many samples. A
            sample is a dict: "image" is the crop, (H, W, 3) uint8, and "cls" the label. "__key__",
            "__url__", "__index__" and "__epoch__" identify it. All images must keep one size.
        config: settings of the loader; the crop must be "resized". The policy for samples that
            cannot be decoded is always "raise", and num_workers is that of the ``DataLoader``.
        epoch: 0 .. 2^32 - 1; a pipeline is for one epoch.
        consumed: samples of the epoch that were used in all processes together; a multiple of
            shard_partitions.

    Returns:
        A pipeline of pairs (images, labels). ``len()`` of its first stage is the number of batches.

    Raises:
        PipelineError: if dataset or mixing set cannot be read; in the iteration, if a sample cannot
            be decoded.
        ValueError: if a value is outside its range, or the batch cannot be divided equally.
    """
    if config.preprocess is not None and config.preprocess.crop != "resized":
        raise ValueError(
            f"preprocess.crop is {config.preprocess.crop!r}, which pixmix_stream does not support; "
            "use crop='resized', or train_loader"
        )
    maker, _ = open_batch_maker(data, mixing_set, config, training=True)
    samples = PlannedSamples(maker, epoch=epoch, consumed=consumed)
    return webdataset.DataPipeline(
        samples, *stages, partial(_mixed, maker=maker, share=samples.share, epoch=epoch)
    )


class PlannedSamples(IterableDataset[Sample]):
    """The cropped samples of a rank in their order, as dicts with the keys of webdataset.

    Each of the n workers of a `DataLoader` yields every n-th batch.

    Attributes:
        share: number of samples of this rank in a batch.
    """

    def __init__(self, maker: BatchMaker, *, epoch: int, consumed: int) -> None:
        super().__init__()
        config = maker.config
        self._world = find_world(config.rank, config.world_size)
        positions = batch_positions(
            config.batch_size, rank=self._world.rank, world_size=self._world.size,
            shard_partitions=config.shard_partitions, consumed=consumed,
        )  # fmt: skip
        self.share = len(positions)
        self._maker, self._epoch, self._consumed = maker, epoch, consumed

    def __len__(self) -> int:
        """Return the number of batches, the same on every rank."""
        return count_batches(
            len(self._maker.samples), self._maker.config.batch_size, self._consumed
        )

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples."""
        batches = training_batches(
            self._maker.order(self._epoch),
            batch_size=self._maker.config.batch_size,
            rank=self._world.rank,
            world_size=self._world.size,
            shard_partitions=self._maker.config.shard_partitions,
            consumed=self._consumed,
        )
        worker = get_worker_info()
        mine, n_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for t, (_, indices) in enumerate(batches):
            if t % n_workers == mine:
                for i in indices.tolist():
                    yield self._sample(i)

    def _sample(self, i: int) -> Sample:
        maker = self._maker
        out = np.empty((*maker.size, 3), np.uint8)
        try:
            label = maker.fill(i, self._epoch, out)
        except SampleError as error:
            raise PipelineError(f"{error}; run pixmix-shard verify") from error
        key, url = str(i), maker.samples.name
        if isinstance(maker.samples, ShardDataset):
            key, url = maker.samples.key(i), maker.samples.file(i)
        return {
            "__key__": key, "__url__": url, "__index__": i, "__epoch__": self._epoch,
            "image": out, "cls": label,
        }  # fmt: skip


def _mixed(
    samples: Iterable[Mapping[str, Any]], *, maker: BatchMaker, share: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Flip, mix and normalize samples in batches."""
    batch: list[Mapping[str, Any]] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == share:
            images = np.stack([each["image"] for each in batch])
            indices = np.array([each["__index__"] for each in batch], np.int64)
            yield maker.mix(images, indices, epoch), torch.tensor([each["cls"] for each in batch])
            batch = []
    if batch:
        raise PipelineError(
            f"the stages yield only {len(batch)} of the last {share} samples of a batch; yield one "
            "sample for each, or make batches from PlannedSamples"
        )
