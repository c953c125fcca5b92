"""Networks for pictures of CIFAR's size, by name."""

import re

from torch import nn

from pipelines.models.densenet import DenseNet, DenseNetBC
from pipelines.models.resnext import ResNeXt
from pipelines.models.wide_resnet import WideResNet

EXAMPLES = (
    "wrn_40_4",
    "wrn_28_10",
    "wrn_16_2",
    "resnext29_32x4",
    "densenet_bc_100_12",
    "densenet_40_12",
)


_SIZE = r"([1-9]\d{0,3})"
_PATTERNS = (
    rf"wrn_{_SIZE}_{_SIZE}",
    rf"resnext{_SIZE}_{_SIZE}x{_SIZE}",
    rf"densenet_bc_{_SIZE}_{_SIZE}",
    rf"densenet_{_SIZE}_{_SIZE}",
)


def is_cifar_network(name: str) -> bool:
    """Return whether a name is one of `build_cifar_network`."""
    return any(re.fullmatch(pattern, name) for pattern in _PATTERNS)


def build_cifar_network(name: str, classes: int, *, dropout: float = 0.0) -> nn.Module:
    """Return a network with drawn weights.

        wrn_DEPTH_WIDTH             resnextDEPTH_WIDTHxGROUPS
        densenet_bc_DEPTH_GROWTH    densenet_DEPTH_GROWTH

    Args:
        name: one of those.
        classes: number of classes, 2 or more.
        dropout: of the blocks of wide networks, 0..1; the others have none.

    Raises:
        ValueError: if there is no such name, or no such depth.
    """
    wide, resnext, bottlenecked, dense = (re.fullmatch(each, name) for each in _PATTERNS)
    if wide is not None:
        return WideResNet(int(wide[1]), int(wide[2]), classes, dropout)
    if resnext is not None:
        return ResNeXt(int(resnext[1]), int(resnext[3]), int(resnext[2]), classes)
    if bottlenecked is not None:
        return DenseNetBC(int(bottlenecked[1]), int(bottlenecked[2]), classes)
    if dense is not None:
        return DenseNet(int(dense[1]), int(dense[2]), classes)
    raise ValueError(f"{name!r} does not name a network for CIFAR; use one such as {EXAMPLES[0]}")


def takes_dropout(name: str) -> bool:
    """Return whether a network of a name has dropout that a recipe can set."""
    return name.startswith("wrn_")
