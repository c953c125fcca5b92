"""Every value of a manifest and an index is checked before it is used."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import PipelineError
from pipelines.shards.format import (
    INDEX_NAME,
    MANIFEST_NAME,
    SAMPLE,
    Manifest,
    Shard,
    max_index_bytes,
    open_shards,
    parse_manifest,
    write_index,
)
from pipelines.system.files import file_sha256
from pixmix import images
from shard_sets import drawn_images, encoded, write_shards

Document = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = [encoded(image) for image in drawn_images(4)]
    return write_shards(tmp_path / "set", images, sizes=[2, 2])


def refused(content: bytes) -> str:
    """Return the one-line error for a manifest."""
    with pytest.raises(PipelineError) as error:
        parse_manifest(content, "set/manifest.json")
    message = str(error.value)
    assert message.startswith("set/manifest.json")
    assert "\n" not in message
    assert len(message) < 500
    return message


def of_shard(name: str, value: object) -> Callable[[Document], object]:
    return lambda document: document["shards"][1].update({name: value})


def of_set(name: str, value: object) -> Callable[[Document], object]:
    return lambda document: document.update({name: value})


def of_index(name: str, value: object) -> Callable[[Document], object]:
    return lambda document: document["index"].update({name: value})


HOSTILE = [
    *(of_shard("file", name) for name in ("", ".", "..", "a/b", "/a", "a\0", "a\nb", ".a", 7)),
    *(of_shard("file", name) for name in ("a\\b", "x" * 256, None, "set-0000.tar", INDEX_NAME)),
    *(of_shard(name, value) for name in ("bytes", "num_samples") for value in (
        -1, 10**30, 2**60, 1.5, "7", True, None, [],
    )),
    *(of_shard("sha256", value) for value in ("0" * 63, "G" * 64, "A" * 64, "../x", None, 7)),
    *(of_index("sha256", value) for value in ("/etc/passwd", "0" * 65, "0" * 63 + "\n", None)),
    *(of_index("file", value) for value in ("../index.npy", "/dev/zero", "", 7)),
    of_shard("num_samples", 10**6),
    of_set("num_samples", 5),
    of_set("name", "../../a"),
    of_set("kind", None),
    of_set("classes", "abc"),
    of_set("classes", [1, 2]),
    of_set("extensions", ["../x"]),
    of_set("settings", []),
    of_set("shards", {}),
    of_set("shards", None),
    of_set("index", "index.npy"),
    *(lambda document, name=name: document.pop(name) for name in (
        "name", "kind", "settings", "classes", "extensions", "num_samples", "shards", "index",
    )),
    lambda document: document["index"].pop("sha256"),
    lambda document: document["shards"][0].pop("bytes"),
]  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE)
def test_a_value_of_another_type_or_range_is_rejected(
    folder: Path, change: Callable[[Document], object]
) -> None:
    document = json.loads((folder / MANIFEST_NAME).read_bytes())
    # Otherwise the hash would be rejected.
    document.pop("sha256")
    change(document)
    refused(json.dumps(document).encode())


@pytest.mark.parametrize(
    "content",
    [b"", b"[" * 200_000, b'{"format":' * 100_000, b"\xff\xfe", b"null", b"7", b"PK\x03\x04"],
)
def test_a_file_that_is_not_a_manifest_is_rejected(content: bytes) -> None:
    refused(content)


def test_deep_nesting_and_surrogates_in_a_manifest_are_rejected(folder: Path) -> None:
    text = (folder / MANIFEST_NAME).read_text()
    refused(text.replace('"settings": {}', '"settings": {"a": ' + "[" * 10**5).encode())
    refused(text.replace("set-0001.tar", "a\\ud800.tar").encode())
    refused(text.replace('"settings": {}', '"x": %s, "settings": {}' % ("9" * 10**4)).encode())
    refused(
        text.replace('"settings": {}', f'"x": {"[" * 1000}{"]" * 1000}, "settings": {{}}').encode()
    )


def test_a_manifest_is_read_as_it_was_written(folder: Path) -> None:
    content = (folder / MANIFEST_NAME).read_bytes()
    manifest = parse_manifest(content, "")
    assert isinstance(manifest, Manifest)
    document = json.loads(content)
    assert [shard.file for shard in manifest.shards] == [s["file"] for s in document["shards"]]
    assert [shard.n_bytes for shard in manifest.shards] == [s["bytes"] for s in document["shards"]]
    assert list(document)[:11] == [
        *("format", "version", "name", "kind", "settings", "classes", "extensions"),
        *("num_samples", "shards", "index", "versions"),
    ]
    assert list(document["shards"][0]) == ["file", "num_samples", "bytes", "sha256"]


@pytest.mark.parametrize("name", ["a\nb.tar", "a\\b.tar", "\udcff.tar"])
def test_a_manifest_that_could_not_be_read_again_is_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(PipelineError):
        write_index(
            tmp_path,
            name="set",
            kind="imagefolder",
            shards=[Shard(file=name, n_samples=0, n_bytes=1024, sha256="0" * 64)],
            samples=np.empty(0, SAMPLE),
            classes=[],
            extensions=[],
            settings={},
            versions={},
        )
    assert not (tmp_path / MANIFEST_NAME).exists()


def npy_header(text: str) -> bytes:
    content = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content


DESCR = repr(SAMPLE.descr)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04" + bytes(100),
        b"\x80\x04cos\nsystem\n",
        b"\x93NUMPY\x09\x00" + bytes(100),
        npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (4,)}"),
        npy_header(f"{{'descr': {DESCR}, 'fortran_order': False, 'shape': (4000000000000,)}}"),
        npy_header(f"{{'descr': {DESCR}, 'fortran_order': False, 'shape': (-4,)}}") + bytes(80),
        npy_header(f"{{'descr': {DESCR}, 'fortran_order': False, 'shape': (2, 2)}}") + bytes(80),
        npy_header(f"{{'descr': {DESCR}, 'fortran_order': False, 'shape': (5,)}}") + bytes(80),
        npy_header(f"{{'descr': {DESCR}, 'fortran_order': False, 'shape': ('a',)}}") + bytes(80),
        npy_header("(" * 100),
    ],
)
def test_a_damaged_index_is_rejected_in_one_line(folder: Path, content: bytes) -> None:
    (folder / INDEX_NAME).write_bytes(content)
    document = json.loads((folder / MANIFEST_NAME).read_bytes())
    document["index"]["sha256"] = file_sha256(folder / INDEX_NAME)
    document.pop("sha256")
    (folder / MANIFEST_NAME).write_text(json.dumps(document))
    with pytest.raises(PipelineError, match=INDEX_NAME) as error:
        open_shards(folder)
    assert "\n" not in str(error.value)


@pytest.fixture
def no_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(images.errno.ENODEV, "No such device")

    monkeypatch.setattr(images.np, "memmap", refuse)


@pytest.mark.usefixtures("no_maps")
def test_an_index_is_read_if_it_cannot_be_mapped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = open_shards(folder).samples
    assert samples["label"].tolist() == [0, 1, 2, 3]
    assert not samples.flags.writeable
    monkeypatch.setattr(images, "MAX_BYTES_READ", 79)
    with pytest.raises(PipelineError, match=rf"{INDEX_NAME} cannot be read: .*cannot map files"):
        open_shards(folder)


def test_max_index_bytes_is_a_bound_for_every_index(folder: Path) -> None:
    manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes(), "")
    assert (folder / INDEX_NAME).stat().st_size <= max_index_bytes(manifest)
