"""Finds the test set under a folder."""

from pathlib import Path

import numpy as np

from pipelines.errors import PipelineError
from pipelines.evaluation.suites import TestSet
from pipelines.loading.mixing_set import open_pictures, uniform_view
from pipelines.shards.index import MANIFEST_NAME, open_shards

NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "DIGITS"}

_PLACES = ("test", "val", "validation", "data/test", ".")


def find_test_set(root: Path, *, cache_dir: Path | None = None) -> TestSet:
    """Open the test set of a folder: shards in "test", "val", "data/test" or the folder itself.

    Raises:
        PipelineError: if there is none, or its pictures are of several sizes.
    """
    place = next((root / each for each in _PLACES if (root / each / MANIFEST_NAME).exists()), None)
    if place is None:
        raise PipelineError(
            f"{root} has no test/{MANIFEST_NAME}; make shards of the test set, as by pixmix-shard "
            f"cifar10 DOWNLOADS {root}"
        )
    shards = open_shards(place)
    pictures = uniform_view(open_pictures(shards, cache_dir=cache_dir))
    if pictures is None:
        raise PipelineError(
            f"the pictures of {place} are of several sizes; the suites here are for those of one, "
            "as CIFAR's"
        )
    name = NAMES.get(shards.kind, shards.name.removesuffix("-test").upper())
    return TestSet(name=name, pictures=pictures, labels=shards.samples["label"].astype(np.int64))
