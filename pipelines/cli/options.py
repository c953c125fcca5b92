"""Options and error handling that commands share; nothing heavy is imported here."""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from pipelines import __version__
from pipelines.errors import PipelineError
from pipelines.system.progress import progress_bar as progress_bar

Command = TypeVar("Command", bound=Callable[..., Any])

SMALLEST_SIDE, LARGEST_SIDE = 16, 16384
"""Pixels. Smaller images have no structure left to measure; WebP allows no larger ones."""


# As in report.set_report, which would take seconds to import for the help; a test holds them equal.
SHEET_IMAGES = 64
"""On a contact sheet."""


class Size(click.ParamType[tuple[int, int]]):
    """An image size, "256" or "WIDTHxHEIGHT", as (height, width)."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Read the text of an option."""
        match = re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?", str(value))
        if match is None:
            self.fail(f"invalid size {value!r}; use pixels as 256 or WIDTHxHEIGHT", param, ctx)
        width, height = int(match[1]), int(match[2] or match[1])
        for side in (width, height):
            if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
                self.fail(
                    f"a side of {side} pixels; use {SMALLEST_SIDE} to {LARGEST_SIDE}", param, ctx
                )
        return height, width


class Place(click.ParamType["Path | str"]):
    """A folder (files: or a file) as a path, which exists if `exists`; or a URL as text."""

    name = "folder or URL"

    def __init__(self, *, files: bool = False, exists: bool = True) -> None:
        self._path = click.Path(exists=exists, file_okay=files, path_type=Path)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        """Return the value's name in the help."""
        return "PATH|URL"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | str:
        """Read the text of an option; whether a URL exists is checked later."""
        text = str(value)
        return text if "://" in text else Path(self._path.convert(text, param, ctx))


