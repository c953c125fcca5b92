"""Where a benchmark ran: processor, cores and versions."""

from collections.abc import Mapping
from typing import Any

from pipelines.provenance.run_record import processor, system, versions
from pipelines.system.processes import available_cores


def machine(packages: tuple[str, ...]) -> dict[str, Any]:
    """Return processor, cores and versions as plain JSON values.

    Args:
        packages: distributions whose versions count, besides Python's and ours.
    """
    return {
        "processor": processor(),
        "cores": available_cores(),
        "system": system(),
        "versions": versions(packages),
    }


def in_words(machine: Mapping[str, Any]) -> str:
    """Return what `machine` found as a line: processor, cores, system and versions."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    cores = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    return f"{machine['processor']}, {cores}, {machine['system']}; {versions}"
