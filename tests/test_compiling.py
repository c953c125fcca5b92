"""Kernels are compiled before work begins: told to whoever waits, and ended by Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from pipelines.system.processes import compile_kernels

COMMAND = [sys.executable, "-m", "pipelines.cli.gen", "fractals", "--n", "2", "--size", "32"]


def in_a_new_home(tmp_path: Path, *arguments: str, **options: object) -> "subprocess.Popen[str]":
    """Start a command that finds no compiled kernels."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "kernels")}
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [*COMMAND, "--out", str(tmp_path / "set"), *arguments],
        env=environment, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def note(path: str) -> None:
    Path(path).touch()


def sleep() -> None:
    time.sleep(60)


def leave_a_mark_and_fail(mark: Path) -> None:
    mark.touch()
    raise ValueError("a part")


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_ends_a_command_that_compiles(tmp_path: Path, jobs: str) -> None:
    with in_a_new_home(tmp_path, "--jobs", jobs) as run:
        assert run.stderr is not None
        assert any("compiling kernels" in line for line in run.stderr)
        run.send_signal(signal.SIGINT)
        began = time.monotonic()
        said = run.stderr.read()
        assert run.wait() == 130
        assert time.monotonic() - began < 3
    assert "Traceback" not in said
    assert "interrupted" in said
    assert not [*tmp_path.rglob("*.partial")]


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_compiled(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    for arguments in (
        ["--out", str(tmp_path / "file" / "set")],
        ["--sheet", str(tmp_path / "file" / "sheet.png")],
    ):
        with in_a_new_home(tmp_path, *arguments) as run:
            said = run.communicate()[1]
            assert run.returncode in (1, 2)
        assert str(tmp_path / "file") in said
        assert "compiling" not in said
        assert "Traceback" not in said
        assert not (tmp_path / "set").exists()


def test_nothing_is_started_where_nothing_is_pending() -> None:
    before = time.monotonic()
    compile_kernels(list)
    assert time.monotonic() - before < 0.1


def test_a_part_that_fails_is_no_error(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    compile_kernels(lambda: [partial(leave_a_mark_and_fail, ran)])
    assert ran.exists()


def test_an_interrupt_ends_the_parts_at_once() -> None:
    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            compile_kernels(lambda: [sleep, sleep])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 20


@pytest.mark.slow
def test_what_is_compiled_beforehand_is_all_that_a_fractal_needs(tmp_path: Path) -> None:
    code = (
        "from numba.core import event\n"
        "from fractals import draw_genome, measure, render, sampling\n"
        "for part in sampling.pending(): part()\n"
        "assert not sampling.pending(), sampling.pending()\n"
        "with event.install_recorder('numba:compile') as recorder:\n"
        "    for index in range(3): measure(render(draw_genome(0, index), 32))\n"
        "names = {each.data['dispatcher'].py_func.__name__ for _, each in recorder.buffer}\n"
        "print(sorted(name for name in names if name != 'advance'))\n"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
