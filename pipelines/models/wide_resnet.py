"""Wide residual networks (Zagoruyko & Komodakis, BMVC 2016), with pre-activation blocks.

Names of tensors are those of the PixMix reference, whose checkpoints load.
"""

from torch import Tensor, nn
from torch.nn import functional

from pipelines.models.initialization import initialize


class BasicBlock(nn.Module):
    """bn, relu, conv, bn, relu, dropout, conv, and the input added.

    Where the channels change, the shortcut is a convolution of the activated input.
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
    """Blocks in a row, the first with a stride."""

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
    """(B, 3, h, w), normalized -> (B, classes) logits; h and w are multiples of 4, 32 in CIFAR.

    depth: 6 n + 4, of convolutions; width: times 16, 32, 64 channels; dropout: 0..1, in blocks.
    WRN-40-4 has 8,949,210 parameters with 10 classes.

    Raises:
        ValueError: if the depth is no 6 n + 4.
    """

    def __init__(
        self, depth: int = 40, width: int = 4, classes: int = 10, dropout: float = 0.0
    ) -> None:
        super().__init__()
        n, rest = divmod(depth - 4, 6)
        if rest or n < 1:
            raise ValueError(f"depth is {depth}; give 6 n + 4, such as 16, 28 or 40")
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
