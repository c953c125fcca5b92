"""Finds what lies under a folder: the test set, and the datasets beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets import dataset_of_kind
from pipelines.errors import PipelineError
from pipelines.evaluation.folders import (
    IMAGENET,
    MakeCRecord,
    MissingDataError,
    Notices,
    Tree,
    are_imagenet_classes,
    find_suite_folder,
    holds_images,
    imagenet_classes,
    is_class_name,
    list_tree,
    match_classes,
    unreadable,
)
from pipelines.evaluation.images import (
    ArrayImages,
    DecodedImages,
    Images,
    ResizeCrop,
    file_images,
    shard_images,
)
from pipelines.loading.config import CIFAR, PreprocessConfig, Triple
from pipelines.loading.config import IMAGENET as RECIPE
from pipelines.loading.dataset import SampleError, ShardDataset, read_size
from pipelines.loading.mixing_set import open_images, uniform_view
from pipelines.models.registry import default_input, normalize_name
from pipelines.shards.format import MANIFEST_NAME, ShardSet, open_shards
from pipelines.shards.images import DecodeError, class_folders, read_image_file
from pipelines.shards.sources import class_name
from pipelines.system.files import printable

TEST_FOLDERS = ("test", "val", "valid", "validation", "dev", "eval", "data/test", ".")

_SMALL = 64
"""Pixels. Images of one size up to this are not resized, unless the metadata say so."""


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """Images that were not trained on.

    images: the images. labels: (n,), outputs of the network. sha256: of the manifest of shards;
    None for folders of images.
    """

    __test__ = False

    images: Images
    labels: NDArray[np.int64]
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """What lies under a folder, as a network sees it.

    root: the folder.
    name: as "CIFAR-10": how folders beside the test set begin.
    side: of the network's images, pixels.
    transform: the resize and crop; None where all images have the network's size, as CIFAR's.
    classes: names by output, or nothing where they are not known.
    outputs: of the network, or None without a network.
    official: (classes,) the output for each of CIFAR's labels, where the test set is CIFAR's.
    test: the test set, or None where there is none; missing: why not, then.
    notices: messages beside the metrics.
    """

    root: Path
    name: str
    side: int
    transform: ResizeCrop | None
    classes: tuple[str, ...] = ()
    outputs: int | None = None
    official: NDArray[np.int64] | None = None
    test: TestSet | None = None
    missing: str = ""
    notices: Notices = field(default_factory=Notices)

    @property
    def resizing_transform(self) -> ResizeCrop:
        """The transform of images from elsewhere, which are resized to CIFAR's size, too."""
        return self.transform or ResizeCrop(self.side, self.side)

    def require_test(self) -> TestSet:
        """Return the test set.

        Raises:
            MissingDataError: if there is none.
        """
        if self.test is None:
            raise MissingDataError(self.missing)
        return self.test

    def find_suite_folder(self, suite: str) -> tuple[Path, MakeCRecord | None]:
        """Return the folder of a suite's dataset; see `folders.find_suite_folder`."""
        return find_suite_folder(self.root, self.name, suite, self.notices)


