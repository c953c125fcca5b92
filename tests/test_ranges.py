"""Ranges of item numbers: subtract, cut and spread."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipelines.system.ranks import cut, ranges_of, spread, subtract

n_items = st.integers(1, 200)
chunk_sizes = st.integers(1, 40)


@st.composite
def ranges(draw: st.DrawFn) -> list[range]:
    starts = draw(st.lists(st.integers(0, 220), max_size=6))
    return [range(start, start + draw(st.integers(0, 60))) for start in starts]


@given(n_items, ranges())
def test_subtract_returns_exactly_the_items_not_taken(n: int, taken: list[range]) -> None:
    left = subtract(range(n), taken)
    numbers = [index for items in left for index in items]
    assert numbers == sorted(set(range(n)).difference(*taken))
    assert left == ranges_of(numbers)


@given(n_items, ranges(), chunk_sizes)
def test_cut_keeps_all_items_and_no_piece_crosses_a_multiple(
    n: int, taken: list[range], chunk: int
) -> None:
    left = subtract(range(n), taken)
    pieces = list(cut(left, chunk))
    assert [i for piece in pieces for i in piece] == [i for items in left for i in items]
    assert all(piece.start // chunk == (piece.stop - 1) // chunk for piece in pieces)


@given(st.integers(0, 100), n_items)
def test_spread_returns_distinct_evenly_spaced_items(count: int, n: int) -> None:
    chosen = list(spread(count, n))
    assert len(chosen) == min(count, n)
    assert chosen == sorted(set(chosen))
    assert all(0 <= index < n for index in chosen)
    assert chosen[:1] == [0] * bool(chosen)
    gaps = {after - before for before, after in pairwise([*chosen, n])}
    assert not gaps or max(gaps) - min(gaps) <= 1
