"""What is drawn for a sample: the paper's probabilities, and a function of its key alone.

Draws are of fixed seeds, so a test that passes once always does; a false-alarm rate says for what
share of the seeds it would fail without any fault.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

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
from pixmix.op_kernels import OPERATIONS, STANDARD_OPERATIONS
from pixmix.settings import MIXINGS, PixMixSettings

N = 40_000
DEVIATIONS = 5.0
"""How many standard deviations a share may be off: 1 seed in 1.7 million for each."""
LEAST_P = 1e-6
"""The false-alarm rate of each distribution test."""
GOLDEN = Path(__file__).parent / "golden" / "draws.json"


def plan_of(n: int = N, **changes: object) -> Plan:
    arguments: dict[str, Any] = {
        "seed": 1, "epoch": 0, "settings": PixMixSettings(), "size": (32, 32),
        "source_size": (40, 40), "flip": True, "views": 1, "n_pictures": 1000,
    }  # fmt: skip
    return draw_plan(np.arange(n), **(arguments | changes))


def assert_share(hits: NDArray[np.bool_], probability: float) -> None:
    deviation = (probability * (1 - probability) / hits.size) ** 0.5
    assert abs(hits.mean() - probability) < DEVIATIONS * deviation


def assert_uniform(values: NDArray[np.integer], n: int) -> None:
    counts = np.bincount(values.reshape(-1).astype(np.int64), minlength=n)
    assert len(counts) == n
    assert stats.chisquare(counts).pvalue > LEAST_P


def used(plan: Plan) -> NDArray[np.bool_]:
    """Which rounds count, (N, k)."""
    return np.arange(plan.rounds.shape[1]) < plan.samples["rounds"][:, None]


# --- the laws of the method ----------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 4, 7])
def test_the_number_of_rounds_is_uniform_from_0_to_k(k: int) -> None:
    plan = plan_of(settings=PixMixSettings(k=k))
    assert_uniform(plan.samples["rounds"], k + 1)
    assert_share(plan.samples["rounds"] == 0, 1 / (k + 1))


def test_k_of_0_leaves_no_round() -> None:
    plan = plan_of(settings=PixMixSettings(k=0))
    assert plan.rounds.shape == (N, 0)
    assert not plan.samples["rounds"].any()


def test_a_tenth_of_the_images_is_left_untouched() -> None:
    plan = plan_of()
    untouched = (plan.samples["rounds"] == 0) & (plan.samples["operation"] == NO_OPERATION)
    assert_share(untouched, 1 / 10)


def test_a_mixing_picture_is_needed_by_61_percent() -> None:
    """1 - the mean of 2^-rounds: reading it for every image wastes 39 % of the readings."""
    assert_share(plan_of().needs_picture(), 0.6125)


def test_sources_and_mixings_are_even() -> None:
    plan = plan_of()
    assert_share(plan.samples["operation"] == NO_OPERATION, 1 / 2)
    rounds = plan.rounds[used(plan)]
    assert_share(rounds["operation"] == NO_OPERATION, 1 / 2)
    assert_share(rounds["mixing"] == MIXINGS.index("add"), 1 / 2)
    assert set(rounds["mixing"]) == {MIXINGS.index("add"), MIXINGS.index("multiply")}


@pytest.mark.parametrize("all_ops", [False, True])
def test_operations_are_uniform_over_nine_or_thirteen(all_ops: bool) -> None:
    n_operations = len(OPERATIONS) if all_ops else STANDARD_OPERATIONS
    assert n_operations == (13 if all_ops else 9)
    plan = plan_of(settings=PixMixSettings(all_ops=all_ops))
    for codes in (plan.samples["operation"], plan.rounds["operation"]):
        assert_uniform(codes[codes != NO_OPERATION], n_operations)


def test_the_experimental_mixings_are_drawn_where_they_are_named() -> None:
    plan = plan_of(settings=PixMixSettings(mixings=MIXINGS))
    assert_uniform(plan.rounds["mixing"], len(MIXINGS))
    assert_share(plan.rounds["choice"] >= 2**31, 1 / 2)


@pytest.mark.parametrize("severity", [0.1, 1.0, 3.0, 10.0])
def test_levels_are_uniform_up_to_the_severity_and_signs_are_even(severity: float) -> None:
    plan = plan_of(settings=PixMixSettings(severity=severity))
    for name in ("shear_x", "shear_y"):
        rounds = plan.rounds[plan.rounds["operation"] == OPERATIONS.index(name)]
        arguments = rounds["argument"]
        assert len(arguments) > 5000
        assert_share(arguments < 0, 1 / 2)
        levels = np.abs(arguments) / 0.03
        if severity == 0.1:
            assert np.allclose(levels, 0.1)
        else:
            law = stats.uniform(0.1, severity - 0.1)
            assert stats.kstest(levels, law.cdf).pvalue > LEAST_P


def test_translations_are_in_the_side_of_their_axis() -> None:
    plan = plan_of(size=(60, 30), source_size=(60, 30), settings=PixMixSettings(severity=10))
    for name, side in (("translate_x", 30), ("translate_y", 60)):
        arguments = plan.rounds["argument"][plan.rounds["operation"] == OPERATIONS.index(name)]
        # The largest level falls short of 10.
        assert np.abs(arguments).max() == side // 3 - 1


@pytest.mark.parametrize("beta", [0.3, 1.0, 3.0, 4.0])
def test_weights_have_the_distributions_of_the_two_branches(beta: float) -> None:
    plan = plan_of(10_000, settings=PixMixSettings(beta=beta))
    for first, second in (("a", "b"), ("second_a", "second_b")):
        a = plan.rounds[first].reshape(-1).astype(np.float64)
        b = plan.rounds[second].reshape(-1).astype(np.float64)
        towards = b > 0
        assert_share(towards, 1 / 2)
        assert a.min() >= 0
        assert a.max() <= 2
        for values, law in (
            (a[towards], stats.beta(beta, 1)),
            (b[towards], stats.beta(1, beta)),
            (a[~towards] - 1, stats.beta(1, beta)),
            (-b[~towards], stats.beta(1, beta)),
        ):
            # 23 bits of the uniform variable, which a small beta spreads near 1.
            jittered = np.clip(values, 0, 1)
            assert stats.kstest(jittered, law.cdf).pvalue > LEAST_P
        correlation = stats.spearmanr(np.abs(a[towards]), np.abs(b[towards]))
        assert correlation.pvalue > LEAST_P


def test_crops_flips_and_mixing_pictures_are_uniform() -> None:
    plan = plan_of()
    assert_share(plan.samples["flip"] == 1, 1 / 2)
    assert_uniform(plan.samples["crop_top"], 9)
    assert_uniform(plan.samples["crop_left"], 9)
    assert_uniform(plan.samples["picture"], 1000)
    for word in ("top_word", "left_word"):
        corners = np.array([draw_corner(each, 256, 224) for each in plan.samples[word][:9000]])
        assert_uniform(corners, 33)


def test_draws_of_a_sample_are_independent() -> None:
    """Rank correlations of 78 pairs: a false alarm for 1 seed in 13,000."""
    plan = plan_of(settings=PixMixSettings(k=2))
    names_of_samples = [
        "flip",
        "crop_top",
        "crop_left",
        "rounds",
        "picture",
        "top_word",
        "left_word",
    ]
    columns = {name: plan.samples[name] for name in names_of_samples}
    for r in range(2):
        columns |= {f"{name} {r}": plan.rounds[name][:, r] for name in ("a", "mixing", "choice")}
    names = list(columns)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    assert len(pairs) == 78
    for a, b in pairs:
        assert stats.spearmanr(columns[a], columns[b]).pvalue > LEAST_P, (a, b)


# --- keys ----------------------------------------------------------------------------------------


def equal(a: Plan, b: Plan) -> bool:
    return np.array_equal(a.samples, b.samples) and np.array_equal(a.rounds, b.rounds)


def test_a_sample_s_draws_depend_on_no_other_sample() -> None:
    whole = plan_of(50)
    rows = [49, 3, 3, 17]
    arguments: dict[str, Any] = {
        "seed": 1, "epoch": 0, "settings": PixMixSettings(), "size": (32, 32),
        "source_size": (40, 40), "flip": True, "views": 1, "n_pictures": 1000,
    }  # fmt: skip
    some = draw_plan(np.array(rows), **arguments)
    assert equal(some, Plan(whole.samples[rows], whole.rounds[rows]))


def test_seed_epoch_index_and_view_are_told_apart() -> None:
    """The released code's workers share a seed; `seed + epoch` would repeat an epoch."""
    plans = [
        plan_of(40, seed=seed, epoch=epoch, views=2) for seed in range(5) for epoch in range(5)
    ]
    words = np.concatenate([plan.samples["top_word"] for plan in plans])
    assert len(set(words.tolist())) == len(words) == 5 * 5 * 40 * 2


