"""The statistics of a set of pictures: medians, percentiles, diversity and dead pictures."""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fractals.statistics import colour_features, hog_features, is_dead, measure, vendi_score
from pipelines.generate.plan import spread
from pipelines.shards.picture_files import MEASURED_SIDE, at_measured_size, read_picture
from pipelines.shards.progress import Progress, no_progress

N_OF_DIVERSITY = 64
"""Pictures whose Vendi scores are taken; a score is comparable only for the same number."""


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """One statistic over a set: median, 10th and 90th percentile (linear between pictures)."""

    median: float
    p10: float
    p90: float


@dataclass(frozen=True, kw_only=True)
class SetStatistics:
    """What `measure_set` found.

    n: pictures measured; n_resized: how many of them were not 256x256.
    per_picture: statistic -> percentiles, in the order of the table.
    n_of_diversity: pictures behind the two Vendi scores.
    dead: the files of the dead pictures, in order.
    """

    n: int
    n_resized: int
    per_picture: dict[str, Percentiles]
    n_of_diversity: int
    colour_vendi: float
    hog_vendi: float
    dead: tuple[Path, ...]

    def document(self) -> dict[str, Any]:
        """Return the statistics as plain JSON values."""
        return {**asdict(self), "dead": [str(path) for path in self.dead]}


def jpeg_bits_per_pixel(picture: NDArray[np.uint8]) -> float:
    """Return the size of a picture as JPEG of quality 75, in bits a pixel.

    Pillow's own tables, 4:2:0, not optimized. Reference 1.67 [1.00, 2.28]; this gives 1.666 [1.001,
    2.277].

    Args:
        picture: (H, W, 3) uint8.
    """
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=75, subsampling="4:2:0")
    height, width = picture.shape[:2]
    return file.tell() * 8 / int(height * width)


def measure_set(paths: Sequence[Path], *, progress: Progress = no_progress) -> SetStatistics:
    """Measure pictures at 256x256 (`at_measured_size`), one after the other.

    The Vendi scores are of 64 of them spread evenly, or of all where there are fewer.

    Args:
        paths: one or more picture files; the result depends on their order only in `dead` and in
            which 64 are taken.
        progress: called with pictures done and to do.

    Raises:
        PipelineError: if a file is no whole picture.
        ValueError: if there is no path.
    """
    if len(paths) == 0:
        raise ValueError("0 pictures have no statistics; give at least one path")
    diverse = set(spread(N_OF_DIVERSITY, len(paths)))
    measured: list[dict[str, float]] = []
    colours, gradients = [], []
    n_resized = 0
    for position, path in enumerate(paths):
        original = read_picture(path)
        picture = at_measured_size(original)
        n_resized += original.shape[:2] != (MEASURED_SIDE, MEASURED_SIDE)
        measured.append({**measure(picture), "jpeg_bits_per_pixel": jpeg_bits_per_pixel(picture)})
        if position in diverse:
            colours.append(colour_features(picture))
            gradients.append(hog_features(picture))
        progress(position + 1, len(paths))
    return SetStatistics(
        n=len(paths),
        n_resized=n_resized,
        per_picture={
            name: _percentiles([values[name] for values in measured]) for name in measured[0]
        },
        n_of_diversity=len(diverse),
        colour_vendi=vendi_score(np.array(colours)),
        hog_vendi=vendi_score(np.array(gradients)),
        dead=tuple(path for path, values in zip(paths, measured, strict=True) if is_dead(values)),
    )


def _percentiles(values: Sequence[float]) -> Percentiles:
    p10, median, p90 = (float(value) for value in np.percentile(values, [10, 50, 90]))
    return Percentiles(median=median, p10=p10, p90=p90)
