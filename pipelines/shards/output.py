"""Output stores: the folder or the object store that a dataset is written to.

    store = open_output("s3://bucket/fractals")
    store.sizes()               file name -> bytes, with the done records (".work/done/NAME"); a
                                folder that is not part of a dataset has 0 bytes
    store.read(name)            the content of a file, or None
    store.read_all(names)       the contents of files in order, a few at a time
    store.read_part(name, offset, size)     some bytes of a file
    store.finished_ns()         a time before which the manifest was not yet written
    with store.writing() as folder: ...     files written to the folder are in the store afterwards;
                                after an error some of them are, each complete; the manifest is last
    store.remove(names)         remove files
    store.close()               remove the work files of the dataset, and partial files

A file appears in a store atomically. A store can be pickled for other processes and
machines. Tasks share a store without locks. `store.work` is a local folder for files and locks that
the processes of one machine need until the dataset is finished.
"""

import errno
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import obstore
from obstore.exceptions import BaseError

from pipelines.errors import PipelineError
from pipelines.shards.cache import cache_folder
from pipelines.shards.format import MANIFEST_NAME
from pipelines.system import stores
from pipelines.system.attempts import run_coroutine
from pipelines.system.files import (
    PARTIAL_SUFFIX,
    check_no_file,
    folder_lock,
    open_regular,
    removable_lock,
    remove_partial_files,
    sha256,
)
from pipelines.system.masking import masked
from pipelines.system.objects import (
    RemoteAccess,
    is_remote,
    local_path,
    retrying,
    scheme_of,
    shown,
)
from pipelines.system.ranks import Task
from pipelines.system.stores import Failure, FailureKind, open_store, store_failure

WORK = ".work"
"""The folder of the work files of a dataset that is not finished."""

DONE = f"{WORK}/done"
"""The folder of the done records."""

READERS = 16
"""Threads that read an object store."""

_PREFETCH = 512
"""Files: the sidecar of a thousand samples has about 20 kB."""

_CLOCK_SKEW_NS = 15 * 60 * 10**9
"""S3 and Azure refuse requests signed by a clock that differs from theirs by more than 15 min."""

