"""Settings of preprocessing and of loaders."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from pipelines.loading.dataset import MapStyle
from pipelines.loading.image_map import OnMixingDecodeError
from pipelines.loading.order import batch_positions
from pipelines.shards.format import ShardSet
from pipelines.shards.remote import Remote, RemoteShards
from pixmix.images import PackedImages
from pixmix.settings import PixMixSettings

Triple = tuple[float, float, float]

MixingSet = PackedImages | str | Path | Sequence[str | Path]
"""Arguments of `open_mixing_set`, or packed images."""

DataSource = str | Path | ShardSet | RemoteShards | MapStyle
"""A map-style dataset, or shards: a folder, an address, tars as a pattern with {0000..1023}, or an
open set."""

OnDecodeError = Literal["raise", "substitute", "skip"]
ON_DECODE_ERROR: tuple[OnDecodeError, ...] = ("raise", "substitute", "skip")


_IMAGENET_PIXMIX = PixMixSettings(k=4, beta=4, severity=1)


def _check_minimum(config: object, name: str, minimum: int, what: str) -> None:
    value = getattr(config, name)
    if value is not None and value < minimum:
        raise ValueError(f"{name} is {value}; use {what}, {minimum} or more")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How images are cropped, mixed and normalized. All sizes are in pixels.

    ``IMAGENET`` and ``CIFAR`` are the recipes of the paper. The defaults are those of ``IMAGENET``;
    source: the released code, github.com/andyzoujm/pixmix at f867e87.

    Example::

        from dataclasses import replace

        from pipelines import IMAGENET, train_loader

        small = replace(IMAGENET, image_size=160, flip=False)
        loader = train_loader("shards/train", batch_size=256, preprocess=small)

    Attributes:
        crop: "resized" crops a random part of each image and resizes it (ImageNet); images of any
            size are decoded when they are needed. "padded" pads images of one common size with
            black and crops them to their size again (CIFAR); those of shards are held in memory.
        image_size: side of the square input of the network. None uses the size of the images, which
            requires crop "padded".
        padding: padding on each side for crop "padded"; None uses 1/8 of the side (4 for CIFAR).
        scale: minimum and maximum share of the image's area to crop, for crop "resized".
        ratio: minimum and maximum aspect ratio (width / height) to crop, for crop "resized".
        evaluation_resize: length of the shorter side before the center crop of evaluations, for
            crop "resized"; None uses 8/7 of image_size (256 for 224).
        mixing_size: length of the shorter side of mixing images. None uses 8/7 of image_size for
            crop "resized" (256 for 224), and the side plus one padding for "padded" (36 for 32).
        plain_first: whether the first of several views is the unmixed image, as in AugMix.
        flip: whether half of the training images, chosen at random, are mirrored.
        pixmix: settings of PixMix; None trains without PixMix.
        mean: mean of the channels R, G and B, in [0, 1], to subtract.
        std: standard deviation of the channels, to divide by afterwards.
        dtype: dtype of the batches: float32, float16 or bfloat16.
    """

    crop: Literal["resized", "padded"] = "resized"
    image_size: int | None = 224
    padding: int | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    evaluation_resize: int | None = None
    mixing_size: int | None = None
    plain_first: bool = False
    flip: bool = True
    pixmix: PixMixSettings | None = _IMAGENET_PIXMIX
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: if a value is outside its range.
        """
        if self.crop not in ("resized", "padded"):
            raise ValueError(f"crop is {self.crop!r}; use 'resized' or 'padded'")
        if self.image_size is None and self.crop == "resized":
            raise ValueError(
                "image_size is None; crop='resized' needs a side in pixels, for example 224"
            )
        for name in ("image_size", "evaluation_resize", "mixing_size"):
            _check_minimum(self, name, 1, "a number of pixels")
        _check_minimum(self, "padding", 0, "a number of pixels")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"scale is {self.scale}; use the minimum and the maximum share of an image's area, "
                "above 0 and up to 1"
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio is {self.ratio}; use the minimum and the maximum aspect ratio")
        if self.crop == "resized" and self.resized_side < (self.image_size or 0):
            raise ValueError(
                f"evaluation_resize is {self.evaluation_resize} and image_size is "
                f"{self.image_size}; the center is cropped from the resized image: use at least "
                "image_size"
            )

    @property
    def resized_side(self) -> int:
        """Length of the shorter side of evaluation images before their center crop ("resized")."""
        return self.evaluation_resize or (self.image_size or 0) * 8 // 7

    def padding_of(self, side: int) -> int:
        """Return the padding for images with this side ("padded")."""
        return side // 8 if self.padding is None else self.padding

    def mixing_side(self, side: int) -> int:
        """Return the length of the shorter side of mixing images for images with this side."""
        if self.mixing_size is not None:
            return self.mixing_size
        return side * 8 // 7 if self.crop == "resized" else side + self.padding_of(side)


IMAGENET = PreprocessConfig()
"""The paper's recipe for ImageNet."""

