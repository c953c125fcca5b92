"""`pixmix-show set`, and what it is made of: files in order, sheets, bars."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from fractals.statistics import measure
from pipelines.cli import show
from pipelines.errors import PipelineError
from pipelines.report import set_table
from pipelines.report.set_statistics import (
    Percentiles,
    SetStatistics,
    is_dead,
    jpeg_bits_per_pixel,
    measure_set,
)
from pipelines.report.set_table import Bar, table, verdicts
from pipelines.report.sheet import GAP, contact_sheet, write_sheet
from pipelines.shards.picture_files import (
    at_measured_size,
    natural_order,
    picture_files,
    read_picture,
)

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(show.main, ["set", *map(str, arguments)])


def noise(seed: int, shape: tuple[int, int] = (256, 256)) -> NDArray[np.uint8]:
    """Blocks of random colours, each 16 pixels a side."""
    rows, columns = -(-shape[0] // 16), -(-shape[1] // 16)
    colours = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return colours.repeat(16, 0).repeat(16, 1)[: shape[0], : shape[1]]


def save(picture: NDArray[np.uint8], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures of noise, of 256x256."""
    for index in range(5):
        save(noise(index), tmp_path / "pictures" / f"{index}.png")
    return tmp_path / "pictures"


def perfect() -> SetStatistics:
    """Statistics that meet every bar."""
    per_picture = {}
    for row in set_table.ROWS:
        bar = row.median_bar or Bar(at_least=1)
        low = row.p10_bar.at_least if row.p10_bar else bar.at_least
        per_picture[row.name] = Percentiles(median=bar.at_least, p10=low, p90=bar.at_least + 1)
    return SetStatistics(
        n=512,
        n_resized=0,
        per_picture=per_picture,
        n_of_diversity=64,
        colour_vendi=9.0,
        hog_vendi=7.4,
        dead=(),
    )


# --- files ---------------------------------------------------------------------------------------


def test_pictures_come_in_the_order_of_their_numbers_whatever_the_disk_says(tmp_path: Path) -> None:
    names = ["b/1.PNG", "10.png", "9.png", "a/x2.webp", "a/x10.bmp", "a/x2b.jpg", "09.png"]
    for name in names:
        save(noise(0, (20, 30)), tmp_path / name)
    found = [path.relative_to(tmp_path).as_posix() for path in picture_files(tmp_path)]
    assert found == ["09.png", "9.png", "10.png", "a/x2.webp", "a/x2b.jpg", "a/x10.bmp", "b/1.PNG"]


@pytest.mark.parametrize("backwards", [False, True])
def test_names_of_equal_numbers_have_an_order_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    paths = [save(noise(0, (20, 30)), tmp_path / name) for name in ("9.png", "09.png", "009.png")]

    @contextmanager
    def listed(folder: Path) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(folder) as entries:
            yield sorted(entries, key=lambda entry: entry.name, reverse=backwards)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", listed)
    assert [path.name for path in picture_files(tmp_path)] == ["009.png", "09.png", "9.png"]
    assert len(paths) == 3


def test_hidden_files_and_other_files_are_no_pictures(tmp_path: Path) -> None:
    save(noise(0), tmp_path / "seen.png")
    save(noise(0), tmp_path / ".work" / "hidden.png")
    save(noise(0), tmp_path / ".hidden.png")
    (tmp_path / "metadata.jsonl").write_text("{}")
    (tmp_path / "folder.png").mkdir()
    assert picture_files(tmp_path) == [tmp_path / "seen.png"]


