"""Results of evaluations, a column a network: as JSON, as tables, and as a radar plot."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import msgspec

from pipelines.errors import PipelineError
from pipelines.evaluation.metrics import HEADLINES, Metric
from pipelines.report.page import check_plotting, legend_name, plot_png
from pipelines.system.files import read_json, read_regular
from pipelines.text_table import aligned

if TYPE_CHECKING:
    from matplotlib.projections.polar import PolarAxes

VERSION = 2
"""Of the JSON that pixmix-eval prints."""

Results = Mapping[str, Mapping[str, Any]]
"""Suite -> name -> value, of one network."""

_MOST_BYTES = 2**28
_LARGEST = 1e6
"""Of metrics: a mean corruption error relative to AlexNet's may be above 1."""
_REMEDY = "write it again: pixmix-eval ... --json > evaluation.json"


class _Made(msgspec.Struct):
    by: str
    images: int | float
    constants: str


class _Corrupted(msgspec.Struct):
    made: _Made | None = None
    overlap: tuple[str, ...] = ()


class _Attacked(msgspec.Struct):
    images: int | float
    of_images: int | float


class _Checked(msgspec.Struct):
    """What tables read of a network's results beside the metrics."""

    c: _Corrupted = msgspec.field(default_factory=_Corrupted)
    adversarial: _Attacked | None = None


class _Evaluation(msgspec.Struct):
    networks: Annotated[dict[str, dict[str, dict[str, Any]]], msgspec.Meta(min_length=1)]
    version: int = 1


def read_evaluation(path: Path) -> Results:
    """Read what `pixmix-eval --json` printed; of its networks the first. Empty without the file.

    Raises:
        PipelineError: if the file is damaged, or of another version.
        OSError: if it cannot be read, or is not a regular file.
    """
    try:
        content = read_regular(path, max_bytes=_MOST_BYTES)
    except FileNotFoundError:
        return {}
    found = read_json(content, _Evaluation, str(path), _REMEDY)
    if found.version != VERSION:
        raise PipelineError(
            f"{path} has version {found.version}, and this release reads {VERSION}; {_REMEDY}"
        )
    results = next(iter(found.networks.values()))
    read_json(msgspec.json.encode(results), _Checked, str(path), _REMEDY)
    for metric in HEADLINES:
        measured = results.get(metric.suite, {})
        value = measured.get(metric.key, 0)
        if value is None:
            # JSON's NaN: nothing was measured.
            del measured[metric.key]
        elif type(value) not in (int, float) or not -_LARGEST <= value <= _LARGEST:
            raise PipelineError(
                f"{path} is damaged: {metric.suite}.{metric.key} is {value!r}, expected a number "
                f"within -{_LARGEST:g} and {_LARGEST:g}; {_REMEDY}"
            )
    return results


def label_of(metric: Metric, results: Results) -> str:
    """Return what a metric is called for a network.

    On a C set of make-c the label says so, and on an attack of some images how many.
    """
    values = results.get(metric.suite, {})
    if metric.suite == "adversarial" and values.get("images") != values.get("of_images"):
        some = f"(PGD, {values['images']} of {values['of_images']} images)"
        return metric.name.replace("(PGD)", some)
    made = values.get("made")
    if made is None:
        return metric.name
    by = f"C made by {made['by']}, {made['images']} images, {made['constants']} constants"
    return metric.name.replace("(C)", f"({by})")


def rows_of(columns: Mapping[str, Results]) -> list[tuple[str, ...]]:
    """Return a row a metric that any network has, a cell a network; the first row has the names.

    The best of several values is marked with a star. Results on a made C set and on the official
    one stand in different rows.
    """
    rows = [("", *columns)]
    for metric in HEADLINES:
        labels = {name: label_of(metric, results) for name, results in columns.items()}
        for label in dict.fromkeys(labels.values()):
            values = [
                results.get(metric.suite, {}).get(metric.key) if labels[name] == label else None
                for name, results in columns.items()
            ]
            if any(value is not None for value in values):
                rows.append((label, *_cells(metric, values)))
    return rows


BEST = " *"
"""Ends the cell of the best value of a row."""


