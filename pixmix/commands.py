"""The entry points of the commands, and safe imports of the packages installed with this one.

`pipelines` and `fractals` are common names: a folder, a module or another distribution that comes
first on ``sys.path`` shadows the package of this project. The imports here detect that and report
it in one line.
"""

import sys
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

PACKAGES = ("pipelines", "fractals", "featviz")
"""The packages that are installed together with `pixmix`."""

_REINSTALL = "pip install --force-reinstall --no-deps pixmix"


def import_sibling(module: str) -> ModuleType:
    """Import a module of one of the packages installed with this one.

    Raises:
        ImportError: if another package shadows it, or has overwritten its files.
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
    """Check that the packages belong to this installation.

    Raises:
        ImportError: if one is missing, or another package shadows it.
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
                f"{found or 'another module'} shadows the package {name!r} of pixmix; rename it, "
                "or remove its folder from Python's path (the working folder, PYTHONPATH), or "
                "uninstall it if it is another package",
                name=name,
            )


def exit_if_shadowed() -> None:
    """Exit with a one-line message if another package shadows one of this project.

    Raises:
        SystemExit: with the message of `check_packages`.
    """
    try:
        check_packages()
    except ImportError as error:
        sys.exit(f"Error: {error}")


def _file_of(name: str) -> Path | None:
    """Return the file of a package, whether it is already imported or not; None if not found."""
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
"""The module of each command; its function `main` is the command."""


def _run(name: str) -> None:
    """Run a command; exit with a one-line message if its packages cannot be imported."""
    try:
        module = import_sibling(MODULES[name])
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
