"""Options and endings that commands share; nothing heavy is imported here."""

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
"""Pixels. Below, a picture has no structure left to measure; above, WebP has no such picture."""


# As in report.set_report, which would take seconds to import for the help; a test holds them equal.
SHEET_PICTURES = 64
"""Of a contact sheet."""


class Size(click.ParamType[tuple[int, int]]):
    """A picture's size, "256" or "WIDTHxHEIGHT", as (height, width)."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Read the text of an option."""
        match = re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?", str(value))
        if match is None:
            self.fail(f"{value!r} is no size; give pixels as 256 or WIDTHxHEIGHT", param, ctx)
        width, height = int(match[1]), int(match[2] or match[1])
        for side in (width, height):
            if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
                self.fail(
                    f"a side of {side} pixels; give {SMALLEST_SIDE} to {LARGEST_SIDE}", param, ctx
                )
        return height, width


class Place(click.ParamType["Path | str"]):
    """A folder (files: or a file) as a path; or an address of http, https, s3 or gs as text."""

    name = "folder or address"

    def __init__(self, *, files: bool = False) -> None:
        self._path = click.Path(exists=True, file_okay=files, path_type=Path)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        """Return what the help says of the value."""
        return "PATH|URL"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | str:
        """Read the text of an option; whether there is something at an address is seen later."""
        text = str(value)
        return text if "://" in text else Path(self._path.convert(text, param, ctx))


class LocalPath(click.Path):
    """A file or folder of this machine, as click.Path has it; an address is refused."""

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
                f"{str(value)!r} is an address, which this command neither reads nor writes; name "
                "a folder, and copy it from there or to there (aws s3 sync, gsutil rsync, rclone); "
                "pixmix-gen --to-shards and pixmix-train --data know addresses",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


class WeightsPath(click.Path):
    """A file of weights, or the folder of a run, which stands for its best or newest checkpoint.

    Which one is taken of a folder is told in one line on stderr.
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
        from pipelines.training.run_checkpoints import checkpoint_of

        try:
            chosen = checkpoint_of(path)
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
        """Return what the help says of the value."""
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
            self.fail(f"{value!r} is no size; give bytes as 200GB, 512MiB or 1000000", param, ctx)
        return size


def example(*lines: str) -> str:
    """Return the end of a command's help: lines to copy."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])


def command_options(command: Command) -> Command:
    """Add what every command has: --json and --version."""
    command = click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document on stdout."
    )(command)
    return click.version_option(__version__, package_name="pixmix", message="%(version)s")(command)


def seed_option(text: str) -> Callable[[Command], Command]:
    """Return the option --seed; text: what is drawn by it."""
    return click.option(
        "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help=text
    )


def jobs_option(command: Command) -> Command:
    """Add --jobs."""
    return click.option(
        "--jobs",
        type=click.IntRange(1),
        help="Processes, one thread each.  [default: all cores]",
    )(command)


def task_options(command: Command) -> Command:
    """Add --task-index and --num-tasks; see `chosen_task`."""
    command = click.option(
        "--num-tasks",
        type=click.IntRange(1),
        help="Runs that share the work, as in an array job; 1 makes all in this one.  "
        "[default: by Slurm, torchrun or mpirun, or 1]",
    )(command)
    return click.option(
        "--task-index",
        type=click.IntRange(0),
        help="Which of them this is, from 0.  [default: by Slurm, Kubernetes, torchrun or mpirun, "
        "or 0]",
    )(command)


def chosen_task(task_index: int | None, num_tasks: int | None) -> tuple[int, int]:
    """Return which task this run is, and of how many: by the options, or by the environment.

    The only one, whatever the environment says, where num_tasks is 1.
    A task that was found in the environment is told in one line on stderr.

    Raises:
        click.UsageError: if the options do not make a task.
        PipelineError: if what the environment says makes none.
    """
    if task_index is not None:
        if num_tasks is None:
            raise click.UsageError(f"--task-index {task_index} of how many? Give --num-tasks too")
        if task_index >= num_tasks:
            raise click.BadParameter(
                f"{task_index} is not below --num-tasks {num_tasks}; give 0 to {num_tasks - 1}",
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
                f"--num-tasks {num_tasks}, and neither --task-index nor a batch system says which "
                f"of them this is; give --task-index 0 to {num_tasks - 1}"
            )
        return 0, 1
    if task.count > 1:
        click.echo(
            f"task {task.index} of {task.count}, by {' and '.join(task.by)}; for a set of its own "
            "give --num-tasks 1",
            err=True,
        )
    return task.index, task.count


def say(text: str, document: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a command's result on stdout: the text, or the JSON document, null for NaN.

    What the terminal's encoding lacks is printed as an escape: names of files may have any bytes.
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


def tell_passed_over(folder: Path) -> None:
    """Say in one line on stderr which pictures below a folder are not taken, if there are any."""
    from pipelines.shards.images import FOLDER_EXTENSIONS, passed_over

    found = passed_over(folder)
    told = []
    if found.extensions:
        counts = ", ".join(f"{n:,} .{extension}" for extension, n in found.extensions.items())
        taken = " ".join(f".{extension}" for extension in FOLDER_EXTENSIONS)
        told.append(f"passed over {counts}; only {taken} are taken")
    if found.ignored:
        n = len(found.ignored)
        files = "file or folder" if n == 1 else "files and folders"
        told.append(f"ignored {n:,} hidden {files} ({found.ignored[0].relative_to(folder)})")
    if told:
        click.echo(f"{folder}: {'; '.join(told)}", err=True)


class _Interrupted(click.ClickException):
    """Ends the command with one line and the exit code of Ctrl-C, 128 + SIGINT."""

    exit_code = 130


@contextmanager
def one_line_errors(interrupted: str) -> Iterator[None]:
    """Turn what the world refused into one line and exit code 1, Ctrl-C into one and 130.

    Args:
        interrupted: what to tell after Ctrl-C.
    """
    try:
        yield
    except PipelineError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise click.ClickException(f"{where}{error.strerror or error}") from error
    except KeyboardInterrupt as error:
        raise _Interrupted(interrupted) from error


NumberOrNone = TypeVar("NumberOrNone", float, float | None)


def finite(context: click.Context, param: click.Parameter, value: NumberOrNone) -> NumberOrNone:
    """Refuse NaN and infinity, which every range lets pass, and let None pass; a click callback.

    Raises:
        click.BadParameter: if the value is not finite.
    """
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no finite number", ctx=context, param=param)
    return value


def picture_path(context: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Refuse a file name to which no picture can be written; a click callback.

    Raises:
        click.BadParameter: if the extension is none of .png .jpg .jpeg .webp.
    """
    if value is not None and value.suffix.lower() not in {".png", ".jpg", ".jpeg", ".webp"}:
        raise click.BadParameter(
            f"{value} does not end in .png, .jpg or .webp", ctx=context, param=param
        )
    return value


def csv_path(context: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Refuse a file name that does not end in .csv; a click callback.

    Raises:
        click.BadParameter: if it does not.
    """
    if value is not None and value.suffix.lower() != ".csv":
        raise click.BadParameter(f"{value} does not end in .csv", ctx=context, param=param)
    return value


def _html_path(context: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix.lower() not in {".html", ".htm"}:
        raise click.BadParameter(f"{value} does not end in .html", ctx=context, param=param)
    return value


def html_option(command: Command) -> Command:
    """Add --html."""
    return click.option(
        "--html",
        type=click.Path(dir_okay=False, path_type=Path),
        callback=_html_path,
        metavar="REPORT.html",
        help="Also write all of it as one HTML file, which needs no other.",
    )(command)
