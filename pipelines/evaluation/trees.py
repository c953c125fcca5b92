"""Folders of images to evaluate on: what in them is a class, what is an image, what is neither."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.shards.images import (
    FOLDER_EXTENSIONS,
    Above,
    files_below,
    is_folder,
    is_ignored_name,
    picture_files,
    place_of,
)
from pipelines.shards.sources import class_name, extension_of
from pipelines.system.files import printable


@dataclass
class Notices:
    """What an evaluation tells its user beside the figures.

    ignored: hidden names and litter that were found in the trees, by path.
    lines: everything else, one sentence each, in the order in which it was found; taken: how many
    of them have been told.
    """

    ignored: set[str] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)
    taken: int = 0

    def say(self, line: str) -> None:
        """Add a line, unless it has been said."""
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


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A folder with a folder of images for each class, in torchvision's order.

    folder: the tree. classes: of its folders, as `class_name` names them.
    files: (n,) paths of the images. labels: (n,) int64, each one's place in `classes`.
    """

    folder: Path
    classes: tuple[str, ...]
    files: list[Path]
    labels: NDArray[np.int64]


def class_folders(folder: Path, notices: Notices) -> list[str]:
    """Return the names of the folders in a folder, sorted; hidden ones and litter are noted.

    Raises:
        OSError: if the folder cannot be read.
    """
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_ignored_name(entry.name):
                notices.ignored.add(entry.path)
            elif is_folder(entry):
                names.append(entry.name)
    return sorted(names)


def holds_images(folder: Path) -> bool:
    """Return whether a folder itself holds images.

    Raises:
        OSError: if the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) and not is_folder(entry) for entry in entries)


def list_tree(folder: Path, notices: Notices) -> Tree:
    """List the images of a folder with a folder for each class.

    Args:
        folder: such as val/, or fog/3 of ImageNet-C.
        notices: is told of what was ignored.

    Raises:
        PipelineError: if there is no class folder, or a class has no image.
        OSError: if a folder cannot be read.
    """
    if not folder.is_dir():
        raise PipelineError(f"{folder} is not there or is not a folder; unpack the set again")
    names = class_folders(folder, notices)
    if not names:
        raise PipelineError(f"{folder} {_no_class_folders(folder)}")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        below = _files_below(folder / name, frozenset({place_of(folder)}), notices)
        found = sorted(
            (path for path in below if _is_image(path.name)),
            key=lambda path: (str(path.parent), path.name),
        )
        if not found:
            raise PipelineError(
                f"{printable(str(folder / name))} holds no readable image, so its class would be "
                "empty; fill the folder or remove it"
            )
        files += found
        labels += [label] * len(found)
    return Tree(
        folder=folder,
        classes=tuple(map(class_name, names)),
        files=files,
        labels=np.array(labels, np.int64),
    )


def _no_class_folders(folder: Path) -> str:
    what = "holds images and no class folders" if holds_images(folder) else "has no class folders"
    return f"{what}; put the images of each class into a folder of its own"


def list_images(folder: Path, notices: Notices) -> list[Path]:
    """Return the images of a folder and the folders in it, numbers in names counted as numbers.

    Raises:
        PipelineError: if there is none.
        OSError: if a folder cannot be read.
    """
    for _ in _files_below(folder, frozenset(), notices):
        pass
    return picture_files(folder)


def list_videos(folder: Path, notices: Notices) -> list[Path]:
    """Return the .mp4 files of a folder and the folders in it, sorted.

    Raises:
        PipelineError: if there is none.
        OSError: if a folder cannot be read.
    """
    below = _files_below(folder, frozenset(), notices)
    found = sorted(path for path in below if extension_of(path.name) == "mp4")
    if not found:
        raise PipelineError(f"{folder} holds no .mp4 files; unpack the set again")
    return found


def _files_below(folder: Path, above: Above, notices: Notices) -> Iterator[Path]:
    """Give the files of a folder and of those in it, links followed, without what is ignored."""
    ignored: list[Path] = []
    yield from files_below(folder, above, ignored=ignored)
    notices.ignored.update(map(str, ignored))


def _is_image(name: str) -> bool:
    return extension_of(name) in FOLDER_EXTENSIONS and not is_ignored_name(name)
