"""Figures: contact sheets, plots by the extra `viz` (matplotlib), and how they become files."""

import io
import math
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFont

from pipelines.errors import PipelineError
from pipelines.system.files import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = NDArray[np.uint8]

PAPER, INK, SOFT, FRAME = (255, 255, 255), (28, 28, 30), (110, 110, 118), (200, 200, 206)
"""Colours: of the background, of text, of secondary text, of frames."""

TEXT, LINE = 14, 19
"""Pixels: height of letters, and from one line to the next."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

GAP = 2
"""Pixels between the cells of a sheet."""
_BACKGROUND = (24, 24, 24)  # neither black nor a colour: dark images keep their outline on it


def shortened(line: str, font: Font, room: int) -> str:
    """Return a line, cut and with an ellipsis if it is wider than its room, pixels.

    One letter at least stays.
    """
    text = line
    while font.getlength(text) > room and len(text) > 1:
        text = f"{text.rstrip('…')[:-1]}…"
    return text


def fitted(pixels: Pixels, side: int) -> Image.Image:
    """Return an image whose longer side is `side` pixels; shrunk by Lanczos, enlarged bicubically.

    pixels: (h, w, 3) uint8.
    """
    image = Image.fromarray(pixels)
    longer = max(image.size)
    if longer == side:
        return image
    width, height = (max(1, round(each * side / longer)) for each in image.size)
    filter = Image.Resampling.LANCZOS if longer > side else Image.Resampling.BICUBIC
    return image.resize((width, height), filter)


def contact_sheet(
    images: Sequence[Pixels], columns: int | None = None, cell: int = 128
) -> Image.Image:
    """Return images in reading order on a grid, each as large as fits its square cell.

    Args:
        images: one or more (h, w, 3) uint8, of any shapes; each keeps its aspect, centred.
        columns: images a row; None makes the grid as square as it can be, wider rather than high.
        cell: pixels a side of a cell.

    Raises:
        ValueError: if there is no image, or columns or cell is below 1.
    """
    if len(images) == 0:
        raise ValueError("a contact sheet needs at least one image")
    if columns is None:
        columns = math.ceil(math.sqrt(len(images)))
    if columns < 1 or cell < 1:
        raise ValueError(f"columns {columns} and cell {cell} must both be at least 1")
    rows = math.ceil(len(images) / columns)
    pitch = cell + GAP
    sheet = Image.new("RGB", (columns * pitch - GAP, rows * pitch - GAP), _BACKGROUND)
    for position, image in enumerate(images):
        row, column = divmod(position, columns)
        tile = fitted(image, cell)
        left = column * pitch + (cell - tile.width) // 2
        top = row * pitch + (cell - tile.height) // 2
        sheet.paste(tile, (left, top))
    return sheet


# --- Plots ---------------------------------------------------------------------------------------


def check_plotting() -> None:
    """Check that plots can be drawn.

    Raises:
        PipelineError: if the extra `viz` is not installed.
    """
    if find_spec("matplotlib") is None:
        raise PipelineError(
            "a plot needs matplotlib, which is not installed; run pip install 'pixmix[viz]'"
        )


def legend_name(name: str) -> str:
    """Return a name as matplotlib shows it whole: not as mathematics, nor as one to leave out."""
    escaped = name.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def plot_png(figure: "Figure", *, dpi: int) -> bytes:
    """Return a plot as a PNG file, of so many pixels an inch."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # A name may have letters that the font lacks: boxes are drawn for them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


# --- Files ---------------------------------------------------------------------------------------


def as_png(image: Image.Image) -> bytes:
    """Return an image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_image(image: Image.Image | bytes, path: Path) -> None:
    """Write an image whole or not at all; its folder is created if absent.

    Args:
        image: an image, or a whole file of one in any format that Pillow reads.
        path: ends in .png, .jpg, .jpeg or .webp, which decides the format.

    Raises:
        ValueError: if the extension names no format.
        OSError: if the file cannot be written.
    """
    format = Image.registered_extensions().get(path.suffix.lower())
    if format is None:
        raise ValueError(f"{path} has no image extension; use .png, .jpg or .webp")
    if isinstance(image, bytes):
        image = Image.open(io.BytesIO(image)).convert("RGB")
    file = io.BytesIO()
    image.save(file, format)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, file.getvalue())
