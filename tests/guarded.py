"""Run kernels next to protected pages of memory, where any access crashes the process.

Tests start this program:

    python tests/guarded.py                   # operations on images between protected pages
    python tests/guarded.py mixing needed     # samples that need the protected mixing set: a crash
    python tests/guarded.py mixing unneeded   # samples that do not need it: no crash
"""

import ctypes
import mmap
import sys

import numpy as np
from numpy.typing import NDArray

from pixmix.op_kernels import SCRATCH_LENGTH
from pixmix.operations import CODES, apply_operation

PAGES = 4
PROT_NONE = 0


def guarded_memory() -> NDArray[np.uint8]:
    """Return whole pages with a protected page before and after them."""
    array = np.frombuffer(mmap.mmap(-1, (PAGES + 2) * mmap.PAGESIZE), np.uint8)
    protect(array[: mmap.PAGESIZE])
    protect(array[-mmap.PAGESIZE :])
    return array[mmap.PAGESIZE : -mmap.PAGESIZE]


def protect(pages: NDArray[np.uint8]) -> None:
    """Make any access to whole pages crash the process."""
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    if mprotect(ctypes.c_void_p(pages.ctypes.data), ctypes.c_size_t(pages.size), PROT_NONE):
        raise OSError(ctypes.get_errno(), "mprotect")


def mix_a_protected_set(which: str) -> None:
    """Mix the samples that need a mixing image, or the others, and print their number."""
    from pixmix.draws import draw_plan
    from pixmix.fused import mix_batch
    from pixmix.images import PackedImages
    from pixmix.settings import PixMixSettings

    settings = PixMixSettings()
    size, n_mixing_images = (20, 13), 5
    plan = draw_plan(
        np.arange(1000), seed=1, epoch=0, settings=settings, size=size, source_size=size,
        flip=False, views=1, n_mixing_images=n_mixing_images,
    )  # fmt: skip
    indices = np.flatnonzero(plan.needs_mixing_image() == (which == "needed"))
    memory = np.frombuffer(mmap.mmap(-1, PAGES * mmap.PAGESIZE), np.uint8)
    n_bytes = 3 * size[0] * size[1]
    mixing_images = PackedImages(
        memory[: n_mixing_images * n_bytes],
        np.arange(n_mixing_images) * n_bytes,
        np.full(n_mixing_images, size[0], np.int32),
        np.full(n_mixing_images, size[1], np.int32),
    )
    images = np.zeros((len(indices), *size, 3), np.uint8)
    # The first time, without protection, compiles the kernels.
    for _ in range(2):
        mix_batch(images, mixing_images, indices, seed=1, epoch=0, settings=settings)
        print(f"mixed {len(indices)}", flush=True)  # noqa: T201
        protect(memory)


def run_operations() -> None:
    """Run operations on images at either end of their memory, and print the number of runs."""
    sources, targets = guarded_memory(), guarded_memory()
    scratch = np.zeros(SCRATCH_LENGTH, np.int64)
    generator = np.random.default_rng(1)
    arguments = {"posterize": (3,), "rotate": (0, 3, 17, -45, 90, 180), "solarize": (128,)}
    arguments |= {f"shear_{axis}": (0, 0.01, -0.1, 0.3, -3) for axis in "xy"}
    arguments |= {f"translate_{axis}": (0, 1, -2, 99) for axis in "xy"}
    n_runs = 0
    for name, code in CODES.items():
        for argument in arguments.get(name, (0.5,)):
            for height, width in [*np.ndindex(10, 10), (1, 999), (999, 1), (29, 34), (34, 29)]:
                shape = (height or 31, width or 37, 3)
                size = shape[0] * shape[1] * 3
                for place in (slice(None, size), slice(-size, None)):
                    image, out = sources[place].reshape(shape), targets[place].reshape(shape)
                    image[:] = generator.integers(0, 256, shape)
                    apply_operation(code, float(argument), image, out, scratch)
                    n_runs += 1
    print(n_runs)  # noqa: T201


if __name__ == "__main__":
    if sys.argv[1:2] == ["mixing"]:
        mix_a_protected_set(sys.argv[2])
    else:
        run_operations()
