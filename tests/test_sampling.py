"""From seed and index to a genome: pure draws, what a family holds, and the bars it must reach."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from fractals import FAMILIES, Genome, draw_genome, sampling
from fractals.chaos import ChaosLayer, Map, compile_layer, sample_points
from fractals.escape import EscapeLayer
from fractals.genome import apply_levels, composite
from fractals.numerics import Draws
from fractals.sampling import THRESHOLDS, Thresholds, draft, missed_thresholds, preview, with_levels
from fractals.statistics import coherence, measure, reliability
from fractals.systems import PREVIEW_SIZE, TEMPLATES, fit_camera, singular_values

ROOT = Path(__file__).resolve().parent.parent
N_INDICES = 60
Image = NDArray[np.uint8]


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Genome]]:
    """The first genomes of every family's set of seed 0."""
    return {
        family: [draw_genome(0, index, family) for index in range(N_INDICES)] for family in FAMILIES
    }


def fractals_of(genomes: list[Genome]) -> list[ChaosLayer | EscapeLayer]:
    return [layer.fractal for genome in genomes for layer in genome.layers]


def systems_of(genomes: list[Genome]) -> list[ChaosLayer]:
    return [each for each in fractals_of(genomes) if isinstance(each, ChaosLayer)]


# --- purity --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_genome_is_a_function_of_its_arguments_whatever_was_drawn_before(
    drawn: dict[str, list[Genome]], family: str
) -> None:
    for index in reversed(range(0, N_INDICES, 12)):
        draw_genome(99, 1000 - index, list(FAMILIES)[index % 4])
        assert draw_genome(0, index, family) == drawn[family][index]


def test_a_genome_is_the_same_in_another_process(drawn: dict[str, list[Genome]]) -> None:
    code = """
import json, sys
from fractals import FAMILIES, draw_genome
json.dump({f: [draw_genome(0, i, f).to_json() for i in (5, 3)] for f in FAMILIES}, sys.stdout)
"""
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert json.loads(told) == {
        family: [drawn[family][index].to_json() for index in (5, 3)] for family in FAMILIES
    }


def test_a_genome_says_where_it_came_from(drawn: dict[str, list[Genome]]) -> None:
    for family in FAMILIES:
        assert len(drawn[family]) == N_INDICES
        for index, genome in enumerate(drawn[family]):
            assert (genome.family, genome.seed, genome.index) == (family, 0, index)
            assert genome.attempt >= 0


def contents(genome: Genome) -> Genome:
    """The genome without its origin, so that only what is seen is compared."""
    return replace(genome, family="mixed", seed=0, index=0, attempt=0)


def test_other_seeds_indices_and_families_give_other_images() -> None:
    arguments = list(product((0, 1, 2), range(4), FAMILIES))
    assert len({contents(draw_genome(*each)) for each in arguments}) == len(arguments) == 48


def test_seed_and_index_are_not_added() -> None:
    """Seed 1 index 0 is not seed 0 index 1, nor are attempts the next index's."""
    assert contents(draw_genome(1, 0)) != contents(draw_genome(0, 1))
    first, second = draft(0, 0, "escape", 1), draft(0, 1, "escape", 0)
    assert first is not None
    assert second is not None
    assert contents(first.genome) != contents(second.genome)


# --- families ------------------------------------------------------------------------------------


def test_ifs_images_hold_affine_maps_alone(drawn: dict[str, list[Genome]]) -> None:
    systems = systems_of(drawn["ifs"])
    assert len(systems) == len(fractals_of(drawn["ifs"])) >= N_INDICES
    for system in systems:
        assert system.final is None
        assert all(not each.variations and each.post is None for each in system.maps)
    assert {len(system.maps) for system in systems} == set(range(2, 9))


def test_flame_images_hold_chaos_games_with_variations(
    drawn: dict[str, list[Genome]],
) -> None:
    systems = systems_of(drawn["flame"])
    assert len(systems) == len(fractals_of(drawn["flame"])) >= N_INDICES
    names = set()
    for system in systems:
        maps = [*system.maps, *([system.final] if system.final else [])]
        own = {term.name for each in maps for term in each.variations}
        assert own
        names |= own
    assert len(names) >= 24
    assert any(system.final for system in systems)
    assert any(each.post for system in systems for each in system.maps)
    assert any(system.symmetry > 1 for system in systems)
    assert any(system.symmetry < 0 for system in systems)


