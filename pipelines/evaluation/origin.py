"""Where the results of an evaluation come from: files by their hashes, code and machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pipelines.evaluation.request import Data
from pipelines.provenance.masking import masked_values
from pipelines.provenance.run_record import provenance
from pipelines.system.files import file_sha256


def origin_of(
    checkpoints: Mapping[str, Path], data: Data, *, world_size: int, seconds: float
) -> dict[str, Any]:
    """Return where results come from, as plain JSON values without secrets.

    Args:
        checkpoints: file of each network, by its name.
        data: that the networks were evaluated on.
        world_size: processes of the evaluation.
        seconds: that it took.

    Raises:
        OSError: if a checkpoint cannot be read.
    """
    found: dict[str, Any] = masked_values(
        {
            **msgspec.to_builtins(provenance(world_size=world_size)),
            "seconds": round(seconds, 3),
            "checkpoints": {name: file_sha256(path) for name, path in checkpoints.items()},
            "data": None if data.test is None else data.test.sha256,
        }
    )
    return found
