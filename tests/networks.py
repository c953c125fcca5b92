"""Small networks for tests of feature visualization."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Tiny(nn.Module):
    """Two convolutions with norms, in-place ReLUs, an in-place residual sum, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(2)
        self.conv2 = nn.Conv2d(12, 12, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(12)
        self.conv3 = nn.Conv2d(12, 20, 3, padding=1)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        y = self.bn2(self.conv2(x))
        y += x
        y = self.relu(y)
        y = self.conv3(y)
        return self.head(functional.relu6(y).mean((2, 3)))


class Tokens(nn.Module):
    """Patches as tokens, for one image size, with a norm over the last dimension."""

    def __init__(self, side: int = 32) -> None:
        super().__init__()
        self.side = side
        self.patches = nn.Conv2d(3, 10, 8, stride=8)
        self.norm = nn.LayerNorm(10)
        self.mix = nn.Linear(10, 14)
        self.head = nn.Linear(14, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (self.side, self.side):
            raise ValueError(f"images of {tuple(x.shape[2:])}")
        tokens = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        return self.head(functional.gelu(self.mix(tokens)).mean(1))


class ChannelsLast(nn.Module):
    """Activations (B, height, width, channels), as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.mix = nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.patches(x).permute(0, 2, 3, 1)).mean((1, 2))


def seeded(network: type[nn.Module], seed: int = 0) -> nn.Module:
    """Return a network with weights of a seed, and norms with non-default statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network_module = network()
        for module in network_module.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return network_module


def tiny() -> nn.Module:
    """Return a tiny network; tests refer to it as ``module:function``."""
    return seeded(Tiny)


def classifier(classes: int) -> nn.Module:
    """Return a tiny network with the given number of classes, for ``pixmix-train --model``."""
    network_module = Tiny()
    network_module.head = nn.Linear(20, classes)
    return network_module


def linear(classes: int) -> nn.Module:
    """Return a network of one linear layer, for images of 32 pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, classes))
