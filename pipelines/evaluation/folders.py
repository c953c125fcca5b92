"""Which output of a network stands for which class folder.

By the names of the network's classes where they are known, which for ImageNet's 1,000 outputs are
the WordNet ids; by value where folders are numbers, as ImageNet-V2's 0 to 999; and by their order
only where there are exactly as many as outputs, or where they are counted from 0, as class0,
class1, ... Whatever else would shift the labels is refused.

Folders of images to evaluate on: what in them is a class or an image, and where datasets lie.

A C set that `pixmix-eval make-c` made lies in NAME-C-made and has make-c.json; it is never taken
for the one that its authors distribute, wherever it lies.
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
_MOST_OUTPUTS = 1_000_000
_NAMED = 3
"""Folders that an error names."""


@cache
def imagenet_classes() -> tuple[str, ...]:
    """Return the WordNet ids of ImageNet-1k's 1,000 classes, sorted: the order of its outputs."""
    text = (files("pipelines.evaluation") / "imagenet_classes.txt").read_text(encoding="ascii")
    return tuple(text.split())


def are_imagenet_classes(names: Sequence[str]) -> bool:
    """Return whether there are names, and all are WordNet ids of ImageNet-1k."""
    return len(names) > 0 and set(names) <= set(imagenet_classes())


@dataclass(frozen=True, kw_only=True)
class ClassMatch:
    """The outputs for a dataset's classes.

    outputs: (classes,) int64, by position in the dataset's names.
    classes: names by output, or nothing where not all are known.
    how: "names", "values" or "order".
    """

    outputs: NDArray[np.int64]
    classes: tuple[str, ...]
    how: str


def match_classes(
    names: Sequence[str], known: Sequence[str], n_outputs: int | None, where: str
) -> ClassMatch:
    """Return the outputs of a network for the classes of a dataset.

    Args:
        names: of the dataset's classes, at least one.
        known: names of the network's classes by output, or nothing.
        n_outputs: of the network; None without a network; then the order of the names counts.
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
        _refuse_mixed(names, kinds, where, only="WordNet id" if tuple(known) == imagenet else None)
        return ClassMatch(
            outputs=find_outputs(names, known, where), classes=tuple(known), how="names"
        )
    if by_value:
        return _by_value(names, known, n_outputs, where)
    if n_outputs is not None:
        if len(set(kinds)) > 1:
            _refuse_mixed(names, kinds, where, only=max(kinds, key=kinds.count))
        numbers = _trailing_numbers(names)
        if numbers is not None and list(numbers) != sorted(numbers):
            first = next(i for i, pair in enumerate(pairwise(numbers)) if pair[0] > pair[1])
            raise PipelineError(
                f"{where} has the class folders {names[first]!r} and {names[first + 1]!r}, whose "
                "order by name is not that of their numbers, and the names of the network's "
                "classes are not known; name the folders 0, 1, 2, ... by output"
            )
        # Counted from 0, place and number agree.
        counted = numbers == tuple(range(len(names)))
        if len(names) != n_outputs and not (counted and len(names) < n_outputs):
            raise PipelineError(
                f"{where} has {len(names)} classes and the network {n_outputs} outputs, and the "
                "names of the network's classes are not known; evaluate a set with a folder for "
                "each output, remove folders that are not classes, or name the folders by output: "
                "0, 1, 2, ..."
            )
    classes = tuple(names) if n_outputs in {None, len(names)} else ()
    return ClassMatch(outputs=np.arange(len(names)), classes=classes, how="order")


def _trailing_numbers(names: Sequence[str]) -> tuple[int, ...] | None:
    """Return the numbers of names such as class0, class1, ...; None where they are not such."""
    found = [_NUMBERED.fullmatch(name) for name in names]
    if None in found or len({match[1] for match in found if match}) != 1:
        return None
    return tuple(int(match[2]) for match in found if match)


def is_class_name(name: str) -> bool:
    """Return whether a folder's name alone says that it is a class: a number or a WordNet id."""
    return _kind(name) != "other name"


