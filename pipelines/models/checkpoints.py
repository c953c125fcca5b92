"""Checkpoints of trained networks: their metadata, and the networks they hold, for evaluation."""

import logging
import re
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn

from featviz.state_dicts import (
    find_state_dict,
    load_weights,
    match_state_dict,
    n_classes,
    read_weights,
)
from featviz.weights import read_checkpoint_file
from pipelines.errors import PipelineError
from pipelines.models.registry import (
    family_of,
    needs_half_normalization,
    normalize_as_pretrained,
    open_model,
)

log = logging.getLogger(__name__)

_MAX_SIZE = 1_000_000
"""Limit for numbers of classes and sides in pixels; larger ones mean a damaged file."""

_Finite = Annotated[float, msgspec.Meta(gt=-1e30, lt=1e30)]
_Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e30)]
_THREE = msgspec.Meta(min_length=3, max_length=3)
_Side = Annotated[int, msgspec.Meta(ge=0, le=_MAX_SIZE)]


class NetworkMetadata(msgspec.Struct, kw_only=True):
    """The metadata of a network in a checkpoint; None for missing entries.

    Attributes:
        model: name of the network; see `pipelines.models.registry`.
        pretrained: name of the published weights that training started from.
        classes: number of logits.
        class_names: class names by output.
        mean: of the input's channels, for values in 0..1.
        std: of the input's channels, for values in 0..1.
        crop: the random crop of training: "padded" or "resized".
        image_size: side of the crop in pixels; 0 or None if images keep their size.
        evaluation_resize: shorter side before the center crop in pixels; 0 or None for no resize.
    """

    model: str | None = None
    pretrained: str | None = None
    classes: Annotated[int, msgspec.Meta(ge=1, le=_MAX_SIZE)] | None = None
    class_names: list[str] | None = None
    mean: Annotated[list[_Finite], _THREE] | None = None
    std: Annotated[list[_Positive], _THREE] | None = None
    crop: str | None = None
    image_size: _Side | None = None
    evaluation_resize: _Side | None = None


def read_initial_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights from which training starts.

    Args:
        path: file passed as --weights; see `featviz.state_dicts.read_weights`.

    Raises:
        PipelineError: if the file cannot be read, or does not contain weights.
    """
    try:
        return read_weights(path)
    except ValueError as error:
        raise PipelineError(str(error)) from error
    except OSError as error:
        raise PipelineError(f"--weights {path}: {error.strerror or error}") from error


def open_checkpoint(path: Path, model: str | None) -> tuple[nn.Module, dict[str, Any]]:
    """Open a trained network for evaluation.

    No code is run because the file names it: a user's function is only called if `model` names it.

    Args:
        path: a checkpoint of pixmix-train or of the PixMix reference, or a state dict.
        model: name of the network; None to use the checkpoint's metadata.

    Returns:
        The network in evaluation mode, and the metadata: "model", "classes" and the other entries
        of `NetworkMetadata` that the checkpoint has.

    Raises:
        PipelineError: if the name is unknown, the metadata is invalid, or the weights do not fit.
        OSError: if the file cannot be read.
    """
    try:
        content = read_checkpoint_file(path)
        state = find_state_dict(content, path)
        metadata = _metadata(content, path)
        name = model or metadata.get("model")
        if name is None:
            raise ValueError(f"{path} does not name its network; pass --model")
        safe = family_of(name).safe
        if model is None and not safe:
            raise ValueError(
                f"{path} names the function {name!r} as its network, but a file may not choose "
                f"which function runs; if you trust it, pass --model {name}"
            )
        classes = metadata.get("classes") or _classes_of(state, name)
        if safe:
            # First on the meta device, so that a damaged file cannot allocate much memory.
            with torch.device("meta"):
                probe = open_model(name, classes)
            match_state_dict(probe, state, path)
        module = open_model(name, classes)
        normalize_as_pretrained(module, name, metadata.get("pretrained"))
        for note in load_weights(module, state, path):
            log.warning("%s: %s", path, note)
        if needs_half_normalization(name) and "pretrained" not in metadata:
            log.warning(
                "%s: torchvision's own weights of %s expect images normalized by --mean 0.5 0.5 "
                "0.5 --std 0.5 0.5 0.5; pass these if the network was fine-tuned from them",
                path,
                name,
            )
    except ValueError as error:
        raise PipelineError(str(error)) from error
    return module.eval(), {**metadata, "model": name, "classes": classes}


def _classes_of(state: Mapping[str, Tensor], name: str) -> int:
    """Return the number of classes of a state dict, or 10 if it cannot be inferred."""
    build = partial(open_model, name)
    if family_of(name).safe:
        with torch.device("meta"):
            return n_classes(state, build) or 10
    # A function may only accept its own number; then the last weights are the classifier's.
    found = None
    with suppress(PipelineError):
        found = n_classes(state, build)
    weights = [each for each in state.values() if each.ndim > 1]
    return found or (len(weights[-1]) if weights else 10)


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a checkpoint: its entries of `NetworkMetadata`, and "recipe".

    Raises:
        PipelineError: if the file is not a checkpoint, or its metadata is invalid.
        OSError: if the file cannot be read.
    """
    try:
        content = read_checkpoint_file(path)
        find_state_dict(content, path)
    except ValueError as error:
        raise PipelineError(str(error)) from error
    return _metadata(content, path)


def _metadata(content: object, path: Path) -> dict[str, Any]:
    network = content.get("network", {}) if isinstance(content, dict) else {}
    if isinstance(network, Tensor):  # A state dict with a tensor of that name.
        network = {}
    try:
        msgspec.convert(network, NetworkMetadata)
    except (msgspec.ValidationError, TypeError) as error:
        field = re.search(r"\$\.(\w+)", str(error))
        value = network[field[1]] if field else network
        raise PipelineError(
            f"{path}: network{'.' + field[1] if field else ''} is {reprlib.repr(value)} "
            f"({error}); use another checkpoint"
        ) from error
    found = {
        name: network[name]
        for name in NetworkMetadata.__struct_fields__
        # None is a meaningful value of "pretrained".
        if network.get(name) is not None or (name == "pretrained" and name in network)
    }
    # Evaluation warns if training augmentations overlap the corruptions.
    recipe = content.get("recipe") if isinstance(content, dict) else None
    return {**found, "recipe": recipe} if isinstance(recipe, dict) else found
