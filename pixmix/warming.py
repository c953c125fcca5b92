"""Compile the kernels of PixMix before they are needed.

Each function of `pending()` compiles a part, and may run in a process of its own.
"""

from collections.abc import Callable

import numpy as np

from pixmix.compiling import is_kept
from pixmix.fused import mix_batch
from pixmix.kernels import mix_samples
from pixmix.packed import PackedPictures
from pixmix.resizing import resize_part
from pixmix.settings import PixMixSettings

_SIZE = 16


def compile_mixing() -> None:
    """Compile what mixes images and what brings them to their size."""
    image = np.zeros((_SIZE, _SIZE, 3), np.uint8)
    mix_batch(
        image[None], PackedPictures.pack([image]), [0], seed=0, epoch=0, settings=PixMixSettings()
    )
    half = _SIZE // 2
    part = np.empty((half, half, 3), np.uint8)
    resize_part(image, 0, 0, _SIZE, _SIZE, half, half, 0, 0, part)


def pending() -> list[Callable[[], None]]:
    """Return the parts that have not been compiled on this machine."""
    kept = is_kept(mix_samples) and is_kept(resize_part)
    return [] if kept else [compile_mixing]
