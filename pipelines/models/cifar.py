"""Networks for images of 32 pixels: wide residual networks, ResNeXt, DenseNet and DenseNet-BC.

The tensor names of the wide networks and of DenseNet 40-12 are those of the PixMix reference, so
its checkpoints can be loaded; `ResNeXt.translate_name` maps the names of its ResNeXt.
"""

import math
import re

import torch
from torch import Tensor, nn
from torch.nn import functional


def initialize(module: nn.Module) -> None:
    """Initialize a CIFAR network (He et al., ICCV 2015, fan out).

    Convolutions are normal with variance 2 / (k k out), biases of linear layers 0; norms stay.
    """
    for each in module.modules():
        if isinstance(each, nn.Conv2d):
            fan_out = each.kernel_size[0] * each.kernel_size[1] * each.out_channels
            nn.init.normal_(each.weight, 0, math.sqrt(2 / fan_out))
        elif isinstance(each, nn.Linear):
            nn.init.zeros_(each.bias)


class BasicBlock(nn.Module):
    """A residual block: bn, relu, conv, bn, relu, dropout, conv.

    If the number of channels changes, the shortcut is a convolution of the activated input.
    """

    def __init__(self, channels: int, out: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.dropout = dropout
        self.conv_shortcut = (
            nn.Conv2d(channels, out, 1, stride, bias=False) if channels != out else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, channels, h, w) -> (B, out, h / stride, w / stride)."""
        activated = functional.relu(self.bn1(x))
        y = functional.relu(self.bn2(self.conv1(activated)))
        if self.dropout:
            y = functional.dropout(y, self.dropout, self.training)
        y = self.conv2(y)
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(activated)
        summed: Tensor = shortcut + y
        return summed


class NetworkBlock(nn.Module):
    """A sequence of blocks, the first one with a stride."""

    def __init__(self, n: int, channels: int, out: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(
                BasicBlock(
                    channels if position == 0 else out,
                    out,
                    stride=stride if position == 0 else 1,
                    dropout=dropout,
                )
                for position in range(n)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, channels, h, w) -> (B, out, h / stride, w / stride)."""
        y: Tensor = self.layer(x)
        return y


class WideResNet(nn.Module):
    """Wide residual network: normalized (B, 3, h, w) -> (B, classes) logits.

    WRN-40-4 has 8,949,210 parameters with 10 classes.

    Args:
        depth: number of convolutions, 6 n + 4.
        width: factor of the 16, 32 and 64 channels.
        classes: number of logits.
        dropout: dropout in the blocks, 0..1.

    Raises:
        ValueError: if the depth is not 6 n + 4.
    """

    def __init__(
        self, depth: int = 40, width: int = 4, classes: int = 10, dropout: float = 0.0
    ) -> None:
        super().__init__()
        n, rest = divmod(depth - 4, 6)
        if rest or n < 1:
            raise ValueError(f"depth is {depth}; use 6 n + 4, such as 16, 28 or 40")
        channels = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.block1 = NetworkBlock(n, channels[0], channels[1], stride=1, dropout=dropout)
        self.block2 = NetworkBlock(n, channels[1], channels[2], stride=2, dropout=dropout)
        self.block3 = NetworkBlock(n, channels[2], channels[3], stride=2, dropout=dropout)
        self.bn1 = nn.BatchNorm2d(channels[3])
        self.fc = nn.Linear(channels[3], classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(functional.relu(self.bn1(x)).mean((2, 3)))
        return logits


_EXPANSION = 4


class Bottleneck(nn.Module):
    """A residual block: 1x1, grouped 3x3 and 1x1 convolutions, each with a norm."""

    def __init__(
        self, channels: int, planes: int, *, stride: int, cardinality: int, base_width: int
    ) -> None:
        super().__init__()
        width = planes * base_width // 64 * cardinality
        out = planes * _EXPANSION
        self.reduce = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, stride, padding=1, groups=cardinality, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.shortcut = (
            nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            if stride != 1 or channels != out
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, channels, h, w) -> (B, 4 planes, h / stride, w / stride)."""
        y = functional.relu(self.bn1(self.reduce(x)))
        y = functional.relu(self.bn2(self.conv(y)))
        return functional.relu(self.bn3(self.expand(y)) + self.shortcut(x))


class ResNeXt(nn.Module):
    """ResNeXt: normalized (B, 3, h, w) -> (B, classes) logits.

    AugMix and PixMix call 4 groups of 32 channels "ResNeXt-29 (32x4)".

    Args:
        depth: number of convolutions and the last layer, 9 n + 2.
        cardinality: number of groups.
        base_width: channels of a group in the first stage.
        classes: number of logits.

    Raises:
        ValueError: if the depth is not 9 n + 2.
    """

    def __init__(
        self, depth: int = 29, cardinality: int = 4, base_width: int = 32, classes: int = 10
    ) -> None:
        super().__init__()
        n, rest = divmod(depth - 2, 9)
        if rest or n < 1:
            raise ValueError(f"depth is {depth}; use 9 n + 2, such as 29")
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        blocks: list[nn.Module] = []
        channels = 64
        for stage in range(3):
            planes = 64 * 2**stage
            for position in range(n):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(
                    Bottleneck(
                        channels, planes, stride=stride, cardinality=cardinality,
                        base_width=base_width,
                    )
                )  # fmt: skip
                channels = planes * _EXPANSION
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, classes)
        self._per_stage = n
        initialize(self)
        # As in the reference; its standard deviation is 2.4 times that of torch's default.
        nn.init.kaiming_normal_(self.fc.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        x = self.blocks(functional.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits

    def translate_name(self, name: str) -> str:
        """Map a tensor name of the PixMix reference's ResNeXt to the one here."""
        match = re.fullmatch(r"stage_([123])\.(\d{1,4})\.(\w+)\.(.+)", name)
        if match is not None and match[3] in _BLOCK_NAMES:
            position = (int(match[1]) - 1) * self._per_stage + int(match[2])
            return f"blocks.{position}.{_BLOCK_NAMES[match[3]]}.{match[4]}"
        first, dot, rest = name.partition(".")
        return _OUTER_NAMES.get(first, first) + dot + rest


_BLOCK_NAMES = {
    "conv_reduce": "reduce", "bn_reduce": "bn1", "conv_conv": "conv", "bn": "bn2",
    "conv_expand": "expand", "bn_expand": "bn3", "downsample": "shortcut",
}  # fmt: skip
_OUTER_NAMES = {"conv_1_3x3": "conv1", "bn_1": "bn1", "classifier": "fc"}
"""Tensor name prefixes of the reference in a block and outside, with ours."""


class BottleneckLayer(nn.Module):
    """bn, relu, 1x1 to 4 growth, bn, relu, 3x3 to growth channels, concatenated to the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.reduce = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, channels, h, w) -> (B, channels + growth, h, w)."""
        y = self.reduce(functional.relu(self.bn1(x)))
        return torch.cat([x, self.conv(functional.relu(self.bn2(y)))], 1)


class Transition(nn.Module):
    """bn, relu, 1x1 to half of the channels, and 2x2 average pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, channels, h, w) -> (B, channels / 2, h / 2, w / 2)."""
        return functional.avg_pool2d(self.conv(functional.relu(self.bn(x))), 2)


class DenseNetBC(nn.Module):
    """DenseNet-BC: normalized (B, 3, h, w) -> (B, classes) logits.

    Args:
        depth: number of convolutions and the last layer, 6 n + 4.
        growth: number of channels that each layer adds.
        classes: number of logits.

    Raises:
        ValueError: if the depth is not 6 n + 4.
    """

    def __init__(self, depth: int = 100, growth: int = 12, classes: int = 10) -> None:
        super().__init__()
        n, rest = divmod(depth - 4, 6)
        if rest or n < 1:
            raise ValueError(f"depth is {depth}; use 6 n + 4, such as 100")
        channels = 2 * growth
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for stage in range(3):
            for _ in range(n):
                blocks.append(BottleneckLayer(channels, growth))
                channels += growth
            if stage < 2:
                blocks.append(Transition(channels))
                channels //= 2
        self.blocks = nn.Sequential(*blocks)
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        x = functional.relu(self.bn1(self.blocks(self.conv1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class PlainLayer(nn.Module):
    """bn, relu, 3x3 to growth channels, concatenated to the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, channels, h, w) -> (B, channels + growth, h, w)."""
        return torch.cat([x, self.conv1(functional.relu(self.bn1(x)))], 1)


class PlainTransition(nn.Module):
    """bn, relu, 1x1 to the same number of channels, and 2x2 average pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, channels, h, w) -> (B, channels, h / 2, w / 2)."""
        return functional.avg_pool2d(self.conv1(functional.relu(self.bn1(x))), 2)


class DenseNet(nn.Module):
    """DenseNet without bottlenecks: normalized (B, 3, h, w) -> (B, classes) logits.

    Depth 40 and growth 12, as in the PixMix reference, have 1,059,298 parameters with 10 classes.

    Args:
        depth: number of convolutions and the last layer, 3 n + 4.
        growth: number of channels that each layer adds.
        classes: number of logits.

    Raises:
        ValueError: if the depth is not 3 n + 4.
    """

    def __init__(self, depth: int = 40, growth: int = 12, classes: int = 10) -> None:
        super().__init__()
        n, rest = divmod(depth - 4, 3)
        if rest or n < 1:
            raise ValueError(f"depth is {depth}; use 3 n + 4, such as 40")

        def dense(channels: int) -> nn.Sequential:
            return nn.Sequential(*(PlainLayer(channels + i * growth, growth) for i in range(n)))

        added = n * growth
        channels = 2 * growth
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.dense1 = dense(channels)
        self.trans1 = PlainTransition(channels + added)
        self.dense2 = dense(channels + added)
        self.trans2 = PlainTransition(channels + 2 * added)
        self.dense3 = dense(channels + 2 * added)
        self.bn1 = nn.BatchNorm2d(channels + 3 * added)
        self.fc = nn.Linear(channels + 3 * added, classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.dense3(self.trans2(self.dense2(x)))
        logits: Tensor = self.fc(functional.relu(self.bn1(x)).mean((2, 3)))
        return logits
