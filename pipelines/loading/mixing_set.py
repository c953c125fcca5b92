"""A mixing set from wherever it is, as one memory map a node.

    open_mixing_set("mixing-set", 256)                  a folder of pictures, such as pixmix-gen's
    open_mixing_set("shards/mixing", 36)                a set of shards
    open_mixing_set("fractals_and_fvis.tar", 256)       an archive of pictures, such as the paper's
    open_mixing_set("300K_random_images.npy", 36)       an array of pictures, (N, H, W, 3) uint8

Pictures keep their shape; the shorter side gets the size asked for, as torchvision's Resize gives
it, so that a random crop of them is what the method's own code cuts from them. Their order is that
of their names, numbers counted as numbers.
"""

import json
import os
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
    open_picture_map,
)
from pipelines.shards.archives import ArchivedImage, archived_images, read_archived
from pipelines.shards.cache import cache_folder
from pipelines.shards.format import FORMAT, MANIFEST_NAME, ShardSet, read_key
from pipelines.shards.images import (
    UPRIGHT,
    DecodeError,
    convert,
    image_files,
    natural_order,
    orientation,
    read_image_file,
)
from pipelines.shards.remote import Remote, RemoteShards, open_set
from pipelines.shards.sources import size_and_change
from pipelines.system.files import open_regular, read_regular, sha256
from pipelines.system.objects import is_remote
from pipelines.system.processes import available_cores
from pipelines.system.progress import Progress, no_progress
from pixmix.packed import PackedPictures

Where = str | Path | ShardSet

_LARGEST_MANIFEST = 2**30
"""Bytes: a million shards have some 200 million."""


