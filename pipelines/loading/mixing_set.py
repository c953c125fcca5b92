"""A mixing set from wherever it is, as one memory map a node.

    open_mixing_set("mixing-set", 256)                  a folder of images, such as pixmix-gen's
    open_mixing_set("shards/mixing", 36)                shards
    open_mixing_set("fractals_and_fvis.tar", 256)       an archive of images, such as the paper's
    open_mixing_set("300K_random_images.npy", 36)       an array of images, (N, H, W, 3) uint8

Images keep their shape; the shorter side gets the size that is passed, as by torchvision's Resize,
so that a random crop of them is the one that the paper's code crops. They are sorted by name,
numbers as numbers.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.loading.image_map import (
    ImageSource,
    OnMixingDecodeError,
    join_sources,
    open_image_map,
)
from pipelines.shards.archives import archived_images, read_archived
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
from pipelines.shards.job import REQUEST, is_unfinished
from pipelines.shards.remote import Remote, RemoteShards, open_set
from pipelines.shards.sources import size_and_change
from pipelines.system.files import open_regular, read_regular, sha256
from pipelines.system.objects import is_remote
from pipelines.system.processes import available_cores
from pipelines.system.progress import Progress, no_progress
from pixmix.packed import PackedImages

Where = str | Path | ShardSet

_LARGEST_MANIFEST = 2**30
"""Bytes: a million shards have some 200 million."""


def open_mixing_set(
    where: Where | Sequence[Where],
    size: int,
    *,
    cache_dir: str | Path | None = None,
    jobs: int | None = None,
    on_decode_error: OnMixingDecodeError = "raise",
    exif_transpose: bool = False,
    remote: Remote | None = None,
    progress: Progress = no_progress,
) -> PackedImages:
    """Return a mixing set as one memory map that all processes of a node share.

    The first process that asks builds it, while the others wait, and it is used until the images
    change: then there is a new one, and the old one stays in the cache, for whoever has it open.
    It is hashed when a process first opens it. Small images are enlarged, as by Resize.

    Args:
        where: a folder of images, shards here or at an address, or a tar, zip or .npy of images; or
            several of them.
        size: of the shorter side, pixels, 1 or more.
        cache_dir: folder of the map; None: $PIXMIX_CACHE, $XDG_CACHE_HOME/pixmix or
            ~/.cache/pixmix.
        jobs: threads that build it; None for all cores.
        on_decode_error: "raise" an error for an image that cannot be decoded, or "skip" it with a
            warning in the log.
        exif_transpose: whether images are rotated by their EXIF orientation; otherwise they are
            used as they are stored, as by torchvision's ImageFolder.
        remote: how shards at an address are read; None for the defaults.
        progress: called with images done and images in all, while it is built.

    Returns:
        A sequence of (H, W, 3) uint8 views, for `PixMix`, `mix_batch` and `train_loader`.

    Raises:
        PipelineError: if there are no images, one cannot be decoded, a shard is not what its
            manifest says, a set is not finished, or the cache cannot be written.
        ValueError: for a size or jobs below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}; use the shorter side in pixels, as 256 or 36")
    if on_decode_error not in ("raise", "skip"):
        raise ValueError(f"on_decode_error is {on_decode_error!r}; use 'raise' or 'skip'")
    several = [where] if isinstance(where, str | Path | ShardSet) else list(where)
    if not several:
        raise ValueError("where names no mixing set; use a folder, shards or an archive of images")
    for each in several:
        _check_finished(each)
    source = join_sources(
        [image_source(each, cache_dir=cache_dir, remote=remote) for each in several]
    )
    return open_image_map(
        _upright(source) if exif_transpose else source,
        size,
        cache=cache_folder(None if cache_dir is None else Path(cache_dir)),
        jobs=_threads(jobs),
        on_decode_error=on_decode_error,
        progress=progress,
    )


def open_images(
    shards: ShardSet | RemoteShards,
    *,
    cache_dir: str | Path | None = None,
    jobs: int | None = None,
    progress: Progress = no_progress,
) -> PackedImages:
    """Return all images of shards, decoded, in their order, as one memory map.

    None is ever left out: image i is sample i.

    Raises:
        PipelineError: if one cannot be decoded, a shard is not what its manifest says, or the cache
            cannot be written.
        ValueError: for jobs below 1.
    """
    if isinstance(shards, ShardSet):
        shards = open_set(shards, cache_dir=cache_dir, remote=None)
    return open_image_map(
        _of_shards(shards),
        None,
        cache=cache_folder(None if cache_dir is None else Path(cache_dir)),
        jobs=_threads(jobs),
        on_decode_error=None,
        progress=progress,
    )


def uniform_view(images: PackedImages) -> NDArray[np.uint8] | None:
    """Return images of one size as (N, H, W, 3) of the same memory, or None where sizes differ."""
    if len(images) == 0:
        return None
    height, width = int(images.heights[0]), int(images.widths[0])
    step = 3 * height * width
    if (images.heights != height).any() or (images.widths != width).any():
        return None
    if not np.array_equal(images.offsets, np.arange(len(images)) * step):
        return None
    return images.pixels[: len(images) * step].reshape(-1, height, width, 3)


def _threads(jobs: int | None) -> int:
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs is {jobs}; use a number of threads, 1 or more, or None")
    return jobs or available_cores()


# --- sources -------------------------------------------------------------------------------------


