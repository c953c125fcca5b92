"""Verify a sharded dataset, and index tars that another program made.

`verify_shards` reads all files again and compares them with the manifest. `index_tars` writes an
index and a manifest for the tars of a folder.
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from pipelines import __version__
from pipelines.errors import PipelineError
from pipelines.shards.format import (
    ADOPTED,
    INDEX_NAME,
    MANIFEST_NAME,
    SAMPLE,
    Manifest,
    Shard,
    ShardSet,
    build_set,
    open_index,
    read_index,
    read_key,
    read_manifest,
    write_index,
)
from pipelines.shards.images import DecodeError, decode_rgb
from pipelines.shards.remote import RemoteFiles, open_set
from pipelines.shards.tar import TAR_IMAGE_EXTENSIONS, Ignored, samples_of_tar
from pipelines.shards.writer import export_faults, file_md5, read_side_file
from pipelines.system.files import (
    file_sha256,
    open_regular,
    printable,
    sha256,
    write_file,
)
from pipelines.system.objects import shown
from pipelines.system.progress import Progress

_Checked = tuple[list[str], dict[str, int]]
"""The faults of a shard, a line for each, and the number of ignored members by reason."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of `verify_shards`.

    Attributes:
        n_shards: number of shards.
        n_samples: number of samples.
        n_bytes: size of all shards.
        decoded: number of images that were decoded.
        faults: a line for each fault.
        ignored: number of members that are in no sample, by reason.
    """

    n_shards: int
    n_samples: int
    n_bytes: int
    decoded: int
    faults: tuple[str, ...]
    ignored: dict[str, int] = field(default_factory=dict)


def verify_shards(
    where: Path | str, *, decode: int | None, jobs: int, progress: Progress
) -> Verdict:
    """Hash all shards, read the headers of their tars, compare the index, and decode images.

    Args:
        where: folder or address of the dataset. Each shard of an address is downloaded to a
            temporary folder, checked and removed; its side files are not checked.
        decode: number of images to decode, spread evenly over the dataset; None for all.
        jobs: number of threads.
        progress: called with the number of checked samples, and of all samples.

    Raises:
        PipelineError: if the manifest or the index is missing or damaged.
    """
    if isinstance(where, str):
        # Without the cache of the node, because the server's files must be verified.
        with TemporaryDirectory(prefix="pixmix-") as folder:
            remote = open_set(where, cache_dir=folder)
            check = partial(_check_remote_shard, remote.files, remote.shards)
            return _check_all(remote.shards, check, decode, jobs, progress)
    manifest = read_manifest(where)
    if manifest is None:
        raise PipelineError(_no_set(where))
    shards = build_set(str(where), manifest, read_index(where, manifest))
    verdict = _check_all(shards, partial(_check_local_shard, shards), decode, jobs, progress)
    faults = [*verdict.faults, *_unlisted_tars(shards)]
    # Side files of tars of another program are not ours.
    if shards.kind != ADOPTED:
        faults += _side_file_faults(where, shards, jobs, compare_tars=not faults)
    return replace(verdict, faults=tuple(faults))


def _check_all(
    shards: ShardSet,
    check: Callable[[int, int, NDArray[np.bool_]], _Checked],
    decode: int | None,
    jobs: int,
    progress: Progress,
) -> Verdict:
    """Check all shards.

    Args:
        shards: the dataset.
        check: checks a shard by its number, its first sample, and a mask of the samples to decode.
        decode: number of images to decode; None for all.
        jobs: number of threads.
        progress: called with the number of checked samples, and of all samples.
    """
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
    folder: Path, shards: ShardSet, jobs: int, *, compare_tars: bool
) -> list[str]:
    md5 = None
    if compare_tars:
        with ThreadPoolExecutor(jobs) as pool:
            md5 = list(pool.map(file_md5, map(shards.path, range(len(shards.shards)))))
    try:
        return export_faults(shards, lambda name: read_side_file(folder / name), md5)
    except OSError as error:
        return [f"{error.filename or folder}: {error.strerror or error}"]


def _no_set(folder: Path) -> str:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        return f"{folder} {what}; use a folder made by pixmix-shard"
    below = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_NAME}"))
    if below:
        return f"{folder} has no {MANIFEST_NAME}; use one of {', '.join(map(str, below))}"
    return (
        f"{folder} has no {MANIFEST_NAME}; use a folder made by pixmix-shard, or run pixmix-shard "
        "index on the tars of another program"
    )


def _check_remote_shard(
    files: RemoteFiles, shards: ShardSet, number: int, first: int, chosen: NDArray[np.bool_]
) -> _Checked:
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
) -> _Checked:
    return _check_shard(shards.path(number), shards, number, first, chosen)


def _check_shard(
    path: Path, shards: ShardSet, number: int, first: int, chosen: NDArray[np.bool_]
) -> _Checked:
    shard = shards.shards[number]
    end = first + shard.n_samples
    try:
        size = path.stat().st_size
        if size != shard.n_bytes:
            return [f"{path} has {size} bytes, expected {shard.n_bytes} by the manifest"], {}
        if file_sha256(path) != shard.sha256:
            return [f"the SHA-256 of {path} differs from the manifest"], {}
        ignored = Ignored()
        rows, extensions = samples_of_tar(path, number, ignored)
        faults = _compare(path, rows, np.asarray(shards.samples[first:end]))
        unknown = sorted(extensions.difference(shards.extensions))
        if unknown and shards.kind != ADOPTED:
            faults.append(f"{path} holds .{unknown[0]}, which the manifest does not list")
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
    """Return the entry of a tar in a manifest.

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
        return [f"{path} holds {len(found)} samples, expected {len(listed)} by the index"]
    if not np.array_equal(found, listed):
        first = int(np.nonzero(found != listed)[0][0])
        return [f"{path}: the offset, size or label of sample {first} differs from the index"]
    return []


