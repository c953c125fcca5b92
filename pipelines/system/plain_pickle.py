"""Pickles of plain values, read without running anything.

Python's own unpickler calls what a file names, and follows what a file says of the insides of
arrays. This one knows dicts, lists, tuples, text, bytes, numbers and numpy's arrays of integers,
which it builds itself, and nothing else. Its memory is a small multiple of the file's size: values
that a file repeats are held once, and no hash, comparison or message walks through them.
"""

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError

_INTEGERS = frozenset({"u1", "i1", "i2", "i4", "i8"})

_MOST_DIMENSIONS = 8

_MOST_INSTRUCTIONS = 5_000_000
"""CIFAR-100's training set has some 400,000; 5 million take ten seconds."""

_PUSHED = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
})  # fmt: skip
"""Opcodes that put their argument on the stack, which pickletools has read."""

_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}


class _RefusedError(Exception):
    """What a pickle asks for and does not get; the message follows "it"."""


@dataclass(frozen=True)
class _Name:
    """A function or class that a pickle names, which is one of `_KNOWN`."""

    name: str


@dataclass
class _Type:
    """numpy.dtype, which gets its byte order after it was named."""

    code: str


@dataclass
class _Array:
    """numpy.ndarray, which gets its content after it was named."""

    array: NDArray[Any] = field(default_factory=lambda: np.empty(0, np.uint8))


class _Mark:
    """Where a run of values begins on the stack."""


_KNOWN = {
    "numpy.core.multiarray _reconstruct": _Name("_reconstruct"),
    "numpy._core.multiarray _reconstruct": _Name("_reconstruct"),
    "numpy ndarray": _Name("ndarray"),
    "numpy dtype": _Name("dtype"),
    "_codecs encode": _Name("encode"),
}


def read_pickle(content: bytes, name: str) -> Any:  # noqa: ANN401  what the file holds
    """Read a pickle of plain values, running nothing.

    Args:
        content: the bytes of the pickle, of any protocol.
        name: of the file, for the errors.

    Returns:
        The value; bytes that Python 2 wrote as text are text, each byte a character (latin1). An
        array is one where it is the value, or a value of the dict that is the value.

    Raises:
        PipelineError: if it asks for anything else, or is damaged.
    """
    try:
        value = _Machine(len(content)).run(content)
    except _RefusedError as error:
        raise PipelineError(f"{name} is refused: it {error}; use the official archive") from error
    # What pickletools raises for damaged bytes, and a stack that is too short.
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
    """The machine of pickle with few instructions.

    left_to_encode: characters of text that may yet become bytes: each of the file's does once.
    """

    def __init__(self, n_bytes: int) -> None:
        self.stack: list[Any] = []
        self.memo: dict[Any, Any] = {}
        self.left_to_encode = n_bytes

    def run(self, content: bytes) -> Any:  # noqa: ANN401
        for count, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(content))):
            if count > _MOST_INSTRUCTIONS:
                raise _RefusedError(f"has over {_MOST_INSTRUCTIONS:,} instructions")
            if opcode.name == "STOP":
                return self.pop()
            self.step(opcode.name, argument)
        raise EOFError

    def step(self, name: str, argument: Any) -> None:  # noqa: ANN401
        if name in _PUSHED:
            # "I01" is True; text of Python 2 in quotes has been read as latin1.
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
                raise _RefusedError(f"has the instruction {name}, as no file of CIFAR does")
            act(argument)

    def pop(self) -> Any:  # noqa: ANN401
        value = self.stack.pop()
        if value is _Mark:
            raise ValueError("a mark in the place of a value")
        return value

    def pop_run(self) -> list[Any]:
        """Take the values above the last mark, and the mark."""
        place = len(self.stack) - 1
        while self.stack[place] is not _Mark:
            place -= 1
            if place < 0:
                raise ValueError("no mark")
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def on_mark(self, _: object) -> None:
        self.stack.append(_Mark)

    def on_pop(self, _: object) -> None:
        self.stack.pop()

    def on_pop_mark(self, _: object) -> None:
        self.pop_run()

    def on_tuple(self, _: object) -> None:
        self.stack.append(tuple(self.pop_run()))

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
        self.stack.append(self.pop_run())

    def on_dict(self, _: object) -> None:
        self.stack.append({})
        _set_items(self.stack[-1], self.pop_run_below())

    def pop_run_below(self) -> list[Any]:
        """Take the values between the last mark and the top of the stack, which stays."""
        top = self.stack.pop()
        values = self.pop_run()
        self.stack.append(top)
        return values

    def on_append(self, _: object) -> None:
        value = self.pop()
        _list(self.stack[-1]).append(value)

    def on_appends(self, _: object) -> None:
        values = self.pop_run()
        _list(self.stack[-1]).extend(values)

    def on_setitem(self, _: object) -> None:
        value, key = self.pop(), self.pop()
        _set_items(self.stack[-1], [key, value])

    def on_setitems(self, _: object) -> None:
        values = self.pop_run()
        _set_items(self.stack[-1], values)

    def on_global(self, argument: str) -> None:
        self.push_name(argument)

    def on_stack_global(self, _: object) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise _RefusedError("names something that is no text")
        self.push_name(f"{module} {name}")

    def push_name(self, name: str) -> None:
        if name not in _KNOWN:
            raise _RefusedError(f"asks for {name[:80]!r}, as no file of CIFAR does")
        self.stack.append(_KNOWN[name])

    def on_reduce(self, _: object) -> None:
        arguments, called = self.pop(), self.pop()
        if not (isinstance(called, _Name) and isinstance(arguments, tuple)):
            raise _RefusedError("calls something that is no function")
        if called.name == "_reconstruct":
            self.stack.append(_reconstructed(*arguments[:2]))
        elif called.name == "dtype":
            self.stack.append(_type_of(*arguments[:1]))
        elif called.name == "encode":
            self.stack.append(self.encoded(*arguments[:2]))
        else:
            raise _RefusedError(f"calls {called.name}")

    def encoded(self, text: object = None, encoding: object = "latin1") -> bytes:
        # As Python 2's bytes come through protocol 2 of Python 3.
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise _RefusedError("encodes text to something else than latin1")
        self.left_to_encode -= len(text)
        if self.left_to_encode < 0:
            raise _RefusedError("encodes one text many times")
        return text.encode("latin1")

    def on_build(self, _: object) -> None:
        state = self.pop()
        target = self.stack[-1]
        if not isinstance(state, tuple):
            raise _RefusedError("builds something from no tuple")
        if isinstance(target, _Type):
            _set_byte_order(target, state)
        elif isinstance(target, _Array):
            if len(state) == 5 and isinstance(state[4], str):
                state = (*state[:4], self.encoded(state[4]))
            target.array = _array_of(state)
        else:
            raise _RefusedError("builds something that is no array")


