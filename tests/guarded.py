"""Run the operations on pictures between pages that must not be touched; touching one is a crash.

A program of its own, for test_ops.py to start.
"""

import ctypes
import mmap

import numpy as np
from numpy.typing import NDArray

from pixmix import op_kernels

PAGES = 4
FORBIDDEN = 0  # PROT_NONE


def guarded_memory() -> NDArray[np.uint8]:
    """Return whole pages with a forbidden one before them and one behind."""
    memory = mmap.mmap(-1, (PAGES + 2) * mmap.PAGESIZE)
    array = np.frombuffer(memory, np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for page in (0, PAGES + 1):
        address = ctypes.c_void_p(array.ctypes.data + page * mmap.PAGESIZE)
        if protect(address, ctypes.c_size_t(mmap.PAGESIZE), FORBIDDEN):
            raise OSError(ctypes.get_errno(), "mprotect")
    return array[mmap.PAGESIZE : -mmap.PAGESIZE]


def main() -> None:
    """Print how many runs were made; a picture touches either end of its memory."""
    sources, targets = guarded_memory(), guarded_memory()
    scratch = np.zeros(op_kernels.SCRATCH_LENGTH, np.int64)
    generator = np.random.default_rng(1)
    arguments = {"posterize": (3,), "rotate": (0, 3, 17, -45, 90, 180), "solarize": (128,)}
    arguments |= {f"shear_{axis}": (0, 0.01, -0.1, 0.3, -3) for axis in "xy"}
    arguments |= {f"translate_{axis}": (0, 1, -2, 99) for axis in "xy"}
    n_runs = 0
    for code, name in enumerate(op_kernels.OPERATIONS):
        for argument in arguments.get(name, (0.5,)):
            for height, width in [*np.ndindex(10, 10), (1, 999), (999, 1), (29, 34), (34, 29)]:
                shape = (height or 31, width or 37, 3)
                size = shape[0] * shape[1] * 3
                for place in (slice(None, size), slice(-size, None)):
                    picture, out = sources[place].reshape(shape), targets[place].reshape(shape)
                    picture[:] = generator.integers(0, 256, shape)
                    op_kernels.apply_operation(code, float(argument), picture, out, scratch)
                    n_runs += 1
    print(n_runs)  # noqa: T201


if __name__ == "__main__":
    main()
