"""Results of evaluations as JSON, as tables with a column for each network, and as a radar plot."""

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import msgspec

from pipelines.errors import PipelineError
from pipelines.evaluation.metrics import HEADLINES, Metric
from pipelines.report.page import check_plotting, legend_name, plot_png
from pipelines.system.files import read_json, read_regular
from pipelines.text_table import BEST_NOTE, aligned, has_best_mark, with_best_marked

if TYPE_CHECKING:
    from matplotlib.projections.polar import PolarAxes

VERSION = 2
"""Version of the JSON that pixmix-eval prints."""

Results = Mapping[str, Mapping[str, Any]]
"""The results of one network: suite -> name -> value."""

_MAX_BYTES = 2**28
_LARGEST = 1e6
"""Largest value of a metric; a mean corruption error relative to AlexNet's may be above 1."""
_REMEDY = "write it again: pixmix-eval ... --json > evaluation.json"


class _GeneratedSet(msgspec.Struct):
    by: str
    images: int | float
    constants: str


class _CorruptionResults(msgspec.Struct):
    made: _GeneratedSet | None = None
    overlap: tuple[str, ...] = ()


class _AdversarialResults(msgspec.Struct):
    images: int | float
    of_images: int | float


class _Checked(msgspec.Struct):
    """The fields of a network's results that tables read besides the metrics."""

    c: _CorruptionResults = msgspec.field(default_factory=_CorruptionResults)
    adversarial: _AdversarialResults | None = None


class _Evaluation(msgspec.Struct):
    networks: Annotated[dict[str, dict[str, dict[str, Any]]], msgspec.Meta(min_length=1)]
    version: int = 1


def read_evaluation(path: Path) -> Results:
    """Read the results of the first network that `pixmix-eval --json` printed into a file.

    Returns:
        The results; empty if the file does not exist.

    Raises:
        PipelineError: if the file is damaged or of another version.
        OSError: if it cannot be read, or is not a regular file.
    """
    try:
        content = read_regular(path, max_bytes=_MAX_BYTES)
    except FileNotFoundError:
        return {}
    document = read_json(content, _Evaluation, str(path), _REMEDY)
    if document.version != VERSION:
        raise PipelineError(
            f"{path} has version {document.version}, but this release reads {VERSION}; {_REMEDY}"
        )
    results = next(iter(document.networks.values()))
    read_json(msgspec.json.encode(results), _Checked, str(path), _REMEDY)
    for metric in HEADLINES:
        measured = results.get(metric.suite, {})
        value = measured.get(metric.key, 0)
        if value is None:
            # JSON has null for NaN, so nothing was measured.
            del measured[metric.key]
        elif type(value) not in (int, float) or not -_LARGEST <= value <= _LARGEST:
            raise PipelineError(
                f"{path} is damaged: {metric.suite}.{metric.key} is {value!r}, expected a number "
                f"within -{_LARGEST:g} and {_LARGEST:g}; {_REMEDY}"
            )
    return results


# --- Tables --------------------------------------------------------------------------------------


def label_of(metric: Metric, results: Results) -> str:
    """Return the label of a metric for a network.

    The label names the program that generated a C set, and the number of images of an attack on
    some images.
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
    """Return the table of networks' metrics: the names, then a row for each metric of any network.

    A star marks the best value of a row. Results on a generated C set and on the official one are
    in different rows.
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
                cells = ["-" if value is None else metric.format(value) for value in values]
                scores = [None if value is None else metric.goodness(value) for value in values]
                rows.append((label, *with_best_marked(cells, scores)))
    return rows


def table(columns: Mapping[str, Results], missing: Mapping[str, str]) -> str:
    """Return the metrics of one or more networks as lines of aligned text.

    Args:
        columns: results by the name of the network.
        missing: why a suite was not measured, by its name.
    """
    datasets = next(
        (results["ood"]["datasets"] for results in columns.values() if "ood" in results), ()
    )
    notes = [f"OOD detection is the mean over {', '.join(datasets)}"] if datasets else []
    notes += notes_of(columns)
    notes += [f"not measured: {name}: {why}" for name, why in missing.items()]
    return "\n".join([*aligned(rows_of(columns)), *([""] if notes else []), *notes])


