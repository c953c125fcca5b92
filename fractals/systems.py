"""Random chaos games: draw the maps, fit the camera to the attractor, and fit the tone curve.

There are six templates, after the ways in which people build flames: free mixtures of variations,
inversions in circles, complex roots, affine systems, affine systems seen through a bent lens, and
wheels of petals.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fractals.chaos import (
    Affine,
    Camera,
    ChaosLayer,
    Histogram,
    Map,
    Program,
    Tone,
    VariationTerm,
    compile_layer,
    play_program,
    sample_points,
    smooth_histogram,
)
from fractals.chaos_kernels import FOLDS
from fractals.numerics import Draws
from fractals.variations import VARIATION_NUMBER, VARIATIONS

PREVIEW_SIZE = 64
"""Side in pixels of the preview, which fits and accepts a draft."""
_FRAMING, _FRAME_STEPS = 1, 1

PLACEHOLDER_CAMERA = Camera(centre=(0.0, 0.0), width=2.0)
PLACEHOLDER_TONE = Tone(exposure=1.0)


def rounded(value: float) -> float:
    """Round to 5 decimals, so that differences in a machine's last bit do not reach a genome."""
    return round(value, 5)


def _affine(
    scale_x: float, scale_y: float, angle: float, shear: float, x: float, y: float
) -> Affine:
    c, s, t = math.cos(angle), math.sin(angle), angle + shear
    return (
        rounded(scale_x * c),
        rounded(-scale_y * math.sin(t)),
        rounded(x),
        rounded(scale_x * s),
        rounded(scale_y * math.cos(t)),
        rounded(y),
    )


def _draw_affine(draws: Draws, low: float, high: float, reach: float) -> Affine:
    """Draw a nearly conformal affine map of scale low..high and translation up to reach."""
    scale = draws.uniform(low, high)
    stretch = draws.uniform(0.75, 1.3) if draws.chance(0.4) else 1.0
    angle = (
        draws.choice((0.0, 0.5, 1.0, 1.5)) * math.pi
        if draws.chance(0.25)
        else draws.uniform(-math.pi, math.pi)
    )
    shear = draws.uniform(-0.5, 0.5) if draws.chance(0.3) else 0.0
    flip = -1.0 if draws.chance(0.2) else 1.0
    return _affine(
        flip * scale,
        scale * stretch,
        angle,
        shear,
        draws.uniform(-reach, reach),
        draws.uniform(-reach, reach),
    )


def _draw_term(draws: Draws, name: str, weight: float) -> VariationTerm:
    parameters = []
    for _, low, high, integer in VARIATIONS[VARIATION_NUMBER[name]].parameters:
        value = draws.uniform(low, high)
        parameters.append(rounded(float(math.floor(value)) if integer else value))
    return VariationTerm(name=name, weight=rounded(weight), parameters=tuple(parameters))


def _draw_post(draws: Draws, chance: float) -> Affine | None:
    return _draw_affine(draws, 0.6, 1.2, 0.6) if draws.chance(chance) else None


def _colour(k: int, n: int) -> float:
    return rounded(k / n)


def _mixture(draws: Draws) -> ChaosLayer:
    """Draw 2 to 5 maps of 1 to 3 popular variations; half of the systems use one list for all."""
    n = draws.integer(2, 5)
    names = [variation.name for variation in VARIATIONS]
    weights = [variation.popularity for variation in VARIATIONS]
    shared = (
        [draws.weighted(names, weights) for _ in range(draws.integer(1, 2))]
        if draws.chance(0.5)
        else None
    )
    maps = []
    for k in range(n):
        chosen = shared or [
            draws.weighted(names, weights) for _ in range(draws.weighted((1, 2, 3), (5, 4, 1)))
        ]
        weights_of_terms = [draws.uniform(0.3, 1.0) for _ in chosen]
        total = sum(weights_of_terms) / draws.uniform(0.8, 1.2)
        maps.append(
            Map(
                affine=_draw_affine(draws, 0.35, 1.15, 1.0),
                variations=tuple(
                    _draw_term(draws, name, weight / total)
                    for name, weight in zip(chosen, weights_of_terms, strict=True)
                ),
                post=_draw_post(draws, 0.3),
                weight=rounded(draws.uniform(0.3, 1.0)),
                colour=_colour(k, n),
                speed=rounded(draws.uniform(0.3, 0.7)),
            )
        )
    return _system(draws, maps, 0.35)


