"""Chaos games drawn at random: what the maps are, where the camera stands, and how to expose.

Six templates, each a way in which people build flames: free mixtures of variations, inversions in
circles, complex roots, affine systems, affine systems seen through a bent lens, and wheels of
petals.
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
    Game,
    Map,
    Program,
    Tone,
    VariationTerm,
    compile_layer,
    play_program,
    sample_points,
    spread,
)
from fractals.chaos_kernels import FOLDS
from fractals.numerics import Draws
from fractals.variations import VARIATION_NUMBER, VARIATIONS

PREVIEW_SIZE = 64
"""Side in pixels of the preview that a draft is exposed and judged by."""
_FRAMING, _FRAME_STEPS = 1, 1

ANY_CAMERA = Camera(centre=(0.0, 0.0), width=2.0)
ANY_TONE = Tone(exposure=1.0)


def rounded(value: float) -> float:
    """Return a drawn number at 5 decimals.

    A last bit that differs between machines does not reach a genome.
    """
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


def _similar(draws: Draws, low: float, high: float, reach: float) -> Affine:
    """Draw a nearly angle-keeping affine map of scale low..high and translation up to reach."""
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


def _term(draws: Draws, name: str, weight: float) -> VariationTerm:
    parameters = []
    for _, low, high, whole in VARIATIONS[VARIATION_NUMBER[name]].parameters:
        value = draws.uniform(low, high)
        parameters.append(rounded(float(math.floor(value)) if whole else value))
    return VariationTerm(name=name, weight=rounded(weight), parameters=tuple(parameters))


def _post(draws: Draws, chance: float) -> Affine | None:
    return _similar(draws, 0.6, 1.2, 0.6) if draws.chance(chance) else None


def _colour(k: int, n: int) -> float:
    return rounded(k / n)


def _mixture(draws: Draws) -> ChaosLayer:
    """2 to 5 maps of 1 to 3 popular variations, half the time the same for all maps."""
    n = draws.whole(2, 5)
    names = [variation.name for variation in VARIATIONS]
    weights = [variation.popularity for variation in VARIATIONS]
    shared = (
        [draws.weighted(names, weights) for _ in range(draws.whole(1, 2))]
        if draws.chance(0.5)
        else None
    )
    maps = []
    for k in range(n):
        chosen = shared or [
            draws.weighted(names, weights) for _ in range(draws.weighted((1, 2, 3), (5, 4, 1)))
        ]
        shares = [draws.uniform(0.3, 1.0) for _ in chosen]
        total = sum(shares) / draws.uniform(0.8, 1.2)
        maps.append(
            Map(
                affine=_similar(draws, 0.35, 1.15, 1.0),
                variations=tuple(
                    _term(draws, name, share / total)
                    for name, share in zip(chosen, shares, strict=True)
                ),
                post=_post(draws, 0.3),
                weight=rounded(draws.uniform(0.3, 1.0)),
                colour=_colour(k, n),
                speed=rounded(draws.uniform(0.3, 0.7)),
            )
        )
    return _system(draws, maps, 0.35)


def _inversion(draws: Draws) -> ChaosLayer:
    """2 to 4 inversions in circles, each after an affine map: chains and nets of circles."""
    n = draws.whole(2, 4)
    maps = []
    for k in range(n):
        terms = [_term(draws, "spherical", draws.uniform(0.5, 1.2))]
        if draws.chance(0.15):
            terms.append(
                _term(
                    draws,
                    draws.choice(("linear", "julian", "bubble", "curl", "disc")),
                    draws.uniform(0.1, 0.6),
                )
            )
        maps.append(
            Map(
                affine=_similar(draws, 0.5, 1.3, 1.2),
                variations=tuple(terms) if k < 2 or draws.chance(0.6) else (),
                post=_post(draws, 0.3),
                weight=rounded(draws.uniform(0.2, 1.0)),
                colour=_colour(k, n),
                speed=rounded(draws.uniform(0.25, 0.6)),
            )
        )
    return _system(draws, maps, 0.4)


def _roots(draws: Draws) -> ChaosLayer:
    """One or two maps of complex roots among affine ones: rosettes, spirals and Julia-like lace."""
    n = draws.whole(2, 4)
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
            affine, weight = _similar(draws, 0.6, 1.6, 0.9), draws.uniform(0.6, 1.5)
        else:
            extra = draws.weighted(
                ("", "spherical", "bubble", "eyefish", "sinusoidal", "curl"), (6, 1, 1, 1, 1, 1)
            )
            terms = (_term(draws, extra, draws.uniform(0.5, 1.0)),) if extra else ()
            affine, weight = _similar(draws, 0.15, 1.0, 1.2), draws.uniform(0.15, 0.6)
        maps.append(
            Map(
                affine=affine,
                variations=terms,
                post=_post(draws, 0.2),
                weight=rounded(weight),
                colour=_colour(k, n),
                speed=rounded(draws.uniform(0.2, 0.6)),
            )
        )
    return _system(draws, maps, 0.2)


def singular_values(draws: Draws, n: int) -> list[tuple[float, float]]:
    """Draw (s1, s2) of n affine maps, 0 <= s2 <= s1 <= 1.

    With sum(s1 + 2 s2) = alpha ~ U((5 + n)/2, (6 + n)/2).

    Exact sequential sampler of C. Anderson and R. Farrell, "Improving Fractal Pre-training", arXiv
    2110.03091, appendix.
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
    """2 to 8 affine maps whose singular values are constrained.

    As Anderson & Farrell sample them.
    """
    maps = _affine_maps(draws, draws.whole(2, 8))
    return ChaosLayer(
        maps=tuple(maps), camera=ANY_CAMERA, tone=ANY_TONE, symmetry=_symmetry(draws, 0.4)
    )


