"""State dicts: found in the content of a file, and matched to the names of a network."""

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
        path: a file of `read_checkpoint_file`, of a state dict or of a checkpoint that holds one.

    Returns:
        See `find_state_dict`.

    Raises:
        ValueError: if the file cannot be read or holds something else.
        OSError: if it is not there, not a regular file, or the disk fails.
    """
    return find_state_dict(read_checkpoint_file(path), path)


def find_state_dict(content: object, path: Path | str) -> dict[str, Tensor]:
    """Return the state dict in the content of a file.

    Args:
        content: a state dict, or a checkpoint that holds one under "state_dict",
            "model_state_dict", "model" or "net".
        path: what messages call the file.

    Returns:
        Tensors by the names of the file, with the versions of modules that torch keeps beside them.

    Raises:
        ValueError: if there is none, naming the top-level keys.
    """
    outer = content
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds no state dict but {_described(outer)}; {SAVE_AGAIN}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path} holds no state dict but {_described(outer)}, where "
                f"{reprlib.repr(name)} is of type {type(value).__name__}; {SAVE_AGAIN}"
            )
        _check_tensor(name, value, path)
    return content


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is plain memory of this machine: dense, on the CPU, not quantized."""
    dense = tensor.device.type == "cpu" and tensor.layout == torch.strided
    return dense and not tensor.is_quantized


def _check_tensor(name: str, value: Tensor, path: Path | str) -> None:
    """Refuse a tensor that is not plain memory, or that claims more than the memory it has."""
    if not is_plain(value):
        raise ValueError(f"{path}: {name} is not a plain tensor of numbers; {SAVE_AGAIN}")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(
            f"{path}: {name} of shape {tuple(value.shape)} has more values than the file holds; "
            f"{SAVE_AGAIN}"
        )


def _described(content: object) -> str:
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    if not content:
        return "an empty dict"
    keys = ", ".join(reprlib.repr(key) for key in list(content)[:8])
    return f"a dict with the keys {keys}" + (", ..." if len(content) > 8 else "")


# --- Names ----------------------------------------------------------------------------------------

_NEARLY_ALL = 0.9
"""Share of the tensors that must begin with a prefix before it is removed."""

