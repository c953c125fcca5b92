"""Compile the kernels of `fractals` and `pixmix`, cache them on disk, and report slow compilations.

`kernel` and `inlined_kernel` set the compiler's flags for all kernels. They do not use fast-math,
because operations that must equal another program byte for byte cannot have their sums reordered,
and pixels must not depend on the CPU. Only `fma` fuses a product with a sum. With
``error_model="numpy"`` a division by zero returns inf, so that loops need no branches.

Numba's cache trusts every file that it finds, and misses changes in the callees of a kernel. Here a
kernel is also compiled again if the source of a kernel that it calls has changed, in any module.
Each cache file ends with the SHA-256 of its content; a file that does not match is compiled again
and replaced. A folder that belongs to another user, or that every user may write to, is not read,
because reading a cache file executes it. If no folder is writable, a temporary one is used; it is
passed to child processes as NUMBA_CACHE_DIR.

Slow compilations print one line to stderr::

    compiling kernels (once per machine, about 30 s): 12 s

A terminal shows the elapsed seconds; a file gets one line at the start and one at the end. Worker
processes print nothing, because the main process already does.
"""

import contextlib
import hashlib
import multiprocessing
import os
import pickle
import secrets
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils, event
from numba.core import config as numba_config
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache
from numba.core.dispatcher import Dispatcher
from numba.core.errors import TypingError
from numba.core.registry import cpu_target
from numba.extending import intrinsic

_FLAGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function: cached on disk, GIL released, IEEE arithmetic, no bounds checks."""
    _listen()
    return _with_cache(numba.njit(**_FLAGS)(function))


def inlined_kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel and inline it into each caller, which saves reference counts of arrays."""
    _listen()
    return _with_cache(numba.njit(forceinline=True, **_FLAGS)(function))


def merged_kernel(function: Callable[..., Any]) -> Any:
    """Inline a function into the kernel that calls it, before type inference.

    It is only compiled on its own if Python calls it. This saves more than half of the compile time
    for a function with one caller; for a long function or one with several callers,
    `inlined_kernel` is faster.
    """
    return numba.njit(inline="always", **_FLAGS)(function)


def switch(kernels: Sequence[Any]) -> Any:
    """Return f(code, a, b, c, d) for compiled code, which calls kernels[code](a, b, c, d).

    All kernels must return the same type. A code out of range raises ValueError.
    """

    @intrinsic
    def call(typing_context: Any, code: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        arguments = (a, b, c, d)
        results = {
            numba.typeof(each).get_call_type(typing_context, arguments, {}).return_type
            for each in kernels
        }
        if len(results) != 1:
            raise TypingError(f"kernels of a switch return different types: {results}")

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            number = context.cast(builder, values[0], signature.args[0], types.int64)
            result = cgutils.alloca_once(builder, context.get_value_type(signature.return_type))
            unknown, end = (builder.append_basic_block(name) for name in ("unknown", "end"))
            chosen = builder.switch(number, unknown)
            for code, each in enumerate(kernels):
                block = builder.append_basic_block(f"code_{code}")
                chosen.add_case(number.type(code), block)
                builder.position_at_end(block)
                kind = numba.typeof(each)
                function = context.get_function(
                    kind, kind.get_call_type(context.typing_context, signature.args[1:], {})
                )
                builder.store(function(builder, values[1:]), result)
                builder.branch(end)
            builder.position_at_end(unknown)
            context.call_conv.return_user_exc(builder, ValueError, ("unknown code",))
            builder.position_at_end(end)
            return builder.load(result)

        return results.pop()(code, *arguments), generate

    call.kernels = tuple(kernels)  # type: ignore[attr-defined]
    return call


@intrinsic
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c of three floats of the same type with a single rounding."""
    if a != b or b != c or a not in (types.float32, types.float64):
        return None

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        of_type = values[0].type
        function = builder.module.declare_intrinsic(
            "llvm.fma", [of_type], ir.FunctionType(of_type, [of_type] * 3)
        )
        return builder.call(function, values)

    return a(a, a, a), generate


# --- Words of bytes -------------------------------------------------------------------------------
# One load replaces three or six: a pixel is three unaligned bytes. Bounds are not checked: all
# bytes of the word at `offset` must be inside the array. The lowest byte of a word is the first one
# in memory; this package is only tested on little-endian CPUs.


def pointer_at(
    context: Any, builder: Any, of_array: Any, array: Any, offset: Any, bits: int
) -> Any:
    """Return LLVM's pointer to the word of `bits` bits at a byte offset of an array."""
    data = context.make_array(of_array)(context, builder, array).data
    data = builder.bitcast(data, ir.IntType(8).as_pointer())
    return builder.bitcast(builder.gep(data, [offset]), ir.IntType(bits).as_pointer())


@intrinsic
def word_at(typing_context: Any, array: Any, offset: Any) -> Any:
    """Return the 4 bytes of a contiguous uint8 array at an offset, intp, as int32."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = builder.load(
            pointer_at(context, builder, signature.args[0], values[0], values[1], 32)
        )
        word.align = 1
        return word

    return types.int32(array, types.intp), generate


@intrinsic
def long_word_at(typing_context: Any, array: Any, offset: Any) -> Any:
    """Return the 8 bytes of a contiguous uint8 array at an offset, intp, as int64."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = builder.load(
            pointer_at(context, builder, signature.args[0], values[0], values[1], 64)
        )
        word.align = 1
        return word

    return types.int64(array, types.intp), generate


