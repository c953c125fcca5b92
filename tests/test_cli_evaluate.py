"""`pixmix-eval`: its results, warnings and errors."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn

from imagenet_folders import EVERY_FIFTH, Colours, write_tree
from pipelines.cli import evaluate as command
from pipelines.cli.evaluate import main
from pipelines.evaluation.corruptions import (
    CORRUPTIONS,
)
from pipelines.evaluation.data import open_evaluation_data
from pipelines.evaluation.predictions import Evaluation
from pipelines.evaluation.suites import SUITES
from pipelines.loading.mixing_set import open_images
from pipelines.models import checkpoints
from pipelines.models.registry import open_model
from pipelines.shards.format import open_shards
from pipelines.system.files import file_sha256
from pipelines.training.checkpoints import save_checkpoint


def checkpoint(folder: Path, classes: int = 10) -> Path:
    module = open_model("wrn_10_1", classes)
    path = folder / f"{classes}.pt"
    network = {"model": "wrn_10_1", "classes": classes, "mean": [0.5] * 3, "std": [0.5] * 3}
    save_checkpoint(path, {"network": network, "state_dict": module.state_dict()})
    return path


def test_suites_equal_those_of_the_library() -> None:
    assert command.SUITES == SUITES


def test_the_command_evaluates_and_prints_the_results(digits: Path, tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    arguments = ("run", "--checkpoint", str(path), "--data", str(digits))
    result = run(*arguments, "--suite", "clean,calibration,ood", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["test"] == "DIGITS"
    (found,) = document["networks"].values()
    assert found["clean"]["n"] == 359
    assert 0.5 < found["clean"]["error"] <= 1
    assert document["missing"] == {}
    text = run(*arguments[1:], "--suite", "clean", "--against", str(path))
    assert text.exit_code == 0, text.output
    assert "clean error" in text.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--checkpoint", "3.pt"),
            "has 10 numbered classes, of which 7 ('3', '4', '5' and 4 more) are not within",
        ),
        (("--checkpoint", "bare.pt"), "pass --model"),
        (("--checkpoint", "bare.pt", "--model", "resnet18"), "does not match ResNet"),
        (("--checkpoint", "junk.pt"), "neither a torch.save nor a safetensors file"),
        (("--checkpoint", "10.pt", "--data", "empty"), "has no test/manifest.json"),
    ],
)
def test_checkpoints_and_data_that_cannot_be_evaluated_end_in_one_line(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for classes in (3, 10):
        checkpoint(tmp_path, classes)
    torch.save(open_model("wrn_10_1", 10).state_dict(), "bare.pt")
    Path("junk.pt").write_text("junk")
    more = () if "--data" in arguments else ("--data", str(digits))
    result = run("run", *arguments, *more, "--suite", "clean")
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert result.stderr.count("Error: ") == 1


def test_small_images_are_preprocessed_alike_in_folders_and_in_shards(
    digits: Path, tmp_path: Path
) -> None:
    test = open_shards(digits / "test")
    images = open_images(test, cache_dir=tmp_path / "cache")
    for i in range(len(test)):
        folder = tmp_path / "folders" / "test" / test.classes[int(test.samples["label"][i])]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i]).save(folder / f"{i}.png")
    path = checkpoint(tmp_path)
    found = []
    for root in (digits, tmp_path / "folders"):
        result = run("--checkpoint", str(path), "--data", str(root), "--suite", "clean", "--json")
        assert result.exit_code == 0, result.output
        found += json.loads(result.stdout)["networks"].values()
    assert found[0] == found[1]
    # The same applies to a checkpoint without preprocessing metadata.
    bare = open_evaluation_data(tmp_path / "folders", {"classes": 10})
    assert (bare.side, bare.transform) == (32, None)
    # A network with a larger input gets larger images.
    larger = {"classes": 10, "crop": "resized", "image_size": 64, "evaluation_resize": 72}
    assert open_evaluation_data(tmp_path / "folders", larger).side == 64


def test_make_c_preprocesses_images_as_the_checkpoint_does(digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    module = open_model("wrn_10_1", 10)
    network = {"model": "wrn_10_1", "classes": 10, "crop": "resized", "image_size": 48,
               "evaluation_resize": 50}  # fmt: skip
    path = tmp_path / "48.pt"
    save_checkpoint(path, {"state_dict": module.state_dict(), "network": network})
    out = tmp_path / "made"
    made = run("make-c", "--data", str(digits), "--out", str(out), "--n", "2",
               "--checkpoint", str(path))  # fmt: skip
    assert made.exit_code == 0, made.output
    assert np.load(out / "DIGITS-C-made" / "fog.npy").shape == (10, 48, 48, 3)
    names = (out / "DIGITS-C-made" / "classes.txt").read_text().split()
    assert names == list(open_shards(digits / "test").classes)


def test_results_are_printed_before_the_suites_that_failed(digits: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "test").symlink_to(digits / "test")
    (root / "outliers" / "empty").mkdir(parents=True)
    path = checkpoint(tmp_path)
    plot = tmp_path / "radar.png"
    arguments = ("--checkpoint", str(path), "--data", str(root), "--suite", "clean,ood")
    result = run(*arguments, "--json", "--plot", str(plot))
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["failed"].keys() == {"ood"}
    (found,) = document["networks"].values()
    assert found["clean"]["n"] == 359
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert not plot.exists()
    text = run(*arguments)
    assert text.exit_code == 1
    assert "clean error" in text.stdout
    assert "ood could not be measured: " in text.stderr


def test_results_record_the_code_and_the_files_used(digits: Path, tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    result = run("--checkpoint", str(path), "--data", str(digits), "--suite", "clean", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["provenance"]
    (name,) = json.loads(result.stdout)["networks"]
    assert found["checkpoints"] == {name: file_sha256(path)}
    assert found["data"] == file_sha256(digits / "test" / "manifest.json")
    assert {"torch", "pixmix"} <= found["versions"].keys()
    assert found["hardware"]["world_size"] == 1
    assert found["seconds"] > 0


@pytest.mark.slow
def test_a_requested_suite_without_data_exits_with_1(digits: Path, tmp_path: Path) -> None:
    arguments = ("--checkpoint", str(checkpoint(tmp_path)), "--data", str(digits))
    result = run(*arguments, "--suite", "clean,c,p", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["missing"].keys() == {"c", "p"}
    (found,) = document["networks"].values()
    assert found.keys() == {"clean"}
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"Error: c could not be measured: {digits}/DIGITS-C is not found")
    assert "; p could not be measured: " in last
    # Suites that were not requested may lack their data.
    assert run(*arguments, "--epsilon", "1").exit_code == 0


def test_nan_predictions_are_reported_in_one_line(digits: Path, tmp_path: Path) -> None:
    module = open_model("wrn_10_1", 10)
    torch.nn.init.constant_(next(module.parameters()), torch.nan)
    torch.save(module.state_dict(), tmp_path / "nan.pt")
    arguments = ("--checkpoint", str(tmp_path / "nan.pt"), "--model", "wrn_10_1", "--data",
                 str(digits), "--suite", "clean,calibration")  # fmt: skip
    result = run(*arguments, "--json")
    assert result.exit_code == 1
    assert "NaN" not in result.stdout.replace("are NaN or infinite", "").replace("for NaN,", "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: clean, calibration could not be measured: outputs of the netw")
    assert "NaN or infinite for 359 of 359 images" in last


def bare(folder: Path) -> tuple[str, ...]:
    """Return the options for a state dict without preprocessing metadata."""
    torch.save(open_model("wrn_10_1", 10).state_dict(), folder / "bare.pt")
    return "--checkpoint", str(folder / "bare.pt"), "--model", "wrn_10_1"


CIFAR_MEAN, CIFAR_STD = [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]


PREPROCESSING = ("--mean", *map(str, CIFAR_MEAN), "--std", *map(str, CIFAR_STD))


@pytest.mark.parametrize(
    ("passed", "expected", "words"),
    [
        (
            (),
            ([0.5] * 3, [0.5] * 3, 32, None, ["mean", "std", "image_size", "resize"]),
            "mean 0.5 0.5 0.5, std 0.5 0.5 0.5, images of 32x32, not resized; defaults "
            "used for --mean, --std, --image-size, --resize",
        ),
        (
            (*PREPROCESSING, "--image-size", "24", "--resize", "28"),
            (CIFAR_MEAN, CIFAR_STD, 24, 28, []),
            "mean 0.4914 0.4822 0.4465, std 0.247 0.2435 0.2616, shorter side resized to 28, "
            "centre crop of 24x24",
        ),
        # Small images are not cropped unless --resize is passed.
        (
            (*PREPROCESSING, "--image-size", "48"),
            (CIFAR_MEAN, CIFAR_STD, 48, 48, []),
            "shorter side resized to 48, centre crop of 48x48",
        ),
        (
            (*PREPROCESSING, "--image-size", "32"),
            (CIFAR_MEAN, CIFAR_STD, 32, None, []),
            "images of 32x32, not resized",
        ),
    ],
)
def test_preprocessing_options_are_used_and_printed(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    passed: tuple[str, ...],
    expected: tuple[Any, ...],
    words: str,
) -> None:
    used: list[Evaluation] = []
    evaluated = command._evaluate
    monkeypatch.setattr(
        command, "_evaluate", lambda each, suites: used.append(each) or evaluated(each, suites)
    )
    arguments = (*bare(tmp_path), "--data", str(digits), "--suite", "clean", "--json")
    result = run(*arguments, *passed)
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["preprocessing"].values()
    assert tuple(found.values()) == expected
    assert list(found) == ["mean", "std", "image_size", "resize", "defaults"]
    (line,) = [each for each in result.stderr.splitlines() if each.startswith("bare.pt: ")]
    assert line.endswith(words)
    ((classifier, data),) = [(each.classifier, each.data) for each in used]
    assert ([*classifier.mean], [*classifier.std], data.side) == expected[:3]
    assert data.require_test().images.read(range(2)).shape == (2, data.side, data.side, 3)


def test_preprocessing_metadata_of_a_checkpoint_cannot_be_overridden(
    digits: Path, tmp_path: Path
) -> None:
    path = checkpoint(tmp_path)
    ours = ("--checkpoint", str(path), "--data", str(digits), "--suite", "clean", "--json")
    result = run(*ours, *PREPROCESSING)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"Error: the metadata of {path} have mean [0.5, 0.5, 0.5]; omit --mean "
        "[0.4914, 0.4822, 0.4465]"
    )
    assert run(*ours, "--mean", "0.5", "0.5", "0.5").exit_code == 0
    # The option applies to the network without metadata.
    _, theirs, *_ = bare(tmp_path)
    result = run(*ours, "--against", theirs, "--model", "wrn_10_1", *PREPROCESSING)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["preprocessing"]
    assert [found[name]["mean"] for name in ("10.pt", "bare.pt")] == [[0.5] * 3, CIFAR_MEAN]


def test_incomplete_preprocessing_metadata_are_rejected(digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "view.pt"
    for metadata, message in (
        ({}, "the metadata have crop 'resized' and no image_size"),
        ({"image_size": None}, "the metadata have crop 'resized' and no image_size"),
        (
            {"image_size": 24, "evaluation_resize": 20},
            "evaluation_resize is 20 and image_size is 24",
        ),
        ({"image_size": 24}, None),
    ):
        network = {"model": "wrn_10_1", "classes": 10, "crop": "resized", **metadata}
        state = open_model("wrn_10_1", 10).state_dict()
        save_checkpoint(path, {"network": network, "state_dict": state})
        result = run("--checkpoint", str(path), "--data", str(digits), "--suite", "clean")
        assert result.exit_code == (1 if message else 0), result.output
        if message:
            assert result.stderr.startswith(f"Error: {path}: ")
            assert message in result.stderr


@pytest.mark.slow
def test_two_processes_compute_the_results_of_one(digits: Path, tmp_path: Path) -> None:
    arguments = [
        "run", "--checkpoint", str(checkpoint(tmp_path)), "--data", str(digits), "--json",
        "--suite", "clean,calibration,ood",
    ]  # fmt: skip
    alone = run(*arguments)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    both = subprocess.run(
        [*torchrun, "--standalone", "-m", "pipelines.cli.evaluate", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert both.returncode == 0, both.stderr
    (found,), (expected,) = (
        json.loads(text)["networks"].values() for text in (both.stdout, alone.stdout)
    )
    assert found["clean"] == expected["clean"]
    for suite in ("calibration", "ood"):
        assert_close(found[suite], expected[suite])


def assert_close(found: Any, expected: Any) -> None:  # noqa: ANN401
    """Compare nested results."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value)
    else:
        assert found == pytest.approx(expected, abs=1e-4)


