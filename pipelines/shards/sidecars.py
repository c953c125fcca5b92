"""A shard's tar and its sidecar, and what the sidecars of a set come to.

The sidecar is committed after the tar. It says that the tar is whole, and has what index, manifest
and side files need of it, so that nobody reads the tar again.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.shards.format import SAMPLE, Shard
from pipelines.shards.tar import Ignored, end_tar, samples_of_tar, write_member
from pipelines.system.files import Count, FileName, Sha256, file_sha256, new_file, open_regular

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

    Whoever writes it from files adds `inputs`, a hash of what is known of them.

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


def sidecar_of(path: Path) -> dict[str, Any]:
    """Return the sidecar of a tar that was written by `write_tar`, from the tar alone.

    Raises:
        PipelineError: if the tar is damaged.
        OSError: if it cannot be read.
    """
    rows, extensions = samples_of_tar(path, 0, Ignored())
    numbers = [[int(row["size"]), int(row["offset"]), int(row["label"])] for row in rows]
    return _sidecar(path, numbers, sorted(extensions))


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


def parse_sidecar(content: bytes) -> dict[str, Any] | None:
    """Return what a sidecar says, None if it is damaged: then its shard is to be made again."""
    try:
        msgspec.json.decode(content, type=_Sidecar)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    # Whoever wrote it may have added fields.
    sidecar: dict[str, Any] = json.loads(content)
    return sidecar


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


def file_md5(path: Path) -> str:
    """Return the MD5 of a file as 32 hexadecimal digits.

    Raises:
        OSError: if it cannot be read.
    """
    with open_regular(path) as file:
        # No secret: the sum that wids asks for.
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