def _bent_ifs(draws: Draws) -> ChaosLayer:
    """An affine system seen through a final variation."""
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
        affine=_similar(draws, 0.5, 1.5, 0.6), variations=(_term(draws, name, 1.0),), speed=0.0
    )
    return replace(layer, final=final)


def _symmetry(draws: Draws, chance: float) -> int:
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
            affine=_similar(draws, 0.6, 1.4, 0.5), variations=(_term(draws, name, 1.0),), speed=0.0
        )
    return ChaosLayer(
        maps=tuple(maps),
        camera=ANY_CAMERA,
        tone=ANY_TONE,
        final=final,
        symmetry=_symmetry(draws, symmetry),
    )


def _rosette(draws: Draws) -> ChaosLayer:
    """Any of the others seen through a final map of 3 to 12 complex roots: a wheel of petals."""
    layer = draws.choice((_mixture, _inversion, _roots, _ifs))(draws)
    roots = float(draws.whole(3, 12))
    # The radius goes to the power distance / roots: near 0 all petals would lie on one thin ring.
    parameters = (roots, rounded(roots * draws.uniform(0.3, 1.0)))
    name = draws.choice(("julian", "juliascope"))
    lens = VariationTerm(name=name, weight=1.0, parameters=parameters)
    final = Map(affine=_similar(draws, 0.6, 1.6, 1.2), variations=(lens,), speed=0.0)
    return replace(layer, final=final, symmetry=1)


TEMPLATES: dict[str, Callable[[Draws], ChaosLayer]] = {
    "mixture": _mixture,
    "inversion": _inversion,
    "roots": _roots,
    "ifs": _ifs,
    "bent_ifs": _bent_ifs,
    "rosette": _rosette,
}


def frame(program: Program, symmetric: bool, draws: Draws, key: tuple[int, ...]) -> Camera | None:
    """Place a camera where the points are; None if the attractor is a point or has no bounds.

    Between 35 and 92 % of the points come to lie in the window, so that it is filled and few are
    wasted. symmetric: the system has a centre, worth looking at. key: integers of the game's random
    stream.
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
        pick, pull = int(draws.unit() * len(x)), draws.uniform(0.0, 0.7)
        middle_x, middle_y = quantile(x, 0.5), quantile(y, 0.5)
        centre_x = middle_x + pull * (float(x[pick]) - middle_x)
        centre_y = middle_y + pull * (float(y[pick]) - middle_y)
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


def quantile(values: NDArray[np.float32], share: float) -> float:
    """Return the value that `share` of them do not exceed.

    One of the values, never a mean of two.
    """
    place = int(share * (len(values) - 1))
    return float(np.partition(values, place)[place])


def expose(game: Game, draws: Draws) -> Tone | None:
    """Set light and colour by a small first game, already spread.

    None if next to nothing lies in the window.

    2 to 15 % of the window are at full light; the colours seen span 0.35 to 1.1 turns of the
    palette.
    """
    points, colours = game.points.ravel(), game.colours.ravel()
    bright = quantile(points, 1 - draws.uniform(0.02, 0.15))
    density = bright * PREVIEW_SIZE**2 / game.played
    if density < 0.02:
        return None
    lit = points > np.float32(0.2 * bright)
    seen = colours[lit] / points[lit]
    span = max(quantile(seen, 0.95) - quantile(seen, 0.05), 0.01)
    return Tone(
        # A wider stretch than 2.5 would show the sampling noise of nearly equal colours as
        # blotches.
        colour_start=rounded(draws.unit()),
        colour_stretch=rounded(min(draws.uniform(0.35, 1.1) / span, 2.5)),
        exposure=float(f"{density:.4g}"),
        contrast=float(f"{10 ** draws.uniform(0.3, 2.0) / density:.4g}"),
        gamma=rounded(draws.uniform(0.55, 1.0)),
        vibrancy=rounded(draws.uniform(0.6, 1.0)),
    )


def draw_chaos(
    draws: Draws, templates: dict[str, float], samples_per_pixel: float, key: tuple[int, ...]
) -> tuple[ChaosLayer, Game] | None:
    """Draw a system of one of the templates, framed and exposed; None if it has nothing to show.

    templates: relative frequency of each of `TEMPLATES`. samples_per_pixel: of the game that it is
    exposed by, at PREVIEW_SIZE. key: integers of that game's random stream.
    """
    template = draws.weighted(list(templates), list(templates.values()))
    layer = TEMPLATES[template](draws)
    program = compile_layer(layer)
    symmetric = template == "rosette" or (abs(layer.symmetry) > 1 and layer.final is None)
    camera = frame(program, symmetric, draws, (*key, _FRAMING))
    if camera is None:
        return None
    game = play_program(program, camera, PREVIEW_SIZE, PREVIEW_SIZE, samples_per_pixel, *key)
    game = spread(game, ANY_TONE.softness)
    tone = expose(game, draws)
    return None if tone is None else (replace(layer, camera=camera, tone=tone), game)
