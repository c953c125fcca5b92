"""State dicts: found inside checkpoints, and matched to the tensor names of a network."""

import re
import reprlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from featviz.weights import SAVE_AGAIN, read_checkpoint_file

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict; nothing in the file is executed.

    Args:
        path: A file for ``read_checkpoint_file`` with a state dict, or a checkpoint that contains
            one.

    Returns:
        See ``find_state_dict``.

    Raises:
        ValueError: If the file cannot be read or contains no state dict.
        OSError: If it does not exist, is not a regular file, or the disk fails.
    """
    return find_state_dict(read_checkpoint_file(path), path)


def find_state_dict(content: object, path: Path | str) -> dict[str, Tensor]:
    """Return the state dict inside the content of a file.

    Args:
        content: A state dict, or a checkpoint that contains one under "state_dict",
            "model_state_dict", "model" or "net".
        path: Name of the file in messages.

    Returns:
        Tensors by the names of the file, with the module versions that torch stores beside them.

    Raises:
        ValueError: If there is none; the message lists the top-level keys.
    """
    outer = content
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} contains no state dict but {_describe(outer)}; {SAVE_AGAIN}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path} contains no state dict but {_describe(outer)}, where "
                f"{reprlib.repr(name)} is of type {type(value).__name__}; {SAVE_AGAIN}"
            )
        _check_tensor(name, value, path)
    return content


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is dense, on the CPU and not quantized."""
    dense = tensor.device.type == "cpu" and tensor.layout == torch.strided
    return dense and not tensor.is_quantized


def _check_tensor(name: str, value: Tensor, path: Path | str) -> None:
    """Reject a tensor that is not plain memory, or has more values than its storage."""
    if not is_plain(value):
        raise ValueError(f"{path}: {name} is not a plain tensor of numbers; {SAVE_AGAIN}")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(
            f"{path}: {name} of shape {tuple(value.shape)} has more values than the file contains; "
            f"{SAVE_AGAIN}"
        )


def _describe(content: object) -> str:
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    if not content:
        return "an empty dict"
    keys = ", ".join(reprlib.repr(key) for key in list(content)[:8])
    return f"a dict with the keys {keys}" + (", ..." if len(content) > 8 else "")


# --- Names ----------------------------------------------------------------------------------------

_PREFIX_FRACTION = 0.9
"""Fraction of the tensors that must begin with a prefix before it is removed."""

_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Heads of torchvision networks that are only used in training with the authors' recipe."""


@dataclass(frozen=True, kw_only=True)
class MatchedState:
    """A state dict under the names of a network.

    Attributes:
        state: Tensors by the network's own names, as far as it has them.
        unused: Names in the file of tensors that the network does not have or need: auxiliary
            heads, and tensors outside the shared prefix.
        prefix: What was removed from the beginning of the names, or "".
    """

    state: dict[str, Tensor]
    unused: tuple[str, ...]
    prefix: str

    def notes(self) -> list[str]:
        """Return remarks for the user, as clauses without a full stop."""
        notes = []
        if self.prefix:
            notes.append(f"the prefix {self.prefix!r} of its tensors was removed")
        if self.unused:
            notes.append(
                f"{len(self.unused)} of its tensors do not belong to this network and were not "
                f"loaded, such as {self.unused[0]}"
            )
        return notes


def match_names(state: Mapping[str, Tensor], module: nn.Module) -> MatchedState:
    """Rename the tensors of a file to the names that a network uses.

    Known spellings are tried one after the other, and the first that matches most of the network's
    tensors is used: the names in the file; without ``module`` (DataParallel, also of an inner
    module) and ``_orig_mod`` (torch.compile); without a prefix that all or nearly all names share,
    such as Lightning's ``model.``; and the result of ``module.translate_name``, a method of
    networks that know other layouts.

    Args:
        state: See ``find_state_dict``.
        module: The network, which is not modified.
    """
    own = module.state_dict()
    best = max(_spellings(list(state), module), key=lambda each: _matches(each, state, own))
    renamed = dict(zip(best.names, state.values(), strict=True))
    unused = {
        name: old
        for name, old in zip(best.names, state, strict=True)
        if name not in own and (old in best.outside or _is_auxiliary(name, module))
    }
    kept: dict[str, Tensor] = OrderedDict(
        (name, value) for name, value in renamed.items() if name not in unused
    )
    # Some modules read versions stored beside the tensors, which a plain dict would drop.
    versions = getattr(state, "_metadata", None)
    if isinstance(versions, dict):
        modules = {old.rpartition(".")[0]: new.rpartition(".")[0] for old, new in
                   zip(state, best.names, strict=True)}  # fmt: skip
        kept._metadata = OrderedDict(  # type: ignore[attr-defined]
            (modules.get(name, name), each) for name, each in versions.items()
        )
    return MatchedState(state=kept, unused=tuple(unused.values()), prefix=best.prefix)


