"""Folders of images to evaluate on: class folders, the outputs they stand for, and datasets.

Class folders are matched to the outputs of a network by name if the class names are known (for
1,000 outputs these are ImageNet's WordNet ids); by value if the folders are numbers, as
ImageNet-V2's 0 to 999; and by order only if there is exactly one folder per output, or if the
folders count from 0, as class0, class1, ... Anything else could shift the labels and is rejected.

A dataset made by ``pixmix-eval make-c`` is in NAME-C-made and has a make-c.json. It is never taken
for the official one, whatever the name of its folder.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.datasets import dataset_named, dataset_titled
from pipelines.errors import PipelineError
from pipelines.models.registry import find_outputs
from pipelines.shards import images
from pipelines.shards.sources import class_images, class_name
from pipelines.system.files import Count, printable, read_json, read_regular

_NUMBER = re.compile(r"-?[0-9]+", re.ASCII)
_NUMBERED = re.compile(r"((?:c|cls|class|label|category)[ _-]?)([0-9]{1,9})", re.ASCII)
_WORDNET_ID = re.compile(r"n[0-9]{8}", re.ASCII)
_MAX_OUTPUTS = 1_000_000
_NAMED = 3
"""Number of folders that an error names."""


@cache
def imagenet_classes() -> tuple[str, ...]:
    """Return the WordNet ids of ImageNet-1k's 1,000 classes, sorted: the order of its outputs."""
    text = (files("pipelines.evaluation") / "imagenet_classes.txt").read_text(encoding="ascii")
    return tuple(text.split())


def are_imagenet_classes(names: Sequence[str]) -> bool:
    """Return whether all names are WordNet ids of ImageNet-1k; False without names."""
    return len(names) > 0 and set(names) <= set(imagenet_classes())


@dataclass(frozen=True, kw_only=True)
class ClassMatch:
    """The network output for each class of a dataset.

    Attributes:
        outputs: (classes,) int64, in the order of the dataset's class names.
        classes: class name of each output; empty if not all are known.
        how: "names", "values" or "order".
    """

    outputs: NDArray[np.int64]
    classes: tuple[str, ...]
    how: str


def match_classes(
    names: Sequence[str], known: Sequence[str], n_outputs: int | None, where: str
) -> ClassMatch:
    """Return the network output for each class of a dataset.

    Args:
        names: class names of the dataset, at least one.
        known: class name of each output of the network; empty if unknown.
        n_outputs: number of outputs of the network; None without a network, and then classes are
            matched by order.
        where: the dataset, for errors.

    Raises:
        PipelineError: if a label would be wrong or guessed.
    """
    kinds = [_kind(name) for name in names]
    imagenet = imagenet_classes()
    if n_outputs == len(imagenet) and not known and any(name in set(imagenet) for name in names):
        known = imagenet
    by_value = set(kinds) == {"number"} and (not known or tuple(known) == imagenet)
    if known and not by_value:
        _check_one_kind(names, kinds, where, "WordNet id" if tuple(known) == imagenet else None)
        return ClassMatch(
            outputs=find_outputs(names, known, where), classes=tuple(known), how="names"
        )
    if by_value:
        return _by_value(names, known, n_outputs, where)
    if n_outputs is not None:
        if len(set(kinds)) > 1:
            _check_one_kind(names, kinds, where, max(kinds, key=kinds.count))
        numbers = _trailing_numbers(names)
        if numbers is not None and list(numbers) != sorted(numbers):
            first = next(i for i, pair in enumerate(pairwise(numbers)) if pair[0] > pair[1])
            raise PipelineError(
                f"{where} has the class folders {names[first]!r} and {names[first + 1]!r}, which "
                "sort differently by name and by number, and the class names of the network are "
                "unknown; name each folder by its output: 0, 1, 2, ..."
            )
        counts_from_0 = numbers == tuple(range(len(names)))
        if len(names) != n_outputs and not (counts_from_0 and len(names) < n_outputs):
            raise PipelineError(
                f"{where} has {len(names)} classes and the network has {n_outputs} outputs with "
                "unknown class names; evaluate a dataset with a folder for each output, remove "
                "folders that are not classes, or name each folder by its output: 0, 1, 2, ..."
            )
    classes = tuple(names) if n_outputs in {None, len(names)} else ()
    return ClassMatch(outputs=np.arange(len(names)), classes=classes, how="order")


