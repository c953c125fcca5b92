"""Model of an epoch of training from remote shards: downloads, duration and quality of shuffling.

Pure functions of numbers, and a discrete model of time without randomness:

batches      (T, B) samples, one row per step, with the parts of the ranks side by side
shard_of     (N,) the shard of each sample
first, last  (nodes, shards) the first and the last step in which a node needs a shard; -1: none

A node downloads its shards one at a time, in the order in which it needs them, at most `prefetch`
beyond those that are requested. The shards of a step are requested `early` steps before it, when
workers start its batch; without workers, when the previous step has ended. A step starts when the
previous one has ended and every node has all its shards for it.
"""

import os
import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray
from webdataset import filters, shardlists

Integers = NDArray[np.int64]
Uses = tuple[Integers, Integers]


def shard_uses(batches: Integers, shard_of: Integers, n_shards: int, nodes: int) -> Uses:
    """Return the first and the last step in which each node needs each shard.

    Returns:
        (nodes, n_shards) int64 each; -1 if a node needs no sample of a shard.
    """
    steps, batch_size = batches.shape
    node = np.arange(batch_size) // (batch_size // nodes)
    keys = (node * n_shards + shard_of[batches]).ravel()
    step = np.repeat(np.arange(steps), batch_size)
    first, last = np.full((2, nodes * n_shards), -1, np.int64)
    # Of several assignments to one element, the last remains.
    last[keys] = step
    first[keys[::-1]] = step[::-1]
    return first.reshape(nodes, n_shards), last.reshape(nodes, n_shards)


def most_at_once(uses: Uses, steps: int, early: int) -> Integers:
    """Return the maximum number of shards that each node uses at once, (nodes,) int64.

    A shard is in use from `early` steps before the first step that needs it, when a worker may open
    it, to the last one.
    """
    first, last = uses
    nodes = len(first)
    change = np.zeros((nodes, steps + 1), np.int64)
    node, shard = np.nonzero(first >= 0)
    np.add.at(change, (node, np.maximum(first[node, shard] - early, 0)), 1)
    np.add.at(change, (node, last[node, shard] + 1), -1)
    at_once: Integers = change.cumsum(axis=1).max(axis=1)
    return at_once


def cached_downloads(
    epochs: Sequence[Uses], node: int, early: int, capacity: int
) -> list[int] | None:
    """Return the number of shards that a node downloads in each epoch, with a limited cache.

    Shards in use are kept; of the others the least recently used ones are removed first.

    Args:
        epochs: the uses in consecutive epochs.
        node: number of the node.
        early: see `most_at_once`.
        capacity: number of shards that fit into the cache.

    Returns:
        One number per epoch; None if the shards in use at once do not fit.
    """
    idle: OrderedDict[int, None] = OrderedDict()
    downloads = []
    for first, last in epochs:
        held: list[tuple[int, int]] = []  # A heap of (last step, shard).
        count = 0
        needed = np.nonzero(first[node] >= 0)[0]
        for shard in needed[np.argsort(first[node, needed], kind="stable")].tolist():
            while held and held[0][0] < int(first[node, shard]) - early:
                idle[heappop(held)[1]] = None
            if shard in idle:
                del idle[shard]
            else:
                count += 1
                if len(held) >= capacity:
                    return None
                if len(held) + len(idle) >= capacity:
                    idle.popitem(last=False)
            heappush(held, (int(last[node, shard]), shard))
        idle.update((shard, None) for _, shard in sorted(held))
        downloads.append(count)
    return downloads


def displacement(batches: Integers) -> float:
    """Return the mean distance of samples from their stored position, relative to a full shuffle.

    This is the mean of |position in the order - stored position|, divided by its expectation N / 3
    for a random permutation. The stored order has 0.
    """
    order = batches.ravel()
    return float(np.abs(order - np.arange(len(order))).mean() * 3 / len(order))


def collisions(batches: Integers, shard_of: Integers) -> float:
    """Return how often two samples of one shard are in one row of batches, relative to chance.

    A full shuffle has 1; if each row has samples of only one shard, this is the number of shards.
    NaN if rows or all shards have only one sample.
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
    """Return the entropy of the classes in a batch, in bits; the mean over batches."""
    counts = _runs(labels[batches])
    rows, size = batches.shape
    return float(np.log2(size) - (counts * np.log2(counts)).sum() / (rows * size))


def _runs(table: Integers) -> Integers:
    """Return the counts of the distinct values of each row, (rows, size), row after row."""
    rows, size = table.shape
    ordered = np.sort(table, axis=1)
    begins = np.ones((rows, size), bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return np.diff(np.append(np.nonzero(begins.ravel())[0], rows * size))


@dataclass(frozen=True, kw_only=True)
class Link:
    """The network link of a node.

    Attributes:
        shard_seconds: time to download a shard.
        outage_begin: start of an outage.
        outage_seconds: duration of the outage.
    """

    shard_seconds: float
    outage_begin: float = 0.0
    outage_seconds: float = 0.0

    def end(self, begin: float) -> float:
        """Return the end of a download that may start at `begin`."""
        over = self.outage_begin + self.outage_seconds
        if self.outage_begin <= begin < over:
            begin = over
        end = begin + self.shard_seconds
        if begin < self.outage_begin < end:
            end += self.outage_seconds
        return end


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The start of the first step and the end of the last one, in seconds."""

    begin: float
    end: float


