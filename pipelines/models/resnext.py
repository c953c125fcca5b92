"""ResNeXt for CIFAR (Xie et al., CVPR 2017, section 5.2): three stages of bottlenecks."""

import re

from torch import Tensor, nn
from torch.nn import functional

from pipelines.models.initialization import initialize

_EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1, each with a norm, and the input added."""

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
    """(B, 3, h, w), normalized -> (B, classes) logits; 32 px in CIFAR.

    depth: 9 n + 2, of convolutions and the last layer. cardinality: groups; base_width: channels of
    a group in the first stage. AugMix and PixMix call 4 groups of 32 "ResNeXt-29 (32x4)".

    Raises:
        ValueError: if the depth is no 9 n + 2.
    """

    def __init__(
        self, depth: int = 29, cardinality: int = 4, base_width: int = 32, classes: int = 10
    ) -> None:
        super().__init__()
        n, rest = divmod(depth - 2, 9)
        if rest or n < 1:
            raise ValueError(f"depth is {depth}; give 9 n + 2, such as 29")
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
        # As the reference draws it, which is 2.4 times wider than the default of torch.
        nn.init.kaiming_normal_(self.fc.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        x = self.blocks(functional.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits

    def own_name(self, name: str) -> str:
        """Return the name here of a tensor of the PixMix reference's ResNeXt."""
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
"""The reference's names for parts of a block and of the network, and ours."""
