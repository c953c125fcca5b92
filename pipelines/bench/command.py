"""Watches a command: how long it ran, when its first file appeared, how much memory it took.

Run as a program of its own, so that what it sees is not mixed with other children of the benchmark:

    python -m pipelines.bench.command FOLDER PATTERN COMMAND...

prints one line of JSON; FOLDER is where the first file that fits PATTERN is looked for.
"""

import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile

from pipelines.errors import PipelineError
from pipelines.system.processes import PYTHON_MODULE, child, child_environment

_POLL_SECONDS = 0.01


@dataclass(frozen=True, kw_only=True)
class Run:
    """What was seen of a command.

    seconds: from start to end; first_file_seconds: to the first file, None if none came;
    peak_bytes: resident memory of its largest process; code: how it ended; message: its last line
    on stderr.
    """

    seconds: float
    first_file_seconds: float | None
    peak_bytes: int
    code: int
    message: str


def watch(folder: Path, pattern: str, command: list[str]) -> Run:
    """Run a command here and watch it; `peak_bytes` counts every child of this process."""
    begin = time.perf_counter()
    first = None
    # A file, for nobody reads a pipe meanwhile, and a full one would stop the command.
    with TemporaryFile("w+") as errors:
        with child(command, stdout=subprocess.DEVNULL, stderr=errors) as process:
            while process.poll() is None:
                if first is None and any(folder.glob(pattern)):
                    first = time.perf_counter() - begin
                time.sleep(_POLL_SECONDS)
            seconds = time.perf_counter() - begin
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if first is None and any(folder.glob(pattern)):
        first = seconds
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return Run(
        seconds=seconds,
        first_file_seconds=first,
        # Linux counts in KiB, macOS in bytes.
        peak_bytes=peak if sys.platform == "darwin" else peak * 1024,
        code=process.returncode,
        message=said[-1] if said else "",
    )


def run_command(folder: Path, pattern: str, module: str, arguments: list[str]) -> Run:
    """Run `python -m module arguments` under the watch of a process of its own.

    Args:
        folder: where files are expected; it need not be there yet.
        pattern: of the file's name, as for `Path.glob`.
        module: one of this project.
        arguments: of its command line.

    Raises:
        PipelineError: if the command ends with anything but 0.
    """
    watcher = [*PYTHON_MODULE, __name__, str(folder), pattern, *PYTHON_MODULE, module, *arguments]
    environment = child_environment()
    with child(watcher, env=environment, stdout=subprocess.PIPE, text=True) as process:
        seen, _ = process.communicate()
    run = Run(**json.loads(seen))
    if run.code != 0:
        raise PipelineError(f"{module} ended with {run.code}: {run.message}")
    return run


def main() -> None:
    """Watch the command of the command line."""
    try:
        run = watch(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
    except KeyboardInterrupt:
        # Whoever started this was interrupted too, and tells it.
        sys.exit(130)
    sys.stdout.write(json.dumps(asdict(run)))


if __name__ == "__main__":
    main()
