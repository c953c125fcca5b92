"""Write the results of `pixmix-bench --json` into a page.

    python docs/bench_table.py docs/bench.json docs/benchmarks.md

This replaces the table between the page's two marks.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.bench.timing import Spread, busy_note, machine_line, number

BEGIN, END = "<!-- figures of pixmix-bench -->", "<!-- end of figures -->"


def markdown(document: Mapping[str, Any]) -> str:
    """Return the document of `pixmix-bench --json` as a Markdown table and a line on the machine.

    The table has one line per alternative. A benchmark without alternatives has one line without a
    ratio.
    """
    lines = [
        "| benchmark | ours | alternative | its rate | ratio [quartiles] |",
        "|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        what, ours = f"{row['name']}, {row['unit']}", number(row["rate"]["median"])
        for position, other in enumerate(row["alternatives"] or [None]):
            head = (what, ours) if position == 0 else ("", "")
            tail = ("", "", "")
            if other is not None:
                ratio = f"{Spread(**other['ratio'])} x"
                tail = (other["name"], number(other["rate"]["median"]), ratio)
            lines.append(f"| {' | '.join((*head, *tail))} |")
    busy = [row["name"] for row in document["rows"] if row["busy"]]
    method = "Medians of interleaved rounds, on one thread unless the name says otherwise."
    notes = busy_note(busy, len(document["rows"]))
    return "\n".join(
        [*lines, "", " ".join([method, *notes, f"{machine_line(document['machine'])}."])]
    )


def with_table(page: str, table: str) -> str:
    """Return a page with the table between its marks replaced.

    Raises:
        ValueError: if the page does not have both marks, in order.
    """
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"expected {BEGIN} and {END} around the table in the page")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


if __name__ == "__main__":
    document, page = map(Path, sys.argv[1:3])
    page.write_text(with_table(page.read_text(), markdown(json.loads(document.read_bytes()))))
