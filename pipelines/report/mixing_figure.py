"""Draws of PixMix as a figure, round by round, and as tables beside it."""

from collections.abc import Sequence
from pathlib import PurePath

from PIL import Image, ImageDraw, ImageFont

from pipelines.report.drawing import INK, LINE, PAPER, SOFT, TEXT, Font, shortened
from pipelines.report.mixing_steps import Draw, Pixels
from pipelines.report.page import Picture, Section, Table, Text
from pipelines.report.sheet import as_png

_CELL, _GAP, _MARGIN = 208, 18, 20
_THUMB = 3 * LINE
_HEAD = 30
_MARK = (214, 92, 20)


def figure(picture: Pixels, draws: Sequence[Draw]) -> Image.Image:
    """Draw each draw as a row: the picture, what the rounds begin with, and each round.

    Below a round stand what was mixed in and how; the result, which a network gets, has a frame.

    Args:
        picture: (side, side, 3) uint8, that was mixed.
        draws: one or more.
    """
    n_rounds = max((len(draw.rounds) for draw in draws), default=0)
    heads = ["picture", "start", *(f"round {number}" for number in range(1, n_rounds + 1))]
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
        _cell(canvas, pen, font, (0, top), picture, lines)
        _cell(canvas, pen, font, (1, top), draw.first, [draw.start or "as it is"])
        for column, each in enumerate(draw.rounds, 2):
            lines = [
                each.operation or "mixing picture",
                f"{each.mixing}  a {each.a:.2f}  b {each.b:.2f}",
                "of the picture itself" if each.operation else _name(draw),
            ]
            _cell(canvas, pen, font, (column, top), each.result, lines, each.other)
        left, corner = _left(1 + count), (_CELL + 2)
        pen.rectangle((left - 3, top - 3, left + corner, top + corner), outline=_MARK, width=3)
    return canvas


def _name(draw: Draw) -> str:
    """Return the last part of a name such as "key 00000012 in shards/mixing/00.tar"."""
    name = draw.mixing_picture or ""
    return PurePath(name.removeprefix("key ").partition(" in ")[0]).name


def _left(column: int) -> int:
    return _MARGIN + column * (_CELL + _GAP)


def _cell(
    canvas: Image.Image,
    pen: ImageDraw.ImageDraw,
    font: Font,
    place: tuple[int, int],
    picture: Pixels,
    lines: Sequence[str],
    other: Pixels | None = None,
) -> None:
    """Draw a picture and, below it, lines of text beside what was mixed in."""
    left, top = _left(place[0]), place[1]
    canvas.paste(_scaled(picture, _CELL), (left, top))
    top += _CELL + 8
    if other is not None:
        canvas.paste(_scaled(other, _THUMB), (left, top))
        left += _THUMB + 8
    room = _left(place[0]) + _CELL - left
    for number, line in enumerate(lines):
        fill = INK if number == 0 else SOFT
        place_of_line = (left, top + number * LINE)
        pen.text(place_of_line, shortened(line, font, room), fill=fill, font=font)


def _scaled(picture: Pixels, side: int) -> Image.Image:
    image = Image.fromarray(picture)
    filter = Image.Resampling.LANCZOS if image.width > side else Image.Resampling.BICUBIC
    return image if image.width == side else image.resize((side, side), filter)


# --- a page --------------------------------------------------------------------------------------


def sections(picture: Pixels, draws: Sequence[Draw]) -> list[Section]:
    """Return draws as sections of a page, one each: its row of the figure, and it as a table."""
    return [
        Section(
            title=f"Draw {number}: seed {draw.key[0]}, index {draw.key[2]}",
            parts=(
                Picture(
                    data=as_png(figure(picture, [draw])),
                    description=f"Draw {number}, round by round",
                    caption="The framed picture is what a network gets.",
                ),
                table(draw),
                *(
                    [Text(text=f"Mixing picture: {draw.mixing_picture}")]
                    if draw.mixing_picture is not None
                    else []
                ),
            ),
        )
        for number, draw in enumerate(draws, 1)
    ]


def table(draw: Draw) -> Table:
    """Return what was drawn as a table, a row a round; the first tells what the rounds begin with.

    A round mixes in what an operation makes of the picture itself, or the mixing picture.
    """
    return Table(
        header=("round", "mixed in", "how", "a", "b"),
        rows=(
            ("start", draw.start or "as it is", "-", "-", "-"),
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
        caption="Mixed in is what an operation makes of the picture itself, or a part of a mixing "
        "picture, by its name.",
    )
