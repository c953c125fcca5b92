"""Folders of images to evaluate on: what in them is a class or an image, and where datasets lie.

A C set that `pixmix-eval make-c` made lies in NAME-C-made and has make-c.json; it is never taken
for the one that its authors distribute, wherever it lies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.datasets import dataset_named, dataset_titled
from pipelines.errors import PipelineError
from pipelines.shards import images
from pipelines.shards.sources import class_images, class_name
from pipelines.system.files import Count, printable, read_json, read_regular

IMAGENET = dataset_named("imagenet").title
"""What data with ImageNet-1k's classes are called."""


class MissingDataError(PipelineError):
    """A suite lacks its data; the message says which and where to get them."""


def unreadable(path: object, error: OSError, remedy: str) -> PipelineError:
    """Return the error for a file that the disk or its kind keeps from being read."""
    return PipelineError(f"{path} cannot be read: {error.strerror or error}; {remedy}")


@dataclass
class Notices:
    """Messages of an evaluation beside the metrics.

    ignored: paths of hidden names and litter in the folders. lines: everything else, one sentence
    each, in the order found; taken: how many of them have been printed.
    """

    ignored: set[str] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)
    taken: int = 0

    def say(self, line: str) -> None:
        """Add a line, unless it was added before."""
        if line not in self.lines:
            self.lines.append(line)

    def take(self) -> list[str]:
        """Return the lines that have not been taken yet."""
        new = self.lines[self.taken :]
        self.taken = len(self.lines)
        return new

    def ignored_line(self) -> str | None:
        """Return one line that counts the ignored files and folders, or None without any."""
        if not self.ignored:
            return None
        n = len(self.ignored)
        what = "file or folder" if n == 1 else "files and folders"
        return f"ignored {n:,} hidden or system {what}, such as {printable(min(self.ignored))}"


# --- Class folders, images, videos ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A folder with a folder of images for each class, in torchvision's order.

    folder: the tree. classes: of its folders, as `class_name` names them.
    files: (n,) paths of the images. labels: (n,) int64, each one's position in `classes`.
    """

    folder: Path
    classes: tuple[str, ...]
    files: list[Path]
    labels: NDArray[np.int64]


def holds_images(folder: Path) -> bool:
    """Return whether a folder itself holds images.

    Raises:
        OSError: if the folder cannot be read.
    """
    _, _, files = next(images.walk(folder))
    return any(map(images.is_image_name, files))


def list_tree(folder: Path, notices: Notices) -> Tree:
    """List the images of a folder with a folder for each class.

    Args:
        folder: such as val/, or fog/3 of ImageNet-C.
        notices: takes what is ignored.

    Raises:
        PipelineError: if there is no class folder, or a class has no image.
        OSError: if a folder cannot be read.
    """
    if not folder.is_dir():
        raise PipelineError(f"{folder} is not there or is not a folder; unpack the set again")
    names = images.class_folders(folder, ignored=notices.ignored)
    if not names:
        raise PipelineError(
            f"{folder} {'holds images and' if holds_images(folder) else 'has'} no class folders; "
            "put the images of each class into a folder of its own"
        )
    files = [class_images(folder, name, ignored=notices.ignored) for name in names]
    return Tree(
        folder=folder,
        classes=tuple(map(class_name, names)),
        files=[*chain.from_iterable(files)],
        labels=np.repeat(np.arange(len(names), dtype=np.int64), [*map(len, files)]),
    )


def list_videos(folder: Path, notices: Notices) -> list[Path]:
    """Return the .mp4 files of a folder and the folders in it, sorted.

    Raises:
        PipelineError: if there is none.
        OSError: if a folder cannot be read.
    """
    below = images.files_below(folder, ignored=notices.ignored)
    found = sorted(path for path in below if images.extension_of(path.name) == "mp4")
    if not found:
        raise PipelineError(f"{folder} holds no .mp4 files; unpack the set again")
    return found


# --- The datasets beside a test set --------------------------------------------------------------

MADE_SUFFIX = "-C-made"
"""Ends the name of a folder that make-c makes."""

MADE_OF = "make-c.json"

_SUFFIXES = {"c": "-C", "c-bar": "-C-Bar", "p": "-P"}

_NATURAL = dataset_named("imagenet").related
"""The sets beside ImageNet's test set, some of which no other dataset has."""

