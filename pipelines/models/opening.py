"""Networks by name, with or without trained weights, and what they want of their input."""

import logging
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from featviz.networks import call_function
from featviz.state_dicts import (
    fit_weights,
    fitted,
    load_weights,
    n_classes,
    read_weights,
    weights_of,
)
from featviz.weights import read_checkpoint_file
from pipelines.errors import PipelineError
from pipelines.models.cifar import EXAMPLES, build_cifar_network, is_cifar_network
from pixmix.commands import check_packages

_log = logging.getLogger(__name__)

_WITH_HEADS = frozenset({"googlenet", "inception_v3"})

PRETRAINED = "IMAGENET1K_V1"
"""torchvision's first weights, from which the released code begins and every printed figure is."""


def open_model(
    name: str, classes: int, *, dropout: float = 0.0, seed: int = 0, pretrained: str | None = None
) -> nn.Module:
    """Return a network for training.

    Args:
        name: of a network for CIFAR, of torchvision's classifiers, or module:function; the function
            is called with the number of classes.
        classes: of its logits.
        dropout: of networks that have it.
        seed: of its first weights.
        pretrained: name of torchvision's weights to begin with, such as `PRETRAINED`, which are
            downloaded; with another number of classes the last layer is drawn anew.

    Raises:
        PipelineError: if there is no such network, or it has no such weights.
        OSError: if weights cannot be downloaded.
    """
    is_torchvisions = not is_cifar_network(name) and ":" not in name
    try:
        if pretrained is not None and not is_torchvisions:
            raise ValueError(f"{name} has no trained weights of torchvision; pass --weights")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if is_torchvisions:
                return _open_torchvision(name, classes, pretrained)
            if is_cifar_network(name):
                return build_cifar_network(name, classes, dropout=dropout)
            made = call_function(name, classes)
            # That function's own modules may have the names of ours, and be taken for them later.
            check_packages()
            return made
    except ImportError as error:
        raise PipelineError(f"{name}: {error}") from error
    except ValueError as error:
        raise PipelineError(str(error)) from error


def _open_torchvision(name: str, classes: int, pretrained: str | None) -> nn.Module:
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(
            f"no network is named {name!r}; give one such as {', '.join(EXAMPLES)}, "
            "one of torchvision's such as resnet50, or module:function"
        )
    if pretrained is not None:
        known = [each.name for each in torchvision.models.get_model_weights(name)]
        if pretrained not in known:
            raise ValueError(
                f"torchvision has no weights {pretrained!r} of {name}; use --pretrained "
                f"{' or '.join(known)}"
            )
    # Those two have auxiliary heads beside the last, which no recipe here trains.
    more = {"aux_logits": False, "init_weights": True} if name in _WITH_HEADS else {}
    module: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=classes, **more
    )
    if pretrained is not None:
        _begin_trained(module, name, pretrained)
    return module


def _begin_trained(module: nn.Module, name: str, pretrained: str) -> None:
    weights = torchvision.models.get_model_weights(name)[pretrained]
    try:
        # As torchvision builds it for them: some files have names that no module has any more.
        trained = torchvision.models.get_model(name, weights=weights, progress=False)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"the weights of {name} cannot be had from {weights.url} "
            f"({str(error).splitlines()[0]}); give others by --weights"
        ) from error
    begin_with(module, trained.state_dict())
    _expect_input(module, name, pretrained)


def _expect_input(module: nn.Module, name: str, pretrained: str | None) -> None:
    """Let a network normalize its input as the weights it began with want.

    Those two were trained with another mean and standard deviation than the rest of torchvision's.
    """
    if name in _WITH_HEADS and pretrained is not None:
        module.transform_input = True  # type: ignore[assignment]


