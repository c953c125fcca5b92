"""Downloads of files and sets of shards, from a server with faults."""

import asyncio
import hashlib
import json
import os
import pickle
import random
import resource
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from faulty_server import (
    Fault,
    FaultyServer,
    another_range,
    cut,
    flip,
    of,
    replaced,
    slowly,
    stall,
    status,
    without_length,
    without_ranges,
)
from pipelines.errors import PipelineError
from pipelines.shards.cache import HeldFile, ShardCache
from pipelines.shards.format import MANIFEST_NAME, MAX_MANIFEST_BYTES, open_shards
from pipelines.shards.remote import Remote, RemoteShards, fetch, open_set
from pipelines.system.attempts import StoppedError
from pipelines.system.objects import RemoteAccess, is_remote, shown
from shard_sets import write_shards

TESTS = Path(__file__).parent
CONTENT = random.Random(0).randbytes(100_000)
ACCESS = RemoteAccess(attempts=4, first_wait_s=0.01, longest_wait_s=0.05, stall_s=0.3)

pytestmark = pytest.mark.usefixtures("no_proxy")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.tar").write_bytes(CONTENT)
    with FaultyServer(folder) as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(folder=tmp_path / "cache")


def fetch_content(url: str, cache: ShardCache, access: RemoteAccess = ACCESS) -> HeldFile:
    return fetch(url, sha256=sha256(CONTENT), n_bytes=len(CONTENT), cache=cache, access=access)


def open_remote(
    where: str, cache: ShardCache, access: RemoteAccess | None = None, pin: str | None = None
) -> RemoteShards:
    remote = Remote(
        access=access or RemoteAccess(), manifest_sha256=pin, limit_bytes=cache.limit_bytes
    )
    return open_set(where, cache_dir=cache.folder, remote=remote)


def files_of(cache: ShardCache) -> dict[str, int]:
    """Return the names and sizes of the files in the cache."""
    return {
        path.name: path.stat().st_size for path in cache.files.iterdir() if path.suffix != ".lock"
    }


def test_a_file_is_downloaded_once(server: FaultyServer, cache: ShardCache) -> None:
    for _ in range(3):
        with fetch_content(server.url("a.tar"), cache) as held:
            assert held.path.read_bytes() == CONTENT
    assert server.requests("a.tar") == [None]
    assert files_of(cache) == {sha256(CONTENT): len(CONTENT)}


@pytest.mark.parametrize(
    ("faults", "asked"),
    [
        pytest.param([cut(30_000)], [None, "bytes=30000-"], id="cut"),
        pytest.param(
            [cut(30_000), cut(30_000), cut(30_000), cut(5_000), cut(1_000), cut(1_000)],
            [None, *(f"bytes={n}000-" for n in (30, 60, 90, 95, 96, 97))],
            id="cut more often than attempts, but further each time",
        ),
        pytest.param([stall(30_000)], [None, "bytes=30000-"], id="stalled"),
        pytest.param([stall(0)], [None, None], id="silent"),
        pytest.param([status(503)] * 3, [None] * 4, id="busy"),
        pytest.param([status(429)], [None] * 2, id="too many requests"),
        pytest.param([cut(0)], [None, None], id="cut before the first byte"),
        pytest.param(
            [cut(30_000), without_ranges], [None, "bytes=30000-"], id="cut, ranges ignored"
        ),
        pytest.param(
            [cut(30_000), of(without_ranges, cut(20_000))],
            [None, "bytes=30000-", "bytes=20000-"],
            id="cut, ranges ignored, cut before that",
        ),
        pytest.param(
            [cut(30_000), another_range],
            [None, "bytes=30000-", None],
            id="cut, another range given",
        ),
        pytest.param(
            [of(without_length, cut(30_000))], [None, "bytes=30000-"], id="cut without a length"
        ),
        pytest.param([without_length], [None], id="whole without a length"),
        pytest.param([flip(77)], [None, None], id="a flipped bit"),
        pytest.param([flip(77)] * 2, [None] * 3, id="a flipped bit twice"),
        pytest.param(
            [cut(30_000), flip(40_000)],
            [None, "bytes=30000-", None],
            id="cut, a flipped bit in the rest",
        ),
        pytest.param([replaced(CONTENT[:-1])], [None, None], id="too short"),
        pytest.param([replaced(CONTENT + b"x")], [None, None], id="too long"),
        pytest.param(
            [of(replaced(CONTENT + b"x"), without_length)],
            [None, None],
            id="too long without a length",
        ),
        pytest.param(
            [cut(30_000), replaced(CONTENT[:20_000])],
            [None, "bytes=30000-", None],
            id="cut, then shorter than what had come",
        ),
    ],
)
def test_transient_faults_end_in_the_right_content(
    server: FaultyServer, cache: ShardCache, faults: list[Fault], asked: list[str | None]
) -> None:
    server.faults["a.tar"] = list(faults)
    with fetch_content(server.url("a.tar"), cache) as held:
        assert held.path.read_bytes() == CONTENT
    assert server.requests("a.tar") == asked
    assert files_of(cache) == {sha256(CONTENT): len(CONTENT)}


