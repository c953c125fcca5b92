"""Random words by counter: the published generator, and counters that never meet."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from pixmix.philox import Stream, below, coin, philox, unit

WORD = st.integers(0, 2**32 - 1)

# Random123's kat_vectors, philox 4x32 10: counter, key, result.
PUBLISHED = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_the_published_vectors_come_out(
    counter: list[int], key: list[int], expected: list[int]
) -> None:
    assert [int(word) for word in philox(*counter, *key)] == expected
    assert reference.philox_words(counter, key, 32) == expected


@given(st.lists(WORD, min_size=4, max_size=4), st.lists(WORD, min_size=2, max_size=2))
def test_the_kernel_equals_its_twin_in_whole_numbers(counter: list[int], key: list[int]) -> None:
    words = philox(*counter, *key)
    assert [int(word) for word in words] == reference.philox_words(counter, key, 32)


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=4, max_size=4),
    st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=2),
)
def test_the_twin_of_64_bits_has_numpy_s_raw_bits(counter: list[int], key: list[int]) -> None:
    """Only Philox 4x64-10 is numpy's: the twin differs from the 32-bit one by its constants."""
    # numpy counts on before it draws.
    before = (sum(word << 64 * i for i, word in enumerate(counter)) - 1) % 2**256
    theirs = np.random.Philox(
        counter=np.array([before >> 64 * i & 2**64 - 1 for i in range(4)], np.uint64),
        key=np.array(key, np.uint64),
    ).random_raw(4)
    assert [int(word) for word in theirs] == reference.philox_words(counter, key, 64)


@given(WORD, st.integers(1, 2**31))
def test_a_number_below_n_is_the_word_s_share_of_it(word: int, n: int) -> None:
    assert below(np.uint32(word), n) == word * n >> 32


@given(WORD)
def test_a_coin_is_the_highest_bit_and_a_unit_lies_inside(word: int) -> None:
    assert coin(np.uint32(word)) == (word >= 2**31)
    assert unit(np.uint32(word)) == (word + 0.5) / 2**32
    assert 0 < unit(np.uint32(word)) < 1


def test_no_counter_meets_another() -> None:
    """Seed 1 in epoch 0 is not seed 0 in epoch 1, nor index 1, nor another stream or view."""
    small = range(3)
    words = {
        tuple(
            int(word)
            for word in philox(block, index, epoch, int(stream) * 2**24 + view, seed, seed >> 32)
        )
        for seed, epoch, index, block, stream, view in product(
            (0, 1, 2**32), small, small, small, Stream, small
        )
    }
    assert len(words) == 3**5 * len(Stream)


def test_bits_are_even() -> None:
    """Each bit of 40,000 words: 20,000 ones, within 600: 6 deviations, 1 seed in 4 million."""
    words = np.array([philox(0, i, 0, 0, 3, 0) for i in range(10_000)], np.uint32).reshape(-1)
    for bit in range(32):
        assert abs(int((words >> np.uint32(bit) & np.uint32(1)).sum()) - 20_000) < 600
