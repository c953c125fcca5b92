"""A genome: everything that a picture needs, as frozen dataclasses that travel as JSON."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias, cast, get_args

from fractals.escape import EscapeLayer
from fractals.palettes import Palette
from fractals.single import fits_single
from fractals.variations import VARIATION_NUMBER, VARIATIONS

GENOME_VERSION = 1
"""Raised whenever a genome of the same seed and index, or the picture of a genome, changes."""

Blend: TypeAlias = Literal["over", "screen", "lighten", "multiply"]
Fold: TypeAlias = Literal["none", "mirror", "wrap"]
Family: TypeAlias = Literal["mixed", "flame", "ifs", "escape"]
FAMILIES: tuple[Family, ...] = get_args(Family)
BLENDS: tuple[Blend, ...] = get_args(Blend)
FOLDS: tuple[Fold, ...] = get_args(Fold)

KINDS = ("chaos", "escape")
MAPS = range(1, 33)
LAYERS = range(1, 4)

_MOST_PIXELS = 16384
_SINGLE_STEP = 2.0**-23

Affine: TypeAlias = tuple[float, float, float, float, float, float]


def _require(condition: bool, value: object, rule: str, remedy: str) -> None:
    if not condition:
        raise ValueError(f"{value!r}: {rule}; {remedy}")


def _check_finite(values: tuple[float, ...], name: str) -> None:
    _require(
        all(fits_single(value) for value in values),
        values,
        f"{name} must be finite in float32",
        "draw the genome anew or mend its JSON",
    )


def _check_affine(affine: Affine | None, name: str) -> None:
    if affine is not None:
        _require(
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
        _require(
            self.name in VARIATION_NUMBER,
            self.name,
            "is no variation",
            f"use one of {', '.join(VARIATION_NUMBER)}",
        )
        wanted = VARIATIONS[VARIATION_NUMBER[self.name]].parameters
        _require(
            len(self.parameters) == len(wanted),
            self.parameters,
            f"{self.name} takes {len(wanted)} parameters",
            f"give {', '.join(name for name, _, _ in wanted) or 'none'}",
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
        _require(
            self.weight > 0 and fits_single(self.weight),
            self.weight,
            "a map's weight must be above 0 and finite in float32",
            "leave the map out instead",
        )
        _require(
            0 <= self.colour <= 1, self.colour, "a map's colour must lie in [0, 1]", "scale it"
        )
        _require(0 <= self.speed <= 1, self.speed, "a colour speed must lie in [0, 1]", "use 0.5")


@dataclass(frozen=True, kw_only=True)
class Camera:
    """The window.

    Centre and width (of the picture's SHORTER side) in plane units, rotation in radians.

    fold: what becomes of points outside: "none" drops them, "mirror" reflects them at the borders
    and "wrap" continues them at the other side, so that the window is filled.
    """

    centre: tuple[float, float]
    width: float
    rotation: float = 0.0
    fold: Fold = "none"

    def __post_init__(self) -> None:
        """Refuse an empty or unbounded window and an unknown fold."""
        _require(
            len(self.centre) == 2 and all(fits_single(value) for value in self.centre),
            self.centre,
            "a camera's centre must be two numbers, finite in float32",
            "give x and y",
        )
        _check_finite((self.rotation,), "a camera's rotation")
        _require(
            self.width > 0 and fits_single(self.width),
            self.width,
            "a camera's width must be above 0 and finite in float32",
            "use the width of the attractor",
        )
        # The kernel's numbers are pixels of the largest picture.
        _require(
            fits_single(_MOST_PIXELS * (1 + sum(map(abs, self.centre))) / self.width),
            self.width,
            "a camera's width must show its centre in pixels that float32 holds",
            "use the width of the attractor",
        )
        _require(self.fold in FOLDS, self.fold, "is no fold", f"use one of {', '.join(FOLDS)}")


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
            value = getattr(self, name)
            _require(
                value > 0 and fits_single(value),
                value,
                f"{name} must be above 0 and finite in float32",
                "draw it anew",
            )
        # Below it, 1 + contrast exposure is 1, and its logarithm, by which light is divided, 0.
        _require(
            self.contrast * self.exposure >= _SINGLE_STEP,
            (self.contrast, self.exposure),
            "contrast times exposure must be above the step of float32, 1.2e-7",
            "draw them anew",
        )
        _check_finite((self.colour_start, self.colour_stretch), "a colour's start and stretch")
        _require(0 <= self.vibrancy <= 1, self.vibrancy, "vibrancy must lie in [0, 1]", "use 1")
        _require(
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
        _require(
            len(self.maps) in MAPS, len(self.maps), "a system has 1 to 32 maps", "leave some out"
        )
        weight = sum(each.weight for each in self.maps)
        _require(
            fits_single(weight),
            weight,
            "the weights of the maps must have a sum that is finite in float32",
            "scale them",
        )
        _require(
            isinstance(self.symmetry, int) and 0 < abs(self.symmetry) <= 12,
            self.symmetry,
            "symmetry must be 1 (none), 2..12 (rotations) or -12..-1 (with a reflection)",
            "use 1 for none",
        )


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One sheet of a picture: a fractal, its palette, and how it lies on what is below.

    opacity in [0, 1].
    """

    fractal: ChaosLayer | EscapeLayer
    palette: Palette
    blend: Blend = "over"
    opacity: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an unknown blend mode or an opacity outside [0, 1]."""
        _require(
            self.blend in BLENDS, self.blend, "is no blend mode", f"use one of {', '.join(BLENDS)}"
        )
        _require(0 <= self.opacity <= 1, self.opacity, "opacity must lie in [0, 1]", "scale it")


@dataclass(frozen=True, kw_only=True)
class Genome:
    """A picture to be: where it came from, and its layers from the bottom up.

    seed, index, family: the arguments of `draw_genome`; attempt: drafts rejected before this one.
    background: palette whose first and last colours shade the ground, where no layer lies.
    black, white: display values in [0, 1] that become 0 and 1 when all layers lie, black < white.
    """

    family: Family
    seed: int
    index: int
    attempt: int
    background: Palette
    layers: tuple[Layer, ...]
    black: float = 0.0
    white: float = 1.0
    version: int = GENOME_VERSION

    def __post_init__(self) -> None:
        """Refuse a genome of another version, of no picture of a set, or without layers."""
        _check_version(self.version)
        _require(
            self.family in FAMILIES,
            self.family,
            "is no family",
            f"use one of {', '.join(FAMILIES)}",
        )
        for name in ("seed", "index", "attempt"):
            value = getattr(self, name)
            _require(
                isinstance(value, int) and value >= 0,
                value,
                f"{name} must be a whole number from 0 on",
                "use the arguments of draw_genome",
            )
        _require(
            0 <= self.black < self.white <= 1,
            (self.black, self.white),
            "black and white must rise within [0, 1]",
            "use 0 and 1 for no change",
        )
        _require(
            len(self.layers) in LAYERS,
            len(self.layers),
            "a picture has 1 to 3 layers",
            "leave some out",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the genome as plain JSON values; `from_json` gives back an equal genome."""
        document = cast("dict[str, Any]", _listed(asdict(self)))
        for written, layer in zip(document["layers"], self.layers, strict=True):
            written["fractal"]["kind"] = (
                "chaos" if isinstance(layer.fractal, ChaosLayer) else "escape"
            )
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Genome":
        """Return the genome of a document that `to_json` wrote.

        Raises:
            ValueError: a field is missing, unknown or out of its range.
        """
        try:
            # Before all else: another version may well have other fields.
            _check_version(document["version"])
            layers = tuple(_layer(layer) for layer in document["layers"])
            background = _palette(document["background"])
            return cls(**_fields(cls, document) | {"layers": layers, "background": background})
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"the genome's JSON does not fit version {GENOME_VERSION} ({error}); "
                "use the line as it was written"
            ) from error


