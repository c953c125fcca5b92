"""The statistics of sets as histograms, beside what people chose and photographs."""

from collections.abc import Mapping

import numpy as np

from pipelines.report.plotting import check_plotting, legend_name, plot_png
from pipelines.report.set_statistics import SetStatistics
from pipelines.report.set_table import ROWS

_COLUMNS = 3
_BINS = 30


def histograms(sets: Mapping[str, SetStatistics]) -> bytes:
    """Draw how each statistic is spread over the pictures of one or more sets, as a PNG.

    Below each histogram stand the references: the median of flames that people chose and of
    photographs, and a bar from the 10th to the 90th percentile where that is known.

    Args:
        sets: name -> statistics.

    Raises:
        PipelineError: if the extra `viz` is not installed.
    """
    check_plotting()
    from matplotlib.figure import Figure

    n_rows = -(-len(ROWS) // _COLUMNS)
    figure = Figure(figsize=(9, 2.1 * n_rows + 0.5), layout="constrained")
    axes = figure.subplots(n_rows, _COLUMNS, squeeze=False).ravel()
    for axis in axes[len(ROWS) :]:
        axis.set_axis_off()
    for axis, row in zip(axes, ROWS, strict=False):
        references = (("people's flames", row.flames), ("photographs", row.photographs))
        known = [(name, each) for name, each in references if each is not None]
        marks = [
            mark for _, each in known for mark in (each.median, each.p10, each.p90)
            if mark is not None
        ]  # fmt: skip
        values = {name: each.values[row.name] for name, each in sets.items()}
        ends = np.concatenate([*values.values(), marks])
        low, high = float(ends.min()), float(ends.max())
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
        highest = 0.0
        for place, (name, column) in enumerate(values.items()):
            share = np.histogram(column, edges)[0] / len(column)
            highest = max(highest, float(share.max()))
            axis.stairs(
                share, edges, fill=True, alpha=0.5, color=f"C{place % 10}", label=legend_name(name)
            )
        for place, (name, reference) in enumerate(known):
            height = -0.1 * (place + 1) * highest
            colour = ("black", "grey")[name == "photographs"]
            if reference.p10 is not None and reference.p90 is not None:
                axis.plot([reference.p10, reference.p90], [height, height], color=colour, lw=2)
            axis.plot([reference.median], [height], "|", color=colour, ms=9, mew=2, label=name)
        axis.axhline(0, color="black", lw=0.6)
        axis.set_ylim(-0.34 * highest, 1.06 * highest)
        axis.set_title(row.label, fontsize="medium")
        axis.set_yticks([])
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False
    )
    return plot_png(figure, dpi=110)
