"""Write tars, their sidecars, and the files that describe all shards of a dataset.

The sidecar of a tar is its done record: it shows that the tar is complete, and holds what index,
manifest and side files need to know about it, so that the tar is not read again.

Side files are for readers that do not use our manifest:

    sizes.json    open_clip: number of samples of each tar
    _info.json    timm: name, tars and lengths of each split
    wids.json     webdataset's wids: tars with size, number of samples and MD5
    NAME.idx      NVIDIA DALI: offset and size of each member of a tar
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.shards.format import SAMPLE, Manifest, Shard, ShardSet, write_index
from pipelines.shards.output import Folder, OutputStore
from pipelines.shards.tar import (
    Ignored,
    end_tar,
    group_members,
    samples_of_tar,
    scan_tar,
    write_member,
)
from pipelines.system.files import (
    Count,
    FileName,
    Sha256,
    file_sha256,
    new_file,
    open_regular,
    read_regular,
    sha256,
    write_file,
)

TIMM_NAME, WIDS_NAME, SIZES_NAME = "_info.json", "wids.json", "sizes.json"

SCAN_NAME = "scan.jsonl"
"""A line of JSON for each image of the source that is nonstandard, undecodable or rotated."""

_MAX_SIDE_FILE_BYTES = 2**30
"""The side file of a million shards has about 200 million bytes."""

DALI_VERSION = "v1.2"


def export_documents(
    name: str, split: str, shards: Sequence[Shard], md5: Sequence[str]
) -> dict[str, Any]:
    """Return the side files of a dataset: file name -> JSON values.

    Args:
        name: name of the dataset.
        split: name of the split, as in "train".
        shards: the tars.
        md5: MD5 of each tar, which wids requires.
    """
    return {
        SIZES_NAME: {shard.file: shard.n_samples for shard in shards},
        TIMM_NAME: {
            "splits": {
                split: {
                    "name": split,
                    "num_samples": sum(shard.n_samples for shard in shards),
                    "filenames": [shard.file for shard in shards],
                    "shard_lengths": [shard.n_samples for shard in shards],
                }
            }
        },
        WIDS_NAME: {
            "__kind__": "wids-shard-index-v1",
            "wids_version": 1,
            "name": name,
            "shardlist": [
                {
                    "url": shard.file,
                    "md5sum": digest,
                    "nsamples": shard.n_samples,
                    "filesize": shard.n_bytes,
                }
                for shard, digest in zip(shards, md5, strict=True)
            ],
        },
    }


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document as JSON, atomically.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    write_file(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


def join_splits(store: OutputStore, splits: Sequence[str]) -> None:
    """Write the _info.json above several datasets, each of which is a split.

    timm reads one folder for training and validation; its format allows tars in subfolders.

    Args:
        store: holds the datasets in subfolders.
        splits: names of the subfolders; those without a finished dataset are skipped.

    Raises:
        PipelineError: if the _info.json of a split is damaged, or the store cannot be written.
        OSError: if a folder cannot be written.
    """
    joined = {}
    for split in splits:
        file = f"{split}/{TIMM_NAME}"
        content = store.read(file)
        if content is None:
            continue
        try:
            for name, info in json.loads(content)["splits"].items():
                files = [f"{split}/{file}" for file in info["filenames"]]
                joined[name] = info | {"filenames": files}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PipelineError(
                f"{store.name}/{file} is damaged; repeat the command that made it"
            ) from error
    with store.writing() as folder:
        write_json(folder / TIMM_NAME, {"splits": joined})


def export_faults(
    shards: ShardSet, read: Callable[[str], bytes | None], md5: Sequence[str] | None = None
) -> list[str]:
    """Return what is wrong with the side files of a dataset that pixmix made, a line for each.

    Args:
        shards: the dataset.
        read: returns the content of a file of the dataset by its name, None if it does not exist.
        md5: MD5 of each local tar; None compares neither these nor the content of DALI's indices.

    Raises:
        OSError: if a file cannot be read.
    """
    found = {name: _parsed(read(name)) for name in (SIZES_NAME, TIMM_NAME, WIDS_NAME)}
    split = next(iter(_dict(_dict(found[TIMM_NAME]).get("splits"))), "train")
    sums = md5
    if sums is None:
        listed = _dict(found[WIDS_NAME]).get("shardlist")
        entries = listed if isinstance(listed, list) else []
        sums = [str(_dict(entry).get("md5sum")) for entry in entries]
        sums += [""] * (len(shards.shards) - len(sums))
    expected = export_documents(shards.name, split, shards.shards, sums[: len(shards.shards)])
    faults = [
        f"{shards.location}/{name} is missing, or does not match the shards"
        for name, document in expected.items()
        if found[name] != document
    ]
    if shards.settings.get("dali_index"):
        for number, shard in enumerate(shards.shards):
            name = f"{Path(shard.file).stem}.idx"
            tar = None if md5 is None else shards.path(number)
            if not _is_dali_index(read(name), tar, shard.n_samples):
                faults.append(
                    f"{shards.location}/{name} is missing, or is not the index of {shard.file}"
                )
    scan_sha256 = shards.settings.get("scan_sha256")
    if scan_sha256 and sha256(read(SCAN_NAME) or b"") != scan_sha256:
        faults.append(
            f"{shards.location}/{SCAN_NAME} is missing, or its SHA-256 differs from the manifest"
        )
    return faults


def read_side_file(path: Path) -> bytes | None:
    """Return the content of a side file, None if it does not exist.

    Raises:
        OSError: if it cannot be read, or has over 1 GiB.
    """
    try:
        return read_regular(path, max_bytes=_MAX_SIDE_FILE_BYTES)
    except FileNotFoundError:
        return None


def _dict(value: Any) -> dict[str, Any]:  # noqa: ANN401
    return value if isinstance(value, dict) else {}


def _parsed(content: bytes | None) -> Any:  # noqa: ANN401
    """Return the JSON value of a file, None if it is missing or damaged."""
    try:
        return None if content is None else json.loads(content)
    except (ValueError, RecursionError):
        return None


def _is_dali_index(content: bytes | None, tar: Path | None, n_samples: int) -> bool:
    """Return whether a file is DALI's index of a tar; without a tar its lines are counted."""
    if content is None:
        return False
    if tar is not None:
        return content == dali_index(tar)
    return content.startswith(b"%s %d\n" % (DALI_VERSION.encode(), n_samples)) and (
        content.count(b"\n") == n_samples + 1
    )


