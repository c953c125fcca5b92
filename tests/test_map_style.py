"""Map-style datasets of users: the same batches as shards, and the same laws."""

import errno
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines.errors import PipelineError
from pipelines.loading.config import CIFAR, IMAGENET, LoaderConfig, PreprocessConfig
from pipelines.loading.loader import TrainLoader, eval_loader, train_loader
from pipelines.loading.webdataset import pixmix_stream
from pixmix.images import PackedImages
from shard_sets import drawn_images, encoded, write_shards

N = 26
MIXING = PackedImages.pack(drawn_images(9, 2, (20, 23)))
PREPROCESS = {"resized": replace(IMAGENET, image_size=14), "padded": CIFAR}

Images = list[NDArray[np.uint8]]

as_array: Callable[[NDArray[np.uint8]], Any] = np.asarray


def as_tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


FORMS: dict[str, Callable[[NDArray[np.uint8]], Any]] = {
    "PIL": Image.fromarray, "array": as_array, "tensor": as_tensor,
}  # fmt: skip


class Pairs:
    """A dataset of images in memory and labels, as a user would write it."""

    def __init__(
        self, images: Images, form: str = "array", bad: frozenset[int] = frozenset()
    ) -> None:
        self.images, self.form, self.bad = images, form, bad

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        if i in self.bad:
            raise KeyError("no such file")
        return FORMS[self.form](self.images[i]), i % 7


