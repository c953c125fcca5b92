"""Write the images of a source into shards, as `pixmix-shard` does.

    STORE/NAME-00.tar ...        the shards, and DALI's NAME-00.idx if requested
          sizes.json, _info.json, wids.json
          scan.jsonl             files that are nonstandard, rotated or cannot be decoded, if any
          index.npy
          manifest.json          written last

This is a job (see `pipelines.shards.job`) whose items are shards. The done record of a shard is its
sidecar: what index, manifest and side files need to know about the tar, so that it is not read
again, and a hash of the names, sizes and times of its source files: shards of changed files are
written again.

The list of the source's files, their order and the scan are local files in `store.work`. A run that
writes to an object store therefore resumes on the same machine; another machine scans the source
again. Nothing stops two machines that write different sources to one address at the same time.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import __version__
from pipelines.errors import PipelineError
from pipelines.shards.format import (
    MANIFEST_NAME,
    Manifest,
    ShardSet,
    build_set,
    parse_manifest,
    read_index,
)
from pipelines.shards.images import DecodeError, unusable_file
from pipelines.shards.job import ALONE, Job, Request, inspect, run_locked, store_errors
from pipelines.shards.output import DONE, READERS, Folder, OutputStore, task_lock
from pipelines.shards.request import (
    Listed,
    Listing,
    ShardRequest,
    first_difference,
    sample_of,
    shuffled,
    write_listing,
)
from pipelines.shards.scan import check_classes, scan_image, scan_results, scan_source
from pipelines.shards.writer import (
    SCAN_NAME,
    SHARDS_VERSION,
    bounds,
    dali_index,
    export_faults,
    parse_sidecar,
    shard_name,
    whole_sidecars,
    write_closing_files,
    write_tar,
)
from pipelines.system.files import new_file, sha256, write_file
from pipelines.system.processes import RunChunks
from pipelines.system.progress import Progress
from pixmix.images import open_map

_ORDER_TYPE = np.dtype("<i8")


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """The result of a run.

    Attributes:
        location: path or address of the dataset.
        n_samples: number of samples.
        n_shards: number of shards.
        n_bytes: size of all shards.
        written: number of shards that this run wrote.
        skipped: number of images of the source that are in no shard.
        scan: number of nonstandard, undecodable and rotated images, by reason.
    """

    location: str
    n_samples: int
    n_shards: int
    n_bytes: int
    written: int
    skipped: int
    scan: dict[str, dict[str, int]]


def make_shards(request: ShardRequest, *, run: RunChunks, progress: Progress) -> ShardResult:
    """Write a sharded dataset, resume it, or repair it if it lost files.

    Every byte depends on the source and the request alone, not on the number of processes or on
    interruptions.

    Args:
        request: the source, the store and the settings.
        run: runs chunks of work.
        progress: called with the number of steps done and of all steps; an image that is scanned
            and written is two steps.

    Raises:
        PipelineError: if the store holds something else or a dataset with other settings, cannot be
            written, or is in use by another run; if the source is missing, damaged, or has files
            that the request does not allow; if disk or memory run out.
        KeyboardInterrupt: on Ctrl-C, after the current shards are written.
    """
    store = request.store
    with store_errors(store, request.jobs):
        # Check before hours of scanning, and before a lock that would leave a folder behind.
        job = _job(request, Listed(0, "", ""), 1)
        inspect(job)
        request.source.classes()
        with task_lock(store, ALONE):
            found = inspect(job)
            listed = write_listing(request.listing, request.source.items())
            if found.manifest is not None:
                manifest = _parsed(request, found.manifest)
                _refuse_other_source(request, manifest, listed)
                opened = None
                # Done records are left if a run that repaired the dataset was killed.
                if not _has_records(found.sizes):
                    opened = _open_complete(store, manifest, found.sizes)
                if opened is not None:
                    _check_contents(request, opened)
                    progress(listed.n, listed.n)
                    store.close()
                    return _result(request, written=0, n=listed.n)
            return _make(request, listed, run, progress)


def _make(request: ShardRequest, listed: Listed, run: RunChunks, progress: Progress) -> ShardResult:
    n = steps = listed.n
    skipped: set[int] = set()
    if request.source.needs_scan():
        steps = 2 * n
        scan_source(request, n, run, lambda done: progress(done, steps))
        skipped = scan_results(request, n).skipped(request.on_nonstandard)
    listing = Listing(request.listing)
    kept = np.array([index for index in range(n) if index not in skipped], np.int64)
    if not len(kept):
        raise PipelineError(f"all of the {n} images are skipped; choose another SRC")
    check_classes(request, listing, kept, skipped)
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
            f"{request.store.name} lost files while it was written; make sure that nothing else "
            "writes to it, and run the same command again"
        )
    return _result(request, written=sum(map(len, result.made)), n=n)


def _job(request: ShardRequest, listed: Listed, num_shards: int) -> Job:
    return Job(
        store=request.store,
        request=Request(
            settings=request.settings(),
            versions={"pixmix": __version__, "shards_version": SHARDS_VERSION},
            n=num_shards,
        ),
        product=_SourceShards(request=request, listed=listed, num_shards=num_shards),
        exclusive=True,
    )


def _result(request: ShardRequest, *, written: int, n: int) -> ShardResult:
    name = request.store.name
    manifest = parse_manifest(request.store.read(MANIFEST_NAME) or b"", f"{name}/{MANIFEST_NAME}")
    return ShardResult(
        location=name,
        n_samples=manifest.num_samples,
        n_shards=len(manifest.shards),
        n_bytes=sum(shard.n_bytes for shard in manifest.shards),
        written=written,
        skipped=n - manifest.num_samples,
        scan=manifest.settings.get("scan", {}),
    )


# --- shards --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _SourceShards:
    """The shards of a source, as the product of a job whose items are shards."""

    request: ShardRequest
    listed: Listed
    num_shards: int

    def __getstate__(self) -> dict[str, Any]:
        """Omit memory maps, which other processes open themselves."""
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
        fingerprint = self._listing.fingerprint(self._indices(item))
        if sidecar is None or sidecar.get("source_fingerprint") != fingerprint:
            return None
        return sidecar

    def takes_over(self, names: set[str]) -> bool:
        return not names

    def read_manifest(self, manifest: bytes) -> Request:
        found = _parsed(self.request, manifest)
        return Request(settings=found.settings, versions=found.versions, n=len(found.shards))

    def is_complete(self, manifest: bytes, sizes: Mapping[str, int]) -> bool:
        # While a dataset is repaired there are done records, and its manifest is the old one.
        parsed = _parsed(self.request, manifest)
        return not _has_records(sizes) and (
            _open_complete(self.request.store, parsed, sizes) is not None
        )

    def records(self, manifest: bytes, sizes: Mapping[str, int]) -> Iterator[tuple[int, bytes]]:
        store = self.request.store
        found = _parsed(self.request, manifest)
        changed = _changed_since(self._listing, store.finished_ns())
        for shard, sidecar, tar in whole_sidecars(store, found, self.request.name, sizes):
            indices = self._indices(shard)
            # Shards of files that have changed since are written again.
            if changed.isdisjoint(indices):
                if self.request.dali_index:
                    with store.writing() as folder:
                        write_file(folder / f"{tar.stem}.idx", dali_index(tar))
                yield shard, self._line(sidecar, indices)

    def close(self, request: Request, records: Iterable[dict[str, Any]]) -> None:
        shard_request, store = self.request, self.request.store
        self._check_unchanged()
        scan = scan_results(shard_request, self.listed.n)
        scanned: dict[str, Any] = {"scan": scan.counts()}
        sidecars = [*records]
        # A killed run may have left tars of another number of images, and an earlier scan.
        own = {self._name(shard) for shard in range(self.num_shards)}
        numbered = re.compile(rf"{re.escape(shard_request.name)}-\d+\.(tar|idx)")
        store.remove(
            name
            for name in store.sizes()
            if name == SCAN_NAME
            or (numbered.fullmatch(name) and Path(name).with_suffix(".tar").name not in own)
        )
        with store.writing() as folder:
            lines = scan.lines(self._listing)
            if lines:
                write_file(folder / SCAN_NAME, lines)
                scanned["scan_sha256"] = sha256(lines)
            write_closing_files(
                folder,
                name=shard_request.name,
                split=shard_request.split,
                kind=shard_request.source.kind(),
                sidecars=sidecars,
                classes=shard_request.source.classes(),
                settings=shard_request.settings(self.listed) | scanned,
                versions=request.versions,
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
        """Return the indices of the source's images that a shard holds, in order."""
        within = bounds(len(self._order), self.num_shards, shard)
        indices: list[int] = self._order[within.start : within.stop].tolist()
        return indices

    def _line(self, sidecar: dict[str, Any], indices: list[int]) -> bytes:
        fingerprint = self._listing.fingerprint(indices)
        return json.dumps(sidecar | {"source_fingerprint": fingerprint}).encode()

    def _check_unchanged(self) -> None:
        """Refuse to close the job if the source has changed since it was listed.

        Raises:
            PipelineError: if it has; the same command writes the shards of changed files again.
        """
        path = self.request.listing.with_name("listing-at-the-end.jsonl")
        if (
            write_listing(path, self.request.source.items()).dated_sha256
            != self.listed.dated_sha256
        ):
            name = first_difference(self._listing, Listing(path))
            raise PipelineError(
                f"the source was changed while its shards were written (first: {name}); make sure "
                "that nothing writes to it, and run the same command again"
            )


