"""The checkpoint of a run that is meant where its folder is named."""

from pathlib import Path

from pipelines.errors import PipelineError
from pipelines.training.checkpoints import find_checkpoints


def checkpoint_of(path: Path) -> Path:
    """Return a file of weights: the path itself, or of a run's folder its best checkpoint.

    Args:
        path: a file, which is returned as it is; or the folder that `pixmix-train --out` wrote, or
            the folder `checkpoints` in it.

    Returns:
        `best.pt` where the run had a validation set, else the newest checkpoint.

    Raises:
        PipelineError: if the folder has no checkpoint.
    """
    if not path.is_dir():
        return path
    is_inner = path.name == "checkpoints" and not (path / "checkpoints").is_dir()
    run = path.parent if is_inner else path
    best = run / "checkpoints" / "best.pt"
    if best.is_file():
        return best
    newest = find_checkpoints(run)
    if not newest:
        raise PipelineError(
            f"{path} is a folder without checkpoints of pixmix-train; name the folder of a run, "
            "such as runs/digits, or a file of weights"
        )
    return newest[-1]
