"""PixMix for a batch on the CPU: flip, crop, operations, mixing and normalization in one pass.

The images of a sample (its crop, the results of the operations, the crop of its mixing image) are
8-bit. They are mixed in blocks of rows, each through all rounds, so that no image of floats is
needed: a block stays in a core's L1 cache until it is normalized and written channel by channel.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pixmix.compiling import inlined_kernel, is_cached, kernel
from pixmix.draws import NO_OPERATION, Plan, draw_corner, draw_plan
from pixmix.images import Layout, PackedImages, check_crops, pack_mixing_set
from pixmix.mixing import LEVELS, MULTIPLY, fill_powers, look_up, mix_values, to_unit
from pixmix.op_kernels import SCRATCH_LENGTH
from pixmix.operations import apply_operation
from pixmix.resizing import resize_part
from pixmix.settings import PixMixSettings, check_indices, check_integer, check_views

FLOAT32, FLOAT16, BFLOAT16 = range(3)
"""Codes of the output types."""

_BLOCK = 4096
"""Approximate number of values in a block; three buffers of them fit into a core's L1 cache."""
_ZERO, _ONE = np.float32(0), np.float32(1)


class Scratch(NamedTuple):
    """Scratch memory of a thread, for any number of samples of one size; see `allocate_scratch`."""

    slots: NDArray[np.uint8]
    operation: NDArray[np.int64]
    tables: NDArray[np.float32]
    blocks: NDArray[np.float32]


