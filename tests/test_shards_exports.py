"""The side files of shards, for readers that do not use the manifest."""

import hashlib
import json
import tarfile
from pathlib import Path

from pipelines.shards.format import open_shards
from shard_commands import made, run


def test_open_clip_and_timm_read_the_shards(shards: Path) -> None:
    """Both group consecutive members by the part of the name before the first dot."""
    sizes = json.loads((shards / "sizes.json").read_text())
    info = json.loads((shards / "_info.json").read_text())["splits"]["train"]
    wids = json.loads((shards / "wids.json").read_text())
    assert info["filenames"] == sorted(sizes)
    assert info["num_samples"] == 23
    for name, length, entry in zip(
        info["filenames"], info["shard_lengths"], wids["shardlist"], strict=True
    ):
        path = shards / name
        samples: dict[str, set[str]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, extension = member.name.split(".", 1)
                assert extension == extension.lower()
                samples.setdefault(key, set()).add(extension)
        assert len(samples) == length == sizes[name] == entry["nsamples"]
        assert all(each == {"cls", "jpg", "json"} for each in samples.values())
        assert entry["url"] == name
        assert entry["filesize"] == path.stat().st_size
        assert entry["md5sum"] == hashlib.md5(path.read_bytes()).hexdigest()


def test_the_dali_index_has_the_offset_and_size_of_each_member(
    image_folder: Path, tmp_path: Path
) -> None:
    out = made("imagefolder", image_folder, tmp_path / "out", "--num-shards", 2, "--dali-index")
    for path in out.glob("*.tar"):
        content = path.read_bytes()
        first, *lines = path.with_suffix(".idx").read_text().splitlines()
        assert first == f"v1.2 {len(lines)}"
        with tarfile.open(path) as tar:
            places = {m.name: (m.offset_data, m.size) for m in tar}
        for line in lines:
            words = line.split(" ")
            for extension, offset, size, name in zip(*[iter(words)] * 4, strict=True):
                assert places.pop(name) == (int(offset), int(size))
                assert name.endswith(f".{extension}")
        assert not places
        assert content


def test_splits_are_written_to_folders_that_timm_finds(image_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "imagenet"
    for split in ("train", "val"):
        for folder in image_folder.iterdir():
            target = source / split / folder.name
            target.mkdir(parents=True)
            (target / "0.JPEG").write_bytes(next(folder.iterdir()).read_bytes())
    out = made("imagefolder", source, tmp_path / "out", "--name", "imagenet1k")
    splits = json.loads((out / "_info.json").read_text())["splits"]
    assert {name: info["filenames"] for name, info in splits.items()} == {
        "train": ["train/imagenet1k-train-00.tar"],
        "validation": ["val/imagenet1k-validation-00.tar"],
    }
    assert len(open_shards(out / "train")) == len(open_shards(out / "val")) == 3
    result = run("imagefolder", source, tmp_path / "other", "--split", "test")
    assert result.exit_code == 1
    assert "has no split 'test'; use one of train, val" in result.stderr
