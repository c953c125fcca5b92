"""Sets of shards that are painted into object stores: such as Amazon's and Google's."""

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
from pipelines.generate.products import begun_shards
from pipelines.shards import output
from pipelines.shards.job import JobResult, merge
from pipelines.shards.output import Bucket, Folder, OutputStore, open_output
from pipelines.shards.remote import open_set
from pipelines.system.objects import RemoteAccess
from pipelines.system.stores import open_store
from stripes import JobSpec, RunResult, Stripes, make, run_here, sharded, tree


def generate(asked: JobSpec) -> RunResult:
    return make(asked, run=run_here)


def merge_shards(place: OutputStore) -> JobResult:
    return merge(begun_shards(place))


@pytest.fixture(scope="session")
def in_a_folder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("in_a_folder") / "set"
    generate(sharded(Folder(path=folder)))
    return tree(folder)


@pytest.fixture(params=[AmazonStore, GoogleStore])
def store(request: pytest.FixtureRequest) -> Iterator[AmazonStore]:
    with request.param() as store:
        yield store


@pytest.fixture
def url(store: AmazonStore) -> str:
    return f"{store.url}/sets/stripes"


@pytest.fixture
def access(store: AmazonStore) -> RemoteAccess:
    return RemoteAccess(attempts=4, first_wait_s=0.01, longest_wait_s=0.05, options=store.options)


@pytest.fixture
def place(url: str, access: RemoteAccess) -> OutputStore:
    return open_output(url, access)


def contents(store: AmazonStore) -> dict[str, bytes]:
    """The objects of the set, by their names in it."""
    return {key.removeprefix("sets/stripes/"): content for key, content in store.objects().items()}


def test_the_objects_are_the_files_of_a_folder(
    store: AmazonStore, place: OutputStore, in_a_folder: dict[str, bytes]
) -> None:
    assert generate(sharded(place)).complete
    assert contents(store) == in_a_folder
    # Each tar before its sidecar, and the manifest last.
    order = [key.removeprefix("sets/stripes/") for key in store.written]
    assert order[0] == ".work/request.json"
    for shard in range(4):
        tar = order.index(f"stripes-0{shard}.tar")
        (record,) = [name for name in order if name.startswith(f".work/done/0000000{shard}-")]
        assert tar < order.index(record)
    assert order[-1] == "manifest.json"


def test_tasks_and_duplicates_do_not_show(
    store: AmazonStore, place: OutputStore, in_a_folder: dict[str, bytes]
) -> None:
    for task in (2, 0, 2, 1):
        generate(sharded(place, task_index=task, num_tasks=3))
    assert merge_shards(place).complete
    assert contents(store) == in_a_folder
    written = len(store.written)
    assert generate(sharded(place, task_index=1, num_tasks=3)).complete
    assert merge_shards(place).complete
    assert len(store.written) == written


def test_worker_processes_write_to_a_store(
    store: AmazonStore, place: OutputStore, in_a_folder: dict[str, bytes]
) -> None:
    assert make(sharded(place, jobs=2)).complete
    assert contents(store) == in_a_folder


def test_a_finished_set_is_read_back_from_the_store(
    url: str, place: OutputStore, access: RemoteAccess, tmp_path: Path
) -> None:
    generate(sharded(place))
    remote = Remote(access=access)
    mixing_set = open_mixing_set(url, 20, cache_dir=tmp_path / "cache", remote=remote)
    assert len(mixing_set) == 10
    for i in range(10):
        np.testing.assert_array_equal(mixing_set[i], Stripes().image(i))
    assert len(open_set(url, cache_dir=tmp_path, remote=remote).shards) == 10


def test_merge_says_what_is_missing_in_a_store(store: AmazonStore, place: OutputStore) -> None:
    generate(sharded(place, task_index=1, num_tasks=4))
    assert merge_shards(place).missing == (range(1), range(2, 4))
    assert not [key for key in store.written if key.endswith("manifest.json")]


@pytest.mark.parametrize("n_busy", [1, 3])
def test_a_store_that_is_busy_is_asked_again(
    store: AmazonStore,
    place: OutputStore,
    in_a_folder: dict[str, bytes],
    n_busy: int,
) -> None:
    store.busy = n_busy
    assert generate(sharded(place)).complete
    assert store.rejected == n_busy
    assert contents(store) == in_a_folder


def test_a_store_that_stays_busy_is_one_line_and_the_same_request_continues(
    store: AmazonStore,
    place: OutputStore,
    in_a_folder: dict[str, bytes],
) -> None:
    generate(sharded(place, task_index=0, num_tasks=2))
    store.busy = 1000
    with pytest.raises(PipelineError) as caught:
        generate(sharded(place))
    assert store.rejected == 4
    assert str(caught.value).startswith(
        f"{place.name}/stripes-01.tar: given up after 4 attempts in a row,"
    )
    assert "\n" not in str(caught.value)
    store.busy = 0
    assert generate(sharded(place)).generated == 6
    assert contents(store) == in_a_folder