_REASONS: dict[FailureKind, str] = {
    "busy": "given up after {tries}, the last: {message}; finished files are kept: check the store "
    "and run the same command again",
    "absent": "the bucket was not found ({message}); make it, or check the address",
    "denied": "access denied ({message}); set credentials that may write there",
}
_REFUSED = "it cannot be written ({message}); check the address and the credentials"

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder as an output store; several machines may share it."""

    path: Path

    @property
    def name(self) -> str:
        """The path, for messages."""
        return str(self.path)

    @property
    def work(self) -> Path:
        """The folder of work files and locks."""
        return self.path / WORK

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file."""
        return {
            **_sizes_in(self.path, ""),
            **_sizes_in(self.path / WORK, f"{WORK}/"),
            **_sizes_in(self.path / DONE, f"{DONE}/"),
        }

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, None if it does not exist."""
        try:
            with open_regular(self.path / name) as file:
                return file.read()
        except FileNotFoundError:
            return None

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        """Yield the contents of files."""
        return (self.read(name) or b"" for name in names)

    def read_part(self, name: str, offset: int, size: int) -> bytes:
        """Return some bytes of a file."""
        with open_regular(self.path / name) as file:
            file.seek(offset)
            return file.read(size)

    def finished_ns(self) -> int:
        """Return when the manifest was written, in nanoseconds since 1970."""
        return (self.path / MANIFEST_NAME).stat().st_mtime_ns

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield the folder itself, in which a file gets its name when it is complete."""
        self.path.mkdir(parents=True, exist_ok=True)
        yield self.path

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; a file that does not exist is ignored."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the work files, and what killed writers left."""
        remove_partial_files(self.path)
        shutil.rmtree(self.work, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A folder of an object store as an output store.

    A file is written to a local temporary folder and uploaded when it is complete. The object
    appears at the end of the upload.

    Attributes:
        url: address of the folder, with a slash at its end.
        access: retries and credentials.
    """

    url: str
    access: RemoteAccess = field(default_factory=RemoteAccess)

    @property
    def name(self) -> str:
        """The address, for messages."""
        return shown(self.url).rstrip("/")

    @property
    def work(self) -> Path:
        """A folder of this machine's cache, which the same command finds again."""
        return cache_folder() / "unfinished" / sha256(self.url.encode())[:16]

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each object; a request lists a thousand."""

        async def walk(store: Any, key: str) -> dict[str, int]:  # noqa: ANN401
            # obstore expects a prefix without the slash at its end.
            found = await obstore.list(store, key.rstrip("/") or None).collect_async()
            return {each["path"].removeprefix(key): each["size"] for each in found}

        return self._retried("", walk)

    def read(self, name: str) -> bytes | None:
        """Return the content of an object, None if it does not exist."""

        async def get(store: Any, key: str) -> bytes | None:  # noqa: ANN401
            try:
                found = await obstore.get_async(store, key)
                return bytes(await found.bytes_async())
            except FileNotFoundError:
                return None

        return self._retried(name, get)

    def read_part(self, name: str, offset: int, size: int) -> bytes:
        """Return some bytes of an object."""

        async def get(store: Any, key: str) -> bytes:  # noqa: ANN401
            return bytes(await obstore.get_range_async(store, key, start=offset, length=size))

        return self._retried(name, get) if size else b""

    def finished_ns(self) -> int:
        """Return a time in nanoseconds since 1970 before which the manifest was not yet written.

        The store's clock may be ahead of this machine's.
        """

        async def head(store: Any, key: str) -> int:  # noqa: ANN401
            found = await obstore.head_async(store, key)
            return int(found["last_modified"].timestamp()) * 10**9

        return self._retried(MANIFEST_NAME, head) - _CLOCK_SKEW_NS

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        """Yield the contents of objects, several of which are read at a time."""
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(names), _PREFETCH):
                some = names[start : start + _PREFETCH]
                for name, content in zip(some, pool.map(self.read, some), strict=True):
                    if content is None:
                        raise PipelineError(
                            f"{self.name}/{name} was removed while this command ran; run the "
                            "same command again"
                        )
                    yield content

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield a temporary folder, whose files are uploaded at the end of the block."""
        with _scratch() as folder:
            yield folder
            written = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            for path in sorted(written, key=lambda path: path.name == MANIFEST_NAME):
                self._put(path, path.relative_to(folder).as_posix())

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; an object that does not exist is ignored."""
        listed = [*names]

        async def delete(store: Any, key: str) -> None:  # noqa: ANN401
            # Another task may have removed them.
            with suppress(FileNotFoundError):
                await obstore.delete_async(store, [key + name for name in listed])

        if listed:
            self._retried("", delete)

    def close(self) -> None:
        """Remove the work files in the store and on this machine."""
        self.remove(name for name in self.sizes() if name.startswith(f"{WORK}/"))
        shutil.rmtree(self.work, ignore_errors=True)

    def _put(self, path: Path, name: str) -> None:
        async def put(store: Any, key: str) -> None:  # noqa: ANN401
            await obstore.put_async(store, key, path)

        self._retried(name, put)

    def _retried(
        self, name: str, request: Callable[[Any, str], Coroutine[Any, Any, _Result]]
    ) -> _Result:
        """Send a request for an object; repeat it while the store is busy.

        The request runs in an event loop, because Ctrl-C does not end obstore's own waiting.

        Raises:
            PipelineError: if the store refuses, or the attempts are used up.
        """
        url, access, never = self.url + name, self.access, threading.Event()
        options = access.options.get(scheme_of(url), {})

        def attempt() -> _Result:
            store, key = open_store(url, options, access.stall_s)
            try:
                return run_coroutine(lambda: request(store, key), never)
            except (BaseError, FileNotFoundError) as error:
                raise store_failure(error) from error

        try:
            return retrying(url, access, never)(attempt)
        except Failure as failure:
            reason = _REASONS.get(failure.kind, _REFUSED)
            message = masked(str(failure))
            raise PipelineError(
                f"{shown(url)}: {reason.format(tries=access.tries, message=message)}"
            ) from failure


OutputStore = Folder | Bucket


def open_output(
    where: str, access: RemoteAccess | None = None, *, option: str = "--out"
) -> OutputStore:
    """Return the output store of a path or an address; nothing is read or written yet.

    Args:
        where: a path, or an address that begins with s3://, gs:// or az://.
        access: retries and configuration of an object store.
        option: name of the option or argument that `where` comes from, for errors.

    Raises:
        PipelineError: if `where` is another address, or a file.
    """
    if not is_remote(where):
        folder = local_path(where)
        check_no_file(folder, option)
        return Folder(path=folder)
    path = where.partition("://")[2].strip("/")
    if scheme_of(where) not in stores.SCHEMES or "::" in where or not path:
        raise PipelineError(
            f"{shown(where)} cannot be written; use a folder, or an address that begins with "
            f"{', '.join(f'{scheme}://BUCKET' for scheme in stores.SCHEMES)}"
        )
    return Bucket(url=f"{scheme_of(where)}://{path}/", access=access or RemoteAccess())


@contextmanager
def _scratch() -> Iterator[Path]:
    """Yield a temporary folder, which is removed at the end of the block."""
    try:
        with tempfile.TemporaryDirectory(prefix="pixmix-") as folder:
            yield Path(folder)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise PipelineError(
            f"the disk of {tempfile.gettempdir()} is full, where a shard is written before it is "
            "uploaded; make room, or set TMPDIR to another folder, and run the same command again"
        ) from error


def _sizes_in(folder: Path, prefix: str) -> dict[str, int]:
    sizes = {}
    try:
        for entry in folder.iterdir():
            name = prefix + entry.name
            if name in {WORK, DONE} or name.endswith(PARTIAL_SUFFIX):
                continue
            # Another process may have removed it.
            with suppress(FileNotFoundError):
                sizes[name] = 0 if entry.is_dir() else entry.stat().st_size
    except FileNotFoundError:
        return {}
    return sizes


# --- locks ---------------------------------------------------------------------------------------


@contextmanager
def task_lock(store: OutputStore, task: Task) -> Iterator[None]:
    """Hold the lock of a task; refuse a run of the same task or with another number of tasks.

    Locks of a folder hold for all machines that share it, locks of an object store for this one.
    """
    remedy = "wait for it, or choose another output folder"
    busy = f"another run is writing task {task.index} of {task.count} of {store.name}; {remedy}"
    with removable_lock(store.work / lock_name(task), busy=busy):
        own = f"-of-{task.count}.lock"
        refuse_running(store, lambda lock: not lock.endswith(own), "use its --num-tasks")
        yield


def lock_name(task: Task) -> str:
    """Return the file name of the lock of a task."""
    return f"task-{task.index}-of-{task.count}.lock"


def refuse_running(store: OutputStore, is_other: Callable[[str], bool], remedy: str) -> None:
    """Refuse to continue while another run holds the lock of a task that `is_other` selects."""
    for path in store.work.glob("task-*.lock"):
        if is_other(path.name):
            with folder_lock(path, busy=f"{store.name} is being written ({path.stem}); {remedy}"):
                pass
