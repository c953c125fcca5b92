"""The cache of shards: eviction, locks and limits."""

import errno
import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.errors import PipelineError
from pipelines.shards import cache as cache_module
from pipelines.shards.cache import (
    CacheFullError,
    Download,
    HeldFile,
    ShardCache,
    cache_folder,
    verified_once,
)
from pipelines.shards.format import ShardSet, open_shards
from pipelines.system.attempts import StoppedError
from pipelines.system.files import file_sha256
from shard_sets import write_shards

NEVER = threading.Event()


def name_of(number: int) -> str:
    return hashlib.sha256(b"%d" % number).hexdigest()


def put(cache: ShardCache, number: int, n_bytes: int = 1000) -> HeldFile:
    """Download a file into the cache, and hold it."""
    place = cache.begin(name_of(number), n_bytes, NEVER)
    if isinstance(place, Download):
        place.file.write(bytes(n_bytes))
        place.finish()
        place = cache.begin(name_of(number), n_bytes, NEVER)
    assert isinstance(place, HeldFile)
    return place


def numbers_in(cache: ShardCache, *, limit: int = 20) -> list[int]:
    """Return the numbers of the complete files of a cache."""
    return [number for number in range(limit) if (cache.files / name_of(number)).exists()]


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(folder=tmp_path, limit_bytes=3500)


def test_the_cache_folder_comes_from_the_argument_the_environment_or_the_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    monkeypatch.setenv("PIXMIX_CACHE", "/own")
    assert cache_folder(Path("given")) == Path("given")
    assert cache_folder() == Path("/own")
    monkeypatch.setenv("PIXMIX_CACHE", "")
    assert cache_folder() == Path("/shared/pixmix")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path("/home/someone/.cache/pixmix")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/someone/.cache/pixmix")


def test_the_least_recently_used_file_is_removed_first(cache: ShardCache) -> None:
    for number in range(3):
        put(cache, number).release()
    put(cache, 0).release()
    put(cache, 3).release()
    assert numbers_in(cache) == [0, 2, 3]
    put(cache, 4, n_bytes=3000).release()
    assert numbers_in(cache) == [4]


def test_held_files_stay_and_a_full_cache_is_an_error(cache: ShardCache) -> None:
    held = [put(cache, number) for number in range(2)]
    put(cache, 2).release()
    held.append(put(cache, 3))
    assert numbers_in(cache) == [0, 1, 3]
    with pytest.raises(CacheFullError, match="is 3500 bytes, and 3000 are in use"):
        put(cache, 4)
    assert numbers_in(cache) == [0, 1, 3]
    assert not list(cache.files.glob("*.partial"))
    held[1].release()
    held[1].release()
    put(cache, 4).release()
    assert numbers_in(cache) == [0, 3, 4]
    for one in held:
        one.release()


def test_holding_and_releasing_a_file_record_its_use(cache: ShardCache) -> None:
    put(cache, 0).release()
    path = cache.folder / "used" / name_of(0)
    its_own = (cache.files / name_of(0)).stat()
    os.utime(path, (0, 0))
    held = put(cache, 0)
    assert path.stat().st_mtime > 0
    os.utime(path, (0, 0))
    held.release()
    assert path.stat().st_mtime > 0
    assert (cache.files / name_of(0)).stat().st_ctime_ns == its_own.st_ctime_ns


