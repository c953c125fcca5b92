"""A tar is read unambiguously, or rejected in one line."""

import io
import pickle
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import PipelineError
from pipelines.loading.dataset import ShardDataset
from pipelines.shards.format import open_shards
from pipelines.shards.tar import scan_tar
from shard_commands import PNG, Evil, plain_tar, run


@pytest.mark.parametrize(
    ("members", "label"),
    [
        ([("a.png", PNG), ("a.cls", b"7")], 7),
        ([("a.png", PNG), ("a.json", b'{"label": 5}')], 5),
        ([("a.png", PNG), ("a.json", b'{"caption": "x"}'), ("a.txt", b"3\n")], 3),
        ([("a.png", PNG), ("a.txt", b"a cat, 3 years old")], -1),
        ([("a.v1.png", PNG), ("a.v1.cls", b"4")], 4),
        ([("a.PNG", PNG)], -1),
    ],
)
def test_labels_are_read_from_cls_json_and_txt(
    tmp_path: Path, members: list[tuple[str, bytes]], label: int
) -> None:
    tar = plain_tar(tmp_path / "x.tar", members)
    assert run("index", tar).exit_code == 0
    assert open_shards(tmp_path).samples["label"].tolist() == [label]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("img.v1.png", PNG), ("img.v2.png", PNG)], "a key ends at the first dot"),
        ([("a.png", PNG), ("b.png", PNG), ("a.cls", b"1")], "are not consecutive"),
        ([("a.png", PNG), ("a.png", PNG)], "twice"),
        ([("a.png", PNG), ("a.cls", b"cat")], "is not a label"),
        ([("a.png", PNG), ("a.cls", b"-1")], "has label -1"),
        ([("a.png", PNG), ("a.cls", b"9" * 5000)], "is not a label"),
        ([("a.png", PNG), ("a.cls", b"0" * 2**21)], "too many for a label"),
        ([("a.png", PNG), ("a.json", b"[" * 100_000)], "is not a label"),
        ([("a.png", PNG), ("a.PNG", PNG)], "twice"),
        ([("a.png", PNG), ("a.jpg", PNG)], "a key ends at the first dot"),
        ([("a.png", b"")], "hold no sample with an image"),
        ([("../a.png", PNG)], "a name that leads out of its folder"),
        ([("/etc/a.png", PNG)], "a name that leads out of its folder"),
        ([("a.txt", b"no image")], "hold no sample with an image"),
        ([], "hold no sample with an image"),
    ],
)
def test_tars_that_readers_would_misread_are_rejected(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    result = run("index", plain_tar(tmp_path / "x.tar", members))
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_rejected(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(PipelineError, match="and not a regular file"):
        list(scan_tar(tmp_path / "x.tar"))


def test_pickles_in_a_tar_are_reported_and_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = pickle.dumps(Evil())
    members = [("a.png", PNG), ("a.pkl", evil), ("b.png", PNG), ("b.pth", evil)]
    tar = plain_tar(tmp_path / "set" / "x.tar", members)
    result = run("index", tar)
    assert result.exit_code == 0
    assert "2 members: never read, because they could run code (as a.pkl)" in result.stdout
    opened = open_shards(tar.parent)
    assert [ShardDataset(opened).read(i) for i in range(2)] == [PNG, PNG]
    assert not (tmp_path / "pickle-was-run").exists()


def test_an_empty_image_is_skipped_and_reported(tmp_path: Path) -> None:
    tar = plain_tar(tmp_path / "x.tar", [("a.png", b""), ("b.png", PNG)])
    result = run("index", tar)
    assert "1 members: ignored, because the image is empty (as a)" in result.stdout
    assert len(open_shards(tmp_path)) == 1
    assert run("verify", tmp_path, "--decode", "all").exit_code == 0


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_all_tar_formats_are_read(tmp_path: Path, format: int) -> None:
    name = "d\N{LATIN SMALL LETTER E WITH ACUTE}/" * 60 + "a"
    with tarfile.open(tmp_path / "x.tar", "w", format=format) as tar:
        for suffix, content in ((".png", PNG), (".cls", b"6")):
            info = tarfile.TarInfo(name + suffix)
            info.size, info.mtime = len(content), 1.5
            tar.addfile(info, io.BytesIO(content))
    with tarfile.open(tmp_path / "x.tar") as tar:
        theirs = [(m.name, m.offset_data, m.size) for m in tar]
    assert [(m.name, m.offset, m.size) for m in scan_tar(tmp_path / "x.tar")] == theirs
    assert run("index", tmp_path / "x.tar").exit_code == 0
    assert open_shards(tmp_path).samples["label"].tolist() == [6]


@given(st.data())
def test_a_tar_with_changed_bytes_is_read_or_rejected_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    content = bytearray(plain_tar(folder / "x.tar", [("a.png", PNG), ("a.cls", b"1")]).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "x.tar").write_bytes(content)
    result = run("index", folder / "x.tar")
    assert result.exit_code in (0, 1)
    if result.exit_code == 1:
        assert "Error: " in result.stderr


def test_a_tar_that_is_cut_off_anywhere_is_rejected(tmp_path: Path) -> None:
    """Other readers accept a cut between two members, or after the first empty block."""
    whole = plain_tar(tmp_path / "x.tar", [("a.png", PNG), ("a.cls", b"1")])
    content = whole.read_bytes()
    n_members = len(list(scan_tar(whole)))
    assert n_members == 2
    end = content.rstrip(b"\0")
    last = -(-len(end) // 512) * 512 + 1024
    cut = tmp_path / "cut.tar"
    for length in {*range(0, last, 512), *range(1, last, 397), last - 1}:
        cut.write_bytes(content[:length])
        with pytest.raises(PipelineError, match=r"cut\.tar"):
            list(scan_tar(cut))
    cut.write_bytes(content[:last])
    assert len(list(scan_tar(cut))) == 2


def test_a_damaged_header_and_joined_tars_are_rejected(tmp_path: Path) -> None:
    content = bytearray(plain_tar(tmp_path / "x.tar", [("a.png", PNG)]).read_bytes())
    joined = tmp_path / "joined.tar"
    joined.write_bytes(content + content)
    with pytest.raises(PipelineError, match="has data after its end"):
        list(scan_tar(joined))
    content[3] ^= 1
    joined.write_bytes(content)
    with pytest.raises(PipelineError, match="has no valid header at byte 0"):
        list(scan_tar(joined))


def test_a_size_with_many_digits_is_rejected(tmp_path: Path) -> None:
    for digits in (19, 21, 5000, 100_000):
        with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            info = tarfile.TarInfo("k.jpg")
            info.size, info.pax_headers = 3, {"size": "9" * digits}
            tar.addfile(info, io.BytesIO(b"abc"))
        with pytest.raises(PipelineError, match=r"x\.tar"):
            list(scan_tar(tmp_path / "x.tar"))
