"""Datasets of image files: the same bytes by any tasks, whole, healed by the same command."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import PipelineError
from pipelines.generate import generator
from pipelines.generate.generator import decode, pixel_sha256
from pipelines.generate.verify import verify_images
from pipelines.system import files as locks
from pipelines.system.files import file_sha256, folder_lock
from pipelines.system.processes import run_chunks
from stripes import JobSpec, Stripes, image_set, make, tree


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the dataset that `image_set` asks for, made by one process in one go."""
    folder = tmp_path_factory.mktemp("unbroken") / "set"
    make(image_set(folder))
    return tree(folder)


def renderings(journal: Path) -> dict[int, int]:
    """How often each image was generated."""
    return {int(note.name): len(note.read_text().split()) for note in journal.iterdir()}


# --- What lies on the disk ---------------------------------------------------------------------


def test_a_set_has_images_records_and_a_manifest_that_agree(tmp_path: Path) -> None:
    stripes = Stripes(seed=5)
    result = make(image_set(tmp_path / "set", stripes))
    assert (result.n, result.generated, result.whole, result.complete) == (10, 10, 10, True)
    files = tree(tmp_path / "set")
    assert set(files) == {"manifest.json", "metadata.jsonl"} | {
        f"images/{index:08d}.png" for index in range(10)
    }
    records = [json.loads(line) for line in files["metadata.jsonl"].splitlines()]
    assert [record["index"] for record in records] == list(range(10))
    for index, record in enumerate(records):
        image = stripes.image(index)
        assert record["sha256"] == pixel_sha256(image)
        assert record["seed"] == 5
        np.testing.assert_array_equal(decode(files[record["file"]]), image)
    manifest = json.loads(files["manifest.json"])
    assert manifest["images"] == 10
    assert manifest["licence"] == "CC0-1.0"
    assert manifest["settings"] == {"seed": 5, "height": 20, "width": 36, "format": "png"}
    assert manifest["drafts"] == sum(1 + index % 3 for index in range(10))
    assert manifest["acceptance_rate"] == pytest.approx(10 / manifest["drafts"], abs=1e-6)
    assert manifest["metadata_sha256"] == file_sha256(tmp_path / "set" / "metadata.jsonl")


