"""The pictures of a folder: which they are, in what order, and their pixels at one size."""

import re
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.errors import PipelineError

MEASURED_SIDE = 256
"""Pixels a side of the pictures that are measured; the references are of this size."""
# What torchvision's ImageFolder takes for a picture.
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures of a mixing set, or of any folder and the folders in it, in order.

    Numbers in names count as numbers: 2.jpg comes before 10.jpg. Hidden files and folders are left
    out, and of a mixing set (manifest.json beside images/) all that is not in images/.

    Raises:
        PipelineError: if there is none.
    """
    root = folder
    if (folder / "manifest.json").is_file() and (folder / "images").is_dir():
        root = folder / "images"
    found = [
        path
        for path in root.rglob("*")
        if is_picture_name(path.relative_to(root).as_posix()) and path.is_file()
    ]
    if not found:
        raise PipelineError(
            f"{root} holds no pictures; give a mixing set or a folder with "
            f"{' '.join(sorted(_SUFFIXES))} files"
        )
    return sorted(found, key=lambda path: natural_order(path.relative_to(root).as_posix()))


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Return a picture's pixels, (height, width, 3) uint8; grey and palettes become RGB.

    Raises:
        PipelineError: if the file is no whole picture.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    # Pillow's readers raise each of these for a damaged file.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "cut short or of an unknown format" if isinstance(error, OSError) else str(error)
        raise PipelineError(
            f"{path} is no readable picture ({reason}); remove it, or put a whole one in its place"
        ) from error


def at_measured_size(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the centre 256x256 of a picture whose shorter side is scaled to 256.

    The filter is bilinear, as in PixMix's own resize; a picture of that size comes back as it is.
    """
    height, width = picture.shape[:2]
    if height == width == MEASURED_SIDE:
        return picture
    shorter = min(height, width)
    full = (MEASURED_SIDE * width // shorter, MEASURED_SIDE * height // shorter)
    left, top = ((side - MEASURED_SIDE) // 2 for side in full)
    image = Image.fromarray(picture).resize(full, Image.Resampling.BILINEAR)
    return np.asarray(image.crop((left, top, left + MEASURED_SIDE, top + MEASURED_SIDE)))


def is_picture_name(name: str) -> bool:
    """Return whether a path with slashes is that of a picture, and neither it nor a folder hidden.

    Name it from the set's folder on: what lies above may be hidden.
    """
    parts = PurePosixPath(name).parts
    return PurePosixPath(name).suffix.lower() in _SUFFIXES and not any(
        part.startswith(".") and part != "." for part in parts
    )


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Return what to sort names by, so that 2.jpg comes before 10.jpg."""
    # Splitting by digits alternates text and digits, so that equal places compare like with like.
    parts = re.split(r"(\d+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name
