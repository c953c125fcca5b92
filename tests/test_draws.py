"""The draws of a sample: reference implementation, probabilities, independence, golden values."""

import dataclasses
import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

import reference
from pixmix.draws import (
    DRAWS_VERSION,
    NO_OPERATION,
    ROUND,
    SAMPLE,
    Plan,
    draw_corner,
    draw_plan,
    draw_resized_crop,
)
from pixmix.mixing import MIXINGS
from pixmix.operations import CODES, OPERATIONS, draw_argument
from pixmix.settings import MIN_BETA, PixMixSettings

# All seeds are fixed, so a test always passes or always fails. P-values are compared with this: the
# probability, over random seeds, that correct draws fail a comparison. A test with m comparisons
# fails with at most m times that probability.
IMPROBABLE = 1e-5

GOLDEN = Path(__file__).parent / "golden" / "draws.json"
N = 40_000
SIZE = (20, 130)
SOURCE_SIZE = (27, 141)
SHARED = ("flip", "crop_top", "crop_left")
"""The fields that all views of a sample share."""
DEFAULT = PixMixSettings()


def plan_of(indices: NDArray[np.int64], **changes: object) -> Plan:
    arguments: dict[str, Any] = {
        "seed": 11, "epoch": 3, "settings": DEFAULT, "size": SIZE, "source_size": SOURCE_SIZE,
        "flip": True, "views": 1, "n_mixing_images": 7,
    }  # fmt: skip
    return draw_plan(indices, **(arguments | changes))


@functools.cache
def many(n_mixing_images: int = 7, views: int = 1, **changes: object) -> Plan:
    """A plan of N samples with the default settings and changes; do not modify it."""
    settings = dataclasses.replace(DEFAULT, **changes)  # type: ignore[arg-type]
    return plan_of(np.arange(N), settings=settings, n_mixing_images=n_mixing_images, views=views)


def same(one: NDArray[np.void], other: NDArray[np.void], *but: str) -> bool:
    """Whether all fields except the named ones are equal; padding bytes are ignored."""
    names = [name for name in one.dtype.names or () if name not in but]
    return all(np.array_equal(one[name], other[name]) for name in names)


def assert_share(events: NDArray[np.bool_], probability: float) -> None:
    """Compare the share of events with a probability, by an exact test."""
    n = int(events.size)
    assert n > 1000
    assert stats.binomtest(int(events.sum()), n, probability).pvalue > IMPROBABLE


def assert_uniform(numbers: NDArray[np.integer], n: int) -> None:
    """Compare the frequency of each of 0 .. n-1 with 1/n."""
    assert set(np.unique(numbers)) <= set(range(n))
    counts = np.bincount(numbers, minlength=n)
    assert counts.sum() > 50 * n
    assert n == 1 or stats.chisquare(counts).pvalue > IMPROBABLE


# --- Reference implementation --------------------------------------------------------------------


def codes_of(*, all_ops: bool = False, geometric: bool = True) -> list[int]:
    """The codes of the operations to draw from."""
    return [
        CODES[row.name]
        for row in OPERATIONS
        if (all_ops or row.standard) and (geometric or not row.geometric)
    ]


words = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 2**32 - 1]))


