"""An epoch of training from shards at an address, simulated: the loaders' plans, without data."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.bench.plan_measures import (
    Uses,
    cached_downloads,
    class_entropy,
    meetings,
    most_at_once,
    shard_uses,
    travel,
)
from pipelines.bench.plan_time import Link, run_epoch
from pipelines.bench.webdataset_order import webdataset_batches
from pipelines.loading.order import EpochOrder, batch_places, count_batches, shards_ahead

BUFFERS = (1000, 5000)
"""Of samples, that webdataset's documentation and open_clip shuffle at a time."""

_PREFETCHED = 2
"""Batches that a `DataLoader` has each worker make ahead, its prefetch_factor."""

_GB = 1e9

# What is held in memory: some 50 bytes a sample and 16 a use.
_MOST_SAMPLES, _MOST_USES = 10**8, 10**8


@dataclass(frozen=True, kw_only=True)
class StreamingSettings:
    """A set of shards, the nodes that train on it, and the order.

    shard_bytes: of a shard. ranks: processes a node; workers: of each. batch_size: of all
    processes. window, lanes: see `EpochOrder`. cache_bytes: that a node keeps, or None.
    bandwidth: of a node, bytes a second. step_seconds: of the training alone. ahead: shards
    downloaded before they are needed; None: as many as the loaders take. slow: how many times
    slower one node's link is; outage_seconds: how long it is broken, in the middle of the epoch.
    epochs: for caches.
    """

    shards: int = 1024
    samples_per_shard: int = 1251
    shard_bytes: float = 144e6
    classes: int = 1000
    nodes: int = 1
    ranks: int = 8
    workers: int = 8
    batch_size: int = 1024
    window: int = 64
    lanes: int = 1
    cache_bytes: float | None = None
    bandwidth: float = 1.25e9
    step_seconds: float = 0.1
    ahead: int | None = None
    slow: float = 4.0
    outage_seconds: float = 30.0
    epochs: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no training.

        Raises:
            ValueError: if a number is not above 0, a batch cannot be shared equally, or there are
                too few samples for one.
        """
        for name, value in asdict(self).items():
            least = 0 if name in ("workers", "outage_seconds", "seed") else 1
            if isinstance(value, int) and value < least:
                raise ValueError(f"{name} is {value}; give {least} or more")
            if isinstance(value, float) and not (value > 0 or value >= least):
                raise ValueError(f"{name} is {value}; give more than 0")
        batch_places(self.batch_size, rank=0, world_size=self.world_size, lanes=self.lanes)
        if not self.batch_size <= self.n_samples <= _MOST_SAMPLES:
            raise ValueError(
                f"{self.shards} shards of {self.samples_per_shard} are {self.n_samples:,} samples; "
                f"give a batch, {self.batch_size}, or more, and at most {_MOST_SAMPLES:,}"
            )
        if self.nodes * self.shards * self.epochs > _MOST_USES:
            raise ValueError(
                f"{self.shards} shards on {self.nodes} nodes in {self.epochs} epochs are more than "
                f"{_MOST_USES:,} uses; give fewer"
            )

    @property
    def world_size(self) -> int:
        """The processes of all nodes."""
        return self.nodes * self.ranks

    @property
    def n_samples(self) -> int:
        """The samples of all shards."""
        return self.shards * self.samples_per_shard

    @property
    def early(self) -> int:
        """How many batches before its turn a batch is begun."""
        return _PREFETCHED * self.workers


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a node needs, the one that needs most. All bytes.

    epoch: downloaded in the first epoch; kept: in all epochs where nothing is removed; cached:
    where the cache keeps its limit, None without one or where what is in use does not fit.
    shards: in use or downloaded ahead at once, None where nothing is kept on disk; disk: their
    bytes; memory: of a shuffle buffer.
    """

    epoch: float
    kept: float
    cached: float | None
    shards: int | None
    disk: float
    memory: float


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How well an epoch is shuffled; see `plan_measures`.

    meetings: in a batch; share_meetings: in a process's part of it. mixed_entropy, sorted_entropy:
    of a batch, of shards whose classes are mixed, and of shards a class after the other.
    """

    travel: float
    meetings: float
    share_meetings: float
    mixed_entropy: float
    sorted_entropy: float


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Seconds that an epoch with an empty cache is longer than its steps.

    begin: before the first step, alone; slow, outage: all of it, with one node's link slower, or
    broken for a while.
    """

    begin: float
    all: float
    slow: float
    outage: float


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """An order and what comes of it. left_out: samples; remark: what else is to be said."""

    name: str
    left_out: int
    need: Need
    quality: Quality
    lost: Lost | None
    remark: str = ""


