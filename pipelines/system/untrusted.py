"""Read .npy arrays and pickles of plain values from files that are not trusted.

Nothing in a file is executed, and sizes are compared with the file's length before memory is
allocated.

Python's unpickler calls the functions that a file names, and lets the file set the internals of
arrays. `read_pickle` supports only dicts, lists, tuples, text, bytes, numbers and numpy arrays of
integers, and builds them itself. It uses a small multiple of the file's size as memory: values that
a file repeats are stored once, and no hash, comparison or message recurses into them.
"""

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.system.files import open_regular
from pixmix.images import open_map

_INTEGERS = frozenset({"u1", "i1", "i2", "i4", "i8"})

_MAX_DIMENSIONS = 8

_MAX_INSTRUCTIONS = 5_000_000
"""The training set of CIFAR-100 has about 400,000; 5 million take ten seconds."""

_PUSHED = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
})  # fmt: skip
"""Opcodes that push their argument, as parsed by pickletools."""

_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}


class _RefusedError(Exception):
    """Raised for a pickle with unsupported content; the message starts with a verb."""


@dataclass(frozen=True)
class _Name:
    """A function or class that a pickle refers to; one of `_KNOWN`."""

    name: str


@dataclass
class _Type:
    """A numpy.dtype, whose byte order is set by a later instruction."""

    code: str


@dataclass
class _Array:
    """A numpy.ndarray, whose content is set by a later instruction."""

    array: NDArray[Any] = field(default_factory=lambda: np.empty(0, np.uint8))


class _Mark:
    """Marks the start of a sequence of values on the stack."""


_KNOWN = {
    "numpy.core.multiarray _reconstruct": _Name("_reconstruct"),
    "numpy._core.multiarray _reconstruct": _Name("_reconstruct"),
    "numpy ndarray": _Name("ndarray"),
    "numpy dtype": _Name("dtype"),
    "_codecs encode": _Name("encode"),
}


def read_pickle(content: bytes, name: str) -> Any:  # noqa: ANN401  what the file holds
    """Read a pickle of plain values without executing anything.

    Args:
        content: bytes of the pickle, of any protocol.
        name: name of the file in errors.

    Returns:
        The value. Byte strings of Python 2 become text, one character per byte (latin1). Arrays are
        supported as the value itself and as values of a top-level dict.

    Raises:
        PipelineError: if the pickle has other content, or is damaged.
    """
    try:
        value = _Machine(len(content)).run(content)
    except _RefusedError as error:
        raise PipelineError(
            f"{name} is not a plain pickle: it {error}; use the official archive"
        ) from error
    # Raised by pickletools for damaged bytes, and by a stack that is too short.
    except (
        ValueError, TypeError, IndexError, KeyError, EOFError, OverflowError, MemoryError
    ) as error:  # fmt: skip
        raise PipelineError(f"{name} is a damaged pickle; download it again") from error
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return _plain(value)


def _plain(value: Any) -> Any:  # noqa: ANN401
    return value.array if isinstance(value, _Array) else value


