"""PixMix as a transform: types, seeds, workers, lazy mixing sets and errors."""

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from pixmix import BatchPixMix, PixMix, PixMixSettings, mix_batch
from pixmix.images import PackedImages
from pixmix.mixing import MIXINGS

GENERATOR = np.random.default_rng(0)
IMAGE = GENERATOR.integers(0, 256, (17, 23, 3), dtype=np.uint8)
MIXING_SET = [
    GENERATOR.integers(0, 256, (17 + i % 4, 23 + i % 3, 3), dtype=np.uint8) for i in range(10)
]

NEEDS_A_MIXING_IMAGE = (0, 0, 0)


def test_an_image_is_mixed_as_in_a_batch() -> None:
    transform = PixMix(MIXING_SET, all_ops=True, mixings=MIXINGS)
    settings = PixMixSettings(all_ops=True, mixings=MIXINGS)
    for index in range(100):
        batch = mix_batch(
            IMAGE[None], PackedImages.pack(MIXING_SET), [index], seed=3, epoch=4,
            settings=settings,
        )  # fmt: skip
        assert torch.equal(transform(IMAGE, key=(3, 4, index)), batch[0])


def test_without_geometric_operations_an_image_is_mixed_as_in_a_batch() -> None:
    transform = PixMix(MIXING_SET, geometric=False)
    packed, equal = PackedImages.pack(MIXING_SET), 0
    for index in range(60):
        batch, geometric = (
            mix_batch(IMAGE[None], packed, [index], seed=3, epoch=4, settings=settings)[0]
            for settings in (PixMixSettings(geometric=False), PixMixSettings())
        )
        mixed = transform(IMAGE, key=(3, 4, index))
        assert torch.equal(mixed, batch)
        equal += torch.equal(mixed, geometric)
    # Samples without an operation, or with the same one by chance.
    assert 0 < equal < 40


def test_without_geometric_operations_every_pixel_stays_in_place() -> None:
    # Sharpness, which depends on neighboring pixels, is not among the four operations.
    order = np.random.default_rng(1).permutation(17 * 23)
    shuffled = IMAGE.reshape(-1, 3)[order].reshape(IMAGE.shape)
    static, geometric = PixMix(geometric=False, severity=10), PixMix(severity=10)
    moved = 0
    for index in range(60):
        for transform in (static, geometric):
            one, other = (
                transform(image, key=(1, 0, index)).flatten(1) for image in (IMAGE, shuffled)
            )
            if transform is static:
                assert torch.equal(one[:, torch.from_numpy(order)], other)
            else:
                moved += not torch.equal(one[:, torch.from_numpy(order)], other)
    assert moved > 20


def test_views_equal_those_of_a_batch() -> None:
    transform = PixMix(MIXING_SET, views=5)
    for index in range(30):
        batch = mix_batch(
            IMAGE[None], PackedImages.pack(MIXING_SET), [index], seed=3, epoch=4,
            settings=PixMixSettings(), views=5,
        )  # fmt: skip
        assert torch.equal(transform(IMAGE, key=(3, 4, index)), batch[0])


def test_pil_images_arrays_and_tensors_are_mixed_alike() -> None:
    tensor = torch.from_numpy(IMAGE).permute(2, 0, 1)
    images: list[Any] = [
        IMAGE,
        Image.fromarray(IMAGE),
        tensor,
        tensor.contiguous(),
        tv_tensors.Image(tensor),
        np.asfortranarray(IMAGE),
    ]
    for index in range(20):
        expected = PixMix(MIXING_SET)(IMAGE, key=(0, 0, index))
        assert expected.shape == (3, 17, 23)
        assert expected.dtype == torch.float32
        for image in images:
            for mixing_set in (
                [Image.fromarray(each) for each in MIXING_SET],
                [torch.from_numpy(each).permute(2, 0, 1) for each in MIXING_SET],
                PackedImages.pack(MIXING_SET),
            ):
                result = PixMix(mixing_set)(image, key=(0, 0, index))
                assert torch.equal(result, expected)


