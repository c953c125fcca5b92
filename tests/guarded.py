"""Run kernels beside pages that must not be touched; touching one is a crash.

A program of its own, for tests to start:

    python tests/guarded.py                   # operations on pictures between such pages
    python tests/guarded.py mixing needed     # a batch whose mixing set lies on them: a crash
    python tests/guarded.py mixing unneeded   # the samples that need no mixing picture: none
"""

import ctypes
import mmap
import sys

import numpy as np
from numpy.typing import NDArray

from pixmix.op_kernels import SCRATCH_LENGTH
from pixmix.operations import CODES, apply_operation

PAGES = 4
FORBIDDEN = 0  # PROT_NONE


def guarded_memory() -> NDArray[np.uint8]:
    """Return whole pages with a forbidden one before them and one behind."""
    array = np.frombuffer(mmap.mmap(-1, (PAGES + 2) * mmap.PAGESIZE), np.uint8)
    forbid(array[: mmap.PAGESIZE])
    forbid(array[-mmap.PAGESIZE :])
    return array[mmap.PAGESIZE : -mmap.PAGESIZE]


def forbid(pages: NDArray[np.uint8]) -> None:
    """Let the process crash where it touches whole pages."""
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    if protect(ctypes.c_void_p(pages.ctypes.data), ctypes.c_size_t(pages.size), FORBIDDEN):
        raise OSError(ctypes.get_errno(), "mprotect")


def mix_a_forbidden_set(which: str) -> None:
    """Print how many samples were mixed; which: those that need a mixing picture, or the others."""
    from pixmix.draws import draw_plan
    from pixmix.fused import mix_batch
    from pixmix.packed import PackedImages
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
    pictures = PackedImages(
        memory[: n_mixing_images * n_bytes],
        np.arange(n_mixing_images) * n_bytes,
        np.full(n_mixing_images, size[0], np.int32),
        np.full(n_mixing_images, size[1], np.int32),
    )
    images = np.zeros((len(indices), *size, 3), np.uint8)
    # Once while it may be touched: what is compiled is ready, and all that is left is the mixing.
    for _ in range(2):
        mix_batch(images, pictures, indices, seed=1, epoch=0, settings=settings)
        print(f"mixed {len(indices)}", flush=True)  # noqa: T201
        forbid(memory)


def run_operations() -> None:
    """Print how many runs were made; a picture touches either end of its memory."""
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
                    picture, out = sources[place].reshape(shape), targets[place].reshape(shape)
                    picture[:] = generator.integers(0, 256, shape)
                    apply_operation(code, float(argument), picture, out, scratch)
                    n_runs += 1
    print(n_runs)  # noqa: T201


if __name__ == "__main__":
    if sys.argv[1:2] == ["mixing"]:
        mix_a_forbidden_set(sys.argv[2])
    else:
        run_operations()
