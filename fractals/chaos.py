"""Chaos games: iterated function systems as frozen dataclasses, played and turned into light."""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fractals import chaos_kernels as kernels
from fractals.chaos_kernels import FOLDS, MOST_STEPS, ORBITS, WARM_UP, estimate_density, smooth
from fractals.numerics import F, fits_single, random_state
from fractals.variations import VARIATION_NUMBER, VARIATIONS

MAPS = range(1, 33)

_MOST_PIXELS = 16384
_SINGLE_STEP = 2.0**-23

Affine: TypeAlias = tuple[float, float, float, float, float, float]


def require(condition: bool, value: object, rule: str, remedy: str) -> None:
    """Raise ValueError with the value, the rule that it breaks and a remedy, unless it keeps it."""
    if not condition:
        raise ValueError(f"{value!r}: {rule}; {remedy}")


def _check_finite(values: tuple[float, ...], name: str) -> None:
    require(
        all(fits_single(value) for value in values),
        values,
        f"{name} must be finite in float32",
        "draw the genome anew or mend its JSON",
    )


def _check_positive(value: float, name: str, remedy: str) -> None:
    require(
        value > 0 and fits_single(value),
        value,
        f"{name} must be above 0 and finite in float32",
        remedy,
    )


def _check_affine(affine: Affine | None, name: str) -> None:
    if affine is not None:
        require(
            len(affine) == 6 and all(fits_single(value) for value in affine),
            affine,
            f"{name} must be the six numbers, finite in float32, of x' = a x + b y + c, "
            "y' = d x + e y + f",
            "draw the genome anew or mend its JSON",
        )


