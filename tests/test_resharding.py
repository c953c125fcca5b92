"""Repeated commands: after a kill, a changed source or a lost file; and what verify detects."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.shards import writer
from pipelines.shards.format import open_shards
from pipelines.system import processes
from shard_commands import contents_of, run
from shard_sets import drawn_images, encoded

pytestmark = pytest.mark.usefixtures("in_this_process")

IMAGES = drawn_images(40, 7)


def written(*arguments: object) -> int:
    """Run pixmix-shard, which must succeed; return the number of shards that it wrote."""
    result = run(*arguments, "--jobs", 1, "--json")
    assert result.exit_code == 0, result.output
    return sum(each["written"] for each in json.loads(result.stdout)["sets"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two classes with eight images each."""
    root = tmp_path / "source"
    for i, image in enumerate(IMAGES[:16]):
        path = root / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image))
    return root


def interrupted(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Make shards up to their index, like a run that is killed there."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writer, "write_index", interrupt)
        assert run(*arguments, "--jobs", 1).exit_code == 130


def keep_times(path: Path, content: bytes) -> None:
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap_two(source: Path) -> None:
    """Exchange two files of the same size, so that neither names nor sizes change."""
    one, other = source / "a" / "00.png", source / "a" / "02.png"
    contents = one.read_bytes(), other.read_bytes()
    size = max(map(len, contents))
    one.write_bytes(contents[1].ljust(size, b"\0"))
    other.write_bytes(contents[0].ljust(size, b"\0"))


CHANGES: dict[str, Callable[[Path], object]] = {
    "another size": lambda s: (s / "a" / "00.png").write_bytes(encoded(IMAGES[20])),
    "another size, the old time": lambda s: keep_times(s / "a" / "00.png", encoded(IMAGES[21])),
    "another content of one size": lambda s: (s / "b" / "01.png").write_bytes(
        (s / "b" / "01.png").read_bytes()[:-12] + b"\0\0\0\0IEND\xaeB`\x82"
    ),
    "a file more": lambda s: (s / "a" / "99.png").write_bytes(encoded(IMAGES[22])),
    "a file less": lambda s: (s / "b" / "03.png").unlink(),
    "a folder more": lambda s: shutil.copytree(s / "a", s / "c"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["imagefolder", "mixing"])
def test_a_killed_run_with_a_changed_source_ends_as_a_fresh_run_of_the_new_source(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, change: str
) -> None:
    options = ["--shard-size", 3, "--name", "s"]
    interrupted(monkeypatch, kind, source, tmp_path / "out", *options)
    CHANGES[change](source)
    written(kind, source, tmp_path / "out", *options)
    written(kind, source, tmp_path / "fresh", *options)
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "fresh")


def test_only_the_shards_of_changed_files_are_written_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--num-shards", 8, "--name", "s"]
    interrupted(monkeypatch, "imagefolder", source, tmp_path / "out", *options)
    CHANGES["another size"](source)
    assert written("imagefolder", source, tmp_path / "out", *options) == 1


def test_a_changed_file_is_scanned_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, "imagefolder", source, tmp_path / "out", "--num-shards", 4)
    whole = (source / "a" / "04.png").read_bytes()
    (source / "a" / "04.png").write_bytes(b"no image")
    result = run("imagefolder", source, tmp_path / "out", "--num-shards", 4, "--jobs", 1)
    assert result.exit_code == 1
    assert "04.png" in result.stderr
    (source / "a" / "04.png").write_bytes(whole)
    written("imagefolder", source, tmp_path / "out", "--num-shards", 4)


