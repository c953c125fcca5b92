"""What verification of a dataset of image files finds, and how images are encoded."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import PipelineError
from pipelines.generate.generators import (
    LOSSLESS,
    decode,
    encode,
    encoder_version,
    peak_signal_to_noise,
)
from pipelines.generate.products import read_manifest
from pipelines.generate.verify import Verdict, verify_images
from pipelines.system.files import file_sha256
from stripes import Stripes, image_set, make, tree


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the dataset that `image_set` asks for, made by one process in one go."""
    folder = tmp_path_factory.mktemp("unbroken") / "set"
    make(image_set(folder))
    return tree(folder)


def coloured_stripes() -> np.ndarray:
    """Stripes two pixels wide of red and green, of one luma, which 4:2:0 cannot keep."""
    image = np.full((33, 50, 3), 60, np.uint8)
    image[:, 0::4] = image[:, 1::4] = (140, 60, 60)
    image[:, 2::4] = image[:, 3::4] = (60, 100, 60)
    return image


@pytest.mark.parametrize("format", ["jpg", "png", "webp"])
def test_encoding_keeps_the_image_and_is_repeatable(format: str) -> None:
    image = coloured_stripes()
    content = encode(image, format)
    decoded = decode(content)
    assert encode(image, format) == content
    assert decoded.shape == (33, 50, 3)
    assert decoded.dtype == np.uint8
    if format in LOSSLESS:
        np.testing.assert_array_equal(decoded, image)
    else:
        # Seen: 50.9 dB; 26.2 dB with 4:2:0.
        assert peak_signal_to_noise(decoded, image) > 45
    assert encoder_version(format).startswith("Pillow ")


# --- Verification --------------------------------------------------------------------------------


def verify(folder: Path, generator: Stripes | None = None, sample: int = 4) -> Verdict:
    return verify_images(folder, lambda _: generator or Stripes(), sample=sample)


@pytest.mark.parametrize("format", ["jpg", "png", "webp"])
def test_a_set_as_it_was_made_is_good(tmp_path: Path, format: str) -> None:
    make(image_set(tmp_path / "set", format=format))
    verdict = verify(tmp_path / "set")
    assert verdict.good
    assert (verdict.n, verdict.sampled, verdict.faults) == (10, 4, [])


def remove(path: Path) -> None:
    path.unlink()


def flip_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "name", "fault"),
    [
        (
            remove,
            "images/00000003.png",
            "images/00000003.png is missing",
        ),
        (
            flip_last_bit,
            "images/00000003.png",
            "images/00000003.png is not the file that was written; delete it",
        ),
        (remove, "metadata.jsonl", "metadata.jsonl is missing"),
        (flip_last_bit, "metadata.jsonl", "metadata.jsonl is not the file"),
        (Path.touch, "images/00000010.png", "images/00000010.png does not belong to the"),
    ],
)
def test_verification_finds_damage_outside_its_sample(
    tmp_path: Path, damage: Callable[[Path], None], name: str, fault: str
) -> None:
    make(image_set(tmp_path / "set"))
    damage(tmp_path / "set" / name)
    verdict = verify(tmp_path / "set", sample=1)
    assert not verdict.good
    assert len(verdict.faults) == 1
    assert verdict.faults[0].startswith(fault)


@pytest.mark.parametrize("format", ["jpg", "png", "webp"])
def test_verification_finds_images_that_are_painted_otherwise(tmp_path: Path, format: str) -> None:
    make(image_set(tmp_path / "set", format=format))
    verdict = verify(tmp_path / "set", Stripes(offset=1))
    assert len(verdict.faults) == 4
    assert "has other pixels" in verdict.faults[0]


