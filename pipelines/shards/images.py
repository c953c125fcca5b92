"""The pictures of a folder: which they are, in what order, and their pixels at one size.

What a picture file really holds, told from its bytes; one format made of another.

PNG files without their texts and color profiles, which can be larger than Pillow accepts.

Pillow refuses a PNG whose text or ICC profile unpacks to over 1 MiB (`MAX_TEXT_CHUNK`), or all of
whose texts to over 64 MiB. Their pixels are whole, and neither text nor profile changes them here.
"""

import errno
import io
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from pipelines.errors import PipelineError
from pipelines.system.files import read_regular

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})

_HARMLESS_BYTES = 1000
"""Of all texts together: deflate unpacks to at most 1,032 times as much, which is below 1 MiB."""


def without_large_texts(file: IO[bytes]) -> IO[bytes]:
    """Return a PNG without its texts and color profiles where these are large.

    Args:
        file: a PNG, at its beginning.

    Returns:
        The same file, at its beginning, or a smaller one in memory.
    """
    texts: list[tuple[int, int]] = []
    position = len(SIGNATURE)
    file.seek(position)
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        # Length, kind, content and checksum.
        end = position + 12 + length
        if kind in _TEXTS:
            texts.append((position, end))
        if kind == b"IEND":
            break
        position = end
        file.seek(position)
    file.seek(0)
    if sum(end - start - 12 for start, end in texts) <= _HARMLESS_BYTES:
        return file
    kept = io.BytesIO()
    position = 0
    for start, end in texts:
        kept.write(file.read(start - position))
        file.seek(end)
        position = end
    kept.write(file.read())
    kept.seek(0)
    return kept


MEASURED_SIDE = 256
"""Pixels a side of the pictures that are measured; the references are of this size."""

FOLDER_EXTENSIONS = ("jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp")
"""Of files that are pictures: those of torchvision's ImageFolder."""

_OTHER_EXTENSIONS = frozenset({
    "arw", "avif", "cr2", "cr3", "dng", "eps", "exr", "gif", "hdr", "heic", "heif", "ico", "j2k",
    "jfif", "jp2", "jpe", "jxl", "nef", "orf", "pbm", "pcx", "pnm", "psd", "raw", "rw2", "svg",
    "tga",
})  # fmt: skip
"""Of files that are pictures, too, and are not taken, as torchvision's ImageFolder does not."""

MOST_PIXELS = 89_478_485
"""More are taken for a decompression bomb: where Pillow begins to warn of one, a quarter of a
gibibyte of RGB."""

LARGEST_FILE = 2**30
"""Bytes of an image's file: `MOST_PIXELS` of 16 bits in four channels, uncompressed, are fewer."""

DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, OverflowError, struct.error,
    zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
"""What Pillow's readers raise for damaged files; the warning where it was made an error."""

READABLE_FORMATS = ("JPEG", "PNG", "WEBP", "PPM", "BMP", "DIB", "TIFF", "GIF")
"""What a file may hold, whatever its name says. Pillow knows more, and hands one of them (EPS) to a
program, Ghostscript, that runs it: bytes from a tar or the network are never to get there."""


_LITTER = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir"})
"""Names, in lower case, that file managers and archivers leave beside images."""


def is_ignored_name(name: str) -> bool:
    """Return whether a file or folder is never an image or a class: hidden, or a system's litter.

    Hidden names begin with a dot (.ipynb_checkpoints, .git, ._x.JPEG, .DS_Store); litter is
    __MACOSX, Thumbs.db, desktop.ini and the like.

    Args:
        name: of one file or folder, without its parents.
    """
    return name.startswith(".") or name.casefold() in _LITTER


class TooManyPixelsError(ValueError):
    """A picture of more than `MOST_PIXELS`; the message says of how many."""


