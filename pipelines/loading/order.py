"""In which order samples come, and who gets which: pure functions of a few numbers.

    order G      a permutation of 0 .. N-1, a function of (seed, epoch), and of windows where used
    batch t      G[t B : (t + 1) B], B samples over all ranks
    rank r       of W gets the B / W places of each batch from r B / W on

    B = 6, W = 2    G: 4 0 7 | 2 9 5   1 3 8 | 6 11 10   (12, 13: left out this epoch)
                       rank 0  rank 1  rank 0  rank 1

So batches do not depend on W, and an epoch can go on from any place in G, also with another W.
The order is public interface: a change raises `ORDER_VERSION`.
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
) -> NDArray[np.int64]:
    """Return the order of an epoch: a permutation of 0 .. n_samples - 1.

    Args:
        n_samples: fewer than 2^32.
        seed: any whole number; taken modulo 2^64.
        epoch: 0 .. 2^32 - 1.
        shard_sizes: samples of each shard, in the order of the shards; only for windows.
        window: shards that are mixed with each other at a time: shards are shuffled, then the
            samples of each `window` of them, so that a node needs few shards at once. None mixes
            all samples.

    Returns:
        (n_samples,) int64.
    """
    key = np.uint64(seed_of(seed))
    order = np.arange(n_samples, dtype=np.int64)
    if window is None or shard_sizes is None:
        shuffle(order, 0, key, epoch, _SAMPLES)
        return order
    starts = np.cumsum([0, *shard_sizes], dtype=np.int64)
    shards = np.arange(len(shard_sizes), dtype=np.int64)
    shuffle(shards, 0, key, epoch, _SHARDS)
    begin = 0
    for first in range(0, len(shards), window):
        pieces = [np.arange(starts[s], starts[s + 1]) for s in shards[first : first + window]]
        part = np.concatenate(pieces)
        shuffle(part, begin, key, epoch, _SAMPLES)
        order[begin : begin + len(part)] = part
        begin += len(part)
    return order


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


def count_batches(n_samples: int, batch_size: int, consumed: int = 0) -> int:
    """Return how many whole batches an epoch still has."""
    return max(0, n_samples - consumed) // batch_size


def training_batches(
    order: NDArray[np.int64], *, batch_size: int, rank: int, world_size: int, consumed: int = 0
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Give what a rank trains on, from a place of the order on.

    Args:
        order: (N,) of an epoch.
        batch_size: over all ranks.
        rank: of 0 .. world_size - 1.
        world_size: number of processes.
        consumed: samples of the order that all ranks together have seen.

    Yields:
        The place in the order of the rank's first sample, and its (batch_size / world_size,)
        samples. The last N modulo batch_size are left out.

    Raises:
        ValueError: if a batch cannot be shared equally.
    """
    places = rank_places(batch_size, rank, world_size)
    for t in range(count_batches(len(order), batch_size, consumed)):
        start = consumed + t * batch_size
        yield start + places.start, order[start + places.start : start + places.stop]


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
