"""The help of all commands: groups of options, hints for unknown options, and a page of it all.

`--help` describes the options that most people use and names the others by group; `--help-all`
describes all of them. The page is written by

    python -m pipelines.cli.help_pages docs/commands.md
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click

from pipelines import __version__
from pixmix.commands import MODULES

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_WIDTH = 78
"""Width of the page in characters, as click uses in a terminal of 80 columns."""

OUTPUT = "Output"
"""Group of the options for results."""

_HELP = "Help"
"""Group of the options that show something and exit."""

_LAST_GROUPS = {OUTPUT: 1, _HELP: 2}
"""Groups that are shown after the others, in this order."""

_WIDEST_NAME = 24
"""Maximum characters of an option's name and value beside its text; longer ones are above it."""

_LONGEST_RANGE = 20
"""Maximum characters of a range in the help; longer ones, such as that of a seed, are omitted."""

_ALL = "pixmix.help_all"
"""Key of `click.Context.meta`: whether all options are described."""

_GROUPED_FROM = 10
"""Number of options from which a command shows them in groups, which make its help longer."""


class Option(click.Option):
    """An option that belongs to a group in the help of its command."""

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401
        group: str = "Options",
        common: bool = True,
        **attributes: Any,  # noqa: ANN401
    ) -> None:
        """Create the option.

        Args:
            arguments: see `click.Option`.
            group: title of its group.
            common: whether `--help` describes it; otherwise only `--help-all` does.
            attributes: see `click.Option`. A text as `show_default` is shown without parentheses.
        """
        super().__init__(*arguments, **attributes)
        self.group = group
        self.common = common

    def make_metavar(self, ctx: click.Context) -> str:
        """Return the name of the value in the help, short enough to leave space for the text."""
        shown = super().make_metavar(ctx)
        return re.sub("INTEGER( RANGE)?", "INT", shown).replace("FLOAT RANGE", "FLOAT")

    def get_help_extra(self, ctx: click.Context) -> click.types.OptionHelpExtra:
        """Return what is in brackets after the text; the range only with `--help-all`."""
        extra = super().get_help_extra(ctx)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default
        if not ctx.meta.get(_ALL) or len(extra.get("range", "")) > _LONGEST_RANGE:
            extra.pop("range", None)
        return extra


def option(*names: str, **attributes: Any) -> Callable[[Decorated], Decorated]:  # noqa: ANN401
    """Return the decorator that adds an `Option`."""
    return click.option(*names, cls=Option, **attributes)


def _show_all(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help())
        ctx.exit()


def _help_all_option(*, hidden: bool) -> click.Option:
    return click.Option(
        ["--help-all"], is_flag=True, is_eager=True, expose_value=False, hidden=hidden,
        callback=_show_all, help="Describe all options and exit.",
    )  # fmt: skip


_NOT_A_NUMBER = re.compile(r"is not a valid (integer|float)( range)?")
_NUMBERS = {"integer": "a whole number", "float": "a number"}


class _MissingParameter(click.MissingParameter):
    """A missing option or argument, whose choices are listed in the same line."""

    def format_message(self) -> str:
        """Return the message."""
        return " ".join(super().format_message().split())


class _Formatter(click.HelpFormatter):
    """A formatter that does not break lines at the hyphens of options and commands."""

    def write_dl(self, rows: Iterable[tuple[str, str]], *widths: Any, **more: Any) -> None:  # noqa: ANN401
        """Write rows of a name and its text."""
        super().write_dl([(name, _unbroken(text)) for name, text in rows], *widths, **more)

    def write_text(self, text: str) -> None:
        """Write paragraphs."""
        super().write_text(_unbroken(text))

    def write(self, string: str) -> None:
        """Write text, with ordinary hyphens."""
        super().write(string.replace(_HYPHEN, "-"))


_HYPHEN = "\N{NON-BREAKING HYPHEN}"


def _unbroken(text: str) -> str:
    return re.sub(r"-(?=\w)", _HYPHEN, text)


class _Context(click.Context):
    """A context whose help is written by `_Formatter`."""

    formatter_class = _Formatter


