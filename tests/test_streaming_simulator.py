"""The streaming simulator: small cases computed by hand, others against slow references."""

import json
import math
import os
import random
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import webdataset
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import streaming_simulator
from pipelines.loading.order import EpochOrder, training_batches
from streaming_model import (
    SHARD_SHUFFLE,
    Epoch,
    Link,
    Uses,
    cached_downloads,
    class_entropy,
    collisions,
    displacement,
    most_at_once,
    run_epoch,
    shard_uses,
    webdataset_batches,
)
from streaming_simulator import (
    StreamingSettings,
    index_memory,
    plan_batches,
    simulate,
    streaming_document,
    streaming_table,
)

Integers = NDArray[np.int64]

SMALL: dict[str, Any] = {
    "shards": 24, "samples_per_shard": 10, "classes": 6, "nodes": 2, "ranks": 2, "workers": 1,
    "batch_size": 8, "shuffle_window": 2, "shard_partitions": 2, "epochs": 3, "shard_bytes": 100.0,
    "bandwidth": 50.0,
}  # fmt: skip


@st.composite
def plans(draw: st.DrawFn) -> tuple[Integers, Integers, int, int]:
    """Draw batches, the shard of each sample, the number of shards and of nodes."""
    n_shards, nodes = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    size = nodes * draw(st.integers(1, 4))
    steps = draw(st.integers(1, 5))
    shard_of = np.array(
        draw(st.lists(st.integers(0, n_shards - 1), min_size=size * steps, max_size=60))
    )
    order = np.array(draw(st.permutations(range(len(shard_of)))))
    return order[: steps * size].reshape(steps, size), shard_of, n_shards, nodes


# --- downloads and caches ------------------------------------------------------------------------