def test_inputs_are_not_modified() -> None:
    image, mixing_set = IMAGE.copy(), [each.copy() for each in MIXING_SET]
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    for index in range(50):
        PixMix(mixing_set, mixings=MIXINGS)(tensor, key=(0, 0, index))
    assert np.array_equal(image, IMAGE)
    assert all(np.array_equal(a, b) for a, b in zip(mixing_set, MIXING_SET, strict=True))


class _Counting:
    """A mixing set that counts the images that are loaded."""

    def __init__(self) -> None:
        self.loaded = 0

    def __len__(self) -> int:
        return len(MIXING_SET)

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        self.loaded += 1
        return MIXING_SET[i]


def test_a_mixing_image_is_loaded_once_and_only_if_a_round_needs_it() -> None:
    """P(needed) = 0.6125 at k = 4; of 4 million sets of 4000 samples one is off by over 0.04."""
    mixing_set = _Counting()
    transform = PixMix(mixing_set)  # type: ignore[arg-type]
    for index in range(4000):
        before = mixing_set.loaded
        transform(IMAGE, key=(1, 0, index))
        assert mixing_set.loaded - before in (0, 1)
    assert abs(mixing_set.loaded / 4000 - 0.6125) < 0.04


def test_images_keep_their_size() -> None:
    """The released code crops sheared and translated images to a global side of 32."""
    for shape in ((1, 1, 3), (1, 7, 3), (40, 3, 3), (33, 65, 3)):
        for index in range(40):
            mixed = PixMix(all_ops=True)(np.full(shape, 7, np.uint8), key=(0, 0, index))
            assert mixed.shape == (3, *shape[:2])


