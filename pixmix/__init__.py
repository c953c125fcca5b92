"""PixMix: mixing pictures with fractals, on one picture, on a batch and on any torch device."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pixmix.batch import BatchPixMix
    from pixmix.fused import mix_batch
    from pixmix.packed import PackedPictures
    from pixmix.settings import PixMixSettings
    from pixmix.transform import PixMix

__all__ = ["BatchPixMix", "PackedPictures", "PixMix", "PixMixSettings", "mix_batch"]

_MODULES = {
    "BatchPixMix": "pixmix.batch",
    "PackedPictures": "pixmix.packed",
    "PixMix": "pixmix.transform",
    "PixMixSettings": "pixmix.settings",
    "mix_batch": "pixmix.fused",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is asked for: torch is not, for what needs it not."""
    if name not in _MODULES:
        raise AttributeError(f"module 'pixmix' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted([*globals(), *__all__])
