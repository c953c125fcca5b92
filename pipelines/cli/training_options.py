"""Options of `pixmix-train`, in the order of its help, each once.

An option's parameter has the name of the field that it sets, of `Recipe`, `PixMixSettings`,
`LoaderConfig` or `TrainConfig`. Where each recipe has a default of its own, the help reads it from
the recipe.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

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
from pipelines.datasets import Dataset
from pipelines.training.recipes import AUGMENTS, OPTIMIZERS, PRECISIONS, PRETRAINED, figures

# As in loading.batches, which would take seconds to import for the help; a test holds them equal.
ON_DECODE_ERROR = ("raise", "substitute", "skip")


def _data_help(dataset: Dataset) -> str:
    command = dataset.name if dataset.reader else "imagefolder"
    shards = f"Shards of pixmix-shard {command}, local or remote"
    if dataset.bundled:
        return f"{shards}.  [default: made in OUT/data]"
    if dataset.reader:
        return f"{shards}; or the folder of the official archive, or what torchvision downloaded."
    return f"{shards}."


def _number(
    low: float = 0.0, high: float | None = None, *, open_low: bool = False
) -> dict[str, Any]:
    """Return what an option takes that is a finite number."""
    return {"type": click.FloatRange(low, high, min_open=open_low), "callback": finite}


def _count(least: int = 1, most: int | None = None) -> dict[str, Any]:
    return {"type": click.IntRange(least, most)}


def training_options(dataset: Dataset) -> tuple[Callable[[Command], Command], ...]:
    """Return the options of a dataset's command, in the order of its help."""
    option, defaults = click.option, figures(dataset.recipe)
    shown = partial(click.option, show_default=True)
    folder = click.Path(path_type=Path, file_okay=False)
    large = dataset.images == "large"

    def recipe(name: str, text: str, **more: Any) -> Callable[[Command], Command]:  # noqa: ANN401
        """Return an option whose default, None, stands for the recipe's value."""
        field = name[2:].replace("-", "_")
        value = defaults[field]
        default = f"{value:g}" if isinstance(value, float) else value
        return option(name, field, help=f"{text}  [default: {default}]", **more)

    return (
        option("--data", type=Place(), help=_data_help(dataset)),
        option("--out", type=folder, required=True, help="Folder of checkpoints and metrics."),
        option(
            "--mixing-set",
            "mixing_sets",
            type=Place(files=True),
            multiple=True,
            help="Output of pixmix-gen, folder of images, shards (local or remote), tar, zip or "
            ".npy; may be repeated.",
        ),
        option(
            "--no-mixing-set",
            is_flag=True,
            help="Mix each image with augmented copies of itself alone. PixMix needs this or "
            "--mixing-set.",
        ),
        option(
            "--augment",
            type=click.Choice(AUGMENTS),
            help="PixMix, or a baseline in its place, by its authors' recipe.  [default: pixmix]",
        ),
        recipe("--k", "PixMix k: maximum number of mixing rounds.", **_count(0, 100)),
        recipe("--beta", "PixMix beta: how much of the image is kept.", **_number(1e-3)),
        recipe("--severity", "PixMix severity of operations, 0.1 to 10.", **_number(0.1, 10)),
        option(
            "--all-ops",
            is_flag=True,
            help="Also draw the operations that overlap the corruptions of ImageNet-C (listed in "
            "docs/mixing.md). The authors' README passes --all-ops in the recipes of the PixMix "
            "paper; the default of their script is off, as here.",
        ),
        option(
            "--jsd/--no-jsd",
            default=None,
            help="Add the Jensen-Shannon divergence of an image and two augmented views of it.  "
            "[default: on for augmix, else off]",
        ),
        recipe(
            "--model", "Network: wrn_40_4, resnet50, timm/NAME, module:function.", metavar="NAME"
        ),
        *(
            (
                shown(
                    "--image-size",
                    **_count(SMALLEST_SIDE, LARGEST_SIDE),
                    default=224,
                    help="Side in pixels of the square crop that the network gets. Evaluation "
                    "resizes the shorter side to 8/7 of it, and crops the center.",
                ),
            )
            if large
            else ()
        ),
        option(
            "--weights",
            type=WeightsPath(),
            help="File of weights to fine-tune, or the folder of a run.",
        ),
        option(
            "--pretrained",
            is_flag=False,
            flag_value=PRETRAINED,
            metavar="[WEIGHTS]",
            help="Fine-tune torchvision's weights of this name, such as IMAGENET1K_V2; without a "
            f"name {PRETRAINED}, which the released script uses.",
        ),
        recipe("--epochs", "Times that training goes through the data.", **_count(1, 100_000)),
        recipe("--batch-size", "Global batch size, summed over all processes.", **_count()),
        recipe(
            "--grad-accum-steps",
            "Parts that a batch is computed in (gradient accumulation).",
            **_count(),
        ),
        recipe("--optimizer", "sgd has Nesterov momentum of 0.9.", type=click.Choice(OPTIMIZERS)),
        recipe(
            "--learning-rate", "Peak learning rate; falls by a cosine, step by step.", **_number()
        ),
        recipe("--warmup-epochs", "Epochs in which the learning rate rises.", **_number()),
        recipe("--weight-decay", "Weight decay.", **_number()),
        recipe(
            "--label-smoothing", "Share of a label that goes to all classes.", **_number(high=0.99)
        ),
        recipe(
            "--dropout",
            "Dropout in the blocks of wide networks; others have none.",
            **_number(high=0.99),
        ),
        option(
            "--ema-decay",
            **_number(0.5, 0.99999),
            help="Average weights with this decay, and evaluate those.  [default: none]",
        ),
        option(
            "--precision",
            type=click.Choice(PRECISIONS),
            help="Precision of the network's matrix products.  [default: bfloat16 on CPUs with "
            "AMX tiles, else float32]",
        ),
        shown("--device", default="auto", help="auto, cpu, cuda, cuda:1."),
        seed_option("Seed of initial weights, of the order of samples and of all augmentations."),
        option(
            "--resume",
            type=click.Choice(["auto"]),
            help="Resume from the latest checkpoint in OUT, if there is one.",
        ),
        shown("--keep-checkpoints", **_count(), default=2, help="Number of checkpoints that stay."),
        option(
            "--checkpoint-every",
            **_count(),
            metavar="STEPS",
            help="Write checkpoints within an epoch, too: a lost process loses no more steps.",
        ),
        shown(
            "--val-fraction",
            **_number(0, 0.5),
            default=0.0,
            help="Share of the training shards, at least one, by which the best network is chosen.",
        ),
        option(
            "--workers",
            **_count(0),
            help="Decoding processes per training process.  [default: 0 for images held in "
            "memory, else 4, or its share of the cores if that is less]",
        ),
        option(
            "--shuffle-window",
            **_count(),
            help="Number of shards of each partition that are shuffled together, which is about "
            "what a node needs at a time.  [default: all]",
        ),
        shown(
            "--shard-partitions",
            **_count(),
            default=1,
            help="Number of parts of the shards of which each batch takes equally many samples: "
            "with as many as nodes, each node needs its part alone. Must divide the batch size.",
        ),
        *(
            (
                shown(
                    "--on-decode-error",
                    type=click.Choice(ON_DECODE_ERROR),
                    default="raise",
                    help="What to do about samples that cannot be decoded: raise an error, "
                    "substitute the next sample of the order, or skip them, so that batches are "
                    "smaller. Evaluations skip them in both cases.",
                ),
                option(
                    "--max-decode-errors",
                    **_count(0),
                    help="Abort after more than this many such samples in a process.  "
                    "[default: 100]",
                ),
            )
            if large
            else ()
        ),
        option(
            "--on-mixing-decode-error",
            type=click.Choice(["raise", "skip"]),
            help="What to do about images of the mixing set that cannot be decoded.  "
            "[default: raise]",
        ),
        option(
            "--cache-dir",
            type=folder,
            help="Folder of this host's copies of shards and mixing sets.  [default: "
            "$PIXMIX_CACHE, or ~/.cache/pixmix]",
        ),
        option(
            "--cache-limit",
            type=ByteSize(),
            help="Size limit of the shards in it, as 200GB.  [default: the disk's space]",
        ),
        option(
            "--prefetch",
            **_count(),
            help="Number of remote shards that are downloaded before they are needed.  [default: "
            "those of a shuffle window, or 4]",
        ),
        shown(
            "--concurrent-downloads",
            **_count(),
            default=4,
            help="Concurrent downloads of each process: more where a server limits the bandwidth "
            "of a connection.",
        ),
        shown(
            "--download-timeout",
            **_number(0, open_low=True),
            default=600.0,
            help="Abort after this many seconds without new data from the server.",
        ),
        shown(
            "--watchdog-timeout",
            **_number(),
            default=1800.0,
            help="Exit with code 1 after this many seconds without a step; 0 for never.",
        ),
        option(
            "--wandb",
            is_flag=True,
            help="Also log to Weights & Biases (extra wandb), into WANDB_PROJECT or pixmix; "
            "WANDB_MODE=offline works without a network.",
        ),
        option("--compile", is_flag=True, help="Compile the network with torch.compile."),
        option(
            "--sync-bn",
            is_flag=True,
            help="Synchronize batch norm across GPUs (SyncBatchNorm).",
        ),
    )
