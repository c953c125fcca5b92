"""Measure a set of images: medians, percentiles, diversity, dead images, near-duplicates.

Near-duplicates are found by a difference hash (N. Krawetz, "Kind of like that", 2013), which
records for each pair of neighbours in a small grey image which is brighter. It is invariant to
size, compression and brightness, but not to rotations and flips.
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
"""Side in pixels at which images are measured, as the references were."""

N_FOR_DIVERSITY = 64
"""Images behind a Vendi score; scores of different numbers of images cannot be compared."""


class UnreadableError(PipelineError):
    """An image of a set cannot be decoded; the others may be intact."""


@dataclass(frozen=True)
class SetImage:
    """An image of a set, which is read on demand."""

    source: ImageSource
    index: int

    @property
    def name(self) -> str:
        """Its path, or its key and tar."""
        return self.source.name(self.index)

    def read(self) -> NDArray[np.uint8]:
        """Return its pixels, (H, W, 3) uint8.

        Raises:
            UnreadableError: if the image cannot be decoded.
            PipelineError: if the set cannot be read.
        """
        try:
            return decode_image(self.source.read(self.index))
        except DecodeError as error:
            raise UnreadableError(f"{self.name} cannot be read ({error})") from error


def set_images(where: Path) -> Sequence[SetImage]:
    """Return the images of a set, in its order.

    Args:
        where: folder of images, sharded dataset, or a tar, zip or .npy of images.

    Raises:
        PipelineError: if the set has no images, or is of another kind.
        OSError: if it cannot be read.
    """
    source = image_source(where)
    # This verifies the hashes of shards.
    source.check()
    return [SetImage(source, index) for index in range(len(source))]


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Median, 10th and 90th percentile of a statistic (interpolated linearly)."""

    median: float
    p10: float
    p90: float


@dataclass(frozen=True, kw_only=True)
class SetStatistics:
    """The result of `measure_set`.

    Attributes:
        n: number of images measured.
        unreadable: names of the images that cannot be decoded, in order.
        n_resized: number of measured images that were not 256x256.
        per_image: statistic -> percentiles, in the order of the table.
        n_for_diversity: number of images behind the two Vendi scores.
        colour_vendi, hog_vendi: Vendi scores of colours and of gradient histograms.
        dead: names of the dead images, in order.
        near_duplicates: groups of names, in order; see `near_duplicates`.
        values: statistic -> (n,) float64, the value of each image.
    """

    n: int
    unreadable: tuple[str, ...]
    n_resized: int
    per_image: dict[str, Percentiles]
    n_for_diversity: int
    colour_vendi: float
    hog_vendi: float
    dead: tuple[str, ...]
    near_duplicates: tuple[tuple[str, ...], ...]
    values: Mapping[str, NDArray[np.float64]]

    @property
    def n_superfluous(self) -> int:
        """The number of near-duplicates that could be removed: all but one of each group."""
        return sum(len(group) - 1 for group in self.near_duplicates)


def jpeg_bits_per_pixel(image: NDArray[np.uint8]) -> float:
    """Return the size of an image as JPEG of quality 75, in bits per pixel.

    Encoded with Pillow's default tables, 4:2:0 and not optimized. On the reference flames, whose
    published values are 1.67 [1.00, 2.28], this measures 1.666 [1.001, 2.277].

    Args:
        image: (H, W, 3) uint8.
    """
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=75, subsampling="4:2:0")
    height, width = image.shape[:2]
    return file.tell() * 8 / int(height * width)


