"""What shards are made from: pictures in a fixed order, each with a label or none.

A source is sent to worker processes, so it is a small frozen value; what it lists lies on disk.

Pictures to mix with: our own sets, any folder of pictures, or the paper's archive as it is.
"""

import json
import os
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from pipelines.errors import PipelineError
from pipelines.shards.archives import Arrays, Split, archived_images, read_archived, read_split
from pipelines.shards.images import (
    FOLDER_EXTENSIONS,
    Above,
    encode_png,
    encoder_version,
    files_below,
    is_folder,
    is_ignored_name,
    is_picture_name,
    place_of,
    read_image_file,
)
from pipelines.system.files import open_regular, printable, read_regular

SPLITS = ("train", "val", "valid", "validation", "dev", "eval", "test")
"""Names of folders that are parts of a set and no classes."""

_SPLITS_BESIDE_TRAIN = frozenset({"valid", "dev", "eval"})
"""Of those, the names that without a train beside them are rather classes: valid and invalid."""

_NAMED = 3
"""Folders that an error names; a set may have thousands."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A picture of a source.

    place: plain JSON values by which the source finds it again.
    name: of its file, relative to the source, with "/", printable.
    extension: of its bytes, lower-case, without the dot.
    label: its class, or -1.
    record: plain JSON values for the sample's .json, or None where the sample has no .json.
    size: bytes of its file; -1 where there is none, or none that can be read.
    changed: when its file was last changed, as `changed_at` returns it; an interrupted run writes
        again what another time says of. It is no part of what the shards depend on.
    """

    place: Any
    name: str
    extension: str
    label: int = -1
    record: dict[str, Any] | None = None
    size: int = -1
    changed: tuple[int, int] = (0, 0)


class Source(Protocol):
    """Pictures in an order of their own, which the number of processes does not touch."""

    def kind(self) -> str:
        """Name what it is, as the manifest says it."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return as plain JSON values what its pictures depend on; no paths of this machine."""
        ...

    def classes(self) -> Sequence[str]:
        """Return the names of the classes by label, or nothing."""
        ...

    def items(self) -> Iterator[Item]:
        """Give its pictures in order."""
        ...

    def read(self, place: Any) -> bytes:  # noqa: ANN401  any JSON value
        """Return the bytes of a picture."""
        ...

    def foreign(self) -> bool:
        """Say whether its files were made by others and are to be looked into before use."""
        ...


def extension_of(name: str) -> str:
    """Return the last extension of a file's name, lower-case, without the dot."""
    return os.path.splitext(name)[1][1:].lower()  # noqa: PTH122  of names in tars too


def changed_at(status: os.stat_result) -> tuple[int, int]:
    """Return when a file's content and its inode were last changed, nanoseconds."""
    return status.st_mtime_ns, status.st_ctime_ns


def size_and_change(path: Path) -> tuple[int, tuple[int, int]]:
    """Return the size of a file in bytes and when it was changed; -1 for a link to nothing."""
    try:
        status = path.stat()
    except OSError:
        return -1, (0, 0)
    return status.st_size, changed_at(status)


def class_name(folder: str) -> str:
    """Return the name of the class of a folder: printable, and composed (NFC).

    macOS writes accented letters as two characters (NFD), most others as one. The bytes of the
    folder's name are UTF-8 whatever the locale is.
    """
    name = os.fsencode(folder).decode("utf-8", "surrogateescape")
    return printable(unicodedata.normalize("NFC", name))


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """A split of a small dataset in its official order, as PNG.

    dataset: its name; place: see `read_split`.
    """

    dataset: str
    split: Split
    place: Path | None = None

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
        """Return the names of the classes; see `read_split`."""
        return self._arrays().classes

    def items(self) -> Iterator[Item]:
        """Give the images; see `read_split`."""
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


@dataclass(frozen=True, kw_only=True)
class ImageFolderSource:
    """A folder a class, in torchvision's order: classes by name, then files by path.

    Hidden folders and files and a system's litter are none. Names are compared as `class_name`
    returns them, so that the splits of a set get the same classes whichever system wrote them.
    """

    folder: Path
    split: str | None = None

    def kind(self) -> str:
        """Name what it is."""
        return "imagefolder"

    def settings(self) -> dict[str, Any]:
        """Return the split."""
        return {"split": self.split}

    def foreign(self) -> bool:
        """Files of others."""
        return True

    def classes(self) -> Sequence[str]:
        """Return the names of the folders, printable.

        Raises:
            PipelineError: if there are none.
        """
        return [class_name(name) for name in self._folders()]

    def _folders(self) -> Sequence[str]:
        if not self.folder.is_dir():
            raise PipelineError(f"{self.folder} is no folder; name one with a folder a class")
        names = sorted(
            (
                entry.name
                for entry in os.scandir(self.folder)
                if is_folder(entry) and not is_ignored_name(entry.name)
            ),
            key=lambda name: unicodedata.normalize("NFC", name),
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
                f"{self.folder} has no folder a class; put the pictures of each class into a "
                "folder of its own, or use pixmix-shard mixing for pictures without classes"
            )
        return names

    def items(self) -> Iterator[Item]:
        """Give the pictures of all classes.

        Raises:
            PipelineError: as `check`.
        """
        self.check()
        for label, name in enumerate(self._folders()):
            for path in _sorted_files(files_below(self.folder / name, self._above())):
                relative = path.relative_to(self.folder).as_posix()
                extension = extension_of(relative)
                if extension in FOLDER_EXTENSIONS:
                    size, changed = size_and_change(path)
                    yield Item(
                        place=relative,
                        name=printable(relative),
                        extension=extension,
                        label=label,
                        record={
                            "filename": printable(relative),
                            "class": class_name(name),
                            "label": label,
                        },
                        size=size,
                        changed=changed,
                    )

    def check(self) -> None:
        """See that there are classes, and a picture in each.

        Raises:
            PipelineError: if there are none, or a class has none.
        """
        for name in self._folders():
            files = files_below(self.folder / name, self._above())
            if not any(extension_of(path.name) in FOLDER_EXTENSIONS for path in files):
                raise PipelineError(
                    f"{printable(str(self.folder / name))} holds no picture, so its class would be "
                    "empty; fill the folder or remove it"
                )

    def _above(self) -> Above:
        return frozenset({place_of(self.folder)})

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
        raise PipelineError(f"{folder} is no folder; name the one that holds the pictures")
    names = {
        entry.name
        for entry in os.scandir(folder)
        if is_folder(entry) and not is_ignored_name(entry.name)
    }
    splits = [
        name
        for name in SPLITS
        if name in names
        and (name == wanted or "train" in names or name not in _SPLITS_BESIDE_TRAIN)
    ]
    others = [printable(name) for name in sorted(names.difference(splits))]
    if splits and others and wanted is None:
        more = f" and {len(others) - _NAMED:,} more" if len(others) > _NAMED else ""
        raise PipelineError(
            f"{folder} holds splits ({', '.join(splits)}) beside other folders "
            f"({', '.join(others[:_NAMED])}{more}); if all are classes, rename the first; if not, "
            "move the others elsewhere, or name one split with --split"
        )
    return splits


