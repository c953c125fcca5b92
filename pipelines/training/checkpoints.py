"""Checkpoints: what they hold, as types, and their files, written whole or not at all.

OUT/checkpoints/step-00001234.pt     at the end of each epoch, every so many steps if asked for, and
                                     where a run was stopped
    best.pt                          of the lowest validation error, where there is validation

One process writes them. If each host has an OUT of its own, the one with the latest checkpoint
reads it, and sends its bytes to all. Nothing in a file is executed; a damaged or hostile one ends
in one line.
"""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from tempfile import TemporaryFile
from typing import Annotated, Any

import msgspec
import torch

from featviz.weights import load_checkpoint, matches_digest, with_digest
from pipelines.errors import PipelineError
from pipelines.loading.loader import LoaderState
from pipelines.models.checkpoints import NetworkMetadata
from pipelines.system.files import (
    check_no_file,
    folder_lock,
    open_regular,
    remove_partial_files,
    write_file,
)
from pipelines.system.process_group import Processes

CHECKPOINT_VERSION = 4
"""4 renames fields of the loader's state; 3 carries a SHA-256; 2 carried none."""

_LOST_LOCK_S = 120.0
"""NFS 4 frees the locks of a machine that is gone after 90 s (Linux, nfsv4leasetime)."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**48)]
_Sum = Annotated[float, msgspec.Meta(ge=0.0, le=1e300)]
_Plain = bool | int | float | str | None

_IN_RECORDS = {"epoch", "step", "train_loss", "train_error"}


class EpochSums(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Sums over the samples of the epoch so far, over all processes."""

    loss: _Sum = 0.0
    correct: _Sum = 0.0
    seen: _Sum = 0.0

    def add(self, loss: float, correct: float, seen: float) -> None:
        """Add the sums of some steps."""
        self.loss, self.correct, self.seen = (
            self.loss + loss,
            self.correct + correct,
            self.seen + seen,
        )