def _trailing_numbers(names: Sequence[str]) -> tuple[int, ...] | None:
    """Return the numbers of names such as class0, class1, ...; None for other names."""
    matches = [_NUMBERED.fullmatch(name) for name in names]
    if None in matches or len({match[1] for match in matches if match}) != 1:
        return None
    return tuple(int(match[2]) for match in matches if match)


def is_class_name(name: str) -> bool:
    """Return whether a folder name is a number or a WordNet id."""
    return _kind(name) != "other name"


def _kind(name: str) -> str:
    if _NUMBER.fullmatch(name):
        return "number"
    return "WordNet id" if _WORDNET_ID.fullmatch(name) else "other name"


def _check_one_kind(
    names: Sequence[str], kinds: Sequence[str], where: str, expected: str | None
) -> None:
    """Check that all folder names are numbers or all are WordNet ids; None expects neither."""
    others = [name for name, kind in zip(names, kinds, strict=True) if kind != expected]
    if expected is None or not others:
        return
    raise PipelineError(
        f"{where} has {len(names)} classes, of which {len(names) - len(others)} are named by "
        f"{expected}s and {len(others)} are not ({_some(others)}); remove or rename those"
    )


def _by_value(
    names: Sequence[str], known: Sequence[str], n_outputs: int | None, where: str
) -> ClassMatch:
    """Match folders named by numbers to the outputs of those numbers."""
    values = [int(name) for name in names]
    limit = _MAX_OUTPUTS if n_outputs is None else n_outputs
    wrong = [name for name, value in zip(names, values, strict=True) if not 0 <= value < limit]
    if wrong:
        of = "" if n_outputs is None else f", the {n_outputs} outputs of the network"
        raise PipelineError(
            f"{where} has {len(names)} numbered classes, of which {len(wrong)} ({_some(wrong)}) "
            f"are not within 0 to {limit - 1}{of}; name each folder by its output, counted from 0"
        )
    counts = Counter(values)
    repeated = [name for name, value in zip(names, values, strict=True) if counts[value] > 1]
    if repeated:
        raise PipelineError(
            f"{where} has several class folders of one number ({_some(repeated)}); keep one of them"
        )
    by_value = dict(zip(values, names, strict=True))
    size = max(values) + 1 if n_outputs is None else n_outputs
    classes = tuple(known)
    if not classes and (n_outputs is None or len(names) == size):
        classes = tuple(by_value.get(value, str(value)) for value in range(size))
    return ClassMatch(outputs=np.array(values, np.int64), classes=classes, how="values")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(map(repr, names[:_NAMED]))}{more}"


IMAGENET = dataset_named("imagenet").title
"""Name of every test set with ImageNet-1k's classes."""


class MissingDataError(PipelineError):
    """Raised when a suite lacks its data; the message names them and where to get them."""


def unreadable(path: object, error: OSError, remedy: str) -> PipelineError:
    """Return the error for a file that cannot be read, or is not a regular file."""
    return PipelineError(f"{path} cannot be read: {error.strerror or error}; {remedy}")


@dataclass
class Notices:
    """Messages of an evaluation in addition to the metrics.

    Attributes:
        ignored: paths of hidden and system files and folders.
        lines: all other messages, one sentence each, in the order found.
        taken: number of lines that `take` has returned.
    """

    ignored: set[str] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)
    taken: int = 0

    def add(self, line: str) -> None:
        """Add a line once."""
        if line not in self.lines:
            self.lines.append(line)

    def take(self) -> list[str]:
        """Return the lines added since the last call."""
        new = self.lines[self.taken :]
        self.taken = len(self.lines)
        return new

    def ignored_line(self) -> str | None:
        """Return a line that counts the ignored files and folders; None if there are none."""
        if not self.ignored:
            return None
        n = len(self.ignored)
        what = "file or folder" if n == 1 else "files and folders"
        return f"ignored {n:,} hidden or system {what}, such as {printable(min(self.ignored))}"