@given(
    seed=st.integers(-(2**70), 2**70),
    epoch=words,
    index=words,
    k=st.integers(0, 6),
    beta=st.floats(0.1, 100),
    severity=st.floats(0.1, 10),
    all_ops=st.booleans(),
    geometric=st.booleans(),
    mixings=st.lists(st.sampled_from(MIXINGS), min_size=1, max_size=6).map(tuple),
    n_mixing_images=st.one_of(st.just(0), st.integers(1, 20), st.integers(1, 2**31)),
    flip=st.booleans(),
)
@settings(max_examples=200)
def test_a_plan_equals_its_reference_implementation(
    seed: int,
    epoch: int,
    index: int,
    k: int,
    beta: float,
    severity: float,
    all_ops: bool,
    geometric: bool,
    mixings: tuple[str, ...],
    n_mixing_images: int,
    flip: bool,
) -> None:
    options = PixMixSettings(
        k=k, beta=beta, severity=severity, all_ops=all_ops, geometric=geometric, mixings=mixings
    )
    plan = plan_of(
        np.array([index]), seed=seed, epoch=epoch, settings=options, flip=flip, views=2,
        n_mixing_images=n_mixing_images,
    )  # fmt: skip
    assert len(plan.samples) == len(plan.rounds) == 2

    def check_operation(item: np.void, expected: dict[str, Any]) -> None:
        code, level, negative = expected["code"], expected["level"], expected["negative"]
        assert item["operation"] == (code if expected["operates"] else NO_OPERATION)
        assert item["argument"] == draw_argument(code, level, negative, *SIZE)

    for view, (sample, rounds) in enumerate(zip(*plan, strict=True)):
        expected = reference.drawn(
            seed, epoch, index, view, k=k, beta=beta, severity=severity,
            operations=codes_of(all_ops=all_ops, geometric=geometric), n_mixings=len(mixings),
            n_mixing_images=n_mixing_images,
            crop_range=(SOURCE_SIZE[0] - SIZE[0] + 1, SOURCE_SIZE[1] - SIZE[1] + 1),
        )  # fmt: skip
        assert sample["flip"] == (expected["flip"] if flip else 0)
        assert (sample["crop_top"], sample["crop_left"]) == expected["crop"]
        check_operation(sample, expected["start"])
        assert sample["rounds"] == expected["n_rounds"]
        assert sample["mixing_image"] == expected["mixing_image"]
        assert (sample["top_word"], sample["left_word"]) == expected["image_words"]
        for item, its_round in zip(rounds, expected["rounds"], strict=True):
            check_operation(item, its_round)
            assert item["mixing"] == MIXINGS.index(mixings[its_round["mixing"]])
            # Powers are within 3e-7 of their size, in [1, 2]; the exponent is rounded to float32.
            found = [float(item["a"]), float(item["b"])]
            assert np.abs(np.subtract(found, its_round["weights"])).max() < 5e-7


# --- Rounds, operations and mixings --------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 2, 4, 9])
def test_the_number_of_rounds_is_uniform_from_0_to_k(k: int) -> None:
    rounds = many(k=k).samples["rounds"]
    assert_uniform(rounds, k + 1)
    assert_share(rounds == 0, 1 / (k + 1))


def test_a_fifth_of_all_samples_have_no_round() -> None:
    assert_share(many().samples["rounds"] == 0, 1 / 5)


def test_a_tenth_of_all_samples_are_unchanged() -> None:
    samples = many().samples
    unchanged = (samples["rounds"] == 0) & (samples["operation"] == NO_OPERATION)
    assert_share(unchanged, 1 / 10)


def test_61_percent_of_samples_need_a_mixing_image() -> None:
    """1 - (1 + 1/2 + 1/4 + 1/8 + 1/16) / 5: it is not needed if no round draws it."""
    assert_share(many().needs_mixing_image(), 0.6125)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_the_share_of_samples_that_need_a_mixing_image_follows_from_k(k: int) -> None:
    probability = 1 - sum(2.0**-r for r in range(k + 1)) / (k + 1)
    assert_share(many(k=k).needs_mixing_image(), probability)


def test_needs_mixing_image_is_true_if_any_used_round_mixes_it() -> None:
    plan = many()
    needed = [
        any(code == NO_OPERATION for code in operations[:n])
        for operations, n in zip(
            plan.rounds["operation"].tolist(), plan.samples["rounds"].tolist(), strict=True
        )
    ]
    assert np.array_equal(plan.needs_mixing_image(), needed)


def test_half_of_all_starts_and_rounds_apply_an_operation() -> None:
    plan = many()
    assert_share(plan.samples["operation"] == NO_OPERATION, 1 / 2)
    for r in range(4):
        assert_share(plan.rounds["operation"][:, r] == NO_OPERATION, 1 / 2)


def test_without_a_mixing_set_every_round_applies_an_operation() -> None:
    plan = many(n_mixing_images=0)
    assert (plan.rounds["operation"] >= 0).all()
    assert not plan.needs_mixing_image().any()
    assert_share(plan.samples["operation"] == NO_OPERATION, 1 / 2)


