"""Pictures that are asked for by number, from arrays, files and shards, a batch at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.evaluation.trees import Notices, list_images
from pipelines.loading.dataset import SampleError, ShardDataset, UnreadableImageError, decode_image
from pipelines.shards.index import ShardSet
from pipelines.shards.picture_files import read_image_file
from pipelines.shards.sources import Source, printable
from pipelines.system.processes import available_cores
from pixmix.resizing import resized_centre


class Pictures(Protocol):
    """Pictures of one size."""

    @property
    def ahead(self) -> int:
        """Batches that are worth reading before they are asked for."""
        ...

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def read(self, numbers: Sequence[int]) -> NDArray[np.generic]:
        """Return some of them, (n, H, W, 3) uint8 or float32 in 0..1."""
        ...


@dataclass(frozen=True)
class View:
    """How pictures of any size become the network's squares: the centre of each, resized before.

    side: of the square, pixels. resize: the shorter side before the centre is cut out, or None to
    cut it out of the picture as it is.
    """

    side: int
    resize: int | None

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return (side, side, 3) uint8 of (H, W, 3).

        Raises:
            ValueError: if the picture is smaller than its centre should be.
        """
        shorter = min(picture.shape[:2])
        if self.resize is None and shorter < self.side:
            raise ValueError(
                f"{picture.shape[1]}x{picture.shape[0]} pixels, of which the middle "
                f"{self.side}x{self.side} should be taken"
            )
        return resized_centre(picture, self.resize or shorter, (self.side, self.side))

    def as_it_is(self) -> "View":
        """Return the view of pictures that have been resized before, as ImageNet-C's."""
        return View(self.side, None)


@dataclass(frozen=True)
class Stored:
    """Pictures of an array, (n, H, W, 3), which may be memory-mapped: no more is read of it."""

    array: NDArray[np.generic]
    ahead: int = 0

    def __len__(self) -> int:
        return len(self.array)

    def read(self, numbers: Sequence[int]) -> NDArray[np.generic]:
        """Return some of them."""
        if isinstance(numbers, range):
            return self.array[numbers.start : numbers.stop : numbers.step]
        return self.array[np.asarray(numbers, np.int64)]


@dataclass(frozen=True)
class Drawn:
    """Pictures each of which is drawn from its own number. draw: gives that of a number."""

    n: int
    draw: Callable[[int], NDArray[np.generic]]
    ahead: int = 1

    def __len__(self) -> int:
        return self.n

    def read(self, numbers: Sequence[int]) -> NDArray[np.generic]:
        """Return some of them."""
        return np.stack([self.draw(number) for number in numbers])


@dataclass(frozen=True)
class Chosen:
    """Some of other pictures. numbers: (n,), those of the chosen ones."""

    pictures: Pictures
    numbers: NDArray[np.int64]

    @property
    def ahead(self) -> int:
        """As the others."""
        return self.pictures.ahead

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, numbers: Sequence[int]) -> NDArray[np.generic]:
        """Return some of them."""
        return self.pictures.read([int(self.numbers[number]) for number in numbers])


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Pictures of files, decoded by several threads when they are asked for.

    n: how many; content: gives the bytes of one; name: gives what to call it in an error.
    remedy: what to do about one that cannot be read, for the end of the error.
    """

    n: int
    content: Callable[[int], bytes | bytearray]
    name: Callable[[int], str]
    view: View
    remedy: str = "replace it with a whole file, or remove it"
    ahead: int = 1

    def __len__(self) -> int:
        return self.n

    def read(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Return some of them.

        Raises:
            PipelineError: if one cannot be read.
        """
        side = self.view.side
        out = np.empty((len(numbers), side, side, 3), np.uint8)

        def fill(row: int) -> None:
            number = numbers[row]
            try:
                out[row] = self.view(decode_image(self.content(number)))
            except SampleError as error:
                raise PipelineError(f"{error}; run pixmix-shard verify") from error
            except OSError as error:
                raise PipelineError(
                    f"{self.name(number)} cannot be read: {error.strerror or error}; {self.remedy}"
                ) from error
            except (UnreadableImageError, ValueError) as error:
                raise PipelineError(
                    f"{self.name(number)} cannot be evaluated: {error}; {self.remedy}"
                ) from error

        with ThreadPoolExecutor(available_cores()) as pool:
            for _ in pool.map(fill, range(len(numbers))):
                pass
        return out


def of_shards(shards: ShardSet, view: View) -> Decoded:
    """Return the pictures of a set of shards, in its order."""
    reader = ShardDataset(shards)
    return Decoded(n=len(shards), content=reader.read, name=shards.key, view=view)


def of_files(files: Sequence[Path], view: View, *, remedy: str = Decoded.remedy) -> Decoded:
    """Return images of files, in their order.

    remedy: what to do about one that cannot be read, for the end of the error.
    """
    return Decoded(
        n=len(files),
        content=lambda number: read_image_file(files[number]),
        name=lambda number: printable(str(files[number])),
        view=view,
        remedy=remedy,
    )


def of_folder(folder: Path, view: View, notices: Notices | None = None) -> Decoded:
    """Return the images of a folder and the folders in it; notices are told of what was ignored.

    Raises:
        PipelineError: if there is none.
        OSError: if a folder cannot be read.
    """
    return of_files(list_images(folder, notices or Notices()), view)


def of_source(source: Source, view: View) -> Decoded:
    """Return the images of what shards could be made of.

    Raises:
        PipelineError: if there is none.
    """
    items = [(item.place, item.name) for item in source.items()]
    return Decoded(
        n=len(items),
        content=lambda number: source.read(items[number][0]),
        name=lambda number: items[number][1],
        view=view,
    )
