"""The order of samples and the shares of ranks: pure functions, tested for many ranks at once."""

import tracemalloc
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import reference
from pipelines.errors import PipelineError
from pipelines.generate.featviz import find_device
from pipelines.loading.order import (
    EpochOrder,
    batch_positions,
    count_batches,
    default_prefetch,
    evaluation_batches,
    positions_after,
    rank_positions,
    training_batches,
)
from pipelines.system.process_group import join_processes
from pipelines.system.ranks import World, find_world, local_gpu
from streaming_simulator import order_bytes


@given(st.integers(0, 300), st.integers(-(2**70), 2**70), st.integers(0, 2**32 - 1))
def test_an_order_is_a_permutation_that_depends_on_seed_and_epoch(
    n: int, seed: int, epoch: int
) -> None:
    order = EpochOrder(n, seed=seed, epoch=epoch).whole()
    assert sorted(order.tolist()) == list(range(n))
    assert np.array_equal(order, EpochOrder(n, seed=seed, epoch=epoch).whole())


def test_each_pair_of_seed_and_epoch_has_its_own_order() -> None:
    """With `seed + epoch`, seed 1 in epoch 0 would have the order of seed 0 in epoch 1."""
    orders = {
        EpochOrder(50, seed=seed, epoch=epoch).whole().tobytes()
        for seed in range(20) for epoch in range(20)
    }  # fmt: skip
    assert len(orders) == 400


def test_every_permutation_is_equally_likely() -> None:
    """Chi-squared of 24 permutations in 24,000 epochs exceeds 60 for 1 seed in 28,000."""
    counts = Counter(tuple(EpochOrder(4, seed=0, epoch=epoch).whole()) for epoch in range(24_000))
    assert set(counts) == set(permutations(range(4)))
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 60


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 14), st.integers(0, 99))
def test_a_window_mixes_only_the_samples_of_its_shards(
    sizes: list[int], shuffle_window: int, epoch: int
) -> None:
    n = sum(sizes)
    order = EpochOrder(
        n, seed=1, epoch=epoch, shard_sizes=sizes, shuffle_window=shuffle_window
    ).whole()
    assert sorted(order.tolist()) == list(range(n))
    shard_of = np.repeat(np.arange(len(sizes)), sizes)[order]
    first, last = {}, {}
    for position, shard in enumerate(shard_of.tolist()):
        first.setdefault(shard, position)
        last[shard] = position
    # At any position, the shards in use fit into a shuffle window.
    for position in range(n):
        assert sum(first[s] <= position <= last[s] for s in first) <= shuffle_window


