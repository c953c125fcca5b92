"""pixmix-gen writes shards to object stores, such as Amazon's and Google's."""

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("moto.server")

from object_store import AmazonStore, GoogleStore
from pipelines import Remote, open_mixing_set
from pipelines.cli import gen
from pipelines.errors import PipelineError
from pipelines.generate.products import unmerged_shards
from pipelines.shards import output
from pipelines.shards.job import JobResult, merge
from pipelines.shards.output import Bucket, Folder, OutputStore, open_output
from pipelines.shards.remote import open_set
from pipelines.system.objects import RemoteAccess
from pipelines.system.stores import open_store
from shard_sets import run_here
from stripes import JobSpec, RunResult, Stripes, make, sharded, tree


def generate(asked: JobSpec) -> RunResult:
    return make(asked, run=run_here)


def merge_shards(store: OutputStore) -> JobResult:
    return merge(unmerged_shards(store))


@pytest.fixture(scope="session")
def in_a_folder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("in_a_folder") / "set"
    generate(sharded(Folder(path=folder)))
    return tree(folder)


@pytest.fixture(params=[AmazonStore, GoogleStore])
def server(request: pytest.FixtureRequest) -> Iterator[AmazonStore]:
    with request.param() as server:
        yield server


@pytest.fixture
def url(server: AmazonStore) -> str:
    return f"{server.url}/sets/stripes"


@pytest.fixture
def access(server: AmazonStore) -> RemoteAccess:
    return RemoteAccess(attempts=4, first_wait_s=0.01, longest_wait_s=0.05, options=server.options)


@pytest.fixture
def store(url: str, access: RemoteAccess) -> OutputStore:
    return open_output(url, access)


def contents(server: AmazonStore) -> dict[str, bytes]:
    """Return the objects of the set by their names in it."""
    return {key.removeprefix("sets/stripes/"): content for key, content in server.objects().items()}


def test_the_objects_are_the_files_of_a_folder(
    server: AmazonStore, store: OutputStore, in_a_folder: dict[str, bytes]
) -> None:
    assert generate(sharded(store)).complete
    assert contents(server) == in_a_folder
    # Each tar before its sidecar, and the manifest last.
    order = [key.removeprefix("sets/stripes/") for key in server.written]
    assert order[0] == ".work/request.json"
    for shard in range(4):
        tar = order.index(f"stripes-0{shard}.tar")
        (record,) = [name for name in order if name.startswith(f".work/done/0000000{shard}-")]
        assert tar < order.index(record)
    assert order[-1] == "manifest.json"


def test_the_objects_do_not_depend_on_tasks_and_duplicates(
    server: AmazonStore, store: OutputStore, in_a_folder: dict[str, bytes]
) -> None:
    for task in (2, 0, 2, 1):
        generate(sharded(store, task_index=task, num_tasks=3))
    assert merge_shards(store).complete
    assert contents(server) == in_a_folder
    written = len(server.written)
    assert generate(sharded(store, task_index=1, num_tasks=3)).complete
    assert merge_shards(store).complete
    assert len(server.written) == written


def test_worker_processes_write_to_a_store(
    server: AmazonStore, store: OutputStore, in_a_folder: dict[str, bytes]
) -> None:
    assert make(sharded(store, jobs=2)).complete
    assert contents(server) == in_a_folder


def test_a_finished_set_is_read_back_from_the_store(
    url: str, store: OutputStore, access: RemoteAccess, tmp_path: Path
) -> None:
    generate(sharded(store))
    remote = Remote(access=access)
    mixing_set = open_mixing_set(url, 20, cache_dir=tmp_path / "cache", remote=remote)
    assert len(mixing_set) == 10
    for i in range(10):
        np.testing.assert_array_equal(mixing_set[i], Stripes().image(i))
    assert len(open_set(url, cache_dir=tmp_path, remote=remote).shards) == 10


def test_merge_reports_the_missing_shards_of_a_store(
    server: AmazonStore, store: OutputStore
) -> None:
    generate(sharded(store, task_index=1, num_tasks=4))
    assert merge_shards(store).missing == (range(1), range(2, 4))
    assert not [key for key in server.written if key.endswith("manifest.json")]