def test_without_a_key_torchs_seed_determines_the_result() -> None:
    transform = PixMix(MIXING_SET)

    def mixed(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return [transform(IMAGE) for _ in range(8)]

    first, again, other = mixed(1), mixed(1), mixed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first[1:], first[:-1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_key_does_not_use_torchs_generator() -> None:
    state = torch.get_rng_state()
    PixMix(MIXING_SET)(IMAGE, key=(1, 2, 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_numpys_global_generator_is_not_used() -> None:
    """The released code uses it, so that forked workers draw the same numbers."""
    state = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]  # noqa: NPY002
    torch.manual_seed(0)
    first = PixMix(MIXING_SET)(IMAGE)
    assert np.array_equal(np.random.get_state()[1], state)  # type: ignore[index]  # noqa: NPY002
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(0)
    assert torch.equal(PixMix(MIXING_SET)(IMAGE), first)


class _Images(Dataset[Any]):
    def __init__(self, transform: v2.Transform) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 24

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        mixed, label = self.transform(Image.fromarray(IMAGE), i)
        return mixed, label


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_it_works_in_a_compose_in_dataloader_workers(start: str) -> None:
    transform = v2.Compose([
        v2.RandomCrop((16, 16)), v2.RandomHorizontalFlip(), PixMix(MIXING_SET),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ])  # fmt: skip

    def loaded() -> list[torch.Tensor]:
        torch.manual_seed(7)
        loader = DataLoader(
            _Images(transform), batch_size=6, num_workers=2, multiprocessing_context=start
        )
        batches = list(loader)
        assert torch.equal(torch.cat([labels for _, labels in batches]), torch.arange(24))
        return [images for images, _ in batches]

    first = loaded()
    if start == "fork":
        assert all(torch.equal(a, b) for a, b in zip(first, loaded(), strict=True))
    images = torch.cat(first)
    assert images.shape == (24, 3, 16, 16)
    distinct = {image.numpy().tobytes() for image in images}
    assert len(distinct) == 24


def test_labels_and_other_arguments_are_returned_unchanged() -> None:
    box = object()
    mixed, label, other = PixMix(MIXING_SET)(IMAGE, 5, box, key=(0, 0, 0))
    assert torch.equal(mixed, PixMix(MIXING_SET)(IMAGE, key=(0, 0, 0)))
    assert label == 5
    assert other is box


@pytest.mark.parametrize("empty", [None, []])
def test_without_a_mixing_set_an_image_mixes_with_augmented_copies(
    empty: list[NDArray[np.uint8]] | None,
) -> None:
    results = {PixMix(empty)(IMAGE, key=(0, 0, index)).numpy().tobytes() for index in range(50)}
    assert len(results) > 40


def test_it_can_be_pickled_and_copied() -> None:
    transform = PixMix(MIXING_SET, k=3, beta=4, views=2)
    for other in (pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform)):
        assert torch.equal(other(IMAGE, key=(1, 2, 3)), transform(IMAGE, key=(1, 2, 3)))
        assert repr(other) == repr(transform)


def test_its_repr_shows_its_arguments() -> None:
    text = repr(PixMix(MIXING_SET, k=3, beta=2.5, severity=1, all_ops=True, views=2))
    assert text == (
        "PixMix(10 mixing images, k=3, beta=2.5, severity=1, all_ops=True, geometric=True, "
        "mixings=('add', 'multiply'), views=2, dtype=torch.float32)"
    )
    assert "no mixing set" in repr(PixMix())


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (Image.new("L", (23, 17)), ValueError, r"the image: .* mode L .*convert\('RGB'\)"),
        (Image.new("RGBA", (23, 17)), ValueError, "mode RGBA is not RGB"),
        (IMAGE.astype(np.float32), TypeError, "uint8, 0..255, not float32; .*astype"),
        (IMAGE[..., 0], ValueError, r"shape \(H, W, 3\) .* not \(17, 23\)"),
        (IMAGE.transpose(2, 0, 1), ValueError, r"not \(3, 17, 23\); put the channels last"),
        (torch.zeros(3, 17, 23), TypeError, "not torch.float32; use PixMix before"),
        (torch.zeros(17, 23, 3, dtype=torch.uint8), ValueError, r"\(3, H, W\), not \(17, 23, 3\)"),
        (torch.zeros(1, 17, 23, dtype=torch.uint8), ValueError, r"v2.RGB\(\)"),
        ("cat.jpg", TypeError, "not str"),
        (np.zeros((0, 3, 3), np.uint8), ValueError, "at least 1"),
    ],
)
def test_invalid_images_are_rejected_with_a_remedy(
    image: object, error: type[Exception], message: str
) -> None:
    if not isinstance(image, str):
        with pytest.raises(error, match=message):
            PixMix(MIXING_SET)(image)
    with pytest.raises(error, match=message.replace("the image: ", "mixing image 0: ")):
        PixMix([image])


def test_a_mixing_image_that_is_too_small_is_named() -> None:
    images = [*MIXING_SET[:1], IMAGE[:, :-1]]
    transform = PixMix(images)
    with pytest.raises(ValueError, match=r"mixing image 1 is 17x22 .* crop 17x23; resize"):
        [transform(IMAGE, key=(0, 0, index)) for index in range(30)]


def test_a_small_item_0_is_rejected_at_the_first_image() -> None:
    transform = PixMix([IMAGE[:, :-1]])
    for index in range(8):
        with pytest.raises(ValueError, match=r"mixing image 0 is 17x22 .* crop 17x23; resize"):
            transform(IMAGE, key=(0, 0, index))
    assert transform(IMAGE[:, :-1]).shape == (3, 17, 22)


@pytest.mark.parametrize(
    ("item", "named"),
    [
        ((IMAGE,), "tuple"),
        ((Image.fromarray(IMAGE), 3), "tuple"),
        ((3, "cat", torch.from_numpy(IMAGE).permute(2, 0, 1)), "tuple"),
        ([IMAGE, 3], "list"),
        ({"label": 3, "image": IMAGE}, "dict"),
    ],
)
def test_a_mixing_set_with_labels_is_rejected_and_the_remedy_works(
    item: object, named: str
) -> None:
    dataset = [item, item]
    with pytest.raises(TypeError, match=f"mixing image 0: .* got a {named};") as caught:
        PixMix(dataset)  # type: ignore[arg-type]
    remedy = re.search(r"\[sample.* in dataset\]", str(caught.value))
    assert remedy is not None
    transform = PixMix(eval(remedy[0], {"dataset": dataset}))
    assert transform(IMAGE, key=NEEDS_A_MIXING_IMAGE).shape == (3, 17, 23)


