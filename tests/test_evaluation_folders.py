"""Dataset folders, ignored files, and the outputs that class folders stand for."""

import json
import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
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
from pipelines.evaluation.folders import (
    Notices,
    are_imagenet_classes,
    find_folder,
    list_tree,
    list_videos,
    match_classes,
)
from pipelines.evaluation.suites import evaluate
from pipelines.models.registry import find_outputs
from pipelines.report.evaluations import table
from tiny_evaluation import MADE_WORDS, data_of, evaluation, write_corrupted, write_made


def test_imagenet_classes_are_1000_sorted_wordnet_ids() -> None:
    assert len(set(WNIDS)) == 1000
    assert list(WNIDS) == sorted(WNIDS)
    assert (WNIDS[0], WNIDS[281], WNIDS[999]) == ("n01440764", "n02123045", "n15075141")
    assert are_imagenet_classes(WNIDS[3:5])
    assert not are_imagenet_classes(("cat", WNIDS[3]))
    assert not are_imagenet_classes(())


def test_an_error_names_a_class_that_the_network_lacks() -> None:
    np.testing.assert_array_equal(find_outputs(["b", "a"], ["a", "b", "c"], "set"), [1, 0])
    with pytest.raises(
        PipelineError, match="set has a class 'd', which is not one of the network's"
    ):
        find_outputs(["a", "d"], ["a", "b", "c"], "set")


CAFE = "caf\u00e9"


@pytest.mark.parametrize(
    ("names", "known", "n_outputs", "expected"),
    [
        # Numbers are matched by value, whatever their alphabetical order.
        (sorted(map(str, range(12))), (), 12, sorted(range(12), key=str)),
        (["00", "01", "02"], (), 3, [0, 1, 2]),
        (["0", "2", "7"], (), 10, [0, 2, 7]),
        (sorted(map(str, range(1000))), (), 1000, sorted(range(1000), key=str)),
        (["0", "10", "2"], WNIDS, 1000, [0, 10, 2]),
        # Known class names precede order and value.
        (["b", "a"], ("c", "b", "a"), 3, [1, 2]),
        (["1", "10", "2"], ("1", "10", "2"), 3, [0, 1, 2]),
        ([unicodedata.normalize("NFD", CAFE), "b"], ("b", CAFE), 2, [1, 0]),
        ([CAFE], (unicodedata.normalize("NFD", CAFE),), 1, [0]),
        ([WNIDS[7], WNIDS[3]], (), 1000, [7, 3]),
        # Unknown names are matched by order if there are as many as outputs.
        (["a", "b", "c"], (), 3, [0, 1, 2]),
        (["n00000001", "n00000002"], (), 2, [0, 1]),
        (["a", "b"], (), None, [0, 1]),
        # Numbered names may be fewer than outputs if they count from 0.
        (["c0", "c1", "c2"], (), 10, [0, 1, 2]),
        ([f"class_{i:02}" for i in range(11)], (), 12, list(range(11))),
        ([f"class_{i:02}" for i in range(1, 13)], (), 12, list(range(12))),
    ],
)
def test_class_folders_match_outputs(
    names: Sequence[str], known: Sequence[str], n_outputs: int | None, expected: Sequence[int]
) -> None:
    match = match_classes(names, known, n_outputs, "val")
    np.testing.assert_array_equal(match.outputs, expected)
    if match.classes:
        assert len(match.classes) == (n_outputs or len(names))