def open_mixing_set(
    where: Where | Sequence[Where],
    size: int,
    *,
    cache_dir: str | Path | None = None,
    jobs: int | None = None,
    bad_pictures: BadPictures = "raise",
    exif_transpose: bool = False,
    remote: Remote | None = None,
    progress: Progress = no_progress,
) -> PackedPictures:
    """Return a mixing set as one memory map that all processes of a node share.

    It is built once, by the first process that asks, while the others wait, and used until the
    pictures change: then there is a new one, and the old one stays in the cache, for whoever has it
    open. The first time that a process opens it, it is hashed. Small pictures are enlarged, as
    Resize does.

    Args:
        where: a folder of pictures, a set of shards here or at an address, or a tar, zip or .npy of
            pictures; or several of them.
        size: of the shorter side, pixels, 1 or more.
        cache_dir: where the map lies; None: $PIXMIX_CACHE, $XDG_CACHE_HOME/pixmix or
            ~/.cache/pixmix.
        jobs: threads that build it; None for all cores.
        bad_pictures: "raise" for one that cannot be read, or "skip" it, said in the log.
        exif_transpose: whether pictures are turned as their EXIF orientation says; else they stay
            as they are stored, as by torchvision's ImageFolder.
        remote: how shards at an address are read; None for the defaults.
        progress: called with pictures done and pictures in all, while it is built.

    Returns:
        A sequence of (H, W, 3) uint8 views, for `PixMix`, `mix_batch` and `train_loader`.

    Raises:
        PipelineError: if there are no pictures, one cannot be read, a shard is not what its
            manifest says, a set is not finished, or the cache cannot be written.
        ValueError: for a size or jobs below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}; give the shorter side in pixels, as 256 or 36")
    _check_jobs(jobs)
    if bad_pictures not in ("raise", "skip"):
        raise ValueError(f"bad_pictures is {bad_pictures!r}; give 'raise' or 'skip'")
    several = [where] if isinstance(where, str | Path | ShardSet) else list(where)
    if not several:
        raise ValueError("where names no mixing set; give a folder, shards or a tar of pictures")
    for each in several:
        _refuse_unfinished(each)
    sources = tuple(picture_source(each, cache_dir=cache_dir, remote=remote) for each in several)
    source = sources[0] if len(sources) == 1 else JoinedSources(sources)
    return open_picture_map(
        _Upright(source) if exif_transpose else source,
        size,
        cache=cache_folder(None if cache_dir is None else Path(cache_dir)),
        jobs=jobs or available_cores(),
        bad_pictures=bad_pictures,
        progress=progress,
    )


def open_pictures(
    shards: ShardSet | RemoteShards,
    *,
    cache_dir: str | Path | None = None,
    jobs: int | None = None,
    progress: Progress = no_progress,
) -> PackedPictures:
    """Return all pictures of a set of shards, decoded, in its order, as one memory map.

    None is ever left out: picture i is sample i.

    Raises:
        PipelineError: if one cannot be read, a shard is not what its manifest says, or the cache
            cannot be written.
        ValueError: for jobs below 1.
    """
    _check_jobs(jobs)
    return open_picture_map(
        _OfShards(
            shards
            if isinstance(shards, RemoteShards)
            else open_set(shards, cache_dir=cache_dir, remote=None)
        ),
        None,
        cache=cache_folder(None if cache_dir is None else Path(cache_dir)),
        jobs=jobs or available_cores(),
        bad_pictures="refuse",
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


def _check_jobs(jobs: int | None) -> None:
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs is {jobs}; give a number of threads, 1 or more, or None")


# --- sources -------------------------------------------------------------------------------------


def picture_source(
    where: Where, *, cache_dir: str | Path | None = None, remote: Remote | None = None
) -> PictureSource:
    """Return the files of a mixing set, wherever they are; of a folder also of an unfinished set.

    Args:
        where: a folder of pictures, a set of shards here or at an address, or a tar, zip or .npy
            of pictures.
        cache_dir: as for `open_mixing_set`.
        remote: as for `open_mixing_set`.

    Raises:
        PipelineError: if there are no pictures, or shards are not what their manifest says.
        OSError: if it cannot be read.
    """
    if isinstance(where, ShardSet) or is_remote(str(where)) or is_of_shards(Path(where)):
        return _OfShards(open_set(where, cache_dir=cache_dir, remote=remote))
    path = Path(where)
    if path.is_dir():
        return _OfFolder(path)
    if path.is_file():
        return _OfArchive(path)
    raise PipelineError(
        f"{path} is neither a folder nor a tar, zip or .npy of pictures; make a set with "
        "pixmix-gen fractals, or name one that is there"
    )


def is_of_shards(path: Path) -> bool:
    """Return whether a path names shards with a manifest: a set of pictures has another one."""
    if path.name == MANIFEST_NAME or ("{" in path.name and not path.exists()):
        return True
    folder = path if path.is_dir() else path.parent
    return _manifest(folder / MANIFEST_NAME).get("format") == FORMAT


def _refuse_unfinished(where: Where) -> None:
    """Refuse a set of pictures that is being made, or a folder of sets of which one is."""
    if isinstance(where, ShardSet) or is_remote(str(where)) or is_of_shards(Path(where)):
        return
    folder = Path(where)
    for path in [folder / MANIFEST_NAME, *sorted(folder.glob(f"*/{MANIFEST_NAME}"))]:
        if _manifest(path).get("status") == "partial":
            raise PipelineError(
                f"{path.parent} is not finished; give again the command that began it, then this "
                "one, or name its folder images"
            )


def _manifest(path: Path) -> dict[str, Any]:
    """Return a JSON object in a file, or an empty one where there is none."""
    try:
        document = json.loads(read_regular(path, max_bytes=_LARGEST_MANIFEST))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _read_part(path: Path, offset: int, size: int) -> bytearray:
    """Return a part of a file, which is opened for it alone: threads share no descriptor.

    Raises:
        UnreadablePictureError: if it cannot be read, or ends before.
    """
    content = bytearray(size)
    try:
        with open_regular(path) as file:
            there = os.preadv(file.fileno(), [content], offset)
    except OSError as error:
        raise UnreadablePictureError("unreadable file", str(error)) from error
    if there != size:
        raise UnreadablePictureError("cut short", f"{size - there} of {size} bytes are missing")
    return content


def _listed(entries: Sequence[tuple[str | int, ...]]) -> str:
    return sha256("\n".join(map(repr, entries)).encode())


@dataclass(frozen=True)
class _OfFolder:
    """The pictures of a folder and the folders in it."""

    folder: Path

    @cached_property
    def files(self) -> list[Path]:
        return image_files(self.folder)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Names, sizes and times of all files, wherever the folder lies."""
        entries = []
        for path in self.files:
            # A link to nothing has a size of -1; reading it says so.
            size, (modified_ns, _) = size_and_change(path)
            entries.append((path.relative_to(self.folder).as_posix(), size, modified_ns))
        return {"kind": "folder", "files": len(entries), "list": _listed(entries)}

    def __len__(self) -> int:
        return len(self.files)

    def check(self) -> None:
        """Do nothing: a file has no hash that it could be held to."""

    def name(self, i: int) -> str:
        return str(self.files[i])

    def read(self, i: int) -> bytearray:
        try:
            return bytearray(read_image_file(self.files[i]))
        except OSError as error:
            raise UnreadablePictureError("unreadable file", str(error)) from error


