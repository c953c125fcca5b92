"""Training on several hosts and processes: downloads, lost hosts, and errors in one process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from file_server import downloads, served
from hosts import ADDRESSES, free_port, kill_host, two_hosts
from pipelines.errors import PipelineError
from pipelines.loading.order import EpochOrder, training_batches
from pipelines.shards.format import open_shards
from pipelines.shards.remote import open_set
from pipelines.system.processes import available_cores
from pipelines.training.checkpoints import find_checkpoints
from pipelines.training.data import open_training_data
from shard_sets import drawn_images, encoded, write_shards
from training_sets import A_SHARD, N_SHARDS, read_checkpoint, write_small_shards

TESTS = Path(__file__).parent
BATCH, EPOCHS = 8, 2
N = N_SHARDS * A_SHARD
STEPS = EPOCHS * N // BATCH

pytestmark = pytest.mark.usefixtures("one_thread", "no_proxy")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_shards(tmp_path_factory.mktemp("served"))


def nothing(_done: int, _total: int) -> None: ...


@dataclass
class Host:
    """A started pixmix-train. record: the samples of its steps; log: its output."""

    running: "subprocess.Popen[bytes]"
    record: Path
    log: Path

    def lines(self) -> list[dict[str, Any]]:
        if not self.record.exists():
            return []
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    def wait_for_step(self, step: int, size: int | None = None) -> None:
        """Wait until a step begins. size: number of processes that take part; None for any."""
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
    """Start pixmix-train. torchrun: its arguments, to start under torchrun."""
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
    """Return the batches of a whole training, which do not depend on the processes."""
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
    """Return the global batch of each step that all processes have recorded."""
    steps: dict[int, dict[int, list[int]]] = {}
    sizes: dict[int, int] = {}
    for line in (line for host in hosts for line in host.lines()):
        steps.setdefault(line["step"], {})[line["rank"]] = line["indices"]
        sizes[line["step"]] = line["size"]
    complete = {step: parts for step, parts in steps.items() if len(parts) == sizes[step]}
    return {
        step: [i for rank in sorted(parts) for i in parts[rank]] for step, parts in complete.items()
    }


def shards_of(lines: Sequence[dict[str, Any]]) -> set[str]:
    return {f"set-{i // A_SHARD:04}.tar" for line in lines for i in line["indices"]}


@pytest.fixture
def hosts() -> Iterator[Sequence[str]]:
    with two_hosts() as names:
        yield names


@pytest.mark.parametrize("program", ["nginx", "python"])
def test_the_log_of_the_test_server_lists_downloads(
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
def test_hosts_download_needed_shards_once_and_keep_the_order_after_a_loss(
    root: Path, tmp_path: Path, hosts: Sequence[str]
) -> None:
    port = free_port()
    address = f"http://{ADDRESSES[0]}:{port}"
    sizes = {shard.file: shard.n_bytes for shard in open_shards(root / "train").shards}

    def begin(
        run: str, phase: str, numbers: Sequence[int], *more: object, pause: float = 0.0
    ) -> list[Host]:
        """Start pixmix-train on some of the hosts, each with its own disk."""
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
        # A run without faults downloads each shard of its plan once.
        unbroken = begin("unbroken", "whole", [0, 1])
        end(unbroken)
        assert joined_batches(unbroken) == dict(enumerate(plan()))
        for host, where in zip(unbroken, ADDRESSES, strict=True):
            needed = shards_of(host.lines())
            assert len(needed) < N_SHARDS
            assert downloads(log, where) == {name: [sizes[name]] for name in sorted(needed)}
        # A host needs only the shards of its partitions, whatever the shuffle window is.
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
        # The host that does not write checkpoints is lost, and later the other one, too.
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
        # Each host downloaded the shards that it needed, and no byte twice.
        log.write_text(log.read_text().removeprefix(before))
        for number, where in enumerate(ADDRESSES):
            got = downloads(log, where)
            lines = [line for each in (pair, again) for line in each[number].lines()]
            lines += alone.lines() if number == writer else []
            assert shards_of(lines) <= got.keys()
            assert all(sum(parts) == sizes[name] for name, parts in got.items())


# --- Start of several processes ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "first", "second"),
    [
        # The watchdogs let a process write shards for as long as it takes.
        ("slow", "bytes", "bytes"),
        ("fails", "PipelineError: it has failed", "PipelineError: another process failed to start"),
        ("ends", "", "LostProcessError: another process was lost"),
    ],
)
def test_processes_start_together_or_not_at_all(what: str, first: str, second: str) -> None:
    outputs, codes = start_two_processes(what)
    assert outputs[0].startswith(first)
    assert outputs[1].startswith(second)
    assert codes == [9 if what == "ends" else 0, 0]


@pytest.mark.slow
def test_processes_of_one_machine_share_its_cores() -> None:
    assert start_two_processes("shares") == ([f"{max(1, available_cores() // 2)}\n"] * 2, [0, 0])


def start_two_processes(what: str) -> tuple[list[str], list[int]]:
    """Run two processes of process_pair.py; return their outputs and exit codes."""
    port = str(free_port())
    started = [
        subprocess.Popen(
            [sys.executable, TESTS / "process_pair.py", what],
            env={
                **os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(TESTS.parent),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [each.communicate(timeout=120)[0] for each in started]
    return outputs, [each.returncode for each in started]


def test_shards_written_on_another_host_are_reported_as_missing(tmp_path: Path) -> None:
    for dataset, location in (("digits", None), ("cifar10", tmp_path)):
        with pytest.raises(PipelineError, match="process 0 wrote them on its own host"):
            open_training_data(dataset, location, tmp_path / "made", nothing, writes_shards=False)  # type: ignore[arg-type]


# --- Lost, suspended and failing processes -------------------------------------------------------


@contextmanager
def two_processes(
    root: Path, tmp_path: Path, *more: object, others: Path | None = None
) -> Iterator[list[Host]]:
    """Start two processes of a training without torchrun. others: data of the second process."""
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
def test_a_process_ends_with_one_line_if_another_is_killed(root: Path, tmp_path: Path) -> None:
    with two_processes(root, tmp_path) as (first, second):
        first.wait_for_step(3)
        second.running.send_signal(signal.SIGKILL)
        assert first.running.wait(timeout=60) == 1
        (line,) = errors_of(first)
    assert "another process was lost" in line
    assert "same command again with --resume" in line


@pytest.mark.slow
def test_a_process_ends_by_the_watchdog_if_another_is_suspended(root: Path, tmp_path: Path) -> None:
    with two_processes(root, tmp_path, "--watchdog-timeout", 8) as (first, second):
        first.wait_for_step(3)
        second.running.send_signal(signal.SIGSTOP)
        assert first.running.wait(timeout=60) == 1
        (line,) = errors_of(first)
    assert "waiting for" in line
    assert "the other processes" in line
    assert "--watchdog-timeout" in line


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_other_with_one_line(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoints").touch()
    with two_processes(root, tmp_path) as (first, second):
        assert [each.running.wait(timeout=120) for each in (first, second)] == [1, 1]
        lines = [errors_of(each) for each in (first, second)]
    assert "is a file; choose a folder for --out" in lines[0][0]
    assert "another process failed to start; see its error" in lines[1][0]


@pytest.mark.slow
def test_hosts_with_different_data_are_rejected(root: Path, tmp_path: Path) -> None:
    contents = [encoded(each, "jpg") for each in drawn_images(N, size=(40, 48))]
    other = write_shards(tmp_path / "other", contents, sizes=[N // 2] * 2, extension="jpg")
    with two_processes(root, tmp_path, others=other) as started:
        assert [each.running.wait(timeout=120) for each in started] == [1, 1]
        for each in started:
            (line,) = errors_of(each)
            assert "--data differs between process 1 and process 0" in line


@pytest.mark.slow
def test_a_killed_worker_ends_training_with_one_line(root: Path, tmp_path: Path) -> None:
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
    assert "a worker that decodes images was killed" in line


@pytest.mark.slow
def test_lost_and_returning_hosts_of_torchrun_keep_the_order(root: Path, tmp_path: Path) -> None:
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
                # With torch 2.14 a launcher that joins later would wait for an address that the
                # first one does not share.
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            },
        )  # fmt: skip

    staying, leaving = begin(0), begin(1)
    for each in (staying, leaving):
        each.wait_for_step(5, size=2)
    for process in {line["process"] for line in leaving.lines()}:
        os.kill(process, signal.SIGKILL)
    os.killpg(leaving.running.pid, signal.SIGKILL)
    leaving.running.wait()
    staying.wait_for_step(0, size=1)
    joining = begin(2)
    for each in (staying, joining):
        assert each.running.wait(timeout=180) == 0, each.log.read_text()
    lines = staying.lines()
    # Steps taken before the loss may be taken again after it.
    since = lines[[line["size"] for line in lines].index(1) :]
    alone = [line["step"] for line in since if line["size"] == 1]
    together = [line["step"] for line in joining.lines()]
    # At most two steps are taken again, none if the first process saved its last one; a joining
    # host costs none.
    assert 4 <= alone[0] <= 7
    assert [*alone, *together] == list(range(alone[0], STEPS))
    assert len(together) > 0
    batches: dict[int, list[int]] = {}
    for line in sorted(since + joining.lines(), key=lambda line: line["rank"]):
        if line["step"] in together and line["size"] == 2:
            batches.setdefault(line["step"], []).extend(line["indices"])
        elif line["step"] in alone and line["size"] == 1:
            batches[line["step"]] = line["indices"]
    assert batches == {step: plan()[step] for step in [*alone, *together]}
    assert read_checkpoint(find_checkpoints(tmp_path / "out")[-1]).step == STEPS
