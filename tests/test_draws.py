"""What is drawn for a sample: its twin, the paper's probabilities, one place for each word.

Also what a seed drew when it was written down, and random resized crops.
"""

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
from pixmix.settings import MINIMAL_BETA, PixMixSettings

# Every seed here is fixed, so a test passes always or never. A test of a law compares p-values with
# this: how often faultless draws would fail one comparison, over the choice of a seed. A test that
# makes m of them fails at m times that rate at most.
IMPROBABLE = 1e-5

GOLDEN = Path(__file__).parent / "golden" / "draws.json"
N = 40_000
SIZE = (20, 130)
SOURCE_SIZE = (27, 141)
SHARED = ("flip", "crop_top", "crop_left")
"""What all views of a sample have in common."""
DEFAULT = PixMixSettings()


def plan_of(indices: NDArray[np.int64], **changes: object) -> Plan:
    arguments: dict[str, Any] = {
        "seed": 11, "epoch": 3, "settings": DEFAULT, "size": SIZE, "source_size": SOURCE_SIZE,
        "flip": True, "views": 1, "n_mixing_images": 7,
    }  # fmt: skip
    return draw_plan(indices, **(arguments | changes))


@functools.cache
def many(n_mixing_images: int = 7, views: int = 1, **changes: object) -> Plan:
    """A plan of N samples with the default settings but for the changes; never written to."""
    settings = dataclasses.replace(DEFAULT, **changes)  # type: ignore[arg-type]
    return plan_of(np.arange(N), settings=settings, n_mixing_images=n_mixing_images, views=views)


def same(one: NDArray[np.void], other: NDArray[np.void], *but: str) -> bool:
    """Whether all fields but the named ones are equal; padding counts for nothing."""
    names = [name for name in one.dtype.names or () if name not in but]
    return all(np.array_equal(one[name], other[name]) for name in names)


def assert_share(events: NDArray[np.bool_], probability: float) -> None:
    """Compare how often something happens with its probability, exactly."""
    n = int(events.size)
    assert n > 1000
    assert stats.binomtest(int(events.sum()), n, probability).pvalue > IMPROBABLE


def assert_uniform(numbers: NDArray[np.integer], n: int) -> None:
    """Compare how often each of 0 .. n-1 comes with 1/n."""
    assert set(np.unique(numbers)) <= set(range(n))
    counts = np.bincount(numbers, minlength=n)
    assert counts.sum() > 50 * n
    assert n == 1 or stats.chisquare(counts).pvalue > IMPROBABLE


# --- The twin ------------------------------------------------------------------------------------


