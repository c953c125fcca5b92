"""Which files are images, and what a file really holds."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, PngImagePlugin

from pipelines.loading.decode import decode_picture
from pipelines.shards import images
from pipelines.shards.images import (
    DecodeError,
    decode_rgb,
    is_ignored_name,
    why_nonstandard,
)
from shard_commands import PICTURES, run
from shard_sets import encoded


@pytest.mark.parametrize("name", ["a", "a.b", "DS_Store", "macosx", "thumbs.png", "n01440764"])
def test_other_names_are_not_ignored(name: str) -> None:
    assert not is_ignored_name(name)


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
    assert np.array_equal(decode_picture(content), picture)


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_a_picture_cut_off_anywhere_is_broken(extension: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    content = encoded(noise, extension)
    assert why_nonstandard(content, extension) is None
    # What follows the last pixels is no loss: of a PNG the checksum and end, of a JPEG two bytes.
    for length in range(0, len(content) - 24, 97):
        with pytest.raises(DecodeError):
            why_nonstandard(content[:length], extension)


def test_a_decompression_bomb_is_broken_and_not_decoded() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        checked = name + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    with pytest.raises(DecodeError, match=r"over [0-9,]+ pixels"):
        why_nonstandard(content, "png")


def test_a_program_that_is_called_a_picture_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
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


def test_a_picture_of_too_many_pixels_is_broken_and_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = encoded(PICTURES[0], "jpg")
    monkeypatch.setattr(images, "MOST_PIXELS", PICTURES[0].size // 3 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(DecodeError, match=r"over [0-9,]+ pixels"):
        decode_rgb(content)
