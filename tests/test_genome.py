"""Genomes: exact conversion to and from JSON, immutability, and validation."""

import copy
import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fractals import FAMILIES, GENOME_VERSION, Family, Genome, render
from fractals import genome as genome_module
from fractals.chaos import Camera, ChaosLayer, Map, Tone, VariationTerm
from fractals.escape import EscapeLayer
from fractals.genome import Layer
from fractals.palettes import Palette
from fractals.sampling import draft
from fractals.systems import TEMPLATES
from fractals.variations import VARIATIONS

GREY = Palette(stops=((0.1, 0.0, 0.0), (0.9, 0.0, 0.0)))
MAP = Map(affine=(0.5, 0.0, 0.1, 0.0, 0.5, 0.2))
CAMERA = Camera(centre=(0.0, 0.0), width=2.0)
TONE = Tone(exposure=1.0)
CHAOS = ChaosLayer(maps=(MAP,), camera=CAMERA, tone=TONE)
LAYER = Layer(fractal=CHAOS, palette=GREY)
TERM = VariationTerm(name="linear", weight=1.0)
GENOME = Genome(family="ifs", seed=3, index=5, attempt=1, background=GREY, layers=(LAYER,))


@st.composite
def drafts(draw: st.DrawFn) -> Genome:
    """Draw genomes of every family, accepted or not."""
    family: str = draw(st.sampled_from(list(FAMILIES)))
    drawn = draft(draw(st.integers(0, 2**63)), draw(st.integers(0, 10**6)), family, 0)
    assume(drawn is not None)
    assert drawn is not None
    return drawn.genome


def through_text(genome: Genome) -> Genome:
    return Genome.from_json(json.loads(json.dumps(genome.to_json(), allow_nan=False)))


def types_of(value: object) -> object:
    """Return the tree of types within a genome: 1 and 1.0 are equal, but their JSON differs."""
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return type(value), tuple(types_of(getattr(value, field.name)) for field in fields)
    if isinstance(value, tuple):
        return tuple(types_of(item) for item in value)
    return type(value)


# --- JSON ----------------------------------------------------------------------------------------


@pytest.mark.slow
@given(drafts())
def test_a_genome_survives_json_exactly(genome: Genome) -> None:
    again = through_text(genome)
    assert again == genome
    assert hash(again) == hash(genome)
    assert types_of(again) == types_of(genome)
    assert again.to_json() == genome.to_json()


@pytest.mark.slow
@given(drafts())
def test_the_json_of_a_genome_has_plain_values_only(genome: Genome) -> None:
    plain = (dict, list, str, int, float, type(None))

    def check(value: object) -> None:
        assert type(value) in plain
        for item in value.values() if isinstance(value, dict) else ():
            check(item)
        for item in value if isinstance(value, list) else ():
            check(item)

    check(genome.to_json())


def full_genome() -> Genome:
    """Return a genome whose every field differs from its default, so that a lost field shows."""
    term = VariationTerm(name="julian", weight=0.3, parameters=(3.0, 0.7))
    post = (0.9, 0.1, 0.2, -0.1, 0.9, 0.3)
    each = Map(
        affine=MAP.affine, variations=(term, TERM), post=post, weight=0.4, colour=0.25, speed=0.75
    )
    camera = Camera(centre=(0.5, -0.25), width=3.0, rotation=0.0, fold="mirror")
    tone = Tone(
        exposure=2.0,
        colour_start=0.1,
        colour_stretch=0.2,
        contrast=5.0,
        gamma=0.9,
        vibrancy=0.5,
        softness=7.0,
    )
    chaos = ChaosLayer(maps=(each, MAP), camera=camera, tone=tone, final=each, symmetry=-3)
    escape = EscapeLayer(
        formula="newton",
        power=3,
        plane="parameter",
        constant=(0.1, 0.2),
        coefficient=(1.0, 0.3),
        centre=(0.4, 0.5),
        width=1.5,
        max_iterations=64,
        trap="cross",
    )
    return Genome(
        family="mixed",
        seed=2**70,
        index=11,
        attempt=7,
        background=GREY,
        layers=(
            Layer(fractal=escape, palette=GREY),
            Layer(fractal=chaos, palette=GREY, blend="multiply", opacity=0.5),
        ),
        black=0.1,
        white=0.8,
    )


