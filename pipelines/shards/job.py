"""A job: numbered items, made by any number of processes, tasks and machines, whole or not at all.

    STORE/.work/request.json     what is asked: settings, versions, number of items; first
          .work/done/00000032-00000064.MARK.jsonl    items 32 to 63 are whole: a line of JSON each
          manifest.json          last, when the job is closed; then .work is removed

A run with other settings than the request is refused, naming the field. Items are cut into chunks,
of which task t of T makes each T-th. A process writes the files of a chunk, then its done record,
whose name tells (MARK) for which request. A run makes the items of its share for which no record
vouches together with their files: so the same command resumes a killed run, and tasks share nothing
but the store. When all items are recorded, the records are joined into the files that close the
job. Locks let the last task of an exclusive job do this; others are closed by a run of the whole
job, or by `merge`. A closed job that lost files is opened again by the same command: what its
manifest still vouches for becomes done records. A kill may leave files without their record, never
a record without its files: the same command makes those again, with the same bytes.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec

from pipelines.errors import PipelineError
from pipelines.shards.format import MANIFEST_NAME
from pipelines.shards.output import DONE, WORK, OutputStore
from pipelines.system.files import (
    folder_lock,
    read_json,
    removable_lock,
    resource_errors,
    sha256,
    write_file,
)
from pipelines.system.processes import RunChunks, run_chunks
from pipelines.system.progress import Progress, no_progress
from pipelines.system.ranks import Task, ranges_of, subtract

REQUEST = f"{WORK}/request.json"

_DONE_NAME = re.compile(rf"{re.escape(DONE)}/(\d{{8,15}})-(\d{{8,15}})\.([0-9a-f]{{16}})\.jsonl")
_RECORD_BYTES = 2**20
"""Of a done record of a job that is opened again: a large dataset is never in memory whole."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a job is to make.

    settings: plain JSON values that the files depend on. made_with: versions of the code that they
    depend on. n: number of items.
    """

    settings: dict[str, Any]
    made_with: dict[str, Any]
    n: Annotated[int, msgspec.Meta(ge=1, le=2**48)]

    @property
    def mark(self) -> str:
        """Tie done records to the request: two that began at the same time may differ."""
        versions = {name: each for name, each in self.made_with.items() if name != "pixmix"}
        return sha256(json.dumps([self.settings, versions], sort_keys=True).encode())[:16]


class Product(Protocol):
    """What a job makes, and how. It is pickled for other processes and machines.

    sizes: the bytes of each file in the store, by name. manifest: of a closed job, its content.
    """

    def weight(self, items: range) -> int:
        """Return how many images the items are, for the progress."""

    def make(self, items: range, folder: Path) -> Iterable[bytes]:
        """Write the files of items to a folder, each whole, and return their records as lines."""

    def parse(self, item: int, line: bytes, sizes: Mapping[str, int]) -> Any:  # noqa: ANN401
        """Return a record, None if it is damaged, not this item's, or its files are not there."""

    def takes_over(self, names: set[str]) -> bool:
        """Return whether files without request and manifest may be this job's own."""

    def read_manifest(self, manifest: bytes) -> Request:
        """Return what a closed job was begun with; raise PipelineError for another manifest."""

    def is_complete(self, manifest: bytes, sizes: Mapping[str, int]) -> bool:
        """Return whether a closed job has all of its files."""

    def records(self, manifest: bytes, sizes: Mapping[str, int]) -> Iterator[tuple[int, bytes]]:
        """Yield items and records, ascending, for which the manifest vouches."""

    def close(self, request: Request, records: Iterable[Any]) -> None:
        """Write what describes all items, the manifest last.

        request: what the job was begun with. records: of `parse`, of all items in order.
        """


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to make, where, and by which rules.

    store: where it is written.
    request: what is asked.
    product: what makes the items.
    chunk: items that a process makes between two done records.
    exclusive: whether tasks hold locks, for which the store must be a folder.
    resizable: whether n may grow later, or become smaller while the job is not closed.
    """

    store: OutputStore
    request: Request
    product: Product
    chunk: int = 1
    exclusive: bool = False
    resizable: bool = False


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """How a job stands after a run.

    n: items. made: those of this run. missing: those that are not whole. complete: it is closed.
    """

    n: int
    made: tuple[range, ...] = ()
    missing: tuple[range, ...] = ()
    complete: bool

    @property
    def whole(self) -> int:
        """The number of items that are whole."""
        return self.n - sum(map(len, self.missing))


ALONE = Task()


def run_job(
    job: Job,
    task: Task = ALONE,
    *,
    jobs: int = 1,
    run: RunChunks = run_chunks,
    progress: Progress = no_progress,
) -> JobResult:
    """Make a task's share of a job, or what is missing of it; close the job if that is due.

    The files depend on the request alone: not on jobs, chunks, tasks or interruptions.

    Args:
        job: what to make.
        task: which of how many this run is.
        jobs: number of processes.
        run: how chunks are run.
        progress: called with the images of this task that are whole and their number.

    Raises:
        PipelineError: if the store holds something else or a job with other settings, cannot be
            written, is in use by another run of the same task, or if disk or memory run out.
        KeyboardInterrupt: on Ctrl-C, after the chunks in hand are whole.
    """
    if min(jobs, job.chunk) < 1:
        raise ValueError(f"jobs is {jobs} and chunk is {job.chunk}; use at least 1")
    with store_errors(job.store, jobs):
        if job.exclusive:
            look(job)  # A refusal leaves no trace, as a lock would.
        with task_lock(job.store, task) if job.exclusive else nullcontext():
            return run_locked(job, task, jobs=jobs, run=run, progress=progress)


def run_locked(job: Job, task: Task, *, jobs: int, run: RunChunks, progress: Progress) -> JobResult:
    """Do the work of `run_job`, of which the caller holds the lock."""
    n = job.request.n
    total = sum(map(job.product.weight, task.share([range(n)], job.chunk)))
    with _books(job):
        found = _begin(job, task)
        if found is None or found.request is None:
            progress(total, total)
            return JobResult(n=n, complete=True)
        missing = _missing(job, found.request, found.sizes, task)
    done = total - sum(map(job.product.weight, missing))
    progress(done, total)

    def finished(items: range) -> None:
        nonlocal done
        done += job.product.weight(items)
        progress(done, total)

    if missing:
        work = partial(make_chunk, job, found.request.mark)
        run(work, missing, jobs=min(jobs, len(missing)), finished=finished)
    with _books(job):
        return _finish(job, look(job), missing, closing=job.exclusive or task.count == 1)


def merge(job: Job) -> JobResult:
    """Close a job that was begun and of which all items are whole; else tell what is missing."""
    with store_errors(job.store, 1):
        found = _begin(job, ALONE)
        if found is None or found.request is None:
            return JobResult(n=job.request.n, complete=True)
        result = _finish(job, found, [], closing=True)
        if result.complete:
            return result
        missing = chain.from_iterable(_missing(job, found.request, found.sizes, ALONE))
        return replace(result, missing=tuple(ranges_of(missing)))


def make_chunk(job: Job, mark: str, items: range) -> range:
    """Make items and commit their record; the work of one process.

    mark: of the request that the job was begun with. items: a chunk, or a part of one.
    """
    try:
        with job.store.writing() as folder:
            lines = [*job.product.make(items, folder)]
        _write_done(job.store, mark, items, lines)
    except FileNotFoundError:
        # Another run made the same items, and closed the job meanwhile.
        if job.exclusive or job.store.read(MANIFEST_NAME) is None:
            raise
    return items


def read_request(store: OutputStore) -> Request | None:
    """Return what a job in the making was begun with, None where there is none."""
    content = store.read(REQUEST)
    if content is None:
        return None
    remedy = f"remove {store.name} and run the command again, or choose another output folder"
    return read_json(content, Request, f"{store.name}/{REQUEST}", remedy)


def is_unfinished(folder: Path) -> bool:
    """Return whether a folder holds a job in the making."""
    return (folder / REQUEST).exists()


def store_errors(store: OutputStore, jobs: int) -> AbstractContextManager[None]:
    """Translate disk and memory errors of a job into one-line messages; see `resource_errors`."""
    return resource_errors(
        store.name,
        jobs=jobs,
        disk_remedy="choose another output folder, or ",
        memory_remedy=", or smaller images",
    )


# --- what is there -------------------------------------------------------------------------------


class _Found(NamedTuple):
    """What is in a store. closed: what the manifest, if there is one, was begun with."""

    sizes: Mapping[str, int]
    manifest: bytes | None
    closed: Request | None
    request: Request | None


def look(job: Job) -> _Found:
    """Return what is in the store; refuse something else, and a job with other settings."""
    store = job.store
    sizes = store.sizes()
    manifest = store.read(MANIFEST_NAME) if MANIFEST_NAME in sizes else None
    closed = None if manifest is None else job.product.read_manifest(manifest)
    request = read_request(store) if REQUEST in sizes else None
    if request is None and REQUEST in sizes:
        return look(job)  # It was closed at this moment.
    if (earlier := request or closed) is not None:
        refuse_other(store.name, earlier, job.request)
    if job.resizable and closed is not None and job.request.n < closed.n:
        raise PipelineError(
            f"n: {store.name} is complete with {closed.n} images, this command says "
            f"{job.request.n}; use --n {closed.n} or more, or choose another output folder"
        )
    others = {name for name in sizes if not name.startswith(f"{WORK}/")}
    if earlier is None and others and not job.product.takes_over(others):
        if store.read(MANIFEST_NAME) is not None or store.read(REQUEST) is not None:
            return look(job)  # It was closed, or begun, at this moment.
        raise PipelineError(
            f"{store.name} holds something else ({min(others)}); choose an empty or a new output "
            f"folder, or remove it first if it is a dataset that lost its {MANIFEST_NAME}"
        )
    return _Found(sizes, manifest, closed, request)


def refuse_other(name: str, earlier: Request, asked: Request) -> None:
    """Refuse to resume a job with other settings, or with code that gives other files."""
    for field, now in asked.settings.items():
        before = earlier.settings.get(field)
        if before != now and field not in earlier.settings:
            raise PipelineError(
                f"{name} holds a dataset of another kind, which has no {field}; choose another "
                "output folder"
            )
        if before != now:
            raise PipelineError(
                f"{field}: {name} was begun with {before}, this command says {now}; "
                f"repeat {before}, or choose another output folder"
            )
    for field, now in asked.made_with.items():
        before = earlier.made_with.get(field)
        # The version of this package alone decides nothing: the others say when files change.
        if before != now and field != "pixmix":
            raise PipelineError(
                f"{field}: {name} was begun with {before} (pixmix "
                f"{earlier.made_with.get('pixmix')}), here is {now}; install what it was begun "
                "with, or choose another output folder"
            )


def _is_complete(job: Job, found: _Found) -> bool:
    """Return whether the job is closed and whole; remove what a killed run left of its making."""
    complete = (
        found.manifest is not None
        and found.closed is not None
        and found.closed.n == job.request.n
        and job.product.is_complete(found.manifest, found.sizes)
    )
    if complete and any(name.startswith(f"{WORK}/") for name in found.sizes):
        job.store.close()
    return complete


def _parts(sizes: Mapping[str, int], mark: str) -> list[tuple[range, str]]:
    """Return items and name of each done record of a request, in order of the items.

    Of those that begin with the same item, the one of most items comes first: the others mend it.
    """
    # Programs that synchronize folders leave files of other names.
    named = filter(None, map(_DONE_NAME.fullmatch, sizes))
    parts = [(range(int(each[1]), int(each[2])), each[0]) for each in named if each[3] == mark]
    return sorted(parts, key=lambda part: (part[0].start, -part[0].stop))


def _lines(job: Job, parts: Sequence[tuple[range, str]]) -> Iterator[Iterable[tuple[int, bytes]]]:
    """Yield items and lines of each done record; a line without an end is damaged."""
    contents = job.store.read_all([name for _, name in parts])
    for (items, _), content in zip(parts, contents, strict=True):
        yield zip(items, content.split(b"\n")[:-1], strict=False)


# --- beginning -----------------------------------------------------------------------------------


def _begin(job: Job, task: Task) -> _Found | None:
    """Begin the job, resume it, or open it again if it lost files; return None if complete."""
    store, asked = job.store, job.request
    found = look(job)
    if _is_complete(job, found):
        return None
    earlier = found.request or found.closed or asked
    request = Request(settings=asked.settings, made_with=earlier.made_with, n=asked.n)
    if job.resizable:
        _check_smaller(job, found, earlier, task)
    reopened = found.manifest is not None and _reopen(job, found.manifest, found.sizes, request)
    if request == found.request and not reopened:
        return found
    with store.writing() as folder:
        (folder / WORK).mkdir(parents=True, exist_ok=True)
        write_file(folder / REQUEST, msgspec.json.format(msgspec.json.encode(request)))
    # Read also by whoever wrote it, for another may have written it at the same time.
    found = look(job)
    return found if found.request is not None else _begin(job, task)


def _check_smaller(job: Job, found: _Found, earlier: Request, task: Task) -> None:
    """Refuse a smaller n that would lose items whole in order, or while another task runs."""
    n, name = job.request.n, job.store.name
    if n >= earlier.n:
        return
    missing = _missing(job, earlier, found.sizes, ALONE)
    whole = missing[0].start if missing else earlier.n
    if n < whole:
        raise PipelineError(
            f"n: {name} was begun with {earlier.n} images, {whole} of them are whole, this command "
            f"says {n}; use --n {whole} to close it with those, or choose another output folder"
        )
    _refuse_running(name, lambda lock: lock != _lock_name(task), "wait for that")


def _reopen(job: Job, manifest: bytes, sizes: Mapping[str, int], request: Request) -> bool:
    """Write done records of what the manifest of a closed job vouches for, if there are any."""
    recorded = {item for items, _ in _parts(sizes, request.mark) for item in items}
    lines: list[bytes] = []
    start = size = 0
    for item, line in job.product.records(manifest, sizes):
        if item in recorded:
            continue
        if lines and (item != start + len(lines) or size > _RECORD_BYTES):
            _write_done(job.store, request.mark, range(start, start + len(lines)), lines)
            lines, size = [], 0
        start = start if lines else item
        lines.append(line)
        size += len(line)
    if lines:
        _write_done(job.store, request.mark, range(start, start + len(lines)), lines)
    return bool(lines)


def _missing(job: Job, request: Request, sizes: Mapping[str, int], task: Task) -> list[range]:
    """Return the chunks, or parts of such, of a task's share for which no record vouches."""
    parts = [part for part in _parts(sizes, request.mark) if task.share([part[0]], job.chunk)]
    whole = {
        item
        for lines in _lines(job, parts)
        for item, line in lines
        if task.has(item, job.chunk) and job.product.parse(item, line, sizes) is not None
    }
    return task.share(subtract(range(request.n), ranges_of(sorted(whole))), job.chunk)


