"""The headline figures of what an evaluation found, as a table, a column a network."""

from collections.abc import Mapping, Sequence
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


def label_of(suite: str, what: str, found: Found) -> str:
    """Return what a headline is called for a network.

    That of a made C set says that it was made, and that of an attack on some of the images on how
    many.

    Args:
        suite: of the headline.
        what: its name for the set that its authors distribute.
        found: what an evaluation of the network found.
    """
    values = found.get(suite, {})
    if suite == "adversarial" and values.get("images") != values.get("of_images"):
        return what.replace("(PGD)", f"(PGD, {values['images']} of {values['of_images']} images)")
    made = values.get("made")
    if made is None:
        return what
    told = f"C made by {made['by']}, {made['images']} images, {made['constants']} constants"
    return what.replace("(C)", f"({told})")


def table(columns: Mapping[str, Found], missing: Mapping[str, str]) -> str:
    """Return the measures of one or more networks as lines of aligned text."""
    rows = aligned(rows_of(columns))
    kinds = next(
        (found["anomaly"]["kinds"] for found in columns.values() if "anomaly" in found), ()
    )
    notes = [f"anomalies are means over {', '.join(kinds)}"] if kinds else []
    notes += notes_of(columns)
    notes += [f"left out: {name}: {why}" for name, why in missing.items()]
    return "\n".join([*rows, *([""] if notes else []), *notes])


def notes_of(columns: Mapping[str, Found]) -> list[str]:
    """Return a sentence for each network whose training overlaps what it is measured by."""
    return [
        overlap_in_words(name, found["c"]["overlap"])
        for name, found in columns.items()
        if found.get("c", {}).get("overlap")
    ]


def overlap_in_words(name: str, operations: Sequence[str]) -> str:
    """Return that a network's training used operations that overlap C."""
    return (
        f"{name} was trained with operations that overlap the corruptions of C "
        f"({', '.join(operations)}): its error on C is not an error on unseen corruptions"
    )


def rows_of(columns: Mapping[str, Found]) -> list[tuple[str, ...]]:
    """Return a row a measure that any network has, of as many cells; the first has the names.

    Figures on a made C set and on the official one stand in different rows.
    """
    rows = [("", *columns)]
    for suite, value, what in HEADLINES:
        labels = {name: label_of(suite, what, found) for name, found in columns.items()}
        for label in dict.fromkeys(labels.values()):
            cells = [
                f"{100 * found[suite][value]:.2f} %"
                if labels[name] == label and value in found.get(suite, ())
                else "-"
                for name, found in columns.items()
            ]
            if any(cell != "-" for cell in cells):
                rows.append((label, *cells))
    return rows


def is_found(value: object) -> TypeGuard[Found]:
    """Return whether a JSON value is what an evaluation found, wherever a table looks."""
    if not isinstance(value, dict) or not all(isinstance(each, dict) for each in value.values()):
        return False
    of_c, attacked = value.get("c", {}), value.get("adversarial", {})
    return (
        _is_made(of_c.get("made"))
        and all(is_number(attacked.get(name, 0)) for name in ("images", "of_images"))
        and _are_names(of_c.get("overlap", []))
        and all(
            is_number(value[suite][name])
            for suite, name, _ in HEADLINES
            if name in value.get(suite, ())
        )
    )


def _is_made(value: object) -> bool:
    return value is None or (
        isinstance(value, dict)
        and is_number(value.get("images"))
        and all(isinstance(value.get(name), str) for name in ("by", "constants"))
    )


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
