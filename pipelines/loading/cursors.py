"""Where a loader is in its samples, and what it hands over: the classes that users iterate.

A loader is a cursor: it counts what it has handed over, and a loop that was left goes on there.
`state_dict` says where that is; `load_state_dict` goes on from it at once, at any world size.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.errors import PipelineError
from pipelines.loading.order import (
    ORDER_VERSION,
    EpochOrder,
    batch_places,
    count_batches,
    evaluation_batches,
    rank_places,
    training_batches,
)
from pipelines.loading.samples import BadSample, Prepared, Request, Requests
from pipelines.loading.sources import Source
from pipelines.system.ranks import World

log = logging.getLogger(__name__)

STATE_VERSION = 1


class BadSamples:
    """Counts samples that could not be read, lists them in a file, and ends it where too many."""

    def __init__(self, most: int, file: Path | None) -> None:
        self.counts: Counter[str] = Counter()
        self._most, self._file = most, file

    def take(self, prepared: Prepared) -> None:
        """Count what could not be read.

        Raises:
            PipelineError: if there is no batch, or too many samples could not be read.
        """
        if prepared.fault is not None:
            raise PipelineError(prepared.fault)
        for bad in prepared.bad:
            self._add(bad)

    def _add(self, bad: BadSample) -> None:
        if not self.counts:
            log.warning("%s; going on without it, and counting such samples", bad)
        self.counts[bad.reason] += 1
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(bad)) + "\n")
        total = self.counts.total()
        if total > self._most:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.counts.most_common())
            raise PipelineError(
                f"{total} samples could not be read ({reasons}), more than the {self._most} of "
                f"max_bad_samples (pixmix-train: --max-bad-samples); the last: {bad}. Run "
                "pixmix-shard verify"
            )


class TrainLoader:
    """Iterates over the batches of an epoch, and of the next one when it is iterated again.

    Each batch is (images, labels): (n, 3, H, W), or (n, views, 3, H, W), and (n,) int64, n being
    batch_size / world_size. See `train_loader`. `last_indices`, (n,) int64, says which samples of
    the set the batch that was handed over last was to hold.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        world: World,
        window: int | None,
        lanes: int,
        bad_samples: BadSamples,
    ) -> None:
        batch_places(batch_size, rank=world.rank, world_size=world.size, lanes=lanes)
        if len(source.shards) < batch_size:
            raise ValueError(
                f"{len(source.shards)} samples make no batch of {batch_size}; give a smaller "
                "batch_size, which counts all processes"
            )
        self._source, self._bad = source, bad_samples
        self.batch_size, self.seed, self.world = batch_size, seed, world
        self.window, self.lanes = window, lanes
        self._epoch, self._consumed = 0, 0
        self.last_indices: NDArray[np.int64] = np.zeros(0, np.int64)
        left_out = len(source.shards) % batch_size
        if left_out and world.rank == 0:
            log.info(
                "%d of %d samples are left out of each epoch, others each time: they fill no "
                "batch of %d", left_out, len(source.shards), batch_size,
            )  # fmt: skip

    @property
    def n_samples(self) -> int:
        """The samples of the set."""
        return len(self._source.shards)

    @property
    def mixing_fingerprint(self) -> str | None:
        """What tells the mixing set from others, see `PackedPictures.fingerprint`; None without."""
        mixing_set = self._source.mixing_set
        return None if mixing_set is None else mixing_set.fingerprint()

    @property
    def left_out(self) -> int:
        """How many samples, others each time, an epoch leaves out: they fill no batch."""
        return len(self._source.shards) % self.batch_size

    @property
    def epoch(self) -> int:
        """The epoch that the next batch belongs to, from 0."""
        return self._epoch

    @property
    def bad_samples(self) -> Mapping[str, int]:
        """How many samples of this rank could not be read, by reason."""
        return dict(self._bad.counts)

    def awaited(self) -> str:
        """Return in words what the next batch waits for."""
        return self._source.awaited()

    def __len__(self) -> int:
        """Return the batches of a whole epoch, the same on every rank."""
        return count_batches(len(self._source.shards), self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give what the epoch still has."""
        order = EpochOrder(
            len(self._source.shards),
            seed=self.seed,
            epoch=self._epoch,
            shard_sizes=[shard.n_samples for shard in self._source.shards.shards],
            window=self.window,
            lanes=self.lanes,
        )
        epoch, begun, size = self._epoch, self._consumed, self.batch_size
        # Without this loader itself: it would live as long as its workers, who end with it.
        batches = partial(
            training_batches,
            order,
            batch_size=size,
            rank=self.world.rank,
            world_size=self.world.size,
            lanes=self.lanes,
        )
        requests = Requests(
            lambda first: (
                Request(epoch, *batch) for batch in batches(consumed=begun + first * size)
            ),
            order.ends_of_shards(),
        )
        # Closed at once, however it ends: who downloads ahead holds files, and has threads.
        with closing(self._source.run(requests)) as made:
            for (_, indices), prepared in zip(batches(consumed=begun), made, strict=True):
                self._bad.take(prepared)
                self.last_indices = indices
                # Counted before it is handed over: a state saved in the loop's body goes on after
                # it.
                self._consumed += size
                if len(self._source.shards) - self._consumed < size:
                    self._epoch, self._consumed = self._epoch + 1, 0
                yield prepared.images, prepared.labels

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch.

        Raises:
            ValueError: if epoch is out of range.
        """
        if not 0 <= epoch < 2**32:
            raise ValueError(f"epoch is {epoch}; give a whole number from 0 to 4294967295")
        self._epoch, self._consumed = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Return where this loader is, as plain numbers and text."""
        return {
            "version": STATE_VERSION,
            "order_version": ORDER_VERSION,
            "seed": self.seed,
            "epoch": self._epoch,
            "consumed": self._consumed,
            "num_samples": len(self._source.shards),
            "window": self.window,
            "lanes": self.lanes,
            "hash": self._source.shards.hash,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where a loader of the same set was; batch and world size may be others.

        Raises:
            ValueError: if the state is of another set, seed, order or version, naming the field.
        """
        own = self.state_dict()
        state = {"lanes": 1, **state}  # which older states do not tell
        missing = own.keys() - state.keys()
        if missing:
            raise ValueError(
                f"the state has no {', '.join(sorted(missing))}; give what state_dict returned"
            )
        for name in ("version", "order_version", "num_samples", "hash", "window", "lanes", "seed"):
            if state[name] != own[name]:
                raise ValueError(
                    f"the state's {name} is {state[name]!r} and this loader's {own[name]!r}, so "
                    "it would not go on with the same order; open the loader as it was, or begin "
                    "anew without the state"
                )
        if not 0 <= state["consumed"] < max(1, len(self._source.shards)) or state["epoch"] < 0:
            raise ValueError(
                f"the state's epoch {state['epoch']} and consumed {state['consumed']} are no place "
                f"in an order of {len(self._source.shards)} samples; give what state_dict returned"
            )
        if state["consumed"] % self.lanes != 0:
            raise ValueError(
                f"the state's consumed is {state['consumed']}, and batches of {self.lanes} lanes "
                f"end at multiples of {self.lanes}; give what state_dict returned"
            )
        self._epoch, self._consumed = int(state["epoch"]), int(state["consumed"])
        if len(self._source.shards) - self._consumed < self.batch_size:
            # A larger batch than before: what is left fills none.
            self._epoch, self._consumed = self._epoch + 1, 0


class EvalLoader:
    """Iterates over all samples once, in the order of the shards.

    Each batch is (images, labels, weights): (n, 3, H, W), (n,) int64 and (n,) float32, 1 for a
    sample and 0 for a row that only fills up. See `eval_loader`.
    """

    def __init__(
        self, source: Source, *, batch_size: int, world: World, bad_samples: BadSamples
    ) -> None:
        rank_places(batch_size, world.rank, world.size)
        self._source, self._bad = source, bad_samples
        self.batch_size, self.world = batch_size, world

    @property
    def n_samples(self) -> int:
        """The samples of the set."""
        return len(self._source.shards)

    @property
    def bad_samples(self) -> Mapping[str, int]:
        """How many samples of this rank could not be read, by reason."""
        return dict(self._bad.counts)

    def awaited(self) -> str:
        """Return in words what the next batch waits for."""
        return self._source.awaited()

    def __len__(self) -> int:
        """Return the number of batches, the same on every rank."""
        return -(-len(self._source.shards) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give all batches of this rank."""
        batches = partial(
            evaluation_batches,
            len(self._source.shards),
            batch_size=self.batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
        )
        requests = Requests(
            lambda first: (
                Request(0, batch.indices, batch.indices) for batch in islice(batches(), first, None)
            )
        )
        with closing(self._source.run(requests)) as made:
            for batch, prepared in zip(batches(), made, strict=True):
                self._bad.take(prepared)
                weights = batch.weights * prepared.present
                yield prepared.images, prepared.labels, torch.from_numpy(weights)
