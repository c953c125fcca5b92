"""The Philox generator, the numbers derived from its words, and the counters in use."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

import reference
from pixmix.draws import Stream, below, coin, draw_plan, philox, unit
from pixmix.settings import INDEX_LIMIT, VIEW_LIMIT, PixMixSettings

# All seeds are fixed, so a test always passes or always fails. This is the probability, over random
# seeds, that a correct generator fails a test.
IMPROBABLE = 1e-4

words = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2**31, 2**32 - 1]))
long_words = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**63, 2**64 - 1]))


def words_of(*counter_and_key: int) -> tuple[int, ...]:
    return tuple(int(word) for word in philox(*(np.uint64(each) for each in counter_and_key)))


def reference_words(
    counter: tuple[int, ...], key: tuple[int, ...], bits: int = 32
) -> tuple[int, ...]:
    return tuple(reference.philox_words(list(counter), list(key), bits))


# --- The generator -------------------------------------------------------------------------------

# philox4x32 with 10 rounds in kat_vectors of Random123, by the authors of the generator.
PUBLISHED = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def hexadecimal(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_philox_returns_the_published_words(counter: str, key: str, expected: str) -> None:
    assert words_of(*hexadecimal(counter), *hexadecimal(key)) == hexadecimal(expected)
    assert reference_words(hexadecimal(counter), hexadecimal(key)) == hexadecimal(expected)


@given(st.tuples(*[long_words] * 4), st.tuples(*[long_words] * 2))
def test_the_64_bit_reference_equals_numpys_philox(
    counter: tuple[int, ...], key: tuple[int, ...]
) -> None:
    # numpy only has Philox 4x64-10: the same rounds with longer words and other constants.
    found = np.random.Philox(
        counter=np.array(counter, np.uint64), key=np.array(key, np.uint64)
    ).random_raw(8)
    # It increments the counter first, whose lowest word is the first.
    number = sum(word << 64 * place for place, word in enumerate(counter))
    for block in range(2):
        counted = (number + 1 + block) % 2**256
        following = tuple(counted >> 64 * place & 2**64 - 1 for place in range(4))
        expected = reference_words(following, key, bits=64)
        assert tuple(found[4 * block : 4 * block + 4].tolist()) == expected


@given(st.tuples(*[words] * 4), st.tuples(*[words] * 2))
def test_words_equal_the_reference_implementation(
    counter: tuple[int, ...], key: tuple[int, ...]
) -> None:
    assert words_of(*counter, *key) == reference_words(counter, key)


@given(st.tuples(*[long_words] * 6))
def test_counter_and_key_are_taken_modulo_2_to_the_32(numbers: tuple[int, ...]) -> None:
    assert words_of(*numbers) == words_of(*(number % 2**32 for number in numbers))


def test_a_bit_of_counter_or_key_changes_half_of_the_bits_of_every_word() -> None:
    """Each of the 6 * 32 means is of 24,576 bits; 6 standard deviations from half is 0.019."""
    generator = np.random.default_rng(0)
    starts = generator.integers(0, 2**32, (192, 6))
    for flipped in range(6 * 32):
        place, bit = divmod(flipped, 32)
        changed = 0
        for start in starts:
            other = start.copy()
            other[place] ^= 1 << bit
            pairs = zip(words_of(*start), words_of(*other), strict=True)
            changed += sum((one ^ two).bit_count() for one, two in pairs)
        assert abs(changed / (192 * 128) - 0.5) < 0.02, (place, bit)


# --- Numbers from words --------------------------------------------------------------------------


@given(words, st.one_of(st.integers(1, 2**32), st.integers(1, 20)))
def test_below_is_the_floor_of_the_scaled_word(word: int, n: int) -> None:
    number = int(below(np.uint32(word), n))
    assert number == word * n // 2**32
    assert 0 <= number < n


@given(st.one_of(st.integers(1, 2**32), st.integers(1, 20)), st.data())
def test_below_maps_equally_many_words_to_each_number_except_one(
    n: int, data: st.DataObject
) -> None:
    number = data.draw(st.integers(0, n - 1))
    first, end = (-(-each * 2**32 // n) for each in (number, number + 1))
    assert 2**32 // n <= end - first <= 2**32 // n + 1
    assert int(below(np.uint32(first), n)) == int(below(np.uint32(end - 1), n)) == number
    if first > 0:
        assert int(below(np.uint32(first - 1), n)) == number - 1


@given(words)
def test_a_coin_is_true_for_the_upper_half_of_the_words(word: int) -> None:
    assert bool(coin(np.uint32(word))) == (word >= 2**31)


def test_the_coin_changes_in_the_middle() -> None:
    assert [bool(coin(np.uint32(word))) for word in (0, 2**31 - 1, 2**31, 2**32 - 1)] == [
        False, False, True, True,
    ]  # fmt: skip


@given(words)
def test_unit_is_the_middle_of_the_words_interval(word: int) -> None:
    # Exact, because float64 has more than 33 bits.
    assert float(unit(np.uint32(word))) == (word + 0.5) / 2**32


def test_units_are_strictly_between_0_and_1() -> None:
    assert float(unit(np.uint32(0))) == 2.0**-33
    assert float(unit(np.uint32(2**32 - 1))) == 1 - 2.0**-33


# --- Counters ------------------------------------------------------------------------------------


def corner_words(
    seed: int, epoch: int, indices: NDArray[np.int64], n_views: int = 1
) -> NDArray[np.int64]:
    """Return the words of block 1 that a plan contains unchanged: (N * n_views, 2)."""
    plan = draw_plan(
        indices, seed=seed, epoch=epoch, settings=PixMixSettings(k=0), size=(20, 13),
        source_size=(20, 13), flip=False, views=n_views, n_mixing_images=5,
    )  # fmt: skip
    return np.stack([plan.samples[name].astype(np.int64) for name in ("top_word", "left_word")], 1)


@given(
    seed=st.one_of(st.integers(-(2**70), 2**70), st.integers(-2, 2)),
    epoch=words,
    index=words,
    n_views=st.integers(1, 5),
)
def test_the_counter_has_block_index_epoch_stream_and_view_and_the_key_is_the_seed(
    seed: int, epoch: int, index: int, n_views: int
) -> None:
    found = corner_words(seed, epoch, np.array([index]), n_views)
    key = (seed % 2**64 % 2**32, seed % 2**64 >> 32)
    for view in range(n_views):
        counter = (1, index, epoch, int(Stream.PIXMIX) * 2**24 + view)
        assert tuple(found[view].tolist()) == reference_words(counter, key)[2:]


def test_view_and_stream_fit_into_one_word() -> None:
    assert INDEX_LIMIT == 2**32
    assert VIEW_LIMIT == 2**24
    assert sorted(int(stream) for stream in Stream) == list(range(len(Stream)))
    assert len(Stream) * VIEW_LIMIT <= 2**32


def test_seed_1_epoch_0_is_not_seed_0_epoch_1() -> None:
    """They are equal if a program adds seed and epoch."""
    indices = np.arange(1000)
    one, other = corner_words(1, 0, indices), corner_words(0, 1, indices)
    assert not (one == other).all(axis=1).any()


def test_seeds_epochs_indices_and_views_have_different_words() -> None:
    """Two of the 36,864 pairs of words are equal by chance for 1 in 2.7e10 seeds."""
    seeds = [0, 1, 2, 3, -1, 2**32, 2**32 + 1, 2**63]
    found = np.concatenate(
        [
            corner_words(seed, epoch, np.arange(192), n_views=3)
            for seed in seeds
            for epoch in range(8)
        ]
    )
    assert found.shape == (36_864, 2)
    assert len(np.unique(found, axis=0)) == len(found)


def test_seeds_are_taken_modulo_2_to_the_64() -> None:
    indices = np.arange(50)
    for seed in (0, 5, 2**64 - 1):
        for other in (seed - 2**64, seed + 2**64):
            assert np.array_equal(corner_words(seed, 3, indices), corner_words(other, 3, indices))


def test_crops_use_the_words_of_their_own_stream() -> None:
    # So many positions that a corner is the upper 31 bits of its word.
    side = 2**31 - 1
    plan = draw_plan(
        np.arange(500), seed=4, epoch=2, settings=None, size=(1, 1), source_size=(side, side),
        flip=False, views=1, n_mixing_images=0,
    )  # fmt: skip
    for index, sample in enumerate(plan.samples):
        _, top, left, _ = reference_words((0, index, 2, int(Stream.CROP) * 2**24), (4, 0))
        corner = (int(sample["crop_top"]), int(sample["crop_left"]))
        assert corner == (top * side >> 32, left * side >> 32)


def test_all_counters_have_different_words() -> None:
    """Counters of different stream, block, view, sample, epoch or seed."""
    small = range(3)
    found = {
        words_of(block, index, epoch, int(stream) * 2**24 + view, seed % 2**32, seed >> 32)
        for seed, epoch, index, block, stream, view in product(
            (0, 1, 2**32, 2**32 + 1), small, small, small, Stream, small
        )
    }
    assert len(found) == 4 * 3**4 * len(Stream)


@pytest.mark.parametrize("axis", ["index", "epoch", "seed", "view"])
def test_neighboring_counters_are_uniform_and_uncorrelated(axis: str) -> None:
    """Two tests of uniformity and one of a correlation each, at a rate of 1 in 10,000."""
    n = 4000
    if axis == "index":
        found = corner_words(7, 3, np.arange(n))
    elif axis == "view":
        found = corner_words(7, 3, np.arange(1), n_views=n)
    else:
        # Only the seed or the epoch changes.
        step = {"epoch": (0, 1), "seed": (1, 0)}[axis]
        found = np.concatenate(
            [corner_words(7 + step[0] * i, 3 + step[1] * i, np.arange(1)) for i in range(n)]
        )
    units = (found + 0.5) / 2**32
    for column in units.T:
        assert stats.kstest(column, "uniform").pvalue > IMPROBABLE
        assert stats.pearsonr(column[:-1], column[1:]).pvalue > IMPROBABLE
    assert stats.pearsonr(units[:, 0], units[:, 1]).pvalue > IMPROBABLE
