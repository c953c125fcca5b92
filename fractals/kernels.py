"""The chaos game: maps and a window -> points and colour a pixel.

2,048 orbits are kept as arrays. A step permutes them by i -> a i + b mod 2,048 (a odd, both
random), cuts the array into one segment a map, as long as the map's weight says, and applies each
map to its segment in loops that vectorise. Each orbit so meets map k with its weight's probability
at every step, as in the one-orbit game (tests/reference.py), to the rounding of a weight to
1/2,048.

One accumulator word a pixel: points << 40 | sum of 16-bit colour coordinates, so that a point costs
one 64-bit addition. A word holds 2^24 points; `play` is called again before that many are plotted.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fractals.elementary import F, cosine, floor, sine
from fractals.genome import Affine, Camera, ChaosLayer, Map
from fractals.random import next_word, random_state
from fractals.variations import VARIATION_NUMBER, add_variation, next_noise, noise_unit
from pixmix.compiling import fma, kernel, merged_kernel

ORBITS = 2048
WARM_UP = 16
"""Steps before the first point is plotted.

A map of contraction 0.7 has then forgotten its start to 3e-3, under a pixel. The maps of a symmetry
forget nothing: there up to 0.4 % of the points, and 0.8 % of the colour, of the first 24 steps are
still the start's (tests/test_kernels.py).
"""
MOST_STEPS = (1 << 24) // ORBITS - 1

_COUNT_SHIFT = np.uint64(40)
_COLOUR_BITS = np.uint64((1 << 40) - 1)
_ONE_POINT = np.uint64(1 << 40)
_COLOUR_STEPS = F(65535.0)
_MASK = np.uint32(ORBITS - 1)
_U0, _U1 = np.uint32(0), np.uint32(1)
_ZERO, _HALF, _ONE, _TWO = F(0), F(0.5), F(1), F(2)
_FAR = F(1e6)
_UNIT_24 = F(2.0**-24)
_LOW_24 = np.uint64(0xFFFFFF)
_FOLDS = {"none": 0, "mirror": 1, "wrap": 2}


class Program(NamedTuple):
    """A system as arrays: n maps (those of the symmetry last), then the final map if there is one.

    affine, post: (m, 6) float32; has_post: (m,) bool; pull, keep: (m,) float32, colour' = keep
    colour + pull; bounds: (n + 1,) int64, segment borders among the orbits; first: (m + 1,) int64,
    into the terms numbers (t,) int64, weights (t,) float32, parameters (t, 4) float32.
    """

    affine: NDArray[np.float32]
    post: NDArray[np.float32]
    has_post: NDArray[np.bool_]
    pull: NDArray[np.float32]
    keep: NDArray[np.float32]
    bounds: NDArray[np.int64]
    first: NDArray[np.int64]
    numbers: NDArray[np.int64]
    weights: NDArray[np.float32]
    parameters: NDArray[np.float32]
    has_final: bool


class Orbits(NamedTuple):
    """The state of a game: x, y, colour, all (2, ORBITS) float32, and noise (ORBITS,) uint32."""

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    colour: NDArray[np.float32]
    noise: NDArray[np.uint32]


@kernel
def turn(angle, out):
    """Write cosine and sine of an angle in radians into out, (2,) float32.

    Alike on every machine.
    """
    out[0], out[1] = cosine(F(angle)), sine(F(angle))


def _rotation(angle: float) -> tuple[float, float]:
    out = np.empty(2, np.float32)
    turn(angle, out)
    return float(out[0]), float(out[1])


def _symmetry_maps(symmetry: int, weight: float) -> list[Map]:
    """Return the maps that give a system its symmetry.

    Each is as heavy as all the layer's own maps together and keeps colours.
    """
    n = abs(symmetry)
    turns: list[Affine] = []
    for i in range(1, n):
        c, s = _rotation(2 * np.pi * i / n)
        turns.append((c, -s, 0.0, s, c, 0.0))
    if symmetry < 0:
        turns.append((-1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    return [Map(affine=matrix, weight=weight, speed=0.0) for matrix in turns]


def segment_bounds(weights: list[float]) -> NDArray[np.int64]:
    """Return borders, (n + 1,) int64, that cut the orbits in proportion to the weights.

    None left empty.
    """
    total = sum(weights)
    borders, so_far = [0], 0.0
    for i, weight in enumerate(weights):
        so_far += weight
        rest = len(weights) - 1 - i
        borders.append(min(max(round(ORBITS * so_far / total), borders[-1] + 1), ORBITS - rest))
    return np.array(borders, np.int64)


def compile_layer(layer: ChaosLayer) -> Program:
    """Return the layer's system as the arrays that `play` takes."""
    weight = sum(each.weight for each in layer.maps)
    maps = [*layer.maps, *_symmetry_maps(layer.symmetry, weight)]
    bounds = segment_bounds([each.weight for each in maps])
    if layer.final is not None:
        maps.append(layer.final)
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    terms = [term for each in maps for term in each.variations]
    first = np.zeros(len(maps) + 1, np.int64)
    parameters = np.zeros((len(terms), 4), np.float32)
    for k, each in enumerate(maps):
        first[k + 1] = first[k] + len(each.variations)
    for j, term in enumerate(terms):
        parameters[j, : len(term.parameters)] = term.parameters
    return Program(
        affine=np.array([each.affine for each in maps], np.float32),
        post=np.array([each.post or identity for each in maps], np.float32),
        has_post=np.array([each.post is not None for each in maps], np.bool_),
        pull=np.array([each.colour * each.speed for each in maps], np.float32),
        keep=np.array([1.0 - each.speed for each in maps], np.float32),
        bounds=bounds,
        first=first,
        numbers=np.array([VARIATION_NUMBER[term.name] for term in terms], np.int64),
        weights=np.array([term.weight for term in terms], np.float32),
        parameters=parameters,
        has_final=layer.final is not None,
    )


