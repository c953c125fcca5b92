"""A training in Weights & Biases: with a stand-in of its package, and with the package offline."""

import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipelines.cli import train
from pipelines.errors import PipelineError
from pipelines.provenance import DataFacts, SessionState, Settings, recorded
from pipelines.training.data import open_training_data
from pipelines.training.recipes import named_recipe
from pipelines.training.tracking import tracked

DIGITS = named_recipe("digits")

SETTINGS = Settings(
    recipe=DIGITS.to_json(),
    data={"train": DataFacts(name="a", location="s3://b/a", samples=3, sha256="0" * 64)},
    mixing_set=None,
    weights=None,
)
EPOCH = {"epoch": 1, "step": 5, "train_loss": 2.0, "test_error": 0.5}


def run(out: Path, *, finished: bool = True) -> None:
    """Do what a training of one epoch does."""
    out.mkdir(exist_ok=True)
    with (
        tracked(out, wandb=True) as shown,
        recorded(out, SETTINGS, SessionState(0), world_size=1),
    ):
        assert shown is not None
        shown.begin()
        shown.epoch(EPOCH)
        shown.finished = finished


def record_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_bytes())
    return found


class StandIn(types.ModuleType):
    """What is used of wandb, which keeps what it is given."""

    Error = type("Error", (Exception,), {})

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, Any], int]] = []
        self.ended: list[int] = []
        self.refusals: dict[str, Exception] = {}

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: ANN401
        return settings

    def init(self, **given: Any) -> "StandIn":  # noqa: ANN401
        if "init" in self.refusals:
            raise self.refusals["init"]
        self.begun.append(given)
        return self

    def log(self, record: dict[str, Any], step: int) -> None:
        if "log" in self.refusals:
            raise self.refusals["log"]
        self.logged.append((record, step))

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_run_has_the_settings_and_each_epoch_and_no_secrets(
    tmp_path: Path, wandb: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pixmix-train", "--token", "hunter2"])
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    run(tmp_path / "a")
    (given,) = wandb.begun
    record = record_of(tmp_path / "a")
    assert (given["id"], given["name"], given["project"]) == (record["id"], "a", "mine")
    assert given["config"]["recipe"] == record["settings"]["recipe"]
    assert "hunter2" not in repr(given)
    # It would send the command line as it was typed, and the name of the machine.
    assert given["settings"]["x_disable_meta"] is True
    assert given["settings"]["x_disable_machine_info"] is True
    assert wandb.logged == [(EPOCH, 5)]
    assert wandb.ended == [0]


def test_a_run_that_is_resumed_keeps_its_id_and_one_that_was_stopped_is_no_success(
    tmp_path: Path, wandb: StandIn
) -> None:
    run(tmp_path / "a", finished=False)
    run(tmp_path / "a")
    first, second = wandb.begun
    assert first["id"] == second["id"]
    assert first["resume"] == second["resume"] == "allow"
    assert wandb.ended == [1, 0]


def test_what_wandb_refuses_ends_a_training_at_its_beginning_and_not_later(
    tmp_path: Path, wandb: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    wandb.refusals["init"] = wandb.Error("No API key configured.\nmore")
    with pytest.raises(
        PipelineError, match=r"No API key configured\. .*WANDB_MODE=offline"
    ) as error:
        run(tmp_path / "a")
    assert "\n" not in str(error.value)
    assert record_of(tmp_path / "a")["status"] == "failed"
    wandb.refusals = {"log": wandb.Error("away")}
    run(tmp_path / "a")
    assert "away" in caplog.text
    assert wandb.ended == [0]


@pytest.mark.slow
def test_the_command_tracks_a_training(tmp_path: Path, wandb: StandIn) -> None:
    pytest.importorskip("sklearn")
    open_training_data("digits", None, tmp_path / "data", lambda _done, _total: None)
    arguments = ["--data", tmp_path / "data", "--out", tmp_path / "a", "--augment", "none"]
    arguments += ["--epochs", "2", "--batch-size", "256", "--device", "cpu", "--wandb"]
    done = CliRunner().invoke(train.main, ["digits", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert [record for record, _ in wandb.logged] == [json.loads(line) for line in lines]
    assert [step for _, step in wandb.logged] == [5, 10]
    assert wandb.ended == [0]


def test_a_package_that_is_missing_is_told_with_its_extra_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    arguments = ["digits", "--out", str(tmp_path / "a"), "--augment", "none", "--wandb"]
    done = CliRunner().invoke(train.main, arguments)
    assert done.exit_code == 1
    assert "pip install 'pixmix[wandb]'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_without_a_network_a_run_is_kept_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))
    run(tmp_path / "a")
    (folder,) = (tmp_path / "a" / "wandb").glob("offline-run-*")
    (log,) = folder.glob("run-*.wandb")
    sought = [
        name.encode() for name in ("test_error", "batch_size", record_of(tmp_path / "a")["id"])
    ]
    # A process of wandb's own writes it, a moment later.
    until = time.monotonic() + 60
    while not all(name in log.read_bytes() for name in sought):
        assert time.monotonic() < until
        time.sleep(0.1)