@pytest.fixture(scope="module", params=["resized", "padded"])
def crop(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture(scope="module")
def images(crop: str) -> Images:
    return drawn_images(N) if crop == "resized" else drawn_images(N, 1, (16, 16))


@pytest.fixture(scope="module")
def shards(crop: str, images: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(
        tmp_path_factory.mktemp(crop), [encoded(image) for image in images], sizes=(9, 17)
    )


@pytest.fixture
def arguments(crop: str, tmp_path: Path) -> dict[str, Any]:
    return {"preprocess": PREPROCESS[crop], "batch_size": 8, "cache_dir": tmp_path / "cache"}


def equal(a: list[tuple[Tensor, ...]], b: list[tuple[Tensor, ...]]) -> bool:
    return len(a) == len(b) > 0 and all(
        torch.equal(x, y)
        for one, other in zip(a, b, strict=True)
        for x, y in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("form", FORMS)
def test_batches_are_those_of_shards_of_the_same_images(
    images: Images, shards: Path, arguments: dict[str, Any], form: str
) -> None:
    ours, theirs = (
        train_loader(data, MIXING, **arguments, seed=3) for data in (Pairs(images, form), shards)
    )
    for _ in range(2):
        assert equal(list(ours), list(theirs))
    ours_, theirs_ = (eval_loader(data, **arguments) for data in (Pairs(images, form), shards))
    assert equal(list(ours_), list(theirs_))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_make_the_same_batches(
    images: Images, shards: Path, arguments: dict[str, Any], method: str
) -> None:
    loader = train_loader(
        Pairs(images), MIXING, **arguments, num_workers=2, multiprocessing_context=method
    )
    assert equal(list(loader), list(train_loader(shards, MIXING, **arguments)))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_batches_do_not_depend_on_the_world_size_and_resume_anywhere(
    images: Images, arguments: dict[str, Any], world_size: int
) -> None:
    unbroken = train_loader(Pairs(images), MIXING, **arguments)
    expected = [*unbroken, *unbroken]
    first = train_loader(Pairs(images), MIXING, **arguments)
    next(iter(first))
    ranks = [
        train_loader(Pairs(images), MIXING, **arguments, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for loader in ranks:
        loader.load_state_dict(first.state_dict())
    batches = [[*loader, *loader] for loader in ranks]
    joined: list[tuple[Tensor, ...]] = [
        tuple(torch.cat(parts) for parts in zip(*shares, strict=True))
        for shares in zip(*batches, strict=True)
    ]
    assert equal(joined, expected[1:])


def test_a_stream_yields_the_batches_of_the_loader() -> None:
    data, config = (
        Pairs(drawn_images(N)), LoaderConfig(preprocess=PREPROCESS["resized"], batch_size=4),
    )  # fmt: skip
    samples: list[dict[str, Any]] = []

    def seen(stage: Any) -> Any:  # noqa: ANN401
        for sample in stage:
            samples.append(sample)
            yield sample

    stream = list(pixmix_stream(data, MIXING, seen, config=config))
    assert equal(stream, list(TrainLoader(data, MIXING, config)))
    assert samples[0]["__key__"] == str(samples[0]["__index__"])


def test_torchvision_datasets_are_supported(tmp_path: Path) -> None:
    for i, image in enumerate(drawn_images(12, 0, (70, 90))):
        path = tmp_path / "images" / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image))
    folder = torchvision.datasets.ImageFolder(tmp_path / "images")
    (images, labels), *_ = train_loader(folder, MIXING, batch_size=12, image_size=16)
    assert images.shape == (12, 3, 16, 16)
    assert sorted(labels.tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    random = torchvision.datasets.FakeData(8, (3, 32, 32), num_classes=4)
    (images, labels), *_ = train_loader(random, batch_size=8, num_workers=1)
    assert images.shape == (8, 3, 32, 32)
    assert set(labels.tolist()) <= {0, 1, 2, 3}


@pytest.mark.parametrize(("side", "expected"), [(32, CIFAR), (64, CIFAR), (65, IMAGENET)])
def test_small_images_get_the_cifar_recipe(side: int, expected: PreprocessConfig) -> None:
    data = Pairs(drawn_images(2, 0, (side, side)))
    size = side if expected is CIFAR else expected.image_size
    ((images, _),) = train_loader(data, batch_size=2)
    assert images.shape == (2, 3, size, size)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_inside_the_dataset_names_the_index(images: Images, num_workers: int) -> None:
    arguments: dict[str, Any] = {
        "preprocess": PREPROCESS["resized"], "batch_size": N, "num_workers": num_workers,
    }  # fmt: skip
    data = Pairs(images, bad=frozenset({11}))
    with pytest.raises(PipelineError, match=r"Pairs\[11\] raised KeyError: 'no such file' \(test_"):
        list(train_loader(data, MIXING, **arguments))
    loader = train_loader(data, MIXING, **arguments, on_decode_error="skip")
    ((batch, _),) = loader
    assert len(batch) == N - 1
    assert loader.decode_errors == {"KeyError": 1}


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ((torch.zeros(3, 8, 8), 0), r"float32.*\(8, 8, 3\).*remove ToTensor"),
        ((np.zeros((8, 8), np.uint8), 0), r"\(8, 8\)"),
        ((np.zeros((8, 8, 4), np.uint8), 0), r"\(8, 8, 4\)"),
        ((np.zeros((8, 8, 3), np.uint8), "cat"), "'cat'; expected an integer"),
        ({"image": 0}, "is a dict"),
        (("image", 0), "is a str"),
    ],
)
def test_an_item_that_is_not_an_image_and_a_label_is_rejected(sample: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(PipelineError, match=message):
        list(train_loader([sample], batch_size=1, preprocess=PREPROCESS["resized"]))


def test_images_of_several_sizes_need_a_resized_crop() -> None:
    data = Pairs([*drawn_images(1, 0, (16, 16)), *drawn_images(1, 0, (16, 17))])
    with pytest.raises(PipelineError, match=r"17x16.*crop='resized'"):
        list(train_loader(data, batch_size=2))


@pytest.mark.parametrize("setting", ["shuffle_window", "shard_partitions"])
def test_settings_of_shards_are_rejected(setting: str) -> None:
    data = Pairs(drawn_images(4, 0, (16, 16)))
    with pytest.raises(ValueError, match=f"{setting}.* 2"):
        train_loader(data, batch_size=2, **{setting: 2})  # type: ignore[arg-type]


def test_the_state_of_another_dataset_is_rejected() -> None:
    small, large = (Pairs(drawn_images(n, 0, (16, 16))) for n in (4, 5))
    state = train_loader(small, batch_size=2).state_dict()
    with pytest.raises(ValueError, match="num_samples"):
        train_loader(large, batch_size=2).load_state_dict(state)
    listed = [small[i] for i in range(4)]
    with pytest.raises(ValueError, match="hash"):
        train_loader(listed, batch_size=2).load_state_dict(state)


def test_a_dataset_that_cannot_be_pickled_for_workers_is_rejected() -> None:
    class Local(Pairs):
        pass

    data = Local(drawn_images(4, 0, (16, 16)))
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(data)
    loader = train_loader(data, batch_size=2, num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(PipelineError, match=r"Local cannot be sent to workers .*'spawn'"):
        next(iter(loader))


def test_a_dataset_without_length_is_rejected() -> None:
    with pytest.raises(PipelineError, match=r"generator.*map-style dataset"):
        train_loader((pair for pair in pairwise([1, 2])), batch_size=2)  # type: ignore[arg-type]


def test_a_state_with_numpy_integers_is_valid_json_and_loads() -> None:
    small = drawn_images(N, 1, (16, 16))
    loader = train_loader(Pairs(small), batch_size=np.int64(8), seed=np.int64(3))
    next(iter(loader))
    state = json.loads(json.dumps(loader.state_dict()))
    assert state["consumed"] == 8
    resumed = train_loader(Pairs(small), batch_size=8, seed=3)
    resumed.load_state_dict(state)
    assert equal(list(resumed), list(train_loader(Pairs(small), batch_size=8, seed=3))[1:])


def test_padding_does_not_count_an_error_twice() -> None:
    loader = eval_loader(
        Pairs(drawn_images(5, 1, (16, 16)), bad=frozenset({0})), batch_size=16,
        preprocess=replace(IMAGENET, image_size=14), on_decode_error="skip", max_decode_errors=1,
    )  # fmt: skip
    ((_, _, weights),) = list(loader)
    assert weights.sum() == 4
    assert sum(loader.decode_errors.values()) == 1


def test_too_many_open_files_is_not_a_decode_error() -> None:
    class Exhausted(Pairs):
        def __getitem__(self, i: int) -> tuple[Any, int]:
            raise OSError(errno.EMFILE, "Too many open files")

    loader = train_loader(
        Exhausted(drawn_images(N)), batch_size=8, on_decode_error="skip",
        preprocess=replace(IMAGENET, image_size=14),
    )  # fmt: skip
    with pytest.raises(PipelineError, match="open files"):
        list(loader)


@pytest.mark.parametrize(
    "sample",
    [(torch.zeros(3, 16, 16, requires_grad=True), 0), (np.zeros((16, 16, 3), np.uint8), 2**70)],
)
def test_tensors_with_gradients_and_huge_labels_raise_one_line(sample: Any) -> None:  # noqa: ANN401
    with pytest.raises(PipelineError, match=r"\[\d\]"):
        list(train_loader([sample] * 8, batch_size=8, preprocess=replace(IMAGENET, image_size=14)))
