"""Options of `pixmix-train` by group, in the order of its help.

The parameter of an option has the name of the field that it sets in `Recipe`, `PixMixSettings`,
`LoaderConfig` or `TrainConfig`. Where the default depends on the recipe, the help reads it from
there.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from pipelines.cli.help_pages import Decorated, option
from pipelines.cli.options import (
    CACHE_OPTIONS,
    DATA,
    ERRORS,
    LARGEST_SIDE,
    MODEL,
    OUTPUT,
    REMOTE,
    SMALLEST_SIDE,
    PathOrUrl,
    WeightsPath,
    device_option,
    download_timeout_option,
    finite,
    mixing_set_options,
    pixmix_options,
    seed_option,
)
from pipelines.datasets import Dataset
from pipelines.training.recipes import AUGMENTS, OPTIMIZERS, PRECISIONS, PRETRAINED, figures

# A copy of loading.config.ON_DECODE_ERROR, whose import would take seconds; a test compares them.
ON_DECODE_ERROR = ("raise", "substitute", "skip")

Decorator = Callable[[Decorated], Decorated]

OPTIMIZATION, CHECKPOINTS, DISTRIBUTED = "Optimization", "Checkpoints", "Distributed"

_FOLDER = click.Path(path_type=Path, file_okay=False)


def training_options(dataset: Dataset) -> tuple[Decorator[Any], ...]:
    """Return the options of the command of a dataset, in the order of its help."""
    defaults = figures(dataset.recipe)
    return (
        *_data_options(dataset),
        *_model_options(dataset, defaults),
        *_pixmix_options(defaults),
        *_optimization_options(defaults),
        *_checkpoint_options(),
        *_distributed_options(),
        *_streaming_options(),
        *_error_options(dataset),
        *_output_options(),
    )


def _number(
    low: float = 0.0, high: float | None = None, *, open_low: bool = False
) -> dict[str, Any]:
    """Return the attributes of an option whose value is a finite number."""
    return {"type": click.FloatRange(low, high, min_open=open_low), "callback": finite}


def _count(least: int = 1, most: int | None = None) -> dict[str, Any]:
    return {"type": click.IntRange(least, most)}


def _recipe_option(
    group: str,
    defaults: dict[str, Any],
    name: str,
    text: str,
    **attributes: Any,  # noqa: ANN401
) -> Decorator[Any]:
    """Return an option whose value, if it is not passed, is None and stands for the recipe's."""
    value = defaults[name[2:].replace("-", "_")]
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return option(name, group=group, show_default=shown, help=text, **attributes)


def _data_help(dataset: Dataset) -> tuple[str, str | None]:
    """Return the help of --data, and its default."""
    command = dataset.name if dataset.reader else "imagefolder"
    shards = f"Shards of pixmix-shard {command}"
    if dataset.bundled:
        return f"{shards}, local or remote.", "written to OUT/data"
    if dataset.reader:
        return f"{shards}, the official archive, or torchvision's download folder. Required.", None
    return f"{shards}, local or remote. Required.", None


def _data_options(dataset: Dataset) -> list[Decorator[Any]]:
    add = partial(option, group=DATA, common=False)
    text, default = _data_help(dataset)
    size = add(
        "--image-size",
        **_count(SMALLEST_SIDE, LARGEST_SIDE),
        default=224,
        help="Side in pixels of the square training crop. Evaluation resizes the shorter side to "
        "8/7 of it and crops the center.",
    )
    return [
        option("--data", group=DATA, type=PathOrUrl(), show_default=default, help=text),
        *mixing_set_options(
            PathOrUrl(files=True), "output of pixmix-gen, image folder, shards, tar, zip or .npy"
        ),
        *([size] if dataset.images == "large" else []),
        add(
            "--val-fraction",
            **_number(0, 0.5),
            default=0.0,
            help="Fraction of the training shards to hold out for validation: none, or at least "
            "one shard. The checkpoint with the lowest validation error is kept as best.pt.",
        ),
        option(
            "--workers",
            group=DATA,
            **_count(0),
            show_default="0" if dataset.images == "small" else "4, or the number of cores if lower",
            help="Number of data loading workers per process.",
        ),
        add(
            "--shuffle-window",
            **_count(),
            show_default="all",
            help="Number of shards of each partition that are shuffled together. With "
            "--cache-limit, a node needs disk space for about three windows. May not change "
            "on resume.",
        ),
        add(
            "--shard-partitions",
            **_count(),
            default=1,
            help="Number of partitions of the shards. Each batch takes equally many samples of "
            "each. With one partition per node, each node reads only its own shards. Must divide "
            "the batch size. May not change on resume.",
        ),
    ]


