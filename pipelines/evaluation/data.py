"""Finds what lies under a folder: the test set, and trees of pictures beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torchvision
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.evaluation.classes import are_of_imagenet, imagenet_classes
from pipelines.evaluation.labels import is_class_name, match_classes
from pipelines.evaluation.pictures import Pictures, Stored, View, of_files, of_shards
from pipelines.evaluation.request import IMAGENET, Data, TestSet
from pipelines.evaluation.trees import (
    Notices,
    Tree,
    class_folders,
    holds_images,
    list_tree,
)
from pipelines.loading.batches import CIFAR, PreprocessConfig, Triple
from pipelines.loading.batches import IMAGENET as RECIPE
from pipelines.loading.dataset import SampleError, ShardDataset, UnreadableImageError, read_size
from pipelines.loading.mixing_set import open_images, uniform_view
from pipelines.models.outputs import composed
from pipelines.shards.index import MANIFEST_NAME, ShardSet, open_shards
from pipelines.shards.picture_files import read_image_file
from pipelines.shards.sources import class_name, printable

NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "DIGITS"}

OFFICIAL = frozenset({"cifar10", "cifar100"})
"""Kinds of shards for which others distribute corrupted sets, with the same labels."""

PLACES = ("test", "val", "valid", "validation", "dev", "eval", "data/test", ".")

_SMALL = 64
"""Pixels. Pictures of one size up to this are a network's as they are, unless it says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Located:
    """Where a test set is, found without a network and without listing its images.

    root: the folder that the other suites are searched in; name: how their folders begin.
    names: of the classes. shards, or folder: the test set; neither where there is none.
    """

    root: Path
    name: str
    names: tuple[str, ...] = ()
    shards: ShardSet | None = None
    folder: Path | None = None

    @property
    def found(self) -> bool:
        """Whether there is a test set."""
        return self.shards is not None or self.folder is not None


def locate(root: Path, notices: Notices, known: Sequence[str] = ()) -> Located:
    """Find the test set under a folder, or the class folders that the folder itself has.

    Args:
        root: the folder.
        notices: is told of what was ignored, and where the folder itself is the test set.
        known: names of the network's classes, by which class folders are recognized.

    Raises:
        PipelineError: if a manifest is damaged.
        OSError: if a folder cannot be read.
    """
    for place in (root / each for each in PLACES):
        if (place / MANIFEST_NAME).exists():
            shards = open_shards(place)
            name = NAMES.get(shards.kind, shards.name.removesuffix("-test").upper())
            return Located(
                root=root, name=_name_of(shards.classes, name), names=shards.classes, shards=shards
            )
    for place in (root / each for each in PLACES[:-1]):
        names = class_folders(place, notices) if place.is_dir() else []
        if names:
            return _of_folders(root, place, names)
    names = class_folders(root, notices)
    if names and _are_classes(root.resolve().name, names, known):
        above = root.resolve().parent if root.resolve().name in PLACES else root
        beside = f", and the other suites are searched in {above}" if above != root else ""
        notices.say(f"{root} has class folders: it is taken for the test set itself{beside}")
        return _of_folders(above, root, names)
    return Located(root=root, name=IMAGENET)


def _of_folders(root: Path, folder: Path, names: Sequence[str]) -> Located:
    printed = tuple(map(class_name, names))
    name = _name_of(printed, printable(root.resolve().name).upper())
    return Located(root=root, name=name, names=printed, folder=folder)


def _name_of(names: Sequence[str], name: str) -> str:
    return IMAGENET if are_of_imagenet(names) else name


def _are_classes(folder: str, names: Sequence[str], known: Sequence[str]) -> bool:
    """Return whether the folders in a folder of that name are classes, not sets."""
    return (
        folder in PLACES
        or all(map(is_class_name, names))
        or set(map(class_name, names)) <= set(map(composed, known))
    )


