"""Loaders for training and evaluation: the same batches at any world size, resumable at any step.

    loader = train_loader("shards/imagenet/train", "shards/mixing", batch_size=256, num_workers=4)
    for epoch in range(90):
        for images, labels in loader: ...

A loader counts the samples that it has handed over: a loop that was left is continued by the next
one. `state_dict` holds that position; `load_state_dict` resumes from it at once, at any world size.
"""

import json
import logging
from collections import Counter
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

from pipelines.errors import PipelineError
from pipelines.loading.batches import (
    Batch,
    Data,
    LoaderConfig,
    MixingSet,
    OnDecodeError,
    PreprocessConfig,
    open_maker,
)
from pipelines.loading.dataset import SampleError
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
from pipelines.loading.workers import open_source
from pipelines.shards.remote import Remote
from pipelines.system.files import Count, Label
from pipelines.system.ranks import World, find_world

STATE_VERSION = 2

_log = logging.getLogger(__name__)


def train_loader(
    data: Data,
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
    """Return a loader of training batches with PixMix, at the beginning of epoch 0.

    Batches, pixels included, depend on the dataset, the mixing set, seed, preprocessing and batch
    size; not on world size, workers, threads or interruptions.

        train_loader("shards/imagenet/train", "shards/mixing", batch_size=256, num_workers=4)
        train_loader(torchvision.datasets.CIFAR10("data"), "mixing-set", batch_size=128)

    `data` is a folder of shards with a manifest, tars as a pattern with {0000..1023}, either at an
    address (http, https, s3, gs), or an open set of shards; or any map-style dataset, whose items
    are pairs of an image (a PIL image, an (H, W, 3) uint8 array or a (3, H, W) uint8 tensor) and a
    label. `mixing_set` is what `open_mixing_set` takes, or packed images; None mixes each image
    only with augmented copies of itself. All keywords are explained at `LoaderConfig`.

    Raises:
        PipelineError: if dataset or mixing set cannot be read or do not fit.
        ValueError: for numbers out of range, or a batch that cannot be shared equally.
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
    data: Data,
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
    """Return a loader that gives each sample once over all ranks, with equal steps on each.

    Images are neither flipped nor mixed, and their center is cropped. With on_decode_error="skip" a
    sample that cannot be decoded has weight 0. `data` is as for `train_loader`, and the keywords
    are explained at `LoaderConfig`.

    Raises:
        PipelineError: if the dataset cannot be read or does not fit.
        ValueError: for numbers out of range, or a batch that cannot be shared equally.
    """
    return EvalLoader(data, LoaderConfig(
        batch_size=batch_size, preprocess=preprocess, image_size=image_size, rank=rank,
        world_size=world_size, num_workers=num_workers, n_threads=n_threads,
        on_decode_error=on_decode_error, max_decode_errors=max_decode_errors,
        decode_error_log=decode_error_log, cache_dir=cache_dir, remote=remote,
        pin_memory=pin_memory, multiprocessing_context=multiprocessing_context,
    ))  # fmt: skip


class LoaderState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The position of a `TrainLoader`, and what its order depends on.

    consumed: samples of the epoch that all processes together have seen. hash: of the dataset.
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
    """Iterates over the batches of an epoch, and of the next one when it is iterated again.

    Each batch is (images, labels): (n, 3, H, W), or (n, views, 3, H, W), and (n,) int64, n being
    batch_size / world_size.

    Attributes:
        config: the settings.
        world: rank and number of processes.
        last_indices: (n,) int64, the samples that were requested for the latest batch.
    """

    def __init__(self, data: Data, mixing_set: MixingSet | None, config: LoaderConfig) -> None:
        """Open dataset and mixing set; see `train_loader`."""
        self.config, self.world = config, find_world(config.rank, config.world_size)
        self._check_positions(0)
        self._maker, files = open_maker(data, mixing_set, config, training=True)
        self._source = open_source(self._maker, files, self.world.size)
        self._maker.order(0)  # which refuses windows of a dataset without shards
        self._errors = _DecodeErrors(config)
        if self.n_samples < config.batch_size:
            raise ValueError(
                f"{self.n_samples} samples make no batch of {config.batch_size}; use a smaller "
                "batch_size, which counts all processes"
            )
        self._epoch, self._consumed = 0, 0
        self.last_indices: NDArray[np.int64] = np.zeros(0, np.int64)
        if self.left_out and self.world.rank == 0:
            _log.info(
                "%d of %d samples are left out of each epoch, others each time: they fill no "
                "batch of %d", self.left_out, self.n_samples, config.batch_size,
            )  # fmt: skip

    @property
    def n_samples(self) -> int:
        """The number of samples of the dataset."""
        return len(self._maker.samples)

    @property
    def mixing_fingerprint(self) -> str | None:
        """What tells the mixing set from others, see `PackedImages.fingerprint`; None without."""
        mixing_set = self._maker.mixing_set
        return None if mixing_set is None else mixing_set.fingerprint()

    @property
    def left_out(self) -> int:
        """Number of samples that an epoch drops because they fill no batch; others each time."""
        return self.n_samples % self.config.batch_size

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""
        return self._epoch

    @property
    def decode_errors(self) -> Mapping[str, int]:
        """How many samples of this rank could not be decoded, by reason."""
        return dict(self._errors.counts)

    def waiting_for(self) -> str:
        """Return in words what the next batch waits for."""
        return self._source.waiting_for()

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch, the same on every rank."""
        return count_batches(self.n_samples, self.config.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the remaining batches of the epoch."""
        epoch, begin, size = self._epoch, self._consumed, self.config.batch_size
        order = self._maker.order(epoch)
        # Without this loader itself: it would live as long as its workers, who end with it.
        batches = partial(_batches_from, order, self.config, self.world, begin)
        requests = Requests(
            lambda first: (Request(epoch, *batch) for batch in batches(first)),
            order.ends_of_shards(),
        )
        # Closed at once, however it ends: threads that download shards hold files.
        with closing(self._source.run(requests)) as outputs:
            for (_, indices), batch in zip(batches(0), outputs, strict=True):
                self._errors.check(batch)
                self.last_indices = indices
                # Counted before it is handed over: a state saved in the loop's body resumes after.
                self._advance(epoch, self._consumed + size)
                yield batch.images, batch.labels

    def _advance(self, epoch: int, consumed: int) -> None:
        """Set the position; where fewer samples than a batch are left, it is the next epoch."""
        over = self.n_samples - consumed < self.config.batch_size
        self._epoch, self._consumed = (epoch + 1, 0) if over else (epoch, consumed)

    def _check_positions(self, consumed: int) -> None:
        """Refuse a batch that cannot be shared, or that begins in the middle of the partitions."""
        batch_positions(
            self.config.batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
            shard_partitions=self.config.shard_partitions,
            consumed=consumed,
        )

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch.

        Raises:
            ValueError: if epoch is out of range.
        """
        if not 0 <= epoch < 2**32:
            raise ValueError(f"epoch is {epoch}; use a whole number from 0 to 4294967295")
        self._epoch, self._consumed = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position of this loader as plain numbers and text; see `LoaderState`."""
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
        """Resume where a loader of the same dataset was; batch and world size may differ.

        Raises:
            ValueError: if the state is of another dataset, seed, order or version, naming the
                field.
        """
        own = self.state_dict()
        try:
            loaded = msgspec.convert(dict(state), LoaderState)
        except msgspec.ValidationError as error:
            raise ValueError(
                f"the state is not one of this version: {error}; pass what state_dict returned"
            ) from error
        for name, value in own.items():
            if name not in ("epoch", "consumed") and getattr(loaded, name) != value:
                raise ValueError(
                    f"the state's {name} is {getattr(loaded, name)!r} and this loader's {value!r}, "
                    "so the order would be another one; open the loader with the same settings, or "
                    "start again without the state"
                )
        if loaded.consumed >= self.n_samples:
            raise ValueError(
                f"the state's consumed is {loaded.consumed}, which is not a position in an order "
                f"of {self.n_samples} samples; pass what state_dict returned"
            )
        self._check_positions(loaded.consumed)
        # With a larger batch than before, the rest may not make one.
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

    Each batch is (images, labels, weights): (n, 3, H, W), (n,) int64 and (n,) float32, 1 for a
    sample and 0 for padding of the last batch.

    Attributes:
        config: the settings.
        world: rank and number of processes.
    """

    def __init__(self, data: Data, config: LoaderConfig) -> None:
        """Open the dataset; see `eval_loader`."""
        if config.on_decode_error == "substitute":
            raise ValueError(
                "on_decode_error='substitute' would count a sample twice; evaluate with 'raise' or "
                "'skip'"
            )
        self.config, self.world = config, find_world(config.rank, config.world_size)
        rank_positions(config.batch_size, self.world.rank, self.world.size)
        self._maker, files = open_maker(data, None, config, training=False)
        self._source = open_source(self._maker, files, self.world.size)
        self._errors = _DecodeErrors(config)

    @property
    def n_samples(self) -> int:
        """The number of samples of the dataset."""
        return len(self._maker.samples)

    @property
    def decode_errors(self) -> Mapping[str, int]:
        """How many samples of this rank could not be decoded, by reason."""
        return dict(self._errors.counts)

    def waiting_for(self) -> str:
        """Return in words what the next batch waits for."""
        return self._source.waiting_for()

    def __len__(self) -> int:
        """Return the number of batches, the same on every rank."""
        return -(-self.n_samples // self.config.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give all batches of this rank."""
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
                # Rows that pad the batch repeat a sample, whose error counts once at most.
                real = set(planned.indices[planned.weights > 0].tolist())
                errors = {each.index: each for each in batch.errors if each.index in real}
                self._errors.check(batch._replace(errors=tuple(errors.values())))
                weights = torch.from_numpy(planned.weights * batch.present)
                yield batch.images, batch.labels, weights


class _DecodeErrors:
    """Counts samples that could not be decoded, logs them, and raises an error above a limit."""

    def __init__(self, config: LoaderConfig) -> None:
        self.counts: Counter[str] = Counter()
        self._most, self._file = config.max_decode_errors, config.decode_error_log

    def check(self, batch: Batch) -> None:
        """Count the errors of a batch.

        Raises:
            PipelineError: if there is no batch, or there are too many errors.
        """
        if batch.fault is not None:
            raise PipelineError(batch.fault)
        for error in batch.errors:
            self._add(error)

    def _add(self, error: SampleError) -> None:
        if not self.counts:
            _log.warning("%s; continuing without it, and counting such samples", error)
        self.counts[error.reason] += 1
        if self._file is not None:
            with Path(self._file).open("a", encoding="utf-8") as file:
                file.write(json.dumps(error.record()) + "\n")
        total = self.counts.total()
        if total > self._most:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.counts.most_common())
            raise PipelineError(
                f"{total} samples could not be decoded ({reasons}), more than the {self._most} of "
                f"max_decode_errors (pixmix-train: --max-decode-errors); the last: {error}. Run "
                "pixmix-shard verify"
            )
