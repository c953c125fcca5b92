"""A genome, everything that an image needs as frozen dataclasses that travel as JSON; its image.

A new kind of layer is a module, with a dataclass and two functions, and a row of `KINDS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any, NamedTuple, TypeAlias, cast, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from fractals import FAMILIES
from fractals.chaos import ChaosLayer, Game, paint_chaos, require
from fractals.escape import EscapeLayer, draw_escape_layer, paint_escape
from fractals.image_kernels import lay_over, shade_ground, to_bytes
from fractals.numerics import F
from fractals.palettes import ENTRIES, Palette, palette_table
from fractals.systems import draw_chaos

GENOME_VERSION = 1
"""Raised whenever the genome of a seed and an index, its image or its JSON changes.

No part of a random key: a new version leaves as they were the images whose drawing did not change.
"""

READ_VERSIONS = (1,)
"""Versions whose genomes are read and rendered as they were when they were written."""

BLENDS = ("over", "screen", "lighten", "multiply")
"""How a layer lies on what is below, by the number that `lay_over` takes."""

LAYERS = range(1, 4)
SMALLEST, LARGEST = 16, 16384

_SETS, _GAME = 1, 1
"""The first number of every random key; the stage that an image's chaos games draw from."""

Fractal: TypeAlias = ChaosLayer | EscapeLayer


class Kind(NamedTuple):
    """A row of `KINDS`.

    layer: the dataclass. draw: takes draws, the family's templates, samples a pixel, and the random
        key of the layer's game; gives a layer and its preview's game, or None where there is
        nothing to show.
    paint: takes the layer, its palette's table, (height, width), samples a pixel, the random key
        and a game or None; gives light (3, H, W) and cover (H, W), float32 in [0, 1].
    covers: whether nothing shows from below. Such a layer lies "over", and has all the samples.
    """

    layer: type[Fractal]
    draw: Callable[..., tuple[Any, Game | None] | None]
    paint: Callable[..., tuple[NDArray[np.float32], NDArray[np.float32]]]
    covers: bool


KINDS: dict[str, Kind] = {
    "chaos": Kind(ChaosLayer, draw_chaos, paint_chaos, False),
    "escape": Kind(EscapeLayer, draw_escape_layer, paint_escape, True),
}
_KIND_NAMES: dict[type, str] = {kind.layer: name for name, kind in KINDS.items()}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One sheet of an image: a fractal, its palette, and how it lies on what is below.

    opacity in [0, 1].
    """

    fractal: Fractal
    palette: Palette
    blend: str = "over"
    opacity: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a fractal of no kind, an unknown blend mode or an opacity outside [0, 1]."""
        require(
            type(self.fractal) in _KIND_NAMES,
            type(self.fractal).__name__,
            "is no kind of layer",
            f"use one of {', '.join(KINDS)}",
        )
        require(
            self.blend in BLENDS, self.blend, "is no blend mode", f"use one of {', '.join(BLENDS)}"
        )
        require(0 <= self.opacity <= 1, self.opacity, "opacity must lie in [0, 1]", "scale it")

    @property
    def kind(self) -> str:
        """Return the name of the fractal's kind in `KINDS`."""
        return _KIND_NAMES[type(self.fractal)]