Progress = Callable[[int, int], None]


def simulate(
    settings: StreamingSettings, progress: Progress = lambda _done, _total: None
) -> list[PlanRow]:
    """Return what comes of a full shuffle, of windows, of lanes, and of webdataset's buffers."""
    orders: list[tuple[str, int | None, int]] = [
        ("full shuffle", None, 1),
        (f"window {settings.window}", settings.window, 1),
    ]
    if settings.lanes > 1:
        orders += [
            (f"{settings.lanes} lanes", None, settings.lanes),
            (f"{settings.lanes} lanes, window {settings.window}", settings.window, settings.lanes),
        ]
    total = len(orders) + len(BUFFERS)
    rows: list[PlanRow] = []
    for name, window, lanes in orders:
        progress(len(rows), total)
        rows.append(_ours(settings, name, window, lanes))
    for buffer in BUFFERS:
        progress(len(rows), total)
        rows.append(_webdataset(settings, buffer))
    progress(total, total)
    return rows


def plan_batches(
    settings: StreamingSettings, *, epoch: int, window: int | None, lanes: int
) -> NDArray[np.int64]:
    """Return the batches of an epoch as the loaders of all ranks together give them."""
    order = EpochOrder(
        settings.n_samples,
        seed=settings.seed,
        epoch=epoch,
        shard_sizes=[settings.samples_per_shard] * settings.shards,
        window=window,
        lanes=lanes,
    ).whole()
    size = settings.batch_size
    steps = count_batches(len(order), size)
    places = batch_places(size, rank=0, world_size=1, lanes=lanes)
    return order[: steps * size].reshape(steps, size)[:, places]


def _ours(settings: StreamingSettings, name: str, window: int | None, lanes: int) -> PlanRow:
    shard_of = _shard_of(settings)
    batches = plan_batches(settings, epoch=0, window=window, lanes=lanes)
    uses = [shard_uses(batches, shard_of, settings.shards, settings.nodes)]
    for epoch in range(1, settings.epochs):
        later = plan_batches(settings, epoch=epoch, window=window, lanes=lanes)
        uses.append(shard_uses(later, shard_of, settings.shards, settings.nodes))
    steps = len(batches)
    needed = (uses[0][0] >= 0).sum(axis=1)
    ahead = settings.ahead or shards_ahead(window, lanes, settings.nodes)
    at_once = np.minimum(most_at_once(uses[0], steps, settings.early) + ahead, needed)
    shards = int(at_once.max())
    kept = np.logical_or.reduce([first >= 0 for first, _ in uses]).sum(axis=1)
    return PlanRow(
        name=name,
        left_out=settings.n_samples - batches.size,
        need=Need(
            epoch=float(needed.max()) * settings.shard_bytes,
            kept=float(kept.max()) * settings.shard_bytes,
            cached=_cached(settings, uses, shards),
            shards=shards,
            disk=shards * settings.shard_bytes,
            memory=0.0,
        ),
        quality=_quality(settings, batches, shard_of),
        lost=_lost(settings, uses[0], steps, ahead),
    )