def test_json_keeps_every_field() -> None:
    genome = full_genome()
    assert through_text(genome) == genome
    document = genome.to_json()
    assert set(document) == {field.name for field in dataclasses.fields(Genome)}
    assert [layer["fractal"]["kind"] for layer in document["layers"]] == ["escape", "chaos"]


def test_reading_a_genome_does_not_modify_the_document() -> None:
    document = full_genome().to_json()
    before = copy.deepcopy(document)
    Genome.from_json(document)
    assert document == before


def object_paths(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the paths of all JSON objects within a document."""
    if isinstance(value, dict):
        inner = [each for key, item in value.items() for each in object_paths(item, (*path, key))]
        return [path, *inner]
    if isinstance(value, list):
        return [each for i, item in enumerate(value) for each in object_paths(item, (*path, i))]
    return []


def value_at(document: dict[str, Any], path: tuple[str | int, ...]) -> dict[str, Any]:
    value: Any = document
    for step in path:
        value = value[step]
    return cast("dict[str, Any]", value)


@pytest.mark.parametrize("path", object_paths(full_genome().to_json()), ids=str)
def test_an_unknown_field_is_rejected_at_every_level(path: tuple[str | int, ...]) -> None:
    document = full_genome().to_json()
    value_at(document, path)["sparkle"] = 1
    with pytest.raises(ValueError, match=r"does not match version .*sparkle.*; use the line"):
        Genome.from_json(document)


@pytest.mark.parametrize("path", object_paths(full_genome().to_json()), ids=str)
def test_a_missing_field_is_rejected(path: tuple[str | int, ...]) -> None:
    names = list(value_at(full_genome().to_json(), path))
    assert names
    for name in names:
        document = full_genome().to_json()
        del value_at(document, path)[name]
        with pytest.raises(ValueError, match=rf"does not match version .*{name}.*; use the line"):
            Genome.from_json(document)


@pytest.mark.parametrize("path", object_paths(full_genome().to_json()), ids=str)
@pytest.mark.parametrize("invalid", [None, 3, "text", [], {}], ids=str)
def test_a_value_of_another_type_is_rejected(path: tuple[str | int, ...], invalid: object) -> None:
    if path and path[-1] == "final" and invalid is None:
        return  # A layer without a final map is valid.
    document: Any = full_genome().to_json()
    if path:
        value_at(document, path[:-1])[cast("str", path[-1])] = invalid
    else:
        document = invalid
    with pytest.raises(ValueError, match=r"does not match version .*; use the line"):
        Genome.from_json(document)


def test_an_unknown_kind_of_fractal_is_rejected() -> None:
    document = GENOME.to_json()
    document["layers"][0]["fractal"]["kind"] = "plasma"
    with pytest.raises(ValueError, match=r"'plasma'.*use one of chaos, escape"):
        Genome.from_json(document)


@pytest.mark.parametrize("version", [0, GENOME_VERSION + 1, None, "1"])
def test_another_version_is_rejected_before_its_fields_are_read(version: object) -> None:
    """The error must suggest another release, because a later version may have other fields."""
    document = GENOME.to_json() | {"version": version, "sparkle": 1}
    with pytest.raises(
        ValueError, match=rf"{version!r}: .* version {GENOME_VERSION}; install the release"
    ):
        Genome.from_json(document)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plasma:
    """A kind of layer that the package does not have."""

    grey: float


def render_plasma(
    layer: Plasma, _table: object, size: tuple[int, int], *_: object
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return np.full((3, *size), layer.grey, np.float32), np.ones(size, np.float32)


def test_a_new_kind_of_layer_needs_only_a_row_in_the_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plasma: Any = Plasma(grey=0.5)
    with pytest.raises(ValueError, match=r"'Plasma'.*use one of chaos, escape"):
        replace(LAYER, fractal=plasma)
    row: Any = genome_module.LayerKind(Plasma, lambda *_: (plasma, None), render_plasma, True)
    monkeypatch.setitem(genome_module.LAYER_KINDS, "plasma", row)
    monkeypatch.setitem(genome_module._KIND_NAMES, Plasma, "plasma")
    genome = replace(GENOME, layers=(replace(LAYER, fractal=plasma), LAYER))
    assert [layer["fractal"]["kind"] for layer in genome.to_json()["layers"]] == ["plasma", "chaos"]
    assert through_text(genome) == genome
    assert (render(replace(genome, layers=genome.layers[:1]), 16) == 128).all()
    monkeypatch.setitem(FAMILIES, "plasma", Family({("plasma",): 1.0}, {}))
    drawn = draft(0, 0, "plasma", 0)
    assert drawn is not None
    assert drawn.genome.layers[0].fractal == plasma


def test_families_use_known_kinds_and_templates() -> None:
    assert list(FAMILIES)[:4] == ["mixed", "flame", "ifs", "escape"]
    for family in FAMILIES.values():
        assert {name for plan in family.plans for name in plan} <= set(genome_module.LAYER_KINDS)
        assert set(family.templates) <= set(TEMPLATES)
        assert all(len(plan) in genome_module.LAYERS for plan in family.plans)


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (GENOME, "seed"), (LAYER, "blend"), (CHAOS, "maps"), (MAP, "weight"), (TERM, "weight"),
        (CAMERA, "width"), (TONE, "gamma"), (GREY, "stops"),
    ],
)  # fmt: skip
def test_genomes_are_immutable_at_every_level(value: object, name: str) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, getattr(value, name))


def test_genomes_are_compared_and_hashed_by_value() -> None:
    def drawn() -> list[Genome]:
        drafts = [draft(0, index, family, 1) for index in range(6) for family in FAMILIES]
        return [each.genome for each in drafts if each is not None]

    genomes = drawn()
    assert len(genomes) > 12
    assert len(set(genomes)) == len(genomes)
    assert set(genomes) == set(drawn())


# --- invalid values ------------------------------------------------------------------------------

INF, NAN = math.inf, math.nan
ERRORS: list[tuple[Callable[[], object], str]] = [
    (lambda: VariationTerm(name="sparkle", weight=1.0), "'sparkle': not a known variation; use"),
    (lambda: replace(TERM, parameters=(1.0,)), r"\(1.0,\): linear has 0 parameters; pass none"),
    (
        lambda: VariationTerm(name="julian", weight=1.0),
        r"\(\): julian has 2 parameters; pass roots, distance",
    ),
    (lambda: replace(TERM, weight=NAN), r"\(nan,\): .* must be finite .*; draw"),
    (lambda: replace(TERM, name="julian", parameters=(INF, 1.0)), "inf.* must be finite .*; draw"),
    (lambda: replace(MAP, affine=(1.0,) * 5), r"\(1.0, .*affine must be the six .*finite.*; draw"),
    (lambda: replace(MAP, affine=(NAN,) * 6), r"\(nan, .*affine must be the six .*finite.*; draw"),
    (lambda: replace(MAP, post=(INF,) * 6), r"\(inf, .*post must be the six .*; draw"),
    (lambda: replace(MAP, weight=0.0), "0.0: a map's weight must be above 0.*; remove the map"),
    (lambda: replace(MAP, weight=-1.0), "-1.0: a map's weight must be above 0"),
    (lambda: replace(MAP, weight=INF), "inf: a map's weight must be above 0 and finite"),
    (lambda: replace(MAP, colour=1.1), r"1.1: a map's colour must be in \[0, 1\]; scale it"),
    (lambda: replace(MAP, speed=-0.1), r"-0.1: a colour speed must be in \[0, 1\]; use 0.5"),
    (lambda: replace(CAMERA, centre=(0.0,)), r"\(0.0,\): .*two .*; use x and y"),
    (lambda: replace(CAMERA, centre=(0.0, NAN)), "nan.*two .*; use x and y"),
    (lambda: replace(CAMERA, width=0.0), "0.0: a camera's width must be above 0 .*; use the width"),
    (lambda: replace(CAMERA, width=INF), "inf: a camera's width must be above 0 .*; use the width"),
    (lambda: replace(CAMERA, rotation=NAN), r"nan.*rotation must be finite .*; draw"),
    (lambda: replace(CAMERA, fold="bend"), "'bend': not a fold; use one of none, mirror, wrap"),
    *(
        (lambda name=name, value=value: replace(TONE, **{name: value}), f"{value}: {name} must be")
        for name in ("exposure", "contrast", "gamma")
        for value in (0.0, -1.0, INF, NAN)
    ),
    (lambda: replace(TONE, vibrancy=2.0), r"2.0: vibrancy must be in \[0, 1\]; use 1"),
    (lambda: replace(TONE, softness=-1.0), "-1.0: softness must be .*not negative; use 0 for none"),
    (lambda: replace(TONE, softness=INF), "inf: softness must be finite .*; use 0 for none"),
    (lambda: replace(TONE, colour_start=NAN), "nan.*start and stretch must be finite .*; draw"),
    (lambda: replace(TONE, colour_stretch=INF), "inf.*start and stretch must be finite .*; draw"),
    # Values that overflow float32, directly or in a sum.
    (lambda: replace(TERM, weight=1e300), r"\(1e\+300,\): .* must be finite in float32; draw"),
    (lambda: replace(MAP, affine=(1e300,) * 6), r"\(1e\+300, .* finite in float32.*; draw"),
    (lambda: replace(MAP, weight=10**400), "0: a map's weight must be .*finite in float32; remove"),
    (lambda: replace(CHAOS, maps=(replace(MAP, weight=3e38),) * 2), "6e.*: the weights .*; scale"),
    (lambda: replace(CAMERA, centre=(1e39, 0.0)), r"\(1e\+39, 0.0\): .*float32; use x and y"),
    (lambda: replace(CAMERA, width=1e-300), "1e-300: .*width is too small: pixel coordinates"),
    (lambda: replace(CAMERA, centre=(1e36, 0.0)), "2.0: .*width is too small: pixel coordinates"),
    (lambda: replace(TONE, exposure=1e39), "1e.39: exposure must be above 0 and finite in float32"),
    (lambda: replace(TONE, exposure=1e-9), r"\(30.0, 1e-09\): contrast times exposure .*draw them"),
    (lambda: replace(CHAOS, maps=()), "0: a system has 1 to 32 maps; remove some"),
    (lambda: replace(CHAOS, maps=(MAP,) * 33), "33: a system has 1 to 32 maps; remove some"),
    *(
        (lambda n=n: replace(CHAOS, symmetry=n), f"{n}: symmetry must be .*; use 1 for none")
        for n in (0, 13, -13, 2.5)
    ),
    (lambda: replace(LAYER, blend="add"), "'add': not a blend mode; use one of over"),
    (lambda: replace(LAYER, opacity=1.5), r"1.5: opacity must be in \[0, 1\]; scale it"),
    (lambda: replace(GENOME, version=99), "99: not a supported genome version; .*; install"),
    (lambda: replace(GENOME, family="sea"), "'sea': not a family; use one of mixed"),
    *(
        (
            lambda name=name, value=value: replace(GENOME, **{name: value}),
            f"{value!r}: {name} must be an integer of at least 0; use the arguments",
        )
        for name in ("seed", "index", "attempt")
        for value in (-1, 0.5, "0")
    ),
    *(
        (
            lambda black=black, white=white: replace(GENOME, black=black, white=white),
            rf"\({black}, {white}\): black and white must satisfy 0 <= .* <= 1; use 0",
        )
        for black, white in ((0.5, 0.5), (0.6, 0.4), (-0.1, 1.0), (0.0, 1.1), (NAN, 1.0))
    ),
    (lambda: replace(GENOME, layers=()), "0: an image has 1 to 3 layers"),
    (lambda: replace(GENOME, layers=(LAYER,) * 4), "4: an image has 1 to 3 layers"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_errors_name_value_rule_and_remedy(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_values_at_the_limits_of_their_ranges_are_accepted() -> None:
    assert replace(MAP, colour=1.0, speed=0.0).colour == 1.0
    assert replace(TONE, vibrancy=0.0, softness=0.0).vibrancy == 0.0
    assert replace(CHAOS, maps=(MAP,) * 32, symmetry=-12).symmetry == -12
    assert replace(LAYER, opacity=0.0).opacity == 0.0
    largest = replace(GENOME, layers=(LAYER,) * 3, black=0.0, white=1.0, seed=0, index=0, attempt=0)
    assert len(largest.layers) == 3
    for variation in VARIATIONS:
        parameters = tuple(each.low for each in variation.parameters)
        term = VariationTerm(name=variation.name, weight=-1.0, parameters=parameters)
        assert term.parameters == parameters
