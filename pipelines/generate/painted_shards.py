"""A set of pictures painted straight into shards, by any number of tasks, runs and machines.

    PLACE/fractals-00.tar ...
          sizes.json, _info.json, wids.json, index.npy
          manifest.json          last of all, when the set is closed
          .work/request.json     what the set is to be: written first, compared by every run
                done/000042.json says that shard 42 is whole; goes at the end with all of .work

What comes of it is a set as pixmix-shard makes them of files. A task makes the shards of its range
that are not whole: first the tar, then its sidecar. Tasks share nothing else, and the place may be
an object store. A run that makes all shards by itself closes the set; many tasks leave that to
`merge_shards`, for no store could tell which of them is the last.
"""

import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec

from pipelines import __version__
from pipelines.errors import PipelineError
from pipelines.generate.encoding import check_format, encoder_version
from pipelines.generate.painting import Painter, paint_files
from pipelines.generate.plan import check_task, cut, ranges_of
from pipelines.generate.records import IMAGES
from pipelines.generate.sets import refuse_other, refuse_other_versions
from pipelines.shards.exports import export_documents, write_json
from pipelines.shards.format import (
    INDEX_NAME,
    MANIFEST_NAME,
    MOST_SHARDS_OF_A_PATTERN,
    SAMPLE,
    Manifest,
    parse_manifest,
    write_index,
)
from pipelines.shards.output import DONE, WORK, Folder, OutputStore
from pipelines.shards.request import SHARDS_VERSION, bounds, shard_name
from pipelines.shards.sidecars import (
    Joined,
    Sample,
    join_sidecars,
    parse_sidecar,
    sidecar_of,
    write_tar,
)
from pipelines.system.files import (
    FileName,
    file_sha256,
    read_json,
    sha256,
    world_errors,
    write_file,
)
from pipelines.system.processes import Run, run_chunks
from pipelines.system.progress import Progress, no_progress

REQUEST = f"{WORK}/request.json"


class _Request(TypedDict):
    """What a set in the making is to be."""

    settings: dict[str, Any]
    made_with: dict[str, Any]


class _Numbers(msgspec.Struct):
    """What every set's settings have, beside those of its generator."""

    name: FileName
    kind: str
    n: Annotated[int, msgspec.Meta(ge=1, le=2**48)]
    shard_size: Annotated[int, msgspec.Meta(ge=1, le=2**48)]
    num_shards: Annotated[int, msgspec.Meta(ge=1, le=MOST_SHARDS_OF_A_PATTERN)]


class _Checked(msgspec.Struct):
    """A request, of which every value that is used is checked."""

    settings: _Numbers


SPLIT = "train"


