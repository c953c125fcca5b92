"""The order of samples in an epoch, and the share of each rank: pure functions of a few numbers.

    order G      a permutation of 0 .. N-1; depends on seed and epoch, and on shuffle window and
                 shard partitions if they are set
    batch t      G[t B : (t + 1) B], B samples over all ranks
    rank r       of W ranks: the B / W positions of each batch from r B / W on

    B = 6, W = 2    G: 4 0 7 | 2 9 5   1 3 8 | 6 11 10   (12, 13: left out in this epoch)
                       rank 0  rank 1  rank 0  rank 1

Batches therefore do not depend on W, and an epoch can be resumed at any position of G, with any W.

With a shuffle window, each batch draws from a few shards, but every rank from all of them. Shard
partitions divide the shards among ranks: the shuffled shards are cut into P equal partitions, and
each batch takes equally many samples from each, one partition after another.

    partitions P    position p of G is of partition p mod P
    batch t         G[t B : (t + 1) B], those of partition 0 first, then those of partition 1, ...

    B = 6, P = W = 2    G: 4 9 0 8 1 7 | 2 6 ...
                        partition 0: 4, 0, 1, 2; partition 1: 9, 8, 7, 6
                        rank 0: 4 0 1  rank 1: 9 8 7

If P divides W or W divides P, a rank needs only the shards of its own partitions. One partition is
the same as none. The order is public interface: a change increments `ORDER_VERSION`.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixmix.draws import shuffle
from pixmix.settings import check_seed

ORDER_VERSION = 1

_SAMPLES, _SHARDS = 0, 1
"""Parts of the random keys of the two shuffles."""

GROUPS_KEPT = 3
"""Shuffled groups in memory per partition."""


class EpochOrder:
    """The order of an epoch: a permutation of 0 .. n_samples - 1, computed lazily.

    The shuffled shards are concatenated and cut into P partitions of n_samples // P samples each,
    if necessary in the middle of a shard. In each partition the samples of each `shuffle_window`
    consecutive shards are shuffled together. The order takes one sample from each partition at a
    time. The last n_samples % P samples come at the end.

    With a shuffle window only a few windows are in memory, 8 bytes per sample; without, the whole
    order.

    Example::

        order = EpochOrder(len(shards), seed=0, epoch=3, shard_sizes=sizes, shuffle_window=16)
        order[np.array([1000, 1001])]  # (2,) int64: the samples at positions 1000 and 1001
    """

    def __init__(
        self,
        n_samples: int,
        *,
        seed: int,
        epoch: int,
        shard_sizes: Sequence[int] | None = None,
        shuffle_window: int | None = None,
        shard_partitions: int = 1,
    ) -> None:
        """Prepare the order.

        Args:
            n_samples: number of samples of the dataset; fewer than 2^32 are shuffled together.
            seed: any integer; taken modulo 2^64.
            epoch: 0 .. 2^32 - 1.
            shard_sizes: number of samples of each shard; None for a dataset without shards.
            shuffle_window: number of shards that are shuffled together, so that a node needs few
                shards at a time. None shuffles all samples of a partition together.
            shard_partitions: number of partitions, 1 or more.

        Raises:
            ValueError: for a shuffle window or partitions of a dataset without shards.
        """
        by_shards = shuffle_window is not None or shard_partitions > 1
        if by_shards and shard_sizes is None:
            raise ValueError(
                f"shuffle_window is {shuffle_window} and shard_partitions is {shard_partitions}, "
                "but the dataset has no shards; leave both out"
            )
        self._n_samples, self._partitions, self._by_shards = n_samples, shard_partitions, by_shards
        # Without both, the dataset counts as one shard.
        sizes = shard_sizes if shard_sizes is not None and by_shards else [n_samples]
        parts = _parts(n_samples, shard_partitions)
        self._groups = _groups_of(
            sizes, check_seed(seed), epoch, parts, shuffle_window or len(sizes)
        )
        # The current group of each partition, and the next ones for prefetching.
        self._shuffled = lru_cache(GROUPS_KEPT * shard_partitions + 1)(self._groups.shuffled)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._n_samples

    def __getitem__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the samples at positions, (n,) int64 each."""
        places = self._concatenated(positions)
        groups = self._groups.at(places)
        samples = np.empty(len(positions), np.int64)
        for group in np.unique(groups).tolist():
            here = groups == group
            samples[here] = self._shuffled(group)[places[here] - self._groups.starts[group]]
        return samples

    def whole(self) -> NDArray[np.int64]:
        """Return the whole order, (n_samples,) int64."""
        order = np.empty(self._n_samples, np.int64)
        for group, (low, high) in enumerate(pairwise(self._groups.starts.tolist())):
            order[self._positions(np.arange(low, high))] = self._groups.shuffled(group)
        return order

    def ends_of_shards(self) -> NDArray[np.int64] | None:
        """Return for each shard a position after its last sample in the order.

        It is the end of the last window with samples of the shard, close to that sample.

        Returns:
            (shards,) int64, or None if all samples are shuffled together.
        """
        if not self._by_shards:
            return None
        groups = self._groups
        ends = np.zeros(len(groups.shards), np.int64)
        if self._n_samples == 0:
            return ends
        of_group = self._positions(np.maximum(groups.starts[1:] - 1, 0)) + 1
        group = groups.at(np.minimum(groups.begins[:-1], self._n_samples - 1))
        last = np.maximum(group, groups.at(np.maximum(groups.begins[1:] - 1, 0)))
        while True:
            ends[groups.shards] = np.maximum(ends[groups.shards], of_group[group])
            if np.array_equal(group, last):
                return ends
            group = np.minimum(group + 1, last)

    def _concatenated(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map positions in the order to places in the concatenated partitions."""
        length = self._n_samples // self._partitions
        places = positions % self._partitions * length + positions // self._partitions
        return np.where(positions < length * self._partitions, places, positions)

    def _positions(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map places in the concatenated partitions to positions in the order."""
        length = self._n_samples // self._partitions
        positions = places % max(length, 1) * self._partitions + places // max(length, 1)
        return np.where(places < length * self._partitions, positions, places)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Groups:
    """The shuffled shards in groups: a group is a shuffle window within a partition.

    Group g has those samples of shards[first[g] : last[g]] whose places, in the concatenated
    shuffled shards, are from starts[g] to starts[g + 1].

    Attributes:
        stored: (shards + 1,) index of the first sample of each stored shard, and the end.
        shards: (shards,) the shards in shuffled order.
        begins: (shards + 1,) place where each shuffled shard begins, and the end.
        first: (groups,) position in `shards` of the first shard of each group.
        last: (groups,) position in `shards` after the last shard of each group.
        starts: (groups + 1,) place where each group starts, and the end.
        key: seed of the shuffles.
        epoch: the epoch.
    """

    stored: NDArray[np.int64]
    shards: NDArray[np.int64]
    begins: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    starts: NDArray[np.int64]
    key: np.uint64
    epoch: int

    def at(self, places: NDArray[np.int64]) -> NDArray[np.intp]:
        """Return the groups at places."""
        return np.searchsorted(self.starts[:-1], places, side="right") - 1

    def shuffled(self, group: int) -> NDArray[np.int64]:
        """Return the samples of a group, shuffled."""
        low, high = int(self.starts[group]), int(self.starts[group + 1])
        pieces = []
        for k in range(int(self.first[group]), int(self.last[group])):
            begin, end = max(low, int(self.begins[k])), min(high, int(self.begins[k + 1]))
            sample = self.stored[self.shards[k]] + begin - self.begins[k]
            pieces.append(np.arange(sample, sample + end - begin))
        samples = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        # Random numbers are keyed by place, so no two groups share any.
        shuffle(samples, low, self.key, self.epoch, _SAMPLES)
        return samples


def _groups_of(
    sizes: Sequence[int], seed: int, epoch: int, parts: Iterable[tuple[int, int]], window: int
) -> _Groups:
    """Shuffle shards, and divide them into groups.

    parts: begin and end of each partition and of the remainder, without gaps.
    """
    key = np.uint64(seed)
    stored = np.cumsum([0, *sizes], dtype=np.int64)
    shards = np.arange(len(sizes), dtype=np.int64)
    shuffle(shards, 0, key, epoch, _SHARDS)
    begins = np.cumsum([0, *np.diff(stored)[shards]], dtype=np.int64)
    firsts, lasts, starts = [], [], []
    for low, high in parts:
        first = int(np.searchsorted(begins, low, side="left"))
        if begins[first] > low:
            first -= 1  # A shard that begins in the previous part.
        last = int(np.searchsorted(begins[:-1], high, side="left"))
        here = np.arange(first, last, window, dtype=np.int64)
        firsts.append(here)
        lasts.append(np.minimum(here + window, last))
        starts.append(np.maximum(begins[here], low))
    return _Groups(
        stored=stored,
        shards=shards,
        begins=begins,
        first=np.concatenate(firsts),
        last=np.concatenate(lasts),
        starts=np.concatenate([*starts, begins[-1:]]),
        key=key,
        epoch=epoch,
    )


def _parts(n_samples: int, n_partitions: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each partition, and of the remainder."""
    length = n_samples // n_partitions
    for partition in range(n_partitions):
        yield partition * length, (partition + 1) * length
    yield length * n_partitions, n_samples


def positions_after(position: int, n_samples: int, shard_partitions: int = 1) -> Iterator[int]:
    """Yield all other positions of an order, first those after `position` in its partition."""
    length = n_samples // shard_partitions
    whole = length * shard_partitions
    start = position
    if position < whole:
        start = position % shard_partitions * length + position // shard_partitions
    for step in range(1, n_samples):
        place = (start + step) % n_samples
        yield place % length * shard_partitions + place // length if place < whole else place


def default_prefetch(shuffle_window: int | None, shard_partitions: int, parties: int) -> int:
    """Return the default number of shards to prefetch: those of a shuffle window, at least 4.

    The shards of a window are needed almost at once, so those of the next window are downloaded
    meanwhile. In a simulation of ImageNet on one GPU with a window of 64, an epoch loses 504 s with
    4 prefetched shards and 37 s with 64 (docs/streaming-plan.md). Without a window all shards are
    needed at the start.

    Args:
        shuffle_window: see `EpochOrder`.
        shard_partitions: see `EpochOrder`.
        parties: number of ranks or nodes that share the partitions.
    """
    return max(4, (shuffle_window or 0) * max(1, shard_partitions // parties))


def rank_positions(batch_size: int, rank: int, world_size: int) -> slice:
    """Return the positions of a rank in a batch: contiguous, and equally many for each rank.

    Raises:
        ValueError: if the batch cannot be divided equally.
    """
    if batch_size < 1 or batch_size % world_size != 0:
        raise ValueError(
            f"batch_size {batch_size}, which counts all processes, is not divisible by the world "
            f"size {world_size}; use a multiple of {world_size}"
        )
    share = batch_size // world_size
    return slice(rank * share, (rank + 1) * share)


def batch_positions(
    batch_size: int, *, rank: int, world_size: int, shard_partitions: int = 1, consumed: int = 0
) -> NDArray[np.int64]:
    """Return the positions of a rank in a training batch, partition after partition.

    Args:
        batch_size: global batch size.
        rank: 0 .. world_size - 1.
        world_size: number of processes.
        shard_partitions: number of partitions of the order.
        consumed: number of samples of the order before the batch.

    Returns:
        (batch_size / world_size,) int64, in 0 .. batch_size - 1.

    Raises:
        ValueError: if the batch cannot be divided equally among ranks or partitions, or does not
            start at the first partition.
    """
    share = rank_positions(batch_size, rank, world_size)
    if shard_partitions < 1:
        raise ValueError(f"shard_partitions is {shard_partitions}; use an integer, 1 or more")
    for name, value in (("batch_size", batch_size), ("consumed", consumed)):
        if value % shard_partitions != 0:
            raise ValueError(
                f"{name} {value} is not divisible by shard_partitions {shard_partitions}, of which "
                f"each batch has equally many samples; use a multiple of {shard_partitions}"
            )
    return np.arange(batch_size, dtype=np.int64).reshape(-1, shard_partitions).T.ravel()[share]


def count_batches(n_samples: int, batch_size: int, consumed: int = 0) -> int:
    """Return the number of full batches that remain in an epoch."""
    return max(0, n_samples - consumed) // batch_size


def training_batches(
    order: EpochOrder,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    shard_partitions: int = 1,
    consumed: int = 0,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the training batches of a rank, from a position in the order.

    Args:
        order: order of an epoch with N samples.
        batch_size: global batch size.
        rank: 0 .. world_size - 1.
        world_size: number of processes.
        shard_partitions: number of partitions of the order.
        consumed: number of samples of the order that were used in all ranks together; a multiple of
            shard_partitions.

    Yields:
        Positions of the rank's samples in the order, and the samples; (batch_size / world_size,)
        int64 each. The last N modulo batch_size samples are left out.

    Raises:
        ValueError: if a batch cannot be divided equally among ranks or partitions.
    """
    positions = batch_positions(
        batch_size,
        rank=rank,
        world_size=world_size,
        shard_partitions=shard_partitions,
        consumed=consumed,
    )
    for t in range(count_batches(len(order), batch_size, consumed)):
        taken = positions + (consumed + t * batch_size)
        yield taken, order[taken]


@dataclass(frozen=True, kw_only=True)
class EvaluationBatch:
    """The samples of a rank in a step of an evaluation.

    Attributes:
        indices: (share,) int64.
        weights: (share,) float32, 1 for a sample, 0 for padding.
    """

    indices: NDArray[np.int64]
    weights: NDArray[np.float32]


def evaluation_batches(
    n_samples: int, *, batch_size: int, rank: int, world_size: int
) -> Iterator[EvaluationBatch]:
    """Yield the evaluation batches of a rank: each sample once over all ranks, in equal steps.

    The last step is padded with sample 0 at weight 0, so all batches of a rank have the same size.

    Raises:
        ValueError: if a batch cannot be divided equally.
    """
    positions = rank_positions(batch_size, rank, world_size)
    for start in range(0, n_samples, batch_size):
        indices = np.arange(start + positions.start, start + positions.stop, dtype=np.int64)
        real = indices < n_samples
        yield EvaluationBatch(indices=np.where(real, indices, 0), weights=real.astype(np.float32))


class Request(NamedTuple):
    """A batch for a worker to make. positions: those of its samples in the order of the epoch."""

    epoch: int
    positions: NDArray[np.int64]
    indices: NDArray[np.int64]


class Requests:
    """The requests of an epoch, generated in each iteration, because a list would be large.

    Attributes:
        make: returns an iterator over the requests from a given number on.
        ends: (shards,) int64, positions after which no request needs a shard; or None.
    """

    def __init__(
        self, make: Callable[[int], Iterator[Request]], ends: NDArray[np.int64] | None = None
    ) -> None:
        self.make, self.ends = make, ends

    def __iter__(self) -> Iterator[Request]:
        return self.make(0)


class ShardUses:
    """The first and the last request that needs each shard, computed lazily.

    Attributes:
        first: shard -> number of the first request that needs it, among those read so far.
        last: shard -> number of the last one among those.
    """

    def __init__(self, shard_of: NDArray[np.integer], requests: Requests) -> None:
        """Read no request yet. shard_of: (samples,) the shard of each sample."""
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self._shard_of = shard_of
        self._ends = requests.ends
        self._upcoming = enumerate(requests)
        self._position: float = 0
        self._found: deque[int] = deque()

    def in_order(self) -> Iterator[int]:
        """Yield the shards in the order in which they are first needed."""
        while self._found or self._read_request():
            while self._found:
                yield self._found.popleft()

    def are_over(self, shard: int, t: int) -> bool:
        """Return whether no request after number t needs a shard."""
        end = math.inf if self._ends is None else int(self._ends[shard])
        while self.last[shard] <= t and self._position < end:
            self._read_request()
        return self.last[shard] <= t

    def _read_request(self) -> bool:
        """Read the next request; return whether there was one."""
        following = next(self._upcoming, None)
        if following is None:
            self._position = math.inf
            return False
        t, request = following
        for shard in np.unique(self._shard_of[request.indices]).tolist():
            if shard not in self.first:
                self.first[shard] = t
                self._found.append(shard)
            self.last[shard] = t
        # All positions of later requests are larger.
        self._position = int(request.positions.max()) + 1
        return True