def window(camera: Camera, height: int, width: int) -> NDArray[np.float32]:
    """Return the affine map, (6,) float32, from the plane to pixels: x to the right, y down."""
    scale = min(height, width) / camera.width
    c, s = _rotation(camera.rotation)
    a, b = scale * c, -scale * s
    x, y = camera.centre
    return np.array(
        [a, b, width / 2 - (a * x + b * y), -b, a, height / 2 - (-b * x + a * y)],
        np.float32,
    )


def start_orbits(state: NDArray[np.uint64]) -> Orbits:
    """Return orbits at random points of [-1, 1]^2 with random colours.

    Advances state, (4,) uint64.
    """
    orbits = Orbits(
        np.empty((2, ORBITS), np.float32),
        np.empty((2, ORBITS), np.float32),
        np.empty((2, ORBITS), np.float32),
        np.empty(ORBITS, np.uint32),
    )
    _scatter_orbits(state, orbits)
    return orbits


@kernel
def _scatter_orbits(state, orbits):
    x, y, colour, noise = orbits.x[0], orbits.y[0], orbits.colour[0], orbits.noise
    for i in range(len(noise)):
        word = next_word(state)
        x[i] = F(np.int64(word & _LOW_24)) * _UNIT_24 * _TWO - _ONE
        y[i] = F(np.int64((word >> np.uint64(24)) & _LOW_24)) * _UNIT_24 * _TWO - _ONE
        word = next_word(state)
        colour[i] = F(np.int64(word & _LOW_24)) * _UNIT_24
        noise[i] = np.uint32((word >> np.uint64(32)) | np.uint64(1))


@merged_kernel
def _fetch(a, b, affine, keep, pull, k, x, y, c, before, low, high, to_x, to_y):
    """Fetch orbits low..high through i -> a i + b and apply map k's affine part and colour.

    x, y, c: (2, ORBITS); row `before` is read, c's other row written; to_x, to_y: (2, ORBITS),
    whose row 1 - before is written. Whole arrays and unsigned indices: a slice or a row costs a
    reference count, 5 to 10 ns, a signed index a test; a loop that gathers does not vectorise
    anyway.
    """
    m0, m1, m2 = affine[k, 0], affine[k, 1], affine[k, 2]
    m3, m4, m5 = affine[k, 3], affine[k, 4], affine[k, 5]
    kept, pulled = keep[k], pull[k]
    old, new = np.uint32(before), np.uint32(1 - before)
    for i in range(np.uint32(low), np.uint32(high)):
        j = np.uint32(np.uint32(np.uint32(a * np.uint32(i)) + b) & _MASK)
        u, v = x[old, j], y[old, j]
        to_x[new, i] = fma(m0, u, fma(m1, v, m2))
        to_y[new, i] = fma(m3, u, fma(m4, v, m5))
        c[new, i] = fma(kept, c[old, j], pulled)


@kernel
def _apply_affine(m, x, y):
    m0, m1, m2, m3, m4, m5 = m[0], m[1], m[2], m[3], m[4], m[5]
    for i in range(len(x)):
        u, v = x[i], y[i]
        x[i] = fma(m0, u, fma(m1, v, m2))
        y[i] = fma(m3, u, fma(m4, v, m5))


@kernel
def _count_fled(x, y):
    fled = np.int32(0)
    for i in range(len(x)):
        fled += np.int32(0) if abs(x[i]) + abs(y[i]) < _FAR else np.int32(1)
    return fled


