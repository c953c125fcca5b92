"""The sets beside a test set: how their folders are called, where they come from, which is taken.

A C set that `pixmix-eval make-c` made lies in NAME-C-made and has made-of.json; it is never taken
for the one that its authors distribute, wherever it lies.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipelines.datasets import dataset_named, dataset_titled
from pipelines.errors import PipelineError
from pipelines.evaluation.request import IMAGENET, Data, MissingDataError, find_folder
from pipelines.evaluation.trees import Notices
from pipelines.system.files import Count, read_json, read_regular

MADE_SUFFIX = "-C-made"
"""Ends the name of a folder that make-c makes."""

MADE_OF = "made-of.json"

_MOST_JSON = 1 << 20

_SUFFIXES = {"c": "-C", "c-bar": "-C-Bar", "p": "-P"}

_NATURAL = dataset_named("imagenet").related
"""The sets that only ImageNet has, and others."""

WITH_FOLDERS = tuple(_NATURAL)
"""Suites that have a folder of their own beside the test set."""


class MadeOf(msgspec.Struct, frozen=True):
    """What made-of.json says of a set that make-c made, as far as figures on it must say it.

    n: images; seed: of what their corruptions draw.
    """

    n: Count
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return what a table, a report and JSON say of it."""
        return {"by": "pixmix-eval make-c", "images": self.n, "constants": "ImageNet",
                "seed": self.seed}  # fmt: skip


def remedy_for(name: str, suffix: str) -> str:
    """Return how a set that is missing or damaged can be had, for the end of an error."""
    dataset = dataset_titled(name)
    related = dataset.related.values() if dataset else ()
    ways = [f"get it from {each.page}" for each in related if each.folder == f"{name}{suffix}"]
    if suffix == "-C" and name != IMAGENET:
        ways.append("make one by pixmix-eval make-c")
    return ", or ".join(ways) or f"nobody distributes one of {name}; leave the suite out"


def find_set(root: Path, name: str, suite: str, notices: Notices) -> tuple[Path, MadeOf | None]:
    """Return the folder of a suite's set, and what it is made of where make-c made it.

    Args:
        root: the folder above it.
        name: of the test set, as "CIFAR-10".
        suite: "c", "c-bar", "p", "r", "a" or "o".
        notices: is told which is taken where there is an official set beside one of make-c.

    Raises:
        MissingDataError: if there is none.
        PipelineError: if there are several, or it is not what it should be.
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
    return folder, _read_made_of(folder)


def _read_made_of(folder: Path) -> MadeOf | None:
    """Return what make-c said of a set; None of a set that others distribute."""
    path = folder / MADE_OF
    remedy = f"remove {folder} and make it again by pixmix-eval make-c"
    try:
        content = read_regular(path, max_bytes=_MOST_JSON)
    except FileNotFoundError as error:
        if folder.name.endswith(MADE_SUFFIX):
            raise PipelineError(
                f"{folder} has no {MADE_OF}, which says what it is made of; {remedy}"
            ) from error
        return None
    except OSError as error:
        raise PipelineError(
            f"{path} cannot be read: {error.strerror or error}; {remedy}"
        ) from error
    return read_json(content, MadeOf, str(path), remedy)


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
                continue  # It is there and damaged, which the suite says.
    return missing


def set_of(data: Data, suite: str) -> tuple[Path, MadeOf | None]:
    """Return the folder of a suite's set for data; see `find_set`."""
    return find_set(data.root, data.name, suite, data.notices)
