"""Source images are scanned before they are sharded; tars of other programs are indexed."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipelines.loading.dataset import ShardDataset
from pipelines.shards.format import open_shards
from shard_commands import IMAGES, PNG, contents_of, plain_tar, run
from shard_sets import encoded


def test_tars_written_by_webdataset_are_indexed(tmp_path: Path) -> None:
    for number in range(2):
        with webdataset.TarWriter(str(tmp_path / f"set-{number}.tar")) as tar:
            for i in range(3 + number):
                tar.write({"__key__": f"a/b c{i}", "png": PNG, "cls": i + 10 * number})
    result = run("index", *sorted(tmp_path.glob("*.tar")))
    assert result.exit_code == 0, result.output
    assert "7 samples in 2 shards, 7 with a label" in result.stdout
    opened = open_shards(tmp_path)
    assert opened.samples["label"].tolist() == [0, 1, 2, 10, 11, 12, 13]
    assert opened.key(1) == "a/b c1"
    assert ShardDataset(opened).read(5) == PNG
    assert run("verify", tmp_path, "--decode", "all").exit_code == 0


def test_a_brace_pattern_selects_tars(tmp_path: Path) -> None:
    for i in range(12):
        plain_tar(tmp_path / f"x-{i:02}.tar", [(f"{i}.png", PNG), (f"{i}.cls", str(i).encode())])
    assert run("index", tmp_path / "x-{00..11}.tar").exit_code == 0
    assert open_shards(tmp_path).samples["label"].tolist() == list(range(12))
    part = open_shards(tmp_path / "x-{10..11}.tar")
    assert part.samples["label"].tolist() == [10, 11]
    assert part.hash != open_shards(tmp_path).hash
    result = run("index", tmp_path / "x-{5..3}.tar")
    assert result.exit_code == 1
    assert "{5..3} in x-{5..3}.tar is not a range" in result.stderr


def test_indexing_tars_never_overwrites_other_files(tmp_path: Path) -> None:
    tars = [plain_tar(tmp_path / f"{name}.tar", [("a.png", PNG)]) for name in ("train", "val")]
    np.save(tmp_path / "index.npy", np.arange(9))
    result = run("index", tars[0])
    assert result.exit_code == 1
    assert "index.npy is not an index of pixmix" in result.stderr
    assert np.load(tmp_path / "index.npy").tolist() == list(range(9))
    (tmp_path / "index.npy").unlink()
    assert run("index", tars[0]).exit_code == 0
    # A killed run leaves an index without a manifest.
    (tmp_path / "manifest.json").unlink()
    assert run("index", tars[0]).exit_code == 0
    before = contents_of(tmp_path)
    result = run("index", tars[1])
    assert result.exit_code == 1
    assert "is of a dataset that also has train.tar" in result.stderr
    assert contents_of(tmp_path) == before
    assert run("index", *tars).exit_code == 0
    assert len(open_shards(tmp_path)) == 2


def test_tars_of_two_folders_and_finished_sets_are_rejected(tmp_path: Path, copy: Path) -> None:
    tars = [plain_tar(tmp_path / part / "x.tar", [("a.png", PNG)]) for part in "ab"]
    result = run("index", *tars)
    assert result.exit_code == 1
    assert "are in different folders" in result.stderr
    result = run("index", *copy.glob("*.tar"))
    assert result.exit_code == 1
    assert "belongs to a dataset that pixmix-shard made" in result.stderr


@pytest.fixture
def nonstandard_source(tmp_path: Path) -> Path:
    folder = tmp_path / "nonstandard" / "a"
    folder.mkdir(parents=True)
    image = Image.fromarray(IMAGES[0])
    image.save(folder / "0.jpg", quality=95)
    image.convert("CMYK").save(folder / "1.jpg", quality=95)
    (folder / "2.JPEG").write_bytes(encoded(IMAGES[1], "png"))
    return folder.parent


@pytest.mark.parametrize("policy", ["keep", "convert", "skip", "raise"])
def test_nonstandard_files_are_kept_converted_skipped_or_rejected_and_reported(
    nonstandard_source: Path, tmp_path: Path, policy: str
) -> None:
    out = tmp_path / "out"
    result = run("imagefolder", nonstandard_source, out, "--on-nonstandard", policy, "--jobs", 1)
    if policy == "raise":
        assert result.exit_code == 1
        assert "2 of 3 images are nonstandard" in result.stderr
        return
    assert result.exit_code == 0, result.output
    opened, reader = open_shards(out), ShardDataset(open_shards(out))
    contents = {int(opened.key(i)): bytes(reader.read(i)) for i in range(len(opened))}
    originals = [path.read_bytes() for path in sorted((nonstandard_source / "a").iterdir())]
    if policy == "keep":
        assert contents == dict(enumerate(originals))
    elif policy == "skip":
        assert contents == {0: originals[0]}
    else:
        assert contents[0] == originals[0]
        for content in contents.values():
            with Image.open(io.BytesIO(content)) as image:
                assert (image.format, image.mode) == ("JPEG", "RGB")
    lines = [json.loads(line) for line in (out / "scan.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["a/1.jpg", "a/2.JPEG"]
    assert sum(opened.settings["scan"]["nonstandard"].values()) == 2
    assert "nonstandard: " in result.output


def test_files_that_cannot_be_decoded_are_rejected_or_skipped_and_reported(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "a"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(encoded(IMAGES[0]))
    (folder / "1.png").write_bytes(encoded(IMAGES[1])[:-200])
    (folder / "2.jpg").write_bytes(b"")
    out = tmp_path / "out"
    result = run("imagefolder", folder.parent, out, "--jobs", 1)
    assert result.exit_code == 1
    assert "2 of 3 images are undecodable" in result.stderr
    assert "--on-decode-error skip" in result.stderr
    result = run("imagefolder", folder.parent, out, "--on-decode-error", "skip", "--jobs", 1)
    assert result.exit_code == 0, result.output
    assert "2 images skipped" in result.output
    assert open_shards(out).settings["scan"]["undecodable"] == {"damaged": 1, "empty": 1}
    assert len(open_shards(out)) == 1


def test_a_source_without_a_decodable_image_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "source" / "a").mkdir(parents=True)
    (tmp_path / "source" / "a" / "0.png").write_bytes(b"no image")
    arguments = ["imagefolder", tmp_path / "source", tmp_path / "out", "--on-decode-error", "skip"]
    result = run(*arguments, "--jobs", 1)
    assert result.exit_code == 1
    assert "all of the 1 images are skipped" in result.stderr
