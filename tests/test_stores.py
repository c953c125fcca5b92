"""Objects of Amazon S3, Google Cloud Storage and Azure, read from a local server."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faulty_server import Fault, FaultyServer, cut, dripping, flip, of, replaced, stall, status
from pipelines.errors import PipelineError
from pipelines.shards.cache import HeldFile, ShardCache
from pipelines.shards.remote import fetch
from pipelines.system.attempts import StoppedError
from pipelines.system.objects import NotFoundError, RemoteAccess
from test_remote import CONTENT, sha256, wait_until

TESTS = Path(__file__).parent
OBJECT = "bucket/set/a.tar"


class Store:
    """A store with one object, SCHEME://bucket/set/a.tar."""

    def __init__(self, scheme: str, server: FaultyServer, cache: ShardCache) -> None:
        self.scheme, self.server, self.cache = scheme, server, cache
        path = server.folder / OBJECT
        path.parent.mkdir(parents=True)
        path.write_bytes(CONTENT)

    def options(self) -> dict[str, dict[str, Any]]:
        endpoint = self.server.url().rstrip("/")
        return {
            "s3": {"skip_signature": True, "endpoint": endpoint},
            "gs": {"bearer_token": "token", "base_url": endpoint},
            "az": {"skip_signature": True, "endpoint": endpoint, "account_name": "someone"},
        }

    def access(self, **changes: float) -> RemoteAccess:
        settings = {"first_wait_s": 0.01, "longest_wait_s": 0.05, "stall_s": 1} | changes
        return RemoteAccess(attempts=3, options=self.options(), **settings)  # type: ignore[arg-type]

    def fetch(
        self,
        key: str = "set/a.tar",
        n_bytes: int = len(CONTENT),
        **how: Any,  # noqa: ANN401
    ) -> HeldFile:
        how.setdefault("access", self.access())
        return fetch(
            f"{self.scheme}://bucket/{key}",
            sha256=sha256(CONTENT),
            n_bytes=n_bytes,
            cache=self.cache,
            **how,
        )

    def partial(self) -> Path:
        return self.cache.files / f"{sha256(CONTENT)}.{len(CONTENT)}.partial"


