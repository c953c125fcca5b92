"""TensorBoard and Weights & Biases, with a fake wandb and with the real one offline."""

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
from pipelines.training.recipes import (
    named_recipe,
)
from pipelines.training.tracking import log_to_tensorboard, tracked

DIGITS = named_recipe("digits")

SETTINGS = Settings(
    recipe=DIGITS.to_json(),
    data={"train": DataFacts(name="a", location="s3://b/a", samples=3, sha256="0" * 64)},
    mixing_set=None,
    weights=None,
)
EPOCH = {"epoch": 1, "step": 5, "train_loss": 2.0, "test_error": 0.5}


def run(out: Path, *, finished: bool = True) -> None:
    """Log like a training of one epoch."""
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


class FakeWandb(types.ModuleType):
    """A fake of the used parts of wandb that records its calls."""

    Error = type("Error", (Exception,), {})

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, Any], int]] = []
        self.ended: list[int] = []
        self.errors: dict[str, Exception] = {}

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: ANN401
        return settings

    def init(self, **options: Any) -> "FakeWandb":  # noqa: ANN401
        if "init" in self.errors:
            raise self.errors["init"]
        self.begun.append(options)
        return self

    def log(self, record: dict[str, Any], step: int) -> None:
        if "log" in self.errors:
            raise self.errors["log"]
        self.logged.append((record, step))

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_settings_and_epochs_without_secrets(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pixmix-train", "--token", "hunter2"])
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    run(tmp_path / "a")
    (options,) = wandb.begun
    record = record_of(tmp_path / "a")
    assert (options["id"], options["name"], options["project"]) == (record["id"], "a", "mine")
    assert options["config"]["recipe"] == record["settings"]["recipe"]
    assert "hunter2" not in repr(options)
    # Otherwise wandb would send the command line and the host name.
    assert options["settings"]["x_disable_meta"] is True
    assert options["settings"]["x_disable_machine_info"] is True
    assert wandb.logged == [(EPOCH, 5)]
    assert wandb.ended == [0]


def test_a_resumed_run_keeps_its_id_and_a_stopped_run_is_not_a_success(
    tmp_path: Path, wandb: FakeWandb
) -> None:
    run(tmp_path / "a", finished=False)
    run(tmp_path / "a")
    first, second = wandb.begun
    assert first["id"] == second["id"]
    assert first["resume"] == second["resume"] == "allow"
    assert wandb.ended == [1, 0]


def test_errors_of_wandb_end_training_only_at_its_start(
    tmp_path: Path, wandb: FakeWandb, caplog: pytest.LogCaptureFixture
) -> None:
    wandb.errors["init"] = wandb.Error("No API key configured.\nmore")
    with pytest.raises(
        PipelineError, match=r"No API key configured\. .*WANDB_MODE=offline"
    ) as error:
        run(tmp_path / "a")
    assert "\n" not in str(error.value)
    assert record_of(tmp_path / "a")["status"] == "failed"
    wandb.errors = {"log": wandb.Error("away")}
    run(tmp_path / "a")
    assert "away" in caplog.text
    assert wandb.ended == [0]


@pytest.mark.slow
def test_the_command_logs_to_wandb(tmp_path: Path, wandb: FakeWandb) -> None:
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


def test_a_missing_wandb_is_reported_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    arguments = ["digits", "--out", str(tmp_path / "a"), "--augment", "none", "--wandb"]
    done = CliRunner().invoke(train.main, arguments)
    assert done.exit_code == 1
    assert "pip install 'pixmix[wandb]'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_an_offline_run_of_wandb_is_kept_in_out(
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
    # A process of wandb writes the file a little later.
    until = time.monotonic() + 60
    while not all(name in log.read_bytes() for name in sought):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_tensorboard_gets_the_record_of_each_epoch(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in (5, 10):
        log_to_tensorboard(tmp_path, {"epoch": step // 5, "step": step, "train_loss": 1 / step})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["train_loss"]
    seen = [(each.step, round(each.value, 6)) for each in events.Scalars("train_loss")]
    assert seen == [(5, 0.2), (10, 0.1)]
