"""The same batches as a `webdataset.DataPipeline`, for stages of one's own in between."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from pipelines.errors import PipelineError
from pipelines.loading.decode import UnreadablePictureError, decode_picture
from pipelines.loading.loaders import MixingSet, mixing_pictures
from pipelines.loading.order import EpochOrder, batch_places, count_batches, training_batches
from pipelines.loading.preparation import IMAGENET, Preparation
from pipelines.loading.samples import BadSampleError, ShardReader
from pipelines.shards.format import ShardSet
from pipelines.shards.remote import Remote, open_set
from pipelines.system.ranks import World, find_world
from pixmix.draws import draw_resized_crop
from pixmix.fused import mix_batch
from pixmix.packed import PackedPictures
from pixmix.resizing import resized_crop

Sample = dict[str, Any]
Stage = Callable[[Iterable[Sample]], Iterator[Sample]]


def pixmix_stream(
    shards: str | Path | ShardSet,
    mixing_set: MixingSet | None = None,
    *stages: Stage,
    batch_size: int,
    seed: int = 0,
    epoch: int = 0,
    consumed: int = 0,
    preparation: Preparation = IMAGENET,
    rank: int | None = None,
    world_size: int | None = None,
    window: int | None = None,
    lanes: int = 1,
    cache_dir: str | Path | None = None,
    remote: Remote | None = None,
) -> webdataset.DataPipeline:
    """Return an epoch as a pipeline: read and crop, stages of the caller's, PixMix, batches.

    Without stages the batches are those of `train_loader`, and so they are from
    `DataLoader(stream, batch_size=None, num_workers=...)` for any number of workers.

        def mirrored(samples):
            for sample in samples:
                yield sample | {"image": sample["image"][::-1]}

        stream = pixmix_stream("shards/train", "shards/mixing", mirrored, batch_size=256)

    Args:
        shards: as those of `train_loader`.
        mixing_set: as that of `train_loader`.
        *stages: get samples and give samples, one for one: "image" is (H, W, 3) uint8, cropped;
            "cls" the label; "__key__", "__url__", "__index__" and "__epoch__" say which it is. All
            images must keep one size.
        batch_size: of all processes together; a multiple of world_size.
        seed: any whole number.
        epoch: 0 .. 2^32 - 1; a pipeline is for one epoch.
        consumed: samples of the epoch that all processes together have seen already; a multiple of
            lanes.
        preparation: crop ("resized"), PixMix and normalisation.
        rank: of this process; None to find it out, as `train_loader` does.
        world_size: number of processes; None likewise.
        window: shards that are shuffled with each other at a time, in each lane; None for all.
        lanes: as those of `train_loader`.
        cache_dir: of memory maps and remote shards; see `open_mixing_set`.
        remote: how remote shards are read; None for the defaults.

    Returns:
        A pipeline of (images, labels); `len()` of its first stage is the number of its batches.

    Raises:
        PipelineError: if shards or mixing set cannot be read; when iterated, for a bad sample.
        ValueError: for numbers out of range, or a batch that cannot be shared equally.
    """
    if preparation.crop != "resized" or preparation.image_size is None:
        raise ValueError(
            f"preparation.crop is {preparation.crop!r}; a stream decodes pictures of any size: "
            "give one with crop='resized', or use train_loader for pictures in memory"
        )
    opened = open_set(shards, cache_dir=cache_dir, remote=remote)
    reader = ShardReader(opened.shards, opened.files.path)
    pictures = (
        None
        if preparation.pixmix is None
        else mixing_pictures(
            mixing_set, preparation, preparation.image_size, cache_dir=cache_dir, remote=remote
        )
    )
    samples = PlannedSamples(
        reader,
        batch_size=batch_size,
        seed=seed,
        epoch=epoch,
        consumed=consumed,
        world=find_world(rank, world_size),
        window=window,
        lanes=lanes,
    )
    mix = partial(
        _mixed,
        mixing_set=pictures,
        preparation=preparation,
        seed=seed,
        share=samples.share,
    )
    return webdataset.DataPipeline(
        samples, partial(_cropped, preparation=preparation, seed=seed), *stages, mix
    )


class PlannedSamples(IterableDataset[Sample]):
    """The samples of a rank in the order of the plan, as webdataset has them: files as bytes.

    Of the workers of a `DataLoader` each takes every so many-th batch.
    """

    def __init__(
        self,
        reader: ShardReader,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        consumed: int,
        world: World,
        window: int | None,
        lanes: int = 1,
    ) -> None:
        super().__init__()
        places = batch_places(batch_size, rank=world.rank, world_size=world.size, lanes=lanes)
        if consumed % lanes != 0:
            raise ValueError(
                f"consumed is {consumed}, and batches of {lanes} lanes end at multiples of "
                f"{lanes}; give a multiple"
            )
        self.share = len(places)
        self._reader = reader
        self._batch_size, self._seed, self._epoch = batch_size, seed, epoch
        self._consumed, self._world = consumed, world
        self._window, self._lanes = window, lanes

    def __len__(self) -> int:
        """Return the number of batches that they make, the same on every rank."""
        return count_batches(len(self._reader.shards), self._batch_size, self._consumed)

    def __iter__(self) -> Iterator[Sample]:
        """Give the samples: "jpg" or the like, "cls", and which it is."""
        shards = self._reader.shards
        order = EpochOrder(
            len(shards),
            seed=self._seed,
            epoch=self._epoch,
            shard_sizes=[shard.n_samples for shard in shards.shards],
            window=self._window,
            lanes=self._lanes,
        )
        batches = training_batches(
            order,
            batch_size=self._batch_size,
            rank=self._world.rank,
            world_size=self._world.size,
            consumed=self._consumed,
            lanes=self._lanes,
        )
        worker = get_worker_info()
        mine, of = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for t, (_, indices) in enumerate(batches):
            if t % of == mine:
                for i in indices.tolist():
                    yield self._sample(i)

    def _sample(self, i: int) -> Sample:
        shards = self._reader.shards
        row = shards.samples[i]
        try:
            content = bytes(self._reader.read(i))
        except BadSampleError as error:
            raise PipelineError(str(error)) from error
        return {
            "__key__": self._reader.key(i),
            "__url__": shards.shards[int(row["shard"])].file,
            "__index__": i,
            "__epoch__": self._epoch,
            "picture": content,
            "cls": int(row["label"]),
        }


def _cropped(samples: Iterable[Sample], *, preparation: Preparation, seed: int) -> Iterator[Sample]:
    """Decode, and cut out and resize a random part."""
    side = preparation.image_size or 0
    for sample in samples:
        try:
            picture = decode_picture(sample.pop("picture"))
        except UnreadablePictureError as error:
            raise PipelineError(f"key {sample['__key__']} in {sample['__url__']}: {error}") from (
                error
            )
        part = draw_resized_crop(
            sample["__index__"],
            seed=seed,
            epoch=sample["__epoch__"],
            size=(picture.shape[0], picture.shape[1]),
            scale=preparation.scale,
            ratio=preparation.ratio,
        )
        yield sample | {"image": resized_crop(picture, *part, (side, side))}


def _mixed(
    samples: Iterable[Mapping[str, Any]],
    *,
    mixing_set: PackedPictures | None,
    preparation: Preparation,
    seed: int,
    share: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Flip, mix and normalise, a batch at a time."""
    batch: list[Mapping[str, Any]] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == share:
            yield _mix(batch, mixing_set, preparation, seed)
            batch = []
    if batch:
        raise PipelineError(
            f"the stages left {len(batch)} of the last {share} samples of a batch; give a sample "
            "for each, or batches of your own from PlannedSamples"
        )


def _mix(
    batch: list[Mapping[str, Any]],
    mixing_set: PackedPictures | None,
    preparation: Preparation,
    seed: int,
) -> tuple[Tensor, Tensor]:
    images = mix_batch(
        np.stack([sample["image"] for sample in batch]),
        mixing_set,
        [sample["__index__"] for sample in batch],
        seed=seed,
        epoch=batch[0]["__epoch__"],
        settings=preparation.pixmix,
        flip=preparation.flip,
        mean=preparation.mean,
        std=preparation.std,
        dtype=preparation.dtype,
    )
    return images, torch.tensor([sample["cls"] for sample in batch])
