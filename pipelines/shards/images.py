"""Find image files in folders, and decode them by their content.

The bytes of a file decide its format, not its name, and only formats whose readers run no other
program are decoded. PNG texts and color profiles over Pillow's limits are removed first.
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
"""Extensions of images in a folder: those of torchvision's ImageFolder."""

_OTHER_EXTENSIONS = frozenset({
    "arw", "avif", "cr2", "cr3", "dng", "eps", "exr", "gif", "hdr", "heic", "heif", "ico", "j2k",
    "jfif", "jp2", "jpe", "jxl", "nef", "orf", "pbm", "pcx", "pnm", "psd", "raw", "rw2", "svg",
    "tga",
})  # fmt: skip
"""Extensions of other images, which are skipped, as torchvision's ImageFolder does."""

_SYSTEM_FILES = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir"})
"""Lower-case names of files and folders that file managers and archivers add to folders."""

MAX_PIXELS = 89_478_485
"""Larger images are decompression bombs; Pillow warns above the same limit, 256 MiB of RGB."""

MAX_FILE_BYTES = 2**30
"""Maximum size of an image file: more than `MAX_PIXELS` with four 16-bit channels."""

READABLE_FORMATS = ("JPEG", "PNG", "WEBP", "PPM", "BMP", "DIB", "TIFF", "GIF")
"""Formats that are decoded. Pillow supports more, but runs Ghostscript for EPS files."""

DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, OverflowError, struct.error,
    zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
"""Errors of Pillow's readers for damaged files; the warning in case it was turned into an error."""

STANDARD = {"jpg": "jpg", "jpeg": "jpg", "png": "png", "webp": "webp"}
"""Extension -> format of the images that every reader of shards supports."""

CONVERSION_VERSION = 2
"""Version of the conversion of nonstandard images: it changes when the pixels change."""

UPRIGHT = 1
"""The EXIF orientation of an image that needs no rotation."""

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> transposition to upright, as in PIL.ImageOps.exif_transpose."""

_FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}

# The quality of pixmix-gen: mixing makes the blocks of lower qualities visible.
_ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True}),
}

_PNG_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})
_HARMLESS_BYTES = 1000
"""Total size of the texts of a PNG that are kept: deflate expands by at most 1,032, to 1 MiB."""


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
    """Return whether a file or folder is ignored: it is hidden, or a system file.

    Hidden names begin with a dot (.ipynb_checkpoints, .git, ._x.JPEG, .DS_Store).
    """
    return name.startswith(".") or name.casefold() in _SYSTEM_FILES


def is_image_name(name: str) -> bool:
    """Return whether a path relative to its dataset is an image, and no part of it is ignored."""
    parts = [part for part in PurePosixPath(name).parts if part != "."]
    return extension_of(name) in IMAGE_EXTENSIONS and not any(map(is_ignored_name, parts))


def extension_of(name: str) -> str:
    """Return the last extension of a file's name, lower-case, without the dot."""
    return os.path.splitext(name)[1][1:].lower()  # noqa: PTH122  of names in tars too


def natural_order(name: str) -> tuple[list[str | tuple[int, str]], str]:
    """Return the sort key of a name, by which 2.jpg comes before 10.jpg."""
    # The parts alternate between text and digits, so that equal positions have equal types.
    # Numbers compare by length, then by digits, because int() rejects thousands of digits.
    parts: list[str | tuple[int, str]] = []
    for position, part in enumerate(re.split(r"(\d+)", name)):
        digits = part.lstrip("0")
        parts.append((len(digits), digits) if position % 2 else part)
    return parts, name


