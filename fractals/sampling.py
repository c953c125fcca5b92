"""A genome from a seed and an index: drafts are drawn until one passes the statistics of its preview."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fractals.escape import draw_escape
from fractals.genome import (
    FAMILIES,
    GENOME_VERSION,
    Affine,
    Blend,
    Camera,
    ChaosLayer,
    Family,
    Fold,
    Genome,
    Layer,
    Map,
    Tone,
    VariationTerm,
)
from fractals.kernels import accumulate, sample_points
from fractals.palettes import draw_background, draw_palette
from fractals.random import Draws
from fractals.render import grade, paint
from fractals.statistics import preview_statistics
from fractals.tone import estimate_density
from fractals.variations import VARIATION_NUMBER, VARIATIONS

PREVIEW_SIZE = 64
_FRAMING = 2
_EXPOSING = 3


def _rounded(value: float) -> float:
    """Round to 5 decimals: what a platform's last bit changes does not reach the genome."""
    return round(value, 5)


def _affine(scale_x: float, scale_y: float, angle: float, shear: float, x: float, y: float) -> Affine:
    c, s, t = math.cos(angle), math.sin(angle), angle + shear
    return (
        _rounded(scale_x * c),
        _rounded(-scale_y * math.sin(t)),
        _rounded(x),
        _rounded(scale_x * s),
        _rounded(scale_y * math.cos(t)),
        _rounded(y),
    )


def _similar(draws: Draws, low: float, high: float, reach: float) -> Affine:
    """Draw a nearly angle-keeping affine map of scale low..high and translation up to reach."""
    scale = draws.uniform(low, high)
    stretch = draws.uniform(0.75, 1.3) if draws.chance(0.4) else 1.0
    angle = draws.choice((0.0, 0.5, 1.0, 1.5)) * math.pi if draws.chance(0.25) else draws.uniform(-math.pi, math.pi)
    shear = draws.uniform(-0.5, 0.5) if draws.chance(0.3) else 0.0
    flip = -1.0 if draws.chance(0.2) else 1.0
    return _affine(
        flip * scale, scale * stretch, angle, shear, draws.uniform(-reach, reach), draws.uniform(-reach, reach)
    )


def _term(draws: Draws, name: str, weight: float) -> VariationTerm:
    parameters = []
    for parameter, low, high in VARIATIONS[VARIATION_NUMBER[name]].parameters:
        value = draws.uniform(low, high)
        if parameter in ("roots", "lobes"):
            value = float(math.floor(value))
        parameters.append(_rounded(value))
    return VariationTerm(name=name, weight=_rounded(weight), parameters=tuple(parameters))


def _post(draws: Draws, chance: float) -> Affine | None:
    return _similar(draws, 0.6, 1.2, 0.6) if draws.chance(chance) else None


_POPULAR = {
    "linear": 6, "sinusoidal": 2, "spherical": 8, "swirl": 2, "horseshoe": 2, "polar": 2, "handkerchief": 1,
    "heart": 1, "disc": 3, "spiral": 2, "hyperbolic": 2, "diamond": 2, "ex": 1, "julia": 4, "bent": 2, "waves": 2,
    "fisheye": 2, "popcorn": 1.5, "exponential": 1, "power": 1, "cosine": 1, "rings": 2, "fan": 1.5, "blob": 1.5,
    "pdj": 2, "eyefish": 3, "bubble": 3, "cylinder": 2, "perspective": 1, "julian": 5, "juliascope": 5, "blur": 0.5,
    "ngon": 1.5, "curl": 3, "rectangles": 2, "tangent": 0.7, "square": 0.5, "cross": 1,
}  # fmt: skip


def _colour(k: int, n: int) -> float:
    return _rounded(k / n)


def _mixture(draws: Draws) -> ChaosLayer:
    """2 to 5 maps of 1 to 3 popular variations, half the time the same for all maps."""
    n = draws.whole(2, 5)
    names, weights = list(_POPULAR), list(_POPULAR.values())
    shared = [draws.weighted(names, weights) for _ in range(draws.whole(1, 2))] if draws.chance(0.5) else None
    maps = []
    for k in range(n):
        chosen = shared or [draws.weighted(names, weights) for _ in range(draws.weighted((1, 2, 3), (5, 4, 1)))]
        shares = [draws.uniform(0.3, 1.0) for _ in chosen]
        total = sum(shares) / draws.uniform(0.8, 1.2)
        maps.append(
            Map(
                affine=_similar(draws, 0.35, 1.15, 1.0),
                variations=tuple(_term(draws, name, share / total) for name, share in zip(chosen, shares, strict=True)),
                post=_post(draws, 0.3),
                weight=_rounded(draws.uniform(0.3, 1.0)),
                colour=_colour(k, n),
                speed=_rounded(draws.uniform(0.3, 0.7)),
            )
        )
    return _system(draws, maps, 0.35)


