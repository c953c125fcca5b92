"""Networks by name, in a table with a row per family, and the matching of their outputs to classes.

To add a family, add a row to `FAMILIES`: the pattern of its names, how to build a network, and the
default preprocessing. The first row whose pattern matches a full name is used.
"""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn

from featviz.networks import call_model_function
from featviz.state_dicts import match_names
from pipelines.errors import PipelineError
from pipelines.models.cifar import DenseNet, DenseNetBC, ResNeXt, WideResNet
from pixmix.commands import check_packages

Triple = tuple[float, float, float]

log = logging.getLogger(__name__)

EXAMPLES = (
    "wrn_40_4",
    "wrn_28_10",
    "wrn_16_2",
    "resnext29_32x4",
    "densenet_bc_100_12",
    "densenet_40_12",
)
"""Networks for CIFAR, as in their papers."""

_WITH_HEADS = frozenset({"googlenet", "inception_v3"})
_SIZE = r"([1-9]\d{0,3})"


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The default preprocessing of a network.

    Attributes:
        mean: of the channels, for values in 0..1.
        std: of the channels, for values in 0..1.
        image_size: side of the center crop in pixels.
        resize: shorter side of the image before the crop, in pixels.
    """

    mean: Triple
    std: Triple
    image_size: int
    resize: int


@dataclass(frozen=True, kw_only=True)
class Family:
    """A row of the table.

    Attributes:
        pattern: regular expression for a full name.
        build: function of a match of the pattern, a number of classes and a dropout, 0..1, that
            returns a network with random weights.
        input_spec: returns the default preprocessing for a name; None if the dataset determines it.
        load_pretrained: function of a network, its name and the name of published weights that
            loads them; None if the family has none.
        has_dropout: whether a recipe can set the network's dropout.
        for_cifar: whether the network is for images of 32 pixels.
        safe: whether a name in a checkpoint may be built; False if that would run user code.
    """

    pattern: str
    build: Callable[[re.Match[str], int, float], nn.Module]
    input_spec: Callable[[str], InputSpec | None] = lambda _: None
    load_pretrained: Callable[[nn.Module, str, str], None] | None = None
    has_dropout: bool = False
    for_cifar: bool = False
    safe: bool = True


def find_family(name: str | None) -> Family | None:
    """Return the family of a network's name, or None for an unknown name."""
    found = (each for each in FAMILIES if re.fullmatch(each.pattern, name or ""))
    return next(found, None)


def family_of(name: str) -> Family:
    """Return the family of a network's name.

    Raises:
        ValueError: if the name is unknown.
    """
    family = find_family(name)
    if family is None:
        raise ValueError(
            f"network {name!r} not found; use a name such as {', '.join(EXAMPLES)}, a torchvision "
            "classifier such as resnet50, or module:function"
        )
    return family


def default_input(name: str | None) -> InputSpec | None:
    """Return the default preprocessing of a network; None if the dataset determines it."""
    family = find_family(name)
    return None if family is None or name is None else family.input_spec(name)


def is_cifar_network(name: str) -> bool:
    """Return whether the network of a name is for images of 32 pixels."""
    family = find_family(name)
    return family is not None and family.for_cifar


def has_dropout(name: str) -> bool:
    """Return whether a recipe can set the dropout of the network of a name."""
    family = find_family(name)
    return family is not None and family.has_dropout


def build_network(name: str, classes: int, *, dropout: float = 0.0) -> nn.Module:
    """Return a network with random weights, drawn from torch's generator.

    Args:
        name: name that matches a pattern in `FAMILIES`.
        classes: number of classes, 2 or more.
        dropout: dropout of networks that have it, 0..1.

    Raises:
        ValueError: if the name is unknown.
    """
    family = family_of(name)
    match = re.fullmatch(family.pattern, name)
    assert match is not None
    return family.build(match, classes, dropout)


def open_model(
    name: str, classes: int, *, dropout: float = 0.0, seed: int = 0, pretrained: str | None = None
) -> nn.Module:
    """Return a network for training.

    Args:
        name: name that matches a pattern in `FAMILIES`; a module:function is called with the
            number of classes.
        classes: number of logits.
        dropout: dropout of networks that have it, 0..1.
        seed: seed of the initial weights.
        pretrained: name of published weights to download and start from, such as IMAGENET1K_V1;
            for another number of classes the last layer keeps its random weights.

    Raises:
        PipelineError: if the name or the weights are unknown.
        OSError: if weights cannot be downloaded.
    """
    try:
        load_pretrained = family_of(name).load_pretrained
        if pretrained is not None and load_pretrained is None:
            raise ValueError(f"{name} has no pretrained weights; pass --weights")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = build_network(name, classes, dropout=dropout)
            if pretrained is not None and load_pretrained is not None:
                load_pretrained(module, name, pretrained)
        return module
    except ImportError as error:
        raise PipelineError(f"{name}: {error}") from error
    except ValueError as error:
        raise PipelineError(str(error)) from error


