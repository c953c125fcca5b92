"""Pictures to mix with: our own sets, any folder of pictures, or the paper's archive as it is."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import PipelineError
from pipelines.shards.archives import archived_images, read_archived
from pipelines.shards.picture_files import (
    Above,
    is_ignored_name,
    is_picture_name,
    place_of,
    read_image_file,
)
from pipelines.shards.pictures import encoder_version
from pipelines.shards.sources import Item, extension_of, size_and_change
from pipelines.system.files import open_regular, printable, read_regular

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
