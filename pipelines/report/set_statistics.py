"""The statistics of a set of pictures: medians, percentiles, diversity and dead pictures."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fractals.statistics import colour_features, hog_features, is_dead, measure, vendi_score
from pipelines.errors import PipelineError
from pipelines.generate.plan import spread
from pipelines.report.near_duplicates import difference_hash, near_duplicates
from pipelines.report.set_pictures import SetPicture, UnreadableError
from pipelines.shards.images import MEASURED_SIDE, at_measured_size
from pipelines.system.progress import Progress, no_progress

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

    n: pictures measured; unreadable: the names of those that were left out, for they are no whole
    pictures, in order; n_resized: how many of the measured were not 256x256.
    per_picture: statistic -> percentiles, in the order of the table.
    n_of_diversity: pictures behind the two Vendi scores.
    dead: the names of the dead pictures, in order.
    doubled: groups of names of pictures that are nearly the same (`near_duplicates`), in order.
    values: statistic -> (n,) float64, a value a picture; for histograms.
    """

    n: int
    unreadable: tuple[str, ...]
    n_resized: int
    per_picture: dict[str, Percentiles]
    n_of_diversity: int
    colour_vendi: float
    hog_vendi: float
    dead: tuple[str, ...]
    doubled: tuple[tuple[str, ...], ...]
    values: Mapping[str, NDArray[np.float64]]

    @property
    def n_superfluous(self) -> int:
        """How many near-duplicates could be left out: all but one of each group."""
        return sum(len(group) - 1 for group in self.doubled)

    def document(self) -> dict[str, Any]:
        """Return the statistics as plain JSON values, without those of each picture."""
        whole = asdict(self)
        del whole["values"]
        return {
            **whole,
            "unreadable": list(self.unreadable),
            "dead": list(self.dead),
            "doubled": [list(group) for group in self.doubled],
        }


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

    One that is no whole picture is left out, and named. The Vendi scores are of 64 of the others
    spread evenly, or of all where there are fewer.

    Args:
        pictures: one or more; the result depends on their order only in the names and in which 64
            are taken.
        progress: called with pictures done and to do.

    Raises:
        PipelineError: if none can be read, or their set cannot.
        ValueError: if there is none.
    """
    n = len(pictures)
    if n == 0:
        raise ValueError("0 pictures have no statistics; give at least one")
    readable: list[SetPicture] = []
    unreadable: list[UnreadableError] = []
    lost, measured, hashes = [], [], []
    n_resized = 0
    for position, each in enumerate(pictures):
        try:
            original = each.read()
        except UnreadableError as error:
            unreadable.append(error)
            lost.append(each.name)
        else:
            readable.append(each)
            picture = at_measured_size(original)
            n_resized += original.shape[:2] != (MEASURED_SIDE, MEASURED_SIDE)
            measured.append(
                {**measure(picture), "jpeg_bits_per_pixel": jpeg_bits_per_pixel(picture)}
            )
            hashes.append(difference_hash(original))
        progress(position + 1, n)
    if not readable:
        raise PipelineError(f"none of {n} pictures can be read: {unreadable[0]}")
    values = {name: np.array([each[name] for each in measured]) for name in measured[0]}
    dead = {position for position, found in enumerate(measured) if is_dead(found)}
    # Flat pictures are all alike, and told of as dead.
    alive = [position for position in range(len(readable)) if position not in dead]
    groups = near_duplicates(np.array([hashes[place] for place in alive]).reshape(-1, 4))
    # Read again, for only now it is known which 64 are spread evenly.
    places = spread(N_OF_DIVERSITY, len(readable))
    diverse = [at_measured_size(readable[place].read()) for place in places]
    return SetStatistics(
        n=len(readable),
        unreadable=tuple(lost),
        n_resized=n_resized,
        per_picture={name: _percentiles(column) for name, column in values.items()},
        n_of_diversity=len(diverse),
        colour_vendi=vendi_score(np.array([colour_features(each) for each in diverse])),
        hog_vendi=vendi_score(np.array([hog_features(each) for each in diverse])),
        dead=tuple(readable[position].name for position in sorted(dead)),
        doubled=tuple(tuple(readable[alive[place]].name for place in group) for group in groups),
        values=values,
    )


def _percentiles(values: NDArray[np.float64]) -> Percentiles:
    p10, median, p90 = (float(value) for value in np.percentile(values, [10, 50, 90]))
    return Percentiles(median=median, p10=p10, p90=p90)
