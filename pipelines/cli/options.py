"""Types of options, options and error handling that commands share.

Nothing heavy is imported here, so that `--help` is fast.
"""

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

from pipelines.cli.help_pages import OUTPUT as OUTPUT
from pipelines.cli.help_pages import Decorated, option, version_option
from pipelines.errors import PipelineError
from pipelines.system.progress import progress_bar as progress_bar

SMALLEST_SIDE, LARGEST_SIDE = 16, 16384
"""Limits in pixels: smaller images have no structure to measure, and WebP has no larger ones."""

# A copy of report.sets.SHEET_IMAGES, whose import would take seconds; a test compares them.
SHEET_IMAGES = 64
"""Number of images on a contact sheet."""

DATA, MODEL, PARALLEL, ERRORS = "Data", "Model", "Parallel work", "Error handling"
REMOTE = "Remote shards"
"""Groups of options that several commands have."""


class Size(click.ParamType[tuple[int, int]]):
    """An image size: "256" or "WIDTHxHEIGHT" becomes (height, width)."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Convert the value of an option."""
        match = re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?", str(value))
        if match is None:
            self.fail(f"invalid size {value!r}; use pixels, as 256 or 640x480", param, ctx)
        width, height = int(match[1]), int(match[2] or match[1])
        for side in (width, height):
            if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
                self.fail(
                    f"{value} has a side of {side} pixels; use {SMALLEST_SIDE} to {LARGEST_SIDE}",
                    param,
                    ctx,
                )
        return height, width


class PathOrUrl(click.ParamType["Path | str"]):
    """A local path, or a URL as text."""

    name = "path or URL"

    def __init__(self, *, files: bool = False, exists: bool = True) -> None:
        """Create the type.

        Args:
            files: whether a file is accepted, too, and not only a folder.
            exists: whether a local path must exist.
        """
        self._path = click.Path(exists=exists, file_okay=files, path_type=Path)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        """Return the name of the value in the help."""
        return "PATH|URL"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | str:
        """Convert the value of an option; whether a URL exists is checked later."""
        text = str(value)
        return text if "://" in text else Path(self._path.convert(text, param, ctx))


