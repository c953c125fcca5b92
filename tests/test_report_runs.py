"""`pixmix-show run`: compare training runs from the files of pixmix-train and pixmix-eval."""

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pipelines.cli import show
from pipelines.errors import PipelineError
from pipelines.provenance import DataFacts, SessionState, Settings, recorded
from pipelines.report.page import PageImage, Table, Text
from pipelines.report.runs import curves, differing_rows, last_rows, read_runs, sections
from pipelines.training.recipes import named_recipe
from pipelines.training.tracking import write_metrics

DIGITS = named_recipe("digits")

pytest.importorskip("matplotlib")

FOUND = {
    "clean": {"error": 0.25},
    "calibration": {"rms": 0.125, "rms_temperature_scaled": 0.0625},
    "ood": {"auroc": 0.75, "datasets": {"gaussian": {}}},
}


def training(folder: Path, epochs: int = 3, *, validation: bool = False, more: float = 0.0) -> Path:
    """Write the metrics of a run whose errors fall from 50 %. more: added to the training loss."""
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
    (folder / "evaluation.json").write_text(
        json.dumps({"version": 2, "networks": {"step.pt": found}})
    )
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(show.main, ["run", *map(str, arguments)])


def test_the_table_has_the_last_epoch_of_each_run_with_the_best_error_marked(
    tmp_path: Path,
) -> None:
    runs = read_runs([training(tmp_path / "a"), training(tmp_path / "b", 5, validation=True)])
    assert last_rows(runs) == [
        ("", "a", "b"),
        ("epochs", "3", "5"),
        ("steps", "66", "110"),
        ("training loss", "0.6667", "0.4000"),
        ("training error", "16.67 %", "10.00 %"),
        ("validation error", "-", "37.50 %"),
        ("test error", "20.83 %", "12.50 % *"),
    ]


def test_an_evaluation_beside_the_metrics_is_shown_and_one_that_is_missing_is_not(
    tmp_path: Path,
) -> None:
    a, b = evaluated(training(tmp_path / "a")), training(tmp_path / "b")
    result = run(a, b)
    assert result.exit_code == 0, result.output
    *_, block = result.stdout.split("\n\n")
    assert block.splitlines()[0].split() == ["a"]
    assert any(line.split() == ["clean", "error", "25.00", "%"] for line in block.splitlines())
    assert run(b).stdout.count("\n\n") == 0


def test_json_has_each_epoch_and_what_was_found(tmp_path: Path) -> None:
    result = run(evaluated(training(tmp_path / "a")), "--json")
    document = json.loads(result.stdout)
    assert list(document["runs"]) == ["a"]
    assert [record["epoch"] for record in document["runs"]["a"]["history"]] == [1, 2, 3]
    assert document["runs"]["a"]["evaluation"] == FOUND
    assert document["plot"] is document["html"] is None