@pytest.fixture(params=["s3", "gs", "az"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    folder = tmp_path / "served"
    folder.mkdir()
    with FaultyServer(folder) as server:
        yield Store(request.param, server, ShardCache(folder=tmp_path / "cache"))


one_store = pytest.mark.parametrize("store", ["s3"], indirect=True)


def test_an_object_is_downloaded_once(store: Store) -> None:
    for _ in range(2):
        with store.fetch() as held:
            assert held.path.read_bytes() == CONTENT
    assert store.server.requests(OBJECT) == [None]


@one_store
def test_a_key_may_have_any_characters(store: Store) -> None:
    key = "set 1%2F?#/ü.tar"
    path = store.server.folder / "bucket" / key
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    with store.fetch(key) as held:
        assert held.path.read_bytes() == CONTENT


def test_a_partial_object_is_resumed(store: Store) -> None:
    store.cache.files.mkdir(parents=True)
    store.partial().write_bytes(CONTENT[:75_000])
    with store.fetch() as held:
        assert held.path.read_bytes() == CONTENT
    assert store.server.requests(OBJECT) == ["bytes=75000-"]


@pytest.mark.parametrize(
    "fault", [cut(0), cut(60_000), stall(60_000), status(503), status(429), flip(7)]
)
def test_transient_faults_of_a_store_are_retried(store: Store, fault: Fault) -> None:
    store.server.faults[OBJECT] = [fault]
    with store.fetch() as held:
        assert held.path.read_bytes() == CONTENT
    assert len(store.server.requests(OBJECT)) == 2


@one_store
def test_a_cut_object_is_resumed_near_where_it_was_cut(store: Store) -> None:
    store.server.faults[OBJECT] = [cut(60_000)]
    store.fetch().release()
    (first, second) = store.server.requests(OBJECT)
    assert first is None
    assert second is not None
    assert 60_000 - 2**14 <= int(second.removeprefix("bytes=").rstrip("-")) <= 60_000


@one_store
def test_a_very_slow_object_is_an_error(store: Store) -> None:
    store.server.always[OBJECT] = dripping(0.05)
    started = time.monotonic()
    with pytest.raises(PipelineError, match="less than 1000 bytes a second"):
        store.fetch(access=store.access(stall_s=0.5))
    assert time.monotonic() - started < 20


def test_a_missing_object_is_an_error_at_once(store: Store) -> None:
    with pytest.raises(NotFoundError, match=r"://bucket/set/b\.tar: not found; check"):
        store.fetch("set/b.tar")
    assert len(store.server.requests("bucket/set/b.tar")) == 1


@pytest.mark.parametrize("code", [401, 403])
def test_a_denied_object_is_an_error_at_once(store: Store, code: int) -> None:
    store.server.always[OBJECT] = status(code)
    with pytest.raises(NotFoundError, match=rf"a\.tar: access denied \({code} .*\); set cred"):
        store.fetch()
    assert len(store.server.requests(OBJECT)) == 1


@one_store
@pytest.mark.parametrize(("code", "message"), [(400, "400 Bad Request"), (301, "AWS_REGION")])
def test_other_status_codes_are_final(store: Store, code: int, message: str) -> None:
    store.server.always[OBJECT] = status(code)
    with pytest.raises(PipelineError, match=rf"a\.tar: it cannot be read \(.*{message}"):
        store.fetch()
    assert len(store.server.requests(OBJECT)) == 1


@one_store
def test_wrong_content_is_rejected(store: Store) -> None:
    store.server.always[OBJECT] = flip(7)
    with pytest.raises(PipelineError, match=r"set/a\.tar: .* got .*, 3 times"):
        store.fetch()


@pytest.mark.parametrize("n_bytes", [99_999, 100_001])
def test_a_wrong_length_is_rejected_before_the_download(store: Store, n_bytes: int) -> None:
    store.server.always[OBJECT] = of(replaced(CONTENT), dripping(1))
    with pytest.raises(PipelineError, match=", got 100000 bytes, 3 times"):
        store.fetch(n_bytes=n_bytes)


@one_store
def test_an_object_shorter_than_the_partial_file_is_rejected(store: Store) -> None:
    store.cache.files.mkdir(parents=True)
    store.partial().write_bytes(CONTENT[:75_000])
    store.server.always[OBJECT] = replaced(CONTENT[:50_000])
    with pytest.raises(PipelineError, match=", got 50000 bytes, 3 times"):
        store.fetch()


def test_a_store_that_stays_busy_is_an_error(store: Store) -> None:
    store.server.always[OBJECT] = status(503)
    with pytest.raises(PipelineError, match=r"given up after 3 attempts in a row.*503") as caught:
        store.fetch()
    assert "\n" not in str(caught.value)
    assert len(store.server.requests(OBJECT)) == 3


@one_store
def test_an_unreachable_store_is_an_error(store: Store) -> None:
    options = {"s3": store.options()["s3"] | {"endpoint": "http://127.0.0.1:9"}}
    access = RemoteAccess(attempts=2, first_wait_s=0.01, options=options)
    with pytest.raises(PipelineError, match=r"given up after 2 .* cannot connect"):
        store.fetch(access=access)


@one_store
def test_a_stop_ends_a_stalled_download_at_once_and_keeps_received_bytes(store: Store) -> None:
    store.server.always[OBJECT] = stall(60_000)
    stop = threading.Event()
    caught: list[StoppedError] = []

    def run() -> None:
        try:
            store.fetch(access=store.access(stall_s=1000), stop=stop)
        except StoppedError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: store.partial().exists() and store.partial().stat().st_size > 40_000)
    stop.set()
    thread.join(10)
    assert len(caught) == 1
    assert store.partial().stat().st_size > 40_000


@one_store
def test_no_message_shows_a_credential(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.server.always[OBJECT] = status(503)
    options = {
        "endpoint": store.server.url().rstrip("/").replace("//", "//user:hunter2@"),
        "access_key_id": "hunter2",
        "secret_access_key": "hunter2",
        "session_token": "hunter2",
    }
    access = RemoteAccess(attempts=2, first_wait_s=0.01, options={"s3": options})
    with pytest.raises(PipelineError) as caught:
        store.fetch(access=access)
    assert len(caplog.messages) >= 1
    assert "hunter2" not in "".join([*caplog.messages, str(caught.value)])


@one_store
def test_credentials_are_read_from_a_profile(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        "[other]\naws_access_key_id = key\naws_secret_access_key = hunter2\n"
    )
    options = {"s3": {"endpoint": store.server.url().rstrip("/")}}
    access = RemoteAccess(attempts=1, stall_s=5, options=options)
    monkeypatch.setenv("AWS_PROFILE", "none")
    with pytest.raises(NotFoundError, match=r"access denied \(.*none"):
        store.fetch(access=access)
    monkeypatch.setenv("AWS_PROFILE", "other")
    with store.fetch(access=access) as held:
        assert held.path.read_bytes() == CONTENT


def test_missing_credentials_are_named_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: ShardCache
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    # As outside of a cloud, where no metadata server responds.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(PipelineError, match="credentials"):
        fetch("s3://bucket/a.tar", sha256="0" * 64, n_bytes=1, cache=cache)


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(folder=tmp_path / "cache")


FORK = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from pipelines.shards.cache import ShardCache
from pipelines.shards.remote import fetch
from pipelines.system.objects import RemoteAccess

url, sha256, folder, endpoint = sys.argv[2:]
access = RemoteAccess(options={"s3": {"skip_signature": True, "endpoint": endpoint}})
def read(name):
    cache = ShardCache(folder=Path(folder) / name)
    fetch(url, sha256=sha256, n_bytes=100_000, cache=cache, access=access).release()
    print(name, flush=True)
read("parent")
child = os.fork()
if child == 0:
    read("child")
    os._exit(0)
os.waitpid(child, 0)
"""


@one_store
def test_a_process_may_fork_after_it_has_read_a_store(store: Store, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-c", FORK, str(TESTS.parent), "s3://bucket/set/a.tar"),
            *(sha256(CONTENT), str(tmp_path / "two"), store.server.url().rstrip("/")),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["parent", "child"]


@one_store
def test_ctrl_c_ends_the_download_and_its_process(store: Store) -> None:
    store.server.always[OBJECT] = stall(60_000)
    timer = threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        store.fetch(access=store.access(stall_s=1000))
    assert time.monotonic() - started < 20
    timer.join()
