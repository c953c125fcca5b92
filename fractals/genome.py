"""Genomes, frozen dataclasses that describe an image and convert to JSON, and their rendering.

To add a kind of layer, write a module with a dataclass and two functions, and add a row to
``LAYER_KINDS``.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any, NamedTuple, TypeAlias, cast, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from fractals import FAMILIES
from fractals.chaos import ChaosLayer, Histogram, render_chaos_layer, require
from fractals.escape import EscapeLayer, draw_escape_layer, render_escape_layer
from fractals.image_kernels import blend_layer, fill_gradient, to_bytes
from fractals.numerics import F
from fractals.palettes import ENTRIES, Palette, palette_table
from fractals.systems import draw_chaos_layer

GENOME_VERSION = 1
"""Incremented whenever the genome of a seed and an index, its image or its JSON changes.

It is not part of any random key, so that images whose drawing did not change stay the same.
"""

READ_VERSIONS = (1,)
"""Versions whose genomes can be read; they render as they did when they were written."""

BLENDS = ("over", "screen", "lighten", "multiply")
"""Blend modes, by the number that ``blend_layer`` expects."""

LAYERS = range(1, 4)
MIN_SIDE, MAX_SIDE = 16, 16384

_SETS, _GAME = 1, 1
"""First number of every random key, and the stage number of chaos games."""

Fractal: TypeAlias = ChaosLayer | EscapeLayer


class LayerKind(NamedTuple):
    """A kind of layer.

    Attributes:
        layer: The dataclass.
        draw: Takes draws, the family's templates, samples per pixel, and the random key of the
            layer's game; returns a layer and its preview's histogram (None if it has none), or None
            if the layer shows nothing.
        render: Takes the layer, its palette's table, (height, width), samples per pixel, the random
            key and a histogram or None; returns colours (3, H, W) and coverage (H, W), float32 in
            [0, 1].
        covers: Whether the layer is opaque. Opaque layers use the blend mode "over" and the full
            number of samples.
    """

    layer: type[Fractal]
    draw: Callable[..., tuple[Any, Histogram | None] | None]
    render: Callable[..., tuple[NDArray[np.float32], NDArray[np.float32]]]
    covers: bool


LAYER_KINDS: dict[str, LayerKind] = {
    "chaos": LayerKind(ChaosLayer, draw_chaos_layer, render_chaos_layer, False),
    "escape": LayerKind(EscapeLayer, draw_escape_layer, render_escape_layer, True),
}
_KIND_NAMES: dict[type, str] = {kind.layer: name for name, kind in LAYER_KINDS.items()}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of an image: a fractal, its palette, and how it is blended with the layers below.

    Attributes:
        fractal: A layer dataclass of ``LAYER_KINDS``.
        palette: The palette.
        blend: One of ``BLENDS``.
        opacity: In [0, 1].
    """

    fractal: Fractal
    palette: Palette
    blend: str = "over"
    opacity: float = 1.0

    def __post_init__(self) -> None:
        """Reject an unknown kind of fractal or blend mode and an opacity outside [0, 1]."""
        require(
            type(self.fractal) in _KIND_NAMES,
            type(self.fractal).__name__,
            "not a kind of layer",
            f"use one of {', '.join(LAYER_KINDS)}",
        )
        require(
            self.blend in BLENDS,
            self.blend,
            "not a blend mode",
            f"use one of {', '.join(BLENDS)}",
        )
        require(0 <= self.opacity <= 1, self.opacity, "opacity must be in [0, 1]", "scale it")

    @property
    def kind(self) -> str:
        """Return the key of the fractal's kind in ``LAYER_KINDS``."""
        return _KIND_NAMES[type(self.fractal)]


@dataclass(frozen=True, kw_only=True)
class Genome:
    """A complete description of an image: its origin, and its layers from the bottom up.

    Attributes:
        family: Argument of ``draw_genome``.
        seed: Argument of ``draw_genome``.
        index: Argument of ``draw_genome``.
        attempt: Number of drafts that were rejected before this one.
        background: Palette whose first and middle colours are the ends of the background's
            gradient.
        layers: One to three layers, from the bottom up.
        black: Display value in [0, 1] of the composite that becomes 0.
        white: Display value in [0, 1] that becomes 1, above black.
        version: The ``GENOME_VERSION`` that wrote it.
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
        """Reject an unsupported version, invalid arguments of draw_genome, and missing layers."""
        _check_version(self.version)
        require(
            self.family in FAMILIES,
            self.family,
            "not a family",
            f"use one of {', '.join(FAMILIES)}",
        )
        for name in ("seed", "index", "attempt"):
            value = getattr(self, name)
            require(
                isinstance(value, int) and value >= 0,
                value,
                f"{name} must be an integer of at least 0",
                "use the arguments of draw_genome",
            )
        require(
            0 <= self.black < self.white <= 1,
            (self.black, self.white),
            "black and white must satisfy 0 <= black < white <= 1",
            "use 0 and 1 for no change",
        )
        require(
            len(self.layers) in LAYERS,
            len(self.layers),
            "an image has 1 to 3 layers",
            "remove some",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the genome as plain JSON values; ``from_json`` is the inverse."""
        document = cast("dict[str, Any]", _with_lists(asdict(self)))
        for written, layer in zip(document["layers"], self.layers, strict=True):
            written["fractal"]["kind"] = layer.kind
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Genome":
        """Return the genome in a document written by ``to_json``.

        Raises:
            ValueError: If a field is missing, unknown or out of its range.
        """
        try:
            # First, because other versions may have other fields.
            _check_version(document["version"])
            return cast("Genome", _read(cls, document))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"the genome's JSON does not match version {GENOME_VERSION} ({error}); "
                "use the line as written by pixmix-gen"
            ) from error


