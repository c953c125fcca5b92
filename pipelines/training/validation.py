"""Evaluation during training: mean loss and error over a dataset, each sample once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch.nn import functional

from pipelines.loading.loader import EvalLoader
from pipelines.training.state import TrainState
from pipelines.training.step import Trainer, autocast, channels_last


def evaluate(trainer: Trainer, name: str) -> tuple[float, float] | None:
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
            watchdog.moved()
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