@kernel
def _restart_fled(x, y, noise):
    """Restart, at a random point of [-1, 1]^2, orbits that fled or are not numbers."""
    for i in range(len(x)):
        u, v = x[i], y[i]
        good = abs(u) + abs(v) < _FAR
        first = next_noise(noise[i])
        second = next_noise(first)
        noise[i] = noise[i] if good else second
        x[i] = u if good else noise_unit(first) * _TWO - _ONE
        y[i] = v if good else noise_unit(second) * _TWO - _ONE


@kernel
def _project(camera, width, height, x, y, c, cell, ink):
    """Turn points of the plane into cell numbers (width * height outside) and 16-bit colours."""
    m0, m1, m2, m3, m4, m5 = camera[0], camera[1], camera[2], camera[3], camera[4], camera[5]
    limit_x, limit_y = F(width), F(height)
    stride, outside = np.int32(width), np.int32(width * height)
    for i in range(len(x)):
        u = fma(m0, x[i], fma(m1, y[i], m2))
        v = fma(m3, x[i], fma(m4, y[i], m5))
        inside = (u >= _ZERO) & (u < limit_x) & (v >= _ZERO) & (v < limit_y)
        place = np.int32(np.int32(np.int32(v) * stride) + np.int32(u))
        cell[i] = place if inside else outside
        ink[i] = np.int32(fma(c[i], _COLOUR_STEPS, _HALF))


@kernel
def _project_folded(camera, fold, width, height, x, y, c, cell, ink):
    """As `_project`, points first brought into the window.

    1 reflects at the borders, 2 wraps around.
    """
    m0, m1, m2, m3, m4, m5 = camera[0], camera[1], camera[2], camera[3], camera[4], camera[5]
    per_x, per_y = _ONE / F(width), _ONE / F(height)
    last_x, last_y, stride = np.int32(width - 1), np.int32(height - 1), np.int32(width)
    outside = np.int32(width * height)
    for i in range(len(x)):
        u = fma(m0, x[i], fma(m1, y[i], m2)) * per_x
        v = fma(m3, x[i], fma(m4, y[i], m5)) * per_y
        if fold == 1:
            u = abs(u - _TWO * floor(fma(u, _HALF, _HALF)))
            v = abs(v - _TWO * floor(fma(v, _HALF, _HALF)))
        else:
            u = u - floor(u)
            v = v - floor(v)
        # A final map may leave the numbers: what is NaN has no place, and must not become an index.
        inside = (u >= _ZERO) & (v >= _ZERO)
        column = min(np.int32(u * F(width)), last_x)
        row = min(np.int32(v * F(height)), last_y)
        cell[i] = np.int32(np.int32(row * stride) + column) if inside else outside
        ink[i] = np.int32(fma(c[i], _COLOUR_STEPS, _HALF))


@kernel
def _plot(cell, ink, words):
    for i in range(len(cell)):
        words[np.uint32(cell[i])] += _ONE_POINT + np.uint64(np.uint32(ink[i]))


@merged_kernel
def _step(a, b, program, k, x, y, c, before, low, high, work_x, work_y, noise):
    """Apply map k to orbits low..high.

    From row `before` of x, y, c, (2, ORBITS), into the other.
    """
    start, stop = program.first[k], program.first[k + 1]
    affine, keep, pull = program.affine, program.keep, program.pull
    if start == stop:
        _fetch(a, b, affine, keep, pull, k, x, y, c, before, low, high, x, y)
    else:
        _fetch(a, b, affine, keep, pull, k, x, y, c, before, low, high, work_x, work_y)
        in_x, in_y = work_x[1 - before, low:high], work_y[1 - before, low:high]
        out_x, out_y = x[1 - before, low:high], y[1 - before, low:high]
        lane_noise = noise[low:high]
        for i in range(len(out_x)):
            out_x[i] = _ZERO
            out_y[i] = _ZERO
        for j in range(start, stop):
            number, weight = program.numbers[j], program.weights[j]
            add_variation(
                number, in_x, in_y, out_x, out_y, weight, program.parameters[j], lane_noise
            )
    if program.has_post[k]:
        _apply_affine(program.post[k], x[1 - before, low:high], y[1 - before, low:high])


