"""Images on disk: which files of a folder they are, and what a file really holds.

Whatever its name says, a file is decoded as what its bytes are, and only in formats whose readers
run no other program. PNG texts and color profiles over Pillow's limits are cut out first.
"""

import errno
import io
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError, features

from pipelines.errors import PipelineError
from pipelines.system.files import read_regular

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp")
"""Of the files of a folder that are images: those of torchvision's ImageFolder."""

_OTHER_EXTENSIONS = frozenset({
    "arw", "avif", "cr2", "cr3", "dng", "eps", "exr", "gif", "hdr", "heic", "heif", "ico", "j2k",
    "jfif", "jp2", "jpe", "jxl", "nef", "orf", "pbm", "pcx", "pnm", "psd", "raw", "rw2", "svg",
    "tga",
})  # fmt: skip
"""Of files that hold images, too, and are skipped, as torchvision's ImageFolder does."""

_LITTER = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir"})
"""Names, in lower case, that file managers and archivers leave beside images."""

MOST_PIXELS = 89_478_485
"""More are taken for a decompression bomb: where Pillow begins to warn of one, a quarter of a
gibibyte of RGB."""

LARGEST_FILE = 2**30
"""Bytes of an image's file: `MOST_PIXELS` of 16 bits in four channels, uncompressed, are fewer."""

READABLE_FORMATS = ("JPEG", "PNG", "WEBP", "PPM", "BMP", "DIB", "TIFF", "GIF")
"""What a file may hold, whatever its name says. Pillow knows more, and hands one of them (EPS) to a
program, Ghostscript, that runs it: bytes from a tar or the network are never to get there."""

DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, OverflowError, struct.error,
    zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
"""What Pillow's readers raise for damaged files; the warning where it was made an error."""

STANDARD = {"jpg": "jpg", "jpeg": "jpg", "png": "png", "webp": "webp"}
"""Extension -> format, of the images that every reader of shards knows."""

CONVERSION_VERSION = 2
"""Of what a nonstandard image is converted to: raised when the same file gives other pixels."""

UPRIGHT = 1
"""The EXIF orientation of an image that is shown as it is stored."""

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the image upright, as in PIL.ImageOps.exif_transpose."""

_FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}

# As pixmix-gen writes: mixing brings out the blocks of lower qualities.
_ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True}),
}

_PNG_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})
_HARMLESS_BYTES = 1000
"""Of all texts of a PNG: deflate unpacks to at most 1,032 times as much, which is below 1 MiB."""


class DecodeError(Exception):
    """Raised for an image that cannot be decoded.

    Attributes:
        reason: "empty", "unknown format", "too large", "unknown range", "damaged", "cut short" or
            "unreadable file"; reports count images by it.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason

    def __str__(self) -> str:
        """Return the message."""
        return str(self.args[1])


@contextmanager
def decode_errors() -> Iterator[None]:
    """Translate the errors of Pillow's readers into `DecodeError`."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise DecodeError("unknown format", "not an image that Pillow knows") from error
    # Pillow raises these for a frame or a tile that is larger than the header says.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError("too large", f"{error}; make the image smaller") from error
    except DAMAGE as error:
        raise DecodeError("damaged", f"damaged or cut short: {error}") from error


# --- which files are images ----------------------------------------------------------------------


def is_ignored_name(name: str) -> bool:
    """Return whether a file or folder is never an image or a class: hidden, or a system's litter.

    Hidden names begin with a dot (.ipynb_checkpoints, .git, ._x.JPEG, .DS_Store); litter is
    __MACOSX, Thumbs.db, desktop.ini and the like.

    Args:
        name: of one file or folder, without its parents.
    """
    return name.startswith(".") or name.casefold() in _LITTER


def is_image_name(name: str) -> bool:
    """Return whether a path with slashes is that of an image, and neither it nor a folder hidden.

    Name it from the dataset's folder on: what lies above may be hidden.
    """
    return extension_of(name) in IMAGE_EXTENSIONS and not any(
        is_ignored_name(part) for part in PurePosixPath(name).parts if part != "."
    )


def extension_of(name: str) -> str:
    """Return the last extension of a file's name, lower-case, without the dot."""
    return os.path.splitext(name)[1][1:].lower()  # noqa: PTH122  of names in tars too


def natural_order(name: str) -> tuple[list[str | tuple[int, str]], str]:
    """Return what to sort names by, so that 2.jpg comes before 10.jpg."""
    # Splitting by digits alternates text and digits, so that equal places compare like with like.
    # A number is told by its length, then its digits: int() refuses those of a hostile name.
    parts: list[str | tuple[int, str]] = []
    for place, part in enumerate(re.split(r"(\d+)", name)):
        digits = part.lstrip("0")
        parts.append((len(digits), digits) if place % 2 else part)
    return parts, name


