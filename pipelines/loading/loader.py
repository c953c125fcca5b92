"""Loaders for training and evaluation: the same batches at any world size, resumable at any step.

A training loader counts the samples that it has yielded: after a loop ends early, the next one
continues with the next batch. `state_dict` returns this position, and `load_state_dict` resumes
from it at once, at any world size.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.loading.batches import DecodeErrorCounter, open_batch_maker
from pipelines.loading.config import (
    DataSource,
    LoaderConfig,
    MixingSet,
    OnDecodeError,
    PreprocessConfig,
)
from pipelines.loading.image_map import OnMixingDecodeError
from pipelines.loading.order import (
    ORDER_VERSION,
    EpochOrder,
    Request,
    Requests,
    batch_positions,
    count_batches,
    evaluation_batches,
    rank_positions,
    training_batches,
)
from pipelines.loading.workers import open_batches
from pipelines.shards.remote import Remote
from pipelines.system.files import Count, Label
from pipelines.system.ranks import World, find_world

STATE_VERSION = 2

_log = logging.getLogger(__name__)


def train_loader(
    data: DataSource,
    mixing_set: MixingSet | None = None,
    *,
    batch_size: int,
    seed: int = 0,
    preprocess: PreprocessConfig | None = None,
    image_size: int | None = None,
    views: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    num_workers: int = 0,
    n_threads: int = 1,
    shuffle_window: int | None = None,
    shard_partitions: int = 1,
    on_decode_error: OnDecodeError = "raise",
    max_decode_errors: int = 100,
    decode_error_log: str | Path | None = None,
    on_mixing_decode_error: OnMixingDecodeError = "raise",
    cache_dir: str | Path | None = None,
    remote: Remote | None = None,
    pin_memory: bool | None = None,
    multiprocessing_context: str | None = None,
) -> "TrainLoader":
    """Return a loader of PixMix training batches, at the start of epoch 0.

    The batches, down to the pixels, depend on the dataset, the mixing set, seed, preprocessing,
    batch size, shuffle_window and shard_partitions. They do not depend on world size, workers,
    threads or interruptions.

    Example::

        loader = train_loader("shards/train", "mixing-set", batch_size=256, num_workers=4)
        for epoch in range(90):
            for images, labels in loader:
                ...

    Args:
        data: dataset. Shards: a folder with a manifest, tars as a pattern such as
            "train-{0000..1023}.tar", either at an address (http, https, s3, gs, az), or an open set
            of shards. Or any map-style dataset, such as ``torchvision.datasets.CIFAR10``: its items
            are pairs of an image (a PIL image, an (H, W, 3) uint8 array or a (3, H, W) uint8
            tensor) and an integer label.
        mixing_set: mixing images: an argument of ``open_mixing_set``, or its result. None mixes
            each image only with augmented copies of itself.
        batch_size: global batch size, summed over all processes; a multiple of world_size.
        seed: see ``LoaderConfig``, which describes all following arguments.
        preprocess: crop, PixMix and normalization; None for the paper's recipe for the dataset.
        image_size: side of the network's input in pixels; overrides that of preprocess.
        views: number of independently mixed views of each sample; None for one.
        rank: rank of this process; None to detect it.
        world_size: number of processes; None to detect it.
        num_workers: number of worker processes that decode images.
        n_threads: number of threads that mix a batch, in each process that makes batches.
        shuffle_window: number of shards that are shuffled together; None for all.
        shard_partitions: number of partitions of the shards, for example one per node.
        on_decode_error: policy for samples that cannot be decoded: "raise", "substitute" or "skip".
        max_decode_errors: number of such samples per rank above which an error is raised.
        decode_error_log: file to which each such sample is appended as a line of JSON.
        on_mixing_decode_error: policy for mixing images that cannot be decoded: "raise" or "skip".
        cache_dir: cache of decoded images and downloaded shards.
        remote: how remote shards are downloaded and cached.
        pin_memory: whether batches are in pinned memory; None pins them if CUDA is available.
        multiprocessing_context: start method of workers.

    Returns:
        A loader of pairs (images, labels): (n, 3, H, W), or (n, views, 3, H, W), and (n,) int64,
        with n = batch_size / world_size.

    Raises:
        PipelineError: if dataset or mixing set cannot be read, or do not fit the settings.
        ValueError: if a value is outside its range, or the batch cannot be divided equally.
    """
    return TrainLoader(data, mixing_set, LoaderConfig(
        batch_size=batch_size, seed=seed, preprocess=preprocess, image_size=image_size, views=views,
        rank=rank, world_size=world_size, num_workers=num_workers, n_threads=n_threads,
        shuffle_window=shuffle_window, shard_partitions=shard_partitions,
        on_decode_error=on_decode_error, max_decode_errors=max_decode_errors,
        decode_error_log=decode_error_log, on_mixing_decode_error=on_mixing_decode_error,
        cache_dir=cache_dir, remote=remote, pin_memory=pin_memory,
        multiprocessing_context=multiprocessing_context,
    ))  # fmt: skip


def eval_loader(
    data: DataSource,
    *,
    batch_size: int,
    preprocess: PreprocessConfig | None = None,
    image_size: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    num_workers: int = 0,
    n_threads: int = 1,
    on_decode_error: OnDecodeError = "raise",
    max_decode_errors: int = 100,
    decode_error_log: str | Path | None = None,
    cache_dir: str | Path | None = None,
    remote: Remote | None = None,
    pin_memory: bool | None = None,
    multiprocessing_context: str | None = None,
) -> "EvalLoader":
    """Return a loader that yields each sample once over all ranks, in equally many steps per rank.

    Images are center-cropped, and neither mirrored nor mixed. The last batch is padded. Padding has
    weight 0, and with ``on_decode_error="skip"`` so have samples that cannot be decoded.

    Example::

        loader = eval_loader("shards/val", batch_size=256, num_workers=4)
        errors = sum(
            ((model(images).argmax(1) != labels) * weights).sum()
            for images, labels, weights in loader
        )

    Args:
        data: dataset, as for ``train_loader``.
        batch_size: global batch size, summed over all processes; a multiple of world_size.
        preprocess: crop and normalization; None for the paper's recipe for the dataset. See
            ``LoaderConfig``, which describes all following arguments.
        image_size: side of the network's input in pixels; overrides that of preprocess.
        rank: rank of this process; None to detect it.
        world_size: number of processes; None to detect it.
        num_workers: number of worker processes that decode images.
        n_threads: number of threads that normalize a batch, in each process that makes batches.
        on_decode_error: policy for samples that cannot be decoded: "raise" or "skip".
        max_decode_errors: number of such samples per rank above which an error is raised.
        decode_error_log: file to which each such sample is appended as a line of JSON.
        cache_dir: cache of decoded images and downloaded shards.
        remote: how remote shards are downloaded and cached.
        pin_memory: whether batches are in pinned memory; None pins them if CUDA is available.
        multiprocessing_context: start method of workers.

    Returns:
        A loader of triples (images, labels, weights): (n, 3, H, W), (n,) int64 and (n,) float32,
        with n = batch_size / world_size.

    Raises:
        PipelineError: if the dataset cannot be read, or does not fit the settings.
        ValueError: if a value is outside its range, or the batch cannot be divided equally.
    """
    return EvalLoader(data, LoaderConfig(
        batch_size=batch_size, preprocess=preprocess, image_size=image_size, rank=rank,
        world_size=world_size, num_workers=num_workers, n_threads=n_threads,
        on_decode_error=on_decode_error, max_decode_errors=max_decode_errors,
        decode_error_log=decode_error_log, cache_dir=cache_dir, remote=remote,
        pin_memory=pin_memory, multiprocessing_context=multiprocessing_context,
    ))  # fmt: skip


class LoaderState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The position of a `TrainLoader`, and all that its order depends on.

    Attributes:
        version: version of this format.
        order_version: version of the order of samples.
        seed: seed of the loader.
        epoch: epoch of the next batch.
        consumed: samples of the epoch that were used in all processes together.
        num_samples: number of samples of the dataset.
        shuffle_window: see `LoaderConfig`.
        shard_partitions: see `LoaderConfig`.
        hash: hash of the dataset.
    """

    version: int
    order_version: int
    seed: int
    epoch: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
    consumed: Count
    num_samples: Count
    shuffle_window: Count | None
    shard_partitions: Count
    hash: Label


