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


@intrinsic
def weighted_pixel(
    typing_context: Any, array: Any, offset: Any, weights: Any, place: Any, count: Any
) -> Any:
    """Return a weighted sum of pixels that follow each other, its lowest byte red.

    array: contiguous uint8; offset, intp: the first pixel's first byte. The byte after the last
    pixel is read too. weights: contiguous int32, in 2^-22, from `place`, intp, on. count: intp, at
    least 1. Each channel is rounded; none may leave 0..255. All channels are summed at once.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pixels, start, factors, first, n = values
        lanes = ir.VectorType(ir.IntType(32), 4)
        whole = ir.IntType(64)

        def constant(value: int) -> Any:
            return ir.Constant(lanes, [value] * 4)

        factor_data = context.make_array(signature.args[2])(context, builder, factors).data
        before = builder.block
        loop = builder.append_basic_block("taps")
        after = builder.append_basic_block("summed")
        builder.branch(loop)
        builder.position_at_end(loop)
        tap = builder.phi(whole)
        total = builder.phi(lanes)
        place_of_tap = builder.add(start, builder.mul(tap, ir.Constant(whole, 3)))
        word = builder.load(_pointer(context, builder, signature.args[0], pixels, place_of_tap, 32))
        word.align = 1
        channels = builder.zext(builder.bitcast(word, ir.VectorType(ir.IntType(8), 4)), lanes)
        factor = builder.load(builder.gep(factor_data, [builder.add(first, tap)]))
        one = builder.insert_element(
            ir.Constant(lanes, ir.Undefined), factor, ir.Constant(ir.IntType(32), 0)
        )
        splat = builder.shuffle_vector(one, one, constant(0))
        added = builder.add(total, builder.mul(channels, splat))
        following = builder.add(tap, ir.Constant(whole, 1))
        tap.add_incoming(ir.Constant(whole, 0), before)
        tap.add_incoming(following, loop)
        total.add_incoming(constant(1 << 21), before)
        total.add_incoming(added, loop)
        builder.cbranch(builder.icmp_signed("<", following, n), loop, after)
        builder.position_at_end(after)
        rounded = builder.lshr(added, constant(22))
        return builder.bitcast(
            builder.trunc(rounded, ir.VectorType(ir.IntType(8), 4)), ir.IntType(32)
        )

    return types.int32(array, types.intp, weights, types.intp, types.intp), generate
