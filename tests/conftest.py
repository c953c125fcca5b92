"""Fixtures for all tests: profiles of hypothesis, and a cache folder of the tests."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from pipelines.system import processes
from shard_commands import IMAGES, made
from shard_sets import encoded, run_here

# No deadline: the first call of a kernel compiles it.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep memory maps and recorded hashes out of the user's cache."""
    folder = tmp_path_factory.mktemp("pixmix-cache")
    os.environ["PIXMIX_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def signals_are_not_ignored() -> Iterator[None]:
    """Handle the signals that nohup or a shell's & makes the tests ignore.

    Child processes inherit ignored signals, and start with the default for handled ones.
    """
    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler)}
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda *_: None)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make shards of scikit-learn's digits."""
    pytest.importorskip("sklearn")
    from pipelines.training.data import open_training_data

    folder = tmp_path_factory.mktemp("digits")
    open_training_data("digits", None, folder, lambda _done, _total: None)
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three classes of JPEGs."""
    root = tmp_path_factory.mktemp("source") / "photos"
    for i, image in enumerate(IMAGES):
        path = root / ("n01", "n02 cats", "n03")[i % 3] / f"Image.{i}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image, "jpg"))
    return root


@pytest.fixture(scope="session")
def shards(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the shards of `image_folder`."""
    out = tmp_path_factory.mktemp("shards") / "out"
    return made("imagefolder", image_folder, out, "--num-shards", 4, "--name", "photos")


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    """Return a copy of the shards, which a test may change."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in shards.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do the work of all processes in this one, which starts at once."""
    monkeypatch.setattr(processes, "run_chunks", run_here)


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect to local servers without a proxy."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute with one thread: with several, sums are rounded in another order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