@dataclass(frozen=True, kw_only=True)
class TestSetLocation:
    """Where a test set is, found without a network and without listing its images.

    root: the folder in which the other suites are searched; name: how their folders begin.
    names: of the classes. shards, or folder: the test set; both None where there is none.
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


def locate_test_set(root: Path, notices: Notices, known: Sequence[str] = ()) -> TestSetLocation:
    """Find the test set under a folder, or the class folders that the folder itself has.

    Args:
        root: the folder.
        notices: takes what is ignored, and whether the folder itself is the test set.
        known: names of the network's classes, by which class folders are recognized.

    Raises:
        PipelineError: if a manifest is damaged.
        OSError: if a folder cannot be read.
    """
    for place in (root / each for each in TEST_FOLDERS):
        if (place / MANIFEST_NAME).exists():
            shards = open_shards(place)
            dataset = dataset_of_kind(shards.kind)
            name = dataset.title if dataset else shards.name.removesuffix("-test").upper()
            return TestSetLocation(
                root=root, name=_name_of(shards.classes, name), names=shards.classes, shards=shards
            )
    for place in (root / each for each in TEST_FOLDERS[:-1]):
        names = class_folders(place, ignored=notices.ignored) if place.is_dir() else []
        if names:
            return _of_folders(root, place, names)
    names = class_folders(root, ignored=notices.ignored)
    if names and _are_classes(root.resolve().name, names, known):
        above = root.resolve().parent if root.resolve().name in TEST_FOLDERS else root
        beside = f", and the other suites are searched in {above}" if above != root else ""
        notices.add(f"{root} has class folders: it is taken for the test set itself{beside}")
        return _of_folders(above, root, names)
    return TestSetLocation(root=root, name=IMAGENET)


def _of_folders(root: Path, folder: Path, names: Sequence[str]) -> TestSetLocation:
    printed = tuple(map(class_name, names))
    name = _name_of(printed, printable(root.resolve().name).upper())
    return TestSetLocation(root=root, name=name, names=printed, folder=folder)


def _name_of(names: Sequence[str], name: str) -> str:
    return IMAGENET if are_imagenet_classes(names) else name


def _are_classes(folder: str, names: Sequence[str], known: Sequence[str]) -> bool:
    """Return whether the folders in a folder of that name are classes, not sets."""
    return (
        folder in TEST_FOLDERS
        or all(map(is_class_name, names))
        or set(map(class_name, names)) <= set(map(normalize_name, known))
    )


def why_no_test_set(root: Path) -> str:
    """Return why a folder has no test set, with the remedy.

    Raises:
        OSError: if a folder cannot be read.
    """
    for place in (root / each for each in TEST_FOLDERS):
        if place.is_dir() and holds_images(place):
            return (
                f"{place} holds images and no class folders; put the images of each class into a "
                f"folder of its own, as {place}/CLASS/x.jpg"
            )
    return (
        f"{root} has no test/{MANIFEST_NAME} and no val/CLASS/*.jpg; pass by --data the folder "
        "that holds test or val, or make shards of the test set by pixmix-shard"
    )


def open_evaluation_data(
    root: Path, metadata: dict[str, Any], *, cache_dir: Path | None = None
) -> EvaluationData:
    """Find what a network can be evaluated on.

    The test set: shards in "test", "val", "validation", "data/test" or the folder itself, or there
    a folder of images for each class, as torchvision has them.

    Args:
        root: the folder; or the class folders themselves.
        metadata: of the network: "classes", its number of outputs; "model", "class_names", "crop",
            "image_size", "evaluation_resize"; each may be absent.
        cache_dir: for the decoded images of small sets.

    Raises:
        PipelineError: if there is a test set that does not fit the network, or it cannot be read,
            or the metadata contradict themselves.
    """
    outputs = metadata.get("classes")
    known = tuple(metadata.get("class_names", ()))
    if known and outputs is not None and len(known) != outputs:
        raise PipelineError(
            f"the checkpoint names {len(known)} classes and its network has {outputs} outputs; "
            "name another file"
        )
    notices = Notices()
    located = locate_test_set(root, notices, known)
    if not located.found:
        missing = why_no_test_set(root)
        if outputs != len(imagenet_classes()) and not are_imagenet_classes(known):
            raise PipelineError(missing)
        large = _transform_of(metadata, None) or _default_transform(metadata)
        return EvaluationData(
            root=root, name=IMAGENET, side=large.side, transform=large, outputs=outputs,
            classes=known or imagenet_classes(), missing=missing, notices=notices,
        )  # fmt: skip
    shards = located.shards
    images: Images
    if shards is not None:
        given, where = shards.samples["label"].astype(np.int64), str(shards.location)
        transform = _transform_of(metadata, _small_side(shards))
        images = (
            _array_images(shards, cache_dir)
            if transform is None
            else shard_images(shards, transform)
        )
    else:
        assert located.folder is not None
        tree = list_tree(located.folder, notices)
        given, where = tree.labels, str(tree.folder)
        first = _first_side(tree)
        transform = _transform_of(metadata, first if first <= _SMALL else None)
        images = file_images(tree.files, transform or ResizeCrop(first, first))
    if len(given) == 0:
        raise PipelineError(f"{where} holds no images; make the shards of the test set again")
    labels, classes, official = _labels(given, located, known, outputs, where, notices)
    side = transform.side if transform is not None else images.read(range(1)).shape[1]
    sha256 = None if shards is None else shards.hash
    return EvaluationData(
        root=located.root, name=located.name, side=side, transform=transform, classes=classes,
        outputs=outputs, official=official,
        test=TestSet(images=images, labels=labels, sha256=sha256),
        notices=notices,
    )  # fmt: skip


def normalization(metadata: dict[str, Any], data: EvaluationData) -> tuple[Triple, Triple]:
    """Return the mean and the standard deviation of a network's input, for images in 0..1.

    Without "mean" and "std" in the metadata they are those of the CIFAR recipe if images are not
    resized, otherwise those of torchvision's weights of that name, or of the ImageNet recipe.
    """
    default = CIFAR if data.transform is None else _default_preprocessing(metadata)
    mean, std = metadata.get("mean", default.mean), metadata.get("std", default.std)
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _default_preprocessing(metadata: dict[str, Any]) -> PreprocessConfig:
    """Return the default preprocessing for a network's name: of torchvision's first weights.

    See `pipelines.models.registry.InputSpec`.
    """
    wanted = default_input(metadata.get("model"))
    if wanted is None:
        return RECIPE
    return PreprocessConfig(
        image_size=wanted.image_size,
        evaluation_resize=wanted.resize,
        mean=wanted.mean,
        std=wanted.std,
    )


def _default_transform(metadata: dict[str, Any]) -> ResizeCrop:
    default = _default_preprocessing(metadata)
    return ResizeCrop(default.image_size or 0, default.resized_side)


def _transform_of(metadata: dict[str, Any], small: int | None) -> ResizeCrop | None:
    """Return the transform of a network, or None: images are not resized.

    small: the side of images that are small enough not to be resized by default, or None; nothing
    of them is cropped where the metadata have "image_size" without "evaluation_resize".
    """
    crop = metadata.get("crop", "resized" if small is None else "padded")
    if crop == "padded":
        return None
    if crop != "resized" or "crop" not in metadata:
        return _default_transform(metadata)
    side, resize = metadata.get("image_size"), metadata.get("evaluation_resize")
    if not side:
        raise PipelineError(
            "the checkpoint has the crop 'resized' and no image_size; use another file"
        )
    if not resize and small is not None:
        return None if side == small else ResizeCrop(side, side)
    try:
        prepared = PreprocessConfig(image_size=side, evaluation_resize=resize or None)
    except ValueError as error:
        raise PipelineError(str(error)) from error
    return ResizeCrop(side, prepared.resized_side)


def _small_side(shards: ShardSet) -> int | None:
    """Return the side of a set's images if they are small, or None."""
    if len(shards) == 0:
        return None
    try:
        side = max(read_size(ShardDataset(shards).read(0)))
    except SampleError as error:
        raise PipelineError(f"{error}; run pixmix-shard verify") from error
    except DecodeError as error:
        raise PipelineError(f"{shards.location}: {shards.key(0)} {error}") from error
    return side if side <= _SMALL or dataset_of_kind(shards.kind) else None


