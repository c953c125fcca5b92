"""Loaders: the same batches at any world size, with any workers, and from any position."""

import gc
import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.errors import PipelineError
from pipelines.loading.config import CIFAR, IMAGENET, OnDecodeError, PreprocessConfig
from pipelines.loading.dataset import SampleError, ShardDataset
from pipelines.loading.loader import TrainLoader, eval_loader, train_loader
from pipelines.loading.order import EpochOrder
from pipelines.shards.format import open_shards
from pixmix.draws import draw_resized_crop
from pixmix.fused import mix_batch
from pixmix.images import PackedImages
from pixmix.resizing import resized_center, resized_crop
from shard_sets import drawn_images, encoded, write_shards

SIZES = (5, 1, 0, 9, 4, 11)
"""Uneven shards, one of them empty."""
N = sum(SIZES)
SMALL = replace(IMAGENET, image_size=14)


@pytest.fixture(scope="module")
def sources() -> list[NDArray[np.uint8]]:
    return drawn_images(N)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, sources: list[NDArray[np.uint8]]) -> Path:
    folder = tmp_path_factory.mktemp("large")
    return write_shards(folder, [encoded(image) for image in sources], sizes=SIZES)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    contents = [encoded(image) for image in drawn_images(N, 1, (16, 16))]
    return write_shards(folder, contents, sizes=SIZES, kind="cifar10")


MIXING = PackedImages.pack(drawn_images(9, 2, (20, 23)))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(params=["large", "small"])
def loader_arguments(
    request: pytest.FixtureRequest, large: Path, small: Path, cache: Path
) -> dict[str, Any]:
    """Arguments for both kinds of datasets: decoded by workers, and held in memory."""
    if request.param == "large":
        return {"data": large, "mixing_set": MIXING, "preprocess": SMALL, "cache_dir": cache}
    return {"data": small, "mixing_set": MIXING, "preprocess": CIFAR, "cache_dir": cache}


def an_epoch(loader: TrainLoader) -> list[tuple[Tensor, Tensor]]:
    return [(images.clone(), labels.clone()) for images, labels in loader]


def equal(a: list[tuple[Tensor, ...]], b: list[tuple[Tensor, ...]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y)
        for one, other in zip(a, b, strict=True)
        for x, y in zip(one, other, strict=True)
    )


def together(loaders: list[TrainLoader]) -> list[tuple[Tensor, Tensor]]:
    """Return the global batches of all ranks."""
    batches = [an_epoch(loader) for loader in loaders]
    assert len({len(each) for each in batches}) == 1
    return [
        (torch.cat([images for images, _ in ranks]), torch.cat([labels for _, labels in ranks]))
        for ranks in zip(*batches, strict=True)
    ]


