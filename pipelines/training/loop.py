"""Evaluation during training: mean loss and error over a dataset, each sample once.

The training loop, in one process or as many as a launcher starts.

`recipes` has the figures, `state` what a checkpoint holds, `step` a step, `validation` an
evaluation, `stopping` the signals, and `tracking` the logs. What fails in one process ends them
all, each with one line.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from pipelines.loading.loader import EvalLoader
from pipelines.loading.workers import worker_errors
from pipelines.system.files import resource_errors
from pipelines.system.process_group import LostProcessError, Processes, communication_errors
from pipelines.training.checkpoints import exclusive_folder
from pipelines.training.recipes import StepProgress, TrainConfig, TrainResult
from pipelines.training.state import TrainState, open_state
from pipelines.training.step import Trainer, autocast, channels_last
from pipelines.training.stopping import Stopping
from pipelines.training.tracking import log_to_tensorboard, recorded_session


def validate(trainer: Trainer, name: str) -> tuple[float, float] | None:
    """Return the mean cross entropy and the error of the network that a checkpoint would hold.

    Args:
        trainer: of the training; all processes must call this.
        name: "validation" or "test".

    Returns:
        None if the training is to stop before the end of the evaluation.
    """
    config, processes, state = trainer.config, trainer.processes, trainer.state
    world, watchdog = processes.world, processes.watchdog
    shards = {"validation": config.validation, "test": config.test}[name]
    assert shards is not None
    settings = replace(
        config.loader,
        batch_size=-(-config.recipe.batch_size // world.size) * world.size,
        shard_partitions=1,
        rank=world.rank,
        world_size=world.size,
        # A substitute would count twice.
        on_decode_error="raise" if config.loader.on_decode_error == "raise" else "skip",
    )
    loader = EvalLoader(shards, settings)
    outputs = state.outputs[name]
    loss = wrong = seen = 0.0
    with (
        _averaged_weights(trainer, state),
        torch.no_grad(),
        autocast(config.recipe.precision, processes.device),
    ):
        state.module.eval()
        processes.share_buffers(state.module)
        batches = iter(loader)
        while not trainer.stopping.asked:
            with watchdog.awaiting(loader.waiting_for):
                batch = next(batches, None)
            if batch is None:
                break
            images, labels, weights = batch
            there = (labels if outputs is None else outputs[labels]).to(processes.device)
            logits = state.module(channels_last(images.to(processes.device))).float()
            losses = functional.cross_entropy(logits, there, reduction="none").cpu()
            loss += float((losses * weights).sum())
            wrong += float(((logits.argmax(1) != there).cpu() * weights).sum())
            seen += float(weights.sum())
            watchdog.reset()
    asked, loss, wrong, seen = processes.sum(float(trainer.stopping.asked), loss, wrong, seen)
    trainer.stopped = trainer.stopped or asked > 0
    return None if trainer.stopped else (loss / seen, wrong / seen)


@contextmanager
def _averaged_weights(trainer: Trainer, state: TrainState) -> Iterator[None]:
    """Put the averaged weights in place of the trained ones, if there are averages."""
    if state.average is None:
        yield
        return
    trained = {name: each.clone() for name, each in state.module.state_dict().items()}
    with trainer.stopping.whole:
        state.trained = trained
        state.module.load_state_dict(state.average)
    try:
        yield
    finally:
        with trainer.stopping.whole:
            state.module.load_state_dict(trained)
            state.trained = None


OnStep = Callable[[StepProgress], None]
OnEpoch = Callable[[Mapping[str, Any]], None]
"""Called with the record of an epoch: a line of metrics.jsonl."""

_HEAR_S = 2.0
"""Several times what a process takes to hear that another one stops."""


def train(
    config: TrainConfig,
    processes: Processes,
    on_step: OnStep = lambda _: None,
    on_epoch: OnEpoch = lambda _: None,
    on_start: Callable[[], None] = lambda: None,
    stopping: Stopping | None = None,
) -> TrainResult:
    """Train a network, or resume a training that was stopped.

    SIGTERM and SIGUSR1 end it after the current step, with a checkpoint.

    Args:
        config: what to train, on what, and where results go.
        processes: this process among the others; see `process_group.join_processes`.
        on_step: called after each step, in the first process, as are the next two.
        on_epoch: called after each epoch.
        on_start: called when OUT/run.json is written.
        stopping: also ends it while it waits; None to obey signals between steps alone.

    Returns:
        How it ended, the same in every process.

    Raises:
        PipelineError: if `out` holds another training, the data do not fit, the loss is NaN, the
            disk is full, or another process or a worker of this one was lost.
        ValueError: if numbers of the recipe do not fit the data or the number of processes.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint.
    """
    stopping = stopping or Stopping()
    with (
        resource_errors(config.out, jobs=1, disk_remedy="choose another --out, or "),
        communication_errors(),
        # If a worker is killed, torch raises wherever the main thread is.
        worker_errors(),
        exclusive_folder(config.out, processes, resume=config.resume),
    ):
        state = open_state(config, processes)
        with recorded_session(config, processes, state, on_start) as ending:

            def rescue() -> TrainResult:
                """Write a checkpoint of the last whole step from another thread, and run.json."""
                trainer.save_alone()
                ending.step, ending.finished = state.step, state.finished
                ending.end_now()
                return state.result()

            with Trainer(config, processes, state, stopping) as trainer:
                with stopping.rescued_by(rescue), stopping.by_signals():
                    _fit(trainer, on_step, on_epoch)
                if stopping.interrupted and trainer.stopped:
                    raise KeyboardInterrupt
            return state.result()


def _fit(trainer: Trainer, on_step: OnStep, on_epoch: OnEpoch) -> None:
    """Take steps until all epochs are done, or the processes agree to stop; save on the way."""
    state, config, processes = trainer.state, trainer.config, trainer.processes
    every, batch_size = config.checkpoint_every, config.recipe.batch_size
    steps = config.recipe.epochs * len(state.loader)
    try:
        # Gradients, too, are lost with the process that they come from.
        with (
            processes.watchdog.awaiting("the device, or the other processes"),
            communication_errors(),
        ):
            while not (trainer.stopped or state.finished):
                epoch, since = state.loader.epoch, time.perf_counter()
                for images, labels, waited in trainer.batches():
                    trainer.take_step(images, labels)
                    now = time.perf_counter()
                    if processes.first:
                        spent = max(now - since, 1e-9)
                        on_step(
                            StepProgress(
                                step=state.step,
                                steps=steps,
                                epoch=epoch,
                                loss=trainer.loss,
                                samples_per_second=batch_size / spent,
                                data_wait=waited / spent,
                            )
                        )
                    since = now
                    if trainer.settle(keep=1):
                        break
                    if every is not None and state.step % every == 0 and not state.epoch_ended:
                        trainer.save()
                else:
                    _end_epoch(trainer, on_epoch)
            if trainer.stopped:
                trainer.save()
    except LostProcessError:
        # What was reached is kept; every process has the same weights.
        trainer.stopping.save()
        # A process that stops may be gone before its message is here.
        if not trainer.stopping.hears_within(_HEAR_S):
            raise
        trainer.stopped = True


def _end_epoch(trainer: Trainer, on_epoch: OnEpoch) -> None:
    """Evaluate the network, record the epoch and save; nothing if the training is to stop."""
    state, config, processes = trainer.state, trainer.config, trainer.processes
    trainer.settle()
    record = state.epoch_record()
    for name in state.outputs:
        found = validate(trainer, name)
        if found is None:
            return
        record[f"{name}_loss"], record[f"{name}_error"] = found
    with trainer.stopping.whole:
        state.end_epoch(record)
    if processes.first:
        log_to_tensorboard(config.out, record)
        on_epoch(record)
    error = record.get("validation_error")
    if error is not None and error < state.best:
        state.best = error
        trainer.save(config.out / "checkpoints" / "best.pt")
    trainer.save()