def _model_options(dataset: Dataset, defaults: dict[str, Any]) -> list[Decorator[Any]]:
    large = dataset.images == "large"
    return [
        _recipe_option(
            MODEL,
            defaults,
            "--model",
            "Network: resnet50 (torchvision), wrn_40_4 (CIFAR), timm/NAME or module:function.",
            metavar="NAME",
        ),
        option(
            "--pretrained",
            group=MODEL,
            common=large,
            is_flag=False,
            flag_value=PRETRAINED,
            metavar="[WEIGHTS]",
            help="Fine-tune the torchvision weights of this name, such as IMAGENET1K_V2. Without a "
            f"name: {PRETRAINED}, which the authors' script uses.",
        ),
        option(
            "--weights",
            group=MODEL,
            common=False,
            type=WeightsPath(),
            help="Fine-tune this checkpoint: a file, or the output folder of a run.",
        ),
        _recipe_option(
            MODEL,
            defaults,
            "--dropout",
            "Dropout rate in the blocks of wide ResNets; other networks have none.",
            common=False,
            **_number(high=0.99),
        ),
    ]


def _pixmix_options(defaults: dict[str, Any]) -> list[Decorator[Any]]:
    return [
        option(
            "--augment",
            group="PixMix",
            type=click.Choice(AUGMENTS),
            show_default="pixmix",
            help="PixMix, or a baseline augmentation with the settings of its authors.",
        ),
        *pixmix_options(defaults, most_rounds=100, common=False),
        option(
            "--jsd/--no-jsd",
            group="PixMix",
            common=False,
            default=None,
            show_default="on for augmix, else off",
            help="Add the Jensen-Shannon divergence between the predictions for an image and for "
            "two augmented views of it to the loss.",
        ),
    ]


def _optimization_options(defaults: dict[str, Any]) -> list[Decorator[Any]]:
    recipe = partial(_recipe_option, OPTIMIZATION, defaults)
    more = partial(recipe, common=False)
    return [
        recipe("--epochs", "Number of epochs.", **_count(1, 100_000)),
        recipe(
            "--batch-size",
            "Global batch size, summed over all processes; a multiple of their number.",
            **_count(),
        ),
        recipe(
            "--learning-rate",
            "Peak learning rate, followed by a cosine schedule over all steps.",
            **_number(),
        ),
        more(
            "--warmup-epochs",
            "Number of epochs of linear learning rate warmup; may be a fraction.",
            **_number(),
        ),
        more(
            "--optimizer",
            "Optimizer; sgd uses Nesterov momentum 0.9.",
            type=click.Choice(OPTIMIZERS),
        ),
        more("--weight-decay", "Weight decay.", **_number()),
        more("--label-smoothing", "Label smoothing, from 0 to 1.", **_number(high=0.99)),
        more(
            "--grad-accum-steps",
            "Number of gradient accumulation steps per batch; does not change the batch size.",
            **_count(),
        ),
        option(
            "--ema-decay",
            group=OPTIMIZATION,
            common=False,
            **_number(0.5, 0.99999),
            show_default="no averaging",
            help="Keep an exponential moving average of the weights with this decay, and evaluate "
            "the averaged weights.",
        ),
        option(
            "--precision",
            group=OPTIMIZATION,
            common=False,
            type=click.Choice(PRECISIONS),
            show_default="bfloat16 on CPUs with AMX tiles, else float32",
            help="Precision of matrix products and convolutions.",
        ),
        option(
            "--compile",
            group=OPTIMIZATION,
            common=False,
            is_flag=True,
            help="Compile the network with torch.compile.",
        ),
        seed_option(
            "Random seed of initial weights, sample order and augmentations.",
            group=OPTIMIZATION,
            common=False,
        ),
    ]


