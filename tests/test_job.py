"""Resumable jobs, tested with simple items: files that hold their numbers."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashes import JOBS
from fake_job import fake_job
from pipelines.errors import PipelineError
from pipelines.shards.job import JobResult, make_chunk, merge, read_request, run_job
from pipelines.shards.output import Folder
from pipelines.system.files import folder_lock
from pipelines.system.ranks import Task, subtract
from shard_sets import run_here
from stripes import tree


def run(folder: Path, task: Task = Task(), **settings: Any) -> JobResult:  # noqa: ANN401, B008
    return run_job(fake_job(folder, **settings), task, run=run_here)


def make(folder: Path, items: range, content: bytes | None = None, **settings: Any) -> None:  # noqa: ANN401
    """Produce items without a run; content, if passed, replaces their record."""
    job = fake_job(folder, **settings)
    make_chunk(job, job.request.hash, items)
    if content is not None:
        (record,) = (folder / ".work" / "done").glob(f"{items.start:08d}-{items.stop:08d}.*")
        record.write_bytes(content)


def begin(folder: Path, **settings: Any) -> None:  # noqa: ANN401
    """Start a job without producing items."""
    run_job(fake_job(folder, **settings), run=lambda *_, **__: None)


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("unbroken") / "numbers"
    assert run(folder, n=10).complete
    return tree(folder)


# --- shares of tasks -----------------------------------------------------------------------------

n_items, chunk_sizes, counts = st.integers(1, 200), st.integers(1, 40), st.integers(1, 9)


@st.composite
def ranges(draw: st.DrawFn) -> list[range]:
    starts = draw(st.lists(st.integers(0, 220), max_size=6))
    return [range(start, start + draw(st.integers(0, 60))) for start in starts]


@given(n_items, ranges(), chunk_sizes, counts)
def test_tasks_partition_the_items(n: int, taken: list[range], chunk: int, count: int) -> None:
    left = subtract(range(n), taken)
    shares = [Task(index, count).share(left, chunk) for index in range(count)]
    items = [item for share in shares for piece in share for item in piece]
    assert sorted(items) == [item for piece in left for item in piece]


@given(n_items, st.integers(0, 200), ranges(), chunk_sizes, counts)
def test_an_item_always_belongs_to_the_same_task(
    n: int, more: int, taken: list[range], chunk: int, count: int
) -> None:
    for index in range(count):
        task = Task(index, count)
        whole = {item for piece in task.share([range(n + more)], chunk) for item in piece}
        rest = {item for p in task.share(subtract(range(n), taken), chunk) for item in p}
        assert rest <= whole


def test_tasks_close_an_exclusive_job_and_merge_closes_other_jobs(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    for exclusive in (True, False):
        folder = tmp_path / str(exclusive)
        results = [run(folder, Task(i, 3), n=10, exclusive=exclusive) for i in (2, 0, 1)]
        assert [result.complete for result in results] == [False, False, exclusive]
        assert [result.n_finished for result in results] == [2, 6, 10]
        if not exclusive:
            assert not (folder / "manifest.json").exists()
            assert merge(fake_job(folder, n=10)).complete
        assert tree(folder) == unbroken


# --- records -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made",
    [
        [range(10)],
        [range(7, 10), range(3), range(3, 7)],
        [range(6), range(2, 4), range(4, 10), range(9, 10)],
    ],
)
def test_records_are_joined_in_order_whether_or_not_they_overlap(
    tmp_path: Path, unbroken: dict[str, bytes], made: list[range]
) -> None:
    begin(tmp_path / "a", n=10)
    for items in made:
        make(tmp_path / "a", items, n=10)
    assert merge(fake_job(tmp_path / "a", n=10)).complete
    assert tree(tmp_path / "a") == unbroken


@pytest.mark.parametrize(
    ("made", "missing"),
    [([range(3), range(4, 10)], (range(3, 4),)), ([range(1, 6)], (range(1), range(6, 10)))],
)
def test_a_job_with_missing_items_is_not_closed(
    tmp_path: Path, made: list[range], missing: tuple[range, ...]
) -> None:
    begin(tmp_path, n=10)
    for items in made:
        make(tmp_path, items, n=10)
    assert merge(fake_job(tmp_path, n=10)).missing == missing
    assert not (tmp_path / "manifest.json").exists()


GOOD = [b'{"item": %d}\n' % item for item in range(4)]


@pytest.mark.parametrize(
    ("lines", "missing"),
    [
        ([GOOD[0], b"junk\n", *GOOD[2:]], [1]),
        ([GOOD[0], GOOD[2], *GOOD[2:]], [1]),
        ([GOOD[0], b"\xff\n", *GOOD[2:]], [1]),
        # A line without a line break joins the next one; a lost line shifts the lines after it.
        ([GOOD[0], b"\xff", *GOOD[2:]], [1, 2, 3]),
        ([GOOD[0], *GOOD[2:]], [1, 2, 3]),
        ([*GOOD[:3], GOOD[3].rstrip()], [3]),
        ([], [0, 1, 2, 3]),
    ],
)
@pytest.mark.parametrize("repaired", [True, False])
def test_items_with_a_damaged_record_are_produced_again(
    tmp_path: Path,
    unbroken: dict[str, bytes],
    lines: list[bytes],
    missing: list[int],
    repaired: bool,
) -> None:
    begin(tmp_path / "a", n=10)
    make(tmp_path / "a", range(4), b"".join(lines), n=10)
    make(tmp_path / "a", range(4, 10), n=10)
    if repaired:
        make(tmp_path / "a", range(1, 4), n=10)
        missing = [item for item in missing if item == 0]
    found = merge(fake_job(tmp_path / "a", n=10)) if missing else JobResult(n=10, complete=False)
    assert [item for items in found.missing for item in items] == missing
    result = run(tmp_path / "a", n=10)
    assert [item for items in result.made for item in items] == missing
    assert tree(tmp_path / "a") == unbroken


def test_only_items_with_a_lost_file_are_produced_again(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    for closed in (True, False):
        folder = tmp_path / str(closed)
        begin(folder, n=10)
        make(folder, range(10), n=10)
        if closed:
            merge(fake_job(folder, n=10))
        (folder / "3.txt").unlink()
        assert merge(fake_job(folder, n=10)).missing == (range(3, 4),)
        assert run(folder, n=10).made == (range(3, 4),)
        assert tree(folder) == unbroken


def test_files_with_other_names_are_not_records(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    begin(tmp_path / "a", n=10)
    make(tmp_path / "a", range(3), n=10)
    done = tmp_path / "a" / ".work" / "done"
    (record,) = done.iterdir()
    for name in ("sync-conflict.jsonl", f"3-4.{record.name[18:]}", f"{record.name}.bak"):
        (done / name).write_bytes(record.read_bytes())
    assert run(tmp_path / "a", n=10).made[0].start == 3
    assert tree(tmp_path / "a") == unbroken


def test_records_of_another_request_that_began_at_the_same_time_do_not_count(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    begin(tmp_path / "a", n=10)
    make(tmp_path / "a", range(10), n=10, seed=1)
    assert sum(map(len, run(tmp_path / "a", n=10).made)) == 10
    assert tree(tmp_path / "a") == unbroken


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [({"seed": 1}, "^seed: .* with 0, .* uses 1"), ({"version": 2}, "^v: .* with 1 .* this is 2")],
)
def test_other_settings_are_rejected_by_the_name_of_the_field(
    tmp_path: Path, complete: bool, changes: dict[str, Any], message: str
) -> None:
    run(tmp_path, Task() if complete else Task(0, 2))
    before = tree(tmp_path)
    with pytest.raises(PipelineError, match=message):
        run(tmp_path, **changes)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_store_with_other_files_is_rejected_and_not_touched(
    tmp_path: Path, exclusive: bool
) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(PipelineError, match=r"something else \(thesis.tex\)"):
        run(tmp_path, exclusive=exclusive)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "content", [b"{", b"[1]", b"\xff", b'{"settings": {}, "versions": {}}', b"[" * 200_000]
)
def test_a_damaged_request_is_rejected(tmp_path: Path, content: bytes) -> None:
    begin(tmp_path)
    (tmp_path / ".work" / "request.json").write_bytes(content)
    with pytest.raises(PipelineError, match=r"request\.json is damaged"):
        run(tmp_path)


def test_a_task_does_not_run_twice_or_beside_another_number_of_tasks(tmp_path: Path) -> None:
    begin(tmp_path, exclusive=True)
    for held, asked in (("task-0-of-2", Task(0, 2)), ("task-1-of-3", Task(0, 2))):
        with (
            folder_lock(tmp_path / ".work" / f"{held}.lock"),
            pytest.raises(PipelineError, match=r"-of-|task 0 of 2"),
        ):
            run(tmp_path, asked, exclusive=True)


def test_a_resizable_job_grows_and_keeps_finished_items(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    grows = {"exclusive": True, "resizable": True}
    run(tmp_path / "a", Task(0, 2), n=4, **grows)
    with pytest.raises(PipelineError, match="use --n 2 "):
        run(tmp_path / "a", n=1, **grows)
    assert run(tmp_path / "a", n=2, **grows).made == ()
    with pytest.raises(PipelineError, match="complete with 2 "):
        run(tmp_path / "a", n=1, **grows)
    assert run(tmp_path / "a", n=10, **grows).complete
    assert tree(tmp_path / "a") == unbroken


# --- interruptions -------------------------------------------------------------------------------


def stopped_after(n: int) -> Callable[..., None]:
    """Return a runner of chunks that is interrupted after n of them."""

    def run_some(work: Callable[[range], range], chunks: Iterable[range], **_: object) -> None:
        for chunk, _ in zip(chunks, range(n), strict=False):
            work(chunk)
        raise KeyboardInterrupt

    return run_some


@pytest.mark.parametrize("n", range(5))
def test_an_interrupted_run_keeps_finished_items(
    tmp_path: Path, unbroken: dict[str, bytes], n: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_job(fake_job(tmp_path / "a", n=10), run=stopped_after(n))
    request = read_request(Folder(path=tmp_path / "a"))
    assert request is not None
    assert request.n == 10
    assert sum(map(len, run(tmp_path / "a", n=10).made)) == 10 - 2 * n
    assert tree(tmp_path / "a") == unbroken


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_the_same_command_repairs_a_crash_before_any_disk_operation(
    tmp_path: Path, name: str
) -> None:
    output = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("crashes.py")), name, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    assert int(output.split()[-1]) > 15