@intrinsic
def set_long_word(typing_context: Any, array: Any, offset: Any, word: Any) -> Any:
    """Write an int64 to the 8 bytes of a contiguous uint8 array at an offset, intp."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = pointer_at(context, builder, signature.args[0], values[0], values[1], 64)
        builder.store(values[2], place).align = 1
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), generate


# --- The cache ------------------------------------------------------------------------------------

_DIGEST = 32
config: Any = numba_config
_UNREADABLE = (
    pickle.UnpicklingError, EOFError, AttributeError, ImportError, LookupError, OSError, TypeError,
    ValueError,
)  # fmt: skip
"""Errors when reading an intact file that another version of numba wrote."""


def _with_cache(dispatcher: Any) -> Any:
    """Set the cache of a compiled function, and return the function."""
    dispatcher._cache = KernelCache.of(dispatcher.py_func)
    return dispatcher


def is_cached(dispatcher: Any) -> bool:
    """Return whether a kernel is in the cache, for its present source and this CPU.

    Also True if nothing can be cached, because compiling ahead is useless then.
    """
    cache = dispatcher._cache
    if not isinstance(cache, KernelCache):
        return True
    machine = cpu_target.target_context.codegen().magic_tuple()
    return any(key[1] == machine for key in cache.index())


class KernelCache(FunctionCache):
    """The cache of one function: numba's, with files that are verified before they are used."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        folder, source = Path(self._cache_path), Path(function.__code__.co_filename)
        if not _is_trusted(folder, source):
            raise PermissionError(f"another user may write to {folder}")
        self._cache_file = _CheckedFile(
            cache_path=self._cache_path,
            filename_base=self._impl.filename_base,
            source_stamp=(
                self._impl.locator.get_source_stamp(),
                *map(_digest_of, sorted(_sources(function) - {str(source)})),
            ),
        )

    @classmethod
    def of(cls, function: Any) -> Any:
        """Return the cache of a function, in a temporary folder if necessary, or a null cache."""
        try:
            if _has_home() or config.CACHE_DIR or _can_write_beside(function):
                return cls(function)
            raise OSError("no home folder")
        except (RuntimeError, OSError) as error:  # numba raises RuntimeError without a folder.
            if not _use_temporary_folder(error):
                return NullCache()
        try:
            return cls(function)
        except (RuntimeError, OSError):
            return NullCache()

    def index(self) -> dict[Any, str]:
        """Return the names of the data files by signature, CPU and closure."""
        index: dict[Any, str] = self._cache_file._load_index()
        return index

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return a compiled function, or None if the cache has no usable one."""
        try:
            return super().load_overload(sig, target_context)
        except _UNREADABLE:
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Cache a compiled function, in a temporary folder if the disk is full."""
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
            if _is_intact(self._index_path):
                index: dict[Any, str] = super()._load_index()
                return index
        except _UNREADABLE:
            pass
        return {}

    def _load_data(self, name: str) -> Any:
        if not _is_intact(self._data_path(name)):
            raise FileNotFoundError(name)
        return super()._load_data(name)

    @contextlib.contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[IO[bytes]]:
        # Numba's own method leaves its temporary file behind on Ctrl-C.
        partial = Path(f"{filepath}.{secrets.token_hex(4)}.partial")
        try:
            with partial.open("xb") as file:
                yield file
                file.flush()
                file.write(hashlib.sha256(partial.read_bytes()).digest())
            partial.replace(filepath)
        finally:
            partial.unlink(missing_ok=True)


@cache
def _sources(function: Any) -> frozenset[str]:
    """Return the source files of a function and of all kernels that it calls, also indirectly."""
    found = {function.__code__.co_filename}
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        for each in getattr(value, "kernels", (value,)):
            if isinstance(each, Dispatcher):
                found |= _sources(each.py_func)
    return frozenset(found)


@cache
def _digest_of(file: str) -> bytes:
    return hashlib.sha256(Path(file).read_bytes()).digest()


def _is_intact(path: str) -> bool:
    content = Path(path).read_bytes()
    return content[-_DIGEST:] == hashlib.sha256(content[:-_DIGEST]).digest()


