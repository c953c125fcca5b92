"""Reports as self-contained HTML pages, and the figures in them.

A page loads nothing from elsewhere and is readable on a phone. Plots need the extra `viz`
(matplotlib).
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
from numpy.typing import NDArray
from PIL import Image, ImageFont

from pipelines.errors import PipelineError, install_extra
from pipelines.system.files import printable, write_file
from pipelines.text_table import BEST

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHORT_NAME = 14
"""Characters of a row's name that a phone need not break."""

_PHONE_COLUMNS = 50
"""Characters of a table, its padding included, that fit the width of a phone."""


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that distinguish the paths.

    Paths are resolved, so "." gets the name of its folder. Bytes that are not UTF-8 are
    escaped, because names are drawn and written to files.
    """
    whole = [Path(printable(str(path.resolve()))) for path in paths]
    for parts in range(1, 8):
        names = [printable("/".join(path.parts[-parts:])) for path in whole]
        if len(set(names)) == len(names):
            return names
    return [printable(str(path)) for path in paths]


# --- Pages ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PageImage:
    """An image of a report.

    Attributes:
        data: a whole PNG, JPEG or WebP file.
        description: its alternative text.
        caption: text below it.
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

    Attributes:
        header: one cell for each column.
        rows: as many cells each, the first of which names the row. A cell that ends with `BEST` is
            shown as the best value of its row.
        caption: text above it, which does not scroll with a table wider than the window.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    @property
    def has_short_names(self) -> bool:
        """Whether a phone can show the names of all rows without breaking them."""
        return max(len(row[0]) for row in (self.header, *self.rows)) <= _SHORT_NAME

    @property
    def is_wide(self) -> bool:
        """Whether the table is too wide for a phone, and needs a hint to scroll."""
        # A phone breaks the names of rows.
        names, *columns = zip(self.header, *self.rows, strict=True)
        widths = [min(max(map(len, names)), _SHORT_NAME), *(max(map(len, one)) for one in columns)]
        return sum(width + 2 for width in widths) > _PHONE_COLUMNS

    def __post_init__(self) -> None:
        """Check the number of cells in each row.

        Raises:
            ValueError: if a row and the header differ in length.
        """
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(
                    f"row {row[:1]} has {len(row)} cells under a header of {len(self.header)}; "
                    "pass one cell for each column"
                )


@dataclass(frozen=True, kw_only=True)
class Commands:
    """Command lines, which readers can copy."""

    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    text: str


Part = PageImage | Table | Commands | Text


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and the parts below it, from top to bottom."""

    title: str
    parts: tuple[Part, ...]


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return a report as an HTML document that needs no other file and runs no script.

    Args:
        title: heading and name of the document.
        lead: a sentence below the heading.
        sections: in order. All texts are plain: markup in them is escaped.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

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
    return template.render(title=title, lead=lead, sections=shown, best=BEST)


def write_page(text: str, path: Path) -> None:
    r"""Write a page atomically; its folder is created if absent.

    A byte of a file name that is not UTF-8 is written as \udcNN.

    Raises:
        OSError: if the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text.encode(errors="backslashreplace"))


# --- Figures -------------------------------------------------------------------------------------

Pixels = NDArray[np.uint8]

PAPER, INK, SOFT, FRAME = (255, 255, 255), (28, 28, 30), (110, 110, 118), (200, 200, 206)
"""Colours of the background, of text, of secondary text, and of frames."""

TEXT, LINE = 14, 19
"""Height of letters and distance between lines, in pixels."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

GAP = 2
"""Pixels between the cells of a contact sheet."""
_BACKGROUND = (24, 24, 24)  # Not black, so that dark images keep their outline on it.


def shortened(line: str, font: Font, room: int) -> str:
    """Return a line that fits into `room` pixels, cut and with an ellipsis if needed.

    At least one letter stays.
    """
    text = line
    while font.getlength(text) > room and len(text) > 1:
        text = f"{text.rstrip('…')[:-1]}…"
    return text


def fitted(pixels: Pixels, side: int) -> Image.Image:
    """Return an image resized so that its longer side is `side` pixels.

    The filter is Lanczos to shrink and bicubic to enlarge. pixels: (h, w, 3) uint8.
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
    """Return images in reading order on a grid of square cells, each scaled to fit its cell.

    Args:
        images: one or more (h, w, 3) uint8 of any shapes; each is centred and keeps its aspect.
        columns: images per row; None makes the grid square, or slightly wider than high.
        cell: side of a cell in pixels.

    Raises:
        ValueError: if images is empty, or columns or cell is below 1.
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


def check_plotting() -> None:
    """Check that plots can be drawn.

    Raises:
        PipelineError: if the extra `viz` is not installed.
    """
    if find_spec("matplotlib") is None:
        raise PipelineError(
            f"a plot needs matplotlib, which is not installed; run {install_extra('viz')}"
        )


def legend_name(name: str) -> str:
    """Return a name that matplotlib shows literally, not as mathematics and not hidden."""
    escaped = name.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def plot_png(figure: "Figure", *, dpi: int) -> bytes:
    """Return a plot as a PNG file with a resolution in pixels per inch."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # matplotlib draws boxes for letters that its font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def as_png(image: Image.Image) -> bytes:
    """Return an image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_image(image: Image.Image | bytes, path: Path) -> None:
    """Write an image file atomically; its folder is created if absent.

    Args:
        image: an image, or an image file in any format that Pillow reads.
        path: ends in .png, .jpg, .jpeg or .webp, which determines the format.

    Raises:
        ValueError: if the extension is not that of an image format.
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
