"""Networks for pictures of CIFAR's size, by name."""

import re
from collections.abc import Callable

from torch import nn

from pipelines.models.densenet import DenseNet
from pipelines.models.resnext import ResNeXt
from pipelines.models.wide_resnet import WideResNet

EXAMPLES = ("wrn_40_4", "wrn_28_10", "wrn_16_2", "resnext29_32x4", "densenet_bc_100_12")


def cifar_network(name: str, classes: int, *, dropout: float = 0.0) -> nn.Module | None:
    """Return a network of a name, or None if it is no name of one.

        wrn_DEPTH_WIDTH   resnextDEPTH_WIDTHxGROUPS   densenet_bc_DEPTH_GROWTH

    classes: 2 or more. dropout: of the wide networks' blocks; the others have none.

    Raises:
        ValueError: if there is no such depth.
    """
    builders: tuple[tuple[str, Callable[[int, int, int], nn.Module]], ...] = (
        (
            r"wrn_([1-9]\d*)_([1-9]\d*)",
            lambda depth, width, _: WideResNet(depth, width, classes, dropout),
        ),
        (
            r"resnext([1-9]\d*)_([1-9]\d*)x([1-9]\d*)",
            lambda depth, width, groups: ResNeXt(depth, groups, width, classes),
        ),
        (
            r"densenet_bc_([1-9]\d*)_([1-9]\d*)",
            lambda depth, growth, _: DenseNet(depth, growth, classes),
        ),
    )
    for pattern, build in builders:
        match = re.fullmatch(pattern, name)
        if match:
            first, second, third = (int(each) for each in (*match.groups(), 0)[:3])
            return build(first, second, third)
    return None


def takes_dropout(name: str) -> bool:
    """Return whether a network of a name has dropout that a recipe can set."""
    return name.startswith("wrn_")
