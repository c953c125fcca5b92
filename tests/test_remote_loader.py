"""Loaders over remote shards: the batches of local ones, verified by hashes."""

import ast
import functools
import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from pipelines import (
    LoaderConfig,
    Remote,
    eval_loader,
    open_mixing_set,
    pixmix_stream,
    train_loader,
)
from pipelines.errors import PipelineError
from pipelines.loading.config import CIFAR, IMAGENET
from pipelines.loading.order import EpochOrder, Request, Requests, ShardUses, training_batches
from pipelines.system.objects import RemoteAccess
from pixmix.images import PackedImages
from shard_sets import drawn_images, encoded, write_shards
from streaming_model import shard_uses

SMALL = replace(IMAGENET, image_size=14)
MIXING = PackedImages.pack(drawn_images(9, 2, (20, 23)))
SIZES = (5, 6, 0, 7, 4, 8)
N = sum(SIZES)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log, and records their names."""

    sent: list[str]

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Serve a file."""
        self.sent.append(self.path.rpartition("/")[2])
        super().do_GET()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    contents = [encoded(image) for image in drawn_images(N)]
    write_shards(tmp_path / "root" / "large", contents, sizes=SIZES)
    contents = [encoded(image) for image in drawn_images(N, 1, (16, 16))]
    write_shards(tmp_path / "root" / "small", contents, sizes=SIZES, kind="cifar10")
    return tmp_path / "root"