def test_escape_images_hold_no_chaos_game(drawn: dict[str, list[Genome]]) -> None:
    layers = fractals_of(drawn["escape"])
    assert len(layers) >= N_INDICES
    assert all(isinstance(each, EscapeLayer) for each in layers)
    formulas = {each.formula for each in layers if isinstance(each, EscapeLayer)}
    assert {"power", "ship", "newton"} <= formulas


def test_mixed_images_hold_every_family_and_one_to_several_layers(
    drawn: dict[str, list[Genome]],
) -> None:
    layers = fractals_of(drawn["mixed"])
    systems = systems_of(drawn["mixed"])
    assert any(isinstance(each, EscapeLayer) for each in layers)
    assert any(any(each.variations for each in system.maps) for system in systems)
    assert any(not any(each.variations for each in system.maps) for system in systems)
    assert {1, 2} <= {len(genome.layers) for genome in drawn["mixed"]}


# --- affine systems ------------------------------------------------------------------------------


@given(st.integers(0, 10**9), st.integers(2, 8))
def test_singular_values_obey_the_constraint_of_anderson_and_farrell(seed: int, n: int) -> None:
    values = singular_values(Draws(seed), n)
    assert len(values) == n
    for s1, s2 in values:
        assert -1e-12 <= s2 <= s1 + 1e-12
        assert s1 <= 1 + 1e-12
    total = sum(s1 + 2 * s2 for s1, s2 in values)
    assert (5 + n) / 2 - 1e-9 <= total <= (6 + n) / 2 + 1e-9


def rejected_singular_values(rng: np.random.Generator, n: int) -> list[tuple[float, float]]:
    """One number after the other, uniform on [0, 1], again until the rest can still make alpha.

    What the rest can make: a map adds s1 + 2 s2, from 0 to 3; the last must meet alpha exactly.
    """
    rest = rng.uniform((5 + n) / 2, (6 + n) / 2)
    values = []
    for later in range(n - 1, 0, -1):
        s1 = s2 = -1.0
        while not (rest - 3 * s1 <= 3 * later and s1 >= 0 and s1 <= rest):
            s1 = rng.random()
        while not (0 <= s2 <= s1 and 0 <= rest - s1 - 2 * s2 <= 3 * later):
            s2 = rng.random()
        values.append((s1, s2))
        rest -= s1 + 2 * s2
    s1 = s2 = -1.0
    while not 0 <= s2 <= s1 <= 1:
        s2 = rng.random()
        s1 = rest - 2 * s2
    return [*values, (s1, s2)]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_singular_values_are_spread_as_by_rejection(n: int) -> None:
    """Kolmogorov-Smirnov on each number's marginal and on the two ends of the last pair.

    The streams are fixed, so the outcome is; 1e-4 over all comparisons of the test.
    """
    draws, rng = Draws(n), np.random.default_rng(n)
    ours = np.array([singular_values(draws, n) for _ in range(3000)]).reshape(3000, -1)
    theirs = np.array([rejected_singular_values(rng, n) for _ in range(3000)]).reshape(3000, -1)
    assert ours.shape == theirs.shape == (3000, 2 * n)
    for one, other in zip(ours.T, theirs.T, strict=True):
        assert stats.ks_2samp(one, other).pvalue > 1e-4 / (2 * n)


@given(st.integers(0, 10**9))
def test_drawn_affine_maps_have_those_singular_values_and_weights_of_their_area(seed: int) -> None:
    maps = TEMPLATES["ifs"](Draws(seed)).maps
    total = 0.0
    for each in maps:
        a, b, x, c, d, y = each.affine
        s1, s2 = np.linalg.svd([[a, b], [c, d]], compute_uv=False)
        assert s1 <= 1 + 2e-5  # The matrix is rounded at the fifth decimal.
        assert max(abs(x), abs(y)) <= 1
        assert each.weight == pytest.approx(max(s1 * s2, 0.02), abs=4e-5)
        total += s1 + 2 * s2
    n = len(maps)
    assert 2 <= n <= 8
    assert (5 + n) / 2 - 4e-5 * n <= total <= (6 + n) / 2 + 4e-5 * n


