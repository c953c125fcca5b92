"""What an unknown option may have meant, by the names that other training scripts have for it."""

import re
from collections.abc import Mapping

import click

_NAMES: Mapping[str, tuple[str, ...]] = {
    "--grad-accum-steps": (
        "accumulate", "accum", "accum-steps", "accumulation-steps", "grad-accum",
        "gradient-accumulation-steps", "accumulate-grad-batches",
    ),
    "--augment": ("aug", "aa", "auto-augment", "augmentation"),
    "--batch-size": ("b", "bs", "bsz", "batch", "batchsize", "train-batch", "test-bs",
                     "eval-batch-size", "per-device-batch-size", "val-batch-size"),
    "--cache-dir": ("cache",),
    "--checkpoint": ("c", "ckpt", "ckpt-path", "checkpoint-path", "load", "model-path", "weights"),
    "--checkpoint-every": ("save-every", "save-interval", "checkpoint-interval", "save-freq"),
    "--compile": ("torchcompile", "torch-compile"),
    "--data": ("data-dir", "data-path", "datadir", "data-root", "dataset", "dataset-dir",
               "dataset-path", "root", "d"),
    "--device": ("gpu", "cuda", "gpu-id", "accelerator"),
    "--download-timeout": ("timeout", "patience"),
    "--dropout": ("drop", "droprate", "drop-rate"),
    "--ema-decay": ("model-ema", "model-ema-decay"),
    "--epochs": ("e", "num-epochs", "n-epochs", "max-epochs", "epoch"),
    "--epsilon": ("eps",),
    "--image-size": ("img-size", "imgsz", "imsize", "input-size", "crop-size", "val-crop-size",
                     "train-crop-size", "resolution", "img", "crop"),
    "--index": ("i", "idx"),
    "--jobs": ("j", "num-workers", "n-jobs", "njobs", "num-jobs", "num-proc", "workers", "threads",
               "processes", "nproc"),
    "--label-smoothing": ("smoothing",),
    "--learning-rate": ("lr", "base-lr", "blr", "init-lr", "max-lr"),
    "--mixing-set": ("mixing", "mixing-dir", "mixing-path", "mixing-data", "mixset", "fractals"),
    "--model": ("a", "arch", "net", "network", "backbone", "architecture", "layers",
                "widen-factor", "model-name"),
    "--n": ("num", "count", "num-images", "num-samples", "n-images", "number", "total"),
    "--optimizer": ("opt", "optim"),
    "--out": ("o", "output", "output-dir", "out-dir", "outdir", "save", "save-dir", "save-path",
              "output-path", "log-dir", "logdir", "exp-dir", "work-dir", "experiment", "snapshot"),
    "--pretrained": ("finetune", "fine-tune"),
    "--precision": ("amp", "fp16", "bf16", "amp-dtype", "dtype", "mixed-precision", "half"),
    "--resize": ("resize-size", "val-resize-size", "crop-pct"),
    "--seed": ("random-seed", "manual-seed", "rng-seed", "s"),
    "--severity": ("aug-severity",),
    "--shard-size": ("maxcount", "max-count", "samples-per-shard", "maxsize"),
    "--size": ("img-size", "image-size", "imgsz", "resolution", "width", "height"),
    "--suite": ("suites", "tests", "metrics"),
    "--sync-bn": ("sync-batch-norm", "syncbn", "sync-batchnorm"),
    "--val-fraction": ("val-split", "val-ratio", "validation-split", "validation-fraction"),
    "--wandb": ("log-wandb", "use-wandb", "wandb-project"),
    "--warmup-epochs": ("warmup", "warm-up", "lr-warmup-epochs"),
    "--watchdog-timeout": ("stall-limit", "nccl-timeout"),
    "--weight-decay": ("wd", "decay", "l2"),
    "--weights": ("init", "init-weights", "initial-checkpoint", "pretrain", "load", "checkpoint",
                  "ckpt"),
    "--shuffle-window": ("window", "shuffle", "shuffle-buffer", "shuffle-size", "buffer-size"),
    "--workers": ("j", "num-workers", "nworkers", "n-workers", "prefetch", "jobs", "threads",
                  "loader-workers", "w"),
}  # fmt: skip
"""Option -> what timm, torchvision, the PixMix reference and others call it, without dashes."""

_NOTES: Mapping[str, str] = {
    **dict.fromkeys(
        ("gpus", "num-gpus", "n-gpus", "ngpus", "world-size", "nproc-per-node", "devices"),
        "Start a process for each GPU by torchrun --nproc-per-node",
    ),
    **dict.fromkeys(
        ("local-rank", "rank", "dist-url", "dist-backend", "ddp", "distributed"),
        "torchrun, srun and mpirun say it in the environment",
    ),
    **dict.fromkeys(
        ("momentum", "nesterov"), "--optimizer sgd has Nesterov's momentum of 0.9"
    ),
    **dict.fromkeys(
        ("sched", "scheduler", "lr-scheduler", "lr-step-size", "lr-gamma", "min-lr"),
        "The learning rate falls by a cosine",
    ),
    **dict.fromkeys(
        ("print-freq", "log-interval", "log-freq", "verbose", "v", "quiet", "q"),
        "Progress is on stderr, and --json prints the result as JSON",
    ),
    **dict.fromkeys(
        ("tensorboard", "log-tensorboard"),
        "OUT/tensorboard is written wherever the package tensorboard is installed",
    ),
}  # fmt: skip
"""Option that no command has -> what to do instead; said by pixmix-train alone."""


class SuggestingCommand(click.Command):
    """A command that says of an unknown option which of its own it may have meant."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and add suggestions to the error of an unknown option."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            own = {name for param in self.params for name in param.opts}
            # click reads -lr as -l and -r.
            option = next((each for each in given if _is_meant(each, error.option_name)), "")
            option = option.partition("=")[0] or error.option_name
            found = options_for(option, own) or list(error.possibilities or ())
            note = _NOTES.get(_plain(option)) if "--learning-rate" in own else None
            message = f"No such option '{option}'."
            if found:
                message += f" Did you mean {' or '.join(repr(each) for each in found)}?"
            elif note is not None:
                message += f" {note}."
            raise click.NoSuchOption(option, message, ctx=ctx) from error


def _is_meant(word: str, option: str) -> bool:
    return word.startswith(option) and not option.startswith("--") and len(option) == 2


class SuggestingGroup(click.Group):
    """A group whose commands are such."""

    command_class = SuggestingCommand


def options_for(name: str, own: set[str]) -> list[str]:
    """Return the options of a command that an option of another script may stand for.

    Args:
        name: of an option, as "--lr".
        own: options of the command.
    """
    plain = _plain(name)
    found = [option for option, names in _NAMES.items() if plain in names and option in own]
    if f"--{plain}" in own:
        found.insert(0, f"--{plain}")
    return found


def _plain(name: str) -> str:
    # -j4 is -j.
    name = name[:2] if re.fullmatch(r"-[a-z]\d+", name) else name
    return name.lstrip("-").replace("_", "-").lower()