def codes_of(*, all_ops: bool = False, geometric: bool = True) -> list[int]:
    """The codes of the operations that are drawn."""
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
def test_a_plan_is_what_its_words_say(
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

    def check_operation(item: np.void, twin: dict[str, Any]) -> None:
        code, level, negative = twin["code"], twin["level"], twin["negative"]
        assert item["operation"] == (code if twin["operates"] else NO_OPERATION)
        assert item["argument"] == draw_argument(code, level, negative, *SIZE)

    for view, (sample, rounds) in enumerate(zip(*plan, strict=True)):
        twin = reference.drawn(
            seed, epoch, index, view, k=k, beta=beta, severity=severity,
            operations=codes_of(all_ops=all_ops, geometric=geometric), n_mixings=len(mixings),
            n_mixing_images=n_mixing_images,
            crop_range=(SOURCE_SIZE[0] - SIZE[0] + 1, SOURCE_SIZE[1] - SIZE[1] + 1),
        )  # fmt: skip
        assert sample["flip"] == (twin["flip"] if flip else 0)
        assert (sample["crop_top"], sample["crop_left"]) == twin["crop"]
        check_operation(sample, twin["start"])
        assert sample["rounds"] == twin["n_rounds"]
        assert sample["mixing_image"] == twin["mixing_image"]
        assert (sample["top_word"], sample["left_word"]) == twin["image_words"]
        for item, expected in zip(rounds, twin["rounds"], strict=True):
            check_operation(item, expected)
            assert item["mixing"] == MIXINGS.index(mixings[expected["mixing"]])
            # A power within 3e-7 of its size, a float32 in [1, 2], an exponent rounded to float32.
            found = [float(item["a"]), float(item["b"])]
            assert np.abs(np.subtract(found, expected["weights"])).max() < 5e-7


# --- How many rounds, and what they mix ----------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 2, 4, 9])
def test_the_number_of_rounds_is_uniform_from_none_to_k(k: int) -> None:
    rounds = many(k=k).samples["rounds"]
    assert_uniform(rounds, k + 1)
    assert_share(rounds == 0, 1 / (k + 1))


def test_a_fifth_of_all_samples_get_no_round() -> None:
    assert_share(many().samples["rounds"] == 0, 1 / 5)


def test_a_tenth_of_all_samples_are_left_as_they_are() -> None:
    samples = many().samples
    untouched = (samples["rounds"] == 0) & (samples["operation"] == NO_OPERATION)
    assert_share(untouched, 1 / 10)


def test_the_mixing_image_is_needed_by_61_percent() -> None:
    """1 - (1 + 1/2 + 1/4 + 1/8 + 1/16) / 5: no round, or none of one to four asks for it."""
    assert_share(many().needs_mixing_image(), 0.6125)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_the_mixing_image_is_needed_as_often_as_the_rounds_say(k: int) -> None:
    probability = 1 - sum(2.0**-r for r in range(k + 1)) / (k + 1)
    assert_share(many(k=k).needs_mixing_image(), probability)


def test_a_image_is_needed_where_a_round_that_is_used_mixes_it() -> None:
    plan = many()
    needed = [
        any(code == NO_OPERATION for code in operations[:n])
        for operations, n in zip(
            plan.rounds["operation"].tolist(), plan.samples["rounds"].tolist(), strict=True
        )
    ]
    assert np.array_equal(plan.needs_mixing_image(), needed)


def test_every_source_is_an_operation_or_the_image_half_of_the_time() -> None:
    plan = many()
    assert_share(plan.samples["operation"] == NO_OPERATION, 1 / 2)
    for r in range(4):
        assert_share(plan.rounds["operation"][:, r] == NO_OPERATION, 1 / 2)


def test_without_a_mixing_set_every_round_mixes_an_operation() -> None:
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
def test_what_keeps_its_place_is_drawn_evenly_without_what_moves(all_ops: bool) -> None:
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


def test_a_mixing_named_twice_comes_twice_as_often() -> None:
    codes = many(mixings=("add", "multiply", "add")).rounds["mixing"]
    assert_share(codes == MIXINGS.index("add"), 2 / 3)


def test_the_mixing_image_is_uniform_over_the_set() -> None:
    assert_uniform(many().samples["mixing_image"], 7)
    assert_uniform(many(n_mixing_images=500).samples["mixing_image"], 500)
    assert not many(n_mixing_images=1).samples["mixing_image"].any()
    image = many(n_mixing_images=18_938).samples["mixing_image"]
    assert image.min() >= 0
    assert image.max() < 18_938
    # Of whole numbers from 0: what is drawn fills the range as a continuous number does.
    assert stats.kstest((image + 0.5) / 18_938, "uniform").pvalue > IMPROBABLE


# --- Levels and signs, as the arguments show them ------------------------------------------------


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
        # A third of the side they move along, and of no other: the released code's 32 is global.
        ("translate_x", 0, SIZE[1] / 30),
        ("translate_y", 0, SIZE[0] / 30),
    ],
)
def test_whole_arguments_come_as_often_as_uniform_levels_make_them(
    name: str, whole: int, steps: float, severity: float
) -> None:
    found = np.abs(whole - np.abs(arguments_of(many(severity=severity, all_ops=True), name)))
    edges = np.arange(int(severity * steps) + 2) / steps
    chances = np.diff(edges.clip(0.1, severity)) / (severity - 0.1)
    counts = np.bincount(found.astype(int), minlength=len(chances))
    assert len(counts) == len(chances)
    # At severity 10 the last number is that of a level of 10 alone.
    possible = chances > 1e-9
    assert not counts[~possible].any()
    if possible.sum() > 1:
        expected = chances[possible] / chances[possible].sum() * counts.sum()
        assert stats.chisquare(counts[possible], expected).pvalue > IMPROBABLE


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_half_of_what_has_a_sign_is_negative(name: str) -> None:
    arguments = arguments_of(many(severity=10, all_ops=True), name)
    assert_share(arguments[arguments != 0] < 0, 1 / 2)


