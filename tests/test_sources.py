"""What goes into shards and mixing sets: which files are images, which folders classes."""

import io
import json
import os
import resource
import socket
import subprocess
import sys
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageOps, PngImagePlugin

from pipelines.cli import shard as command
from pipelines.cli.show import main as show
from pipelines.errors import PipelineError
from pipelines.loading.dataset import ShardDataset, decode_image
from pipelines.loading.mixing_set import open_mixing_set
from pipelines.shards import picture_files as picture_files_module
from pipelines.shards.index import open_shards
from pipelines.shards.picture_files import (
    LARGEST_FILE,
    at_measured_size,
    is_ignored_name,
    picture_files,
    read_picture,
)
from pipelines.system import processes
from shard_sets import drawn_pictures, encoded, run_here

PICTURES = drawn_pictures(12, 3)
LITTER = (
    ".ipynb_checkpoints/0-checkpoint.png", ".git/x.png", "__MACOSX/a/._0.png", "a/._0.png",
    "a/.hidden/0.png", "@eaDir/0.png",
)  # fmt: skip
NOT_IMAGES = ("a/.DS_Store", "a/Thumbs.db", "b/desktop.ini")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do the work of all processes in this one, which begins at once."""
    monkeypatch.setattr(processes, "run_chunks", run_here)


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(command.main, [str(each) for each in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def made(*arguments: object) -> Path:
    result = run(*arguments, "--jobs", 1)
    assert result.exit_code == 0, result.output
    return Path(str(arguments[2]))


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def folder_of(root: Path, classes: str = "ab", n: int = 3) -> Path:
    for i in range(n):
        for name in classes:
            write(root / name / f"{i}.png", encoded(PICTURES[i]))
    return root


def with_litter(root: Path) -> Path:
    folder_of(root)
    for name in LITTER:
        write(root / name, encoded(PICTURES[9]))
    for name in NOT_IMAGES:
        write(root / name, b"not an image")
    return root


# --- hidden files and a system's litter ----------------------------------------------------------


def test_hidden_folders_and_files_are_no_classes_and_no_images(tmp_path: Path) -> None:
    clean = made("imagefolder", folder_of(tmp_path / "clean"), tmp_path / "x", "--name", "s")
    result = run("imagefolder", with_litter(tmp_path / "source"), tmp_path / "out", "--name", "s")
    assert result.exit_code == 0, result.output
    opened = open_shards(tmp_path / "out")
    assert opened.classes == ("a", "b")
    assert [shard.sha256 for shard in opened.shards] == [
        shard.sha256 for shard in open_shards(clean).shards
    ]
    told = [line for line in result.stderr.splitlines() if "ignored" in line]
    assert len(told) == 1
    assert "ignored 9 hidden" in told[0]


def test_hidden_splits_are_none(tmp_path: Path) -> None:
    for split in ("train", "val"):
        folder_of(tmp_path / "source" / split)
    write(tmp_path / "source" / "__MACOSX" / "train" / "a" / "._0.png", b"x")
    made("imagefolder", tmp_path / "source", tmp_path / "out")
    assert open_shards(tmp_path / "out" / "val").classes == ("a", "b")


def test_mixing_sets_have_no_hidden_images(tmp_path: Path) -> None:
    source = with_litter(tmp_path / "source")
    assert len(picture_files(source)) == 6
    assert len(open_mixing_set(source, 16, cache_dir=tmp_path / "cache")) == 6
    assert len(open_shards(made("mixing", source, tmp_path / "out"))) == 6
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(source, ".")
    assert len(open_mixing_set(archive, 16, cache_dir=tmp_path / "cache")) == 6
    assert len(open_shards(made("mixing", archive, tmp_path / "of-tar"))) == 6
    result = CliRunner().invoke(show, ["set", str(source), "--json"])
    assert json.loads(result.stdout)["pictures"] == 6


def test_hidden_members_of_tars_made_elsewhere_are_no_samples(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("./0.png", "./._0.png", "__MACOSX/0.png", "1.png", ".cache/2.png"):
            info = tarfile.TarInfo(name)
            info.size = len(encoded(PICTURES[0]))
            tar.addfile(info, io.BytesIO(encoded(PICTURES[0])))
    result = run("index", tmp_path / "x.tar", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["n_samples"] == 2
    assert sum(json.loads(result.stdout)["left"].values()) == 3


@pytest.mark.parametrize("name", ["a", "a.b", "DS_Store", "macosx", "thumbs.png", "n01440764"])
def test_other_names_are_not_ignored(name: str) -> None:
    assert not is_ignored_name(name)


@pytest.mark.parametrize("option", ["--broken-files", "--odd-files"])
def test_a_class_of_which_no_image_is_left_is_refused(tmp_path: Path, option: str) -> None:
    source = folder_of(tmp_path / "source")
    content = b"no image" if option == "--broken-files" else encoded(PICTURES[0], "jpg")
    write(source / "c" / "0.png", content)
    result = run("imagefolder", source, tmp_path / "out", option, "skip", "--jobs", 1)
    assert result.exit_code == 1
    assert "'c'" in result.stderr
    write(source / "c" / "1.png", encoded(PICTURES[1]))
    made("imagefolder", source, tmp_path / "out", option, "skip")


# --- names ---------------------------------------------------------------------------------------


def test_composed_and_decomposed_names_are_one_class(tmp_path: Path) -> None:
    """As macOS and Linux write the same name."""
    for split, form in (("train", "NFC"), ("val", "NFD")):
        for name in ("z", "\u00e9t\u00e9", "a"):
            folder = tmp_path / "source" / split / unicodedata.normalize(form, name)
            write(folder / "0.png", encoded(PICTURES[0]))
    out = made("imagefolder", tmp_path / "source", tmp_path / "out")
    train, val = (open_shards(out / split) for split in ("train", "val"))
    assert train.classes == val.classes == ("a", "z", "\u00e9t\u00e9")
    assert train.samples["label"].tolist() == val.samples["label"].tolist()


def test_two_folders_that_are_one_class_are_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source")
    for form in ("NFC", "NFD"):
        folder = source / unicodedata.normalize(form, "\u00e9t\u00e9")
        write(folder / "0.png", encoded(PICTURES[0]))
    result = run("imagefolder", source, tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 1
    assert "\u00e9t\u00e9" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_names_of_any_bytes_are_written_everywhere(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has names of UTF-8 alone")
    for i in range(3):
        (folder / os.fsdecode(b"\xe9%d.png" % i)).write_bytes(encoded(PICTURES[i]))
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
        info.size = len(encoded(PICTURES[0]))
        tar.addfile(info, io.BytesIO(encoded(PICTURES[0])))
    assert run("index", folder / "x.tar").exit_code == 0
    (folder / "x.tar").unlink()
    made("mixing", folder, tmp_path / "out", "--broken-files", "skip")


# --- what is no regular file ---------------------------------------------------------------------


def no_regular_file(path: Path, kind: str) -> None:
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
        os.truncate(path, LARGEST_FILE + 1)


KINDS = ["pipe", "device", "socket", "nothing", "itself", "huge"]


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_read_and_others_are_named(tmp_path: Path, kind: str) -> None:
    source = folder_of(tmp_path / "source")
    odd = source / "a" / "x.png"
    no_regular_file(odd, kind)
    for command_name in ("imagefolder", "mixing"):
        result = run(command_name, source, tmp_path / command_name, "--jobs", 1)
        assert result.exit_code == 1
        assert "a/x.png" in result.stderr
        options = ["--broken-files", "skip"]
        out = made(command_name, source, tmp_path / f"{command_name} 2", *options)
        assert len(open_shards(out)) == 6
    with pytest.raises(PipelineError, match=r"x\.png"):
        read_picture(odd)
    cache = tmp_path / "cache"
    with pytest.raises(PipelineError, match=r"x\.png"):
        open_mixing_set(source, 16, cache_dir=cache)
    assert len(open_mixing_set(source, 16, cache_dir=cache, on_decode_error="skip")) == 6
    result = CliRunner().invoke(show, ["set", str(source), "--json"])
    assert result.exit_code == 0
    assert str(odd) in result.stdout


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_no_command_waits_for_a_file_that_is_none(tmp_path: Path, kind: str) -> None:
    odd = tmp_path / "x"
    no_regular_file(odd, kind)
    manifest = folder_of(tmp_path / "set") / "manifest.json"
    no_regular_file(manifest, kind)
    (tmp_path / "set out").mkdir()
    no_regular_file(tmp_path / "set out" / "manifest.json", kind)
    out = tmp_path / "out"
    for program, arguments in (
        (command.main, ["index", odd]),
        (command.main, ["mixing", odd, out]),
        (command.main, ["cifar10", odd, out]),
        (show, ["set", odd]),
        (show, ["genome", odd, "--out", tmp_path / "g.png"]),
        (show, ["mixed", odd, "--no-mixing-set", "--out", tmp_path / "m.png"]),
        (show, ["set", tmp_path / "set"]),
        (show, ["genome", tmp_path / "set", "--index", 0, "--out", tmp_path / "g.png"]),
        (command.main, ["verify", tmp_path / "set"]),
        (command.main, ["imagefolder", tmp_path / "set", tmp_path / "set out"]),
    ):
        result = CliRunner().invoke(program, [str(each) for each in arguments])
        assert result.exit_code in (1, 2), (arguments, result.output)
        assert isinstance(result.exception, SystemExit), result.exception
    assert not out.exists()


# --- shapes, texts, orientations -----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(30_000, 1), (1, 30_000)])
def test_a_thin_image_is_measured_in_little_memory(shape: tuple[int, int], tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert at_measured_size(picture).shape == (256, 256, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    write(tmp_path / "set" / "thin.png", encoded(picture))
    with pytest.raises(PipelineError, match=r"thin\.png"):
        open_mixing_set(tmp_path / "set", 256, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("shape", [(700, 40), (33, 500), (300, 301), (1, 9)])
def test_a_thin_image_is_cut_as_others_are(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The centre alone is scaled where all of it would be too much: the same but for rounding."""
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    whole = at_measured_size(picture).astype(int)
    monkeypatch.setattr(picture_files_module, "MOST_PIXELS", 0)
    # Pillow rounds after each of two passes.
    assert np.abs(at_measured_size(picture) - whole).max() <= 1


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP", b"tEXt"])
def test_a_png_with_much_text_is_read(kind: bytes, place: str) -> None:
    import struct
    import zlib

    picture = PICTURES[0]
    packed = zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1000))
    value = {
        b"zTXt": b"key\0\0" + packed,
        b"iTXt": b"key\0\1\0\0\0" + packed,
        b"iCCP": b"key\0\0" + packed,
        b"tEXt": b"key\0" + b"x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1000),
    }[kind]
    chunk = struct.pack(">I", len(value)) + kind + value
    chunk += struct.pack(">I", zlib.crc32(kind + value))
    content = encoded(picture)
    at = 33 if place == "before" else len(content) - 12
    content = content[:at] + chunk + content[at:]
    assert np.array_equal(decode_image(content), picture)


