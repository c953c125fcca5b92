"""A shard's tar and its sidecar, and what the sidecars of a set come to.

The sidecar is committed after the tar. It says that the tar is whole, and has what index, manifest
and side files need of it, so that nobody reads the tar again.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.shards.files import file_sha256, new_file
from pipelines.shards.grouping import PICTURE_EXTENSIONS, Left
from pipelines.shards.index import SAMPLE, Shard
from pipelines.shards.tars import end_tar, scan_tar, write_member
from pipelines.shards.typed_json import Count, FileName, Sha256, read_json


class _Sidecar(TypedDict):
    """What a sidecar has; of a row: bytes, offset and label of an image."""

    file: FileName
    num_samples: Count
    bytes: Count
    sha256: Sha256
    md5: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    extensions: list[str]
    rows: list[tuple[Count, Count, int]]
    request: NotRequired[str]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sample to write. extension: of its picture; members: extension -> content, all of it."""

    key: str
    extension: str
    label: int
    members: Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True, eq=False)
class Joined:
    """All shards of a set. md5: of each; samples: (n,) SAMPLE in shard order."""

    shards: list[Shard]
    md5: list[str]
    samples: NDArray[np.void]
    extensions: list[str]


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
    return _describe(path, rows, extensions)


def read_sidecar(path: Path) -> dict[str, Any]:
    """Return the sidecar of a tar that is there, by reading it.

    Raises:
        PipelineError: if it is no tar, or a damaged one.
        OSError: if it cannot be read.
    """
    # Imported late, for it reads images.
    from pipelines.shards.verify import samples_of_tar

    left = Left()
    samples = samples_of_tar(path, 0, left)
    rows = [[int(each[name]) for name in ("size", "offset", "label")] for each in samples]
    extensions = {
        member.name.rpartition(".")[2].lower() for member in scan_tar(path)
    } & PICTURE_EXTENSIONS
    return _describe(path, rows, extensions)


def _describe(path: Path, rows: list[list[int]], extensions: Iterable[str]) -> dict[str, Any]:
    return {
        "file": path.name,
        "num_samples": len(rows),
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "md5": _md5(path),
        "extensions": sorted(extensions),
        "rows": rows,
    }


def parse_sidecar(content: bytes) -> dict[str, Any] | None:
    """Return what a sidecar says, None if it is damaged: then its shard is to be made again."""
    try:
        sidecar: dict[str, Any] = {**read_json(content, _Sidecar, "sidecar", "")}
    except PipelineError:
        return None
    return sidecar if len(sidecar["rows"]) == sidecar["num_samples"] else None


def join_sidecars(sidecars: Iterable[Mapping[str, Any]]) -> Joined:
    """Return what the sidecars of all shards, in order, tell of the set."""
    shards, md5, parts = [], [], [np.empty(0, SAMPLE)]
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
    return Joined(
        shards=shards, md5=md5, samples=np.concatenate(parts), extensions=sorted(extensions)
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        # No secret: the sum that wids asks for.
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
