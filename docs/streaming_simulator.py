"""Simulate training from remote shards, without data: downloads, disk space, waits and shuffling.

    python docs/streaming_simulator.py --nodes 8 --shuffle-window 16

This compares the loaders' full shuffle, shuffle windows and shard partitions with the stages of
webdataset. All numbers are those of the node that needs most. docs/streaming-plan.md explains the
columns. This command updates the outputs in that page:

    python docs/streaming_simulator.py --page docs/streaming-plan.md
"""

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.testing import CliRunner
from numpy.typing import NDArray

from pipelines.bench.timing import number
from pipelines.cli.options import ByteSize
from pipelines.loading.order import (
    GROUPS_KEPT,
    EpochOrder,
    batch_positions,
    count_batches,
    default_prefetch,
)
from pipelines.shards.format import SAMPLE
from pipelines.text_table import aligned
from streaming_model import (
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

BUFFERS = (1000, 5000)
"""Sizes of shuffle buffers in samples, from webdataset's documentation and from open_clip."""

_PREFETCHED = 2
"""Batches that each worker of a `DataLoader` prefetches: its default prefetch_factor."""

_GB = 1e9
_POSITION_BYTES = 8

# Limits of memory: about 50 bytes per sample, and 16 per use of a shard.
_MAX_SAMPLES, _MAX_USES = 10**8, 10**8


@dataclass(frozen=True, kw_only=True)
class StreamingSettings:
    """A sharded dataset, the nodes that train on it, and the order.

    Attributes:
        shards: number of shards.
        samples_per_shard: samples in each shard.
        shard_bytes: size of a shard.
        classes: number of classes.
        nodes: number of nodes.
        ranks: ranks per node.
        workers: worker processes per rank.
        batch_size: global batch size.
        shuffle_window: see `EpochOrder`.
        shard_partitions: see `EpochOrder`.
        cache_bytes: cache limit of a node; None for no limit.
        bandwidth: download rate of a node, bytes per second.
        step_seconds: duration of a training step without waiting.
        prefetch: shards downloaded before they are needed; None for the loaders' default.
        slow: factor by which the link of one node is slower, in one of the simulations.
        outage_seconds: time for which that link fails in the middle of the epoch, in another one.
        epochs: number of epochs for the cache.
        seed: seed of the order.
    """

    shards: int = 1024
    samples_per_shard: int = 1251
    shard_bytes: float = 144e6
    classes: int = 1000
    nodes: int = 1
    ranks: int = 8
    workers: int = 8
    batch_size: int = 1024
    shuffle_window: int = 64
    shard_partitions: int = 1
    cache_bytes: float | None = None
    bandwidth: float = 1.25e9
    step_seconds: float = 0.1
    prefetch: int | None = None
    slow: float = 4.0
    outage_seconds: float = 30.0
    epochs: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: if a number is too small or too large, a batch cannot be divided equally, or
                there are fewer samples than a batch.
        """
        for name, value in asdict(self).items():
            least = 0 if name in ("workers", "outage_seconds", "seed") else 1
            if isinstance(value, int) and value < least:
                raise ValueError(f"{name} is {value}; use {least} or more")
            if isinstance(value, float) and not (value > 0 or value >= least):
                raise ValueError(f"{name} is {value}; use more than 0")
        batch_positions(
            self.batch_size,
            rank=0,
            world_size=self.world_size,
            shard_partitions=self.shard_partitions,
        )
        if not self.batch_size <= self.n_samples <= _MAX_SAMPLES:
            raise ValueError(
                f"{self.shards} shards of {self.samples_per_shard} are {self.n_samples:,} samples; "
                f"use at least a batch ({self.batch_size}) and at most {_MAX_SAMPLES:,}"
            )
        if self.nodes * self.shards * self.epochs > _MAX_USES:
            raise ValueError(
                f"{self.shards} shards on {self.nodes} nodes in {self.epochs} epochs are more than "
                f"{_MAX_USES:,} uses; use fewer"
            )

    @property
    def world_size(self) -> int:
        """The number of processes on all nodes."""
        return self.nodes * self.ranks

    @property
    def n_samples(self) -> int:
        """The number of samples in all shards."""
        return self.shards * self.samples_per_shard

    @property
    def early(self) -> int:
        """The number of batches that are in progress before a batch is used."""
        return _PREFETCHED * self.workers


@dataclass(frozen=True, kw_only=True)
class Need:
    """The resources of the node that needs most, in bytes except for `shards`.

    Attributes:
        epoch: downloads in the first epoch.
        kept: downloads in all epochs if nothing is removed from the cache.
        cached: downloads in all epochs with the cache limit; None without a limit, or if the shards
            in use do not fit.
        shards: maximum number of shards in use or prefetched at once; None if no shard is stored.
        disk: size of these shards.
        memory: size of shuffle buffers.
    """

    epoch: float
    kept: float
    cached: float | None
    shards: int | None
    disk: float
    memory: float


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How well an epoch is shuffled; see the functions in `streaming_model`.

    Attributes:
        displacement: distance of samples from their stored position.
        collisions: pairs of samples of one shard in a batch, relative to chance.
        share_collisions: the same in the part of a batch of one process.
        mixed_entropy: entropy of the classes in a batch, for shards with mixed classes.
        sorted_entropy: the same for shards sorted by class.
    """

    displacement: float
    collisions: float
    share_collisions: float
    mixed_entropy: float
    sorted_entropy: float


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Seconds of waiting in an epoch that starts with an empty cache.

    Attributes:
        begin: before the first step.
        all: in the whole epoch.
        slow: in the whole epoch, with a slower link of one node.
        outage: in the whole epoch, with an outage of the link of one node.
    """

    begin: float
    all: float
    slow: float
    outage: float


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """The results for an order. left_out: number of samples; remark: a note below the table."""

    name: str
    left_out: int
    need: Need
    quality: Quality
    lost: Lost | None
    remark: str = ""


def simulate(settings: StreamingSettings) -> list[PlanRow]:
    """Simulate a full shuffle, windows, partitions, and webdataset's buffers; return their rows."""
    orders: list[tuple[str, int | None, int]] = [
        ("full shuffle", None, 1),
        (f"window {settings.shuffle_window}", settings.shuffle_window, 1),
    ]
    if settings.shard_partitions > 1:
        orders += [
            (f"{settings.shard_partitions} partitions", None, settings.shard_partitions),
            (
                f"{settings.shard_partitions} partitions, window {settings.shuffle_window}",
                settings.shuffle_window,
                settings.shard_partitions,
            ),
        ]
    return [
        *(
            _ours(settings, name, shuffle_window, shard_partitions)
            for name, shuffle_window, shard_partitions in orders
        ),
        *(_webdataset(settings, buffer) for buffer in BUFFERS),
    ]


def plan_batches(
    settings: StreamingSettings, *, epoch: int, shuffle_window: int | None, shard_partitions: int
) -> NDArray[np.int64]:
    """Return the batches of the loaders of all ranks in an epoch, (steps, batch_size)."""
    order = EpochOrder(
        settings.n_samples,
        seed=settings.seed,
        epoch=epoch,
        shard_sizes=[settings.samples_per_shard] * settings.shards,
        shuffle_window=shuffle_window,
        shard_partitions=shard_partitions,
    ).whole()
    size = settings.batch_size
    steps = count_batches(len(order), size)
    positions = batch_positions(size, rank=0, world_size=1, shard_partitions=shard_partitions)
    return order[: steps * size].reshape(steps, size)[:, positions]


def _ours(
    settings: StreamingSettings, name: str, shuffle_window: int | None, shard_partitions: int
) -> PlanRow:
    shard_of = _shard_of(settings)
    batches = plan_batches(
        settings, epoch=0, shuffle_window=shuffle_window, shard_partitions=shard_partitions
    )
    uses = [shard_uses(batches, shard_of, settings.shards, settings.nodes)]
    for epoch in range(1, settings.epochs):
        later = plan_batches(
            settings, epoch=epoch, shuffle_window=shuffle_window, shard_partitions=shard_partitions
        )
        uses.append(shard_uses(later, shard_of, settings.shards, settings.nodes))
    steps = len(batches)
    needed = (uses[0][0] >= 0).sum(axis=1)
    prefetch = settings.prefetch or default_prefetch(
        shuffle_window, shard_partitions, settings.nodes
    )
    at_once = np.minimum(most_at_once(uses[0], steps, settings.early) + prefetch, needed)
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
        lost=_lost(settings, uses[0], steps, prefetch),
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
    remark = f"its buffers use {memory / _GB:.3g} GB of memory per node"
    if idle:
        remark += (
            f"; {idle} of {settings.world_size * settings.workers} workers have no shard, which is "
            "an error of WebDataset unless empty_check=False"
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
    """Return the downloads in all epochs with the cache limit, bytes; see `Need`."""
    if settings.cache_bytes is None:
        return None
    capacity = int(min(settings.cache_bytes // settings.shard_bytes, settings.shards))
    if at_once > capacity:
        return None
    counts = [cached_downloads(uses, n, settings.early, capacity) for n in range(settings.nodes)]
    fitting = [sum(count) for count in counts if count is not None]
    return max(fitting) * settings.shard_bytes if len(fitting) == len(counts) else None


def _quality(
    settings: StreamingSettings, batches: NDArray[np.int64], shard_of: NDArray[np.int64]
) -> Quality:
    n, classes = settings.n_samples, settings.classes
    by_class = np.arange(n) * classes // n
    mixed = np.random.default_rng(settings.seed).permutation(by_class)
    return Quality(
        displacement=displacement(batches),
        collisions=collisions(batches, shard_of),
        share_collisions=collisions(
            batches.reshape(-1, settings.batch_size // settings.world_size), shard_of
        ),
        mixed_entropy=class_entropy(batches, mixed),
        sorted_entropy=class_entropy(batches, by_class),
    )


def _lost(settings: StreamingSettings, uses: Uses, steps: int, prefetch: int) -> Lost:
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
            prefetch=prefetch,
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


def streaming_document(settings: StreamingSettings, rows: Sequence[PlanRow]) -> dict[str, Any]:
    """Return settings and results as plain JSON values."""
    return {
        "settings": asdict(settings),
        "steps": count_batches(settings.n_samples, settings.batch_size),
        "memory": index_memory(settings, settings.n_samples),
        "rows": [_plain(asdict(row)) for row in rows],
    }


def index_memory(settings: StreamingSettings, n_samples: int) -> dict[str, int]:
    """Return the memory per node in bytes.

    Args:
        settings: the settings.
        n_samples: number of samples of the dataset.

    Returns:
        "index": the index, mapped once. "order": the orders of all processes with a full shuffle.
        "windows": the same with shuffle windows and partitions.
    """
    full = order_bytes(n_samples, settings.samples_per_shard, shuffle_window=None)
    windows = order_bytes(
        n_samples,
        settings.samples_per_shard,
        shuffle_window=settings.shuffle_window,
        shard_partitions=settings.shard_partitions,
        world_size=settings.world_size,
    )
    return {
        "index": n_samples * SAMPLE.itemsize,
        "order": full * settings.ranks,
        "windows": windows * settings.ranks,
    }


def order_bytes(
    n_samples: int,
    samples_per_shard: int,
    *,
    shuffle_window: int | None,
    shard_partitions: int = 1,
    world_size: int = 1,
) -> int:
    """Return the maximum memory of an order in a process, bytes; see `EpochOrder`."""
    of_rank = max(1, shard_partitions // world_size)
    of_partition = -(-n_samples // shard_partitions)
    if shuffle_window is None:
        return of_rank * of_partition * _POSITION_BYTES
    groups = GROUPS_KEPT * of_rank + 1
    return (
        min(groups * shuffle_window * samples_per_shard, of_rank * of_partition) * _POSITION_BYTES
    )


def streaming_table(settings: StreamingSettings, rows: Sequence[PlanRow]) -> str:
    """Return the results as tables of text."""
    lines: list[tuple[str, ...]] = [
        ("per node", "GB in 1", f"GB in {settings.epochs}", f"GB in {settings.epochs},", "shards",
         "GB", "seconds", "time to first", "1 link", "1 link,", "samples"),
        ("", "epoch", "epochs", "limited", "at once", "at once", "lost", "batch (s)",
         f"{settings.slow:g}x slower", f"{settings.outage_seconds:g} s outage", "left out"),
    ]  # fmt: skip
    lines += [_need_line(settings, row) for row in rows]
    quality: list[tuple[str, ...]] = [
        ("order", "same-shard collisions", "same-shard collisions", "entropy,", "entropy,", "mean"),
        ("", "in a batch", "in a process", "mixed", "sorted", "displacement"),
    ]
    quality += [
        (row.name, *("-" if np.isnan(value) else number(value) for value in (
            row.quality.collisions, row.quality.share_collisions, row.quality.mixed_entropy,
            row.quality.sorted_entropy, row.quality.displacement,
        )))
        for row in rows
    ]  # fmt: skip
    remarks = [f"{row.name}: {row.remark}" for row in rows if row.remark]
    parts = [aligned(lines), aligned(quality), [*remarks, *_notes(settings)]]
    return "\n\n".join("\n".join(part) for part in parts)


def _need_line(settings: StreamingSettings, row: PlanRow) -> tuple[str, ...]:
    need, lost = row.need, row.lost
    cached = "-" if settings.cache_bytes is None or lost is None else "too small"
    on_disk = ("-", "-") if need.shards is None else (f"{need.shards:,}", number(need.disk / _GB))
    times: tuple[str, ...] = ("-",) * 4
    if lost is not None:
        times = tuple(number(value) for value in (lost.all, lost.begin, lost.slow, lost.outage))
    return (
        row.name,
        number(need.epoch / _GB),
        number(need.kept / _GB),
        cached if need.cached is None else number(need.cached / _GB),
        *on_disk,
        *times,
        f"{row.left_out:,}",
    )


def _notes(settings: StreamingSettings) -> list[str]:
    steps = count_batches(settings.n_samples, settings.batch_size)
    lines = []
    for n in (settings.n_samples, 10**9):
        memory = index_memory(settings, n)
        lines.append(
            f"{n:,} samples: index {memory['index'] / _GB:.3g} GB, mapped once per node; order in "
            f"all processes of a node {memory['order'] / _GB:.3g} GB with a full shuffle, "
            f"{memory['windows'] / _GB:.3g} GB with windows"
        )
    return [
        f"nodes: {settings.nodes}, processes per node: {settings.ranks}, workers per process: "
        f"{settings.workers}; steps per epoch: {steps:,} of {settings.batch_size:,} samples, "
        f"{steps * settings.step_seconds:,.1f} s without waiting",
        *lines,
    ]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity, which JSON does not support, by None."""
    return {
        key: _plain(value)
        if isinstance(value, Mapping)
        else None
        if isinstance(value, float) and not np.isfinite(value)
        else value
        for key, value in row.items()
    }


# --- the command ---------------------------------------------------------------------------------

_SIMULATION = re.compile(
    r"^    python docs/streaming_simulator.py (.*)\n\n```text\n(?:.*\n)*?```$", re.MULTILINE
)


def updated(text: str) -> str:
    """Return a page with the current outputs of its simulations.

    Raises:
        RuntimeError: if a command fails.
    """

    def run(found: re.Match[str]) -> str:
        result = CliRunner().invoke(main, shlex.split(found[1]))
        if result.exit_code != 0:
            raise RuntimeError(f"{found[1]}: {result.output}")
        command = f"    python docs/streaming_simulator.py {found[1]}"
        return f"{command}\n\n```text\n{result.stdout.rstrip()}\n```"

    return _SIMULATION.sub(run, text)


def _count(name: str, default: int, text: str) -> Callable[[Any], Any]:
    return click.option(name, type=int, default=default, show_default=True, help=text)


def _measure(name: str, default: float, text: str) -> Callable[[Any], Any]:
    return click.option(name, type=float, default=default, show_default=True, help=text)


@click.command()
@_count("--shards", 1024, "Shards of the training set.")
@_count("--samples-per-shard", 1251, "Samples per shard.")
@_measure("--shard-mb", 144.0, "Size of a shard, in MB.")
@_count("--classes", 1000, "Classes of the training set.")
@_count("--nodes", 1, "Nodes that train together.")
@_count("--ranks", 8, "Ranks per node.")
@_count("--workers", 8, "Worker processes per rank.")
@_count("--batch-size", 1024, "Global batch size, summed over all ranks.")
@_count("--shuffle-window", 64, "Shards of a partition that are shuffled together.")
@click.option("--shard-partitions", type=int, help="Shard partitions.  [default: number of nodes]")
@click.option("--cache-limit", type=ByteSize(), help="Cache per node, for example 200GB.")
@_measure("--bandwidth", 1250.0, "Download rate of a node, in MB per second.")
@_measure("--step-seconds", 0.1, "Duration of a training step without waiting for data.")
@click.option("--prefetch", type=int, help="Shards to prefetch.  [default: one window]")
@_measure("--slow", 4.0, "Factor by which the link of one node is slower, for one column.")
@_measure("--outage", 30.0, "Seconds for which that link fails instead, for another column.")
@_count("--epochs", 10, "Epochs, for what the cache keeps from one to the next.")
@_count("--seed", 0, "Seed of the order.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--page", type=click.Path(path_type=Path), help="Update the outputs in a page.")
def main(*, as_json: bool, page: Path | None, **options: Any) -> None:  # noqa: ANN401
    """Simulate training from remote shards, without data."""
    if page is not None:
        page.write_text(updated(page.read_text()))
        return
    shard_partitions = options.pop("shard_partitions")
    try:
        settings = StreamingSettings(
            shard_partitions=options["nodes"] if shard_partitions is None else shard_partitions,
            shard_bytes=options.pop("shard_mb") * 1e6,
            bandwidth=options.pop("bandwidth") * 1e6,
            outage_seconds=options.pop("outage"),
            cache_bytes=options.pop("cache_limit"),
            **options,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    rows = simulate(settings)
    if as_json:
        click.echo(json.dumps(streaming_document(settings, rows), indent=2))
    else:
        click.echo(streaming_table(settings, rows))


if __name__ == "__main__":
    main()
