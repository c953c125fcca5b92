"""Write the `--help` of every command as one Markdown page.

python -m pipelines.cli.help_pages docs/commands.md
"""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click

from pipelines.system.files import write_file
from pixmix.commands import MODULES

_WIDTH = 88


def help_pages() -> str:
    """Return the help of each command and subcommand as Markdown, independent of the terminal."""
    parts = [
        "# Commands",
        "The `--help` of each command, written by `make help-pages`.",
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
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for part in command.list_commands(context):
            found = command.get_command(context, part)
            if found is not None:
                yield from _helps(part, found, context)


def main() -> None:
    """Write the page of the command line."""
    write_file(Path(sys.argv[1]), help_pages().encode())


if __name__ == "__main__":
    main()