_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Heads of torchvision's networks that only a training from their authors' recipe uses."""


@dataclass(frozen=True, kw_only=True)
class MatchedState:
    """A state dict under the names of a network.

    Attributes:
        state: tensors by the network's own names, as far as it has them.
        left_out: names of tensors, as in the file, that are not of this network and need not be:
            auxiliary heads, and what lies outside the prefix of nearly all.
        prefix: what was removed from the beginning of the names; empty for nothing.
    """

    state: dict[str, Tensor]
    left_out: tuple[str, ...]
    prefix: str

    def notes(self) -> list[str]:
        """Return what a person should know of it, as sentences without an end."""
        notes = []
        if self.prefix:
            notes.append(f"the prefix {self.prefix!r} of its tensors was removed")
        if self.left_out:
            notes.append(
                f"{len(self.left_out)} of its tensors are not of this network and were not loaded, "
                f"such as {self.left_out[0]}"
            )
        return notes


def match_names(state: Mapping[str, Tensor], module: nn.Module) -> MatchedState:
    """Give the tensors of a file the names that a network has for them.

    Known spellings are tried in turn, and the first that gives most of the network's tensors is
    taken: as they are; without `module` (of DataParallel, also of an inner one) and `_orig_mod` (of
    torch.compile); without a prefix that all or nearly all share, such as Lightning's `model.`; and
    as `module.translate_name` has them, a method of networks that know other layouts.

    Args:
        state: see `find_state_dict`.
        module: the network, which is not changed.
    """
    own = module.state_dict()
    named = max(_spellings(list(state), module), key=lambda each: _matches(each, state, own))
    given = dict(zip(named.names, state.values(), strict=True))
    left_out = {
        name: old
        for name, old in zip(named.names, state, strict=True)
        if name not in own and (old in named.outside or _is_auxiliary(name, module))
    }
    kept: dict[str, Tensor] = OrderedDict(
        (name, value) for name, value in given.items() if name not in left_out
    )
    # Some modules read versions from beside the tensors, which a plain dict would lose.
    versions = getattr(state, "_metadata", None)
    if isinstance(versions, dict):
        modules = {old.rpartition(".")[0]: new.rpartition(".")[0] for old, new in
                   zip(state, named.names, strict=True)}  # fmt: skip
        kept._metadata = OrderedDict(  # type: ignore[attr-defined]
            (modules.get(name, name), each) for name, each in versions.items()
        )
    return MatchedState(state=kept, left_out=tuple(left_out.values()), prefix=named.prefix)


@dataclass(frozen=True, kw_only=True)
class _Spelling:
    """Names for the tensors of a file, in its order; outside: the file's names without prefix."""

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
    """Return a tensor's name without what DataParallel and torch.compile put into it."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def _current(name: str) -> str:
    """Return a tensor's name in today's spelling."""
    # torchvision's DenseNets were saved under names that no module may have any more.
    name = re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", name)
    # The released wide networks spell it in both ways.
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
        if count < _NEARLY_ALL * len(names):
            return
        prefix += part
        yield prefix


def _is_auxiliary(name: str, module: nn.Module) -> bool:
    with_heads = (torchvision.models.GoogLeNet, torchvision.models.Inception3)
    return isinstance(module, with_heads) and name.startswith(_AUXILIARY)


# --- Loading --------------------------------------------------------------------------------------


def load_weights(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> list[str]:
    """Load a state dict that was read from a file.

    Args:
        module: the network; nothing is loaded if the state dict does not fit it.
        state: see `find_state_dict`.
        path: what messages call the file.

    Returns:
        What a person should know of it; see `MatchedState.notes`.

    Raises:
        ValueError: if it does not fit; the message names tensors that are missing, too many or of
            another shape.
    """
    found = match_state_dict(module, state, path)
    module.load_state_dict(found.state, strict=False)
    return found.notes()


def match_state_dict(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> MatchedState:
    """Return a state dict under the names of a network, which may be on the device "meta".

    Args:
        module: the network, which is not changed.
        state: see `find_state_dict`.
        path: what messages call the file.

    Raises:
        ValueError: if it does not fit; see `load_weights`.
    """
    own = module.state_dict()
    found = match_names(state, module)
    given = found.state
    # Older files do not count batches.
    missing = [
        name for name in own if name not in given and not name.endswith("num_batches_tracked")
    ]
    strange = [name for name in given if name not in own]
    unlike = [name for name in given if name in own and given[name].shape != own[name].shape]
    if missing or strange or unlike:
        wrong = []
        if missing:
            wrong.append(f"{len(missing)} of its tensors are missing, such as {missing[0]}")
        if unlike:
            name = unlike[0]
            wrong.append(
                f"{len(unlike)} have another shape, such as {name}: {tuple(given[name].shape)} "
                f"instead of {tuple(own[name].shape)}"
            )
        if strange:
            wrong.append(f"{len(strange)} are not its own, such as {strange[0]}")
        raise ValueError(
            f"{path} does not fit {type(module).__name__}: {'; '.join(wrong)}; pass the weights of "
            "this network"
        )
    return found


def n_classes(state: Mapping[str, Tensor], build: Callable[[int], nn.Module]) -> int | None:
    """Return the number of classes of a state dict, None where it does not show.

    The order of the tensors does not tell it: safetensors are sorted by name.

    Args:
        state: see `find_state_dict`.
        build: returns the network with a number of classes; it is called twice.
    """
    first, second = build(2), build(3)
    given = match_names(state, first).state
    other = second.state_dict()
    for name, value in reversed(first.state_dict().items()):
        if name in given and given[name].ndim == value.ndim:
            for side, (two, three) in enumerate(zip(value.shape, other[name].shape, strict=True)):
                if (two, three) == (2, 3):
                    return given[name].shape[side]
    return None
