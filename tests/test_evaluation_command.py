"""`pixmix-eval` on class folders: what it says before and after it measures, and in which order."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn

from pipelines.cli.evaluate import main
from pipelines.evaluation.corruptions import CORRUPTIONS
from pipelines.models import checkpoints
from pipelines.models.registry import open_model
from pipelines.training.checkpoints import save_checkpoint

NAMES = ("caf\u00e9", "b")


def write_checkpoint(
    path: Path, names: Sequence[str] = NAMES, augment: str = "none", all_ops: bool = False
) -> None:
    module: nn.Module = open_model("wrn_10_1", len(names))
    network = {"model": "wrn_10_1", "classes": len(names), "class_names": list(names),
               "mean": [0.5] * 3, "std": [0.5] * 3}  # fmt: skip
    recipe = {"augment": augment, "pixmix": {"all_ops": all_ops}}
    save_checkpoint(path, {"network": network, "recipe": recipe, "state_dict": module.state_dict()})


def write_test(root: Path, names: Sequence[str] = NAMES, n: int = 3) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        (root / "test" / name).mkdir(parents=True)
        for number in range(n):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(root / "test" / name / f"{number}.png")


def write_c(folder: Path) -> None:
    folder.mkdir()
    for name in CORRUPTIONS:
        np.save(folder / f"{name}.npy", np.zeros((10, 32, 32, 3), np.uint8))
    np.save(folder / "labels.npy", np.zeros(10, np.int64))
    (folder / "classes.txt").write_bytes("\n".join(NAMES).encode())


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.mark.parametrize("augment", ["pixmix", "trivialaugment"])
def test_overlap_and_making_are_said_in_the_table_in_json_and_on_stderr(
    tmp_path: Path, augment: str
) -> None:
    write_checkpoint(tmp_path / "a.pt", augment=augment, all_ops=True)
    write_checkpoint(tmp_path / "b.pt", augment="pixmix", all_ops=False)
    root = tmp_path / "pets"
    write_test(root)
    write_c(root / "PETS-C-made")
    (root / "PETS-C-made" / "made-of.json").write_text('{"n": 2, "seed": 0}')
    arguments = ("--checkpoint", tmp_path / "a.pt", "--against", tmp_path / "b.pt", "--data", root,
                 "--suite", "clean,c")  # fmt: skip
    text = run(*arguments)
    assert text.exit_code == 0, text.output
    overlap = "a.pt was trained with operations that overlap the corruptions of C"
    assert overlap in text.stdout
    assert overlap in text.stderr
    assert "b.pt was trained" not in text.output
    assert "(C made by pixmix-eval make-c, 2 images, ImageNet constants)" in text.stdout
    found = json.loads(run(*arguments, "--json").stdout)["networks"]
    assert found["a.pt"]["c"]["overlap"] == ["color", "contrast", "brightness", "sharpness"]
    assert found["a.pt"]["c"]["made"]["images"] == 2
    assert "overlap" not in found["b.pt"]["c"]


def test_hidden_folders_are_counted_in_one_line(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.pt")
    write_test(tmp_path / "pets")
    (tmp_path / "pets" / "test" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "pets" / "test" / NAMES[0] / "._0.png").write_bytes(b"junk")
    for more in ((), ("--json",)):
        result = run("--checkpoint", tmp_path / "a.pt", "--data", tmp_path / "pets", "--suite",
                     "clean", *more)  # fmt: skip
        assert result.exit_code == 0, result.output
        assert result.stderr.count("ignored 2 hidden or system files and folders") == 1


@pytest.mark.parametrize(
    ("write", "suites", "said"),
    [
        (lambda root: root.mkdir(), "clean", "has no test/manifest.json"),
        (write_test, "c", "PETS-C is not there"),
        (write_test, "c,p,c-bar", "PETS-P is not there"),
        (lambda root: (root / "val").mkdir(parents=True), "clean", "has no test/manifest.json"),
        (lambda root: (root / "CIFAR-10-C").mkdir(parents=True), "c", "has no test/manifest.json"),
    ],
)
def test_what_is_missing_is_told_before_a_network_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: object, suites: str, said: str
) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("a network was opened")

    monkeypatch.setattr(checkpoints, "open_checkpoint", opened)
    write(tmp_path / "pets")  # type: ignore[operator]
    (tmp_path / "a.pt").touch()
    result = run("--checkpoint", tmp_path / "a.pt", "--data", tmp_path / "pets", "--suite", suites)
    assert result.exit_code == 1, result.exception
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_one_of_two_suites_that_is_missing_is_told_first_and_the_other_runs(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.pt")
    write_test(tmp_path / "pets")
    result = run("--checkpoint", tmp_path / "a.pt", "--data", tmp_path / "pets", "--suite",
                 "c,clean")  # fmt: skip
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0].startswith("c could not be measured: ")
    assert result.stderr.splitlines()[-1].startswith("Error: c could not be measured: ")
    assert "clean error" in result.stdout


def test_nothing_measured_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "imagenet" / "imagenet-r").mkdir(parents=True)
    torch.save(open_model("mobilenet_v3_small", 1000).state_dict(), tmp_path / "a.pt")
    result = run("--checkpoint", tmp_path / "a.pt", "--model", "mobilenet_v3_small", "--data",
                 tmp_path / "imagenet")  # fmt: skip
    assert result.exit_code == 1
    assert "r could not be measured: " in result.stderr


def test_a_set_is_made_and_evaluated_whatever_the_locale_is(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    write_checkpoint(tmp_path / "a.pt")
    write_test(tmp_path / "pets", n=1)
    root = ("--data", tmp_path / "pets")
    made = run("make-c", *root, "--n", "1", "--json")
    assert made.exit_code == 0, made.output
    assert Path(json.loads(made.stdout)["folder"]).name == "PETS-C-made"
    arguments = ["--checkpoint", tmp_path / "a.pt", *root, "--suite", "c", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli.evaluate", *map(str, arguments)],
        env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": ""},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["networks"].values()
    assert found["c"]["made"]["images"] == 1
