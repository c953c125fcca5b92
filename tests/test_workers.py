"""Cores and memory that are available to a process."""

import os
from pathlib import Path

import pytest

from pipelines.system import processes
from pipelines.system.processes import available_cores, available_memory

CORES = 64
MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this process's control group."""
    monkeypatch.setattr(processes, "_CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)), raising=False)
    return tmp_path


def write(group: Path, name: str, content: str) -> None:
    (group / name).parent.mkdir(exist_ok=True)
    (group / name).write_text(content)


@pytest.mark.parametrize(
    ("content", "cores"),
    [
        ("max 100000\n", CORES), ("800000 100000\n", 8), ("150000 100000\n", 2),
        ("1000 100000\n", 1), ("9900000 100000\n", CORES), ("", CORES), ("many\n", CORES),
    ],
)  # fmt: skip
def test_the_cores_of_a_container_follow_its_cpu_quota(
    group: Path, content: str, cores: int
) -> None:
    write(group, "cpu.max", content)
    assert available_cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1\n", CORES), ("250000\n", 3)])
def test_the_cpu_quota_is_read_from_control_groups_version_1(
    group: Path, quota: str, cores: int
) -> None:
    write(group, "cpu/cpu.cfs_quota_us", quota)
    write(group, "cpu/cpu.cfs_period_us", "100000\n")
    assert available_cores() == cores


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
@pytest.mark.parametrize(
    ("content", "memory"),
    [("max\n", MACHINE), ("1048576\n", 1048576), ("9223372036854771712\n", MACHINE)],
)
def test_the_memory_of_a_container_follows_its_limit(
    group: Path, name: str, content: str, memory: int
) -> None:
    write(group, name, content)
    assert available_memory() == memory


@pytest.mark.usefixtures("group")
def test_without_limits_the_whole_machine_is_available() -> None:
    assert available_cores() == CORES
    assert available_memory() == MACHINE
