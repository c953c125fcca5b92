"""Sets that are closed before their end, that lost files, and what verify sees of a manifest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from painters import Stripes, request, tree
from pipelines.errors import PipelineError
from pipelines.generate.sets import generate_set, read_manifest
from pipelines.generate.verify import verify_set
from pipelines.system.files import folder_lock
from pipelines.system.processes import run_chunks


def interrupted(folder: Path, *, after: int, n: int = 10) -> None:
    """Begin a set, and end it after some pictures."""

    def run(work: Callable[[range], range], chunks: Any, **_: object) -> None:  # noqa: ANN401
        for chunk in chunks:
            if chunk.start >= after:
                raise KeyboardInterrupt
            work(chunk)

    with pytest.raises(KeyboardInterrupt):
        generate_set(request(folder, n=n, chunk=2), run=run)


def test_a_smaller_n_closes_a_set_that_was_begun_larger(tmp_path: Path) -> None:
    interrupted(tmp_path / "set", after=6)
    closed = generate_set(request(tmp_path / "set", n=6, chunk=2), run=run_chunks)
    assert (closed.painted, closed.complete) == (0, True)
    generate_set(request(tmp_path / "whole", n=6, chunk=2))
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")
    manifest = read_manifest(tmp_path / "set")
    assert verify_set(tmp_path / "set", manifest, Stripes(), sample=6).good


def test_a_set_that_was_closed_grows_again(tmp_path: Path) -> None:
    interrupted(tmp_path / "set", after=4)
    generate_set(request(tmp_path / "set", n=4, chunk=2))
    assert generate_set(request(tmp_path / "set", n=10, chunk=2)).painted == 6
    generate_set(request(tmp_path / "whole", n=10, chunk=2))
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")


def test_closing_paints_what_is_missing_before_the_new_end(tmp_path: Path) -> None:
    interrupted(tmp_path / "set", after=4)
    assert generate_set(request(tmp_path / "set", n=7, chunk=2)).painted == 3


def test_pictures_behind_the_new_end_go_when_the_set_is_closed(tmp_path: Path) -> None:
    interrupted(tmp_path / "set", after=8)
    (tmp_path / "set" / "images" / "00000002.png").unlink()
    generate_set(request(tmp_path / "set", n=5, chunk=2))
    assert len([*(tmp_path / "set" / "images").iterdir()]) == 5


def test_closing_never_throws_whole_pictures_away(tmp_path: Path) -> None:
    interrupted(tmp_path / "set", after=6)
    before = tree(tmp_path / "set")
    with pytest.raises(PipelineError, match="use --n 6 to close"):
        generate_set(request(tmp_path / "set", n=3, chunk=2))
    assert tree(tmp_path / "set") == before
    assert generate_set(request(tmp_path / "set", n=6, chunk=2)).complete


def test_a_set_is_not_closed_under_the_hands_of_another_task(tmp_path: Path) -> None:
    interrupted(tmp_path / "set", after=4)
    lock = tmp_path / "set" / ".work" / "task-1-of-2.lock"
    smaller = request(tmp_path / "set", n=4, chunk=2, task_index=0, num_tasks=2)
    with folder_lock(lock), pytest.raises(PipelineError, match="is being painted"):
        generate_set(smaller)


def test_an_image_that_became_a_broken_link_or_empty_is_painted_again(tmp_path: Path) -> None:
    generate_set(request(tmp_path / "set"))
    whole = tree(tmp_path / "set")
    link, empty = (tmp_path / "set" / "images" / f"0000000{i}.png" for i in (3, 5))
    link.unlink()
    link.symlink_to("nowhere.png")
    empty.write_bytes(b"")
    assert generate_set(request(tmp_path / "set")).painted == 2
    assert tree(tmp_path / "set") == whole
    assert not link.is_symlink()


def test_each_line_names_its_image_as_hugging_face_looks_for_it(tmp_path: Path) -> None:
    generate_set(request(tmp_path / "set"))
    for line in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines():
        assert (tmp_path / "set" / json.loads(line)["file_name"]).is_file()


def test_sets_without_that_key_are_read_and_grow(tmp_path: Path) -> None:
    generate_set(request(tmp_path / "set", n=4))
    metadata, manifest = tmp_path / "set" / "metadata.jsonl", tmp_path / "set" / "manifest.json"
    records = [json.loads(line) for line in metadata.read_text().splitlines()]
    for record in records:
        del record["file_name"]
    lines = [json.dumps(record, separators=(",", ":")) + "\n" for record in records]
    metadata.write_text("".join(lines))
    from pipelines.system.files import file_sha256

    content = json.loads(manifest.read_text()) | {"metadata_sha256": file_sha256(metadata)}
    manifest.write_text(json.dumps(content))
    assert verify_set(tmp_path / "set", read_manifest(tmp_path / "set"), Stripes(), sample=4).good
    assert generate_set(request(tmp_path / "set", n=6)).painted == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("licence", "proprietary"), ("drafts", 7), ("acceptance_rate", 0.123), ("kind", "other"),
        ("pictures", 9), ("metadata_sha256", "0" * 64),
    ],
)  # fmt: skip
def test_verify_sees_every_field_of_the_manifest(tmp_path: Path, field: str, value: object) -> None:
    generate_set(request(tmp_path / "set"))
    manifest = read_manifest(tmp_path / "set")
    assert manifest[field] != value
    assert not verify_set(tmp_path / "set", manifest | {field: value}, Stripes(), sample=2).good


def test_verify_sees_a_seed_that_is_not_that_of_the_records(tmp_path: Path) -> None:
    generate_set(request(tmp_path / "set", Stripes(seed=5)))
    manifest = read_manifest(tmp_path / "set")
    manifest["settings"]["seed"] = 7
    assert not verify_set(tmp_path / "set", manifest, Stripes(seed=7), sample=0).good


@pytest.mark.parametrize(
    "change",
    [
        {"drafts": "x"}, {"pictures": 10**30}, {"pictures": True}, {"status": "half"},
        {"metadata_sha256": "../x"}, {"settings": []}, {"made_with": {}}, {"licence": 7},
    ],
)  # fmt: skip
def test_a_manifest_of_other_types_is_one_error(tmp_path: Path, change: dict[str, object]) -> None:
    generate_set(request(tmp_path / "set", n=2))
    path = tmp_path / "set" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PipelineError, match=r"manifest.json is damaged"):
        read_manifest(tmp_path / "set")


def test_a_hostile_manifest_is_one_error(tmp_path: Path) -> None:
    generate_set(request(tmp_path / "set", n=2))
    for content in (b"[" * 200_000, b"\xff", b"", b" " * 2**21):
        (tmp_path / "set" / "manifest.json").write_bytes(content)
        with pytest.raises((PipelineError, OSError)):
            read_manifest(tmp_path / "set")


def test_a_complete_set_is_not_made_smaller(tmp_path: Path) -> None:
    generate_set(request(tmp_path / "set"))
    whole = tree(tmp_path / "set")
    with pytest.raises(PipelineError, match="complete with 10 pictures"):
        generate_set(request(tmp_path / "set", n=9))
    assert tree(tmp_path / "set") == whole
