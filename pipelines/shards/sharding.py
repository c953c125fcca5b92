"""Shards of the images of a source: `pixmix-shard`.

    FOLDER/NAME-00.tar ...       the shards, and DALI's NAME-00.idx if asked for
           sizes.json, _info.json, wids.json
           scan.jsonl            files of the source that were odd or broken, if any
           index.npy
           manifest.json         last of all

It is a job, see `pipelines.shards.job`, of which an item is a shard. A shard's record, its sidecar,
has what index, manifest and side files need of the tar, so that nobody reads it again, and a hash
of what is known of its files: the shards of files that were changed since are written again.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, partial
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
    scan_image,
    scan_range,
)
from pipelines.shards.exports import SCAN_NAME, dali_index, export_faults
from pipelines.shards.format import (
    MANIFEST_NAME,
    MOST_MANIFEST_BYTES,
    Manifest,
    ShardSet,
    build_set,
    parse_manifest,
    read_index,
)
from pipelines.shards.images import (
    LARGEST_FILE,
    DecodeError,
    unusable_file,
)
from pipelines.shards.job import ALONE, Job, Request, look, run_locked, store_errors, task_lock
from pipelines.shards.output import DONE, WORK, Folder
from pipelines.shards.request import (
    Listed,
    Listing,
    ShardRequest,
    first_difference,
    sample_of,
    shuffled,
    write_listing,
)
from pipelines.shards.writer import (
    SHARDS_VERSION,
    bounds,
    parse_sidecar,
    shard_name,
    whole_sidecars,
    write_closing_files,
    write_tar,
)
from pipelines.system.files import (
    check_no_file,
    new_file,
    open_regular,
    read_regular,
    sha256,
    write_file,
)
from pipelines.system.processes import RunChunks
from pipelines.system.progress import Progress
from pixmix.packed import open_map

_ORDER_TYPE = np.dtype("<i8")


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


def make_shards(request: ShardRequest, *, run: RunChunks, progress: Progress) -> ShardResult:
    """Make a set of shards, resume it, or mend it if it lost files.

    Every byte depends on the source and the request without `jobs`: not on the number of
    processes, nor on interruptions.

    Args:
        request: what to make.
        run: how chunks of work are run.
        progress: called with the images that are done, scanned and written, and their number.

    Raises:
        PipelineError: if the folder holds something else or a set with other settings, cannot be
            written, or is in use by another run; if the source is missing, damaged, or has files
            that the request does not allow; if disk or memory run out.
        KeyboardInterrupt: on Ctrl-C, after the shards in hand are on the disk.
    """
    store = Folder(path=request.folder)
    with store_errors(store, request.jobs):
        check_no_file(request.folder, "OUT")
        # Before hours of scanning; and a source that is not there leaves no folder behind.
        asked = _job(request, Listed(0, "", ""), 1)
        look(asked)
        request.source.classes()
        with task_lock(store, ALONE):
            found = look(asked)
            listed = write_listing(request.listing, request.source.items())
            if found.manifest is not None:
                manifest = _parsed(request, found.manifest)
                _refuse_other_source(request, manifest, listed)
                # Unless a run that was mending it was killed.
                opened = None
                if not _has_records(found.sizes):
                    opened = _open_complete(request.folder, manifest)
                if opened is not None:
                    _check_contents(request, opened)
                    progress(listed.n, listed.n)
                    store.close()
                    return _result(request, written=0, n=listed.n)
            return _make(request, listed, run, progress)


def _make(request: ShardRequest, listed: Listed, run: RunChunks, progress: Progress) -> ShardResult:
    n = steps = listed.n
    left_out: set[int] = set()
    if request.source.foreign():
        steps = 2 * n
        _scan(request, n, run, lambda done: progress(done, steps))
        left_out = _scanned(request, n).skipped(request.on_nonstandard)
    listing = Listing(request.listing)
    kept = np.array([index for index in range(n) if index not in left_out], np.int64)
    if not len(kept):
        raise PipelineError(f"none of the {n} images is left to write; choose another SRC")
    _check_classes(request, listing, kept, left_out)
    num_shards = request.num_shards or math.ceil(len(kept) / (request.shard_size or 1))
    if not 0 < num_shards <= len(kept):
        raise PipelineError(
            f"{len(kept)} images cannot fill {num_shards} shards; use at least 1 and at most "
            f"{len(kept)} with --num-shards, or a smaller --shard-size"
        )
    with new_file(request.order) as file:
        file.write(kept[shuffled(len(kept), request.seed)].astype(_ORDER_TYPE).tobytes())
    before = steps - len(kept)
    result = run_locked(
        _job(request, listed, num_shards),
        ALONE,
        jobs=request.jobs,
        run=run,
        progress=lambda done, total: progress(before + done, before + total),
    )
    if not result.complete:
        raise PipelineError(
            f"{request.folder} lost files while it was written; run the same command again when "
            "nothing else writes to it"
        )
    return _result(request, written=sum(map(len, result.made)), n=n)


def _job(request: ShardRequest, listed: Listed, num_shards: int) -> Job:
    return Job(
        store=Folder(path=request.folder),
        request=Request(
            settings=request.settings(),
            made_with={"pixmix": __version__, "shards_version": SHARDS_VERSION},
            n=num_shards,
        ),
        product=_SourceShards(request=request, listed=listed, num_shards=num_shards),
        exclusive=True,
    )


def _result(request: ShardRequest, *, written: int, n: int) -> ShardResult:
    path = request.folder / MANIFEST_NAME
    manifest = parse_manifest(read_regular(path, max_bytes=MOST_MANIFEST_BYTES), str(path))
    return ShardResult(
        folder=request.folder,
        n_samples=manifest.num_samples,
        n_shards=len(manifest.shards),
        n_bytes=sum(shard.n_bytes for shard in manifest.shards),
        written=written,
        skipped=n - manifest.num_samples,
        found=manifest.settings["found"],
    )


# --- scanning the source -------------------------------------------------------------------------


def _scan(request: ShardRequest, n: int, run: RunChunks, progress: Callable[[int], None]) -> None:
    """Scan the files that no earlier run has scanned as they are now.

    Raises:
        PipelineError: if there are some that the request does not allow.
    """
    parts = _parts(request)
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
    scan = _scanned(request, n)
    refusal = scan.refusal(listing, request.on_nonstandard, request.on_decode_error)
    if refusal:
        path = request.folder / WORK / SCAN_NAME
        write_file(path, scan.lines(listing))
        raise PipelineError(f"{refusal} (all of them: {path})")


def _scanned(request: ShardRequest, n: int) -> Scan:
    """Return what the scan has found."""
    if not request.source.foreign():
        return Scan()
    scan = join_parts(_parts(request), n)
    if not request.exif_transpose:
        scan.rotated.clear()
    return scan


def _parts(request: ShardRequest) -> Path:
    return request.folder / WORK / "scan"


def _check_classes(
    request: ShardRequest, listing: Listing, kept: NDArray[np.int64], left_out: set[int]
) -> None:
    """Refuse classes of which no image is left, as an empty folder is refused."""
    emptied = {listing[index].label for index in left_out} - {-1}
    for index in kept.tolist() if emptied else ():
        emptied.discard(listing[index].label)
    if emptied:
        name = request.source.classes()[min(emptied)]
        raise PipelineError(
            f"no image of class {name!r} is left, for all of its files are broken or skipped, so "
            "its class would be empty; put whole images into its folder or remove it"
        )


# --- shards --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _SourceShards:
    """Shards of a source as the product of a job: an item is a shard."""

    request: ShardRequest
    listed: Listed
    num_shards: int

    def __getstate__(self) -> dict[str, Any]:
        """Leave out memory maps, which other processes open themselves."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def weight(self, items: range) -> int:
        return sum(len(bounds(len(self._order), self.num_shards, shard)) for shard in items)

    def make(self, items: range, folder: Path) -> list[bytes]:
        lines = []
        for shard in items:
            path = folder / self._name(shard)
            indices = self._indices(shard)
            samples = (sample_of(self.request, self._listing, index) for index in indices)
            sidecar = write_tar(path, samples)
            if self.request.dali_index:
                write_file(path.with_suffix(".idx"), dali_index(path))
            lines.append(self._line(sidecar, indices))
        return lines

    def parse(self, item: int, line: bytes, sizes: Mapping[str, int]) -> dict[str, Any] | None:
        sidecar = parse_sidecar(line, self._name(item), sizes)
        inputs = self._listing.fingerprint(self._indices(item))
        return None if sidecar is None or sidecar.get("inputs") != inputs else sidecar

    def takes_over(self, names: set[str]) -> bool:
        return not names

    def read_manifest(self, manifest: bytes) -> Request:
        found = _parsed(self.request, manifest)
        return Request(settings=found.settings, made_with=found.versions, n=len(found.shards))

    def is_complete(self, manifest: bytes, sizes: Mapping[str, int]) -> bool:
        # While there are records of a set that is mended, its manifest is the old one.
        return not _has_records(sizes) and (
            _open_complete(self.request.folder, _parsed(self.request, manifest)) is not None
        )

    def records(self, manifest: bytes, sizes: Mapping[str, int]) -> Iterator[tuple[int, bytes]]:
        folder = self.request.folder
        found = _parsed(self.request, manifest)
        changed = _changed_since(self._listing, folder / MANIFEST_NAME)
        for shard, sidecar in whole_sidecars(Folder(path=folder), found, self.request.name, sizes):
            indices = self._indices(shard)
            # Shards with files that were changed since are to be written again.
            if changed.isdisjoint(indices):
                if self.request.dali_index:
                    path = folder / sidecar["file"]
                    write_file(path.with_suffix(".idx"), dali_index(path))
                yield shard, self._line(sidecar, indices)

    def close(self, request: Request, records: Iterable[dict[str, Any]]) -> None:
        asked, folder = self.request, self.request.folder
        self._check_unchanged()
        scan = _scanned(asked, self.listed.n)
        found: dict[str, Any] = {"found": scan.counts()}
        sidecars = [*records]
        odd = scan.lines(self._listing)
        if odd:
            write_file(folder / SCAN_NAME, odd)
            found["found_sha256"] = sha256(odd)
        else:
            # Of a run that was killed before its files were mended.
            (folder / SCAN_NAME).unlink(missing_ok=True)
        # Tars of this name that a killed run wrote when the source had other images.
        own = {self._name(shard) for shard in range(self.num_shards)}
        numbered = re.compile(rf"{re.escape(asked.name)}-\d+\.(tar|idx)")
        for path in folder.iterdir():
            if numbered.fullmatch(path.name) and path.with_suffix(".tar").name not in own:
                path.unlink()
        write_closing_files(
            folder,
            name=asked.name,
            split=asked.split,
            kind=asked.source.kind(),
            sidecars=sidecars,
            classes=asked.source.classes(),
            settings=asked.settings(self.listed) | found,
            versions=request.made_with,
        )

    @cached_property
    def _listing(self) -> Listing:
        return Listing(self.request.listing)

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        n = self.request.order.stat().st_size // _ORDER_TYPE.itemsize
        return open_map(self.request.order, _ORDER_TYPE, "r", shape=(n,))

    def _name(self, shard: int) -> str:
        return shard_name(self.request.name, shard, self.num_shards)

    def _indices(self, shard: int) -> list[int]:
        """Return which of the source's images a shard holds, in their order."""
        within = bounds(len(self._order), self.num_shards, shard)
        indices: list[int] = self._order[within.start : within.stop].tolist()
        return indices

    def _line(self, sidecar: dict[str, Any], indices: list[int]) -> bytes:
        return json.dumps(sidecar | {"inputs": self._listing.fingerprint(indices)}).encode()

    def _check_unchanged(self) -> None:
        """Refuse to close if the source is not what was listed at the beginning.

        Raises:
            PipelineError: if so; the same command makes the shards of the changed files again.
        """
        path = self.request.listing.with_name("listing-at-the-end.jsonl")
        if (
            write_listing(path, self.request.source.items()).dated_sha256
            != self.listed.dated_sha256
        ):
            name = first_difference(self._listing, Listing(path))
            raise PipelineError(
                f"the source was changed while its shards were written (first {name}); run the "
                "same command again when nothing writes to it"
            )


