"""What others made is looked at before it is used: tars get an index, image files are scanned.

`adopt_tars` writes the index and the manifest of tars that were made elsewhere. A `Scan` has the
files of a source that are nonstandard or cannot be decoded, before they go into shards.
"""

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from pipelines import __version__
from pipelines.errors import PipelineError
from pipelines.shards.format import (
    ADOPTED,
    INDEX_NAME,
    MANIFEST_NAME,
    SAMPLE,
    Manifest,
    open_index,
    read_index,
    read_manifest,
    write_index,
)
from pipelines.shards.images import (
    UPRIGHT,
    DecodeError,
    orientation,
    unusable_file,
    why_nonstandard,
)
from pipelines.shards.request import Listing, OnDecodeError, OnNonstandard
from pipelines.shards.sources import Item, Source
from pipelines.shards.tar import TAR_IMAGE_EXTENSIONS, Ignored, samples_of_tar
from pipelines.shards.verify import describe_tar
from pipelines.system.files import printable, read_regular, sha256, write_file
from pipelines.system.progress import Progress

_MAKE_AGAIN = "copy the shards again, or run the command that made them again"


CHUNK = 256
"""Images a process scans between two commits to the disk."""

_MOST_PART_BYTES = 2**26


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """What was found. labels: samples that have one; ignored: what is no sample, by reason."""

    folder: Path
    n_shards: int
    n_samples: int
    labels: int
    ignored: dict[str, int]
    examples: dict[str, str]


def adopt_tars(tars: Sequence[Path], *, name: str | None, progress: Progress) -> Adopted:
    """Scan tars of one folder and write its index and manifest; the tars stay as they are.

    Of a set that was made there the index alone is written again, where it is lost or damaged.

    Args:
        tars: in the order that the set gets.
        name: of the set; None for that of the folder.
        progress: called with tars that are scanned, and all of them.

    Raises:
        PipelineError: if the tars are of several folders, one is damaged, there is no sample, or
            the folder holds another set.
        OSError: if the folder cannot be written.
    """
    folder = _folder_of(tars)
    manifest = read_manifest(folder)
    _check_free(folder, manifest, {tar.name for tar in tars})
    made = manifest if manifest is not None and manifest.kind != ADOPTED else None
    if made is not None:
        tars = [folder / shard.file for shard in made.shards]
    ignored = Ignored()
    shards, parts = [], []
    progress(0, len(tars))
    for number, tar in enumerate(tars):
        if not tar.is_file():
            raise PipelineError(f"{tar} is not a file; name the tars of the set, all of them")
        rows, _ = samples_of_tar(tar, number, ignored)
        parts.append(rows)
        if made is None:
            shards.append(describe_tar(tar, len(rows)))
        progress(number + 1, len(tars))
    samples = np.concatenate(parts).astype(SAMPLE)
    if made is not None:
        file = io.BytesIO()
        np.save(file, samples, allow_pickle=False)
        if sha256(file.getvalue()) != made.index.sha256:
            raise PipelineError(
                f"the tars in {folder} are not those of {MANIFEST_NAME}; {_MAKE_AGAIN}"
            )
        write_file(folder / made.index.file, file.getvalue())
    elif len(samples) == 0:
        raise PipelineError(
            f"{folder}: the tars hold no sample with an image "
            f"({', '.join(sorted(TAR_IMAGE_EXTENSIONS))}); name tars of images"
        )
    else:
        write_index(
            folder,
            name=printable(name or folder.resolve().name),
            kind=ADOPTED,
            shards=shards,
            samples=samples,
            classes=[],
            extensions=[],
            settings={"found": ignored.counts},
            versions={"pixmix": __version__},
        )
    return Adopted(
        folder=folder,
        n_shards=len(parts),
        n_samples=len(samples),
        labels=int((samples["label"] >= 0).sum()),
        ignored=ignored.counts,
        examples=ignored.examples,
    )


def _folder_of(tars: Sequence[Path]) -> Path:
    if not tars:
        raise PipelineError("no tar is named; name those of the set, as shards/*.tar")
    elsewhere = [tar for tar in tars if tar.parent.resolve() != tars[0].parent.resolve()]
    if elsewhere:
        raise PipelineError(
            f"{tars[0]} and {elsewhere[0]} lie in two folders; a set is the tars of one folder: "
            "index each for itself"
        )
    if len({tar.name for tar in tars}) != len(tars):
        raise PipelineError("a tar is named twice; name each once")
    return tars[0].parent


def _check_free(folder: Path, manifest: Manifest | None, names: set[str]) -> None:
    """Check that nobody else's manifest or index would be overwritten, nor one that is whole."""
    path, index = folder / MANIFEST_NAME, folder / INDEX_NAME
    if manifest is None:
        # One of our form is what a killed run left.
        if index.exists() and not _is_index(index):
            raise PipelineError(f"{index} is in the way and belongs to no set; move it elsewhere")
        return
    others = sorted({shard.file for shard in manifest.shards} - names)
    if others:
        raise PipelineError(
            f"{path} is of a set that has {others[0]} too; name all of its tars, or give each set "
            "a folder of its own"
        )
    if manifest.kind != ADOPTED:
        try:
            read_index(folder, manifest)
        except PipelineError:
            return
        raise PipelineError(
            f"{path} belongs to a set that pixmix-shard made there; run pixmix-shard verify on it, "
            "or move the tars to a folder of their own"
        )


def _is_index(path: Path) -> bool:
    try:
        open_index(path, str(path), "")
    except PipelineError:
        return False
    return True


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