def walk(
    folder: Path,
    *,
    inside: Path | None = None,
    ignored: set[str] | None = None,
    _above: frozenset[tuple[int, int]] = frozenset(),
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk over a folder and those in it, top down, links to folders followed.

    Hidden files and folders and a system's litter are skipped, see `is_ignored_name`, and so are
    links that lead back to a folder that they lie in.

    Args:
        folder: where to begin.
        inside: a folder above it to which no link may lead back either.
        ignored: takes the paths of what is skipped.

    Yields:
        As `os.walk`: a folder, the names of the folders in it, and those of everything else, both
        sorted. What the caller removes from the folders is not walked.

    Raises:
        OSError: if a folder cannot be read.
    """
    above = _above if inside is None else _above | {_identity(inside)}
    here = _identity(folder)
    if here in above:
        return
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_ignored_name(entry.name):
                if ignored is not None:
                    ignored.add(entry.path)
            # An entry raises for a link to itself, which is not a folder.
            elif Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir():
                folders.append(entry.name)
            else:
                files.append(entry.name)
    folders.sort()
    files.sort()
    yield folder, folders, files
    for name in folders:
        yield from walk(folder / name, ignored=ignored, _above=above | {here})


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def class_folders(folder: Path, *, ignored: set[str] | None = None) -> list[str]:
    """Return the names of the folders in a folder, sorted; see `walk`."""
    return next(walk(folder, ignored=ignored))[1]


def files_below(
    folder: Path, *, inside: Path | None = None, ignored: set[str] | None = None
) -> Iterator[Path]:
    """Yield the files of a folder and of those in it; see `walk`."""
    for path, _, files in walk(folder, inside=inside, ignored=ignored):
        for name in files:
            yield path / name


def image_files(folder: Path, *, ignored: set[str] | None = None) -> list[Path]:
    """Return the images of a mixing set, or of any folder and the folders in it, in natural order.

    Links are followed, as by torchvision's ImageFolder. Of a mixing set (manifest.json beside
    images/), wherever it lies, everything that is not in images/ is skipped.

    Raises:
        PipelineError: if there is none.
        OSError: if a folder cannot be read.
    """
    found = []
    for path, folders, files in walk(folder, ignored=ignored):
        if "manifest.json" in files and "images" in folders:
            folders[:] = ["images"]
            continue
        # Pipes and links to nothing, too: whoever reads one is told.
        found += [path / name for name in files if extension_of(name) in IMAGE_EXTENSIONS]
    if not found:
        names = " ".join(f".{each}" for each in IMAGE_EXTENSIONS)
        raise PipelineError(f"{folder} holds no images; pass a mixing set or {names} files")
    return sorted(found, key=lambda path: natural_order(path.relative_to(folder).as_posix()))


def skipped_files(folder: Path) -> tuple[dict[str, int], set[str]]:
    """Return what below a folder looks like images and is skipped.

    Returns:
        Extension -> files, by extension; and the paths of hidden files and folders and a system's
        litter, each once, whatever it holds.

    Raises:
        OSError: if a folder cannot be read.
    """
    ignored: set[str] = set()
    found = Counter(extension_of(path.name) for path in files_below(folder, ignored=ignored))
    return {name: found[name] for name in sorted(_OTHER_EXTENSIONS & {*found})}, ignored


# --- reading and decoding ------------------------------------------------------------------------


def read_image_file(path: Path) -> bytes:
    """Return the bytes of an image's file: of a regular file of at most `LARGEST_FILE`.

    Raises:
        OSError: if it cannot be read, or is something else or larger; see `unusable_file`.
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


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return an image's pixels, (height, width, 3) uint8; grey and palettes become RGB.

    Raises:
        PipelineError: if the file cannot be read, or is no whole image of an allowed size.
    """
    try:
        return decode_rgb(read_image_file(path))
    except DecodeError as error:
        reason = str(error)
    except OSError as error:
        reason = unusable_file(error) or error.strerror or str(error)
    raise PipelineError(
        f"{path} is no readable image ({reason}); remove it, or replace it by a whole one"
    )


def open_image(file: IO[bytes]) -> Image.Image:
    """Open an image as Image.open does; one of over `MOST_PIXELS` is refused, not warned of.

    A warning can be silenced for the whole process alone, in which threads decode at once; so the
    formats are asked one by one, as Pillow does before it warns.

    Args:
        file: at its beginning.

    Returns:
        The image, whose pixels are not read yet.

    Raises:
        DecodeError: if its header has more than `MOST_PIXELS`.
        UnidentifiedImageError: if it is in none of `READABLE_FORMATS`.
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
            image = make(_without_large_texts(file) if name == "PNG" else file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
        if image.width * image.height > MOST_PIXELS:
            raise DecodeError(
                "too large",
                f"{image.width}x{image.height} are more than {MOST_PIXELS:,} pixels; make the "
                "image smaller",
            )
        return image
    raise UnidentifiedImageError("no image of a format that is read here")


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB, of which 16 bits become 8 by dividing by 257 and rounding.

    Pillow cuts them off at 255 instead, so that nearly all is white. Mode I is taken for 16 bits,
    as which Pillow hands on those of some files.

    Raises:
        DecodeError: for mode F, and for mode I with a value outside 0 to 65535.
    """
    _check_range(image)
    # It changes no pixel of RGB, and Pillow warns of one that a palette has for each colour.
    image.info.pop("transparency", None)
    if image.mode.startswith("I"):
        numbers = np.asarray(image).astype(np.uint32)
        # 65535 is 255 * 257; an odd divisor knows no ties.
        image = Image.fromarray(((numbers + 128) // 257).astype(np.uint8))
    return image.convert("RGB")


def decode_rgb(content: bytes) -> NDArray[np.uint8]:
    """Decode a file to (height, width, 3) uint8.

    Raises:
        DecodeError: if it cannot be decoded, is too large, or of an unknown range.
    """
    return np.asarray(_load(content, full=True))


def why_nonstandard(content: bytes, extension: str) -> str | None:
    """Decode a file to see that it is whole, and return what is nonstandard about it.

    A JPEG is decoded at an eighth of its size: all of its data is read, in a third of the time.

    Returns:
        None, or a reason such as "png content under .jpg", "CMYK" or "16 bits a channel".

    Raises:
        DecodeError: as `decode_rgb`.
    """
    image = _load(content, full=False)
    found = _FORMATS.get(image.format or "", (image.format or "unknown").lower())
    if extension not in STANDARD:
        return f"a .{extension} file, which few readers know"
    if found != STANDARD[extension]:
        return f"{found} content under .{STANDARD[extension]}"
    if image.mode == "CMYK":
        return "CMYK"
    if image.mode.startswith(("I", "F")):
        return "16 bits a channel"
    return None


def orientation(content: bytes) -> int:
    """Return the EXIF orientation of a file that can be decoded, 1 to 8; `UPRIGHT` without any."""
    try:
        value = open_image(io.BytesIO(content)).getexif().get(ExifTags.Base.Orientation)
    except DAMAGE:
        return UPRIGHT
    return value if isinstance(value, int) and value in _TRANSPOSITIONS else UPRIGHT


def convert(content: bytes, extension: str, *, upright: bool = False) -> tuple[bytes, str]:
    """Return an image as RGB in the format that its name promises, PNG for an uncommon one.

    Args:
        content: the bytes of the file.
        extension: of its name, lower-case, without the dot.
        upright: whether it is turned as its EXIF orientation says; the new file has no EXIF.

    Returns:
        The bytes and their extension: JPEG at quality 95, 4:4:4; PNG and WebP without loss.

    Raises:
        DecodeError: if it cannot be decoded.
    """
    format = STANDARD.get(extension, "png")
    image = _load(content, full=True)
    turn = _TRANSPOSITIONS.get(orientation(content)) if upright else None
    return _encode(image if turn is None else image.transpose(turn), format), format


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode (height, width, 3) or (height, width) uint8 without loss."""
    return _encode(Image.fromarray(image), "png")


def encoder_version() -> str:
    """Name the libraries that decide the bytes of what is encoded here."""
    libraries = ("pil", "jpg", "libjpeg_turbo", "zlib", "zlib_ng", "webp")
    versions = {library: features.version(library) for library in libraries}
    return ", ".join(f"{library} {version}" for library, version in versions.items() if version)


def _encode(image: Image.Image, format: str) -> bytes:
    name, options = _ENCODERS[format]
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def _load(content: bytes, *, full: bool) -> Image.Image:
    """Return an image in RGB, or, if not `full`, in its own mode and a JPEG at 1/8 of its size."""
    if not content:
        raise DecodeError("empty", "the file is empty")
    with decode_errors():
        image = open_image(io.BytesIO(content))
        if full:
            return to_rgb(image)
        image.draft(None, (1, 1))
        image.load()
        _check_range(image)
        return image


def _check_range(image: Image.Image) -> None:
    remedy = "save it with 8 or 16 bits a channel"
    if image.mode == "F":
        raise DecodeError("unknown range", f"mode F, whose value of white is unknown; {remedy}")
    if image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DecodeError("unknown range", f"mode I with values outside 0 to 65535; {remedy}")


def _without_large_texts(file: IO[bytes]) -> IO[bytes]:
    """Return a PNG without its texts and color profiles where these are large.

    Pillow refuses a PNG whose text or ICC profile unpacks to over 1 MiB (`MAX_TEXT_CHUNK`), or all
    of whose texts to over 64 MiB. Their pixels are whole, and neither changes them here.

    Args:
        file: a PNG, at its beginning.

    Returns:
        The same file, at its beginning, or a smaller one in memory.
    """
    texts: list[tuple[int, int]] = []
    position = 8  # Its signature.
    file.seek(position)
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        # Length, kind, content and checksum.
        end = position + 12 + length
        if kind in _PNG_TEXTS:
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
