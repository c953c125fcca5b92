"""How a network is trained, as plain numbers: the paper's recipes, and what may be changed.

The defaults are facts of the released code, github.com/andyzoujm/pixmix at f867e87. The help of
pixmix-train reads the figures here: nothing heavy is imported at the top.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from pipelines.loading.batches import LoaderConfig, MixingSet, PreprocessConfig
    from pipelines.shards.remote import RemoteShards
    from pixmix.settings import PixMixSettings

Augment = Literal["none", "pixmix", "augmix", "trivialaugment"]
Precision = Literal["float32", "bfloat16", "float16"]
Optimizer = Literal["sgd", "adamw"]
AUGMENTS: tuple[Augment, ...] = get_args(Augment)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)

VIEWS = 3
"""Of each image, for the Jensen-Shannon divergence."""

PRETRAINED = "IMAGENET1K_V1"
"""torchvision's first weights: the released code starts from them, and the paper's figures do."""

_MOST = 1e30
"""Of rates and weights: above it float32 does not hold them, and torch refuses them."""


def _pixmix_defaults() -> "PixMixSettings":
    from pixmix.settings import PixMixSettings

    return PixMixSettings()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a training depends on, besides its data and the machine.

    Attributes:
        model: see `pipelines.models.registry`.
        epochs: times that training goes through the data.
        batch_size: global, summed over all processes.
        learning_rate: at its peak; falls by a cosine, step by step, to `final_learning_rate`, after
            `warmup_epochs` of rising.
        grad_accum_steps: parts that a batch is computed in, on each process.
        augment: "pixmix", or a baseline in its place.
        augmix_severity, augmix_all_ops: of AugMix's operations, see `training.augmentations`; whether
            it also draws those that overlap the corruptions of ImageNet-C.
        jsd: whether `jsd_weight` times the Jensen-Shannon divergence of the image and two augmented
            views is added to the cross entropy of the image (Hendrycks et al., AugMix, ICLR 2020).
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
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    dropout: float = 0.0
    grad_accum_steps: int = 1
    augment: Augment = "pixmix"
    pixmix: "PixMixSettings" = field(default_factory=_pixmix_defaults)
    augmix_severity: float = 3.0
    augmix_all_ops: bool = False
    jsd: bool = False
    jsd_weight: float = 12.0
    ema_decay: float | None = None
    precision: Precision = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        from pixmix.settings import MAXIMAL_SEVERITY, MINIMAL_LEVEL

        for names, fits, rule in (
            (("epochs", "batch_size", "grad_accum_steps"), lambda x: x >= 1, "at least 1"),
            (("learning_rate", "final_learning_rate", "weight_decay", "warmup_epochs",
              "jsd_weight"), lambda x: 0 <= x <= _MOST, f"from 0 to {_MOST:g}"),
            (("momentum", "label_smoothing", "dropout"), lambda x: 0 <= x < 1, "in [0, 1)"),
            (("augmix_severity",), lambda x: MINIMAL_LEVEL <= x <= MAXIMAL_SEVERITY,
             f"from {MINIMAL_LEVEL} to {MAXIMAL_SEVERITY:g}"),
            (("ema_decay",), lambda x: x is None or 0 < x < 1, "between 0 and 1"),
            (("augment",), lambda x: x in AUGMENTS, f"one of {', '.join(AUGMENTS)}"),
            (("precision",), lambda x: x in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
            (("optimizer",), lambda x: x in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
        ):  # fmt: skip
            for name in names:
                if not fits(getattr(self, name)):
                    raise ValueError(f"{name} is {getattr(self, name)!r}; must be {rule}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs:g} of {self.epochs} epochs; use less"
            )
        if self.grad_accum_steps > self.batch_size:
            raise ValueError(
                f"grad_accum_steps is {self.grad_accum_steps} and the batch has {self.batch_size} "
                "images; use at most one step per image"
            )
        if self.jsd and self.augment == "none":
            raise ValueError("jsd needs augmented images, and augment is none; leave one out")

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step, from 0: a function of the step alone."""
        total = self.epochs * steps_per_epoch
        warm = self.warmup_epochs * steps_per_epoch
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


