"""A training ends in time after a signal, whatever its process waits for, and loses no step."""

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
"""Batch systems give 30; an idle machine takes 2 to 4, and one with ten times its load these."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of images in train and val, and some more in mixing."""
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
    root: Path, out: Path, *more: object, place: str = "", rank: int | None = None, size: int = 1
) -> Iterator[list["subprocess.Popen[str]"]]:
    """Start the processes of a training, one of which hangs in a place, and wait until it does.

    place: see hanging_train.py. rank: of the one that hangs; None for all.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    port = str(free_port())
    processes = []
    for each in range(size):
        world = {"RANK": str(each), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
        environment = {
            **os.environ, **(world if size > 1 else {}), "HANG": place,
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
        if place:
            hangs = Path(f"{out}.hangs")
            wait_until(hangs.exists, processes)
            hangs.unlink()
            # The others come to where they wait for it.
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
    """The exit code and output of each, which end in time and without a traceback."""
    begun = time.monotonic()
    ends = []
    for process in processes:
        out, error = process.communicate(timeout=60)
        assert "Traceback" not in error, error
        ends.append((process.returncode, out, error))
    assert time.monotonic() - begun < IN_TIME_S
    return ends


@pytest.fixture(scope="module")
def unbroken(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(root, tmp_path_factory.mktemp("unbroken") / "run")


def trained(root: Path, out: Path, size: int = 1) -> Path:
    """Train to the end, or from where a training was stopped to its end."""
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
    ("place", "number", "step"),
    [
        ("batch", signal.SIGTERM, BATCHES),
        ("batch", signal.SIGUSR1, BATCHES),
        ("batch", signal.SIGINT, BATCHES),
        ("validation", signal.SIGTERM, N // BATCH),
        ("validation", signal.SIGINT, N // BATCH),
    ],
)
def test_a_process_that_waits_saves_its_last_step_and_ends_in_time(
    root: Path, unbroken: Path, tmp_path: Path, place: str, number: signal.Signals, step: int
) -> None:
    out = tmp_path / "run"
    with started(root, out, "--json", place=place) as processes:
        processes[0].send_signal(number)
        ((code, printed, error),) = ends_of(processes)
    (checkpoint,) = find_checkpoints(out)
    assert read_checkpoint(checkpoint).step == step
    if number == signal.SIGINT:
        assert code == INTERRUPTED
        assert "Error: interrupted; the same command" in error.splitlines()[-1]
    else:
        assert code == STOPPED
        said = json.loads(printed)
        assert (said["finished"], said["step"]) == (False, step)
        assert said["checkpoint"] == str(checkpoint)
    assert_same_end(trained(root, out), unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["data", "mixing"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_has_not_begun_ends_in_time(
    root: Path, tmp_path: Path, place: str, number: signal.Signals
) -> None:
    with started(root, tmp_path / "run", place=place) as processes:
        processes[0].send_signal(number)
        ((code, _, error),) = ends_of(processes)
    assert code == (INTERRUPTED if number == signal.SIGINT else STOPPED)
    assert len([line for line in error.splitlines() if "stopped" in line or "Error" in line]) == 1
    assert find_checkpoints(tmp_path / "run") == []


@pytest.mark.slow
@pytest.mark.parametrize("told", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize(("hangs", "place"), [(0, "batch"), (1, "batch"), (1, "validation")])
def test_of_two_processes_of_which_one_waits_both_end_in_time(
    root: Path, tmp_path: Path, hangs: int, place: str, told: Sequence[int]
) -> None:
    out = tmp_path / "run"
    with started(root, out, place=place, rank=hangs, size=2) as processes:
        for each in told:
            processes[each].send_signal(signal.SIGTERM)
        codes = [code for code, _, _ in ends_of(processes)]
    assert codes == [STOPPED, STOPPED]
    (checkpoint,) = find_checkpoints(out)
    assert read_checkpoint(checkpoint).step == (BATCHES if place == "batch" else N // BATCH)


@pytest.mark.slow
def test_two_processes_that_were_left_resume_as_if_they_had_not_been(
    root: Path, tmp_path: Path
) -> None:
    for name, rank in (("hangs", 1), ("unbroken", None)):
        if rank is not None:
            with started(root, tmp_path / name, place="batch", rank=rank, size=2) as processes:
                # The first process is in the middle of a step, and waits for the gradients.
                processes[0].send_signal(signal.SIGTERM)
                ends_of(processes)
        trained(root, tmp_path / name, size=2)
    assert_same_end(tmp_path / "hangs", tmp_path / "unbroken", histories=False)


@pytest.mark.slow
def test_a_process_whose_other_was_stopped_ends_in_time(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with started(root, out, "--epochs", 500, size=2) as processes:
        wait_until(lambda: find_checkpoints(out), processes)
        os.kill(processes[1].pid, signal.SIGSTOP)
        time.sleep(2)
        processes[0].send_signal(signal.SIGTERM)
        ((code, printed, _),) = ends_of(processes[:1])
    assert code == STOPPED
    assert "stopped after step" in printed
    newest = read_checkpoint(find_checkpoints(out)[-1])
    assert f"stopped after step {newest.step};" in printed


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds workers in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_workers_do_not_keep_a_process(
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
        # Nor do they outlive it.
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
def test_a_training_in_the_background_ignores_ctrl_c_and_obeys_sigterm(
    root: Path, tmp_path: Path
) -> None:
    # As a shell's & starts it.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with started(root, tmp_path / "run", place="batch") as processes:
            processes[0].send_signal(signal.SIGINT)
            time.sleep(4)
            assert processes[0].poll() is None
            processes[0].send_signal(signal.SIGTERM)
            ((code, _, _),) = ends_of(processes)
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == STOPPED


def test_a_signal_that_comes_while_another_one_is_obeyed_waits_for_no_lock() -> None:
    stopping = Stopping()
    stopping.rescue = lambda: None  # type: ignore[assignment, return-value]
    # As the main thread holds it where a signal comes while it waits for one, or sets the event.
    with stopping._heard._cond:  # type: ignore[attr-defined]
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


def test_a_signal_ends_a_wait_for_it_with_and_without_a_listener() -> None:
    for obeying in (Stopping.handle_signals, Stopping.in_time):
        stopping = Stopping()
        stopping.rescue = lambda: None  # type: ignore[assignment, return-value]
        with obeying(stopping):
            sender = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
            sender.start()
            begun = time.monotonic()
            assert stopping.requested_within(30)
            assert time.monotonic() - begun < 5
            assert not stopping.interrupted
            stopping.leaving = True


def test_two_signals_at_once_end_a_process_that_waits_with_its_code() -> None:
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
