"""pixmix-shard writes to object stores, such as Amazon's and Google's."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("moto.server")

from object_store import AmazonStore, GoogleStore
from pipelines.shards import writer
from pipelines.shards.output import Bucket
from shard_commands import IMAGES, contents_of, run
from shard_sets import encoded

OPTIONS = ["--num-shards", 3, "--name", "s", "--dali-index", "--on-decode-error", "skip"]


@pytest.fixture(params=[AmazonStore, GoogleStore])
def server(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AmazonStore]:
    monkeypatch.setenv("PIXMIX_CACHE", str(tmp_path / "cache"))
    with request.param() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


amazon = pytest.mark.parametrize("server", [AmazonStore], indirect=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two classes with six images each, and a file that cannot be decoded."""
    root = tmp_path / "source"
    for i, image in enumerate(IMAGES[:12]):
        path = root / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image))
    (root / "a" / "empty.png").write_bytes(b"")
    return root


def written(*arguments: object, jobs: int = 1) -> int:
    """Run pixmix-shard, which must succeed; return the number of shards that it wrote."""
    result = run(*arguments, "--jobs", jobs, "--json")
    assert result.exit_code == 0, result.output
    return sum(each["written"] for each in json.loads(result.stdout)["sets"])


def objects(server: AmazonStore) -> dict[str, bytes]:
    """Return the objects below bucket/sets."""
    return {key.removeprefix("sets/"): content for key, content in server.objects().items()}


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_the_objects_are_the_files_of_a_folder(
    server: AmazonStore, source: Path, tmp_path: Path
) -> None:
    assert written("imagefolder", source, f"{server.url}/sets", *OPTIONS, jobs=2) == 3
    assert written("imagefolder", source, tmp_path / "folder", *OPTIONS) == 3
    assert len(objects(server)) == 3 + 3 + 3 + 3
    assert objects(server) == contents_of(tmp_path / "folder")
    assert server.written[-1] == "sets/manifest.json"
    assert not [*(tmp_path / "cache").rglob("*.jsonl")]
    assert run("verify", f"{server.url}/sets", "--decode", "all").exit_code == 0


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("when", ["at a shard", "at the index"])
def test_the_same_command_resumes_an_interrupted_one(
    server: AmazonStore,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    command = ["imagefolder", source, f"{server.url}/sets", *OPTIONS]
    put = Bucket._put

    def put_or_interrupt(self: Bucket, path: Path, name: str) -> None:
        if name == "s-02.tar":
            interrupt()
        put(self, path, name)

    with monkeypatch.context() as patched:
        if when == "at a shard":
            patched.setattr(Bucket, "_put", put_or_interrupt)
        else:
            patched.setattr(writer, "write_index", interrupt)
        assert run(*command, "--jobs", 1).exit_code == 130
    assert "manifest.json" not in objects(server)
    assert written(*command) == (1 if when == "at a shard" else 0)
    written("imagefolder", source, tmp_path / "folder", *OPTIONS)
    assert objects(server) == contents_of(tmp_path / "folder")


@amazon
@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_rejected_by_the_name_of_the_field(
    server: AmazonStore, source: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    command = ["imagefolder", source, f"{server.url}/sets", *OPTIONS]
    with monkeypatch.context() as patched:
        if not finished:
            patched.setattr(writer, "write_index", interrupt)
        run(*command, "--jobs", 1)
    before = objects(server)
    assert ("manifest.json" in before) == finished
    result = run(*command, "--seed", 1, "--jobs", 1)
    assert result.exit_code == 1
    assert f"seed: {server.url}/sets was started with 0" in result.stderr
    assert objects(server) == before


@amazon
@pytest.mark.usefixtures("in_this_process")
def test_a_complete_dataset_is_compared_with_files_that_have_changed(
    server: AmazonStore, source: Path
) -> None:
    command = ["imagefolder", source, f"{server.url}/sets", *OPTIONS]
    whole = encoded(IMAGES[0]).ljust(20_000, b"\0")
    (source / "a" / "00.png").write_bytes(whole)
    written(*command)
    before = objects(server)
    for path in source.rglob("*.png"):
        path.touch()
    assert written(*command) == 0
    (source / "a" / "00.png").write_bytes(encoded(IMAGES[20]).ljust(20_000, b"\0"))
    result = run(*command, "--jobs", 1)
    assert result.exit_code == 1
    assert f"a/00.png was changed after {server.url}/sets was made" in result.stderr
    assert objects(server) == before


@amazon
@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("lost", ["index.npy", "s-01.tar", "s-00.idx", "wids.json", "scan.jsonl"])
def test_the_same_command_repairs_a_dataset_that_lost_an_object(
    server: AmazonStore, source: Path, lost: str
) -> None:
    command = ["imagefolder", source, f"{server.url}/sets", *OPTIONS]
    written(*command)
    before = objects(server)
    # Files older than the clock skew that is allowed for count as unchanged.
    for path in source.rglob("*.png"):
        os.utime(path, (1e9, 1e9))
    Bucket(url=f"{server.url}/sets/").remove([lost])
    assert lost not in objects(server)
    written(*command)
    assert objects(server) == before


@amazon
@pytest.mark.usefixtures("in_this_process")
def test_splits_become_folders_of_the_address(
    server: AmazonStore, source: Path, tmp_path: Path
) -> None:
    for split in ("train", "val"):
        (tmp_path / "splits" / split).mkdir(parents=True)
        (tmp_path / "splits" / split / "b").symlink_to(source / "b")
    for out in (f"{server.url}/sets", tmp_path / "folder"):
        written("imagefolder", tmp_path / "splits", out, "--name", "s")
    assert objects(server) == contents_of(tmp_path / "folder")
    assert {"_info.json", "train/manifest.json", "val/manifest.json"} <= {*objects(server)}


@pytest.mark.parametrize("address", ["http://host/sets", "s3://", "ftp://host/sets"])
def test_addresses_that_cannot_be_written_are_rejected(source: Path, address: str) -> None:
    result = run("imagefolder", source, address)
    assert result.exit_code == 1
    assert "cannot be written; use a folder" in result.stderr
