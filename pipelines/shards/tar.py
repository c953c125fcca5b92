"""Write tars whose bytes depend on their content alone, and read tars strictly.

The writer writes plain USTAR members with fixed mode, owner and time, which every reader supports.
The reader reads headers only and unpacks nothing. It still rejects links, devices and names that
would mislead an unpacker, and a tar that is cut off anywhere: other readers silently accept a tar
that is cut off between two members.

By webdataset's rule, consecutive members with the same key are a sample; the key is the path up to
the first dot of its base name. A tar is rejected if this rule would split a sample or join two.
"""

import json
import os
import re
import shlex
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.shards.format import BLOCK, SAMPLE, key_of
from pipelines.shards.images import IMAGE_EXTENSIONS, is_ignored_name
from pipelines.system.files import open_regular

RECORD = 20 * BLOCK
"""A tar is padded to a multiple of this size: POSIX.1-1988 (pax), as GNU tar does."""

MAX_NAME_BYTES = 100
"""Size of the first name field of a header; older readers support no other."""

MAX_MEMBER_BYTES = 2**32 - 1
"""The index has 32 bits for the size of an image."""

TAR_IMAGE_EXTENSIONS = frozenset({*IMAGE_EXTENSIONS, "gif"})

_EXECUTABLE_EXTENSIONS = frozenset({"pkl", "pickle", "pyd", "pth", "pt", "joblib", "dill"})
"""Members that other readers may run as code when they decode a sample; they are never read."""

_MAX_LABEL_BYTES = 2**20
_MAX_LABEL = 2**31 - 1

_MAX_EXTENSION_HEADER_BYTES = 2**20

_MAX_SIZE_DIGITS = 20
"""Digits of a size in a pax header; Python rejects thousands of digits."""