@dataclass(frozen=True, kw_only=True)
class VariationTerm:
    """One variation of a map's weighted sum.

    Name of `variations.VARIATIONS`, weight, parameters in its order.
    """

    name: str
    weight: float
    parameters: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an unknown name, a wrong number of parameters and numbers that are not finite."""
        require(
            self.name in VARIATION_NUMBER,
            self.name,
            "is no variation",
            f"use one of {', '.join(VARIATION_NUMBER)}",
        )
        wanted = VARIATIONS[VARIATION_NUMBER[self.name]].parameters
        require(
            len(self.parameters) == len(wanted),
            self.parameters,
            f"{self.name} takes {len(wanted)} parameters",
            f"give {', '.join(name for name, *_ in wanted) or 'none'}",
        )
        _check_finite((self.weight, *self.parameters), "a variation's weight and parameters")


@dataclass(frozen=True, kw_only=True)
class Map:
    """One map of an iterated function system.

    Affine, then a sum of variations, then a second affine.

    affine, post: x' = a x + b y + c, y' = d x + e y + f in plane units. No variation: affine alone.
    weight: relative probability, > 0. colour in [0, 1]: where the map pulls the colour coordinate,
    by speed in [0, 1] a visit.
    """

    affine: Affine
    variations: tuple[VariationTerm, ...] = ()
    post: Affine | None = None
    weight: float = 1.0
    colour: float = 0.0
    speed: float = 0.5

    def __post_init__(self) -> None:
        """Refuse numbers outside the ranges above."""
        _check_affine(self.affine, "affine")
        _check_affine(self.post, "post")
        _check_positive(self.weight, "a map's weight", "leave the map out instead")
        require(0 <= self.colour <= 1, self.colour, "a map's colour must lie in [0, 1]", "scale it")
        require(0 <= self.speed <= 1, self.speed, "a colour speed must lie in [0, 1]", "use 0.5")


@dataclass(frozen=True, kw_only=True)
class Camera:
    """The window.

    Centre and width (of the image's SHORTER side) in plane units, rotation in radians.

    fold: what becomes of points outside: "none" drops them, "mirror" reflects them at the borders
    and "wrap" continues them at the other side, so that the window is filled.
    """

    centre: tuple[float, float]
    width: float
    rotation: float = 0.0
    fold: str = "none"

    def __post_init__(self) -> None:
        """Refuse an empty or unbounded window and an unknown fold."""
        require(
            len(self.centre) == 2 and all(fits_single(value) for value in self.centre),
            self.centre,
            "a camera's centre must be two numbers, finite in float32",
            "give x and y",
        )
        _check_finite((self.rotation,), "a camera's rotation")
        _check_positive(self.width, "a camera's width", "use the width of the attractor")
        # The kernel's numbers are pixels of the largest image.
        require(
            fits_single(_MOST_PIXELS * (1 + sum(map(abs, self.centre))) / self.width),
            self.width,
            "a camera's width must show its centre in pixels that float32 holds",
            "use the width of the attractor",
        )
        require(self.fold in FOLDS, self.fold, "is no fold", f"use one of {', '.join(FOLDS)}")


@dataclass(frozen=True, kw_only=True)
class Tone:
    """From points to light: value = (log(1 + contrast d) / log(1 + contrast exposure))^gamma.

    d: points a pixel as a share of all, times the pixels of the shorter side squared, so that it
    does not depend on size or quality. exposure > 0: the d that gives full light. contrast > 0.
    gamma > 0. vibrancy in [0, 1]: 1 applies gamma to the light alone and keeps colours, 0 to each
    channel. softness >= 0: points a pixel below which density estimation blurs; 0 switches it off.
    Colour: place on the palette's ring = colour_start + colour_stretch * the pixel's mean
    coordinate.
    """

    exposure: float
    colour_start: float = 0.0
    colour_stretch: float = 1.0
    contrast: float = 30.0
    gamma: float = 0.7
    vibrancy: float = 1.0
    softness: float = 48.0

    def __post_init__(self) -> None:
        """Refuse numbers outside the ranges above."""
        for name in ("exposure", "contrast", "gamma"):
            _check_positive(getattr(self, name), name, "draw it anew")
        # Below it, 1 + contrast exposure is 1, and its logarithm, by which light is divided, 0.
        require(
            self.contrast * self.exposure >= _SINGLE_STEP,
            (self.contrast, self.exposure),
            "contrast times exposure must be above the step of float32, 1.2e-7",
            "draw them anew",
        )
        _check_finite((self.colour_start, self.colour_stretch), "a colour's start and stretch")
        require(0 <= self.vibrancy <= 1, self.vibrancy, "vibrancy must lie in [0, 1]", "use 1")
        require(
            self.softness >= 0 and fits_single(self.softness),
            self.softness,
            "softness must be finite in float32 and not negative",
            "use 0 for none",
        )


@dataclass(frozen=True, kw_only=True)
class ChaosLayer:
    """An iterated function system played as a chaos game: affine maps alone, or a flame.

    symmetry: 1 none; n > 1 adds the rotations by 1/n turn; -n adds them and a reflection
    (dihedral). final: a map that every plotted point passes through, without feeding back.
    """

    maps: tuple[Map, ...]
    camera: Camera
    tone: Tone
    final: Map | None = None
    symmetry: int = 1

    def __post_init__(self) -> None:
        """Refuse an empty or oversized system."""
        require(
            len(self.maps) in MAPS, len(self.maps), "a system has 1 to 32 maps", "leave some out"
        )
        weight = sum(each.weight for each in self.maps)
        require(
            fits_single(weight),
            weight,
            "the weights of the maps must have a sum that is finite in float32",
            "scale them",
        )
        require(
            isinstance(self.symmetry, int) and 0 < abs(self.symmetry) <= 12,
            self.symmetry,
            "symmetry must be 1 (none), 2..12 (rotations) or -12..-1 (with a reflection)",
            "use 1 for none",
        )


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


class Game(NamedTuple):
    """What a game left.

    Points a pixel and the sums of their colours, (H, W) float32, and all points played.
    """

    points: NDArray[np.float32]
    colours: NDArray[np.float32]
    played: int


def _rotation(angle: float) -> tuple[float, float]:
    out = np.empty(2, np.float32)
    kernels.turn(angle, out)
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
    kernels.scatter_orbits(state, orbits)
    return orbits


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
        kernels.play(state, orbits, program, camera, 0, warm_up, 1, 1, 1, words, program.has_final)
        row = int(program.has_final)
        x[step], y[step] = orbits.x[row], orbits.y[row]
    return x.ravel(), y.ravel()


def play_program(
    program: Program, camera: Camera, height: int, width: int, samples_per_pixel: float, *key: int
) -> Game:
    """Play a compiled system onto a grid of pixels; arguments and result as for `accumulate`."""
    state = random_state(*key)
    orbits = start_orbits(state)
    to_pixels, fold = window(camera, height, width), FOLDS.index(camera.fold)
    words = np.zeros(height * width + 1, np.uint64)
    points, colours = np.zeros(height * width, np.float32), np.zeros(height * width, np.float32)
    steps = max(1, -int(-samples_per_pixel * height * width // ORBITS))
    played = 0
    while played < steps:
        batch = min(steps - played, MOST_STEPS)
        kernels.play(
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
        kernels.flush_words(words, points, colours)
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


def spread(game: Game, softness: float) -> Game:
    """Return a game whose points are spread by `estimate_density`."""
    return Game(*estimate_density(game.points, game.colours, softness), game.played)


def paint_chaos(
    layer: ChaosLayer,
    table: NDArray[np.float32],
    size: tuple[int, int],
    samples_per_pixel: float,
    key: tuple[int, ...],
    game: Game | None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a layer's light and cover; see `genome.Kind`.

    game: as played with these arguments, and spread; None plays it.
    """
    if game is None:
        game = spread(accumulate(layer, *size, samples_per_pixel, *key), layer.tone.softness)
    return develop(*game, layer.tone, table)


def develop(
    points: NDArray[np.float32],
    colours: NDArray[np.float32],
    played: int,
    tone: Tone,
    table: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Turn points, already spread by `estimate_density`, into a layer's light and cover.

    points, colours: (H, W) float32, played: all points of the game; table: (256, 3) float32. The
    colour is the mean of a pixel and its neighbours (standard deviation 1 pixel), the light its
    own: the eye sees speckles of hue and lines of light. Returns light (3, H, W) float32 in [0, 1],
    already multiplied by cover, and cover (H, W) in [0, 1].
    """
    height, width = points.shape
    shares, work = np.empty_like(points), np.empty_like(points)
    smooth(points, 1, work, shares)
    smoothed = np.empty_like(points)
    smooth(colours, 1, work, smoothed)
    kernels.divide(smoothed.reshape(-1), shares.reshape(-1), shares.reshape(-1))
    full = np.empty(1, np.float32)
    kernels.light_of(F(tone.contrast), F(tone.exposure), full)
    light, value = np.empty(points.size, np.float32), np.empty(points.size, np.float32)
    out, cover = np.empty((3, points.size), np.float32), np.empty(points.size, np.float32)
    scale = F(min(height, width) ** 2 / played)
    kernels.shine(
        points.reshape(-1),
        scale,
        F(tone.contrast),
        F(1) / full[0],
        F(tone.gamma),
        light,
        value,
        cover,
    )
    ring = np.concatenate((table, table[:1])).T.copy()
    for channel in range(3):
        kernels.look_up(
            shares.reshape(-1),
            F(tone.colour_start),
            F(tone.colour_stretch),
            ring[channel],
            out[channel],
        )
        kernels.ink_to_light(light, value, F(tone.gamma), F(tone.vibrancy), out[channel])
    return out.reshape(3, height, width), cover.reshape(height, width)
