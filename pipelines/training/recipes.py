"""Training settings: the paper's recipes, and the configuration and results of a training.

The defaults are those of the released code, github.com/andyzoujm/pixmix at f867e87. The help of
pixmix-train imports this module, so nothing heavy is imported at the top.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from pipelines.loading.config import LoaderConfig, MixingSet, PreprocessConfig
    from pipelines.shards.remote import RemoteShards
    from pixmix.settings import PixMixSettings

Augment = Literal["none", "pixmix", "augmix", "trivialaugment"]
Precision = Literal["float32", "bfloat16", "float16"]
Optimizer = Literal["sgd", "adamw"]
AUGMENTS: tuple[Augment, ...] = get_args(Augment)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)

VIEWS = 3
"""Views of each image for the Jensen-Shannon divergence."""

PRETRAINED = "IMAGENET1K_V1"
"""torchvision's first weights, from which the released code and the paper's results start."""

_MAX = 1e30
"""Largest rate or weight; torch rejects values that float32 cannot hold."""


def _pixmix_defaults() -> "PixMixSettings":
    from pixmix.settings import PixMixSettings

    return PixMixSettings()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines a training besides its data and the machine.

    Attributes:
        model: name of the network, see `pipelines.models.registry`.
        epochs: number of passes over the training set.
        batch_size: global batch size, summed over all processes.
        optimizer: "sgd" (with Nesterov momentum) or "adamw".
        learning_rate: peak learning rate. It rises for `warmup_epochs`, then follows a cosine from
            step to step down to `final_learning_rate`.
        final_learning_rate: learning rate after the last step.
        momentum: momentum of SGD.
        weight_decay: weight decay of all parameters.
        warmup_epochs: epochs of linear warmup.
        label_smoothing: label smoothing of the cross entropy.
        dropout: dropout rate of networks that have dropout.
        grad_accum_steps: number of parts in which each process computes its batch.
        augment: "pixmix", a baseline augmentation in its place, or "none".
        pixmix: settings of PixMix.
        augmix_severity: maximum level of AugMix's operations, see `training.augmentations`.
        augmix_all_ops: whether AugMix also draws operations that overlap the corruptions of
            ImageNet-C.
        jsd: whether the loss is the cross entropy of the image plus `jsd_weight` times the
            Jensen-Shannon divergence of the image and two augmented views (Hendrycks et al.,
            AugMix, ICLR 2020).
        jsd_weight: weight of the Jensen-Shannon divergence.
        ema_decay: decay of the exponential moving average of the weights, which is then evaluated;
            None for no average.
        precision: "float32", "bfloat16" or "float16".
        seed: seed of the initial weights, the data order and all augmentations.
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
        """Validate the values."""
        from pixmix.settings import MAX_SEVERITY, MIN_LEVEL

        for names, fits, rule in (
            (("epochs", "batch_size", "grad_accum_steps"), lambda x: x >= 1, "at least 1"),
            (("learning_rate", "final_learning_rate", "weight_decay", "warmup_epochs",
              "jsd_weight"), lambda x: 0 <= x <= _MAX, f"from 0 to {_MAX:g}"),
            (("momentum", "label_smoothing", "dropout"), lambda x: 0 <= x < 1, "in [0, 1)"),
            (("augmix_severity",), lambda x: MIN_LEVEL <= x <= MAX_SEVERITY,
             f"from {MIN_LEVEL} to {MAX_SEVERITY:g}"),
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
        """Return the learning rate of a step, counted from 0."""
        total = self.epochs * steps_per_epoch
        warmup = self.warmup_epochs * steps_per_epoch
        if step < warmup:
            return self.learning_rate * (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(total - warmup, 1)
        cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * cosine

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
    # The paper's recipe for CIFAR-10 and CIFAR-100.
    "cifar": _CIFAR,
    # The paper's recipe for ImageNet; its small learning rate suits pretrained weights. AugMix's
    # authors also use severity 1 for ImageNet and 3 for CIFAR.
    "imagenet": _IMAGENET,
    # A recipe for scikit-learn's digits that takes a minute on a laptop.
    "digits": {**_CIFAR, "model": "wrn_10_1", "epochs": 40, "batch_size": 64, "dropout": 0.0},
}
"""Differences of each recipe from the defaults of `Recipe`."""


def figures(name: str) -> dict[str, Any]:
    """Return the values of a recipe and of its PixMix settings by field, for the help pages."""
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
    """What to train, on what data, and where results go.

    Attributes:
        out: folder of checkpoints and metrics.
        recipe: the training settings.
        loader: how samples are loaded. Its batch size and seed must be those of the recipe. The
            training itself sets views, rank, world size and the PixMix of the preprocessing.
            Evaluations skip undecodable samples where training may substitute them.
        train: shards to train on, local or remote; see `pipelines.shards.remote.open_set`.
        validation: shards by which the best checkpoint is chosen; None without validation.
        test: shards to test on after each epoch; None without a test set.
        mixing_set: mixing set of PixMix; None to mix images only with themselves.
        weights: file of weights to fine-tune.
        pretrained: name of published weights to fine-tune, such as `PRETRAINED`.
        resume: whether to resume from the latest checkpoint of `out`, if one exists.
        keep_checkpoints: number of latest checkpoints to keep.
        checkpoint_every: steps between checkpoints within an epoch; None to save only after epochs.
        compile: whether to compile the network with torch.compile.
        sync_bn: whether to synchronize batch norm across GPUs (SyncBatchNorm).
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
        """Validate the values."""
        if self.checkpoint_every is not None and self.checkpoint_every < 1:
            raise ValueError(
                f"checkpoint_every is {self.checkpoint_every}; use 1 step or more, or None"
            )
        for name in ("batch_size", "seed"):
            of_recipe, of_loader = getattr(self.recipe, name), getattr(self.loader, name)
            if of_recipe != of_loader:
                raise ValueError(
                    f"{name} is {of_recipe} in the recipe and {of_loader} in the loader; use the "
                    "same value in both"
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
    """The progress of a training after a step.

    Attributes:
        step: number of steps taken.
        steps: number of steps of the whole training.
        epoch: current epoch, from 0.
        loss: latest known training loss.
        samples_per_second: global throughput.
        data_wait: fraction of the step's time spent waiting for data.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    samples_per_second: float
    data_wait: float


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The result of a training.

    Attributes:
        finished: whether all epochs are done.
        step: number of steps taken.
        history: one record per epoch, as in metrics.jsonl.
        checkpoint: path of the latest checkpoint.
    """

    finished: bool
    step: int
    history: list[dict[str, Any]]
    checkpoint: Path
