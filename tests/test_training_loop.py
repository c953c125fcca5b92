"""Training runs: resume bit for bit, signals, checkpoints, losses and mixing sets."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.errors import PipelineError
from pipelines.generate.featviz import open_trained
from pipelines.models.checkpoints import open_checkpoint
from pipelines.models.registry import open_model
from pipelines.shards.remote import open_set
from pipelines.system.process_group import Processes
from pipelines.training.checkpoints import find_checkpoints
from pipelines.training.data import hold_out
from pipelines.training.loop import train
from pipelines.training.recipes import (
    StepProgress,
)
from pipelines.training.stopping import Stopping
from training_sets import (
    ALONE,
    assert_same,
    loss_and_error,
    read_checkpoint,
    stopping_at,
    training,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged": {"ema_decay": 0.9},
    "views": {"jsd": True},
    "augmix": {"augment": "augmix"},
    "views of augmix": {"augment": "augmix", "jsd": True},
    "accumulated": {"grad_accum_steps": 3},
    "bfloat16": {"precision": "bfloat16"},
    # Without convolutions: many CPUs lack them for float16 and take 20 s for a step.
    "float16, averaged": {
        "precision": "float16",
        "ema_decay": 0.9,
        "model": "networks:linear",
        "dropout": 0.0,
    },
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_bit_for_bit_the_same(
    digits: Path, tmp_path: Path, variant: str
) -> None:
    changes = VARIANTS[variant]
    unbroken = train(training(digits, tmp_path / "unbroken", **changes), ALONE)
    assert (unbroken.finished, unbroken.step, len(unbroken.history)) == (True, 10, 2)
    # Stop in the middle of the first epoch, then of the second.
    for step in (3, 7):
        stopped = train(
            training(digits, tmp_path / "broken", resume=True, **changes), ALONE, stopping_at(step)
        )
        assert (stopped.finished, stopped.step) == (False, step)
    ended = train(training(digits, tmp_path / "broken", resume=True, **changes), ALONE)
    assert (ended.finished, ended.step) == (True, 10)
    assert_same(weights_of(ended), weights_of(unbroken))
    assert ended.history == unbroken.history
    for name in ("metrics.jsonl", "metrics.csv"):
        assert (tmp_path / "broken" / name).read_bytes() == (
            tmp_path / "unbroken" / name
        ).read_bytes()


@pytest.mark.slow
def test_a_run_resumed_at_the_end_of_an_epoch_ends_bit_for_bit_the_same(
    digits: Path, tmp_path: Path
) -> None:
    unbroken = train(training(digits, tmp_path / "unbroken"), ALONE)
    stopped = train(training(digits, tmp_path / "broken"), ALONE, stopping_at(5))
    # A stop skips the evaluation, which may take longer than a batch system waits.
    assert (stopped.finished, stopped.step, len(stopped.history)) == (False, 5, 0)
    stopped = train(training(digits, tmp_path / "broken", resume=True), ALONE, stopping_at(10))
    assert (stopped.finished, stopped.step, len(stopped.history)) == (False, 10, 1)
    ended = train(training(digits, tmp_path / "broken", resume=True), ALONE)
    assert ended.finished
    assert ended.history == unbroken.history
    assert_same(weights_of(ended), weights_of(unbroken))
    # Resuming a finished run does nothing.
    again = train(training(digits, tmp_path / "broken", resume=True), ALONE)
    assert (again.finished, again.step) == (True, 10)


def test_a_signal_during_the_agreement_of_processes_is_obeyed(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreements = 0
    agree = Processes.sum

    def interrupted(self: Processes, *values: float) -> list[float]:
        nonlocal agreements
        sums = agree(self, *values)
        agreements += 1
        if agreements == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return sums

    monkeypatch.setattr(Processes, "sum", interrupted)
    stopped = train(training(digits, tmp_path / "run"), ALONE)
    assert not stopped.finished
    assert stopped.step <= 5
    assert read_checkpoint(stopped.checkpoint).step == stopped.step


@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_run_leaves_a_checkpoint(
    digits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = ["folder", "--data", digits, "--out", out, "--no-mixing-set", "--workers", "2",
                 "--model", "networks:classifier", "--epochs", "50", "--batch-size", "16",
                 "--precision", "float32", "--device", "cpu"]  # fmt: skip
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    log = tmp_path / "log"
    with log.open("w") as file:
        running = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli.train", *map(str, arguments)],
            env=environment, cwd=tests.parent, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        for _ in range(1200):
            if "loss" in log.read_text() or running.poll() is not None:
                break
            time.sleep(0.1)
        os.killpg(running.pid, signal.SIGTERM)
        # The exit code tells a stopped training from a finished one.
        assert running.wait(timeout=120) == 143, log.read_text()
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert "stopped after step " in log.read_text()
    assert len(find_checkpoints(out)) >= 1


def test_ctrl_c_leaves_a_checkpoint(digits: Path, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(training(digits, tmp_path / "run"), ALONE, stopping_at(2, signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is handler
    assert [path.name for path in find_checkpoints(tmp_path / "run")] == ["step-00000002.pt"]


def test_two_trainings_cannot_write_to_one_folder(digits: Path, tmp_path: Path) -> None:
    def begin_another(progress: StepProgress) -> None:
        if progress.step == 1:
            with pytest.raises(PipelineError, match="another training is writing to"):
                train(training(digits, tmp_path / "run"), ALONE)
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(training(digits, tmp_path / "run"), ALONE, begin_another).step == 1


def test_resume_rejects_another_recipe(digits: Path, tmp_path: Path) -> None:
    train(training(digits, tmp_path / "run"), ALONE, stopping_at(1))
    with pytest.raises(PipelineError, match="already contains a training run; pass --resume "):
        train(training(digits, tmp_path / "run"), ALONE)
    with pytest.raises(PipelineError, match=r"seed: .* started with 0, this command has 1"):
        train(training(digits, tmp_path / "run", seed=1, resume=True), ALONE)
    with pytest.raises(
        PipelineError, match=r"shard_partitions is 1 in the state and 2 .* --shard-p"
    ):
        train(training(digits, tmp_path / "run", shard_partitions=2, resume=True), ALONE)


@pytest.mark.slow
def test_training_lowers_the_loss_and_validation_chooses_the_best_checkpoint(
    digits: Path, tmp_path: Path
) -> None:
    shards, validation = hold_out(open_set(digits / "train", cache_dir=None, remote=None), 0.2)
    assert validation is not None
    assert len(shards.shards) + len(validation.shards) == 1438
    keys = {shards.key(i) for i in range(len(shards.shards))}
    assert not keys & {validation.key(i) for i in range(len(validation.shards))}
    trained = train(
        training(
            digits,
            tmp_path / "run",
            train=shards,
            validation=validation,
            epochs=6,
            batch_size=64,
            augment="none",
            dropout=0.0,
        ),
        ALONE,
    )
    losses = [record["train_loss"] for record in trained.history]
    assert losses[-1] < 0.8 * losses[0]
    errors = [record["validation_error"] for record in trained.history]
    best = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt")
    assert best.best == min(errors)
    assert best.step == trained.history[errors.index(min(errors))]["step"]
    # The recorded metrics of the test set equal those of the saved network.
    module, metadata = open_checkpoint(trained.checkpoint, None)
    assert (metadata["model"], metadata["classes"]) == ("wrn_10_1", 10)
    loss, error = loss_and_error(module, digits)
    assert error == pytest.approx(trained.history[-1]["test_error"], abs=1e-9)
    assert loss == pytest.approx(trained.history[-1]["test_loss"], rel=1e-5)
    # Feature visualization opens it, too.
    network = open_trained("wrn_10_1", trained.checkpoint, random_weights=False)
    assert torch.equal(network.module.fc.weight, module.fc.weight)


def test_best_pt_is_written_on_resume_if_a_stop_fell_before_it(
    digits: Path, tmp_path: Path
) -> None:
    class Ended(Exception):
        """Stands for a process that the stopping thread ends."""

    stopping = Stopping()

    def on_epoch(_: Mapping[str, Any]) -> None:
        # The epoch is in the history, and best.pt is not written yet.
        assert stopping.save() is not None
        raise Ended

    validation = open_set(digits / "test", cache_dir=None, remote=None)
    config = training(digits, tmp_path / "run", resume=True, validation=validation)
    with pytest.raises(Ended):
        train(config, ALONE, on_epoch=on_epoch, stopping=stopping)
    best = tmp_path / "run" / "checkpoints" / "best.pt"
    assert not best.exists()
    train(config, ALONE, stopping_at(7))
    first_epoch = read_checkpoint(best)
    assert first_epoch.step == 5
    assert first_epoch.best == first_epoch.history[0]["validation_error"]


def test_gradient_accumulation_over_unequal_parts_equals_one_batch(
    digits: Path, tmp_path: Path
) -> None:
    # Without batch norm, which differs between a part and the whole. 250 in 4 parts are 63, 63, 63
    # and 61.
    changes = {"model": "networks:linear", "batch_size": 250, "epochs": 1, "learning_rate": 0.5}
    parts, whole = (
        weights_of(train(training(digits, tmp_path / str(n), grad_accum_steps=n, **changes), ALONE))
        for n in (4, 1)
    )
    assert parts.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)
    first = open_model("networks:linear", 10, seed=0).state_dict()
    assert not torch.allclose(first["1.weight"], whole["1.weight"], atol=1e-3)


def test_a_nonfinite_loss_ends_training_and_names_the_samples(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"the loss of step \d+ is (nan|inf); the samples"):
        train(training(digits, tmp_path / "run", learning_rate=1e30), ALONE)
    (path,) = (tmp_path / "run").glob("nonfinite-loss-*.json")
    document = json.loads(path.read_text())
    assert len(document["keys"]) == 256
    assert len(set(document["keys"])) == 256
    assert "?" not in document["keys"]


def test_a_nonfinite_loss_on_another_rank_ends_training(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed_elsewhere(_: Processes, *values: float) -> list[float]:
        return [values[0], values[1] + 1, *values[2:]] if len(values) == 5 else list(values)

    monkeypatch.setattr(Processes, "sum", failed_elsewhere)
    with pytest.raises(PipelineError, match="NaN or infinite on another rank"):
        train(training(digits, tmp_path / "run"), ALONE)


def test_training_uses_a_mixing_set(digits: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    from PIL import Image

    (tmp_path / "images").mkdir()
    for index in range(3):
        image = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
    finished = []
    for name, more in (("with", {"mixing_set": tmp_path / "images"}), ("without", {})):
        finished.append(train(training(digits, tmp_path / name, epochs=1, **more), ALONE))
    first, second = (weights_of(each) for each in finished)
    assert not torch.equal(first["fc.weight"], second["fc.weight"])
    with pytest.raises(PipelineError, match="started with another mixing set, or without one"):
        train(training(digits, tmp_path / "with", resume=True, epochs=1), ALONE)
    mixing_set = tmp_path / "images"
    again = training(digits, tmp_path / "with", resume=True, epochs=1, mixing_set=mixing_set)
    assert train(again, ALONE).finished
