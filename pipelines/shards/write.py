"""A set of shards on disk, made by any number of processes and runs.

    FOLDER/NAME-00.tar ...       the shards, and DALI's NAME-00.idx if asked for
           sizes.json, _info.json, wids.json
           scan.jsonl       files of the source that were odd or broken, if any
           index.npy
           manifest.json         last of all
           .work/                what a set in the making needs; goes at the end

A shard is the unit of work: first its tar, then its sidecar in .work/done, which says that the tar
is whole, and what its files were like. A run makes the shards without a sidecar and those whose
files were changed since, so the same command continues a killed one; and it mends a finished set
that lost a file, from the tars that are as its manifest says.
"""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import __version__
from pipelines.errors import PipelineError
from pipelines.shards.adopt import (
    Scan,
    join_parts,
    missing_parts,
    scan_range,
)
from pipelines.shards.exports import (
    SCAN_NAME,
    dali_index,
    export_documents,
    write_json,
)
from pipelines.shards.finished import (
    changed_since,
    check_contents,
    open_complete,
    sidecars_of_whole,
)
from pipelines.shards.format import (
    MANIFEST_NAME,
    MOST_MANIFEST_BYTES,
    Manifest,
    parse_manifest,
    write_index,
)
from pipelines.shards.listing import Listed, Listing, first_difference, write_listing
from pipelines.shards.members import sample_of
from pipelines.shards.request import (
    SHARDS_VERSION,
    ShardRequest,
    bounds,
    indices_of,
    shard_name,
    shard_settings,
    shuffled,
)
from pipelines.shards.sidecars import join_sidecars, parse_sidecar, write_tar
from pipelines.system.files import (
    PARTIAL_SUFFIX,
    check_no_file,
    folder_lock,
    new_file,
    read_regular,
    remove_partial_files,
    sha256,
    world_errors,
    write_file,
)
from pipelines.system.processes import Run
from pipelines.system.progress import Progress

