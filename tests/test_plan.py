from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipelines.generate.plan import cut, ranges_of, share, spread, subtract

n_pictures = st.integers(1, 200)
chunk_sizes = st.integers(1, 40)


@st.composite
def ranges(draw: st.DrawFn) -> list[range]:
    starts = draw(st.lists(st.integers(0, 220), max_size=6))
    return [range(start, start + draw(st.integers(0, 60))) for start in starts]


@given(n_pictures, ranges())
def test_subtract_leaves_exactly_what_is_not_taken(n: int, taken: list[range]) -> None:
    left = subtract(range(n), taken)
    numbers = [index for pictures in left for index in pictures]
    assert numbers == sorted(set(range(n)).difference(*taken))
    assert left == ranges_of(numbers)


@given(n_pictures, ranges(), chunk_sizes)
def test_cut_keeps_every_picture_and_crosses_no_multiple(
    n: int, taken: list[range], chunk: int
) -> None:
    left = subtract(range(n), taken)
    pieces = list(cut(left, chunk))
    assert [i for piece in pieces for i in piece] == [i for pictures in left for i in pictures]
    assert all(piece.start // chunk == (piece.stop - 1) // chunk for piece in pieces)


@given(n_pictures, ranges(), chunk_sizes, st.integers(1, 9))
def test_tasks_partition_the_pictures(
    n: int, taken: list[range], chunk: int, num_tasks: int
) -> None:
    pieces = list(cut(subtract(range(n), taken), chunk))
    shares = [share(pieces, chunk, task, num_tasks) for task in range(num_tasks)]
    assert sorted((p.start, p.stop) for each in shares for p in each) == [
        (p.start, p.stop) for p in pieces
    ]


@given(n_pictures, st.integers(0, 200), ranges(), chunk_sizes, st.integers(1, 9))
def test_a_picture_falls_to_the_same_task_whatever_is_done_and_however_large_the_set(
    n: int, more: int, taken: list[range], chunk: int, num_tasks: int
) -> None:
    for task in range(num_tasks):
        whole = share(cut([range(n + more)], chunk), chunk, task, num_tasks)
        rest = share(cut(subtract(range(n), taken), chunk), chunk, task, num_tasks)
        assert {i for piece in rest for i in piece} <= {i for piece in whole for i in piece}


@given(st.integers(0, 100), n_pictures)
def test_spread_gives_different_pictures_of_the_set_from_the_first_on(count: int, n: int) -> None:
    chosen = list(spread(count, n))
    assert len(chosen) == min(count, n)
    assert chosen == sorted(set(chosen))
    assert all(0 <= index < n for index in chosen)
    assert chosen[:1] == [0] * bool(chosen)
    gaps = {after - before for before, after in pairwise([*chosen, n])}
    assert not gaps or max(gaps) - min(gaps) <= 1
