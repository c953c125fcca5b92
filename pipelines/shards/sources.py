"""Sources of shards: image folders, mixing sets, archives and the small datasets.

A source yields images in a fixed order, with or without labels. It is sent to worker processes, so
it is a small frozen value, and its list of images is kept on disk (`pipelines.shards.request`).
"""

import json
import os
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from pipelines.errors import PipelineError
from pipelines.shards.archives import Arrays, Split, archived_images, read_archived, read_split
from pipelines.shards.format import MANIFEST_NAME, MAX_MANIFEST_BYTES
from pipelines.shards.images import (
    IMAGE_EXTENSIONS,
    class_folders,
    encode_png,
    encoder_version,
    extension_of,
    files_below,
    read_image_file,
    walk,
)
from pipelines.shards.job import is_unfinished
from pipelines.system.files import open_regular, printable, read_regular

SPLIT_FOLDERS = ("train", "val", "valid", "validation", "dev", "eval", "test")
"""Names of folders that are splits of a dataset and not classes."""

_SPLITS_BESIDE_TRAIN = frozenset({"valid", "dev", "eval"})
"""Names that are classes where no train folder is beside them, as in valid and invalid."""

_NAMED = 3
"""Number of folders that an error names; a dataset may have thousands."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """An image of a source.

    Attributes:
        place: plain JSON values by which the source finds the image again.
        name: name of its file relative to the source, with "/", printable.
        extension: extension of its file, lower-case, without the dot.
        label: class of the image, or -1.
        record: plain JSON values for the sample's .json; None if the sample has no .json.
        size: bytes of its file; -1 if it is missing or cannot be read.
        changed: times of the last modification of the file and of its inode, nanoseconds. A resumed
            run writes files with another time again; finished shards do not depend on it.
    """

    place: Any
    name: str
    extension: str
    label: int = -1
    record: dict[str, Any] | None = None
    size: int = -1
    changed: tuple[int, int] = (0, 0)


class Source(Protocol):
    """Images in a fixed order."""

    def kind(self) -> str:
        """Return the kind of the shards for the manifest."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return the settings that the images depend on, as plain JSON values without paths."""
        ...

    def classes(self) -> Sequence[str]:
        """Return the class names by label, or an empty sequence."""
        ...

    def items(self) -> Iterator[Item]:
        """Yield the images in order."""
        ...

    def read(self, place: Any) -> bytes:  # noqa: ANN401  any JSON value
        """Return the bytes of an image."""
        ...

    def needs_scan(self) -> bool:
        """Return whether the images come from another program, and must be scanned first."""
        ...


def size_and_change(path: Path) -> tuple[int, tuple[int, int]]:
    """Return the size of a file in bytes and its times; (-1, (0, 0)) for a broken link."""
    try:
        status = path.stat()
    except OSError:
        return -1, (0, 0)
    return status.st_size, (status.st_mtime_ns, status.st_ctime_ns)


def class_name(folder: str) -> str:
    """Return the class name of a folder, printable and composed (NFC).

    macOS writes accented letters as two characters (NFD), most other systems as one. The bytes of
    the folder's name are read as UTF-8 in any locale.
    """
    name = os.fsencode(folder).decode("utf-8", "surrogateescape")
    return printable(unicodedata.normalize("NFC", name))


def class_images(folder: Path, name: str, *, ignored: set[str] | None = None) -> list[Path]:
    """Return the images of a class folder in torchvision's order: by folder, then by name.

    Args:
        folder: dataset with one folder per class.
        name: name of the class folder.
        ignored: receives the paths of ignored files; see `walk`.

    Raises:
        PipelineError: if the class has no image.
        OSError: if a folder cannot be read.
    """
    files = files_below(folder / name, inside=folder, ignored=ignored)
    found = [path for path in files if extension_of(path.name) in IMAGE_EXTENSIONS]
    if not found:
        raise _empty_class(folder / name)
    return sorted(found, key=lambda path: (str(path.parent), path.name))


def _empty_class(folder: Path) -> PipelineError:
    return PipelineError(
        f"{printable(str(folder))} holds no images, so its class would be empty; add images to the "
        "folder, or remove it"
    )