class LocalPath(click.Path):
    """A local file or folder; URLs are rejected with a remedy."""

    def __init__(self, *, exists: bool = False, file_okay: bool = True) -> None:
        super().__init__(exists=exists, file_okay=file_okay, path_type=Path)

    def convert(
        self,
        value: "str | os.PathLike[str]",
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> "str | bytes | os.PathLike[str]":
        """Convert the value of an option."""
        if "://" in str(value):
            self.fail(
                f"{str(value)!r} is a URL, which this command does not support; use a local path, "
                "and copy the data from or to the URL (aws s3 sync, gsutil rsync, rclone)",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


class WeightsPath(click.Path):
    """A weights file, or the output folder of pixmix-train.

    In a folder, the best or else the latest checkpoint is used, and named on stderr.
    """

    def __init__(self) -> None:
        super().__init__(exists=True, path_type=Path)

    def convert(
        self,
        value: "str | os.PathLike[str]",
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> "str | bytes | os.PathLike[str]":
        """Convert the value of an option."""
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
    """A number of bytes: "200GB", "1.5TB", "512MiB" or "1000000"."""

    name = "bytes"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        """Return the name of the value in the help."""
        return "BYTES"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Convert the value of an option."""
        match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([KMGT]I?)?B?", str(value).strip().upper())
        size = (
            0 if match is None else int(float(match[1]) * (_UNITS | _BINARY_UNITS)[match[2] or ""])
        )
        if size < 1:
            self.fail(f"invalid size {value!r}; use bytes as 200GB, 512MiB or 1000000", param, ctx)
        return size


def in_order(*options: Callable[[Any], Any]) -> Callable[[Decorated], Decorated]:
    """Return the decorator that adds options, which the help shows in this order."""

    def decorate(command: Decorated) -> Decorated:
        # The option that is added last is shown first.
        for each in reversed(options):
            command = each(command)
        return command

    return decorate


def command_options(command: Decorated) -> Decorated:
    """Add --json and --version."""
    command = option(
        "--json",
        "as_json",
        group=OUTPUT,
        is_flag=True,
        help="Print the result as JSON on stdout.",
    )(command)
    return version_option(command)


def seed_option(text: str, **attributes: Any) -> Callable[[Decorated], Decorated]:  # noqa: ANN401
    """Return the option --seed with a help text."""
    return option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, help=text, **attributes)


def device_option(text: str, **attributes: Any) -> Callable[[Decorated], Decorated]:  # noqa: ANN401
    """Return the option --device with a help text."""
    return option("--device", metavar="NAME", default="auto", help=text, **attributes)


def jobs_option(command: Decorated) -> Decorated:
    """Add --jobs."""
    return option(
        "--jobs",
        group=PARALLEL,
        type=click.IntRange(1),
        show_default="all cores",
        help="Number of single-threaded processes.",
    )(command)


def mixing_set_options(
    types: click.ParamType[Any], accepted: str
) -> tuple[Callable[[Decorated], Decorated], ...]:
    """Return --mixing-set and --no-mixing-set.

    Args:
        types: the type of a mixing set's path.
        accepted: what such a path may be, for the help.
    """
    return (
        option(
            "--mixing-set",
            "mixing_sets",
            group=DATA,
            type=types,
            multiple=True,
            help=f"Mixing images: {accepted}. May be repeated.",
        ),
        option(
            "--no-mixing-set",
            group=DATA,
            is_flag=True,
            help="Mix only with augmented copies of the same image. PixMix needs this option or "
            "--mixing-set.",
        ),
    )


def pixmix_options(
    defaults: Mapping[str, float], *, most_rounds: int, common: bool
) -> tuple[Callable[[Decorated], Decorated], ...]:
    """Return --k, --beta, --severity and --all-ops.

    An option that is not passed is None, which stands for the default.

    Args:
        defaults: defaults of k, beta and severity.
        most_rounds: the largest k.
        common: see `help_pages.Option`.
    """

    def number(
        name: str, type: click.ParamType[Any], text: str
    ) -> Callable[[Decorated], Decorated]:
        return option(
            f"--{name}", group="PixMix", common=common, type=type, callback=finite,
            show_default=f"{defaults[name]:g}", help=text,
        )  # fmt: skip

    return (
        number("k", click.IntRange(0, most_rounds), "Maximum number of mixing rounds."),
        number(
            "beta",
            click.FloatRange(1e-3),
            "Concentration of the mixing weights: a larger value keeps more of the image.",
        ),
        number(
            "severity",
            click.FloatRange(0.1, 10),
            "Severity of the augmentation operations, from 0.1 to 10.",
        ),
        option(
            "--all-ops",
            group="PixMix",
            common=common,
            is_flag=True,
            help="Also use color, contrast, brightness and sharpness, which overlap corruptions of "
            "ImageNet-C. The authors' training commands pass this option; it is off by default in "
            "their script, as here.",
        ),
    )


def task_options(command: Decorated) -> Decorated:
    """Add --task-index and --num-tasks; see `chosen_task`."""
    command = option(
        "--num-tasks",
        group=PARALLEL,
        common=False,
        type=click.IntRange(1),
        show_default="from Slurm, torchrun or mpirun, or 1; required under Kubernetes",
        help="Number of tasks that share the work, as in an array job. Use 1 to do all of it in "
        "this task.",
    )(command)
    return option(
        "--task-index",
        group=PARALLEL,
        common=False,
        type=click.IntRange(0),
        show_default="from Slurm, Kubernetes, torchrun or mpirun, or 0",
        help="Index of this task, from 0.",
    )(command)


def chosen_task(task_index: int | None, num_tasks: int | None) -> tuple[int, int]:
    """Return the index of this task and the number of tasks.

    Options override the environment, and so does `num_tasks` 1 alone. A task that is found in the
    environment is reported on stderr.

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
                f"--num-tasks {num_tasks} needs --task-index, because no batch system sets the "
                f"index; use --task-index 0 to {num_tasks - 1}"
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
    """Print the result of a command on stdout, as text or as a JSON document.

    NaN and infinity become null in JSON. Characters that the encoding of the terminal lacks are
    escaped, because file names may contain any bytes.
    """
    if as_json:
        click.echo(json.dumps(_for_json(document), indent=2, allow_nan=False))
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding))


def _for_json(value: Any) -> Any:  # noqa: ANN401
    """Return a document with None for NaN and infinity, which JSON does not support."""
    if isinstance(value, Mapping):
        return {name: _for_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def report_ignored(folder: Path) -> None:
    """Print one line on stderr about files below a folder that are ignored, if there are any."""
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
"""Dependencies that are missing after `pip install --no-deps`, see docs/how-to.md."""


class _Interrupted(click.ClickException):
    """Ends a command with one line and the exit code of Ctrl-C, 128 + SIGINT."""

    exit_code = 130


@contextmanager
def one_line_errors(interrupted: str) -> Iterator[None]:
    """Turn errors of data and disk into one line and exit code 1, and Ctrl-C into exit code 130.

    Args:
        interrupted: the line that is printed after Ctrl-C.
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
    """Reject NaN and infinity, which click's ranges allow; a callback of an option.

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
    *names: str,
    metavar: str,
    text: str,
    **attributes: Any,  # noqa: ANN401
) -> Callable[[Decorated], Decorated]:
    """Return an option for an output file, which must have the extension of its metavar.

    Args:
        names: names of the option.
        metavar: name of the file in the help, such as "SHEET.png".
        text: the help.
        attributes: see `help_pages.Option`.
    """
    extensions = _EXTENSIONS[metavar.rpartition(".")[2]]

    def check(context: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
        if value is not None and value.suffix.lower() not in extensions:
            accepted = " or ".join(extensions[:3])
            raise click.BadParameter(f"{value} must end in {accepted}", ctx=context, param=param)
        return value

    return option(
        *names,
        group=OUTPUT,
        type=click.Path(dir_okay=False, path_type=Path),
        callback=check,
        metavar=metavar,
        help=text,
        **attributes,
    )


def html_option(command: Decorated) -> Decorated:
    """Add --html."""
    return file_option(
        "--html",
        metavar="REPORT.html",
        text="Write a report to this self-contained HTML file.",
    )(command)


# --- Remote shards -------------------------------------------------------------------------------

CACHE_OPTIONS = (
    option(
        "--cache-dir",
        group=REMOTE,
        common=False,
        type=click.Path(path_type=Path, file_okay=False),
        show_default="$PIXMIX_CACHE, $XDG_CACHE_HOME/pixmix or ~/.cache/pixmix",
        help="Cache folder of this node for shards and decoded images. Use a disk of the node, not "
        "a shared one.",
    ),
    option(
        "--cache-limit",
        group=REMOTE,
        common=False,
        type=ByteSize(),
        show_default="free disk space",
        help="Size limit of the shards in the cache, such as 200GB. Without it, the cache may "
        "grow to the whole dataset.",
    ),
)
"""The options --cache-dir and --cache-limit."""


def download_timeout_option(command: Decorated) -> Decorated:
    """Add --download-timeout."""
    return option(
        "--download-timeout",
        group=REMOTE,
        common=False,
        type=click.FloatRange(0, min_open=True),
        callback=finite,
        metavar="SECONDS",
        default=600.0,
        help="Abort after this many seconds without new data from the server.",
    )(command)
