"""Drawing of genomes: purity, families, cameras, tone, and acceptance thresholds."""

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
    """The first genomes of every family with seed 0."""
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
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert json.loads(output) == {
        family: [drawn[family][index].to_json() for index in (5, 3)] for family in FAMILIES
    }


def test_a_genome_records_its_origin(drawn: dict[str, list[Genome]]) -> None:
    for family in FAMILIES:
        assert len(drawn[family]) == N_INDICES
        for index, genome in enumerate(drawn[family]):
            assert (genome.family, genome.seed, genome.index) == (family, 0, index)
            assert genome.attempt >= 0


def contents(genome: Genome) -> Genome:
    """Return the genome without its origin, so that only its visible part is compared."""
    return replace(genome, family="mixed", seed=0, index=0, attempt=0)


def test_seeds_indices_and_families_yield_different_images() -> None:
    arguments = list(product((0, 1, 2), range(4), FAMILIES))
    assert len({contents(draw_genome(*each)) for each in arguments}) == len(arguments) == 48


def test_seed_index_and_attempt_are_not_added_up() -> None:
    """Seed 1, index 0 differs from seed 0, index 1, and an attempt from the next index."""
    assert contents(draw_genome(1, 0)) != contents(draw_genome(0, 1))
    first, second = draft(0, 0, "escape", 1), draft(0, 1, "escape", 0)
    assert first is not None
    assert second is not None
    assert contents(first.genome) != contents(second.genome)


# --- families ------------------------------------------------------------------------------------


def test_ifs_images_have_affine_maps_only(drawn: dict[str, list[Genome]]) -> None:
    systems = systems_of(drawn["ifs"])
    assert len(systems) == len(fractals_of(drawn["ifs"])) >= N_INDICES
    for system in systems:
        assert system.final is None
        assert all(not each.variations and each.post is None for each in system.maps)
    assert {len(system.maps) for system in systems} == set(range(2, 9))


