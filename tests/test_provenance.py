"""run.json: settings, sessions and provenance of a run, without secrets."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from pipelines import provenance
from pipelines.cli import bench, demo, evaluate, gen, shard, show, train
from pipelines.provenance import (
    WeightsFacts,
    command_line,
    git_state,
    read_run_record,
    versions,
)
from pipelines.system.files import file_sha256
from pipelines.system.masking import _SECRET_OPTION, masked, masked_arguments
from pipelines.system.process_group import Processes
from pipelines.system.ranks import World
from pipelines.training.loop import train as run_training
from pipelines.training.recipes import StepProgress
from pipelines.training.tracking import _weights
from training_sets import training

ALONE = Processes(world=World(rank=0, size=1), device=torch.device("cpu"))


def record_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return found


def stopping_at(step: int) -> Any:  # noqa: ANN401
    def show(shown: StepProgress) -> None:
        if shown.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return show


# --- A training ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_records_its_settings_data_and_sessions(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    seen = []

    def check(shown: StepProgress) -> None:
        seen.append(record_of(out)["status"])
        stopping_at(3)(shown)

    changes = {"augment": "none", "epochs": 1}
    run_training(training(digits, out, **changes), ALONE, check)
    stopped = record_of(out)
    assert seen == ["running"] * 3
    assert stopped["status"] == "stopped"
    run_training(training(digits, out, resume=True, **changes), ALONE)
    found = record_of(out)
    assert found["status"] == "finished"
    assert found["settings"]["recipe"]["batch_size"] == 256
    assert found["settings"]["recipe"]["augment"] == "none"
    assert found["settings"]["mixing_set"] is None
    assert found["settings"]["weights"] is None
    assert {use: each["sha256"] for use, each in found["settings"]["data"].items()} == {
        use: file_sha256(digits / use / "manifest.json") for use in ("train", "test")
    }
    first, second = found["sessions"]
    assert first == stopped["sessions"][0]
    assert [first["status"], second["status"]] == ["stopped", "finished"]
    assert [first["first_step"], first["last_step"]] == [0, 3]
    assert [second["first_step"], second["last_step"]] == [3, 5]
    assert found["seconds"] == pytest.approx(first["seconds"] + second["seconds"], abs=0.002)
    assert set(second["versions"]) == {
        "python", "pixmix", "torch", "torchvision", "numpy", "numba", "Pillow",
    }  # fmt: skip
    assert second["hardware"]["world_size"] == 1
    assert second["hardware"]["cores"] >= 1
    # The name of the machine is not recorded.
    assert set(second["hardware"]) == {"cpu", "cores", "gpus", "system", "world_size"}


@pytest.mark.slow
def test_a_run_records_the_hashes_of_its_weights_and_mixing_set(
    digits: Path, tmp_path: Path
) -> None:
    first = run_training(training(digits, tmp_path / "a", augment="none", epochs=1), ALONE)
    run_training(
        training(
            digits, tmp_path / "b", epochs=1, weights=first.checkpoint, mixing_set=digits / "test"
        ),
        ALONE,
    )
    settings = record_of(tmp_path / "b")["settings"]
    assert settings["weights"] == {
        "location": str(first.checkpoint), "sha256": file_sha256(first.checkpoint)
    }  # fmt: skip
    assert settings["mixing_set"]["locations"] == [str(digits / "test")]
    assert len(settings["mixing_set"]["fingerprint"]) >= 32


@pytest.mark.slow
def test_a_resumed_run_keeps_the_record_of_its_initial_weights(
    digits: Path, tmp_path: Path
) -> None:
    first = run_training(training(digits, tmp_path / "a", augment="none", epochs=1), ALONE)
    weights = tmp_path / "weights.pt"
    weights.write_bytes(first.checkpoint.read_bytes())
    out = tmp_path / "b"
    options: dict[str, Any] = {"augment": "none", "epochs": 1}
    run_training(training(digits, out, weights=weights, **options), ALONE, stopping_at(2))
    expected = record_of(out)["settings"]["weights"]
    assert expected == {"location": str(weights), "sha256": file_sha256(weights)}
    # The file is not read again, and another --weights is ignored.
    weights.unlink()
    run_training(training(digits, out, resume=True, **options), ALONE)
    assert record_of(out)["settings"]["weights"] == expected
    other = training(digits, out, resume=True, weights=first.checkpoint, **options)
    run_training(other, ALONE)
    assert record_of(out)["settings"]["weights"] == expected
    (out / "run.json").unlink()
    run_training(other, ALONE)
    assert record_of(out)["settings"]["weights"] == {"location": "unknown", "sha256": None}


def test_weights_of_torchvision_are_recorded_by_name(digits: Path, tmp_path: Path) -> None:
    plain = training(digits, tmp_path, augment="none")
    for resumed in (False, True):
        found = _weights(plain, "IMAGENET1K_V2", resumed=resumed)
        assert found == WeightsFacts(
            location=f"torchvision {plain.recipe.model} IMAGENET1K_V2", sha256=None
        )


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE])
def test_a_record_that_cannot_be_read_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "run.json").write_text("whole")

    def refused(path: Path, **_: object) -> bytes:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(provenance, "read_regular", refused)
    with pytest.raises(OSError, match=os.strerror(number)):
        provenance._earlier(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("what", ["folder", "fifo", "damaged"])
def test_a_damaged_record_is_renamed(tmp_path: Path, what: str) -> None:
    path = tmp_path / "run.json"
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.write_text("{")
    assert provenance._earlier(tmp_path)[1] == []
    assert [each.name for each in tmp_path.iterdir()] == ["run.damaged.json"]


@pytest.mark.slow
def test_a_failed_session_records_its_error_and_a_killed_one_is_lost(
    digits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Exception, match="loss of step"):
        run_training(training(digits, out, augment="none", learning_rate=1e30), ALONE)
    found = record_of(out)
    assert found["status"] == found["sessions"][0]["status"] == "failed"
    assert "the loss of step" in found["sessions"][0]["error"]
    # The record after SIGKILL.
    for part in (found, found["sessions"][0]):
        part["status"] = "running"
    (out / "run.json").write_text(json.dumps(found))
    run_training(training(digits, out, augment="none", epochs=1, resume=True), ALONE)
    assert [each["status"] for each in record_of(out)["sessions"]] == ["lost", "finished"]


def test_a_rejected_command_does_not_change_the_record(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_training(training(digits, out, augment="none", epochs=1), ALONE)
    before = (out / "run.json").read_bytes()
    for changes in ({}, {"resume": True, "seed": 1}):
        with pytest.raises(Exception, match=str(out)):
            run_training(training(digits, out, augment="none", epochs=1, **changes), ALONE)
    assert (out / "run.json").read_bytes() == before


@pytest.mark.parametrize("damage", [b"{", b"\xff", b'{"version": 1}', b"[" * 100_000, None])
def test_a_resume_restores_damaged_records_and_metrics(
    digits: Path, tmp_path: Path, damage: bytes | None
) -> None:
    out = tmp_path / "run"
    run_training(training(digits, out, augment="none", epochs=1), ALONE)
    metrics = (out / "metrics.jsonl").read_bytes()
    (out / "run.json").unlink()
    (out / "metrics.jsonl").write_text("damaged")
    if damage is None:
        os.mkfifo(out / "run.json")
    else:
        (out / "run.json").write_bytes(damage)
    run_training(training(digits, out, augment="none", epochs=1, resume=True), ALONE)
    record = read_run_record(out)
    assert record is not None
    assert [session.status for session in record.sessions] == ["finished"]
    assert (out / "run.damaged.json").exists()
    assert (out / "metrics.jsonl").read_bytes() == metrics


# --- Secrets -------------------------------------------------------------------------------------

SECRETS = [
    ("https://alice:hunter2@host/a/{0..3}.tar", "https://***@host/a/{0..3}.tar"),
    ("https://hunter2@host", "https://***@host"),
    ("https://a:b@hunter2@host/a@2x.png", "https://***@host/a@2x.png"),
    ("https://host/a?X-Amz-Signature=hunter2&X-Amz-Date=1", "https://host/a?***"),
    ("s3://bucket/a?versionId=hunter2", "s3://bucket/a?***"),
    ("https://host/a#access_token=hunter2", "https://host/a#***"),
    ("--token=hunter2", "--token=***"),
    ("--aws-secret-access-key=hunter2", "--aws-secret-access-key=***"),
    ("AWS_SECRET_ACCESS_KEY=hunter2 curl x", "AWS_SECRET_ACCESS_KEY=*** curl x"),
    ("HF_TOKEN='hunter2 and more' x", "HF_TOKEN=*** x"),
    ("pipe:curl -H 'Authorization: Bearer hunter2' u", "pipe:***"),
    ("pipe:wget --password hunter2 x\n-y hunter2", "pipe:***"),
    ("--train=pipe:curl --oauth2-bearer hunter2 {file}", "--train=pipe:***"),
    ("curl -H 'Authorization: Bearer hunter2' u", "curl -H 'Authorization: ***' u"),
    ("curl -u alice:hunter2 x", "curl -u *** x"),
    ("curl -ualice:hunter2 x", "curl -u*** x"),
    ("PGPASSWORD=hunter2 psql", "PGPASSWORD=*** psql"),
    ("x hf_aaaaaaaaaaaaaaaaaaaa y", "x *** y"),
    ("password: hunter2", "password: ***"),
]


@pytest.mark.parametrize(("text", "expected"), SECRETS)
def test_secrets_are_masked_and_other_text_is_kept(text: str, expected: str) -> None:
    assert masked(text) == expected
    assert masked(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "runs/a b",
        "https://host/a.tar",
        "s3://bucket/a/{0000..1023}.tar",
        "--learning-rate=0.1",
        "module:function",
        "tokens:network",
        "keys/of/author=1",
        "-unbuffered x",
        "a pipe: with a space",
        "f" * 64,
    ],
)
def test_text_without_secrets_is_not_masked(text: str) -> None:
    assert masked(text) == text


def test_the_word_after_a_secret_option_is_masked() -> None:
    words = ["digits", "--password", "hunter2", "--out", "a", "--api-key", "--json"]
    assert masked_arguments(words) == [*words[:2], "***", *words[3:]]


def commands_of(command: click.Command) -> list[click.Command]:
    parts = list(command.commands.values()) if isinstance(command, click.Group) else []
    return [command, *parts]


def test_no_option_of_the_commands_is_masked() -> None:
    mains = (bench, demo, evaluate, gen, shard, show, train)
    options = {
        name
        for main in mains
        for command in commands_of(main.main)
        for param in command.params
        for name in param.opts
    }
    assert len(options) > 80
    assert {name for name in options if _SECRET_OPTION.fullmatch(name)} == set()


def test_the_command_line_is_quoted_for_a_shell_and_has_no_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["/usr/bin/pixmix-train", "digits", "--data", "https://a:b@h/x", "--out", "a b\udce9"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert command_line() == ("pixmix-train digits --data 'https://***@h/x' --out 'a b\\udce9'")


def test_run_json_has_no_secrets_of_the_command_line(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "pixmix-train",
        "--mixing-set",
        "https://u:hunter2@h/x?sig=hunter2",
        "--token",
        "hunter2",
    ]
    monkeypatch.setattr(sys, "argv", words)
    run_training(training(digits, tmp_path / "run", augment="none", epochs=1), ALONE)
    assert "hunter2" not in (tmp_path / "run" / "run.json").read_text()


# --- Versions, git -------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip


def test_git_state_has_the_commit_and_whether_tracked_files_differ(
    tmp_path: Path,
) -> None:
    assert git_state(tmp_path) is None
    git(tmp_path, "init")
    assert git_state(tmp_path) is None
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-m", "a")
    (tmp_path / "run.log").write_text("not tracked")
    state = git_state(tmp_path)
    assert state is not None
    assert len(state.commit) == 40
    assert state.dirty is False
    (tmp_path / "a.py").write_text("2")
    changed = git_state(tmp_path)
    assert changed is not None
    assert (changed.commit, changed.dirty) == (state.commit, True)


@pytest.mark.parametrize("name", ["x", "a b.c", "a=b"])
@pytest.mark.parametrize("kind", ["clean", "process"])
def test_git_state_starts_no_program_of_the_repository(
    tmp_path: Path, name: str, kind: str
) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init")
    (folder / "a.py").write_text("1")
    (folder / "b.py").write_text("1")
    git(folder, "add", "a.py", "b.py")
    git(folder, "commit", "-m", "a")
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\ncat\n")
    program.chmod(0o755)
    hooks = folder / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for hook in ("post-index-change", "fsmonitor-watchman", "reference-transaction"):
        (hooks / hook).write_bytes(program.read_bytes())
        (hooks / hook).chmod(0o755)
    git(folder, "config", f"filter.{name}.{kind}", str(program))
    git(folder, "config", f"filter.{name}.required", "true")
    git(folder, "config", "core.fsmonitor", str(program))
    (folder / ".git" / "info").mkdir(exist_ok=True)
    # A name with a space cannot be used here; an unused filter must not run either.
    (folder / ".gitattributes").write_text(f"* filter={name}\n")
    (folder / "a.py").write_text("2")
    os.utime(folder / "b.py", (1, 1))
    (tmp_path / "ran").unlink(missing_ok=True)
    state = git_state(folder)
    assert not (tmp_path / "ran").exists()
    assert state is not None
    assert state.dirty is (None if "=" in name else True)


def test_git_state_starts_no_program_of_a_submodule(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    for folder in (inner, outer):
        folder.mkdir()
        git(folder, "init")
        (folder / "a.py").write_text("1")
        git(folder, "add", "a.py")
        git(folder, "commit", "-m", "a")
    git(outer, "-c", "protocol.file.allow=always", "submodule", "add", str(inner), "part")
    git(outer, "commit", "-m", "b")
    git(outer / "part", "config", "filter.x.clean", f"touch {tmp_path}/ran; cat")
    (outer / "part" / ".gitattributes").write_text("* filter=x\n")
    (outer / "part" / "a.py").write_text("2")
    state = git_state(outer)
    assert not (tmp_path / "ran").exists()
    assert state is not None
    assert state.dirty is False


def test_git_state_is_none_without_git_or_if_git_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "_GIT_TIMEOUT_S", 0.2)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None
    hanging = tmp_path / "git"
    hanging.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    hanging.chmod(0o755)
    assert git_state(tmp_path) is None


def test_a_package_that_is_not_installed_has_no_version() -> None:
    found = versions(("numpy", "no-such-package-here"))
    assert list(found) == ["python", "numpy", "pixmix"]
