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
def ctrl_c_is_obeyed() -> Iterator[None]:
    """Obey Ctrl-C also where a shell's & or nohup has the tests ignore it, and their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
