"""Arrays, labels and class names of evaluation sets, of which nothing is trusted."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import PipelineError
from pipelines.evaluation.images import open_array, read_labels, read_names
from pipelines.evaluation.suites import evaluate
from test_evaluation import CORRUPTIONS, LABELS, PERTURBATIONS, evaluation, write_corrupted

HEADER = b"\x93NUMPY\x01\x00"


def with_header(text: str, body: bytes = b"") -> Callable[[Path], object]:
    header = text.encode("latin1")
    content = HEADER + len(header).to_bytes(2, "little") + header + body
    return lambda path: path.write_bytes(content)


def described(shape: str, descr: str = "'|u1'", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


def npz(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), a=np.zeros(3))
    path.with_suffix(".npz").rename(path)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(20 << 30)


@pytest.mark.parametrize(
    "write",
    [
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.mkdir(),
        huge,
        npz,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
        lambda path: path.write_bytes(b"\x80\x04cposix\nsystem\n."),
        lambda path: path.write_bytes(HEADER),
        lambda path: np.save(path, np.array([{}]), allow_pickle=True),
        lambda path: path.write_bytes(b"\x93NUMPY\x03\x00" + bytes(200)),
        with_header("(" * 9000),
        with_header("[" * 60000),
        with_header("{'descr': __import__('os').system('false')}"),
        with_header(described("(-3, 8, 8, 3)"), bytes(600)),
        with_header(described("(10**30, 8, 8, 3)"), bytes(600)),
        with_header(described("(1000000000000, 8, 8, 3)"), bytes(600)),
        with_header(described("(60, 8, 8, 3)"), bytes(600)),
        with_header(described("'abc'"), bytes(600)),
        with_header(described("(4,)", "'|O'"), bytes(600)),
        with_header(described("(4,)", "'zzz'"), bytes(600)),
    ],
)
def test_what_is_no_array_is_refused_in_one_line_that_names_it(
    tmp_path: Path, write: Callable[[Path], object]
) -> None:
    path = tmp_path / "fog.npy"
    write(path)
    with pytest.raises(PipelineError) as refused:
        open_array(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        np.asfortranarray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)),
        np.zeros((0, 8, 8, 3), np.uint8),
        np.array(7, ">i8"),
    ],
)
def test_an_array_is_what_was_saved(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    found = open_array(tmp_path / "a.npy")
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_the_order_of_an_arrays_memory_does_not_show(tmp_path: Path) -> None:
    written = write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    (tmp_path / "TINY-P").mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 3), np.uint8)
    for name in PERTURBATIONS:
        np.save(tmp_path / "TINY-P" / f"{name}.npy", frames)
    expected = evaluate(evaluation(tmp_path), ["c", "p"]).values
    for name, array in written.items():
        np.save(tmp_path / "TINY-C" / f"{name}.npy", np.asfortranarray(array))
    for name in PERTURBATIONS:
        np.save(tmp_path / "TINY-P" / f"{name}.npy", np.asfortranarray(frames))
    assert evaluate(evaluation(tmp_path), ["c", "p"]).values == expected


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["a"] * 60),
        np.zeros(60),
        np.zeros((60, 1), int),
        np.zeros(60, complex),
        np.zeros(60, "M8[s]"),
        np.full(60, 2**64 - 1, np.uint64),
        np.zeros(60, bool),
        np.zeros(60, [("a", "i4")]),
    ],
)
def test_labels_are_whole_numbers(tmp_path: Path, labels: np.ndarray) -> None:
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(PipelineError, match=r"labels\.npy"):
        read_labels(tmp_path / "labels.npy")


@pytest.mark.parametrize("label", [-1, 3, 999])
def test_labels_outside_the_outputs_are_refused(tmp_path: Path, label: int) -> None:
    write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    labels = np.tile(LABELS, 5)
    labels[7] = label
    np.save(tmp_path / "TINY-C" / "labels.npy", labels)
    asked = evaluation(tmp_path)
    asked = replace(asked, data=replace(asked.data, outputs=3))
    failed = evaluate(asked, ["c"]).failed["c"]
    assert f"labels from {labels.min()} to {labels.max()}" in failed
    assert "within 0 to 2" in failed


def test_cifars_labels_of_c_count_as_the_test_sets_do(tmp_path: Path) -> None:
    write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    expected = evaluate(evaluation(tmp_path), ["c"]).values["c"]
    order = np.array([2, 0, 1])  # The output for each of the set's labels.
    np.save(tmp_path / "TINY-C" / "labels.npy", np.argsort(order)[np.tile(LABELS, 5)])
    asked = evaluation(tmp_path)
    asked = replace(asked, data=replace(asked.data, outputs=3, official=order))
    assert evaluate(asked, ["c"]).values["c"] == expected


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"\xff\xfe\x00"),
        lambda path: path.write_bytes("caf\u00e9\n".encode("latin1")),
        os.mkfifo,
        huge,
        lambda path: path.mkdir(),
    ],
)
def test_class_names_are_text_in_utf_8(tmp_path: Path, write: Callable[[Path], object]) -> None:
    write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    path = tmp_path / "TINY-C" / "classes.txt"
    write(path)
    failed = evaluate(evaluation(tmp_path), ["c"]).failed["c"]
    assert str(path) in failed
    assert "\n" not in failed


def test_class_names_are_read_as_utf_8_whatever_the_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("locale.getencoding", lambda: "latin1", raising=False)
    monkeypatch.setattr("locale.getpreferredencoding", lambda _set=True: "ascii")
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeff\u00f1and\u00fa\r\nb\r\n".encode())
    assert read_names(path, "") == ["\u00f1and\u00fa", "b"]


@pytest.mark.parametrize("shape", [(0, 4, 8, 8, 3), (3, 1, 8, 8, 3), (3, 0, 8, 8, 3)])
def test_sequences_of_less_than_two_frames_are_refused(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    (tmp_path / "TINY-P").mkdir()
    for name in PERTURBATIONS:
        np.save(tmp_path / "TINY-P" / f"{name}.npy", np.zeros(shape, np.uint8))
    assert "frames; download it again" in evaluate(evaluation(tmp_path), ["p"]).failed["p"]