def _inversion(draws: Draws) -> ChaosLayer:
    """Draw 2 to 4 inversions in circles, each after an affine map: chains and nets of circles."""
    n = draws.integer(2, 4)
    maps = []
    for k in range(n):
        terms = [_draw_term(draws, "spherical", draws.uniform(0.5, 1.2))]
        if draws.chance(0.15):
            terms.append(
                _draw_term(
                    draws,
                    draws.choice(("linear", "julian", "bubble", "curl", "disc")),
                    draws.uniform(0.1, 0.6),
                )
            )
        maps.append(
            Map(
                affine=_draw_affine(draws, 0.5, 1.3, 1.2),
                variations=tuple(terms) if k < 2 or draws.chance(0.6) else (),
                post=_draw_post(draws, 0.3),
                weight=rounded(draws.uniform(0.2, 1.0)),
                colour=_colour(k, n),
                speed=rounded(draws.uniform(0.25, 0.6)),
            )
        )
    return _system(draws, maps, 0.4)


def _roots(draws: Draws) -> ChaosLayer:
    """Draw one or two maps of complex roots among affine maps: rosettes, spirals and lace."""
    n = draws.integer(2, 4)
    maps = []
    for k in range(n):
        if k == 0 or draws.chance(0.2):
            name = draws.choice(("julian", "juliascope"))
            roots = draws.choice((2, 2, 3, 3, 4, 5, 6, 8))
            distance = draws.choice((-1.0, 1.0, 1.0, 1.0)) * draws.uniform(0.7, 1.5)
            term = VariationTerm(
                name=name,
                weight=rounded(draws.uniform(0.7, 1.3)),
                parameters=(float(roots), rounded(distance)),
            )
            terms: tuple[VariationTerm, ...] = (term,)
            affine, weight = _draw_affine(draws, 0.6, 1.6, 0.9), draws.uniform(0.6, 1.5)
        else:
            extra = draws.weighted(
                ("", "spherical", "bubble", "eyefish", "sinusoidal", "curl"), (6, 1, 1, 1, 1, 1)
            )
            terms = (_draw_term(draws, extra, draws.uniform(0.5, 1.0)),) if extra else ()
            affine, weight = _draw_affine(draws, 0.15, 1.0, 1.2), draws.uniform(0.15, 0.6)
        maps.append(
            Map(
                affine=affine,
                variations=terms,
                post=_draw_post(draws, 0.2),
                weight=rounded(weight),
                colour=_colour(k, n),
                speed=rounded(draws.uniform(0.2, 0.6)),
            )
        )
    return _system(draws, maps, 0.2)


def singular_values(draws: Draws, n: int) -> list[tuple[float, float]]:
    """Draw singular values (s1, s2) of n affine maps, 0 <= s2 <= s1 <= 1.

    sum(s1 + 2 s2) = alpha is uniform in ((5 + n)/2, (6 + n)/2). This is the exact sequential
    sampler of C. Anderson and R. Farrell, "Improving Fractal Pre-training", arXiv 2110.03091,
    appendix.
    """
    alpha = draws.uniform((5 + n) / 2, (6 + n) / 2)
    p, q = alpha, alpha - 3 * n + 3
    values = []
    for _ in range(n - 1):
        s1 = draws.uniform(max(0.0, q / 3), min(1.0, p))
        q, p = q - s1, p - s1
        s2 = draws.uniform(max(0.0, q / 2), min(s1, p / 2))
        q, p = q + 3 - 2 * s2, p - 2 * s2
        values.append((s1, s2))
    s2 = draws.uniform(max(0.0, (p - 1) / 2), p / 3)
    values.append((p - 2 * s2, s2))
    return values


