"""The statistics of a set of pictures: medians, percentiles, diversity and dead pictures."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fractals.statistics import colour_features, hog_features, is_dead, measure, vendi_score
from pipelines.generate.plan import spread
from pipelines.report.near_duplicates import difference_hash, near_duplicates
from pipelines.report.set_pictures import SetPicture
from pipelines.shards.picture_files import MEASURED_SIDE, at_measured_size
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
    dead: the names of the dead pictures, in order.
    doubled: pairs of names of pictures that are nearly the same, in order.
    values: statistic -> (n,) float64, a value a picture; for histograms.
    """

    n: int
    n_resized: int
    per_picture: dict[str, Percentiles]
    n_of_diversity: int
    colour_vendi: float
    hog_vendi: float
    dead: tuple[str, ...]
    doubled: tuple[tuple[str, str], ...]
    values: Mapping[str, NDArray[np.float64]]

    def document(self) -> dict[str, Any]:
        """Return the statistics as plain JSON values, without those of each picture."""
        whole = asdict(self)
        del whole["values"]
        return {**whole, "dead": list(self.dead), "doubled": [list(pair) for pair in self.doubled]}


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


def measure_set(
    pictures: Sequence[SetPicture], *, progress: Progress = no_progress
) -> SetStatistics:
    """Measure pictures at 256x256 (`at_measured_size`), one after the other.

    The Vendi scores are of 64 of them spread evenly, or of all where there are fewer.

    Args:
        pictures: one or more; the result depends on their order only in `dead` and `doubled` and in
            which 64 are taken.
        progress: called with pictures done and to do.

    Raises:
        PipelineError: if one cannot be read.
        ValueError: if there is none.
    """
    n = len(pictures)
    if n == 0:
        raise ValueError("0 pictures have no statistics; give at least one")
    diverse = set(spread(N_OF_DIVERSITY, n))
    measured: list[dict[str, float]] = []
    colours, gradients, hashes = [], [], []
    n_resized = 0
    for position, each in enumerate(pictures):
        original = each.read()
        picture = at_measured_size(original)
        n_resized += original.shape[:2] != (MEASURED_SIDE, MEASURED_SIDE)
        measured.append({**measure(picture), "jpeg_bits_per_pixel": jpeg_bits_per_pixel(picture)})
        hashes.append(difference_hash(original))
        if position in diverse:
            colours.append(colour_features(picture))
            gradients.append(hog_features(picture))
        progress(position + 1, n)
    values = {name: np.array([each[name] for each in measured]) for name in measured[0]}
    dead = {position for position, found in enumerate(measured) if is_dead(found)}
    # Flat pictures are all alike, and told of as dead.
    alive = [position for position in range(n) if position not in dead]
    doubled = near_duplicates(np.array([hashes[position] for position in alive]))
    return SetStatistics(
        n=n,
        n_resized=n_resized,
        per_picture={name: _percentiles(column) for name, column in values.items()},
        n_of_diversity=len(diverse),
        colour_vendi=vendi_score(np.array(colours)),
        hog_vendi=vendi_score(np.array(gradients)),
        dead=tuple(pictures[position].name for position in sorted(dead)),
        doubled=tuple((pictures[alive[a]].name, pictures[alive[b]].name) for a, b in doubled),
        values=values,
    )


def _percentiles(values: NDArray[np.float64]) -> Percentiles:
    p10, median, p90 = (float(value) for value in np.percentile(values, [10, 50, 90]))
    return Percentiles(median=median, p10=p10, p90=p90)