_COMPRESSIONS = {
    b"\x1f\x8b": "gunzip -k",
    b"BZh": "bunzip2 -k",
    b"\xfd7zXZ": "unxz -k",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
"""First bytes of a compressed file -> command that decompresses it."""

_UNSAFE = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


class NotATarError(PipelineError):
    """Raised for a file that does not begin with a tar header."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar, with the offset and size of its content in bytes."""

    name: str
    offset: int
    size: int


def write_member(file: BinaryIO, name: str, content: bytes) -> int:
    """Append a member to a tar.

    Args:
        file: the tar, whose position is a multiple of 512.
        name: name of the member, at most 100 bytes of ASCII.
        content: content of the member.

    Returns:
        The offset of the content in the tar.

    Raises:
        ValueError: if the name is too long or the content larger than 4 GiB.
        OSError: if the disk is full.
    """
    if not (name.isascii() and 0 < len(name) <= MAX_NAME_BYTES):
        raise ValueError(f"the name {name!r} is not 1 to {MAX_NAME_BYTES} ASCII characters")
    if len(content) > MAX_MEMBER_BYTES:
        raise ValueError(
            f"{name} has {len(content)} bytes; a member has at most {MAX_MEMBER_BYTES}"
        )
    header = tarfile.TarInfo(name)
    header.size = len(content)
    header.mode = 0o444
    file.write(header.tobuf(tarfile.USTAR_FORMAT))
    offset = file.tell()
    file.write(content)
    file.write(bytes(-len(content) % BLOCK))
    return offset


def end_tar(file: BinaryIO) -> None:
    """Write the end of a tar: two empty blocks, and more up to a multiple of `RECORD`.

    Raises:
        OSError: if the disk is full.
    """
    file.write(bytes(2 * BLOCK))
    file.write(bytes(-file.tell() % RECORD))


def scan_tar(path: Path) -> Iterator[Member]:
    """Yield the files of a tar in order, from its headers alone.

    Args:
        path: an uncompressed tar in any format (USTAR, GNU, pax, V7).

    Raises:
        NotATarError: if the file does not begin with a tar header.
        PipelineError: if the tar is cut off, even between two members or in the empty blocks at its
            end; if a checksum is wrong; if data follows its end; or if it holds a link, a device,
            or a name that leads out of a folder.
        OSError: if it cannot be read.
    """
    try:
        file = open_regular(path)
    except OSError as error:
        raise PipelineError(f"{path} cannot be read ({error.strerror}); use a tar") from error
    with file:
        beginning = file.read(6)
        for magic, program in _COMPRESSIONS.items():
            if beginning.startswith(magic):
                raise PipelineError(
                    f"{path} is compressed; run {program} {shlex.quote(str(path))} and use the "
                    "tar that it writes"
                )
        descriptor = file.fileno()
        yield from _Reader(
            path,
            lambda position, size: os.pread(descriptor, size, position),
            os.fstat(descriptor).st_size,
        ).members()


def scan_tar_in_memory(path: Path, content: memoryview) -> Iterator[Member]:
    """Yield the files of a tar in memory; see `scan_tar`.

    Args:
        path: path of the compressed file, for errors.
        content: content of the tar.
    """
    yield from _Reader(
        path, lambda position, size: bytes(content[position : position + size]), len(content)
    ).members()


class _Reader:
    """Reads the headers of a tar.

    Args:
        path: path of the tar, for errors.
        read_at: returns `size` bytes at `position`, fewer at the end of the tar.
        n_bytes: size of the tar.
    """

    def __init__(self, path: Path, read_at: Callable[[int, int], bytes], n_bytes: int) -> None:
        self.path = path
        self.read_at = read_at
        self.n_bytes = n_bytes

    def members(self) -> Iterator[Member]:
        position = 0
        if self.n_bytes < BLOCK:
            raise self.not_a_tar()
        # Set by headers that extend the next one: GNU's long names, and pax headers.
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
                    raise self.refusal("sets one name or size for all its files")
                name, size = path or name, length_ if length_ is not None else size
        if name is not None or size is not None:
            raise self.cut_off("after a header that extends another")
        self.check_end(position)

    def header(self, block: bytes, position: int) -> tarfile.TarInfo:
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
        except tarfile.HeaderError as error:
            if position == 0 and block[257:262] != b"ustar":
                raise self.not_a_tar() from error
            raise self.refusal(
                f"has no valid header at byte {position} ({error})",
                "copy it again, or use an uncompressed tar",
            ) from error
        if header.size < 0:
            raise self.refusal(f"has a header at byte {position} with a size of {header.size}")
        return header

    def member(self, header: tarfile.TarInfo, name: str, offset: int, size: int) -> Member:
        if header.type in _UNSAFE or not header.isreg():
            what = _UNSAFE.get(header.type, f"of type {header.type!r}")
            raise self.refusal(f"holds {name!r}, which is {what} and not a regular file")
        if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
            raise self.refusal(f"holds {name!r}, a name that leads out of its folder")
        if size > MAX_MEMBER_BYTES:
            raise self.refusal(f"holds {name!r} of {size} bytes; the maximum is {MAX_MEMBER_BYTES}")
        return Member(name, offset, size)

    def extension(self, offset: int, size: int) -> bytes:
        if size > _MAX_EXTENSION_HEADER_BYTES:
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
                raise self.refusal("has a damaged pax header")
            value = content[match.end() : end - 1]
            if match[2].startswith(b"GNU.sparse"):
                raise self.refusal("holds a sparse file, which is not a regular file")
            if match[2] == b"path":
                name = self.text(value)
            elif match[2] == b"size":
                if not value.isdigit() or len(value) > _MAX_SIZE_DIGITS:
                    raise self.refusal(f"has a pax header with a size of {value[:30]!r}")
                size = int(value)
            position = end
        return name, size

    def check_end(self, position: int) -> None:
        """Check that the tar ends with two empty blocks, and that nothing follows them."""
        if position + 2 * BLOCK > self.n_bytes:
            raise self.cut_off("in the empty blocks at its end")
        while position < self.n_bytes:
            content = self.read(position, min(2**20, self.n_bytes - position))
            if content.count(0) != len(content):
                raise self.refusal(
                    f"has data after its end at byte {position}, as tars that were joined with cat",
                    "use the tars one by one, or write it again",
                )
            position += len(content)

    def read(self, position: int, size: int) -> bytes:
        content = self.read_at(position, size)
        if len(content) < size:
            raise self.cut_off(f"at byte {position + len(content)}")
        return content

    def text(self, content: bytes) -> str:
        return content.decode("utf-8", "backslashreplace")

    def not_a_tar(self) -> NotATarError:
        return NotATarError(
            f"{self.path} is not a tar; use a folder of images, shards, or a tar, zip or .npy of "
            "images"
        )

    def cut_off(self, where: str) -> PipelineError:
        return PipelineError(f"{self.path} is cut off {where}; copy it again, or make it again")

    def refusal(
        self, fault: str, remedy: str = "write the tar again with regular files only"
    ) -> PipelineError:
        return PipelineError(f"{self.path} {fault}; {remedy}")


@dataclass(frozen=True)
class TarSample:
    """A sample of a tar. members: suffix, lower-case and without the first dot -> member."""

    key: str
    members: dict[str, Member]


@dataclass
class Ignored:
    """Members of tars that are in no sample or never read: number and an example, by reason."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def note(self, reason: str, name: str) -> None:
        """Count an ignored member."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.examples.setdefault(reason, name)


def samples_of_tar(
    path: Path, number: int, ignored: Ignored
) -> tuple[NDArray[np.void], frozenset[str]]:
    """Return the samples of a tar, from its headers and labels.

    Args:
        path: the tar.
        number: number of the shard in its dataset.
        ignored: counts members of no sample, and samples without an image.

    Returns:
        (n,) SAMPLE, and the suffixes of the images.

    Raises:
        PipelineError: if the tar is damaged, or its samples are ambiguous.
        OSError: if it cannot be read.
    """
    rows = []
    suffixes = set()
    with open_regular(path) as file:
        for sample in group_members(path, scan_tar(path), ignored):
            suffix = _image_suffix(path, sample)
            if suffix is None:
                ignored.note("ignored, because the sample has no image", sample.key)
                continue
            image = sample.members[suffix]
            if image.size == 0:
                ignored.note("ignored, because the image is empty", sample.key)
                continue
            label = _label_of(path, file.fileno(), sample, suffix)
            rows.append((number, image.size, image.offset, label))
            suffixes.add(suffix)
    return np.array(rows, SAMPLE), frozenset(suffixes)


def group_members(path: Path, members: Iterable[Member], ignored: Ignored) -> Iterator[TarSample]:
    """Yield the samples of a tar.

    Args:
        path: path of the tar, for errors.
        members: the members in order.
        ignored: counts members that are in no sample, or never read.

    Raises:
        PipelineError: if a name is repeated in a sample, or the members of a sample are not
            consecutive.
    """
    seen: set[str] = set()
    for key, run in groupby(
        _sample_members(members, ignored), key=lambda member: key_of(member.name)
    ):
        if key in seen:
            raise PipelineError(
                f"{path}: the members of sample {key!r} are not consecutive, so readers split the "
                "sample; write the tar again, sorted by name"
            )
        seen.add(key)
        by_suffix: dict[str, Member] = {}
        for member in run:
            suffix = member.name.rpartition("/")[2].partition(".")[2].lower()
            if suffix in by_suffix:
                raise PipelineError(f"{path} holds {member.name!r} twice; write the tar again")
            if suffix.rpartition(".")[2] in _EXECUTABLE_EXTENSIONS:
                ignored.note("never read, because they could run code", member.name)
            by_suffix[suffix] = member
        yield TarSample(key, by_suffix)


def _sample_members(members: Iterable[Member], ignored: Ignored) -> Iterator[Member]:
    for member in members:
        base = member.name.rpartition("/")[2]
        # webdataset ignores hidden files, names without a dot, and its own "__meta__" entries.
        # System files of file managers and archivers are ignored, too.
        if any(is_ignored_name(part) for part in member.name.split("/") if part != "."):
            ignored.note("ignored, because the file or its folder is hidden", member.name)
        elif "." not in base:
            ignored.note("ignored, because the name has no extension", member.name)
        elif re.match(r"__[^/]*__($|/)", member.name):
            ignored.note("ignored, because they are metadata of the tar", member.name)
        else:
            yield member


def _image_suffix(path: Path, sample: TarSample) -> str | None:
    """Return the suffix of a sample's image, None if it has no image.

    It is the suffix that is an image extension, or else the suffix that ends in one, as in
    "a.v1.jpg".

    Raises:
        PipelineError: if there are several.
    """
    for pattern in (r"[^.]+", r".+\.[^.]+"):
        found = [
            suffix
            for suffix in sample.members
            if re.fullmatch(pattern, suffix) and suffix.rpartition(".")[2] in TAR_IMAGE_EXTENSIONS
        ]
        if len(found) > 1:
            names = " and ".join(sample.members[suffix].name for suffix in found[:2])
            raise PipelineError(
                f"{path}: {names} are in one sample, {sample.key!r}, because a key ends at the "
                "first dot; write the tar again with keys without dots and one image per key"
            )
        if found:
            return found[0]
    return None


def _label_of(path: Path, descriptor: int, sample: TarSample, suffix: str) -> int:
    """Return the label of a sample, or -1.

    It is read from the first of: .cls; "label" or "cls" in .json; .txt if it is a number. Beside an
    image "a.v1.jpg" these may be named "a.v1.cls" and so on.

    Args:
        path: path of the tar, for errors.
        descriptor: file descriptor of the tar.
        sample: the sample.
        suffix: suffix of its image.

    Raises:
        PipelineError: if .cls is not a number, or .json is not JSON.
    """
    stem = suffix.rpartition(".")[0]
    for extension, read in (("cls", _cls_label), ("json", _json_label), ("txt", _text_label)):
        suffixes = [f"{stem}.{extension}", extension] if stem else [extension]
        member = next((sample.members[s] for s in suffixes if s in sample.members), None)
        if member is None:
            continue
        if member.size > _MAX_LABEL_BYTES:
            raise PipelineError(
                f"{path}: {member.name!r} has {member.size} bytes, too many for a label; the "
                f"maximum is {_MAX_LABEL_BYTES}"
            )
        try:
            label = read(os.pread(descriptor, member.size, member.offset))
        # Deeply nested JSON raises RecursionError.
        except (ValueError, RecursionError) as error:
            raise PipelineError(f"{path}: {member.name!r} is not a label ({error})") from error
        if label is not None:
            if not 0 <= label <= _MAX_LABEL:
                raise PipelineError(
                    f"{path}: {member.name!r} has label {label}; use labels 0 to {_MAX_LABEL}"
                )
            return label
    return -1


def _cls_label(content: bytes) -> int:
    return int(content.decode())


def _json_label(content: bytes) -> int | None:
    document = json.loads(content)
    if isinstance(document, dict):
        for name in ("label", "cls"):
            value = document.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def _text_label(content: bytes) -> int | None:
    match = re.fullmatch(rb"\s*(\d{1,10})\s*", content)
    return int(match[1]) if match else None
