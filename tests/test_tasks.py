"""Find the task of a process from batch systems and launchers, alone and together."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipelines.cli import gen
from pipelines.system.ranks import Task, find_task
from stripes import tree

VARIABLES = (
    "RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID", "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN",
    "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP", "JOB_COMPLETION_INDEX",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def array(element: int, first: int = 0, last: int = 3, step: int = 1) -> dict[str, str]:
    """Return the variables that Slurm sets in an element of an array job."""
    values = {"ID": element, "MIN": first, "MAX": last, "STEP": step}
    values["COUNT"] = (last - first) // step + 1
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def torchrun(rank: int, size: int) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(size)}


def srun(rank: int, size: int) -> dict[str, str]:
    return {"SLURM_PROCID": str(rank), "SLURM_NTASKS": str(size), "SLURM_STEP_ID": "0"}


def mpirun(rank: int, size: int) -> dict[str, str]:
    return {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": str(size)}


SCRIPT = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}
"""What Slurm sets in the batch script of a job of eight tasks, which runs once."""

COMPLETION = {"JOB_COMPLETION_INDEX": "5"}

ARRAY = "SLURM_ARRAY_TASK_ID"


def set_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "num_tasks", "task"),
    [
        (array(2), None, (2, 4, ARRAY)),
        (array(7, first=4, last=9), None, (3, 6, ARRAY)),
        (array(16, first=10, last=20, step=3), None, (2, 4, ARRAY)),
        (array(2) | SCRIPT, None, (2, 4, ARRAY)),
        (array(2), 10, (2, 10, ARRAY)),
        (array(2) | {"SLURM_ARRAY_TASK_COUNT": "2"}, 10, (2, 10, ARRAY)),
        (torchrun(3, 8), None, (3, 8, "RANK")),
        (torchrun(3, 8), 9, (3, 9, "RANK")),
        (srun(3, 8), None, (3, 8, "SLURM_PROCID")),
        (mpirun(3, 8), None, (3, 8, "OMPI_COMM_WORLD_RANK")),
        (torchrun(1, 2) | srun(3, 8), None, (1, 2, "RANK")),
        (array(2) | srun(3, 8), None, (19, 32, f"{ARRAY} SLURM_PROCID")),
        (array(2) | srun(3, 8) | torchrun(1, 16), None, (33, 64, f"{ARRAY} RANK")),
        (array(2) | srun(3, 8), 32, (19, 32, f"{ARRAY} SLURM_PROCID")),
        (COMPLETION, 9, (5, 9, "JOB_COMPLETION_INDEX")),
        (COMPLETION | torchrun(3, 8), None, (3, 8, "RANK")),
        (COMPLETION | mpirun(1, 2), 12, (11, 12, "JOB_COMPLETION_INDEX OMPI_COMM_WORLD_RANK")),
    ],
)
def test_the_task_is_found_in_variables_of_batch_systems_and_launchers(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    num_tasks: int | None,
    task: tuple[int, int, str],
) -> None:
    set_variables(monkeypatch, variables)
    index, count, by = task
    assert find_task(num_tasks) == Task(index=index, count=count, variables=tuple(by.split()))


@pytest.mark.parametrize(
    "variables",
    [
        {},
        SCRIPT,
        SCRIPT | {"SLURM_STEP_ID": str(0xFFFFFFFA)},
        {"RANK": "3"},
        {"SLURM_STEP_ID": "0"},
        {"SLURM_ARRAY_TASK_COUNT": "4"},
    ],
)
def test_a_script_that_runs_once_is_not_a_task(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    set_variables(monkeypatch, variables)
    assert find_task() is None
    assert find_task(4) is None


def test_array_elements_times_processes_cover_every_task_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for element in range(1, 8, 2):
        for rank in range(3):
            set_variables(monkeypatch, array(element, first=1, last=7, step=2) | srun(rank, 3))
            found.append(find_task())
    assert [task.index for task in found if task] == list(range(12))
    assert {task.count for task in found if task} == {12}


@pytest.mark.parametrize(
    ("variables", "num_tasks", "message"),
    [
        (
            {**array(17, first=3, last=17), "SLURM_ARRAY_TASK_COUNT": "2"},
            None,
            "2 elements of this array job, from 3 to 17, .* set --num-tasks",
        ),
        (array(4, first=1, last=4), 4, f"index is 4 .from {ARRAY}., and there are 4 tasks"),
        (array(1) | srun(1, 8), 4, "task index is 9 .*, and there are 4 tasks"),
        (array(1) | {ARRAY: "one"}, None, f"{ARRAY}='one' in the environment is not "),
        ({ARRAY: "1"}, None, "SLURM_ARRAY_TASK_MIN='' in the environment is not "),
        (array(1) | {"SLURM_ARRAY_TASK_STEP": "0"}, None, "not evenly spaced"),
        (COMPLETION, None, "JOB_COMPLETION_INDEX=5 .* set --num-tasks to"),
        (COMPLETION, 5, "task index is 5 .from JOB_COMPLETION_INDEX., and there are 5 tasks"),
        (torchrun(3, 8), 2, "index is 3 .from RANK., and there are 2 tasks"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, None, "RANK='x' .* are not a rank and a world size"),
    ],
)
def test_contradictory_variables_are_rejected_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], num_tasks: int | None, message: str
) -> None:
    set_variables(monkeypatch, variables)
    with pytest.raises(ValueError, match=message):
        find_task(num_tasks)


# --- the command ---------------------------------------------------------------------------------

SMALL = ("fractals", "--n", "5", "--size", "24x16", "--samples-per-pixel", "4", "--jobs", "1")


def make(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(gen.main, [*SMALL, "--out", str(folder), *arguments])


def test_elements_of_an_array_job_share_the_dataset_and_report_their_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(tmp_path / "alone").exit_code == 0
    for element in (5, 4):
        set_variables(monkeypatch, array(element, first=4, last=5))
        result = make(tmp_path / "set", "--json")
        assert f"task {element - 4} of 2, from {ARRAY}; " in result.stderr
        assert json.loads(result.stdout)["complete"] == (element == 4)
    assert tree(tmp_path / "set") == tree(tmp_path / "alone")


def test_num_tasks_1_overrides_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables(monkeypatch, array(5, first=4, last=9))
    result = make(tmp_path / "set", "--num-tasks", "1", "--json")
    assert json.loads(result.stdout)["complete"] is True
    assert "task" not in result.stderr


def test_options_override_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, array(3))
    result = make(tmp_path / "set", "--task-index", "0", "--num-tasks", "1")
    assert result.exit_code == 0
    assert "task" not in result.stderr
    assert "5 images" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task-index", "1"), "--task-index 1 needs --num-tasks"),
        (("--num-tasks", "4"), "--num-tasks 4 needs --task-index"),
    ],
)
def test_a_task_index_and_a_number_of_tasks_need_each_other(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = make(tmp_path / "set", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_irregular_array_of_tasks_is_rejected_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables(monkeypatch, array(3, first=3, last=17) | {"SLURM_ARRAY_TASK_COUNT": "2"})
    result = make(tmp_path / "set")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "set --num-tasks" in result.stderr
