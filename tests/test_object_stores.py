"""S3 and Google's store, as their own clients see them at an endpoint on the loopback."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faulty_server import Fault, FaultyServer, cut, flip, stall, status
from pipelines.errors import PipelineError
from pipelines.shards import connections
from pipelines.shards.cache import HeldFile, ShardCache
from pipelines.shards.remote import fetch
from pipelines.system.objects import NotFoundError, RemoteAccess
from test_remote import CONTENT, sha256

# How the clients lay out addresses; in Google's store a file beside the content tells of it.
FILES = {
    "s3": ("bucket/set/a.tar", None),
    "gs": (
        "download/storage/v1/b/bucket/o/set%2Fa.tar",
        "storage/v1/b/bucket/o/set%2Fa.tar",
    ),
}


class Store:
    """A store with one object, s3://bucket/set/a.tar or gs://bucket/set/a.tar."""

    def __init__(self, scheme: str, server: FaultyServer, cache: ShardCache) -> None:
        self.scheme, self.server, self.cache = scheme, server, cache
        self.name, record = (name and name.replace("%2F", "/") for name in FILES[scheme])
        assert self.name is not None
        for name, content in ((self.name, CONTENT), (record, self.record(len(CONTENT)))):
            if name is not None:
                (server.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (server.folder / name).write_bytes(content)

    @staticmethod
    def record(size: int) -> bytes:
        """Return what Google's store tells of the object."""
        return json.dumps({"bucket": "bucket", "name": "set/a.tar", "size": str(size)}).encode()

    def fetch(self, key: str = "set/a.tar", n_bytes: int = len(CONTENT)) -> HeldFile:
        endpoint = self.server.url().rstrip("/")
        options: dict[str, dict[str, Any]] = {
            "s3": {"anon": True, "endpoint_url": endpoint},
            "gs": {"token": "anon", "endpoint_url": endpoint},
        }
        access = RemoteAccess(
            attempts=3, first_wait_s=0.01, longest_wait_s=0.05, stall_s=0.5, options=options
        )
        return fetch(
            f"{self.scheme}://bucket/{key}",
            sha256=sha256(CONTENT),
            n_bytes=n_bytes,
            cache=self.cache,
            access=access,
        )


@pytest.fixture(params=["s3", "gs"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    pytest.importorskip({"s3": "s3fs", "gs": "gcsfs"}[request.param])
    monkeypatch.setattr(connections, "_PIECE_BYTES", 30_000)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    folder = tmp_path / "served"
    folder.mkdir()
    with FaultyServer(folder) as server:
        yield Store(request.param, server, ShardCache(folder=tmp_path / "cache"))


def test_an_object_comes_in_pieces_and_once(store: Store) -> None:
    for _ in range(2):
        with store.fetch() as held:
            assert held.path.read_bytes() == CONTENT
    ranges = ["bytes=0-29999", "bytes=30000-59999", "bytes=60000-89999", "bytes=90000-99999"]
    assert store.server.requests(store.name) == ranges


def test_what_is_there_of_an_object_is_continued(store: Store) -> None:
    store.cache.files.mkdir(parents=True)
    partial = store.cache.files / f"{sha256(CONTENT)}.{len(CONTENT)}.partial"
    partial.write_bytes(CONTENT[:75_000])
    with store.fetch() as held:
        assert held.path.read_bytes() == CONTENT
    assert store.server.requests(store.name) == ["bytes=75000-99999"]


@pytest.mark.parametrize("fault", [cut(1000), stall(1000), status(503), flip(7)])
def test_faults_of_a_store_pass(store: Store, fault: Fault) -> None:
    store.server.faults[store.name] = [fault]
    with store.fetch() as held:
        assert held.path.read_bytes() == CONTENT


def test_an_object_that_is_not_there_is_refused_at_once(store: Store) -> None:
    with pytest.raises(PipelineError, match=r"://bucket/set/b\.tar: not found; check"):
        store.fetch("set/b.tar")


def test_another_object_is_refused(store: Store) -> None:
    store.server.always[store.name] = flip(7)
    with pytest.raises(PipelineError, match=r"set/a\.tar: .* came, 3 times"):
        store.fetch()


@pytest.mark.parametrize("n_bytes", [99_999, 100_001])
def test_an_object_of_another_length_is_refused_before_it_comes(store: Store, n_bytes: int) -> None:
    with pytest.raises(PipelineError, match="and 100000 bytes came, 3 times"):
        store.fetch(n_bytes=n_bytes)
    assert store.server.requests(store.name) == []


@pytest.mark.parametrize("code", [401, 403])
def test_an_object_that_may_not_be_read_is_told_at_once(tmp_path: Path, code: int) -> None:
    pytest.importorskip("gcsfs")
    folder = tmp_path / "served"
    folder.mkdir()
    with FaultyServer(folder) as server:
        # Of the object, and of what begins with its name.
        asked = ("storage/v1/b/bucket/o/set/a.tar", "storage/v1/b/bucket/o")
        server.always.update(dict.fromkeys(asked, status(code)))
        store = Store("gs", server, ShardCache(folder=tmp_path / "cache"))
        with pytest.raises(NotFoundError, match=r"a\.tar: access denied \(.*\); give credentials"):
            store.fetch()
        assert len(server.requests(asked[0])) == 1


def test_a_busy_store_is_borne_with_as_long_as_any_server(store: Store) -> None:
    record = FILES[store.scheme][1] or store.name
    store.server.always[record.replace("%2F", "/")] = status(503)
    store.server.always[store.name] = status(503)
    with pytest.raises(PipelineError, match="given up after 3 attempts in a row") as caught:
        store.fetch()
    assert "\n" not in str(caught.value)
