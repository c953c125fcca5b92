"""A training ends in time after a signal, even if blocked, and loses no step."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from hanging_train import BATCHES
from hosts import free_port
from pipelines.training.checkpoints import find_checkpoints
from pipelines.training.stopping import INTERRUPTED, STOPPED, Stopping
from shard_sets import drawn_images, encoded, write_shards
from training_sets import read_checkpoint

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")

TESTS = Path(__file__).parent
N, BATCH, EPOCHS = 24, 4, 2
IN_TIME_S = 20.0
"""Batch systems wait 30 s; an idle machine needs 2 to 4 s, and one with tenfold load up to 20."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards in data/train and data/val, and a mixing set in mixing."""
    folder = tmp_path_factory.mktemp("stopping")
    contents = [encoded(each) for each in drawn_images(N, size=(40, 48))]
    write_shards(folder / "data" / "train", contents, sizes=[6] * 4)
    write_shards(folder / "data" / "val", contents[:6], sizes=[6])
    (folder / "mixing").mkdir()
    for i, content in enumerate(contents[:3]):
        (folder / "mixing" / f"{i}.png").write_bytes(content)
    return folder


def arguments_of(root: Path, out: Path, *more: object) -> list[str]:
    arguments = [
        "folder", "--data", root / "data", "--mixing-set", root / "mixing", "--out", out,
        "--model", "networks:classifier", "--epochs", EPOCHS, "--batch-size", BATCH,
        "--image-size", 32, "--workers", 0, "--precision", "float32", "--device", "cpu",
        "--cache-dir", root / "cache", "--resume", "auto", "--ema-decay", 0.9, *more,
    ]  # fmt: skip
    return list(map(str, arguments))


