"""What all tests share: how hypothesis draws, and a cache that is no user's."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: the first call of a kernel compiles it.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep memory maps and remembered hashes out of the home of whoever runs the tests."""
    folder = tmp_path_factory.mktemp("pixmix-cache")
    os.environ["PIXMIX_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def signals_are_not_ignored() -> Iterator[None]:
    """Have the children of the tests obey what nohup or a shell's & has the tests ignore.

    A child inherits what is ignored, and not what is handled.
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
    from pipelines.training.data import find_data

    folder = tmp_path_factory.mktemp("digits")
    find_data("digits", None, folder, lambda _done, _total: None)
    return folder
