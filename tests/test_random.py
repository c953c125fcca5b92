"""Random numbers: the generator's twin, the shape of each distribution, and streams that never change."""

import math
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import reference
from fractals.random import Draws, fill_units, next_unit, next_word, random_state

# Every seed here is fixed, so a test passes always or never; a p-value under this would be a fault.
IMPROBABLE = 1e-4
words = st.integers(0, 2**64 - 1)


@given(st.lists(words, min_size=4, max_size=4).filter(any))
def test_words_equal_the_twins(state: list[int]) -> None:
    array = np.array(state, np.uint64)
    found = [int(next_word(array)) for _ in range(20)]
    assert found == list(islice(reference.xoshiro256plusplus(state), 20))


def test_the_first_words_of_the_state_1_2_3_4_are_the_published_ones() -> None:
    # The first outputs of https://prng.di.unimi.it/xoshiro256plusplus.c from s = {1, 2, 3, 4}, as
    # the rand_xoshiro crate's tests also list them.
    state = np.array([1, 2, 3, 4], np.uint64)
    assert [int(next_word(state)) for _ in range(5)] == [
        41943041, 58720359, 3588806011781223, 3591011842654386, 9228616714210784205,
    ]  # fmt: skip


def test_units_are_the_upper_53_bits_of_the_words() -> None:
    state, same = random_state(3, 1), random_state(3, 1)
    filled = np.empty(50)
    fill_units(random_state(3, 1), filled)
    for value in filled:
        assert value == next_unit(state) == (int(next_word(same)) >> 11) / 2**53


def test_draws_follow_the_units_of_their_key_past_every_refill() -> None:
    filled, draws = np.empty(400), Draws(9, 9)
    fill_units(random_state(9, 9), filled)
    assert [draws.unit() for _ in range(400)] == filled.tolist()


# What a seed produces is public interface: these numbers change with GENOME_VERSION or never.
GOLDEN = {
    (0,): (0xEEB43BB1EEDD88FA, (0.9324376401335625, 0.9759038159075504, 0.33623019982131697)),
    (1, 2): (0x1D382FEE158B43C7, (0.11413859903909174, 0.4202471926120446, 0.09305246761543573)),
    (12,): (0xE153E0FBCAB6C618, (0.8801861395574759, 0.06650777428937604, 0.5283979678104539)),
    (-1, 18446744073709551616, 7): (
        0x25A1B08A6FB6B8FD,
        (0.14699843768877485, 0.6528745501538142, 0.7632873396239839),
    ),
    (1, 0, 0, 7, 0): (
        0x99DE17866DC9E9FE,
        (0.6010451033778633, 0.865606865454154, 0.8498981870689984),
    ),
}


@pytest.mark.parametrize("key", list(GOLDEN))
def test_the_streams_of_a_few_keys_are_what_they_always_were(key: tuple[int, ...]) -> None:
    word, units = GOLDEN[key]
    draws = Draws(*key)
    assert int(next_word(random_state(*key))) == word
    assert tuple(draws.unit() for _ in range(3)) == units


def test_keys_that_would_join_or_sum_to_the_same_differ() -> None:
    keys = [
        (1, 2),
        (12,),
        (2, 1),
        (3,),
        (1, 2, 0),
        (0, 1, 2),
        (-1, 2),
        (1, -2),
        (),
        (2**70,),
        (2**70 + 1,),
    ]
    assert len({random_state(*key).tobytes() for key in keys}) == len(keys)


def test_a_key_of_numpys_integers_is_the_same_key() -> None:
    np.testing.assert_array_equal(random_state(np.int64(5), np.uint8(7)), random_state(5, 7))


def test_streams_of_neighbouring_keys_are_uncorrelated() -> None:
    n, streams = 4096, np.empty((64, 4096))
    for index, stream in enumerate(streams):
        fill_units(random_state(0, index), stream)
    correlation = np.corrcoef(streams)[np.triu_indices(64, 1)]
    assert stats.kstest(correlation * math.sqrt(n), "norm").pvalue > IMPROBABLE
    # Nor are the first numbers of many streams, which is what a genome is drawn from.
    firsts = np.array([Draws(0, index).unit() for index in range(4096)])
    assert stats.kstest(firsts, "uniform").pvalue > IMPROBABLE
    assert abs(np.corrcoef(firsts[:-1], firsts[1:])[0, 1]) * math.sqrt(n) < 4