def _unlisted_tars(shards: ShardSet) -> list[str]:
    """Return a fault for each tar in the folder that the manifest does not list."""
    # A folder of tars of another program may hold several datasets.
    if shards.kind == ADOPTED:
        return []
    own = {shard.file for shard in shards.shards}
    others = sorted(path for path in Path(shards.location).glob("*.tar") if path.name not in own)
    return [f"{path} is not in the manifest; readers of all tars would read it" for path in others]


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


# --- tars of another program ---------------------------------------------------------------------

_MAKE_AGAIN = "copy the shards again, or repeat the command that made them"


@dataclass(frozen=True, kw_only=True)
class IndexedTars:
    """The result of `index_tars`.

    Attributes:
        folder: folder of the tars.
        n_shards: number of tars.
        n_samples: number of samples.
        labels: number of samples with a label.
        ignored: number of members that are in no sample, by reason.
        examples: name of one such member, by reason.
    """

    folder: Path
    n_shards: int
    n_samples: int
    labels: int
    ignored: dict[str, int]
    examples: dict[str, str]


def index_tars(tars: Sequence[Path], *, name: str | None, progress: Progress) -> IndexedTars:
    """Scan the tars of a folder and write an index and a manifest; the tars do not change.

    In a dataset that pixmix-shard made, only a lost or damaged index is written again.

    Args:
        tars: the tars in the order of the dataset.
        name: name of the dataset; None for the name of the folder.
        progress: called with the number of scanned tars, and of all tars.

    Raises:
        PipelineError: if the tars are in several folders, one is damaged, they hold no sample, or
            the folder holds another dataset.
        OSError: if the folder cannot be written.
    """
    folder = _folder_of(tars)
    manifest = read_manifest(folder)
    _check_free(folder, manifest, {tar.name for tar in tars})
    made = manifest if manifest is not None and manifest.kind != ADOPTED else None
    if made is not None:
        tars = [folder / shard.file for shard in made.shards]
    ignored = Ignored()
    shards, parts = [], []
    progress(0, len(tars))
    for number, tar in enumerate(tars):
        if not tar.is_file():
            raise PipelineError(f"{tar} is not a file; use the tars of the dataset, all of them")
        rows, _ = samples_of_tar(tar, number, ignored)
        parts.append(rows)
        if made is None:
            shards.append(describe_tar(tar, len(rows)))
        progress(number + 1, len(tars))
    samples = np.concatenate(parts).astype(SAMPLE)
    if made is not None:
        file = io.BytesIO()
        np.save(file, samples, allow_pickle=False)
        if sha256(file.getvalue()) != made.index.sha256:
            raise PipelineError(f"the tars in {folder} differ from {MANIFEST_NAME}; {_MAKE_AGAIN}")
        write_file(folder / made.index.file, file.getvalue())
    elif len(samples) == 0:
        raise PipelineError(
            f"{folder}: the tars hold no sample with an image "
            f"({', '.join(sorted(TAR_IMAGE_EXTENSIONS))}); use tars of images"
        )
    else:
        write_index(
            folder,
            name=printable(name or folder.resolve().name),
            kind=ADOPTED,
            shards=shards,
            samples=samples,
            classes=[],
            extensions=[],
            settings={"ignored": ignored.counts},
            versions={"pixmix": __version__},
        )
    return IndexedTars(
        folder=folder,
        n_shards=len(parts),
        n_samples=len(samples),
        labels=int((samples["label"] >= 0).sum()),
        ignored=ignored.counts,
        examples=ignored.examples,
    )


def _folder_of(tars: Sequence[Path]) -> Path:
    if not tars:
        raise PipelineError("no tars; pass those of the dataset, as in shards/*.tar")
    elsewhere = [tar for tar in tars if tar.parent.resolve() != tars[0].parent.resolve()]
    if elsewhere:
        raise PipelineError(
            f"{tars[0]} and {elsewhere[0]} are in different folders; a dataset is the tars of one "
            "folder: index each folder by its own command"
        )
    if len({tar.name for tar in tars}) != len(tars):
        raise PipelineError("a tar is listed twice; list each once")
    return tars[0].parent


def _check_free(folder: Path, manifest: Manifest | None, names: set[str]) -> None:
    """Check that no manifest or index of another or a complete dataset would be overwritten."""
    path, index = folder / MANIFEST_NAME, folder / INDEX_NAME
    if manifest is None:
        # A killed run may have left an index in our format.
        if index.exists() and not _is_index(index):
            raise PipelineError(
                f"{index} is not an index of pixmix and would be overwritten; move it elsewhere"
            )
        return
    others = sorted({shard.file for shard in manifest.shards} - names)
    if others:
        raise PipelineError(
            f"{path} is of a dataset that also has {others[0]}; pass all of its tars, or put each "
            "dataset into its own folder"
        )
    if manifest.kind != ADOPTED:
        try:
            read_index(folder, manifest)
        except PipelineError:
            return
        raise PipelineError(
            f"{path} belongs to a dataset that pixmix-shard made; run pixmix-shard verify on it, "
            "or move the tars to another folder"
        )


def _is_index(path: Path) -> bool:
    try:
        open_index(path, str(path), "")
    except PipelineError:
        return False
    return True
