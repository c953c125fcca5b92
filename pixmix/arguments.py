"""What users pass, numbers and images, as the kernels take it, or refused with value and remedy."""

from collections.abc import Mapping, Sequence
from numbers import Real
from operator import index

import numpy as np
from numpy.typing import NDArray

from pixmix.philox import INDEX_LIMIT

SEED_MODULUS = 2**64


def whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """Return a whole number as an int: Python's, numpy's and torch's are all taken.

    Raises:
        TypeError: if it is none; a bool is none.
        ValueError: if it is outside least .. most.
    """
    if isinstance(value, bool):
        raise TypeError(f"{name} is {value}; pass a whole number")
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} is {value!r}; pass a whole number") from None
    if number < least or (most is not None and number > most):
        reach = f"from {least} to {most}" if most is not None else f"of {least} or more"
        raise ValueError(f"{name} is {number}; pass a whole number {reach}")
    return number


def seed_of(seed: object) -> int:
    """Return any whole number modulo 2^64.

    Raises:
        TypeError: if it is none.
    """
    try:
        return index(seed) % SEED_MODULUS  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"seed is {seed!r}; pass a whole number") from None


def real(name: str, value: object) -> float:
    """Return a real number as a float.

    Raises:
        TypeError: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; pass a number")
    return float(value)


def sample_indices(indices: object, n: int) -> NDArray[np.int64]:
    """Return the numbers of n samples, (n,) int64, each from 0 to 2^32 - 1.

    Raises:
        TypeError: if they are no whole numbers.
        ValueError: if there are not n, or one is out of range.
    """
    numbers = np.asarray(indices)
    if numbers.dtype.kind not in "iu" and numbers.size > 0:
        raise TypeError(f"indices are {numbers.dtype}; pass whole numbers, one an image")
    if numbers.shape != (n,):
        raise ValueError(f"indices has shape {numbers.shape} for {n} images; pass one an image")
    outside = (numbers < 0) | (numbers >= INDEX_LIMIT)
    if outside.any():
        place = int(np.argmax(outside))
        whole(f"index {place} of the batch", numbers[place], 0, INDEX_LIMIT - 1)
    return np.ascontiguousarray(numbers, dtype=np.int64)


def count_of_views(views: object) -> int | None:
    """Return how many views, or None for one without an axis.

    Raises:
        TypeError: if it is neither.
        ValueError: if it is below 1.
    """
    if views is None:
        return None
    if isinstance(views, bool):
        raise TypeError(f"views is {views}; pass 1 or more, or None for one without an axis")
    return whole("views", views, 1)


_MOST_PIXELS = 2**31 - 1


def image_key(sample: Sequence[object] | Mapping[object, object]) -> object:
    """Return the index or key of what looks like an image in a sample of a dataset, else 0."""
    pairs = sample.items() if isinstance(sample, Mapping) else enumerate(sample)
    # Pillow's images have no ndim, and labels no shape of an image.
    looks = (
        key for key, value in pairs if getattr(value, "ndim", 0) == 3 or hasattr(value, "mode")
    )
    return next(looks, 0)


def check_image(image: object) -> NDArray[np.uint8]:
    """Return an image as a C-contiguous, writeable array, copied where it was not.

    image: (H, W, 3) uint8, H and W at least 1, up to 2^31 - 1 pixels. Raises TypeError for what
    is not an array or not uint8, ValueError for another shape.
    """
    if isinstance(image, tuple | list | Mapping):
        raise TypeError(
            f"expected an (H, W, 3) uint8 array, not {type(image).__name__}; convert it with "
            "numpy.asarray, and leave labels out: "
            f"[numpy.asarray(sample[{image_key(image)!r}]) for sample in dataset]"
        )
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"an image is an (H, W, 3) uint8 array, not {type(image).__name__}; "
            "convert it with numpy.asarray(image)"
        )
    if image.dtype != np.uint8:
        raise TypeError(
            f"an image holds uint8, 0..255, not {image.dtype}; "
            "round it and convert it with .astype(numpy.uint8)"
        )
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f"an image has shape (H, W, 3) with H and W at least 1, not {image.shape}; "
            "put the channels last, and make three of them (Pillow: .convert('RGB'))"
        )
    if image.shape[0] * image.shape[1] > _MOST_PIXELS:
        raise ValueError(
            f"an image has at most {_MOST_PIXELS} pixels, not {image.shape[:2]}; cut it in parts"
        )
    image = np.ascontiguousarray(image)
    # A kernel is compiled anew, for seconds, for the type of arrays that cannot be written.
    return image if image.flags.writeable else image.copy()
