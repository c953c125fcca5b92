"""The examples for clusters work, tested with stand-ins for the commands of a cluster."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from torch.distributed.run import get_args_parser

from pipelines.cli import gen, train
from pipelines.shards.format import open_shards
from stripes import tree

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "cluster.md").read_text()
SCRIPTS = sorted((ROOT / "docs" / "cluster").glob("*.s*"))
SMALL = ("--n", "5", "--size", "24x16", "--samples-per-pixel", "4", "--jobs", "1")
SMALL_SHARDS = (*SMALL, "--shard-size", "1")

SBATCH = """#!/bin/bash
# Runs the job at once, the elements of an array one after another, and prints its number.
echo "$@" >> "$LOG"
while [[ $1 == --* ]]; do
    case $1 in --array=*) last=${1#--array=0-} ;; esac
    shift
done
if [[ -z ${last-} ]]; then
    bash "$@" > "$LOG.merge" 2>&1
else
    for element in $(seq 0 "$last"); do
        SLURM_ARRAY_TASK_ID=$element SLURM_ARRAY_TASK_COUNT=$((last + 1)) SLURM_ARRAY_TASK_MIN=0 \\
        SLURM_ARRAY_TASK_MAX=$last SLURM_ARRAY_TASK_STEP=1 SLURM_PROCID=0 SLURM_NTASKS=1 \\
            bash "$@" >> "$LOG.tasks" 2>&1
    done
fi
echo 17
"""

SRUN = """#!/bin/bash
# Starts two processes on a node as a step, forwards signals to them and waits for both.
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_ID=0 SLURM_NTASKS=2
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & pids+=("$!"); done
for name in USR1 TERM; do trap 'kill -'$name' "${pids[@]}"' $name; done
status=0
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2> /dev/null; do status=0; wait "$pid" || status=$?; done
done
exit "$status"
"""

TRAINING = f"""#!/bin/bash
# Logs its GPU of eight and its options. The training ends by itself, or after the current step when
# it receives a signal.
gpu=$({sys.executable} -c 'from pipelines.system.ranks import local_gpu; print(local_gpu(8))')
echo "$gpu $MASTER_ADDR $*" >> "$LOG"
trap 'echo "$gpu checkpoint" >> "$LOG"; exit 143' USR1
for _ in $(seq "$STEPS"); do sleep 0.05; done
exit "$ENDS_WITH"
"""

TORCHRUN = """#!/bin/bash
# Logs its options. It ends by itself, or with exit code 1 when it has received a signal.
trap 'echo "checkpoint" >> "$LOG"; exit 1' TERM
echo "$*" >> "$LOG"
for _ in $(seq "$STEPS"); do sleep 0.05; done
exit "$ENDS_WITH"
"""

SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then printf 'node7\\nnode8\\n'; else echo "scontrol $*" >> "$LOG"; fi
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """Return an environment whose PATH has stand-ins for Slurm's commands and for pixmix-train."""
    programs = {
        "sbatch": SBATCH,
        "srun": SRUN,
        "scontrol": SCONTROL,
        "pixmix-train": TRAINING,
        "torchrun": TORCHRUN,
        "pixmix-gen": f'#!/bin/bash\nexec {sys.executable} -m pipelines.cli.gen "$@"\n',
    }
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "LOG": str(tmp_path / "log"),
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of the small sharded set, made by one command."""
    folder = tmp_path_factory.mktemp("alone") / "set"
    made = CliRunner().invoke(
        gen.main, ["fractals", "--to-shards", "--out", str(folder), *SMALL_SHARDS]
    )
    assert made.exit_code == 0, made.output
    return tree(folder)


def parsed(group: click.Group, line: str) -> dict[str, Any]:
    """Parse a command line after the name of the group, and return its parameters."""
    name, *arguments = shlex.split(line)
    with group.make_context("group", [name, "--help"]) as context:
        return group.commands[name].make_context(name, arguments, parent=context).params


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_valid_bash(script: Path) -> None:
    assert len(SCRIPTS) == 5
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.read_text().startswith("#!/bin/bash\n")
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_slurm_finds_the_options_of_a_script(script: Path) -> None:
    # Slurm stops at the first line that is neither empty nor a comment.
    lines = script.read_text().splitlines()
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH ")]
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(number < first_command for number in options)
    assert bool(options) == (script.suffix == ".sbatch")
    for number in options:
        assert re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", lines[number]), lines[number]


@pytest.mark.slow
def test_the_array_job_generates_a_set_and_the_job_after_it_merges_it(
    cluster: dict[str, str], tmp_path: Path, alone: dict[str, bytes]
) -> None:
    script = ROOT / "docs" / "cluster" / "generate.sh"
    out = tmp_path / "set"
    for _ in range(2):
        subprocess.run([str(script), str(out), "2", *SMALL_SHARDS], env=cluster, check=True)
        assert tree(out) == alone
    jobs = (tmp_path / "log").read_text().splitlines()
    assert jobs[0].startswith("--parsable --array=0-1 ")
    assert jobs[1].startswith("--dependency=afterany:17 ")
    tasks = (tmp_path / "log.tasks").read_text()
    assert "task 1 of 2, from SLURM_ARRAY_TASK_ID" in tasks
    assert "3 of 5 shards; other tasks generate shards 1, 3" in tasks
    assert "complete; 5 images in 5 shards" in (tmp_path / "log.merge").read_text()


def run_training(
    script: str,
    cluster: dict[str, str],
    tmp_path: Path,
    steps: int,
    ends_with: int,
    signalled: bool,
) -> tuple[int, list[str]]:
    """Run a training script, with SIGUSR1 if signalled; return its exit code and its log."""
    job = subprocess.Popen(
        ["bash", str(ROOT / "docs" / "cluster" / script), "--epochs", "3"],
        env=cluster
        | {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"}
        | {"STEPS": str(steps), "ENDS_WITH": str(ends_with)},
    )
    log = tmp_path / "log"
    while not log.exists() or log.read_text().count("node7") < 2:
        assert job.poll() is None or not signalled
        time.sleep(0.05)
    if signalled:
        job.send_signal(signal.SIGUSR1)
    return job.wait(), log.read_text().splitlines()


@pytest.mark.parametrize(
    ("steps", "ends_with", "signalled", "status", "requeued"),
    [(1, 0, False, 0, False), (1, 3, False, 3, False), (400, 0, True, 143, True)],
)
def test_a_training_job_at_its_time_limit_saves_a_checkpoint_and_requeues(
    cluster: dict[str, str],
    tmp_path: Path,
    steps: int,
    ends_with: int,
    signalled: bool,
    status: int,
    requeued: bool,
) -> None:
    found, lines = run_training("train.sbatch", cluster, tmp_path, steps, ends_with, signalled)
    assert found == status
    for gpu in "01":
        (began,) = [line for line in lines if line.startswith(f"{gpu} node7 imagenet ")]
        assert began.endswith("--resume auto --epochs 3")
        assert (f"{gpu} checkpoint" in lines) == signalled
    assert ("scontrol requeue 4711" in lines) == requeued


@pytest.mark.parametrize(
    ("steps", "ends_with", "signalled", "status", "requeued"),
    [(1, 0, False, 0, False), (1, 3, False, 3, False), (400, 0, True, 1, True)],
)
def test_a_training_job_of_torchrun_is_stopped_at_its_time_limit_and_requeued(
    cluster: dict[str, str],
    tmp_path: Path,
    steps: int,
    ends_with: int,
    signalled: bool,
    status: int,
    requeued: bool,
) -> None:
    found, lines = run_training(
        "train-torchrun.sbatch", cluster, tmp_path, steps, ends_with, signalled
    )
    assert found == status
    launched = [line for line in lines if "pixmix-train" in line]
    assert len(launched) == 2
    for line in launched:
        launcher, _, command = line.partition(" pixmix-train ")
        options = get_args_parser().parse_args([*shlex.split(launcher), "pixmix-train"])
        assert (options.nnodes, options.nproc_per_node) == ("2", "8")
        assert (options.rdzv_id, options.rdzv_endpoint) == ("4711", "node7:24711")
        assert options.no_python
        assert command.endswith("--resume auto --epochs 3")
    assert lines.count("checkpoint") == (2 if signalled else 0)
    assert ("scontrol requeue 4711" in lines) == requeued


def test_the_options_of_the_training_jobs_are_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("shards/imagenet", "shards/mixing"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for script in ("train.sbatch", "train-torchrun.sbatch"):
        text = (ROOT / "docs" / "cluster" / script).read_text()
        (line,) = re.findall(r"pixmix-train (.*?) \"\$@\" &", re.sub(r"\\\n *", "", text))
        assert parsed(train.main, line)


# --- Kubernetes ----------------------------------------------------------------------------------


def job(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "cluster" / name).read_text())
    assert (document["apiVersion"], document["kind"]) == ("batch/v1", "Job")
    return document


def command_of(document: dict[str, Any]) -> list[str]:
    (container,) = document["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    return [*container["command"], *container["args"]]


def test_the_indexed_job_generates_a_set_and_the_job_after_it_merges_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: dict[str, bytes]
) -> None:
    generate, merge = job("generate.yaml"), job("merge.yaml")
    script, *arguments = command_of(generate)
    assert script == "pixmix-gen"
    assert generate["spec"]["completionMode"] == "Indexed"
    assert f"--num-tasks={generate['spec']['completions']}" in arguments
    (url,) = [each.removeprefix("--out=") for each in arguments if each.startswith("--out=")]
    assert command_of(merge) == ["pixmix-gen", "merge", url]
    # Run a small set in a folder with fewer pods, one of which is started twice.
    out = str(tmp_path / "set")
    small = [each for each in arguments if not re.match("--(n|jobs|out|num-tasks)=", each)]
    for index in ("2", "0", "2", "1"):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
        pod = [*small, "--out", out, "--num-tasks", "3", *SMALL_SHARDS]
        made = CliRunner().invoke(gen.main, pod)
        assert made.exit_code == 0, made.output
        assert f"task {index} of 3, from JOB_COMPLETION_INDEX" in made.stderr
    merged = CliRunner().invoke(gen.main, ["merge", out])
    assert merged.exit_code == 0, merged.output
    assert tree(Path(out)) == alone


# --- torchrun ------------------------------------------------------------------------------------


def test_the_pods_of_a_training_find_each_other_and_run_a_command_that_parses() -> None:
    service, training = yaml.safe_load_all((ROOT / "docs" / "cluster" / "train.yaml").read_text())
    name = training["metadata"]["name"]
    assert (service["kind"], training["kind"]) == ("Service", "Job")
    assert service["metadata"]["name"] == training["spec"]["template"]["spec"]["subdomain"] == name
    assert service["spec"]["selector"] == {"job-name": name}
    torchrun, *arguments = command_of(training)
    assert torchrun == "torchrun"
    place = arguments.index("pixmix-train")
    launcher, command = arguments[:place], arguments[place + 1 :]
    pods = training["spec"]["completions"]
    assert pods == training["spec"]["parallelism"]
    assert f"--nnodes={pods}" in launcher
    assert f"--rdzv-endpoint={name}-0.{name}:29500" in launcher
    assert launcher[-1] == "--no-python"
    assert parsed(train.main, shlex.join(command))
    mounts = training["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    volumes = training["spec"]["template"]["spec"]["volumes"]
    assert {each["name"] for each in mounts} == {each["name"] for each in volumes}
    assert "/dev/shm" in {each["mountPath"] for each in mounts}


def test_the_torchrun_lines_have_valid_options() -> None:
    lines = re.findall(r"--no-python -- pixmix-gen (.*)$", PAGE, re.MULTILINE)
    assert len(lines) == 1
    for line in lines:
        assert parsed(gen.main, line)


def test_the_processes_of_torchrun_generate_one_set(
    tmp_path: Path, alone: dict[str, bytes]
) -> None:
    folder = tmp_path / "set"
    script = tmp_path / "pixmix-gen"
    script.write_text(f'#!/bin/bash\nexec {sys.executable} -m pipelines.cli.gen "$@"\n')
    script.chmod(0o755)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    subprocess.run(
        [*torchrun, "--standalone", "--no-python", "--", str(script), "fractals", "--to-shards",
         "--out", str(folder), *SMALL_SHARDS],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )  # fmt: skip
    merged = CliRunner().invoke(gen.main, ["merge", str(folder), "--json"])
    assert json.loads(merged.stdout)["complete"]
    assert tree(folder) == alone
    assert len(open_shards(folder)) == 5


def test_every_file_of_the_examples_is_explained() -> None:
    for path in sorted((ROOT / "docs" / "cluster").iterdir()):
        assert path.name in PAGE, path.name