@pytest.mark.parametrize("n_busy", [1, 3])
def test_requests_to_a_busy_store_are_repeated(
    server: AmazonStore,
    store: OutputStore,
    in_a_folder: dict[str, bytes],
    n_busy: int,
) -> None:
    server.busy = n_busy
    assert generate(sharded(store)).complete
    assert server.rejected == n_busy
    assert contents(server) == in_a_folder


def test_a_store_that_stays_busy_ends_in_one_line_and_the_same_request_resumes(
    server: AmazonStore,
    store: OutputStore,
    in_a_folder: dict[str, bytes],
) -> None:
    generate(sharded(store, task_index=0, num_tasks=2))
    server.busy = 1000
    with pytest.raises(PipelineError) as caught:
        generate(sharded(store))
    assert server.rejected == 4
    assert str(caught.value).startswith(
        f"{store.name}/stripes-01.tar: given up after 4 attempts in a row,"
    )
    assert "\n" not in str(caught.value)
    server.busy = 0
    assert generate(sharded(store)).generated == 6
    assert contents(server) == in_a_folder


def test_an_unreachable_store_ends_in_one_line(url: str, access: RemoteAccess) -> None:
    options = {
        scheme: each | {"base_url" if scheme == "gs" else "endpoint": "http://127.0.0.1:9"}
        for scheme, each in access.options.items()
    }
    nobody = RemoteAccess(attempts=2, first_wait_s=0.01, longest_wait_s=0.01, options=options)
    with pytest.raises(PipelineError, match=f"^{url}/: given up after 2 attempts"):
        generate(sharded(open_output(url, nobody)))


def test_a_read_only_store_ends_in_one_line_at_once(
    server: AmazonStore, store: OutputStore
) -> None:
    server.busy, server.status = 1000, 403
    with pytest.raises(PipelineError) as caught:
        generate(sharded(store))
    assert server.rejected == 1
    message = r"access denied \(.*\); set credentials that may write there"
    assert re.fullmatch(rf"{store.name}/\.work/request\.json: {message}", str(caught.value))


def test_a_large_file_is_uploaded_in_parts(server: AmazonStore, store: OutputStore) -> None:
    content = np.random.default_rng(0).bytes(6 * 2**20)
    with store.writing() as folder:
        (folder / "large.tar").write_bytes(content)
    assert contents(server) == {"large.tar": content}
    assert store.sizes() == {"large.tar": len(content)}


def _die_before(name: str, store: OutputStore) -> None:
    """Generate the set in this process, which is killed when a file of that name is uploaded."""
    put = Bucket._put

    def put_or_die(self: Bucket, path: Path, put_name: str) -> None:
        if put_name.startswith(name):
            os.kill(os.getpid(), signal.SIGKILL)
        put(self, path, put_name)

    Bucket._put = put_or_die  # type: ignore[method-assign]
    generate(sharded(store))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "generated"),
    [
        (".work/request.json", 10),
        ("stripes-01.tar", 8),
        (".work/done/00000001-", 8),
        ("index.npy", 0),
        ("manifest.json", 0),
    ],
)
def test_a_run_that_was_killed_between_two_objects_is_resumed(
    server: AmazonStore,
    store: OutputStore,
    in_a_folder: dict[str, bytes],
    name: str,
    generated: int,
) -> None:
    killed = multiprocessing.get_context("spawn").Process(target=_die_before, args=(name, store))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert "manifest.json" not in contents(server)
    assert generate(sharded(store)).generated == generated
    assert contents(server) == in_a_folder


@pytest.mark.parametrize(
    "mend",
    [merge_shards, lambda store: generate(sharded(store, num_tasks=2))],
    ids=["merge", "task"],
)
def test_any_run_removes_a_work_folder_that_a_killed_run_left(
    server: AmazonStore,
    store: OutputStore,
    in_a_folder: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    mend: Callable[[OutputStore], Any],
) -> None:
    def end(_: Bucket) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Bucket, "close", end)
        with pytest.raises(KeyboardInterrupt):
            generate(sharded(store))
    assert len(contents(server)) > len(in_a_folder)
    assert mend(store).complete
    assert contents(server) == in_a_folder


