"""Plain numba implementations of our chaos-game kernels, for comparison.

They use a single orbit, float64, the math library, numba's random numbers, a linear search in the
cumulative weights, and float64 counts. `play_flame` is the flame algorithm of S. Draves and
E. Reckase ("The Fractal Flame Algorithm", section 3); `play_affine` is a chaos game of affine maps.

`keep_orbit`, `extent` and `count_points` reimplement the generator of C. Anderson and R. Farrell
("Improving Fractal Pre-training", arXiv 2110.03091, section 3, and
https://github.com/catalys1/fractal-pretraining, fractals/ifs.py): they store all points, find their
extent, and count them, without color. As in their code, each step takes a flat view of its map,
whose reference counting is two thirds of the time: 15 instead of 45 M points/s.

Tests check that they render the same images as our kernels.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fractals.chaos import ChaosLayer
from pixmix.compiling import kernel

WARM_UP = 24
"""Number of steps before the first point is counted, as in `fractals.chaos_kernels`."""

_FAR = 1e6
_NUMBERS = {"sinusoidal": 0, "spherical": 1, "swirl": 2, "polar": 3, "julian": 4}


class System(NamedTuple):
    """A system of n maps with t variation terms as arrays.

    affine: (n, 6) float64, x' = a x + b y + c, y' = d x + e y + f. cumulative: (n,) float64, ending
    with 1. colours, speeds: (n,) float64. first: (n + 1,) int64, the first term of each map.
    numbers: (t,) int64. weights: (t,) float64. parameters: (t, 2) float64.
    """

    affine: NDArray[np.float64]
    cumulative: NDArray[np.float64]
    colours: NDArray[np.float64]
    speeds: NDArray[np.float64]
    first: NDArray[np.int64]
    numbers: NDArray[np.int64]
    weights: NDArray[np.float64]
    parameters: NDArray[np.float64]


def system(layer: ChaosLayer) -> System:
    """Return a layer's maps as arrays, without post maps, final maps and symmetry."""
    terms = [term for each in layer.maps for term in each.variations]
    weights = np.array([each.weight for each in layer.maps])
    parameters = np.zeros((len(terms), 2))
    for row, term in zip(parameters, terms, strict=True):
        row[: len(term.parameters)] = term.parameters
    return System(
        affine=np.array([each.affine for each in layer.maps]),
        cumulative=np.cumsum(weights) / weights.sum(),
        colours=np.array([each.colour for each in layer.maps]),
        speeds=np.array([each.speed for each in layer.maps]),
        first=np.cumsum([0, *(len(each.variations) for each in layer.maps)]),
        numbers=np.array([_NUMBERS[term.name] for term in terms], np.int64),
        weights=np.array([term.weight for term in terms]),
        parameters=parameters,
    )


def box(layer: ChaosLayer, height: int, width: int) -> NDArray[np.float64]:
    """Return the window of a layer's camera, without rotation: (4,) float64, x0 y0 x1 y1."""
    per_pixel = layer.camera.width / min(height, width)
    x, y = layer.camera.centre
    half_x, half_y = per_pixel * width / 2, per_pixel * height / 2
    return np.array([x - half_x, y - half_y, x + half_x, y + half_y])


@kernel
def play_affine(affine, cumulative, colours, box, points, seed, counts, colour_sums):
    """Play the chaos game of affine maps, with each point in the color of its last map.

    affine, cumulative, colours: see `System`. box: (4,) float64, x0 y0 x1 y1. points: number after
    the warm-up. seed: of numba's generator. counts, colour_sums: (height, width) float64, added to,
    row 0 at y0.
    """
    np.random.seed(seed)
    height, width = counts.shape
    x0, y0, x1, y1 = box
    scale_x, scale_y = width / (x1 - x0), height / (y1 - y0)
    x = y = 0.0
    for step in range(points + WARM_UP):
        mark = np.random.random()
        k = 0
        while mark >= cumulative[k] and k < len(cumulative) - 1:
            k += 1
        a, b, c, d, e, f = affine[k]
        x, y = a * x + b * y + c, d * x + e * y + f
        if step >= WARM_UP and x0 <= x < x1 and y0 <= y < y1:
            row, column = int((y - y0) * scale_y), int((x - x0) * scale_x)
            counts[row, column] += 1.0
            colour_sums[row, column] += colours[k]


