"""The records of a set: one JSON line a picture, first in parts, at the end in one file.

A part is written after the pictures that it records are on the disk, under the name of their
range, so a part is the proof of its pictures and a crash needs no repair. Parts may overlap where
two processes painted the same pictures; their lines are then the same.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import msgspec

from pipelines.errors import PipelineError
from pipelines.generate.plan import ranges_of, subtract
from pipelines.system.files import Count, Sha256, new_file, open_regular, read_json, write_file

IMAGES = "images"
"""The folder of the pictures in that of their set."""

_PART_NAME = re.compile(r"(\d{8,12})-(\d{8,12})\.jsonl", re.ASCII)

_AGAIN = "give the command that made the set again, as each of its tasks, to paint it again"


class _Fields(msgspec.Struct):
    """What a set needs of a record."""

    index: Count
    file: str
    file_sha256: Sha256
    attempts: Annotated[int, msgspec.Meta(ge=1, le=2**48)]


@dataclass(frozen=True)
class Part:
    """A file of records: line k is picture `pictures[k]`."""

    path: Path
    pictures: range


def picture_name(index: int, format: str) -> str:
    """Return the file name of a picture, as "00000042.jpg"."""
    return f"{index:08d}.{format}"


def to_line(record: Mapping[str, Any]) -> bytes:
    """Return a record as its line of JSON, newline included.

    Raises:
        ValueError: for a number that JSON does not have (NaN, infinity).
    """
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def from_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """Read a record back from line `number` (from 1) of a file.

    Raises:
        PipelineError: if it is not a line with a JSON object.
    """
    record = read_json(line, dict[str, Any], f"{path}, line {number}", _AGAIN)
    if not line.endswith(b"\n"):
        raise PipelineError(f"{path}, line {number} has no end; {_AGAIN}")
    return record


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Read the records of a part or of the finished metadata, one at a time.

    Raises:
        PipelineError: if a line is not a JSON object.
        OSError: if the file cannot be read.
    """
    with open_regular(path) as file:
        for number, line in enumerate(file, start=1):
            yield from_line(line, path, number)


def is_of(record: Mapping[str, Any], index: int, format: str) -> bool:
    """See whether a record is that of a picture, with what sets need of it.

    Args:
        record: it.
        index: the picture's number.
        format: of its file, a key of `encoding.ENCODERS`.
    """
    try:
        fields = msgspec.convert(record, _Fields)
    except msgspec.ValidationError:
        return False
    return fields.index == index and fields.file == f"{IMAGES}/{picture_name(index, format)}"


def write_part(folder: Path, pictures: range, lines: Sequence[bytes]) -> None:
    """Commit the records of a range of pictures that are on the disk.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    write_file(folder / f"{pictures.start:08d}-{pictures.stop:08d}.jsonl", b"".join(lines))


def find_parts(metadata: Path, folder: Path) -> list[Part]:
    """Return the parts of a set: its metadata file, where there is one, and those in the folder.

    Raises:
        OSError: if they cannot be read.
    """
    parts = []
    if metadata.exists():
        with open_regular(metadata) as file:
            parts.append(Part(metadata, range(sum(1 for _ in file))))
    # Programs that synchronize folders leave files of other names.
    names = [(path, _PART_NAME.fullmatch(path.name)) for path in sorted(folder.glob("*.jsonl"))]
    parts += [Part(path, range(int(name[1]), int(name[2]))) for path, name in names if name]
    return parts


def damaged(part: Part, wanted: Sequence[range], format: str) -> list[range]:
    """Find the pictures of which a part has no record in their place.

    Args:
        part: it.
        wanted: those of its pictures that are looked for, ascending.
        format: of their files.

    Raises:
        OSError: if the part cannot be read.
    """
    if not wanted:
        return []
    faulty = []
    with open_regular(part.path) as file:
        position = part.pictures.start
        for pictures in wanted:
            lines = islice(file, pictures.start - position, pictures.stop - position)
            position = pictures.stop
            # A part that ends too soon gives empty lines, which are no records.
            faulty += [index for index in pictures if not _holds(next(lines, b""), index, format)]
    return ranges_of(faulty)


def _holds(line: bytes, index: int, format: str) -> bool:
    try:
        return is_of(from_line(line, Path(), 0), index, format)
    except PipelineError:
        return False


def forget(part: Part, pictures: Sequence[range], folder: Path) -> None:
    """Drop pictures from a part, so that they will be painted again.

    What stays is written to smaller parts before the old one goes: a crash in between loses
    nothing.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    with open_regular(part.path) as file:
        position = part.pictures.start
        for kept in subtract(part.pictures, pictures):
            lines = islice(file, kept.start - position, kept.stop - position)
            write_part(folder, kept, list(lines))
            position = kept.stop
    part.path.unlink()


def merge(parts: Iterable[Part], n: int, metadata: Path, format: str) -> int:
    """Write the records of pictures 0..n-1 to one file, in order.

    Args:
        parts: parts that together hold all n.
        n: number of pictures.
        metadata: the file to write; it may be one of the parts.
        format: of the files of the pictures.

    Returns:
        The number of drafts that were drawn for the n pictures: the sum of their "attempts".

    Raises:
        PipelineError: if a part has a line that is not the record of its picture.
        OSError: if the disk is full or the folder cannot be written.
    """
    drafts = 0
    following = 0
    with new_file(metadata) as file:
        for part in sorted(parts, key=lambda part: part.pictures.start):
            if part.pictures.start > following:
                break
            with open_regular(part.path) as lines:
                start, stop = part.pictures.start, min(part.pictures.stop, n)
                for line in islice(lines, following - start, stop - start):
                    record = from_line(line, part.path, following - start + 1)
                    if not is_of(record, following, format):
                        raise PipelineError(
                            f"{part.path}, line {following - start + 1} is not the record of "
                            f"picture {following}; {_AGAIN}"
                        )
                    drafts += record["attempts"]
                    file.write(line)
                    following += 1
        if following != n:
            raise PipelineError(
                f"the records of {metadata.parent} end at picture {following} of {n}; "
                "run the same command again"
            )
    return drafts
