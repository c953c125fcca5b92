"""Which output of a network stands for a class of a name."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError


def outputs_of(names: Sequence[str], classes: Sequence[str], where: str) -> NDArray[np.int64]:
    """Return the network's outputs for classes by their names.

    Args:
        names: of classes.
        classes: of the network, by output.
        where: what the names are of, for the error.

    Raises:
        PipelineError: if the network has no such class.
    """
    places = {name: output for output, name in enumerate(classes)}
    strange = [name for name in names if name not in places]
    if strange:
        raise PipelineError(
            f"{where} has a class {strange[0]!r}, which is none of the network's {len(classes)} "
            f"classes ({', '.join(classes[:3])}, ...); name the data that it was trained on"
        )
    return np.array([places[name] for name in names], np.int64)
