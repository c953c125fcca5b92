"""Record how a run was made in run.json: its settings, sessions, code, versions and machine.

The file is written atomically when a session starts and when it ends. The status of a killed
session stays "running" until the next session starts, which changes it to "lost".
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
"""Distributions whose versions are recorded besides those of Python and pixmix."""

_GIT_TIMEOUT_S = 5.0
_GIT = (
    "git",
    "--no-optional-locks",
    *("-c", "core.fsmonitor=false"),
    *("-c", f"core.hooksPath={os.devnull}"),
)
"""Git without index updates, and without programs that the repository configures, except for
filters: see `_without_filters`."""

_GIT_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
    # In a partial clone, fetching missing objects would start other programs.
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",
}

RUN_RECORD = "run.json"
DAMAGED = "run.damaged.json"

Status = Literal["running", "finished", "stopped", "failed", "lost"]

_MAX_BYTES = 2**26

_NO_RECORD = (errno.EINVAL, errno.EFBIG, errno.ENXIO, errno.ELOOP)
"""Errors of reading a file that is too large or not a regular file, and so not our record."""

log = logging.getLogger(__name__)


class Git(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the working folder's repository.

    Attributes:
        commit: hexadecimal name of the commit that is checked out.
        dirty: whether tracked files differ from the commit, without the filters in the
            repository's config; None if git fails or takes too long.
    """

    commit: str
    dirty: bool | None


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """The machine of rank 0. world_size: number of processes on all machines."""

    cpu: str
    cores: int
    gpus: tuple[str, ...]
    system: str
    world_size: int


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What results depend on besides their settings.

    Attributes:
        command: the command line, without secrets.
        versions: versions of packages, by name.
        git: state of the working folder; None outside a repository or without git.
        hardware: machine of rank 0.
    """

    command: str
    versions: dict[str, str]
    git: Git | None
    hardware: Hardware


class DataFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A dataset. sha256: hash of its manifest, and of the names of its shards if some are used."""

    name: str
    location: str
    samples: Count
    sha256: str


class MixingFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A mixing set. fingerprint: hash of its images; locations: paths and URLs as passed."""

    locations: tuple[str, ...]
    fingerprint: str


class WeightsFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The weights from which a training is initialized.

    Attributes:
        location: a file; or the name of published weights, such as
            "torchvision resnet50 IMAGENET1K_V1"; or "unknown" if a resumed run had lost its
            run.json.
        sha256: hash of the file; None for other weights.
    """

    location: str
    sha256: str | None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a run, which are the same in all its sessions.

    Attributes:
        recipe: all settings of the training recipe, by name.
        data: datasets by their use: train, validation, test.
        mixing_set: None without a mixing set.
        weights: the initial weights; None for random initialization.
    """

    recipe: dict[str, Any]
    data: dict[str, DataFacts]
    mixing_set: MixingFacts | None
    weights: WeightsFacts | None


Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class Session(msgspec.Struct, kw_only=True):
    """One start of the training command.

    Attributes:
        status: "lost" if the process was killed or the machine failed.
        command: the command line, without secrets.
        started: time in UTC, ISO 8601.
        seconds: duration; None until the session ends.
        first_step, last_step: number of finished steps at the start and at the end.
        error: first line of the error message; None unless the session failed.
        versions, git, hardware: see `Provenance`.
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
    """The content of run.json.

    Attributes:
        id: 12 random hexadecimal digits, which identify the run.
        status: status of the latest session.
        seconds: total duration of all sessions.
        settings: settings of the run.
        sessions: sessions in order, the latest last.
    """

    version: Literal[1]
    id: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{12}\Z")]
    status: Status
    seconds: Seconds
    settings: Settings
    sessions: Annotated[list[Session], msgspec.Meta(min_length=1)]


@dataclass
class SessionState:
    """The progress of a session, which the session keeps up to date.

    Attributes:
        step: number of finished steps.
        finished: whether the run is finished.
        end_now: writes the outcome at once, for a process that exits without leaving the block.
    """

    step: int
    finished: bool = False
    end_now: Callable[[], None] = lambda: None


