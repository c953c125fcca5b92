"""How a training is recorded: metrics files, TensorBoard, run.json, and Weights & Biases."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from pipelines.errors import PipelineError, install_extra
from pipelines.provenance import (
    DataFacts,
    MixingFacts,
    SessionState,
    Settings,
    WeightsFacts,
    read_run_record,
    recorded,
)
from pipelines.shards.format import ShardSet
from pipelines.system.files import file_sha256, write_file
from pipelines.system.process_group import Processes
from pipelines.training.recipes import TrainConfig
from pipelines.training.state import TrainState

PROJECT = "pixmix"
"""Where WANDB_PROJECT names no other."""

log = logging.getLogger(__name__)


# --- Metrics --------------------------------------------------------------------------------------


def write_metrics(out: Path, history: list[dict[str, Any]]) -> None:
    """Write a record per epoch, as metrics.jsonl and metrics.csv, whole or not at all."""
    # JSON has no NaN: a loss that is not finite is null.
    lines = "".join(
        json.dumps({name: _finite(value) for name, value in record.items()}) + "\n"
        for record in history
    )
    write_file(out / "metrics.jsonl", lines.encode())
    columns: list[str] = []
    for record in history:
        columns.extend(name for name in record if name not in columns)
    rows = [",".join(columns)]
    rows += [",".join(_cell(record.get(name)) for name in columns) for record in history]
    write_file(out / "metrics.csv", ("\n".join(rows) + "\n").encode())


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def log_to_tensorboard(out: Path, record: Mapping[str, Any]) -> None:
    """Write an epoch's numbers for TensorBoard into OUT/tensorboard, where it is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return
    with SummaryWriter(str(out / "tensorboard")) as writer:
        for name, value in record.items():
            if name not in ("epoch", "step"):
                writer.add_scalar(name, value, record["step"])


def metrics_in_words(record: Mapping[str, Any], epochs: int | None = None) -> str:
    """Return an epoch's record as words, for a log.

    Args:
        record: a line of metrics.jsonl.
        epochs: of the whole training; None to leave it out.
    """
    errors = [
        f"{name.replace('_', ' ')} {100 * record[name]:.2f} %"
        for name in ("train_error", "validation_error", "test_error")
        if name in record
    ]
    of = "" if epochs is None else f" of {epochs}"
    start = [f"epoch {record['epoch']}{of}", f"train loss {record['train_loss']:.4f}"]
    return ", ".join(start + errors)


# --- run.json -------------------------------------------------------------------------------------


@contextmanager
def recorded_session(
    config: TrainConfig, processes: Processes, state: TrainState, on_start: Callable[[], None]
) -> Iterator[SessionState]:
    """Keep OUT/run.json for the time of a run, in the first process.

    Args:
        config: of the training.
        processes: this process among the others.
        state: as it starts; what run.json says at the end is read from it.
        on_start: called when run.json is written.
    """
    ending = SessionState(state.step)
    if not processes.first:
        yield ending
        return
    if state.history:
        # Which a damaged folder may have lost; the checkpoint has not.
        write_metrics(config.out, state.history)
    settings = _settings(config, state)
    with recorded(config.out, settings, ending, world_size=processes.world.size):
        on_start()
        try:
            yield ending
        finally:
            ending.step, ending.finished = state.step, state.finished


def _settings(config: TrainConfig, state: TrainState) -> Settings:
    """Return recipe, data, mixing set and initial weights of a training, with their hashes.

    Raises:
        OSError: if the file of the initial weights cannot be read.
    """
    sets = {"train": config.train, "validation": config.validation, "test": config.test}
    return Settings(
        recipe=config.recipe.to_json(),
        data={use: _data(each.shards) for use, each in sets.items() if each is not None},
        mixing_set=_mixing_set(config, state.loader.mixing_fingerprint),
        weights=_weights(config, state.network.pretrained, resumed=state.resumed),
    )


def _data(shards: ShardSet) -> DataFacts:
    return DataFacts(
        name=shards.name, location=shards.location, samples=len(shards), sha256=shards.hash
    )


def _mixing_set(config: TrainConfig, fingerprint: str | None) -> MixingFacts | None:
    if fingerprint is None:
        return None
    given = config.mixing_set
    several = given if isinstance(given, list | tuple) else [given]
    locations = tuple(str(each) for each in several if isinstance(each, str | Path))
    return MixingFacts(locations=locations, fingerprint=fingerprint)


def _weights(config: TrainConfig, pretrained: str | None, *, resumed: bool) -> WeightsFacts | None:
    """Return what the first session started from; of a resumed run, run.json says it."""
    if pretrained is not None:
        name = f"torchvision {config.recipe.model} {pretrained}"
        return WeightsFacts(location=name, sha256=None)
    if resumed:
        try:
            record = read_run_record(config.out)
        except (PipelineError, OSError):
            # It is renamed, or ends the run, where the session is written into it.
            record = None
        unknown = WeightsFacts(location="unknown", sha256=None)
        return unknown if record is None else record.settings.weights
    if config.weights is None:
        return None
    return WeightsFacts(location=str(config.weights), sha256=file_sha256(config.weights))


# --- Weights & Biases -----------------------------------------------------------------------------


class WandbRun:
    """The run of a training in Weights & Biases: its settings, and a logged step per epoch.

    Only what run.json and metrics.jsonl hold is sent: no console output, no code, no host name. A
    resumed training continues its run, whose name and id are those of OUT/run.json.
    """

    def __init__(self, out: Path) -> None:
        """Import wandb; `begin` starts the run.

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
        """Start the run, or continue it; OUT/run.json exists.

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
        """Log the record of an epoch; an error of wandb is a warning, and training continues."""
        try:
            self._run.log(dict(record), step=record["step"])
        except self._wandb.Error as error:
            log.warning("--wandb: epoch %d was not logged: %s", record["epoch"], error)

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
            f"--wandb: wandb is not installed; run {install_extra('wandb')}"
        ) from error
    return wandb


@contextmanager
def tracked(out: Path, *, wandb: bool) -> Iterator[WandbRun | None]:
    """Yield the run of a training in Weights & Biases, or None.

    Args:
        out: the folder of the training.
        wandb: whether to log there.

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
