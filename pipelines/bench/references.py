"""Plain implementations that the benchmarks compare with, as a typical project writes them.

PixMix: Pillow and numpy, one sample at a time, from the pseudocode of Hendrycks et al., "PixMix",
CVPR 2022, figure 4. `PILLOW_OPERATIONS` also serves the tests.

Datasets: Pillow, torchvision and PixMix per sample, as in an ImageFolder. A mixing image is opened,
resized and cropped for every sample, whether a round needs it or not, as in the released code; or
the mixing set is in memory.

Feature visualization: one image at a time in float32, through the whole network, whose weights get
gradients, too; a forward hook; and one interpolation per transform.
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

from pixmix.operations import OPERATIONS, draw_argument
from pixmix.settings import MIN_LEVEL, PixMixSettings

Pixels = NDArray[np.uint8]
Values = NDArray[np.float32]

# --- PixMix --------------------------------------------------------------------------------------

_BILINEAR = Image.Resampling.BILINEAR


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, _BILINEAR)


PILLOW_OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "rotate": lambda image, degrees: image.rotate(degrees, _BILINEAR),
    "solarize": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
    "shear_x": lambda image, factor: _affine(image, 1, factor, 0, 0, 1, 0),
    "shear_y": lambda image, factor: _affine(image, 1, 0, 0, factor, 1, 0),
    "translate_x": lambda image, pixels: _affine(image, 1, 0, pixels, 0, 1, 0),
    "translate_y": lambda image, pixels: _affine(image, 1, 0, 0, 0, 1, pixels),
    "color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
}
"""Pillow's function of (image, argument) for each operation, by name."""


def _draw_weights(generator: Generator, beta: float) -> tuple[np.float32, np.float32]:
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


def _random_crop(image: Pixels, height: int, width: int, generator: Generator) -> Pixels:
    top = generator.integers(image.shape[0] - height + 1)
    left = generator.integers(image.shape[1] - width + 1)
    return image[top : top + height, left : left + width]


def _to_unit(image: Pixels) -> Values:
    return np.asarray(image, np.float32) / np.float32(255)


def plain_pixmix(
    image: Pixels,
    mixing_image: Pixels,
    settings: PixMixSettings,
    generator: Generator,
    *,
    padding: int,
    mean: Values,
    std: Values,
) -> Values:
    """Flip and crop a sample (if padded), mix it and normalize it.

    Args:
        image: (H, W, 3) uint8.
        mixing_image: at least as large; cropped at random.
        settings: parameters of PixMix.
        generator: source of all random numbers.
        padding: of the random crop in pixels; 0 for neither flip nor crop.
        mean: (3,), of values in [0, 1].
        std: (3,), of values in [0, 1].

    Returns:
        (3, H, W) float32.
    """
    height, width = image.shape[:2]
    if padding:
        if generator.random() < 0.5:
            image = image[:, ::-1]
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        image = _random_crop(padded, height, width, generator)
    source = Image.fromarray(np.ascontiguousarray(image))
    codes = settings.operation_codes

    def augment() -> Pixels:
        code = int(codes[generator.integers(len(codes))])
        level = generator.uniform(MIN_LEVEL, settings.severity)
        argument = draw_argument(code, level, generator.random() < 0.5, height, width)
        return np.asarray(PILLOW_OPERATIONS[OPERATIONS[code].name](source, argument))

    x = _to_unit(augment() if generator.random() < 0.5 else image)
    crop = None
    for _ in range(generator.integers(settings.k + 1)):
        if generator.random() < 0.5:
            y = augment()
        else:
            if crop is None:
                crop = _random_crop(mixing_image, height, width, generator)
            y = crop
        mix = plain_add if generator.random() < 0.5 else plain_multiply
        x = mix(x, _to_unit(y), *_draw_weights(generator, settings.beta))
    return np.ascontiguousarray(((x - mean) / std).transpose(2, 0, 1))


# --- Datasets ------------------------------------------------------------------------------------


def _open_image(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")


def imagenet_images(contents: Sequence[bytes], size: int) -> Callable[[int], Pixels]:
    """Return a function that decodes JPEG i, and applies a random resized crop and flip."""
    crop, flip = RandomResizedCrop(size), RandomHorizontalFlip()
    return lambda i: np.asarray(flip(crop(_open_image(contents[i]))))


def mixing_images_of(
    mixing_set: Sequence[Pixels] | Sequence[bytes], side: int
) -> Callable[[Generator], Pixels]:
    """Return a function that picks an array, or picks a JPEG file, decodes and resizes it."""
    resize = Resize(side)

    def pick(generator: Generator) -> Pixels:
        picked = mixing_set[int(generator.integers(len(mixing_set)))]
        return np.asarray(resize(_open_image(picked))) if isinstance(picked, bytes) else picked

    return pick


class PlainDataset(Dataset[tuple[Tensor, int]]):
    """Load, mix and normalize one sample at a time.

    Args:
        load: returns image i, (H, W, 3) uint8.
        n: number of samples.
        pick: returns a mixing image.
        settings: parameters of PixMix.
        padding: of the random crop in pixels; 0 for neither flip nor crop.
        mean: of the channels, for values in [0, 1].
        std: of the channels, for values in [0, 1].
    """

    def __init__(
        self,
        load: Callable[[int], Pixels],
        n: int,
        pick: Callable[[Generator], Pixels],
        settings: PixMixSettings,
        *,
        padding: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self._load, self._n, self._pick, self._settings = load, n, pick, settings
        self._padding = padding
        self._mean, self._std = np.array(mean, np.float32), np.array(std, np.float32)
        self._generator = np.random.default_rng(0)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._n

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """Return the pixels of sample i, (3, H, W) float32, and its label."""
        mixed = plain_pixmix(
            self._load(i), self._pick(self._generator), self._settings, self._generator,
            padding=self._padding, mean=self._mean, std=self._std,
        )  # fmt: skip
        return torch.from_numpy(mixed), i


# --- Feature visualization -----------------------------------------------------------------------

_PADDING = 12
_GRAY = 0.5


class PlainVisualization:
    """An image that is optimized for a channel of a layer, step by step.

    Args:
        module: network for (1, 3, side, side).
        layer: name of a submodule whose output is (1, channels, h, w).
        channel: channel to maximize.
        side: side of the image in pixels.
        mean: of the network's input.
        std: of the network's input.
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
        noise = torch.randn((1, 3, *self.scale.shape, 2), generator=generator)
        self.spectrum = (0.01 * noise).requires_grad_()
        self.colours = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
        self.colours = self.colours / self.colours.norm(dim=0).max()
        self.optimizer = torch.optim.Adam([self.spectrum], lr=0.05)
        bilinear = v2.InterpolationMode.BILINEAR
        self.transforms = v2.Compose(
            [
                v2.Pad(_PADDING, fill=_GRAY),
                v2.RandomCrop(side + 2 * _PADDING - 8),
                # Without a fill value, which torchvision writes in place, where autograd fails.
                v2.RandomAffine(10, scale=(0.9, 1.1), interpolation=bilinear, fill=None),
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
        """Take an optimization step, and return the channel's mean before it."""
        self.optimizer.zero_grad()
        self.module(self.transforms(self.image()))
        value = self.seen["activations"][:, self.channel].mean()
        (-value).backward()
        self.optimizer.step()
        return value.item()

    def _see(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self.seen["activations"] = output
