"""Layer inventories and activations of any network, which stays unmodified."""

import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from featviz.canvas import Size

Layout = Literal["channels first", "channels last"]

_PROBE: Size = (128, 192)
"""Not square, so that the two spatial dimensions of an activation can be identified."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer, as observed in one forward pass.

    Attributes:
        name: Name of the module.
        channels: Channels of its output.
        layout: Position of the channels in its output.
        positions: Positions per image in its output, 1 if it has none.
        order: Order of its last call among all calls, from 1.
        calls: Number of calls.
    """

    name: str
    channels: int
    layout: Layout
    positions: int
    order: int
    calls: int


@dataclass(frozen=True, kw_only=True)
class LayerInventory:
    """The layers of a network whose output is a tensor of activations, in the order of their calls.

    Attributes:
        layers: By name.
        size: (height, width) of the only input that the network accepts, or None if it accepts any
            input of at least ``smallest`` pixels per side.
        smallest: Pixels.
    """

    layers: Mapping[str, Layer]
    size: Size | None
    smallest: int


_SIZE_ERRORS = (RuntimeError, ValueError, AssertionError, TypeError, IndexError)
"""What networks raise for an input of an unsupported size."""

_MIN_SIDES = (32, 64, 96)
"""Sides that are tried as the smallest one, in pixels."""

_FIXED_SIDES = (
    224, 32, 64, 28, 48, 56, 84, 96, 112, 128, 144, 160, 176, 192, 196, 240, 248, 252, 256, 260,
    272, 280, 288, 299, 300, 320, 336, 352, 368, 378, 380, 384, 392, 416, 420, 440, 448, 456, 480,
    504, 512, 518, 520, 528, 544, 560, 576, 600, 640, 768, 896, 1024,
)  # fmt: skip
"""Sides in pixels of networks with a fixed input size, from public models and datasets."""

_MAX_SIDE = 4096


def list_layers(module: nn.Module) -> LayerInventory:
    """List the layers of a network by running it.

    If a network accepts only one image size, the size is read from an attribute ``image_size`` or
    ``img_size`` of the network or one of its modules, as vision transformers have it; otherwise
    common sizes are tried.

    Args:
        module: Accepts (B, 3, height, width) float.

    Raises:
        ValueError: If it accepts none of the sizes.
    """
    with suppress(*_SIZE_ERRORS):
        layers = _run_once(module, _PROBE)
        for side in _MIN_SIDES:
            with suppress(*_SIZE_ERRORS):
                _run_once(module, (side, side))
                return LayerInventory(layers=layers, size=None, smallest=side)
        return LayerInventory(layers=layers, size=None, smallest=min(_PROBE))
    sizes = list(dict.fromkeys([*_declared_sizes(module), *((s, s) for s in _FIXED_SIDES)]))
    errors: list[Exception] = []
    for size in sizes:
        try:
            return LayerInventory(layers=_run_once(module, size), size=size, smallest=min(size))
        except _SIZE_ERRORS as error:
            errors.append(error)
    height, width = sizes[0]
    raise ValueError(
        f"{type(module).__name__} does not accept float images of (1, 3, {height}, {width}) or "
        f"{len(sizes) - 1} other common sizes: {str(errors[0]).splitlines()[0]:.200}; use a "
        "network that does"
    ) from errors[0]


def _declared_sizes(module: nn.Module) -> Iterator[Size]:
    """Yield the sizes in pixels that a network's attributes declare."""
    for each in module.modules():
        for name in ("image_size", "img_size"):
            size = getattr(each, name, None)
            both = (size, size) if isinstance(size, int) else size
            if (
                isinstance(both, tuple | list)
                and len(both) == 2
                and all(isinstance(side, int) and 1 <= side <= _MAX_SIDE for side in both)
            ):
                yield both[0], both[1]


