"""`pixmix-train`: a command for each dataset, with the recipe of the released scripts."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.options import (
    command_options,
    example,
    one_line_errors,
    progress_bar,
    say,
)
from pipelines.cli.suggestions import SuggestingGroup
from pipelines.cli.training_options import SMALL, training_options
from pipelines.cli.training_progress import TrainingProgress
from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from pipelines.loading.batches import OnDecodeError, PreprocessConfig
    from pipelines.loading.remote_sets import Remote
    from pipelines.system.process_group import Processes
    from pipelines.training.data import Data, Dataset
    from pipelines.training.recipes import Recipe
    from pipelines.training.stopping import Stopping
    from pipelines.training.train import Trained, Training

_INTERRUPTED = "interrupted; the same command with --resume auto goes on from here"

_STOPPED_BEFORE = "stopped before the first step"

_NOT_IN_TIME = (
    "stopped; no checkpoint could be saved in time: the same command with --resume auto goes on "
    "from the last one"
)


@click.group(
    cls=SuggestingGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example(
        "pixmix-train digits --mixing-set mixing-set --out runs/digits",
        "pixmix-train cifar10 --data shards/cifar10 --mixing-set mixing-set --out runs/cifar10",
    ),
)
@click.version_option(package_name="pixmix", message="%(version)s")
def main() -> None:
    """Train classifiers with PixMix, in one process or under torchrun.

    The defaults are those of the released scripts; their README adds --all-ops for the paper's
    runs. What is trained depends on recipe, data and number of processes; a stopped run resumes as
    if it had not been stopped.
    """


def _command(dataset: "Dataset", text: str) -> None:
    """Add the command of a data set."""

    def command(**options: Any) -> None:  # noqa: ANN401
        with one_line_errors(_INTERRUPTED):
            _train(dataset, options)

    command.__doc__ = text
    decorated: Callable[..., Any] = command_options(command)
    for option in reversed(training_options(dataset)):
        decorated = option(decorated)
    shards = "pictures" if dataset == "folder" else dataset
    data = "" if dataset == "digits" else f" --data shards/{shards}"
    line = f"pixmix-train {dataset}{data} --mixing-set mixing-set --out runs/{dataset}"
    many = f"torchrun --nproc-per-node 4 -m -- pipelines.cli.{line.removeprefix('pixmix-')}"
    main.command(dataset, epilog=example(line, many))(decorated)


_command(
    "cifar10",
    """Train on CIFAR-10: WRN-40-4, 100 epochs.

    DATA holds shards of pixmix-shard, or the official archive or what torchvision made of it, which
    is then sharded into OUT.
    """,
)
_command(
    "cifar100",
    """Train on CIFAR-100: WRN-40-4, 100 epochs.

    DATA holds shards of pixmix-shard, or the official archive or what torchvision made of it, which
    is then sharded into OUT.
    """,
)
_command(
    "imagenet",
    """Train on ImageNet: ResNet-50, 90 epochs.

    DATA holds the shards of pixmix-shard imagefolder, in train and val. The small learning rate
    of the released script suits trained weights; pass --pretrained to start from them.
    """,
)
_command(
    "digits",
    """Train on scikit-learn's digits, which need no download: a small network, a minute.""",
)
_command(
    "folder",
    """Train on pictures of your own: ResNet-50 and the recipe of ImageNet, unless told otherwise.

    DATA holds the shards of pixmix-shard imagefolder.
    """,
)


