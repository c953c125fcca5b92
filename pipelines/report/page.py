"""A report as one HTML file that loads nothing from elsewhere and reads well on a phone."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from pipelines.system.files import printable, write_file

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