def _check_version(version: object) -> None:
    require(
        version in READ_VERSIONS,
        version,
        "not a supported genome version; this release reads version "
        f"{', '.join(map(str, READ_VERSIONS))}",
        "install the release named in the dataset's manifest",
    )


def _with_lists(value: object) -> object:
    if isinstance(value, dict):
        return {key: _with_lists(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_lists(item) for item in value]
    return value


_hints = cache(get_type_hints)


def _read(kind: Any, document: Any) -> Any:  # noqa: ANN401
    """Convert a JSON value to a type: a dataclass or one of its fields."""
    if hasattr(kind, "__dataclass_fields__"):
        values = _fields(kind, document)
        return kind(**{name: _read(_hints(kind)[name], value) for name, value in values.items()})
    if kind == Fractal:
        if not isinstance(document, dict):
            raise TypeError(f"fractal is {document!r}; expected a JSON object")
        name = document["kind"]
        require(
            name in LAYER_KINDS,
            name,
            "not a kind of fractal",
            f"use one of {', '.join(LAYER_KINDS)}",
        )
        return _read(LAYER_KINDS[name].layer, {k: v for k, v in document.items() if k != "kind"})
    if get_origin(kind) is tuple:
        if not isinstance(document, list):
            raise TypeError(f"expected a JSON array, got {document!r}")
        return tuple(_read(get_args(kind)[0], item) for item in document)
    if type(None) in get_args(kind):
        return None if document is None else _read(get_args(kind)[0], document)
    return document


def _fields(kind: Any, document: object) -> dict[str, Any]:  # noqa: ANN401
    """Return a document's items; raise if a key is missing or unknown."""
    if not isinstance(document, dict):
        raise TypeError(f"{kind.__name__} is {document!r}; expected a JSON object")
    differing = document.keys() ^ {field.name for field in fields(kind)}
    if differing:
        raise TypeError(f"{kind.__name__}: missing or unknown: {', '.join(sorted(differing))}")
    return document


def render(
    genome: Genome, size: int | tuple[int, int] = 256, samples_per_pixel: float = 50
) -> NDArray[np.uint8]:
    """Render the image of a genome; the result has the same bits on every machine.

    Args:
        genome: The genome.
        size: Side in pixels, or (height, width), each in 16..16384. The shorter side always spans
            the genome's window, so a larger image shows the same in more detail, and a wider one
            shows more at its sides.
        samples_per_pixel: Chaos-game points per pixel, shared by the layers, > 0. Escape-time
            layers derive their number of samples from it.

    Returns:
        (H, W, 3) uint8, display RGB.

    Raises:
        ValueError: If the size or samples_per_pixel is out of range.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise ValueError(
            f"size {height}x{width}: each side must be in {MIN_SIDE}..{MAX_SIDE} pixels; "
            "use 256 for a mixing set"
        )
    if not 0 < samples_per_pixel < float("inf"):
        raise ValueError(
            f"samples_per_pixel {samples_per_pixel}: must be above 0; use 50 for a mixing set"
        )
    return apply_levels(genome, composite(genome, height, width, samples_per_pixel))


def composite(
    genome: Genome,
    height: int,
    width: int,
    samples_per_pixel: float,
    *,
    stream: int = 0,
    histograms: Mapping[int, Histogram] | None = None,
) -> NDArray[np.float32]:
    """Render all layers and blend them over the background, before ``apply_levels``.

    Args:
        genome: The genome.
        height: Pixels.
        width: Pixels.
        samples_per_pixel: As for ``render``.
        stream: As for ``game_key``.
        histograms: Smoothed histograms by layer number, played with the same size, quality and key.

    Returns:
        (H, W, 3) float32 display values in [0, 1].
    """
    image = np.empty((height, width, 3), np.float32)
    background = palette_table(genome.background)
    fill_gradient(background[0], background[ENTRIES // 2], image)
    n_sharing = sum(not LAYER_KINDS[layer.kind].covers for layer in genome.layers)
    for number, layer in enumerate(genome.layers):
        kind = LAYER_KINDS[layer.kind]
        key = game_key(genome.family, genome.seed, genome.index, genome.attempt, number, stream)
        colours, coverage = kind.render(
            layer.fractal,
            palette_table(layer.palette),
            (height, width),
            samples_per_pixel / (1 if kind.covers else n_sharing),
            key,
            histograms.get(number) if histograms else None,
        )
        blend_layer(
            image.reshape(-1, 3), colours.reshape(3, -1), coverage.reshape(-1),
            BLENDS.index(layer.blend), F(layer.opacity),
        )  # fmt: skip
    return image


def apply_levels(genome: Genome, image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Stretch a composite from the genome's black and white points to (H, W, 3) uint8.

    image: (H, W, 3) float32 of ``composite``.
    """
    out = np.empty(image.shape, np.uint8)
    to_bytes(image.reshape(-1), F(genome.black), F(genome.white), out.reshape(-1))
    return out


def random_key(family: str, *numbers: int) -> tuple[int, ...]:
    """Return a random key of a family; numbers: seed, index, attempt and further numbers."""
    return (_SETS, list(FAMILIES).index(family), *numbers)


def game_key(
    family: str, seed: int, index: int, attempt: int, number: int, stream: int = 0
) -> tuple[int, ...]:
    """Return the random key of the chaos game of layer ``number`` of a draft.

    stream: Number of an independent game; 0 is that of the image itself.
    """
    return random_key(family, seed, index, attempt, number, _GAME, stream)