def test_flame_images_have_maps_with_variations(
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


def test_escape_images_have_no_chaos_game(drawn: dict[str, list[Genome]]) -> None:
    layers = fractals_of(drawn["escape"])
    assert len(layers) >= N_INDICES
    assert all(isinstance(each, EscapeLayer) for each in layers)
    formulas = {each.formula for each in layers if isinstance(each, EscapeLayer)}
    assert {"power", "ship", "newton"} <= formulas


def test_mixed_images_cover_every_family_and_have_one_or_more_layers(
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


def singular_values_by_rejection(rng: np.random.Generator, n: int) -> list[tuple[float, float]]:
    """Draw uniform numbers one by one, each again until the rest can still sum to alpha.

    A map contributes s1 + 2 s2, from 0 to 3; the last map must match alpha exactly.
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
def test_singular_values_match_rejection_sampling(n: int) -> None:
    """Kolmogorov-Smirnov test of each marginal and of the two values of the last pair.

    The streams are fixed, and so is the result; the level over all comparisons is 1e-4.
    """
    draws, rng = Draws(n), np.random.default_rng(n)
    ours = np.array([singular_values(draws, n) for _ in range(3000)]).reshape(3000, -1)
    theirs = np.array([singular_values_by_rejection(rng, n) for _ in range(3000)]).reshape(3000, -1)
    assert ours.shape == theirs.shape == (3000, 2 * n)
    for one, other in zip(ours.T, theirs.T, strict=True):
        assert stats.ks_2samp(one, other).pvalue > 1e-4 / (2 * n)


@given(st.integers(0, 10**9))
def test_affine_maps_have_these_singular_values_and_their_area_as_weight(seed: int) -> None:
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
def test_drawn_numbers_have_at_most_five_decimals(template: str) -> None:
    """The last bit of a machine's cosine must not reach a genome."""
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


# --- camera and tone ------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_window_contains_35_to_92_percent_of_the_points(template: str) -> None:
    n_cameras = 0
    for seed in range(25):
        draws = Draws(seed, 8)
        program = compile_layer(TEMPLATES[template](draws))
        camera = fit_camera(program, False, draws, (seed, 0))
        if camera is None:
            continue
        n_cameras += 1
        x, y = sample_points(program, 4, seed, 1)
        reach = np.maximum(np.abs(x - camera.centre[0]), np.abs(y - camera.centre[1]))
        # The camera was fitted to 2,048 other points: three standard deviations are .033.
        assert 0.31 <= np.mean(reach < camera.width / 2) <= 0.96
    assert n_cameras >= 15


@pytest.mark.parametrize(
    "affine",
    [(0.0, 0.0, 0.3, 0.0, 0.0, 0.2), (3.0, 0.0, 0.1, 0.0, 3.0, 0.2)],
    ids=["a point", "no bounds"],
)
def test_a_point_and_an_unbounded_system_get_no_camera(affine: tuple[float, ...]) -> None:
    layer = replace(
        TEMPLATES["ifs"](Draws(0)), maps=(Map(affine=affine), Map(affine=affine)), symmetry=1
    )
    assert fit_camera(compile_layer(layer), False, Draws(0), (0,)) is None


def test_two_to_fifteen_percent_of_a_window_have_full_brightness() -> None:
    seen = 0
    for index in range(20):
        trial = draft(4, index, "flame", 0)
        if trial is None:
            continue
        for number, histogram in trial.histograms.items():
            fractal = trial.genome.layers[number].fractal
            assert isinstance(fractal, ChaosLayer)
            density = histogram.points * PREVIEW_SIZE**2 / histogram.played
            # The exposure has four digits, and several pixels may have exactly this density.
            fraction = np.mean(density > fractal.tone.exposure * 1.001)
            assert fraction <= 0.15
            assert np.mean(density >= fractal.tone.exposure * 0.999) >= 0.02
            seen += 1
    assert seen >= 15


@cache
def any_genome() -> Genome:
    return draw_genome(0, 0, "escape")


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1), st.floats(0, 0.6))
def test_levels_clip_at_most_two_percent_at_each_end(
    seed: int, contrast: float, lift: float
) -> None:
    values = np.random.default_rng(seed).beta(0.7, 1.3, (9, 14, 3)) * contrast * 0.4 + lift
    composited = values.astype(np.float32)
    genome = with_levels(any_genome(), composited)
    assert 0 <= genome.black < genome.white <= 1
    # A quantile is one of the values, so one more may be outside; the bounds have five decimals.
    allowed = 0.02 + 1 / composited.size
    assert np.mean(composited < genome.black - 1e-5) <= allowed
    assert np.mean(composited > genome.white + 1e-5) <= allowed


# --- acceptance -----------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_accepted_preview_reaches_the_thresholds(
    drawn: dict[str, list[Genome]], family: str
) -> None:
    for genome in drawn[family][::4]:
        image = preview(genome, 0)
        measured = measure(image)
        for threshold in dataclasses.fields(Thresholds):
            if threshold.name in measured:
                assert measured[threshold.name] >= getattr(THRESHOLDS, threshold.name), (
                    genome.index,
                    threshold.name,
                )
        assert measured["edge_density"] <= THRESHOLDS.most_edges
        assert coherence(image) >= THRESHOLDS.coherence
        assert reliability(image, preview(genome, 1)) >= THRESHOLDS.reliability
        assert missed_thresholds(genome, image) == []


