"""The entry points of the commands, and imports from the packages beside this one.

`pipelines` and `fractals` are common names: a folder of a user's project, a module or another
distribution that comes first on `sys.path` is imported in place of ours. What needs these packages
imports them here, and ends in one line where another one hides them.
"""

import sys
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

PACKAGES = ("pipelines", "fractals", "featviz")
"""What is installed beside `pixmix`."""

_REINSTALL = "pip install --force-reinstall --no-deps pixmix"


def import_beside(module: str) -> ModuleType:
    """Import a module of one of the packages beside this one.

    Raises:
        ImportError: if a package is hidden by another one, or was changed by it.
    """
    check_packages()
    try:
        return import_module(module)
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] not in PACKAGES:
            raise
        raise ImportError(
            f"{error}: another package may have overwritten files of pixmix; uninstall that one "
            f"and install pixmix again: {_REINSTALL}",
            name=error.name,
        ) from error


def check_packages() -> None:
    """Refuse packages of the same names that are not part of this installation.

    Raises:
        ImportError: naming the package, where it was found and what to do.
    """
    ours = Path(__file__).absolute().parent.parent
    for name in PACKAGES:
        folder, file = ours / name, _file_of(name)
        if not folder.is_dir():
            raise ImportError(
                f"the package {name!r} of pixmix is missing from {ours}; install pixmix again: "
                f"{_REINSTALL}",
                name=name,
            )
        if file is None or not file.parent.exists() or not file.parent.samefile(folder):
            found = file.parent if file and file.name == "__init__.py" else file
            raise ImportError(
                f"{found or 'another module'} hides the package {name!r} of pixmix; rename it, or "
                "remove its folder from Python's path (the working folder, PYTHONPATH), or "
                "uninstall it if it is another package",
                name=name,
            )


def exit_if_hidden() -> None:
    """End a command with one line where a package that it needs is hidden by another one.

    Raises:
        SystemExit: with what `check_packages` says.
    """
    try:
        check_packages()
    except ImportError as error:
        sys.exit(f"Error: {error}")


def _file_of(name: str) -> Path | None:
    """Return the file that an import of a package runs or has run, or None if there is none."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        file = getattr(loaded, "__file__", None)
        return Path(file) if file else None
    spec = find_spec(name)
    return Path(spec.origin) if spec is not None and spec.origin else None


MODULES = {
    "pixmix-bench": "pipelines.cli.bench",
    "pixmix-demo": "pipelines.cli.demo",
    "pixmix-eval": "pipelines.cli.evaluate",
    "pixmix-gen": "pipelines.cli.gen",
    "pixmix-shard": "pipelines.cli.shard",
    "pixmix-show": "pipelines.cli.show",
    "pixmix-train": "pipelines.cli.train",
}
"""The module of each command, whose function `main` is the command."""


def _run(name: str) -> None:
    """Run a command; exit with one line where its packages cannot be imported."""
    try:
        module = import_beside(MODULES[name])
    except ImportError as error:
        sys.exit(f"Error: {error}")
    module.main()


bench = partial(_run, "pixmix-bench")
demo = partial(_run, "pixmix-demo")
evaluate = partial(_run, "pixmix-eval")
gen = partial(_run, "pixmix-gen")
shard = partial(_run, "pixmix-shard")
show = partial(_run, "pixmix-show")
train = partial(_run, "pixmix-train")
