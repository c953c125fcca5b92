"""The SHA-256 that a checkpoint carries in itself, so that a flipped bit is seen by every reader.

torch writes zip archives without checking them when it reads them. The digest is the archive's
comment, at the very end of the file: torch and other readers of zip pass over it, and it stays
with the file when the file is copied or renamed.

    ... | PK 5 6, 16 bytes | length of the comment: 71 | "sha256=" and 64 hexadecimal digits

It is that of the archive without a comment, whose length is then 0.
"""

import hashlib
from io import SEEK_END, BytesIO
from typing import BinaryIO

_END_OF_ARCHIVE = b"PK\x05\x06"
_PREFIX = b"sha256="
_N_COMMENT = len(_PREFIX) + 64
_LENGTH = _N_COMMENT.to_bytes(2, "little")
_NO_COMMENT = b"\x00\x00"
_N_END = 22 + _N_COMMENT
_PIECE = 1 << 20


def with_digest(archive: bytes) -> bytes:
    """Return an archive of `torch.save` with its SHA-256 as the comment.

    Raises:
        ValueError: if it is not an archive, or has a comment.
    """
    if archive[-22:-18] != _END_OF_ARCHIVE or archive[-2:] != _NO_COMMENT:
        raise ValueError(f"{len(archive)} bytes that are not an archive without a comment")
    digest = hashlib.sha256(archive).hexdigest()
    return archive[:-2] + _LENGTH + _PREFIX + digest.encode()


def matches_digest(file: BinaryIO | bytes) -> bool | None:
    """Return whether a file is as it was written; None if it carries no digest.

    Any single flipped bit gives False, also one in the digest itself.

    Args:
        file: the content, or a seekable file, whose position is at its end afterwards.

    Raises:
        OSError: if it cannot be read.
    """
    if isinstance(file, bytes):
        file = BytesIO(file)
    n = file.seek(0, SEEK_END)
    if n < _N_END:
        return None
    file.seek(n - _N_END)
    end = file.read(_N_END)
    marks = end[:4] == _END_OF_ARCHIVE, end[20:22] == _LENGTH, end[22:29] == _PREFIX
    if sum(marks) < 2:  # One may be damaged.
        return None
    file.seek(0)
    found = hashlib.sha256()
    left = n - _N_COMMENT - 2
    while left > 0 and (piece := file.read(min(left, _PIECE))):
        found.update(piece)
        left -= len(piece)
    found.update(_NO_COMMENT)
    return all(marks) and end[29:] == found.hexdigest().encode()
