"""Scan the images of a source before they are written into shards.

A `Scan` lists the images that are nonstandard, cannot be decoded, or have an EXIF orientation.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.shards.images import (
    UPRIGHT,
    DecodeError,
    orientation,
    unusable_file,
    why_nonstandard,
)
from pipelines.shards.request import Listing, OnDecodeError, OnNonstandard, ShardRequest
from pipelines.shards.sources import Item, Source
from pipelines.shards.writer import SCAN_NAME
from pipelines.system.files import read_regular, write_file
from pipelines.system.processes import RunChunks

CHUNK = 256
"""Images that a process scans before it writes the results to the disk."""

_MAX_PART_BYTES = 2**26


@dataclass
class Scan:
    """The images of a source that need a decision: index of the image -> reason, ascending.

    Attributes:
        nonstandard: images that some readers do not support.
        undecodable: images that cannot be decoded.
        rotated: images whose EXIF orientation is not upright.
    """

    nonstandard: dict[int, str] = field(default_factory=dict)
    undecodable: dict[int, str] = field(default_factory=dict)
    rotated: dict[int, str] = field(default_factory=dict)

    def skipped(self, on_nonstandard: OnNonstandard) -> set[int]:
        """Return the indices of the images that are in no shard."""
        return {*self.undecodable, *(self.nonstandard if on_nonstandard == "skip" else ())}

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of images by category and reason."""
        return {
            category: dict(sorted(Counter(reasons.values()).items()))
            for category, reasons in asdict(self).items()
            if reasons or category != "rotated"
        }

    def lines(self, listing: Listing) -> bytes:
        """Return a line of JSON for each image of the scan."""
        entries = sorted(
            (index, category, reason)
            for category, reasons in asdict(self).items()
            for index, reason in reasons.items()
        )
        return b"".join(
            json.dumps(
                {
                    "file": listing[index].name,
                    "index": index,
                    "category": category,
                    "reason": reason,
                },
                ensure_ascii=False,
            ).encode()
            + b"\n"
            for index, category, reason in entries
        )

    def refusal(
        self, listing: Listing, on_nonstandard: OnNonstandard, on_decode_error: OnDecodeError
    ) -> str | None:
        """Return the error for images that the options do not allow, or None."""
        if self.undecodable and on_decode_error == "raise":
            category, reasons = "undecodable", self.undecodable
            remedy = "repair or remove them, or skip them with --on-decode-error skip"
        elif self.nonstandard and on_nonstandard == "raise":
            category, reasons = "nonstandard", self.nonstandard
            remedy = "use --on-nonstandard keep, convert or skip"
        else:
            return None
        counts = ", ".join(f"{n} {reason}" for reason, n in Counter(reasons.values()).items())
        return (
            f"{len(reasons)} of {len(listing)} images are {category} ({counts}), the first is "
            f"{listing[min(reasons)].name}; {remedy}"
        )


class _Part(msgspec.Struct):
    """The scan of a range of images, with the fingerprint of their files."""

    fingerprint: str
    scan: Scan


def scan_image(source: Source, item: Item) -> dict[str, str]:
    """Return category -> reason for an image, empty if it needs no decision.

    Raises:
        OSError: if the disk fails.
    """
    try:
        content = source.read(item.place)
        reason = why_nonstandard(content, item.extension)
    except DecodeError as error:
        return {"undecodable": error.reason}
    except OSError as error:
        unusable = unusable_file(error)
        if unusable is None:
            raise
        return {"undecodable": unusable}
    found = {"nonstandard": reason} if reason else {}
    rotation = orientation(content)
    return found if rotation == UPRIGHT else {**found, "rotated": f"EXIF orientation {rotation}"}


def _scan_range(source: Source, listing_path: Path, parts: Path, images: range) -> range:
    """Scan a range of images, write the results as one part, and return the range.

    Raises:
        OSError: if an image cannot be read, or the disk is full.
    """
    listing = Listing(listing_path)
    scan = Scan()
    for index in images:
        for category, reason in scan_image(source, listing[index]).items():
            getattr(scan, category)[index] = reason
    part = _Part(listing.fingerprint(images), scan)
    write_file(_part_path(parts, images), msgspec.json.encode(part))
    return images


def _missing_parts(parts: Path, listing: Listing) -> list[range]:
    """Return the chunks of images that are not scanned, or have changed since."""
    missing = []
    for chunk in _chunks(len(listing)):
        part = _read_part(parts, chunk)
        if part is None or part.fingerprint != listing.fingerprint(chunk):
            missing.append(chunk)
    return missing


def _join_parts(parts: Path, n: int) -> Scan:
    """Return the scan of all images.

    Raises:
        PipelineError: if a part is damaged.
        OSError: if a part cannot be read.
    """
    scan = Scan()
    for chunk in _chunks(n):
        part = _read_part(parts, chunk)
        if part is None:
            raise PipelineError(
                f"{_part_path(parts, chunk)} is damaged; remove it and run the command again"
            )
        scan.nonstandard |= part.scan.nonstandard
        scan.undecodable |= part.scan.undecodable
        scan.rotated |= part.scan.rotated
    return scan


def _chunks(n: int) -> list[range]:
    return [range(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]


def _read_part(parts: Path, chunk: range) -> _Part | None:
    """Return a part; None if it is missing or damaged."""
    try:
        content = read_regular(_part_path(parts, chunk), max_bytes=_MAX_PART_BYTES)
        return msgspec.json.decode(content, type=_Part)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _part_path(parts: Path, images: range) -> Path:
    return parts / f"{images.start:010d}-{images.stop:010d}.json"


def scan_source(
    request: ShardRequest, n: int, run: RunChunks, progress: Callable[[int], None]
) -> None:
    """Scan the files that are new, or have changed since an earlier run scanned them.

    Raises:
        PipelineError: if the request does not allow some of them.
    """
    parts = _parts_folder(request)
    parts.mkdir(exist_ok=True)
    listing = Listing(request.listing)
    missing = _missing_parts(parts, listing)
    done = n - sum(map(len, missing))
    progress(done)

    def finished(chunk: range) -> None:
        nonlocal done
        done += len(chunk)
        progress(done)

    if missing:
        work = partial(_scan_range, request.source, request.listing, parts)
        run(work, missing, jobs=min(request.jobs, len(missing)), finished=finished)
    scan = scan_results(request, n)
    refusal = scan.refusal(listing, request.on_nonstandard, request.on_decode_error)
    if refusal:
        path = request.store.work / SCAN_NAME
        write_file(path, scan.lines(listing))
        raise PipelineError(f"{refusal} (all of them: {path})")


def scan_results(request: ShardRequest, n: int) -> Scan:
    """Return the results of the scan."""
    if not request.source.needs_scan():
        return Scan()
    scan = _join_parts(_parts_folder(request), n)
    if not request.exif_transpose:
        scan.rotated.clear()
    return scan


def _parts_folder(request: ShardRequest) -> Path:
    return request.store.work / "scan"


def check_classes(
    request: ShardRequest, listing: Listing, kept: NDArray[np.int64], skipped: set[int]
) -> None:
    """Refuse a class whose images are all skipped, as an empty class folder is refused."""
    emptied = {listing[index].label for index in skipped} - {-1}
    for index in kept.tolist() if emptied else ():
        emptied.discard(listing[index].label)
    if emptied:
        name = request.source.classes()[min(emptied)]
        raise PipelineError(
            f"class {name!r} would be empty, because all of its files are skipped; put images that "
            "can be decoded into its folder, or remove the folder"
        )