# --- a finished set that its command meets again -------------------------------------------------


def _parsed(request: ShardRequest, content: bytes) -> Manifest:
    """Return the manifest of a finished set; refuse a damaged one, or another program's."""
    path = request.folder / MANIFEST_NAME
    try:
        return parse_manifest(content, str(path))
    except PipelineError as error:
        raise PipelineError(
            f"{path} is damaged, or another program's; remove {path.parent} and run the command "
            "again, or choose another output folder"
        ) from error


def _has_records(sizes: Mapping[str, int]) -> bool:
    return any(name.startswith(f"{DONE}/") for name in sizes)


def _refuse_other_source(request: ShardRequest, manifest: Manifest, listed: Listed) -> None:
    """Refuse a finished set of a source with other files.

    Raises:
        PipelineError: if a setting that tells which files it has differs, naming it.
    """
    for field, now in request.settings(listed).items():
        before = manifest.settings.get(field)
        if before != now:
            listing = Listing(request.listing)
            newer = _changed_since(listing, request.folder / MANIFEST_NAME)
            named = f"; {listing[min(newer)].name} is newer" if newer else ""
            raise PipelineError(
                f"{field}: {request.folder} was begun with {before}, this command says {now} (of "
                f"the files in the source{named}); repeat the first, or choose another output "
                "folder"
            )


