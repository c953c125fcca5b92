"""Write the results of `pixmix-bench --json` into a page, so that nobody copies figures by hand.

    python docs/bench_table.py docs/bench.json docs/benchmarks.md

replaces the table between the page's two marks.
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

    One line per rival; a benchmark without a rival has a line of its own, without a ratio.
    """
    lines = ["| | ours | beside | its rate | ratio [quartiles] |", "|---|---|---|---|---|"]
    for row in document["rows"]:
        what, ours = f"{row['name']}, {row['unit']}", number(row["rate"]["median"])
        for place, rival in enumerate(row["rivals"] or [None]):
            head = (what, ours) if place == 0 else ("", "")
            tail = ("", "", "")
            if rival is not None:
                ratio = f"{Spread(**rival['ratio'])} x"
                tail = (rival["name"], number(rival["rate"]["median"]), ratio)
            lines.append(f"| {' | '.join((*head, *tail))} |")
    busy = [row["name"] for row in document["rows"] if row["busy"]]
    told = "Medians of interleaved rounds; one thread unless the name says otherwise."
    notes = busy_note(busy, len(document["rows"]))
    return "\n".join(
        [*lines, "", " ".join([told, *notes, f"{machine_line(document['machine'])}."])]
    )


def with_table(page: str, table: str) -> str:
    """Return a page with a table between its marks, in place of the present one.

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