def evaluated_draft(
    seed: int, index: int, family: str, attempt: int
) -> tuple[Genome, Image] | None:
    """Return a draft with levels, and the preview that was composited from its histograms."""
    trial = draft(seed, index, family, attempt)
    if trial is None:
        return None
    composited = composite(
        trial.genome,
        PREVIEW_SIZE,
        PREVIEW_SIZE,
        sampling.PREVIEW_SAMPLES,
        histograms=trial.histograms,
    )
    genome = with_levels(trial.genome, composited)
    return genome, apply_levels(genome, composited)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_draft_that_reaches_all_thresholds_is_accepted(
    drawn: dict[str, list[Genome]], family: str
) -> None:
    rejected = 0
    for genome in drawn[family][:8]:
        for attempt in range(genome.attempt):
            trial = evaluated_draft(0, genome.index, family, attempt)
            if trial is not None:
                missed = missed_thresholds(*trial)
                assert missed
                assert set(missed) <= {
                    threshold.name for threshold in dataclasses.fields(Thresholds)
                }
                rejected += 1
        accepted = evaluated_draft(0, genome.index, family, genome.attempt)
        assert accepted is not None
        assert accepted[0] == genome
    assert rejected > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_evaluated_preview_equals_that_of_the_genome_alone(family: str) -> None:
    """The preview reuses histograms; a genome that is read from JSON plays its games again."""
    trials = [evaluated_draft(1, index, family, 0) for index in range(6)]
    images = [trial for trial in trials if trial is not None]
    assert len(images) >= 3
    for genome, image in images:
        np.testing.assert_array_equal(preview(genome, 0), image)


@pytest.mark.parametrize("family", FAMILIES)
def test_between_an_eighth_and_three_quarters_of_drafts_are_accepted(
    drawn: dict[str, list[Genome]], family: str
) -> None:
    """Above, the thresholds are too low; below, drawing costs more than rendering."""
    n_drafts = sum(genome.attempt + 1 for genome in drawn[family])
    assert 1 / 8 < N_INDICES / n_drafts < 3 / 4


# Each function below modifies an accepted preview so that it misses exactly one threshold.


def blurred(image: NDArray[np.floating] | Image, times: int) -> NDArray[np.float64]:
    values = image.astype(np.float64)
    for _ in range(times):
        for axis in (0, 1):
            padded = np.pad(values, [(1, 1) if i == axis else (0, 0) for i in range(3)], "edge")
            n = values.shape[axis]
            parts = [np.take(padded, range(i, i + n), axis) for i in range(3)]
            values = (parts[0] + 2 * parts[1] + parts[2]) / 4
    return values


def to_uint8(values: NDArray[np.float64]) -> Image:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def with_a_black_bar(image: Image) -> Image:
    out = image.copy()
    out[-9:] = 0
    return out


def with_waves(image: Image, period: float, height: float) -> Image:
    """Return diagonal triangle waves with the image's hues; period in pixels, height in levels."""
    position = np.add.outer(np.arange(64), 2 * np.arange(64)) / np.sqrt(5)
    wave = np.abs(position / period % 1 - 0.5)[..., None] * 2 * height
    tint = blurred(image, 8)
    tint -= (tint @ np.array([0.299, 0.587, 0.114]))[..., None]
    return to_uint8(127.5 - height / 2 + wave + tint)


def with_gentle_waves(image: Image) -> Image:
    """Slopes of 5 levels per pixel: not an edge at 64 pixels, but at 36."""
    return with_waves(image, 64, 160)


def with_steep_waves(image: Image) -> Image:
    """Slopes everywhere."""
    return with_waves(image, 10, 220)


def with_flat_tiles(image: Image) -> Image:
    """Edges only between tiles of 8x8 pixels."""
    tiles = image.reshape(8, 8, 8, 8, 3).astype(np.float64).mean((1, 3), keepdims=True)
    spread = (tiles - tiles.mean()) * 1.6 + tiles.mean()
    return to_uint8(np.broadcast_to(spread, (8, 8, 8, 8, 3)).reshape(64, 64, 3))


def with_fine_stripes(image: Image) -> Image:
    """Broad soft shapes under stripes of 3 pixels, which vanish at 32 pixels."""
    stripes = np.array([-20.0, 0.0, 20.0])[np.arange(64) % 3][:, None, None]
    return to_uint8(blurred(image, 60) + stripes * (np.arange(64) < 45)[None, :, None])


def without_broad_contrast(image: Image) -> Image:
    """All regions have the same brightness; only local differences remain."""
    luma = (image @ np.array([0.299, 0.587, 0.114]))[..., None]
    broad = blurred(luma, 3)
    return to_uint8(image - luma + (luma - broad) * 1.3 + broad.mean())


