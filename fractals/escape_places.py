"""Where to look and how to colour it: an escape-time layer from a stream of numbers.

A window is found by zooming in on places where the iteration count changes fast, on grids of
16 x 16 orbits. What a last grid says of the window decides whether it is kept, how many iterations
it shows before its detail is finer than a pixel, and how many palette turns each feature gets.
"""

# Compiled numbers have types of their own, which annotations of plain Python cannot tell apart.
# mypy: disable-error-code="return-value, assignment, no-any-return"

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fractals.elementary import exponential2
from fractals.escape import (
    FORMULAS,
    TRAPS,
    EscapeLayer,
    measure_orbits,
    orbits_of,
    turn,
    window_frame,
)
from fractals.random import Draws
from pixmix.compiling import kernel

_F = np.float32
# Where the descent starts in the plane of each formula's parameter: x, y, width.
_GROUNDS = {
    "power": (-0.3, 0.0, 2.6),
    "ship": (-0.5, -0.4, 3.0),
    "tricorn": (-0.2, 0.0, 3.4),
    "celtic": (-0.6, 0.0, 3.2),
    "phoenix": (0.0, 0.0, 2.6),
    "rings": (0.0, 0.0, 2.6),
    "newton": (0.0, 0.0, 2.0),
}
_JULIA_WIDTH = 2.6
_FORMULA_WEIGHTS = (0.42, 0.12, 0.08, 0.08, 0.08, 0.1, 0.12)
# Palette turns over a window by smooth count, trap, wave and cells; chosen by eye from sheets.
_RECIPES = (
    (1.0, 0.0, 0.0, 0.2),
    (1.2, 0.0, 0.2, 0.0),
    (0.6, 0.0, 0.4, 0.0),
    (0.3, 0.8, 0.0, 0.0),
    (0.6, 0.4, 0.0, 0.15),
)
_RECIPE_WEIGHTS = (0.2, 0.15, 0.12, 0.37, 0.16)
_SURVEY = 16
_TRIES = 8
# Iterations while looking for a place, and while its own number of them is being found.
_SEARCH_ITERATIONS, _FINDING_ITERATIONS = 96, 320
# A window is at fault with less than this share escaping, or more than this share calm, or dusty,
# or more than this coherence of its slopes, which is 1 where all lines are parallel.
_LEAST_OUTSIDE, _MOST_CALM, _MOST_DUSTY, _MOST_STRIPED = 0.5, 0.45, 0.05, 0.6
# Neighbours on the survey grid whose counts differ by less are calm: three counts a window.
_CALM_CHANGE = 0.2
# Part of a feature's spread that may change within a 256th of the window.
_DUSTY_CHANGE = 0.4
# Features that hardly vary are not magnified further than this.
_LEAST_SPREAD = 0.02


@kernel
def _choose(features: NDArray[np.float32], unit: float) -> tuple[int, int]:
    """Choose a sample near the border of the set, weighted by how fast the count changes there.

    features: (4, rows, columns) float32, of a survey. unit: in [0, 1). Returns (row, column), the
    middle where nothing changes.
    """
    smooth = features[0]
    rows, columns = smooth.shape
    weights = np.zeros((rows, columns))
    total = 0.0
    for row in range(1, rows - 1):
        for column in range(1, columns - 1):
            low, high = 1e9, -1e9
            for i in range(-1, 2):
                for j in range(-1, 2):
                    value = smooth[row + i, column + j]
                    if value >= 0.0:
                        low, high = min(low, value), max(high, value)
            if smooth[row, column] >= 0.0 and high > low:
                total += min(high - low, 2.0) ** 2
            weights[row, column] = total
    mark = unit * total
    for row in range(1, rows - 1):
        for column in range(1, columns - 1):
            if weights[row, column] > mark:
                return row, column
    return rows // 2, columns // 2


