"""Tables and radar plots of evaluations, and the JSON that they read."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import PipelineError
from pipelines.report.evaluations import (
    axis_limit,
    radar,
    radius,
    read_evaluation,
    rows_of,
    shared_metrics,
    table,
)
from pipelines.report.page import Table
from pipelines.report.runs import TrainingRun, sections
from pipelines.report.runs import table as table_of_runs
from tiny_evaluation import MADE_WORDS, results_on_c

FOUND = {
    "clean": {"error": 0.05},
    "calibration": {"rms": 0.02},
    "ood": {"auroc": 0.9, "aupr": 0.7, "fpr95": 0.2, "datasets": {"blobs": {}}},
}


def test_the_table_has_a_column_for_each_network_and_lists_what_was_not_measured() -> None:
    shown = table({"ours.pt": FOUND, "theirs.pt": {"clean": {"error": 0.5}}}, {"p": "no data"})
    lines = shown.splitlines()
    assert lines[0].split() == ["ours.pt", "theirs.pt"]
    assert any(line.split() == ["clean", "error", "5.00", "%", "*", "50.00", "%"] for line in lines)
    assert any(line.startswith("RMS calibration error") and line.endswith("-") for line in lines)
    assert lines[-1] == "not measured: p: no data"


def test_the_best_value_of_a_row_is_marked_by_its_metrics_direction() -> None:
    columns = {
        "a": {"clean": {"error": 0.1}, "ood": {"auroc": 0.9, "aupr": 0.5}},
        "b": {"clean": {"error": 0.2}, "ood": {"auroc": 0.8, "aupr": 0.500001}},
        "c": {"clean": {"error": 0.1}, "ood": {"auroc": 0.95}},
    }
    rows = {row[0]: row[1:] for row in rows_of(columns)}
    assert rows["clean error"] == ("10.00 % *", "20.00 %", "10.00 % *")
    assert rows["OOD detection, AUROC"] == ("90.00 %", "80.00 %", "95.00 % *")
    # The two values are equal as shown.
    assert rows["OOD detection, AUPR"] == ("50.00 %", "50.00 %", "-")
    assert rows_of({"a": columns["a"]})[1] == ("clean error", "10.00 %")


def test_an_evaluation_of_another_version_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"networks": {"a": FOUND}}))
    with pytest.raises(PipelineError, match="version 1"):
        read_evaluation(path)


def test_a_radar_plot_is_drawn() -> None:
    pytest.importorskip("matplotlib")
    from pipelines.generate.generators import decode

    assert decode(radar({"ours": FOUND, "theirs": FOUND})).std() > 1
    with pytest.raises(PipelineError, match="not 1"):
        radar({"ours": {"clean": {"error": 0.1}}})


def test_small_calibration_errors_differ_visibly_on_the_radar() -> None:
    columns = {
        name: {
            "clean": {"error": clean},
            "calibration": {"rms": rms},
            "ood": {"auroc": auroc, "aupr": 0.5},
        }
        for name, clean, rms, auroc in (("a", 0.40, 0.02, 0.97), ("b", 0.42, 0.05, 0.99))
    }
    found = {}
    for metric, _ in shared_metrics(columns):
        limit = axis_limit(metric, columns)
        found[metric.suite, metric.key] = [
            radius(metric, results[metric.suite][metric.key], limit) for results in columns.values()
        ]
    rms = found["calibration", "rms"]
    assert rms[0] - rms[1] > 0.3
    auroc = found["ood", "auroc"]
    assert auroc[1] - auroc[0] > 0.3
    assert found["ood", "aupr"][0] == found["ood", "aupr"][1]
    # Further out is better, and the worst network is never at the centre.
    assert all(0.2 < value < 1 for values in found.values() for value in values)
    error, *_ = (metric for metric, _ in shared_metrics(columns) if metric.suite == "clean")
    assert radius(error, 0.0, 0.6) == 1
    assert radius(error, 0.6, 0.6) == 0


def test_results_on_generated_and_official_sets_are_in_different_rows() -> None:
    columns = {"a": results_on_c(0.25), "b": results_on_c(0.5, made=True)}
    rows = {row[0]: row[1:] for row in rows_of(columns)}
    assert rows["mean corruption error (C)"] == ("25.00 %", "-")
    assert rows[f"mean corruption error ({MADE_WORDS})"] == ("-", "50.00 %")
    assert not any(metric.suite == "c" for metric, _ in shared_metrics(columns))
    both = shared_metrics({"a": results_on_c(0.25, made=True), "b": results_on_c(0.5, made=True)})
    assert [label for metric, label in both if metric.suite == "c"] == [
        f"mean corruption error ({MADE_WORDS})", f"RMS calibration error ({MADE_WORDS})",
    ]  # fmt: skip


def test_reports_of_runs_name_generated_sets_and_overlapping_operations() -> None:
    history = ({"epoch": 1, "step": 1, "train_loss": 1.0},)
    runs = [
        TrainingRun(
            name="a", history=history, evaluation=results_on_c(0.5, made=True, overlap=True)
        )
    ]
    shown = table_of_runs(runs)
    assert MADE_WORDS in shown
    assert "a was trained with operations that overlap the corruptions of C" in shown
    pytest.importorskip("matplotlib")
    (page,) = [each for each in sections(runs) if each.title == "Evaluation"]
    (found,) = [part for part in page.parts if isinstance(part, Table)]
    assert any(MADE_WORDS in row[0] for row in found.rows)
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
def test_an_evaluation_with_damaged_results_on_c_is_rejected(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    found = results_on_c(0.5, made=True, overlap=True)
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"version": 2, "networks": {"a": found}}))
    assert read_evaluation(path) == found
    damaged = {**found, "c": {**found["c"], **change}}
    path.write_text(json.dumps({"version": 2, "networks": {"a": damaged}}))
    with pytest.raises(PipelineError, match=str(path)):
        read_evaluation(path)