def test_of_a_mixing_set_only_its_images_are_taken(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    save(noise(0), tmp_path / "sheet.png")
    image = save(noise(1), tmp_path / "images" / "00000000.jpg")
    assert picture_files(tmp_path) == [image]


def test_of_a_mixing_set_in_a_folder_of_sets_only_its_images_are_taken(tmp_path: Path) -> None:
    (tmp_path / "fractals" / "images").mkdir(parents=True)
    (tmp_path / "fractals" / "manifest.json").write_text("{}")
    save(noise(0), tmp_path / "fractals" / "sheet.png")
    image = save(noise(1), tmp_path / "fractals" / "images" / "00000000.jpg")
    other = save(noise(2), tmp_path / "photographs" / "1.png")
    assert picture_files(tmp_path) == [image, other]


def test_links_are_followed_as_torchvision_does_and_never_in_a_circle(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    root = tmp_path / "set"
    save(noise(0), tmp_path / "elsewhere" / "2.png")
    save(noise(1), root / "a" / "1.png")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    taken = [str(path) for path in picture_files(root)]
    assert taken == [path for path, _ in datasets.ImageFolder(root).samples]
    assert len(taken) == 2
    (root / "a" / "back").symlink_to(root)
    assert [str(path) for path in picture_files(root)] == taken


def test_a_link_to_nothing_is_not_lost_in_silence(tmp_path: Path) -> None:
    kept = save(noise(0), tmp_path / "1.png")
    lost = tmp_path / "2.png"
    lost.symlink_to(tmp_path / "nothing.png")
    assert picture_files(tmp_path) == [kept, lost]


def test_numbers_in_names_may_have_any_length() -> None:
    long = "9" * 5000
    names = [f"1{long}.png", f"{long}.png", "10.png", "9.png"]
    assert sorted(names, key=natural_order) == names[::-1]


def test_grey_palette_and_alpha_become_colour(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "1"):
        Image.fromarray(noise(3, (40, 60))).convert(mode).save(tmp_path / f"{mode}.png")
    pictures = [read_picture(path) for path in picture_files(tmp_path)]
    assert [(picture.shape, picture.dtype) for picture in pictures] == [((40, 60, 3), np.uint8)] * 4


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, suffix: str, damage: str) -> None:
    path = save(noise(0), tmp_path / f"bad.{suffix}")
    whole = path.read_bytes()
    damaged = {"cut": whole[: len(whole) // 2], "text": b"no picture at all", "empty": b""}
    path.write_bytes(damaged[damage])
    with pytest.raises(PipelineError, match=rf"bad\.{suffix} is no readable picture.*remove it"):
        read_picture(path)


def test_a_picture_of_256_is_measured_as_it_is_and_others_at_their_centre() -> None:
    picture = noise(0)
    assert at_measured_size(picture) is picture
    wide = np.zeros((128, 512, 3), np.uint8)
    wide[:, 192:320] = 200
    assert at_measured_size(wide).shape == (256, 256, 3)
    # The bright part is exactly the centre square; bilinear enlarging blurs its two sides.
    assert np.all(at_measured_size(wide)[:, 2:-2] == 200)
    assert at_measured_size(noise(1, (700, 300))).shape == (256, 256, 3)


# --- statistics of a set -------------------------------------------------------------------------


def test_a_set_is_measured_picture_by_picture(folder: Path) -> None:
    steps: list[tuple[int, int]] = []
    found = measure_set(picture_files(folder), progress=lambda *step: steps.append(step))
    assert (found.n, found.n_resized, found.n_of_diversity) == (5, 0, 5)
    assert steps == [(done, 5) for done in range(1, 6)]
    measured = [measure(noise(index)) for index in range(5)]
    for name in measured[0]:
        values = [statistics[name] for statistics in measured]
        expected = np.percentile(values, [50, 10, 90])
        figures = found.per_picture[name]
        assert (figures.median, figures.p10, figures.p90) == pytest.approx(tuple(expected))
    bits = [jpeg_bits_per_pixel(noise(index)) for index in range(5)]
    assert found.per_picture["jpeg_bits_per_pixel"].median == float(np.median(bits))


def test_jpeg_bits_are_those_of_a_file_of_quality_75(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    picture = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    Image.fromarray(picture).save(path, quality=75)
    assert jpeg_bits_per_pixel(picture) == path.stat().st_size * 8 / (120 * 200)


def test_equal_pictures_have_no_diversity(tmp_path: Path) -> None:
    paths = [save(noise(7), tmp_path / f"{index}.png") for index in range(3)]
    found = measure_set(paths)
    assert found.colour_vendi == pytest.approx(1.0)
    assert found.hog_vendi == pytest.approx(1.0)


def test_diversity_is_that_of_64_pictures_spread_evenly(tmp_path: Path) -> None:
    # Of 128 pictures every second is taken: those are all alike, the others are not.
    alike = save(noise(0, (32, 48)), tmp_path / "alike.png")
    paths = [
        alike if index % 2 == 0 else save(noise(index, (32, 48)), tmp_path / f"{index}.png")
        for index in range(128)
    ]
    found = measure_set(paths)
    assert (found.n, found.n_resized, found.n_of_diversity) == (128, 128, 64)
    assert found.colour_vendi == pytest.approx(1.0)


def test_a_dead_picture_is_named(folder: Path) -> None:
    black = save(np.zeros((256, 256, 3), np.uint8), folder / "black.png")
    grey = save(np.full((256, 256, 3), 128, np.uint8), folder / "grey.png")
    assert measure_set(picture_files(folder)).dead == (black, grey)
    assert not is_dead(measure(noise(0)))


def test_a_set_of_nothing_has_no_statistics() -> None:
    with pytest.raises(ValueError, match="0 pictures"):
        measure_set([])


# --- bars ----------------------------------------------------------------------------------------


def test_every_statistic_has_its_row_and_every_bar_its_verdict(folder: Path) -> None:
    assert {row.name for row in set_table.ROWS} == set(
        measure_set(picture_files(folder)).per_picture
    )
    found = verdicts(perfect())
    assert len(found) == 20
    assert len({(verdict.statistic, verdict.figure) for verdict in found}) == 20
    assert all(verdict.met is True for verdict in found)


def test_a_bar_holds_its_own_ends_and_nothing_beyond() -> None:
    bar = Bar(at_least=0.38, at_most=0.60)
    assert [bar.is_met_by(value) for value in (0.379, 0.38, 0.5, 0.60, 0.601)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert Bar(at_least=0.7).is_met_by(99)


@pytest.mark.parametrize(
    ("statistic", "figure"),
    [(verdict.statistic, verdict.figure) for verdict in verdicts(perfect())],
)
def test_a_figure_below_its_bar_fails_that_bar_alone(statistic: str, figure: str) -> None:
    good = perfect()
    if statistic == "dead_pictures":
        worse = replace(good, dead=(Path("black.png"),))
    elif figure == "score":
        scores = {"colour_vendi": good.colour_vendi, "hog_vendi": good.hog_vendi, statistic: 1.0}
        worse = replace(good, **scores)
    else:
        lowered = replace(good.per_picture[statistic], **{figure: -1.0})
        worse = replace(good, per_picture={**good.per_picture, statistic: lowered})
    failed = [verdict for verdict in verdicts(worse) if verdict.met is not True]
    assert [(verdict.statistic, verdict.figure, verdict.met) for verdict in failed] == [
        (statistic, figure, False)
    ]
    assert "19 of 20 bars met" in table(worse)
    assert table(worse).count("NOT MET") == 1


def test_fewer_than_64_pictures_are_not_judged_by_their_diversity() -> None:
    few = replace(perfect(), n=63, n_of_diversity=63, colour_vendi=2.0)
    unjudged = [verdict.statistic for verdict in verdicts(few) if verdict.met is None]
    assert unjudged == ["colour_vendi", "hog_vendi"]
    assert "18 of 18 bars met" in table(few)
    assert table(few).count("needs 64 pictures") == 2


def test_the_table_is_aligned_and_fits_a_wide_terminal() -> None:
    lines = table(perfect()).splitlines()
    assert len(lines) == 1 + len(set_table.ROWS) + 2 + 1 + 2
    column = lines[0].index("median bar")
    assert all(line[column - 2 : column].strip() == "" for line in lines[1:16])
    assert max(map(len, lines)) <= 120


# --- sheets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "columns", "grid"),
    [(1, None, (1, 1)), (5, None, (3, 2)), (64, None, (8, 8)), (5, 5, (5, 1))],
)
def test_a_sheet_is_a_near_square_grid(n: int, columns: int | None, grid: tuple[int, int]) -> None:
    sheet = contact_sheet([noise(index, (30, 50)) for index in range(n)], columns, cell=20)
    assert sheet.mode == "RGB"
    assert sheet.size == (grid[0] * (20 + GAP) - GAP, grid[1] * (20 + GAP) - GAP)


def test_pictures_are_in_reading_order_and_keep_their_aspect() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    shapes = [(40, 80), (80, 40), (5, 5)]
    pictures = [
        np.full((*shape, 3), colour, np.uint8)
        for shape, colour in zip(shapes, colours, strict=True)
    ]
    sheet = np.asarray(contact_sheet(pictures, columns=2, cell=20))
    found = [np.argwhere((sheet == colour).all(axis=2)) for colour in colours]
    pitch = 20 + GAP
    boxes = [(*marks.min(axis=0), *(marks.max(axis=0) + 1)) for marks in found]
    assert boxes == [(5, 0, 15, 20), (0, pitch + 5, 20, pitch + 15), (pitch, 0, pitch + 20, 20)]


def test_a_picture_of_the_cells_size_comes_out_as_it_is_and_is_not_changed() -> None:
    picture = noise(0, (20, 20))
    before = picture.copy()
    assert np.array_equal(np.asarray(contact_sheet([picture], cell=20)), before)
    assert np.array_equal(picture, before)


def test_shrinking_averages_instead_of_picking() -> None:
    rows, columns = np.indices((64, 64))
    board = np.repeat(((rows + columns) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    small = np.asarray(contact_sheet([board], cell=16)).astype(int)
    assert np.abs(small - 127.5).max() < 16


@pytest.mark.parametrize(("columns", "cell"), [(0, 8), (-1, 8), (2, 0)])
def test_a_sheet_without_size_is_refused(columns: int, cell: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        contact_sheet([noise(0)], columns, cell)


def test_a_sheet_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="0 pictures"):
        contact_sheet([])


def test_a_sheet_is_written_in_the_format_of_its_name(tmp_path: Path) -> None:
    sheet = contact_sheet([noise(0)])
    for name, format in (("a/b/sheet.png", "PNG"), ("sheet.JPG", "JPEG"), ("sheet.webp", "WEBP")):
        write_sheet(sheet, tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert (image.format, image.size) == (format, sheet.size)
    with pytest.raises(ValueError, match=r"\.txt names no picture format"):
        write_sheet(sheet, tmp_path / "sheet.txt")


# --- the command ---------------------------------------------------------------------------------


def test_the_command_prints_what_the_library_measures(folder: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    result = run(folder, "--n", 4, "--sheet", sheet, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    expected = measure_set(picture_files(folder)[:4])
    assert (document["pictures"], document["n"]) == (5, 4)
    for name, figures in expected.per_picture.items():
        assert document["per_picture"][name] == vars(figures)
    assert len(document["bars"]) == 20
    pixels = read_picture(sheet)
    drawn = contact_sheet([noise(index) for index in range(4)])
    assert np.array_equal(pixels, np.asarray(drawn))


def test_the_command_prints_the_table_for_people(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 0
    assert f"{folder}: 5 of 5 pictures" in result.stdout
    assert table(measure_set(picture_files(folder))) in result.stdout


def test_pictures_of_other_sizes_are_told(tmp_path: Path) -> None:
    save(noise(0, (300, 400)), tmp_path / "0.png")
    assert "1 pictures were brought to 256x256" in run(tmp_path).stdout


def test_users_mistakes_get_one_line_and_their_exit_code(folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "0.jpg").write_bytes(b"nothing")
    (tmp_path / "file").write_text("a file")
    cases: list[tuple[int, str, list[object]]] = [
        (1, "holds no pictures", [empty]),
        (1, "0.jpg is no readable picture", [broken]),
        (1, "file", [folder, "--n", 1, "--sheet", tmp_path / "file" / "sheet.png"]),
        (2, "does not exist", [tmp_path / "absent"]),
        (2, "is a file", [tmp_path / "file"]),
        (2, "--n", [folder, "--n", 0]),
        (2, "does not end in", [folder, "--sheet", tmp_path / "sheet.txt"]),
        (2, "lies inside", [folder, "--sheet", folder / "sheet.png"]),
    ]
    for code, message, arguments in cases:
        result = run(*arguments)
        assert result.exit_code == code, result.output
        assert message in result.stderr
        errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1
        assert "Traceback" not in result.stderr
        assert result.stdout == ""


def test_the_reference_flames_meet_their_own_references(tmp_path: Path) -> None:
    flames = SHARED / "reference_fractals"
    if not flames.is_dir():
        pytest.skip("shared/data/reference_fractals does not lie beside the project")
    document = json.loads(run(flames, "--json", "--sheet", tmp_path / "sheet.png").stdout)
    assert document["n"] == 200
    for row in set_table.ROWS:
        if row.flames is None:
            continue
        median = document["per_picture"][row.name]["median"]
        # 0.006: the two at 32 pixels and the box dimension differ by up to that or by 4 %.
        assert median == pytest.approx(row.flames.median, rel=0.045, abs=0.006), row.name
    # Five of the two hundred are black, one is a flat brown.
    assert len(document["dead"]) == 6
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * (128 + GAP) - GAP,) * 2