def test_the_least_severity_leaves_one_level() -> None:
    plan = many(severity=0.1, all_ops=True)
    assert set(np.abs(arguments_of(plan, "shear_x")).round(12)) == {0.003}
    assert set(arguments_of(plan, "color").round(12)) == {0.118}
    assert set(arguments_of(plan, "autocontrast")) == {0}


# --- Weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.5, 1, 3, 4, 20])
def test_weights_have_their_beta_distributions_in_both_branches(
    beta: float,
) -> None:
    """A coin, four Kolmogorov-Smirnov tests of 80,000 numbers each, two of independence."""
    rounds = many(beta=beta).rounds
    a, b = (rounds[name].astype(np.float64).ravel() for name in ("a", "b"))
    # b is 0 for one V in 2^24 or so, in both branches.
    towards = (a <= 1) & (b >= 0)
    away = (a >= 1) & (b <= 0)
    assert (towards | away).all()
    assert_share(towards, 1 / 2)
    keeps, gives = stats.beta(beta, 1), stats.beta(1, beta)
    assert stats.kstest(a[towards], keeps.cdf).pvalue > IMPROBABLE
    assert stats.kstest(b[towards], gives.cdf).pvalue > IMPROBABLE
    assert stats.kstest(a[away] - 1, gives.cdf).pvalue > IMPROBABLE
    assert stats.kstest(-b[away], gives.cdf).pvalue > IMPROBABLE
    for branch in (towards, away):
        assert stats.spearmanr(a[branch], b[branch]).pvalue > IMPROBABLE


@pytest.mark.parametrize("beta", [MINIMAL_BETA, 0.0013])
def test_the_least_beta_leaves_nothing_or_all_of_either_image(beta: float) -> None:
    """P(0.001 < U^(1/beta) < 0.999) is 0.009 at most."""
    rounds = many(beta=beta).rounds
    a, b = rounds["a"], rounds["b"]
    assert ((a >= 0) & (a <= 2) & (np.abs(b) <= 1)).all()
    # U^(1/beta) ~ 0: the other image alone, or the double of this one less the other.
    whole = ((a < 0.001) & (b > 0.999)) | ((a > 1.999) & (b < -0.999))
    assert whole.mean() > 0.98


@pytest.mark.parametrize("beta", [1e8, 1e30, 1.7e308])
def test_a_huge_beta_leaves_the_image(beta: float) -> None:
    rounds = many(beta=beta).rounds
    assert np.abs(rounds["a"] - 1).max() < 1e-6
    assert np.abs(rounds["b"]).max() < 1e-6


# --- Flip and crop -------------------------------------------------------------------------------


def test_half_of_the_samples_are_flipped_and_none_where_it_is_not_asked_for() -> None:
    assert_share(many().samples["flip"] == 1, 1 / 2)
    assert not plan_of(np.arange(1000), flip=False).samples["flip"].any()


def test_crops_are_uniform_over_all_their_places_and_inside() -> None:
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
def test_a_corner_lies_so_that_the_crop_is_inside(word: int, side: int, more: int) -> None:
    corner = int(draw_corner(np.uint32(word), side + more, side))
    assert corner == word * (more + 1) // 2**32
    assert 0 <= corner <= more