@pytest.mark.parametrize("template", TEMPLATES)
def test_drawn_numbers_have_five_decimals_at_most(template: str) -> None:
    """A last bit that another machine's cosine sees otherwise must not reach a genome."""
    for seed in range(30):
        layer = TEMPLATES[template](Draws(seed))
        for number in numbers_in(layer.maps):
            assert number == round(number, 5)


def numbers_in(value: object) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from numbers_in(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from numbers_in(getattr(value, field.name))


# --- framing and exposure ------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_camera_sees_between_35_and_92_percent_of_the_points(template: str) -> None:
    framed = 0
    for seed in range(25):
        draws = Draws(seed, 8)
        program = compile_layer(TEMPLATES[template](draws))
        camera = fit_camera(program, False, draws, (seed, 0))
        if camera is None:
            continue
        framed += 1
        x, y = sample_points(program, 4, seed, 1)
        reach = np.maximum(np.abs(x - camera.centre[0]), np.abs(y - camera.centre[1]))
        # Placed by 2,048 other points: three standard deviations of a share are .033.
        assert 0.31 <= np.mean(reach < camera.width / 2) <= 0.96
    assert framed >= 15


@pytest.mark.parametrize(
    "affine",
    [(0.0, 0.0, 0.3, 0.0, 0.0, 0.2), (3.0, 0.0, 0.1, 0.0, 3.0, 0.2)],
    ids=["a point", "no bounds"],
)
def test_a_point_and_an_unbounded_system_cannot_be_framed(affine: tuple[float, ...]) -> None:
    layer = replace(
        TEMPLATES["ifs"](Draws(0)), maps=(Map(affine=affine), Map(affine=affine)), symmetry=1
    )
    assert fit_camera(compile_layer(layer), False, Draws(0), (0,)) is None


def test_two_to_fifteen_percent_of_a_window_are_at_full_light() -> None:
    seen = 0
    for index in range(20):
        trial = draft(4, index, "flame", 0)
        if trial is None:
            continue
        for number, game in trial.games.items():
            fractal = trial.genome.layers[number].fractal
            assert isinstance(fractal, ChaosLayer)
            density = game.points * PREVIEW_SIZE**2 / game.played
            # The exposure has four digits; pixels of equal counts may lie on the border.
            share = np.mean(density > fractal.tone.exposure * 1.001)
            assert share <= 0.15
            assert np.mean(density >= fractal.tone.exposure * 0.999) >= 0.02
            seen += 1
    assert seen >= 15


@cache
def any_genome() -> Genome:
    return draw_genome(0, 0, "escape")


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1), st.floats(0, 0.6))
def test_a_stretch_loses_at_most_two_percent_at_each_end(
    seed: int, contrast: float, lift: float
) -> None:
    values = np.random.default_rng(seed).beta(0.7, 1.3, (9, 14, 3)) * contrast * 0.4 + lift
    composited = values.astype(np.float32)
    genome = with_levels(any_genome(), composited)
    assert 0 <= genome.black < genome.white <= 1
    # A quantile is one of the values, so one more may lie beyond; the bounds have five decimals.
    allowed = 0.02 + 1 / composited.size
    assert np.mean(composited < genome.black - 1e-5) <= allowed
    assert np.mean(composited > genome.white + 1e-5) <= allowed


# --- keeping and rejecting -----------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kept_preview_meets_the_bars(drawn: dict[str, list[Genome]], family: str) -> None:
    for genome in drawn[family][::4]:
        image = preview(genome, 0)
        measured = measure(image)
        for bar in dataclasses.fields(Thresholds):
            if bar.name in measured:
                assert measured[bar.name] >= getattr(THRESHOLDS, bar.name), (genome.index, bar.name)
        assert measured["edge_density"] <= THRESHOLDS.most_edges
        assert coherence(image) >= THRESHOLDS.coherence
        assert reliability(image, preview(genome, 1)) >= THRESHOLDS.reliability
        assert missed_thresholds(genome, image) == []