def open_picture(file: IO[bytes]) -> Image.Image:
    """Open a picture as Image.open does; one of over `MOST_PIXELS` is refused, not warned of.

    A warning can be silenced for the whole process alone, in which threads decode at once; so the
    formats are asked one by one, as Pillow does before it warns.

    Args:
        file: at its beginning.

    Returns:
        The picture, whose pixels are not read yet.

    Raises:
        TooManyPixelsError: if its header says so.
        UnidentifiedImageError: if it is of none of `READABLE_FORMATS`.
    """
    Image.preinit()
    beginning = file.read(16)
    for name in READABLE_FORMATS:
        if name not in Image.OPEN:
            Image.init()
        make, accepts = Image.OPEN[name]
        try:
            accepted = accepts is None or accepts(beginning)
            # Text says why this Pillow cannot read the format.
            if not accepted or isinstance(accepted, str):
                continue
            file.seek(0)
            image = make(without_large_texts(file) if beginning[:8] == SIGNATURE else file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
        if image.width * image.height > MOST_PIXELS:
            raise TooManyPixelsError(
                f"{image.width}x{image.height} are more than {MOST_PIXELS:,} pixels"
            )
        return image
    raise UnidentifiedImageError("no picture of a format that is read here")


Above = frozenset[tuple[int, int]]
"""Of a walk that follows links: the folders that it came through, each as `place_of` names it."""


def place_of(folder: Path) -> tuple[int, int]:
    """Return what a folder is, whatever link led to it: a walk that meets it again goes round."""
    status = folder.stat()
    return status.st_dev, status.st_ino


class UnknownRangeError(ValueError):
    """A picture of numbers of which nobody says what is white; the message names its mode."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture in RGB, of which 16 bits become 8 by dividing by 257 and rounding.

    Pillow cuts them off at 255 instead, so that nearly all is white. Mode I is taken for 16 bits,
    as which Pillow hands on those of some files.

    Raises:
        UnknownRangeError: for mode F, and for I with a number outside 0 to 65535.
    """
    check_range(image)
    # It changes no pixel of RGB, and Pillow warns of one that a palette has for each colour.
    image.info.pop("transparency", None)
    if image.mode.startswith("I"):
        numbers = np.asarray(image).astype(np.uint32)
        # 65535 is 255 * 257; an odd divisor knows no ties.
        image = Image.fromarray(((numbers + 128) // 257).astype(np.uint8))
    return image.convert("RGB")


def check_range(image: Image.Image) -> None:
    """Refuse a picture of which nobody says what number is white.

    Raises:
        UnknownRangeError: for mode F, and for I with a number outside 0 to 65535.
    """
    if image.mode == "F":
        raise UnknownRangeError("mode F, of which no number is known to be white")
    if image.mode == "I":
        numbers = np.asarray(image)
        if numbers.min() < 0 or numbers.max() > 65535:
            raise UnknownRangeError("mode I with numbers outside 0 to 65535")


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures of a mixing set, or of any folder and the folders in it, in order.

    Numbers in names count as numbers: 2.jpg comes before 10.jpg. Links are followed, as by
    torchvision's ImageFolder. Hidden files and folders are left out, and of a mixing set
    (manifest.json beside images/), wherever it lies, all that is not in images/.

    Raises:
        PipelineError: if there is none.
        OSError: if a folder cannot be read.
    """
    found = sorted(
        _walk(folder, frozenset()),
        key=lambda path: natural_order(path.relative_to(folder).as_posix()),
    )
    if not found:
        raise PipelineError(
            f"{folder} holds no pictures; give a mixing set or a folder with "
            f"{' '.join(f'.{each}' for each in FOLDER_EXTENSIONS)} files"
        )
    return found


def _walk(folder: Path, above: Above) -> Iterator[Path]:
    place = place_of(folder)
    if place in above:  # A link leads back to a folder that it lies in.
        return
    above |= {place}
    with os.scandir(folder) as listing:
        entries = {entry.name: entry for entry in listing}
    images = entries.get("images")
    if "manifest.json" in entries and images is not None and images.is_dir():
        yield from _walk(folder / "images", above)
        return
    for name, entry in entries.items():
        if is_ignored_name(name):
            continue
        if is_folder(entry):
            yield from _walk(folder / name, above)
        # Whatever it is: whoever reads a pipe or a link to nothing under such a name is told.
        elif is_picture_name(name):
            yield folder / name


def files_below(folder: Path, above: Above, *, ignored: list[Path] | None = None) -> Iterator[Path]:
    """Yield the files of a folder and of those in it as they come, links to folders followed.

    Hidden files and folders and a system's litter are skipped, see `is_ignored_name`.

    Args:
        folder: where to begin.
        above: the folders that were come through, to which no link leads back.
        ignored: takes what is skipped.

    Raises:
        OSError: if a folder cannot be read.
    """
    place = place_of(folder)
    if place in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(folder, entry.name)
            if is_ignored_name(entry.name):
                if ignored is not None:
                    ignored.append(path)
            elif is_folder(entry):
                yield from files_below(path, above | {place}, ignored=ignored)
            else:
                yield path


@dataclass(frozen=True, kw_only=True)
class PassedOver:
    """What below a folder looks like images and is not taken.

    extensions: extension -> files, by extension; ignored: hidden files and folders and a system's
    litter, each counted once, whatever it holds.
    """

    extensions: dict[str, int]
    ignored: tuple[Path, ...]


def passed_over(folder: Path) -> PassedOver:
    """Return what below a folder is not taken.

    Raises:
        OSError: if a folder cannot be read.
    """
    found: Counter[str] = Counter()
    ignored: list[Path] = []
    for path in files_below(folder, frozenset(), ignored=ignored):
        extension = path.suffix.lower().removeprefix(".")
        if extension in _OTHER_EXTENSIONS:
            found[extension] += 1
    return PassedOver(extensions=dict(sorted(found.items())), ignored=tuple(sorted(ignored)))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a link to itself is not."""
    # An entry raises for a link to itself, which is no folder.
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


def read_image_file(path: Path) -> bytes:
    """Return the bytes of an image's file: of a regular file of at most `LARGEST_FILE`.

    Raises:
        OSError: if it cannot be read, or is a pipe, a device, a folder or larger: see
            `unusable_file`.
    """
    return read_regular(path, max_bytes=LARGEST_FILE)


def unusable_file(error: OSError) -> str | None:
    """Return why a file is no image's, as one word or a few; None where the disk is at fault."""
    return {
        errno.EINVAL: "no regular file",
        errno.ENXIO: "no regular file",
        errno.ENODEV: "no regular file",
        errno.EISDIR: "no regular file",
        errno.EFBIG: f"over {LARGEST_FILE // 2**30} GiB",
        errno.ENOENT: "a link to nothing",
        errno.ELOOP: "a link to itself",
    }.get(error.errno or 0)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Return a picture's pixels, (height, width, 3) uint8; grey and palettes become RGB.

    Raises:
        PipelineError: if the file is no whole picture, no regular file, larger than
            `LARGEST_FILE`, or one of more than `MOST_PIXELS`.
    """
    try:
        content = read_image_file(path)
    except OSError as error:
        raise PipelineError(
            f"{path} is no readable picture ({unusable_file(error) or error.strerror}); remove it, "
            "or put a whole one in its place"
        ) from error
    try:
        with open_picture(io.BytesIO(content)) as image:
            return np.asarray(to_rgb(image))
    except DAMAGE as error:
        reason = "cut short or of an unknown format" if isinstance(error, OSError) else str(error)
        raise PipelineError(
            f"{path} is no readable picture ({reason}); remove it, or put a whole one in its place"
        ) from error


def at_measured_size(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the centre 256x256 of a picture whose shorter side is scaled to 256.

    The filter is bilinear, as in PixMix's own resize; a picture of that size comes back as it is.
    Of a picture that would have more than `MOST_PIXELS` then (1x30,000 would take 6 GB) only the
    centre is scaled, which differs by rounding at most.
    """
    height, width = picture.shape[:2]
    if height == width == MEASURED_SIDE:
        return picture
    shorter = min(height, width)
    full = (MEASURED_SIDE * width // shorter, MEASURED_SIDE * height // shorter)
    left, top = ((side - MEASURED_SIDE) // 2 for side in full)
    square = (left, top, left + MEASURED_SIDE, top + MEASURED_SIDE)
    image = Image.fromarray(picture)
    if full[0] * full[1] <= MOST_PIXELS:
        return np.asarray(image.resize(full, Image.Resampling.BILINEAR).crop(square))
    # The same square in pixels of the picture, which need not be whole.
    scales = (width / full[0], height / full[1]) * 2
    box = tuple(side * scale for side, scale in zip(square, scales, strict=True))
    size = (MEASURED_SIDE, MEASURED_SIDE)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))


def is_picture_name(name: str) -> bool:
    """Return whether a path with slashes is that of a picture, and neither it nor a folder hidden.

    Name it from the set's folder on: what lies above may be hidden.
    """
    parts = PurePosixPath(name).parts
    return PurePosixPath(name).suffix.lower().removeprefix(".") in FOLDER_EXTENSIONS and not any(
        is_ignored_name(part) for part in parts if part != "."
    )


def natural_order(name: str) -> tuple[list[str | tuple[int, str]], str]:
    """Return what to sort names by, so that 2.jpg comes before 10.jpg."""
    # Splitting by digits alternates text and digits, so that equal places compare like with like.
    # A number is told by its length, then its digits: int() refuses those of a hostile name.
    parts: list[str | tuple[int, str]] = []
    for place, part in enumerate(re.split(r"(\d+)", name)):
        digits = part.lstrip("0")
        parts.append((len(digits), digits) if place % 2 else part)
    return parts, name


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