_CIFAR = {"dropout": 0.3, "pixmix": {"k": 4, "beta": 3, "severity": 3}}
_IMAGENET = {
    "model": "resnet50", "epochs": 90, "batch_size": 256, "learning_rate": 0.01,
    "augmix_severity": 1.0, "pixmix": {"k": 4, "beta": 4, "severity": 1},
}  # fmt: skip

RECIPES: Mapping[str, Mapping[str, Any]] = {
    # The paper's, for CIFAR-10 and CIFAR-100.
    "cifar": _CIFAR,
    # The paper's, for ImageNet; its small rate points to starting from trained weights. The
    # severity of AugMix is 1 here and 3 for CIFAR, too: the defaults of its authors' scripts.
    "imagenet": _IMAGENET,
    # For scikit-learn's digits: a minute on a laptop.
    "digits": {**_CIFAR, "model": "wrn_10_1", "epochs": 40, "batch_size": 64, "dropout": 0.0},
}
"""By name, how each recipe differs from the defaults of `Recipe`."""


def figures(name: str) -> dict[str, Any]:
    """Return the plain numbers of a recipe by field, those of PixMix among them; for the help."""
    changes = {**RECIPES[name]}
    pixmix = changes.pop("pixmix")
    return {**{each.name: each.default for each in fields(Recipe)}, **changes, **pixmix}


def named_recipe(name: str) -> Recipe:
    """Return the recipe "cifar", "imagenet" or "digits"."""
    from pixmix.settings import PixMixSettings

    changes = RECIPES[name]
    return Recipe(**{**changes, "pixmix": PixMixSettings(**changes["pixmix"])})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to train, on what, and where results go.

    Attributes:
        out: folder of checkpoints and metrics.
        loader: how samples are loaded. Its batch size and seed must be the recipe's. The PixMix of
            its preprocessing, views, rank and world size are set by the training. Evaluations skip
            samples where training may substitute them.
        train: shards, local or remote; see `pipelines.shards.remote.open_set`.
        validation, test: others, or None.
        weights: file of weights to fine-tune.
        pretrained: name of published weights to fine-tune, such as `PRETRAINED`.
        resume: whether to resume from the latest checkpoint of `out`, if there is one.
        keep_checkpoints: how many checkpoints stay.
        checkpoint_every: steps between checkpoints within an epoch; None for one at its end alone.
    """

    out: Path
    recipe: Recipe
    loader: "LoaderConfig"
    train: "RemoteShards"
    validation: "RemoteShards | None" = None
    test: "RemoteShards | None" = None
    mixing_set: "MixingSet | None" = None
    weights: Path | None = None
    pretrained: str | None = None
    resume: bool = False
    keep_checkpoints: int = 2
    checkpoint_every: int | None = None
    compile: bool = False
    sync_bn: bool = False

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        if self.checkpoint_every is not None and self.checkpoint_every < 1:
            raise ValueError(
                f"checkpoint_every is {self.checkpoint_every}; use 1 step or more, or None"
            )
        for name in ("batch_size", "seed"):
            ours, loaders = getattr(self.recipe, name), getattr(self.loader, name)
            if ours != loaders:
                raise ValueError(
                    f"{name} is {ours} in the recipe and {loaders} in the loader; "
                    "use one value for both"
                )
        if self.loader.preprocess is None:
            raise ValueError("the loader has no preprocess; set it, such as to CIFAR or IMAGENET")

    @property
    def preprocess(self) -> "PreprocessConfig":
        """The preprocessing of the loader."""
        assert self.loader.preprocess is not None
        return self.loader.preprocess


@dataclass(frozen=True, kw_only=True)
class StepProgress:
    """How far a training is after a step. data_wait: share of the step's time spent on data."""

    step: int
    steps: int
    epoch: int
    loss: float
    samples_per_second: float
    data_wait: float


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a training ended. finished: whether all epochs are done; history: a record per epoch."""

    finished: bool
    step: int
    history: list[dict[str, Any]]
    checkpoint: Path
