"""A batch of samples read from shards, decoded, cropped and mixed: what a loader's worker does."""

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from pipelines.errors import PipelineError
from pipelines.loading.decode import UnreadablePictureError, decode_picture
from pipelines.loading.order import EpochOrder, places_after
from pipelines.loading.preparation import Preparation
from pipelines.loading.transport import (
    check_open_files,
    most_open_shards,
    shared_tensor,
    to_send,
    too_many_files,
)  # fmt: skip
from pipelines.shards.format import SAMPLE, ShardSet, read_key
from pixmix.draws import draw_resized_crop
from pixmix.fused import mix_batch
from pixmix.packed import PackedPictures, map_name
from pixmix.resizing import resize_part, resized_centre

Policy = Literal["raise", "substitute", "skip"]
POLICIES: tuple[Policy, ...] = ("raise", "substitute", "skip")

_NO_SAMPLES = np.empty(0, SAMPLE)
_TRIES = 3
"""So often a shard is opened that is removed between its naming and its opening."""


@dataclass(frozen=True, kw_only=True)
class BadSample:
    """A sample that could not be read. reason: a word or two to count it by."""

    index: int
    shard: str
    key: str
    reason: str
    message: str

    def __str__(self) -> str:
        """Return it as a line."""
        return f"sample {self.index}, key {self.key} in {self.shard}: {self.message}"


class BadSampleError(Exception):
    """Raised inside this module for a sample that cannot be read."""

    def __init__(self, bad: BadSample) -> None:
        super().__init__(str(bad))
        self.bad = bad


class ShardReader:
    """Reads samples of a set of shards, in any thread; each process opens them for itself.

    shards: the set.
    path_of: gives a shard as a local file, whose content is what the manifest says; it may
        download it. None takes local shards as they are.
    """

    def __init__(self, shards: ShardSet, path_of: Callable[[int], Path] | None = None) -> None:
        self.shards = shards
        self._path_of = path_of
        self._open: OrderedDict[int, int] = OrderedDict()
        self._most_open: int | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is open, for a descriptor belongs to a process, and a mapped index."""
        name = map_name(self.shards.samples)
        shards = self.shards if name is None else replace(self.shards, samples=_NO_SAMPLES)
        return {"shards": shards, "index": name, "_path_of": self._path_of}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the index again."""
        name = state["index"]
        self.shards = state["shards"]
        if name is not None:
            self.shards = replace(self.shards, samples=name.open("r"))
        self._path_of = state["_path_of"]
        self._open = OrderedDict()
        self._most_open = None
        self._lock = threading.Lock()

    def read(self, i: int) -> bytearray:
        """Return the bytes of a sample's picture.

        Raises:
            BadSampleError: if its shard cannot be read or ends before it.
        """
        sample = self.shards.samples[i]
        size = int(sample["size"])
        content = bytearray(size)
        try:
            # Held while it is read, or another thread may close the shard meanwhile.
            with self._lock:
                descriptor = self._descriptor(int(sample["shard"]))
                there = os.preadv(descriptor, [content], int(sample["offset"]))
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                raise PipelineError(too_many_files()) from error
            raise BadSampleError(self.bad(i, "unreadable shard", str(error))) from error
        if there != size:
            raise BadSampleError(
                self.bad(i, "short shard", f"{size - there} of {size} bytes are missing")
            )
        return content

    def bad(self, i: int, reason: str, message: str) -> BadSample:
        """Return what is to be said of a sample that cannot be used."""
        row = self.shards.samples[i]
        shard = int(row["shard"])
        return BadSample(
            index=i,
            shard=self.shards.shards[shard].file,
            key=self.key(i),
            reason=reason,
            message=message,
        )

    def key(self, i: int) -> str:
        """Return a sample's key as its tar has it."""
        row = self.shards.samples[i]
        return read_key(self._path(int(row["shard"])), int(row["offset"]))

    def _path(self, shard: int) -> Path:
        return (self._path_of or self.shards.path)(shard)

    def close(self) -> None:
        """Close the shards."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            if self._most_open is None:
                self._most_open = most_open_shards()
            while len(self._open) >= self._most_open:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = self._opened(shard)
        return self._open[shard]

    def _opened(self, shard: int) -> int:
        for attempt in range(_TRIES):
            try:
                return os.open(self._path(shard), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                # One of the cache, which is emptied at this moment, comes again.
                if self._path_of is None or attempt == _TRIES - 1:
                    raise
            except OSError as error:
                if error.errno != errno.EMFILE or not self._open:
                    raise
                # Others opened more than was reckoned with.
                self._most_open = max(1, len(self._open) // 2)
                while len(self._open) >= self._most_open:
                    os.close(self._open.popitem(last=False)[1])
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Request(NamedTuple):
    """A batch that a worker is asked for. places: of its samples in the epoch's order."""

    epoch: int
    places: NDArray[np.int64]
    indices: NDArray[np.int64]