def _open_complete(folder: Path, manifest: Manifest) -> ShardSet | None:
    """Open a set that has all of its files, None where one is missing or another."""
    # Tars are held to their sizes; `pixmix-shard verify` reads them.
    for shard in manifest.shards:
        path = folder / shard.file
        if not path.is_file() or path.stat().st_size != shard.n_bytes:
            return None
    try:
        opened = build_set(str(folder), manifest, read_index(folder, manifest))
    except PipelineError:
        return None
    return None if export_faults(folder, opened) else opened


def _changed_since(listing: Listing, manifest: Path) -> set[int]:
    """Return the items whose files have a time not before that of a set's manifest."""
    # They may be the same for all that: a file that is copied or linked to has a new time, too.
    finished = manifest.stat().st_mtime_ns
    return {index for index in range(len(listing)) if max(listing[index].changed) >= finished}


def _check_contents(request: ShardRequest, opened: ShardSet) -> None:
    """Check that files of the source that seem to be changed since are what the shards hold.

    Raises:
        PipelineError: naming the first file whose content is another.
        OSError: if it cannot be read.
    """
    listing = Listing(request.listing)
    changed = sorted(_changed_since(listing, request.folder / MANIFEST_NAME))
    if not changed:
        return
    left_out: set[int] = set()
    if "found_sha256" in opened.settings:
        content = read_regular(request.folder / SCAN_NAME, max_bytes=LARGEST_FILE)
        lines = map(json.loads, content.splitlines())
        left_out = {line["index"] for line in lines if line["found"] in request.skipped}
    kept = [index for index in range(len(listing)) if index not in left_out]
    positions = {kept[place]: i for i, place in enumerate(shuffled(len(kept), request.seed))}
    for index in changed:
        is_same = (
            _is_in(opened, positions[index], request, listing, index)
            if index in positions
            else not request.skipped.isdisjoint(scan_image(request.source, listing[index]))
        )
        if not is_same:
            raise PipelineError(
                f"{listing[index].name} was changed after {request.folder} was made; choose "
                f"another output folder, or remove {request.folder} and run the command again"
            )


def _is_in(
    opened: ShardSet, position: int, request: ShardRequest, listing: Listing, index: int
) -> bool:
    row = opened.samples[position]
    with open_regular(opened.path(int(row["shard"]))) as file:
        file.seek(int(row["offset"]))
        content = file.read(int(row["size"]))
    try:
        sample = sample_of(request, listing, index)
    except DecodeError:
        return False
    except OSError as error:
        if unusable_file(error) is None:
            raise
        return False
    return sample.members[sample.extension] == content
