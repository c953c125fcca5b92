"""Sources of shards and mixing sets: classes, splits, names, and files that are not regular."""

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageOps

from pipelines.cli import shard as command
from pipelines.cli.show import main as show
from pipelines.errors import PipelineError
from pipelines.loading.dataset import ShardDataset
from pipelines.loading.mixing_set import open_mixing_set
from pipelines.shards.format import open_shards
from pipelines.shards.images import (
    MAX_FILE_BYTES,
    image_files,
    read_image,
)
from pipelines.shards.sources import ImageFolderSource
from shard_commands import (
    IMAGES,
    PNG,
    folders_of_images,
    made,
    run,
    write_file,
)
from shard_sets import encoded

pytestmark = pytest.mark.usefixtures("in_this_process")


IGNORED_IMAGES = (
    ".ipynb_checkpoints/0-checkpoint.png", ".git/x.png", "__MACOSX/a/._0.png", "a/._0.png",
    "a/.hidden/0.png", "@eaDir/0.png",
)  # fmt: skip


SYSTEM_FILES = ("a/.DS_Store", "a/Thumbs.db", "b/desktop.ini")


def folder_of(root: Path, classes: str = "ab", n: int = 3) -> Path:
    for i in range(n):
        for name in classes:
            write_file(root / name / f"{i}.png", encoded(IMAGES[i]))
    return root


def with_ignored_files(root: Path) -> Path:
    folder_of(root)
    for name in IGNORED_IMAGES:
        write_file(root / name, encoded(IMAGES[9]))
    for name in SYSTEM_FILES:
        write_file(root / name, b"not an image")
    return root


def test_hidden_folders_and_files_are_not_classes_or_images(tmp_path: Path) -> None:
    clean = made("imagefolder", folder_of(tmp_path / "clean"), tmp_path / "x", "--name", "s")
    result = run(
        "imagefolder", with_ignored_files(tmp_path / "source"), tmp_path / "out", "--name", "s"
    )
    assert result.exit_code == 0, result.output
    opened = open_shards(tmp_path / "out")
    assert opened.classes == ("a", "b")
    assert [shard.sha256 for shard in opened.shards] == [
        shard.sha256 for shard in open_shards(clean).shards
    ]
    lines = [line for line in result.stderr.splitlines() if "ignored" in line]
    assert len(lines) == 1
    assert "ignored 9 hidden" in lines[0]


def test_hidden_folders_are_not_splits(tmp_path: Path) -> None:
    for split in ("train", "val"):
        folder_of(tmp_path / "source" / split)
    write_file(tmp_path / "source" / "__MACOSX" / "train" / "a" / "._0.png", b"x")
    made("imagefolder", tmp_path / "source", tmp_path / "out")
    assert open_shards(tmp_path / "out" / "val").classes == ("a", "b")


def test_mixing_sets_have_no_hidden_images(tmp_path: Path) -> None:
    source = with_ignored_files(tmp_path / "source")
    assert len(image_files(source)) == 6
    assert len(open_mixing_set(source, 16, cache_dir=tmp_path / "cache")) == 6
    assert len(open_shards(made("mixing", source, tmp_path / "out"))) == 6
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(source, ".")
    assert len(open_mixing_set(archive, 16, cache_dir=tmp_path / "cache")) == 6
    assert len(open_shards(made("mixing", archive, tmp_path / "of-tar"))) == 6
    result = CliRunner().invoke(show, ["set", str(source), "--json"])
    assert json.loads(result.stdout)["images"] == 6


