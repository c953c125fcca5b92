"""From a picture's number to its file and its record: the work of one process."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from pipelines.generate.encoding import Picture, encode
from pipelines.generate.records import IMAGES, picture_name, to_line, write_part
from pipelines.system.files import sha256, write_files


class Painted(NamedTuple):
    """A picture, what is to be recorded of it, and how many drafts were drawn for it."""

    picture: Picture
    record: dict[str, Any]
    attempts: int


class Painter(Protocol):
    """A pure function from a picture's number to the picture.

    It is sent to worker processes, so it must be picklable; equal painters paint equal pictures.
    """

    def paint(self, pictures: range) -> Iterable[Painted]:
        """Paint pictures, in order; each is the same whatever range it is painted in."""
        ...

    def repaint(self, record: Mapping[str, Any]) -> Picture | None:
        """Paint a picture again from its record alone, None if it need not be alike here."""
        ...

    def kind(self) -> str:
        """Name what is painted, as the manifest says it."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return as plain JSON values all that the pictures depend on, besides their number."""
        ...

    def licence(self) -> str:
        """Return the licence of the pictures, as the manifest says it."""
        ...

    def versions(self) -> dict[str, Any]:
        """Return as plain JSON values the versions of code that the pictures depend on."""
        ...


def pixel_sha256(picture: Picture) -> str:
    """Return the SHA-256 of a picture's bytes, row by row, RGB."""
    return sha256(np.ascontiguousarray(picture).data)


class PictureFile(NamedTuple):
    """A picture as it is kept. number, name: of the file; record: what is known of it."""

    number: int
    name: str
    content: bytes
    record: dict[str, Any]


def paint_files(painter: Painter, format: str, pictures: range) -> Iterator[PictureFile]:
    """Paint a range of pictures and encode them, in order.

    Args:
        painter: what paints them.
        format: a key of `encoding.ENCODERS`.
        pictures: the picture numbers.
    """
    for index, painted in zip(pictures, painter.paint(pictures), strict=True):
        content = encode(painted.picture, format)
        name = picture_name(index, format)
        record = {
            "index": index,
            "file": f"{IMAGES}/{name}",
            **painted.record,
            "attempts": painted.attempts,
            "sha256": pixel_sha256(painted.picture),
            "file_sha256": sha256(content),
        }
        yield PictureFile(index, name, content, record)


def paint_chunk(painter: Painter, format: str, images: Path, parts: Path, pictures: range) -> range:
    """Paint a range of pictures to the disk, then commit their records.

    Args:
        painter: what paints them.
        format: a key of `encoding.ENCODERS`.
        images: the folder of the picture files.
        parts: the folder of the record parts.
        pictures: the picture numbers.

    Returns:
        The range, for the caller's books.

    Raises:
        OSError: if the disk is full or a folder cannot be written.
    """
    files = {}
    lines = []
    for picture in paint_files(painter, format, pictures):
        files[picture.name] = picture.content
        # By this name `load_dataset("imagefolder")` of Hugging Face finds the image of a line.
        lines.append(to_line(picture.record | {"file_name": picture.record["file"]}))
    write_files(images, files)
    write_part(parts, pictures, lines)
    return pictures
