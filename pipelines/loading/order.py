"""In which order samples come, and who gets which: pure functions of a few numbers.

    order G      a permutation of 0 .. N-1, a function of (seed, epoch), and of windows and lanes
                 where used
    batch t      G[t B : (t + 1) B], B samples over all ranks
    rank r       of W gets the B / W places of each batch from r B / W on

    B = 6, W = 2    G: 4 0 7 | 2 9 5   1 3 8 | 6 11 10   (12, 13: left out this epoch)
                       rank 0  rank 1  rank 0  rank 1

So batches do not depend on W, and an epoch can go on from any place in G, also with another W.

With windows each batch draws from a few shards, and still every rank from all of those. Lanes part
the shards among ranks: the shards, shuffled, are cut into as many lanes as equal parts, and each
batch takes equally many samples of each lane, lane after lane.

    lanes L      place p of G is of lane p mod L
    batch t      G[t B : (t + 1) B], those of lane 0 first, then those of lane 1, ...

    B = 6, L = W = 2    G: 4 9 0 8 1 7 | 2 6 ...    4, 0, 1, 2 of lane 0; 9, 8, 7, 6 of lane 1
                        rank 0: 4 0 1  rank 1: 9 8 7

So where L divides W or W divides L, a rank needs the shards of its own lanes alone. One lane is as
if there were none. The order is public interface: a change raises `ORDER_VERSION`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pixmix.arguments import seed_of
from pixmix.philox import shuffle

ORDER_VERSION = 1

_SAMPLES, _SHARDS = 0, 1

_GROUPS_KEPT = 3
_PLACE_BYTES = 8


class EpochOrder:
    """The order of an epoch: a permutation of 0 .. n_samples - 1, made where it is looked at.

    The shards, shuffled and laid end to end, are cut into lanes of n_samples // lanes samples,
    where need be in the middle of a shard. In each lane the pieces of `window` shards are mixed at
    a time; then a sample of each lane comes in turn. The last n_samples % lanes come at the end.

    So with windows a few of them are in memory, 8 bytes a sample; without, all that is mixed.

        order = EpochOrder(len(shards), seed=0, epoch=3, shard_sizes=sizes, window=16)
        order[np.array([1000, 1001])]      (2,) int64: the samples that come 1001st and 1002nd
    """

    def __init__(
        self,
        n_samples: int,
        *,
        seed: int,
        epoch: int,
        shard_sizes: Sequence[int] | None = None,
        window: int | None = None,
        lanes: int = 1,
    ) -> None:
        """Prepare the order.

        Args:
            n_samples: of the set; fewer than 2^32 are mixed with each other.
            seed: any whole number; taken modulo 2^64.
            epoch: 0 .. 2^32 - 1.
            shard_sizes: samples of each shard, in the order of the shards; for windows and lanes.
            window: shards that are mixed with each other at a time: shards are shuffled, then the
                samples of each `window` of them, so that a node needs few shards at once. None
                mixes all samples, or all of a lane.
            lanes: parts of which each batch takes equally many samples, 1 or more.

        Raises:
            ValueError: for lanes of a set whose shards are not told.
        """
        if lanes > 1 and shard_sizes is None:
            raise ValueError(f"lanes is {lanes}, and lanes are of shards; give shard_sizes too")
        self._n_samples, self._lanes = n_samples, lanes
        self._by_shards = shard_sizes is not None and (window is not None or lanes > 1)
        # Else it is as if one shard had all.
        sizes = shard_sizes if shard_sizes is not None and self._by_shards else [n_samples]
        self._groups = _groups_of(
            sizes, seed_of(seed), epoch, _parts(n_samples, lanes), window or len(sizes)
        )
        # Of each lane that is mixed, and of the next ones, for whoever looks ahead.
        self._mixed = lru_cache(_GROUPS_KEPT * lanes + 1)(self._groups.mixed)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._n_samples

    def __getitem__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which samples come at places, (n,) int64 each."""
        ends = self._end_to_end(places)
        groups = self._groups.at(ends)
        samples = np.empty(len(places), np.int64)
        for group in np.unique(groups).tolist():
            here = groups == group
            samples[here] = self._mixed(group)[ends[here] - self._groups.starts[group]]
        return samples

    def whole(self) -> NDArray[np.int64]:
        """Return all of it, (n_samples,) int64."""
        order = np.empty(self._n_samples, np.int64)
        for group, (low, high) in enumerate(pairwise(self._groups.starts.tolist())):
            order[self._places(np.arange(low, high))] = self._groups.mixed(group)
        return order

    def ends_of_shards(self) -> NDArray[np.int64] | None:
        """Return for each shard a place from which on the order has none of its samples.

        It is where the last window ends that has some, and so hardly after the last of them.
        (shards,) int64; None where all samples are mixed, without a look at shards.
        """
        if not self._by_shards:
            return None
        groups = self._groups
        ends = np.zeros(len(groups.shards), np.int64)
        if self._n_samples == 0:
            return ends
        of_group = self._places(np.maximum(groups.starts[1:] - 1, 0)) + 1
        group = groups.at(np.minimum(groups.begins[:-1], self._n_samples - 1))
        last = np.maximum(group, groups.at(np.maximum(groups.begins[1:] - 1, 0)))
        while True:
            ends[groups.shards] = np.maximum(ends[groups.shards], of_group[group])
            if np.array_equal(group, last):
                return ends
            group = np.minimum(group + 1, last)

    def _end_to_end(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where places of the order lie when its lanes lie end to end."""
        length = self._n_samples // self._lanes
        there = places % self._lanes * length + places // self._lanes
        return np.where(places < length * self._lanes, there, places)

    def _places(self, ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which places of the order lie there when its lanes lie end to end."""
        length = self._n_samples // self._lanes
        places = ends % max(length, 1) * self._lanes + ends // max(length, 1)
        return np.where(ends < length * self._lanes, places, ends)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Groups:
    """Shards, as shuffled, that are mixed with each other: those of a window, within a lane.

    stored: (shards + 1,) first samples, and the end. shards: (shards,) which comes when, and
    begins: (shards + 1,) where it begins when they lie end to end, and the end.
    Group g has of shards[first[g] : last[g]] the samples that lie from starts[g] to starts[g + 1].
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
        """Return the group that lies there."""
        return np.searchsorted(self.starts[:-1], ends, side="right") - 1

    def mixed(self, group: int) -> NDArray[np.int64]:
        """Return the samples of a group, mixed."""
        low, high = int(self.starts[group]), int(self.starts[group + 1])
        pieces = []
        for k in range(int(self.first[group]), int(self.last[group])):
            begin, end = max(low, int(self.begins[k])), min(high, int(self.begins[k + 1]))
            sample = self.stored[self.shards[k]] + begin - self.begins[k]
            pieces.append(np.arange(sample, sample + end - begin))
        mixed = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        # Words by place, so that no two groups share one.
        shuffle(mixed, low, self.key, self.epoch, _SAMPLES)
        return mixed


def _groups_of(
    sizes: Sequence[int], seed: int, epoch: int, parts: Iterable[tuple[int, int]], window: int
) -> _Groups:
    """Shuffle shards, and part them into groups.

    parts: begin and end of each lane, and of what is left, side by side to the end.
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


def _parts(n_samples: int, lanes: int) -> Iterator[tuple[int, int]]:
    """Give begin and end of each lane, and of what is left."""
    length = n_samples // lanes
    for lane in range(lanes):
        yield lane * length, (lane + 1) * length
    yield length * lanes, n_samples


def order_bytes(
    n_samples: int,
    samples_per_shard: int,
    *,
    window: int | None,
    lanes: int = 1,
    world_size: int = 1,
) -> int:
    """Return how many bytes of an order a process of a training has at most; see `EpochOrder`."""
    of_rank = max(1, lanes // world_size)
    of_lane = -(-n_samples // lanes)
    if window is None:
        return of_rank * of_lane * _PLACE_BYTES
    groups = _GROUPS_KEPT * of_rank + 1
    return min(groups * window * samples_per_shard, of_rank * of_lane) * _PLACE_BYTES


def places_after(place: int, n_samples: int, lanes: int = 1) -> Iterator[int]:
    """Give all other places of an order from one on: first those of its lane, then the others."""
    length = n_samples // lanes
    whole = length * lanes
    here = place % lanes * length + place // lanes if place < whole else place
    for step in range(1, n_samples):
        there = (here + step) % n_samples
        yield there % length * lanes + there // length if there < whole else there


def shards_ahead(window: int | None, lanes: int, parties: int) -> int:
    """Return how many shards are best downloaded before they are needed.

    A window's are needed nearly all at once, so those of the next one come meanwhile. Simulated for
    one GPU of ImageNet with a window of 64, an epoch loses 504 s with 4 ahead and 37 s with 64
    (docs/streaming-plan.md). Without windows all are needed at the beginning.

    Args:
        window: see `EpochOrder`.
        lanes: likewise.
        parties: ranks, or nodes, that share the lanes.
    """
    return max(4, (window or 0) * max(1, lanes // parties))


def rank_places(batch_size: int, rank: int, world_size: int) -> slice:
    """Return which places of a batch a rank gets: equally many each, side by side.

    Raises:
        ValueError: if the batch cannot be shared equally.
    """
    if batch_size < 1 or batch_size % world_size != 0:
        raise ValueError(
            f"a batch of {batch_size} cannot be shared equally by {world_size} processes; "
            f"batch_size counts all of them: give a multiple of {world_size}"
        )
    share = batch_size // world_size
    return slice(rank * share, (rank + 1) * share)


def batch_places(
    batch_size: int, *, rank: int, world_size: int, lanes: int = 1
) -> NDArray[np.int64]:
    """Return which places of a training batch a rank gets, in its order: lane after lane.

    Returns:
        (batch_size / world_size,) int64, of 0 .. batch_size - 1.

    Raises:
        ValueError: if the batch cannot be shared equally by ranks, or by lanes.
    """
    share = rank_places(batch_size, rank, world_size)
    if lanes < 1:
        raise ValueError(f"lanes is {lanes}; give a number of lanes, 1 or more")
    if batch_size % lanes != 0:
        raise ValueError(
            f"a batch of {batch_size} cannot be shared equally by {lanes} lanes; give lanes that "
            f"divide it, or a batch_size that is a multiple of {lanes}"
        )
    return np.arange(batch_size, dtype=np.int64).reshape(-1, lanes).T.ravel()[share]


def count_batches(n_samples: int, batch_size: int, consumed: int = 0) -> int:
    """Return how many whole batches an epoch still has."""
    return max(0, n_samples - consumed) // batch_size


def training_batches(
    order: "EpochOrder",
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    consumed: int = 0,
    lanes: int = 1,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Give what a rank trains on, from a place of the order on.

    Args:
        order: of an epoch, of N samples.
        batch_size: over all ranks.
        rank: of 0 .. world_size - 1.
        world_size: number of processes.
        consumed: samples of the order that all ranks together have seen; a multiple of lanes.
        lanes: of the order.

    Yields:
        Places in the order of the rank's samples, and the samples, (batch_size / world_size,) each.
        The last N modulo batch_size are left out.

    Raises:
        ValueError: if a batch cannot be shared equally by ranks, or by lanes.
    """
    places = batch_places(batch_size, rank=rank, world_size=world_size, lanes=lanes)
    for t in range(count_batches(len(order), batch_size, consumed)):
        taken = places + (consumed + t * batch_size)
        yield taken, order[taken]


@dataclass(frozen=True, kw_only=True)
class EvaluationBatch:
    """What a rank evaluates in a step.

    indices: (share,) int64; weights: (share,) float32, 1 for a sample, 0 for what only fills up.
    """

    indices: NDArray[np.int64]
    weights: NDArray[np.float32]


def evaluation_batches(
    n_samples: int, *, batch_size: int, rank: int, world_size: int
) -> Iterator[EvaluationBatch]:
    """Give what a rank evaluates: each sample once over all ranks, equally many steps each.

    Where the samples do not suffice for the last step, sample 0 fills up with weight 0; all
    batches of a rank have one size.

    Raises:
        ValueError: if a batch cannot be shared equally.
    """
    places = rank_places(batch_size, rank, world_size)
    for start in range(0, n_samples, batch_size):
        indices = np.arange(start + places.start, start + places.stop, dtype=np.int64)
        there = indices < n_samples
        yield EvaluationBatch(indices=np.where(there, indices, 0), weights=there.astype(np.float32))
