"""What a picture file really holds, told from its bytes; one format made of another."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from pipelines.shards.picture_files import (
    DAMAGE,
    MOST_PIXELS,
    TooManyPixelsError,
    UnknownRangeError,
    check_range,
    open_picture,
    to_rgb,
)

COMMON = {"jpg": "jpg", "jpeg": "jpg", "png": "png", "webp": "webp"}
"""Extension -> kind, of the pictures that every reader of shards knows."""

CONVERSION_VERSION = 2
"""Of what an odd picture is converted to: raised when the same file gives other pixels."""

UPRIGHT = 1
"""The EXIF orientation of an image that is shown as it is stored."""

_EXIF_ORIENTATION = 0x0112

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the image upright, as in PIL.ImageOps.exif_transpose."""

_TOO_LARGE = f"over {MOST_PIXELS:,} pixels"

_KINDS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}

# As pixmix-gen writes: mixing brings out the blocks of lower qualities.
_WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True}),
}


class BrokenPictureError(Exception):
    """A picture that cannot be decoded; the message says why, in words that follow its name."""


def decode_rgb(content: bytes) -> NDArray[np.uint8]:
    """Decode a file to (height, width, 3) uint8.

    Raises:
        BrokenPictureError: if it cannot be decoded, has over 89 million pixels, or numbers of which
            nobody says what is white.
    """
    return np.asarray(_load(content, full=True))


def oddity(content: bytes, extension: str) -> str | None:
    """Decode a file to see that it is whole, and say what is unusual about it.

    A JPEG is decoded at an eighth of its size: all of its data is read, in a third of the time.

    Args:
        content: the bytes of the file.
        extension: of its name, lower-case, without the dot.

    Returns:
        None, or a reason such as "png content under .jpg", "CMYK" or "16 bits a channel".

    Raises:
        BrokenPictureError: as `decode_rgb`.
    """
    image = _load(content, full=False)
    kind = _KINDS.get(image.format or "", (image.format or "unknown").lower())
    if extension not in COMMON:
        return f"a .{extension} file, which few readers know"
    if kind != COMMON[extension]:
        return f"{kind} content under .{COMMON[extension]}"
    if image.mode == "CMYK":
        return "CMYK"
    if image.mode.startswith(("I", "F")):
        return "16 bits a channel"
    return None


def orientation(content: bytes) -> int:
    """Return what EXIF says of the orientation of a file that can be decoded: 1 to 8.

    Returns:
        `UPRIGHT`, too, where there is no EXIF, or none that makes sense.
    """
    try:
        value = open_picture(io.BytesIO(content)).getexif().get(_EXIF_ORIENTATION)
    except DAMAGE:
        return UPRIGHT
    return value if isinstance(value, int) and value in _TURNS else UPRIGHT


def convert(content: bytes, extension: str, *, upright: bool = False) -> tuple[bytes, str]:
    """Return a picture as RGB in the format that its name promises, PNG for an uncommon one.

    Args:
        content: the bytes of the file.
        extension: of its name, lower-case, without the dot.
        upright: whether it is turned as its EXIF orientation says; the new file has no EXIF.

    Returns:
        The bytes and their extension: JPEG at quality 95, 4:4:4; PNG and WebP without loss.

    Raises:
        BrokenPictureError: if it cannot be decoded.
    """
    kind = COMMON.get(extension, "png")
    image = _load(content, full=True)
    turn = _TURNS.get(orientation(content)) if upright else None
    return _write(image if turn is None else image.transpose(turn), kind), kind


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """Encode (height, width, 3) or (height, width) uint8 without loss."""
    return _write(Image.fromarray(picture), "png")


def encoder_version() -> str:
    """Name the libraries that decide the bytes of what is encoded here."""
    libraries = ("pil", "jpg", "libjpeg_turbo", "zlib", "zlib_ng", "webp")
    versions = {library: features.version(library) for library in libraries}
    return ", ".join(f"{library} {version}" for library, version in versions.items() if version)


def _write(image: Image.Image, kind: str) -> bytes:
    format, options = _WRITERS[kind]
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _load(content: bytes, *, full: bool) -> Image.Image:
    """Return a picture in RGB; or not full, as it is, and a JPEG at an eighth of its size."""
    try:
        image = open_picture(io.BytesIO(content))
        if full:
            return to_rgb(image)
        image.draft(None, (1, 1))
        image.load()
        check_range(image)
    except UnknownRangeError as error:
        raise BrokenPictureError(str(error)) from error
    except DAMAGE as error:
        raise BrokenPictureError(_reason(error, content)) from error
    return image


def _reason(error: Exception, content: bytes) -> str:
    if not content:
        return "empty"
    # Pillow's own, of a frame or a tile that is larger than the header says.
    pillows = Image.DecompressionBombError | Image.DecompressionBombWarning
    if isinstance(error, TooManyPixelsError | pillows):
        return _TOO_LARGE
    if isinstance(error, UnidentifiedImageError):
        return "no picture"
    return "cannot be decoded"