def initialize_from(module: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Load weights to fine-tune, except a last layer for another number of classes.

    Args:
        module: the network.
        state: a state dict (see `featviz.state_dicts.find_state_dict`), whose tensor names are
            matched to the network's.

    Returns:
        The names of the tensors that keep their values.

    Raises:
        ValueError: if a tensor is not in this network, or tensors of several layers do not fit.
    """
    own = module.state_dict()
    found = match_names(state, module)
    for note in found.notes():
        log.warning("initial weights: %s", note)
    unknown = [name for name in found.state if name not in own]
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensors are not in this network, such as {unknown[0]}; use weights of "
            "this network"
        )
    fitting = {name: each for name, each in found.state.items() if own[name].shape == each.shape}
    left = [name for name in own if name not in fitting]
    if len({name.rpartition(".")[0] for name in left}) > 1:
        raise ValueError(
            f"{len(left)} of {len(own)} tensors do not fit, such as {left[0]}; use weights of this "
            "network"
        )
    module.load_state_dict({**own, **fitting})
    return left


@contextmanager
def explain_shape_errors(
    module: nn.Module, images: Tensor, classes: object = None
) -> Iterator[None]:
    """Replace a network's error by one line if it does not accept an image size or has no logits.

    An error in the block is only replaced if a single black image reproduces it.

    Args:
        module: the network.
        images: (B, 3, H, W) float, on the network's device, which the block classifies.
        classes: number of logits that the block needs; None for any number.

    Raises:
        PipelineError: instead of the network's own error.
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
                f"the network does not accept images of {side} pixels ({why}); pass a size that it "
                "accepts as --image-size, or use another --model"
            ) from error
        finally:
            module.train(mode)
        shape = tuple(getattr(found, "shape", ()))
        if len(shape) != 2 or classes not in {None, shape[1]}:
            raise PipelineError(
                f"the network returns an output of shape {shape} for one image, expected logits "
                f"of shape (1, {classes or 'classes'}); use a --model that returns logits"
            ) from error
        raise


# --- Outputs --------------------------------------------------------------------------------------


def find_outputs(names: Sequence[str], classes: Sequence[str], where: str) -> NDArray[np.int64]:
    """Return the network's outputs for class names.

    Names are compared in Unicode's composed form (NFC), because macOS stores decomposed names.

    Args:
        names: class names of a dataset.
        classes: class names of the network, by output.
        where: location of the dataset, for the error message.

    Returns:
        (len(names),) int64, distinct outputs.

    Raises:
        PipelineError: if the network does not have a class, or two names mean the same class.
    """
    outputs: dict[str, int] = {}
    ambiguous = set()
    for output, name in enumerate(classes):
        if outputs.setdefault(normalize_name(name), output) != output:
            ambiguous.add(normalize_name(name))
    unknown = [name for name in names if normalize_name(name) not in outputs]
    if unknown:
        cases = {name.casefold(): name for name in outputs}
        other = cases.get(normalize_name(unknown[0]).casefold())
        remedy = (
            f"rename it to {other!r}, which differs only in case"
            if other is not None
            else "use the dataset that it was trained on"
        )
        raise PipelineError(
            f"{where} has a class {unknown[0]!r}, which is not one of the network's {len(classes)} "
            f"classes ({', '.join(classes[:3])}, ...; {len(unknown)} of {len(names)} do not "
            f"match); {remedy}"
        )
    found = [normalize_name(name) for name in names]
    counts = Counter(found)
    repeated = [name for name in found if name in ambiguous or counts[name] > 1]
    if repeated:
        raise PipelineError(
            f"{repeated[0]!r} is the name of several classes of {where} or of the network; use "
            "distinct names"
        )
    return np.array([outputs[name] for name in found], np.int64)


def normalize_name(name: str) -> str:
    """Return a class name in Unicode's composed form (NFC), in which names are compared."""
    return unicodedata.normalize("NFC", name)


# --- module:function ------------------------------------------------------------------------------


def _call_user_function(match: re.Match[str], classes: int, _dropout: float) -> nn.Module:
    module = call_model_function(match[0], classes)
    # The user's modules may shadow our packages in later imports.
    check_packages()
    return module


# --- torchvision ----------------------------------------------------------------------------------


