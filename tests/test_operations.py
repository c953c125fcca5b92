"""The operations equal Pillow and their reference implementations; the table is complete."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numba import njit
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

import reference
from pipelines.bench.references import PILLOW_OPERATIONS
from pixmix import compiling, op_kernels, torch_ops
from pixmix.images import check_image
from pixmix.operations import CODES, OPERATIONS, apply, apply_operation, draw_argument

Pixels = NDArray[np.uint8]

PILLOW_VERSIONS = ("13.0.0",)
"""The versions that the equality was tested against."""
CASES = 10_000
WITHOUT_ARGUMENT = [row.name for row in OPERATIONS if row.level is None]
ENHANCEMENTS = [row.name for row in OPERATIONS if row.level is op_kernels.enhancement_factor]
MIXING_PAGE = Path(__file__).parent.parent / "docs" / "mixing.md"


def drawn_content(generator: Generator, height: int, width: int) -> Pixels:
    """Noise, one or two values, a gradient, a narrow range, waves or one bright pixel."""
    shape = (height, width, 3)
    kind = generator.integers(7)
    if kind == 0:
        image = generator.integers(0, 256, shape)
    elif kind == 1:
        image = np.broadcast_to(generator.integers(0, 256, 3), shape)
    elif kind == 2:
        image = generator.choice(generator.integers(0, 256, 2), shape)
    elif kind == 3:
        steps = generator.integers(-9, 10, 2)
        ramp = steps[0] * np.arange(height)[:, None] + steps[1] * np.arange(width)
        image = (ramp[..., None] + generator.integers(0, 256, 3)) % 256
    elif kind == 4:
        low = generator.integers(0, 250)
        image = generator.integers(low, low + 6, shape)
    elif kind == 5:
        waves = np.sin(generator.random() * np.arange(height * width * 3).reshape(shape))
        image = np.clip(140 * waves + 128, 0, 255)
    else:
        image = np.full(shape, generator.integers(0, 3))
        image[generator.integers(height), generator.integers(width)] = 255
    return np.ascontiguousarray(image, np.uint8)


def drawn_argument(generator: Generator, name: str, height: int, width: int) -> float:
    """An argument from the whole range, often a special value."""
    if name == "posterize":
        return int(generator.integers(1, 9))  # Pillow 13.0 rejects 0
    if name == "solarize":
        return int(generator.integers(0, 257))
    if name.startswith("translate"):
        reach = max(height, width) + 3
        return int(generator.integers(-reach, reach + 1))
    kind = generator.integers(6)
    if name == "rotate":
        return int(
            [
                90 * generator.integers(-12, 13),
                generator.integers(-30, 31),
                generator.integers(-720, 721),
                45 * generator.integers(-8, 9),
                generator.integers(-2, 3) + 90 * generator.integers(-4, 5),
                generator.integers(-100_000, 100_000),
            ][kind]
        )
    if name.startswith("shear"):
        choices = [
            generator.uniform(-0.3, 0.3),
            generator.normal() * 3,
            generator.integers(-30, 31) / 10,
            float(generator.integers(-3, 4)),
            generator.normal() * 10.0 ** generator.uniform(-320, 300),
            2.0 ** generator.integers(-60, 3) - generator.integers(0, 2),
        ]
    else:
        choices = [
            generator.uniform(0, 1),
            generator.uniform(0.1, 1.9),
            generator.uniform(0, 20),
            float(generator.integers(0, 3)),
            1 + generator.normal() * 1e-7,
            10.0 ** generator.uniform(-30, 30),
        ]
    return float(choices[kind])


def applied(name: str, image: Pixels, argument: float) -> Pixels:
    return apply(name, image) if name in WITHOUT_ARGUMENT else apply(name, image, argument)


def by_pillow(name: str, image: Pixels, argument: float) -> Pixels:
    return np.asarray(PILLOW_OPERATIONS[name](Image.fromarray(image), argument))


def by_reference(name: str, image: Pixels, argument: float) -> Pixels:
    arguments = () if name in WITHOUT_ARGUMENT else (argument,)
    result: Pixels = getattr(reference, name)(image, *arguments)
    return result


def installed() -> str:
    return f"Pillow {PIL.__version__} is installed, the equality was tested with {PILLOW_VERSIONS}"


def count_differing(name: str, generator: Generator, sizes: list[tuple[int, int]]) -> list[Any]:
    """Return the cases that differ from Pillow: (differing bytes, height, width, argument)."""
    found = []
    for height, width in sizes:
        image = drawn_content(generator, height, width)
        argument = drawn_argument(generator, name, height, width)
        differing = np.count_nonzero(
            applied(name, image, argument) != by_pillow(name, image, argument)
        )
        if differing:
            found.append((differing, height, width, argument))
    return found


# --- Pillow --------------------------------------------------------------------------------------


def test_every_operation_has_a_pillow_reference() -> None:
    assert list(PILLOW_OPERATIONS) == list(CODES) == [row.name for row in OPERATIONS]


@pytest.mark.slow
@pytest.mark.parametrize("name", CODES)
def test_an_operation_equals_pillow_on_ten_thousand_images(name: str) -> None:
    generator = np.random.default_rng([1, CODES[name]])
    sizes = generator.integers(1, 41, (CASES, 2)).tolist()
    assert len(sizes) == CASES
    assert not count_differing(name, generator, sizes), installed()


@pytest.mark.parametrize("name", CODES)
def test_an_operation_equals_pillow_on_larger_images(name: str) -> None:
    generator = np.random.default_rng([2, CODES[name]])
    sizes = [(224, 160), (97, 331), (1, 900), (900, 1), (2, 515), (513, 3)] * 8
    assert not count_differing(name, generator, sizes), installed()


def test_rotations_by_all_whole_degrees_equal_pillow() -> None:
    generator, angles = np.random.default_rng(3), range(-720, 721)
    different = []
    for degrees in angles:
        image = drawn_content(generator, 11, 14)
        if not np.array_equal(apply("rotate", image, degrees), by_pillow("rotate", image, degrees)):
            different.append(degrees)
    assert len(angles) == 1441
    assert not different, installed()


def small_images(longest: int) -> st.SearchStrategy[Pixels]:
    sides = st.integers(1, longest)
    values = st.one_of(st.sampled_from([0, 1, 127, 128, 254, 255]), st.integers(0, 255))
    return st.tuples(sides, sides, st.just(3)).flatmap(
        lambda shape: arrays(np.uint8, shape, elements=values, fill=values)
    )


def arguments(name: str) -> st.SearchStrategy[Any]:
    if name in WITHOUT_ARGUMENT:
        return st.none()
    if name == "posterize":
        return st.integers(1, 8)
    if name == "solarize":
        return st.integers(0, 256)
    if name.startswith("translate"):
        return st.integers(-12, 12)
    if name == "rotate":
        corners = st.integers(-8, 8).map(lambda n: 45 * n)
        return st.one_of(corners, st.integers(-(10**6), 10**6))
    if name.startswith("shear"):
        return st.one_of(st.floats(-4, 4), st.floats(allow_nan=False, allow_infinity=False))
    return st.one_of(st.floats(0, 2), st.floats(0, 3.4e38))


@pytest.mark.parametrize("name", CODES)
@given(data=st.data())
@settings(max_examples=60)
def test_an_operation_equals_pillow_and_its_reference_implementation(
    name: str, data: st.DataObject
) -> None:
    image = data.draw(small_images(7))
    argument = data.draw(arguments(name))
    result = applied(name, image, argument)
    assert np.array_equal(result, by_reference(name, image, argument))
    assert np.array_equal(result, by_pillow(name, image, argument)), installed()


@pytest.mark.parametrize("name", CODES)
def test_an_operation_equals_its_reference_implementation_on_larger_images(name: str) -> None:
    # Larger than the pieces of a row that kernels process at a time.
    generator = np.random.default_rng([4, CODES[name]])
    for height, width in [(33, 47), (3, 411), (70, 5)]:
        image = drawn_content(generator, height, width)
        argument = drawn_argument(generator, name, height, width)
        expected = by_reference(name, image, argument)
        assert np.array_equal(applied(name, image, argument), expected)


def test_posterizing_to_0_bits_returns_black() -> None:
    image = drawn_content(np.random.default_rng(5), 5, 8)
    assert not apply("posterize", image, 0).any()


def test_smoothing_divides_every_possible_sum_as_pillow_does() -> None:
    # Nine bytes, the center weighted five times: 0..3315.
    assert [op_kernels.smoothed(n) for n in range(3316)] == [
        (2 * n + 13) // 26 for n in range(3316)
    ]


# --- Kernels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODES)
def test_a_kernel_depends_only_on_its_image_and_does_not_modify_it(name: str) -> None:
    generator = np.random.default_rng([6, CODES[name]])
    code = CODES[name]
    shapes = [(19, 26), (26, 19), (1, 1), (2, 7), (7, 2), (1, 300), (130, 3), (3, 3)]
    for height, width in shapes * 4:
        image = drawn_content(generator, height, width)
        argument = float(round(drawn_argument(generator, name, height, width)))
        kept, outs = image.copy(), []
        for _ in range(2):
            out = generator.integers(0, 256, image.shape, dtype=np.uint8)
            scratch = generator.integers(-(2**62), 2**62, op_kernels.SCRATCH_LENGTH)
            apply_operation(code, argument, image, out, scratch)
            outs.append(out)
        assert np.array_equal(image, kept)
        assert np.array_equal(*outs)
        assert np.array_equal(outs[0], applied(name, image, argument))


@pytest.mark.parametrize("name", CODES)
def test_a_kernel_writes_only_to_its_output_and_scratch(name: str) -> None:
    generator = np.random.default_rng([7, CODES[name]])
    for height, width in [(1, 1), (1, 2), (3, 5), (5, 3), (9, 22), (40, 31)]:
        size = height * width * 3
        image = drawn_content(generator, height, width)
        argument = float(round(drawn_argument(generator, name, height, width)))
        memory = generator.integers(0, 256, size + 256, dtype=np.uint8)
        kept = memory.copy()
        # An odd address, as rows of a batch may have.
        out = memory[101 : 101 + size].reshape(height, width, 3)
        scratch = np.zeros(op_kernels.SCRATCH_LENGTH + 64, np.int64)
        apply_operation(CODES[name], argument, image, out, scratch[: op_kernels.SCRATCH_LENGTH])
        assert np.array_equal(memory[:101], kept[:101])
        assert np.array_equal(memory[101 + size :], kept[101 + size :])
        assert not scratch[op_kernels.SCRATCH_LENGTH :].any()


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect of Linux")
def test_a_kernel_does_not_access_memory_outside_its_images() -> None:
    # Reads are only visible at the edge of mapped memory.
    tests = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, tests / "guarded.py"],
        cwd=tests.parent,
        env={**os.environ, "PYTHONPATH": str(tests.parent)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 5000


@pytest.mark.parametrize("name", CODES)
def test_images_need_not_be_contiguous(name: str) -> None:
    generator = np.random.default_rng([8, CODES[name]])
    image = drawn_content(generator, 15, 22)
    argument = drawn_argument(generator, name, 15, 22)
    view = np.repeat(image, 2, axis=1)[:, ::2]
    assert not view.flags.c_contiguous
    assert np.array_equal(applied(name, view, argument), applied(name, image, argument))


@njit
def word(source: Pixels, start: int) -> int:
    return compiling.word_at(source, start)


@njit
def long_word_moved(source: Pixels, target: Pixels, start: int, end: int) -> int:
    both = compiling.long_word_at(source, start)
    compiling.set_long_word(target, end, both)
    return both


@given(start=st.integers(0, 12), end=st.integers(0, 12))
def test_words_are_read_and_written_at_any_address(start: int, end: int) -> None:
    source, target = np.arange(101, 121, dtype=np.uint8), np.zeros(20, np.uint8)
    expected = target.copy()
    expected[end : end + 8] = source[start : start + 8]
    assert word(source, start) == int.from_bytes(source[start : start + 4], "little")
    assert long_word_moved(source, target, start, end) == int.from_bytes(
        source[start : start + 8], "little"
    )
    assert np.array_equal(target, expected)


def test_the_operations_do_not_load_torch() -> None:
    code = "import sys, pixmix.operations; print('torch' in sys.modules)"
    root = Path(__file__).parent.parent
    run = [sys.executable, "-c", code]
    output = subprocess.run(run, cwd=root, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"


# --- Arguments -----------------------------------------------------------------------------------


def expected_argument(name: str, level: float, sign: int, height: int, width: int) -> float:
    """The formulas of AugMix: int_parameter(level, n) = int(level * n / 10)."""
    formulas: dict[str, float] = {
        **dict.fromkeys(WITHOUT_ARGUMENT, 0.0),
        "posterize": 4 - int(level * 4 / 10),
        "rotate": sign * int(level * 30 / 10),
        "solarize": 256 - int(level * 256 / 10),
        "shear_x": sign * (level * 0.3 / 10),
        "shear_y": sign * (level * 0.3 / 10),
        "translate_x": sign * int(level * (width / 3) / 10),
        "translate_y": sign * int(level * (height / 3) / 10),
    }
    return formulas.get(name, level * 1.8 / 10 + 0.1)


@pytest.mark.parametrize("name", CODES)
@given(
    level=st.one_of(st.floats(0.1, 10), st.sampled_from([0.1, 1.0, 2.5, 3.0, 10.0])),
    negative=st.booleans(),
    height=st.integers(1, 500),
    width=st.integers(1, 500),
)
@settings(max_examples=60)
def test_a_level_becomes_the_argument_of_the_paper(
    name: str, level: float, negative: bool, height: int, width: int
) -> None:
    code = CODES[name]
    argument = draw_argument(code, level, negative, height, width)
    assert isinstance(argument, float)
    assert argument == expected_argument(name, level, -1 if negative else 1, height, width)


def test_arguments_step_at_the_same_levels_as_the_papers_formula() -> None:
    # At the steps of int(), where another order of product and division gives other arguments.
    steps = [(n * 10 / parts) for parts in (4, 30, 256, 224 / 3, 32 / 3) for n in range(1, 257)]
    around = [np.nextafter(step, side) for step in steps for side in (0.0, step, 11.0)]
    levels = [float(level) for level in around if 0.1 <= level <= 10]
    assert len(levels) > 1000
    for name in ("posterize", "rotate", "solarize", "translate_x", "translate_y"):
        code = CODES[name]
        for level in levels:
            argument = draw_argument(code, level, negative=False, height=32, width=224)
            assert argument == expected_argument(name, level, 1, 32, 224), (name, level)


@pytest.mark.parametrize("code", [-1, len(OPERATIONS), 2**40])
def test_an_unknown_code_is_rejected(code: int) -> None:
    image, scratch = np.zeros((2, 3, 3), np.uint8), np.empty(op_kernels.SCRATCH_LENGTH, np.int64)
    with pytest.raises(ValueError, match="unknown code"):
        apply_operation(code, 1.0, image, image.copy(), scratch)
    with pytest.raises(ValueError, match="unknown code"):
        draw_argument(code, 1.0, False, 2, 3)


# --- The table -----------------------------------------------------------------------------------


def test_a_row_has_a_kernel_and_a_torch_function_of_its_name() -> None:
    for row in OPERATIONS:
        assert row.kernel.py_func.__name__ == row.name
        assert callable(getattr(torch_ops, row.name))


def test_nine_operations_are_standard_and_four_more_overlap_imagenet_c() -> None:
    assert [row.name for row in OPERATIONS if row.overlaps_c] == [
        "color", "contrast", "brightness", "sharpness",
    ]  # fmt: skip
    standard = [row for row in OPERATIONS if row.standard]
    assert len(standard) == 9
    assert not any(row.overlaps_c for row in standard)


def documented(row: Any) -> str:  # noqa: ANN401
    """Return the row of an operation in the table of docs/mixing.md."""
    does = row.kernel.__doc__.partition("\n")[0].partition(";")[0].rstrip(".")
    level = row.level.__doc__.removeprefix("Return ").rstrip(".") if row.level else ""
    marks = ["yes" if mark else "" for mark in (row.standard, row.geometric, row.overlaps_c)]
    return f"| {' | '.join([row.name, does, level, *marks])} |"


def test_the_documented_table_matches_the_operations() -> None:
    table = [line for line in MIXING_PAGE.read_text().splitlines() if line.startswith("|")]
    first = next(n for n, line in enumerate(table) if line.startswith("| operation"))
    expected = [documented(row) for row in OPERATIONS]
    assert table[first + 2 : first + 2 + len(expected)] == expected


# --- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [None, [[0, 0, 0]], Image.new("RGB", (3, 2))])
def test_an_image_that_is_not_an_array_is_rejected(image: object) -> None:
    with pytest.raises(TypeError, match=r"uint8 array, not \w+; convert"):
        check_image(image)


@pytest.mark.parametrize("kind", [np.float32, np.int64, np.int8, bool])
def test_another_dtype_is_rejected(kind: type) -> None:
    with pytest.raises(TypeError, match=rf"not {np.dtype(kind)}; .*astype"):
        check_image(np.zeros((2, 3, 3), kind))


@pytest.mark.parametrize("shape", [(2, 3), (3, 4, 5), (2, 3, 4), (2, 3, 1), (0, 3, 3), (3, 0, 3)])
def test_another_shape_is_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(H, W, 3\) .* not \(.*channels last"):
        check_image(np.zeros(shape, np.uint8))


def test_images_with_too_many_pixels_are_rejected() -> None:
    image = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (2**16, 2**15, 3))
    with pytest.raises(ValueError, match=r"at most 2147483647 pixels, not \(65536, 32768\); split"):
        check_image(image)


def test_read_only_images_do_not_compile_another_kernel() -> None:
    image = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    expected = apply("posterize", image, 3)
    compiled = len(op_kernels.posterize.signatures)
    image.setflags(write=False)
    assert np.array_equal(apply("posterize", image, 3), expected)
    assert len(op_kernels.posterize.signatures) == compiled


def test_a_contiguous_image_is_not_copied() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    assert check_image(image) is image


@pytest.mark.parametrize("name", CODES)
def test_every_operation_validates_its_image(name: str) -> None:
    with pytest.raises(TypeError, match="float64"):
        applied(name, np.zeros((2, 3, 3)), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("posterize", -1),
        ("posterize", 9),
        ("solarize", -1),
        ("solarize", 257),
        ("rotate", math.nan),
        ("rotate", math.inf),
        ("shear_x", -math.inf),
        ("shear_y", math.nan),
        *((name, bad) for name in ENHANCEMENTS for bad in (-0.1, math.nan, math.inf, 1e39)),
    ],
)
def test_an_argument_out_of_range_is_rejected(name: str, argument: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}: {re.escape(str(argument))} is .*; \w+"):
        applied(name, np.zeros((2, 3, 3), np.uint8), argument)


@pytest.mark.parametrize("name", [row.name for row in OPERATIONS if row.whole])
def test_a_fraction_is_rejected_where_a_whole_number_is_expected(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: 1\.5 is not a whole number"):
        apply(name, np.zeros((2, 3, 3), np.uint8), 1.5)


def test_an_unknown_name_is_rejected() -> None:
    with pytest.raises(KeyError, match="posterise"):
        apply("posterise", np.zeros((2, 3, 3), np.uint8))


@pytest.mark.parametrize("pixels", [10**30, -(10**30)])
def test_an_image_translated_by_any_large_distance_is_black(pixels: int) -> None:
    image = np.full((4, 5, 3), 9, np.uint8)
    assert not apply("translate_x", image, pixels).any()
    assert not apply("translate_y", image, pixels).any()
