"""The data of a training: finding shards, and matching classes to outputs."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pipelines.errors import PipelineError
from pipelines.shards.format import ShardSet, open_shards
from pipelines.training.data import open_training_data, outputs_for
from pipelines.training.loop import train
from training_sets import ALONE, training

pytestmark = pytest.mark.usefixtures("one_thread")


def with_classes(shards: ShardSet, names: Sequence[str]) -> ShardSet:
    """Return the same images with their classes in another order."""
    positions = np.array([names.index(name) for name in shards.classes])
    samples = shards.samples.copy()
    samples["label"] = positions[samples["label"]]
    return replace(shards, samples=samples, classes=tuple(names))


def test_a_test_set_is_matched_by_class_names(digits: Path, tmp_path: Path) -> None:
    test = open_shards(digits / "test")
    reversed_classes = with_classes(test, list(test.classes)[::-1])
    assert not np.array_equal(reversed_classes.samples["label"], test.samples["label"])
    first, second = (
        train(training(digits, tmp_path / name, epochs=1, test=each), ALONE).history
        for name, each in (("original", test), ("reversed", reversed_classes))
    )
    assert first == second
    more = replace(test, classes=(*test.classes[:-1], "another"))
    with pytest.raises(PipelineError, match="has a class 'another'"):
        train(training(digits, tmp_path / "more", test=more), ALONE)


def test_a_test_set_without_class_names_must_not_have_more_classes(digits: Path) -> None:
    test = open_shards(digits / "test")
    nameless = replace(test, classes=())
    assert outputs_for(nameless, test.classes, 10) is None
    with pytest.raises(PipelineError, match="has 10 classes and the training set has 9"):
        outputs_for(nameless, test.classes[:9], 9)
    samples = test.samples.copy()
    samples["label"] = -1
    with pytest.raises(PipelineError, match="has images without a class"):
        outputs_for(replace(test, samples=samples), test.classes, 10)


def test_shards_of_another_dataset_or_without_classes_are_rejected(
    digits: Path, tmp_path: Path
) -> None:
    def nothing(_done: int, _total: int) -> None: ...

    with pytest.raises(PipelineError, match="is digits and not cifar10"):
        open_training_data("cifar10", digits, tmp_path, nothing)
    assert open_training_data("folder", digits, tmp_path, nothing).test is not None
    from PIL import Image

    from pipelines.cli.shard import main as shard

    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "images" / "0.png")
    made = ["mixing", str(tmp_path / "images"), str(tmp_path / "mixing"), "--jobs", "1"]
    assert CliRunner().invoke(shard, made).exit_code == 0
    with pytest.raises(PipelineError, match="has images without a class, as a mixing set has"):
        open_training_data("folder", tmp_path / "mixing", tmp_path, nothing)


def test_an_error_names_shards_one_level_down(digits: Path, tmp_path: Path) -> None:
    def nothing(_done: int, _total: int) -> None: ...

    for name in ("digits", "folder"):
        shutil.copytree(digits, tmp_path / "shards" / name)
    shards = tmp_path / "shards"
    for dataset in ("digits", "folder"):
        with pytest.raises(PipelineError) as caught:
            open_training_data(dataset, shards, tmp_path / "made", nothing)  # type: ignore[arg-type]
        assert f"has no train/manifest.json, but {shards / dataset} has; use --data" in str(
            caught.value
        )
    # Neither of two folders with other names is suggested.
    with pytest.raises(PipelineError, match="make shards of your images first"):
        open_training_data("imagenet", shards, tmp_path / "made", nothing)
    with pytest.raises(PipelineError, match="cifar-10-python"):
        open_training_data("cifar10", shards, tmp_path / "made", nothing)
    shutil.move(shards / "folder", shards / "cifar10")
    with pytest.raises(PipelineError, match="/shards/cifar10 has; use --data"):
        open_training_data("cifar10", shards, tmp_path / "made", nothing)
    assert not (tmp_path / "made").exists()
