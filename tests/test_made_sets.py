"""C sets of make-c: the same bytes of the same seed, and never taken for the official ones."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import PipelineError
from pipelines.evaluation import corruptions
from pipelines.evaluation.corruptions import OVERLAPPING_OPERATIONS, overlapping_operations
from pipelines.evaluation.make_corrupted import make_corrupted
from pipelines.evaluation.suites import evaluate
from pipelines.report.evaluations import metrics_of_all, read_evaluation, rows_of, table
from pipelines.report.page import Table
from pipelines.report.runs import Run, sections
from pipelines.report.runs import table as table_of_runs
from test_evaluation import CORRUPTIONS, data_of, evaluation, pictures_of, write_corrupted

MADE = {"seed": 0, "n": 200}
SAID = "C made by pixmix-eval make-c, 200 images, ImageNet constants"


def write_made(folder: Path, **changes: object) -> None:
    write_corrupted(folder, CORRUPTIONS)
    (folder / "made-of.json").write_text(json.dumps({**MADE, **changes}))


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*"))
        if path.name != ".lock"
    }


# --- Reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TINY-C-made", "tiny_c_made", "TINY-C"])
def test_a_made_set_is_called_so_wherever_it_lies(tmp_path: Path, name: str) -> None:
    write_made(tmp_path / name)
    found = evaluate(evaluation(tmp_path), ["c", "clean"])
    assert found.values["c"]["made"]["images"] == 200
    shown = table({"a": found.values}, {})
    assert f"corruption error ({SAID})" in shown
    assert f"RMS calibration error ({SAID})" in shown
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
    path = tmp_path / "TINY-C-made" / "made-of.json"
    path.unlink() if content is None else path.write_text(content)
    failed = evaluate(evaluation(tmp_path), ["c"]).failed["c"]
    assert "made-of.json" in failed
    assert failed.endswith("make it again by pixmix-eval make-c")


def of_c(error: float, made: bool = False, overlap: bool = False) -> dict[str, Any]:
    made_of = {"by": "pixmix-eval make-c", "images": 200, "constants": "ImageNet", "seed": 0}
    return {
        "clean": {"error": 0.1},
        "calibration": {"rms": 0.1, "rms_temperature_scaled": 0.1},
        "c": {
            "mean_error": error,
            "mean_rms": 0.2,
            **({"made": made_of} if made else {}),
            **({"overlap": list(OVERLAPPING_OPERATIONS)} if overlap else {}),
        },
    }


def test_figures_on_made_and_official_sets_never_stand_in_one_row() -> None:
    columns = {"a": of_c(0.25), "b": of_c(0.5, made=True)}
    rows = {row[0]: row[1:] for row in rows_of(columns)}
    assert rows["corruption error (C)"] == ("25.00 %", "-")
    assert rows[f"corruption error ({SAID})"] == ("-", "50.00 %")
    assert not any(metric.suite == "c" for metric, _ in metrics_of_all(columns))
    both = metrics_of_all({"a": of_c(0.25, made=True), "b": of_c(0.5, made=True)})
    assert [label for metric, label in both if metric.suite == "c"] == [
        f"corruption error ({SAID})", f"RMS calibration error ({SAID})",
    ]  # fmt: skip


def test_reports_of_runs_say_what_was_made_and_what_overlaps() -> None:
    history = ({"epoch": 1, "step": 1, "train_loss": 1.0},)
    runs = [Run(name="a", history=history, evaluation=of_c(0.5, made=True, overlap=True))]
    shown = table_of_runs(runs)
    assert SAID in shown
    assert "a was trained with operations that overlap the corruptions of C" in shown
    pytest.importorskip("matplotlib")
    (page,) = [each for each in sections(runs) if each.title == "Evaluation"]
    (found,) = [part for part in page.parts if isinstance(part, Table)]
    assert any(SAID in row[0] for row in found.rows)
    assert "overlap the corruptions of C" in found.caption


@pytest.mark.parametrize(
    "change",
    [
        {"made": 5},
        {"made": {"by": 5, "images": 1, "constants": "x"}},
        {"made": {"by": "x", "images": "many", "constants": "x"}},
        {"overlap": "color"},
        {"overlap": [1]},
    ],
)
def test_an_evaluation_with_damaged_results_on_c_is_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    found = of_c(0.5, made=True, overlap=True)
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"version": 2, "networks": {"a": found}}))
    assert read_evaluation(path) == found
    damaged = {**found, "c": {**found["c"], **change}}
    path.write_text(json.dumps({"version": 2, "networks": {"a": damaged}}))
    with pytest.raises(PipelineError, match=str(path)):
        read_evaluation(path)


# --- Overlap -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "overlaps"),
    [
        ({"augment": "pixmix", "pixmix": {"all_ops": True}}, True),
        ({"augment": "pixmix", "pixmix": {"all_ops": False}}, False),
        ({"augment": "none", "pixmix": {"all_ops": True}}, False),
        ({"augment": "trivialaugment", "pixmix": {"all_ops": False}}, True),
        ({"augment": ["pixmix"], "pixmix": 5}, False),
        (5, False),
        (None, False),
    ],
)
def test_operations_of_the_training_that_overlap_c_are_known(
    recipe: object, overlaps: bool
) -> None:
    assert overlapping_operations({"recipe": recipe}) == (
        OVERLAPPING_OPERATIONS if overlaps else ()
    )


def test_figures_on_c_say_that_the_training_overlaps_it(tmp_path: Path) -> None:
    write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    found = evaluate(evaluation(tmp_path, overlap=OVERLAPPING_OPERATIONS), ["c", "clean"]).values
    assert found["c"]["overlap"] == list(OVERLAPPING_OPERATIONS)
    shown = table({"a.pt": found, "b.pt": of_c(0.5)}, {})
    (line,) = [line for line in shown.splitlines() if "overlap the corruptions" in line]
    assert line.startswith("a.pt was trained with")


# --- Making --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_seed_makes_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    data = data_of(tmp_path, *pictures_of(2, 32))
    first = hashes(make_corrupted(data, tmp_path / "a"))
    assert len(first) == 17
    other = make_corrupted(data, tmp_path / "b", names=CORRUPTIONS[::-1])
    assert hashes(other) == first
    for name in ("glass_blur.npy", "impulse_noise.npy"):
        (other / name).unlink()
    assert hashes(make_corrupted(data, tmp_path / "b")) == first
    seeded = hashes(make_corrupted(data, tmp_path / "c", seed=1))
    drawn = {"gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "snow", "frost", "fog"}
    assert all(seeded[f"{name}.npy"] != first[f"{name}.npy"] for name in drawn)
    assert seeded["pixelate.npy"] == first["pixelate.npy"]


def test_what_a_killed_run_left_is_removed_and_the_set_completed(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    data = data_of(tmp_path, *pictures_of(2, 32))
    names = ("glass_blur", "impulse_noise")
    whole = hashes(make_corrupted(data, tmp_path / "a", names=names))
    folder = make_corrupted(data, tmp_path / "b", names=names[:1])
    (folder / ".impulse_noise.npy.0123.partial").write_bytes(b"half")
    (folder / ".labels.npy.4567.partial").write_bytes(b"half")
    make_corrupted(data, tmp_path / "b", names=names)
    assert hashes(folder) == whole
    assert not list(folder.glob(".*.partial"))


def test_another_image_in_the_middle_is_another_set(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    images, labels = pictures_of(3, 32)
    make_corrupted(data_of(tmp_path, images, labels), tmp_path, names=("contrast",))
    others = images.copy()
    others[1, 0, 0, 0] ^= 1
    with pytest.raises(PipelineError, match="was made with images "):
        make_corrupted(data_of(tmp_path, others, labels), tmp_path, names=("contrast",))
    renamed = replace(data_of(tmp_path, images, labels), classes=("a", "b", "c"))
    with pytest.raises(PipelineError, match="was made with classes "):
        make_corrupted(renamed, tmp_path, names=("contrast",))


def test_images_that_are_too_small_to_corrupt_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    with pytest.raises(PipelineError, match="8x8 pixels, and the corruptions need at least 32x32"):
        make_corrupted(data_of(tmp_path), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_class_name_of_two_lines_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    data = replace(data_of(tmp_path, *pictures_of(3, 32)), classes=("a\nb",))
    with pytest.raises(PipelineError, match="is not one line of text"):
        make_corrupted(data, tmp_path)


def test_a_made_set_is_evaluated_as_it_was_made(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    data = data_of(tmp_path, *pictures_of(3, 32))
    folder = make_corrupted(data, tmp_path, names=("contrast",))
    for name in CORRUPTIONS:
        np.save(folder / f"{name}.npy", np.load(folder / "contrast.npy"))
    found = evaluate(evaluation(tmp_path, data=data), ["c"]).values["c"]
    assert found["made"] == {
        "by": "pixmix-eval make-c", "images": 3, "constants": "ImageNet", "seed": 0,
    }  # fmt: skip


def test_a_made_set_of_another_size_is_to_be_made_for_the_network(tmp_path: Path) -> None:
    write_made(tmp_path / "TINY-C-made")
    larger = data_of(tmp_path, *pictures_of(3, 32))
    failed = evaluate(evaluation(tmp_path, data=larger), ["c"]).failed["c"]
    assert failed.endswith(
        f"remove {tmp_path / 'TINY-C-made'} and run pixmix-eval make-c --checkpoint FILE"
    )


@pytest.mark.parametrize("name", ["labels.npy", "classes.txt", "contrast.npy"])
@pytest.mark.parametrize("damage", ["gone", "junk", "pipe"])
def test_the_command_that_an_error_names_heals_a_made_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: str
) -> None:
    pytest.importorskip("imagecorruptions")
    monkeypatch.setattr(corruptions, "CORRUPTIONS", ("contrast",))
    data = replace(data_of(tmp_path, *pictures_of(3, 32)), classes=("a", "b", "c"), outputs=3)
    path = make_corrupted(data, tmp_path, names=("contrast",)) / name
    asked = evaluation(tmp_path, data=data)
    expected = evaluate(asked, ["c"]).values
    path.unlink()
    if damage == "junk":
        path.write_bytes(b"\xffjunk")
    elif damage == "pipe":
        os.mkfifo(path)
    if (name, damage) != ("classes.txt", "gone"):
        found = evaluate(asked, ["c"])
        (error,) = (found.failed or found.missing).values()
        assert error.endswith("run pixmix-eval make-c --n 3 --seed 0 again")
    make_corrupted(data, tmp_path, names=("contrast",))
    assert evaluate(asked, ["c"]).values == expected
