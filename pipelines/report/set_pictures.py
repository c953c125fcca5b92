"""The pictures of a set that is looked at: of a folder, of shards or of a tar."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.loading.dataset import UnreadableImageError, decode_image
from pipelines.loading.image_map import ImageSource
from pipelines.loading.mixing_set import image_source, is_of_shards
from pipelines.shards.picture_files import picture_files, read_picture


class UnreadableError(PipelineError):
    """A picture of a set that is no whole picture; the others are sound."""


class SetPicture(Protocol):
    """A picture of a set, read when it is asked for."""

    @property
    def name(self) -> str:
        """What to call it: its file, or its place in a tar."""

    def read(self) -> NDArray[np.uint8]:
        """Return its pixels, (H, W, 3) uint8.

        Raises:
            UnreadableError: if it is no whole picture.
            PipelineError: if its set cannot be read.
        """


@dataclass(frozen=True)
class FilePicture:
    """A picture in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.path)

    def read(self) -> NDArray[np.uint8]:
        """Return its pixels.

        Raises:
            UnreadableError: if it is no whole picture.
        """
        try:
            return read_picture(self.path)
        except PipelineError as error:
            raise UnreadableError(str(error)) from error


@dataclass(frozen=True)
class TarPicture:
    """A picture of shards or of a tar."""

    source: ImageSource
    place: int

    @property
    def name(self) -> str:
        """Its key or name, and the tar that it is in."""
        return self.source.name(self.place)

    def read(self) -> NDArray[np.uint8]:
        """Return its pixels.

        Raises:
            UnreadableError: if it is no whole picture.
            PipelineError: if its set cannot be read.
        """
        try:
            return decode_image(self.source.read(self.place))
        except UnreadableImageError as error:
            raise UnreadableError(f"{self.name} is no readable picture ({error})") from error


def set_pictures(where: Path) -> Sequence[SetPicture]:
    """Return the pictures of a set, in its order.

    Args:
        where: a folder of pictures, finished or not, a set of shards, or a tar, zip or .npy of
            pictures.

    Raises:
        PipelineError: if it holds no picture, or is none of these.
        OSError: if it cannot be read.
    """
    if where.is_dir() and not is_of_shards(where):
        return [FilePicture(path) for path in picture_files(where)]
    source = image_source(where)
    # A shard is held to its hash, as whenever one is opened.
    source.check()
    return [TarPicture(source, place) for place in range(len(source))]
