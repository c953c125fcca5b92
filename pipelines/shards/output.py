"""Where a set of shards is written by many tasks: a folder that they share, or an object store.

    store = open_output("s3://bucket/fractals")
    store.sizes()               file -> bytes, of the set and of its sidecars (".work/done/NAME");
                                of folders that do not belong to a set the name, and 0
    store.read(name)            the content of a file, or None
    store.read_all(names)       the contents of files that are there, in order, a few at a time
    with store.writing() as folder: ...     what is written there is in the store afterwards; after
                                an error in part, each file whole; the manifest comes last
    store.close()               remove what a set in the making needed, and killed writers left

In both a file appears whole or not at all. An object store has no locks, so nothing here needs any.
Both can be pickled for other processes and machines.
"""

import errno
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import obstore
from obstore.exceptions import BaseError

from pipelines.errors import PipelineError
from pipelines.shards.format import MANIFEST_NAME
from pipelines.system import stores
from pipelines.system.attempts import run_coroutine
from pipelines.system.files import PARTIAL_SUFFIX, check_no_file, open_regular, remove_partial_files
from pipelines.system.masking import masked
from pipelines.system.objects import (
    RemoteAccess,
    is_remote,
    local_path,
    retrying,
    scheme_of,
    shown,
)
from pipelines.system.stores import Failure, FailureKind, open_store, store_failure

WORK = ".work"
"""The folder of what a set in the making needs."""

DONE = f"{WORK}/done"
"""The folder of the sidecars."""

_READERS = 16
_PREFETCH = 512
"""Files: sidecars of a thousand samples have about 20 kB each."""

_REASONS: dict[FailureKind, str] = {
    "busy": "given up after {tries}, the last: {said}; what is whole is kept: check the store and "
    "run the same command again",
    "absent": "the bucket was not found ({said}); make it, or check the address",
    "denied": "access denied ({said}); set credentials that may write there",
}
_REFUSED = "it cannot be written ({said}); check the address and the credentials"

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder, perhaps one that several machines share."""

    path: Path

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.path)

    def sizes(self) -> dict[str, int]:
        """See the module."""
        return {
            **_sizes_in(self.path, ""),
            **_sizes_in(self.path / WORK, f"{WORK}/"),
            **_sizes_in(self.path / DONE, f"{DONE}/"),
        }

    def read(self, name: str) -> bytes | None:
        """See the module."""
        try:
            with open_regular(self.path / name) as file:
                return file.read()
        except FileNotFoundError:
            return None

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        """See the module."""
        return (self.read(name) or b"" for name in names)

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Give the folder itself, in which files get their names when they are whole."""
        self.path.mkdir(parents=True, exist_ok=True)
        yield self.path

    def close(self) -> None:
        """See the module."""
        remove_partial_files(self.path)
        shutil.rmtree(self.path / WORK, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A folder of an object store. url: it, with a slash at its end; access: how it is reached.

    A file is written here first, and put there when it is whole. A store shows an object when it
    has all of it.
    """

    url: str
    access: RemoteAccess = field(default_factory=RemoteAccess)

    @property
    def name(self) -> str:
        """The address."""
        return shown(self.url).rstrip("/")

    def sizes(self) -> dict[str, int]:
        """See the module; one walk over all objects, a thousand a request."""

        async def walk(store: Any, key: str) -> dict[str, int]:  # noqa: ANN401
            # A prefix of obstore is one of whole names; it has no slash at its end.
            found = await obstore.list(store, key.rstrip("/") or None).collect_async()
            return {each["path"].removeprefix(key): each["size"] for each in found}

        return self._patiently("", walk)

    def read(self, name: str) -> bytes | None:
        """See the module."""

        async def get(store: Any, key: str) -> bytes | None:  # noqa: ANN401
            try:
                found = await obstore.get_async(store, key)
                return bytes(await found.bytes_async())
            except FileNotFoundError:
                return None

        return self._patiently(name, get)

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        """See the module; several at a time."""
        with ThreadPoolExecutor(_READERS) as pool:
            for start in range(0, len(names), _PREFETCH):
                some = names[start : start + _PREFETCH]
                for name, content in zip(some, pool.map(self.read, some), strict=True):
                    if content is None:
                        raise PipelineError(
                            f"{self.name}/{name} was removed meanwhile; run the same command again"
                        )
                    yield content

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """See the module."""
        with _scratch() as folder:
            yield folder
            written = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            for path in sorted(written, key=lambda path: path.name == MANIFEST_NAME):
                self._put(path, path.relative_to(folder).as_posix())

    def close(self) -> None:
        """See the module."""
        left = [name for name in self.sizes() if name.startswith(f"{WORK}/")]

        async def remove(store: Any, key: str) -> None:  # noqa: ANN401
            # Another may have removed them meanwhile.
            with suppress(FileNotFoundError):
                await obstore.delete_async(store, [key + name for name in left])

        if left:
            self._patiently("", remove)

    def _put(self, path: Path, name: str) -> None:
        async def put(store: Any, key: str) -> None:  # noqa: ANN401
            await obstore.put_async(store, key, path)

        self._patiently(name, put)

    def _patiently(
        self, name: str, ask: Callable[[Any, str], Coroutine[Any, Any, _Result]]
    ) -> _Result:
        """Ask the store for what has a name in it, again and again while it is busy.

        In an event loop, and not by obstore's own waiting, which no Ctrl-C ends.

        Raises:
            PipelineError: if it refuses, or is given up.
        """
        url, access, never = self.url + name, self.access, threading.Event()
        options = access.options.get(scheme_of(url), {})

        def attempt() -> _Result:
            store, key = open_store(url, options, access.stall_s)
            try:
                return run_coroutine(lambda: ask(store, key), never)
            except (BaseError, FileNotFoundError) as error:
                raise store_failure(error) from error

        try:
            return retrying(url, access, never)(attempt)
        except Failure as failure:
            reason = _REASONS.get(failure.kind, _REFUSED)
            said = masked(str(failure))
            raise PipelineError(
                f"{shown(url)}: {reason.format(tries=access.tries, said=said)}"
            ) from failure


OutputStore = Folder | Bucket


def open_output(where: str, access: RemoteAccess | None = None) -> OutputStore:
    """Return the output store of a path or an address; nothing is read or made yet.

    Args:
        where: a path, or an address that begins with s3://, gs:// or az://.
        access: how patiently an object store is tried, and its configuration.

    Raises:
        PipelineError: for another address, and for a file in the place of a folder.
    """
    if not is_remote(where):
        folder = local_path(where)
        check_no_file(folder, "--out")
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
    """Give a folder of this machine for as long as the block runs."""
    try:
        with tempfile.TemporaryDirectory(prefix="pixmix-") as folder:
            yield Path(folder)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise PipelineError(
            f"the disk of {tempfile.gettempdir()} is full, where a shard is written before it goes "
            "to the store; make room, or set TMPDIR to another folder, and run the same command "
            "again"
        ) from error


def _sizes_in(folder: Path, prefix: str) -> dict[str, int]:
    sizes = {}
    try:
        for entry in folder.iterdir():
            name = prefix + entry.name
            if name in {WORK, DONE} or name.endswith(PARTIAL_SUFFIX):
                continue
            # It may be gone by now.
            with suppress(FileNotFoundError):
                sizes[name] = 0 if entry.is_dir() else entry.stat().st_size
    except FileNotFoundError:
        return {}
    return sizes
