"""`pixmix-train`: a command for each dataset, with the recipe of the PixMix authors' scripts."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.help_pages import command_group, example
from pipelines.cli.options import command_options, in_order, one_line_errors, progress_bar, say
from pipelines.cli.training_options import training_options
from pipelines.datasets import DATASETS, Dataset
from pipelines.errors import PipelineError
from pipelines.system.progress import ShowProgress, in_words
from pipelines.training.recipes import Recipe, TrainConfig, figures, named_recipe

if TYPE_CHECKING:
    from pipelines.loading.config import PreprocessConfig
    from pipelines.shards.remote import Remote
    from pipelines.system.process_group import Processes
    from pipelines.training.data import TrainingData
    from pipelines.training.recipes import StepProgress, TrainResult
    from pipelines.training.stopping import Stopping

_INTERRUPTED = "interrupted; run the same command with --resume to resume"

_STOPPED_BEFORE = "stopped before the first step"

_NOT_IN_TIME = (
    "stopped, and no checkpoint could be saved in time; run the same command with --resume to "
    "resume from the last one"
)


@command_group(
    "pixmix-train digits --mixing-set mixing-set --out runs/digits",
    "pixmix-train cifar10 --data shards/cifar10 --mixing-set mixing-set --out runs/cifar10",
)
def main() -> None:
    """Train image classifiers with PixMix, in one process or under torchrun.

    The default recipes are those of the PixMix authors' scripts. Their README adds --all-ops for
    the runs of the paper. With --resume, a stopped run continues from its latest checkpoint. A
    checkpoint is written after every epoch, more often with --checkpoint-every, and on Ctrl-C,
    SIGTERM or SIGUSR1; the exit code is then 130 or 143.
    """


def _add_command(dataset: Dataset) -> None:
    def command(**options: Any) -> None:  # noqa: ANN401
        with one_line_errors(_INTERRUPTED):
            _train(dataset, options)

    command.__doc__ = _help_of(dataset)
    decorated = in_order(*training_options(dataset))(command_options(command))
    shards = "images" if dataset.name == "folder" else dataset.name
    data = "" if dataset.bundled else f" --data shards/{shards}"
    line = f"pixmix-train {dataset.name}{data} --mixing-set mixing-set --out runs/{dataset.name}"
    many = f"torchrun --nproc-per-node 4 --no-python {line}"
    main.command(dataset.name, epilog=example(line, many))(decorated)


def _help_of(dataset: Dataset) -> str:
    recipe = figures(dataset.recipe)
    title = "the digits dataset" if dataset.bundled else dataset.title
    text = f"Train on {title}: {recipe['model']}, {recipe['epochs']} epochs."
    if dataset.bundled:
        return f"{text}\n\nThe data need no download: without --data, shards are written to OUT."
    if dataset.reader:
        return (
            f"{text}\n\nIf DATA is the official archive or torchvision's download folder, its "
            "shards are written to OUT first."
        )
    return (
        f"{text}\n\nDATA has the folders train and val of pixmix-shard imagefolder. Each epoch is "
        "evaluated on test or else val; only --val-fraction chooses a checkpoint. The default "
        "learning rate is 0.01, as in the authors' script. It suits fine-tuning: pass "
        "--pretrained, or a larger learning rate to train from scratch."
    )


for _dataset in DATASETS.values():
    _add_command(_dataset)


def _train(dataset: Dataset, options: dict[str, Any]) -> None:
    import torch

    from pipelines.loading.config import LoaderConfig
    from pipelines.shards.remote import Remote
    from pipelines.system.objects import RemoteAccess
    from pipelines.system.process_group import Watchdog, join_processes
    from pipelines.system.processes import compile_kernels
    from pipelines.training.data import hold_out
    from pipelines.training.stopping import STOPPED, Stopping
    from pipelines.training.tracking import import_wandb
    from pixmix.fused import pending

    try:
        recipe = _recipe(dataset, options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    _check_usage(options, recipe)
    if options["wandb"]:
        # A missing library is reported before the long work.
        import_wandb()
    remote = Remote(
        limit_bytes=options["cache_limit"],
        prefetch=options["prefetch"],
        concurrent_downloads=options["concurrent_downloads"],
        access=RemoteAccess(download_timeout_s=options["download_timeout"]),
    )
    watchdog = Watchdog(limit_s=options["watchdog_timeout"])
    stopping = Stopping()
    with (
        _stop_in_one_line(),
        watchdog.watching(),
        stopping.enforced(),
        join_processes(options["device"], watchdog=watchdog) as processes,
        stopping.synchronized(processes),
    ):

        def print_result(result: "TrainResult") -> None:
            text, document = _described(result, options["out"], torch.__version__)
            say(text, document, as_json=options["as_json"])

        def print_end(result: "TrainResult | None") -> None:
            if not processes.first or stopping.interrupted or result is None:
                _print_why(stopping, result)
            else:
                print_result(result)

        stopping.on_exit = print_end
        data = _open_data(dataset, options, remote, processes)
        compile_kernels(pending)
        shards, validation = hold_out(data.train, options["val_fraction"])
        cores, workers = processes.own_cores(), options["workers"]
        if workers is None:
            workers = 0 if dataset.images == "small" else min(4, cores)
        try:
            loader = LoaderConfig(
                batch_size=recipe.batch_size,
                seed=recipe.seed,
                preprocess=_preprocess(dataset, options),
                num_workers=workers,
                remote=remote,
                **_passed(options, _names(LoaderConfig) - {"batch_size", "seed", "image_size"}),
            )
        except ValueError as error:
            raise PipelineError(str(error)) from error
        config = TrainConfig(
            recipe=recipe,
            loader=loader,
            train=shards,
            validation=validation,
            test=data.test,
            mixing_set=options["mixing_sets"] or None,
            resume=options["resume"] == "auto",
            **_passed(options, _names(TrainConfig) - {"resume"}),
        )
        result = _run(config, processes, stopping, wandb=options["wandb"])
        if processes.first:
            print_result(result)
    if not result.finished:
        # SIGTERM or SIGUSR1 stopped this process or another one. A batch system must be able to
        # tell this from the end of a training.
        raise click.exceptions.Exit(STOPPED)


def _run(
    config: TrainConfig, processes: "Processes", stopping: "Stopping", *, wandb: bool
) -> "TrainResult":
    """Train, and show progress."""
    from pipelines.training.loop import train
    from pipelines.training.tracking import tracked

    with (
        progress_bar("steps") as bar,
        tracked(config.out, wandb=wandb and processes.first) as run,
    ):
        progress = TrainingProgress(bar, config.recipe)

        def on_epoch(record: Mapping[str, Any]) -> None:
            progress.epoch(record)
            if run is not None:
                run.epoch(record)

        on_start = run.begin if run is not None else lambda: None
        try:
            result = train(config, processes, progress.step, on_epoch, on_start, stopping)
        except ValueError as error:
            # The numbers are valid, but do not fit the data.
            raise PipelineError(str(error)) from error
        if run is not None:
            run.finished = result.finished
    return result


class TrainingProgress:
    """Shows each step in a bar, and prints a line after each epoch, on stderr.

    An example of a line: epoch 3 of 40, train loss 0.5123, train error 16.67 %, test error
    12.50 %, 8,412 images/s, 2 min left.
    """

    def __init__(
        self, show: ShowProgress, recipe: Recipe, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Start before the first step.

        Args:
            show: the bar.
            recipe: the recipe of the training.
            clock: returns seconds since any moment.
        """
        self._show, self._recipe, self._clock = show, recipe, clock
        self._steps = 0
        # (step, seconds) after the first step of this start, which may compile kernels; at the
        # beginning of this epoch; and after its last step so far.
        self._first: tuple[int, float] | None = None
        self._epoch: tuple[int, float] | None = None
        self._last = (0, 0.0)

    def step(self, progress: "StepProgress") -> None:
        """Show a step."""
        now = self._clock()
        if self._first is None:
            self._first = progress.step, now
        if self._epoch is None:
            spent = self._recipe.batch_size / max(progress.samples_per_second, 1e-9)
            self._epoch = progress.step - 1, now - spent
        self._last, self._steps = (progress.step, now), progress.steps
        self._show(
            progress.step,
            progress.steps,
            f"epoch {progress.epoch + 1} of {self._recipe.epochs}, loss {progress.loss:.3f}, "
            f"{progress.samples_per_second:,.0f} images/s, "
            f"data wait {100 * progress.data_wait:.0f} %",
        )

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Print the line of an epoch, after its evaluation."""
        from pipelines.training.tracking import metrics_in_words

        parts = [metrics_in_words(record, self._recipe.epochs)]
        if self._epoch is not None and self._first is not None:
            (begun, since), (step, until) = self._epoch, self._last
            rate = (step - begun) * self._recipe.batch_size / max(until - since, 1e-9)
            parts.append(f"{rate:,.0f} images/s")
            if step < self._steps:
                first, first_ended = self._first if step > self._first[0] else self._epoch
                per_step = (self._clock() - first_ended) / (step - first)
                parts.append(f"{in_words((self._steps - step) * per_step)} left")
        self._epoch = None
        self._show.line(", ".join(parts))


@contextmanager
def _stop_in_one_line() -> Iterator[None]:
    """Print one line if a signal ends the command before there is anything to save."""
    try:
        yield
    except SystemExit:
        click.echo(_STOPPED_BEFORE, err=True)
        raise


def _print_why(stopping: "Stopping", result: "TrainResult | None") -> None:
    """Print why a training ended, if a signal or an error ended it."""
    if stopping.error is not None:
        click.echo(f"Error: no checkpoint was saved: {stopping.error}", err=True)
    elif stopping.interrupted:
        click.echo(f"Error: {_INTERRUPTED}", err=True)
    elif result is None:
        click.echo(_STOPPED_BEFORE if stopping.rescue is None else _NOT_IN_TIME, err=True)


def _open_data(
    dataset: Dataset, options: dict[str, Any], remote: "Remote", processes: "Processes"
) -> "TrainingData":
    """Open the data, and write their shards first if necessary.

    All other inputs are checked first, because writing shards may take long.
    """
    from pipelines.training.data import check_inputs, open_training_data

    out, reading = options["out"], {"cache_dir": options["cache_dir"], "remote": remote}
    find = partial(open_training_data, dataset.name, options["data"], out / "data")
    with processes.watchdog.awaiting("process 0, which opens or shards the data"):
        with processes.together():
            if processes.first:
                check_inputs(
                    out,
                    options["mixing_sets"],
                    weights=options["weights"],
                    resume=options["resume"] == "auto",
                    **reading,
                )
                with progress_bar("samples") as made:
                    data = find(made, **reading)
        with processes.together():
            if not processes.first:
                data = find(lambda _done, _total: None, writes_shards=False, **reading)
    return data


def _preprocess(dataset: Dataset, options: dict[str, Any]) -> "PreprocessConfig":
    from pipelines.loading.config import CIFAR, IMAGENET

    if dataset.images == "large":
        return replace(IMAGENET, flip=dataset.flip, image_size=options["image_size"])
    return replace(CIFAR, flip=dataset.flip)


def _names(config: type) -> set[str]:
    return {each.name for each in fields(config)}


def _passed(options: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Return the options of these names that have a value."""
    return {name: options[name] for name in names if options.get(name) is not None}


