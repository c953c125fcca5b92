"""The operations equal Pillow's, byte for byte, and their slow twins; the registry is whole."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
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
from PIL import Image, ImageEnhance, ImageOps

import reference
from pixmix import compiling, op_kernels, torch_ops
from pixmix.arguments import check_image
from pixmix.operations import CODES, OPERATIONS, apply, apply_operation, draw_argument

Picture = NDArray[np.uint8]

PILLOW_VERSIONS = ("13.0.0",)
"""Those that the equality was tested against."""
CASES = 10_000
WITHOUT_ARGUMENT = [row.name for row in OPERATIONS if row.level is None]
ENHANCEMENTS = [row.name for row in OPERATIONS if row.level is op_kernels.enhancement_factor]
MIXING_PAGE = Path(__file__).parent.parent / "docs" / "mixing.md"
BILINEAR = Image.Resampling.BILINEAR


def affine(picture: Image.Image, *matrix: float) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, BILINEAR)


PILLOW: dict[str, Callable[..., Image.Image]] = {
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "posterize": ImageOps.posterize,
    "rotate": lambda picture, degrees: picture.rotate(degrees, BILINEAR),
    "solarize": ImageOps.solarize,
    "shear_x": lambda picture, factor: affine(picture, 1, factor, 0, 0, 1, 0),
    "shear_y": lambda picture, factor: affine(picture, 1, 0, 0, factor, 1, 0),
    "translate_x": lambda picture, pixels: affine(picture, 1, 0, pixels, 0, 1, 0),
    "translate_y": lambda picture, pixels: affine(picture, 1, 0, 0, 0, 1, pixels),
    "color": lambda picture, factor: ImageEnhance.Color(picture).enhance(factor),
    "contrast": lambda picture, factor: ImageEnhance.Contrast(picture).enhance(factor),
    "brightness": lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor),
    "sharpness": lambda picture, factor: ImageEnhance.Sharpness(picture).enhance(factor),
}


def drawn_content(generator: Generator, height: int, width: int) -> Picture:
    """Noise, one or two values, a gradient, a narrow range, smooth noise or one bright pixel."""
    shape = (height, width, 3)
    kind = generator.integers(7)
    if kind == 0:
        picture = generator.integers(0, 256, shape)
    elif kind == 1:
        picture = np.broadcast_to(generator.integers(0, 256, 3), shape)
    elif kind == 2:
        picture = generator.choice(generator.integers(0, 256, 2), shape)
    elif kind == 3:
        steps = generator.integers(-9, 10, 2)
        ramp = steps[0] * np.arange(height)[:, None] + steps[1] * np.arange(width)
        picture = (ramp[..., None] + generator.integers(0, 256, 3)) % 256
    elif kind == 4:
        low = generator.integers(0, 250)
        picture = generator.integers(low, low + 6, shape)
    elif kind == 5:
        waves = np.sin(generator.random() * np.arange(height * width * 3).reshape(shape))
        picture = np.clip(140 * waves + 128, 0, 255)
    else:
        picture = np.full(shape, generator.integers(0, 3))
        picture[generator.integers(height), generator.integers(width)] = 255
    return np.ascontiguousarray(picture, np.uint8)


def drawn_argument(generator: Generator, name: str, height: int, width: int) -> float:
    """An argument from the whole range, with its corners drawn often."""
    if name == "posterize":
        return int(generator.integers(1, 9))  # Pillow 13.0 refuses 0
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


def applied(name: str, picture: Picture, argument: float) -> Picture:
    return apply(name, picture) if name in WITHOUT_ARGUMENT else apply(name, picture, argument)


def by_pillow(name: str, picture: Picture, argument: float) -> Picture:
    arguments = () if name in WITHOUT_ARGUMENT else (argument,)
    return np.asarray(PILLOW[name](Image.fromarray(picture), *arguments))


def installed() -> str:
    return f"Pillow {PIL.__version__} is installed, the equality was tested with {PILLOW_VERSIONS}"


def count_differing(name: str, generator: Generator, sizes: list[tuple[int, int]]) -> list[Any]:
    """Return what differs from Pillow: (differing bytes, height, width, argument) each."""
    found = []
    for height, width in sizes:
        picture = drawn_content(generator, height, width)
        argument = drawn_argument(generator, name, height, width)
        differing = np.count_nonzero(
            applied(name, picture, argument) != by_pillow(name, picture, argument)
        )
        if differing:
            found.append((differing, height, width, argument))
    return found


# --- Pillow --------------------------------------------------------------------------------------


def test_every_operation_is_compared() -> None:
    assert list(PILLOW) == list(CODES) == [row.name for row in OPERATIONS]


@pytest.mark.slow
@pytest.mark.parametrize("name", CODES)
def test_an_operation_equals_pillow_on_ten_thousand_pictures(name: str) -> None:
    generator = np.random.default_rng([1, CODES[name]])
    sizes = generator.integers(1, 41, (CASES, 2)).tolist()
    assert len(sizes) == CASES
    assert not count_differing(name, generator, sizes), installed()


@pytest.mark.parametrize("name", CODES)
def test_an_operation_equals_pillow_on_larger_pictures(name: str) -> None:
    generator = np.random.default_rng([2, CODES[name]])
    sizes = [(224, 160), (97, 331), (1, 900), (900, 1), (2, 515), (513, 3)] * 8
    assert not count_differing(name, generator, sizes), installed()


def test_an_image_is_rotated_by_whole_degrees_as_pillow_does() -> None:
    generator, angles = np.random.default_rng(3), range(-720, 721)
    different = []
    for degrees in angles:
        picture = drawn_content(generator, 11, 14)
        if not np.array_equal(
            apply("rotate", picture, degrees), by_pillow("rotate", picture, degrees)
        ):
            different.append(degrees)
    assert len(angles) == 1441
    assert not different, installed()


def small_pictures(longest: int) -> st.SearchStrategy[Picture]:
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
def test_an_operation_equals_pillow_and_its_slow_twin(name: str, data: st.DataObject) -> None:
    picture = data.draw(small_pictures(7))
    argument = data.draw(arguments(name))
    twin = getattr(reference, name)
    mine = applied(name, picture, argument)
    slow = twin(picture) if name in WITHOUT_ARGUMENT else twin(picture, argument)
    assert np.array_equal(mine, slow)
    assert np.array_equal(mine, by_pillow(name, picture, argument)), installed()


@pytest.mark.parametrize("name", CODES)
def test_an_operation_equals_its_slow_twin_on_noise(name: str) -> None:
    # Larger than the pieces that kernels work in, and wide enough to need many of them.
    generator = np.random.default_rng([4, CODES[name]])
    for height, width in [(33, 47), (3, 411), (70, 5)]:
        picture = drawn_content(generator, height, width)
        argument = drawn_argument(generator, name, height, width)
        twin = getattr(reference, name)
        slow = twin(picture) if name in WITHOUT_ARGUMENT else twin(picture, argument)
        assert np.array_equal(applied(name, picture, argument), slow)


def test_no_bits_leave_black() -> None:
    picture = drawn_content(np.random.default_rng(5), 5, 8)
    assert not apply("posterize", picture, 0).any()


def test_the_division_of_the_smoothing_is_that_of_pillow_for_every_sum() -> None:
    # Nine bytes, the middle one five times: 0..3315.
    assert [op_kernels.smoothed(n) for n in range(3316)] == [
        (2 * n + 13) // 26 for n in range(3316)
    ]


# --- Kernels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODES)
def test_a_kernel_depends_on_its_picture_alone_and_leaves_it(name: str) -> None:
    generator = np.random.default_rng([6, CODES[name]])
    code = CODES[name]
    shapes = [(19, 26), (26, 19), (1, 1), (2, 7), (7, 2), (1, 300), (130, 3), (3, 3)]
    for height, width in shapes * 4:
        picture = drawn_content(generator, height, width)
        argument = float(round(drawn_argument(generator, name, height, width)))
        kept, outs = picture.copy(), []
        for _ in range(2):
            out = generator.integers(0, 256, picture.shape, dtype=np.uint8)
            scratch = generator.integers(-(2**62), 2**62, op_kernels.SCRATCH_LENGTH)
            apply_operation(code, argument, picture, out, scratch)
            outs.append(out)
        assert np.array_equal(picture, kept)
        assert np.array_equal(*outs)
        assert np.array_equal(outs[0], applied(name, picture, argument))


@pytest.mark.parametrize("name", CODES)
def test_a_kernel_writes_nothing_outside_its_picture(name: str) -> None:
    generator = np.random.default_rng([7, CODES[name]])
    for height, width in [(1, 1), (1, 2), (3, 5), (5, 3), (9, 22), (40, 31)]:
        size = height * width * 3
        picture = drawn_content(generator, height, width)
        argument = float(round(drawn_argument(generator, name, height, width)))
        memory = generator.integers(0, 256, size + 256, dtype=np.uint8)
        kept = memory.copy()
        # An odd address: rows of a batch lie anywhere.
        out = memory[101 : 101 + size].reshape(height, width, 3)
        scratch = np.zeros(op_kernels.SCRATCH_LENGTH + 64, np.int64)
        apply_operation(CODES[name], argument, picture, out, scratch[: op_kernels.SCRATCH_LENGTH])
        assert np.array_equal(memory[:101], kept[:101])
        assert np.array_equal(memory[101 + size :], kept[101 + size :])
        assert not scratch[op_kernels.SCRATCH_LENGTH :].any()


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux to guard pages")
def test_a_kernel_touches_no_byte_beside_its_pictures() -> None:
    # Reading is invisible: a picture may end where mapped memory ends.
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
def test_a_picture_need_not_be_contiguous(name: str) -> None:
    generator = np.random.default_rng([8, CODES[name]])
    picture = drawn_content(generator, 15, 22)
    argument = drawn_argument(generator, name, 15, 22)
    view = np.repeat(picture, 2, axis=1)[:, ::2]
    assert not view.flags.c_contiguous
    assert np.array_equal(applied(name, view, argument), applied(name, picture, argument))


@njit
def word(source: Picture, start: int) -> int:
    return compiling.word_at(source, start)


@njit
def long_word_moved(source: Picture, target: Picture, start: int, end: int) -> int:
    both = compiling.long_word_at(source, start)
    compiling.set_long_word(target, end, both)
    return both


@given(start=st.integers(0, 12), end=st.integers(0, 12))
def test_a_word_is_its_bytes_and_no_others_at_any_address(start: int, end: int) -> None:
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
    """As AugMix has it: int_parameter(level, n) = int(level * n / 10)."""
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


def test_a_level_is_rounded_where_the_formula_as_written_rounds_it() -> None:
    # Just where int() steps: another order of the product and the division gives other arguments.
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
def test_an_unknown_code_raises(code: int) -> None:
    picture, scratch = np.zeros((2, 3, 3), np.uint8), np.empty(op_kernels.SCRATCH_LENGTH, np.int64)
    with pytest.raises(ValueError, match="unknown code"):
        apply_operation(code, 1.0, picture, picture.copy(), scratch)
    with pytest.raises(ValueError, match="unknown code"):
        draw_argument(code, 1.0, False, 2, 3)


# --- The rows ------------------------------------------------------------------------------------


def test_a_row_has_a_kernel_and_a_torch_function_of_its_name() -> None:
    for row in OPERATIONS:
        assert row.kernel.py_func.__name__ == row.name
        assert callable(getattr(torch_ops, row.name))


def test_the_paper_draws_nine_operations_and_all_ops_adds_four_that_overlap_c() -> None:
    assert [row.name for row in OPERATIONS if row.overlaps_c] == [
        "color", "contrast", "brightness", "sharpness",
    ]  # fmt: skip
    standard = [row for row in OPERATIONS if row.standard]
    assert len(standard) == 9
    assert not any(row.overlaps_c for row in standard)


def documented(row: Any) -> str:  # noqa: ANN401
    """Return a row of the table in docs/mixing.md."""
    does = row.kernel.__doc__.partition("\n")[0].partition(";")[0].rstrip(".")
    level = row.level.__doc__.removeprefix("Return ").rstrip(".") if row.level else ""
    marks = ["yes" if mark else "" for mark in (row.standard, row.geometric, row.overlaps_c)]
    return f"| {' | '.join([row.name, does, level, *marks])} |"


def test_the_documented_table_is_that_of_the_rows() -> None:
    table = [line for line in MIXING_PAGE.read_text().splitlines() if line.startswith("|")]
    first = next(n for n, line in enumerate(table) if line.startswith("| operation"))
    expected = [documented(row) for row in OPERATIONS]
    assert table[first + 2 : first + 2 + len(expected)] == expected


# --- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture", [None, [[0, 0, 0]], Image.new("RGB", (3, 2))])
def test_what_is_not_an_array_is_refused(picture: object) -> None:
    with pytest.raises(TypeError, match=r"uint8 array, not \w+; convert"):
        check_image(picture)


@pytest.mark.parametrize("kind", [np.float32, np.int64, np.int8, bool])
def test_another_dtype_is_refused(kind: type) -> None:
    with pytest.raises(TypeError, match=rf"not {np.dtype(kind)}; .*astype"):
        check_image(np.zeros((2, 3, 3), kind))


@pytest.mark.parametrize("shape", [(2, 3), (3, 4, 5), (2, 3, 4), (2, 3, 1), (0, 3, 3), (3, 0, 3)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(H, W, 3\) .* not \(.*channels last"):
        check_image(np.zeros(shape, np.uint8))


def test_more_pixels_than_an_index_counts_are_refused() -> None:
    picture = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (2**16, 2**15, 3))
    with pytest.raises(ValueError, match=r"at most 2147483647 pixels, not \(65536, 32768\); cut"):
        check_image(picture)


def test_a_picture_that_cannot_be_written_is_compiled_for_only_once() -> None:
    picture = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    expected = apply("posterize", picture, 3)
    compiled = len(op_kernels.posterize.signatures)
    picture.setflags(write=False)
    assert np.array_equal(apply("posterize", picture, 3), expected)
    assert len(op_kernels.posterize.signatures) == compiled


def test_a_contiguous_picture_is_not_copied() -> None:
    picture = np.zeros((2, 3, 3), np.uint8)
    assert check_image(picture) is picture


@pytest.mark.parametrize("name", CODES)
def test_every_operation_checks_its_picture(name: str) -> None:
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
def test_an_argument_outside_its_range_is_refused(name: str, argument: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}: {re.escape(str(argument))} is .*; \w+"):
        applied(name, np.zeros((2, 3, 3), np.uint8), argument)


@pytest.mark.parametrize("name", [row.name for row in OPERATIONS if row.whole])
def test_a_fraction_where_a_whole_number_belongs_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: 1\.5 is not whole"):
        apply(name, np.zeros((2, 3, 3), np.uint8), 1.5)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError, match="posterise"):
        apply("posterise", np.zeros((2, 3, 3), np.uint8))


@pytest.mark.parametrize("pixels", [10**30, -(10**30)])
def test_a_picture_moved_ever_so_far_is_black(pixels: int) -> None:
    picture = np.full((4, 5, 3), 9, np.uint8)
    assert not apply("translate_x", picture, pixels).any()
    assert not apply("translate_y", picture, pixels).any()