def judged(seed: int, index: int, family: str, attempt: int) -> tuple[Genome, Image] | None:
    """A draft as it is judged: with_levels, its preview composited from the games it was exposed by."""
    trial = draft(seed, index, family, attempt)
    if trial is None:
        return None
    composited = composite(
        trial.genome, PREVIEW_SIZE, PREVIEW_SIZE, sampling.PREVIEW_SAMPLES, games=trial.games
    )
    genome = with_levels(trial.genome, composited)
    return genome, apply_levels(genome, composited)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_draft_without_faults_is_kept_and_all_before_it_name_theirs(
    drawn: dict[str, list[Genome]], family: str
) -> None:
    rejected = 0
    for genome in drawn[family][:8]:
        for attempt in range(genome.attempt):
            trial = judged(0, genome.index, family, attempt)
            if trial is not None:
                missed = missed_thresholds(*trial)
                assert missed
                assert set(missed) <= {bar.name for bar in dataclasses.fields(Thresholds)}
                rejected += 1
        kept = judged(0, genome.index, family, genome.attempt)
        assert kept is not None
        assert kept[0] == genome
    assert rejected > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_judged_is_what_the_genome_alone_renders(family: str) -> None:
    """The preview reuses the games of the exposure; a genome read from JSON plays them anew."""
    trials = [judged(1, index, family, 0) for index in range(6)]
    images = [trial for trial in trials if trial is not None]
    assert len(images) >= 3
    for genome, image in images:
        np.testing.assert_array_equal(preview(genome, 0), image)


@pytest.mark.parametrize("family", FAMILIES)
def test_between_an_eighth_and_three_quarters_of_drafts_are_kept(
    drawn: dict[str, list[Genome]], family: str
) -> None:
    """Above, the bars judge nothing; below, drawing costs more than rendering."""
    n_drafts = sum(genome.attempt + 1 for genome in drawn[family])
    assert 1 / 8 < N_INDICES / n_drafts < 3 / 4


# Each function below changes a kept preview so that one bar is missed and all others met.


def blurred(image: NDArray[np.floating] | Image, times: int) -> NDArray[np.float64]:
    values = image.astype(np.float64)
    for _ in range(times):
        for axis in (0, 1):
            padded = np.pad(values, [(1, 1) if i == axis else (0, 0) for i in range(3)], "edge")
            n = values.shape[axis]
            parts = [np.take(padded, range(i, i + n), axis) for i in range(3)]
            values = (parts[0] + 2 * parts[1] + parts[2]) / 4
    return values


def as_bytes(values: NDArray[np.float64]) -> Image:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def with_a_black_bar(image: Image) -> Image:
    out = image.copy()
    out[-9:] = 0
    return out


def in_waves(image: Image, period: float, height: float) -> Image:
    """Triangle waves, aslant, of a period in pixels and a height in levels; hues of the image."""
    place = np.add.outer(np.arange(64), 2 * np.arange(64)) / np.sqrt(5)
    wave = np.abs(place / period % 1 - 0.5)[..., None] * 2 * height
    tint = blurred(image, 8)
    tint -= (tint @ np.array([0.299, 0.587, 0.114]))[..., None]
    return as_bytes(127.5 - height / 2 + wave + tint)


def in_gentle_waves(image: Image) -> Image:
    """Slopes of 5 levels a pixel, too little for an edge, but not at 36 pixels instead of 64."""
    return in_waves(image, 64, 160)


def in_steep_waves(image: Image) -> Image:
    """Slopes everywhere."""
    return in_waves(image, 10, 220)


def in_flat_tiles(image: Image) -> Image:
    """Edges between tiles of 8x8 pixels alone, none within."""
    tiles = image.reshape(8, 8, 8, 8, 3).astype(np.float64).mean((1, 3), keepdims=True)
    spread = (tiles - tiles.mean()) * 1.6 + tiles.mean()
    return as_bytes(np.broadcast_to(spread, (8, 8, 8, 8, 3)).reshape(64, 64, 3))


def ruled(image: Image) -> Image:
    """Broad soft forms, most of them under stripes of 3 pixels, which are gone at 32 pixels."""
    stripes = np.array([-20.0, 0.0, 20.0])[np.arange(64) % 3][:, None, None]
    return as_bytes(blurred(image, 60) + stripes * (np.arange(64) < 45)[None, :, None])


