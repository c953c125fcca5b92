"""What PixMix is told to do: the numbers of the paper's section 3, validated once."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

MIXINGS = ("add", "multiply", "screen", "overlay", "darken_or_lighten", "swap_channel")
"""All ways to mix two pictures; the paper uses the first two."""

MAXIMAL_SEVERITY = 10.0
MINIMAL_LEVEL = 0.1


@dataclass(frozen=True, kw_only=True)
class PixMixSettings:
    """The parameters of PixMix; the defaults are the paper's for CIFAR.

    Attributes:
        k: the most rounds of mixing; their number is drawn uniformly from 0 to k.
        beta: above 0; the larger, the more a mixing keeps of the picture (see `pixmix.mixing`).
        severity: of the operations, 0.1 to 10; a level is drawn uniformly from 0.1 to severity.
        all_ops: whether color, contrast, brightness and sharpness are drawn too. They overlap
            ImageNet-C's test corruptions, so results with and without are not to be compared.
        mixings: names from `MIXINGS`, each drawn with the same probability.

    The paper's recipes: CIFAR k=4, beta=3, severity=3; ImageNet k=4, beta=4, severity=1.
    Source: facts of the released code, github.com/andyzoujm/pixmix at f867e87.
    """

    k: int = 4
    beta: float = 3.0
    severity: float = 3.0
    all_ops: bool = False
    mixings: tuple[str, ...] = ("add", "multiply")

    def __post_init__(self) -> None:
        """Refuse nonsense.

        Raises:
            ValueError: if a value is outside its range.
            TypeError: if k is no whole number.
        """
        if isinstance(self.k, bool) or not isinstance(self.k, int):
            raise TypeError(f"k is {self.k!r}; give the most rounds as a whole number, as 4")
        if self.k < 0:
            raise ValueError(f"k is {self.k}; give the most rounds, 0 or more")
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"beta is {self.beta}; give a number above 0 (the paper: 3 and 4)")
        if not MINIMAL_LEVEL <= self.severity <= MAXIMAL_SEVERITY:
            raise ValueError(
                f"severity is {self.severity}; give a number from {MINIMAL_LEVEL} to "
                f"{MAXIMAL_SEVERITY:g} (the paper: 3 for CIFAR, 1 for ImageNet)"
            )
        if not (isinstance(self.mixings, tuple) and self.mixings):
            raise ValueError(
                f"mixings is {self.mixings!r}; give a tuple of one or more of {', '.join(MIXINGS)}"
            )
        for name in self.mixings:
            if name not in MIXINGS:
                raise ValueError(f"there is no mixing {name!r}; choose from {', '.join(MIXINGS)}")

    @cached_property
    def mixing_codes(self) -> NDArray[np.int32]:
        """The places of the mixings in `MIXINGS`, as the kernels take them."""
        return np.array([MIXINGS.index(name) for name in self.mixings], np.int32)