@pytest.mark.parametrize(
    ("fault", "n_requests", "message", "kept"),
    [
        pytest.param(status(404), 1, "/a.tar: not found; check", 0, id="not found"),
        pytest.param(status(410), 1, "/a.tar: not found; check", 0, id="gone"),
        pytest.param(status(403), 1, "/a.tar: access denied .403.*; set cred", 0, id="denied"),
        pytest.param(status(400), 1, "/a.tar: it cannot be read .400 Bad", 0, id="bad request"),
        pytest.param(status(503), 4, "/a.tar: given up after 4 .* 503 Serv", 0, id="busy for ever"),
        pytest.param(
            stall(0),
            4,
            "/a.tar: given up .* less than 1000 bytes a second for 0.3 s.",
            0,
            id="silent",
        ),
        pytest.param(
            of(without_ranges, cut(30_000)),
            5,
            "/a.tar: given up after 4",
            30_000,
            id="always cut at the same place, ranges ignored",
        ),
        pytest.param(
            flip(77),
            3,
            f"expected 100000 bytes with SHA-256 {sha256(CONTENT)}, got 100000 bytes with SHA-256 "
            "[0-9a-f]{64}, 3 times; restore the file",
            0,
            id="a flipped bit",
        ),
        pytest.param(replaced(CONTENT[:-1]), 3, ", got 99999 bytes, 3 times", 0, id="too short"),
        pytest.param(replaced(CONTENT * 2), 3, ", got 200000 bytes", 0, id="too long"),
        pytest.param(replaced(b""), 3, ", got 0 bytes", 0, id="empty"),
        pytest.param(
            of(without_length, replaced(CONTENT * 2)),
            3,
            ", got more than 100000 bytes",
            0,
            id="too long without a length",
        ),
    ],
)
def test_permanent_faults_end_in_one_line_that_names_the_address(
    server: FaultyServer,
    cache: ShardCache,
    fault: Fault,
    n_requests: int,
    message: str,
    kept: int,
) -> None:
    server.always["a.tar"] = fault
    with pytest.raises(PipelineError, match=message) as error:
        fetch_content(server.url("a.tar"), cache)
    assert str(error.value).startswith(server.url("a.tar"))
    assert "\n" not in str(error.value)
    assert len(server.requests("a.tar")) == n_requests
    assert sum(files_of(cache).values()) == kept


def test_a_download_from_an_unreachable_server_gives_up(cache: ShardCache) -> None:
    with pytest.raises(PipelineError, match=r"given up after 4 attempts .*connect"):
        fetch_content("http://127.0.0.1:9/a.tar", cache)


def test_a_download_resumes_after_an_earlier_one_gave_up(
    server: FaultyServer, cache: ShardCache
) -> None:
    server.faults["a.tar"] = [cut(60_000), *[status(500)] * 4]
    with pytest.raises(PipelineError, match="continues after the received bytes"):
        fetch_content(server.url("a.tar"), cache)
    fetch_content(server.url("a.tar"), cache).release()
    assert server.requests("a.tar") == [None, *["bytes=60000-"] * 5]


