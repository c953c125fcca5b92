"""The request of `pixmix-shard`: the source's images, listed on disk, their order and settings."""

import hashlib
import json
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.shards.images import (
    CONVERSION_VERSION,
    STANDARD,
    UPRIGHT,
    convert,
    encoder_version,
    orientation,
    why_nonstandard,
)
from pipelines.shards.output import OutputStore
from pipelines.shards.sources import Item, Source
from pipelines.shards.writer import SHARDS_VERSION, Sample
from pipelines.system.files import new_file, open_regular

OnNonstandard = Literal["keep", "convert", "skip", "raise"]
OnDecodeError = Literal["raise", "skip"]

STARTS_SUFFIX = ".starts.npy"

_SHUFFLE_STREAM = 0x5348415244  # "SHARD": no other use of a seed has these random numbers.


class Listing:
    """The items of a source by index: lines of JSON and their offsets, both memory-mapped."""

    def __init__(self, path: Path) -> None:
        self._starts = np.load(path.with_name(path.name + STARTS_SUFFIX))
        self._lines: mmap.mmap | bytes
        with open_regular(path) as file:
            try:
                self._lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError:
                # The file system has no shared mappings.
                self._lines = file.read()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Item:
        return Item(**json.loads(self._line(index)))

    def _line(self, index: int) -> bytes:
        return self._lines[int(self._starts[index]) : int(self._starts[index + 1])]

    def fingerprint(self, indices: Iterable[int]) -> str:
        """Return a hash of the indices, names, sizes and times of some items.

        Shards and scans of these items are made again when the hash differs.
        """
        digest = hashlib.sha256()
        for index in indices:
            digest.update(b"%d " % index + self._line(index))
        return digest.hexdigest()


@dataclass(frozen=True)
class Listed:
    """The summary of a listing.

    Attributes:
        n: number of items.
        sha256: hash of the names, sizes and labels of the files, without their contents.
        dated_sha256: hash of these and the modification times.
    """

    n: int
    sha256: str
    dated_sha256: str


def write_listing(path: Path, items: Iterable[Item]) -> Listed:
    """Write the items of a source, at least one, to a file that `Listing` reads.

    Raises:
        OSError: if the disk is full.
    """
    lengths: list[int] = []
    undated, dated = hashlib.sha256(), hashlib.sha256()

    def lines() -> Iterator[bytes]:
        for item in items:
            document = asdict(item)
            changed = document.pop("changed")
            same = json.dumps(document, separators=(",", ":")).encode()
            undated.update(same + b"\n")
            dated.update(same + b" %d\n" % changed[0])
            line = b'%s,"changed":[%d,%d]}\n' % (same[:-1], *changed)
            lengths.append(len(line))
            yield line

    with new_file(path) as file:
        file.writelines(lines())
    starts = np.fromiter(accumulate(lengths, initial=0), np.int64, len(lengths) + 1)
    with new_file(path.with_name(path.name + STARTS_SUFFIX)) as file:
        np.save(file, starts)
    return Listed(len(lengths), undated.hexdigest(), dated.hexdigest())


def first_difference(before: Listing, now: Listing) -> str | None:
    """Return the name of the first item that was changed, added or removed, or None."""
    for index in range(min(len(before), len(now))):
        one, other = before[index], now[index]
        # Compare only the modification time: a new hard link changes the time of the inode.
        if (one.name, one.size, one.changed[0]) != (other.name, other.size, other.changed[0]):
            return one.name
    if len(before) == len(now):
        return None
    longer = max(before, now, key=len)
    return longer[min(len(before), len(now))].name


