"""Which output of a network stands for a class of a name."""

import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError


def outputs_of(names: Sequence[str], classes: Sequence[str], where: str) -> NDArray[np.int64]:
    """Return the network's outputs for classes by their names.

    Names are compared in Unicode's composed form (NFC): macOS unpacks them decomposed.

    Args:
        names: of classes.
        classes: of the network, by output.
        where: what the names are of, for the error.

    Returns:
        (names,) int64, no output twice.

    Raises:
        PipelineError: if the network has no such class, or two names are of the same one.
    """
    places: dict[str, int] = {}
    twice = set()
    for output, name in enumerate(classes):
        if places.setdefault(composed(name), output) != output:
            twice.add(composed(name))
    strange = [name for name in names if composed(name) not in places]
    if strange:
        cases = {name.casefold(): name for name in places}
        other = cases.get(composed(strange[0]).casefold())
        remedy = (
            f"rename it to {other!r}, which differs in upper and lower case"
            if other is not None
            else "name the data that it was trained on"
        )
        raise PipelineError(
            f"{where} has a class {strange[0]!r}, which is none of the network's {len(classes)} "
            f"classes ({', '.join(classes[:3])}, ...; {len(strange)} of {len(names)} do not "
            f"match); {remedy}"
        )
    found = [composed(name) for name in names]
    counts = Counter(found)
    unclear = [name for name in found if name in twice or counts[name] > 1]
    if unclear:
        raise PipelineError(
            f"{unclear[0]!r} is the name of several classes of {where} or of the network; give "
            "each class a name of its own"
        )
    return np.array([places[name] for name in found], np.int64)


def composed(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), in which names are compared."""
    return unicodedata.normalize("NFC", name)
