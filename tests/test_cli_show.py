"""`pixmix-show set`: as text, JSON, figures and HTML."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from image_sets import SHARED, noise, of_files, run, save, write_folder
from pipelines.cli import options
from pipelines.report import sets
from pipelines.report.page import GAP, contact_sheet
from pipelines.report.set_statistics import (
    measure_set,
)
from pipelines.report.sets import table
from pipelines.shards.images import (
    image_files,
    read_image,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of noise, of 256x256."""
    return write_folder(tmp_path)


def test_the_command_prints_what_the_library_measures(folder: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    result = run(folder, "--n", 4, "--contact-sheet", sheet, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    expected = measure_set(of_files(image_files(folder)[:4]))
    assert (document["images"], document["n"]) == (5, 4)
    for name, figures in expected.per_image.items():
        assert document["per_image"][name] == vars(figures)
    assert len(document["targets"]) == 21
    pixels = read_image(sheet)
    drawn = contact_sheet([noise(index) for index in range(4)])
    assert np.array_equal(pixels, np.asarray(drawn))


def test_the_command_prints_the_table(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 0
    assert f"{folder}: 5 of 5 images" in result.stdout
    assert table(measure_set(of_files(image_files(folder)))) in result.stdout


def test_resized_images_are_reported(tmp_path: Path) -> None:
    save(noise(0, (300, 400)), tmp_path / "0.png")
    assert "1 images were resized to 256x256" in run(tmp_path).stdout


def test_user_errors_are_one_line_with_an_exit_code(folder: Path, tmp_path: Path) -> None:
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
        (1, "holds no images", [empty]),
        (1, "none of 1 images can be read: ", [broken]),
        (1, "0.jpg cannot be read", [broken]),
        (
            1,
            "photo.jpg is not a tar; use a folder of images, shards, or",
            [tmp_path / "photo.jpg"],
        ),
        (1, "text.sh is not a tar; use a folder of images, shards, or", [tmp_path / "text.sh"]),
        (
            2,
            "is also the output of --contact-sheet",
            [folder, *("--contact-sheet", out), *("--plot", out)],
        ),
        (1, "file", [folder, "--n", 1, "--contact-sheet", tmp_path / "file" / "sheet.png"]),
        (2, "does not exist", [tmp_path / "absent"]),
        (1, "file is not a tar; use a folder of images, shards, or", [tmp_path / "file"]),
        (2, "--n", [folder, "--n", 0]),
        (2, "must end in", [folder, "--contact-sheet", tmp_path / "sheet.txt"]),
        (2, "is inside", [folder, "--contact-sheet", folder / "sheet.png"]),
        (2, "is inside", [folder, "--plot", folder / "plot.png"]),
        (
            2,
            "is inside",
            [folder, "--against", tmp_path, "--contact-sheet", tmp_path / "sheet.png"],
        ),
        (2, "must end in .html", [folder, "--html", tmp_path / "report.txt"]),
        (2, "is the same set", [folder, "--against", folder / ".." / "images"]),
        (1, "other holds no images", [folder, "--against", tmp_path / "other"]),
    ]
    for code, message, arguments in cases:
        result = run(*arguments)
        assert result.exit_code == code, result.output
        assert message in result.stderr
        errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1
        assert "Traceback" not in result.stderr
        assert result.stdout == ""


def test_ctrl_c_reports_that_written_files_are_complete(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.report import sets

    def stopped(_sets: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(sets, "histograms_of", stopped)
    sheet, plot = tmp_path / "sheet.png", tmp_path / "plot.png"
    result = run(folder, "--contact-sheet", sheet, "--plot", plot)
    assert result.exit_code == 130
    assert "interrupted; files that were written are complete" in result.stderr
    assert sheet.exists()
    assert not plot.exists()


@pytest.mark.parametrize("kind", ["dead-leaves", "spectrum", "noise"])
def test_baseline_sets_are_measured_like_any_other(tmp_path: Path, kind: str) -> None:
    from pipelines.cli import gen

    words = ["baseline", "--kind", kind, "--n", "3", "--size", "64", "--jobs", "1"]
    made = CliRunner().invoke(gen.main, [*words, "--out", str(tmp_path / kind)])
    assert made.exit_code == 0, made.output
    document = json.loads(run(tmp_path / kind, "--json").stdout)
    assert document["n"] == document["images"] == 3
    assert document["dead"] == document["unreadable"] == document["near_duplicates"] == []


def test_reference_flames_reach_their_own_reference_values(tmp_path: Path) -> None:
    flames = SHARED / "reference_fractals"
    if not flames.is_dir():
        pytest.skip("shared/data/reference_fractals is missing")
    document = json.loads(run(flames, "--json", "--contact-sheet", tmp_path / "sheet.png").stdout)
    assert document["n"] == 200
    for row in sets.ROWS:
        if row.flames is None:
            continue
        median = document["per_image"][row.name]["median"]
        # 0.006: the two at 32 pixels and the box dimension differ by up to that or by 4 %.
        assert median == pytest.approx(row.flames.median, rel=0.045, abs=0.006), row.name
    # Five of the two hundred are black, one is a flat brown.
    assert len(document["dead"]) == 6
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * (128 + GAP) - GAP,) * 2


def test_a_folder_its_shards_and_its_tar_measure_the_same(folder: Path, tmp_path: Path) -> None:
    from pipelines.cli import shard

    shards, tar = tmp_path / "shards", tmp_path / "set.tar"
    result = CliRunner().invoke(shard.main, ["mixing", str(folder), str(shards), "--jobs", "1"])
    assert result.exit_code == 0, result.output
    with tarfile.open(tar, "w") as file:
        for path in image_files(folder):
            file.add(path, path.name)
    found = [json.loads(run(place, "--json").stdout) for place in (folder, shards, tar)]
    for each in found:
        assert each["n"] == each["images"] == 5
    for name, values in found[0]["per_image"].items():
        for each in found[1:]:
            assert each["per_image"][name] == pytest.approx(values), name


def test_a_shard_that_differs_from_its_manifest_is_named(folder: Path, tmp_path: Path) -> None:
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


def test_two_sets_are_shown_side_by_side(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for index in range(3):
        save(noise(100 + index), other / f"{index}.png")
    save(np.zeros((256, 256, 3), np.uint8), other / "3.png")
    result = run(folder, "--against", other)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:2] == [f"{folder}: 5 of 5 images", f"{other}: 4 of 4 images"]
    assert lines[3].split()[:2] == ["images", "other"]
    dead = next(line for line in lines if line.startswith("dead images"))
    assert dead.split()[2:] == ["0", "1"]
    document = json.loads(run(folder, "--against", other, "--json").stdout)
    assert document["n"] == 5
    assert document["against"]["n"] == 4
    assert document["against"]["dead"] == [str(other / "3.png")]
    rows = {line.split("  ")[0]: line for line in lines[3:]}
    median = document["against"]["per_image"]["coverage"]["median"]
    assert f"{median:.3f} [" in rows["coverage"]


def test_a_report_has_contact_sheets_a_table_and_histograms(folder: Path, tmp_path: Path) -> None:
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
    for row in sets.ROWS:
        assert f'<th scope="row">{row.label}</th>' in text
    pixels = read_image(plot).astype(int)
    for blended in ((143, 187, 217), (255, 191, 134)):  # C0 and C1, half seen through
        assert (np.abs(pixels - blended).max(axis=2) < 12).sum() > 100


def test_the_help_states_the_number_of_images_on_a_contact_sheet() -> None:
    assert options.SHEET_IMAGES == sets.SHEET_IMAGES
