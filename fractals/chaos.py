"""Chaos games: iterated function systems as dataclasses, their histograms and tone mapping."""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fractals import chaos_kernels as kernels
from fractals.chaos_kernels import FOLDS, MAX_STEPS, ORBITS, WARM_UP, estimate_density, smooth
from fractals.numerics import F, fits_float32, random_state
from fractals.variations import VARIATION_NUMBER, VARIATIONS

MAPS = range(1, 33)

_MAX_PIXELS = 16384
_FLOAT32_STEP = 2.0**-23

Affine: TypeAlias = tuple[float, float, float, float, float, float]


def require(condition: bool, value: object, rule: str, remedy: str) -> None:
    """Raise ValueError with the value, the rule it breaks and a remedy, unless condition holds."""
    if not condition:
        raise ValueError(f"{value!r}: {rule}; {remedy}")


def _check_finite(values: tuple[float, ...], name: str) -> None:
    require(
        all(fits_float32(value) for value in values),
        values,
        f"{name} must be finite in float32",
        "draw the genome again or correct its JSON",
    )


def _check_positive(value: float, name: str, remedy: str) -> None:
    require(
        value > 0 and fits_float32(value),
        value,
        f"{name} must be above 0 and finite in float32",
        remedy,
    )


def _check_affine(affine: Affine | None, name: str) -> None:
    if affine is not None:
        require(
            len(affine) == 6 and all(fits_float32(value) for value in affine),
            affine,
            f"{name} must be the six numbers, finite in float32, of x' = a x + b y + c, "
            "y' = d x + e y + f",
            "draw the genome again or correct its JSON",
        )


