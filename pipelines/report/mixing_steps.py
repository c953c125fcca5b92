"""One picture under PixMix, round by round: what was drawn, what was mixed in, what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.loading.dataset import UnreadableImageError, decode_image
from pipelines.loading.image_map import ImageSource, join_sources
from pipelines.loading.mixing_set import image_source
from pipelines.shards.picture_files import MOST_PIXELS
from pixmix.draws import NO_OPERATION, Plan, draw_corner, draw_plan
from pixmix.fused import NO_PICTURES, mix_planned
from pixmix.op_kernels import OPERATIONS
from pixmix.packed import PackedPictures
from pixmix.resizing import resize_part, resized_shape
from pixmix.settings import MIXINGS, PixMixSettings

Pixels = NDArray[np.uint8]

_UNITS = {
    "posterize": ("bits", 0),
    "rotate": ("degrees", 1),
    "shear_x": ("", 2),
    "shear_y": ("", 2),
    "solarize": ("", 0),
    "translate_x": ("px", 0),
    "translate_y": ("px", 0),
    "color": ("x", 2),
    "contrast": ("x", 2),
    "brightness": ("x", 2),
    "sharpness": ("x", 2),
}
"""Operation -> the unit of its argument and its decimals; the others have none."""


class MixingPictures(Sequence[Pixels]):
    """The pictures of mixing sets, read and resized when they are asked for, with their names.

    Pictures are those that `open_mixing_set` gives, in its order; `PixMix` takes this in its place.

    Args:
        places: one or more, as for `open_mixing_set`.
        size: of the shorter side, pixels.

    Raises:
        PipelineError: if there are no pictures.
        OSError: if a place cannot be read.
    """

    def __init__(self, places: Sequence[str | Path], size: int) -> None:
        self._source: ImageSource = join_sources([image_source(place) for place in places])
        self._source.check()
        # A folder is searched now: it may hold none.
        self._n = len(self._source)
        self._size = size

    def __len__(self) -> int:
        """Return how many there are."""
        return self._n

    def __getitem__(self, i: int) -> Pixels:  # type: ignore[override]
        """Return picture i, (H, W, 3) uint8.

        Raises:
            PipelineError: if it cannot be read.
        """
        try:
            picture = decode_image(self._source.read(i))
        except UnreadableImageError as error:
            raise PipelineError(
                f"{self._source.name(i)} cannot be read ({error}); mend or remove it"
            ) from error
        height, width = resized_shape(picture.shape[0], picture.shape[1], self._size)
        if (height, width) == picture.shape[:2]:
            return picture
        if height * width > MOST_PIXELS:
            raise PipelineError(
                f"{self._source.name(i)}: {width}x{height} are more than {MOST_PIXELS:,} pixels "
                "once resized; cut it"
            )
        resized = np.empty((height, width, 3), np.uint8)
        whole = (0, 0, picture.shape[0], picture.shape[1])
        resize_part(picture, *whole, height, width, 0, 0, resized)
        return resized

    def name(self, i: int) -> str:
        """Return the name of picture i."""
        return self._source.name(i)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of mixing.

    operation: what made the other picture of the picture itself, in words, or None where it is a
    picture of the mixing set. mixing, a, b: how the two were mixed (see `pixmix.mixing`).
    other: what was mixed in; result: what came of it; both (side, side, 3) uint8.
    """

    operation: str | None
    mixing: str
    a: float
    b: float
    other: Pixels
    result: Pixels


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A picture mixed by one key.

    key: (seed, epoch, index). start: the operation that the first picture went through, in words,
    or None. first: the picture that the rounds begin with. mixing_picture: its name, where a round
    needs one.
    """

    key: tuple[int, int, int]
    start: str | None
    first: Pixels
    mixing_picture: str | None
    rounds: tuple[Round, ...]

    @property
    def result(self) -> Pixels:
        """What PixMix gives, as bytes: its floats rounded to levels of 255."""
        return self.rounds[-1].result if self.rounds else self.first


def square(picture: Pixels, side: int) -> Pixels:
    """Return the centre square of a picture whose shorter side is brought to `side` pixels.

    The bytes are those of torchvision's Resize and CenterCrop.
    """
    height, width = resized_shape(picture.shape[0], picture.shape[1], side)
    part = np.empty((side, side, 3), np.uint8)
    top, left = round((height - side) / 2), round((width - side) / 2)
    whole = (0, 0, picture.shape[0], picture.shape[1])
    resize_part(picture, *whole, height, width, top, left, part)
    return part


def mix(
    picture: Pixels,
    mixing_set: MixingPictures | None,
    settings: PixMixSettings,
    key: tuple[int, int, int],
) -> Draw:
    """Mix a picture as `PixMix(mixing_set, ...)(picture, key=key)` does, and keep each step.

    Args:
        picture: (side, side, 3) uint8.
        mixing_set: of pictures with a shorter side of `side` at least; None or an empty one: each
            round mixes with what an operation makes of the picture.
        settings: of PixMix; all rounds are kept.
        key: (seed, epoch, index), as PixMix takes it.

    Raises:
        PipelineError: if the mixing picture cannot be read.
        ValueError: for a key out of range.
    """
    seed, epoch, index = key
    side = picture.shape[0]
    plan = draw_plan(
        np.array([index], np.int64),
        seed=seed,
        epoch=epoch,
        settings=settings,
        size=(side, side),
        source_size=(side, side),
        flip=False,
        views=1,
        n_pictures=0 if mixing_set is None else len(mixing_set),
    )
    sample = plan.samples[0]
    pictures, name, crop = NO_PICTURES, None, None
    if mixing_set is not None and plan.needs_picture()[0]:
        place = int(sample["picture"])
        whole = mixing_set[place]
        name, pictures = mixing_set.name(place), PackedPictures.pack([whole])
        sample["picture"] = 0
        top = draw_corner(sample["top_word"], whole.shape[0], side)
        left = draw_corner(sample["left_word"], whole.shape[1], side)
        crop = whole[top : top + side, left : left + side]
    n_rounds, start, argument = int(sample["rounds"]), sample["operation"], sample["argument"]

    def after(count: int) -> Pixels:
        """Mix so many rounds of the plan."""
        sample["rounds"] = count
        return _mixed(picture, pictures, plan)

    first = after(0)
    results = [after(number + 1) for number in range(n_rounds)]
    rounds = []
    for item, result in zip(plan.rounds[0], results, strict=False):
        operation = int(item["operation"])
        if operation == NO_OPERATION:
            assert crop is not None
            other = crop
        else:
            # What an operation makes of the picture is what a plan without rounds starts from.
            sample["operation"], sample["argument"] = operation, item["argument"]
            other = after(0)
        rounds.append(
            Round(
                operation=_in_words(operation, float(item["argument"])),
                mixing=MIXINGS[item["mixing"]],
                a=float(item["a"]),
                b=float(item["b"]),
                other=other,
                result=result,
            )
        )
    return Draw(
        key=key,
        start=_in_words(int(start), float(argument)),
        first=first,
        mixing_picture=name,
        rounds=tuple(rounds),
    )


def _mixed(picture: Pixels, pictures: PackedPictures, plan: Plan) -> Pixels:
    floats = np.empty((1, 3, *picture.shape[:2]), np.float32)
    mix_planned(
        picture[None],
        pictures.layout,
        plan,
        floats,
        n_views=1,
        padding=0,
        means=np.zeros(3, np.float32),
        deviations=np.ones(3, np.float32),
        n_threads=1,
    )
    return to_bytes(floats[0])


def to_bytes(floats: NDArray[np.float32]) -> Pixels:
    """Return (3, H, W) floats in [0, 1] as (H, W, 3) uint8, rounded."""
    return np.ascontiguousarray(np.rint(floats * 255).astype(np.uint8).transpose(1, 2, 0))


def _in_words(operation: int, argument: float) -> str | None:
    if operation == NO_OPERATION:
        return None
    name = OPERATIONS[operation]
    words = name.replace("_", " ")
    if name not in _UNITS:
        return words
    unit, decimals = _UNITS[name]
    return f"{words} {argument:.{decimals}f} {unit}".rstrip()


def document(draws: Sequence[Draw]) -> dict[str, Any]:
    """Return what was drawn as plain JSON values, without pixels."""
    return {
        "draws": [
            {
                "key": list(draw.key),
                "start": draw.start,
                "mixing_picture": draw.mixing_picture,
                "rounds": [
                    {
                        "operation": each.operation,
                        "mixing": each.mixing,
                        "a": each.a,
                        "b": each.b,
                    }
                    for each in draw.rounds
                ],
            }
            for draw in draws
        ]
    }