def why_no_test_set(root: Path) -> str:
    """Return what to tell where a folder has no test set, with the remedy.

    Raises:
        OSError: if a folder cannot be read.
    """
    for place in (root / each for each in PLACES):
        if place.is_dir() and holds_images(place):
            return (
                f"{place} holds images and no class folders; put the images of each class into a "
                f"folder of its own, as {place}/CLASS/x.jpg"
            )
    return (
        f"{root} has no test/{MANIFEST_NAME} and no val/CLASS/*.jpg; pass by --data the folder "
        "that holds test or val, or make shards of the test set by pixmix-shard"
    )


def find_data(root: Path, said: dict[str, Any], *, cache_dir: Path | None = None) -> Data:
    """Find what a network can be evaluated on.

    The test set: shards in "test", "val", "validation", "data/test" or the folder itself, or there
    a folder of images for each class, as torchvision has them.

    Args:
        root: the folder; or the class folders themselves.
        said: what a checkpoint says of the network, as far as it does: "classes", how many outputs
            it has; "model", "class_names", "crop", "image_size", "evaluation_resize".
        cache_dir: for the decoded images of small sets.

    Raises:
        PipelineError: if there is a test set that does not fit the network, or it cannot be read,
            or what is said of the network does not go together.
    """
    outputs = said.get("classes")
    known = tuple(said.get("class_names", ()))
    if known and outputs is not None and len(known) != outputs:
        raise PipelineError(
            f"the checkpoint names {len(known)} classes and its network has {outputs} outputs; "
            "name another file"
        )
    notices = Notices()
    located = locate(root, notices, known)
    if not located.found:
        missing = why_no_test_set(root)
        if outputs != len(imagenet_classes()) and not are_of_imagenet(known):
            raise PipelineError(missing)
        large = _view_of(said, None) or _usual_view(said)
        return Data(
            root=root, name=IMAGENET, side=large.side, view=large, outputs=outputs,
            classes=known or imagenet_classes(), missing=missing, notices=notices,
        )  # fmt: skip
    shards = located.shards
    pictures: Pictures
    if shards is not None:
        given, where = shards.samples["label"].astype(np.int64), str(shards.location)
        view = _view_of(said, _small_side(shards))
        pictures = _stored(shards, cache_dir) if view is None else of_shards(shards, view)
    else:
        assert located.folder is not None
        tree = list_tree(located.folder, notices)
        given, where = tree.labels, str(tree.folder)
        first = _first_side(tree)
        view = _view_of(said, first if first <= _SMALL else None)
        pictures = of_files(tree.files, view or View(first, first))
    if len(given) == 0:
        raise PipelineError(f"{where} holds no images; make the shards of the test set again")
    labels, classes, official = _labels(given, located, known, outputs, where, notices)
    side = view.side if view is not None else pictures.read(range(1)).shape[1]
    sha256 = None if shards is None else shards.hash
    return Data(
        root=located.root, name=located.name, side=side, view=view, classes=classes,
        outputs=outputs, official=official,
        test=TestSet(pictures=pictures, labels=labels, sha256=sha256),
        notices=notices,
    )  # fmt: skip


