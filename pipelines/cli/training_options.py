"""Options of `pixmix-train`, in the order of its helps, with the numbers of each recipe."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.options import (
    LARGEST_SIDE,
    SMALLEST_SIDE,
    ByteSize,
    Command,
    Place,
    WeightsPath,
    finite,
    seed_option,
)

if TYPE_CHECKING:
    from pipelines.training.data import Dataset

# As in training.recipes, models.opening and loading.batches, which would take seconds to import for
# the help; a test holds them equal.
ON_DECODE_ERROR = ("raise", "substitute", "skip")
AUGMENTS = ("none", "pixmix", "augmix", "trivialaugment")
PRECISIONS = ("float32", "bfloat16", "float16")
OPTIMIZERS = ("sgd", "adamw")
PRETRAINED = "IMAGENET1K_V1"

Figures = dict[str, str | float]

_CIFAR: Figures = {
    "model": "wrn_40_4", "epochs": 100, "batch-size": 128, "optimizer": "sgd",
    "learning-rate": 0.1, "warm-up": 0, "weight-decay": 5e-4, "label-smoothing": 0, "dropout": 0.3,
    "accumulate": 1, "k": 4, "beta": 3, "severity": 3,
}  # fmt: skip
_IMAGENET: Figures = {
    **_CIFAR, "model": "resnet50", "epochs": 90, "batch-size": 256, "learning-rate": 0.01,
    "dropout": 0, "beta": 4, "severity": 1,
}  # fmt: skip
RECIPES: "dict[Dataset, Figures]" = {
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "digits": {**_CIFAR, "model": "wrn_10_1", "epochs": 40, "batch-size": 64, "dropout": 0},
    "imagenet": _IMAGENET,
    "folder": _IMAGENET,
}
"""What the helps say of the recipes, by option: a test holds it equal to them, too."""


def _finite_or_none(
    context: click.Context, param: click.Parameter, value: float | None
) -> float | None:
    return None if value is None else finite(context, param, value)


def _number(low: float = 0.0, high: float | None = None) -> dict[str, Any]:
    """Return what an option takes that is a finite number."""
    return {"type": click.FloatRange(low, high), "callback": _finite_or_none}


_OF_RECIPE: dict[str, dict[str, Any]] = {
    "k": {"type": click.IntRange(0, 100), "help": "Of PixMix: the most rounds."},
    "beta": {**_number(1e-3), "help": "Of PixMix: how much is kept of a picture."},
    "severity": {**_number(0.1, 10), "help": "Of PixMix: of its operations, 0.1 to 10."},
    "model": {"metavar": "NAME", "help": "Network: wrn_40_4, resnet50, module:function."},
    "epochs": {
        "type": click.IntRange(1, 100_000),
        "help": "Times that training goes through the data.",
    },
    "batch-size": {"type": click.IntRange(1), "help": "Of all processes together."},
    "accumulate": {"type": click.IntRange(1), "help": "Parts that a batch is computed in."},
    "optimizer": {
        "type": click.Choice(OPTIMIZERS),
        "help": "sgd has Nesterov's momentum of 0.9.",
    },
    "learning-rate": {
        **_number(),
        "help": "At its highest; it falls by a cosine, step by step.",
    },
    "warm-up": {**_number(), "help": "Epochs in which the learning rate rises."},
    "weight-decay": {**_number(), "help": "Pulls weights towards 0."},
    "label-smoothing": {
        **_number(high=0.99),
        "help": "Share of a label that goes to all classes.",
    },
    "dropout": {
        **_number(high=0.99),
        "help": "In the blocks of wide networks; others have none.",
    },
}
"""Options that have another default in each recipe: None stands for it."""


def _of_recipe(dataset: "Dataset", name: str) -> Callable[[Command], Command]:
    """Return an option, with the recipe's own value in its help."""
    option = _OF_RECIPE[name]
    return click.option(
        f"--{name}", **{**option, "help": f"{option['help']}  [default: {RECIPES[dataset][name]}]"}
    )


_CIFAR_DATA = "the folder of the official archive, or what torchvision downloaded."
_DATA: "dict[Dataset, str]" = {
    "cifar10": f"Shards of pixmix-shard cifar10, in a folder or at an address; or {_CIFAR_DATA}",
    "cifar100": f"Shards of pixmix-shard cifar100, in a folder or at an address; or {_CIFAR_DATA}",
    "imagenet": "Shards of pixmix-shard imagefolder, in a folder or at an address.",
    "digits": "Shards of pixmix-shard digits, in a folder or at an address.  [default: made in "
    "OUT/data]",
    "folder": "Shards of pixmix-shard imagefolder, in a folder or at an address.",
}


SMALL: "tuple[Dataset, ...]" = ("cifar10", "cifar100", "digits")
"""Whose pictures are held in memory, and read before the first batch."""

_DECODE_ERRORS = (
    click.option(
        "--on-decode-error",
        type=click.Choice(ON_DECODE_ERROR),
        default="raise",
        show_default=True,
        help="What to do about samples that cannot be decoded: raise an error, substitute the next "
        "sample of the order, or skip them, so that batches are smaller. Evaluations skip them in "
        "both cases.",
    ),
    click.option(
        "--max-decode-errors",
        type=click.IntRange(0),
        help="Abort after more than this many such samples in a process.  [default: 100]",
    ),
)


_IMAGE_SIZE = click.option(
    "--image-size",
    type=click.IntRange(SMALLEST_SIDE, LARGEST_SIDE),
    default=224,
    show_default=True,
    help="Side in pixels of the square crop that the network gets. Evaluation resizes the shorter "
    "side to 8/7 of it, and crops the centre.",
)