WITH_FOLDERS = tuple(_NATURAL)
"""Suites that have a folder of their own beside the test set."""


class MadeOf(msgspec.Struct, frozen=True, kw_only=True):
    """What make-c.json holds: what decides a set that make-c made.

    n: images; seed: of what their corruptions draw. labels, images: SHA-256; side: pixels.
    """

    n: Count
    seed: int
    labels: str = ""
    classes: tuple[str, ...] = ()
    side: int = 0
    images: str = ""
    made_by: str = ""

    def summary(self) -> dict[str, Any]:
        """Return what tables, reports and JSON say of the set."""
        return {"by": "pixmix-eval make-c", "images": self.n, "constants": "ImageNet",
                "seed": self.seed}  # fmt: skip


def read_made_of(folder: Path, remedy: str) -> MadeOf | None:
    """Return the content of make-c.json of a set; None without the file.

    Raises:
        PipelineError: if it is damaged.
    """
    path = folder / MADE_OF
    try:
        content = read_regular(path, max_bytes=1 << 24)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error, remedy) from error
    return read_json(content, MadeOf, str(path), remedy)


def remedy_for(name: str, suffix: str) -> str:
    """Return how to get a set that is missing or damaged, for the end of an error."""
    dataset = dataset_titled(name)
    related = dataset.related.values() if dataset else ()
    ways = [f"get it from {each.page}" for each in related if each.folder == f"{name}{suffix}"]
    if suffix == "-C" and name != IMAGENET:
        ways.append("make one by pixmix-eval make-c")
    return ", or ".join(ways) or f"nobody distributes one of {name}; leave the suite out"


def find_set(root: Path, name: str, suite: str, notices: Notices) -> tuple[Path, MadeOf | None]:
    """Return the folder of a suite's dataset, and what it is made of if make-c made it.

    Args:
        root: the folder above it.
        name: of the test set, as "CIFAR-10".
        suite: one of `WITH_FOLDERS`.
        notices: takes which is used where an official set lies beside one of make-c.

    Raises:
        MissingDataError: if there is none.
        PipelineError: if there are several, or it is damaged.
        OSError: if the folder cannot be read.
    """
    if suite not in _SUFFIXES:
        natural = _NATURAL[suite]
        folder = find_folder(root, natural.folder)
        if folder is None:
            raise MissingDataError(
                f"{root} has no folder {natural.folder.lower()}; get it from {natural.page}"
            )
        return folder, None
    suffix = _SUFFIXES[suite]
    folder = find_folder(root, f"{name}{suffix}")
    if suite == "c":
        made = find_folder(root, f"{name}{MADE_SUFFIX}")
        if made is not None and (folder is None or (folder / MADE_OF).exists()):
            folder, made = made, folder
        if folder is not None and made is not None:
            notices.say(
                f"{folder} is evaluated, and not {made}; move it away to evaluate the other"
            )
    if folder is None:
        raise MissingDataError(f"{root / name}{suffix} is not there; {remedy_for(name, suffix)}")
    remedy = f"remove {folder} and make it again by pixmix-eval make-c"
    made_of = read_made_of(folder, remedy)
    if made_of is None and folder.name.endswith(MADE_SUFFIX):
        raise PipelineError(f"{folder} has no {MADE_OF}, which says what it is made of; {remedy}")
    return folder, made_of


def missing_sets(root: Path, name: str, suites: Sequence[str]) -> dict[str, str]:
    """Return for each suite whose folder is not there what to do about it.

    Raises:
        OSError: if the folder cannot be read.
    """
    missing = {}
    for suite in suites:
        if suite in WITH_FOLDERS:
            try:
                find_set(root, name, suite, Notices())
            except MissingDataError as error:
                missing[suite] = str(error)
            except PipelineError:
                continue  # It is there and damaged; the suite reports that.
    return missing


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
