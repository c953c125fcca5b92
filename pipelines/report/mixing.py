"""One image under PixMix, round by round: the draws, as a figure and as tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipelines.errors import PipelineError
from pipelines.loading.dataset import decode_image
from pipelines.loading.image_map import ImageSource, join_sources
from pipelines.loading.mixing_set import image_source
from pipelines.report.figures import (
    INK,
    LINE,
    PAPER,
    SOFT,
    TEXT,
    Font,
    Pixels,
    as_png,
    fitted,
    shortened,
)
from pipelines.report.page import PageImage, Section, Table, Text
from pipelines.shards.images import MAX_PIXELS, DecodeError
from pixmix.draws import NO_OPERATION, Plan, draw_corner, draw_plan
from pixmix.fused import NO_IMAGES, mix_planned
from pixmix.images import PackedImages
from pixmix.mixing import MIXINGS
from pixmix.operations import OPERATIONS
from pixmix.resizing import resize_part, resized_shape
from pixmix.settings import PixMixSettings


class MixingImages(Sequence[Pixels]):
    """The images of mixing sets, read and resized when they are asked for, with their names.

    Images are those that `open_mixing_set` gives, in its order; `PixMix` takes this in its place.

    Args:
        places: one or more, as for `open_mixing_set`.
        size: of the shorter side, pixels.

    Raises:
        PipelineError: if there are no images.
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
        """Return image i, (H, W, 3) uint8.

        Raises:
            PipelineError: if it cannot be read.
        """
        try:
            image = decode_image(self._source.read(i))
        except DecodeError as error:
            raise PipelineError(
                f"{self._source.name(i)} cannot be read ({error}); mend or remove it"
            ) from error
        height, width = resized_shape(image.shape[0], image.shape[1], self._size)
        if (height, width) == image.shape[:2]:
            return image
        if height * width > MAX_PIXELS:
            raise PipelineError(
                f"{self._source.name(i)}: {width}x{height} are more than {MAX_PIXELS:,} pixels "
                "once resized; cut it"
            )
        resized = np.empty((height, width, 3), np.uint8)
        whole = (0, 0, image.shape[0], image.shape[1])
        resize_part(image, *whole, height, width, 0, 0, resized)
        return resized

    def name(self, i: int) -> str:
        """Return the name of image i."""
        return self._source.name(i)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of mixing.

    operation: what made the other image of the image itself, in words, or None where it is a
    image of the mixing set. mixing, a, b: how the two were mixed (see `pixmix.mixing`).
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
    """An image mixed by one key.

    key: (seed, epoch, index). start: the operation that the first image went through, in words,
    or None. first: the image that the rounds begin with. mixing_image: its name, where a round
    needs one.
    """

    key: tuple[int, int, int]
    start: str | None
    first: Pixels
    mixing_image: str | None
    rounds: tuple[Round, ...]

    @property
    def result(self) -> Pixels:
        """What PixMix gives, as bytes: its floats rounded to levels of 255."""
        return self.rounds[-1].result if self.rounds else self.first


def square(image: Pixels, side: int) -> Pixels:
    """Return the centre square of an image whose shorter side is brought to `side` pixels.

    The bytes are those of torchvision's Resize and CenterCrop.
    """
    height, width = resized_shape(image.shape[0], image.shape[1], side)
    part = np.empty((side, side, 3), np.uint8)
    top, left = round((height - side) / 2), round((width - side) / 2)
    whole = (0, 0, image.shape[0], image.shape[1])
    resize_part(image, *whole, height, width, top, left, part)
    return part


def mix(
    image: Pixels,
    mixing_set: MixingImages | None,
    settings: PixMixSettings,
    key: tuple[int, int, int],
) -> Draw:
    """Mix an image as `PixMix(mixing_set, ...)(image, key=key)` does, and keep each step.

    Args:
        image: (side, side, 3) uint8.
        mixing_set: of images with a shorter side of `side` at least; None or an empty one: each
            round mixes with what an operation makes of the image.
        settings: of PixMix; all rounds are kept.
        key: (seed, epoch, index), as PixMix takes it.

    Raises:
        PipelineError: if the mixing image cannot be read.
        ValueError: for a key out of range.
    """
    seed, epoch, index = key
    side = image.shape[0]
    plan = draw_plan(
        np.array([index], np.int64),
        seed=seed,
        epoch=epoch,
        settings=settings,
        size=(side, side),
        source_size=(side, side),
        flip=False,
        views=1,
        n_mixing_images=0 if mixing_set is None else len(mixing_set),
    )
    sample = plan.samples[0]
    images, name, crop = NO_IMAGES, None, None
    if mixing_set is not None and plan.needs_mixing_image()[0]:
        place = int(sample["mixing_image"])
        whole = mixing_set[place]
        name, images = mixing_set.name(place), PackedImages.pack([whole])
        sample["mixing_image"] = 0
        top = draw_corner(sample["top_word"], whole.shape[0], side)
        left = draw_corner(sample["left_word"], whole.shape[1], side)
        crop = whole[top : top + side, left : left + side]
    n_rounds, start, argument = int(sample["rounds"]), sample["operation"], sample["argument"]

    def after(count: int) -> Pixels:
        """Mix so many rounds of the plan."""
        sample["rounds"] = count
        return _mixed(image, images, plan)

    first = after(0)
    results = [after(number + 1) for number in range(n_rounds)]
    rounds = []
    for item, result in zip(plan.rounds[0], results, strict=False):
        operation = int(item["operation"])
        if operation == NO_OPERATION:
            assert crop is not None
            other = crop
        else:
            # What an operation makes of the image is what a plan without rounds starts from.
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
        mixing_image=name,
        rounds=tuple(rounds),
    )


