"""Checkpoints on resume: their digest, and what is read of damaged and hostile ones."""

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
from pipelines.system.process_group import Processes
from pipelines.system.ranks import World
from pipelines.training.checkpoints import find_checkpoints
from pipelines.training.data import open_training_data
from pipelines.training.loop import train
from pipelines.training.recipes import TrainResult
from training_sets import read_checkpoint, training

ALONE = Processes(world=World(rank=0, size=1), device=torch.device("cpu"))


def archive() -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.arange(12.0)}}, buffer)
    return buffer.getvalue()


ARCHIVE = archive()
WHOLE = with_digest(ARCHIVE)


# --- The digest ----------------------------------------------------------------------------------


def test_torch_reads_a_checkpoint_with_a_digest_as_one_without() -> None:
    first, second = (
        torch.load(io.BytesIO(each), weights_only=True)["state_dict"]["weight"]
        for each in (ARCHIVE, WHOLE)
    )
    assert torch.equal(first, second)
    assert matches_digest(WHOLE) is True
    assert matches_digest(ARCHIVE) is None
    assert matches_digest(b"") is None


@given(bit=st.integers(0, 8 * len(WHOLE) - 1))
def test_any_flipped_bit_is_seen(bit: int) -> None:
    flipped = bytearray(WHOLE)
    flipped[bit // 8] ^= 1 << bit % 8
    assert matches_digest(bytes(flipped)) is False


def test_any_flipped_bit_of_the_digest_itself_is_seen() -> None:
    for bit in range(8 * (len(WHOLE) - 93), 8 * len(WHOLE)):
        flipped = bytearray(WHOLE)
        flipped[bit // 8] ^= 1 << bit % 8
        assert matches_digest(bytes(flipped)) is False, bit


def test_weights_are_read_from_whole_files_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(WHOLE)
    assert torch.equal(read_weights(path)["weight"], torch.arange(12.0))
    position = WHOLE.index(torch.arange(12.0).numpy().tobytes())
    path.write_bytes(WHOLE[: position + 5] + b"\x7f" + WHOLE[position + 6 :])
    with pytest.raises(ValueError, match=r"x\.pt is damaged: .* SHA-256"):
        read_weights(path)


# --- Damaged and hostile checkpoints -------------------------------------------------------------

TINY = {"model": "networks:linear", "dropout": 0.0, "epochs": 1}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("digits")
    open_training_data("digits", None, folder, lambda _done, _total: None)
    return folder


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def run(
    request: pytest.FixtureRequest, shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run with two checkpoints: in the middle of its epoch, and at its end."""
    out = tmp_path_factory.mktemp("run") / str(request.param)
    train(training(shards, out, optimizer=request.param, checkpoint_every=3, **TINY), ALONE)
    assert [path.name for path in find_checkpoints(out)] == [
        "step-00000003.pt", "step-00000005.pt",
    ]  # fmt: skip
    return out


def resumed(shards: Path, out: Path, optimizer: str, **changes: Any) -> TrainResult:  # noqa: ANN401
    changes = {**TINY, "optimizer": optimizer, **changes}
    return train(training(shards, out, resume=True, **changes), ALONE)


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a checkpoint holds, and give it the digest of that, as an enemy can."""
    content = torch.load(path, weights_only=True)
    change(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(with_digest(buffer.getvalue()))


def nested() -> list[Any]:
    """Lists that would be written out as 2^40 of them."""
    held: list[Any] = []
    for _ in range(40):
        held = [held, held]
    return held


def first(content: dict[str, Any]) -> str:
    return str(next(iter(content["state_dict"])))


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "no recipe": lambda c: c.pop("recipe"),
    "a field more": lambda c: c.update(zzz=1),
    "a recipe with a field more": lambda c: c["recipe"].update(zzz=1),
    "a recipe with a field less": lambda c: c["recipe"].pop("momentum"),
    "a recipe that is a list": lambda c: c.update(recipe=[1]),
    "a recipe of tensors": lambda c: c["recipe"].update(epochs=torch.zeros(3)),
    "a recipe nested without end": lambda c: c["recipe"].update(model=nested()),
    "another pixmix": lambda c: c["recipe"].update(pixmix=7),
    "no loader": lambda c: c.pop("loader"),
    "a loader of text": lambda c: c["loader"].update(consumed="3"),
    "a loader that is nowhere": lambda c: c["loader"].update(epoch=-1),
    "a loader far away": lambda c: c["loader"].update(epoch=7),
    "a loader of a larger set": lambda c: c["loader"].update(num_samples=10**30),
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
    "a history of nothing": lambda c: c.update(history=[{}]),
    "a history of too many epochs": lambda c: c.update(history=c["history"] * 3),
    "no sums": lambda c: c.update(
        sums={}, history=[], loader={**c["loader"], "epoch": 1, "consumed": 0}
    ),
    "sums that are not numbers": lambda c: c["sums"].update(loss=float("nan")),
    "a step of text": lambda c: c.update(step="5"),
    "another step": lambda c: c.update(step=4),
    "the best of text": lambda c: c.update(best=None),
    "a mixing set of numbers": lambda c: c.update(mixing_set=5),
    "a network of tensors": lambda c: c["network"].update(mean=torch.zeros(3)),
    "a network that is text": lambda c: c.update(network="x"),
    "no version": lambda c: c.pop("version"),
    "a version of text": lambda c: c.update(version="3"),
    "a version without end": lambda c: c.update(version=10**5000),
    "nothing": lambda c: c.clear(),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_checkpoint_ends_in_one_line_that_names_it(
    shards: Path, run: Path, tmp_path: Path, what: str
) -> None:
    shutil.copytree(run, tmp_path / "run")
    newest = find_checkpoints(tmp_path / "run")[-1]
    rewrite(newest, HOSTILE[what])
    with pytest.raises(PipelineError) as refusal:
        resumed(shards, tmp_path / "run", run.name)
    message = str(refusal.value)
    assert newest.name in message
    assert "\n" not in message
    assert len(message) < 1000


def test_the_remedy_for_a_damaged_checkpoint_resumes_from_the_one_before(
    shards: Path, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    before, newest = find_checkpoints(tmp_path / "run")
    weights = read_checkpoint(newest).state_dict
    held = bytearray(newest.read_bytes())
    held[len(held) // 2] ^= 4
    newest.write_bytes(held)
    with pytest.raises(PipelineError) as refusal:
        resumed(shards, tmp_path / "run", run.name)
    assert f"{newest} is damaged" in str(refusal.value)
    assert f"resumes from {before.name}" in str(refusal.value)
    (command,) = re.findall(r"\((rm [^)]+)\)", str(refusal.value))
    subprocess.run(shlex.split(command), check=True)
    ended = resumed(shards, tmp_path / "run", run.name)
    assert (ended.finished, ended.step) == (True, 5)
    found = read_checkpoint(ended.checkpoint).state_dict
    assert all(torch.equal(found[name], value) for name, value in weights.items())


@pytest.mark.parametrize("content", [b"", b"weights", b"PK\x03\x04 and no more", ARCHIVE])
def test_what_is_not_a_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoints" / "step-00000001.pt"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=r"step-00000001\.pt is damaged"):
        read_checkpoint(path)


def test_a_checkpoint_without_a_digest_is_of_an_earlier_version_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"version": 2, "state_dict": {"weight": torch.zeros(3)}}, path)
    with pytest.raises(PipelineError, match=r"version 2, .*version 4; .*--weights .*x\.pt"):
        read_checkpoint(path)
    assert torch.equal(read_weights(path)["weight"], torch.zeros(3))
    torch.save({"version": 4, "state_dict": {"weight": torch.zeros(3)}}, path)
    with pytest.raises(PipelineError, match="carries no SHA-256"):
        read_checkpoint(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a named pipe")
def test_a_checkpoint_that_is_a_named_pipe_is_not_waited_for(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoints" / "step-00000001.pt"
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(PipelineError, match="named pipe"):
        resumed(shards, tmp_path / "run", "sgd")


def test_another_image_size_is_not_resumed_with(shards: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    other = replace(CIFAR, flip=False, mean=(0.4, 0.5, 0.6))
    with pytest.raises(PipelineError, match=r"^mean: .* was started with"):
        resumed(shards, tmp_path / "run", run.name, preprocess=other)
