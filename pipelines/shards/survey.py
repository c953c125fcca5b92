"""A look into files of others before they go into shards: which are odd, and which are broken."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines.errors import PipelineError
from pipelines.shards.listing import Listing
from pipelines.shards.picture_files import unusable_file
from pipelines.shards.pictures import UPRIGHT, BrokenPictureError, oddity, orientation
from pipelines.shards.sources import Item, Source
from pipelines.system.files import read_regular, write_file

OddFiles = Literal["keep", "convert", "skip", "fail"]
BrokenFiles = Literal["fail", "skip"]

_FOUND = ("odd", "broken", "turned")

CHUNK = 256
"""Pictures a process looks into between two commits to the disk."""


@dataclass
class Survey:
    """What was found: index of the picture -> reason, ascending.

    turned: those whose EXIF orientation is another than upright.
    """

    odd: dict[int, str] = field(default_factory=dict)
    broken: dict[int, str] = field(default_factory=dict)
    turned: dict[int, str] = field(default_factory=dict)

    def left_out(self, odd_files: OddFiles) -> set[int]:
        """Return the pictures that do not go into the shards."""
        return {*self.broken, *(self.odd if odd_files == "skip" else ())}

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many pictures there are of each reason."""
        found = {"odd": self.odd, "broken": self.broken}
        if self.turned:
            found["turned"] = self.turned
        return {what: dict(sorted(Counter(each.values()).items())) for what, each in found.items()}

    def lines(self, listing: Listing) -> bytes:
        """Return a line of JSON for each file that is odd or broken."""
        found = [
            *((index, "broken", reason) for index, reason in self.broken.items()),
            *((index, "odd", reason) for index, reason in self.odd.items()),
            *((index, "turned", reason) for index, reason in self.turned.items()),
        ]
        return b"".join(
            json.dumps(
                {"file": listing[index].name, "index": index, "found": what, "reason": reason},
                ensure_ascii=False,
            ).encode()
            + b"\n"
            for index, what, reason in sorted(found)
        )


def found_in(source: Source, item: Item) -> dict[str, str]:
    """Return what is unusual about a picture: "broken", or "odd", "turned" or both, and why.

    Raises:
        OSError: if the disk does not let it be read.
    """
    try:
        content = source.read(item.place)
        reason = oddity(content, item.extension)
    except BrokenPictureError as error:
        return {"broken": str(error)}
    except OSError as error:
        fault = unusable_file(error)
        if fault is None:
            raise
        return {"broken": fault}
    found = {"odd": reason} if reason else {}
    turn = orientation(content)
    return found if turn == UPRIGHT else {**found, "turned": f"EXIF orientation {turn}"}


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
        for what, reason in found_in(source, listing[index]).items():
            getattr(found, what)[index] = reason
    document = {
        "inputs": listing.fingerprint(pictures),
        **{name: list(getattr(found, name).items()) for name in _FOUND},
    }
    write_file(_part(parts, pictures), json.dumps(document).encode())
    return pictures


def missing_parts(parts: Path, listing: Listing) -> list[range]:
    """Return the chunks of pictures that were not looked into, or were changed since."""
    return [
        chunk
        for chunk in _chunks(len(listing))
        if _read_part(parts, chunk).get("inputs") != listing.fingerprint(chunk)
    ]


def join_parts(parts: Path, n: int) -> Survey:
    """Return what was found in all pictures.

    Raises:
        PipelineError: if a part is damaged.
        OSError: if one cannot be read.
    """
    survey = Survey()
    for chunk in _chunks(n):
        document = _read_part(parts, chunk)
        try:
            for name in _FOUND:
                found: dict[int, str] = getattr(survey, name)
                found.update((int(index), str(reason)) for index, reason in document[name])
        except (ValueError, KeyError, TypeError) as error:
            raise PipelineError(
                f"{_part(parts, chunk)} is damaged; remove it and run again"
            ) from error
    return survey


def _chunks(n: int) -> list[range]:
    return [range(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]


def _read_part(parts: Path, chunk: range) -> dict[str, Any]:
    """Return what a part says; nothing where it is missing or no JSON object."""
    try:
        document = json.loads(read_regular(_part(parts, chunk), max_bytes=2**26))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


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
