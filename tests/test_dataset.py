"""Image files decode to the same pixels as with Pillow, or raise an error with the reason."""

import io
import subprocess
import sys
import tarfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from pipelines.errors import PipelineError
from pipelines.loading import dataset
from pipelines.loading.dataset import decode_image
from pipelines.shards import images
from pipelines.shards.images import DecodeError, decode_rgb, read_image, why_nonstandard
from shard_sets import drawn_images, encoded

PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "data" / "imagenet_sample_200.tar"
DECODERS = {
    "simplejpeg": dataset._by_simplejpeg(),
    "torchvision": dataset._by_torchvision(),
    "pillow": None,
}


@pytest.fixture(autouse=True, params=DECODERS)
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "pillow" and DECODERS[request.param] is None:
        pytest.skip(f"{request.param} has no JPEG decoder here")
    monkeypatch.setattr(dataset, "JPEG_DECODER", DECODERS[request.param])


IMAGE = drawn_images(1, 3, (37, 51))[0]


def decode_with_pillow(content: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        # Pillow warns about palettes with transparency.
        warnings.simplefilter("ignore", UserWarning)
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def saved(mode: str, format_: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(IMAGE).convert(mode).save(file, format_, **options)
    return file.getvalue()


@pytest.mark.skipif(not PHOTOGRAPHS.is_file(), reason="needs the shared photographs")
def test_photographs_decode_to_the_same_bytes_as_with_pillow() -> None:
    with tarfile.open(PHOTOGRAPHS) as tar:
        contents = [tar.extractfile(m).read() for m in tar if m.isfile()]  # type: ignore[union-attr]
    assert len(contents) == 200
    for content in contents:
        assert np.array_equal(decode_image(content), decode_with_pillow(content))


@pytest.mark.parametrize(
    "content",
    [
        saved("RGB", "JPEG"),
        saved("RGB", "JPEG", progressive=True, quality=60),
        saved("RGB", "JPEG", subsampling=0),
        saved("L", "JPEG"),
        saved("CMYK", "JPEG"),
        saved("RGB", "PNG"),
        saved("RGBA", "PNG"),
        saved("P", "PNG"),
        saved("P", "PNG", transparency=3),
        saved("P", "PNG", transparency=bytes(range(256))),
        saved("L", "PNG", transparency=7),
        saved("1", "PNG"),
        saved("L", "PNG"),
        saved("RGB", "WEBP"),
        saved("RGB", "BMP"),
        saved("RGB", "GIF"),
    ],
)
def test_every_format_and_mode_decodes_to_the_same_bytes_as_with_pillow(content: bytes) -> None:
    pixels = decode_image(bytearray(content))
    assert np.array_equal(pixels, decode_with_pillow(content))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


def encode_values(values: np.ndarray, format_: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, format_)
    return file.getvalue()


@pytest.mark.parametrize(
    ("format_", "dtype"),
    [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("PPM", "<u2"), ("TIFF", "<i4")],
)
def test_all_decoders_scale_16_bits_to_8(format_: str, dtype: str, tmp_path: Path) -> None:
    """65535 becomes 255, and the values between are scaled linearly."""
    values = np.arange(65536, dtype=dtype).reshape(128, 512)
    content = encode_values(values, format_)
    expected = np.round(values / 257).astype(np.uint8)[..., None].repeat(3, 2)
    path = tmp_path / f"a.{format_.lower()}"
    path.write_bytes(content)
    assert np.array_equal(decode_image(content), expected)
    assert np.array_equal(decode_rgb(content), expected)
    assert np.array_equal(read_image(path), expected)


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0, 1, 35, dtype=np.float32).reshape(5, 7),
        np.full((5, 7), -1, np.int32),
        np.full((5, 7), 65536, np.int32),
    ],
)
def test_all_decoders_reject_images_of_unknown_value_range(
    values: np.ndarray, tmp_path: Path
) -> None:
    content = encode_values(values, "TIFF")
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(DecodeError, match=r"mode [FI].*save it with") as caught:
        decode_image(content)
    assert caught.value.reason == "unknown range"
    with pytest.raises(DecodeError, match=r"mode [FI]"):
        decode_rgb(content)
    with pytest.raises(DecodeError, match=r"mode [FI]"):
        why_nonstandard(content, "tif")
    with pytest.raises(PipelineError, match=r"mode [FI]"):
        read_image(path)


def test_the_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved("RGB", "JPEG", exif=exif)
    assert decode_image(content).shape == IMAGE.shape
    assert np.array_equal(decode_image(content), decode_with_pillow(content))


@pytest.mark.parametrize("extension", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97])
def test_a_truncated_file_is_rejected(extension: str, share: float) -> None:
    content = encoded(IMAGE, extension)
    with pytest.raises(DecodeError) as caught:
        decode_image(content[: int(len(content) * share)])
    assert caught.value.reason in ("damaged", "unknown format")


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x80\x04K\x01.", b"GIF89a"])
def test_a_file_that_is_not_an_image_is_rejected(content: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_image(content)


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_a_decompression_bomb_is_rejected_before_it_is_decoded(
    extension: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 37 * 51 - 1)
    monkeypatch.setattr(dataset, "_decode_jpeg", lambda _: pytest.fail("the image was decoded"))
    with pytest.raises(DecodeError, match="51x37 are more than 1,886 pixels") as caught:
        decode_image(encoded(IMAGE, extension))
    assert caught.value.reason == "too large"


def test_no_external_program_decodes_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "ghostscript")
    started: list[object] = []
    monkeypatch.setattr(subprocess, "check_call", lambda *command, **_: started.append(command))
    content = saved("RGB", "EPS")
    with pytest.raises(DecodeError, match="not an image that Pillow knows"):
        decode_image(content)
    assert not started
    # Without our list of formats Pillow runs the program, which here writes no image.
    with pytest.raises(OSError, match="cannot identify"):
        decode_with_pillow(content)
    assert len(started) == 1


def test_all_decoders_use_our_size_limit_and_not_that_of_pillow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = encoded(IMAGE)
    path = tmp_path / "a.png"
    path.write_bytes(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 37 * 51 - 1)
    # Tests turn warnings into errors.
    for pixels in (decode_image(content), decode_rgb(content), read_image(path)):
        assert np.array_equal(pixels, IMAGE)
    monkeypatch.setattr(images, "MAX_PIXELS", 37 * 51 - 1)
    with pytest.raises(DecodeError, match="51x37 are more than 1,886 pixels; make"):
        decode_image(content)
    with pytest.raises(DecodeError, match="51x37 are more than 1,886 pixels"):
        decode_rgb(content)
    with pytest.raises(PipelineError, match=r"a\.png .*more than 1,886 pixels"):
        read_image(path)


def test_decoding_in_threads_keeps_the_warning_filters() -> None:
    before = list(warnings.filters)
    contents = [bytearray(encoded(IMAGE, "jpg"))] * 200
    # Switch threads often, in the middle of an image.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert len(list(pool.map(decode_image, contents))) == 200
    finally:
        sys.setswitchinterval(interval)
    assert list(warnings.filters) == before


def test_random_damage_is_rejected_or_decodes_to_pixels() -> None:
    generator = np.random.default_rng(0)
    for extension in ("jpg", "png"):
        content = encoded(IMAGE, extension)
        for _ in range(300):
            damaged = bytearray(content)
            for position in generator.integers(0, len(content), 3):
                damaged[position] ^= 1 << int(generator.integers(8))
            try:
                pixels = decode_image(damaged)
            except DecodeError:
                continue
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
