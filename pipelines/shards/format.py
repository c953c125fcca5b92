"""The format of a sharded dataset: a manifest, and an index of 20 bytes per sample.

    FOLDER/manifest.json     the shards with size, number of samples and SHA-256, and the classes
           index.npy         shard, offset, size and label of each sample: an array of SAMPLE
           NAME-0000.tar ...

The index is memory-mapped, so the workers of a node share one copy of it, and a sample is read
with one `os.pread(descriptor_of_its_shard, size, offset)`.
"""

import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.system.files import (
    Count,
    FileName,
    Label,
    Sha256,
    file_sha256,
    new_file,
    open_regular,
    read_json,
    read_regular,
    sha256,
    write_file,
)
from pipelines.system.untrusted import open_array

SAMPLE = np.dtype([("shard", "<u4"), ("size", "<u4"), ("offset", "<u8"), ("label", "<i4")])
"""A sample: number of its shard; size and offset of its image in the tar; label, or -1."""

FORMAT = "pixmix-shards"
FORMAT_VERSION = 1

MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.npy"

MAX_SHARDS = 1_000_000
"""Maximum number of shards, so that a typo such as {0..99999999} does not fill the memory."""

ADOPTED = "tars"
"""The kind of a dataset whose tars were made by another program."""

MAX_MANIFEST_BYTES = 2**28
"""Maximum size of any manifest.json; one of shards has about 150 bytes per shard."""

_AGAIN = "copy it again from where the dataset was made, or make the dataset again"

_MAX_HEADER_BYTES = 2**12
"""numpy writes a header of 192 bytes before the samples of an index."""

BLOCK = 512
"""Bytes of a tar header; the content of a member begins at a multiple of it."""


class Shard(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename={"n_samples": "num_samples", "n_bytes": "bytes"},
):
    """The entry of a tar in the manifest.

    Attributes:
        file: name of the tar in the folder of the dataset.
        n_samples: number of samples.
        n_bytes: size of the tar.
        sha256: hash of the tar.
    """

    file: FileName
    n_samples: Count
    n_bytes: Count
    sha256: Sha256