@kernel
def _spread(values: NDArray[np.float32], n: int) -> tuple[float, float, float]:
    """Return the 10th percentile, median and 90th of values[:n], 0 where there are fewer than 8."""
    if n < 8:
        return 0.0, 0.0, 0.0
    ordered = np.sort(values[:n])
    return ordered[n // 10], ordered[n // 2], ordered[n * 9 // 10]


@kernel
def _coherence(values: NDArray[np.float32]) -> float:
    """Return how parallel the lines of a survey are, 0 to 1: the coherence of its structure tensor.

    values: (rows, columns) float32; below 0 where there is nothing to compare.
    """
    xx, xy, yy = 0.0, 0.0, 0.0
    for row in range(1, values.shape[0]):
        for column in range(1, values.shape[1]):
            here, left, above = (
                values[row, column],
                values[row, column - 1],
                values[row - 1, column],
            )
            if here >= 0.0 and left >= 0.0 and above >= 0.0:
                # Slopes are limited, lest the set's border alone decide.
                dx = min(max(here - left, -0.25), 0.25)
                dy = min(max(here - above, -0.25), 0.25)
                xx += dx * dx
                xy += dx * dy
                yy += dy * dy
    return np.sqrt((xx - yy) * (xx - yy) + 4.0 * xy * xy) / (xx + yy + 1e-9)


@kernel
def _calm_and_dusty(
    features: NDArray[np.float32],
    shifted: NDArray[np.float32],
    smooth_spread: float,
    trap_spread: float,
    inner_trap_spread: float,
) -> tuple[float, float]:
    """Return the share of neighbours alike in count, and of samples unlike the shifted ones.

    features, shifted: (4, rows, columns) float32. Spreads: how far the features range.
    """
    rows, columns = features.shape[1], features.shape[2]
    calm, dusty, pairs = 0, 0, 0
    for row in range(rows):
        for column in range(columns - 1):
            here, there = features[0, row, column], features[0, row, column + 1]
            if here >= 0.0 and there >= 0.0:
                pairs += 1
                calm += 1 if abs(exponential2(here) - exponential2(there)) < _CALM_CHANGE else 0
            there = shifted[0, row, column]
            trap_change = abs(features[1, row, column] - shifted[1, row, column])
            if here >= 0.0:
                unlike = there < 0.0 or abs(there - here) > _DUSTY_CHANGE * smooth_spread
                unlike = unlike or trap_change > _DUSTY_CHANGE * trap_spread
            else:
                unlike = there >= 0.0 or trap_change > _DUSTY_CHANGE * inner_trap_spread
            dusty += 1 if unlike else 0
    return calm / max(pairs, 1), dusty / (rows * (columns - 1))


@kernel
def _appraise(features: NDArray[np.float32], shifted: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return what a survey says of a window.

    features: (4, rows, columns) float32; shifted: the same a pixel further. Returns (11,) float64:
    the shares of samples that escaped, of neighbours whose counts hardly differ, of samples whose
    features a pixel further are unlike; the coherence of the lines; median and 90th percentile of
    the count; then the width of the middle eight tenths of log count, trap and wave outside, of
    trap and wave inside.
    """
    rows, columns = features.shape[1], features.shape[2]
    smooth = features[0]
    values = np.empty((5, rows * columns), np.float32)
    outside, inside = 0, 0
    for row in range(rows):
        for column in range(columns):
            if smooth[row, column] >= 0.0:
                for feature in range(3):
                    values[feature, outside] = features[feature, row, column]
                outside += 1
            else:
                values[3, inside] = features[1, row, column]
                values[4, inside] = features[2, row, column]
                inside += 1
    result = np.zeros(11)
    for k in range(5):
        low, middle, high = _spread(values[k], outside if k < 3 else inside)
        result[6 + k] = max(high - low, _LEAST_SPREAD)
        if k == 0:
            result[4], result[5] = exponential2(_F(middle)) - 1.0, exponential2(_F(high)) - 1.0
    result[0] = outside / (rows * columns)
    result[1], result[2] = _calm_and_dusty(features, shifted, result[6], result[7], result[9])
    result[3] = _coherence(smooth)
    return result


class _Look(NamedTuple):
    """What a survey says of a window; the fields are those of `_appraise`."""

    outside: float
    calm: float
    dusty: float
    striped: float
    median_count: float
    many_count: float
    smooth_spread: float
    trap_spread: float
    wave_spread: float
    inner_trap_spread: float
    inner_wave_spread: float


def _significant(value: float) -> float:
    """Round to five significant digits, so that another machine's last bit cannot show."""
    return float(f"{value:.5g}")


def _survey(layer: EscapeLayer, aside: int) -> _Look:
    """Look at a window through a coarse grid of orbits, and at the same a little aside.

    aside: 256ths of the window between the two; 0 looks once, and finds nothing dusty.
    """
    orbits = orbits_of(layer)
    frame = window_frame(layer.centre, layer.width, layer.rotation, _SURVEY, _SURVEY)
    here = measure_orbits(orbits, frame, layer.width, 0, _SURVEY, _SURVEY)
    shifted = here
    if aside:
        frame[:2] += frame[2:4] * (_SURVEY * aside / 256)
        shifted = measure_orbits(orbits, frame, layer.width, 0, _SURVEY, _SURVEY)
    return _Look(*_appraise(here, shifted).tolist())


def _fault(look: _Look) -> float:
    """Return how far a window is from showing something everywhere; 0 is good."""
    return (
        max(_LEAST_OUTSIDE - look.outside, 0.0)
        + max(look.calm - _MOST_CALM, 0.0)
        + 2.0 * max(look.dusty - _MOST_DUSTY, 0.0)
        + max(look.striped - _MOST_STRIPED, 0.0)
    )


def _descend(draws: Draws, layer: EscapeLayer, width: float) -> EscapeLayer:
    """Zoom in on the border of the set until the window is `width` plane units wide."""
    orbits = orbits_of(layer)
    x, y = layer.centre
    span = layer.width
    while span > 1.01 * width:
        frame = window_frame((x, y), span, 0.0, _SURVEY, _SURVEY)
        features = measure_orbits(orbits, frame, span, 0, _SURVEY, _SURVEY)
        row, column = _choose(features, draws.unit())
        x = round(float(frame[0] + column * frame[2] + row * frame[4]), 9)
        y = round(float(frame[1] + column * frame[3] + row * frame[5]), 9)
        span = _significant(max(span / draws.uniform(2.5, 5.0), width))
    return replace(layer, centre=(x, y), width=span)


def _draw_formula(draws: Draws) -> EscapeLayer:
    """Draw a formula with its numbers, looking at the whole plane of its parameter."""
    formula = draws.weighted(FORMULAS, _FORMULA_WEIGHTS)
    power = draws.weighted((2, 3), (0.75, 0.25))
    coefficient = (0.0, 0.0)
    if formula == "power":
        power = draws.weighted((2, 3, 4, 5), (0.6, 0.2, 0.12, 0.08))
    elif formula == "rings":
        power = draws.choice((2, 3, 3))
    elif formula == "phoenix":
        power = 2
        coefficient = (round(draws.uniform(-0.7, 0.5), 4), round(draws.uniform(-0.2, 0.2), 4))
    elif formula == "newton":
        power = draws.choice((3, 4, 5))
        coefficient = (round(draws.uniform(0.7, 1.5), 4), round(draws.uniform(-0.5, 0.5), 4))
    x, y, width = _GROUNDS[formula]
    return EscapeLayer(
        formula=formula,
        power=power,
        plane="julia" if formula == "rings" else "parameter",
        coefficient=coefficient,
        centre=(x, y),
        width=width,
        max_iterations=_SEARCH_ITERATIONS,
    )


def _draw_constant(draws: Draws, layer: EscapeLayer) -> tuple[float, float]:
    """Draw the constant of a Julia set: near the border of its formula's parameter set."""
    if layer.formula == "rings":
        size, (cosine, sine) = 2 ** draws.uniform(-7.0, -1.5), turn(draws.unit())
        return _significant(size * cosine), _significant(size * sine)
    if layer.formula == "newton":
        if draws.chance(0.4):
            return 0.0, 0.0
        return round(draws.uniform(-0.3, 0.3), 4), round(draws.uniform(-0.3, 0.3), 4)
    return _descend(draws, layer, layer.width / 2 ** draws.uniform(3.0, 7.0)).centre


def _draw_window(draws: Draws) -> EscapeLayer:
    """Draw a formula and a window on its border; a third of Julia sets are shown whole."""
    layer = _draw_formula(draws)
    if layer.plane == "parameter" and draws.chance(0.4):
        return _descend(draws, layer, layer.width / 2 ** draws.uniform(0.5, 11.0))
    constant = _draw_constant(draws, layer)
    layer = replace(layer, plane="julia", constant=constant, centre=(0.0, 0.0), width=_JULIA_WIDTH)
    if draws.chance(0.35):
        return replace(layer, width=_significant(2 ** draws.uniform(-2.5, 1.2)))
    return _descend(draws, layer, _JULIA_WIDTH / 2 ** draws.uniform(0.3, 6.5))


def _draw_place(draws: Draws) -> tuple[EscapeLayer, _Look]:
    """Draw windows until one has no fault, or return the least faulty."""
    found: list[tuple[float, EscapeLayer, _Look]] = []
    for _ in range(_TRIES):
        layer = replace(
            _draw_window(draws),
            rotation=round(draws.unit(), 4),
            max_iterations=_FINDING_ITERATIONS,
            trap=draws.choice(TRAPS),
            trap_centre=(round(draws.uniform(-0.6, 0.6), 3), round(draws.uniform(-0.6, 0.6), 3)),
            trap_rotation=round(draws.unit(), 4),
            trap_size=round(draws.uniform(0.1, 0.9), 3),
            wave_phase=round(draws.unit(), 4),
            wave_detail=round(draws.unit(), 3),
        )
        look = _survey(layer, aside=0)
        limit = look.median_count + (look.many_count - look.median_count) * draws.uniform(0.2, 1.0)
        limit = min(max(4 * int(limit / 4 + 1), 8), _FINDING_ITERATIONS)
        layer = replace(layer, max_iterations=limit)
        fault = _fault(look)
        if fault == 0.0:
            look = _survey(layer, aside=1)
            fault = _fault(look)
        found.append((fault, layer, look))
        if fault == 0.0:
            break
    _, layer, look = min(found, key=lambda item: item[0])
    return layer, look


def draw_escape(draws: Draws) -> EscapeLayer:
    """Draw a layer: an interesting window of a random formula, and colours that suit it.

    draws: the genome's stream; advanced.
    """
    layer, look = _draw_place(draws)
    smooth, trap, wave, cell = draws.weighted(_RECIPES, _RECIPE_WEIGHTS)
    inner_trap = draws.unit()
    # A calm window gets more turns, a lively one shows enough by itself.
    turns = draws.uniform(0.5, 1.2) * (1.0 + look.calm)
    return replace(
        layer,
        smooth_turns=_significant(turns * smooth / look.smooth_spread),
        trap_turns=_significant(turns * trap / look.trap_spread),
        wave_turns=_significant(turns * wave / look.wave_spread),
        cell_turns=round(turns * cell * draws.uniform(0.5, 1.2), 3),
        inner_trap_turns=_significant(turns * inner_trap / look.inner_trap_spread),
        inner_wave_turns=_significant(turns * (1.0 - inner_trap) / look.inner_wave_spread),
        phase=round(draws.unit(), 4),
        inner_phase=round(draws.unit(), 4),
        relief=round(draws.uniform(0.1, 0.6), 3),
        light_rotation=round(draws.unit(), 4),
        steepness=_significant(draws.uniform(0.02, 0.08) / turns),
        edge=round(draws.uniform(-0.9, 0.7), 3),
        edge_phase=round(draws.unit(), 4),
        glow=round(draws.uniform(0.2, 0.8), 3) if trap and draws.chance(0.6) else 0.0,
        glow_reach=_significant(2 ** draws.uniform(-8.0, -4.0)),
    )