def _inversion(draws: Draws) -> ChaosLayer:
    """2 to 4 inversions in circles, each after an affine map: chains and nets of circles."""
    n = draws.whole(2, 4)
    maps = []
    for k in range(n):
        terms = [_term(draws, "spherical", draws.uniform(0.4, 1.3))]
        if draws.chance(0.25):
            terms.append(_term(draws, draws.choice(("linear", "julian", "bubble", "curl", "disc")), draws.uniform(0.1, 0.6)))
        maps.append(
            Map(
                affine=_similar(draws, 0.4, 1.3, 1.2),
                variations=tuple(terms),
                post=_post(draws, 0.5),
                weight=_rounded(draws.uniform(0.2, 1.0)),
                colour=_colour(k, n),
                speed=_rounded(draws.uniform(0.25, 0.6)),
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
                name=name, weight=_rounded(draws.uniform(0.7, 1.3)), parameters=(float(roots), _rounded(distance))
            )
            affine, terms, weight = _similar(draws, 0.6, 1.6, 0.9), (term,), draws.uniform(0.6, 1.5)
        else:
            extra = draws.weighted(("", "spherical", "bubble", "eyefish", "sinusoidal", "curl"), (6, 1, 1, 1, 1, 1))
            terms = (_term(draws, extra, draws.uniform(0.5, 1.0)),) if extra else ()
            affine, weight = _similar(draws, 0.15, 1.0, 1.2), draws.uniform(0.15, 0.6)
        maps.append(
            Map(
                affine=affine,
                variations=terms,
                post=_post(draws, 0.2),
                weight=_rounded(weight),
                colour=_colour(k, n),
                speed=_rounded(draws.uniform(0.2, 0.6)),
            )
        )
    return _system(draws, maps, 0.2)


def singular_values(draws: Draws, n: int) -> list[tuple[float, float]]:
    """Draw (s1, s2) of n affine maps, 0 <= s2 <= s1 <= 1, with sum(s1 + 2 s2) = alpha ~ U((5 + n)/2, (6 + n)/2).

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
                    _rounded(a), _rounded(b), _rounded(draws.uniform(-1, 1)),
                    _rounded(d), _rounded(e), _rounded(draws.uniform(-1, 1)),
                ),  # fmt: skip
                weight=max(_rounded(s1 * s2), 0.02),
                colour=_colour(k, n),
                speed=_rounded(draws.uniform(0.3, 0.7)),
            )
        )
    return maps


def _ifs(draws: Draws) -> ChaosLayer:
    """2 to 8 affine maps whose singular values are constrained, as Anderson & Farrell sample them."""
    maps = _affine_maps(draws, draws.whole(2, 8))
    return ChaosLayer(maps=tuple(maps), camera=_ANY_CAMERA, tone=_ANY_TONE, symmetry=_symmetry(draws, 0.4))


def _bent_ifs(draws: Draws) -> ChaosLayer:
    """An affine system seen through a final variation."""
    layer = _ifs(draws)
    name = draws.choice(("spherical", "julian", "juliascope", "polar", "bubble", "swirl", "sinusoidal", "curl", "disc", "pdj"))
    final = Map(affine=_similar(draws, 0.5, 1.5, 0.6), variations=(_term(draws, name, 1.0),), speed=0.0)
    return replace(layer, final=final)


_ANY_CAMERA = Camera(centre=(0.0, 0.0), width=2.0)
_ANY_TONE = Tone(exposure=1.0)


def _symmetry(draws: Draws, chance: float) -> int:
    if not draws.chance(chance):
        return 1
    return draws.weighted((2, 3, 4, 5, 6, -1, -2, -3, -4, -5, -6), (3, 3, 3, 2, 3, 4, 4, 2, 3, 1, 3))


def _system(draws: Draws, maps: list[Map], symmetry: float) -> ChaosLayer:
    final = None
    if draws.chance(0.15):
        name = draws.choice(("spherical", "julian", "bubble", "eyefish", "sinusoidal", "polar", "curl", "linear"))
        final = Map(affine=_similar(draws, 0.6, 1.4, 0.5), variations=(_term(draws, name, 1.0),), speed=0.0)
    return ChaosLayer(
        maps=tuple(maps), camera=_ANY_CAMERA, tone=_ANY_TONE, final=final, symmetry=_symmetry(draws, symmetry)
    )


TEMPLATES: dict[str, Callable[[Draws], ChaosLayer]] = {
    "mixture": _mixture,
    "inversion": _inversion,
    "roots": _roots,
    "ifs": _ifs,
    "bent_ifs": _bent_ifs,
}


def frame(layer: ChaosLayer, draws: Draws, key: tuple[int, ...]) -> Camera | None:
    """Place the camera where the points are; None if the attractor is a point, a line or boundless."""
    x, y = sample_points(layer, 3, *key, _FRAMING)
    good = (np.abs(x) < 1e3) & (np.abs(y) < 1e3)
    if good.sum() < 0.9 * len(x):
        return None
    x, y = x[good], y[good]
    if abs(layer.symmetry) > 1 and layer.final is None and draws.chance(0.7):
        centre = (0.0, 0.0)
    else:
        pick = int(draws.unit() * len(x))
        pull = draws.uniform(0.0, 0.7)
        mx, my = float(np.sort(x)[len(x) // 2]), float(np.sort(y)[len(y) // 2])
        centre = (mx + pull * (float(x[pick]) - mx), my + pull * (float(y[pick]) - my))
    reach = np.sort(np.maximum(np.abs(x - np.float32(centre[0])), np.abs(y - np.float32(centre[1]))))
    inside = draws.uniform(0.35, 0.92)
    half = float(reach[int(inside * (len(reach) - 1))])
    if not 1e-3 < half < 50:
        return None
    fold: Fold = draws.weighted(("none", "mirror", "wrap"), (0.8, 0.17, 0.03))
    rotation = 0.0 if fold != "none" or draws.chance(0.5) else draws.uniform(-math.pi, math.pi)
    return Camera(
        centre=(_rounded(centre[0]), _rounded(centre[1])), width=_rounded(2 * half), rotation=_rounded(rotation), fold=fold
    )


def expose(layer: ChaosLayer, draws: Draws, key: tuple[int, ...]) -> Tone | None:
    """Set the light by the densities of a preview: the share `bright` of the picture is at full light."""
    points, colours, played = accumulate(layer, PREVIEW_SIZE, PREVIEW_SIZE, 12, *key, _EXPOSING)
    points, colours = estimate_density(points, colours, _ANY_TONE.softness)
    points, colours = points.ravel(), colours.ravel()
    ordered = np.sort(points)
    bright = float(ordered[int((1 - draws.uniform(0.02, 0.15)) * (len(ordered) - 1))])
    density = bright * PREVIEW_SIZE**2 / played
    if density < 0.02:
        return None
    seen = np.sort((colours / np.maximum(points, np.float32(1e-6)))[points > np.float32(0.2 * bright)])
    low, high = float(seen[len(seen) // 20]), float(seen[len(seen) * 19 // 20])
    return Tone(
        colour_start=_rounded(draws.unit()),
        colour_stretch=_rounded(min(draws.uniform(0.5, 1.3) / max(high - low, 0.01), 5.0)),
        exposure=float(f"{density:.4g}"),
        contrast=float(f"{10 ** draws.uniform(0.3, 2.0) / density:.4g}"),
        gamma=_rounded(draws.uniform(0.55, 1.0)),
        vibrancy=_rounded(draws.uniform(0.6, 1.0)),
    )


def finish(layer: ChaosLayer, draws: Draws, key: tuple[int, ...]) -> ChaosLayer | None:
    """Give a drawn system its camera and its tone; None if it has nothing to show."""
    camera = frame(layer, draws, key)
    if camera is None:
        return None
    layer = replace(layer, camera=camera)
    tone = expose(layer, draws, key)
    return None if tone is None else replace(layer, tone=tone)


@dataclass(frozen=True)
class Bars:
    """What a draft's preview must reach to be kept; the fields of `PreviewStatistics` and coherence."""

    coverage: float = 0.9
    edge_density: float = 0.2
    textured_blocks: float = 0.5
    edges_at_32: float = 0.5
    luma_std_at_32: float = 0.08
    rgb_entropy: float = 3.2
    colourfulness: float = 25.0
    coherence: float = 0.38


def _chaos(draws: Draws, key: tuple[int, ...], weights: dict[str, float]) -> ChaosLayer | None:
    template = draws.weighted(list(weights), list(weights.values()))
    return finish(TEMPLATES[template](draws), draws, key)


_FLAMES = {"mixture": 5.0, "inversion": 4.0, "roots": 3.0, "bent_ifs": 2.0}
_MIXED = _FLAMES | {"ifs": 1.0}


def draft(family: Family, seed: int, index: int, attempt: int) -> Genome | None:
    """Draw one genome, good or dull; None if its system has nothing to show."""
    key = (GENOME_VERSION, seed, index, attempt)
    draws = Draws(GENOME_VERSION, FAMILIES.index(family), seed, index, attempt)
    palette = draw_palette(draws)
    background = draw_background(draws, palette)
    layers: list[Layer] = []
    plan = draws.weighted(("single", "double", "ground", "escape"), (0.35, 0.3, 0.22, 0.13))
    if family == "mixed" and plan in ("ground", "escape"):
        layers.append(Layer(fractal=draw_escape(draws), palette=palette, opacity=1.0))
        palette = draw_palette(draws)
    if family == "escape":
        layers.append(Layer(fractal=draw_escape(draws), palette=palette))
        plan = "escape"
    if plan != "escape":
        for number in range(2 if plan == "double" else 1):
            weights = {"ifs": 1.0} if family == "ifs" else _FLAMES if family == "flame" else _MIXED
            fractal = _chaos(draws, (*key, number), weights)
            if fractal is None:
                return None
            blends: tuple[Blend, ...] = ("over", "screen", "lighten")
            layers.append(Layer(fractal=fractal, palette=palette, blend=draws.weighted(blends, (3, 3, 1))))
            if draws.chance(0.6):
                palette = draw_palette(draws)
    return Genome(
        family=family, seed=seed, index=index, attempt=attempt, background=background, layers=tuple(layers)
    )


def stretch(genome: Genome, painted: NDArray[np.float32], share: float) -> Genome:
    """Set black and white so that all but 2 % of a preview's values are used, moved by `share` of the way."""
    ordered = np.sort(painted.reshape(-1))
    last = len(ordered) - 1
    black, white = float(ordered[last // 50]), float(ordered[last - last // 50])
    return replace(
        genome, black=_rounded(max(0.0, share * black - 0.02)), white=_rounded(min(1.0, 1 - share * (1 - white)))
    )


def coherence(picture: NDArray[np.uint8]) -> float:
    luma = picture.astype(float) @ [0.299, 0.587, 0.114] / 255
    gx, gy = (luma[1:-1, 2:] - luma[1:-1, :-2]) / 2, (luma[2:, 1:-1] - luma[:-2, 1:-1]) / 2

    def box(a, k=2):
        c = np.pad(a.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        w = 2 * k + 1
        return c[w:, w:] - c[:-w, w:] - c[w:, :-w] + c[:-w, :-w]

    a, b, c = box(gx * gx), box(gy * gy), box(gx * gy)
    return float(np.sqrt((a - b) ** 2 + 4 * c * c).sum() / max((a + b).sum(), 1e-9))


LOW = dict(coverage=.9, edge_density=.3, textured_blocks=.6, edges_at_32=.55, luma_std_at_32=.11, rgb_entropy=3.4, colourfulness=30, coherence=.44)
HIGH = dict(edge_density=.86)


def draw_genome(seed: int, index: int, family: Family = "mixed") -> Genome:
    for attempt in range(1000):
        genome = draft(family, seed, index, attempt)
        if genome is None:
            continue
        painted = paint(genome, PREVIEW_SIZE, PREVIEW_SIZE, 24)
        genome = stretch(genome, painted, 1.0)
        picture = grade(genome, painted)
        stats = preview_statistics(picture)._asdict() | {"coherence": coherence(picture)}
        fails = [k for k, v in LOW.items() if stats[k] < v] + [k for k, v in HIGH.items() if stats[k] > v]
        if not fails:
            return genome
        REJ[fails[0] if len(fails) == 1 else "several"] = REJ.get(fails[0] if len(fails) == 1 else "several", 0) + 1
    raise RuntimeError


REJ: dict = {}