def _recipe(dataset: Dataset, options: dict[str, Any]) -> Recipe:
    """Return the recipe of a dataset, changed by the options that were passed."""
    import torch

    from pipelines.models.registry import has_dropout

    base = named_recipe(dataset.recipe)
    changes = _passed(options, _names(Recipe))
    augment, model = changes.get("augment", base.augment), changes.get("model", base.model)
    _refuse_ignored(augment, model, options)
    if not has_dropout(model):
        changes["dropout"] = 0.0
    if "precision" not in changes and options["device"] in ("auto", "cpu"):
        tiles = torch.cpu._is_amx_tile_supported() and not torch.cuda.is_available()
        changes["precision"] = "bfloat16" if tiles else "float32"
    pixmix = {
        **_passed(options, _names(type(base.pixmix))),
        "all_ops": options["all_ops"] and augment == "pixmix",
    }
    return replace(
        base,
        **{
            # The AugMix authors train with this loss.
            "jsd": augment == "augmix",
            **changes,
            "pixmix": replace(base.pixmix, **pixmix),
            "augmix_all_ops": options["all_ops"] and augment == "augmix",
        },
    )


def _refuse_ignored(augment: str, model: str, options: dict[str, Any]) -> None:
    """Reject options that would have no effect with this augmentation or network."""
    from pipelines.models.registry import has_dropout

    of_pixmix = ["k", "beta", "severity", "no_mixing_set"]
    if augment != "augmix":
        of_pixmix.append("all_ops")
    passed = [name for name in of_pixmix if options[name] not in (None, False)]
    if augment != "pixmix" and passed:
        option = passed[0].replace("_", "-")
        raise click.UsageError(
            f"--{option} has no effect with --augment {augment}; omit one of them"
        )
    if options["dropout"] and not has_dropout(model):
        raise click.UsageError(f"--dropout has no effect on --model {model}; omit it")


