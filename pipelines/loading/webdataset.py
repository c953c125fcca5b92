"""The batches of a loader as a `webdataset.DataPipeline`, with room for stages of the user's."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import webdataset
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from pipelines.errors import PipelineError
from pipelines.loading.batches import BatchMaker, Data, LoaderConfig, MixingSet, open_maker
from pipelines.loading.dataset import SampleError, ShardDataset
from pipelines.loading.order import batch_positions, count_batches, training_batches
from pipelines.system.ranks import find_world

Sample = dict[str, Any]
Stage = Callable[[Iterable[Sample]], Iterator[Sample]]


def pixmix_stream(
    data: Data,
    mixing_set: MixingSet | None = None,
    *stages: Stage,
    config: LoaderConfig,
    epoch: int = 0,
    consumed: int = 0,
) -> webdataset.DataPipeline:
    """Return an epoch as a pipeline: decode and crop, stages of the user's, PixMix, batches.

    Without stages the batches are those of `train_loader`, also from
    `DataLoader(stream, batch_size=None, num_workers=...)` with any number of workers.

        def mirrored(samples):
            for sample in samples:
                yield sample | {"image": sample["image"][::-1]}

        config = LoaderConfig(batch_size=256)
        stream = pixmix_stream("shards/train", "shards/mixing", mirrored, config=config)

    Args:
        data: dataset, as that of `train_loader`.
        mixing_set: as that of `train_loader`.
        *stages: get samples and give samples, one for one: "image" is (H, W, 3) uint8, cropped;
            "cls" the label; "__key__", "__url__", "__index__" and "__epoch__" identify it. All
            images must keep one size.
        config: settings of the loader; the crop must be "resized". Samples that cannot be decoded
            raise an error, and workers are those of the `DataLoader`.
        epoch: 0 .. 2^32 - 1; a pipeline is for one epoch.
        consumed: samples of the epoch that all processes together have seen already; a multiple of
            shard_partitions.

    Returns:
        A pipeline of (images, labels); `len()` of its first stage is the number of its batches.

    Raises:
        PipelineError: if dataset or mixing set cannot be read; when iterated, for a sample that
            cannot be decoded.
        ValueError: for numbers out of range, or a batch that cannot be shared equally.
    """
    if config.preprocess is not None and config.preprocess.crop != "resized":
        raise ValueError(
            f"preprocess.crop is {config.preprocess.crop!r}; a stream decodes images of any size: "
            "use crop='resized', or train_loader for images in memory"
        )
    maker, _ = open_maker(data, mixing_set, config, training=True)
    samples = PlannedSamples(maker, epoch=epoch, consumed=consumed)
    return webdataset.DataPipeline(
        samples, *stages, partial(_mixed, maker=maker, share=samples.share, epoch=epoch)
    )


class PlannedSamples(IterableDataset[Sample]):
    """The cropped samples of a rank in their order, as webdataset names their parts.

    Each of the workers of a `DataLoader` takes every n-th batch. share: samples a batch.
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
        """Return the number of batches that they make, the same on every rank."""
        return count_batches(
            len(self._maker.samples), self._maker.config.batch_size, self._consumed
        )

    def __iter__(self) -> Iterator[Sample]:
        """Give the samples."""
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
    """Flip, mix and normalize, a batch at a time."""
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
            f"the stages left {len(batch)} of the last {share} samples of a batch; yield a sample "
            "for each, or make batches from PlannedSamples"
        )