class IndexFile(msgspec.Struct, frozen=True, kw_only=True):
    """The entry of the index in the manifest."""

    file: FileName
    sha256: Sha256


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of a dataset; see `ShardSet`.

    Attributes:
        num_samples: number of samples in all shards.
        sha256: hash of all other fields; None in manifests of earlier versions.
        hash: SHA-256 of the bytes of the manifest, which the manifest itself does not hold.
    """

    name: Label
    kind: Label
    settings: dict[str, Any]
    classes: Annotated[list[str], msgspec.Meta(max_length=2**20)]
    extensions: list[FileName]
    num_samples: Count
    shards: Annotated[list[Shard], msgspec.Meta(max_length=MAX_SHARDS)]
    index: IndexFile
    versions: dict[str, Any] = {}
    sha256: Sha256 | None = None
    hash: str = ""

    def __post_init__(self) -> None:
        """Reject shards that contradict each other or the dataset.

        Raises:
            ValueError: if a name is listed twice, or a number of samples is impossible.
        """
        seen: set[str] = {self.index.file, MANIFEST_NAME}
        for shard in self.shards:
            if shard.file in seen:
                raise ValueError(f"`{shard.file}` is listed twice")
            seen.add(shard.file)
            # Each sample needs a header in the tar.
            if shard.n_samples > shard.n_bytes // BLOCK:
                raise ValueError(
                    f"`{shard.file}` of {shard.n_bytes} bytes cannot hold {shard.n_samples} samples"
                )
        total = sum(shard.n_samples for shard in self.shards)
        if total != self.num_samples:
            raise ValueError(
                f"`num_samples` is {self.num_samples}, but the shards have {total} together"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardSet:
    """The shards of a dataset, and the positions of the samples in them.

    Attributes:
        location: the folder of the shards, or the URL before their names.
        name: name of the dataset, as in "imagenet1k-train".
        kind: kind of the source, as in "imagefolder".
        shards: the tars.
        samples: (n,) SAMPLE in shard order, read-only and memory-mapped.
        classes: class names by label, or empty.
        extensions: extensions of the images, as in ("jpg",), lower-case and without a dot.
        settings: settings that the dataset was made with, from the manifest.
        hash: identifies the dataset: the SHA-256 of the manifest, or, for a part of the dataset, of
            that and the names of the shards.
    """

    location: str
    name: str
    kind: str
    shards: tuple[Shard, ...]
    samples: NDArray[np.void]
    classes: tuple[str, ...]
    extensions: tuple[str, ...]
    settings: Mapping[str, Any]
    hash: str

    def __len__(self) -> int:
        return len(self.samples)

    def path(self, shard: int) -> Path:
        """Return the path of a local shard."""
        return Path(self.location) / self.shards[shard].file

    def key(self, i: int) -> str:
        """Return the key of a sample for messages, "?" if it cannot be read.

        It is read from the header before the image. A name of over 100 bytes, in a tar of another
        program, may be cut off.
        """
        sample = self.samples[i]
        return read_key(self.path(int(sample["shard"])), int(sample["offset"]))


def open_shards(where: str | Path) -> ShardSet:
    """Open a local sharded dataset.

    Args:
        where: a folder with a manifest.json, the manifest, a tar, or tars as a brace pattern such
            as "shards/train-{0000..1023}.tar", whose folder holds a manifest that lists them.

    Returns:
        The dataset, or the part of it that the tars hold.

    Raises:
        PipelineError: if the manifest is missing, or a shard or the index is missing or does not
            match the manifest.
        OSError: if a file cannot be read.
    """
    path = Path(where)
    whole = path.is_dir() or path.name == MANIFEST_NAME
    folder = path if path.is_dir() else path.parent
    manifest = read_manifest(folder)
    if manifest is None:
        raise PipelineError(
            f"{folder} has no {MANIFEST_NAME}; if it holds tars of another program, run "
            f"pixmix-shard index {folder}/*.tar; otherwise use a folder made by pixmix-shard"
        )
    shards = build_set(str(folder), manifest, read_index(folder, manifest))
    if not whole:
        shards = select_shards(shards, list(expand_braces(path.name)))
    for number, shard in enumerate(shards.shards):
        _check_size(shards.path(number), shard)
    return shards


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield the names that match a pattern with {first..last}, in order.

    ``expand_braces("a-{08..10}.tar")`` yields "a-08.tar", "a-09.tar", "a-10.tar".

    Raises:
        PipelineError: if the range is reversed, or has over a million shards.
    """
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        yield pattern
        return
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + MAX_SHARDS:
        raise PipelineError(
            f"{match[0]} in {pattern} is not a range of shards; use the first and the last number, "
            f"for at most {MAX_SHARDS:,} shards"
        )
    for number in range(first, last + 1):
        padded = str(number).zfill(len(match[1]))
        yield from expand_braces(f"{pattern[: match.start()]}{padded}{pattern[match.end() :]}")


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder of shards, None if it has none; see `parse_manifest`.

    Raises:
        OSError: if it cannot be read.
    """
    path = folder / MANIFEST_NAME
    try:
        content = read_regular(path, max_bytes=MAX_MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Decode a manifest, and check the type and range of each value.

    Args:
        content: content of the file.
        where: name of the file, for errors.

    Raises:
        PipelineError: if it is not a manifest of shards, is damaged, or has another version.
    """
    fields = read_json(content, dict[str, Any], where, _AGAIN)
    if fields.get("format") != FORMAT:
        raise PipelineError(
            f"{where} is not the manifest of a sharded dataset; use a folder made by pixmix-shard"
        )
    version = fields.get("version")
    if version != FORMAT_VERSION:
        raise PipelineError(
            f"{where} has format version {version!r:.80}, and this pixmix reads "
            f"{FORMAT_VERSION}; install the pixmix that made it, or make the dataset again"
        )
    manifest = read_json({**fields, "hash": sha256(content)}, Manifest, where, _AGAIN)
    if manifest.sha256 not in (None, _own_sha256(fields)):
        raise PipelineError(f"{where} was changed since it was written; {_AGAIN}")
    return manifest