@pytest.mark.parametrize(
    ("names", "known", "n_outputs", "parts"),
    [
        (["0", "1", "12"], (), 12, ("3 numbered", "1 ('12')", "12 outputs")),
        (["-1", "0", "1"], (), 3, ("'-1'", "0 to 2")),
        (["1", "01"], (), 3, ("'1', '01'",)),
        (["9" * 200], (), None, ("not within",)),
        ([*map(str, range(11)), "extra"], (), 12, ("12 classes", "11", "1 are not ('extra')")),
        ([*WNIDS, "extra"], (), 1000, ("1001 classes", "1000", "1 are not ('extra')")),
        ([*WNIDS[:999], "extra"], (), 1000, ("1000 classes", "999", "1 are not ('extra')")),
        ([*WNIDS[:99], "extra"], (), 100, ("99", "1 are not ('extra')")),
        ([*WNIDS[:999], "n99999999"], (), 1000, ("'n99999999'", "1 of 1000")),
        (["0", WNIDS[3]], (), 1000, ("'0'",)),
        (["a", "b"], (), 3, ("2 classes", "3 outputs")),
        (["c0", "c2"], (), 3, ("2 classes", "3 outputs")),
        (["c1", "c2"], (), 3, ("2 classes", "3 outputs")),
        (["c0", "d1"], (), 3, ("2 classes", "3 outputs")),
        (["fold0", "fold1", "fold2"], (), 10, ("3 classes", "10 outputs")),
        (sorted(f"class{i}" for i in range(12)), (), 12, ("'class11'", "'class2'")),
        (["a", "b", "c", "d"], (), 3, ("4 classes", "3 outputs")),
        (["cat", "Dog"], ("cat", "dog"), 2, ("'Dog'", "'dog'", "only in case")),
        (["cat", "cow"], ("cat", "dog"), 2, ("'cow'", "1 of 2")),
        (["0", "1"], ("cat", "dog"), 2, ("'0'", "2 of 2")),
        ([CAFE, unicodedata.normalize("NFD", CAFE)], (CAFE, "b"), 2, (repr(CAFE),)),
        (["a"], ("a", "a"), 2, ("'a'",)),
    ],
)
def test_ambiguous_class_folders_are_rejected_with_counts(
    names: Sequence[str], known: Sequence[str], n_outputs: int | None, parts: Sequence[str]
) -> None:
    with pytest.raises(PipelineError) as caught:
        match_classes(names, known, n_outputs, "val")
    assert all(each in str(caught.value) for each in parts), str(caught.value)


@pytest.mark.parametrize(
    ("name", "suite", "remedy"),
    [
        (
            "CIFAR-10",
            "c",
            "download it from https://zenodo.org/record/2535967, or generate a similar set with",
        ),
        (
            "CIFAR-100",
            "c",
            "download it from https://zenodo.org/record/3555552, or generate a similar set with",
        ),
        ("CIFAR-10", "p", "download it from https://zenodo.org/record/2535967"),
        ("CIFAR-10", "c-bar", "download it from https://github.com/facebookresearch/"),
        ("DIGITS", "c", "is not found; generate a similar set with pixmix-eval make-c"),
        ("DIGITS", "c-bar", "is not found; no DIGITS-C-Bar is published; leave the suite out"),
        ("DIGITS", "p", "is not found; no DIGITS-P is published; leave the suite out"),
    ],
)
def test_an_error_names_where_to_get_a_missing_dataset(
    tmp_path: Path, name: str, suite: str, remedy: str
) -> None:
    asked = evaluation(tmp_path, data=replace(data_of(tmp_path), name=name))
    why = evaluate(asked, [suite]).missing[suite]
    assert remedy in why
    assert "zenodo" not in why or "zenodo" in remedy


def test_dataset_folders_are_found_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "imagenet_c_bar").mkdir()
    assert find_folder(tmp_path, "ImageNet-C-Bar") == tmp_path / "imagenet_c_bar"
    assert find_folder(tmp_path, "ImageNet-C") is None
    (tmp_path / "imagenet-c-bar").mkdir()
    with pytest.raises(PipelineError, match="keep one of them"):
        find_folder(tmp_path, "ImageNet-C-Bar")
    (tmp_path / "ImageNet-C-Bar").mkdir()
    assert find_folder(tmp_path, "ImageNet-C-Bar") == tmp_path / "ImageNet-C-Bar"


APPLE_DOUBLE = bytes([0, 5, 22, 7]) + bytes(100)


