"""Reference implementations, written the common way: the rivals of the benchmark.

Feature visualization: one image at a time, in float32, through the whole network, whose weights get
gradients, too; a forward hook; the transformations one after another, each with its own
interpolation.

PixMix: Pillow and numpy, one sample at a time, from the pseudocode of Hendrycks et al., "PixMix",
CVPR 2022, figure 4. The mixing images are arrays in memory, as for ours.

Datasets: an ImageFolder's Pillow, torchvision and PixMix per sample. The mixing image is opened,
resized and cropped for each sample, whether a round needs it or not, as the method's own code does;
or it is in memory already, as a careful user would have it.
"""

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import RandomHorizontalFlip, RandomResizedCrop, Resize, v2

from pixmix.operations import OPERATIONS
from pixmix.settings import PixMixSettings

_PADDING = 12
_GREY = 0.5


class PlainVisualization:
    """An image that is optimized for a channel of a layer, step by step.

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

    def image(self) -> Tensor:
        """Return the image, (1, 3, side, side) in 0..1."""
        waves = torch.view_as_complex(self.spectrum) * self.scale
        planes = torch.fft.irfft2(waves, s=(self.side, self.side)) / 4
        return torch.sigmoid(torch.einsum("ij,bjhw->bihw", self.colours, planes))

    def step(self) -> float:
        """Take a step, and return what the channel's mean was."""
        self.optimizer.zero_grad()
        self.module(self.transforms(self.image()))
        value = self.seen["activations"][:, self.channel].mean()
        (-value).backward()
        self.optimizer.step()
        return value.item()

    def _see(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self.seen["activations"] = output


Pixels = NDArray[np.uint8]
Values = NDArray[np.float32]

_BILINEAR = Image.Resampling.BILINEAR


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, _BILINEAR)


def _signed(generator: Generator, value: float) -> float:
    return -value if generator.random() < 0.5 else value


def _factor(level: float) -> float:
    return level * 1.8 / 10 + 0.1


_OPERATIONS: dict[str, Callable[[Image.Image, float, Generator], Image.Image]] = {
    "autocontrast": lambda image, _level, _random: ImageOps.autocontrast(image),
    "equalize": lambda image, _level, _random: ImageOps.equalize(image),
    "posterize": lambda image, level, _random: ImageOps.posterize(image, 4 - int(level * 4 / 10)),
    "rotate": lambda image, level, random: image.rotate(_signed(random, int(level * 3)), _BILINEAR),
    "solarize": lambda image, level, _random: ImageOps.solarize(image, 256 - int(level * 25.6)),
    "shear_x": lambda image, level, random: _affine(
        image, 1, _signed(random, level * 0.03), 0, 0, 1, 0
    ),
    "shear_y": lambda image, level, random: _affine(
        image, 1, 0, 0, _signed(random, level * 0.03), 1, 0
    ),
    "translate_x": lambda image, level, random: _affine(
        image, 1, 0, _signed(random, int(level * image.width / 30)), 0, 1, 0
    ),
    "translate_y": lambda image, level, random: _affine(
        image, 1, 0, 0, 0, 1, _signed(random, int(level * image.height / 30))
    ),
    "color": lambda image, level, _random: ImageEnhance.Color(image).enhance(_factor(level)),
    "contrast": lambda image, level, _random: ImageEnhance.Contrast(image).enhance(_factor(level)),
    "brightness": lambda image, level, _random: ImageEnhance.Brightness(image).enhance(
        _factor(level)
    ),
    "sharpness": lambda image, level, _random: ImageEnhance.Sharpness(image).enhance(
        _factor(level)
    ),
}


def _weights(generator: Generator, beta: float) -> tuple[np.float32, np.float32]:
    if generator.random() < 0.5:
        a, b = generator.beta(beta, 1), generator.beta(1, beta)
    else:
        a, b = 1 + generator.beta(1, beta), -generator.beta(1, beta)
    return np.float32(a), np.float32(b)


def plain_add(x: Values, y: Values, a: np.float32, b: np.float32) -> Values:
    """Return (a (2x - 1) + b (2y - 1) + 1) / 2, clipped to [0, 1]; float32."""
    one, two = np.float32(1), np.float32(2)
    mixed: Values = np.clip((a * (two * x - one) + b * (two * y - one) + one) / two, 0, 1)
    return mixed


