import os
import threading
from pathlib import Path

import pytest

from pipelines.errors import PipelineError
from pipelines.shards import verified
from pipelines.shards.cache import ShardCache
from pipelines.shards.format import open_shards
from pipelines.shards.verified import verified_once, verify_shards_once
from pipelines.system.files import file_sha256
from shard_sets import write_shards


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(folder=tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "set", [b"picture %d" % i for i in range(7)], sizes=[3, 2, 2])


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the files that are hashed, as they are."""
    names = []

    def note(path: Path) -> str:
        names.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(verified, "file_sha256", note)
    return names


def test_shards_are_read_once_and_again_when_they_change(
    folder: Path, cache: ShardCache, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = open_shards(folder)
    told: list[tuple[int, int]] = []
    verify_shards_once(
        shards, cache, threads=2, progress=lambda done, total: told.append((done, total))
    )
    assert sorted(read) == [f"set-000{number}.tar" for number in range(3)]
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    as_in_a_new_process(monkeypatch)
    verify_shards_once(open_shards(folder), cache)
    assert len(read) == 3
    path = shards.path(1)
    path.write_bytes(path.read_bytes())
    verify_shards_once(shards, cache)
    assert read[3:] == ["set-0001.tar"]


def test_a_flipped_bit_is_refused_also_when_the_file_looks_as_before(
    folder: Path, cache: ShardCache
) -> None:
    shards = open_shards(folder)
    verify_shards_once(shards, cache)
    path = shards.path(2)
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(600)
        file.write(b"?")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    # A second time too: what was found is remembered, and was wrong.
    for _ in range(2):
        with pytest.raises(PipelineError, match=r"set-0002.tar has SHA-256 .* the manifest says"):
            verify_shards_once(shards, cache)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "set-0000.tar is missing"),
        (lambda path: path.write_bytes(b"short"), "has 5 bytes, the manifest says"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "copy it again"),
    ],
)
def test_what_is_missing_cut_or_another_file_is_refused(
    folder: Path, cache: ShardCache, change: object, message: str
) -> None:
    shards = open_shards(folder)
    assert callable(change)
    change(shards.path(0))
    with pytest.raises(PipelineError, match=message):
        verify_shards_once(shards, cache)


def as_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what this process found itself."""
    monkeypatch.setattr(verified, "_found", {})


def test_a_damaged_memory_is_made_anew(
    folder: Path, cache: ShardCache, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = open_shards(folder)
    verify_shards_once(shards, cache)
    for stamp in (cache.folder / "verified").glob("*.json"):
        stamp.write_bytes(b"{")
    for _ in range(2):
        as_in_a_new_process(monkeypatch)
        verify_shards_once(shards, cache)
    assert len(read) == 6


def test_of_many_that_ask_at_once_one_reads(
    folder: Path, cache: ShardCache, read: list[str]
) -> None:
    shard, path = open_shards(folder).shards[0], folder / "set-0000.tar"
    threads = [
        threading.Thread(target=verified_once, args=(path, shard.sha256, shard.n_bytes, cache))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == ["set-0000.tar"]


def test_a_file_that_changes_while_it_is_read_is_refused(
    folder: Path, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(path: Path) -> str:
        found = file_sha256(path)
        path.write_bytes(path.read_bytes())
        return found

    monkeypatch.setattr(verified, "file_sha256", change)
    shard, path = open_shards(folder).shards[0], folder / "set-0000.tar"
    with pytest.raises(PipelineError, match="changed while it was read"):
        verified_once(path, shard.sha256, shard.n_bytes, cache)


def test_no_threads_are_refused(folder: Path, cache: ShardCache) -> None:
    with pytest.raises(ValueError, match="threads is 0; give at least 1"):
        verify_shards_once(open_shards(folder), cache, threads=0)
