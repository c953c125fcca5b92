"""Mixing sets from folders, shards and archives, as one memory map per node.

    open_mixing_set("mixing-set", 256)                  a folder of images, from pixmix-gen or other
    open_mixing_set("shards/mixing", 36)                shards
    open_mixing_set("fractals_and_fvis.tar", 256)       an archive of images, such as the paper's
    open_mixing_set("300K_random_images.npy", 36)       an array of images, (N, H, W, 3) uint8

Images keep their aspect ratio: only the shorter side is set, as by torchvision's Resize. A random
crop then has the same distribution as in the paper's code. Images are sorted by name, with numbers
in numerical order.
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
from pipelines.shards.format import (
    FORMAT,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    ShardSet,
    read_key,
)
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
from pixmix.images import PackedImages

Where = str | Path | ShardSet


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
    """Open a mixing set as one memory map of decoded images, shared by all processes of a node.

    The first process builds the map while the others wait. It is verified when a process first
    opens it. When the images change, a new map is built; the old one stays in the cache for
    processes that use it. Images are resized as by torchvision's Resize, and keep their aspect
    ratio.

    Example::

        mixing_set = open_mixing_set("mixing-set", 256)
        transform = PixMix(mixing_set)

    Args:
        where: a folder of images, shards (local or at an address), a tar, a zip or a .npy file of
            images; or a list of these.
        size: length of the shorter side after resizing, in pixels.
        cache_dir: folder of the map; None for $PIXMIX_CACHE, $XDG_CACHE_HOME/pixmix or
            ~/.cache/pixmix.
        jobs: number of threads that build the map; None for all cores.
        on_decode_error: "raise" an error for an image that cannot be decoded, or "skip" it with a
            warning in the log.
        exif_transpose: whether to rotate images by their EXIF orientation. The default ignores it,
            as in torchvision's ImageFolder.
        remote: how shards at an address are downloaded; None for the defaults.
        progress: called with the number of images done and the total, while the map is built.

    Returns:
        A sequence of (H, W, 3) uint8 arrays, for ``PixMix``, ``mix_batch`` and ``train_loader``.

    Raises:
        PipelineError: if no image is found, an image cannot be decoded, a shard differs from its
            manifest, a set is not complete, or the cache cannot be written.
        ValueError: if size or jobs is below 1.
    """
    if size < 1:
        raise ValueError(
            f"size is {size}; use the length of the shorter side in pixels, for example 256"
        )
    if on_decode_error not in ("raise", "skip"):
        raise ValueError(f"on_decode_error is {on_decode_error!r}; use 'raise' or 'skip'")
    several = [where] if isinstance(where, str | Path | ShardSet) else list(where)
    if not several:
        raise ValueError("where is empty; pass a folder, shards or an archive of images")
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
    """Return all images of shards, decoded, as one memory map; image i is sample i.

    Raises:
        PipelineError: if an image cannot be decoded, a shard differs from its manifest, or the
            cache cannot be written.
        ValueError: if jobs is below 1.
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
    """Return images of one size as an (N, H, W, 3) view, or None if sizes differ."""
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
    """Return the files of a mixing set; a folder may be incomplete.

    Args:
        where: see `open_mixing_set`.
        cache_dir: see `open_mixing_set`.
        remote: see `open_mixing_set`.

    Raises:
        PipelineError: if no image is found, or shards differ from their manifest.
        OSError: if files cannot be read.
    """
    if isinstance(where, ShardSet) or is_remote(str(where)) or is_of_shards(Path(where)):
        return _of_shards(open_set(where, cache_dir=cache_dir, remote=remote))
    path = Path(where)
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        return _of_archive(path)
    raise PipelineError(
        f"{path} is neither a folder nor a tar, zip or .npy of images; create a mixing set with "
        "pixmix-gen fractals, or pass an existing one"
    )


def is_of_shards(path: Path) -> bool:
    """Return whether a folder contains shards; a folder of images has another kind of manifest."""
    if path.name == MANIFEST_NAME or ("{" in path.name and not path.exists()):
        return True
    folder = path if path.is_dir() else path.parent
    return _manifest(folder / MANIFEST_NAME).get("format") == FORMAT


def _check_finished(where: Where) -> None:
    """Check that a set of images is complete, as well as the sets in its subfolders."""
    if isinstance(where, ShardSet) or is_remote(str(where)) or is_of_shards(Path(where)):
        return
    folder = Path(where)
    for each in [folder, *sorted(path.parent.parent for path in folder.glob(f"*/{REQUEST}"))]:
        if is_unfinished(each):
            raise PipelineError(
                f"{each} is not complete; finish it by running its command again, or pass its "
                "folder images"
            )


def _manifest(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one if there is none."""
    try:
        document = json.loads(read_regular(path, max_bytes=MAX_MANIFEST_BYTES))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _listing(entries: Iterable[tuple[str | int, ...]]) -> str:
    return sha256("\n".join(map(repr, entries)).encode())


def _of_folder(folder: Path) -> ImageSource:
    """Return the images of a folder and its subfolders."""
    files = image_files(folder)

    def identity() -> dict[str, Any]:
        """Return names, sizes and times of all files, without the location of the folder."""
        entries = []
        for path in files:
            # A broken link has the size -1; reading it raises an error.
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
    """Return the images of local or remote shards, in their order."""
    shards = opened.shards

    def check() -> None:
        """Verify the hash of each shard, because a JPEG with a flipped bit still decodes."""
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
    """Return a part of a file. Each call opens the file, so threads share no descriptor.

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
    """Return the images in a plain tar, a zip or a .npy file, without unpacking it."""
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
        # As a PNG, which keeps the pixels.
        return bytearray(convert(content, "png", upright=True)[0])

    return replace(
        source, read=read, identity=lambda: {"exif_transpose": True, "of": source.identity()}
    )
