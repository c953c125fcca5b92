"""Worker pools: each chunk is done once, also if workers end or cannot start."""

import errno
import os
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from pipelines.errors import PipelineError
from pipelines.system.processes import run_chunks

CHUNKS = [range(i, i + 1) for i in range(6)]


def note(folder: Path, chunk: range) -> range:
    (folder / str(chunk.start)).touch()
    return chunk


def note_and_fail(folder: Path, chunk: range) -> range:
    note(folder, chunk)
    if chunk.start == 2:
        raise PipelineError("two")
    return chunk


def note_and_die(folder: Path, chunk: range) -> range:
    if chunk.start == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return note(folder, chunk)


def without_threads(_: range) -> range:
    raise RuntimeError("can't start new thread")


def done(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir())


@pytest.mark.parametrize("jobs", [1, 3, 10])
def test_each_chunk_is_processed_once(tmp_path: Path, jobs: int) -> None:
    finished: list[range] = []
    run_chunks(partial(note, tmp_path), CHUNKS, jobs=jobs, finished=finished.append)
    assert sorted(finished, key=lambda chunk: chunk.start) == CHUNKS
    assert done(tmp_path) == [*range(6)]


def test_an_error_ends_the_run_after_the_chunks_in_progress(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="two"):
        run_chunks(partial(note_and_fail, tmp_path), CHUNKS, jobs=1, finished=lambda _: None)
    assert done(tmp_path) == [0, 1, 2]


def test_a_killed_worker_raises_one_line(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="killed"):
        run_chunks(partial(note_and_die, tmp_path), CHUNKS, jobs=2, finished=lambda _: None)


@pytest.mark.parametrize("allowed", [1, 2])
def test_fewer_workers_than_jobs_do_all_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    start, left = SpawnProcess.start, [None] * allowed

    def limited(self: SpawnProcess) -> None:
        if not left:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        left.pop()
        start(self)

    monkeypatch.setattr(SpawnProcess, "start", limited)
    run_chunks(partial(note, tmp_path), CHUNKS, jobs=4, finished=lambda _: None)
    assert done(tmp_path) == [*range(6)]


def test_no_worker_at_all_raises_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: SpawnProcess) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(SpawnProcess, "start", none)
    with pytest.raises(PipelineError, match="ulimit -u"):
        run_chunks(partial(note, tmp_path), CHUNKS, jobs=4, finished=lambda _: None)


def test_workers_that_cannot_start_threads_raise_one_line() -> None:
    with pytest.raises(PipelineError, match="can't start new thread"):
        run_chunks(without_threads, CHUNKS, jobs=2, finished=lambda _: None)


def note_despite_ctrl_c(folder: Path, chunk: range) -> range:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)
    return note(folder, chunk)


def test_no_worker_handles_ctrl_c_not_even_the_first_of_a_command(tmp_path: Path) -> None:
    """The first process that Python starts also starts its resource tracker."""
    script = (
        "import sys, test_pool as t; from functools import partial; from pathlib import Path\n"
        "work = partial(t.note_despite_ctrl_c, Path(sys.argv[1]))\n"
        "t.run_chunks(work, t.CHUNKS[:2], jobs=2, finished=lambda _: None)"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])
    }
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=True)
    assert done(tmp_path) == [0, 1]
