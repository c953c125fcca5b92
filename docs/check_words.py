"""Refuse the expressions of CONTRIBUTING.md's table of words in the files that git tracks."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SUFFIXES = {".md", ".py", ".html", ".toml", ".cff", ".yml", ".yaml"}

SKIPPED = {"CONTRIBUTING.md", "CHANGELOG.md"}
"""The table itself, and the old names in the changelog."""

ALLOWED: tuple[str, ...] = ("is no longer", "Dreamlike Pictures")
"""Parts of lines in which an expression of the table is right."""


def expressions(page: str) -> dict[str, str]:
    """Return the expressions of the table in CONTRIBUTING.md, each with what to write instead."""
    found = {}
    table = page.split("| do not write | write |", 1)[1].split("\n\n", 1)[0]
    for row in table.splitlines()[2:]:
        left, right = (cell.strip() for cell in row.strip("|").split("|"))
        found.update({expression.strip(): right for expression in left.split(" / ")})
    return found


def pattern(refused: dict[str, str]) -> re.Pattern[str]:
    """Return a pattern that finds each expression as whole words, in names and over line breaks."""
    gap = r"(?:[_-]|\s+(?:#\s*|[\"']\s*f?[\"'])?|[\"']\s+f?[\"'])"
    words = sorted(refused, key=len, reverse=True)
    joined = "|".join(gap.join(map(re.escape, each.split())) for each in words)
    return re.compile(rf"(?<![a-zA-Z])(?:{joined})(?![a-zA-Z])", re.IGNORECASE)


def main(names: list[str]) -> int:
    """Print each hit as file:line; return 1 if there is one.

    names: files or folders; without one, all that git tracks.
    """
    refused = expressions((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    find = pattern(refused)
    listed = subprocess.run(
        ["git", "ls-files", "-z", *names], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    hits = 0
    for name in filter(None, listed):
        path = ROOT / name
        if path.suffix not in SUFFIXES or name in SKIPPED or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for match in find.finditer(text):
            number = text.count("\n", 0, match.start())
            line = lines[number]
            if any(allowed in line for allowed in ALLOWED):
                continue
            hits += 1
            print(f"{name}:{number + 1}: {match.group(0)!r} in: {line.strip()}")  # noqa: T201
    if hits:
        print(f"{hits} expressions of the table in CONTRIBUTING.md")  # noqa: T201
    return 1 if hits else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