def test_a_seed_is_taken_modulo_two_to_the_64th() -> None:
    assert equal(plan_of(9, seed=-1), plan_of(9, seed=2**64 - 1))
    assert not equal(plan_of(9, seed=2**32), plan_of(9, seed=0))


def test_nothing_shifts_where_something_else_is_not_drawn() -> None:
    plan = plan_of(200)
    for change in ({"settings": PixMixSettings(k=2)}, {"flip": False}, {"n_pictures": 0}):
        other = plan_of(200, **change)
        k = other.rounds.shape[1]
        for name in ("a", "b", "choice", "mixing"):
            assert np.array_equal(other.rounds[name], plan.rounds[name][:, :k])
        for name in ("crop_top", "crop_left", "operation", "argument", "top_word"):
            assert np.array_equal(other.samples[name], plan.samples[name])


def test_without_a_mixing_set_every_round_draws_an_operation() -> None:
    plan = plan_of(n_pictures=0)
    assert (plan.rounds["operation"] != NO_OPERATION).all()
    assert not plan.needs_picture().any()


def test_without_pixmix_flip_and_crop_are_those_with_it() -> None:
    plain, mixed = plan_of(500, settings=None), plan_of(500)
    for name in ("flip", "crop_top", "crop_left"):
        assert np.array_equal(plain.samples[name], mixed.samples[name])
    assert (plain.samples["operation"] == NO_OPERATION).all()
    assert not plain.samples["rounds"].any()


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
        6, seed=2**40 + 7, epoch=3, views=2,
        settings=PixMixSettings(all_ops=True, mixings=MIXINGS, k=2, severity=10),
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
    assert stats.kstest(area, stats.uniform(0.1, 0.4).cdf).pvalue > LEAST_P
    logarithm = np.log(width / height)
    law = stats.uniform(np.log(3 / 4), np.log(16 / 9))
    assert stats.kstest(logarithm, law.cdf).pvalue > LEAST_P


def test_corners_are_uniform() -> None:
    crops = crops_of(8000, (3000, 3000), scale=(0.2, 0.2), ratio=(1, 1))
    assert len(set(map(tuple, crops[:, 2:].tolist()))) == 1
    for corner in crops[:, :2].T:
        law = stats.uniform(0, 3001 - crops[0, 2])
        assert stats.kstest(corner + 0.5, law.cdf).pvalue > LEAST_P


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


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": -1}, "epoch is -1; give a whole number from 0 to 4294967295"),
        ({"epoch": 2**32}, "epoch is 4294967296; give"),
        ({"views": 0}, "views is 0; give a whole number from 1"),
        ({"views": 2**24 + 1}, "views is 16777217; give"),
    ],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(1, **changes)
