"""Sets of shards: their bytes depend on source and settings alone, and runs can be resumed."""

import errno
import gc
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import PipelineError
from pipelines.loading.dataset import ShardDataset
from pipelines.shards import writer
from pipelines.shards.format import open_shards
from pipelines.shards.request import shuffled
from pipelines.shards.tar import scan_tar
from pipelines.shards.writer import bounds, shard_name
from shard_commands import (
    IMAGES,
    contents_of,
    made,
    run,
)
from shard_sets import drawn_images, encoded

ROOT = Path(__file__).parents[1]


def files_of(folder: Path) -> list[Path]:
    """Return the images of an image folder in torchvision's order."""
    return sorted(folder.rglob("*.JPEG"), key=lambda path: (path.parent.name, path.name))


def test_members_are_sorted_regular_files_without_time_or_owner(shards: Path) -> None:
    tars = sorted(shards.glob("*.tar"))
    assert [tar.name for tar in tars] == [f"photos-0{i}.tar" for i in range(4)]
    for path in tars:
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        names = [member.name for member in members]
        keys = [name.split(".")[0] for name in names]
        assert names == [f"{key}.{x}" for key in keys[::3] for x in ("cls", "jpg", "json")]
        assert all(len(key) == 8 and key.isdigit() for key in keys)
        assert all(
            (m.mtime, m.uid, m.gid, m.uname, m.gname, m.isreg()) == (0, 0, 0, "", "", True)
            for m in members
        )


def test_bytes_labels_and_class_names_equal_the_source(shards: Path, image_folder: Path) -> None:
    opened = open_shards(shards)
    assert opened.classes == ("n01", "n02 cats", "n03")
    files = files_of(image_folder)
    reader = ShardDataset(opened)
    seen = set()
    for i in range(len(opened)):
        number = int(opened.key(i))
        seen.add(number)
        assert reader.read(i) == files[number].read_bytes()
        label = int(opened.samples["label"][i])
        assert opened.classes[label] == files[number].parent.name
    assert seen == set(range(23))


def test_samples_are_shuffled_by_the_seed_and_balanced(shards: Path) -> None:
    opened = open_shards(shards)
    keys = [int(opened.key(i)) for i in range(23)]
    assert keys == shuffled(23, 0).tolist()
    assert keys != shuffled(23, 1).tolist()
    assert sorted(shard.n_samples for shard in opened.shards) == [5, 6, 6, 6]
    assert opened.settings["seed"] == 0


@given(st.integers(1, 10_000), st.data())
def test_shards_partition_the_samples_and_differ_by_one_at_most(
    n: int, data: st.DataObject
) -> None:
    num_shards = data.draw(st.integers(1, n))
    parts = [bounds(n, num_shards, shard) for shard in range(num_shards)]
    assert [i for part in parts for i in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    names = [shard_name("a", shard, num_shards) for shard in range(num_shards)]
    assert names == sorted(names)


# webdataset leaves files to the garbage collector, which the test calls at its end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_shards(shards: Path, image_folder: Path) -> None:
    files = files_of(image_folder)
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(samples) == 23
    for sample in samples:
        assert sample["jpg"] == files[int(sample["__key__"])].read_bytes()
        record = json.loads(sample["json"])
        assert record["label"] == int(sample["cls"])
        assert record["filename"].endswith(files[int(sample["__key__"])].name)
    gc.collect()


OLD_WEBDATASET = os.environ.get("PIXMIX_OLD_WEBDATASET")


_READ = """
import sys, webdataset
samples = webdataset.WebDataset(sys.argv[1:])
print(sum(int(sample["cls"]) * len(sample["jpg"]) for sample in samples))
print(webdataset.__file__)
"""


@pytest.mark.skipif(
    OLD_WEBDATASET is None, reason="set PIXMIX_OLD_WEBDATASET to a folder with webdataset 0.2.86"
)
def test_the_webdataset_version_of_open_clip_reads_the_shards(shards: Path) -> None:
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _READ, *urls],
        env=os.environ | {"PYTHONPATH": str(OLD_WEBDATASET)},
        capture_output=True,
        text=True,
        check=True,
    )
    total, module = done.stdout.split()
    samples = open_shards(shards).samples
    assert int(total) == int((samples["size"].astype(np.int64) * samples["label"]).sum())
    assert module.startswith(str(OLD_WEBDATASET))


def test_the_bytes_do_not_depend_on_jobs_and_reruns(
    image_folder: Path, shards: Path, tmp_path: Path
) -> None:
    arguments = ["imagefolder", image_folder, tmp_path / "out", "--num-shards", 4]
    result = run(*arguments, "--name", "photos", "--jobs", 3)
    assert result.exit_code == 0, result.output
    assert contents_of(tmp_path / "out") == contents_of(shards)
    again = run(*arguments, "--name", "photos", "--jobs", 2, "--json")
    assert json.loads(again.stdout)["sets"][0]["written"] == 0
    assert contents_of(tmp_path / "out") == contents_of(shards)


def test_a_lost_shard_is_written_again(image_folder: Path, shards: Path, tmp_path: Path) -> None:
    arguments = ["imagefolder", image_folder, tmp_path / "out", "--num-shards", 4]
    made(*arguments, "--name", "photos")
    (tmp_path / "out" / "photos-02.tar").unlink()
    made(*arguments, "--name", "photos")
    assert contents_of(tmp_path / "out") == contents_of(shards)


