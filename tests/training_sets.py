"""A small training for tests: digits, a network of a few thousand weights."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pipelines.loading.batches import CIFAR, LoaderConfig
from pipelines.shards.format import ShardSet
from pipelines.shards.remote import open_set
from pipelines.training.checkpoints import Checkpoint, parse_checkpoint
from pipelines.training.recipes import Recipe, TrainConfig, named_recipe

DIGITS = named_recipe("digits")

RECIPE = replace(DIGITS, epochs=2, batch_size=256, dropout=0.2)
"""Five steps an epoch; with dropout, whose random numbers must come again."""


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
    """The content of a checkpoint of pixmix-train."""
    return parse_checkpoint(path.read_bytes(), path)