@pytest.mark.parametrize("all_ops", [False, True])
def test_operations_are_uniform_at_the_start_and_in_every_round(all_ops: bool) -> None:
    plan, n = many(all_ops=all_ops), len(codes_of(all_ops=all_ops))
    for codes in (plan.samples["operation"], *plan.rounds["operation"].T):
        assert_uniform(codes[codes >= 0], n)


@pytest.mark.parametrize("all_ops", [False, True])
def test_without_geometric_operations_the_others_are_uniform(all_ops: bool) -> None:
    plan = many(all_ops=all_ops, geometric=False)
    kept = codes_of(all_ops=all_ops, geometric=False)
    places = np.full(len(OPERATIONS), -1)
    places[kept] = range(len(kept))
    for codes in (plan.samples["operation"], *plan.rounds["operation"].T):
        assert_uniform(places[codes[codes >= 0]], len(kept))


@pytest.mark.parametrize("names", [MIXINGS, ("multiply",)])
def test_mixings_are_uniform_over_the_names(names: tuple[str, ...]) -> None:
    codes = many(mixings=names).rounds["mixing"]
    for column in codes.T:
        assert Counter(column.tolist()).keys() == {MIXINGS.index(name) for name in names}
        places = np.searchsorted(np.sort([MIXINGS.index(name) for name in names]), column)
        assert_uniform(places, len(names))


def test_a_mixing_named_twice_is_drawn_twice_as_often() -> None:
    codes = many(mixings=("add", "multiply", "add")).rounds["mixing"]
    assert_share(codes == MIXINGS.index("add"), 2 / 3)


def test_the_mixing_image_is_uniform_over_the_set() -> None:
    assert_uniform(many().samples["mixing_image"], 7)
    assert_uniform(many(n_mixing_images=500).samples["mixing_image"], 500)
    assert not many(n_mixing_images=1).samples["mixing_image"].any()
    image = many(n_mixing_images=18_938).samples["mixing_image"]
    assert image.min() >= 0
    assert image.max() < 18_938
    # So many numbers are tested as if they were continuous.
    assert stats.kstest((image + 0.5) / 18_938, "uniform").pvalue > IMPROBABLE


# --- Levels and signs ----------------------------------------------------------------------------


def arguments_of(plan: Plan, name: str) -> NDArray[np.float64]:
    items = plan.rounds[plan.rounds["operation"] == CODES[name]]
    assert len(items) > 2000
    return items["argument"]


@pytest.mark.parametrize("severity", [0.5, 1, 3, 10])
@pytest.mark.parametrize("name", ["shear_x", "shear_y", "color", "contrast", "brightness",
                                  "sharpness"])  # fmt: skip
def test_levels_are_uniform_from_a_tenth_to_the_severity(name: str, severity: float) -> None:
    arguments = arguments_of(many(severity=severity, all_ops=True), name)
    shear = name.startswith("shear")
    levels = np.abs(arguments) / 0.03 if shear else (arguments - 0.1) / 0.18
    assert levels.min() >= 0.1 - 1e-9
    assert levels.max() <= severity + 1e-9
    assert stats.kstest(levels, "uniform", (0.1, severity - 0.1)).pvalue > IMPROBABLE


@pytest.mark.parametrize("severity", [1, 3, 10])
@pytest.mark.parametrize(
    ("name", "whole", "steps"),
    [
        ("posterize", 4, 0.4),
        ("rotate", 0, 3),
        ("solarize", 256, 25.6),
        # A third of the side along which they move; the released code uses a global 32.
        ("translate_x", 0, SIZE[1] / 30),
        ("translate_y", 0, SIZE[0] / 30),
    ],
)
def test_whole_arguments_have_the_distribution_of_uniform_levels(
    name: str, whole: int, steps: float, severity: float
) -> None:
    found = np.abs(whole - np.abs(arguments_of(many(severity=severity, all_ops=True), name)))
    edges = np.arange(int(severity * steps) + 2) / steps
    chances = np.diff(edges.clip(0.1, severity)) / (severity - 0.1)
    counts = np.bincount(found.astype(int), minlength=len(chances))
    assert len(counts) == len(chances)
    # At severity 10 the last argument only occurs at a level of exactly 10.
    possible = chances > 1e-9
    assert not counts[~possible].any()
    if possible.sum() > 1:
        expected = chances[possible] / chances[possible].sum() * counts.sum()
        assert stats.chisquare(counts[possible], expected).pvalue > IMPROBABLE


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_half_of_the_signed_arguments_are_negative(name: str) -> None:
    arguments = arguments_of(many(severity=10, all_ops=True), name)
    assert_share(arguments[arguments != 0] < 0, 1 / 2)


