"""Options and endings that commands share."""

import json

import pytest

from pipelines.cli.options import progress_bar, say


def test_a_bar_is_of_one_work_and_never_goes_back(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("samples") as show:
        for total in (30, 20, 25):
            for done in range(0, total + 1, 5):
                show(done, total)
    shown = capsys.readouterr().err
    assert "samples" in shown
    bars = shown.strip().split("\n")
    for bar, total in zip(bars, (30, 20, 25), strict=True):
        assert f"{total}/{total}" in bar.split("\r")[-1]


def test_work_that_goes_on_has_one_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("steps") as show:
        for done in (3, 3, 4, 9):
            show(done, 9, "a note")
    shown = capsys.readouterr().err
    assert len(shown.strip().split("\n")) == 1
    assert "9/9" in shown


def test_what_is_no_number_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"a": [float("nan"), 1.5, (float("inf"), 2)], "b": {"c": -float("inf")}, "d": "NaN"}
    say("", document, as_json=True)
    printed = capsys.readouterr().out

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(printed, parse_constant=refuse)
    assert found == {"a": [None, 1.5, [None, 2]], "b": {"c": None}, "d": "NaN"}
