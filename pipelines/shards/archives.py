"""Images in one file: a tar, a zip, an array of numpy; and the small datasets as published.

Nothing is unpacked to disk, and no pickle is run.

An image in an archive has a place, plain JSON values, by which any process reads it again:

    [offset, bytes]                     stored as it is, in a tar or a zip
    [offset, packed bytes, bytes, crc]  deflated in a zip
    [offset, height, width]             pixels of an array, which are read as a PNG
"""

import errno
import gzip
import os
import posixpath
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.datasets import Dataset, dataset_named
from pipelines.errors import PipelineError
from pipelines.shards.images import (
    LARGEST_FILE,
    MOST_PIXELS,
    DecodeError,
    encode_png,
    is_image_name,
)
from pipelines.shards.tar import scan_tar, scan_tar_in_memory
from pipelines.system.files import open_regular, printable, read_regular
from pipelines.system.untrusted import read_pickle

_ZIP_BEGINNINGS = (b"PK\x03\x04", b"PK\x05\x06")
_NPY_BEGINNING = b"\x93NUMPY"

_NPY_HEADER = re.compile(
    rb"(?P<prefix>\x93NUMPY(?:\x01\x00(?P<length>..)|[\x02\x03]\x00(?P<long>....)))"
    rb"\{'descr': '\|u1', 'fortran_order': False, "
    rb"'shape': \((?P<n>\d{1,12}), (?P<height>\d{1,9}), (?P<width>\d{1,9}), 3\), \} *\n",
    re.DOTALL,
)
"""As numpy.save writes it, for images: its own reader evaluates what stands there."""

_LONGEST_NPY_HEADER = 1000

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
"""Of a zip's member: signature, five fields, checksum, two sizes, lengths of name and extra."""

_ENCRYPTED = 0x1

LARGEST_CIFAR_FILE = 2**28
"""Bytes: the largest file of the archives has 155 million."""

LARGEST_CIFAR_ARCHIVE = 2**29
"""Bytes: the archives unpack to 186 million."""


@dataclass(frozen=True, kw_only=True)
class ArchivedImage:
    """An image in an archive. size: bytes of its file; -1 for pixels, which become one."""

    name: str
    place: tuple[int, ...]
    size: int


def archived_images(path: Path) -> Iterator[ArchivedImage]:
    """Yield the images of an archive, in its order.

    Args:
        path: a tar; a zip; or a .npy of (N, H, W, 3) uint8, such as the 300K random images.

    Raises:
        PipelineError: if it is none of them, compressed as a whole, damaged, or holds what misleads
            whoever unpacks it; hidden files are skipped.
        OSError: if it cannot be read.
    """
    with open_regular(path) as file:
        beginning = file.read(len(_NPY_BEGINNING))
    if beginning == _NPY_BEGINNING:
        yield from _of_array(path)
    elif beginning.startswith(_ZIP_BEGINNINGS):
        yield from _of_zip(path)
    else:
        for member in scan_tar(path):
            if is_image_name(member.name):
                place = (member.offset, member.size)
                yield ArchivedImage(name=member.name, place=place, size=member.size)


def read_archived(path: Path, place: Sequence[int]) -> bytes:
    """Return the bytes of an image's file in an archive; of pixels, a PNG.

    Args:
        path: the archive.
        place: of the image, as `archived_images` yields it.

    Raises:
        DecodeError: if a zip's checksum is of other bytes.
        OSError: if it cannot be read, or the archive was cut off since.
    """
    with open_regular(path) as file:
        if len(place) == 2:
            return _read(file.fileno(), path, *place)
        if len(place) == 3:
            offset, height, width = place
            pixels = _read(file.fileno(), path, offset, 3 * height * width)
            return encode_png(np.frombuffer(pixels, np.uint8).reshape(height, width, 3))
        offset, packed, size, checksum = place
        content = _inflated(_read(file.fileno(), path, offset, packed), size)
        if len(content) != size or zlib.crc32(content) != checksum:
            raise DecodeError("damaged", "its bytes in the zip are damaged")
        return content