def test_the_minimum_severity_has_a_single_level() -> None:
    plan = many(severity=0.1, all_ops=True)
    assert set(np.abs(arguments_of(plan, "shear_x")).round(12)) == {0.003}
    assert set(arguments_of(plan, "color").round(12)) == {0.118}
    assert set(arguments_of(plan, "autocontrast")) == {0}


# --- Weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.5, 1, 3, 4, 20])
def test_weights_have_beta_distributions_in_both_branches(
    beta: float,
) -> None:
    """Test the coin, four distributions of 80,000 numbers, and independence in both branches."""
    rounds = many(beta=beta).rounds
    a, b = (rounds[name].astype(np.float64).ravel() for name in ("a", "b"))
    # b is 0 for about one V in 2^24, in both branches.
    towards = (a <= 1) & (b >= 0)
    away = (a >= 1) & (b <= 0)
    assert (towards | away).all()
    assert_share(towards, 1 / 2)
    near_one, near_zero = stats.beta(beta, 1), stats.beta(1, beta)
    assert stats.kstest(a[towards], near_one.cdf).pvalue > IMPROBABLE
    assert stats.kstest(b[towards], near_zero.cdf).pvalue > IMPROBABLE
    assert stats.kstest(a[away] - 1, near_zero.cdf).pvalue > IMPROBABLE
    assert stats.kstest(-b[away], near_zero.cdf).pvalue > IMPROBABLE
    for branch in (towards, away):
        assert stats.spearmanr(a[branch], b[branch]).pvalue > IMPROBABLE


@pytest.mark.parametrize("beta", [MIN_BETA, 0.0013])
def test_at_the_minimum_beta_one_image_replaces_the_other(beta: float) -> None:
    """P(0.001 < U^(1/beta) < 0.999) is 0.009 at most."""
    rounds = many(beta=beta).rounds
    a, b = rounds["a"], rounds["b"]
    assert ((a >= 0) & (a <= 2) & (np.abs(b) <= 1)).all()
    # U^(1/beta) ~ 0: the other image, or twice this one minus the other.
    whole = ((a < 0.001) & (b > 0.999)) | ((a > 1.999) & (b < -0.999))
    assert whole.mean() > 0.98


@pytest.mark.parametrize("beta", [1e8, 1e30, 1.7e308])
def test_a_huge_beta_keeps_the_image(beta: float) -> None:
    rounds = many(beta=beta).rounds
    assert np.abs(rounds["a"] - 1).max() < 1e-6
    assert np.abs(rounds["b"]).max() < 1e-6


# --- Flip and crop -------------------------------------------------------------------------------


def test_half_of_the_samples_are_flipped_if_flip_is_set() -> None:
    assert_share(many().samples["flip"] == 1, 1 / 2)
    assert not plan_of(np.arange(1000), flip=False).samples["flip"].any()


def test_crops_are_uniform_over_all_positions() -> None:
    samples = many().samples
    for name, places in (("crop_top", 8), ("crop_left", 12)):
        assert_uniform(samples[name], places)
    both = samples["crop_top"] * 12 + samples["crop_left"]
    assert_uniform(both, 8 * 12)
    as_large = plan_of(np.arange(1000), source_size=SIZE).samples
    assert not as_large["crop_top"].any()
    assert not as_large["crop_left"].any()


@given(
    word=words,
    side=st.integers(1, 2**20),
    more=st.one_of(st.integers(0, 9), st.integers(0, 2**20)),
)
def test_crops_are_inside_the_image(word: int, side: int, more: int) -> None:
    corner = int(draw_corner(np.uint32(word), side + more, side))
    assert corner == word * (more + 1) // 2**32
    assert 0 <= corner <= more


