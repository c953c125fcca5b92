"""A set of shards on disk, made by any number of processes and runs.

    FOLDER/NAME-00.tar ...       the shards, and DALI's NAME-00.idx if asked for
           sizes.json, _info.json, wids.json
           odd-files.jsonl       files of the source that were odd or broken, if any
           index.npy
           manifest.json         last of all
           .work/                what a set in the making needs; goes at the end

A shard is the unit of work: first its tar, then its sidecar in .work/done, which says that the tar
is whole. A run makes the shards without a sidecar, so the same command continues a killed one.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import __version__
from pipelines.errors import PipelineError
from pipelines.shards.files import (
    PARTIAL_SUFFIX,
    check_no_file,
    folder_lock,
    new_file,
    remove_partial_files,
    world_errors,
    write_file,
)
from pipelines.shards.index import MANIFEST_NAME, Manifest, parse_manifest, write_index
from pipelines.shards.listing import Listing, write_listing
from pipelines.shards.pictures import COMMON, convert, oddity
from pipelines.shards.progress import Progress
from pipelines.shards.request import (
    SHARDS_VERSION,
    ShardRequest,
    bounds,
    shard_name,
    shard_settings,
    shuffled,
)
from pipelines.shards.side_files import dali_index, side_files, write_json
from pipelines.shards.sidecars import Sample, join_sidecars, parse_sidecar, write_tar
from pipelines.shards.sources import Item
from pipelines.shards.survey import (
    Survey,
    forget_parts,
    join_parts,
    look_into,
    missing_parts,
    refuse,
)
from pipelines.shards.workers import Run


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What a run did. written: shards by this run; found: odd and broken files by reason."""

    folder: Path
    n_samples: int
    n_shards: int
    n_bytes: int
    written: int
    left_out: int
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
            n = write_listing(request.listing, request.source.items())
            settings = shard_settings(request, n)
            manifest = _earlier(request, settings)
            if manifest is not None and _all_there(request.folder, manifest):
                progress(n, n)
                result = _result(request, manifest, written=0, n=n)
            else:
                result = _make(request, settings, n, run, progress)
            # With the lock in it, and while it is held: afterwards another run may have begun.
            shutil.rmtree(request.work, ignore_errors=True)
            return result


