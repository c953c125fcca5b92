"""PixMix data augmentation for single images, for batches and on any torch device.

This package exports everything that most programs need, including the loaders and mixing sets of
`pipelines` and the renderer of `fractals`. Each name is imported when it is first used.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "BatchPixMix",
    "PixMix",
    "PixMixSettings",
    "draw_genome",
    "eval_loader",
    "mix_batch",
    "open_mixing_set",
    "render",
    "train_loader",
]

if TYPE_CHECKING:
    from fractals import draw_genome, render
    from pipelines.loading.loader import eval_loader, train_loader
    from pipelines.loading.mixing_set import open_mixing_set
    from pixmix.batch import BatchPixMix
    from pixmix.fused import mix_batch
    from pixmix.settings import PixMixSettings
    from pixmix.transform import PixMix
else:
    # Hidden from type checkers, which would accept any name because of `__getattr__`.
    _MODULES = {
        "BatchPixMix": "pixmix.batch",
        "PixMix": "pixmix.transform",
        "PixMixSettings": "pixmix.settings",
        "draw_genome": "fractals",
        "eval_loader": "pipelines.loading.loader",
        "mix_batch": "pixmix.fused",
        "open_mixing_set": "pipelines.loading.mixing_set",
        "render": "fractals",
        "train_loader": "pipelines.loading.loader",
    }

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used, so that `import pixmix` stays fast."""
        if name not in _MODULES:
            raise AttributeError(f"module 'pixmix' has no attribute {name!r}")
        from importlib import import_module

        from pixmix.commands import import_sibling

        module = _MODULES[name]
        load = import_module if module.startswith("pixmix.") else import_sibling
        return getattr(load(module), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted([*globals(), *__all__])
