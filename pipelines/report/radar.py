"""The headline figures of networks as a radar plot."""

import math
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from pipelines.errors import PipelineError
from pipelines.report.headlines import HEADLINES, Found, label_of
from pipelines.report.plotting import check_plotting, legend_name, plot_png

if TYPE_CHECKING:
    from matplotlib.projections.polar import PolarAxes

_BETTER_LARGE = {"mean_auroc", "mean_aupr", "auroc", "aupr"}

_OF_ALEXNET = {"mce", "mfr"}
"""Measures that may be above 1; a radar plot has the plain means beside them."""


def measures_between(columns: Mapping[str, Found]) -> list[tuple[str, str, str]]:
    """Return those of HEADLINES that all networks have and a radar plot can show.

    Figures on a made C set are not shown beside those on the official one.
    """
    shown = []
    for suite, value, what in HEADLINES:
        labels = {label_of(suite, what, found) for found in columns.values()}
        measured = all(value in found.get(suite, ()) for found in columns.values())
        if value not in _OF_ALEXNET and measured and len(labels) == 1:
            shown.append((suite, value, labels.pop()))
    return shown


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
        axes.plot([*angles, angles[0]], [*goods, goods[0]], marker="o", label=legend_name(name))
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
    return plot_png(figure, dpi=120)


def _goodness(number: float, value: str) -> float:
    return number if value in _BETTER_LARGE else 1 - number
