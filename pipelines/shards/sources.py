"""What shards are made from: images in a fixed order, each with a label or none.

A source is sent to worker processes, so it is a small frozen value; what it lists lies on disk.
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
from pipelines.shards.format import MANIFEST_NAME, MOST_MANIFEST_BYTES
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
"""Names of folders that are splits of a dataset and no classes."""

_SPLITS_BESIDE_TRAIN = frozenset({"valid", "dev", "eval"})
"""Of those, the names that without a train beside them are rather classes: valid and invalid."""

_NAMED = 3
"""Folders that an error names; a dataset may have thousands."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """An image of a source.

    place: plain JSON values by which the source finds it again.
    name: of its file, relative to the source, with "/", printable.
    extension: of its bytes, lower-case, without the dot.
    label: its class, or -1.
    record: plain JSON values for the sample's .json, or None where the sample has no .json.
    size: bytes of its file; -1 where there is none, or none that can be read.
    changed: when its file and its inode were last changed, nanoseconds; a resumed run writes again
        the files with another time. It is no part of what the shards depend on.
    """

    place: Any
    name: str
    extension: str
    label: int = -1
    record: dict[str, Any] | None = None
    size: int = -1
    changed: tuple[int, int] = (0, 0)


class Source(Protocol):
    """Images in an order of their own, which the number of processes does not touch."""

    def kind(self) -> str:
        """Return the kind of its shards, as the manifest has it."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return as plain JSON values what its images depend on; no paths of this machine."""
        ...

    def classes(self) -> Sequence[str]:
        """Return the names of the classes by label, or nothing."""
        ...

    def items(self) -> Iterator[Item]:
        """Yield its images in order."""
        ...

    def read(self, place: Any) -> bytes:  # noqa: ANN401  any JSON value
        """Return the bytes of an image."""
        ...

    def foreign(self) -> bool:
        """Return whether its files were made by others and are to be scanned before use."""
        ...


def size_and_change(path: Path) -> tuple[int, tuple[int, int]]:
    """Return the size of a file in bytes and when it was changed; -1 for a link to nothing."""
    try:
        status = path.stat()
    except OSError:
        return -1, (0, 0)
    return status.st_size, (status.st_mtime_ns, status.st_ctime_ns)


def class_name(folder: str) -> str:
    """Return the name of the class of a folder: printable, and composed (NFC).

    macOS writes accented letters as two characters (NFD), most others as one. The bytes of the
    folder's name are UTF-8 whatever the locale is.
    """
    name = os.fsencode(folder).decode("utf-8", "surrogateescape")
    return printable(unicodedata.normalize("NFC", name))


def class_images(folder: Path, name: str, *, ignored: set[str] | None = None) -> list[Path]:
    """Return the images of a class folder in torchvision's order: by folder, then by name.

    Args:
        folder: with a folder a class.
        name: of the class folder.
        ignored: see `walk`.

    Raises:
        PipelineError: if there is none.
        OSError: if a folder cannot be read.
    """
    files = files_below(folder / name, inside=folder, ignored=ignored)
    found = [path for path in files if extension_of(path.name) in IMAGE_EXTENSIONS]
    if not found:
        raise _empty_class(folder / name)
    return sorted(found, key=lambda path: (str(path.parent), path.name))


def _empty_class(folder: Path) -> PipelineError:
    return PipelineError(
        f"{printable(str(folder))} holds no image, so its class would be empty; fill the folder or "
        "remove it"
    )


@dataclass(frozen=True, kw_only=True)
class ImageFolderSource:
    """A folder a class, in torchvision's order: classes by name, then files by path.

    Hidden folders and files and a system's litter are none. Names are compared as `class_name`
    returns them, so that the splits of a dataset get the same classes whichever system wrote them.
    """

    folder: Path
    split: str | None = None

    def kind(self) -> str:
        """Return "imagefolder"."""
        return "imagefolder"

    def settings(self) -> dict[str, Any]:
        """Return the split."""
        return {"split": self.split}

    def foreign(self) -> bool:
        """Return True."""
        return True

    def classes(self) -> Sequence[str]:
        """Return the names of the folders, printable.

        Raises:
            PipelineError: if there are none, or two have the same name.
        """
        return [class_name(name) for name in self._folders()]

    def _folders(self) -> Sequence[str]:
        if not self.folder.is_dir():
            raise PipelineError(f"{self.folder} is not a folder; name one with a folder a class")
        names = sorted(
            class_folders(self.folder), key=lambda name: unicodedata.normalize("NFC", name)
        )
        for one, other in pairwise(names):
            if class_name(one) == class_name(other):
                raise PipelineError(
                    f"{self.folder} holds two folders {class_name(one)!r}, whose names differ only "
                    f"in how accents are encoded ({one!a}, {other!a}); move the files of "
                    "one into the other"
                )
        if not names:
            raise PipelineError(
                f"{self.folder} has no folder a class; put the images of each class into a folder "
                "of its own, or use pixmix-shard mixing for images without classes"
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
        """Check that there are classes, and an image in each.

        Raises:
            PipelineError: if there are none, or a class has none.
        """
        for name in self._folders():
            files = files_below(self.folder / name, inside=self.folder)
            if not any(extension_of(path.name) in IMAGE_EXTENSIONS for path in files):
                raise _empty_class(self.folder / name)

    def read(self, place: Any) -> bytes:  # noqa: ANN401
        """Return the bytes of a file."""
        return read_image_file(self.folder / str(place))


def find_splits(folder: Path, wanted: str | None = None) -> list[str]:
    """Return which of a folder's sub-folders are splits; none if they are classes.

    Args:
        folder: above them.
        wanted: the one split that is asked for, beside which anything may lie, or None.

    Raises:
        PipelineError: if the folder is missing; or if splits and others lie side by side, of which
            the others would be lost, or the splits be no classes.
    """
    if not folder.is_dir():
        raise PipelineError(f"{folder} is not a folder; name the one that holds the images")
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
            f"({', '.join(others[:_NAMED])}{more}); if all are classes, rename the first; if not, "
            "move the others elsewhere, or name one split with --split"
        )
    return splits


