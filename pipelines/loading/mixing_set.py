"""A mixing set from wherever it is, as one memory map a node.

    open_mixing_set("mixing-set", 256)                  a folder of pictures, such as pixmix-gen's
    open_mixing_set("shards/mixing", 36)                a set of shards
    open_mixing_set("fractals_and_fvis.tar", 256)       an archive of pictures, such as the paper's

Pictures keep their shape; the shorter side gets the size asked for, as torchvision's Resize gives
it, so that a random crop of them is what the method's own code cuts from them. Their order is that
of their names, numbers counted as numbers.
"""

import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.loading.decode import UnreadablePictureError
from pipelines.loading.picture_map import (
    BadPictures,
    JoinedSources,
    PictureSource,
    Progress,
    open_picture_map,
)
from pipelines.loading.samples import BadSampleError, ShardReader
from pipelines.shards.cache import cache_folder
from pipelines.shards.files import sha256
from pipelines.shards.index import MANIFEST_NAME, ShardSet, open_shards
from pipelines.shards.picture_files import is_picture_name, natural_order, picture_files
from pipelines.shards.workers import available_cores
from pixmix.packed import PackedPictures

Where = str | Path | ShardSet


def _no_progress(_done: int, _total: int) -> None:
    """Show nothing."""


def open_mixing_set(
    where: Where | Sequence[Where],
    size: int,
    *,
    cache_dir: str | Path | None = None,
    jobs: int | None = None,
    bad_pictures: BadPictures = "raise",
    progress: Progress = _no_progress,
) -> PackedPictures:
    """Return a mixing set as one memory map that all processes of a node share.

    It is built once, by the first process that asks, while the others wait.

    Args:
        where: a folder of pictures, a set of shards, or a tar of pictures; or several of them.
        size: of the shorter side, pixels, 1 or more.
        cache_dir: where the map lies; None: $PIXMIX_CACHE, $XDG_CACHE_HOME/pixmix or
            ~/.cache/pixmix.
        jobs: threads that build it; None for all cores.
        bad_pictures: "raise" for one that cannot be read, or "skip" it, said in the log.
        progress: called with pictures done and pictures in all, while it is built.

    Returns:
        A sequence of (H, W, 3) uint8 views, for `PixMix`, `mix_batch` and `train_loader`.

    Raises:
        PipelineError: if there are no pictures, one cannot be read, or the cache cannot be written.
        ValueError: for a size below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}; give the shorter side in pixels, as 256 or 36")
    if bad_pictures not in ("raise", "skip"):
        raise ValueError(f"bad_pictures is {bad_pictures!r}; give 'raise' or 'skip'")
    several = [where] if isinstance(where, str | Path | ShardSet) else list(where)
    if not several:
        raise ValueError("where names no mixing set; give a folder, shards or a tar of pictures")
    sources = tuple(_source(each) for each in several)
    return open_picture_map(
        sources[0] if len(sources) == 1 else JoinedSources(sources),
        size,
        cache=cache_folder(None if cache_dir is None else Path(cache_dir)),
        jobs=jobs or available_cores(),
        bad_pictures=bad_pictures,
        progress=progress,
    )


def open_pictures(
    shards: ShardSet,
    *,
    cache_dir: str | Path | None = None,
    jobs: int | None = None,
    progress: Progress = _no_progress,
) -> PackedPictures:
    """Return all pictures of a set of shards, decoded, in its order, as one memory map.

    Raises:
        PipelineError: if one cannot be read, or the cache cannot be written.
    """
    return open_picture_map(
        _OfShards(shards),
        None,
        cache=cache_folder(None if cache_dir is None else Path(cache_dir)),
        jobs=jobs or available_cores(),
        bad_pictures="raise",
        progress=progress,
    )


def uniform_view(pictures: PackedPictures) -> NDArray[np.uint8] | None:
    """Return pictures of one size as (N, H, W, 3) of the same memory, or None where they differ."""
    if len(pictures) == 0:
        return None
    height, width = int(pictures.heights[0]), int(pictures.widths[0])
    step = 3 * height * width
    if (pictures.heights != height).any() or (pictures.widths != width).any():
        return None
    if not np.array_equal(pictures.offsets, np.arange(len(pictures)) * step):
        return None
    return pictures.pixels[: len(pictures) * step].reshape(-1, height, width, 3)


# --- sources -------------------------------------------------------------------------------------


def _source(where: Where) -> PictureSource:
    if isinstance(where, ShardSet):
        return _OfShards(where)
    path = Path(where)
    if _is_of_shards(path):
        return _OfShards(open_shards(path))
    if path.is_dir():
        return _OfFolder(path)
    if path.is_file():
        return _OfTar(path)
    raise PipelineError(
        f"{path} is neither a folder nor a tar of pictures; make a set with pixmix-gen fractals, "
        "or name one that is there"
    )


def _is_of_shards(path: Path) -> bool:
    """Return whether a path names shards with a manifest: a set of pictures has another one."""
    if "{" in path.name or path.name == MANIFEST_NAME:
        return True
    folder = path if path.is_dir() else path.parent
    if not (folder / MANIFEST_NAME).is_file():
        return False
    return path.is_file() or (folder / "index.npy").is_file()


def _listed(entries: list[tuple[str, int, int]]) -> str:
    return sha256("\n".join(map(repr, entries)).encode())


@dataclass(frozen=True)
class _OfFolder:
    """The pictures of a folder and the folders in it."""

    folder: Path

    @cached_property
    def files(self) -> list[Path]:
        return picture_files(self.folder)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Names, sizes and times of all files, wherever the folder lies."""
        entries = []
        for path in self.files:
            status = path.stat()
            name = path.relative_to(self.folder).as_posix()
            entries.append((name, status.st_size, status.st_mtime_ns))
        return {"kind": "folder", "files": len(entries), "list": _listed(entries)}

    def __len__(self) -> int:
        return len(self.files)

    def name(self, i: int) -> str:
        return str(self.files[i])

    def read(self, i: int) -> bytearray:
        try:
            return bytearray(self.files[i].read_bytes())
        except OSError as error:
            raise UnreadablePictureError("unreadable file", str(error)) from error


