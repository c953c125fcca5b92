"""Read images from archives (tar, zip, .npy), and the small datasets from their published files.

Nothing is unpacked to disk, and no pickle is executed.

An image in an archive has a place, plain JSON values by which any process reads it again:

    [offset, bytes]                         stored without compression in a tar or a zip
    [offset, compressed bytes, bytes, crc]  deflated in a zip
    [offset, height, width]                 pixels of an array, which are read as a PNG
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
from pipelines.errors import PipelineError, install_extra
from pipelines.shards.images import (
    MAX_FILE_BYTES,
    MAX_PIXELS,
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
"""The header that numpy.save writes for images; numpy's own reader evaluates it as Python."""

_MAX_NPY_HEADER_BYTES = 1000

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
"""Header of a zip member: signature, 5 fields, checksum, 2 sizes, lengths of name and extra."""

_ENCRYPTED = 0x1

MAX_CIFAR_FILE_BYTES = 2**28
"""The largest file of the archives has 155 million bytes."""

MAX_CIFAR_ARCHIVE_BYTES = 2**29
"""The archives unpack to 186 million bytes."""


@dataclass(frozen=True, kw_only=True)
class ArchivedImage:
    """An image in an archive.

    Attributes:
        name: name of the image.
        place: where the archive holds it; see the module.
        size: size of its file in bytes; -1 for an image of an array.
    """

    name: str
    place: tuple[int, ...]
    size: int


def archived_images(path: Path) -> Iterator[ArchivedImage]:
    """Yield the images of an archive in its order; hidden files are skipped.

    Args:
        path: a tar, a zip, or a .npy of (N, H, W, 3) uint8, such as the 300K random images.

    Raises:
        PipelineError: if it is a file of another type, a compressed tar or damaged, or holds names
            or members that would mislead an unpacker.
        OSError: if it cannot be read.
    """
    with open_regular(path) as file:
        beginning = file.read(len(_NPY_BEGINNING))
    if beginning == _NPY_BEGINNING:
        yield from _array_images(path)
    elif beginning.startswith(_ZIP_BEGINNINGS):
        yield from _zip_images(path)
    else:
        for member in scan_tar(path):
            if is_image_name(member.name):
                place = (member.offset, member.size)
                yield ArchivedImage(name=member.name, place=place, size=member.size)


def read_archived(path: Path, place: Sequence[int]) -> bytes:
    """Return the bytes of an image file in an archive; an image of an array becomes a PNG.

    Args:
        path: the archive.
        place: the place of the image, from `archived_images`.

    Raises:
        DecodeError: if the checksum in a zip does not match.
        OSError: if it cannot be read, or the archive has been cut off since.
    """
    with open_regular(path) as file:
        if len(place) == 2:
            return _read(file.fileno(), path, *place)
        if len(place) == 3:
            offset, height, width = place
            pixels = _read(file.fileno(), path, offset, 3 * height * width)
            return encode_png(np.frombuffer(pixels, np.uint8).reshape(height, width, 3))
        offset, compressed, size, checksum = place
        content = _inflated(_read(file.fileno(), path, offset, compressed), size)
        if len(content) != size or zlib.crc32(content) != checksum:
            raise DecodeError("damaged", "its bytes in the zip are damaged")
        return content


def _read(descriptor: int, path: Path, offset: int, size: int) -> bytes:
    content = os.pread(descriptor, size, offset)
    if len(content) < size:
        raise OSError(errno.EIO, "it was cut off after it was listed; copy it again", str(path))
    return content


