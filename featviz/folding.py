"""A copy of a network that is faster and says the same: batch norms folded into convolutions."""

import copy
from collections import Counter
from collections.abc import Collection

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_UNTRACEABLE = (
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
"""What a forward pass may raise that is given proxies instead of tensors; such a network runs as it
is."""
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def folded(module: nn.Module, *, keep: Collection[str] = ()) -> nn.Module:
    """Return a copy in evaluation mode, with batch norms folded where the result is the same.

    That is where torch.fx can trace the network, a norm has its own convolution in front of it, and
    nobody else sees what the convolution gives. Names stay: a folded norm becomes an identity.

    Args:
        module: of the network; it is not changed.
        keep: layers that are to be looked at, and so must give what they gave.
    """
    copied = copy.deepcopy(module).eval().requires_grad_(False)
    try:
        graph = _Tracer().trace(copied)
    except _UNTRACEABLE:
        return copied
    modules = dict(copied.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, _NORMS) or not norm.track_running_stats:
            continue
        before = node.args[0]
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        name = str(before.target)
        convolution = modules[name]
        alone = len(before.users) == 1 and calls[before.target] == calls[node.target] == 1
        between = any(_within(name, each) and not _within(str(node.target), each) for each in keep)
        if isinstance(convolution, _CONVOLUTIONS) and alone and not between:
            copied.set_submodule(name, fuse_conv_bn_eval(convolution, norm))
            copied.set_submodule(str(node.target), nn.Identity())
    return copied.requires_grad_(False)


def _within(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Take a convolution of anybody's as a whole."""
        return isinstance(m, _CONVOLUTIONS) or super().is_leaf_module(m, module_qualified_name)


def has_grouped_convolutions(module: nn.Module) -> bool:
    """Return whether a network has depthwise or grouped convolutions."""
    return any(isinstance(each, _CONVOLUTIONS) and each.groups > 1 for each in module.modules())
