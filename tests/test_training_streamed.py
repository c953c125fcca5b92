"""Training on shards at an address: on hosts with disks of their own, with faulty servers."""

import json
import math
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from faulty_server import Fault, FaultyServer, cut, flip, replaced, slowly, stall, status
from file_server import downloads, served
from hosts import ADDRESSES, free_port, kill_host, two_hosts
from pipelines.cli import train as command
from pipelines.errors import PipelineError
from pipelines.loading.batches import IMAGENET, LoaderConfig
from pipelines.loading.dataset import ShardDataset
from pipelines.loading.order import EpochOrder, training_batches
from pipelines.shards.format import open_shards
from pipelines.shards.remote import Remote, open_set
from pipelines.system.objects import RemoteAccess
from pipelines.system.process_group import Processes, Watchdog
from pipelines.system.processes import available_cores
from pipelines.system.ranks import World
from pipelines.training.checkpoints import find_checkpoints
from pipelines.training.data import hold_out, open_training_data
from pipelines.training.loop import train
from pipelines.training.recipes import StepProgress, TrainConfig, TrainResult, named_recipe
from shard_sets import drawn_images, encoded, write_shards
from training_sets import read_checkpoint, take_fields

RECIPE = named_recipe("imagenet")

TESTS = Path(__file__).parent
ALONE = Processes(world=World(rank=0, size=1), device=torch.device("cpu"))
N_SHARDS, A_SHARD, BATCH, EPOCHS = 16, 4, 8, 2
N = N_SHARDS * A_SHARD
STEPS = EPOCHS * N // BATCH


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of images in train, and fewer in val."""
    folder = tmp_path_factory.mktemp("served")
    contents = [encoded(each, "jpg") for each in drawn_images(N, size=(40, 48))]
    write_shards(folder / "train", contents, sizes=[A_SHARD] * N_SHARDS, extension="jpg")
    write_shards(folder / "val", contents[:6], sizes=[4, 2], extension="jpg")
    return folder


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    # Also while the fixtures of the module train: with two, sums are rounded otherwise.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- Addresses -----------------------------------------------------------------------------------


def nothing(_done: int, _total: int) -> None: ...


def found(address: Path | str, cache: Path) -> tuple[str, str | None]:
    data = open_training_data("folder", address, cache / "made", nothing, cache_dir=cache)
    test = data.test
    return data.train.shards.location, None if test is None else test.shards.location


def test_an_address_holds_train_and_a_test_set_or_is_a_set(root: Path, tmp_path: Path) -> None:
    with FaultyServer(root) as server:
        base = server.url().rstrip("/")
        assert found(base, tmp_path) == (f"{base}/train", f"{base}/val")
        assert found(f"{base}/train", tmp_path) == (f"{base}/train", None)
        assert found(f"{base}/train/manifest.json", tmp_path) == (f"{base}/train", None)
        # What needs leave for each file has it in the query.
        assert found(f"{base}?token=secret", tmp_path) == (f"{base}/train", f"{base}/val")
        part = open_training_data(
            "folder", f"{base}/train/set-{{0002..0004}}.tar", tmp_path, nothing
        )
        assert len(part.train.shards) == 3 * A_SHARD


@pytest.mark.parametrize("code", [404, 403])
def test_an_address_that_leads_nowhere_ends_with_one_line(
    root: Path, tmp_path: Path, code: int
) -> None:
    with FaultyServer(root) as server:
        for name in ("none/train/manifest.json", "none/manifest.json"):
            server.always[name] = status(code)
        result = CliRunner().invoke(
            command.main,
            ["folder", "--data", server.url("none?token=secret"), "--out", str(tmp_path / "run"),
             "--no-mixing-set", "--cache-dir", str(tmp_path)],
        )  # fmt: skip
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert "none has neither train/manifest.json nor manifest.json to be read" in line
    assert "secret" not in result.stderr


def test_a_host_of_no_such_name_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def look_up(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(PipelineError, match=r"http://no-such-host/.*check the address"):
        open_training_data(
            "folder", "http://no-such-host/shards", tmp_path, nothing, cache_dir=tmp_path
        )
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("200GB", 200 * 10**9), ("1.5TB", 15 * 10**11), ("512MiB", 2**29), ("7", 7), ("3 kB", 3000)],
)
def test_a_size_is_bytes_with_a_unit(text: str, n_bytes: int) -> None:
    from pipelines.cli.options import ByteSize

    assert ByteSize().convert(text, None, None) == n_bytes


@pytest.mark.parametrize(
    "arguments",
    [
        ("--cache-limit", "0"),
        ("--cache-limit", "many"),
        ("--cache-limit", "5PB"),
        ("--prefetch", "0"),
        ("--download-timeout", "0"),
        ("--download-timeout", "nan"),
        ("--watchdog-timeout", "-1"),
        ("--checkpoint-every", "0"),
        ("--data", "no-such-folder"),
    ],
)
def test_wrong_usage_of_streams_exits_with_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    out = str(tmp_path / "run")
    data = () if "--data" in arguments else ("--data", "http://127.0.0.1:9/shards")
    result = CliRunner().invoke(
        command.main, ["folder", *data, "--out", out, "--no-mixing-set", *arguments]
    )
    assert result.exit_code == 2, result.output
    assert list(tmp_path.iterdir()) == []


# --- Server faults -------------------------------------------------------------------------------

ACCESS = RemoteAccess(download_timeout_s=20, first_wait_s=0.02, longest_wait_s=0.2, stall_s=0.5)


def streamed(where: str | Path, out: Path, **changes: Any) -> TrainConfig:  # noqa: ANN401
    """Return a small training on shards wherever they lie; a cache of its own."""
    remote = Remote(access=changes.pop("access", ACCESS), prefetch=2)
    cache = out.parent / f"cache of {out.name}"
    recipe = replace(
        RECIPE, model="networks:linear", epochs=EPOCHS, batch_size=BATCH, learning_rate=0.01
    )
    arguments: dict[str, Any] = {
        "out": out,
        "recipe": recipe,
        "loader": LoaderConfig(
            batch_size=BATCH,
            seed=recipe.seed,
            preprocess=replace(IMAGENET, image_size=32),
            shuffle_window=2,
            cache_dir=cache,
            remote=remote,
            **take_fields(LoaderConfig, changes),
        ),
        "train": open_set(where, cache_dir=cache, remote=remote),
    }
    return TrainConfig(**arguments | changes)


def weights_of(trained: TrainResult) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = read_checkpoint(trained.checkpoint).state_dict
    return state


@pytest.fixture(scope="module")
def undisturbed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of the training on local shards."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    return weights_of(train(streamed(root / "train", out), ALONE))


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


FAULTS: dict[str, list[Fault]] = {
    "busy": [status(503)] * 4,
    "too many": [status(429)] * 2,
    "cut short": [cut(2000), cut(0), cut(100)],
    "silent": [stall(1000)],
    "a wrong bit": [flip(700)],
    "another file, for a while": [replaced(b"x" * 3000)],
    "a slow link": [slowly(0.2)] * 9,
}


@pytest.mark.parametrize(
    ("fault", "num_workers"),
    [*((fault, 0) for fault in FAULTS), ("busy", 2), ("cut short", 2)],
)
def test_what_passes_at_a_server_leaves_no_trace_in_the_weights(
    root: Path,
    undisturbed: dict[str, torch.Tensor],
    tmp_path: Path,
    fault: str,
    num_workers: int,
) -> None:
    with FaultyServer(root) as server:
        for number in (3, 7, 8):
            server.faults[f"train/set-{number:04}.tar"] = list(FAULTS[fault])
        address = server.url("train")
        trained = train(streamed(address, tmp_path / "run", num_workers=num_workers), ALONE)
        assert len(server.requests("train/set-0003.tar")) >= 2 or fault == "a slow link"
    assert_same(weights_of(trained), undisturbed)


def test_validation_and_test_sets_come_from_addresses_too(root: Path, tmp_path: Path) -> None:
    histories = []
    with FaultyServer(root) as server:
        for name, base in (("here", root), ("there", server.url().rstrip("/"))):
            training = streamed(f"{base}/train", tmp_path / name)
            test = streamed(f"{base}/val", tmp_path / name).train
            shards, validation = hold_out(training.train, 0.2)
            trained = train(
                replace(training, train=shards, validation=validation, test=test), ALONE
            )
            histories.append(trained.history)
    assert histories[0] == histories[1]
    assert {"validation_error", "test_error"} <= histories[0][0].keys()


def test_patience_counts_from_the_last_byte_that_came(root: Path, tmp_path: Path) -> None:
    (shard, *_) = open_shards(root / "train").shards
    access = RemoteAccess(download_timeout_s=0.3, first_wait_s=0.2, longest_wait_s=0.2)
    with FaultyServer(root) as server:
        opened = open_set(server.url("train"), cache_dir=tmp_path, remote=Remote(access=access))
        server.faults[f"train/{shard.file}"] = [cut(1000)] * 12
        opened.files.hold(0).release()
        assert len(server.requests(f"train/{shard.file}")) == 13


def test_the_index_stays_in_a_cache_that_is_full(root: Path, tmp_path: Path) -> None:
    sizes = [shard.n_bytes for shard in open_shards(root / "train").shards]
    remote = Remote(limit_bytes=3 * max(sizes))
    with FaultyServer(root) as server:
        opened = open_set(server.url("train"), cache_dir=tmp_path, remote=remote)
        for shard in range(N_SHARDS):
            opened.files.hold(shard).release()
        assert len(server.requests("train/index.npy")) == 1
        again = open_set(server.url("train"), cache_dir=tmp_path, remote=remote)
        assert len(server.requests("train/index.npy")) == 1
    assert again.shards.hash == opened.shards.hash
    copied = pickle.loads(pickle.dumps(ShardDataset(opened.shards, opened.files.path)))
    assert copied.shards.samples.tolist() == opened.shards.samples.tolist()


def test_an_outage_in_the_middle_is_outlasted(
    root: Path, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    # Of a second, with pauses scaled down as much from a minute.
    with FaultyServer(root) as server:
        names = [f"train/set-{number:04}.tar" for number in range(N_SHARDS)]
        over = threading.Timer(1.0, server.always.clear)

        def show(shown: StepProgress) -> None:
            if shown.step == 2:
                server.always.update(dict.fromkeys(names, cut(0)))
                over.start()

        trained = train(streamed(server.url("train"), tmp_path / "run"), ALONE, show)
        over.join()
        assert max(len(server.requests(name)) for name in names) > 3
    assert_same(weights_of(trained), undisturbed)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (status(503), "given up after 1.5 s without new data; the last error: 503"),
        (status(404), "not found; check the address"),
        (cut(0), "given up after 1.5 s"),
        (replaced(encoded(drawn_images(1)[0])), ", got "),
    ],
    ids=["busy for good", "gone", "dead", "another for good"],
)
def test_what_does_not_pass_ends_the_training_and_names_the_shard(
    root: Path, tmp_path: Path, fault: Fault, message: str, num_workers: int
) -> None:
    access = replace(ACCESS, download_timeout_s=1.5)
    with FaultyServer(root) as server:
        server.always["train/set-0005.tar"] = fault
        address = server.url("train")
        training = streamed(address, tmp_path / "run", access=access, num_workers=num_workers)
        with pytest.raises(PipelineError) as refusal:
            train(training, ALONE)
    assert "/train/set-0005.tar: " in str(refusal.value)
    assert message in str(refusal.value)


def test_the_samples_of_a_loss_that_is_no_number_are_named(root: Path, tmp_path: Path) -> None:
    with FaultyServer(root) as server:
        training = streamed(server.url("train"), tmp_path / "run")
        recipe = replace(training.recipe, learning_rate=1e30)
        with pytest.raises(PipelineError, match="the samples of its batch are in"):
            train(replace(training, recipe=recipe), ALONE)
    (path,) = (tmp_path / "run").glob("nonfinite-loss-*.json")
    said = json.loads(path.read_text())
    assert said["keys"] == [f"{i:08}" for i in said["samples"]]
    assert len(set(said["samples"])) == BATCH


# --- The watchdog --------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_watchdog_names_the_shard_that_does_not_come(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, num_workers: int
) -> None:
    watchdog = Watchdog(first_report_s=0.4)
    processes = replace(ALONE, watchdog=watchdog)
    access = replace(ACCESS, stall_s=3)
    with FaultyServer(root) as server, watchdog.watching():
        server.faults["train/set-0005.tar"] = [stall(100)]
        address = server.url("train")
        out = tmp_path / "run"
        begun = time.monotonic()
        train(streamed(address, out, access=access, num_workers=num_workers), processes)
        took = time.monotonic() - begun
    said = [each.getMessage() for each in caplog.records if "no step for" in each.getMessage()]
    of_it = [each for each in said if f"waiting for {address}/set-0005.tar" in each]
    # At doubling intervals from 0.4 seconds on, and once more where a worker asked before.
    assert 1 <= len(of_it) <= math.log2(took / 0.4) + 2, said


def test_the_watchdog_tells_and_does_not_end_what_may_take_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watchdog = Watchdog(limit_s=0.2, first_report_s=0.1)
    with watchdog.watching(), watchdog.awaiting("a large set"), watchdog.without_limit():
        time.sleep(0.8)
    assert any("waiting for a large set" in each.getMessage() for each in caplog.records)


@pytest.mark.parametrize("arguments", [{"limit_s": -1.0}, {"first_report_s": 0.0}])
def test_a_watchdog_refuses_nonsense(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="seconds"):
        Watchdog(**arguments)


# --- Checkpoints within an epoch -----------------------------------------------------------------


def test_checkpoints_within_an_epoch_lose_no_more_steps_than_are_asked_for(
    root: Path, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    class Ended(Exception):
        """As a power cut: nothing is written after it."""

    def ending_at(step: int) -> Callable[[StepProgress], None]:
        def show(shown: StepProgress) -> None:
            if shown.step == step:
                raise Ended

        return show

    asked = {"checkpoint_every": 3, "resume": True}
    seen = []
    for step in (8, 15):
        with pytest.raises(Ended):
            train(streamed(root / "train", tmp_path / "run", **asked), ALONE, ending_at(step))
        seen.append([int(path.stem[5:]) for path in find_checkpoints(tmp_path / "run")])
    assert seen == [[3, 6], [9, 12]]
    ended = train(streamed(root / "train", tmp_path / "run", **asked), ALONE)
    assert_same(weights_of(ended), undisturbed)


# --- Hosts ---------------------------------------------------------------------------------------


@dataclass
class Host:
    """A started torchrun. record: what its process trained on."""

    running: "subprocess.Popen[bytes]"
    record: Path
    log: Path

    def lines(self) -> list[dict[str, Any]]:
        if not self.record.exists():
            return []
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    def wait_for_step(self, step: int, size: int | None = None) -> None:
        """Wait until a step was begun; size: among so many processes."""
        end = time.monotonic() + 240
        while time.monotonic() < end:
            if any(line["step"] >= step and size in {None, line["size"]} for line in self.lines()):
                return
            assert self.running.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise TimeoutError(self.log.read_text())


def start(
    arguments: Sequence[object],
    folder: Path,
    *,
    name: str,
    torchrun: Sequence[str] = (),
    before: Sequence[str] = (),
    environment: dict[str, str],
) -> Host:
    """Start pixmix-train, under torchrun if it is told how."""
    record, log = folder / f"{name}.jsonl", folder / f"{name}.log"
    launcher = [] if not torchrun else ["-m", "torch.distributed.run", *torchrun, "-m", "--"]
    program = ["recorded_train"] if torchrun else ["-m", "recorded_train"]
    with log.open("ab") as file:
        running = subprocess.Popen(
            [*before, sys.executable, *launcher, *program, *map(str, arguments)],
            env={
                **os.environ,
                "RECORD": str(record),
                "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
                "OMP_NUM_THREADS": "1",
                **environment,
            },
            cwd=folder,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    return Host(running=running, record=record, log=log)


def arguments_of(data: str | Path, out: Path, cache: Path, *more: object) -> list[object]:
    return [
        "folder", "--data", data, "--out", out, "--cache-dir", cache, "--no-mixing-set",
        "--model", "networks:classifier", "--epochs", EPOCHS, "--batch-size", BATCH,
        "--shuffle-window", 1, "--workers", 0, "--precision", "float32", "--device", "cpu",
        "--checkpoint-every", 2, "--resume", "auto", *more,
    ]  # fmt: skip


def plan(epochs: int = EPOCHS, window: int = 1, partitions: int = 1) -> list[list[int]]:
    """The batches of a whole training, at any number of processes."""
    batches = []
    sizes = [A_SHARD] * N_SHARDS
    for epoch in range(epochs):
        order = EpochOrder(
            N,
            seed=0,
            epoch=epoch,
            shard_sizes=sizes,
            shuffle_window=window,
            shard_partitions=partitions,
        ).whole()
        found = training_batches(
            order, batch_size=BATCH, rank=0, world_size=1, shard_partitions=partitions
        )
        batches += [indices.tolist() for _, indices in found]
    return batches


def joined_batches(hosts: Sequence[Host]) -> dict[int, list[int]]:
    """The batch of each step that all processes together have recorded."""
    steps: dict[int, dict[int, list[int]]] = {}
    sizes: dict[int, int] = {}
    for line in (line for host in hosts for line in host.lines()):
        steps.setdefault(line["step"], {})[line["rank"]] = line["indices"]
        sizes[line["step"]] = line["size"]
    whole = {step: parts for step, parts in steps.items() if len(parts) == sizes[step]}
    return {
        step: [i for rank in sorted(parts) for i in parts[rank]] for step, parts in whole.items()
    }


def shards_of(lines: Sequence[dict[str, Any]]) -> set[str]:
    return {f"set-{i // A_SHARD:04}.tar" for line in lines for i in line["indices"]}


@pytest.fixture
def hosts() -> Iterator[Sequence[str]]:
    with two_hosts() as names:
        yield names


@pytest.mark.parametrize("program", ["nginx", "python"])
def test_the_log_of_a_server_tells_what_was_downloaded(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    if program == "python":
        monkeypatch.setattr("file_server.shutil.which", lambda _: None)
    elif shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    port = free_port()
    (tmp_path / "work").mkdir()
    with served(root, port, tmp_path / "work") as log:
        where = f"http://127.0.0.1:{port}/train"
        opened = open_set(where, cache_dir=tmp_path / "cache", remote=None)
        for shard in (2, 5, 2):
            opened.files.hold(shard).release()
        sizes = {each.file: [each.n_bytes] for each in opened.shards.shards}
        assert downloads(log, "127.0.0.1") == {
            name: sizes[name] for name in ("set-0002.tar", "set-0005.tar")
        }
        assert downloads(log, "127.0.0.2") == {}


@pytest.mark.slow
def test_hosts_download_what_they_need_once_and_a_lost_one_leaves_the_order_as_it_was(
    root: Path, tmp_path: Path, hosts: Sequence[str]
) -> None:
    port = free_port()
    address = f"http://{ADDRESSES[0]}:{port}"
    sizes = {shard.file: shard.n_bytes for shard in open_shards(root / "train").shards}

    def begin(
        run: str, phase: str, numbers: Sequence[int], *more: object, pause: float = 0.0
    ) -> list[Host]:
        """Start pixmix-train on some of the hosts, each with a disk of its own."""
        rendezvous = free_port()
        started = []
        for number in numbers:
            folder = tmp_path / f"{run} of host {number}"
            folder.mkdir(exist_ok=True)
            torchrun = [
                "--nnodes", str(len(numbers)), "--nproc-per-node", "1", "--rdzv-backend", "c10d",
                "--rdzv-endpoint", f"{ADDRESSES[numbers[0]]}:{rendezvous}", "--rdzv-id", phase,
                "--rdzv-conf", f"is_host={int(number == numbers[0])}",
                "--local-addr", ADDRESSES[number],
            ]  # fmt: skip
            arguments = arguments_of(f"{address}/train", folder / "out", folder / "cache", *more)
            started.append(
                start(
                    arguments, folder, name=phase, torchrun=torchrun,
                    before=["ip", "netns", "exec", hosts[number]],
                    environment={
                        "PAUSE": str(pause), "GLOO_SOCKET_IFNAME": f"pixmix-{number}",
                    },
                )
            )  # fmt: skip
        return started

    def end(started: Sequence[Host]) -> None:
        for host in started:
            assert host.running.wait(timeout=300) == 0, host.log.read_text()

    with served(root, port, tmp_path, ["ip", "netns", "exec", hosts[0]]) as log:
        # Unbroken: what is downloaded is what the plan needs, each shard once.
        unbroken = begin("unbroken", "whole", [0, 1])
        end(unbroken)
        assert joined_batches(unbroken) == dict(enumerate(plan()))
        for host, where in zip(unbroken, ADDRESSES, strict=True):
            needed = shards_of(host.lines())
            assert len(needed) < N_SHARDS
            assert downloads(log, where) == {name: [sizes[name]] for name in sorted(needed)}
        # A host needs the shards of its partitions alone, whatever is shuffled together.
        before = log.read_text()
        in_partitions = begin(
            "partitions",
            "partitions",
            [0, 1],
            "--epochs",
            1,
            "--shuffle-window",
            3,
            "--shard-partitions",
            2,
        )
        end(in_partitions)
        assert joined_batches(in_partitions) == dict(
            enumerate(plan(epochs=1, window=3, partitions=2))
        )
        log.write_text(log.read_text().removeprefix(before))
        halves = [downloads(log, where).keys() for where in ADDRESSES]
        assert [len(half) for half in halves] == [N_SHARDS // 2] * 2
        assert not halves[0] & halves[1]
        # Broken: the host that does not write is lost, then the other one, which went on alone.
        before = log.read_text()
        pair = begin("broken", "pair", [0, 1], pause=0.3)
        for host in pair:
            host.wait_for_step(5)
        outs = [tmp_path / f"broken of host {number}" / "out" for number in (0, 1)]
        (writer,) = [number for number in (0, 1) if find_checkpoints(outs[number])]
        kill_host(hosts[1 - writer])
        pair[1 - writer].running.wait()
        assert pair[writer].running.wait(timeout=120) != 0
        assert "another process was lost" in pair[writer].log.read_text()
        (alone,) = begin("broken", "alone", [writer], pause=0.3)
        alone.wait_for_step(9)
        assert min(line["step"] for line in alone.lines()) >= 4
        os.killpg(alone.running.pid, signal.SIGKILL)
        for line in alone.lines()[:1]:
            os.kill(line["process"], signal.SIGKILL)
        alone.running.wait()
        again = begin("broken", "again", [0, 1])
        end(again)
        assert min(line["step"] for line in again[0].lines()) >= 8
        phases = [joined_batches(each) for each in (pair, [alone], again)]
        assert {step for phase in phases for step in phase} == set(range(STEPS))
        for phase in phases:
            assert phase == {step: plan()[step] for step in phase}
        # The weights are those of the unbroken run, but for sums in another order on the way.
        log.write_text(log.read_text().removeprefix(before))
        for number, where in enumerate(ADDRESSES):
            got = downloads(log, where)
            lines = [line for each in (pair, again) for line in each[number].lines()]
            lines += alone.lines() if number == writer else []
            assert shards_of(lines) <= got.keys()
            assert all(sum(parts) == sizes[name] for name, parts in got.items())


# --- Processes that get ready --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "first", "second"),
    [
        # It may make shards for as long as it takes, and the watchdogs let it.
        ("slow", "bytes", "bytes"),
        ("fails", "PipelineError: it has failed", "PipelineError: another process could not begin"),
        ("ends", "", "LostProcessError: another process was lost"),
    ],
)
def test_processes_get_ready_together_or_not_at_all(what: str, first: str, second: str) -> None:
    said, codes = two_that_meet(what)
    assert said[0].startswith(first)
    assert said[1].startswith(second)
    assert codes == [9 if what == "ends" else 0, 0]


@pytest.mark.slow
def test_processes_of_a_machine_share_its_cores() -> None:
    assert two_that_meet("shares") == ([f"{max(1, available_cores() // 2)}\n"] * 2, [0, 0])


def two_that_meet(what: str) -> tuple[list[str], list[int]]:
    """What two processes of meeting.py say, and their codes."""
    port = str(free_port())
    started = [
        subprocess.Popen(
            [sys.executable, TESTS / "meeting.py", what],
            env={
                **os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(TESTS.parent),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [each.communicate(timeout=120)[0] for each in started]
    return said, [each.returncode for each in started]


def test_shards_that_another_host_has_made_are_not_here(tmp_path: Path) -> None:
    for dataset, place in (("digits", None), ("cifar10", tmp_path)):
        with pytest.raises(PipelineError, match="process 0 made them on its own host"):
            open_training_data(dataset, place, tmp_path / "made", nothing, maker=False)  # type: ignore[arg-type]


# --- Processes that are lost, or hang ------------------------------------------------------------


@contextmanager
def two_processes(
    root: Path, tmp_path: Path, *more: object, others: Path | None = None
) -> Iterator[list[Host]]:
    """Give two processes of a training, started without torchrun; others: the second one's data."""
    port = str(free_port())
    started = [
        start(
            arguments_of(data, tmp_path / "out", tmp_path / "cache", *more),
            tmp_path,
            name=f"process {rank}",
            environment={
                "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", "PAUSE": "0.1",
            },
        )
        for rank, data in enumerate((root, others or root))
    ]  # fmt: skip
    try:
        yield started
    finally:
        for each in started:
            if each.running.poll() is None:
                os.killpg(each.running.pid, signal.SIGKILL)
                each.running.wait()