def interrupted(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Path:
    """Make shards up to their index; return the work folder."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writer, "write_index", interrupt)
        assert run(*arguments, "--jobs", 1).exit_code == 130
    return Path(str(arguments[2])) / ".work"


@pytest.mark.parametrize("content", ["x", "{}", "[]", None])
def test_a_shard_whose_sidecar_is_damaged_is_written_again(
    image_folder: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | None,
) -> None:
    arguments = ["imagefolder", image_folder, tmp_path / "out", "--num-shards", 4]
    arguments += ["--name", "photos"]
    work = interrupted(monkeypatch, *arguments)
    sidecars = sorted((work / "done").glob("*.jsonl"))
    sidecars[1].write_text(sidecars[2].read_text() if content is None else f"{content}\n")
    result = run(*arguments, "--jobs", 1, "--json")
    assert json.loads(result.stdout)["sets"][0]["written"] == 1
    assert contents_of(tmp_path / "out") == contents_of(shards)


def test_a_damaged_request_ends_in_one_line(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["imagefolder", image_folder, tmp_path / "out", "--num-shards", 4]
    work = interrupted(monkeypatch, *arguments)
    (work / "request.json").write_text("x")
    result = run(*arguments, "--jobs", 1)
    assert result.exit_code == 1
    assert f"{work / 'request.json'} is damaged" in result.stderr
    assert f"remove {tmp_path / 'out'}" in result.stderr


@pytest.mark.slow
def test_the_same_command_resumes_a_killed_run(tmp_path: Path) -> None:
    source = tmp_path / "source" / "a"
    source.mkdir(parents=True)
    content = encoded(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8), "jpg")
    for i in range(600):
        (source / f"{i}.jpg").write_bytes(content)
    out = tmp_path / "out"
    line = ["-m", "pipelines.cli.shard", "imagefolder", str(source.parent), str(out)]
    line += ["--num-shards", "60", "--jobs", "2"]
    process = subprocess.Popen([sys.executable, *line], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.tar"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = len(list(out.glob("*.tar")))
    assert 5 <= before < 60
    assert not (out / "manifest.json").exists()
    with pytest.raises(PipelineError, match=r"has no manifest\.json"):
        open_shards(out)
    result = run("imagefolder", source.parent, out, "--num-shards", 60, "--jobs", 1, "--json")
    assert 60 - before <= json.loads(result.stdout)["sets"][0]["written"] < 60
    whole = made("imagefolder", source.parent, tmp_path / "whole", "--num-shards", 60)
    assert contents_of(out) == contents_of(whole)


@pytest.mark.parametrize(
    ("changes", "field"),
    [(["--seed", 1], "seed"), (["--num-shards", 5], "num_shards"), (["--name", "x"], "name"),
     (["--on-nonstandard", "skip"], "on_nonstandard")],
)  # fmt: skip
def test_other_settings_are_rejected_by_the_name_of_the_field(
    image_folder: Path, shards: Path, changes: list[object], field: str
) -> None:
    base = ["imagefolder", image_folder, shards, "--num-shards", 4, "--name", "photos"]
    result = run(*base, *changes, "--jobs", 1)
    assert result.exit_code == 1
    assert f"Error: {field}: {shards} was started with" in result.stderr


def test_a_changed_source_is_rejected(tmp_path: Path) -> None:
    source = tmp_path / "source" / "a"
    source.mkdir(parents=True)
    (source / "1.png").write_bytes(encoded(IMAGES[0]))
    made("imagefolder", source.parent, tmp_path / "out")
    (source / "2.png").write_bytes(encoded(IMAGES[1]))
    result = run("imagefolder", source.parent, tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 1
    assert "source_images: " in result.stderr


def test_a_full_disk_ends_in_one_line_and_leaves_no_set(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def here(work: Any, chunks: Iterable[range], **_: object) -> None:  # noqa: ANN401
        for chunk in chunks:
            work(chunk)

    monkeypatch.setattr(writer, "write_member", full)
    monkeypatch.setattr("pipelines.system.processes.run_chunks", here)
    result = run("imagefolder", image_folder, tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 1
    assert f"the disk of {tmp_path / 'out'} is full; complete files are kept" in result.stderr
    assert not list((tmp_path / "out").glob("*.tar"))
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("cannot mount a small disk")
    yield folder
    # The traceback of an error may still hold a memory map.
    gc.collect()
    subprocess.run(["umount", str(folder)], check=True)


def test_a_run_resumes_after_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    folder = tmp_path / "source" / "a"
    folder.mkdir(parents=True)
    for i, image in enumerate(drawn_images(40, 5, (100, 150))):
        (folder / f"{i}.png").write_bytes(encoded(image))
    arguments = ["imagefolder", folder.parent, small_disk / "out", "--num-shards", 10]
    result = run(*arguments, "--jobs", 2)
    assert result.exit_code == 1
    assert f"the disk of {small_disk / 'out'} is full; complete files are kept" in result.stderr
    whole = sorted((small_disk / "out").glob("*.tar"))
    assert 0 < len(whole) < 10
    assert all(len(list(scan_tar(path))) == 12 for path in whole)
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    result = run(*arguments, "--jobs", 1, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["sets"][0]["written"] < 10
    made(*arguments[:2], tmp_path / "out", *arguments[3:])
    assert contents_of(small_disk / "out") == contents_of(tmp_path / "out")


def test_a_folder_with_other_files_is_not_touched(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("two years")
    result = run("imagefolder", image_folder, tmp_path, "--jobs", 1)
    assert result.exit_code == 1
    assert "holds something else (thesis.txt)" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
