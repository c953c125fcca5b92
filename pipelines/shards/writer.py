"""Tars, their sidecars, and the files that describe all shards of a set.

A sidecar is the record of a shard: it says that the tar is whole, and has what index, manifest and
side files need of it, so that nobody reads the tar again.

Small files beside shards, each for readers that know nothing of our manifest.

sizes.json    open_clip: samples of each tar
_info.json    timm: name, tars and lengths of each split
wids.json     webdataset's wids: tars with size, count and MD5
NAME.idx      NVIDIA DALI: where each member of a tar lies
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    write_file,
)

TIMM_NAME, WIDS_NAME, SIZES_NAME = "_info.json", "wids.json", "sizes.json"

SCAN_NAME = "scan.jsonl"
"""A line for each file of the source that is nonstandard, undecodable or rotated."""

_LARGEST = 2**30
"""Bytes of such a file: of a million shards it has some 200 million."""

DALI_VERSION = "v1.2"


def export_documents(
    name: str, split: str, shards: Sequence[Shard], md5: Sequence[str]
) -> dict[str, Any]:
    """Return the documents of a set: file name -> JSON values.

    Args:
        name: of the set.
        split: as in "train".
        shards: the tars.
        md5: of each, which wids asks for.
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
    """Write a document as JSON, whole or not at all.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    write_file(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


def join_splits(folder: Path, splits: Sequence[str]) -> None:
    """Write the _info.json of a folder whose sub-folders are sets, one a split.

    timm takes one folder for training and validation; its own form allows tars in sub-folders.

    Args:
        folder: the folder above.
        splits: names of sub-folders; those that are no finished set are skipped.

    Raises:
        PipelineError: if the _info.json of a split is damaged.
        OSError: if it cannot be written.
    """
    joined = {}
    for split in splits:
        path = folder / split / TIMM_NAME
        if not path.is_file():
            continue
        try:
            for name, info in json.loads(read_regular(path, max_bytes=_LARGEST))["splits"].items():
                files = [f"{split}/{file}" for file in info["filenames"]]
                joined[name] = info | {"filenames": files}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PipelineError(f"{path} is damaged; run the command that made it again") from error
    write_json(folder / TIMM_NAME, {"splits": joined})


def export_faults(folder: Path, shards: ShardSet, md5: Sequence[str] | None = None) -> list[str]:
    """Return what is wrong with the files beside a set that was made here, a line each.

    Args:
        folder: of the set.
        shards: the set.
        md5: of each tar; None does not compare them, nor DALI's indices, which takes reading tars.

    Raises:
        OSError: if a file cannot be read.
    """
    found = {name: _json_of(folder / name) for name in (SIZES_NAME, TIMM_NAME, WIDS_NAME)}
    split = next(iter(_dict(_dict(found[TIMM_NAME]).get("splits"))), "train")
    sums = md5
    if sums is None:
        listed = _dict(found[WIDS_NAME]).get("shardlist")
        entries = listed if isinstance(listed, list) else []
        sums = [str(_dict(entry).get("md5sum")) for entry in entries]
        sums += [""] * (len(shards.shards) - len(sums))
    expected = export_documents(shards.name, split, shards.shards, sums[: len(shards.shards)])
    faults = [
        f"{folder / name} is missing, or does not describe the shards"
        for name, document in expected.items()
        if found[name] != document
    ]
    if shards.settings.get("dali_index"):
        for number, shard in enumerate(shards.shards):
            tar = shards.path(number)
            index = tar.with_suffix(".idx")
            if not _is_dali_index(index, tar, shard.n_samples, read_tar=md5 is not None):
                faults.append(f"{index} is missing, or is not the index of {tar.name}")
    listed_sha256 = shards.settings.get("found_sha256")
    scan = folder / SCAN_NAME
    if listed_sha256 and not (scan.is_file() and file_sha256(scan) == listed_sha256):
        faults.append(f"{scan} is missing, or is not the one that the manifest names")
    return faults


def _dict(value: Any) -> dict[str, Any]:  # noqa: ANN401
    return value if isinstance(value, dict) else {}


def _json_of(path: Path) -> Any:  # noqa: ANN401
    """Return the JSON value of a file; None where there is none."""
    try:
        return json.loads(read_regular(path, max_bytes=_LARGEST))
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def _is_dali_index(path: Path, tar: Path, n_samples: int, *, read_tar: bool) -> bool:
    """Return whether a file is DALI's index of a tar, whose lines are counted at least."""
    try:
        content = read_regular(path, max_bytes=_LARGEST)
    except FileNotFoundError:
        return False
    if read_tar:
        return content == dali_index(tar)
    return content.startswith(b"%s %d\n" % (DALI_VERSION.encode(), n_samples)) and (
        content.count(b"\n") == n_samples + 1
    )