def dali_index(tar: Path) -> bytes:
    """Return DALI's index of a tar, as its wds2idx writes it.

    It has a line for each sample, and in the line four words for each member.

    Raises:
        PipelineError: if the tar is damaged.
        OSError: if the tar cannot be read.
    """
    lines = []
    for sample in group_members(tar, scan_tar(tar), Ignored()):
        words = [
            f"{suffix} {member.offset} {member.size} {member.name}"
            for suffix, member in sample.members.items()
        ]
        lines.append(" ".join(words))
    return "\n".join([f"{DALI_VERSION} {len(lines)}", *lines, ""]).encode()


SHARDS_VERSION = 1
"""Version of the order and the bytes of the tars for the same source and settings."""

_Number = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
_Class = Annotated[int, msgspec.Meta(ge=-1, lt=2**31)]

_ENTRY = ("size", "offset", "label")
"""Fields of a sample in a sidecar, in order."""


class _Sidecar(msgspec.Struct):
    """The sidecar of a tar. samples: size, offset and label of each."""

    file: FileName
    num_samples: Count
    bytes: Count
    sha256: Sha256
    md5: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    extensions: list[FileName]
    samples: list[tuple[_Number, Count, _Class]]

    def __post_init__(self) -> None:
        """Refuse another number of samples."""
        if len(self.samples) != self.num_samples:
            raise ValueError(f"{len(self.samples)} samples, expected {self.num_samples}")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sample to write.

    Attributes:
        key: key of the sample in the tar.
        extension: extension of its image.
        label: class of the image, or -1.
        members: extension -> content, with the image.
    """

    key: str
    extension: str
    label: int
    members: Mapping[str, bytes]


def bounds(n: int, num_shards: int, shard: int) -> range:
    """Return the range of n samples that a shard holds; the sizes differ by at most one."""
    return range(shard * n // num_shards, (shard + 1) * n // num_shards)


def shard_name(name: str, shard: int, num_shards: int) -> str:
    """Return the file name of a shard, "imagenet1k-train-0042.tar"."""
    digits = max(2, len(str(num_shards - 1)))
    return f"{name}-{shard:0{digits}d}.tar"


def write_tar(path: Path, samples: Iterable[Sample]) -> dict[str, Any]:
    """Write a tar, which gets its name when it is complete, and return its sidecar.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    entries = []
    extensions = set()
    with new_file(path) as file:
        for sample in samples:
            for suffix, content in sorted(sample.members.items()):
                offset = write_member(file, f"{sample.key}.{suffix}", content)
                if suffix == sample.extension:
                    entries.append([len(content), offset, sample.label])
            extensions.add(sample.extension)
        end_tar(file)
    return _sidecar(path, entries, sorted(extensions))