def test_mixing_crops_are_uniform_over_all_positions() -> None:
    samples = many().samples
    # Crops of 20 x 130 in an image of 24 x 132.
    tops = np.array([draw_corner(word, 24, 20) for word in samples["top_word"]])
    lefts = np.array([draw_corner(word, 132, 130) for word in samples["left_word"]])
    assert_uniform(tops * 3 + lefts, 5 * 3)


# --- Independence --------------------------------------------------------------------------------


@given(st.permutations(range(40)), st.integers(0, 40), st.integers(1, 3))
@settings(max_examples=30)
def test_batching_and_order_do_not_change_the_result(
    order: list[int], cut: int, views: int
) -> None:
    numbers = np.arange(40) * 107_374_182
    whole = plan_of(numbers, views=views)
    parts = [plan_of(numbers[part], views=views) for part in (order[:cut], order[cut:])]
    rows = [row * views + view for row in order for view in range(views)]
    for i, array in enumerate(whole):
        assert same(np.concatenate([part[i] for part in parts]), array[rows])


def test_a_plan_is_the_same_when_drawn_again() -> None:
    plans = [plan_of(np.arange(500)) for _ in range(2)]
    assert all(same(one, other) for one, other in zip(*plans, strict=True))


def with_settings(**changes: object) -> Plan:
    settings = dataclasses.replace(DEFAULT, **changes)  # type: ignore[arg-type]
    return plan_of(np.arange(2000), settings=settings)


def test_another_k_does_not_change_other_draws() -> None:
    plan, fewer = plan_of(np.arange(2000)), with_settings(k=2)
    assert same(plan.samples, fewer.samples, "rounds")
    assert same(plan.rounds[:, :2], fewer.rounds)


def test_leaving_out_the_mixing_set_does_not_change_other_draws() -> None:
    plan, without = plan_of(np.arange(2000)), plan_of(np.arange(2000), n_mixing_images=0)
    assert same(plan.samples, without.samples, "mixing_image")
    assert same(plan.rounds, without.rounds, "operation")
    used = plan.rounds["operation"] >= 0
    assert np.array_equal(plan.rounds["operation"][used], without.rounds["operation"][used])


def test_another_mixing_set_only_changes_the_mixing_image() -> None:
    plan, other = plan_of(np.arange(2000)), plan_of(np.arange(2000), n_mixing_images=900)
    assert same(plan.samples, other.samples, "mixing_image")
    assert same(plan.rounds, other.rounds)


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"all_ops": True}, {"operation", "argument"}),
        ({"geometric": False}, {"operation", "argument"}),
        ({"severity": 9.0}, {"argument"}),
        ({"beta": 7.0}, {"a", "b"}),
        ({"mixings": ("multiply", "add", "add")}, {"mixing"}),
    ],
)
def test_a_setting_only_changes_its_own_draws(changes: dict[str, object], fields: set[str]) -> None:
    plan, other = plan_of(np.arange(2000)), with_settings(**changes)
    for one, two in zip(plan, other, strict=True):
        for name in one.dtype.names or ():
            assert np.array_equal(one[name], two[name]) == (name not in fields), name
    sources = (plan.rounds["operation"] < 0, other.rounds["operation"] < 0)
    assert np.array_equal(*sources)


def test_flip_and_crop_do_not_change_other_draws() -> None:
    plan = plan_of(np.arange(2000))
    for changes in ({"flip": False}, {"source_size": (20, 130)}, {"source_size": (300, 400)}):
        other = plan_of(np.arange(2000), **changes)
        assert same(plan.samples, other.samples, "flip", "crop_top", "crop_left")
        assert same(plan.rounds, other.rounds)


def test_without_settings_only_flip_and_crop_are_drawn_and_unchanged() -> None:
    plan, bare = plan_of(np.arange(2000)), plan_of(np.arange(2000), settings=None)
    for name in SHARED:
        assert np.array_equal(plan.samples[name], bare.samples[name])
    assert not bare.samples["rounds"].any()
    assert (bare.samples["operation"] == NO_OPERATION).all()
    assert bare.rounds.shape == (2000, 0)
    assert not bare.needs_mixing_image().any()


