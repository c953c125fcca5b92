"""The table of PixMix's operations: one row per operation, read by everything that lists them.

To add an operation, write its kernel and the function from level to argument in
`pixmix.op_kernels`, a torch function of the same name in `pixmix.torch_ops`, a Pillow function in
`pipelines.bench.references`, and a row at the end of `OPERATIONS`. The position of a row is the
code of its operation in all draws, so never move a row. A row that `PixMixSettings` may draw
changes what a seed draws; increment `pixmix.draws.DRAWS_VERSION` then.

On every machine the results equal those of Pillow 13.0's x86-64 wheels byte for byte. Other
releases of Pillow may compute differently, and where a compiler fuses a * b + c (as for other
architectures), Pillow's own bilinear sampling and blending may differ by a level.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixmix import op_kernels
from pixmix.compiling import kernel, switch
from pixmix.images import check_image

_FACTOR_LIMIT = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A row of the table: an operation on an image.

    Attributes:
        name: name of the operation and of its function in `pixmix.torch_ops`.
        kernel: compiled function of (image, argument, out, scratch); see `pixmix.op_kernels`.
        level: compiled function of (level, negative, height, width) that returns the argument; None
            if the operation has no argument.
        whole: whether the argument is a whole number.
        minimum: minimum argument.
        maximum: maximum argument.
        unit: unit of the argument, for display.
        geometric: whether it moves pixels.
        standard: whether PixMix draws it by default, and not only with `all_ops`.
        overlaps_c: whether it overlaps a corruption of ImageNet-C.
    """

    name: str
    kernel: Any
    level: Any = None
    whole: bool = False
    minimum: float = -math.inf
    maximum: float = math.inf
    unit: str = ""
    geometric: bool = False
    standard: bool = True
    overlaps_c: bool = False


def _enhancement(name: str, compiled: Any) -> Operation:
    """Return the row of an operation that blends by a factor; factor 1 keeps the image."""
    return Operation(
        name=name, kernel=compiled, level=op_kernels.enhancement_factor, minimum=0.0,
        maximum=_FACTOR_LIMIT, unit="x", standard=False, overlaps_c=True,
    )  # fmt: skip


# fmt: off
OPERATIONS = (
    Operation(name="autocontrast", kernel=op_kernels.autocontrast),
    Operation(name="equalize", kernel=op_kernels.equalize),
    Operation(name="posterize", kernel=op_kernels.posterize, level=op_kernels.posterize_bits,
              whole=True, minimum=0, maximum=8, unit="bits"),
    Operation(name="rotate", kernel=op_kernels.rotate, level=op_kernels.rotate_degrees,
              whole=True, unit="degrees", geometric=True),
    Operation(name="solarize", kernel=op_kernels.solarize, level=op_kernels.solarize_threshold,
              whole=True, minimum=0, maximum=256),
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
"""All operations; the position of a row is its code."""

CODES = {row.name: code for code, row in enumerate(OPERATIONS)}
"""The code of each operation, by name."""

_apply = switch([row.kernel for row in OPERATIONS])
_argument = switch([row.level or op_kernels.no_argument for row in OPERATIONS])


@kernel
def apply_operation(code, argument, image, out, scratch):
    """Write the result of an operation into `out`.

    code: position in OPERATIONS; ValueError for any other. The rest: see `pixmix.op_kernels`.
    """
    _apply(code, image, argument, out, scratch)


@kernel
def draw_argument(code, level, negative, height, width):
    """Return the argument of an operation at a level, float64.

    code: position in OPERATIONS; ValueError for any other. level: float64 in [0.1, 10]. negative:
    bool, the sign of signed arguments. height, width: int, of the image in pixels.
    """
    return _argument(code, level, negative, height, width)


def apply(name: str, image: NDArray[np.uint8], argument: float = 0.0) -> NDArray[np.uint8]:
    """Apply an operation to an image, with the same result as Pillow byte for byte.

    Args:
        name: name of a row of `OPERATIONS`.
        image: (H, W, 3) uint8, of any size from 1x1; it is not modified.
        argument: within the row's bounds; ignored if the row has no level. Posterizing to 0 bits,
            which PixMix draws at level 10 and Pillow 13 rejects, returns a black image.

    Returns:
        A new array of the image's shape.

    Raises:
        KeyError: if no operation has this name.
        TypeError: if the image is not a uint8 array.
        ValueError: if the image has another shape, or the argument is out of bounds.
    """
    row, image, number = OPERATIONS[CODES[name]], check_image(image), float(argument)
    if not (math.isfinite(number) and row.minimum <= number <= row.maximum):
        raise ValueError(
            f"{name}: {argument} is outside {row.minimum:g}..{row.maximum:g}; pass a finite number "
            "within these bounds"
        )
    if row.whole and not number.is_integer():
        raise ValueError(f"{name}: {argument} is not a whole number; round it")
    out = np.empty_like(image)
    row.kernel(image, number, out, np.empty(op_kernels.SCRATCH_LENGTH, np.int64))
    return out