def test_a_complete_partial_file_is_used_without_a_server(cache: ShardCache) -> None:
    cache.files.mkdir(parents=True)
    partial = cache.files / f"{sha256(CONTENT)}.{len(CONTENT)}.partial"
    partial.write_bytes(CONTENT)
    with fetch_content("http://127.0.0.1:9/a.tar", cache) as held:
        assert held.path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("length", "asked"),
    [(50_000, ["bytes=50000-", None]), (100_000, [None]), (120_000, [None])],
)
def test_a_partial_file_with_other_content_is_discarded(
    server: FaultyServer, cache: ShardCache, length: int, asked: list[str | None]
) -> None:
    cache.files.mkdir(parents=True)
    partial = cache.files / f"{sha256(CONTENT)}.{len(CONTENT)}.partial"
    partial.write_bytes(bytes(length))
    with fetch_content(server.url("a.tar"), cache) as held:
        assert held.path.read_bytes() == CONTENT
    assert server.requests("a.tar") == asked


def test_bytes_of_another_range_are_not_used(
    server: FaultyServer, cache: ShardCache, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults["a.tar"] = [cut(30_000), another_range]
    fetch_content(server.url("a.tar"), cache).release()
    assert "the server sent another range" in caplog.messages[1]


def test_two_shards_with_one_name_are_two_files(server: FaultyServer, cache: ShardCache) -> None:
    contents = {"a": b"one" * 1000, "b": b"two" * 1000}
    for folder, content in contents.items():
        (server.folder / folder).mkdir()
        (server.folder / folder / "00000.tar").write_bytes(content)
    for folder, content in contents.items():
        url = server.url(f"{folder}/00000.tar")
        with fetch(url, sha256=sha256(content), n_bytes=3000, cache=cache) as held:
            assert held.path.read_bytes() == content
    assert len(files_of(cache)) == 2


def start_downloader(url: str, cache: ShardCache, seconds: float) -> "subprocess.Popen[str]":
    arguments = [url, sha256(CONTENT), str(len(CONTENT)), str(cache.folder), str(seconds)]
    return subprocess.Popen(
        [sys.executable, "-W", "error", TESTS / "downloader.py", *arguments],
        env=os.environ | {"PYTHONPATH": f"{TESTS.parent}"},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_many_processes_download_once(server: FaultyServer, cache: ShardCache) -> None:
    # The download takes longer than the processes need to start.
    server.always["a.tar"] = slowly(0.04)
    processes = [start_downloader(server.url("a.tar"), cache, 0) for _ in range(5)]
    outputs = [process.communicate()[0] for process in processes]
    assert outputs == ["held\n"] * 5
    assert server.requests("a.tar") == [None]


def test_the_next_process_resumes_a_killed_download(
    server: FaultyServer, cache: ShardCache
) -> None:
    server.faults["a.tar"] = [stall(60_000)]
    killed = start_downloader(server.url("a.tar"), cache, 0)
    wait_until(lambda: cache.files.exists() and sum(files_of(cache).values()) == 60_000)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    with fetch_content(server.url("a.tar"), cache) as held:
        assert held.path.read_bytes() == CONTENT
    assert server.requests("a.tar") == [None, "bytes=60000-"]


def test_a_waiting_process_resumes_the_download_of_a_killed_one(
    server: FaultyServer, cache: ShardCache
) -> None:
    server.faults["a.tar"] = [stall(60_000)]
    killed = start_downloader(server.url("a.tar"), cache, 0)
    wait_until(lambda: cache.files.exists() and sum(files_of(cache).values()) == 60_000)
    waiting = start_downloader(server.url("a.tar"), cache, 0)
    time.sleep(0.3)
    killed.kill()
    killed.communicate()
    assert waiting.communicate()[0] == "held\n"
    assert server.requests("a.tar") == [None, "bytes=60000-"]


def test_a_file_stays_while_a_process_uses_it(server: FaultyServer, cache: ShardCache) -> None:
    user = start_downloader(server.url("a.tar"), cache, 60)
    assert user.stdout is not None
    assert user.stdout.readline() == "held\n"
    full = ShardCache(folder=cache.folder, limit_bytes=len(CONTENT) + 10)
    (server.folder / "b.tar").write_bytes(b"b" * 1000)
    small = server.url("b.tar")
    with pytest.raises(PipelineError, match=r"is 100010 bytes, and 100000 are in use"):
        fetch(small, sha256=sha256(b"b" * 1000), n_bytes=1000, cache=full)
    user.kill()
    user.communicate()
    fetch(small, sha256=sha256(b"b" * 1000), n_bytes=1000, cache=full).release()
    assert files_of(cache) == {sha256(b"b" * 1000): 1000}


def test_a_stop_ends_a_stalled_transfer_at_once_and_keeps_its_bytes(
    server: FaultyServer, cache: ShardCache
) -> None:
    server.always["a.tar"] = stall(60_000)
    stop = threading.Event()
    patient = RemoteAccess(stall_s=1000)
    caught: list[StoppedError] = []

    def run() -> None:
        try:
            fetch(
                server.url("a.tar"),
                sha256=sha256(CONTENT),
                n_bytes=len(CONTENT),
                cache=cache,
                access=patient,
                stop=stop,
            )
        except StoppedError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: cache.files.exists() and sum(files_of(cache).values()) == 60_000)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert len(caught) == 1
    assert sum(files_of(cache).values()) == 60_000


@pytest.mark.parametrize("fault", [status(503), cut(0), flip(3)])
def test_a_stop_ends_a_pause_between_attempts_at_once(
    server: FaultyServer, cache: ShardCache, fault: Fault
) -> None:
    server.always["a.tar"] = fault
    stop = threading.Event()
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    with pytest.raises(StoppedError):
        fetch(
            server.url("a.tar"),
            sha256=sha256(CONTENT),
            n_bytes=len(CONTENT),
            cache=cache,
            access=RemoteAccess(attempts=10**6, first_wait_s=10**6, longest_wait_s=10**6),
            stop=stop,
        )
    timer.join()
    assert len(server.requests("a.tar")) == 1


def test_a_thread_that_has_an_event_loop_can_fetch(server: FaultyServer, cache: ShardCache) -> None:
    async def notebook() -> bytes:
        with fetch_content(server.url("a.tar"), cache) as held:
            return held.path.read_bytes()

    assert asyncio.run(notebook()) == CONTENT


def test_fetching_leaves_no_thread_behind(server: FaultyServer, cache: ShardCache) -> None:
    before = set(threading.enumerate())
    server.faults["a.tar"] = [cut(1000), stall(0)]
    fetch_content(server.url("a.tar"), cache).release()
    # Threads of the server itself may be left.
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert all("process_request_thread" in name for name in left), left


@pytest.mark.parametrize(
    "url", ["ftp://host/a.tar", "simplecache::http://host/a.tar", "http:///a.tar", "hf://a/b.tar"]
)
def test_unsupported_addresses_are_rejected(url: str, cache: ShardCache) -> None:
    with pytest.raises(PipelineError, match="is not a supported address"):
        fetch_content(url, cache)
    assert not cache.files.exists()


def test_no_message_shows_a_password_or_a_signature(
    server: FaultyServer, cache: ShardCache, caplog: pytest.LogCaptureFixture
) -> None:
    server.always["a.tar"] = status(503)
    url = server.url("a.tar?signature=secret").replace("//", "//user:secret@")
    with pytest.raises(PipelineError, match="given up") as error:
        fetch_content(url, cache)
    assert len(caplog.messages) == 3
    assert "secret" not in "".join([*caplog.messages, str(error.value)])
    assert shown(url) == server.url("a.tar")


def test_a_full_disk_is_reported_and_not_retried(server: FaultyServer, cache: ShardCache) -> None:
    # The limit of file sizes of the process acts like a full disk: both end a write early.
    code = f"""
import resource, signal
from test_remote import ACCESS, fetch_content
from pathlib import Path
from pipelines.errors import PipelineError
from pipelines.shards.cache import ShardCache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    fetch_content({server.url("a.tar")!r}, ShardCache(folder=Path({str(cache.folder)!r})))
except PipelineError as error:
    print(error)
"""
    output = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "cannot be written" in output
    assert len(server.requests("a.tar")) == 1


@pytest.mark.parametrize("allow_pipe", [False, True])
def test_a_pipe_command_runs_only_if_it_is_allowed(
    tmp_path: Path, cache: ShardCache, allow_pipe: bool
) -> None:
    (tmp_path / "a.tar").write_bytes(CONTENT)
    url = f"pipe:touch {tmp_path}/ran && cat {tmp_path}/a.tar"
    access = RemoteAccess(allow_pipe=allow_pipe)
    if allow_pipe:
        with fetch_content(url, cache, access) as held:
            assert held.path.read_bytes() == CONTENT
    else:
        with pytest.raises(PipelineError, match="would run a shell command"):
            fetch_content(url, cache, access)
    assert (tmp_path / "ran").exists() == allow_pipe
    # It is also refused if the file is in the cache.
    with pytest.raises(PipelineError, match="would run a shell command"):
        fetch_content(url, cache)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "cat {path}; echo first >&2; echo no such disk >&2; exit 3",
            "exit status 3: no such disk",
        ),
        ("head -c 5000 {path}", "expected 100000 bytes with SHA-256 .*, got 5000 bytes"),
        ("cat {path} {path}", ", got more than 100000 bytes, 3 times"),
        ("head -c 5000 {path}; sleep 60", "less than 1000 bytes a second for 0.3 s"),
        ("cat {path}; exec >&-; sleep 60", "closed its output and kept running"),
        ("no-such-command", "exit status 127"),
    ],
)
def test_a_failed_pipe_command_is_reported_with_its_last_line(
    tmp_path: Path, cache: ShardCache, command: str, message: str
) -> None:
    (tmp_path / "a.tar").write_bytes(CONTENT)
    access = RemoteAccess(attempts=2, first_wait_s=0.01, stall_s=0.3, allow_pipe=True)
    with pytest.raises(PipelineError, match=message):
        fetch_content("pipe:" + command.format(path=tmp_path / "a.tar"), cache, access)
    assert sha256(CONTENT) not in files_of(cache)