@pytest.mark.parametrize("kind", ["imagefolder", "mixing"])
def test_a_finished_set_is_not_complete_if_the_content_of_a_file_has_changed(
    source: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    (source / "a" / "00.png").write_bytes(encoded(IMAGES[0]).ljust(20_000, b"\0"))
    written(kind, source, out, "--num-shards", 3)
    (source / "a" / "00.png").write_bytes(encoded(IMAGES[23]).ljust(20_000, b"\0"))
    before = contents_of(out)
    result = run(kind, source, out, "--num-shards", 3, "--jobs", 1)
    assert result.exit_code == 1
    assert "a/00.png was changed after" in result.stderr
    assert before.items() <= contents_of(out).items()
    shutil.rmtree(out)  # The remedy.
    written(kind, source, out, "--num-shards", 3)


def test_a_file_whose_size_has_changed_is_reported(source: Path, tmp_path: Path) -> None:
    written("imagefolder", source, tmp_path / "out", "--num-shards", 3)
    CHANGES["another size"](source)
    result = run("imagefolder", source, tmp_path / "out", "--num-shards", 3, "--jobs", 1)
    assert result.exit_code == 1
    assert "a/00.png" in result.stderr


def test_a_copied_source_with_new_times_counts_as_unchanged(source: Path, tmp_path: Path) -> None:
    (source / "a" / "broken.png").write_bytes(b"")
    options = ["--num-shards", 3, "--on-decode-error", "skip"]
    written("imagefolder", source, tmp_path / "out", *options)
    for path in source.rglob("*.png"):
        path.touch()
    assert written("imagefolder", source, tmp_path / "out", *options) == 0


def test_a_replaced_archive_is_detected(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "images"), "tar", source))
    interrupted(monkeypatch, "mixing", archive, tmp_path / "out", "--num-shards", 4)
    swap_two(source)
    shutil.make_archive(str(tmp_path / "images"), "tar", source)
    written("mixing", archive, tmp_path / "out", "--num-shards", 4)
    written("mixing", archive, tmp_path / "fresh", "--num-shards", 4)
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "fresh")


