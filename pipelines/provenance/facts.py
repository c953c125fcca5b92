"""What results depend on besides their settings: the code, its versions and the machine."""

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import msgspec

from pipelines import __version__
from pipelines.system.masking import masked_arguments
from pipelines.shards.sources import printable
from pipelines.system.processes import available_cores

PACKAGES = ("torch", "torchvision", "numpy", "numba", "Pillow")
"""Distributions whose versions are recorded, besides Python's and ours."""

_GIT_TIMEOUT_S = 5.0
_GIT = (
    "git",
    "--no-optional-locks",
    *("-c", "core.fsmonitor=false"),
    *("-c", f"core.hooksPath={os.devnull}"),
)
"""It reads and writes nothing, and starts no program that the repository names, but for filters:
see `_without_filters`."""

_GIT_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
    # Of a partial clone: what it lacks is not fetched, by which programs would be started.
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",
}


class Git(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the working folder's repository.

    Attributes:
        commit: hexadecimal name of the commit that is checked out.
        dirty: whether tracked files differ from it, as they are without the filters that the
            repository's config names; None if git cannot tell, or not in time.
    """

    commit: str
    dirty: bool | None


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """The machine of the first process. world_size: processes, of all machines together."""

    cpu: str
    cores: int
    gpus: tuple[str, ...]
    system: str
    world_size: int


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What results depend on besides their settings.

    Attributes:
        command: that was typed, without secrets.
        versions: of packages by name.
        git: of the working folder; None outside a repository, or without git.
        hardware: of the first process.
    """

    command: str
    versions: dict[str, str]
    git: Git | None
    hardware: Hardware


def provenance(*, world_size: int = 1) -> Provenance:
    """Return where the results of this process come from."""
    return Provenance(
        command=command_line(),
        versions=versions(),
        git=git_state(Path.cwd()),
        hardware=hardware(world_size),
    )


def command_line() -> str:
    """Return the command that started this process as a shell takes it, without secrets."""
    # Set for `python -m MODULE`, and not for a script.
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    start = ["python", "-m", module.name] if module else [Path(sys.argv[0]).name or "python"]
    return printable(shlex.join([*start, *masked_arguments(sys.argv[1:])]))


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python, of installed packages and of pixmix, by name.

    Args:
        packages: names of distributions; those that are not installed are left out.
    """
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "pixmix": __version__}


def hardware(world_size: int = 1) -> Hardware:
    """Return processor, cores and GPUs of this machine; its name is not told."""
    return Hardware(
        cpu=processor(),
        cores=available_cores(),
        gpus=_gpus(),
        system=system(),
        world_size=world_size,
    )


def processor() -> str:
    """Return the CPU model, as the system calls it."""
    description = Path("/proc/cpuinfo")
    if description.exists():
        for line in description.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def system() -> str:
    """Return operating system and architecture, as "Linux x86_64"."""
    return f"{platform.system()} {platform.machine()}"


def _gpus() -> tuple[str, ...]:
    """Return the names of the GPUs that this process sees."""
    import torch

    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def git_state(folder: Path) -> Git | None:
    """Return the commit of a folder's repository, and whether its tracked files differ from it.

    Args:
        folder: inside the repository.

    Returns:
        None if git is not installed, does not answer, or the folder is in no repository.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return None
    return Git(commit=commit, dirty=_is_dirty(folder))


def _is_dirty(folder: Path) -> bool | None:
    options = _without_filters(folder)
    if options is None:
        return None
    # In a submodule, git would start another one, which obeys the config of that.
    changes = _git(
        folder,
        *options,
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--ignore-submodules=dirty",
    )
    return None if changes is None else bool(changes)


def _without_filters(folder: Path) -> list[str] | None:
    """Return options by which git runs no filter that its config names; None if there are none.

    A filter is a command, by which git reads a file that has changed; .git/config names it.
    """
    # It prints nothing, and fails, where no name matches: the first one always does.
    listed = _git(
        folder,
        *("-c", "filter.none.clean="),
        *("config", "--null", "--name-only", "--get-regexp", r"^filter\."),
    )
    if listed is None:
        return None
    filters = {name.rpartition(".")[0] for name in listed.split("\0")} - {"", "filter"}
    if any("=" in name or "\ufffd" in name for name in filters):
        # An option -c takes its name to end at the first of these; the other is no UTF-8.
        return None
    settings = ("clean=", "smudge=", "process=", "required=false")
    return [
        word for name in sorted(filters) for each in settings for word in ("-c", f"{name}.{each}")
    ]


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints; None if it fails."""
    try:
        done = subprocess.run(
            [*_GIT, *arguments],
            cwd=folder,
            env={**os.environ, **_GIT_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip()
