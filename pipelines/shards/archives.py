"""Images in one file: a tar, a zip, or an array of numpy; read where they lie, nothing unpacked.

An image in an archive has a place, plain JSON values, by which any process reads it again:

    [offset, bytes]                     stored as it is, in a tar or a zip
    [offset, packed bytes, bytes, crc]  deflated in a zip
    [offset, height, width]             pixels of an array, which are read as a PNG
"""

import errno
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.errors import PipelineError
from pipelines.shards.picture_files import LARGEST_FILE, MOST_PIXELS, is_picture_name
from pipelines.shards.pictures import BrokenPictureError, encode_png
from pipelines.shards.tars import scan_tar
from pipelines.system.files import open_regular

_ZIP_BEGINNINGS = (b"PK\x03\x04", b"PK\x05\x06")
_NPY_BEGINNING = b"\x93NUMPY"

_NPY_HEADER = re.compile(
    rb"(?P<prefix>\x93NUMPY(?:\x01\x00(?P<length>..)|[\x02\x03]\x00(?P<long>....)))"
    rb"\{'descr': '\|u1', 'fortran_order': False, "
    rb"'shape': \((?P<n>\d{1,12}), (?P<height>\d{1,9}), (?P<width>\d{1,9}), 3\), \} *\n",
    re.DOTALL,
)
"""As numpy.save writes it, for images: its own reader evaluates what stands there."""

_LONGEST_NPY_HEADER = 1000

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
"""Of a zip's member: signature, five fields, checksum, two sizes, lengths of name and extra."""

_ENCRYPTED = 0x1


@dataclass(frozen=True, kw_only=True)
class ArchivedImage:
    """An image in an archive. size: bytes of its file; -1 for pixels, which become one."""

    name: str
    place: tuple[int, ...]
    size: int


def archived_images(path: Path) -> Iterator[ArchivedImage]:
    """Give the images of an archive, in its order.

    Args:
        path: a tar; a zip; or a .npy of (N, H, W, 3) uint8, such as the 300K random images.

    Raises:
        PipelineError: if it is none of them, compressed as a whole, damaged, or holds what misleads
            whoever unpacks it; hidden files are skipped.
        OSError: if it cannot be read.
    """
    with open_regular(path) as file:
        beginning = file.read(len(_NPY_BEGINNING))
    if beginning == _NPY_BEGINNING:
        yield from _of_array(path)
    elif beginning.startswith(_ZIP_BEGINNINGS):
        yield from _of_zip(path)
    else:
        for member in scan_tar(path):
            if is_picture_name(member.name):
                place = (member.offset, member.size)
                yield ArchivedImage(name=member.name, place=place, size=member.size)


def read_archived(path: Path, place: Sequence[int]) -> bytes:
    """Return the bytes of an image's file in an archive; of pixels, a PNG.

    Args:
        path: the archive.
        place: of the image, as `archived_images` gives it.

    Raises:
        BrokenPictureError: if a zip's checksum is of other bytes.
        OSError: if it cannot be read, or the archive was cut off since.
    """
    with open_regular(path) as file:
        if len(place) == 2:
            return _read(file.fileno(), path, *place)
        if len(place) == 3:
            offset, height, width = place
            pixels = _read(file.fileno(), path, offset, 3 * height * width)
            return encode_png(np.frombuffer(pixels, np.uint8).reshape(height, width, 3))
        offset, packed, size, checksum = place
        content = _inflated(_read(file.fileno(), path, offset, packed), size)
        if len(content) != size or zlib.crc32(content) != checksum:
            raise BrokenPictureError("damaged in its zip")
        return content


def _read(descriptor: int, path: Path, offset: int, size: int) -> bytes:
    content = os.pread(descriptor, size, offset)
    if len(content) < size:
        raise OSError(errno.EIO, "it was cut off since it was listed; copy it again", str(path))
    return content


def _inflated(packed: bytes, size: int) -> bytes:
    """Return what deflate packed, of at most size bytes and one more; nothing if it is damaged."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)
    except zlib.error:
        return b""


def _of_array(path: Path) -> Iterator[ArchivedImage]:
    remedy = "name an array as numpy.save writes it, of images, (N, height, width, 3) uint8"
    with open_regular(path) as file:
        content = file.read(_LONGEST_NPY_HEADER)
        n_bytes = os.fstat(file.fileno()).st_size
    header = _NPY_HEADER.match(content)
    if header is None:
        raise PipelineError(f"{path} holds no array of images; {remedy}")
    n, height, width = (int(header[side]) for side in ("n", "height", "width"))
    size = 3 * height * width
    if n * size == 0 or height * width > MOST_PIXELS:
        raise PipelineError(
            f"{path} holds {n} images of {width}x{height}; name an array of images of at most "
            f"{MOST_PIXELS:,} pixels, uint8"
        )
    first = len(header["prefix"]) + int.from_bytes(header["length"] or header["long"], "little")
    if first + n * size != n_bytes:
        raise PipelineError(
            f"{path} has {n_bytes:,} bytes, its header says {first + n * size:,} of uint8; copy it "
            "again"
        )
    for i in range(n):
        yield ArchivedImage(name=f"{i}.png", place=(first + i * size, height, width), size=-1)


def _of_zip(path: Path) -> Iterator[ArchivedImage]:
    damaged = f"{path} is a damaged zip; copy it again"
    found = []
    with open_regular(path) as file:
        n_bytes = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        # What zipfile raises for damaged directories, each seen.
        except (
            zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError,
            OverflowError, OSError,
        ) as error:  # fmt: skip
            raise PipelineError(damaged) from error
        end = 0
        for member in sorted(members, key=lambda member: member.header_offset):
            _check_member(path, member)
            # Members that share their bytes make much of little.
            if member.header_offset < end:
                raise PipelineError(f"{path} has members that overlap, as no zip tool writes them")
            if member.header_offset > n_bytes:
                raise PipelineError(damaged)
            header = os.pread(file.fileno(), _LOCAL_HEADER.size, member.header_offset)
            if len(header) < _LOCAL_HEADER.size or header[:4] != _ZIP_BEGINNINGS[0]:
                raise PipelineError(damaged)
            *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
            offset = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
            end = offset + member.compress_size
            if end > n_bytes:
                raise PipelineError(damaged)
            if is_picture_name(member.filename) and not member.is_dir():
                found.append((offset, member))
    for offset, member in found:
        place: tuple[int, ...] = (offset, member.file_size)
        if member.compress_type != zipfile.ZIP_STORED:
            place = (offset, member.compress_size, member.file_size, member.CRC)
        yield ArchivedImage(name=member.filename, place=place, size=member.file_size)


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    name = member.filename
    if name.startswith("/") or ".." in name.split("/") or "\\" in name:
        raise PipelineError(
            f"{path} holds {name!r}, a name that leads out of its folder; write the zip again"
        )
    if not is_picture_name(name) or member.is_dir():
        return
    unpack = f"unpack it and name the folder: python -m zipfile -e {path} FOLDER"
    if member.flag_bits & _ENCRYPTED:
        raise PipelineError(f"{path}: {name!r} is encrypted; unpack it with its password")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PipelineError(f"{path}: {name!r} is packed in a way that is not read here; {unpack}")
    if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
        raise PipelineError(f"{path} is a damaged zip; copy it again")
    size = max(member.file_size, member.compress_size)
    if size > LARGEST_FILE:
        raise PipelineError(
            f"{path}: {name!r} has {size:,} bytes; at most {LARGEST_FILE:,} are read"
        )