def test_the_mixing_image_s_crop_is_uniform_over_all_its_places() -> None:
    samples = many().samples
    # Of 20 x 130 in an image of 24 x 132.
    tops = np.array([draw_corner(word, 24, 20) for word in samples["top_word"]])
    lefts = np.array([draw_corner(word, 132, 130) for word in samples["left_word"]])
    assert_uniform(tops * 3 + lefts, 5 * 3)


# --- One place for each word ---------------------------------------------------------------------


@given(st.permutations(range(40)), st.integers(0, 40), st.integers(1, 3))
@settings(max_examples=30)
def test_batching_and_order_do_not_show(order: list[int], cut: int, views: int) -> None:
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


def test_another_k_shifts_no_word() -> None:
    plan, fewer = plan_of(np.arange(2000)), with_settings(k=2)
    assert same(plan.samples, fewer.samples, "rounds")
    assert same(plan.rounds[:, :2], fewer.rounds)


def test_no_mixing_set_shifts_no_word() -> None:
    plan, without = plan_of(np.arange(2000)), plan_of(np.arange(2000), n_mixing_images=0)
    assert same(plan.samples, without.samples, "mixing_image")
    assert same(plan.rounds, without.rounds, "operation")
    used = plan.rounds["operation"] >= 0
    assert np.array_equal(plan.rounds["operation"][used], without.rounds["operation"][used])


def test_another_mixing_set_changes_the_image_alone() -> None:
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
def test_a_setting_changes_its_own_numbers_alone(
    changes: dict[str, object], fields: set[str]
) -> None:
    plan, other = plan_of(np.arange(2000)), with_settings(**changes)
    for one, two in zip(plan, other, strict=True):
        for name in one.dtype.names or ():
            assert np.array_equal(one[name], two[name]) == (name not in fields), name
    sources = (plan.rounds["operation"] < 0, other.rounds["operation"] < 0)
    assert np.array_equal(*sources)


def test_flip_and_crop_shift_no_word() -> None:
    plan = plan_of(np.arange(2000))
    for changes in ({"flip": False}, {"source_size": (20, 130)}, {"source_size": (300, 400)}):
        other = plan_of(np.arange(2000), **changes)
        assert same(plan.samples, other.samples, "flip", "crop_top", "crop_left")
        assert same(plan.rounds, other.rounds)


def test_without_pixmix_there_are_flip_and_crop_alone_and_the_same() -> None:
    plan, bare = plan_of(np.arange(2000)), plan_of(np.arange(2000), settings=None)
    for name in SHARED:
        assert np.array_equal(plan.samples[name], bare.samples[name])
    assert not bare.samples["rounds"].any()
    assert (bare.samples["operation"] == NO_OPERATION).all()
    assert bare.rounds.shape == (2000, 0)
    assert not bare.needs_mixing_image().any()


def test_views_share_flip_and_crop_and_nothing_else() -> None:
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
    """Numbers drawn for samples, of two of their rounds, by name; not what all views share."""
    names = ("operation", "argument", "rounds", "mixing_image", "top_word", "left_word")
    found = {f"{name} start": samples[name] for name in names}
    for r in (0, 3):
        found |= {f"{name} {r}": rounds[name][:, r] for name in rounds.dtype.names or ()}
    return found