def add_hidden_files(folder: Path) -> None:
    """Put hidden and system files into a folder and its subfolders."""
    for each in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in ("._a.JPEG", "._a.mp4", "._fog.npy", ".DS_Store", "Thumbs.db"):
            (each / name).write_bytes(APPLE_DOUBLE)
        for name in (".ipynb_checkpoints", ".git", "__MACOSX"):
            (each / name).mkdir()
            (each / name / "a.png").write_bytes(b"junk")
            (each / name / "a.mp4").write_bytes(b"junk")


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
def test_hidden_files_do_not_change_metrics_and_are_counted(
    tmp_path: Path, suite: str, write: Callable[[Path], object]
) -> None:
    write(tmp_path)
    expected = evaluate(imagenet_evaluation(tmp_path), [suite])
    assert expected.failed == expected.missing == {}
    assert imagenet_evaluation(tmp_path).data.notices.ignored_line() is None
    add_hidden_files(tmp_path)
    repeated = imagenet_evaluation(tmp_path)
    assert evaluate(repeated, [suite]) == expected
    line = repeated.data.notices.ignored_line()
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
    # The remedy of the error works.
    odd.unlink()
    assert evaluate(imagenet_evaluation(tmp_path), ["clean"]).values["clean"]["n"] == 4


def test_cyclic_symbolic_links_are_followed_once(tmp_path: Path) -> None:
    write_clean(tmp_path)
    (tmp_path / "val" / WNIDS[7] / "again").symlink_to(tmp_path / "val")
    (tmp_path / "val" / WNIDS[7] / "itself").symlink_to("itself")
    assert len(list_tree(tmp_path / "val", Notices()).files) == 4
    (tmp_path / "val" / "a.mp4").touch()
    assert list_videos(tmp_path / "val", Notices()) == [tmp_path / "val" / "a.mp4"]


@pytest.mark.parametrize("name", ["TINY-C-made", "tiny_c_made", "TINY-C"])
def test_a_dataset_of_make_c_is_labelled_in_any_folder(tmp_path: Path, name: str) -> None:
    write_made(tmp_path / name)
    found = evaluate(evaluation(tmp_path), ["c", "clean"])
    assert found.values["c"]["made"]["images"] == 200
    shown = table({"a": found.values}, {})
    assert f"corruption error ({MADE_WORDS})" in shown
    assert f"RMS calibration error ({MADE_WORDS})" in shown
    assert "(C)" not in shown
    json.dumps(found.values["c"])


def test_an_official_dataset_is_not_labelled_as_made(tmp_path: Path) -> None:
    write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    found = evaluate(evaluation(tmp_path), ["c"]).values
    assert "made" not in found["c"]
    assert "corruption error (C)" in table({"a": found}, {})


def test_an_official_dataset_is_preferred_to_one_of_make_c(
    tmp_path: Path,
) -> None:
    write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    write_made(tmp_path / "TINY-C-made")
    # The other dataset is not read: this would raise.
    (tmp_path / "TINY-C-made" / "fog.npy").unlink()
    asked = evaluation(tmp_path)
    assert "made" not in evaluate(asked, ["c"]).values["c"]
    (line,) = asked.data.notices.lines
    assert f"{tmp_path / 'TINY-C'} is evaluated, and {tmp_path / 'TINY-C-made'} is not" in line


@pytest.mark.parametrize("content", [None, "junk", "[]", '{"n": "many", "seed": 0}', "[" * 100_000])
def test_a_dataset_of_make_c_without_a_valid_record_is_rejected(
    tmp_path: Path, content: str | None
) -> None:
    write_made(tmp_path / "TINY-C-made")
    path = tmp_path / "TINY-C-made" / "make-c.json"
    path.unlink() if content is None else path.write_text(content)
    failed = evaluate(evaluation(tmp_path), ["c"]).failed["c"]
    assert "make-c.json" in failed
    assert failed.endswith("make it again with pixmix-eval make-c")
