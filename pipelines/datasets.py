"""The datasets that the commands know by name: one table, which all of them read.

To add one, add a row. If its files are in none of the forms that `pipelines.shards.archives`
reads, add a reader there, too. `pixmix-shard NAME` and `pixmix-train NAME` exist from then on, and
`pixmix-eval` finds the sets beside it by its title.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from pipelines.errors import PipelineError

SMALL_SHARD = 1000
"""Samples a shard of small images: CIFAR becomes 50 and 10 shards."""


@dataclass(frozen=True, kw_only=True)
class RelatedSet:
    """A test set beside that of a dataset. folder: its name; page: where its authors publish it."""

    folder: str
    page: str


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A row of the table.

    Attributes:
        name: in commands, and the kind of its shards if it has a reader.
        title: its display name, with which the names of the folders beside it begin.
        images: "small": of one size, held in memory, padded and cropped; "large": of any size,
            decoded and resized as they are used.
        n_classes: number of classes; None: whatever the shards have.
        recipe: the default recipe's name, in `pipelines.training.recipes.RECIPES`.
        reader: what reads its files, in `pipelines.shards.archives.READERS`; None: it is a folder
            with a folder a class, of which `pixmix-shard imagefolder` makes shards.
        page: where its files are published; None: a library that is installed has them, or they
            are the user's own.
        folder, archive: names of its files, unpacked and as they are published.
        about: a sentence for the help of `pixmix-shard`.
        shard_size: samples a shard where `pixmix-train` makes the shards.
        flip: whether a mirror image has the same class.
        related: by the suite of `pixmix-eval` that measures on them.
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
        """Whether its files come with an installed library, so that nobody says where they are."""
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
    "SRC is the official python archive, the folder in it, or what torchvision downloaded. Its "
    "pickles are read without running anything."
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
        # None of the digits is another digit in a mirror.
        flip=False,
    ),
    Dataset(
        name="folder", title="your own images", images="large", n_classes=None, recipe="imagenet"
    ),
)

DATASETS: Mapping[str, Dataset] = {row.name: row for row in _ROWS}
"""All datasets by name, in the order of the commands."""


def dataset_named(name: str) -> Dataset:
    """Return the dataset of a name.

    Raises:
        PipelineError: if there is none.
    """
    if name not in DATASETS:
        raise PipelineError(f"dataset {name!r} is not known; use one of {', '.join(DATASETS)}")
    return DATASETS[name]


def dataset_of_kind(kind: str) -> Dataset | None:
    """Return the dataset whose shards are of a kind; None for image folders, mixing sets, tars."""
    row = DATASETS.get(kind)
    return None if row is None or row.reader is None else row


def dataset_titled(title: str) -> Dataset | None:
    """Return the dataset of a display name, or None for data that are in no table."""
    return next((row for row in _ROWS if row.title == title), None)