def _train(dataset: "Dataset", options: dict[str, Any]) -> None:
    import torch

    from pipelines.loading.remote_sets import Remote
    from pipelines.shards.connections import RemoteAccess
    from pipelines.system.process_group import Watchdog, joined
    from pipelines.system.processes import compile_kernels
    from pipelines.training.data import hold_out
    from pipelines.training.stopping import STOPPED, Stopping
    from pipelines.training.tracking import import_wandb
    from pipelines.training.train import Training
    from pixmix.warming import pending

    try:
        recipe = _recipe(dataset, options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    small = dataset in SMALL
    policy, max_decode_errors = _decode_errors(options)
    mixing_set = _mixing_set(options, recipe)
    if options["wandb"]:
        # Before what takes long.
        import_wandb()
    if options["weights"] is not None and options["pretrained"]:
        raise click.UsageError("--weights and --pretrained exclude each other; give one")
    out: Path = options["out"]
    remote = Remote(
        limit_bytes=options["cache_limit"],
        ahead=options["prefetch"],
        downloads=options["downloads"],
        access=RemoteAccess(patience_s=options["patience"]),
    )
    watchdog = Watchdog(limit_s=options["stall_limit"])
    stopping = Stopping()
    with (
        _stop_is_told(),
        watchdog.watching(),
        stopping.in_time(),
        joined(options["device"], watchdog=watchdog) as processes,
        stopping.with_others(processes),
    ):

        def tell(trained: "Trained | None") -> None:
            if not processes.first or stopping.interrupted or trained is None:
                _say_why(stopping, trained)
            else:
                text, document = _said(trained, out, torch.__version__)
                say(text, document, as_json=options["as_json"])

        stopping.tell = tell
        data = _open_data(dataset, options, remote, processes)
        compile_kernels(pending)
        shards, validation = hold_out(data.train, options["validation_share"])
        cores, workers = processes.own_cores(), options["workers"]
        training = Training(
            out=out,
            recipe=recipe,
            preprocess=_preprocess(dataset, options),
            train=shards,
            validation=validation,
            test=data.test,
            mixing_set=mixing_set,
            weights=options["weights"],
            pretrained=options["pretrained"],
            resume=options["resume"] == "auto",
            keep=options["keep"],
            checkpoint_every=options["checkpoint_every"],
            num_workers=(0 if small else min(4, cores)) if workers is None else workers,
            shuffle_window=options["shuffle_window"],
            shard_partitions=options["shard_partitions"],
            on_decode_error=policy,
            max_decode_errors=max_decode_errors,
            on_mixing_decode_error=options["on_mixing_decode_error"] or "raise",
            cache_dir=options["cache_dir"],
            remote=remote,
            compile=options["compile"],
            sync_batch_norm=options["sync_batch_norm"],
        )
        trained = _trained(training, processes, stopping, wandb=options["wandb"])
        if processes.first:
            text, document = _said(trained, out, torch.__version__)
            say(text, document, as_json=options["as_json"])
    if not trained.finished:
        # By SIGTERM or SIGUSR1, to this process or another: whoever waits for the end, as a batch
        # system does, is not to take it for one.
        raise click.exceptions.Exit(STOPPED)


def _trained(
    training: "Training", processes: "Processes", stopping: "Stopping", *, wandb: bool
) -> "Trained":
    """Train, and show how far it is."""
    from pipelines.training.tracking import tracked
    from pipelines.training.train import train

    with (
        progress_bar("steps") as bar,
        tracked(training.out, wandb=wandb and processes.first) as run,
    ):
        progress = TrainingProgress(bar, training.recipe)

        def show_epoch(record: Mapping[str, Any]) -> None:
            progress.epoch(record)
            if run is not None:
                run.epoch(record)

        begin = run.begin if run is not None else lambda: None
        try:
            trained = train(training, processes, progress.step, show_epoch, begin, stopping)
        except ValueError as error:
            # Of numbers that fit the recipe and not the data.
            raise PipelineError(str(error)) from error
        if run is not None:
            run.finished = trained.finished
    return trained


@contextmanager
def _stop_is_told() -> Iterator[None]:
    """Say in one line that a signal has ended the command before there was anything to save."""
    try:
        yield
    except SystemExit:
        click.echo(_STOPPED_BEFORE, err=True)
        raise


def _say_why(stopping: "Stopping", trained: "Trained | None") -> None:
    """Say what became of a training that was left while it waited."""
    if stopping.fault is not None:
        click.echo(f"Error: no checkpoint was saved: {stopping.fault}", err=True)
    elif stopping.interrupted:
        click.echo(f"Error: {_INTERRUPTED}", err=True)
    elif trained is None and stopping.rescue is None:
        click.echo(_STOPPED_BEFORE, err=True)
    elif trained is None:
        click.echo(_NOT_IN_TIME, err=True)


def _open_data(
    dataset: "Dataset", options: dict[str, Any], remote: "Remote", processes: "Processes"
) -> "Data":
    """Open the data, made first where they have to be, when nothing else is missing."""
    from pipelines.training.data import check_inputs, find_data

    mixing_sets: tuple[Path | str, ...] = options["mixing_sets"]
    find = partial(
        find_data,
        dataset,
        options["data"],
        options["out"] / "data",
        cache_dir=options["cache_dir"],
        remote=remote,
    )
    with processes.watchdog.awaiting("process 0, which opens or makes the data"):
        with processes.together():
            if processes.first:
                check_inputs(
                    options["out"],
                    mixing_sets,
                    weights=options["weights"],
                    cache_dir=options["cache_dir"],
                    remote=remote,
                )
                with progress_bar("samples") as made:
                    data = find(made)
        with processes.together():
            if not processes.first:
                data = find(lambda _done, _total: None, maker=False)
    return data


def _preprocess(dataset: "Dataset", options: dict[str, Any]) -> "PreprocessConfig":
    from pipelines.loading.batches import CIFAR, IMAGENET

    if dataset not in SMALL:
        return replace(IMAGENET, image_size=options["image_size"])
    # None of the digits is another digit in a mirror.
    return replace(CIFAR, flip=dataset != "digits")


def _recipe(dataset: "Dataset", options: dict[str, Any]) -> "Recipe":
    """Return the recipe of a data set with what the user says in its place."""
    import torch

    from pipelines.models.cifar import takes_dropout
    from pipelines.training import recipes

    base = {
        "cifar10": recipes.CIFAR,
        "cifar100": recipes.CIFAR,
        "digits": recipes.DIGITS,
    }.get(dataset, recipes.IMAGENET)
    pixmix = {
        name: options[name] for name in ("k", "beta", "severity") if options[name] is not None
    }
    named = {
        "model": "model",
        "epochs": "epochs",
        "batch_size": "batch_size",
        "accumulate": "accumulate",
        "optimizer": "optimizer",
        "learning_rate": "learning_rate",
        "warm_up": "warm_up_epochs",
        "weight_decay": "weight_decay",
        "label_smoothing": "label_smoothing",
        "dropout": "dropout",
        "ema": "ema_decay",
        "augment": "augment",
        "precision": "precision",
    }
    said = {field: options[name] for name, field in named.items() if options[name] is not None}
    augment = said.get("augment", base.augment)
    _refuse_ignored(augment, said.get("model", base.model), options)
    if not takes_dropout(said.get("model", base.model)):
        said["dropout"] = 0.0
    if "precision" not in said and options["device"] in ("auto", "cpu"):
        tiles = torch.cpu._is_amx_tile_supported() and not torch.cuda.is_available()
        said["precision"] = "bfloat16" if tiles else "float32"
    return replace(
        base,
        **said,
        pixmix=replace(base.pixmix, **pixmix, all_ops=options["all_ops"] and augment == "pixmix"),
        augmix_all_ops=options["all_ops"] and augment == "augmix",
        # Its authors train with it.
        jsd=augment == "augmix" if options["jsd"] is None else options["jsd"],
        seed=options["seed"],
    )


def _refuse_ignored(augment: str, model: str, options: dict[str, Any]) -> None:
    """Refuse options of what is not in use: they would be taken and change nothing."""
    from pipelines.models.cifar import takes_dropout

    of_pixmix = ("k", "beta", "severity", "all_ops", "no_mixing_set")
    given = [name for name in of_pixmix if options[name] not in (None, False)]
    if augment == "augmix" and "all_ops" in given:
        given.remove("all_ops")
    if augment != "pixmix" and given:
        option = given[0].replace("_", "-")
        raise click.UsageError(
            f"--{option} is of PixMix, and --augment is {augment}; leave one out"
        )
    if options["dropout"] and not takes_dropout(model):
        raise click.UsageError(f"{model} has no dropout that could be set; leave --dropout out")


def _mixing_set(options: dict[str, Any], recipe: "Recipe") -> tuple[Path | str, ...] | None:
    given: tuple[Path | str, ...] = options["mixing_sets"]
    if given and options["no_mixing_set"]:
        raise click.UsageError("--mixing-set and --no-mixing-set exclude each other; give one")
    if given and recipe.augment != "pixmix":
        raise click.UsageError(f"--augment {recipe.augment} mixes nothing; leave --mixing-set out")
    if not given and options["on_mixing_decode_error"] is not None:
        raise click.UsageError(
            "--on-mixing-decode-error needs a --mixing-set; pass one, or leave it out"
        )
    if not given and not options["no_mixing_set"] and recipe.augment == "pixmix":
        raise click.UsageError(
            "PixMix needs --mixing-set or --no-mixing-set: pass a set of images to mix with "
            "(pixmix-gen fractals makes one), or --no-mixing-set to mix each image with augmented "
            "copies of itself alone"
        )
    return given or None


def _decode_errors(options: dict[str, Any]) -> "tuple[OnDecodeError, int]":
    policy, most = options.get("on_decode_error", "raise"), options.get("max_decode_errors")
    if policy == "raise" and most is not None:
        raise click.UsageError(
            "--max-decode-errors counts samples that are substituted or skipped; pass "
            "--on-decode-error substitute or skip, too, or leave it out"
        )
    return policy, 100 if most is None else most


def _said(trained: "Trained", out: Path, torch_version: str) -> tuple[str, dict[str, Any]]:
    from pipelines.training.history import metrics_of

    last = trained.history[-1] if trained.history else None
    known = f"{metrics_of(last)}; " if last else ""
    if trained.finished:
        text = f"{known}checkpoint in {trained.checkpoint}, metrics in {out / 'metrics.csv'}"
    else:
        text = f"{known}stopped after step {trained.step}; --resume auto goes on"
    return text, {
        "finished": trained.finished,
        "step": trained.step,
        "checkpoint": str(trained.checkpoint),
        "history": trained.history,
        "torch": torch_version,
    }


if __name__ == "__main__":
    main()