def _read(descriptor: int, path: Path, offset: int, size: int) -> bytes:
    content = os.pread(descriptor, size, offset)
    if len(content) < size:
        raise OSError(errno.EIO, "it was cut off since it was listed; copy it again", str(path))
    return content


def _inflated(packed: bytes, size: int) -> bytes:
    """Return what deflate packed, of at most size bytes and one more; nothing if it is damaged."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)
    except zlib.error:
        return b""


def _of_array(path: Path) -> Iterator[ArchivedImage]:
    remedy = "name an array as numpy.save writes it, of images, (N, height, width, 3) uint8"
    with open_regular(path) as file:
        content = file.read(_LONGEST_NPY_HEADER)
        n_bytes = os.fstat(file.fileno()).st_size
    header = _NPY_HEADER.match(content)
    if header is None:
        raise PipelineError(f"{path} holds no array of images; {remedy}")
    n, height, width = (int(header[side]) for side in ("n", "height", "width"))
    size = 3 * height * width
    if n * size == 0 or height * width > MOST_PIXELS:
        raise PipelineError(
            f"{path} holds {n} images of {width}x{height}; name an array of images of at most "
            f"{MOST_PIXELS:,} pixels, uint8"
        )
    first = len(header["prefix"]) + int.from_bytes(header["length"] or header["long"], "little")
    if first + n * size != n_bytes:
        raise PipelineError(
            f"{path} has {n_bytes:,} bytes, its header says {first + n * size:,} of uint8; copy it "
            "again"
        )
    for i in range(n):
        yield ArchivedImage(name=f"{i}.png", place=(first + i * size, height, width), size=-1)


def _of_zip(path: Path) -> Iterator[ArchivedImage]:
    damaged = f"{path} is a damaged zip; copy it again"
    found = []
    with open_regular(path) as file:
        n_bytes = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        # What zipfile raises for damaged directories, each seen.
        except (
            zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError,
            OverflowError, OSError,
        ) as error:  # fmt: skip
            raise PipelineError(damaged) from error
        end = 0
        for member in sorted(members, key=lambda member: member.header_offset):
            _check_member(path, member)
            # Members that share their bytes make much of little.
            if member.header_offset < end:
                raise PipelineError(f"{path} has members that overlap, as no zip tool writes them")
            if member.header_offset > n_bytes:
                raise PipelineError(damaged)
            header = os.pread(file.fileno(), _LOCAL_HEADER.size, member.header_offset)
            if len(header) < _LOCAL_HEADER.size or header[:4] != _ZIP_BEGINNINGS[0]:
                raise PipelineError(damaged)
            *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
            offset = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
            end = offset + member.compress_size
            if end > n_bytes:
                raise PipelineError(damaged)
            if is_image_name(member.filename) and not member.is_dir():
                found.append((offset, member))
    for offset, member in found:
        place: tuple[int, ...] = (offset, member.file_size)
        if member.compress_type != zipfile.ZIP_STORED:
            place = (offset, member.compress_size, member.file_size, member.CRC)
        yield ArchivedImage(name=member.filename, place=place, size=member.file_size)


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    name = member.filename
    if name.startswith("/") or ".." in name.split("/") or "\\" in name:
        raise PipelineError(
            f"{path} holds {name!r}, a name that leads out of its folder; write the zip again"
        )
    if not is_image_name(name) or member.is_dir():
        return
    unpack = f"unpack it and name the folder: python -m zipfile -e {path} FOLDER"
    if member.flag_bits & _ENCRYPTED:
        raise PipelineError(f"{path}: {name!r} is encrypted; unpack it with its password")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PipelineError(f"{path}: {name!r} is packed in a way that is not read here; {unpack}")
    if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
        raise PipelineError(f"{path} is a damaged zip; copy it again")
    size = max(member.file_size, member.compress_size)
    if size > LARGEST_FILE:
        raise PipelineError(
            f"{path}: {name!r} has {size:,} bytes; at most {LARGEST_FILE:,} are read"
        )


# --- the small datasets: all of a split is arrays in memory ---------------------------------------

Split = Literal["train", "test"]

SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """A split of a small dataset, in its official order.

    images: (n, height, width, 3) or (n, height, width) uint8; labels: (n,) int64; classes: names.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