def test_all_processes_of_a_stalled_pipe_command_end(tmp_path: Path, cache: ShardCache) -> None:
    access = RemoteAccess(attempts=1, stall_s=0.3, allow_pipe=True)
    with pytest.raises(PipelineError, match="less than 1000 bytes a second"):
        fetch_content(f"pipe:(sleep 1; touch {tmp_path}/late) | cat", cache, access)
    time.sleep(1.2)
    assert not (tmp_path / "late").exists()


def test_a_process_with_more_than_1024_open_files_receives(
    tmp_path: Path, cache: ShardCache
) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1500:
        pytest.skip("the limit of open files is too low")
    (tmp_path / "a.tar").write_bytes(CONTENT)
    access = RemoteAccess(attempts=1, stall_s=5, allow_pipe=True)
    with ExitStack() as opened:
        for _ in range(1100):
            opened.enter_context(Path(os.devnull).open())
        held = fetch_content(f"pipe:cat {tmp_path / 'a.tar'}", cache, access)
    assert held.path.read_bytes() == CONTENT


@pytest.fixture
def served_set(server: FaultyServer) -> Path:
    contents = [random.Random(i).randbytes(100 + i) for i in range(10)]
    return write_shards(server.folder / "set", contents, sizes=[4, 3, 3])


def assert_same_set(remote: RemoteShards, folder: Path, shards: list[int]) -> None:
    local = open_shards(folder)
    assert [shard.file for shard in remote.shards.shards] == [
        local.shards[shard].file for shard in shards
    ]
    assert remote.shards.classes == local.classes
    kept = local.samples[np.isin(local.samples["shard"], shards)]
    np.testing.assert_array_equal(remote.shards.samples["offset"], kept["offset"])
    for number, shard in enumerate(shards):
        with remote.files.hold(number) as held:
            assert held.path.read_bytes() == local.path(shard).read_bytes()


