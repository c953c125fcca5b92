"""Resumable jobs: any number of processes, tasks and machines produce numbered items.

    STORE/.work/request.json     settings, versions and number of items; written first
          .work/done/00000032-00000064.HASH.jsonl    items 32 to 63 are done: a line of JSON each
          manifest.json          written last, when the job is closed; then .work is removed

A run whose settings differ from the request is refused, and the error names the field. Items are
cut into chunks; task t of T produces every T-th chunk. A process writes the files of a chunk, then
its done record, whose name holds the hash of the request. A run produces the items of its share
that have no valid record, so the same command resumes a killed run, and tasks share nothing but the
store. When all items have records, these are joined into the files that close the job. The last
task of an exclusive job does this, under a lock; other jobs are closed by a run of the whole job,
or by `merge`. The same command repairs a closed job that lost files: the items whose files still
match the manifest get done records, and the others are produced again. A killed run may leave files
without a record, never a record without its files; the same command produces these items again,
byte for byte.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec

from pipelines.errors import PipelineError
from pipelines.shards.format import MANIFEST_NAME
from pipelines.shards.output import (
    DONE,
    WORK,
    Folder,
    OutputStore,
    lock_name,
    refuse_running,
    task_lock,
)
from pipelines.system.files import (
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
"""Size of a done record of a reopened job: a large dataset does not fit into memory."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a job produces.

    Attributes:
        settings: plain JSON values that the files depend on.
        versions: versions of the code that the files depend on.
        n: number of items.
    """

    settings: dict[str, Any]
    versions: dict[str, Any]
    n: Annotated[int, msgspec.Meta(ge=1, le=2**48)]

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that tie done records to a request: two runs may start at once."""
        versions = {name: each for name, each in self.versions.items() if name != "pixmix"}
        return sha256(json.dumps([self.settings, versions], sort_keys=True).encode())[:16]