def training_options(dataset: "Dataset") -> tuple[Callable[[Command], Command], ...]:
    """Return the options of a data set's command, in the order of its help."""
    own = partial(_of_recipe, dataset)
    return (
        click.option("--data", type=Place(), help=_DATA[dataset]),
        click.option(
            "--out",
            type=click.Path(path_type=Path, file_okay=False),
            required=True,
            help="Folder of checkpoints and metrics.",
        ),
        click.option(
            "--mixing-set",
            "mixing_sets",
            type=Place(files=True),
            multiple=True,
            help="Set of pixmix-gen, folder of images, shards, here or at an address, tar, zip or "
            ".npy; may be repeated.",
        ),
        click.option(
            "--no-mixing-set",
            is_flag=True,
            help="Mix each image with augmented copies of itself alone. PixMix needs this or "
            "--mixing-set.",
        ),
        click.option(
            "--augment",
            type=click.Choice(AUGMENTS),
            help="PixMix, or a baseline in its place, by its authors' recipe.  [default: pixmix]",
        ),
        *map(own, ("k", "beta", "severity")),
        click.option(
            "--all-ops",
            is_flag=True,
            help="Also draw color, contrast, brightness and sharpness, which overlap the "
            "corruptions of ImageNet-C. The authors' README passes --all-ops in the recipes of the "
            "PixMix paper; the default of their script is off, as here.",
        ),
        click.option(
            "--jsd/--no-jsd",
            default=None,
            help="Add the Jensen-Shannon divergence of an image and two augmented views of it.  "
            "[default: on for augmix, else off]",
        ),
        own("model"),
        *(() if dataset in SMALL else (_IMAGE_SIZE,)),
        click.option(
            "--weights",
            type=WeightsPath(),
            help="File of weights to begin with, or the folder of a run.",
        ),
        click.option(
            "--pretrained",
            is_flag=False,
            flag_value=PRETRAINED,
            metavar="[WEIGHTS]",
            help="Start from torchvision's weights of this name, such as IMAGENET1K_V2; without a "
            f"name from {PRETRAINED}, which the released script takes.",
        ),
        *map(own, ("epochs", "batch-size", "accumulate", "optimizer", "learning-rate", "warm-up")),
        *map(own, ("weight-decay", "label-smoothing", "dropout")),
        click.option(
            "--ema",
            **_number(0.5, 0.99999),
            help="Average weights with this decay, and evaluate those.  [default: none]",
        ),
        click.option(
            "--precision",
            type=click.Choice(PRECISIONS),
            help="Of the network's products.  [default: bfloat16 where the CPU multiplies it in "
            "tiles (AMX), else float32]",
        ),
        click.option(
            "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1."
        ),
        seed_option("Of first weights, the order of samples and what is drawn for them."),
        click.option(
            "--resume",
            type=click.Choice(["auto"]),
            help="Go on from the newest checkpoint in OUT, if there is one.",
        ),
        click.option(
            "--keep",
            type=click.IntRange(1),
            default=2,
            show_default=True,
            help="Checkpoints that stay.",
        ),
        click.option(
            "--checkpoint-every",
            type=click.IntRange(1),
            metavar="STEPS",
            help="Also within an epoch: no more steps than that are lost with a process.",
        ),
        click.option(
            "--validation-share",
            type=click.FloatRange(0, 0.5),
            callback=finite,
            default=0.0,
            show_default=True,
            help="Share of the training shards, one at least, by which the best network is chosen.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(0),
            help="Processes that decode, for each that trains.  [default: 0 for pictures held in "
            "memory, else 4, or its share of the cores where that is less]",
        ),
        click.option(
            "--shuffle-window",
            type=click.IntRange(1),
            help="Number of shards of each partition that are shuffled together, which is about "
            "what a node needs at a time.  [default: all]",
        ),
        click.option(
            "--shard-partitions",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="Number of parts of the shards of which each batch takes equally many samples: "
            "with as many as nodes, each node needs its part alone. Must divide the batch size.",
        ),
        *(() if dataset in SMALL else _DECODE_ERRORS),
        click.option(
            "--on-mixing-decode-error",
            type=click.Choice(["raise", "skip"]),
            help="What to do about images of the mixing set that cannot be decoded.  "
            "[default: raise]",
        ),
        click.option(
            "--cache-dir",
            type=click.Path(path_type=Path, file_okay=False),
            help="Of this host's copies of shards and mixing sets.  [default: $PIXMIX_CACHE, or "
            "~/.cache/pixmix]",
        ),
        click.option(
            "--cache-limit",
            type=ByteSize(),
            help="Of the shards in it, as 200GB.  [default: what the disk has]",
        ),
        click.option(
            "--prefetch",
            type=click.IntRange(1),
            help="Number of remote shards that are downloaded before they are needed.  [default: "
            "those of a shuffle window, or 4]",
        ),
        click.option(
            "--downloads",
            type=click.IntRange(1),
            default=4,
            show_default=True,
            help="Shards of an address that come at a time, for each process: more where a server "
            "gives a connection little.",
        ),
        click.option(
            "--patience",
            type=click.FloatRange(0, min_open=True),
            callback=finite,
            default=600.0,
            show_default=True,
            help="Seconds in which a server may bring nothing new until training ends.",
        ),
        click.option(
            "--stall-limit",
            type=click.FloatRange(0),
            callback=finite,
            default=1800.0,
            show_default=True,
            help="Seconds without a step until the process ends with code 1; 0 for never.",
        ),
        click.option(
            "--wandb",
            is_flag=True,
            help="Also log to Weights & Biases (extra wandb), into WANDB_PROJECT or pixmix; "
            "WANDB_MODE=offline works without a network.",
        ),
        click.option("--compile", is_flag=True, help="Compile the network by torch.compile."),
        click.option("--sync-batch-norm", is_flag=True, help="Norms over all GPUs together."),
    )
