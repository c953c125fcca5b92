"""The operations on batches of torch tensors, on any device, equal to `pixmix.op_kernels`.

Every function takes images, (M, 3, H, W) uint8, and, if its row in `pixmix.operations` has a level,
arguments, (M,) on the same device: int64 for whole arguments, else `real_type`. It returns new
images. Sums are computed in the order and precision of the kernels. Devices without float64 (mps)
sample and stretch in float32, where results may differ by one level.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from pixmix.op_kernels import ROTATIONS

_MAX_PIXELS = 1 << 23
"""Pixels sampled at a time: at ten float64 each, they take 700 MB."""
LEVELS = 256


def real_type(device: torch.device) -> torch.dtype:
    """Return the widest float type that a device supports."""
    return torch.float32 if device.type == "mps" else torch.float64


def _column(arguments: Tensor) -> Tensor:
    """Reshape (M,) to (M, 1, 1, 1)."""
    return arguments.view(-1, 1, 1, 1)


# --- tables --------------------------------------------------------------------------------------


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Map each value through the table of its channel; tables: (M, 3, 256) uint8."""
    return tables.gather(2, images.flatten(2).long()).view_as(images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel to 0..255; a channel with a single value stays."""
    real = real_type(images.device)
    values = images.flatten(2)
    low, high = (each.to(real).unsqueeze(2) for each in (values.amin(2), values.amax(2)))
    levels = torch.arange(LEVELS, device=images.device, dtype=real)
    # torch computes number / tensor as a product with the reciprocal, which rounds twice.
    scale = torch.full_like(low, 255) / (high - low).clamp(min=1)
    stretched = (levels * scale + -low * scale).clamp(0, 255)
    tables = torch.where(high > low, stretched, levels).to(torch.uint8)
    return _look_up(images, tables)


def equalize(images: Tensor) -> Tensor:
    """Equalize each channel's histogram; a channel with a single value stays."""
    values = images.flatten(2).long()
    n_pixels = values.shape[2]
    counts = torch.zeros((*values.shape[:2], LEVELS), dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, values, torch.ones_like(values[:1, :1]).expand_as(values))
    last = values.amax(2, keepdim=True)
    step = (n_pixels - counts.gather(2, last)) // 255
    below = counts.cumsum(2) - counts
    levels = torch.arange(LEVELS, device=images.device)
    even = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return _look_up(images, torch.where(step > 0, even, levels).to(torch.uint8))


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the most significant bits of each byte; bits: int64, 0..8."""
    masks = torch.bitwise_right_shift(torch.full_like(bits, 0xFF00), bits) & 0xFF
    return images & _column(masks).to(torch.uint8)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert the bytes from a threshold up; thresholds: int64, 0..256."""
    return torch.where(images < _column(thresholds).to(torch.int16), images, 255 - images)


# --- geometry ------------------------------------------------------------------------------------


def _sampled(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sample images bilinearly; black outside.

    x, y: float, broadcast to (M, H, W); in pixels from the corner, so that the first center is 0.5.
    """
    n, _, height, width = images.shape
    x, y = torch.broadcast_tensors(x, y)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x - 0.5, y - 0.5
    left, top = x.floor(), y.floor()
    dx, dy = (x - left).flatten(1).unsqueeze(1), (y - top).flatten(1).unsqueeze(1)
    columns = [(left + i).clamp(0, width - 1).long() for i in range(2)]
    rows = [(top + i).clamp(0, height - 1).long() * width for i in range(2)]
    values = images.flatten(2)

    def tap(row: int, column: int) -> Tensor:
        places = (rows[row] + columns[column]).flatten(1).unsqueeze(1).expand(-1, 3, -1)
        return values.gather(2, places).to(dx.dtype)

    upper = tap(0, 0)
    upper = upper + (tap(0, 1) - upper) * dx
    lower = tap(1, 0)
    lower = lower + (tap(1, 1) - lower) * dx
    result = (upper + (lower - upper) * dy).to(torch.uint8)
    return (result * inside.flatten(1).unsqueeze(1)).view(n, 3, height, width)


def _in_parts(
    images: Tensor, entries: Tensor, sample: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Sample at most `_MAX_PIXELS` at a time.

    entries: (M, ...), matrix entries of the images. sample: function of images, entries, and the
    centers of columns, (1, 1, W), and rows, (1, H, 1).
    """
    n, _, height, width = images.shape
    columns = torch.arange(width, device=images.device, dtype=entries.dtype).view(1, 1, -1) + 0.5
    rows = torch.arange(height, device=images.device, dtype=entries.dtype).view(1, -1, 1) + 0.5
    part = max(1, _MAX_PIXELS // (height * width))
    if n <= part:
        return sample(images, entries, columns, rows)
    pairs = zip(images.split(part), entries.split(part), strict=True)
    return torch.cat([sample(*pair, columns, rows) for pair in pairs])


@cache
def _rotations(device: torch.device) -> Tensor:
    return torch.from_numpy(ROTATIONS).to(real_type(device)).to(device)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate counterclockwise about the center; degrees: int64."""
    height, width = images.shape[2:]
    # From the kernels' table, because a device's own cosine is rounded differently.
    entries = _rotations(images.device).index_select(0, degrees % len(ROTATIONS))

    def sample(images: Tensor, entries: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
        cosine, sine = entries[:, :1, None], entries[:, 1:, None]
        middle_x, middle_y = width / 2.0, height / 2.0
        constant_x = (cosine * -middle_x + sine * -middle_y + 0.0) + middle_x
        constant_y = (-sine * -middle_x + cosine * -middle_y + 0.0) + middle_y
        x = cosine * columns + sine * rows + constant_x
        y = -sine * columns + cosine * rows + constant_y
        return _sampled(images, x, y)

    return _in_parts(images, entries, sample)


def shear_x(images: Tensor, factors: Tensor) -> Tensor:
    """Move each row left by factor * its center's height."""

    def sample(images: Tensor, factors: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
        return _sampled(images, columns + factors.view(-1, 1, 1) * rows, rows)

    return _in_parts(images, factors, sample)


def shear_y(images: Tensor, factors: Tensor) -> Tensor:
    """Move each column up by factor * its center's distance from the left."""

    def sample(images: Tensor, factors: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
        return _sampled(images, columns, factors.view(-1, 1, 1) * columns + rows)

    return _in_parts(images, factors, sample)


def translate_x(images: Tensor, pixels: Tensor) -> Tensor:
    """Move images left by whole pixels; pixels: int64."""
    return _moved(images, pixels, 3)


def translate_y(images: Tensor, pixels: Tensor) -> Tensor:
    """Move images up by whole pixels; pixels: int64."""
    return _moved(images, pixels, 2)


def _moved(images: Tensor, pixels: Tensor, axis: int) -> Tensor:
    """Move images toward index 0 of an axis; fill with black."""
    side, shape = images.shape[axis], [1, 1, 1, 1]
    shape[axis] = side
    places = torch.arange(side, device=images.device).view(shape) + _column(pixels)
    inside = (places >= 0) & (places < side)
    moved: Tensor = images.gather(axis, places.clamp(0, side - 1).expand_as(images)) * inside
    return moved


# --- enhancement ---------------------------------------------------------------------------------


def _blended(degenerate: Tensor | float, images: Tensor, factors: Tensor) -> Tensor:
    """Return degenerate + factor * (image - degenerate) in float32, clipped to 0..255."""
    factor = _column(factors).to(torch.float32)
    blend: Tensor = degenerate + factor * (images.float() - degenerate)
    return blend.clamp(0, 255).to(torch.uint8)


def _gray(images: Tensor) -> Tensor:
    """Return Pillow's luma, (M, 1, H, W) int32: Rec. 601 in 65536ths, rounded."""
    red, green, blue = images.to(torch.int32).split(1, 1)
    gray: Tensor = (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16
    return gray


def color(images: Tensor, factors: Tensor) -> Tensor:
    """Blend each pixel with its gray."""
    return _blended(_gray(images).float(), images, factors)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the mean gray of the image, rounded."""
    n_pixels = images.shape[2] * images.shape[3]
    total = _gray(images).sum((1, 2, 3), keepdim=True, dtype=torch.int64)
    mean = (2 * total + n_pixels) // (2 * n_pixels)
    return _blended(mean.float(), images, factors)


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with black."""
    return _blended(0.0, images, factors)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the weighted mean of 3x3 pixels (center 5); the border stays."""
    if min(images.shape[2:]) < 3:
        return images.clone()
    values = images.to(torch.int32)
    columns = values[..., :-2] + values[..., 1:-1] + values[..., 2:]
    window = columns[..., :-2, :] + columns[..., 1:-1, :] + columns[..., 2:, :]
    inner = images[..., 1:-1, 1:-1]
    window = window + 4 * inner.to(torch.int32)
    smooth = (2 * window + 13) // 26
    result = images.clone()
    result[..., 1:-1, 1:-1] = _blended(smooth.float(), inner, factors)
    return result
