"""What an epoch's batches ask of nodes and how well they are shuffled: pure functions of numbers.

batches      (T, B) samples, a row a step, ranks side by side
shard_of     (N,) the shard of each sample
first, last  (nodes, shards) the first and the last step in which a node needs a shard; -1: none
"""

from collections import OrderedDict
from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Uses = tuple[Integers, Integers]


def shard_uses(batches: Integers, shard_of: Integers, n_shards: int, nodes: int) -> Uses:
    """Return the first and the last step in which each node needs each shard.

    Returns:
        (nodes, n_shards) int64 each; -1 where it needs none of the shard's samples.
    """
    steps, batch_size = batches.shape
    node = np.arange(batch_size) // (batch_size // nodes)
    keys = (node * n_shards + shard_of[batches]).ravel()
    step = np.repeat(np.arange(steps), batch_size)
    first, last = np.full((2, nodes * n_shards), -1, np.int64)
    # Of what is assigned to one place, the last stays.
    last[keys] = step
    first[keys[::-1]] = step[::-1]
    return first.reshape(nodes, n_shards), last.reshape(nodes, n_shards)


def most_at_once(uses: Uses, steps: int, early: int) -> Integers:
    """Return how many shards each node has in use at once, at most.

    A shard is in use from `early` steps before it is needed first, when a worker may open it, to
    the last. Returns (nodes,) int64.
    """
    first, last = uses
    nodes = len(first)
    change = np.zeros((nodes, steps + 1), np.int64)
    node, shard = np.nonzero(first >= 0)
    np.add.at(change, (node, np.maximum(first[node, shard] - early, 0)), 1)
    np.add.at(change, (node, last[node, shard] + 1), -1)
    at_once: Integers = change.cumsum(axis=1).max(axis=1)
    return at_once


def cached_downloads(epochs: Sequence[Uses], node: int, early: int, room: int) -> list[int] | None:
    """Return how many shards a node downloads in each epoch where its cache has room for some.

    What is in use stays; of the others those go first that were used least lately.

    Args:
        epochs: uses in each epoch, one after the other.
        node: which.
        early: see `most_at_once`.
        room: shards that the cache holds.

    Returns:
        A number an epoch; None if the shards in use at once do not fit.
    """
    idle: OrderedDict[int, None] = OrderedDict()
    downloads = []
    for first, last in epochs:
        held: list[tuple[int, int]] = []  # a heap of (last step, shard)
        count = 0
        needed = np.nonzero(first[node] >= 0)[0]
        for shard in needed[np.argsort(first[node, needed], kind="stable")].tolist():
            while held and held[0][0] < int(first[node, shard]) - early:
                idle[heappop(held)[1]] = None
            if shard in idle:
                del idle[shard]
            else:
                count += 1
                if len(held) >= room:
                    return None
                if len(held) + len(idle) >= room:
                    idle.popitem(last=False)
            heappush(held, (int(last[node, shard]), shard))
        idle.update((shard, None) for _, shard in sorted(held))
        downloads.append(count)
    return downloads


def travel(batches: Integers) -> float:
    """Return how far samples travel from where they are stored, against a full shuffle.

    The mean of |place in the order - place in the stored order|, divided by N / 3, which a random
    permutation of N has. Stored order itself has 0.
    """
    order = batches.ravel()
    return float(np.abs(order - np.arange(len(order))).mean() * 3 / len(order))


def meetings(batches: Integers, shard_of: Integers) -> float:
    """Return how often two samples of one shard meet in a row of batches, against chance.

    1 for a full shuffle; as many as there are shards where each row is of one shard. NaN where a
    row has but one sample, or no shard two.
    """
    counts = _runs(shard_of[batches])
    rows, size = batches.shape
    sizes = np.bincount(shard_of).astype(np.float64)
    n = len(shard_of)
    pairs, chance = rows * size * (size - 1), (sizes * (sizes - 1)).sum() / (n * max(n - 1, 1))
    if pairs == 0 or chance == 0:
        return float("nan")
    return float((counts * (counts - 1)).sum() / pairs / chance)


def class_entropy(batches: Integers, labels: Integers) -> float:
    """Return the entropy of the classes in a batch, in bits, as the mean over batches."""
    counts = _runs(labels[batches])
    rows, size = batches.shape
    return float(np.log2(size) - (counts * np.log2(counts)).sum() / (rows * size))


def _runs(table: Integers) -> Integers:
    """Return how often each value of each row, (rows, size), is there, row after row."""
    rows, size = table.shape
    ordered = np.sort(table, axis=1)
    begins = np.ones((rows, size), bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return np.diff(np.append(np.nonzero(begins.ravel())[0], rows * size))
