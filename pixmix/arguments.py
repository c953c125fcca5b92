"""What users give as numbers, taken as the kernels need them, or refused with value and remedy."""

from collections.abc import Sequence
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
        raise TypeError(f"{name} is {value}; give a whole number")
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} is {value!r}; give a whole number") from None
    if number < least or (most is not None and number > most):
        reach = f"from {least} to {most}" if most is not None else f"of {least} or more"
        raise ValueError(f"{name} is {number}; give a whole number {reach}")
    return number


def seed_of(seed: object) -> int:
    """Return any whole number modulo 2^64.

    Raises:
        TypeError: if it is none.
    """
    try:
        return index(seed) % SEED_MODULUS  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"seed is {seed!r}; give a whole number") from None


def real(name: str, value: object) -> float:
    """Return a real number as a float.

    Raises:
        TypeError: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; give a number")
    return float(value)


def sample_indices(indices: object, n: int) -> NDArray[np.int64]:
    """Return the numbers of n samples, (n,) int64, each from 0 to 2^32 - 1.

    Raises:
        TypeError: if they are no whole numbers.
        ValueError: if there are not n, or one is out of range.
    """
    numbers = np.asarray(indices)
    if numbers.dtype.kind not in "iu" and numbers.size > 0:
        raise TypeError(f"indices are {numbers.dtype}; give whole numbers, one an image")
    if numbers.shape != (n,):
        raise ValueError(f"indices has shape {numbers.shape} for {n} images; give one an image")
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
        raise TypeError(f"views is {views}; give 1 or more, or None for one without an axis")
    return whole("views", views, 1)


def names_of_mixings(mixings: object) -> tuple[str, ...]:
    """Return the names of mixings as a tuple; one name alone is taken too.

    Raises:
        TypeError: if it is no sequence.
    """
    if isinstance(mixings, str):
        return (mixings,)
    if not isinstance(mixings, Sequence):
        raise TypeError(f"mixings is {mixings!r}; give names, as ('add', 'multiply')")
    return tuple(mixings)
