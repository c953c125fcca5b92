"""`pixmix-show mixed`: the steps that it shows are those of PixMix."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from pipelines.cli import show
from pipelines.errors import PipelineError
from pipelines.loading.mixing_set import open_mixing_set
from pipelines.report import mixing as report_mixing
from pipelines.report.mixing import (
    Draw,
    MixingImages,
    document,
    figure,
    mildest_first,
    mix,
    square,
    to_bytes,
)
from pixmix import PixMix, PixMixSettings, mixing
from pixmix.operations import apply

KEYS = [(seed, epoch, index) for seed, epoch in ((0, 0), (7, 3)) for index in range(12)]


def grainy_image(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return an image of smooth colours with some grain."""
    draws = np.random.default_rng(seed)
    coarse = Image.fromarray(draws.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    grain = draws.integers(-20, 21, (height, width, 3))
    return np.clip(smooth + grain, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two mixing sets with images of several shapes."""
    found = []
    for name, sizes in (("a", [(70, 90), (64, 64), (200, 120)]), ("b", [(48, 30), (64, 100)])):
        folder = tmp_path_factory.mktemp(name)
        for place, size in enumerate(sizes):
            Image.fromarray(grainy_image(place, *size)).save(folder / f"{place}.png")
        found.append(folder)
    return found


def test_lazy_images_equal_those_of_an_opened_set_and_have_its_names(
    folders: list[Path], tmp_path: Path
) -> None:
    lazy = MixingImages(folders, 48)
    opened = open_mixing_set(folders, 48, cache_dir=tmp_path)
    assert len(lazy) == len(opened) == 5
    for place in range(5):
        assert np.array_equal(lazy[place], opened[place])
    files = [folders[0] / f"{n}.png" for n in range(3)] + [folders[1] / f"{n}.png" for n in (0, 1)]
    assert [lazy.name(place) for place in range(5)] == [str(path) for path in files]


@pytest.mark.parametrize("with_set", [True, False])
def test_the_result_equals_that_of_pixmix_for_the_same_key(
    folders: list[Path], with_set: bool
) -> None:
    image = grainy_image(99, 48, 48)
    mixing_set = MixingImages(folders, 48) if with_set else None
    for all_ops in (False, True):
        settings = PixMixSettings(k=3, beta=2.0, severity=6.0, all_ops=all_ops)
        transform = PixMix(mixing_set, k=3, beta=2.0, severity=6.0, all_ops=all_ops)
        for key in KEYS:
            expected = transform(image, key=key)
            draw = mix(image, mixing_set, settings, key)
            assert np.array_equal(draw.result, to_bytes(expected.numpy()))


def test_each_round_mixes_an_augmented_copy_or_a_crop_of_the_named_mixing_image(
    folders: list[Path],
) -> None:
    image = grainy_image(98, 48, 48)
    mixing_set = MixingImages(folders, 48)
    names = [mixing_set.name(place) for place in range(5)]
    seen = set()
    for key in KEYS:
        draw = mix(image, mixing_set, PixMixSettings(all_ops=True), key)
        assert draw.start or np.array_equal(draw.first, image)
        for each in draw.rounds:
            if each.operation is None:
                assert draw.mixing_image is not None
                whole = mixing_set[names.index(draw.mixing_image)]
                windows = np.lib.stride_tricks.sliding_window_view(whole, (48, 48), axis=(0, 1))
                parts = windows.transpose(0, 1, 3, 4, 2).reshape(-1, 48, 48, 3)
                assert (parts == each.other).all(axis=(1, 2, 3)).any()
                continue
            name, _, argument = each.operation.partition(" ")
            if name in ("autocontrast", "equalize"):
                assert np.array_equal(each.other, apply(name, image))
            elif name in ("posterize", "solarize"):
                value = int(argument.split()[0])
                assert np.array_equal(each.other, apply(name, image, value))
            elif name == "translate":
                axis, pixels, _ = argument.split()
                assert np.array_equal(each.other, apply(f"translate_{axis}", image, int(pixels)))
            else:
                continue
            seen.add(name)
        if all(each.operation for each in draw.rounds):
            assert draw.mixing_image is None
    assert seen == {"autocontrast", "equalize", "posterize", "solarize", "translate"}


def test_each_result_is_the_named_mixing_of_the_result_before_and_the_image_shown(
    folders: list[Path],
) -> None:
    image = grainy_image(97, 48, 48)
    mixing_set = MixingImages(folders, 48)
    n_rounds = 0
    for key in KEYS:
        draw = mix(image, mixing_set, PixMixSettings(), key)
        before = draw.first
        for each in draw.rounds:
            x, y = (np.float32(one) / np.float32(255) for one in (before, each.other))
            expected = getattr(mixing, each.mixing)(x, y, each.a, each.b)
            apart = np.abs(expected - np.float32(each.result) / 255)
            # The image before is known to half a level, which b < 0 near black multiplies.
            assert np.median(apart) < 1 / 255
            assert (apart < 0.02).mean() > 0.97
            before = each.result
            n_rounds += 1
    assert n_rounds > 20


def test_the_document_has_the_plan_without_pixels(folders: list[Path]) -> None:
    image = grainy_image(96, 48, 48)
    settings = PixMixSettings()
    draws = [mix(image, MixingImages(folders, 48), settings, (0, 0, i)) for i in range(6)]
    documents = json.loads(json.dumps(document(draws)))["draws"]
    assert [each["key"] for each in documents] == [[0, 0, i] for i in range(6)]
    assert [len(each["rounds"]) for each in documents] == [len(draw.rounds) for draw in draws]
    assert len({len(draw.rounds) for draw in draws}) > 1
    for each, draw in zip(documents, draws, strict=True):
        for written, drawn in zip(each["rounds"], draw.rounds, strict=True):
            assert written == {
                "operation": drawn.operation,
                "mixing": drawn.mixing,
                "a": drawn.a,
                "b": drawn.b,
            }


def test_the_square_equals_resize_and_centre_crop_of_torchvision() -> None:
    for height, width, side in ((60, 91, 32), (91, 60, 32), (40, 40, 40), (30, 50, 64)):
        whole = grainy_image(1, height, width)
        cut = v2.Compose([v2.Resize(side), v2.CenterCrop(side)])
        expected = np.asarray(cut(Image.fromarray(whole)))
        assert np.array_equal(square(whole, side), expected)


def test_the_figure_begins_with_the_mildest_draw_and_frames_each_result(
    folders: list[Path],
) -> None:
    image = grainy_image(95, 48, 48)
    mixing_set = MixingImages(folders, 48)
    draws = [mix(image, mixing_set, PixMixSettings(), (0, 0, i)) for i in range(8)]
    ordered = mildest_first(image, draws)
    with_rounds = [draw for draw in ordered if draw.rounds]
    assert 2 < len(with_rounds) < len(draws)
    assert ordered[: len(with_rounds)] == with_rounds
    changes = [np.abs(draw.result.astype(int) - image).mean() for draw in with_rounds]
    assert changes == sorted(changes)
    pixels = np.asarray(figure(image, draws))
    marked = (pixels == (214, 92, 20)).all(axis=2)
    # The frame is around the last cell of each draw, in one of three columns.
    edges = np.flatnonzero(np.diff(marked.any(axis=1).astype(int), prepend=0) == 1)
    assert len(edges) == len(draws)
    first = 20 - 4
    left = [(int(np.flatnonzero(marked[edge])[0]) - first) / (216 + 20) for edge in edges]
    cells = [1 + (draw.start is not None) + len(draw.rounds) for draw in ordered]
    assert left == [(n - 1) % 3 for n in cells]
    assert len(set(cells)) > 2


def test_text_of_the_figure_is_legible_at_400_pixels() -> None:
    drawn = figure(grainy_image(95, 48, 48), [_plain_draw()])
    assert report_mixing._TEXT * 400 / drawn.width > 10


def _plain_draw() -> Draw:
    first = grainy_image(95, 48, 48)
    return Draw(key=(0, 0, 0), start=None, first=first, mixing_image=None, rounds=())


# --- The command ---------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    return CliRunner().invoke(show.main, ["mixed", *map(str, arguments)])


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "photograph.jpg"
    Image.fromarray(grainy_image(94, 90, 130)).save(path)
    return path


def test_the_command_draws_a_figure_and_prints_the_plan(
    folders: list[Path], photograph: Path, tmp_path: Path
) -> None:
    out, html = tmp_path / "new" / "mixed.png", tmp_path / "mixed.html"
    sets = [word for folder in folders for word in ("--mixing-set", folder)]
    options = ["--draws", 3, "--size", 64, "--seed", 5, "--out", out, "--html", html, "--json"]
    result = run(photograph, *sets, *options)
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert [each["key"] for each in printed["draws"]] == [[5, 0, index] for index in range(3)]
    image = square(np.asarray(Image.open(photograph)), 64)
    mixing_set = MixingImages(folders, 64)
    draws = [mix(image, mixing_set, PixMixSettings(), (5, 0, index)) for index in range(3)]
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(figure(image, draws)))
    assert html.read_text().count("<img ") == html.read_text().count("<table") == 3


def test_user_errors_are_one_line_with_their_exit_code(
    folders: list[Path], photograph: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    empty = tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "0.png").write_bytes(b"nothing")
    a_set = ["--mixing-set", folders[0]]
    cases: list[tuple[int, str, list[object]]] = [
        (2, "--mixing-set", [photograph, "--out", out]),
        (2, "or --no-mixing-set", [photograph, "--out", out, "--no-mixing-set", *a_set]),
        (2, "Missing option '--out'", [photograph, *a_set]),
        (2, "must end in", [photograph, *a_set, "--out", tmp_path / "out.gif"]),
        (2, "does not exist", [tmp_path / "absent.jpg", *a_set, "--out", out]),
        (2, "--beta", [photograph, *a_set, "--out", out, "--beta", "nan"]),
        (2, "--k", [photograph, *a_set, "--out", out, "--k", -1]),
        (1, "text.jpg", [text, *a_set, "--out", out]),
        (1, "holds no images", [photograph, "--mixing-set", empty, "--out", out]),
        (1, "0.png cannot be read",
         [photograph, "--mixing-set", broken, "--out", out, "--draws", 9]),
    ]  # fmt: skip
    for code, message, arguments in cases:
        result = run(*arguments)
        assert result.exit_code == code, (message, result.output)
        assert message in result.stderr
        assert result.stderr.count("Error: ") == 1
        assert result.stdout == ""
        assert not out.exists()


def test_neither_the_photograph_nor_a_mixing_set_is_overwritten(
    folders: list[Path], photograph: Path, tmp_path: Path
) -> None:
    before = photograph.read_bytes()
    link = tmp_path / "link.jpg"
    link.symlink_to(photograph)
    a_set = ["--mixing-set", folders[1], "--mixing-set", folders[0]]
    for out in (photograph, photograph.parent / "." / photograph.name, link):
        result = run(photograph, *a_set, "--out", out)
        assert result.exit_code == 2
        assert "photograph.jpg and would be overwritten" in result.stderr
        assert photograph.read_bytes() == before
    for out in (folders[0] / "mixed.png", folders[1] / "new" / "mixed.png"):
        result = run(photograph, *a_set, "--out", out)
        assert result.exit_code == 2
        assert "is inside" in result.stderr
        assert not out.exists()


def test_a_mixing_set_that_is_an_image_or_a_text_is_rejected_with_what_to_use(
    photograph: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.sh").write_text("echo\n" * 300)
    for name in ("text.sh", "photograph.jpg"):
        place = tmp_path / name
        result = run(photograph, "--mixing-set", place, "--out", tmp_path / "out.png")
        assert result.exit_code == 1
        assert f"{place} is not a tar; use a folder of images" in result.stderr


def test_an_image_of_the_set_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"nothing")
    with pytest.raises(PipelineError, match=r"0\.png cannot be read"):
        MixingImages([tmp_path], 32)[0]


def test_an_empty_mixing_set_is_rejected_before_kernels_are_compiled(
    photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(*_: object) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(report_mixing, "resize_part", compiled)
    (tmp_path / "empty").mkdir()
    result = run(photograph, "--mixing-set", tmp_path / "empty", "--out", tmp_path / "out.png")
    assert result.exit_code == 1
    assert "holds no images" in result.stderr


def test_a_named_pipe_is_rejected_without_waiting_for_it(photograph: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    out = ["--out", tmp_path / "out.png"]
    for arguments in ([pipe, "--no-mixing-set"], [photograph, "--mixing-set", pipe]):
        result = run(*arguments, *out)
        assert result.exit_code == 1
        assert str(pipe) in result.stderr
        assert result.stderr.count("\n") == 1


def test_file_names_that_are_not_utf8_are_written_to_figure_page_and_json(
    folders: list[Path], photograph: Path, tmp_path: Path
) -> None:
    image = tmp_path / os.fsdecode(b"ph\xe9.png")
    shutil.copy(photograph, image)
    mixing_set = tmp_path / os.fsdecode(b"set-\xe9")
    mixing_set.mkdir()
    shutil.copy(folders[0] / "0.png", mixing_set / os.fsdecode(b"caf\xe9.png"))
    page = tmp_path / "page.html"
    options = ["--mixing-set", mixing_set, "--size", 48, "--html", page, "--json", "--draws", 6]
    result = run(image, *options, "--out", tmp_path / "out.png")
    assert result.exit_code == 0, result.output
    assert "ph\\udce9.png" in page.read_text(encoding="utf-8")
    names = {each["mixing_image"] for each in json.loads(result.stdout)["draws"]}
    assert str(mixing_set / os.fsdecode(b"caf\xe9.png")) in names
