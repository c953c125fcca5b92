"""Writes what the commands of a page print below them: docs/streaming-plan.md.

python docs/streaming_plan.py PAGE
"""

import re
import shlex
import sys
from pathlib import Path

from click.testing import CliRunner

from pipelines.cli.bench import main

_PIECE = re.compile(r"^    pixmix-bench (streaming .*)\n\n```text\n(?:.*\n)*?```$", re.MULTILINE)


def renewed(text: str) -> str:
    """Return a page with the present output of its simulations.

    Raises:
        RuntimeError: if a command fails.
    """

    def piece(found: re.Match[str]) -> str:
        result = CliRunner().invoke(main, shlex.split(found[1]))
        if result.exit_code != 0:
            raise RuntimeError(f"pixmix-bench {found[1]}: {result.output}")
        return f"    pixmix-bench {found[1]}\n\n```text\n{result.stdout.rstrip()}\n```"

    return _PIECE.sub(piece, text)


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(renewed(page.read_text()))
