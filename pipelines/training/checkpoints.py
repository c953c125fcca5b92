"""Checkpoints: written whole or not at all, the newest few, and the best.

OUT/checkpoints/step-00001234.pt     one for each end of an epoch, and where a run was stopped
    best.pt                          of the lowest validation error, where there is validation
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import PipelineError
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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to go on from; nothing in it is executed.

    Raises:
        PipelineError: if it is none, or of another version.
        OSError: if it cannot be read.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
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
