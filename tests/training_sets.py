"""Small trainings and helpers that the tests of training share."""

import os
import signal
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pipelines.loading.config import CIFAR, LoaderConfig
from pipelines.loading.loader import eval_loader
from pipelines.shards.format import ShardSet, open_shards
from pipelines.shards.remote import open_set
from pipelines.system.process_group import Processes
from pipelines.system.ranks import World
from pipelines.training.checkpoints import Checkpoint, parse_checkpoint
from pipelines.training.recipes import Recipe, StepProgress, TrainConfig, TrainResult, named_recipe
from shard_sets import drawn_images, encoded, write_shards

DIGITS = named_recipe("digits")

N_SHARDS, A_SHARD = 16, 4
"""Number of shards of `write_small_shards`, and of samples in each."""

RECIPE = replace(DIGITS, epochs=2, batch_size=256, dropout=0.2)
"""Five steps per epoch; with dropout, whose random numbers must be reproduced on resume."""


def training(folder: Path, out: Path, **changes: Any) -> TrainConfig:  # noqa: ANN401
    """Return a training on the digits in a folder."""
    recipe = replace(RECIPE, **take_fields(Recipe, changes))
    more = {"preprocess": replace(CIFAR, flip=False), **take_fields(LoaderConfig, changes)}
    loader = LoaderConfig(batch_size=recipe.batch_size, seed=recipe.seed, **more)
    opened = {
        name: open_set(value, cache_dir=None, remote=None) if isinstance(value, ShardSet) else value
        for name, value in changes.items()
    }
    arguments: dict[str, Any] = {
        "out": out,
        "recipe": recipe,
        "loader": loader,
        "train": open_set(folder / "train", cache_dir=None, remote=None),
        "test": open_set(folder / "test", cache_dir=None, remote=None),
    }
    return TrainConfig(**arguments | opened)


def take_fields(config: type, changes: dict[str, Any]) -> dict[str, Any]:
    """Remove the changes that are fields of a dataclass from `changes`, and return them."""
    names = [each.name for each in fields(config) if each.name in changes]
    return {name: changes.pop(name) for name in names}


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the content of a checkpoint."""
    return parse_checkpoint(path.read_bytes(), path)


ALONE = Processes(world=World(rank=0, size=1), device=torch.device("cpu"))


def weights_of(trained: TrainResult) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = read_checkpoint(trained.checkpoint).state_dict
    return state


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name, value in first.items() if not torch.equal(value, second[name])]
    assert not different, (
        f"{len(different)} of {len(first)} tensors differ, such as {different[0]}; after a resume, "
        "tests/test_training_state.py names the field of the state that was not restored"
    )


def stopping_at(step: int, number: int = signal.SIGTERM) -> Any:  # noqa: ANN401
    """Return an on_step callback that sends a signal after a step."""

    def on_step(progress: StepProgress) -> None:
        if progress.step == step:
            os.kill(os.getpid(), number)

    return on_step


def loss_and_error(module: nn.Module, digits: Path) -> tuple[float, float]:
    """Return mean loss and error of a network on the test set, computed in one process."""
    loader = eval_loader(open_shards(digits / "test"), batch_size=100, rank=0, world_size=1)
    loss = wrong = 0.0
    with torch.no_grad():
        for images, labels, present in loader:
            logits = module(images)
            each = functional.cross_entropy(logits, labels, reduction="none")
            loss += float((each * present).sum())
            wrong += float(((logits.argmax(1) != labels) * present).sum())
    return loss / 359, wrong / 359


def write_small_shards(folder: Path) -> Path:
    """Write shards of small images to train and a few to val; return the folder."""
    n = N_SHARDS * A_SHARD
    contents = [encoded(each, "jpg") for each in drawn_images(n, size=(40, 48))]
    write_shards(folder / "train", contents, sizes=[A_SHARD] * N_SHARDS, extension="jpg")
    write_shards(folder / "val", contents[:6], sizes=[4, 2], extension="jpg")
    return folder
