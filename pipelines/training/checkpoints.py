"""Checkpoints: written whole or not at all, the newest few, and the best.

OUT/checkpoints/step-00001234.pt     of each end of an epoch, of every so many steps where that is
                                     asked for, and where a run was stopped
    best.pt                          of the lowest validation error, where there is validation

One process writes them. Of several, each with an OUT on a host of its own, the one that has the
newest reads it, and its bytes go to all.
"""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from featviz.weights import with_digest
from pipelines.errors import PipelineError
from pipelines.system.files import open_regular, remove_partial_files, write_file
from pipelines.system.process_group import Processes
from pipelines.training.checkpoint_content import (
    CHECKPOINT_VERSION,
    CheckpointContent,
    DamagedError,
    OtherVersionError,
    parse_content,
)


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
    write_file(path, with_digest(buffer.getvalue()))


def keep_newest(folder: Path, n: int) -> None:
    """Remove all checkpoints of a run but the newest n, and what a killed run left half-written."""
    remove_partial_files(folder / "checkpoints")
    for path in find_checkpoints(folder)[:-n]:
        path.unlink(missing_ok=True)


def find_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest last."""
    places = (folder / "checkpoints").glob("step-*.pt")
    return sorted(
        (path for path in places if re.fullmatch(r"step-\d{8,15}\.pt", path.name)), key=_step_of
    )


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


def share_checkpoint(newest: Newest, processes: Processes) -> CheckpointContent:
    """Return what a checkpoint holds, which one process reads for all; all must call it.

    Raises:
        PipelineError: if it cannot be read, is not one, is damaged, or is of another version.
    """
    held = b""
    with processes.together():
        if processes.world.rank == newest.rank:
            held = _read(newest.path)
            content = parse_checkpoint(held, newest.path)
            if content.step != newest.step:
                raise _damaged(newest.path, f"it is of step {content.step}, unlike its name")
    if processes.world.size == 1:
        return content
    return parse_checkpoint(processes.broadcast(held, newest.rank), newest.path)


def read_checkpoint(path: Path) -> CheckpointContent:
    """Read a checkpoint to resume from; nothing in it is executed.

    Raises:
        PipelineError: if it is not one, is damaged, or is of another version.
        OSError: if it cannot be read.
    """
    return parse_checkpoint(_read(path), path)


def parse_checkpoint(held: bytes, path: Path) -> CheckpointContent:
    """Return what the bytes of a checkpoint hold; nothing in them is executed.

    Raises:
        PipelineError: if it is not one, is damaged, or is of another version.
    """
    with damage_is_told(path):
        return parse_content(held)


@contextmanager
def damage_is_told(path: Path) -> Iterator[None]:
    """Say in one line that a checkpoint cannot be resumed from, and what to do.

    Raises:
        PipelineError: in place of a DamagedError or an OtherVersionError.
    """
    try:
        yield
    except DamagedError as error:
        raise _damaged(path, str(error)) from error
    except OtherVersionError as error:
        raise PipelineError(
            f"{path}: {error}; choose another --out, and begin with its weights by --weights {path}"
        ) from error


def _damaged(path: Path, why: str) -> PipelineError:
    """Return the error of a damaged checkpoint, with the way to the one before."""
    before = [
        each for each in find_checkpoints(path.parent.parent) if _step_of(each) < _step_of(path)
    ]
    if before:
        then = f"the same command then resumes from {before[-1].name}, the one before"
    else:
        then = "there is none before it, and the same command then begins anew"
    return PipelineError(f"{path} is damaged: {why}; remove it (rm {quote(str(path))}), and {then}")


def _read(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()
