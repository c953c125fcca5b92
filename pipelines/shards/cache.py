"""Where files live that a node keeps: one folder for whoever downloads or builds something."""

import os
from pathlib import Path


def cache_folder(given: Path | None = None) -> Path:
    """Return the folder of what this node keeps, which need not exist yet.

    Args:
        given: a folder the user chose; None takes $PIXMIX_CACHE, else $XDG_CACHE_HOME/pixmix,
            else ~/.cache/pixmix. A variable that is set but empty counts as not set.
    """
    if given is not None:
        return given
    if own := os.environ.get("PIXMIX_CACHE"):
        return Path(own)
    # The XDG rules say that a relative path is to be ignored.
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "pixmix"
