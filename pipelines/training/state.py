"""The state of a training in one process: everything needed to resume it bit for bit.

`TrainState.save` and `TrainState.load` are mirror images, field by field of `Checkpoint`. To add a
field, add it to `Checkpoint`, to `save` and to `load`.
"""

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featviz.state_dicts import is_plain
from pipelines.errors import PipelineError
from pipelines.loading.loader import LoaderState, TrainLoader
from pipelines.models.checkpoints import NetworkMetadata, read_initial_weights
from pipelines.models.registry import initialize_from, open_model
from pipelines.system.process_group import Processes
from pipelines.training.augmentations import AUGMENTATIONS
from pipelines.training.checkpoints import (
    ALREADY_TRAINED,
    Checkpoint,
    DamagedError,
    EpochSums,
    check_writable,
    checkpoint_path,
    damage_in_one_line,
    find_latest,
    share_checkpoint,
)
from pipelines.training.data import outputs_for
from pipelines.training.recipes import VIEWS, Recipe, TrainConfig, TrainResult

_PREPROCESSING = ("mean", "std", "crop", "image_size", "evaluation_resize")


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The result of a step in this process.

    Attributes:
        step: step number, from 0.
        sums: (2,) float64, sum of losses and number of correct predictions, on the device.
        n: number of samples.
        indices: (n,) int64, indices of the samples in the training set.
        position: loader state after the step.
    """

    step: int
    sums: Tensor
    n: int
    indices: NDArray[np.int64]
    position: dict[str, Any]


class TrainState:
    """The live objects whose state a `Checkpoint` holds.

    Attributes:
        network: metadata for evaluation.
        module: the network, on the device of the process.
        optimizer: its optimizer.
        scaler: its gradient scaler.
        loader: the loader of the training set.
        average: exponential moving average of the weights; None without.
        step, history, sums, best: see `Checkpoint`.
        position: loader state after the last complete step.
        pending: steps whose losses are not in `sums` yet.
        buffers: buffers of the module after the last complete step, while a forward pass may have
            changed them; otherwise None.
        trained: the trained weights while an evaluation uses their average; otherwise None.
        saved: step of the latest checkpoint; None before the first one.
        resumed: whether the run was resumed.
        outputs: the output for each label of "validation" and "test"; see `outputs_for`.
    """

    def __init__(self, config: TrainConfig, processes: Processes, *, initialize: bool) -> None:
        """Build the state before the first step.

        Args:
            config: configuration of the training.
            processes: this process among the others.
            initialize: whether to load weights to fine-tune; False if a checkpoint will be loaded.
        """
        self.config, self.recipe = config, config.recipe
        shards = config.train.shards
        classes = len(shards.classes) or int(shards.samples["label"].max()) + 1
        self.outputs = {
            name: outputs_for(each.shards, shards.classes, classes)
            for name, each in (("validation", config.validation), ("test", config.test))
            if each is not None
        }
        preprocess = config.preprocess
        self.network = NetworkMetadata(
            model=self.recipe.model,
            pretrained=config.pretrained,
            classes=classes,
            class_names=list(shards.classes),
            mean=list(preprocess.mean),
            std=list(preprocess.std),
            crop=preprocess.crop,
            image_size=preprocess.image_size,
            evaluation_resize=preprocess.resized_side,
        )
        self.module = _open_network(config, classes, processes.device, initialize=initialize)
        self.optimizer = _open_optimizer(self.recipe, self.module)
        self.scaler = torch.amp.GradScaler(
            processes.device.type, enabled=self.recipe.precision == "float16"
        )
        self.average: dict[str, Tensor] | None = None
        if self.recipe.ema_decay is not None:
            self.average = {name: each.clone() for name, each in self.module.state_dict().items()}
        self.loader = _open_loader(config, processes)
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.sums = EpochSums()
        self.best = math.inf
        self.position = self.loader.state_dict()
        self.pending: list[StepResult] = []
        self.buffers: dict[str, Tensor] | None = None
        self.trained: dict[str, Tensor] | None = None
        self.saved: int | None = None
        self.resumed = False

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return len(self.history) >= self.recipe.epochs

    @property
    def epoch_ended(self) -> bool:
        """Whether all steps of an epoch were taken and it is not in the history yet."""
        return self.loader.epoch > len(self.history)

    @property
    def is_best(self) -> bool:
        """Whether the current weights have been evaluated, with the lowest validation error yet."""
        errors = [record.get("validation_error") for record in self.history]
        return (
            len(errors) > 0
            and self.history[-1]["step"] == self.step
            and errors[-1] == self.best
            and self.best not in errors[:-1]
        )

    def epoch_record(self) -> dict[str, Any]:
        """Return the record of the epoch before evaluation: a line of metrics.jsonl."""
        return {
            "epoch": self.loader.epoch,
            "step": self.step,
            "learning_rate": self.recipe.learning_rate_at(self.step, len(self.loader)),
            "train_loss": self.sums.loss / self.sums.seen,
            "train_error": 1 - self.sums.correct / self.sums.seen,
        }

    def end_epoch(self, record: dict[str, Any]) -> None:
        """Add the record of an epoch to the history."""
        self.history.append(record)
        self.best = min(self.best, record.get("validation_error", math.inf))
        self.sums = EpochSums()

    def result(self) -> TrainResult:
        """Return the result of the training so far."""
        return TrainResult(
            finished=self.finished,
            step=self.step,
            history=self.history,
            checkpoint=checkpoint_path(self.config.out, self.step),
        )

    def save(self) -> Checkpoint:
        """Return the state after the last complete step."""
        buffers = self.buffers or {}
        weights = {
            name: buffers.get(name, value) for name, value in self.module.state_dict().items()
        }
        trained = self.trained or weights
        return Checkpoint(
            network=self.network,
            recipe=self.recipe.to_json(),
            mixing_set=self.loader.mixing_fingerprint,
            state_dict=self.average or trained,
            current=None if self.average is None else trained,
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            loader=msgspec.convert(self.position, LoaderState),
            step=self.step,
            history=self.history,
            sums=self.sums,
            best=self.best,
        )

    def load(self, saved: Checkpoint, path: Path) -> None:
        """Restore the result of `save`; nothing changes if it does not fit.

        Args:
            saved: content of a checkpoint.
            path: file of the checkpoint, for errors.

        Raises:
            PipelineError: if recipe, data, mixing set or preprocessing of the checkpoint differ, or
                its tensors do not fit.
        """
        self._check_recipe(saved.recipe, path)
        self._check_network(saved.network, path)
        if saved.mixing_set != self.loader.mixing_fingerprint:
            raise PipelineError(
                f"{self.config.out} was started with another mixing set, or without one; use the "
                f"same as then, or {_fine_tune_remedy(path)}"
            )
        with damage_in_one_line(path):
            own = self.module.state_dict()
            check_tensors(saved.state_dict, own, "state_dict")
            if self.average is not None:
                check_tensors(saved.current or {}, own, "current")
            optimizer = optimizer_state(saved.optimizer, self.optimizer)
            scaler = scaler_state(saved.scaler, self.scaler)
        try:
            self.loader.load_state_dict(msgspec.to_builtins(saved.loader))
        except ValueError as error:
            raise PipelineError(
                f"{path}: {error}; the data, --val-fraction, --shuffle-window and "
                "--shard-partitions must be the same as at the first start"
            ) from error
        self.network.pretrained = saved.network.pretrained
        self.module.load_state_dict(saved.current or saved.state_dict)
        if self.average is not None:
            self.average = {
                name: each.to(self.average[name].device) for name, each in saved.state_dict.items()
            }
        self.optimizer.load_state_dict(optimizer)
        self.scaler.load_state_dict(scaler)
        self.position = self.loader.state_dict()
        self.step = self.saved = saved.step
        self.history = saved.history
        self.sums = saved.sums
        self.best = saved.best
        self.resumed = True

    def _check_network(self, saved: NetworkMetadata, path: Path) -> None:
        for name in _PREPROCESSING:
            then, now = getattr(saved, name), getattr(self.network, name)
            if then != now:
                raise PipelineError(
                    f"{name}: {self.config.out} was started with {then}, this command has {now}; "
                    f"use {then}, or {_fine_tune_remedy(path)}"
                )
        if self.config.pretrained not in (None, saved.pretrained):
            raise PipelineError(
                f"--pretrained: {self.config.out} was started with "
                f"{saved.pretrained or 'other weights'}, this command has "
                f"{self.config.pretrained}; leave --pretrained out, or use another --out"
            )

    def _check_recipe(self, saved: Mapping[str, Any], path: Path) -> None:
        """Check that the recipe equals that of the first start."""
        now = self.recipe.to_json()
        for name in sorted(saved.keys() | now.keys()):
            if name not in now or name not in saved:
                which = "lacks" if name not in saved else "has"
                raise PipelineError(
                    f"{path}: its recipe {which} the field {name:.60}, because another version of "
                    f"pixmix-train wrote it; resume with that version, or {_fine_tune_remedy(path)}"
                )
            then = saved[name]
            if then != now[name]:
                text = then if isinstance(then, str) else reprlib.repr(then)
                remedy = "use another --out" if name == "model" else _fine_tune_remedy(path)
                raise PipelineError(
                    f"{name}: {self.config.out} was started with {text:.200}, this command has "
                    f"{now[name]}; use {text:.200}, or {remedy}"
                )


def open_state(config: TrainConfig, processes: Processes) -> TrainState:
    """Open network, optimizer and data, and resume from the latest checkpoint if one exists.

    Raises:
        PipelineError: if `out` holds another training, or the processes have different settings.
        OSError: if an input cannot be read, or `out` cannot be written.
    """
    latest = find_latest(config.out, processes)
    if latest is not None and not config.resume:
        raise PipelineError(f"{config.out} {ALREADY_TRAINED}")
    with processes.watchdog.awaiting("data, mixing set and network"), processes.together():
        if processes.first:
            check_writable(config.out)
        # With a checkpoint, initial weights need not be downloaded.
        state = TrainState(config, processes, initialize=latest is None)
    # Otherwise hosts with different local data would train on different datasets.
    for what, value in (
        # The command chooses the precision by the CPU model unless it is passed.
        ("--precision", config.recipe.precision),
        ("--on-decode-error", config.loader.on_decode_error),
        ("recipe", json.dumps(config.recipe.to_json(), sort_keys=True)),
        ("--data", json.dumps(state.position, sort_keys=True)),
        ("--mixing-set", str(state.loader.mixing_fingerprint)),
    ):
        processes.check_same(what, value)
    if latest is not None:
        state.load(share_checkpoint(latest, processes), latest.path)
    return state


def _fine_tune_remedy(path: Path) -> str:
    """Return the remedy for a checkpoint from which this training cannot be resumed."""
    return f"fine-tune its weights in another --out with --weights {path}"


# --- The parts of a state -------------------------------------------------------------------------


def _open_network(
    config: TrainConfig, classes: int, device: torch.device, *, initialize: bool
) -> nn.Module:
    module = open_model(
        config.recipe.model,
        classes,
        dropout=config.recipe.dropout,
        seed=config.recipe.seed,
        pretrained=config.pretrained if initialize else None,
    )
    if config.weights is not None and initialize:
        try:
            initialize_from(module, read_initial_weights(config.weights))
        except ValueError as error:
            raise PipelineError(f"{config.weights}: {error}") from error
    module = module.to(device).to(memory_format=torch.channels_last)
    if config.sync_bn:
        if device.type != "cuda":
            raise PipelineError(
                f"--sync-bn needs GPUs, and this process uses {device}; leave it out"
            )
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    return module


def _open_optimizer(recipe: Recipe, module: nn.Module) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            module.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
    return torch.optim.SGD(
        module.parameters(),
        recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
    )


def _open_loader(config: TrainConfig, processes: Processes) -> TrainLoader:
    recipe = config.recipe
    is_pixmix = recipe.augment == "pixmix"
    preprocess = replace(
        config.preprocess,
        pixmix=recipe.pixmix if is_pixmix else None,
        plain_first=recipe.jsd and is_pixmix,
    )
    if recipe.augment in AUGMENTATIONS:
        # These augmentations normalize by themselves.
        preprocess = replace(preprocess, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    loader = replace(
        config.loader,
        preprocess=preprocess,
        views=VIEWS if recipe.jsd and is_pixmix else None,
        rank=processes.world.rank,
        world_size=processes.world.size,
    )
    return TrainLoader(config.train, config.mixing_set if is_pixmix else None, loader)


# --- Tensors of a file ----------------------------------------------------------------------------


def check_tensors(saved: Mapping[str, Any], own: Mapping[str, Tensor], name: str) -> None:
    """Check that a saved state dict fits a network.

    Args:
        saved: state dict of a checkpoint.
        own: state dict of the network.
        name: name of the state dict in the checkpoint, for errors.

    Raises:
        DamagedError: if a tensor is missing or unknown, or has another shape or dtype.
    """
    different = sorted(own.keys() ^ saved.keys())
    if different:
        raise DamagedError(f"{name} and the network differ in the tensor {different[0]!r:.60}")
    for key, value in own.items():
        _check_tensor(saved[key], value, f"{name}[{key!r}]")


def optimizer_state(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state dict to load into an optimizer, with the tensors of a checkpoint.

    Learning rate, momentum and weight decay follow from the recipe and are not restored.

    Args:
        saved: state dict of a checkpoint.
        optimizer: SGD or AdamW.

    Raises:
        DamagedError: if the tensors do not fit the optimizer.
    """
    if isinstance(optimizer, torch.optim.AdamW):
        names = {"step", "exp_avg", "exp_avg_sq"}
    else:
        names = {"momentum_buffer"} if optimizer.defaults["momentum"] else set()
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    state = saved.get("state")
    if not isinstance(state, dict) or not state.keys() <= {*range(len(parameters))}:
        raise DamagedError("optimizer does not fit this network")
    for index, tensors in state.items():
        if not isinstance(tensors, dict) or tensors.keys() != names:
            raise DamagedError(f"optimizer[{index}] does not fit the optimizer of the recipe")
        for name, value in tensors.items():
            like = torch.zeros(()) if name == "step" else parameters[index]
            _check_tensor(value, like, f"optimizer[{index}][{name!r}]")
        if "step" in tensors and not tensors["step"] >= 0:
            raise DamagedError(f"optimizer[{index}]['step'] is {float(tensors['step'])}")
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


def scaler_state(saved: Mapping[str, float], scaler: torch.amp.GradScaler) -> dict[str, float]:
    """Return the state dict to load into a gradient scaler, from that of a checkpoint.

    Raises:
        DamagedError: if it does not fit the scaler.
    """
    own = scaler.state_dict()
    if saved.keys() != own.keys():
        raise DamagedError("scaler does not fit this precision")
    for name, value in saved.items():
        if not 0 <= value < math.inf:
            raise DamagedError(f"scaler[{name!r}] is {value}")
    return {name: type(own[name])(value) for name, value in saved.items()}


def _check_tensor(value: object, like: Tensor, name: str) -> None:
    if not isinstance(value, Tensor):
        raise DamagedError(f"{name} is {reprlib.repr(value)}, not a tensor")
    if not is_plain(value) or value.dtype != like.dtype or value.shape != like.shape:
        raise DamagedError(
            f"{name} is {value.dtype} of shape {tuple(value.shape)}, expected {like.dtype} of "
            f"shape {tuple(like.shape)}"
        )
