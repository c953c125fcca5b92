"""Which output of a network stands for which class."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files


@cache
def imagenet_classes() -> tuple[str, ...]:
    """Return the WordNet ids of ImageNet-1k's 1,000 classes, sorted: the order of its outputs."""
    text = (files("pipelines.evaluation") / "imagenet_classes.txt").read_text(encoding="ascii")
    return tuple(text.split())


def are_of_imagenet(names: Sequence[str]) -> bool:
    """Return whether there are names, and all are WordNet ids of ImageNet-1k."""
    return len(names) > 0 and set(names) <= set(imagenet_classes())