def _kind(name: str) -> str:
    if _NUMBER.fullmatch(name):
        return "number"
    return "WordNet id" if _WORDNET_ID.fullmatch(name) else "other name"


def _refuse_mixed(
    names: Sequence[str], kinds: Sequence[str], where: str, *, only: str | None
) -> None:
    """Refuse stray folders among those of a kind: numbers or WordNet ids."""
    stray = [name for name, kind in zip(names, kinds, strict=True) if kind != only]
    if only is None or not stray:
        return
    raise PipelineError(
        f"{where} has {len(names)} classes, of which {len(names) - len(stray)} are named by "
        f"{only}s and {len(stray)} not ({_some(stray)}); remove or rename the stray ones"
    )


def _by_value(
    names: Sequence[str], known: Sequence[str], n_outputs: int | None, where: str
) -> ClassMatch:
    values = [int(name) for name in names]
    most = _MOST_OUTPUTS if n_outputs is None else n_outputs
    wrong = [name for name, value in zip(names, values, strict=True) if not 0 <= value < most]
    if wrong:
        of = "" if n_outputs is None else f", the network's {n_outputs} outputs"
        raise PipelineError(
            f"{where} has {len(names)} numbered classes, of which {len(wrong)} ({_some(wrong)}) "
            f"are not within 0 to {most - 1}{of}; rename each folder to its output, counted from 0"
        )
    counts = Counter(values)
    twice = [name for name, value in zip(names, values, strict=True) if counts[value] > 1]
    if twice:
        raise PipelineError(
            f"{where} has class folders of the same number ({_some(twice)}); keep one of each"
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

    def add(self, line: str) -> None:
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

MAKE_C_SUFFIX = "-C-made"
"""Ends the name of a folder that make-c makes."""

MAKE_C_RECORD = "make-c.json"

_SUFFIXES = {"c": "-C", "c-bar": "-C-Bar", "p": "-P"}

_NATURAL = dataset_named("imagenet").related
"""The sets beside ImageNet's test set, some of which no other dataset has."""

WITH_FOLDERS = tuple(_NATURAL)
"""Suites that have a folder of their own beside the test set."""


class MakeCRecord(msgspec.Struct, frozen=True, kw_only=True):
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


def read_make_c_record(folder: Path, remedy: str) -> MakeCRecord | None:
    """Return the content of make-c.json of a set; None without the file.

    Raises:
        PipelineError: if it is damaged.
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
    """Return how to get a set that is missing or damaged, for the end of an error."""
    dataset = dataset_titled(name)
    related = dataset.related.values() if dataset else ()
    ways = [f"get it from {each.page}" for each in related if each.folder == f"{name}{suffix}"]
    if suffix == "-C" and name != IMAGENET:
        ways.append("make one by pixmix-eval make-c")
    return ", or ".join(ways) or f"nobody distributes one of {name}; leave the suite out"


def find_suite_folder(
    root: Path, name: str, suite: str, notices: Notices
) -> tuple[Path, MakeCRecord | None]:
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
        made = find_folder(root, f"{name}{MAKE_C_SUFFIX}")
        if made is not None and (folder is None or (folder / MAKE_C_RECORD).exists()):
            folder, made = made, folder
        if folder is not None and made is not None:
            notices.add(
                f"{folder} is evaluated, and not {made}; move it away to evaluate the other"
            )
    if folder is None:
        raise MissingDataError(f"{root / name}{suffix} is not there; {remedy_for(name, suffix)}")
    remedy = f"remove {folder} and make it again by pixmix-eval make-c"
    made_of = read_make_c_record(folder, remedy)
    if made_of is None and folder.name.endswith(MAKE_C_SUFFIX):
        raise PipelineError(
            f"{folder} has no {MAKE_C_RECORD}, which says what it is made of; {remedy}"
        )
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
                find_suite_folder(root, name, suite, Notices())
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