@dataclass(frozen=True, kw_only=True)
class VariationTerm:
    """One term of a map's weighted sum of variations.

    Attributes:
        name: A name in ``variations.VARIATIONS``.
        weight: Factor of the variation.
        parameters: The variation's parameters, in the order of its row.
    """

    name: str
    weight: float
    parameters: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Reject an unknown name, a wrong number of parameters and numbers that are not finite."""
        require(
            self.name in VARIATION_NUMBER,
            self.name,
            "not a known variation",
            f"use one of {', '.join(VARIATION_NUMBER)}",
        )
        expected = VARIATIONS[VARIATION_NUMBER[self.name]].parameters
        require(
            len(self.parameters) == len(expected),
            self.parameters,
            f"{self.name} has {len(expected)} parameters",
            f"pass {', '.join(name for name, *_ in expected) or 'none'}",
        )
        _check_finite((self.weight, *self.parameters), "a variation's weight and parameters")


@dataclass(frozen=True, kw_only=True)
class Map:
    """One map of an iterated function system: affine, a sum of variations, and a second affine.

    Attributes:
        affine: (a, b, c, d, e, f) of x' = a x + b y + c, y' = d x + e y + f, in plane units.
        variations: Terms of the sum; without any, the affine part alone is the map.
        post: The second affine, or None.
        weight: Relative probability, > 0.
        colour: Colour coordinate in [0, 1] towards which the map moves a point's colour.
        speed: Fraction in [0, 1] of the distance to this coordinate that one visit covers.
    """

    affine: Affine
    variations: tuple[VariationTerm, ...] = ()
    post: Affine | None = None
    weight: float = 1.0
    colour: float = 0.0
    speed: float = 0.5

    def __post_init__(self) -> None:
        """Reject values outside these ranges."""
        _check_affine(self.affine, "affine")
        _check_affine(self.post, "post")
        _check_positive(self.weight, "a map's weight", "remove the map instead")
        require(0 <= self.colour <= 1, self.colour, "a map's colour must be in [0, 1]", "scale it")
        require(0 <= self.speed <= 1, self.speed, "a colour speed must be in [0, 1]", "use 0.5")


@dataclass(frozen=True, kw_only=True)
class Camera:
    """The window of the plane that an image shows.

    Attributes:
        centre: (x, y) in plane units.
        width: Extent of the image's shorter side, in plane units.
        rotation: Radians.
        fold: Treatment of points outside the window: "none" drops them, "mirror" reflects them at
            the borders, and "wrap" moves them in from the opposite side.
    """

    centre: tuple[float, float]
    width: float
    rotation: float = 0.0
    fold: str = "none"

    def __post_init__(self) -> None:
        """Reject an empty or unbounded window and an unknown fold."""
        require(
            len(self.centre) == 2 and all(fits_float32(value) for value in self.centre),
            self.centre,
            "a camera's centre must be two numbers, finite in float32",
            "use x and y",
        )
        _check_finite((self.rotation,), "a camera's rotation")
        _check_positive(self.width, "a camera's width", "use the width of the attractor")
        # Pixel coordinates of the largest image must be finite in the kernel's float32.
        require(
            fits_float32(_MAX_PIXELS * (1 + sum(map(abs, self.centre))) / self.width),
            self.width,
            "a camera's width is too small: pixel coordinates of its centre overflow float32",
            "use the width of the attractor",
        )
        require(self.fold in FOLDS, self.fold, "not a fold", f"use one of {', '.join(FOLDS)}")


@dataclass(frozen=True, kw_only=True)
class Tone:
    """Tone curve: value = (log(1 + contrast d) / log(1 + contrast exposure))^gamma.

    The density d is a pixel's fraction of all points, times the squared number of pixels along the
    shorter side, so that it does not depend on size or quality.

    Attributes:
        exposure: Density that is shown at full brightness, > 0.
        colour_start: Palette position of colour coordinate 0.
        colour_stretch: Palette turns per unit of a pixel's mean colour coordinate.
        contrast: Strength of the logarithm, > 0.
        gamma: Exponent, > 0.
        vibrancy: In [0, 1]; 1 applies gamma to brightness alone and keeps colours, 0 applies it to
            each channel.
        softness: Points per pixel below which density estimation blurs, >= 0; 0 disables it.
    """

    exposure: float
    colour_start: float = 0.0
    colour_stretch: float = 1.0
    contrast: float = 30.0
    gamma: float = 0.7
    vibrancy: float = 1.0
    softness: float = 48.0

    def __post_init__(self) -> None:
        """Reject values outside these ranges."""
        for name in ("exposure", "contrast", "gamma"):
            _check_positive(getattr(self, name), name, "draw it again")
        # Otherwise 1 + contrast * exposure is 1, and its logarithm, a divisor, is 0.
        require(
            self.contrast * self.exposure >= _FLOAT32_STEP,
            (self.contrast, self.exposure),
            "contrast times exposure must be at least the float32 epsilon, 1.2e-7",
            "draw them again",
        )
        _check_finite((self.colour_start, self.colour_stretch), "a colour's start and stretch")
        require(0 <= self.vibrancy <= 1, self.vibrancy, "vibrancy must be in [0, 1]", "use 1")
        require(
            self.softness >= 0 and fits_float32(self.softness),
            self.softness,
            "softness must be finite in float32 and not negative",
            "use 0 for none",
        )


@dataclass(frozen=True, kw_only=True)
class ChaosLayer:
    """An iterated function system that is rendered by the chaos game.

    Attributes:
        maps: 1 to 32 maps.
        camera: The window.
        tone: The tone curve.
        final: A map that is applied to every plotted point without feeding back, or None.
        symmetry: 1 for none; n > 1 adds rotations by 1/n turn; -n adds a reflection too (dihedral).
    """

    maps: tuple[Map, ...]
    camera: Camera
    tone: Tone
    final: Map | None = None
    symmetry: int = 1

    def __post_init__(self) -> None:
        """Reject an empty or oversized system."""
        require(len(self.maps) in MAPS, len(self.maps), "a system has 1 to 32 maps", "remove some")
        weight = sum(each.weight for each in self.maps)
        require(
            fits_float32(weight),
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

    Attributes:
        affine: (m, 6) float32, the first affine of each map.
        post: (m, 6) float32, the second affine.
        has_post: (m,) bool.
        pull: (m,) float32; a visit maps colour to keep * colour + pull.
        keep: (m,) float32.
        bounds: (n + 1,) int64, borders of the maps' segments among the orbits.
        first: (m + 1,) int64, start of each map's terms.
        numbers: (t,) int64, the variation of each term.
        weights: (t,) float32.
        parameters: (t, 4) float32.
        has_final: Whether the last map is a final map.
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
    """The state of a game: x, y, colour (2, ORBITS) float32 each, and noise (ORBITS,) uint32."""

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    colour: NDArray[np.float32]
    noise: NDArray[np.uint32]


class Histogram(NamedTuple):
    """The result of a chaos game.

    Attributes:
        points: (H, W) float32, points per pixel.
        colours: (H, W) float32, sums of their colour coordinates.
        played: Number of all points, including those outside the window.
    """

    points: NDArray[np.float32]
    colours: NDArray[np.float32]
    played: int


def _rotation(angle: float) -> tuple[float, float]:
    out = np.empty(2, np.float32)
    kernels.write_cosine_sine(angle, out)
    return float(out[0]), float(out[1])


def _symmetry_maps(symmetry: int, weight: float) -> list[Map]:
    """Return the maps that make a system symmetric.

    Each one is as probable as all the layer's own maps together, and keeps colours.
    """
    n = abs(symmetry)
    affines: list[Affine] = []
    for i in range(1, n):
        c, s = _rotation(2 * np.pi * i / n)
        affines.append((c, -s, 0.0, s, c, 0.0))
    if symmetry < 0:
        affines.append((-1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    return [Map(affine=matrix, weight=weight, speed=0.0) for matrix in affines]


def segment_bounds(weights: list[float]) -> NDArray[np.int64]:
    """Return borders, (n + 1,) int64, that divide the orbits in proportion to the weights."""
    total = sum(weights)
    borders, so_far = [0], 0.0
    for i, weight in enumerate(weights):
        so_far += weight
        rest = len(weights) - 1 - i
        borders.append(min(max(round(ORBITS * so_far / total), borders[-1] + 1), ORBITS - rest))
    return np.array(borders, np.int64)


def compile_layer(layer: ChaosLayer) -> Program:
    """Return the layer's system as the arrays that ``play`` reads."""
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


