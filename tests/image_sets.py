"""Images of noise and folders of them, which several test modules share."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from pipelines.cli import show
from pipelines.report import sets
from pipelines.report.set_statistics import (
    Percentiles,
    SetImage,
    SetStatistics,
    set_images,
)
from pipelines.report.sets import Target

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(show.main, ["set", *map(str, arguments)])


def noise(seed: int, shape: tuple[int, int] = (256, 256)) -> NDArray[np.uint8]:
    """Return blocks of random colours, each 16x16 pixels."""
    rows, columns = -(-shape[0] // 16), -(-shape[1] // 16)
    colours = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return colours.repeat(16, 0).repeat(16, 1)[: shape[0], : shape[1]]


def save(image: NDArray[np.uint8], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def write_folder(tmp_path: Path) -> Path:
    """Write five 256x256 images of noise."""
    for index in range(5):
        save(noise(index), tmp_path / "images" / f"{index}.png")
    return tmp_path / "images"


def of_files(paths: Sequence[Path]) -> list[SetImage]:
    return [image for path in paths for image in set_images(path.parent) if image.name == str(path)]


def perfect() -> SetStatistics:
    """Return statistics that meet every target."""
    per_image = {}
    for row in sets.ROWS:
        target = row.median_target or Target(at_least=1)
        low = row.p10_target.at_least if row.p10_target else target.at_least
        per_image[row.name] = Percentiles(median=target.at_least, p10=low, p90=target.at_least + 1)
    return SetStatistics(
        n=512,
        unreadable=(),
        n_resized=0,
        per_image=per_image,
        n_for_diversity=64,
        colour_vendi=9.0,
        hog_vendi=7.4,
        dead=(),
        near_duplicates=(),
        values={},
    )