def test_a_node_uses_a_shard_from_its_first_to_its_last_sample() -> None:
    batches = np.array([[0, 4, 6, 7], [1, 5, 2, 8], [9, 3, 10, 11]])
    first, last = shard_uses(batches, np.arange(12) // 3, 4, 2)
    assert first.tolist() == [[0, 0, -1, 2], [1, -1, 0, 2]]
    assert last.tolist() == [[1, 2, -1, 2], [1, -1, 1, 2]]


@settings(deadline=None)
@given(plans(), st.integers(0, 4))
def test_uses_equal_those_of_a_simulation_of_all_steps(
    plan: tuple[Integers, Integers, int, int], early: int
) -> None:
    batches, shard_of, n_shards, nodes = plan
    uses = shard_uses(batches, shard_of, n_shards, nodes)
    share = batches.shape[1] // nodes
    at_once = []
    for node in range(nodes):
        seen = [set(shard_of[row].tolist()) for row in batches[:, node * share :][:, :share]]
        for shard in range(n_shards):
            steps = [step for step, shards in enumerate(seen) if shard in shards]
            found = (int(uses[0][node, shard]), int(uses[1][node, shard]))
            assert found == ((steps[0], steps[-1]) if steps else (-1, -1))
        most = 0
        for step in range(len(seen)):
            started = set().union(*seen[: step + early + 1])
            remaining = set().union(*seen[step:])
            most = max(most, len(started & remaining))
        at_once.append(most)
    assert most_at_once(uses, len(batches), early).tolist() == at_once


def slow_cache(epochs: list[Uses], node: int, early: int, capacity: int) -> list[int] | None:
    """Return the downloads of a simple cache in which each shard has its time of last use."""
    kept: dict[int, tuple[int, int, int]] = {}
    counts = []
    for number, (first, last) in enumerate(epochs):
        count = 0
        wanted = [s for s in range(first.shape[1]) if first[node, s] >= 0]
        for shard in sorted(wanted, key=lambda s: (first[node, s], s)):
            now = int(first[node, shard]) - early
            busy = [s for s, (of, until, _) in kept.items() if of == number and until >= now]
            if shard not in kept:
                count += 1
                if len(busy) >= capacity:
                    return None
                if len(kept) >= capacity:
                    del kept[min((kept[s], s) for s in kept if s not in busy)[1]]
            kept[shard] = (number, int(last[node, shard]), shard)
        counts.append(count)
    return counts


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(1, 8), st.integers(0, 2), st.integers(0, 99))
def test_a_cache_equals_the_reference(n_shards: int, capacity: int, early: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    shard_of = np.arange(n_shards * 4) // 4
    epochs = [
        shard_uses(generator.permutation(n_shards * 4).reshape(-1, 2), shard_of, n_shards, 2)
        for _ in range(3)
    ]
    assert cached_downloads(epochs, 1, early, capacity) == slow_cache(epochs, 1, early, capacity)


def test_a_cache_keeps_the_most_recently_used_shards() -> None:
    uses = (np.array([[0, 1, 2]]), np.array([[0, 1, 2]]))
    assert cached_downloads([uses, uses], 0, 0, 3) == [3, 0]
    # Each shard is removed before it is needed again.
    assert cached_downloads([uses, uses], 0, 0, 2) == [3, 3]
    back = (np.array([[2, 1, 0]]), np.array([[2, 1, 0]]))
    assert cached_downloads([uses, back], 0, 0, 2) == [3, 1]
    # If a step starts early, two shards are in use at once.
    assert cached_downloads([uses], 0, 1, 1) is None


# --- quality of shuffling ------------------------------------------------------------------------


def test_displacement_is_0_for_the_stored_order_and_1_for_a_full_shuffle() -> None:
    assert displacement(np.arange(600).reshape(-1, 6)) == 0
    assert displacement(np.arange(600)[::-1].reshape(-1, 6)) == pytest.approx(1.5)
    order = np.random.default_rng(0).permutation(100_000)
    # The standard error of 100,000 distances with deviation N / sqrt(18) is 0.0022 of N / 3.
    assert displacement(order.reshape(-1, 8)) == pytest.approx(1, abs=0.01)


@settings(deadline=None)
@given(plans())
def test_collisions_and_entropies_equal_direct_counts(
    plan: tuple[Integers, Integers, int, int],
) -> None:
    batches, shard_of, _, _ = plan
    pairs = [pair for row in batches.tolist() for pair in combinations(row, 2)]
    together = sum(shard_of[a] == shard_of[b] for a, b in pairs)
    everywhere = list(combinations(shard_of.tolist(), 2))
    chance = sum(a == b for a, b in everywhere)
    found = collisions(batches, shard_of)
    if not pairs or not chance:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(together / len(pairs) * len(everywhere) / chance)
    entropies = []
    for row in batches.tolist():
        shares = [count / len(row) for count in Counter(shard_of[row].tolist()).values()]
        entropies.append(-sum(share * math.log2(share) for share in shares))
    assert class_entropy(batches, shard_of) == pytest.approx(np.mean(entropies), abs=1e-12)


def test_collisions_of_batches_of_one_shard_are_the_number_of_shards() -> None:
    n_shards, size = 50, 40
    stored = np.arange(n_shards * size)
    assert collisions(stored.reshape(-1, size), stored // size) == pytest.approx(
        (n_shards * size - 1) / (size - 1)
    )
    shuffled = EpochOrder(len(stored), seed=0, epoch=0).whole().reshape(-1, size)
    # Of 39,000 pairs, 1 in 51 is of one shard: 764 with a standard deviation of 28.
    assert collisions(shuffled, stored // size) == pytest.approx(1, abs=0.15)


# --- time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "end"), [(0, 3), (2, 5), (3, 10), (4.5, 11.5), (5, 12), (8, 12), (9, 12), (10, 13)]
)
def test_a_download_waits_for_the_end_of_an_outage(begin: float, end: float) -> None:
    assert Link(shard_seconds=3, outage_begin=5, outage_seconds=4).end(begin) == end


def test_an_epoch_waits_at_its_start_and_for_a_slow_link() -> None:
    def run(needs: list[list[int]], seconds: list[float], **changes: Any) -> Epoch:  # noqa: ANN401
        return run_epoch(
            [np.array(need) for need in needs],
            [Link(shard_seconds=each) for each in seconds],
            **{"steps": 4, "step_seconds": 10.0, "prefetch": 1, "early": 1} | changes,
        )

    # Downloaded after 4, 8, 12 and 16 s: only the first step waits.
    assert run([[0, 1, 2, 3]], [4]) == Epoch(begin=4, end=44)
    # Downloads take 15 s, and steps 10 s.
    assert run([[0, 1, 2, 3]], [15]) == Epoch(begin=15, end=70)
    # Without workers a batch starts when the previous step has ended: 4 s before each step.
    assert run([[0, 1, 2, 3]], [4], early=0) == Epoch(begin=4, end=44)
    assert run([[0, 0, 1, 1]], [4], early=0) == Epoch(begin=8, end=8 + 10 + 4 + 30)
    # The slower of two nodes counts.
    assert run([[0, 2], [1]], [4, 30]) == Epoch(begin=4, end=60)


def ticks(
    needs: list[list[int]], seconds: list[int], steps: int, step_seconds: int, prefetch: int,
    early: int,
) -> tuple[int, int]:  # fmt: skip
    """Simulate an epoch second by second: requested and downloaded shards, and started steps."""
    left: list[int | None] = [None] * len(needs)
    there = [0] * len(needs)
    begun: list[int] = []
    for now in range(100_000):
        for node in range(len(needs)):
            if left[node] == 0:
                left[node] = None
                there[node] += 1
        trained = not begun or now >= begun[-1] + step_seconds
        if trained and len(begun) == steps:
            return begun[0], now
        if trained and all(
            there[node] >= sum(step <= len(begun) for step in need)
            for node, need in enumerate(needs)
        ):
            begun.append(now)
            trained = False
        # Shards are requested for the steps that have started, and `early` more.
        upto = len(begun) - 1 + early if early and begun else max(early - 1, 0)
        if not early:
            upto = len(begun) if trained else len(begun) - 1
        for node, need in enumerate(needs):
            asked = sum(step <= upto for step in need)
            if left[node] is None and there[node] < min(len(need), asked + prefetch):
                left[node] = seconds[node]
            if left[node] is not None:
                left[node] -= 1  # type: ignore[operator]
    raise AssertionError


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 7), max_size=8), st.integers(1, 9)),
        min_size=1, max_size=3,
    ),
    st.integers(1, 8), st.integers(1, 3), st.integers(0, 3),
)  # fmt: skip
def test_an_epoch_equals_a_simulation_second_by_second(
    nodes: list[tuple[list[int], int]], step_seconds: int, prefetch: int, early: int
) -> None:
    needs, seconds = [sorted(need) for need, _ in nodes], [each for _, each in nodes]
    found = run_epoch(
        [np.array(need, np.int64) for need in needs],
        [Link(shard_seconds=each) for each in seconds],
        steps=8, step_seconds=step_seconds, prefetch=prefetch, early=early,
    )  # fmt: skip
    assert (found.begin, found.end) == ticks(needs, seconds, 8, step_seconds, prefetch, early)


