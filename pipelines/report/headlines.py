"""The headline figures of what an evaluation found, as a table, a column a network."""

from collections.abc import Mapping
from typing import Any, TypeGuard

from pipelines.report.json_files import is_number
from pipelines.text_table import aligned

HEADLINES = (
    ("clean", "error", "clean error"),
    ("c", "mce", "mean corruption error (C, AlexNet 100 %)"),
    ("c", "mean_error", "corruption error (C)"),
    ("c-bar", "mean_error", "corruption error (C-bar)"),
    ("r", "error", "error on renditions (R)"),
    ("a", "error", "error on natural adversaries (A)"),
    ("p", "mfr", "mean flip rate (P, AlexNet 100 %)"),
    ("p", "mean_flip_probability", "flip probability (P)"),
    ("adversarial", "error", "adversarial error (PGD)"),
    ("calibration", "rms", "RMS calibration error"),
    ("calibration", "rms_tempered", "RMS calibration error, tempered"),
    ("c", "mean_rms", "RMS calibration error (C)"),
    ("r", "rms", "RMS calibration error (R)"),
    ("a", "rms", "RMS calibration error (A)"),
    ("anomaly", "mean_auroc", "anomaly detection, AUROC"),
    ("anomaly", "mean_aupr", "anomaly detection, AUPR"),
    ("anomaly", "mean_fpr95", "false alarms at 95 % found"),
    ("o", "auroc", "natural outliers (O), AUROC"),
    ("o", "aupr", "natural outliers (O), AUPR"),
)
"""Suite, value, what it is. Smaller is better but for AUROC and AUPR."""

Found = Mapping[str, Mapping[str, Any]]


def table(columns: Mapping[str, Found], missing: Mapping[str, str]) -> str:
    """Return the measures of one or more networks as lines of aligned text."""
    rows = aligned(rows_of(columns))
    kinds = next(
        (found["anomaly"]["kinds"] for found in columns.values() if "anomaly" in found), ()
    )
    notes = [f"anomalies are means over {', '.join(kinds)}"] if kinds else []
    notes += [f"left out: {name}: {why}" for name, why in missing.items()]
    return "\n".join([*rows, *([""] if notes else []), *notes])


def rows_of(columns: Mapping[str, Found]) -> list[tuple[str, ...]]:
    """Return a row a measure that any network has, of as many cells; the first has the names."""
    rows = [("", *columns)]
    for suite, value, what in HEADLINES:
        cells = [
            f"{100 * found[suite][value]:.2f} %" if value in found.get(suite, ()) else "-"
            for found in columns.values()
        ]
        if any(cell != "-" for cell in cells):
            rows.append((what, *cells))
    return rows


def is_found(value: object) -> TypeGuard[Found]:
    """Return whether a JSON value is what an evaluation found: numbers, wherever HEADLINES look."""
    if not isinstance(value, dict) or not all(isinstance(each, dict) for each in value.values()):
        return False
    return all(
        is_number(value[suite][name])
        for suite, name, _ in HEADLINES
        if name in value.get(suite, ())
    )
