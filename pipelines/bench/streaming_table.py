"""What a simulation of streaming found, as a table for people and as a document for machines."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pipelines.bench.results import number
from pipelines.bench.streaming import PlanRow, StreamingSettings
from pipelines.loading.order import count_batches, order_bytes
from pipelines.shards.index import SAMPLE
from pipelines.text_table import aligned

_GB = 1e9


def streaming_document(settings: StreamingSettings, rows: Sequence[PlanRow]) -> dict[str, Any]:
    """Return everything as plain JSON values."""
    return {
        "settings": asdict(settings),
        "steps": count_batches(settings.n_samples, settings.batch_size),
        "memory": index_memory(settings, settings.n_samples),
        "rows": [_plain(asdict(row)) for row in rows],
    }


def index_memory(settings: StreamingSettings, n_samples: int) -> dict[str, int]:
    """Return bytes a node: the index, mapped once, and the order, which each process has.

    n_samples: of a set with such shards. order: of a full shuffle; windows: of windows, in lanes
    where there are several.
    """
    full = order_bytes(n_samples, settings.samples_per_shard, window=None)
    windows = order_bytes(
        n_samples,
        settings.samples_per_shard,
        window=settings.window,
        lanes=settings.lanes,
        world_size=settings.world_size,
    )
    return {
        "index": n_samples * SAMPLE.itemsize,
        "order": full * settings.ranks,
        "windows": windows * settings.ranks,
    }


def streaming_table(settings: StreamingSettings, rows: Sequence[PlanRow]) -> str:
    """Return everything as lines of aligned text."""
    lines: list[tuple[str, ...]] = [
        ("a node", "GB, 1", f"GB, {settings.epochs}", "GB, its", "shards", "GB", "seconds",
         "lost at", "1 link", "1 link", "samples"),
        ("", "epoch", "all kept", "cache", "at once", "at once", "lost", "start",
         f"{settings.slow:g}x slower", f"out {settings.outage_seconds:g} s", "left out"),
    ]  # fmt: skip
    lines += [_need_line(settings, row) for row in rows]
    quality: list[tuple[str, ...]] = [
        ("shuffled", "meetings,", "meetings,", "entropy,", "entropy,", "travel"),
        ("", "batch", "process", "mixed", "sorted", ""),
    ]
    quality += [
        (row.name, *("-" if np.isnan(value) else number(value) for value in (
            row.quality.meetings, row.quality.share_meetings, row.quality.mixed_entropy,
            row.quality.sorted_entropy, row.quality.travel,
        )))
        for row in rows
    ]  # fmt: skip
    remarks = [f"{row.name}: {row.remark}" for row in rows if row.remark]
    parts = [aligned(lines), aligned(quality), [*remarks, *_notes(settings)]]
    return "\n\n".join("\n".join(part) for part in parts)


def _need_line(settings: StreamingSettings, row: PlanRow) -> tuple[str, ...]:
    need, lost = row.need, row.lost
    cached = "-" if settings.cache_bytes is None or lost is None else "no room"
    on_disk = ("0", "0") if need.shards is None else (f"{need.shards:,}", number(need.disk / _GB))
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
    told = []
    for n in (settings.n_samples, 10**9):
        memory = index_memory(settings, n)
        told.append(
            f"{n:,} samples: index {memory['index'] / _GB:.3g} GB, mapped once a node; order, in "
            f"all processes of a node together, {memory['order'] / _GB:.3g} GB of a full shuffle, "
            f"{memory['windows'] / _GB:.3g} GB with windows"
        )
    return [
        f"nodes: {settings.nodes}, processes of each: {settings.ranks}, workers of each: "
        f"{settings.workers}; an epoch: {steps:,} steps of {settings.batch_size:,} samples, "
        f"{steps * settings.step_seconds:,.1f} s without waiting",
        *told,
    ]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Replace what is no finite number, which JSON has not, by None."""
    return {
        key: _plain(value)
        if isinstance(value, Mapping)
        else None
        if isinstance(value, float) and not np.isfinite(value)
        else value
        for key, value in row.items()
    }
