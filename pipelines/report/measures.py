"""What was found, as a table and as a picture, beside a second network where there is one."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipelines.errors import PipelineError
from pipelines.report.text import aligned

if TYPE_CHECKING:
    from matplotlib.projections.polar import PolarAxes

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

_BETTER_LARGE = {"mean_auroc", "mean_aupr", "auroc", "aupr"}

_OF_ALEXNET = {"mce", "mfr"}
"""Measures that may be above 1; a radar plot has the plain means beside them."""

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


def measures_between(columns: Mapping[str, Found]) -> list[tuple[str, str, str]]:
    """Return those of HEADLINES that all networks have and a radar plot can show."""
    return [
        (suite, value, what)
        for suite, value, what in HEADLINES
        if value not in _OF_ALEXNET
        and all(value in found.get(suite, ()) for found in columns.values())
    ]


def check_plotting() -> None:
    """See that plots can be drawn here.

    Raises:
        PipelineError: if the extra `viz` is not installed.
    """
    if find_spec("matplotlib") is None:
        raise PipelineError(
            "a plot needs matplotlib, which is not installed; run pip install 'pixmix[viz]'"
        )


def radar(columns: Mapping[str, Found]) -> bytes:
    """Draw the measures of networks as a radar plot, a PNG: further out is better.

    Raises:
        PipelineError: if the extra `viz` is not installed, or there are fewer than three measures.
    """
    check_plotting()
    from matplotlib.figure import Figure

    shown = measures_between(columns)
    if len(shown) < 3:
        raise PipelineError(f"{len(shown)} measures make no radar plot; give more suites")
    figure = Figure(figsize=(8, 6.2), layout="constrained")
    axes = cast("PolarAxes", figure.add_subplot(projection="polar"))
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    angles = [2 * math.pi * place / len(shown) for place in range(len(shown))]
    for name, found in columns.items():
        goods = [_goodness(found[suite][value], value) for suite, value, _ in shown]
        axes.plot([*angles, angles[0]], [*goods, goods[0]], marker="o", label=name)
        axes.fill([*angles, angles[0]], [*goods, goods[0]], alpha=0.15)
    axes.set_xticks(angles, [])
    for angle, (_, _, what) in zip(angles, shown, strict=True):
        side, up = math.sin(angle), math.cos(angle)
        axes.text(
            angle,
            1.07,
            textwrap.fill(what, 20),
            ha="center" if abs(side) < 0.1 else "left" if side > 0 else "right",
            va="center" if abs(up) < 0.85 else "bottom" if up > 0 else "top",
        )
    axes.set_ylim(0, 1)
    axes.set_yticks([0.25, 0.5, 0.75, 1.0], ["", "50 %", "", "100 %"])
    axes.set_rlabel_position(180 / len(shown))
    axes.tick_params(axis="y", labelcolor="grey", labelsize="small")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, title="further out is better")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _goodness(number: float, value: str) -> float:
    return number if value in _BETTER_LARGE else 1 - number


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return short names of checkpoints that tell them from each other."""
    for parts in range(1, 8):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