def walk(
    folder: Path,
    *,
    inside: Path | None = None,
    ignored: set[str] | None = None,
    _above: frozenset[tuple[int, int]] = frozenset(),
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk a folder and its subfolders from the top, and follow links to folders.

    Ignored names (see `is_ignored_name`) are skipped, and so are links to a folder that contains
    them.

    Args:
        folder: the folder.
        inside: a folder above it to which links are skipped, too.
        ignored: receives the paths of ignored files and folders.

    Yields:
        As `os.walk`: a folder, the names of its subfolders, and the names of everything else, both
        sorted. Subfolders that the caller removes from the list are not walked.

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
            # entry.is_dir() raises for a link to itself; Path.is_dir() returns False.
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
    """Return the sorted names of the subfolders of a folder; see `walk`."""
    return next(walk(folder, ignored=ignored))[1]


def files_below(
    folder: Path, *, inside: Path | None = None, ignored: set[str] | None = None
) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders; see `walk`."""
    for path, _, files in walk(folder, inside=inside, ignored=ignored):
        for name in files:
            yield path / name


def image_files(folder: Path, *, ignored: set[str] | None = None) -> list[Path]:
    """Return the images of a folder and its subfolders in natural order.

    Links are followed, as torchvision's ImageFolder does. In a mixing set (a manifest.json beside
    images/) only the files in images/ are used.

    Raises:
        PipelineError: if the folder holds no images.
        OSError: if a folder cannot be read.
    """
    found = []
    for path, folders, files in walk(folder, ignored=ignored):
        if "manifest.json" in files and "images" in folders:
            folders[:] = ["images"]
            continue
        # Pipes and broken links are listed, too: reading them raises an error.
        found += [path / name for name in files if extension_of(name) in IMAGE_EXTENSIONS]
    if not found:
        names = " ".join(f".{each}" for each in IMAGE_EXTENSIONS)
        raise PipelineError(f"{folder} holds no images; pass a mixing set or {names} files")
    return sorted(found, key=lambda path: natural_order(path.relative_to(folder).as_posix()))


def skipped_files(folder: Path) -> tuple[dict[str, int], set[str]]:
    """Return the files below a folder that may be images and are skipped.

    Returns:
        Extension -> number of files, sorted; and the paths of the ignored files and folders.

    Raises:
        OSError: if a folder cannot be read.
    """
    ignored: set[str] = set()
    found = Counter(extension_of(path.name) for path in files_below(folder, ignored=ignored))
    return {name: found[name] for name in sorted(_OTHER_EXTENSIONS & {*found})}, ignored


# --- reading and decoding ------------------------------------------------------------------------


def read_image_file(path: Path) -> bytes:
    """Return the content of an image file.

    Raises:
        OSError: if it cannot be read, is not a regular file, or is larger than `MAX_FILE_BYTES`;
            see `unusable_file`.
    """
    return read_regular(path, max_bytes=MAX_FILE_BYTES)


def unusable_file(error: OSError) -> str | None:
    """Return in a few words why a file cannot be an image; None if the disk failed."""
    return {
        errno.EINVAL: "not a regular file",
        errno.ENXIO: "not a regular file",
        errno.ENODEV: "not a regular file",
        errno.EISDIR: "not a regular file",
        errno.EFBIG: f"over {MAX_FILE_BYTES // 2**30} GiB",
        errno.ENOENT: "broken link",
        errno.ELOOP: "link to itself",
    }.get(error.errno or 0)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return the pixels of an image file, (height, width, 3) uint8 RGB.

    Raises:
        PipelineError: if the file cannot be read or decoded.
    """
    try:
        return decode_rgb(read_image_file(path))
    except DecodeError as error:
        reason = str(error)
    except OSError as error:
        reason = unusable_file(error) or error.strerror or str(error)
    raise PipelineError(
        f"{path} is not a readable image ({reason}); remove it, or replace it by a good copy"
    )