def test_a_bare_state_dict_is_evaluated_with_the_model_option(digits: Path, tmp_path: Path) -> None:
    torch.save(open_model("wrn_10_1", 10).state_dict(), tmp_path / "bare.pt")
    result = run(
        "run", "--checkpoint", str(tmp_path / "bare.pt"), "--model", "wrn_10_1", "--data",
        str(digits), "--suite", "clean",
    )  # fmt: skip
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("--suite", "clean,everything"),
        ("--epsilon", "0"),
        ("--epsilon", "nan"),
        ("--plot", "radar.txt"),
        ("--batch-size", "0"),
        ("--mean", "123.7", "116.3", "103.5"),
        ("--mean", "0.5", "nan", "0.5"),
        ("--std", "0", "1", "1"),
        ("--resize", "36"),
        ("--image-size", "32", "--resize", "28"),
        ("--checkpoint", "absent.pt"),
    ],
)
def test_wrong_usage_exits_with_2(digits: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    path = checkpoint(tmp_path)
    result = run("run", "--data", str(digits), "--checkpoint", str(path), *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr


def colours(classes: int) -> nn.Module:
    """A network for --model module:function."""
    assert classes == 1000
    return Colours()


def run_command(root: Path, *arguments: str, ends_with: int = 0) -> Mapping[str, Any]:
    torch.save(Colours().state_dict(), root / "bare.pt")
    result = CliRunner().invoke(
        command.main,
        [
            "run", "--checkpoint", str(root / "bare.pt"), "--data", str(root),
            "--model", f"{__name__}:colours", "--json", *arguments,
        ],
    )  # fmt: skip
    assert result.exit_code == ends_with, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_the_command_evaluates_the_imagenet_sets_that_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.models.checkpoints._classes_of", lambda *_: 1000)
    write_tree(tmp_path / "val", [7])
    write_tree(tmp_path / "imagenet-r", EVERY_FIFTH)
    document = run_command(tmp_path, "--suite", "clean,calibration,r,a,c", ends_with=1)
    assert document["test"] == "ImageNet"
    assert set(document["missing"]) == {"a", "c"}
    (found,) = document["networks"].values()
    assert set(found) == {"clean", "calibration", "r"}
    assert found["r"]["n"] == 200


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
def test_training_overlap_and_made_corruptions_are_reported_in_table_json_and_stderr(
    tmp_path: Path, augment: str
) -> None:
    write_checkpoint(tmp_path / "a.pt", augment=augment, all_ops=True)
    write_checkpoint(tmp_path / "b.pt", augment="pixmix", all_ops=False)
    root = tmp_path / "pets"
    write_test(root)
    write_c(root / "PETS-C-made")
    (root / "PETS-C-made" / "make-c.json").write_text('{"n": 2, "seed": 0}')
    arguments = ("--checkpoint", tmp_path / "a.pt", "--against", tmp_path / "b.pt", "--data", root,
                 "--suite", "clean,c")  # fmt: skip
    text = run(*arguments)
    assert text.exit_code == 0, text.output
    overlap = "a.pt was trained with operations that overlap the corruptions of C"
    assert overlap in text.stdout
    assert overlap in text.stderr
    assert "b.pt was trained" not in text.output
    assert "(C, generated by pixmix-eval make-c, 2 images, ImageNet constants)" in text.stdout
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
    ("write", "suites", "message"),
    [
        (lambda root: root.mkdir(), "clean", "has no test/manifest.json"),
        (write_test, "c", "PETS-C is not found"),
        (write_test, "c,p,c-bar", "PETS-P is not found"),
        (lambda root: (root / "val").mkdir(parents=True), "clean", "has no test/manifest.json"),
        (lambda root: (root / "CIFAR-10-C").mkdir(parents=True), "c", "has no test/manifest.json"),
    ],
)
def test_missing_data_are_reported_before_a_network_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: object, suites: str, message: str
) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("a network was opened")

    monkeypatch.setattr(checkpoints, "open_checkpoint", opened)
    write(tmp_path / "pets")  # type: ignore[operator]
    (tmp_path / "a.pt").touch()
    result = run("--checkpoint", tmp_path / "a.pt", "--data", tmp_path / "pets", "--suite", suites)
    assert result.exit_code == 1, result.exception
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_missing_suite_is_reported_first_and_the_others_run(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.pt")
    write_test(tmp_path / "pets")
    result = run("--checkpoint", tmp_path / "a.pt", "--data", tmp_path / "pets", "--suite",
                 "c,clean")  # fmt: skip
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0].startswith("c could not be measured: ")
    assert result.stderr.splitlines()[-1].startswith("Error: c could not be measured: ")
    assert "clean error" in result.stdout


def test_measuring_nothing_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "imagenet" / "imagenet-r").mkdir(parents=True)
    torch.save(open_model("mobilenet_v3_small", 1000).state_dict(), tmp_path / "a.pt")
    result = run("--checkpoint", tmp_path / "a.pt", "--model", "mobilenet_v3_small", "--data",
                 tmp_path / "imagenet")  # fmt: skip
    assert result.exit_code == 1
    assert "r could not be measured: " in result.stderr


def test_a_corrupted_set_is_made_and_evaluated_in_any_locale(tmp_path: Path) -> None:
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
