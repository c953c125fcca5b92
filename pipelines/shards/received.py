"""The bytes of a file that is on its way, and whether they are the right ones."""

import errno
import hashlib
import time
from dataclasses import dataclass
from typing import BinaryIO

from pipelines.errors import PipelineError

LEAST_RATE = 1000
"""Bytes a second: slower than that is not taken for progress, as git's http.lowSpeedLimit."""

_CHUNK_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a file has to be.

    sha256, n_bytes: None where not known. most_bytes: more than that is refused; needed where the
    length is not known.
    """

    sha256: str | None = None
    n_bytes: int | None = None
    most_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuse what has no bound."""
        if self.n_bytes is None and self.most_bytes is None:
            raise ValueError("n_bytes and most_bytes are both None; pass one of them")

    @property
    def limit(self) -> int:
        """How many bytes may come."""
        return (self.most_bytes or 0) if self.n_bytes is None else self.n_bytes

    def __str__(self) -> str:
        length = f"at most {self.limit} bytes" if self.n_bytes is None else f"{self.n_bytes} bytes"
        return length if self.sha256 is None else f"{length} with SHA-256 {self.sha256}"


class WrongContentError(Exception):
    """Raised where what came is not what was to come; the message is what was found."""


class Received:
    """What has come of a file: written as it comes, and hashed on the way.

    content: what is to come. position: bytes that are there.
    """

    def __init__(self, file: BinaryIO, content: Content) -> None:
        """Take what the file holds, if that can be it, for the beginning."""
        self.content = content
        self.position = 0
        self._file = file
        self._digest = hashlib.sha256()
        file.seek(0)
        while chunk := file.read(_CHUNK_BYTES):
            self._digest.update(chunk)
            self.position += len(chunk)
        if self.position > content.limit:
            self.restart()
        self._furthest, self._since = self.position, time.monotonic()

    @property
    def whole(self) -> bool:
        """Whether as much is there as has to be, if that is known."""
        return self.position == self.content.n_bytes

    def write(self, piece: bytes) -> None:
        """Add the next bytes.

        Raises:
            WrongContentError: if they are more than may come.
            PipelineError: if the disk is full.
            OSError: if the file cannot be written.
        """
        if self.position + len(piece) > self.content.limit:
            raise WrongContentError(f"more than {self.content.limit} bytes")
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise PipelineError(
                    "the disk of the cache is full; make room, give the cache a smaller limit, or "
                    "set PIXMIX_CACHE to a folder on a larger disk"
                ) from error
            raise PipelineError(f"the cache cannot be written: {error}; see to its disk") from error
        self._digest.update(piece)
        self.position += len(piece)

    def restart(self) -> None:
        """Drop what is there."""
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self.position = 0

    def went_on(self) -> bool:
        """Return whether more came than ever before, and at `LEAST_RATE` or faster.

        Both count from the last time that this was so.
        """
        now = time.monotonic()
        new_bytes = self.position - self._furthest
        if new_bytes <= 0 or new_bytes < LEAST_RATE * (now - self._since):
            return False
        self._furthest, self._since = self.position, now
        return True

    def check(self) -> None:
        """See that what is there is the content.

        Raises:
            WrongContentError: if not.
        """
        found = self._digest.hexdigest()
        if self.content.n_bytes not in {None, self.position} or self.content.sha256 not in {
            None,
            found,
        }:
            raise WrongContentError(f"{self.position} bytes with SHA-256 {found}")
