"""In which order samples come, and who gets which: pure functions of a few numbers.

    order G      a permutation of 0 .. N-1, a function of (seed, epoch), and of shuffle window and
                 shard partitions where used
    batch t      G[t B : (t + 1) B], B samples over all ranks
    rank r       of W gets the B / W positions of each batch from r B / W on

    B = 6, W = 2    G: 4 0 7 | 2 9 5   1 3 8 | 6 11 10   (12, 13: left out this epoch)
                       rank 0  rank 1  rank 0  rank 1

So batches do not depend on W, and an epoch can be resumed at any position of G, with any W.

With a shuffle window each batch draws from a few shards, and still every rank from all of those.
Shard partitions divide the shards among ranks: the shards, shuffled, are cut into P equal
partitions, and each batch takes equally many samples of each, one partition after another.

    partitions P    position p of G is of partition p mod P
    batch t         G[t B : (t + 1) B], those of partition 0 first, then those of partition 1, ...

    B = 6, P = W = 2    G: 4 9 0 8 1 7 | 2 6 ...
                        partition 0: 4, 0, 1, 2; partition 1: 9, 8, 7, 6
                        rank 0: 4 0 1  rank 1: 9 8 7

So where P divides W or W divides P, a rank needs the shards of its own partitions alone. One
partition is the same as none. The order is public interface: a change raises `ORDER_VERSION`.
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

_GROUPS_KEPT = 3
_POSITION_BYTES = 8


class EpochOrder:
    """The order of an epoch: a permutation of 0 .. n_samples - 1, made where it is looked at.

    The shards, shuffled and laid end to end, are cut into P partitions of n_samples // P samples,
    where need be in the middle of a shard. In each partition the pieces of `shuffle_window` shards
    are shuffled together; then a sample of each partition comes in turn. The last n_samples % P
    samples come at the end.

    With windows a few of them are in memory, 8 bytes a sample; without, the whole order.

        order = EpochOrder(len(shards), seed=0, epoch=3, shard_sizes=sizes, shuffle_window=16)
        order[np.array([1000, 1001])]      (2,) int64: the samples that come 1001st and 1002nd
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
            n_samples: of the dataset; fewer than 2^32 are shuffled together.
            seed: any whole number; taken modulo 2^64.
            epoch: 0 .. 2^32 - 1.
            shard_sizes: samples of each shard, in the order of the shards; None for a dataset
                without shards.
            shuffle_window: number of shards that are shuffled together: shards are shuffled, then
                the samples of each `shuffle_window` of them, so that a node needs few shards at a
                time. None shuffles all samples together, or all of a partition.
            shard_partitions: parts of which each batch takes equally many samples, 1 or more.

        Raises:
            ValueError: for windows or partitions of a dataset without shards.
        """
        by_shards = shuffle_window is not None or shard_partitions > 1
        if by_shards and shard_sizes is None:
            raise ValueError(
                f"shuffle_window is {shuffle_window} and shard_partitions {shard_partitions}, and "
                "the dataset has no shards; leave both out"
            )
        self._n_samples, self._partitions, self._by_shards = n_samples, shard_partitions, by_shards
        # Without, it is as if one shard had all.
        sizes = shard_sizes if shard_sizes is not None and by_shards else [n_samples]
        parts = _parts(n_samples, shard_partitions)
        self._groups = _groups_of(
            sizes, check_seed(seed), epoch, parts, shuffle_window or len(sizes)
        )
        # The current group of each partition, and the next ones, for those who prefetch.
        self._shuffled = lru_cache(_GROUPS_KEPT * shard_partitions + 1)(self._groups.shuffled)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._n_samples

    def __getitem__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which samples come at positions, (n,) int64 each."""
        ends = self._end_to_end(positions)
        groups = self._groups.at(ends)
        samples = np.empty(len(positions), np.int64)
        for group in np.unique(groups).tolist():
            here = groups == group
            samples[here] = self._shuffled(group)[ends[here] - self._groups.starts[group]]
        return samples

    def whole(self) -> NDArray[np.int64]:
        """Return all of it, (n_samples,) int64."""
        order = np.empty(self._n_samples, np.int64)
        for group, (low, high) in enumerate(pairwise(self._groups.starts.tolist())):
            order[self._positions(np.arange(low, high))] = self._groups.shuffled(group)
        return order

    def ends_of_shards(self) -> NDArray[np.int64] | None:
        """Return for each shard a position from which on the order has none of its samples.

        It is where the last window ends that has some, and so hardly after the last of them.
        (shards,) int64; None where all samples are shuffled together.
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

    def _end_to_end(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where positions of the order are when its partitions are laid end to end."""
        length = self._n_samples // self._partitions
        there = positions % self._partitions * length + positions // self._partitions
        return np.where(positions < length * self._partitions, there, positions)

    def _positions(self, ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which positions of the order are there when its partitions are laid end to end."""
        length = self._n_samples // self._partitions
        positions = ends % max(length, 1) * self._partitions + ends // max(length, 1)
        return np.where(ends < length * self._partitions, positions, ends)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Groups:
    """Shards, in their shuffled order, in groups: those of a window, within a partition.

    stored: (shards + 1,) first samples, and the end. shards: (shards,) which comes when, and
    begins: (shards + 1,) where it begins when they are laid end to end, and the end.
    Group g has of shards[first[g] : last[g]] the samples from starts[g] to starts[g + 1].
    """

    stored: NDArray[np.int64]
    shards: NDArray[np.int64]
    begins: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    starts: NDArray[np.int64]
    key: np.uint64
    epoch: int

    def at(self, ends: NDArray[np.int64]) -> NDArray[np.intp]:
        """Return the groups of places, where all are laid end to end."""
        return np.searchsorted(self.starts[:-1], ends, side="right") - 1

    def shuffled(self, group: int) -> NDArray[np.int64]:
        """Return the samples of a group, shuffled."""
        low, high = int(self.starts[group]), int(self.starts[group + 1])
        pieces = []
        for k in range(int(self.first[group]), int(self.last[group])):
            begin, end = max(low, int(self.begins[k])), min(high, int(self.begins[k + 1]))
            sample = self.stored[self.shards[k]] + begin - self.begins[k]
            pieces.append(np.arange(sample, sample + end - begin))
        samples = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        # Random words by position, so that no two groups share one.
        shuffle(samples, low, self.key, self.epoch, _SAMPLES)
        return samples


def _groups_of(
    sizes: Sequence[int], seed: int, epoch: int, parts: Iterable[tuple[int, int]], window: int
) -> _Groups:
    """Shuffle shards, and divide them into groups.

    parts: begin and end of each partition, and of the remainder, side by side to the end.
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
            first -= 1  # one that began in the part before
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
    """Give begin and end of each partition, and of the remainder."""
    length = n_samples // n_partitions
    for partition in range(n_partitions):
        yield partition * length, (partition + 1) * length
    yield length * n_partitions, n_samples


def order_bytes(
    n_samples: int,
    samples_per_shard: int,
    *,
    shuffle_window: int | None,
    shard_partitions: int = 1,
    world_size: int = 1,
) -> int:
    """Return how many bytes of an order a process has in memory at most; see `EpochOrder`."""
    of_rank = max(1, shard_partitions // world_size)
    of_partition = -(-n_samples // shard_partitions)
    if shuffle_window is None:
        return of_rank * of_partition * _POSITION_BYTES
    groups = _GROUPS_KEPT * of_rank + 1
    return (
        min(groups * shuffle_window * samples_per_shard, of_rank * of_partition) * _POSITION_BYTES
    )


def positions_after(position: int, n_samples: int, shard_partitions: int = 1) -> Iterator[int]:
    """Give all other positions of an order from one on, those of its partition first."""
    length = n_samples // shard_partitions
    whole = length * shard_partitions
    here = position
    if position < whole:
        here = position % shard_partitions * length + position // shard_partitions
    for step in range(1, n_samples):
        there = (here + step) % n_samples
        yield there % length * shard_partitions + there // length if there < whole else there


def default_prefetch(shuffle_window: int | None, shard_partitions: int, parties: int) -> int:
    """Return how many shards are best downloaded before they are needed.

    Those of a window are needed nearly all at once, so those of the next one come meanwhile.
    Simulated for one GPU of ImageNet with a window of 64, an epoch loses 504 s with 4 prefetched
    and 37 s with 64 (docs/streaming-plan.md). Without windows all are needed at the beginning.

    Args:
        shuffle_window: see `EpochOrder`.
        shard_partitions: see `EpochOrder`.
        parties: ranks, or nodes, that share the partitions.
    """
    return max(4, (shuffle_window or 0) * max(1, shard_partitions // parties))


def rank_positions(batch_size: int, rank: int, world_size: int) -> slice:
    """Return which positions of a batch a rank gets: equally many each, side by side.

    Raises:
        ValueError: if the batch cannot be shared equally.
    """
    if batch_size < 1 or batch_size % world_size != 0:
        raise ValueError(
            f"a batch of {batch_size} cannot be shared equally by {world_size} processes; "
            f"batch_size counts all of them: use a multiple of {world_size}"
        )
    share = batch_size // world_size
    return slice(rank * share, (rank + 1) * share)


def batch_positions(
    batch_size: int, *, rank: int, world_size: int, shard_partitions: int = 1, consumed: int = 0
) -> NDArray[np.int64]:
    """Return which positions of a training batch a rank gets, partition after partition.

    Args:
        batch_size: over all ranks.
        rank: of 0 .. world_size - 1.
        world_size: number of processes.
        shard_partitions: of the order.
        consumed: samples of the order before the batch.

    Returns:
        (batch_size / world_size,) int64, of 0 .. batch_size - 1.

    Raises:
        ValueError: if the batch cannot be shared equally by ranks, or by partitions, or does not
            begin with the first partition.
    """
    share = rank_positions(batch_size, rank, world_size)
    if shard_partitions < 1:
        raise ValueError(f"shard_partitions is {shard_partitions}; use a whole number, 1 or more")
    for name, value in (("batch_size", batch_size), ("consumed", consumed)):
        if value % shard_partitions != 0:
            raise ValueError(
                f"{name} is {value}, and each batch has equally many samples of each of "
                f"{shard_partitions} shard_partitions; use a multiple of {shard_partitions}"
            )
    return np.arange(batch_size, dtype=np.int64).reshape(-1, shard_partitions).T.ravel()[share]


def count_batches(n_samples: int, batch_size: int, consumed: int = 0) -> int:
    """Return how many whole batches an epoch still has."""
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
    """Give what a rank trains on, from a position of the order on.

    Args:
        order: of an epoch, of N samples.
        batch_size: over all ranks.
        rank: of 0 .. world_size - 1.
        world_size: number of processes.
        shard_partitions: of the order.
        consumed: samples of the order that all ranks together have seen; a multiple of
            shard_partitions.

    Yields:
        Positions of the rank's samples in the order, and the samples, (batch_size / world_size,)
        each.
        The last N modulo batch_size are left out.

    Raises:
        ValueError: if a batch cannot be shared equally by ranks, or by partitions.
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
    """What a rank evaluates in a step.

    indices: (share,) int64; weights: (share,) float32, 1 for a sample, 0 for padding.
    """

    indices: NDArray[np.int64]
    weights: NDArray[np.float32]


def evaluation_batches(
    n_samples: int, *, batch_size: int, rank: int, world_size: int
) -> Iterator[EvaluationBatch]:
    """Give what a rank evaluates: each sample once over all ranks, equally many steps each.

    The last step is padded by sample 0 with weight 0; all batches of a rank have one size.

    Raises:
        ValueError: if a batch cannot be shared equally.
    """
    positions = rank_positions(batch_size, rank, world_size)
    for start in range(0, n_samples, batch_size):
        indices = np.arange(start + positions.start, start + positions.stop, dtype=np.int64)
        there = indices < n_samples
        yield EvaluationBatch(indices=np.where(there, indices, 0), weights=there.astype(np.float32))


class Request(NamedTuple):
    """A batch that a worker is to make. positions: of its samples in the order of the epoch."""

    epoch: int
    positions: NDArray[np.int64]
    indices: NDArray[np.int64]


class Requests:
    """The requests of an epoch, made when they are iterated, for a list of them would be large.

    Attributes:
        make: gives the requests from a number on.
        ends: (shards,) int64, positions from which on no request needs a shard; or None.
    """

    def __init__(
        self, make: Callable[[int], Iterator[Request]], ends: NDArray[np.int64] | None = None
    ) -> None:
        self.make, self.ends = make, ends

    def __iter__(self) -> Iterator[Request]:
        return self.make(0)


class ShardUses:
    """Which request needs a shard first, and which last: computed as far as is asked.

    first, last: shard -> number of a request, of those that were looked at.
    """

    def __init__(self, shard_of: NDArray[np.integer], requests: Requests) -> None:
        """Begin. shard_of: (samples,) the shard of each."""
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self._shard_of = shard_of
        self._ends = requests.ends
        self._upcoming = enumerate(requests)
        self._position: float = 0
        self._found: deque[int] = deque()

    def in_order(self) -> Iterator[int]:
        """Give the shards in the order in which they are first needed."""
        while self._found or self._look():
            while self._found:
                yield self._found.popleft()

    def are_over(self, shard: int, t: int) -> bool:
        """Return whether request t, or one before it, was the last that needs a shard."""
        end = math.inf if self._ends is None else int(self._ends[shard])
        while self.last[shard] <= t and self._position < end:
            self._look()
        return self.last[shard] <= t

    def _look(self) -> bool:
        """Look at the next request; return whether there was one."""
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
        # Positions of later requests are all behind it.
        self._position = int(request.positions.max()) + 1
        return True