def _affine_maps(draws: Draws, n: int) -> list[Map]:
    maps = []
    for k, (s1, s2) in enumerate(singular_values(draws, n)):
        theta, phi = draws.uniform(-math.pi, math.pi), draws.uniform(-math.pi, math.pi)
        c, s, cc, ss = math.cos(theta), math.sin(theta), math.cos(phi), math.sin(phi)
        d1, d2 = draws.sign(), draws.sign()
        # R(theta) diag(s1, s2) R(phi) diag(d1, d2)
        a, b = (c * s1 * cc - s * s2 * ss) * d1, (-c * s1 * ss - s * s2 * cc) * d2
        d, e = (s * s1 * cc + c * s2 * ss) * d1, (-s * s1 * ss + c * s2 * cc) * d2
        maps.append(
            Map(
                affine=(
                    rounded(a),
                    rounded(b),
                    rounded(draws.uniform(-1, 1)),
                    rounded(d),
                    rounded(e),
                    rounded(draws.uniform(-1, 1)),
                ),
                weight=max(rounded(s1 * s2), 0.02),
                colour=_colour(k, n),
                speed=rounded(draws.uniform(0.3, 0.7)),
            )
        )
    return maps


def _ifs(draws: Draws) -> ChaosLayer:
    """Draw 2 to 8 affine maps with constrained singular values, as Anderson & Farrell do."""
    maps = _affine_maps(draws, draws.integer(2, 8))
    return ChaosLayer(
        maps=tuple(maps),
        camera=PLACEHOLDER_CAMERA,
        tone=PLACEHOLDER_TONE,
        symmetry=_draw_symmetry(draws, 0.4),
    )


def _bent_ifs(draws: Draws) -> ChaosLayer:
    """Draw an affine system with a final variation."""
    layer = _ifs(draws)
    name = draws.choice(
        (
            "spherical",
            "julian",
            "juliascope",
            "polar",
            "bubble",
            "swirl",
            "sinusoidal",
            "curl",
            "disc",
            "pdj",
        )
    )
    final = Map(
        affine=_draw_affine(draws, 0.5, 1.5, 0.6),
        variations=(_draw_term(draws, name, 1.0),),
        speed=0.0,
    )
    return replace(layer, final=final)


def _draw_symmetry(draws: Draws, chance: float) -> int:
    if not draws.chance(chance):
        return 1
    return draws.weighted(
        (2, 3, 4, 5, 6, -1, -2, -3, -4, -5, -6), (3, 3, 3, 2, 3, 4, 4, 2, 3, 1, 3)
    )


def _system(draws: Draws, maps: list[Map], symmetry: float) -> ChaosLayer:
    final = None
    if draws.chance(0.15):
        name = draws.choice(
            ("spherical", "julian", "bubble", "eyefish", "sinusoidal", "polar", "curl", "linear")
        )
        final = Map(
            affine=_draw_affine(draws, 0.6, 1.4, 0.5),
            variations=(_draw_term(draws, name, 1.0),),
            speed=0.0,
        )
    return ChaosLayer(
        maps=tuple(maps),
        camera=PLACEHOLDER_CAMERA,
        tone=PLACEHOLDER_TONE,
        final=final,
        symmetry=_draw_symmetry(draws, symmetry),
    )


def _rosette(draws: Draws) -> ChaosLayer:
    """Draw another template with a final map of 3 to 12 complex roots: a wheel of petals."""
    layer = draws.choice((_mixture, _inversion, _roots, _ifs))(draws)
    roots = float(draws.integer(3, 12))
    # The radius is raised to distance / roots; near 0, all petals would form one thin ring.
    parameters = (roots, rounded(roots * draws.uniform(0.3, 1.0)))
    name = draws.choice(("julian", "juliascope"))
    lens = VariationTerm(name=name, weight=1.0, parameters=parameters)
    final = Map(affine=_draw_affine(draws, 0.6, 1.6, 1.2), variations=(lens,), speed=0.0)
    return replace(layer, final=final, symmetry=1)


TEMPLATES: dict[str, Callable[[Draws], ChaosLayer]] = {
    "mixture": _mixture,
    "inversion": _inversion,
    "roots": _roots,
    "ifs": _ifs,
    "bent_ifs": _bent_ifs,
    "rosette": _rosette,
}


