"""Datasets generated into shards: the same bytes by any tasks, closed when all are whole."""

import gc
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from click.testing import CliRunner, Result

from pipelines import open_mixing_set
from pipelines.cli import gen, shard
from pipelines.cli.generating import describe_shards
from pipelines.errors import PipelineError
from pipelines.generate import generator, products
from pipelines.generate.generator import decode
from pipelines.generate.products import (
    begun_shards,
    earlier_settings,
)
from pipelines.shards import job
from pipelines.shards.format import open_shards
from pipelines.shards.job import JobResult, make_chunk
from pipelines.shards.output import Folder, open_output
from pipelines.shards.request import ShardRequest
from pipelines.shards.sharding import make_shards
from pipelines.shards.sources import Source
from stripes import JobSpec, RunResult, Stripes, image_set, make, run_here, sharded, tree


def generate(asked: JobSpec) -> RunResult:
    return make(asked, run=run_here)


def merge(store: Folder) -> JobResult:
    return job.merge(begun_shards(store))


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the set that `sharded` asks for, made by one process in one go."""
    folder = tmp_path_factory.mktemp("unbroken") / "set"
    assert generate(sharded(Folder(path=folder))).complete
    return tree(folder)


@pytest.fixture
def place(tmp_path: Path) -> Folder:
    return Folder(path=tmp_path / "set")


def numbers(result: JobResult) -> tuple[int, ...]:
    return tuple(shard for items in result.missing for shard in items)


def done_record(store: Folder, shard: int) -> Path:
    (path,) = (store.path / ".work" / "done").glob(f"{shard:08d}-*.jsonl")
    return path


def members(folder: Path) -> dict[str, bytes]:
    """All files in all tars of a folder, each name once."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                assert member.name not in found
                found[member.name] = content.read()
    return found


# --- what it is ----------------------------------------------------------------------------------


def test_the_samples_are_those_that_pixmix_shard_makes_of_the_files(
    tmp_path: Path, place: Folder
) -> None:
    from pipelines.shards.sources import MixingSource

    make(image_set(tmp_path / "files"), run=run_here)
    source: Source = MixingSource(paths=(tmp_path / "files",))
    asked = ShardRequest(
        store=Folder(path=tmp_path / "shards"), source=source, name="stripes", num_shards=4
    )
    make_shards(asked, run=run_here, progress=lambda _done, _total: None)
    generate(sharded(place))
    assert len(members(place.path)) == 20
    assert members(place.path) == members(tmp_path / "shards")
    ours, theirs = tree(place.path), tree(tmp_path / "shards")
    assert set(ours) == set(theirs)
    manifests = [json.loads(each["manifest.json"]) for each in (ours, theirs)]
    for field in ("format", "version", "name", "kind", "classes", "extensions", "num_samples"):
        assert manifests[0][field] == manifests[1][field], field


def test_images_lie_in_order_in_shards_that_differ_by_at_most_one(place: Folder) -> None:
    generate(sharded(place))
    shards = open_shards(place.path)
    assert [each.n_samples for each in shards.shards] == [2, 3, 2, 3]
    assert [each.file for each in shards.shards] == [f"stripes-0{i}.tar" for i in range(4)]
    assert [shards.key(i) for i in range(10)] == [f"{i:08d}" for i in range(10)]
    assert (shards.samples["label"] == -1).all()


# webdataset leaves its files to the garbage collector, which is called before the next test begins.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_all_readers_take_the_set(place: Folder, tmp_path: Path) -> None:
    generate(sharded(place))
    mixing_set = open_mixing_set(place.path, 20, cache_dir=tmp_path / "cache")
    assert len(mixing_set) == 10
    for i in range(10):
        np.testing.assert_array_equal(mixing_set[i], Stripes().image(i))
    verdict = CliRunner().invoke(shard.main, ["verify", str(place.path), "--decode", "all"])
    assert (verdict.exit_code, "10 decoded" in verdict.stdout) == (0, True)
    tars = [str(path) for path in sorted(place.path.glob("*.tar"))]
    samples = [*webdataset.WebDataset(tars, shardshuffle=False)]
    assert [json.loads(each["json"])["index"] for each in samples] == list(range(10))
    np.testing.assert_array_equal(decode(samples[3]["png"]), Stripes().image(3))
    gc.collect()