def _run_once(module: nn.Module, size: Size) -> dict[str, Layer]:
    modules = {name: each for name, each in module.named_modules() if name}
    names = {each: name for name, each in modules.items()}
    outputs: dict[str, Tensor] = {}
    orders: dict[str, int] = {}
    calls: Counter[str] = Counter()

    def record(each: nn.Module, _: object, output: object) -> None:
        name = names[each]
        calls[name] += 1
        orders[name] = sum(calls.values())
        if isinstance(output, Tensor) and output.is_floating_point() and 2 <= output.ndim <= 4:
            outputs[name] = output

    with ExitStack() as restored, torch.no_grad():
        restored.enter_context(_frozen(module))
        for each in names:
            restored.callback(each.register_forward_hook(record).remove)
        module(_as_input(module, torch.zeros((1, 3, *size))))
    layers = []
    for name, output in outputs.items():
        layout = _layout(modules[name], output, size)
        if layout is None:
            continue
        channels = output.shape[1 if layout == "channels first" else -1]
        layers.append(
            Layer(
                name=name,
                channels=channels,
                layout=layout,
                positions=output.numel() // channels,
                order=orders[name],
                calls=calls[name],
            )
        )
    return {each.name: each for each in sorted(layers, key=lambda layer: layer.order)}


def _layout(module: nn.Module, output: Tensor, size: Size) -> Layout | None:
    """Return the position of the channels in a module's output, None if it cannot be determined."""
    if output.shape[0] != 1:
        return None  # The first dimension counts windows or heads, not images.
    if output.ndim == 2 or isinstance(module, _CHANNELS_FIRST):
        return "channels first"
    if output.ndim == 3 or isinstance(module, _CHANNELS_LAST):
        return "channels last"
    _, first, second, third = output.shape
    aspect = size[1] / size[0]
    # Each halving may have rounded a side up or down by one.
    as_first = abs(third - second * aspect) <= 2
    as_last = abs(second - first * aspect) <= 2
    if as_first:
        return "channels first"
    return "channels last" if as_last else None


_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)


class _StopForward(Exception):
    """Raised by a hook to stop a forward pass early."""


@contextmanager
def capture_activations(
    module: nn.Module, layers: Sequence[Layer]
) -> Iterator[Callable[[Tensor], dict[str, Tensor]]]:
    """Yield a function from images to activations; it stops after the last of the layers.

    Inside the context, the network is in evaluation mode and its weights require no gradient; on
    exit its state is restored. A layer that is called several times is captured at its last call.

    Args:
        module: Accepts (B, 3, height, width) with its own dtype and device.
        layers: Layers of its inventory, see ``list_layers``.

    Yields:
        A function from such images to activations by layer, (B, channels, ...positions), with at
        least one position dimension.
    """
    by_name = {each.name: each for each in layers}
    found: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def hook_of(layer: Layer) -> Callable[[nn.Module, Any, Tensor], None]:
        def record(_: nn.Module, __: object, output: Tensor) -> None:
            calls[layer.name] += 1
            if calls[layer.name] < layer.calls:
                return
            found[layer.name] = output
            if len(found) == len(by_name):
                raise _StopForward
            # Later modules may modify the output in place.
            found[layer.name] = output.clone()

        return record

    def run(images: Tensor) -> dict[str, Tensor]:
        found.clear()
        calls.clear()
        try:
            module(images)
        except _StopForward:
            pass
        else:
            missing = ", ".join(by_name.keys() - found.keys())
            raise RuntimeError(
                f"{missing} was not called; list the layers with images of this size"
            )
        return {name: _channels_first(each, by_name[name]) for name, each in found.items()}

    with ExitStack() as restored:
        restored.enter_context(_frozen(module))
        modules = dict(module.named_modules())
        for layer in layers:
            hook = modules[layer.name].register_forward_hook(hook_of(layer))
            restored.callback(hook.remove)
        yield run


