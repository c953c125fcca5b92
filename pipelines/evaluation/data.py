"""Find the test set in a folder, and choose the preprocessing and the labels for a network."""

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
from pipelines.shards.remote import Remote, RemoteFiles, RemoteShards, names_shards, open_set
from pipelines.shards.sources import class_name
from pipelines.system.files import printable
from pipelines.system.objects import NotFoundError, address_inside, shown

TEST_FOLDERS = ("test", "val", "valid", "validation", "dev", "eval", "data/test", ".")

_SMALL = 64
"""Side in pixels up to which images are not resized unless the metadata require it."""


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """Labelled images that were not trained on.

    Attributes:
        images: the images.
        labels: (n,) int64, the network output for each image.
        sha256: SHA-256 of the manifest of shards; None for folders of images.
    """

    __test__ = False

    images: Images
    labels: NDArray[np.int64]
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """The datasets of a folder, preprocessed for a network.

    Attributes:
        root: the folder; None if the test set is at a URL.
        name: name of the test set, such as "CIFAR-10", and prefix of the folders beside it.
        side: height and width of the network's input, pixels.
        transform: resize and crop; None if all images have the size of the input, as CIFAR's.
        classes: class name of each output; empty if unknown.
        outputs: number of outputs of the network; None without a network.
        official: (classes,) int64, the output for each of CIFAR's official labels; None for other
            test sets.
        test: the test set; None if there is none.
        missing: why the test set is missing.
        notices: messages in addition to the metrics.
    """

    root: Path | None
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
        """The resize and crop of OOD images, which are resized even to CIFAR's size."""
        return self.transform or ResizeCrop(self.side, self.side)

    def require_test(self) -> TestSet:
        """Return the test set.

        Raises:
            MissingDataError: if the test set is missing.
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

    Attributes:
        root: folder in which the other suites search for their datasets; None for a URL.
        name: prefix of their folders.
        names: class names of the test set.
        shards: the test set, if it is in shards.
        files: the files of the shards, if they are at a URL.
        folder: the test set, if it is in class folders.
    """

    root: Path | None
    name: str
    names: tuple[str, ...] = ()
    shards: ShardSet | None = None
    files: RemoteFiles | None = None
    folder: Path | None = None

    @property
    def found(self) -> bool:
        """Whether there is a test set."""
        return self.shards is not None or self.folder is not None


def open_remote_test_set(
    address: str, *, cache_dir: Path | None = None, remote: Remote | None = None
) -> RemoteShards:
    """Open the shards of a test set at a URL; no shard is downloaded yet.

    Args:
        address: the test set, or the folder that has it as "test", "val" or another of
            `TEST_FOLDERS`.
        cache_dir: cache of the shards; see `open_set`.
        remote: how the shards are downloaded; None for the defaults.

    Raises:
        PipelineError: if the test set is not found or cannot be read.
    """
    places = [address]
    if not names_shards(address):
        places[:0] = [address_inside(address, each) for each in TEST_FOLDERS[:-1]]
    for place in places:
        try:
            return open_set(place, cache_dir=cache_dir, remote=remote)
        except NotFoundError as error:
            reason = error
    raise PipelineError(
        f"{shown(address)} has no test/{MANIFEST_NAME}, val/{MANIFEST_NAME} or {MANIFEST_NAME}; "
        f"check the address and the credentials ({reason})"
    )


def locate_test_set(
    root: Path | RemoteShards, notices: Notices, known: Sequence[str] = ()
) -> TestSetLocation:
    """Find the test set in a folder, or use the folder itself as the test set.

    Args:
        root: the folder, or the test set at a URL.
        notices: collects ignored paths, and a line if the folder itself is the test set.
        known: class names of the network, by which class folders are recognized.

    Raises:
        PipelineError: if a manifest is damaged.
        OSError: if a folder cannot be read.
    """
    if isinstance(root, RemoteShards):
        return _location_of_shards(None, root.shards, root.files)
    for folder in (root / each for each in TEST_FOLDERS):
        if (folder / MANIFEST_NAME).exists():
            return _location_of_shards(root, open_shards(folder))
    for folder in (root / each for each in TEST_FOLDERS[:-1]):
        names = class_folders(folder, ignored=notices.ignored) if folder.is_dir() else []
        if names:
            return _location_of_folders(root, folder, names)
    names = class_folders(root, ignored=notices.ignored)
    if names and _are_classes(root.resolve().name, names, known):
        above = root.resolve().parent if root.resolve().name in TEST_FOLDERS else root
        beside = f", and the other suites search in {above}" if above != root else ""
        notices.add(f"{root} has class folders and is used as the test set{beside}")
        return _location_of_folders(above, root, names)
    return TestSetLocation(root=root, name=IMAGENET)