class _Machine:
    """A pickle machine with few instructions.

    left_to_encode: number of characters that may still be encoded to bytes. Each character of the
        file can be encoded once, which limits memory.
    """

    def __init__(self, n_bytes: int) -> None:
        self.stack: list[Any] = []
        self.memo: dict[Any, Any] = {}
        self.left_to_encode = n_bytes

    def run(self, content: bytes) -> Any:  # noqa: ANN401
        for count, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(content))):
            if count > _MAX_INSTRUCTIONS:
                raise _RefusedError(f"has more than {_MAX_INSTRUCTIONS:,} instructions")
            if opcode.name == "STOP":
                return self.pop()
            self.step(opcode.name, argument)
        raise EOFError

    def step(self, name: str, argument: Any) -> None:  # noqa: ANN401
        if name in _PUSHED:
            # pickletools has parsed "I01" as True, and quoted text of Python 2 as latin1.
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name not in ("PROTO", "FRAME"):
            act = getattr(self, f"on_{name.lower()}", None)
            if act is None:
                raise _RefusedError(f"has the instruction {name}, which no CIFAR file uses")
            act(argument)

    def pop(self) -> Any:  # noqa: ANN401
        value = self.stack.pop()
        if value is _Mark:
            raise ValueError("expected a value, got a mark")
        return value

    def pop_values(self) -> list[Any]:
        """Pop the values above the last mark, and the mark."""
        mark = len(self.stack) - 1
        while self.stack[mark] is not _Mark:
            mark -= 1
            if mark < 0:
                raise ValueError("no mark")
        values = self.stack[mark + 1 :]
        del self.stack[mark:]
        return values

    def on_mark(self, _: object) -> None:
        self.stack.append(_Mark)

    def on_pop(self, _: object) -> None:
        self.stack.pop()

    def on_pop_mark(self, _: object) -> None:
        self.pop_values()

    def on_tuple(self, _: object) -> None:
        self.stack.append(tuple(self.pop_values()))

    def on_tuple1(self, _: object) -> None:
        self.pop_tuple(1)

    def on_tuple2(self, _: object) -> None:
        self.pop_tuple(2)

    def on_tuple3(self, _: object) -> None:
        self.pop_tuple(3)

    def pop_tuple(self, length: int) -> None:
        values = [self.pop() for _ in range(length)]
        self.stack.append(tuple(reversed(values)))

    def on_list(self, _: object) -> None:
        self.stack.append(self.pop_values())

    def on_dict(self, _: object) -> None:
        self.stack.append({})
        _set_items(self.stack[-1], self.pop_values_below_top())

    def pop_values_below_top(self) -> list[Any]:
        """Pop the values between the last mark and the top of the stack; keep the top."""
        top = self.stack.pop()
        values = self.pop_values()
        self.stack.append(top)
        return values

    def on_append(self, _: object) -> None:
        value = self.pop()
        _list(self.stack[-1]).append(value)

    def on_appends(self, _: object) -> None:
        values = self.pop_values()
        _list(self.stack[-1]).extend(values)

    def on_setitem(self, _: object) -> None:
        value, key = self.pop(), self.pop()
        _set_items(self.stack[-1], [key, value])

    def on_setitems(self, _: object) -> None:
        values = self.pop_values()
        _set_items(self.stack[-1], values)

    def on_global(self, argument: str) -> None:
        self.push_name(argument)

    def on_stack_global(self, _: object) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise _RefusedError("has a name that is not text")
        self.push_name(f"{module} {name}")

    def push_name(self, name: str) -> None:
        if name not in _KNOWN:
            raise _RefusedError(f"refers to {name[:80]!r}, which no CIFAR file uses")
        self.stack.append(_KNOWN[name])

    def on_reduce(self, _: object) -> None:
        arguments, called = self.pop(), self.pop()
        if not (isinstance(called, _Name) and isinstance(arguments, tuple)):
            raise _RefusedError("calls a value that is not a function")
        if called.name == "_reconstruct":
            self.stack.append(_reconstructed(*arguments[:2]))
        elif called.name == "dtype":
            self.stack.append(_type_of(*arguments[:1]))
        elif called.name == "encode":
            self.stack.append(self.encoded(*arguments[:2]))
        else:
            raise _RefusedError(f"calls {called.name}")

    def encoded(self, text: object = None, encoding: object = "latin1") -> bytes:
        # Protocol 2 of Python 3 stores bytes as latin1 text.
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise _RefusedError("encodes text with an encoding other than latin1")
        self.left_to_encode -= len(text)
        if self.left_to_encode < 0:
            raise _RefusedError("encodes the same text many times")
        return text.encode("latin1")

    def on_build(self, _: object) -> None:
        state = self.pop()
        target = self.stack[-1]
        if not isinstance(state, tuple):
            raise _RefusedError("sets a state that is not a tuple")
        if isinstance(target, _Type):
            _set_byte_order(target, state)
        elif isinstance(target, _Array):
            if len(state) == 5 and isinstance(state[4], str):
                state = (*state[:4], self.encoded(state[4]))
            target.array = _array_of(state)
        else:
            raise _RefusedError("sets the state of a value that is not an array")


def _list(value: Any) -> list[Any]:  # noqa: ANN401
    if not isinstance(value, list):
        raise _RefusedError("appends to a value that is not a list")
    return value


