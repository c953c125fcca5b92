"""Reports as self-contained HTML pages, and their contact sheets."""

import io
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser import CHROMIUM, probe
from image_sets import noise
from pipelines.report.page import (
    GAP,
    Commands,
    PageImage,
    Section,
    Table,
    Text,
    contact_sheet,
    page,
    short_names,
    write_image,
    write_page,
)


def png(width: int = 40, height: int = 30, colour: tuple[int, int, int] = (200, 30, 60)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def report() -> str:
    table = Table(
        header=("", *(f"network {i}" for i in range(9))),
        rows=tuple((f"measure {row}", *(f"{row}.{i} %" for i in range(9))) for row in range(3)),
        caption="Metrics of nine networks",
    )
    return page(
        "A <b>report</b>",
        "On two & more networks.",
        [
            Section(
                title="Images",
                parts=(
                    PageImage(data=png(1200, 400), description='a "wide" one', caption="wide"),
                    PageImage(data=png(), description="a small one"),
                ),
            ),
            Section(
                title="Numbers",
                parts=(table, Text(text="<script>x</script>"), Commands(lines=("a --b 'c'",))),
            ),
        ],
    )


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [
            value or "" for name, value in attributes if name in ("src", "href", "srcset")
        ]


def test_a_page_loads_no_other_file_and_runs_no_script() -> None:
    found = _Links()
    found.feed(report())
    assert len(found.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in found.sources)
    assert not {"script", "link", "iframe"} & set(found.tags)
    assert "url(" not in report()
    assert "default-src 'none'" in report()


def test_markup_in_texts_is_escaped() -> None:
    text = report()
    for shown in (
        "<h1>A &lt;b&gt;report&lt;/b&gt;</h1>",
        "On two &amp; more networks.",
        "<p>&lt;script&gt;x&lt;/script&gt;</p>",
        'alt="a &#34;wide&#34; one"',
        "a --b &#39;c&#39;",
    ):
        assert shown in text


def test_commands_are_lines_that_can_be_copied_and_that_wrap() -> None:
    class Texts(HTMLParser):
        inside, text = False, ""

        def handle_starttag(self, tag: str, _: list[tuple[str, str | None]]) -> None:
            self.inside |= tag == "pre"

        def handle_endtag(self, tag: str) -> None:
            self.inside &= tag != "pre"

        def handle_data(self, data: str) -> None:
            self.text += data if self.inside else ""

    commands = ("pixmix-gen fractals --n 400", "pixmix-train digits > 'a b'")
    text = page("x", "y", [Section(title="z", parts=(Commands(lines=commands),))])
    found = Texts()
    found.feed(text)
    assert found.text.splitlines() == list(commands)
    assert "white-space: pre-wrap" in text


def test_a_wide_table_can_be_scrolled_by_keyboard_and_has_a_hint() -> None:
    text = report()
    assert '<div class="scroll" role="region" tabindex="0" aria-label="Metrics of nine' in text
    assert text.count('class="hint"') == 1
    narrow = Table(header=("", "a"), rows=(("error", "5.00 %"),))
    assert not narrow.is_wide
    assert 'class="hint"' not in page("x", "y", [Section(title="z", parts=(narrow,))])


def test_the_best_value_of_a_row_is_bold_on_a_page() -> None:
    table = Table(header=("", "a", "b"), rows=(("error", "5.00 % *", "6.00 %"),))
    text = page("x", "y", [Section(title="z", parts=(table,))])
    assert '<td class="best">5.00 % *</td><td>6.00 %</td>' in text


def test_a_row_with_another_length_than_the_header_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"row \('x',\) has 1 cells under a header of 2"):
        Table(header=("", "y"), rows=(("x",),))


def test_a_page_is_written_to_a_new_folder_and_over_an_older_page(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_page("old", path)
    write_page("<p>ä</p>", path)
    assert path.read_text(encoding="utf-8") == "<p>ä</p>"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [500, 1200])