# --- a finished dataset whose command runs again -------------------------------------------------


def _parsed(request: ShardRequest, content: bytes) -> Manifest:
    """Return the manifest of a finished dataset; refuse a damaged or foreign one."""
    name = request.store.name
    try:
        return parse_manifest(content, f"{name}/{MANIFEST_NAME}")
    except PipelineError as error:
        raise PipelineError(
            f"{name}/{MANIFEST_NAME} is damaged, or of another program; remove {name} and run the "
            "command again, or choose another output folder"
        ) from error


def _has_records(sizes: Mapping[str, int]) -> bool:
    return any(name.startswith(f"{DONE}/") for name in sizes)


def _refuse_other_source(request: ShardRequest, manifest: Manifest, listed: Listed) -> None:
    """Refuse a finished dataset whose source has other files.

    Raises:
        PipelineError: if a setting that describes the files differs; it names the setting.
    """
    for field, now in request.settings(listed).items():
        before = manifest.settings.get(field)
        if before != now:
            listing = Listing(request.listing)
            newer = _changed_since(listing, request.store.finished_ns())
            named = f"; {listing[min(newer)].name} is newer" if newer else ""
            raise PipelineError(
                f"{field}: {request.store.name} was made with {before}, and the source "
                f"now has {now}{named}; restore the source, or choose another output folder"
            )


