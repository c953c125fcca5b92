"""Verification of a sharded dataset against its manifest."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from faulty_server import FaultyServer
from pipelines.errors import PipelineError
from pipelines.shards.format import open_shards
from shard_commands import PNG, plain_tar, run


def test_verify_accepts_an_undamaged_set(copy: Path) -> None:
    result = run("verify", copy, "--decode", "all")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{copy}: good; 23 samples in 4 shards")
    assert "23 decoded" in result.stdout


@pytest.mark.parametrize("how", ["flip", "cut", "lose", "grow"])
def test_verify_reports_a_damaged_shard(copy: Path, how: str) -> None:
    path = copy / "photos-02.tar"
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[2000] ^= 4
    elif how == "cut":
        del content[-512:]
    elif how == "grow":
        content += bytes(512)
    path.write_bytes(content)
    if how == "lose":
        path.unlink()
    result = run("verify", copy)
    assert result.exit_code == 1
    assert str(path) in result.stderr
    assert f"{copy}: 1 fault; copy these" in result.stdout


def test_verify_treats_an_address_like_a_folder(copy: Path) -> None:
    with FaultyServer(copy) as server:
        address = server.url().rstrip("/")
        whole = run("verify", f"{address}?token=secret", "--decode", "all")
        again = run("verify", address)
        tar = copy / "photos-02.tar"
        tar.write_bytes(tar.read_bytes()[:-512])
        damaged = run("verify", address)
        requests = server.requests("photos-01.tar")
    assert whole.exit_code == again.exit_code == 0
    assert whole.stdout.startswith(f"{address}: good; 23 samples in 4 shards")
    assert "23 decoded" in whole.stdout
    # Each verification downloads the shard again.
    assert requests == [None] * 3
    assert damaged.exit_code == 1
    assert f"{address}/photos-02.tar" in damaged.stderr
    assert f"{address}: 1 fault; copy these" in damaged.stdout


def test_a_damaged_image_at_an_address_is_reported_by_its_key(tmp_path: Path) -> None:
    plain_tar(tmp_path / "x.tar", [("a.png", PNG), ("b.png", PNG[:-200])])
    assert run("index", tmp_path / "x.tar").exit_code == 0
    with FaultyServer(tmp_path) as server:
        result = run("verify", server.url().rstrip("/"), "--decode", "all")
        assert f"{server.url('x.tar')}: the image of key b " in result.stderr
    assert result.exit_code == 1


def test_a_tar_that_the_manifest_does_not_list_is_reported(copy: Path) -> None:
    """Readers of all tars in a folder would read it, too."""
    (copy / "photos-04.tar").write_bytes((copy / "photos-03.tar").read_bytes())
    result = run("verify", copy)
    assert result.exit_code == 1
    assert "photos-04.tar is not in the manifest" in result.stderr


def test_a_damaged_image_in_an_undamaged_shard_is_reported_by_its_key(tmp_path: Path) -> None:
    tar = plain_tar(tmp_path / "x.tar", [("a.png", PNG), ("b.png", PNG[:-200])])
    assert run("index", tar).exit_code == 0
    assert run("verify", tmp_path, "--decode", 1).exit_code == 0
    result = run("verify", tmp_path, "--decode", "all")
    assert result.exit_code == 1
    assert "the image of key b cannot be decoded" in result.stderr


def change_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for field, value in changes.items():
        manifest[field] = value
    manifest.pop("sha256")
    path.write_text(json.dumps(manifest))


def test_an_index_that_differs_from_the_tars_is_reported(copy: Path) -> None:
    samples = np.load(copy / "index.npy")
    samples["label"][4] = (samples["label"][4] + 1) % 3
    np.save(copy / "index.npy", samples)
    result = run("verify", copy)
    assert result.exit_code == 1
    assert "index.npy does not have the SHA-256 in manifest.json" in result.stderr
    digest = hashlib.sha256((copy / "index.npy").read_bytes()).hexdigest()
    change_manifest(copy, index={"file": "index.npy", "sha256": digest})
    result = run("verify", copy)
    assert result.exit_code == 1
    assert "the offset, size or label of sample 4 differs" in result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 22}, "`num_samples` is 22, but the shards have 23"),
        ({"version": 99}, "has format version 99"),
        ({"format": "other"}, "is not the manifest of a sharded dataset"),
        (
            {"index": {"file": "../index.npy", "sha256": "0" * 64}},
            r"`\$\.index\.file`",
        ),
        ({"shards": [{"file": "/etc/passwd"}]}, r"`\$\.shards\[0\]\.file`"),
        ({"classes": None}, r"got `null` .* `\$\.classes`"),
    ],
)
def test_a_wrong_manifest_is_rejected_when_it_is_opened(
    copy: Path, changes: dict[str, object], message: str
) -> None:
    change_manifest(copy, **changes)
    with pytest.raises(PipelineError, match=message):
        open_shards(copy)
    assert run("verify", copy).exit_code == 1
