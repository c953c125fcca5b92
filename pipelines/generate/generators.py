"""Generators of images, and how their images become files and records.

A generator is a pure function from an image's index to the image, and an image is always encoded to
the same bytes.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from fractals import (
    BASELINE_VERSION,
    GENOME_VERSION,
    Genome,
    draw_genome,
    measure,
    render,
    render_baseline,
)
from pipelines import __version__
from pipelines.shards.images import READABLE_FORMATS
from pipelines.system.files import sha256
from pipelines.system.ranks import cut

Pixels = NDArray[np.uint8]
"""(height, width, 3) uint8, sRGB."""

IMAGES = "images"
"""The subfolder of a dataset that holds its image files."""

# JPEG quality 95 without chroma subsampling: mixing adds and multiplies these images up to four
# times, which makes blocks and colour bleeding visible. Measured on 40 flames of 256x256: JPEG
# 0.65 ms and 40 kB; PNG 5.0 ms and 125 kB at level 1, 12.2 ms and 118 kB at the default; lossless
# WebP 2.2 ms and 100 kB at method 0, 45 ms and 87 kB at the default.
ENCODERS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "jpg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}, ("jpg", "libjpeg_turbo")),
    "png": ("PNG", {"compress_level": 1}, ("zlib", "zlib_ng")),
    "webp": ("WEBP", {"lossless": True, "method": 0, "quality": 0}, ("webp",)),
}
"""File extension -> Pillow's format, its options, and the libraries that decide the bytes."""

LOSSLESS = frozenset({"png", "webp"})


class Generated(NamedTuple):
    """A generated image, its record, and the number of drafts that were drawn for it."""

    image: Pixels
    record: dict[str, Any]
    attempts: int


class Generator(Protocol):
    """A pure function from an image's index to the image.

    A generator is pickled for worker processes. Equal generators generate equal images.
    """

    def generate(self, indices: range) -> Iterable[Generated]:
        """Yield the images in order. An image does not depend on the range it is generated in."""

    def regenerate(self, record: Mapping[str, Any]) -> Pixels | None:
        """Return the image of a record; None if this machine may generate other pixels."""

    def kind(self) -> str:
        """Return the kind of the images for the manifest."""

    def settings(self) -> dict[str, Any]:
        """Return everything that the images depend on besides their index, as JSON values."""

    def licence(self) -> str:
        """Return the licence of the images for the manifest."""

    def versions(self) -> dict[str, Any]:
        """Return the versions of the code that the images depend on, as JSON values."""

    def chunk_size(self) -> int:
        """Return how many images a process generates between two commits to the disk."""


