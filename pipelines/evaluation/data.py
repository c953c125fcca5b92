"""Finds what lies under a folder: the test set, and trees of pictures beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torchvision
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.evaluation.classes import are_of_imagenet, imagenet_classes
from pipelines.evaluation.pictures import Pictures, Stored, View, of_shards, of_source
from pipelines.evaluation.request import IMAGENET, Data, TestSet
from pipelines.loading.decode import UnreadablePictureError, read_size
from pipelines.loading.mixing_set import open_pictures, uniform_view
from pipelines.loading.preparation import CIFAR, Preparation, Triple
from pipelines.loading.preparation import IMAGENET as RECIPE
from pipelines.loading.samples import BadSampleError, ShardReader
from pipelines.models.outputs import outputs_of
from pipelines.shards.index import MANIFEST_NAME, ShardSet, open_shards
from pipelines.shards.sources import ImageFolderSource

NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "DIGITS"}

_PLACES = ("test", "val", "valid", "validation", "dev", "eval", "data/test", ".")

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
            it has; "model", "class_names", "crop", "image_size", "evaluation_resize".
        cache_dir: for the decoded pictures of small sets.
        jobs: threads that decode; None: one a core.

    Raises:
        PipelineError: if there is a test set that does not fit the network, or it cannot be read,
            or what is said of the network does not go together.
    """
    outputs = said.get("classes")
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
        large = _view_of(said, None) or _usual_view(said)
        return Data(
            root=root, name=IMAGENET, side=large.side, view=large,
            classes=known or imagenet_classes(), missing=missing,
        )  # fmt: skip
    pictures: Pictures
    if shards is not None:
        names, given, where = shards.classes, shards.samples["label"].astype(np.int64), str(root)
        view = _view_of(said, _small_side(shards))
        pictures = (
            _stored(shards, cache_dir) if view is None else of_shards(shards, view, jobs=jobs)
        )
        name = NAMES.get(shards.kind, shards.name.removesuffix("-test").upper())
    else:
        assert folder is not None
        source = ImageFolderSource(folder=folder)
        names, where, name = tuple(source.classes()), str(folder), root.resolve().name.upper()
        first = _first_side(source)
        view = _view_of(said, first if first <= _SMALL else None)
        pictures, given = of_source(source, view or View(first, first), jobs=jobs)
    if are_of_imagenet(names):
        name = IMAGENET
        known = known or (imagenet_classes() if outputs == len(imagenet_classes()) else ())
    labels = _labels(given, names, known, outputs, name, where)
    classes = known or (tuple(names) if outputs is None or len(names) == outputs else ())
    side = view.side if view is not None else pictures.read(range(1)).shape[1]
    test = TestSet(pictures=pictures, labels=labels)
    return Data(root=root, name=name, side=side, view=view, classes=classes, test=test)


def normalization(said: dict[str, Any], data: Data) -> tuple[Triple, Triple]:
    """Return the mean and the standard deviation of a network's input, for pictures in 0..1.

    said: what is said of the network, as of `find_data`; without "mean" and "std" they are those of
    the recipe for CIFAR where pictures are as they are, and else of torchvision's weights of its
    name, or of the recipe for ImageNet.
    """
    usual = CIFAR if data.view is None else _usual(said)
    mean, std = said.get("mean", usual.mean), said.get("std", usual.std)
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _usual(said: dict[str, Any]) -> Preparation:
    """Return how a network of a name has pictures of any size, unless something else is said.

    As torchvision's first weights of that name: later ones of a ResNet want 232 pixels before the
    crop, and its usual recipe, the paper's too, 256.
    """
    name = said.get("model")
    if name not in torchvision.models.list_models(module=torchvision.models):
        return RECIPE
    weights = next(iter(torchvision.models.get_model_weights(name)))
    wanted = weights.transforms()
    return Preparation(
        image_size=wanted.crop_size[0],
        evaluation_resize=wanted.resize_size[0],
        mean=tuple(wanted.mean),
        std=tuple(wanted.std),
    )


def _usual_view(said: dict[str, Any]) -> View:
    usual = _usual(said)
    return View(usual.image_size or 0, usual.resized_side)


def _view_of(said: dict[str, Any], small: int | None) -> View | None:
    """Return the view of a network, or None: pictures as they are.

    small: the side of pictures that are a network's as they are unless something else is said, or
    None; of such, nothing is cut off where "image_size" is said without "evaluation_resize".
    """
    crop = said.get("crop", "resized" if small is None else "padded")
    if crop == "padded":
        return None
    if crop != "resized" or "crop" not in said:
        return _usual_view(said)
    side, resize = said.get("image_size"), said.get("evaluation_resize")
    if not side:
        raise PipelineError(
            "the checkpoint says that crop is 'resized', and no image_size; name another file"
        )
    if not resize and small is not None:
        return None if side == small else View(side, side)
    try:
        prepared = Preparation(image_size=side, evaluation_resize=resize or None)
    except ValueError as error:
        raise PipelineError(str(error)) from error
    return View(side, prepared.resized_side)


def _find_shards(root: Path) -> ShardSet | None:
    place = next((root / each for each in _PLACES if (root / each / MANIFEST_NAME).exists()), None)
    return None if place is None else open_shards(place)


def _find_folders(root: Path) -> Path | None:
    """Return a folder of classes: as val/n01440764/ILSVRC2012_val_00000293.JPEG."""
    for place in (root / each for each in _PLACES[:-1]):
        if place.is_dir() and any(entry.is_dir() for entry in place.iterdir()):
            return place
    return None


def _small_side(shards: ShardSet) -> int | None:
    """Return the side of a set's pictures if they are small, or None."""
    if len(shards) == 0:
        return None
    try:
        side = max(read_size(ShardReader(shards).read(0)))
    except BadSampleError as error:
        raise PipelineError(f"{error}; run pixmix-shard verify") from error
    except UnreadablePictureError as error:
        raise PipelineError(f"{shards.location}: {shards.key(0)} {error}") from error
    return side if side <= _SMALL or shards.kind in NAMES else None


def _first_side(source: ImageFolderSource) -> int:
    """Return the side of a folder's first picture; 0 without one."""
    first = next(iter(source.items()), None)
    if first is None:
        return 0
    try:
        return max(read_size(source.read(first.place)))
    except UnreadablePictureError as error:
        raise PipelineError(f"{first.name} {error}") from error


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
