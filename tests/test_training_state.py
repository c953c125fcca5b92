"""The state of a training is saved and loaded field by field."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from pipelines.shards.remote import open_set
from pipelines.training.checkpoints import Checkpoint, find_checkpoints
from pipelines.training.loop import train
from pipelines.training.recipes import StepProgress, TrainConfig
from pipelines.training.state import TrainState, open_state
from training_sets import ALONE, read_checkpoint, training

VARIANTS: dict[str, dict[str, Any]] = {
    "sgd, averaged": {"ema_decay": 0.9},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01},
    "float16": {"precision": "float16"},
}


def differences(first: Any, second: Any, name: str) -> list[str]:  # noqa: ANN401
    """Return the names of the fields, tensors and numbers in which two values differ."""
    if isinstance(first, msgspec.Struct):
        first, second = msgspec.structs.asdict(first), msgspec.structs.asdict(second)
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        inner = [differences(first[key], second[key], f"{name}[{key!r}]") for key in first]
        return [each for found in inner for each in found]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if torch.equal(first, second) else [name]
    return [] if first == second else [name]


def fields_that_differ(first: Checkpoint, second: Checkpoint) -> dict[str, str]:
    """Return the fields in which two checkpoints differ, each with its first difference."""
    found = {}
    for field in Checkpoint.__struct_fields__:
        one, other = getattr(first, field), getattr(second, field)
        if field == "optimizer":
            # Learning rates follow from recipe and step.
            one, other = one["state"], other["state"]
        places = differences(one, other, field)
        if places:
            found[field] = f"{places[0]}, one of {len(places)}"
    return found


def stop_at_7(progress: StepProgress) -> None:
    if progress.step == 7:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("variant", VARIANTS)
def test_load_restores_each_field_that_save_writes(
    digits: Path, tmp_path: Path, variant: str
) -> None:
    config: TrainConfig = training(
        digits,
        tmp_path / "run",
        model="networks:linear",
        dropout=0.0,
        validation=open_set(digits / "test", cache_dir=None, remote=None),
        **VARIANTS[variant],
    )
    # Stop in the middle of the second epoch.
    train(config, ALONE, stop_at_7)
    saved = read_checkpoint(find_checkpoints(config.out)[-1])
    fresh = TrainState(config, ALONE, initialize=True).save()
    changed = {"state_dict", "optimizer", "loader", "step", "history", "sums", "best"}
    more = {"sgd, averaged": {"current"}, "float16": {"scaler"}}.get(variant, set())
    assert fields_that_differ(saved, fresh).keys() == changed | more
    loaded = open_state(replace(config, resume=True), ALONE).save()
    lost = fields_that_differ(saved, loaded)
    assert not lost, f"TrainState.load does not restore what TrainState.save wrote: {lost}"


@pytest.mark.parametrize(("field", "value"), [("batch_size", 8), ("seed", 1)])
def test_the_loader_of_a_config_must_have_batch_size_and_seed_of_the_recipe(
    digits: Path, tmp_path: Path, field: str, value: int
) -> None:
    config = training(digits, tmp_path / "run")
    with pytest.raises(ValueError, match=f"{field} is .* in the recipe and {value} in the loader"):
        replace(config, loader=replace(config.loader, **{field: value}))
    with pytest.raises(ValueError, match="no preprocess"):
        replace(config, loader=replace(config.loader, preprocess=None))
