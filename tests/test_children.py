"""Child processes of a command get its signals once, and end before it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.system.processes import child

ROOT = Path(__file__).parent.parent

# Writes the received signals half a second after the first one.
CHILD = """
import os, signal, sys, time
from pathlib import Path
received = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: received.append(number))
Path(sys.argv[1], "ready").touch()
while not received:
    time.sleep(0.01)
time.sleep(0.5)
Path(sys.argv[1], "received").write_text(" ".join(str(int(number)) for number in received))
Path(sys.argv[1], "group").write_text(f"{os.getpgrp() == os.getpid()}")
"""
PARENT = """
import sys
from pipelines.system.processes import child
with child([sys.executable, "-c", sys.argv[1], sys.argv[2]]) as process:
    process.wait()
"""


@pytest.mark.parametrize("whole_group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_child_once_and_then_ends_the_parent(
    tmp_path: Path, number: signal.Signals, whole_group: bool
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    # Like a terminal (whole group), or like kill.
    (os.killpg if whole_group else os.kill)(parent.pid, number)
    code = parent.wait(timeout=60)
    assert (tmp_path / "received").read_text() == str(int(number))
    assert code == -number
    # Signals in quick succession merge. So check that a terminal does not reach the child itself.
    assert (tmp_path / "group").read_text() == "True"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_ignored_signal_reaches_neither_process(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, CHILD, str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    finally:
        signal.signal(number, before)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    os.kill(parent.pid, number)
    time.sleep(0.3)
    os.kill(parent.pid, signal.SIGTERM)
    assert parent.wait(timeout=60) == -signal.SIGTERM
    assert (tmp_path / "received").read_text() == str(int(signal.SIGTERM))


def test_signal_handlers_are_restored_after_the_child_ends() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with child([sys.executable, "-c", "print(7)"], stdout=subprocess.PIPE) as process:
        printed, _ = process.communicate()
    assert (printed, process.returncode) == (b"7\n", 0)
    assert signal.getsignal(signal.SIGTERM) is before