def image_source(
    where: Where, *, cache_dir: str | Path | None = None, remote: Remote | None = None
) -> ImageSource:
    """Return the files of a mixing set, wherever they are; of a folder also of an unfinished set.

    Args:
        where: a folder of images, shards here or at an address, or a tar, zip or .npy of images.
        cache_dir: as for `open_mixing_set`.
        remote: as for `open_mixing_set`.

    Raises:
        PipelineError: if there are no images, or shards are not what their manifest says.
        OSError: if it cannot be read.
    """
    if isinstance(where, ShardSet) or is_remote(str(where)) or is_of_shards(Path(where)):
        return _of_shards(open_set(where, cache_dir=cache_dir, remote=remote))
    path = Path(where)
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        return _of_archive(path)
    raise PipelineError(
        f"{path} is neither a folder nor a tar, zip or .npy of images; make a mixing set with "
        "pixmix-gen fractals, or pass one that exists"
    )


def is_of_shards(path: Path) -> bool:
    """Return whether a path names shards with a manifest; that of a mixing set is another one."""
    if path.name == MANIFEST_NAME or ("{" in path.name and not path.exists()):
        return True
    folder = path if path.is_dir() else path.parent
    return _manifest(folder / MANIFEST_NAME).get("format") == FORMAT


def _check_finished(where: Where) -> None:
    """Refuse a set of images that is being made, or a folder of sets of which one is."""
    if isinstance(where, ShardSet) or is_remote(str(where)) or is_of_shards(Path(where)):
        return
    folder = Path(where)
    for place in [folder, *sorted(path.parent.parent for path in folder.glob(f"*/{REQUEST}"))]:
        if is_unfinished(place):
            raise PipelineError(
                f"{place} is not finished; run the command that began it again, then this "
                "one, or pass its folder images"
            )


def _manifest(path: Path) -> dict[str, Any]:
    """Return a JSON object in a file, or an empty one where there is none."""
    try:
        document = json.loads(read_regular(path, max_bytes=_LARGEST_MANIFEST))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _listing(entries: Iterable[tuple[str | int, ...]]) -> str:
    return sha256("\n".join(map(repr, entries)).encode())


def _of_folder(folder: Path) -> ImageSource:
    """Return the images of a folder and the folders in it."""
    files = image_files(folder)

    def identity() -> dict[str, Any]:
        """Return names, sizes and times of all files, wherever the folder is."""
        entries = []
        for path in files:
            # A link to nothing has a size of -1; reading it raises an error.
            size, (modified_ns, _) = size_and_change(path)
            entries.append((path.relative_to(folder).as_posix(), size, modified_ns))
        return {"kind": "folder", "files": len(entries), "list": _listing(entries)}

    def read(i: int) -> bytearray:
        try:
            return bytearray(read_image_file(files[i]))
        except OSError as error:
            raise DecodeError("unreadable file", str(error)) from error

    return ImageSource(n=len(files), name=lambda i: str(files[i]), read=read, identity=identity)


def _of_shards(opened: RemoteShards) -> ImageSource:
    """Return the images of shards, in their order, wherever the shards are."""
    shards = opened.shards

    def check() -> None:
        """Compare each shard with the hash in its manifest: a JPEG with a wrong bit decodes."""
        for number in range(len(shards.shards)):
            opened.files.hold(number).release()

    def name(i: int) -> str:
        row = shards.samples[i]
        number = int(row["shard"])
        with opened.files.hold(number) as held:
            key = read_key(held.path, int(row["offset"]))
        return f"key {key} in {shards.location}/{shards.shards[number].file}"

    def read(i: int) -> bytearray:
        row = shards.samples[i]
        with opened.files.hold(int(row["shard"])) as held:
            return _read_part(held.path, int(row["offset"]), int(row["size"]))

    return ImageSource(
        n=len(shards),
        name=name,
        read=read,
        identity=lambda: {"kind": "shards", "hash": shards.hash},
        check=check,
    )


def _read_part(path: Path, offset: int, size: int) -> bytearray:
    """Return a part of a file, which is opened for it alone: threads share no descriptor.

    Raises:
        DecodeError: if it cannot be read, or ends before.
    """
    content = bytearray(size)
    try:
        with open_regular(path) as file:
            n_read = os.preadv(file.fileno(), [content], offset)
    except OSError as error:
        raise DecodeError("unreadable file", str(error)) from error
    if n_read != size:
        raise DecodeError("cut short", f"{size - n_read} of {size} bytes are missing")
    return content


def _of_archive(path: Path) -> ImageSource:
    """Return the images of a tar that is not a shard, a zip or a .npy; nothing is unpacked."""
    images = sorted(archived_images(path), key=lambda image: natural_order(image.name))
    if not images:
        raise PipelineError(f"{path} holds no images; pass a tar, zip or .npy of images")
    status = path.stat()

    def read(i: int) -> bytearray:
        try:
            return bytearray(read_archived(path, images[i].place))
        except OSError as error:
            raise DecodeError("unreadable file", str(error)) from error

    return ImageSource(
        n=len(images),
        name=lambda i: f"{images[i].name} in {path}",
        read=read,
        identity=lambda: {
            "kind": "archive",
            "bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "list": _listing((image.name, *image.place) for image in images),
        },
    )


def _upright(source: ImageSource) -> ImageSource:
    """Return the images of a source rotated by their EXIF orientation."""

    def read(i: int) -> bytearray:
        content = bytes(source.read(i))
        if orientation(content) == UPRIGHT:
            return bytearray(content)
        # As a PNG, for its pixels are to stay what they are.
        return bytearray(convert(content, "png", upright=True)[0])

    return replace(
        source, read=read, identity=lambda: {"exif_transpose": True, "of": source.identity()}
    )
