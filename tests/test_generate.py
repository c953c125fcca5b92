import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from painters import Stripes, request, tree
from pipelines.errors import PipelineError
from pipelines.generate import sets
from pipelines.generate.encoding import (
    LOSSLESS,
    decode,
    encode,
    encoder_version,
    peak_signal_to_noise,
)
from pipelines.generate.painting import pixel_sha256
from pipelines.generate.sets import SetRequest, generate_set, read_manifest
from pipelines.generate.verify import Verdict, verify_set
from pipelines.system.files import file_sha256, folder_lock


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the set that `request` asks for, made by one process in one go."""
    folder = tmp_path_factory.mktemp("unbroken") / "set"
    generate_set(request(folder))
    return tree(folder)


def paintings(journal: Path) -> dict[int, int]:
    """How often each picture was painted."""
    return {int(note.name): len(note.read_text().split()) for note in journal.iterdir()}


# --- What lies on the disk ---------------------------------------------------------------------


def test_a_set_has_pictures_records_and_a_manifest_that_agree(tmp_path: Path) -> None:
    painter = Stripes(seed=5)
    result = generate_set(request(tmp_path / "set", painter))
    assert (result.n, result.painted, result.whole, result.complete) == (10, 10, 10, True)
    files = tree(tmp_path / "set")
    assert set(files) == {"manifest.json", "metadata.jsonl"} | {
        f"images/{index:08d}.png" for index in range(10)
    }
    records = [json.loads(line) for line in files["metadata.jsonl"].splitlines()]
    assert [record["index"] for record in records] == list(range(10))
    for index, record in enumerate(records):
        picture = painter.picture(index)
        assert record["sha256"] == pixel_sha256(picture)
        assert record["seed"] == 5
        np.testing.assert_array_equal(decode(files[record["file"]]), picture)
    manifest = json.loads(files["manifest.json"])
    assert manifest == result.manifest
    assert manifest["pictures"] == 10
    assert manifest["licence"] == "CC0-1.0"
    assert manifest["settings"] == {"seed": 5, "height": 20, "width": 36, "format": "png"}
    assert manifest["drafts"] == sum(1 + index % 3 for index in range(10))
    assert manifest["acceptance_rate"] == pytest.approx(10 / manifest["drafts"], abs=1e-6)
    assert manifest["metadata_sha256"] == file_sha256(tmp_path / "set" / "metadata.jsonl")


def test_torchvision_reads_a_set_as_one_class(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    generate_set(request(tmp_path / "mixing-set" / "stripes"))
    folder = datasets.ImageFolder(tmp_path / "mixing-set")
    assert folder.classes == ["stripes"]
    assert len(folder) == 10


def coloured_stripes() -> np.ndarray:
    """Stripes two pixels wide of red and green, of one luma, which 4:2:0 cannot keep."""
    picture = np.full((33, 50, 3), 60, np.uint8)
    picture[:, 0::4] = picture[:, 1::4] = (140, 60, 60)
    picture[:, 2::4] = picture[:, 3::4] = (60, 100, 60)
    return picture


@pytest.mark.parametrize("format", ["jpg", "png", "webp"])
def test_encoding_keeps_the_picture_and_is_repeatable(format: str) -> None:
    picture = coloured_stripes()
    content = encode(picture, format)
    decoded = decode(content)
    assert encode(picture, format) == content
    assert decoded.shape == (33, 50, 3)
    assert decoded.dtype == np.uint8
    if format in LOSSLESS:
        np.testing.assert_array_equal(decoded, picture)
    else:
        # Seen: 50.9 dB; 26.2 dB with 4:2:0.
        assert peak_signal_to_noise(decoded, picture) > 45
    assert encoder_version(format).startswith("Pillow ")


# --- Nothing but the settings shows --------------------------------------------------------------


@pytest.mark.parametrize(("jobs", "chunk"), [(2, 4), (3, 1), (1, 3), (2, 100)])
def test_neither_jobs_nor_chunks_show(
    tmp_path: Path, unbroken: dict[str, bytes], jobs: int, chunk: int
) -> None:
    generate_set(request(tmp_path / "set", jobs=jobs, chunk=chunk))
    assert tree(tmp_path / "set") == unbroken


def test_tasks_in_any_order_make_the_same_set(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    painted = []
    for task in (2, 0, 3, 1):
        result = generate_set(request(tmp_path / "set", task_index=task, num_tasks=4, chunk=2))
        painted.append(result.painted)
        assert result.whole == sum(painted)
        assert result.complete == (task == 1)
    # Chunks 0 and 4 of 2 pictures are task 0's, and so on.
    assert painted == [2, 4, 2, 2]
    assert tree(tmp_path / "set") == unbroken


def test_tasks_at_the_same_time_make_the_same_set(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    tasks = [
        threading.Thread(
            target=generate_set,
            args=(request(tmp_path / "set", chunk=1, task_index=task, num_tasks=3),),
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
            generate_set(request(folder, chunk=1, task_index=0, num_tasks=2))
        return list_files(path)

    folder.mkdir()
    monkeypatch.setattr(Path, "iterdir", list_while_another_begins)
    generate_set(request(folder, chunk=1, task_index=1, num_tasks=2))
    assert began
    assert tree(folder) == unbroken


def test_a_task_whose_lock_vanishes_with_a_closed_set_finds_the_set_complete(
    tmp_path: Path, unbroken: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This task records the last picture; the other closes the set as this one opens its lock."""
    lock, closed = sets.folder_lock, []

    @contextmanager
    def lock_that_vanishes(path: Path, *, busy: str | None = None) -> Iterator[None]:
        records = len(list((path.parent / "parts").glob("*")))
        if path.name == "records.lock" and records and not closed:
            closed.append(path)
            other = generate_set(request(tmp_path / "set", chunk=1, task_index=0, num_tasks=2))
            assert other.complete
            raise FileNotFoundError(2, "No such file or directory", str(path))
        with lock(path, busy=busy):
            yield

    monkeypatch.setattr(sets, "folder_lock", lock_that_vanishes)
    result = generate_set(request(tmp_path / "set", chunk=1, task_index=1, num_tasks=2))
    assert closed
    assert result.complete
    assert result.painted > 0
    assert tree(tmp_path / "set") == unbroken