def _is_trusted(folder: Path, source: Path) -> bool:
    """Return whether a folder is this user's, root's or the source's owner's, and is not public."""
    status = folder.stat()
    trusted = {os.geteuid(), 0}
    with contextlib.suppress(OSError):
        trusted.add(source.stat().st_uid)
    return status.st_uid in trusted and not status.st_mode & stat.S_IWOTH


def _has_home() -> bool:
    # Without one, numba would create a folder named "~" in the working folder.
    return Path(os.path.expanduser("~")).is_absolute()  # noqa: PTH111 - Path.expanduser raises


def _can_write_beside(function: Any) -> bool:
    folder = Path(function.__code__.co_filename).parent
    cache = folder / "__pycache__"
    return os.access(cache if cache.exists() else folder, os.W_OK)


_moved: list[str] = []


def _use_temporary_folder(reason: Exception) -> bool:
    """Switch numba to a temporary folder, and report it once; return False if that fails."""
    if _moved:
        return bool(_moved[0])
    _moved.append("")
    try:
        folder = _temporary_folder()
    except OSError:
        _report(f"compiled kernels cannot be cached; each process compiles its own ({reason})")
        return False
    # For child processes.
    os.environ["NUMBA_CACHE_DIR"] = config.CACHE_DIR = _moved[0] = folder
    _report(
        f"compiled kernels are cached in {folder} ({reason}); set NUMBA_CACHE_DIR to use another "
        "folder"
    )
    return True


def _temporary_folder() -> str:
    """Return a temporary folder that only this user may access; the same each time if possible."""
    folder = Path(tempfile.gettempdir()) / f"pixmix-kernels-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    private = status.st_uid == os.geteuid() and not status.st_mode & 0o077
    if stat.S_ISDIR(status.st_mode) and private:
        return str(folder)
    return tempfile.mkdtemp(prefix="pixmix-kernels-")


def _report(line: str) -> None:
    if sys.stderr is not None:
        print(line, file=sys.stderr)  # noqa: T201 - a library has no other channel


# --- Progress -------------------------------------------------------------------------------------

LINE = "compiling kernels (once per machine, about 30 s)"
_AFTER_S = 1.0
"""Shorter compilations print nothing."""
_IDLE_S = 1.0
"""Compilation has ended if no kernel is compiled for this time."""


class Timer:
    """Shows the elapsed compile time in a line of stderr, which is updated on a terminal."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self._shown = -1

    def show(self) -> None:
        """Update the line; call this several times a second."""
        seconds = int(time.monotonic() - self.began)
        if sys.stderr is None or seconds < _AFTER_S or seconds == self._shown:
            return
        if sys.stderr.isatty():
            print(f"\r{LINE}: {seconds} s", end="", file=sys.stderr, flush=True)  # noqa: T201
        elif self._shown < 0:
            print(LINE, file=sys.stderr, flush=True)  # noqa: T201
        self._shown = seconds

    def end(self, ended: float) -> None:
        """Print the total time, if a line was shown."""
        if self._shown >= 0:
            start = "\r\033[K" if sys.stderr.isatty() else ""
            seconds = ended - self.began
            print(f"{start}kernels compiled in {seconds:.0f} s", file=sys.stderr, flush=True)  # noqa: T201


class _Compilations(event.Listener):
    """Counts the kernels being compiled, and shows the time in a thread meanwhile."""

    def __init__(self) -> None:
        self.depth = 0
        self.ended = 0.0
        self.thread: threading.Thread | None = None

    def on_start(self, event: Any) -> None:
        """Count a kernel whose compilation starts."""
        if not _is_kernel(event):
            return
        self.depth += 1
        if self.thread is None and multiprocessing.parent_process() is None:
            self.thread = threading.Thread(target=self._show, daemon=True)
            try:
                self.thread.start()
            except RuntimeError:  # No thread is available; show nothing.
                self.thread = None

    def on_end(self, event: Any) -> None:
        """Count a kernel whose compilation has ended or failed."""
        if _is_kernel(event):
            self.ended = time.monotonic()
            self.depth -= 1

    def _show(self) -> None:
        timer = Timer()
        while self.depth > 0 or time.monotonic() - self.ended < _IDLE_S:
            timer.show()
            time.sleep(0.1)
        timer.end(self.ended)
        self.thread = None


def _is_kernel(event: Any) -> bool:
    """Return whether a function is one of our kernels; users may compile others."""
    module: str = event.data["dispatcher"].py_func.__module__
    return module.startswith(("fractals.", "pixmix."))


_compilations = _Compilations()
_listening: list[bool] = []


def _listen() -> None:
    """Show the time of all compilations from now on."""
    if not _listening:
        _listening.append(True)
        event.register("numba:compile", _compilations)