# JPEG halves the resolution of colours, in which lines are thin.
@pytest.mark.parametrize(("ending", "within"), [(".png", 40), (".jpg", 90)])
def test_curves_are_an_image_in_which_each_run_has_its_colour(
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


def test_a_page_has_curves_tables_and_a_radar_plot(tmp_path: Path) -> None:
    runs = read_runs([evaluated(training(tmp_path / "a")), training(tmp_path / "b")])
    found = sections(runs)
    assert [section.title for section in found] == [
        "Training", "Settings that differ", "Evaluation",
    ]  # fmt: skip
    kinds = [[type(part) for part in section.parts] for section in found]
    assert kinds == [[PageImage, Table], [Text], [PageImage, Table]]
    few = evaluated(training(tmp_path / "c"), {"clean": {"error": 0.5}})
    assert [type(part) for part in sections(read_runs([few]))[1].parts] == [Table]
    path = tmp_path / "report.html"
    assert run(tmp_path / "a", tmp_path / "b", "--html", path).exit_code == 0
    text = path.read_text()
    assert text.count("<img ") == 2
    assert text.count("<table") == 2
    assert "25.00 %" in text


def test_captions_name_only_the_splits_that_were_measured(tmp_path: Path) -> None:
    def caption(folder: Path) -> str:
        image = sections(read_runs([folder]))[0].parts[0]
        assert isinstance(image, PageImage)
        return image.caption

    assert caption(training(tmp_path / "a")) == "Lines: training dotted, test solid."
    with_validation = training(tmp_path / "b", validation=True)
    assert caption(with_validation) == "Lines: training dotted, validation dashed, test solid."


def test_runs_with_equal_names_are_distinguished_by_their_parent_folders(tmp_path: Path) -> None:
    folders = [training(tmp_path / of / "run") for of in ("x", "y")]
    assert [each.name for each in read_runs(folders)] == ["x/run", "y/run"]


DAMAGED: list[tuple[str, bytes | str | None, str]] = [
    ("metrics.jsonl", None, "is not an output folder of pixmix-train, or its first epoch has not"),
    ("metrics.jsonl", "", "metrics.jsonl is empty; its first epoch has not ended"),
    ("metrics.jsonl", "{\n", "metrics.jsonl, line 1"),
    ("metrics.jsonl", "\n", "metrics.jsonl, line 1"),
    ("metrics.jsonl", '{"epoch": 1}\n', "metrics.jsonl, line 1 is damaged: it has no step"),
    ("metrics.jsonl", "[]\n", "metrics.jsonl, line 1"),
    ("metrics.jsonl", b'{"epoch": 1, "step": 1, "train_loss": 2, "\xff": 1}', "line 1"),
    ("metrics.jsonl", b"\xff", "line 1"),
    ("metrics.jsonl", "[" * 100_000, "line 1"),
    ("metrics.jsonl", '{"epoch": 1, "step": 1, "train_loss": "2"}\n', "line 1"),
    ("metrics.jsonl", '{"epoch": 1, "step": 1, "train_loss": NaN}\n', "line 1"),
    ("metrics.jsonl", '{"epoch": 1, "step": 1, "train_loss": 1e999}\n', "line 1"),
    ("metrics.jsonl", '{"epoch": 1, "step": 1, "train_loss": 1e300}\n', "line 1"),
    ("metrics.jsonl", '{"epoch": 1' + "0" * 5000 + ', "step": 1, "train_loss": 1}\n', "line 1"),
    ("metrics.jsonl", '{"epoch": 1.5, "step": 1, "train_loss": 1}\n', "it has no epoch"),
    ("metrics.jsonl", '{"epoch": true, "step": 1, "train_loss": 1}\n', "line 1"),
    ("metrics.jsonl", '{"epoch": 1, "step": null, "train_loss": 2}\n', "it has no step"),
    ("metrics.jsonl", '{"epoch": 1, "step": 1, "train_loss": 2, "test_error": [1]}\n', "line 1"),
    ("evaluation.json", "x", "evaluation.json"),
    ("evaluation.json", "", "evaluation.json"),
    ("evaluation.json", "[]", "evaluation.json"),
    ("evaluation.json", b"\xff\xfe", "evaluation.json"),
    ("evaluation.json", '{"version": 2, "networks": {}}', "evaluation.json"),
    ("evaluation.json", '{"version": 2, "networks": {"a": {"clean": 1}}}', "networks"),
    (
        "evaluation.json",
        '{"version": 2, "networks": {"a": {"clean": {"error": "x"}}}}',
        "clean.error",
    ),
    (
        "evaluation.json",
        '{"version": 2, "networks": {"a": {"clean": {"error": true}}}}',
        "clean.error",
    ),
    (
        "evaluation.json",
        '{"version": 2, "networks": {"a": {"clean": {"error": NaN}}}}',
        "evaluation.json",
    ),
    (
        "evaluation.json",
        '{"version": 2, "networks": {"a": {"clean": {"error": 1e308}}}}',
        "clean.error is 1e+308",
    ),
    ("evaluation.json", "[" * 100_000, "evaluation.json"),
    (
        "evaluation.json",
        '{"version": 2, "networks": {"a": {"c": {"x": ' + "[" * 100_000,
        "evaluation.json",
    ),
    ("run.json", "x", "run.json"),
    ("run.json", "{}", "run.json"),
    ("run.json", b"\xff", "run.json"),
    ("run.json", "[" * 100_000, "run.json"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGED)
def test_a_missing_or_damaged_file_is_reported_in_one_line(
    tmp_path: Path, name: str, content: bytes | str | None, message: str
) -> None:
    folder = training(tmp_path / "a")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    result = run(folder, "--plot", tmp_path / "curves.png")
    assert result.exit_code == 1
    assert message in result.stderr
    assert str(folder / name) in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluation.json", "run.json"])
def test_a_file_that_is_not_regular_is_reported_without_waiting_for_it(
    tmp_path: Path, name: str
) -> None:
    folder = training(tmp_path / "a")
    for make in (os.mkfifo, os.mkdir):
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        result = run(folder)
        assert result.exit_code == 1
        assert str(folder / name) in result.stderr
        assert result.stderr.count("\n") == 1
        if make is os.mkfifo:
            (folder / name).unlink()


def test_a_metric_that_is_null_is_not_shown(tmp_path: Path) -> None:
    found = {"clean": {"error": 0.25}, "calibration": {"rms": None}}
    result = run(evaluated(training(tmp_path / "a"), found))
    assert result.exit_code == 0, result.output
    assert "clean error" in result.stdout
    assert "RMS calibration error" not in result.stdout


def test_nan_and_infinite_metrics_are_written_as_null_and_read_again(tmp_path: Path) -> None:
    record = {"epoch": 1, "step": 1, "train_loss": 2.0, "test_loss": math.nan, "test_error": 0.5}
    write_metrics(tmp_path, [record, {**record, "test_loss": math.inf}])
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line, parse_constant=pytest.fail)["test_loss"] is None
    assert run(tmp_path).exit_code == 0


# --- Settings ------------------------------------------------------------------------------------


def recorded_run(folder: Path, *, more_sessions: int = 0, **changes: Any) -> Path:  # noqa: ANN401
    """Write a run with a run.json. changes: of the recipe."""
    training(folder)
    data = DataFacts(name="digits-train", location=str(folder), samples=9, sha256="a" * 64)
    settings = Settings(
        recipe={**DIGITS.to_json(), **changes}, data={"train": data}, mixing_set=None, weights=None
    )
    for _ in range(1 + more_sessions):
        with recorded(folder, settings, SessionState(0, finished=True), world_size=1):
            pass
    return folder


def test_only_the_settings_that_differ_are_shown(tmp_path: Path) -> None:
    a = recorded_run(tmp_path / "a")
    b = recorded_run(tmp_path / "b", batch_size=999, pixmix={**DIGITS.to_json()["pixmix"], "k": 2})
    rows = differing_rows(read_runs([a, b]))
    assert rows == [("", "a", "b"), ("batch_size", "64", "999"), ("pixmix.k", "4", "2")]
    result = run(a, b)
    assert result.exit_code == 0, result.output
    block = result.stdout.split("\n\n")[1].splitlines()
    assert [line.split() for line in block] == [
        ["Settings", "that", "differ:"], ["a", "b"], ["batch_size", "64", "999"],
        ["pixmix.k", "4", "2"],
    ]  # fmt: skip
    document = json.loads(run(a, b, "--json").stdout)
    assert document["differences"] == {
        "batch_size": {"a": "64", "b": "999"}, "pixmix.k": {"a": "4", "b": "2"}
    }  # fmt: skip
    assert document["runs"]["b"]["record"]["settings"]["recipe"]["batch_size"] == 999


def test_datasets_differ_by_their_hash_and_not_by_their_folder(tmp_path: Path) -> None:
    a, b = (recorded_run(tmp_path / name) for name in "ab")
    assert len(differing_rows(read_runs([a, b]))) == 1
    assert "No setting differs." in run(a, b).stdout
    path = b / "run.json"
    path.write_text(path.read_text().replace("a" * 64, "b" * 64))
    assert differing_rows(read_runs([a, b]))[1:] == [
        ("train data", "digits-train aaaaaaaaaaaa", "digits-train bbbbbbbbbbbb")
    ]


def test_a_session_with_other_versions_is_shown_as_a_difference(tmp_path: Path) -> None:
    a, b = (recorded_run(tmp_path / name, more_sessions=1) for name in "ab")
    record = json.loads((b / "run.json").read_bytes())
    now = record["sessions"][0]["versions"]["torch"]
    record["sessions"][0]["versions"]["torch"] = "1.0"
    (b / "run.json").write_text(json.dumps(record))
    assert differing_rows(read_runs([a, b]))[1:] == [("torch", now, f"1.0, then {now}")]


def test_a_run_without_run_json_is_listed_and_the_others_are_compared(tmp_path: Path) -> None:
    a, b = recorded_run(tmp_path / "a"), training(tmp_path / "b")
    c = recorded_run(tmp_path / "c", ema_decay=0.9)
    result = run(a, b, c)
    assert result.exit_code == 0, result.output
    assert "The settings of b are unknown" in result.stdout
    assert differing_rows(read_runs([a, b, c]))[1:] == [("ema_decay", "none", "-", "0.9")]


def test_csv_has_a_row_for_each_run_with_its_recipe_and_metrics(tmp_path: Path) -> None:
    a = evaluated(recorded_run(tmp_path / "a"))
    b = training(tmp_path / "b", 2)
    path = tmp_path / "new" / "runs.csv"
    result = run(a, b, "--csv", path)
    assert result.exit_code == 0, result.output
    with path.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["run"], second["run"]) == ("a", "b")
    assert (first["epoch"], second["epoch"]) == ("3", "2")
    assert float(first["test_error"]) == pytest.approx(0.625 / 3)
    assert first["recipe.batch_size"] == "64"
    assert first["recipe.pixmix.k"] == "4"
    assert first["data.train.sha256"] == "a" * 64
    assert first["status"] == "finished"
    assert float(first["evaluation.clean.error"]) == 0.25
    assert second["recipe.batch_size"] == second["evaluation.clean.error"] == ""


