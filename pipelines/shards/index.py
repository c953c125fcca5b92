"""A set of shards as its readers see it: a manifest, and 20 bytes a sample.

    FOLDER/manifest.json     what the set is: its shards with size, count and SHA-256, its classes
           index.npy         where each sample's picture lies, and its label: an array of SAMPLE
           NAME-0000.tar ...

The index is memory-mapped, so the workers of a node share one copy of it, and a sample is read
with one `os.pread(descriptor_of_its_shard, size, offset)`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.shards.files import file_sha256, new_file, sha256, write_file

SAMPLE = np.dtype([("shard", "<u4"), ("size", "<u4"), ("offset", "<u8"), ("label", "<i4")])
"""A sample: shard number; size and offset of its picture's bytes in that tar; label, -1: none."""

FORMAT = "pixmix-shards"
FORMAT_VERSION = 1

MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.npy"

MOST_SHARDS_OF_A_PATTERN = 1_000_000
"""A slip such as {0..99999999} is told at once and does not fill the memory first."""

ADOPTED = "tars"
"""The kind of a set whose tars were made elsewhere."""

_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A tar. file: its name in the set's folder; n_bytes, sha256: of the whole file."""

    file: str
    n_samples: int
    n_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardSet:
    """The shards of a set, and where each sample lies in them.

    location: the folder that holds the shards, or the URL before their names.
    name: as in "imagenet1k-train".
    samples: (n,) SAMPLE in shard order, read-only and memory-mapped.
    classes: names by label, or empty.
    extensions: of the pictures, as in ("jpg",), lower-case and without a dot.
    settings: what the set was made with, as the manifest says it.
    hash: identifies the set: the SHA-256 of the manifest's bytes, or of that and the names of the
        shards where these are only some of the set's.
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
        """Return a sample's key as its tar has it, for messages: one that cannot be read is "?".

        It is read from the header before the picture. Of a name over 100 bytes in a tar that was
        made elsewhere it may be the beginning.
        """
        sample = self.samples[i]
        return read_key(self.path(int(sample["shard"])), int(sample["offset"]))


def read_key(path: Path, offset: int) -> str:
    """Return the key of the sample whose picture begins at an offset of a tar, or "?"."""
    try:
        with path.open("rb") as file:
            file.seek(offset - _BLOCK)
            return key_of(_header_name(file.read(_BLOCK)))
    except (OSError, ValueError):
        return "?"


def open_shards(where: str | Path) -> ShardSet:
    """Open a set of local shards.

    Args:
        where: a folder with a manifest.json, that manifest, a tar, or tars as a brace pattern such
            as "shards/train-{0000..1023}.tar", whose folder holds a manifest that lists them.

    Returns:
        The set, or that part of it which the tars are.

    Raises:
        PipelineError: if there is no manifest, a shard is missing or has another size than the
            manifest says, or the index is another one than it names.
        OSError: if a file cannot be read.
    """
    path = Path(where)
    names: list[str] | None = None
    if path.is_dir():
        folder = path
    elif path.name == MANIFEST_NAME:
        folder = path.parent
    else:
        folder = path.parent
        names = list(expand_braces(path.name))
    try:
        content = (folder / MANIFEST_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PipelineError(
            f"{folder} has no {MANIFEST_NAME}; run pixmix-shard index {folder}/*.tar to make one "
            "for tars that are there, or name a folder made by pixmix-shard"
        ) from error
    manifest = parse_manifest(content, str(folder / MANIFEST_NAME))
    shards = build_set(str(folder), content, read_index(folder, manifest))
    if names is not None:
        shards = select_shards(shards, names)
    for number, shard in enumerate(shards.shards):
        _check_size(shards.path(number), shard)
    return shards


def expand_braces(pattern: str) -> Iterator[str]:
    """Give the names that a pattern with {first..last} stands for, in order.

    expand_braces("a-{08..10}.tar") -> "a-08.tar", "a-09.tar", "a-10.tar"

    Raises:
        PipelineError: for a range that runs backwards or names over a million shards.
    """
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        yield pattern
        return
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + MOST_SHARDS_OF_A_PATTERN:
        raise PipelineError(
            f"{match[0]} in {pattern} is no range of shards; give the first and the last number, "
            f"at most {MOST_SHARDS_OF_A_PATTERN:,} apart"
        )
    for number in range(first, last + 1):
        padded = str(number).zfill(len(match[1]))
        yield from expand_braces(f"{pattern[: match.start()]}{padded}{pattern[match.end() :]}")


def key_of(name: str) -> str:
    """Return the key of a member as webdataset groups: its path up to the base name's first dot."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def parse_manifest(content: bytes, where: str) -> dict[str, Any]:
    """Read a manifest and see that it has all parts and names plain files.

    Args:
        content: the bytes of the file.
        where: its name, for the error.

    Raises:
        PipelineError: if it is no manifest of shards, or of a newer format.
    """
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise PipelineError(f"{where} is not JSON ({error}); make the set again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise PipelineError(
            f"{where} is not the manifest of a set of shards; name a folder made by pixmix-shard"
        )
    if manifest.get("version") != FORMAT_VERSION:
        raise PipelineError(
            f"{where} has format version {manifest.get('version')}, this pixmix reads "
            f"{FORMAT_VERSION}; use the pixmix that made it, or make the set again"
        )
    fault = _manifest_fault(manifest)
    if fault:
        raise PipelineError(f"{where} {fault}; make the set again")
    return manifest