def allocate_scratch(height: int, width: int, k: int) -> Scratch:
    """Return scratch memory for samples of height x width with at most k rounds."""
    rows = max(1, _BLOCK // (3 * width))
    return Scratch(
        # The sample, its mixing image, and the result of each operation.
        np.empty((k + 3, height, width, 3), np.uint8),
        np.empty(SCRATCH_LENGTH, np.int64),
        np.empty((k, LEVELS), np.float32),
        np.empty((3, 3 * width * rows), np.float32),
    )


_OWN, _MIXING, _START, _FIRST_ROUND = range(4)

# --- Images ------------------------------------------------------------------------------------


@inlined_kernel
def _copy_crop(source, offset, stride, target, rows, n_bytes):
    """Copy rows of n_bytes each; the first is at offset, the next one a stride later."""
    for row in range(rows):
        start = offset + row * stride
        ours = target[row * n_bytes : (row + 1) * n_bytes]
        theirs = source[start : start + n_bytes]
        for i in range(n_bytes):
            ours[i] = theirs[i]


@inlined_kernel
def _crop_and_flip(image, top, left, flip, out):
    """Crop an image that is padded with black, and mirror it if `flip`.

    top, left: position of the crop in the image; negative in the padding.
    """
    height, width = out.shape[0], out.shape[1]
    source_height, source_width = image.shape[0], image.shape[1]
    first, end = min(max(-left, 0), width), max(min(source_width - left, width), 0)
    for row in range(height):
        place = top + row
        target = out[row]
        if place < 0 or place >= source_height or end <= first:
            for column in range(width):
                for channel in range(3):
                    target[column, channel] = 0
            continue
        source = image[place]
        for column in range(first):
            black = width - 1 - column if flip else column
            for channel in range(3):
                target[black, channel] = 0
        for column in range(end, width):
            black = width - 1 - column if flip else column
            for channel in range(3):
                target[black, channel] = 0
        if flip:
            for column in range(first, end):
                for channel in range(3):
                    target[width - 1 - column, channel] = source[left + column, channel]
        else:
            ours, theirs = target.reshape(-1)[3 * first :], source.reshape(-1)[3 * (left + first) :]
            for i in range(3 * (end - first)):
                ours[i] = theirs[i]


# --- Output --------------------------------------------------------------------------------------

_SIGN, _MAGNITUDE = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
_16, _13 = np.uint32(16), np.uint32(13)
_ODD = np.uint32(1)
# Half of the last kept bit, minus one; adding the last bit as well rounds ties to even.
_BELOW_TIE_OF_16, _BELOW_TIE_OF_13 = np.uint32(0x7FFF), np.uint32(0xFFF)
# float16: exponents are lower by 112; the least normal number is 2^-14; 65520 rounds to infinity.
_REBIAS = np.uint32(112 << 23)
_MIN_NORMAL = np.uint32(113 << 23)
_OVERFLOW = np.uint32(0x477FF000)
_INFINITY = np.uint32(0x7C00)
# Adding 1/2 shifts the bits of a float16 subnormal to the end of a float32, and rounds them.
_HALF, _HALF_BITS = np.float32(0.5), np.uint32(0x3F000000)


@inlined_kernel
def bfloat16_bits(value):
    """Return the bits of the nearest bfloat16, ties to even; value: float32, not NaN."""
    bits = np.float32(value).view(np.uint32)
    last = np.uint32((bits >> _16) & _ODD)
    return np.uint16(np.uint32(bits + _BELOW_TIE_OF_16 + last) >> _16)


@inlined_kernel
def float16_bits(value):
    """Return the bits of the nearest float16, ties to even; value: float32, not NaN."""
    bits = np.float32(value).view(np.uint32)
    sign = np.uint32((bits & _SIGN) >> _16)
    magnitude = np.uint32(bits & _MAGNITUDE)
    tiny = np.uint32(np.float32(magnitude.view(np.float32) + _HALF).view(np.uint32) - _HALF_BITS)
    last = np.uint32((magnitude >> _13) & _ODD)
    normal = np.uint32(np.uint32(magnitude - _REBIAS + _BELOW_TIE_OF_13 + last) >> _13)
    result = tiny if magnitude < _MIN_NORMAL else normal
    result = _INFINITY if magnitude >= _OVERFLOW else result
    return np.uint16(result | sign)


@inlined_kernel
def _write(x, n_pixels, first, means, deviations, code, planes, half_planes):
    """Normalize a block of RGB values, and write it to three planes from pixel `first` on."""
    for channel in range(3):
        mean, deviation = means[channel], deviations[channel]
        if code == FLOAT32:
            target = planes[channel].reshape(-1)[first : first + n_pixels]
            for i in range(n_pixels):
                target[i] = (x[3 * i + channel] - mean) / deviation
        elif code == FLOAT16:
            halves = half_planes[channel].reshape(-1)[first : first + n_pixels]
            for i in range(n_pixels):
                halves[i] = float16_bits((x[3 * i + channel] - mean) / deviation)
        else:
            halves = half_planes[channel].reshape(-1)[first : first + n_pixels]
            for i in range(n_pixels):
                halves[i] = bfloat16_bits((x[3 * i + channel] - mean) / deviation)


# --- Samples -------------------------------------------------------------------------------------


@kernel
def mix_samples(
    images, pixels, offsets, heights, widths, samples, rounds, first, last, views, padding,
    means, deviations, code, out, half_out, slots, operation_scratch, tables, blocks,
):  # fmt: skip
    """Compute the rows first .. last-1 of a batch according to a plan.

    images: (N, H, W, 3) uint8; row n is a view of image n // views. pixels, offsets, heights,
    widths: a `PackedImages`. samples, rounds: a `Plan`. padding: width of the black border that is
    added before the crop. means, deviations: (3,) float32. code: `FLOAT32`, `FLOAT16` or
    `BFLOAT16`. out, for FLOAT32: (N * views, 3, height, width) float32; half_out, for the others:
    the same shape, bits as uint16; the unused one is ignored. The rest: a `Scratch` for images of
    height x width.
    """
    height, width = slots.shape[1], slots.shape[2]
    n_pixels = height * width
    n_values = 3 * n_pixels
    levels = slots.reshape(-1)
    rows_of_a_block = blocks.shape[1] // (3 * width)
    other = blocks[2]
    for n in range(first, last):
        sample, its_rounds = samples[n], rounds[n]
        n_rounds = sample.rounds
        image = slots[_OWN]
        _crop_and_flip(
            images[n // views], sample.crop_top - padding, sample.crop_left - padding,
            sample.flip == 1, image,
        )  # fmt: skip
        start = _OWN
        if sample.operation != NO_OPERATION:
            start = _START
            apply_operation(
                sample.operation, sample.argument, image, slots[_START], operation_scratch
            )
        has_mixing_crop = False
        for r in range(n_rounds):
            item = its_rounds[r]
            if item.operation != NO_OPERATION:
                apply_operation(
                    item.operation, item.argument, image, slots[_FIRST_ROUND + r],
                    operation_scratch,
                )  # fmt: skip
            elif not has_mixing_crop:
                has_mixing_crop = True
                number = sample.mixing_image
                stride = 3 * np.int64(widths[number])
                top = draw_corner(sample.top_word, np.int64(heights[number]), height)
                left = draw_corner(sample.left_word, np.int64(widths[number]), width)
                _copy_crop(
                    pixels, offsets[number] + top * stride + 3 * left, stride,
                    slots[_MIXING].reshape(-1), height, 3 * width,
                )  # fmt: skip
            if item.mixing == MULTIPLY:
                fill_powers(tables[r], item.b)
        for row in range(0, height, rows_of_a_block):
            begin = 3 * width * row
            count = 3 * width * min(rows_of_a_block, height - row)
            x, mixed = blocks[0], blocks[1]
            to_unit(levels, start * n_values + begin, count, x)
            for r in range(n_rounds):
                item = its_rounds[r]
                slot = _MIXING if item.operation == NO_OPERATION else _FIRST_ROUND + r
                place = slot * n_values + begin
                if item.mixing == MULTIPLY:
                    look_up(tables[r], levels, place, count, other)
                else:
                    to_unit(levels, place, count, other)
                mix_values(x, count, item.mixing, item.a, item.b, other, mixed)
                # Not in place: loops whose arrays may overlap are not vectorized.
                x, mixed = mixed, x
            planes = out[n] if code == FLOAT32 else out[0]
            half_planes = half_out[0] if code == FLOAT32 else half_out[n]
            _write(x, count // 3, row * width, means, deviations, code, planes, half_planes)


_CODES = {torch.float32: FLOAT32, torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}
NO_IMAGES = PackedImages.pack([])
NO_FLOATS = np.empty((1, 3, 0, 0), np.float32)
NO_HALVES = np.empty((1, 3, 0, 0), np.uint16)


def mix_batch(
    images: NDArray[np.uint8],
    mixing_set: PackedImages | Iterable[NDArray[np.uint8]] | None,
    indices: NDArray[np.int64] | Sequence[int],
    *,
    seed: int,
    epoch: int,
    settings: PixMixSettings | None,
    views: int | None = None,
    plain_first: bool = False,
    flip: bool = False,
    padding: int = 0,
    crop: tuple[int, int] | None = None,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    dtype: torch.dtype = torch.float32,
    n_threads: int = 1,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Flip, crop, mix and normalize a batch on the CPU, in one compiled pass.

    Each result is a function of (seed, epoch, index) and the settings: it does not depend on the
    position in the batch or the number of threads. `pixmix.draws` documents the random numbers.
    Source: Hendrycks et al., "PixMix", CVPR 2022, figure 4.

    Example:
        Mix a batch of CIFAR images, ``images``, (N, 32, 32, 3) uint8, in a training loop::

            mixing_set = open_mixing_set("fractals", 36)
            batch = mix_batch(
                images, mixing_set, indices, seed=0, epoch=epoch, settings=PixMixSettings(),
                flip=True, padding=4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
            )

    Args:
        images: (N, H, W, 3) uint8; copied if not C-contiguous.
        mixing_set: mixing images, each at least as large as the crop. The result of
            `open_mixing_set` is used directly; a list of (H, W, 3) uint8 arrays is copied by each
            call. None or an empty set makes every round mix with an augmented copy of the image.
        indices: (N,) dataset indices of the samples, 0 .. 2^32 - 1.
        seed: any integer; taken modulo 2^64.
        epoch: 0 .. 2^32 - 1.
        settings: parameters of PixMix; None for flip, crop and normalization only.
        views: number of independent PixMix views per sample, which share flip and crop; None for
            one view without a view axis.
        plain_first: whether to leave the first of several views unmixed, as for AugMix's
            Jensen-Shannon loss.
        flip: whether to mirror each sample horizontally with probability 1/2.
        padding: width of the black border that is added before the crop, in pixels.
        crop: (height, width) of the random crop; None for (H, W).
        mean: of red, green and blue, subtracted from values in [0, 1].
        std: of red, green and blue, by which the differences are divided.
        dtype: torch.float32, torch.float16 or torch.bfloat16; rounded to nearest, ties to even.
        n_threads: number of threads for the batch; they run without the GIL.
        out: tensor to write to: of the result's shape and dtype, contiguous, on the CPU (it may be
            pinned or shared); None for a new tensor.

    Returns:
        A tensor of shape (N, 3, height, width), or (N, views, 3, height, width), of `dtype`.

    Raises:
        TypeError: if an argument has another type.
        ValueError: if shapes do not fit, or a number is out of range.
    """
    images = _check_images(images)
    indices = check_indices(indices, len(images))
    if not (settings is None or isinstance(settings, PixMixSettings)):
        raise TypeError(
            f"settings is {type(settings).__name__}; pass PixMixSettings(k=4, ...), or None for "
            "flip and crop only"
        )
    padding = check_integer("padding", padding, 0)
    views = check_views(views)
    source_size = (images.shape[1] + 2 * padding, images.shape[2] + 2 * padding)
    height, width = _check_crop(crop) or (images.shape[1], images.shape[2])
    if not (1 <= height <= source_size[0] and 1 <= width <= source_size[1]):
        raise ValueError(
            f"a crop of {height}x{width} (height x width) does not fit into images of "
            f"{images.shape[1]}x{images.shape[2]} padded by {padding}; use a smaller crop or more "
            "padding"
        )
    n_threads = check_integer("n_threads", n_threads, 1)
    means, deviations = _normalization(mean, std)
    packed = pack_mixing_set(mixing_set)
    check_crops(packed.heights, packed.widths, height, width)
    n_views = 1 if views is None else views
    plan = draw_plan(
        indices,
        seed=seed,
        epoch=epoch,
        settings=settings,
        size=(height, width),
        source_size=source_size,
        flip=flip,
        views=n_views,
        n_mixing_images=len(packed),
    )
    if plain_first:
        if views is None:
            raise ValueError("plain_first needs several views; pass views, such as 3")
        plain = plan.samples[::n_views]
        plain["operation"], plain["rounds"] = NO_OPERATION, 0
    shape = (len(images), *(() if views is None else (views,)), 3, height, width)
    result = _output(out, shape, dtype)
    flat = result.view(-1, 3, height, width)
    if dtype == torch.float32:
        floats, halves = flat.numpy(), NO_HALVES
    else:
        floats, halves = NO_FLOATS, flat.view(torch.uint16).numpy()
    mix_planned(
        images,
        packed.layout,
        plan,
        floats,
        halves,
        code=_CODES[dtype],
        n_views=n_views,
        padding=padding,
        means=means,
        deviations=deviations,
        n_threads=n_threads,
    )
    return result


def mix_planned(
    images: NDArray[np.uint8],
    mixing_images: Layout,
    plan: Plan,
    floats: NDArray[np.float32],
    halves: NDArray[np.uint16] = NO_HALVES,
    *,
    code: int = FLOAT32,
    n_views: int,
    padding: int,
    means: NDArray[np.float32],
    deviations: NDArray[np.float32],
    n_threads: int,
) -> None:
    """Compute a batch according to a plan; arguments are not validated.

    floats, halves: (N * n_views, 3, height, width); `code` selects the one that is written.
    """
    height, width = (floats if code == FLOAT32 else halves).shape[2:]

    def mix_rows(first: int, last: int) -> None:
        mix_samples(
            images,
            *mixing_images,
            *plan,
            first,
            last,
            n_views,
            padding,
            means,
            deviations,
            code,
            floats,
            halves,
            *allocate_scratch(height, width, plan.rounds.shape[1]),
        )

    n_rows = len(plan.samples)
    if n_threads == 1 or n_rows < 2:
        mix_rows(0, n_rows)
        return
    edges = [n_rows * part // n_threads for part in range(n_threads + 1)]
    with ThreadPoolExecutor(n_threads) as pool:
        for done in [pool.submit(mix_rows, *part) for part in pairwise(edges)]:
            done.result()


def _check_crop(crop: object) -> tuple[int, int] | None:
    if crop is None:
        return None
    if not (isinstance(crop, Sequence) and len(crop) == 2):
        raise TypeError(f"crop is {crop!r}; pass (height, width) in pixels, or None for no crop")
    return check_integer("crop's height", crop[0], 1), check_integer("crop's width", crop[1], 1)


def _check_images(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        kind = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise TypeError(f"images is {kind}; pass an (N, H, W, 3) array of uint8")
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
        raise ValueError(
            f"images has shape {images.shape}; pass (N, H, W, 3), channels last "
            "(a tensor: images.permute(0, 2, 3, 1).contiguous().numpy())"
        )
    images = np.ascontiguousarray(images)
    # numba would compile the kernel again, for seconds, for the type of read-only arrays.
    return images if images.flags.writeable else images.copy()


def _normalization(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    means, deviations = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    if means.shape != (3,) or not np.isfinite(means).all():
        raise ValueError(f"mean is {mean}; pass three numbers, for red, green and blue")
    if deviations.shape != (3,) or not (np.isfinite(deviations) & (deviations > 0)).all():
        raise ValueError(f"std is {std}; pass three numbers above 0, for red, green and blue")
    return means, deviations


def _output(out: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if dtype not in _CODES:
        raise TypeError(f"dtype is {dtype}; pass torch.float32, torch.float16 or torch.bfloat16")
    if out is None:
        return torch.empty(shape, dtype=dtype)
    if not isinstance(out, torch.Tensor) or out.requires_grad:
        kind = "a tensor that requires a gradient" if isinstance(out, torch.Tensor) else type(out)
        raise TypeError(f"out is {kind}; pass a plain tensor of {dtype} on the CPU")
    if out.dtype != dtype or out.device.type != "cpu":
        raise TypeError(f"out is {out.dtype} on {out.device}; pass a tensor of {dtype} on the CPU")
    if tuple(out.shape) != shape or not out.is_contiguous():
        raise ValueError(
            f"out has shape {tuple(out.shape)} (contiguous: {out.is_contiguous()}); pass a "
            f"contiguous tensor of shape {shape}"
        )
    return out


_SIZE = 16


def compile_mixing() -> None:
    """Compile the kernels that mix and resize images."""
    image = np.zeros((_SIZE, _SIZE, 3), np.uint8)
    mix_batch(
        image[None], PackedImages.pack([image]), [0], seed=0, epoch=0, settings=PixMixSettings()
    )
    half = _SIZE // 2
    part = np.empty((half, half, 3), np.uint8)
    resize_part(image, 0, 0, _SIZE, _SIZE, half, half, 0, 0, part)


def pending() -> list[Callable[[], None]]:
    """Return functions that compile the missing kernels; each may run in its own process."""
    cached = is_cached(mix_samples) and is_cached(resize_part)
    return [] if cached else [compile_mixing]
