"""Training in several processes, also on two hosts and at another world size."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from hosts import ADDRESSES, free_port, two_hosts
from pipelines.models.checkpoints import open_checkpoint
from pipelines.training.checkpoints import find_checkpoints
from pipelines.training.loop import train
from training_sets import (
    ALONE,
    loss_and_error,
    read_checkpoint,
    stopping_at,
    training,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def processes(
    folder: Path,
    out: Path | Sequence[Path],
    epochs: int,
    size: int,
    hosts: Sequence[str] | None = None,
    when: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Run several processes of a training and return what they print; see training_process.py.

    out: one folder for all, or one for each; hosts: one network namespace per process.
    """
    outs = [out] * size if isinstance(out, Path) else out
    port = str(free_port())
    tests = Path(__file__).parent
    started = [
        subprocess.Popen(
            [
                *([] if hosts is None else ["ip", "netns", "exec", hosts[rank]]),
                sys.executable, tests / "training_process.py", folder, outs[rank], str(epochs),
                *when,
            ],
            env={
                **os.environ, "RANK": str(rank), "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1" if hosts is None else ADDRESSES[0],
                "MASTER_PORT": port,
                "GLOO_SOCKET_IFNAME": "lo" if hosts is None else f"pixmix-{rank}",
                "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)]),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    ends = [each.communicate(timeout=300) for each in started]
    assert [each.returncode for each in started] == [0] * size, ends
    return [json.loads(out.splitlines()[-1]) for out, _ in ends]


@pytest.fixture
def hosts() -> Iterator[Sequence[str]]:
    """Two network namespaces connected by a virtual cable."""
    with two_hosts() as names:
        yield names


@pytest.mark.slow
def test_two_processes_share_each_batch_and_end_with_equal_weights(
    digits: Path, tmp_path: Path
) -> None:
    first, second = processes(digits, tmp_path / "two", 2, 2)
    assert first["state"] == second["state"]
    assert first["history"] == second["history"]
    (alone,) = processes(digits, tmp_path / "one", 2, 1)
    assert len(alone["seen"]) == 10
    joined = [a + b for a, b in zip(first["seen"], second["seen"], strict=True)]
    assert joined == alone["seen"]
    latest = find_checkpoints(tmp_path / "two")[-1]
    assert read_checkpoint(latest).step == 10
    # The recorded metrics of the test set equal those of the saved network.
    module, _ = open_checkpoint(latest, None)
    loss, error = loss_and_error(module, digits)
    assert error == pytest.approx(first["history"][-1]["test_error"], abs=1e-9)
    assert loss == pytest.approx(first["history"][-1]["test_loss"], rel=1e-6)


@pytest.mark.slow
def test_two_hosts_train_like_two_processes_on_one_host(
    digits: Path, tmp_path: Path, hosts: Sequence[str]
) -> None:
    apart = processes(digits, tmp_path / "apart", 1, 2, hosts)
    together = processes(digits, tmp_path / "together", 1, 2)
    assert apart == together


@pytest.mark.slow
@pytest.mark.parametrize(("when", "step"), [("show", 1), ("save", 6)])
def test_a_signal_to_one_process_stops_both_at_the_same_step(
    digits: Path, tmp_path: Path, when: str, step: int
) -> None:
    first, second = processes(digits, tmp_path / "two", 2, 2, when=[when])
    assert (first["finished"], second["finished"]) == (False, False)
    assert first["step"] == second["step"] == step
    assert read_checkpoint(find_checkpoints(tmp_path / "two")[-1]).step == step


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's names of threads")
def test_leaving_the_process_group_ends_its_threads(digits: Path, tmp_path: Path) -> None:
    # A thread that outlives the interpreter aborts the process.
    for result in processes(digits, tmp_path / "two", 1, 2):
        assert not [name for name in result["threads"] if "gloo" in name or "tcpstore" in name]


@pytest.mark.slow
def test_a_run_resumes_at_another_world_size_with_the_same_order(
    digits: Path, tmp_path: Path
) -> None:
    (alone,) = processes(digits, tmp_path / "one", 2, 1)
    train(training(digits, tmp_path / "other"), ALONE, stopping_at(3))
    first, second = processes(digits, tmp_path / "other", 2, 2)
    joined = [a + b for a, b in zip(first["seen"], second["seen"], strict=True)]
    assert joined == alone["seen"][3:]
    assert first["finished"]


@pytest.mark.slow
def test_a_run_resumes_from_the_latest_checkpoint_of_any_process(
    digits: Path, tmp_path: Path
) -> None:
    (alone,) = processes(digits, tmp_path / "one", 2, 1)
    for name, step in (("older", 1), ("newer", 3)):
        train(training(digits, tmp_path / name), ALONE, stopping_at(step))
    outs = tmp_path / "older", tmp_path / "newer"
    first, second = processes(digits, outs, 2, 2)
    joined = [a + b for a, b in zip(first["seen"], second["seen"], strict=True)]
    assert joined == alone["seen"][3:]
    assert first["state"] == second["state"]
    # The first process writes to its own folder.
    assert [path.name for path in find_checkpoints(outs[0])][-1] == "step-00000010.pt"
    assert [path.name for path in find_checkpoints(outs[1])] == ["step-00000003.pt"]