def test_the_manifest_says_what_the_set_was_made_with(place: Folder) -> None:
    generate(sharded(place, Stripes(seed=5)))
    manifest = json.loads((place.path / "manifest.json").read_bytes())
    assert manifest["settings"] == {
        "name": "stripes", "kind": "mixing", "sources": ["stripes"], "licence": "CC0-1.0",
        "seed": 5, "height": 20, "width": 36, "format": "png", "n": 10, "shard_size": 3,
        "num_shards": 4,
    }  # fmt: skip
    assert manifest["versions"].keys() == {
        "pixmix", "shards_version", "stripes_version", "encoder",
    }  # fmt: skip
    assert earlier_settings(place) == manifest["settings"]


# --- nothing but the settings shows --------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_tasks_reruns_and_duplicates_do_not_show(
    place: Folder, unbroken: dict[str, bytes], seed: int
) -> None:
    chosen = random.Random(seed)
    num_tasks = chosen.choice([2, 3, 4, 7])
    tasks = [*range(num_tasks)] * 2
    chosen.shuffle(tasks)
    for task in tasks:
        chunk = chosen.choice([1, 2, 100])
        result = generate(sharded(place, chunk=chunk, task_index=task, num_tasks=num_tasks))
        assert not result.complete
    assert result.missing == ()
    assert merge(place).complete
    assert tree(place.path) == unbroken


def test_the_tasks_may_be_cut_in_another_way_at_any_time(
    place: Folder, unbroken: dict[str, bytes]
) -> None:
    assert generate(sharded(place, task_index=2, num_tasks=3)).generated == 2
    assert generate(sharded(place, task_index=0, num_tasks=2)).generated == 2
    assert generate(sharded(place, task_index=1, num_tasks=2)).generated == 6
    assert merge(place).complete
    assert tree(place.path) == unbroken


def test_processes_do_not_show(place: Folder, unbroken: dict[str, bytes]) -> None:
    assert make(sharded(place, jobs=2)).generated == 10
    assert tree(place.path) == unbroken


def test_only_shards_that_are_not_whole_are_made_again(
    place: Folder, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    for task in range(2):
        generate(sharded(place, task_index=task, num_tasks=2))
    done_record(place, 1).unlink()
    with (place.path / "stripes-03.tar").open("ab") as tar:
        tar.write(bytes(512))
    (place.path / "stripes-02.tar").unlink()
    assert numbers(merge(place)) == (1, 2, 3)
    journal = tmp_path / "journal"
    journal.mkdir()
    result = generate(sharded(place, Stripes(journal=journal)))
    assert (result.generated, result.complete) == (8, True)
    assert {int(note.name) for note in journal.iterdir()} == set(range(2, 10))
    assert tree(place.path) == unbroken


def test_a_shard_of_another_size_than_its_sidecar_says_is_missing(place: Folder) -> None:
    for task in range(2):
        generate(sharded(place, task_index=task, num_tasks=2))
    with (place.path / "stripes-03.tar").open("ab") as tar:
        tar.write(bytes(512))
    assert numbers(merge(place)) == (3,)
    assert not (place.path / "manifest.json").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda _sidecar: b"x",
        lambda _sidecar: b"\xff",
        lambda _sidecar: b"{}",
        lambda _sidecar: b"[]",
        lambda sidecar: json.dumps(sidecar | {"bytes": None}).encode(),
        lambda sidecar: json.dumps(sidecar | {"samples": [1, 2]}).encode(),
        lambda sidecar: json.dumps(sidecar | {"samples": sidecar["samples"][1:]}).encode(),
        lambda sidecar: json.dumps(sidecar | {"extensions": [7]}).encode(),
        lambda sidecar: json.dumps(sidecar | {"file": "stripes-99.tar"}).encode(),
    ],
)
@pytest.mark.parametrize("shards", [(1,), (0, 1, 2, 3)])
def test_a_shard_whose_sidecar_is_damaged_is_missing_and_made_again(
    place: Folder,
    unbroken: dict[str, bytes],
    damage: Callable[[dict[str, Any]], bytes],
    shards: tuple[int, ...],
) -> None:
    for task in range(2):
        generate(sharded(place, task_index=task, num_tasks=2))
    done = [done_record(place, shard) for shard in shards]
    for path in done:
        path.write_bytes(damage(json.loads(path.read_bytes())) + b"\n")
    assert numbers(merge(place)) == shards
    assert not (place.path / "manifest.json").exists()
    assert generate(sharded(place)).complete
    assert tree(place.path) == unbroken