@dataclass(frozen=True, kw_only=True)
class ImageFolderSource:
    """An image folder with one folder per class, in torchvision's order.

    Classes are sorted by name, and the files of a class by path. Hidden files and folders and
    system files are ignored. Classes are sorted by their composed names (NFC), so that the splits
    of a dataset get the same labels whichever system wrote them.
    """

    folder: Path
    split: str | None = None

    def kind(self) -> str:
        """Return "imagefolder"."""
        return "imagefolder"

    def settings(self) -> dict[str, Any]:
        """Return the split."""
        return {"split": self.split}

    def needs_scan(self) -> bool:
        """Return True."""
        return True

    def classes(self) -> Sequence[str]:
        """Return the class names.

        Raises:
            PipelineError: if the folder has no class folders, or two have the same name.
        """
        return [class_name(name) for name in self._folders()]

    def _folders(self) -> Sequence[str]:
        if not self.folder.is_dir():
            raise PipelineError(f"{self.folder} is not a folder; use one with a folder per class")
        names = sorted(
            class_folders(self.folder), key=lambda name: unicodedata.normalize("NFC", name)
        )
        for one, other in pairwise(names):
            if class_name(one) == class_name(other):
                raise PipelineError(
                    f"{self.folder} holds two folders {class_name(one)!r}, whose names differ only "
                    f"in the encoding of accents ({one!a}, {other!a}); move the files of one into "
                    "the other"
                )
        if not names:
            raise PipelineError(
                f"{self.folder} has no class folders; put the images of each class into its own "
                "folder, or use pixmix-shard mixing for images without classes"
            )
        return names

    def items(self) -> Iterator[Item]:
        """Yield the images of all classes.

        Raises:
            PipelineError: as `check`.
        """
        self.check()
        for label, name in enumerate(self._folders()):
            for path in class_images(self.folder, name):
                relative = path.relative_to(self.folder).as_posix()
                record = {
                    "filename": printable(relative),
                    "class": class_name(name),
                    "label": label,
                }
                yield _file_item(path, relative, record, label)

    def check(self) -> None:
        """Check that there are classes, each with an image.

        Raises:
            PipelineError: if the folder has no class folders, or a class has no image.
        """
        for name in self._folders():
            files = files_below(self.folder / name, inside=self.folder)
            if not any(extension_of(path.name) in IMAGE_EXTENSIONS for path in files):
                raise _empty_class(self.folder / name)

    def read(self, place: Any) -> bytes:  # noqa: ANN401
        """Return the bytes of a file."""
        return read_image_file(self.folder / str(place))


def find_splits(folder: Path, wanted: str | None = None) -> list[str]:
    """Return the subfolders that are splits; an empty list if all are classes.

    Args:
        folder: folder of splits or of classes.
        wanted: the only split to use, beside which other folders are allowed; None for all.

    Raises:
        PipelineError: if the folder is missing, or splits are mixed with other folders.
    """
    if not folder.is_dir():
        raise PipelineError(f"{folder} is not a folder; use the folder that holds the images")
    names = class_folders(folder)
    splits = [
        name
        for name in SPLIT_FOLDERS
        if name in names
        and (name == wanted or "train" in names or name not in _SPLITS_BESIDE_TRAIN)
    ]
    others = [printable(name) for name in names if name not in splits]
    if splits and others and wanted is None:
        more = f" and {len(others) - _NAMED:,} more" if len(others) > _NAMED else ""
        raise PipelineError(
            f"{folder} holds splits ({', '.join(splits)}) beside other folders "
            f"({', '.join(others[:_NAMED])}{more}); if all of them are classes, rename the splits; "
            "if not, move the other folders elsewhere, or pass one split with --split"
        )
    return splits