def open_image(file: IO[bytes]) -> Image.Image:
    """Open an image as Image.open does, but reject one of over `MAX_PIXELS` without a warning.

    A warning can only be silenced for the whole process, while other threads decode. So this tries
    the formats one by one, as Pillow does before it warns.

    Args:
        file: the file, at its beginning.

    Returns:
        The image; its pixels are not read yet.

    Raises:
        DecodeError: if its header has more than `MAX_PIXELS`.
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
            # A string is the reason why this Pillow cannot read the format.
            if not accepted or isinstance(accepted, str):
                continue
            file.seek(0)
            image = make(_without_large_texts(file) if name == "PNG" else file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
        if image.width * image.height > MAX_PIXELS:
            raise DecodeError(
                "too large",
                f"{image.width}x{image.height} are more than {MAX_PIXELS:,} pixels; make the "
                "image smaller",
            )
        return image
    raise UnidentifiedImageError(f"not an image of a format in {READABLE_FORMATS}")


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB; 16-bit values are divided by 257 and rounded.

    Pillow clips them at 255 instead, which makes nearly all pixels white. Mode I counts as 16 bits,
    because Pillow reads some 16-bit files in this mode.

    Raises:
        DecodeError: for mode F, and for mode I with a value outside 0 to 65535.
    """
    _check_range(image)
    # Transparency does not change RGB, and Pillow warns if a palette has a value for each color.
    image.info.pop("transparency", None)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.uint32)
        # 65535 is 255 * 257; an odd divisor has no ties to round.
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    return image.convert("RGB")


def decode_rgb(content: bytes) -> NDArray[np.uint8]:
    """Decode the content of a file to (height, width, 3) uint8.

    Raises:
        DecodeError: if it cannot be decoded.
    """
    return np.asarray(_load(content, full=True))


def why_nonstandard(content: bytes, extension: str) -> str | None:
    """Check that a file can be decoded, and return what is nonstandard about it.

    A JPEG is decoded at 1/8 of its size: this reads all of its data in a third of the time.

    Returns:
        None, or a reason such as "png content in a .jpg file", "CMYK" or "16 bits per channel".

    Raises:
        DecodeError: if it cannot be decoded.
    """
    image = _load(content, full=False)
    found = _FORMATS.get(image.format or "", (image.format or "unknown").lower())
    if extension not in STANDARD:
        return f"a .{extension} file, which few readers support"
    if found != STANDARD[extension]:
        return f"{found} content in a .{STANDARD[extension]} file"
    if image.mode == "CMYK":
        return "CMYK"
    if image.mode.startswith(("I", "F")):
        return "16 bits per channel"
    return None


def orientation(content: bytes) -> int:
    """Return the EXIF orientation of an image file, 1 to 8; `UPRIGHT` if it has none."""
    try:
        value = open_image(io.BytesIO(content)).getexif().get(ExifTags.Base.Orientation)
    except DAMAGE:
        return UPRIGHT
    return value if isinstance(value, int) and value in _TRANSPOSITIONS else UPRIGHT


def convert(content: bytes, extension: str, *, upright: bool = False) -> tuple[bytes, str]:
    """Encode an image again as RGB, in the format of its extension or else as PNG.

    Args:
        content: content of the file.
        extension: extension of the file, lower-case, without the dot.
        upright: whether to rotate it by its EXIF orientation; the new file has no EXIF.

    Returns:
        The new content and its extension: JPEG at quality 95, 4:4:4; PNG and WebP lossless.

    Raises:
        DecodeError: if it cannot be decoded.
    """
    format = STANDARD.get(extension, "png")
    image = _load(content, full=True)
    method = _TRANSPOSITIONS.get(orientation(content)) if upright else None
    return _encode(image if method is None else image.transpose(method), format), format


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode (height, width, 3) or (height, width) uint8 as PNG."""
    return _encode(Image.fromarray(image), "png")


def encoder_version() -> str:
    """Return the versions of the libraries that determine the bytes of encoded images."""
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
    remedy = "save it with 8 or 16 bits per channel"
    if image.mode == "F":
        raise DecodeError("unknown range", f"mode F, whose value of white is unknown; {remedy}")
    if image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DecodeError("unknown range", f"mode I with values outside 0 to 65535; {remedy}")


def _without_large_texts(file: IO[bytes]) -> IO[bytes]:
    """Return a PNG without its texts and color profiles, if these are large.

    Pillow rejects a PNG if a text or ICC profile expands to over 1 MiB (`MAX_TEXT_CHUNK`), or all
    texts to over 64 MiB. Neither affects the pixels that are decoded here.

    Args:
        file: a PNG, at its beginning.

    Returns:
        The same file, at its beginning, or a smaller copy in memory.
    """
    texts: list[tuple[int, int]] = []
    position = 8  # After the signature.
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