@dataclass(frozen=True, kw_only=True)
class _Spelling:
    """Names for the tensors of a file, in its order; outside: names without the prefix."""

    names: list[str]
    prefix: str = ""
    outside: frozenset[str] = frozenset()


def _spellings(old: Sequence[str], module: nn.Module) -> Iterator[_Spelling]:
    layouts: list[Callable[[str], str]] = [str]
    translate_name = getattr(module, "translate_name", None)
    if callable(translate_name):
        layouts.append(translate_name)
    plain, bare = ([_current(each(name)) for name in old] for each in (str, _unwrapped))
    tried = [(plain, ""), (bare, "")]
    tried += [(names, prefix) for names in (plain, bare) for prefix in _shared_prefixes(names)]
    for names, prefix in tried:
        outside = frozenset(
            before for before, name in zip(old, names, strict=True) if not name.startswith(prefix)
        )
        for layout in layouts:
            spelled = [layout(name.removeprefix(prefix)) for name in names]
            if len(set(spelled)) == len(spelled):
                yield _Spelling(names=spelled, prefix=prefix, outside=outside)


def _matches(spelling: _Spelling, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> int:
    return sum(
        name in own and own[name].shape == value.shape
        for name, value in zip(spelling.names, state.values(), strict=True)
    )


def _unwrapped(name: str) -> str:
    """Return a tensor's name without the parts that DataParallel and torch.compile insert."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def _current(name: str) -> str:
    """Return a tensor's name in its current spelling."""
    # Old torchvision DenseNet checkpoints have module names with a dot, now invalid.
    name = re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", name)
    # The published WideResNet checkpoints use both spellings.
    return name.replace("convShortcut", "conv_shortcut")


def _shared_prefixes(names: Sequence[str]) -> Iterator[str]:
    """Yield the prefixes that nearly all names share, the shortest first."""
    prefix = ""
    while True:
        first = Counter(
            name.removeprefix(prefix).partition(".")[0] + "."
            for name in names
            if name.startswith(prefix) and "." in name.removeprefix(prefix)
        )
        if not first:
            return
        part, count = first.most_common(1)[0]
        if count < _PREFIX_FRACTION * len(names):
            return
        prefix += part
        yield prefix


def _is_auxiliary(name: str, module: nn.Module) -> bool:
    with_heads = (torchvision.models.GoogLeNet, torchvision.models.Inception3)
    return isinstance(module, with_heads) and name.startswith(_AUXILIARY)


# --- Loading --------------------------------------------------------------------------------------


def load_weights(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> list[str]:
    """Load a state dict into a network.

    Args:
        module: The network; if the state dict does not match, nothing is loaded.
        state: See ``find_state_dict``.
        path: Name of the file in messages.

    Returns:
        Remarks for the user; see ``MatchedState.notes``.

    Raises:
        ValueError: If it does not match; the message names tensors that are missing, unexpected or
            of another shape.
    """
    found = match_state_dict(module, state, path)
    module.load_state_dict(found.state, strict=False)
    return found.notes()


def match_state_dict(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> MatchedState:
    """Return a state dict under the names of a network, which may be on the device "meta".

    Args:
        module: The network, which is not modified.
        state: See ``find_state_dict``.
        path: Name of the file in messages.

    Raises:
        ValueError: If it does not match; see ``load_weights``.
    """
    own = module.state_dict()
    found = match_names(state, module)
    matched = found.state
    # Older files do not contain num_batches_tracked.
    missing = [
        name for name in own if name not in matched and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in matched if name not in own]
    mismatched = [
        name for name in matched if name in own and matched[name].shape != own[name].shape
    ]
    if missing or unexpected or mismatched:
        problems = []
        if missing:
            problems.append(f"{len(missing)} of its tensors are missing, such as {missing[0]}")
        if mismatched:
            name = mismatched[0]
            problems.append(
                f"{len(mismatched)} have another shape, such as {name}: "
                f"{tuple(matched[name].shape)} "
                f"instead of {tuple(own[name].shape)}"
            )
        if unexpected:
            problems.append(f"{len(unexpected)} are unexpected, such as {unexpected[0]}")
        raise ValueError(
            f"{path} does not match {type(module).__name__}: {'; '.join(problems)}; pass the "
            "weights of this network"
        )
    return found


def n_classes(state: Mapping[str, Tensor], build: Callable[[int], nn.Module]) -> int | None:
    """Return the number of classes of a state dict, None if it cannot be determined.

    The order of the tensors does not show it, because safetensors are sorted by name.

    Args:
        state: See ``find_state_dict``.
        build: Returns the network with a given number of classes; it is called twice.
    """
    first, second = build(2), build(3)
    matched = match_names(state, first).state
    other = second.state_dict()
    for name, value in reversed(first.state_dict().items()):
        if name in matched and matched[name].ndim == value.ndim:
            for side, (two, three) in enumerate(zip(value.shape, other[name].shape, strict=True)):
                if (two, three) == (2, 3):
                    return matched[name].shape[side]
    return None
