"""A training shown in Weights & Biases, beside the files in OUT."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from pipelines.errors import PipelineError
from pipelines.provenance.run_record import read_run_record

PROJECT = "pixmix"
"""Where WANDB_PROJECT names no other."""

log = logging.getLogger(__name__)


class WandbRun:
    """The run of a training: its settings, and a step of the log for each epoch.

    Only what run.json and metrics.jsonl hold is sent: no console output, no code, no host name. A
    training that is resumed continues its run, whose name and id are those of OUT/run.json.
    """

    def __init__(self, out: Path) -> None:
        """Begin nothing yet.

        Args:
            out: the folder of the training.

        Raises:
            PipelineError: if wandb is not installed.
        """
        self._wandb = import_wandb()
        self._out = out
        self._run: Any = None
        self.finished = False

    def begin(self) -> None:
        """Begin the run, or continue it; OUT/run.json is there.

        Raises:
            PipelineError: if wandb refuses it, as without a key or a network.
        """
        record = read_run_record(self._out)
        assert record is not None
        session = record.sessions[-1]
        try:
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=self._out.resolve().name,
                id=record.id,
                resume="allow",
                dir=str(self._out),
                config={
                    **msgspec.to_builtins(record.settings),
                    "versions": session.versions,
                    "git": msgspec.to_builtins(session.git),
                    "hardware": msgspec.to_builtins(session.hardware),
                },
                settings=self._wandb.Settings(
                    # A command line may hold secrets, which are masked in run.json.
                    x_disable_meta=True,
                    x_disable_machine_info=True,
                    disable_git=True,
                    console="off",
                    silent=True,
                ),
            )
        except self._wandb.Error as error:
            raise PipelineError(
                f"--wandb: {str(error).splitlines()[0]} Run wandb login, set WANDB_MODE=offline to "
                "keep the run in OUT/wandb, or leave --wandb out"
            ) from error

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Log the record of an epoch; what wandb refuses is said, and training goes on."""
        try:
            self._run.log(dict(record), step=record["step"])
        except self._wandb.Error as error:
            log.warning("--wandb: epoch %d is not logged: %s", record["epoch"], error)

    def end(self) -> None:
        """End the run: a success if `finished` was set."""
        if self._run is not None:
            self._run.finish(exit_code=0 if self.finished else 1)


def import_wandb() -> Any:  # noqa: ANN401
    """Return the package wandb.

    Raises:
        PipelineError: if it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise PipelineError(
            "--wandb: wandb is not installed; run pip install 'pixmix[wandb]'"
        ) from error
    return wandb


@contextmanager
def tracked(out: Path, *, wandb: bool) -> Iterator[WandbRun | None]:
    """Give the run of a training in Weights & Biases for the time of the block.

    Args:
        out: the folder of the training.
        wandb: whether there is to be one.

    Raises:
        PipelineError: if wandb is not installed.
    """
    if not wandb:
        yield None
        return
    run = WandbRun(out)
    try:
        yield run
    finally:
        run.end()