def _open_complete(
    store: OutputStore, manifest: Manifest, sizes: Mapping[str, int]
) -> ShardSet | None:
    """Open a dataset that has all of its files; return None if one is missing or different."""
    # The sizes of tars are compared, and `pixmix-shard verify` hashes them.
    if any(sizes.get(shard.file) != shard.n_bytes for shard in manifest.shards):
        return None
    if isinstance(store, Folder):
        folder = store.path
    else:
        folder = store.work
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / manifest.index.file, store.read(manifest.index.file) or b"")
    try:
        opened = build_set(store.name, manifest, read_index(folder, manifest))
    except PipelineError:
        return None
    return None if export_faults(opened, store.read) else opened


def _changed_since(listing: Listing, finished_ns: int) -> set[int]:
    """Return the items whose files may have changed since a dataset was finished.

    A file that was copied or linked has a new time, and may have the same content.
    """
    return {index for index in range(len(listing)) if max(listing[index].changed) >= finished_ns}


def _check_contents(request: ShardRequest, opened: ShardSet) -> None:
    """Compare source files that may have changed since with the content of the shards.

    Raises:
        PipelineError: if the content of a file differs; it names the first.
        OSError: if a file cannot be read.
    """
    listing = Listing(request.listing)
    changed = sorted(_changed_since(listing, request.store.finished_ns()))
    if not changed:
        return
    skipped: set[int] = set()
    if "scan_sha256" in opened.settings:
        lines = map(json.loads, (request.store.read(SCAN_NAME) or b"").splitlines())
        skipped = {line["index"] for line in lines if line["category"] in request.skipped}
    kept = [index for index in range(len(listing)) if index not in skipped]
    positions = {kept[position]: i for i, position in enumerate(shuffled(len(kept), request.seed))}

    def is_same(index: int) -> bool:
        if index in positions:
            return _is_in(opened, positions[index], request, listing, index)
        return not request.skipped.isdisjoint(scan_image(request.source, listing[index]))

    with ThreadPoolExecutor(READERS) as pool:
        # In parts, so that Ctrl-C need not wait for all.
        for start in range(0, len(changed), 512):
            part = changed[start : start + 512]
            for index, same in zip(part, pool.map(is_same, part), strict=True):
                if not same:
                    name = request.store.name
                    raise PipelineError(
                        f"{listing[index].name} was changed after {name} was made; choose another "
                        f"output folder, or remove {name} and run the command again"
                    )


def _is_in(
    opened: ShardSet, position: int, request: ShardRequest, listing: Listing, index: int
) -> bool:
    row = opened.samples[position]
    tar = opened.shards[int(row["shard"])].file
    content = request.store.read_part(tar, int(row["offset"]), int(row["size"]))
    try:
        sample = sample_of(request, listing, index)
    except DecodeError:
        return False
    except OSError as error:
        if unusable_file(error) is None:
            raise
        return False
    return sample.members[sample.extension] == content