def without_broad_light(image: Image) -> Image:
    """All regions alike bright: each keeps only how it differs from its surroundings."""
    luma = (image @ np.array([0.299, 0.587, 0.114]))[..., None]
    broad = blurred(luma, 3)
    return as_bytes(image - luma + (luma - broad) * 1.3 + broad.mean())


def in_few_colours(image: Image) -> Image:
    """Nine colours, by luma."""
    luma = image @ np.array([0.299, 0.587, 0.114])
    ranks = luma.ravel().argsort().argsort().reshape(luma.shape) * 9 // luma.size
    level = ranks[..., None] * 28.0 + 16
    tint = np.stack([ranks % 3 * 60.0 - 60, ranks % 2 * 40.0 - 20, 60 - ranks % 3 * 60.0], -1)
    return as_bytes(level + tint)


def greyed(image: Image) -> Image:
    luma = (image @ np.array([0.299, 0.587, 0.114]))[..., None]
    keep = 0.97 * THRESHOLDS.colourfulness / measure(image)["colourfulness"]
    return as_bytes(luma + keep * (image - luma))


def crumbled(image: Image) -> Image:
    """The pixels of every 4x4 tile shuffled: the same colours and forms, no contours."""
    rng = np.random.default_rng(0)
    tiles = image.reshape(16, 4, 16, 4, 3).swapaxes(1, 2).reshape(256, 16, 3)
    mixed = np.stack([tile[rng.permutation(16)] for tile in tiles])
    return mixed.reshape(16, 16, 4, 4, 3).swapaxes(1, 2).reshape(64, 64, 3)


def of_other_dots(image: Image) -> Image:
    """Turned around, an image shares nothing with the second game but its statistics."""
    return np.ascontiguousarray(image[::-1, ::-1])


MISSES: dict[str, Callable[[Image], Image]] = {
    "coverage": with_a_black_bar,
    "edge_density": in_gentle_waves,
    "textured_blocks": in_flat_tiles,
    "edges_at_32": ruled,
    "luma_std_at_32": without_broad_light,
    "rgb_entropy": in_few_colours,
    "colourfulness": greyed,
    "coherence": crumbled,
    "reliability": of_other_dots,
    "most_edges": in_steep_waves,
}


def test_there_is_a_way_to_miss_every_bar() -> None:
    assert set(MISSES) == {bar.name for bar in dataclasses.fields(Thresholds)}


@pytest.mark.parametrize("bar", MISSES)
def test_each_bar_alone_can_reject(drawn: dict[str, list[Genome]], bar: str) -> None:
    """Of many kept images at least one, so changed, misses this bar and no other."""
    genomes = [genome for family in FAMILIES for genome in drawn[family]]
    missed = [missed_thresholds(genome, MISSES[bar](preview(genome, 0))) for genome in genomes]
    assert [bar] in missed


@pytest.mark.parametrize("bar", [each.name for each in dataclasses.fields(Thresholds)])
def test_a_bar_out_of_reach_is_named(
    drawn: dict[str, list[Genome]], bar: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    genome = drawn["mixed"][0]
    beyond = -1.0 if bar == "most_edges" else 1e3
    monkeypatch.setattr(sampling, "THRESHOLDS", replace(THRESHOLDS, **{bar: beyond}))
    assert missed_thresholds(genome, preview(genome, 0)) == [bar]


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "index", "family", "message"),
    [
        (-1, 0, "mixed", "seed -1: must not be negative; count from 0"),
        (0, -2, "mixed", "index -2: must not be negative; count from 0"),
        (0, 0, "plasma", "'plasma': is no family; use one of mixed, flame, ifs, escape"),
    ],
)
def test_a_refusal_names_value_rule_and_remedy(
    seed: int, index: int, family: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        draw_genome(seed, index, family)


def test_a_seed_that_gives_nothing_but_dull_drafts_ends_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "THRESHOLDS", replace(THRESHOLDS, coverage=1.1))
    monkeypatch.setattr(sampling, "MAX_DRAFTS", 3)
    with pytest.raises(
        RuntimeError, match=r"seed 7, index 9, family ifs: 3 drafts .*; use another"
    ):
        draw_genome(7, 9, "ifs")


def test_a_seed_may_be_as_large_as_it_likes() -> None:
    genome = draw_genome(2**80, 2**70, "escape")
    assert genome.seed == 2**80
    assert genome.index == 2**70