@pytest.mark.parametrize(
    ("where", "shards"),
    [
        ("set", [0, 1, 2]),
        ("set/", [0, 1, 2]),
        ("set/manifest.json", [0, 1, 2]),
        ("set/manifest.json?token=1", [0, 1, 2]),
        ("set/set-0001.tar", [1]),
        ("set/set-{0000..0002}.tar", [0, 1, 2]),
        ("set/set-{0001..0002}.tar?token=1", [1, 2]),
    ],
)
def test_a_remote_set_equals_the_local_one(
    server: FaultyServer, served_set: Path, cache: ShardCache, where: str, shards: list[int]
) -> None:
    remote = open_remote(server.url(where), cache=cache, access=ACCESS)
    assert server.requests("set/set-0001.tar") == []
    assert_same_set(remote, served_set, shards)
    if shards == [0, 1, 2]:
        assert remote.shards.hash == open_shards(served_set).hash


def test_a_set_can_be_read_by_a_pipe_command(served_set: Path, cache: ShardCache) -> None:
    access = RemoteAccess(allow_pipe=True)
    where = f"pipe:cat {served_set}/{{file}}"
    remote = open_remote(where, cache=cache, access=access)
    assert_same_set(remote, served_set, [0, 1, 2])
    with pytest.raises(PipelineError, match="would run a shell command"):
        open_remote(where, cache=cache)
    with pytest.raises(PipelineError, match=r"use \{file\} for the name"):
        open_remote(f"pipe:cat {served_set}/a.tar", cache=cache, access=access)