class Requests:
    """The requests of an epoch, made when they are iterated: a list of them would be large.

    make: gives those from one on, from 0.
    ends: (shards,) int64, places from which on no request needs a shard; None where that shows at
        the end alone.
    """

    def __init__(
        self,
        make: Callable[[int], Iterator[Request]],
        ends: NDArray[np.int64] | None = None,
    ) -> None:
        self.make, self.ends = make, ends

    def __iter__(self) -> Iterator[Request]:
        return self.make(0)


class Prepared(NamedTuple):
    """A batch as a worker hands it on.

    images: (n, 3, H, W), or (n, views, 3, H, W); labels: (n,) int64; present: (n,) bool, which
    rows hold a sample. bad: what could not be read. fault: why there is no batch, or None.
    """

    images: Tensor
    labels: Tensor
    present: NDArray[np.bool_]
    bad: tuple[BadSample, ...]
    fault: str | None = None


def _faulty(fault: str) -> Prepared:
    return Prepared(torch.empty(0), torch.empty(0), np.empty(0, np.bool_), (), fault=fault)


@dataclass(kw_only=True)
class PictureDataset(Dataset[Prepared]):
    """Batches of a set of pictures of any sizes: a map-style dataset for `DataLoader`.

    training: random parts, flips and PixMix; or else the centre of each picture.
    through_pipe: whether workers hand batches over without shared memory.
    """

    reader: ShardReader
    preparation: Preparation
    mixing_set: PackedPictures | None
    seed: int
    training: bool
    policy: Policy
    views: int | None = None
    n_threads: int = 1
    window: int | None = None
    lanes: int = 1
    through_pipe: bool = False
    _order: tuple[int, EpochOrder] | None = field(default=None, repr=False)

    def __getitems__(self, request: Request) -> Prepared:
        """Return a batch; what is wrong with it is said in it, for a worker's errors lose form."""
        prepared = self._batch_or_fault(request)
        if get_worker_info() is None:
            return prepared
        # They arrive as tensors.
        images = to_send(prepared.images, through_pipe=self.through_pipe)
        labels = to_send(prepared.labels, through_pipe=self.through_pipe)
        return prepared._replace(images=cast(Tensor, images), labels=cast(Tensor, labels))

    def _batch_or_fault(self, request: Request) -> Prepared:
        try:
            prepared = self._prepare(request)
            if get_worker_info() is not None:
                check_open_files()
            return prepared
        except BadSampleError as error:
            return _faulty(
                f"{error}; run pixmix-shard verify, or give bad_samples='substitute' or 'skip' "
                "(pixmix-train: --bad-samples) to go on without such samples"
            )
        except PipelineError as error:
            return _faulty(str(error))

    def _prepare(self, request: Request) -> Prepared:
        n = len(request.indices)
        side = self.preparation.image_size or 0
        pixels = np.empty((n, side, side, 3), np.uint8)
        indices = np.array(request.indices, np.int64)
        present = np.ones(n, np.bool_)
        bad: list[BadSample] = []
        for row in range(n):
            try:
                self._fill(int(indices[row]), request.epoch, pixels[row])
            except BadSampleError as error:
                if self.policy == "raise":
                    raise
                bad.append(error.bad)
                if self.policy == "substitute":
                    indices[row] = self._substitute(request, row, pixels[row], bad)
                else:
                    present[row] = False
                    pixels[row] = 0
        labels = torch.from_numpy(self.reader.shards.samples["label"][indices].astype(np.int64))
        if self.training and not present.all():
            pixels, indices = pixels[present], indices[present]
            labels, present = labels[torch.from_numpy(present)], present[present]
        images = mix_batch(
            pixels,
            self.mixing_set,
            indices,
            seed=self.seed,
            epoch=request.epoch,
            settings=self.preparation.pixmix if self.training else None,
            flip=self.preparation.flip and self.training,
            mean=self.preparation.mean,
            std=self.preparation.std,
            views=self.views,
            plain_first=self.preparation.plain_first and self.training,
            dtype=self.preparation.dtype,
            n_threads=self.n_threads,
            out=self._batch_memory(len(pixels)),
        )
        return Prepared(images, labels, present, tuple(bad))

    def _batch_memory(self, n: int) -> Tensor | None:
        """Return where a worker writes its batch: memory that it shares with the trainer.

        Written elsewhere it would be copied there. Measured with two workers on two cores: 5 to 11
        percent more samples a second; 7 percent fewer where one worker has an idle core beside it,
        which made that copy.
        """
        if get_worker_info() is None or n == 0 or self.through_pipe:
            return None
        side, dtype = self.preparation.image_size or 0, self.preparation.dtype
        views = () if self.views is None else (self.views,)
        return shared_tensor((n, *views, 3, side, side), dtype)

    def batch_bytes(self, n: int) -> int:
        """Return how many bytes the images of n samples have."""
        side, dtype = self.preparation.image_size or 0, self.preparation.dtype
        return n * (self.views or 1) * 3 * side * side * dtype.itemsize

    def _fill(self, i: int, epoch: int, out: NDArray[np.uint8]) -> None:
        """Decode a picture and write the part of it that is wanted, (side, side, 3) uint8."""
        try:
            picture = decode_picture(self.reader.read(i))
        except UnreadablePictureError as error:
            raise BadSampleError(self.reader.bad(i, error.reason, str(error))) from error
        side = len(out)
        if not self.training:
            out[:] = resized_centre(picture, self.preparation.resized_side, (side, side))
            return
        part = draw_resized_crop(
            i,
            seed=self.seed,
            epoch=epoch,
            size=(picture.shape[0], picture.shape[1]),
            scale=self.preparation.scale,
            ratio=self.preparation.ratio,
        )
        resize_part(picture, *part, side, side, 0, 0, out)

    def _substitute(
        self, request: Request, row: int, out: NDArray[np.uint8], bad: list[BadSample]
    ) -> int:
        """Write the next sample of the epoch's order that can be read, and return its number.

        The next of the same lane, whose shards are at hand.
        """
        order = self._order_of(request.epoch)
        for place in places_after(int(request.places[row]), len(order), self.lanes):
            i = int(order[np.array([place])][0])
            try:
                self._fill(i, request.epoch, out)
            except BadSampleError as error:
                bad.append(error.bad)
                continue
            return i
        raise PipelineError("no sample of the set can be read; see pixmix-shard verify")

    def _order_of(self, epoch: int) -> EpochOrder:
        if self._order is None or self._order[0] != epoch:
            sizes = [shard.n_samples for shard in self.reader.shards.shards]
            order = EpochOrder(
                len(self.reader.shards),
                seed=self.seed,
                epoch=epoch,
                shard_sizes=sizes,
                window=self.window,
                lanes=self.lanes,
            )
            self._order = (epoch, order)
        return self._order[1]