class Command(click.Command):
    """A command whose help is in groups, and whose unknown options get a hint."""

    context_class = _Context

    def __init__(self, *arguments: Any, **attributes: Any) -> None:  # noqa: ANN401
        """Create the command, with `--help-all`, which is shown if `--help` leaves options out.

        Args:
            arguments: see `click.Command`.
            attributes: see `click.Command`; `epilog` has an example in each line.
        """
        attributes["context_settings"] = _settings(attributes)
        super().__init__(*arguments, **attributes)
        complete = all(getattr(each, "common", True) for each in self.params)
        self.params.append(_help_all_option(hidden=complete))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; add hints to the error for an unknown option, and simplify other errors."""
        typed = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.MissingParameter as error:
            raise _MissingParameter(error.message, ctx, error.param) from error
        except click.BadParameter as error:
            text = _NOT_A_NUMBER.sub(lambda found: f"is not {_NUMBERS[found[1]]}", error.message)
            raise click.BadParameter(text, error.ctx, error.param, error.param_hint) from error
        except click.NoSuchOption as error:
            own = {name for param in self.params for name in param.opts}
            name = _typed_option(typed, error)
            found = options_for(name, own) or list(error.possibilities or ())
            note = _NOTES.get(_bare(name)) if "--learning-rate" in own else None
            raise _unknown_option(name, ctx, found, note) from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in groups, or the common ones and the names of the others."""
        groups: dict[str, list[click.Option]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and not param.hidden:
                groups.setdefault(getattr(param, "group", _HELP), []).append(param)
        groups = {
            title: groups[title]
            for title in sorted(groups, key=lambda each: _LAST_GROUPS.get(each, 0))
        }
        options = [each for group in groups.values() for each in group]
        common = [each for each in options if getattr(each, "common", True)]
        if len(common) < len(options) and not ctx.meta.get(_ALL):
            _write_options("Options", common, ctx, formatter)
            with formatter.section("More options, which --help-all describes"):
                named = {
                    title: " ".join(each.opts[0] for each in group if each not in common)
                    for title, group in groups.items()
                }
                formatter.write_dl([row for row in named.items() if row[1]])
        elif len(options) < _GROUPED_FROM:
            _write_options("Options", options, ctx, formatter)
        else:
            for title, group in groups.items():
                _write_options(title, group, ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the examples."""
        _write_examples(self, formatter)


class Group(click.Group):
    """A group of commands, each a `Command`."""

    command_class = Command
    context_class = _Context

    def __init__(self, *arguments: Any, **attributes: Any) -> None:  # noqa: ANN401
        """Create the group; see `Command`."""
        attributes["context_settings"] = _settings(attributes)
        super().__init__(*arguments, **attributes)
        self.params.append(_help_all_option(hidden=True))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; if an option of a command comes before its command, explain where it goes."""
        typed = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = _typed_option(typed, error)
            has = [
                each.name
                for each in self.commands.values()
                if name in {option for param in each.params for option in param.opts}
            ]
            named = next((word for word in typed if word in self.commands), None)
            first = named if named in has else (*has, None)[0]
            note = first and f"Options follow the command: {ctx.command_path} {first} {name}"
            raise _unknown_option(name, ctx, list(error.possibilities or ()), note) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command; for an unknown one, raise an error that lists them."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            names = ", ".join(self.list_commands(ctx))
            raise click.UsageError(
                f"{error.message.rstrip('.')}; use one of {names}", ctx
            ) from None

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the examples."""
        _write_examples(self, formatter)


def _settings(attributes: Mapping[str, Any]) -> dict[str, Any]:
    settings = {"help_option_names": ["-h", "--help"], "show_default": True}
    return settings | dict(attributes.get("context_settings") or {})


def version_option(command: Decorated) -> Decorated:
    """Add --version."""
    return click.version_option(__version__, package_name="pixmix", message="%(version)s")(command)


def command_group(
    *examples: str, cls: type[Group] = Group
) -> Callable[[Callable[..., Any]], Group]:
    """Return the decorator that makes a function a group with --version and examples."""

    def decorate(function: Callable[..., Any]) -> Group:
        return click.group(cls=cls, epilog=example(*examples))(version_option(function))

    return decorate


def example(*lines: str) -> str:
    """Return the examples of a command's help, as the epilog of a `Command`."""
    return "\n".join(lines)


def _write_options(
    title: str, options: list[click.Option], ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    rows = [each.get_help_record(ctx) for each in options]
    if any(rows):
        with formatter.section(title):
            formatter.write_dl([row for row in rows if row is not None], col_max=_WIDEST_NAME)


def _write_examples(command: click.Command, formatter: click.HelpFormatter) -> None:
    """Write the lines of the epilog; one that is too long is continued after a backslash."""
    lines = (command.epilog or "").splitlines()
    if not lines:
        return
    with formatter.section("Examples" if len(lines) > 1 else "Example"):
        for line in lines:
            row = " " * formatter.current_indent
            # A line is not broken between an option and its value.
            for part in re.split(" (?=-)", line):
                if len(row) + len(part) + 3 > formatter.width and row.strip():
                    formatter.write(f"{row.rstrip()} \\\n")
                    row = " " * (formatter.current_indent + 4)
                row += f"{part} "
            formatter.write(f"{row.rstrip()}\n")


_NAMES: Mapping[str, tuple[str, ...]] = {
    "--grad-accum-steps": (
        "accumulate", "accum", "accum-steps", "accumulation-steps", "grad-accum",
        "gradient-accumulation-steps", "accumulate-grad-batches",
    ),
    "--augment": ("aug", "aa", "auto-augment", "augmentation"),
    "--batch-size": ("b", "bs", "bsz", "batch", "batchsize", "train-batch", "test-bs",
                     "eval-batch-size", "per-device-batch-size", "val-batch-size"),
    "--cache-dir": ("cache",),
    "--concurrent-downloads": ("downloads", "max-concurrency"),
    "--checkpoint": ("c", "ckpt", "ckpt-path", "checkpoint-path", "load", "model-path", "weights"),
    "--checkpoint-every": ("save-every", "save-interval", "checkpoint-interval", "save-freq"),
    "--compile": ("torchcompile", "torch-compile"),
    "--contact-sheet": ("sheet", "grid"),
    "--data": ("data-dir", "data-path", "datadir", "data-root", "dataset", "dataset-dir",
               "dataset-path", "root", "d"),
    "--device": ("gpu", "cuda", "gpu-id", "accelerator"),
    "--download-timeout": ("timeout", "patience"),
    "--dropout": ("drop", "droprate", "drop-rate"),
    "--ema-decay": ("model-ema", "model-ema-decay"),
    "--epochs": ("e", "num-epochs", "n-epochs", "max-epochs", "epoch"),
    "--epsilon": ("eps",),
    "--image-size": ("img-size", "imgsz", "imsize", "input-size", "crop-size", "val-crop-size",
                     "train-crop-size", "resolution", "img", "crop"),
    "--index": ("i", "idx"),
    "--jobs": ("j", "num-workers", "n-jobs", "njobs", "num-jobs", "num-proc", "workers", "threads",
               "processes", "nproc"),
    "--keep-checkpoints": ("keep", "checkpoint-hist", "save-top-k", "save-total-limit"),
    "--label-smoothing": ("smoothing",),
    "--learning-rate": ("lr", "base-lr", "blr", "init-lr", "max-lr"),
    "--mixing-set": ("mixing", "mixing-dir", "mixing-path", "mixing-data", "mixset", "fractals"),
    "--model": ("a", "arch", "net", "network", "backbone", "architecture", "layers",
                "widen-factor", "model-name"),
    "--n": ("num", "count", "num-images", "num-samples", "n-images", "number", "total"),
    "--optimizer": ("opt", "optim"),
    "--out": ("o", "output", "output-dir", "out-dir", "outdir", "save", "save-dir", "save-path",
              "output-path", "log-dir", "logdir", "exp-dir", "work-dir", "experiment", "snapshot"),
    "--pretrained": ("finetune", "fine-tune"),
    "--precision": ("amp", "fp16", "bf16", "amp-dtype", "dtype", "mixed-precision", "half"),
    "--random-weights": ("random", "untrained", "allow-random"),
    "--regenerate": ("sample", "samples", "check"),
    "--resize": ("resize-size", "val-resize-size", "crop-pct"),
    "--seed": ("random-seed", "manual-seed", "rng-seed", "s"),
    "--severity": ("aug-severity",),
    "--shard-size": ("maxcount", "max-count", "samples-per-shard", "maxsize"),
    "--size": ("img-size", "image-size", "imgsz", "resolution", "width", "height"),
    "--suite": ("suites", "tests", "metrics"),
    "--sync-bn": ("sync-batch-norm", "syncbn", "sync-batchnorm"),
    "--val-fraction": ("val-split", "val-ratio", "validation-split", "validation-fraction"),
    "--wandb": ("log-wandb", "use-wandb", "wandb-project"),
    "--warmup-epochs": ("warmup", "warm-up", "lr-warmup-epochs"),
    "--watchdog-timeout": ("stall-limit", "nccl-timeout"),
    "--weight-decay": ("wd", "decay", "l2"),
    "--weights": ("init", "init-weights", "initial-checkpoint", "pretrain", "load", "checkpoint",
                  "ckpt"),
    "--shuffle-window": ("window", "shuffle", "shuffle-buffer", "shuffle-size", "buffer-size"),
    "--workers": ("j", "num-workers", "nworkers", "n-workers", "prefetch", "jobs", "threads",
                  "loader-workers", "w"),
}  # fmt: skip
"""Option -> what timm, torchvision, the PixMix reference and others call it, without dashes."""

_NOTES: Mapping[str, str] = {
    **dict.fromkeys(
        ("gpus", "num-gpus", "n-gpus", "ngpus", "world-size", "nproc-per-node", "devices"),
        "Start one process per GPU with torchrun --nproc-per-node",
    ),
    **dict.fromkeys(
        ("local-rank", "rank", "dist-url", "dist-backend", "ddp", "distributed"),
        "torchrun, srun and mpirun set it in the environment",
    ),
    **dict.fromkeys(
        ("momentum", "nesterov"), "--optimizer sgd uses Nesterov momentum 0.9"
    ),
    **dict.fromkeys(
        ("sched", "scheduler", "lr-scheduler", "lr-step-size", "lr-gamma", "min-lr"),
        "The learning rate follows a cosine schedule",
    ),
    **dict.fromkeys(
        ("print-freq", "log-interval", "log-freq", "verbose", "v", "quiet", "q"),
        "Progress goes to stderr; --json prints the result as JSON",
    ),
    **dict.fromkeys(
        ("tensorboard", "log-tensorboard"),
        "OUT/tensorboard is written if the package tensorboard is installed",
    ),
}  # fmt: skip
"""Option of other scripts that no command has -> what to do instead, for pixmix-train."""


def options_for(name: str, own: set[str]) -> list[str]:
    """Return the options of a command that an option of another script may stand for.

    Args:
        name: the option as it was typed, such as "--lr".
        own: the options of the command.
    """
    bare = _bare(name)
    found = [option for option, names in _NAMES.items() if bare in names and option in own]
    if f"--{bare}" in own:
        found.insert(0, f"--{bare}")
    return found


def _bare(name: str) -> str:
    # -j4 is -j.
    name = name[:2] if re.fullmatch(r"-[a-z]\d+", name) else name
    return name.lstrip("-").replace("_", "-").lower()


def _typed_option(typed: list[str], error: click.NoSuchOption) -> str:
    """Return the unknown option as it was typed: click reads -lr as -l and -r."""
    option = error.option_name
    if len(option) == 2 and not option.startswith("--"):
        option = next((word for word in typed if word.startswith(option)), option)
    return option.partition("=")[0]


def _unknown_option(
    name: str, ctx: click.Context, similar: list[str], note: str | None
) -> click.NoSuchOption:
    message = f"No such option '{name}'."
    if similar:
        message += f" Did you mean {' or '.join(repr(each) for each in similar)}?"
    elif note:
        message += f" {note}."
    return click.NoSuchOption(name, message, ctx=ctx)


def help_pages() -> str:
    """Return the full help of each command and subcommand as Markdown, for any terminal."""
    parts = [
        "# Commands",
        "The `--help-all` of each command, written by `make help-pages`.",
    ]
    for name, module in sorted(MODULES.items()):
        for title, text in _helps(name, import_module(module).main, None):
            parts.append(f"## {title}\n\n```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def _helps(
    name: str, command: click.Command, parent: click.Context | None
) -> Iterator[tuple[str, str]]:
    context = command.make_context(
        name, [], parent=parent, resilient_parsing=True, terminal_width=_WIDTH
    )
    context.meta[_ALL] = True
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for part in command.list_commands(context):
            found = command.get_command(context, part)
            if found is not None:
                yield from _helps(part, found, context)


def main() -> None:
    """Write the page of the command line."""
    from pipelines.system.files import write_file

    write_file(Path(sys.argv[1]), help_pages().encode())


if __name__ == "__main__":
    main()