# --- Class folders, images, videos ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The images of a folder with one class folder per class, in torchvision's order.

    Attributes:
        folder: the parent of the class folders.
        classes: class names, see `class_name`.
        files: n paths of images.
        labels: (n,) int64, the index in `classes` for each image.
    """

    folder: Path
    classes: tuple[str, ...]
    files: list[Path]
    labels: NDArray[np.int64]


def holds_images(folder: Path) -> bool:
    """Return whether a folder holds images directly, not in subfolders.

    Raises:
        OSError: if the folder cannot be read.
    """
    _, _, files = next(images.walk(folder))
    return any(map(images.is_image_name, files))


def list_tree(folder: Path, notices: Notices) -> Tree:
    """List the images of a folder with one class folder per class.

    Args:
        folder: such as val/, or fog/3 of ImageNet-C.
        notices: collects ignored paths.

    Raises:
        PipelineError: if the folder lacks class folders, or a class folder lacks images.
        OSError: if a folder cannot be read.
    """
    if not folder.is_dir():
        raise PipelineError(f"{folder} is not a folder; unpack the dataset again")
    names = images.class_folders(folder, ignored=notices.ignored)
    if not names:
        raise PipelineError(
            f"{folder} holds {'images but ' if holds_images(folder) else ''}no class folders; put "
            f"the images of each class into a folder {folder}/CLASS"
        )
    files = [class_images(folder, name, ignored=notices.ignored) for name in names]
    return Tree(
        folder=folder,
        classes=tuple(map(class_name, names)),
        files=[*chain.from_iterable(files)],
        labels=np.repeat(np.arange(len(names), dtype=np.int64), [*map(len, files)]),
    )


def list_videos(folder: Path, notices: Notices) -> list[Path]:
    """Return the .mp4 files of a folder and its subfolders, sorted.

    Raises:
        PipelineError: if none is found.
        OSError: if a folder cannot be read.
    """
    below = images.files_below(folder, ignored=notices.ignored)
    videos = sorted(path for path in below if images.extension_of(path.name) == "mp4")
    if not videos:
        raise PipelineError(f"{folder} holds no .mp4 files; unpack the dataset again")
    return videos


# --- The datasets beside a test set --------------------------------------------------------------

MAKE_C_SUFFIX = "-C-made"
"""Suffix of the folder that make-c writes."""

MAKE_C_RECORD = "make-c.json"
"""File in that folder with the settings of make-c."""

_SUFFIXES = {"c": "-C", "c-bar": "-C-Bar", "p": "-P"}

_NATURAL = dataset_named("imagenet").related
"""ImageNet's related datasets, by suite; other datasets have only some of them."""

WITH_FOLDERS = tuple(_NATURAL)
"""Suites whose dataset is in a folder beside the test set."""


class MakeCRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The content of make-c.json: everything that determines the dataset.

    Attributes:
        n: number of images.
        seed: seed of the corruptions.
        labels: SHA-256 of the labels.
        classes: class names, in the order of the labels.
        side: height and width of the images, pixels.
        images: SHA-256 of the uncorrupted images.
        made_by: command and package version.
    """

    n: Count
    seed: int
    labels: str = ""
    classes: tuple[str, ...] = ()
    side: int = 0
    images: str = ""
    made_by: str = ""

    def summary(self) -> dict[str, Any]:
        """Return the description for tables, reports and JSON."""
        return {"by": "pixmix-eval make-c", "images": self.n, "constants": "ImageNet",
                "seed": self.seed}  # fmt: skip


def read_make_c_record(folder: Path, remedy: str) -> MakeCRecord | None:
    """Return the content of make-c.json; None without the file.

    Raises:
        PipelineError: if the file is damaged or cannot be read.
    """
    path = folder / MAKE_C_RECORD
    try:
        content = read_regular(path, max_bytes=1 << 24)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error, remedy) from error
    return read_json(content, MakeCRecord, str(path), remedy)


def remedy_for(name: str, suffix: str) -> str:
    """Return how to get a missing or damaged dataset, for the end of an error."""
    dataset = dataset_titled(name)
    related = dataset.related.values() if dataset else ()
    ways = [f"download it from {each.page}" for each in related if each.folder == f"{name}{suffix}"]
    if suffix == "-C" and name != IMAGENET:
        ways.append("generate a similar set with pixmix-eval make-c")
    return ", or ".join(ways) or f"no {name}{suffix} is published; leave the suite out"


def find_suite_folder(
    root: Path | None, name: str, suite: str, notices: Notices
) -> tuple[Path, MakeCRecord | None]:
    """Return the folder of a suite's dataset, and its record if make-c made it.

    Args:
        root: the parent folder; None if the test set is at a URL.
        name: name of the test set, such as "CIFAR-10".
        suite: one of `WITH_FOLDERS`.
        notices: collects a line if both an official dataset and one of make-c are present.

    Raises:
        MissingDataError: if no folder is found.
        PipelineError: if several folders match, or the record is damaged.
        OSError: if the folder cannot be read.
    """
    if root is None:
        raise MissingDataError(
            "a URL has only the test set; pass a local --data that also has the datasets of other "
            "suites"
        )
    if suite not in _SUFFIXES:
        natural = _NATURAL[suite]
        folder = find_folder(root, natural.folder)
        if folder is None:
            raise MissingDataError(
                f"{root} has no folder {natural.folder.lower()}; download it from {natural.page}"
            )
        return folder, None
    suffix = _SUFFIXES[suite]
    folder = find_folder(root, f"{name}{suffix}")
    if suite == "c":
        made = find_folder(root, f"{name}{MAKE_C_SUFFIX}")
        if made is not None and (folder is None or (folder / MAKE_C_RECORD).exists()):
            folder, made = made, folder
        if folder is not None and made is not None:
            notices.add(
                f"{folder} is evaluated, and {made} is not; move {folder} away to evaluate {made}"
            )
    if folder is None:
        raise MissingDataError(f"{root / name}{suffix} is not found; {remedy_for(name, suffix)}")
    remedy = f"remove {folder} and make it again with pixmix-eval make-c"
    record = read_make_c_record(folder, remedy)
    if record is None and folder.name.endswith(MAKE_C_SUFFIX):
        raise PipelineError(f"{folder} has no {MAKE_C_RECORD}, the record of make-c; {remedy}")
    return folder, record


def missing_sets(root: Path | None, name: str, suites: Sequence[str]) -> dict[str, str]:
    """Return the error of each suite whose folder is missing, by suite.

    Raises:
        OSError: if the folder cannot be read.
    """
    missing = {}
    for suite in suites:
        if suite in WITH_FOLDERS:
            try:
                find_suite_folder(root, name, suite, Notices())
            except MissingDataError as error:
                missing[suite] = str(error)
            except PipelineError:
                continue  # The folder is present but damaged; the suite reports that.
    return missing


def find_folder(root: Path, name: str) -> Path | None:
    """Return the folder of a name in root, ignoring case, dashes and underscores.

    "ImageNet-C-Bar" is also found as imagenet_c_bar, and ImageNet-R as imagenet-r.

    Raises:
        PipelineError: if several folders match and none exactly.
        OSError: if root cannot be read.
    """
    matches = [
        path
        for path in sorted(root.iterdir())
        if _normalized(path.name) == _normalized(name) and path.is_dir()
    ]
    exact = [path for path in matches if path.name == name]
    if len(matches) > 1 and not exact:
        raise PipelineError(
            f"{root} has {' and '.join(path.name for path in matches)}; keep one of them"
        )
    return next(iter(exact or matches), None)


def _normalized(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