def dali_index(tar: Path) -> bytes:
    """Return DALI's index of a tar, as its wds2idx makes it: a line a sample, four words a member.

    Raises:
        PipelineError: if the tar is damaged.
        OSError: if it cannot be read.
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
"""Of the order and the bytes of the tars: raised when the same source and settings give others."""

_Number = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
_Class = Annotated[int, msgspec.Meta(ge=-1, lt=2**31)]


class _Sidecar(msgspec.Struct):
    """What every sidecar has. rows: size, offset and label of each sample."""

    file: FileName
    num_samples: Count
    bytes: Count
    sha256: Sha256
    md5: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    extensions: list[FileName]
    rows: list[tuple[_Number, Count, _Class]]

    def __post_init__(self) -> None:
        """Refuse rows of another number of samples.

        Raises:
            ValueError: if they are.
        """
        if len(self.rows) != self.num_samples:
            raise ValueError(f"{len(self.rows)} rows of {self.num_samples} samples")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sample to write. extension: of its image; members: extension -> content, all of it."""

    key: str
    extension: str
    label: int
    members: Mapping[str, bytes]


def bounds(n: int, num_shards: int, shard: int) -> range:
    """Return which of n samples a shard holds; sizes differ by at most one."""
    return range(shard * n // num_shards, (shard + 1) * n // num_shards)


def shard_name(name: str, shard: int, num_shards: int) -> str:
    """Return the file name of a shard, "imagenet1k-train-0042.tar"."""
    digits = max(2, len(str(num_shards - 1)))
    return f"{name}-{shard:0{digits}d}.tar"


def write_tar(path: Path, samples: Iterable[Sample]) -> dict[str, Any]:
    """Write a tar, which has its name when it is whole, and return its sidecar.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    rows = []
    extensions = set()
    with new_file(path) as file:
        for sample in samples:
            for suffix, content in sorted(sample.members.items()):
                offset = write_member(file, f"{sample.key}.{suffix}", content)
                if suffix == sample.extension:
                    rows.append([len(content), offset, sample.label])
            extensions.add(sample.extension)
        end_tar(file)
    return _sidecar(path, rows, sorted(extensions))


def whole_sidecars(
    store: OutputStore, manifest: Manifest, name: str, sizes: Mapping[str, int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and sidecar of each tar of a finished set that is as its manifest says.

    Args:
        store: of the set.
        manifest: of the set.
        name: of the set, in the tars' names.
        sizes: bytes of each file in the store.

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
                rows, extensions = samples_of_tar(path, 0, Ignored())
                numbers = [
                    [int(row["size"]), int(row["offset"]), int(row["label"])] for row in rows
                ]
                yield shard, _sidecar(path, numbers, sorted(extensions))


def _sidecar(path: Path, rows: list[list[int]], extensions: list[str]) -> dict[str, Any]:
    return {
        "file": path.name,
        "num_samples": len(rows),
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "md5": file_md5(path),
        "extensions": extensions,
        "rows": rows,
    }


def parse_sidecar(content: bytes, file: str, sizes: Mapping[str, int]) -> dict[str, Any] | None:
    """Return a sidecar, None if it is damaged, of another tar, or of a tar of another size.

    Args:
        content: the sidecar as JSON.
        file: name of the tar.
        sizes: bytes of each file in the store.
    """
    try:
        found = msgspec.json.decode(content, type=_Sidecar)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if found.file != file or sizes.get(file) != found.bytes:
        return None
    # Whoever wrote it may have added fields.
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
    """Write side files, index and, last of all, manifest of a set of shards.

    Args:
        folder: where to.
        name: of the set.
        split: as in "train".
        kind: what it was made from, as in "imagefolder".
        sidecars: of all shards, in order.
        classes: names by label, or empty.
        settings: plain JSON values that the shards depend on.
        versions: of the code that made them.

    Raises:
        PipelineError: if a value is not one that a manifest may have.
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
        rows = np.array(sidecar["rows"], np.int64).reshape(-1, 3)
        part = np.empty(len(rows), SAMPLE)
        part["shard"] = number
        part["size"], part["offset"], part["label"] = rows.T
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
        # No secret: the sum that wids asks for.
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