@dataclass(frozen=True, kw_only=True)
class MixingSource:
    """The images of folders and archives, one after the other, without labels.

    A tar, a zip or a .npy is read where it lies and not unpacked. The line of JSON that a set of
    pixmix-gen has for each image goes into the sample.
    """

    places: tuple[Path, ...]

    def kind(self) -> str:
        """Return "mixing"."""
        return "mixing"

    def settings(self) -> dict[str, Any]:
        """Return the names of the sources, and what decides the bytes of a PNG if one is made."""
        settings: dict[str, Any] = {
            "sources": [printable(place.resolve().name) for place in self.places]
        }
        if any(place.suffix.lower() == ".npy" for place in self.places):
            settings["encoder"] = encoder_version()
        return settings

    def foreign(self) -> bool:
        """Return True: files of others, at least in part."""
        return True

    def classes(self) -> Sequence[str]:
        """Return none, after a check of the sources.

        Raises:
            PipelineError: if one does not exist, or is neither a folder nor a file.
        """
        for place in self.places:
            if not (place.is_dir() or place.is_file()):
                what = "is not a file" if place.exists() else "does not exist"
                raise PipelineError(
                    f"{place} {what}; name a folder, or a tar, zip or .npy of images"
                )
        return ()

    def items(self) -> Iterator[Item]:
        """Yield the images of each source: of a folder sorted by path, of an archive in its order.

        Raises:
            PipelineError: if a source is missing, an unfinished set, a damaged archive, or without
                an image.
        """
        for number, place in enumerate(self.places):
            empty = True
            items = _folder_items(place) if place.is_dir() else _archive_items(place)
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
                    f"{place} holds no image; name a folder of images, a set of pixmix-gen, or "
                    "a tar, zip or .npy of images"
                )

    def read(self, place: Any) -> bytes:  # noqa: ANN401
        """Return the bytes of an image."""
        number, where = place
        source: Path = self.places[number]
        if isinstance(where, str):
            return read_image_file(source / where)
        return read_archived(source, where)


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """A split of a small dataset in its official order, as PNG.

    dataset: its name; place: see `read_split`.
    """

    dataset: str
    split: Split
    place: Path | None = None

    def kind(self) -> str:
        """Return the name of the dataset."""
        return self.dataset

    def settings(self) -> dict[str, Any]:
        """Return the split, and what decides the bytes of a PNG."""
        return {"split": self.split, "encoder": encoder_version()}

    def foreign(self) -> bool:
        """Return False: the images are encoded here."""
        return False

    def classes(self) -> Sequence[str]:
        """Return the names of the classes; see `read_split`."""
        return self._arrays().classes

    def items(self) -> Iterator[Item]:
        """Yield the images; see `read_split`."""
        arrays = self._arrays()
        for index, label in enumerate(arrays.labels.tolist()):
            # With the sum of its pixels, for the file may be another one when they are read.
            place = [index, zlib.crc32(arrays.images[index])]
            yield Item(place=place, name=f"{self.split}/{index}", extension="png", label=label)

    def read(self, place: Any) -> bytes:  # noqa: ANN401
        """Return an image as PNG.

        Raises:
            PipelineError: if it is another one than was listed.
        """
        images = self._arrays().images
        index, expected = place
        if index >= len(images) or zlib.crc32(images[index]) != expected:
            raise PipelineError(
                f"{self.place} was changed while its shards were written; run the same command "
                "again"
            )
        return encode_png(images[index])

    def _arrays(self) -> Arrays:
        return read_split(self.dataset, self.place, self.split)


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
    """Yield the images of a folder and those in it, by path; of a mixing set with their records."""
    found: list[tuple[list[str], Path | None]] = []
    for folder, folders, files in walk(root):
        parts = list(folder.relative_to(root).parts)
        if is_unfinished(folder):
            raise PipelineError(
                f"{folder} is not finished; run the command that began it again, then this one"
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
    """Yield the images of a set of pixmix-gen with their records."""
    records = folder / "metadata.jsonl"
    try:
        content = read_regular(folder / MANIFEST_NAME, max_bytes=MOST_MANIFEST_BYTES)
        status = json.loads(content).get("status")
    except (ValueError, AttributeError, RecursionError) as error:
        raise PipelineError(f"{folder / MANIFEST_NAME} is no manifest of a mixing set") from error
    if status != "complete":
        raise PipelineError(
            f"{folder} is {status}; run the command that began it again, then this one"
        )
    with open_regular(records) as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                path = folder / record["file"]
                inside = path.resolve().is_relative_to(folder.resolve())
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise PipelineError(f"{records}, line {number} is no record") from error
            if not inside:
                raise PipelineError(f"{records}, line {number} leads out of the set: {path}")
            # For readers of folders; in a shard it would name no file.
            record.pop("file_name", None)
            yield _file_item(path, path.relative_to(root).as_posix(), record)


def _file_item(
    path: Path, name: str, record: dict[str, Any] | None = None, label: int = -1
) -> Item:
    """Return the item of a file. name: relative to its source."""
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