def errors_of(host: Host) -> list[str]:
    text = host.log.read_text()
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if "Error: " in line]


@pytest.mark.slow
def test_a_process_whose_other_was_killed_ends_with_one_line(root: Path, tmp_path: Path) -> None:
    with two_processes(root, tmp_path) as (first, second):
        first.wait_for_step(3)
        second.running.send_signal(signal.SIGKILL)
        assert first.running.wait(timeout=60) == 1
        (line,) = errors_of(first)
    assert "another process was lost" in line
    assert "give the same command again with --resume auto" in line


@pytest.mark.slow
def test_a_process_whose_other_stands_still_says_so_and_ends(root: Path, tmp_path: Path) -> None:
    with two_processes(root, tmp_path, "--watchdog-timeout", 8) as (first, second):
        first.wait_for_step(3)
        second.running.send_signal(signal.SIGSTOP)
        assert first.running.wait(timeout=60) == 1
        (line,) = errors_of(first)
    assert "waiting for" in line
    assert "the other processes" in line
    assert "--watchdog-timeout" in line


@pytest.mark.slow
def test_a_failure_in_one_process_ends_the_other_with_one_line_too(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoints").touch()
    with two_processes(root, tmp_path) as (first, second):
        assert [each.running.wait(timeout=120) for each in (first, second)] == [1, 1]
        lines = [errors_of(each) for each in (first, second)]
    assert "is a file; choose a folder for --out" in lines[0][0]
    assert "another process failed to start; see its error" in lines[1][0]


@pytest.mark.slow
def test_hosts_with_other_data_are_told_apart_before_they_train(root: Path, tmp_path: Path) -> None:
    contents = [encoded(each, "jpg") for each in drawn_images(N, size=(40, 48))]
    other = write_shards(tmp_path / "other", contents, sizes=[N // 2] * 2, extension="jpg")
    with two_processes(root, tmp_path, others=other) as started:
        assert [each.running.wait(timeout=120) for each in started] == [1, 1]
        for each in started:
            (line,) = errors_of(each)
            assert "--data differs between process 1 and process 0" in line


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_training_with_one_line(
    root: Path, tmp_path: Path
) -> None:
    running = start(
        arguments_of(root, tmp_path / "out", tmp_path / "cache", "--workers", 2), tmp_path,
        name="alone", environment={"PAUSE": "0.3"},
    )  # fmt: skip
    running.wait_for_step(2)
    tasks = Path(f"/proc/{running.running.pid}/task")
    children = [
        int(child) for path in tasks.glob("*/children") for child in path.read_text().split()
    ]
    workers = [
        child
        for child in children
        if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert running.running.wait(timeout=60) == 1
    (line,) = errors_of(running)
    assert "a process that decodes images was killed" in line


@pytest.mark.slow
def test_hosts_of_torchrun_that_are_lost_and_come_back_leave_the_order_as_it_was(
    root: Path, tmp_path: Path
) -> None:
    port = free_port()

    def begin(number: int) -> Host:
        torchrun = [
            "--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}",
            "--rdzv-conf", f"is_host={int(number == 0)},last_call_timeout=5,keep_alive_interval=1",
            "--local-addr", "127.0.0.1",
        ]  # fmt: skip
        return start(
            arguments_of(root, tmp_path / "out", tmp_path / f"cache {number}"), tmp_path,
            name=f"host {number}", torchrun=torchrun,
            environment={
                "PAUSE": "1.5", "GLOO_SOCKET_IFNAME": "lo",
                # Or a launcher that comes waits for an address that the first keeps to itself: seen
                # with torch 2.14.
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            },
        )  # fmt: skip

    stays, goes = begin(0), begin(1)
    for each in (stays, goes):
        each.wait_for_step(5, size=2)
    for process in {line["process"] for line in goes.lines()}:
        os.kill(process, signal.SIGKILL)
    os.killpg(goes.running.pid, signal.SIGKILL)
    goes.running.wait()
    stays.wait_for_step(0, size=1)
    comes = begin(2)
    for each in (stays, comes):
        assert each.running.wait(timeout=180) == 0, each.log.read_text()
    lines = stays.lines()
    # What both had taken before one was lost may be among what they take when it is back.
    since = lines[[line["size"] for line in lines].index(1) :]
    alone = [line["step"] for line in since if line["size"] == 1]
    together = [line["step"] for line in comes.lines()]
    # Two steps at most are taken again, none where the first process saved its last; who comes
    # costs none.
    assert 4 <= alone[0] <= 7
    assert [*alone, *together] == list(range(alone[0], STEPS))
    assert len(together) > 0
    batches: dict[int, list[int]] = {}
    for line in sorted(since + comes.lines(), key=lambda line: line["rank"]):
        if line["step"] in together and line["size"] == 2:
            batches.setdefault(line["step"], []).extend(line["indices"])
        elif line["step"] in alone and line["size"] == 1:
            batches[line["step"]] = line["indices"]
    assert batches == {step: plan()[step] for step in [*alone, *together]}
    assert read_checkpoint(find_checkpoints(tmp_path / "out")[-1]).step == STEPS