def test_units_and_uniforms_are_uniform_and_their_ranges_half_open() -> None:
    draws = Draws(4, 2)
    units = np.array([draws.unit() for _ in range(50_000)])
    uniforms = np.array([draws.uniform(-3.0, 5.0) for _ in range(50_000)])
    assert stats.kstest(units, "uniform").pvalue > IMPROBABLE
    assert stats.kstest(uniforms, "uniform", args=(-3, 8)).pvalue > IMPROBABLE
    assert units.min() >= 0
    assert units.max() < 1
    assert uniforms.min() >= -3
    assert uniforms.max() < 5


class Fixed(Draws):
    """Draws whose units are given: the ends of [0, 1)."""

    def __init__(self, unit: float) -> None:
        """Give the one unit there is."""
        self.only = unit

    def unit(self) -> float:
        """Return the unit."""
        return self.only


def test_no_draw_leaves_its_range_at_the_ends_of_the_unit() -> None:
    low, high = Fixed(0.0), Fixed(1 - 2.0**-53)
    assert (low.whole(-2, 6), high.whole(-2, 6)) == (-2, 6)
    assert (low.choice("abc"), high.choice("abc")) == ("a", "c")
    assert (low.weighted("abc", (0, 2, 1)), high.weighted("abc", (1, 2, 0))) == ("b", "b")
    assert (low.sign(), high.sign()) == (-1.0, 1.0)
    assert (low.distinct("abc", 3), high.distinct("abc", 3)) == (["a", "b", "c"], ["c", "b", "a"])
    assert (low.chance(0.0), high.chance(1.0)) == (False, True)
    assert (low.uniform(2, 3), high.uniform(0, 1)) == (2, 1 - 2.0**-53)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 6), (-4, 8), (3, 3)])
def test_wholes_are_even_and_include_both_ends(low: int, high: int) -> None:
    draws = Draws(7, low, high)
    counts = Counter(draws.whole(low, high) for _ in range(20_000))
    assert sorted(counts) == list(range(low, high + 1))
    assert low == high or stats.chisquare(list(counts.values())).pvalue > IMPROBABLE


def test_choices_are_even_and_weighted_ones_follow_their_weights() -> None:
    draws, n = Draws(8), 40_000
    even = Counter(draws.choice("abcde") for _ in range(n))
    assert sorted(even) == list("abcde")
    assert stats.chisquare(list(even.values())).pvalue > IMPROBABLE
    weights = (0.5, 0.0, 6.0, 1.5, 2.0)
    found = Counter(draws.weighted("abcde", weights) for _ in range(n))
    assert found["b"] == 0
    expected = [n * weight / sum(weights) for weight in weights if weight]
    assert stats.chisquare([found[item] for item in "acde"], expected).pvalue > IMPROBABLE


def test_signs_and_chances_have_their_probabilities() -> None:
    draws, n = Draws(11), 40_000
    signs = Counter(draws.sign() for _ in range(n))
    assert sorted(signs) == [-1.0, 1.0]
    assert stats.binomtest(signs[1.0], n, 0.5).pvalue > IMPROBABLE
    assert stats.binomtest(sum(draws.chance(0.15) for _ in range(n)), n, 0.15).pvalue > IMPROBABLE


def test_distinct_items_are_every_arrangement_alike_and_the_pool_is_kept() -> None:
    draws, pool = Draws(12), ["a", "b", "c", "d"]
    counts = Counter("".join(draws.distinct(pool, 2)) for _ in range(24_000))
    assert len(counts) == 12
    assert all(first != second for first, second in counts)
    assert stats.chisquare(list(counts.values())).pvalue > IMPROBABLE
    assert pool == ["a", "b", "c", "d"]