def test_a_set_that_grew_is_the_set_made_at_once(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    painter = Stripes(journal=journal)
    for n in (1, 6, 10):
        generate_set(request(tmp_path / "set", painter, n=n))
    assert tree(tmp_path / "set") == unbroken
    assert paintings(journal) == dict.fromkeys(range(10), 1)


def test_a_complete_set_is_left_alone(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    generate_set(request(tmp_path / "set"))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*.*")}
    result = generate_set(request(tmp_path / "set"))
    assert (result.painted, result.whole) == (0, 10)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*.*")} == times
    assert tree(tmp_path / "set") == unbroken


@pytest.mark.parametrize("lost", [[0], [3, 4, 9], list(range(10))])
def test_lost_pictures_and_no_others_are_painted_again(
    tmp_path: Path, unbroken: dict[str, bytes], lost: list[int]
) -> None:
    generate_set(request(tmp_path / "set"))
    for index in lost:
        (tmp_path / "set" / "images" / f"{index:08d}.png").unlink()
    assert generate_set(request(tmp_path / "set")).painted == len(lost)
    assert tree(tmp_path / "set") == unbroken


def test_a_task_does_not_vouch_for_lost_pictures_of_another(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    generate_set(request(tmp_path / "set"))
    for index in (0, 5):
        (tmp_path / "set" / "images" / f"{index:08d}.png").unlink()
    first = generate_set(request(tmp_path / "set", task_index=0, num_tasks=2))
    assert (first.painted, first.whole, first.complete) == (1, 9, False)
    second = generate_set(request(tmp_path / "set", task_index=1, num_tasks=2))
    assert (second.painted, second.whole, second.complete) == (1, 10, True)
    assert tree(tmp_path / "set") == unbroken


def test_a_lost_images_folder_comes_back(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    generate_set(request(tmp_path / "set"))
    for path in (tmp_path / "set" / "images").iterdir():
        path.unlink()
    (tmp_path / "set" / "images").rmdir()
    generate_set(request(tmp_path / "set"))
    assert tree(tmp_path / "set") == unbroken


def change_line(path: Path, number: int, content: bytes) -> None:
    """Put other content in the place of a line (from 0), newline included."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:number], content, *lines[number + 1 :]]))


@pytest.mark.parametrize("content", [b"", b"junk\n", b"{}\n", b'{"index":3}\n', b"\xff"])
@pytest.mark.parametrize("lost", [[], [6]])
def test_changed_records_of_a_complete_set_are_made_again(
    tmp_path: Path, unbroken: dict[str, bytes], content: bytes, lost: list[int]
) -> None:
    asked = request(tmp_path / "set")
    generate_set(asked)
    change_line(asked.metadata, 3, content)
    for index in lost:
        (asked.images / f"{index:08d}.png").unlink()
    assert verify(asked.folder).faults == [
        "metadata.jsonl is not the file that the manifest names; give the command that made the "
        "set again, which paints all anew"
    ]
    assert generate_set(asked).complete
    assert tree(asked.folder) == unbroken


def test_a_changed_value_of_a_record_is_not_taken_into_a_set_that_grows(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    asked = request(tmp_path / "set", n=6)
    generate_set(asked)
    asked.metadata.write_bytes(asked.metadata.read_bytes().replace(b'"angle":2', b'"angle":7'))
    first = generate_set(replace(asked, n=10, task_index=0, num_tasks=2))
    assert (first.whole, first.complete) == (6, False)
    assert generate_set(replace(asked, n=10, task_index=1, num_tasks=2)).complete
    assert tree(asked.folder) == unbroken


def test_parts_that_a_killed_run_left_stand_in_for_changed_records(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    """It was killed after the manifest, and before it removed what the making needed."""
    asked = request(tmp_path / "set")
    generate_set(asked)
    asked.parts.mkdir(parents=True)
    (asked.parts / "00000000-00000010.jsonl").write_bytes(asked.metadata.read_bytes())
    change_line(asked.metadata, 3, b"junk\n")
    assert generate_set(asked).painted == 0
    assert tree(asked.folder) == unbroken


def test_lost_metadata_comes_back(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    asked = request(tmp_path / "set")
    generate_set(asked)
    asked.metadata.unlink()
    assert verify(asked.folder).faults == [
        "metadata.jsonl is missing; give the command that made the set again, which paints all anew"
    ]
    assert generate_set(asked).painted == 10
    assert tree(asked.folder) == unbroken


@pytest.mark.parametrize("content", [b"", b"junk\n", b"{}\n", b'{"index":3}\n', b"\xff"])
def test_records_of_a_set_in_the_making_that_are_damaged_are_made_again(
    tmp_path: Path, unbroken: dict[str, bytes], content: bytes
) -> None:
    asked = request(tmp_path / "set", chunk=5, num_tasks=2)
    generate_set(asked)
    (part,) = asked.parts.iterdir()
    change_line(part, 3, content)
    # The other task cannot close the set, and says what does.
    with pytest.raises(PipelineError, match=r"jsonl, line \d .*the command that made the set"):
        generate_set(replace(asked, task_index=1))
    result = generate_set(asked)
    # Without its line end a record takes the next one with it; a lost line shifts those behind it.
    assert result.painted == (2 if content in {b"", b"\xff"} else 1)
    assert result.complete
    assert tree(asked.folder) == unbroken


def test_a_damaged_line_of_a_set_that_grows_is_made_again(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    asked = request(tmp_path / "set", n=8, chunk=2)
    generate_set(asked)
    # It begins to grow, by which its manifest no longer names its records.
    generate_set(replace(asked, n=10, task_index=1, num_tasks=2))
    change_line(asked.metadata, 3, b"")
    assert generate_set(replace(asked, n=10)).painted == 7
    assert tree(asked.folder) == unbroken


# --- Interruptions -------------------------------------------------------------------------------

MAKE_A_SLOW_SET = """
import sys
from pathlib import Path
from painters import Stripes, request
from pipelines.generate.sets import generate_set

if __name__ == "__main__":
    folder, journal, jobs = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    painter = Stripes(journal=journal, pause=0.02)
    generate_set(request(folder, painter, n=60, jobs=jobs))
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
        # The next run finds only whole pictures, whatever moment it was.
        images = tmp_path / "set" / "images"
        for path in images.glob("[0-9]*") if images.exists() else ():
            np.testing.assert_array_equal(
                decode(path.read_bytes()), Stripes().picture(int(path.stem))
            )
    run = start_slow_set(tmp_path / "make.py", tmp_path / "set", journal, jobs)
    _, errors = run.communicate()
    assert (run.returncode, errors) == (0, "")
    generate_set(request(tmp_path / "at once", n=60))
    assert tree(tmp_path / "set") == tree(tmp_path / "at once")
    counts = paintings(journal)
    assert sorted(counts) == list(range(60))
    assert sum(counts.values()) - 60 <= kills * jobs * chunk


def test_a_crash_before_any_disk_operation_loses_nothing_that_was_recorded(tmp_path: Path) -> None:
    script = Path(__file__).with_name("crashes.py")
    output = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    assert int(output.split()[-1]) > 40


def test_what_a_killed_writer_left_goes(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    generate_set(request(tmp_path / "set", num_tasks=2))
    for name in ("images/.00000009.png.01234567.partial", ".manifest.json.01234567.partial"):
        (tmp_path / "set" / name).write_bytes(b"half")
    generate_set(request(tmp_path / "set"))
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
    assert len(paintings(journal)) < 60
    generate_set(request(tmp_path / "set", Stripes(journal=journal), n=60))
    assert paintings(journal) == dict.fromkeys(range(60), 1)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("killed", "a worker process was killed.*fewer --jobs"),
        ("memory", "memory ran out with 2 jobs.*fewer --jobs"),
        ("disk", "the disk of .* is full; what is whole is kept"),
    ],
)
def test_trouble_in_a_worker_is_one_line_and_the_same_request_continues(
    tmp_path: Path, unbroken: dict[str, bytes], trouble: str, message: str
) -> None:
    mended = tmp_path / "mended"
    painter = Stripes(trouble=trouble, trouble_at=5, until=mended)
    asked = request(tmp_path / "set", painter, jobs=2, chunk=2)
    with pytest.raises(PipelineError, match=message) as caught:
        generate_set(asked)
    assert "\n" not in str(caught.value)
    mended.touch()
    generate_set(asked)
    assert tree(tmp_path / "set") == unbroken


def test_a_mistake_in_the_painter_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a mistake in the painter"):
        generate_set(request(tmp_path / "set", Stripes(trouble="mistake", trouble_at=5)))


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
    asked = request(small_disk / "set", n=200)
    with pytest.raises(PipelineError, match="is full; what is whole is kept"):
        generate_set(asked)
    painted = list((small_disk / "set" / "images").glob("[0-9]*"))
    assert 0 < len(painted) < 200
    for path in painted:
        np.testing.assert_array_equal(decode(path.read_bytes()), Stripes().picture(int(path.stem)))
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert generate_set(asked).painted < 200
    generate_set(request(tmp_path / "set", n=200))
    assert tree(small_disk / "set") == tree(tmp_path / "set")


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: replace(r, painter=Stripes(seed=1)), "seed: .* begun with 0, .* says 1"),
        (lambda r: replace(r, painter=Stripes(height=48)), "height: .* with 20, .* says 48"),
        (lambda r: replace(r, format="webp"), "format: .* with png, .* says webp"),
        (
            lambda r: replace(r, painter=Stripes(version=2)),
            "stripes_version: .* with 1 .*, here is 2; install",
        ),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_a_resume_with_other_settings_is_refused_by_the_name_of_the_field(
    tmp_path: Path,
    change: Callable[[SetRequest], SetRequest],
    message: str,
    complete: bool,
) -> None:
    asked = request(tmp_path / "set")
    generate_set(asked if complete else replace(asked, num_tasks=2))
    before = tree(tmp_path / "set")
    with pytest.raises(PipelineError, match=message):
        generate_set(change(asked))
    assert tree(tmp_path / "set") == before


def test_a_resume_with_another_encoder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_set(request(tmp_path / "set", num_tasks=2))
    monkeypatch.setattr(sets, "encoder_version", lambda _format: "Pillow 1.0")
    with pytest.raises(
        PipelineError, match=r"encoder: .* begun with Pillow .*Pillow 1\.0; install"
    ):
        generate_set(request(tmp_path / "set"))


def test_a_newer_package_with_the_same_pictures_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: dict[str, bytes]
) -> None:
    generate_set(request(tmp_path / "set", num_tasks=2))
    monkeypatch.setattr(sets, "__version__", "99.0")
    generate_set(request(tmp_path / "set"))
    assert tree(tmp_path / "set") == unbroken


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("thesis.tex", "", r"holds something else \(thesis.tex\)"),
        ("images", None, r"holds something else \(images\)"),
        ("manifest.json", "{", "manifest.json is damaged: "),
        ("manifest.json", '{"name": "app"}', "is not the manifest of a set of pictures"),
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
        generate_set(request(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", 7),
        ("status", "finished"),
        ("status", []),
        ("pictures", "x"),
        ("pictures", True),
        ("pictures", 0),
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
    generate_set(request(tmp_path / "set"))
    path = tmp_path / "set" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {field: value}))
    before = tree(tmp_path / "set")
    for use in (verify, lambda folder: generate_set(request(folder))):
        with pytest.raises(PipelineError, match=rf"json is damaged.*\b{field}\b.*; copy it"):
            use(tmp_path / "set")
    assert tree(tmp_path / "set") == before


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("notes")
    with pytest.raises(PipelineError, match="is a file; choose a folder"):
        generate_set(request(tmp_path / "set"))
    with pytest.raises(PipelineError, match="set is a file; choose a folder"):
        generate_set(request(tmp_path / "set" / "below"))


def test_a_run_beside_one_on_the_same_pictures_is_refused(tmp_path: Path) -> None:
    asked = request(tmp_path / "set")
    asked.work.mkdir(parents=True)
    with (
        folder_lock(asked.work / "task-0-of-1.lock"),
        pytest.raises(PipelineError, match="another run is painting task 0 of 1"),
    ):
        generate_set(asked)
    with (
        folder_lock(asked.work / "task-3-of-4.lock"),
        pytest.raises(PipelineError, match=r"with another --num-tasks \(task-3-of-4\)"),
    ):
        generate_set(asked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "n is 0; give at least 1"),
        ({"jobs": 0}, "jobs is 0; give at least 1"),
        ({"chunk": -1}, "chunk is -1; give at least 1"),
        ({"task_index": 2, "num_tasks": 2}, "task_index is 2; with num_tasks 2 give 0..1"),
        ({"format": "gif"}, "format is 'gif'; give one of jpg, png, webp"),
    ],
)
def test_a_request_refuses_nonsense(tmp_path: Path, changes: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=message):
        request(tmp_path / "set", **changes)


