"""A named pipe in place of any file of a dataset is an error; no command waits for it."""

import ast
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import gen, shard

ROOT = Path(__file__).parent.parent
SMALL = ("--n", "4", "--size", "24x16", "--samples-per-pixel", "4", "--jobs", "1")

ALLOWED = {
    "cli/demo.py", "evaluation/folders.py", "generate/ray.py",
    "provenance.py", "system/process_group.py", "system/processes.py",
}  # fmt: skip
"""Modules that read by name only files of the system, of the package or of their own."""


def pipe_at(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", ["images/00000001.png", "metadata.jsonl", "manifest.json"])
def test_a_pipe_in_an_image_set_is_an_error_and_does_not_block(tmp_path: Path, name: str) -> None:
    out = tmp_path / "set"
    made = CliRunner().invoke(gen.main, ["fractals", *SMALL, "--format", "png", "--out", str(out)])
    assert made.exit_code == 0, made.output
    pipe_at(out / name)
    found = CliRunner().invoke(gen.main, ["verify", str(out)])
    assert found.exit_code == 1
    assert Path(name).name in found.output


@pytest.mark.parametrize("name", [".work/request.json", "manifest.json"])
def test_a_pipe_in_a_set_of_shards_is_an_error_and_does_not_block(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "set" / name
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    merged = CliRunner().invoke(gen.main, ["merge", str(tmp_path / "set")])
    assert merged.exit_code == 1
    assert isinstance(merged.exception, SystemExit)


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY\x01\x00\x10\x00{'shape': (((\n"])
def test_an_index_that_is_a_pipe_or_damaged_is_an_error(
    tmp_path: Path, content: bytes | None
) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(1024))
    index = tmp_path / "index.npy"
    if content is None:
        os.mkfifo(index)
    else:
        index.write_bytes(content)
    found = CliRunner().invoke(shard.main, ["index", str(tmp_path / "a.tar")])
    assert found.exit_code == 1
    assert isinstance(found.exception, SystemExit)
    assert "index.npy" in found.stderr


@pytest.mark.parametrize(
    "request_",
    [
        {"name": 5, "n": 4, "kind": "mixing", "shard_size": 1, "num_shards": "y"},
        {"name": "../x", "n": 4, "kind": "mixing", "shard_size": 1, "num_shards": 4},
        {"name": "x", "n": 4, "kind": "mixing", "shard_size": 1, "num_shards": 10**12},
    ],
)
def test_a_damaged_request_file_is_an_error(tmp_path: Path, request_: dict[str, object]) -> None:
    (tmp_path / ".work").mkdir()
    document = {"settings": request_, "versions": {}, "n": 4}
    (tmp_path / ".work" / "request.json").write_text(json.dumps(document))
    merged = CliRunner().invoke(gen.main, ["merge", str(tmp_path)])
    assert merged.exit_code == 1
    assert isinstance(merged.exception, SystemExit)
    assert "request.json is damaged" in merged.stderr


def test_a_deeply_nested_manifest_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[" * 200_000)
    merged = CliRunner().invoke(gen.main, ["merge", str(tmp_path)])
    assert merged.exit_code == 1
    assert isinstance(merged.exception, SystemExit)


def test_modules_open_files_only_through_functions_that_reject_pipes() -> None:
    found = []
    for path in sorted((ROOT / "pipelines").rglob("*.py")):
        name = path.relative_to(ROOT / "pipelines").as_posix()
        if name in ALLOWED or name.startswith("bench/"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            reads = node.func.attr in {"read_bytes", "read_text"}
            opens = node.func.attr == "open" and [
                each.value for each in node.args if isinstance(each, ast.Constant)
            ] == ["rb"]
            if reads or opens:
                found.append(f"{name}:{node.lineno}")
    assert found == []