def has_classes(folder: Path) -> bool:
    """Return whether a folder has folders in it, each of which would be a class."""
    return any(is_folder(entry) and not is_ignored_name(entry.name) for entry in os.scandir(folder))


def _sorted_files(files: Iterable[Path]) -> list[Path]:
    """Return files in torchvision's order: by folder, then by name."""
    return sorted(files, key=lambda path: (str(path.parent), path.name))


_LARGEST_MANIFEST = 2**24
"""Bytes of the manifest of a set of pictures, which has some hundred."""


@dataclass(frozen=True, kw_only=True)
class MixingSource:
    """The pictures of folders and archives, one after the other, without labels.

    A tar, a zip or a .npy is read where it lies and not unpacked. The line of JSON that a set of
    pixmix-gen has for each picture goes into the sample.
    """

    places: tuple[Path, ...]

    def kind(self) -> str:
        """Name what it is."""
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
        """Files of others, at least in part."""
        return True

    def classes(self) -> Sequence[str]:
        """Return none, after a look at the sources.

        Raises:
            PipelineError: if one does not exist, or is neither a folder nor a file.
        """
        for place in self.places:
            if not (place.is_dir() or place.is_file()):
                what = "is no file" if place.exists() else "does not exist"
                raise PipelineError(
                    f"{place} {what}; name a folder, or a tar, zip or .npy of pictures"
                )
        return ()

    def items(self) -> Iterator[Item]:
        """Give the pictures of each source: of a folder sorted by path, of an archive in its order.

        Raises:
            PipelineError: if a source is missing, an unfinished set, a damaged archive, or without
                a picture.
        """
        for number, place in enumerate(self.places):
            empty = True
            items = _in_folder(place, place, frozenset()) if place.is_dir() else _in_archive(place)
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
                    f"{place} holds no picture; name a folder of pictures, a set of pixmix-gen, or "
                    "a tar, zip or .npy of pictures"
                )

    def read(self, place: Any) -> bytes:  # noqa: ANN401
        """Return the bytes of a picture."""
        number, where = place
        source: Path = self.places[number]
        if isinstance(where, str):
            return read_image_file(source / where)
        return read_archived(source, where)


def _in_archive(path: Path) -> Iterator[Item]:
    _, changed = size_and_change(path)
    for image in archived_images(path):
        yield Item(
            place=list(image.place),
            name=printable(image.name),
            extension=extension_of(image.name),
            size=image.size,
            changed=changed,
        )


def _in_folder(root: Path, folder: Path, above: Above) -> Iterator[Item]:
    place = place_of(folder)
    if place in above:  # A link leads back to a folder that it lies in.
        return
    if (folder / "metadata.jsonl").exists() and (folder / "manifest.json").exists():
        yield from _in_set(root, folder)
        return
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    if (folder / "manifest.json").exists() and (folder / ".work").exists():
        raise PipelineError(
            f"{folder} is not finished; give again the command that began it, then this one"
        )
    for entry in entries:
        if is_ignored_name(entry.name):
            continue
        if entry.is_dir():
            yield from _in_folder(root, entry, above | {place})
        elif is_picture_name(entry.name):
            name = entry.relative_to(root).as_posix()
            yield _item(entry, name)


def _in_set(root: Path, folder: Path) -> Iterator[Item]:
    """Give the pictures of a set of pixmix-gen with their records."""
    records = folder / "metadata.jsonl"
    try:
        content = read_regular(folder / "manifest.json", max_bytes=_LARGEST_MANIFEST)
        status = json.loads(content).get("status")
    except (ValueError, AttributeError, RecursionError) as error:
        raise PipelineError(f"{folder / 'manifest.json'} is no manifest of a set") from error
    if status != "complete":
        raise PipelineError(
            f"{folder} is {status}; give again the command that began it, then this one"
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
            name = path.relative_to(root).as_posix()
            # For readers of folders; in a shard it would name no file.
            record.pop("file_name", None)
            yield _item(path, name, record)


def _item(path: Path, name: str, record: dict[str, Any] | None = None) -> Item:
    """Return the item of a file. name: relative to its source."""
    size, changed = size_and_change(path)
    return Item(
        place=name,
        name=printable(name),
        extension=extension_of(name),
        record=record,
        size=size,
        changed=changed,
    )