@lru_cache(maxsize=1)
def read_split(name: str, place: Path | None, split: Split) -> Arrays:
    """Read a split of a dataset that has a reader.

    Args:
        name: of the dataset.
        place: its archive, the unpacked folder, or a folder that holds either; None where a
            library has it.
        split: "train" or "test".

    Raises:
        PipelineError: if the dataset is not known or cannot be read, or has a label that is not a
            class.
    """
    dataset = dataset_named(name)
    if dataset.reader is None:
        raise PipelineError(f"{name} is a folder of images; run pixmix-shard imagefolder on it")
    arrays = READERS[dataset.reader](dataset, place, split)
    labels, n = arrays.labels, len(arrays.classes)
    if len(labels) and not (labels.min() >= 0 and labels.max() < n):
        raise PipelineError(
            f"{place or name}: labels of {split} are {labels.min()} to {labels.max()}, and {n} "
            f"classes have 0 to {n - 1}; number them from 0"
        )
    return arrays


@dataclass(frozen=True)
class _CifarLayout:
    """files: of each split, in torchvision's order; meta, labels, names: where classes are."""

    files: dict[Split, tuple[str, ...]]
    meta: str
    labels: str
    names: str


_CIFAR_LAYOUTS = {
    "cifar10": _CifarLayout(
        {"train": tuple(f"data_batch_{n}" for n in range(1, 6)), "test": ("test_batch",)},
        "batches.meta",
        "labels",
        "label_names",
    ),
    "cifar100": _CifarLayout(
        {"train": ("train",), "test": ("test",)}, "meta", "fine_labels", "fine_label_names"
    ),
}


def _read_cifar(dataset: Dataset, place: Path | None, split: Split) -> Arrays:
    """Read CIFAR's pickles, unpacked or in the official archive, without running them."""
    assert place is not None
    layout = _CIFAR_LAYOUTS[dataset.name]
    wanted = (*layout.files[split], layout.meta)
    folders = [
        folder
        for folder in (place / dataset.folder, place)
        if folder.is_dir() and any((folder / name).exists() for name in _names_of(layout))
    ]
    archives = [place, place / dataset.archive, place.parent / dataset.archive]
    archive = next((each for each in archives if each.is_file()), None)
    if folders:
        try:
            files = {name: _read_unpacked(folders[0] / name) for name in wanted}
            return _cifar_arrays(place, dataset, layout, files)
        except PipelineError:
            # Unpacked in part, as by a full disk: the archive beside it may be whole.
            if archive is None:
                raise
    if archive is None:
        raise PipelineError(
            f"{place} holds neither {dataset.folder}/ nor {dataset.archive}; download the python "
            f"version from {dataset.page} and name it, or the folder that torchvision downloaded to"
        )
    files = _read_members(archive, dataset.folder, wanted)
    return _cifar_arrays(place, dataset, layout, files)


def _names_of(layout: _CifarLayout) -> set[str]:
    return {layout.meta, *(name for files in layout.files.values() for name in files)}