def _write_done(store: OutputStore, mark: str, items: range, lines: Iterable[bytes]) -> None:
    with store.writing() as folder:
        (folder / DONE).mkdir(parents=True, exist_ok=True)
        name = f"{items.start:08d}-{items.stop:08d}.{mark}.jsonl"
        write_file(folder / DONE / name, b"".join(line + b"\n" for line in lines))


# --- closing -------------------------------------------------------------------------------------


class _FaultyError(Exception):
    """Raised with the list of items that have no record, or a damaged one."""


def _finish(job: Job, found: _Found, made: Sequence[range], *, closing: bool) -> JobResult:
    """Close the job if that is due and every item is whole."""
    n = job.request.n
    result = partial(JobResult, n=n, made=tuple(made))
    # Closed meanwhile, for another run had made the same items; or it has again what it lost.
    if _is_complete(job, found):
        return result(complete=True)
    if found.request is None:
        raise PipelineError(
            f"{job.store.name} was closed or removed at this moment; run the command again"
        )
    parts = _parts(found.sizes, found.request.mark)
    missing = subtract(range(n), [items for items, _ in parts])
    # Another task may have let it grow meanwhile; then its end is not ours to write.
    if missing or not closing or found.request.n != n:
        return result(missing=tuple(missing), complete=False)
    try:
        job.product.close(found.request, _join(job, parts, found.sizes))
    except _FaultyError as error:
        return result(missing=tuple(ranges_of(error.args[0])), complete=False)
    job.store.close()
    return result(complete=True)