@dataclass(frozen=True)
class _OfShards:
    """The pictures of a set of shards, in its order."""

    shards: ShardSet

    @cached_property
    def _reader(self) -> ShardReader:
        return ShardReader(self.shards)

    @property
    def identity(self) -> dict[str, Any]:
        return {"kind": "shards", "hash": self.shards.hash}

    def __len__(self) -> int:
        return len(self.shards)

    def name(self, i: int) -> str:
        shard = self.shards.shards[int(self.shards.samples["shard"][i])].file
        return f"key {self.shards.key(i)} in {self.shards.location}/{shard}"

    def read(self, i: int) -> bytearray:
        try:
            return self._reader.read(i)
        except BadSampleError as error:
            raise UnreadablePictureError(error.bad.reason, error.bad.message) from error


@dataclass(frozen=True)
class _OfTar:
    """The pictures in a tar that is no set of shards; nothing is unpacked."""

    path: Path

    @cached_property
    def _members(self) -> list[tuple[str, int, int]]:
        try:
            with tarfile.open(self.path, "r:") as tar:
                found = [
                    (member.name, member.offset_data, member.size)
                    for member in tar
                    if member.isreg() and is_picture_name(member.name)
                ]
        except (tarfile.TarError, OSError) as error:
            raise PipelineError(
                f"{self.path} is no whole, uncompressed tar ({error}); unpack it and name the "
                "folder, or copy it again"
            ) from error
        if not found:
            raise PipelineError(f"{self.path} holds no pictures; give a tar of some")
        return sorted(found, key=lambda member: natural_order(member[0]))

    @cached_property
    def _descriptor(self) -> int:
        return os.open(self.path, os.O_RDONLY)

    @cached_property
    def identity(self) -> dict[str, Any]:
        status = self.path.stat()
        return {
            "kind": "tar",
            "bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "list": _listed(self._members),
        }

    def __len__(self) -> int:
        return len(self._members)

    def name(self, i: int) -> str:
        return f"{self._members[i][0]} in {self.path}"

    def read(self, i: int) -> bytearray:
        _, offset, size = self._members[i]
        content = bytearray(size)
        if os.preadv(self._descriptor, [content], offset) != size:
            raise UnreadablePictureError("short tar", "the tar ends before it")
        return content
