"""Statistics of sets of images, and near-duplicates."""

import io
import json
import resource
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fractals import draw_genome, render
from fractals.statistics import measure
from image_sets import noise, of_files, perfect, run, save, write_folder
from pipelines.errors import PipelineError
from pipelines.loading.mixing_set import open_mixing_set
from pipelines.report import set_statistics as near
from pipelines.report import set_table
from pipelines.report.figures import contact_sheet
from pipelines.report.set_statistics import (
    at_measured_size,
    is_dead,
    jpeg_bits_per_pixel,
    measure_set,
)
from pipelines.report.set_table import table
from pipelines.shards.images import (
    image_files,
    read_image,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of noise, of 256x256."""
    return write_folder(tmp_path)


def test_a_set_is_measured_image_by_image(folder: Path) -> None:
    steps: list[tuple[int, int]] = []
    found = measure_set(of_files(image_files(folder)), progress=lambda *step: steps.append(step))
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


def test_equal_images_have_no_diversity(tmp_path: Path) -> None:
    paths = [save(noise(7), tmp_path / f"{index}.png") for index in range(3)]
    found = measure_set(of_files(paths))
    assert found.colour_vendi == pytest.approx(1.0)
    assert found.hog_vendi == pytest.approx(1.0)


def test_diversity_is_that_of_64_images_spread_evenly(tmp_path: Path) -> None:
    # Of 128 pictures every second is taken: those are all alike, the others are not.
    alike = save(noise(0, (32, 48)), tmp_path / "alike.png")
    paths = [
        alike if index % 2 == 0 else save(noise(index, (32, 48)), tmp_path / f"{index}.png")
        for index in range(128)
    ]
    found = measure_set(of_files(paths))
    assert (found.n, found.n_resized, found.n_of_diversity) == (128, 128, 64)
    assert found.colour_vendi == pytest.approx(1.0)


def test_a_dead_image_is_named(folder: Path) -> None:
    black = save(np.zeros((256, 256, 3), np.uint8), folder / "black.png")
    grey = save(np.full((256, 256, 3), 128, np.uint8), folder / "grey.png")
    assert measure_set(of_files(image_files(folder))).dead == (str(black), str(grey))
    assert not is_dead(measure(noise(0)))


def test_images_that_cannot_be_read_are_counted_and_the_others_measured(
    folder: Path, tmp_path: Path
) -> None:
    expected = measure_set(of_files(image_files(folder)))
    for place in (1, 3, 5, 7):
        (folder / f"{place}x.png").write_bytes(b"nothing")
    found = measure_set(of_files(image_files(folder)))
    lost = tuple(str(folder / f"{place}x.png") for place in (1, 3, 5, 7))
    assert found.unreadable == lost
    assert (found.n, found.n_of_diversity) == (5, 5)
    assert found.per_image == expected.per_image
    assert (found.colour_vendi, found.hog_vendi) == (expected.colour_vendi, expected.hog_vendi)
    told = f"4 unreadable images were skipped: {', '.join(lost[:3])}, ..."
    sheet = tmp_path / "sheet.png"
    result = run(folder, "--contact-sheet", sheet)
    assert result.exit_code == 0, result.output
    assert told in result.stdout
    assert f"{folder}: 5 of 9 images" in result.stdout
    drawn = contact_sheet([noise(index) for index in range(5)])
    assert np.array_equal(read_image(sheet), np.asarray(drawn))
    assert json.loads(run(folder, "--json").stdout)["unreadable"] == list(lost)


def test_an_image_of_a_tar_that_cannot_be_read_is_left_out_too(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "9.png").write_bytes((folder / "0.png").read_bytes()[:200])
    with tarfile.open(tmp_path / "set.tar", "w") as file:
        for path in image_files(folder):
            file.add(path, path.name)
    result = run(tmp_path / "set.tar")
    assert result.exit_code == 0, result.output
    assert f"1 unreadable image was skipped: 9.png in {tmp_path / 'set.tar'}" in result.stdout


def test_a_set_of_nothing_has_no_statistics() -> None:
    with pytest.raises(ValueError, match="0 images"):
        measure_set([])


def copy_of(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture at half its size, lighter, and compressed."""
    image = Image.fromarray(picture).resize((picture.shape[1] // 2, picture.shape[0] // 2))
    file = io.BytesIO()
    image.point([min(255, round(level * 1.15 + 5)) for level in range(256)] * 3).save(
        file, "JPEG", quality=30
    )
    return np.asarray(Image.open(file))


def test_a_copy_is_found_and_other_images_are_not(tmp_path: Path) -> None:
    pictures = [render(draw_genome(seed=5, index=index), size=(96, 128)) for index in range(12)]
    pictures.insert(4, copy_of(pictures[9]))
    paths = [save(each, tmp_path / f"{place}.png") for place, each in enumerate(pictures)]
    found = measure_set(of_files(paths))
    assert found.near_duplicates == ((str(paths[4]), str(paths[10])),)
    assert "nearly the same: " in table(found)


def test_flat_images_are_dead_and_not_doubled(tmp_path: Path) -> None:
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


def test_many_equal_images_are_one_group_and_few_words() -> None:
    n = 20_000
    assert near.near_duplicates(np.ones((n, 4), np.uint64)) == [list(range(n))]
    names = tuple(f"{number}.png" for number in range(n))
    statistics = replace(perfect(), near_duplicates=(names, ("a", "b")))
    told = set_table.summary(statistics)
    assert "nearly the same: 20000 images, 0.png, 1.png, 2.png, ...; a and b" in told
    counts = {row[0]: row[1] for row in set_table.judged(statistics)}
    assert (counts["dead images"], counts["near-duplicates"]) == ("0", str(n))


def test_the_hash_tells_the_brighter_neighbour() -> None:
    ramp = np.repeat(np.arange(0, 255, 5, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(32, 0)
    assert near.difference_hash(ramp).tolist() == [2**64 - 1] * 4
    assert near.difference_hash(ramp[:, ::-1].copy()).tolist() == [0] * 4


def test_a_picture_of_256_is_measured_as_it_is_and_others_at_their_centre() -> None:
    picture = noise(0)
    assert at_measured_size(picture) is picture
    wide = np.zeros((128, 512, 3), np.uint8)
    wide[:, 192:320] = 200
    assert at_measured_size(wide).shape == (256, 256, 3)
    # The bright part is exactly the centre square; bilinear enlarging blurs its two sides.
    assert np.all(at_measured_size(wide)[:, 2:-2] == 200)
    assert at_measured_size(noise(1, (700, 300))).shape == (256, 256, 3)


@pytest.mark.parametrize("shape", [(30_000, 1), (1, 30_000)])
def test_a_thin_image_is_measured_in_little_memory(shape: tuple[int, int], tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert at_measured_size(image).shape == (256, 256, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    save(image, tmp_path / "set" / "thin.png")
    with pytest.raises(PipelineError, match=r"thin\.png"):
        open_mixing_set(tmp_path / "set", 256, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("shape", [(700, 40), (33, 500), (300, 301), (1, 9)])
def test_a_thin_image_is_cut_as_others_are(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The centre alone is scaled where all of it would be too much: the same but for rounding."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    whole = at_measured_size(image).astype(int)
    monkeypatch.setattr(near, "MAX_PIXELS", 0)
    # Pillow rounds after each of two passes.
    assert np.abs(at_measured_size(image) - whole).max() <= 1