@dataclass(frozen=True, kw_only=True)
class Genome:
    """An image to be: where it came from, and its layers from the bottom up.

    seed, index, family: the arguments of `draw_genome`; attempt: drafts rejected before this one.
    background: palette whose first and last colours shade the ground, where no layer lies.
    black, white: display values in [0, 1] that become 0 and 1 when all layers lie, black < white.
    """

    family: str
    seed: int
    index: int
    attempt: int
    background: Palette
    layers: tuple[Layer, ...]
    black: float = 0.0
    white: float = 1.0
    version: int = GENOME_VERSION

    def __post_init__(self) -> None:
        """Refuse a genome of another version, of no image of a set, or without layers."""
        _check_version(self.version)
        require(
            self.family in FAMILIES,
            self.family,
            "is no family",
            f"use one of {', '.join(FAMILIES)}",
        )
        for name in ("seed", "index", "attempt"):
            value = getattr(self, name)
            require(
                isinstance(value, int) and value >= 0,
                value,
                f"{name} must be a whole number from 0 on",
                "use the arguments of draw_genome",
            )
        require(
            0 <= self.black < self.white <= 1,
            (self.black, self.white),
            "black and white must rise within [0, 1]",
            "use 0 and 1 for no change",
        )
        require(
            len(self.layers) in LAYERS,
            len(self.layers),
            "an image has 1 to 3 layers",
            "leave some out",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the genome as plain JSON values; `from_json` gives back an equal genome."""
        document = cast("dict[str, Any]", _listed(asdict(self)))
        for written, layer in zip(document["layers"], self.layers, strict=True):
            written["fractal"]["kind"] = layer.kind
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
            return cast("Genome", _read(cls, document))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"the genome's JSON does not fit version {GENOME_VERSION} ({error}); "
                "use the line as it was written"
            ) from error


def _check_version(version: object) -> None:
    require(
        version in READ_VERSIONS,
        version,
        f"is the version that wrote this genome; this release reads version "
        f"{', '.join(map(str, READ_VERSIONS))}",
        "install the release named in the set's manifest",
    )


def _listed(value: object) -> object:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_listed(item) for item in value]
    return value


_hints = cache(get_type_hints)


def _read(kind: Any, document: Any) -> Any:  # noqa: ANN401
    """Return the value of a type, a dataclass or a part of one, that a JSON value stands for."""
    if hasattr(kind, "__dataclass_fields__"):
        values = _fields(kind, document)
        return kind(**{name: _read(_hints(kind)[name], value) for name, value in values.items()})
    if kind == Fractal:
        if not isinstance(document, dict):
            raise TypeError(f"fractal is {document!r}, no JSON object")
        name = document["kind"]
        require(name in KINDS, name, "is no kind of fractal", f"use one of {', '.join(KINDS)}")
        return _read(KINDS[name].layer, {k: v for k, v in document.items() if k != "kind"})
    if get_origin(kind) is tuple:
        if not isinstance(document, list):
            raise TypeError(f"{document!r} is no JSON array")
        return tuple(_read(get_args(kind)[0], item) for item in document)
    if type(None) in get_args(kind):
        return None if document is None else _read(get_args(kind)[0], document)
    return document


def _fields(kind: Any, document: object) -> dict[str, Any]:  # noqa: ANN401
    """Return a document's values, none missing and none that `kind` does not know."""
    if not isinstance(document, dict):
        raise TypeError(f"{kind.__name__} is {document!r}, no JSON object")
    odd = document.keys() ^ {field.name for field in fields(kind)}
    if odd:
        raise TypeError(f"{kind.__name__}: missing or unknown: {', '.join(sorted(odd))}")
    return document


def render(
    genome: Genome, size: int | tuple[int, int] = 256, samples_per_pixel: float = 50
) -> NDArray[np.uint8]:
    """Return the image of a genome, the same on every machine.

    size: side in pixels, or (height, width), each in 16..16384; the window's shorter side is the
    genome's, so a larger image shows the same in more detail, and a wider one more at the sides.
    samples_per_pixel: chaos-game points played a pixel, shared by the layers; > 0. Escape layers
    turn it into sub-samples a pixel. Returns (H, W, 3) uint8, display RGB.

    Raises:
        ValueError: a size or a quality outside these ranges.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if not (SMALLEST <= height <= LARGEST and SMALLEST <= width <= LARGEST):
        raise ValueError(
            f"size {height}x{width}: each side must lie in {SMALLEST}..{LARGEST} pixels; "
            "use 256 for a mixing set"
        )
    if not 0 < samples_per_pixel < float("inf"):
        raise ValueError(
            f"samples_per_pixel {samples_per_pixel}: must be above 0; use 50 for a mixing set"
        )
    return grade(genome, paint(genome, height, width, samples_per_pixel))


def paint(
    genome: Genome,
    height: int,
    width: int,
    samples_per_pixel: float,
    *,
    stream: int = 0,
    games: Mapping[int, Game] | None = None,
) -> NDArray[np.float32]:
    """Return all layers laid on the ground, before `grade`.

    height, width: pixels; samples_per_pixel: as for `render`. stream: as for `game_key`. games: of
    the layers of these numbers, already played with the same size, quality and key, and spread.
    Returns (H, W, 3) float32 display values in [0, 1].
    """
    image = np.empty((height, width, 3), np.float32)
    ground = palette_table(genome.background)
    shade_ground(ground[0], ground[ENTRIES // 2], image)
    n_sharing = sum(not KINDS[layer.kind].covers for layer in genome.layers)
    for number, layer in enumerate(genome.layers):
        kind = KINDS[layer.kind]
        key = game_key(genome.family, genome.seed, genome.index, genome.attempt, number, stream)
        light, cover = kind.paint(
            layer.fractal,
            palette_table(layer.palette),
            (height, width),
            samples_per_pixel / (1 if kind.covers else n_sharing),
            key,
            games.get(number) if games else None,
        )
        lay_over(
            image.reshape(-1, 3), light.reshape(3, -1), cover.reshape(-1),
            BLENDS.index(layer.blend), F(layer.opacity),
        )  # fmt: skip
    return image


def grade(genome: Genome, image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Stretch a painted image from the genome's black and white to (H, W, 3) uint8.

    image: (H, W, 3) float32 of `paint`.
    """
    out = np.empty(image.shape, np.uint8)
    to_bytes(image.reshape(-1), F(genome.black), F(genome.white), out.reshape(-1))
    return out


def random_key(family: str, *numbers: int) -> tuple[int, ...]:
    """Return a random key of a family; numbers: seed, index, attempt, and what follows them."""
    return (_SETS, list(FAMILIES).index(family), *numbers)


def game_key(
    family: str, seed: int, index: int, attempt: int, number: int, stream: int = 0
) -> tuple[int, ...]:
    """Return the random key of the game that layer `number` of a draft is played with.

    stream: which of many independent games, 0 for the image itself.
    """
    return random_key(family, seed, index, attempt, number, _GAME, stream)
