"""What is evaluated, on what, and how."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets import dataset_named
from pipelines.errors import PipelineError
from pipelines.evaluation.answers import Classifier
from pipelines.evaluation.pictures import Pictures, View
from pipelines.evaluation.trees import Notices

IMAGENET = dataset_named("imagenet").title
"""What data with ImageNet-1k's classes are called."""


class MissingDataError(PipelineError):
    """A suite has nothing to read; the message says what and where to get it."""


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """Images that were not trained on.

    pictures: the images. labels: (n,), outputs of the network. sha256: of the manifest of shards;
    None for folders of images.
    """

    __test__ = False

    pictures: Pictures
    labels: NDArray[np.int64]
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Data:
    """What lies under a folder, as a network sees it.

    root: the folder.
    name: as "CIFAR-10": how folders beside the test set begin.
    side: of the network's pictures, pixels.
    view: how pictures of any size become those; None where all have their size, as CIFAR's.
    classes: names by output, or nothing where they are not known.
    outputs: of the network, or None where no network is asked.
    official: (classes,) the output for each of CIFAR's labels, where the test set is CIFAR's.
    test: the test set, or None where there is none; missing: what to tell then.
    notices: what is told beside the figures; every reader of a tree adds to it.
    """

    root: Path
    name: str
    side: int
    view: View | None
    classes: tuple[str, ...] = ()
    outputs: int | None = None
    official: NDArray[np.int64] | None = None
    test: TestSet | None = None
    missing: str = ""
    notices: Notices = field(default_factory=Notices)

    @property
    def resized(self) -> View:
        """The view of pictures from elsewhere: those of CIFAR's size are made by resizing."""
        return self.view or View(self.side, self.side)

    def need_test(self) -> TestSet:
        """Return the test set.

        Raises:
            MissingDataError: if there is none.
        """
        if self.test is None:
            raise MissingDataError(self.missing)
        return self.test


@dataclass(kw_only=True)
class Meter:
    """Counts the images that are answered, for whoever shows how far a suite is.

    show: called with the suite, the images that are done, and all. processes: that answer at once,
    of which this one counts its own.
    """

    show: Callable[[str, int, int], None]
    processes: int = 1
    suite: str = ""
    done: int = 0
    total: int = 0

    def begin(self, total: int) -> None:
        """Begin to count, now that the suite knows how many images it has."""
        self.done, self.total = 0, total
        self.show(self.suite, 0, total)

    def add(self, n: int) -> None:
        """Count images that were answered in this process."""
        self.done = min(self.done + n * self.processes, self.total)
        self.show(self.suite, self.done, self.total)


def _show_nothing(_suite: str, _done: int, _total: int) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A network and what it is tried on.

    overlap: operations of the network's training that overlap the corruptions of C.
    meter: counts answered images; see `suites.evaluate`.
    seed: of attacks and synthetic outliers. epsilon: of PGD, in levels of 255.
    adversarial_images: how many test images PGD attacks, spread evenly; None for all.
    pgd_reference_quirk: see `attacks.pgd`. tenth_perturbation: of CIFAR-P's ten: its authors'
    script scores spatter, their generator lists snow.
    """

    classifier: Classifier
    data: Data
    overlap: tuple[str, ...] = ()
    meter: Meter = field(default_factory=lambda: Meter(show=_show_nothing))
    seed: int = 0
    epsilon: float = 2.0
    adversarial_images: int | None = None
    pgd_reference_quirk: bool = False
    tenth_perturbation: Literal["spatter", "snow"] = "spatter"


def find_folder(root: Path, name: str) -> Path | None:
    """Return the folder in root with a name, in whatever case and with whatever dashes.

    "ImageNet-C-Bar" is also found as imagenet_c_bar, and ImageNet-R as imagenet-r.

    Raises:
        PipelineError: if there are several.
        OSError: if root cannot be read.
    """
    found = [
        path
        for path in sorted(root.iterdir())
        if _plain(path.name) == _plain(name) and path.is_dir()
    ]
    exact = [path for path in found if path.name == name]
    if len(found) > 1 and not exact:
        raise PipelineError(
            f"{root} has {' and '.join(path.name for path in found)}; keep one of them"
        )
    return next(iter(exact or found), None)


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
