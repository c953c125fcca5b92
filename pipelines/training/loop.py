"""The training loop, in one process or several.

`recipes` holds the settings, `state` the content of a checkpoint, `step` one step, `stopping` the
handling of signals and `tracking` the logs. An error in one process ends all of them, each with one
line.
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

OnStep = Callable[[StepProgress], None]
OnEpoch = Callable[[Mapping[str, Any]], None]
"""Called with the record of an epoch: a line of metrics.jsonl."""

_STOP_DELAY_S = 2.0
"""Several times what a process needs to learn that another one stops."""


def train(
    config: TrainConfig,
    processes: Processes,
    on_step: OnStep = lambda _: None,
    on_epoch: OnEpoch = lambda _: None,
    on_start: Callable[[], None] = lambda: None,
    stopping: Stopping | None = None,
) -> TrainResult:
    """Train a network, or resume a training that was stopped.

    SIGTERM and SIGUSR1 end the training after the current step, with a checkpoint.

    Args:
        config: what to train, on what data, and where results go.
        processes: this process among the others; see `process_group.join_processes`.
        on_step: called in the first process after each step.
        on_epoch: called in the first process after each epoch.
        on_start: called in the first process when OUT/run.json has been written.
        stopping: also stops the training while it waits; None to obey signals only between steps.

    Returns:
        How the training ended, the same in every process.

    Raises:
        PipelineError: if `out` holds another training, the data do not fit, the loss is NaN, the
            disk is full, or another process or a worker was lost.
        ValueError: if numbers of the recipe do not fit the data or the number of processes.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint.
    """
    stopping = stopping or Stopping()
    with (
        resource_errors(config.out, jobs=1, disk_remedy="choose another --out, or "),
        communication_errors(),
        # If a worker is killed, torch raises in the main thread at any point.
        worker_errors(),
        exclusive_folder(config.out, processes, resume=config.resume),
    ):
        state = open_state(config, processes)
        with recorded_session(config, processes, state, on_start) as ending:

            def rescue() -> TrainResult:
                """Write a checkpoint of the last complete step and run.json from another thread."""
                trainer.save_alone()
                ending.step, ending.finished = state.step, state.finished
                ending.end_now()
                return state.result()

            with Trainer(config, processes, state, stopping) as trainer:
                with stopping.rescued_by(rescue), stopping.handle_signals():
                    _fit(trainer, on_step, on_epoch)
                if stopping.interrupted and trainer.stopped:
                    raise KeyboardInterrupt
            return state.result()


def _fit(trainer: Trainer, on_step: OnStep, on_epoch: OnEpoch) -> None:
    """Take steps and save checkpoints until all epochs are done or the processes agree to stop."""
    state, config, processes = trainer.state, trainer.config, trainer.processes
    every, batch_size = config.checkpoint_every, config.recipe.batch_size
    steps = config.recipe.epochs * len(state.loader)
    try:
        with (
            processes.watchdog.awaiting("the device, or the other processes"),
            # All-reduce of gradients fails, too, if another process is lost.
            communication_errors(),
        ):
            if state.resumed and state.is_best:
                # A stop between the end of an epoch and its best.pt leaves an older best.pt.
                trainer.save(best=True)
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
        # Every process has the same weights, so this one can save the progress.
        trainer.stopping.save()
        # A process that stops may be gone before its announcement arrives here.
        if not trainer.stopping.requested_within(_STOP_DELAY_S):
            raise
        trainer.stopped = True


def _end_epoch(trainer: Trainer, on_epoch: OnEpoch) -> None:
    """Evaluate the network, record the epoch and save; return early if training is to stop."""
    state, config, processes = trainer.state, trainer.config, trainer.processes
    trainer.settle()
    record = state.epoch_record()
    for name in state.outputs:
        loss_and_error = validate(trainer, name)
        if loss_and_error is None:
            return
        record[f"{name}_loss"], record[f"{name}_error"] = loss_and_error
    with trainer.stopping.consistent:
        state.end_epoch(record)
    if processes.first:
        log_to_tensorboard(config.out, record)
        on_epoch(record)
    if state.is_best:
        trainer.save(best=True)
    trainer.save()


def validate(trainer: Trainer, name: str) -> tuple[float, float] | None:
    """Evaluate the weights that a checkpoint would hold for evaluation, each sample once.

    Args:
        trainer: trainer of this process; every process must call this function.
        name: "validation" or "test".

    Returns:
        Mean cross entropy and error; None if training is to stop before the evaluation ends.
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
        while not trainer.stopping.requested:
            with watchdog.awaiting(loader.waiting_for):
                batch = next(batches, None)
            if batch is None:
                break
            images, labels, weights = batch
            targets = (labels if outputs is None else outputs[labels]).to(processes.device)
            logits = state.module(channels_last(images.to(processes.device))).float()
            losses = functional.cross_entropy(logits, targets, reduction="none").cpu()
            loss += float((losses * weights).sum())
            wrong += float(((logits.argmax(1) != targets).cpu() * weights).sum())
            seen += float(weights.sum())
            watchdog.reset()
    requested, loss, wrong, seen = processes.sum(
        float(trainer.stopping.requested), loss, wrong, seen
    )
    trainer.stopped = trainer.stopped or requested > 0
    return None if trainer.stopped else (loss / seen, wrong / seen)


@contextmanager
def _averaged_weights(trainer: Trainer, state: TrainState) -> Iterator[None]:
    """Replace the trained weights with their average in the block, if there is an average."""
    if state.average is None:
        yield
        return
    trained = {name: each.clone() for name, each in state.module.state_dict().items()}
    with trainer.stopping.consistent:
        state.trained = trained
        state.module.load_state_dict(state.average)
    try:
        yield
    finally:
        with trainer.stopping.consistent:
            state.module.load_state_dict(trained)
            state.trained = None