def test_torchvision_reads_a_set_as_one_class(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    make(image_set(tmp_path / "mixing-set" / "stripes"))
    folder = datasets.ImageFolder(tmp_path / "mixing-set")
    assert folder.classes == ["stripes"]
    assert len(folder) == 10


# --- Nothing but the settings shows --------------------------------------------------------------


@pytest.mark.parametrize(("jobs", "chunk"), [(2, 4), (3, 1), (1, 3), (2, 100)])
def test_neither_jobs_nor_chunks_show(
    tmp_path: Path, unbroken: dict[str, bytes], jobs: int, chunk: int
) -> None:
    make(image_set(tmp_path / "set", jobs=jobs, chunk=chunk))
    assert tree(tmp_path / "set") == unbroken


@pytest.mark.slow
def test_tasks_in_any_order_make_the_same_set(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    painted = []
    for task in (2, 0, 3, 1):
        result = make(image_set(tmp_path / "set", task_index=task, num_tasks=4, chunk=2))
        painted.append(result.generated)
        assert result.whole == sum(painted)
        assert result.complete == (task == 1)
    # Chunks 0 and 4 of 2 images are task 0's, and so on.
    assert painted == [2, 4, 2, 2]
    assert tree(tmp_path / "set") == unbroken


def test_tasks_at_the_same_time_make_the_same_set(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    tasks = [
        threading.Thread(
            target=make,
            args=(image_set(tmp_path / "set", chunk=1, task_index=task, num_tasks=3),),
        )
        for task in range(3)
    ]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    assert tree(tmp_path / "set") == unbroken


def test_a_task_that_starts_while_another_begins_the_set_joins_it(
    tmp_path: Path, unbroken: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other task's first files appear just as this one looks whose folder it is."""
    folder, list_files, began = tmp_path / "set", Path.iterdir, []

    def list_while_another_begins(path: Path) -> Iterator[Path]:
        if path == folder and not began:
            began.append(path)
            make(image_set(folder, chunk=1, task_index=0, num_tasks=2))
        return list_files(path)

    folder.mkdir()
    monkeypatch.setattr(Path, "iterdir", list_while_another_begins)
    make(image_set(folder, chunk=1, task_index=1, num_tasks=2))
    assert began
    assert tree(folder) == unbroken


def test_a_task_whose_lock_vanishes_with_a_closed_set_finds_the_set_complete(
    tmp_path: Path, unbroken: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This task records the last image; the other closes the set as this one opens its lock."""
    lock, closed = locks.folder_lock, []

    @contextmanager
    def lock_that_vanishes(path: Path, *, busy: str | None = None) -> Iterator[None]:
        records = len(list((path.parent / "done").glob("*")))
        if path.name == "state.lock" and records and not closed:
            closed.append(path)
            other = make(image_set(tmp_path / "set", chunk=1, task_index=0, num_tasks=2))
            assert other.complete
            raise FileNotFoundError(2, "No such file or directory", str(path))
        with lock(path, busy=busy):
            yield

    monkeypatch.setattr(locks, "folder_lock", lock_that_vanishes)
    result = make(image_set(tmp_path / "set", chunk=1, task_index=1, num_tasks=2))
    assert closed
    assert result.complete
    assert result.generated > 0
    assert tree(tmp_path / "set") == unbroken


@pytest.mark.slow
def test_a_set_that_grew_is_the_set_made_at_once(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    generator = Stripes(journal=journal)
    for n in (1, 6, 10):
        make(image_set(tmp_path / "set", generator, n=n))
    assert tree(tmp_path / "set") == unbroken
    assert renderings(journal) == dict.fromkeys(range(10), 1)


def test_a_complete_set_is_left_alone(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    make(image_set(tmp_path / "set"))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*.*")}
    result = make(image_set(tmp_path / "set"))
    assert (result.generated, result.whole) == (0, 10)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*.*")} == times
    assert tree(tmp_path / "set") == unbroken


@pytest.mark.parametrize("lost", [[0], [3, 4, 9], list(range(10))])
def test_lost_images_and_no_others_are_painted_again(
    tmp_path: Path, unbroken: dict[str, bytes], lost: list[int]
) -> None:
    make(image_set(tmp_path / "set"))
    for index in lost:
        (tmp_path / "set" / "images" / f"{index:08d}.png").unlink()
    assert make(image_set(tmp_path / "set")).generated == len(lost)
    assert tree(tmp_path / "set") == unbroken


@pytest.mark.slow
def test_a_task_does_not_vouch_for_lost_images_of_another(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    make(image_set(tmp_path / "set"))
    for index in (0, 5):
        (tmp_path / "set" / "images" / f"{index:08d}.png").unlink()
    first = make(image_set(tmp_path / "set", task_index=0, num_tasks=2))
    assert (first.generated, first.whole, first.complete) == (1, 9, False)
    second = make(image_set(tmp_path / "set", task_index=1, num_tasks=2))
    assert (second.generated, second.whole, second.complete) == (1, 10, True)
    assert tree(tmp_path / "set") == unbroken


def test_a_lost_images_folder_comes_back(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    make(image_set(tmp_path / "set"))
    for path in (tmp_path / "set" / "images").iterdir():
        path.unlink()
    (tmp_path / "set" / "images").rmdir()
    make(image_set(tmp_path / "set"))
    assert tree(tmp_path / "set") == unbroken


def faults(folder: Path) -> list[str]:
    return verify_images(folder, lambda _: Stripes(), sample=4).faults


def change_line(path: Path, number: int, content: bytes) -> None:
    """Put other content in the place of a line (from 0), newline included."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:number], content, *lines[number + 1 :]]))


@pytest.mark.parametrize("content", [b"", b"junk\n", b"{}\n", b'{"index":3}\n', b"\xff"])
@pytest.mark.parametrize("lost", [[], [6]])
def test_changed_records_of_a_complete_set_are_made_again(
    tmp_path: Path, unbroken: dict[str, bytes], content: bytes, lost: list[int]
) -> None:
    asked = image_set(tmp_path / "set")
    make(asked)
    change_line(asked.metadata, 3, content)
    for index in lost:
        (asked.images / f"{index:08d}.png").unlink()
    (fault,) = faults(asked.folder)
    assert "metadata.jsonl is not the file that the manifest names" in fault
    assert make(asked).complete
    assert tree(asked.folder) == unbroken


@pytest.mark.slow
def test_a_changed_value_of_a_record_is_not_taken_into_a_set_that_grows(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    asked = image_set(tmp_path / "set", n=6)
    make(asked)
    asked.metadata.write_bytes(asked.metadata.read_bytes().replace(b'"angle":2', b'"angle":7'))
    first = make(replace(asked, n=10, task_index=0, num_tasks=2))
    assert (first.whole, first.complete) == (6, False)
    assert make(replace(asked, n=10, task_index=1, num_tasks=2)).complete
    assert tree(asked.folder) == unbroken


def test_parts_that_a_killed_run_left_stand_in_for_changed_records(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    """It was killed after the manifest, and before it removed what the making needed."""
    asked = image_set(tmp_path / "set")
    make(asked)
    asked.done.mkdir(parents=True)
    part = asked.done / f"00000000-00000010.{asked.job().request.mark}.jsonl"
    part.write_bytes(asked.metadata.read_bytes())
    change_line(asked.metadata, 3, b"junk\n")
    assert make(asked).generated == 0
    assert tree(asked.folder) == unbroken


def test_lost_metadata_comes_back(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    asked = image_set(tmp_path / "set")
    make(asked)
    asked.metadata.unlink()
    (fault,) = faults(asked.folder)
    assert "metadata.jsonl is missing" in fault
    assert make(asked).generated == 10
    assert tree(asked.folder) == unbroken


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"junk\n", b"{}\n", b'{"index":3}\n', b"\xff"])
def test_records_of_a_set_in_the_making_that_are_damaged_are_made_again(
    tmp_path: Path, unbroken: dict[str, bytes], content: bytes
) -> None:
    asked = image_set(tmp_path / "set", chunk=5, num_tasks=2)
    make(asked)
    (part,) = asked.done.iterdir()
    change_line(part, 3, content)
    # The other task does not close the dataset, and tells what is missing. Without its line end a
    # record takes the next one with it; a lost line shifts those behind it.
    missing = (3, 4) if content in {b"", b"\xff"} else (3,)
    assert make(replace(asked, task_index=1)).missing == missing
    result = make(asked)
    assert (result.generated, result.complete) == (len(missing), True)
    assert tree(asked.folder) == unbroken


def test_a_damaged_line_of_a_set_that_grows_is_made_again(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    asked = image_set(tmp_path / "set", n=8, chunk=2)
    make(asked)
    # It begins to grow, by which its records become those of a dataset in the making.
    make(replace(asked, n=10, task_index=1, num_tasks=2))
    (part,) = asked.done.glob("00000000-*")
    change_line(part, 3, b"")
    assert make(replace(asked, n=10)).generated == 7
    assert tree(asked.folder) == unbroken


# --- Interruptions -------------------------------------------------------------------------------

MAKE_A_SLOW_SET = """
import sys
from pathlib import Path
from stripes import Stripes, image_set, make

if __name__ == "__main__":
    folder, journal, jobs = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    generator = Stripes(journal=journal, pause=0.02)
    make(image_set(folder, generator, n=60, jobs=jobs))
"""


def start_slow_set(script: Path, folder: Path, journal: Path, jobs: int) -> subprocess.Popen[str]:
    script.write_text(MAKE_A_SLOW_SET)
    return subprocess.Popen(
        [sys.executable, str(script), str(folder), str(journal), str(jobs)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )


def is_running(process: int) -> bool:
    """Whether a process lives; one that ended and that nobody waits for does not."""
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_killed_run_is_continued_and_loses_only_what_was_in_hand(
    tmp_path: Path, seed: int
) -> None:
    jobs, chunk, kills = 2, 4, 3
    journal = tmp_path / "journal"
    journal.mkdir()
    moments = random.Random(seed)
    for _ in range(kills):
        run = start_slow_set(tmp_path / "make.py", tmp_path / "set", journal, jobs)
        time.sleep(moments.uniform(0.3, 1.2))
        run.kill()
        run.communicate()
        # The next run finds only whole images, whatever moment it was.
        images = tmp_path / "set" / "images"
        for path in images.glob("[0-9]*") if images.exists() else ():
            np.testing.assert_array_equal(
                decode(path.read_bytes()), Stripes().image(int(path.stem))
            )
    run = start_slow_set(tmp_path / "make.py", tmp_path / "set", journal, jobs)
    _, errors = run.communicate()
    assert (run.returncode, errors) == (0, "")
    make(image_set(tmp_path / "at once", n=60))
    assert tree(tmp_path / "set") == tree(tmp_path / "at once")
    counts = renderings(journal)
    assert sorted(counts) == list(range(60))
    assert sum(counts.values()) - 60 <= kills * jobs * chunk


def test_what_a_killed_writer_left_goes(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    make(image_set(tmp_path / "set", num_tasks=2))
    for name in ("images/.00000009.png.01234567.partial", ".manifest.json.01234567.partial"):
        (tmp_path / "set" / name).write_bytes(b"half")
    make(image_set(tmp_path / "set"))
    assert tree(tmp_path / "set") == unbroken


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_no_worker_outlives_a_killed_run(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    run = start_slow_set(tmp_path / "make.py", tmp_path / "set", journal, 2)
    while len(list(journal.iterdir())) < 6:
        time.sleep(0.05)
    run.kill()
    run.communicate()
    workers = {int(line) for note in journal.iterdir() for line in note.read_text().split()}
    assert workers
    for _ in range(100):
        if not any(map(is_running, workers)):
            break
        time.sleep(0.1)
    assert [worker for worker in workers if is_running(worker)] == []


def test_ctrl_c_keeps_the_chunks_in_hand(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    run = start_slow_set(tmp_path / "make.py", tmp_path / "set", journal, 2)
    while len(list(journal.iterdir())) < 6:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate()
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert len(renderings(journal)) < 60
    make(image_set(tmp_path / "set", Stripes(journal=journal), n=60))
    assert renderings(journal) == dict.fromkeys(range(60), 1)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("killed", "a worker process was killed.*fewer --jobs"),
        ("memory", "memory ran out with 2 jobs.*fewer --jobs"),
        ("disk", "the disk of .* is full; complete files are kept"),
    ],
)
def test_trouble_in_a_worker_is_one_line_and_the_same_request_continues(
    tmp_path: Path, unbroken: dict[str, bytes], trouble: str, message: str
) -> None:
    mended = tmp_path / "mended"
    generator = Stripes(trouble=trouble, trouble_at=5, until=mended)
    asked = image_set(tmp_path / "set", generator, jobs=2, chunk=2)
    with pytest.raises(PipelineError, match=message) as caught:
        make(asked)
    assert "\n" not in str(caught.value)
    mended.touch()
    make(asked)
    assert tree(tmp_path / "set") == unbroken


def test_a_mistake_in_the_generator_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a mistake in the generator"):
        make(image_set(tmp_path / "set", Stripes(trouble="mistake", trouble_at=5)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:  # noqa: ANN401
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("may not mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_what_is_whole_and_is_continued(tmp_path: Path, small_disk: Path) -> None:
    asked = image_set(small_disk / "set", n=200)
    with pytest.raises(PipelineError, match="is full; complete files are kept"):
        make(asked)
    painted = list((small_disk / "set" / "images").glob("[0-9]*"))
    assert 0 < len(painted) < 200
    for path in painted:
        np.testing.assert_array_equal(decode(path.read_bytes()), Stripes().image(int(path.stem)))
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert make(asked).generated < 200
    make(image_set(tmp_path / "set", n=200))
    assert tree(small_disk / "set") == tree(tmp_path / "set")


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: replace(r, generator=Stripes(seed=1)), "seed: .* begun with 0, .* says 1"),
        (lambda r: replace(r, generator=Stripes(height=48)), "height: .* with 20, .* says 48"),
        (lambda r: replace(r, format="webp"), "format: .* with png, .* says webp"),
        (
            lambda r: replace(r, generator=Stripes(version=2)),
            "stripes_version: .* with 1 .*, here is 2; install",
        ),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_a_resume_with_other_settings_is_refused_by_the_name_of_the_field(
    tmp_path: Path,
    change: Callable[[JobSpec], JobSpec],
    message: str,
    complete: bool,
) -> None:
    asked = image_set(tmp_path / "set")
    make(asked if complete else replace(asked, num_tasks=2))
    before = tree(tmp_path / "set")
    with pytest.raises(PipelineError, match=message):
        make(change(asked))
    assert tree(tmp_path / "set") == before


def test_a_resume_with_another_encoder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(image_set(tmp_path / "set", num_tasks=2))
    monkeypatch.setattr(generator, "encoder_version", lambda _format: "Pillow 1.0")
    with pytest.raises(
        PipelineError, match=r"encoder: .* begun with Pillow .*Pillow 1\.0; install"
    ):
        make(image_set(tmp_path / "set"))


def test_a_newer_package_with_the_same_images_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: dict[str, bytes]
) -> None:
    make(image_set(tmp_path / "set", num_tasks=2))
    monkeypatch.setattr(generator, "__version__", "99.0")
    make(image_set(tmp_path / "set"))
    assert tree(tmp_path / "set") == unbroken


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("thesis.tex", "", r"holds something else \(thesis.tex\)"),
        ("images", None, r"holds something else \(images\)"),
        ("manifest.json", "{", "manifest.json is damaged: "),
        ("manifest.json", '{"name": "app"}', "is not the manifest of a dataset of images"),
    ],
)
def test_a_folder_that_holds_something_else_is_refused_and_untouched(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(PipelineError, match=message):
        make(image_set(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", 7),
        ("status", "finished"),
        ("status", []),
        ("images", "x"),
        ("images", True),
        ("images", 0),
        ("settings", "x"),
        ("settings", {"format": ["png"]}),
        ("made_with", None),
        ("made_with", {"pixmix": "1.0"}),
        ("metadata_sha256", None),
        ("acceptance_rate", "x"),
    ],
)
def test_a_damaged_manifest_is_one_line_with_the_name_of_the_field(
    tmp_path: Path, field: str, value: object
) -> None:
    make(image_set(tmp_path / "set"))
    path = tmp_path / "set" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {field: value}))
    before = tree(tmp_path / "set")
    for use in (faults, lambda folder: make(image_set(folder))):
        with pytest.raises(PipelineError, match=rf"json is damaged.*\b{field}\b.*; copy it"):
            use(tmp_path / "set")
    assert tree(tmp_path / "set") == before


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("notes")
    with pytest.raises(PipelineError, match="is a file; choose a folder"):
        make(image_set(tmp_path / "set"))
    with pytest.raises(PipelineError, match="set is a file; choose a folder"):
        make(image_set(tmp_path / "set" / "below"))


def test_a_run_beside_one_on_the_same_images_is_refused(tmp_path: Path) -> None:
    asked = image_set(tmp_path / "set")
    asked.work.mkdir(parents=True)
    with (
        folder_lock(asked.work / "task-0-of-1.lock"),
        pytest.raises(PipelineError, match="task 0 of 1"),
    ):
        make(asked)
    with (
        folder_lock(asked.work / "task-3-of-4.lock"),
        pytest.raises(PipelineError, match=r"task-3-of-4.*--num-tasks"),
    ):
        make(asked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"jobs": 0}, "jobs is 0"),
        ({"chunk": -1}, "chunk is -1"),
        ({"task_index": 2, "num_tasks": 2}, "task 2, "),
        ({"format": "gif"}, "format is 'gif'"),
    ],
)
def test_a_request_refuses_nonsense(tmp_path: Path, changes: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=message):
        make(image_set(tmp_path / "set", **changes))
    assert not (tmp_path / "set").exists()


# --- closed before its end ------------------------------------------------------------------------


def interrupted(folder: Path, *, after: int, n: int = 10) -> None:
    """Begin a set, and end it after some images."""

    def run(work: Callable[[range], range], chunks: Any, **_: object) -> None:  # noqa: ANN401
        for chunk in chunks:
            if chunk.start >= after:
                raise KeyboardInterrupt
            work(chunk)

    with pytest.raises(KeyboardInterrupt):
        make(image_set(folder, n=n, chunk=2), run=run)


def test_a_smaller_n_closes_a_set_that_was_begun_larger(tmp_path: Path) -> None:
    interrupted(tmp_path / "set", after=6)
    closed = make(image_set(tmp_path / "set", n=6, chunk=2), run=run_chunks)
    assert (closed.generated, closed.complete) == (0, True)
    make(image_set(tmp_path / "whole", n=6, chunk=2))
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")
    assert verify_images(tmp_path / "set", lambda _: Stripes(), sample=6).good


def test_a_set_that_was_closed_grows_again(tmp_path: Path) -> None:
    interrupted(tmp_path / "set", after=4)
    make(image_set(tmp_path / "set", n=4, chunk=2))
    assert make(image_set(tmp_path / "set", n=10, chunk=2)).generated == 6
    make(image_set(tmp_path / "whole", n=10, chunk=2))
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")


def test_closing_paints_what_is_missing_before_the_new_end(tmp_path: Path) -> None:
    interrupted(tmp_path / "set", after=4)
    assert make(image_set(tmp_path / "set", n=7, chunk=2)).generated == 3


def test_images_behind_the_new_end_go_when_the_set_is_closed(tmp_path: Path) -> None:
    interrupted(tmp_path / "set", after=8)
    (tmp_path / "set" / "images" / "00000002.png").unlink()
    make(image_set(tmp_path / "set", n=5, chunk=2))
    assert len([*(tmp_path / "set" / "images").iterdir()]) == 5


def test_closing_never_throws_whole_images_away(tmp_path: Path) -> None:
    interrupted(tmp_path / "set", after=6)
    before = tree(tmp_path / "set")
    with pytest.raises(PipelineError, match="use --n 6 "):
        make(image_set(tmp_path / "set", n=3, chunk=2))
    assert tree(tmp_path / "set") == before
    assert make(image_set(tmp_path / "set", n=6, chunk=2)).complete


def test_an_interrupted_growth_is_not_thrown_away_by_the_command_of_before(tmp_path: Path) -> None:
    make(image_set(tmp_path / "set", n=4, chunk=2))
    interrupted(tmp_path / "set", after=8)
    before = tree(tmp_path / "set")
    with pytest.raises(PipelineError, match="use --n 8 "):
        make(image_set(tmp_path / "set", n=4, chunk=2))
    assert tree(tmp_path / "set") == before
    assert make(image_set(tmp_path / "set", n=10, chunk=2)).generated == 2
    make(image_set(tmp_path / "whole", n=10, chunk=2))
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")


@pytest.mark.parametrize("closed", [False, True])
def test_an_image_that_is_made_again_otherwise_has_its_own_record(
    tmp_path: Path, closed: bool
) -> None:
    folder = tmp_path / "set"
    if closed:
        make(image_set(folder, n=4, chunk=2))
    else:
        interrupted(folder, after=4, n=6)
    lost = folder / "images" / "00000001.png"
    before = file_sha256(lost)
    lost.unlink()
    make(image_set(folder, n=4 if closed else 6, chunk=2, generator=Stripes(offset=9)))
    records = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert records[1]["file_sha256"] == file_sha256(lost)
    assert file_sha256(lost) != before


def test_a_set_is_not_closed_under_the_hands_of_another_task(tmp_path: Path) -> None:
    interrupted(tmp_path / "set", after=4)
    lock = tmp_path / "set" / ".work" / "task-1-of-2.lock"
    smaller = image_set(tmp_path / "set", n=4, chunk=2, task_index=0, num_tasks=2)
    with folder_lock(lock), pytest.raises(PipelineError, match="task-1-of-2"):
        make(smaller)


def test_an_image_that_became_a_broken_link_or_empty_is_painted_again(tmp_path: Path) -> None:
    make(image_set(tmp_path / "set"))
    whole = tree(tmp_path / "set")
    link, empty = (tmp_path / "set" / "images" / f"0000000{i}.png" for i in (3, 5))
    link.unlink()
    link.symlink_to("nowhere.png")
    empty.write_bytes(b"")
    assert make(image_set(tmp_path / "set")).generated == 2
    assert tree(tmp_path / "set") == whole
    assert not link.is_symlink()


def test_each_line_names_its_image_as_hugging_face_looks_for_it(tmp_path: Path) -> None:
    make(image_set(tmp_path / "set"))
    for line in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines():
        assert (tmp_path / "set" / json.loads(line)["file_name"]).is_file()


def test_sets_without_that_key_are_read_and_grow(tmp_path: Path) -> None:
    make(image_set(tmp_path / "set", n=4))
    metadata, manifest = tmp_path / "set" / "metadata.jsonl", tmp_path / "set" / "manifest.json"
    records = [json.loads(line) for line in metadata.read_text().splitlines()]
    for record in records:
        del record["file_name"]
    lines = [json.dumps(record, separators=(",", ":")) + "\n" for record in records]
    metadata.write_text("".join(lines))
    content = json.loads(manifest.read_text()) | {"metadata_sha256": file_sha256(metadata)}
    manifest.write_text(json.dumps(content))
    assert not faults(tmp_path / "set")
    assert make(image_set(tmp_path / "set", n=6)).generated == 2


def test_a_complete_set_is_not_made_smaller(tmp_path: Path) -> None:
    make(image_set(tmp_path / "set"))
    whole = tree(tmp_path / "set")
    with pytest.raises(PipelineError, match="complete with 10 "):
        make(image_set(tmp_path / "set", n=9))
    assert tree(tmp_path / "set") == whole
