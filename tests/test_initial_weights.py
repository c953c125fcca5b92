"""Initial weights: torchvision's weights by name, or the checkpoints of a run folder."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import torchvision
from click.testing import CliRunner, Result

from pipelines.cli import evaluate, train
from pipelines.cli.options import WeightsPath
from pipelines.errors import PipelineError
from pipelines.models.checkpoints import open_checkpoint
from pipelines.models.registry import open_model
from pipelines.training.checkpoints import choose_checkpoint, find_checkpoints
from pipelines.training.recipes import PRETRAINED


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace torchvision's downloads: each weights file is filled with its own constant."""
    requested: list[str] = []

    def state(self: Any, *_: object, **__: object) -> dict[str, torch.Tensor]:  # noqa: ANN401
        requested.append(self.name)
        model = torchvision.models.squeezenet1_1() if "squeeze" in self.url else (
            torchvision.models.get_model("googlenet", weights=None, init_weights=False)
            if "googlenet" in self.url else torchvision.models.resnet50()
        )  # fmt: skip
        value = 0.5 if self.name.endswith("V1") else 0.25
        return {
            name: torch.full_like(each, value) if each.is_floating_point() else each
            for name, each in model.state_dict().items()
        }

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", state)
    return requested


# --- torchvision's weights -----------------------------------------------------------------------


def test_pretrained_uses_the_v1_weights_of_the_released_code(
    downloads: list[str],
) -> None:
    module = open_model("resnet50", 1000, pretrained=PRETRAINED)
    assert downloads == ["IMAGENET1K_V1"]
    assert bool((module.fc.weight == 0.5).all())
    module = open_model("resnet50", 10, pretrained="IMAGENET1K_V2")
    assert bool((module.conv1.weight == 0.25).all())
    assert module.fc.weight.std() > 0


def test_unknown_weights_are_rejected_with_the_available_names(downloads: list[str]) -> None:
    with pytest.raises(PipelineError, match=r"'IMAGENET1K_V3' for resnet50.*V1 or IMAGENET1K_V2"):
        open_model("resnet50", 10, pretrained="IMAGENET1K_V3")
    with pytest.raises(PipelineError, match=r"'IMAGENET1K_V1' for regnet_y_128gf.*IMAGENET1K_SWAG"):
        open_model("regnet_y_128gf", 10, pretrained=PRETRAINED)
    assert downloads == []


def test_a_checkpoint_keeps_the_input_transform_of_its_pretrained_weights(
    downloads: list[str], tmp_path: Path
) -> None:
    module = open_model("googlenet", 10, pretrained=PRETRAINED)
    assert downloads == [PRETRAINED]
    assert module.transform_input is True
    for pretrained in (PRETRAINED, None):
        network = {"model": "googlenet", "classes": 10, "pretrained": pretrained}
        torch.save({"state_dict": module.state_dict(), "network": network}, tmp_path / "w.pt")
        opened, _ = open_checkpoint(tmp_path / "w.pt", None)
        assert opened.transform_input is (pretrained is not None)


def test_a_checkpoint_records_its_pretrained_weights_and_a_resume_keeps_them(
    downloads: list[str], digits: Path, tmp_path: Path
) -> None:
    def run_training(*more: str) -> Result:
        arguments = ("digits", "--data", str(digits), "--out", str(tmp_path / "run"), "--model",
                     "squeezenet1_1", "--batch-size", "1024", "--device", "cpu", "--no-mixing-set",
                     "--learning-rate", "0", "--resume", "auto", *more)  # fmt: skip
        return CliRunner().invoke(train.main, arguments)

    first = run_training("--epochs", "1", "--pretrained")
    assert first.exit_code == 0, first.output
    for more in ((), ("--pretrained",)):
        find_checkpoints(tmp_path / "run")[-1].touch()
        again = run_training("--epochs", "1", *more)
        assert again.exit_code == 0, again.output
    other = run_training("--epochs", "1", "--pretrained", "IMAGENET1K_V2")
    assert other.exit_code == 1
    assert "IMAGENET1K_V1" in other.stderr
    assert set(downloads) == {"IMAGENET1K_V1"}
    content = torch.load(find_checkpoints(tmp_path / "run")[-1], weights_only=True)
    assert content["network"]["pretrained"] == "IMAGENET1K_V1"


# --- Run folders ---------------------------------------------------------------------------------


def test_a_run_folder_stands_for_its_best_or_latest_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for empty in (tmp_path / "run", folder, tmp_path):
        with pytest.raises(PipelineError, match="without checkpoints"):
            choose_checkpoint(empty)
    for step in (9, 120, 20):
        (folder / f"step-{step:08d}.pt").touch()
    (folder / ".step-99999999999.pt.x.partial").touch()
    latest = folder / "step-00000120.pt"
    assert choose_checkpoint(folder) == choose_checkpoint(tmp_path / "run") == latest
    (folder / "best.pt").touch()
    assert choose_checkpoint(folder) == choose_checkpoint(tmp_path / "run") == folder / "best.pt"
    assert choose_checkpoint(latest) == latest
    assert choose_checkpoint(tmp_path / "absent.pt") == tmp_path / "absent.pt"


def test_the_chosen_checkpoint_of_a_folder_is_reported(tmp_path: Path) -> None:
    @click.command()
    @click.option("--weights", type=WeightsPath())
    def command(weights: Path) -> None:
        click.echo(weights)

    empty = CliRunner().invoke(command, ["--weights", str(tmp_path)])
    assert empty.exit_code == 2
    assert "without checkpoints" in empty.stderr
    (tmp_path / "checkpoints").mkdir()
    best = tmp_path / "checkpoints" / "best.pt"
    best.touch()
    found = CliRunner().invoke(command, ["--weights", str(tmp_path)])
    assert found.stdout == f"{best}\n"
    assert str(best) in found.stderr
    assert CliRunner().invoke(command, ["--weights", str(best)]).stderr == ""


def test_an_evaluation_accepts_a_run_folder_and_records_the_file(
    digits: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run" / "checkpoints" / "best.pt"
    path.parent.mkdir(parents=True)
    network = {"model": "wrn_10_1", "classes": 10, "mean": [0.5] * 3, "std": [0.5] * 3}
    torch.save({"network": network, "state_dict": open_model("wrn_10_1", 10).state_dict()}, path)
    arguments = ["--checkpoint", str(tmp_path / "run"), "--data", str(digits), "--suite", "clean"]
    result = CliRunner().invoke(evaluate.main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    assert list(json.loads(result.stdout)["checkpoints"].values()) == [str(path)]
    assert f"using {path}" in result.stderr


def test_unreadable_weights_are_reported_before_data_are_prepared(tmp_path: Path) -> None:
    weights = tmp_path / "w.pt"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n")
    out = tmp_path / "run"
    options = ["digits", "--no-mixing-set", "--weights", str(weights), "--out", str(out)]
    result = CliRunner().invoke(train.main, options)
    assert result.exit_code == 1
    assert "git lfs pull" in result.stderr
    assert not out.exists()
