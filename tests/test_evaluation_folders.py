"""Folders of evaluation: hidden names and litter never count, and which dataset is used."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from imagenet_folders import (
    SEVERITIES,
    WNIDS,
    imagenet_evaluation,
    write_clean,
    write_outliers,
    write_p,
    write_severities,
    write_tree,
)
from pipelines.errors import PipelineError
from pipelines.evaluation.corruptions import (
    CORRUPTIONS,
    IMAGENET_BAR,
)
from pipelines.evaluation.folders import Notices, find_folder, list_tree, list_videos
from pipelines.evaluation.suites import evaluate
from pipelines.report.evaluations import table
from tiny_evaluation import MADE_WORDS, data_of, evaluation, write_corrupted, write_made


@pytest.mark.parametrize(
    ("name", "suite", "remedy"),
    [
        ("CIFAR-10", "c", "get it from https://zenodo.org/record/2535967, or make one by"),
        ("CIFAR-100", "c", "get it from https://zenodo.org/record/3555552, or make one by"),
        ("CIFAR-10", "p", "get it from https://zenodo.org/record/2535967"),
        ("CIFAR-10", "c-bar", "get it from https://github.com/facebookresearch/"),
        ("DIGITS", "c", "is not there; make one by pixmix-eval make-c"),
        ("DIGITS", "c-bar", "is not there; nobody distributes one of DIGITS; leave the suite out"),
        ("DIGITS", "p", "is not there; nobody distributes one of DIGITS; leave the suite out"),
    ],
)
def test_a_missing_set_is_to_be_got_where_there_is_one(
    tmp_path: Path, name: str, suite: str, remedy: str
) -> None:
    asked = evaluation(tmp_path, data=replace(data_of(tmp_path), name=name))
    why = evaluate(asked, [suite]).missing[suite]
    assert remedy in why
    assert "zenodo" not in why or "zenodo" in remedy


def test_folders_are_found_in_whatever_case(tmp_path: Path) -> None:
    (tmp_path / "imagenet_c_bar").mkdir()
    assert find_folder(tmp_path, "ImageNet-C-Bar") == tmp_path / "imagenet_c_bar"
    assert find_folder(tmp_path, "ImageNet-C") is None
    (tmp_path / "imagenet-c-bar").mkdir()
    with pytest.raises(PipelineError, match="keep one of them"):
        find_folder(tmp_path, "ImageNet-C-Bar")
    (tmp_path / "ImageNet-C-Bar").mkdir()
    assert find_folder(tmp_path, "ImageNet-C-Bar") == tmp_path / "ImageNet-C-Bar"


APPLE_DOUBLE = bytes([0, 5, 22, 7]) + bytes(100)


def litter(folder: Path) -> int:
    """Put what systems leave behind into a folder and the folders in it; return how much."""
    n = 0
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in ("._a.JPEG", "._a.mp4", "._fog.npy", ".DS_Store", "Thumbs.db"):
            (place / name).write_bytes(APPLE_DOUBLE)
        for name in (".ipynb_checkpoints", ".git", "__MACOSX"):
            (place / name).mkdir()
            (place / name / "a.png").write_bytes(b"junk")
            (place / name / "a.mp4").write_bytes(b"junk")
        n += 8
    return n


@pytest.mark.parametrize(
    ("suite", "write"),
    [
        ("clean", write_clean),
        ("c", lambda root: write_severities(root / "ImageNet-C", CORRUPTIONS, SEVERITIES)),
        ("c-bar", lambda root: write_severities(root / "ImageNet-C-Bar", IMAGENET_BAR, SEVERITIES)),
        ("p", write_p),
        ("r", lambda root: write_tree(root / "imagenet-r", range(0, 1000, 5))),
        ("a", lambda root: write_tree(root / "imagenet-a", range(0, 1000, 5))),
        (
            "o",
            lambda root: (write_clean(root), write_tree(root / "imagenet-o", range(2, 1000, 5))),
        ),
        ("ood", write_outliers),
    ],
)
def test_hidden_names_change_no_figure_and_are_counted(
    tmp_path: Path, suite: str, write: Callable[[Path], object]
) -> None:
    write(tmp_path)
    expected = evaluate(imagenet_evaluation(tmp_path), [suite])
    assert expected.failed == expected.missing == {}
    assert imagenet_evaluation(tmp_path).data.notices.ignored_line() is None
    litter(tmp_path)
    asked = imagenet_evaluation(tmp_path)
    assert evaluate(asked, [suite]) == expected
    line = asked.data.notices.ignored_line()
    assert line is not None
    assert "\n" not in line


@pytest.mark.parametrize("kind", ["pipe", "device", "huge", "folder", "nothing"])
def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path, kind: str) -> None:
    write_clean(tmp_path)
    odd = tmp_path / "val" / WNIDS[7] / "zz.png"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "device":
        odd.symlink_to("/dev/zero")
    elif kind == "huge":
        with odd.open("wb") as file:
            file.truncate(20 << 30)
    elif kind == "nothing":
        odd.symlink_to(tmp_path / "nothing")
    else:
        odd.mkdir()
    found = evaluate(imagenet_evaluation(tmp_path), ["clean"])
    if kind == "folder":
        assert found.values["clean"]["n"] == 4
        return
    assert str(odd) in found.failed["clean"]
    # The remedy works.
    odd.unlink()
    assert evaluate(imagenet_evaluation(tmp_path), ["clean"]).values["clean"]["n"] == 4


def test_a_link_back_is_walked_once(tmp_path: Path) -> None:
    write_clean(tmp_path)
    (tmp_path / "val" / WNIDS[7] / "again").symlink_to(tmp_path / "val")
    (tmp_path / "val" / WNIDS[7] / "itself").symlink_to("itself")
    assert len(list_tree(tmp_path / "val", Notices()).files) == 4
    (tmp_path / "val" / "a.mp4").touch()
    assert list_videos(tmp_path / "val", Notices()) == [tmp_path / "val" / "a.mp4"]


@pytest.mark.parametrize("name", ["TINY-C-made", "tiny_c_made", "TINY-C"])
def test_a_made_set_is_called_so_wherever_it_lies(tmp_path: Path, name: str) -> None:
    write_made(tmp_path / name)
    found = evaluate(evaluation(tmp_path), ["c", "clean"])
    assert found.values["c"]["made"]["images"] == 200
    shown = table({"a": found.values}, {})
    assert f"corruption error ({MADE_WORDS})" in shown
    assert f"RMS calibration error ({MADE_WORDS})" in shown
    assert "(C)" not in shown
    json.dumps(found.values["c"])


def test_an_official_set_is_not_called_made(tmp_path: Path) -> None:
    write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    found = evaluate(evaluation(tmp_path), ["c"]).values
    assert "made" not in found["c"]
    assert "corruption error (C)" in table({"a": found}, {})


def test_of_an_official_and_a_made_set_the_official_is_taken_and_that_is_said(
    tmp_path: Path,
) -> None:
    write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    write_made(tmp_path / "TINY-C-made")
    # It would be refused if it were read.
    (tmp_path / "TINY-C-made" / "fog.npy").unlink()
    asked = evaluation(tmp_path)
    assert "made" not in evaluate(asked, ["c"]).values["c"]
    (line,) = asked.data.notices.lines
    assert f"{tmp_path / 'TINY-C'} is evaluated, and not {tmp_path / 'TINY-C-made'}" in line


@pytest.mark.parametrize("content", [None, "junk", "[]", '{"n": "many", "seed": 0}', "[" * 100_000])
def test_a_made_set_that_does_not_say_how_it_was_made_is_refused(
    tmp_path: Path, content: str | None
) -> None:
    write_made(tmp_path / "TINY-C-made")
    path = tmp_path / "TINY-C-made" / "make-c.json"
    path.unlink() if content is None else path.write_text(content)
    failed = evaluate(evaluation(tmp_path), ["c"]).failed["c"]
    assert "make-c.json" in failed
    assert failed.endswith("make it again by pixmix-eval make-c")
