"""run.json: how a run was made, session by session; and the code, versions and machine of it.

The file is written whole when a session starts and when it ends. A killed session says "running"
until the next one starts, which then marks it "lost".
"""

import errno
import logging
import os
import platform
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from pipelines import __version__
from pipelines.errors import PipelineError
from pipelines.system.files import Count, printable, read_json, read_regular, write_file
from pipelines.system.masking import masked_arguments, masked_values
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


RUN_RECORD = "run.json"
DAMAGED = "run.damaged.json"

Status = Literal["running", "finished", "stopped", "failed", "lost"]

_MOST_BYTES = 2**26

_NO_RECORD = (errno.EINVAL, errno.EFBIG, errno.ENXIO, errno.ELOOP)
"""Errors of reading what is no regular file, or too large: no record of ours."""

log = logging.getLogger(__name__)


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


class DataFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A dataset. sha256: of its manifest, or of that and the names of the shards that are used."""

    name: str
    location: str
    samples: Count
    sha256: str


class MixingFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A mixing set. fingerprint: of its images; locations: as they were named."""

    locations: tuple[str, ...]
    fingerprint: str


class WeightsFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Weights that a training begins with.

    location: a file; the name of published weights, as "torchvision resnet50 IMAGENET1K_V1"; or
        "unknown" where the run.json of a run that was resumed had been lost.
    sha256: of the file; None without one.
    """

    location: str
    sha256: str | None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is, and what its results depend on: the same in all its sessions.

    Attributes:
        recipe: all numbers of the training, by name.
        data: datasets by their use: train, validation, test.
        mixing_set: None without one.
        weights: that the training begins with; None for random ones.
    """

    recipe: dict[str, Any]
    data: dict[str, DataFacts]
    mixing_set: MixingFacts | None
    weights: WeightsFacts | None


Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class Session(msgspec.Struct, kw_only=True):
    """One start of the command.

    Attributes:
        status: "lost" if it was killed, or its machine was.
        command: that was typed, without secrets.
        started: UTC, ISO 8601.
        seconds: how long it took; None until its end.
        first_step, last_step: steps that were done at its beginning and at its end.
        error: the one line that it ended with; None unless it failed.
        versions, git, hardware: see `provenance`.
    """

    status: Status
    command: str
    started: str
    seconds: Seconds | None
    first_step: Count
    last_step: Count | None
    error: str | None
    versions: dict[str, str]
    git: Git | None
    hardware: Hardware


class RunRecord(msgspec.Struct, kw_only=True):
    """All of run.json.

    Attributes:
        id: 12 random hexadecimal digits, which tell this run from others.
        status: of the newest session.
        seconds: of all sessions together.
        settings: of the run.
        sessions: the newest last.
    """

    version: Literal[1]
    id: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{12}\Z")]
    status: Status
    seconds: Seconds
    settings: Settings
    sessions: Annotated[list[Session], msgspec.Meta(min_length=1)]


@dataclass
class Ending:
    """How far a session has come, kept up to date by the session itself.

    Attributes:
        step: steps that are done.
        finished: whether all of them are.
        end_now: writes the outcome at once, for a process that ends without leaving the block.
    """

    step: int
    finished: bool = False
    end_now: Callable[[], None] = lambda: None


@contextmanager
def recorded(out: Path, settings: Settings, ending: Ending, *, world_size: int) -> Iterator[None]:
    """Keep OUT/run.json for the time of the block: at its begin "running", and its outcome after.

    Earlier sessions of the folder stay in it. A damaged run.json is renamed, and said in the log.

    Args:
        out: the run's folder, which exists.
        settings: of the run.
        ending: at the steps that were done before; the block keeps it up to date.
        world_size: processes of the run.

    Raises:
        OSError: if the file cannot be written, or an earlier one cannot be read.
    """
    begun = time.monotonic()
    facts = provenance(world_size=world_size)
    session = Session(
        status="running",
        command=facts.command,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=None,
        first_step=ending.step,
        last_step=None,
        error=None,
        versions=facts.versions,
        git=facts.git,
        hardware=facts.hardware,
    )
    run_id, sessions = _earlier(out)
    sessions.append(session)
    _write(out, run_id, settings, sessions)

    def end(status: Status, error: str | None = None) -> None:
        session.status, session.error = status, error
        session.seconds, session.last_step = round(time.monotonic() - begun, 3), ending.step
        _write(out, run_id, settings, sessions)

    def end_now() -> None:
        end("finished" if ending.finished else "stopped")

    ending.end_now = end_now
    try:
        yield
    except BaseException as error:
        # What ended the run is what is told, also where the disk is full.
        with suppress(OSError):
            if isinstance(error, KeyboardInterrupt | SystemExit):
                end("stopped")
            else:
                end("failed", (str(error) or type(error).__name__).splitlines()[0])
        raise
    end_now()


def read_run_record(folder: Path) -> RunRecord | None:
    """Return what run.json of a folder says; None if it has none.

    Raises:
        PipelineError: if it is damaged.
        OSError: if it cannot be read, or is not a regular file.
    """
    path = folder / RUN_RECORD
    try:
        content = read_regular(path, max_bytes=_MOST_BYTES)
    except FileNotFoundError:
        return None
    remedy = "remove it, or resume the training, which writes another"
    return read_json(content, RunRecord, str(path), remedy)


def _earlier(out: Path) -> tuple[str, list[Session]]:
    """Return id and sessions of a run, which have all ended: the caller holds its lock."""
    try:
        record = read_run_record(out)
    except (PipelineError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_RECORD:
            # It may be whole, and is not to be lost because it cannot be read now.
            raise
        (out / RUN_RECORD).replace(out / DAMAGED)
        log.warning("%s; it is now %s, and the history begins anew", error, out / DAMAGED)
        record = None
    if record is None:
        return secrets.token_hex(6), []
    for session in record.sessions:
        if session.status == "running":
            session.status = "lost"
    return record.id, record.sessions


def _write(out: Path, run_id: str, settings: Settings, sessions: list[Session]) -> None:
    seconds = sum(session.seconds or 0.0 for session in sessions)
    record = RunRecord(
        version=1,
        id=run_id,
        status=sessions[-1].status,
        seconds=round(seconds, 3),
        settings=settings,
        sessions=sessions,
    )
    content = msgspec.json.encode(_plain(msgspec.to_builtins(record)))
    write_file(out / RUN_RECORD, msgspec.json.format(content, indent=1) + b"\n")


def _plain(document: Any) -> Any:  # noqa: ANN401
    """Return a document without secrets, whose texts are UTF-8."""
    if isinstance(document, Mapping):
        return {printable(name): _plain(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [_plain(each) for each in document]
    return printable(masked_values(document)) if isinstance(document, str) else document


# --- Code, versions and machine ------------------------------------------------------------------


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