def _check_version(version: object) -> None:
    _require(
        version == GENOME_VERSION,
        version,
        f"this release renders genomes of version {GENOME_VERSION}",
        "install the release named in the set's manifest",
    )


def _listed(value: object) -> object:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_listed(item) for item in value]
    return value


def _tupled(value: object) -> object:
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value


def _fields(kind: type, document: object) -> dict[str, Any]:
    """Return a document's values, none missing and none that `kind` does not know."""
    if not isinstance(document, dict):
        raise TypeError(f"{kind.__name__} is {document!r}, no JSON object")
    odd = document.keys() ^ {field.name for field in fields(kind)}
    if odd:
        raise TypeError(f"{kind.__name__}: missing or unknown: {', '.join(sorted(odd))}")
    return {key: _tupled(value) for key, value in document.items()}


def _palette(document: object) -> Palette:
    return Palette(**_fields(Palette, document))


def _map(document: object) -> Map:
    read = _fields(Map, document)
    terms = tuple(VariationTerm(**_fields(VariationTerm, term)) for term in read["variations"])
    return Map(**read | {"variations": terms})


def _fractal(document: object) -> ChaosLayer | EscapeLayer:
    if not isinstance(document, dict):
        raise TypeError(f"fractal is {document!r}, no JSON object")
    plain = {key: value for key, value in document.items() if key != "kind"}
    _require(
        document["kind"] in KINDS, document["kind"], "is no kind of fractal", "use chaos or escape"
    )
    if document["kind"] == "escape":
        return EscapeLayer(**_fields(EscapeLayer, plain))
    read = _fields(ChaosLayer, plain)
    return ChaosLayer(
        maps=tuple(_map(item) for item in read["maps"]),
        final=None if read["final"] is None else _map(read["final"]),
        camera=Camera(**_fields(Camera, read["camera"])),
        tone=Tone(**_fields(Tone, read["tone"])),
        symmetry=read["symmetry"],
    )


def _layer(document: object) -> Layer:
    read = _fields(Layer, document)
    return Layer(
        **read | {"fractal": _fractal(read["fractal"]), "palette": _palette(read["palette"])}
    )
