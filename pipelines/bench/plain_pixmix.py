"""PixMix as a good programmer writes it at the first attempt: Pillow and numpy, a sample at a time.

Written from the pseudocode of Hendrycks et al., "PixMix", CVPR 2022, figure 4. The mixing pictures
lie in memory as arrays, as for ours; what Pillow does not need is left out.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from pixmix.operations import OPERATIONS
from pixmix.settings import PixMixSettings

Picture = NDArray[np.uint8]
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


def _random_crop(picture: Picture, height: int, width: int, generator: Generator) -> Picture:
    top = generator.integers(picture.shape[0] - height + 1)
    left = generator.integers(picture.shape[1] - width + 1)
    return picture[top : top + height, left : left + width]


def _unit(picture: Picture) -> Values:
    return np.asarray(picture, np.float32) / np.float32(255)


def plain_pixmix(
    image: Picture,
    mixing_set: list[Picture],
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

    def augmented() -> Picture:
        level = generator.uniform(0.1, settings.severity)
        made = operations[generator.integers(len(operations))](own, level, generator)
        return np.asarray(made)

    x = _unit(augmented() if generator.random() < 0.5 else image)
    picture = mixing_set[generator.integers(len(mixing_set))]
    crop = None
    for _ in range(generator.integers(settings.k + 1)):
        if generator.random() < 0.5:
            y = augmented()
        else:
            if crop is None:
                crop = _random_crop(picture, height, width, generator)
            y = crop
        mix = plain_add if generator.random() < 0.5 else plain_multiply
        x = mix(x, _unit(y), *_weights(generator, settings.beta))
    return np.ascontiguousarray(((x - mean) / std).transpose(2, 0, 1))
