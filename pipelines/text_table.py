"""Tables for a terminal, and the mark of the best value in a row."""

from collections.abc import Container, Sequence

BEST = " *"
"""The end of a cell that holds the best value of its row."""

BEST_NOTE = "* best value of the row"


def aligned(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> list[str]:
    """Return rows as lines with aligned columns, two spaces apart.

    Args:
        rows: one or more rows with the same number of cells.
        right: indices of the columns that are aligned to the right.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def with_best_marked(cells: Sequence[str], scores: Sequence[float | None]) -> list[str]:
    """Return the cells of a row with a star after the best values.

    Nothing is marked if all known values are equal as shown.

    Args:
        cells: values as text.
        scores: a number for each cell, larger for a better value; None for an unknown value.
    """
    known = {cell: score for cell, score in zip(cells, scores, strict=True) if score is not None}
    if len(known) < 2:
        return list(cells)
    best = max(known, key=lambda cell: known[cell])
    return [f"{cell}{BEST}" if cell == best else cell for cell in cells]


def has_best_mark(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether a best value is marked in any row."""
    return any(cell.endswith(BEST) for row in rows for cell in row[1:])
