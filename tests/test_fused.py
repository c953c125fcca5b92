"""The fused kernel equals the composition of its parts, and the pseudocode in Pillow and numpy."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import reference
from pixmix import mixing
from pixmix.draws import NO_OPERATION, Plan, draw_corner, draw_plan
from pixmix.fused import NO_IMAGES, bfloat16_bits, float16_bits, mix_batch, mix_planned
from pixmix.images import PackedImages
from pixmix.mixing import MIXINGS
from pixmix.op_kernels import SCRATCH_LENGTH
from pixmix.operations import OPERATIONS, apply_operation
from pixmix.settings import PixMixSettings
from pixmix.transform import PixMix

ALL = PixMixSettings(all_ops=True)
ZEROS, ONES = np.zeros(3, np.float32), np.ones(3, np.float32)


def drawn(seed: int, *shape: int) -> NDArray[np.uint8]:
    """Images of noise, and images of few values."""
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 256, shape)
    steps = noise // 64 * 85
    return np.where(generator.random(shape[0]).reshape(-1, *[1] * (len(shape) - 1)) < 0.5, noise,
                    steps).astype(np.uint8)  # fmt: skip


def packed(seed: int, n: int, least_height: int, least_width: int) -> PackedImages:
    generator = np.random.default_rng(seed)
    sizes = np.array([least_height, least_width]) + generator.integers(0, 9, (n, 2))
    return PackedImages.pack(
        drawn(seed + i, 1, height, width, 3)[0] for i, (height, width) in enumerate(sizes)
    )


def plan_of(n: int, mixing_images: PackedImages, **changes: object) -> Plan:
    arguments: dict[str, object] = {
        "seed": 5, "epoch": 2, "settings": ALL, "size": (20, 13), "source_size": (20, 13),
        "flip": False, "views": 1, "n_mixing_images": len(mixing_images),
    }  # fmt: skip
    return draw_plan(np.arange(n), **(arguments | changes))  # type: ignore[arg-type]


def composed(
    plan: Plan, row: int, image: NDArray[np.uint8], mixing_images: PackedImages
) -> NDArray[np.float32]:
    """Compute a row of a plan step by step, with the functions of `pixmix.mixing`."""
    sample = plan.samples[row]

    def apply(item: np.void) -> NDArray[np.uint8]:
        out = np.empty_like(image)
        scratch = np.empty(SCRATCH_LENGTH, np.int64)
        apply_operation(int(item["operation"]), float(item["argument"]), image, out, scratch)
        return out

    x = (image if sample["operation"] == NO_OPERATION else apply(sample)) / np.float32(255)
    for item in plan.rounds[row, : sample["rounds"]]:
        if item["operation"] == NO_OPERATION:
            mixing_image = mixing_images[int(sample["mixing_image"])]
            top = draw_corner(sample["top_word"], mixing_image.shape[0], 20)
            left = draw_corner(sample["left_word"], mixing_image.shape[1], 13)
            y = np.ascontiguousarray(mixing_image[top : top + 20, left : left + 13])
        else:
            y = apply(item)
        a, b = float(item["a"]), float(item["b"])
        x = getattr(mixing, MIXINGS[item["mixing"]])(x, y, a, b)
    return x.transpose(2, 0, 1)


def run(images: NDArray[np.uint8], mixing_images: PackedImages, plan: Plan) -> NDArray[np.float32]:
    result = np.empty((len(plan.samples), 3, *images.shape[1:3]), np.float32)
    mix_planned(
        images, mixing_images.layout, plan, result, n_views=len(plan.samples) // len(images),
        padding=0, means=ZEROS, deviations=ONES, n_threads=1,
    )  # fmt: skip
    return result


def test_a_row_equals_its_operations_and_mixings_applied_one_by_one() -> None:
    images, mixing_images = drawn(1, 400, 20, 13, 3), packed(2, 30, 20, 13)
    plan = plan_of(400, mixing_images)
    results = run(images, mixing_images, plan)
    for row in range(400):
        assert np.array_equal(results[row], composed(plan, row, images[row], mixing_images)), row


def test_images_larger_than_a_block_are_mixed_completely() -> None:
    images = drawn(3, 40, 67, 101, 3)
    plan = draw_plan(
        np.arange(40), seed=1, epoch=0, settings=PixMixSettings(), size=(67, 101),
        source_size=(67, 101), flip=False, views=1, n_mixing_images=0,
    )  # fmt: skip
    results = run(images, NO_IMAGES, plan)
    for row in range(40):
        assert np.array_equal(results[row], composed(plan, row, images[row], NO_IMAGES)), row


def test_pixels_agree_with_the_papers_pseudocode_in_pillow_and_numpy() -> None:
    """One in 10,000 values may differ by more than 1e-5: powers magnify rounding errors near 0."""
    n = 1000
    images, mixing_images = drawn(4, n, 20, 13, 3), packed(5, 30, 20, 13)
    # Pillow 13 rejects posterizing to 0 bits, which occurs at severity 10.
    plan = plan_of(n, mixing_images, settings=PixMixSettings(all_ops=True, severity=9.9))
    results = run(images, mixing_images, plan)
    far = 0
    for row in range(n):
        sample = plan.samples[row]
        mixing_image = mixing_images[int(sample["mixing_image"])]
        top = int(draw_corner(sample["top_word"], mixing_image.shape[0], 20))
        left = int(draw_corner(sample["left_word"], mixing_image.shape[1], 13))

        def named(item: np.void) -> tuple[str, float] | None:
            if item["operation"] == NO_OPERATION:
                return None
            return OPERATIONS[item["operation"]].name, float(item["argument"])

        expected = reference.mixed(
            images[row],
            named(sample),
            [
                (named(item), MIXINGS[item["mixing"]], float(item["a"]), float(item["b"]))
                for item in plan.rounds[row, : sample["rounds"]]
            ],
            mixing_image[top : top + 20, left : left + 13],
        )
        difference = np.abs(results[row].transpose(1, 2, 0) - expected)
        far += int((difference > 1e-5).sum())
    assert far <= 1e-4 * results.size


@pytest.mark.parametrize("n_threads", [2, 3, 4])
def test_the_number_of_threads_does_not_change_the_result(n_threads: int) -> None:
    images, mixing_images = drawn(6, 37, 20, 13, 3), packed(7, 9, 20, 13)
    one, more = (
        mix_batch(
            images, mixing_images, range(37), seed=1, epoch=1, settings=ALL, flip=True, padding=3,
            views=2, n_threads=threads,
        )
        for threads in (1, n_threads)
    )  # fmt: skip
    assert torch.equal(one, more)


@given(st.permutations(range(24)), st.integers(1, 23))
@settings(max_examples=25)
def test_batching_and_order_do_not_change_the_result(order: list[int], cut: int) -> None:
    images, mixing_images = drawn(8, 24, 20, 13, 3), packed(9, 9, 20, 13)

    def mix(rows: list[int]) -> torch.Tensor:
        return mix_batch(
            images[rows], mixing_images, [1000 + row for row in rows], seed=-3, epoch=7,
            settings=ALL, flip=True, padding=2,
        )  # fmt: skip

    whole = mix(list(range(24)))
    assert torch.equal(torch.cat([mix(order[:cut]), mix(order[cut:])]), whole[order])


def test_the_first_view_may_be_left_unmixed() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 9, 11, 3), np.uint8)
    mixing_images = PackedImages.pack([np.full((12, 12, 3), 200, np.uint8)])
    given: dict[str, Any] = {"seed": 3, "epoch": 1, "settings": ALL, "flip": True, "padding": 1}
    mixed = mix_batch(images, mixing_images, range(20), views=3, **given)
    plain = mix_batch(images, mixing_images, range(20), views=3, plain_first=True, **given)
    assert torch.equal(plain[:, 1:], mixed[:, 1:])
    unmixed = mix_batch(images, mixing_images, range(20), **{**given, "settings": None})
    assert torch.equal(plain[:, 0], unmixed)
    assert not torch.equal(mixed[:, 0], unmixed)
    with pytest.raises(ValueError, match="plain_first needs several views"):
        mix_batch(images, mixing_images, range(20), plain_first=True, **given)


def test_flip_and_crop_come_before_the_mixing_and_are_shared_by_views() -> None:
    images, mixing_images = drawn(10, 60, 15, 18, 3), packed(11, 9, 20, 13)
    cut = {"seed": 3, "epoch": 1, "flip": True, "padding": 4, "crop": (20, 13)}
    plan = draw_plan(
        np.arange(60), seed=3, epoch=1, settings=ALL, size=(20, 13), source_size=(23, 26),
        flip=True, views=2, n_mixing_images=9,
    )  # fmt: skip
    crops = np.stack([
        reference.crop_and_flip(
            images[n], 4, sample["crop_top"], sample["crop_left"], (20, 13), bool(sample["flip"])
        )
        for n, sample in enumerate(plan.samples[::2])
    ])  # fmt: skip
    plain = mix_batch(images, None, range(60), settings=None, **cut)  # type: ignore[arg-type]
    assert np.array_equal(plain.numpy(), crops.transpose(0, 3, 1, 2) / np.float32(255))
    mixed = mix_batch(images, mixing_images, range(60), settings=ALL, views=2, **cut)  # type: ignore[arg-type]
    assert mixed.shape == (60, 2, 3, 20, 13)
    assert {0, 1} == set(plan.samples["flip"].tolist())
    for name in ("flip", "crop_top", "crop_left"):
        assert np.array_equal(plan.samples[name][::2], plan.samples[name][1::2])
        plan.samples[name] = 0
    assert np.array_equal(mixed.numpy().reshape(120, 3, 20, 13), run(crops, mixing_images, plan))


@pytest.mark.parametrize("padding", [0, 1, 30])
@pytest.mark.parametrize("crop", [(1, 1), (9, 2), (3, 70)])
def test_any_valid_padding_and_crop_is_applied(padding: int, crop: tuple[int, int]) -> None:
    images = drawn(12, 20, 9, 11, 3)
    if crop[1] > 11 + 2 * padding:
        with pytest.raises(ValueError, match=r"crop of 3x70 .* does not fit .*; use a smaller"):
            mix_batch(images, None, range(20), seed=0, epoch=0, settings=None, padding=padding,
                      crop=crop)  # fmt: skip
        return
    plan = draw_plan(
        np.arange(20), seed=0, epoch=0, settings=None, size=crop,
        source_size=(9 + 2 * padding, 11 + 2 * padding), flip=True, views=1, n_mixing_images=0,
    )  # fmt: skip
    result = mix_batch(
        images, None, range(20), seed=0, epoch=0, settings=None, padding=padding, crop=crop,
        flip=True,
    )  # fmt: skip
    for n, sample in enumerate(plan.samples):
        expected = reference.crop_and_flip(
            images[n], padding, sample["crop_top"], sample["crop_left"], crop, bool(sample["flip"])
        )
        assert np.array_equal(result[n].numpy(), expected.transpose(2, 0, 1) / np.float32(255))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_normalization_equals_torchs_in_every_dtype(dtype: torch.dtype) -> None:
    images, mixing_images = drawn(13, 50, 20, 13, 3), packed(14, 9, 20, 13)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plain = mix_batch(images, mixing_images, range(50), seed=1, epoch=0, settings=ALL)
    expected = (plain - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    result = mix_batch(
        images,
        mixing_images,
        range(50),
        seed=1,
        epoch=0,
        settings=ALL,
        mean=mean,
        std=std,
        dtype=dtype,
    )
    assert torch.equal(result, expected.to(dtype))


def test_16_bit_floats_are_rounded_to_nearest_even() -> None:
    generator = np.random.default_rng(15)
    bits = generator.integers(0, 2**32, 100_000, dtype=np.uint32)
    # The smallest values not rounded to 0, the largest subnormals, overflow, infinity and ties.
    edges = np.array(
        [
            *(0, 1, 0x33000000, 0x33000001, 0x387FFFFF, 0x38800000, 0x477FEFFF, 0x477FF000),
            *(0x7F800000, 0x3F801000, 0x3F803000, 0x3F808000, 0x3F818000),
        ],
        np.uint32,
    )
    bits = np.concatenate([bits, edges, edges | np.uint32(1 << 31)])
    values = bits.view(np.float32)
    values = values[~np.isnan(values)]
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16).view(np.uint16)
    bfloats = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    for value, half, bfloat in zip(values, halves, bfloats, strict=True):
        assert float16_bits(value) == half, value
        assert bfloat16_bits(value) == bfloat, value


def test_a_mixing_set_may_be_a_list_or_an_array() -> None:
    images, mixing_images = drawn(16, 30, 20, 13, 3), packed(17, 9, 20, 13)
    arrays = drawn(23, 4, 25, 17, 3)
    key: dict[str, Any] = {"seed": 1, "epoch": 0, "settings": ALL}
    for plain, same in ((list(mixing_images), mixing_images), (arrays, PackedImages.pack(arrays))):
        assert torch.equal(
            mix_batch(images, plain, range(30), **key), mix_batch(images, same, range(30), **key)
        )


def test_inputs_are_not_modified() -> None:
    images, mixing_images = drawn(16, 30, 20, 13, 3), packed(17, 9, 20, 13)
    before, pixels = images.copy(), mixing_images.pixels.copy()
    mix_batch(images, mixing_images, range(30), seed=1, epoch=0, settings=ALL, views=3)
    assert np.array_equal(images, before)
    assert np.array_equal(mixing_images.pixels, pixels)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect of Linux")
def test_mixing_images_are_only_read_if_a_round_needs_them() -> None:
    """The released code decodes one for every sample, 39 % of them in vain.

    The mixing set is in protected memory, so that a process that reads it crashes: a batch of
    samples without mixing images does not crash, and a batch of the others does.
    """
    tests = Path(__file__).parent

    def run_guarded(which: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, tests / "guarded.py", "mixing", which],
            cwd=tests.parent,
            env={**os.environ, "PYTHONPATH": str(tests.parent)},
            capture_output=True,
            text=True,
        )

    unneeded, needed = run_guarded("unneeded"), run_guarded("needed")
    assert unneeded.returncode == 0, unneeded.stderr
    first, second = (int(line.split()[1]) for line in unneeded.stdout.splitlines())
    assert first == second
    assert 300 < first < 480
    assert needed.returncode == -signal.SIGSEGV
    assert needed.stdout == f"mixed {1000 - first}\n"


def test_global_random_generators_are_not_used() -> None:
    """The released code draws from numpy's generator, whose state forked workers share."""
    images, mixing_images = drawn(22, 20, 20, 13, 3), packed(23, 9, 20, 13)

    def states() -> list[object]:
        of_numpy = np.random.get_state()[1].tobytes()  # type: ignore[index,union-attr]  # noqa: NPY002
        return [of_numpy, random.getstate(), torch.get_rng_state().numpy().tobytes()]

    def mix() -> torch.Tensor:
        return mix_batch(images, mixing_images, range(20), seed=1, epoch=0, settings=ALL, flip=True)

    before, first = states(), mix()
    assert states() == before
    np.random.seed(99)  # noqa: NPY002
    random.seed(99)
    torch.manual_seed(99)
    assert torch.equal(mix(), first)