def normalization(said: dict[str, Any], data: Data) -> tuple[Triple, Triple]:
    """Return the mean and the standard deviation of a network's input, for pictures in 0..1.

    said: what is said of the network, as of `find_data`; without "mean" and "std" they are those of
    the recipe for CIFAR where pictures are as they are, and else of torchvision's weights of its
    name, or of the recipe for ImageNet.
    """
    usual = CIFAR if data.view is None else _usual(said)
    mean, std = said.get("mean", usual.mean), said.get("std", usual.std)
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _usual(said: dict[str, Any]) -> PreprocessConfig:
    """Return how a network of a name has pictures of any size, unless something else is said.

    As torchvision's first weights of that name: later ones of a ResNet want 232 pixels before the
    crop, and its usual recipe, the paper's too, 256.
    """
    name = said.get("model")
    if name not in torchvision.models.list_models(module=torchvision.models):
        return RECIPE
    weights = next(iter(torchvision.models.get_model_weights(name)))
    wanted = weights.transforms()
    return PreprocessConfig(
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
        prepared = PreprocessConfig(image_size=side, evaluation_resize=resize or None)
    except ValueError as error:
        raise PipelineError(str(error)) from error
    return View(side, prepared.resized_side)


def _small_side(shards: ShardSet) -> int | None:
    """Return the side of a set's pictures if they are small, or None."""
    if len(shards) == 0:
        return None
    try:
        side = max(read_size(ShardDataset(shards).read(0)))
    except SampleError as error:
        raise PipelineError(f"{error}; run pixmix-shard verify") from error
    except UnreadableImageError as error:
        raise PipelineError(f"{shards.location}: {shards.key(0)} {error}") from error
    return side if side <= _SMALL or shards.kind in NAMES else None


def _first_side(tree: Tree) -> int:
    """Return the longer side of a tree's first image."""
    path = tree.files[0]
    try:
        return max(read_size(read_image_file(path)))
    except OSError as error:
        raise PipelineError(
            f"{path} cannot be read: {error.strerror or error}; replace it with a whole file, or "
            "remove it"
        ) from error
    except UnreadableImageError as error:
        raise PipelineError(
            f"{path} {error}; replace it with a whole file, or remove it"
        ) from error


def _stored(shards: ShardSet, cache_dir: Path | None) -> Stored:
    pictures = uniform_view(open_images(shards, cache_dir=cache_dir))
    if pictures is None:
        raise PipelineError(
            f"the pictures of {shards.location} are of several sizes, and the network was trained "
            "on those of one; name the data that it was trained on"
        )
    return Stored(pictures)


def _labels(
    given: NDArray[np.int64],
    located: Located,
    known: tuple[str, ...],
    outputs: int | None,
    where: str,
    notices: Notices,
) -> tuple[NDArray[np.int64], tuple[str, ...], NDArray[np.int64] | None]:
    """Return the outputs for a set's labels, the classes by output, the outputs of CIFAR's."""
    if (given < 0).any():
        raise PipelineError(f"{where} has images without a class; evaluate a set with classes")
    most = int(given.max(initial=-1)) + 1
    if not located.names:
        if outputs is not None and most > outputs:
            raise PipelineError(
                f"{where} has labels up to {most - 1}, and the network has {outputs} outputs; name "
                "the data that it was trained on"
            )
        return given, known, None
    if most > len(located.names):
        raise PipelineError(
            f"{where} has labels up to {most - 1} and names of {len(located.names)} classes; make "
            "the shards again"
        )
    matched = match_classes(located.names, known, outputs, where)
    if matched.how == "values" and outputs is not None:
        notices.say(
            f"{where}: classes are numbers, and each is taken for the output of that number"
        )
    shards = located.shards
    official = matched.outputs if shards is not None and shards.kind in OFFICIAL else None
    return matched.outputs[given], matched.classes, official


def open_tree(
    folder: Path, view: View, data: Data, *, remedy: str = "unpack the set again"
) -> tuple[Pictures, NDArray[np.int64], NDArray[np.int64]]:
    """Open a folder with a folder of images for each class.

    Args:
        folder: as fog/3 of ImageNet-C.
        view: how its images become the network's.
        data: of the network, whose classes they are.
        remedy: what to do about an image that cannot be read.

    Returns:
        The images; the output for each; and the outputs for the folders, sorted by their names.

    Raises:
        PipelineError: if there are none, or of classes that are none of the network's.
    """
    tree = list_tree(folder, data.notices)
    outputs = match_classes(tree.classes, data.classes, data.outputs, str(folder)).outputs
    return of_files(tree.files, view, remedy=remedy), outputs[tree.labels], outputs