def test_a_browser_shows_each_image_and_table_within_the_window(tmp_path: Path, width: int) -> None:
    found = probe(report(), tmp_path, width)
    images, tables = found["images"], found["tables"]
    assert isinstance(images, list)
    assert isinstance(tables, list)
    assert [natural for natural, _, _ in images] == [1200, 40]
    assert all(shown > 0 and right <= found["width"] for _, shown, right in images)
    assert [rows for rows, _ in tables] == [4]
    assert all(height > 50 for _, height in tables)
    # A wide table scrolls in its own frame; the page does not scroll sideways.
    assert found["needed"] == found["width"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_screenshot_of_a_page_has_the_colour_of_its_image(tmp_path: Path) -> None:
    write_page(report(), tmp_path / "report.html")
    shot = tmp_path / "shot.png"
    assert CHROMIUM is not None
    subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={shot}",
         f"--user-data-dir={tmp_path / 'profile'}", "--window-size=800,900",
         (tmp_path / "report.html").as_uri()],
        capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    of_image = (abs(pixels - (200, 30, 60)).max(axis=2) < 6).mean()
    assert of_image > 0.2


def test_short_names_are_the_last_parts_of_resolved_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert short_names([Path()]) == ["b"]
    assert short_names([Path(), Path("..")]) == ["b", "a"]
    assert short_names([Path("a/best.pt"), Path("b/best.pt")]) == ["a/best.pt", "b/best.pt"]


# --- Contact sheets ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "columns", "grid"),
    [(1, None, (1, 1)), (5, None, (3, 2)), (64, None, (8, 8)), (5, 5, (5, 1))],
)
def test_a_contact_sheet_is_a_nearly_square_grid(
    n: int, columns: int | None, grid: tuple[int, int]
) -> None:
    sheet = contact_sheet([noise(index, (30, 50)) for index in range(n)], columns, cell=20)
    assert sheet.mode == "RGB"
    assert sheet.size == (grid[0] * (20 + GAP) - GAP, grid[1] * (20 + GAP) - GAP)


def test_images_are_in_reading_order_and_keep_their_aspect() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    shapes = [(40, 80), (80, 40), (5, 5)]
    images = [
        np.full((*shape, 3), colour, np.uint8)
        for shape, colour in zip(shapes, colours, strict=True)
    ]
    sheet = np.asarray(contact_sheet(images, columns=2, cell=20))
    found = [np.argwhere((sheet == colour).all(axis=2)) for colour in colours]
    pitch = 20 + GAP
    boxes = [(*marks.min(axis=0), *(marks.max(axis=0) + 1)) for marks in found]
    assert boxes == [(5, 0, 15, 20), (0, pitch + 5, 20, pitch + 15), (pitch, 0, pitch + 20, 20)]


def test_an_image_of_the_size_of_a_cell_is_copied_and_not_changed() -> None:
    image = noise(0, (20, 20))
    before = image.copy()
    assert np.array_equal(np.asarray(contact_sheet([image], cell=20)), before)
    assert np.array_equal(image, before)


def test_shrinking_averages_pixels() -> None:
    rows, columns = np.indices((64, 64))
    board = np.repeat(((rows + columns) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    small = np.asarray(contact_sheet([board], cell=16)).astype(int)
    assert np.abs(small - 127.5).max() < 16


@pytest.mark.parametrize(("columns", "cell"), [(0, 8), (-1, 8), (2, 0)])
def test_a_contact_sheet_without_size_is_rejected(columns: int, cell: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        contact_sheet([noise(0)], columns, cell)


def test_a_contact_sheet_without_images_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


def test_an_image_is_written_in_the_format_of_its_extension(tmp_path: Path) -> None:
    sheet = contact_sheet([noise(0)])
    for name, format in (("a/b/sheet.png", "PNG"), ("sheet.JPG", "JPEG"), ("sheet.webp", "WEBP")):
        write_image(sheet, tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert (image.format, image.size) == (format, sheet.size)
    with pytest.raises(ValueError, match=r"\.txt has no image extension"):
        write_image(sheet, tmp_path / "sheet.txt")