def test_views_share_only_flip_and_crop() -> None:
    one, three = plan_of(np.arange(2000)), plan_of(np.arange(2000), views=3)
    assert same(three.samples[::3], one.samples)
    assert same(three.rounds[::3], one.rounds)
    views = [three.samples[view::3] for view in range(3)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        for name in SHARED:
            assert np.array_equal(views[first][name], views[second][name])
        for name in ("top_word", "left_word"):
            assert not (views[first][name] == views[second][name]).any()


def columns(samples: NDArray[np.void], rounds: NDArray[np.void]) -> dict[str, NDArray[Any]]:
    """The draws of samples and of two of their rounds, by name, without the shared fields."""
    names = ("operation", "argument", "rounds", "mixing_image", "top_word", "left_word")
    found = {f"{name} start": samples[name] for name in names}
    for r in (0, 3):
        found |= {f"{name} {r}": rounds[name][:, r] for name in rounds.dtype.names or ()}
    return found


def test_draws_of_a_sample_and_its_neighbors_are_uncorrelated() -> None:
    """Except an operation with its argument, and the two weights of a branch.

    The 19 numbers are compared with each other and with 16 each of the next sample, view and epoch.
    For 1 in 1,600 seeds one of these 1,078 pairs is beyond 5 standard deviations.
    """
    options = {"all_ops": True}
    plan = many(views=2, **options)
    later = plan_of(np.arange(N), epoch=4, settings=PixMixSettings(**options))  # type: ignore[arg-type]
    own, first = columns(plan.samples[::2][:-1], plan.rounds[::2][:-1]), slice(None, -1)
    own |= {f"{name} crop": plan.samples[name][::2][:-1] for name in SHARED}
    neighbours = [
        columns(plan.samples[::2][1:], plan.rounds[::2][1:]),
        columns(plan.samples[1::2][first], plan.rounds[1::2][first]),
        columns(later.samples[first], later.rounds[first]),
    ]
    assert len(own) == 19
    table = [*own.values(), *(column for each in neighbours for column in each.values())]
    ranks = np.array([stats.rankdata(column) for column in table])
    deviations = np.abs(np.corrcoef(ranks)) * np.sqrt(N)
    names = list(own)
    tied = {("operation", "argument"), ("a", "b")}
    pairs = [
        (i, j)
        for i in range(len(own))
        for j in range(i + 1, len(table))
        if j >= len(own)
        or (names[i].split()[0], names[j].split()[0]) not in tied
        or names[i].split()[1] != names[j].split()[1]
    ]
    assert len(pairs) == 19 * 48 + 171 - 5 == 1078
    beyond = [(i, j, deviations[i, j]) for i, j in pairs if not deviations[i, j] < 5]
    assert not beyond


# --- Golden values and errors --------------------------------------------------------------------


def summary(plan: Plan) -> dict[str, list[Any]]:
    """All fields of a plan, with floats rounded to six digits."""
    fields = {}
    for rows, dtype, part in ((plan.samples, SAMPLE, "sample"), (plan.rounds, ROUND, "round")):
        for name in dtype.names or ():
            values = rows[name].reshape(-1)
            fields[f"{part} {name}"] = [
                float(f"{value:.6g}") if values.dtype.kind == "f" else int(value)
                for value in values.tolist()
            ]
    return fields


def test_a_seed_draws_what_it_always_drew() -> None:
    """After a change, increment DRAWS_VERSION, update the changelog, and write the file again."""
    plan = plan_of(
        np.arange(6), seed=2**40 + 7, epoch=3, views=2, size=(32, 32), source_size=(40, 40),
        n_mixing_images=1000, settings=PixMixSettings(all_ops=True, k=2, severity=10),
    )  # fmt: skip
    golden = json.loads(GOLDEN.read_text())
    assert golden["version"] == DRAWS_VERSION
    assert summary(plan) == golden["plan"]
    crops = [
        draw_resized_crop(
            i, seed=5, epoch=1, size=(375, 500), scale=(0.08, 1), ratio=(3 / 4, 4 / 3)
        )
        for i in range(8)
    ]
    assert [list(crop) for crop in crops] == golden["crops"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"epoch": -1}, ValueError, "epoch is -1; pass an integer from 0 to 4294967295"),
        ({"epoch": 2**32}, ValueError, "epoch is 4294967296; pass"),
        ({"epoch": 1.5}, TypeError, "epoch is 1.5; pass an integer"),
        ({"views": 0}, ValueError, "views is 0; pass an integer from 1 to 16777216"),
        ({"views": 2**24 + 1}, ValueError, "views is 16777217; pass"),
        ({"views": True}, TypeError, "views is True; pass an integer"),
        ({"views": 2.5}, TypeError, "views is 2.5; pass an integer"),
        ({"seed": 0.5}, TypeError, "seed is 0.5; pass an integer"),
        ({"seed": "0"}, TypeError, "seed is '0'; pass an integer"),
        ({"seed": None}, TypeError, "seed is None; pass an integer"),
        ({"indices": np.array([0, 5, -1, 7])}, ValueError, "index 2 of the batch is -1; pass"),
        ({"indices": np.array([0, 2**32])}, ValueError, "index 1 of the batch is 4294967296"),
    ],
)
def test_numbers_out_of_range_are_rejected(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan_of(**({"indices": np.arange(4)} | changes))


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint64, np.uint8])
def test_integers_of_numpy_are_accepted(kind: type[np.integer[Any]]) -> None:
    expected = plan_of(np.arange(50), seed=100, epoch=9)
    found = plan_of(np.arange(50), seed=kind(100), epoch=kind(9))
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))