def _channels_first(output: Tensor, layer: Layer) -> Tensor:
    if layer.layout == "channels last":
        output = output.movedim(-1, 1)
    return output[..., None] if output.ndim == 2 else output


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode with frozen weights, and restore it on exit."""
    training = [(each, each.training) for each in module.modules()]
    trainable = [(each, each.requires_grad) for each in module.parameters()]
    try:
        module.eval().requires_grad_(False)
        yield
    finally:
        for each, flag in training:
            each.training = flag
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)


def _as_input(module: nn.Module, images: Tensor) -> Tensor:
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return images.to(parameter.device, parameter.dtype)
    return images


def find_nonfinite(module: nn.Module, images: Tensor) -> str | None:
    """Return the name of the first layer whose output is NaN or infinite, None if all are finite.

    Args:
        module: A network.
        images: (B, 3, height, width), as its input.
    """
    names = {each: name for name, each in module.named_modules() if name}
    found: list[str] = []

    def record(each: nn.Module, _: object, output: object) -> None:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return
        if not bool(output.isfinite().all()):
            found.append(names[each])
            raise _StopForward

    with ExitStack() as restored, torch.no_grad(), suppress(_StopForward):
        restored.enter_context(_frozen(module))
        for each in names:
            restored.callback(each.register_forward_hook(record).remove)
        module(images)
    return found[0] if found else None


def find_layers(known: Mapping[str, Layer], names: Iterable[str]) -> list[Layer]:
    """Return layers by name.

    Raises:
        ValueError: If a name is unknown; the message suggests similar names.
    """
    found = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.3) or list(known)[:3]
            raise ValueError(f"layer {name!r} not found; use a name such as {', '.join(near)}")
        found.append(known[name])
    return found


class _RedirectedRelu(torch.autograd.Function):
    """clamp(x, 0, limit), with a gradient for images that would receive none.

    Only for these images, the gradient passes where it would move a value back into the range
    (lucid, optvis/overrides/redirected_relu_grad.py). The gradients of different images are
    independent.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x)
        ctx.limit = limit
        return x.clamp(0, limit)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (x,) = ctx.saved_tensors
        below, above = x <= 0, x >= ctx.limit
        plain = gradient.masked_fill(below | above, 0)
        back = (below & (gradient < 0)) | (above & (gradient > 0))
        dead = ~plain.flatten(1).any(1)
        dead = dead.view(-1, *[1] * (x.ndim - 1))
        return torch.where(dead, gradient.masked_fill(~back, 0), plain), None


_RELUS: dict[Callable[..., Any], tuple[float, bool]] = {
    functional.relu: (math.inf, False),
    torch.relu: (math.inf, False),
    Tensor.relu: (math.inf, False),
    functional.relu_: (math.inf, True),
    torch.relu_: (math.inf, True),
    Tensor.relu_: (math.inf, True),
    functional.relu6: (6.0, False),
}
"""Function -> upper limit, and whether it always operates in place."""


class RedirectedRelus(TorchFunctionMode):
    """While this mode is active, ReLU and ReLU6 pass a gradient to every image.

    It affects both modules and functions, and modifies no module.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Call a torch function, or its replacement."""
        named = kwargs or {}
        x = _argument(args, named, 0, "input", None)
        if func in _RELUS:
            limit, in_place = _RELUS[func]
            in_place = in_place or bool(_argument(args, named, 1, "inplace", False))
        elif func is functional.hardtanh and _argument(args, named, 1, "min_val", -1.0) == 0:
            # nn.ReLU6 calls this function.
            limit = float(_argument(args, named, 2, "max_val", 1.0))
            in_place = bool(_argument(args, named, 3, "inplace", False))
        else:
            return func(*args, **named)
        if not in_place:
            return _RedirectedRelu.apply(x, limit)
        return x.copy_(_RedirectedRelu.apply(x.clone(), limit))


def _argument(
    args: tuple[Any, ...], named: Mapping[str, Any], position: int, name: str, default: object
) -> Any:  # noqa: ANN401
    return args[position] if len(args) > position else named.get(name, default)
