"""The batches that webdataset's own stages make, over plain numbers in place of samples."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from webdataset import filters, shardlists

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
    """Return the batches of an epoch, as far as every rank has one.

    As `WebDataset(urls, nodesplitter=split_by_node, shardshuffle=1000, detshuffle=True)`, then
    `.shuffle(buffer).batched(share, partial=False)`, in a loader with workers: shards are split by
    rank, then by worker, then shuffled; samples go through a buffer.

    Args:
        n_shards: number of shards.
        samples_per_shard: in each of them.
        batch_size: of all ranks together.
        world_size: number of ranks.
        workers: of each; 0 as 1.
        buffer: samples that are shuffled at a time.
        seed: of shards and samples.
        epoch: which.

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
        ranks.append(_in_turn(streams))
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


def _in_turn(streams: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the batches of a loader: one of each worker in turn, of those that have more."""
    turns = [(t, worker) for worker, stream in enumerate(streams) for t in range(len(stream))]
    share = streams[0].shape[1]
    ordered = [streams[worker][t] for t, worker in sorted(turns)]
    return np.stack(ordered) if ordered else np.empty((0, share), np.int64)


@contextmanager
def _environment(**values: int) -> Iterator[None]:
    """Set variables for a while: those by which webdataset tells ranks and workers."""
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