def test_a_store_that_does_not_answer_is_one_line(url: str, access: RemoteAccess) -> None:
    options = {
        scheme: each | {"base_url" if scheme == "gs" else "endpoint": "http://127.0.0.1:9"}
        for scheme, each in access.options.items()
    }
    nobody = RemoteAccess(attempts=2, first_wait_s=0.01, longest_wait_s=0.01, options=options)
    with pytest.raises(PipelineError, match=f"^{url}/: given up after 2 attempts"):
        generate(sharded(open_output(url, nobody)))


def test_a_store_that_may_not_be_written_is_one_line_at_once(
    store: AmazonStore, place: OutputStore
) -> None:
    store.busy, store.status = 1000, 403
    with pytest.raises(PipelineError) as caught:
        generate(sharded(place))
    assert store.rejected == 1
    message = r"access denied \(.*\); set credentials that may write there"
    assert re.fullmatch(rf"{place.name}/\.work/request\.json: {message}", str(caught.value))


def test_a_large_file_is_put_in_pieces(store: AmazonStore, place: OutputStore) -> None:
    content = np.random.default_rng(0).bytes(6 * 2**20)
    with place.writing() as folder:
        (folder / "large.tar").write_bytes(content)
    assert contents(store) == {"large.tar": content}
    assert place.sizes() == {"large.tar": len(content)}


def _die_before(name: str, place: OutputStore) -> None:
    """Paint the set in this process, which is killed when a file of that name is to be put."""
    put = Bucket._put

    def put_or_die(self: Bucket, path: Path, put_name: str) -> None:
        if put_name.startswith(name):
            os.kill(os.getpid(), signal.SIGKILL)
        put(self, path, put_name)

    Bucket._put = put_or_die  # type: ignore[method-assign]
    generate(sharded(place))


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
def test_a_kill_between_two_objects_is_continued(
    store: AmazonStore,
    place: OutputStore,
    in_a_folder: dict[str, bytes],
    name: str,
    generated: int,
) -> None:
    killed = multiprocessing.get_context("spawn").Process(target=_die_before, args=(name, place))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert "manifest.json" not in contents(store)
    assert generate(sharded(place)).generated == generated
    assert contents(store) == in_a_folder


@pytest.mark.parametrize(
    "mend",
    [merge_shards, lambda place: generate(sharded(place, num_tasks=2))],
    ids=["merge", "task"],
)
def test_a_kill_before_the_work_folder_is_removed_is_mended_by_any_run(
    store: AmazonStore,
    place: OutputStore,
    in_a_folder: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    mend: Callable[[OutputStore], Any],
) -> None:
    def end(_: Bucket) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Bucket, "close", end)
        with pytest.raises(KeyboardInterrupt):
            generate(sharded(place))
    assert len(contents(store)) > len(in_a_folder)
    assert mend(place).complete
    assert contents(store) == in_a_folder


def test_a_bucket_that_is_not_there_is_one_line(store: AmazonStore, access: RemoteAccess) -> None:
    url = f"{store.scheme}://none/set"
    with pytest.raises(PipelineError, match=rf"^{url}/.*: the bucket was not found .* make"):
        generate(sharded(open_output(url, access)))


def test_other_objects_are_left_alone(store: AmazonStore, url: str, access: RemoteAccess) -> None:
    generate(sharded(open_output(f"{url}2", access), n=2))
    generate(sharded(open_output(f"{url}/", access), n=2))
    before = store.objects()
    with pytest.raises(PipelineError, match=r"sets holds something else \(stripes/_info.json\)"):
        generate(sharded(open_output(f"{store.url}/sets", access), n=2))
    assert store.objects() == before


def test_other_settings_are_refused_in_a_store(place: OutputStore) -> None:
    generate(sharded(place, num_tasks=2))
    with pytest.raises(
        PipelineError, match=rf"seed: {place.name} was started with 0, and this command uses 1"
    ):
        generate(sharded(place, Stripes(seed=1)))


def test_many_sidecars_are_listed_once_and_read_in_batches(
    place: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_PREFETCH", 2)
    for task in range(2):
        generate(sharded(place, task_index=task, num_tasks=2))
    listed, sizes = [], Bucket.sizes

    def count(self: Bucket) -> dict[str, int]:
        listed.append(self)
        return sizes(self)

    monkeypatch.setattr(Bucket, "sizes", count)
    assert merge_shards(place).complete
    # Once for the shards, and once for what is to be removed.
    assert len(listed) == 2


def test_the_command_paints_into_a_store_and_merges(
    store: AmazonStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in store.environment.items():
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
    assert "manifest.json" in contents(store)


def test_ctrl_c_ends_the_wait_for_a_store_that_does_not_answer() -> None:
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
def test_what_cannot_be_written_is_refused(where: str) -> None:
    with pytest.raises(PipelineError, match="cannot be written; use a folder"):
        open_output(where)


def test_an_address_of_azure_is_a_container_and_a_key() -> None:
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


def test_a_forked_process_is_refused_its_parents_stores() -> None:
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(tests.parent)], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first == "opened"
    assert "forked" in second
