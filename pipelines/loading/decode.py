"""From a file's bytes to pixels: the same ones that Pillow gives, by the fastest way there is.

JPEGs in grey or colour are decoded by simplejpeg where it is installed (pip install pixmix[fast]),
or else by torchvision as long as it can: both give Pillow's bytes and release the interpreter's
lock. All else, and what they refuse, Pillow decodes. Nothing is decoded before its header says how
large it is.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipelines.shards.images import (
    DAMAGE,
    TooManyPixelsError,
    UnknownRangeError,
    open_image,
    to_rgb,
)

Pixels = NDArray[np.uint8]

_FASTER_MODES = frozenset({"L", "RGB"})


class UnreadablePictureError(ValueError):
    """Raised for bytes that are no whole picture. reason: one or two words to count it by."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@contextmanager
def _opened(content: bytes | bytearray) -> Iterator[Image.Image]:
    """Open a picture whose header is sound, and say in one way what is wrong with its bytes."""
    try:
        with open_image(io.BytesIO(content)) as image:
            yield image
    except UnreadablePictureError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadablePictureError("unknown format", "no picture that Pillow knows") from error
    # Pillow's own are of a frame or a tile that is larger than the header says.
    except (
        TooManyPixelsError, Image.DecompressionBombError, Image.DecompressionBombWarning
    ) as error:  # fmt: skip
        raise UnreadablePictureError("too large", f"{error}; make the picture smaller") from error
    except UnknownRangeError as error:
        raise UnreadablePictureError(
            "unknown range", f"{error}; save it with 8 or 16 bits a channel"
        ) from error
    except DAMAGE as error:
        raise UnreadablePictureError("damaged", f"damaged or cut short: {error}") from error


def read_size(content: bytes | bytearray) -> tuple[int, int]:
    """Return the height and width that a picture's header says, pixels.

    Raises:
        UnreadablePictureError: as `decode_picture`, but damage after the header is not seen.
    """
    with _opened(content) as image:
        return image.height, image.width


def decode_picture(content: bytes | bytearray) -> Pixels:
    """Return a picture's pixels as `Image.open(...).convert("RGB")` gives them, 16 bits scaled.

    Args:
        content: of a file that Pillow reads.

    Returns:
        (H, W, 3) uint8, contiguous and writeable. What EXIF says of the orientation is not heeded,
        as by torchvision's ImageFolder.

    Raises:
        UnreadablePictureError: if it is cut short, damaged, of an unknown format, larger than
            `MOST_PIXELS`, or of numbers of which nobody says what is white.
    """
    with _opened(content) as image:
        if image.format == "JPEG" and image.mode in _FASTER_MODES:
            pixels = _decode_jpeg(content)
            if pixels is not None:
                return pixels
        return np.array(to_rgb(image))


def _by_simplejpeg() -> Callable[[bytearray], Pixels] | None:
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    return lambda content: decode_jpeg(content, colorspace="RGB")


def _by_torchvision() -> Callable[[bytearray], Pixels] | None:
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:
        # Deprecated since 0.29, to be removed.
        return None

    def decode(content: bytearray) -> Pixels:
        file = torch.frombuffer(content, dtype=torch.uint8)
        planes = decode_jpeg(file, mode=ImageReadMode.RGB)
        return np.ascontiguousarray(planes.permute(1, 2, 0).numpy())

    return decode


JPEG_DECODER = _by_simplejpeg() or _by_torchvision()
"""Decodes grey and colour JPEGs; raises ValueError or RuntimeError for what it cannot read."""


def _decode_jpeg(content: bytes | bytearray) -> Pixels | None:
    """Return a JPEG's pixels, or None where the faster decoder refuses it: Pillow says why."""
    if JPEG_DECODER is None:
        return None
    try:
        # A bytearray, for torch warns of memory that cannot be written.
        return JPEG_DECODER(content if isinstance(content, bytearray) else bytearray(content))
    # Torchvision's is deprecated, which may be made an error.
    except (ValueError, RuntimeError, DeprecationWarning):
        return None
