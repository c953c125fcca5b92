"""Streams: the batches of a loader as a pipeline of webdataset."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pipelines.errors import PipelineError
from pipelines.loading.config import CIFAR, IMAGENET, LoaderConfig
from pipelines.loading.loader import train_loader
from pipelines.loading.webdataset import pixmix_stream
from pixmix.images import PackedImages
from shard_sets import drawn_images, encoded, write_shards

SMALL = replace(IMAGENET, image_size=14)
MIXING = PackedImages.pack(drawn_images(9, 2, (20, 23)))
N = 23


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    contents = [encoded(image) for image in drawn_images(N)]
    return write_shards(tmp_path_factory.mktemp("stream"), contents, sizes=(9, 0, 14))


def equal(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) and torch.equal(i, j) for (x, i), (y, j) in zip(a, b, strict=True)
    )


def expected_batches(
    shards: Path, epoch: int, shuffle_window: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    loader = train_loader(
        shards, MIXING, preprocess=SMALL, batch_size=4, seed=3, shuffle_window=shuffle_window
    )
    loader.set_epoch(epoch)
    return list(loader)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_stream_yields_the_batches_of_the_loader(shards: Path, num_workers: int) -> None:
    for epoch in (0, 5):
        config = LoaderConfig(batch_size=4, seed=3, preprocess=SMALL, shuffle_window=1)
        stream = pixmix_stream(shards, MIXING, config=config, epoch=epoch)
        batches = list(DataLoader(stream, batch_size=None, num_workers=num_workers))
        assert len(batches) == N // 4
        assert equal(batches, expected_batches(shards, epoch, shuffle_window=1))


@pytest.mark.parametrize("world_size", [1, 2])
def test_partitions_are_those_of_the_loader(shards: Path, world_size: int) -> None:
    for rank in range(world_size):
        arguments: dict[str, Any] = {
            "batch_size": 4, "seed": 3, "preprocess": SMALL, "shuffle_window": 1,
            "shard_partitions": 2, "rank": rank, "world_size": world_size,
        }  # fmt: skip
        loader = train_loader(shards, MIXING, **arguments)
        expected = list(loader)
        config = LoaderConfig(**arguments)
        assert equal(list(pixmix_stream(shards, MIXING, config=config)), expected)
        later = list(pixmix_stream(shards, MIXING, config=config, consumed=8))
        assert equal(later, expected[2:])
        with pytest.raises(ValueError, match=r"consumed 3 .* multiple of 2"):
            pixmix_stream(shards, MIXING, config=config, consumed=3)


def test_ranks_and_positions_are_those_of_the_loader(shards: Path) -> None:
    whole = expected_batches(shards, 1)
    config = LoaderConfig(batch_size=4, seed=3, preprocess=SMALL, rank=0, world_size=2)
    ranks = [
        list(pixmix_stream(shards, MIXING, config=replace(config, rank=rank), epoch=1, consumed=8))
        for rank in range(2)
    ]
    joined = [(torch.cat([x, y]), torch.cat([i, j])) for (x, i), (y, j) in zip(*ranks, strict=True)]
    assert equal(joined, whole[2:])


def test_a_stage_gets_cropped_images_and_its_output_is_mixed(shards: Path) -> None:
    seen: list[dict[str, Any]] = []

    def black(samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for sample in samples:
            seen.append(dict(sample))
            yield sample | {"image": sample["image"] * 0}

    plain = replace(SMALL, pixmix=None, mean=(0, 0, 0), std=(1, 1, 1))
    config = LoaderConfig(batch_size=4, preprocess=plain)
    batches = list(pixmix_stream(shards, None, black, config=config))
    assert len(seen) == N // 4 * 4
    assert all(sample["image"].shape == (14, 14, 3) for sample in seen)
    assert len({sample["__key__"] for sample in seen}) == len(seen)
    assert {sample["__url__"] for sample in seen} == {"set-0000.tar", "set-0002.tar"}
    assert all(int(sample["__key__"]) % 7 == sample["cls"] for sample in seen)
    assert all(not images.any() for images, _ in batches)


def test_a_stage_that_drops_samples_is_an_error(shards: Path) -> None:
    def only_the_first(samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        yield next(iter(samples))

    config = LoaderConfig(batch_size=4, preprocess=SMALL)
    stream = pixmix_stream(shards, MIXING, only_the_first, config=config)
    with pytest.raises(PipelineError, match="yield only 1 of the last 4 samples"):
        list(stream)


def test_a_decode_error_names_the_sample(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [b"not an image"], sizes=(1,))
    with pytest.raises(PipelineError, match=r"key 00000000 in set-0000\.tar: not an"):
        list(pixmix_stream(shards, config=LoaderConfig(batch_size=1, preprocess=SMALL)))


def test_images_in_memory_are_not_supported(shards: Path) -> None:
    with pytest.raises(ValueError, match=r"crop is 'padded', .* train_loader"):
        pixmix_stream(shards, config=LoaderConfig(batch_size=4, preprocess=CIFAR))