class Product(Protocol):
    """What a job produces, and how. It is pickled for other processes and machines.

    In all methods `sizes` maps the name of each file in the store to its bytes, and `manifest` is
    the content of the manifest of a closed job.
    """

    def weight(self, items: range) -> int:
        """Return the number of images in the items, for the progress."""

    def make(self, items: range, folder: Path) -> Iterable[bytes]:
        """Write the files of items to a folder, each atomically; return their records as lines."""

    def parse(self, item: int, line: bytes, sizes: Mapping[str, int]) -> Any:  # noqa: ANN401
        """Return a record; None if it is damaged, of another item, or its files are missing."""

    def takes_over(self, names: set[str]) -> bool:
        """Return whether files without a request and a manifest may belong to this job."""

    def read_manifest(self, manifest: bytes) -> Request:
        """Return the request of a closed job; raise PipelineError for another manifest."""

    def is_complete(self, manifest: bytes, sizes: Mapping[str, int]) -> bool:
        """Return whether a closed job has all of its files."""

    def records(self, manifest: bytes, sizes: Mapping[str, int]) -> Iterator[tuple[int, bytes]]:
        """Yield in order the items whose files match the manifest, each with its record."""

    def close(self, request: Request, records: Iterable[Any]) -> None:
        """Write the files that describe all items, the manifest last.

        `request` started the job; `records` are the parsed records of all items, in order.
        """


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job: its request, its store and its rules.

    Attributes:
        store: where the files are written.
        request: what the job produces.
        product: produces the items.
        chunk: items that a process produces between two done records.
        exclusive: whether tasks hold locks, in the work folder of the store.
        resizable: whether n may grow later, or shrink while the job is not closed.
    """

    store: OutputStore
    request: Request
    product: Product
    chunk: int = 1
    exclusive: bool = False
    resizable: bool = False


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """The state of a job after a run.

    Attributes:
        n: number of items.
        made: items that this run produced.
        missing: items that are not done.
        complete: whether the job is closed.
    """

    n: int
    made: tuple[range, ...] = ()
    missing: tuple[range, ...] = ()
    complete: bool

    @property
    def n_finished(self) -> int:
        """The number of items that are done."""
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
    """Produce the missing items of a task's share, and close the job if this was the last run.

    The files depend on the request alone: not on jobs, chunks, tasks or interruptions.

    Args:
        job: the job.
        task: index of this run, and number of tasks.
        jobs: number of processes.
        run: runs the chunks.
        progress: called with the number of images of this task that are done, and of all of them.

    Raises:
        PipelineError: if the store holds something else or a job with other settings, cannot be
            written, is in use by another run of the same task, or if disk or memory run out.
        KeyboardInterrupt: on Ctrl-C, after the current chunks are done.
    """
    if min(jobs, job.chunk) < 1:
        raise ValueError(f"jobs is {jobs} and chunk is {job.chunk}; use at least 1")
    with store_errors(job.store, jobs):
        if job.exclusive:
            inspect(job)  # A refusal must not leave a lock file behind.
        with task_lock(job.store, task) if job.exclusive else nullcontext():
            return run_locked(job, task, jobs=jobs, run=run, progress=progress)


def run_locked(job: Job, task: Task, *, jobs: int, run: RunChunks, progress: Progress) -> JobResult:
    """Do the work of `run_job` while the caller holds the lock of the task."""
    n = job.request.n
    total = sum(map(job.product.weight, task.share([range(n)], job.chunk)))
    with _state_lock(job):
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
        work = partial(make_chunk, job, found.request.hash)
        run(work, missing, jobs=min(jobs, len(missing)), finished=finished)
    with _state_lock(job):
        return _finish(job, inspect(job), missing, closing=job.exclusive or task.count == 1)


def merge(job: Job) -> JobResult:
    """Close a job if all of its items are done; otherwise return which are missing."""
    with store_errors(job.store, 1):
        found = _begin(job, ALONE)
        if found is None or found.request is None:
            return JobResult(n=job.request.n, complete=True)
        result = _finish(job, found, [], closing=True)
        if result.complete:
            return result
        missing = chain.from_iterable(_missing(job, found.request, found.sizes, ALONE))
        return replace(result, missing=tuple(ranges_of(missing)))


def make_chunk(job: Job, request_hash: str, items: range) -> range:
    """Produce a chunk of items, or a part of one, in this process, and write their done record."""
    try:
        with job.store.writing() as folder:
            lines = [*job.product.make(items, folder)]
        _write_done(job.store, request_hash, items, lines)
    except FileNotFoundError:
        # Another run may have produced the same items and closed the job.
        if job.exclusive or job.store.read(MANIFEST_NAME) is None:
            raise
    return items


def read_request(store: OutputStore) -> Request | None:
    """Return the request of an unfinished job, None if the store holds none."""
    content = store.read(REQUEST)
    if content is None:
        return None
    remedy = f"remove {store.name} and run the command again, or choose another output folder"
    return read_json(content, Request, f"{store.name}/{REQUEST}", remedy)


def is_unfinished(folder: Path) -> bool:
    """Return whether a folder holds an unfinished job."""
    return (folder / REQUEST).exists()


def store_errors(store: OutputStore, jobs: int) -> AbstractContextManager[None]:
    """Translate disk and memory errors of a job into one-line messages; see `resource_errors`."""
    return resource_errors(
        store.name if isinstance(store, Folder) else store.work,
        jobs=jobs,
        disk_remedy="choose another output folder, or ",
        memory_remedy=", or smaller images",
    )


# --- inspecting a store --------------------------------------------------------------------------


class _Found(NamedTuple):
    """The content of a store. closed: the request of a closed job, from its manifest."""

    sizes: Mapping[str, int]
    manifest: bytes | None
    closed: Request | None
    request: Request | None


def inspect(job: Job) -> _Found:
    """Return the content of the store.

    Raises:
        PipelineError: if it holds something else, or a job with other settings.
    """
    store = job.store
    sizes = store.sizes()
    manifest = store.read(MANIFEST_NAME) if MANIFEST_NAME in sizes else None
    closed = None if manifest is None else job.product.read_manifest(manifest)
    request = read_request(store) if REQUEST in sizes else None
    if request is None and REQUEST in sizes:
        return inspect(job)  # Another run has just closed it.
    if (earlier := request or closed) is not None:
        refuse_other(store.name, earlier, job.request)
    if job.resizable and closed is not None and job.request.n < closed.n:
        raise PipelineError(
            f"n: {store.name} is complete with {closed.n} images, and this command asks for "
            f"{job.request.n}; use --n {closed.n} or more, or choose another output folder"
        )
    others = {name for name in sizes if not name.startswith(f"{WORK}/")}
    if earlier is None and others and not job.product.takes_over(others):
        if store.read(MANIFEST_NAME) is not None or store.read(REQUEST) is not None:
            return inspect(job)  # Another run has just closed or started it.
        raise PipelineError(
            f"{store.name} holds something else ({min(others)}); choose an empty or a new output "
            f"folder, or, if it is a dataset that lost its {MANIFEST_NAME}, remove it first"
        )
    return _Found(sizes, manifest, closed, request)


def refuse_other(name: str, earlier: Request, current: Request) -> None:
    """Refuse to resume a job with other settings, or with code that produces other files."""
    for field, now in current.settings.items():
        before = earlier.settings.get(field)
        if before != now and field not in earlier.settings:
            raise PipelineError(
                f"{name} holds a dataset of another kind, without the setting {field}; choose "
                "another output folder"
            )
        if before != now:
            raise PipelineError(
                f"{field}: {name} was started with {before}, and this command uses {now}; "
                f"use {before}, or choose another output folder"
            )
    for field, now in current.versions.items():
        before = earlier.versions.get(field)
        # The version of this package is not compared: the other versions change with the files.
        if before != now and field != "pixmix":
            raise PipelineError(
                f"{field}: {name} was started with {before} (pixmix "
                f"{earlier.versions.get('pixmix')}), and this is {now}; install the version that "
                "it was started with, or choose another output folder"
            )


def _is_complete(job: Job, found: _Found) -> bool:
    """Return whether the job is closed and complete; remove work files of a killed run."""
    complete = (
        found.manifest is not None
        and found.closed is not None
        and found.closed.n == job.request.n
        and job.product.is_complete(found.manifest, found.sizes)
    )
    if complete and any(name.startswith(f"{WORK}/") for name in found.sizes):
        job.store.close()
    return complete


def _parts(sizes: Mapping[str, int], request_hash: str) -> list[tuple[range, str]]:
    """Return items and name of each done record of a request, in order of the items.

    Among records that begin with the same item the longest comes first; shorter ones repair it.
    """
    # Programs that synchronize folders leave files with other names.
    named = [each for each in map(_DONE_NAME.fullmatch, sizes) if each and each[3] == request_hash]
    parts = [(range(int(each[1]), int(each[2])), each[0]) for each in named]
    return sorted(parts, key=lambda part: (part[0].start, -part[0].stop))


def _lines(job: Job, parts: Sequence[tuple[range, str]]) -> Iterator[Iterable[tuple[int, bytes]]]:
    """Yield items and lines of each done record; a line without a line break is damaged."""
    contents = job.store.read_all([name for _, name in parts])
    for (items, _), content in zip(parts, contents, strict=True):
        yield zip(items, content.split(b"\n")[:-1], strict=False)


# --- starting ------------------------------------------------------------------------------------


def _begin(job: Job, task: Task) -> _Found | None:
    """Start the job, resume it, or reopen it if it lost files; return None if it is complete."""
    store, current = job.store, job.request
    found = inspect(job)
    if _is_complete(job, found):
        return None
    earlier = found.request or found.closed or current
    request = Request(settings=current.settings, versions=earlier.versions, n=current.n)
    if job.resizable:
        _check_smaller(job, found, earlier, task)
    reopened = found.manifest is not None and _reopen(job, found.manifest, found.sizes, request)
    if request == found.request and not reopened:
        return found
    with store.writing() as folder:
        (folder / WORK).mkdir(parents=True, exist_ok=True)
        write_file(folder / REQUEST, msgspec.json.format(msgspec.json.encode(request)))
    found = inspect(job)  # Another run may have written its own at the same time.
    return found if found.request is not None else _begin(job, task)


def _check_smaller(job: Job, found: _Found, earlier: Request, task: Task) -> None:
    """Refuse a smaller n that would drop finished items, or while another task runs."""
    n, name = job.request.n, job.store.name
    if n >= earlier.n:
        return
    missing = _missing(job, earlier, found.sizes, ALONE)
    whole = missing[0].start if missing else earlier.n
    if n < whole:
        raise PipelineError(
            f"n: {name} was started with {earlier.n} images, the first {whole} are finished, and "
            f"this command asks for {n}; use --n {whole} to close it with those, or choose another "
            "output folder"
        )
    refuse_running(job.store, lambda lock: lock != lock_name(task), "wait until it ends")


def _reopen(job: Job, manifest: bytes, sizes: Mapping[str, int], request: Request) -> bool:
    """Write done records of the items of a closed job; return whether there are any."""
    recorded = {item for items, _ in _parts(sizes, request.hash) for item in items}
    lines: list[bytes] = []
    start = size = 0
    for item, line in job.product.records(manifest, sizes):
        if item in recorded:
            continue
        if lines and (item != start + len(lines) or size > _RECORD_BYTES):
            _write_done(job.store, request.hash, range(start, start + len(lines)), lines)
            lines, size = [], 0
        start = start if lines else item
        lines.append(line)
        size += len(line)
    if lines:
        _write_done(job.store, request.hash, range(start, start + len(lines)), lines)
    return bool(lines)


def _missing(job: Job, request: Request, sizes: Mapping[str, int], task: Task) -> list[range]:
    """Return the chunks of a task's share, or the parts of chunks, that have no valid record."""
    parts = [part for part in _parts(sizes, request.hash) if task.share([part[0]], job.chunk)]
    whole = {
        item
        for lines in _lines(job, parts)
        for item, line in lines
        if task.has(item, job.chunk) and job.product.parse(item, line, sizes) is not None
    }
    return task.share(subtract(range(request.n), ranges_of(sorted(whole))), job.chunk)


