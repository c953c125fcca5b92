"""Checkpoints: written whole or not at all, the newest few, and the best.

OUT/checkpoints/step-00001234.pt     of each end of an epoch, of every so many steps where that is
                                     asked for, and where a run was stopped
    best.pt                          of the lowest validation error, where there is validation

One process writes them. Of several, each with an OUT on a host of its own, the one that has the
newest reads it, and its bytes go to all.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import PipelineError
from pipelines.loading.processes import Processes
from pipelines.shards.files import remove_partial_files, write_file

CHECKPOINT_VERSION = 2


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint after so many steps."""
    return folder / "checkpoints" / f"step-{step:08d}.pt"


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save({"version": CHECKPOINT_VERSION, **content}, buffer)
    write_file(path, buffer.getvalue())


def keep_newest(folder: Path, n: int) -> None:
    """Remove all checkpoints of a run but the newest n, and what a killed run left half-written."""
    remove_partial_files(folder / "checkpoints")
    for path in find_checkpoints(folder)[:-n]:
        path.unlink(missing_ok=True)


def find_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest last."""
    places = (folder / "checkpoints").glob("step-*.pt")
    return sorted(path for path in places if re.fullmatch(r"step-\d{8,}\.pt", path.name))


@dataclass(frozen=True, kw_only=True)
class Newest:
    """The newest checkpoint that any process has.

    step: after which it was written. rank: of the process that has it. path: in that process, or
    what it would be here.
    """

    step: int
    rank: int
    path: Path


def find_newest(folder: Path, processes: Processes) -> Newest | None:
    """Return the newest checkpoint that any process sees in its folder; all must call it.

    Of several processes that see it the first is to read it. All come to the same answer.
    """
    own = find_checkpoints(folder)
    steps = processes.gather(_step_of(own[-1]) if own else -1)
    step = max(steps)
    if step < 0:
        return None
    return Newest(step=step, rank=steps.index(step), path=checkpoint_path(folder, step))


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def share_checkpoint(newest: Newest, processes: Processes) -> dict[str, Any]:
    """Return what a checkpoint holds, which one process reads for all; all must call it.

    Raises:
        PipelineError: if it cannot be read, is none, or of another version.
    """
    content = b""
    with processes.together():
        if processes.world.rank == newest.rank:
            content = newest.path.read_bytes()
    return parse_checkpoint(processes.broadcast(content, newest.rank), str(newest.path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to go on from; nothing in it is executed.

    Raises:
        PipelineError: if it is none, or of another version.
        OSError: if it cannot be read.
    """
    return parse_checkpoint(path.read_bytes(), str(path))


def parse_checkpoint(held: bytes, path: str) -> dict[str, Any]:
    """Return what the bytes of a checkpoint hold; nothing in them is executed.

    Raises:
        PipelineError: if they are none, or of another version.
    """
    try:
        content = torch.load(io.BytesIO(held), map_location="cpu", weights_only=True)
    except Exception as error:
        # A broken archive, or a pickle that asks for more than tensors: of many kinds.
        raise PipelineError(
            f"{path} is no checkpoint of pixmix-train, or a damaged one; remove it to go on from "
            "the one before, or to begin anew"
        ) from error
    if not isinstance(content, dict) or content.get("version") != CHECKPOINT_VERSION:
        raise PipelineError(
            f"{path} is no checkpoint of this pixmix-train, version {CHECKPOINT_VERSION}; to begin "
            "with its weights alone, give --weights"
        )
    return content