def with_few_colours(image: Image) -> Image:
    """Nine colours, by luma."""
    luma = image @ np.array([0.299, 0.587, 0.114])
    ranks = luma.ravel().argsort().argsort().reshape(luma.shape) * 9 // luma.size
    level = ranks[..., None] * 28.0 + 16
    tint = np.stack([ranks % 3 * 60.0 - 60, ranks % 2 * 40.0 - 20, 60 - ranks % 3 * 60.0], -1)
    return to_uint8(level + tint)


def desaturated(image: Image) -> Image:
    luma = (image @ np.array([0.299, 0.587, 0.114]))[..., None]
    keep = 0.97 * THRESHOLDS.colourfulness / measure(image)["colourfulness"]
    return to_uint8(luma + keep * (image - luma))


def with_shuffled_tiles(image: Image) -> Image:
    """The pixels of every 4x4 tile are shuffled: the same colours and shapes, no contours."""
    rng = np.random.default_rng(0)
    tiles = image.reshape(16, 4, 16, 4, 3).swapaxes(1, 2).reshape(256, 16, 3)
    mixed = np.stack([tile[rng.permutation(16)] for tile in tiles])
    return mixed.reshape(16, 16, 4, 4, 3).swapaxes(1, 2).reshape(64, 64, 3)


def rotated_by_half_a_turn(image: Image) -> Image:
    """A rotated image has the same statistics as the second game, but no common detail."""
    return np.ascontiguousarray(image[::-1, ::-1])


MISSES: dict[str, Callable[[Image], Image]] = {
    "coverage": with_a_black_bar,
    "edge_density": with_gentle_waves,
    "textured_blocks": with_flat_tiles,
    "edges_at_32": with_fine_stripes,
    "luma_std_at_32": without_broad_contrast,
    "rgb_entropy": with_few_colours,
    "colourfulness": desaturated,
    "coherence": with_shuffled_tiles,
    "reliability": rotated_by_half_a_turn,
    "most_edges": with_steep_waves,
}


def test_every_threshold_has_an_image_that_misses_it() -> None:
    assert set(MISSES) == {threshold.name for threshold in dataclasses.fields(Thresholds)}


@pytest.mark.parametrize("threshold", MISSES)
def test_each_threshold_can_reject_on_its_own(
    drawn: dict[str, list[Genome]], threshold: str
) -> None:
    """At least one modified image misses this threshold and no other."""
    genomes = [genome for family in FAMILIES for genome in drawn[family]]
    missed = [
        missed_thresholds(genome, MISSES[threshold](preview(genome, 0))) for genome in genomes
    ]
    assert [threshold] in missed


@pytest.mark.parametrize("threshold", [each.name for each in dataclasses.fields(Thresholds)])
def test_a_missed_threshold_is_named(
    drawn: dict[str, list[Genome]], threshold: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    genome = drawn["mixed"][0]
    beyond = -1.0 if threshold == "most_edges" else 1e3
    monkeypatch.setattr(sampling, "THRESHOLDS", replace(THRESHOLDS, **{threshold: beyond}))
    assert missed_thresholds(genome, preview(genome, 0)) == [threshold]


# --- invalid arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "index", "family", "message"),
    [
        (-1, 0, "mixed", "seed is -1; use 0 or more"),
        (0, -2, "mixed", "index is -2; use 0 or more"),
        (0, 0, "plasma", "family is 'plasma'; use one of mixed, flame, ifs, escape"),
    ],
)
def test_errors_name_value_rule_and_remedy(
    seed: int, index: int, family: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        draw_genome(seed, index, family)


def test_the_error_after_too_many_rejected_drafts_has_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "THRESHOLDS", replace(THRESHOLDS, coverage=1.1))
    monkeypatch.setattr(sampling, "MAX_DRAFTS", 3)
    with pytest.raises(
        RuntimeError, match=r"seed 7, index 9, family ifs: 3 drafts .*; use another"
    ):
        draw_genome(7, 9, "ifs")


def test_seed_and_index_may_exceed_64_bits() -> None:
    genome = draw_genome(2**80, 2**70, "escape")
    assert genome.seed == 2**80
    assert genome.index == 2**70
