"""Hostile servers: downloads stay within the limits that are known in advance."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from faulty_server import FaultyServer, dripping, endless, of, replaced, status
from pipelines.errors import PipelineError
from pipelines.shards.cache import Download, ShardCache
from pipelines.shards.format import INDEX_NAME, MANIFEST_NAME
from pipelines.shards.remote import fetch
from pipelines.system.attempts import asked_pause_s
from pipelines.system.objects import RemoteAccess
from shard_sets import drawn_images, encoded, write_shards
from test_remote import open_remote

QUICK = RemoteAccess(attempts=3, first_wait_s=0.01, longest_wait_s=0.02, stall_s=0.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = [encoded(image) for image in drawn_images(6)]
    return write_shards(tmp_path / "served" / "set", images, sizes=[2, 2, 2]).parent


@pytest.fixture
def server(folder: Path) -> Iterator[FaultyServer]:
    with FaultyServer(folder) as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(folder=tmp_path / "cache")


def change_manifest(folder: Path, **changes: object) -> None:
    path = folder / "set" / MANIFEST_NAME
    document = json.loads(path.read_bytes()) | changes
    # Otherwise the wrong hash would be the error.
    document.pop("sha256")
    path.write_text(json.dumps(document))


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def error_of(server: FaultyServer, cache: ShardCache, access: RemoteAccess = QUICK) -> str:
    """Return the one-line error of opening the dataset."""
    with pytest.raises(PipelineError) as caught:
        open_remote(server.url("set"), cache=cache, access=access)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("where", ["absolute", "relative"])
def test_a_hash_that_is_a_path_is_rejected(
    server: FaultyServer, folder: Path, cache: ShardCache, tmp_path: Path, where: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    before = victim.stat()
    path = str(victim) if where == "absolute" else "../../victim"
    change_manifest(folder, index={"file": INDEX_NAME, "sha256": path})
    assert "64 hexadecimal digits" in error_of(server, cache)
    assert victim.stat() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["served", "victim"]


def test_an_endless_index_is_cut_at_its_expected_length(
    server: FaultyServer, cache: ShardCache
) -> None:
    server.always[f"set/{INDEX_NAME}"] = endless
    assert "more than" in error_of(server, cache)
    assert bytes_in(cache.folder) < 10_000


def test_an_endless_shard_is_cut_at_its_expected_length(
    server: FaultyServer, cache: ShardCache
) -> None:
    remote = open_remote(server.url("set"), cache=cache, access=QUICK)
    server.always["set/set-0001.tar"] = endless
    with pytest.raises(PipelineError, match=r"set-0001\.tar"):
        remote.files.hold(1)
    assert bytes_in(cache.folder) < 10_000


def test_an_endless_manifest_is_cut_at_the_limit(
    server: FaultyServer, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.shards.remote.MAX_MANIFEST_BYTES", 10_000)
    server.always[f"set/{MANIFEST_NAME}"] = endless
    assert MANIFEST_NAME in error_of(server, cache)


def test_a_length_header_that_is_too_large_is_rejected_before_the_body(
    server: FaultyServer, cache: ShardCache
) -> None:
    server.always[f"set/{INDEX_NAME}"] = of(replaced(bytes(10**6)), dripping(0.1))
    assert "got 1000000 bytes" in error_of(server, cache)


@pytest.mark.parametrize("n", [10**7, 10**11])
def test_an_index_larger_than_the_cache_limit_is_rejected_before_its_download(
    server: FaultyServer, folder: Path, tmp_path: Path, n: int
) -> None:
    shard = {"file": "set-0000.tar", "num_samples": n, "bytes": 1024 * n, "sha256": "0" * 64}
    change_manifest(folder, num_samples=n, shards=[shard])
    limited = ShardCache(folder=tmp_path / "cache", limit_bytes=10**7)
    assert "raise --cache-limit" in error_of(server, limited)
    assert server.requests(f"set/{INDEX_NAME}") == []


def test_more_samples_than_fit_into_a_tar_are_rejected(
    server: FaultyServer, folder: Path, cache: ShardCache
) -> None:
    shard = {"file": "set-0000.tar", "num_samples": 21, "bytes": 10240, "sha256": "0" * 64}
    change_manifest(folder, num_samples=21, shards=[shard])
    assert "set-0000.tar" in error_of(server, cache)


@pytest.mark.parametrize(
    "access",
    [
        QUICK,
        RemoteAccess(download_timeout_s=1.5, first_wait_s=0.01, longest_wait_s=0.02, stall_s=0.5),
    ],
)
@pytest.mark.parametrize("name", [MANIFEST_NAME, INDEX_NAME])
def test_a_very_slow_server_is_an_error(
    server: FaultyServer, cache: ShardCache, access: RemoteAccess, name: str
) -> None:
    server.always[f"set/{name}"] = dripping(0.05)
    started = time.monotonic()
    assert "less than 1000 bytes a second" in error_of(server, cache, access)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_is_honored(server: FaultyServer, cache: ShardCache, code: int) -> None:
    server.faults[f"set/{MANIFEST_NAME}"] = [status(code, Retry_After="1")]
    started = time.monotonic()
    open_remote(server.url("set"), cache=cache, access=QUICK)
    assert time.monotonic() - started >= 1


def test_retry_after_is_limited_by_the_download_timeout(
    server: FaultyServer, cache: ShardCache
) -> None:
    server.always[f"set/{MANIFEST_NAME}"] = status(503, Retry_After="999999")
    access = RemoteAccess(download_timeout_s=0.5, first_wait_s=0.01, longest_wait_s=0.02)
    started = time.monotonic()
    error_of(server, cache, access)
    assert time.monotonic() - started < 5


def test_retry_after_may_be_a_date_and_invalid_values_are_ignored() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=60)
    assert 50 < asked_pause_s(format_datetime(soon, usegmt=True)) <= 60
    assert asked_pause_s(format_datetime(soon - timedelta(hours=1), usegmt=True)) == 0
    assert asked_pause_s("7") == 7
    for nonsense in ("", "-1", "soon", "1e9", "9" * 1000, "Wed, 99 Foo 2026 00:00:00 GMT"):
        assert asked_pause_s(nonsense) == 0


def test_a_flipped_bit_in_a_cached_shard_is_detected_and_repaired(
    server: FaultyServer, folder: Path, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = open_remote(server.url("set"), cache=cache, access=QUICK)
    content = (folder / "set" / "set-0001.tar").read_bytes()
    with remote.files.hold(1) as held:
        path = held.path
    before = path.stat()
    path.write_bytes(content[:700] + bytes([content[700] ^ 1]) + content[701:])

    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    # As in a new process.
    monkeypatch.setattr("pipelines.shards.cache._verified", {})
    with remote.files.hold(1) as held:
        assert held.path.read_bytes() == content
    assert len(server.requests("set/set-0001.tar")) == 2
    with remote.files.hold(1):
        assert len(server.requests("set/set-0001.tar")) == 2


def test_a_flipped_bit_in_a_cached_index_is_repaired(
    server: FaultyServer, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_remote(server.url("set"), cache=cache, access=QUICK).shards.samples.copy()
    (path,) = cache.files.glob("*[0-9a-f]")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr("pipelines.shards.cache._verified", {})
    after = open_remote(server.url("set"), cache=cache, access=QUICK).shards.samples
    assert after.tobytes() == before.tobytes()


def test_downloaded_files_are_not_hashed_again(
    server: FaultyServer, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    monkeypatch.setattr(
        "pipelines.shards.cache.file_sha256",
        lambda path: hashed.append(path.name) or hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    for _ in range(2):
        monkeypatch.setattr("pipelines.shards.cache._verified", {})
        with open_remote(server.url("set"), cache=cache).files.hold(0):
            pass
    # The files were hashed during the download.
    assert hashed == []


def test_a_cache_emptied_during_downloads_is_filled_again(
    server: FaultyServer, folder: Path, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Download.finish
    emptied: list[int] = []

    def empty_and_finish(self: Download) -> None:
        if len(emptied) < 2:
            emptied.append(1)
            shutil.rmtree(cache.folder)
        finish(self)

    monkeypatch.setattr(Download, "finish", empty_and_finish)
    content = (folder / "set" / "set-0000.tar").read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    with fetch(
        server.url("set/set-0000.tar"), sha256=sha256, n_bytes=len(content), cache=cache
    ) as held:
        assert held.path.read_bytes() == content
    assert len(emptied) == 2


def test_a_cache_that_is_always_emptied_is_an_error(
    server: FaultyServer, folder: Path, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Download.finish

    def empty_and_finish(self: Download) -> None:
        shutil.rmtree(cache.folder)
        finish(self)

    monkeypatch.setattr(Download, "finish", empty_and_finish)
    content = (folder / "set" / "set-0000.tar").read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    with pytest.raises(PipelineError, match=r"was removed .* while"):
        fetch(server.url("set/set-0000.tar"), sha256=sha256, n_bytes=len(content), cache=cache)
