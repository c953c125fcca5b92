"""Reports as HTML: whole in one file, plain text stays text, and a browser shows all of it."""

import io
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser import CHROMIUM, probe
from pipelines.report.page import (
    Commands,
    PageImage,
    Section,
    Table,
    Text,
    page,
    short_names,
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
        caption="of nine networks",
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


def test_a_page_needs_no_other_file_and_runs_no_script() -> None:
    found = _Links()
    found.feed(report())
    assert len(found.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in found.sources)
    assert not {"script", "link", "iframe"} & set(found.tags)
    assert "url(" not in report()
    assert "default-src 'none'" in report()


def test_markup_in_texts_is_shown_and_not_obeyed() -> None:
    text = report()
    for shown in (
        "<h1>A &lt;b&gt;report&lt;/b&gt;</h1>",
        "On two &amp; more networks.",
        "<p>&lt;script&gt;x&lt;/script&gt;</p>",
        'alt="a &#34;wide&#34; one"',
        "a --b &#39;c&#39;",
    ):
        assert shown in text


def test_a_command_of_a_page_is_a_line_that_can_be_copied_and_wraps() -> None:
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


def test_a_row_of_other_length_than_the_header_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row \('x',\) has 1 cells under a header of 2"):
        Table(header=("", "y"), rows=(("x",),))


def test_a_page_is_written_into_a_new_folder_and_over_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_page("old", path)
    write_page("<p>ä</p>", path)
    assert path.read_text(encoding="utf-8") == "<p>ä</p>"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [500, 1200])
def test_a_browser_shows_each_image_and_table_within_its_window(tmp_path: Path, width: int) -> None:
    found = probe(report(), tmp_path, width)
    images, tables = found["images"], found["tables"]
    assert isinstance(images, list)
    assert isinstance(tables, list)
    assert [natural for natural, _, _ in images] == [1200, 40]
    assert all(shown > 0 and right <= found["width"] for _, shown, right in images)
    assert [rows for rows, _ in tables] == [4]
    assert all(height > 50 for _, height in tables)
    # A wide table moves in its own frame; the page does not move sideways.
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


def test_names_are_the_last_parts_of_where_paths_lead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert short_names([Path()]) == ["b"]
    assert short_names([Path(), Path("..")]) == ["b", "a"]
    assert short_names([Path("a/best.pt"), Path("b/best.pt")]) == ["a/best.pt", "b/best.pt"]