def _location_of_shards(
    root: Path | None, shards: ShardSet, files: RemoteFiles | None = None
) -> TestSetLocation:
    dataset = dataset_of_kind(shards.kind)
    name = dataset.title if dataset else shards.name.removesuffix("-test").upper()
    return TestSetLocation(
        root=root, name=_name_of(shards.classes, name), names=shards.classes, shards=shards,
        files=files,
    )  # fmt: skip


def _location_of_folders(root: Path, folder: Path, names: Sequence[str]) -> TestSetLocation:
    printed = tuple(map(class_name, names))
    name = _name_of(printed, printable(root.resolve().name).upper())
    return TestSetLocation(root=root, name=name, names=printed, folder=folder)


def _name_of(names: Sequence[str], name: str) -> str:
    return IMAGENET if are_imagenet_classes(names) else name


def _are_classes(folder: str, names: Sequence[str], known: Sequence[str]) -> bool:
    """Return whether the subfolders of a folder are classes and not datasets."""
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
    for folder in (root / each for each in TEST_FOLDERS):
        if folder.is_dir() and holds_images(folder):
            return (
                f"{folder} holds images but no class folders; put the images of each class into a "
                f"folder {folder}/CLASS"
            )
    return (
        f"{root} has no test/{MANIFEST_NAME} and no val/CLASS/*.jpg; pass --data FOLDER where "
        "FOLDER holds test or val, or make shards of the test set with pixmix-shard"
    )


def open_evaluation_data(
    root: Path | RemoteShards, metadata: dict[str, Any], *, cache_dir: Path | None = None
) -> EvaluationData:
    """Open the datasets that a network can be evaluated on.

    The test set is in "test", "val", "validation", "data/test" or the folder itself, as shards or
    as class folders in torchvision's layout.

    Args:
        root: the folder, the parent of the class folders, or the test set at a URL; see
            `open_remote_test_set`.
        metadata: metadata of the network: "classes" (its number of outputs), "model",
            "class_names", "crop", "image_size", "evaluation_resize"; each may be absent.
        cache_dir: where decoded images of small datasets are kept.

    Raises:
        PipelineError: if the test set does not fit the network or cannot be read, or the metadata
            are inconsistent.
    """
    outputs = metadata.get("classes")
    known = tuple(metadata.get("class_names", ()))
    if known and outputs is not None and len(known) != outputs:
        raise PipelineError(
            f"the metadata name {len(known)} classes and the network has {outputs} outputs; use "
            "another checkpoint"
        )
    notices = Notices()
    located = locate_test_set(root, notices, known)
    if not isinstance(root, RemoteShards) and not located.found:
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
        stored, where = shards.samples["label"].astype(np.int64), str(shards.location)
        samples = ShardDataset(shards, located.files.path if located.files else None)
        transform = _transform_of(metadata, _small_side(samples))
        images = (
            _array_images(shards, located.files, cache_dir)
            if transform is None
            else shard_images(samples, transform)
        )
    else:
        assert located.folder is not None
        tree = list_tree(located.folder, notices)
        stored, where = tree.labels, str(tree.folder)
        first = _first_side(tree)
        transform = _transform_of(metadata, first if first <= _SMALL else None)
        images = file_images(tree.files, transform or ResizeCrop(first, first))
    if len(stored) == 0:
        raise PipelineError(f"{where} holds no images; make the shards of the test set again")
    labels, classes, official = _labels(stored, located, known, outputs, where, notices)
    side = transform.side if transform is not None else images.read(range(1)).shape[1]
    sha256 = None if shards is None else shards.hash
    return EvaluationData(
        root=located.root, name=located.name, side=side, transform=transform, classes=classes,
        outputs=outputs, official=official,
        test=TestSet(images=images, labels=labels, sha256=sha256),
        notices=notices,
    )  # fmt: skip


def normalization(metadata: dict[str, Any], data: EvaluationData) -> tuple[Triple, Triple]:
    """Return the mean and the standard deviation that normalize images in 0..1 for a network.

    Values missing in the metadata are those of the CIFAR recipe if images are not resized,
    otherwise those of torchvision's model of that name or of the ImageNet recipe.
    """
    default = CIFAR if data.transform is None else _default_preprocessing(metadata)
    mean, std = metadata.get("mean", default.mean), metadata.get("std", default.std)
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _default_preprocessing(metadata: dict[str, Any]) -> PreprocessConfig:
    """Return the default preprocessing of a torchvision model, or the ImageNet recipe's.

    See `pipelines.models.registry.InputSpec`.
    """
    default = default_input(metadata.get("model"))
    if default is None:
        return RECIPE
    return PreprocessConfig(
        image_size=default.image_size,
        evaluation_resize=default.resize,
        mean=default.mean,
        std=default.std,
    )