def build_set(location: str, manifest: Manifest, samples: NDArray[np.void]) -> ShardSet:
    """Build a dataset from its manifest and its index.

    Args:
        location: the folder of the shards, or the URL before their names.
        manifest: the manifest.
        samples: (n,) SAMPLE, the index; the caller has compared its hash with the manifest.

    Raises:
        PipelineError: if the index contradicts the manifest.
    """
    fault = _index_fault(samples, manifest)
    if fault:
        raise PipelineError(
            f"{location}/{MANIFEST_NAME}: {INDEX_NAME} {fault}; make the dataset again"
        )
    return ShardSet(
        location=location,
        name=manifest.name,
        kind=manifest.kind,
        shards=tuple(manifest.shards),
        samples=samples,
        classes=tuple(manifest.classes),
        extensions=tuple(manifest.extensions),
        settings=manifest.settings,
        hash=manifest.hash,
    )


def select_shards(shards: ShardSet, names: Sequence[str]) -> ShardSet:
    """Return the part of a dataset in some of its shards, in the order of the names.

    Raises:
        PipelineError: if the dataset has no shard of a name, or a name is repeated.
    """
    if list(names) == [shard.file for shard in shards.shards]:
        return shards
    numbers = {shard.file: number for number, shard in enumerate(shards.shards)}
    if len(set(names)) != len(names):
        raise PipelineError(f"{shards.location}: a shard is listed twice; list each once")
    parts = []
    ends = np.cumsum([shard.n_samples for shard in shards.shards])
    for position, name in enumerate(names):
        if name not in numbers:
            raise PipelineError(
                f"{shards.location}/{MANIFEST_NAME} does not list {name}; use shards that it "
                "lists, or run pixmix-shard index on the tars"
            )
        number = numbers[name]
        end = int(ends[number])
        part = shards.samples[end - shards.shards[number].n_samples : end].copy()
        part["shard"] = position
        parts.append(part)
    samples = np.concatenate(parts)
    samples.flags.writeable = False
    return replace(
        shards,
        shards=tuple(shards.shards[numbers[name]] for name in names),
        samples=samples,
        hash=sha256("\n".join([shards.hash, *names]).encode()),
    )


