"""Prefetching of shards: order, limits, errors, and shutdown."""

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.errors import PipelineError
from pipelines.shards.cache import CacheFullError, HeldFile, ShardCache
from pipelines.shards.prefetch import Prefetch
from pipelines.system.attempts import StoppedError
from test_cache import NEVER, numbers_in, put


class Shelf:
    """Returns files from its own cache, and records which were requested."""

    def __init__(self, cache: ShardCache) -> None:
        self.cache = cache
        self.asked: list[int] = []
        self.errors: dict[int, Exception] = {}
        self.gates: dict[int, threading.Event] = {}

    def hold(
        self, shard: int, /, *, stop: threading.Event, reserved: Callable[[], None]
    ) -> HeldFile:
        self.asked.append(shard)
        held = put(self.cache, shard)
        reserved()
        while shard in self.gates and not self.gates[shard].wait(0.01):
            if stop.is_set():
                held.release()
                raise StoppedError
        if shard in self.errors:
            raise self.errors[shard]
        return held


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(ShardCache(folder=tmp_path, limit_bytes=100_000))


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_shards_are_returned_in_order_and_may_repeat(shelf: Shelf) -> None:
    order = [3, 1, 2, 3, 3, 0]
    with Prefetch(shelf.hold, order, n_shards=3, threads=2) as shards:
        taken = []
        for shard, held in zip(order, shards, strict=True):
            with held:
                taken.append((shard, held.path.name))
    names = {shard: put(shelf.cache, shard).path.name for shard in order}
    assert taken == [(shard, names[shard]) for shard in order]
    assert sorted(shelf.asked) == sorted(order)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_only_the_next_shards_are_fetched(shelf: Shelf, threads: int) -> None:
    with Prefetch(shelf.hold, itertools.count(), n_shards=3, threads=threads) as shards:
        wait_until(lambda: len(shelf.asked) == 3)
        time.sleep(0.1)
        assert sorted(shelf.asked) == [0, 1, 2]
        shards.take().release()
        wait_until(lambda: len(shelf.asked) == 4)
        time.sleep(0.1)
        assert sorted(shelf.asked) == [0, 1, 2, 3]


def test_downloads_run_concurrently(shelf: Shelf) -> None:
    shelf.gates = {number: threading.Event() for number in range(3)}
    with Prefetch(shelf.hold, range(3), n_shards=3, threads=3) as shards:
        wait_until(lambda: shelf.asked == [0, 1, 2])
        for number in (2, 1, 0):
            shelf.gates[number].set()
        for held in shards:
            held.release()


def test_prefetched_shards_are_held_until_the_consumer_releases_them(tmp_path: Path) -> None:
    shelf = Shelf(ShardCache(folder=tmp_path, limit_bytes=3000))
    with Prefetch(shelf.hold, [0, 1, 2], n_shards=2) as shards:
        wait_until(lambda: numbers_in(shelf.cache) == [0, 1])
        first = shards.take()
        wait_until(lambda: numbers_in(shelf.cache) == [0, 1, 2])
        with pytest.raises(CacheFullError):
            put(shelf.cache, 9)
        first.release()
        put(shelf.cache, 9).release()
        assert numbers_in(shelf.cache) == [1, 2, 9]
    for number in (10, 11, 12):
        put(shelf.cache, number).release()
    assert numbers_in(shelf.cache) == [10, 11, 12]


@pytest.mark.parametrize("limit", [2000, 3000, 4500])
def test_a_cache_smaller_than_the_prefetched_shards_still_serves_all(
    tmp_path: Path, limit: int
) -> None:
    shelf = Shelf(ShardCache(folder=tmp_path, limit_bytes=limit))
    order = list(range(12))
    with Prefetch(shelf.hold, order, n_shards=6, threads=4) as shards:
        for shard, held in zip(order, shards, strict=True):
            with held:
                assert held.path.exists(), shard
                time.sleep(0.01)


def test_a_consumer_that_holds_the_whole_cache_gets_an_error(tmp_path: Path) -> None:
    shelf = Shelf(ShardCache(folder=tmp_path, limit_bytes=2000))
    with Prefetch(shelf.hold, range(5), n_shards=3, threads=2) as shards:
        held = [shards.take(), shards.take()]
        with pytest.raises(CacheFullError, match="raise --cache-limit, or read fewer shards"):
            shards.take()
        for one in held:
            one.release()


def test_room_that_another_process_frees_is_used(tmp_path: Path) -> None:
    shelf = Shelf(ShardCache(folder=tmp_path, limit_bytes=2000))
    other = put(shelf.cache, 99, 2000)
    with Prefetch(shelf.hold, range(5), n_shards=3) as shards:
        time.sleep(0.2)
        other.release()
        wait_until(lambda: numbers_in(shelf.cache) == [0, 1])
        shards.take().release()


def test_an_error_is_raised_where_its_shard_is_taken(shelf: Shelf) -> None:
    shelf.errors[1] = PipelineError("http://host/set-0001.tar: not found")
    with Prefetch(shelf.hold, range(4), n_shards=4) as shards:
        shards.take().release()
        with pytest.raises(PipelineError, match=r"set-0001\.tar: not found"):
            shards.take()
        shards.take().release()


def test_any_error_is_raised_in_take(shelf: Shelf) -> None:
    shelf.errors[0] = ZeroDivisionError("a slip of the program")
    with Prefetch(shelf.hold, [0], n_shards=4) as shards, pytest.raises(ZeroDivisionError):
        shards.take()


@pytest.mark.parametrize("threads", [1, 3])
def test_close_ends_all_threads_and_releases_all_files(tmp_path: Path, threads: int) -> None:
    shelf = Shelf(ShardCache(folder=tmp_path, limit_bytes=5000))
    before = threading.active_count()
    shelf.gates = {2: NEVER}
    shards = Prefetch(shelf.hold, range(100), n_shards=5, threads=threads)
    shards.take().release()
    wait_until(lambda: 2 in shelf.asked)
    shards.close()
    assert threading.active_count() == before
    put(shelf.cache, 99, 5000).release()
    assert numbers_in(shelf.cache, limit=100) == [99]
    with pytest.raises(RuntimeError, match="closed"):
        shards.take()
    shards.close()


def test_close_ends_threads_that_wait_for_room(tmp_path: Path) -> None:
    shelf = Shelf(ShardCache(folder=tmp_path, limit_bytes=2000))
    before = threading.active_count()
    with put(shelf.cache, 99, 2000):
        shards = Prefetch(shelf.hold, range(5), n_shards=3, threads=3)
        wait_until(lambda: len(shelf.asked) > 1)
        shards.close()
    assert threading.active_count() == before


def test_close_ends_a_waiting_take(shelf: Shelf) -> None:
    shelf.gates = {0: NEVER}
    shards = Prefetch(shelf.hold, range(3))
    timer = threading.Timer(0.2, shards.close)
    timer.start()
    with pytest.raises(RuntimeError, match="closed while"):
        shards.take()
    timer.join()


def test_a_program_ends_without_calling_close() -> None:
    code = """
import threading
from pipelines.shards.prefetch import Prefetch
def hold(shard, /, *, stop, reserved):
    threading.Event().wait(60)
shards = Prefetch(hold, range(10))
"""
    tests = Path(__file__).parent
    subprocess.run([sys.executable, "-c", code], cwd=tests.parent, check=True, timeout=20)


@pytest.mark.parametrize("settings", [{"n_shards": 0}, {"threads": 0}])
def test_sizes_below_one_are_rejected(shelf: Shelf, settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="is 0"):
        Prefetch(shelf.hold, [], **settings)
