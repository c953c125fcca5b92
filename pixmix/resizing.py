"""Crop and resize images bilinearly, equal to Pillow byte for byte.

Pillow filters rows, rounds to 8 bits, and filters columns; or columns first, if the height shrinks
by more than twice as many pixels as the width (Pillow 13; older versions always filter rows first,
which changes some bytes by 1). When an image shrinks, the triangle filter is two new pixels wide
(antialiasing). The weights are whole multiples of 2^-22. A crop is cut out before it is resized, as
in torchvision, so no filter reads pixels outside the crop.

Tested against Pillow 13.0 and torchvision 0.29.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from pixmix.compiling import inlined_kernel, kernel, pointer_at
from pixmix.images import check_image

_ONE = np.int32(1 << 22)
_HALF = np.int32(1 << 21)
_BITS = np.int32(22)
_GREEN, _BLUE = np.int32(8), np.int32(16)


@kernel
def _weigh(side, full, first, n, starts, counts, weights):
    """Compute the filters of new pixels first .. first+n-1, when `side` pixels become `full`.

    starts, counts: (n,) int32, the first pixel that a new one reads, and their number.
    weights: (n, reach) int32, in 2^-22; entries from a count on are not written.
    """
    scale = side / full
    support = max(scale, 1.0)
    inverse = 1.0 / support
    for i in range(n):
        center = (first + i + 0.5) * scale
        start = max(int(center - support + 0.5), 0)
        count = min(int(center + support + 0.5), side) - start
        total = 0.0
        for j in range(count):
            total += max(1.0 - abs((j + start - center + 0.5) * inverse), 0.0)
        for j in range(count):
            weight = max(1.0 - abs((j + start - center + 0.5) * inverse), 0.0) / total
            weights[i, j] = np.int32(int(weight * _ONE + 0.5))
        starts[i] = start
        counts[i] = count


@inlined_kernel
def _reach(side, full):
    """Return the maximum number of pixels that a filter reads."""
    return 2 * int(np.ceil(max(side / full, 1.0))) + 1


@intrinsic
def _weighted_pixel(
    typing_context: Any, array: Any, offset: Any, weights: Any, place: Any, count: Any
) -> Any:
    """Return the weighted sum of consecutive pixels as int32, red in the lowest byte.

    array: contiguous uint8; the byte after the last pixel is read, too. offset: intp, of the first
    pixel. weights: contiguous int32, in 2^-22, from `place`, intp, on. count: intp, at least 1.
    Each channel is rounded and must be in 0..255. All channels are summed at once in a vector.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pixels, start, factors, first, n = values
        vector = ir.VectorType(ir.IntType(32), 4)
        whole = ir.IntType(64)

        def constant(value: int) -> Any:
            return ir.Constant(vector, [value] * 4)

        factor_data = context.make_array(signature.args[2])(context, builder, factors).data
        before = builder.block
        loop = builder.append_basic_block("taps")
        after = builder.append_basic_block("summed")
        builder.branch(loop)
        builder.position_at_end(loop)
        tap = builder.phi(whole)
        total = builder.phi(vector)
        place_of_tap = builder.add(start, builder.mul(tap, ir.Constant(whole, 3)))
        word = builder.load(
            pointer_at(context, builder, signature.args[0], pixels, place_of_tap, 32)
        )
        word.align = 1
        channels = builder.zext(builder.bitcast(word, ir.VectorType(ir.IntType(8), 4)), vector)
        factor = builder.load(builder.gep(factor_data, [builder.add(first, tap)]))
        one = builder.insert_element(
            ir.Constant(vector, ir.Undefined), factor, ir.Constant(ir.IntType(32), 0)
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


@inlined_kernel
def _filter_row(source, begin, line, starts, counts, weights, out):
    """Filter a row of RGB; see `_weigh`. line: scratch, one byte longer than a row. out: uint8."""
    n_values = len(line) - 1
    line[:n_values] = source[begin : begin + n_values]
    flat = weights.reshape(-1)
    for x in range(len(starts)):
        pixel = _weighted_pixel(
            line, np.int64(3 * starts[x]), flat, x * weights.shape[1], np.int64(counts[x])
        )
        out[3 * x] = pixel
        out[3 * x + 1] = pixel >> _GREEN
        out[3 * x + 2] = pixel >> _BLUE


@inlined_kernel
def _filter_columns(source, begin, stride, count, weights, y, total, out):
    """Filter `count` rows, the first at `begin`, into one. total: int32 scratch; out: uint8."""
    n = len(out)
    for x in range(n):
        total[x] = _HALF
    for tap in range(count):
        weight = weights[y, tap]
        values = source[begin + tap * stride : begin + tap * stride + n]
        for x in range(n):
            total[x] += np.int32(values[x]) * weight
    for x in range(n):
        out[x] = total[x] >> _BITS


@kernel
def resize_part(image, top, left, height, width, full_height, full_width, row, column, out):
    """Resize a region of an image and write a window of the result; arguments are not validated.

    image: (H, W, 3) uint8. top, left, height, width: the region. full_height, full_width: its new
    size. row, column: position of the window in the resized region. out: (h, w, 3) uint8, the
    window; contiguous, inside the resized region.
    """
    n_rows, n_columns = out.shape[0], out.shape[1]
    starts, counts = np.empty(n_columns, np.int32), np.empty(n_columns, np.int32)
    weights = np.empty((n_columns, _reach(width, full_width)), np.int32)
    _weigh(width, full_width, column, n_columns, starts, counts, weights)
    row_starts, row_counts = np.empty(n_rows, np.int32), np.empty(n_rows, np.int32)
    row_weights = np.empty((n_rows, _reach(height, full_height)), np.int32)
    _weigh(height, full_height, row, n_rows, row_starts, row_counts, row_weights)
    line = np.empty(3 * width + 1, np.uint8)
    total = np.empty(3 * max(n_columns, width), np.int32)
    source = image.reshape(-1)
    stride = 3 * image.shape[1]
    origin = top * stride + 3 * left
    if height > full_height and height - full_height > 2 * (width - full_width):
        filtered = np.empty(3 * width, np.uint8)
        for y in range(n_rows):
            begin = origin + row_starts[y] * stride
            _filter_columns(source, begin, stride, row_counts[y], row_weights, y, total, filtered)
            _filter_row(filtered, 0, line, starts, counts, weights, out[y].reshape(-1))
    else:
        first = np.int64(row_starts[0])
        last = np.int64(row_starts[n_rows - 1] + row_counts[n_rows - 1])
        narrow = np.empty((last - first, 3 * n_columns), np.uint8)
        for y in range(first, last):
            _filter_row(
                source, origin + y * stride, line, starts, counts, weights, narrow[y - first]
            )
        flat = narrow.reshape(-1)
        for y in range(n_rows):
            begin = (row_starts[y] - first) * 3 * n_columns
            _filter_columns(
                flat, begin, 3 * n_columns, row_counts[y], row_weights, y, total,
                out[y].reshape(-1),
            )  # fmt: skip


def resized_crop(
    image: NDArray[np.uint8],
    top: int,
    left: int,
    height: int,
    width: int,
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """Crop a region and resize it bilinearly: torchvision's `resized_crop` of the PIL image.

    Args:
        image: (H, W, 3) uint8.
        top: first row of the region.
        left: first column of the region.
        height: height of the region in pixels, at least 1.
        width: width of the region in pixels, at least 1.
        size: (height, width) of the result, at least 1 each.

    Returns:
        A (height, width, 3) uint8 array of the given size.

    Raises:
        TypeError: if the image is not a uint8 array.
        ValueError: if the image has another shape, the region is not inside, or a size is below 1.
    """
    image = check_image(image)
    inside = (
        0 <= top < top + height <= image.shape[0] and 0 <= left < left + width <= image.shape[1]
    )
    if not inside:
        raise ValueError(
            f"a region of {height}x{width} at row {top}, column {left} is not inside an image of "
            f"{image.shape[0]}x{image.shape[1]} (height x width); use a smaller region"
        )
    if min(size) < 1:
        raise ValueError(f"size is {size}; pass a height and a width of at least 1 pixel")
    out = np.empty((*size, 3), np.uint8)
    resize_part(image, top, left, height, width, *size, 0, 0, out)
    return out


def resized_center(
    image: NDArray[np.uint8], shorter_side: int, size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Resize the shorter side and crop the center: torchvision's `Resize` and `CenterCrop`.

    Args:
        image: (H, W, 3) uint8.
        shorter_side: shorter side of the resized image in pixels.
        size: (height, width) of the result; neither above shorter_side.

    Returns:
        A (height, width, 3) uint8 array of the given size.

    Raises:
        TypeError: if the image is not a uint8 array.
        ValueError: if the image has another shape, or the crop does not fit.
    """
    image = check_image(image)
    if not 1 <= min(size) <= max(size) <= shorter_side:
        raise ValueError(
            f"a center crop of {size} does not fit into a shorter side of {shorter_side} pixels; "
            "use a larger shorter side or a smaller crop"
        )
    full = resized_shape(image.shape[0], image.shape[1], shorter_side)
    # Python's round is torchvision's: halves are rounded to even.
    row, column = (round((full[i] - size[i]) / 2) for i in range(2))
    out = np.empty((*size, 3), np.uint8)
    resize_part(image, 0, 0, image.shape[0], image.shape[1], *full, row, column, out)
    return out


def resized_shape(height: int, width: int, shorter_side: int) -> tuple[int, int]:
    """Return (height, width) after torchvision's `Resize`, which truncates the longer side."""
    if height < width:
        return shorter_side, int(shorter_side * width / height)
    return int(shorter_side * height / width), shorter_side