def oriented(picture: np.ndarray, value: int, format: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format, exif=exif, quality=95)
    return file.getvalue()


@pytest.mark.parametrize("value", range(1, 9))
def test_exif_transpose_turns_images_as_pillow_does(tmp_path: Path, value: int) -> None:
    content = oriented(PICTURES[0], value)
    source = write(tmp_path / "source" / "a" / "0.jpg", content).parents[1]
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
        assert opened.settings["found"].get("turned", {}) == counts
        assert run("verify", opened.location).exit_code == 0
    cache = tmp_path / "cache"
    side = min(upright.shape[:2])
    whole = open_mixing_set(source, side, cache_dir=cache, exif_transpose=True)[0]
    assert np.array_equal(whole, upright)
    assert np.array_equal(
        open_mixing_set(source, side, cache_dir=cache)[0],
        np.asarray(Image.open(io.BytesIO(content))),
    )


def test_exif_that_is_nonsense_turns_nothing(tmp_path: Path) -> None:
    content = oriented(PICTURES[0], 6).replace(b"Exif\0\0", b"Exif\0\0\xff\xff\xff", 1)
    write(tmp_path / "source" / "a" / "0.jpg", content)
    write(tmp_path / "source" / "a" / "1.jpg", oriented(PICTURES[1], 99))
    opened = open_shards(made("mixing", tmp_path / "source", tmp_path / "out", "--exif-transpose"))
    assert "turned" not in opened.settings["found"]
    assert bytes(ShardDataset(opened).read(0)) in (
        content, (tmp_path / "source" / "a" / "1.jpg").read_bytes()
    )  # fmt: skip


def test_a_link_to_itself_among_the_classes_is_no_class(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "src" / name).mkdir(parents=True)
        (tmp_path / "src" / name / "0.png").write_bytes(encoded(PICTURES[0]))
    (tmp_path / "src" / "loop").symlink_to("loop")
    made("imagefolder", tmp_path / "src", tmp_path / "out")
    assert run("verify", tmp_path / "out").exit_code == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["classes"] == ["a", "b"]