def test_read_only_arrays_are_accepted() -> None:
    images, mixing_images = drawn(18, 5, 20, 13, 3), packed(19, 9, 20, 13)
    expected = mix_batch(images, mixing_images, range(5), seed=1, epoch=0, settings=ALL)
    images.flags.writeable = False
    assert torch.equal(
        mix_batch(images, mixing_images, range(5), seed=1, epoch=0, settings=ALL), expected
    )


def test_the_result_is_written_to_out() -> None:
    images = drawn(20, 5, 20, 13, 3)
    out = torch.empty((5, 2, 3, 20, 13), dtype=torch.bfloat16)
    result = mix_batch(
        images,
        None,
        range(5),
        seed=1,
        epoch=0,
        settings=ALL,
        views=2,
        dtype=torch.bfloat16,
        out=out,
    )
    assert result is out
    expected = mix_batch(
        images, None, range(5), seed=1, epoch=0, settings=ALL, views=2, dtype=torch.bfloat16
    )
    assert torch.equal(out, expected)


def test_an_empty_batch_is_accepted() -> None:
    result = mix_batch(np.empty((0, 20, 13, 3), np.uint8), None, [], seed=1, epoch=0, settings=ALL)
    assert result.shape == (0, 3, 20, 13)


def _mix_in_a_process(queue: "multiprocessing.Queue[float]") -> None:
    images = drawn(21, 8, 20, 13, 3)
    queue.put(float(mix_batch(images, None, range(8), seed=1, epoch=0, settings=ALL,
                              n_threads=2).sum()))  # fmt: skip