def _join(job: Job, parts: Sequence[tuple[range, str]], sizes: Mapping[str, int]) -> Iterator[Any]:
    """Yield the records of all items in order, then raise _FaultyError if some have none."""
    following = 0
    records: dict[int, Any] = {}
    faulty: list[int] = []
    ends = [*(items.start for items, _ in parts[1:]), job.request.n]
    for lines, end in zip(_lines(job, parts), ends, strict=True):
        for item, line in lines:
            if item >= following:
                record = job.product.parse(item, line, sizes)
                if record is not None:
                    records[item] = record
        # No later part has items before its first.
        for item in range(following, min(end, job.request.n)):
            if item in records:
                yield records.pop(item)
            else:
                faulty.append(item)
        following = max(following, end)
    if faulty:
        raise _FaultyError(faulty)


# --- locks of a folder ---------------------------------------------------------------------------


@contextmanager
def task_lock(store: OutputStore, task: Task) -> Iterator[None]:
    """Hold the lock of a task; refuse a run of the same task or with another number of tasks."""
    remedy = "wait for it, or choose another output folder"
    busy = f"another run is writing task {task.index} of {task.count} of {store.name}; {remedy}"
    with removable_lock(Path(store.name, WORK, _lock_name(task)), busy=busy):
        own = f"-of-{task.count}.lock"
        _refuse_running(store.name, lambda lock: not lock.endswith(own), "use its --num-tasks")
        yield


def _lock_name(task: Task) -> str:
    return f"task-{task.index}-of-{task.count}.lock"


def _refuse_running(folder: str, is_other: Callable[[str], bool], remedy: str) -> None:
    """Refuse to continue beside a run that holds a task's lock of such a name."""
    for path in Path(folder, WORK).glob("task-*.lock"):
        if is_other(path.name):
            with folder_lock(path, busy=f"{folder} is being written ({path.stem}); {remedy}"):
                pass


def _books(job: Job) -> AbstractContextManager[None]:
    """Hold the lock that tasks need to begin and to close a job."""
    path = Path(job.store.name, WORK, "books.lock")
    return removable_lock(path) if job.exclusive else nullcontext()