def test_a_file_that_is_finished_before_its_lock_is_acquired_is_not_written_again(
    cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = ShardCache.hold
    asked = []

    def finished_just_after(self: ShardCache, sha256: str, n_bytes: int | None) -> HeldFile | None:
        asked.append(sha256)
        if len(asked) > 1:
            return hold(self, sha256, n_bytes)
        cache.files.mkdir()
        (cache.files / name_of(0)).write_bytes(bytes(1000))
        return None

    monkeypatch.setattr(ShardCache, "hold", finished_just_after)
    place = cache.begin(name_of(0), 1000, NEVER)
    assert isinstance(place, HeldFile)
    place.release()
    assert not list(cache.files.glob("*.partial"))


def test_a_partial_file_that_is_removed_before_its_lock_is_acquired_is_not_written(
    cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    try_lock = cache_module.try_lock
    asked = []

    def removed_just_before(descriptor: int, kind: int, path: Path) -> bool:
        asked.append(path)
        if len(asked) == 1:
            path.unlink()
        return try_lock(descriptor, kind, path)

    monkeypatch.setattr(cache_module, "try_lock", removed_just_before)
    put(cache, 0).release()
    assert numbers_in(cache) == [0]


def test_a_file_that_is_held_twice_stays_until_both_release_it(cache: ShardCache) -> None:
    first, second = put(cache, 0, 3000), put(cache, 0, 3000)
    first.release()
    with pytest.raises(CacheFullError):
        put(cache, 1)
    second.release()
    put(cache, 1).release()
    assert numbers_in(cache) == [1]


def test_a_held_file_that_is_garbage_collected_is_released(cache: ShardCache) -> None:
    held = put(cache, 0, 3000)
    del held
    put(cache, 1).release()
    assert numbers_in(cache) == [1]


def test_a_file_larger_than_the_limit_is_rejected(
    cache: ShardCache,
) -> None:
    with pytest.raises(CacheFullError, match="3500 bytes, too small for a file of 3501 bytes"):
        put(cache, 0, 3501)
    put(cache, 0, 3500).release()


def test_downloads_reserve_their_full_size(cache: ShardCache) -> None:
    place = cache.begin(name_of(0), 3000, NEVER)
    assert isinstance(place, Download)
    with pytest.raises(CacheFullError):
        put(cache, 1)
    place.leave(keep=True)
    put(cache, 1).release()


def test_the_partial_file_of_a_killed_download_can_be_removed(cache: ShardCache) -> None:
    place = cache.begin(name_of(0), 3000, NEVER)
    assert isinstance(place, Download)
    place.file.write(bytes(10))
    place.leave(keep=True)
    assert len(list(cache.files.glob("*.partial"))) == 1
    put(cache, 1).release()
    assert not list(cache.files.glob("*.partial"))


def test_without_a_limit_the_disk_keeps_a_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(folder=tmp_path)
    put(cache, 0).release()
    free = 900

    def disk_usage(_path: Path) -> object:
        there = sum(path.stat().st_size for path in cache.files.iterdir())
        return type("Usage", (), {"total": 10_000, "free": free + 1000 - there})

    monkeypatch.setattr(cache_module.shutil, "disk_usage", disk_usage)
    # 900 bytes are free, 500 of them are the reserve: the older file is removed.
    put(cache, 1, 500).release()
    assert numbers_in(cache) == [1]
    # The reserve is used before a file is refused.
    with put(cache, 1, 500):
        put(cache, 2, 1400).release()
        with pytest.raises(CacheFullError, match="has no room for 1401 bytes; free some space"):
            put(cache, 3, 1401)


def test_a_damaged_file_is_removed(cache: ShardCache) -> None:
    put(cache, 0).release()
    (cache.files / name_of(0)).write_bytes(bytes(999))
    assert cache.hold(name_of(0), 1000) is None
    assert numbers_in(cache) == []


def test_other_files_are_neither_counted_nor_removed(cache: ShardCache) -> None:
    put(cache, 0).release()
    (cache.files / "notes.partial").write_bytes(bytes(10_000))
    put(cache, 1, 3500).release()
    assert numbers_in(cache) == [1]
    assert (cache.files / "notes.partial").exists()


def test_waiting_for_a_download_can_be_stopped(cache: ShardCache) -> None:
    place = cache.begin(name_of(0), 1000, NEVER)
    assert isinstance(place, Download)
    stop = threading.Event()
    timer = threading.Timer(0.2, stop.set)
    timer.start()
    with pytest.raises(StoppedError):
        cache.begin(name_of(0), 1000, stop)
    timer.join()
    place.leave(keep=True)


def test_only_one_of_many_threads_downloads(cache: ShardCache) -> None:
    written = []

    def work() -> None:
        place = cache.begin(name_of(0), 1000, NEVER)
        if isinstance(place, Download):
            written.append(place.file.write(bytes(1000)))
            place.finish()
            place = cache.begin(name_of(0), 1000, NEVER)
        assert isinstance(place, HeldFile)
        place.release()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written == [1000]


FORK = """
import os, sys, time
from pathlib import Path
from pipelines.shards.cache import Download
from test_cache import NEVER, ShardCache, name_of, put

cache = ShardCache(folder=Path(sys.argv[1]), limit_bytes=3500)
held, kept = put(cache, 0, 1000), put(cache, 3, 1000)
place = cache.begin(name_of(1), 1000, NEVER)
assert isinstance(place, Download)
child = os.fork()
if child == 0:
    # It has copies of all descriptors; releasing one must not free the lock of its parent.
    held.release()
    print("released", flush=True)
    time.sleep(60)
    os._exit(0)
time.sleep(0.5)
try:
    put(cache, 2, 2000)
except Exception as error:
    print(type(error).__name__, flush=True)
place.file.write(bytes(1000))
place.finish()
held.release()
kept.release()
# The child is alive and still has two of the descriptors.
put(cache, 1).release()
put(cache, 2, 3500).release()
print("done", flush=True)
os.kill(child, 9)
"""


def test_a_forked_process_neither_frees_nor_keeps_the_locks_of_its_parent(tmp_path: Path) -> None:
    tests = Path(__file__).parent
    output = subprocess.run(
        [sys.executable, "-c", FORK, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert output.split() == ["released", "CacheFullError", "done"]


def test_a_limit_below_one_is_rejected() -> None:
    with pytest.raises(ValueError, match="limit_bytes is 0; use at least 1"):
        ShardCache(limit_bytes=0)


def test_a_file_system_without_locks_is_reported(
    cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int, _kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(PipelineError, match=r"not support file locks .* PIXMIX_CACHE"):
        put(cache, 0)


# --- a cache that other users can write to---------------------------------------------------------


def partial_of(cache: ShardCache, number: int = 0, n_bytes: int = 1000) -> Path:
    cache.files.mkdir(exist_ok=True)
    return cache.files / f"{name_of(number)}.{n_bytes}.partial"


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "socket"])
@pytest.mark.parametrize("whole", [False, True])
def test_links_pipes_and_sockets_are_never_written_through(
    cache: ShardCache, tmp_path: Path, kind: str, whole: bool
) -> None:
    victim = tmp_path / "victim"
    if kind == "link":
        victim.write_bytes(b"precious")
        os.utime(victim, (1, 1))
    partial = partial_of(cache)
    path = cache.files / name_of(0) if whole else partial
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        short = Path(os.path.relpath(path))
        with socket.socket(socket.AF_UNIX) as listener, suppress(OSError):
            listener.bind(str(short))
    else:
        path.symlink_to(victim)
    put(cache, 0).release()
    assert (cache.files / name_of(0)).lstat().st_size == 1000
    assert numbers_in(cache) == [0]
    assert victim.exists() == (kind == "link")
    if kind == "link":
        assert victim.read_bytes() == b"precious"
        assert victim.stat().st_mtime == 1


def test_a_partial_file_with_other_hard_links_is_not_written(
    cache: ShardCache, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    partial_of(cache).hardlink_to(victim)
    with pytest.raises(PipelineError, match="has other hard links"):
        put(cache, 0)
    assert victim.read_bytes() == b"precious"


def test_a_link_in_place_of_a_use_record_is_not_followed(cache: ShardCache, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    os.utime(victim, (1, 1))
    put(cache, 0).release()
    used = cache.folder / "used" / name_of(0)
    used.unlink()
    used.symlink_to(victim)
    put(cache, 0).release()
    assert victim.stat().st_mtime == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the owner of a file")
def test_a_partial_file_of_another_user_is_not_written(cache: ShardCache) -> None:
    partial = partial_of(cache)
    partial.write_bytes(b"begun")
    os.chown(partial, 65534, 65534)
    with pytest.raises(PipelineError, match=r"belongs to another user .* PIXMIX_CACHE"):
        put(cache, 0)
    assert partial.read_bytes() == b"begun"


READ_ONLY = """
import sys
from pathlib import Path
from pipelines.errors import PipelineError
from test_cache import ShardCache, put

cache = ShardCache(folder=Path(sys.argv[1]))
put(cache, 0).release()
print("read", flush=True)
try:
    put(cache, 1)
except PipelineError as error:
    print(error)
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="becomes another user"
)
def test_a_read_only_cache_is_read() -> None:
    tests = Path(__file__).parent
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        put(ShardCache(folder=folder), 0).release()
        folder.chmod(0o755)
        done = subprocess.run(
            [
                *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
                *(sys.executable, "-B", "-c", READ_ONLY, str(folder)),
            ],
            env=os.environ | {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"},
            capture_output=True,
            text=True,
            check=False,
        )
    if "ModuleNotFoundError" in done.stderr or "No module named" in done.stderr:
        pytest.skip("another user cannot read this Python")
    read, refusal = done.stdout.splitlines()
    assert read == "read", done.stderr
    assert "this cache cannot be used for downloads" in refusal


# --- recorded hashes -------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "set", [b"image %d" % i for i in range(7)], sizes=[3, 2, 2])


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the files that are hashed."""
    names = []

    def note(path: Path) -> str:
        names.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(cache_module, "file_sha256", note)
    return names


def check_shards(shards: ShardSet, cache: ShardCache) -> None:
    for number, shard in enumerate(shards.shards):
        verified_once(shards.path(number), shard.sha256, shard.n_bytes, cache)


def test_shards_are_hashed_once_and_again_when_they_change(
    folder: Path, cache: ShardCache, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = open_shards(folder)
    check_shards(shards, cache)
    assert sorted(read) == [f"set-000{number}.tar" for number in range(3)]
    as_in_a_new_process(monkeypatch)
    check_shards(open_shards(folder), cache)
    assert len(read) == 3
    path = shards.path(1)
    path.write_bytes(path.read_bytes())
    check_shards(shards, cache)
    assert read[3:] == ["set-0001.tar"]


def test_a_flipped_bit_is_detected_although_the_modification_time_is_the_same(
    folder: Path, cache: ShardCache
) -> None:
    shards = open_shards(folder)
    check_shards(shards, cache)
    path = shards.path(2)
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(600)
        file.write(b"?")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    # Also the second time, when the wrong hash is on record.
    for _ in range(2):
        with pytest.raises(
            PipelineError, match=r"set-0002.tar has SHA-256 .* expected .* by the manifest"
        ):
            check_shards(shards, cache)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "set-0000.tar is missing"),
        (lambda path: path.write_bytes(b"short"), "has 5 bytes, expected"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "copy it again"),
    ],
)
def test_a_missing_cut_off_or_different_shard_is_rejected(
    folder: Path, cache: ShardCache, change: object, message: str
) -> None:
    shards = open_shards(folder)
    assert callable(change)
    change(shards.path(0))
    with pytest.raises(PipelineError, match=message):
        check_shards(shards, cache)


def as_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the hashes that this process computed."""
    monkeypatch.setattr(cache_module, "_verified", {})


def test_damaged_hash_records_are_written_again(
    folder: Path, cache: ShardCache, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = open_shards(folder)
    check_shards(shards, cache)
    for stamp in (cache.folder / "verified").glob("*.json"):
        stamp.write_bytes(b"{")
    for _ in range(2):
        as_in_a_new_process(monkeypatch)
        check_shards(shards, cache)
    assert len(read) == 6


def test_one_of_many_threads_hashes_a_file(
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


def test_a_file_that_changes_while_it_is_hashed_is_rejected(
    folder: Path, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(path: Path) -> str:
        found = file_sha256(path)
        path.write_bytes(path.read_bytes())
        return found

    monkeypatch.setattr(cache_module, "file_sha256", change)
    shard, path = open_shards(folder).shards[0], folder / "set-0000.tar"
    with pytest.raises(PipelineError, match="changed while it was read"):
        verified_once(path, shard.sha256, shard.n_bytes, cache)