def _inflated(compressed: bytes, size: int) -> bytes:
    """Decompress at most size + 1 bytes; return no bytes if the data is damaged."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(compressed, size + 1)
    except zlib.error:
        return b""


def _array_images(path: Path) -> Iterator[ArchivedImage]:
    remedy = "use an array of images, (N, height, width, 3) uint8, as numpy.save writes it"
    with open_regular(path) as file:
        content = file.read(_MAX_NPY_HEADER_BYTES)
        n_bytes = os.fstat(file.fileno()).st_size
    header = _NPY_HEADER.match(content)
    if header is None:
        raise PipelineError(f"{path} is not an array of images; {remedy}")
    n, height, width = (int(header[side]) for side in ("n", "height", "width"))
    size = 3 * height * width
    if n * size == 0 or height * width > MAX_PIXELS:
        raise PipelineError(
            f"{path} holds {n} images of {width}x{height}; use a uint8 array of images of at most "
            f"{MAX_PIXELS:,} pixels"
        )
    first = len(header["prefix"]) + int.from_bytes(header["length"] or header["long"], "little")
    if first + n * size != n_bytes:
        raise PipelineError(
            f"{path} has {n_bytes:,} bytes, expected {first + n * size:,} by its header (uint8); "
            "copy it again"
        )
    for i in range(n):
        yield ArchivedImage(name=f"{i}.png", place=(first + i * size, height, width), size=-1)


def _zip_images(path: Path) -> Iterator[ArchivedImage]:
    damaged = f"{path} is a damaged zip; copy it again"
    found = []
    with open_regular(path) as file:
        n_bytes = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        # Errors that zipfile was seen to raise for damaged directories.
        except (
            zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError,
            OverflowError, OSError,
        ) as error:  # fmt: skip
            raise PipelineError(damaged) from error
        end = 0
        for member in sorted(members, key=lambda member: member.header_offset):
            _check_member(path, member)
            # Members that share bytes are a zip bomb.
            if member.header_offset < end:
                raise PipelineError(
                    f"{path} has members that overlap, which no zip tool writes; write it again"
                )
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
    unpack = f"unpack it and use the folder: python -m zipfile -e {path} FOLDER"
    if member.flag_bits & _ENCRYPTED:
        raise PipelineError(f"{path}: {name!r} is encrypted; unpack it with its password")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PipelineError(f"{path}: the compression of {name!r} is not supported; {unpack}")
    if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
        raise PipelineError(f"{path} is a damaged zip; copy it again")
    size = max(member.file_size, member.compress_size)
    if size > MAX_FILE_BYTES:
        raise PipelineError(
            f"{path}: {name!r} has {size:,} bytes; the maximum is {MAX_FILE_BYTES:,}"
        )


# --- the small datasets, whose splits are arrays in memory ----------------------------------------

Split = Literal["train", "test"]

SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """A split of a small dataset, in its official order.

    Attributes:
        images: (n, height, width, 3) or (n, height, width) uint8.
        labels: (n,) int64.
        classes: class names by label.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


@lru_cache(maxsize=1)
def read_split(name: str, path: Path | None, split: Split) -> Arrays:
    """Read a split of a dataset that has a reader.

    Args:
        name: name of the dataset.
        path: its archive, the unpacked folder, or a folder that holds either; None if the dataset
            comes with a library.
        split: "train" or "test".

    Raises:
        PipelineError: if the dataset is unknown or cannot be read, or has a label that is not a
            class.
    """
    dataset = dataset_named(name)
    if dataset.reader is None:
        raise PipelineError(f"{name} is an image folder; run pixmix-shard imagefolder on it")
    try:
        arrays = READERS[dataset.reader](dataset, path, split)
    except KeyError as error:
        # A reader that indexes a file of arrays, as numpy.load returns it.
        raise PipelineError(
            f"{path or name} has no array {error} for the split {split}; check the file and the "
            f"reader {dataset.reader!r}"
        ) from error
    labels, n = arrays.labels, len(arrays.classes)
    if len(labels) and not (labels.min() >= 0 and labels.max() < n):
        raise PipelineError(
            f"{path or name}: the labels of {split} are {labels.min()} to {labels.max()}, expected "
            f"0 to {n - 1} for {n} classes; number them from 0"
        )
    return arrays


@dataclass(frozen=True)
class _CifarLayout:
    """The files of each split in torchvision's order, and the keys of labels and class names."""

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


