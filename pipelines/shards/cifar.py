"""CIFAR-10 and CIFAR-100 from the official archive, whose pickles are read without running them."""

import gzip
import posixpath
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.shards.pictures import encode_png, encoder_version
from pipelines.shards.sources import Item, printable
from pipelines.shards.tars import scan_tar_in_memory
from pipelines.system.files import open_regular, read_regular
from pipelines.system.plain_pickle import read_pickle

LARGEST_FILE = 2**28
"""Bytes: the largest file of the archives has 155 million."""

LARGEST_ARCHIVE = 2**29
"""Bytes: the archives unpack to 186 million."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Layout:
    """folder, archive: as they are distributed; files: of each split, in torchvision's order."""

    folder: str
    archive: str
    files: dict[str, tuple[str, ...]]
    meta: str
    labels: str
    names: str


_LAYOUTS = {
    "cifar10": _Layout(
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        {"train": tuple(f"data_batch_{n}" for n in range(1, 6)), "test": ("test_batch",)},
        "batches.meta",
        "labels",
        "label_names",
    ),
    "cifar100": _Layout(
        "cifar-100-python",
        "cifar-100-python.tar.gz",
        {"train": ("train",), "test": ("test",)},
        "meta",
        "fine_labels",
        "fine_label_names",
    ),
}

Dataset = Literal["cifar10", "cifar100"]


@dataclass(frozen=True, kw_only=True)
class CifarSource:
    """A split of CIFAR in the official order, which is torchvision's, as PNG.

    place: the archive, the folder in it, or a folder that holds either.
    """

    place: Path
    dataset: Dataset
    split: Literal["train", "test"]

    def kind(self) -> str:
        """Name what it is."""
        return self.dataset

    def settings(self) -> dict[str, Any]:
        """Return the split, and what decides the bytes of a PNG."""
        return {"split": self.split, "encoder": encoder_version()}

    def foreign(self) -> bool:
        """Encoded here."""
        return False

    def classes(self) -> Sequence[str]:
        """Return the class names that the archive gives.

        Raises:
            PipelineError: if it cannot be read.
        """
        return _names(self.place, self.dataset)

    def items(self) -> Iterator[Item]:
        """Give the pictures.

        Raises:
            PipelineError: if the archive cannot be read.
        """
        pictures, labels = _load(self.place, self.dataset, self.split)
        for index, label in enumerate(labels.tolist()):
            # With the sum of its pixels, for the archive may be another one when they are read.
            place = [index, zlib.crc32(pictures[index])]
            yield Item(place=place, name=f"{self.split}/{index}", extension="png", label=label)

    def read(self, place: Any) -> bytes:  # noqa: ANN401
        """Return a picture as PNG.

        Raises:
            PipelineError: if it is another one than was listed.
        """
        pictures, _ = _load(self.place, self.dataset, self.split)
        index, expected = place
        if index >= len(pictures) or zlib.crc32(pictures[index]) != expected:
            raise PipelineError(
                f"{self.place} was changed while its shards were written; give the same command "
                "again"
            )
        return encode_png(pictures[index])


