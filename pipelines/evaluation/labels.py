"""Which output of a network stands for which class folder.

By the names of the network's classes where they are known, which for ImageNet's 1,000 outputs are
the WordNet ids; by value where folders are numbers, as ImageNet-V2's 0 to 999; and by their order
only where there are exactly as many as outputs, or where they are counted from 0, as class0,
class1, ... Whatever else would shift the labels is refused.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.models.outputs import outputs_of

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


def are_of_imagenet(names: Sequence[str]) -> bool:
    """Return whether there are names, and all are WordNet ids of ImageNet-1k."""
    return len(names) > 0 and set(names) <= set(imagenet_classes())


@dataclass(frozen=True, kw_only=True)
class Matched:
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
) -> Matched:
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
        return Matched(outputs=outputs_of(names, known, where), classes=tuple(known), how="names")
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
    return Matched(outputs=np.arange(len(names)), classes=classes, how="order")


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
) -> Matched:
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
    return Matched(outputs=np.array(values, np.int64), classes=classes, how="values")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(map(repr, names[:_NAMED]))}{more}"