class LocalPath(click.Path):
    """A local file or folder; a URL is refused."""

    def __init__(self, *, exists: bool = False, file_okay: bool = True) -> None:
        super().__init__(exists=exists, file_okay=file_okay, path_type=Path)

    def convert(
        self,
        value: "str | os.PathLike[str]",
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> "str | bytes | os.PathLike[str]":
        """Read the text of an option."""
        if "://" in str(value):
            self.fail(
                f"{str(value)!r} is a URL, which this command does not support; use a folder, and "
                "copy it from or to the URL (aws s3 sync, gsutil rsync, rclone)",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


class WeightsPath(click.Path):
    """A file of weights, or the folder of a run, of which the best or latest checkpoint is used.

    Which checkpoint of a folder is used is printed on stderr.
    """

    def __init__(self) -> None:
        super().__init__(exists=True, path_type=Path)

    def convert(
        self,
        value: "str | os.PathLike[str]",
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> "str | bytes | os.PathLike[str]":
        """Read the text of an option."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not path.is_dir():
            return path
        from pipelines.training.checkpoints import choose_checkpoint

        try:
            chosen = choose_checkpoint(path)
        except PipelineError as error:
            self.fail(str(error), param, ctx)
        if os.environ.get("RANK", "0") == "0":
            click.echo(f"{path}: using {chosen}", err=True)
        return chosen


_UNITS = {"": 1, **{letter: 1000**power for power, letter in enumerate("KMGT", 1)}}
_BINARY_UNITS = {f"{letter}I": 1024**power for power, letter in enumerate("KMGT", 1)}


class ByteSize(click.ParamType[int]):
    """A number of bytes, as "200GB", "1.5TB", "512MiB" or "1000000"."""

    name = "bytes"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        """Return the value's name in the help."""
        return "BYTES"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Read the text of an option."""
        match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([KMGT]I?)?B?", str(value).strip().upper())
        size = (
            0 if match is None else int(float(match[1]) * (_UNITS | _BINARY_UNITS)[match[2] or ""])
        )
        if size < 1:
            self.fail(f"invalid size {value!r}; use bytes as 200GB, 512MiB or 1000000", param, ctx)
        return size


def example(*lines: str) -> str:
    """Return the end of a command's help: lines to copy."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])


def command_options(command: Command) -> Command:
    """Add --json and --version."""
    command = click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document on stdout."
    )(command)
    return click.version_option(__version__, package_name="pixmix", message="%(version)s")(command)


def seed_option(text: str) -> Callable[[Command], Command]:
    """Return the option --seed; text: its help."""
    return click.option(
        "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help=text
    )


def jobs_option(command: Command) -> Command:
    """Add --jobs."""
    return click.option(
        "--jobs",
        type=click.IntRange(1),
        help="Number of processes, one thread each.  [default: all cores]",
    )(command)


def task_options(command: Command) -> Command:
    """Add --task-index and --num-tasks; see `chosen_task`."""
    command = click.option(
        "--num-tasks",
        type=click.IntRange(1),
        help="Number of tasks that share the work, as in an array job; 1 for all of it.  "
        "[default: by Slurm, torchrun or mpirun, or 1]",
    )(command)
    return click.option(
        "--task-index",
        type=click.IntRange(0),
        help="Index of this task.  [default: by Slurm, Kubernetes, torchrun or mpirun, or 0]",
    )(command)


def chosen_task(task_index: int | None, num_tasks: int | None) -> tuple[int, int]:
    """Return the index of this task and the number of tasks, by the options or the environment.

    num_tasks 1 overrides the environment. A task of the environment is reported on stderr.

    Raises:
        click.UsageError: if the options contradict each other.
        PipelineError: if the environment contradicts itself.
    """
    if task_index is not None:
        if num_tasks is None:
            raise click.UsageError(f"--task-index {task_index} needs --num-tasks; set both")
        if task_index >= num_tasks:
            raise click.BadParameter(
                f"{task_index} is not below --num-tasks {num_tasks}; use 0 to {num_tasks - 1}",
                param_hint="'--task-index'",
            )
        return task_index, num_tasks
    if num_tasks == 1:
        return 0, 1
    from pipelines.system.ranks import find_task

    try:
        task = find_task(num_tasks)
    except ValueError as error:
        raise PipelineError(str(error)) from error
    if task is None:
        if num_tasks is not None:
            raise click.UsageError(
                f"--num-tasks {num_tasks} without --task-index, and no batch system sets it; use "
                f"--task-index 0 to {num_tasks - 1}"
            )
        return 0, 1
    if task.count > 1:
        click.echo(
            f"task {task.index} of {task.count}, from {' and '.join(task.variables)}; use "
            "--num-tasks 1 to do all work in this task",
            err=True,
        )
    return task.index, task.count


def say(text: str, document: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a command's result on stdout: the text, or the JSON document, null for NaN.

    Characters that the terminal's encoding lacks are escaped: names of files may have any bytes.
    """
    if as_json:
        click.echo(json.dumps(_for_json(document), indent=2, allow_nan=False))
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding))


def _for_json(value: Any) -> Any:  # noqa: ANN401
    """Return a document without NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _for_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def report_ignored(folder: Path) -> None:
    """Print in one line on stderr which images below a folder are ignored, if any."""
    from pipelines.shards.images import IMAGE_EXTENSIONS, skipped_files

    extensions, ignored = skipped_files(folder)
    lines = []
    if extensions:
        counts = ", ".join(f"{n:,} .{extension}" for extension, n in extensions.items())
        taken = " ".join(f".{extension}" for extension in IMAGE_EXTENSIONS)
        lines.append(f"ignored {counts}; only {taken} are used")
    if ignored:
        n = len(ignored)
        files = "file or folder" if n == 1 else "files and folders"
        lines.append(f"ignored {n:,} hidden {files} ({Path(min(ignored)).relative_to(folder)})")
    if lines:
        click.echo(f"{folder}: {'; '.join(lines)}", err=True)


_OPTIONAL = ("torch", "torchvision", "safetensors", "webdataset")
"""Dependencies that an installation by `--no-deps` may lack, see docs/how-to.md."""


class _Interrupted(click.ClickException):
    """Ends the command with one line and the exit code of Ctrl-C, 128 + SIGINT."""

    exit_code = 130


@contextmanager
def one_line_errors(interrupted: str) -> Iterator[None]:
    """Turn errors of data and disk into one line and exit code 1, Ctrl-C into one and 130.

    Args:
        interrupted: the line after Ctrl-C.
    """
    try:
        yield
    except PipelineError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise click.ClickException(f"{where}{error.strerror or error}") from error
    except ModuleNotFoundError as error:
        if error.name not in _OPTIONAL:
            raise
        raise click.ClickException(
            f"this command needs {error.name}, which is not installed; run pip install pixmix"
        ) from error
    except KeyboardInterrupt as error:
        raise _Interrupted(interrupted) from error


NumberOrNone = TypeVar("NumberOrNone", float, float | None)


def finite(context: click.Context, param: click.Parameter, value: NumberOrNone) -> NumberOrNone:
    """Refuse NaN and infinity, which click's ranges allow; a click callback.

    Raises:
        click.BadParameter: if the value is not finite.
    """
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(
            f"{value} is not finite; use a finite number", ctx=context, param=param
        )
    return value


_EXTENSIONS = {
    "png": (".png", ".jpg", ".webp", ".jpeg"),
    "csv": (".csv",),
    "html": (".html", ".htm"),
}


def file_option(
    *names: str, metavar: str, text: str, required: bool = False
) -> Callable[[Command], Command]:
    """Return an option for a file to write; its extension is checked by that of the metavar."""
    extensions = _EXTENSIONS[metavar.rpartition(".")[2]]

    def check(context: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
        if value is not None and value.suffix.lower() not in extensions:
            accepted = " or ".join(extensions[:3])
            raise click.BadParameter(f"{value} must end in {accepted}", ctx=context, param=param)
        return value

    return click.option(
        *names,
        type=click.Path(dir_okay=False, path_type=Path),
        callback=check,
        metavar=metavar,
        required=required,
        help=text,
    )


def html_option(command: Command) -> Command:
    """Add --html."""
    return file_option(
        "--html",
        metavar="REPORT.html",
        text="Also write the report as one self-contained HTML file.",
    )(command)