def at_measured_size(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize an image's shorter side to 256 pixels, and return the centre 256x256.

    The filter is bilinear, as PixMix resizes; a 256x256 image is returned unchanged. If the resized
    image had more than `MAX_PIXELS` (1x30,000 would take 6 GB), only its centre is resized, which
    differs at most by rounding.
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
    # The same square in pixels of the original image, which may be fractions.
    scales = (width / full[0], height / full[1]) * 2
    box = tuple(side * scale for side, scale in zip(square, scales, strict=True))
    size = (MEASURED_SIDE, MEASURED_SIDE)
    return np.asarray(scaled.resize(size, Image.Resampling.BILINEAR, box=box))


def measure_set(images: Sequence[SetImage], *, progress: Progress = no_progress) -> SetStatistics:
    """Measure images at 256x256 (`at_measured_size`), one after the other.

    Images that cannot be decoded are skipped and listed. The Vendi scores are computed for 64
    images, spread evenly, or for all if there are fewer.

    Args:
        images: one or more images.
        progress: called with the number of images done and their total.

    Raises:
        PipelineError: if no image can be read, or the set cannot be read.
        ValueError: if images is empty.
    """
    n = len(images)
    if n == 0:
        raise ValueError("0 images have no statistics; pass at least one")
    readable: list[SetImage] = []
    unreadable: dict[str, UnreadableError] = {}
    measured, hashes = [], []
    n_resized = 0
    for position, each in enumerate(images):
        try:
            original = each.read()
        except UnreadableError as error:
            unreadable[each.name] = error
        else:
            readable.append(each)
            image = at_measured_size(original)
            n_resized += original.shape[:2] != (MEASURED_SIDE, MEASURED_SIDE)
            measured.append({**measure(image), "jpeg_bits_per_pixel": jpeg_bits_per_pixel(image)})
            hashes.append(difference_hash(original))
        progress(position + 1, n)
    if not readable:
        raise PipelineError(f"none of {n} images can be read: {next(iter(unreadable.values()))}")
    values = {name: np.array([each[name] for each in measured]) for name in measured[0]}
    dead = {position for position, found in enumerate(measured) if is_dead(found)}
    # Flat images are near-duplicates of each other, but are reported as dead.
    alive = [position for position in range(len(readable)) if position not in dead]
    groups = near_duplicates(np.array([hashes[position] for position in alive]).reshape(-1, 4))
    # Images are read again, because only now the 64 of them are known.
    chosen = spread(N_FOR_DIVERSITY, len(readable))
    diverse = [at_measured_size(readable[position].read()) for position in chosen]
    return SetStatistics(
        n=len(readable),
        unreadable=tuple(unreadable),
        n_resized=n_resized,
        per_image={name: _percentiles(column) for name, column in values.items()},
        n_for_diversity=len(diverse),
        colour_vendi=vendi_score(np.array([colour_features(each) for each in diverse])),
        hog_vendi=vendi_score(np.array([hog_features(each) for each in diverse])),
        dead=tuple(readable[position].name for position in sorted(dead)),
        near_duplicates=tuple(
            tuple(readable[alive[position]].name for position in group) for group in groups
        ),
        values=values,
    )


def _percentiles(values: NDArray[np.float64]) -> Percentiles:
    p10, median, p90 = (float(value) for value in np.percentile(values, [10, 50, 90]))
    return Percentiles(median=median, p10=p10, p90=p90)


# --- Near-duplicates -----------------------------------------------------------------------------

SIDE = 16
"""Rows of the small image, and pairs of neighbours in each row: 256 bits in all."""

MAX_DIFFERING_BITS = 32
"""Maximum number of bits in which near-duplicates differ. Measured on 768 fractals and feature
visualizations: after halving, JPEG quality 30 and a sixth more brightness, 99 % differ from
themselves in 31 bits or fewer; different images differ in 62 bits or more."""


def difference_hash(image: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the difference hash of an image, (4,) uint64.

    Args:
        image: (H, W, 3) uint8 of any size; its aspect ratio is not kept.
    """
    grey = Image.fromarray(image).convert("L")
    small = np.asarray(grey.resize((SIDE + 1, SIDE), Image.Resampling.BOX, reducing_gap=None))
    bits = small[:, 1:] > small[:, :-1]
    return np.packbits(bits).view(np.uint64)


def near_duplicates(hashes: NDArray[np.uint64]) -> list[list[int]]:
    """Return groups of two or more near-duplicates, as ascending indices.

    A group is a connected component of the images whose hashes differ in at most
    `MAX_DIFFERING_BITS` bits. Each image is compared once with the images that have no group yet,
    so many equal images take no longer than many different ones.

    Args:
        hashes: (n, 4) uint64, of `difference_hash`.
    """
    groups = []
    # One row per word of the hashes: numpy sums long rows faster than short ones.
    words = np.ascontiguousarray(hashes.T)
    left, rest = np.arange(len(hashes)), words
    while len(left):
        group, left, rest = [int(left[0])], left[1:], rest[:, 1:]
        for each in group:  # The list grows during the loop.
            differing = np.bitwise_count(rest ^ words[:, each, None]).sum(axis=0, dtype=np.uint16)
            close = differing <= MAX_DIFFERING_BITS
            if close.any():
                group += left[close].tolist()
                left, rest = left[~close], rest[:, ~close]
        if len(group) > 1:
            groups.append(sorted(group))
    return groups
