"""Compiled kernels on the disk, in numba's cache, which by itself trusts all that it finds.

Here a file ends with the SHA-256 of what comes before, and what does not match is compiled again
and written over. A folder of another user, or one that every user may write to, is not read, for
reading runs its contents. Where no folder can be written, a temporary one of this user is used,
which processes started later find by NUMBA_CACHE_DIR.
"""

import contextlib
import hashlib
import os
import pickle
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from numba.core import config as numba_config
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache
from numba.core.registry import cpu_target

_DIGEST = 32
config: Any = numba_config
_UNREADABLE = (
    pickle.UnpicklingError, EOFError, AttributeError, ImportError, LookupError, OSError, TypeError,
    ValueError,
)  # fmt: skip
"""What reading a whole file raises that another version of numba has written."""


def keep(dispatcher: Any) -> Any:  # noqa: ANN401
    """Let a compiled function be kept on the disk, and return it."""
    dispatcher._cache = KernelCache.of(dispatcher.py_func)
    return dispatcher


def is_kept(dispatcher: Any) -> bool:  # noqa: ANN401
    """See whether a kernel has been compiled and kept, for this source and this processor.

    True where nothing can be kept, too: then there is no use in compiling before it is needed.
    """
    cache = dispatcher._cache
    if not isinstance(cache, KernelCache):
        return True
    machine = cpu_target.target_context.codegen().magic_tuple()
    return any(key[1] == machine for key in cache.index())


class KernelCache(FunctionCache):
    """The cache of one function: numba's, with files that are checked before they are used."""

    def __init__(self, function: Any) -> None:  # noqa: ANN401
        super().__init__(function)
        folder, source = Path(self._cache_path), Path(function.__code__.co_filename)
        if not _is_ours(folder, source):
            raise PermissionError(f"another user may write to {folder}")
        self._cache_file = _CheckedFile(
            cache_path=self._cache_path,
            filename_base=self._impl.filename_base,
            source_stamp=self._impl.locator.get_source_stamp(),
        )

    @classmethod
    def of(cls, function: Any) -> Any:  # noqa: ANN401
        """Return the cache of a function, in a temporary folder if need be, or else none."""
        try:
            if _has_home() or config.CACHE_DIR or _can_write_beside(function):
                return cls(function)
            raise OSError("there is no home folder")
        except (RuntimeError, OSError) as error:  # numba says RuntimeError where it has no folder.
            if not _use_temporary_folder(error):
                return NullCache()
        try:
            return cls(function)
        except (RuntimeError, OSError):
            return NullCache()

    def index(self) -> dict[Any, str]:
        """Return the names of the data files by signature, processor and closure."""
        index: dict[Any, str] = self._cache_file._load_index()
        return index

    def load_overload(self, sig: Any, target_context: Any) -> Any:  # noqa: ANN401
        """Return a compiled function, None if there is none that can be used."""
        try:
            return super().load_overload(sig, target_context)
        except _UNREADABLE:
            return None

    def save_overload(self, sig: Any, data: Any) -> None:  # noqa: ANN401
        """Keep a compiled function, in a temporary folder where the disk is full."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            if _use_temporary_folder(error):
                with contextlib.suppress(RuntimeError, OSError):
                    moved = type(self)(self._py_func)
                    self._impl, self._cache_path = moved._impl, moved._cache_path
                    self._cache_file = moved._cache_file
                    super().save_overload(sig, data)


class _CheckedFile(IndexDataCacheFile):
    """The files of one function, each followed by its SHA-256."""

    def _load_index(self) -> dict[Any, str]:
        try:
            if _is_whole(self._index_path):
                index: dict[Any, str] = super()._load_index()
                return index
        except _UNREADABLE:
            pass
        return {}

    def _load_data(self, name: str) -> Any:  # noqa: ANN401
        if not _is_whole(self._data_path(name)):
            raise FileNotFoundError(name)
        return super()._load_data(name)

    @contextlib.contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[IO[bytes]]:
        # Not numba's own, which leaves its temporary file behind on Ctrl-C.
        partial = Path(f"{filepath}.{secrets.token_hex(4)}.partial")
        try:
            with partial.open("xb") as file:
                yield file
                file.flush()
                file.write(hashlib.sha256(partial.read_bytes()).digest())
            partial.replace(filepath)
        finally:
            partial.unlink(missing_ok=True)


def _is_whole(path: str) -> bool:
    content = Path(path).read_bytes()
    return content[-_DIGEST:] == hashlib.sha256(content[:-_DIGEST]).digest()


def _is_ours(folder: Path, source: Path) -> bool:
    """See whether a folder is this user's, root's or the source's owner's, and not open to all."""
    there = folder.stat()
    trusted = {os.geteuid(), 0}
    with contextlib.suppress(OSError):
        trusted.add(source.stat().st_uid)
    return there.st_uid in trusted and not there.st_mode & stat.S_IWOTH


def _has_home() -> bool:
    # Without one, numba would make a folder of the name "~" in the working folder.
    return Path(os.path.expanduser("~")).is_absolute()  # noqa: PTH111 - Path.expanduser raises


def _can_write_beside(function: Any) -> bool:  # noqa: ANN401
    folder = Path(function.__code__.co_filename).parent
    cache = folder / "__pycache__"
    return os.access(cache if cache.exists() else folder, os.W_OK)


_moved: list[str] = []


def _use_temporary_folder(reason: Exception) -> bool:
    """Let numba use a temporary folder from now on, and say so once; False if there is none."""
    if _moved:
        return bool(_moved[0])
    _moved.append("")
    try:
        folder = _temporary_folder()
    except OSError:
        _say(f"compiled kernels cannot be kept, each process compiles its own ({reason})")
        return False
    # Processes started later use it, too.
    os.environ["NUMBA_CACHE_DIR"] = config.CACHE_DIR = _moved[0] = folder
    _say(
        f"compiled kernels are kept in {folder} ({reason}); set NUMBA_CACHE_DIR to a folder of "
        "yours to keep them elsewhere"
    )
    return True


def _temporary_folder() -> str:
    """Return a temporary folder that only this user can read and write, the same each time."""
    folder = Path(tempfile.gettempdir()) / f"pixmix-kernels-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    there = folder.lstat()
    if stat.S_ISDIR(there.st_mode) and there.st_uid == os.geteuid() and not there.st_mode & 0o077:
        return str(folder)
    return tempfile.mkdtemp(prefix="pixmix-kernels-")


def _say(line: str) -> None:
    if sys.stderr is not None:
        print(line, file=sys.stderr)  # noqa: T201 - a library that has no other way to say it