@lru_cache(maxsize=1)
def _load(place: Path, dataset: Dataset, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return (n, 32, 32, 3) uint8 and (n,) labels."""
    layout = _LAYOUTS[dataset]
    return _from_where_it_is_whole(
        place, layout, layout.files[split], partial(_batches, place, dataset)
    )


def _batches(
    place: Path, dataset: Dataset, contents: Mapping[str, bytes]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    layout = _LAYOUTS[dataset]
    pictures, labels = [], []
    for name, content in contents.items():
        batch = read_pickle(content, name)
        data = batch.get("data") if isinstance(batch, dict) else None
        given = batch.get(layout.labels) if isinstance(batch, dict) else None
        if not (
            isinstance(data, np.ndarray)
            and data.dtype == np.uint8
            and data.shape[1:] == (3 * 32 * 32,)
            and isinstance(given, list)
            and len(given) == len(data)
        ):
            raise PipelineError(
                f"{place}: {name} is no batch of {dataset} (data of (n, 3072) uint8 and "
                f"{layout.labels}); use the official archive"
            )
        if not all(type(label) is int and 0 <= label < _n_classes(dataset) for label in given):
            raise PipelineError(f"{place}: {name} has labels that are none of {dataset}'s")
        pictures.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(given)
    return np.ascontiguousarray(np.concatenate(pictures)), np.concatenate(labels).astype(np.int64)


def _names(place: Path, dataset: Dataset) -> list[str]:
    layout = _LAYOUTS[dataset]

    def names_in(contents: Mapping[str, bytes]) -> list[str]:
        meta = read_pickle(contents[layout.meta], layout.meta)
        names = meta.get(layout.names) if isinstance(meta, dict) else None
        if (
            not isinstance(names, list)
            or len(names) != _n_classes(dataset)
            or not all(isinstance(name, str) for name in names)
        ):
            raise PipelineError(f"{place}: {layout.meta} names no classes of {dataset}")
        return [printable(name) for name in names]

    return _from_where_it_is_whole(place, layout, (layout.meta,), names_in)


def _n_classes(dataset: Dataset) -> int:
    return 10 if dataset == "cifar10" else 100


def _from_where_it_is_whole(
    place: Path, layout: _Layout, names: Sequence[str], read: Callable[[Mapping[str, bytes]], T]
) -> T:
    """Return what is read from the unpacked files, or from the archive where these are not whole.

    Args:
        place: the archive, the folder in it, or a folder that holds either or both.
        layout: of the data set.
        names: of the files that are needed.
        read: is called with the files' bytes, in the order of their names.

    Raises:
        PipelineError: if there is neither; why the last of them cannot be read.
    """
    known = {layout.meta, *(name for files in layout.files.values() for name in files)}
    folder = next(
        (
            each
            for each in (place / layout.folder, place)
            if each.is_dir() and any((each / name).exists() for name in known)
        ),
        None,
    )
    archives = [place, place / layout.archive, place.parent / layout.archive]
    archive = next((each for each in archives if each.is_file()), None)
    if folder is not None:
        try:
            return read({name: _read_file(folder / name) for name in names})
        except PipelineError:
            # Unpacked in part, as by a full disk: the archive beside it may be whole.
            if archive is None:
                raise
    if archive is None:
        raise PipelineError(
            f"{place} holds neither {layout.folder}/ nor {layout.archive}; download the python "
            "version from https://www.cs.toronto.edu/~kriz/cifar.html and name it, or the folder "
            "that torchvision downloaded to"
        )
    return read(_read_members(archive, layout, names))


def _read_file(path: Path) -> bytes:
    try:
        return read_regular(path, max_bytes=LARGEST_FILE)
    except FileNotFoundError as error:
        raise PipelineError(f"{path} is missing; unpack or download the archive again") from error
    except OSError as error:
        raise PipelineError(f"{path}: {error.strerror}; unpack the archive again") from error


def _read_members(archive: Path, layout: _Layout, names: Sequence[str]) -> dict[str, bytes]:
    content = memoryview(_unpacked(archive))
    wanted = {f"{layout.folder}/{name}": name for name in names}
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


def _unpacked(archive: Path) -> bytes:
    """Return the tar in an archive, of at most `LARGEST_ARCHIVE` bytes.

    Raises:
        PipelineError: if it is damaged or larger.
    """
    try:
        with open_regular(archive, max_bytes=LARGEST_ARCHIVE) as file:
            is_compressed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            tar = gzip.GzipFile(fileobj=file) if is_compressed else file
            content = tar.read(LARGEST_ARCHIVE + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise PipelineError(f"{archive} is damaged ({error}); download it again") from error
    if len(content) > LARGEST_ARCHIVE:
        raise PipelineError(
            f"{archive} unpacks to over {LARGEST_ARCHIVE:,} bytes, far more than CIFAR has; "
            "download it again"
        )
    return content
