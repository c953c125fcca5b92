"""Checkpoints: their typed content, and atomic writing and safe reading of their files.

    OUT/checkpoints/step-00001234.pt    after each epoch, every --checkpoint-every steps, and when a
                                        run is stopped
                    best.pt             the lowest validation error, if there is a validation set

The first process writes checkpoints. If each host has its own OUT, the process with the latest
checkpoint reads it and broadcasts the bytes. Nothing in a file is executed, and a damaged or
malicious file ends with a one-line error.
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
"""Version of the format: 3 added a SHA-256, 4 renamed fields of the loader state."""

ALREADY_TRAINED = (
    "already contains a training run; pass --resume to resume it, or use another --out"
)
"""Message for a folder with a checkpoint, after its path."""

_LOST_LOCK_S = 120.0
"""NFS 4 releases the locks of a lost machine after 90 s (Linux, nfsv4leasetime)."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**48)]
_Sum = Annotated[float, msgspec.Meta(ge=0.0, le=1e300)]
_Plain = bool | int | float | str | None

_RECORD_KEYS = {"epoch", "step", "train_loss", "train_error"}


class EpochSums(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Sums over the samples of the unfinished epoch and over all processes.

    Attributes:
        loss: sum of the losses.
        correct: number of correct predictions.
        seen: number of samples.
    """

    loss: _Sum = 0.0
    correct: _Sum = 0.0
    seen: _Sum = 0.0

    def add(self, loss: float, correct: float, seen: float) -> None:
        """Add the sums of further steps."""
        self.loss, self.correct, self.seen = (
            self.loss + loss,
            self.correct + correct,
            self.seen + seen,
        )


class Checkpoint(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The content of a checkpoint, written by `TrainState.save` and read by `TrainState.load`.

    Attributes:
        version: `CHECKPOINT_VERSION`.
        network: metadata for evaluation.
        recipe: see `Recipe.to_json`.
        mixing_set: fingerprint of the mixing set; None without one.
        state_dict: the weights for evaluation.
        current: the trained weights, if the weights for evaluation are averages.
        optimizer: state dict of the optimizer.
        scaler: state dict of the gradient scaler; empty without one.
        loader: loader state after the last step.
        step: number of steps taken.
        history: one record per evaluated epoch.
        sums: sums of the epoch that is not in the history yet.
        best: lowest validation error so far.
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
        """Check that the fields are consistent.

        Raises:
            ValueError: if they are not.
        """
        ended, recorded = self.loader.epoch, len(self.history)
        pending = recorded == ended - 1 and self.loader.consumed == 0 and self.sums.seen > 0
        if recorded != ended and not pending:
            raise ValueError(f"it has records of {recorded} epochs, and is in epoch {ended}")
        for record in self.history:
            if not record.keys() >= _RECORD_KEYS:
                missing = ", ".join(sorted(_RECORD_KEYS - record.keys()))
                raise ValueError(f"a record of its history lacks {missing}")


class DamagedError(ValueError):
    """Raised for a damaged checkpoint; the message describes the damage."""


# --- The folder of a run --------------------------------------------------------------------------


@contextmanager
def exclusive_folder(out: Path, processes: Processes, *, resume: bool) -> Iterator[None]:
    """Create the folder of a run and lock it against other trainings.

    Raises:
        PipelineError: if another training holds the lock.
        OSError: if the folder cannot be created.
    """
    other = f"another training to release {out}"
    with ExitStack() as held:
        with processes.watchdog.awaiting(other), processes.together():
            if processes.first:
                check_no_file(out, "--out")
                out.mkdir(parents=True, exist_ok=True)
                busy = (
                    f"another training is writing to {out}; wait until it ends, or use another "
                    "--out"
                )
                # A resumed run may follow a process on a machine that was just lost.
                timeout_s = _LOST_LOCK_S if resume else 0.0
                held.enter_context(folder_lock(out / ".lock", busy=busy, timeout_s=timeout_s))
        yield


def check_writable(out: Path) -> None:
    """Check that checkpoints can be written, before the first epoch and not after it.

    Raises:
        OSError: if the folder cannot be written.
    """
    folder = out / "checkpoints"
    check_no_file(folder, "--out")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass


def checkpoint_path(out: Path, step: int) -> Path:
    """Return the path of the checkpoint after a step."""
    return out / "checkpoints" / f"step-{step:08d}.pt"


def find_checkpoints(out: Path) -> list[Path]:
    """Return the checkpoints of a run, the latest last."""
    found = (out / "checkpoints").glob("step-*.pt")
    return sorted(
        (path for path in found if re.fullmatch(r"step-\d{8,15}\.pt", path.name)), key=_step_of
    )


def choose_checkpoint(path: Path) -> Path:
    """Return the file of weights for a path.

    Args:
        path: a file, the ``--out`` folder of a run, or the folder ``checkpoints`` in it.

    Returns:
        The file itself; for a folder ``best.pt`` if the run had a validation set, otherwise the
        latest checkpoint.

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
            f"{path} is a folder without checkpoints of pixmix-train; pass the --out folder of a "
            "run, such as runs/digits, or a file of weights"
        )
    return found[-1]