@kernel
def play(state, orbits, program, camera, fold, warm_up, steps, width, height, words, look):
    """Play the game and add each point to its pixel's word.

    state: (4,) uint64 and orbits: advanced in place, their row 0 holds where they stand. camera:
    (6,) float32 of `window`. fold: 0 none, 1 mirror, 2 wrap. warm_up: steps that are not plotted;
    steps: plotted ones, at most MOST_STEPS on words that are zero, ORBITS points each. words:
    (height * width + 1,) uint64, the last takes what falls outside. look: apply the final map once
    more at the end, into row 1 of the orbits. It is a part of this function because a second one
    would have all variations compiled twice.
    """
    n = len(program.bounds) - 1
    x, y, c = orbits.x, orbits.y, orbits.colour
    work_x, work_y = np.empty((2, ORBITS), F), np.empty((2, ORBITS), F)
    cell, ink = np.empty(ORBITS, np.int32), np.empty(ORBITS, np.int32)
    now = 0
    for step in range(warm_up + steps + 1):
        last = step == warm_up + steps
        if last and now == 1:
            for i in range(ORBITS):
                x[0, i], y[0, i], c[0, i] = x[1, i], y[1, i], c[1, i]
            now = 0
        if last and not look:
            break
        shown = now
        if not last:
            shuffle = next_word(state)
            a, b = np.uint32(shuffle | np.uint64(1)), np.uint32(shuffle >> np.uint64(32))
        for k in range(n if last else 0, n + 1):
            if k < n:
                low, high = program.bounds[k], program.bounds[k + 1]
            else:
                if not last:
                    now = 1 - now
                    if _count_fled(x[now], y[now]) > 0:
                        _restart_fled(x[now], y[now], orbits.noise)
                shown = now
                if not program.has_final or step < warm_up:
                    break
                # The rows before are no longer needed: they take the final map's points.
                a, b, low, high, shown = _U1, _U0, 0, ORBITS, 1 - now
            _step(a, b, program, k, x, y, c, now, low, high, work_x, work_y, orbits.noise)
        if last or step < warm_up:
            continue
        if fold == 0:
            _project(camera, width, height, x[shown], y[shown], c[shown], cell, ink)
        else:
            _project_folded(camera, fold, width, height, x[shown], y[shown], c[shown], cell, ink)
        _plot(cell, ink, words)


@kernel
def flush_words(words, points, colours):
    """Add words, (n + 1,) uint64, to points and colours, (n,) float32, and clear them."""
    scale = _ONE / _COLOUR_STEPS
    for i in range(len(points)):
        word = words[i]
        points[i] += F(np.int64(word >> _COUNT_SHIFT))
        colours[i] += F(np.int64(word & _COLOUR_BITS)) * scale
        words[i] = np.uint64(0)


def sample_points(
    program: Program, steps: int, *key: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return x and y, (ORBITS * steps,) float32 each.

    Points of the attractor, for placing a camera.

    key: integers of the game's random stream.
    """
    state = random_state(*key)
    orbits = start_orbits(state)
    camera, words = np.array([0, 0, -1, 0, 0, -1], np.float32), np.zeros(2, np.uint64)
    x, y = np.empty((steps, ORBITS), np.float32), np.empty((steps, ORBITS), np.float32)
    for step in range(steps):
        warm_up = WARM_UP if step == 0 else 3
        play(state, orbits, program, camera, 0, warm_up, 1, 1, 1, words, program.has_final)
        row = int(program.has_final)
        x[step], y[step] = orbits.x[row], orbits.y[row]
    return x.ravel(), y.ravel()


class Game(NamedTuple):
    """What a game left.

    Points a pixel and the sums of their colours, (H, W) float32, and all points played.
    """

    points: NDArray[np.float32]
    colours: NDArray[np.float32]
    played: int


def play_program(
    program: Program, camera: Camera, height: int, width: int, samples_per_pixel: float, *key: int
) -> Game:
    """Play a compiled system onto a grid of pixels; arguments and result as for `accumulate`."""
    state = random_state(*key)
    orbits = start_orbits(state)
    to_pixels, fold = window(camera, height, width), _FOLDS[camera.fold]
    words = np.zeros(height * width + 1, np.uint64)
    points, colours = np.zeros(height * width, np.float32), np.zeros(height * width, np.float32)
    steps = max(1, -int(-samples_per_pixel * height * width // ORBITS))
    played = 0
    while played < steps:
        batch = min(steps - played, MOST_STEPS)
        play(
            state,
            orbits,
            program,
            to_pixels,
            fold,
            WARM_UP if played == 0 else 0,
            batch,
            width,
            height,
            words,
            False,
        )
        flush_words(words, points, colours)
        played += batch
    return Game(points.reshape(height, width), colours.reshape(height, width), steps * ORBITS)


def accumulate(
    layer: ChaosLayer, height: int, width: int, samples_per_pixel: float, *key: int
) -> Game:
    """Play a layer's game onto a grid of pixels.

    samples_per_pixel: points played a pixel, wherever they fall; rounded up to whole steps of
    ORBITS. key: integers of the game's random stream. Returns points (height, width) float32, the
    sums of their colour coordinates (height, width) float32, and the number of points played.
    """
    return play_program(compile_layer(layer), layer.camera, height, width, samples_per_pixel, *key)
