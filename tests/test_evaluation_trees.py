"""What in an evaluation tree is a class and an image: hidden names and litter never are."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import PipelineError
from pipelines.evaluation.corruptions import CORRUPTIONS, IMAGENET_BAR
from pipelines.evaluation.data import find_data
from pipelines.evaluation.folders import Notices, list_tree, list_videos
from pipelines.evaluation.images import View
from pipelines.evaluation.metrics import ALEXNET_FLIPS
from pipelines.evaluation.ood import open_ood
from pipelines.evaluation.suites import evaluate
from test_imagenet_evaluation import (
    CODES,
    WNIDS,
    evaluation,
    write_picture,
    write_tree,
    write_video,
)

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


def write_clean(root: Path) -> None:
    write_tree(root / "val", [7, 402], n=2)


def write_c(folder: Path, names: Sequence[str], severities: Sequence[str]) -> None:
    for name in names:
        for place, severity in enumerate(severities):
            wrong = [100, 101, 102, 103, 104][: place + 1]
            write_tree(folder / name / severity, range(100, 105), wrong=wrong)


def write_p(root: Path) -> None:
    for name in ALEXNET_FLIPS:
        write_video(root / "ImageNet-P" / name / WNIDS[3] / "a.mp4", [333, 777])


def write_outliers(root: Path) -> None:
    write_clean(root)
    for number in range(3):
        write_picture(root / "outliers" / "dtd" / "banded" / f"{number}.png", CODES[number])


SEVERITIES = ("1", "2", "3", "4", "5")


@pytest.mark.parametrize(
    ("suite", "write"),
    [
        ("clean", write_clean),
        ("c", lambda root: write_c(root / "ImageNet-C", CORRUPTIONS, SEVERITIES)),
        ("c-bar", lambda root: write_c(root / "ImageNet-C-Bar", IMAGENET_BAR, SEVERITIES)),
        ("p", write_p),
        ("r", lambda root: write_tree(root / "imagenet-r", range(0, 1000, 5))),
        ("a", lambda root: write_tree(root / "imagenet-a", range(0, 1000, 5))),
        (
            "o",
            lambda root: (write_clean(root), write_tree(root / "imagenet-o", range(2, 1000, 5))),
        ),
        ("anomaly", write_outliers),
    ],
)
def test_hidden_names_change_no_figure_and_are_counted(
    tmp_path: Path, suite: str, write: Callable[[Path], object]
) -> None:
    write(tmp_path)
    expected = evaluate(evaluation(tmp_path), [suite])
    assert expected.failed == expected.missing == {}
    assert evaluation(tmp_path).data.notices.ignored_line() is None
    litter(tmp_path)
    asked = evaluation(tmp_path)
    assert evaluate(asked, [suite]) == expected
    line = asked.data.notices.ignored_line()
    assert line is not None
    assert "\n" not in line


def test_a_class_with_hidden_images_alone_is_refused_and_the_tree_named(tmp_path: Path) -> None:
    write_c(tmp_path / "ImageNet-C", CORRUPTIONS, SEVERITIES)
    (only,) = (tmp_path / "ImageNet-C" / "snow" / "4" / WNIDS[102]).iterdir()
    only.rename(only.with_name("._0.png"))
    failed = evaluate(evaluation(tmp_path), ["c"]).failed["c"]
    assert f"snow/4/{WNIDS[102]} holds no readable image" in failed


def test_an_image_that_is_none_is_named_with_its_tree(tmp_path: Path) -> None:
    write_c(tmp_path / "ImageNet-C", CORRUPTIONS, SEVERITIES)
    (only,) = (tmp_path / "ImageNet-C" / "snow" / "4" / WNIDS[102]).iterdir()
    only.write_bytes(b"junk")
    failed = evaluate(evaluation(tmp_path), ["c"]).failed["c"]
    assert str(only) in failed
    assert failed.endswith("unpack the set again")


def test_hidden_folders_beside_the_classes_of_the_test_set_are_none(tmp_path: Path) -> None:
    for name in ("a", "b", ".ipynb_checkpoints", "__MACOSX"):
        write_picture(tmp_path / "val" / name / "a.png", (1, 2, 3))
    data = find_data(tmp_path, {"classes": 2})
    np.testing.assert_array_equal(data.need_test().labels, [0, 1])
    assert "ignored 2 hidden" in str(data.notices.ignored_line())


def test_severities_are_taken_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ("0.80", "1.60", "2.40", "4.00", "10.40")
    write_c(tmp_path / "ImageNet-C-Bar", IMAGENET_BAR, names)
    found = evaluate(evaluation(tmp_path), ["c-bar"]).values["c-bar"]
    for errors in found["errors"].values():
        assert errors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize(
    "names", [("1", "2", "3", "4"), ("0", "1", "2", "3", "4", "5"), ("1", "1.0", "2", "3", "4")]
)
def test_severities_that_are_not_five_are_refused(tmp_path: Path, names: Sequence[str]) -> None:
    write_c(tmp_path / "ImageNet-C-Bar", IMAGENET_BAR, names)
    failed = evaluate(evaluation(tmp_path), ["c-bar"]).failed["c-bar"]
    assert f"has {len(names)} folders named by a severity" in failed


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
    found = evaluate(evaluation(tmp_path), ["clean"])
    if kind == "folder":
        assert found.values["clean"]["n"] == 4
        return
    assert str(odd) in found.failed["clean"]
    # The remedy works.
    odd.unlink()
    assert evaluate(evaluation(tmp_path), ["clean"]).values["clean"]["n"] == 4


@pytest.mark.parametrize("kind", ["pipe", "huge"])
def test_videos_and_svhn_are_read_from_regular_files_alone(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("av")
    from pipelines.evaluation.images import read_frames

    for name in ("a.mp4", "test_32x32.mat"):
        if kind == "pipe":
            os.mkfifo(tmp_path / name)
        else:
            with (tmp_path / name).open("wb") as file:
                file.truncate(20 << 30)
    with pytest.raises(PipelineError, match=r"a\.mp4 cannot be read"):
        read_frames(tmp_path / "a.mp4", View(8, None))
    with pytest.raises(PipelineError, match=r"test_32x32\.mat cannot be read"):
        open_ood(tmp_path, View(8, 8))


def test_an_svhn_that_claims_too_much_is_refused_before_it_is_read(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    path = tmp_path / "test_32x32.mat"
    scipy_io.savemat(path, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.zeros(2)})
    assert len(open_ood(tmp_path, View(32, 32))) == 2
    content = bytearray(path.read_bytes())
    place = content.index(np.array([32, 32, 3, 2], np.int32).tobytes())
    content[place : place + 16] = np.array([32, 32, 3, 1 << 30], np.int32).tobytes()
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=r"is no \.mat of SVHN \(X is of shape"):
        open_ood(tmp_path, View(32, 32))


def test_a_link_back_is_walked_once(tmp_path: Path) -> None:
    write_clean(tmp_path)
    (tmp_path / "val" / WNIDS[7] / "again").symlink_to(tmp_path / "val")
    (tmp_path / "val" / WNIDS[7] / "itself").symlink_to("itself")
    assert len(list_tree(tmp_path / "val", Notices()).files) == 4
    (tmp_path / "val" / "a.mp4").touch()
    assert list_videos(tmp_path / "val", Notices()) == [tmp_path / "val" / "a.mp4"]


def test_outliers_are_not_called_as_the_synthetic_ones(tmp_path: Path) -> None:
    write_outliers(tmp_path)
    (tmp_path / "outliers" / "dtd").rename(tmp_path / "outliers" / "blobs")
    assert (
        "outliers/blobs has the name"
        in evaluate(evaluation(tmp_path), ["anomaly"]).failed["anomaly"]
    )


def test_images_that_are_answered_are_counted_by_suite(tmp_path: Path) -> None:
    write_outliers(tmp_path)
    write_c(tmp_path / "ImageNet-C", CORRUPTIONS, SEVERITIES)
    write_p(tmp_path)
    shown: dict[str, list[tuple[int, int]]] = {}
    asked = evaluation(tmp_path)
    asked = replace(asked, classifier=replace(asked.classifier, batch_size=2))
    evaluate(
        asked,
        ["clean", "c", "p", "adversarial", "anomaly"],
        progress=lambda suite, done, total: shown.setdefault(suite, []).append((done, total)),
    )
    assert shown["clean"] == [(0, 4), (2, 4), (4, 4)]
    assert shown["c"][-1] == (75 * 5, 75 * 5)
    assert shown["adversarial"][-1] == (4, 4)
    assert shown["anomaly"][-1][0] == shown["anomaly"][-1][1] > 30
    assert shown["p"][0][0] == 0
    assert all(done <= total for each in shown.values() for done, total in each)
