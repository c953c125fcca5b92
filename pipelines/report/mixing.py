"""Show how PixMix mixes an image, round by round, as a figure and as tables."""

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
from pipelines.report.page import (
    FRAME,
    INK,
    PAPER,
    SOFT,
    PageImage,
    Pixels,
    Section,
    Table,
    Text,
    as_png,
    fitted,
    shortened,
)
from pipelines.shards.images import MAX_PIXELS, DecodeError
from pixmix.draws import NO_OPERATION, Plan, draw_corner, draw_plan
from pixmix.fused import NO_IMAGES, mix_planned
from pixmix.images import PackedImages
from pixmix.mixing import MIXINGS
from pixmix.operations import OPERATIONS
from pixmix.resizing import resize_part, resized_shape
from pixmix.settings import PixMixSettings


class MixingImages(Sequence[Pixels]):
    """The images of mixing sets, which are read and resized on access, with their names.

    It has the images of `open_mixing_set` in the same order, and `PixMix` accepts it instead.

    Args:
        locations: one or more mixing sets, as for `open_mixing_set`.
        size: length of the shorter side in pixels.

    Raises:
        PipelineError: if a set has no images.
        OSError: if a set cannot be read.
    """

    def __init__(self, locations: Sequence[str | Path], size: int) -> None:
        self._source: ImageSource = join_sources([image_source(each) for each in locations])
        self._source.check()
        # This scans the folders, and fails if one has no images.
        self._n = len(self._source)
        self._size = size

    def __len__(self) -> int:
        """Return the number of images."""
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
                f"{self._source.name(i)} cannot be read ({error}); repair or remove it"
            ) from error
        height, width = resized_shape(image.shape[0], image.shape[1], self._size)
        if (height, width) == image.shape[:2]:
            return image
        if height * width > MAX_PIXELS:
            raise PipelineError(
                f"{self._source.name(i)} would have {width}x{height} pixels after resizing, more "
                f"than the limit of {MAX_PIXELS:,}; crop it"
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

    Attributes:
        operation: the operation that augmented the copy of the image, in words; None for a round
            with a mixing image.
        mixing, a, b: the mixing operation and its weights; see `pixmix.mixing`.
        other: what was mixed in, (side, side, 3) uint8.
        result: the result of the round, (side, side, 3) uint8.
    """

    operation: str | None
    mixing: str
    a: float
    b: float
    other: Pixels
    result: Pixels


@dataclass(frozen=True, kw_only=True)
class Draw:
    """An image mixed with one key.

    Attributes:
        key: (seed, epoch, index).
        start: the operation before the first round, in words; None without one.
        first: the image before the first round, (side, side, 3) uint8.
        mixing_image: name of the mixing image; None if no round uses one.
        rounds: the rounds of mixing.
    """

    key: tuple[int, int, int]
    start: str | None
    first: Pixels
    mixing_image: str | None
    rounds: tuple[Round, ...]

    @property
    def result(self) -> Pixels:
        """The output of PixMix, rounded to uint8."""
        return self.rounds[-1].result if self.rounds else self.first


def square(image: Pixels, side: int) -> Pixels:
    """Resize an image's shorter side to `side` pixels, and return the centre square.

    The result equals that of torchvision's Resize and CenterCrop.
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
    """Mix an image as `PixMix(mixing_set, ...)(image, key=key)` does, and return each step.

    Args:
        image: (side, side, 3) uint8.
        mixing_set: images whose shorter side is at least `side`. With None or an empty one, each
            round mixes with an augmented copy of the image.
        settings: settings of PixMix.
        key: (seed, epoch, index), as for PixMix.

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
        position = int(sample["mixing_image"])
        whole = mixing_set[position]
        name, images = mixing_set.name(position), PackedImages.pack([whole])
        sample["mixing_image"] = 0
        top = draw_corner(sample["top_word"], whole.shape[0], side)
        left = draw_corner(sample["left_word"], whole.shape[1], side)
        crop = whole[top : top + side, left : left + side]
    n_rounds, start, argument = int(sample["rounds"]), sample["operation"], sample["argument"]

    def after(count: int) -> Pixels:
        """Return the image after a number of rounds of the plan."""
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
            # A plan without rounds returns the image after its start operation.
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
    """Round (3, H, W) floats in [0, 1] to (H, W, 3) uint8."""
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
    """Return the parameters of draws as JSON values, without pixels."""
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

# Three cells side by side keep the text legible where the figure is shown 400 pixels wide.
_COLUMNS, _CELL, _GAP, _MARGIN = 3, 216, 20, 20
_TEXT, _LINE = 20, 26
_THUMB = 2 * _LINE
_CELL_HEIGHT = _LINE + 6 + _CELL + 8 + 3 * _LINE
_MARK = (214, 92, 20)


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """An image of the figure with a title above it, and below it lines of text.

    other: a small image of what was mixed in, beside the first two lines.
    """

    title: str
    pixels: Pixels
    lines: tuple[str, ...]
    other: Pixels | None = None


def mildest_first(image: Pixels, draws: Sequence[Draw]) -> list[Draw]:
    """Sort draws by their mean change of the image; those without rounds are last.

    Args:
        image: (side, side, 3) uint8, the image before mixing.
        draws: draws of that image.
    """

    def change(draw: Draw) -> tuple[bool, float]:
        apart = np.abs(draw.result.astype(np.int16) - image)
        return not draw.rounds, float(apart.mean())

    return sorted(draws, key=change)


def figure(image: Pixels, draws: Sequence[Draw]) -> Image.Image:
    """Draw each draw as a block of cells: the image, an operation before mixing, and the rounds.

    Blocks are sorted by `mildest_first`. Below a round are the image that was mixed in, the mixing
    operation and its weights. The result, which is the input of the network, has a frame.

    Args:
        image: (side, side, 3) uint8, the image before mixing.
        draws: one or more draws of that image.
    """
    blocks = [_cells(image, draw) for draw in mildest_first(image, draws)]
    heights = [-(-len(cells) // _COLUMNS) * (_CELL_HEIGHT + _GAP) for cells in blocks]
    width = 2 * _MARGIN + _COLUMNS * _CELL + (_COLUMNS - 1) * _GAP
    canvas = Image.new("RGB", (width, 2 * _MARGIN + sum(heights) - _GAP), PAPER)
    pen = ImageDraw.Draw(canvas)
    top = _MARGIN
    for cells, height in zip(blocks, heights, strict=True):
        if top > _MARGIN:
            pen.line((_MARGIN, top - _GAP // 2, width - _MARGIN, top - _GAP // 2), fill=FRAME)
        for position, cell in enumerate(cells):
            row, column = divmod(position, _COLUMNS)
            left = _MARGIN + column * (_CELL + _GAP)
            framed = position == len(cells) - 1
            _draw_cell(canvas, cell, (left, top + row * (_CELL_HEIGHT + _GAP)), framed=framed)
        top += height
    return canvas


def _cells(image: Pixels, draw: Draw) -> list[_Cell]:
    n = len(draw.rounds)
    rounds = "1 round" if n == 1 else f"{n} rounds"
    first = [_Cell(title="image", pixels=image, lines=(f"index {draw.key[2]}", rounds))]
    if draw.start is not None:
        first.append(_Cell(title="start", pixels=draw.first, lines=(draw.start,)))
    return [
        *first,
        *(
            _Cell(
                title=f"round {number}{', result' if number == n else ''}",
                pixels=each.result,
                lines=(
                    each.mixing,
                    f"a {each.a:.2f}  b {each.b:.2f}",
                    each.operation or _name(draw),
                ),
                other=each.other,
            )
            for number, each in enumerate(draw.rounds, 1)
        ),
    ]


def _draw_cell(canvas: Image.Image, cell: _Cell, corner: tuple[int, int], *, framed: bool) -> None:
    pen = ImageDraw.Draw(canvas)
    left, top = corner
    pen.text(corner, cell.title, fill=INK, font=ImageFont.load_default(_TEXT + 1))
    top += _LINE + 6
    canvas.paste(fitted(cell.pixels, _CELL), (left, top))
    if framed:
        box = (left - 4, top - 4, left + _CELL + 3, top + _CELL + 3)
        pen.rectangle(box, outline=_MARK, width=4)
    top += _CELL + 8
    if cell.other is not None:
        canvas.paste(fitted(cell.other, _THUMB), (left, top))
    font = ImageFont.load_default(_TEXT)
    for number, line in enumerate(cell.lines):
        indent = _THUMB + 8 if cell.other is not None and number < 2 else 0
        text = shortened(line, font, _CELL - indent)
        position = (left + indent, top + number * _LINE)
        pen.text(position, text, fill=SOFT if number == 1 else INK, font=font)


def _name(draw: Draw) -> str:
    """Return the last part of a name such as "key 00000012 in shards/mixing/00.tar"."""
    name = draw.mixing_image or ""
    return PurePath(name.removeprefix("key ").partition(" in ")[0]).name


# --- A page --------------------------------------------------------------------------------------


def sections(image: Pixels, draws: Sequence[Draw]) -> list[Section]:
    """Return draws as sections of a page, each with its figure and table, the mildest first."""
    return [
        Section(
            title=f"Draw {number}: seed {draw.key[0]}, index {draw.key[2]}",
            parts=(
                PageImage(
                    data=as_png(figure(image, [draw])),
                    description=f"Draw {number}, round by round",
                    caption="The framed image is the input of the network.",
                ),
                table(draw),
                *(
                    [Text(text=f"Mixing image: {draw.mixing_image}")]
                    if draw.mixing_image is not None
                    else []
                ),
            ),
        )
        for number, draw in enumerate(mildest_first(image, draws), 1)
    ]


def table(draw: Draw) -> Table:
    """Return the start and the rounds of a draw as a table."""
    return Table(
        header=("round", "mixed with", "mixing", "a", "b"),
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
        caption="Each round mixes with an augmented copy of the image, named by its operation, or "
        "with a crop of a mixing image, named by its file.",
    )