def whole_sidecars(
    store: OutputStore, manifest: Manifest, name: str, sizes: Mapping[str, int]
) -> Iterator[tuple[int, dict[str, Any], Path]]:
    """Yield number, sidecar and local path of each tar of a dataset that matches its manifest.

    Args:
        store: holds the dataset.
        manifest: manifest of the dataset.
        name: name of the dataset in the names of the tars.
        sizes: size of each file in the store, in bytes.

    Raises:
        OSError: if a tar cannot be read.
    """
    for shard, entry in enumerate(manifest.shards):
        own = shard_name(name, shard, len(manifest.shards))
        if entry.file != own or sizes.get(own) != entry.n_bytes:
            continue
        with tempfile.TemporaryDirectory(prefix="pixmix-") as scratch:
            path = (store.path if isinstance(store, Folder) else Path(scratch)) / own
            if not isinstance(store, Folder):
                path.write_bytes(store.read(own) or b"")
            if file_sha256(path) == entry.sha256:
                samples, extensions = samples_of_tar(path, 0, Ignored())
                entries = [[int(each[name]) for name in _ENTRY] for each in samples]
                yield shard, _sidecar(path, entries, sorted(extensions)), path


def _sidecar(path: Path, entries: list[list[int]], extensions: list[str]) -> dict[str, Any]:
    return {
        "file": path.name,
        "num_samples": len(entries),
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "md5": file_md5(path),
        "extensions": extensions,
        "samples": entries,
    }


def parse_sidecar(content: bytes, file: str, sizes: Mapping[str, int]) -> dict[str, Any] | None:
    """Return a sidecar; None if it is damaged, or the tar has another name or size.

    Args:
        content: the sidecar as JSON.
        file: name of the tar.
        sizes: size of each file in the store, in bytes.
    """
    try:
        found = msgspec.json.decode(content, type=_Sidecar)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if found.file != file or sizes.get(file) != found.bytes:
        return None
    # Its writer may have added fields.
    sidecar: dict[str, Any] = json.loads(content)
    return sidecar


def write_closing_files(
    folder: Path,
    *,
    name: str,
    split: str,
    kind: str,
    sidecars: Iterable[Mapping[str, Any]],
    classes: Sequence[str],
    settings: Mapping[str, Any],
    versions: Mapping[str, Any],
) -> None:
    """Write the side files, the index and, last, the manifest of a sharded dataset.

    Args:
        folder: folder to write to.
        name: name of the dataset.
        split: name of the split, as in "train".
        kind: kind of the source, as in "imagefolder".
        sidecars: sidecars of all shards, in order.
        classes: class names by label, or empty.
        settings: plain JSON values that the shards depend on.
        versions: versions of the code that made the shards.

    Raises:
        PipelineError: if a manifest does not allow a value.
        OSError: if the disk is full or the folder cannot be written.
    """
    shards, md5 = [], []
    parts: list[NDArray[np.void]] = [np.empty(0, SAMPLE)]
    extensions: set[str] = set()
    for number, sidecar in enumerate(sidecars):
        shards.append(
            Shard(
                file=sidecar["file"],
                n_samples=sidecar["num_samples"],
                n_bytes=sidecar["bytes"],
                sha256=sidecar["sha256"],
            )
        )
        md5.append(sidecar["md5"])
        extensions.update(sidecar["extensions"])
        entries = np.array(sidecar["samples"], np.int64).reshape(-1, len(_ENTRY))
        part = np.empty(len(entries), SAMPLE)
        part["shard"] = number
        for column, field in enumerate(_ENTRY):
            part[field] = entries[:, column]
        parts.append(part)
    for file, document in export_documents(name, split, shards, md5).items():
        write_json(folder / file, document)
    write_index(
        folder,
        name=name,
        kind=kind,
        shards=shards,
        samples=np.concatenate(parts),
        classes=classes,
        extensions=sorted(extensions),
        settings=settings,
        versions=versions,
    )


def file_md5(path: Path) -> str:
    """Return the MD5 of a file as 32 hexadecimal digits.

    Raises:
        OSError: if it cannot be read.
    """
    with open_regular(path) as file:
        # wids requires MD5; it protects nothing here.
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
