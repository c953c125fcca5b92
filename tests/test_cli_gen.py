import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import fractals
from pipelines.cli import gen, generating
from pipelines.generate.generators import ENCODERS, decode
from pipelines.generate.products import read_manifest
from pipelines.shards.format import open_shards
from stripes import tree

SMALL = ("--size", "48x32", "--samples-per-pixel", "4", "--jobs", "1")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(gen.main, arguments)


def make(folder: Path, *arguments: str) -> Result:
    return run("fractals", "--out", str(folder), *SMALL, *arguments)


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "fractals"
    assert make(folder, "--n", "6").exit_code == 0
    return folder


def test_choices_equal_those_of_the_library() -> None:
    assert tuple(fractals.BASELINE_KINDS) == tuple(fractals.BASELINE_DESCRIPTIONS)
    assert tuple(ENCODERS) == generating.FORMATS


def test_gen_fractals_writes_the_images_of_the_library(small_set: Path) -> None:
    manifest = read_manifest(small_set)
    assert (manifest["images"], manifest["status"]) == (6, "complete")
    assert manifest["settings"]["height"] == 32
    assert manifest["settings"]["width"] == 48
    lines = (small_set / "metadata.jsonl").read_text().splitlines()
    assert len(lines) == 6
    for index, line in enumerate(lines):
        record = json.loads(line)
        genome = fractals.draw_genome(0, index, "mixed")
        assert fractals.Genome.from_json(record["genome"]) == genome
        assert record["attempts"] == genome.attempt + 1
        image = fractals.render(genome, (32, 48), 4.0)
        assert record["statistics"] == pytest.approx(fractals.measure(image), abs=1e-6)
        assert decode((small_set / record["file"]).read_bytes()).shape == (32, 48, 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", fractals.BASELINE_KINDS)
def test_baselines_are_datasets_like_fractals(kind: Any, tmp_path: Path) -> None:  # noqa: ANN401
    command = ("baseline", "--kind", kind, "--n", "3", "--size", "40x24", "--format", "png")
    folder = tmp_path / kind
    assert run(*command, "--out", str(folder)).exit_code == 0
    manifest = read_manifest(folder)
    assert (manifest["kind"], manifest["images"], manifest["status"]) == (kind, 3, "complete")
    with Image.open(folder / "images" / "00000002.png") as image:
        found = np.asarray(image)
    assert (found == fractals.render_baseline(kind, 0, 2, (24, 40))).all()
    assert "3 were generated again" in run("verify", str(folder)).stdout
    assert run(*command, "--out", str(tmp_path / "shards"), "--to-shards").exit_code == 0
    assert open_shards(tmp_path / "shards").shards[0].n_samples == 3
    other = next(each for each in fractals.BASELINE_KINDS if each != kind)
    refused = run("baseline", "--kind", other, *command[3:], "--out", str(folder))
    assert refused.exit_code == 1
    assert (
        f"kind: {folder} was started with {kind}, and this command uses {other}" in refused.stderr
    )


def test_jobs_tasks_and_growth_do_not_change_a_dataset(small_set: Path, tmp_path: Path) -> None:
    for task in ("1", "0"):
        make(tmp_path / "fractals", "--n", "3", "--task-index", task, "--num-tasks", "2")
    assert make(tmp_path / "fractals", "--n", "6", "--jobs", "2").exit_code == 0
    assert tree(tmp_path / "fractals") == tree(small_set)


@pytest.mark.parametrize(
    ("option", "value"), [("--seed", "1"), ("--family", "ifs"), ("--samples-per-pixel", "9")]
)
def test_other_settings_are_rejected_in_one_line(small_set: Path, option: str, value: str) -> None:
    before = tree(small_set)
    result = make(small_set, "--n", "6", option, value)
    assert result.exit_code == 1
    field = option.removeprefix("--").replace("-", "_")
    assert re.fullmatch(f"Error: {field}: .*another output folder\n", result.stderr)
    assert result.stdout == ""
    assert tree(small_set) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("--n", "0"),
        ("--n", "many"),
        ("--size", "3"),
        ("--size", "256x15"),
        ("--size", "99999"),
        ("--size", "256x"),
        ("--family", "cubist"),
        ("--format", "gif"),
        ("--jobs", "0"),
        ("--seed", "-1"),
        ("--samples-per-pixel", "0"),
        ("--samples-per-pixel", "nan"),
        ("--samples-per-pixel", "inf"),
        ("--num-tasks", "0"),
        ("--task-index", "1"),
        ("--task-index", "8", "--num-tasks", "8"),
        ("--contact-sheet", "sheet.txt"),
        ("--contact-sheet", "set/sheet.png", "--out", "set"),
        ("--no-such-option",),
    ],
)
def test_wrong_usage_is_reported_and_exits_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("fractals", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr
    assert arguments[0] in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_reported_in_one_line() -> None:
    # Not even root writes here; a folder without permission would not stop root.
    result = make(Path("/proc/fractals"), "--n", "1")
    assert result.exit_code == 1
    assert re.fullmatch("Error: /proc/fractals.*choose another output.*\n", result.stderr)


def test_json_is_one_document_on_stdout(small_set: Path) -> None:
    result = make(small_set, "--n", "6", "--json")
    document = json.loads(result.stdout)
    assert document["images"] == document["finished"] == 6
    assert (document["generated"], document["complete"]) == (0, True)
    verdict = json.loads(run("verify", str(small_set), "--json").stdout)
    assert (verdict["good"], verdict["sampled"]) == (True, 6)


def test_a_contact_sheet_shows_the_images(small_set: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "new" / "sheet.png"
    result = make(small_set, "--n", "6", "--contact-sheet", str(sheet))
    assert result.exit_code == 0
    assert str(sheet) in result.stdout
    assert decode(sheet.read_bytes()).std() > 1


def test_verify_exits_with_0_for_a_good_set_and_1_for_a_damaged_one(
    small_set: Path, tmp_path: Path
) -> None:
    good = run("verify", str(small_set))
    assert (good.exit_code, good.stdout.count("\n")) == (0, 1)
    assert "good; 6 images are as they were written, 6 were generated again" in good.stdout
    damaged = tmp_path / "fractals"
    for name, content in tree(small_set).items():
        (damaged / name).parent.mkdir(parents=True, exist_ok=True)
        (damaged / name).write_bytes(content)
    (damaged / "images" / "00000002.jpg").write_bytes(b"")
    bad = run("verify", str(damaged))
    assert (bad.exit_code, bad.stdout.count("\n")) == (1, 1)
    assert "1 fault" in bad.stdout
    assert "images/00000002.jpg has changed" in bad.stdout


def test_verify_reports_missing_settings_in_one_line(small_set: Path, tmp_path: Path) -> None:
    manifest = json.loads((small_set / "manifest.json").read_bytes())
    del manifest["settings"]["seed"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    result = run("verify", str(tmp_path))
    assert result.exit_code == 1
    assert re.fullmatch(r"Error: .* settings do not describe .*'seed'.* again\n", result.stderr)


def test_verify_rejects_other_folders_in_one_line(tmp_path: Path) -> None:
    result = run("verify", str(tmp_path))
    assert result.exit_code == 1
    assert re.fullmatch("Error: .* is not a dataset of images.*\n", result.stderr)


@pytest.mark.slow
def test_ctrl_c_prints_one_line_and_the_same_command_resumes(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "pipelines.cli.gen", "fractals", "--n", "400"),
        *("--out", str(tmp_path / "fractals"), "--size", "48x32", "--jobs", "2"),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    interrupted = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, process_group=0
    )
    while not list((tmp_path / "fractals" / ".work" / "done").glob("*.jsonl")):
        assert interrupted.poll() is None
    # To every process of the command, as a terminal does.
    os.killpg(interrupted.pid, signal.SIGINT)
    _, errors = interrupted.communicate()
    assert interrupted.returncode == 130
    assert errors.splitlines()[-1] == "Error: interrupted; run the same command again to resume"
    assert "Traceback" not in errors
    whole = len(list((tmp_path / "fractals" / "images").glob("[0-9]*")))
    assert 0 < whole < 400
    result = subprocess.run(
        [*command, "--json"], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout)["generated"] == 400 - whole
