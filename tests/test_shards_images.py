"""Which files are images, their order, and how their content is decoded."""

import os
import pickle
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, PngImagePlugin

from image_sets import noise, save, write_folder
from pipelines.errors import PipelineError
from pipelines.loading.dataset import decode_image
from pipelines.shards import images
from pipelines.shards.images import (
    DecodeError,
    decode_rgb,
    image_files,
    is_ignored_name,
    natural_order,
    read_image,
    why_nonstandard,
)
from shard_commands import IMAGES, run
from shard_sets import encoded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write five images of noise, 256x256."""
    return write_folder(tmp_path)


def test_images_are_sorted_by_the_numbers_in_their_names(tmp_path: Path) -> None:
    names = ["b/1.PNG", "10.png", "9.png", "a/x2.webp", "a/x10.bmp", "a/x2b.jpg", "09.png"]
    for name in names:
        save(noise(0, (20, 30)), tmp_path / name)
    found = [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)]
    assert found == ["09.png", "9.png", "10.png", "a/x2.webp", "a/x2b.jpg", "a/x10.bmp", "b/1.PNG"]


@pytest.mark.parametrize("backwards", [False, True])
def test_names_with_equal_numbers_have_a_fixed_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    paths = [save(noise(0, (20, 30)), tmp_path / name) for name in ("9.png", "09.png", "009.png")]

    @contextmanager
    def listed(folder: Path) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(folder) as entries:
            yield sorted(entries, key=lambda entry: entry.name, reverse=backwards)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", listed)
    assert [path.name for path in image_files(tmp_path)] == ["009.png", "09.png", "9.png"]
    assert len(paths) == 3


def test_hidden_files_and_other_files_are_not_images(tmp_path: Path) -> None:
    save(noise(0), tmp_path / "seen.png")
    save(noise(0), tmp_path / ".work" / "hidden.png")
    save(noise(0), tmp_path / ".hidden.png")
    (tmp_path / "metadata.jsonl").write_text("{}")
    (tmp_path / "folder.png").mkdir()
    assert image_files(tmp_path) == [tmp_path / "seen.png"]


def test_only_the_images_folder_of_a_mixing_set_is_used(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    save(noise(0), tmp_path / "sheet.png")
    image = save(noise(1), tmp_path / "images" / "00000000.jpg")
    assert image_files(tmp_path) == [image]


def test_only_the_images_folders_of_mixing_sets_in_a_folder_are_used(tmp_path: Path) -> None:
    (tmp_path / "fractals" / "images").mkdir(parents=True)
    (tmp_path / "fractals" / "manifest.json").write_text("{}")
    save(noise(0), tmp_path / "fractals" / "sheet.png")
    image = save(noise(1), tmp_path / "fractals" / "images" / "00000000.jpg")
    other = save(noise(2), tmp_path / "photographs" / "1.png")
    assert image_files(tmp_path) == [image, other]


def test_links_are_followed_as_torchvision_does_and_never_in_a_cycle(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    root = tmp_path / "set"
    save(noise(0), tmp_path / "elsewhere" / "2.png")
    save(noise(1), root / "a" / "1.png")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    taken = [str(path) for path in image_files(root)]
    assert taken == [path for path, _ in datasets.ImageFolder(root).samples]
    assert len(taken) == 2
    (root / "a" / "back").symlink_to(root)
    assert [str(path) for path in image_files(root)] == taken


def test_a_broken_link_is_listed(tmp_path: Path) -> None:
    kept = save(noise(0), tmp_path / "1.png")
    lost = tmp_path / "2.png"
    lost.symlink_to(tmp_path / "nothing.png")
    assert image_files(tmp_path) == [kept, lost]


def test_numbers_in_names_may_have_any_length() -> None:
    long = "9" * 5000
    names = [f"1{long}.png", f"{long}.png", "10.png", "9.png"]
    assert sorted(names, key=natural_order) == names[::-1]


def test_grey_palette_and_alpha_become_colour(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "1"):
        Image.fromarray(noise(3, (40, 60))).convert(mode).save(tmp_path / f"{mode}.png")
    found = [read_image(path) for path in image_files(tmp_path)]
    assert [(image.shape, image.dtype) for image in found] == [((40, 60, 3), np.uint8)] * 4


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_damaged_file_is_reported_with_the_remedy(
    tmp_path: Path, suffix: str, damage: str
) -> None:
    path = save(noise(0), tmp_path / f"bad.{suffix}")
    whole = path.read_bytes()
    damaged = {"cut": whole[: len(whole) // 2], "text": b"not an image", "empty": b""}
    path.write_bytes(damaged[damage])
    with pytest.raises(PipelineError, match=rf"bad\.{suffix} is not a readable image.*remove it"):
        read_image(path)


@pytest.mark.parametrize("name", ["a", "a.b", "DS_Store", "macosx", "thumbs.png", "n01440764"])
def test_names_that_resemble_system_files_are_not_ignored(name: str) -> None:
    assert not is_ignored_name(name)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP", b"tEXt"])
def test_a_png_with_a_large_text_is_decoded(kind: bytes, where: str) -> None:
    image = IMAGES[0]
    packed = zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1000))
    value = {
        b"zTXt": b"key\0\0" + packed,
        b"iTXt": b"key\0\1\0\0\0" + packed,
        b"iCCP": b"key\0\0" + packed,
        b"tEXt": b"key\0" + b"x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1000),
    }[kind]
    chunk = struct.pack(">I", len(value)) + kind + value
    chunk += struct.pack(">I", zlib.crc32(kind + value))
    content = encoded(image)
    at = 33 if where == "before" else len(content) - 12
    content = content[:at] + chunk + content[at:]
    assert np.array_equal(decode_image(content), image)


def test_a_decode_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(DecodeError("damaged", "the file is damaged")))
    assert (error.reason, str(error)) == ("damaged", "the file is damaged")


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_an_image_that_is_cut_off_anywhere_cannot_be_decoded(extension: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    content = encoded(noise, extension)
    assert why_nonstandard(content, extension) is None
    # The last bytes are not needed: the checksum and end of a PNG, two bytes of a JPEG.
    for length in range(0, len(content) - 24, 97):
        with pytest.raises(DecodeError):
            why_nonstandard(content[:length], extension)


def test_a_decompression_bomb_is_rejected_before_decoding() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        checked = name + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    with pytest.raises(DecodeError, match=r"more than [0-9,]+ pixels"):
        why_nonstandard(content, "png")


def test_a_program_with_the_name_of_an_image_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow passes PostScript to Ghostscript, whatever the name of the file."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("it was run"))
    folder = tmp_path / "source" / "a"
    folder.mkdir(parents=True)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    (folder / "0.jpg").write_bytes(eps)
    result = run("imagefolder", folder.parent, tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 1
    assert "1 of 1 images are undecodable" in result.stderr
    with pytest.raises(DecodeError):
        decode_rgb(eps)


def test_an_image_with_too_many_pixels_is_rejected_before_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = encoded(IMAGES[0], "jpg")
    monkeypatch.setattr(images, "MAX_PIXELS", IMAGES[0].size // 3 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(DecodeError, match=r"more than [0-9,]+ pixels"):
        decode_rgb(content)