@kernel
def keep_orbit(matrices, cumulative, points, seed):
    """Return the points of a chaos game, (points, 2) float64, after the warm-up.

    matrices: (n, 2, 3) float64, each map [A | b], contractive; cumulative, seed: see `play_affine`.
    """
    np.random.seed(seed)
    kept = np.empty((points, 2))
    x = y = 0.0
    for step in range(points + WARM_UP):
        mark = np.random.random()
        k = 0
        while mark >= cumulative[k] and k < len(cumulative) - 1:
            k += 1
        a, b, c, d, e, f = matrices[k].ravel()
        x, y = a * x + b * y + c, d * x + e * y + f
        if step >= WARM_UP:
            kept[step - WARM_UP] = x, y
    return kept


@kernel
def extent(kept):
    """Return the box of points (n, 2) float64: (4,) float64, x0 y0 x1 y1."""
    x0 = y0 = np.inf
    x1 = y1 = -np.inf
    for i in range(len(kept)):
        x, y = kept[i]
        x0, y0 = min(x0, x), min(y0, y)
        x1, y1 = max(x1, x), max(y1, y)
    return np.array([x0, y0, x1, y1])


@kernel
def count_points(kept, box, counts):
    """Count the points inside a box, and ignore the others.

    kept: (n, 2) float64; box: see `play_affine`; counts: (height, width) float64, added to.
    """
    height, width = counts.shape
    scale_x, scale_y = width / (box[2] - box[0]), height / (box[3] - box[1])
    for i in range(len(kept)):
        row = math.floor((kept[i, 1] - box[1]) * scale_y)
        column = math.floor((kept[i, 0] - box[0]) * scale_x)
        if 0 <= row < height and 0 <= column < width:
            counts[row, column] += 1.0


@kernel
def vary(number, x, y, parameters):
    """Return a variation of a point (Draves & Reckase, appendix, V1 V2 V3 V5 V32)."""
    if number == 0:
        return math.sin(x), math.sin(y)
    square = x * x + y * y + 1e-10
    if number == 1:
        return x / square, y / square
    if number == 2:
        s, c = math.sin(square), math.cos(square)
        return x * s - y * c, x * c + y * s
    if number == 3:
        return math.atan2(x, y) / math.pi, math.sqrt(square) - 1.0
    roots, distance = parameters[0], parameters[1]
    turns = math.floor(abs(roots) * np.random.random())
    angle = (math.atan2(y, x) + 2.0 * math.pi * turns) / roots
    radius = math.pow(square, distance / roots / 2.0)
    return radius * math.cos(angle), radius * math.sin(angle)


@kernel
def play_flame(system, box, points, seed, counts, colour_sums):
    """Play the chaos game of the flame algorithm, with a color coordinate that follows the orbit.

    system: `System`; the rest: see `play_affine`.
    """
    np.random.seed(seed)
    height, width = counts.shape
    x0, y0, x1, y1 = box
    scale_x, scale_y = width / (x1 - x0), height / (y1 - y0)
    x = y = colour = 0.0
    for step in range(points + WARM_UP):
        mark = np.random.random()
        k = 0
        while mark >= system.cumulative[k] and k < len(system.cumulative) - 1:
            k += 1
        a, b, c, d, e, f = system.affine[k]
        u, v = a * x + b * y + c, d * x + e * y + f
        x = y = 0.0
        for term in range(system.first[k], system.first[k + 1]):
            to_x, to_y = vary(system.numbers[term], u, v, system.parameters[term])
            x += system.weights[term] * to_x
            y += system.weights[term] * to_y
        colour += system.speeds[k] * (system.colours[k] - colour)
        if not abs(x) + abs(y) < _FAR:
            x, y = 2.0 * np.random.random() - 1.0, 2.0 * np.random.random() - 1.0
        if step >= WARM_UP and x0 <= x < x1 and y0 <= y < y1:
            row, column = int((y - y0) * scale_y), int((x - x0) * scale_x)
            counts[row, column] += 1.0
            colour_sums[row, column] += colour
