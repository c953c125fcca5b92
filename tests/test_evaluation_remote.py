"""`pixmix-eval` on test sets at URLs: web servers and object stores."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("moto.server")

from faulty_server import FaultyServer, flip
from object_store import AmazonStore
from pipelines.cli.evaluate import main
from pipelines.models.registry import open_model
from pipelines.training.checkpoints import save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

NEEDS_FOLDERS = "a URL has only the test set; pass a local --data that also has the datasets of"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXMIX_CACHE", str(tmp_path / "default-cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(digits: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AmazonStore]:
    """A store with the test set in digits/test."""
    with AmazonStore() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        for path in (digits / "test").iterdir():
            store.put(f"digits/test/{path.name}", path.read_bytes())
        yield store


def write_checkpoint(path: Path, **preprocessing: Any) -> Path:  # noqa: ANN401
    module = open_model("wrn_10_1", 10)
    network = {"model": "wrn_10_1", "classes": 10, "mean": [0.5] * 3, "std": [0.5] * 3}
    network |= preprocessing
    save_checkpoint(path, {"network": network, "state_dict": module.state_dict()})
    return path


def run(checkpoint: Path, data: object, *arguments: str) -> Result:
    words = ("run", "--checkpoint", str(checkpoint), "--data", str(data), *arguments)
    return CliRunner().invoke(main, words)


def tars_of(digits: Path) -> list[str]:
    return sorted(path.name for path in (digits / "test").glob("*.tar"))


def document_of(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def error_of(result: Result) -> str:
    """Return the error of a failed command, which must be its last line."""
    assert result.exit_code == 1, result.output
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("Error: ")
    assert "Traceback" not in result.stderr
    return lines[-1]


def test_a_test_set_in_a_store_has_the_results_of_the_local_one(
    digits: Path, store: AmazonStore, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / "a.pt")
    options = (
        "--suite",
        "clean,calibration,adversarial,ood",
        "--adversarial-images",
        "4",
        "--json",
    )
    local = document_of(run(path, digits, *options))
    cache = tmp_path / "cache"
    result = run(path, f"{store.url}/digits", *options, "--cache-dir", str(cache))
    remote = document_of(result)
    for key in ("networks", "test", "preprocessing", "missing", "failed"):
        assert remote[key] == local[key]
    assert remote["provenance"]["data"] == local["provenance"]["data"]
    assert remote["data"] == f"{store.url}/digits"
    assert "ood has only the synthetic datasets; pass a local --data" in result.stderr
    assert any(cache.rglob("*"))


@pytest.mark.parametrize("resized", [{}, {"crop": "resized", "image_size": 24}])
def test_a_test_set_at_a_web_server_has_the_results_of_the_local_one(
    digits: Path, tmp_path: Path, resized: dict[str, Any]
) -> None:
    resized = resized and {**resized, "evaluation_resize": 28}
    path = write_checkpoint(tmp_path / "a.pt", **resized)
    other = write_checkpoint(tmp_path / "b.pt", **resized)
    options = ("--against", str(other), "--suite", "clean,calibration", "--json")
    local = document_of(run(path, digits, *options))
    with FaultyServer(digits) as server:
        for data in ("?token=secret", "test", "test/manifest.json"):
            result = run(path, server.url(data), *options, "--cache-dir", str(tmp_path / "cache"))
            assert document_of(result)["networks"] == local["networks"]
            assert "secret" not in result.output
        # Both networks share one manifest, and each shard is downloaded once per node.
        assert len(server.requests("test/manifest.json")) == 3
        assert [len(server.requests(f"test/{tar}")) for tar in tars_of(digits)] == [1] * 3


def test_suites_of_folders_need_local_data(digits: Path, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "a.pt")
    with FaultyServer(digits) as server:
        error = error_of(run(path, server.url(), "--suite", "clean,c,p,r"))
        assert error.startswith(f"Error: c, p, r could not be measured: {NEEDS_FOLDERS}")
        # If no requested suite has its data, no network is loaded.
        (tmp_path / "b.pt").write_bytes(b"")
        error = error_of(run(tmp_path / "b.pt", server.url(), "--suite", "c-bar,a,o"))
        assert error.startswith(f"Error: c-bar, a, o could not be measured: {NEEDS_FOLDERS}")


def test_a_url_without_a_test_set_ends_in_one_line(digits: Path, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "a.pt")
    with FaultyServer(digits / "train") as server:
        error = error_of(run(path, server.url("none?token=secret")))
    assert "/none has no test/manifest.json, val/manifest.json or manifest.json; check" in error
    assert "secret" not in error


def test_wrong_credentials_end_in_one_line(store: AmazonStore, tmp_path: Path) -> None:
    store.denies_reads = True
    error = error_of(run(write_checkpoint(tmp_path / "a.pt"), f"{store.url}/digits"))
    assert "s3://bucket/digits has no test/manifest.json" in error
    assert "access denied" in error


@pytest.mark.parametrize("resized", [{}, {"crop": "resized", "image_size": 24}])
def test_a_shard_with_a_wrong_hash_ends_in_one_line(
    digits: Path, tmp_path: Path, resized: dict[str, Any]
) -> None:
    path = write_checkpoint(tmp_path / "a.pt", **resized)
    # Only the evaluation reads the last shard, not the choice of the preprocessing.
    tar = tars_of(digits)[-1]
    with FaultyServer(digits) as server:
        server.always[f"test/{tar}"] = flip(3000)
        error = error_of(run(path, server.url(), "--suite", "clean", "--download-timeout", "60"))
    assert f"test/{tar}: expected" in error
    assert "with SHA-256" in error


def test_an_unknown_scheme_ends_in_one_line(tmp_path: Path) -> None:
    error = error_of(run(write_checkpoint(tmp_path / "a.pt"), "ftp://host/digits"))
    assert "ftp://host/digits/test is not a supported address" in error