@dataclass(frozen=True)
class _OfShards:
    """The pictures of a set of shards, in its order, wherever the shards lie."""

    opened: RemoteShards

    @property
    def identity(self) -> dict[str, Any]:
        return {"kind": "shards", "hash": self.opened.shards.hash}

    def __len__(self) -> int:
        return len(self.opened.shards)

    def check(self) -> None:
        """Hold each shard to the hash of its manifest: a JPEG with a wrong bit decodes."""
        for number in range(len(self.opened.shards.shards)):
            self.opened.files.hold(number).release()

    def name(self, i: int) -> str:
        shards = self.opened.shards
        row = shards.samples[i]
        number = int(row["shard"])
        with self.opened.files.hold(number) as held:
            key = read_key(held.path, int(row["offset"]))
        return f"key {key} in {shards.location}/{shards.shards[number].file}"

    def read(self, i: int) -> bytearray:
        row = self.opened.shards.samples[i]
        with self.opened.files.hold(int(row["shard"])) as held:
            return _read_part(held.path, int(row["offset"]), int(row["size"]))


@dataclass(frozen=True)
class _OfArchive:
    """The pictures in a tar that is no set of shards, a zip or a .npy; nothing is unpacked."""

    path: Path

    @cached_property
    def _images(self) -> list[ArchivedImage]:
        found = sorted(archived_images(self.path), key=lambda image: natural_order(image.name))
        if not found:
            raise PipelineError(f"{self.path} holds no pictures; give a tar, zip or .npy of some")
        return found

    @cached_property
    def identity(self) -> dict[str, Any]:
        status = self.path.stat()
        return {
            "kind": "archive",
            "bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "list": _listed([(image.name, *image.place) for image in self._images]),
        }

    def __len__(self) -> int:
        return len(self._images)

    def check(self) -> None:
        """Do nothing: an archive has no hash that it could be held to."""

    def name(self, i: int) -> str:
        return f"{self._images[i].name} in {self.path}"

    def read(self, i: int) -> bytearray:
        try:
            return bytearray(read_archived(self.path, self._images[i].place))
        except DecodeError as error:
            raise UnreadablePictureError("damaged", str(error)) from error
        except OSError as error:
            raise UnreadablePictureError("unreadable file", str(error)) from error


@dataclass(frozen=True)
class _Upright:
    """The pictures of a source, turned as their EXIF orientation says."""

    source: PictureSource

    @property
    def identity(self) -> dict[str, Any]:
        return {"exif_transpose": True, "of": self.source.identity}

    def __len__(self) -> int:
        return len(self.source)

    def check(self) -> None:
        self.source.check()

    def name(self, i: int) -> str:
        return self.source.name(i)

    def read(self, i: int) -> bytearray:
        content = bytes(self.source.read(i))
        if orientation(content) == UPRIGHT:
            return bytearray(content)
        try:
            # As a PNG, for its pixels are to stay what they are.
            return bytearray(convert(content, "png", upright=True)[0])
        except DecodeError as error:
            raise UnreadablePictureError("damaged", str(error)) from error