def test_a_missing_bucket_ends_in_one_line(server: AmazonStore, access: RemoteAccess) -> None:
    url = f"{server.scheme}://none/set"
    with pytest.raises(PipelineError, match=rf"^{url}/.*: the bucket was not found .* make"):
        generate(sharded(open_output(url, access)))


def test_other_objects_are_not_touched(server: AmazonStore, url: str, access: RemoteAccess) -> None:
    generate(sharded(open_output(f"{url}2", access), n=2))
    generate(sharded(open_output(f"{url}/", access), n=2))
    before = server.objects()
    with pytest.raises(PipelineError, match=r"sets holds something else \(stripes/_info.json\)"):
        generate(sharded(open_output(f"{server.url}/sets", access), n=2))
    assert server.objects() == before


def test_other_settings_are_rejected_in_a_store(store: OutputStore) -> None:
    generate(sharded(store, num_tasks=2))
    with pytest.raises(
        PipelineError, match=rf"seed: {store.name} was started with 0, and this command uses 1"
    ):
        generate(sharded(store, Stripes(seed=1)))


def test_many_sidecars_are_listed_once_and_read_in_batches(
    store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_PREFETCH", 2)
    for task in range(2):
        generate(sharded(store, task_index=task, num_tasks=2))
    listed, sizes = [], Bucket.sizes

    def count(self: Bucket) -> dict[str, int]:
        listed.append(self)
        return sizes(self)

    monkeypatch.setattr(Bucket, "sizes", count)
    assert merge_shards(store).complete
    # Once for the shards, and once for what is to be removed.
    assert len(listed) == 2


def test_the_command_generates_shards_in_a_store_and_merges_them(
    server: AmazonStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(gen.main, arguments)

    small = ("--n", "5", "--size", "24x16", "--samples-per-pixel", "4", "--jobs", "1")
    for task in ("0", "1"):
        made = run(
            "fractals", *small, "--to-shards", "--shard-size", "2", "--out", url, "--task-index",
            task, "--num-tasks", "2",
        )  # fmt: skip
        assert made.exit_code == 0, made.output
    merged = run("merge", url, "--json")
    assert json.loads(merged.stdout) == {
        "location": url, "images": 5, "generated": 0, "shards": 3, "missing": [], "complete": True,
    }  # fmt: skip
    assert "manifest.json" in contents(server)


def test_ctrl_c_ends_the_wait_for_an_unresponsive_store() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        options = {"access_key_id": "key", "secret_access_key": "secret", "endpoint": endpoint}
        access = RemoteAccess(stall_s=1000, options={"s3": options})
        timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        begun = time.monotonic()
        with (
            pytest.raises(KeyboardInterrupt),
            open_output("s3://bucket/a", access).writing() as here,
        ):
            (here / "a.tar").write_bytes(bytes(1000))
        assert time.monotonic() - begun < 20
        timer.join()


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "AZ"])
def test_a_bucket_is_an_output_store(scheme: str) -> None:
    store = open_output(f"{scheme}://bucket/sets/a")
    assert isinstance(store, Bucket)
    assert store.name == f"{scheme.lower()}://bucket/sets/a"


@pytest.mark.parametrize("where", ["http://host/a", "s3://", "pipe:cat", "ftp://host/a"])
def test_addresses_that_cannot_be_written_are_rejected(where: str) -> None:
    with pytest.raises(PipelineError, match="cannot be written; use a folder"):
        open_output(where)


def test_an_azure_address_has_a_container_and_a_key() -> None:
    options = {"account_name": "someone", "skip_signature": True}
    store, key = open_store("az://container/set/a.tar", options, stall_s=1)
    assert type(store).__name__ == "AzureStore"
    assert key == "set/a.tar"


FORK = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pipelines.system.stores import open_store
def opened():
    try:
        open_store("s3://bucket/a", {"skip_signature": True}, 1)
    except RuntimeError as error:
        return str(error)
    return "opened"
print(opened(), flush=True)
child = os.fork()
print(opened(), flush=True) if child == 0 else os.waitpid(child, 0)
"""


def test_a_forked_process_cannot_use_the_stores_of_its_parent() -> None:
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(tests.parent)], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first == "opened"
    assert "forked" in second
