"""Tars, their sidecars, and the files that describe all shards of a set.

A sidecar is the record of a shard: it says that the tar is whole, and has what index, manifest and
side files need of it, so that nobody reads the tar again.
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

from pipelines.shards.exports import export_documents, write_json
from pipelines.shards.format import SAMPLE, Manifest, Shard, write_index
from pipelines.shards.output import Folder, OutputStore
from pipelines.shards.tar import Ignored, end_tar, samples_of_tar, write_member
from pipelines.system.files import Count, FileName, Sha256, file_sha256, new_file, open_regular

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
