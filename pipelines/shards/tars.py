"""Tars whose bytes depend on their content alone, and a strict reading of tars made elsewhere.

Written are plain USTAR members with mode, owner and time fixed, which every reader takes. Read are
headers only, and nothing is ever unpacked, so that no name can lead anywhere; a name, link or
device that is there to mislead an unpacker is refused all the same, as is a tar that is cut off at
any place, which the usual readers accept in silence when the cut lies between two members.
"""

import os
import re
import shlex
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipelines.errors import PipelineError
from pipelines.system.files import open_regular

BLOCK = 512
RECORD = 20 * BLOCK
"""Bytes. A tar is filled up to a multiple of the second: POSIX.1-1988 (pax), as GNU tar does."""

LONGEST_NAME = 100
"""Bytes of a member's name, the first name field of a header: older readers know no other."""

LARGEST_MEMBER = 2**32 - 1
"""Bytes: an index has 32 bits for it, and no picture is larger."""

_LONGEST_EXTENSION_HEADER = 2**20

_LONGEST_SIZE = 20
"""Digits of a size in a pax header; Python refuses to read some thousands."""

_COMPRESSIONS = {
    b"\x1f\x8b": "gunzip -k",
    b"BZh": "bunzip2 -k",
    b"\xfd7zXZ": "unxz -k",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
"""How a compressed file begins, and what decompresses it and keeps it."""

_UNSAFE = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


class NoTarError(PipelineError):
    """A file that does not begin as a tar does."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar. offset, size: of its bytes in the tar."""

    name: str
    offset: int
    size: int


def write_member(file: BinaryIO, name: str, content: bytes) -> int:
    """Append a file to a tar that is being written.

    Args:
        file: where; its position is a multiple of 512.
        name: at most 100 bytes of ASCII.
        content: the file.

    Returns:
        The offset of the content in the tar.

    Raises:
        ValueError: if the name is too long or the content larger than 4 GiB.
        OSError: if the disk is full.
    """
    if not (name.isascii() and 0 < len(name) <= LONGEST_NAME):
        raise ValueError(f"{name!r} is no name of at most {LONGEST_NAME} ASCII letters")
    if len(content) > LARGEST_MEMBER:
        raise ValueError(f"{name} has {len(content)} bytes; a member has at most {LARGEST_MEMBER}")
    header = tarfile.TarInfo(name)
    header.size = len(content)
    header.mode = 0o444
    file.write(header.tobuf(tarfile.USTAR_FORMAT))
    offset = file.tell()
    file.write(content)
    file.write(bytes(-len(content) % BLOCK))
    return offset


def end_tar(file: BinaryIO) -> None:
    """Write the end of a tar: two empty blocks, and empty ones up to a whole record.

    Raises:
        OSError: if the disk is full.
    """
    file.write(bytes(2 * BLOCK))
    file.write(bytes(-file.tell() % RECORD))


def scan_tar(path: Path) -> Iterator[Member]:
    """Give the files of a tar in order, from its headers alone.

    Args:
        path: a tar of any dialect (USTAR, GNU, pax, V7), not compressed.

    Raises:
        NoTarError: if the file does not begin as a tar does.
        PipelineError: if it is damaged: cut off anywhere, even between two members
            or in the empty blocks at its end; with a header whose checksum is wrong; with anything
            after its end; or if it holds a link, a device, or a name that leads out of a folder.
        OSError: if it cannot be read.
    """
    try:
        file = open_regular(path)
    except OSError as error:
        raise PipelineError(f"{path} cannot be read ({error.strerror}); name a tar") from error
    with file:
        beginning = file.read(6)
        for magic, program in _COMPRESSIONS.items():
            if beginning.startswith(magic):
                raise PipelineError(
                    f"{path} is compressed; run {program} {shlex.quote(str(path))} and name the "
                    "tar that it writes"
                )
        descriptor = file.fileno()
        yield from _Reader(
            path,
            lambda position, size: os.pread(descriptor, size, position),
            os.fstat(descriptor).st_size,
        ).members()


def scan_tar_in_memory(path: Path, content: memoryview) -> Iterator[Member]:
    """Give the files of a tar that was decompressed to memory; see `scan_tar`.

    Args:
        path: of the compressed file, for the errors.
        content: the tar.
    """
    yield from _Reader(
        path, lambda position, size: bytes(content[position : position + size]), len(content)
    ).members()


class _Reader:
    """Walks over the headers of one tar.

    path: of the tar, for the errors; read_at: returns the bytes at (position, size), fewer at the
    end; n_bytes: of the tar.
    """

    def __init__(self, path: Path, read_at: Callable[[int, int], bytes], n_bytes: int) -> None:
        self.path = path
        self.read_at = read_at
        self.n_bytes = n_bytes

    def members(self) -> Iterator[Member]:
        position = 0
        if self.n_bytes < BLOCK:
            raise self.no_tar()
        # From headers that extend the next one: GNU's long names, and those of pax.
        name: str | None = None
        size: int | None = None
        while (block := self.read(position, BLOCK)) != bytes(BLOCK):
            header = self.header(block, position)
            extends = header.type in {
                tarfile.GNUTYPE_LONGNAME,
                tarfile.GNUTYPE_LONGLINK,
                tarfile.XHDTYPE,
                tarfile.SOLARIS_XHDTYPE,
                tarfile.XGLTYPE,
            }
            content = position + BLOCK
            length = header.size if size is None or extends else size
            position = content + length + -length % BLOCK
            if position > self.n_bytes:
                raise self.cut_off(f"in {name or header.name!r}")
            if not extends:
                if header.type != tarfile.DIRTYPE:
                    yield self.member(header, name or header.name, content, length)
                name = size = None
            elif header.type == tarfile.GNUTYPE_LONGNAME:
                name = self.text(self.extension(content, length).rstrip(b"\0"))
            elif header.type != tarfile.GNUTYPE_LONGLINK:
                path, length_ = self.pax(self.extension(content, length))
                if header.type == tarfile.XGLTYPE and (path, length_) != (None, None):
                    raise self.refusal("gives one name or size to all its files")
                name, size = path or name, length_ if length_ is not None else size
        if name is not None or size is not None:
            raise self.cut_off("after a header that extends another")
        self.check_end(position)

    def header(self, block: bytes, position: int) -> tarfile.TarInfo:
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
        except tarfile.HeaderError as error:
            if position == 0 and block[257:262] != b"ustar":
                raise self.no_tar() from error
            raise self.refusal(
                f"has no valid header at byte {position} ({error})",
                "copy it again, or name a tar, uncompressed",
            ) from error
        if header.size < 0:
            raise self.refusal(f"has a header at byte {position} with a size of {header.size}")
        return header

    def member(self, header: tarfile.TarInfo, name: str, offset: int, size: int) -> Member:
        if header.type in _UNSAFE or not header.isreg():
            what = _UNSAFE.get(header.type, f"of type {header.type!r}")
            raise self.refusal(f"holds {name!r}, which is {what} and no plain file")
        if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
            raise self.refusal(f"holds {name!r}, a name that leads out of its folder")
        if size > LARGEST_MEMBER:
            raise self.refusal(f"holds {name!r} of {size} bytes; at most {LARGEST_MEMBER} are read")
        return Member(name, offset, size)

    def extension(self, offset: int, size: int) -> bytes:
        if size > _LONGEST_EXTENSION_HEADER:
            raise self.refusal(f"has a header of {size} bytes at byte {offset}")
        return self.read(offset, size)

    def pax(self, content: bytes) -> tuple[str | None, int | None]:
        """Return name and size from the records of a pax header: "LENGTH KEY=VALUE", newline."""
        name: str | None = None
        size: int | None = None
        position = 0
        while position < len(content):
            match = re.compile(rb"(\d{1,7}) ([^=]+)=").match(content, position)
            end = position + int(match[1]) if match else 0
            if (
                not match
                or not match.end() < end <= len(content)
                or content[end - 1 : end] != b"\n"
            ):
                raise self.refusal("has a pax header that is no list of records")
            value = content[match.end() : end - 1]
            if match[2].startswith(b"GNU.sparse"):
                raise self.refusal("holds a sparse file, which is no plain file")
            if match[2] == b"path":
                name = self.text(value)
            elif match[2] == b"size":
                if not value.isdigit() or len(value) > _LONGEST_SIZE:
                    raise self.refusal(f"has a pax header with a size of {value[:30]!r}")
                size = int(value)
            position = end
        return name, size

    def check_end(self, position: int) -> None:
        """See that the tar ends with two empty blocks, and that nothing follows them."""
        if position + 2 * BLOCK > self.n_bytes:
            raise self.cut_off("in the empty blocks at its end")
        while position < self.n_bytes:
            content = self.read(position, min(2**20, self.n_bytes - position))
            if content.count(0) != len(content):
                raise self.refusal(
                    f"goes on after its end at byte {position}, as tars that were joined with cat "
                    "do",
                    "name the tars one by one, or write it again",
                )
            position += len(content)

    def read(self, position: int, size: int) -> bytes:
        content = self.read_at(position, size)
        if len(content) < size:
            raise self.cut_off(f"at byte {position + len(content)}")
        return content

    def text(self, content: bytes) -> str:
        return content.decode("utf-8", "backslashreplace")

    def no_tar(self) -> NoTarError:
        return NoTarError(
            f"{self.path} is no tar; name a folder of pictures, shards, or a tar, zip or .npy of "
            "pictures"
        )

    def cut_off(self, where: str) -> PipelineError:
        return PipelineError(f"{self.path} is cut off {where}; copy it again, or make it again")

    def refusal(
        self, fault: str, remedy: str = "write the tar again, of plain files"
    ) -> PipelineError:
        return PipelineError(f"{self.path} {fault}; {remedy}")