def test_numbers_of_a_sample_and_of_its_neighbours_are_uncorrelated() -> None:
    """But an operation with its argument, and the two weights of a branch.

    19 numbers with each other, and with 16 each of the next sample, view and epoch: 1,078 pairs, of
    which one is beyond 5 standard deviations for 1 in 1,600 choices of the seed.
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


# --- What is public, and what is refused ---------------------------------------------------------


def summary(plan: Plan) -> dict[str, list[Any]]:
    """All fields, reals to six digits."""
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
    """Public interface: else raise DRAWS_VERSION, tell the changelog, and write the file anew."""
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
        ({"epoch": -1}, ValueError, "epoch is -1; pass a whole number from 0 to 4294967295"),
        ({"epoch": 2**32}, ValueError, "epoch is 4294967296; pass"),
        ({"epoch": 1.5}, TypeError, "epoch is 1.5; pass a whole number"),
        ({"views": 0}, ValueError, "views is 0; pass a whole number from 1 to 16777216"),
        ({"views": 2**24 + 1}, ValueError, "views is 16777217; pass"),
        ({"views": True}, TypeError, "views is True; pass a whole number"),
        ({"views": 2.5}, TypeError, "views is 2.5; pass a whole number"),
        ({"seed": 0.5}, TypeError, "seed is 0.5; pass a whole number"),
        ({"seed": "0"}, TypeError, "seed is '0'; pass a whole number"),
        ({"seed": None}, TypeError, "seed is None; pass a whole number"),
        ({"indices": np.array([0, 5, -1, 7])}, ValueError, "index 2 of the batch is -1; pass"),
        ({"indices": np.array([0, 2**32])}, ValueError, "index 1 of the batch is 4294967296"),
    ],
)
def test_what_no_counter_holds_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan_of(**({"indices": np.arange(4)} | changes))


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint64, np.uint8])
def test_whole_numbers_of_numpy_are_whole_numbers(kind: type[np.integer[Any]]) -> None:
    expected = plan_of(np.arange(50), seed=100, epoch=9)
    found = plan_of(np.arange(50), seed=kind(100), epoch=kind(9))
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))


def test_a_negative_seed_of_numpy_is_the_same_seed() -> None:
    found, expected = (plan_of(np.arange(50), seed=seed) for seed in (np.int64(-3), -3))
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))


def test_no_samples_are_a_plan_too() -> None:
    plan = plan_of(np.arange(0), views=3)
    assert len(plan.samples) == 0
    assert plan.rounds.shape == (0, 4)
    assert plan.needs_mixing_image().shape == (0,)


# --- random resized crops ------------------------------------------------------------------------


def crops_of(n: int, size: tuple[int, int], **changes: tuple[float, float]) -> NDArray[np.int64]:
    arguments = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)} | changes
    return np.array(
        [draw_resized_crop(i, seed=0, epoch=0, size=size, **arguments) for i in range(n)]
    )


@pytest.mark.parametrize("size", [(375, 500), (1, 1), (1, 90), (90, 1), (7, 5)])
def test_a_crop_lies_inside(size: tuple[int, int]) -> None:
    top, left, height, width = crops_of(2000, size).T
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() <= size[0]
    assert (left + width).max() <= size[1]


def test_area_and_ratio_are_drawn_as_torchvision_draws_them() -> None:
    """Shares below a half fit at every ratio, so no try is refused and both laws are plain."""
    _, _, height, width = crops_of(8000, (4000, 4000), scale=(0.1, 0.5)).T
    area = height * width / 4000**2
    assert stats.kstest(area, stats.uniform(0.1, 0.4).cdf).pvalue > IMPROBABLE
    logarithm = np.log(width / height)
    law = stats.uniform(np.log(3 / 4), np.log(16 / 9))
    assert stats.kstest(logarithm, law.cdf).pvalue > IMPROBABLE


def test_corners_are_uniform() -> None:
    crops = crops_of(8000, (3000, 3000), scale=(0.2, 0.2), ratio=(1, 1))
    assert len(set(map(tuple, crops[:, 2:].tolist()))) == 1
    for corner in crops[:, :2].T:
        law = stats.uniform(0, 3001 - crops[0, 2])
        assert stats.kstest(corner + 0.5, law.cdf).pvalue > IMPROBABLE


def test_where_no_try_fits_the_largest_centre_is_taken() -> None:
    for i in range(50):
        wide = draw_resized_crop(
            i, seed=0, epoch=0, size=(30, 900), scale=(0.9, 1), ratio=(3 / 4, 4 / 3)
        )
        assert wide == (0, 430, 30, 40)
        high = draw_resized_crop(
            i, seed=0, epoch=0, size=(900, 30), scale=(0.9, 1), ratio=(3 / 4, 4 / 3)
        )
        assert high == (430, 0, 40, 30)