def _set_items(target: Any, items: list[Any]) -> None:  # noqa: ANN401
    if not isinstance(target, dict) or len(items) % 2:
        raise _RefusedError("sets items of a value that is not a dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing deeply nested tuples can take forever.
        if not isinstance(key, str | bytes | int):
            raise _RefusedError("has a dict with a key that is neither text nor a number")
        target[key] = value


def _reconstructed(kind: object = None, shape: object = None) -> _Array:
    # numpy stores an array as an empty one, whose state is set afterwards.
    if not (isinstance(kind, _Name) and kind.name == "ndarray" and _is_shape(shape)):
        raise _RefusedError("builds an array that is not a numpy array")
    return _Array()


def _type_of(code: object = None) -> _Type:
    if not isinstance(code, str) or len(code) > 3 or code.lstrip("<>|=") not in _INTEGERS:
        raise _RefusedError("holds an array that is not of integers")
    return _Type(code.lstrip("<>|="))


def _set_byte_order(target: _Type, state: tuple[Any, ...]) -> None:
    """Set the byte order from the state of a dtype; structured types are not supported."""
    order = state[1] if len(state) >= 2 else None
    unstructured = (None, None, None, -1, -1, 0)
    rest = state[2:8]
    is_plain = all(
        (value is None or type(value) is int) and value == expected
        for value, expected in zip(rest, unstructured, strict=False)
    )
    if not (isinstance(order, str) and order in ("<", ">", "|", "=") and is_plain):
        raise _RefusedError("holds an array of a structured dtype, or one with flags")
    if order in "<>":
        target.code = order + target.code


def _array_of(state: tuple[Any, ...]) -> NDArray[Any]:
    """Return the array of a state: version, shape, dtype, whether column-major, bytes."""
    if len(state) != 5:
        raise _RefusedError("sets an array state that numpy does not write")
    _, shape, kind, by_columns, content = state
    if not (_is_shape(shape) and isinstance(kind, _Type) and isinstance(content, bytes)):
        raise _RefusedError("sets an array state that numpy does not write")
    dtype = np.dtype(kind.code)
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError("the size of an array differs from its content")
    array = np.frombuffer(content, dtype)
    return array.reshape(shape, order="F" if by_columns is True else "C")


def _is_shape(shape: object) -> bool:
    return (
        isinstance(shape, tuple)
        and len(shape) <= _MAX_DIMENSIONS
        and all(type(side) is int and side >= 0 for side in shape)
    )


_MAX_HEADER_BYTES = 10_000
"""The header of an array of numbers has about a hundred bytes."""

_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def open_array(path: Path, remedy: str, *, name: str | None = None) -> NDArray[Any]:
    """Map the array of a .npy file into memory, read-only.

    Where the file system cannot map files, a small file is read instead; see `open_map`.

    Args:
        path: the file; symbolic links are followed.
        remedy: end of the error message: what to do about a damaged file.
        name: name of the file in errors; None for its path.

    Raises:
        PipelineError: if it is not a regular file with one complete array of numbers.
    """
    name = name or str(path)
    try:
        with open_regular(path) as file:
            try:
                version = npy.read_magic(file)
                if version not in _READERS:
                    raise ValueError(f"version {version} of the format is not supported")
                shape, fortran, dtype = _READERS[version](file, max_header_size=_MAX_HEADER_BYTES)
            except Exception as error:
                # NumPy parses the header as a Python literal, which fails in many ways.
                reason = str(error).strip().split("\n")[0] or type(error).__name__
                raise PipelineError(
                    f"{name} is not a complete array ({reason:.200}); {remedy}"
                ) from error
            if dtype.hasobject:
                raise PipelineError(
                    f"{name} holds pickled objects, which are not executed; {remedy}"
                )
            offset = file.tell()
            n_bytes = file.seek(0, 2) - offset
        expected = math.prod(shape) * dtype.itemsize
        if min(shape, default=1) < 0 or n_bytes != expected:
            raise PipelineError(
                f"{name} is not a complete array (shape {shape} of {dtype} needs {expected:,} "
                f"bytes, and it has {n_bytes:,}); {remedy}"
            )
        # Mode "c" maps privately: some network file systems have no shared maps.
        array = open_map(path, dtype, "c", offset=offset, shape=shape[::-1] if fortran else shape)
    except OSError as error:
        raise PipelineError(
            f"{path} cannot be read: {error.strerror or error}; {remedy}"
        ) from error
    array.flags.writeable = False
    return array.T if fortran else array
