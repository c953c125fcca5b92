"""DenseNet and DenseNet-BC for CIFAR (Huang et al., CVPR 2017, section 3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.models.initialization import initialize


class BottleneckLayer(nn.Module):
    """bn, relu, 1x1 to 4 growths, bn, relu, 3x3 to the growth; put beside the input."""

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
    """bn, relu, 1x1 to half the channels, and an average over 2x2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, channels, h, w) -> (B, channels / 2, h / 2, w / 2)."""
        return functional.avg_pool2d(self.conv(functional.relu(self.bn(x))), 2)


class DenseNetBC(nn.Module):
    """(B, 3, h, w), normalized -> (B, classes) logits; 32 px in CIFAR.

    depth: 6 n + 4, of convolutions and the last layer; growth: channels that each layer adds.

    Raises:
        ValueError: if the depth is no 6 n + 4.
    """

    def __init__(self, depth: int = 100, growth: int = 12, classes: int = 10) -> None:
        super().__init__()
        n, rest = divmod(depth - 4, 6)
        if rest or n < 1:
            raise ValueError(f"depth is {depth}; give 6 n + 4, such as 100")
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
    """bn, relu, 3x3 to the growth; put beside the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, channels, h, w) -> (B, channels + growth, h, w)."""
        return torch.cat([x, self.conv1(functional.relu(self.bn1(x)))], 1)


class PlainTransition(nn.Module):
    """bn, relu, 1x1 to as many channels, and an average over 2x2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, channels, h, w) -> (B, channels, h / 2, w / 2)."""
        return functional.avg_pool2d(self.conv1(functional.relu(self.bn1(x))), 2)


class DenseNet(nn.Module):
    """(B, 3, h, w), normalized -> (B, classes) logits; 32 px in CIFAR; without bottlenecks.

    depth: 3 n + 4, of convolutions and the last layer; growth: channels that each layer adds. The
    40-12 of the PixMix reference has 1,059,298 parameters with 10 classes, and tensors of these
    names.

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