@contextmanager
def shapes_are_told(module: nn.Module, images: Tensor, classes: object = None) -> Iterator[None]:
    """Say in one line that a network does not take images of a size, or has other outputs.

    What fails in the block is only then put down to that when one black image shows it, too.

    Args:
        module: the network.
        images: (B, 3, H, W) float, on its device, which the block classifies.
        classes: outputs that the block needs; None for any number.

    Raises:
        PipelineError: in place of the network's own error.
    """
    try:
        yield
    except (PipelineError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        side = "x".join(map(str, reversed(images.shape[-2:])))
        mode = module.training
        try:
            with torch.no_grad():
                found = module.eval()(torch.zeros_like(images[:1]))
        except Exception as refusal:  # noqa: BLE001 - whatever a network raises
            why = (str(refusal) or type(refusal).__name__).splitlines()[0]
            raise PipelineError(
                f"the network does not take images of {side} pixels ({why}); pass the size that it "
                "takes as --image-size, or use another --model"
            ) from error
        finally:
            module.train(mode)
        shape = tuple(getattr(found, "shape", ()))
        if len(shape) != 2 or classes not in {None, shape[1]}:
            raise PipelineError(
                f"the network returns an output of shape {shape} for one image, where logits of "
                f"shape (1, {classes or 'classes'}) are needed; use a --model that returns them"
            ) from error
        raise


def first_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights that a training begins with.

    Args:
        path: what --weights names; see `read_weights`.

    Raises:
        PipelineError: if it cannot be read, or holds no weights.
    """
    try:
        return read_weights(path)
    except ValueError as error:
        raise PipelineError(str(error)) from error
    except OSError as error:
        raise PipelineError(f"--weights {path}: {error.strerror or error}") from error


def begin_with(module: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Load weights to fine-tune, all but a last layer for another number of classes.

    Args:
        module: the network.
        state: see `featviz.state_dicts.weights_of`; its names are fitted to the network's.

    Returns:
        The tensors that were left as they are.

    Raises:
        ValueError: if more than those of one layer do not fit, or some are of no layer here.
    """
    own = module.state_dict()
    found = fitted(state, module)
    for note in found.notes():
        _log.warning("weights to begin with: %s", note)
    state = found.state
    strange = [name for name in state if name not in own]
    if strange:
        raise ValueError(
            f"{len(strange)} of the tensors are not its own, such as {strange[0]}; give weights of "
            "this network"
        )
    fitting = {
        name: value
        for name, value in state.items()
        if name in own and own[name].shape == value.shape
    }
    left = [name for name in own if name not in fitting]
    if len({name.rpartition(".")[0] for name in left}) > 1:
        raise ValueError(
            f"{len(left)} of {len(own)} tensors do not fit, such as {left[0]}; give weights of "
            "this network"
        )
    module.load_state_dict({**own, **fitting})
    return left


def open_checkpoint(path: Path, model: str | None) -> tuple[nn.Module, dict[str, Any]]:
    """Open a trained network to evaluate it.

    Args:
        path: a checkpoint of pixmix-train, of the PixMix reference, or a state dict.
        model: its name; None for what the checkpoint says.

    Nothing that the file names is run: a function of one's own is called only where `model` names
    it.

    Returns:
        The network in evaluation mode, and what the checkpoint says of it: "model", "classes",
        "mean", "std" and more of `_SAID`, as far as it does.

    Raises:
        PipelineError: if the name is not known, what the file says of it is not what it should be,
            or the weights do not fit.
        OSError: if it cannot be read.
    """
    try:
        content = read_checkpoint_file(path)
        state = weights_of(content, path)
        network = _said(content, path)
        name = model or network.get("model")
        if name is None:
            raise ValueError(f"{path} does not say what network it is of; name it with --model")
        if model is None and ":" in name:
            raise ValueError(
                f"{path} is of {name!r}, a function, and no file says what is run here; if it is "
                f"yours, say --model {name}"
            )
        classes = network.get("classes") or _classes_of(state, name)
        if ":" not in name:
            # Without memory first: neither a name nor a number of a file is to ask for much of it.
            with torch.device("meta"):
                probe = open_model(name, classes)
            fit_weights(probe, state, path)
        module = open_model(name, classes)
        _expect_input(module, name, network.get("pretrained"))
        for note in load_weights(module, state, path):
            _log.warning("%s: %s", path, note)
        if name in _WITH_HEADS and "pretrained" not in network:
            _log.warning(
                "%s: torchvision's own weights of %s take images normalized by --mean 0.5 0.5 "
                "0.5 --std 0.5 0.5 0.5; pass that if these were fine-tuned from them",
                path,
                name,
            )
    except ValueError as error:
        raise PipelineError(str(error)) from error
    return module.eval(), {**network, "model": name, "classes": classes}


def _classes_of(state: Mapping[str, Tensor], name: str) -> int:
    """Return the number of classes of a state dict, 10 where it does not show."""
    build = partial(open_model, name)
    if ":" not in name:
        with torch.device("meta"):
            return n_classes(state, build) or 10
    # A function may take no other number than its own; the last weights are the classifier's then.
    found = None
    with suppress(PipelineError):
        found = n_classes(state, build)
    weights = [each for each in state.values() if each.ndim > 1]
    return found or (len(weights[-1]) if weights else 10)


def said_of_network(path: Path) -> dict[str, Any]:
    """Return what a checkpoint says of its network: those of `_SAID` that it has, and "recipe".

    Raises:
        PipelineError: if it is no checkpoint, or says what cannot be.
        OSError: if it cannot be read.
    """
    try:
        content = read_checkpoint_file(path)
        weights_of(content, path)
    except ValueError as error:
        raise PipelineError(str(error)) from error
    return _said(content, path)


def _said(content: object, path: Path) -> dict[str, Any]:
    network = content.get("network", {}) if isinstance(content, dict) else {}
    if isinstance(network, Tensor):  # A state dict with a tensor of that name.
        network = {}
    if not isinstance(network, dict):
        raise PipelineError(
            f"{path} says of its network {reprlib.repr(network)}; name another file"
        )
    for name, can_be in _SAID.items():
        if name in network and not can_be(network[name]):
            raise PipelineError(
                f"{path} says of its network that {name} is {reprlib.repr(network[name])}; name "
                "another file"
            )
    found = {name: network[name] for name in _SAID if name in network}
    # How it was trained; evaluation says where that overlaps what it measures.
    recipe = content.get("recipe") if isinstance(content, dict) else None
    return {**found, "recipe": recipe} if isinstance(recipe, dict) else found


def _are_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _are_numbers(value: object, above: float = -math.inf) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(each, float | int) and above < each < math.inf for each in value)
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST


_MOST = 1_000_000
"""Classes, or pixels of a side: more is damage."""

_SAID: Mapping[str, Callable[[object], bool]] = {
    "model": lambda value: isinstance(value, str),
    "pretrained": lambda value: value is None or isinstance(value, str),
    "classes": _is_count,
    "mean": _are_numbers,
    "std": lambda value: _are_numbers(value, above=0.0),
    "class_names": _are_strings,
    "crop": lambda value: isinstance(value, str),
    "image_size": lambda value: value in (None, 0) or _is_count(value),
    "evaluation_resize": lambda value: value in (None, 0) or _is_count(value),
}
"""What a checkpoint may say of its network, and whether a value can be one."""
