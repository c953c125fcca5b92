"""Writes a page of HTML for each package, with its public names and what is said of them.

python -W error docs/reference.py FOLDER
"""

import sys
from importlib import import_module
from pathlib import Path

import pdoc
import pdoc.render

PACKAGES = ("fractals", "featviz", "pixmix", "pipelines")
SHOWN = (*PACKAGES, "pipelines.errors", "pixmix.mixing")
"""What else lies in the packages is no public interface."""


def reference(folder: Path) -> None:
    """Write the pages of the public names into a folder."""
    modules = list(SHOWN)
    for name in PACKAGES:
        package = import_module(name)
        for public in package.__all__:
            # A name that is imported when it is asked for is one that pdoc does not see.
            setattr(package, public, getattr(package, public))
        modules.append(rf"!{name}\..*")
    modules += SHOWN[len(PACKAGES) :]
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc(*modules, output_directory=folder)


if __name__ == "__main__":
    reference(Path(sys.argv[1]))