# --- Verification --------------------------------------------------------------------------------


def verify(folder: Path, painter: Stripes | None = None, sample: int = 4) -> Verdict:
    return verify_set(folder, read_manifest(folder), painter or Stripes(), sample=sample)


@pytest.mark.parametrize("format", ["jpg", "png", "webp"])
def test_a_set_as_it_was_made_is_good(tmp_path: Path, format: str) -> None:
    generate_set(request(tmp_path / "set", format=format))
    verdict = verify(tmp_path / "set")
    assert verdict.good
    assert (verdict.pictures, verdict.sampled, verdict.faults) == (10, 4, [])


def remove(path: Path) -> None:
    path.unlink()


def flip_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "name", "fault"),
    [
        (
            remove,
            "images/00000003.png",
            "images/00000003.png is missing; give the command that made the set again",
        ),
        (
            flip_last_bit,
            "images/00000003.png",
            "images/00000003.png is not the file that was written; delete it and give the command "
            "that made the set again",
        ),
        (remove, "metadata.jsonl", "metadata.jsonl is missing"),
        (flip_last_bit, "metadata.jsonl", "metadata.jsonl is not the file"),
        (Path.touch, "images/00000010.png", "images/00000010.png does not belong to the set"),
    ],
)
def test_verification_finds_damage_outside_its_sample(
    tmp_path: Path, damage: Callable[[Path], None], name: str, fault: str
) -> None:
    generate_set(request(tmp_path / "set"))
    damage(tmp_path / "set" / name)
    verdict = verify(tmp_path / "set", sample=1)
    assert not verdict.good
    assert len(verdict.faults) == 1
    assert verdict.faults[0].startswith(fault)


