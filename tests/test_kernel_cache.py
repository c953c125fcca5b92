"""What is kept of compiled kernels, and what is not trusted."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba.core import config
from numba.core.caching import NullCache

from fractals.chaos_kernels import turn
from pixmix.compiling import disk, is_kept, kernel
from pixmix.compiling.disk import KernelCache


def add_one(x):  # noqa: ANN001, ANN201 - numba reads no annotations
    return x + 1


@pytest.fixture
def folder(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.setattr(disk.tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(disk, "_moved", [])
    return tmp_path


def kept(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.nb[ic]")}


@pytest.mark.usefixtures("folder")
def test_a_kernel_is_compiled_once_a_machine() -> None:
    first = kernel(add_one)
    assert not is_kept(first)
    assert first(1) == 2
    second = kernel(add_one)
    assert is_kept(second)
    assert second(1) == 2
    assert sum(second.stats.cache_hits.values()) == 1


DAMAGES = {
    "empty": lambda _: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "one bit": lambda content: content[:-200] + bytes([content[-200] ^ 1]) + content[-199:],
    "garbage": lambda _: os.urandom(5000),
    "another pickle": lambda _: pickle.dumps(("0.0", {"a": 1})),
    "a class that is nowhere": lambda _: b"cnowhere\nNothing\n.",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("extension", ["nbi", "nbc"])
def test_a_damaged_file_is_compiled_again_and_replaced(
    folder: Path, extension: str, damage: str
) -> None:
    kernel(add_one)(1)
    before = kept(folder)
    (path,) = folder.rglob(f"*.{extension}")
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    again = kernel(add_one)
    assert again(1) == 2
    assert sum(again.stats.cache_misses.values()) == 1
    assert kept(folder).keys() == before.keys()
    healed = kernel(add_one)
    assert healed(1) == 2
    assert sum(healed.stats.cache_hits.values()) == 1


def test_a_folder_that_others_may_write_to_is_not_read(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kernel(add_one)(1)
    (written,) = {path.parent for path in folder.rglob("*.nbi")}
    written.chmod(0o777)
    again = kernel(add_one)
    assert not isinstance(again._cache, NullCache)
    assert Path(again._cache.cache_path).is_relative_to(config.CACHE_DIR)
    assert not Path(again._cache.cache_path).is_relative_to(folder)
    said = capfd.readouterr().err
    assert str(written) in said
    assert said.count("\n") == 1
    assert Path(config.CACHE_DIR).stat().st_mode & 0o077 == 0


def test_a_full_disk_costs_a_line_and_no_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = Path.replace

    def full(self: Path, target: str) -> Path:
        if str(folder) in str(target):
            raise OSError(28, "No space left on device")
        return whole(self, target)

    monkeypatch.setattr(Path, "replace", full)
    first = kernel(add_one)
    assert first(1) == 2
    assert not kept(folder)
    assert not [*folder.rglob("*.partial")]
    assert "No space left on device" in capfd.readouterr().err
    assert is_kept(first)
    second = kernel(add_one)
    assert second(1) == 2
    assert sum(second.stats.cache_hits.values()) == 1


def test_a_temporary_folder_of_somebody_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.tempfile, "tempdir", str(tmp_path))
    taken = tmp_path / f"pixmix-kernels-{os.geteuid()}"
    taken.symlink_to(tmp_path)
    other = Path(disk._temporary_folder())
    assert other != taken
    assert other.stat().st_mode & 0o077 == 0
    taken.unlink()
    taken.mkdir(mode=0o777)
    taken.chmod(0o777)
    assert Path(disk._temporary_folder()) != taken


def test_a_user_without_a_home_gets_a_temporary_cache_and_no_folder_named_tilde(
    tmp_path: Path,
) -> None:
    code = (
        "import os, pathlib\n"
        "os.path.expanduser = lambda path: path\n"
        "import pixmix.compiling.disk as disk\n"
        "disk._can_write_beside = lambda function: False\n"
        "from fractals.chaos_kernels import turn\n"
        "print(turn._cache.cache_path)\n"
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


def test_kernels_of_this_package_are_kept_by_the_checked_cache() -> None:
    turn(1.0, np.empty(2, np.float32))
    assert isinstance(turn._cache, KernelCache | NullCache)
    assert is_kept(turn)