class Checkpoint(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A checkpoint; `TrainState.save` and `TrainState.load` go through its fields.

    Attributes:
        network: metadata for evaluation.
        recipe: see `Recipe.to_json`.
        mixing_set: its fingerprint; None for a training without one.
        state_dict: the weights that are evaluated.
        current: the weights that are trained, where those that are evaluated are averages.
        optimizer: its state dict.
        scaler: the state dict of the gradient scaler; empty where it is not used.
        loader: the position in the data after the last step.
        step: how many steps were taken.
        history: a record for each epoch that was evaluated at its end.
        sums: of the epoch that is not in the history yet.
        best: the lowest validation error so far.
    """

    version: int = CHECKPOINT_VERSION
    network: NetworkMetadata
    recipe: dict[str, _Plain | dict[str, _Plain | list[str]]]
    mixing_set: str | None
    state_dict: dict[str, Any]
    current: dict[str, Any] | None = None
    optimizer: dict[str, Any]
    scaler: dict[str, float]
    loader: LoaderState
    step: _Count
    history: list[dict[str, int | float]]
    sums: EpochSums
    best: float

    def __post_init__(self) -> None:
        """Refuse numbers that contradict each other.

        Raises:
            ValueError: if they do.
        """
        ended, recorded = self.loader.epoch, len(self.history)
        pending = recorded == ended - 1 and self.loader.consumed == 0 and self.sums.seen > 0
        if recorded != ended and not pending:
            raise ValueError(f"it has records of {recorded} epochs, and is in epoch {ended}")
        for record in self.history:
            if not record.keys() >= _IN_RECORDS:
                missing = ", ".join(sorted(_IN_RECORDS - record.keys()))
                raise ValueError(f"a record of its history lacks {missing}")


class DamagedError(ValueError):
    """Raised for a checkpoint that is not what it should be; the message says what is wrong."""


# --- The folder of a run --------------------------------------------------------------------------


@contextmanager
def exclusive_folder(out: Path, processes: Processes, *, resume: bool) -> Iterator[None]:
    """Lock the folder of a run, which is made: two trainings would overwrite each other's files.

    Raises:
        PipelineError: if another training holds it.
        OSError: if checkpoints cannot be written into it.
    """
    other = f"another training to release {out}"
    with ExitStack() as held:
        with processes.watchdog.awaiting(other), processes.together():
            if processes.first:
                check_no_file(out, "--out")
                out.mkdir(parents=True, exist_ok=True)
                busy = (
                    f"another training is writing to {out}; wait for its end, or choose another "
                    "--out"
                )
                # A resumed run may follow a process whose machine was lost a moment ago.
                timeout_s = _LOST_LOCK_S if resume else 0.0
                held.enter_context(folder_lock(out / ".lock", busy=busy, timeout_s=timeout_s))
        yield


def check_writable(out: Path) -> None:
    """Write into the folder of checkpoints before an epoch is trained, and not after.

    Raises:
        OSError: if it cannot be written.
    """
    folder = out / "checkpoints"
    check_no_file(folder, "--out")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass


def checkpoint_path(out: Path, step: int) -> Path:
    """Return the path of the checkpoint after a number of steps."""
    return out / "checkpoints" / f"step-{step:08d}.pt"


def find_checkpoints(out: Path) -> list[Path]:
    """Return the checkpoints of a run, the latest last."""
    found = (out / "checkpoints").glob("step-*.pt")
    return sorted(
        (path for path in found if re.fullmatch(r"step-\d{8,15}\.pt", path.name)), key=_step_of
    )


def choose_checkpoint(path: Path) -> Path:
    """Return a file of weights: the path itself, or the best checkpoint of a run's folder.

    Args:
        path: a file, which is returned; or the folder that `pixmix-train --out` wrote, or the
            folder `checkpoints` in it.

    Returns:
        `best.pt` where the run had a validation set, else the latest checkpoint.

    Raises:
        PipelineError: if the folder has no checkpoint.
    """
    if not path.is_dir():
        return path
    is_inner = path.name == "checkpoints" and not (path / "checkpoints").is_dir()
    run = path.parent if is_inner else path
    best = run / "checkpoints" / "best.pt"
    if best.is_file():
        return best
    found = find_checkpoints(run)
    if not found:
        raise PipelineError(
            f"{path} is a folder without checkpoints of pixmix-train; pass the folder of a run, "
            "such as runs/digits, or a file of weights"
        )
    return found[-1]


def keep_latest(out: Path, n: int) -> None:
    """Remove all checkpoints but the latest n, and partial files of a killed run."""
    remove_partial_files(out / "checkpoints")
    for path in find_checkpoints(out)[:-n]:
        path.unlink(missing_ok=True)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


# --- Writing and reading --------------------------------------------------------------------------


def save_checkpoint(path: Path, content: Checkpoint | Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    if isinstance(content, Checkpoint):
        content = {
            name: msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else value
            for name, value in msgspec.structs.asdict(content).items()
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_file(path, with_digest(buffer.getvalue()))


@dataclass(frozen=True, kw_only=True)
class Latest:
    """The latest checkpoint that any process has.

    step: after which it was written. rank: of the process that has it. path: in that process, or
    what it would be here.
    """

    step: int
    rank: int
    path: Path


def find_latest(out: Path, processes: Processes) -> Latest | None:
    """Return the latest checkpoint that any process sees in its folder; all must call it.

    If several processes see it, the first reads it. All return the same.
    """
    own = find_checkpoints(out)
    steps = processes.gather(_step_of(own[-1]) if own else -1)
    step = max(steps)
    if step < 0:
        return None
    return Latest(step=step, rank=steps.index(step), path=checkpoint_path(out, step))


def share_checkpoint(latest: Latest, processes: Processes) -> Checkpoint:
    """Return what a checkpoint holds, which one process reads for all; all must call it.

    Raises:
        PipelineError: if it cannot be read, is not one, is damaged, or is of another version.
    """
    held = b""
    with processes.together():
        if processes.world.rank == latest.rank:
            with open_regular(latest.path) as file:
                held = file.read()
            content = parse_checkpoint(held, latest.path)
            if content.step != latest.step:
                raise _damaged(latest.path, f"it is of step {content.step}, unlike its name")
    if processes.world.size == 1:
        return content
    return parse_checkpoint(processes.broadcast(held, latest.rank), latest.path)


def parse_checkpoint(held: bytes, path: Path) -> Checkpoint:
    """Return what the bytes of a checkpoint hold; nothing in them is executed.

    Raises:
        PipelineError: if it is not one, is damaged, or is of another version.
    """
    with damage_in_one_line(path):
        whole = matches_digest(held)
        if whole is False:
            raise DamagedError("its content does not match the SHA-256 that it carries")
        try:
            content = load_checkpoint(io.BytesIO(held), "it")
        except ValueError as error:
            raise DamagedError(
                "it is truncated or damaged, or not a checkpoint of pixmix-train"
            ) from error
        version = content.get("version") if isinstance(content, dict) else None
        if not isinstance(version, int) or not 1 <= version < 100:
            raise DamagedError("it is not a checkpoint of pixmix-train")
        if version != CHECKPOINT_VERSION:
            raise PipelineError(
                f"{path} is a checkpoint of version {int(version)}, and this pixmix-train resumes "
                f"from version {CHECKPOINT_VERSION}; choose another --out, and fine-tune its "
                f"weights by --weights {path}"
            )
        if whole is None:
            raise DamagedError("it carries no SHA-256; another program than pixmix-train wrote it")
        try:
            return msgspec.convert(content, Checkpoint)
        except msgspec.ValidationError as error:
            raise DamagedError(str(error)) from error
        except (RecursionError, AttributeError, TypeError) as error:
            # Of values that msgspec does not know.
            raise DamagedError("it holds something other than numbers and text") from error


@contextmanager
def damage_in_one_line(path: Path) -> Iterator[None]:
    """Say in one line that a checkpoint cannot be resumed from, and what to do.

    Raises:
        PipelineError: in place of a DamagedError.
    """
    try:
        yield
    except DamagedError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> PipelineError:
    """Return the error of a damaged checkpoint, which names the one before it."""
    before = [
        each for each in find_checkpoints(path.parent.parent) if _step_of(each) < _step_of(path)
    ]
    then = (
        f"the same command then resumes from {before[-1].name}, the one before"
        if before
        else "there is none before it, and the same command then starts from the beginning"
    )
    return PipelineError(f"{path} is damaged: {why}; remove it (rm {quote(str(path))}), and {then}")
