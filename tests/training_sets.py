"""A small training for tests: digits, a network of a few thousand weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.loading.batches import CIFAR
from pipelines.shards.format import ShardSet
from pipelines.shards.remote import open_set
from pipelines.training.checkpoints import Checkpoint, parse_checkpoint
from pipelines.training.recipes import TrainConfig, named_recipe

DIGITS = named_recipe("digits")

RECIPE = replace(DIGITS, epochs=2, batch_size=256, dropout=0.2)
"""Five steps an epoch; with dropout, whose random numbers must come again."""


def training(folder: Path, out: Path, **changes: Any) -> TrainConfig:  # noqa: ANN401
    """Return a training on the digits in a folder."""
    recipe_fields = set(RECIPE.__dataclass_fields__)
    recipe = replace(RECIPE, **{k: v for k, v in changes.items() if k in recipe_fields})
    more = {
        name: open_set(value, cache_dir=None, remote=None) if isinstance(value, ShardSet) else value
        for name, value in changes.items()
        if name not in recipe_fields
    }
    arguments: dict[str, Any] = {
        "out": out,
        "recipe": recipe,
        "preprocess": replace(CIFAR, flip=False),
        "train": open_set(folder / "train", cache_dir=None, remote=None),
        "test": open_set(folder / "test", cache_dir=None, remote=None),
    }
    return TrainConfig(**arguments | more)


def read_checkpoint(path: Path) -> Checkpoint:
    """The content of a checkpoint of pixmix-train."""
    return parse_checkpoint(path.read_bytes(), path)