@pytest.mark.parametrize("format", ["jpg", "png", "webp"])
def test_verification_finds_pictures_that_are_painted_otherwise(
    tmp_path: Path, format: str
) -> None:
    generate_set(request(tmp_path / "set", format=format))
    verdict = verify(tmp_path / "set", Stripes(offset=1))
    assert len(verdict.faults) == 4
    assert "has other pixels when painted again" in verdict.faults[0]


def test_a_damaged_picture_that_is_deleted_is_painted_again(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    asked = request(tmp_path / "set")
    generate_set(asked)
    flip_last_bit(asked.images / "00000003.png")
    (fault,) = verify(asked.folder).faults
    assert "delete it and give the command that made the set again" in fault
    (asked.images / "00000003.png").unlink()
    assert generate_set(asked).painted == 1
    assert verify(asked.folder).good
    assert tree(asked.folder) == unbroken


@pytest.mark.parametrize("lines", [[0, 1, 3, 4, 5, 6, 7, 8, 9, 9], range(9), [*range(10), 9]])
def test_verification_finds_records_that_are_not_in_their_place(
    tmp_path: Path, unbroken: dict[str, bytes], lines: Sequence[int]
) -> None:
    asked = request(tmp_path / "set")
    generate_set(asked)
    records = asked.metadata.read_bytes().splitlines(keepends=True)
    asked.metadata.write_bytes(b"".join(records[index] for index in lines))
    sign(asked.folder)
    fault = verify(asked.folder).faults[0]
    assert fault.startswith(f"metadata.jsonl has {len(lines)} lines, ")
    assert "the set has 10 pictures; delete it and give the command that made the set" in fault
    asked.metadata.unlink()
    generate_set(asked)
    assert tree(asked.folder) == unbroken


def sign(folder: Path) -> None:
    """Let the manifest name the records as they are."""
    manifest = read_manifest(folder)
    manifest["metadata_sha256"] = file_sha256(folder / "metadata.jsonl")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def change_manifest(folder: Path, **made_with: str) -> None:
    manifest = read_manifest(folder)
    manifest["made_with"] |= made_with
    (folder / "manifest.json").write_text(json.dumps(manifest))


def put_other_content(folder: Path, index: int, content: bytes) -> None:
    """Put another file in place of a picture, with records that vouch for it."""
    lines = (folder / "metadata.jsonl").read_bytes().splitlines(keepends=True)
    record = json.loads(lines[index])
    (folder / record["file"]).write_bytes(content)
    record["file_sha256"] = file_sha256(folder / record["file"])
    lines[index] = json.dumps(record).encode() + b"\n"
    (folder / "metadata.jsonl").write_bytes(b"".join(lines))
    sign(folder)


@pytest.mark.parametrize(
    ("format", "encoder", "fault"),
    [
        ("png", None, "decodes to other pixels"),
        ("jpg", None, "is not what the encoder gives"),
        ("jpg", "Pillow 1.0", "shows another picture"),
    ],
)
def test_verification_finds_files_of_another_picture(
    tmp_path: Path, format: str, encoder: str | None, fault: str
) -> None:
    folder = tmp_path / "set"
    generate_set(request(folder, format=format))
    put_other_content(folder, 0, encode(Stripes().picture(1), format))
    if encoder:
        change_manifest(folder, encoder=encoder)
    verdict = verify(folder)
    assert len(verdict.faults) == 1
    assert fault in verdict.faults[0]


def test_verification_finds_files_that_are_no_pictures(tmp_path: Path) -> None:
    generate_set(request(tmp_path / "set"))
    put_other_content(tmp_path / "set", 0, b"no picture")
    assert verify(tmp_path / "set").faults == ["images/00000000.png cannot be decoded"]


def test_files_of_another_jpeg_encoder_are_good_if_they_show_the_picture(tmp_path: Path) -> None:
    generate_set(request(tmp_path / "set", format="jpg"))
    change_manifest(tmp_path / "set", encoder="Pillow 1.0")
    other = io.BytesIO()
    Image.fromarray(Stripes().picture(0)).save(other, "JPEG", quality=97, subsampling="4:4:4")
    put_other_content(tmp_path / "set", 0, other.getvalue())
    assert verify(tmp_path / "set").good


def test_a_partial_set_is_not_good(tmp_path: Path) -> None:
    generate_set(request(tmp_path / "set", num_tasks=2))
    verdict = verify(tmp_path / "set")
    assert (verdict.good, verdict.complete, verdict.faults) == (False, False, [])


def test_a_set_of_another_version_is_not_judged(tmp_path: Path) -> None:
    generate_set(request(tmp_path / "set"))
    with pytest.raises(PipelineError, match=r"stripes_version: .* made with 1, here is 2; install"):
        verify(tmp_path / "set", Stripes(version=2))


def test_a_folder_without_a_manifest_is_no_set(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="is not a set of pictures"):
        read_manifest(tmp_path)
