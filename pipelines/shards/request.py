"""What shards are asked for, and what follows from that alone: names, order, sizes, settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.shards.adopt import OnDecodeError, OnNonstandard
from pipelines.shards.images import CONVERSION_VERSION, encoder_version
from pipelines.shards.listing import Listed
from pipelines.shards.sources import Source

SHARDS_VERSION = 1
"""Of the order and the bytes of the tars: raised when the same source and settings give others."""

_SHUFFLE_STREAM = 0x5348415244  # "SHARD": keeps this shuffle apart from all other uses of a seed.


@dataclass(frozen=True, kw_only=True)
class ShardRequest:
    """What to make.

    folder: where; made if absent.
    name: of the set and its tars, as in "imagenet1k-train".
    split: what timm calls it.
    num_shards: None gives what `shard_size` (samples, at most) needs; exactly one of them is given.
    seed: of the shuffle.
    on_nonstandard, on_decode_error: what becomes of images that are not what their names say, or
        cannot be decoded.
    exif_transpose: whether images are turned as their EXIF orientation says.
    dali_index: whether to write DALI's .idx files.
    """

    folder: Path
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
        """Refuse nonsense."""
        if (self.num_shards is None) == (self.shard_size is None):
            raise ValueError("give num_shards or shard_size, and not both")
        for field in ("num_shards", "shard_size", "jobs"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} is {value}; give at least 1")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}; give 0 to 2**64 - 1")
        letters = set(self.name) - set("abcdefghijklmnopqrstuvwxyz0123456789-_")
        if not 0 < len(self.name) <= 64 or letters:
            raise ValueError(
                f"name is {self.name!r}; give at most 64 of the letters a-z, 0-9, - and _"
            )

    @property
    def work(self) -> Path:
        """The folder of what a set in the making needs."""
        return self.folder / ".work"

    @property
    def listing(self) -> Path:
        """The file of the source's pictures."""
        return self.work / "listing.jsonl"


def shuffled(n: int, seed: int) -> NDArray[np.int64]:
    """Return 0..n-1 in an order that is a function of n and seed alone.

    By sorting raw bits of Philox, which numpy holds fixed, as it does not `Generator.permutation`.
    """
    bits = np.random.Philox(key=np.array([seed, _SHUFFLE_STREAM], np.uint64)).random_raw(n)
    return np.argsort(bits, kind="stable")


def bounds(n: int, num_shards: int, shard: int) -> range:
    """Return which of n samples a shard holds; sizes differ by at most one."""
    return range(shard * n // num_shards, (shard + 1) * n // num_shards)


def indices_of(order: NDArray[np.int64], num_shards: int, shard: int) -> list[int]:
    """Return which of the samples, in their order, a shard holds."""
    within = bounds(len(order), num_shards, shard)
    indices: list[int] = order[within.start : within.stop].tolist()
    return indices


def shard_name(name: str, shard: int, num_shards: int) -> str:
    """Return the file name of a shard, "imagenet1k-train-0042.tar"."""
    digits = max(2, len(str(num_shards - 1)))
    return f"{name}-{shard:0{digits}d}.tar"


def shard_settings(request: ShardRequest, listed: Listed) -> dict[str, Any]:
    """Return as plain JSON values all that the shards depend on.

    Args:
        request: what to make.
        listed: the source's pictures.
    """
    settings = {
        "name": request.name,
        "kind": request.source.kind(),
        **request.source.settings(),
        "seed": request.seed,
        "num_shards": request.num_shards,
        "shard_size": request.shard_size,
        "dali_index": request.dali_index,
        "source_pictures": listed.n,
        "source_sha256": listed.sha256,
        "shards_version": SHARDS_VERSION,
    }
    if request.source.foreign():
        settings |= {
            "on_nonstandard": request.on_nonstandard,
            "on_decode_error": request.on_decode_error,
        }
        # Only where it is asked for, so that all other sets keep their manifests.
        if request.exif_transpose:
            settings |= {"exif_transpose": True}
        if request.on_nonstandard == "convert" or request.exif_transpose:
            settings |= {"encoder": encoder_version(), "conversion": CONVERSION_VERSION}
    return settings
