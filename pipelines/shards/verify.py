"""Is a set of shards what its manifest says? Everything is read again, nothing is trusted."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.shards.exports import export_faults
from pipelines.shards.format import (
    ADOPTED,
    MANIFEST_NAME,
    Shard,
    ShardSet,
    build_set,
    read_index,
    read_manifest,
)
from pipelines.shards.images import DecodeError, decode_rgb
from pipelines.shards.sidecars import file_md5
from pipelines.shards.tar import Ignored, samples_of_tar
from pipelines.system.files import file_sha256, open_regular
from pipelines.system.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found. faults: a line each; ignored: members that belong to no sample, by reason."""

    n_shards: int
    n_samples: int
    n_bytes: int
    decoded: int
    faults: tuple[str, ...]
    ignored: dict[str, int] = field(default_factory=dict)


def verify_shards(folder: Path, *, decode: int | None, jobs: int, progress: Progress) -> Verdict:
    """Hash all shards again, walk through their tars, compare the index, decode images.

    Args:
        folder: of the set.
        decode: how many images, spread evenly over the set; None for all.
        jobs: threads.
        progress: called with samples that were looked at, and all samples.

    Raises:
        PipelineError: if there is no set, or its manifest or index is damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise PipelineError(_no_set(folder))
    shards = build_set(str(folder), manifest, read_index(folder, manifest))
    n = len(shards)
    wanted = n if decode is None else min(decode, n)
    chosen = np.zeros(n, np.bool_)
    chosen[np.arange(wanted) * n // max(wanted, 1)] = True
    ends = np.cumsum([shard.n_samples for shard in shards.shards]).tolist()
    faults: list[str] = []
    ignored: dict[str, int] = {}
    progress(0, n)
    with ThreadPoolExecutor(jobs) as pool:
        checks = [
            pool.submit(_check_shard, shards, number, end - shard.n_samples, end, chosen)
            for number, (shard, end) in enumerate(zip(shards.shards, ends, strict=True))
        ]
        for check, end in zip(checks, ends, strict=True):
            its_faults, its_ignored = check.result()
            faults += its_faults
            for reason, count in its_ignored.items():
                ignored[reason] = ignored.get(reason, 0) + count
            progress(end, n)
    faults += _strangers(shards)
    # Those beside tars that were made elsewhere are not ours.
    if shards.kind != ADOPTED:
        faults += _side_file_faults(folder, shards, jobs, tars_are_whole=not faults)
    return Verdict(
        n_shards=len(shards.shards),
        n_samples=n,
        n_bytes=sum(shard.n_bytes for shard in shards.shards),
        decoded=wanted,
        faults=tuple(faults),
        ignored=ignored,
    )


def _side_file_faults(
    folder: Path, shards: ShardSet, jobs: int, *, tars_are_whole: bool
) -> list[str]:
    md5 = None
    if tars_are_whole:
        with ThreadPoolExecutor(jobs) as pool:
            md5 = list(pool.map(file_md5, map(shards.path, range(len(shards.shards)))))
    try:
        return export_faults(folder, shards, md5)
    except OSError as error:
        return [f"{error.filename or folder}: {error.strerror or error}"]


def _no_set(folder: Path) -> str:
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        return f"{folder} {what}; name a folder made by pixmix-shard"
    below = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_NAME}"))
    if below:
        return f"{folder} is no set; name one in it: {', '.join(map(str, below))}"
    return (
        f"{folder} has no {MANIFEST_NAME}; name a folder made by pixmix-shard, or run pixmix-shard "
        "index on the tars of a set made elsewhere"
    )


def _check_shard(
    shards: ShardSet, number: int, first: int, end: int, chosen: NDArray[np.bool_]
) -> tuple[list[str], dict[str, int]]:
    """Return the faults of a shard, a line each, and what of it belongs to no sample."""
    path, shard = shards.path(number), shards.shards[number]
    try:
        size = path.stat().st_size
        if size != shard.n_bytes:
            return [f"{path} has {size} bytes, the manifest says {shard.n_bytes}"], {}
        if file_sha256(path) != shard.sha256:
            return [f"{path} has another SHA-256 than the manifest says"], {}
        ignored = Ignored()
        rows, extensions = samples_of_tar(path, number, ignored)
        faults = _compare(path, rows, np.asarray(shards.samples[first:end]))
        unknown = sorted(extensions.difference(shards.extensions))
        if unknown and shards.kind != ADOPTED:
            faults.append(f"{path} holds .{unknown[0]}, which is none of the manifest's extensions")
        if not faults:
            faults = _decode(path, shards, first + np.nonzero(chosen[first:end])[0])
    except FileNotFoundError:
        return [f"{path} is missing"], {}
    except PipelineError as error:
        return [str(error)], {}
    except OSError as error:
        return [f"{path} cannot be read ({error.strerror})"], {}
    return faults, ignored.counts


def describe_tar(path: Path, n_samples: int) -> Shard:
    """Return a tar's entry in a manifest.

    Raises:
        OSError: if it cannot be read.
    """
    return Shard(
        file=path.name,
        n_samples=n_samples,
        n_bytes=path.stat().st_size,
        sha256=file_sha256(path),
    )


def _compare(path: Path, found: NDArray[np.void], listed: NDArray[np.void]) -> list[str]:
    if len(found) != len(listed):
        return [f"{path} holds {len(found)} samples, the index lists {len(listed)}"]
    if not np.array_equal(found, listed):
        place = int(np.nonzero(found != listed)[0][0])
        return [f"{path}: sample {place} lies elsewhere or has another label than the index says"]
    return []


def _strangers(shards: ShardSet) -> list[str]:
    """Find tars that other readers would take for the set's, as those of an earlier, larger one."""
    own = {shard.file for shard in shards.shards}
    others = [path for path in Path(shards.location).glob("*.tar") if path.name not in own]
    # Beside tars made elsewhere there may lie those of another set.
    if shards.kind == ADOPTED:
        return []
    return [f"{path} does not belong to the set" for path in sorted(others)]


def _decode(path: Path, shards: ShardSet, indices: NDArray[np.int64]) -> list[str]:
    faults = []
    with open_regular(path) as file:
        for i in indices.tolist():
            sample = shards.samples[i]
            file.seek(int(sample["offset"]))
            try:
                decode_rgb(file.read(int(sample["size"])))
            except DecodeError as error:
                faults.append(f"{path}: the image of key {shards.key(i)} {error}")
    return faults