def _cells(metric: Metric, values: Sequence[float | None]) -> list[str]:
    """Return the values as text, the best marked unless all are equal as shown."""
    cells = ["-" if value is None else metric.format(value) for value in values]
    known = {value: cell for value, cell in zip(values, cells, strict=True) if value is not None}
    best = known[max(known, key=metric.goodness)]
    if len(set(known.values())) == 1:
        return cells
    return [f"{cell}{BEST}" if cell == best else cell for cell in cells]


def table(columns: Mapping[str, Results], missing: Mapping[str, str]) -> str:
    """Return the metrics of one or more networks as lines of aligned text."""
    datasets = next(
        (results["ood"]["datasets"] for results in columns.values() if "ood" in results), ()
    )
    notes = [f"OOD detection is the mean over {', '.join(datasets)}"] if datasets else []
    notes += notes_of(columns)
    notes += [f"not measured: {name}: {why}" for name, why in missing.items()]
    return "\n".join([*aligned(rows_of(columns)), *([""] if notes else []), *notes])


def notes_of(columns: Mapping[str, Results]) -> list[str]:
    """Return the sentences below a table: what a star means, and whose training overlaps C."""
    stars = any(cell.endswith(BEST) for row in rows_of(columns)[1:] for cell in row[1:])
    return [*(["* the best of its row"] if stars else []), *overlaps_of(columns)]


def overlaps_of(columns: Mapping[str, Results]) -> list[str]:
    """Return a sentence for each network whose training overlaps the corruptions of C."""
    return [
        f"{name} was trained with operations that overlap the corruptions of C "
        f"({', '.join(results['c']['overlap'])}): its error on C is not an error on unseen "
        "corruptions"
        for name, results in columns.items()
        if results.get("c", {}).get("overlap")
    ]


# --- Radar ---------------------------------------------------------------------------------------


def metrics_of_all(columns: Mapping[str, Results]) -> list[tuple[Metric, str]]:
    """Return the headline metrics that all networks have and a radar plot can show, with labels.

    Results on a made C set are not shown beside those on the official one.
    """
    shown = []
    for metric in HEADLINES:
        labels = {label_of(metric, results) for results in columns.values()}
        measured = all(metric.key in results.get(metric.suite, ()) for results in columns.values())
        if metric.unit == "%" and measured and len(labels) == 1:
            shown.append((metric, labels.pop()))
    return shown


def radar(columns: Mapping[str, Results]) -> bytes:
    """Draw the metrics of networks as a radar plot, a PNG: further out is better.

    Raises:
        PipelineError: if the extra `viz` is not installed, or there are fewer than three metrics.
    """
    check_plotting()
    from matplotlib.figure import Figure

    shown = metrics_of_all(columns)
    if len(shown) < 3:
        raise PipelineError(
            f"a radar plot needs 3 metrics or more, not {len(shown)}; evaluate more suites"
        )
    figure = Figure(figsize=(8, 6.2), layout="constrained")
    axes = cast("PolarAxes", figure.add_subplot(projection="polar"))
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    angles = [2 * math.pi * place / len(shown) for place in range(len(shown))]
    for name, results in columns.items():
        values = [metric.goodness(results[metric.suite][metric.key]) for metric, _ in shown]
        axes.plot([*angles, angles[0]], [*values, values[0]], marker="o", label=legend_name(name))
        axes.fill([*angles, angles[0]], [*values, values[0]], alpha=0.15)
    axes.set_xticks(angles, [])
    for angle, (_, label) in zip(angles, shown, strict=True):
        side, up = math.sin(angle), math.cos(angle)
        axes.text(
            angle,
            1.07,
            textwrap.fill(label, 20),
            ha="center" if abs(side) < 0.1 else "left" if side > 0 else "right",
            va="center" if abs(up) < 0.85 else "bottom" if up > 0 else "top",
        )
    axes.set_ylim(0, 1)
    axes.set_yticks([0.25, 0.5, 0.75, 1.0], ["", "50 %", "", "100 %"])
    axes.set_rlabel_position(180 / len(shown))
    axes.tick_params(axis="y", labelcolor="grey", labelsize="small")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, title="further out is better")
    return plot_png(figure, dpi=120)
