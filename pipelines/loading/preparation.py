"""What is done to a picture before a network sees it: the paper's recipes as plain numbers."""

from dataclasses import dataclass
from typing import Literal

import torch

from pixmix.settings import PixMixSettings

Triple = tuple[float, float, float]

_IMAGENET_PIXMIX = PixMixSettings(k=4, beta=4, severity=1)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How pictures are cropped, mixed and normalised. Sizes in pixels.

    Attributes:
        crop: "resized": a random part of each picture, resized (ImageNet); pictures of any size are
            decoded when they are wanted. "padded": pictures of one size, padded with black and cut
            to their size again (CIFAR); all are held in memory.
        image_size: sides of the square that the network gets; None: as the pictures are ("padded").
        padding: of "padded"; None: an eighth of the side, 4 for CIFAR.
        scale: of "resized": the least and the largest share of the area that is taken.
        ratio: of "resized": the least and the largest width over height.
        evaluation_resize: the shorter side before the centre is cut out for evaluation ("resized").
        mixing_size: the shorter side of the mixing pictures; None: image_size plus its padding, or
            8/7 of it for "resized" (36 for 32, 256 for 224).
        plain_first: whether the first of several views is the picture unmixed, as in AugMix.
        flip: whether half of the training pictures are flipped.
        pixmix: the settings of PixMix, or None to train without it.
        mean: of red, green and blue, in [0, 1]; subtracted first.
        std: divides after that.
        dtype: of the batches, float32, float16 or bfloat16.

    Source of the defaults: facts of the released code, github.com/andyzoujm/pixmix at f867e87.
    """

    crop: Literal["resized", "padded"] = "resized"
    image_size: int | None = 224
    padding: int | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    evaluation_resize: int | None = None
    mixing_size: int | None = None
    plain_first: bool = False
    flip: bool = True
    pixmix: PixMixSettings | None = _IMAGENET_PIXMIX
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Refuse nonsense.

        Raises:
            ValueError: if a value is outside its range.
        """
        if self.crop not in ("resized", "padded"):
            raise ValueError(f"crop is {self.crop!r}; give 'resized' or 'padded'")
        if self.image_size is None and self.crop == "resized":
            raise ValueError("image_size is None; give a side in pixels, as 224, to resize to")
        for name in ("image_size", "evaluation_resize", "mixing_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; give a number of pixels, 1 or more")
        if self.padding is not None and self.padding < 0:
            raise ValueError(f"padding is {self.padding}; give a number of pixels, 0 or more")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"scale is {self.scale}; give the least and the largest share of a picture's area, "
                "above 0 and up to 1"
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(
                f"ratio is {self.ratio}; give the least and the largest width over height"
            )
        if self.crop == "resized" and self.resized_side < (self.image_size or 0):
            raise ValueError(
                f"evaluation_resize is {self.evaluation_resize} and image_size {self.image_size}; "
                "the centre is cut out of what was resized: give at least image_size"
            )

    @property
    def resized_side(self) -> int:
        """The shorter side of an evaluation picture before its centre is cut out ("resized")."""
        return self.evaluation_resize or (self.image_size or 0) * 8 // 7

    def padding_of(self, side: int) -> int:
        """Return the padding of pictures of a side ("padded")."""
        return side // 8 if self.padding is None else self.padding

    def mixing_side(self, side: int) -> int:
        """Return the shorter side of mixing pictures for images of a side."""
        if self.mixing_size is not None:
            return self.mixing_size
        return side * 8 // 7 if self.crop == "resized" else side + self.padding_of(side)


IMAGENET = Preparation()
"""The paper's recipe for ImageNet."""

CIFAR = Preparation(
    crop="padded",
    image_size=None,
    pixmix=PixMixSettings(k=4, beta=3, severity=3),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
"""The paper's recipe for CIFAR-10 and CIFAR-100."""
