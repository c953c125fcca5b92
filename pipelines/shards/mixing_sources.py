"""Pictures to mix with: our own sets, any folder of pictures, or the paper's archive as it is."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import PipelineError
from pipelines.shards.picture_files import Above, is_picture_name, place_of
from pipelines.shards.sources import Item, extension_of, printable
from pipelines.shards.tars import scan_tar


@dataclass(frozen=True, kw_only=True)
class MixingSource:
    """The pictures of folders and tars, one after the other, without labels.

    A tar is read where it lies and not unpacked. The line of JSON that a set of pixmix-gen has for
    each picture goes into the sample.
    """

    places: tuple[Path, ...]

    def kind(self) -> str:
        """Name what it is."""
        return "mixing"

    def settings(self) -> dict[str, Any]:
        """Return the names of the sources."""
        return {"sources": [place.resolve().name for place in self.places]}

    def foreign(self) -> bool:
        """Files of others, at least in part."""
        return True

    def classes(self) -> Sequence[str]:
        """None."""
        return ()

    def items(self) -> Iterator[Item]:
        """Give the pictures of each source: of a folder sorted by path, of a tar in its order.

        Raises:
            PipelineError: if a source is missing, an unfinished set, a damaged tar, or without a
                picture.
        """
        for number, place in enumerate(self.places):
            empty = True
            items = _in_folder(place, place, frozenset()) if place.is_dir() else _in_tar(place)
            for item in items:
                empty = False
                record = {"filename": item.name, **(item.record or {})}
                yield Item(
                    place=[number, item.place],
                    name=item.name,
                    extension=item.extension,
                    record=record,
                )
            if empty:
                raise PipelineError(
                    f"{place} holds no picture; name a folder of pictures, a set of pixmix-gen, or "
                    "a tar of pictures"
                )

    def read(self, place: Any) -> bytes:  # noqa: ANN401
        """Return the bytes of a picture."""
        number, where = place
        source: Path = self.places[number]
        if isinstance(where, str):
            return (source / where).read_bytes()
        offset, size = where
        with source.open("rb") as file:
            file.seek(offset)
            content: bytes = file.read(size)
            return content


def _in_tar(path: Path) -> Iterator[Item]:
    if not path.is_file():
        raise PipelineError(f"{path} does not exist; name a folder or a tar of pictures")
    for member in scan_tar(path):
        if is_picture_name(member.name):
            yield Item(
                place=[member.offset, member.size],
                name=printable(member.name),
                extension=extension_of(member.name),
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
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _in_folder(root, entry, above | {place})
        elif is_picture_name(entry.name):
            name = entry.relative_to(root).as_posix()
            yield Item(place=name, name=printable(name), extension=extension_of(name))


def _in_set(root: Path, folder: Path) -> Iterator[Item]:
    """Give the pictures of a set of pixmix-gen with their records."""
    records = folder / "metadata.jsonl"
    try:
        status = json.loads((folder / "manifest.json").read_bytes()).get("status")
    except (ValueError, AttributeError) as error:
        raise PipelineError(f"{folder / 'manifest.json'} is no manifest of a set") from error
    if status != "complete":
        raise PipelineError(
            f"{folder} is {status}; give again the command that began it, then this one"
        )
    with records.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                path = folder / record["file"]
                inside = path.resolve().is_relative_to(folder.resolve())
            except (ValueError, TypeError, KeyError) as error:
                raise PipelineError(f"{records}, line {number} is no record") from error
            if not inside:
                raise PipelineError(f"{records}, line {number} leads out of the set: {path}")
            name = path.relative_to(root).as_posix()
            # For readers of folders; in a shard it would name no file.
            record.pop("file_name", None)
            yield Item(place=name, name=name, extension=extension_of(name), record=record)
