"""Feature visualization as it is commonly written: the rival of the benchmark.

One picture at a time, in float32, through the whole network, whose weights get gradients too, seen
by a forward hook; the transformations one after another, each with an interpolation of its own.
"""

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

_PADDING = 12
_GREY = 0.5


class PlainVisualization:
    """A picture that is optimized for a channel of a layer, step by step.

    module: from (1, 3, side, side), whose submodule `layer` gives (1, channels, h, w).
    side: pixels; mean, std: of the network's input.
    """

    def __init__(
        self,
        module: nn.Module,
        layer: str,
        channel: int,
        side: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        self.module = module.eval().requires_grad_(True)
        self.channel = channel
        self.side = side
        generator = torch.Generator().manual_seed(channel)
        rows = torch.fft.fftfreq(side)[:, None]
        columns = torch.fft.fftfreq(side)[: side // 2 + 1][None]
        self.scale = 1 / torch.hypot(rows, columns).clamp(min=1 / side) * side
        drawn = torch.randn((1, 3, *self.scale.shape, 2), generator=generator)
        self.spectrum = (0.01 * drawn).requires_grad_()
        self.colours = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
        self.colours = self.colours / self.colours.norm(dim=0).max()
        self.optimizer = torch.optim.Adam([self.spectrum], lr=0.05)
        self.transforms = v2.Compose(
            [
                v2.Pad(_PADDING, fill=_GREY),
                v2.RandomCrop(side + 2 * _PADDING - 8),
                # Without a fill, for that is written in place, which autograd refuses.
                v2.RandomAffine(
                    10,
                    scale=(0.9, 1.1),
                    interpolation=v2.InterpolationMode.BILINEAR,
                    fill=None,
                ),
                v2.RandomCrop(side + 2 * _PADDING - 12),
                v2.Resize((side, side), antialias=False),
                v2.Normalize(mean, std),
            ]
        )
        self.seen: dict[str, Tensor] = {}
        self.hook = self.module.get_submodule(layer).register_forward_hook(self._see)

    def picture(self) -> Tensor:
        """Return the picture, (1, 3, side, side) in 0..1."""
        waves = torch.view_as_complex(self.spectrum) * self.scale
        planes = torch.fft.irfft2(waves, s=(self.side, self.side)) / 4
        return torch.sigmoid(torch.einsum("ij,bjhw->bihw", self.colours, planes))

    def step(self) -> float:
        """Take a step, and return what the channel's mean was."""
        self.optimizer.zero_grad()
        self.module(self.transforms(self.picture()))
        value = self.seen["activations"][:, self.channel].mean()
        (-value).backward()
        self.optimizer.step()
        return value.item()

    def _see(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self.seen["activations"] = output
