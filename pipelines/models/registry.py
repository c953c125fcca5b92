"""Networks by name: one table, a row per family.

To add a family, add a row to `FAMILIES`: how its names are spelled, how one is built, and how its
input is preprocessed by default. The first row whose pattern matches a whole name builds it.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
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
"""Networks for CIFAR, as their papers have them."""

_WITH_HEADS = frozenset({"googlenet", "inception_v3"})
_SIZE = r"([1-9]\d{0,3})"


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The default preprocessing of a network.

    Attributes:
        mean, std: of the channels, for values in 0..1.
        image_size, resize: side in pixels of the center crop, and of the shorter side before it.
    """

    mean: Triple
    std: Triple
    image_size: int
    resize: int


@dataclass(frozen=True, kw_only=True)
class Family:
    """A row of the table.

    Attributes:
        pattern: regular expression of a whole name.
        build: returns a network with random weights for a match of the pattern, a number of classes
            and a dropout, 0..1.
        input_spec: returns the default preprocessing for a name; None where the dataset sets it.
        load_pretrained: loads published weights of a name into a network; None if there are none.
        has_dropout: whether the network has dropout that a recipe can set.
        for_cifar: whether it is a network for images of 32 pixels.
        safe: whether a name in a checkpoint may be built: False where a name runs a user's code.
    """

    pattern: str
    build: Callable[[re.Match[str], int, float], nn.Module]
    input_spec: Callable[[str], InputSpec | None] = lambda _: None
    load_pretrained: Callable[[nn.Module, str, str], None] | None = None
    has_dropout: bool = False
    for_cifar: bool = False
    safe: bool = True


def find_family(name: str | None) -> Family | None:
    """Return the family of a network's name, None if no family has such names."""
    found = (each for each in FAMILIES if re.fullmatch(each.pattern, name or ""))
    return next(found, None)


def family_of(name: str) -> Family:
    """Return the family of a network's name.

    Raises:
        ValueError: if no family has such names.
    """
    family = find_family(name)
    if family is None:
        raise ValueError(
            f"no network is named {name!r}; use one such as {', '.join(EXAMPLES)}, a torchvision "
            "classifier such as resnet50, or module:function"
        )
    return family


def default_input(name: str | None) -> InputSpec | None:
    """Return the default preprocessing of a network; None where the dataset sets it."""
    family = find_family(name)
    return None if family is None or name is None else family.input_spec(name)


def is_cifar_network(name: str) -> bool:
    """Return whether a name is of a network for images of 32 pixels."""
    family = find_family(name)
    return family is not None and family.for_cifar


def has_dropout(name: str) -> bool:
    """Return whether a network of a name has dropout that a recipe can set."""
    family = find_family(name)
    return family is not None and family.has_dropout


def build_network(name: str, classes: int, *, dropout: float = 0.0) -> nn.Module:
    """Return a network with random weights, drawn from torch's generator.

    Args:
        name: of a network in `FAMILIES`.
        classes: number of classes, 2 or more.
        dropout: of networks that have it, 0..1.

    Raises:
        ValueError: if there is no such network.
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
        name: of a network in `FAMILIES`; a module:function is called with the number of classes.
        classes: number of logits.
        dropout: of networks that have it, 0..1.
        seed: of the initial weights.
        pretrained: name of published weights to start from, such as IMAGENET1K_V1, which are
            downloaded; for another number of classes the last layer keeps its random weights.

    Raises:
        PipelineError: if there is no such network, or it has no such weights.
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
        state: see `featviz.state_dicts.find_state_dict`; its names are matched to the network's.

    Returns:
        The tensors that keep their values.

    Raises:
        ValueError: if more than the tensors of one layer do not fit, or some are of no layer here.
    """
    own = module.state_dict()
    found = match_names(state, module)
    for note in found.notes():
        log.warning("initial weights: %s", note)
    strange = [name for name in found.state if name not in own]
    if strange:
        raise ValueError(
            f"{len(strange)} tensors are not in this network, such as {strange[0]}; use weights of "
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
    """Explain in one line that a network does not take images of a size, or has other outputs.

    An error in the block is only attributed to that if one black image causes it, too.

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


# --- module:function ------------------------------------------------------------------------------


def _call_user_function(match: re.Match[str], classes: int, _dropout: float) -> nn.Module:
    module = call_model_function(match[0], classes)
    # That function's own modules may have the names of ours, and be taken for them later.
    check_packages()
    return module


# --- torchvision ----------------------------------------------------------------------------------


def normalize_as_pretrained(module: nn.Module, name: str, pretrained: str | None) -> None:
    """Have GoogLeNet and Inception renormalize their input if they started from torchvision's.

    torchvision trained those two with another mean and standard deviation than all others.
    """
    if name in _WITH_HEADS and pretrained is not None:
        module.transform_input = True  # type: ignore[assignment]


def needs_half_normalization(name: str) -> bool:
    """Return whether torchvision's weights of a name take images of mean and std 0.5."""
    return name in _WITH_HEADS


def _build_torchvision(match: re.Match[str], classes: int, _dropout: float) -> nn.Module:
    # Those two have auxiliary heads beside the last, which no recipe here trains.
    more = {"aux_logits": False, "init_weights": True} if match[0] in _WITH_HEADS else {}
    module: nn.Module = torchvision.models.get_model(
        match[0], weights=None, num_classes=classes, **more
    )
    return module


def _torchvision_pretrained(module: nn.Module, name: str, pretrained: str) -> None:
    known = [each.name for each in torchvision.models.get_model_weights(name)]
    if pretrained not in known:
        raise ValueError(
            f"torchvision has no weights {pretrained!r} of {name}; use --pretrained "
            f"{' or '.join(known)}"
        )
    weights = torchvision.models.get_model_weights(name)[pretrained]
    try:
        # As torchvision builds it for them: some files have names that no module has any more.
        trained = torchvision.models.get_model(name, weights=weights, progress=False)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"the weights of {name} cannot be downloaded from {weights.url} "
            f"({str(error).splitlines()[0]}); pass others as --weights"
        ) from error
    initialize_from(module, trained.state_dict())
    normalize_as_pretrained(module, name, pretrained)


def _torchvision_input(name: str) -> InputSpec:
    """Return the preprocessing of torchvision's first weights of a name.

    Later weights of a ResNet resize to 232 pixels before the crop; the usual recipe, and the
    paper's, to 256.
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
        raise ValueError(f"timm has no network {match[1]!r}; timm.list_models() lists them")
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
    # DenseNet-BC and DenseNet, of depth and growth.
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
