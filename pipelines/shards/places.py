"""Where a set of shards is written by many tasks: a folder that they share, or an object store.

    place = open_place("s3://bucket/fractals")
    with place.writing() as folder: ...      what is written there is in the place afterwards

In both a file appears whole or not at all. A store has no locks, so nothing here needs any.
"""

import errno
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tenacity import retry_if_exception

from pipelines.errors import PipelineError
from pipelines.shards.connections import (
    EXTRAS,
    RemoteAccess,
    borne,
    is_denied,
    is_remote,
    may_pass,
    open_store,
    refusals,
    remote_errors,
    said,
    shown,
)
from pipelines.shards.format import MANIFEST_NAME
from pipelines.shards.remote import local_path
from pipelines.shards.transfer import patience_ends, retrying
from pipelines.system.files import PARTIAL_SUFFIX, check_no_file, open_regular, remove_partial_files

WORK = ".work"
"""The folder of what a set in the making needs."""

DONE = f"{WORK}/done"
"""The folder of the sidecars."""

_WRITTEN = ("s3", "gcs")
_READERS = 16
_READ_AHEAD = 512
"""Files: sidecars of a thousand samples have about 20 kB each."""

_Answer = TypeVar("_Answer")


class Place(Protocol):
    """Where a set is written. It can be pickled for other processes and machines."""

    @property
    def name(self) -> str:
        """The folder or address, for messages."""
        ...

    def sizes(self) -> Mapping[str, int]:
        """Return the bytes of each file of the set, and of its sidecars as ".work/done/NAME".

        Of folders that do not belong to a set of shards the name is given, and 0.
        """
        ...

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, None if it is not there."""
        ...

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        """Return the contents of files that are there, in order, a few in memory at a time."""
        ...

    def writing(self) -> AbstractContextManager[Path]:
        """Give a local folder; what is written to it is in the place when the block has ended.

        An error in the block may leave files of it in the place or not, each of them whole; the
        manifest comes last.
        """
        ...

    def close(self) -> None:
        """Remove what a set in the making needed, and what killed writers left."""
        ...


def open_place(where: str, access: RemoteAccess | None = None) -> Place:
    """Return the place of a path or an address; nothing is read or made yet.

    Args:
        where: a path, or an address that begins with s3:// or gs://.
        access: how patiently a store is borne with, and the options of its client.

    Raises:
        PipelineError: for another address, and for a file in the place of a folder.
    """
    if not is_remote(where):
        folder = local_path(where)
        check_no_file(folder, "--out")
        return Folder(path=folder)
    scheme, _, path = where.partition("://")
    if EXTRAS.get(scheme.lower()) not in _WRITTEN or "::" in where or not path.strip("/"):
        raise PipelineError(
            f"{shown(where)} cannot be written; give a folder, or an address that begins with "
            "s3://BUCKET or gs://BUCKET"
        )
    url = f"{scheme.lower()}://{path.strip('/')}/"
    return Bucket(url=url, access=access or RemoteAccess())


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder, perhaps one that several machines share."""

    path: Path

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.path)

    def sizes(self) -> dict[str, int]:
        """See `Place`."""
        return {
            **_sizes_in(self.path, ""),
            **_sizes_in(self.path / WORK, f"{WORK}/"),
            **_sizes_in(self.path / DONE, f"{DONE}/"),
        }

    def read(self, name: str) -> bytes | None:
        """See `Place`."""
        try:
            with open_regular(self.path / name) as file:
                return file.read()
        except FileNotFoundError:
            return None

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        """See `Place`."""
        return (self.read(name) or b"" for name in names)

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Give the folder itself, in which files get their names when they are whole."""
        self.path.mkdir(parents=True, exist_ok=True)
        yield self.path

    def close(self) -> None:
        """See `Place`."""
        remove_partial_files(self.path)
        shutil.rmtree(self.path / WORK, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A place in an object store. url: it, with a slash at its end; access: how it is reached.

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
        """See `Place`; one walk over all objects, a thousand an answer."""
        store = self._store()
        root = store._strip_protocol(self.url).rstrip("/") + "/"

        def walk() -> dict[str, int]:
            try:
                found: dict[str, dict[str, Any]] = store.find(root, detail=True)
            except FileNotFoundError:
                return {}
            return {path.removeprefix(root): int(each["size"]) for path, each in found.items()}

        return self._patiently("", walk)

    def read(self, name: str) -> bytes | None:
        """See `Place`."""
        store = self._store()

        def cat() -> bytes | None:
            try:
                content: bytes = store.cat_file(self.url + name)
            except FileNotFoundError:
                return None
            return content

        return self._patiently(name, cat)

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        """See `Place`; several at a time."""
        with ThreadPoolExecutor(_READERS) as pool:
            for some in _in_batches(names):
                for name, content in zip(some, pool.map(self.read, some), strict=True):
                    if content is None:
                        raise PipelineError(
                            f"{self.name}/{name} went while it was wanted; give the command again"
                        )
                    yield content

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """See `Place`."""
        with _scratch() as folder:
            yield folder
            written = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            for path in sorted(written, key=lambda path: path.name == MANIFEST_NAME):
                self._put(path, path.relative_to(folder).as_posix())

    def close(self) -> None:
        """See `Place`."""
        left = [self.url + name for name in self.sizes() if name.startswith(f"{WORK}/")]
        store = self._store()

        def remove() -> None:
            # Another may have removed them meanwhile.
            with suppress(FileNotFoundError):
                store.rm(left)

        if left:
            self._patiently(WORK, remove)

    def _put(self, path: Path, name: str) -> None:
        store = self._store()
        self._patiently(name, lambda: store.put_file(str(path), self.url + name))

    def _store(self) -> Any:  # noqa: ANN401, fsspec has no types
        return open_store(self.url, self.access, use_listings_cache=False)

    def _patiently(self, name: str, ask: Callable[[], _Answer]) -> _Answer:
        """Ask the store, again and again while it is busy.

        Raises:
            PipelineError: if it refuses, or is given up.
        """
        url = self.url + name
        attempts = retrying(
            url,
            self.access,
            threading.Event(),
            retry=retry_if_exception(may_pass),
            given_up=patience_ends(self.access),
        )
        try:
            return attempts(refusals()(ask))
        except remote_errors() as error:
            raise PipelineError(f"{shown(url)}: {_refusal(error, self.access)}") from error


def _refusal(error: Exception, access: RemoteAccess) -> str:
    """Return why a store did not take something and what to do, to follow its name."""
    if is_denied(error) and not may_pass(error):
        return f"access denied ({said(error)}); give credentials that may write there"
    if isinstance(error, FileNotFoundError):
        return f"there is no such bucket ({said(error)}); make it, or check the address"
    if may_pass(error):
        return (
            f"given up after {borne(access)}, the last: {said(error)}; what is whole is kept: see "
            "to the store and run the same command again"
        )
    return f"it cannot be written ({said(error)}); check the address and the credentials"


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


def _in_batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), _READ_AHEAD):
        yield names[start : start + _READ_AHEAD]