def _cifar_arrays(
    place: Path, dataset: Dataset, layout: _CifarLayout, files: Mapping[str, bytes]
) -> Arrays:
    n_classes = dataset.n_classes
    assert n_classes is not None
    meta = read_pickle(files[layout.meta], layout.meta)
    names = meta.get(layout.names) if isinstance(meta, dict) else None
    if (
        not isinstance(names, list)
        or len(names) != n_classes
        or not all(isinstance(name, str) for name in names)
    ):
        raise PipelineError(f"{place}: {layout.meta} names no classes of {dataset.title}")
    images, labels = [], []
    for name, content in files.items():
        if name == layout.meta:
            continue
        batch = read_pickle(content, name)
        data = batch.get("data") if isinstance(batch, dict) else None
        found = batch.get(layout.labels) if isinstance(batch, dict) else None
        if not (
            isinstance(data, np.ndarray)
            and data.dtype == np.uint8
            and data.shape[1:] == (3 * 32 * 32,)
            and isinstance(found, list)
            and len(found) == len(data)
        ):
            raise PipelineError(
                f"{place}: {name} is no batch of {dataset.title} (data of (n, 3072) uint8 and "
                f"{layout.labels}); use the official archive"
            )
        if not all(type(label) is int and 0 <= label < n_classes for label in found):
            raise PipelineError(f"{place}: {name} has labels that are none of {dataset.title}'s")
        images.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(found)
    return Arrays(
        images=np.ascontiguousarray(np.concatenate(images)),
        labels=np.concatenate(labels).astype(np.int64),
        classes=tuple(map(printable, names)),
    )


def _read_unpacked(path: Path) -> bytes:
    try:
        return read_regular(path, max_bytes=LARGEST_CIFAR_FILE)
    except FileNotFoundError as error:
        raise PipelineError(f"{path} is missing; unpack or download the archive again") from error
    except OSError as error:
        raise PipelineError(f"{path}: {error.strerror}; unpack the archive again") from error


def _read_members(archive: Path, folder: str, names: Sequence[str]) -> dict[str, bytes]:
    content = memoryview(_unpack(archive))
    wanted = {f"{folder}/{name}": name for name in names}
    found: dict[str, bytes] = {}
    for member in scan_tar_in_memory(archive, content):
        # As "tar czf FILE ./FOLDER" writes them, names begin with "./".
        name = wanted.get(posixpath.normpath(member.name))
        if name is not None:
            found[name] = bytes(content[member.offset : member.offset + member.size])
        if len(found) == len(names):
            return {name: found[name] for name in names}
    missing = next(path for path, name in wanted.items() if name not in found)
    raise PipelineError(f"{archive} holds no {missing}; download it again")


def _unpack(archive: Path) -> bytes:
    """Return the tar in an archive, of at most `LARGEST_CIFAR_ARCHIVE` bytes."""
    limit = LARGEST_CIFAR_ARCHIVE
    try:
        with open_regular(archive, max_bytes=limit) as file:
            is_compressed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            tar = gzip.GzipFile(fileobj=file) if is_compressed else file
            content = tar.read(limit + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise PipelineError(f"{archive} is damaged ({error}); download it again") from error
    if len(content) > limit:
        raise PipelineError(
            f"{archive} unpacks to over {limit:,} bytes, far more than CIFAR has; download it again"
        )
    return content


def _read_digits(dataset: Dataset, _place: Path | None, split: Split) -> Arrays:
    """Return scikit-learn's digits, 0..16 spread over 0..255, enlarged to 32x32.

    Every fifth image is for testing: the writers follow each other, so both parts have all.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise PipelineError(
            f"{dataset.name} come with scikit-learn, which is not installed; run "
            "pip install 'pixmix[digits]'"
        ) from error
    digits = load_digits()
    chosen = (np.arange(len(digits.target)) % 5 == 4) == (split == "test")
    pixels = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    enlarged = [
        np.asarray(Image.fromarray(each).resize((32, 32), Image.Resampling.BICUBIC))
        for each in pixels
    ]
    return Arrays(
        images=np.stack(enlarged),
        labels=digits.target[chosen].astype(np.int64),
        classes=tuple(map(str, range(10))),
    )


READERS: dict[str, Callable[[Dataset, Path | None, Split], Arrays]] = {
    "cifar": _read_cifar,
    "digits": _read_digits,
}
"""What reads the files of a dataset, by the `reader` of its row."""