def _webdataset(settings: StreamingSettings, buffer: int) -> PlanRow:
    batches = webdataset_batches(
        settings.shards,
        settings.samples_per_shard,
        batch_size=settings.batch_size,
        world_size=settings.world_size,
        workers=settings.workers,
        buffer=buffer,
        seed=settings.seed,
        epoch=0,
    )
    # Rank r reads the shards r, r + W, ...: the same ones in each epoch.
    of_rank = -(-settings.shards // settings.world_size)
    epoch_bytes = min(of_rank * settings.ranks, settings.shards) * settings.shard_bytes
    streams = settings.ranks * max(settings.workers, 1)
    sample_bytes = settings.shard_bytes / settings.samples_per_shard
    of_worker = -(-of_rank // max(settings.workers, 1)) * settings.samples_per_shard
    idle = max(settings.world_size * max(settings.workers, 1) - settings.shards, 0)
    memory = min(buffer, of_worker) * sample_bytes * min(streams, of_rank * settings.ranks)
    remark = f"its buffers hold {memory / _GB:.3g} GB of samples in the memory of a node"
    if idle:
        remark += (
            f"; {idle} of {settings.world_size * settings.workers} workers have no shard, which "
            "WebDataset refuses unless empty_check=False"
        )
    return PlanRow(
        name=f"webdataset, buffer {buffer}",
        left_out=settings.n_samples - batches.size,
        need=Need(
            epoch=epoch_bytes,
            kept=epoch_bytes,
            cached=None,
            shards=None,
            disk=0.0,
            memory=memory,
        ),
        quality=_quality(settings, batches, _shard_of(settings)),
        lost=None,
        remark=remark,
    )


def _shard_of(settings: StreamingSettings) -> NDArray[np.int64]:
    return np.repeat(np.arange(settings.shards), settings.samples_per_shard)


def _cached(settings: StreamingSettings, uses: Sequence[Uses], at_once: int) -> float | None:
    """Return what the node that downloads most downloads in all epochs, within its cache."""
    if settings.cache_bytes is None:
        return None
    room = int(min(settings.cache_bytes // settings.shard_bytes, settings.shards))
    if at_once > room:
        return None
    counts = [cached_downloads(uses, n, settings.early, room) for n in range(settings.nodes)]
    fitting = [sum(count) for count in counts if count is not None]
    return max(fitting) * settings.shard_bytes if len(fitting) == len(counts) else None


def _quality(
    settings: StreamingSettings, batches: NDArray[np.int64], shard_of: NDArray[np.int64]
) -> Quality:
    n, classes = settings.n_samples, settings.classes
    by_class = np.arange(n) * classes // n
    mixed = np.random.default_rng(settings.seed).permutation(by_class)
    return Quality(
        travel=travel(batches),
        meetings=meetings(batches, shard_of),
        share_meetings=meetings(
            batches.reshape(-1, settings.batch_size // settings.world_size), shard_of
        ),
        mixed_entropy=class_entropy(batches, mixed),
        sorted_entropy=class_entropy(batches, by_class),
    )


def _lost(settings: StreamingSettings, uses: Uses, steps: int, ahead: int) -> Lost:
    first, _ = uses
    needs = [np.sort(node[node >= 0]) for node in first]
    trained = steps * settings.step_seconds
    seconds = settings.shard_bytes / settings.bandwidth
    link = Link(shard_seconds=seconds)
    slow = Link(shard_seconds=seconds * settings.slow)
    outage = Link(
        shard_seconds=seconds, outage_begin=trained / 2, outage_seconds=settings.outage_seconds
    )
    plain, slowed, broken = (
        run_epoch(
            needs,
            [of_first, *[link] * (settings.nodes - 1)],
            steps=steps,
            step_seconds=settings.step_seconds,
            ahead=ahead,
            early=settings.early,
        )
        for of_first in (link, slow, outage)
    )
    return Lost(
        begin=plain.begin,
        all=plain.end - trained,
        slow=slowed.end - trained,
        outage=broken.end - trained,
    )