def test_batch_pixmix_rejects_labels_and_the_remedy_works() -> None:
    dataset = [(3, Image.fromarray(IMAGE))] * 2
    with pytest.raises(TypeError, match=r"not tuple; .* leave labels out") as caught:
        BatchPixMix(dataset)  # type: ignore[arg-type]
    remedy = re.search(r"\[numpy.* in dataset\]", str(caught.value))
    assert remedy is not None
    assert len(BatchPixMix(eval(remedy[0], {"dataset": dataset, "numpy": np}))._offsets) == 2


def test_the_constructor_only_loads_item_0_of_the_mixing_set() -> None:
    opened = []

    class Lazy(Dataset[Any]):
        def __len__(self) -> int:
            return 10

        def __getitem__(self, i: int) -> NDArray[np.uint8]:
            opened.append(i)
            return MIXING_SET[i]

    PixMix(Lazy())
    assert opened == [0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": -1}, ValueError, "k is -1; pass"),
        ({"k": 2.5}, TypeError, "k is 2.5; pass"),
        ({"beta": 0}, ValueError, "beta is 0; pass a number of 0.001 or more"),
        ({"severity": 11}, ValueError, "severity is 11; pass"),
        ({"mixings": ("blend",)}, ValueError, "mixings is .*'blend'.*; pass one or more of add"),
        ({"mixings": ()}, ValueError, "pass one or more of add"),
        ({"views": 0}, ValueError, "views is 0; pass"),
        ({"mixing_set": 5}, TypeError, "mixing_set is int; pass a sequence"),
        ({"dtype": torch.float16}, TypeError, "dtype is torch.float16; use torch.float32 or"),
        ({"dtype": "uint8"}, TypeError, "dtype is 'uint8'; use"),
    ],
)
def test_invalid_parameters_are_rejected_by_the_constructor(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PixMix(**arguments)


@pytest.mark.parametrize("key", [(1, 2), 5, (1.5, 0, 0), (0, 1.5, 0), (0, 0, 1.5)])
def test_a_key_that_is_not_three_whole_numbers_is_rejected(key: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match=r"(key|seed|epoch|index) is .*; pass"):
        PixMix(MIXING_SET)(IMAGE, key=key)


@pytest.mark.parametrize("index", [-1, 2**32, 2**63])
def test_an_index_out_of_range_is_rejected(index: int) -> None:
    with pytest.raises(ValueError, match=f"index is {index}; pass an integer from 0 to"):
        PixMix(MIXING_SET)(IMAGE, key=(0, 0, index))


@pytest.mark.parametrize("make", [PixMix, BatchPixMix])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixing_set": {"a": IMAGE}}, "mixing_set is dict; pass"),
        ({"mixing_set": 5}, "mixing_set is int; pass"),
        ({"mixings": None}, "mixings is None; pass names"),
        ({"views": "2"}, "views is '2'; pass an integer"),
        ({"views": True}, "views is True; pass 1 or more"),
    ],
)
def test_parameters_of_another_type_are_rejected_by_the_constructor(
    make: Callable[..., object],
    arguments: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(TypeError, match=message):
        make(**arguments)


def test_a_batch_and_an_empty_image_are_rejected() -> None:
    with pytest.raises(ValueError, match="pass one image at a time, or a batch to BatchPixMix"):
        PixMix()(torch.zeros((1, 3, 8, 8), dtype=torch.uint8))
    with pytest.raises(ValueError, match="height and width of at least 1"):
        PixMix()(torch.zeros((3, 0, 8), dtype=torch.uint8))


# --- Samples, by the rules of torchvision's v2 transforms -----------------------------------------

TENSOR = torch.from_numpy(IMAGE).permute(2, 0, 1).contiguous()
BOXES = tv_tensors.BoundingBoxes([[4, 6, 9, 10]], format="XYXY", canvas_size=(17, 23))
MASK = tv_tensors.Mask(torch.arange(17 * 23).reshape(1, 17, 23))
KEY = (1, 2, 3)
STATIC = PixMix(MIXING_SET, geometric=False)
EXPECTED = STATIC(TENSOR, key=KEY)


def test_tv_tensor_images_keep_their_type_and_others_become_plain_tensors() -> None:
    for views in (None, 1, 3):
        transform = PixMix(MIXING_SET, views=views)
        assert type(transform(tv_tensors.Image(TENSOR))) is tv_tensors.Image
        for image in (TENSOR, IMAGE, Image.fromarray(IMAGE)):
            assert type(transform(image)) is torch.Tensor


def test_only_the_image_of_a_sample_changes() -> None:
    image, extra = tv_tensors.Image(TENSOR), object()
    labels = torch.tensor([5])
    sample = {
        "weights": labels,
        "image": image,
        "target": {"boxes": BOXES, "masks": MASK, "labels": labels, "name": "cat", "extra": extra},
        "ids": [7, (None, np.arange(3))],
    }
    mixed = STATIC(sample, key=KEY)
    assert type(mixed["image"]) is tv_tensors.Image
    assert torch.equal(mixed["image"], EXPECTED)
    assert mixed["weights"] is labels
    assert mixed["target"]["boxes"] is BOXES
    assert mixed["target"]["masks"] is MASK
    assert mixed["target"]["extra"] is extra
    assert mixed["ids"][1][1] is sample["ids"][1][1]  # type: ignore[index]
    assert list(mixed) == list(sample)
    assert sample["image"] is image


@pytest.mark.parametrize("image", [IMAGE, TENSOR, Image.fromarray(IMAGE), tv_tensors.Image(TENSOR)])
def test_a_tuple_equals_several_arguments(image: Any) -> None:  # noqa: ANN401
    together, apart = STATIC((image, 5, "cat"), key=KEY), STATIC(image, 5, "cat", key=KEY)
    for mixed in (together, apart):
        assert type(mixed) is tuple
        assert torch.equal(mixed[0], EXPECTED)
        assert mixed[1:] == (5, "cat")


def test_only_the_first_plain_tensor_is_an_image_and_only_without_typed_images() -> None:
    other = TENSOR.clone()
    for image in (tv_tensors.Image(TENSOR), Image.fromarray(IMAGE)):
        passed, mixed = STATIC(other, image, key=KEY)
        assert passed is other
        assert torch.equal(mixed, EXPECTED)
    mixed, passed, array = STATIC(TENSOR, other, IMAGE, key=KEY)
    assert torch.equal(mixed, EXPECTED)
    assert passed is other
    assert array is IMAGE


def test_two_images_of_a_sample_have_the_same_draws() -> None:
    left, right = STATIC(
        {"left": tv_tensors.Image(TENSOR), "right": Image.fromarray(IMAGE)}
    ).values()
    assert torch.equal(left, right)


@pytest.mark.parametrize("sample", ["cat.jpg", 5, BOXES, (1, "a"), {}, {"boxes": BOXES}])
def test_a_sample_without_an_image_is_rejected(sample: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match="found no image in "):
        PixMix(MIXING_SET)(sample)


def test_a_video_is_rejected_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="pass one image at a time"):
        PixMix(MIXING_SET)(tv_tensors.Video(TENSOR[None]), 5)


