"""One place for the compiler's flags: every kernel is made by `kernel` or `inlined_kernel`.

No fast-math flag: an operation that must equal another program byte for byte cannot let sums be
reordered, and pixels must not depend on the processor that computed them. A fused multiply-add
happens where `fma` says so and nowhere else. `error_model="numpy"` lets a division by zero give
inf, so that loops stay free of branches.
"""

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pixmix.compiling import waiting
from pixmix.compiling.disk import keep

_FLAGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function: kept on the disk, GIL released, IEEE arithmetic, no bounds checks."""
    waiting.listen()
    return keep(numba.njit(**_FLAGS)(function))


def inlined_kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel into each caller, where arrays handed to it cost no reference count."""
    waiting.listen()
    return keep(numba.njit(forceinline=True, **_FLAGS)(function))


def merged_kernel(function: Callable[..., Any]) -> Any:
    """Compile a function as a piece of the kernel that calls it, before types are known.

    It is compiled by itself only where Python calls it, which saves more than half of the time for
    a function with one caller; one with several callers, or a long one, takes longer than by
    `inlined_kernel`.
    """
    return numba.njit(inline="always", **_FLAGS)(function)


@intrinsic
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c of equal floats with one rounding."""
    if a != b or b != c or a not in (types.float32, types.float64):
        return None

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        of_type = values[0].type
        function = builder.module.declare_intrinsic(
            "llvm.fma", [of_type], ir.FunctionType(of_type, [of_type] * 3)
        )
        return builder.call(function, values)

    return a(a, a, a), generate