@pytest.mark.parametrize("world_size", [2, 4, 8, 16])
def test_batches_do_not_depend_on_the_world_size(
    loader_arguments: dict[str, Any], world_size: int
) -> None:
    alone = train_loader(**loader_arguments, batch_size=16, seed=3, rank=0, world_size=1)
    ranks = [
        train_loader(**loader_arguments, batch_size=16, seed=3, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for _ in range(2):
        expected = an_epoch(alone)
        assert len(expected) == N // 16
        assert equal(together(ranks), expected)


@pytest.mark.parametrize("shuffle_window", [None, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3, 6, 12])
def test_batches_of_partitions_do_not_depend_on_the_world_size(
    loader_arguments: dict[str, Any], world_size: int, shuffle_window: int | None
) -> None:
    arguments = loader_arguments | {
        "batch_size": 12,
        "seed": 3,
        "shuffle_window": shuffle_window,
        "shard_partitions": 3,
    }
    ranks = [
        train_loader(**arguments, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    order = EpochOrder(
        N, seed=3, epoch=0, shard_sizes=SIZES, shuffle_window=shuffle_window, shard_partitions=3
    ).whole()
    batches = together(ranks)
    assert len(batches) == N // 12
    for t, (_, labels) in enumerate(batches):
        expected = order[12 * t : 12 * t + 12].reshape(4, 3).T.ravel()
        assert labels.tolist() == [i % 7 for i in expected]
        assert np.concatenate([loader.last_indices for loader in ranks]).shape == (12,)
    alone = train_loader(**arguments, rank=0, world_size=1)
    assert equal(batches, an_epoch(alone))


more_workers_than_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@more_workers_than_cores
@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_batches_do_not_depend_on_the_number_of_workers(large: Path, num_workers: int) -> None:
    here, workers = (
        train_loader(
            large, MIXING, preprocess=SMALL, batch_size=4, seed=1, num_workers=n, shuffle_window=2
        )
        for n in (0, num_workers)
    )
    for _ in range(2):
        assert equal(an_epoch(workers), an_epoch(here))


def test_batches_do_not_depend_on_threads(loader_arguments: dict[str, Any]) -> None:
    one, three = (
        train_loader(**loader_arguments, batch_size=8, n_threads=n, views=2) for n in (1, 3)
    )
    epoch = an_epoch(one)
    assert epoch[0][0].shape[:3] == (8, 2, 3)
    assert equal(an_epoch(three), epoch)


@pytest.mark.slow
def test_spawned_workers_map_the_same_files(large: Path, tmp_path: Path) -> None:
    file = tmp_path / "pixels"
    file.write_bytes(MIXING.pixels.tobytes())
    pixels = np.asarray(np.memmap(file, np.uint8, "c"))
    mapped = PackedImages(pixels, MIXING.offsets, MIXING.heights, MIXING.widths)
    reader = ShardDataset(open_shards(large))
    again = pickle.loads(pickle.dumps(reader))
    assert again.read(7) == reader.read(7)
    arguments: dict[str, Any] = {"preprocess": SMALL, "batch_size": 10, "seed": 5}
    here = train_loader(large, MIXING, **arguments)
    spawned = train_loader(
        large, mapped, **arguments, num_workers=2, multiprocessing_context="spawn"
    )
    assert equal(an_epoch(spawned), an_epoch(here))


_UNFINISHED = """
import multiprocessing, sys
from pipelines import PreprocessConfig, train_loader

kept = []

def take_one(folder):
    loader = train_loader(folder, batch_size=8, num_workers=2,
                          preprocess=PreprocessConfig(image_size=14, pixmix=None))
    kept.append(iter(loader))
    next(kept[0])

if __name__ == "__main__":
    if sys.argv[2] == "child":
        child = multiprocessing.get_context("spawn").Process(target=take_one, args=sys.argv[1:2])
        child.start()
        child.join()
        sys.exit(child.exitcode)
    take_one(sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("process", ["child", "main"])
def test_a_program_exits_after_part_of_an_epoch(large: Path, tmp_path: Path, process: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(_UNFINISHED)
    ended = subprocess.run(
        [sys.executable, program, large, process],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_workers_end_when_a_loader_in_a_reference_cycle_is_collected(large: Path) -> None:
    before = set(multiprocessing.active_children())
    loader = train_loader(large, preprocess=SMALL, batch_size=8, num_workers=2)
    cycle: list[object] = [iter(loader), loader]
    next(cycle[0])  # type: ignore[call-overload]
    cycle.append(cycle)
    assert len(set(multiprocessing.active_children()) - before) == 2
    del loader, cycle
    gc.collect()
    assert set(multiprocessing.active_children()) <= before


def test_an_epoch_has_each_sample_at_most_once_and_leaves_out_the_remainder(
    loader_arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    arguments = loader_arguments | {"preprocess": replace(
        loader_arguments["preprocess"], pixmix=None, flip=False, padding=0, scale=(1, 1)
    )}  # fmt: skip
    with caplog.at_level(logging.INFO):
        loader = train_loader(**arguments, batch_size=7)
    assert f"leaves out {N % 7} of {N} samples" in caplog.text
    assert loader.left_out == N % 7
    for epoch in range(3):
        images = torch.cat([images for images, _ in loader])
        distinct = {image.numpy().tobytes() for image in images}
        assert len(images) == len(distinct) == N - N % 7
        assert loader.epoch == epoch + 1


def test_training_pixels_are_those_of_the_kernel_in_the_order(small: Path, cache: Path) -> None:
    loader = train_loader(small, MIXING, batch_size=10, seed=4, cache_dir=cache)
    images = np.stack(drawn_images(N, 1, (16, 16)))
    for epoch in range(2):
        order = EpochOrder(N, seed=4, epoch=epoch).whole()
        for t, (batch, labels) in enumerate(loader):
            indices = order[10 * t : 10 * t + 10]
            expected = mix_batch(
                images[indices], MIXING, indices, seed=4, epoch=epoch, settings=CIFAR.pixmix,
                flip=True, padding=2, mean=CIFAR.mean, std=CIFAR.std,
            )  # fmt: skip
            assert torch.equal(batch, expected)
            assert labels.tolist() == [i % 7 for i in indices]


def test_training_pixels_of_large_images_are_mixed_crops_of_torchvision(
    large: Path, sources: list[NDArray[np.uint8]]
) -> None:
    loader = train_loader(large, MIXING, preprocess=SMALL, batch_size=10, seed=4)
    for epoch in range(2):
        order = EpochOrder(N, seed=4, epoch=epoch).whole()
        for t, (batch, _) in enumerate(loader):
            indices = order[10 * t : 10 * t + 10]
            crops = []
            for i in indices.tolist():
                image = sources[i]
                part = draw_resized_crop(
                    i, seed=4, epoch=epoch, size=(image.shape[0], image.shape[1]),
                    scale=SMALL.scale, ratio=SMALL.ratio,
                )  # fmt: skip
                crops.append(resized_crop(image, *part, (14, 14)))
            expected = mix_batch(
                np.stack(crops), MIXING, indices, seed=4, epoch=epoch, settings=SMALL.pixmix,
                flip=True, mean=SMALL.mean, std=SMALL.std,
            )  # fmt: skip
            assert torch.equal(batch, expected)


def test_evaluation_pixels_are_center_crops_of_torchvision(
    large: Path, sources: list[NDArray[np.uint8]]
) -> None:
    loader = eval_loader(large, preprocess=SMALL, batch_size=4)
    images = torch.cat([images for images, _, _ in loader])[:N]
    expected = np.stack([resized_center(image, 16, (14, 14)) for image in sources])
    mean, std = (torch.tensor(each)[:, None, None] for each in (SMALL.mean, SMALL.std))
    assert torch.equal(images, (torch.from_numpy(expected).permute(0, 3, 1, 2) / 255 - mean) / std)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("batch_size", [16, 32, 48])
def test_evaluation_sees_each_sample_once_with_equal_steps(
    loader_arguments: dict[str, Any], world_size: int, batch_size: int
) -> None:
    arguments = {k: v for k, v in loader_arguments.items() if k != "mixing_set"}
    whole = torch.cat([images for images, _, _ in eval_loader(**arguments, batch_size=1)])
    seen, steps = [], set()
    for rank in range(world_size):
        loader = eval_loader(**arguments, batch_size=batch_size, rank=rank, world_size=world_size)
        batches = list(loader)
        assert all(len(images) == batch_size // world_size for images, _, _ in batches)
        assert len(batches) == len(loader)
        steps.add(len(batches))
        seen += [
            (image.numpy().tobytes(), int(label))
            for images, labels, weights in batches
            for image, label, weight in zip(images, labels, weights, strict=True)
            if weight == 1
        ]
        assert {float(w) for _, _, weights in batches for w in weights} <= {0.0, 1.0}
    assert len(steps) == 1
    expected = [(whole[i].numpy().tobytes(), i % 7) for i in range(N)]
    assert sorted(seen) == sorted(expected)


# --- resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_state_resumes_within_an_epoch_at_any_world_size(
    loader_arguments: dict[str, Any], world_size: int, num_workers: int
) -> None:
    def opened(rank: int, size: int, workers: int = 0) -> TrainLoader:
        return train_loader(
            **loader_arguments, batch_size=4, seed=9, rank=rank, world_size=size,
            num_workers=workers,
        )  # fmt: skip

    unbroken = opened(0, 1)
    expected = an_epoch(unbroken) + an_epoch(unbroken)
    first = opened(0, 1, num_workers)
    for step, batch in enumerate(first):
        assert equal([batch], expected[step : step + 1])
        if step == 2:
            break
    state = json.loads(json.dumps(first.state_dict()))
    assert (state["epoch"], state["consumed"]) == (0, 12)
    ranks = [opened(rank, world_size) for rank in range(world_size)]
    for loader in ranks:
        loader.load_state_dict(state)
    assert equal(together(ranks), expected[3 : N // 4])
    assert equal(together(ranks), expected[N // 4 :])


def test_a_state_with_partitions_resumes_at_another_world_size_and_batch_size(
    loader_arguments: dict[str, Any],
) -> None:
    arguments = loader_arguments | {"seed": 2, "shuffle_window": 2, "shard_partitions": 2}
    first = train_loader(**arguments, batch_size=4, rank=0, world_size=1)
    expected = an_epoch(first)
    first.set_epoch(0)
    for step, _ in enumerate(first):
        if step == 2:
            break
    state = json.loads(json.dumps(first.state_dict()))
    assert (state["shard_partitions"], state["consumed"]) == (2, 12)
    ranks = [train_loader(**arguments, batch_size=4, rank=rank, world_size=4) for rank in range(4)]
    for loader in ranks:
        loader.load_state_dict(state)
    assert equal(together(ranks), expected[3:])
    larger = train_loader(**arguments, batch_size=6)
    larger.load_state_dict(state)
    order = EpochOrder(
        N, seed=2, epoch=0, shard_sizes=SIZES, shuffle_window=2, shard_partitions=2
    ).whole()
    labels = [labels.tolist() for _, labels in larger]
    assert labels == [
        [int(i) % 7 for i in order[start : start + 6].reshape(3, 2).T.ravel()]
        for start in range(12, N - 5, 6)
    ]


def test_a_position_between_partitions_is_rejected(
    loader_arguments: dict[str, Any],
) -> None:
    loader = train_loader(**loader_arguments, batch_size=4, shard_partitions=4)
    with pytest.raises(ValueError, match=r"consumed 6 .* multiple of 4"):
        loader.load_state_dict(loader.state_dict() | {"consumed": 6})


def test_the_next_loop_continues_where_the_last_one_ended(loader_arguments: dict[str, Any]) -> None:
    unbroken, broken = (train_loader(**loader_arguments, batch_size=4, seed=1) for _ in range(2))
    expected = an_epoch(unbroken) + an_epoch(unbroken)
    seen: list[tuple[Tensor, Tensor]] = []
    while len(seen) < len(expected):
        for images, labels in broken:
            seen.append((images.clone(), labels.clone()))
            if len(seen) % 3 == 0:
                break
    assert equal(seen, expected)


def test_a_state_after_the_last_batch_is_the_next_epoch(loader_arguments: dict[str, Any]) -> None:
    loader = train_loader(**loader_arguments, batch_size=8)
    states = [loader.state_dict() for _ in loader]
    assert [(state["epoch"], state["consumed"]) for state in states[-2:]] == [(0, 16), (1, 0)]


@more_workers_than_cores
def test_prefetched_batches_do_not_count_as_consumed(large: Path) -> None:
    loader = train_loader(large, MIXING, preprocess=SMALL, batch_size=2, num_workers=4)
    next(iter(loader))
    assert loader.state_dict()["consumed"] == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", 1), ("num_samples", 5), ("hash", "0" * 64), ("shuffle_window", 3), ("version", 1),
     ("order_version", 0)],
)  # fmt: skip
def test_a_state_that_does_not_fit_is_rejected_naming_the_field(
    loader_arguments: dict[str, Any], field: str, value: object
) -> None:
    loader = train_loader(**loader_arguments, batch_size=4)
    state = loader.state_dict()
    with pytest.raises(ValueError, match=f"{field} is {value!r} in the state and"):
        loader.load_state_dict(state | {field: value})
    del state[field]
    with pytest.raises(ValueError, match=f"missing required field `{field}`"):
        loader.load_state_dict(state)
    assert loader.state_dict()["consumed"] == 0


@pytest.mark.parametrize("consumed", [-1, N])
def test_a_position_outside_the_order_is_rejected(
    loader_arguments: dict[str, Any], consumed: int
) -> None:
    loader = train_loader(**loader_arguments, batch_size=4)
    with pytest.raises(ValueError, match="consumed"):
        loader.load_state_dict(loader.state_dict() | {"consumed": consumed})


# --- decode errors -------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path, sources: list[NDArray[np.uint8]]) -> Path:
    contents = [encoded(image) for image in sources]
    contents[3] = contents[3][: len(contents[3]) // 2]
    contents[8] = b"not an image"
    return write_shards(tmp_path / "damaged", contents, sizes=SIZES)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_decode_error_names_shard_and_key(damaged: Path, num_workers: int) -> None:
    loader = train_loader(damaged, MIXING, preprocess=SMALL, batch_size=15, num_workers=num_workers)
    with pytest.raises(
        PipelineError, match=r"key 0000000[38] in set-000[03]\.tar: .*on_decode_error="
    ):
        an_epoch(loader)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_substitute_is_the_next_sample_of_the_order_and_is_logged(
    damaged: Path, tmp_path: Path, num_workers: int
) -> None:
    file = tmp_path / "errors.jsonl"
    loader = train_loader(
        damaged, MIXING, preprocess=SMALL, batch_size=15, seed=2, num_workers=num_workers,
        on_decode_error="substitute", decode_error_log=file,
    )  # fmt: skip
    epoch = an_epoch(loader)
    order = EpochOrder(N, seed=2, epoch=0).whole()
    expected = [
        next(i for i in np.roll(order, -position) if i not in (3, 8)) for position in range(N)
    ]
    assert torch.cat([labels for _, labels in epoch]).tolist() == [i % 7 for i in expected]
    assert dict(loader.decode_errors) == {"damaged": 1, "unknown format": 1}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {(line["index"], line["key"], line["shard"]) for line in lines} == {
        (3, "00000003", "set-0000.tar"), (8, "00000008", "set-0003.tar"),
    }  # fmt: skip


@pytest.mark.parametrize("world_size", [1, 4])
def test_a_substitute_is_the_next_sample_of_the_partition(damaged: Path, world_size: int) -> None:
    order = EpochOrder(
        N, seed=2, epoch=0, shard_sizes=SIZES, shuffle_window=1, shard_partitions=2
    ).whole()
    shard_partitions = [order[partition::2].tolist() for partition in range(2)]
    # Partition 0, then partition 1, and so on cyclically.
    sequence = np.array(shard_partitions[0] + shard_partitions[1])
    expected = []
    for t in range(N // 4):
        for row in range(4):
            position = (row // 2) * (N // 2) + 2 * t + row % 2
            expected.append(next(i for i in np.roll(sequence, -position) if i not in (3, 8)) % 7)
    ranks = [
        train_loader(
            damaged, MIXING, preprocess=SMALL, batch_size=4, seed=2, shuffle_window=1,
            shard_partitions=2, on_decode_error="substitute", rank=rank, world_size=world_size,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    labels = torch.cat([labels for _, labels in together(ranks)]).tolist()
    assert labels == [int(label) for label in expected]
    assert sum(loader.decode_errors.get("damaged", 0) for loader in ranks) >= 1


def test_skipping_makes_a_batch_smaller_and_keeps_the_other_samples(
    damaged: Path, large: Path
) -> None:
    intact, damaged_ = (
        train_loader(each, MIXING, preprocess=SMALL, batch_size=15, on_decode_error="skip")
        for each in (large, damaged)
    )
    order = EpochOrder(N, seed=0, epoch=0).whole()
    for t, ((images, labels), (skipped, skipped_labels)) in enumerate(
        zip(intact, damaged_, strict=True)
    ):
        kept = [row for row in range(15) if order[15 * t + row] not in (3, 8)]
        assert torch.equal(skipped, images[kept])
        assert torch.equal(skipped_labels, labels[kept])
    assert damaged_.decode_errors == {"damaged": 1, "unknown format": 1}


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_without_any_sample_is_empty(
    damaged: Path, num_workers: int, dtype: torch.dtype
) -> None:
    loader = train_loader(
        damaged, MIXING, preprocess=replace(SMALL, dtype=dtype), batch_size=1, views=2,
        on_decode_error="skip", num_workers=num_workers,
    )  # fmt: skip
    shapes = [tuple(images.shape) for images, _ in loader]
    assert sorted(shapes) == [(0, 2, 3, 14, 14)] * 2 + [(1, 2, 3, 14, 14)] * (N - 2)


def test_evaluation_skips_decode_errors_with_weight_0_or_raises(damaged: Path) -> None:
    loader = eval_loader(damaged, preprocess=SMALL, batch_size=10, on_decode_error="skip")
    weights = torch.cat([weights for _, _, weights in loader])
    assert [i for i in range(N) if weights[i] == 0] == [3, 8]
    with pytest.raises(PipelineError, match=r"key 00000003 in set-0000\.tar"):
        list(eval_loader(damaged, preprocess=SMALL, batch_size=10))
    with pytest.raises(ValueError, match="would count samples twice"):
        eval_loader(damaged, preprocess=SMALL, batch_size=10, on_decode_error="substitute")


@pytest.mark.parametrize("policy", ["skip", "substitute"])
def test_images_in_memory_support_only_raise(
    tmp_path: Path, cache: Path, policy: OnDecodeError
) -> None:
    contents = [encoded(image) for image in drawn_images(4, 1, (16, 16))]
    contents[2] = contents[2][:100]
    folder = write_shards(tmp_path / "small", contents, sizes=(4,), kind="cifar10")
    with pytest.raises(ValueError, match=f"on_decode_error is '{policy}', .*; use 'raise'"):
        train_loader(folder, batch_size=2, on_decode_error=policy, cache_dir=cache)
    with pytest.raises(PipelineError, match=r"key 00000002 in .*remove or replace the image$"):
        train_loader(folder, batch_size=2, cache_dir=cache)


def test_too_many_decode_errors_end_training(damaged: Path) -> None:
    loader = train_loader(
        damaged, MIXING, preprocess=SMALL, batch_size=N, on_decode_error="skip", max_decode_errors=1
    )
    with pytest.raises(PipelineError, match=r"2 samples cannot be decoded \(1 .*, 1 .*\), more"):
        an_epoch(loader)


def test_a_truncated_shard_is_named(large: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    folder.mkdir()
    for path in large.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    loader = train_loader(
        folder, MIXING, preprocess=SMALL, batch_size=N, on_decode_error="skip", cache_dir=tmp_path
    )
    reader = ShardDataset(open_shards(folder))
    last = N - 1
    reader.read(last)
    os.truncate(folder / "set-0005.tar", 600)
    with pytest.raises(PipelineError, match=r"set-0005\.tar has 600 bytes, expected "):
        an_epoch(loader)
    # A shard that is already open.
    with pytest.raises(SampleError, match=r"set-0005\.tar: \d+ of \d+ bytes are missing"):
        reader.read(last)


# --- invalid settings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batch_size": 6, "rank": 0, "world_size": 4}, ValueError, "use a multiple of 4"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"batch_size": 31}, ValueError, "30 samples, fewer than batch_size 31"),
        ({"rank": 4, "world_size": 4}, ValueError, "rank is 4 with 4 processes"),
        ({"rank": 1}, ValueError, "rank is 1 and world_size is None"),
        ({"shuffle_window": 0}, ValueError, "shuffle_window is 0"),
        ({"shard_partitions": 0}, ValueError, "shard_partitions is 0"),
        ({"shard_partitions": 3}, ValueError, "batch_size 4 is not .* shard_partitions 3"),
        ({"on_decode_error": "ignore"}, ValueError, "on_decode_error is 'ignore'"),
        ({"mixing_set": PackedImages.pack(drawn_images(1, 0, (5, 40)))}, ValueError,
         "mixing image 0 is 5x40"),
    ],
)  # fmt: skip
def test_invalid_settings_are_rejected_with_a_remedy(
    loader_arguments: dict[str, Any], changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        an_epoch(train_loader(**(loader_arguments | {"batch_size": 4} | changes)))


def test_images_of_several_sizes_require_a_resized_crop(large: Path, cache: Path) -> None:
    with pytest.raises(PipelineError, match=r"differ in size, .* crop='resized'"):
        train_loader(large, preprocess=CIFAR, batch_size=4, cache_dir=cache)


def test_small_images_are_not_resized_silently(small: Path, cache: Path) -> None:
    with pytest.raises(PipelineError, match=r"16x16 .* but image_size is 32; leave it out"):
        train_loader(small, image_size=32, batch_size=4, cache_dir=cache)


def test_a_dataset_may_have_one_sample(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, [encoded(drawn_images(1)[0])], sizes=(1,))
    assert len(an_epoch(train_loader(folder, preprocess=SMALL, batch_size=1))) == 1
    batches = [
        list(eval_loader(folder, preprocess=SMALL, batch_size=4, rank=rank, world_size=4))
        for rank in range(4)
    ]
    assert [float(batch[0][2].sum()) for batch in batches] == [1, 0, 0, 0]


def test_an_empty_dataset_is_rejected(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, [], sizes=(0,))
    for opened in (train_loader, eval_loader):
        with pytest.raises(PipelineError, match="has no samples"):
            opened(folder, batch_size=1)


@pytest.mark.parametrize(
    "changes",
    [{"crop": "centre"}, {"image_size": None}, {"image_size": 0}, {"padding": -1},
     {"scale": (0, 1)}, {"scale": (0.5, 1.5)}, {"ratio": (2, 1)},
     {"evaluation_resize": 200}],
)  # fmt: skip
def test_invalid_preprocessing_is_rejected(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(ValueError, match=f"{name} is .*; "):
        PreprocessConfig(**changes)


# --- real processes ------------------------------------------------------------------------------


def _train_in_a_process(
    rank: int, folder: Path, rendezvous: Path, queue: "multiprocessing.Queue[Any]"
) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2
    )
    loader = train_loader(folder, MIXING, preprocess=SMALL, batch_size=8, seed=6, num_workers=1)
    batches = []
    for images, labels in loader:
        torch.distributed.all_reduce(torch.zeros(1))
        batches.append((images.numpy().copy(), labels.tolist()))
    queue.put((rank, batches))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_the_batches_of_one(large: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(
            target=_train_in_a_process, args=(rank, large, tmp_path / "rendezvous", queue)
        )
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    alone = an_epoch(train_loader(large, MIXING, preprocess=SMALL, batch_size=8, seed=6))
    assert len(alone) == len(results[0]) == len(results[1]) == N // 8
    for (images, labels), first, second in zip(alone, results[0], results[1], strict=True):
        assert np.array_equal(images.numpy(), np.concatenate([first[0], second[0]]))
        assert labels.tolist() == first[1] + second[1]