def normalize_as_pretrained(module: nn.Module, name: str, pretrained: str | None) -> None:
    """Make GoogLeNet and Inception renormalize their input if they started from published weights.

    torchvision trained these two with another mean and standard deviation than all others.
    """
    if name in _WITH_HEADS and pretrained is not None:
        module.transform_input = True  # type: ignore[assignment]


def needs_half_normalization(name: str) -> bool:
    """Return whether torchvision's weights of a name expect images with mean and std 0.5."""
    return name in _WITH_HEADS


def _build_torchvision(match: re.Match[str], classes: int, _dropout: float) -> nn.Module:
    # These two have auxiliary heads, which no recipe here trains.
    more = {"aux_logits": False, "init_weights": True} if match[0] in _WITH_HEADS else {}
    module: nn.Module = torchvision.models.get_model(
        match[0], weights=None, num_classes=classes, **more
    )
    return module


def _torchvision_pretrained(module: nn.Module, name: str, pretrained: str) -> None:
    known = [each.name for each in torchvision.models.get_model_weights(name)]
    if pretrained not in known:
        raise ValueError(
            f"torchvision has no weights {pretrained!r} for {name}; use --pretrained "
            f"{' or '.join(known)}"
        )
    weights = torchvision.models.get_model_weights(name)[pretrained]
    try:
        # In torchvision's own module, because some files have outdated tensor names.
        trained = torchvision.models.get_model(name, weights=weights, progress=False)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"the weights of {name} cannot be downloaded from {weights.url} "
            f"({str(error).splitlines()[0]}); pass a file as --weights"
        ) from error
    initialize_from(module, trained.state_dict())
    normalize_as_pretrained(module, name, pretrained)


def _torchvision_input(name: str) -> InputSpec:
    """Return the preprocessing of torchvision's first weights of a name.

    Newer weights of a ResNet resize to 232 pixels before the crop; the usual recipe, and the
    paper's, is 256.
    """
    transforms = next(iter(torchvision.models.get_model_weights(name))).transforms()
    return InputSpec(
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        image_size=transforms.crop_size[0],
        resize=transforms.resize_size[0],
    )


# --- timm -----------------------------------------------------------------------------------------


def _timm() -> Any:  # noqa: ANN401
    try:
        import timm
    except ImportError as error:
        raise ValueError("timm is not installed; run pip install timm") from error
    return timm


def _build_timm(match: re.Match[str], classes: int, _dropout: float) -> nn.Module:
    timm = _timm()
    if not timm.is_model(match[1]):
        raise ValueError(f"timm has no network {match[1]!r}; see timm.list_models()")
    module: nn.Module = timm.create_model(match[1], num_classes=classes)
    return module


def _timm_input(name: str) -> InputSpec:
    config = _timm().get_pretrained_cfg(name.removeprefix("timm/"), allow_unregistered=False)
    side = config.input_size[-1]
    resize = round(side / config.crop_pct)
    return InputSpec(mean=config.mean, std=config.std, image_size=side, resize=resize)


# --- The table ------------------------------------------------------------------------------------

_cifar = partial(Family, for_cifar=True)

FAMILIES: tuple[Family, ...] = (
    # WRN-DEPTH-WIDTH.
    _cifar(
        pattern=rf"wrn_{_SIZE}_{_SIZE}",
        build=lambda size, classes, dropout: WideResNet(
            int(size[1]), int(size[2]), classes, dropout
        ),
        has_dropout=True,
    ),
    # ResNeXt-DEPTH (WIDTHxGROUPS).
    _cifar(
        pattern=rf"resnext{_SIZE}_{_SIZE}x{_SIZE}",
        build=lambda size, classes, _: ResNeXt(int(size[1]), int(size[3]), int(size[2]), classes),
    ),
    # DenseNet-BC and DenseNet: DEPTH_GROWTH.
    _cifar(
        pattern=rf"densenet_bc_{_SIZE}_{_SIZE}",
        build=lambda size, classes, _: DenseNetBC(int(size[1]), int(size[2]), classes),
    ),
    _cifar(
        pattern=rf"densenet_{_SIZE}_{_SIZE}",
        build=lambda size, classes, _: DenseNet(int(size[1]), int(size[2]), classes),
    ),
    Family(
        pattern=r"timm/([\w.]+)",
        build=_build_timm,
        input_spec=_timm_input,
    ),
    Family(
        pattern=r".*:.*",
        build=_call_user_function,
        safe=False,
    ),
    Family(
        pattern="|".join(map(re.escape, torchvision.models.list_models(torchvision.models))),
        build=_build_torchvision,
        input_spec=_torchvision_input,
        load_pretrained=_torchvision_pretrained,
    ),
)