def camera_matrix(camera: Camera, height: int, width: int) -> NDArray[np.float32]:
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
    """Return orbits at random points of [-1, 1]^2 with random colours; advances state."""
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
    """Return points of the attractor, from which a camera is chosen.

    Args:
        program: The compiled system.
        steps: Number of steps that are returned.
        key: Integers of the game's random stream.

    Returns:
        x and y, (ORBITS * steps,) float32 each.
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
) -> Histogram:
    """Play a compiled system onto a grid of pixels; see ``accumulate``."""
    state = random_state(*key)
    orbits = start_orbits(state)
    to_pixels, fold = camera_matrix(camera, height, width), FOLDS.index(camera.fold)
    words = np.zeros(height * width + 1, np.uint64)
    points, colours = np.zeros(height * width, np.float32), np.zeros(height * width, np.float32)
    steps = max(1, -int(-samples_per_pixel * height * width // ORBITS))
    played = 0
    while played < steps:
        batch = min(steps - played, MAX_STEPS)
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
    return Histogram(points.reshape(height, width), colours.reshape(height, width), steps * ORBITS)


def accumulate(
    layer: ChaosLayer, height: int, width: int, samples_per_pixel: float, *key: int
) -> Histogram:
    """Play a layer's chaos game onto a grid of pixels.

    Args:
        layer: The system and its camera.
        height: Pixels.
        width: Pixels.
        samples_per_pixel: Points per pixel, wherever they fall; rounded up to whole steps of ORBITS
            points.
        key: Integers of the game's random stream.
    """
    return play_program(compile_layer(layer), layer.camera, height, width, samples_per_pixel, *key)


def smooth_histogram(histogram: Histogram, softness: float) -> Histogram:
    """Return the histogram after density estimation; see ``estimate_density``."""
    return Histogram(
        *estimate_density(histogram.points, histogram.colours, softness), histogram.played
    )


def render_chaos_layer(
    layer: ChaosLayer,
    table: NDArray[np.float32],
    size: tuple[int, int],
    samples_per_pixel: float,
    key: tuple[int, ...],
    histogram: Histogram | None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a layer's colours and coverage; see ``genome.LayerKind``.

    histogram: already played with these arguments and smoothed; None plays the game.
    """
    if histogram is None:
        histogram = smooth_histogram(
            accumulate(layer, *size, samples_per_pixel, *key), layer.tone.softness
        )
    return tone_map(*histogram, layer.tone, table)


def tone_map(
    points: NDArray[np.float32],
    colours: NDArray[np.float32],
    played: int,
    tone: Tone,
    table: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Turn a smoothed histogram into a layer's colours and coverage.

    A pixel's colour is the mean over the pixel and its neighbours (standard deviation 1 pixel), its
    brightness is its own, because the eye notices speckles of hue and lines of brightness.

    Args:
        points: (H, W) float32, smoothed by ``estimate_density``.
        colours: (H, W) float32, as points.
        played: Number of points of the game.
        tone: The tone curve.
        table: (256, 3) float32 palette.

    Returns:
        Colours (3, H, W) float32 in [0, 1], premultiplied by coverage, and coverage (H, W) in [0,
        1].
    """
    height, width = points.shape
    shares, work = np.empty_like(points), np.empty_like(points)
    smooth(points, 1, work, shares)
    smoothed = np.empty_like(points)
    smooth(colours, 1, work, smoothed)
    kernels.divide(smoothed.reshape(-1), shares.reshape(-1), shares.reshape(-1))
    full = np.empty(1, np.float32)
    kernels.log_density(F(tone.contrast), F(tone.exposure), full)
    light, value = np.empty(points.size, np.float32), np.empty(points.size, np.float32)
    out, cover = np.empty((3, points.size), np.float32), np.empty(points.size, np.float32)
    scale = F(min(height, width) ** 2 / played)
    kernels.write_light(
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
        kernels.look_up_palette(
            shares.reshape(-1),
            F(tone.colour_start),
            F(tone.colour_stretch),
            ring[channel],
            out[channel],
        )
        kernels.apply_gamma(light, value, F(tone.gamma), F(tone.vibrancy), out[channel])
    return out.reshape(3, height, width), cover.reshape(height, width)