def write_index(
    folder: Path,
    *,
    name: str,
    kind: str,
    shards: Sequence[Shard],
    samples: NDArray[np.void],
    classes: Sequence[str],
    extensions: Sequence[str],
    settings: Mapping[str, Any],
    versions: Mapping[str, Any],
) -> None:
    """Write the index of a folder of shards, then its manifest.

    Args:
        folder: the folder of the shards.
        name: name of the dataset.
        kind: kind of the source, as in "imagefolder".
        shards: the tars, in order.
        samples: (n,) SAMPLE, in shard order.
        classes: class names by label, or empty.
        extensions: extensions of the images.
        settings: plain JSON values that the shards depend on.
        versions: versions of the code that made the shards.

    Raises:
        PipelineError: if a manifest does not allow a value.
        OSError: if the disk is full or the folder cannot be written.
    """
    with new_file(folder / INDEX_NAME) as file:
        np.save(file, samples.astype(SAMPLE, copy=False), allow_pickle=False)
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "name": name,
        "kind": kind,
        "settings": dict(settings),
        "classes": list(classes),
        "extensions": list(extensions),
        "num_samples": len(samples),
        "shards": [msgspec.to_builtins(shard) for shard in shards],
        "index": {"file": INDEX_NAME, "sha256": file_sha256(folder / INDEX_NAME)},
        "versions": dict(versions),
    }
    manifest["sha256"] = _own_sha256(manifest)
    where = str(folder / MANIFEST_NAME)
    try:
        content = (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError as error:
        raise PipelineError(
            f"{where} cannot be written, because the name of a file or a class is not Unicode "
            f"({error.object[error.start - 20 : error.end + 20]!r}); rename it"
        ) from error
    # Check that it can be read again.
    parse_manifest(content, where)
    write_file(folder / MANIFEST_NAME, content)


def _own_sha256(manifest: Mapping[str, Any]) -> str:
    """Return the hash of all fields of a manifest except `sha256`."""
    fields = {name: value for name, value in manifest.items() if name != "sha256"}
    return sha256(json.dumps(fields, sort_keys=True).encode())


def max_index_bytes(manifest: Manifest) -> int:
    """Return the maximum size of the index of a dataset."""
    return _MAX_HEADER_BYTES + SAMPLE.itemsize * manifest.num_samples


def read_index(folder: Path, manifest: Manifest) -> NDArray[np.void]:
    """Return the index of a dataset, memory-mapped.

    Raises:
        PipelineError: if it is missing or damaged, or its hash differs from the manifest.
    """
    path = folder / manifest.index.file
    again = "copy it again from where the dataset was made, or run pixmix-shard index on the tars"
    if not path.is_file():
        raise PipelineError(f"{path} is missing; {again}")
    if path.stat().st_size > max_index_bytes(manifest) or (
        file_sha256(path) != manifest.index.sha256
    ):
        raise PipelineError(f"{path} does not have the SHA-256 in {MANIFEST_NAME}; {again}")
    return open_index(path, str(path), again)


def open_index(path: Path, where: str, remedy: str) -> NDArray[np.void]:
    """Return the samples in an index file, memory-mapped.

    Args:
        path: the file.
        where: name of the file, for errors.
        remedy: the last part of the error for a damaged file.

    Raises:
        PipelineError: if it cannot be read, is cut short, or does not hold samples.
    """
    samples = open_array(path, remedy, name=where)
    if samples.dtype != SAMPLE or samples.ndim != 1:
        raise PipelineError(
            f"{where} holds {samples.dtype} of shape {samples.shape}, expected samples; {remedy}"
        )
    return samples


def _check_size(path: Path, shard: Shard) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise PipelineError(
            f"{path} is missing, but {MANIFEST_NAME} lists it; copy it again, or make the dataset "
            "again"
        ) from error
    if size != shard.n_bytes:
        raise PipelineError(
            f"{path} has {size} bytes, expected {shard.n_bytes} by {MANIFEST_NAME}; copy it again, "
            "or make the dataset again"
        )


def _index_fault(samples: NDArray[np.void], manifest: Manifest) -> str | None:
    """Return how the index contradicts the manifest, in words that follow its name, or None."""
    shards = manifest.shards
    counts = [shard.n_samples for shard in shards]
    if len(samples) != manifest.num_samples:
        return f"has {len(samples)} samples, expected {manifest.num_samples} by the manifest"
    if not np.array_equal(samples["shard"], np.repeat(np.arange(len(shards)), counts)):
        return "has other numbers of samples per shard than the manifest"
    bytes_of_shards = np.array([shard.n_bytes for shard in shards], np.uint64)
    n_bytes = bytes_of_shards[samples["shard"]]
    offsets = samples["offset"]
    # Compare the offset alone, too: the sum may overflow in a hostile index.
    if ((offsets < BLOCK) | (offsets > n_bytes) | (offsets + samples["size"] > n_bytes)).any():
        return "has a sample that ends beyond its shard"
    n_classes = len(manifest.classes)
    labels = samples["label"]
    if (labels < -1).any() or (n_classes and (labels >= n_classes).any()):
        return f"has a label outside of the {n_classes} classes"
    return None


def read_key(path: Path, offset: int) -> str:
    """Return the key of the sample whose image begins at an offset of a tar, "?" if unreadable."""
    try:
        with open_regular(path) as file:
            file.seek(offset - BLOCK)
            return key_of(tarfile.TarInfo.frombuf(file.read(BLOCK), "utf-8", "replace").name)
    except (OSError, ValueError, tarfile.TarError):
        return "?"


def key_of(name: str) -> str:
    """Return the webdataset key of a member: its path up to the first dot of its base name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]
