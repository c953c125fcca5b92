"""`pixmix-show run`: trainings side by side, from what pixmix-train and pixmix-eval wrote."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pipelines.cli import show
from pipelines.errors import PipelineError
from pipelines.report.page import Picture, Table
from pipelines.report.runs import curves, last_rows, read_runs, sections
from pipelines.training.history import write_metrics

pytest.importorskip("matplotlib")

FOUND = {
    "clean": {"error": 0.25},
    "calibration": {"rms": 0.125, "rms_tempered": 0.0625},
    "anomaly": {"mean_auroc": 0.75, "kinds": ["gaussian"]},
}


def training(folder: Path, epochs: int = 3, *, validation: bool = False, more: float = 0.0) -> Path:
    """What pixmix-train leaves of a training whose errors fall from 50 %, with more loss."""
    history = []
    for epoch in range(1, epochs + 1):
        record = {
            "epoch": epoch,
            "step": 22 * epoch,
            "learning_rate": 0.1,
            "train_loss": 2 / epoch + more,
            "train_error": 0.5 / epoch,
            "test_loss": 2.5 / epoch,
            "test_error": 0.625 / epoch,
        }
        if validation:
            record |= {"validation_loss": 1.0, "validation_error": 0.375}
        history.append(record)
    folder.mkdir(parents=True)
    write_metrics(folder, history)
    return folder


def evaluated(folder: Path, found: object = FOUND) -> Path:
    (folder / "evaluation.json").write_text(json.dumps({"networks": {"step.pt": found}}))
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(show.main, ["run", *map(str, arguments)])


def test_of_a_training_the_last_epoch_is_told(tmp_path: Path) -> None:
    runs = read_runs([training(tmp_path / "a"), training(tmp_path / "b", 5, validation=True)])
    assert last_rows(runs) == [
        ("", "a", "b"),
        ("epochs", "3", "5"),
        ("steps", "66", "110"),
        ("training loss", "0.6667", "0.4000"),
        ("training error", "16.67 %", "10.00 %"),
        ("validation error", "-", "37.50 %"),
        ("test error", "20.83 %", "12.50 %"),
    ]


def test_an_evaluation_beside_the_metrics_is_shown_and_one_that_is_missing_is_not(
    tmp_path: Path,
) -> None:
    a, b = evaluated(training(tmp_path / "a")), training(tmp_path / "b")
    result = run(a, b)
    assert result.exit_code == 0, result.output
    blocks = result.stdout.split("\n\n")
    assert len(blocks) == 2
    assert blocks[1].splitlines()[0].split() == ["a"]
    assert "clean error                      25.00 %" in blocks[1]
    assert run(b).stdout.count("\n\n") == 0


def test_json_has_each_epoch_and_what_was_found(tmp_path: Path) -> None:
    result = run(evaluated(training(tmp_path / "a")), "--json")
    document = json.loads(result.stdout)
    assert list(document["runs"]) == ["a"]
    assert [record["epoch"] for record in document["runs"]["a"]["history"]] == [1, 2, 3]
    assert document["runs"]["a"]["found"] == FOUND
    assert document["plot"] is document["html"] is None


# JPEG halves the resolution of colours, in which lines are thin.
@pytest.mark.parametrize(("ending", "within"), [(".png", 40), (".jpg", 90)])
def test_curves_are_a_picture_in_which_each_run_has_its_colour(
    tmp_path: Path, ending: str, within: int
) -> None:
    folders = [training(tmp_path / "a"), training(tmp_path / "b", 9, more=1.0)]
    path = tmp_path / "new" / f"curves{ending}"
    assert run(*folders, "--plot", path).exit_code == 0
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    for colour in ((31, 119, 180), (255, 127, 14)):  # matplotlib's C0 and C1
        assert (abs(pixels - colour).max(axis=2) < within).sum() > 200


def test_curves_of_one_epoch_show_a_point(tmp_path: Path) -> None:
    data = curves(read_runs([training(tmp_path / "a", 1)]))
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    of_axes = pixels[60:]  # without the legend
    assert (abs(of_axes - (31, 119, 180)).max(axis=2) < 6).sum() > 20


def test_a_page_has_curves_tables_and_a_radar(tmp_path: Path) -> None:
    runs = read_runs([evaluated(training(tmp_path / "a")), training(tmp_path / "b")])
    found = sections(runs)
    assert [section.title for section in found] == ["Training", "Evaluation"]
    kinds = [[type(part) for part in section.parts] for section in found]
    assert kinds == [[Picture, Table], [Picture, Table]]
    few = evaluated(training(tmp_path / "c"), {"clean": {"error": 0.5}})
    assert [type(part) for part in sections(read_runs([few]))[1].parts] == [Table]
    path = tmp_path / "report.html"
    assert run(tmp_path / "a", tmp_path / "b", "--html", path).exit_code == 0
    text = path.read_text()
    assert text.count("<img ") == 2
    assert text.count("<table") == 2
    assert "25.00 %" in text


def test_runs_of_one_name_are_told_apart_by_the_folders_above(tmp_path: Path) -> None:
    folders = [training(tmp_path / of / "run") for of in ("x", "y")]
    assert [each.name for each in read_runs(folders)] == ["x/run", "y/run"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", None, "is no folder of pixmix-train, or its first epoch has not ended"),
        ("metrics.jsonl", "", "metrics.jsonl is empty; its first epoch has not ended"),
        ("metrics.jsonl", "{\n", "metrics.jsonl, line 1 is no JSON"),
        ("metrics.jsonl", '{"epoch": 1}\n', "metrics.jsonl, line 1 is no record of an epoch"),
        ("metrics.jsonl", "[]\n", "metrics.jsonl, line 1 is no record of an epoch"),
        ("evaluation.json", "x", "evaluation.json is no JSON"),
        ("evaluation.json", "[]", "evaluation.json is not what pixmix-eval --json prints"),
        ("evaluation.json", '{"networks": {"a": {"clean": 1}}}', "is not what pixmix-eval"),
        ("evaluation.json", '{"networks": {"a": {"clean": {"error": "x"}}}}', "is not what pixmix"),
        ("evaluation.json", '{"networks": {"a": {"clean": {"error": true}}}}', "is not what pixm"),
        ("evaluation.json", "[" * 100_000, "evaluation.json is no JSON (brackets in brackets); ma"),
        ("metrics.jsonl", '{"epoch": 1, "step": 1, "train_loss": "2"}\n', "has train_loss '2', wh"),
        ("metrics.jsonl", '{"epoch": 1, "step": null, "train_loss": 2}\n', "has step None, which"),
        (
            "metrics.jsonl",
            '{"epoch": 1, "step": 1, "train_loss": 2, "test_error": [1]}\n',
            "line 1 has test_error [1], which is no number; let pixmix-train write it again",
        ),
    ],
)
def test_files_that_are_not_what_they_should_be_are_named_in_a_line(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    folder = training(tmp_path / "a")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    result = run(folder)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluation.json"])
def test_bytes_that_are_no_text_are_named_in_a_line(tmp_path: Path, name: str) -> None:
    folder = training(tmp_path / "a")
    (folder / name).write_bytes(b"{\xff}")
    result = run(folder)
    assert result.exit_code == 1
    assert f"{folder / name} is no text (byte 1 is no UTF-8); make it again" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_training_without_errors_has_curves_and_no_warning(tmp_path: Path) -> None:
    write_metrics(tmp_path, [{"epoch": 1, "step": 1, "train_loss": 2.0}])
    result = run(tmp_path, "--html", tmp_path / "report.html", "--plot", tmp_path / "curves.png")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""


def test_a_training_that_is_given_twice_is_refused_however_it_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = training(tmp_path / "a")
    monkeypatch.chdir(folder)
    for other in (folder, folder / ".." / "a", Path(), Path("../a")):
        with pytest.raises(PipelineError, match="is given twice"):
            read_runs([folder, other])


def test_a_training_is_named_by_its_folder_however_it_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (training(tmp_path / name) for name in "ab")
    monkeypatch.chdir(a)
    assert [each.name for each in read_runs([Path(), b])] == ["a", "b"]


def test_two_pictures_do_not_take_one_file(tmp_path: Path) -> None:
    folder = training(tmp_path / "a")
    page = tmp_path / "a.htm"
    result = run(folder, "--plot", folder / "x.png", "--html", page)
    assert result.exit_code == 0, result.output
    link = tmp_path / "link.html"
    link.symlink_to(folder / "x.png")
    result = run(folder, "--plot", folder / "x.png", "--html", link)
    assert result.exit_code == 2
    assert "is also what --plot writes and would be overwritten; put it else" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["--html", "report.pdf"], ["--plot", "curves.svg"], ["nowhere"], []]
)
def test_arguments_that_name_nothing_useful_are_refused_by_click(
    tmp_path: Path, arguments: list[str]
) -> None:
    given = arguments if arguments in ([], ["nowhere"]) else [training(tmp_path / "a"), *arguments]
    assert run(*given).exit_code == 2
