"""Arithmetic on ranges of item numbers."""

from collections.abc import Iterable, Iterator, Sequence


def subtract(whole: range, taken: Iterable[range]) -> list[range]:
    """Return what is left of a range without others, as ascending ranges.

    subtract(range(10), [range(2, 4), range(3, 5)]) -> [range(0, 2), range(5, 10)]
    """
    left = []
    start = whole.start
    for other in sorted(filter(len, taken), key=lambda items: items.start):
        if start < min(other.start, whole.stop):
            left.append(range(start, min(other.start, whole.stop)))
        start = max(start, other.stop)
    if start < whole.stop:
        left.append(range(start, whole.stop))
    return left


def cut(ranges: Iterable[range], chunk: int) -> Iterator[range]:
    """Cut ranges at the multiples of `chunk`, so that each piece lies in one chunk.

    cut([range(30, 70)], 32) -> range(30, 32), range(32, 64), range(64, 70)
    """
    for items in ranges:
        start = items.start
        while start < items.stop:
            stop = min((start // chunk + 1) * chunk, items.stop)
            yield range(start, stop)
            start = stop


def ranges_of(items: Iterable[int]) -> list[range]:
    """Join ascending numbers to ranges.

    ranges_of([1, 2, 3, 7]) -> [range(1, 4), range(7, 8)]
    """
    joined: list[range] = []
    for item in items:
        if joined and joined[-1].stop == item:
            joined[-1] = range(joined[-1].start, item + 1)
        else:
            joined.append(range(item, item + 1))
    return joined


def spread(count: int, n: int) -> Sequence[int]:
    """Return `count` numbers spread evenly over 0..n-1, ascending; all n where n is smaller.

    spread(4, 10) -> 0, 2, 5, 7
    """
    count = min(count, n)
    return [position * n // count for position in range(count)]