@dataclass(frozen=True, kw_only=True)
class ShardedRequest:
    """What to make, and this run's share of it.

    place: where. painter: what paints. n: pictures 0..n-1.
    name: of the set and its tars; letters a-z, digits, - and _.
    format: a key of `encoding.ENCODERS`. shard_size: pictures a shard, at most.
    chunk: pictures that are painted at once. jobs: processes.
    task_index, num_tasks: this run makes one range of the shards.
    """

    place: OutputStore
    painter: Painter
    n: int
    name: str
    format: str = "jpg"
    shard_size: int = 1000
    chunk: int = 32
    jobs: int = 1
    task_index: int = 0
    num_tasks: int = 1

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        for name in ("n", "shard_size", "chunk", "jobs", "num_tasks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
        check_task(self.task_index, self.num_tasks)
        check_format(self.format)

    @property
    def num_shards(self) -> int:
        """How many shards there are; their sizes differ by at most one."""
        return math.ceil(self.n / self.shard_size)

    @property
    def own_shards(self) -> range:
        """The shards of this task."""
        return bounds(self.num_shards, self.num_tasks, self.task_index)

    def pictures(self, shards: Iterable[int]) -> int:
        """Return how many pictures some shards hold."""
        return sum(len(bounds(self.n, self.num_shards, shard)) for shard in shards)


@dataclass(frozen=True, kw_only=True)
class ShardedResult:
    """How a set stands after a run.

    place: its name. n: pictures. n_shards: shards, of which `missing` are not whole. painted:
    pictures by this run. complete: whether the set is closed.
    """

    place: str
    n: int
    n_shards: int
    missing: tuple[int, ...]
    painted: int
    complete: bool


def paint_set(
    request: ShardedRequest, *, run: Run = run_chunks, progress: Progress = no_progress
) -> ShardedResult:
    """Make a set of shards, this task's share of it, or continue one.

    Every byte depends on painter, n, format, name and shard_size: not on jobs, tasks,
    interruptions or what was made twice.

    Args:
        request: what to make.
        run: how shards are run.
        progress: called with the pictures that are whole and all pictures of this task.

    Returns:
        What was done.

    Raises:
        PipelineError: if the place holds something else or a set with other settings or cannot be
            written, or if disk or memory run out.
        KeyboardInterrupt: on Ctrl-C, after the shards in hand are whole.
    """
    place = request.place
    with world_errors(
        place.name,
        jobs=request.jobs,
        elsewhere="choose another --out, or ",
        smaller=", or a smaller --size",
    ):
        document = _document(request)
        sizes = place.sizes()
        if _is_closed(place, sizes, document):
            progress(request.pictures(request.own_shards), request.pictures(request.own_shards))
            return _result(request, missing=(), painted=0, complete=True)
        if MANIFEST_NAME in sizes:
            sizes = place.sizes()  # Reopened.
        document = _begin(place, sizes, document)
        mark = _mark(document)
        done = _whole_shards(place, sizes, request.own_shards, document)
        missing = [shard for shard in request.own_shards if shard not in done]
        _paint(request, mark, missing, run, progress)
        painted = request.pictures(missing)
        if request.num_tasks == 1:
            merged = merge_shards(place)
            return _result(
                request, missing=merged.missing, painted=painted, complete=merged.complete
            )
        sizes = place.sizes()
        content = place.read(MANIFEST_NAME) if MANIFEST_NAME in sizes else None
        if content is not None and _is_whole(_manifest_of(place, content), sizes):
            # Merged meanwhile, for another run had made the same shards; or it has again what it
            # had lost.
            place.close()
            return _result(request, missing=(), painted=painted, complete=True)
        left = tuple(_unfinished(sizes, document))
        return _result(request, missing=left, painted=painted, complete=False)


def merge_shards(place: OutputStore) -> ShardedResult:
    """Close a set of which all shards are whole; of another one, say which are not.

    Returns:
        How the set stands; n_shards counts all, `painted` is 0.

    Raises:
        PipelineError: if there is no such set, or it cannot be read or written.
    """
    with world_errors(place.name, jobs=1):
        sizes = place.sizes()
        content = place.read(MANIFEST_NAME) if MANIFEST_NAME in sizes else None
        if content is not None:
            manifest = _manifest_of(place, content)
            if _is_whole(manifest, sizes):
                if REQUEST in sizes:
                    # Whoever closed it was killed before the end.
                    place.close()
                return ShardedResult(
                    place=place.name,
                    n=manifest.num_samples,
                    n_shards=len(manifest.shards),
                    missing=(),
                    painted=0,
                    complete=True,
                )
            _reopen(place, sizes, manifest)
            sizes = place.sizes()
        document = _read_request(place)
        if document is None:
            if any(name.endswith(".tar") for name in sizes):
                raise PipelineError(
                    f"{place.name} has no {MANIFEST_NAME}; if pixmix-gen made it, give again the "
                    "command that did, which makes its shards anew"
                )
            raise PipelineError(
                f"{place.name} holds no shards of pixmix-gen; name what was given as --out with "
                "--to-shards"
            )
        settings = document["settings"]
        missing = _unfinished(sizes, document)
        if not missing:
            numbers = range(settings["num_shards"])
            books = _Books(place, sizes, numbers, document)
            joined = join_sidecars(books.sidecars())
            missing = books.faulty
            if not missing:
                _close(place, document, joined)
        return ShardedResult(
            place=place.name,
            n=settings["n"],
            n_shards=settings["num_shards"],
            missing=tuple(missing),
            painted=0,
            complete=not missing,
        )


def settings_so_far(place: OutputStore) -> dict[str, Any]:
    """Return the settings of the set in a place, closed or not, none where there is no set.

    Raises:
        PipelineError: if there is something else in its place, or it cannot be read.
    """
    with world_errors(place.name, jobs=1):
        content = place.read(MANIFEST_NAME)
        if content is not None:
            settings = _manifest_of(place, content).settings
        else:
            settings = (_read_request(place) or {"settings": {}})["settings"]
        return settings


def missing_ranges(shards: Sequence[int]) -> str:
    """Return numbers of shards for people, as "0-3, 7"."""
    return ", ".join(
        str(each.start) if len(each) == 1 else f"{each.start}-{each.stop - 1}"
        for each in ranges_of(shards)
    )


# --- what is asked, and what is there ------------------------------------------------------------


def _document(request: ShardedRequest) -> dict[str, Any]:
    """Return as plain JSON values all that the shards depend on."""
    return {
        "settings": {
            "name": request.name,
            "kind": "mixing",
            "sources": [request.painter.kind()],
            "licence": request.painter.licence(),
            **request.painter.settings(),
            "format": request.format,
            "n": request.n,
            "shard_size": request.shard_size,
            "num_shards": request.num_shards,
        },
        "made_with": {
            "pixmix": __version__,
            "shards_version": SHARDS_VERSION,
            **request.painter.versions(),
            "encoder": encoder_version(request.format),
        },
    }


def _manifest_of(place: OutputStore, content: bytes) -> Manifest:
    """Return the manifest of a set of shards.

    Raises:
        PipelineError: if it is none, as that of a set of files.
    """
    try:
        of_files = "status" in json.loads(content)
    except (ValueError, TypeError, RecursionError):
        of_files = False
    if of_files:
        raise PipelineError(
            f"{place.name} holds a set of files and no shards; choose another place for shards, or "
            "leave --to-shards out, by which that set goes on and is closed without a merge"
        )
    return parse_manifest(content, f"{place.name}/{MANIFEST_NAME}")


def _mark(document: Mapping[str, Any]) -> str:
    """Return what ties a sidecar to the request: two that began at once may differ in theirs."""
    versions = {name: each for name, each in document["made_with"].items() if name != "pixmix"}
    content = json.dumps([document["settings"], versions], sort_keys=True)
    return sha256(content.encode())[:16]


def _is_closed(place: OutputStore, sizes: Mapping[str, int], document: Mapping[str, Any]) -> bool:
    """See whether the set is complete, and the one that is asked for; reopen one that lost files.

    Raises:
        PipelineError: if it is another one.
    """
    content = place.read(MANIFEST_NAME) if MANIFEST_NAME in sizes else None
    if content is None:
        return False
    manifest = _manifest_of(place, content)
    _refuse(place, _document_of(manifest), document)
    if not _is_whole(manifest, sizes):
        _reopen(place, sizes, manifest)
        return False
    if REQUEST in sizes:
        # Whoever closed it was killed before the end.
        place.close()
    return True


def _is_whole(manifest: Manifest, sizes: Mapping[str, int]) -> bool:
    """See whether all files of a closed set are there, by their sizes."""
    least = manifest.num_samples * SAMPLE.itemsize
    return (
        all(sizes.get(shard.file) == shard.n_bytes for shard in manifest.shards)
        and sizes.get(manifest.index.file, 0) > least
        and all(sizes.get(name) for name in export_documents("", SPLIT, [], []))
    )


def _document_of(manifest: Manifest) -> dict[str, Any]:
    """Return what a closed set was begun with."""
    return {"settings": manifest.settings, "made_with": manifest.versions}


def _reopen(place: OutputStore, sizes: Mapping[str, int], manifest: Manifest) -> None:
    """Make a closed set that lost files one in the making, of which the tars that are whole stay.

    Its manifest stays until the set is closed again.
    """
    document = _document_of(manifest)
    mark, name = _mark(document), document["settings"].get("name")
    for shard, entry in enumerate(manifest.shards):
        own = entry.file == shard_name(name, shard, len(manifest.shards))
        if not own or sizes.get(entry.file) != entry.n_bytes or _sidecar(shard) in sizes:
            continue
        with place.writing() as folder, tempfile.TemporaryDirectory() as scratch:
            path = place.path if isinstance(place, Folder) else Path(scratch)
            tar = path / entry.file
            if not isinstance(place, Folder):
                tar.write_bytes(place.read(entry.file) or b"")
            if file_sha256(tar) != entry.sha256:
                continue
            sidecar = sidecar_of(tar) | {"request": mark}
            (folder / DONE).mkdir(parents=True, exist_ok=True)
            write_file(folder / _sidecar(shard), json.dumps(sidecar).encode())
    with place.writing() as folder:
        (folder / WORK).mkdir(exist_ok=True)
        write_json(folder / REQUEST, document)


def _begin(
    place: OutputStore, sizes: Mapping[str, int], document: dict[str, Any]
) -> dict[str, Any]:
    """See that the set in the place is the one that is asked for, or begin it.

    Returns:
        The set's own request: it names the code that began it.
    """
    if REQUEST not in sizes:
        # A set that lost its manifest is made anew: nothing vouches for its tars.
        settings = document["settings"]
        tars = {
            shard_name(settings["name"], shard, settings["num_shards"])
            for shard in range(settings["num_shards"])
        }
        own = {INDEX_NAME, *export_documents("", SPLIT, [], [])}
        if others := sizes.keys() - own - tars or (sizes.keys() if not sizes.keys() & tars else ()):
            raise PipelineError(
                f"{place.name} holds something else ({min(others)}); choose an empty or a new "
                "place for --out"
            )
        with place.writing() as folder:
            (folder / WORK).mkdir(exist_ok=True)
            write_json(folder / REQUEST, document)
    # Read also by whoever wrote it, for another may have written it at the same time.
    earlier = _read_request(place)
    if earlier is None:
        raise PipelineError(
            f"{place.name} was closed or removed at this moment; give the command again"
        )
    _refuse(place, earlier, document)
    return earlier


def _read_request(place: OutputStore) -> dict[str, Any] | None:
    content = place.read(REQUEST)
    if content is None:
        return None
    where, remedy = f"{place.name}/{REQUEST}", "remove the place, or choose another --out"
    document: dict[str, Any] = {**read_json(content, _Request, where, remedy)}
    read_json(content, _Checked, where, remedy)
    return document


def _refuse(place: OutputStore, earlier: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    for field, now in document["settings"].items():
        refuse_other(place.name, field, earlier["settings"].get(field), now)
    refuse_other_versions(place.name, earlier["made_with"], document["made_with"])


class _Books:
    """The sidecars of some shards, read one after the other; `faulty` takes those to make again.

    A sidecar that is damaged, of another request or of a tar of another size is as good as absent.
    """

    def __init__(
        self,
        place: OutputStore,
        sizes: Mapping[str, int],
        shards: Sequence[int],
        document: Mapping[str, Any],
    ) -> None:
        self.place, self.sizes, self.shards = place, sizes, shards
        self.mark = _mark(document)
        self.name = document["settings"]["name"]
        self.num_shards = document["settings"]["num_shards"]
        self.faulty: list[int] = []

    def sidecars(self) -> Iterator[dict[str, Any]]:
        names = [_sidecar(shard) for shard in self.shards]
        for shard, content in zip(self.shards, self.place.read_all(names), strict=True):
            sidecar = parse_sidecar(content)
            if (
                sidecar is None
                or sidecar.get("request") != self.mark
                or sidecar["file"] != shard_name(self.name, shard, self.num_shards)
                or self.sizes.get(sidecar["file"]) != sidecar["bytes"]
            ):
                self.faulty.append(shard)
            else:
                yield sidecar


def _whole_shards(
    place: OutputStore, sizes: Mapping[str, int], shards: Iterable[int], document: Mapping[str, Any]
) -> set[int]:
    """Return those of some shards for which a sidecar of this set vouches."""
    with_sidecar = [shard for shard in shards if _sidecar(shard) in sizes]
    books = _Books(place, sizes, with_sidecar, document)
    for _ in books.sidecars():
        pass
    return set(with_sidecar) - set(books.faulty)


def _unfinished(sizes: Mapping[str, int], document: Mapping[str, Any]) -> list[int]:
    """Return the shards without a tar or a sidecar."""
    name, num_shards = document["settings"]["name"], document["settings"]["num_shards"]
    return [
        shard
        for shard in range(num_shards)
        if _sidecar(shard) not in sizes or shard_name(name, shard, num_shards) not in sizes
    ]


def _sidecar(shard: int) -> str:
    return f"{DONE}/{shard:06d}.json"


# --- painting and closing ------------------------------------------------------------------------


def _paint(
    request: ShardedRequest, mark: str, missing: Sequence[int], run: Run, progress: Progress
) -> None:
    total = request.pictures(request.own_shards)
    done = total - request.pictures(missing)
    progress(done, total)

    def finished(shards: range) -> None:
        nonlocal done
        done += request.pictures(shards)
        progress(done, total)

    if missing:
        run(
            partial(paint_shards, request, mark),
            [range(shard, shard + 1) for shard in missing],
            jobs=min(request.jobs, len(missing)),
            finished=finished,
        )


def paint_shards(request: ShardedRequest, mark: str, shards: range) -> range:
    """Paint shards and commit each with its sidecar; the work of one process.

    Args:
        request: what to make.
        mark: of the request, for the sidecars.
        shards: their numbers.

    Returns:
        The range, for the caller's books.

    Raises:
        PipelineError: if the place cannot be written.
        OSError: if a disk is full or a folder cannot be written.
    """
    for shard in shards:
        name = shard_name(request.name, shard, request.num_shards)
        try:
            with request.place.writing() as folder:
                sidecar = write_tar(folder / name, _samples(request, shard))
            with request.place.writing() as folder:
                (folder / DONE).mkdir(parents=True, exist_ok=True)
                content = json.dumps(sidecar | {"request": mark}).encode()
                write_file(folder / _sidecar(shard), content)
        except FileNotFoundError:
            # Another run has made the same shard, and the set was closed under this one's hands.
            if request.place.read(MANIFEST_NAME) is None:
                raise
    return shards


def _samples(request: ShardedRequest, shard: int) -> Iterator[Sample]:
    pictures = bounds(request.n, request.num_shards, shard)
    for chunk in cut([pictures], request.chunk):
        for picture in paint_files(request.painter, request.format, chunk):
            # As pixmix-shard has it of a set of files.
            record = {"filename": f"{IMAGES}/{picture.name}", **picture.record}
            document = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
            yield Sample(
                key=f"{picture.number:08d}",
                extension=request.format,
                label=-1,
                members={request.format: picture.content, "json": document.encode()},
            )


def _close(place: OutputStore, document: Mapping[str, Any], joined: Joined) -> None:
    """Write what speaks of all shards, the manifest last, and remove what the making needed."""
    settings = document["settings"]
    documents = export_documents(settings["name"], SPLIT, joined.shards, joined.md5)
    with place.writing() as folder:
        for file, each in documents.items():
            write_json(folder / file, each)
        write_index(
            folder,
            name=settings["name"],
            kind=settings["kind"],
            shards=joined.shards,
            samples=joined.samples,
            classes=(),
            extensions=joined.extensions,
            settings=settings,
            versions=document["made_with"],
        )
    place.close()


def _result(
    request: ShardedRequest, *, missing: tuple[int, ...], painted: int, complete: bool
) -> ShardedResult:
    return ShardedResult(
        place=request.place.name,
        n=request.n,
        n_shards=request.num_shards,
        missing=missing,
        painted=painted,
        complete=complete,
    )
