"""BatchPixMix agrees with the CPU kernels, on any device."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixmix import BatchPixMix, PixMixSettings, mix_batch, torch_ops
from pixmix.draws import draw_plan
from pixmix.images import PackedImages
from pixmix.mixing import MIXINGS
from pixmix.op_kernels import SCRATCH_LENGTH
from pixmix.operations import CODES, OPERATIONS, apply_operation, draw_argument

ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=ON_CUDA)]
SIZES = [(1, 1), (1, 9), (7, 1), (2, 2), (3, 3), (20, 13), (31, 64), (65, 40)]
SEED = 6


def drawn(seed: int, n: int, height: int, width: int) -> NDArray[np.uint8]:
    """Images of noise, of few values, of a narrow range and of one value."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (n, height, width, 3))
    images[1::4] = images[1::4] // 64 * 85
    images[2::4] = 100 + images[2::4] // 32
    images[3::8] = 77
    return images.astype(np.uint8)


def as_tensor(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def mixing_set(n: int = 12) -> list[NDArray[np.uint8]]:
    generator = np.random.default_rng(3)
    return [
        generator.integers(0, 256, (20 + i % 5, 13 + i % 4, 3), dtype=np.uint8) for i in range(n)
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("code", range(len(OPERATIONS)), ids=CODES)
def test_torch_operations_equal_the_kernels(code: int, device: str) -> None:
    row, generator = OPERATIONS[code], np.random.default_rng(code)
    scratch, n = np.empty(SCRATCH_LENGTH, np.int64), 48
    for height, width in SIZES:
        images = drawn(code, n, height, width)
        levels, signs = generator.uniform(0.1, 10, n), generator.random(n) < 0.5
        arguments = np.array([
            draw_argument(code, level, sign, height, width)
            for level, sign in zip(levels, signs, strict=True)
        ])  # fmt: skip
        expected = np.empty_like(images)
        for image, argument, out in zip(images, arguments, expected, strict=True):
            apply_operation(code, argument, image, out, scratch)
        tensor = as_tensor(images).to(device)
        operation = getattr(torch_ops, row.name)
        if row.level is None:
            result = operation(tensor)
        else:
            numbers = torch.from_numpy(arguments.astype(np.int64) if row.whole else arguments)
            result = operation(tensor, numbers.to(device))
        assert result.dtype == torch.uint8
        assert np.array_equal(result.cpu().numpy().transpose(0, 2, 3, 1), expected), (height, width)
        assert np.array_equal(tensor.cpu().numpy().transpose(0, 2, 3, 1), images)


def test_sampling_in_parts_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    images = as_tensor(drawn(1, 11, 20, 13))
    factors = torch.linspace(-0.3, 0.3, 11, dtype=torch.float64)
    whole = torch_ops.shear_x(images, factors)
    monkeypatch.setattr(torch_ops, "_MAX_PIXELS", 3 * 20 * 13)
    assert torch.equal(torch_ops.shear_x(images, factors), whole)


def mixed_by_kernel(images: NDArray[np.uint8], mixings: tuple[str, ...], k: int) -> Tensor:
    return mix_batch(
        images, PackedImages.pack(mixing_set()), range(len(images)), seed=SEED, epoch=2,
        settings=PixMixSettings(k=k, all_ops=True, mixings=mixings),
    )  # fmt: skip


def by_module(images: NDArray[np.uint8], mixings: tuple[str, ...], k: int, device: str) -> Tensor:
    module = BatchPixMix(mixing_set(), k=k, all_ops=True, mixings=mixings).to(device)
    key = {"seed": SEED, "epoch": 2, "indices": range(len(images))}
    result: Tensor = module(as_tensor(images).to(device), **key)
    return result.cpu()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mixing", MIXINGS)
def test_one_round_of_mixing_agrees_with_the_kernel(mixing: str, device: str) -> None:
    """Both are within 1e-6 of float64."""
    images = drawn(5, 300, 20, 13)
    expected = mixed_by_kernel(images, (mixing,), 1)
    assert float((by_module(images, (mixing,), 1, device) - expected).abs().max()) <= 2e-6


@pytest.mark.parametrize("device", DEVICES)
def test_four_rounds_agree_with_the_kernel_except_near_zero(device: str) -> None:
    """One in 10,000 values may differ by more than 1e-5: powers magnify rounding errors near 0.

    Measured: 7 in a million.
    """
    images = drawn(6, 600, 20, 13)
    difference = (by_module(images, MIXINGS, 4, device) - mixed_by_kernel(images, MIXINGS, 4)).abs()
    assert float((difference > 1e-5).double().mean()) <= 1e-4


def test_the_square_of_a_tiny_value_times_a_huge_power_does_not_overflow() -> None:
    """(2x)^2 and 1e-37^-1 are outside the range of float32, but their product is not."""
    x = torch.tensor([1e-30, 1e-20, 1e-19, 2e-19, 0.0, 1e-38]).view(1, 1, 1, -1)
    y = torch.zeros(1, 1, 1, 6)
    result = _multiplied(x, y, 2.0, -1.0).clamp(0, 1)
    expected = ((2 * x.double()) ** 2 * 1e37 / 2).clamp(0, 1)
    assert float((result - expected).abs().max()) <= 1e-6


def _multiplied(x: Tensor, y: Tensor, a: float, b: float) -> Tensor:
    from pixmix.batch import _multiplied as multiplied

    return multiplied(x, y, torch.full((1, 1, 1, 1), a), torch.full((1, 1, 1, 1), b))


def test_batching_and_order_do_not_change_the_result() -> None:
    images = as_tensor(drawn(7, 40, 20, 13))
    module = BatchPixMix(mixing_set(), all_ops=True, mixings=MIXINGS)
    whole = module(images, seed=1, epoch=3, indices=range(40))
    order = np.random.default_rng(0).permutation(40)
    parts = [
        module(images[torch.from_numpy(part)], seed=1, epoch=3, indices=part)
        for part in (order[:17], order[17:])
    ]
    assert torch.equal(torch.cat(parts), whole[torch.from_numpy(order)])


def test_without_geometric_operations_a_batch_agrees_with_the_kernel() -> None:
    images = drawn(12, 200, 20, 13)
    result = BatchPixMix(mixing_set(), k=1, geometric=False)(
        as_tensor(images), seed=4, epoch=1, indices=range(200)
    )
    expected = mix_batch(
        images, PackedImages.pack(mixing_set()), range(200), seed=4, epoch=1,
        settings=PixMixSettings(k=1, geometric=False),
    )  # fmt: skip
    assert float((result - expected).abs().max()) <= 2e-6


def test_views_are_independent_and_agree_with_the_kernel() -> None:
    images = drawn(8, 50, 20, 13)
    result = BatchPixMix(mixing_set(), k=1, views=3)(
        as_tensor(images), seed=4, epoch=1, indices=range(50)
    )
    expected = mix_batch(
        images, PackedImages.pack(mixing_set()), range(50), seed=4, epoch=1,
        settings=PixMixSettings(k=1), views=3,
    )  # fmt: skip
    assert result.shape == (50, 3, 3, 20, 13)
    assert float((result - expected).abs().max()) <= 2e-6
    assert not torch.equal(result[:, 0], result[:, 1])


@pytest.mark.parametrize("empty", [None, []])
def test_without_a_mixing_set_images_mix_with_augmented_copies(
    empty: list[NDArray[np.uint8]] | None,
) -> None:
    images = drawn(9, 100, 20, 13)
    result = BatchPixMix(empty, k=1)(as_tensor(images), seed=4, epoch=0, indices=range(100))
    expected = mix_batch(images, None, range(100), seed=4, epoch=0, settings=PixMixSettings(k=1))
    assert float((result - expected).abs().max()) <= 2e-6


def test_k_0_returns_the_image_or_one_operation() -> None:
    images = drawn(10, 60, 20, 13)
    result = BatchPixMix(mixing_set(), k=0)(as_tensor(images), seed=4, epoch=0, indices=range(60))
    plan = draw_plan(
        np.arange(60), seed=4, epoch=0, settings=PixMixSettings(k=0), size=(20, 13),
        source_size=(20, 13), flip=False, views=1, n_mixing_images=12,
    )  # fmt: skip
    unchanged = plan.samples["operation"] < 0
    assert 10 < unchanged.sum() < 50
    unit = as_tensor(images).float() / 255
    assert torch.equal(result[torch.from_numpy(unchanged)], unit[torch.from_numpy(unchanged)])


def test_an_empty_batch_is_accepted() -> None:
    empty = torch.empty((0, 3, 20, 13), dtype=torch.uint8)
    assert BatchPixMix(mixing_set())(empty).shape == (0, 3, 20, 13)


def test_without_a_seed_one_number_is_drawn_from_torchs_generator() -> None:
    images, module = as_tensor(drawn(11, 8, 20, 13)), BatchPixMix(mixing_set())
    torch.manual_seed(3)
    first, second = module(images), module(images)
    torch.manual_seed(3)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    assert torch.equal(module(images), second)
    assert torch.equal(module(images, seed=seed, epoch=0, indices=range(8)), first)
    assert not torch.equal(first, second)


def test_inputs_are_not_modified() -> None:
    images = as_tensor(drawn(12, 30, 20, 13))
    before, module = images.clone(), BatchPixMix(mixing_set(), mixings=MIXINGS)
    pixels = module.pixels.clone()
    module(images)
    assert torch.equal(images, before)
    assert torch.equal(module.pixels, pixels)


def test_it_can_be_pickled_and_copied_and_has_an_empty_state_dict() -> None:
    images, module = as_tensor(drawn(13, 8, 20, 13)), BatchPixMix(mixing_set(), k=3, views=2)
    assert module.state_dict() == {}
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        key = {"seed": 1, "epoch": 2, "indices": range(8)}
        assert torch.equal(other(images, **key), module(images, **key))
        assert repr(other) == repr(module)


def test_its_repr_shows_its_arguments() -> None:
    assert repr(BatchPixMix(mixing_set(), k=3)) == (
        "BatchPixMix(12 mixing images, k=3, beta=3, severity=3, all_ops=False, geometric=True, "
        "mixings=('add', 'multiply'), views=None)"
    )
    assert "no mixing images" in repr(BatchPixMix())


IMAGES = torch.zeros((4, 3, 20, 13), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "arguments", "error", "message"),
    [
        (IMAGES.float(), {}, TypeError, "images is torch.float32; pass a tensor of uint8"),
        (IMAGES.numpy(), {}, TypeError, "images is ndarray; pass a tensor"),
        (IMAGES[0], {}, ValueError, r"shape \(3, 20, 13\); pass \(N, 3, H, W\)"),
        (IMAGES[:, :1], {}, ValueError, "three channels"),
        (torch.zeros((4, 3, 21, 13), dtype=torch.uint8), {}, ValueError,
         "mixing image 0 is 20x13 .* crop 21x13; resize"),
        (IMAGES, {"indices": [0, 1], "seed": 1, "epoch": 0}, ValueError,
         r"shape \(2,\) for 4 images; pass one"),
        (IMAGES, {"indices": [0.5] * 4, "seed": 1, "epoch": 0}, TypeError,
         "indices are float64; pass integers"),
        (IMAGES, {"indices": np.array([0, 1, 2, 2**64 - 1], np.uint64), "seed": 1, "epoch": 0},
         ValueError, "index 3 of the batch is 18446744073709551615; pass"),
        (IMAGES, {"seed": 1, "epoch": -1, "indices": range(4)}, ValueError,
         "epoch is -1; pass"),
        (torch.zeros((4, 3, 20, 13), dtype=torch.uint8, device="meta"), {}, ValueError,
         r"on meta and the mixing set on cpu; move this module with .to\('meta'\)"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_rejected_with_a_remedy(
    images: object, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        BatchPixMix(mixing_set())(images, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": -1}, ValueError, "k is -1; pass"),
        ({"beta": 0}, ValueError, "beta is 0; pass"),
        ({"mixings": ("blend",)}, ValueError, "mixings is .*'blend'.*; pass"),
        ({"views": 0}, ValueError, "views is 0; pass"),
        ({"mixing_set": ["cat.jpg"]}, TypeError, "not str; convert"),
        (
            {"mixing_set": [(np.zeros((4, 4, 3), np.uint8), 1)]},
            TypeError,
            "not tuple; .* leave labels out",
        ),
        ({"mixing_set": [np.zeros((4, 4))]}, TypeError, "not float64"),
    ],
)
def test_invalid_parameters_are_rejected_by_the_constructor(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        BatchPixMix(**arguments)


@pytest.mark.parametrize("missing", [["seed"], ["epoch"], ["indices"], ["epoch", "indices"],
                                     ["seed", "epoch"], ["seed", "indices"]])  # fmt: skip
def test_an_incomplete_key_is_rejected_and_the_missing_parts_are_named(
    missing: list[str],
) -> None:
    """With only a seed and an epoch, every batch of the epoch would have the same draws."""
    key = {"seed": 1, "epoch": 2, "indices": range(4)}
    partial = {name: value for name, value in key.items() if name not in missing}
    with pytest.raises(ValueError, match=f"without {' and '.join(missing)}: "):
        BatchPixMix(mixing_set())(IMAGES, **partial)
    assert BatchPixMix(mixing_set())(IMAGES, **key).shape == IMAGES.shape


def test_batches_of_an_epoch_differ_and_samples_differ_between_epochs() -> None:
    images, module = as_tensor(drawn(7, 8, 20, 13)), BatchPixMix(mixing_set())
    first = module(images, seed=1, epoch=3, indices=torch.arange(8))
    assert not torch.equal(module(images, seed=1, epoch=3, indices=torch.arange(8, 16)), first)
    assert not torch.equal(module(images, seed=1, epoch=4, indices=torch.arange(8)), first)
    assert torch.equal(module(images, seed=1, epoch=3, indices=torch.arange(8)), first)


@ON_CUDA
def test_the_host_never_waits_for_the_gpu() -> None:
    module = BatchPixMix(mixing_set(), all_ops=True, mixings=MIXINGS).to("cuda")
    images = as_tensor(drawn(14, 64, 20, 13)).to("cuda")
    key = {"epoch": 0, "indices": range(64)}
    module(images, seed=0, **key)
    torch.cuda.set_sync_debug_mode("error")
    try:
        # Any synchronization raises an error here.
        mixed = [module(images, seed=seed, **key) for seed in range(5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(each.shape == images.shape for each in mixed)