@contextmanager
def recorded(
    out: Path, settings: Settings, state: SessionState, *, world_size: int
) -> Iterator[None]:
    """Record the block as a session in OUT/run.json: first as "running", then with its outcome.

    Earlier sessions in the file are kept. A damaged run.json is renamed, with a warning.

    Args:
        out: folder of the run, which exists.
        settings: settings of the run.
        state: progress of the session, which starts at the steps of earlier sessions.
        world_size: number of processes of the run.

    Raises:
        OSError: if the file cannot be written, or an earlier one cannot be read.
    """
    started = time.monotonic()
    facts = provenance(world_size=world_size)
    session = Session(
        status="running",
        command=facts.command,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=None,
        first_step=state.step,
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
        session.seconds, session.last_step = round(time.monotonic() - started, 3), state.step
        _write(out, run_id, settings, sessions)

    def end_now() -> None:
        end("finished" if state.finished else "stopped")

    state.end_now = end_now
    try:
        yield
    except BaseException as error:
        # Report what ended the run, even if the disk is full.
        with suppress(OSError):
            if isinstance(error, KeyboardInterrupt | SystemExit):
                end("stopped")
            else:
                end("failed", (str(error) or type(error).__name__).splitlines()[0])
        raise
    end_now()


def read_run_record(folder: Path) -> RunRecord | None:
    """Return the content of a folder's run.json; None without one.

    Raises:
        PipelineError: if the file is damaged.
        OSError: if it cannot be read, or is not a regular file.
    """
    path = folder / RUN_RECORD
    try:
        content = read_regular(path, max_bytes=_MAX_BYTES)
    except FileNotFoundError:
        return None
    remedy = "remove it, or resume the training, which writes another"
    return read_json(content, RunRecord, str(path), remedy)


def _earlier(out: Path) -> tuple[str, list[Session]]:
    """Return the id and the sessions of a run. All have ended: the caller holds the run's lock."""
    try:
        record = read_run_record(out)
    except (PipelineError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_RECORD:
            # The file may be intact; an error of reading it now must not lose it.
            raise
        (out / RUN_RECORD).replace(out / DAMAGED)
        log.warning("%s; renamed it to %s and started a new record", error, out / DAMAGED)
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
    """Return a document without secrets and with valid UTF-8."""
    if isinstance(document, Mapping):
        return {printable(name): _plain(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [_plain(each) for each in document]
    return printable(masked_values(document)) if isinstance(document, str) else document


# --- Code, versions and machine ------------------------------------------------------------------


def provenance(*, world_size: int = 1) -> Provenance:
    """Return the provenance of this process's results."""
    return Provenance(
        command=command_line(),
        versions=versions(),
        git=git_state(Path.cwd()),
        hardware=hardware(world_size),
    )


def command_line() -> str:
    """Return this process's command line as one would type it in a shell, without secrets."""
    # __spec__ is set for `python -m MODULE` but not for a script.
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    start = ["python", "-m", module.name] if module else [Path(sys.argv[0]).name or "python"]
    return printable(shlex.join([*start, *masked_arguments(sys.argv[1:])]))


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python, of installed packages and of pixmix, by name.

    Args:
        packages: names of distributions; those that are not installed are omitted.
    """
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "pixmix": __version__}


def hardware(world_size: int = 1) -> Hardware:
    """Return the CPU, cores and GPUs of this machine, but not its name."""
    return Hardware(
        cpu=processor(),
        cores=available_cores(),
        gpus=_gpus(),
        system=system(),
        world_size=world_size,
    )


def processor() -> str:
    """Return the CPU model, as the operating system reports it."""
    description = Path("/proc/cpuinfo")
    if description.exists():
        for line in description.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def system() -> str:
    """Return the operating system and architecture, such as "Linux x86_64"."""
    return f"{platform.system()} {platform.machine()}"


def _gpus() -> tuple[str, ...]:
    """Return the names of the GPUs that this process sees."""
    import torch

    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def git_state(folder: Path) -> Git | None:
    """Return the commit of a folder's repository, and whether tracked files differ from it.

    Args:
        folder: a folder inside the repository.

    Returns:
        None if git is not installed or times out, or the folder is not in a repository.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return None
    return Git(commit=commit, dirty=_is_dirty(folder))


def _is_dirty(folder: Path) -> bool | None:
    options = _without_filters(folder)
    if options is None:
        return None
    # In a submodule, git would start another git, which obeys the submodule's config.
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
    """Return options that disable the filters in git's config; None if that is not possible.

    A filter is a command in .git/config through which git reads a changed file.
    """
    # git config fails if no name matches, so the first option adds a filter that always does.
    listed = _git(
        folder,
        *("-c", "filter.none.clean="),
        *("config", "--null", "--name-only", "--get-regexp", r"^filter\."),
    )
    if listed is None:
        return None
    filters = {name.rpartition(".")[0] for name in listed.split("\0")} - {"", "filter"}
    if any("=" in name or "\ufffd" in name for name in filters):
        # Option -c ends its name at the first "=", and "\ufffd" marks a name that is not UTF-8.
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
