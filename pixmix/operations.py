"""The operations of PixMix: one row each, and all that lists operations reads these rows.

To add one, write its kernel and what makes its argument of a level (`pixmix.op_kernels`), its torch
function of the same name (`pixmix.torch_ops`), and a row at the end of `OPERATIONS`. The place of a
row is the code of its operation in all draws, so rows are never moved; a row that `PixMixSettings`
may draw changes what a seed draws, and raises `pixmix.draws.DRAWS_VERSION`. The plain code that
`pixmix-bench` compares with (`pipelines.bench.references`) has a Pillow function per operation.

The operations have the bytes of Pillow 13.0's x86-64 wheels on every machine. Another release of
Pillow may change its arithmetic, and a compiler that fuses a * b + c, as those of other
architectures do, can move the bytes of Pillow's own bilinear sampling and blending.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixmix import op_kernels
from pixmix.arguments import check_image
from pixmix.compiling import kernel, switch

_FACTOR_LIMIT = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """An operation on an image.

    Attributes:
        name: also of its function in `pixmix.torch_ops`.
        kernel: (image, argument, out, scratch); see `pixmix.op_kernels`.
        level: (level, negative, height, width) -> argument, compiled; None without an argument.
        whole: whether the argument is a whole number.
        least: the least argument.
        most: the largest argument.
        unit: of the argument, for people.
        geometric: whether it moves what is in an image; the others keep each thing in its place.
        standard: whether PixMix draws it by default; the others are drawn with `all_ops`.
        overlaps_c: whether it overlaps a corruption of ImageNet-C.
    """

    name: str
    kernel: Any
    level: Any = None
    whole: bool = False
    least: float = -math.inf
    most: float = math.inf
    unit: str = ""
    geometric: bool = False
    standard: bool = True
    overlaps_c: bool = False


def _enhancement(name: str, its_kernel: Any) -> Operation:
    """Return a row of an operation that blends by a factor: 1 leaves the image."""
    return Operation(
        name=name, kernel=its_kernel, level=op_kernels.enhancement_factor, least=0.0,
        most=_FACTOR_LIMIT, unit="x", standard=False, overlaps_c=True,
    )  # fmt: skip


# fmt: off
OPERATIONS = (
    Operation(name="autocontrast", kernel=op_kernels.autocontrast),
    Operation(name="equalize", kernel=op_kernels.equalize),
    Operation(name="posterize", kernel=op_kernels.posterize, level=op_kernels.posterize_bits,
              whole=True, least=0, most=8, unit="bits"),
    Operation(name="rotate", kernel=op_kernels.rotate, level=op_kernels.rotate_degrees,
              whole=True, unit="degrees", geometric=True),
    Operation(name="solarize", kernel=op_kernels.solarize, level=op_kernels.solarize_threshold,
              whole=True, least=0, most=256),
    Operation(name="shear_x", kernel=op_kernels.shear_x, level=op_kernels.shear_factor,
              geometric=True),
    Operation(name="shear_y", kernel=op_kernels.shear_y, level=op_kernels.shear_factor,
              geometric=True),
    Operation(name="translate_x", kernel=op_kernels.translate_x,
              level=op_kernels.translate_columns, whole=True, unit="px", geometric=True),
    Operation(name="translate_y", kernel=op_kernels.translate_y,
              level=op_kernels.translate_rows, whole=True, unit="px", geometric=True),
    _enhancement("color", op_kernels.color),
    _enhancement("contrast", op_kernels.contrast),
    _enhancement("brightness", op_kernels.brightness),
    _enhancement("sharpness", op_kernels.sharpness),
)
# fmt: on
"""The place of a row is the code of its operation."""

CODES = {row.name: code for code, row in enumerate(OPERATIONS)}
"""Name -> code."""

_apply = switch([row.kernel for row in OPERATIONS])
_argument = switch([row.level or op_kernels.no_argument for row in OPERATIONS])


@kernel
def apply_operation(code, argument, image, out, scratch):
    """Write the result of an operation into `out`.

    code: the place in OPERATIONS; ValueError for another one. The rest: see `pixmix.op_kernels`.
    """
    _apply(code, image, argument, out, scratch)


@kernel
def draw_argument(code, level, negative, height, width):
    """Return the argument, float64, that an operation takes at a level.

    code: the place in OPERATIONS; ValueError for another one. level: float64 in [0.1, 10].
    negative: bool, the sign of those that have one. height, width: int, pixels.
    """
    return _argument(code, level, negative, height, width)


def apply(name: str, image: NDArray[np.uint8], argument: float = 0.0) -> NDArray[np.uint8]:
    """Return what an operation makes of an image, with Pillow's bytes.

    Args:
        name: of a row of `OPERATIONS`.
        image: (H, W, 3) uint8 of any size from 1x1, contiguous or not; it is not written.
        argument: within the row's bounds; not read where the row has no level. A posterize to 0
            bits, which PixMix draws at level 10 and Pillow 13 refuses, leaves black.

    Returns:
        A new array of the same shape.

    Raises:
        KeyError: for a name of no row.
        TypeError: for what is no uint8 array.
        ValueError: for another shape, or an argument outside the bounds.
    """
    row, image, number = OPERATIONS[CODES[name]], check_image(image), float(argument)
    if not (math.isfinite(number) and row.least <= number <= row.most):
        raise ValueError(
            f"{name}: {argument} is outside {row.least:g}..{row.most:g}; pass a finite number "
            "within these bounds"
        )
    if row.whole and not number.is_integer():
        raise ValueError(f"{name}: {argument} is not whole; round it")
    out = np.empty_like(image)
    row.kernel(image, number, out, np.empty(op_kernels.SCRATCH_LENGTH, np.int64))
    return out