def _check_resume(context: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value not in (None, "auto"):
        raise click.BadParameter(
            f"{value!r} is not auto, which resumes from the latest checkpoint in OUT; use "
            f"--weights {value} to start from the weights of a checkpoint",
            ctx=context,
            param=param,
        )
    return value


def _checkpoint_options() -> list[Decorator[Any]]:
    add = partial(option, group=CHECKPOINTS, common=False)
    return [
        option(
            "--resume",
            group=CHECKPOINTS,
            is_flag=False,
            flag_value="auto",
            callback=_check_resume,
            metavar="[auto]",
            help="Resume from the latest checkpoint in OUT, if any. Without this option, an OUT "
            "with a run is refused. The value auto may be omitted.",
        ),
        add(
            "--keep-checkpoints",
            **_count(),
            default=2,
            help="Number of latest checkpoints to keep.",
        ),
        add(
            "--checkpoint-every",
            **_count(),
            metavar="STEPS",
            show_default="once per epoch",
            help="Also write a checkpoint every STEPS steps within an epoch.",
        ),
    ]


def _distributed_options() -> list[Decorator[Any]]:
    add = partial(option, group=DISTRIBUTED, common=False)
    return [
        device_option("auto, cpu, cuda or cuda:1.", group=DISTRIBUTED),
        add("--sync-bn", is_flag=True, help="Synchronize batch norm across GPUs (SyncBatchNorm)."),
        add(
            "--watchdog-timeout",
            **_number(),
            metavar="SECONDS",
            default=1800.0,
            help="Exit with code 1 after this many seconds without a step. Use 0 to disable.",
        ),
    ]


def _streaming_options() -> list[Decorator[Any]]:
    add = partial(option, group=REMOTE, common=False)
    return [
        *CACHE_OPTIONS,
        add(
            "--prefetch",
            **_count(),
            show_default="those of a shuffle window, or 4",
            help="Number of remote shards to download ahead of time.",
        ),
        add(
            "--concurrent-downloads",
            **_count(),
            default=4,
            help="Number of concurrent downloads per process. Use more if the server limits the "
            "bandwidth of each connection.",
        ),
        download_timeout_option,
    ]


def _error_options(dataset: Dataset) -> list[Decorator[Any]]:
    add = partial(option, group=ERRORS, common=False)
    of_large_images = [
        add(
            "--on-decode-error",
            type=click.Choice(ON_DECODE_ERROR),
            default="raise",
            help="What to do if a training sample cannot be decoded: raise an error, substitute "
            "the next sample, or skip it, which makes the batch smaller. Evaluation skips it "
            "instead of substituting it.",
        ),
        add(
            "--max-decode-errors",
            **_count(0),
            show_default="100",
            help="Abort if a process has substituted or skipped more samples than this.",
        ),
    ]
    return [
        *(of_large_images if dataset.images == "large" else []),
        add(
            "--on-mixing-decode-error",
            type=click.Choice(["raise", "skip"]),
            show_default="raise",
            help="What to do if a mixing image cannot be decoded.",
        ),
    ]


def _output_options() -> list[Decorator[Any]]:
    return [
        option(
            "--out",
            group=OUTPUT,
            type=_FOLDER,
            required=True,
            help="Folder for checkpoints and metrics.",
        ),
        option(
            "--wandb",
            group=OUTPUT,
            common=False,
            is_flag=True,
            help="Also log to Weights & Biases (extra wandb), to the project in WANDB_PROJECT or "
            "pixmix. WANDB_MODE=offline works without a network.",
        ),
    ]
