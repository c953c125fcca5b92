"""The table of datasets that the commands know by name.

To add a dataset, add a row. If `pipelines.shards.archives` does not read the format of its files,
also add a reader there. The row adds the commands `pixmix-shard NAME` and `pixmix-train NAME`, and
`pixmix-eval` finds the related test sets by the title.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from pipelines.errors import PipelineError

SMALL_SHARD = 1000
"""Samples per shard of small images; CIFAR has 50 shards for training and 10 for testing."""


@dataclass(frozen=True, kw_only=True)
class RelatedSet:
    """A related test set, the name of its folder, and the page where its authors publish it."""

    folder: str
    page: str


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A row of the table.

    Attributes:
        name: name in commands, and kind of its shards if it has a reader.
        title: display name; folders of related test sets begin with it.
        images: "small" images have one size, are held in memory, padded and cropped; "large" images
            have any size, and are decoded and resized when they are used.
        n_classes: number of classes; None uses the classes of the shards.
        recipe: name of the default recipe in `pipelines.training.recipes.RECIPES`.
        reader: key of its reader in `pipelines.shards.archives.READERS`; None for an image folder,
            which `pixmix-shard imagefolder` writes into shards.
        page: page where the files are published; None if they come with a library, or are the
            user's own.
        folder: name of the unpacked folder.
        archive: name of the published archive.
        about: a sentence for the help of `pixmix-shard`.
        shard_size: samples per shard if `pixmix-train` makes the shards.
        flip: whether a mirrored image has the same class.
        related: related test sets by the suite of `pixmix-eval` that uses them.
    """

    name: str
    title: str
    images: Literal["small", "large"]
    n_classes: int | None
    recipe: str
    reader: str | None = None
    page: str | None = None
    folder: str = ""
    archive: str = ""
    about: str = ""
    shard_size: int = SMALL_SHARD
    flip: bool = True
    related: Mapping[str, RelatedSet] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def bundled(self) -> bool:
        """Whether its files come with a library, so that commands need no path."""
        return self.reader is not None and self.page is None


def _related_to_cifar(title: str, corrupted: str) -> dict[str, RelatedSet]:
    return {
        "c": RelatedSet(folder=f"{title}-C", page=corrupted),
        "c-bar": RelatedSet(folder=f"{title}-C-Bar", page=_C_BAR),
        "p": RelatedSet(folder=f"{title}-P", page="https://zenodo.org/record/2535967"),
    }


_C_BAR = "https://github.com/facebookresearch/augmentation-corruption"
_CIFAR_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_CIFAR_SRC = (
    "SRC is the official python archive, the unpacked folder, or a download of torchvision. Its "
    "pickles are read without executing them."
)

_ROWS = (
    Dataset(
        name="cifar10",
        title="CIFAR-10",
        images="small",
        n_classes=10,
        recipe="cifar",
        reader="cifar",
        page=_CIFAR_PAGE,
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        about=_CIFAR_SRC,
        related=_related_to_cifar("CIFAR-10", "https://zenodo.org/record/2535967"),
    ),
    Dataset(
        name="cifar100",
        title="CIFAR-100",
        images="small",
        n_classes=100,
        recipe="cifar",
        reader="cifar",
        page=_CIFAR_PAGE,
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        about=_CIFAR_SRC,
        related=_related_to_cifar("CIFAR-100", "https://zenodo.org/record/3555552"),
    ),
    Dataset(
        name="imagenet",
        title="ImageNet",
        images="large",
        n_classes=1000,
        recipe="imagenet",
        page="https://image-net.org/download.php",
        related={
            "c": RelatedSet(folder="ImageNet-C", page="https://zenodo.org/record/2235448"),
            "c-bar": RelatedSet(folder="ImageNet-C-Bar", page=_C_BAR),
            "p": RelatedSet(folder="ImageNet-P", page="https://zenodo.org/record/3565846"),
            "r": RelatedSet(folder="ImageNet-R", page="https://github.com/hendrycks/imagenet-r"),
            "a": RelatedSet(
                folder="ImageNet-A", page="https://github.com/hendrycks/natural-adv-examples"
            ),
            "o": RelatedSet(
                folder="ImageNet-O", page="https://github.com/hendrycks/natural-adv-examples"
            ),
        },
    ),
    Dataset(
        name="digits",
        title="DIGITS",
        images="small",
        n_classes=10,
        recipe="digits",
        reader="digits",
        about="scikit-learn's handwritten digits need no download: 1,438 images for training and "
        "359 for testing, enlarged to 32x32.",
        shard_size=144,
        # A mirrored digit is not a digit.
        flip=False,
    ),
    Dataset(
        name="folder", title="your own images", images="large", n_classes=None, recipe="imagenet"
    ),
)

DATASETS: Mapping[str, Dataset] = {row.name: row for row in _ROWS}
"""All datasets by name, in the order of the commands."""


def dataset_named(name: str) -> Dataset:
    """Return a dataset by its name.

    Raises:
        PipelineError: if the name is unknown.
    """
    if name not in DATASETS:
        raise PipelineError(f"unknown dataset {name!r}; use one of {', '.join(DATASETS)}")
    return DATASETS[name]


def dataset_of_kind(kind: str) -> Dataset | None:
    """Return the dataset of a kind of shards; None for image folders, mixing sets and tars."""
    row = DATASETS.get(kind)
    return None if row is None or row.reader is None else row


def dataset_titled(title: str) -> Dataset | None:
    """Return a dataset by its display name, None if the table does not have it."""
    return next((row for row in _ROWS if row.title == title), None)
