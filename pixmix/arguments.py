"""What users give as numbers, taken as the kernels need them, or refused with value and remedy."""

from collections.abc import Sequence
from numbers import Real
from operator import index

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
