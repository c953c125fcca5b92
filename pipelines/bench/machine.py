"""Where a benchmark ran: processor, cores and versions."""

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pipelines import __version__
from pipelines.shards.workers import available_cores


def processor() -> str:
    """Return the processor's model, as the system calls it."""
    description = Path("/proc/cpuinfo")
    if description.exists():
        for line in description.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def machine(packages: tuple[str, ...]) -> dict[str, Any]:
    """Return processor, cores and versions as plain JSON values.

    Args:
        packages: distributions whose versions count, besides Python's and ours.
    """
    return {
        "processor": processor(),
        "cores": available_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in packages},
            "pixmix": __version__,
        },
    }


def in_words(machine: Mapping[str, Any]) -> str:
    """Return what `machine` found as a line: processor, cores, system and versions."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    cores = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    return f"{machine['processor']}, {cores}, {machine['system']}; {versions}"