def test_a_source_that_changes_while_it_is_written_is_rejected(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = processes.run_chunks

    def run_chunks(work: object, chunks: object, **options: object) -> None:
        real(work, chunks, **options)  # type: ignore[arg-type]
        (source / "b" / "05.png").write_bytes(encoded(IMAGES[24]))

    with monkeypatch.context() as patched:
        patched.setattr(processes, "run_chunks", run_chunks)
        result = run("imagefolder", source, tmp_path / "out", "--num-shards", 4, "--jobs", 1)
    assert result.exit_code == 1
    assert "b/05.png" in result.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
    written("imagefolder", source, tmp_path / "out", "--num-shards", 4)  # The remedy.


def test_a_killed_repair_is_resumed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["imagefolder", source, tmp_path / "out", "--num-shards", 4, "--name", "s"]
    written(*arguments)
    before = contents_of(tmp_path / "out")
    (tmp_path / "out" / "s-02.tar").unlink()
    (tmp_path / "out" / "index.npy").unlink()
    interrupted(monkeypatch, *arguments)
    assert written(*arguments) == 0
    assert contents_of(tmp_path / "out") == before


# --- lost files ----------------------------------------------------------------------------------

OF_A_SET = ["index.npy", "s-1.tar", "s-0.idx", "wids.json", "sizes.json", "_info.json",
            "scan.jsonl"]  # fmt: skip


@pytest.fixture
def made(source: Path, tmp_path: Path) -> list[object]:
    """Make a set with all optional files; return the command."""
    (source / "a" / "broken.png").write_bytes(b"")
    arguments: list[object] = ["imagefolder", source, tmp_path / "out", "--num-shards", 3]
    arguments += ["--name", "s", "--dali-index", "--on-decode-error", "skip"]
    written(*arguments)
    for path in (tmp_path / "out").glob("s-0*"):
        assert path.suffix in (".tar", ".idx")
    return arguments


@pytest.mark.parametrize("how", ["lost", "emptied"])
@pytest.mark.parametrize("file", OF_A_SET)
def test_the_same_command_repairs_a_set_that_lost_a_file(
    made: list[object], tmp_path: Path, file: str, how: str
) -> None:
    out = tmp_path / "out"
    before = contents_of(out)
    path = out / re.sub(r"s-(\d)", r"s-0\1", file)
    path.unlink()
    if how == "emptied":
        path.write_bytes(b"")
    assert run("verify", out).exit_code == 1
    assert written(*made) == (1 if file.endswith(".tar") else 0)
    assert contents_of(out) == before
    assert run("verify", out, "--decode", "all").exit_code == 0


@pytest.mark.usefixtures("made")
def test_a_lost_index_is_written_again_from_the_tars(source: Path, tmp_path: Path) -> None:
    """Use the command in the error, without the source."""
    out = tmp_path / "out"
    before = contents_of(out)
    shutil.rmtree(source)
    (out / "index.npy").unlink()
    result = run("verify", out)
    assert "run pixmix-shard index" in result.stderr
    assert run("index", *sorted(out.glob("*.tar"))).exit_code == 0
    assert contents_of(out) == before
    assert run("verify", out).exit_code == 0
    (out / "index.npy").write_bytes(b"PK\x03\x04" + bytes(100))
    assert run("index", *sorted(out.glob("*.tar"))).exit_code == 0
    assert contents_of(out) == before
    # No index is written for tars that differ from the manifest.
    (out / "index.npy").unlink()
    (out / "s-00.tar").write_bytes((out / "s-01.tar").read_bytes())
    assert run("index", *sorted(out.glob("*.tar"))).exit_code == 1
    assert not (out / "index.npy").exists()


def test_an_image_that_became_a_broken_link_is_reported(source: Path, tmp_path: Path) -> None:
    written("imagefolder", source, tmp_path / "out", "--num-shards", 2)
    (source / "a" / "00.png").unlink()
    (source / "a" / "00.png").symlink_to(tmp_path / "nowhere")
    assert run("imagefolder", source, tmp_path / "out", "--num-shards", 2).exit_code == 1
    result = run("imagefolder", source, tmp_path / "new", "--num-shards", 2, "--jobs", 1)
    assert result.exit_code == 1
    assert "a/00.png" in result.stderr
    written("imagefolder", source, tmp_path / "new", "--num-shards", 2, "--on-decode-error", "skip")
    assert len(open_shards(tmp_path / "new")) == 15


# --- what verify detects -------------------------------------------------------------------------


def changed_fields(manifest: dict[str, object]) -> list[dict[str, object]]:
    """Return manifests in each of which one value is changed, for every field."""
    changed: list[dict[str, object]] = []
    for name in manifest:
        document = json.loads(json.dumps(manifest))
        value = document[name]
        if name in ("format", "version", "shards", "index"):
            continue
        if isinstance(value, str):
            document[name] = value + "x"
        elif isinstance(value, int):
            document[name] = value + 1
        elif isinstance(value, list):
            document[name] = value[::-1] if len(value) > 1 else [*value, "x"]
        else:
            document[name] = {**value, next(iter(value)): "x"}
        changed.append(document)
    for name in manifest["settings"]:  # type: ignore[attr-defined]
        document = json.loads(json.dumps(manifest))
        document["settings"][name] = 12345
        changed.append(document)
    return changed


def test_verify_detects_a_change_of_any_field_of_the_manifest(
    made: list[object], tmp_path: Path
) -> None:
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    changed = changed_fields(manifest)
    assert len(changed) > 15
    for document in changed:
        path.write_text(json.dumps(document))
        assert run("verify", path.parent).exit_code == 1, document
        # And the command that made the set does not accept it as complete.
        assert run(*made, "--jobs", 1).exit_code == 1


@pytest.mark.usefixtures("made")
def test_verify_detects_a_change_of_any_side_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("verify", out).exit_code == 0
    side_files = [*out.glob("*.json"), *out.glob("*.idx"), *out.glob("*.jsonl")]
    assert len(side_files) == 8
    for path in side_files:
        content = path.read_bytes()
        digit = max(i for i, byte in enumerate(content) if chr(byte).isdigit())
        other = b"7" if content[digit : digit + 1] != b"7" else b"3"
        for damaged in (b"{}", content[:digit] + other + content[digit + 1 :]):
            path.write_bytes(damaged)
            result = run("verify", out)
            assert result.exit_code == 1, (path, damaged)
            assert path.name in result.stderr
        path.write_bytes(content)
    assert run("verify", out).exit_code == 0
