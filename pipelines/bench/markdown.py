"""A benchmark's document as the table of a Markdown page, so that nobody copies figures by hand.

    python -m pipelines.bench.markdown docs/bench.json README.md

writes the table of docs/bench.json between the page's two marks.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.bench.machine import in_words
from pipelines.bench.results import number
from pipelines.system.files import write_file

BEGIN, END = "<!-- figures of pixmix-bench -->", "<!-- end of figures -->"

_MOST_NAMED = 3
"""Measurements that were disturbed, by name; of more their number is told."""


def markdown(document: Mapping[str, Any]) -> str:
    """Return what `pixmix-bench --json` printed as a Markdown table and a line on the machine.

    A row a rival; a benchmark without one has a row of its own, without a ratio.
    """
    lines = ["| | ours | beside | its rate | times [quartiles] |", "|---|---|---|---|---|"]
    for row in document["rows"]:
        what, ours = f"{row['name']}, {row['unit']}", number(row["rate"]["median"])
        rivals = row["rivals"] or [None]
        for place, rival in enumerate(rivals):
            head = (what, ours) if place == 0 else ("", "")
            tail = ("", "", "")
            if rival is not None:
                tail = (
                    rival["name"],
                    number(rival["rate"]["median"]),
                    _times(rival["ratio"]),
                )
            lines.append(f"| {' | '.join((*head, *tail))} |")
    busy = [row["name"] for row in document["rows"] if row["busy"]]
    machine = in_words(document["machine"])
    told = "Medians of rounds taken in turn, one thread where nothing else is said. "
    told += f"{machine}."
    if len(busy) > _MOST_NAMED:
        told += (
            f" Others used the machine during {len(busy)} of the {len(document['rows'])} "
            "measurements: trust the last column more than the rates."
        )
    elif busy:
        told += f" Others used the machine during {'; '.join(busy)}."
    return "\n".join([*lines, "", told])


def _times(ratio: Mapping[str, Any]) -> str:
    """Return how many times faster ours is, with the quartiles where there are several rounds."""
    text = f"{number(ratio['median'])} x"
    return text if ratio["n"] == 1 else f"{text} [{number(ratio['low'])}, {number(ratio['high'])}]"


def with_table(page: str, table: str) -> str:
    """Return a page with a table between its marks, in place of what is there.

    Raises:
        ValueError: if the page has not both marks, in order.
    """
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"the page has not both marks; put {BEGIN} and {END} where the table goes")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main() -> None:
    """Bring the page of the command line up to date."""
    document, page = map(Path, sys.argv[1:3])
    table = markdown(json.loads(document.read_bytes()))
    write_file(page, with_table(page.read_text(), table).encode())


if __name__ == "__main__":
    main()