@dataclass(frozen=True, kw_only=True)
class MixingSource:
    """The images of several folders and archives, without labels.

    A tar, a zip or a .npy is not unpacked. The metadata that pixmix-gen writes for each image is
    copied into the sample.
    """

    paths: tuple[Path, ...]

    def kind(self) -> str:
        """Return "mixing"."""
        return "mixing"

    def settings(self) -> dict[str, Any]:
        """Return the names of the folders and archives, and the version of the PNG encoder."""
        settings: dict[str, Any] = {
            "sources": [printable(path.resolve().name) for path in self.paths]
        }
        # Only an array is encoded.
        if any(path.suffix.lower() == ".npy" for path in self.paths):
            settings["encoder"] = encoder_version()
        return settings

    def needs_scan(self) -> bool:
        """Return True."""
        return True

    def classes(self) -> Sequence[str]:
        """Check the paths, and return an empty sequence.

        Raises:
            PipelineError: if a path does not exist, or is neither a folder nor a file.
        """
        for path in self.paths:
            if not (path.is_dir() or path.is_file()):
                what = "is neither a file nor a folder" if path.exists() else "does not exist"
                raise PipelineError(f"{path} {what}; use a folder, or a tar, zip or .npy of images")
        return ()

    def items(self) -> Iterator[Item]:
        """Yield the images of each path: those of a folder by path, of an archive in its order.

        Raises:
            PipelineError: if a path is missing, an unfinished dataset, a damaged archive, or has no
                image.
        """
        for number, path in enumerate(self.paths):
            empty = True
            items = _folder_items(path) if path.is_dir() else _archive_items(path)
            for item in items:
                empty = False
                record = {"filename": item.name, **(item.record or {})}
                yield Item(
                    place=[number, item.place],
                    name=item.name,
                    extension=item.extension,
                    record=record,
                    size=item.size,
                    changed=item.changed,
                )
            if empty:
                raise PipelineError(
                    f"{path} holds no images; use a folder of images, a dataset of pixmix-gen, or "
                    "a tar, zip or .npy of images"
                )

    def read(self, place: Any) -> bytes:  # noqa: ANN401
        """Return the bytes of an image."""
        number, where = place
        source: Path = self.paths[number]
        if isinstance(where, str):
            return read_image_file(source / where)
        return read_archived(source, where)


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """A split of a small dataset in its official order, as PNG.

    Attributes:
        dataset: name of the dataset.
        split: name of the split.
        path: files of the dataset; see `read_split`.
    """

    dataset: str
    split: Split
    path: Path | None = None

    def kind(self) -> str:
        """Return the name of the dataset."""
        return self.dataset

    def settings(self) -> dict[str, Any]:
        """Return the split, and the version of the PNG encoder."""
        return {"split": self.split, "encoder": encoder_version()}

    def needs_scan(self) -> bool:
        """Return False: pixmix encodes the images."""
        return False

    def classes(self) -> Sequence[str]:
        """Return the class names; see `read_split`."""
        return self._arrays().classes

    def items(self) -> Iterator[Item]:
        """Yield the images; see `read_split`."""
        arrays = self._arrays()
        for index, label in enumerate(arrays.labels.tolist()):
            # The checksum of the pixels shows whether the file was replaced before they are read.
            place = [index, zlib.crc32(arrays.images[index])]
            yield Item(place=place, name=f"{self.split}/{index}", extension="png", label=label)

    def read(self, place: Any) -> bytes:  # noqa: ANN401
        """Return an image as PNG.

        Raises:
            PipelineError: if it has changed since it was listed.
        """
        images = self._arrays().images
        index, expected = place
        if index >= len(images) or zlib.crc32(images[index]) != expected:
            raise PipelineError(
                f"{self.path} was changed while its shards were written; make sure that nothing "
                "writes to it, and run the same command again"
            )
        return encode_png(images[index])

    def _arrays(self) -> Arrays:
        return read_split(self.dataset, self.path, self.split)


def _archive_items(path: Path) -> Iterator[Item]:
    _, changed = size_and_change(path)
    for image in archived_images(path):
        yield Item(
            place=list(image.place),
            name=printable(image.name),
            extension=extension_of(image.name),
            size=image.size,
            changed=changed,
        )


def _folder_items(root: Path) -> Iterator[Item]:
    """Yield the images below a folder by path; the images of a mixing set have records."""
    found: list[tuple[list[str], Path | None]] = []
    for folder, folders, files in walk(root):
        parts = list(folder.relative_to(root).parts)
        if is_unfinished(folder):
            raise PipelineError(
                f"{folder} is not finished; first repeat the command that started it"
            )
        if MANIFEST_NAME in files and "metadata.jsonl" in files:
            folders.clear()
            found.append((parts, folder))
            continue
        images = (name for name in files if extension_of(name) in IMAGE_EXTENSIONS)
        found += [([*parts, name], None) for name in images]
    for parts, mixing_set in sorted(found, key=lambda each: each[0]):
        if mixing_set is not None:
            yield from _set_items(root, mixing_set)
        else:
            name = "/".join(parts)
            yield _file_item(root / name, name)


def _set_items(root: Path, folder: Path) -> Iterator[Item]:
    """Yield the images of a dataset of pixmix-gen with their records."""
    records = folder / "metadata.jsonl"
    try:
        content = read_regular(folder / MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES)
        status = json.loads(content).get("status")
    except (ValueError, AttributeError, RecursionError) as error:
        raise PipelineError(
            f"{folder / MANIFEST_NAME} is not the manifest of a mixing set; generate it again"
        ) from error
    if status != "complete":
        raise PipelineError(
            f"the status of {folder} is {status!r}, expected 'complete'; first repeat the "
            "command that started it"
        )
    with open_regular(records) as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                path = folder / record["file"]
                inside = path.resolve().is_relative_to(folder.resolve())
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise PipelineError(
                    f"line {number} of {records} is not the record of an image; generate the "
                    "dataset again"
                ) from error
            if not inside:
                raise PipelineError(
                    f"line {number} of {records} names {path}, outside of the dataset"
                )
            # The key is for readers of folders; a shard has no such file.
            record.pop("file_name", None)
            yield _file_item(path, path.relative_to(root).as_posix(), record)


def _file_item(
    path: Path, name: str, record: dict[str, Any] | None = None, label: int = -1
) -> Item:
    """Return the item of a file, whose name is relative to its source."""
    size, changed = size_and_change(path)
    return Item(
        place=name,
        name=printable(name),
        extension=extension_of(name),
        label=label,
        record=record,
        size=size,
        changed=changed,
    )
