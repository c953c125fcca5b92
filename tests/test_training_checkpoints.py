"""Checkpoint files: digest, damaged and malicious content, and which files are kept."""

import io
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featviz.state_dicts import read_weights
from featviz.weights import matches_digest, with_digest
from pipelines.errors import PipelineError
from pipelines.loading.config import CIFAR
from pipelines.training.checkpoints import find_checkpoints, keep_latest, save_checkpoint
from pipelines.training.loop import train
from pipelines.training.recipes import (
    TrainResult,
)
from training_sets import ALONE, read_checkpoint, training


def archive() -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.arange(12.0)}}, buffer)
    return buffer.getvalue()


ARCHIVE = archive()
WHOLE = with_digest(ARCHIVE)


# --- The digest ----------------------------------------------------------------------------------


def test_torch_loads_checkpoints_with_and_without_a_digest() -> None:
    first, second = (
        torch.load(io.BytesIO(each), weights_only=True)["state_dict"]["weight"]
        for each in (ARCHIVE, WHOLE)
    )
    assert torch.equal(first, second)
    assert matches_digest(WHOLE) is True
    assert matches_digest(ARCHIVE) is None
    assert matches_digest(b"") is None


@given(bit=st.integers(0, 8 * len(WHOLE) - 1))
def test_any_flipped_bit_is_detected(bit: int) -> None:
    flipped = bytearray(WHOLE)
    flipped[bit // 8] ^= 1 << bit % 8
    assert matches_digest(bytes(flipped)) is False


def test_any_flipped_bit_of_the_digest_is_detected() -> None:
    for bit in range(8 * (len(WHOLE) - 93), 8 * len(WHOLE)):
        flipped = bytearray(WHOLE)
        flipped[bit // 8] ^= 1 << bit % 8
        assert matches_digest(bytes(flipped)) is False, bit


def test_weights_are_read_only_from_undamaged_files(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(WHOLE)
    assert torch.equal(read_weights(path)["weight"], torch.arange(12.0))
    position = WHOLE.index(torch.arange(12.0).numpy().tobytes())
    path.write_bytes(WHOLE[: position + 5] + b"\x7f" + WHOLE[position + 6 :])
    with pytest.raises(ValueError, match=r"x\.pt is damaged: .* SHA-256"):
        read_weights(path)


# --- Damaged and malicious checkpoints -----------------------------------------------------------

TINY = {"model": "networks:linear", "dropout": 0.0, "epochs": 1}


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def run(
    request: pytest.FixtureRequest, digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run with two checkpoints: in the middle and at the end of its epoch."""
    out = tmp_path_factory.mktemp("run") / str(request.param)
    train(training(digits, out, optimizer=request.param, checkpoint_every=3, **TINY), ALONE)
    assert [path.name for path in find_checkpoints(out)] == [
        "step-00000003.pt", "step-00000005.pt",
    ]  # fmt: skip
    return out


def resumed(digits: Path, out: Path, optimizer: str, **changes: Any) -> TrainResult:  # noqa: ANN401
    changes = {**TINY, "optimizer": optimizer, **changes}
    return train(training(digits, out, resume=True, **changes), ALONE)


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of a checkpoint and update its digest, as an attacker can."""
    content = torch.load(path, weights_only=True)
    change(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(with_digest(buffer.getvalue()))


def nested() -> list[Any]:
    """Return nested lists that would print as 2^40 lists."""
    value: list[Any] = []
    for _ in range(40):
        value = [value, value]
    return value


def first(content: dict[str, Any]) -> str:
    return str(next(iter(content["state_dict"])))


MALICIOUS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no recipe": lambda c: c.pop("recipe"),
    "an extra field": lambda c: c.update(zzz=1),
    "a recipe with an extra field": lambda c: c["recipe"].update(zzz=1),
    "a recipe with a missing field": lambda c: c["recipe"].pop("momentum"),
    "a recipe that is a list": lambda c: c.update(recipe=[1]),
    "a recipe of tensors": lambda c: c["recipe"].update(epochs=torch.zeros(3)),
    "a deeply nested recipe": lambda c: c["recipe"].update(model=nested()),
    "another pixmix": lambda c: c["recipe"].update(pixmix=7),
    "no loader": lambda c: c.pop("loader"),
    "a loader of text": lambda c: c["loader"].update(consumed="3"),
    "a loader before the first epoch": lambda c: c["loader"].update(epoch=-1),
    "a loader in a later epoch": lambda c: c["loader"].update(epoch=7),
    "a loader of a larger dataset": lambda c: c["loader"].update(num_samples=10**30),
    "weights of another shape": lambda c: c["state_dict"].update({first(c): torch.zeros(3, 3)}),
    "weights of another type": lambda c: c["state_dict"].update(
        {first(c): c["state_dict"][first(c)].double()}
    ),
    "weights missing": lambda c: c["state_dict"].pop(first(c)),
    "weights that are numbers": lambda c: c["state_dict"].update({first(c): 5}),
    "sparse weights": lambda c: c["state_dict"].update(
        {first(c): c["state_dict"][first(c)].to_sparse()}
    ),
    "no weights": lambda c: c.update(state_dict=None),
    "an optimizer that is a number": lambda c: c.update(optimizer=5),
    "an optimizer without state": lambda c: c.update(optimizer={}),
    "an optimizer of another network": lambda c: c["optimizer"]["state"].update({99: {}}),
    "an optimizer of text": lambda c: c["optimizer"]["state"].update({0: "x"}),
    "an optimizer with other tensors": lambda c: c["optimizer"]["state"].update(
        {0: {"zzz": torch.zeros(1)}}
    ),
    "an optimizer of another shape": lambda c: c["optimizer"]["state"][0].update(
        dict.fromkeys(c["optimizer"]["state"][0], torch.zeros(7))
    ),
    "a scaler of text": lambda c: c.update(scaler={"scale": "x"}),
    "a scaler that was not used": lambda c: c.update(scaler={"scale": 2.0}),
    "a history that is text": lambda c: c.update(history="x"),
    "a history of numbers": lambda c: c.update(history=[1]),
    "a history of empty records": lambda c: c.update(history=[{}]),
    "a history of too many epochs": lambda c: c.update(history=c["history"] * 3),
    "no sums": lambda c: c.update(
        sums={}, history=[], loader={**c["loader"], "epoch": 1, "consumed": 0}
    ),
    "sums that are not numbers": lambda c: c["sums"].update(loss=float("nan")),
    "a step of text": lambda c: c.update(step="5"),
    "another step": lambda c: c.update(step=4),
    "no best error": lambda c: c.update(best=None),
    "a mixing set of numbers": lambda c: c.update(mixing_set=5),
    "a network of tensors": lambda c: c["network"].update(mean=torch.zeros(3)),
    "a network that is text": lambda c: c.update(network="x"),
    "no version": lambda c: c.pop("version"),
    "a version of text": lambda c: c.update(version="3"),
    "a huge version": lambda c: c.update(version=10**5000),
    "an empty file": lambda c: c.clear(),
}


@pytest.mark.parametrize("what", MALICIOUS)
def test_a_malicious_checkpoint_ends_with_a_one_line_error(
    digits: Path, run: Path, tmp_path: Path, what: str
) -> None:
    shutil.copytree(run, tmp_path / "run")
    latest = find_checkpoints(tmp_path / "run")[-1]
    rewrite(latest, MALICIOUS[what])
    with pytest.raises(PipelineError) as caught:
        resumed(digits, tmp_path / "run", run.name)
    message = str(caught.value)
    assert latest.name in message
    assert "\n" not in message
    assert len(message) < 1000


def test_the_remedy_for_a_damaged_checkpoint_resumes_from_the_previous_one(
    digits: Path, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    previous, latest = find_checkpoints(tmp_path / "run")
    weights = read_checkpoint(latest).state_dict
    content = bytearray(latest.read_bytes())
    content[len(content) // 2] ^= 4
    latest.write_bytes(content)
    with pytest.raises(PipelineError) as caught:
        resumed(digits, tmp_path / "run", run.name)
    assert f"{latest} is damaged" in str(caught.value)
    assert f"resumes from {previous.name}" in str(caught.value)
    (command,) = re.findall(r"\((rm [^)]+)\)", str(caught.value))
    subprocess.run(shlex.split(command), check=True)
    ended = resumed(digits, tmp_path / "run", run.name)
    assert (ended.finished, ended.step) == (True, 5)
    found = read_checkpoint(ended.checkpoint).state_dict
    assert all(torch.equal(found[name], value) for name, value in weights.items())


@pytest.mark.parametrize("content", [b"", b"weights", b"PK\x03\x04 and no more", ARCHIVE])
def test_a_file_that_is_not_a_checkpoint_is_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoints" / "step-00000001.pt"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=r"step-00000001\.pt is damaged"):
        read_checkpoint(path)


def test_a_checkpoint_without_a_digest_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"version": 2, "state_dict": {"weight": torch.zeros(3)}}, path)
    with pytest.raises(PipelineError, match=r"version 2, .*version 4; .*--weights .*x\.pt"):
        read_checkpoint(path)
    assert torch.equal(read_weights(path)["weight"], torch.zeros(3))
    torch.save({"version": 4, "state_dict": {"weight": torch.zeros(3)}}, path)
    with pytest.raises(PipelineError, match="it has no SHA-256"):
        read_checkpoint(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a named pipe")
def test_a_checkpoint_that_is_a_named_pipe_is_rejected(digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoints" / "step-00000001.pt"
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(PipelineError, match="named pipe"):
        resumed(digits, tmp_path / "run", "sgd")


def test_resume_rejects_another_preprocessing(digits: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    other = replace(CIFAR, flip=False, mean=(0.4, 0.5, 0.6))
    with pytest.raises(PipelineError, match=r"^mean: .* was started with"):
        resumed(digits, tmp_path / "run", run.name, preprocess=other)


def test_only_the_latest_checkpoints_and_no_partial_files_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100_000_000, 20_000_000):
        save_checkpoint(tmp_path / "checkpoints" / f"step-{step:08d}.pt", {"step": step})
    save_checkpoint(tmp_path / "checkpoints" / "best.pt", {"step": 5})
    keep_latest(tmp_path, 2)
    left = [path.name for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert left == ["best.pt", "step-100000000.pt", "step-20000000.pt"]
    assert find_checkpoints(tmp_path)[-1].name == "step-100000000.pt"
