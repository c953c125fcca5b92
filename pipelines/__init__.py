"""Datasets on disk, loaders, training, evaluation and the commands of the toolkit."""

from typing import TYPE_CHECKING

from pixmix import __version__ as __version__

if TYPE_CHECKING:
    from pipelines.loading.config import CIFAR, IMAGENET, LoaderConfig, PreprocessConfig
    from pipelines.loading.loader import EvalLoader, TrainLoader, eval_loader, train_loader
    from pipelines.loading.mixing_set import open_mixing_set
    from pipelines.loading.webdataset import pixmix_stream
    from pipelines.shards.remote import Remote

__all__ = [
    "CIFAR",
    "IMAGENET",
    "EvalLoader",
    "LoaderConfig",
    "PreprocessConfig",
    "Remote",
    "TrainLoader",
    "eval_loader",
    "open_mixing_set",
    "pixmix_stream",
    "train_loader",
]

# Hidden from type checkers, which would accept any name because of `__getattr__`.
if not TYPE_CHECKING:
    _MODULES = {
        "CIFAR": "pipelines.loading.config",
        "IMAGENET": "pipelines.loading.config",
        "EvalLoader": "pipelines.loading.loader",
        "LoaderConfig": "pipelines.loading.config",
        "PreprocessConfig": "pipelines.loading.config",
        "Remote": "pipelines.shards.remote",
        "TrainLoader": "pipelines.loading.loader",
        "eval_loader": "pipelines.loading.loader",
        "open_mixing_set": "pipelines.loading.mixing_set",
        "pixmix_stream": "pipelines.loading.webdataset",
        "train_loader": "pipelines.loading.loader",
    }

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used, to keep the help of the commands fast."""
        if name not in _MODULES:
            raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted([*globals(), *__all__])
