"""Tars that were made elsewhere become a set: they are scanned and get an index and a manifest."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines import __version__
from pipelines.errors import PipelineError
from pipelines.shards.grouping import PICTURE_EXTENSIONS, Left, samples_of_tar
from pipelines.shards.index import (
    ADOPTED,
    INDEX_NAME,
    MANIFEST_NAME,
    MOST_MANIFEST_BYTES,
    SAMPLE,
    Manifest,
    open_index,
    parse_manifest,
    read_index,
    write_index,
)
from pipelines.shards.verify import describe_tar
from pipelines.system.files import printable, read_regular, sha256, write_file
from pipelines.system.progress import Progress

_MAKE_AGAIN = "copy the shards again, or give again the command that made them"


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """What was found. labels: samples that have one; left: what is no sample, by reason."""

    folder: Path
    n_shards: int
    n_samples: int
    labels: int
    left: dict[str, int]
    examples: dict[str, str]


def adopt_tars(tars: Sequence[Path], *, name: str | None, progress: Progress) -> Adopted:
    """Scan tars of one folder and write its index and manifest; the tars stay as they are.

    Of a set that was made there the index alone is written again, where it is lost or damaged.

    Args:
        tars: in the order that the set gets.
        name: of the set; None for that of the folder.
        progress: called with tars that are scanned, and all of them.

    Raises:
        PipelineError: if the tars are of several folders, one is damaged, there is no sample, or
            the folder holds a set that was made there.
        OSError: if the folder cannot be written.
    """
    if not tars:
        raise PipelineError("no tar is named; name those of the set, as shards/*.tar")
    elsewhere = [tar for tar in tars if tar.parent.resolve() != tars[0].parent.resolve()]
    if elsewhere:
        raise PipelineError(
            f"{tars[0]} and {elsewhere[0]} lie in two folders; a set is the tars of one folder: "
            "index each for itself"
        )
    if len({tar.name for tar in tars}) != len(tars):
        raise PipelineError("a tar is named twice; name each once")
    folder = tars[0].parent
    _check_place(folder, {tar.name for tar in tars})
    made = _made_here(folder)
    if made is not None:
        return _restore_index(folder, made, progress)
    left = Left()
    shards, parts = [], []
    progress(0, len(tars))
    for number, tar in enumerate(tars):
        if not tar.is_file():
            raise PipelineError(f"{tar} is no file; name the tars of the set")
        rows, _ = samples_of_tar(tar, number, left)
        shards.append(describe_tar(tar, rows))
        parts.append(rows)
        progress(number + 1, len(tars))
    samples = np.concatenate(parts).astype(SAMPLE)
    if len(samples) == 0:
        raise PipelineError(
            f"{folder}: the tars hold no sample with a picture "
            f"({', '.join(sorted(PICTURE_EXTENSIONS))}); name tars of pictures"
        )
    write_index(
        folder,
        name=printable(name or folder.resolve().name),
        kind=ADOPTED,
        shards=shards,
        samples=samples,
        classes=[],
        extensions=[],
        settings={"found": left.counts},
        versions={"pixmix": __version__},
    )
    return Adopted(
        folder=folder,
        n_shards=len(shards),
        n_samples=len(samples),
        labels=int((samples["label"] >= 0).sum()),
        left=left.counts,
        examples=left.examples,
    )


def _check_place(folder: Path, names: set[str]) -> None:
    """See that nobody else's manifest or index would be overwritten."""
    path, index = folder / MANIFEST_NAME, folder / INDEX_NAME
    if not path.exists():
        # One of our form is what a killed run left.
        if index.exists() and not _is_index(index):
            raise PipelineError(f"{index} is in the way and belongs to no set; move it elsewhere")
        return
    manifest = parse_manifest(read_regular(path, max_bytes=MOST_MANIFEST_BYTES), str(path))
    others = sorted({shard.file for shard in manifest.shards} - names)
    if others:
        raise PipelineError(
            f"{path} is of a set that has {others[0]} too; name all of its tars, or give each set "
            "a folder of its own"
        )


def _made_here(folder: Path) -> Manifest | None:
    """Return the manifest of a folder's set if its tars were not made elsewhere and taken in.

    Raises:
        PipelineError: if nothing is to be done for it, for its index is whole.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        return None
    manifest = parse_manifest(read_regular(path, max_bytes=MOST_MANIFEST_BYTES), str(path))
    if manifest.kind == ADOPTED:
        return None
    try:
        read_index(folder, manifest)
    except PipelineError:
        return manifest
    raise PipelineError(
        f"{path} belongs to a set that pixmix-shard made there; run pixmix-shard verify on it, "
        "or move the tars to a folder of their own"
    )


def _restore_index(folder: Path, manifest: Manifest, progress: Progress) -> Adopted:
    """Write the index of a set that lost it, from the tars that its manifest lists.

    Raises:
        PipelineError: if the tars are not those of which the manifest was written.
        OSError: if one cannot be read, or the folder cannot be written.
    """
    left = Left()
    parts = []
    for number, shard in enumerate(manifest.shards):
        tar = folder / shard.file
        if not tar.is_file():
            raise PipelineError(f"{tar} is missing; {_MAKE_AGAIN}")
        rows, _ = samples_of_tar(tar, number, left)
        parts.append(rows)
        progress(number + 1, len(manifest.shards))
    samples = np.concatenate(parts).astype(SAMPLE)
    file = io.BytesIO()
    np.save(file, samples, allow_pickle=False)
    if sha256(file.getvalue()) != manifest.index.sha256:
        raise PipelineError(f"the tars in {folder} are not those of {MANIFEST_NAME}; {_MAKE_AGAIN}")
    write_file(folder / manifest.index.file, file.getvalue())
    return Adopted(
        folder=folder,
        n_shards=len(parts),
        n_samples=len(samples),
        labels=int((samples["label"] >= 0).sum()),
        left=left.counts,
        examples=left.examples,
    )


def _is_index(path: Path) -> bool:
    try:
        open_index(path, str(path), "")
    except PipelineError:
        return False
    return True
