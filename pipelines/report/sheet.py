"""Many pictures on one sheet, to look at."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.system.files import write_file

Picture = NDArray[np.uint8]

GAP = 2
"""Pixels between cells; without it neighbours run into one another."""
_BACKGROUND = (24, 24, 24)  # neither black nor a colour: dark pictures keep their outline on it


def contact_sheet(
    pictures: Sequence[Picture], columns: int | None = None, cell: int = 128
) -> Image.Image:
    """Return the pictures in reading order on a grid, each as large as fits its square cell.

    Args:
        pictures: one or more (h, w, 3) uint8, of any shapes; each keeps its aspect, centred.
        columns: pictures a row; None makes the grid as square as it can be, wider rather than high.
        cell: pixels a side of a cell; shrinking is Lanczos, enlarging bicubic.

    Raises:
        ValueError: if there is no picture, or columns or cell is below 1.
    """
    if len(pictures) == 0:
        raise ValueError("a sheet of 0 pictures has no size; give at least one picture")
    if columns is None:
        columns = math.ceil(math.sqrt(len(pictures)))
    if columns < 1 or cell < 1:
        raise ValueError(f"columns {columns} and cell {cell} must both be at least 1")
    rows = math.ceil(len(pictures) / columns)
    pitch = cell + GAP
    sheet = Image.new("RGB", (columns * pitch - GAP, rows * pitch - GAP), _BACKGROUND)
    for position, picture in enumerate(pictures):
        row, column = divmod(position, columns)
        tile = _fitted(picture, cell)
        left = column * pitch + (cell - tile.width) // 2
        top = row * pitch + (cell - tile.height) // 2
        sheet.paste(tile, (left, top))
    return sheet


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a sheet whole or not at all; its folder is made if absent.

    Args:
        sheet: what `contact_sheet` returns.
        path: ends in .png, .jpg, .jpeg or .webp, which decides the format.

    Raises:
        ValueError: if the ending names no format.
        OSError: if the file cannot be written.
    """
    format = Image.registered_extensions().get(path.suffix.lower())
    if format is None:
        raise ValueError(f"{path} names no picture format; end it in .png, .jpg or .webp")
    file = io.BytesIO()
    sheet.save(file, format)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, file.getvalue())


def as_png(image: Image.Image) -> bytes:
    """Return an image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_picture(data: bytes, path: Path) -> None:
    """Write a picture, a plot say, whole or not at all; its folder is made if absent.

    Args:
        data: a whole picture file of any format that Pillow reads.
        path: as for `write_sheet`.

    Raises:
        ValueError: if the ending names no format.
        OSError: if the file cannot be written.
    """
    write_sheet(Image.open(io.BytesIO(data)).convert("RGB"), path)


def _fitted(picture: Picture, cell: int) -> Image.Image:
    image = Image.fromarray(picture)
    longer = max(image.size)
    if longer == cell:
        return image
    width, height = (max(1, round(side * cell / longer)) for side in image.size)
    filter = Image.Resampling.LANCZOS if longer > cell else Image.Resampling.BICUBIC
    return image.resize((width, height), filter)
