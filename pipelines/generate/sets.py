"""A set of pictures on disk, made by any number of processes, runs and machines.

    FOLDER/manifest.json      what the set is; "status" says partial or complete
           metadata.jsonl     a line of JSON a picture, in order; when complete
           images/00000000.jpg ...
           .work/             records of a set that is being made, and locks; goes at the end

The pictures of a chunk are written first, then their records, as one part. A run paints what no
part records, so a run that was killed is continued by the same command, and tasks that share a
folder share nothing else. Whoever finds all records there joins them and completes the manifest.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec

from pipelines import __version__
from pipelines.errors import PipelineError
from pipelines.generate.encoding import ENCODERS, check_format, encoder_version
from pipelines.generate.painting import Painter, paint_chunk
from pipelines.generate.plan import check_task, cut, ranges_of, share, subtract
from pipelines.generate.records import (
    IMAGES,
    Part,
    damaged,
    find_parts,
    forget,
    merge,
    picture_name,
)
from pipelines.shards.format import FORMAT
from pipelines.system.files import (
    PARTIAL_SUFFIX,
    Count,
    Sha256,
    check_no_file,
    file_sha256,
    folder_lock,
    read_json,
    read_regular,
    remove_partial_files,
    world_errors,
    write_file,
)
from pipelines.system.processes import Run, run_chunks
from pipelines.system.progress import Progress, no_progress


class _Manifest(TypedDict):
    """What the manifest of a set has; what is not required comes when the set is complete."""

    kind: str
    status: Literal["partial", "complete"]
    pictures: Annotated[int, msgspec.Meta(ge=1, le=10**9)]
    settings: dict[str, Any]
    made_with: dict[str, Any]
    licence: NotRequired[str]
    drafts: NotRequired[Count]
    acceptance_rate: NotRequired[Annotated[float, msgspec.Meta(ge=0, le=1)]]
    metadata_sha256: NotRequired[Sha256]


_COPY = "copy it from elsewhere, or remove the folder and make the set again"
_REQUIRED = {"kind", "status", "pictures", "settings", "made_with"}
_REQUIRED_OF_COMPLETE = {"drafts", "acceptance_rate", "metadata_sha256"}
_MOST_BYTES = 2**20
"""Of a manifest."""


@dataclass(frozen=True, kw_only=True)
class SetRequest:
    """What to make, and this run's share of it.

    folder: where; made if absent.
    painter: what paints; `n`: pictures 0..n-1.
    format: a key of `encoding.ENCODERS`.
    chunk: pictures a process paints between two commits to the disk.
    jobs: processes; task_index, num_tasks: this run does every num_tasks-th chunk.
    """

    folder: Path
    painter: Painter
    n: int
    format: str = "jpg"
    chunk: int = 32
    jobs: int = 1
    task_index: int = 0
    num_tasks: int = 1

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        for name in ("n", "chunk", "jobs", "num_tasks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
        check_task(self.task_index, self.num_tasks)
        check_format(self.format)

    @property
    def images(self) -> Path:
        """The folder of the picture files."""
        return self.folder / IMAGES

    @property
    def metadata(self) -> Path:
        """The file of all records."""
        return self.folder / "metadata.jsonl"

    @property
    def work(self) -> Path:
        """The folder of records and locks of a set that is being made."""
        return self.folder / ".work"

    @property
    def parts(self) -> Path:
        """The folder of the records that are not joined yet."""
        return self.work / "parts"


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """What a run did. painted: by this run; whole: pictures of the set that are on the disk."""

    n: int
    painted: int
    whole: int
    manifest: dict[str, Any]

    @property
    def complete(self) -> bool:
        """Whether the set has all its pictures."""
        return bool(self.manifest["status"] == "complete")


def generate_set(
    request: SetRequest, *, run: Run = run_chunks, progress: Progress = no_progress
) -> SetResult:
    """Make a set of pictures, or continue, grow, heal or close one.

    A set that is not complete is closed by an n of at least the pictures that are whole in order.

    Picture i depends on the painter and i alone, and the finished folder on the painter, n and
    the format: not on jobs, tasks, interruptions or what n was in an earlier run.

    Args:
        request: what to make.
        run: how chunks of work are run.
        progress: called with the pictures that are whole and all pictures of this task, first
            before anything is painted.

    Returns:
        What was done.

    Raises:
        PipelineError: if the folder holds something else or a set with other settings, cannot be
            written, is in use by another run, or if disk or memory run out.
        KeyboardInterrupt: on Ctrl-C, after the chunks in hand are on the disk.
    """
    with world_errors(
        request.folder,
        jobs=request.jobs,
        elsewhere="choose another --out, or ",
        smaller=", or a smaller --size",
    ):
        _check_folder(request)
        busy = (
            f"another run is painting task {request.task_index} of {request.num_tasks} of "
            f"{request.folder}; wait for it, or choose another --out"
        )
        lock = f"task-{request.task_index}-of-{request.num_tasks}.lock"
        with _work_lock(request, lock, busy=busy):
            _refuse_other_split(request)
            with _records_lock(request):
                missing = _begin(request)
            own = _own_share(request, [range(request.n)])
            to_paint = _own_share(request, missing)
            painted = _paint(request, to_paint, sum(map(len, own)), run, progress)
            with _records_lock(request):
                return _finish(request, painted)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a set.

    Raises:
        PipelineError: if there is none, it is no manifest of a set of pictures, or it is damaged.
        OSError: if it cannot be read.
    """
    path = folder / "manifest.json"
    try:
        content = read_regular(path, max_bytes=_MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PipelineError(
            f"{folder} is not a set of pictures: it has no manifest.json; "
            "name a folder made by pixmix-gen"
        ) from error
    found = read_json(content, dict[str, Any], str(path), _COPY)
    if found.get("format") == FORMAT:
        raise PipelineError(
            f"{folder} holds shards, not files of pictures; check them with pixmix-shard verify, "
            "continue them with --to-shards, or choose another folder"
        )
    if not found.keys() >= _REQUIRED:
        raise PipelineError(
            f"{path} is not the manifest of a set of pictures; choose another folder"
        )
    manifest: dict[str, Any] = {**read_json(content, _Manifest, str(path), _COPY)}
    lacking = set() if manifest["status"] == "partial" else _REQUIRED_OF_COMPLETE - manifest.keys()
    if manifest["settings"].get("format") not in [*ENCODERS]:
        lacking.add("settings.format")
    lacking |= {
        f"made_with.{name}" for name in {"pixmix", "encoder"} - manifest["made_with"].keys()
    }
    if lacking:
        raise PipelineError(f"{path} is damaged, it lacks {', '.join(sorted(lacking))}; {_COPY}")
    return manifest


def earlier_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of the set in a folder, none where there is no set.

    Raises:
        PipelineError: if there is something else in its place.
        OSError: if it cannot be read.
    """
    if not (folder / "manifest.json").exists():
        return {}
    settings: dict[str, Any] = read_manifest(folder)["settings"]
    return settings


def _check_folder(request: SetRequest) -> None:
    folder = request.folder
    check_no_file(folder, "--out")
    if not folder.exists():
        return
    # Listed before the manifest is looked for: another task may be starting, and whoever sees that
    # task's pictures then sees its manifest too, which is written first. A run killed in its first
    # moment leaves its work folder and perhaps a partial manifest.
    others = [
        entry.name
        for entry in sorted(folder.iterdir())
        if entry != request.work and not entry.name.endswith(PARTIAL_SUFFIX)
    ]
    if (folder / "manifest.json").exists():
        _refuse_other_settings(request)
    elif others:
        raise PipelineError(
            f"{folder} holds something else ({others[0]}); choose an empty or a new folder "
            "for --out"
        )


def _begin(request: SetRequest) -> list[range]:
    """Open the books: see that an earlier run agrees, and return the pictures to paint.

    Those are the pictures that no record vouches for, and those that are no longer there.
    """
    manifest = _partial_manifest(request)
    signed = False
    begun = request.n
    if (request.folder / "manifest.json").exists():
        # Again, for another run may have written it meanwhile.
        earlier = _refuse_other_settings(request)
        begun = max(begun, earlier["pictures"])
        # The code that began a set stays named: it is what made the first pictures.
        manifest["made_with"] = earlier["made_with"]
        signed = earlier["status"] == "complete" and request.metadata.exists()
        if signed and file_sha256(request.metadata) != earlier["metadata_sha256"]:
            # Any of its lines may have changed. It goes while the manifest still disowns it.
            request.metadata.unlink()
    lost = _lost(request, begun)
    gone = {
        part: [*lost, *_damaged(request, part, signed=signed)]
        for part in find_parts(request.metadata, request.parts)
    }
    recorded = [kept for part in gone for kept in subtract(part.pictures, gone[part])]
    missing = subtract(range(request.n), recorded)
    if begun > request.n:
        _check_smaller(request, begun, recorded)
    if missing or begun > request.n or not request.metadata.exists():
        # First of all, for a folder with pictures and no manifest is somebody else's. Of records
        # that are not joined, too, for a complete manifest would have them removed.
        _write_manifest(request, manifest)
    request.images.mkdir(exist_ok=True)
    request.parts.mkdir(exist_ok=True)
    for part, pictures in gone.items():
        if subtract(part.pictures, pictures) != [part.pictures]:
            forget(part, pictures, request.parts)
    return missing


def _damaged(request: SetRequest, part: Part, *, signed: bool) -> list[range]:
    """Find the pictures of this task whose records in a part are not theirs.

    The tasks look through their own records, so that together they read them once.

    Args:
        request: what is made.
        part: some records.
        signed: the metadata file is the one that a manifest names.
    """
    if signed and part.path == request.metadata:
        return []
    return damaged(part, _own_share(request, [part.pictures]), request.format)


def _check_smaller(request: SetRequest, begun: int, recorded: list[range]) -> None:
    """See that a set that is closed before its end loses no picture, and that nobody paints it.

    What was painted out of order behind its new end is removed when it is closed.
    """
    missing = subtract(range(begun), recorded)
    whole = missing[0].start if missing else begun
    if request.n < whole:
        raise PipelineError(
            f"n: {request.folder} was begun with {begun} pictures, {whole} of them are whole, this "
            f"command says {request.n}; use --n {whole} to close it with those, or choose another "
            "--out"
        )
    own = f"task-{request.task_index}-of-{request.num_tasks}.lock"
    for path in request.work.glob("task-*.lock"):
        if path.name != own:
            busy = f"{request.folder} is being painted ({path.stem}); wait for that to close it"
            with folder_lock(path, busy=busy):
                pass


def _lost(request: SetRequest, n: int) -> list[range]:
    """Find those of n pictures without a file of some size: lost, a broken link, or not painted."""
    if not request.images.is_dir():
        return [range(n)]
    names = {entry.name for entry in os.scandir(request.images) if _has_content(entry)}
    return ranges_of(
        index for index in range(n) if picture_name(index, request.format) not in names
    )


def _has_content(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file() and entry.stat().st_size > 0
    except OSError:
        return False


def _refuse_other_split(request: SetRequest) -> None:
    """See that nobody paints these pictures in another number of tasks."""
    own = f"-of-{request.num_tasks}.lock"
    for path in request.work.glob("task-*.lock"):
        if not path.name.endswith(own):
            busy = (
                f"{request.folder} is being painted with another --num-tasks ({path.stem}); "
                "wait for that, or use its number of tasks"
            )
            with folder_lock(path, busy=busy):
                pass


def _partial_manifest(request: SetRequest) -> dict[str, Any]:
    return {
        "kind": request.painter.kind(),
        "status": "partial",
        "pictures": request.n,
        "licence": request.painter.licence(),
        "settings": {**request.painter.settings(), "format": request.format},
        "made_with": {
            "pixmix": __version__,
            **request.painter.versions(),
            "encoder": encoder_version(request.format),
        },
    }


def _refuse_other_settings(request: SetRequest) -> dict[str, Any]:
    """See that the set in the folder is the one that is asked for, and return its manifest."""
    earlier = read_manifest(request.folder)
    fresh = _partial_manifest(request)
    compared = [("kind", earlier["kind"], fresh["kind"])]
    for field, value in fresh["settings"].items():
        compared.append((field, earlier["settings"].get(field), value))
    for field, before, now in compared:
        refuse_other(request.folder, field, before, now)
    refuse_other_versions(request.folder, earlier["made_with"], fresh["made_with"])
    if earlier["status"] == "complete" and earlier["pictures"] > request.n:
        raise PipelineError(
            f"n: {request.folder} is complete with {earlier['pictures']} pictures, this command "
            f"says {request.n}; use --n {earlier['pictures']} or more, or choose another --out"
        )
    return earlier


def refuse_other(place: Path | str, field: str, before: object, now: object) -> None:
    """See that a setting is that of the set so far.

    Raises:
        PipelineError: if it is another, with its name.
    """
    if before != now:
        raise PipelineError(
            f"{field}: {place} was begun with {before}, this command says {now}; "
            f"repeat {before}, or choose another --out"
        )


def refuse_other_versions(
    place: Path | str, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """See that the code that pictures depend on is that of the set so far.

    Raises:
        PipelineError: if it is another, with its name.
    """
    for field, version in now.items():
        # The version of this package alone decides nothing: the others say when pictures change.
        if before.get(field) != version and field != "pixmix":
            raise PipelineError(
                f"{field}: {place} was begun with {before.get(field)} (pixmix "
                f"{before.get('pixmix')}), here is {version}; install what it was begun "
                "with, or choose another --out"
            )


def _own_share(request: SetRequest, ranges: list[range]) -> list[range]:
    pieces = cut(ranges, request.chunk)
    return share(pieces, request.chunk, request.task_index, request.num_tasks)


def _paint(
    request: SetRequest,
    chunks: list[range],
    total: int,
    run: Run,
    progress: Progress,
) -> int:
    to_paint = sum(map(len, chunks))
    painted = 0
    progress(total - to_paint, total)

    def finished(pictures: range) -> None:
        nonlocal painted
        painted += len(pictures)
        progress(total - to_paint + painted, total)

    if chunks:
        work = partial(
            paint_chunk,
            request.painter,
            request.format,
            request.images,
            request.parts,
        )
        run(work, chunks, jobs=min(request.jobs, len(chunks)), finished=finished)
    return painted


def _finish(request: SetRequest, painted: int) -> SetResult:
    """Close the books if every picture is recorded."""
    manifest = read_manifest(request.folder)
    parts = find_parts(request.metadata, request.parts)
    missing = subtract(range(request.n), [part.pictures for part in parts])
    whole = request.n - sum(map(len, missing))
    # Another task may have let the set grow meanwhile; then its end is not ours to write.
    if not missing and manifest["pictures"] == request.n:
        if manifest["status"] == "partial":
            manifest = _join(request, manifest, parts)
        # What an earlier run left that was killed here goes too. Another task may wait for a lock
        # in this folder: it finds the set complete, and comes here in its turn.
        shutil.rmtree(request.work, ignore_errors=True)
    return SetResult(n=request.n, painted=painted, whole=whole, manifest=manifest)


def _join(request: SetRequest, manifest: dict[str, Any], parts: list[Part]) -> dict[str, Any]:
    drafts = merge(parts, request.n, request.metadata, request.format)
    _remove_pictures_behind(request)
    remove_partial_files(request.images)
    remove_partial_files(request.folder)
    complete = manifest | {
        "status": "complete",
        "drafts": drafts,
        "acceptance_rate": round(request.n / drafts, 6),
        "metadata_sha256": file_sha256(request.metadata),
    }
    _write_manifest(request, complete)
    return complete


def _remove_pictures_behind(request: SetRequest) -> None:
    """Remove what was painted behind the end of a set that was begun larger."""
    for path in request.images.glob(f"[0-9]*.{request.format}"):
        if path.stem.isdecimal() and int(path.stem) >= request.n:
            path.unlink(missing_ok=True)


def _write_manifest(request: SetRequest, manifest: dict[str, Any]) -> None:
    content = json.dumps(manifest, indent=2) + "\n"
    write_file(request.folder / "manifest.json", content.encode())


@contextmanager
def _records_lock(request: SetRequest) -> Iterator[None]:
    with _work_lock(request, "records.lock"):
        yield


@contextmanager
def _work_lock(request: SetRequest, name: str, *, busy: str | None = None) -> Iterator[None]:
    """Hold a lock in the work folder, which the task that closes the set removes with its locks."""
    with ExitStack() as held:
        locked = False
        while not locked:
            request.work.mkdir(parents=True, exist_ok=True)
            # Removed since: the set is closed, which this task is yet to see.
            with suppress(FileNotFoundError):
                held.enter_context(folder_lock(request.work / name, busy=busy))
                locked = True
        yield