def test_hidden_members_of_tars_are_not_samples(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("./0.png", "./._0.png", "__MACOSX/0.png", "1.png", ".cache/2.png"):
            info = tarfile.TarInfo(name)
            info.size = len(encoded(IMAGES[0]))
            tar.addfile(info, io.BytesIO(encoded(IMAGES[0])))
    result = run("index", tmp_path / "x.tar", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["n_samples"] == 2
    assert sum(json.loads(result.stdout)["ignored"].values()) == 3


@pytest.mark.parametrize("option", ["--on-decode-error", "--on-nonstandard"])
def test_a_class_whose_images_are_all_skipped_is_rejected(tmp_path: Path, option: str) -> None:
    source = folder_of(tmp_path / "source")
    content = b"no image" if option == "--on-decode-error" else encoded(IMAGES[0], "jpg")
    write_file(source / "c" / "0.png", content)
    result = run("imagefolder", source, tmp_path / "out", option, "skip", "--jobs", 1)
    assert result.exit_code == 1
    assert "'c'" in result.stderr
    write_file(source / "c" / "1.png", encoded(IMAGES[1]))
    made("imagefolder", source, tmp_path / "out", option, "skip")


def test_composed_and_decomposed_names_are_one_class(tmp_path: Path) -> None:
    """Systems such as macOS and Linux encode the same name differently."""
    for split, form in (("train", "NFC"), ("val", "NFD")):
        for name in ("z", "\u00e9t\u00e9", "a"):
            folder = tmp_path / "source" / split / unicodedata.normalize(form, name)
            write_file(folder / "0.png", encoded(IMAGES[0]))
    out = made("imagefolder", tmp_path / "source", tmp_path / "out")
    train, val = (open_shards(out / split) for split in ("train", "val"))
    assert train.classes == val.classes == ("a", "z", "\u00e9t\u00e9")
    assert train.samples["label"].tolist() == val.samples["label"].tolist()


def test_two_folders_with_one_class_name_are_rejected(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source")
    for form in ("NFC", "NFD"):
        folder = source / unicodedata.normalize(form, "\u00e9t\u00e9")
        write_file(folder / "0.png", encoded(IMAGES[0]))
    result = run("imagefolder", source, tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 1
    assert "\u00e9t\u00e9" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_reports_and_tars_support_names_of_any_bytes(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system only supports names in UTF-8")
    for i in range(3):
        (folder / os.fsdecode(b"\xe9%d.png" % i)).write_bytes(encoded(IMAGES[i]))
    (folder / "broken.png").write_bytes(b"")
    report = tmp_path / "report.html"
    script = [sys.executable, "-m", "pipelines.cli.show", "set", str(folder)]
    for more, variables in ((["--html", str(report)], {}), ([], {"LC_ALL": "C"})):
        done = subprocess.run(
            [*script, *more],
            env=os.environ | variables | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert "caf" in report.read_text(encoding="utf-8")
    with tarfile.open(folder / "x.tar", "w") as tar:
        info = tarfile.TarInfo("0.png")
        info.size = len(encoded(IMAGES[0]))
        tar.addfile(info, io.BytesIO(encoded(IMAGES[0])))
    assert run("index", folder / "x.tar").exit_code == 0
    (folder / "x.tar").unlink()
    made("mixing", folder, tmp_path / "out", "--on-decode-error", "skip")


def make_irregular_file(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            before = Path.cwd()
            os.chdir(path.parent)  # A socket's path has at most 107 bytes.
            try:
                listener.bind(path.name)
            finally:
                os.chdir(before)
    elif kind == "nothing":
        path.symlink_to(path.parent / "nowhere")
    elif kind == "itself":
        path.symlink_to(path)
    else:
        path.touch()
        os.truncate(path, MAX_FILE_BYTES + 1)


KINDS = ["pipe", "device", "socket", "nothing", "itself", "huge"]


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_read_and_others_are_reported(tmp_path: Path, kind: str) -> None:
    source = folder_of(tmp_path / "source")
    irregular = source / "a" / "x.png"
    make_irregular_file(irregular, kind)
    for command_name in ("imagefolder", "mixing"):
        result = run(command_name, source, tmp_path / command_name, "--jobs", 1)
        assert result.exit_code == 1
        assert "a/x.png" in result.stderr
        options = ["--on-decode-error", "skip"]
        out = made(command_name, source, tmp_path / f"{command_name} 2", *options)
        assert len(open_shards(out)) == 6
    with pytest.raises(PipelineError, match=r"x\.png"):
        read_image(irregular)
    cache = tmp_path / "cache"
    with pytest.raises(PipelineError, match=r"x\.png"):
        open_mixing_set(source, 16, cache_dir=cache)
    assert len(open_mixing_set(source, 16, cache_dir=cache, on_decode_error="skip")) == 6
    result = CliRunner().invoke(show, ["set", str(source), "--json"])
    assert result.exit_code == 0
    assert str(irregular) in result.stdout


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_no_command_waits_for_a_file_that_is_not_regular(tmp_path: Path, kind: str) -> None:
    irregular = tmp_path / "x"
    make_irregular_file(irregular, kind)
    manifest = folder_of(tmp_path / "set") / "manifest.json"
    make_irregular_file(manifest, kind)
    (tmp_path / "set out").mkdir()
    make_irregular_file(tmp_path / "set out" / "manifest.json", kind)
    out = tmp_path / "out"
    for program, arguments in (
        (command.main, ["index", irregular]),
        (command.main, ["mixing", irregular, out]),
        (command.main, ["cifar10", irregular, out]),
        (show, ["set", irregular]),
        (show, ["genome", irregular, "--out", tmp_path / "g.png"]),
        (show, ["mixed", irregular, "--no-mixing-set", "--out", tmp_path / "m.png"]),
        (show, ["set", tmp_path / "set"]),
        (show, ["genome", tmp_path / "set", "--index", 0, "--out", tmp_path / "g.png"]),
        (command.main, ["verify", tmp_path / "set"]),
        (command.main, ["imagefolder", tmp_path / "set", tmp_path / "set out"]),
    ):
        result = CliRunner().invoke(program, [str(each) for each in arguments])
        assert result.exit_code in (1, 2), (arguments, result.output)
        assert isinstance(result.exception, SystemExit), result.exception
    assert not out.exists()


def oriented(image: np.ndarray, value: int, format: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    file = io.BytesIO()
    Image.fromarray(image).save(file, format, exif=exif, quality=95)
    return file.getvalue()


@pytest.mark.parametrize("value", range(1, 9))
def test_exif_transpose_rotates_images_as_pillow_does(tmp_path: Path, value: int) -> None:
    content = oriented(IMAGES[0], value)
    source = write_file(tmp_path / "source" / "a" / "0.jpg", content).parents[1]
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    for command_name in ("imagefolder", "mixing"):
        plain = made(command_name, source, tmp_path / f"plain {command_name}")
        assert bytes(ShardDataset(open_shards(plain)).read(0)) == content
        assert "exif_transpose" not in open_shards(plain).settings
        opened = open_shards(
            made(command_name, source, tmp_path / command_name, "--exif-transpose")
        )
        turned = bytes(ShardDataset(opened).read(0))
        assert opened.settings["exif_transpose"] is True
        assert (turned == content) == (value == 1)
        assert Image.open(io.BytesIO(turned)).getexif().get(0x0112, 1) == 1
        found = np.asarray(Image.open(io.BytesIO(turned))).astype(int)
        assert found.shape == upright.shape
        assert np.abs(found - upright).mean() < 3
        counts = {} if value == 1 else {f"EXIF orientation {value}": 1}
        assert opened.settings["scan"].get("rotated", {}) == counts
        assert run("verify", opened.location).exit_code == 0
    cache = tmp_path / "cache"
    side = min(upright.shape[:2])
    whole = open_mixing_set(source, side, cache_dir=cache, exif_transpose=True)[0]
    assert np.array_equal(whole, upright)
    assert np.array_equal(
        open_mixing_set(source, side, cache_dir=cache)[0],
        np.asarray(Image.open(io.BytesIO(content))),
    )


def test_a_link_to_itself_is_not_a_class(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "src" / name).mkdir(parents=True)
        (tmp_path / "src" / name / "0.png").write_bytes(encoded(IMAGES[0]))
    (tmp_path / "src" / "loop").symlink_to("loop")
    made("imagefolder", tmp_path / "src", tmp_path / "out")
    assert run("verify", tmp_path / "out").exit_code == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["classes"] == ["a", "b"]


@pytest.mark.parametrize("name", ["valid", "dev", "eval"])
def test_all_common_names_of_splits_are_recognized(tmp_path: Path, name: str) -> None:
    source = folders_of_images(tmp_path / "set", "train/a", f"{name}/a")
    out = made("imagefolder", source, tmp_path / "out", "--jobs", 1)
    assert len(open_shards(out / name)) == 1
    files = json.loads((out / "_info.json").read_text())["splits"]
    assert set(files) == {"train", "validation" if name == "valid" else name}


def test_valid_and_invalid_are_classes(tmp_path: Path) -> None:
    source = folders_of_images(tmp_path / "set", "invalid", "valid")
    out = made("imagefolder", source, tmp_path / "out", "--jobs", 1)
    assert open_shards(out).classes == ("invalid", "valid")


def test_a_requested_split_may_be_beside_other_folders(tmp_path: Path) -> None:
    source = folders_of_images(tmp_path / "set", "valid/a", "cat")
    out = made("imagefolder", source, tmp_path / "out", "--split", "valid", "--jobs", 1)
    assert open_shards(out / "valid").classes == ("a",)


def test_splits_beside_other_folders_are_rejected_naming_both(tmp_path: Path) -> None:
    source = folders_of_images(tmp_path / "set", "cat", "dog/test", "test/a", ".cache/a")
    result = run("imagefolder", source, tmp_path / "out")
    assert result.exit_code == 1
    assert "holds splits (test) beside other folders (cat, dog); if all" in result.stderr
    assert not (tmp_path / "out").exists()
    assert len(
        open_shards(made("imagefolder", source, tmp_path / "out", "--split", "test") / "test")
    )


def test_a_test_split_without_labels_is_skipped_and_reported(tmp_path: Path) -> None:
    source = folders_of_images(tmp_path / "set", "train/a", "val/a", "test")
    result = run("imagefolder", source, tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 0, result.output
    assert f"{source / 'test'} is skipped: it has no class folders" in result.stderr
    splits = json.loads((tmp_path / "out" / "_info.json").read_text())["splits"]
    assert set(splits) == {"train", "validation"}
    result = run("imagefolder", source, tmp_path / "out", "--split", "test")
    assert result.exit_code == 1
    assert "has no class folders" in result.stderr


def test_all_splits_are_checked_before_the_first_is_written(tmp_path: Path) -> None:
    source = folders_of_images(tmp_path / "set", "train/a", "val/a")
    (source / "val" / "b").mkdir()
    result = run("imagefolder", source, tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 1
    assert "holds no images, so its class would be empty" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["imagefolder", "mixing"])
def test_a_link_to_a_folder_above_adds_no_images(tmp_path: Path, kind: str) -> None:
    source = folders_of_images(tmp_path / "set", "a/deeper", "b")
    (source / "a" / "self").symlink_to(source / "a")
    (source / "a" / "deeper" / "set").symlink_to(source)
    (source / "b" / "other").symlink_to(tmp_path / "other")
    (source / "b" / "circle").symlink_to("circle")
    folders_of_images(tmp_path / "other", "c")
    assert len(open_shards(made(kind, source, tmp_path / "out", "--jobs", 1))) == 3


def test_the_order_of_an_image_folder_is_that_of_torchvision(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    names = ("a", "a/b", "a/b/c", "a/b-c", "a/B", "a/b.d/e", "b/10", "b/9")
    root = tmp_path / "set"
    for name in names:
        folders_of_images(root, name)
    expected = [
        (Path(path).relative_to(root).as_posix(), label)
        for path, label in datasets.ImageFolder(root).samples
    ]
    assert [(item.name, item.label) for item in ImageFolderSource(folder=root).items()] == expected
    assert len(expected) == 8


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
@pytest.mark.parametrize("kind", ["imagefolder", "mixing"])
def test_image_folders_support_names_of_any_bytes(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "source" / os.fsdecode(b"caf\xe9")
    folder.mkdir(parents=True)
    (folder / "a b\n\N{CAT}.png").write_bytes(PNG)
    (folder / os.fsdecode(b"b\xff.png")).write_bytes(PNG)
    opened = open_shards(made(kind, tmp_path / "source", tmp_path / "out"))
    assert len(opened) == 2
    assert opened.classes == (() if kind == "mixing" else ("caf\\udce9",))
    names = set()
    for sample in opened.shards:
        with tarfile.open(tmp_path / "out" / sample.file) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    names.add(json.loads(file.read())["filename"])
    assert names == {"caf\\udce9/a b\n\N{CAT}.png", "caf\\udce9/b\\udcff.png"}


def test_mixing_sources_are_sets_folders_and_tars(tmp_path: Path) -> None:
    from pipelines.cli.gen import main as gen

    ours = tmp_path / "fractals"
    arguments = ["fractals", "--n", "3", "--size", "32", "--out", str(ours), "--jobs", "1"]
    assert CliRunner().invoke(gen, arguments).exit_code == 0
    folder = tmp_path / "folder"
    (folder / "deeper").mkdir(parents=True)
    (folder / "deeper" / "1.png").write_bytes(encoded(IMAGES[0]))
    archive = tmp_path / "fractals_and_fvis.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder / "deeper" / "1.png", "fractals_and_fvis/fractals/images/1.png")
    out = tmp_path / "out"
    result = run("mixing", ours, folder, archive, out, "--num-shards", 2, "--jobs", 1)
    assert result.exit_code == 0, result.output
    opened, reader = open_shards(out), ShardDataset(open_shards(out))
    contents = {int(opened.key(i)): bytes(reader.read(i)) for i in range(5)}
    fractals = [(ours / "images" / f"{i:08}.jpg").read_bytes() for i in range(3)]
    image = encoded(IMAGES[0])
    assert contents == dict(enumerate([*fractals, image, image]))
    assert (opened.samples["label"] == -1).all()
    records = {}
    for path in out.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    records[int(member.name.split(".")[0])] = json.loads(file.read())
    assert all("genome" in records[i] for i in range(3))


def test_invalid_exif_does_not_rotate_images(tmp_path: Path) -> None:
    content = oriented(IMAGES[0], 6).replace(b"Exif\0\0", b"Exif\0\0\xff\xff\xff", 1)
    write_file(tmp_path / "source" / "a" / "0.jpg", content)
    write_file(tmp_path / "source" / "a" / "1.jpg", oriented(IMAGES[1], 99))
    opened = open_shards(made("mixing", tmp_path / "source", tmp_path / "out", "--exif-transpose"))
    assert "rotated" not in opened.settings["scan"]
    assert bytes(ShardDataset(opened).read(0)) in (
        content, (tmp_path / "source" / "a" / "1.jpg").read_bytes()
    )  # fmt: skip
