"""What this package takes for a picture, and the errors where it is something else."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_MOST_PIXELS = 2**31 - 1


def image_key(sample: Sequence[object] | Mapping[object, object]) -> object:
    """Return the index or key of what looks like an image in a sample of a dataset, else 0."""
    pairs = sample.items() if isinstance(sample, Mapping) else enumerate(sample)
    # Pillow's images have no ndim, and labels no shape of an image.
    looks = (
        key for key, value in pairs if getattr(value, "ndim", 0) == 3 or hasattr(value, "mode")
    )
    return next(looks, 0)


def check_picture(picture: object) -> NDArray[np.uint8]:
    """Return a picture as a C-contiguous, writeable array, copied where it was not.

    picture: (H, W, 3) uint8, H and W at least 1, up to 2^31 - 1 pixels. Raises TypeError for what
    is not an array or not uint8, ValueError for another shape.
    """
    if isinstance(picture, tuple | list | Mapping):
        raise TypeError(
            f"expected an (H, W, 3) uint8 array, not {type(picture).__name__}; convert it with "
            "numpy.asarray, and leave labels out: "
            f"[numpy.asarray(sample[{image_key(picture)!r}]) for sample in dataset]"
        )
    if not isinstance(picture, np.ndarray):
        raise TypeError(
            f"a picture is an (H, W, 3) uint8 array, not {type(picture).__name__}; "
            "convert it with numpy.asarray(picture)"
        )
    if picture.dtype != np.uint8:
        raise TypeError(
            f"a picture holds uint8, 0..255, not {picture.dtype}; "
            "round it and convert it with .astype(numpy.uint8)"
        )
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(
            f"a picture has shape (H, W, 3) with H and W at least 1, not {picture.shape}; "
            "put the channels last, and make three of them (Pillow: .convert('RGB'))"
        )
    if picture.shape[0] * picture.shape[1] > _MOST_PIXELS:
        raise ValueError(
            f"a picture has at most {_MOST_PIXELS} pixels, not {picture.shape[:2]}; cut it in parts"
        )
    picture = np.ascontiguousarray(picture)
    # A kernel is compiled anew, for seconds, for the type of arrays that cannot be written.
    return picture if picture.flags.writeable else picture.copy()