def _write_done(store: OutputStore, hash_: str, items: range, lines: Iterable[bytes]) -> None:
    with store.writing() as folder:
        (folder / DONE).mkdir(parents=True, exist_ok=True)
        name = f"{items.start:08d}-{items.stop:08d}.{hash_}.jsonl"
        write_file(folder / DONE / name, b"".join(line + b"\n" for line in lines))


# --- closing -------------------------------------------------------------------------------------


class _FaultyError(Exception):
    """Raised with the list of items that have no valid record."""


def _finish(job: Job, found: _Found, made: Sequence[range], *, closing: bool) -> JobResult:
    """Close the job if `closing` and every item is done."""
    n = job.request.n
    result = partial(JobResult, n=n, made=tuple(made))
    # Another run may have closed it, or restored the files that it had lost.
    if _is_complete(job, found):
        return result(complete=True)
    if found.request is None:
        raise PipelineError(
            f"another run closed or removed {job.store.name}; run the command again"
        )
    parts = _parts(found.sizes, found.request.hash)
    missing = subtract(range(n), [items for items, _ in parts])
    # If another task has raised n, that task closes the job.
    if missing or not closing or found.request.n != n:
        return result(missing=tuple(missing), complete=False)
    try:
        job.product.close(found.request, _join(job, parts, found.sizes))
    except _FaultyError as error:
        return result(missing=tuple(ranges_of(error.args[0])), complete=False)
    job.store.close()
    return result(complete=True)


def _join(job: Job, parts: Sequence[tuple[range, str]], sizes: Mapping[str, int]) -> Iterator[Any]:
    """Yield the records of all items in order; at the end raise _FaultyError if some have none."""
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
        # Later parts begin at `end` or after it.
        for item in range(following, min(end, job.request.n)):
            if item in records:
                yield records.pop(item)
            else:
                faulty.append(item)
        following = max(following, end)
    if faulty:
        raise _FaultyError(faulty)


def _state_lock(job: Job) -> AbstractContextManager[None]:
    """Hold the lock that tasks of an exclusive job need to start and to close it."""
    return removable_lock(job.store.work / "state.lock") if job.exclusive else nullcontext()
