"""The content of the pages of `pixmix-show`, and how a browser shows them."""

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from browser import CHROMIUM, probe
from fractals import Genome, draw_genome
from fractals.chaos import ChaosLayer
from fractals.escape import EscapeLayer
from fractals.variations import VARIATION_NUMBER, VARIATIONS
from pipelines.cli import gen, show
from pipelines.report.set_statistics import set_images
from pipelines.report.sets import judged, read_set
from pipelines.system.progress import no_progress
from test_report_runs import evaluated, training

pytest.importorskip("matplotlib")


def noise(seed: int) -> NDArray[np.uint8]:
    """Return 96x144 blocks of random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return colours.repeat(16, 0).repeat(16, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of seven images, of which 1 and 5, and 2, 3 and 6 are equal."""
    out = tmp_path_factory.mktemp("set") / "images"
    out.mkdir()
    for place, seed in enumerate((0, 1, 2, 2, 4, 1, 2)):
        Image.fromarray(noise(seed)).save(out / f"{place}.png")
    return out


@pytest.fixture(scope="module")
def fractals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset of 12 images that are not square."""
    out = tmp_path_factory.mktemp("set") / "fractals"
    words = ["fractals", "--n", "12", "--size", "48x32", "--jobs", "1"]
    result = CliRunner().invoke(gen.main, [*words, "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


def page_of(path: Path, *arguments: object) -> str:
    result = CliRunner().invoke(show.main, [*map(str, arguments), "--html", str(path)])
    assert result.exit_code == 0, result.output
    return path.read_text()


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of all tables of a page."""
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    return [
        [unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows
    ]


def genome_with(kind: type) -> tuple[int, Genome]:
    """Return the first genome that has a layer of a kind, of maps one with parameters."""
    for index in range(12):
        genome = draw_genome(seed=0, index=index)
        for layer in genome.layers:
            fractal = layer.fractal
            if isinstance(fractal, kind) and (
                isinstance(fractal, EscapeLayer)
                or any(term.parameters for each in fractal.maps for term in each.variations)
            ):
                return index, genome
    raise AssertionError(kind)


# --- Content -------------------------------------------------------------------------------------


def test_the_page_of_a_set_has_the_table_with_its_targets(folder: Path, tmp_path: Path) -> None:
    rows = rows_of(page_of(tmp_path / "set.html", "set", folder))
    statistics = read_set(
        "images", folder, set_images(folder), 512, progress=no_progress
    ).statistics
    assert rows == [list(row) for row in judged(statistics)]
    assert any("NOT MET" in cell for row in rows for cell in row)
    assert any(cell.endswith(" met") for row in rows for cell in row)


def test_near_duplicates_are_counted_and_shown(folder: Path, tmp_path: Path) -> None:
    text = page_of(tmp_path / "set.html", "set", folder)
    part = text.partition("Near-duplicates of images</h2>")[2].partition("</section>")[0]
    assert "3 of 7 images could be removed" in part
    names = [[str(folder / f"{place}.png") for place in group] for group in ((1, 5), (2, 3, 6))]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", part)
    assert captions == [" and ".join(names[0]), f"3 images, {', '.join(names[1])}"]
    # 2 and 3 images side by side, 128 pixels each with a gap of 2.
    assert re.findall(r'width="(\d+)" height="(\d+)"', part) == [("258", "128"), ("388", "128")]


def test_the_page_of_mixed_has_a_table_of_each_draw(folder: Path, tmp_path: Path) -> None:
    from pipelines.report.mixing import MixingImages, mildest_first, mix, square
    from pixmix import PixMixSettings

    words = ["--mixing-set", folder, "--size", 64, "--draws", 5, "--out", tmp_path / "mixed.png"]
    rows = rows_of(page_of(tmp_path / "mixed.html", "mixed", folder / "0.png", *words))
    mixing_set = MixingImages([folder], 64)
    expected = []
    image = square(noise(0), 64)
    draws = [mix(image, mixing_set, PixMixSettings(), (0, 0, index)) for index in range(5)]
    for draw in mildest_first(image, draws):
        expected.append(["round", "mixed with", "mixing", "a", "b"])
        expected.append(["start", draw.start or "unchanged", "-", "-", "-"])
        for number, each in enumerate(draw.rounds, 1):
            other = each.operation or Path(draw.mixing_image or "").name
            weights = [f"{each.a:.2f}", f"{each.b:.2f}"]
            expected.append([str(number), other, each.mixing, *weights])
    assert rows == expected
    assert any(row[1].endswith(".png") for row in rows)


def test_the_page_of_a_fractal_has_all_its_parameters(fractals: Path, tmp_path: Path) -> None:
    index, genome = genome_with(ChaosLayer)
    words = ["--index", index, "--size", 64, "--out", tmp_path / "genome.png"]
    rows = rows_of(page_of(tmp_path / "genome.html", "genome", fractals, *words))
    for layer in genome.layers:
        assert ["blend", layer.blend] in rows
        for number, stop in enumerate(layer.palette.stops, 1):
            assert [str(number), *(f"{value:.4g}" for value in stop)] in rows
        if not isinstance(layer.fractal, ChaosLayer):
            continue
        total = sum(each.weight for each in layer.fractal.maps)
        for name in ("exposure", "gamma", "colour_start", "softness"):
            value = f"{getattr(layer.fractal.tone, name):.4g}"
            assert [name.replace("_", " "), value] in rows
        for number, each in enumerate(layer.fractal.maps, 1):
            line = next(row for row in rows if row[:7] == [
                str(number), *(f"{value:.4g}" for value in each.affine)
            ])  # fmt: skip
            assert line[7:] == [f"{each.weight / total:.1%}", *(
                f"{value:.4g}" for value in (each.colour, each.speed)
            )]  # fmt: skip
            for term in each.variations:
                named = VARIATIONS[VARIATION_NUMBER[term.name]].parameters
                parameters = [
                    f"{name} {value:.4g}"
                    for (name, *_), value in zip(named, term.parameters, strict=True)
                ]
                row = [str(number), term.name, f"{term.weight:.4g}", ", ".join(parameters) or "-"]
                assert row in rows


def test_the_page_of_an_escape_layer_has_every_field(fractals: Path, tmp_path: Path) -> None:
    index, genome = genome_with(EscapeLayer)
    words = ["--index", index, "--size", 64, "--out", tmp_path / "genome.png"]
    rows = rows_of(page_of(tmp_path / "genome.html", "genome", fractals, *words))
    for layer in genome.layers:
        if isinstance(layer.fractal, EscapeLayer):
            assert ["formula", layer.fractal.formula] in rows
            assert ["max iterations", str(layer.fractal.max_iterations)] in rows
            assert [
                "constant",
                ", ".join(f"{value:.4g}" for value in layer.fractal.constant),
            ] in rows


# --- Layout in a browser -------------------------------------------------------------------------


def _set(folder: Path, _fractals: Path, out: Path) -> tuple[str, int, int]:
    return page_of(out / "set.html", "set", folder), 4, 1


def _sets(folder: Path, fractals: Path, out: Path) -> tuple[str, int, int]:
    return page_of(out / "sets.html", "set", folder, "--against", fractals), 5, 1


def _mixed(folder: Path, _fractals: Path, out: Path) -> tuple[str, int, int]:
    words = ["--mixing-set", folder, "--size", 64, "--draws", 3, "--out", out / "mixed.png"]
    return page_of(out / "mixed.html", "mixed", folder / "0.png", *words), 3, 3


def _flame(_folder: Path, fractals: Path, out: Path) -> tuple[str, int, int]:
    return _genome(fractals, out, ChaosLayer)


def _escape(_folder: Path, fractals: Path, out: Path) -> tuple[str, int, int]:
    return _genome(fractals, out, EscapeLayer)


def _genome(fractals: Path, out: Path, kind: type) -> tuple[str, int, int]:
    index, genome = genome_with(kind)
    words = ["--index", index, "--size", 640, "--out", out / "genome.png"]
    text = page_of(out / "genome.html", "genome", fractals, *words)
    # A layer of maps has maps, window, tone, palette, blending, and variations if there are any.
    tables = [
        3
        if isinstance(layer.fractal, EscapeLayer)
        else 5 + any(each.variations for each in (*layer.fractal.maps, layer.fractal.final) if each)
        for layer in genome.layers
    ]
    return text, 1 + len(genome.layers), 2 + sum(tables)


def _run(_folder: Path, _fractals: Path, out: Path) -> tuple[str, int, int]:
    runs = [evaluated(training(out / name)) for name in ("plain", "pixmix")]
    return page_of(out / "run.html", "run", *runs), 2, 2


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("make", [_set, _sets, _mixed, _flame, _escape, _run])
def test_each_page_shows_its_images_and_tables_in_narrow_and_wide_windows(
    folder: Path,
    fractals: Path,
    tmp_path: Path,
    make: Callable[[Path, Path, Path], tuple[str, int, int]],
) -> None:
    text, n_images, n_tables = make(folder, fractals, tmp_path)
    widths = [int(width) for width in re.findall(r'<img [^>]*width="(\d+)"', text)]
    assert len(widths) == n_images
    for window in (500, 1200):
        found = probe(text, tmp_path, window)
        images, tables = found["images"], found["tables"]
        assert isinstance(images, list)
        assert isinstance(tables, list)
        assert [natural for natural, _, _ in images] == widths
        assert all(0 < shown <= natural for natural, shown, _ in images)
        assert all(right <= found["width"] for _, _, right in images)
        assert len(tables) == n_tables
        assert [rows for rows, _ in tables] == [
            table.count("<tr>") for table in re.findall("<table.*?</table>", text, re.DOTALL)
        ]
        # No row is hidden or drawn over another.
        assert all(height > 20 * rows for rows, height in tables)
        assert found["needed"] == found["width"]