def fit_camera(
    program: Program, symmetric: bool, draws: Draws, key: tuple[int, ...]
) -> Camera | None:
    """Fit a camera to the points of the attractor.

    35 to 92 % of the points are inside the window, so that the window is filled and few points are
    wasted.

    Args:
        program: The compiled system.
        symmetric: Whether the system has a centre of symmetry, which the camera may look at.
        draws: The genome's stream; advanced.
        key: Integers of the chaos game's random stream.

    Returns:
        The camera, or None if the attractor is a point or unbounded.
    """
    x, y = sample_points(program, _FRAME_STEPS, *key)
    good = np.maximum(np.abs(x), np.abs(y)) < 1e3
    n_good = np.count_nonzero(good)
    if n_good < 0.9 * len(x):
        return None
    if n_good < len(x):
        x, y = x[good], y[good]
    if symmetric and draws.chance(0.7):
        centre_x, centre_y = 0.0, 0.0
    else:
        pick, weight = int(draws.unit() * len(x)), draws.uniform(0.0, 0.7)
        middle_x, middle_y = quantile(x, 0.5), quantile(y, 0.5)
        centre_x = middle_x + weight * (float(x[pick]) - middle_x)
        centre_y = middle_y + weight * (float(y[pick]) - middle_y)
    reach = np.maximum(np.abs(x - np.float32(centre_x)), np.abs(y - np.float32(centre_y)))
    half = quantile(reach, draws.uniform(0.35, 0.92))
    if not 1e-3 < half < 50:
        return None
    fold = draws.weighted(FOLDS, (0.8, 0.17, 0.03))
    angle = draws.uniform(-math.pi, math.pi)
    return Camera(
        centre=(rounded(centre_x), rounded(centre_y)),
        width=rounded(2 * half),
        rotation=0.0 if fold != "none" or draws.chance(0.5) else rounded(angle),
        fold=fold,
    )


def quantile(values: NDArray[np.float32], q: float) -> float:
    """Return the value that a fraction q of the values do not exceed, without interpolation."""
    index = int(q * (len(values) - 1))
    return float(np.partition(values, index)[index])


def fit_tone(histogram: Histogram, draws: Draws) -> Tone | None:
    """Fit the tone curve to a smoothed histogram of preview size.

    2 to 15 % of the window are shown at full brightness; the visible colours span 0.35 to 1.1 turns
    of the palette.

    Args:
        histogram: See ``chaos.smooth_histogram``.
        draws: The genome's stream; advanced.

    Returns:
        The tone curve, or None if almost no points are inside the window.
    """
    points, colours = histogram.points.ravel(), histogram.colours.ravel()
    bright = quantile(points, 1 - draws.uniform(0.02, 0.15))
    density = bright * PREVIEW_SIZE**2 / histogram.played
    if density < 0.02:
        return None
    lit = points > np.float32(0.2 * bright)
    coordinates = colours[lit] / points[lit]
    span = max(quantile(coordinates, 0.95) - quantile(coordinates, 0.05), 0.01)
    return Tone(
        # A stretch above 2.5 would turn the sampling noise of nearly equal colours into blotches.
        colour_start=rounded(draws.unit()),
        colour_stretch=rounded(min(draws.uniform(0.35, 1.1) / span, 2.5)),
        exposure=float(f"{density:.4g}"),
        contrast=float(f"{10 ** draws.uniform(0.3, 2.0) / density:.4g}"),
        gamma=rounded(draws.uniform(0.55, 1.0)),
        vibrancy=rounded(draws.uniform(0.6, 1.0)),
    )


def draw_chaos_layer(
    draws: Draws, templates: dict[str, float], samples_per_pixel: float, key: tuple[int, ...]
) -> tuple[ChaosLayer, Histogram] | None:
    """Draw a system of one of the templates and fit its camera and tone curve.

    Args:
        draws: The genome's stream; advanced.
        templates: Keys of ``TEMPLATES`` -> relative frequency.
        samples_per_pixel: Points per pixel of the preview, at PREVIEW_SIZE.
        key: Integers of the chaos game's random stream.

    Returns:
        The layer and the smoothed histogram of its preview, or None if the layer shows nothing.
    """
    template = draws.weighted(list(templates), list(templates.values()))
    layer = TEMPLATES[template](draws)
    program = compile_layer(layer)
    symmetric = template == "rosette" or (abs(layer.symmetry) > 1 and layer.final is None)
    camera = fit_camera(program, symmetric, draws, (*key, _FRAMING))
    if camera is None:
        return None
    histogram = play_program(program, camera, PREVIEW_SIZE, PREVIEW_SIZE, samples_per_pixel, *key)
    histogram = smooth_histogram(histogram, PLACEHOLDER_TONE.softness)
    tone = fit_tone(histogram, draws)
    return None if tone is None else (replace(layer, camera=camera, tone=tone), histogram)