def test_boxes_and_masks_with_geometric_operations_cause_one_warning() -> None:
    transform = PixMix(MIXING_SET)
    sample = {"image": tv_tensors.Image(TENSOR), "boxes": BOXES, "target": [MASK]}
    with pytest.warns(UserWarning, match="BoundingBoxes and Mask .*geometric=False") as caught:
        [transform(each) for each in (sample, (TENSOR, MASK), sample)]
    assert len(caught) == 1
    # A further warning would be an error in these tests.
    for _ in range(3):
        STATIC(sample)
        transform({"image": TENSOR, "boxes": [[4, 6, 9, 10]]})


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_a_v2_compose_accepts_samples_of_any_structure(dtype: torch.dtype) -> None:
    transform = v2.Compose([
        v2.ToImage(), v2.RandomCrop((16, 16)), v2.RandomHorizontalFlip(),
        PixMix(MIXING_SET, geometric=False, dtype=dtype),
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ])  # fmt: skip
    target = {"boxes": BOXES, "labels": torch.tensor([1]), "masks": MASK}
    image, found = transform(Image.fromarray(IMAGE), target)
    assert type(found["boxes"]) is tv_tensors.BoundingBoxes
    assert found["masks"].shape == (1, 16, 16)
    assert torch.equal(found["labels"], target["labels"])
    mixed = transform({"labels": torch.rand(4), "image": Image.fromarray(IMAGE)})
    for each in (image, mixed["image"], transform((Image.fromarray(IMAGE), 3))[0]):
        assert type(each) is tv_tensors.Image
        assert each.shape == (3, 16, 16)
        assert each.dtype == torch.float32
        assert -1 <= float(each.min()) < 0 < float(each.max()) <= 1