# --- webdataset ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (2, 2), (4, 3)])
def test_the_order_of_webdataset_is_that_of_its_pipeline(
    world_size: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = 4
    found = webdataset_batches(
        12, 10, batch_size=share * world_size, world_size=world_size, workers=workers, buffer=7,
        seed=5, epoch=2,
    )  # fmt: skip
    assert len(set(found.ravel().tolist())) == found.size

    def samples(shards: Any) -> Any:  # noqa: ANN401
        for shard in shards:
            yield from range(10 * shard["url"], 10 * shard["url"] + 10)

    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    monkeypatch.setenv("NUM_WORKERS", str(workers))
    for rank in range(world_size):
        loaders = []
        for worker in range(workers):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORKER", str(worker))
            pipeline = webdataset.DataPipeline(
                lambda: iter([{"url": shard} for shard in range(12)]),
                webdataset.split_by_node,
                webdataset.split_by_worker,
                webdataset.detshuffle(SHARD_SHUFFLE, seed=5, epoch=1),
                samples,
                webdataset.shuffle(7, rng=random.Random(f"5 2 {rank} {worker}")),
                webdataset.batched(share, partial=False, collation_fn=None),
            )
            loaders.append(list(pipeline))
        turns = [batch for batches in zip(*loaders, strict=False) for batch in batches]
        mine = found[:, rank * share : (rank + 1) * share].tolist()
        assert mine[: len(turns)] == turns[: len(mine)]


def test_webdataset_batches_restore_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "7")
    monkeypatch.delenv("WORKER", raising=False)
    before = dict(os.environ)
    batches = webdataset_batches(
        4, 5, batch_size=4, world_size=2, workers=3, buffer=2, seed=0, epoch=0
    )
    assert dict(os.environ) == before
    # Two shards per rank: one of three workers has none, and the others have two full batches.
    assert batches.shape == (4, 4)


# --- the whole simulation ------------------------------------------------------------------------


def test_planned_batches_are_those_of_all_ranks() -> None:
    of = StreamingSettings(**SMALL)
    for window, partitions in ((None, 1), (2, 1), (3, 4)):
        batches = plan_batches(of, epoch=1, shuffle_window=window, shard_partitions=partitions)
        order = EpochOrder(
            240,
            seed=0,
            epoch=1,
            shard_sizes=[10] * 24,
            shuffle_window=window,
            shard_partitions=partitions,
        ).whole()
        ranks = [
            [samples for _, samples in training_batches(
                order, batch_size=8, rank=rank, world_size=4, shard_partitions=partitions
            )]
            for rank in range(4)
        ]  # fmt: skip
        assert np.array_equal(batches, np.concatenate(ranks, axis=1).reshape(batches.shape))


