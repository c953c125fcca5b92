"""CIFAR-10 and CIFAR-100 from the official archive, whose pickles are read without running them."""

import io
import pickle
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.shards.pictures import encode_png, encoder_version
from pipelines.shards.sources import Item

LARGEST_FILE = 2**28
"""Bytes: the largest file of the archives has 155 million."""


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
        _, labels = _load(self.place, self.dataset, self.split)
        for index, label in enumerate(labels.tolist()):
            yield Item(place=index, name=f"{self.split}/{index}", extension="png", label=label)

    def read(self, place: Any) -> bytes:  # noqa: ANN401
        """Return a picture as PNG."""
        pictures, _ = _load(self.place, self.dataset, self.split)
        return encode_png(pictures[place])


def read_pickle(content: bytes, name: str) -> Any:  # noqa: ANN401  what the file holds
    """Read a pickle of dicts, lists, text, numbers and arrays of numbers, running nothing.

    Args:
        content: the bytes of the pickle.
        name: of the file, for the errors.

    Raises:
        PipelineError: if it asks for anything else, or is damaged.
    """
    try:
        # latin1 as torchvision: Python 2 wrote arrays as text.
        return _HarmlessUnpickler(io.BytesIO(content), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise PipelineError(f"{name} is refused: {error}") from error
    except (
        # What the machine of pickle raises on damaged input, each seen.
        EOFError,
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        AttributeError,
        OverflowError,
        MemoryError,
        UnicodeError,
    ) as error:
        raise PipelineError(f"{name} is a damaged pickle ({error}); download it again") from error


class _Array:
    """Stands for numpy.ndarray in a pickle: a name, and nothing that could be called."""


def _reconstruct(kind: object, shape: object, _typecode: object) -> NDArray[Any]:
    # As numpy writes an array: an empty one, whose state is set afterwards.
    if kind is not _Array or shape != (0,):
        raise pickle.UnpicklingError(f"it builds an array of {kind!r} with shape {shape!r}")
    return np.empty(0, np.uint8)


def _dtype(code: object, *_: object) -> np.dtype[Any]:
    if not (isinstance(code, str) and code.lstrip("<>|=") in {"u1", "i1", "i2", "i4", "i8"}):
        raise pickle.UnpicklingError(f"it holds an array of {code!r}")
    return np.dtype(code)


def _encode(text: object, encoding: object = "latin1") -> bytes:
    # As Python 2's bytes come through protocol 2 of Python 3.
    if not isinstance(text, str) or encoding not in {"latin1", "latin-1"}:
        raise pickle.UnpicklingError(f"it encodes to {encoding!r}")
    return text.encode("latin1")


class _HarmlessUnpickler(pickle.Unpickler):
    """Knows the four names that the official archives use, each as a function of this module."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        known = {
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _dtype,
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, as no file of CIFAR does; use the official archive"
            )
        return known[module, name]

    def persistent_load(self, pid: Any) -> Any:  # noqa: ANN401
        raise pickle.UnpicklingError(f"it refers to {pid!r} outside itself")


@lru_cache(maxsize=1)
def _load(place: Path, dataset: Dataset, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return (n, 32, 32, 3) uint8 and (n,) labels."""
    layout = _LAYOUTS[dataset]
    names = layout.files[split]
    contents = _read_files(place, layout, names)
    pictures, labels = [], []
    for name in names:
        batch = read_pickle(contents[name], name)
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
    meta = read_pickle(_read_files(place, layout, (layout.meta,))[layout.meta], layout.meta)
    names = meta.get(layout.names) if isinstance(meta, dict) else None
    if (
        not isinstance(names, list)
        or len(names) != _n_classes(dataset)
        or not all(isinstance(name, str) for name in names)
    ):
        raise PipelineError(f"{place}: {layout.meta} names no classes of {dataset}")
    return names


def _n_classes(dataset: Dataset) -> int:
    return 10 if dataset == "cifar10" else 100


def _read_files(place: Path, layout: _Layout, names: Sequence[str]) -> dict[str, bytes]:
    for folder in (place, place / layout.folder):
        if (folder / layout.meta).is_file():
            return {name: _read_file(folder / name) for name in names}
    archive = place / layout.archive if place.is_dir() else place
    if not archive.is_file():
        raise PipelineError(
            f"{place} holds neither {layout.folder}/ nor {layout.archive}; download the python "
            "version from https://www.cs.toronto.edu/~kriz/cifar.html and name it, or the folder "
            "that torchvision downloaded to"
        )
    return _read_members(archive, layout, names)


def _read_file(path: Path) -> bytes:
    if not path.is_file():
        raise PipelineError(f"{path} is missing; download the archive again")
    if path.stat().st_size > LARGEST_FILE:
        raise PipelineError(f"{path} is larger than any file of CIFAR; download it again")
    return path.read_bytes()


def _read_members(archive: Path, layout: _Layout, names: Sequence[str]) -> dict[str, bytes]:
    wanted = {f"{layout.folder}/{name}": name for name in names}
    contents = {}
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                if member.name in wanted and member.isreg():
                    if member.size > LARGEST_FILE:
                        raise PipelineError(
                            f"{archive}: {member.name} is larger than any file of CIFAR; "
                            "download it again"
                        )
                    file = tar.extractfile(member)
                    contents[wanted[member.name]] = file.read() if file else b""
    except (tarfile.TarError, EOFError, OSError) as error:
        raise PipelineError(f"{archive} is damaged ({error}); download it again") from error
    for path, name in wanted.items():
        if name not in contents:
            raise PipelineError(f"{archive} holds no {path}; download it again")
    return contents