@pytest.fixture
def server(root: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of the folder, and the names of all files that are sent."""
    sent: list[str] = []
    with serving(root, type("Handler", (_Quiet,), {"sent": sent})) as address:
        yield address, sent


@contextmanager
def serving(root: Path, handler: type[_Quiet]) -> Iterator[str]:
    """Serve a folder, and yield its address."""
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(root))
    ) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def equal(a: list[tuple[Tensor, ...]], b: list[tuple[Tensor, ...]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y)
        for one, other in zip(a, b, strict=True)
        for x, y in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_remote_shards_yield_the_batches_of_local_ones(
    root: Path, server: tuple[str, list[str]], tmp_path: Path, num_workers: int
) -> None:
    address, sent = server
    local, remote = (
        train_loader(
            where, MIXING, preprocess=SMALL, batch_size=4, seed=2, shuffle_window=2,
            cache_dir=cache, num_workers=num_workers,
        )
        for where, cache in (
            (root / "large", tmp_path / "a"),
            (f"{address}/large", tmp_path / "b"),
        )
    )  # fmt: skip
    for _ in range(2):
        assert equal(list(remote), list(local))
    tars = [name for name in sent if name.endswith(".tar")]
    # Each shard once per node, except for the empty one.
    assert sorted(tars) == [f"set-000{i}.tar" for i in (0, 1, 3, 4, 5)]


@pytest.mark.parametrize("shuffle_window", [None, 1, 2])
def test_ranks_with_partitions_download_each_shard_once_except_shards_at_cuts(
    server: tuple[str, list[str]], tmp_path: Path, shuffle_window: int | None
) -> None:
    address, sent = server
    ranks = [
        train_loader(
            f"{address}/large", MIXING, preprocess=SMALL, batch_size=4,
            shuffle_window=shuffle_window, shard_partitions=2, cache_dir=tmp_path / str(rank),
            rank=rank, world_size=2,
        )
        for rank in range(2)
    ]  # fmt: skip
    # Each rank downloads the shards of its full batches.
    order = EpochOrder(
        N, seed=0, epoch=0, shard_sizes=SIZES, shuffle_window=shuffle_window, shard_partitions=2
    ).whole()
    batches = order[: N // 4 * 4].reshape(-1, 2, 2).transpose(0, 2, 1).reshape(-1, 4)
    first, _ = shard_uses(batches, np.repeat(np.arange(len(SIZES)), SIZES), len(SIZES), 2)
    downloaded = []
    for loader, needed in zip(ranks, first >= 0, strict=True):
        del sent[:]
        assert len(list(loader)) == N // 4
        tars = sorted(name for name in sent if name.endswith(".tar"))
        assert tars == [f"set-000{i}.tar" for i in np.nonzero(needed)[0]]
        downloaded += tars
    with_samples = sum(size > 0 for size in SIZES)
    assert len(set(downloaded)) == with_samples
    assert len(downloaded) <= with_samples + 1


@pytest.mark.parametrize(
    ("settings", "most"),
    [({"concurrent_downloads": 1}, 1), ({"concurrent_downloads": 3}, 3), ({}, 4)],
)
def test_concurrent_downloads_are_limited_by_the_setting(
    root: Path, tmp_path: Path, settings: dict[str, int], most: int
) -> None:
    change = threading.Condition()
    in_flight: list[str] = []
    seen = [0]

    class Slow(_Quiet):
        sent: ClassVar[list[str]] = []

        def do_GET(self) -> None:
            """Serve a tar a moment after the maximum number of requests has arrived."""
            if not self.path.endswith(".tar"):
                return super().do_GET()
            with change:
                in_flight.append(self.path)
                seen[0] = max(seen[0], len(in_flight))
                change.notify_all()
                change.wait_for(lambda: seen[0] >= most, timeout=20)
            # Time for one request too many to arrive.
            time.sleep(0.2)
            super().do_GET()
            with change:
                in_flight.remove(self.path)
            return None

    with serving(root, Slow) as address:
        loader = train_loader(
            f"{address}/large", MIXING, preprocess=SMALL, batch_size=4, shuffle_window=1,
            cache_dir=tmp_path / "cache", remote=Remote(prefetch=5, **settings),
        )  # fmt: skip
        assert len(list(loader)) == N // 4
    assert seen == [most]


_FORKING = """
import os, sys, threading
from pathlib import Path
from pipelines import PreprocessConfig, train_loader

forks = []
os.register_at_fork(before=lambda: forks.append([t.name for t in threading.enumerate()]))
loader = train_loader(sys.argv[1], batch_size=4, num_workers=2, cache_dir=Path(sys.argv[2]),
                      preprocess=PreprocessConfig(image_size=14, pixmix=None))
assert len(list(loader)) == len(loader)
assert len(list(loader)) == len(loader)
print(forks)
"""


def test_no_worker_is_forked_while_threads_download(
    server: tuple[str, list[str]], tmp_path: Path
) -> None:
    """At a fork a thread may hold the lock of a file, which the worker could never acquire."""
    ended = subprocess.run(
        [sys.executable, "-c", _FORKING, f"{server[0]}/large", tmp_path / "cache"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    forks = ast.literal_eval(ended.stdout)
    assert len(forks) >= 2
    assert not [name for names in forks for name in names if "prefetch" in name]


def test_an_epoch_that_ends_with_an_error_leaves_no_download_thread(
    root: Path, server: tuple[str, list[str]], tmp_path: Path
) -> None:
    loader = train_loader(
        f"{server[0]}/large", MIXING, preprocess=SMALL, batch_size=4, shuffle_window=1,
        cache_dir=tmp_path / "cache",
        remote=Remote(access=RemoteAccess(attempts=1), prefetch=1),
    )  # fmt: skip
    for tar in (root / "large").glob("set-*.tar"):
        tar.write_bytes(tar.read_bytes()[:-1])
    with pytest.raises(PipelineError) as kept:
        list(loader)
    # The frames of the error would keep threads alive that are not ended explicitly.
    assert kept.tb is not None
    assert not [each for each in threading.enumerate() if each.name.startswith("prefetch")]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12), st.none() | st.integers(1, 5),
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 9),
)  # fmt: skip
def test_lazily_found_uses_equal_those_of_all_batches(
    sizes: list[int],
    shuffle_window: int | None,
    shard_partitions: int,
    rows: int,
    ranks: int,
    epoch: int,
) -> None:
    requests, shard_of = rank_requests(
        sizes, shuffle_window, shard_partitions, shard_partitions * rows * ranks, ranks, epoch
    )
    needed = [np.unique(shard_of[request.indices]).tolist() for request in requests]
    uses = ShardUses(shard_of, requests)
    first = {shard: t for t in reversed(range(len(needed))) for shard in needed[t]}
    last = {shard: t for t in range(len(needed)) for shard in needed[t]}
    order = []
    for shard in uses.in_order():
        order.append(shard)
        # Like the loader: query the shards that it holds, at its current batch.
        for t in range(uses.first[shard], len(needed)):
            assert uses.are_over(shard, t) == (last[shard] <= t)
    assert order == sorted(first, key=lambda shard: (first[shard], shard))
    assert (uses.first, uses.last) == (first, last)


def test_the_first_batch_of_a_large_set_needs_only_the_requests_of_two_windows() -> None:
    requests, shard_of = rank_requests([100] * 1000, 4, 1, 20, 1, 0)
    read: list[Request] = []

    def make(first: int) -> Iterator[Request]:
        for request in requests.make(first):
            read.append(request)
            yield request

    uses = ShardUses(shard_of, Requests(make, requests.ends))
    found = list(islice(uses.in_order(), 5))
    assert not any(uses.are_over(shard, 0) for shard in found[:4])
    # A shuffle window has 20 batches.
    assert len(read) == 21
    assert all(uses.are_over(shard, 19) for shard in found[:4])
    assert len(read) == 21


def rank_requests(
    sizes: list[int],
    shuffle_window: int | None,
    shard_partitions: int,
    batch_size: int,
    ranks: int,
    epoch: int,
) -> tuple[Requests, NDArray[np.int64]]:
    """Return the requests of the last rank, and the shard of each sample."""
    order = EpochOrder(
        sum(sizes),
        seed=0,
        epoch=epoch,
        shard_sizes=sizes,
        shuffle_window=shuffle_window,
        shard_partitions=shard_partitions,
    )

    def make(first: int) -> Iterator[Request]:
        batches = training_batches(
            order, batch_size=batch_size, rank=ranks - 1, world_size=ranks,
            consumed=first * batch_size, shard_partitions=shard_partitions,
        )  # fmt: skip
        return (Request(epoch, *batch) for batch in batches)

    return Requests(make, order.ends_of_shards()), np.repeat(np.arange(len(sizes)), sizes)


def test_small_sets_mixing_sets_evaluations_and_streams_may_be_remote(
    root: Path, server: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, _ = server
    results = []
    for location, cache in ((str(root), tmp_path / "a"), (address, tmp_path / "b")):
        mixing = open_mixing_set(f"{location}/large", 20, cache_dir=cache)
        small = train_loader(
            f"{location}/small/set-{{0000..0003}}.tar", mixing, preprocess=CIFAR, batch_size=9,
            cache_dir=cache,
        )  # fmt: skip
        evaluation = eval_loader(
            f"{location}/large", preprocess=SMALL, batch_size=7, cache_dir=cache
        )
        config = LoaderConfig(preprocess=SMALL, batch_size=5, cache_dir=cache)
        stream = pixmix_stream(f"{location}/large", MIXING, config=config)
        results.append([*small, *evaluation, *stream])
    assert len(results[0]) == 2 + 5 + 6
    assert equal(results[0], results[1])


def test_a_cache_smaller_than_the_dataset_suffices_for_a_small_window(
    root: Path, server: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, _ = server
    largest = max(path.stat().st_size for path in (root / "large").glob("*.tar"))
    loader = train_loader(
        f"{address}/large", MIXING, preprocess=SMALL, batch_size=2, shuffle_window=1,
        cache_dir=tmp_path / "cache", remote=Remote(limit_bytes=5 * largest, prefetch=1),
    )  # fmt: skip
    assert len(list(loader)) == N // 2
    kept = sum(path.stat().st_size for path in (tmp_path / "cache" / "shards").iterdir())
    assert kept <= 5 * largest


def test_a_flipped_bit_in_transit_or_on_disk_is_rejected(
    root: Path, server: tuple[str, list[str]], tmp_path: Path
) -> None:
    path = root / "large" / "set-0003.tar"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)
    for where in (root / "large", f"{server[0]}/large"):
        loader = train_loader(
            where, MIXING, preprocess=SMALL, batch_size=4, cache_dir=tmp_path / "cache"
        )
        with pytest.raises(PipelineError, match=r"set-0003\.tar"):
            list(loader)


def test_a_command_as_an_address_needs_permission(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="allow_pipe"):
        train_loader(f"pipe:touch {tmp_path / 'ran'}; cat {{file}}", batch_size=4)
    assert not (tmp_path / "ran").exists()