def test_a_negative_numpy_seed_equals_the_python_seed() -> None:
    found, expected = (plan_of(np.arange(50), seed=seed) for seed in (np.int64(-3), -3))
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))


def test_a_plan_may_be_empty() -> None:
    plan = plan_of(np.arange(0), views=3)
    assert len(plan.samples) == 0
    assert plan.rounds.shape == (0, 4)
    assert plan.needs_mixing_image().shape == (0,)


# --- Random resized crops ------------------------------------------------------------------------


def crops_of(n: int, size: tuple[int, int], **changes: tuple[float, float]) -> NDArray[np.int64]:
    arguments = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)} | changes
    return np.array(
        [draw_resized_crop(i, seed=0, epoch=0, size=size, **arguments) for i in range(n)]
    )


@pytest.mark.parametrize("size", [(375, 500), (1, 1), (1, 90), (90, 1), (7, 5)])
def test_resized_crops_are_inside_the_image(size: tuple[int, int]) -> None:
    top, left, height, width = crops_of(2000, size).T
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() <= size[0]
    assert (left + width).max() <= size[1]


def test_area_and_ratio_are_drawn_as_torchvision_draws_them() -> None:
    """Shares below a half fit at every ratio, so no attempt fails and both laws are simple."""
    _, _, height, width = crops_of(8000, (4000, 4000), scale=(0.1, 0.5)).T
    area = height * width / 4000**2
    assert stats.kstest(area, stats.uniform(0.1, 0.4).cdf).pvalue > IMPROBABLE
    logarithm = np.log(width / height)
    law = stats.uniform(np.log(3 / 4), np.log(16 / 9))
    assert stats.kstest(logarithm, law.cdf).pvalue > IMPROBABLE


def test_corners_of_resized_crops_are_uniform() -> None:
    crops = crops_of(8000, (3000, 3000), scale=(0.2, 0.2), ratio=(1, 1))
    assert len(set(map(tuple, crops[:, 2:].tolist()))) == 1
    for corner in crops[:, :2].T:
        law = stats.uniform(0, 3001 - crops[0, 2])
        assert stats.kstest(corner + 0.5, law.cdf).pvalue > IMPROBABLE


def test_if_no_attempt_fits_the_largest_center_crop_is_taken() -> None:
    for i in range(50):
        wide = draw_resized_crop(
            i, seed=0, epoch=0, size=(30, 900), scale=(0.9, 1), ratio=(3 / 4, 4 / 3)
        )
        assert wide == (0, 430, 30, 40)
        high = draw_resized_crop(
            i, seed=0, epoch=0, size=(900, 30), scale=(0.9, 1), ratio=(3 / 4, 4 / 3)
        )
        assert high == (430, 0, 40, 30)