def _check_usage(options: dict[str, Any], recipe: Recipe) -> None:
    """Reject options that exclude or need each other.

    Raises:
        click.UsageError: if there are such options.
    """
    has_set, augment = bool(options["mixing_sets"]), recipe.augment
    for wrong, message in (
        (
            options.get("on_decode_error", "raise") == "raise"
            and options.get("max_decode_errors") is not None,
            "--max-decode-errors needs --on-decode-error substitute or skip; pass one of them, or "
            "omit it",
        ),
        (
            has_set and options["no_mixing_set"],
            "--mixing-set and --no-mixing-set exclude each other; pass one of them",
        ),
        (
            has_set and augment != "pixmix",
            f"--mixing-set has no effect with --augment {augment}; omit one of them",
        ),
        (
            not has_set and options["on_mixing_decode_error"] is not None,
            "--on-mixing-decode-error needs --mixing-set; pass it, or omit the option",
        ),
        (
            not has_set and not options["no_mixing_set"] and augment == "pixmix",
            "PixMix needs mixing images: pass --mixing-set (pixmix-gen fractals makes one), or "
            "--no-mixing-set to mix each image only with augmented copies of itself",
        ),
        (
            options["weights"] is not None and options["pretrained"],
            "--weights and --pretrained exclude each other; pass one of them",
        ),
    ):
        if wrong:
            raise click.UsageError(message)


def _described(result: "TrainResult", out: Path, torch_version: str) -> tuple[str, dict[str, Any]]:
    from pipelines.training.tracking import metrics_in_words

    known = f"{metrics_in_words(result.history[-1])}; " if result.history else ""
    if result.finished:
        text = f"{known}checkpoint in {result.checkpoint}, metrics in {out / 'metrics.csv'}"
    else:
        text = f"{known}stopped after step {result.step}; pass --resume to resume"
    return text, {
        "finished": result.finished,
        "step": result.step,
        "checkpoint": str(result.checkpoint),
        "history": result.history,
        "torch": torch_version,
    }


if __name__ == "__main__":
    main()