def _read_cifar(dataset: Dataset, path: Path | None, split: Split) -> Arrays:
    """Read CIFAR's pickles, unpacked or in the official archive, without executing them."""
    assert path is not None
    layout = _CIFAR_LAYOUTS[dataset.name]
    wanted = (*layout.files[split], layout.meta)
    folders = [
        folder
        for folder in (path / dataset.folder, path)
        if folder.is_dir() and any((folder / name).exists() for name in _names_of(layout))
    ]
    archives = [path, path / dataset.archive, path.parent / dataset.archive]
    archive = next((each for each in archives if each.is_file()), None)
    if folders:
        try:
            files = {name: _read_unpacked(folders[0] / name) for name in wanted}
            return _cifar_arrays(path, dataset, layout, files)
        except PipelineError:
            # A full disk may have stopped the unpacking: the archive beside it may be intact.
            if archive is None:
                raise
    if archive is None:
        raise PipelineError(
            f"{path} holds neither {dataset.folder}/ nor {dataset.archive}; use the python version "
            f"from {dataset.page}, or the folder that torchvision downloaded to"
        )
    files = _read_members(archive, dataset.folder, wanted)
    return _cifar_arrays(path, dataset, layout, files)


def _names_of(layout: _CifarLayout) -> set[str]:
    return {layout.meta, *(name for files in layout.files.values() for name in files)}


def _cifar_arrays(
    path: Path, dataset: Dataset, layout: _CifarLayout, files: Mapping[str, bytes]
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
        raise PipelineError(
            f"{path}: {layout.meta} does not list the classes of {dataset.title}; use the official "
            "archive"
        )
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
                f"{path}: {name} is not a batch of {dataset.title}, expected data of (n, 3072) "
                f"uint8 and {layout.labels}; use the official archive"
            )
        if not all(type(label) is int and 0 <= label < n_classes for label in found):
            raise PipelineError(
                f"{path}: {name} has labels that are not classes of {dataset.title}; use the "
                "official archive"
            )
        images.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(found)
    return Arrays(
        images=np.ascontiguousarray(np.concatenate(images)),
        labels=np.concatenate(labels).astype(np.int64),
        classes=tuple(map(printable, names)),
    )


def _read_unpacked(path: Path) -> bytes:
    try:
        return read_regular(path, max_bytes=MAX_CIFAR_FILE_BYTES)
    except FileNotFoundError as error:
        raise PipelineError(f"{path} is missing; unpack or download the archive again") from error
    except OSError as error:
        raise PipelineError(f"{path}: {error.strerror}; unpack the archive again") from error


def _read_members(archive: Path, folder: str, names: Sequence[str]) -> dict[str, bytes]:
    content = memoryview(_unpack(archive))
    wanted = {f"{folder}/{name}": name for name in names}
    found: dict[str, bytes] = {}
    for member in scan_tar_in_memory(archive, content):
        # The names that "tar czf FILE ./FOLDER" writes begin with "./".
        name = wanted.get(posixpath.normpath(member.name))
        if name is not None:
            found[name] = bytes(content[member.offset : member.offset + member.size])
        if len(found) == len(names):
            return {name: found[name] for name in names}
    missing = next(path for path, name in wanted.items() if name not in found)
    raise PipelineError(f"{archive} does not hold {missing}; download it again")


def _unpack(archive: Path) -> bytes:
    """Return the tar in an archive, of at most `MAX_CIFAR_ARCHIVE_BYTES`."""
    limit = MAX_CIFAR_ARCHIVE_BYTES
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
            f"{archive} unpacks to over {limit:,} bytes, far more than CIFAR; download it again"
        )
    return content


def _read_digits(dataset: Dataset, _path: Path | None, split: Split) -> Arrays:
    """Return scikit-learn's digits, scaled from 0..16 to 0..255 and enlarged to 32x32.

    Every fifth image is in the test split. The images are sorted by writer, so both splits have all
    writers.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise PipelineError(
            f"the dataset {dataset.name} comes with scikit-learn, which is not installed; run "
            f"{install_extra('digits')}"
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
"""The functions that read the files of a dataset, by the `reader` of its row."""