def test_windows_have_different_shards_in_each_epoch() -> None:
    sizes = [10] * 12
    firsts = set()
    for epoch in range(40):
        order = EpochOrder(120, seed=0, epoch=epoch, shard_sizes=sizes, shuffle_window=2).whole()
        firsts.add(frozenset((order[:20] // 10).tolist()))
    assert len(firsts) > 20


def test_the_order_is_golden() -> None:
    """The order is public interface: a change needs a new ORDER_VERSION and a changelog entry."""
    assert EpochOrder(10, seed=0, epoch=0).whole().tolist() == GOLDEN
    windowed = EpochOrder(10, seed=7, epoch=3, shard_sizes=[2, 3, 5], shuffle_window=2).whole()
    assert windowed.tolist() == GOLDEN_WINDOWED


GOLDEN = [8, 5, 9, 7, 3, 4, 0, 1, 6, 2]
GOLDEN_WINDOWED = [1, 7, 9, 6, 5, 8, 0, 3, 4, 2]


@given(st.integers(1, 6), st.integers(1, 16), st.integers(0, 200), st.data())
def test_ranks_partition_the_batches(
    share: int, world_size: int, n: int, data: st.DataObject
) -> None:
    batch_size = share * world_size
    consumed = data.draw(st.integers(0, n))
    order = EpochOrder(n, seed=0, epoch=0).whole()
    ranks = [
        list(
            training_batches(
                order, batch_size=batch_size, rank=rank, world_size=world_size, consumed=consumed
            )
        )
        for rank in range(world_size)
    ]
    n_batches = count_batches(n, batch_size, consumed)
    assert n_batches == (n - consumed) // batch_size
    assert all(len(batches) == n_batches for batches in ranks)
    for t in range(n_batches):
        start = consumed + t * batch_size
        joined = np.concatenate([batches[t][1] for batches in ranks])
        assert np.array_equal(joined, order[start : start + batch_size])
        positions = np.concatenate([batches[t][0] for batches in ranks])
        assert positions.tolist() == list(range(start, start + batch_size))


# --- shard partitions ----------------------------------------------------------------------------

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=12)
WINDOWS = st.none() | st.integers(1, 14)


def global_batches(
    order: NDArray[np.int64],
    batch_size: int,
    world_size: int,
    shard_partitions: int,
    consumed: int = 0,
) -> list[list[int]]:
    """The batches of all ranks together, in the order of the ranks."""
    ranks = [
        training_batches(
            order, batch_size=batch_size, rank=rank, world_size=world_size, consumed=consumed,
            shard_partitions=shard_partitions,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    return [
        np.concatenate([samples for _, samples in batch]).tolist()
        for batch in zip(*ranks, strict=True)
    ]


@settings(deadline=None)
@given(SIZES, st.integers(-(2**65), 2**65), st.integers(0, 2**32 - 1), WINDOWS, st.integers(1, 7))
def test_an_order_with_partitions_equals_the_reference(
    sizes: list[int], seed: int, epoch: int, shuffle_window: int | None, shard_partitions: int
) -> None:
    if shard_partitions == 1 and shuffle_window is None:
        return  # All samples are shuffled together, regardless of shards.
    order = EpochOrder(
        sum(sizes),
        seed=seed,
        epoch=epoch,
        shard_sizes=sizes,
        shuffle_window=shuffle_window,
        shard_partitions=shard_partitions,
    ).whole()
    expected = reference.order_of_partitions(
        sizes, seed % 2**64, epoch, shuffle_window, shard_partitions
    )
    assert order.tolist() == expected
    assert sorted(expected) == list(range(sum(sizes)))


@given(SIZES, st.integers(0, 9), WINDOWS, st.integers(1, 7), st.data())
def test_single_positions_equal_those_of_the_whole_order(
    sizes: list[int],
    epoch: int,
    shuffle_window: int | None,
    shard_partitions: int,
    data: st.DataObject,
) -> None:
    n = sum(sizes)
    order = EpochOrder(
        n,
        seed=2,
        epoch=epoch,
        shard_sizes=sizes,
        shuffle_window=shuffle_window,
        shard_partitions=shard_partitions,
    )
    whole = order.whole()
    for _ in range(3):
        positions = data.draw(st.lists(st.integers(0, n - 1), max_size=9) if n else st.just([]))
        assert order[np.array(positions, np.int64)].tolist() == whole[positions].tolist()


def test_an_order_with_windows_keeps_few_windows_in_memory() -> None:
    n, sizes = 10_000_000, [1000] * 10_000
    tracemalloc.start()
    order = EpochOrder(n, seed=0, epoch=0, shard_sizes=sizes, shuffle_window=16, shard_partitions=2)
    for start in range(0, n // 10, 10_000):
        order[np.arange(start, start + 1000)]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The whole order has 80 MB. The rest is for 10,000 shards and a window in shuffling.
    assert (
        most < order_bytes(n, 1000, shuffle_window=16, shard_partitions=2) + 1_000_000 < 2_000_000
    )
    assert order_bytes(n, 1000, shuffle_window=None) == n * 8
    assert order_bytes(n, 1000, shuffle_window=None, shard_partitions=4, world_size=2) == n * 8 // 2
    assert order_bytes(3000, 1000, shuffle_window=16) == 3000 * 8


@given(SIZES, st.integers(0, 9), WINDOWS, st.integers(1, 7))
def test_no_position_after_the_end_of_a_shard_has_its_samples(
    sizes: list[int], epoch: int, shuffle_window: int | None, shard_partitions: int
) -> None:
    order = EpochOrder(
        sum(sizes),
        seed=2,
        epoch=epoch,
        shard_sizes=sizes,
        shuffle_window=shuffle_window,
        shard_partitions=shard_partitions,
    )
    ends = order.ends_of_shards()
    if shard_partitions == 1 and shuffle_window is None:
        assert ends is None
        return
    shard_of = np.repeat(np.arange(len(sizes)), sizes)[order.whole()].tolist()
    assert len(ends) == len(sizes)
    for shard, end in enumerate(ends.tolist()):
        assert 0 <= end <= sum(sizes)
        assert shard not in shard_of[end:]
        # The end is at most a shuffle window after the last sample.
        if sizes[shard] and shard_partitions == 1:
            last = len(shard_of) - shard_of[::-1].index(shard)
            assert len(set(shard_of[last:end])) < shuffle_window


def test_the_order_with_partitions_is_golden() -> None:
    """The order is public interface: a change needs a new ORDER_VERSION and a changelog entry."""
    order = EpochOrder(
        11, seed=7, epoch=3, shard_sizes=[2, 3, 6], shuffle_window=1, shard_partitions=2
    ).whole()
    assert order.tolist() == GOLDEN_PARTITIONS


GOLDEN_PARTITIONS = [8, 10, 7, 1, 9, 0, 6, 3, 5, 2, 4]


@given(SIZES, st.integers(0, 99), WINDOWS)
def test_one_partition_is_the_same_as_none(
    sizes: list[int], epoch: int, shuffle_window: int | None
) -> None:
    n = sum(sizes)
    plain = EpochOrder(
        n, seed=1, epoch=epoch, shard_sizes=sizes, shuffle_window=shuffle_window
    ).whole()
    partition = EpochOrder(
        n, seed=1, epoch=epoch, shard_sizes=sizes, shuffle_window=shuffle_window, shard_partitions=1
    ).whole()
    assert np.array_equal(plain, partition)
    assert global_batches(plain, 2, 1, 1) == [
        plain[start : start + 2].tolist() for start in range(0, n - 1, 2)
    ]


@given(SIZES, st.integers(1, 5), st.integers(1, 4), WINDOWS, st.data())
def test_batches_with_partitions_are_the_same_at_any_world_size_and_position(
    sizes: list[int],
    shard_partitions: int,
    rows: int,
    shuffle_window: int | None,
    data: st.DataObject,
) -> None:
    n, batch_size = sum(sizes), rows * shard_partitions
    order = EpochOrder(
        n,
        seed=0,
        epoch=5,
        shard_sizes=sizes,
        shuffle_window=shuffle_window,
        shard_partitions=shard_partitions,
    ).whole()
    alone = global_batches(order, batch_size, 1, shard_partitions)
    assert [sorted(batch) for batch in alone] == [
        sorted(order[t * batch_size : (t + 1) * batch_size].tolist()) for t in range(len(alone))
    ]
    assert len(alone) == n // batch_size
    worlds = [size for size in range(1, batch_size + 1) if batch_size % size == 0]
    for world_size in worlds:
        assert global_batches(order, batch_size, world_size, shard_partitions) == alone
    begun = data.draw(st.integers(0, len(alone)))
    world_size = data.draw(st.sampled_from(worlds))
    assert (
        global_batches(order, batch_size, world_size, shard_partitions, begun * batch_size)
        == alone[begun:]
    )


@given(SIZES, st.integers(1, 5), st.integers(1, 4), WINDOWS, st.integers(0, 9))
def test_a_rank_needs_only_the_shards_of_its_partition(
    sizes: list[int], shard_partitions: int, rows: int, shuffle_window: int | None, epoch: int
) -> None:
    n, batch_size = sum(sizes), rows * shard_partitions
    order = EpochOrder(
        n,
        seed=3,
        epoch=epoch,
        shard_sizes=sizes,
        shuffle_window=shuffle_window,
        shard_partitions=shard_partitions,
    ).whole()
    parts, _ = reference.partitions_of_shards(sizes, 3, epoch, shuffle_window, shard_partitions)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    needed = []
    for rank, part in enumerate(parts):
        batches = training_batches(
            order,
            batch_size=batch_size,
            rank=rank,
            world_size=shard_partitions,
            shard_partitions=shard_partitions,
        )
        seen = [sample for _, samples in batches for sample in samples.tolist()]
        if shard_partitions > 1 or shuffle_window is not None:
            assert seen == part[: len(seen)]
        needed.append({int(shard_of[sample]) for sample in seen})
    # Each shard is needed by one rank, except for shards cut by the ends of partitions.
    assert sum(len(shards) for shards in needed) <= len(sizes) + shard_partitions - 1


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_ranks_share_partitions_or_have_several(
    shard_partitions: int, factor: int, rows: int
) -> None:
    batch_size = shard_partitions * factor * rows
    for world_size in (shard_partitions * factor, shard_partitions):
        for rank in range(world_size):
            positions = batch_positions(
                batch_size, rank=rank, world_size=world_size, shard_partitions=shard_partitions
            )
            assert set((positions % shard_partitions).tolist()) == {
                rank * shard_partitions // world_size
            }
    for rank in range(shard_partitions):
        more = shard_partitions * factor
        positions = batch_positions(
            batch_size, rank=rank, world_size=shard_partitions, shard_partitions=more
        )
        assert set((positions % more).tolist()) == set(range(rank * factor, (rank + 1) * factor))


@given(SIZES, st.integers(1, 5), WINDOWS)
def test_shards_in_use_at_any_position_of_a_partition_fit_into_a_window(
    sizes: list[int], shard_partitions: int, shuffle_window: int | None
) -> None:
    n = sum(sizes)
    order = EpochOrder(
        n,
        seed=1,
        epoch=2,
        shard_sizes=sizes,
        shuffle_window=shuffle_window,
        shard_partitions=shard_partitions,
    ).whole()
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    for partition in range(shard_partitions):
        shards = shard_of[
            order[partition : n // shard_partitions * shard_partitions : shard_partitions]
        ].tolist()
        uses = [(shards.index(s), len(shards) - 1 - shards[::-1].index(s)) for s in set(shards)]
        for position in range(len(shards)):
            at_once = sum(first <= position <= last for first, last in uses)
            assert at_once <= (shuffle_window or len(sizes))


@given(st.integers(0, 40), st.integers(1, 7), st.data())
def test_positions_after_one_are_first_those_of_its_partition(
    n: int, shard_partitions: int, data: st.DataObject
) -> None:
    if n == 0:
        return
    position = data.draw(st.integers(0, n - 1))
    after = list(positions_after(position, n, shard_partitions))
    assert sorted([position, *after]) == list(range(n))
    whole = n // shard_partitions * shard_partitions
    if position < whole:
        left = list(range(position + shard_partitions, whole, shard_partitions))
        assert after[: len(left)] == left
    if shard_partitions == 1:
        assert after == [*range(position + 1, n), *range(position)]


@pytest.mark.parametrize(
    ("batch_size", "shard_partitions", "message"),
    [(6, 4, "batch_size 6 .* a multiple of 4"),
     (6, 0, "shard_partitions is 0"), (6, -2, "shard_partitions is -2")],
)  # fmt: skip
def test_partitions_that_do_not_divide_a_batch_are_rejected(
    batch_size: int, shard_partitions: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        batch_positions(batch_size, rank=0, world_size=1, shard_partitions=shard_partitions)


def test_partitions_without_shards_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"shard_partitions is 2, .* no shards"):
        EpochOrder(9, seed=0, epoch=0, shard_partitions=2).whole()


# --- evaluation ----------------------------------------------------------------------------------


@given(st.integers(0, 100), st.integers(1, 5), st.integers(1, 16))
def test_evaluation_has_each_sample_once_in_equal_steps(
    n: int, share: int, world_size: int
) -> None:
    ranks = [
        list(evaluation_batches(n, batch_size=share * world_size, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    seen: list[int] = []
    for batches in ranks:
        for batch in batches:
            assert batch.indices.shape == batch.weights.shape == (share,)
            assert set(batch.weights.tolist()) <= {0.0, 1.0}
            seen += batch.indices[batch.weights == 1].tolist()
    assert sorted(seen) == list(range(n))


@pytest.mark.parametrize(("batch_size", "world_size"), [(7, 2), (0, 1), (3, 4), (-4, 2)])
def test_a_batch_not_divisible_by_the_world_size_is_rejected(
    batch_size: int, world_size: int
) -> None:
    with pytest.raises(ValueError, match=f"batch_size {batch_size}, .*use a multiple of"):
        rank_positions(batch_size, 0, world_size)


# --- the world -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_ID", "LOCAL_RANK", "SLURM_LOCALID",
        "OMPI_COMM_WORLD_LOCAL_RANK",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher_the_world_is_one_process() -> None:
    assert find_world() == World(rank=0, size=1)


@pytest.mark.parametrize(
    ("rank", "size"),
    [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"),
     ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")],
)  # fmt: skip
def test_rank_and_world_size_of_a_launcher_are_detected(
    rank: str, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(rank, "3")
    monkeypatch.setenv(size, "5")
    if rank == "SLURM_PROCID":
        # The batch script of a job runs once; only steps of srun count.
        assert find_world() == World(rank=0, size=1)
        monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert find_world() == World(rank=3, size=5)
    assert find_world(1, 2) == World(rank=1, size=2)
    monkeypatch.setenv(rank, "three")
    with pytest.raises(ValueError, match=f"{rank}='three' .* correct them"):
        find_world()


@pytest.mark.parametrize(
    ("rank", "size", "local"),
    [("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
     ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")],
)  # fmt: skip
def test_each_process_of_a_launcher_gets_a_gpu_of_its_machine(
    rank: str, size: str, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name, value in ((rank, "9"), (size, "16"), (local, "6")):
        monkeypatch.setenv(name, value)
    if rank == "SLURM_PROCID":
        # The batch script of a job also has both variables, without a meaning.
        assert local_gpu(4) == 0
        monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert [local_gpu(8), local_gpu(4), local_gpu(1), local_gpu(0)] == [6, 2, 0, 0]
    assert find_device("auto") == torch.device("cuda:2")
    # The error names the device that was chosen, which is not available.
    with (
        pytest.raises(PipelineError, match="device 'cuda:2' is not available"),
        join_processes("auto"),
    ):
        pass
    monkeypatch.setenv(local, "six")
    with pytest.raises(PipelineError, match=f"{local}='six' .* correct it"):
        local_gpu(4)


@pytest.mark.parametrize(("rank", "size"), [(5, 5), (-1, 2), (0, 0)])
def test_a_rank_outside_the_world_is_rejected(rank: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"rank is {rank} with {size} processes; use"):
        find_world(rank, size)


@pytest.mark.parametrize(
    ("shuffle_window", "shard_partitions", "parties", "expected"),
    [(None, 1, 8, 4), (2, 1, 1, 4), (64, 1, 8, 64), (16, 8, 64, 16), (16, 64, 8, 128)],
)
def test_the_default_prefetch_is_a_window_of_each_partition_of_a_rank(
    shuffle_window: int | None, shard_partitions: int, parties: int, expected: int
) -> None:
    assert default_prefetch(shuffle_window, shard_partitions, parties) == expected