def _list(value: Any) -> list[Any]:  # noqa: ANN401
    if not isinstance(value, list):
        raise _RefusedError("appends to something that is no list")
    return value


def _set_items(target: Any, items: list[Any]) -> None:  # noqa: ANN401
    if not isinstance(target, dict) or len(items) % 2:
        raise _RefusedError("sets items of something that is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # The hash of a tuple of tuples can take for ever.
        if not isinstance(key, str | bytes | int):
            raise _RefusedError("has a dict with a key that is neither text nor a number")
        target[key] = value


def _reconstructed(kind: object = None, shape: object = None) -> _Array:
    # As numpy writes an array: an empty one, whose state is set afterwards.
    if not (isinstance(kind, _Name) and kind.name == "ndarray" and _is_shape(shape)):
        raise _RefusedError("builds an array that is none of numpy's")
    return _Array()


def _type_of(code: object = None) -> _Type:
    if not isinstance(code, str) or len(code) > 3 or code.lstrip("<>|=") not in _INTEGERS:
        raise _RefusedError("holds an array of something else than integers")
    return _Type(code.lstrip("<>|="))


def _set_byte_order(target: _Type, state: tuple[Any, ...]) -> None:
    """Heed the state of a dtype: version, byte order, and nothing of structured types."""
    order = state[1] if len(state) >= 2 else None
    nothing = (None, None, None, -1, -1, 0)
    rest = state[2:8]
    is_plain = all(
        (value is None or type(value) is int) and value == expected
        for value, expected in zip(rest, nothing, strict=False)
    )
    if not (isinstance(order, str) and order in ("<", ">", "|", "=") and is_plain):
        raise _RefusedError("holds an array of a type with parts or flags")
    if order in "<>":
        target.code = order + target.code


def _array_of(state: tuple[Any, ...]) -> NDArray[Any]:
    """Return an array of its state: version, shape, type, whether by columns, and bytes."""
    if len(state) != 5:
        raise _RefusedError("builds an array of no state of numpy's")
    _, shape, kind, by_columns, content = state
    if not (_is_shape(shape) and isinstance(kind, _Type) and isinstance(content, bytes)):
        raise _RefusedError("builds an array of no state of numpy's")
    dtype = np.dtype(kind.code)
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError("an array of another size than its content")
    array = np.frombuffer(content, dtype)
    return array.reshape(shape, order="F" if by_columns is True else "C")


def _is_shape(shape: object) -> bool:
    return (
        isinstance(shape, tuple)
        and len(shape) <= _MOST_DIMENSIONS
        and all(type(side) is int and side >= 0 for side in shape)
    )
