"""The documentation site: it builds without warnings, needs no network, and reads on any screen."""

import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from browser import CHROMIUM

pytest.importorskip("furo")
pytest.importorskip("myst_parser")
pytest.importorskip("sphinx")

ROOT = Path(__file__).parent.parent
WIDTHS = (1200, 400)
PAGES_AT_ONCE = 12

MEASURE = """<!DOCTYPE html><html><body>%s<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument.documentElement;
    const right = page.clientWidth;
    const wide = [...frame.contentDocument.querySelectorAll("article *")].filter(
      e => e.getBoundingClientRect().right > right + 1 && !e.closest("pre, .table-wrapper"));
    return [frame.getAttribute("src"), page.clientWidth, page.scrollWidth,
      [...frame.contentDocument.images].filter(e => !e.naturalWidth).map(e => e.src),
      wide.slice(0, 3).map(e => e.outerHTML.slice(0, 200))];
  });
  document.body.innerHTML = "<pre id=found></pre>";
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script></body></html>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it: a warning is an error."""
    out = tmp_path_factory.mktemp("site") / "docs"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(out.parent / "trees"), str(ROOT / "docs"), str(out)],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1", "http_proxy": "http://127.0.0.1:9"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    return out


def pages(site: Path) -> list[Path]:
    """Return all HTML pages, the two that Sphinx adds too."""
    found = sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)
    assert len(found) >= 35
    return found


def shown(site: Path, url: str) -> str:
    """Return the document that Chromium makes of a page, after its scripts have run."""
    assert CHROMIUM is not None
    return subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
         "--allow-file-access-from-files", "--virtual-time-budget=20000",
         f"--user-data-dir={site.parent / 'profile'}", url],
        capture_output=True, text=True, check=True, timeout=180,
    ).stdout  # fmt: skip


def test_the_make_target_builds_with_warnings_as_errors() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\ndocs:")[2].partition("\n\n")[0]
    assert "sphinx -W --keep-going -n " in recipe


def test_every_public_name_is_documented(site: Path) -> None:
    text = "".join(path.read_text() for path in (site / "api").glob("*.html"))
    for package in ("fractals", "featviz", "pixmix", "pipelines"):
        for name in import_module(package).__all__:
            home = "pipelines" if name in import_module("pipelines").__all__ else package
            if package == "pixmix" and name in import_module("fractals").__all__:
                home = "fractals"
            assert f'id="{home}.{name}"' in text, f"{package}.{name}"


def loaded_addresses(page: str) -> Iterator[str]:
    """Yield the addresses that a browser loads with a page, without links to follow."""
    for tag in re.findall(r"<(?:script|link|img|iframe|source|video|object)\b[^>]*>", page):
        if 'rel="canonical"' not in tag:
            yield from re.findall(r"""(?:src|href|data|srcset)=["']([^"']+)""", tag)
    yield from re.findall(r"""url\(["']?([^"')]+)""", page)


def test_viewing_a_page_loads_nothing_from_a_network(site: Path) -> None:
    texts = [path.read_text() for path in pages(site)]
    texts += [path.read_text() for path in site.rglob("*.css")]
    addresses = {address for text in texts for address in loaded_addresses(text)}
    assert len(addresses) > 20
    assert [each for each in addresses if re.match(r"(https?:)?//", each)] == []
    for script in site.rglob("*.js"):
        assert not re.search(r"""(import|src\s*=|fetch)\(?\s*["']https?://""", script.read_text())


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_no_page_is_wider_than_the_window(site: Path) -> None:
    every = [path.relative_to(site).as_posix() for path in pages(site)]
    seen = 0
    for width in WIDTHS:
        for first in range(0, len(every), PAGES_AT_ONCE):
            part = every[first : first + PAGES_AT_ONCE]
            frame = '<iframe src="{}" width="{}" height="900" style="border:0"></iframe>'
            (site / "measured.html").write_text(
                MEASURE % "".join(frame.format(name, width) for name in part)
            )
            document = shown(site, (site / "measured.html").as_uri())
            (site / "measured.html").unlink()
            match = re.search(r'<pre id="found">(.*?)</pre>', document, re.DOTALL)
            assert match, document[-500:]
            for name, inner, needed, broken, wide in json.loads(html.unescape(match[1])):
                seen += 1
                assert width - 20 <= inner <= width
                assert needed <= inner, f"{name} needs {needed} of {inner} pixels: {wide}"
                assert broken == [], name
    assert seen == len(every) * len(WIDTHS)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_search_works_from_static_files(site: Path) -> None:
    document = shown(site, (site / "search.html").as_uri() + "?q=resume")
    results = re.findall(r'<li class="[^"]*"><a href="([^"]+)"', document)
    assert any("concepts/loading.html" in address for address in results), document[-3000:]
