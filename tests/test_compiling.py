"""The verified kernel cache, and compilation before work begins: progress, errors, Ctrl-C."""

import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numba.core import config
from numba.core.caching import NullCache

from fractals.chaos_kernels import write_cosine_sine
from pipelines.system.processes import compile_kernels
from pixmix import compiling
from pixmix.compiling import KernelCache, is_cached, kernel


def add_one(x):  # noqa: ANN001, ANN201 - numba reads no annotations
    return x + 1


@pytest.fixture
def folder(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.setattr(compiling.tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiling, "_moved", [])
    return tmp_path


def cache_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.nb[ic]")}


@pytest.mark.usefixtures("folder")
def test_a_kernel_is_compiled_once_per_machine() -> None:
    first = kernel(add_one)
    assert not is_cached(first)
    assert first(1) == 2
    second = kernel(add_one)
    assert is_cached(second)
    assert second(1) == 2
    assert sum(second.stats.cache_hits.values()) == 1


DAMAGES = {
    "empty": lambda _: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "one bit": lambda content: content[:-200] + bytes([content[-200] ^ 1]) + content[-199:],
    "garbage": lambda _: os.urandom(5000),
    "another pickle": lambda _: pickle.dumps(("0.0", {"a": 1})),
    "a class that does not exist": lambda _: b"cnowhere\nNothing\n.",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("extension", ["nbi", "nbc"])
def test_a_damaged_file_is_compiled_again_and_replaced(
    folder: Path, extension: str, damage: str
) -> None:
    kernel(add_one)(1)
    before = cache_files(folder)
    (path,) = folder.rglob(f"*.{extension}")
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    again = kernel(add_one)
    assert again(1) == 2
    assert sum(again.stats.cache_misses.values()) == 1
    assert cache_files(folder).keys() == before.keys()
    healed = kernel(add_one)
    assert healed(1) == 2
    assert sum(healed.stats.cache_hits.values()) == 1


def test_a_cache_folder_that_others_may_write_to_is_not_read(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kernel(add_one)(1)
    (written,) = {path.parent for path in folder.rglob("*.nbi")}
    written.chmod(0o777)
    again = kernel(add_one)
    assert not isinstance(again._cache, NullCache)
    assert Path(again._cache.cache_path).is_relative_to(config.CACHE_DIR)
    assert not Path(again._cache.cache_path).is_relative_to(folder)
    stderr = capfd.readouterr().err
    assert str(written) in stderr
    assert stderr.count("\n") == 1
    assert Path(config.CACHE_DIR).stat().st_mode & 0o077 == 0


def test_a_full_disk_prints_one_line_and_does_not_fail(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    replace = Path.replace

    def full(self: Path, target: str) -> Path:
        if str(folder) in str(target):
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    first = kernel(add_one)
    assert first(1) == 2
    assert not cache_files(folder)
    assert not [*folder.rglob("*.partial")]
    assert "No space left on device" in capfd.readouterr().err
    assert is_cached(first)
    second = kernel(add_one)
    assert second(1) == 2
    assert sum(second.stats.cache_hits.values()) == 1


def test_a_temporary_folder_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling.tempfile, "tempdir", str(tmp_path))
    taken = tmp_path / f"pixmix-kernels-{os.geteuid()}"
    taken.symlink_to(tmp_path)
    other = Path(compiling._temporary_folder())
    assert other != taken
    assert other.stat().st_mode & 0o077 == 0
    taken.unlink()
    taken.mkdir(mode=0o777)
    taken.chmod(0o777)
    assert Path(compiling._temporary_folder()) != taken


def test_without_a_home_folder_the_cache_is_temporary(
    tmp_path: Path,
) -> None:
    code = (
        "import os, pathlib\n"
        "os.path.expanduser = lambda path: path\n"
        "from pixmix import compiling\n"
        "compiling._can_write_beside = lambda function: False\n"
        "from fractals.chaos_kernels import write_cosine_sine\n"
        "print(write_cosine_sine._cache.cache_path)\n"
    )
    environment = {name: each for name, each in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [f"pixmix-kernels-{os.geteuid()}"]


def test_kernels_of_this_package_use_the_verified_cache() -> None:
    write_cosine_sine(1.0, np.empty(2, np.float32))
    assert isinstance(write_cosine_sine._cache, KernelCache | NullCache)
    assert is_cached(write_cosine_sine)


MODULES = {
    "callee": "from pixmix.compiling import inlined_kernel\n\n\n@inlined_kernel\ndef of(x):\n"
    "    return x + {}\n",
    "caller": "from pixmix.compiling import kernel\nfrom callee import of\n\n\n"
    "@kernel\ndef direct(x):\n    return of(x)\n\n\n",
}


def test_a_kernel_whose_callee_changed_is_compiled_again(tmp_path: Path) -> None:
    """Also if the callee is in another file, which numba does not check."""
    (tmp_path / "caller.py").write_text(MODULES["caller"])
    results = []
    for number in (1, 2, 2):
        (tmp_path / "callee.py").write_text(MODULES["callee"].format(number))
        done = subprocess.run(
            [sys.executable, "-B", "-c",
             "from caller import direct\nprint(direct(1), sum(direct.stats.cache_hits.values()))"],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": f"{Path.cwd()}:{tmp_path}"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        results.append(done.stdout.split())
    assert results == [["2", "0"], ["3", "0"], ["3", "1"]]


# --- Before work begins --------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "pipelines.cli.gen", "fractals", "--n", "2", "--size", "32"]


def in_a_new_home(tmp_path: Path, *arguments: str, **options: object) -> "subprocess.Popen[str]":
    """Start a command with an empty kernel cache."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "kernels")}
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [*COMMAND, "--out", str(tmp_path / "set"), *arguments],
        env=environment, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def sleep() -> None:
    time.sleep(60)


def touch_and_fail(mark: Path) -> None:
    mark.touch()
    raise ValueError("a part")


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_ends_a_command_during_compilation(tmp_path: Path, jobs: str) -> None:
    with in_a_new_home(tmp_path, "--jobs", jobs) as run:
        assert run.stderr is not None
        assert any("compiling kernels" in line for line in run.stderr)
        run.send_signal(signal.SIGINT)
        began = time.monotonic()
        stderr = run.stderr.read()
        assert run.wait() == 130
        assert time.monotonic() - began < 3
    assert "Traceback" not in stderr
    assert "interrupted" in stderr
    assert not [*tmp_path.rglob("*.partial")]


@pytest.mark.slow
def test_an_unwritable_folder_is_reported_before_compilation(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    for arguments in (
        ["--out", str(tmp_path / "file" / "set")],
        ["--contact-sheet", str(tmp_path / "file" / "sheet.png")],
    ):
        with in_a_new_home(tmp_path, *arguments) as run:
            stderr = run.communicate()[1]
            assert run.returncode in (1, 2)
        assert str(tmp_path / "file") in stderr
        assert "compiling" not in stderr
        assert "Traceback" not in stderr
        assert not (tmp_path / "set").exists()


def test_no_process_starts_if_nothing_is_pending() -> None:
    before = time.monotonic()
    compile_kernels(list)
    assert time.monotonic() - before < 0.1


def test_a_failing_part_is_not_an_error(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    compile_kernels(lambda: [partial(touch_and_fail, ran)])
    assert ran.exists()


def test_an_interrupt_ends_compilation_at_once() -> None:
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
def test_pending_compiles_everything_that_a_fractal_needs(tmp_path: Path) -> None:
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
