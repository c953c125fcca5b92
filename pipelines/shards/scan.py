"""Scan the images of a source before they go into shards.

A `Scan` lists the images that are nonstandard, cannot be decoded, or have an EXIF orientation.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec

from pipelines.errors import PipelineError
from pipelines.shards.images import (
    UPRIGHT,
    DecodeError,
    orientation,
    unusable_file,
    why_nonstandard,
)
from pipelines.shards.request import Listing, OnDecodeError, OnNonstandard
from pipelines.shards.sources import Item, Source
from pipelines.system.files import read_regular, write_file

CHUNK = 256
"""Images a process scans between two commits to the disk."""

_MOST_PART_BYTES = 2**26


@dataclass
class Scan:
    """What was found in the files of a source: index of the image -> reason, ascending.

    rotated: those whose EXIF orientation is another than upright.
    """

    nonstandard: dict[int, str] = field(default_factory=dict)
    undecodable: dict[int, str] = field(default_factory=dict)
    rotated: dict[int, str] = field(default_factory=dict)

    def skipped(self, on_nonstandard: OnNonstandard) -> set[int]:
        """Return the images that do not go into the shards."""
        return {*self.undecodable, *(self.nonstandard if on_nonstandard == "skip" else ())}

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many images there are of each reason."""
        return {
            what: dict(sorted(Counter(found.values()).items()))
            for what, found in asdict(self).items()
            if found or what != "rotated"
        }

    def lines(self, listing: Listing) -> bytes:
        """Return a line of JSON for each image in which something was found."""
        found = [
            (index, what, reason)
            for what, reasons in asdict(self).items()
            for index, reason in reasons.items()
        ]
        return b"".join(
            json.dumps(
                {"file": listing[index].name, "index": index, "found": what, "reason": reason},
                ensure_ascii=False,
            ).encode()
            + b"\n"
            for index, what, reason in sorted(found)
        )

    def refusal(
        self, listing: Listing, on_nonstandard: OnNonstandard, on_decode_error: OnDecodeError
    ) -> str | None:
        """Return why what was found may not go into shards, or None."""
        if self.undecodable and on_decode_error == "raise":
            what, found = "undecodable", self.undecodable
            remedy = "mend or remove them, or skip them with --on-decode-error skip"
        elif self.nonstandard and on_nonstandard == "raise":
            what, found = "nonstandard", self.nonstandard
            remedy = "choose --on-nonstandard keep, convert or skip"
        else:
            return None
        counts = ", ".join(f"{count} {reason}" for reason, count in Counter(found.values()).items())
        first = listing[min(found)].name
        return (
            f"{len(found)} of {len(listing)} images are {what} ({counts}), first {first}; {remedy}"
        )


class _Part(msgspec.Struct):
    """What was found in a range of images. inputs: fingerprint of their files."""

    inputs: str
    scan: Scan


def scan_image(source: Source, item: Item) -> dict[str, str]:
    """Return what was found in an image, by field of a `Scan`.

    Raises:
        OSError: if the disk does not let it be read.
    """
    try:
        content = source.read(item.place)
        reason = why_nonstandard(content, item.extension)
    except DecodeError as error:
        return {"undecodable": error.reason}
    except OSError as error:
        fault = unusable_file(error)
        if fault is None:
            raise
        return {"undecodable": fault}
    found = {"nonstandard": reason} if reason else {}
    turn = orientation(content)
    return found if turn == UPRIGHT else {**found, "rotated": f"EXIF orientation {turn}"}


def scan_range(source: Source, listing_path: Path, parts: Path, images: range) -> range:
    """Scan a range of images, and commit what was found as one part.

    Returns:
        The range, for the caller's books.

    Raises:
        OSError: if an image cannot be read, or the disk is full.
    """
    listing = Listing(listing_path)
    scan = Scan()
    for index in images:
        for what, reason in scan_image(source, listing[index]).items():
            getattr(scan, what)[index] = reason
    part = _Part(listing.fingerprint(images), scan)
    write_file(_part_path(parts, images), msgspec.json.encode(part))
    return images


def missing_parts(parts: Path, listing: Listing) -> list[range]:
    """Return the chunks of images that were not scanned, or were changed since."""
    missing = []
    for chunk in _chunks(len(listing)):
        part = _read_part(parts, chunk)
        if part is None or part.inputs != listing.fingerprint(chunk):
            missing.append(chunk)
    return missing


def join_parts(parts: Path, n: int) -> Scan:
    """Return what was found in all images.

    Raises:
        PipelineError: if a part is damaged.
        OSError: if one cannot be read.
    """
    scan = Scan()
    for chunk in _chunks(n):
        part = _read_part(parts, chunk)
        if part is None:
            raise PipelineError(f"{_part_path(parts, chunk)} is damaged; remove it and run again")
        scan.nonstandard |= part.scan.nonstandard
        scan.undecodable |= part.scan.undecodable
        scan.rotated |= part.scan.rotated
    return scan


def _chunks(n: int) -> list[range]:
    return [range(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]


def _read_part(parts: Path, chunk: range) -> _Part | None:
    """Return a part; None where it is missing or damaged."""
    try:
        content = read_regular(_part_path(parts, chunk), max_bytes=_MOST_PART_BYTES)
        return msgspec.json.decode(content, type=_Part)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _part_path(parts: Path, images: range) -> Path:
    return parts / f"{images.start:010d}-{images.stop:010d}.json"