# --- uint8 ---------------------------------------------------------------------------------------


def test_uint8_is_within_half_a_level_of_the_floats() -> None:
    floats, levels = PixMix(MIXING_SET, all_ops=True), PixMix(
        MIXING_SET, all_ops=True, dtype=torch.uint8
    )  # fmt: skip
    for index in range(60):
        exact, rounded = (each(IMAGE, key=(3, 4, index)) for each in (floats, levels))
        assert rounded.dtype == torch.uint8
        assert rounded.shape == exact.shape
        # float32 has steps of 1.5e-5 near 255.
        assert float((exact.double() * 255 - rounded.double()).abs().max()) <= 0.5 + 2e-5


def test_an_unmixed_image_is_unchanged_as_uint8() -> None:
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    transform = PixMix(k=0, dtype=torch.uint8)
    unchanged = [
        torch.equal(transform(every, key=(0, 0, index)), torch.from_numpy(every).permute(2, 0, 1))
        for index in range(40)
    ]
    assert 8 < sum(unchanged) < 32


def test_uint8_keeps_the_tv_tensor_type_and_the_view_axis() -> None:
    mixed = PixMix(MIXING_SET, views=2, dtype=torch.uint8)(tv_tensors.Image(TENSOR))
    assert type(mixed) is tv_tensors.Image
    assert mixed.dtype == torch.uint8
    assert mixed.shape == (2, 3, 17, 23)


class _Labelled(Dataset[Any]):
    """A dataset for timm's loader, which sets its own transform; the test replaces it."""

    transform: Any = None

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(IMAGE)), i


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("prefetcher", [True, False])
def test_timms_loader_returns_intact_images(*, prefetcher: bool, workers: int) -> None:
    timm_data = pytest.importorskip("timm.data")
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    dataset = _Labelled()
    loader = timm_data.create_loader(
        dataset, (3, 17, 23), 8, is_training=False, use_prefetcher=prefetcher, num_workers=workers,
        mean=mean, std=std, device=torch.device("cpu"), persistent_workers=False,
    )  # fmt: skip
    dtype = torch.uint8 if prefetcher else torch.float32
    mix = PixMix(MIXING_SET, geometric=False, dtype=dtype, k=0)
    # The prefetcher casts its input to uint8, and normalizes it on the device.
    dataset.transform = mix if prefetcher else v2.Compose([mix, v2.Normalize(mean, std)])
    batches = list(loader)
    assert len(batches) == 1
    images, labels = batches[0]
    assert torch.equal(labels, torch.arange(8))
    levels = (images * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]) * 255
    assert images.shape == (8, 3, 17, 23)
    assert len(levels.round().unique()) > 100
    # With k = 0, half of the samples are the image itself.
    assert float((levels - TENSOR.float()).abs().amax((1, 2, 3)).min()) < 0.01
