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
from pipelines.report import sets
from pipelines.report.page import contact_sheet
from pipelines.report.set_statistics import (
    at_measured_size,
    is_dead,
    jpeg_bits_per_pixel,
    measure_set,
)
from pipelines.report.sets import table
from pipelines.shards.images import (
    image_files,
    read_image,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with five 256x256 images of noise."""
    return write_folder(tmp_path)


def test_percentiles_are_those_of_the_statistics_of_each_image(folder: Path) -> None:
    steps: list[tuple[int, int]] = []
    found = measure_set(of_files(image_files(folder)), progress=lambda *step: steps.append(step))
    assert (found.n, found.n_resized, found.n_for_diversity) == (5, 0, 5)
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
    path = tmp_path / "image.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=75)
    assert jpeg_bits_per_pixel(pixels) == path.stat().st_size * 8 / (120 * 200)


def test_equal_images_have_a_vendi_score_of_one(tmp_path: Path) -> None:
    paths = [save(noise(7), tmp_path / f"{index}.png") for index in range(3)]
    found = measure_set(of_files(paths))
    assert found.colour_vendi == pytest.approx(1.0)
    assert found.hog_vendi == pytest.approx(1.0)


def test_diversity_is_measured_on_64_images_spread_evenly(tmp_path: Path) -> None:
    # Every second of 128 images is measured: those are equal, the others are not.
    alike = save(noise(0, (32, 48)), tmp_path / "alike.png")
    paths = [
        alike if index % 2 == 0 else save(noise(index, (32, 48)), tmp_path / f"{index}.png")
        for index in range(128)
    ]
    found = measure_set(of_files(paths))
    assert (found.n, found.n_resized, found.n_for_diversity) == (128, 128, 64)
    assert found.colour_vendi == pytest.approx(1.0)


def test_dead_images_are_listed(folder: Path) -> None:
    black = save(np.zeros((256, 256, 3), np.uint8), folder / "black.png")
    grey = save(np.full((256, 256, 3), 128, np.uint8), folder / "grey.png")
    assert measure_set(of_files(image_files(folder))).dead == (str(black), str(grey))
    assert not is_dead(measure(noise(0)))


def test_unreadable_images_are_listed_and_the_others_measured(folder: Path, tmp_path: Path) -> None:
    expected = measure_set(of_files(image_files(folder)))
    for place in (1, 3, 5, 7):
        (folder / f"{place}x.png").write_bytes(b"nothing")
    found = measure_set(of_files(image_files(folder)))
    unreadable = tuple(str(folder / f"{place}x.png") for place in (1, 3, 5, 7))
    assert found.unreadable == unreadable
    assert (found.n, found.n_for_diversity) == (5, 5)
    assert found.per_image == expected.per_image
    assert (found.colour_vendi, found.hog_vendi) == (expected.colour_vendi, expected.hog_vendi)
    note = f"4 unreadable images were skipped: {', '.join(unreadable[:3])}, ..."
    sheet = tmp_path / "sheet.png"
    result = run(folder, "--contact-sheet", sheet)
    assert result.exit_code == 0, result.output
    assert note in result.stdout
    assert f"{folder}: 5 of 9 images" in result.stdout
    drawn = contact_sheet([noise(index) for index in range(5)])
    assert np.array_equal(read_image(sheet), np.asarray(drawn))
    assert json.loads(run(folder, "--json").stdout)["unreadable"] == list(unreadable)


def test_an_unreadable_image_of_a_tar_is_skipped(folder: Path, tmp_path: Path) -> None:
    (folder / "9.png").write_bytes((folder / "0.png").read_bytes()[:200])
    with tarfile.open(tmp_path / "set.tar", "w") as file:
        for path in image_files(folder):
            file.add(path, path.name)
    result = run(tmp_path / "set.tar")
    assert result.exit_code == 0, result.output
    assert f"1 unreadable image was skipped: 9.png in {tmp_path / 'set.tar'}" in result.stdout


def test_an_empty_set_is_rejected() -> None:
    with pytest.raises(ValueError, match="0 images"):
        measure_set([])


def degraded(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image at half its size, brighter, and compressed."""
    image = Image.fromarray(pixels).resize((pixels.shape[1] // 2, pixels.shape[0] // 2))
    file = io.BytesIO()
    image.point([min(255, round(level * 1.15 + 5)) for level in range(256)] * 3).save(
        file, "JPEG", quality=30
    )
    return np.asarray(Image.open(file))


def test_a_degraded_copy_is_a_near_duplicate_and_other_images_are_not(tmp_path: Path) -> None:
    images = [render(draw_genome(seed=5, index=index), size=(96, 128)) for index in range(12)]
    images.insert(4, degraded(images[9]))
    paths = [save(each, tmp_path / f"{place}.png") for place, each in enumerate(images)]
    found = measure_set(of_files(paths))
    assert found.near_duplicates == ((str(paths[4]), str(paths[10])),)
    assert "near-duplicates: " in table(found)


def test_flat_images_are_dead_but_not_near_duplicates(tmp_path: Path) -> None:
    flat = np.full((64, 64, 3), 7, np.uint8)
    paths = [save(flat, tmp_path / f"{place}.png") for place in range(3)]
    found = measure_set(of_files(paths))
    assert len(found.dead) == 3
    assert found.near_duplicates == ()


def test_groups_of_near_duplicates_are_connected_components() -> None:
    draws = np.random.default_rng(0)
    hashes = draws.integers(0, 2**64, (40, 4), dtype=np.uint64)
    hashes[[3, 39, 20]] = hashes[[30, 30, 21]]
    hashes[20, 0] ^= np.uint64(2**near.MAX_DIFFERING_BITS - 1)  # the maximum
    hashes[10] = hashes[11]
    hashes[10, 1] ^= np.uint64(2 ** (near.MAX_DIFFERING_BITS + 1) - 1)  # one bit more
    # 5 and 15 differ in too many bits, but 25 connects them.
    hashes[[5, 15]] = hashes[25]
    hashes[5, 2] ^= np.uint64(2**20 - 1)
    hashes[15, 3] ^= np.uint64(2**20 - 1)
    before = hashes.copy()
    bits = np.unpackbits(hashes.view(np.uint8), axis=1).astype(int)
    joined = {place: {place} for place in range(40)}
    for a in range(40):
        for b in range(a + 1, 40):
            if np.abs(bits[a] - bits[b]).sum() <= near.MAX_DIFFERING_BITS:
                whole = joined[a] | joined[b]
                joined.update(dict.fromkeys(whole, whole))
    expected = sorted({tuple(sorted(each)) for each in joined.values() if len(each) > 1})
    assert [tuple(group) for group in near.near_duplicates(hashes)] == expected
    assert expected == [(3, 30, 39), (5, 15, 25), (20, 21)]
    assert np.array_equal(hashes, before)


def test_many_equal_images_are_one_group_with_a_short_summary() -> None:
    n = 20_000
    assert near.near_duplicates(np.ones((n, 4), np.uint64)) == [list(range(n))]
    names = tuple(f"{number}.png" for number in range(n))
    statistics = replace(perfect(), near_duplicates=(names, ("a", "b")))
    summary = sets.summary(statistics)
    assert "near-duplicates: 20000 images, 0.png, 1.png, 2.png, ...; a and b" in summary
    counts = {row[0]: row[1] for row in sets.judged(statistics)}
    assert (counts["dead images"], counts["near-duplicates"]) == ("0", str(n))


def test_the_hash_records_which_neighbour_is_brighter() -> None:
    ramp = np.repeat(np.arange(0, 255, 5, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(32, 0)
    assert near.difference_hash(ramp).tolist() == [2**64 - 1] * 4
    assert near.difference_hash(ramp[:, ::-1].copy()).tolist() == [0] * 4


def test_a_256x256_image_is_measured_unchanged_and_others_at_their_centre() -> None:
    image = noise(0)
    assert at_measured_size(image) is image
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
def test_a_thin_image_is_cropped_as_others_are(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the centre is resized if the whole image would be too large: the same up to rounding."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    whole = at_measured_size(image).astype(int)
    monkeypatch.setattr(near, "MAX_PIXELS", 0)
    # Pillow rounds after each of two passes.
    assert np.abs(at_measured_size(image) - whole).max() <= 1
