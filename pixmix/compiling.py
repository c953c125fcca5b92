"""One place for the compiler's flags: every kernel of this package is made by `kernel`.

No fast-math flag: an operation that must equal another program byte for byte cannot let sums be
reordered, and pixels must not depend on the processor that mixed them. A fused multiply-add happens
where `fma` says so and nowhere else.
"""

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function: cached, GIL released, IEEE arithmetic, no bounds checks."""
    return _compiled(function, forceinline=False)


def inlined_kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel into each caller, where arrays handed to it cost no reference count."""
    return _compiled(function, forceinline=True)


def _compiled(function: Callable[..., Any], *, forceinline: bool) -> Any:
    flags: dict[str, Any] = {"nogil": True, "error_model": "numpy", "forceinline": forceinline}
    try:
        return numba.njit(cache=True, **flags)(function)
    except RuntimeError:
        # No folder to cache in (a read-only installation, a user without a home): compile anew.
        return numba.njit(**flags)(function)


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
