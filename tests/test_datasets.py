"""The table of datasets, and the code that looks up datasets by name."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pipelines.cli import shard, train
from pipelines.datasets import DATASETS, dataset_named, dataset_of_kind, dataset_titled
from pipelines.errors import PipelineError
from pipelines.shards.archives import READERS, SPLITS, Arrays, read_split
from pipelines.training.recipes import RECIPES


def test_recipes_and_readers_of_the_table_exist() -> None:
    assert {row.recipe for row in DATASETS.values()} == set(RECIPES)
    assert {row.reader for row in DATASETS.values()} - {None} == set(READERS)


def test_each_dataset_has_its_commands() -> None:
    assert list(train.main.commands) == list(DATASETS)
    made = {name for name, row in DATASETS.items() if row.reader is not None}
    assert made == set(shard.main.commands) & set(DATASETS)


def test_an_unknown_dataset_is_rejected_with_the_list_of_names() -> None:
    with pytest.raises(PipelineError, match=r"'cifar11'.*cifar10, cifar100, imagenet"):
        dataset_named("cifar11")
    with pytest.raises(PipelineError, match="'cifar11'"):
        read_split("cifar11", None, "test")
    result = CliRunner().invoke(train.main, ["cifar11"])
    assert result.exit_code == 2


def test_datasets_are_found_by_the_kind_of_their_shards_and_by_their_title() -> None:
    for name, row in DATASETS.items():
        assert dataset_of_kind(name) == (row if row.reader else None)
        assert dataset_titled(row.title) is row
    for kind in ("imagefolder", "mixing", "tars"):
        assert dataset_of_kind(kind) is None


def test_names_titles_and_folders_of_datasets_are_unique() -> None:
    for of in ("name", "title"):
        assert len({getattr(row, of) for row in DATASETS.values()}) == len(DATASETS)
    folders = [row.folder for row in DATASETS.values() if row.folder]
    assert len(set(folders)) == len(folders)


def test_the_digits_have_the_number_of_classes_in_the_table() -> None:
    pytest.importorskip("sklearn")
    for split, n in zip(SPLITS, (1438, 359), strict=True):
        arrays = read_split("digits", None, split)
        assert arrays.images.shape == (n, 32, 32)
        assert set(arrays.labels.tolist()) == set(range(10))
        assert len(arrays.classes) == DATASETS["digits"].n_classes


def test_a_missing_array_ends_with_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 4, 4), np.uint8))

    def read(*_: object) -> Arrays:
        with np.load(tmp_path / "a.npz") as file:
            return Arrays(images=file["images"], labels=file["labels"], classes=("a",))

    monkeypatch.setitem(READERS, "digits", read)
    read_split.cache_clear()
    with pytest.raises(PipelineError, match=r"has no array .*labels.* for the split train"):
        read_split("digits", tmp_path / "a.npz", "train")
    read_split.cache_clear()


def test_a_label_that_is_not_a_class_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((3, 4, 4), np.uint8)
    found = Arrays(images=images, labels=np.array([1, 2, 3]), classes=("a", "b", "c"))
    monkeypatch.setitem(READERS, "digits", lambda *_: found)
    read_split.cache_clear()
    with pytest.raises(PipelineError, match="1 to 3"):
        read_split("digits", None, "train")
    read_split.cache_clear()
