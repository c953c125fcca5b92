"""Words read from and written to bytes at any address, for kernels that move whole pixels.

One load in place of three or six: a pixel is three bytes and never aligned. Nothing is checked: the
bytes from `offset` up to the word's end must lie inside the array. The lowest byte of a word is the
first one in memory, on little-endian processors, all that this package is tested on.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _pointer(context: Any, builder: Any, of_array: Any, array: Any, offset: Any, bits: int) -> Any:
    data = context.make_array(of_array)(context, builder, array).data
    data = builder.bitcast(data, ir.IntType(8).as_pointer())
    return builder.bitcast(builder.gep(data, [offset]), ir.IntType(bits).as_pointer())


@intrinsic
def word_at(typing_context: Any, array: Any, offset: Any) -> Any:
    """Return the 4 bytes of a contiguous uint8 array from an offset, intp, as int32."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = builder.load(_pointer(context, builder, signature.args[0], values[0], values[1], 32))
        word.align = 1
        return word

    return types.int32(array, types.intp), generate


@intrinsic
def long_word_at(typing_context: Any, array: Any, offset: Any) -> Any:
    """Return the 8 bytes of a contiguous uint8 array from an offset, intp, as int64."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = builder.load(_pointer(context, builder, signature.args[0], values[0], values[1], 64))
        word.align = 1
        return word

    return types.int64(array, types.intp), generate


@intrinsic
def set_long_word(typing_context: Any, array: Any, offset: Any, word: Any) -> Any:
    """Write an int64 to the 8 bytes of a contiguous uint8 array from an offset, intp."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], values[0], values[1], 64)
        builder.store(values[2], place).align = 1
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), generate