@contextmanager
def started(
    root: Path, out: Path, *more: object, point: str = "", rank: int | None = None, size: int = 1
) -> Iterator[list["subprocess.Popen[str]"]]:
    """Start the processes of a training, and wait until one of them is blocked.

    point: where it blocks, see hanging_train.py; rank: of the process that blocks, None for all.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    port = str(free_port())
    processes = []
    for each in range(size):
        world = {"RANK": str(each), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
        environment = {
            **os.environ, **(world if size > 1 else {}), "HANG": point,
            "HANG_FILE": f"{out}.hangs", "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
            **({} if rank is None else {"HANG_RANK": str(rank)}),
        }  # fmt: skip
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "hanging_train", *arguments_of(root, out, *more)],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                start_new_session=True,
            )
        )  # fmt: skip
    try:
        if point:
            hangs = Path(f"{out}.hangs")
            wait_until(hangs.exists, processes)
            hangs.unlink()
            # The other processes reach the point where they wait for it.
            time.sleep(1 if size == 1 else 3)
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()


def wait_until(true: Any, processes: Sequence["subprocess.Popen[str]"]) -> None:  # noqa: ANN401
    end = time.monotonic() + 240
    while not true():
        assert time.monotonic() < end
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def ends_of(processes: Sequence["subprocess.Popen[str]"]) -> list[tuple[int, str, str]]:
    """Return exit code, stdout and stderr of processes that must end in time and cleanly."""
    begun = time.monotonic()
    ends = []
    for process in processes:
        out, error = process.communicate(timeout=60)
        assert "Traceback" not in error, error
        ends.append((process.returncode, out, error))
    assert time.monotonic() - begun < IN_TIME_S
    return ends


@pytest.fixture(scope="module")
def uninterrupted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(root, tmp_path_factory.mktemp("uninterrupted") / "run")


def trained(root: Path, out: Path, size: int = 1) -> Path:
    """Train to the end, resuming a stopped training."""
    with started(root, out, size=size) as processes:
        for process in processes:
            _, error = process.communicate(timeout=240)
            assert process.returncode == 0, error
    return out


def assert_same_end(first: Path, second: Path, *, histories: bool = True) -> None:
    one, two = (read_checkpoint(find_checkpoints(each)[-1]) for each in (first, second))
    assert one.step == two.step == EPOCHS * N // BATCH
    for name in ("state_dict", "current"):
        weights, others = getattr(one, name), getattr(two, name)
        assert weights.keys() == others.keys()
        assert [key for key, value in weights.items() if not torch.equal(value, others[key])] == []
    if histories:
        assert one.history == two.history


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "number", "step"),
    [
        ("batch", signal.SIGTERM, BATCHES),
        ("batch", signal.SIGUSR1, BATCHES),
        ("batch", signal.SIGINT, BATCHES),
        ("validation", signal.SIGTERM, N // BATCH),
        ("validation", signal.SIGINT, N // BATCH),
    ],
)
def test_a_blocked_process_saves_its_last_step_and_ends_in_time(
    root: Path, uninterrupted: Path, tmp_path: Path, point: str, number: signal.Signals, step: int
) -> None:
    out = tmp_path / "run"
    with started(root, out, "--json", point=point) as processes:
        processes[0].send_signal(number)
        ((code, printed, error),) = ends_of(processes)
    (checkpoint,) = find_checkpoints(out)
    assert read_checkpoint(checkpoint).step == step
    if number == signal.SIGINT:
        assert code == INTERRUPTED
        assert "Error: interrupted; run the same command with --resume" in error.splitlines()[-1]
    else:
        assert code == STOPPED
        document = json.loads(printed)
        assert (document["finished"], document["step"]) == (False, step)
        assert document["checkpoint"] == str(checkpoint)
    assert_same_end(trained(root, out), uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["data", "mixing"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_blocked_before_its_first_step_ends_in_time(
    root: Path, tmp_path: Path, point: str, number: signal.Signals
) -> None:
    with started(root, tmp_path / "run", point=point) as processes:
        processes[0].send_signal(number)
        ((code, _, error),) = ends_of(processes)
    assert code == (INTERRUPTED if number == signal.SIGINT else STOPPED)
    assert len([line for line in error.splitlines() if "stopped" in line or "Error" in line]) == 1
    assert find_checkpoints(tmp_path / "run") == []


@pytest.mark.slow
@pytest.mark.parametrize("signalled", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize(("blocked", "point"), [(0, "batch"), (1, "batch"), (1, "validation")])
def test_two_processes_end_in_time_if_one_is_blocked(
    root: Path, tmp_path: Path, blocked: int, point: str, signalled: Sequence[int]
) -> None:
    out = tmp_path / "run"
    with started(root, out, point=point, rank=blocked, size=2) as processes:
        for each in signalled:
            processes[each].send_signal(signal.SIGTERM)
        codes = [code for code, _, _ in ends_of(processes)]
    assert codes == [STOPPED, STOPPED]
    (checkpoint,) = find_checkpoints(out)
    assert read_checkpoint(checkpoint).step == (BATCHES if point == "batch" else N // BATCH)


@pytest.mark.slow
def test_two_processes_resume_exactly_after_one_was_blocked(root: Path, tmp_path: Path) -> None:
    for name, rank in (("blocked", 1), ("uninterrupted", None)):
        if rank is not None:
            with started(root, tmp_path / name, point="batch", rank=rank, size=2) as processes:
                # The first process is in the middle of a step and waits for gradients.
                processes[0].send_signal(signal.SIGTERM)
                ends_of(processes)
        trained(root, tmp_path / name, size=2)
    assert_same_end(tmp_path / "blocked", tmp_path / "uninterrupted", histories=False)


@pytest.mark.slow
def test_a_process_ends_in_time_if_the_other_is_suspended(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with started(root, out, "--epochs", 500, size=2) as processes:
        wait_until(lambda: find_checkpoints(out), processes)
        os.kill(processes[1].pid, signal.SIGSTOP)
        time.sleep(2)
        processes[0].send_signal(signal.SIGTERM)
        ((code, printed, _),) = ends_of(processes[:1])
    assert code == STOPPED
    assert "stopped after step" in printed
    latest = read_checkpoint(find_checkpoints(out)[-1])
    assert f"stopped after step {latest.step};" in printed


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds workers in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_suspended_workers_do_not_delay_a_process(
    root: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    with started(root, out, "--epochs", 500, "--workers", 2) as processes:
        wait_until(lambda: find_checkpoints(out), processes)
        tasks = Path(f"/proc/{processes[0].pid}/task")
        workers = [
            int(child) for path in tasks.glob("*/children") for child in path.read_text().split()
        ]
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        time.sleep(1)
        processes[0].send_signal(number)
        ((code, _, _),) = ends_of(processes)
        assert code == (INTERRUPTED if number == signal.SIGINT else STOPPED)
        # The workers end with the process.
        end = time.monotonic() + 10
        while any(is_alive(worker) for worker in workers) and time.monotonic() < end:
            time.sleep(0.1)
        assert not any(is_alive(worker) for worker in workers)


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.slow
def test_a_background_training_ignores_ctrl_c_and_obeys_sigterm(root: Path, tmp_path: Path) -> None:
    # A shell's & starts a command like this.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with started(root, tmp_path / "run", point="batch") as processes:
            processes[0].send_signal(signal.SIGINT)
            time.sleep(4)
            assert processes[0].poll() is None
            processes[0].send_signal(signal.SIGTERM)
            ((code, _, _),) = ends_of(processes)
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == STOPPED


def test_signal_handlers_do_not_wait_for_locks() -> None:
    stopping = Stopping()
    stopping.rescue = lambda: None  # type: ignore[assignment, return-value]
    # The main thread may hold this lock when a signal arrives.
    with stopping._wake._cond:  # type: ignore[attr-defined]
        handlers = [
            threading.Thread(target=stopping._handle, args=(number, None), daemon=True)
            for number in (signal.SIGTERM, signal.SIGINT)
        ]
        for each in handlers:
            each.start()
        for each in handlers:
            each.join(5)
        assert not any(each.is_alive() for each in handlers)
    assert stopping.requested
    assert stopping.interrupted


def test_requested_within_returns_after_a_signal() -> None:
    for handling in (Stopping.handle_signals, Stopping.enforced):
        stopping = Stopping()
        stopping.rescue = lambda: None  # type: ignore[assignment, return-value]
        with handling(stopping):
            sender = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
            sender.start()
            begun = time.monotonic()
            assert stopping.requested_within(30)
            assert time.monotonic() - begun < 5
            assert not stopping.interrupted
            stopping.leaving = True


def test_many_signals_at_once_end_a_blocked_process() -> None:
    code = (
        "import os, signal, threading, time\n"
        "from pipelines.training.stopping import Stopping\n"
        "stopping = Stopping()\n"
        "stopping.rescue = lambda: None\n"
        "with stopping.enforced():\n"
        "    for _ in range(20):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    threading.Event().wait()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == STOPPED
