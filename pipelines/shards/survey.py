"""A look into files of others before they go into shards: which are odd, and which are broken."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipelines.errors import PipelineError
from pipelines.shards.files import write_file
from pipelines.shards.listing import Listing
from pipelines.shards.pictures import BrokenPictureError, oddity
from pipelines.shards.sources import Source

OddFiles = Literal["keep", "convert", "skip", "fail"]
BrokenFiles = Literal["fail", "skip"]

CHUNK = 256
"""Pictures a process looks into between two commits to the disk."""


@dataclass
class Survey:
    """What was found: index of the picture -> reason, ascending."""

    odd: dict[int, str] = field(default_factory=dict)
    broken: dict[int, str] = field(default_factory=dict)

    def left_out(self, odd_files: OddFiles) -> set[int]:
        """Return the pictures that do not go into the shards."""
        return {*self.broken, *(self.odd if odd_files == "skip" else ())}

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many pictures there are of each reason."""
        return {
            "odd": dict(sorted(Counter(self.odd.values()).items())),
            "broken": dict(sorted(Counter(self.broken.values()).items())),
        }

    def lines(self, listing: Listing) -> bytes:
        """Return a line of JSON for each file that is odd or broken."""
        found = [
            *((index, "broken", reason) for index, reason in self.broken.items()),
            *((index, "odd", reason) for index, reason in self.odd.items()),
        ]
        return b"".join(
            json.dumps(
                {"file": listing[index].name, "found": what, "reason": reason}, ensure_ascii=False
            ).encode()
            + b"\n"
            for index, what, reason in sorted(found)
        )


def look_into(source: Source, listing_path: Path, parts: Path, pictures: range) -> range:
    """Look into a range of pictures, and commit what was found as one part.

    Returns:
        The range, for the caller's books.

    Raises:
        OSError: if a picture cannot be read, or the disk is full.
    """
    listing = Listing(listing_path)
    found = Survey()
    for index in pictures:
        item = listing[index]
        try:
            reason = oddity(source.read(item.place), item.extension)
        except BrokenPictureError as error:
            found.broken[index] = str(error)
        else:
            if reason:
                found.odd[index] = reason
    document = {"odd": list(found.odd.items()), "broken": list(found.broken.items())}
    write_file(_part(parts, pictures), json.dumps(document).encode())
    return pictures


def missing_parts(parts: Path, n: int) -> list[range]:
    """Return the ranges of pictures that nobody has looked into yet."""
    chunks = [range(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
    return [chunk for chunk in chunks if not _part(parts, chunk).exists()]


def join_parts(parts: Path, n: int) -> Survey:
    """Return what was found in all pictures.

    Raises:
        PipelineError: if a part is damaged.
        OSError: if one cannot be read.
    """
    survey = Survey()
    for start in range(0, n, CHUNK):
        path = _part(parts, range(start, min(start + CHUNK, n)))
        try:
            document = json.loads(path.read_bytes())
            survey.odd.update((int(index), str(reason)) for index, reason in document["odd"])
            survey.broken.update((int(index), str(reason)) for index, reason in document["broken"])
        except (ValueError, KeyError, TypeError) as error:
            raise PipelineError(f"{path} is damaged; remove it and run again") from error
    return survey


def forget_parts(parts: Path, pictures: Iterable[int], n: int) -> None:
    """Forget what was found in the parts of some pictures, so that they are looked into again."""
    for start in {index // CHUNK * CHUNK for index in pictures}:
        _part(parts, range(start, min(start + CHUNK, n))).unlink(missing_ok=True)


def refuse(
    survey: Survey, listing: Listing, *, odd_files: OddFiles, broken_files: BrokenFiles
) -> str | None:
    """Return why what was found may not go into shards, or None."""
    if survey.broken and broken_files == "fail":
        remedy = "mend or remove them, or leave them out with --broken-files skip"
        return _refusal("broken", survey.broken, listing, remedy)
    if survey.odd and odd_files == "fail":
        remedy = "choose --odd-files keep, convert or skip"
        return _refusal("odd", survey.odd, listing, remedy)
    return None


def _refusal(what: str, found: dict[int, str], listing: Listing, remedy: str) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in Counter(found.values()).items())
    first = listing[min(found)].name
    return f"{len(found)} of {len(listing)} pictures are {what} ({counts}), first {first}; {remedy}"


def _part(parts: Path, pictures: range) -> Path:
    return parts / f"{pictures.start:010d}-{pictures.stop:010d}.json"