def run_epoch(
    needs: Sequence[NDArray[np.int64]],
    links: Sequence[Link],
    *,
    steps: int,
    step_seconds: float,
    prefetch: int,
    early: int,
) -> Epoch:
    """Simulate the times of an epoch.

    Args:
        needs: for each node, the steps that first need its shards, ascending.
        links: the link of each node.
        steps: number of steps of the epoch, 1 or more.
        step_seconds: duration of a step without waiting.
        prefetch: maximum number of shards downloaded before they are requested, 1 or more.
        early: number of steps by which workers start a batch in advance.
    """
    begins: list[float] = []
    lists = [need.tolist() for need in needs]
    fetched = [0] * len(lists)
    arrived = [0.0] * len(lists)

    def requested(step: int) -> float:
        """Return when the shards of a step are requested; all previous steps have started."""
        if step < max(early, 1):
            return 0.0
        return begins[step - early] if early else begins[step - 1] + step_seconds

    for step in range(steps):
        for node, need in enumerate(lists):
            while fetched[node] < len(need) and need[fetched[node]] <= step:
                k = fetched[node]
                begin = arrived[node]
                if k >= prefetch:
                    begin = max(begin, requested(need[k - prefetch]))
                arrived[node] = links[node].end(begin)
                fetched[node] += 1
        trained = begins[-1] + step_seconds if begins else 0.0
        # The shards of a node arrive in order, so all have arrived when the last one has.
        begins.append(max(trained, *arrived))
    return Epoch(begin=begins[0], end=begins[-1] + step_seconds)


SHARD_SHUFFLE = 1000
"""The `shardshuffle` of a `WebDataset`, with detshuffle=True."""


def webdataset_batches(
    n_shards: int,
    samples_per_shard: int,
    *,
    batch_size: int,
    world_size: int,
    workers: int,
    buffer: int,
    seed: int,
    epoch: int,
) -> NDArray[np.int64]:
    """Return the batches of an epoch with the stages of webdataset.

    They are those of `WebDataset(urls, nodesplitter=split_by_node, shardshuffle=1000,
    detshuffle=True)` and `.shuffle(buffer).batched(share, partial=False)` in a loader with workers:
    shards are split by rank, then by worker, and shuffled; samples go through a buffer.

    Args:
        n_shards: number of shards.
        samples_per_shard: number of samples in each.
        batch_size: global batch size.
        world_size: number of ranks.
        workers: workers per rank; 0 is the same as 1.
        buffer: size of the shuffle buffer, samples.
        seed: seed of both shuffles.
        epoch: number of the epoch.

    Returns:
        (steps, batch_size) int64, ranks side by side; steps is that of the rank with the fewest.
    """
    share = batch_size // world_size
    ranks = []
    for rank in range(world_size):
        streams = []
        for worker in range(max(workers, 1)):
            shards = _shards_of(n_shards, rank, world_size, worker, max(workers, 1))
            ordered = filters.detshuffle(SHARD_SHUFFLE, seed=seed, epoch=epoch - 1).run(shards)
            generator = random.Random(f"{seed} {epoch} {rank} {worker}")
            mixed = filters.shuffle(buffer, rng=generator)(_samples(ordered, samples_per_shard))
            samples = np.fromiter(mixed, np.int64)
            streams.append(samples[: len(samples) // share * share].reshape(-1, share))
        ranks.append(_round_robin(streams))
    steps = min(len(batches) for batches in ranks)
    return np.concatenate([batches[:steps] for batches in ranks], axis=1)


def _shards_of(
    n_shards: int, rank: int, world_size: int, worker: int, workers: int
) -> Iterator[int]:
    with _environment(RANK=rank, WORLD_SIZE=world_size, WORKER=worker, NUM_WORKERS=workers):
        return iter(list(shardlists.split_by_worker(shardlists.split_by_node(range(n_shards)))))


def _samples(shards: Iterator[int], samples_per_shard: int) -> Iterator[int]:
    for shard in shards:
        yield from range(shard * samples_per_shard, (shard + 1) * samples_per_shard)


def _round_robin(streams: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the batches of a loader, which takes them from its workers round-robin."""
    turns = [(t, worker) for worker, stream in enumerate(streams) for t in range(len(stream))]
    share = streams[0].shape[1]
    ordered = [streams[worker][t] for t, worker in sorted(turns)]
    return np.stack(ordered) if ordered else np.empty((0, share), np.int64)


@contextmanager
def _environment(**values: int) -> Iterator[None]:
    """Set environment variables in the block: webdataset reads rank and worker from them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: str(value) for name, value in values.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