def _first_side(tree: Tree) -> int:
    """Return the longer side of a tree's first image."""
    path, remedy = tree.files[0], DecodedImages.remedy
    try:
        return max(read_size(read_image_file(path)))
    except OSError as error:
        raise unreadable(path, error, remedy) from error
    except DecodeError as error:
        raise PipelineError(f"{path} {error}; {remedy}") from error


def _array_images(shards: ShardSet, cache_dir: Path | None) -> ArrayImages:
    images = uniform_view(open_images(shards, cache_dir=cache_dir))
    if images is None:
        raise PipelineError(
            f"the images of {shards.location} are of several sizes, and the network was trained "
            "on those of one; name the data that it was trained on"
        )
    return ArrayImages(images)


def _labels(
    given: NDArray[np.int64],
    located: TestSetLocation,
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
        notices.add(
            f"{where}: classes are numbers, and each is taken for the output of that number"
        )
    shards = located.shards
    dataset = None if shards is None else dataset_of_kind(shards.kind)
    # Those who published the corrupted sets beside it wrote labels in its own order.
    official = matched.outputs if dataset and dataset.related else None
    return matched.outputs[given], matched.classes, official


def open_tree(
    folder: Path,
    transform: ResizeCrop,
    data: EvaluationData,
    *,
    remedy: str = "unpack the set again",
) -> tuple[Images, NDArray[np.int64], NDArray[np.int64]]:
    """Open a folder with a folder of images for each class.

    Args:
        folder: as fog/3 of ImageNet-C.
        transform: how its images become the network's.
        data: of the network, whose classes they are.
        remedy: what to do about an image that cannot be read.

    Returns:
        The images; the output for each; and the outputs for the folders, sorted by their names.

    Raises:
        PipelineError: if there are none, or the network lacks one of their classes.
    """
    tree = list_tree(folder, data.notices)
    outputs = match_classes(tree.classes, data.classes, data.outputs, str(folder)).outputs
    return file_images(tree.files, transform, remedy=remedy), outputs[tree.labels], outputs