def _make(
    request: ShardRequest, settings: dict[str, Any], n: int, run: Run, progress: Progress
) -> ShardResult:
    survey = Survey()
    steps = n
    if request.source.foreign():
        steps = 2 * n
        survey = _survey(request, settings, n, run, lambda done: progress(done, steps))
    listing = Listing(request.listing)
    left_out = survey.left_out(request.odd_files)
    kept = np.array([index for index in range(n) if index not in left_out], np.int64)
    if not len(kept):
        raise PipelineError(f"none of the {n} pictures is left to write; choose another SRC")
    num_shards = request.num_shards or math.ceil(len(kept) / (request.shard_size or 1))
    if not 0 < num_shards <= len(kept):
        raise PipelineError(
            f"{len(kept)} pictures cannot fill {num_shards} shards; ask for at least 1 and at most "
            f"{len(kept)} with --num-shards, or for a smaller --shard-size"
        )
    order = request.work / "order.npy"
    with new_file(order) as file:
        np.save(file, kept[shuffled(len(kept), request.seed)])
    # From here on the settings bind: the shards to come are those of these.
    write_json(request.work / "request.json", settings)
    (request.work / "done").mkdir(exist_ok=True)
    missing = [
        range(shard, shard + 1)
        for shard in range(num_shards)
        if not _is_done(request, shard, num_shards)
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
    _finish(request, settings, survey, listing, num_shards)
    path = request.folder / MANIFEST_NAME
    manifest = parse_manifest(path.read_bytes(), str(path))
    return _result(request, manifest, written=len(missing), n=n)


def _survey(
    request: ShardRequest,
    settings: dict[str, Any],
    n: int,
    run: Run,
    progress: Callable[[int], None],
) -> Survey:
    """Look into all files, or take up what an earlier run found in the same ones."""
    parts = request.work / f"survey-{settings['source_sha256'][:16]}"
    parts.mkdir(exist_ok=True)
    missing = missing_parts(parts, n)
    done = n - sum(map(len, missing))
    progress(done)

    def finished(chunk: range) -> None:
        nonlocal done
        done += len(chunk)
        progress(done)

    if missing:
        work = partial(look_into, request.source, request.listing, parts)
        run(work, missing, jobs=min(request.jobs, len(missing)), finished=finished)
    survey = join_parts(parts, n)
    listing = Listing(request.listing)
    refusal = refuse(
        survey, listing, odd_files=request.odd_files, broken_files=request.broken_files
    )
    if refusal:
        # They may be mended before the next run.
        forget_parts(parts, {*survey.odd, *survey.broken}, n)
        write_file(request.work / "odd-files.jsonl", survey.lines(listing))
        raise PipelineError(f"{refusal} (all of them: {request.work / 'odd-files.jsonl'})")
    return survey


def _write_shard(request: ShardRequest, num_shards: int, shards: range) -> range:
    """Write shards and commit each with its sidecar; the work of one process."""
    listing = Listing(request.listing)
    order = np.load(request.work / "order.npy", mmap_mode="r")
    for shard in shards:
        path = request.folder / shard_name(request.name, shard, num_shards)
        positions = bounds(len(order), num_shards, shard)
        samples = (_sample(request, listing, int(order[position])) for position in positions)
        sidecar = write_tar(path, samples)
        if request.dali_index:
            write_file(path.with_suffix(".idx"), dali_index(path))
        write_file(_sidecar(request, shard), json.dumps(sidecar).encode())
    return shards


def _sample(request: ShardRequest, listing: Listing, index: int) -> Sample:
    item = listing[index]
    extension, members = _members(request, item)
    return Sample(key=f"{index:08d}", extension=extension, label=item.label, members=members)


def _members(request: ShardRequest, item: Item) -> tuple[str, dict[str, bytes]]:
    """Return the extension of a sample's picture, and all of its members."""
    content = request.source.read(item.place)
    extension = COMMON.get(item.extension, item.extension)
    converts = request.source.foreign() and request.odd_files == "convert"
    if converts and oddity(content, item.extension) is not None:
        content, extension = convert(content, item.extension)
    members = {extension: content}
    if item.label >= 0:
        members["cls"] = str(item.label).encode()
    if item.record is not None:
        document = json.dumps(item.record, separators=(",", ":"), ensure_ascii=False)
        members["json"] = document.encode()
    return extension, members


def _finish(
    request: ShardRequest,
    settings: dict[str, Any],
    survey: Survey,
    listing: Listing,
    num_shards: int,
) -> None:
    """Write what speaks of all shards, the manifest last."""
    joined = join_sidecars(_whole_sidecar(request, number) for number in range(num_shards))
    documents = side_files(request.name, request.split, joined.shards, joined.md5)
    for file, document in documents.items():
        write_json(request.folder / file, document)
    odd = survey.lines(listing)
    if odd:
        write_file(request.folder / "odd-files.jsonl", odd)
    remove_partial_files(request.folder)
    write_index(
        request.folder,
        name=request.name,
        kind=request.source.kind(),
        shards=joined.shards,
        samples=joined.samples,
        classes=request.source.classes(),
        extensions=joined.extensions,
        settings=settings | {"found": survey.counts()},
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
        manifest = parse_manifest(path.read_bytes(), str(path))
        before = manifest.settings
    elif any((request.work / "done").glob("*.json")):
        before = _begun_with(request.work / "request.json")
    else:
        return None
    for field, now in settings.items():
        if before.get(field) != now:
            what = f"{before.get(field)}, this command says {now}"
            raise PipelineError(
                f"{field}: {request.folder} was begun with {what}; repeat the first, or choose "
                "another OUT"
            )
    return manifest


def _begun_with(path: Path) -> dict[str, Any]:
    """Return the settings that a set in the making was begun with.

    Raises:
        PipelineError: if the file is damaged.
    """
    try:
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError):
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
            f"{folder} holds something else ({others[0]}); choose an empty or a new folder for OUT"
        )


def _all_there(folder: Path, manifest: Manifest) -> bool:
    for shard in manifest.shards:
        path = folder / shard.file
        if not path.is_file() or path.stat().st_size != shard.n_bytes:
            return False
    return True


def _result(request: ShardRequest, manifest: Manifest, *, written: int, n: int) -> ShardResult:
    return ShardResult(
        folder=request.folder,
        n_samples=manifest.num_samples,
        n_shards=len(manifest.shards),
        n_bytes=sum(shard.n_bytes for shard in manifest.shards),
        written=written,
        left_out=n - manifest.num_samples,
        found=manifest.settings["found"],
    )


def _sidecar(request: ShardRequest, shard: int) -> Path:
    return request.work / "done" / f"{shard:06d}.json"


def _read_sidecar(request: ShardRequest, shard: int) -> dict[str, Any] | None:
    """Return what a shard's sidecar says, None where there is none or it is damaged."""
    try:
        return parse_sidecar(_sidecar(request, shard).read_bytes())
    except FileNotFoundError:
        return None


def _whole_sidecar(request: ShardRequest, shard: int) -> dict[str, Any]:
    sidecar = _read_sidecar(request, shard)
    if sidecar is None:
        raise PipelineError(
            f"{_sidecar(request, shard)} was damaged or removed meanwhile; give the command again"
        )
    return sidecar


def _is_done(request: ShardRequest, shard: int, num_shards: int) -> bool:
    sidecar = _read_sidecar(request, shard)
    path = request.folder / shard_name(request.name, shard, num_shards)
    return (
        sidecar is not None
        and sidecar["file"] == path.name
        and path.is_file()
        and path.stat().st_size == sidecar["bytes"]
    )
