"""Checkpoints on resume: their digest, and what is read of damaged and hostile ones."""

import io
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featviz.checkpoint_digest import matches_digest, with_digest
from featviz.state_dicts import read_weights
from pipelines.errors import PipelineError
from pipelines.loading.preparation import CIFAR
from pipelines.loading.processes import Processes
from pipelines.loading.world import World
from pipelines.training.checkpoints import find_checkpoints, read_checkpoint
from pipelines.training.data import find_data
from pipelines.training.train import Trained, train
from training_sets import training

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
