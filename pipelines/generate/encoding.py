"""Pictures to file formats and back; the same picture always gives the same bytes."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from pipelines.shards.images import READABLE_FORMATS

Picture = NDArray[np.uint8]
"""(height, width, 3) uint8, sRGB."""

# JPEG 95 without chroma subsampling: mixing adds and multiplies these pictures up to four times,
# which brings blocks and colour bleeding out. Measured on 40 flames of 256x256: JPEG 0.65 ms and
# 40 kB; PNG 5.0 ms and 125 kB at level 1, 12.2 ms and 118 kB at the default; lossless WebP 2.2 ms
# and 100 kB at method 0, 45 ms and 87 kB at the default.
ENCODERS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "jpg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}, ("jpg", "libjpeg_turbo")),
    "png": ("PNG", {"compress_level": 1}, ("zlib", "zlib_ng")),
    "webp": ("WEBP", {"lossless": True, "method": 0, "quality": 0}, ("webp",)),
}
LOSSLESS = frozenset({"png", "webp"})


def check_format(format: str) -> None:
    """Refuse a format that is no key of `ENCODERS`.

    Raises:
        ValueError: if it is none.
    """
    if format not in ENCODERS:
        raise ValueError(f"format is {format!r}; give one of {', '.join(ENCODERS)}")


def encode(picture: Picture, format: str) -> bytes:
    """Encode a picture.

    Args:
        picture: (height, width, 3) uint8.
        format: "jpg" (quality 95, 4:4:4), "png" or "webp" (both lossless).

    Returns:
        The bytes of the file.
    """
    name, options, _ = ENCODERS[format]
    file = io.BytesIO()
    Image.fromarray(picture).save(file, name, **options)
    return file.getvalue()


def decode(content: bytes) -> Picture:
    """Decode a file of any of the usual formats to (height, width, 3) uint8.

    Raises:
        OSError: if the content is no picture, or a broken one.
    """
    with Image.open(io.BytesIO(content), formats=READABLE_FORMATS) as image:
        return np.asarray(image.convert("RGB"))


def encoder_version(format: str) -> str:
    """Name the libraries that decide the bytes of a format, as in "Pillow 12.0.0, jpg 3.1.2"."""
    libraries = {"Pillow": features.version("pil")}
    for library in ENCODERS[format][2]:
        libraries[library] = features.version(library)
    return ", ".join(f"{library} {version}" for library, version in libraries.items() if version)


def peak_signal_to_noise(first: Picture, second: Picture) -> float:
    """Return the peak signal-to-noise ratio of two pictures of one shape in decibels.

    Infinite for equal pictures, about 40 for a good JPEG, under 15 for unrelated pictures.
    """
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
