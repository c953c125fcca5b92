"""Compile the kernels of `fractals` and `pixmix`, keep them on the disk, and say when that is slow.

The two packages import nothing of each other, and share this one: the compiler's flags, a cache
that is not trusted blindly, and one line on stderr while somebody waits for the compiler.
"""

from pixmix_kernels.compiling import fma, inlined_kernel, kernel, merged_kernel
from pixmix_kernels.disk import is_kept

__all__ = ["fma", "inlined_kernel", "is_kept", "kernel", "merged_kernel"]