def test_threads_work_in_a_forked_process_after_the_parent_used_them() -> None:
    images = drawn(21, 8, 20, 13, 3)
    here = float(
        mix_batch(images, None, range(8), seed=1, epoch=0, settings=ALL, n_threads=2).sum()
    )
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_mix_in_a_process, args=(queue,))
    process.start()
    assert queue.get(timeout=60) == here
    process.join(60)


IMAGES = np.zeros((4, 20, 13, 3), np.uint8)
TOO_SMALL = PackedImages.pack([np.zeros((20, 13, 3), np.uint8), np.zeros((30, 12, 3), np.uint8)])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": IMAGES.astype(np.float32)}, TypeError, "images is float32; pass .* uint8"),
        ({"images": torch.zeros(4, 3, 20, 13)}, TypeError, "images is Tensor; pass"),
        ({"images": IMAGES[..., :1]}, ValueError, r"shape \(4, 20, 13, 1\); pass \(N, H, W, 3\)"),
        ({"images": IMAGES[0]}, ValueError, r"pass \(N, H, W, 3\)"),
        ({"indices": [0, 1, 2]}, ValueError, r"shape \(3,\) for 4 images; pass one per image"),
        ({"indices": [0.5] * 4}, TypeError, "indices are float64; pass integers"),
        ({"indices": [0, 1, 2, -1]}, ValueError, "index 3 of the batch is -1; pass .* from 0 to"),
        ({"indices": [0, 1, 2, 2**32]}, ValueError, "index 3 of the batch is 4294967296; pass"),
        ({"epoch": -1}, ValueError, "epoch is -1; pass"),
        ({"views": 0}, ValueError, "views is 0; pass"),
        ({"padding": -1}, ValueError, "padding is -1; pass"),
        ({"crop": (21, 13)}, ValueError, "crop of 21x13 .* does not fit"),
        ({"n_threads": 0}, ValueError, "n_threads is 0; pass an integer of 1 or more"),
        ({"mean": (0.5,)}, ValueError, "mean is .*; pass three"),
        ({"std": (1, 0, 1)}, ValueError, "std is .*; pass three numbers above 0"),
        ({"dtype": torch.float64}, TypeError, "dtype is torch.float64; pass torch.float32"),
        ({"out": torch.empty(4, 3, 20, 12)}, ValueError, r"pass a contiguous tensor of shape"),
        ({"out": torch.empty(1).half()}, TypeError, "out is torch.float16 on cpu; pass"),
        ({"mixing_set": TOO_SMALL}, ValueError, "mixing image 1 is 30x12 .* crop 20x13; resize"),
    ],
)
def test_invalid_arguments_are_rejected_with_a_remedy(
    changes: dict[str, object], error: type[Exception], message: str
) -> None:
    arguments: dict[str, object] = {
        "images": IMAGES, "mixing_set": None, "indices": range(4), "seed": 0, "epoch": 0,
        "settings": ALL,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        mix_batch(**(arguments | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1.5}, "seed is 1.5; pass an integer"),
        ({"epoch": 1.5}, "epoch is 1.5; pass an integer"),
        ({"views": 1.5}, "views is 1.5; pass"),
        ({"views": True}, "views is True; pass 1 or more"),
        ({"padding": 1.5}, "padding is 1.5; pass"),
        ({"n_threads": 1.5}, "n_threads is 1.5; pass"),
        ({"crop": 20}, r"crop is 20; pass \(height, width\)"),
        ({"crop": (20.0, 13)}, "crop's height is 20.0; pass"),
        ({"mixing_set": {"a": IMAGES[0]}}, "mixing_set is dict; pass the result of open_"),
        ({"mixing_set": 5}, "mixing_set is int; pass"),
        ({"settings": {"k": 4}}, "settings is dict; pass PixMixSettings"),
        ({"out": np.empty((4, 3, 20, 13), np.float32)}, "pass a plain tensor of torch.float32"),
        ({"out": torch.empty((4, 3, 20, 13), requires_grad=True)}, "requires a gradient; pass"),
    ],
)
def test_arguments_of_another_type_are_rejected(changes: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "images": IMAGES, "mixing_set": None, "indices": range(4), "seed": 0, "epoch": 0,
        "settings": ALL,
    }  # fmt: skip
    with pytest.raises(TypeError, match=message):
        mix_batch(**(arguments | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.int32, torch.tensor])
def test_integers_of_numpy_and_torch_are_accepted(kind: Callable[[int], int]) -> None:
    images = drawn(22, 4, 20, 13, 3)
    results = [
        mix_batch(images, None, range(4), seed=of(5), epoch=of(3), settings=ALL)
        for of in (int, kind)
    ]
    assert torch.equal(*results)
    assert torch.equal(
        PixMix(k=kind(2))(images[0], key=(kind(1), kind(2), kind(3))),
        PixMix(k=2)(images[0], key=(1, 2, 3)),
    )


def test_an_unsigned_index_out_of_range_is_named_with_its_value() -> None:
    indices = np.array([0, 1, 2**64 - 1, 2], np.uint64)
    with pytest.raises(ValueError, match="index 2 of the batch is 18446744073709551615; pass"):
        mix_batch(IMAGES, None, indices, seed=0, epoch=0, settings=ALL)