def keep_latest(out: Path, n: int) -> None:
    """Remove all checkpoints except the latest n, and the partial files of a killed run."""
    remove_partial_files(out / "checkpoints")
    for path in find_checkpoints(out)[:-n]:
        path.unlink(missing_ok=True)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


# --- Writing and reading --------------------------------------------------------------------------


def save_checkpoint(path: Path, content: Checkpoint | Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

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

    Attributes:
        step: number of steps after which it was written.
        rank: rank of the process that reads it.
        path: its path on that process.
    """

    step: int
    rank: int
    path: Path


def find_latest(out: Path, processes: Processes) -> Latest | None:
    """Find the latest checkpoint that any process sees; every process must call this.

    The first of several processes that see it is chosen. All processes return the same.
    """
    own = find_checkpoints(out)
    steps = processes.gather(_step_of(own[-1]) if own else -1)
    step = max(steps)
    if step < 0:
        return None
    return Latest(step=step, rank=steps.index(step), path=checkpoint_path(out, step))


def share_checkpoint(latest: Latest, processes: Processes) -> Checkpoint:
    """Read a checkpoint on one process and broadcast it; every process must call this.

    Raises:
        PipelineError: if it cannot be read, is damaged, or has another version.
    """
    content_bytes = b""
    with processes.together():
        if processes.world.rank == latest.rank:
            with open_regular(latest.path) as file:
                content_bytes = file.read()
            content = parse_checkpoint(content_bytes, latest.path)
            if content.step != latest.step:
                raise _damaged(latest.path, f"its step is {content.step}, unlike its name")
    if processes.world.size == 1:
        return content
    return parse_checkpoint(processes.broadcast(content_bytes, latest.rank), latest.path)


def parse_checkpoint(content_bytes: bytes, path: Path) -> Checkpoint:
    """Parse the bytes of a checkpoint; nothing in them is executed.

    Args:
        content_bytes: content of the file.
        path: path of the file, for errors.

    Raises:
        PipelineError: if it is damaged, not a checkpoint, or has another version.
    """
    with damage_in_one_line(path):
        matches = matches_digest(content_bytes)
        if matches is False:
            raise DamagedError("its content does not match its SHA-256")
        try:
            content = load_checkpoint(io.BytesIO(content_bytes), "it")
        except ValueError as error:
            raise DamagedError(
                "it is truncated or damaged, or not a checkpoint of pixmix-train"
            ) from error
        version = content.get("version") if isinstance(content, dict) else None
        if not isinstance(version, int) or not 1 <= version < 100:
            raise DamagedError("it is not a checkpoint of pixmix-train")
        if version != CHECKPOINT_VERSION:
            raise PipelineError(
                f"{path} has version {int(version)}, and this pixmix-train resumes from version "
                f"{CHECKPOINT_VERSION}; use another --out, and fine-tune its weights with "
                f"--weights {path}"
            )
        if matches is None:
            raise DamagedError("it has no SHA-256, so pixmix-train did not write it")
        try:
            return msgspec.convert(content, Checkpoint)
        except msgspec.ValidationError as error:
            raise DamagedError(str(error)) from error
        except (RecursionError, AttributeError, TypeError) as error:
            # msgspec raises these for values of unknown types.
            raise DamagedError("it holds values that are not numbers, text or tensors") from error


@contextmanager
def damage_in_one_line(path: Path) -> Iterator[None]:
    """Turn a DamagedError into a one-line error with a remedy.

    Raises:
        PipelineError: in place of a DamagedError.
    """
    try:
        yield
    except DamagedError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> PipelineError:
    """Return the error for a damaged checkpoint, which names the previous one."""
    previous = [
        each for each in find_checkpoints(path.parent.parent) if _step_of(each) < _step_of(path)
    ]
    then = (
        f"resumes from {previous[-1].name}, the previous one"
        if previous
        else "starts from the beginning"
    )
    return PipelineError(
        f"{path} is damaged: {why}; remove it (rm {quote(str(path))}), and the same command {then}"
    )
