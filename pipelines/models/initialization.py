"""How the weights of CIFAR networks begin."""

import math

from torch import nn


def initialize(module: nn.Module) -> None:
    """Draw the weights of a network anew, as CIFAR networks are (He et al., ICCV 2015, fan out).

    Convolutions normal with variance 2 / (k k out); biases of linear layers 0; norms stay.
    """
    for each in module.modules():
        if isinstance(each, nn.Conv2d):
            fan_out = each.kernel_size[0] * each.kernel_size[1] * each.out_channels
            nn.init.normal_(each.weight, 0, math.sqrt(2 / fan_out))
        elif isinstance(each, nn.Linear):
            nn.init.zeros_(each.bias)
