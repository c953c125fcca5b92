"""The statistics of a set of images: medians, percentiles, diversity, dead images, near-duplicates.

Near-duplicates are found by a difference hash (N. Krawetz, "Kind of like that", 2013): which of two
neighbours in a row is the brighter, on a small grey image. It does not change with size,
compression or brightness, and it does change with a turn or a flip.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fractals.statistics import colour_features, hog_features, is_dead, measure, vendi_score
from pipelines.errors import PipelineError
from pipelines.loading.dataset import decode_image
from pipelines.loading.image_map import ImageSource
from pipelines.loading.mixing_set import image_source
from pipelines.shards.images import MAX_PIXELS, DecodeError
from pipelines.system.progress import Progress, no_progress
from pipelines.system.ranks import spread

MEASURED_SIDE = 256
"""Pixels a side of the images that are measured; the references are of this size."""

N_OF_DIVERSITY = 64
"""Images whose Vendi scores are computed; a score is comparable only for the same number."""


class UnreadableError(PipelineError):
    """An image of a set that cannot be decoded; the others may be sound."""


@dataclass(frozen=True)
class SetImage:
    """An image of a set, read when it is asked for."""

    source: ImageSource
    place: int

    @property
    def name(self) -> str:
        """Its file, or its key and tar."""
        return self.source.name(self.place)

    def read(self) -> NDArray[np.uint8]:
        """Return its pixels, (H, W, 3) uint8.

        Raises:
            UnreadableError: if it cannot be decoded.
            PipelineError: if its set cannot be read.
        """
        try:
            return decode_image(self.source.read(self.place))
        except DecodeError as error:
            raise UnreadableError(f"{self.name} cannot be read ({error})") from error


def set_images(where: Path) -> Sequence[SetImage]:
    """Return the images of a set, in its order.

    Args:
        where: a folder of images, finished or not, a set of shards, or a tar, zip or .npy of
            images.

    Raises:
        PipelineError: if it holds no image, or is none of these.
        OSError: if it cannot be read.
    """
    source = image_source(where)
    # Shards are checked by their hashes.
    source.check()
    return [SetImage(source, place) for place in range(len(source))]


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """One statistic over a set: median, 10th and 90th percentile (linear between images)."""

    median: float
    p10: float
    p90: float


@dataclass(frozen=True, kw_only=True)
class SetStatistics:
    """The result of `measure_set`.

    n: images measured; unreadable: the names of those that cannot be decoded, in order; n_resized:
    how many of the measured were not 256x256.
    per_image: statistic -> percentiles, in the order of the table.
    n_of_diversity: images behind the two Vendi scores.
    dead: the names of the dead images, in order.
    near_duplicates: groups of names (see `near_duplicates`), in order.
    values: statistic -> (n,) float64, a value an image; for histograms.
    """

    n: int
    unreadable: tuple[str, ...]
    n_resized: int
    per_image: dict[str, Percentiles]
    n_of_diversity: int
    colour_vendi: float
    hog_vendi: float
    dead: tuple[str, ...]
    near_duplicates: tuple[tuple[str, ...], ...]
    values: Mapping[str, NDArray[np.float64]]

    @property
    def n_superfluous(self) -> int:
        """How many near-duplicates could be left out: all but one of each group."""
        return sum(len(group) - 1 for group in self.near_duplicates)


def jpeg_bits_per_pixel(image: NDArray[np.uint8]) -> float:
    """Return the size of an image as JPEG of quality 75, in bits a pixel.

    Pillow's own tables, 4:2:0, not optimized. Reference 1.67 [1.00, 2.28]; this gives 1.666 [1.001,
    2.277].

    Args:
        image: (H, W, 3) uint8.
    """
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=75, subsampling="4:2:0")
    height, width = image.shape[:2]
    return file.tell() * 8 / int(height * width)


def at_measured_size(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the centre 256x256 of an image whose shorter side is scaled to 256.

    The filter is bilinear, as in PixMix's own resize; an image of that size comes back as it is.
    Of an image which would have more than `MAX_PIXELS` then (1x30,000 would take 6 GB) only the
    centre is scaled, which differs by rounding at most.
    """
    height, width = image.shape[:2]
    if height == width == MEASURED_SIDE:
        return image
    shorter = min(height, width)
    full = (MEASURED_SIDE * width // shorter, MEASURED_SIDE * height // shorter)
    left, top = ((side - MEASURED_SIDE) // 2 for side in full)
    square = (left, top, left + MEASURED_SIDE, top + MEASURED_SIDE)
    scaled = Image.fromarray(image)
    if full[0] * full[1] <= MAX_PIXELS:
        return np.asarray(scaled.resize(full, Image.Resampling.BILINEAR).crop(square))
    # The same square in pixels of the image, which need not be whole.
    scales = (width / full[0], height / full[1]) * 2
    box = tuple(side * scale for side, scale in zip(square, scales, strict=True))
    size = (MEASURED_SIDE, MEASURED_SIDE)
    return np.asarray(scaled.resize(size, Image.Resampling.BILINEAR, box=box))


def measure_set(images: Sequence[SetImage], *, progress: Progress = no_progress) -> SetStatistics:
    """Measure images at 256x256 (`at_measured_size`), one after the other.

    One that cannot be decoded is skipped, and named. The Vendi scores are of 64 of the others
    spread evenly, or of all where there are fewer.

    Args:
        images: one or more; the result depends on their order only in the names and in which 64
            are taken.
        progress: called with images done and to do.

    Raises:
        PipelineError: if none can be read, or their set cannot.
        ValueError: if there is none.
    """
    n = len(images)
    if n == 0:
        raise ValueError("0 images have no statistics; pass at least one")
    readable: list[SetImage] = []
    unreadable: list[UnreadableError] = []
    lost, measured, hashes = [], [], []
    n_resized = 0
    for position, each in enumerate(images):
        try:
            original = each.read()
        except UnreadableError as error:
            unreadable.append(error)
            lost.append(each.name)
        else:
            readable.append(each)
            image = at_measured_size(original)
            n_resized += original.shape[:2] != (MEASURED_SIDE, MEASURED_SIDE)
            measured.append({**measure(image), "jpeg_bits_per_pixel": jpeg_bits_per_pixel(image)})
            hashes.append(difference_hash(original))
        progress(position + 1, n)
    if not readable:
        raise PipelineError(f"none of {n} images can be read: {unreadable[0]}")
    values = {name: np.array([each[name] for each in measured]) for name in measured[0]}
    dead = {position for position, found in enumerate(measured) if is_dead(found)}
    # Flat images are all alike, and reported as dead.
    alive = [position for position in range(len(readable)) if position not in dead]
    groups = near_duplicates(np.array([hashes[place] for place in alive]).reshape(-1, 4))
    # Read again, for only now it is known which 64 are spread evenly.
    places = spread(N_OF_DIVERSITY, len(readable))
    diverse = [at_measured_size(readable[place].read()) for place in places]
    return SetStatistics(
        n=len(readable),
        unreadable=tuple(lost),
        n_resized=n_resized,
        per_image={name: _percentiles(column) for name, column in values.items()},
        n_of_diversity=len(diverse),
        colour_vendi=vendi_score(np.array([colour_features(each) for each in diverse])),
        hog_vendi=vendi_score(np.array([hog_features(each) for each in diverse])),
        dead=tuple(readable[position].name for position in sorted(dead)),
        near_duplicates=tuple(
            tuple(readable[alive[place]].name for place in group) for group in groups
        ),
        values=values,
    )


def _percentiles(values: NDArray[np.float64]) -> Percentiles:
    p10, median, p90 = (float(value) for value in np.percentile(values, [10, 50, 90]))
    return Percentiles(median=median, p10=p10, p90=p90)


# --- Near-duplicates -----------------------------------------------------------------------------

SIDE = 16
"""Rows of the small image, and pairs of neighbours in each: 256 bits."""

CLOSE = 32
"""Bits in which near-duplicates differ at most. Of 768 fractals and feature visualizations that
were halved, compressed at quality 30 and made lighter by a sixth, 99 % differ from themselves in 31
or fewer; no two different ones differ in fewer than 62."""


def difference_hash(image: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return which of two neighbours is brighter, as (4,) uint64.

    Args:
        image: (H, W, 3) uint8 of any size; its aspect is not kept.
    """
    grey = Image.fromarray(image).convert("L")
    small = np.asarray(grey.resize((SIDE + 1, SIDE), Image.Resampling.BOX, reducing_gap=None))
    bits = small[:, 1:] > small[:, :-1]
    return np.packbits(bits).view(np.uint64)


def near_duplicates(hashes: NDArray[np.uint64]) -> list[list[int]]:
    """Return the groups of images that are nearly the same, ascending, each of two or more.

    Two images are in a group if their hashes differ in at most `CLOSE` bits, or if others of the
    group lead from the one to the other in such steps. Each image is compared once with those
    that are in no group yet: many equal ones take no longer than as many different ones.

    Args:
        hashes: (n, 4) uint64, of `difference_hash`.
    """
    groups = []
    # A row a word: numpy adds long rows faster than short ones.
    words = np.ascontiguousarray(hashes.T)
    left, rest = np.arange(len(hashes)), words
    while len(left):
        group, left, rest = [int(left[0])], left[1:], rest[:, 1:]
        for each in group:  # It grows meanwhile.
            differing = np.bitwise_count(rest ^ words[:, each, None]).sum(axis=0, dtype=np.uint16)
            close = differing <= CLOSE
            if close.any():
                group += left[close].tolist()
                left, rest = left[~close], rest[:, ~close]
        if len(group) > 1:
            groups.append(sorted(group))
    return groups
