"""Who paints which pictures: pure arithmetic on ranges of picture numbers."""

from collections.abc import Iterable, Iterator, Sequence


def check_task(task_index: int, num_tasks: int) -> None:
    """Refuse a task that is none of the tasks.

    Raises:
        ValueError: if task_index is not in 0 .. num_tasks - 1.
    """
    if not 0 <= task_index < num_tasks:
        raise ValueError(
            f"task_index is {task_index}; with num_tasks {num_tasks} give 0..{num_tasks - 1}"
        )


def subtract(whole: range, taken: Iterable[range]) -> list[range]:
    """Return what is left of a range without others, as ascending ranges.

    subtract(range(10), [range(2, 4), range(3, 5)]) -> [range(0, 2), range(5, 10)]
    """
    left = []
    start = whole.start
    for other in sorted(filter(len, taken), key=lambda pictures: pictures.start):
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
    for pictures in ranges:
        start = pictures.start
        while start < pictures.stop:
            stop = min((start // chunk + 1) * chunk, pictures.stop)
            yield range(start, stop)
            start = stop


def share(pieces: Iterable[range], chunk: int, task_index: int, num_tasks: int) -> list[range]:
    """Return the pieces that fall to one task: chunk c goes to task c modulo num_tasks.

        num_tasks = 3      task 0: chunks 0 3 6 ...   task 1: 1 4 7 ...   task 2: 2 5 8 ...

    What falls to a task does not depend on how many pictures the set will have, nor on what is
    already painted, so tasks agree without talking to each other.
    """
    return [piece for piece in pieces if piece.start // chunk % num_tasks == task_index]


def ranges_of(indices: Iterable[int]) -> list[range]:
    """Join ascending picture numbers to ranges.

    ranges_of([1, 2, 3, 7]) -> [range(1, 4), range(7, 8)]
    """
    joined: list[range] = []
    for index in indices:
        if joined and joined[-1].stop == index:
            joined[-1] = range(joined[-1].start, index + 1)
        else:
            joined.append(range(index, index + 1))
    return joined


def spread(count: int, n: int) -> Sequence[int]:
    """Return `count` picture numbers spread evenly over n, ascending, all n where n is smaller.

    spread(4, 10) -> 0, 2, 5, 7
    """
    count = min(count, n)
    return [position * n // count for position in range(count)]