_OF_FILES = frozenset({"source_pictures", "source_sha256"})
"""Settings that tell which files the source has."""


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What a run did. written: shards by this run; found: odd and broken files by reason."""

    folder: Path
    n_samples: int
    n_shards: int
    n_bytes: int
    written: int
    skipped: int
    found: dict[str, dict[str, int]]


def make_shards(request: ShardRequest, *, run: Run, progress: Progress) -> ShardResult:
    """Make a set of shards, or continue one.

    Every byte depends on the source and the request without `jobs`: not on the number of
    processes, nor on interruptions.

    Args:
        request: what to make.
        run: how chunks of work are run.
        progress: called with the pictures that are done, looked into and written, and their number.

    Returns:
        What was done.

    Raises:
        PipelineError: if the folder holds something else or a set with other settings, cannot be
            written, or is in use by another run; if the source is missing, damaged, or has files
            that the request does not allow; if disk or memory run out.
        KeyboardInterrupt: on Ctrl-C, after the shards in hand are on the disk.
    """
    with world_errors(request.folder, jobs=request.jobs):
        _check_folder(request.folder)
        # Before anything is made: a source that is not there leaves no folder behind.
        request.source.classes()
        request.work.mkdir(parents=True, exist_ok=True)
        busy = f"another run is writing to {request.folder}; wait for it, or choose another OUT"
        with folder_lock(request.work / "lock", busy=busy):
            listed = write_listing(request.listing, request.source.items())
            settings = shard_settings(request, listed)
            manifest = _earlier(request, settings)
            opened = None
            # Unless a run that was mending it was killed.
            if manifest is not None and not (request.work / "done").exists():
                opened = open_complete(request.folder, manifest)
            if manifest is not None and opened is not None:
                check_contents(request, opened)
                progress(listed.n, listed.n)
                result = _result(request, manifest, written=0, n=listed.n)
            else:
                result = _make(request, settings, listed, manifest, run, progress)
            # With the lock in it, and while it is held: afterwards another run may have begun.
            shutil.rmtree(request.work, ignore_errors=True)
            return result


def _make(
    request: ShardRequest,
    settings: dict[str, Any],
    listed: Listed,
    manifest: Manifest | None,
    run: Run,
    progress: Progress,
) -> ShardResult:
    """Make the shards that are missing. manifest: of a finished set that is to be mended."""
    n = listed.n
    scan = Scan()
    steps = n
    if request.source.foreign():
        steps = 2 * n
        scan = _scan(request, n, run, lambda done: progress(done, steps))
    listing = Listing(request.listing)
    skipped = scan.skipped(request.on_nonstandard)
    kept = np.array([index for index in range(n) if index not in skipped], np.int64)
    if not len(kept):
        raise PipelineError(f"none of the {n} images is left to write; choose another SRC")
    _check_classes(request, listing, kept, skipped)
    num_shards = request.num_shards or math.ceil(len(kept) / (request.shard_size or 1))
    if not 0 < num_shards <= len(kept):
        raise PipelineError(
            f"{len(kept)} pictures cannot fill {num_shards} shards; ask for at least 1 and at most "
            f"{len(kept)} with --num-shards, or for a smaller --shard-size"
        )
    order = kept[shuffled(len(kept), request.seed)]
    with new_file(request.work / "order.npy") as file:
        np.save(file, order)
    # From here on the settings bind: the shards to come are those of these.
    write_json(request.work / "request.json", settings)
    (request.work / "done").mkdir(exist_ok=True)
    if manifest is not None:
        for number, sidecar in sidecars_of_whole(request, manifest, listing, order):
            write_file(_sidecar(request, number), json.dumps(sidecar).encode())
    else:
        _remove_other_shards(request, num_shards)
    missing = [
        range(shard, shard + 1)
        for shard in range(num_shards)
        if not _is_done(request, shard, num_shards, listing, order)
    ]
    before = steps - sum(len(bounds(len(kept), num_shards, chunk.start)) for chunk in missing)
    progress(before, steps)
    done = before

    def finished(chunk: range) -> None:
        nonlocal done
        done += len(bounds(len(kept), num_shards, chunk.start))
        progress(done, steps)

    if missing:
        work = partial(_write_shard, request, num_shards)
        run(work, missing, jobs=min(request.jobs, len(missing)), finished=finished)
    _check_unchanged(request, listed)
    _finish(request, settings, scan, listing, num_shards)
    path = request.folder / MANIFEST_NAME
    manifest = parse_manifest(read_regular(path, max_bytes=MOST_MANIFEST_BYTES), str(path))
    return _result(request, manifest, written=len(missing), n=n)


def _check_classes(
    request: ShardRequest, listing: Listing, kept: NDArray[np.int64], skipped: set[int]
) -> None:
    """Refuse classes of which no image is left, as an empty folder is refused."""
    emptied = {listing[index].label for index in skipped} - {-1}
    for index in kept.tolist() if emptied else ():
        emptied.discard(listing[index].label)
    if emptied:
        name = request.source.classes()[min(emptied)]
        raise PipelineError(
            f"no image of class {name!r} is left, for all of its files are broken or skipped, so "
            "its class would be empty; put whole images into its folder or remove it"
        )


def _check_unchanged(request: ShardRequest, listed: Listed) -> None:
    """See that the source is still what was listed at the beginning.

    Raises:
        PipelineError: if not; the same command makes the shards of the changed files again.
    """
    path = request.work / "listing-at-the-end.jsonl"
    if write_listing(path, request.source.items()).dated_sha256 == listed.dated_sha256:
        return
    name = first_difference(Listing(request.listing), Listing(path))
    raise PipelineError(
        f"the source was changed while its shards were written (first {name}); give the same "
        "command again when nothing writes to it"
    )


def _remove_other_shards(request: ShardRequest, num_shards: int) -> None:
    """Remove tars of this name that an earlier run wrote when the source had other images."""
    own = {shard_name(request.name, number, num_shards) for number in range(num_shards)}
    numbered = re.compile(rf"{re.escape(request.name)}-\d+\.(tar|idx)")
    for path in request.folder.iterdir():
        if numbered.fullmatch(path.name) and path.with_suffix(".tar").name not in own:
            path.unlink()


def _scan(
    request: ShardRequest,
    n: int,
    run: Run,
    progress: Callable[[int], None],
) -> Scan:
    """Scan all files, or take up what an earlier run found in the same ones."""
    parts = request.work / "scan"
    parts.mkdir(exist_ok=True)
    listing = Listing(request.listing)
    missing = missing_parts(parts, listing)
    done = n - sum(map(len, missing))
    progress(done)

    def finished(chunk: range) -> None:
        nonlocal done
        done += len(chunk)
        progress(done)

    if missing:
        work = partial(scan_range, request.source, request.listing, parts)
        run(work, missing, jobs=min(request.jobs, len(missing)), finished=finished)
    scan = join_parts(parts, n)
    if not request.exif_transpose:
        scan.rotated.clear()
    refusal = scan.refusal(listing, request.on_nonstandard, request.on_decode_error)
    if refusal:
        write_file(request.work / SCAN_NAME, scan.lines(listing))
        raise PipelineError(f"{refusal} (all of them: {request.work / SCAN_NAME})")
    return scan


def _write_shard(request: ShardRequest, num_shards: int, shards: range) -> range:
    """Write shards and commit each with its sidecar; the work of one process."""
    listing = Listing(request.listing)
    order = np.load(request.work / "order.npy", mmap_mode="r")
    for shard in shards:
        path = request.folder / shard_name(request.name, shard, num_shards)
        indices = indices_of(order, num_shards, shard)
        samples = (sample_of(request, listing, index) for index in indices)
        sidecar = write_tar(path, samples) | {"inputs": listing.fingerprint(indices)}
        if request.dali_index:
            write_file(path.with_suffix(".idx"), dali_index(path))
        write_file(_sidecar(request, shard), json.dumps(sidecar).encode())
    return shards


def _finish(
    request: ShardRequest,
    settings: dict[str, Any],
    scan: Scan,
    listing: Listing,
    num_shards: int,
) -> None:
    """Write what speaks of all shards, the manifest last."""
    joined = join_sidecars(_whole_sidecar(request, number) for number in range(num_shards))
    documents = export_documents(request.name, request.split, joined.shards, joined.md5)
    for file, document in documents.items():
        write_json(request.folder / file, document)
    found: dict[str, Any] = {"found": scan.counts()}
    odd = scan.lines(listing)
    if odd:
        write_file(request.folder / SCAN_NAME, odd)
        found["found_sha256"] = sha256(odd)
    else:
        # Of a run that was killed before its files were mended.
        (request.folder / SCAN_NAME).unlink(missing_ok=True)
    remove_partial_files(request.folder)
    write_index(
        request.folder,
        name=request.name,
        kind=request.source.kind(),
        shards=joined.shards,
        samples=joined.samples,
        classes=request.source.classes(),
        extensions=joined.extensions,
        settings=settings | found,
        versions={"pixmix": __version__, "shards_version": SHARDS_VERSION},
    )


def _earlier(request: ShardRequest, settings: dict[str, Any]) -> Manifest | None:
    """See that what lies in the folder is of these settings; return its manifest if it is complete.

    Raises:
        PipelineError: if a setting differs.
    """
    manifest: Manifest | None = None
    path = request.folder / MANIFEST_NAME
    if path.exists():
        manifest = _finished(path)
        before = manifest.settings
    elif any((request.work / "done").glob("*.json")):
        before = _begun_with(request.work / "request.json")
        # A killed run's shards are held to their own files: those that were changed are written
        # again.
        settings = {name: value for name, value in settings.items() if name not in _OF_FILES}
    else:
        return None
    for field, now in settings.items():
        if before.get(field) != now:
            what = f"{before.get(field)}, this command says {now}"
            if manifest is not None and field in _OF_FILES:
                newer = changed_since(Listing(request.listing), path)
                named = f"; {Listing(request.listing)[min(newer)].name} is newer" if newer else ""
                what += f" (of the files in the source{named})"
            raise PipelineError(
                f"{field}: {request.folder} was begun with {what}; repeat the first, or choose "
                "another OUT"
            )
    return manifest


def _finished(path: Path) -> Manifest:
    """Return the manifest of a finished set.

    Raises:
        PipelineError: if it is damaged.
    """
    try:
        return parse_manifest(read_regular(path, max_bytes=MOST_MANIFEST_BYTES), str(path))
    except PipelineError as error:
        raise PipelineError(
            f"{path} is damaged, or another program's; remove {path.parent} and give the command "
            "again, or choose another OUT"
        ) from error


def _begun_with(path: Path) -> dict[str, Any]:
    """Return the settings that a set in the making was begun with.

    Raises:
        PipelineError: if the file is damaged.
    """
    try:
        settings = json.loads(read_regular(path, max_bytes=MOST_MANIFEST_BYTES))
    except (OSError, ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise PipelineError(
            f"{path} is damaged, which says what the shards beside it were begun with; remove "
            f"{path.parent.parent} and give the command again"
        )
    return settings


def _check_folder(folder: Path) -> None:
    check_no_file(folder, "OUT")
    if not folder.exists():
        return
    if (folder / MANIFEST_NAME).exists() or (folder / ".work").exists():
        return
    others = [
        entry.name for entry in sorted(folder.iterdir()) if not entry.name.endswith(PARTIAL_SUFFIX)
    ]
    if others:
        raise PipelineError(
            f"{folder} holds something else ({others[0]}); choose an empty or a new folder for "
            f"OUT, or, if it is a set that lost its {MANIFEST_NAME}, remove {folder} first"
        )


def _result(request: ShardRequest, manifest: Manifest, *, written: int, n: int) -> ShardResult:
    return ShardResult(
        folder=request.folder,
        n_samples=manifest.num_samples,
        n_shards=len(manifest.shards),
        n_bytes=sum(shard.n_bytes for shard in manifest.shards),
        written=written,
        skipped=n - manifest.num_samples,
        found=manifest.settings["found"],
    )


def _sidecar(request: ShardRequest, shard: int) -> Path:
    return request.work / "done" / f"{shard:06d}.json"


def _read_sidecar(request: ShardRequest, shard: int) -> dict[str, Any] | None:
    """Return what a shard's sidecar says, None where there is none or it is damaged."""
    try:
        return parse_sidecar(read_regular(_sidecar(request, shard), max_bytes=MOST_MANIFEST_BYTES))
    except FileNotFoundError:
        return None


def _whole_sidecar(request: ShardRequest, shard: int) -> dict[str, Any]:
    sidecar = _read_sidecar(request, shard)
    if sidecar is None:
        raise PipelineError(
            f"{_sidecar(request, shard)} was damaged or removed meanwhile; give the command again"
        )
    return sidecar


def _is_done(
    request: ShardRequest,
    shard: int,
    num_shards: int,
    listing: Listing,
    order: NDArray[np.int64],
) -> bool:
    """Return whether a shard is whole, and made from files that are as they were then."""
    sidecar = _read_sidecar(request, shard)
    path = request.folder / shard_name(request.name, shard, num_shards)
    return (
        sidecar is not None
        and sidecar["file"] == path.name
        and path.is_file()
        and path.stat().st_size == sidecar["bytes"]
        and sidecar.get("inputs") == listing.fingerprint(indices_of(order, num_shards, shard))
    )
