"""Finds what lies under a folder: the test set, and trees of pictures beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.evaluation.classes import are_of_imagenet, imagenet_classes
from pipelines.evaluation.pictures import Pictures, Stored, View, of_shards, of_source
from pipelines.evaluation.request import IMAGENET, Data, TestSet
from pipelines.loading.decode import UnreadablePictureError, read_size
from pipelines.loading.mixing_set import open_pictures, uniform_view
from pipelines.loading.preparation import IMAGENET as RECIPE
from pipelines.loading.samples import ShardReader
from pipelines.models.outputs import outputs_of
from pipelines.shards.index import MANIFEST_NAME, ShardSet, open_shards
from pipelines.shards.sources import ImageFolderSource

NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "DIGITS"}

_PLACES = ("test", "val", "validation", "data/test", ".")

_SMALL = 64
"""Pixels. Pictures of one size up to this are a network's as they are, unless it says otherwise."""


def find_data(
    root: Path, said: dict[str, Any], *, cache_dir: Path | None = None, jobs: int | None = None
) -> Data:
    """Find what a network can be evaluated on.

    The test set: shards in "test", "val", "validation", "data/test" or the folder itself, or there
    a folder of pictures for each class, as torchvision has them.

    Args:
        root: the folder.
        said: what a checkpoint says of the network, as far as it does: "classes", how many outputs
            it has; "class_names", "crop", "image_size", "evaluation_resize".
        cache_dir: for the decoded pictures of small sets.
        jobs: threads that decode; None: one a core.

    Raises:
        PipelineError: if there is a test set that does not fit the network, or it cannot be read.
    """
    outputs = said.get("classes")
    view = _view_of(said)
    known = tuple(said.get("class_names", ()))
    shards = _find_shards(root)
    folder = None if shards is not None else _find_folders(root)
    if shards is None and folder is None:
        missing = (
            f"{root} has no test/{MANIFEST_NAME} and no val/CLASS/*.jpg; make shards of the test "
            f"set, as by pixmix-shard cifar10 DOWNLOADS {root}"
        )
        if outputs != len(imagenet_classes()) and not are_of_imagenet(known):
            raise PipelineError(missing)
        view = view or View(RECIPE.image_size or 0, RECIPE.resized_side)
        return Data(
            root=root, name=IMAGENET, side=view.side, view=view,
            classes=known or imagenet_classes(), missing=missing,
        )  # fmt: skip
    pictures: Pictures
    if shards is not None:
        names, given, where = shards.classes, shards.samples["label"].astype(np.int64), str(root)
        if view is None and not _are_small(shards, said):
            view = View(RECIPE.image_size or 0, RECIPE.resized_side)
        pictures = (
            _stored(shards, cache_dir) if view is None else of_shards(shards, view, jobs=jobs)
        )
        name = NAMES.get(shards.kind, shards.name.removesuffix("-test").upper())
    else:
        assert folder is not None
        source = ImageFolderSource(folder=folder)
        names, where, name = tuple(source.classes()), str(folder), root.resolve().name.upper()
        small = None if view is not None else _small_side(source, said)
        if small is None:
            view = view or View(RECIPE.image_size or 0, RECIPE.resized_side)
        seen = View(small, small) if small is not None else view
        assert seen is not None
        pictures, given = of_source(source, seen, jobs=jobs)
    if are_of_imagenet(names):
        name = IMAGENET
        known = known or (imagenet_classes() if outputs == len(imagenet_classes()) else ())
    labels = _labels(given, names, known, outputs, name, where)
    classes = known or (tuple(names) if outputs is None or len(names) == outputs else ())
    side = view.side if view is not None else pictures.read(range(1)).shape[1]
    test = TestSet(pictures=pictures, labels=labels)
    return Data(root=root, name=name, side=side, view=view, classes=classes, test=test)


def _view_of(said: dict[str, Any]) -> View | None:
    """Return the view that a checkpoint tells of, or None: as they are, or not known."""
    if said.get("crop") != "resized":
        return None
    return View(int(said["image_size"]), int(said["evaluation_resize"]))


def _find_shards(root: Path) -> ShardSet | None:
    place = next((root / each for each in _PLACES if (root / each / MANIFEST_NAME).exists()), None)
    return None if place is None else open_shards(place)


def _find_folders(root: Path) -> Path | None:
    """Return a folder of classes: as val/n01440764/ILSVRC2012_val_00000293.JPEG."""
    for place in (root / each for each in _PLACES[:-1]):
        if place.is_dir() and any(entry.is_dir() for entry in place.iterdir()):
            return place
    return None


def _are_small(shards: ShardSet, said: dict[str, Any]) -> bool:
    """Return whether pictures are a network's as they are."""
    if "crop" in said:
        return bool(said["crop"] == "padded")
    if shards.kind in NAMES:
        return True
    try:
        return len(shards) > 0 and max(read_size(ShardReader(shards).read(0))) <= _SMALL
    except UnreadablePictureError as error:
        raise PipelineError(f"{shards.location}: {shards.key(0)} {error}") from error


def _small_side(source: ImageFolderSource, said: dict[str, Any]) -> int | None:
    """Return the side of a folder's pictures if they are a network's as they are, or None."""
    first = next(iter(source.items()), None)
    if first is None or said.get("crop", "padded") != "padded":
        return None
    try:
        side = max(read_size(source.read(first.place)))
    except UnreadablePictureError as error:
        raise PipelineError(f"{first.name} {error}") from error
    return side if "crop" in said or side <= _SMALL else None


def _stored(shards: ShardSet, cache_dir: Path | None) -> Stored:
    pictures = uniform_view(open_pictures(shards, cache_dir=cache_dir))
    if pictures is None:
        raise PipelineError(
            f"the pictures of {shards.location} are of several sizes, and the network was trained "
            "on those of one; name the data that it was trained on"
        )
    return Stored(pictures)


def _labels(
    given: NDArray[np.int64],
    names: Sequence[str],
    known: Sequence[str],
    outputs: int | None,
    name: str,
    where: str,
) -> NDArray[np.int64]:
    """Return the outputs of the network for labels of a set."""
    n = max(len(names), int(given.max(initial=-1)) + 1)
    if outputs is not None and n > outputs:
        raise PipelineError(
            f"the network tells {outputs} classes apart, and {name} has {n}; name the data that it "
            "was trained on"
        )
    if (given < 0).any():
        raise PipelineError(f"{where} has pictures without a class; evaluate a set with classes")
    if names and known:
        return outputs_of(names, known, where)[given]
    return given


def open_tree(
    folder: Path, view: View, classes: Sequence[str], *, jobs: int | None = None
) -> tuple[Pictures, NDArray[np.int64], NDArray[np.int64]]:
    """Open a folder with a folder of pictures for each class.

    Args:
        folder: as val/, or fog/3 of ImageNet-C.
        view: how its pictures become the network's.
        classes: of the network, by output.
        jobs: threads that decode; None: one a core.

    Returns:
        The pictures; the output for each; and the outputs for the folders, sorted by their names.

    Raises:
        PipelineError: if there are none, or of classes that are none of the network's.
    """
    source = ImageFolderSource(folder=folder)
    outputs = outputs_of(list(source.classes()), classes, str(folder))
    pictures, given = of_source(source, view, jobs=jobs)
    return pictures, outputs[given], outputs
