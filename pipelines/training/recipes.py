"""How a network is trained, as plain numbers: the paper's recipes, and what may be changed.

The defaults are facts of the released code, github.com/andyzoujm/pixmix at f867e87.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

from pixmix.settings import MAXIMAL_SEVERITY, MINIMAL_LEVEL, PixMixSettings

Augment = Literal["none", "pixmix", "augmix", "trivialaugment"]
AUGMENTS: tuple[Augment, ...] = ("none", "pixmix", "augmix", "trivialaugment")
Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")
Optimizer = Literal["sgd", "adamw"]
OPTIMIZERS: tuple[Optimizer, ...] = ("sgd", "adamw")


_MOST = 1e30
"""Of rates and weights: above it float32 does not hold them, and torch refuses them."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a training depends on, besides its data and the machine.

    model: see `pipelines.models.registry.open_model`. epochs; batch_size: of all processes.
    learning_rate: falls by a cosine a step to `final_learning_rate`, after `warm_up_epochs` of
    rising. accumulate: parts that a batch is computed in, on each process.
    augment: "pixmix", or a baseline in its place. augmix_severity, augmix_all_ops: of AugMix's
    operations, see `pipelines.training.rivals`; whether it also draws those that overlap the
    corruptions of ImageNet-C. jsd: the cross entropy is that of the picture as it
    is, and `jsd_weight` times the Jensen-Shannon divergence of it and two augmented views is added
    (Hendrycks et al., AugMix, ICLR 2020).
    ema_decay: of averaged weights, which are then those that are evaluated; None for none.
    """

    model: str = "wrn_40_4"
    epochs: int = 100
    batch_size: int = 128
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.1
    final_learning_rate: float = 1e-6
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up_epochs: float = 0.0
    label_smoothing: float = 0.0
    dropout: float = 0.0
    accumulate: int = 1
    augment: Augment = "pixmix"
    pixmix: PixMixSettings = field(default_factory=PixMixSettings)
    augmix_severity: float = 3.0
    augmix_all_ops: bool = False
    jsd: bool = False
    jsd_weight: float = 12.0
    ema_decay: float | None = None
    precision: Precision = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
        for name in ("learning_rate", "final_learning_rate", "weight_decay", "warm_up_epochs",
                     "jsd_weight"):  # fmt: skip
            value = getattr(self, name)
            if not 0 <= value <= _MOST:
                raise ValueError(f"{name} is {value}; give 0 or more, up to {_MOST:g}")
        for name in ("momentum", "label_smoothing", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or more, below 1")
        if not MINIMAL_LEVEL <= self.augmix_severity <= MAXIMAL_SEVERITY:
            raise ValueError(
                f"augmix_severity is {self.augmix_severity}; give {MINIMAL_LEVEL} to "
                f"{MAXIMAL_SEVERITY:g}"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; give a number between 0 and 1")
        self._refuse_unknown()
        self._refuse_what_does_not_fit()

    def _refuse_what_does_not_fit(self) -> None:
        if self.warm_up_epochs >= self.epochs:
            raise ValueError(
                f"warm_up_epochs is {self.warm_up_epochs:g} of {self.epochs} epochs; give less"
            )
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate is {self.accumulate} and the batch has {self.batch_size} pictures; "
                "give no more parts than that"
            )
        if self.jsd and self.augment == "none":
            raise ValueError(
                "jsd is for pictures that are augmented, and augment is none; leave one out"
            )

    def _refuse_unknown(self) -> None:
        for name, known in (("augment", AUGMENTS), ("precision", PRECISIONS),
                            ("optimizer", OPTIMIZERS)):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; give one of {', '.join(known)}"
                )

    def learning_rate_at(self, step: int, steps_an_epoch: int) -> float:
        """Return the learning rate of a step, from 0: a function of the step alone."""
        total = self.epochs * steps_an_epoch
        warm = self.warm_up_epochs * steps_an_epoch
        if step < warm:
            return self.learning_rate * (step + 1) / (warm + 1)
        done = (step - warm) / max(total - warm, 1)
        fall = (1 + math.cos(math.pi * min(done, 1.0))) / 2
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * fall

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = asdict(self)
        values["pixmix"]["mixings"] = list(self.pixmix.mixings)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the recipe that `to_json` wrote."""
        pixmix = {**values["pixmix"], "mixings": tuple(values["pixmix"]["mixings"])}
        return cls(**{**values, "pixmix": PixMixSettings(**pixmix)})


CIFAR = Recipe(dropout=0.3, pixmix=PixMixSettings(k=4, beta=3, severity=3))
"""The paper's, for CIFAR-10 and CIFAR-100."""

IMAGENET = Recipe(
    model="resnet50",
    epochs=90,
    batch_size=256,
    learning_rate=0.01,
    augmix_severity=1.0,
    pixmix=PixMixSettings(k=4, beta=4, severity=1),
)
"""The paper's, for ImageNet; its small rate points to beginning from trained weights.

Of AugMix, too, the severity is 1 here and 3 for CIFAR: the defaults of its authors' scripts.
"""

DIGITS = replace(CIFAR, model="wrn_10_1", epochs=40, batch_size=64, dropout=0.0)
"""For scikit-learn's digits: a minute on a laptop."""

RECIPES = {"cifar": CIFAR, "imagenet": IMAGENET, "digits": DIGITS}
"""By the name that the table of datasets has."""
