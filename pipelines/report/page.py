"""A report as one HTML file that loads nothing from elsewhere and reads well on a phone.

Figures: contact sheets, plots by the extra `viz` (matplotlib), and how they become files.
"""

import base64
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image, ImageFont

from pipelines.errors import PipelineError
from pipelines.system.files import printable, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_SHORT = 14


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of paths, as few of them as tell the paths apart.

    A path is named by where it leads: "." by the name of its folder. Bytes that are not UTF-8 are
    escaped: names are drawn, and written into files.
    """
    whole = [Path(printable(str(path.resolve()))) for path in paths]
    for parts in range(1, 8):
        names = [printable("/".join(path.parts[-parts:])) for path in whole]
        if len(set(names)) == len(names):
            return names
    return [printable(str(path)) for path in paths]


@dataclass(frozen=True, kw_only=True)
class PageImage:
    """An image of a report.

    data: a whole PNG, JPEG or WebP file. description: its alternative text; caption: stands below.
    """

    data: bytes
    description: str
    caption: str = ""

    @property
    def source(self) -> str:
        """The image as a data: URL."""
        kind = Image.open(io.BytesIO(self.data)).get_format_mimetype()
        return f"data:{kind};base64,{base64.b64encode(self.data).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return Image.open(io.BytesIO(self.data)).size


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a report.

    header: a cell a column; rows: as many cells each, the first of which names the row.
    caption: stands above it, and does not scroll with a table wider than the window.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    @property
    def narrow(self) -> bool:
        """Whether the names of its rows are so short that a phone need not break them."""
        return max(len(row[0]) for row in (self.header, *self.rows)) <= _SHORT

    def __post_init__(self) -> None:
        """Refuse rows of other lengths than the header's.

        Raises:
            ValueError: if there is one.
        """
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(
                    f"row {row[:1]} has {len(row)} cells under a header of {len(self.header)}; "
                    "pass one cell a column"
                )


@dataclass(frozen=True, kw_only=True)
class Commands:
    """Command lines, to be copied."""

    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    text: str


Part = PageImage | Table | Commands | Text


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, and what stands under it, from top to bottom."""

    title: str
    parts: tuple[Part, ...]


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return a report as an HTML document that needs no other file and runs no script.

    Args:
        title: its heading and name.
        lead: a sentence under the heading.
        sections: in the order of the page. Texts are plain: markup in them is shown, not obeyed.
    """
    environment = Environment(
        loader=PackageLoader("pipelines.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    kinds = {kind: kind.__name__ for kind in (PageImage, Table, Commands, Text)}
    shown = [
        {"title": section.title, "parts": [(kinds[type(part)], part) for part in section.parts]}
        for section in sections
    ]
    template = environment.get_template("page.html.jinja")
    return template.render(title=title, lead=lead, sections=shown)


def write_page(text: str, path: Path) -> None:
    r"""Write a page whole or not at all; its folder is created if absent.

    A byte of a file's name that is not UTF-8 is written as \udcNN.

    Raises:
        OSError: if the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text.encode(errors="backslashreplace"))


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
