"""Sets of shards: the bytes that the source and settings decide, whole, verifiable, adopted."""

import errno
import gc
import gzip
import hashlib
import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import EpsImagePlugin, Image

from pipelines.cli import shard as command
from pipelines.errors import PipelineError
from pipelines.loading.dataset import ShardDataset
from pipelines.shards import picture_files, sidecars, write
from pipelines.shards.index import open_shards
from pipelines.shards.pictures import BrokenPictureError, decode_rgb, oddity
from pipelines.shards.request import bounds, shard_name, shuffled
from pipelines.shards.sources import ImageFolderSource
from pipelines.shards.tars import scan_tar
from pipelines.system.plain_pickle import read_pickle
from shard_sets import drawn_pictures, encoded

ROOT = Path(__file__).parents[1]
PICTURES = drawn_pictures(23, 4)


def run(*arguments: object) -> Result:
    """Give a command line to pixmix-shard, which must not end in a traceback."""
    result = CliRunner().invoke(command.main, [str(each) for each in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def made(*arguments: object) -> Path:
    """Make a set, OUT last but for options, and return where."""
    result = run(*arguments, "--jobs", 1)
    assert result.exit_code == 0, result.output
    return Path(str(arguments[2]))


def contents_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of JPEGs."""
    root = tmp_path_factory.mktemp("source") / "photos"
    for i, picture in enumerate(PICTURES):
        path = root / ("n01", "n02 cats", "n03")[i % 3] / f"Picture.{i}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture, "jpg"))
    return root


@pytest.fixture(scope="module")
def shards(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "out"
    return made("imagefolder", image_folder, out, "--num-shards", 4, "--name", "photos")


# --- layout --------------------------------------------------------------------------------------


def files_of(folder: Path) -> list[Path]:
    """The pictures of an image folder as torchvision sorts them."""
    return sorted(folder.rglob("*.JPEG"), key=lambda path: (path.parent.name, path.name))


def test_members_are_plain_sorted_and_without_time_or_owner(shards: Path) -> None:
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


def test_bytes_labels_and_class_names_are_the_source_s(shards: Path, image_folder: Path) -> None:
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


# It leaves its files to the garbage collector, which the test calls before the next one begins.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_them(shards: Path, image_folder: Path) -> None:
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
    OLD_WEBDATASET is None, reason="PIXMIX_OLD_WEBDATASET names no folder with webdataset 0.2.86"
)
def test_the_webdataset_that_open_clip_pins_reads_them(shards: Path) -> None:
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _READ, *urls],
        env=os.environ | {"PYTHONPATH": str(OLD_WEBDATASET)},
        capture_output=True,
        text=True,
        check=True,
    )
    total, place = done.stdout.split()
    samples = open_shards(shards).samples
    assert int(total) == int((samples["size"].astype(np.int64) * samples["label"]).sum())
    assert place.startswith(str(OLD_WEBDATASET))


def test_open_clip_s_and_timm_s_rules_read_them(shards: Path) -> None:
    """Both group neighbours by the part before the first dot; sizes and lengths stand beside."""
    sizes = json.loads((shards / "sizes.json").read_text())
    info = json.loads((shards / "_info.json").read_text())["splits"]["train"]
    wids = json.loads((shards / "wids.json").read_text())
    assert info["filenames"] == sorted(sizes)
    assert info["num_samples"] == 23
    for name, length, entry in zip(
        info["filenames"], info["shard_lengths"], wids["shardlist"], strict=True
    ):
        path = shards / name
        samples: dict[str, set[str]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, extension = member.name.split(".", 1)
                assert extension == extension.lower()
                samples.setdefault(key, set()).add(extension)
        assert len(samples) == length == sizes[name] == entry["nsamples"]
        assert all(each == {"cls", "jpg", "json"} for each in samples.values())
        assert entry["url"] == name
        assert entry["filesize"] == path.stat().st_size
        assert entry["md5sum"] == hashlib.md5(path.read_bytes()).hexdigest()


def test_dali_s_index_names_each_member_s_place(image_folder: Path, tmp_path: Path) -> None:
    out = made("imagefolder", image_folder, tmp_path / "out", "--num-shards", 2, "--dali-index")
    for path in out.glob("*.tar"):
        content = path.read_bytes()
        first, *lines = path.with_suffix(".idx").read_text().splitlines()
        assert first == f"v1.2 {len(lines)}"
        with tarfile.open(path) as tar:
            places = {m.name: (m.offset_data, m.size) for m in tar}
        for line in lines:
            words = line.split(" ")
            for extension, offset, size, name in zip(*[iter(words)] * 4, strict=True):
                assert places.pop(name) == (int(offset), int(size))
                assert name.endswith(f".{extension}")
        assert not places
        assert content


# --- the same bytes, whole or not at all ---------------------------------------------------------


def test_jobs_and_reruns_do_not_show(image_folder: Path, shards: Path, tmp_path: Path) -> None:
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
    """Make shards up to their index; return the folder of what is known of them."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(write, "write_index", interrupt)
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
    sidecars = sorted((work / "done").glob("*.json"))
    sidecars[1].write_text(sidecars[2].read_text() if content is None else content)
    result = run(*arguments, "--jobs", 1, "--json")
    assert json.loads(result.stdout)["sets"][0]["written"] == 1
    assert contents_of(tmp_path / "out") == contents_of(shards)


def test_a_damaged_request_is_one_line(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["imagefolder", image_folder, tmp_path / "out", "--num-shards", 4]
    work = interrupted(monkeypatch, *arguments)
    (work / "request.json").write_text("x")
    result = run(*arguments, "--jobs", 1)
    assert result.exit_code == 1
    assert f"{work / 'request.json'} is damaged" in result.stderr
    assert f"remove {tmp_path / 'out'} and give the command again" in result.stderr


def test_a_killed_run_is_continued_by_the_same_command(tmp_path: Path) -> None:
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


def test_a_crash_before_any_disk_operation_leaves_whole_tars_and_is_continued(
    tmp_path: Path,
) -> None:
    script = Path(__file__).with_name("shard_crashes.py")
    output = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    assert int(output.split()[-1]) > 40


@pytest.mark.parametrize(
    ("changes", "field"),
    [(["--seed", 1], "seed"), (["--num-shards", 5], "num_shards"), (["--name", "x"], "name"),
     (["--odd-files", "skip"], "odd_files")],
)  # fmt: skip
def test_other_settings_are_refused_naming_the_field(
    image_folder: Path, shards: Path, changes: list[object], field: str
) -> None:
    base = ["imagefolder", image_folder, shards, "--num-shards", 4, "--name", "photos"]
    result = run(*base, *changes, "--jobs", 1)
    assert result.exit_code == 1
    assert f"Error: {field}: {shards} was begun with" in result.stderr


def test_a_changed_source_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source" / "a"
    source.mkdir(parents=True)
    (source / "1.png").write_bytes(encoded(PICTURES[0]))
    made("imagefolder", source.parent, tmp_path / "out")
    (source / "2.png").write_bytes(encoded(PICTURES[1]))
    result = run("imagefolder", source.parent, tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 1
    assert "source_pictures: " in result.stderr


def test_a_full_disk_is_one_line_and_leaves_no_set(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def here(work: Any, chunks: Iterable[range], **_: object) -> None:  # noqa: ANN401
        for chunk in chunks:
            work(chunk)

    monkeypatch.setattr(sidecars, "write_member", full)
    monkeypatch.setattr("pipelines.system.processes.run_chunks", here)
    result = run("imagefolder", image_folder, tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 1
    assert f"the disk of {tmp_path / 'out'} is full; what is whole is kept" in result.stderr
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
        pytest.skip("may not mount a small disk")
    yield folder
    # What an error's traceback holds is still mapped.
    gc.collect()
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_keeps_what_is_whole_and_is_continued(
    tmp_path: Path, small_disk: Path
) -> None:
    folder = tmp_path / "source" / "a"
    folder.mkdir(parents=True)
    for i, picture in enumerate(drawn_pictures(40, 5, (100, 150))):
        (folder / f"{i}.png").write_bytes(encoded(picture))
    arguments = ["imagefolder", folder.parent, small_disk / "out", "--num-shards", 10]
    result = run(*arguments, "--jobs", 2)
    assert result.exit_code == 1
    assert f"the disk of {small_disk / 'out'} is full; what is whole is kept" in result.stderr
    whole = sorted((small_disk / "out").glob("*.tar"))
    assert 0 < len(whole) < 10
    assert all(len(list(scan_tar(path))) == 12 for path in whole)
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    result = run(*arguments, "--jobs", 1, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["sets"][0]["written"] < 10
    made(*arguments[:2], tmp_path / "out", *arguments[3:])
    assert contents_of(small_disk / "out") == contents_of(tmp_path / "out")


def test_a_folder_of_something_else_is_left_alone(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("two years")
    result = run("imagefolder", image_folder, tmp_path, "--jobs", 1)
    assert result.exit_code == 1
    assert "holds something else (thesis.txt)" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# --- sources -------------------------------------------------------------------------------------


def test_splits_go_into_folders_and_timm_finds_both(image_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "imagenet"
    for split in ("train", "val"):
        for folder in image_folder.iterdir():
            target = source / split / folder.name
            target.mkdir(parents=True)
            (target / "0.JPEG").write_bytes(next(folder.iterdir()).read_bytes())
    out = made("imagefolder", source, tmp_path / "out", "--name", "imagenet1k")
    splits = json.loads((out / "_info.json").read_text())["splits"]
    assert {name: info["filenames"] for name, info in splits.items()} == {
        "train": ["train/imagenet1k-train-00.tar"],
        "validation": ["val/imagenet1k-validation-00.tar"],
    }
    assert len(open_shards(out / "train")) == len(open_shards(out / "val")) == 3
    result = run("imagefolder", source, tmp_path / "other", "--split", "test")
    assert result.exit_code == 1
    assert "has no split 'test' (there: train, val)" in result.stderr


def folders_of_pictures(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "0.png").write_bytes(PNG)
    return root


@pytest.mark.parametrize("name", ["valid", "dev", "eval"])
def test_a_split_of_any_usual_name_is_made(tmp_path: Path, name: str) -> None:
    source = folders_of_pictures(tmp_path / "set", "train/a", f"{name}/a")
    out = made("imagefolder", source, tmp_path / "out", "--jobs", 1)
    assert len(open_shards(out / name)) == 1
    files = json.loads((out / "_info.json").read_text())["splits"]
    assert set(files) == {"train", "validation" if name == "valid" else name}


def test_valid_and_invalid_are_classes(tmp_path: Path) -> None:
    source = folders_of_pictures(tmp_path / "set", "invalid", "valid")
    out = made("imagefolder", source, tmp_path / "out", "--jobs", 1)
    assert open_shards(out).classes == ("invalid", "valid")


def test_a_split_that_is_named_is_one_whatever_lies_beside_it(tmp_path: Path) -> None:
    source = folders_of_pictures(tmp_path / "set", "valid/a", "cat")
    out = made("imagefolder", source, tmp_path / "out", "--split", "valid", "--jobs", 1)
    assert open_shards(out / "valid").classes == ("a",)


def test_splits_beside_other_folders_are_refused_naming_both(tmp_path: Path) -> None:
    source = folders_of_pictures(tmp_path / "set", "cat", "dog/test", "test/a", ".cache/a")
    result = run("imagefolder", source, tmp_path / "out")
    assert result.exit_code == 1
    assert "holds splits (test) beside other folders (cat, dog); if all" in result.stderr
    assert not (tmp_path / "out").exists()
    assert len(
        open_shards(made("imagefolder", source, tmp_path / "out", "--split", "test") / "test")
    )


def test_a_test_without_labels_is_left_out_and_told(tmp_path: Path) -> None:
    source = folders_of_pictures(tmp_path / "set", "train/a", "val/a", "test")
    result = run("imagefolder", source, tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 0, result.output
    assert f"{source / 'test'} is left out: it has no folder a class" in result.stderr
    splits = json.loads((tmp_path / "out" / "_info.json").read_text())["splits"]
    assert set(splits) == {"train", "validation"}
    result = run("imagefolder", source, tmp_path / "out", "--split", "test")
    assert result.exit_code == 1
    assert "has no folder a class" in result.stderr


def test_all_splits_are_looked_at_before_the_first_is_written(tmp_path: Path) -> None:
    source = folders_of_pictures(tmp_path / "set", "train/a", "val/a")
    (source / "val" / "b").mkdir()
    result = run("imagefolder", source, tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 1
    assert "holds no picture, so its class would be empty" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["imagefolder", "mixing"])
def test_a_link_that_leads_back_adds_no_picture(tmp_path: Path, kind: str) -> None:
    source = folders_of_pictures(tmp_path / "set", "a/deeper", "b")
    (source / "a" / "self").symlink_to(source / "a")
    (source / "a" / "deeper" / "set").symlink_to(source)
    (source / "b" / "other").symlink_to(tmp_path / "other")
    (source / "b" / "circle").symlink_to("circle")
    folders_of_pictures(tmp_path / "other", "c")
    assert len(open_shards(made(kind, source, tmp_path / "out", "--jobs", 1))) == 3


def test_an_image_folder_s_order_is_torchvision_s(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    names = ("a", "a/b", "a/b/c", "a/b-c", "a/B", "a/b.d/e", "b/10", "b/9")
    root = tmp_path / "set"
    for name in names:
        folders_of_pictures(root, name)
    expected = [
        (Path(path).relative_to(root).as_posix(), label)
        for path, label in datasets.ImageFolder(root).samples
    ]
    assert [(item.name, item.label) for item in ImageFolderSource(folder=root).items()] == expected
    assert len(expected) == 8


@pytest.fixture
def odd_source(tmp_path: Path) -> Path:
    folder = tmp_path / "odd" / "a"
    folder.mkdir(parents=True)
    image = Image.fromarray(PICTURES[0])
    image.save(folder / "0.jpg", quality=95)
    image.convert("CMYK").save(folder / "1.jpg", quality=95)
    (folder / "2.JPEG").write_bytes(encoded(PICTURES[1], "png"))
    return folder.parent


@pytest.mark.parametrize("policy", ["keep", "convert", "skip", "fail"])
def test_odd_files_are_kept_converted_left_out_or_refused_and_reported(
    odd_source: Path, tmp_path: Path, policy: str
) -> None:
    out = tmp_path / "out"
    result = run("imagefolder", odd_source, out, "--odd-files", policy, "--jobs", 1)
    if policy == "fail":
        assert result.exit_code == 1
        assert "2 of 3 pictures are odd" in result.stderr
        return
    assert result.exit_code == 0, result.output
    opened, reader = open_shards(out), ShardDataset(open_shards(out))
    contents = {int(opened.key(i)): bytes(reader.read(i)) for i in range(len(opened))}
    originals = [path.read_bytes() for path in sorted((odd_source / "a").iterdir())]
    if policy == "keep":
        assert contents == dict(enumerate(originals))
    elif policy == "skip":
        assert contents == {0: originals[0]}
    else:
        assert contents[0] == originals[0]
        for content in contents.values():
            with Image.open(io.BytesIO(content)) as image:
                assert (image.format, image.mode) == ("JPEG", "RGB")
    lines = [json.loads(line) for line in (out / "odd-files.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["a/1.jpg", "a/2.JPEG"]
    assert sum(opened.settings["found"]["odd"].values()) == 2
    assert "odd: " in result.output


def test_broken_files_are_refused_or_left_out_and_reported(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "a"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(encoded(PICTURES[0]))
    (folder / "1.png").write_bytes(encoded(PICTURES[1])[:-200])
    (folder / "2.jpg").write_bytes(b"")
    out = tmp_path / "out"
    result = run("imagefolder", folder.parent, out, "--jobs", 1)
    assert result.exit_code == 1
    assert "2 of 3 pictures are broken" in result.stderr
    assert "--broken-files skip" in result.stderr
    result = run("imagefolder", folder.parent, out, "--broken-files", "skip", "--jobs", 1)
    assert result.exit_code == 0, result.output
    assert "2 pictures left out" in result.output
    assert len(open_shards(out)) == 1


def test_a_source_of_broken_files_alone_is_told(tmp_path: Path) -> None:
    (tmp_path / "source" / "a").mkdir(parents=True)
    (tmp_path / "source" / "a" / "0.png").write_bytes(b"no picture")
    arguments = ["imagefolder", tmp_path / "source", tmp_path / "out", "--broken-files", "skip"]
    result = run(*arguments, "--jobs", 1)
    assert result.exit_code == 1
    assert "none of the 1 pictures is left to write" in result.stderr


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_a_picture_cut_off_anywhere_is_broken(extension: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    content = encoded(noise, extension)
    assert oddity(content, extension) is None
    # What follows the last pixels is no loss: of a PNG the checksum and end, of a JPEG two bytes.
    for length in range(0, len(content) - 24, 97):
        with pytest.raises(BrokenPictureError):
            oddity(content[:length], extension)


def test_a_decompression_bomb_is_broken_and_not_decoded() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        checked = name + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    with pytest.raises(BrokenPictureError, match="over 89,478,485 pixels"):
        oddity(content, "png")


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
@pytest.mark.parametrize("kind", ["imagefolder", "mixing"])
def test_names_of_any_bytes_are_taken(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "source" / os.fsdecode(b"caf\xe9")
    folder.mkdir(parents=True)
    (folder / "a b\n\N{CAT}.png").write_bytes(PNG)
    (folder / os.fsdecode(b"b\xff.png")).write_bytes(PNG)
    opened = open_shards(made(kind, tmp_path / "source", tmp_path / "out"))
    assert len(opened) == 2
    assert opened.classes == (() if kind == "mixing" else ("caf\\udce9",))
    names = set()
    for sample in opened.shards:
        with tarfile.open(tmp_path / "out" / sample.file) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    names.add(json.loads(file.read())["filename"])
    assert names == {"caf\\udce9/a b\n\N{CAT}.png", "caf\\udce9/b\\udcff.png"}


def test_a_program_that_is_called_a_picture_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("it was run"))
    folder = tmp_path / "source" / "a"
    folder.mkdir(parents=True)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    (folder / "0.jpg").write_bytes(eps)
    result = run("imagefolder", folder.parent, tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 1
    assert "1 of 1 pictures are broken" in result.stderr
    with pytest.raises(BrokenPictureError):
        decode_rgb(eps)


def test_a_picture_of_too_many_pixels_is_broken_and_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = encoded(PICTURES[0], "jpg")
    monkeypatch.setattr(picture_files, "MOST_PIXELS", PICTURES[0].size // 3 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(BrokenPictureError, match="over 89,478,485 pixels"):
        decode_rgb(content)


def cifar_archive(root: Path, *, evil: bool = False) -> NDArray[np.uint8]:
    """Write a python archive of CIFAR-10's form, five pictures a batch; return the pictures."""
    generator = np.random.default_rng(0)
    data = generator.integers(0, 256, (30, 3072), dtype=np.uint8)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for i, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        batch: dict[str, Any] = {
            "data": data[5 * i : 5 * i + 5],
            "labels": [(5 * i + j) % 10 for j in range(5)],
        }
        if evil and i == 2:
            batch["labels"] = _Evil()
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = [f"class {i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol=2))
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


class _Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch pickle-was-run",)


@pytest.mark.parametrize("packed", [False, True])
def test_cifar_is_read_in_the_official_order(tmp_path: Path, packed: bool) -> None:
    pictures = cifar_archive(tmp_path / "root")
    source = tmp_path / "root"
    if packed:
        source = tmp_path / "cifar-10-python.tar.gz"
        with tarfile.open(source, "w:gz") as tar:
            tar.add(tmp_path / "root" / "cifar-10-batches-py", "cifar-10-batches-py")
    out = made("cifar10", source, tmp_path / "out", "--num-shards", 3)
    for split, first, n in (("train", 0, 25), ("test", 25, 5)):
        opened = open_shards(out / split)
        assert (len(opened), opened.kind) == (n, "cifar10")
        assert opened.classes[3] == "class 3"
        reader = ShardDataset(opened)
        for i in range(n):
            number = int(opened.key(i))
            image = np.asarray(Image.open(io.BytesIO(reader.read(i))))
            assert np.array_equal(image, pictures[first + number])
            assert opened.samples["label"][i] == (first + number) % 10


def test_a_pickle_that_would_run_something_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cifar_archive(tmp_path / "root", evil=True)
    result = run("cifar10", tmp_path / "root", tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 1
    assert "data_batch_3 is refused: it asks for " in result.stderr
    assert not (tmp_path / "pickle-was-run").exists()
    for content in (pickle.dumps(_Evil()), pickle.dumps(print), b"cos\nsystem\n(S'ls'\ntR."):
        with pytest.raises(PipelineError, match="is refused: it asks for"):
            read_pickle(content, "file")
    for content in (b"", b"\x80\x02", b"no pickle", pickle.dumps([1, 2])[:-1]):
        with pytest.raises(PipelineError, match=r"is a damaged pickle|is refused"):
            read_pickle(content, "file")


def test_mixing_sources_are_sets_folders_and_tars_as_they_are(tmp_path: Path) -> None:
    from pipelines.cli.gen import main as gen

    ours = tmp_path / "fractals"
    arguments = ["fractals", "--n", "3", "--size", "32", "--out", str(ours), "--jobs", "1"]
    assert CliRunner().invoke(gen, arguments).exit_code == 0
    folder = tmp_path / "folder"
    (folder / "deeper").mkdir(parents=True)
    (folder / "deeper" / "1.png").write_bytes(encoded(PICTURES[0]))
    archive = tmp_path / "fractals_and_fvis.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder / "deeper" / "1.png", "fractals_and_fvis/fractals/images/1.png")
    out = tmp_path / "out"
    result = run("mixing", ours, folder, archive, out, "--num-shards", 2, "--jobs", 1)
    assert result.exit_code == 0, result.output
    opened, reader = open_shards(out), ShardDataset(open_shards(out))
    contents = {int(opened.key(i)): bytes(reader.read(i)) for i in range(5)}
    fractals = [(ours / "images" / f"{i:08}.jpg").read_bytes() for i in range(3)]
    picture = encoded(PICTURES[0])
    assert contents == dict(enumerate([*fractals, picture, picture]))
    assert (opened.samples["label"] == -1).all()
    records = {}
    for path in out.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    records[int(member.name.split(".")[0])] = json.loads(file.read())
    assert all("genome" in records[i] for i in range(3))


def test_the_digits_need_no_download(tmp_path: Path) -> None:
    result = run("digits", tmp_path, "--jobs", 1, "--json")
    assert result.exit_code == 0, result.output
    assert [each["n_samples"] for each in json.loads(result.stdout)["sets"]] == [1438, 359]
    labels = open_shards(tmp_path / "test").samples["label"]
    assert set(labels.tolist()) == set(range(10))


# --- verify --------------------------------------------------------------------------------------


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in shards.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_whole_set_is_whole(copy: Path) -> None:
    result = run("verify", copy, "--decode", "all")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{copy}: whole; 23 samples in 4 shards")
    assert "23 decoded" in result.stdout


@pytest.mark.parametrize("how", ["flip", "cut", "lose", "grow"])
def test_a_damaged_shard_is_named(copy: Path, how: str) -> None:
    path = copy / "photos-02.tar"
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[2000] ^= 4
    elif how == "cut":
        del content[-512:]
    elif how == "grow":
        content += bytes(512)
    path.write_bytes(content)
    if how == "lose":
        path.unlink()
    result = run("verify", copy)
    assert result.exit_code == 1
    assert str(path) in result.stderr
    assert f"{copy}: 1 fault; copy these" in result.stdout


def test_a_tar_that_the_manifest_does_not_list_is_told_of(copy: Path) -> None:
    """Readers that take all tars of a folder would take it too."""
    (copy / "photos-04.tar").write_bytes((copy / "photos-03.tar").read_bytes())
    result = run("verify", copy)
    assert result.exit_code == 1
    assert "photos-04.tar does not belong to the set" in result.stderr


def test_a_picture_that_is_broken_in_a_whole_shard_is_found_by_its_key(tmp_path: Path) -> None:
    tar = plain_tar(tmp_path / "x.tar", [("a.png", PNG), ("b.png", PNG[:-200])])
    assert run("index", tar).exit_code == 0
    assert run("verify", tmp_path, "--decode", 1).exit_code == 0
    result = run("verify", tmp_path, "--decode", "all")
    assert result.exit_code == 1
    assert "the picture of key b cannot be decoded" in result.stderr


def lying_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for field, value in changes.items():
        manifest[field] = value
    manifest.pop("sha256")
    path.write_text(json.dumps(manifest))


def test_an_index_that_lies_is_found(copy: Path) -> None:
    samples = np.load(copy / "index.npy")
    samples["label"][4] = (samples["label"][4] + 1) % 3
    np.save(copy / "index.npy", samples)
    result = run("verify", copy)
    assert result.exit_code == 1
    assert "is not the index that manifest.json names" in result.stderr
    digest = hashlib.sha256((copy / "index.npy").read_bytes()).hexdigest()
    lying_manifest(copy, index={"file": "index.npy", "sha256": digest})
    result = run("verify", copy)
    assert result.exit_code == 1
    assert "sample 4 lies elsewhere or has another label" in result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 22}, "`num_samples` is 22, but the shards have 23"),
        ({"version": 99}, "has format version 99"),
        ({"format": "other"}, "is not the manifest of a set of shards"),
        (
            {"index": {"file": "../index.npy", "sha256": "0" * 64}},
            r"the name of a file .* `\$\.index\.file`",
        ),
        ({"shards": [{"file": "/etc/passwd"}]}, r"the name of a file .* `\$\.shards\[0\]\.file`"),
        ({"classes": None}, r"got `null` .* `\$\.classes`"),
    ],
)
def test_a_manifest_that_lies_is_refused_where_it_is_opened(
    copy: Path, changes: dict[str, object], message: str
) -> None:
    lying_manifest(copy, **changes)
    with pytest.raises(PipelineError, match=message):
        open_shards(copy)
    assert run("verify", copy).exit_code == 1


# --- tars of others ------------------------------------------------------------------------------


def plain_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


PNG = encoded(PICTURES[0])


def test_tars_of_webdataset_are_taken_in(tmp_path: Path) -> None:
    for number in range(2):
        with webdataset.TarWriter(str(tmp_path / f"set-{number}.tar")) as tar:
            for i in range(3 + number):
                tar.write({"__key__": f"a/b c{i}", "png": PNG, "cls": i + 10 * number})
    result = run("index", *sorted(tmp_path.glob("*.tar")))
    assert result.exit_code == 0, result.output
    assert "7 samples in 2 shards, 7 with a label" in result.stdout
    opened = open_shards(tmp_path)
    assert opened.samples["label"].tolist() == [0, 1, 2, 10, 11, 12, 13]
    assert opened.key(1) == "a/b c1"
    assert ShardDataset(opened).read(5) == PNG
    assert run("verify", tmp_path, "--decode", "all").exit_code == 0


@pytest.mark.parametrize(
    ("members", "label"),
    [
        ([("a.png", PNG), ("a.cls", b"7")], 7),
        ([("a.png", PNG), ("a.json", b'{"label": 5}')], 5),
        ([("a.png", PNG), ("a.json", b'{"caption": "x"}'), ("a.txt", b"3\n")], 3),
        ([("a.png", PNG), ("a.txt", b"a cat, 3 years old")], -1),
        ([("a.v1.png", PNG), ("a.v1.cls", b"4")], 4),
        ([("a.PNG", PNG)], -1),
    ],
)
def test_labels_are_found_where_they_stand(
    tmp_path: Path, members: list[tuple[str, bytes]], label: int
) -> None:
    tar = plain_tar(tmp_path / "x.tar", members)
    assert run("index", tar).exit_code == 0
    assert open_shards(tmp_path).samples["label"].tolist() == [label]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("img.v1.png", PNG), ("img.v2.png", PNG)], "a key ends at the first dot"),
        ([("a.png", PNG), ("b.png", PNG), ("a.cls", b"1")], "do not lie together"),
        ([("a.png", PNG), ("a.png", PNG)], "twice"),
        ([("a.png", PNG), ("a.cls", b"cat")], "holds no label"),
        ([("a.png", PNG), ("a.cls", b"-1")], "says label -1"),
        ([("a.png", PNG), ("a.cls", b"9" * 5000)], "holds no label"),
        ([("a.png", PNG), ("a.cls", b"0" * 2**21)], "too many for a label"),
        ([("a.png", PNG), ("a.json", b"[" * 100_000)], "holds no label"),
        ([("a.png", PNG), ("a.PNG", PNG)], "twice"),
        ([("a.png", PNG), ("a.jpg", PNG)], "a key ends at the first dot"),
        ([("a.png", b"")], "hold no sample with a picture"),
        ([("../a.png", PNG)], "a name that leads out of its folder"),
        ([("/etc/a.png", PNG)], "a name that leads out of its folder"),
        ([("a.txt", b"no picture")], "hold no sample with a picture"),
        ([], "hold no sample with a picture"),
    ],
)
def test_tars_that_readers_would_misread_are_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    result = run("index", plain_tar(tmp_path / "x.tar", members))
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(PipelineError, match="and no plain file"):
        list(scan_tar(tmp_path / "x.tar"))


def test_stray_pickles_are_never_read_and_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = pickle.dumps(_Evil())
    members = [("a.png", PNG), ("a.pkl", evil), ("b.png", PNG), ("b.pth", evil)]
    tar = plain_tar(tmp_path / "set" / "x.tar", members)
    result = run("index", tar)
    assert result.exit_code == 0
    assert "2 members: never read, for it could run code (as a.pkl)" in result.stdout
    opened = open_shards(tar.parent)
    assert [ShardDataset(opened).read(i) for i in range(2)] == [PNG, PNG]
    assert not (tmp_path / "pickle-was-run").exists()


def test_an_empty_picture_is_left_out_and_told_of(tmp_path: Path) -> None:
    tar = plain_tar(tmp_path / "x.tar", [("a.png", b""), ("b.png", PNG)])
    result = run("index", tar)
    assert "1 members: no sample, for its picture is empty (as a)" in result.stdout
    assert len(open_shards(tmp_path)) == 1
    assert run("verify", tmp_path, "--decode", "all").exit_code == 0


def test_a_pattern_names_tars(tmp_path: Path) -> None:
    for i in range(12):
        plain_tar(tmp_path / f"x-{i:02}.tar", [(f"{i}.png", PNG), (f"{i}.cls", str(i).encode())])
    assert run("index", tmp_path / "x-{00..11}.tar").exit_code == 0
    assert open_shards(tmp_path).samples["label"].tolist() == list(range(12))
    part = open_shards(tmp_path / "x-{10..11}.tar")
    assert part.samples["label"].tolist() == [10, 11]
    assert part.hash != open_shards(tmp_path).hash
    result = run("index", tmp_path / "x-{5..3}.tar")
    assert result.exit_code == 1
    assert "{5..3} in x-{5..3}.tar is no range" in result.stderr


def test_taking_in_tars_overwrites_nobody_s_files(tmp_path: Path) -> None:
    tars = [plain_tar(tmp_path / f"{name}.tar", [("a.png", PNG)]) for name in ("train", "val")]
    np.save(tmp_path / "index.npy", np.arange(9))
    result = run("index", tars[0])
    assert result.exit_code == 1
    assert "index.npy is in the way" in result.stderr
    assert np.load(tmp_path / "index.npy").tolist() == list(range(9))
    (tmp_path / "index.npy").unlink()
    assert run("index", tars[0]).exit_code == 0
    # An index without a manifest is what a killed run leaves.
    (tmp_path / "manifest.json").unlink()
    assert run("index", tars[0]).exit_code == 0
    before = contents_of(tmp_path)
    result = run("index", tars[1])
    assert result.exit_code == 1
    assert "is of a set that has train.tar too" in result.stderr
    assert contents_of(tmp_path) == before
    assert run("index", *tars).exit_code == 0
    assert len(open_shards(tmp_path)) == 2


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_all_dialects_are_read(tmp_path: Path, format: int) -> None:
    name = "d\N{LATIN SMALL LETTER E WITH ACUTE}/" * 60 + "a"
    with tarfile.open(tmp_path / "x.tar", "w", format=format) as tar:
        for suffix, content in ((".png", PNG), (".cls", b"6")):
            info = tarfile.TarInfo(name + suffix)
            info.size, info.mtime = len(content), 1.5
            tar.addfile(info, io.BytesIO(content))
    with tarfile.open(tmp_path / "x.tar") as tar:
        theirs = [(m.name, m.offset_data, m.size) for m in tar]
    assert [(m.name, m.offset, m.size) for m in scan_tar(tmp_path / "x.tar")] == theirs
    assert run("index", tmp_path / "x.tar").exit_code == 0
    assert open_shards(tmp_path).samples["label"].tolist() == [6]


def test_a_compressed_tar_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(gzip.compress(bytes(1024)))
    with pytest.raises(PipelineError, match="is compressed; run gunzip -k "):
        list(scan_tar(tmp_path / "x.tar"))


@given(st.data())
def test_a_tar_with_any_byte_changed_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    content = bytearray(plain_tar(folder / "x.tar", [("a.png", PNG), ("a.cls", b"1")]).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "x.tar").write_bytes(content)
    result = run("index", folder / "x.tar")
    assert result.exit_code in (0, 1)
    if result.exit_code == 1:
        assert "Error: " in result.stderr


def test_a_tar_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """The usual readers take one that is cut between members, or after the first empty block."""
    whole = plain_tar(tmp_path / "x.tar", [("a.png", PNG), ("a.cls", b"1")])
    content = whole.read_bytes()
    n_members = len(list(scan_tar(whole)))
    assert n_members == 2
    end = content.rstrip(b"\0")
    last = -(-len(end) // 512) * 512 + 1024
    cut = tmp_path / "cut.tar"
    for length in {*range(0, last, 512), *range(1, last, 397), last - 1}:
        cut.write_bytes(content[:length])
        with pytest.raises(PipelineError, match=r"cut\.tar"):
            list(scan_tar(cut))
    cut.write_bytes(content[:last])
    assert len(list(scan_tar(cut))) == 2


def test_a_flipped_header_and_joined_tars_are_refused(tmp_path: Path) -> None:
    content = bytearray(plain_tar(tmp_path / "x.tar", [("a.png", PNG)]).read_bytes())
    joined = tmp_path / "joined.tar"
    joined.write_bytes(content + content)
    with pytest.raises(PipelineError, match="goes on after its end"):
        list(scan_tar(joined))
    content[3] ^= 1
    joined.write_bytes(content)
    with pytest.raises(PipelineError, match="has no valid header at byte 0"):
        list(scan_tar(joined))


def test_tars_of_two_folders_are_no_set_and_a_made_set_is_left_alone(
    tmp_path: Path, copy: Path
) -> None:
    """Readers that name a cache by the last part of a path take the one for the other."""
    tars = [plain_tar(tmp_path / part / "x.tar", [("a.png", PNG)]) for part in "ab"]
    result = run("index", *tars)
    assert result.exit_code == 1
    assert "lie in two folders" in result.stderr
    result = run("index", *copy.glob("*.tar"))
    assert result.exit_code == 1
    assert "belongs to a set that pixmix-shard made there" in result.stderr


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["imagefolder", "nowhere", "out"], 1, "nowhere is no folder"),
        (["imagefolder", ".", "out"], 1, "out lies inside . and would become a class"),
        (["imagefolder", ".", "../out"], 1, "has no folder a class"),
        (["cifar10", "nowhere", "out"], 1, "holds neither cifar-10-batches-py/ nor"),
        (["mixing", "nowhere", "out"], 1, "nowhere does not exist"),
        (["digits", "out", "--num-shards", "2", "--shard-size", "3"], 2, "exclude each other"),
        (["digits", "out", "--num-shards", "5000"], 1, "cannot fill 5000 shards"),
        (["digits", "out", "--num-shards", "0"], 2, "--num-shards"),
        (["mixing", ".", "out", "--name", "Ä b"], 2, "name is 'Ä b'"),
        (["verify", "nowhere"], 1, "nowhere does not exist"),
        (["verify", "."], 1, "has no manifest.json"),
        (["verify", ".", "--decode", "some"], 2, "'some' is no number"),
        (["index", "nowhere.tar"], 1, "nowhere.tar is no file"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], exit_code: int, message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert "Traceback" not in result.output