def test_a_manifest_cannot_inject_commands(tmp_path: Path, cache: ShardCache) -> None:
    folder = write_shards(tmp_path / "set", [b"image"], sizes=[1])
    name = "x; touch ran; .tar"
    manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    (folder / manifest["shards"][0]["file"]).rename(folder / name)
    manifest["shards"][0]["file"] = name
    manifest.pop("sha256", None)
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    remote = open_remote(
        f"pipe:cd {folder} && cat {{file}}", cache=cache, access=RemoteAccess(allow_pipe=True)
    )
    with remote.files.hold(0) as held:
        assert held.path.read_bytes() == (folder / name).read_bytes()
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ["set 1%2F?#.tar", "ünïcode.tar"])
def test_a_shard_may_have_any_name(
    server: FaultyServer, served_set: Path, cache: ShardCache, name: str
) -> None:
    manifest = json.loads((served_set / MANIFEST_NAME).read_bytes())
    (served_set / "set-0001.tar").rename(served_set / name)
    manifest["shards"][1]["file"] = name
    manifest.pop("sha256", None)
    (served_set / MANIFEST_NAME).write_text(json.dumps(manifest))
    assert_same_set(open_remote(server.url("set"), cache=cache), served_set, [0, 1, 2])


def test_a_set_with_another_manifest_hash_is_rejected(
    server: FaultyServer, served_set: Path, cache: ShardCache
) -> None:
    pin = open_shards(served_set).hash
    for _ in range(2):
        remote = open_remote(server.url("set"), cache=cache, pin=pin)
    assert remote.shards.hash == pin
    assert len(server.requests("set/manifest.json")) == 1
    with pytest.raises(
        PipelineError, match=r"set/manifest.json: expected at most \d+ bytes with SHA-256 0"
    ):
        open_remote(server.url("set"), cache=cache, access=ACCESS, pin="0" * 64)
    assert open_remote(str(served_set), cache=cache, pin=pin)
    with pytest.raises(PipelineError, match="does not have the SHA-256 0"):
        open_remote(str(served_set), cache=cache, pin="0" * 64)


@pytest.mark.parametrize("damage", ["other bytes", "too long"])
def test_a_damaged_pinned_manifest_is_downloaded_again(
    server: FaultyServer, served_set: Path, cache: ShardCache, damage: str
) -> None:
    pin = open_shards(served_set).hash
    open_remote(server.url("set"), cache=cache, pin=pin)
    kept = cache.files / pin
    if damage == "other bytes":
        kept.write_bytes(b"{}")
    else:
        os.truncate(kept, MAX_MANIFEST_BYTES + 1)
    remote = open_remote(server.url("set"), cache=cache, pin=pin)
    assert remote.shards.hash == pin
    assert kept.read_bytes() == (served_set / MANIFEST_NAME).read_bytes()
    assert len(server.requests("set/manifest.json")) == 2