def test_with_two_partitions_a_node_needs_half_of_the_dataset_and_few_shards_at_once() -> None:
    rows = simulate(StreamingSettings(**SMALL))
    full, window, partitions, both, *others = rows
    assert [row.name for row in rows] == [
        "full shuffle", "window 2", "2 partitions", "2 partitions, window 2",
        "webdataset, buffer 1000", "webdataset, buffer 5000",
    ]  # fmt: skip
    assert full.need.epoch == full.need.kept == full.need.disk == 2400
    assert partitions.need.epoch == both.need.epoch == 1200
    assert 1200 < both.need.kept <= 2400
    assert [row.need.epoch for row in others] == [1200, 1200]
    assert window.need.shards is not None
    assert both.need.shards is not None
    assert max(window.need.shards, both.need.shards) <= 2 * 2 + 4
    # With partitions of whole shards, batches are almost as mixed as with a full shuffle.
    assert full.quality.collisions < both.quality.collisions < window.quality.collisions
    assert full.quality.sorted_entropy > both.quality.sorted_entropy > window.quality.sorted_entropy
    for row in rows[:4]:
        assert row.lost is not None
        assert 0 < row.lost.begin <= row.lost.all <= row.lost.slow
        assert row.lost.all <= row.lost.outage
        assert row.left_out == 0


def test_a_cache_with_space_for_all_shards_keeps_all() -> None:
    def cached(limit: float) -> list[float | None]:
        return [row.need.cached for row in simulate(
            StreamingSettings(**SMALL, cache_bytes=limit)
        )[:4]]  # fmt: skip

    kept = [row.need.kept for row in simulate(StreamingSettings(**SMALL))[:4]]
    assert cached(2400) == kept
    full, window, partitions, both = cached(900)
    assert full is None
    assert partitions is None
    assert window is not None
    assert both is not None
    # Three epochs, each of which needs half of the dataset.
    assert kept[3] < both <= 3 * 1200


def test_the_index_is_counted_once_per_node_and_the_order_once_per_process() -> None:
    plan = StreamingSettings(
        nodes=2, batch_size=1024, samples_per_shard=1000, shuffle_window=5, shard_partitions=32
    )
    # Each of 16 processes has two partitions: three windows of each, and one more.
    windows = 8 * 7 * 5 * 1000 * 8
    assert index_memory(plan, 10**9) == {
        "index": 20 * 10**9, "order": 64 * 10**9, "windows": windows
    }  # fmt: skip


def test_the_table_and_the_document_have_each_order() -> None:
    of = StreamingSettings(**SMALL | {"batch_size": 4, "cache_bytes": 900.0})
    rows = simulate(of)
    lines = streaming_table(of, rows).splitlines()
    for row in rows:
        assert sum(line.startswith(f"{row.name} ") for line in lines) == 2
    assert any(line.startswith("full shuffle ") and "too small" in line for line in lines)
    assert [line.split()[3] for line in lines if line.startswith("full shuffle ")] == ["0.00", "-"]
    document = json.loads(json.dumps(streaming_document(of, rows), allow_nan=False))
    assert document["steps"] == 60
    assert document["settings"]["cache_bytes"] == 900
    # Each process has only one sample of a batch.
    assert {row["quality"]["share_collisions"] for row in document["rows"]} == {None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 6}, "batch_size 6, .* world size 4"),
        ({"shard_partitions": 3}, "batch_size 8 is not divisible by shard_partitions 3"),
        ({"batch_size": 400}, "are 240 samples; use at least a batch .400."),
        ({"samples_per_shard": 10**9}, "at most 100,000,000"),
        ({"epochs": 10**8}, "more than 100,000,000 uses; use fewer"),
        ({"ranks": 0}, "ranks is 0; use 1 or more"),
        ({"bandwidth": math.nan}, "bandwidth is nan; use more than 0"),
    ],
)
def test_invalid_settings_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamingSettings(**SMALL | changes)


def test_the_command_prints_the_results_of_the_library() -> None:
    options = {
        "shards": 24, "samples-per-shard": 10, "classes": 6, "nodes": 2, "ranks": 2, "workers": 1,
        "batch-size": 8, "shuffle-window": 2, "epochs": 3, "shard-mb": 0.0001, "bandwidth": 0.00005,
    }  # fmt: skip
    arguments = [*(f"--{name}={value}" for name, value in options.items())]
    result = CliRunner().invoke(streaming_simulator.main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    of = StreamingSettings(**SMALL)
    expected = json.loads(json.dumps(streaming_document(of, simulate(of))))
    assert json.loads(result.stdout)["rows"] == expected["rows"]
    table = CliRunner().invoke(streaming_simulator.main, arguments)
    assert "2 partitions, window 2" in table.stdout
    for wrong, message in (
        (("--shard-partitions", "3"), "shard_partitions 3"),
        (("--cache-limit", "nan"), "bytes as 200GB"),
        (("--cache-limit", "0"), "bytes as 200GB"),
        (("--slow", "0"), "slow is 0"),
    ):
        refused = CliRunner().invoke(streaming_simulator.main, [*arguments, *wrong])
        assert refused.exit_code == 2
        assert message in refused.stderr
