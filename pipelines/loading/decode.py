"""From a file's bytes to pixels: the same ones that Pillow gives, by the fastest way there is.

JPEGs in grey or colour are decoded by simplejpeg (where it is installed) or by torchvision, which
give Pillow's bytes and release the interpreter's lock; all else, and what they refuse, by Pillow.
Nothing is decoded before its header says how large it is.
"""

import io
import warnings
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_jpeg

try:
    import simplejpeg
except ImportError:
    simplejpeg: ModuleType | None = None  # type: ignore[no-redef]

MOST_PIXELS = 178_956_970
"""Pillow's own limit, a quarter of a gibibyte of RGB: more is taken for a decompression bomb."""

_FASTER_MODES = frozenset({"L", "RGB"})


class UnreadablePictureError(ValueError):
    """Raised for bytes that are no whole picture. reason: one or two words to count it by."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def decode_picture(content: bytes | bytearray) -> NDArray[np.uint8]:
    """Return a picture's pixels as `Image.open(...).convert("RGB")` gives them.

    Args:
        content: of a file that Pillow reads.

    Returns:
        (H, W, 3) uint8, contiguous and writeable. What EXIF says of the orientation is not heeded,
        as by torchvision's ImageFolder.

    Raises:
        UnreadablePictureError: if it is cut short, damaged, of an unknown format, or larger than
            `MOST_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            # The limit below is the rule; between it and half of it Pillow only warns.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise UnreadablePictureError(
                        "too large",
                        f"{image.width}x{image.height} are more than {MOST_PIXELS:,} pixels; "
                        "make the picture smaller",
                    )
                if image.format == "JPEG" and image.mode in _FASTER_MODES:
                    pixels = _decode_jpeg(content)
                    if pixels is not None:
                        return pixels
                return np.array(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise UnreadablePictureError("unknown format", "no picture that Pillow knows") from error
    except Image.DecompressionBombError as error:
        raise UnreadablePictureError("too large", f"{error}; make the picture smaller") from error
    # Pillow's readers raise each of these for damaged files.
    except (OSError, SyntaxError, EOFError, IndexError, TypeError, OverflowError) as error:
        raise UnreadablePictureError("damaged", f"damaged or cut short: {error}") from error
    except ValueError as error:
        if isinstance(error, UnreadablePictureError):
            raise
        raise UnreadablePictureError("damaged", f"damaged or cut short: {error}") from error


def _decode_jpeg(content: bytes | bytearray) -> NDArray[np.uint8] | None:
    """Return a JPEG's pixels, or None where the faster decoders refuse it."""
    try:
        if simplejpeg is not None:
            decoded: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, colorspace="RGB")
            return decoded
        # A bytearray, for torch warns of memory that cannot be written.
        writeable = content if isinstance(content, bytearray) else bytearray(content)
        planes = decode_jpeg(torch.frombuffer(writeable, dtype=torch.uint8), mode=ImageReadMode.RGB)
    # Both raise these for what they cannot read; Pillow then says what is wrong with it.
    except (ValueError, RuntimeError):
        return None
    pixels: NDArray[np.uint8] = np.ascontiguousarray(planes.permute(1, 2, 0).numpy())
    return pixels