CIFAR = PreprocessConfig(
    crop="padded",
    image_size=None,
    pixmix=PixMixSettings(k=4, beta=3, severity=3),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
"""The paper's recipe for CIFAR-10 and CIFAR-100."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """The settings of a loader; see ``train_loader`` and ``eval_loader``.

    Example::

        from pipelines import LoaderConfig, pixmix_stream

        config = LoaderConfig(batch_size=256, seed=1, shuffle_window=16)
        stream = pixmix_stream("shards/train", "mixing-set", config=config)

    Attributes:
        batch_size: global batch size, summed over all processes; a multiple of world_size.
        seed: seed of order, crops and PixMix: any integer.
        preprocess: crop, PixMix and normalization. None uses the paper's recipe for the dataset:
            ``CIFAR`` for shards of CIFAR and digits, and for other datasets if their first image
            has at most 64 pixels per side; otherwise ``IMAGENET``.
        image_size: side of the network's input in pixels; overrides that of preprocess.
        views: number of independently mixed views of each sample, which adds an axis to the images;
            None for one view without that axis.
        rank: rank of this process. None uses the rank in torch.distributed, or else in the
            environment of the launcher (torchrun, srun, mpirun).
        world_size: number of processes; None detects it like rank.
        num_workers: number of worker processes that decode images. Shards of small images are held
            in memory and need none.
        n_threads: number of threads that mix a batch, in each process that makes batches.
        shuffle_window: number of shards that are shuffled together, in each partition; None for
            all. A node needs about this many shards at a time.
        shard_partitions: number of partitions of the shards; each batch has equally many samples of
            each. With as many partitions as nodes, each node downloads only its part of the
            dataset. Must divide batch_size. Batches depend on it, but not on the number of nodes.
        on_decode_error: policy for samples that cannot be read or decoded: "raise" an error,
            "substitute" the next sample of the order, or "skip" the sample, which makes the batch
            smaller. Shards held in memory are decoded before the first batch and support only
            "raise"; evaluations do not support "substitute".
        max_decode_errors: number of such samples per rank above which an error is raised.
        decode_error_log: file to which each such sample is appended as a line of JSON.
        on_mixing_decode_error: policy for mixing images that cannot be decoded, "raise" or "skip";
            see ``open_mixing_set``.
        cache_dir: cache of decoded images and downloaded shards; see ``open_mixing_set``.
        remote: how remote shards are downloaded and cached; None for the defaults of ``Remote``.
        pin_memory: whether batches are in pinned memory; None pins them if CUDA is available.
        multiprocessing_context: start method of workers: "fork", "spawn" or "forkserver"; None for
            the default of torch.
    """

    batch_size: int
    seed: int = 0
    preprocess: PreprocessConfig | None = None
    image_size: int | None = None
    views: int | None = None
    rank: int | None = None
    world_size: int | None = None
    num_workers: int = 0
    n_threads: int = 1
    shuffle_window: int | None = None
    shard_partitions: int = 1
    on_decode_error: OnDecodeError = "raise"
    max_decode_errors: int = 100
    decode_error_log: str | Path | None = None
    on_mixing_decode_error: OnMixingDecodeError = "raise"
    cache_dir: str | Path | None = None
    remote: Remote | None = None
    pin_memory: bool | None = None
    multiprocessing_context: str | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: if a value is outside its range.
        """
        at_least_1 = ("batch_size", "views", "n_threads", "shuffle_window", "shard_partitions")
        at_least_0 = ("num_workers", "max_decode_errors")
        for name in (*at_least_1, *at_least_0, "seed"):
            # NumPy integers become Python integers, which a state dict can hold.
            if getattr(self, name) is not None:
                object.__setattr__(self, name, operator.index(getattr(self, name)))
        for name in at_least_1:
            _check_minimum(self, name, 1, "an integer")
        for name in at_least_0:
            _check_minimum(self, name, 0, "an integer")
        batch_positions(
            self.batch_size, rank=0, world_size=1, shard_partitions=self.shard_partitions
        )
        if self.on_decode_error not in ON_DECODE_ERROR:
            raise ValueError(
                f"on_decode_error is {self.on_decode_error!r}; use one of "
                f"{', '.join(ON_DECODE_ERROR)}"
            )
