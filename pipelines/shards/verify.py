"""Is a set of shards what its manifest says? Everything is read again, nothing is trusted."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

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
    read_key,
    read_manifest,
)
from pipelines.shards.images import DecodeError, decode_rgb
from pipelines.shards.remote import RemoteFiles, open_set
from pipelines.shards.tar import Ignored, samples_of_tar
from pipelines.shards.writer import file_md5
from pipelines.system.files import file_sha256, open_regular
from pipelines.system.objects import shown
from pipelines.system.progress import Progress

_Found = tuple[list[str], dict[str, int]]
"""The faults of a shard, a line each, and the numbers of members of no sample, by reason."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found. faults: a line each; ignored: members that belong to no sample, by reason."""

    n_shards: int
    n_samples: int
    n_bytes: int
    decoded: int
    faults: tuple[str, ...]
    ignored: dict[str, int] = field(default_factory=dict)


def verify_shards(
    where: Path | str, *, decode: int | None, jobs: int, progress: Progress
) -> Verdict:
    """Hash all shards again, walk through their tars, compare the index, decode images.

    Args:
        where: the folder of the set, or its address. Each shard of an address is downloaded into a
            temporary folder, and removed when it is checked; other files there are not looked at.
        decode: how many images, spread evenly over the set; None for all.
        jobs: threads.
        progress: called with samples that were looked at, and all samples.

    Raises:
        PipelineError: if there is no set, or its manifest or index is damaged.
    """
    if isinstance(where, str):
        # Not the cache of the node: what the server has now is to be verified.
        with TemporaryDirectory(prefix="pixmix-") as folder:
            remote = open_set(where, cache_dir=folder)
            check = partial(_check_remote_shard, remote.files, remote.shards)
            return _check_all(remote.shards, check, decode, jobs, progress)
    manifest = read_manifest(where)
    if manifest is None:
        raise PipelineError(_no_set(where))
    shards = build_set(str(where), manifest, read_index(where, manifest))
    verdict = _check_all(shards, partial(_check_local_shard, shards), decode, jobs, progress)
    faults = [*verdict.faults, *_strangers(shards)]
    # Those beside tars that were made elsewhere are not ours.
    if shards.kind != ADOPTED:
        faults += _side_file_faults(where, shards, jobs, tars_are_whole=not faults)
    return replace(verdict, faults=tuple(faults))


def _check_all(
    shards: ShardSet,
    check: Callable[[int, int, NDArray[np.bool_]], _Found],
    decode: int | None,
    jobs: int,
    progress: Progress,
) -> Verdict:
    """Check all shards; check: one, by its number, its first sample and the samples to decode."""
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
            pool.submit(check, number, end - shard.n_samples, chosen)
            for number, (shard, end) in enumerate(zip(shards.shards, ends, strict=True))
        ]
        for checked, end in zip(checks, ends, strict=True):
            its_faults, its_ignored = checked.result()
            faults += its_faults
            for reason, count in its_ignored.items():
                ignored[reason] = ignored.get(reason, 0) + count
            progress(end, n)
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
        what = "is not a folder" if folder.exists() else "does not exist"
        return f"{folder} {what}; name a folder made by pixmix-shard"
    below = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_NAME}"))
    if below:
        return f"{folder} is no set; name one in it: {', '.join(map(str, below))}"
    return (
        f"{folder} has no {MANIFEST_NAME}; name a folder made by pixmix-shard, or run pixmix-shard "
        "index on the tars of a set made elsewhere"
    )


def _check_remote_shard(
    files: RemoteFiles, shards: ShardSet, number: int, first: int, chosen: NDArray[np.bool_]
) -> _Found:
    try:
        held = files.hold(number)
    except PipelineError as error:
        return [str(error)], {}
    try:
        faults, ignored = _check_shard(held.path, shards, number, first, chosen)
    finally:
        held.discard()
    url = shown(files.url(number))
    return [fault.replace(str(held.path), url) for fault in faults], ignored


def _check_local_shard(
    shards: ShardSet, number: int, first: int, chosen: NDArray[np.bool_]
) -> _Found:
    return _check_shard(shards.path(number), shards, number, first, chosen)


def _check_shard(
    path: Path, shards: ShardSet, number: int, first: int, chosen: NDArray[np.bool_]
) -> _Found:
    shard = shards.shards[number]
    end = first + shard.n_samples
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
    # Beside tars made elsewhere there may lie those of another set.
    if shards.kind == ADOPTED:
        return []
    own = {shard.file for shard in shards.shards}
    others = sorted(path for path in Path(shards.location).glob("*.tar") if path.name not in own)
    return [f"{path} does not belong to the set" for path in others]


def _decode(path: Path, shards: ShardSet, indices: NDArray[np.int64]) -> list[str]:
    faults = []
    with open_regular(path) as file:
        for i in indices.tolist():
            sample = shards.samples[i]
            file.seek(int(sample["offset"]))
            try:
                decode_rgb(file.read(int(sample["size"])))
            except DecodeError as error:
                key = read_key(path, int(sample["offset"]))
                faults.append(f"{path}: the image of key {key} cannot be decoded ({error})")
    return faults
