"""Tars that were made elsewhere become a set: they are scanned and get an index and a manifest.

A look into files of others before they go into shards: which are odd, and which are broken.
"""

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipelines import __version__
from pipelines.errors import PipelineError
from pipelines.shards.format import (
    ADOPTED,
    INDEX_NAME,
    MANIFEST_NAME,
    MOST_MANIFEST_BYTES,
    SAMPLE,
    Manifest,
    open_index,
    parse_manifest,
    read_index,
    write_index,
)
from pipelines.shards.images import UPRIGHT, BrokenPictureError, oddity, orientation, unusable_file
from pipelines.shards.listing import Listing
from pipelines.shards.sources import Item, Source
from pipelines.shards.tar import PICTURE_EXTENSIONS, Left, samples_of_tar
from pipelines.shards.verify import describe_tar
from pipelines.system.files import printable, read_regular, sha256, write_file
from pipelines.system.progress import Progress

_MAKE_AGAIN = "copy the shards again, or give again the command that made them"


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """What was found. labels: samples that have one; left: what is no sample, by reason."""

    folder: Path
    n_shards: int
    n_samples: int
    labels: int
    left: dict[str, int]
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
            the folder holds a set that was made there.
        OSError: if the folder cannot be written.
    """
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
    folder = tars[0].parent
    _check_place(folder, {tar.name for tar in tars})
    made = _made_here(folder)
    if made is not None:
        return _restore_index(folder, made, progress)
    left = Left()
    shards, parts = [], []
    progress(0, len(tars))
    for number, tar in enumerate(tars):
        if not tar.is_file():
            raise PipelineError(f"{tar} is no file; name the tars of the set")
        rows, _ = samples_of_tar(tar, number, left)
        shards.append(describe_tar(tar, rows))
        parts.append(rows)
        progress(number + 1, len(tars))
    samples = np.concatenate(parts).astype(SAMPLE)
    if len(samples) == 0:
        raise PipelineError(
            f"{folder}: the tars hold no sample with a picture "
            f"({', '.join(sorted(PICTURE_EXTENSIONS))}); name tars of pictures"
        )
    write_index(
        folder,
        name=printable(name or folder.resolve().name),
        kind=ADOPTED,
        shards=shards,
        samples=samples,
        classes=[],
        extensions=[],
        settings={"found": left.counts},
        versions={"pixmix": __version__},
    )
    return Adopted(
        folder=folder,
        n_shards=len(shards),
        n_samples=len(samples),
        labels=int((samples["label"] >= 0).sum()),
        left=left.counts,
        examples=left.examples,
    )


def _check_place(folder: Path, names: set[str]) -> None:
    """See that nobody else's manifest or index would be overwritten."""
    path, index = folder / MANIFEST_NAME, folder / INDEX_NAME
    if not path.exists():
        # One of our form is what a killed run left.
        if index.exists() and not _is_index(index):
            raise PipelineError(f"{index} is in the way and belongs to no set; move it elsewhere")
        return
    manifest = parse_manifest(read_regular(path, max_bytes=MOST_MANIFEST_BYTES), str(path))
    others = sorted({shard.file for shard in manifest.shards} - names)
    if others:
        raise PipelineError(
            f"{path} is of a set that has {others[0]} too; name all of its tars, or give each set "
            "a folder of its own"
        )


def _made_here(folder: Path) -> Manifest | None:
    """Return the manifest of a folder's set if its tars were not made elsewhere and taken in.

    Raises:
        PipelineError: if nothing is to be done for it, for its index is whole.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        return None
    manifest = parse_manifest(read_regular(path, max_bytes=MOST_MANIFEST_BYTES), str(path))
    if manifest.kind == ADOPTED:
        return None
    try:
        read_index(folder, manifest)
    except PipelineError:
        return manifest
    raise PipelineError(
        f"{path} belongs to a set that pixmix-shard made there; run pixmix-shard verify on it, "
        "or move the tars to a folder of their own"
    )


def _restore_index(folder: Path, manifest: Manifest, progress: Progress) -> Adopted:
    """Write the index of a set that lost it, from the tars that its manifest lists.

    Raises:
        PipelineError: if the tars are not those of which the manifest was written.
        OSError: if one cannot be read, or the folder cannot be written.
    """
    left = Left()
    parts = []
    for number, shard in enumerate(manifest.shards):
        tar = folder / shard.file
        if not tar.is_file():
            raise PipelineError(f"{tar} is missing; {_MAKE_AGAIN}")
        rows, _ = samples_of_tar(tar, number, left)
        parts.append(rows)
        progress(number + 1, len(manifest.shards))
    samples = np.concatenate(parts).astype(SAMPLE)
    file = io.BytesIO()
    np.save(file, samples, allow_pickle=False)
    if sha256(file.getvalue()) != manifest.index.sha256:
        raise PipelineError(f"the tars in {folder} are not those of {MANIFEST_NAME}; {_MAKE_AGAIN}")
    write_file(folder / manifest.index.file, file.getvalue())
    return Adopted(
        folder=folder,
        n_shards=len(parts),
        n_samples=len(samples),
        labels=int((samples["label"] >= 0).sum()),
        left=left.counts,
        examples=left.examples,
    )


def _is_index(path: Path) -> bool:
    try:
        open_index(path, str(path), "")
    except PipelineError:
        return False
    return True


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
