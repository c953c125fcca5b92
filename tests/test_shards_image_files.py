"""Which files of a folder are images, in which order, and how they are read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_sets import noise, save, write_folder
from pipelines.errors import PipelineError
from pipelines.report.set_statistics import at_measured_size
from pipelines.shards.images import (
    image_files,
    natural_order,
    read_image,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of noise, of 256x256."""
    return write_folder(tmp_path)


def test_pictures_come_in_the_order_of_their_numbers_whatever_the_disk_says(tmp_path: Path) -> None:
    names = ["b/1.PNG", "10.png", "9.png", "a/x2.webp", "a/x10.bmp", "a/x2b.jpg", "09.png"]
    for name in names:
        save(noise(0, (20, 30)), tmp_path / name)
    found = [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)]
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
    assert [path.name for path in image_files(tmp_path)] == ["009.png", "09.png", "9.png"]
    assert len(paths) == 3


def test_hidden_files_and_other_files_are_no_pictures(tmp_path: Path) -> None:
    save(noise(0), tmp_path / "seen.png")
    save(noise(0), tmp_path / ".work" / "hidden.png")
    save(noise(0), tmp_path / ".hidden.png")
    (tmp_path / "metadata.jsonl").write_text("{}")
    (tmp_path / "folder.png").mkdir()
    assert image_files(tmp_path) == [tmp_path / "seen.png"]


def test_of_a_mixing_set_only_its_images_are_taken(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    save(noise(0), tmp_path / "sheet.png")
    image = save(noise(1), tmp_path / "images" / "00000000.jpg")
    assert image_files(tmp_path) == [image]


def test_of_a_mixing_set_in_a_folder_of_sets_only_its_images_are_taken(tmp_path: Path) -> None:
    (tmp_path / "fractals" / "images").mkdir(parents=True)
    (tmp_path / "fractals" / "manifest.json").write_text("{}")
    save(noise(0), tmp_path / "fractals" / "sheet.png")
    image = save(noise(1), tmp_path / "fractals" / "images" / "00000000.jpg")
    other = save(noise(2), tmp_path / "photographs" / "1.png")
    assert image_files(tmp_path) == [image, other]


def test_links_are_followed_as_torchvision_does_and_never_in_a_circle(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    root = tmp_path / "set"
    save(noise(0), tmp_path / "elsewhere" / "2.png")
    save(noise(1), root / "a" / "1.png")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    taken = [str(path) for path in image_files(root)]
    assert taken == [path for path, _ in datasets.ImageFolder(root).samples]
    assert len(taken) == 2
    (root / "a" / "back").symlink_to(root)
    assert [str(path) for path in image_files(root)] == taken


def test_a_link_to_nothing_is_not_lost_in_silence(tmp_path: Path) -> None:
    kept = save(noise(0), tmp_path / "1.png")
    lost = tmp_path / "2.png"
    lost.symlink_to(tmp_path / "nothing.png")
    assert image_files(tmp_path) == [kept, lost]


def test_numbers_in_names_may_have_any_length() -> None:
    long = "9" * 5000
    names = [f"1{long}.png", f"{long}.png", "10.png", "9.png"]
    assert sorted(names, key=natural_order) == names[::-1]


def test_grey_palette_and_alpha_become_colour(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "1"):
        Image.fromarray(noise(3, (40, 60))).convert(mode).save(tmp_path / f"{mode}.png")
    pictures = [read_image(path) for path in image_files(tmp_path)]
    assert [(picture.shape, picture.dtype) for picture in pictures] == [((40, 60, 3), np.uint8)] * 4


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, suffix: str, damage: str) -> None:
    path = save(noise(0), tmp_path / f"bad.{suffix}")
    whole = path.read_bytes()
    damaged = {"cut": whole[: len(whole) // 2], "text": b"no picture at all", "empty": b""}
    path.write_bytes(damaged[damage])
    with pytest.raises(PipelineError, match=rf"bad\.{suffix} is no readable picture.*remove it"):
        read_image(path)


def test_a_picture_of_256_is_measured_as_it_is_and_others_at_their_centre() -> None:
    picture = noise(0)
    assert at_measured_size(picture) is picture
    wide = np.zeros((128, 512, 3), np.uint8)
    wide[:, 192:320] = 200
    assert at_measured_size(wide).shape == (256, 256, 3)
    # The bright part is exactly the centre square; bilinear enlarging blurs its two sides.
    assert np.all(at_measured_size(wide)[:, 2:-2] == 200)
    assert at_measured_size(noise(1, (700, 300))).shape == (256, 256, 3)