def notes_of(columns: Mapping[str, Results]) -> list[str]:
    """Return the notes below a table: the meaning of a star, and trainings that overlap C."""
    return [*([BEST_NOTE] if has_best_mark(rows_of(columns)) else []), *overlaps_of(columns)]


def overlaps_of(columns: Mapping[str, Results]) -> list[str]:
    """Return a sentence for each network whose training operations overlap the corruptions of C."""
    return [
        f"{name} was trained with operations that overlap the corruptions of C "
        f"({', '.join(results['c']['overlap'])}): its error on C is not an error on unseen "
        "corruptions"
        for name, results in columns.items()
        if results.get("c", {}).get("overlap")
    ]


# --- Radar plot ----------------------------------------------------------------------------------

_LIMITS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100)
"""Distances from the best possible value at which an axis may begin, in per cent."""


def shared_metrics(columns: Mapping[str, Results]) -> list[tuple[Metric, str]]:
    """Return the headline metrics in per cent that all networks have, each with its label.

    A metric on a generated C set for one network and on the official one for another is left out.
    """
    shown = []
    for metric in HEADLINES:
        labels = {label_of(metric, results) for results in columns.values()}
        measured = all(metric.key in results.get(metric.suite, ()) for results in columns.values())
        if metric.unit == "%" and measured and len(labels) == 1:
            shown.append((metric, labels.pop()))
    return shown


def axis_limit(metric: Metric, columns: Mapping[str, Results]) -> float:
    """Return the value, 0 to 1, at the centre of a metric's radar axis.

    Each axis has its own scale, because a calibration error of 2 % and one of 5 % would look the
    same beside an error of 60 %. The rim is the best possible value, and the worst network is about
    a third of the way from the centre.
    """
    gaps = [1 - metric.goodness(results[metric.suite][metric.key]) for results in columns.values()]
    needed = 150 * max(gaps)
    limit = next((each for each in _LIMITS if each >= needed), _LIMITS[-1]) / 100
    return 1 - limit if metric.better == "larger" else limit


def radius(metric: Metric, value: float, limit: float) -> float:
    """Return where a value is on a metric's radar axis: 0 at the centre, 1 at the rim."""
    best = 1.0 if metric.better == "larger" else 0.0
    return max(0.0, (value - limit) / (best - limit))


def radar(columns: Mapping[str, Results]) -> bytes:
    """Draw the metrics of networks as a radar plot, and return a PNG file.

    Raises:
        PipelineError: if the extra `viz` is not installed, or there are fewer than three metrics.
    """
    check_plotting()
    from matplotlib.figure import Figure

    shown = shared_metrics(columns)
    if len(shown) < 3:
        raise PipelineError(
            f"a radar plot needs at least 3 metrics, not {len(shown)}; evaluate more suites"
        )
    # Small, so that the labels are legible on a phone.
    figure = Figure(figsize=(6.2, 5.8), layout="constrained")
    axes = cast("PolarAxes", figure.add_subplot(projection="polar"))
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    angles = [2 * math.pi * position / len(shown) for position in range(len(shown))]
    limits = [axis_limit(metric, columns) for metric, _ in shown]
    for name, results in columns.items():
        radii = [
            radius(metric, results[metric.suite][metric.key], limit)
            for (metric, _), limit in zip(shown, limits, strict=True)
        ]
        axes.plot([*angles, angles[0]], [*radii, radii[0]], marker="o", label=legend_name(name))
        axes.fill([*angles, angles[0]], [*radii, radii[0]], alpha=0.15)
    axes.set_xticks(angles, [])
    for angle, (metric, label), limit in zip(angles, shown, limits, strict=True):
        side, up = math.sin(angle), math.cos(angle)
        best = "100 %" if metric.better == "larger" else "0 %"
        axes.text(
            angle,
            1.07,
            f"{textwrap.fill(label, 18)}\n{100 * limit:.0f} to {best}",
            ha="center" if abs(side) < 0.1 else "left" if side > 0 else "right",
            va="center" if abs(up) < 0.85 else "bottom" if up > 0 else "top",
        )
    axes.set_ylim(0, 1)
    axes.set_yticks([0.25, 0.5, 0.75, 1.0], [])
    figure.legend(
        loc="outside lower center",
        ncols=3,
        frameon=False,
        title="Further out is better. Each axis has its own\nscale, from the centre to the rim.",
    )
    return plot_png(figure, dpi=120)
