"""Contact sheets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_sets import noise
from pipelines.report.page import GAP, contact_sheet, write_image


@pytest.mark.parametrize(
    ("n", "columns", "grid"),
    [(1, None, (1, 1)), (5, None, (3, 2)), (64, None, (8, 8)), (5, 5, (5, 1))],
)
def test_a_sheet_is_a_near_square_grid(n: int, columns: int | None, grid: tuple[int, int]) -> None:
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


def test_an_image_of_the_cells_size_comes_out_as_it_is_and_is_not_changed() -> None:
    image = noise(0, (20, 20))
    before = image.copy()
    assert np.array_equal(np.asarray(contact_sheet([image], cell=20)), before)
    assert np.array_equal(image, before)


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
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


def test_a_sheet_is_written_in_the_format_of_its_name(tmp_path: Path) -> None:
    sheet = contact_sheet([noise(0)])
    for name, format in (("a/b/sheet.png", "PNG"), ("sheet.JPG", "JPEG"), ("sheet.webp", "WEBP")):
        write_image(sheet, tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert (image.format, image.size) == (format, sheet.size)
    with pytest.raises(ValueError, match=r"\.txt has no image extension"):
        write_image(sheet, tmp_path / "sheet.txt")
