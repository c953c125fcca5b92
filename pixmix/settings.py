"""What PixMix is told to do: the numbers of the paper's section 3, validated once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pixmix.arguments import real, whole
from pixmix.mixing import MIXINGS
from pixmix.operations import OPERATIONS

MAXIMAL_SEVERITY = 10.0
MINIMAL_LEVEL = 0.1

MINIMAL_BETA = 1e-3
"""Below, the exponent 1 / beta leaves nothing of a uniform number but 0."""


@dataclass(frozen=True, kw_only=True)
class PixMixSettings:
    """The parameters of PixMix; the defaults are the paper's for CIFAR.

    Attributes:
        k: the most rounds of mixing; their number is drawn uniformly from 0 to k.
        beta: above 0; the larger, the more a mixing keeps of the image (see `pixmix.mixing`).
        severity: of the operations, 0.1 to 10; a level is drawn uniformly from 0.1 to severity.
        all_ops: whether the operations that overlap ImageNet-C's test corruptions are drawn too
            (see `pixmix.operations`). Results with and without are not to be compared.
        geometric: whether rotations, shears and translations are drawn. Without them all that is in
            an image stays in its place: for boxes and masks.
        mixings: a sequence of names from `MIXINGS`, each drawn with the same probability; held as
            a tuple.

    The paper's recipes: CIFAR k=4, beta=3, severity=3; ImageNet k=4, beta=4, severity=1.
    Source: facts of the released code, github.com/andyzoujm/pixmix at f867e87.
    """

    k: int = 4
    beta: float = 3.0
    severity: float = 3.0
    all_ops: bool = False
    geometric: bool = True
    mixings: Sequence[str] = MIXINGS

    def __post_init__(self) -> None:
        """Refuse nonsense.

        Raises:
            ValueError: if a value is outside its range.
            TypeError: if a value is not a number, or k no whole one.
        """
        # As plain numbers, whatever gave them: they are compared, written down and hashed.
        object.__setattr__(self, "k", whole("k", self.k, 0))
        object.__setattr__(self, "beta", real("beta", self.beta))
        object.__setattr__(self, "severity", real("severity", self.severity))
        for name in ("all_ops", "geometric"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is {getattr(self, name)!r}; pass True or False")
        if not (math.isfinite(self.beta) and self.beta >= MINIMAL_BETA):
            raise ValueError(
                f"beta is {self.beta:g}; pass a number above 0, {MINIMAL_BETA:g} or more "
                "(the paper: 3 and 4)"
            )
        if not MINIMAL_LEVEL <= self.severity <= MAXIMAL_SEVERITY:
            raise ValueError(
                f"severity is {self.severity:g}; pass a number from {MINIMAL_LEVEL} to "
                f"{MAXIMAL_SEVERITY:g} (the paper: 3 for CIFAR, 1 for ImageNet)"
            )
        if not isinstance(self.mixings, Sequence):
            raise TypeError(f"mixings is {self.mixings!r}; pass names, as {MIXINGS}")
        names = (self.mixings,) if isinstance(self.mixings, str) else tuple(self.mixings)
        object.__setattr__(self, "mixings", names)
        if not names or not all(name in MIXINGS for name in names):
            raise ValueError(f"mixings is {names}; pass one or more of {', '.join(MIXINGS)}")

    def __str__(self) -> str:
        """Return the parameters as PixMix takes them."""
        return (
            f"k={self.k}, beta={self.beta:g}, severity={self.severity:g}, all_ops={self.all_ops}, "
            f"geometric={self.geometric}, mixings={self.mixings}"
        )

    @cached_property
    def operation_codes(self) -> NDArray[np.int32]:
        """The places in `OPERATIONS` of those that are drawn, as the kernels take them."""
        codes = [
            code
            for code, row in enumerate(OPERATIONS)
            if (row.standard or self.all_ops) and (self.geometric or not row.geometric)
        ]
        return np.array(codes, np.int32)

    @cached_property
    def mixing_codes(self) -> NDArray[np.int32]:
        """The places of the mixings in `MIXINGS`, as the kernels take them."""
        return np.array([MIXINGS.index(name) for name in self.mixings], np.int32)
