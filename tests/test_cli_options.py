"""Options, JSON output and error messages that commands share."""

import json
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipelines.cli import bench, demo, evaluate, gen, shard, show, train
from pipelines.cli.options import progress_bar, say
from shard_sets import drawn_images, encoded

URL = "s3://bucket/set"


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (shard.main, ["imagefolder", "set", "out"]),
        (shard.main, ["mixing", "set", "out"]),
        (show.main, ["set", "set"]),
    ],
)
def test_ignored_images_are_counted_in_one_line(
    command: click.Command, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set" / "a" / ".hidden").mkdir(parents=True)
    for name in ("0.png", "1.gif", "2.GIF", "3.heic", "notes.txt", ".hidden/4.gif"):
        (tmp_path / "set" / "a" / name).write_bytes(encoded(drawn_images(1, 3, (40, 50))[0]))
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if "2 .gif, 1 .heic" in line]
    assert len(lines) == 1
    assert "only .jpg .jpeg .png" in lines[0]


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (shard.main, ["imagefolder", URL, "out"]),
        (shard.main, ["cifar10", URL, "out"]),
        (shard.main, ["mixing", URL, "out"]),
        (shard.main, ["index", f"{URL}/0.tar"]),
        (show.main, ["set", URL]),
        (show.main, ["run", URL]),
        (evaluate.main, ["make-c", "--data", URL]),
    ],
)
def test_a_url_in_place_of_a_folder_is_rejected_with_a_remedy(
    command: click.Command, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert URL in result.stderr
    assert "aws s3 sync" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "line", "message"),
    [
        (train.main, "cifar", "'cifar'; use one of cifar10"),
        (train.main, "cifar10", "Missing option '--out'"),
        (train.main, "digits out run", "Missing option '--out'"),
        (train.main, "digits --out run", "pass --mixing-set"),
        (train.main, "digits --out run --data nowhere --no-mixing-set", "'nowhere' does not exist"),
        (train.main, "digits --out run --mixing-set nowhere", "'nowhere' does not exist"),
        (train.main, "digits --out run --mixing-set . --no-mixing-set", "exclude each other"),
        (train.main, "digits --out run --no-mixing-set --epochs 0", "0 is not in the range"),
        (train.main, "digits --out run --no-mixing-set --epochs ten", "is not a whole number"),
        (train.main, "digits --out run --no-mixing-set --learning-rate 0,1", "is not a number"),
        (train.main, "digits --out run --no-mixing-set --learning-rate nan", "is not finite"),
        (train.main, "digits --out run --no-mixing-set --resume x.pt", "use --weights x.pt"),
        (train.main, "digits --out run --no-mixing-set --augment mixup", "not one of 'none'"),
        (train.main, "digits --out run --augment augmix --k 3", "--k has no effect"),
        (train.main, "digits --out run --augment none --mixing-set .", "has no effect"),
        (train.main, "digits --out run --no-mixing-set --cache-limit 5XB", "use bytes as 200GB"),
        (train.main, "digits --out run --no-mixing-set --val-fraction 10", "10.0 is not in"),
        (train.main, "digits --out run --no-mixing-set --pretrained --weights .", "weights"),
        (gen.main, "fractals --n 1e4", "'1e4' is not a whole number"),
        (gen.main, "fractals --size 256,256", "use pixels, as 256 or 640x480"),
        (gen.main, "fractals --size 8", "use 16 to 16384"),
        (gen.main, "fractals --out s3://bucket/x", "pass --to-shards"),
        (gen.main, "fractals --shard-size 10", "--shard-size needs --to-shards"),
        (gen.main, "fractals --ray --task-index 1 --num-tasks 2", "omit --task-index"),
        (gen.main, "baseline", "Choose from: dead-leaves, spectrum, noise"),
        (gen.main, "featviz --gpus-per-task 0.5", "pass --ray"),
        (gen.main, "merge", "Missing argument 'DIR|URL'"),
        (shard.main, "imagefolder", "Missing argument 'SRC'"),
        (shard.main, "mixing out", "Missing argument 'SRC...'"),
        (shard.main, "verify . --decode some", "use a number, or all"),
        (evaluate.main, "--data .", "Missing option '--checkpoint'"),
        (evaluate.main, "--checkpoint nowhere.pt --data .", "'nowhere.pt' does not exist"),
        (evaluate.main, "--data . --suite clean,cc", "unknown suite 'cc'; use clean"),
        (evaluate.main, "--data . --mean 0.5", "requires 3 arguments"),
        (show.main, "mixed nowhere.png --no-mixing-set --out x.png", "does not exist"),
        (show.main, "run", "Missing argument 'DIR...'"),
        (show.main, "set . --html report.txt", "must end in .html"),
        (bench.main, "train --rounds 0", "0 is not in the range"),
        (demo.main, "extra", "unexpected extra argument"),
    ],
)
def test_a_wrong_command_line_ends_in_one_line_that_names_the_remedy(
    command: click.Command, line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, line.split())
    assert result.exit_code == 2, result.output
    errors = result.stderr.partition("Error: ")[2]
    assert message in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_resume_needs_no_value() -> None:
    command = train.main.commands["digits"]
    for words in (["--resume"], ["--resume", "auto"]):
        with command.make_context("digits", ["--out", "run", *words]) as context:
            assert context.params["resume"] == "auto"


def test_each_piece_of_work_has_its_own_progress_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar("samples") as show:
        for total in (30, 20, 25):
            for done in range(0, total + 1, 5):
                show(done, total)
    shown = capsys.readouterr().err
    assert "samples" in shown
    bars = shown.strip().split("\n")
    for bar, total in zip(bars, (30, 20, 25), strict=True):
        assert f"{total}/{total}" in bar.split("\r")[-1]


def test_continued_work_keeps_its_progress_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar("steps") as show:
        for done in (3, 3, 4, 9):
            show(done, 9, "a note")
    shown = capsys.readouterr().err
    assert len(shown.strip().split("\n")) == 1
    assert "9/9" in shown


def test_nan_and_infinity_are_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"a": [float("nan"), 1.5, (float("inf"), 2)], "b": {"c": -float("inf")}, "d": "NaN"}
    say("", document, as_json=True)
    printed = capsys.readouterr().out

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(printed, parse_constant=refuse)
    assert found == {"a": [None, 1.5, [None, 2]], "b": {"c": None}, "d": "NaN"}
