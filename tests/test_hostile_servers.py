"""What a server can do to those who read from it: nothing past the bounds that they know before."""

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
    # Or that would be what is refused.
    document.pop("sha256")
    path.write_text(json.dumps(document))


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def refusal_of(server: FaultyServer, cache: ShardCache, access: RemoteAccess = QUICK) -> str:
    """Return the one line by which a set is refused."""
    with pytest.raises(PipelineError) as refused:
        open_remote(server.url("set"), cache=cache, access=access)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("where", ["absolute", "relative"])
def test_a_hash_that_is_a_path_leads_nowhere(
    server: FaultyServer, folder: Path, cache: ShardCache, tmp_path: Path, where: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    before = victim.stat()
    path = str(victim) if where == "absolute" else "../../victim"
    change_manifest(folder, index={"file": INDEX_NAME, "sha256": path})
    assert "64 hexadecimal digits" in refusal_of(server, cache)
    assert victim.stat() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["served", "victim"]


def test_an_endless_index_is_given_up_at_its_own_length(
    server: FaultyServer, cache: ShardCache
) -> None:
    server.always[f"set/{INDEX_NAME}"] = endless
    assert "more than" in refusal_of(server, cache)
    assert bytes_in(cache.folder) < 10_000


def test_an_endless_shard_is_given_up_at_its_own_length(
    server: FaultyServer, cache: ShardCache
) -> None:
    remote = open_remote(server.url("set"), cache=cache, access=QUICK)
    server.always["set/set-0001.tar"] = endless
    with pytest.raises(PipelineError, match=r"set-0001\.tar"):
        remote.files.hold(1)
    assert bytes_in(cache.folder) < 10_000


def test_an_endless_manifest_is_given_up(
    server: FaultyServer, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.shards.remote.MOST_MANIFEST_BYTES", 10_000)
    server.always[f"set/{MANIFEST_NAME}"] = endless
    assert MANIFEST_NAME in refusal_of(server, cache)


def test_a_length_that_is_too_large_is_refused_before_the_body(
    server: FaultyServer, cache: ShardCache
) -> None:
    server.always[f"set/{INDEX_NAME}"] = of(replaced(bytes(10**6)), dripping(0.1))
    assert "got 1000000 bytes" in refusal_of(server, cache)


@pytest.mark.parametrize("n", [10**7, 10**11])
def test_a_set_whose_index_exceeds_the_limit_is_refused_before_it_comes(
    server: FaultyServer, folder: Path, tmp_path: Path, n: int
) -> None:
    shard = {"file": "set-0000.tar", "num_samples": n, "bytes": 1024 * n, "sha256": "0" * 64}
    change_manifest(folder, num_samples=n, shards=[shard])
    limited = ShardCache(folder=tmp_path / "cache", limit_bytes=10**7)
    assert "raise the cache's limit" in refusal_of(server, limited)
    assert server.requests(f"set/{INDEX_NAME}") == []


def test_more_samples_than_a_tar_can_hold_are_refused(
    server: FaultyServer, folder: Path, cache: ShardCache
) -> None:
    shard = {"file": "set-0000.tar", "num_samples": 21, "bytes": 10240, "sha256": "0" * 64}
    change_manifest(folder, num_samples=21, shards=[shard])
    assert "set-0000.tar" in refusal_of(server, cache)


@pytest.mark.parametrize(
    "access",
    [
        QUICK,
        RemoteAccess(download_timeout_s=1.5, first_wait_s=0.01, longest_wait_s=0.02, stall_s=0.5),
    ],
)
@pytest.mark.parametrize("name", [MANIFEST_NAME, INDEX_NAME])
def test_a_server_that_drips_is_given_up(
    server: FaultyServer, cache: ShardCache, access: RemoteAccess, name: str
) -> None:
    server.always[f"set/{name}"] = dripping(0.05)
    begun = time.monotonic()
    assert "less than 1000 bytes a second" in refusal_of(server, cache, access)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("code", [429, 503])
def test_a_server_that_says_how_long_to_wait_is_left_alone_so_long(
    server: FaultyServer, cache: ShardCache, code: int
) -> None:
    server.faults[f"set/{MANIFEST_NAME}"] = [status(code, Retry_After="1")]
    begun = time.monotonic()
    open_remote(server.url("set"), cache=cache, access=QUICK)
    assert time.monotonic() - begun >= 1


def test_a_server_cannot_ask_for_more_than_the_patience(
    server: FaultyServer, cache: ShardCache
) -> None:
    server.always[f"set/{MANIFEST_NAME}"] = status(503, Retry_After="999999")
    access = RemoteAccess(download_timeout_s=0.5, first_wait_s=0.01, longest_wait_s=0.02)
    begun = time.monotonic()
    refusal_of(server, cache, access)
    assert time.monotonic() - begun < 5


def test_a_date_to_wait_for_is_read_and_nonsense_is_not() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=60)
    assert 50 < asked_pause_s(format_datetime(soon, usegmt=True)) <= 60
    assert asked_pause_s(format_datetime(soon - timedelta(hours=1), usegmt=True)) == 0
    assert asked_pause_s("7") == 7
    for nonsense in ("", "-1", "soon", "1e9", "9" * 1000, "Wed, 99 Foo 2026 00:00:00 GMT"):
        assert asked_pause_s(nonsense) == 0


def test_a_bit_that_flips_in_the_cache_is_seen_and_mended(
    server: FaultyServer, folder: Path, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = open_remote(server.url("set"), cache=cache, access=QUICK)
    wanted = (folder / "set" / "set-0001.tar").read_bytes()
    with remote.files.hold(1) as held:
        path = held.path
    before = path.stat()
    path.write_bytes(wanted[:700] + bytes([wanted[700] ^ 1]) + wanted[701:])

    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    # As in a new process.
    monkeypatch.setattr("pipelines.shards.cache._found", {})
    with remote.files.hold(1) as held:
        assert held.path.read_bytes() == wanted
    assert len(server.requests("set/set-0001.tar")) == 2
    with remote.files.hold(1):
        assert len(server.requests("set/set-0001.tar")) == 2


def test_an_index_whose_bit_flips_in_the_cache_comes_again(
    server: FaultyServer, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_remote(server.url("set"), cache=cache, access=QUICK).shards.samples.copy()
    (path,) = cache.files.glob("*[0-9a-f]")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr("pipelines.shards.cache._found", {})
    after = open_remote(server.url("set"), cache=cache, access=QUICK).shards.samples
    assert after.tobytes() == before.tobytes()


def test_a_file_of_the_cache_is_hashed_once_a_node(
    server: FaultyServer, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    monkeypatch.setattr(
        "pipelines.shards.cache.file_sha256",
        lambda path: hashed.append(path.name) or hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    for _ in range(2):
        monkeypatch.setattr("pipelines.shards.cache._found", {})
        with open_remote(server.url("set"), cache=cache).files.hold(0):
            pass
    # As it came.
    assert hashed == []


def test_a_cache_that_is_emptied_on_the_way_is_filled_again(
    server: FaultyServer, folder: Path, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Download.finish
    emptied: list[int] = []

    def emptied_before(self: Download) -> None:
        if len(emptied) < 2:
            emptied.append(1)
            shutil.rmtree(cache.folder)
        finish(self)

    monkeypatch.setattr(Download, "finish", emptied_before)
    wanted = (folder / "set" / "set-0000.tar").read_bytes()
    sha256 = hashlib.sha256(wanted).hexdigest()
    with fetch(
        server.url("set/set-0000.tar"), sha256=sha256, n_bytes=len(wanted), cache=cache
    ) as held:
        assert held.path.read_bytes() == wanted
    assert len(emptied) == 2


def test_a_cache_that_is_emptied_for_ever_is_told_of(
    server: FaultyServer, folder: Path, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Download.finish

    def emptied_before(self: Download) -> None:
        shutil.rmtree(cache.folder)
        finish(self)

    monkeypatch.setattr(Download, "finish", emptied_before)
    wanted = (folder / "set" / "set-0000.tar").read_bytes()
    sha256 = hashlib.sha256(wanted).hexdigest()
    with pytest.raises(PipelineError, match="was removed while"):
        fetch(server.url("set/set-0000.tar"), sha256=sha256, n_bytes=len(wanted), cache=cache)