def test_a_sidecar_of_another_shard_vouches_for_nothing(
    place: Folder, unbroken: dict[str, bytes]
) -> None:
    for task in range(2):
        generate(sharded(place, task_index=task, num_tasks=2))
    done_record(place, 3).write_bytes(done_record(place, 1).read_bytes())
    assert numbers(merge(place)) == (3,)
    assert generate(sharded(place)).generated == 3
    assert tree(place.path) == unbroken


def test_a_task_without_shards_does_nothing(place: Folder) -> None:
    sizes = [
        generate(sharded(place, n=2, shard_size=1, task_index=task, num_tasks=5)).generated
        for task in range(5)
    ]
    assert Counter(sizes) == {0: 3, 1: 2}


def test_after_the_merge_every_task_finds_the_set_complete(
    place: Folder, unbroken: dict[str, bytes]
) -> None:
    generate(sharded(place))
    times = {path: path.stat().st_mtime_ns for path in place.path.iterdir()}
    for task in range(3):
        result = generate(sharded(place, task_index=task, num_tasks=3))
        assert (result.generated, result.complete) == (0, True)
    assert merge(place).complete
    assert {path: path.stat().st_mtime_ns for path in place.path.iterdir()} == times
    assert tree(place.path) == unbroken


@pytest.mark.parametrize("at", ["tar", "sidecar"])
def test_a_duplicate_under_whose_hands_the_set_is_closed_ends_in_peace(
    place: Folder, unbroken: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Another run makes all shards and closes the set while this one is at one of its own."""
    module, name = {"tar": (products, "write_tar"), "sidecar": (job, "_write_done")}[at]
    write, closed = getattr(module, name), []

    def write_while_another_closes(*arguments: Any) -> Any:  # noqa: ANN401
        if not closed:
            closed.append(at)
            assert generate(sharded(place)).complete
        return write(*arguments)

    monkeypatch.setattr(module, name, write_while_another_closes)
    result = generate(sharded(place, task_index=1, num_tasks=2))
    assert closed
    assert result.complete
    assert tree(place.path) == unbroken


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: replace(r, generator=Stripes(seed=1)), "seed: .* started with 0, .* uses 1"),
        (lambda r: replace(r, n=11), "n: .* started with 10, .* uses 11"),
        (lambda r: replace(r, shard_size=5), "shard_size: .* started with 3, .* uses 5"),
        (lambda r: replace(r, format="webp"), "format: .* with png, .* uses webp"),
        (
            lambda r: replace(r, generator=Stripes(version=2)),
            "stripes_version: .* this is 2; install",
        ),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_other_settings_are_refused_by_the_name_of_the_field(
    place: Folder,
    change: Callable[[JobSpec], JobSpec],
    message: str,
    complete: bool,
) -> None:
    asked = sharded(place) if complete else sharded(place, num_tasks=2)
    generate(asked)
    before = tree(place.path)
    with pytest.raises(PipelineError, match=message):
        generate(change(asked))
    assert tree(place.path) == before


def test_a_newer_package_with_the_same_images_continues(
    place: Folder, unbroken: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(sharded(place, num_tasks=2))
    monkeypatch.setattr(generator, "__version__", "99.0")
    assert generate(sharded(place)).generated == 6
    assert tree(place.path) == unbroken


def test_shards_of_another_request_that_began_at_the_same_time_do_not_count(
    place: Folder, unbroken: dict[str, bytes]
) -> None:
    generate(sharded(place, num_tasks=2))
    # What a store without locks lets happen: its request was written over ours, and ours over it.
    other = sharded(place, Stripes(seed=1)).job()
    for number in (1, 3):
        make_chunk(other, other.request.hash, range(number, number + 1))
    assert numbers(merge(place)) == (1, 3)
    assert generate(sharded(place, task_index=1, num_tasks=2)).generated == 6
    assert merge(place).complete
    assert tree(place.path) == unbroken


def test_whoever_loses_the_race_for_the_request_is_refused(
    place: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = job.write_file

    def write_and_lose(path: Path, content: bytes) -> None:
        write(path, content)
        document = json.loads(content)
        write(
            path, json.dumps({**document, "settings": {**document["settings"], "seed": 9}}).encode()
        )

    monkeypatch.setattr(job, "write_file", write_and_lose)
    with pytest.raises(PipelineError, match=r"seed: .* started with 9, and this command uses 0"):
        generate(sharded(place))
    assert not list(place.path.glob("*.tar"))


@pytest.mark.parametrize("name", ["thesis.tex", "images/"])
def test_a_place_that_holds_something_else_is_refused_and_untouched(
    place: Folder, name: str
) -> None:
    place.path.mkdir()
    if name.endswith("/"):
        (place.path / name).mkdir()
    else:
        (place.path / name).touch()
    with pytest.raises(PipelineError, match=rf"holds something else \({name.rstrip('/')}\)"):
        generate(sharded(place))
    assert [path.name for path in place.path.iterdir()] == [name.rstrip("/")]


LOST = [
    "stripes-02.tar", "index.npy", "sizes.json", "_info.json", "wids.json", "manifest.json",
    "stripes-00.tar index.npy", "manifest.json stripes-01.tar",
]  # fmt: skip


@pytest.mark.parametrize("how", ["lost", "empty"])
@pytest.mark.parametrize("names", LOST)
def test_the_same_command_heals_a_complete_set(
    place: Folder, unbroken: dict[str, bytes], names: str, how: str
) -> None:
    generate(sharded(place))
    for name in names.split():
        (place.path / name).unlink()
        if how == "empty" and name != "manifest.json":
            (place.path / name).touch()
    assert generate(sharded(place)).complete
    assert tree(place.path) == unbroken


def test_only_the_shards_that_are_lost_are_generated_again(place: Folder) -> None:
    generate(sharded(place))
    (place.path / "stripes-01.tar").unlink()
    assert generate(sharded(place)).generated == 3


def test_merge_heals_the_books_and_names_lost_shards(
    place: Folder, unbroken: dict[str, bytes]
) -> None:
    generate(sharded(place))
    (place.path / "index.npy").unlink()
    assert merge(place).complete
    assert tree(place.path) == unbroken
    (place.path / "stripes-01.tar").unlink()
    lost = merge(place)
    assert (lost.complete, numbers(lost)) == (False, (1,))
    # What it advises: the command that began the set, then merge.
    for task in range(2):
        generate(sharded(place, task_index=task, num_tasks=2))
    assert merge(place).complete
    assert tree(place.path) == unbroken


def test_a_tar_with_other_bytes_is_not_taken_over_when_a_set_is_healed(
    place: Folder, unbroken: dict[str, bytes]
) -> None:
    generate(sharded(place))
    path = place.path / "stripes-03.tar"
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    (place.path / "index.npy").unlink()
    assert generate(sharded(place)).complete
    assert tree(place.path) == unbroken


def test_another_command_does_not_heal_a_set(place: Folder) -> None:
    generate(sharded(place))
    (place.path / "stripes-01.tar").unlink()
    before = tree(place.path)
    with pytest.raises(PipelineError, match=r"seed: .* started with 0"):
        generate(sharded(place, Stripes(seed=1)))
    assert tree(place.path) == before


def test_a_damaged_request_is_told(place: Folder) -> None:
    generate(sharded(place, num_tasks=2))
    (place.path / ".work" / "request.json").write_text("{")
    for ask in (lambda: generate(sharded(place)), lambda: merge(place)):
        with pytest.raises(PipelineError, match=r"request\.json is damaged"):
            ask()


@pytest.mark.parametrize(
    "where",
    ["http://host/set", "https://host/set", "memory://set", "s3://", "a::s3://b"],
)
def test_an_address_that_cannot_be_written_is_refused(where: str) -> None:
    with pytest.raises(PipelineError, match=r"cannot be written; .* s3://BUCKET"):
        open_output(where)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"n": 0}, "n is 0"), ({"shard_size": 0}, "shard_size 0"), ({"format": "gif"}, "'gif'")],
)
def test_a_request_refuses_nonsense(place: Folder, changes: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=message):
        sharded(place, **changes).job()


def test_missing_shards_are_named_as_ranges(place: Folder) -> None:
    asked = sharded(place, n=11, shard_size=1).job()
    missing = (range(4), range(7, 8), range(9, 11))
    result = JobResult(n=11, missing=missing, complete=False)
    text, _ = describe_shards(asked, result, complete_now=True)
    assert "shards 0-3, 7, 9-10 are missing" in text


# --- the commands --------------------------------------------------------------------------------

SMALL = ("--size", "24x16", "--samples-per-pixel", "4", "--jobs", "1", "--shard-size", "2")


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(gen.main, [str(each) for each in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def fractals(out: object, *arguments: object) -> Result:
    return run("fractals", "--n", 5, "--to-shards", "--out", out, *SMALL, *arguments)


@pytest.mark.slow
def test_tasks_and_merge_make_what_one_command_makes(tmp_path: Path) -> None:
    alone = fractals(tmp_path / "alone", "--json")
    assert alone.exit_code == 0, alone.output
    assert json.loads(alone.stdout) == {
        "location": str(tmp_path / "alone"), "images": 5, "generated": 5, "shards": 3,
        "missing": [],
        "complete": True,
    }  # fmt: skip
    first = fractals(tmp_path / "set", "--task-index", 1, "--num-tasks", 3)
    assert first.exit_code == 0, first.output
    assert "1 of 3 shards; other tasks generate shards 0, 2" in first.stdout
    told = run("merge", tmp_path / "set")
    assert "1 of 3 shards; shards 0, 2 are missing" in told.stdout
    merged = run("merge", tmp_path / "set", "--json")
    assert merged.exit_code == 1
    assert json.loads(merged.stdout)["missing"] == [[0, 0], [2, 2]]
    for task in (0, 2):
        last = fractals(tmp_path / "set", "--task-index", task, "--num-tasks", 3)
    assert f"3 of 3 shards; run pixmix-gen merge {tmp_path / 'set'} to complete" in last.stdout
    merged = run("merge", tmp_path / "set")
    assert (merged.exit_code, merged.stdout) == (
        0,
        f"{tmp_path / 'set'}: complete; 5 images in 3 shards\n",
    )
    assert tree(tmp_path / "set") == tree(tmp_path / "alone")


def test_a_set_of_files_is_no_place_for_shards(tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert run("fractals", "--n", 2, "--out", out, "--size", "24x16", "--jobs", 1).exit_code == 0
    for refused in (fractals(out), run("merge", out)):
        assert refused.exit_code == 1
        assert f"{out} holds image files and no shards; choose another" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shard-size", "10"), "--shard-size applies to shards"),
        (("--out", "s3://bucket/set"), "--out s3://bucket/set is an address, .* --to-shards"),
        (
            ("--to-shards", "--contact-sheet", "sheet.png"),
            "pixmix-show set DIR --contact-sheet sheet.png",
        ),
        (("--to-shards", "--shard-size", "0"), "--shard-size"),
    ],
)
def test_wrong_usage_is_told_and_exits_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("fractals", *arguments)
    assert result.exit_code == 2
    assert message.partition(", .*")[0] in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_merged_is_one_line(tmp_path: Path) -> None:
    result = run("merge", tmp_path)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "holds no shards of pixmix-gen" in result.stderr
    result = fractals("http://host/set")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


def test_verify_of_shards_points_to_pixmix_shard(place: Folder) -> None:
    generate(sharded(place))
    result = run("verify", place.path)
    assert result.exit_code == 1
    assert "holds shards, not image files; check them with pixmix-shard" in result.stderr


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_the_same_command_continues(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    command = [
        *(sys.executable, "-m", "pipelines.cli.gen", "fractals", "--n", "400", "--to-shards"),
        *("--shard-size", "4", "--out", str(folder), "--size", "48x32", "--jobs", "2"),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    interrupted = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, process_group=0
    )
    done = folder / ".work" / "done"
    while not list(done.glob("*.jsonl")):
        assert interrupted.poll() is None
        time.sleep(0.05)
    os.killpg(interrupted.pid, signal.SIGINT)
    _, errors = interrupted.communicate()
    assert interrupted.returncode == 130
    assert errors.splitlines()[-1] == "Error: interrupted; run the same command again to resume"
    # The records name exactly the tars: what was in hand became whole.
    recorded = {json.loads(path.read_bytes())["file"] for path in done.glob("*.jsonl")}
    assert recorded == {path.name for path in folder.glob("*.tar")}
    assert 0 < len(recorded) < 100
    result = subprocess.run(
        [*command, "--json"], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout)["generated"] == 400 - 4 * len(recorded)
