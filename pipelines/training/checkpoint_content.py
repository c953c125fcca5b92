"""What a checkpoint holds, as types: damaged or hostile ones end in one line, and run nothing."""

import io
import math
import reprlib
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor

from featviz.checkpoint_digest import matches_digest
from featviz.weights import load_checkpoint
from pipelines.loading.loader import LoaderState

CHECKPOINT_VERSION = 4
"""4 renames fields of the loader's state; 3 carries a SHA-256; 2 carried none."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**48)]
_Sum = Annotated[float, msgspec.Meta(ge=0.0, le=1e300)]
_Plain = bool | int | float | str | None

_IN_RECORDS = ("epoch", "step", "train_loss", "train_error")


class Sums(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Sums over the samples of an epoch so far, of all processes."""

    loss: _Sum = 0.0
    correct: _Sum = 0.0
    seen: _Sum = 0.0


class CheckpointContent(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A checkpoint.

    Attributes:
        network: metadata for evaluation; see `pipelines.models.opening`.
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

    version: int
    network: dict[str, _Plain | list[_Plain]]
    recipe: dict[str, _Plain | dict[str, _Plain | list[str]]]
    mixing_set: str | None
    state_dict: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, float]
    loader: LoaderState
    step: _Count
    history: list[dict[str, int | float]]
    sums: Sums
    best: float
    current: dict[str, Any] | None = None

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
            if not record.keys() >= {*_IN_RECORDS}:
                raise ValueError(f"a record of its history has no {' or no '.join(_IN_RECORDS)}")


class DamagedError(ValueError):
    """Raised for a checkpoint that is not what it should be; the message says what is wrong."""


class OtherVersionError(ValueError):
    """Raised for a checkpoint of another version of this program."""


def parse_content(held: bytes) -> CheckpointContent:
    """Return what the bytes of a checkpoint hold; nothing in them is executed.

    Raises:
        DamagedError: if they are not those of a checkpoint, or not those that were written.
        OtherVersionError: if the checkpoint is of another version.
    """
    whole = matches_digest(held)
    if whole is False:
        raise DamagedError("its content does not match the SHA-256 that it carries")
    try:
        content = load_checkpoint(io.BytesIO(held), "it")
    except ValueError as error:
        raise DamagedError(
            "it is cut off or damaged, or not a checkpoint of pixmix-train"
        ) from error
    version = content.get("version") if isinstance(content, dict) else None
    if not isinstance(version, int) or not 1 <= version < 100:
        raise DamagedError("it is not a checkpoint of pixmix-train")
    if version != CHECKPOINT_VERSION:
        raise OtherVersionError(
            f"it is a checkpoint of version {int(version)}, and this pixmix-train resumes from "
            f"version {CHECKPOINT_VERSION}"
        )
    if whole is None:
        raise DamagedError("it carries no SHA-256; another program than pixmix-train wrote it")
    try:
        return msgspec.convert(content, CheckpointContent)
    except msgspec.ValidationError as error:
        raise DamagedError(str(error)) from error
    except (RecursionError, AttributeError, TypeError) as error:
        # Of values that msgspec does not know.
        raise DamagedError("it holds something else than numbers and text") from error


def check_tensors(given: Mapping[str, Any], own: Mapping[str, Tensor], name: str) -> None:
    """Check that a state dict of a file can be loaded.

    Args:
        given: of the file.
        own: of the network.
        name: of it in the file.

    Raises:
        DamagedError: if tensors are missing, too many, or of another shape or dtype.
    """
    different = sorted(own.keys() ^ given.keys())
    if different:
        raise DamagedError(f"{name} and the network differ in the tensor {different[0]!r:.60}")
    for key, value in own.items():
        _check_tensor(given[key], value, f"{name}[{key!r}]")


def optimizer_state(given: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state dict of an optimizer with the tensors of a file.

    Rates and the like are a matter of the recipe, and stay as they are.

    Args:
        given: the state dict of the file.
        optimizer: SGD or AdamW, that is to go on.

    Raises:
        DamagedError: if they are not of this optimizer.
    """
    if isinstance(optimizer, torch.optim.AdamW):
        names = {"step", "exp_avg", "exp_avg_sq"}
    else:
        names = {"momentum_buffer"} if optimizer.defaults["momentum"] else set()
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    state = given.get("state")
    if not isinstance(state, dict) or not state.keys() <= {*range(len(parameters))}:
        raise DamagedError("optimizer is not that of this network")
    for number, held in state.items():
        if not isinstance(held, dict) or held.keys() != names:
            raise DamagedError(f"optimizer[{number}] is not of the recipe's optimizer")
        for name, value in held.items():
            like = torch.zeros(()) if name == "step" else parameters[number]
            _check_tensor(value, like, f"optimizer[{number}][{name!r}]")
        if "step" in held and not held["step"] >= 0:
            raise DamagedError(f"optimizer[{number}]['step'] is {float(held['step'])}")
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


def scaler_state(given: Mapping[str, float], scaler: torch.amp.GradScaler) -> dict[str, float]:
    """Return the state dict of a gradient scaler from that of a file.

    Raises:
        DamagedError: if it is not one.
    """
    own = scaler.state_dict()
    if given.keys() != own.keys():
        raise DamagedError("scaler is not that of this precision")
    for name, value in given.items():
        if not 0 <= value < math.inf:
            raise DamagedError(f"scaler[{name!r}] is {value}")
    return {name: type(own[name])(value) for name, value in given.items()}


def _check_tensor(value: object, like: Tensor, name: str) -> None:
    if not isinstance(value, Tensor):
        raise DamagedError(f"{name} is {reprlib.repr(value)}, not a tensor")
    plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    if not plain or value.dtype != like.dtype or value.shape != like.shape:
        raise DamagedError(
            f"{name} is {value.dtype} of shape {tuple(value.shape)}, expected {like.dtype} of "
            f"shape {tuple(like.shape)}"
        )
