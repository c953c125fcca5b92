"""`pixmix-show set`, and what it is made of: files in order, sheets, bars."""

import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from fractals import draw_genome, render
from fractals.statistics import measure
from pipelines.cli import options, show
from pipelines.errors import PipelineError
from pipelines.report import near_duplicates as near
from pipelines.report import set_table
from pipelines.report.figures import GAP, contact_sheet, write_image
from pipelines.report.set_statistics import (
    FilePicture,
    Percentiles,
    SetStatistics,
    is_dead,
    jpeg_bits_per_pixel,
    measure_set,
)
from pipelines.report.set_table import Bar, table, verdicts
from pipelines.shards.images import (
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


def of_files(paths: Sequence[Path]) -> list[FilePicture]:
    return [FilePicture(path) for path in paths]


def perfect() -> SetStatistics:
    """Statistics that meet every bar."""
    per_image = {}
    for row in set_table.ROWS:
        bar = row.median_bar or Bar(at_least=1)
        low = row.p10_bar.at_least if row.p10_bar else bar.at_least
        per_image[row.name] = Percentiles(median=bar.at_least, p10=low, p90=bar.at_least + 1)
    return SetStatistics(
        n=512,
        unreadable=(),
        n_resized=0,
        per_image=per_image,
        n_of_diversity=64,
        colour_vendi=9.0,
        hog_vendi=7.4,
        dead=(),
        near_duplicates=(),
        values={},
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
    found = measure_set(of_files(picture_files(folder)), progress=lambda *step: steps.append(step))
    assert (found.n, found.n_resized, found.n_of_diversity) == (5, 0, 5)
    assert steps == [(done, 5) for done in range(1, 6)]
    measured = [measure(noise(index)) for index in range(5)]
    for name in measured[0]:
        values = [statistics[name] for statistics in measured]
        expected = np.percentile(values, [50, 10, 90])
        figures = found.per_image[name]
        assert (figures.median, figures.p10, figures.p90) == pytest.approx(tuple(expected))
    bits = [jpeg_bits_per_pixel(noise(index)) for index in range(5)]
    assert found.per_image["jpeg_bits_per_pixel"].median == float(np.median(bits))


def test_jpeg_bits_are_those_of_a_file_of_quality_75(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    picture = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    Image.fromarray(picture).save(path, quality=75)
    assert jpeg_bits_per_pixel(picture) == path.stat().st_size * 8 / (120 * 200)


def test_equal_pictures_have_no_diversity(tmp_path: Path) -> None:
    paths = [save(noise(7), tmp_path / f"{index}.png") for index in range(3)]
    found = measure_set(of_files(paths))
    assert found.colour_vendi == pytest.approx(1.0)
    assert found.hog_vendi == pytest.approx(1.0)


def test_diversity_is_that_of_64_pictures_spread_evenly(tmp_path: Path) -> None:
    # Of 128 pictures every second is taken: those are all alike, the others are not.
    alike = save(noise(0, (32, 48)), tmp_path / "alike.png")
    paths = [
        alike if index % 2 == 0 else save(noise(index, (32, 48)), tmp_path / f"{index}.png")
        for index in range(128)
    ]
    found = measure_set(of_files(paths))
    assert (found.n, found.n_resized, found.n_of_diversity) == (128, 128, 64)
    assert found.colour_vendi == pytest.approx(1.0)


def test_a_dead_picture_is_named(folder: Path) -> None:
    black = save(np.zeros((256, 256, 3), np.uint8), folder / "black.png")
    grey = save(np.full((256, 256, 3), 128, np.uint8), folder / "grey.png")
    assert measure_set(of_files(picture_files(folder))).dead == (str(black), str(grey))
    assert not is_dead(measure(noise(0)))


def test_pictures_that_cannot_be_read_are_counted_and_the_others_measured(
    folder: Path, tmp_path: Path
) -> None:
    expected = measure_set(of_files(picture_files(folder)))
    for place in (1, 3, 5, 7):
        (folder / f"{place}x.png").write_bytes(b"nothing")
    found = measure_set(of_files(picture_files(folder)))
    lost = tuple(str(folder / f"{place}x.png") for place in (1, 3, 5, 7))
    assert found.unreadable == lost
    assert (found.n, found.n_of_diversity) == (5, 5)
    assert found.per_image == expected.per_image
    assert (found.colour_vendi, found.hog_vendi) == (expected.colour_vendi, expected.hog_vendi)
    told = f"4 unreadable pictures were left out: {', '.join(lost[:3])}, ..."
    sheet = tmp_path / "sheet.png"
    result = run(folder, "--sheet", sheet)
    assert result.exit_code == 0, result.output
    assert told in result.stdout
    assert f"{folder}: 5 of 9 pictures" in result.stdout
    drawn = contact_sheet([noise(index) for index in range(5)])
    assert np.array_equal(read_picture(sheet), np.asarray(drawn))
    assert json.loads(run(folder, "--json").stdout)["unreadable"] == list(lost)


def test_a_picture_of_a_tar_that_cannot_be_read_is_left_out_too(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "9.png").write_bytes((folder / "0.png").read_bytes()[:200])
    with tarfile.open(tmp_path / "set.tar", "w") as file:
        for path in picture_files(folder):
            file.add(path, path.name)
    result = run(tmp_path / "set.tar")
    assert result.exit_code == 0, result.output
    assert f"1 unreadable picture was left out: 9.png in {tmp_path / 'set.tar'}" in result.stdout


def test_a_set_of_nothing_has_no_statistics() -> None:
    with pytest.raises(ValueError, match="0 pictures"):
        measure_set([])


# --- near-duplicates -----------------------------------------------------------------------------


def copy_of(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture at half its size, lighter, and compressed."""
    image = Image.fromarray(picture).resize((picture.shape[1] // 2, picture.shape[0] // 2))
    file = io.BytesIO()
    image.point([min(255, round(level * 1.15 + 5)) for level in range(256)] * 3).save(
        file, "JPEG", quality=30
    )
    return np.asarray(Image.open(file))


def test_a_copy_is_found_and_other_pictures_are_not(tmp_path: Path) -> None:
    pictures = [render(draw_genome(seed=5, index=index), size=(96, 128)) for index in range(12)]
    pictures.insert(4, copy_of(pictures[9]))
    paths = [save(each, tmp_path / f"{place}.png") for place, each in enumerate(pictures)]
    found = measure_set(of_files(paths))
    assert found.near_duplicates == ((str(paths[4]), str(paths[10])),)
    assert "nearly the same: " in table(found)


def test_flat_pictures_are_dead_and_not_doubled(tmp_path: Path) -> None:
    flat = np.full((64, 64, 3), 7, np.uint8)
    paths = [save(flat, tmp_path / f"{place}.png") for place in range(3)]
    found = measure_set(of_files(paths))
    assert len(found.dead) == 3
    assert found.near_duplicates == ()


def test_near_duplicates_are_what_all_pairs_that_are_close_join() -> None:
    draws = np.random.default_rng(0)
    hashes = draws.integers(0, 2**64, (40, 4), dtype=np.uint64)
    hashes[[3, 39, 20]] = hashes[[30, 30, 21]]
    hashes[20, 0] ^= np.uint64(2**near.CLOSE - 1)  # as far as they may be
    hashes[10] = hashes[11]
    hashes[10, 1] ^= np.uint64(2 ** (near.CLOSE + 1) - 1)  # and one bit further
    # 5 and 15 are too far from each other, and 25 lies between them.
    hashes[[5, 15]] = hashes[25]
    hashes[5, 2] ^= np.uint64(2**20 - 1)
    hashes[15, 3] ^= np.uint64(2**20 - 1)
    before = hashes.copy()
    bits = np.unpackbits(hashes.view(np.uint8), axis=1).astype(int)
    joined = {place: {place} for place in range(40)}
    for a in range(40):
        for b in range(a + 1, 40):
            if np.abs(bits[a] - bits[b]).sum() <= near.CLOSE:
                whole = joined[a] | joined[b]
                joined.update(dict.fromkeys(whole, whole))
    expected = sorted({tuple(sorted(each)) for each in joined.values() if len(each) > 1})
    assert [tuple(group) for group in near.near_duplicates(hashes)] == expected
    assert expected == [(3, 30, 39), (5, 15, 25), (20, 21)]
    assert np.array_equal(hashes, before)


def test_many_equal_pictures_are_one_group_and_few_words() -> None:
    n = 20_000
    assert near.near_duplicates(np.ones((n, 4), np.uint64)) == [list(range(n))]
    names = tuple(f"{number}.png" for number in range(n))
    told = set_table.summary(replace(perfect(), near_duplicates=(names, ("a", "b"))))
    assert "nearly the same: 20000 pictures, 0.png, 1.png, 2.png, ...; a and b" in told
    assert dict(set_table._counts(replace(perfect(), near_duplicates=(names, ("a", "b"))))) == {
        "dead pictures": 0,
        "near-duplicates": n,
    }


def test_the_hash_tells_the_brighter_neighbour() -> None:
    ramp = np.repeat(np.arange(0, 255, 5, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(32, 0)
    assert near.difference_hash(ramp).tolist() == [2**64 - 1] * 4
    assert near.difference_hash(ramp[:, ::-1].copy()).tolist() == [0] * 4


# --- two sets, shards, pages ---------------------------------------------------------------------


def test_a_set_is_the_same_as_folder_as_shards_and_as_tar(folder: Path, tmp_path: Path) -> None:
    from pipelines.cli import shard

    shards, tar = tmp_path / "shards", tmp_path / "set.tar"
    result = CliRunner().invoke(shard.main, ["mixing", str(folder), str(shards), "--jobs", "1"])
    assert result.exit_code == 0, result.output
    with tarfile.open(tar, "w") as file:
        for path in picture_files(folder):
            file.add(path, path.name)
    found = [json.loads(run(place, "--json").stdout) for place in (folder, shards, tar)]
    for each in found:
        assert each["n"] == each["pictures"] == 5
    for name, values in found[0]["per_image"].items():
        for each in found[1:]:
            assert each["per_image"][name] == pytest.approx(values), name


def test_a_shard_that_is_not_what_its_manifest_says_is_named(folder: Path, tmp_path: Path) -> None:
    from pipelines.cli import shard

    shards = tmp_path / "shards"
    CliRunner().invoke(shard.main, ["mixing", str(folder), str(shards), "--jobs", "1"])
    tar = next(shards.glob("*.tar"))
    content = bytearray(tar.read_bytes())
    content[3000] ^= 1
    tar.chmod(0o644)
    tar.write_bytes(content)
    result = run(shards)
    assert result.exit_code == 1
    assert tar.name in result.stderr
    assert result.stdout == ""


def test_two_sets_stand_side_by_side(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for index in range(3):
        save(noise(100 + index), other / f"{index}.png")
    save(np.zeros((256, 256, 3), np.uint8), other / "3.png")
    result = run(folder, "--against", other)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:2] == [f"{folder}: 5 of 5 pictures", f"{other}: 4 of 4 pictures"]
    assert lines[3].split()[:2] == ["pictures", "other"]
    dead = next(line for line in lines if line.startswith("dead pictures"))
    assert dead.split()[2:] == ["0", "1"]
    document = json.loads(run(folder, "--against", other, "--json").stdout)
    assert document["n"] == 5
    assert document["against"]["n"] == 4
    assert document["against"]["dead"] == [str(other / "3.png")]
    rows = {line.split("  ")[0]: line for line in lines[3:]}
    median = document["against"]["per_image"]["coverage"]["median"]
    assert f"{median:.3f} [" in rows["coverage"]


def test_a_report_has_sheets_a_table_and_histograms(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    html, plot = tmp_path / "new" / "report.html", tmp_path / "histograms.png"
    other = tmp_path / "other"
    for index in range(3):
        save(noise(100 + index) // 2, other / f"{index}.png")
    result = run(folder, "--against", other, "--html", html, "--plot", plot)
    assert result.exit_code == 0, result.output
    text = html.read_text()
    assert text.count("<img ") == 3
    assert text.count("<table") == 1
    for row in set_table.ROWS:
        assert f'<th scope="row">{row.label}</th>' in text
    pixels = read_picture(plot).astype(int)
    for blended in ((143, 187, 217), (255, 191, 134)):  # C0 and C1, half seen through
        assert (np.abs(pixels - blended).max(axis=2) < 12).sum() > 100


def test_a_sheet_has_as_many_pictures_as_its_help_says() -> None:
    from pipelines.report import set_report

    assert options.SHEET_PICTURES == set_report.SHEET_PICTURES


# --- bars ----------------------------------------------------------------------------------------


def test_every_statistic_has_its_row_and_every_bar_its_verdict(folder: Path) -> None:
    assert {row.name for row in set_table.ROWS} == set(
        measure_set(of_files(picture_files(folder))).per_image
    )
    found = verdicts(perfect())
    assert len(found) == 21
    assert len({(verdict.statistic, verdict.figure) for verdict in found}) == 21
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
        worse = replace(good, dead=("black.png",))
    elif statistic == "near_duplicates":
        worse = replace(good, near_duplicates=(("a.png", "b.png"),))
    elif figure == "score":
        scores = {"colour_vendi": good.colour_vendi, "hog_vendi": good.hog_vendi, statistic: 1.0}
        worse = replace(good, **scores)
    else:
        lowered = replace(good.per_image[statistic], **{figure: -1.0})
        worse = replace(good, per_image={**good.per_image, statistic: lowered})
    failed = [verdict for verdict in verdicts(worse) if verdict.met is not True]
    assert [(verdict.statistic, verdict.figure, verdict.met) for verdict in failed] == [
        (statistic, figure, False)
    ]
    assert "20 of 21 bars met" in table(worse)
    assert table(worse).count("NOT MET") == 1


def test_fewer_than_64_pictures_are_not_judged_by_their_diversity() -> None:
    few = replace(perfect(), n=63, n_of_diversity=63, colour_vendi=2.0)
    unjudged = [verdict.statistic for verdict in verdicts(few) if verdict.met is None]
    assert unjudged == ["colour_vendi", "hog_vendi"]
    assert "19 of 19 bars met" in table(few)
    assert table(few).count("needs 64 pictures") == 2


def test_the_table_is_aligned_and_fits_a_wide_terminal() -> None:
    lines = table(perfect()).splitlines()
    assert len(lines) == 1 + len(set_table.ROWS) + 2 + 2 + 2
    column = lines[0].index("median bar")
    assert all(line[column - 2 : column].strip() == "" for line in lines[1:17])
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
        write_image(sheet, tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert (image.format, image.size) == (format, sheet.size)
    with pytest.raises(ValueError, match=r"\.txt names no picture format"):
        write_image(sheet, tmp_path / "sheet.txt")


# --- the command ---------------------------------------------------------------------------------


def test_the_command_prints_what_the_library_measures(folder: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    result = run(folder, "--n", 4, "--sheet", sheet, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    expected = measure_set(of_files(picture_files(folder)[:4]))
    assert (document["pictures"], document["n"]) == (5, 4)
    for name, figures in expected.per_image.items():
        assert document["per_image"][name] == vars(figures)
    assert len(document["bars"]) == 21
    pixels = read_picture(sheet)
    drawn = contact_sheet([noise(index) for index in range(4)])
    assert np.array_equal(pixels, np.asarray(drawn))


def test_the_command_prints_the_table_for_people(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 0
    assert f"{folder}: 5 of 5 pictures" in result.stdout
    assert table(measure_set(of_files(picture_files(folder)))) in result.stdout


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
    (tmp_path / "other").mkdir()
    save(noise(0), tmp_path / "photo.jpg")
    (tmp_path / "text.sh").write_text("echo\n" * 300)
    out = tmp_path / "one.png"
    cases: list[tuple[int, str, list[object]]] = [
        (1, "holds no pictures", [empty]),
        (1, "none of 1 pictures can be read: ", [broken]),
        (1, "0.jpg is no readable picture", [broken]),
        (1, "photo.jpg is no tar; name a folder of pictures, shards, or", [tmp_path / "photo.jpg"]),
        (1, "text.sh is no tar; name a folder of pictures, shards, or", [tmp_path / "text.sh"]),
        (2, "is also what --sheet writes", [folder, *("--sheet", out), *("--plot", out)]),
        (1, "file", [folder, "--n", 1, "--sheet", tmp_path / "file" / "sheet.png"]),
        (2, "does not exist", [tmp_path / "absent"]),
        (1, "file is no tar; name a folder of pictures, shards, or", [tmp_path / "file"]),
        (2, "--n", [folder, "--n", 0]),
        (2, "does not end in", [folder, "--sheet", tmp_path / "sheet.txt"]),
        (2, "lies inside", [folder, "--sheet", folder / "sheet.png"]),
        (2, "lies inside", [folder, "--plot", folder / "plot.png"]),
        (2, "lies inside", [folder, "--against", tmp_path, "--sheet", tmp_path / "sheet.png"]),
        (2, "does not end in .html", [folder, "--html", tmp_path / "report.txt"]),
        (2, "is the same set", [folder, "--against", folder / ".." / "pictures"]),
        (1, "other holds no pictures", [folder, "--against", tmp_path / "other"]),
    ]
    for code, message, arguments in cases:
        result = run(*arguments)
        assert result.exit_code == code, result.output
        assert message in result.stderr
        errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1
        assert "Traceback" not in result.stderr
        assert result.stdout == ""


def test_what_was_written_before_ctrl_c_is_not_denied(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.report import set_report

    def stopped(_sets: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(set_report, "histograms_of", stopped)
    sheet, plot = tmp_path / "sheet.png", tmp_path / "plot.png"
    result = run(folder, "--sheet", sheet, "--plot", plot)
    assert result.exit_code == 130
    assert "interrupted; what was written is whole, and stays" in result.stderr
    assert sheet.exists()
    assert not plot.exists()


@pytest.mark.parametrize("kind", ["dead-leaves", "spectrum", "noise"])
def test_a_set_of_a_simple_kind_is_measured_as_any_other(tmp_path: Path, kind: str) -> None:
    from pipelines.cli import gen

    words = ["baseline", "--kind", kind, "--n", "3", "--size", "64", "--jobs", "1"]
    made = CliRunner().invoke(gen.main, [*words, "--out", str(tmp_path / kind)])
    assert made.exit_code == 0, made.output
    document = json.loads(run(tmp_path / kind, "--json").stdout)
    assert document["n"] == document["pictures"] == 3
    assert document["dead"] == document["unreadable"] == document["near_duplicates"] == []


def test_the_reference_flames_meet_their_own_references(tmp_path: Path) -> None:
    flames = SHARED / "reference_fractals"
    if not flames.is_dir():
        pytest.skip("shared/data/reference_fractals does not lie beside the project")
    document = json.loads(run(flames, "--json", "--sheet", tmp_path / "sheet.png").stdout)
    assert document["n"] == 200
    for row in set_table.ROWS:
        if row.flames is None:
            continue
        median = document["per_image"][row.name]["median"]
        # 0.006: the two at 32 pixels and the box dimension differ by up to that or by 4 %.
        assert median == pytest.approx(row.flames.median, rel=0.045, abs=0.006), row.name
    # Five of the two hundred are black, one is a flat brown.
    assert len(document["dead"]) == 6
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * (128 + GAP) - GAP,) * 2