@dataclass(frozen=True, kw_only=True)
class ShardRequest:
    """The source, the store and the settings of a sharded dataset.

    Attributes:
        store: where the dataset is written.
        source: the images.
        name: name of the dataset and its tars, as in "imagenet1k-train": at most 64 of the letters
            a-z, digits, - and _.
        split: name of the split for timm.
        num_shards: number of shards; None if `shard_size` is set.
        shard_size: maximum number of samples in a shard; None if `num_shards` is set.
        seed: seed of the shuffle, 0 to 2**64 - 1.
        on_nonstandard: what to do with images that some readers do not support.
        on_decode_error: what to do with images that cannot be decoded.
        exif_transpose: whether images are rotated by their EXIF orientation.
        dali_index: whether to write DALI's .idx files.
        jobs: number of processes.
    """

    store: OutputStore
    source: Source
    name: str
    split: str = "train"
    num_shards: int | None = None
    shard_size: int | None = None
    seed: int = 0
    on_nonstandard: OnNonstandard = "keep"
    on_decode_error: OnDecodeError = "raise"
    exif_transpose: bool = False
    dali_index: bool = False
    jobs: int = 1

    def __post_init__(self) -> None:
        """Check the settings."""
        if (self.num_shards is None) == (self.shard_size is None):
            raise ValueError("set num_shards or shard_size, and not both")
        for field in ("num_shards", "shard_size", "jobs"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} is {value}; use at least 1")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}; use 0 to 2**64 - 1")
        letters = set(self.name) - set("abcdefghijklmnopqrstuvwxyz0123456789-_")
        if not 0 < len(self.name) <= 64 or letters:
            raise ValueError(
                f"name is {self.name!r}; use at most 64 of the characters a-z, 0-9, - and _"
            )

    @property
    def listing(self) -> Path:
        """The local file that lists the source's images."""
        return self.store.work / "listing.jsonl"

    @property
    def order(self) -> Path:
        """The local file with the order of the samples."""
        return self.store.work / "order"

    @property
    def skipped(self) -> set[str]:
        """The categories of a scan whose images are in no shard."""
        return {"undecodable", "nonstandard"} if self.on_nonstandard == "skip" else {"undecodable"}

    def settings(self, listed: Listed | None = None) -> dict[str, Any]:
        """Return the settings that the shards depend on, as plain JSON values.

        Args:
            listed: the files of the source; None omits them.
        """
        of_files = {}
        if listed is not None:
            of_files = {"source_images": listed.n, "source_sha256": listed.sha256}
        settings = {
            "name": self.name,
            "kind": self.source.kind(),
            **self.source.settings(),
            "seed": self.seed,
            "num_shards": self.num_shards,
            "shard_size": self.shard_size,
            "dali_index": self.dali_index,
            **of_files,
            "shards_version": SHARDS_VERSION,
        }
        if self.source.needs_scan():
            settings |= {
                "on_nonstandard": self.on_nonstandard,
                "on_decode_error": self.on_decode_error,
            }
            # Present only if true, so that the manifests of other datasets do not change.
            if self.exif_transpose:
                settings |= {"exif_transpose": True}
            if self.on_nonstandard == "convert" or self.exif_transpose:
                settings |= {"encoder": encoder_version(), "conversion": CONVERSION_VERSION}
        return settings


def shuffled(n: int, seed: int) -> NDArray[np.int64]:
    """Return 0..n-1, shuffled: a function of n and seed alone.

    It sorts raw bits of Philox, because numpy keeps these the same in all versions, and not the
    results of `Generator.permutation`.
    """
    bits = np.random.Philox(key=np.array([seed, _SHUFFLE_STREAM], np.uint64)).random_raw(n)
    return np.argsort(bits, kind="stable")


def sample_of(request: ShardRequest, listing: Listing, index: int) -> Sample:
    """Return a sample of a shard: the bytes of an image, its label and its record.

    Raises:
        PipelineError: if the size of the file has changed since it was listed.
        OSError: if the file cannot be read.
    """
    item = listing[index]
    extension, content = _image_of(request, item)
    members = {extension: content}
    if item.label >= 0:
        members["cls"] = str(item.label).encode()
    if item.record is not None:
        document = json.dumps(item.record, separators=(",", ":"), ensure_ascii=False)
        members["json"] = document.encode()
    return Sample(key=f"{index:08d}", extension=extension, label=item.label, members=members)


def _image_of(request: ShardRequest, item: Item) -> tuple[str, bytes]:
    content = request.source.read(item.place)
    if item.size not in (-1, len(content)):
        raise PipelineError(
            f"{item.name} was changed while its shard was written; make sure that nothing writes "
            "to the source, and run the same command again"
        )
    if request.source.needs_scan():
        rotated = request.exif_transpose and orientation(content) != UPRIGHT
        if rotated or (
            request.on_nonstandard == "convert"
            and why_nonstandard(content, item.extension) is not None
        ):
            content, extension = convert(content, item.extension, upright=rotated)
            return extension, content
    return STANDARD.get(item.extension, item.extension), content
