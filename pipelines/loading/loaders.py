"""Batches for training and evaluation: the same ones at any world size, from any place on.

loader = train_loader("shards/imagenet1k-train-{0000..1023}.tar", mixing_set="shards/mixing",
batch_size=256, seed=0, num_workers=4)
for epoch in range(90):
for images, labels in loader: ...
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.datasets import dataset_of_kind
from pipelines.errors import PipelineError
from pipelines.loading.cursors import BadSamples, EvalLoader, TrainLoader
from pipelines.loading.mixing_set import open_mixing_set, open_pictures, uniform_view
from pipelines.loading.order import shards_ahead
from pipelines.loading.picture_map import BadPictures
from pipelines.loading.preparation import CIFAR, IMAGENET, Preparation
from pipelines.loading.samples import (
    POLICIES,
    PictureDataset,
    Policy,
    ShardReader,
)
from pipelines.loading.sources import InMemory, Source, Workers
from pipelines.loading.transport import fits_shared_memory
from pipelines.shards.format import ShardSet
from pipelines.shards.remote import Remote, RemoteShards, open_set
from pipelines.system.objects import is_remote
from pipelines.system.ranks import World, find_world
from pixmix.packed import PackedPictures

MixingSet = PackedPictures | str | Path | Sequence[str | Path]


def train_loader(
    shards: str | Path | ShardSet | RemoteShards,
    mixing_set: MixingSet | None = None,
    *,
    batch_size: int,
    seed: int = 0,
    preparation: Preparation | None = None,
    image_size: int | None = None,
    views: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    num_workers: int = 0,
    n_threads: int = 1,
    window: int | None = None,
    lanes: int = 1,
    bad_samples: Policy = "raise",
    max_bad_samples: int = 100,
    bad_samples_file: str | Path | None = None,
    bad_pictures: BadPictures = "raise",
    cache_dir: str | Path | None = None,
    remote: Remote | None = None,
    pin_memory: bool | None = None,
    multiprocessing_context: str | None = None,
) -> TrainLoader:
    """Return a loader of training batches with PixMix.

    Batches, pixels included, depend on the shards, the mixing set, seed, preparation and batch
    size; not on world size, workers, threads or interruptions.

    Args:
        shards: a folder with a manifest, tars as a pattern with {0000..1023}, either at an address
            (http, https, s3, gs), or a set that is open, local or from `open_set`. A shard is held
            to the manifest's SHA-256 when this node first opens it.
        mixing_set: what `open_mixing_set` takes, or pictures that are packed; None mixes pictures
            with what operations make of them alone.
        batch_size: of all processes together; a multiple of world_size.
        seed: any whole number.
        preparation: crop, PixMix and normalisation; None: the paper's recipe for what the shards
            are, `CIFAR` for CIFAR and digits, `IMAGENET` for all else.
        image_size: side in pixels, in place of the preparation's.
        views: how many independent views of PixMix a sample; None for one, without an axis.
        rank: of this process; None: that of torch.distributed, or of the environment.
        world_size: number of processes; None likewise.
        num_workers: processes that decode; pictures in memory need none.
        n_threads: threads that mix a batch, in each worker, or here.
        window: shards that are shuffled with each other at a time, in each lane; None for all.
        lanes: parts of the shards of which each batch takes equally many samples, so that of as
            many nodes each downloads its part of the set; divides batch_size. Batches depend on
            it, and not on the nodes.
        bad_samples: "raise"; "substitute" the next sample of the order that can be read; or "skip",
            which leaves a batch smaller. Pictures in memory are read before the first batch and
            know "raise" alone.
        max_bad_samples: more of them on a rank are an error.
        bad_samples_file: gets a line of JSON for each.
        bad_pictures: of the mixing set; see `open_mixing_set`.
        cache_dir: of memory maps and remote shards; see `open_mixing_set`.
        remote: how remote shards are read; None for the defaults. Give a window too, or a node
            needs all shards at once.
        pin_memory: whether batches lie in pinned memory; None: where there is a CUDA device.
        multiprocessing_context: how workers start: "fork", "spawn" or "forkserver"; None: torch's.

    Returns:
        The loader, at the beginning of epoch 0.

    Raises:
        PipelineError: if shards or mixing set cannot be read or do not fit.
        ValueError: for numbers out of range, or a batch that cannot be shared equally.
    """
    opened, preparation, world, bad = _opened(
        shards, preparation, image_size, rank, world_size, bad_samples, max_bad_samples,
        bad_samples_file, cache_dir, remote,
    )  # fmt: skip
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; give a number of shards, 1 or more, or None")
    source = _source(
        opened,
        preparation,
        mixing_set if preparation.pixmix is not None else None,
        seed=seed,
        training=True,
        policy=bad_samples,
        bad_pictures=bad_pictures,
        views=views,
        num_workers=num_workers,
        n_threads=n_threads,
        window=window,
        lanes=lanes,
        batch_size=batch_size,
        world_size=world.size,
        cache_dir=cache_dir,
        remote=remote,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        multiprocessing_context=multiprocessing_context,
    )
    return TrainLoader(
        source,
        batch_size=batch_size,
        seed=seed,
        world=world,
        window=window,
        lanes=lanes,
        bad_samples=bad,
    )


def eval_loader(
    shards: str | Path | ShardSet | RemoteShards,
    *,
    batch_size: int,
    preparation: Preparation | None = None,
    image_size: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    num_workers: int = 0,
    n_threads: int = 1,
    bad_samples: Policy = "raise",
    max_bad_samples: int = 100,
    bad_samples_file: str | Path | None = None,
    cache_dir: str | Path | None = None,
    remote: Remote | None = None,
    pin_memory: bool | None = None,
    multiprocessing_context: str | None = None,
) -> EvalLoader:
    """Return a loader that gives each sample once over all ranks, with equal steps on each.

    Args: as those of `train_loader`; pictures are neither flipped nor mixed, and cropped at their
        centre. With bad_samples="skip" a sample that cannot be read has weight 0.

    Returns:
        The loader of (images, labels, weights).

    Raises:
        PipelineError: if the shards cannot be read or do not fit.
        ValueError: for numbers out of range, or a batch that cannot be shared equally.
    """
    if bad_samples == "substitute":
        raise ValueError(
            "bad_samples='substitute' would count a sample twice; evaluate with 'raise' or 'skip'"
        )
    opened, preparation, world, bad = _opened(
        shards, preparation, image_size, rank, world_size, bad_samples, max_bad_samples,
        bad_samples_file, cache_dir, remote,
    )  # fmt: skip
    source = _source(
        opened,
        preparation,
        None,
        seed=0,
        training=False,
        policy=bad_samples,
        bad_pictures="raise",
        views=None,
        num_workers=num_workers,
        n_threads=n_threads,
        window=None,
        lanes=1,
        batch_size=batch_size,
        world_size=world.size,
        cache_dir=cache_dir,
        remote=remote,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        multiprocessing_context=multiprocessing_context,
    )
    return EvalLoader(source, batch_size=batch_size, world=world, bad_samples=bad)


def _opened(
    shards: str | Path | ShardSet | RemoteShards,
    preparation: Preparation | None,
    image_size: int | None,
    rank: int | None,
    world_size: int | None,
    policy: Policy,
    max_bad_samples: int,
    bad_samples_file: str | Path | None,
    cache_dir: str | Path | None,
    remote: Remote | None,
) -> tuple[RemoteShards, Preparation, World, BadSamples]:
    if policy not in POLICIES:
        raise ValueError(f"bad_samples is {policy!r}; give one of {', '.join(POLICIES)}")
    opened = open_set(shards, cache_dir=cache_dir, remote=remote)
    if len(opened.shards) == 0:
        raise PipelineError(f"{opened.shards.location} has no samples; there is nothing to load")
    if preparation is None:
        dataset = dataset_of_kind(opened.shards.kind)
        preparation = CIFAR if dataset and dataset.images == "small" else IMAGENET
    if image_size is not None:
        preparation = replace(preparation, image_size=image_size)
    file = None if bad_samples_file is None else Path(bad_samples_file)
    return opened, preparation, find_world(rank, world_size), BadSamples(max_bad_samples, file)


def _source(
    opened: RemoteShards,
    preparation: Preparation,
    mixing_set: MixingSet | None,
    *,
    seed: int,
    training: bool,
    policy: Policy,
    bad_pictures: BadPictures,
    views: int | None,
    num_workers: int,
    n_threads: int,
    window: int | None,
    lanes: int,
    batch_size: int,
    world_size: int,
    cache_dir: str | Path | None,
    remote: Remote | None,
    pin_memory: bool,
    multiprocessing_context: str | None,
) -> Source:
    """Open what batches are made of."""
    pictures_for = partial(
        mixing_pictures,
        mixing_set,
        preparation,
        cache_dir=cache_dir,
        remote=remote,
        bad_pictures=bad_pictures,
    )
    if preparation.crop == "padded":
        if policy != "raise":
            raise ValueError(
                f"bad_samples is {policy!r}, and a 'padded' crop reads all pictures before the "
                "first batch; give 'raise', or a preparation with crop='resized'"
            )
        images = _images_in_memory(opened, preparation, cache_dir)
        return InMemory(
            images,
            opened.shards,
            preparation=preparation,
            mixing_set=pictures_for(max(images.shape[1:3])),
            seed=seed,
            training=training,
            views=views,
            n_threads=n_threads,
            pin_memory=pin_memory,
        )
    remote = remote or Remote()
    dataset = PictureDataset(
        reader=ShardReader(opened.shards, opened.files.path),
        preparation=preparation,
        mixing_set=pictures_for(preparation.image_size or 0),
        seed=seed,
        training=training,
        policy=policy,
        views=views,
        n_threads=n_threads,
        window=window,
        lanes=lanes,
    )
    batch_bytes = dataset.batch_bytes(min(-(-batch_size // world_size), len(opened.shards)))
    dataset.through_pipe = not fits_shared_memory(batch_bytes, num_workers)
    return Workers(
        dataset,
        files=opened.files if is_remote(opened.files.location) else None,
        ahead=remote.ahead or shards_ahead(window, lanes, world_size),
        downloads=remote.downloads,
        num_workers=num_workers,
        pin_memory=pin_memory,
        multiprocessing_context=multiprocessing_context,
    )


def _images_in_memory(
    opened: RemoteShards, preparation: Preparation, cache_dir: str | Path | None
) -> NDArray[np.uint8]:
    shards = opened.shards
    images = uniform_view(open_pictures(opened, cache_dir=cache_dir))
    if images is None:
        raise PipelineError(
            f"the pictures of {shards.location} are of several sizes, and a 'padded' crop wants "
            "one; give a preparation with crop='resized', such as IMAGENET"
        )
    side = preparation.image_size
    if side is not None and images.shape[1:3] != (side, side):
        raise PipelineError(
            f"the pictures of {shards.location} are {images.shape[1]}x{images.shape[2]} (height x "
            f"width) and image_size is {side}; leave it out, or give a preparation with "
            "crop='resized', which resizes"
        )
    return images


def mixing_pictures(
    mixing_set: MixingSet | None,
    preparation: Preparation,
    side: int,
    *,
    cache_dir: str | Path | None,
    remote: Remote | None,
    bad_pictures: BadPictures = "raise",
) -> PackedPictures | None:
    """Open what a loader is given as its mixing set, for images of a side in pixels."""
    if mixing_set is None or isinstance(mixing_set, PackedPictures):
        return mixing_set
    return open_mixing_set(
        mixing_set,
        preparation.mixing_side(side),
        cache_dir=cache_dir,
        remote=remote,
        bad_pictures=bad_pictures,
    )