def test_a_damaged_image_that_is_deleted_is_painted_again(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    asked = image_set(tmp_path / "set")
    make(asked)
    flip_last_bit(asked.images / "00000003.png")
    (fault,) = verify(asked.folder).faults
    assert "delete it" in fault
    (asked.images / "00000003.png").unlink()
    assert make(asked).generated == 1
    assert verify(asked.folder).good
    assert tree(asked.folder) == unbroken


@pytest.mark.parametrize("lines", [[0, 1, 3, 4, 5, 6, 7, 8, 9, 9], range(9), [*range(10), 9]])
def test_verification_finds_records_that_are_not_in_their_place(
    tmp_path: Path, unbroken: dict[str, bytes], lines: Sequence[int]
) -> None:
    asked = image_set(tmp_path / "set")
    make(asked)
    records = asked.metadata.read_bytes().splitlines(keepends=True)
    asked.metadata.write_bytes(b"".join(records[index] for index in lines))
    sign(asked.folder)
    fault = verify(asked.folder).faults[0]
    assert fault.startswith(f"metadata.jsonl has {len(lines)} lines, ")
    assert "10 images; delete it" in fault
    asked.metadata.unlink()
    make(asked)
    assert tree(asked.folder) == unbroken


def sign(folder: Path) -> None:
    """Let the manifest name the records as they are."""
    manifest = read_manifest(folder)
    manifest["metadata_sha256"] = file_sha256(folder / "metadata.jsonl")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def change_manifest(folder: Path, **versions: str) -> None:
    manifest = read_manifest(folder)
    manifest["versions"] |= versions
    (folder / "manifest.json").write_text(json.dumps(manifest))


def put_other_content(folder: Path, index: int, content: bytes) -> None:
    """Put another file in place of an image, with records that vouch for it."""
    lines = (folder / "metadata.jsonl").read_bytes().splitlines(keepends=True)
    record = json.loads(lines[index])
    (folder / record["file"]).write_bytes(content)
    record["file_sha256"] = file_sha256(folder / record["file"])
    lines[index] = json.dumps(record).encode() + b"\n"
    (folder / "metadata.jsonl").write_bytes(b"".join(lines))
    sign(folder)


@pytest.mark.parametrize(
    ("format", "encoder", "fault"),
    [
        ("png", None, "decodes to other pixels"),
        ("jpg", None, "is not what the encoder returns"),
        ("jpg", "Pillow 1.0", "shows another image"),
    ],
)
def test_verification_finds_files_of_another_image(
    tmp_path: Path, format: str, encoder: str | None, fault: str
) -> None:
    folder = tmp_path / "set"
    make(image_set(folder, format=format))
    put_other_content(folder, 0, encode(Stripes().image(1), format))
    if encoder:
        change_manifest(folder, encoder=encoder)
    verdict = verify(folder)
    assert len(verdict.faults) == 1
    assert fault in verdict.faults[0]


def test_verification_finds_files_that_are_no_images(tmp_path: Path) -> None:
    make(image_set(tmp_path / "set"))
    put_other_content(tmp_path / "set", 0, b"no image")
    assert verify(tmp_path / "set").faults == ["images/00000000.png cannot be decoded"]


def test_files_of_another_jpeg_encoder_are_good_if_they_show_the_image(tmp_path: Path) -> None:
    make(image_set(tmp_path / "set", format="jpg"))
    change_manifest(tmp_path / "set", encoder="Pillow 1.0")
    other = io.BytesIO()
    Image.fromarray(Stripes().image(0)).save(other, "JPEG", quality=97, subsampling="4:4:4")
    put_other_content(tmp_path / "set", 0, other.getvalue())
    assert verify(tmp_path / "set").good


def test_a_partial_set_is_not_good(tmp_path: Path) -> None:
    make(image_set(tmp_path / "set", num_tasks=2))
    verdict = verify(tmp_path / "set")
    assert (verdict.good, verdict.complete, verdict.faults) == (False, False, [])


def test_a_set_of_another_version_is_not_judged(tmp_path: Path) -> None:
    make(image_set(tmp_path / "set"))
    with pytest.raises(PipelineError, match=r"stripes_version: .* made with 1, here is 2; install"):
        verify(tmp_path / "set", Stripes(version=2))


def test_a_folder_without_a_manifest_is_no_set(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="is not a dataset of images"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("licence", "proprietary"), ("drafts", 7), ("acceptance_rate", 0.123), ("kind", "other"),
        ("images", 9), ("metadata_sha256", "0" * 64),
    ],
)  # fmt: skip
def test_verify_sees_every_field_of_the_manifest(tmp_path: Path, field: str, value: object) -> None:
    make(image_set(tmp_path / "set"))
    path = tmp_path / "set" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    assert manifest[field] != value
    path.write_text(json.dumps(manifest | {field: value}))
    assert not verify(tmp_path / "set").good


def test_verify_sees_a_seed_that_is_not_that_of_the_records(tmp_path: Path) -> None:
    make(image_set(tmp_path / "set", Stripes(seed=5)))
    path = tmp_path / "set" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["settings"]["seed"] = 7
    path.write_text(json.dumps(manifest))
    assert not verify(tmp_path / "set", Stripes(seed=7), sample=0).good


@pytest.mark.parametrize(
    "change",
    [
        {"drafts": "x"}, {"images": 10**30}, {"images": True}, {"status": "half"},
        {"metadata_sha256": "../x"}, {"settings": []}, {"versions": {}}, {"licence": 7},
    ],
)  # fmt: skip
def test_a_manifest_of_other_types_is_one_error(tmp_path: Path, change: dict[str, object]) -> None:
    make(image_set(tmp_path / "set", n=2))
    path = tmp_path / "set" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PipelineError, match=r"manifest.json is damaged"):
        read_manifest(tmp_path / "set")


def test_a_hostile_manifest_is_one_error(tmp_path: Path) -> None:
    make(image_set(tmp_path / "set", n=2))
    for content in (b"[" * 200_000, b"\xff", b"", b" " * 2**21):
        (tmp_path / "set" / "manifest.json").write_bytes(content)
        with pytest.raises((PipelineError, OSError)):
            read_manifest(tmp_path / "set")
