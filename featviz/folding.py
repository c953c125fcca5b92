"""A faster copy of a network with the same outputs: batch norms are folded into convolutions."""

import copy
from collections import Counter
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from featviz.networks import SameConv2d

_CONVOLUTIONS = (nn.Conv2d, SameConv2d)
"""Exactly these types: subclasses may not be linear in their weights."""
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)

_FAILURES = (
    fx.proxy.TraceError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a forward pass may raise when it receives proxies instead of tensors."""

_TOLERANCE = 1e-3
"""Tolerated difference relative to the largest output; float32 rounding causes about 1e-6."""


def fold_batch_norms(
    module: nn.Module, example: Tensor, *, keep: Collection[str] = ()
) -> nn.Module:
    """Return a copy in evaluation mode, with batch norms folded into convolutions where possible.

    A norm is folded if torch.fx can trace the network, if it follows a plain convolution of its
    own, and if nothing else reads the convolution's weights or output. Module names stay: a folded
    norm becomes an identity. If the outputs for the example differ, the copy is not folded.

    Args:
        module: The network; it is not modified.
        example: (B, 3, height, width) float32 input.
        keep: Layers whose outputs must stay the same.

    Raises:
        ValueError: If the module cannot be copied.
    """
    try:
        plain = copy.deepcopy(module).eval().requires_grad_(False)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"the network cannot be copied ({reason}); remove weight_norm and similar hooks first"
        ) from error
    pairs = _foldable(plain, keep)
    if not pairs:
        return plain
    faster = copy.deepcopy(plain)
    modules = dict(faster.named_modules())
    for convolution, norm in pairs.items():
        fused = fuse_conv_bn_eval(modules[convolution], modules[norm])
        faster.set_submodule(convolution, fused)
        faster.set_submodule(norm, nn.Identity())
    faster.requires_grad_(False)
    return faster if _outputs_match(plain, faster, example) else plain


def _foldable(module: nn.Module, keep: Collection[str]) -> dict[str, str]:
    """Return the foldable pairs: name of a convolution -> name of its norm."""
    try:
        graph = _Tracer().trace(module)
    except _FAILURES:
        return {}
    modules = dict(module.named_modules())
    registered = Counter(id(each) for _, each in module.named_modules(remove_duplicate=False))
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    pairs = {}
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        name, norm = str(before.target), str(node.target)
        sole_reader = len(before.users) == 1 and calls[before.target] == calls[node.target] == 1
        own = registered[id(modules[name])] == registered[id(modules[norm])] == 1
        between = any(_within(name, each) and not _within(norm, each) for each in keep)
        if not sole_reader or not own or between or {name, norm} & read:
            continue
        if _is_plain(modules[name], _CONVOLUTIONS) and _is_plain(modules[norm], _NORMS):
            pairs[name] = norm
    return pairs


def _is_plain(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Return whether a module has exactly one of these types, its own weights and no hooks."""
    if type(module) not in kinds or getattr(module, "running_var", module) is None:
        return False
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return not any(hooks) and "weight" in module._parameters


def _outputs_match(first: nn.Module, second: nn.Module, example: Tensor) -> bool:
    with torch.no_grad():
        outputs = [_tensors(each(example)) for each in (first, second)]
    return all(
        bool((one - other).abs().max() <= _TOLERANCE * one.abs().max().clamp(min=1e-6))
        for one, other in zip(*outputs, strict=True)
    )


def _tensors(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [each for value in output.values() for each in _tensors(value)]
    if isinstance(output, list | tuple):
        return [each for value in output for each in _tensors(value)]
    return []


def _within(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Treat a SameConv2d as a leaf."""
        return isinstance(m, SameConv2d) or super().is_leaf_module(m, module_qualified_name)


def has_grouped_convolutions(module: nn.Module) -> bool:
    """Return whether a network has depthwise or grouped convolutions."""
    return any(isinstance(each, nn.Conv2d) and each.groups > 1 for each in module.modules())