class TrainLoader:
    """Iterates over the batches of an epoch, and of the next epoch in the next loop.

    Each batch is a pair (images, labels): (n, 3, H, W), or (n, views, 3, H, W), and (n,) int64,
    with n = batch_size / world_size.

    Attributes:
        config: the settings.
        world: rank and world size.
        last_indices: (n,) int64, indices of the samples requested for the latest batch.
    """

    def __init__(
        self, data: DataSource, mixing_set: MixingSet | None, config: LoaderConfig
    ) -> None:
        """Open dataset and mixing set; see `train_loader`."""
        self.config, self.world = config, find_world(config.rank, config.world_size)
        self._check_positions(0)
        self._maker, files = open_batch_maker(data, mixing_set, config, training=True)
        self._source = open_batches(self._maker, files, self.world.size)
        self._maker.order(0)  # raises an error for a shuffle window of a dataset without shards
        self._errors = DecodeErrorCounter(config)
        if self.n_samples < config.batch_size:
            raise ValueError(
                f"the dataset has {self.n_samples} samples, fewer than batch_size "
                f"{config.batch_size}, which counts all processes; use a smaller batch_size"
            )
        self._epoch, self._consumed = 0, 0
        self.last_indices: NDArray[np.int64] = np.zeros(0, np.int64)
        if self.left_out and self.world.rank == 0:
            _log.info(
                "each epoch leaves out %d of %d samples, different ones each time: they do not "
                "fill a batch of %d",
                self.left_out, self.n_samples, config.batch_size,
            )  # fmt: skip

    @property
    def n_samples(self) -> int:
        """The number of samples of the dataset."""
        return len(self._maker.samples)

    @property
    def mixing_fingerprint(self) -> str | None:
        """The `PackedImages.fingerprint` of the mixing set; None without a mixing set."""
        mixing_set = self._maker.mixing_set
        return None if mixing_set is None else mixing_set.fingerprint()

    @property
    def left_out(self) -> int:
        """The number of samples that an epoch leaves out, because they do not fill a batch."""
        return self.n_samples % self.config.batch_size

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""
        return self._epoch

    @property
    def decode_errors(self) -> Mapping[str, int]:
        """The number of samples of this rank that could not be decoded, by reason."""
        return dict(self._errors.counts)

    def waiting_for(self) -> str:
        """Describe what the next batch waits for."""
        return self._source.waiting_for()

    def __len__(self) -> int:
        """Return the number of batches of a full epoch, the same on every rank."""
        return count_batches(self.n_samples, self.config.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the remaining batches of the epoch."""
        epoch, start, size = self._epoch, self._consumed, self.config.batch_size
        order = self._maker.order(epoch)
        # Not bound to this loader: the workers would keep it alive, and they end with it.
        batches = partial(_batches_from, order, self.config, self.world, start)
        requests = Requests(
            lambda first: (Request(epoch, *batch) for batch in batches(first)),
            order.ends_of_shards(),
        )
        # Closed at once, because threads that download shards hold files.
        with closing(self._source.run(requests)) as outputs:
            for (_, indices), batch in zip(batches(0), outputs, strict=True):
                self._errors.check(batch)
                self.last_indices = indices
                # Counted before the yield: a state saved in the loop resumes after this batch.
                self._advance(epoch, self._consumed + size)
                yield batch.images, batch.labels

    def _advance(self, epoch: int, consumed: int) -> None:
        """Set the position; go to the next epoch if fewer samples than a batch are left."""
        finished = self.n_samples - consumed < self.config.batch_size
        self._epoch, self._consumed = (epoch + 1, 0) if finished else (epoch, consumed)

    def _check_positions(self, consumed: int) -> None:
        """Check that batches divide equally, and that a batch starts at the first partition."""
        batch_positions(
            self.config.batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
            shard_partitions=self.config.shard_partitions,
            consumed=consumed,
        )

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch.

        Args:
            epoch: 0 .. 2^32 - 1.

        Raises:
            ValueError: if epoch is outside its range.
        """
        if not 0 <= epoch < 2**32:
            raise ValueError(f"epoch is {epoch}; use an integer from 0 to 4294967295")
        self._epoch, self._consumed = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position of this loader as numbers and text; see `LoaderState`."""
        state = LoaderState(
            version=STATE_VERSION,
            order_version=ORDER_VERSION,
            seed=self.config.seed,
            epoch=int(self._epoch),
            consumed=int(self._consumed),
            num_samples=int(self.n_samples),
            shuffle_window=self.config.shuffle_window,
            shard_partitions=self.config.shard_partitions,
            hash=self._maker.samples.hash,
        )
        return msgspec.structs.asdict(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from the position of a loader of the same dataset.

        Batch size and world size may differ from those of the other loader.

        Args:
            state: result of ``state_dict``.

        Raises:
            ValueError: if the state is of another dataset, seed, order or version; names the field.
        """
        own = self.state_dict()
        try:
            loaded = msgspec.convert(dict(state), LoaderState)
        except msgspec.ValidationError as error:
            raise ValueError(
                f"the state is not valid: {error}; pass the result of state_dict of this version"
            ) from error
        for name, value in own.items():
            if name not in ("epoch", "consumed") and getattr(loaded, name) != value:
                raise ValueError(
                    f"{name} is {getattr(loaded, name)!r} in the state and {value!r} in this "
                    "loader, so the order of samples differs; use the same settings, or start "
                    "without the state"
                )
        if loaded.consumed >= self.n_samples:
            raise ValueError(
                f"consumed is {loaded.consumed} in the state, but the dataset has only "
                f"{self.n_samples} samples; pass the result of state_dict"
            )
        self._check_positions(loaded.consumed)
        # With a larger batch size than before, the remaining samples may not fill a batch.
        self._advance(loaded.epoch, loaded.consumed)


def _batches_from(
    order: EpochOrder, config: LoaderConfig, world: World, consumed: int, first: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    return training_batches(
        order,
        batch_size=config.batch_size,
        rank=world.rank,
        world_size=world.size,
        shard_partitions=config.shard_partitions,
        consumed=consumed + first * config.batch_size,
    )


class EvalLoader:
    """Iterates over all samples once, in the order of the dataset.

    Each batch is a triple (images, labels, weights): (n, 3, H, W), (n,) int64 and (n,) float32. The
    weight is 1 for a sample, and 0 for padding or a skipped sample.

    Attributes:
        config: the settings.
        world: rank and world size.
    """

    def __init__(self, data: DataSource, config: LoaderConfig) -> None:
        """Open the dataset; see `eval_loader`."""
        if config.on_decode_error == "substitute":
            raise ValueError(
                "on_decode_error='substitute' would count samples twice in an evaluation; use "
                "'raise' or 'skip'"
            )
        self.config, self.world = config, find_world(config.rank, config.world_size)
        rank_positions(config.batch_size, self.world.rank, self.world.size)
        self._maker, files = open_batch_maker(data, None, config, training=False)
        self._source = open_batches(self._maker, files, self.world.size)
        self._errors = DecodeErrorCounter(config)

    @property
    def n_samples(self) -> int:
        """The number of samples of the dataset."""
        return len(self._maker.samples)

    @property
    def decode_errors(self) -> Mapping[str, int]:
        """The number of samples of this rank that could not be decoded, by reason."""
        return dict(self._errors.counts)

    def waiting_for(self) -> str:
        """Describe what the next batch waits for."""
        return self._source.waiting_for()

    def __len__(self) -> int:
        """Return the number of batches, the same on every rank."""
        return -(-self.n_samples // self.config.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield all batches of this rank."""
        batches = partial(
            evaluation_batches,
            self.n_samples,
            batch_size=self.config.batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
        )
        requests = Requests(
            lambda first: (
                Request(0, planned.indices, planned.indices)
                for planned in islice(batches(), first, None)
            )
        )
        with closing(self._source.run(requests)) as outputs:
            for planned, batch in zip(batches(), outputs, strict=True):
                # Padding repeats a sample, whose error counts at most once.
                real = set(planned.indices[planned.weights > 0].tolist())
                errors = {each.index: each for each in batch.errors if each.index in real}
                self._errors.check(batch._replace(errors=tuple(errors.values())))
                weights = torch.from_numpy(planned.weights * batch.present)
                yield batch.images, batch.labels, weights