def _mixed(image: Pixels, images: PackedImages, plan: Plan) -> Pixels:
    floats = np.empty((1, 3, *image.shape[:2]), np.float32)
    mix_planned(
        image[None],
        images.layout,
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
    row = OPERATIONS[operation]
    words = row.name.replace("_", " ")
    if row.level is None:
        return words
    return f"{words} {argument:.{0 if row.whole else 2}f} {row.unit}".rstrip()


def document(draws: Sequence[Draw]) -> dict[str, Any]:
    """Return what was drawn as plain JSON values, without pixels."""
    return {
        "draws": [
            {
                "key": list(draw.key),
                "start": draw.start,
                "mixing_image": draw.mixing_image,
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


# --- The figure ----------------------------------------------------------------------------------

_CELL, _GAP, _MARGIN = 208, 18, 20
_THUMB = 3 * LINE
_HEAD = 30
_MARK = (214, 92, 20)


def figure(image: Pixels, draws: Sequence[Draw]) -> Image.Image:
    """Draw each draw as a row: the image, what the rounds begin with, and each round.

    Below a round stand what was mixed in and how; the result, which a network gets, has a frame.

    Args:
        image: (side, side, 3) uint8, that was mixed.
        draws: one or more.
    """
    n_rounds = max((len(draw.rounds) for draw in draws), default=0)
    heads = ["image", "start", *(f"round {number}" for number in range(1, n_rounds + 1))]
    row_height = _CELL + 8 + 3 * LINE + 16
    width = 2 * _MARGIN + len(heads) * _CELL + (len(heads) - 1) * _GAP
    height = 2 * _MARGIN + _HEAD + len(draws) * row_height - 16
    canvas = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(canvas)
    font, bold = ImageFont.load_default(TEXT), ImageFont.load_default(TEXT + 3)
    for column, head in enumerate(heads):
        pen.text((_left(column), _MARGIN), head, fill=INK, font=bold)
    for row, draw in enumerate(draws):
        top = _MARGIN + _HEAD + row * row_height
        count = len(draw.rounds)
        lines = [f"index {draw.key[2]}", "1 round" if count == 1 else f"{count} rounds"]
        _cell(canvas, pen, font, (0, top), image, lines)
        _cell(canvas, pen, font, (1, top), draw.first, [draw.start or "unchanged"])
        for column, each in enumerate(draw.rounds, 2):
            lines = [
                each.operation or "mixing image",
                f"{each.mixing}  a {each.a:.2f}  b {each.b:.2f}",
                "of the image itself" if each.operation else _name(draw),
            ]
            _cell(canvas, pen, font, (column, top), each.result, lines, each.other)
        left, corner = _left(1 + count), (_CELL + 2)
        pen.rectangle((left - 3, top - 3, left + corner, top + corner), outline=_MARK, width=3)
    return canvas


def _name(draw: Draw) -> str:
    """Return the last part of a name such as "key 00000012 in shards/mixing/00.tar"."""
    name = draw.mixing_image or ""
    return PurePath(name.removeprefix("key ").partition(" in ")[0]).name


def _left(column: int) -> int:
    return _MARGIN + column * (_CELL + _GAP)


def _cell(
    canvas: Image.Image,
    pen: ImageDraw.ImageDraw,
    font: Font,
    place: tuple[int, int],
    image: Pixels,
    lines: Sequence[str],
    other: Pixels | None = None,
) -> None:
    """Draw an image and, below it, lines of text beside what was mixed in."""
    left, top = _left(place[0]), place[1]
    canvas.paste(fitted(image, _CELL), (left, top))
    top += _CELL + 8
    if other is not None:
        canvas.paste(fitted(other, _THUMB), (left, top))
        left += _THUMB + 8
    room = _left(place[0]) + _CELL - left
    for number, line in enumerate(lines):
        fill = INK if number == 0 else SOFT
        place_of_line = (left, top + number * LINE)
        pen.text(place_of_line, shortened(line, font, room), fill=fill, font=font)


# --- a page --------------------------------------------------------------------------------------


def sections(image: Pixels, draws: Sequence[Draw]) -> list[Section]:
    """Return draws as sections of a page, one each: its row of the figure, and it as a table."""
    return [
        Section(
            title=f"Draw {number}: seed {draw.key[0]}, index {draw.key[2]}",
            parts=(
                PageImage(
                    data=as_png(figure(image, [draw])),
                    description=f"Draw {number}, round by round",
                    caption="The framed image is what a network gets.",
                ),
                table(draw),
                *(
                    [Text(text=f"Mixing image: {draw.mixing_image}")]
                    if draw.mixing_image is not None
                    else []
                ),
            ),
        )
        for number, draw in enumerate(draws, 1)
    ]


def table(draw: Draw) -> Table:
    """Return what was drawn as a table, a row a round; first what the rounds begin with.

    A round mixes in what an operation makes of the image itself, or the mixing image.
    """
    return Table(
        header=("round", "mixed in", "how", "a", "b"),
        rows=(
            ("start", draw.start or "unchanged", "-", "-", "-"),
            *(
                (
                    f"{number}",
                    each.operation or _name(draw),
                    each.mixing,
                    f"{each.a:.2f}",
                    f"{each.b:.2f}",
                )
                for number, each in enumerate(draw.rounds, 1)
            ),
        ),
        caption="Mixed in is what an operation makes of the image itself, or a part of a mixing "
        "image, by its name.",
    )
