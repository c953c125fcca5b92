"""The parameters of PixMix, and the validation of numbers that users pass."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from operator import index

import numpy as np
from numpy.typing import NDArray

from pixmix.mixing import MIXINGS
from pixmix.operations import OPERATIONS

SEED_MODULUS = 2**64

INDEX_LIMIT = 2**32
"""Sample indices and epochs are 32-bit numbers."""

VIEW_LIMIT = 2**24
"""Views are 24-bit numbers: they share a word with their stream."""

MIN_LEVEL, MAX_SEVERITY = 0.1, 10.0

MIN_BETA = 1e-3
"""Below it, U^(1/beta) underflows to 0 for nearly all U."""


def check_integer(name: str, value: object, minimum: int, maximum: int | None = None) -> int:
    """Return an integer of Python, numpy or torch as an int.

    Raises:
        TypeError: if it is not an integer; a bool is not one.
        ValueError: if it is outside minimum .. maximum.
    """
    if isinstance(value, bool):
        raise TypeError(f"{name} is {value}; pass an integer")
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} is {value!r}; pass an integer") from None
    if number < minimum or (maximum is not None and number > maximum):
        bounds = f"from {minimum} to {maximum}" if maximum is not None else f"of {minimum} or more"
        raise ValueError(f"{name} is {number}; pass an integer {bounds}")
    return number


def check_seed(seed: object) -> int:
    """Return any integer modulo 2^64.

    Raises:
        TypeError: if it is not an integer.
    """
    try:
        return index(seed) % SEED_MODULUS  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"seed is {seed!r}; pass an integer") from None


def check_real(name: str, value: object) -> float:
    """Return a real number as a float.

    Raises:
        TypeError: if it is not a real number; a bool is not one.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; pass a number")
    return float(value)


def check_indices(indices: object, n: int) -> NDArray[np.int64]:
    """Return the dataset indices of n samples as (n,) int64, each from 0 to 2^32 - 1.

    Raises:
        TypeError: if they are not integers.
        ValueError: if there are not n of them, or one is out of range.
    """
    numbers = np.asarray(indices)
    if numbers.dtype.kind not in "iu" and numbers.size > 0:
        raise TypeError(f"indices are {numbers.dtype}; pass integers, one per image")
    if numbers.shape != (n,):
        raise ValueError(f"indices has shape {numbers.shape} for {n} images; pass one per image")
    outside = (numbers < 0) | (numbers >= INDEX_LIMIT)
    if outside.any():
        position = int(np.argmax(outside))
        check_integer(f"index {position} of the batch", numbers[position], 0, INDEX_LIMIT - 1)
    return np.ascontiguousarray(numbers, dtype=np.int64)


def check_views(views: object) -> int | None:
    """Return the number of views, or None for one view without a view axis.

    Raises:
        TypeError: if it is neither an integer nor None.
        ValueError: if it is below 1.
    """
    if views is None:
        return None
    if isinstance(views, bool):
        raise TypeError(f"views is {views}; pass 1 or more, or None for one without a view axis")
    return check_integer("views", views, 1)


@dataclass(frozen=True, kw_only=True)
class PixMixSettings:
    """The parameters of PixMix. The defaults are the paper's for CIFAR.

    The paper uses k=4, beta=3, severity=3 for CIFAR and k=4, beta=4, severity=1 for ImageNet
    (released code: github.com/andyzoujm/pixmix at f867e87).

    Example:
        Mix images as the paper does for ImageNet::

            settings = PixMixSettings(beta=4, severity=1)
            mixed = mix_batch(images, mixing_set, indices, seed=0, epoch=0, settings=settings)

    Attributes:
        k: maximum number of mixing rounds, 0 or more; the number of rounds is drawn uniformly from
            0 to k.
        beta: mixing strength, 0.001 or more; the larger, the more a round keeps of the image. It
            mixes in 1 / (beta + 1) on average (see `pixmix.mixing`).
        severity: maximum level of the operations, 0.1 to 10; a level is drawn uniformly from 0.1 to
            severity.
        all_ops: whether to also draw the operations that overlap corruptions of ImageNet-C: color,
            contrast, brightness and sharpness. Do not compare results on ImageNet-C or CIFAR-C
            obtained with and without them.
        geometric: whether to draw rotations, shears and translations. Without them every pixel
            stays in place, so that boxes and masks remain valid.
        mixings: names from `pixmix.mixing.MIXINGS`, each drawn with the same probability; stored as
            a tuple.
    """

    k: int = 4
    beta: float = 3.0
    severity: float = 3.0
    all_ops: bool = False
    geometric: bool = True
    mixings: Sequence[str] = MIXINGS

    def __post_init__(self) -> None:
        """Validate the values.

        Raises:
            ValueError: if a value is out of range.
            TypeError: if a value has another type.
        """
        # Numbers of numpy and torch become plain ones: settings are compared, hashed and written.
        object.__setattr__(self, "k", check_integer("k", self.k, 0))
        object.__setattr__(self, "beta", check_real("beta", self.beta))
        object.__setattr__(self, "severity", check_real("severity", self.severity))
        for name in ("all_ops", "geometric"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is {getattr(self, name)!r}; pass True or False")
        if not (math.isfinite(self.beta) and self.beta >= MIN_BETA):
            raise ValueError(
                f"beta is {self.beta:g}; pass a number of {MIN_BETA:g} or more "
                "(the paper uses 3 and 4)"
            )
        if not MIN_LEVEL <= self.severity <= MAX_SEVERITY:
            raise ValueError(
                f"severity is {self.severity:g}; pass a number from {MIN_LEVEL} to "
                f"{MAX_SEVERITY:g} (the paper uses 3 for CIFAR, 1 for ImageNet)"
            )
        if not isinstance(self.mixings, Sequence):
            raise TypeError(f"mixings is {self.mixings!r}; pass names, such as {MIXINGS}")
        names = (self.mixings,) if isinstance(self.mixings, str) else tuple(self.mixings)
        object.__setattr__(self, "mixings", names)
        if not names or not all(name in MIXINGS for name in names):
            raise ValueError(f"mixings is {names}; pass one or more of {', '.join(MIXINGS)}")

    def __str__(self) -> str:
        """Return the parameters as arguments of `PixMix`."""
        return (
            f"k={self.k}, beta={self.beta:g}, severity={self.severity:g}, all_ops={self.all_ops}, "
            f"geometric={self.geometric}, mixings={self.mixings}"
        )

    @cached_property
    def operation_codes(self) -> NDArray[np.int32]:
        """The codes of the operations to draw from: their positions in `OPERATIONS`."""
        codes = [
            code
            for code, row in enumerate(OPERATIONS)
            if (row.standard or self.all_ops) and (self.geometric or not row.geometric)
        ]
        return np.array(codes, np.int32)

    @cached_property
    def mixing_codes(self) -> NDArray[np.int32]:
        """The codes of the mixings to draw from: their positions in `MIXINGS`."""
        return np.array([MIXINGS.index(name) for name in self.mixings], np.int32)