def _default_transform(metadata: dict[str, Any]) -> ResizeCrop:
    default = _default_preprocessing(metadata)
    return ResizeCrop(default.image_size or 0, default.resized_side)


def _transform_of(metadata: dict[str, Any], small: int | None) -> ResizeCrop | None:
    """Return the resize and crop of a network; None if images are not resized.

    small: side of images that are not resized by default, or None. They are resized without a crop
    if the metadata have "image_size" but no "evaluation_resize".
    """
    crop = metadata.get("crop", "resized" if small is None else "padded")
    if crop == "padded":
        return None
    if crop != "resized" or "crop" not in metadata:
        return _default_transform(metadata)
    side, resize = metadata.get("image_size"), metadata.get("evaluation_resize")
    if not side:
        raise PipelineError(
            "the metadata have crop 'resized' and no image_size; use another checkpoint"
        )
    if not resize and small is not None:
        return None if side == small else ResizeCrop(side, side)
    try:
        preprocess = PreprocessConfig(image_size=side, evaluation_resize=resize or None)
    except ValueError as error:
        raise PipelineError(str(error)) from error
    return ResizeCrop(side, preprocess.resized_side)


def _small_side(samples: ShardDataset) -> int | None:
    """Return the side of the first image if it is small; None otherwise."""
    if len(samples) == 0:
        return None
    try:
        side = max(read_size(samples.read(0)))
    except SampleError as error:
        raise PipelineError(f"{error}; run pixmix-shard verify") from error
    except DecodeError as error:
        raise PipelineError(f"{samples.name}: {samples.key(0)} {error}") from error
    return side if side <= _SMALL or dataset_of_kind(samples.shards.kind) else None


def _first_side(tree: Tree) -> int:
    """Return the longer side of the first image."""
    path, remedy = tree.files[0], DecodedImages.remedy
    try:
        return max(read_size(read_image_file(path)))
    except OSError as error:
        raise unreadable(path, error, remedy) from error
    except DecodeError as error:
        raise PipelineError(f"{path} {error}; {remedy}") from error


def _array_images(
    shards: ShardSet, files: RemoteFiles | None, cache_dir: Path | None
) -> ArrayImages:
    opened = shards if files is None else RemoteShards(shards=shards, files=files)
    images = uniform_view(open_images(opened, cache_dir=cache_dir))
    if images is None:
        raise PipelineError(
            f"the images of {shards.location} have several sizes, and the network was trained on "
            "images of one size; pass the data that it was trained on"
        )
    return ArrayImages(images)


def _labels(
    stored: NDArray[np.int64],
    located: TestSetLocation,
    known: tuple[str, ...],
    outputs: int | None,
    where: str,
    notices: Notices,
) -> tuple[NDArray[np.int64], tuple[str, ...], NDArray[np.int64] | None]:
    """Return the output for each image, the class name of each output, and `official`.

    stored: (n,) int64, the labels as stored in the dataset.
    """
    if (stored < 0).any():
        raise PipelineError(f"{where} has images without a class; use a dataset with classes")
    n_labels = int(stored.max(initial=-1)) + 1
    if not located.names:
        if outputs is not None and n_labels > outputs:
            raise PipelineError(
                f"{where} has labels up to {n_labels - 1}, and the network has {outputs} outputs; "
                "pass the data that it was trained on"
            )
        return stored, known, None
    if n_labels > len(located.names):
        raise PipelineError(
            f"{where} has labels up to {n_labels - 1} and names of {len(located.names)} classes; "
            "make the shards again"
        )
    matched = match_classes(located.names, known, outputs, where)
    if matched.how == "values" and outputs is not None:
        notices.add(
            f"{where}: the class folders are numbers, and each is used as the number of an output"
        )
    shards = located.shards
    dataset = None if shards is None else dataset_of_kind(shards.kind)
    # The labels of the published C and P datasets are in the official order of the classes.
    official = matched.outputs if dataset and dataset.related else None
    return matched.outputs[stored], matched.classes, official


def open_tree(
    folder: Path,
    transform: ResizeCrop,
    data: EvaluationData,
    *,
    remedy: str = "unpack the dataset again",
) -> tuple[Images, NDArray[np.int64], NDArray[np.int64]]:
    """Open a folder with one class folder per class.

    Args:
        folder: such as fog/3 of ImageNet-C.
        transform: resize and crop of the images.
        data: the test set of the network, whose classes are matched.
        remedy: what to do about an image that cannot be read.

    Returns:
        The images; (n,) int64, the output for each; and (classes,) int64, the output for each
        class folder in alphabetical order.

    Raises:
        PipelineError: if no images are found, or the network lacks one of the classes.
    """
    tree = list_tree(folder, data.notices)
    outputs = match_classes(tree.classes, data.classes, data.outputs, str(folder)).outputs
    return file_images(tree.files, transform, remedy=remedy), outputs[tree.labels], outputs
