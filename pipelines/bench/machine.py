"""Where a benchmark ran: processor, cores and versions."""

import platform
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