def build_set(location: str, content: bytes, samples: NDArray[np.void]) -> ShardSet:
    """Build a set from its manifest and its index, wherever these were read.

    Args:
        location: the folder of the shards, or the URL before their names.
        content: the bytes of the manifest.
        samples: (n,) SAMPLE, the index that the manifest names; its hash is the caller's to check.

    Raises:
        PipelineError: if the index does not fit the manifest.
    """
    where = f"{location}/{MANIFEST_NAME}"
    manifest = parse_manifest(content, where)
    shards = tuple(
        Shard(
            file=entry["file"],
            n_samples=entry["num_samples"],
            n_bytes=entry["bytes"],
            sha256=entry["sha256"],
        )
        for entry in manifest["shards"]
    )
    fault = _index_fault(samples, shards, manifest)
    if fault:
        raise PipelineError(f"{where}: {INDEX_NAME} {fault}; make the set again")
    return ShardSet(
        location=location,
        name=manifest["name"],
        kind=manifest["kind"],
        shards=shards,
        samples=samples,
        classes=tuple(manifest["classes"]),
        extensions=tuple(manifest["extensions"]),
        settings=manifest["settings"],
        hash=sha256(content),
    )


def select_shards(shards: ShardSet, names: Sequence[str]) -> ShardSet:
    """Return the part of a set that some of its shards hold, in the order of the names.

    Raises:
        PipelineError: if the set has no shard of a name, or a name comes twice.
    """
    if list(names) == [shard.file for shard in shards.shards]:
        return shards
    numbers = {shard.file: number for number, shard in enumerate(shards.shards)}
    if len(set(names)) != len(names):
        raise PipelineError(f"{shards.location}: a shard is named twice; name each once")
    parts = []
    ends = np.cumsum([shard.n_samples for shard in shards.shards])
    for position, name in enumerate(names):
        if name not in numbers:
            raise PipelineError(
                f"{shards.location}/{MANIFEST_NAME} lists no {name}; name shards that it lists, or "
                "run pixmix-shard index on the tars"
            )
        number = numbers[name]
        end = int(ends[number])
        part = shards.samples[end - shards.shards[number].n_samples : end].copy()
        part["shard"] = position
        parts.append(part)
    samples = np.concatenate(parts)
    samples.flags.writeable = False
    return ShardSet(
        location=shards.location,
        name=shards.name,
        kind=shards.kind,
        shards=tuple(shards.shards[numbers[name]] for name in names),
        samples=samples,
        classes=shards.classes,
        extensions=shards.extensions,
        settings=shards.settings,
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
    """Write the index of a folder of shards, then, last of all, its manifest.

    Args:
        folder: the folder of the shards.
        name: of the set.
        kind: what it was made from, as in "imagefolder".
        shards: the tars, in order.
        samples: (n,) SAMPLE, in shard order.
        classes: names by label, or empty.
        extensions: of the pictures.
        settings: plain JSON values that the shards depend on.
        versions: of the code that made them.

    Raises:
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
        "shards": [
            {
                "file": shard.file,
                "num_samples": shard.n_samples,
                "bytes": shard.n_bytes,
                "sha256": shard.sha256,
            }
            for shard in shards
        ],
        "index": {"file": INDEX_NAME, "sha256": file_sha256(folder / INDEX_NAME)},
        "versions": dict(versions),
    }
    manifest["sha256"] = manifest_sha256(manifest)
    content = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    write_file(folder / MANIFEST_NAME, content.encode())


def manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """Return the hash that a manifest has of its own fields, as its field `sha256`."""
    fields = {name: value for name, value in manifest.items() if name != "sha256"}
    return sha256(json.dumps(fields, sort_keys=True).encode())


def read_index(folder: Path, manifest: Mapping[str, Any]) -> NDArray[np.void]:
    """Return the index that a manifest names, memory-mapped.

    Raises:
        PipelineError: if it is missing, another one than the manifest names, or no array.
    """
    path = folder / manifest["index"]["file"]
    again = "copy it again from where the set was made, or run pixmix-shard index on the tars"
    if not path.is_file():
        raise PipelineError(f"{path} is missing; {again}")
    if file_sha256(path) != manifest["index"]["sha256"]:
        raise PipelineError(f"{path} is not the index that {MANIFEST_NAME} names; {again}")
    try:
        # No mapping has length 0.
        samples = np.load(
            path, mmap_mode="r" if manifest["num_samples"] else None, allow_pickle=False
        )
    except ValueError as error:
        raise PipelineError(f"{path} is no array ({error}); {again}") from error
    return np.asarray(samples)


def _check_size(path: Path, shard: Shard) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise PipelineError(
            f"{path} is missing, and {MANIFEST_NAME} lists it; copy it again, or make the set again"
        ) from error
    if size != shard.n_bytes:
        raise PipelineError(
            f"{path} has {size} bytes, {MANIFEST_NAME} says {shard.n_bytes}; copy it again, or "
            "make the set again"
        )


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name == PurePosixPath(name).name and name not in {"", ".."}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _manifest_fault(manifest: Mapping[str, Any]) -> str | None:
    """Say in words that follow the manifest's name what it lacks, if anything."""
    types = {
        "name": str,
        "kind": str,
        "settings": dict,
        "classes": list,
        "extensions": list,
        "shards": list,
        "index": dict,
    }
    for field, type_ in types.items():
        if not isinstance(manifest.get(field), type_):
            return f"has no {field}"
    if not _is_count(manifest.get("num_samples")):
        return "has no num_samples"
    if not all(isinstance(text, str) for text in [*manifest["classes"], *manifest["extensions"]]):
        return "has classes or extensions that are no text"
    if not _is_file_name(manifest["index"].get("file")):
        return f"names the index {manifest['index'].get('file')!r}, which is no plain file name"
    return _shard_list_fault(manifest["shards"])


def _shard_list_fault(entries: Sequence[Any]) -> str | None:
    files = set()
    for entry in entries:
        if not isinstance(entry, dict) or not _is_file_name(entry.get("file")):
            return f"lists a shard {entry!r:.80}, which has no plain file name"
        if not (_is_count(entry.get("num_samples")) and _is_count(entry.get("bytes"))):
            return f"gives no num_samples and bytes for {entry['file']}"
        if not re.fullmatch(r"[0-9a-f]{64}", str(entry.get("sha256"))):
            return f"gives no sha256 for {entry['file']}"
        if entry["file"] in files:
            return f"lists {entry['file']} twice"
        files.add(entry["file"])
    return None


def _index_fault(
    samples: NDArray[np.void], shards: Sequence[Shard], manifest: Mapping[str, Any]
) -> str | None:
    """Say in words that follow the index's name what in it contradicts the manifest."""
    if samples.dtype != SAMPLE or samples.ndim != 1:
        return f"holds {samples.dtype} of shape {samples.shape}, which are no samples"
    counts = [shard.n_samples for shard in shards]
    if not len(samples) == sum(counts) == manifest["num_samples"]:
        return (
            f"has {len(samples)} samples, the manifest says {manifest['num_samples']} and "
            f"{sum(counts)} in its shards"
        )
    if not np.array_equal(samples["shard"], np.repeat(np.arange(len(shards)), counts)):
        return "does not give its shards the samples that the manifest does"
    bytes_of_shards = np.array([shard.n_bytes for shard in shards], np.uint64)
    n_bytes = bytes_of_shards[samples["shard"]]
    offsets = samples["offset"]
    # The offset by itself too, for the sum of a hostile one wraps around.
    if ((offsets < _BLOCK) | (offsets > n_bytes) | (offsets + samples["size"] > n_bytes)).any():
        return "has a sample that reaches beyond its shard"
    n_classes = len(manifest["classes"])
    labels = samples["label"]
    if (labels < -1).any() or (n_classes and (labels >= n_classes).any()):
        return f"has a label that is none of {n_classes} classes"
    return None


def _header_name(block: bytes) -> str:
    """Return the name in a tar header of 512 bytes.

    Raises:
        ValueError: if there are not 512 bytes.
    """
    if len(block) != _BLOCK:
        raise ValueError("no header")
    name = block[:100].split(b"\0", 1)[0]
    # The USTAR format alone has a prefix there.
    if block[257:265] == b"ustar\x0000":
        prefix = block[345:500].split(b"\0", 1)[0]
        name = prefix + b"/" + name if prefix else name
    return name.decode("utf-8", "replace")
