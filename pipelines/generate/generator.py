"""Generators of images, and the files and records that they become.

A generator is a pure function from an image's number to the image. The same image always gives the
same bytes of a file.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from pipelines import __version__
from pipelines.shards.images import READABLE_FORMATS
from pipelines.system.files import sha256
from pipelines.system.ranks import cut

Pixels = NDArray[np.uint8]
"""(height, width, 3) uint8, sRGB."""

IMAGES = "images"
"""The folder of the image files in that of their dataset."""

# JPEG 95 without chroma subsampling: mixing adds and multiplies these images up to four times,
# which brings blocks and colour bleeding out. Measured on 40 flames of 256x256: JPEG 0.65 ms and
# 40 kB; PNG 5.0 ms and 125 kB at level 1, 12.2 ms and 118 kB at the default; lossless WebP 2.2 ms
# and 100 kB at method 0, 45 ms and 87 kB at the default.
ENCODERS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "jpg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}, ("jpg", "libjpeg_turbo")),
    "png": ("PNG", {"compress_level": 1}, ("zlib", "zlib_ng")),
    "webp": ("WEBP", {"lossless": True, "method": 0, "quality": 0}, ("webp",)),
}
LOSSLESS = frozenset({"png", "webp"})


class Generated(NamedTuple):
    """An image, what is to be recorded of it, and how many drafts were drawn for it."""

    image: Pixels
    record: dict[str, Any]
    attempts: int


class Generator(Protocol):
    """A pure function from an image's number to the image.

    It is pickled for worker processes; equal generators give equal images.
    """

    def generate(self, numbers: range) -> Iterable[Generated]:
        """Yield images in order; each is the same whatever range it is generated in."""

    def generate_again(self, record: Mapping[str, Any]) -> Pixels | None:
        """Return the image of a record, None if it need not be alike on this machine."""

    def kind(self) -> str:
        """Return what the images are, as the manifest says it."""

    def settings(self) -> dict[str, Any]:
        """Return as plain JSON values all that the images depend on, besides their number."""

    def licence(self) -> str:
        """Return the licence of the images, as the manifest says it."""

    def versions(self) -> dict[str, Any]:
        """Return as plain JSON values the versions of code that the images depend on."""

    def chunk_size(self) -> int:
        """Return how many images a process generates between two commits to the disk."""


class ImageFile(NamedTuple):
    """An image as it is kept. name: of its file; record: what is known of it."""

    number: int
    name: str
    content: bytes
    record: dict[str, Any]


def generate_files(
    generator: Generator, format: str, numbers: range, chunk: int
) -> Iterator[ImageFile]:
    """Generate and encode images, in order.

    Args:
        generator: what generates them.
        format: a key of `ENCODERS`.
        numbers: which ones.
        chunk: how many are generated at once.
    """
    for part in cut([numbers], chunk):
        for number, generated in zip(part, generator.generate(part), strict=True):
            content = encode(generated.image, format)
            name = image_name(number, format)
            record = {
                "index": number,
                "file": f"{IMAGES}/{name}",
                **generated.record,
                "attempts": generated.attempts,
                "sha256": pixel_sha256(generated.image),
                "file_sha256": sha256(content),
            }
            yield ImageFile(number, name, content, record)


def versions_of(generator: Generator, format: str) -> dict[str, Any]:
    """Return the versions of all code on this machine that a generator's files depend on.

    Raises:
        ValueError: if the format is not a key of `ENCODERS`.
    """
    if format not in ENCODERS:
        raise ValueError(f"format is {format!r}; use one of {', '.join(ENCODERS)}")
    return {"pixmix": __version__, **generator.versions(), "encoder": encoder_version(format)}


def image_name(number: int, format: str) -> str:
    """Return the file name of an image, as "00000042.jpg"."""
    return f"{number:08d}.{format}"


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
    """Decode a file of any of the usual formats to (height, width, 3) uint8.

    Raises:
        OSError: if the content is not an image, or a damaged one.
    """
    with Image.open(io.BytesIO(content), formats=READABLE_FORMATS) as image:
        return np.asarray(image.convert("RGB"))


def encoder_version(format: str) -> str:
    """Return the libraries that decide the bytes of a format, as "Pillow 12.0.0, jpg 3.1.2"."""
    libraries = {"Pillow": features.version("pil")}
    for library in ENCODERS[format][2]:
        libraries[library] = features.version(library)
    return ", ".join(f"{library} {version}" for library, version in libraries.items() if version)


def peak_signal_to_noise(first: Pixels, second: Pixels) -> float:
    """Return the peak signal-to-noise ratio of two images of one shape in decibels.

    Infinite for equal images, about 40 for a good JPEG, under 15 for unrelated images.
    """
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