# --- Generators of fractals and baselines --------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FractalGenerator:
    """Generates the fractals of a family and a seed.

    Attributes:
        seed: seed of all images.
        family: one of `fractals.FAMILIES`.
        height, width: size in pixels.
        samples_per_pixel: points of a chaos game for each pixel.
    """

    seed: int = 0
    family: str = "mixed"
    height: int = 256
    width: int = 256
    samples_per_pixel: float = 50.0

    def generate(self, indices: range) -> Iterator[Generated]:
        """Render the images, one after the other."""
        return map(self._generate, indices)

    def _generate(self, index: int) -> Generated:
        genome = draw_genome(self.seed, index, self.family)
        image = self._render(genome)
        record = {
            "seed": self.seed,
            "family": self.family,
            "statistics": _statistics(image),
            "genome": genome.to_json(),
        }
        return Generated(image, record, genome.attempt + 1)

    def regenerate(self, record: Mapping[str, Any]) -> Pixels:
        """Render an image again from the genome in its record."""
        return self._render(Genome.from_json(record["genome"]))

    def kind(self) -> str:
        """Return "fractals"."""
        return "fractals"

    def settings(self) -> dict[str, Any]:
        """Return everything that the images depend on besides their index."""
        return asdict(self)

    def licence(self) -> str:
        """Return CC0: nobody owns formulas and random numbers, and we claim nothing."""
        return "CC0-1.0"

    def versions(self) -> dict[str, Any]:
        """Return the version of genomes, which is raised when images change."""
        return {"genome_version": GENOME_VERSION}

    def chunk_size(self) -> int:
        """Return how many images a process renders between two commits to the disk.

        At most 32 images, which take about a second at 256x256 and 50 samples per pixel, and fewer
        of larger ones. A killed process loses that much; a commit costs a few milliseconds.
        """
        work = self.height * self.width * self.samples_per_pixel / (256 * 256 * 50)
        return max(1, min(32, round(32 / work)))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Return the generator of a dataset from the settings in its manifest."""
        return cls(**{name: settings[name] for name in cls.__dataclass_fields__})

    def _render(self, genome: Genome) -> Pixels:
        return render(genome, (self.height, self.width), self.samples_per_pixel)


@dataclass(frozen=True, kw_only=True)
class BaselineGenerator:
    """Generates the images of a simple random process, with which fractals are compared.

    Attributes:
        process: one of `fractals.BASELINE_KINDS`; it is also the kind of the dataset.
        seed: seed of all images.
        height, width: size in pixels.
    """

    process: str
    seed: int = 0
    height: int = 256
    width: int = 256

    def generate(self, indices: range) -> Iterator[Generated]:
        """Generate the images, one after the other."""
        return map(self._generate, indices)

    def _generate(self, index: int) -> Generated:
        image = self._image(index)
        record = {"seed": self.seed, "kind": self.process, "statistics": _statistics(image)}
        return Generated(image, record, 1)

    def regenerate(self, record: Mapping[str, Any]) -> Pixels:
        """Generate an image again from the index in its record."""
        return self._image(record["index"])

    def kind(self) -> str:
        """Return the name of the process."""
        return self.process

    def settings(self) -> dict[str, Any]:
        """Return everything that the images depend on besides their index and the process."""
        return {"seed": self.seed, "height": self.height, "width": self.width}

    def licence(self) -> str:
        """Return CC0: nobody owns random numbers, and we claim nothing."""
        return "CC0-1.0"

    def versions(self) -> dict[str, Any]:
        """Return the version of the processes, which is raised when images change."""
        return {"baseline_version": BASELINE_VERSION}

    def chunk_size(self) -> int:
        """Return how many images a process generates between two commits to the disk.

        256 images of 256x256, which take a few seconds of mostly statistics and encoding, or fewer
        larger ones.
        """
        return max(1, min(256, 2**24 // (self.height * self.width)))

    @classmethod
    def from_settings(cls, kind: str, settings: Mapping[str, Any]) -> Self:
        """Return the generator of a dataset from the kind and the settings in its manifest."""
        sizes = {name: settings[name] for name in ("seed", "height", "width")}
        return cls(process=kind, **sizes)

    def _image(self, index: int) -> Pixels:
        return render_baseline(self.process, self.seed, index, (self.height, self.width))


def _statistics(image: Pixels) -> dict[str, float]:
    return {name: round(value, 6) for name, value in measure(image).items()}


# --- Files and records ---------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageFile:
    """An encoded image: its index, the name and content of its file, and its record."""

    index: int
    name: str
    content: bytes
    record: dict[str, Any]


def generate_files(
    generator: Generator, format: str, indices: range, chunk: int
) -> Iterator[ImageFile]:
    """Generate and encode images, in order.

    Args:
        generator: generates the images.
        format: a key of `ENCODERS`.
        indices: of the images.
        chunk: number of images that are generated at once.
    """
    for part in cut([indices], chunk):
        for index, generated in zip(part, generator.generate(part), strict=True):
            content = encode(generated.image, format)
            name = image_name(index, format)
            record = {
                "index": index,
                "file": f"{IMAGES}/{name}",
                **generated.record,
                "attempts": generated.attempts,
                "sha256": pixel_sha256(generated.image),
                "file_sha256": sha256(content),
            }
            yield ImageFile(index, name, content, record)


def versions_of(generator: Generator, format: str) -> dict[str, Any]:
    """Return the versions of all code on this machine that a generator's files depend on.

    Raises:
        ValueError: if the format is not a key of `ENCODERS`.
    """
    if format not in ENCODERS:
        raise ValueError(f"format is {format!r}; use one of {', '.join(ENCODERS)}")
    return {"pixmix": __version__, **generator.versions(), "encoder": encoder_version(format)}


def image_name(index: int, format: str) -> str:
    """Return the file name of an image, such as "00000042.jpg"."""
    return f"{index:08d}.{format}"


def pixel_sha256(image: Pixels) -> str:
    """Return the SHA-256 of an image's bytes, row by row, RGB."""
    return sha256(np.ascontiguousarray(image).data)


def encode(image: Pixels, format: str) -> bytes:
    """Encode an image as the bytes of a file.

    Args:
        image: (height, width, 3) uint8.
        format: "jpg" (quality 95, 4:4:4), "png" or "webp" (both lossless).
    """
    name, options, _ = ENCODERS[format]
    file = io.BytesIO()
    Image.fromarray(image).save(file, name, **options)
    return file.getvalue()


def decode(content: bytes) -> Pixels:
    """Decode an image file of any supported format to (height, width, 3) uint8.

    Raises:
        OSError: if the content is damaged or not an image.
    """
    with Image.open(io.BytesIO(content), formats=READABLE_FORMATS) as image:
        return np.asarray(image.convert("RGB"))


def encoder_version(format: str) -> str:
    """Return the libraries that decide a format's bytes, such as "Pillow 12.0.0, jpg 3.1.2"."""
    libraries = {"Pillow": features.version("pil")}
    for library in ENCODERS[format][2]:
        libraries[library] = features.version(library)
    return ", ".join(f"{library} {version}" for library, version in libraries.items() if version)


def peak_signal_to_noise(first: Pixels, second: Pixels) -> float:
    """Return the peak signal-to-noise ratio of two images of one shape, in decibels.

    It is infinite for equal images, about 40 for a good JPEG, and below 15 for unrelated images.
    """
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