def test_pandas_reads_the_csv_with_numbers_as_numbers(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "runs.csv"
    assert run(recorded_run(tmp_path / "a"), training(tmp_path / "b"), "--csv", path).exit_code == 0
    frame = pandas.read_csv(path)
    assert len(frame) == 2
    assert frame["test_error"].dtype == float
    assert frame["recipe.learning_rate"][0] == 0.1


def test_file_names_that_are_not_utf8_are_escaped_in_page_and_csv(tmp_path: Path) -> None:
    folder = recorded_run(tmp_path / os.fsdecode(b"caf\xe9"))
    other = recorded_run(tmp_path / "b", seed=1)
    page, table = tmp_path / "a.html", tmp_path / "a.csv"
    arguments = ["run", str(folder), str(other), "--html", str(page), "--csv", str(table)]
    result = CliRunner().invoke(show.main, arguments)
    assert result.exit_code == 0, result.output
    assert "caf\\udce9" in page.read_text(encoding="utf-8")
    assert "caf\\udce9" in table.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["$x^$", "_a", "$", "\u56fe", "a$b"])
def test_run_names_with_any_letters_are_drawn(tmp_path: Path, name: str) -> None:
    plain, other = training(tmp_path / "plain"), evaluated(training(tmp_path / name))
    result = run(plain, other, "--plot", tmp_path / "curves.png", "--html", tmp_path / "a.html")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    # The legend of two runs has more ink than that of one.
    with_one = np.asarray(Image.open(io.BytesIO(curves(read_runs([plain])))))[:60]
    with_both = np.asarray(Image.open(tmp_path / "curves.png"))[:60]
    assert (with_both[..., :3] < 250).sum() > (with_one[..., :3] < 250).sum()