def plain_multiply(x: Values, y: Values, a: np.float32, b: np.float32) -> Values:
    """Return (2x)^a max(2y, 1e-37)^b / 2, clipped to [0, 1]; float32."""
    two = np.float32(2)
    power = np.maximum(two * y, np.float32(1e-37)) ** b
    mixed: Values = np.clip((two * x) ** a * power / two, 0, 1)
    return mixed


def _random_crop(mixing_image: Pixels, height: int, width: int, generator: Generator) -> Pixels:
    top = generator.integers(mixing_image.shape[0] - height + 1)
    left = generator.integers(mixing_image.shape[1] - width + 1)
    return mixing_image[top : top + height, left : left + width]


def _unit(mixing_image: Pixels) -> Values:
    return np.asarray(mixing_image, np.float32) / np.float32(255)


def plain_pixmix(
    image: Pixels,
    mixing_set: list[Pixels],
    settings: PixMixSettings,
    generator: Generator,
    *,
    padding: int,
    mean: Values,
    std: Values,
) -> Values:
    """Return a sample flipped and cropped (where padded), mixed and normalised.

    image: (H, W, 3) uint8. settings: with the mixings add and multiply. Returns (3, H, W) float32.
    """
    height, width = image.shape[:2]
    if padding:
        if generator.random() < 0.5:
            image = image[:, ::-1]
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        image = _random_crop(padded, height, width, generator)
    own = Image.fromarray(np.ascontiguousarray(image))
    operations = [_OPERATIONS[OPERATIONS[code].name] for code in settings.operation_codes]

    def augmented() -> Pixels:
        level = generator.uniform(0.1, settings.severity)
        made = operations[generator.integers(len(operations))](own, level, generator)
        return np.asarray(made)

    x = _unit(augmented() if generator.random() < 0.5 else image)
    mixing_image = mixing_set[generator.integers(len(mixing_set))]
    crop = None
    for _ in range(generator.integers(settings.k + 1)):
        if generator.random() < 0.5:
            y = augmented()
        else:
            if crop is None:
                crop = _random_crop(mixing_image, height, width, generator)
            y = crop
        mix = plain_add if generator.random() < 0.5 else plain_multiply
        x = mix(x, _unit(y), *_weights(generator, settings.beta))
    return np.ascontiguousarray(((x - mean) / std).transpose(2, 0, 1))


def _opened(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")


class PlainImageNet(Dataset[tuple[Tensor, int]]):
    """Decode, random resized crop, flip and PixMix, a sample at a time."""

    def __init__(
        self,
        contents: Sequence[bytes],
        mixing_files: Sequence[bytes],
        mixing_set: list[NDArray[np.uint8]] | None,
        settings: PixMixSettings,
        *,
        size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        self._contents, self._mixing_files, self._mixing_set = contents, mixing_files, mixing_set
        self._settings = settings
        self._crop, self._flip = RandomResizedCrop(size), RandomHorizontalFlip()
        self._resize = Resize(size * 8 // 7)
        self._mean, self._std = np.array(mean, np.float32), np.array(std, np.float32)
        self._generator: Generator = np.random.default_rng(0)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._contents)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """Return a sample's pixels, (3, size, size) float32, and its label."""
        image = self._flip(self._crop(_opened(self._contents[i])))
        mixing_set = self._mixing_set
        if mixing_set is None:
            which = int(self._generator.integers(len(self._mixing_files)))
            mixing_set = [np.asarray(self._resize(_opened(self._mixing_files[which])))]
        mixed = plain_pixmix(
            np.asarray(image),
            mixing_set,
            self._settings,
            self._generator,
            padding=0,
            mean=self._mean,
            std=self._std,
        )
        return torch.from_numpy(mixed), i


class PlainCifar(Dataset[tuple[Tensor, int]]):
    """Flip, padded crop and PixMix, a sample at a time; all images are in memory."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        mixing_set: list[NDArray[np.uint8]],
        settings: PixMixSettings,
    ) -> None:
        self._images, self._mixing_set, self._settings = images, mixing_set, settings
        self._half = np.full(3, 0.5, np.float32)
        self._generator: Generator = np.random.default_rng(0)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """Return a sample's pixels, (3, 32, 32) float32, and its label."""
        mixed = plain_pixmix(
            self._images[i],
            self._mixing_set,
            self._settings,
            self._generator,
            padding=4,
            mean=self._half,
            std=self._half,
        )
        return torch.from_numpy(mixed), i