def test_a_released_file_is_not_discarded(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    descriptor = os.open(tmp_path / "a", os.O_RDONLY)
    with HeldFile(tmp_path / "a", descriptor) as held:
        pass
    held.discard()
    assert (tmp_path / "a").exists()


def test_messages_do_not_show_pipe_commands(cache: ShardCache) -> None:
    command = "pipe:false --password hunter2 {file}"
    for access in (RemoteAccess(), RemoteAccess(allow_pipe=True, attempts=1)):
        with pytest.raises(PipelineError) as refused:
            open_remote(command, cache=cache, access=access)
        assert "hunter2" not in str(refused.value)
    with pytest.raises(PipelineError) as refused:
        open_remote(command.removesuffix(" {file}"), cache=cache, access=access)
    assert "hunter2" not in str(refused.value)


def test_manifest_and_index_are_read_in_spite_of_faults(
    server: FaultyServer, served_set: Path, cache: ShardCache
) -> None:
    server.faults["set/manifest.json"] = [cut(100), status(503), stall(10)]
    server.faults["set/index.npy"] = [cut(100), flip(200), status(503)]
    remote = open_remote(server.url("set"), cache=cache, access=ACCESS)
    assert_same_set(remote, served_set, [0, 1, 2])


@pytest.mark.parametrize(
    ("file", "fault", "message"),
    [
        ("manifest.json", status(404), "set/manifest.json: not found"),
        ("manifest.json", replaced(b"<html>"), "set/manifest.json is damaged"),
        ("index.npy", status(404), "set/index.npy: not found"),
        ("index.npy", flip(200), "set/index.npy: .* got .*, 3 times"),
        ("index.npy", replaced(bytes(10**6)), ", got 1000000 bytes"),
    ],
)
def test_a_set_without_its_manifest_or_index_is_rejected(
    server: FaultyServer,
    served_set: Path,
    cache: ShardCache,
    file: str,
    fault: Fault,
    message: str,
) -> None:
    assert served_set.is_dir()
    server.always[f"set/{file}"] = fault
    with pytest.raises(PipelineError, match=message):
        open_remote(server.url("set"), cache=cache, access=ACCESS)


def test_the_files_can_be_pickled_for_another_process(
    server: FaultyServer, served_set: Path, cache: ShardCache
) -> None:
    files = open_remote(server.url("set"), cache=cache).files
    path = files.path(1)
    other = pickle.loads(pickle.dumps(files))
    assert other.path(1) == path
    assert path.read_bytes() == (served_set / "set-0001.tar").read_bytes()
    assert len(server.requests("set/set-0001.tar")) == 1
    files.close()
    other.close()


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_local_shards_are_verified_without_copying(
    served_set: Path, cache: ShardCache, scheme: str
) -> None:
    remote = open_remote(f"{scheme}{served_set}", cache=cache)
    with remote.files.hold(2) as held:
        assert held.path.samefile(served_set / "set-0002.tar")
    assert not cache.files.exists()
    content = bytearray((served_set / "set-0002.tar").read_bytes())
    content[600] ^= 1
    (served_set / "set-0002.tar").write_bytes(content)
    with pytest.raises(PipelineError, match=r"set-0002.tar has SHA-256 .* copy it again"):
        remote.files.hold(2)


def test_remote_addresses_are_recognized_by_their_form() -> None:
    for where in ("http://h/x", "S3://b/k", "pipe:cat x", "a::b", "x-y://h"):
        assert is_remote(where), where
    for where in ("/a/b", "a/b.tar", "file:///a", "./pipe:x", "a:b.tar", "C:\\x"):
        assert not is_remote(where), where


@pytest.mark.parametrize(
    "settings",
    [
        {"attempts": 0},
        {"stall_s": 0},
        {"stall_s": float("nan")},
        {"first_wait_s": -1},
        {"longest_wait_s": float("inf")},
        {"options": {"ftp": {}}},
    ],
)
def test_invalid_access_settings_are_rejected(settings: dict[str, object]) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=name):
        RemoteAccess(**settings)  # type: ignore[arg-type]


def test_an_untrusted_certificate_is_rejected_at_once(tmp_path: Path, cache: ShardCache) -> None:
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"),
            *("-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"),
        ],
        capture_output=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip("openssl cannot make a certificate")
    (tmp_path / "a.tar").write_bytes(CONTENT)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with (
        FaultyServer(tmp_path, context) as server,
        pytest.raises(PipelineError, match="its certificate is not valid"),
    ):
        fetch_content(server.url("a.tar"), cache, RemoteAccess(attempts=10**6))