@pytest.mark.parametrize("name", ["metrics.csv", "metrics.jsonl", "run.json", "evaluation.json"])
def test_files_of_a_run_are_not_overwritten(tmp_path: Path, name: str) -> None:
    folder = evaluated(recorded_run(tmp_path / "a"))
    link = tmp_path / "link.csv"
    link.symlink_to(folder / name)
    result = run(folder, "--csv", link)
    assert result.exit_code == 2
    assert "would be overwritten" in result.stderr


def test_a_run_without_error_metrics_has_curves_and_no_warning(tmp_path: Path) -> None:
    write_metrics(tmp_path, [{"epoch": 1, "step": 1, "train_loss": 2.0}])
    result = run(tmp_path, "--html", tmp_path / "report.html", "--plot", tmp_path / "curves.png")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""


def test_a_run_that_is_passed_twice_is_rejected_for_any_spelling_of_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = training(tmp_path / "a")
    monkeypatch.chdir(folder)
    for other in (folder, folder / ".." / "a", Path(), Path("../a")):
        with pytest.raises(PipelineError, match="twice"):
            read_runs([folder, other])


def test_a_run_is_named_by_its_folder_for_any_spelling_of_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (training(tmp_path / name) for name in "ab")
    monkeypatch.chdir(a)
    assert [each.name for each in read_runs([Path(), b])] == ["a", "b"]


def test_two_outputs_must_not_be_one_file(tmp_path: Path) -> None:
    folder = training(tmp_path / "a")
    page = tmp_path / "a.htm"
    result = run(folder, "--plot", folder / "x.png", "--html", page)
    assert result.exit_code == 0, result.output
    link = tmp_path / "link.html"
    link.symlink_to(folder / "x.png")
    result = run(folder, "--plot", folder / "x.png", "--html", link)
    assert result.exit_code == 2
    assert "is also the output of --plot and would be overwritten" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--html", "report.pdf"], ["--plot", "curves.svg"], ["--csv", "a.txt"], ["nowhere"], []],
)
def test_invalid_arguments_exit_with_2(tmp_path: Path, arguments: list[str]) -> None:
    words = arguments if arguments in ([], ["nowhere"]) else [training(tmp_path / "a"), *arguments]
    assert run(*words).exit_code == 2
