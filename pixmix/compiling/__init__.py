"""Compile the kernels of `fractals` and `pixmix`, keep them on the disk, and say when that is slow.

The two packages share nothing but this: the compiler's flags, a cache that is not trusted blindly,
and one line on stderr while somebody waits for the compiler.
"""

from pixmix.compiling.disk import is_kept
from pixmix.compiling.kernels import fma, inlined_kernel, kernel, merged_kernel

__all__ = ["fma", "inlined_kernel", "is_kept", "kernel", "merged_kernel"]
