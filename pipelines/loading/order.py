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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixmix.arguments import seed_of
from pixmix.shuffling import shuffle

ORDER_VERSION = 1

_SAMPLES, _SHARDS = 0, 1


def shuffled_order(
    n_samples: int,
    *,
    seed: int,
    epoch: int,
    shard_sizes: Sequence[int] | None = None,
    window: int | None = None,
    lanes: int = 1,
) -> NDArray[np.int64]:
    """Return the order of an epoch: a permutation of 0 .. n_samples - 1.

    The shards, shuffled and laid end to end, are cut into lanes of n_samples // lanes samples,
    where need be in the middle of a shard. In each lane the pieces of `window` shards are mixed at
    a time; then a sample of each lane comes in turn. The last n_samples % lanes come at the end.

    Args:
        n_samples: fewer than 2^32.
        seed: any whole number; taken modulo 2^64.
        epoch: 0 .. 2^32 - 1.
        shard_sizes: samples of each shard, in the order of the shards; for windows and lanes.
        window: shards that are mixed with each other at a time: shards are shuffled, then the
            samples of each `window` of them, so that a node needs few shards at once. None mixes
            all samples, or all of a lane.
        lanes: parts of which each batch takes equally many samples, 1 or more.

    Returns:
        (n_samples,) int64.

    Raises:
        ValueError: for lanes of a set whose shards are not told.
    """
    key = np.uint64(seed_of(seed))
    order = np.arange(n_samples, dtype=np.int64)
    if lanes > 1 and shard_sizes is None:
        raise ValueError(f"lanes is {lanes}, and lanes are of shards; give shard_sizes too")
    if shard_sizes is None or (window is None and lanes == 1):
        shuffle(order, 0, key, epoch, _SAMPLES)
        return order
    stored = np.cumsum([0, *shard_sizes], dtype=np.int64)
    shards = np.arange(len(shard_sizes), dtype=np.int64)
    shuffle(shards, 0, key, epoch, _SHARDS)
    # Where each shard begins when they lie end to end as shuffled.
    begins = np.concatenate([stored[:1], np.cumsum(np.diff(stored)[shards])])
    for low, high, places in _parts(n_samples, lanes):
        part_of_order = order[places]
        for group in _groups(begins, low, high, window or len(shards)):
            pieces = []
            for k in group:
                begin, end = max(low, int(begins[k])), min(high, int(begins[k + 1]))
                sample = stored[shards[k]] + begin - begins[k]
                pieces.append(np.arange(sample, sample + end - begin))
            mixed = np.concatenate(pieces)
            first = max(low, int(begins[group.start]))
            # Words by place, so that no two groups share one.
            shuffle(mixed, first, key, epoch, _SAMPLES)
            part_of_order[first - low : first - low + len(mixed)] = mixed
    return order


def _parts(n_samples: int, lanes: int) -> Iterator[tuple[int, int, slice]]:
    """Give begin and end of each lane, and of what is left, and which places of the order it has.

    They begin and end where shards lie end to end.
    """
    length = n_samples // lanes
    whole = length * lanes
    for lane in range(lanes):
        yield lane * length, (lane + 1) * length, slice(lane, whole, lanes)
    yield whole, n_samples, slice(whole, n_samples)


def _groups(begins: NDArray[np.int64], low: int, high: int, window: int) -> Iterator[range]:
    """Give the shards that have places from low to high, `window` at a time.

    begins: (shards + 1,) places at which shards begin, rising; the last is where they end.
    """
    first = int(np.searchsorted(begins, low, side="left"))
    if begins[first] > low:
        first -= 1  # one that began in the part before
    last = int(np.searchsorted(begins[:-1], high, side="left"))
    for begin in range(first, last, window):
        yield range(begin, min(begin + window, last))


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
    (`pixmix-bench streaming`). Without windows all are needed at the beginning.

    Args:
        window: see `shuffled_order`.
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
    order: NDArray[np.int64],
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    consumed: int = 0,
    lanes: int = 1,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Give what a rank trains on, from a place of the order on.

    Args:
        order: (N,) of an epoch.
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
